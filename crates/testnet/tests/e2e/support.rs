//! People with repositories on hosts of the shared network.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use testnet::{Options, Testnet};

/// What anything here may take; nothing waits this long unless it is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// The network of this test run; it ends with the process.
pub(crate) fn network() -> &'static Testnet {
    static NETWORK: OnceLock<Testnet> = OnceLock::new();
    NETWORK.get_or_init(|| {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("e2e-{}", std::process::id()));
        let options = Options { dir: Some(dir), hosts: 8, ..Options::new(env!("CARGO_BIN_EXE_testnet")) };
        Testnet::up(options).unwrap_or_else(|error| panic!("no private network: {error}"))
    })
}

/// A repository on a host.
pub(crate) struct Peer {
    pub(crate) host: String,
    pub(crate) dir: TempDir,
}

impl Peer {
    /// An initialised repository on `host` with the table `note`.
    pub(crate) fn new(host: &str) -> Self {
        let peer = Self::bare(host);
        peer.ok(&["init"]);
        peer.sql("CREATE TABLE note (id TEXT NOT NULL PRIMARY KEY, body TEXT, stars INTEGER)");
        peer.sql("SELECT crsql_as_crr('note')");
        peer
    }

    /// A folder on `host` in which nothing is.
    pub(crate) fn bare(host: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The demo program is `ddcp` when it is called so; the real one belongs to another package.
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_demo"), dir.path().join("ddcp")).unwrap();
        Self { host: host.to_owned(), dir }
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.dir.path().join("peer.db")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = network().ddcp(&self.host, self.dir.path(), "peer.db");
        command.args(args);
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        let Output { status, stdout, stderr } = self.command(args).stdin(Stdio::null()).output().unwrap();
        Outcome {
            code: status.code(),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
        }
    }

    /// Runs a command that must succeed; its stdout.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let outcome = self.run(args);
        assert_eq!(outcome.code, Some(0), "{args:?} on {}: {outcome:#?}", self.host);
        outcome.stdout
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        self.ok(&["shell", sql])
    }

    /// The notes, a line each.
    pub(crate) fn notes(&self) -> String {
        self.sql("SELECT * FROM note ORDER BY id")
    }

    /// A digest of a table's whole content, without printing it.
    pub(crate) fn digest(&self, table: &str) -> String {
        self.sql(&format!("SELECT count(*), sum(length(quote({table}.body))), total({table}.stars) FROM {table}"))
    }

    /// Packs that are fetched and not merged, read while a command writes them; 0 if that cannot be had just now.
    pub(crate) fn packs_in_inbox(&self) -> i64 {
        let state = self.dir.path().join(".ddcp/peer.db/state.db");
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let count = rusqlite::Connection::open_with_flags(state, flags).and_then(|connection| {
            connection.query_row("SELECT count(*) FROM inbox WHERE pack IS NOT NULL", [], |row| row.get(0))
        });
        count.unwrap_or(0)
    }

    /// Bytes that have come of packs that are not complete.
    pub(crate) fn parts_bytes(&self) -> u64 {
        let sites = self.dir.path().join(".ddcp/peer.db/parts").read_dir();
        let files = sites.into_iter().flatten().flatten().filter_map(|site| site.path().read_dir().ok()).flatten();
        files.flatten().filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    pub(crate) fn add_remote(&self, name: &str, address: &str) {
        self.ok(&["remote", "add", name, address]);
    }

    /// Starts `ddcp serve`; returns when its address can be used.
    pub(crate) fn serve(&self) -> Serving {
        let [serving] = serve_all([self]);
        serving
    }

    /// How often `ddcp serve` has published here.
    fn published(&self) -> usize {
        self.serve_log().matches("published this repository's status").count()
    }

    /// Starts `ddcp serve`; returns when it has printed its address, which needs no network.
    pub(crate) fn start_serving(&self) -> Serving {
        self.start_serving_with(&[])
    }

    /// As [`Peer::start_serving`], with further options.
    pub(crate) fn start_serving_with(&self, options: &[&str]) -> Serving {
        let mut process = self.start_logged(&[&["serve"], options].concat());
        let mut address = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut address).unwrap();
        assert!(address.starts_with("VLD0:"), "serve printed {address:?}; {}", self.serve_log());
        Serving { process: Some(process), address: address.trim().to_owned() }
    }

    pub(crate) fn serve_log(&self) -> String {
        self.log("serve")
    }

    /// What a command that was started has logged so far.
    pub(crate) fn log(&self, command: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(command).with_extension("log")).unwrap_or_default()
    }

    /// Starts a command that logs to a file named after it. Its stdout is for the caller to read.
    pub(crate) fn start_logged(&self, args: &[&str]) -> Child {
        let log = self.dir.path().join(args[0]).with_extension("log");
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        self.command(args).stdout(Stdio::piped()).stderr(log).spawn().unwrap()
    }
}

/// Starts `ddcp serve` for each of `peers`; returns when all addresses can be used.
pub(crate) fn serve_all<const N: usize>(peers: [&Peer; N]) -> [Serving; N] {
    let before = peers.map(Peer::published);
    let serving = peers.map(Peer::start_serving);
    for (peer, before) in peers.into_iter().zip(before) {
        wait_until("its status is published", || peer.published() > before);
    }
    serving
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running `ddcp serve`; killed when dropped.
pub(crate) struct Serving {
    process: Option<Child>,
    pub(crate) address: String,
}

impl Serving {
    /// Ends it as an operator does; the exit status.
    pub(crate) fn terminate(mut self) -> Option<i32> {
        self.end(Signal::SIGTERM)
    }

    /// Ends it as a power cut does.
    pub(crate) fn kill(mut self) {
        self.end(Signal::SIGKILL);
    }

    fn end(&mut self, signal: Signal) -> Option<i32> {
        let mut process = self.process.take()?;
        send(&process, signal);
        process.wait().unwrap().code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.end(Signal::SIGKILL);
    }
}

pub(crate) fn send(process: &Child, signal: Signal) {
    kill(Pid::from_raw(process.id().cast_signed()), signal).unwrap();
}

/// Waits until `condition` holds; panics with `what` at the deadline.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
