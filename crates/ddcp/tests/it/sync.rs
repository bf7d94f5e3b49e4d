//! Changes travel from repository to repository, and all come to the same.

use insta::assert_snapshot;

use crate::support::{Repo, World, assert_converged};

#[test]
fn fetch_stores_and_merge_applies() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
    b.follows(&[&a]);
    assert_snapshot!(b.run(["fetch"]), @"
    status 0
    --- stdout
    a: fetched 4 changes in SIZE
    ");
    assert_eq!(b.notes(), [""; 0], "fetch leaves the tables as they are");
    assert_eq!(b.changes(), [""; 0]);
    assert_snapshot!(b.run(["fetch", "a"]), @"
    status 0
    --- stdout
    a: nothing new
    ");
    assert_snapshot!(b.run(["status"]), @"
    status 0
    --- stdout
    database DIR/b.db
    version  0
    site id  SITE
    tables   note
    address  none yet; `ddcp serve` gives it one
    serving  no

    remote   a
    address  DIR/a.db
    contact  TIME
    version  1
    behind   fetched up to version 1, merged up to 0
    fetched  4 changes not merged
    ");
    assert_snapshot!(b.run(["merge"]), @"
    status 0
    --- stdout
    a: merged 4 changes (note 4)
    ");
    assert_converged(&[&a, &b]);
    assert_snapshot!(b.run(["merge", "a"]), @"
    status 0
    --- stdout
    a: nothing to merge
    ");
    assert_snapshot!(b.run(["pull"]), @"
    status 0
    --- stdout
    a: nothing new
    a: nothing to merge
    ");
    assert_snapshot!(b.run(["pull", "a", "--format", "json"]), @r#"
    status 0
    --- stdout
    {
      "fetched": [
        {
          "remote": "a",
          "done": {
            "changes": 0,
            "bytes": 0,
            "remote_version": 1,
            "rewound": false
          }
        }
      ],
      "merged": [
        {
          "remote": "a",
          "done": {
            "changes": 0,
            "applied": {},
            "known": 0,
            "lost": {},
            "deleted": {},
            "waiting": 0,
            "reasons": []
          }
        }
      ]
    }
    "#);
}

#[test]
fn nobody_is_sent_his_own_changes() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)").follows(&[&b]);
    b.follows(&[&a]).pull();
    assert_snapshot!(a.run(["pull"]), @"
    status 0
    --- stdout
    b: nothing new
    b: nothing to merge
    ");
    b.sql("UPDATE note SET stars = 5");
    assert_eq!(a.json(&["fetch"])[0]["done"]["changes"], 1);
    a.ok(["merge"]);
    assert_snapshot!(b.run(["pull"]), @"
    status 0
    --- stdout
    a: nothing new
    a: nothing to merge
    ");
    assert_converged(&[&a, &b]);
}

#[test]
fn both_sides_write_the_same_row() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('cells', 'x', 1), ('cell', 'x', 1), ('gone', 'x', 1), ('back', 'x', 1)");
    a.follows(&[&b]);
    b.follows(&[&a]).pull();
    a.sql(
        "UPDATE note SET body = 'by a' WHERE id = 'cells'; UPDATE note SET body = 'by a' WHERE id = 'cell';
         DELETE FROM note WHERE id IN ('gone', 'back'); INSERT INTO note VALUES ('back', 'again', 2)",
    );
    b.sql(
        "UPDATE note SET stars = 9 WHERE id = 'cells'; UPDATE note SET body = 'by b' WHERE id = 'cell';
         UPDATE note SET stars = 7 WHERE id = 'gone'; DELETE FROM note WHERE id = 'back'",
    );
    a.pull();
    b.pull();
    a.pull();
    // Different cells are both kept; of the same cell the larger value wins, as versions are equal; a delete beats
    // an update; a row that was created again beats the delete.
    assert_eq!(a.notes(), ["back|again|2", "cell|by b|1", "cells|by a|9"]);
    assert_converged(&[&a, &b]);
}

/// Each of `repos` writes rows of its own and into rows of all; then every `links` pulls, twice around.
fn converge(names: &[&str], links: &[(usize, usize)], rounds: usize) {
    let world = World::new();
    let repos: Vec<Repo> = names.iter().map(|name| world.notes(name)).collect();
    for (reader, source) in links {
        repos[*reader].follows(&[&repos[*source]]);
    }
    let all: Vec<&Repo> = repos.iter().collect();
    for step in 0..3 {
        for (place, repo) in repos.iter().enumerate() {
            repo.sql(&format!(
                "INSERT INTO note VALUES ('{step} of {place}', 'new', {place});
                 INSERT INTO note VALUES ('shared', 'by {place}', {step}) ON CONFLICT DO UPDATE SET body = excluded.body;
                 UPDATE note SET stars = {place} WHERE id = '{} of {}';
                 DELETE FROM note WHERE id = '{} of {place}'",
                step - 1,
                (place + 1) % repos.len(),
                step - 2,
            ));
        }
        for _ in 0..rounds {
            repos.iter().for_each(|repo| drop(repo.pull()));
        }
        assert_converged(&all);
    }
    for repo in &repos {
        let pull = repo.json(&["pull"]);
        for remote in pull["fetched"].as_array().unwrap() {
            assert_eq!(remote["done"]["changes"], 0, "{} fetched something again: {pull}", repo.name());
        }
        assert_eq!(repo.notes().len(), 2 * repos.len() + 1);
    }
}

#[test]
fn a_line_converges() {
    converge(&["a", "b", "c", "d"], &[(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)], 4);
}

#[test]
fn a_star_converges() {
    converge(&["hub", "a", "b", "c"], &[(0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0)], 3);
}

#[test]
fn a_ring_converges() {
    converge(&["a", "b", "c", "d"], &[(0, 1), (1, 2), (2, 3), (3, 0)], 5);
}

#[test]
fn a_full_mesh_converges() {
    let links: Vec<_> = (0..4).flat_map(|a| (0..4).map(move |b| (a, b))).filter(|(a, b)| a != b).collect();
    converge(&["a", "b", "c", "d"], &links, 3);
}

#[test]
fn one_large_value_passes() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('large', randomblob(5 * 1024 * 1024), 1)");
    b.follows(&[&a]).pull();
    assert_eq!(b.notes(), ["large|blob of 5242880|1"]);
    assert_converged(&[&a, &b]);
}

#[test]
fn a_hundred_thousand_rows_pass_and_ten_more_cost_ten() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
         INSERT INTO note SELECT printf('%06d', i), 'the body of note ' || i, i % 5 FROM n",
    );
    b.follows(&[&a]);
    assert_snapshot!(b.run(["pull"]), @"
    status 0
    --- stdout
    a: fetched 200000 changes in SIZE
    a: merged 200000 changes (note 200000)
    ");
    assert_converged(&[&a, &b]);
    a.sql("UPDATE note SET stars = -1 WHERE id BETWEEN '050001' AND '050010'");
    let fetched = b.json(&["pull"])["fetched"][0]["done"].clone();
    assert_eq!(fetched["changes"], 10);
    assert!(fetched["bytes"].as_u64().unwrap() < 1000, "{fetched}");
    assert_converged(&[&a, &b]);
}

#[test]
fn every_kind_of_value_arrives_as_it_was() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(
        "INSERT INTO note VALUES ('null', NULL, NULL), ('empty', '', x''), ('nul', 'a' || char(0) || 'b', x'0000'),
           ('max', 9223372036854775807, -9223372036854775808), ('real', -0.0, 9e999), ('small', 5e-324, -9e999),
           ('', 'empty key', 0), ('ünï 🦀', 'text', 1.5)",
    );
    b.follows(&[&a]).pull();
    assert_converged(&[&a, &b]);
    let exact = "SELECT typeof(body), hex(body), typeof(stars), hex(stars) FROM note ORDER BY id";
    assert_eq!(a.rows(exact), b.rows(exact));
}

#[test]
fn merge_waits_for_a_writer_to_finish() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'from a', 1)");
    b.follows(&[&a]).ok(["fetch"]);
    let writer = b.connection();
    writer.execute_batch("BEGIN IMMEDIATE; INSERT INTO note VALUES ('2', 'the writer', 2)").unwrap();
    let merge = b.start(["merge"]);
    // The transaction is meant to be a long one.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(b.rows("SELECT count(*) FROM note"), ["0"], "merged into somebody else's transaction");
    writer.execute_batch("COMMIT").unwrap();
    assert_snapshot!(b.finish(merge), @"
    status 0
    --- stdout
    a: merged 2 changes (note 2)
    ");
    assert_eq!(b.notes(), ["1|from a|1", "2|the writer|2"]);
}

#[test]
fn applications_write_meanwhile() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.follows(&[&b]);
    b.follows(&[&a]);
    std::thread::scope(|scope| {
        for repo in [&a, &b] {
            scope.spawn(move || {
                let connection = repo.connection();
                for number in 0..200 {
                    let id = format!("{} {number}", repo.name());
                    connection.execute("INSERT INTO note VALUES (?1, 'body', ?2)", (id, number)).unwrap();
                }
            });
            scope.spawn(move || (0..10).for_each(|_| drop(repo.pull())));
        }
    });
    a.pull();
    b.pull();
    assert_eq!(a.notes().len(), 400);
    assert_converged(&[&a, &b]);
}

