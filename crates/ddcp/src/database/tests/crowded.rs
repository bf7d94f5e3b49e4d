//! Places that many changes share: every one can be cut, and none comes to be by merging.

use proptest::prelude::*;
use rusqlite::params;

use super::*;
use crate::changeset::Change;

const TWO: &str = "CREATE TABLE notes (id INTEGER PRIMARY KEY NOT NULL, title TEXT, body);
                   CREATE TABLE tags (tag TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (n, tag));
                   SELECT crsql_as_crr('notes'); SELECT crsql_as_crr('tags')";

/// Merges changes as CR-SQLite does, in one transaction: each keeps its seq.
fn insert(site: &Site, changes: &[Change]) {
    let connection = site.database.connection();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut statement =
        connection.prepare("INSERT INTO crsql_changes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)").unwrap();
    for change in changes {
        let Change { table, pk, cid, val, col_version, db_version, site_id, cl, seq } = change;
        let site_id = site_id.as_bytes();
        statement.execute(params![table, pk, cid, val, col_version, db_version, site_id, cl, seq]).unwrap();
    }
    connection.execute_batch("COMMIT").unwrap();
}

fn read_all(site: &Site, after: Cursor, reader: &SiteId, pack_bytes: usize) -> Vec<Pack> {
    let limits = ReadLimits { target_raw_bytes: pack_bytes, max_packs: usize::MAX };
    let batch = site.database.read_packs(after, reader, &limits).unwrap();
    assert!(!batch.more && batch.left_out.is_empty(), "{:?}", batch.left_out);
    batch.packs
}

/// As many places as changes.
fn crowded(site: &Site) -> Vec<String> {
    site.rows("SELECT db_version, seq, count(*) FROM crsql_changes GROUP BY 1, 2 HAVING count(*) > 1")
}

/// A site all of whose changes share one place, `rows` of them in each of two tables.
fn one_place(rows: i64, bytes: i64) -> Site {
    let (a, b) = (Site::new(TWO), Site::new(TWO));
    for id in 1..=rows {
        a.run(&format!("INSERT INTO notes VALUES ({id}, 'note {id}', zeroblob({bytes}))"));
        a.run(&format!("INSERT INTO tags VALUES ('tag', {id})"));
    }
    let mut changes: Vec<Change> =
        read_all(&a, Cursor::ZERO, &b.id(), PACK_BYTES).into_iter().flat_map(|pack| pack.changes).collect();
    changes.iter_mut().for_each(|change| (change.seq, change.db_version) = (0, 1));
    insert(&b, &changes);
    assert_eq!(crowded(&b).len(), 1);
    b
}

#[test]
fn a_place_that_many_changes_share_is_cut() {
    let b = one_place(40, 300);
    b.run("INSERT INTO notes VALUES (1000, 'afterwards', 1)");
    let mut c = Site::new(TWO);
    let packs = read_all(&b, Cursor::ZERO, &c.id(), 500);
    assert!(packs.len() > 10, "{}", packs.len());
    assert!(packs.iter().all(|pack| pack.encode().len() < 2000 && pack.changes.len() < 40));
    // From the end of any pack on, the rest is the same.
    for (at, pack) in packs.iter().enumerate() {
        assert_eq!(read_all(&b, pack.to, &c.id(), 500), packs[at + 1..], "after {}", pack.to);
    }
    assert_eq!(c.pull_with(&b, &ReadLimits { target_raw_bytes: 500, max_packs: 3 }), 40 * 3 + 2);
    assert_equal(&[&b, &c], "SELECT * FROM notes ORDER BY id");
    assert_equal(&[&b, &c], "SELECT * FROM tags ORDER BY n");
    assert_eq!(crowded(&c), [""; 0], "what was merged has places of its own");
}

