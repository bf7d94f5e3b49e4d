//! Databases that are none, are damaged, may not be written, or lie on a full disk.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use insta::assert_snapshot;

use crate::support::{World, assert_converged, with_mounts};

#[test]
fn a_file_that_is_no_database() {
    let world = World::new();
    let a = world.repo("a");
    let text = "Dear diary, ".repeat(100);
    fs::write(a.db(), &text).unwrap();
    assert_snapshot!(a.run(["init"]), @"
    status 1
    --- stderr
    error: DIR/a.db is not a SQLite database: name another with --db, or move this file away
    ");
    assert_eq!(fs::read_to_string(a.db()).unwrap(), text, "the file was changed");
    fs::write(a.db(), "short").unwrap();
    assert_snapshot!(a.run(["init"]), @"
    status 1
    --- stderr
    error: DIR/a.db is not a SQLite database: name another with --db, or move this file away
    ");
    assert_eq!(fs::read_to_string(a.db()).unwrap(), "short");
}

#[test]
fn a_repository_whose_database_became_something_else() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    b.follows(&[&a]).pull();
    fs::write(b.db(), "Dear diary, ".repeat(100)).unwrap();
    for arguments in [&["status"][..], &["pull"], &["merge"], &["shell", "SELECT 1"]] {
        let run = b.run(arguments);
        assert_eq!(run.status, Some(1), "{run}");
        assert!(run.stderr.contains("b.db is not a SQLite database"), "{run}");
    }
}

/// Fills a database's pages from the second on with nonsense.
fn spoil(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let nonsense: Vec<u8> = (0..length - 4096).map(|place| (place * 31 % 251) as u8 | 0x40).collect();
    file.write_all_at(&nonsense, 4096).unwrap();
}

#[test]
fn a_remote_that_is_damaged() {
    let world = World::new();
    let [a, b, good] = world.all_notes(["a", "b", "good"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1); PRAGMA wal_checkpoint(TRUNCATE)");
    good.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    spoil(a.db());
    b.follows(&[&a, &good]);
    assert_snapshot!(b.run(["pull"]), @"
    status 3
    --- stdout
    good: fetched 2 changes in SIZE
    good: merged 2 changes (note 2)

    --- stderr
    error: a: its database DIR/a.db is corrupt or cannot be read (database disk image is malformed)
    hint: check the path with `ddcp remote list`; `ddcp remote set-address` changes it
    ");
    assert_eq!(b.notes(), ["2|two|2"]);
    b.assert_sound();
}

#[test]
fn a_database_that_is_damaged() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.follows(&[&a]).ok(["fetch"]);
    b.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let copy = fs::read(b.db()).unwrap();
    spoil(b.db());
    let spoilt = fs::read(b.db()).unwrap();
    assert_snapshot!(b.run(["merge"]), @"
    status 1
    --- stderr
    error: the database DIR/b.db is corrupt or cannot be read (database disk image is malformed): check the disk and repeat; if it is the file, restore it from a backup, or save what is left with `sqlite3 DIR/b.db .recover`
    ");
    assert_snapshot!(b.run(["status"]), @"
    status 1
    --- stderr
    error: the database DIR/b.db is corrupt or cannot be read (database disk image is malformed): check the disk and repeat; if it is the file, restore it from a backup, or save what is left with `sqlite3 DIR/b.db .recover`
    ");
    assert!(fs::read(b.db()).unwrap() == spoilt, "nothing is written into a damaged file");
    // With the backup back in place, what had been fetched is still there.
    fs::write(b.db(), copy).unwrap();
    b.ok(["merge"]);
    assert_converged(&[&a, &b]);
}

#[test]
fn a_file_system_that_is_read_only() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.follows(&[&a]).ok(["fetch"]);
    let script = r#"
        mkdir ro && mv b.db ro/ && mv .ddcp/b.db state
        mount --bind ro ro && mount -o remount,ro,bind ro
        "$DDCP" --db ro/b.db --state-dir state merge || echo "merge $?"
        "$DDCP" --db ro/b.db --state-dir state pull || echo "pull $?"
        "$DDCP" --db ro/new.db --state-dir new init || echo "init $?"
        umount ro
        "$DDCP" --db ro/b.db --state-dir state merge"#;
    let Some(run) = with_mounts(&world, script) else { return };
    assert_snapshot!(run, @"
    status 0
    --- stdout
    merge 1
    pull 1
    init 1
    a: merged 2 changes (note 2)

    --- stderr
    error: the database DIR/ro/b.db is read-only: allow this user to write the file and its folder
    error: the database DIR/ro/b.db is read-only: allow this user to write the file and its folder
    error: the database DIR/ro/new.db is read-only: allow this user to write the file and its folder
    ");
}

#[test]
fn a_state_directory_that_is_read_only() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.follows(&[&a]);
    let script = r#"
        mount --bind .ddcp .ddcp && mount -o remount,ro,bind .ddcp
        "$DDCP" --db b.db fetch || echo "fetch $?"
        "$DDCP" --db b.db remote add c c.db || echo "remote add $?""#;
    let Some(run) = with_mounts(&world, script) else { return };
    assert_snapshot!(run, @"
    status 0
    --- stdout
    fetch 1
    remote add 1

    --- stderr
    error: DIR/.ddcp/b.db/lock: Read-only file system (os error 30)
    error: DIR/.ddcp/b.db/config.toml: Read-only file system (os error 30)
    ");
}

#[test]
fn a_full_disk_under_the_database() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', randomblob(3000000), 1), ('2', 'two', 2)");
    b.sql("INSERT INTO note VALUES ('3', 'mine', 3)").follows(&[&a]);
    let script = r#"
        mkdir disk && mount -t tmpfs -o size=1m none disk && mv b.db disk/ && mv .ddcp/b.db state
        run() { "$DDCP" --db disk/b.db --state-dir state "$@" || echo "$1 $?"; }
        run pull
        run shell "PRAGMA integrity_check; SELECT id FROM note; SELECT count(*) FROM crsql_changes"
        run status
        mount -o remount,size=30m disk
        run merge
        run shell "PRAGMA integrity_check; SELECT id, length(body) FROM note""#;
    let Some(run) = with_mounts(&world, script) else { return };
    assert_snapshot!(run, @"
    status 0
    --- stdout
    a: fetched 4 changes in SIZE
    pull 1
    ok
    3
    2
    database DIR/disk/b.db
    version  1
    site id  SITE
    tables   note
    address  none yet; `ddcp serve` gives it one
    serving  no

    remote   a
    address  DIR/a.db
    contact  TIME
    version  1
    behind   fetched up to version 1, merged up to 0
    failed   the disk that holds DIR/disk/b.db is full: free some space and repeat, nothing was changed (merge, TIME)
    fetched  4 changes not merged
    a: merged 4 changes (note 4)
    ok
    3|4
    1|3000000
    2|3

    --- stderr
    error: a: the disk that holds DIR/disk/b.db is full: free some space and repeat, nothing was changed
    ");
}

#[test]
fn a_full_disk_under_the_state() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', randomblob(3000000), 1), ('2', 'two', 2)");
    b.follows(&[&a]);
    let script = r#"
        mkdir disk && mount -t tmpfs -o size=1m none disk && cp .ddcp/b.db/* disk/
        run() { "$DDCP" --db b.db --state-dir disk "$@" || echo "$1 $?"; }
        run pull
        mount -o remount,size=30m disk
        run pull"#;
    let Some(run) = with_mounts(&world, script) else { return };
    assert_snapshot!(run, @"
    status 0
    --- stdout
    a: nothing to merge
    pull 1
    a: fetched 4 changes in SIZE
    a: merged 4 changes (note 4)

    --- stderr
    error: a: DIR/disk/parts/SITE: No space left on device (os error 28)
    hint: free some space and repeat; nothing is lost
    ");
    assert_converged(&[&a, &b]);
}
