//! A new database with the tables of another repository and what is in them.

use std::{fs, time::Instant};

use insta::assert_snapshot;

use crate::{
    crashes::kill,
    history::{Seed, setting},
    support::{Repo, World, assert_converged},
};

/// Names of what was declared, without what belongs to the engine.
fn declared(repo: &Repo) -> Vec<String> {
    repo.rows("SELECT name FROM sqlite_master WHERE name NOT LIKE '%crsql%' AND name NOT LIKE 'sqlite%' ORDER BY name")
}

#[test]
fn a_clone_has_the_shared_tables_and_what_is_in_them() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.repo("b"));
    a.sql(
        "CREATE INDEX by_stars ON note (stars); CREATE TABLE own (x); INSERT INTO own VALUES (1);
         CREATE TRIGGER t AFTER INSERT ON note BEGIN INSERT INTO own VALUES (2); END;
         INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)",
    );
    assert_snapshot!(world.run(["clone", "a.db", "b.db"]), @"
    status 0
    --- stdout
    database DIR/b.db
    tables   note
    origin: fetched 4 changes in SIZE
    origin: merged 4 changes (note 4)
    ");
    assert_eq!(declared(&b), ["by_stars", "note"]);
    assert_converged(&[&a, &b]);
    assert_snapshot!(b.run(["remote", "list"]), @"
    status 0
    --- stdout
    origin DIR/a.db
    ");
    assert_ne!(a.json(&["status"])["site_id"], b.json(&["status"])["site_id"]);

    b.sql("INSERT INTO note VALUES ('3', 'three', 3)");
    a.follows(&[&b]).pull();
    a.sql("DELETE FROM note WHERE id = '1'");
    b.pull();
    assert_converged(&[&a, &b]);
    assert!(!b.state("clone").exists());
}

#[test]
fn a_clone_is_named_as_it_is_told_or_else_as_its_origin() {
    let world = World::new();
    let a = world.notes("a");
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    fs::create_dir(world.path("sub")).unwrap();
    let mut command = world.command();
    command.current_dir(world.path("sub")).args(["clone", "../a.db"]);
    a.run_command(command).assert_status(0);
    assert_eq!(a.at(&world.path("sub")).notes(), a.notes());

    let c = world.repo("c");
    let report = c.json(&["clone", "a.db", "--name", "alice"]);
    assert_eq!((&report["remote"], &report["tables"][0]), (&"alice".into(), &"note".into()));
    assert_eq!(report["pull"]["merged"][0]["done"]["changes"], 2);
    assert_eq!(c.ok(["remote", "list"]), format!("alice {}\n", a.db().display()));
    assert_eq!(c.notes(), a.notes());
}

#[test]
fn a_clone_overwrites_nothing_and_a_mistyped_one_leaves_nothing() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.notes("b"));
    b.sql("INSERT INTO note VALUES ('mine', '', 1)");
    assert_snapshot!(world.run(["clone", "a.db", "b.db"]), @"
    status 2
    --- stderr
    error: DIR/b.db exists already: a clone makes a new database
    hint: name another file (`ddcp clone ADDRESS FILE`); to a database that is there, `ddcp remote add NAME ADDRESS` adds a remote, and `ddcp schema adopt NAME` its tables
    ");
    assert_eq!(b.notes(), ["mine||1"]);
    fs::write(world.path("text.db"), "no database").unwrap();
    world.run(["clone", "a.db", "text.db"]).assert_status(2);
    assert_eq!(fs::read_to_string(world.path("text.db")).unwrap(), "no database");
    // What another database of this name has left may still be wanted.
    fs::remove_file(b.db()).unwrap();
    let run = world.run(["clone", "a.db", "b.db"]).assert_status(10);
    assert!(run.stderr.contains(b.state("").to_str().unwrap().trim_end_matches('/')), "{run}");
    assert!(!b.db().exists());

    for (address, file, status) in
        [("none.db", "c.db", 4), ("text.db", "c.db", 4), ("VLD0:nonsense", "c.db", 2), ("a.db", "none/c.db", 1)]
    {
        let run = world.run(["clone", address, file]).assert_status(status);
        assert!(run.stderr.starts_with("error: ") && run.stdout.is_empty(), "{run}");
    }
    world.run(["clone", "a.db", "c.db", "--name", "a b"]).assert_status(2);
    assert!(!world.path("c.db").exists() && !world.path(".ddcp/c.db").exists() && !world.path("none").exists());
    drop(a);
}

