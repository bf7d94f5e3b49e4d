//! What the README promises.

use crate::support::{Peer, network, serve_all, wait_until};

#[test]
fn two_peers_synchronise_both_ways() {
    let lease = network().lease::<2>();
    let [a, b] = lease.hosts().map(Peer::new);
    a.sql("INSERT INTO note VALUES ('a', 'from a', 1), ('both', 'old', 0), ('gone', '', 0)");
    b.sql("INSERT INTO note VALUES ('b', 'from b', 2)");
    let [serve_a, serve_b] = serve_all([&a, &b]);
    a.add_remote("b", &serve_b.address);
    b.add_remote("a", &serve_a.address);
    assert_eq!(a.ok(&["address"]).trim(), serve_a.address);

    let before = b.notes();
    assert!(b.ok(&["fetch", "a"]).starts_with("a: fetched 6 changes"));
    assert_eq!(b.notes(), before, "fetch changes no table");
    assert_eq!(b.ok(&["fetch", "a"]), "a: nothing new\n");
    b.ok(&["merge", "a"]);
    a.ok(&["pull"]);
    assert_eq!(a.notes(), b.notes());

    a.sql("UPDATE note SET body = 'of a' WHERE id = 'both'; DELETE FROM note WHERE id = 'gone'");
    b.sql("UPDATE note SET body = 'of b', stars = 5 WHERE id = 'both'");
    b.ok(&["pull"]);
    a.ok(&["pull"]);
    assert_eq!(a.notes(), "a|from a|1\nb|from b|2\nboth|of b|5\n");
    assert_eq!(b.notes(), a.notes());
    assert_eq!(a.ok(&["fetch"]), "b: nothing new\n", "nobody is sent back his own changes");
    assert_eq!((serve_a.terminate(), serve_b.terminate()), (Some(0), Some(0)));
}

#[test]
fn the_middle_one_of_a_line_forwards() {
    let lease = network().lease::<3>();
    let [left, middle, right] = lease.hosts().map(Peer::new);
    left.sql("INSERT INTO note VALUES ('l', 'left', 1)");
    right.sql("INSERT INTO note VALUES ('r', 'right', 2)");
    let [serve_left, serve_middle, serve_right] = serve_all([&left, &middle, &right]);
    middle.add_remote("left", &serve_left.address);
    middle.add_remote("right", &serve_right.address);
    left.add_remote("middle", &serve_middle.address);
    right.add_remote("middle", &serve_middle.address);
    middle.ok(&["pull"]);
    left.ok(&["pull"]);
    right.ok(&["pull"]);
    assert_eq!(left.notes(), "l|left|1\nr|right|2\n");
    assert_eq!(right.notes(), left.notes());
    assert_eq!(middle.notes(), left.notes());
}

#[test]
fn fetching_needs_no_daemon_and_no_address_of_ones_own() {
    let lease = network().lease::<2>();
    let [a, b] = lease.hosts().map(Peer::new);
    a.sql("INSERT INTO note VALUES ('a', NULL, -9223372036854775808), ('', x'00ff', 1e999)");
    let serve = a.serve();
    b.add_remote("a", &serve.address);
    b.ok(&["pull", "a"]);
    assert_eq!(b.notes(), a.notes());
    assert_eq!(b.run(&["address"]).code, Some(1));
}

#[test]
fn a_large_value_and_many_rows_arrive_whole() {
    let lease = network().lease::<2>();
    let [a, b] = lease.hosts().map(Peer::new);
    a.sql("INSERT INTO note VALUES ('large', randomblob(5000000), 1)");
    a.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
         INSERT INTO note SELECT 'row ' || i, hex(randomblob(8)), i FROM n",
    );
    let serve = a.serve();
    b.add_remote("a", &serve.address);
    let fetched = b.ok(&["fetch", "a"]);
    assert!(fetched.starts_with("a: fetched 200002 changes"), "{fetched}");
    b.ok(&["merge", "a"]);
    assert_eq!(b.digest("note"), a.digest("note"));
    let blob = "SELECT count(*) FROM note WHERE id = 'large' AND typeof(body) = 'blob' AND length(body) = 5000000";
    assert_eq!(b.sql(blob), "1\n");

    a.sql("UPDATE note SET stars = -1 WHERE id = 'row 77'");
    assert!(b.ok(&["pull", "a"]).starts_with("a: fetched 1 change in"));
    assert_eq!(b.sql("SELECT stars FROM note WHERE id = 'row 77'"), "-1\n");

    // The digest takes the serving side longer than a call may take.
    assert!(b.ok(&["verify", "a"]).starts_with("identical to a"));
    b.sql("DELETE FROM note__crsql_clock WHERE key = 77");
    let verified = b.ok(&["verify", "a"]);
    assert!(verified.contains("mended 2 records of note"), "{verified}");
}

#[test]
fn peers_that_follow_each_other_stay_equal_by_themselves() {
    let lease = network().lease::<3>();
    let [left, middle, right] = lease.hosts().map(Peer::new);
    let [serve_left, serve_middle, serve_right] = serve_all([&left, &middle, &right]);
    let follow = |peer: &Peer, name: &str, address: &str| peer.ok(&["remote", "add", name, address, "--sync", "auto"]);
    follow(&middle, "left", &serve_left.address);
    follow(&middle, "right", &serve_right.address);
    follow(&left, "middle", &serve_middle.address);
    follow(&right, "middle", &serve_middle.address);
    left.sql("INSERT INTO note VALUES ('l', 'left', 1)");
    right.sql("INSERT INTO note VALUES ('r', 'right', 2)");
    for peer in [&left, &middle, &right] {
        wait_until("everybody has everything", || peer.notes() == "l|left|1\nr|right|2\n");
    }
    left.sql("UPDATE note SET stars = 5");
    wait_until("a change comes all the way", || right.notes() == "l|left|5\nr|right|5\n");

    serve_middle.kill();
    right.sql("DELETE FROM note WHERE id = 'l'");
    let _serve_middle = middle.serve();
    wait_until("and after a restart too", || left.notes() == "r|right|5\n");
    wait_until("they know that they are equal", || left.ok(&["status"]).contains("identical to middle"));
}

#[test]
fn a_commit_is_hinted_to_who_follows() {
    let lease = network().lease::<2>();
    let [writer, reader] = lease.hosts().map(Peer::new);
    // Who answers only remotes lets itself be hinted by them too.
    reader.ok(&["config", "set", "access", "private"]);
    let [serve_writer, serve_reader] = [&writer, &reader].map(|peer| peer.start_serving_with(&["-v"]));
    reader.ok(&["remote", "add", "writer", &serve_writer.address, "--sync", "auto"]);
    writer.ok(&["remote", "add", "reader", &serve_reader.address]);
    writer.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    wait_until("what is there comes", || reader.notes() == "1|one|1\n");

    let hints = || reader.serve_log().matches("the remote hints that something is new").count();
    for stars in 2..5 {
        let before = hints();
        writer.sql(&format!("UPDATE note SET stars = {stars}"));
        wait_until("the commit is hinted", || hints() > before);
        wait_until("and comes", || reader.notes() == format!("1|one|{stars}\n"));
    }
}
