//! `ddcp doctor`: each thing that can be wrong is found, and what mends it is said.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use insta::assert_snapshot;
use rusqlite::Connection;
use serde_json::Value;

use crate::{
    serve::Daemon,
    support::{Repo, World, with_mounts},
};

/// What the doctor finds wrong: `LEVEL ABOUT MESSAGE -> MEND`.
fn trouble(repo: &Repo) -> Vec<String> {
    findings(repo, &["--trouble"], 5)
}

fn findings(repo: &Repo, options: &[&str], status: i32) -> Vec<String> {
    let run = repo.run(["doctor", "--format", "json"].iter().chain(options)).assert_status(status);
    let findings: Vec<Value> = serde_json::from_str(&run.stdout).unwrap();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let line =
        |f: &Value| format!("{} {} {} -> {}", text(f, "level"), text(f, "about"), text(f, "message"), text(f, "mend"));
    findings.iter().map(line).collect()
}

/// Fails unless there is exactly one trouble, with all of `parts` in it.
fn assert_one(repo: &Repo, parts: &[&str]) {
    let found = trouble(repo);
    assert_eq!(found.len(), 1, "{found:#?}");
    for part in parts {
        assert!(found[0].contains(part), "{part}: {found:#?}");
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn all_is_well() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    b.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    a.follows(&[&b]).pull();
    let run = a.run(["doctor"]).assert_status(0);
    let shown: String =
        run.stdout.lines().filter(|line| !line.contains("free on the disk")).map(|l| format!("{l}\n")).collect();
    assert_snapshot!(shown.replace(world.path("").to_str().unwrap(), "DIR/"), @"
    ok       database  DIR/a.db opens and is sound
    ok       engine    the metadata is that of CR-SQLite 0.16.3
    ok       database  its journal mode is wal
    ok       table     note replicates
    ok       config    config.toml is well-formed
    ok       state     state.db opens and is sound
    ok       files     the state directory is its owner's alone
    ok       clock     this machine's clock is later than all that happened here
    note     serve     `ddcp serve` does not run: peers cannot fetch from here
                       mend: `ddcp --db a.db serve`
    ok       remote    b answers, at version 1, with the same tables
    ");
    a.run(["doctor", "--thorough", "--offline"]).assert_status(0);
    assert_eq!(a.run(["doctor", "--trouble"]).stdout, "");
}

#[test]
fn it_changes_nothing() {
    let world = World::new();
    let repo = world.notes("a");
    let before = (fs::read(repo.db()).unwrap(), fs::read(repo.state("state.db")).unwrap(), repo.ok(["log"]));
    repo.run(["doctor"]).assert_status(0);
    assert_eq!((fs::read(repo.db()).unwrap(), fs::read(repo.state("state.db")).unwrap(), repo.ok(["log"])), before);
}

#[test]
fn databases_that_are_missing_or_damaged() {
    let world = World::new();
    let repo = world.repo("a");
    let found = trouble(&repo);
    assert!(found[0].starts_with("error database there is no database at"), "{found:#?}");
    assert!(found[0].ends_with("init`"), "{found:#?}");
    assert!(found[1].starts_with("error state there is no state directory"), "{found:#?}");

    let repo = world.notes("b");
    repo.sql(
        "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 200)
              INSERT INTO note SELECT i, hex(zeroblob(500)), 1 FROM n; PRAGMA wal_checkpoint(TRUNCATE)",
    );
    let mut bytes = fs::read(repo.db()).unwrap();
    let end = bytes.len();
    bytes[end - 60_000..end - 20_000].fill(0xab);
    fs::write(repo.db(), bytes).unwrap();
    let found = findings(&repo, &["--trouble", "--offline"], 5);
    assert!(found[0].starts_with("error database") && found[0].contains(".recover`"), "{found:#?}");
}

#[test]
fn a_file_that_is_no_repository() {
    let world = World::new();
    let repo = world.notes("a");
    fs::write(repo.db(), "no database, though it is long enough to be taken for one".repeat(20)).unwrap();
    let found = findings(&repo, &["--trouble", "--offline"], 5);
    assert!(found[0].contains("is not a SQLite database"), "{found:#?}");
}

#[test]
fn a_journal_mode_that_locks_applications_out() {
    let world = World::new();
    let repo = world.notes("a");
    repo.sql("PRAGMA journal_mode = delete");
    assert_one(&repo, &["warning database", "journal mode is delete", "PRAGMA journal_mode = wal"]);
}

#[test]
fn tables() {
    let world = World::new();
    let repo = world.repo("a");
    repo.ok(["init"]);
    assert_one(&repo, &["warning table no table replicates", "crsql_as_crr"]);
    repo.sql("CREATE TABLE n (id INTEGER NOT NULL PRIMARY KEY); SELECT crsql_as_crr('n')")
        .sql("CREATE TABLE local (id TEXT NOT NULL PRIMARY KEY); CREATE TABLE never (a UNIQUE)");
    let all = findings(&repo, &["--offline"], 0);
    let notes: Vec<&String> = all.iter().filter(|line| line.starts_with("note table")).collect();
    assert_eq!(notes.len(), 3, "{notes:#?}");
    assert!(
        notes[0]
            .contains("local does not replicate, and could -> `ddcp --db a.db shell \"SELECT crsql_as_crr('local')\"`"),
        "{notes:#?}"
    );
    assert!(notes[1].contains("never does not replicate, and cannot"), "{notes:#?}");
    assert!(notes[2].contains("insert without a value for id"), "{notes:#?}");
    repo.sql("DROP TRIGGER n__crsql_dtrig");
    assert_one(&repo, &["error table n has lost triggers", "crsql_commit_alter('n')"]);
}

/// The command that is named does mend it.
#[test]
fn what_is_left_of_a_dropped_table() {
    let world = World::new();
    let repo = world.notes("a");
    repo.sql("CREATE TABLE gone (id TEXT NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('gone'); DROP TABLE gone");
    assert_one(&repo, &["warning table gone was dropped", "DROP TABLE"]);
    repo.ok(["shell", "DROP TABLE \"gone__crsql_clock\"; DROP TABLE \"gone__crsql_pks\""]);
    repo.run(["doctor"]).assert_status(0);
}

#[test]
fn an_extension_that_cannot_be_loaded() {
    let world = World::new();
    let repo = world.notes("a");
    fs::write(world.path("none.so"), "no library").unwrap();
    let run = repo.run(["--extension", "none.so", "doctor", "--trouble", "--offline"]).assert_status(5);
    assert!(run.stdout.starts_with("error    database  the extension none.so cannot be loaded"), "{}", run.stdout);
    assert!(run.stdout.contains("mend: `ddcp extension`"), "{}", run.stdout);
}

#[test]
fn settings_and_state() {
    let world = World::new();
    let repo = world.notes("a");
    fs::write(repo.state("config.toml"), "acess = 1").unwrap();
    let found = findings(&repo, &["--trouble", "--offline"], 5);
    assert!(found.iter().any(|line| line.contains("error config") && line.contains("docs/config.md")), "{found:#?}");

    let repo = world.notes("b");
    Connection::open(repo.state("state.db")).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let found = findings(&repo, &["--trouble", "--offline"], 5);
    assert!(found[0].contains("error state") && found[0].contains("its layout is 99"), "{found:#?}");
}

#[test]
fn permissions() {
    let world = World::new();
    let repo = world.notes("a");
    let folder = repo.state("");
    mode(&folder, 0o755);
    let at = folder.to_str().unwrap().trim_end_matches('/').to_owned();
    assert_one(&repo, &["error files", "is open to other users", &format!("`chmod 700 {at}`")]);
    mode(&folder, 0o700);
    mode(&repo.state("config.toml"), 0o644);
    assert_one(&repo, &["error files", "config.toml is open", "`chmod 600"]);
    mode(&repo.state("config.toml"), 0o600);
    repo.run(["doctor"]).assert_status(0);
}

#[test]
fn little_space() {
    let world = World::new();
    let script = "mkdir small && mount -t tmpfs -o size=4m none small && cd small && $DDCP --db a.db init >init.txt
        $DDCP --db a.db doctor --trouble --offline";
    let Some(run) = with_mounts(&world, script) else { return };
    let run = run.assert_status(5);
    assert!(run.stdout.contains("warning  disk      only ") && run.stdout.contains("mend: free some space"), "{run}");
}

#[test]
fn a_clock_that_went_back() {
    let world = World::new();
    let repo = world.notes("a");
    let state = Connection::open(repo.state("state.db")).unwrap();
    let event = r#"{"event":"fetched","changes":1,"bytes":1}"#;
    state.execute("INSERT INTO log (at, took, remote, event) VALUES (4102444800000, 1, 'b', ?)", [event]).unwrap();
    drop(state);
    assert_one(&repo, &["warning clock", "something happened here at 2100-01-01", "timedatectl"]);
}

#[test]
fn leftovers_and_what_waits() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    b.sql("CREATE TABLE more (id TEXT NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('more'); INSERT INTO more VALUES (1, 2)");
    a.follows(&[&b]).ok(["fetch"]);
    a.ok(["merge"]);
    let found = trouble(&a);
    assert!(found[0].contains("warning inbox b: 1 changes wait: table more: there is no such table"), "{found:#?}");
    assert!(found[1].contains("warning remote b answers, but its tables"), "{found:#?}");

    fs::create_dir_all(a.state("parts/00000000000000000000000000000000")).unwrap();
    let all = findings(&a, &["--offline"], 5);
    assert!(all.iter().any(|line| line.contains("note leftovers") && line.contains("-> `rm -r")), "{all:#?}");
}

#[test]
fn remotes() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.ok(["remote", "add", "gone", "gone.db"]);
    assert_one(&a, &["error remote gone: there is no database at", "ddcp --db a.db remote"]);
    a.ok(["remote", "remove", "gone"]);
    a.ok(["remote", "add", "self", "alias.db"]);
    symlink(a.db(), world.path("alias.db")).unwrap();
    assert_one(&a, &["error remote self is this repository itself", "`ddcp --db a.db remote remove self`"]);
    a.ok(["remote", "remove", "self"]);
    b.sql("ALTER TABLE note ADD COLUMN more");
    a.follows(&[&b]);
    assert_one(&a, &["warning remote b answers, but its tables"]);
}

#[test]
fn a_daemon_without_a_network() {
    let world = World::new();
    let repo = world.notes("a");
    let _serve = Daemon::start(&world, &repo);
    let found = findings(&repo, &[], 5);
    assert!(found.iter().any(|line| line.contains("ok serve")), "{found:#?}");
    let network: Vec<&String> = found.iter().filter(|line| line.contains(" network ")).collect();
    assert_eq!(network.len(), 1, "{network:#?}");
    assert!(network[0].starts_with("error network") && network[0].contains("not connected"), "{network:#?}");
    assert!(network[0].contains("check this machine's network"), "{network:#?}");
}