#[test]
fn the_log_tells_what_happened() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.follows(&[&a]);
    assert_eq!(b.ok(["log"]), "");
    b.pull();
    b.ok(["fetch"]);
    b.ok(["remote", "add", "dead", "dead.db"]);
    b.run(["pull"]).assert_status(3);
    b.run(["pull"]).assert_status(3);
    let log = b.ok(["log"]);
    let lines: Vec<&str> = log.lines().filter_map(|line| line.split_once("Z ").map(|(_, text)| text)).collect();
    let [dead, merged, fetched] = lines[..] else { panic!("{log}") };
    assert!(dead.starts_with("dead: failed: there is no database at "), "{log}");
    assert!(merged.starts_with("a: merged 2 changes (note 2), "), "{log}");
    assert!(fetched.starts_with("a: fetched 2 changes in "), "{log}");
    assert_eq!(b.ok(["log", "a", "-n", "1"]).lines().count(), 1);
    let entry = &b.json(&["log", "a"])[1];
    assert_eq!((&entry["event"], &entry["changes"]), (&"fetched".into(), &2.into()));
}

/// SQLite keeps any bytes as text: Latin-1 of an old import, half an emoji of a UTF-16 program.
#[test]
fn text_that_is_not_utf8_arrives_as_it_is() {
    let world = World::new();
    let [a, b, c] = world.all_notes(["a", "b", "c"]);
    a.sql("INSERT INTO note VALUES (CAST(x'6bff' AS TEXT), CAST(x'4df66d6d61' AS TEXT), 1), ('2', CAST(x'eda080' AS TEXT), 2)");
    b.follows(&[&a]).pull();
    // By a bundle as well.
    b.ok(["bundle", "create", "b.bundle"]);
    c.ok(["bundle", "fetch", "b.bundle"]);
    c.ok(["merge"]);
    for repo in [&b, &c] {
        assert_eq!(
            repo.rows("SELECT hex(id), hex(body), typeof(body) FROM note ORDER BY stars"),
            ["6BFF|4DF66D6D61|text", "32|EDA080|text",]
        );
    }
    assert_converged(&[&a, &b, &c]);
    a.follows(&[&b]).run(["verify", "b"]).assert_status(0);
}

