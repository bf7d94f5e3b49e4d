//! How soon a commit at one repository is in the tables of others that follow it, and what following costs, over a
//! private Veilid network: `cargo run --release --bin bench-follow -- latency`. `docs/performance.md` explains the
//! numbers.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use peer::{Cost, Peer, until};
use serde_json::{Value, json};
use testnet::{Options, Testnet};

mod applications;
mod peer;
#[path = "../bench-transfer/raw.rs"]
#[allow(dead_code, reason = "the other benchmark measures with it; here it is a node and no more")]
mod raw;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How often there is a write.
const PACE: Duration = Duration::from_secs(1);

/// Measures how repositories that follow each other stay in step.
#[derive(Parser)]
#[command(name = "bench-follow")]
struct Arguments {
    #[command(subcommand)]
    part: Part,
    /// Also write the results to this file, as JSON.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes that are measured, one a second.
    #[arg(long, global = true, default_value_t = 200)]
    samples: usize,
    /// How long a soak takes, and how long applications write.
    #[arg(long, global = true, default_value_t = 60)]
    minutes: u64,
    /// How long the link is cut in a partition.
    #[arg(long, global = true, default_value_t = 60)]
    cut_seconds: u64,
}

#[derive(Subcommand)]
enum Part {
    /// From the commit at one of two peers until it is in the other's table.
    Latency {
        /// The writer does not have the reader as a remote, so it cannot hint it.
        #[arg(long)]
        one_sided: bool,
    },
    /// The same from end to end of a line of 5 peers.
    Line,
    /// 12 peers in a star, each writing: until all are identical after the last write.
    Star,
    /// Two peers write while their link is cut, and while one is down: until they are in step again.
    Partition,
    /// 4 peers, one write a second: memory, files and CPU over time.
    Soak,
    /// CPU of an idle `ddcp serve` beside that of a bare node.
    Idle,
    /// A Python and a Rust process write to the file into which `ddcp serve` merges: whether one is ever refused.
    Applications {
        /// The loadable extension, for Python.
        #[arg(long, value_name = "FILE", default_value = "target/release/libcrsqlite.so")]
        extension: PathBuf,
    },
    #[command(hide = true)]
    Bare { dir: PathBuf },
    #[command(hide = true)]
    Write { database: PathBuf, seconds: u64 },
}

fn main() -> ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    if Path::new(&program).file_name() == Some("ddcp".as_ref()) {
        return ddcp::cli::main(std::env::args_os().collect());
    }
    if testnet::cli::is_called() {
        return testnet::cli::main();
    }
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Part::Bare { dir } = &arguments.part {
        return tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(raw::serve(dir));
    }
    if let Part::Write { database, seconds } = &arguments.part {
        return applications::write(database, *seconds);
    }
    let hosts = match &arguments.part {
        Part::Latency { .. }
        | Part::Partition
        | Part::Idle
        | Part::Applications { .. }
        | Part::Bare { .. }
        | Part::Write { .. } => 2,
        Part::Soak => 4,
        Part::Line => 5,
        Part::Star => 12,
    };
    let dir = tempfile::tempdir()?;
    let testnet = Testnet::up(Options { hosts, ..Options::new(std::env::current_exe()?) })?;
    let bench = Bench { testnet: &testnet, dir: dir.path(), arguments };
    let result = match &arguments.part {
        Part::Latency { one_sided } => bench.latency(*one_sided)?,
        Part::Line => bench.line()?,
        Part::Star => bench.star()?,
        Part::Partition => bench.partition()?,
        Part::Soak => bench.soak()?,
        Part::Applications { extension } => bench.applications(extension)?,
        Part::Idle | Part::Bare { .. } | Part::Write { .. } => bench.idle()?,
    };
    println!("{result:#}");
    if let Some(path) = &arguments.json {
        fs::write(path, format!("{result:#}\n"))?;
    }
    Ok(())
}

struct Bench<'a> {
    testnet: &'a Testnet,
    dir: &'a Path,
    arguments: &'a Arguments,
}

