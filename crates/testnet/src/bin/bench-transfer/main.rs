//! How fast, and at what cost, changes get from one repository to another over a private Veilid network:
//! `cargo run --release --bin bench-transfer -- speed`. `docs/performance.md` explains the numbers.

use std::{
    error::Error,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use data::{Data, Records};
use peer::{Peer, Running};
use testnet::{Link, Options, Testnet};

mod data;
mod peer;
mod raw;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MB: f64 = 1e6;
const MIB: f64 = 1024.0 * 1024.0;
/// Calls in flight for the network's own speed.
const WINDOWS: [usize; 5] = [4, 8, 16, 32, 64];
const RAW_TIME: Duration = Duration::from_secs(4);
/// How long a link stays cut.
const CUT: Duration = Duration::from_secs(5);
/// A fetch that fails is repeated until it has taken so long altogether.
const PATIENCE: Duration = Duration::from_secs(1800);

/// Measures transfers between two repositories on a private Veilid network.
#[derive(Parser)]
#[command(name = "bench-transfer")]
struct Arguments {
    #[command(subcommand)]
    part: Part,
    /// Records to transfer: a JSON array of flat objects [default: the packages this program is built from].
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rows, made by repeating the records.
    #[arg(long, global = true, default_value_t = 1_000_000)]
    rows: usize,
    /// Random values.
    #[arg(long, global = true, default_value_t = 20)]
    values: usize,
    /// Megabytes of each random value.
    #[arg(long, global = true, default_value_t = 10)]
    value_mb: usize,
}

#[derive(Subcommand)]
enum Part {
    /// Rows and values over good links, beside the network's own speed.
    Speed,
    /// The rows over slow and lossy links.
    Links,
    /// The values while the link is cut five times and each side killed three times.
    Breaks,
    #[command(hide = true)]
    RawServe { dir: PathBuf },
    #[command(hide = true)]
    RawMeasure { dir: PathBuf, route: String },
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
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match &arguments.part {
        Part::RawServe { dir } => return runtime()?.block_on(raw::serve(dir)),
        Part::RawMeasure { dir, route } => {
            return runtime()?.block_on(raw::measure(dir, route, &WINDOWS, RAW_TIME));
        }
        Part::Speed | Part::Links | Part::Breaks => {}
    }
    let dir = tempfile::tempdir()?;
    let testnet = Testnet::up(Options { hosts: 2, ..Options::new(std::env::current_exe()?) })?;
    let bench = Bench {
        testnet: &testnet,
        source: Peer { testnet: &testnet, host: "h1", dir: dir.path().join("source") },
        reader: Peer { testnet: &testnet, host: "h2", dir: dir.path().join("reader") },
        dir: dir.path(),
    };
    let rows = || Ok::<_, Box<dyn Error>>(Data::Rows(Records::load(arguments.json.as_deref())?, arguments.rows));
    let values = Data::Values(arguments.values, arguments.value_mb * 1_000_000);
    match arguments.part {
        Part::Speed => {
            let best = bench.raw()?;
            println!(
                "| data | packs | `zstd -3` of the CSV | on the link | fetch | while it flows | of the network | peak serving | peak fetching |"
            );
            println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
            bench.speed("rows", &rows()?, best)?;
            bench.speed("values", &values, best)
        }
        Part::Links => bench.links(&rows()?),
        _ => bench.breaks(&values),
    }
}

struct Bench<'a> {
    testnet: &'a Testnet,
    source: Peer<'a>,
    reader: Peer<'a>,
    dir: &'a Path,
}

/// What a fetch cost.
struct Cost {
    time: Duration,
    /// From the first 2 % of the bytes to the last.
    flowing: f64,
    /// Bytes that reached the reader's host.
    received: u64,
    peak: u64,
}

