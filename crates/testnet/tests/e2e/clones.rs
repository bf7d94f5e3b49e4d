//! Cloning over real routes.

use std::fmt::Write as _;

use crate::support::{Peer, network};

#[test]
fn a_clone_has_the_tables_and_what_is_in_them() {
    let lease = network().lease::<2>();
    let [a, b] = lease.hosts();
    let (a, b) = (Peer::new(a), Peer::bare(b));
    // More declarations than one message holds.
    let columns: String = (0..30).fold(String::new(), |mut text, column| {
        let _ = write!(text, ", \"a column with quite a long name, number {column}\" TEXT");
        text
    });
    let tables: String = (0..20).fold(String::new(), |mut text, table| {
        let _ = write!(
            text,
            "CREATE TABLE t{table} (id INTEGER PRIMARY KEY NOT NULL{columns}); SELECT crsql_as_crr('t{table}');"
        );
        text
    });
    a.sql(&tables);
    a.sql("CREATE INDEX by_stars ON note (stars); INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
    let serve = a.serve();
    let cloned = b.ok(&["clone", &serve.address, "peer.db", "--name", "a"]);
    assert!(cloned.contains("\na: fetched 4 changes in"), "{cloned}");
    assert_eq!(b.notes(), a.notes());
    let declared = "SELECT sql FROM sqlite_master WHERE sql NOT LIKE '%crsql%' ORDER BY name";
    assert_eq!(b.sql(declared), a.sql(declared));
    assert_eq!(b.ok(&["schema", "diff", "a"]), "");

    let serve_b = b.serve();
    a.add_remote("b", &serve_b.address);
    b.sql("INSERT INTO note VALUES ('3', 'three', 3)");
    a.ok(&["pull"]);
    assert_eq!(a.notes(), b.notes());
    // While both serve, a table comes.
    a.sql("CREATE TABLE late (id INTEGER PRIMARY KEY NOT NULL, x); SELECT crsql_as_crr('late'); INSERT INTO late VALUES (1, 'x')");
    assert!(b.ok(&["pull"]).contains("a: its tables differ from those here:\n  table late: it is not here\n"));
    assert!(b.ok(&["schema", "adopt", "a", "--yes"]).ends_with("a: merged 1 change (late 1)\n"));
    assert_eq!(b.sql("SELECT * FROM late"), "1|x\n");
}

#[test]
fn a_private_repository_is_cloned_when_its_owner_has_added_the_clone() {
    let lease = network().lease::<2>();
    let [owner, friend] = lease.hosts();
    let (owner, friend) = (Peer::new(owner), Peer::bare(friend));
    owner.sql("INSERT INTO note VALUES ('1', 'among friends', 1)");
    owner.ok(&["config", "set", "access", "private"]);
    let serve = owner.serve();
    let clone = ["clone", &serve.address];
    let outcome = friend.run(&clone);
    assert_eq!(outcome.code, Some(1), "{outcome:#?}");
    let address = friend.ok(&["address"]).trim().to_owned();
    for words in ["not authorised", &format!("`ddcp remote add NAME {address}`"), "then repeat the command"] {
        assert!(outcome.stderr.contains(words), "{words}: {outcome:#?}");
    }
    assert_eq!(friend.sql("SELECT count(*) FROM sqlite_master WHERE name NOT LIKE '%crsql%'"), "0\n");
    owner.add_remote("friend", &address);
    friend.ok(&clone);
    assert_eq!(friend.notes(), owner.notes());
}
