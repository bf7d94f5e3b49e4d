//! A real network: namespaces, nodes, switch. Tests share one, each on hosts of its own.

#![allow(clippy::unwrap_used, reason = "how a test fails")]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::UdpSocket,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use testnet::{Error, Lease, Link, Options, Testnet};

const EXE: &str = env!("CARGO_BIN_EXE_testnet");
const ECHO_PORT: u16 = 7;
/// In the environment of this program when it runs on a host: the address to send echo requests to.
const ECHO_PEER: &str = "ECHO_PEER";
/// How long an echo is waited for.
const ECHO_LIMIT: Duration = Duration::from_millis(700);
const PAYLOAD: [u8; 1000] = [7; 1000];

fn network() -> &'static Testnet {
    static NETWORK: OnceLock<Testnet> = OnceLock::new();
    NETWORK.get_or_init(|| Testnet::up(Options { hosts: 9, nodes: 5, ..Options::new(EXE) }).unwrap())
}

/// Ends a program when the test does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program on a host, as one of the helpers at the end of the file.
fn helper(host: &str, name: &str) -> Command {
    let mut command = network().command(host, std::env::current_exe().unwrap());
    command.args([name, "--exact", "--ignored", "--nocapture"]);
    command
}

/// Two hosts, the second of which answers the first's echo requests.
struct Pair {
    hosts: Lease<'static, 2>,
    _server: Running,
}

impl Pair {
    fn new() -> Self {
        let hosts = network().lease::<2>();
        let [_, server] = hosts.hosts();
        let mut server = helper(server, "echo_server").stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(server.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.ends_with("listening")), "no echo server");
        Self { hosts, _server: Running(server) }
    }

    fn names(&self) -> [&str; 2] {
        self.hosts.hosts()
    }

    /// The time one echo takes; none if it does not come back.
    fn echo(&self) -> Option<Duration> {
        let [client, server] = self.names();
        let address = network().addresses(server).unwrap().ipv4;
        let output = helper(client, "echo_client").env(ECHO_PEER, address.to_string()).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let micros = output.split("rtt=").nth(1)?.split_whitespace().next()?.parse().unwrap();
        Some(Duration::from_micros(micros))
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < deadline, "still not: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The processes that belong to the network in `dir`.
fn processes(dir: &Path) -> Vec<String> {
    let mark = format!("TESTNET_DIR={}\0", dir.display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let marked = entries.filter(|entry| {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        environment.windows(mark.len()).any(|window| window == mark.as_bytes())
    });
    marked.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok()).collect()
}

#[test]
fn a_command_keeps_its_arguments_streams_and_exit_code() {
    let hosts = network().lease::<1>();
    let [host] = hosts.hosts();
    let script = r#"echo "$1"; ip -brief address show eth0; echo "$DDCP_NETWORK" >&2; exit 7"#;
    let output = network().command(host, "sh").args(["-c", script, "sh", "a  b"]).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let addresses = network().addresses(host).unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(stdout.lines().next(), Some("a  b"));
    assert!(stdout.contains(&format!("{}/24", addresses.ipv4)), "{stdout}");
    assert!(stdout.contains(&format!("{}/64", addresses.ipv6)), "{stdout}");
    let network_file = String::from_utf8(output.stderr).unwrap();
    assert_eq!(Path::new(network_file.trim()), network().network_file());
    assert!(fs::read_to_string(network_file.trim()).unwrap().contains("bootstrap"));
}

#[test]
fn a_signal_reaches_the_command() {
    let hosts = network().lease::<1>();
    let [host] = hosts.hosts();
    let script = "trap 'exit 42' TERM; echo started; while :; do sleep 0.05; done";
    let mut command = network().command(host, "sh");
    let mut child = command.args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "started\n");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(42));

    let mut child = network().command(host, "sleep").arg("60").spawn().unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
}

#[test]
fn what_cannot_be_run_is_told_apart() {
    let hosts = network().lease::<1>();
    let [host] = hosts.hosts();
    let missing = network().command(host, "no-such-program").output().unwrap();
    assert_eq!(missing.status.code(), Some(127));
    let folder = network().command(host, "/").output().unwrap();
    assert_eq!(folder.status.code(), Some(126));
    let nowhere = network().command("h77", "true").output().unwrap();
    assert_eq!(nowhere.status.code(), Some(125));
    let message = String::from_utf8(nowhere.stderr).unwrap();
    assert!(message.starts_with("error: there is no host h77: this network has n1, "), "{message}");
}

