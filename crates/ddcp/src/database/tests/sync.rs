use std::{sync::mpsc, thread};

use super::*;
use crate::changeset::{Change, MAX_VERSION, PackTable};

#[test]
fn databases_converge() {
    let (mut a, mut b) = (Site::new(NOTES), Site::new(NOTES));
    a.run("INSERT INTO notes VALUES (1, 'milk', 'x'), (2, 'bread', 2.5), (3, NULL, x'00ff')");
    b.run("INSERT INTO notes VALUES (2, 'butter', -0.0), (4, 'nul' || char(0) || 'nul', 9e999), (5, '', x'')");
    assert_eq!(b.pull(&a), 6);
    a.pull(&b);
    assert_equal(&[&a, &b], ALL_NOTES);
    a.run("UPDATE notes SET title = 'oat milk' WHERE id = 1; DELETE FROM notes WHERE id = 2");
    b.run("UPDATE notes SET body = 'y' WHERE id = 1; UPDATE notes SET title = 'jam' WHERE id = 2");
    a.pull(&b);
    b.pull(&a);
    assert_equal(&[&a, &b], ALL_NOTES);
    assert_eq!(a.rows("SELECT title, body FROM notes WHERE id = 1"), [r#"[Text("oat milk"), Text("y")]"#]);
    assert_eq!(a.rows("SELECT count(*) FROM notes"), ["[Integer(4)]"]);
    // Nothing is new, and nobody is sent his own changes.
    assert_eq!((a.pull(&b), b.pull(&a)), (0, 0));
}

#[test]
fn changes_pass_through_a_third_database() {
    let (mut a, mut b, mut c) = (Site::new(NOTES), Site::new(NOTES), Site::new(NOTES));
    a.run("INSERT INTO notes VALUES (1, 'from a', 1)");
    c.run("INSERT INTO notes VALUES (2, 'from c', 2)");
    b.pull(&a);
    b.pull(&c);
    a.pull(&b);
    c.pull(&b);
    assert_equal(&[&a, &b, &c], ALL_NOTES);
    let batch = b.read(Cursor::ZERO, &a.id());
    let authors: Vec<SiteId> = batch.packs[0].changes.iter().map(|change| change.site_id).collect();
    assert_eq!(authors, [c.id(), c.id()], "what a made is left out, what c made keeps its author");
}

#[test]
fn reading_nothing_covers_the_whole_version() {
    let (a, mut b) = (Site::new(NOTES), Site::new(NOTES));
    let batch = a.read(Cursor::ZERO, &b.id());
    assert!(batch.packs.is_empty() && !batch.more);
    assert_eq!((batch.version, batch.end), (0, Cursor::whole(0)));
    a.run("INSERT INTO notes VALUES (1, 'a', 1)");
    b.pull(&a);
    assert_eq!(b.database.position(&a.id()).unwrap(), Cursor::whole(1));
    let batch = b.read(Cursor::ZERO, &a.id());
    assert!(batch.packs.is_empty(), "all of b's changes are a's own");
    assert_eq!(batch.end, Cursor::whole(b.database.version().unwrap()));
}

#[test]
fn packs_are_cut_between_transactions() {
    let (a, mut b) = (Site::new(NOTES), Site::new(NOTES));
    for id in 0..100 {
        a.run(&format!("INSERT INTO notes VALUES ({id}, '{}', 1)", "t".repeat(200)));
    }
    let limits = ReadLimits { target_raw_bytes: 1000, max_packs: 3 };
    let batch = a.database.read_packs(Cursor::ZERO, &b.id(), &limits).unwrap();
    assert_eq!(batch.packs.len(), 3);
    assert!(batch.more);
    for pack in &batch.packs {
        assert_eq!(pack.to.seq, i64::MAX, "at the end of a version");
        assert!((5..20).contains(&pack.changes.len()), "{}", pack.changes.len());
    }
    assert_eq!(b.pull_with(&a, &limits), 200);
    assert_equal(&[&a, &b], ALL_NOTES);
}

#[test]
fn a_large_transaction_is_cut_within_its_version() {
    let (a, mut b) = (Site::new(NOTES), Site::new(NOTES));
    a.run("BEGIN");
    for id in 0..200 {
        a.run(&format!("INSERT INTO notes VALUES ({id}, '{}', 1)", "t".repeat(100)));
    }
    a.run("COMMIT");
    let limits = ReadLimits { target_raw_bytes: 1000, max_packs: 2 };
    let batch = a.database.read_packs(Cursor::ZERO, &b.id(), &limits).unwrap();
    assert_eq!(batch.packs[0].to.version, 1);
    assert!(batch.packs[0].to.seq < 100 && batch.more);
    assert_eq!(b.pull_with(&a, &limits), 400, "every change exactly once");
    assert_equal(&[&a, &b], ALL_NOTES);
}

/// What lets a download go on after either side was restarted.
#[test]
fn packs_are_the_same_whenever_and_from_wherever_they_are_read() {
    let (a, b) = (Site::new(NOTES), Site::new(NOTES));
    let limits = |max_packs| ReadLimits { target_raw_bytes: 1000, max_packs };
    for id in 0..40 {
        a.run(&format!("INSERT INTO notes VALUES ({id}, '{}', {id})", "t".repeat(usize::try_from(id * 7).unwrap())));
    }
    a.run(
        "WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
           INSERT INTO notes SELECT i, 'many', zeroblob(i) FROM n",
    );
    a.run("UPDATE notes SET id = 1000 WHERE id = 7; DELETE FROM notes WHERE id BETWEEN 110 AND 120");
    a.run("INSERT INTO notes VALUES (2000, 'large', zeroblob(5000))");
    let encoded = |packs: &[Pack]| packs.iter().map(Pack::encode).collect::<Vec<_>>();
    let all = a.database.read_packs(Cursor::ZERO, &b.id(), &limits(1000)).unwrap();
    let whole = encoded(&all.packs);
    assert!(whole.len() > 20, "{}", whole.len());

    // Another process, from the end of any pack on.
    let restarted = Database::open(&a.path(), &options()).unwrap();
    for (index, pack) in all.packs.iter().enumerate() {
        let rest = restarted.read_packs(pack.to, &b.id(), &limits(1000)).unwrap();
        assert_eq!(encoded(&rest.packs), whole[index + 1..], "after {}", pack.to);
    }
    // A last pack that has its size stays what it is when more is written.
    a.run("INSERT INTO notes VALUES (3000, 'more', 1)");
    let more = a.database.read_packs(Cursor::ZERO, &b.id(), &limits(1000)).unwrap();
    assert_eq!(encoded(&more.packs)[..whole.len()], whole);
}

#[test]
fn large_values_pass() {
    let (a, mut b) = (Site::new(NOTES), Site::new(NOTES));
    a.run("INSERT INTO notes VALUES (1, 'small', 1), (2, 'large', randomblob(5000000)), (3, 'small', 1)");
    b.pull(&a);
    assert_equal(&[&a, &b], ALL_NOTES);
}

#[test]
fn all_kinds_of_keys_pass() {
    let schema = "CREATE TABLE t (a NOT NULL, b NOT NULL, c, PRIMARY KEY (b, a)); SELECT crsql_as_crr('t');
                  CREATE TABLE only_key (k TEXT PRIMARY KEY NOT NULL); SELECT crsql_as_crr('only_key');";
    let (a, mut b) = (Site::new(schema), Site::new(schema));
    a.run(
        "INSERT INTO t VALUES (1, 'x', 1), (-1, x'00', 2), ('', x'', 3), (2.5, 9223372036854775807, 4),
                              (128, -9223372036854775808, 5), ('nul' || char(0), 1e300, 6);
         INSERT INTO only_key VALUES ('a'), ('b'); DELETE FROM only_key WHERE k = 'a'",
    );
    b.pull(&a);
    assert_equal(&[&a, &b], "SELECT * FROM t ORDER BY c");
    assert_equal(&[&a, &b], "SELECT * FROM only_key");
    let batch = a.read(Cursor::ZERO, &b.id());
    let shapes: Vec<&PackTable> = batch.packs[0].tables.iter().collect();
    assert_eq!(shapes[0], &PackTable { name: "t".to_owned(), key_columns: vec!["b".to_owned(), "a".to_owned()] });
}

#[test]
fn what_does_not_fit_is_kept_and_merged_later() {
    let a = Site::new(&format!(
        "{NOTES} CREATE TABLE tags (tag TEXT PRIMARY KEY NOT NULL, n); SELECT crsql_as_crr('tags');
         CREATE TABLE links (x NOT NULL, y NOT NULL, PRIMARY KEY (x, y)); SELECT crsql_as_crr('links');
         INSERT INTO notes VALUES (1, 'title', 'body'); INSERT INTO tags VALUES ('red', 1); INSERT INTO links VALUES (1, 2);"
    ));
    let mut b = Site::new(
        "CREATE TABLE notes (id INTEGER PRIMARY KEY NOT NULL, title); SELECT crsql_as_crr('notes');
         CREATE TABLE tags (tag TEXT PRIMARY KEY NOT NULL, n);
         CREATE TABLE links (x NOT NULL, y NOT NULL, PRIMARY KEY (y, x)); SELECT crsql_as_crr('links');",
    );
    let batch = a.read(Cursor::ZERO, &b.id());
    let pack = &batch.packs[0];
    let mut kept = Vec::new();
    let report =
        b.database.merge(&pack.source, &pack.changes, &pack.tables, Some(pack.to), &mut keep_into(&mut kept)).unwrap();
    let reasons: Vec<(&str, &Reason)> = kept.iter().map(|refused| (&*refused.change.table, &refused.reason)).collect();
    let no_column = Reason::NoColumn("body".into());
    assert_eq!(reasons, [("notes", &no_column), ("tags", &Reason::NoTable), ("links", &Reason::OtherKey)]);
    assert!(kept.iter().all(|refused| refused.change == pack.changes[refused.index]));
    assert_eq!((report.changes, report.applied(), report.refused()), (4, 1, 3));
    assert_eq!(report.tables["notes"].offered, 1);
    assert_eq!(b.database.position(&a.id()).unwrap(), pack.to);
    assert_eq!(b.rows("SELECT * FROM tags"), [""; 0]);

    b.run(
        "SELECT crsql_as_crr('tags');
         SELECT crsql_begin_alter('notes'); ALTER TABLE notes ADD COLUMN body; SELECT crsql_commit_alter('notes')",
    );
    let again: Vec<Change> = kept.drain(..).map(|refused| refused.change).collect();
    let report = b.database.merge(&pack.source, &again, &pack.tables, None, &mut keep_into(&mut kept)).unwrap();
    assert_eq!((report.applied(), report.refused()), (2, 1));
    assert_equal(&[&a, &b], ALL_NOTES);
    assert_equal(&[&a, &b], "SELECT * FROM tags");
}

#[test]
fn a_failed_constraint_refuses_one_row() {
    let a = Site::new(NOTES);
    let mut b = Site::new(
        "CREATE TABLE notes (id INTEGER PRIMARY KEY NOT NULL, title TEXT CHECK (title <> 'bad'), body);
         SELECT crsql_as_crr('notes');",
    );
    a.run("INSERT INTO notes VALUES (1, 'good', 1), (2, 'bad', 2), (3, 'good', 3)");
    let pack = a.read(Cursor::ZERO, &b.id()).packs.remove(0);
    let mut kept = Vec::new();
    let report =
        b.database.merge(&pack.source, &pack.changes, &pack.tables, Some(pack.to), &mut keep_into(&mut kept)).unwrap();
    assert_eq!(kept.iter().map(|kept| kept.index).collect::<Vec<_>>(), [2, 3]);
    assert!(kept.iter().all(|kept| matches!(kept.reason, Reason::Constraint(_))), "{:?}", kept[0].reason);
    assert_eq!((report.applied(), report.refused()), (4, 2));
    assert_eq!(b.rows("SELECT id FROM notes ORDER BY id"), ["[Integer(1)]", "[Integer(3)]"]);
}

#[test]
fn keys_of_another_type_refuse_their_changes() {
    let a = Site::new(
        "CREATE TABLE t (id PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('t');
                       INSERT INTO t VALUES ('text', 1), (2, 2)",
    );
    let mut b = Site::new("CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('t');");
    let pack = a.read(Cursor::ZERO, &b.id()).packs.remove(0);
    let mut kept = Vec::new();
    b.database.merge(&pack.source, &pack.changes, &pack.tables, None, &mut keep_into(&mut kept)).unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(b.rows("SELECT * FROM t"), ["[Integer(2), Integer(2)]"]);
}

#[test]
fn what_cannot_be_kept_is_not_passed_over() {
    let a = Site::new(&format!("{NOTES} INSERT INTO notes VALUES (1, 'a', 1);"));
    let mut b = Site::new("CREATE TABLE notes (id INTEGER PRIMARY KEY NOT NULL, title); SELECT crsql_as_crr('notes')");
    let pack = a.read(Cursor::ZERO, &b.id()).packs.remove(0);
    let error = b
        .database
        .merge(&pack.source, &pack.changes, &pack.tables, Some(pack.to), &mut |_| Err("no space".into()))
        .unwrap_err();
    assert!(matches!(error, DatabaseError::Keep { .. }) && error.to_string().contains("no space"));
    assert_eq!(b.rows(ALL_NOTES), [""; 0]);
    assert_eq!(b.database.position(&a.id()).unwrap(), Cursor::ZERO);
    b.run("INSERT INTO notes VALUES (7, 'still writable')");
}

#[test]
fn positions_are_set_with_the_changes() {
    let a = Site::new(&format!("{NOTES} INSERT INTO notes VALUES (1, 'a', 1);"));
    let mut b = Site::new(NOTES);
    let pack = a.read(Cursor::ZERO, &b.id()).packs.remove(0);
    b.merge(&pack);
    let reopened = Database::open(&b.path(), &OpenOptions::default()).unwrap();
    assert_eq!(reopened.position(&a.id()).unwrap(), pack.to);
    let back = Cursor { version: 0, seq: 3 };
    b.database.merge(&a.id(), &[], &[], Some(back), &mut |_| Ok(())).unwrap();
    assert_eq!(reopened.position(&a.id()).unwrap(), back, "a position may go back");
    assert_eq!(reopened.position(&b.id()).unwrap(), Cursor::ZERO);
}

/// A merge whose process dies before the commit, which a connection that goes away without committing stands for.
#[test]
fn a_merge_that_is_cut_off_leaves_no_trace() {
    let a = Site::new(&format!("{NOTES} INSERT INTO notes VALUES (1, 'a', 1);"));
    let mut b = Site::new(NOTES);
    let pack = a.read(Cursor::ZERO, &b.id()).packs.remove(0);
    let path = b.path();
    let dying = Database::open(&path, &OpenOptions::default()).unwrap();
    dying.begin_immediate().unwrap();
    dying.merge_in_transaction(&pack.source, &pack.changes, &pack.tables, Some(pack.to), &mut |_| Ok(())).unwrap();
    assert_eq!(dying.position(&a.id()).unwrap(), pack.to);
    drop(dying);
    assert_eq!(b.database.position(&a.id()).unwrap(), Cursor::ZERO);
    assert_eq!(b.rows(ALL_NOTES), [""; 0]);
    b.merge(&pack);
    assert_equal(&[&a, &b], ALL_NOTES);
    let report = b.merge(&pack);
    assert_eq!(report.applied(), 0, "merging again changes nothing");
}

#[test]
fn another_writer_is_waited_out() {
    let a = Site::new(&format!("{NOTES} INSERT INTO notes VALUES (1, 'a', 1);"));
    let mut b = Site::new(NOTES);
    let pack = a.read(Cursor::ZERO, &b.id()).packs.remove(0);
    let path = b.path();
    let (locked, is_locked) = mpsc::channel();
    let writer = thread::spawn(move || {
        let other = Database::open(&path, &OpenOptions::default()).unwrap();
        other.connection().execute_batch("BEGIN IMMEDIATE; INSERT INTO notes VALUES (2, 'other', 2)").unwrap();
        locked.send(()).unwrap();
        thread::sleep(Duration::from_secs(3));
        other.connection().execute_batch("COMMIT").unwrap();
    });
    is_locked.recv().unwrap();
    let start = Instant::now();
    b.merge(&pack);
    assert!(start.elapsed() > Duration::from_secs(2), "it had to wait");
    writer.join().unwrap();
    assert_eq!(b.rows("SELECT id FROM notes ORDER BY id"), ["[Integer(1)]", "[Integer(2)]"]);
}

#[test]
fn a_writer_that_never_ends_is_reported() {
    let b = Site::new(NOTES);
    let patience = Duration::from_millis(200);
    let mut impatient =
        Database::open(&b.path(), &OpenOptions { busy_timeout: patience, ..OpenOptions::default() }).unwrap();
    b.run("BEGIN IMMEDIATE");
    let error = impatient.merge(&b.id(), &[], &[], Some(Cursor::ZERO), &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, DatabaseError::Locked { .. }) && error.is_retryable());
    assert!(error.to_string().contains("test.db"));
}

#[test]
fn reading_sees_one_moment() {
    let a = Site::new(NOTES);
    let other = Connection::open(a.path()).unwrap();
    crsqlite::register(&other).unwrap();
    other.execute_batch("INSERT INTO notes VALUES (1, 'other', 1)").unwrap();
    let reader = SiteId::from_bytes(&[1; 16]).unwrap();
    let first = a.read(Cursor::ZERO, &reader);
    assert_eq!((first.version, first.end, first.packs[0].changes.len()), (1, Cursor::whole(1), 2));
    // A version that this connection has reserved but not used is not read: another may still use it.
    a.run("UPDATE notes SET body = 1");
    let second = a.read(first.end, &reader);
    assert_eq!((second.version, second.end), (1, Cursor::whole(1)));
    other.execute_batch("UPDATE notes SET body = 2").unwrap();
    let third = a.read(second.end, &reader);
    assert_eq!((third.version, third.packs[0].changes.len()), (2, 1));
}

#[test]
fn shapes_and_fingerprints() {
    let a = Site::new(NOTES);
    let b = Site::new(
        "CREATE TABLE plain (x); CREATE TABLE notes (id integer PRIMARY KEY NOT NULL, body, title text,
           size AS (length(body))); SELECT crsql_as_crr('notes');",
    );
    let tables = a.database.tables().unwrap();
    assert_eq!(tables.len(), 1);
    assert_eq!((tables[0].name.as_str(), tables[0].key_names()), ("notes", vec!["id".to_owned()]));
    let columns: Vec<(&str, &str)> =
        tables[0].columns.iter().map(|column| (column.name.as_str(), column.declared_type.as_str())).collect();
    assert_eq!(columns, [("title", "TEXT"), ("body", "")]);
    assert_eq!(a.database.schema_fingerprint().unwrap(), b.database.schema_fingerprint().unwrap());
    let c = Site::new(
        "CREATE TABLE notes (id INTEGER PRIMARY KEY NOT NULL, title BLOB, body); SELECT crsql_as_crr('notes');",
    );
    assert_ne!(a.database.schema_fingerprint().unwrap(), c.database.schema_fingerprint().unwrap());
    c.run("DROP TABLE notes");
    assert!(c.database.tables().unwrap().is_empty(), "the clock table of a dropped table is no table");
}

