//! Repositories and remotes that can be read and not written.

use std::fs;

use insta::assert_snapshot;

use crate::{
    permissions::{OtherUser, give, mode},
    support::{World, assert_converged, with_mounts},
};

/// A script that moves what it is about into `ro` and has that mounted read-only; `ddcp` may fail.
fn on_stick(moved: &str, script: &str) -> String {
    format!(
        r#"mkdir -p ro && mv {moved} ro/ && mount --bind ro ro && mount -o remount,ro,bind ro
        ddcp() {{ "$DDCP" "$@" || echo "-> $?"; }}
        {script}"#
    )
}

#[test]
fn a_remote_on_a_read_only_medium_is_fetched_from_and_cloned() {
    let world = World::new();
    let [a, b, c] = world.all_notes(["a", "b", "c"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    c.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    a.connection().pragma_update(None, "journal_mode", "delete").unwrap();
    let script = on_stick(
        "a.db c.db",
        r"
        ddcp --db b.db remote add a ro/a.db
        ddcp --db b.db remote add c ro/c.db
        ddcp --db b.db pull
        ddcp --db b.db schema diff c
        ddcp clone ro/c.db copy.db",
    );
    let Some(run) = with_mounts(&world, &script) else { return };
    assert_snapshot!(run, @"
    status 0
    --- stdout
    a: fetched 2 changes in SIZE
    c: fetched 2 changes in SIZE
    a: merged 2 changes (note 2)
    c: merged 2 changes (note 2)
    database DIR/copy.db
    tables   note
    origin: fetched 2 changes in SIZE
    origin: merged 2 changes (note 2)

    --- stderr
    no shared table differs
    ");
    assert_eq!(b.notes(), ["1|one|1", "2|two|2"]);
    assert_eq!(world.repo("copy").notes(), ["2|two|2"]);
}

#[test]
fn a_repository_on_a_read_only_medium_is_looked_at_and_bundled() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    b.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)").follows(&[&b]).pull();
    let script = on_stick(
        "a.db .ddcp",
        r#"
        ddcp --db ro/a.db status
        ddcp --db ro/a.db log | cut -d, -f1
        ddcp --db ro/a.db remote list
        ddcp --db ro/a.db shell "SELECT id FROM note"
        ddcp --db ro/a.db schema diff b
        ddcp --db ro/a.db doctor --trouble
        ddcp --db ro/a.db bundle create a.bundle
        ddcp --db ro/a.db bundle create later.bundle --since b
        ddcp --db ro/a.db bundle create never.bundle --since b --mark
        ddcp --db ro/a.db shell "DELETE FROM note"
        ddcp --db ro/a.db pull"#,
    );
    let Some(run) = with_mounts(&world, &script) else { return };
    assert_snapshot!(run, @"
    status 0
    --- stdout
    database DIR/ro/a.db
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
    TIME b: merged 2 changes (note 2)
    TIME b: fetched 2 changes in SIZE
    b DIR/b.db
    1
    2
    bundle   a.bundle
    site id  SITE
    created  TIME
    versions 1 to 2
    content  4 changes (1 pack) in SIZE
      note: 4 changes
    bundle   later.bundle
    site id  SITE
    created  TIME
    versions 1 to 2
    without  what site SITE wrote itself
    content  2 changes (1 pack) in SIZE
      note: 2 changes
    -> 2
    -> 1
    -> 1

    --- stderr
    no shared table differs
    error: a mark cannot be kept: DIR/ro/.ddcp/a.db is on a read-only medium
    hint: leave out `--mark`
    error: attempt to write a readonly database
    error: DIR/ro/.ddcp/a.db/lock: Read-only file system (os error 30)
    ");
    let reader = world.notes("reader");
    reader.ok(["bundle", "fetch", "a.bundle"]);
    reader.ok(["merge"]);
    assert_eq!(reader.notes(), ["1|one|1", "2|two|2"]);
    assert!(!world.path("never.bundle").exists());
}

/// A database that was not closed: what its log holds must not be left out, and nobody can read it where it is.
#[test]
fn a_log_on_a_read_only_medium_is_not_left_out() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let open = a.connection();
    open.execute_batch("INSERT INTO note VALUES ('2', 'in the log', 2)").unwrap();
    fs::create_dir(world.path("stick")).unwrap();
    for name in ["a.db", "a.db-wal"] {
        fs::copy(world.path(name), world.path("stick").join(name)).unwrap();
    }
    let script = r#"
        mount --bind stick stick && mount -o remount,ro,bind stick
        "$DDCP" --db b.db remote add a stick/a.db
        "$DDCP" --db b.db pull || echo "pull $?"
        umount stick && "$DDCP" --db b.db pull"#;
    let Some(run) = with_mounts(&world, script) else { return };
    assert_snapshot!(run, @"
    status 0
    --- stdout
    pull 4
    a: fetched 4 changes in SIZE
    a: merged 4 changes (note 4)

    --- stderr
    error: a: DIR/stick/a.db cannot be read where it is: it was not closed cleanly, so a part of it is in its log (DIR/stick/a.db-wal), and reading that needs to write beside it; copy both files to a folder that can be written, or open and close the database where it was written
    ");
    drop(open);
    assert_converged(&[&a, &b]);
}

/// The identity of what cannot be given another one is looked at all the same.
#[test]
fn a_database_that_went_back_is_not_given_away_from_a_read_only_medium() {
    let world = World::new();
    let a = world.notes("a");
    a.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let copy = fs::read(a.db()).unwrap();
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)").ok(["bundle", "create", "a.bundle"]);
    fs::write(a.db(), copy).unwrap();
    let script =
        on_stick("a.db .ddcp", "ddcp --db ro/a.db bundle create b.bundle\n ddcp --db ro/a.db status >/dev/null");
    let Some(run) = with_mounts(&world, &script) else { return };
    assert_snapshot!(run, @"
    status 0
    --- stdout
    -> 1

    --- stderr
    error: DIR/ro/a.db: its version went back from 1 to 0, and its medium is read-only, so it cannot be given a site id of its own
    hint: copy the database and its state directory to where they can be written
    ");
}

#[test]
fn a_folder_that_is_closed_to_writers_is_fetched_from_and_an_open_one_is_not_taken_for_it() {
    let world = World::new();
    let Some(other) = OtherUser::new(&world) else { return };
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let folder = world.path("folder");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("a.db");
    fs::rename(a.db(), &path).unwrap();
    b.ok(["remote", "add", "a", "folder/a.db"]);
    // An empty log is left beside it by whoever has read it, and would let others read it, too.
    for end in ["-wal", "-shm"] {
        let _ = fs::remove_file(folder.join(format!("a.db{end}")));
    }
    for path in [b.db().to_owned(), world.path(".ddcp"), b.state("")] {
        give(&path);
    }
    mode(&world.path(""), 0o777);

    // Root may write it at any time.
    mode(&path, 0o644);
    mode(&folder, 0o755);
    assert_snapshot!(other.run(&b, ["fetch"]), @"
    status 4
    --- stderr
    error: a: DIR/folder/a.db cannot be read where it is: with write-ahead logging even reading writes beside a database, in a folder that this user may not write and others may; read it as its owner, or let its owner run `PRAGMA journal_mode = DELETE` on it
    ");
    mode(&path, 0o444);
    mode(&folder, 0o555);
    assert_snapshot!(other.run(&b, ["pull"]), @"
    status 0
    --- stdout
    a: fetched 2 changes in SIZE
    a: merged 2 changes (note 2)
    ");
    assert_eq!(b.notes(), ["1|one|1"]);
}