#[test]
fn a_link_is_cut_and_healed() {
    let pair = Pair::new();
    let [client, server] = pair.names();
    assert!(pair.echo().is_some());
    for host in [server, client] {
        network().cut(host).unwrap();
        assert_eq!(pair.echo(), None, "{host} is cut");
        network().heal(host).unwrap();
        assert!(pair.echo().is_some(), "{host} is healed");
    }
}

#[test]
fn a_link_is_slowed_down() {
    let pair = Pair::new();
    let [client, server] = pair.names();
    network().link(client, Link { delay: Duration::from_millis(60), ..Link::default() }).unwrap();
    network().link(server, Link { delay: Duration::from_millis(40), ..Link::default() }).unwrap();
    // The first request also asks for the server's hardware address.
    pair.echo();
    let slow = pair.echo().unwrap();
    assert!((200..500).contains(&slow.as_millis()), "{slow:?} for twice 60 + 40 ms");
}

#[test]
fn a_link_loses_everything_or_nothing() {
    let pair = Pair::new();
    let [client, _] = pair.names();
    network().link(client, Link { loss: 1.0, ..Link::default() }).unwrap();
    assert_eq!(pair.echo(), None);
    network().link(client, Link::default()).unwrap();
    assert!(pair.echo().is_some());
}

#[test]
fn a_loss_that_is_no_probability_is_refused() {
    let hosts = network().lease::<1>();
    let [host] = hosts.hosts();
    for loss in [-0.1, 1.1, f64::NAN] {
        let refused = network().link(host, Link { loss, ..Link::default() });
        assert!(refused.is_err(), "{loss}");
    }
}

#[test]
fn the_bytes_on_the_wire_are_counted() {
    let pair = Pair::new();
    let hosts = pair.names();
    pair.echo().unwrap();
    let before = hosts.map(|host| network().stats(host).unwrap());
    pair.echo().unwrap();
    let after = hosts.map(|host| network().stats(host).unwrap());
    // Ethernet, IPv4 and UDP headers come on top; other hosts' broadcasts may.
    let wire = PAYLOAD.len() as u64 + 42;
    for (before, after) in before.iter().zip(&after) {
        assert!((wire..wire + 500).contains(&(after.tx_bytes - before.tx_bytes)), "{before:?} {after:?}");
        assert!(after.rx_bytes - before.rx_bytes >= wire, "{before:?} {after:?}");
    }
    assert!(matches!(network().stats("h77"), Err(Error::Refused(_))));
}

#[test]
fn nothing_outlives_a_network_that_is_killed() {
    // Longer than a socket's path may be.
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a".repeat(120));
    fs::create_dir(&dir).unwrap();
    let dir = dir.canonicalize().unwrap();
    let testnet = |arguments: &[&str]| {
        let mut command = Command::new(EXE);
        command.arg(arguments[0]).arg("--dir").arg(&dir).args(&arguments[1..]);
        command
    };
    let mut up = testnet(&["up", "--nodes", "5", "--hosts", "1"]);
    let mut up = Running(up.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(up.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");

    let second = testnet(&["up"]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let message = String::from_utf8(second.stderr).unwrap();
    assert!(message.starts_with("error: a testnet is already running in "), "{message}");

    let mut command = Running(testnet(&["exec", "h1", "--", "sleep", "600"]).spawn().unwrap());
    wait_for("sleep runs on the host", || processes(&dir).contains(&"sleep\n".to_owned()));
    up.0.kill().unwrap();
    up.0.wait().unwrap();
    wait_for("only the user's command is left", || processes(&dir) == ["sleep\n"]);

    assert!(testnet(&["down"]).status().unwrap().success());
    assert_eq!(command.0.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
    assert!(!dir.join("network.toml").exists());
    assert_eq!(processes(&dir), [""; 0]);
    let gone = testnet(&["exec", "h1", "--", "true"]).output().unwrap();
    assert_eq!(gone.status.code(), Some(125));
}

#[test]
#[ignore = "no test: what the tests run on a host"]
fn echo_server() {
    let socket = UdpSocket::bind(("0.0.0.0", ECHO_PORT)).unwrap();
    println!("listening");
    let mut buffer = [0; 2000];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(&buffer[..length], peer);
    }
}

#[test]
#[ignore = "no test: what the tests run on a host"]
fn echo_client() {
    let Ok(peer) = std::env::var(ECHO_PEER) else { return };
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect((peer.as_str(), ECHO_PORT)).unwrap();
    socket.set_read_timeout(Some(ECHO_LIMIT)).unwrap();
    let sent = Instant::now();
    socket.send(&PAYLOAD).unwrap();
    let mut buffer = [0; 2000];
    if socket.recv(&mut buffer).is_ok() {
        println!("rtt={}", sent.elapsed().as_micros());
    }
}
