//! A private Veilid network on one machine, for tests, demonstrations and measurements without
//! the Internet.
//!
//! A network has *infrastructure nodes* `n1`, `n2`, ... that run Veilid, and free *hosts* `h1`,
//! `h2`, ... to run commands on. Each is a network namespace held by a process; links lead from
//! each to a switch in user space, which can lose, delay and withhold frames and counts them.
//! Namespaces have no names and live as long as their processes, and these end with the process
//! that started them: nothing outlives a network, even one that is killed.
//!
//! The `testnet` program does the work ([`cli`]); [`Testnet`] starts it and ends it:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let testnet = testnet::Testnet::up(testnet::Options::new("target/release/testnet"))?;
//! let output = testnet.command("h1", "ip").arg("address").output()?;
//! testnet.cut("h1")?;
//! # Ok(())
//! # }
//! ```

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use control::{Answer, LinkChange, Request};
use tempfile::TempDir;

pub mod cli;
mod control;
mod error;
mod exec;
mod forwarder;
mod machine;
mod namespace;
mod network_file;
mod node;
mod packet;
mod switch;
mod up;
mod wait;

pub use error::Error;
pub use machine::Addresses;
pub use switch::{Link, LinkStats};

/// The name by which a program knows that it is to be `testnet`.
const ARG0: &str = "testnet";
/// How long a network may take to end before it is killed.
const DOWN_LIMIT: Duration = Duration::from_secs(10);

/// What network to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `testnet` program, or one that is `testnet` when [`cli::is_called`].
    pub exe: PathBuf,
    /// The network's directory; a temporary one if none is given.
    pub dir: Option<PathBuf>,
    /// Infrastructure nodes, at least 5.
    pub nodes: u8,
    /// Free hosts.
    pub hosts: u8,
}

impl Options {
    /// Eight nodes and four hosts, in a temporary directory.
    pub fn new(exe: impl Into<PathBuf>) -> Self {
        Self { exe: exe.into(), dir: None, nodes: 8, hosts: 4 }
    }
}

/// A running network. Dropping it ends the network and every process on its hosts; it also ends
/// with this process.
#[derive(Debug)]
pub struct Testnet {
    exe: PathBuf,
    dir: PathBuf,
    hosts: Vec<String>,
    /// Hosts that are not leased.
    free: Mutex<Vec<String>>,
    freed: Condvar,
    up: Child,
    _temporary: Option<TempDir>,
}