/// What a reader has not got yet moves to a later version, and nothing is passed over.
#[test]
fn a_place_that_is_written_to_while_it_is_read_loses_nothing() {
    let b = one_place(30, 300);
    let mut c = Site::new(TWO);
    let limits = ReadLimits { target_raw_bytes: 500, max_packs: 1 };
    for step in 0.. {
        let position = c.database.position(&b.id()).unwrap();
        let batch = b.database.read_packs(position, &c.id(), &limits).unwrap();
        batch.packs.iter().for_each(|pack| drop(c.merge(pack)));
        if !batch.more {
            break;
        }
        let (early, late) = (1 + step % 30, 30 - step % 30);
        if step < 40 {
            b.run(&format!("UPDATE notes SET title = 'again {step}' WHERE id = {early}"));
            b.run(&format!("DELETE FROM notes WHERE id = {late} AND id % 3 = 0"));
            b.run(&format!("CREATE TABLE t{step} (id INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('t{step}')"));
        }
    }
    c.pull(&b);
    assert_equal(&[&b, &c], "SELECT * FROM notes ORDER BY id");
    assert_equal(&[&b, &c], "SELECT * FROM tags ORDER BY n");
}

#[test]
fn seqs_at_the_end_of_numbers_are_read_by_rows() {
    let (a, b, mut c) = (Site::new(NOTES), Site::new(NOTES), Site::new(NOTES));
    a.run("INSERT INTO notes VALUES (1, 'one', 1), (2, 'two', 2), (3, 'three', 3)");
    let mut changes = read_all(&a, Cursor::ZERO, &b.id(), PACK_BYTES).remove(0).changes;
    for (change, seq) in changes.iter_mut().zip([0, 5, 1 << 62, (1 << 62) + 9, i64::MAX - 1, i64::MAX]) {
        change.seq = seq;
    }
    insert(&b, &changes);
    let packs = read_all(&b, Cursor::ZERO, &c.id(), 20);
    assert!(packs.len() > 1);
    c.pull_with(&b, &ReadLimits { target_raw_bytes: 20, max_packs: 1 });
    assert_equal(&[&b, &c], ALL_NOTES);
}

/// Small changes bring back rows of any size, which must not share a place for it.
#[test]
fn rows_that_come_back_to_life_have_places_of_their_own() {
    let (a, mut b, mut c) = (Site::new(NOTES), Site::new(NOTES), Site::new(NOTES));
    for id in 1..=20 {
        a.run(&format!("INSERT INTO notes VALUES ({id}, 'note', zeroblob(3000))"));
    }
    b.pull(&a);
    let reader = c.id();
    let pack = read_all(&a, Cursor::ZERO, &reader, PACK_BYTES).remove(0);
    let at = |cursor: Cursor| Cursor { version: 100, ..cursor };
    let rises = |change: &Change| Change {
        cid: crate::changeset::SENTINEL.into(),
        val: Value::Null,
        col_version: 3,
        cl: 3,
        db_version: 100,
        seq: 0,
        ..change.clone()
    };
    let changes = pack.changes.iter().step_by(2).map(rises).collect();
    b.merge(&Pack { from: at(Cursor::ZERO), to: Cursor::whole(100), changes, ..pack });
    assert_eq!(crowded(&b), [""; 0]);
    assert_eq!(b.rows("SELECT count(*) FROM crsql_changes WHERE db_version = 100"), ["[Integer(60)]"]);
    let packs = read_all(&b, Cursor::ZERO, &reader, 1000);
    assert!(
        packs.iter().all(|pack| pack.changes.iter().map(|change| change.val.content().len()).sum::<usize>() < 9000)
    );
    c.pull_with(&b, &ReadLimits { target_raw_bytes: 1000, max_packs: 2 });
    assert_equal(&[&a, &b, &c], ALL_NOTES);
}

