//! Every documented exit status, with the message that goes with it.

use std::fs::{self, File};

use insta::assert_snapshot;

use crate::support::World;

#[test]
fn usage_is_2() {
    let world = World::new();
    assert_snapshot!(world.run([] as [&str; 0]).assert_status(2).stderr.lines().next().unwrap(), @"Distribute a SQLite database and synchronise it the way Git synchronises a repository");
    assert_snapshot!(world.run(["fech"]), @"
    status 2
    --- stderr
    error: unrecognized subcommand 'fech'

      tip: a similar subcommand exists: 'fetch'

    Usage: ddcp [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
    assert_snapshot!(world.run(["fetch", "a", "b"]), @"
    status 2
    --- stderr
    error: unexpected argument 'b' found

    Usage: ddcp fetch [OPTIONS] [REMOTE]

    For more information, try '--help'.
    ");
    assert_snapshot!(world.run(["status", "--format", "xml"]), @"
    status 2
    --- stderr
    error: invalid value 'xml' for '--format <FORMAT>'
      [possible values: table, json]

    For more information, try '--help'.
    ");
    assert_snapshot!(world.run(["remote", "add", "a"]), @"
    status 2
    --- stderr
    error: the following required arguments were not provided:
      <ADDRESS>

    Usage: ddcp remote add <NAME> <ADDRESS>

    For more information, try '--help'.
    ");
}

#[test]
fn a_network_file_that_is_wrong_is_named() {
    let world = World::new();
    let a = world.notes("a");
    fs::write(world.path("network.toml"), "key = \"k\"\nbootstraps = []\n").unwrap();
    assert_snapshot!(a.run(["fetch", "--network", "network.toml"]), @"
    status 2
    --- stderr
    error: network.toml: line 2: unknown field `bootstraps`, expected one of `key`, `bootstrap`, `listen`, `public_address`, `detect_address_changes`
    hint: mend network.toml in an editor; docs/config.md lists its keys
    ");
    assert_snapshot!(a.run(["fetch", "--network", "absent.toml"]), @"
    status 1
    --- stderr
    error: absent.toml: No such file or directory (os error 2)
    ");
}

#[test]
fn some_remotes_failed_is_3_and_the_others_are_done() {
    let world = World::new();
    let [a, b, c] = world.all_notes(["a", "b", "c"]);
    b.sql("INSERT INTO note VALUES ('b', 'from b', 1)");
    c.sql("INSERT INTO note VALUES ('c', 'from c', 1)");
    a.follows(&[&b, &c]);
    a.ok(["remote", "add", "bad", "absent.db"]);
    assert_snapshot!(a.run(["fetch"]), @"
    status 3
    --- stdout
    b: fetched 2 changes in SIZE
    c: fetched 2 changes in SIZE

    --- stderr
    error: bad: there is no database at DIR/absent.db
    hint: check the path with `ddcp remote list`; `ddcp remote set-address` changes it
    ");
    assert_snapshot!(a.run(["pull"]), @"
    status 3
    --- stdout
    b: nothing new
    c: nothing new
    b: merged 2 changes (note 2)
    c: merged 2 changes (note 2)

    --- stderr
    error: bad: there is no database at DIR/absent.db
    hint: check the path with `ddcp remote list`; `ddcp remote set-address` changes it
    ");
    assert_eq!(a.notes(), ["b|from b|1", "c|from c|1"]);
    assert_snapshot!(a.run(["status"]), @"
    status 0
    --- stdout
    database DIR/a.db
    version  2
    site id  SITE
    tables   note
    address  none yet; `ddcp serve` gives it one
    serving  no

    remote   b
    address  DIR/b.db
    contact  TIME
    version  1
    fetched  0 changes not merged

    remote   bad
    address  DIR/absent.db
    contact  never
    failed   there is no database at DIR/absent.db (fetch, TIME)
    fetched  0 changes not merged

    remote   c
    address  DIR/c.db
    contact  TIME
    version  1
    fetched  0 changes not merged
    ");
}

#[test]
fn unreachable_is_4() {
    let world = World::new();
    let a = world.notes("a");
    a.ok(["remote", "add", "dead", "absent.db"]);
    assert_snapshot!(a.run(["fetch"]), @"
    status 4
    --- stderr
    error: dead: there is no database at DIR/absent.db
    hint: check the path with `ddcp remote list`; `ddcp remote set-address` changes it
    ");
    assert_snapshot!(a.run(["pull", "dead"]), @"
    status 4
    --- stderr
    error: dead: there is no database at DIR/absent.db
    hint: check the path with `ddcp remote list`; `ddcp remote set-address` changes it
    ");
    a.ok(["remote", "add", "dead-too", "absent-too.db"]);
    a.run(["fetch"]).assert_status(4);
    a.run(["pull"]).assert_status(4);
    assert_snapshot!(a.run(["merge", "dead"]), @"
    status 1
    --- stderr
    error: nothing has been fetched from `dead` yet
    hint: `ddcp fetch dead` first
    ");
}

#[test]
fn a_remote_that_is_no_repository_is_4() {
    let world = World::new();
    let a = world.notes("a");
    fs::write(world.path("text.db"), "This is no database. ".repeat(100)).unwrap();
    fs::create_dir(world.path("folder.db")).unwrap();
    rusqlite::Connection::open(world.path("plain.db")).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    for name in ["text", "folder", "plain"] {
        a.ok(["remote", "add", name, &format!("{name}.db")]);
    }
    assert_snapshot!(a.run(["fetch"]), @"
    status 4
    --- stderr
    error: folder: the database DIR/folder.db cannot be opened (it is a folder): check the path, its permissions and the disk
    hint: check the path with `ddcp remote list`; `ddcp remote set-address` changes it
    error: plain: DIR/plain.db is no repository's database
    hint: `ddcp --db DIR/plain.db init` makes it one
    error: text: DIR/text.db is not a SQLite database
    hint: check the path with `ddcp remote list`; `ddcp remote set-address` changes it
    ");
}

#[test]
fn no_repository_is_10() {
    let world = World::new();
    let a = world.repo("a");
    assert_snapshot!(a.run(["status"]), @"
    status 10
    --- stderr
    error: DIR/a.db is no repository: there is no such file
    hint: `ddcp --db DIR/a.db init` makes it one
    ");
    for arguments in [&["fetch"][..], &["merge"], &["pull"], &["address"], &["remote", "list"], &["shell", "SELECT 1"]]
    {
        a.run(arguments).assert_status(10);
    }
    assert!(!a.db().exists() && !world.path(".ddcp").exists(), "made by a command that only asks");
    fs::write(a.db(), "").unwrap();
    assert_snapshot!(a.run(["status"]), @"
    status 10
    --- stderr
    error: DIR/a.db is no repository: it has no state directory
    hint: `ddcp --db DIR/a.db init` makes it one
    ");
}

#[test]
fn no_address_yet() {
    let world = World::new();
    assert_snapshot!(world.notes("a").run(["address"]), @"
    status 1
    --- stderr
    error: DIR/a.db has no address yet
    hint: `ddcp serve` gives it one
    ");
}

#[test]
fn locked_is_11() {
    let world = World::new();
    let a = world.notes("a");
    let lock = File::create(a.state("lock")).unwrap();
    lock.try_lock().unwrap();
    fs::write(a.state("lock"), "4711\n").unwrap();
    assert_snapshot!(a.run(["fetch"]), @"
    status 11
    --- stderr
    error: another ddcp process (PID) is working on DIR/a.db
    hint: wait for it to end, or stop it
    ");
    a.ok(["status"]);
    a.ok(["remote", "list"]);
    drop(lock);
    a.ok(["fetch"]);
}

#[test]
fn a_command_waits_for_another_to_end() {
    let world = World::new();
    let a = world.notes("a");
    let lock = File::create(a.state("lock")).unwrap();
    lock.try_lock().unwrap();
    let fetch = a.start(["fetch"]);
    // The lock is held while the other starts; it does not matter how far that got.
    std::thread::sleep(std::time::Duration::from_millis(300));
    drop(lock);
    let run = a.finish(fetch);
    assert_eq!(run.status, Some(0), "{run}");
}

#[test]
fn a_network_that_is_not_needed_is_not_missed() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    b.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    a.follows(&[&b]);
    let with = |arguments: &[&str]| {
        let mut command = a.command();
        command.args(arguments).env("DDCP_NETWORK", "absent.toml");
        a.run_command(command)
    };
    for arguments in [&["status"][..], &["pull"], &["log"], &["remote", "list"], &["bundle", "create", "a.bundle"]] {
        with(arguments).assert_status(0);
    }
    assert_eq!(a.notes(), ["1|one|1"]);
    a.ok([
        "remote",
        "add",
        "far",
        "VLD0:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
    ]);
    assert_snapshot!(with(&["fetch", "far"]), @"
    status 1
    --- stderr
    error: far: absent.toml: No such file or directory (os error 2)
    ");
    assert_snapshot!(with(&["serve"]), @"
    status 1
    --- stderr
    error: absent.toml: No such file or directory (os error 2)
    ");
}

#[test]
fn a_variable_that_is_empty_is_not_set() {
    let world = World::new();
    let a = world.repo("ddcp");
    let run = |arguments: &[&str]| {
        let mut command = world.command();
        for name in ["DDCP_DB", "DDCP_STATE_DIR", "DDCP_NETWORK", "DDCP_EXTENSION"] {
            command.env(name, "");
        }
        command.args(arguments);
        a.run_command(command)
    };
    run(&["init"]).assert_status(0);
    assert!(a.db().exists() && a.state("state.db").exists());
    run(&["status"]).assert_status(0);
    // What is typed is meant.
    run(&["status", "--db", ""]).assert_status(2);
}