impl Testnet {
    /// Starts a network; returns when it is ready, after some seconds.
    ///
    /// # Errors
    /// [`Error::Up`] with the reason the network could not be made, [`Error::File`] where its
    /// directory or program cannot be used.
    pub fn up(options: Options) -> Result<Self, Error> {
        let (dir, temporary) = match options.dir {
            Some(dir) => (dir, None),
            None => {
                let made = TempDir::with_prefix("testnet-").map_err(Error::file("create", std::env::temp_dir()))?;
                (made.path().to_owned(), Some(made))
            }
        };
        fs::create_dir_all(&dir).map_err(Error::file("create", &dir))?;
        let dir = dir.canonicalize().map_err(Error::file("find", &dir))?;
        let log = dir.join("up.log");
        let mut up = Command::new(&options.exe)
            .arg0(ARG0)
            .args(["up", "--until-stdin-ends", "--nodes", &options.nodes.to_string()])
            .args(["--hosts", &options.hosts.to_string(), "--dir"])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).map_err(Error::file("create", &log))?)
            .spawn()
            .map_err(Error::file("run", &options.exe))?;

        let mut line = String::new();
        if let Some(stdout) = up.stdout.take() {
            // Nothing read means that it has ended.
            let _ = BufReader::new(stdout).read_line(&mut line);
        }
        if line != "ready\n" {
            let _ = up.kill();
            let _ = up.wait();
            let reason = fs::read_to_string(&log).unwrap_or_default();
            return Err(Error::Up(reason.trim().trim_start_matches("error: ").to_owned()));
        }
        let hosts: Vec<_> = (1..=options.hosts).map(|number| format!("h{number}")).collect();
        let free = Mutex::new(hosts.clone());
        Ok(Self { exe: options.exe, dir, hosts, free, freed: Condvar::new(), up, _temporary: temporary })
    }

    /// The network's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The names of the hosts.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The file that says how to join the network: what `DDCP_NETWORK` takes, on every host.
    pub fn network_file(&self) -> PathBuf {
        self.dir.join(up::NETWORK_FILE)
    }

    /// Takes `N` hosts for the caller alone, so that tests can share a network. Waits until as
    /// many are free; panics where the network does not have as many.
    pub fn lease<const N: usize>(&self) -> Lease<'_, N> {
        assert!(N <= self.hosts.len(), "{N} hosts wanted of a network with {}", self.hosts.len());
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let enough = self.freed.wait_while(free, |free| free.len() < N);
        let mut free = enough.unwrap_or_else(PoisonError::into_inner);
        Lease { testnet: self, hosts: std::array::from_fn(|_| free.remove(0)) }
    }

    /// A command that runs `program` on a host once it is started. Its process becomes the
    /// program itself: signals, exit status and standard streams are the program's.
    /// `DDCP_NETWORK` is set for it unless it is already.
    pub fn command(&self, host: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.exe);
        command.arg0(ARG0).args(["exec", "--dir"]).arg(&self.dir).arg(host).arg("--").arg(program);
        command
    }

    /// As [`Testnet::command`], for the program `ddcp` in `dir`, in that folder and on its file `database`, without what
    /// this process's environment says of settings and logs.
    #[must_use]
    pub fn ddcp(&self, host: &str, dir: &Path, database: &str) -> Command {
        let mut command = self.command(host, dir.join("ddcp"));
        command.current_dir(dir).args(["--db", database]);
        for variable in ["DDCP_DB", "DDCP_STATE_DIR", "DDCP_NETWORK", "DDCP_EXTENSION", "RUST_LOG"] {
            command.env_remove(variable);
        }
        command
    }

    /// The addresses of a host or node.
    ///
    /// # Errors
    /// [`Error::Refused`] where there is no such host, [`Error::NotRunning`] where the network
    /// has ended.
    pub fn addresses(&self, host: &str) -> Result<Addresses, Error> {
        match control::ask(&self.dir, &Request::Locate { machine: host.to_owned() })? {
            Answer::Located { addresses, .. } => Ok(addresses),
            _ => Err(Error::Refused(format!("{host} cannot be located"))),
        }
    }

    /// Sets the quality of a host's link.
    ///
    /// # Errors
    /// As [`Testnet::addresses`].
    pub fn link(&self, host: &str, Link { loss, delay }: Link) -> Result<(), Error> {
        control::change_link(
            &self.dir,
            LinkChange { machine: host.to_owned(), loss: Some(loss), delay: Some(delay), up: None },
        )
    }

    /// Cuts a host's link; the host does not notice, packets just go nowhere.
    ///
    /// # Errors
    /// As [`Testnet::addresses`].
    pub fn cut(&self, host: &str) -> Result<(), Error> {
        control::change_link(
            &self.dir,
            LinkChange { machine: host.to_owned(), up: Some(false), ..LinkChange::default() },
        )
    }

    /// Restores a link that was cut, with the quality it had.
    ///
    /// # Errors
    /// As [`Testnet::addresses`].
    pub fn heal(&self, host: &str) -> Result<(), Error> {
        control::change_link(
            &self.dir,
            LinkChange { machine: host.to_owned(), up: Some(true), ..LinkChange::default() },
        )
    }

    /// What went over a host's link since the network came up.
    ///
    /// # Errors
    /// As [`Testnet::addresses`].
    pub fn stats(&self, host: &str) -> Result<LinkStats, Error> {
        let stats = match control::ask(&self.dir, &Request::Stats)? {
            Answer::Stats(stats) => stats,
            _ => BTreeMap::new(),
        };
        stats.get(host).copied().ok_or_else(|| Error::Refused(format!("there is no host {host}")))
    }
}

impl Drop for Testnet {
    fn drop(&mut self) {
        drop(self.up.stdin.take());
        wait::wait_until(DOWN_LIMIT, || !matches!(self.up.try_wait(), Ok(None)));
        // Without effect on one that has ended.
        let _ = self.up.kill();
        let _ = self.up.wait();
    }
}

/// Hosts taken for one caller; dropping it restores their links and gives them back.
#[derive(Debug)]
pub struct Lease<'a, const N: usize> {
    testnet: &'a Testnet,
    hosts: [String; N],
}

impl<const N: usize> Lease<'_, N> {
    /// The names of the hosts.
    pub fn hosts(&self) -> [&str; N] {
        self.hosts.each_ref().map(String::as_str)
    }
}

impl<const N: usize> Drop for Lease<'_, N> {
    fn drop(&mut self) {
        for host in &self.hosts {
            // Fails only when the network has ended.
            let _ = self.testnet.link(host, Link::default());
            let _ = self.testnet.heal(host);
        }
        let mut free = self.testnet.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.extend(self.hosts.iter().cloned());
        self.testnet.freed.notify_all();
    }
}
