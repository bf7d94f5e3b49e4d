//! `testnet up`: builds a network, keeps it, and takes it down.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File, TryLockError},
    io::{self, Write},
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{self, Stdio},
    thread,
    time::Duration,
};

use data_encoding::HEXLOWER;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{UnixListener, UnixStream},
    process::{Child, ChildStdin, ChildStdout, Command},
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::timeout,
};

use crate::{
    ARG0, Addresses, Error,
    control::{self, Answer, LinkChange, Request},
    forwarder::Forwarder,
    machine::{Event, Order},
    namespace,
    network_file::NetworkFile,
    node,
    packet::PacketSocket,
};

/// The file that says which network nodes join.
pub(crate) const NETWORK_FILE: &str = "network.toml";
const LOCK_FILE: &str = "lock";
/// Logs and stores of the machines.
const MACHINES: &str = "machines";
/// Hosts are numbered from here on, nodes from 1.
const FIRST_HOST: u8 = 101;
/// The most a machine may take for one order, starting Veilid included.
const MACHINE_LIMIT: Duration = Duration::from_secs(60);

/// What to build.
pub(crate) struct Plan {
    pub(crate) dir: PathBuf,
    pub(crate) nodes: u8,
    pub(crate) hosts: u8,
    /// End when stdin ends: a caller that dies takes its network with it.
    pub(crate) until_stdin_ends: bool,
}

/// Builds the network and keeps it until it is told to stop. The process must not have started
/// threads yet.
pub(crate) fn run(plan: &Plan) -> Result<(), Error> {
    let dir = create(&plan.dir)?;
    let _lock = lock(&dir)?;
    clean(&dir);
    namespace::isolate()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::file("start the network in", &dir))?;
    runtime.block_on(serve(&dir, plan))
}

/// Ends the network in `dir`, or what a crashed one left.
pub(crate) fn down(dir: &Path) -> Result<(), Error> {
    match control::ask(dir, &Request::Stop) {
        Err(Error::NotRunning(_)) => {}
        answer => return answer.map(drop),
    }
    let Ok(dir) = dir.canonicalize() else { return Ok(()) };
    let _lock = lock(&dir)?;
    clean(&dir);
    Ok(())
}

fn create(dir: &Path) -> Result<PathBuf, Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::file("create", dir))?;
    dir.canonicalize().map_err(Error::file("find", dir))
}

/// Held as long as the file stays open.
fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join(LOCK_FILE);
    let file = File::create(&path).map_err(Error::file("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::AlreadyRunning(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(Error::file("lock", &path)(error)),
    }
}

/// Removes all that a network leaves in its directory, and its processes.
fn clean(dir: &Path) {
    namespace::end_processes(dir);
    control::remove(dir);
    let _ = fs::remove_file(dir.join(NETWORK_FILE));
    let _ = fs::remove_dir_all(dir.join(MACHINES));
}

async fn serve(dir: &Path, plan: &Plan) -> Result<(), Error> {
    let stop = stop_asked(plan.until_stdin_ends);
    tokio::pin!(stop);
    let network = tokio::select! {
        network = Network::build(dir, plan) => network?,
        () = &mut stop => return Ok(()),
    };
    let listener = control::listen(dir)?;
    println!("ready");
    io::stdout().flush().map_err(Error::file("write to", "stdout"))?;
    let asker = tokio::select! {
        asker = network.answer_requests(&listener) => Some(asker),
        () = &mut stop => None,
    };
    clean(dir);
    drop(network);
    if let Some(mut asker) = asker {
        control::reply(&mut asker, &Answer::Done).await;
    }
    Ok(())
}

/// Waits for a signal or, if asked to, the end of stdin.
async fn stop_asked(with_stdin: bool) {
    let stdin_end = async { if with_stdin { stdin_ended().await } else { std::future::pending().await } };
    tokio::select! {
        () = signalled(SignalKind::terminate()) => {}
        () = signalled(SignalKind::interrupt()) => {}
        () = stdin_end => {}
    }
}

/// Reads stdin away in a thread of its own, for nothing can interrupt that.
async fn stdin_ended() {
    let (sender, ended) = oneshot::channel();
    thread::spawn(move || {
        // An error is an end too.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = sender.send(());
    });
    let _ = ended.await;
}

async fn signalled(kind: SignalKind) {
    match signal(kind) {
        Ok(mut signals) => drop(signals.recv().await),
        // The signal keeps its default effect: it ends the process, and with it the network.
        Err(_) => std::future::pending().await,
    }
}