/// Readers take so many sites in a pack, however small the changes are.
#[test]
fn packs_are_cut_before_they_have_too_many_sites() {
    let (a, b) = (Site::new(NOTES), Site::new(NOTES));
    a.run("INSERT INTO notes VALUES (1, 'one', 1)");
    let template = read_all(&a, Cursor::ZERO, &b.id(), PACK_BYTES).remove(0).changes.remove(0);
    let of_site = |n: u32| Change {
        pk: [&[1, 4 << 3 | 1][..], &(n + 1).to_be_bytes()].concat().into(),
        site_id: SiteId::from_bytes(&(n + 1).to_be_bytes()).unwrap(),
        seq: 0,
        ..template.clone()
    };
    insert(&b, &(0..70_000).map(of_site).collect::<Vec<_>>());
    let reader = a.id();
    let packs = read_all(&b, Cursor::ZERO, &reader, PACK_BYTES);
    assert_eq!(packs.iter().map(|pack| pack.changes.len()).sum::<usize>(), 70_000);
    for pack in packs {
        Pack::decode(&pack.encode(), &Limits::default()).unwrap();
    }
}

/// What somebody writes: a row, another key for it, its end.
#[derive(Clone, Debug)]
enum Write {
    Put(i64, u8),
    Move(i64, i64),
    Delete(i64),
    Tag(i64),
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        4 => (1..12_i64, 0..200_u8).prop_map(|(id, n)| Write::Put(id, n)),
        1 => (1..12_i64, 1..12_i64).prop_map(|(from, to)| Write::Move(from, to)),
        2 => (1..12_i64).prop_map(Write::Delete),
        1 => (1..5_i64).prop_map(Write::Tag),
    ]
}

fn run(site: &Site, write: &Write) {
    site.run(&match write {
        Write::Put(id, n) => {
            format!(
                "INSERT INTO notes VALUES ({id}, '{}', {n})
                 ON CONFLICT (id) DO UPDATE SET title = excluded.title, body = excluded.body",
                "t".repeat((*n).into())
            )
        }
        Write::Move(from, to) => format!("UPDATE OR REPLACE notes SET id = {to} WHERE id = {from}"),
        Write::Delete(id) => format!("DELETE FROM notes WHERE id = {id}"),
        Write::Tag(n) => format!("INSERT OR IGNORE INTO tags VALUES ('t', {n})"),
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// By seqs and by rows, the same changes are read.
    #[test]
    fn a_version_read_by_rows_is_the_same_version(
        before in proptest::collection::vec(write(), 0..15),
        theirs in proptest::collection::vec(write(), 1..30),
        own in proptest::collection::vec(write(), 0..10),
        after in proptest::collection::vec(write(), 0..8),
    ) {
        let (a, b, mut c, mut d) = (Site::new(TWO), Site::new(TWO), Site::new(TWO), Site::new(TWO));
        before.iter().for_each(|write| run(&b, write));
        theirs.iter().for_each(|write| run(&a, write));
        let mut changes: Vec<Change> =
            read_all(&a, Cursor::ZERO, &b.id(), PACK_BYTES).into_iter().flat_map(|pack| pack.changes).collect();
        changes.iter_mut().for_each(|change| (change.seq, change.db_version) = (0, 50));
        insert(&b, &changes);
        own.iter().for_each(|write| run(&b, write));
        after.iter().for_each(|write| run(&b, write));
        let reader = c.id();
        let told = |pack_bytes| {
            let packs = read_all(&b, Cursor::ZERO, &reader, pack_bytes);
            let changes = packs.into_iter().flat_map(|pack| pack.changes);
            let mut told: Vec<String> =
                changes.map(|change| format!("{:?}", Change { seq: 0, ..change })).collect();
            told.sort();
            told.dedup();
            told
        };
        prop_assert_eq!(told(10), told(PACK_BYTES));
        c.pull_with(&b, &ReadLimits { target_raw_bytes: 10, max_packs: 1 });
        d.pull(&b);
        assert_equal(&[&b, &c, &d], ALL_NOTES);
        assert_equal(&[&b, &c, &d], "SELECT * FROM tags ORDER BY n");
        prop_assert_eq!(crowded(&c), [""; 0]);
    }
}