/// Records that no engine writes, as a damaged disk or a careless program leaves them.
#[test]
fn a_change_that_no_pack_can_hold_does_not_keep_the_others_and_is_told() {
    let a = Site::new(&format!(
        "{NOTES} INSERT INTO notes VALUES (1, 'one', 1), (2, 'two', 2); INSERT INTO notes VALUES (3, 'three', 3);"
    ));
    let reader = SiteId::from_bytes(&[1]).unwrap();
    let whole = a.read(Cursor::ZERO, &reader);
    assert_eq!((whole.left_out.count, a.database.unsendable().unwrap()), (0, LeftOut::default()));
    a.run(
        "UPDATE notes__crsql_clock SET site_id = 77 WHERE key = 1 AND col_name = 'title';
         UPDATE notes__crsql_clock SET col_version = -1 WHERE key = 2 AND col_name = 'body'",
    );
    let batch = a.read(Cursor::ZERO, &reader);
    assert_eq!(batch.packs.iter().map(|pack| pack.changes.len()).sum::<usize>(), 4);
    let told: Vec<_> =
        batch.left_out.first.iter().map(|unsent| (unsent.key.as_str(), unsent.column.as_str())).collect();
    assert_eq!((told, batch.left_out.count), (vec![("1", "title"), ("2", "body")], 2));
    assert_eq!(a.read(batch.end, &reader).left_out.count, 0, "once");
    // However packs are cut, and wherever reading breaks off, each is told once.
    let limits = ReadLimits { target_raw_bytes: 1, max_packs: 1 };
    let (mut at, mut count) = (Cursor::ZERO, 0);
    loop {
        let batch = a.database.read_packs(at, &reader, &limits).unwrap();
        (at, count) = (batch.end, count + batch.left_out.count);
        if !batch.more {
            break;
        }
    }
    assert_eq!(count, 2);
    let found = a.database.unsendable().unwrap();
    let keys = |left_out: &LeftOut| left_out.first.iter().map(|unsent| unsent.key.clone()).collect::<Vec<_>>();
    assert_eq!((found.count, keys(&found)), (2, keys(&batch.left_out)), "who looks for it finds the same");
}

