//! Remotes that hang, and files that are no files: nobody else is held up.

use std::fs;

use insta::assert_snapshot;
use nix::{sys::stat::Mode, unistd::mkfifo};

use crate::{
    follow::wait_until,
    support::{World, hang},
};

#[test]
fn what_came_of_one_remote_is_merged_while_another_hangs() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    // Its name sorts before the other's.
    b.ok(["remote", "add", "hangs", "hangs.db"]);
    b.ok(["remote", "add", "well", "a.db"]);
    for (command, stars) in [("pull", 1), ("verify", 2)] {
        a.sql(&format!("UPDATE note SET stars = {stars}"));
        let hanging = hang(&world.path("hangs.db"));
        let work = b.start([command]);
        wait_until("it is merged", || b.notes() == [format!("1|one|{stars}")]);
        drop(hanging);
        fs::remove_file(world.path("hangs.db")).unwrap();
        let run = b.finish(work).assert_status(3);
        assert!(run.stderr.contains("hangs:"), "{run}");
        assert!(run.stdout.contains("well"), "{run}");
    }
}

#[test]
fn files_that_are_none_are_refused_and_not_waited_for() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    fs::copy(a.db(), world.path("copy.db")).unwrap();
    for pipe in ["pipe.db", "pipe.bundle", "copy.db-wal"] {
        mkfifo(&world.path(pipe), Mode::S_IRWXU).unwrap();
    }
    b.ok(["remote", "add", "pipe", "pipe.db"]);
    b.ok(["remote", "add", "beside", "copy.db"]);
    assert_snapshot!(b.run(["pull"]), @"
    status 4
    --- stderr
    error: beside: the database DIR/copy.db cannot be opened (DIR/copy.db-wal is no regular file): check the path, its permissions and the disk
    hint: check the path with `ddcp remote list`; `ddcp remote set-address` changes it
    error: pipe: the database DIR/pipe.db cannot be opened (DIR/pipe.db is no regular file): check the path, its permissions and the disk
    hint: check the path with `ddcp remote list`; `ddcp remote set-address` changes it
    ");
    let others = [
        b.run(["bundle", "fetch", "pipe.bundle"]),
        b.run(["bundle", "verify", "pipe.bundle"]),
        world.run(["clone", "pipe.db", "c.db"]),
        world.run(["--db", "pipe.db", "init"]),
    ];
    for run in others {
        assert!(run.status != Some(0) && run.stderr.contains("no regular file"), "{run}");
    }
}
