//! Private repositories: real signatures, over real routes.

use crate::support::{Outcome, Peer, network, serve_all, wait_until};

fn is_not_authorised(outcome: &Outcome) -> bool {
    outcome.code == Some(1) && outcome.stderr.contains("not authorised")
}

#[test]
fn a_private_repository_answers_its_remotes_only() {
    let lease = network().lease::<3>();
    let [owner, friend, stranger] = lease.hosts().map(Peer::new);
    owner.sql("INSERT INTO note VALUES ('1', 'among friends', 1)");
    owner.ok(&["config", "set", "access", "private"]);
    let [serve, friend_serve] = serve_all([&owner, &friend]);
    assert!(owner.ok(&["status"]).contains("access   private\n"));
    owner.add_remote("friend", &friend_serve.address);
    friend.add_remote("owner", &serve.address);
    stranger.add_remote("owner", &serve.address);
    friend.ok(&["pull"]);
    assert_eq!(friend.notes(), owner.notes());

    let outcome = stranger.run(&["pull"]);
    assert!(is_not_authorised(&outcome), "{outcome:#?}");
    let address = stranger.ok(&["address"]).trim().to_owned();
    assert!(outcome.stderr.contains(&format!("`ddcp remote add NAME {address}`")), "{outcome:#?}");
    assert_eq!(stranger.notes(), "");
    let status = stranger.ok(&["status", "--format", "json"]);
    assert!(status.contains("\"version\": null") && status.contains("not authorised"), "{status}");

    // He does as he is told, and so does the owner.
    owner.add_remote("stranger", &address);
    stranger.ok(&["pull"]);
    assert_eq!(stranger.notes(), owner.notes());

    owner.ok(&["remote", "remove", "friend"]);
    owner.sql("UPDATE note SET body = 'among others'");
    let outcome = friend.run(&["pull"]);
    assert!(is_not_authorised(&outcome), "{outcome:#?}");
    assert_eq!(friend.notes(), "1|among friends|1\n");
    stranger.ok(&["pull"]);
    assert_eq!(stranger.notes(), owner.notes());

    owner.ok(&["config", "set", "access", "address"]);
    friend.ok(&["pull"]);
    assert_eq!(friend.notes(), owner.notes());
}

#[test]
fn a_private_repository_is_followed_until_the_owner_ends_it() {
    let lease = network().lease::<2>();
    let [owner, friend] = lease.hosts().map(Peer::new);
    owner.ok(&["config", "set", "access", "private"]);
    let [serve, friend_serve] = serve_all([&owner, &friend]);
    owner.add_remote("friend", &friend_serve.address);
    friend.ok(&["remote", "add", "owner", &serve.address, "--sync", "auto"]);
    for stars in 1..=3 {
        owner.sql(&format!("INSERT INTO note VALUES ('{stars}', '', {stars})"));
        wait_until("the friend has it", || friend.notes() == owner.notes());
    }
    owner.ok(&["remote", "remove", "friend"]);
    let before = friend.notes();
    owner.sql("INSERT INTO note VALUES ('4', 'no longer', 4)");
    wait_until("the friend is refused", || friend.ok(&["status"]).contains("failed   not authorised"));
    assert_eq!(friend.notes(), before);
}
