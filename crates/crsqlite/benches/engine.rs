//! How fast CRRs are beside plain tables, on the same data and in one run, interleaved.
//!
//! `cargo bench -p crsqlite --bench engine -- [ROWS...]` (default 10000 100000 400000). The figures
//! are explained in `docs/performance.md`.

use std::error::Error;
use std::time::Instant;

use rusqlite::types::Value;
use rusqlite::{Connection, params};

type Outcome<T> = Result<T, Box<dyn Error>>;

const PER_TRANSACTION: usize = 1000;
const TABLE: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, a TEXT, b INTEGER, c REAL, d TEXT, e BLOB)";

fn main() -> Outcome<()> {
    let sizes = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect::<Vec<usize>>();
    let sizes = if sizes.is_empty() { vec![10_000, 100_000, 400_000] } else { sizes };
    println!("{:>8}  {:<34} {:>12} {:>12} {:>7}", "rows", "what", "plain /s", "crr /s", "ratio");
    for rows in sizes {
        measure(rows)?;
    }
    Ok(())
}

/// One line of the table. The ratio is plain by CRR (goals: at most) or CRR by plain (at least).
fn line(rows: usize, what: &str, plain: f64, crr: f64, ratio: f64) {
    println!("{rows:>8}  {what:<34} {plain:>12.0} {crr:>12.0} {ratio:>7.2}");
}

fn rate(count: usize, start: Instant) -> f64 {
    count as f64 / start.elapsed().as_secs_f64()
}

struct Bench {
    _dir: tempfile::TempDir,
    conn: Connection,
    path: std::path::PathBuf,
}

fn open(crr: bool) -> Outcome<Bench> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("bench.db");
    let conn = Connection::open(&path)?;
    conn.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")?;
    if crr {
        crsqlite::register(&conn)?;
    }
    conn.execute_batch(TABLE)?;
    if crr {
        conn.execute_batch("SELECT crsql_as_crr('t')")?;
    }
    Ok(Bench { _dir: dir, conn, path })
}

/// Runs `step` for 0..count in transactions of 1000.
fn in_transactions(conn: &Connection, count: usize, mut step: impl FnMut(i64) -> rusqlite::Result<()>) -> Outcome<f64> {
    let start = Instant::now();
    let mut i = 0;
    while i < count {
        conn.execute_batch("BEGIN")?;
        for _ in 0..PER_TRANSACTION.min(count - i) {
            step(i64::try_from(i)?)?;
            i += 1;
        }
        conn.execute_batch("COMMIT")?;
    }
    Ok(rate(count, start))
}

fn insert(conn: &Connection, rows: usize) -> Outcome<f64> {
    let mut stmt = conn.prepare("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)")?;
    in_transactions(conn, rows, |i| {
        let text = format!("row number {i}");
        let blob = i.to_be_bytes();
        stmt.execute(params![i, text, i * 7, i as f64 / 3.0, &text[4..], &blob[..]]).map(drop)
    })
}

fn update(conn: &Connection, rows: usize) -> Outcome<f64> {
    let mut stmt = conn.prepare("UPDATE t SET b = ?2 WHERE id = ?1")?;
    in_transactions(conn, rows, |i| stmt.execute(params![i, i + 1]).map(drop))
}

fn delete(conn: &Connection, rows: usize) -> Outcome<f64> {
    let mut stmt = conn.prepare("DELETE FROM t WHERE id = ?1")?;
    in_transactions(conn, rows, |i| stmt.execute(params![i]).map(drop))
}

fn read(conn: &Connection, condition: &str) -> Outcome<(Vec<Vec<Value>>, f64)> {
    let mut stmt = conn.prepare(&format!("SELECT * FROM crsql_changes {condition}"))?;
    let start = Instant::now();
    let mut count = 0;
    {
        let mut rows = stmt.query([])?;
        while let Some(row) = rows.next()? {
            for i in 0..9 {
                std::hint::black_box(row.get_ref(i)?);
            }
            count += 1;
        }
    }
    let speed = rate(count, start);
    let rows = stmt.query_map([], |row| (0..9).map(|i| row.get(i)).collect())?;
    Ok((rows.collect::<Result<_, _>>()?, speed))
}

