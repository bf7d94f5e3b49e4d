//! Changes that do not fit the receiver's tables wait until they do.

use insta::assert_snapshot;

use crate::support::{NOTE, World, assert_converged};

#[test]
fn a_table_that_does_not_exist_here() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(
        "CREATE TABLE extra (id INTEGER NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('extra');
         INSERT INTO extra VALUES (1, 'one'), (2, 'two'); INSERT INTO note VALUES ('1', 'one', 1)",
    );
    b.follows(&[&a]);
    assert_snapshot!(b.run(["pull"]), @"
    status 0
    --- stdout
    a: fetched 4 changes in SIZE
    a: merged 4 changes (note 2)
    a: 2 changes waiting:
      table extra: there is no such table, or it is no CRR
    ");
    assert_eq!(b.notes(), ["1|one|1"], "what fits is merged");
    assert_snapshot!(b.run(["status"]), @"
    status 0
    --- stdout
    database DIR/b.db
    version  2
    site id  SITE
    tables   note
    address  none yet; `ddcp serve` gives it one
    serving  no

    remote   a
    address  DIR/a.db
    contact  TIME
    version  2
    fetched  0 changes not merged
    waiting  2 changes:
      table extra: there is no such table, or it is no CRR
    ");
    assert_snapshot!(b.run(["merge"]), @"
    status 0
    --- stdout
    a: nothing of it could be merged
    a: 2 changes waiting:
      table extra: there is no such table, or it is no CRR
    ");
    // More of the same arrives while the first still waits.
    a.sql("UPDATE extra SET x = 'deux' WHERE id = 2; DELETE FROM extra WHERE id = 1; INSERT INTO extra VALUES (3, 'three')");
    b.pull();
    // A table that is there, but does not replicate, is not written.
    b.sql("CREATE TABLE extra (id INTEGER NOT NULL PRIMARY KEY, x)").pull();
    assert_eq!(b.rows("SELECT * FROM extra"), [""; 0]);
    b.sql("SELECT crsql_as_crr('extra')");
    assert_snapshot!(b.run(["merge"]), @"
    status 0
    --- stdout
    a: merged 5 changes (extra 5)
    ");
    assert_eq!(b.rows("SELECT * FROM extra ORDER BY id"), ["2|deux", "3|three"]);
    assert_converged(&[&a, &b]);
}

#[test]
fn a_column_that_does_not_exist_here() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(
        "SELECT crsql_begin_alter('note'); ALTER TABLE note ADD COLUMN colour TEXT; SELECT crsql_commit_alter('note');
         INSERT INTO note VALUES ('1', 'one', 1, 'red')",
    );
    b.follows(&[&a]);
    assert_snapshot!(b.run(["pull"]), @"
    status 0
    --- stdout
    a: fetched 3 changes in SIZE
    a: merged 3 changes (note 2)
    a: 1 change waiting:
      table note: the table has no column colour
    ");
    assert_eq!(b.notes(), ["1|one|1"], "the columns that exist are merged");
    b.sql(
        "SELECT crsql_begin_alter('note'); ALTER TABLE note ADD COLUMN colour TEXT; SELECT crsql_commit_alter('note')",
    );
    assert_snapshot!(b.run(["pull"]), @"
    status 0
    --- stdout
    a: nothing new
    a: merged 1 change (note 1)
    ");
    assert_converged(&[&a, &b]);
}

#[test]
fn a_table_that_came_while_the_remote_was_forgotten() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.follows(&[&a]).pull();
    b.ok(["remote", "remove", "a"]);
    // Rows that are there already are recorded under the version that is current, which has been read.
    let extra = "CREATE TABLE extra (id INTEGER NOT NULL PRIMARY KEY, x)";
    a.sql(&format!("{extra}; INSERT INTO extra VALUES (1, 'one'); SELECT crsql_as_crr('extra')"));
    b.sql(&format!("{extra}; SELECT crsql_as_crr('extra')")).follows(&[&a]).pull();
    assert_eq!(b.rows("SELECT x FROM extra"), ["one"]);
    assert_converged(&[&a, &b]);
}

#[test]
fn a_table_with_another_key() {
    let world = World::new();
    let a = world.notes("a");
    let b = world.repo("b");
    b.ok(["init"]);
    b.sql(
        "CREATE TABLE note (id TEXT NOT NULL, stars INTEGER NOT NULL, body TEXT, PRIMARY KEY (id, stars));
         SELECT crsql_as_crr('note'); INSERT INTO note VALUES ('mine', 1, 'kept')",
    );
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.follows(&[&a]);
    assert_snapshot!(b.run(["pull"]), @"
    status 0
    --- stdout
    a: fetched 2 changes in SIZE
    a: nothing of it could be merged
    a: 2 changes waiting:
      table note: the table has another primary key
    ");
    assert_eq!(b.rows("SELECT * FROM note"), ["mine|1|kept"]);
    b.sql("DROP TABLE note; DROP TABLE note__crsql_clock; DROP TABLE note__crsql_pks;").sql(NOTE);
    assert_snapshot!(b.run(["merge"]), @"
    status 0
    --- stdout
    a: merged 2 changes (note 2)

    --- stderr
    TIME  WARN ddcp::repo::identity: its version went back from 1 to 0: restored from a copy, or a table was dropped; it was given a new site id database=DIR/b.db old=SITE new=SITE
    ");
    assert_eq!(b.notes(), ["1|one|1"]);
}

#[test]
fn a_constraint_of_this_side() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    b.sql(
        "CREATE TRIGGER few BEFORE INSERT ON note WHEN new.id = 'bad' BEGIN SELECT raise(ABORT, 'no bad notes'); END",
    );
    a.sql("INSERT INTO note VALUES ('bad', 'x', 1), ('good', 'y', 2)");
    b.follows(&[&a]);
    assert_snapshot!(b.run(["pull"]), @"
    status 0
    --- stdout
    a: fetched 4 changes in SIZE
    a: merged 4 changes (note 2)
    a: 2 changes waiting:
      table note: constraint failed: no bad notes
    ");
    assert_eq!(b.notes(), ["good|y|2"]);
    b.sql("DROP TRIGGER few").ok(["merge"]);
    assert_converged(&[&a, &b]);
}

#[test]
fn what_waits_here_still_reaches_others() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    let c = world.repo("c");
    c.ok(["init"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    c.follows(&[&a]).pull();
    b.follows(&[&c]).pull();
    assert_eq!(b.notes(), [""; 0]);
    c.sql(NOTE).ok(["merge"]);
    b.pull();
    assert_converged(&[&a, &b, &c]);
}
