//! What a peer sends means one thing or is not taken: changes that contradict themselves, keys that are other ones here,
//! versions that nobody comes to.

use std::fs;

use ddcp::changeset::{BundleHeader, BundleWriter, Change, Cursor, Pack, PackTable, SENTINEL, SiteId, Value};
use rusqlite::{Connection, params, types::ValueRef};

use crate::support::{Repo, World, assert_converged};

const MALLORY: [u8; 16] = [7; 16];

/// A change of the cell `body` of the note with this key.
fn cell(key: &str, value: &str, col_version: i64) -> Change {
    let pk = crsqlite::pack::pack([ValueRef::Text(key.as_bytes())]).unwrap();
    Change {
        table: "note".into(),
        pk: pk.into(),
        cid: "body".into(),
        val: Value::Text(value.into()),
        col_version,
        db_version: 1,
        site_id: SiteId::from_bytes(&MALLORY).unwrap(),
        cl: 1,
        seq: 0,
    }
}

/// A change of the note as a whole.
fn row(key: &str, cl: i64) -> Change {
    Change { cid: SENTINEL.into(), val: Value::Null, cl, ..cell(key, "", cl) }
}

fn pack(mut changes: Vec<Change>) -> Pack {
    (0..).zip(&mut changes).for_each(|(seq, change)| change.seq = seq);
    let tables = vec![PackTable { name: "note".into(), key_columns: vec!["id".into()] }];
    let source = SiteId::from_bytes(&MALLORY).unwrap();
    Pack { source, from: Cursor::ZERO, to: Cursor::whole(1), tables, changes }
}

/// Has `repo` fetch a bundle with these changes.
fn fetch(repo: &Repo, changes: Vec<Change>) -> crate::support::Run {
    let pack = pack(changes);
    let header = BundleHeader {
        source: pack.source,
        version: 1,
        from: Cursor::ZERO,
        schema: [0; 32],
        created: 0,
        tables: None,
        without: None,
        signature: None,
    };
    let mut writer = BundleWriter::new(Vec::new(), &header).unwrap();
    writer.add(&pack).unwrap();
    fs::write(repo.root().join("mallory.bundle"), writer.finish(pack.to).unwrap().0).unwrap();
    repo.run(["bundle", "fetch", "mallory.bundle"])
}

/// As [`fetch`], and merges.
fn take(repo: &Repo, changes: Vec<Change>) {
    fetch(repo, changes).assert_status(0);
    repo.run(["merge"]).assert_status(0);
}

fn waiting(repo: &Repo) -> String {
    repo.ok(["waiting", "list"])
}

#[test]
fn changes_that_contradict_themselves_are_refused_where_they_arrive() {
    let world = World::new();
    let a = world.notes("a");
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let wrong = [
        (Change { col_version: 9, ..row("1", 3) }, "two causal lengths"),
        (Change { val: Value::Integer(1), ..row("1", 2) }, "has a value"),
        (Change { cl: 2, ..cell("1", "x", 1) }, "has a value"),
        (Change { cl: 2, val: Value::Null, ..cell("1", "x", 1) }, "of a row that is deleted"),
        (Change { cl: 0, ..cell("1", "x", 1) }, "causal length is out of range"),
    ];
    for (change, why) in wrong {
        let column = change.cid.to_string();
        let run = fetch(&a, vec![cell("2", "fine", 1), change]).assert_status(1);
        assert!(run.stderr.contains(&format!("change 1 of the pack (table note, key '1', column {column})")), "{run}");
        assert!(run.stderr.contains(why) && run.stderr.contains("mallory.bundle"), "{why}: {run}");
    }
    a.run(["merge"]).assert_status(0);
    assert_eq!(a.notes(), ["1|one|1"]);
}

