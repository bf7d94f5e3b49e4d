//! Merges go in slices: others write in between, and one that ends early is done again.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::*;

const HALF: usize = 500_000;

/// A site with rows of so many bytes, and the pack of all: of half a megabyte, a slice holds few.
fn rows_of(bytes: usize, rows: i64, schema: &str) -> (Site, Pack) {
    let a = Site::new(schema);
    a.run(&format!(
        "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO notes SELECT i, 'title ' || i, zeroblob({bytes}) FROM n"
    ));
    let reader = SiteId::from_bytes(&[9; 16]).unwrap();
    let limits = ReadLimits { target_raw_bytes: 1 << 30, max_packs: 1 };
    let pack = a.database.read_packs(Cursor::ZERO, &reader, &limits).unwrap().packs.remove(0);
    (a, pack)
}

/// What an application sees of a merge from outside: how many rows there were when it looked.
fn counts_seen(path: &Path, done: &AtomicBool) -> Vec<i64> {
    let other = Connection::open(path).unwrap();
    let mut seen = vec![0];
    while !done.load(Ordering::Acquire) {
        let count = other.query_row("SELECT count(*) FROM notes", [], |row| row.get(0)).unwrap();
        if seen.last() != Some(&count) {
            seen.push(count);
        }
    }
    seen
}

#[test]
fn a_pack_is_merged_in_slices() {
    let (a, pack) = rows_of(HALF, 20, NOTES);
    let mut b = Site::new(NOTES);
    let (path, done) = (b.path(), AtomicBool::new(false));
    let seen = thread::scope(|scope| {
        let looking = scope.spawn(|| counts_seen(&path, &done));
        let report = b.merge(&pack);
        assert_eq!((report.applied(), report.tables["notes"].offered), (40, 40));
        done.store(true, Ordering::Release);
        looking.join().unwrap()
    });
    assert!(seen.len() > 2, "{seen:?}");
    assert_equal(&[&a, &b], ALL_NOTES);
    assert_eq!(b.database.position(&pack.source).unwrap(), pack.to);
    let versions = "SELECT count(DISTINCT db_version), max(n) FROM (
                        SELECT db_version, count(*) AS n FROM crsql_changes GROUP BY db_version)";
    let by_version = b.rows(versions);
    assert!(by_version != ["[Integer(1), Integer(40)]"], "each slice has a version of its own: {by_version:?}");
}

/// As a process that is killed between two slices: what is committed stays, the position does not move.
#[test]
fn a_merge_that_ends_between_slices_is_done_again() {
    let (a, mut pack) = rows_of(HALF, 20, NOTES);
    let mut b = Site::new(NOTES);
    // One change does not fit, so the end asks for it to be kept.
    let stray = pack.changes[0].clone();
    pack.changes.push(crate::changeset::Change { cid: "nowhere".into(), seq: i64::MAX, ..stray });
    let source = pack.source;
    for _ in 0..2 {
        let error = b
            .database
            .merge(&source, &pack.changes, &pack.tables, Some(pack.to), &mut |_| Err("killed".into()))
            .unwrap_err();
        assert!(matches!(error, DatabaseError::Keep { .. }), "{error}");
        let rows = b.rows("SELECT count(*) FROM notes");
        assert!(rows != ["[Integer(0)]"], "slices before the last are committed");
        assert_eq!(b.database.position(&source).unwrap(), Cursor::ZERO);
    }
    let mut kept = Vec::new();
    b.database.merge(&source, &pack.changes, &pack.tables, Some(pack.to), &mut keep_into(&mut kept)).unwrap();
    assert_eq!((kept.len(), kept[0].index), (1, 40));
    assert_eq!(b.database.position(&source).unwrap(), pack.to);
    assert_equal(&[&a, &b], ALL_NOTES);
    // What is merged can be read on from anywhere, as always.
    let mut c = Site::new(NOTES);
    c.pull_with(&b, &ReadLimits { target_raw_bytes: 1000, max_packs: 1 });
    assert_equal(&[&a, &c], ALL_NOTES);
}

