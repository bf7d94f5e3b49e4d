//! Killed, cut off, repeated.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::support::{Peer, network, send, wait_until};

/// Enough for several packs, in many transactions' worth of time.
fn fill(peer: &Peer) {
    peer.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
         INSERT INTO note SELECT 'row ' || i, hex(randomblob(40)), i FROM n",
    );
}

#[test]
fn killed_in_the_middle_of_fetch_and_of_merge() {
    let lease = network().lease::<2>();
    let [a, b] = lease.hosts().map(Peer::new);
    fill(&a);
    let serve = a.serve();
    b.add_remote("a", &serve.address);

    let mut fetch = b.command(&["fetch", "a"]).stdout(Stdio::null()).spawn().unwrap();
    wait_until("a pack lies in the inbox", || b.packs_in_inbox() > 0);
    send(&fetch, Signal::SIGKILL);
    fetch.wait().unwrap();
    assert_eq!(b.sql("SELECT count(*) FROM note"), "0\n");
    b.ok(&["fetch", "a"]);
    let fetched = b.packs_in_inbox();
    assert!(fetched > 1, "{fetched} packs are too few to be killed between");

    let mut merge = b.command(&["merge", "a"]).stdout(Stdio::null()).spawn().unwrap();
    wait_until("a pack is merged", || b.packs_in_inbox() < fetched);
    send(&merge, Signal::SIGKILL);
    merge.wait().unwrap();
    assert_eq!(b.sql("PRAGMA integrity_check"), "ok\n");
    b.ok(&["merge", "a"]);
    assert_eq!(b.digest("note"), a.digest("note"));
    assert_eq!(b.ok(&["pull", "a"]), "a: nothing new\na: nothing to merge\n");
}

#[test]
fn a_link_that_is_cut_and_restored_costs_time_only() {
    let lease = network().lease::<2>();
    let [a, b] = lease.hosts().map(Peer::new);
    fill(&a);
    let serve = a.serve();
    b.add_remote("a", &serve.address);

    let mut fetch = b.command(&["fetch", "a"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("a pack lies in the inbox", || b.packs_in_inbox() > 0 || fetch.try_wait().unwrap().is_some());
    network().cut(&b.host).unwrap();
    let before = std::time::Instant::now();
    wait_until("five seconds without a link", || before.elapsed().as_secs() >= 5);
    network().heal(&b.host).unwrap();
    fetch.wait().unwrap();
    // The fetch lived through the cut, or ended with an error; then it is repeated.
    wait_until("the rest is fetched", || b.run(&["pull", "a"]).code == Some(0));
    assert_eq!(b.digest("note"), a.digest("note"));
}

/// One value is one pack: nothing of it lies in the inbox before all of it has come.
#[test]
fn a_large_value_goes_on_where_it_was_broken_off() {
    let lease = network().lease::<2>();
    let [a, b] = lease.hosts().map(Peer::new);
    a.sql("INSERT INTO note VALUES ('large', randomblob(30000000), 1)");
    let mut serve = a.serve();
    b.add_remote("a", &serve.address);
    let before = received(&b);

    // A link that takes some seconds for it.
    network().link(&b.host, testnet::Link { loss: 0.0, delay: Duration::from_millis(20) }).unwrap();
    let fetch = || b.start_logged(&["fetch", "a"]);
    let mut fetching = fetch();
    let has_come = |bytes: u64| b.parts_bytes() > bytes || b.packs_in_inbox() > 0;
    wait_until("a quarter has come", || {
        let ended = fetching.try_wait().unwrap();
        assert!(ended.is_none(), "it ended with {ended:?} before anything was done to it: {}", b.log("fetch"));
        has_come(7_500_000)
    });
    network().cut(&b.host).unwrap();
    let cut = Instant::now();
    wait_until("three seconds without a link", || cut.elapsed().as_secs() >= 3);
    network().heal(&b.host).unwrap();
    wait_until("half of it has come", || has_come(15_000_000));
    send(&fetching, Signal::SIGKILL);
    fetching.wait().unwrap();
    assert_eq!(b.packs_in_inbox(), 0, "it was killed too late to be of use");

    let mut fetching = fetch();
    wait_until("three quarters have come", || {
        // The way there may still be one from before the cut: then it is told, and repeated.
        if fetching.try_wait().unwrap().is_some_and(|status| !status.success()) {
            fetching = fetch();
        }
        has_come(22_500_000)
    });
    serve.kill();
    serve = a.serve();
    wait_until("the fetch has ended", || fetching.try_wait().unwrap().is_some());
    wait_until("it is fetched and merged", || b.run(&["pull", "a"]).code == Some(0));
    assert_eq!(b.digest("note"), a.digest("note"));
    assert_eq!(b.parts_bytes(), 0, "nothing is left of it");
    let received = received(&b) - before;
    eprintln!("received {received} bytes for 30,000,000");
    // What is below it (Veilid, TCP, Ethernet) takes some per cent, and each break what was in flight.
    assert!(received < 39_000_000, "{received} bytes were received for 30,000,000");
    drop(serve);
}

fn received(peer: &Peer) -> u64 {
    network().stats(&peer.host).unwrap().rx_bytes
}

#[test]
fn slow_and_lossy_links_carry_it() {
    let lease = network().lease::<2>();
    let [a, b] = lease.hosts().map(Peer::new);
    a.sql("INSERT INTO note VALUES ('large', randomblob(300000), 1)");
    let serve = a.serve();
    b.add_remote("a", &serve.address);
    let link = testnet::Link { loss: 0.05, delay: std::time::Duration::from_millis(40) };
    network().link(&b.host, link).unwrap();
    wait_until("it is fetched and merged", || b.run(&["pull", "a"]).code == Some(0));
    assert_eq!(b.digest("note"), a.digest("note"));
}
