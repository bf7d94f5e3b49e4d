//! Databases that go back in time, and copies of databases.

use std::fs;

use insta::assert_snapshot;

use crate::{
    follow::wait_until,
    serve::Daemon,
    support::{NOTE, Repo, World, assert_converged},
};

const SITE: &str = "SELECT hex(crsql_site_id())";

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
    a: merged 4 changes (note 2), 2 known already
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
fn a_source_restored_from_a_copy_from_before_it_was_a_repository_is_read_anew() {
    let world = World::new();
    let (a, b) = (world.repo("a"), world.notes("b"));
    // The application has the extension; `ddcp` comes later.
    a.sql(NOTE).sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let copy = backup(&a);
    a.ok(["init"]);
    a.sql("INSERT INTO note VALUES ('2', 'two', 2)").sql("INSERT INTO note VALUES ('3', 'three', 3)");
    b.follows(&[&a]).pull();

    restore(&a, &copy);
    let site = a.rows(SITE);
    // Up to the version that `b` has read: with the old site id it would never ask for these.
    a.sql("INSERT INTO note VALUES ('4', 'after', 4)").sql("INSERT INTO note VALUES ('5', 'the loss', 5)");
    let run = a.run(["pull"]).assert_status(0);
    assert!(run.stderr.contains("it was given a new site id"), "{run}");
    assert_ne!(a.rows(SITE), site);
    let site = a.rows(SITE);
    b.pull();
    assert_eq!(b.notes(), ["1|one|1", "2|two|2", "3|three|3", "4|after|4", "5|the loss|5"]);
    a.follows(&[&b]).pull();
    assert_converged(&[&a, &b]);
    assert_eq!(a.rows(SITE), site, "once");
}

#[test]
fn a_database_that_its_application_makes_anew_gets_everything_again() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    b.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    a.follows(&[&b]).pull();
    a.sql("INSERT INTO note VALUES ('2', 'lost here', 2)");
    b.follows(&[&a]).pull();
    fs::remove_file(a.db()).unwrap();
    a.sql(NOTE).sql("INSERT INTO note VALUES ('3', 'new', 3)");
    a.pull();
    assert_eq!(a.notes(), ["1|one|1", "2|lost here|2", "3|new|3"]);
    b.pull();
    assert_converged(&[&a, &b]);
}

#[test]
fn nothing_is_given_away_under_a_site_id_that_has_told_of_later_versions() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)").ok(["init"]);
    let copy = backup(&a);
    a.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    b.follows(&[&a]);
    a.ok(["remote", "add", "b", "b.db"]);
    for command in [
        &["bundle", "create", "a.bundle", "--force"][..],
        &["fetch"],
        &["merge"],
        &["verify"],
        &["schema", "diff", "b"],
        &["schema", "adopt", "b"],
        &["shell", "SELECT 1"],
        &["init"],
    ] {
        a.sql("INSERT OR REPLACE INTO note VALUES ('2', 'two', 2)").ok(["init"]);
        b.pull();
        restore(&a, &copy);
        let site = a.rows(SITE);
        let run = a.run(command);
        assert!(run.stderr.contains("it was given a new site id"), "{command:?}: {run}");
        assert_ne!(a.rows(SITE), site, "{command:?}");
    }
    // Two more that only read what is here, or ask: they tell nothing to anybody.
    restore(&a, &copy);
    let site = a.rows(SITE);
    for command in ["status", "address"] {
        a.run([command]);
    }
    assert_eq!(a.rows(SITE), site);
}

