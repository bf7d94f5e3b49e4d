//! How fast CRRs are beside plain tables: same data, same run, interleaved transaction by
//! transaction, so that whatever else the machine does slows both.
//!
//! `cargo bench -p crsqlite --bench engine -- [ROWS...] [--rounds N] [--only WORD] [--cpu]` (default:
//! 10000 100000 400000 rows, 3 rounds, everything, elapsed time). With `--cpu` the time is what the
//! thread spent on the processor: the thing to look at on a machine that does something else, too.
//! What the figures mean is in `docs/performance.md`.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crsqlite::merge::{Change, Merger};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Row, Statement, params};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Rows of a transaction.
const GROUP: usize = 1000;
/// In place of a number of changes in one statement: all changes are merged by rows.
const BY_ROWS: usize = 0;
/// Records of a row of the table below: one per column that is no key.
const CELLS: usize = 5;
const TABLE: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, a TEXT, b INTEGER, c REAL, d TEXT, e BLOB)";

/// How the ratio of a line is made, and its goal.
#[derive(Clone, Copy)]
enum Goal {
    /// Plain by CRR: how many times slower; at most this.
    AtMost(f64),
    /// Change rows by plain inserted rows per second; at least this.
    AtLeast(f64),
    /// CRR by plain, without a goal.
    None,
}

/// One measurement: both rates (or sizes).
#[derive(Clone, Copy)]
struct Figures {
    plain: f64,
    crr: f64,
}

/// Whether processor time is measured instead of elapsed time.
static CPU: AtomicBool = AtomicBool::new(false);

/// Measures from its start on.
enum Watch {
    Wall(Instant),
    Cpu(Duration),
}

impl Watch {
    fn start() -> Outcome<Watch> {
        Ok(if CPU.load(Ordering::Relaxed) { Watch::Cpu(Watch::on_cpu()?) } else { Watch::Wall(Instant::now()) })
    }

    fn elapsed(&self) -> Outcome<Duration> {
        Ok(match self {
            Watch::Wall(start) => start.elapsed(),
            Watch::Cpu(start) => Watch::on_cpu()? - *start,
        })
    }

    /// The time this thread has run, as Linux tells it.
    fn on_cpu() -> Outcome<Duration> {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
        let nanoseconds = text.split(' ').next().unwrap_or_default().parse()?;
        Ok(Duration::from_nanos(nanoseconds))
    }
}

fn main() -> Outcome<()> {
    let options = Options::read(std::env::args().skip(1))?;
    CPU.store(options.cpu, Ordering::Relaxed);
    println!(
        "{:>7}  {:<36} {:>11} {:>11} {:>7}  {:<8} lowest to highest",
        "rows", "what", "plain", "crr", "ratio", "goal"
    );
    for &rows in &options.sizes {
        let mut report = Report::new(rows, &options.only);
        for _ in 0..options.rounds {
            report.round()?;
        }
        report.print();
    }
    Ok(())
}

struct Options {
    sizes: Vec<usize>,
    rounds: usize,
    only: String,
    cpu: bool,
}

impl Options {
    fn read(mut args: impl Iterator<Item = String>) -> Outcome<Options> {
        let mut options = Options { sizes: Vec::new(), rounds: 3, only: String::new(), cpu: false };
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--rounds" => options.rounds = args.next().ok_or("--rounds needs a number")?.parse()?,
                "--only" => options.only = args.next().ok_or("--only needs a word")?,
                "--cpu" => options.cpu = true,
                // What `cargo bench` adds by itself.
                "--bench" => {}
                rows => options.sizes.push(rows.parse().map_err(|_| format!("{rows} is no number of rows"))?),
            }
        }
        if options.sizes.is_empty() {
            options.sizes = vec![10_000, 100_000, 400_000];
        }
        Ok(options)
    }
}

/// The measurements of all rounds at one number of rows.
struct Report<'o> {
    rows: usize,
    only: &'o str,
    order: Vec<(&'static str, Goal)>,
    figures: BTreeMap<&'static str, Vec<Figures>>,
}

