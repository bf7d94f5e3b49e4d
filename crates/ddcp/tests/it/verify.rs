//! `ddcp verify`: what vanished behind the engine's back is found and mended.

use std::{collections::BTreeMap, fs, path::Path};

use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::{
    serve::Daemon,
    support::{NOTE, Repo, World, assert_converged},
};

/// Two repositories that follow each other and have the same, of which each wrote a part.
fn pair(world: &World) -> [Repo; 2] {
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'from a', 1), ('2', 'from a', 2), ('3', 'from a', 3)");
    b.sql("INSERT INTO note VALUES ('4', 'from b', 4), ('5', 'from b', 5)");
    a.follows(&[&b]);
    b.follows(&[&a]);
    settle(&a, &b);
    [a, b]
}

fn settle(a: &Repo, b: &Repo) {
    for repo in [a, b, a] {
        repo.pull();
    }
}

fn identical(repo: &Repo) -> Value {
    repo.json(&["status"])["remotes"][0]["identical"].clone()
}

#[test]
fn equal_databases_are_told_so() {
    let world = World::new();
    let [a, b] = pair(&world);
    assert_eq!(identical(&a), Value::Null, "nobody has compared them yet");
    assert_snapshot!(a.run(["verify", "b"]), @"
    status 0
    --- stdout
    identical to b, at its version 2
    ");
    assert_eq!(identical(&a), true);
    assert!(a.ok(["status"]).contains("\ndigest   identical to b\n"));
    // Equal writes of both, whose author each takes for itself.
    for repo in [&a, &b] {
        repo.sql("UPDATE note SET body = 'same' WHERE id = '1'");
    }
    assert_eq!(identical(&a), Value::Null, "what was told is not of what there is now");
    settle(&a, &b);
    a.run(["verify"]).assert_status(0);
    assert_eq!(identical(&a), true);
}

#[test]
fn a_record_that_vanished_is_fetched_again() {
    let world = World::new();
    let [a, b] = pair(&world);
    a.sql("DELETE FROM note__crsql_clock WHERE col_name = 'body' AND key = (SELECT __crsql_key FROM note__crsql_pks WHERE id = '4')");
    assert_eq!(a.pull(), "b: nothing new\nb: nothing to merge\n", "versions do not tell");
    assert_snapshot!(a.run(["verify", "b", "--check"]), @"
    status 5
    --- stdout
    b: differs in note (1 range of keys)
      note '4' is not the same
    b: `ddcp verify b` fetches again what is missing here
    ");
    assert_snapshot!(a.run(["verify", "b"]), @"
    status 0
    --- stdout
    b: differed in note (1 range of keys)
      note '4' is not the same
    b: mended 1 record of note
    identical to b, at its version 2
    ");
    assert_converged(&[&a, &b]);
    assert_eq!(identical(&a), true);
}

/// A peer does not send back what this repository wrote, unless it is asked for everything.
#[test]
fn own_writes_that_vanished_come_back() {
    let world = World::new();
    let [a, b] = pair(&world);
    a.sql(
        "SELECT crsql_internal_sync_bit(1); DELETE FROM note WHERE id = '2'; SELECT crsql_internal_sync_bit(0);
         DELETE FROM note__crsql_clock WHERE key = (SELECT __crsql_key FROM note__crsql_pks WHERE id = '2');",
    );
    assert_eq!(a.notes().len(), 4);
    let report = a.json(&["verify", "b"]);
    assert_eq!(report[0]["done"]["mended"]["note"], 2, "{report}");
    assert_eq!(a.notes().len(), 5);
    assert_converged(&[&a, &b]);
    settle(&a, &b);
    b.run(["verify"]).assert_status(0);
    let log = a.ok(["log"]);
    assert!(log.contains("merged"), "{log}");
}

#[test]
fn what_the_remote_lacks_is_its_to_fetch() {
    let world = World::new();
    let [a, b] = pair(&world);
    a.sql("INSERT INTO note VALUES ('6', 'new', 6)");
    assert_snapshot!(a.run(["verify", "b"]), @"
    status 5
    --- stdout
    b: differs in note (1 range of keys)
      note '6' is here only
    b: nothing is missing here; it has yet to pull from this repository
    ");
    let log = a.ok(["log", "b"]);
    assert_eq!(log.lines().filter(|line| line.contains(" fetched ")).count(), 1, "nothing was fetched again: {log}");
    assert!(a.ok(["status"]).contains("\nahead    it has merged up to version "));
    b.pull();
    a.run(["verify", "b"]).assert_status(0);
}

/// The other side's damage cannot be mended from here.
#[test]
fn what_vanished_at_the_remote_is_its_to_mend() {
    let world = World::new();
    let [a, b] = pair(&world);
    b.sql("DELETE FROM note__crsql_clock WHERE col_name = 'body'");
    let run = a.run(["verify", "b"]).assert_status(5);
    assert!(a.ok(["status"]).contains("\ndigest   differs; `ddcp verify b` shows where\n"));
    assert!(run.stdout.ends_with("b: nothing is missing here; have `ddcp verify` run there\n"), "{}", run.stdout);
    b.run(["verify", "a"]).assert_status(0);
    a.run(["verify", "b"]).assert_status(0);
    assert_converged(&[&a, &b]);
}

#[test]
fn other_tables_cannot_be_compared() {
    let world = World::new();
    let [a, b] = pair(&world);
    b.sql("CREATE TABLE more (id TEXT NOT NULL PRIMARY KEY); SELECT crsql_as_crr('more')");
    assert_snapshot!(a.run(["verify", "b"]), @"
    status 1
    --- stderr
    error: b: the tables of `b` are not those of this repository, so the two cannot be compared
    hint: `ddcp schema diff b` shows what differs
    ");
}

#[test]
fn the_daemon_verifies_too_and_the_cache_may_vanish() {
    let world = World::new();
    let [a, b] = pair(&world);
    let _serve = Daemon::start(&world, &a);
    a.run(["verify", "b"]).assert_status(0);
    a.sql("DELETE FROM note__crsql_clock WHERE col_name = 'stars'");
    a.run(["verify", "b"]).assert_status(0);
    assert_converged(&[&a, &b]);
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(a.state(&format!("digest.db{end}")));
    }
    assert_eq!(identical(&a), Value::Null);
    a.run(["verify", "b"]).assert_status(0);
    assert_eq!(identical(&a), true);
    std::fs::write(b.state("digest.db"), "no database at all").unwrap();
    b.run(["verify", "a"]).assert_status(0);
}

#[test]
fn nothing_to_compare_with() {
    let world = World::new();
    let repo = world.notes("a");
    repo.ok(["remote", "add", "gone", "gone.db"]);
    repo.run(["verify"]).assert_status(4);
    let other = world.repo("empty");
    other.ok(["init"]);
    other.sql(NOTE);
    repo.ok(["remote", "set-address", "gone", "empty.db"]);
    repo.run(["verify"]).assert_status(0);
}

/// Every file below `folder` but what connections share in memory; an empty log is none.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut contents = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.display().to_string();
        if entry.is_dir() {
            contents.extend(self::contents(&entry));
        } else if entry.is_file() && !name.ends_with("-shm") {
            contents.insert(name, fs::read(&entry).unwrap());
        }
    }
    contents.retain(|name, bytes| !(name.ends_with("-wal") && bytes.is_empty()));
    contents
}

#[test]
fn checking_writes_nothing_and_merges_nothing() {
    let world = World::new();
    let [a, b] = pair(&world);
    b.sql("INSERT INTO note VALUES ('6', 'new', 6)");
    let before = contents(a.root());
    let run = a.run(["verify", "b", "--check"]);
    assert_snapshot!(run, @"
    status 5
    --- stdout
    b: differs in note (1 range of keys)
      note '6' is there only
    b: it is at version 3, and merged here up to 2: `ddcp pull b`
    ");
    assert!(contents(a.root()) == before, "a file was written");
    // Also what was fetched, and a log that was left behind, stay as they are.
    a.ok(["fetch"]);
    let open = a.connection();
    open.execute_batch("PRAGMA wal_autocheckpoint = 0; UPDATE note SET stars = 7 WHERE id = '1'").unwrap();
    let copy = a.copied(&world.path("elsewhere"));
    drop(open);
    let before = contents(copy.root());
    assert!(before.keys().any(|name| name.ends_with("a.db-wal")), "{:?}", before.keys());
    copy.run(["verify", "b", "--check"]).assert_status(5);
    assert!(contents(copy.root()) == before, "a file was written");
    let served = contents(a.root());
    let _serve = Daemon::start(&world, &a);
    a.run(["verify", "b", "--check"]).assert_status(5);
    assert_eq!(contents(a.root()).get(&b.db().display().to_string()), served.get(&b.db().display().to_string()));
    assert!(a.notes().iter().all(|note| !note.starts_with('6')), "it was merged");
}

#[test]
fn each_row_that_differs_is_named_with_what_each_side_has() {
    let world = World::new();
    let [a, b] = pair(&world);
    let forget = |id: &str| {
        format!(
            "SELECT crsql_internal_sync_bit(1); DELETE FROM note WHERE id = '{id}'; SELECT crsql_internal_sync_bit(0);
             DELETE FROM note__crsql_clock WHERE key = (SELECT __crsql_key FROM note__crsql_pks WHERE id = '{id}');"
        )
    };
    a.sql(&forget("1"));
    b.sql(&forget("2"));
    a.sql("DELETE FROM note WHERE id = '3'; INSERT INTO note VALUES (CAST(x'ff1b' AS TEXT), 'odd', 1)");
    b.sql("DELETE FROM note WHERE id = '4'");
    let run = a.run(["verify", "b", "--check"]).assert_status(5);
    for line in [
        "  note '1' is there only",
        "  note '2' is here only",
        "  note '3' is there, and was deleted here",
        "  note '4' is here, and was deleted there",
        "  note CAST(x'ff1b' AS TEXT) is here only",
    ] {
        assert!(run.stdout.lines().any(|found| found == line), "{line}: {run}");
    }
    let report = a.run(["verify", "b", "--check", "--format", "json"]).assert_status(5);
    let report: Value = serde_json::from_str(&report.stdout).unwrap();
    let left = &report[0]["done"]["left"];
    let row = json!({"table": "note", "key": "'3'", "here": "deleted", "there": "present"});
    assert!(left["rows"].as_array().unwrap().contains(&row), "{left}");
    assert_eq!((&left["more_rows"], &left["untold_ranges"]), (&json!(0), &json!(0)));
    assert_eq!((&report[0]["done"]["ahead"], &report[0]["done"]["merged"]), (&json!(false), &json!(2)));
}

#[test]
fn of_many_rows_the_first_are_named_and_the_others_counted() {
    let world = World::new();
    let [a, b] = pair(&world);
    a.sql(
        "WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
         INSERT INTO note SELECT i, 'many', i FROM n",
    );
    let run = a.run(["verify", "b"]).assert_status(5);
    assert_eq!(run.stdout.lines().filter(|line| line.ends_with("is here only")).count(), 20, "{run}");
    assert!(run.stdout.contains("\n  and 2881 more rows\n"), "{run}");
    assert!(run.stdout.ends_with("it has yet to pull from this repository\n"), "{run}");
    b.pull();
    a.run(["verify", "b"]).assert_status(0);
}

/// What differs because the remote has yet to pull does not hide what has vanished here.
#[test]
fn what_vanished_is_mended_though_the_remote_has_yet_to_pull() {
    let world = World::new();
    let [a, b] = pair(&world);
    a.sql("INSERT INTO note VALUES ('6', 'new', 6)");
    a.sql("DELETE FROM note__crsql_clock WHERE col_name = 'body' AND key = (SELECT __crsql_key FROM note__crsql_pks WHERE id = '4')");
    let run = a.run(["verify", "b"]).assert_status(5);
    assert!(run.stdout.contains("b: mended 1 record of note\n"), "{run}");
    assert!(
        run.stdout.ends_with(
            "  note '6' is here only\nb: nothing is missing here; it has yet to pull from this repository\n"
        ),
        "{run}"
    );
    b.pull();
    assert_converged(&[&a, &b]);
}

/// A digest is of the moment when it was made: what is fetched or merged since makes no two repositories differ.
#[test]
fn a_digest_is_compared_only_with_what_it_was_made_for() {
    let world = World::new();
    let [a, b] = pair(&world);
    a.run(["verify", "b"]).assert_status(0);
    b.sql("INSERT INTO note VALUES ('6', 'of b', 6)");
    a.run(["verify", "b"]).assert_status(0);
    assert_eq!(identical(&a), true);
    a.sql("INSERT INTO note VALUES ('7', 'of a', 7)");
    a.run(["verify", "b"]).assert_status(5);
    assert_eq!(identical(&a), Value::Null, "b has yet to pull");
    b.pull();
    a.pull();
    assert_ne!(identical(&a), false);
    a.run(["verify", "b"]).assert_status(0);
    assert_eq!(identical(&a), true);
    b.sql("INSERT INTO note VALUES ('8', 'newer', 8)");
    a.ok(["fetch"]);
    assert_eq!(identical(&a), Value::Null, "fetched, not merged");
    a.ok(["merge"]);
    assert_ne!(identical(&a), false);
}
