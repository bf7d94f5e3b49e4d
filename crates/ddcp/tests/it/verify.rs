//! `ddcp verify`: what vanished behind the engine's back is found and mended.

use insta::assert_snapshot;
use serde_json::Value;

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
    b: `ddcp verify b` fetches again what is missing here
    ");
    assert!(a.ok(["status"]).contains("\ndigest   differs; `ddcp verify b` shows where\n"));
    assert_snapshot!(a.run(["verify", "b"]), @"
    status 0
    --- stdout
    b: differed in note (1 range of keys)
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
    b: differed in note (1 range of keys)
    b: differs in note (1 range of keys)
    b: nothing is missing here; it has yet to pull from this repository
    ");
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