/// An earlier program may have taken them.
#[test]
fn what_lies_in_the_inbox_is_looked_at_before_it_is_merged() {
    let world = World::new();
    let a = world.notes("a");
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let state = Connection::open(a.state("state.db")).unwrap();
    let put = |changes| {
        let bytes = pack(changes).encode();
        let sql = "INSERT INTO inbox (site_id, from_version, from_seq, to_version, to_seq, changes, pack)
                   VALUES (?1, 0, 0, 1, ?2, 1, ?3)";
        state.execute(sql, params![MALLORY, i64::MAX, bytes]).unwrap();
    };
    put(vec![Change { cl: 2, ..cell("1", "x", 1) }]);
    let run = a.run(["merge"]).assert_status(1);
    assert!(
        run.stderr.contains("it sent a pack that cannot be used: change 0 of the pack (table note, key '1'"),
        "{run}"
    );
    put(vec![cell("2", "two", 1)]);
    a.ok(["merge"]);
    assert_eq!(a.notes(), ["1|one|1", "2|two|NULL"]);
}

const NUMBERED: &str =
    "CREATE TABLE note (id INTEGER PRIMARY KEY NOT NULL, body TEXT, stars INTEGER); SELECT crsql_as_crr('note')";

#[test]
fn a_key_of_another_type_is_the_key_of_another_row() {
    let world = World::new();
    let [a, b] = ["a", "b"].map(|name| world.repo(name));
    a.ok(["init"]);
    a.sql(NUMBERED).sql("INSERT INTO note VALUES (5, 'a', 1)");
    b.ok(["init"]);
    b.sql(crate::support::NOTE).sql("INSERT INTO note VALUES ('5', 'b', 1), ('x', 'b', 2)");
    a.follows(&[&b]);
    b.follows(&[&a]);
    let told = a.ok(["schema", "diff", "b"]);
    assert!(told.contains("column id is of type INTEGER here, of type TEXT there: rows wait whose keys"), "{told}");
    [&a, &b].iter().for_each(|repo| drop(repo.pull()));
    let own = |repo: &Repo| repo.rows("SELECT quote(id), body FROM note ORDER BY id");
    assert_eq!((own(&a), own(&b)), (vec!["5|a".to_owned()], vec!["'5'|b".into(), "'x'|b".into()]));
    for repo in [&a, &b] {
        assert!(waiting(repo).contains("another key"), "{}", waiting(repo));
    }
    b.sql("DELETE FROM note");
    a.sql("DELETE FROM note; INSERT INTO note VALUES (5, 'again', 1), (6, 'six', 1)");
    [&a, &b].iter().for_each(|repo| drop(repo.pull()));
    assert_eq!((own(&a), own(&b)), (vec!["5|again".to_owned(), "6|six".into()], Vec::<String>::new()));

    // Nobody is held up by it: a third that has the one key gets everything, and verifies.
    let c = world.repo("c");
    c.ok(["init"]);
    c.sql(NUMBERED);
    c.follows(&[&a, &b]).pull();
    a.sql("UPDATE note SET body = 'more'");
    c.ok(["verify", "a"]);
    assert_eq!((own(&c), a.changes()), (own(&a), c.changes()));
    c.run(["verify", "b"]);
}

