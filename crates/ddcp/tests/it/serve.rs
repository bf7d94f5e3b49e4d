//! `ddcp serve` and its control socket, on a machine without a network.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        net::UnixStream,
        process::ExitStatusExt,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use insta::assert_snapshot;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    follow::wait_until,
    support::{PATIENCE, Repo, World, assert_converged, assert_private},
};

/// How long a daemon may take to end once it is asked to.
const GOODBYE: Duration = Duration::from_secs(15);

/// Settings of a network whose only other node does not answer.
fn network(world: &World) -> PathBuf {
    let path = world.path("network.toml");
    // Nobody else is given this port until the daemon takes it: the system hands free ports out in turn.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = format!(
        "key = \"nobody else's\"\nlisten = \"127.0.0.1:{port}\"\n\
         bootstrap = [\"0|0|VLD0:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8|127.0.0.1|T9,U9\"]\n"
    );
    fs::write(&path, settings).unwrap();
    path
}

/// The daemon, to be started.
pub(crate) fn serve(world: &World, repo: &Repo) -> Command {
    let mut command = repo.command();
    command.env("DDCP_NETWORK", network(world)).arg("serve");
    command
}

/// A running `ddcp serve`; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    /// The first line it printed.
    line: String,
}

impl Daemon {
    pub(crate) fn start(world: &World, repo: &Repo) -> Self {
        Self::spawn(world, serve(world, repo))
    }