#[test]
fn a_clone_that_failed_goes_on_when_it_is_repeated() {
    let world = World::new();
    let (a, other, b) = (world.notes("a"), world.notes("other"), world.repo("b"));
    a.sql(
        "CREATE TABLE evil (id INTEGER NOT NULL PRIMARY KEY); SELECT crsql_as_crr('evil');
         INSERT INTO note VALUES ('1', 'one', 1);
         PRAGMA writable_schema = ON;
         UPDATE sqlite_master SET sql = sql || '; SELECT 1' WHERE name = 'evil';
         PRAGMA writable_schema = OFF",
    );
    let refused = "
    status 1
    --- stderr
    error: its tables cannot be declared here: table evil: its declaration does more than declare a table or an index, which a peer's may not
    hint: check that the peer is who you think; what you trust of its tables can be made by hand (`ddcp shell`), and what waits for them is then merged; then repeat the command: it goes on where it ended
    ";
    let run = || world.run(["clone", "a.db", "b.db"]).to_string();
    let lines = |text: &str| text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    assert_eq!(lines(&run()), lines(refused));
    assert_eq!(declared(&b), [""; 0], "nothing of it is declared, also not what is harmless");
    assert_eq!(lines(&run()), lines(refused), "and again");

    // As long as nothing has come, it may come from somewhere else.
    other.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    world.run(["clone", "other.db", "b.db"]).assert_status(0);
    assert_eq!(b.ok(["remote", "list"]), format!("origin {}\n", other.db().display()));
    assert_converged(&[&other, &b]);
    world.run(["clone", "other.db", "b.db"]).assert_status(2);
}

/// What SQLite and the engine take, and what is not taken from a peer.
#[test]
fn odd_tables_hold_up_no_other() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.repo("b"));
    let key = "(id INTEGER NOT NULL PRIMARY KEY, v TEXT";
    for (name, rest) in [
        ("feed", "\u{c})"),
        ("separator", " DEFAULT 'x\u{1f}y')"),
        ("next_line", ", [x\u{85}y])"),
        ("by_index", "); CREATE INDEX crsql_by_v ON by_index (v)"),
        ("crsql_notes", ")"),
        ("my__crsql_notes", ")"),
        ("two\nlines", ")"),
    ] {
        a.sql(&format!("CREATE TABLE \"{name}\" {key}{rest}; SELECT crsql_as_crr('{name}')"));
        a.sql(&format!("INSERT INTO \"{name}\" (id, v) VALUES (1, 'odd')"));
    }
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let odd = ["by_index", "crsql_notes", "feed", "my__crsql_notes", "next_line", "separator", "two\\nlines"];

    let run = world.run(["clone", "a.db", "b.db"]).assert_status(3);
    let left: Vec<&str> =
        run.stdout.lines().filter_map(|line| line.strip_prefix("left out table ")?.split(": ").next()).collect();
    assert_eq!(left, odd, "{run}");
    for words in ["(the first is U+000C)", "(the first is U+0085)", "its index crsql_by_v", "its name will not do"] {
        assert!(run.stdout.contains(words), "{words}: {run}");
    }
    assert_eq!(b.notes(), a.notes());

    let diff = b.json(&["schema", "diff", "origin"]);
    let named: Vec<&String> = diff["tables"].as_object().unwrap().keys().collect();
    assert_eq!(named, odd);
    a.sql("CREATE TABLE tag (id TEXT NOT NULL PRIMARY KEY); SELECT crsql_as_crr('tag'); INSERT INTO tag VALUES ('t')");
    b.run(["pull"]).assert_status(0);
    b.run(["schema", "adopt", "origin", "--yes"]).assert_status(3);
    assert_eq!(b.rows("SELECT * FROM tag"), ["t"]);
}