impl<'a> Bench<'a> {
    /// Peers on all hosts, served and published.
    fn peers(&self) -> Result<Vec<Peer<'a>>> {
        let peer = |host: &String| Peer::new(self.testnet, host, &self.dir.join(host));
        let mut peers = self.testnet.hosts().iter().map(peer).collect::<Result<Vec<_>>>()?;
        peers.iter_mut().try_for_each(Peer::start)?;
        peers.iter().try_for_each(Peer::wait_published)?;
        Ok(peers)
    }

    fn latency(&self, one_sided: bool) -> Result<Value> {
        let peers = self.peers()?;
        peers[1].follow("writer", &peers[0])?;
        if !one_sided {
            peers[0].follow("reader", &peers[1])?;
        }
        self.sampled("latency", &peers[0], &peers[1])
    }

    fn line(&self) -> Result<Value> {
        let peers = self.peers()?;
        for pair in peers.windows(2) {
            pair[0].follow("right", &pair[1])?;
            pair[1].follow("left", &pair[0])?;
        }
        self.sampled("line", &peers[0], &peers[peers.len() - 1])
    }

    /// Writes at one peer, once a second, until each write is in the other's table.
    fn sampled(&self, name: &str, writer: &Peer<'_>, reader: &Peer<'_>) -> Result<Value> {
        writer.write("first")?;
        until("the first write arrives", || reader.has("first"))?;
        let before = [Cost::of(writer.pid()?)?, Cost::of(reader.pid()?)?];
        let started = Instant::now();
        let mut samples = Vec::new();
        for number in 0..self.arguments.samples {
            // Off the beat of everything that is done once a second.
            thread::sleep(PACE.saturating_sub(samples.last().copied().unwrap_or_default()));
            let id = format!("{number}");
            writer.write(&id)?;
            samples.push(until("a write arrives", || reader.has(&id))?);
        }
        let elapsed = started.elapsed();
        let cpu =
            |peer: &Peer<'_>, before: Cost| Ok::<_, Box<dyn Error>>(share(Cost::of(peer.pid()?)?, before, elapsed));
        let result = json!({
            "part": name,
            "samples": samples.len(),
            "ms": distribution(samples),
            "cpu_percent": {"writer": cpu(writer, before[0])?, "reader": cpu(reader, before[1])?},
        });
        Ok(result)
    }

    fn star(&self) -> Result<Value> {
        let peers = self.peers()?;
        let (hub, leaves) = peers.split_first().ok_or("no hosts")?;
        for leaf in leaves {
            leaf.follow("hub", hub)?;
            hub.follow(&leaf.host, leaf)?;
        }
        hub.write("first")?;
        until("all follow the hub", || all(leaves, |leaf| leaf.has("first")))?;
        let rounds = self.arguments.samples;
        for number in 0..rounds {
            peers.iter().try_for_each(|peer| peer.write(&format!("{} {number}", peer.host)))?;
            if number + 1 < rounds {
                thread::sleep(PACE);
            }
        }
        let wanted = i64::try_from(rounds * peers.len() + 1)?;
        let converged = until("all have all rows", || all(&peers, |peer| Ok(peer.rows()? == wanted)))?;
        let content = hub.content()?;
        let identical = all(leaves, |leaf| Ok(leaf.content()? == content))?;
        Ok(json!({
            "part": "star", "peers": peers.len(), "rows": wanted, "identical": identical,
            "converged_after_last_write_ms": millis(converged),
        }))
    }

    fn partition(&self) -> Result<Value> {
        let mut peers = self.peers()?;
        peers[0].follow("other", &peers[1])?;
        peers[1].follow("other", &peers[0])?;
        peers[0].write("first")?;
        until("they are in step", || peers[1].has("first"))?;

        self.testnet.cut(&peers[1].host)?;
        let cut = self.arguments.cut_seconds;
        write_apart(&peers, "cut", cut)?;
        self.testnet.heal(&peers[1].host)?;
        let healed = until("they converge when the link is healed", || in_step(&peers, "cut", cut))?;

        let down = 10;
        peers[0].kill()?;
        write_apart(&peers, "down", down)?;
        let restarted = Instant::now();
        peers[0].start()?;
        until("they are in step when the daemon is back", || in_step(&peers, "down", down))?;
        Ok(json!({
            "part": "partition", "cut_seconds": cut, "identical": peers[0].content()? == peers[1].content()?,
            "converged_after_healing_ms": millis(healed),
            "in_step_after_restart_ms": millis(restarted.elapsed()),
        }))
    }

    fn soak(&self) -> Result<Value> {
        let peers = self.peers()?;
        for (index, peer) in peers.iter().enumerate() {
            let next = &peers[(index + 1) % peers.len()];
            peer.follow("next", next)?;
            next.follow("before", peer)?;
        }
        let mut minutes = Vec::new();
        let mut before = costs(&peers)?;
        let mut written = 0;
        for minute in 1..=self.arguments.minutes {
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(60) {
                peers[written % peers.len()].write(&format!("{written}"))?;
                written += 1;
                thread::sleep(PACE);
            }
            let now = costs(&peers)?;
            let of_peer = |(peer, (now, before)): (&Peer<'_>, (&Cost, &Cost))| {
                let [database, log, state] = peer.file_sizes();
                json!({
                    "memory_bytes": now.memory, "cpu_percent": share(*now, *before, started.elapsed()),
                    "database_bytes": database, "log_bytes": log, "state_bytes": state,
                })
            };
            let all: Vec<Value> = peers.iter().zip(now.iter().zip(&before)).map(of_peer).collect();
            let line = json!({"minute": minute, "rows": written, "peers": all});
            eprintln!("{line}");
            minutes.push(line);
            before = now;
        }
        let wanted = i64::try_from(written)?;
        until("all have all rows", || all(&peers, |peer| Ok(peer.rows()? == wanted)))?;
        let content = peers[0].content()?;
        let identical = all(&peers, |peer| Ok(peer.content()? == content))?;
        Ok(json!({"part": "soak", "identical": identical, "minutes": minutes}))
    }

    fn idle(&self) -> Result<Value> {
        let mut peer = Peer::new(self.testnet, "h1", &self.dir.join("h1"))?;
        peer.start()?;
        peer.wait_published()?;
        let mut bare = self.testnet.command("h2", std::env::current_exe()?);
        let mut bare = bare.arg("bare").arg(self.dir.join("bare")).stdout(Stdio::null()).spawn()?;
        let pids = [peer.pid()?, bare.id()];
        // Joining the network is not idling.
        thread::sleep(Duration::from_secs(60));
        let costs = || Ok::<_, Box<dyn Error>>([Cost::of(pids[0])?, Cost::of(pids[1])?]);
        let (started, before) = (Instant::now(), costs()?);
        thread::sleep(Duration::from_secs(self.arguments.samples as u64));
        let (elapsed, now) = (started.elapsed(), costs()?);
        bare.kill()?;
        bare.wait()?;
        let [serve, node] = [0, 1].map(|index| share(now[index], before[index], elapsed));
        Ok(json!({"part": "idle", "seconds": elapsed.as_secs(), "serve_cpu_percent": serve, "node_cpu_percent": node}))
    }
}

