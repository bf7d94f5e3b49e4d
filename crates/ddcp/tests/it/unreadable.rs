//! Tables whose keys are compared by a collation that only their application knows.

use serde_json::Value;

use crate::support::{Repo, World, assert_converged};

const APP: &str = "CREATE TABLE app (id TEXT NOT NULL COLLATE NOCASE PRIMARY KEY, v); SELECT crsql_as_crr('app');";

/// Gives the collation of the key another name. The application's connections know the one of the second name; this
/// program's, and those of tests, that of the first.
fn rename_collation(repo: &Repo, from: &str, to: &str) {
    repo.sql(&format!(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_master SET sql = replace(sql, 'COLLATE {from}', 'COLLATE {to}') WHERE name = 'app'"
    ));
}

/// What the application writes.
fn by_application(repo: &Repo, sql: &str) {
    rename_collation(repo, "mine", "NOCASE");
    repo.sql(sql);
    rename_collation(repo, "NOCASE", "mine");
}

/// As doctor says: the key without the collation.
fn mend(repo: &Repo) {
    rename_collation(repo, "mine", "NOCASE");
    repo.sql(
        "SELECT crsql_begin_alter('app'); CREATE TABLE other (id TEXT NOT NULL PRIMARY KEY, v);
         INSERT INTO other SELECT * FROM app; DROP TABLE app; ALTER TABLE other RENAME TO app;
         SELECT crsql_commit_alter('app')",
    );
}

#[test]
fn its_changes_are_named_and_arrive_once_it_can_be_read() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.repo("b"));
    a.sql(APP).sql("INSERT INTO note VALUES ('1', 'one', 1)");
    by_application(&a, "INSERT INTO app VALUES ('q', 1)");

    let run = world.run(["clone", "a.db", "b.db"]);
    assert!(matches!(run.status, Some(3 | 5)), "{run}");
    let lacks = "table app, key 'q', column v: its key is compared by a collation that only its application knows";
    assert!(run.stdout.contains(lacks) && run.stdout.contains("left out table app: "), "{run}");
    by_application(&a, "INSERT INTO app VALUES ('r', 2)");
    a.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    let run = b.run(["pull"]).assert_status(5);
    assert!(run.stdout.contains("it cannot send 1 change") && run.stdout.contains("key 'r'"), "{run}");
    assert_eq!(b.notes(), a.notes(), "nothing else is held up");
    assert_eq!(b.json(&["status"])["remotes"][0]["left_out"]["count"], 2);
    assert!(b.ok(["schema", "diff", "origin"]).contains("table app"));
    for command in [&["verify"][..], &["verify", "--check"]] {
        let run = b.run(command).assert_status(5);
        assert!(run.stdout.contains("origin: it has tables that it cannot read itself"), "{run}");
        assert!(run.stdout.contains("the rest is identical to origin"), "{run}");
    }
    assert_ne!(b.json(&["status"])["remotes"][0]["identical"], true);

    assert!(a.ok(["status"]).contains("unread   app; no peer gets what is in them"));
    assert_eq!(a.json(&["status"])["unreadable"], serde_json::json!(["app"]));
    let doctor = a.run(["doctor", "--offline", "--trouble"]).assert_status(5);
    assert!(doctor.stdout.contains("app replicates, but cannot be read here, so no peer gets"), "{doctor}");
    let bundle = a.run(["bundle", "create", "a.bundle"]).assert_status(5);
    assert!(bundle.stdout.contains(lacks), "{bundle}");
    a.run(["bundle", "create", "app.bundle", "--table", "app"]).assert_status(5);
    a.run(["bundle", "create", "note.bundle", "--table", "note"]).assert_status(0);

    mend(&a);
    a.run(["doctor", "--offline", "--trouble"]).assert_status(0);
    b.pull();
    b.ok(["schema", "adopt", "origin", "--yes"]);
    assert_eq!(b.rows("SELECT * FROM app ORDER BY id"), ["q|1", "r|2"]);
    assert_eq!(b.json(&["status"])["remotes"][0]["left_out"], Value::Null);
    b.ok(["verify"]);
    assert!(b.pull().contains("nothing new"), "it is read again once");
    assert_converged(&[&a, &b]);
}

#[test]
fn what_cannot_be_compared_is_not_identical() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    for repo in [&a, &b] {
        repo.sql(APP);
        rename_collation(repo, "NOCASE", "mine");
    }
    by_application(&a, "INSERT INTO app VALUES ('q', 1)");
    b.follows(&[&a]).run(["pull"]).assert_status(5);
    for command in [&["verify"][..], &["verify", "--check"]] {
        let run = b.run(command).assert_status(5);
        assert!(run.stdout.contains("a: app cannot be read here, and so not be compared"), "{run}");
        assert!(run.stdout.contains("the rest is identical to a"), "{run}");
    }
}

/// Whoever gets bundles only gets it in the first one that can hold it.
#[test]
fn a_bundle_without_it_moves_no_mark() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    b.sql("CREATE TABLE app (id TEXT NOT NULL PRIMARY KEY, v); SELECT crsql_as_crr('app')");
    a.sql(APP).follows(&[&b]).ok(["fetch"]);
    by_application(&a, "INSERT INTO app VALUES ('q', 1)");
    a.run(["bundle", "create", "1.bundle", "--since", "b", "--mark"]).assert_status(5);
    b.ok(["bundle", "fetch", "1.bundle"]);
    b.ok(["merge"]);
    mend(&a);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)").ok(["bundle", "create", "2.bundle", "--since", "b", "--mark"]);
    b.ok(["bundle", "fetch", "2.bundle"]);
    b.ok(["merge"]);
    assert_eq!(b.rows("SELECT * FROM app"), ["q|1"]);
    assert_converged(&[&a, &b]);
}