#[test]
fn one_table_that_cannot_be_had_holds_up_no_other() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.repo("b"));
    // As an application has made them that knows a collation and a function of its own.
    a.sql(
        "CREATE TABLE deck (id TEXT NOT NULL PRIMARY KEY, name TEXT); SELECT crsql_as_crr('deck');
         CREATE INDEX by_name ON deck (name);
         CREATE TABLE page (id TEXT NOT NULL PRIMARY KEY, slug AS (lower(id))); SELECT crsql_as_crr('page');
         CREATE TABLE place (id TEXT NOT NULL PRIMARY KEY, x REAL CHECK (round(sin(x), 3) < 1)); SELECT crsql_as_crr('place');
         INSERT INTO deck VALUES ('d', 'Default'); INSERT INTO page VALUES ('p'); INSERT INTO place VALUES ('1', 0.5);
         INSERT INTO note VALUES ('1', 'one', 1);
         PRAGMA writable_schema = ON;
         UPDATE sqlite_master SET sql = replace(replace(sql, 'name TEXT', 'name TEXT COLLATE unicase'), 'lower', 'app_slug')
             WHERE name IN ('deck', 'page');
         PRAGMA writable_schema = OFF",
    );
    assert_snapshot!(world.run(["clone", "a.db", "b.db"]), @"
    status 3
    --- stdout
    database DIR/b.db
    tables   note, place
    left out table deck: its declaration cannot be used: no such collation sequence: unicase
    left out table page: its declaration cannot be used: no such function: app_slug
    origin: fetched 5 changes in SIZE
    origin: its tables differ from those here:
      table deck: it cannot be had here: its declaration cannot be used: no such collation sequence: unicase
      table page: it cannot be had here: its declaration cannot be used: no such function: app_slug
    origin: merged 5 changes (note 2, place 1)
    origin: 2 changes waiting:
      table deck: there is no such table, or it is no CRR
      table page: there is no such table, or it is no CRR

    --- stderr
    error: table deck cannot be had here: its declaration cannot be used: no such collation sequence: unicase
    error: table page cannot be had here: its declaration cannot be used: no such function: app_slug
    hint: make such a table by hand, without what is not known here (`ddcp shell`); what waits for it is then merged
    ");
    assert!(!b.state("clone").exists(), "repeating it would bring no more");
    assert_eq!(b.notes(), a.notes());
    assert_eq!(b.rows("SELECT * FROM place"), ["1|0.5"]);
    assert_eq!(b.json(&["status"])["remotes"][0]["waiting"], 2);
    let doctor = a.run(["doctor", "--offline"]);
    assert!(doctor.stdout.contains("unicase") && doctor.stdout.contains("app_slug"), "{doctor}");

    b.sql("CREATE TABLE deck (id TEXT NOT NULL PRIMARY KEY, name TEXT); SELECT crsql_as_crr('deck')").ok(["merge"]);
    assert_eq!(b.rows("SELECT * FROM deck"), ["d|Default"]);
    a.sql("UPDATE note SET body = 'more'");
    b.pull();
    assert_eq!(b.notes(), a.notes());
}

/// Not even this program can read such a table: it finds none of its rows.
#[test]
fn one_table_that_cannot_be_read_holds_up_no_other() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.repo("b"));
    a.sql(
        "CREATE TABLE tag (name TEXT NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('tag');
         INSERT INTO tag VALUES ('t', 1); INSERT INTO note VALUES ('1', 'one', 1);
         PRAGMA writable_schema = ON;
         UPDATE sqlite_master SET sql = replace(sql, 'name TEXT', 'name TEXT COLLATE unicase') WHERE name = 'tag';
         PRAGMA writable_schema = OFF",
    );
    a.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    let run = world.run(["clone", "a.db", "b.db"]).assert_status(3);
    assert!(run.stderr.contains("table tag cannot be had here"), "{run}");
    assert_eq!(b.notes(), a.notes());
    let run = b.run(["verify", "origin"]).assert_status(5);
    assert!(run.stdout.contains("the rest is identical to origin"), "{run}");
    let doctor = a.run(["doctor", "--offline"]).assert_status(5);
    assert!(doctor.stdout.contains("tag") && doctor.stdout.contains("unicase"), "{doctor}");
}

#[test]
fn kills_of_a_clone_leave_what_the_same_command_completes() {
    let seed = Seed::new();
    let mut rng = seed.rng();
    let world = World::new();
    let a = world.notes("a");
    a.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
         INSERT INTO note SELECT 'note ' || i, hex(randomblob(20)), i FROM n",
    );
    let started = Instant::now();
    world.run(["clone", "a.db", "undisturbed.db"]).assert_status(0);
    let takes = started.elapsed();
    let (mut killed, mut in_the_middle) = (0, 0);
    for round in 0..setting("DDCP_CRASH_KILLS", 60_u32).div_ceil(5) {
        let b = world.repo(&format!("b{round}"));
        for _ in 0..3 {
            let mut child = b.start(["clone", "a.db"]);
            kill(&mut child, &mut rng, takes);
            let run = b.finish(child);
            assert!(matches!(run.status, None | Some(0)), "{run}");
            killed += u32::from(run.status.is_none());
            in_the_middle += u32::from(b.state("clone").exists());
            if run.status == Some(0) {
                break;
            }
        }
        if b.state("clone").exists() || !b.db().exists() {
            b.ok(["clone", "a.db"]);
        }
        assert!(!b.state("clone").exists());
        assert_converged(&[&a, &b]);
        b.run(["clone", "a.db"]).assert_status(2);
    }
    println!("{killed} kills, {in_the_middle} in the middle");
    assert!(in_the_middle > 0, "none of {killed} kills came in the middle");
}