struct Network {
    machines: Vec<Machine>,
    forwarder: Forwarder,
}

impl Network {
    async fn build(dir: &Path, plan: &Plan) -> Result<Self, Error> {
        let mut machines = start_machines(dir, plan).await?;
        let forwarder = connect(&machines)?;
        let identity = node::new_identity()?;
        let record = node::bootstrap_record(&identity, Addresses::of(1).ipv4);
        let key = HEXLOWER.encode(&rand::random::<[u8; 16]>());

        for (index, machine) in machines.iter_mut().enumerate() {
            let node = machine.name.starts_with('n').then(|| node::Setup {
                dir: machine.store.clone(),
                key: key.clone(),
                bootstrap: (index > 0).then(|| record.clone()),
                identity: (index == 0).then(|| identity.clone()),
            });
            machine.order(&Order::Start { addresses: machine.addresses, node }).await?;
        }
        for machine in &mut machines {
            machine.expect_ready().await?;
        }
        write_network_file(dir, &NetworkFile { key, bootstrap: vec![record], detect_address_changes: false })?;
        let nodes = usize::from(plan.nodes);
        let (writers, readers) = machines[..nodes].split_at_mut(nodes / 2);
        prove_table(&mut writers[1], &mut readers[0]).await?;
        Ok(Self { machines, forwarder })
    }

    /// Answers until one asks to stop; returns who.
    async fn answer_requests(&self, listener: &UnixListener) -> UnixStream {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            let answer = match control::read_request(&mut stream).await {
                Ok(Request::Stop) => return stream,
                Ok(request) => self.answer(&request),
                Err(error) => Answer::Failed { message: format!("the request cannot be read: {error}") },
            };
            control::reply(&mut stream, &answer).await;
        }
    }

    fn answer(&self, request: &Request) -> Answer {
        let answer = match request {
            Request::Locate { machine } => self
                .find(machine)
                .map(|(_, machine)| Answer::Located { pid: machine.pid, addresses: machine.addresses }),
            Request::Link(change) => self.change_link(change).map(|()| Answer::Done),
            Request::Stats => Ok(Answer::Stats(self.stats())),
            Request::Stop => Ok(Answer::Done),
        };
        answer.unwrap_or_else(|message| Answer::Failed { message })
    }

    /// A machine and its port.
    fn find(&self, name: &str) -> Result<(usize, &Machine), String> {
        self.machines.iter().enumerate().find(|(_, machine)| machine.name == name).ok_or_else(|| {
            let names: Vec<_> = self.machines.iter().map(|machine| machine.name.as_str()).collect();
            format!("there is no host {name}: this network has {}", names.join(", "))
        })
    }

    fn change_link(&self, change: &LinkChange) -> Result<(), String> {
        let (port, _) = self.find(&change.machine)?;
        let quality = |link: &mut crate::Link| {
            link.loss = change.loss.unwrap_or(link.loss);
            link.delay = change.delay.unwrap_or(link.delay);
        };
        self.forwarder.set_link(port, quality, change.up);
        Ok(())
    }

    fn stats(&self) -> BTreeMap<String, crate::LinkStats> {
        let stats = |(port, machine): (usize, &Machine)| (machine.name.clone(), self.forwarder.stats(port));
        self.machines.iter().enumerate().map(stats).collect()
    }
}

/// Starts the processes of all machines, nodes first; each has its namespace when this returns.
async fn start_machines(dir: &Path, plan: &Plan) -> Result<Vec<Machine>, Error> {
    let nodes = (1..=plan.nodes).map(|number| (format!("n{number}"), number));
    let hosts = (1..=plan.hosts).map(|number| (format!("h{number}"), FIRST_HOST + number - 1));
    let mut machines = nodes
        .chain(hosts)
        .map(|(name, number)| Machine::spawn(dir, name, Addresses::of(number)))
        .collect::<Result<Vec<_>, _>>()?;
    for machine in &mut machines {
        machine.expect_isolated().await?;
    }
    Ok(machines)
}

