//! One file is one repository, whatever it is called: by links, hard links and paths through linked folders.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use insta::assert_snapshot;

use crate::{
    serve::Daemon,
    support::{Repo, Run, World, assert_converged},
};

const SITE: &str = "SELECT group_concat(hex(site_id)) FROM crsql_site_id";

/// Runs the program on the database `db`.
fn on(world: &World, db: &str, arguments: &[&str]) -> Run {
    world.run([&["--db", db], arguments].concat())
}

fn ok(world: &World, db: &str, arguments: &[&str]) -> String {
    on(world, db, arguments).assert_status(0).stdout
}

/// The folder `name`, in which repositories can be made.
fn folder(world: &World, name: &str) -> PathBuf {
    let folder = world.path(name);
    fs::create_dir(&folder).unwrap();
    folder
}

/// The repository `real/a.db`, which is also `links/l.db`, `folder/a.db` and `hard.db`.
fn with_many_names(world: &World) -> (Repo, [&'static str; 5]) {
    let a = world.notes("a");
    let real = folder(world, "real");
    folder(world, "links");
    fs::rename(a.db(), real.join("a.db")).unwrap();
    fs::rename(world.path(".ddcp"), real.join(".ddcp")).unwrap();
    symlink("../real/a.db", world.path("links/l.db")).unwrap();
    symlink("l.db", world.path("links/twice.db")).unwrap();
    symlink("real", world.path("folder")).unwrap();
    let a = a.at(&real);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    ok(world, "real/a.db", &["init"]);
    fs::hard_link(a.db(), world.path("hard.db")).unwrap();
    (a, ["links/l.db", "links/twice.db", "folder/a.db", "folder/../real/a.db", "hard.db"])
}

#[test]
fn a_database_is_one_repository_by_every_name() {
    let world = World::new();
    let (a, names) = with_many_names(&world);
    let site = a.rows(SITE);
    for name in names {
        let made = ok(&world, name, &["init"]);
        let expected = format!("repository {}\nstate      {}\n", a.db().display(), a.state("").display());
        assert_eq!(made, expected.replace("a.db/\n", "a.db\n"), "{name}");
        for command in [&["merge"][..], &["status"], &["shell", "UPDATE note SET stars = stars + 1"]] {
            let run = on(&world, name, command).assert_status(0);
            assert!(!run.stderr.contains("WARN"), "{name}: {run}");
        }
        ok(&world, "real/a.db", &["pull"]);
    }
    assert_eq!(a.rows(SITE), site);
    assert_eq!(a.notes(), ["1|one|6"]);
    assert_eq!(fs::read_dir(world.path("links")).unwrap().count(), 2, "nothing is made beside a link");
    assert!(!world.path(".ddcp").exists());
    a.assert_sound();
}

#[test]
fn a_daemon_is_reached_by_every_name_of_its_database() {
    let world = World::new();
    let (a, names) = with_many_names(&world);
    let mut command = world.command();
    command.args(["--db", "links/l.db", "serve"]);
    let _daemon = Daemon::spawn(&world, command);
    for name in names {
        assert!(ok(&world, name, &["status"]).contains("serving  yes\n"), "{name}");
    }
    let second = on(&world, "folder/a.db", &["serve"]).assert_status(11);
    assert!(second.stderr.contains(a.db().to_str().unwrap()), "{second}");
}

#[test]
fn a_state_directory_beside_a_link_is_that_of_the_file() {
    let world = World::new();
    let (a, names) = with_many_names(&world);
    ok(&world, "real/a.db", &["remote", "add", "b", "b.db"]);
    // As an application finds it whose database was moved to another disk, with a link in its place.
    fs::rename(world.path("real/.ddcp"), world.path("links/.ddcp")).unwrap();
    fs::rename(world.path("links/.ddcp/a.db"), world.path("links/.ddcp/l.db")).unwrap();
    a.sql("DELETE FROM crsql_master WHERE key = 'ddcp_state'");
    let site = a.rows(SITE);
    for name in names.iter().chain(&["real/a.db"]) {
        ok(&world, name, &["merge"]);
        assert_eq!(ok(&world, name, &["remote", "list"]).lines().count(), 1, "{name}");
    }
    assert_eq!(a.rows(SITE), site);
    assert!(!world.path("real/.ddcp").exists());
}

#[test]
fn a_second_state_directory_of_a_file_is_refused() {
    let world = World::new();
    let a = world.notes("a");
    ok(&world, "a.db", &["init"]);
    let site = a.rows(SITE);
    for command in ["init", "serve", "status", "pull"] {
        on(&world, "a.db", &["--state-dir", "second", command]).assert_status(10);
    }
    assert!(!world.path("second").exists());
    assert_snapshot!(on(&world, "a.db", &["--state-dir", "second", "init"]), @"
    status 10
    --- stderr
    error: the state of DIR/a.db is in DIR/.ddcp/a.db: one file is one repository
    hint: `ddcp --db DIR/a.db --state-dir DIR/.ddcp/a.db …` uses it; to have another one, remove that
    ");
    assert_eq!(a.rows(SITE), site);
    assert_eq!(ok(&world, "a.db", &["merge"]), "");
}

#[test]
fn the_state_directory_of_another_database_is_refused() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.repo("b"));
    ok(&world, "a.db", &["init"]);
    let site = a.rows(SITE);
    rusqlite::Connection::open(b.db()).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    for command in ["init", "serve", "pull"] {
        on(&world, "b.db", &["--state-dir", ".ddcp/a.db", command]).assert_status(2);
    }
    assert_snapshot!(on(&world, "b.db", &["--state-dir", ".ddcp/a.db", "pull"]), @"
    status 2
    --- stderr
    error: DIR/.ddcp/a.db is the state of DIR/a.db, not of this database
    hint: name another state directory, or none
    ");
    ok(&world, "a.db", &["pull"]);
    assert_eq!(a.rows(SITE), site, "it is still its own");
}

#[test]
fn a_name_that_is_in_use_beside_the_known_one_is_refused() {
    let world = World::new();
    let a = world.notes("a");
    ok(&world, "a.db", &["init"]);
    a.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    fs::hard_link(a.db(), world.path("b.db")).unwrap();
    let site = a.rows(SITE);
    let b = world.repo("b");
    let application = b.connection();
    application.execute_batch("INSERT INTO note VALUES ('1', 'by its other name', 1)").unwrap();
    assert_snapshot!(b.run(["pull"]), @"
    status 2
    --- stderr
    error: DIR/b.db is another name (a hard link) of DIR/a.db, and is in use by that name: SQLite keeps a log for each, and so damages a file that is opened by both
    hint: have all programs use DIR/a.db, and end those that use the other name
    ");
    b.run(["init"]).assert_status(2);
    drop(application);
    assert_eq!(b.ok(["status"]), a.ok(["status"]));
    assert_eq!((a.rows(SITE), a.notes()), (site, vec!["1|by its other name|1".to_owned()]));
}

#[test]
fn nothing_is_made_where_a_link_leads_nowhere() {
    let world = World::new();
    let a = world.notes("a");
    folder(&world, "disk");
    symlink("disk/b.db", world.path("b.db")).unwrap();
    for command in [&["init"][..], &["serve"], &["status"], &["pull"], &["remote", "list"]] {
        on(&world, "b.db", command).assert_status(10);
    }
    assert_snapshot!(on(&world, "b.db", &["init"]), @"
    status 10
    --- stderr
    error: DIR/b.db is a link to DIR/disk/b.db, which is missing
    hint: mount its disk, or restore the file; `ddcp --db DIR/disk/b.db init` makes a new database there
    ");
    world.run(["clone", "a.db", "b.db"]).assert_status(10);
    assert_eq!(fs::read_dir(world.path("disk")).unwrap().count(), 0);
    assert_eq!(on(&world, "b.db", &["doctor", "--offline"]).status, Some(5));
    // Once there is a file, it is one as all others.
    world.run(["clone", "a.db", "disk/b.db"]).assert_status(0);
    assert!(ok(&world, "b.db", &["remote", "list"]).starts_with("origin "));
    world.run(["clone", "a.db", "b.db"]).assert_status(2);
    drop(a);
}

#[test]
fn a_remote_that_is_the_repository_itself_is_refused_by_every_name() {
    let world = World::new();
    let (a, names) = with_many_names(&world);
    let b = world.notes("b");
    assert_snapshot!(on(&world, "real/a.db", &["remote", "add", "self", "links/l.db"]), @"
    status 2
    --- stderr
    error: DIR/links/l.db is this repository itself, not another one
    hint: give the remote the address of another repository: what `ddcp address` prints there, or its path
    ");
    for name in names.iter().chain(&["real/a.db"]) {
        on(&world, "real/a.db", &["remote", "add", "self", name]).assert_status(2);
    }
    symlink("b.db", world.path("turns.db")).unwrap();
    ok(&world, "real/a.db", &["remote", "add", "turns", "turns.db"]);
    ok(&world, "real/a.db", &["fetch"]);
    fs::remove_file(world.path("turns.db")).unwrap();
    symlink("links/twice.db", world.path("turns.db")).unwrap();
    assert_snapshot!(on(&world, "real/a.db", &["fetch"]), @"
    status 2
    --- stderr
    error: turns: DIR/turns.db is this repository itself, not another one
    hint: give the remote the address of another repository: what `ddcp address` prints there, or its path
    ");
    let daemon = Daemon::start(&world, &b);
    let address = b.ok(["address"]);
    drop(daemon);
    let run = b.run(["remote", "add", "self", address.trim_end()]).assert_status(2);
    assert!(run.stderr.contains("is this repository itself"), "{run}");
    drop(a);
}

/// How many changes were fetched, by all remotes together.
fn fetched(repo: &Repo) -> u64 {
    let log = repo.json(&["log", "-n", "1000"]);
    log.as_array()
        .unwrap()
        .iter()
        .filter_map(|entry| entry["changes"].as_u64().filter(|_| entry["event"] == "fetched"))
        .sum()
}

#[test]
fn two_remotes_that_are_one_repository_fetch_once() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.notes("b"));
    symlink("a.db", world.path("link.db")).unwrap();
    a.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
         INSERT INTO note SELECT i, hex(randomblob(100)), i FROM n",
    );
    b.follows(&[&a]);
    assert_snapshot!(b.run(["remote", "add", "link", "link.db"]), @"
    status 0
    --- stderr
    link is the same repository as a: what one has fetched, the other has
    ");
    assert_snapshot!(b.run(["remote", "add", "again", "a.db"]), @"
    status 0
    --- stderr
    again is the same repository as a: what one has fetched, the other has
    again is the same repository as link: what one has fetched, the other has
    ");
    // All at once, in one process.
    b.ok(["fetch"]);
    assert_eq!(fetched(&b), 60_000);
    b.ok(["merge"]);
    assert_converged(&[&a, &b]);

    // Asked for by many, of a daemon.
    let _daemon = Daemon::start(&world, &b);
    for round in 0..3 {
        a.sql(&format!("UPDATE note SET body = hex(randomblob(100)) || {round} WHERE stars % 3 = {round}"));
        let pulls = ["a", "link", "again", "link", "a"].map(|name| b.start(["pull", name]));
        for pull in pulls {
            let run = b.finish(pull).assert_status(0);
            assert!(!run.stdout.contains("older"), "{run}");
        }
    }
    assert_converged(&[&a, &b]);
    assert_eq!(fetched(&b), 90_000);
    // One of them may go.
    b.ok(["remote", "remove", "a"]);
    a.sql("DELETE FROM note WHERE stars > 10");
    b.pull();
    assert_converged(&[&a, &b]);
}

#[test]
fn a_path_and_the_address_of_the_same_repository_are_told() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.notes("b"));
    let daemon = Daemon::start(&world, &a);
    let address = a.ok(["address"]);
    drop(daemon);
    b.follows(&[&a]);
    let run = b.run(["remote", "add", "net", address.trim_end()]).assert_status(0);
    assert_eq!(run.stderr, "net is the same repository as a: what one has fetched, the other has\n");
    b.ok(["remote", "remove", "a"]);
    let run = b.run(["remote", "add", "a", "a.db"]).assert_status(0);
    assert!(run.stderr.starts_with("a is the same repository as net"), "{run}");
}

#[test]
fn a_file_that_is_moved_with_its_state_and_linked_stays_itself() {
    let world = World::new();
    let a = world.notes("a");
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)").ok(["init"]);
    a.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let site = a.rows(SITE);
    let disk = folder(&world, "disk");
    let moved = |from: &Path, to: &Path| fs::rename(from, to).unwrap();
    // The file alone: its state is found beside the link.
    moved(a.db(), &disk.join("a.db"));
    symlink("disk/a.db", a.db()).unwrap();
    assert_eq!(a.run(["merge"]).stderr, "nothing has been fetched\n");
    assert_eq!(ok(&world, "disk/a.db", &["merge"]), "");
    // And the state behind it.
    moved(&world.path(".ddcp"), &disk.join(".ddcp"));
    assert_eq!(a.run(["merge"]).stderr, "nothing has been fetched\n");
    assert_eq!(ok(&world, "disk/a.db", &["merge"]), "");
    assert_eq!(a.rows(SITE), site);
}
