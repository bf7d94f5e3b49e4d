//! Databases that go back in time, and copies of databases.

use std::fs;

use insta::assert_snapshot;

use crate::support::{Repo, World, assert_converged};

/// A copy of the database as it is now.
fn backup(repo: &Repo) -> Vec<u8> {
    repo.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    fs::read(repo.db()).unwrap()
}

fn restore(repo: &Repo, copy: &[u8]) {
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", repo.db().display()));
    }
    fs::write(repo.db(), copy).unwrap();
}

#[test]
fn a_source_restored_from_an_older_copy_is_read_anew() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let copy = backup(&a);
    a.sql("INSERT INTO note VALUES ('2', 'two', 2)").sql("INSERT INTO note VALUES ('3', 'three', 3)");
    b.follows(&[&a]).pull();

    restore(&a, &copy);
    a.sql("INSERT INTO note VALUES ('4', 'after the loss', 4)");
    assert_snapshot!(b.run(["pull"]), @"
    status 0
    --- stdout
    a: its database is older than what was fetched before; read from the start
    a: fetched 4 changes in SIZE
    a: merged 4 changes (note 2)
    ");
    assert_eq!(b.notes(), ["1|one|1", "2|two|2", "3|three|3", "4|after the loss|4"]);
    assert_snapshot!(b.run(["pull"]), @"
    status 0
    --- stdout
    a: nothing new
    a: nothing to merge
    ");
}

#[test]
fn a_source_that_is_restored_between_fetch_and_merge() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let copy = backup(&a);
    a.sql("INSERT INTO note VALUES ('2', 'two', 2)").sql("UPDATE note SET stars = 5");
    b.follows(&[&a]).ok(["fetch"]);
    restore(&a, &copy);
    b.ok(["fetch"]);
    b.ok(["merge"]);
    assert_eq!(b.notes()[0], "1|one|1");
    b.pull();
    b.assert_sound();
}

#[test]
fn a_database_restored_from_an_older_copy_gets_everything_again() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.follows(&[&a]).pull();
    let copy = backup(&b);
    a.sql("INSERT INTO note VALUES ('2', 'two', 2); UPDATE note SET stars = 9 WHERE id = '1'");
    b.pull();
    a.sql("INSERT INTO note VALUES ('3', 'three', 3)");
    b.ok(["fetch"]);

    restore(&b, &copy);
    assert_eq!(b.notes(), ["1|one|1"]);
    assert_snapshot!(b.run(["pull"]), @"
    status 0
    --- stdout
    a: fetched 5 changes in SIZE
    a: merged 5 changes (note 5)
    ");
    assert_converged(&[&a, &b]);
}

#[test]
fn a_merge_after_a_restore_leaves_no_gap() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    b.follows(&[&a]).pull();
    let copy = backup(&b);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.pull();
    a.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    b.ok(["fetch"]);

    restore(&b, &copy);
    b.ok(["merge"]);
    assert!(b.notes().is_empty(), "what lies behind a gap must not be merged");
    b.pull();
    assert_converged(&[&a, &b]);
}

#[test]
fn a_copy_of_the_own_database_is_refused() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    fs::write(world.path("copy.db"), backup(&a)).unwrap();
    a.ok(["remote", "add", "copy", "copy.db"]);
    assert_snapshot!(a.run(["fetch"]), @"
    status 1
    --- stderr
    error: copy: its database has this database's own site id (SITE): it is this database, or a copied file
    hint: give the remote the address of another repository; a database is shared by `ddcp pull`, not by copying its file
    ");
    a.ok(["remote", "set-address", "copy", "a.db"]);
    assert_snapshot!(a.run(["pull"]), @"
    status 1
    --- stderr
    error: copy: its database has this database's own site id (SITE): it is this database, or a copied file
    hint: give the remote the address of another repository; a database is shared by `ddcp pull`, not by copying its file
    ");
    a.follows(&[&b]);
    a.run(["pull"]).assert_status(3);
}

#[test]
fn a_remote_that_was_replaced_by_another_database() {
    let world = World::new();
    let [a, b, c] = world.all_notes(["a", "b", "c"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    c.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    b.follows(&[&a]).pull();
    b.ok(["remote", "set-address", "a", "c.db"]);
    b.pull();
    assert_eq!(b.notes(), ["1|one|1", "2|two|2"]);
}