/// Gives every machine its interface `eth0`, whose other end is a port of the switch.
fn connect(machines: &[Machine]) -> Result<Forwarder, Error> {
    let mut script = String::new();
    for (port, Machine { pid, .. }) in machines.iter().enumerate() {
        let _ = writeln!(script, "link add p{port} type veth peer name eth0 netns {pid}");
        // The switch itself says nothing on the network.
        let _ = writeln!(script, "link set p{port} addrgenmode none");
    }
    namespace::ip(&script)?;
    let sockets = (0..machines.len())
        .map(|port| PacketSocket::bind(&format!("p{port}")))
        .collect::<Result<_, _>>()
        .map_err(Error::system("open the switch's packet sockets"))?;
    let script: String = (0..machines.len()).map(|port| format!("link set p{port} up\n")).collect();
    namespace::ip(&script)?;
    Forwarder::start(sockets).map_err(Error::file("start", "the switch"))
}

fn write_network_file(dir: &Path, network: &NetworkFile) -> Result<(), Error> {
    let path = dir.join(NETWORK_FILE);
    let text = toml::to_string(network).map_err(|error| Error::Up(error.to_string()))?;
    fs::write(&path, text).map_err(Error::file("write", &path))
}

/// The network is ready when what one node writes another reads.
async fn prove_table(writer: &mut Machine, reader: &mut Machine) -> Result<(), Error> {
    let value = "testnet".to_owned();
    writer.order(&Order::Write { value: value.clone() }).await?;
    let Event::Written { key } = writer.event().await? else {
        return Err(writer.confused());
    };
    reader.order(&Order::Read { key }).await?;
    match reader.event().await? {
        Event::Read { value: read } if read == value => Ok(()),
        Event::Read { value: read } => Err(Error::NotReady(format!("{} read {read:?}, not {value:?}", reader.name))),
        _ => Err(reader.confused()),
    }
}

/// The process behind a machine, seen from the network. Dropping it ends the machine.
struct Machine {
    name: String,
    addresses: Addresses,
    pid: u32,
    store: PathBuf,
    log: PathBuf,
    orders: ChildStdin,
    events: Lines<BufReader<ChildStdout>>,
    _process: Child,
}

impl Machine {
    fn spawn(dir: &Path, name: String, addresses: Addresses) -> Result<Self, Error> {
        let store = dir.join(MACHINES).join(&name);
        fs::create_dir_all(&store).map_err(Error::file("create", &store))?;
        let log = store.join("log");
        let stderr = File::create(&log).map_err(Error::file("create", &log))?;
        let exe = std::env::current_exe().map_err(Error::file("find", "the testnet program"))?;
        let mut command = process::Command::new(&exe);
        command.arg0(ARG0).args(["machine", &name]).env(namespace::MARK, dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut process = Command::from(command).kill_on_drop(true).spawn().map_err(Error::file("run", &exe))?;
        let (Some(pid), Some(orders), Some(events)) = (process.id(), process.stdin.take(), process.stdout.take())
        else {
            return Err(Error::Machine { machine: name, problem: "it ended at once".to_owned() });
        };
        let events = BufReader::new(events).lines();
        Ok(Self { name, addresses, pid, store, log, orders, events, _process: process })
    }

    async fn order(&mut self, order: &Order) -> Result<(), Error> {
        let mut line = serde_json::to_vec(order).map_err(|error| self.problem(error.to_string()))?;
        line.push(b'\n');
        self.orders.write_all(&line).await.map_err(|_| self.ended())
    }

    /// The next event that is no failure.
    async fn event(&mut self) -> Result<Event, Error> {
        let next = timeout(MACHINE_LIMIT, self.events.next_line()).await;
        let line = next.map_err(|_| self.problem(format!("no answer within {MACHINE_LIMIT:?}")))?;
        let Ok(Some(line)) = line else { return Err(self.ended()) };
        match serde_json::from_str(&line) {
            Ok(Event::Failed { message }) => Err(self.problem(message)),
            Ok(event) => Ok(event),
            Err(_) => Err(self.problem(format!("it said: {line}"))),
        }
    }

    async fn expect_isolated(&mut self) -> Result<(), Error> {
        let Event::Isolated = self.event().await? else { return Err(self.confused()) };
        Ok(())
    }

    async fn expect_ready(&mut self) -> Result<(), Error> {
        let Event::Ready = self.event().await? else { return Err(self.confused()) };
        Ok(())
    }

    fn problem(&self, problem: String) -> Error {
        Error::Machine { machine: self.name.clone(), problem }
    }

    fn confused(&self) -> Error {
        self.problem("it answered something else than was asked".to_owned())
    }

    fn ended(&self) -> Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().last().unwrap_or("it gave no reason").to_owned();
        self.problem(format!("it ended: {last}"))
    }
}