/// Merges in transactions of `group` rows, `together` rows in one statement.
fn merge(conn: &Connection, changes: &[Vec<Value>], group: usize, together: usize) -> Outcome<f64> {
    let start = Instant::now();
    for rows in changes.chunks(group) {
        conn.execute_batch("BEGIN")?;
        for rows in rows.chunks(together) {
            let values = vec!["(?, ?, ?, ?, ?, ?, ?, ?, ?)"; rows.len()].join(", ");
            let mut stmt = conn.prepare_cached(&format!("INSERT INTO crsql_changes VALUES {values}"))?;
            stmt.execute(rusqlite::params_from_iter(rows.iter().flatten()))?;
        }
        conn.execute_batch("COMMIT")?;
    }
    Ok(rate(changes.len(), start))
}

fn size(bench: &Bench) -> Outcome<f64> {
    bench.conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
    Ok(std::fs::metadata(&bench.path)?.len() as f64)
}

fn measure(rows: usize) -> Outcome<()> {
    let (plain, crr) = (open(false)?, open(true)?);
    let inserted = insert(&plain.conn, rows)?;
    let speed = insert(&crr.conn, rows)?;
    line(rows, "insert (plain/crr, goal <= 5)", inserted, speed, inserted / speed);
    let (a, b) = (size(&plain)?, size(&crr)?);
    line(rows, "file size in bytes (crr/plain)", a, b, b / a);

    let (changes, speed) = read(&crr.conn, "")?;
    line(rows, "read all changes (goal >= 2.0)", inserted, speed, speed / inserted);
    let newest = format!("WHERE db_version > {}", rows / PER_TRANSACTION * 99 / 100);
    let (_, speed) = read(&crr.conn, &newest)?;
    line(rows, "read newest 1 %", inserted, speed, speed / inserted);

    let target = open(true)?;
    let speed = merge(&target.conn, &changes, usize::MAX, 1)?;
    line(rows, "merge, one transaction (>= 0.7)", inserted, speed, speed / inserted);
    let speed = merge(&target.conn, &changes, usize::MAX, 1)?;
    line(rows, "merge again (goal >= 1.2)", inserted, speed, speed / inserted);
    let speed = merge(&target.conn, &changes, usize::MAX, 32)?;
    line(rows, "merge again, 32 rows a statement", inserted, speed, speed / inserted);
    drop(target);
    let target = open(true)?;
    let speed = merge(&target.conn, &changes, usize::MAX, 32)?;
    line(rows, "merge, 32 rows a statement", inserted, speed, speed / inserted);
    drop(target);
    let target = open(true)?;
    let speed = merge(&target.conn, &changes, PER_TRANSACTION, 1)?;
    line(rows, "merge, 1000 a transaction (>= 0.7)", inserted, speed, speed / inserted);
    drop(target);
    let target = open(true)?;
    insert(&target.conn, rows)?;
    target.conn.execute("UPDATE t SET a = 'zz' || a, b = b + 1, c = -1 WHERE id % 2 = 0", [])?;
    let speed = merge(&target.conn, &changes, PER_TRANSACTION, 1)?;
    line(rows, "merge, half in conflict (>= 0.7)", inserted, speed, speed / inserted);
    drop(target);

    let updated = update(&plain.conn, rows)?;
    let speed = update(&crr.conn, rows)?;
    line(rows, "update (plain/crr, goal <= 2.5)", updated, speed, updated / speed);
    let deleted = delete(&plain.conn, rows)?;
    let speed = delete(&crr.conn, rows)?;
    line(rows, "delete (plain/crr, goal <= 3)", deleted, speed, deleted / speed);
    Ok(())
}
