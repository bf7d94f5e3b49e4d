//! Repositories on hosts, and what their processes cost.

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

use testnet::Testnet;

use crate::data::Data;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How often a running process is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A folder with a repository `p.db`, on a host.
pub(crate) struct Peer<'a> {
    pub(crate) testnet: &'a Testnet,
    pub(crate) host: &'static str,
    pub(crate) dir: PathBuf,
}

impl Peer<'_> {
    /// Makes the folder, anew, and a repository in it.
    pub(crate) fn init(&self) -> Result<()> {
        let _ = fs::remove_dir_all(&self.dir);
        fs::create_dir_all(&self.dir)?;
        symlink(std::env::current_exe()?, self.dir.join("ddcp"))?;
        self.run(&["init"])
    }

    /// As [`Peer::init`], with an empty table for `data` and the remote `source`.
    pub(crate) fn init_reader(&self, data: &Data, source: &str) -> Result<()> {
        self.init()?;
        drop(data.create(&self.database())?);
        self.run(&["remote", "add", "source", source])
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.dir.join("p.db")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.testnet.ddcp(self.host, &self.dir, "p.db");
        command.args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let status = self.command(args).stdout(Stdio::null()).status()?;
        if status.success() { Ok(()) } else { Err(format!("`ddcp {}` ended with {status}", args.join(" ")).into()) }
    }

    /// Starts `ddcp serve`; returns when its address can be used.
    pub(crate) fn serve(&self) -> Result<Serving> {
        let log = self.dir.join("serve.log");
        let mut process = self.command(&["serve"]).stdout(Stdio::piped()).stderr(File::create(&log)?).spawn()?;
        let stdout = process.stdout.take().ok_or("serve has no stdout")?;
        let mut address = String::new();
        BufReader::new(stdout).read_line(&mut address)?;
        while !fs::read_to_string(&log)?.contains("published this repository's status") {
            if process.try_wait()?.is_some() {
                return Err(fs::read_to_string(&log)?.into());
            }
            thread::sleep(LOOK);
        }
        Ok(Serving { process, address: address.trim().to_owned() })
    }

    /// Starts `ddcp fetch`.
    pub(crate) fn start_fetch(&self) -> Result<Running> {
        let log = File::options().create(true).append(true).open(self.dir.join("fetch.log"))?;
        let started = Instant::now();
        let report = File::create(self.dir.join("fetch.json"))?;
        let process = self.command(&["fetch", "--format", "json"]).stdout(report).stderr(log).spawn()?;
        Ok(Running { process, started, peak: 0 })
    }

    /// What the last fetch reported: bytes of packs.
    pub(crate) fn fetched_bytes(&self) -> Result<u64> {
        let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(self.dir.join("fetch.json"))?)?;
        report[0]["done"]["bytes"].as_u64().ok_or_else(|| format!("no bytes in {report}").into())
    }

    /// Merges what was fetched, and says how many rows the table has.
    pub(crate) fn merge(&self) -> Result<i64> {
        self.run(&["merge"])?;
        Ok(rusqlite::Connection::open(self.database())?.query_row("SELECT count(*) FROM item", [], |row| row.get(0))?)
    }

    /// Bytes that have reached the host so far.
    pub(crate) fn received(&self) -> Result<u64> {
        Ok(self.testnet.stats(self.host)?.rx_bytes)
    }
}

/// A running `ddcp serve`; killed when dropped.
pub(crate) struct Serving {
    process: Child,
    pub(crate) address: String,
}

impl Serving {
    /// Its highest memory so far, in bytes.
    pub(crate) fn peak(&self) -> u64 {
        peak(&self.process)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A running command.
pub(crate) struct Running {
    process: Child,
    pub(crate) started: Instant,
    /// Its highest memory, in bytes.
    pub(crate) peak: u64,
}

impl Running {
    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> Result<Option<bool>> {
        self.peak = self.peak.max(peak(&self.process));
        Ok(self.process.try_wait()?.map(|status| status.success()))
    }

    /// Calls `look` while it runs; says whether it succeeded.
    pub(crate) fn finish(&mut self, mut look: impl FnMut() -> Result<()>) -> Result<bool> {
        loop {
            if let Some(success) = self.ended()? {
                return Ok(success);
            }
            look()?;
            thread::sleep(LOOK);
        }
    }

    /// Ends it as a power cut does.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

/// The high-water mark of a process's resident memory in bytes; 0 when it has ended.
fn peak(process: &Child) -> u64 {
    let status = fs::read_to_string(Path::new("/proc").join(process.id().to_string()).join("status"));
    let line = |text: String| text.lines().find_map(|line| line.strip_prefix("VmHWM:").map(str::to_owned));
    let kibibytes = status.ok().and_then(line).and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}