/// A record that no engine wrote keeps no other change from travelling, and everybody is told.
#[test]
fn what_cannot_be_sent_is_told_by_every_command() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
    a.sql("UPDATE note__crsql_clock SET site_id = 77 WHERE col_name = 'body' AND key = 1");
    let run = b.follows(&[&a]).run(["pull"]);
    assert_snapshot!(run, @"
    status 5
    --- stdout
    a: fetched 3 changes in SIZE
    a: it cannot send 1 change; `ddcp doctor` there says more:
      table note, key '1', column body: the site that made it is not known: crsql_site_id lacks a row
    a: merged 3 changes (note 3)
    ");
    let lacks = "table note, key '1', column body: the site that made it is not known";
    assert!(b.ok(["status"]).contains(lacks));
    assert_eq!(b.json(&["status"])["remotes"][0]["left_out"]["count"], 1);
    b.run(["pull"]).assert_status(0);
    assert!(b.ok(["status"]).contains(lacks), "it is lacked still");
    let bundle = a.run(["bundle", "create", "a.bundle"]).assert_status(5);
    assert!(bundle.stdout.contains(lacks), "{bundle}");
    let doctor = a.run(["doctor", "--offline", "--trouble"]).assert_status(5);
    assert!(doctor.stdout.contains("note, key '1', column body"), "{doctor}");
    // As doctor says.
    a.sql(
        "CREATE TEMP TABLE kept AS SELECT * FROM note WHERE id = '1'; DELETE FROM note WHERE id = '1';
           INSERT INTO note SELECT * FROM kept",
    );
    a.run(["doctor", "--offline", "--trouble"]).assert_status(0);
    b.pull();
    assert_converged(&[&a, &b]);
}

