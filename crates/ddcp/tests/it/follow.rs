//! What `ddcp serve` fetches and merges by itself. Remotes are paths; peers are followed in `crates/testnet`.

use std::{
    fs,
    os::unix::fs::symlink,
    thread,
    time::{Duration, Instant},
};

use crate::{
    serve::Daemon,
    support::{NOTE, PATIENCE, Repo, World, assert_converged, hang},
};

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn unmerged(repo: &Repo) -> u64 {
    repo.json(&["status"])["remotes"][0]["unmerged"].as_u64().unwrap()
}

#[test]
fn a_remote_is_fetched_and_merged_as_it_changes() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'before', 1)");
    let _serve = Daemon::start(&world, &b);
    b.ok(["remote", "add", "a", "a.db", "--sync", "auto"]);
    wait_until("what is there is merged", || b.notes() == ["1|before|1"]);
    a.sql("UPDATE note SET body = 'after'");
    wait_until("a change is merged", || b.notes() == ["1|after|1"]);
    assert!(b.ok(["status"]).contains("\nsync     auto\n"));
    assert_converged(&[&a, &b]);
}

#[test]
fn the_setting_says_how_far_it_goes_and_may_change() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.follows(&[&a]);
    let _serve = Daemon::start(&world, &b);
    b.ok(["remote", "set", "a", "sync", "fetch"]);
    wait_until("it is fetched", || unmerged(&b) == 2);
    assert_eq!(b.notes(), [""; 0], "and no more");
    b.ok(["remote", "set", "a", "sync", "auto"]);
    wait_until("it is merged", || b.notes() == ["1|one|1"]);
    assert_eq!(b.json(&["remote", "list"])[0]["sync"], "auto");
}

#[test]
fn a_failing_remote_holds_up_none_and_is_followed_once_it_is_there() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    let _serve = Daemon::start(&world, &b);
    b.ok(["remote", "add", "later", "c.db", "--sync", "auto"]);
    b.ok(["remote", "add", "a", "a.db", "--sync", "auto"]);
    a.sql("INSERT INTO note VALUES ('a', 'from a', 1)");
    wait_until("a is followed", || b.notes() == ["a|from a|1"]);
    wait_until("the other's failure is told", || b.ok(["status"]).contains("failed   there is no database at"));
    let c = world.notes("c");
    c.sql("INSERT INTO note VALUES ('c', 'from c', 3)");
    wait_until("c is followed too", || b.notes() == ["a|from a|1", "c|from c|3"]);
}

#[test]
fn remotes_that_hang_hold_up_none() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    // More than may be fetched from at once, whose names sort before the other's.
    let files: Vec<_> = (0..12).map(|number| format!("hangs{number}.db")).collect();
    for file in &files {
        b.ok(["remote", "add", file, file, "--sync", "auto"]);
    }
    b.ok(["remote", "add", "well", "a.db", "--sync", "auto"]);
    let hanging: Vec<_> = files.iter().map(|file| hang(&world.path(file))).collect();
    let _serve = Daemon::start(&world, &b);
    for stars in ["1", "2", "3"] {
        a.sql(&format!("INSERT OR REPLACE INTO note VALUES ('a', 'from a', {stars})"));
        wait_until("a is followed", || b.notes() == [format!("a|from a|{stars}")]);
    }
    b.ok(["status"]);
    drop(hanging);
}

#[test]
fn a_file_is_followed_at_once_and_to_the_last_commit() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    b.ok(["remote", "add", "a", "a.db", "--sync", "auto"]);
    let _serve = Daemon::start(&world, &b);
    let writer = a.connection();
    for number in 0..300 {
        writer.execute("INSERT INTO note VALUES (?, 'x', 0)", [format!("{number:03}")]).unwrap();
        // Some while the follower fetches, some while it rests.
        thread::sleep(Duration::from_millis(if number % 100 == 0 { 1000 } else { number % 7 }));
    }
    wait_until("all is there", || b.rows("SELECT count(*) FROM note") == ["300"]);
    assert_converged(&[&a, &b]);
}

#[test]
fn a_link_is_followed_by_the_file_it_leads_to() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    let c = world.notes("c");
    fs::create_dir(world.path("links")).unwrap();
    let link = world.path("links/l.db");
    symlink("../a.db", &link).unwrap();
    b.ok(["remote", "add", "l", "links/l.db", "--sync", "auto"]);
    let _serve = Daemon::start(&world, &b);
    a.sql("INSERT INTO note VALUES ('1', 'one', 0)");
    wait_until("it is followed", || b.notes() == ["1|one|0"]);
    // Commits whose log goes on existing, so that only the log tells of them.
    let writer = a.connection();
    let mut delays = Vec::new();
    for stars in 1..8 {
        // What is looked for in any case is over.
        thread::sleep(Duration::from_millis(4500));
        let began = Instant::now();
        writer.execute("UPDATE note SET stars = ?", [stars]).unwrap();
        wait_until("a commit is followed", || b.notes() == [format!("1|one|{stars}")]);
        delays.push(began.elapsed());
    }
    delays.sort();
    assert!(delays[3] < Duration::from_secs(1), "looking without being told takes seconds: {delays:?}");
    // And where it leads from now on.
    c.sql("INSERT INTO note VALUES ('2', 'of c', 0)");
    fs::remove_file(&link).unwrap();
    symlink("../c.db", &link).unwrap();
    wait_until("the other one is followed", || b.notes().len() == 2);
}

#[test]
fn changes_that_wait_for_a_table_are_merged_when_it_comes() {
    let world = World::new();
    let a = world.notes("a");
    let b = world.repo("b");
    b.ok(["init"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let _serve = Daemon::start(&world, &b);
    b.ok(["remote", "add", "a", "a.db", "--sync", "auto"]);
    wait_until("the changes wait", || b.ok(["status"]).contains("waiting  2 changes"));
    b.sql(NOTE);
    wait_until("they are merged", || b.notes() == ["1|one|1"]);
    assert_converged(&[&a, &b]);
}
