//! Killed, cut off, repeated.

use std::process::Stdio;

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
