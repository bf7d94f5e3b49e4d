//! Repositories on hosts that follow each other, and what their daemons cost.

use std::{
    error::Error,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, OptionalExtension};
use testnet::Testnet;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(1);
/// What may take so long is broken.
const PATIENCE: Duration = Duration::from_secs(180);

/// A folder with a repository `p.db`, on a host, and its daemon while that runs.
pub(crate) struct Peer<'a> {
    testnet: &'a Testnet,
    pub(crate) host: String,
    dir: PathBuf,
    serving: Option<Child>,
    pub(crate) address: String,
    /// An application's.
    connection: Connection,
}

impl<'a> Peer<'a> {
    /// Makes a repository with an empty table in `dir`; it is not served yet.
    pub(crate) fn new(testnet: &'a Testnet, host: &str, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        symlink(std::env::current_exe()?, dir.join("ddcp"))?;
        run(command(testnet, host, dir, &["init"]))?;
        let connection = Connection::open(dir.join("p.db"))?;
        connection.busy_timeout(PATIENCE)?;
        crsqlite::register(&connection)?;
        connection.execute_batch(
            "CREATE TABLE item (id TEXT PRIMARY KEY NOT NULL, body TEXT); SELECT crsql_as_crr('item');",
        )?;
        let (host, dir) = (host.to_owned(), dir.to_owned());
        Ok(Self { testnet, host, dir, serving: None, address: String::new(), connection })
    }

    /// Starts the daemon; returns when it has printed its address.
    pub(crate) fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut process = self.command(&["serve"]).stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut address = String::new();
        BufReader::new(process.stdout.take().ok_or("serve has no stdout")?).read_line(&mut address)?;
        self.address = address.trim().to_owned();
        self.serving = Some(process);
        Ok(())
    }

    /// Waits until the daemon can be found.
    pub(crate) fn wait_published(&self) -> Result<()> {
        until("its status is published", || {
            Ok(fs::read_to_string(self.log())?.contains("published this repository's status"))
        })
        .map(drop)
    }

    /// Ends the daemon as a power cut does.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.serving.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    pub(crate) fn follow(&self, name: &str, other: &Peer<'_>) -> Result<()> {
        run(self.command(&["remote", "add", name, &other.address, "--sync", "auto"]))
    }

    /// Writes a row; returns when it is committed.
    pub(crate) fn write(&self, id: &str) -> Result<()> {
        self.connection.execute("INSERT INTO item VALUES (?, hex(randomblob(32)))", [id])?;
        Ok(())
    }

    pub(crate) fn has(&self, id: &str) -> Result<bool> {
        let mut statement = self.connection.prepare_cached("SELECT 1 FROM item WHERE id = ?")?;
        Ok(statement.query_row([id], |_| Ok(())).optional()?.is_some())
    }

    pub(crate) fn rows(&self) -> Result<i64> {
        Ok(self.connection.query_row("SELECT count(*) FROM item", [], |row| row.get(0))?)
    }

    /// All that replicas must agree about.
    pub(crate) fn content(&self) -> Result<Vec<(String, String)>> {
        let mut statement = self.connection.prepare("SELECT id, body FROM item ORDER BY id")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        Ok(self.serving.as_ref().ok_or("it is not served")?.id())
    }

    /// Bytes of its files: the database's, the database's log's, the state file's with its log.
    pub(crate) fn file_sizes(&self) -> [u64; 3] {
        let size = |name: &str| fs::metadata(self.dir.join(name)).map_or(0, |metadata| metadata.len());
        let state = ".ddcp/p.db/state.db";
        [size("p.db"), size("p.db-wal"), size(state) + size(&format!("{state}-wal"))]
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.dir.join("p.db")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("serve.log")
    }

    fn command(&self, args: &[&str]) -> Command {
        command(self.testnet, &self.host, &self.dir, args)
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn command(testnet: &Testnet, host: &str, dir: &Path, args: &[&str]) -> Command {
    let mut command = testnet.ddcp(host, dir, "p.db");
    command.args(args).stdin(Stdio::null());
    command
}

fn run(mut command: Command) -> Result<()> {
    let output = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?.wait_with_output()?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned().into()) }
}

/// Waits until `condition` holds; how long that took.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let started = Instant::now();
    while !condition()? {
        if started.elapsed() > PATIENCE {
            return Err(format!("{what}: not within {PATIENCE:?}").into());
        }
        thread::sleep(LOOK);
    }
    Ok(started.elapsed())
}

/// What a process has cost so far.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) cpu: Duration,
    /// Resident memory in bytes.
    pub(crate) memory: u64,
}

impl Cost {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let proc = Path::new("/proc").join(pid.to_string());
        let stat = fs::read_to_string(proc.join("stat"))?;
        // The name, in parentheses, may hold anything; user and system time are the 12th and 13th field after it.
        let (_, fields) = stat.rsplit_once(") ").ok_or("no fields in stat")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<std::result::Result<u64, _>>()?;
        let status = fs::read_to_string(proc.join("status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        let kibibytes: u64 = resident.trim().trim_end_matches(" kB").parse()?;
        // A tick is a hundredth of a second, on every Linux.
        Ok(Self { cpu: Duration::from_millis(ticks * 10), memory: kibibytes * 1024 })
    }
}