#[test]
fn a_database_that_goes_back_while_it_is_served_is_another_site_at_once() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let _daemon = Daemon::start(&world, &a);
    b.follows(&[&a]).pull();
    let site = a.rows(SITE);
    a.sql(
        "CREATE TABLE late (id INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('late'); INSERT INTO late VALUES (1)",
    );
    wait_until("the daemon has seen it", || a.json(&["status"])["version"] == 2);
    b.pull();
    // Its versions go with it.
    wait_until("it was noted", || {
        let state = rusqlite::Connection::open(a.state("state.db")).unwrap();
        state.query_row("SELECT version FROM home", [], |row| row.get::<_, i64>(0)).unwrap() == 2
    });
    a.sql("DROP TABLE late; DROP TABLE late__crsql_clock; DROP TABLE late__crsql_pks");
    wait_until("it has another site id", || a.rows(SITE) != site);
    a.sql("INSERT INTO note VALUES ('2', 'after', 2)");
    b.pull();
    assert_eq!(b.notes(), ["1|one|1", "2|after|2"]);
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
    assert_eq!(b.notes(), ["1|one|5", "2|two|5"], "what was fetched before it was lost there");
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
    a: fetched 6 changes in SIZE
    a: merged 8 changes (note 5), 3 known already

    --- stderr
    TIME  WARN ddcp::repo::identity: its version went back from 3 to 1: restored from a copy, or a table was dropped; it was given a new site id database=DIR/b.db old=SITE new=SITE
    ");
    assert_converged(&[&a, &b]);
}

#[test]
fn a_restored_database_gets_back_also_what_it_wrote_itself() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    a.follows(&[&b]).pull();
    let copy = backup(&a);
    a.sql("INSERT INTO note VALUES ('2', 'lost here', 2); UPDATE note SET stars = 5 WHERE id = '1'");
    a.pull();
    b.follows(&[&a]).pull();

    restore(&a, &copy);
    // Past what `b` has read: with its old site id, `b` would never ask for this.
    a.sql("INSERT INTO note VALUES ('3', 'three', 3); INSERT INTO note VALUES ('4', 'four', 4); DELETE FROM note WHERE id = '4'");
    let site = a.rows("SELECT hex(crsql_site_id())");
    a.pull();
    assert_eq!(
        a.rows("SELECT hex(crsql_site_id())"),
        site,
        "it is ahead of what was seen, and so not known to be a copy"
    );

    restore(&a, &copy);
    a.pull();
    assert_ne!(a.rows("SELECT hex(crsql_site_id())"), site);
    assert_eq!(a.notes(), ["1|one|5", "2|lost here|2"]);
    a.sql("INSERT INTO note VALUES ('5', 'five', 5)");
    b.pull();
    a.pull();
    assert_converged(&[&a, &b]);
    assert_eq!(a.notes(), ["1|one|5", "2|lost here|2", "5|five|5"]);
}

#[test]
fn a_restored_database_gets_back_what_it_wrote_also_if_a_fetch_was_not_merged() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let copy = backup(&a);
    a.sql("INSERT INTO note VALUES ('2', 'lost here', 2)");
    b.follows(&[&a]).pull();
    b.sql("INSERT INTO note VALUES ('3', 'three', 3)");
    // From the beginning, but without what `a` wrote.
    a.follows(&[&b]).ok(["fetch"]);

    restore(&a, &copy);
    a.pull();
    assert_eq!(a.notes(), ["1|one|1", "2|lost here|2", "3|three|3"]);
    b.pull();
    assert_converged(&[&a, &b]);
}

#[test]
fn what_was_fetched_of_a_remote_that_was_restored_since_is_merged_with_it() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let copy = backup(&a);
    a.sql("INSERT INTO note VALUES ('2', 'lost there', 2)");
    a.ok(["init"]);
    b.follows(&[&a]).ok(["fetch"]);

    restore(&a, &copy);
    a.ok(["init"]);
    assert_snapshot!(b.run(["pull", "a"]), @"
    status 0
    --- stdout
    a: fetched 2 changes in SIZE
    a: merged 6 changes (note 4), 2 known already
    ");
    assert_eq!(b.notes(), ["1|one|1", "2|lost there|2"]);
    a.follows(&[&b]).pull();
    b.pull();
    assert_converged(&[&a, &b]);
}