/// Both write once a second.
fn write_apart(peers: &[Peer<'_>], name: &str, seconds: u64) -> Result<()> {
    for number in 0..seconds {
        peers.iter().try_for_each(|peer| peer.write(&format!("{name} {} {number}", peer.host)))?;
        thread::sleep(PACE);
    }
    Ok(())
}

/// Whether each has the last of what [`write_apart`] wrote at the other.
fn in_step(peers: &[Peer<'_>], name: &str, seconds: u64) -> Result<bool> {
    let last = |peer: &Peer<'_>| format!("{name} {} {}", peer.host, seconds - 1);
    Ok(peers[0].has(&last(&peers[1]))? && peers[1].has(&last(&peers[0]))? && peers[0].rows()? == peers[1].rows()?)
}

fn all<'a>(peers: &[Peer<'a>], mut holds: impl FnMut(&Peer<'a>) -> Result<bool>) -> Result<bool> {
    for peer in peers {
        if !holds(peer)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn costs(peers: &[Peer<'_>]) -> Result<Vec<Cost>> {
    peers.iter().map(|peer| Cost::of(peer.pid()?)).collect()
}

/// Per cent of one core, to a tenth.
fn share(now: Cost, before: Cost, elapsed: Duration) -> f64 {
    let percent = (now.cpu - before.cpu).as_secs_f64() / elapsed.as_secs_f64() * 100.0;
    (percent * 10.0).round() / 10.0
}

fn distribution(mut samples: Vec<Duration>) -> Value {
    samples.sort();
    let at = |share: f64| samples.get(((samples.len() as f64 * share) as usize).min(samples.len().saturating_sub(1)));
    let at = |share| at(share).map(|sample| millis(*sample));
    json!({"median": at(0.5), "p90": at(0.9), "p99": at(0.99), "least": at(0.0), "most": at(1.0)})
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