#[test]
fn a_key_in_other_letters_waits_while_a_collation_takes_it_for_one_that_is_here() {
    let world = World::new();
    let [a, b] = ["a", "b"].map(|name| {
        let repo = world.repo(name);
        repo.ok(["init"]);
        repo.sql("CREATE TABLE note (id TEXT COLLATE NOCASE NOT NULL PRIMARY KEY, body TEXT, stars); SELECT crsql_as_crr('note')");
        repo
    });
    a.sql("INSERT INTO note VALUES ('Zoe', 'a', 1)");
    b.sql("INSERT INTO note VALUES ('zoe', 'b', 1); UPDATE note SET body = 'more'; INSERT INTO note VALUES ('Bo', 'b', 1)");
    a.follows(&[&b]).pull();
    assert_eq!(a.notes(), ["Bo|b|1", "Zoe|a|1"]);
    b.sql("DELETE FROM note WHERE id = 'zoe'");
    a.pull();
    assert_eq!(a.notes(), ["Bo|b|1", "Zoe|a|1"]);
    assert!(waiting(&a).contains("another key: a row is here"), "{}", waiting(&a));
    a.sql("DELETE FROM note WHERE id = 'Zoe'");
    a.ok(["merge"]);
    b.sql("INSERT INTO note VALUES ('zoe', 'again', 2)");
    a.pull();
    assert_eq!((a.notes(), waiting(&a)), (vec!["Bo|b|1".to_owned(), "zoe|again|2".into()], String::new()));
    // A row is given its name in other letters.
    b.sql("UPDATE note SET id = 'BO' WHERE id = 'Bo'");
    a.pull();
    assert_eq!((a.notes(), waiting(&a)), (vec!["BO|b|1".to_owned(), "zoe|again|2".into()], String::new()));
}

#[test]
fn versions_that_nobody_comes_to_are_put_aside_and_the_owner_has_the_last_word() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
    b.follows(&[&a]).pull();
    const FAR: i64 = 1 << 60;
    take(&b, vec![cell("1", "poison", FAR), row("2", FAR), cell("3", "fine", 1 << 40)]);
    assert_eq!(b.notes(), ["1|one|1", "2|two|2", "3|fine|NULL"]);
    let shown = waiting(&b);
    let mallory = format!("site {}", "07".repeat(16));
    assert!(
        shown.lines().all(|line| line.starts_with(&mallory) && line.contains("far above what is recorded")),
        "{shown}"
    );
    assert_eq!(shown.lines().count(), 2, "{shown}");
    let doctor = b.run(["doctor", "--offline"]);
    let is_named = |line: &str| line.contains(&mallory) && line.contains("far above what is recorded");
    assert!(doctor.stdout.lines().any(is_named), "{doctor}");
    a.sql("UPDATE note SET body = 'corrected'");
    b.pull();
    assert_eq!(b.notes(), ["1|corrected|1", "2|corrected|2", "3|fine|NULL"]);
    let again = world.repo("c");
    world.run(["clone", "b.db", "c.db"]).assert_status(0);
    assert_converged(&[&b, &again]);
}

#[test]
fn what_cannot_be_sent_is_in_the_status() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
    assert!(!a.ok(["status"]).contains("unsent"));
    a.sql("UPDATE note__crsql_clock SET col_version = 1 << 60 WHERE key = 1 AND col_name = 'body'");
    a.sql("UPDATE note SET body = 'unheard of' WHERE id = '1'");
    let shown = a.ok(["status"]);
    assert!(shown.contains("unsent   1 change that cannot be sent"), "{shown}");
    assert!(shown.contains("table note, key '1', column body: its version is higher than any that is sent"), "{shown}");
    let unsent = &a.json(&["status"])["unsent"];
    assert_eq!((&unsent["count"], &unsent["first"][0]["column"]), (&1.into(), &"body".into()), "{unsent:#}");
    b.follows(&[&a]).run(["pull"]);
    assert_eq!(b.notes(), ["1|NULL|1", "2|two|2"]);
    // What was written since all could be sent is looked at, and what can be sent again is not told.
    a.sql("DELETE FROM note WHERE id = '1'; INSERT INTO note VALUES ('1', 'heard of', 1)");
    for n in 0..120 {
        a.sql(&format!("UPDATE note SET stars = {n}"));
    }
    assert!(!a.ok(["status"]).contains("unsent"));
    a.sql("UPDATE note__crsql_clock SET col_version = 1 << 60 WHERE key = 2 AND col_name = 'body'");
    a.sql("UPDATE note SET body = 'unheard of' WHERE id = '2'");
    assert!(a.ok(["status"]).contains("unsent   1 change"), "{}", a.ok(["status"]));
}
