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
    for pipe in ["pipe.db", "copy.db-wal"] {
        mkfifo(&world.path(pipe), Mode::S_IRWXU).unwrap();
    }
    b.ok(["remote", "add", "pipe", "pipe.db"]);
    b.ok(["remote", "add", "beside", "copy.db"]);
    assert_snapshot!(b.run(["pull"]), @"");
    assert_snapshot!(b.run(["bundle", "fetch", "pipe.db"]), @"");
    assert_snapshot!(b.run(["bundle", "verify", "copy.db-wal"]), @"");
    assert_snapshot!(world.run(["clone", "pipe.db", "c.db"]), @"");
    assert_snapshot!(world.run(["--db", "pipe.db", "status"]), @"");
}
