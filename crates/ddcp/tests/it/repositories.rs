//! `init` and what it makes.

use std::fs;

use insta::assert_snapshot;

use crate::support::{World, assert_private};

#[test]
fn init_makes_the_database_and_its_state() {
    let world = World::new();
    let repo = world.repo("a");
    assert_snapshot!(repo.run(["init"]), @"
    status 0
    --- stdout
    repository DIR/a.db
    state      DIR/.ddcp/a.db
    ");
    assert!(repo.db().is_file());
    assert_snapshot!(repo.run(["status"]), @"
    status 0
    --- stdout
    database DIR/a.db
    version  0
    site id  SITE
    tables   none; SELECT crsql_as_crr('TABLE') makes one replicate
    address  none yet; `ddcp serve` gives it one
    serving  no
    ");
}

#[test]
fn init_again_changes_nothing() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.notes("b"));
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)").follows(&[&b]);
    let (status, config) = (a.ok(["status"]), fs::read_to_string(a.state("config.toml")).unwrap());
    assert_snapshot!(a.run(["init"]), @"
    status 0
    --- stdout
    repository DIR/a.db
    state      DIR/.ddcp/a.db
    ");
    assert_eq!(a.ok(["status"]), status);
    assert_eq!(fs::read_to_string(a.state("config.toml")).unwrap(), config);
}

#[test]
fn init_takes_an_existing_database_as_it_is() {
    let world = World::new();
    let repo = world.repo("old");
    let before = rusqlite::Connection::open(repo.db()).unwrap();
    before
        .execute_batch("CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, x); INSERT INTO t VALUES (1, 'kept');")
        .unwrap();
    drop(before);
    repo.ok(["init"]);
    assert_eq!(repo.rows("SELECT * FROM t"), ["1|kept"]);
    assert_eq!(repo.rows("PRAGMA journal_mode"), ["delete"], "the journal mode is its owner's business");
    // Rows from before become changes like all others.
    repo.ok(["shell", "SELECT crsql_as_crr('t')"]);
    assert_eq!(repo.rows("SELECT \"table\", cid, val FROM crsql_changes"), ["t|x|kept"]);
}

#[test]
fn the_state_is_its_owners_alone() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.notes("b"));
    b.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    a.follows(&[&b]).pull();
    assert_private(&world.path(".ddcp"));
}

#[test]
fn the_places_of_database_and_state_can_be_chosen() {
    let world = World::new();
    let repo = world.repo("a");
    assert_snapshot!(repo.run(["init", "--state-dir", "elsewhere/state"]), @"
    status 0
    --- stdout
    repository DIR/a.db
    state      DIR/elsewhere/state
    ");
    assert!(world.path("elsewhere/state/state.db").exists());
    assert!(!world.path(".ddcp").exists());
    repo.run(["status"]).assert_status(10);

    let mut command = world.command();
    command.env("DDCP_DB", "a.db").env("DDCP_STATE_DIR", "elsewhere/state").arg("status");
    assert!(command.status().unwrap().success());
}

#[test]
fn without_db_the_database_is_ddcp_db_in_the_current_folder() {
    let world = World::new();
    assert_snapshot!(world.run(["init"]), @"
    status 0
    --- stdout
    repository DIR/ddcp.db
    state      DIR/.ddcp/ddcp.db
    ");
    assert_snapshot!(world.run(["--db", "missing/a.db", "init"]), @"
    status 1
    --- stderr
    error: the database DIR/missing/a.db cannot be opened (there is no folder DIR/missing): check the path, its permissions and the disk
    ");
    assert_snapshot!(world.run(["--db", "/", "init"]), @"
    status 1
    --- stderr
    error: /: the path names no file
    ");
}

#[test]
fn a_folder_with_other_files_is_not_taken_as_state_directory() {
    let world = World::new();
    let folder = world.path("public");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("index.html"), "").unwrap();
    let before = std::fs::metadata(&folder).unwrap().permissions();
    let run = world.run(["--state-dir", "public", "--db", "a.db", "init"]).assert_status(2);
    assert!(run.stderr.contains("holds other files: it cannot be a state directory"), "{}", run.stderr);
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions(), before);
}