impl Report<'_> {
    fn new(rows: usize, only: &str) -> Report<'_> {
        Report { rows, only, order: Vec::new(), figures: BTreeMap::new() }
    }

    /// Measures, unless the line is not wanted.
    fn take(&mut self, what: &'static str, goal: Goal, measure: impl FnOnce() -> Outcome<Figures>) -> Outcome<()> {
        if !what.contains(self.only) {
            return Ok(());
        }
        let figures = measure()?;
        if !self.figures.contains_key(what) {
            self.order.push((what, goal));
        }
        self.figures.entry(what).or_default().push(figures);
        Ok(())
    }

    fn round(&mut self) -> Outcome<()> {
        let rows = self.rows;
        let (plain, crr) = (Base::plain()?, Base::crr()?);
        let inserted = race(&plain.conn, &crr.conn, rows, insert)?;
        self.take("insert", Goal::AtMost(5.0), || Ok(inserted))?;
        self.take("file size", Goal::None, || Ok(Figures { plain: plain.size()?, crr: crr.size()? }))?;

        self.take("read all changes", Goal::AtLeast(2.0), || read_all(&crr.conn, rows))?;
        self.take("read the newest 1 %", Goal::None, || read_newest(&crr.conn, rows))?;

        let merge = |target: &Base, group, together| merge_all(&crr.conn, &target.conn, rows, group, together);
        self.take("merge, 1 transaction", Goal::AtLeast(0.7), || merge(&Base::crr()?, rows, 1))?;
        self.take("merge, 1000 rows a transaction", Goal::AtLeast(0.7), || merge(&Base::crr()?, GROUP, 1))?;
        self.take("merge, 32 changes a statement", Goal::AtLeast(0.7), || merge(&Base::crr()?, GROUP, 32))?;
        self.take("merge by rows, 1 transaction", Goal::AtLeast(0.7), || merge(&Base::crr()?, rows, BY_ROWS))?;
        self.take("merge by rows, 1000 a transaction", Goal::AtLeast(0.7), || merge(&Base::crr()?, GROUP, BY_ROWS))?;
        self.take("re-merge", Goal::AtLeast(1.2), || merge(&crr, GROUP, 1))?;
        self.take("re-merge by rows", Goal::AtLeast(1.2), || merge(&crr, GROUP, BY_ROWS))?;
        self.take("re-merge, 32 changes a statement", Goal::AtLeast(1.2), || merge(&crr, GROUP, 32))?;
        for (what, together) in [("merge, half in conflict", 1), ("merge by rows, half in conflict", BY_ROWS)] {
            self.take(what, Goal::AtLeast(0.7), || {
                let target = Base::crr()?;
                race(&Base::plain()?.conn, &target.conn, rows, insert)?;
                target.conn.execute("UPDATE t SET a = 'zz' || a, b = b + 1, c = -1 WHERE id % 2 = 0", [])?;
                merge(&target, GROUP, together)
            })?;
        }

        self.take("update", Goal::AtMost(2.5), || race(&plain.conn, &crr.conn, rows, update))?;
        self.take("delete", Goal::AtMost(3.0), || race(&plain.conn, &crr.conn, rows, delete))
    }

    fn print(&self) {
        for &(what, goal) in &self.order {
            let Some(figures) = self.figures.get(what) else { continue };
            let ratio = |f: &Figures| match goal {
                Goal::AtMost(_) => f.plain / f.crr,
                Goal::AtLeast(_) | Goal::None => f.crr / f.plain,
            };
            let goal = match goal {
                Goal::AtMost(limit) => format!("<= {limit}"),
                Goal::AtLeast(limit) => format!(">= {limit}"),
                Goal::None => String::new(),
            };
            let plain = sorted(figures.iter().map(|f| f.plain));
            let crr = sorted(figures.iter().map(|f| f.crr));
            let ratios = sorted(figures.iter().map(ratio));
            println!(
                "{:>7}  {what:<36} {:>11.0} {:>11.0} {:>7.2}  {goal:<8} {:.2} to {:.2}",
                self.rows,
                median(&plain),
                median(&crr),
                median(&ratios),
                ratios[0],
                ratios[ratios.len() - 1],
            );
        }
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values = values.collect::<Vec<_>>();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
}

/// A database file of its own with the table.
struct Base {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    conn: Connection,
}