impl Bench<'_> {
    /// What the network carries at its best, in bytes a second.
    fn raw(&self) -> Result<f64> {
        let exe = std::env::current_exe()?;
        let mut server = self.testnet.command("h1", &exe);
        server.arg("raw-serve").arg(self.dir.join("raw1")).stdout(Stdio::piped());
        let mut server = server.spawn()?;
        let mut route = String::new();
        BufReader::new(server.stdout.take().ok_or("no stdout")?).read_line(&mut route)?;
        let mut client = self.testnet.command("h2", &exe);
        let output = client.arg("raw-measure").arg(self.dir.join("raw2")).arg(route.trim()).output();
        server.kill()?;
        server.wait()?;
        let rates: Vec<f64> = serde_json::from_slice(&output?.stdout)?;
        println!("app_calls of 32 KiB, in flight: MB/s");
        for (window, rate) in WINDOWS.iter().zip(&rates) {
            println!("  {window}: {:.1}", rate / MB);
        }
        println!();
        Ok(rates.into_iter().fold(0.0, f64::max))
    }

    fn speed(&self, name: &str, data: &Data, best: f64) -> Result<()> {
        self.source.init()?;
        let csv = data.fill(&self.source.database())?;
        let serving = self.source.serve()?;
        self.reader.init_reader(data, &serving.address)?;
        let cost = self.fetch()?;
        let packs = self.reader.fetched_bytes()?;
        println!(
            "| {name} | {:.2} MB | {:.2} MB ({:.2}) | {:.2} MB ({:.2}) | {:.1} s | {:.1} MB/s | {:.0} % | {:.0} MiB | {:.0} MiB |",
            packs as f64 / MB,
            csv as f64 / MB,
            packs as f64 / csv as f64,
            cost.received as f64 / MB,
            cost.received as f64 / csv as f64,
            cost.time.as_secs_f64(),
            cost.flowing / MB,
            cost.flowing / best * 100.0,
            serving.peak() as f64 / MIB,
            cost.peak as f64 / MIB,
        );
        let rows = self.reader.merge()?;
        println!("  ({rows} rows merged)");
        Ok(())
    }

    /// Fetches to the end, repeating what fails.
    fn fetch(&self) -> Result<Cost> {
        let before = self.reader.received()?;
        let mut flow = Vec::new();
        let mut fetch = self.reader.start_fetch()?;
        let success = fetch.finish(|| {
            flow.push((Instant::now(), self.reader.received()? - before));
            Ok(())
        })?;
        let time = fetch.started.elapsed();
        if !success {
            return Err(std::fs::read_to_string(self.reader.dir.join("fetch.log"))?.into());
        }
        let received = self.reader.received()? - before;
        Ok(Cost { time, flowing: rate(&flow, received), received, peak: fetch.peak })
    }

    fn links(&self, data: &Data) -> Result<()> {
        self.source.init()?;
        data.fill(&self.source.database())?;
        let serving = self.source.serve()?;
        println!("| loss | delay | fetch | on the link | peak serving | peak fetching |");
        println!("| ---: | ---: | ---: | ---: | ---: | ---: |");
        for (loss, delay) in
            [(0, 0), (1, 0), (5, 0), (10, 0), (0, 50), (0, 150), (0, 300), (1, 50), (5, 150), (10, 300)]
        {
            self.testnet.link("h2", Link::default())?;
            self.reader.init_reader(data, &serving.address)?;
            let link = Link { loss: f64::from(loss) / 100.0, delay: Duration::from_millis(delay) };
            self.testnet.link("h2", link)?;
            let cost = self.fetch();
            match cost {
                Ok(cost) => println!(
                    "| {loss} % | {delay} ms | {:.1} s | {:.2} MB | {:.0} MiB | {:.0} MiB |",
                    cost.time.as_secs_f64(),
                    cost.received as f64 / MB,
                    serving.peak() as f64 / MIB,
                    cost.peak as f64 / MIB
                ),
                Err(error) => println!("| {loss} % | {delay} ms | failed: {error} |"),
            }
        }
        self.testnet.link("h2", Link::default()).map_err(Into::into)
    }

    fn breaks(&self, data: &Data) -> Result<()> {
        self.source.init()?;
        data.fill(&self.source.database())?;
        let mut serving = self.source.serve()?;
        self.reader.init_reader(data, &serving.address)?;
        let undisturbed = self.fetch()?;
        println!(
            "undisturbed: {:.1} s, {:.2} MB on the link",
            undisturbed.time.as_secs_f64(),
            undisturbed.received as f64 / MB
        );

        self.reader.init_reader(data, &serving.address)?;
        let before = self.reader.received()?;
        let started = Instant::now();
        let mut fetch = self.reader.start_fetch()?;
        let events = [Event::Cut, Event::KillReader, Event::KillSource, Event::Cut].repeat(3);
        let events = &events[..events.len() - 1];
        for (number, event) in events.iter().enumerate() {
            let at = undisturbed.received * (number as u64 + 1) / (events.len() as u64 + 1);
            self.await_bytes(&mut fetch, before + at, started)?;
            println!(
                "  {event:?} after {:.1} s, {:.2} MB",
                started.elapsed().as_secs_f64(),
                (self.reader.received()? - before) as f64 / MB
            );
            match event {
                Event::Cut => {
                    self.testnet.cut("h2")?;
                    std::thread::sleep(CUT);
                    self.testnet.heal("h2")?;
                }
                Event::KillReader => {
                    fetch.kill()?;
                    fetch = self.reader.start_fetch()?;
                }
                Event::KillSource => {
                    drop(serving);
                    serving = self.source.serve()?;
                }
            }
        }
        self.await_bytes(&mut fetch, u64::MAX, started)?;
        let received = self.reader.received()? - before;
        println!(
            "disturbed: {:.1} s, {:.2} MB on the link, {:.3} times as much",
            started.elapsed().as_secs_f64(),
            received as f64 / MB,
            received as f64 / undisturbed.received as f64
        );
        println!("  ({} rows merged)", self.reader.merge()?);
        Ok(())
    }

    /// Waits until so many bytes have reached the reader, or everything is fetched; repeats a fetch that fails.
    fn await_bytes(&self, fetch: &mut Running, bytes: u64, started: Instant) -> Result<()> {
        while self.reader.received()? < bytes {
            match fetch.ended()? {
                Some(true) => return Ok(()),
                Some(false) if started.elapsed() > PATIENCE => return Err("the fetch goes on failing".into()),
                Some(false) => *fetch = self.reader.start_fetch()?,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Cut,
    KillReader,
    KillSource,
}

/// Bytes a second between the first 2 % and the last of what came.
fn rate(flow: &[(Instant, u64)], received: u64) -> f64 {
    let reached = |part: f64| flow.iter().find(|(_, bytes)| *bytes as f64 >= received as f64 * part);
    match (reached(0.02), reached(0.98)) {
        (Some((from, first)), Some((to, last))) if to > from => (last - first) as f64 / (*to - *from).as_secs_f64(),
        _ => 0.0,
    }
}