#[test]
fn no_peer_can_use_up_the_versions() {
    let mut b = Site::new(NOTES);
    let a = Site::new(&format!("{NOTES} INSERT INTO notes VALUES (1, 'a', 1);"));
    let mut pack = a.read(Cursor::ZERO, &b.id()).packs.remove(0);
    pack.changes.iter_mut().for_each(|change| change.db_version = MAX_VERSION);
    pack.to = Cursor::whole(MAX_VERSION);
    b.merge(&pack);
    b.run("UPDATE notes SET title = 'b'");
    assert!(b.database.version().unwrap() < MAX_VERSION / 2);
    assert_eq!(b.read(Cursor::ZERO, &a.id()).packs.len(), 1, "what is written afterwards can be sent");
}

#[test]
fn a_full_disk_changes_nothing() {
    let a = Site::new(&format!("{NOTES} INSERT INTO notes VALUES (1, 'a', 1), (2, 'b', randomblob(1000000));"));
    let mut b = Site::new(NOTES);
    let pack = a.read(Cursor::ZERO, &b.id()).packs.remove(0);
    b.database.connection().pragma_update(None, "max_page_count", 40).unwrap();
    let error =
        b.database.merge(&pack.source, &pack.changes, &pack.tables, Some(pack.to), &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, DatabaseError::DiskFull { .. }), "{error:?}");
    assert_eq!(b.rows(ALL_NOTES), [""; 0]);
    assert_eq!(b.database.position(&a.id()).unwrap(), Cursor::ZERO);
    b.database.connection().pragma_update(None, "max_page_count", 1 << 20).unwrap();
    b.merge(&pack);
    assert_equal(&[&a, &b], ALL_NOTES);
}

#[test]
fn a_changed_key_brings_its_cells() {
    let (a, mut b, mut c) = (Site::new(NOTES), Site::new(NOTES), Site::new(NOTES));
    a.run("INSERT INTO notes VALUES (1, 'title', 'body')");
    b.pull(&a);
    c.pull(&b);
    a.run("UPDATE notes SET id = 2");
    b.pull(&a);
    c.pull(&b);
    assert_eq!(a.rows(ALL_NOTES), [r#"[Integer(2), Text("title"), Text("body")]"#]);
    assert_equal(&[&a, &b, &c], ALL_NOTES);
}