/// What was applied, what was known, what lost against the local value, and what is gone, are different news.
#[test]
fn a_merge_tells_what_became_of_the_changes() {
    let world = World::new();
    let [a, b, c] = world.all_notes(["a", "b", "c"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2), ('3', 'three', 3)");
    b.follows(&[&a]).pull();
    c.follows(&[&b, &a]).ok(["pull", "b"]);
    let again = c.ok(["pull", "a"]);
    assert!(again.ends_with("a: merged 6 changes, all known already\n"), "{again}");
    a.sql("UPDATE note SET body = 'mine' WHERE id = '1'; UPDATE note SET stars = 9 WHERE id = '2'; DELETE FROM note WHERE id = '3'");
    b.sql("UPDATE note SET body = 'yours' WHERE id = '1'");
    let merged = b.pull();
    let words = "a: merged 3 changes (note 2), 1 lost against yours (note 1); 1 row deleted (note 1)";
    assert!(merged.ends_with(&format!("{words}\n")), "{merged}");
    assert!(b.ok(["log", "-n", "1"]).contains(words));
    assert_eq!(b.notes(), ["1|yours|1", "2|two|9"]);
    let lost = a.follows(&[&b]).ok(["pull"]);
    assert!(lost.ends_with("b: merged 1 change (note 1)\n"), "{lost}");
    a.sql("UPDATE note SET body = 'zz' WHERE id = '1'");
    b.sql("UPDATE note SET body = 'aa' WHERE id = '1'");
    let all_lost = a.json(&["pull"]);
    let done = &all_lost["merged"][0]["done"];
    assert_eq!(
        (&done["lost"]["note"], &done["known"], done["applied"].as_object().unwrap().len()),
        (&1.into(), &0.into(), 0)
    );
    b.pull();
    assert_converged(&[&a, &b]);
}

/// A file may hold any amount at one place `(db_version, seq)`, as CR-SQLite merges: no pack that is made of it is too large.
#[test]
fn what_was_merged_is_sent_on() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(
        "INSERT INTO crsql_changes
             WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 12)
             SELECT 'note', crsql_pack_columns('large ' || i), 'body', zeroblob(3000000), 1, 1, x'01', 1, 0 FROM n;
         INSERT INTO note VALUES ('small', 'afterwards', 1)",
    );
    let places = "SELECT count(*), count(DISTINCT db_version || ':' || seq) FROM crsql_changes WHERE site_id = x'01'";
    assert_eq!(a.rows(places), ["12|1"]);
    b.ok(["config", "set", "limits.unpacked_bytes", "20000000"]);
    b.follows(&[&a]).pull();
    assert_converged(&[&a, &b]);
    assert_eq!(b.rows(places), ["12|12"], "what is merged can be cut anywhere");
    assert_eq!(b.rows("SELECT count(*) FROM note"), ["13"]);
}