    /// Starts the daemon and waits for its first line.
    pub(crate) fn spawn(world: &World, mut command: Command) -> Self {
        let log = world.path("serve.log");
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let _ = stdout.read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = receiver.recv_timeout(PATIENCE).unwrap_or_default();
        let daemon = Self { child, line: line.trim_end().to_owned() };
        assert!(line.ends_with('\n'), "no address: {}", fs::read_to_string(&log).unwrap());
        daemon
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Signals the daemon and waits for its exit status; `None` if the signal killed it.
    pub(crate) fn end(&mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        let deadline = Instant::now() + GOODBYE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.signal().is_some(), signal == Signal::SIGKILL, "{status}");
                return status.code();
            }
            assert!(Instant::now() < deadline, "still there {GOODBYE:?} after {signal}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn serve_prints_its_address_and_keeps_it() {
    let world = World::new();
    let repo = world.repo("a");
    let mut daemon = Daemon::start(&world, &repo);
    let address = daemon.line.clone();
    assert!(address.starts_with("VLD0:") && address.split(':').count() == 3, "{address}");
    assert_eq!(repo.ok(["address"]), format!("{address}\n"));
    assert_eq!(repo.json(&["status"])["address"], address);
    assert_eq!(repo.json(&["status"])["serving"], true);
    assert!(repo.ok(["status"]).contains("serving  yes\n"));
    assert!(fs::metadata(repo.state("control.sock")).unwrap().file_type().is_socket());
    assert_private(&world.path(".ddcp"));

    assert_snapshot!(repo.finish(start(serve(&world, &repo))), @"
    status 11
    --- stderr
    error: another ddcp process (PID) is working on DIR/a.db
    hint: wait for it to end, or stop it
    ");

    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert!(!repo.state("control.sock").exists());
    assert_eq!(repo.ok(["address"]), format!("{address}\n"));
    assert_eq!(repo.json(&["status"])["serving"], false);

    let mut daemon = Daemon::start(&world, &repo);
    assert_eq!(daemon.line, address);
    assert_eq!(daemon.end(Signal::SIGKILL), None);
    assert_eq!(repo.json(&["status"])["serving"], false, "its socket is still there, but nobody answers");
    repo.ok(["pull"]);

    let mut daemon = Daemon::start(&world, &repo);
    assert_eq!(daemon.line, address);
    assert_eq!(daemon.end(Signal::SIGINT), Some(0));
}

#[test]
fn the_journal_is_not_told_the_address() {
    let world = World::new();
    let repo = world.notes("a");
    let [out, log] = [world.path("out"), world.path("log")];
    let stdout = File::create(&out).unwrap();
    let file = stdout.metadata().unwrap();
    let mut command = serve(&world, &repo);
    command.env("JOURNAL_STREAM", format!("{}:{}", file.dev(), file.ino()));
    let child = command.stdin(Stdio::null()).stdout(stdout).stderr(File::create(&log).unwrap()).spawn().unwrap();
    let mut daemon = Daemon { child, line: String::new() };
    let deadline = Instant::now() + PATIENCE;
    while !fs::read_to_string(&log).unwrap().contains("`ddcp address` prints the address") {
        assert!(Instant::now() < deadline, "{}", fs::read_to_string(&log).unwrap());
        thread::sleep(Duration::from_millis(50));
    }
    let address = repo.ok(["address"]);
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    let secret = address.trim_end().rsplit(':').next().unwrap();
    let told = fs::read_to_string(&out).unwrap() + &fs::read_to_string(&log).unwrap();
    assert!(secret.len() > 20 && !told.contains(secret), "{told}");
}

#[test]
fn nothing_of_it_is_dumped() {
    let world = World::new();
    let repo = world.notes("a");
    let daemon = Daemon::start(&world, &repo);
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"], "{core}");
}

fn start(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn commands_are_done_by_the_daemon() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    let mut command = serve(&world, &b);
    command.args(["--format", "json"]);
    let mut daemon = Daemon::spawn(&world, command);
    let line: Value = serde_json::from_str(&daemon.line).unwrap();
    assert_eq!(line["address"], b.ok(["address"]).trim_end());

    // The daemon holds the repository's lock, so what succeeds was done by it.
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.follows(&[&a]);
    assert_snapshot!(b.run(["fetch"]), @"
    status 0
    --- stdout
    a: fetched 2 changes in SIZE
    ");
    assert_eq!(b.notes(), [""; 0]);
    assert_snapshot!(b.run(["merge"]), @"
    status 0
    --- stdout
    a: merged 2 changes (note 2)
    ");
    assert_converged(&[&a, &b]);
    a.sql("DELETE FROM note");
    // Its commands run in its own folder, a path is meant from the command's.
    b.ok(["remote", "add", "dead", "dead.db"]);
    assert_snapshot!(b.run(["pull"]), @"
    status 3
    --- stdout
    a: fetched 1 change in SIZE
    a: merged 1 change (note 1); 1 row deleted (note 1)

    --- stderr
    error: dead: there is no database at DIR/dead.db
    hint: check the path with `ddcp remote list`; `ddcp remote set-address` changes it
    ");
    assert_snapshot!(b.run(["fetch", "eve"]), @"
    status 2
    --- stderr
    error: there is no remote named `eve`
    hint: `ddcp remote list` shows the remotes
    ");
    assert_snapshot!(b.run(["remote", "add", "a", "c.db"]), @"
    status 2
    --- stderr
    error: a remote named `a` exists already
    hint: `ddcp remote set-address a ADDRESS` changes its address
    ");
    b.ok(["remote", "rename", "dead", "late"]);
    assert_eq!(b.ok(["remote", "list"]).lines().count(), 2);
    b.ok(["shell", "INSERT INTO note VALUES ('2', 'written meanwhile', 2)"]);

    // Many at once.
    let pulls: Vec<_> = (0..8).map(|_| b.start(["pull", "a"])).collect();
    for pull in pulls {
        b.finish(pull).assert_status(0);
    }
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    b.ok(["pull", "a"]);
    a.follows(&[&b]).pull();
    assert_converged(&[&a, &b]);
}

/// Sends lines and returns as many answers.
fn ask(repo: &Repo, lines: &[&[u8]]) -> Vec<Value> {
    let mut stream = UnixStream::connect(repo.state("control.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for line in lines {
        stream.write_all(line).unwrap();
        stream.write_all(b"\n").unwrap();
    }
    let answers = BufReader::new(stream).lines().take(lines.len());
    answers.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

#[test]
fn the_control_socket_speaks_json_rpc() {
    let world = World::new();
    let repo = world.notes("a");
    let daemon = Daemon::start(&world, &repo);
    let answers = ask(
        &repo,
        &[
            br#"{"jsonrpc":"2.0","id":"x","method":"hello","params":{}}"#,
            b"not json",
            b"\xff\xfe",
            b"",
            br#"{"jsonrpc":"2.0","id":2}"#,
            br#"[]"#,
            br#"{"jsonrpc":"2.0","id":3,"method":"absent"}"#,
            br#"{"jsonrpc":"2.0","id":4,"method":"fetch","params":{"remote":7}}"#,
            br#"{"jsonrpc":"2.0","id":5,"method":"remote.add","params":{"name":"b"}}"#,
            br#"{"jsonrpc":"2.0","id":6,"method":"remote.remove","params":{"name":"eve"}}"#,
            br#"{"jsonrpc":"2.0","id":7,"method":"remote.add","params":{"name":"b","address":"b.db"}}"#,
            br#"{"jsonrpc":"2.0","id":8,"method":"remote.list"}"#,
            br#"{"jsonrpc":"2.0","id":9,"method":"fetch","params":{}}"#,
            br#"{"jsonrpc":"2.0","id":10,"method":"status","params":{}}"#,
        ],
    );
    assert_eq!(
        answers[0],
        json!({"jsonrpc": "2.0", "id": "x", "result": {
            "control": 1, "version": env!("CARGO_PKG_VERSION"), "pid": daemon.child.id()}})
    );
    let codes: Vec<&Value> = answers.iter().map(|answer| &answer["error"]["code"]).collect();
    let expected =
        json!([null, -32700, -32700, -32700, -32600, -32600, -32601, -32602, -32602, -32000, null, null, null, null]);
    assert_eq!(json!(codes), expected, "{answers:#?}");
    let ids: Vec<&Value> = answers.iter().map(|answer| &answer["id"]).collect();
    assert_eq!(json!(ids), json!(["x", null, null, null, 2, null, 3, 4, 5, 6, 7, 8, 9, 10]));
    assert!(answers.iter().all(|answer| answer["jsonrpc"] == "2.0"));
    assert_eq!(answers[9]["error"]["data"]["kind"], "usage");
    assert_eq!(answers[11]["result"][0]["name"], "b");
    assert_eq!(answers[12]["result"][0]["failed"]["kind"], "unreachable");
    assert_eq!(answers[13]["result"]["serving"], true);
}

#[test]
fn a_client_that_sends_too_much_is_hung_up_on() {
    let world = World::new();
    let repo = world.notes("a");
    let _daemon = Daemon::start(&world, &repo);
    let mut stream = UnixStream::connect(repo.state("control.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    // The daemon may stop reading before all is written.
    let _ = (0..17).try_for_each(|_| stream.write_all(&vec![b' '; 1 << 20]));
    let mut answer = String::new();
    let _ = reader.read_line(&mut answer);
    let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
    assert!(answer.is_null() || answer["error"]["code"] == -32600, "{answer}");
    repo.ok(["status"]);
}

#[test]
fn serve_refuses_what_is_no_database() {
    let world = World::new();
    let repo = world.repo("a");
    fs::write(repo.db(), "Dear diary, ".repeat(100)).unwrap();
    assert_snapshot!(repo.finish(start(serve(&world, &repo))), @"
    status 1
    --- stderr
    error: DIR/a.db is not a SQLite database: name another with --db, or move this file away
    ");
}

/// The daemon, to be started with these arguments.
fn serve_with(world: &World, arguments: &[&str]) -> Command {
    let mut command = world.command();
    command.env("DDCP_NETWORK", network(world)).args(arguments).arg("serve");
    command
}

#[test]
fn a_new_database_is_made_only_where_nobody_can_have_meant_another() {
    let world = World::new();
    let log = || fs::read_to_string(world.path("serve.log")).unwrap();
    for arguments in [&[][..], &["--db", "notes.db"], &["--db", "more.db"]] {
        let mut daemon = Daemon::spawn(&world, serve_with(&world, arguments));
        let name = arguments.last().unwrap_or(&"ddcp.db");
        let line = format!("made a new database, with nothing in it database={}", world.path(name).display());
        assert_eq!(log().matches(&line).count(), 1, "{}", log());
        assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
        let mut daemon = Daemon::spawn(&world, serve_with(&world, arguments));
        assert!(!log().contains("made a new database"), "{}", log());
        assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    }
    // Of the folder `ddcp.db` is meant if it is there. Where it is not, others may be.
    for name in ["ddcp.db", ".ddcp/ddcp.db"] {
        let path = world.path(name);
        fs::rename(&path, world.path("aside").with_extension(name.len().to_string())).unwrap();
    }
    for command in ["serve", "pull", "status", "stop", "address", "doctor"] {
        world.run([command]).assert_status(10);
    }
    assert_snapshot!(world.run(["serve"]), @"
    status 10
    --- stderr
    error: no database is named, DIR/ddcp.db is no repository, and its folder holds DIR/more.db, DIR/notes.db
    hint: name the one you mean: `ddcp --db DIR/more.db …`
    ");
    assert!(!world.path("ddcp.db").exists());
    // A file that is there, and in no repository, is not guessed to be meant either.
    fs::write(world.path("ddcp.db"), "").unwrap();
    world.run(["serve"]).assert_status(10);
    // Who asks for a new one gets it.
    world.run(["init"]).assert_status(0);
    world.run(["status"]).assert_status(0);
}

#[test]
fn a_state_directory_without_its_database_is_an_error_of_every_command() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.notes("b"));
    b.follows(&[&a]);
    let mut daemon = Daemon::start(&world, &b);
    let address = daemon.line.clone();
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    b.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let aside = world.path("aside.db");
    fs::rename(b.db(), &aside).unwrap();
    let commands: [&[&str]; 16] = [
        &["init"],
        &["clone", "a.db"],
        &["serve"],
        &["stop"],
        &["address"],
        &["remote", "list"],
        &["remote", "add", "c", "c.db"],
        &["config", "get"],
        &["fetch"],
        &["merge"],
        &["pull"],
        &["verify"],
        &["bundle", "create", "b.bundle"],
        &["status"],
        &["log"],
        &["shell", "SELECT 1"],
    ];
    for is_empty in [false, true] {
        if is_empty {
            // As `sqlite3 b.db .tables` leaves it.
            fs::write(b.db(), "").unwrap();
        }
        for command in commands {
            let run = b.run(command).assert_status(10);
            let hint = format!(
                "hint: mount its disk, or restore the file from a backup; to begin anew under another \
                 address, remove {}",
                b.state("").display()
            );
            assert!(
                run.stderr.contains(&format!("the database {} is missing", b.db().display())),
                "{command:?}: {run}"
            );
            assert!(run.stderr.contains(hint.trim_end_matches('/')), "{command:?}: {run}");
            assert_eq!(run.stdout, "");
        }
        let doctor = b.run(["doctor", "--offline", "--trouble"]).assert_status(5);
        assert!(doctor.stdout.contains("mend: mount its disk"), "{doctor}");
        assert_eq!(b.db().exists(), is_empty);
    }
    assert_snapshot!(b.run(["serve"]), @"
    status 10
    --- stderr
    error: the database DIR/b.db is missing, and its state directory DIR/.ddcp/b.db is there: its disk may not be mounted
    hint: mount its disk, or restore the file from a backup; to begin anew under another address, remove DIR/.ddcp/b.db
    ");
    fs::rename(&aside, b.db()).unwrap();
    let mut daemon = Daemon::start(&world, &b);
    assert_eq!(daemon.line, address);
    wait_until("it serves", || fs::read_to_string(world.path("serve.log")).unwrap().contains("serving"));
    // One that loses its database while it runs can be ended.
    fs::rename(b.db(), &aside).unwrap();
    b.run(["status"]).assert_status(10);
    b.ok(["stop"]);
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    assert!(!b.db().exists());
}

#[test]
fn a_state_directory_that_is_named_tells_where_its_database_was() {
    let world = World::new();
    let a = world.repo("a");
    a.ok(["--state-dir", "state", "init"]);
    let run = world.run(["--state-dir", "state", "serve"]).assert_status(10);
    assert!(run.stderr.contains(&format!("(the database was last at {})", a.db().display())), "{run}");
    assert!(!world.path("ddcp.db").exists());
}

#[test]
fn stop_ends_it_and_waits_for_the_end() {
    let world = World::new();
    let repo = world.repo("a");
    let mut daemon = Daemon::start(&world, &repo);
    repo.ok(["stop"]);
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    assert!(!repo.state("control.sock").exists());
    let run = repo.run(["stop"]).assert_status(0);
    assert_eq!(run.stderr, "`ddcp serve` does not run here\n");
}
