//! Changes that do not fit the receiver's tables wait until they do.

use insta::assert_snapshot;

use crate::support::{NOTE, Repo, World, assert_converged};

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
    a: its tables differ from those here:
      table extra: it is not here
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
    schema   differs:
      table extra: it is not here
    fetched  0 changes not merged
    waiting  2 changes:
      table extra: there is no such table, or it is no CRR
    ");
    assert_snapshot!(b.run(["merge"]), @"
    status 0
    --- stdout
    a: nothing to merge
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
    a: its tables differ from those here:
      table note: column colour is not here
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
    a: its tables differ from those here:
      table note: it has another primary key: (id, stars) here, (id) there
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

#[test]
fn what_a_remote_has_more_is_shown_and_adopted() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(
        "SELECT crsql_begin_alter('note'); ALTER TABLE note ADD COLUMN colour TEXT DEFAULT 'red';
         SELECT crsql_commit_alter('note');
         CREATE TABLE extra (id INTEGER NOT NULL PRIMARY KEY, x); CREATE INDEX extra_x ON extra (x);
         SELECT crsql_as_crr('extra');
         INSERT INTO extra VALUES (1, 'one'); INSERT INTO note VALUES ('1', 'one', 1, 'blue')",
    );
    b.sql(
        "CREATE TABLE own (id INTEGER NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('own');
         INSERT INTO own VALUES (1, 'kept'); INSERT INTO note VALUES ('2', 'two', 2)",
    );
    b.follows(&[&a]);
    assert_snapshot!(b.run(["schema", "diff", "a"]), @"
    status 0
    --- stdout
    table extra: it is not here
    table note: column colour is not here
    table own: it is not there
    ");
    b.pull();
    assert_snapshot!(b.run(["schema", "adopt", "a"]), @r#"
    status 0
    --- stdout
    CREATE TABLE extra (id INTEGER NOT NULL PRIMARY KEY, x);
    SELECT crsql_as_crr('extra');
    CREATE INDEX extra_x ON extra (x);
    SELECT crsql_begin_alter('note');
    ALTER TABLE "note" ADD COLUMN colour TEXT DEFAULT 'red';
    SELECT crsql_commit_alter('note');
    stays as it is:
      table own: it is not there

    --- stderr
    nothing was changed; `ddcp schema adopt a --yes=SITE` runs these statements
    "#);
    assert_eq!(b.rows("SELECT * FROM note ORDER BY id"), ["1|one|1", "2|two|2"]);
    let adopted = b.run(["schema", "adopt", "a", "--yes"]).assert_status(0);
    assert!(adopted.stdout.ends_with("a: merged 2 changes (extra 1, note 1)\n"), "{adopted}");
    assert_eq!(b.rows("SELECT * FROM note ORDER BY id"), ["1|one|1|blue", "2|two|2|red"]);
    assert_eq!(b.rows("SELECT * FROM extra"), ["1|one"]);
    assert_eq!(b.rows("SELECT * FROM own"), ["1|kept"], "what the remote lacks is not touched");
    assert_snapshot!(b.run(["schema", "adopt", "a", "--yes"]), @"
    status 0
    --- stdout
    stays as it is:
      table own: it is not there

    --- stderr
    there is nothing to add
    ");
    let status = b.json(&["status"]);
    assert_eq!(status["remotes"][0]["schema"]["tables"]["own"][0]["difference"], "missing-there");
    assert_eq!(status["remotes"][0]["waiting"], 0);

    a.follows(&[&b]).ok(["schema", "adopt", "b", "--yes"]);
    a.pull();
    b.pull();
    assert_converged(&[&a, &b]);
    assert_snapshot!(b.run(["schema", "diff", "a"]), @"
    status 0
    --- stderr
    no shared table differs
    ");
    assert!(b.json(&["status"])["remotes"][0].get("schema").is_none());
}

#[test]
fn differences_are_told_as_long_as_they_are_known_to_hold() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    let add = |repo: &Repo, column: &str| {
        repo.sql(&format!(
            "SELECT crsql_begin_alter('note'); ALTER TABLE note ADD COLUMN {column}; SELECT crsql_commit_alter('note')"
        ));
    };
    add(&a, "colour TEXT");
    add(&a, "size INTEGER");
    add(&b, "size TEXT");
    b.follows(&[&a]);
    let fetched = b.json(&["fetch"]);
    let expected = serde_json::json!({"tables": {"note": [
        {"difference": "column-missing-here", "column": "colour"},
        {"difference": "other-type", "column": "size", "here": "TEXT", "there": "INTEGER"},
    ]}});
    assert_eq!(fetched[0]["done"]["schema"], expected);
    assert_eq!(b.json(&["status"])["remotes"][0]["schema"], expected);
    assert_eq!(b.json(&["fetch"])[0]["done"]["schema"], expected, "also when nothing is new");
    add(&b, "colour TEXT");
    let status = b.ok(["status"]);
    assert!(status.contains("schema   differs:\n  not known where: the tables here have changed since"), "{status}");
    assert_eq!(
        b.ok(["fetch"]).lines().skip(2).collect::<Vec<_>>(),
        ["  table note: column size is of type TEXT here, of type INTEGER there"]
    );
}

#[test]
fn what_a_remote_wrote_is_adopted_as_it_is() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    b.sql("INSERT INTO note VALUES ('mine', 'kept', 1)");
    a.sql(
        "SELECT crsql_begin_alter('note'); ALTER TABLE note ADD COLUMN state TEXT NOT NULL DEFAULT \"open\";
         ALTER TABLE note ADD COLUMN tag TEXT COLLATE NOCASE CHECK (tag <> ''); ALTER TABLE note ADD COLUMN loud AS (upper(body));
         SELECT crsql_commit_alter('note');
         INSERT INTO note (id, body, tag) VALUES ('1', 'one', 'Red')",
    );
    b.follows(&[&a]).pull();
    assert_snapshot!(b.run(["schema", "adopt", "a", "--yes"]), @r#"
    status 0
    --- stdout
    SELECT crsql_begin_alter('note');
    ALTER TABLE "note" ADD COLUMN state TEXT NOT NULL DEFAULT "open";
    ALTER TABLE "note" ADD COLUMN tag TEXT COLLATE NOCASE CHECK (tag <> '');
    ALTER TABLE "note" ADD COLUMN loud AS (upper(body));
    SELECT crsql_commit_alter('note');
    a: merged 2 changes (note 2)

    --- stderr
    these statements were run
    "#);
    assert_eq!(b.rows("SELECT id, state, tag, loud FROM note WHERE tag = 'RED'"), ["1|open|Red|ONE"]);
    assert_eq!(b.rows("SELECT state, loud FROM note WHERE id = 'mine'"), ["open|KEPT"]);
    assert!(b.connection().execute_batch("UPDATE note SET tag = ''").is_err());
    a.follows(&[&b]).pull();
    assert_converged(&[&a, &b]);

    // What ALTER TABLE does not add.
    b.sql(
        "CREATE TABLE seen (id TEXT NOT NULL PRIMARY KEY, x, at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, day AS (date(at)) STORED);
         SELECT crsql_as_crr('seen'); INSERT INTO seen VALUES ('1', 'b', '1999-01-01')",
    );
    a.sql("CREATE TABLE seen (id TEXT NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('seen'); INSERT INTO seen VALUES ('1', 'a'), ('2', 'a')")
        .pull();
    assert_snapshot!(a.run(["schema", "adopt", "b"]), @r#"
    status 0
    --- stdout
    SELECT crsql_begin_alter('seen');
    CREATE TEMP TABLE "seen__crsql_kept" AS SELECT +rowid AS c0, +"id" AS c1, +"x" AS c2 FROM main."seen";
    DROP TABLE main."seen";
    CREATE TABLE seen (id TEXT NOT NULL PRIMARY KEY, x, at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, day AS (date(at)) STORED);
    INSERT INTO main."seen" (rowid, "id", "x") SELECT c0, c1, c2 FROM temp."seen__crsql_kept";
    DROP TABLE temp."seen__crsql_kept";
    SELECT crsql_commit_alter('seen');
    UPDATE "seen__crsql_clock" SET col_version = 0 WHERE col_name = 'at';

    --- stderr
    nothing was changed; `ddcp schema adopt b --yes=SITE` runs these statements
    "#);
    a.ok(["schema", "adopt", "b", "--yes"]);
    b.pull();
    assert_eq!(a.rows("SELECT at, day FROM seen WHERE id = '1'"), ["1999-01-01|1999-01-01"]);
    assert_converged(&[&a, &b]);
}

#[test]
fn names_of_another_case_hold_nothing_up() {
    let world = World::new();
    let (a, b) = (world.repo("a"), world.repo("b"));
    a.ok(["init"]);
    b.ok(["init"]);
    a.sql("CREATE TABLE Todo (id TEXT NOT NULL PRIMARY KEY, Title TEXT); SELECT crsql_as_crr('Todo')");
    b.sql("CREATE TABLE todo (ID TEXT NOT NULL PRIMARY KEY, title TEXT); SELECT crsql_as_crr('todo')").follows(&[&a]);
    assert_snapshot!(b.run(["schema", "diff", "a"]), @"
    status 0
    --- stdout
    table Todo: Todo is spelt todo here: names that differ in case only are one name
    table Todo: id is spelt ID here: names that differ in case only are one name
    table Todo: Title is spelt title here: names that differ in case only are one name
    ");
    assert_snapshot!(b.run(["schema", "adopt", "a", "--yes"]), @"
    status 0
    --- stdout
    stays as it is:
      table Todo: Todo is spelt todo here: names that differ in case only are one name
      table Todo: id is spelt ID here: names that differ in case only are one name
      table Todo: Title is spelt title here: names that differ in case only are one name

    --- stderr
    there is nothing to add
    ");
    assert!(b.json(&["fetch"])[0]["done"].get("schema").is_none());
}

#[test]
fn what_was_shown_is_adopted_and_nothing_else() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    b.follows(&[&a]);
    a.sql("CREATE TABLE one (id INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('one')");
    let shown = b.json(&["schema", "adopt", "a"]);
    let hash = shown["hash"].as_str().unwrap();
    assert!(b.run(["schema", "adopt", "a"]).stderr.contains(&format!("`ddcp schema adopt a --yes={hash}` runs")));
    let tables = || b.rows("SELECT name FROM sqlite_master WHERE name IN ('one', 'two', 'three')");

    // The remote declares another table meanwhile.
    a.sql("CREATE TABLE two (id INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('two')");
    for yes in [format!("--yes={hash}"), "--yes".to_owned()] {
        let run = b.run(["schema", "adopt", "a", &yes]).assert_status(1);
        assert!(run.stderr.contains("have changed since the statements were shown; nothing was run"), "{run}");
        assert!(run.stderr.contains("hint: `ddcp schema adopt a` shows what it would run now"), "{run}");
        assert!(tables().is_empty());
    }
    // It has been shown by that, and is as it was shown.
    b.ok(["schema", "adopt", "a", "--yes"]);
    assert_eq!(tables().len(), 2);

    // What was never shown is shown by the command that runs it.
    a.sql("CREATE TABLE three (id INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('three')");
    assert!(b.ok(["schema", "adopt", "a", "--yes"]).contains("CREATE TABLE three"));
    assert_eq!(tables().len(), 3);
    b.ok(["schema", "adopt", "a", "--yes"]);
}

#[test]
fn differences_that_adopting_leaves_are_named() {
    let world = World::new();
    let (a, b) = (world.repo("a"), world.repo("b"));
    a.ok(["init"]);
    b.ok(["init"]);
    a.sql(
        "CREATE TABLE t (id TEXT NOT NULL PRIMARY KEY, a TEXT COLLATE NOCASE, b TEXT NOT NULL DEFAULT 'x', c INTEGER CHECK (c > 0),
             d AS (upper(a)), CHECK (a <> b)) STRICT; SELECT crsql_as_crr('t')"
            .replace("d AS", "d TEXT AS")
            .as_str(),
    );
    b.sql(
        "CREATE TABLE t (id TEXT NOT NULL PRIMARY KEY, a TEXT, b TEXT, c INTEGER, d TEXT CHECK (d <> '')); SELECT crsql_as_crr('t')",
    )
    .follows(&[&a]);
    assert_snapshot!(b.run(["schema", "diff", "a"]), @"
    status 0
    --- stdout
    table t: it is not STRICT here, STRICT there
    table t: column a is compared by BINARY here, by NOCASE there
    table t: column b is nullable here, NOT NULL there
    table t: column b has no default here, default 'x' there
    table t: column d is not generated here, generated as upper (a) there
    table t: CHECK (a <> b) is not here
    table t: CHECK (c > 0) is not here
    table t: CHECK (d <> '') is not there
    ");
    b.json(&["schema", "diff", "a"]);
}

#[test]
fn a_table_that_cannot_be_adopted_is_named_and_holds_up_no_other() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(
        "CREATE TABLE first (id INTEGER NOT NULL PRIMARY KEY); SELECT crsql_as_crr('first');
         CREATE TABLE last (id INTEGER NOT NULL PRIMARY KEY, x); CREATE INDEX taken ON last (x); SELECT crsql_as_crr('last')",
    );
    b.sql("CREATE INDEX taken ON note (stars)").follows(&[&a]);
    let run = b.run(["schema", "adopt", "a", "--yes"]).assert_status(3);
    assert!(run.stderr.contains("table last cannot be had here: index taken already exists"), "{run}");
    assert!(run.stdout.contains("table last: it cannot be had here: index taken already exists"), "{run}");
    let shared = &b.json(&["status"])["tables"];
    assert_eq!(*shared, serde_json::json!(["first", "note"]));
    b.run(["schema", "diff", "nobody"]).assert_status(2);
}

/// Whatever refuses a row keeps that row out and nothing else, and only until it no longer does.
#[test]
fn what_a_trigger_refuses_stops_nothing_else() {
    for (name, trigger, mended) in [
        ("rollback", "WHEN new.body = 'evil' BEGIN SELECT raise(ROLLBACK, 'no evil'); END", "DROP TRIGGER guard"),
        ("ignore", "WHEN new.body = 'evil' BEGIN SELECT raise(IGNORE); END", "DROP TRIGGER guard"),
        ("function", "BEGIN SELECT app_thumbnail(new.body); END", "DROP TRIGGER guard"),
        (
            "other data",
            "WHEN new.body NOT IN (SELECT body FROM allowed) BEGIN SELECT raise(ABORT, 'not allowed'); END",
            "INSERT INTO allowed VALUES ('evil')",
        ),
    ] {
        let world = World::new();
        let [a, b] = world.all_notes(["a", "b"]);
        b.sql("CREATE TABLE allowed (body); INSERT INTO allowed VALUES ('fine'), ('later')");
        b.sql(&format!("CREATE TRIGGER guard BEFORE INSERT ON note {trigger}"));
        a.sql("CREATE TABLE u (id INTEGER NOT NULL PRIMARY KEY); SELECT crsql_as_crr('u')");
        b.sql("CREATE TABLE u (id INTEGER NOT NULL PRIMARY KEY); SELECT crsql_as_crr('u')");
        a.sql("INSERT INTO note VALUES ('1', 'fine', 1), ('2', 'evil', 2), ('3', 'fine', 3); INSERT INTO u VALUES (1)");
        b.follows(&[&a]).pull();
        a.sql("INSERT INTO note VALUES ('4', 'later', 4); INSERT INTO u VALUES (2)");
        b.pull();
        assert_eq!(b.rows("SELECT id FROM u ORDER BY id"), ["1", "2"], "{name}");
        let here: &[&str] = if name == "function" { &[] } else { &["1", "3", "4"] };
        assert_eq!(b.rows("SELECT id FROM note ORDER BY id"), here, "{name}");
        assert_eq!(b.json(&["merge"])[0]["done"]["changes"], 0, "{name}: nothing has changed that could let it in");
        b.sql(mended).ok(["merge"]);
        assert_converged(&[&a, &b]);
    }
}

#[test]
fn what_loses_and_what_is_deleted_is_reported() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
    b.follows(&[&a]).pull();
    b.sql("CREATE TABLE pin (note TEXT REFERENCES note); CREATE INDEX pin_note ON pin (note); INSERT INTO pin VALUES ('2')");
    a.sql("UPDATE note SET body = 'theirs' WHERE id = '1'; DELETE FROM note WHERE id = '2'");
    b.sql("UPDATE note SET body = 'zmine' WHERE id = '1'");
    let done = b.json(&["pull"])["merged"][0]["done"].clone();
    assert_eq!(done["lost"], serde_json::json!({"note": 1}), "{done}");
    assert_eq!(done["deleted"], serde_json::json!({"note": 1}), "{done}");
    assert_eq!(done["dangling"][0], "table pin: note refers to 1 row of note that were deleted", "{done}");
    assert_eq!(b.notes(), ["1|zmine|1"]);
}