#[test]
fn a_restored_database_gets_again_what_waited_beside_it() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    let colour =
        "SELECT crsql_begin_alter('note'); ALTER TABLE note ADD COLUMN colour; SELECT crsql_commit_alter('note')";
    a.sql(colour).sql("INSERT INTO note VALUES ('1', 'one', 1, 'red')");
    b.follows(&[&a]).pull();
    let copy = backup(&b);
    // What waits is in the state, from where it goes into the database that is to be lost.
    b.sql(colour).pull();
    assert_eq!(b.rows("SELECT colour FROM note"), ["red"]);

    restore(&b, &copy);
    b.sql(colour).pull();
    assert_eq!(b.rows("SELECT colour FROM note"), ["red"]);
    assert_converged(&[&a, &b]);
}

#[test]
fn a_copied_database_becomes_a_peer() {
    let world = World::new();
    let [a] = world.all_notes(["a"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1); INSERT INTO note VALUES ('2', 'two', 2); DELETE FROM note WHERE id = '2'");
    a.ok(["init"]);
    fs::write(world.path("b.db"), backup(&a)).unwrap();
    let b = world.repo("b");
    assert_snapshot!(b.run(["init"]), @"
    status 0
    --- stdout
    repository DIR/b.db
    state      DIR/.ddcp/b.db

    --- stderr
    TIME  WARN ddcp::repo::identity: it is a copy of another repository's database, or its state directory was lost; it was given a new site id database=DIR/b.db old=SITE new=SITE
    ");
    let site_of = |repo: &Repo| repo.rows("SELECT hex(crsql_site_id())");
    assert_ne!(site_of(&a), site_of(&b));
    assert_eq!(b.rows("SELECT DISTINCT hex(site_id) FROM crsql_changes"), site_of(&a), "who wrote what is kept");
    a.sql("INSERT INTO note VALUES ('3', 'of a', 3)");
    b.sql("INSERT INTO note VALUES ('4', 'of b', 4); UPDATE note SET stars = 7 WHERE id = '1'");
    a.follows(&[&b]).pull();
    b.follows(&[&a]).pull();
    assert_converged(&[&a, &b]);
    assert_eq!(a.notes(), ["1|one|7", "3|of a|3", "4|of b|4"]);
    let site = site_of(&b);
    b.ok(["init"]);
    b.pull();
    assert_eq!(site_of(&b), site, "once");
}

#[test]
fn a_database_copied_with_its_state_becomes_a_peer_and_one_that_is_moved_stays_itself() {
    let world = World::new();
    let [a] = world.all_notes(["a"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    a.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let copy = |from: &str, to: &str| {
        let script = format!("cp {from}.db {to}.db && cp -r .ddcp/{from}.db .ddcp/{to}.db");
        assert!(
            std::process::Command::new("sh")
                .args(["-c", &script])
                .current_dir(world.path(""))
                .status()
                .unwrap()
                .success()
        );
    };
    let site_of = |repo: &Repo| repo.rows("SELECT hex(crsql_site_id())");
    fs::create_dir(a.state("veilid")).unwrap();
    fs::write(a.state("veilid/identity.toml"), "the address of a").unwrap();
    copy("a", "b");
    let b = world.repo("b");
    b.ok(["init"]);
    assert_ne!(site_of(&a), site_of(&b));
    assert!(!b.state("veilid/identity.toml").exists(), "an address has one owner");

    let site = site_of(&a);
    copy("a", "c");
    fs::remove_file(a.db()).unwrap();
    let c = world.repo("c");
    c.ok(["init"]);
    assert_eq!(site_of(&c), site, "it was moved");
    assert!(c.state("veilid/identity.toml").exists());
}

#[test]
fn a_merge_after_a_restore_leaves_nothing_out() {
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
    assert_eq!(b.notes(), ["2|two|2"], "which does not count as read up to there");
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
    assert_snapshot!(a.run(["remote", "set-address", "copy", "a.db"]), @"
    status 2
    --- stderr
    error: DIR/a.db is this repository itself, not another one
    hint: give the remote the address of another repository: what `ddcp address` prints there, or its path
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
