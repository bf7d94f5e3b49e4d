//! Peers that are not there, addresses that are wrong, databases that are held.

use std::time::{Duration, Instant};

use crate::support::{Peer, Serving, network, serve_all, wait_until};

/// The address of a repository that has never been on the network.
fn address_never_published(host: &str) -> String {
    network().cut(host).unwrap();
    let peer = Peer::new(host);
    let serve = peer.start_serving();
    let address = serve.address.clone();
    serve.kill();
    network().heal(host).unwrap();
    address
}

#[test]
fn a_remote_that_never_started_does_not_hold_up_the_others() {
    let lease = network().lease::<3>();
    let [a_host, b_host, dead_host] = lease.hosts();
    let dead = address_never_published(dead_host);
    let (a, b) = (Peer::new(a_host), Peer::new(b_host));
    a.sql("INSERT INTO note VALUES ('a', 'from a', 1)");
    let serve = a.serve();
    b.add_remote("a", &serve.address);
    b.add_remote("dead", &dead);
    let outcome = b.run(&["pull"]);
    assert_eq!(outcome.code, Some(3), "{outcome:#?}");
    assert!(outcome.stderr.contains("error: dead: nothing is published under this address"), "{outcome:#?}");
    assert!(outcome.stderr.contains("hint: "), "{outcome:#?}");
    assert_eq!(b.notes(), "a|from a|1\n");
    assert_eq!(b.run(&["fetch", "dead"]).code, Some(4));
    assert!(b.ok(&["status"]).contains("failed   nothing is published"));
}

#[test]
fn a_peer_that_went_away_is_named_and_found_again() {
    let lease = network().lease::<2>();
    let [a, b] = lease.hosts().map(Peer::new);
    a.sql("INSERT INTO note VALUES ('a', 'one', 1)");
    let serve = a.serve();
    let address = serve.address.clone();
    b.add_remote("a", &address);
    b.ok(&["pull"]);

    serve.kill();
    let outcome = b.run(&["fetch", "a"]);
    assert_eq!(outcome.code, Some(4), "{outcome:#?}");
    assert!(outcome.stderr.contains("error: a: the peer does not answer"), "{outcome:#?}");
    assert!(outcome.stderr.contains("hint: check that `ddcp serve` runs at the other side"), "{outcome:#?}");

    a.sql("UPDATE note SET body = 'two'");
    let serve = a.serve();
    assert_eq!(serve.address, address, "the address stays after a kill");
    wait_until("b reaches the restarted a", || b.run(&["pull", "a"]).code == Some(0));
    assert_eq!(b.notes(), "a|two|1\n");

    assert_eq!(serve.terminate(), Some(0));
    a.sql("UPDATE note SET body = 'three'");
    let serve = a.serve();
    assert_eq!(serve.address, address, "the address stays after a proper end");
    wait_until("b reaches the restarted a", || b.run(&["pull", "a"]).code == Some(0));
    assert_eq!(b.notes(), "a|three|1\n");
}

#[test]
fn a_wrong_secret_is_told_from_a_wrong_address() {
    let lease = network().lease::<2>();
    let [a, b] = lease.hosts().map(Peer::new);
    let [first, second] = serve_all([&a, &b]);
    b.add_remote("a", &first.address);
    wait_until("a is reachable", || b.run(&["fetch", "a"]).code == Some(0));

    let (record, _) = first.address.rsplit_once(':').unwrap();
    let (_, secret) = second.address.rsplit_once(':').unwrap();
    b.ok(&["remote", "set-address", "a", &format!("{record}:{secret}")]);
    let outcome = b.run(&["fetch", "a"]);
    assert_eq!(outcome.code, Some(4), "{outcome:#?}");
    assert!(outcome.stderr.contains("its secret part is missing or wrong"), "{outcome:#?}");

    let outcome = b.run(&["remote", "set-address", "a", record]);
    assert_eq!(outcome.code, Some(2), "{outcome:#?}");
}

#[test]
fn a_database_in_somebody_elses_transaction_is_waited_for() {
    let lease = network().lease::<2>();
    let [a, b] = lease.hosts().map(Peer::new);
    a.sql("INSERT INTO note VALUES ('a', 'from a', 1)");
    let serve = a.serve();
    b.add_remote("a", &serve.address);
    b.ok(&["fetch", "a"]);

    let held = Duration::from_secs(3);
    let mut other = rusqlite::Connection::open(b.database()).unwrap();
    let transaction = other.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    let started = Instant::now();
    std::thread::scope(|scope| {
        let merge = scope.spawn(|| b.ok(&["merge", "a"]));
        wait_until("the time is over", || started.elapsed() >= held);
        transaction.commit().unwrap();
        merge.join().unwrap();
    });
    assert!(started.elapsed() >= held);
    assert_eq!(b.notes(), "a|from a|1\n");
}

/// A node's questions leave over other nodes. When those die it must find another way, and not wait until the network
/// has noticed.
#[test]
fn nodes_that_die_all_around_do_not_keep_two_apart() {
    let lease = network().lease::<6>();
    let [a, b, others @ ..] = lease.hosts().map(Peer::new);
    a.sql("INSERT INTO note VALUES ('a', 'from a', 1)");
    let serving = others.each_ref().map(Peer::start_serving);
    let [serve_a, _serve_b] = serve_all([&a, &b]);
    others[0].add_remote("a", &serve_a.address);
    wait_until("a is reachable", || others[0].run(&["pull"]).code == Some(0));
    b.add_remote("a", &serve_a.address);
    serving.into_iter().for_each(Serving::kill);
    b.ok(&["pull"]);
    assert_eq!(b.notes(), "a|from a|1\n");
}