/// The wait for one slice, not for the merge of all.
#[test]
fn an_application_writes_between_slices() {
    let (a, pack) = rows_of(1, 200, NOTES);
    let mut b = Site::new(NOTES);
    // Each row takes long, as with many indexes.
    b.run(
        "CREATE TRIGGER slow AFTER INSERT ON notes BEGIN
             SELECT count(*) FROM (WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 200000)
                                   SELECT i FROM n); END;
         CREATE TABLE own (id INTEGER PRIMARY KEY)",
    );
    let (path, done) = (b.path(), AtomicBool::new(false));
    let (longest, took, writes) = thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let other = Connection::open(&path).unwrap();
            other.busy_timeout(Duration::from_secs(60)).unwrap();
            let (mut longest, mut writes) = (Duration::ZERO, 0);
            while !done.load(Ordering::Acquire) {
                let began = Instant::now();
                other.execute("INSERT INTO own DEFAULT VALUES", []).unwrap();
                (longest, writes) = (longest.max(began.elapsed()), writes + 1);
                thread::sleep(Duration::from_millis(5));
            }
            (longest, writes)
        });
        let began = Instant::now();
        b.merge(&pack);
        let took = began.elapsed();
        done.store(true, Ordering::Release);
        let (longest, writes) = writing.join().unwrap();
        (longest, took, writes)
    });
    assert_equal(&[&a, &b], ALL_NOTES);
    println!("{writes} writes, of which the longest waited {longest:?}, in a merge of {took:?}");
    assert!(took > Duration::from_millis(1500), "the merge took {took:?}, which shows nothing");
    assert!(longest < took * 2 / 3 && writes > 5, "{writes} writes, the longest took {longest:?}, the merge {took:?}");
}

#[test]
fn rows_of_different_slices_let_each_other_in() {
    let unique = "CREATE TABLE notes (id INTEGER PRIMARY KEY NOT NULL, title TEXT, body); SELECT crsql_as_crr('notes')";
    let (a, first) = rows_of(HALF, 20, unique);
    let mut b = Site::new(&format!("{unique}; CREATE UNIQUE INDEX one_title ON notes (title)"));
    b.merge(&first);
    // The first row takes the title that the last one gives up.
    a.run("UPDATE notes SET title = 'other' WHERE id = 20");
    a.run("UPDATE notes SET title = 'title 20' WHERE id = 1");
    a.run("UPDATE notes SET body = zeroblob(500001)");
    let limits = ReadLimits { target_raw_bytes: 1 << 30, max_packs: 1 };
    let mut pack = a.database.read_packs(first.to, &b.id(), &limits).unwrap().packs.remove(0);
    let keys = |change: &crate::changeset::Change| change.pk.to_vec();
    pack.changes.sort_by_key(keys);
    let report = b.merge(&pack);
    assert_eq!(report.applied(), 22);
    assert_equal(&[&a, &b], ALL_NOTES);
}

/// What fits is found anew if the schema is altered between slices.
#[test]
fn a_table_that_is_altered_between_slices_stops_no_merge() {
    let (a, pack) = rows_of(HALF, 40, NOTES);
    let mut b = Site::new(NOTES);
    let (path, done) = (b.path(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let other = Connection::open(&path).unwrap();
            other.busy_timeout(Duration::from_secs(60)).unwrap();
            let mut number = 0;
            while !done.load(Ordering::Acquire) {
                other.execute_batch(&format!("CREATE TABLE other_{number} (id INTEGER PRIMARY KEY)")).unwrap();
                number += 1;
            }
        });
        let report = b.merge(&pack);
        done.store(true, Ordering::Release);
        assert_eq!((report.applied(), report.changes), (80, 80));
    });
    assert_equal(&[&a, &b], ALL_NOTES);
}