impl Base {
    fn plain() -> Outcome<Base> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("bench.db");
        let conn = Connection::open(&path)?;
        conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")?;
        conn.execute_batch(TABLE)?;
        conn.set_prepared_statement_cache_capacity(64);
        Ok(Base { _dir: dir, path, conn })
    }

    fn crr() -> Outcome<Base> {
        let base = Base::plain()?;
        crsqlite::register(&base.conn)?;
        base.conn.execute_batch("SELECT crsql_as_crr('t')")?;
        Ok(base)
    }

    fn size(&self) -> Outcome<f64> {
        self.conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
        Ok(std::fs::metadata(&self.path)?.len() as f64)
    }
}

/// Runs `step` for the rows `from..to` in one transaction.
fn transaction(
    conn: &Connection,
    (from, to): (usize, usize),
    step: impl Fn(&Connection, (usize, usize)) -> Outcome<()>,
) -> Outcome<Duration> {
    let start = Watch::start()?;
    conn.execute_batch("BEGIN")?;
    step(conn, (from, to))?;
    conn.execute_batch("COMMIT")?;
    start.elapsed()
}

/// The groups of rows that make a transaction each.
fn groups(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(GROUP).map(move |from| (from, rows.min(from + GROUP)))
}

fn rate(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// The same work on both, one transaction here, one there.
fn race(
    plain: &Connection,
    crr: &Connection,
    rows: usize,
    step: fn(&Connection, (usize, usize)) -> Outcome<()>,
) -> Outcome<Figures> {
    let mut times = [Duration::ZERO; 2];
    for group in groups(rows) {
        times[0] += transaction(plain, group, step)?;
        times[1] += transaction(crr, group, step)?;
    }
    Ok(Figures { plain: rate(rows, times[0]), crr: rate(rows, times[1]) })
}

/// The plain table is filled while `other` does its part for every group of rows and says how many
/// change rows that were and how long it took.
fn beside_inserts(
    rows: usize,
    mut other: impl FnMut((usize, usize)) -> Outcome<(usize, Duration)>,
) -> Outcome<Figures> {
    let plain = Base::plain()?;
    let (mut inserting, mut working, mut changes) = (Duration::ZERO, Duration::ZERO, 0);
    for group in groups(rows) {
        inserting += transaction(&plain.conn, group, insert)?;
        let (count, time) = other(group)?;
        changes += count;
        working += time;
    }
    Ok(Figures { plain: rate(rows, inserting), crr: rate(changes, working) })
}

fn insert(conn: &Connection, (from, to): (usize, usize)) -> Outcome<()> {
    let mut stmt = conn.prepare_cached("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)")?;
    for i in from..to {
        let text = format!("row number {i}");
        let blob = i.to_be_bytes();
        stmt.execute(params![i as i64, text, i as i64 * 7, i as f64 / 3.0, &text[4..], &blob[..]])?;
    }
    Ok(())
}

fn update(conn: &Connection, (from, to): (usize, usize)) -> Outcome<()> {
    let mut stmt = conn.prepare_cached("UPDATE t SET b = ?2 WHERE id = ?1")?;
    for i in from..to {
        stmt.execute(params![i as i64, i as i64 + 1])?;
    }
    Ok(())
}

fn delete(conn: &Connection, (from, to): (usize, usize)) -> Outcome<()> {
    let mut stmt = conn.prepare_cached("DELETE FROM t WHERE id = ?1")?;
    for i in from..to {
        stmt.execute(params![i as i64])?;
    }
    Ok(())
}

/// Looks at all columns of up to `limit` rows; how many there were.
fn look(rows: &mut rusqlite::Rows<'_>, limit: usize) -> Outcome<usize> {
    for count in 0..limit {
        let Some(row) = rows.next()? else { return Ok(count) };
        for i in 0..9 {
            std::hint::black_box(row.get_ref(i)?);
        }
    }
    Ok(limit)
}

fn read_all(source: &Connection, rows: usize) -> Outcome<Figures> {
    let mut stmt = source.prepare("SELECT * FROM crsql_changes")?;
    let mut changes = stmt.query([])?;
    beside_inserts(rows, |(from, to)| {
        let start = Watch::start()?;
        let count = look(&mut changes, (to - from) * CELLS)?;
        Ok((count, start.elapsed()?))
    })
}

/// Reads what is newer than a version before which 99 % of the rows were written.
fn read_newest(source: &Connection, rows: usize) -> Outcome<Figures> {
    let newest = rows.div_ceil(100);
    let version: i64 = source.query_row("SELECT crsql_db_version()", [], |row| row.get(0))?;
    transaction(source, (rows, rows + newest), insert)?;
    let mut stmt = source.prepare("SELECT * FROM crsql_changes WHERE db_version > ?")?;
    let figures = beside_inserts(rows, |_| {
        let start = Watch::start()?;
        let count = look(&mut stmt.query([version])?, usize::MAX)?;
        Ok((count, start.elapsed()?))
    });
    transaction(source, (rows, rows + newest), delete)?;
    figures
}

/// Merges all of the source's changes into the target, in transactions of `group` rows' changes,
/// `together` changes in one statement, or by rows.
fn merge_all(source: &Connection, target: &Connection, rows: usize, group: usize, together: usize) -> Outcome<Figures> {
    let mut stmt = source.prepare("SELECT * FROM crsql_changes WHERE db_version <= ?")?;
    let mut changes = stmt.query([i64::try_from(rows.div_ceil(GROUP))?])?;
    beside_inserts(rows, |(from, to)| {
        let batch = fetch(&mut changes, (to - from) * CELLS)?;
        let start = Watch::start()?;
        if from % group == 0 {
            target.execute_batch("BEGIN")?;
        }
        match together {
            BY_ROWS => merge_rows(target, &batch)?,
            _ => merge(target, &batch, together)?,
        }
        if to % group == 0 || to == rows {
            target.execute_batch("COMMIT")?;
        }
        Ok((batch.len() / 9, start.elapsed()?))
    })
}

/// The values of up to `limit` rows, nine each.
fn fetch(rows: &mut rusqlite::Rows<'_>, limit: usize) -> Outcome<Vec<Value>> {
    let mut values = Vec::with_capacity(limit * 9);
    while values.len() < limit * 9
        && let Some(row) = rows.next()?
    {
        values.extend(change(row)?);
    }
    Ok(values)
}

fn change(row: &Row<'_>) -> rusqlite::Result<Vec<Value>> {
    (0..9).map(|i| row.get(i)).collect()
}

fn merge_rows(target: &Connection, values: &[Value]) -> Outcome<()> {
    fn text(value: &Value) -> &str {
        match value {
            Value::Text(text) => text,
            _ => "",
        }
    }
    fn bytes(value: &Value) -> &[u8] {
        match value {
            Value::Blob(bytes) => bytes,
            _ => &[],
        }
    }
    let number = |value: &Value| match value {
        Value::Integer(number) => *number,
        _ => 0,
    };
    let changes: Vec<Change<'_>> = values
        .chunks_exact(9)
        .map(|row| Change {
            table: text(&row[0]),
            pk: bytes(&row[1]),
            cid: text(&row[2]),
            value: ValueRef::from(&row[3]),
            col_version: number(&row[4]),
            db_version: number(&row[5]),
            site_id: bytes(&row[6]),
            causal_length: number(&row[7]),
        })
        .collect();
    let report = Merger::new(target)?.merge(&changes, None).map_err(|failure| format!("{failure:?}"))?;
    std::hint::black_box(report);
    Ok(())
}

fn merge(target: &Connection, values: &[Value], together: usize) -> Outcome<()> {
    let insert = |changes: usize| {
        let marks = vec!["(?, ?, ?, ?, ?, ?, ?, ?, ?)"; changes].join(", ");
        target.prepare_cached(&format!("INSERT INTO crsql_changes VALUES {marks}"))
    };
    let run = |stmt: &mut Statement<'_>, values: &[Value]| stmt.execute(rusqlite::params_from_iter(values)).map(drop);
    let mut stmt = insert(together)?;
    let chunks = values.chunks_exact(9 * together);
    let rest = chunks.remainder();
    for chunk in chunks {
        run(&mut stmt, chunk)?;
    }
    if !rest.is_empty() {
        run(&mut *insert(rest.len() / 9)?, rest)?;
    }
    Ok(())
}
