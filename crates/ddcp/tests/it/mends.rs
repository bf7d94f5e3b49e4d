//! What `ddcp doctor` prints to mend something does mend it: the fault is made, the command is taken from what is
//! printed and run, and then the doctor is content and the data are right.

use std::{fs, os::unix::fs::symlink, process::Command};

use rusqlite::Connection;
use serde_json::Value;

use crate::support::{DDCP, NOTE, Repo, World, assert_converged};

/// What is found wrong, and what mends it.
fn trouble(repo: &Repo, options: &[&str]) -> Vec<(String, String)> {
    let run = repo.run(["doctor", "--format", "json"].iter().chain(options));
    let findings: Vec<Value> = serde_json::from_str(&run.stdout).unwrap();
    let is_trouble = |finding: &&Value| ["warning", "error"].contains(&finding["level"].as_str().unwrap());
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let troubles: Vec<_> =
        findings.iter().filter(is_trouble).map(|finding| (text(finding, "message"), text(finding, "mend"))).collect();
    assert_eq!(run.status, Some(if troubles.is_empty() { 0 } else { 5 }), "{run}");
    troubles
}

/// The commands in `mend`, as a person would paste them.
fn commands(mend: &str) -> Vec<&str> {
    mend.split('`').skip(1).step_by(2).collect()
}

/// Runs a command in a shell, in the folder of the repository.
fn paste(repo: &Repo, command: &str) {
    let bin = repo.root().join("bin");
    if !bin.exists() {
        fs::create_dir(&bin).unwrap();
        symlink(DDCP, bin.join("ddcp")).unwrap();
    }
    let path = format!("{}:/usr/bin:/bin", bin.display());
    let mut shell = Command::new("sh");
    shell.env_clear().env("PATH", path).env("HOME", repo.root()).current_dir(repo.root());
    let output = shell.args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Expects troubles with these words, one each, in their order; runs the first command of each; nothing is left then.
fn mend_with(repo: &Repo, options: &[&str], expected: &[&str]) {
    let found = trouble(repo, options);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for ((message, mend), expected) in found.iter().zip(expected) {
        assert!(message.contains(expected), "{expected}: {found:#?}");
        let commands = commands(mend);
        if commands[0].starts_with("ddcp") {
            let named = format!("ddcp --db {}.db ", repo.name());
            assert!(commands[0].starts_with(&named), "{commands:?}");
        }
        paste(repo, commands[0]);
    }
    assert_eq!(trouble(repo, options), [], "after {found:#?}");
}

fn mend(repo: &Repo, expected: &[&str]) {
    mend_with(repo, &["--offline"], expected);
}

/// Two repositories with the same table, of which `b` follows `a`.
fn pair(world: &World, table: &str) -> [Repo; 2] {
    let pair = ["a", "b"].map(|name| {
        let repo = world.repo(name);
        repo.ok(["init"]);
        repo.sql(table);
        repo
    });
    pair[1].follows(&[&pair[0]]);
    pair
}

#[test]
fn a_column_that_was_added_without_a_word() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1); ALTER TABLE note ADD COLUMN colour TEXT");
    b.pull();
    assert!(a.connection().execute("UPDATE note SET body = 'two'", []).is_err(), "what the doctor is to find");
    mend(&a, &["note was altered without"]);
    a.sql("UPDATE note SET body = 'two', colour = 'red'");
    b.sql(
        "SELECT crsql_begin_alter('note'); ALTER TABLE note ADD COLUMN colour TEXT; SELECT crsql_commit_alter('note')",
    );
    b.pull();
    assert_eq!(b.notes(), ["1|two|1|red"]);
    assert_converged(&[&a, &b]);
}

#[test]
fn a_column_that_was_renamed_without_a_word() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1); ALTER TABLE note RENAME COLUMN body TO text");
    a.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    mend(&a, &["nothing is recorded of values of text, but values of body"]);
    let rename = "ALTER TABLE note RENAME COLUMN body TO text";
    b.sql(&format!("SELECT crsql_begin_alter('note'); {rename}; SELECT crsql_commit_alter('note')"));
    b.pull();
    assert_eq!(b.notes(), ["1|one|1", "2|two|2"]);
    assert_converged(&[&a, &b]);
}

#[test]
fn a_key_column_that_was_renamed_without_a_word() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
    b.pull();
    a.sql("DELETE FROM note WHERE id = '2'; ALTER TABLE note RENAME COLUMN id TO name");
    mend(&a, &["note has another key than the one that is recorded (id)"]);
    a.sql("UPDATE note SET body = 'more'");
    assert_eq!(a.rows("SELECT count(*) FROM crsql_changes WHERE cid = '-1' AND cl = 2"), ["1"], "deletions are kept");
    assert_eq!(a.rows("SELECT col_version FROM crsql_changes WHERE cid = 'body'"), ["2"], "and versions");
}

/// As many guides have it, but for the two calls around it.
#[test]
fn a_table_that_was_made_anew_without_a_word() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
    b.pull();
    a.sql(
        "CREATE TABLE other (id TEXT NOT NULL PRIMARY KEY, body TEXT, colour TEXT DEFAULT 'red');
         INSERT INTO other SELECT id, body, 'blue' FROM note; DROP TABLE note; ALTER TABLE other RENAME TO note;
         INSERT INTO note VALUES ('3', 'three', 'red'); DELETE FROM note WHERE id = '1'",
    );
    mend(
        &a,
        &[
            "1 row was deleted without a record",
            "note has lost triggers",
            "nothing is recorded of 1 row",
            "nothing is recorded of values of colour, but values of stars",
        ],
    );
    let anew = "ALTER TABLE note DROP COLUMN stars; ALTER TABLE note ADD COLUMN colour TEXT DEFAULT 'red'";
    b.sql(&format!("SELECT crsql_begin_alter('note'); {anew}; SELECT crsql_commit_alter('note')"));
    b.pull();
    assert_eq!(b.notes(), ["2|two|blue", "3|three|red"]);
    assert_converged(&[&a, &b]);
}

/// What is recorded of a column that is gone harms nobody: it is told, and mended all the same.
#[test]
fn a_column_of_which_only_records_are_left() {
    let world = World::new();
    let a = world.notes("a");
    a.sql("INSERT INTO note (id, stars) VALUES ('1', 1); ALTER TABLE note RENAME COLUMN body TO text");
    let notes = a.json(&["doctor", "--offline"]);
    let is_it = |finding: &&Value| finding["message"].as_str().unwrap().contains("values are recorded of body");
    let mend = notes.as_array().unwrap().iter().find(is_it).unwrap()["mend"].as_str().unwrap();
    paste(&a, commands(mend)[0]);
    let after = a.json(&["doctor", "--offline"]);
    assert!(!after.as_array().unwrap().iter().any(|finding| is_it(&finding)), "{after:#}");
}

#[test]
fn triggers_that_are_lost_and_what_was_written_meanwhile() {
    for kind in ["i", "u", "d"] {
        let world = World::new();
        let [a, b] = pair(&world, NOTE);
        a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
        b.pull();
        a.sql(&format!("DROP TRIGGER note__crsql_{kind}trig"));
        let mut expected = vec!["note has lost triggers"];
        match kind {
            "i" => {
                a.sql("INSERT INTO note VALUES ('3', 'three', 3), ('4', 'four', 4)");
                expected.push("nothing is recorded of 2 rows");
            }
            "d" => {
                a.sql("DELETE FROM note WHERE id = '1'");
                expected.insert(0, "1 row was deleted without a record");
            }
            _ => {}
        }
        mend(&a, &expected);
        b.pull();
        assert_converged(&[&a, &b]);
    }
}

/// What was written while updates were not recorded is in the table and nowhere else.
#[test]
fn updates_that_were_not_recorded_win() {
    let anew = "DROP TABLE note; CREATE TABLE note (id TEXT NOT NULL PRIMARY KEY, body TEXT, stars INTEGER);
        INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)";
    for loses in ["DROP TRIGGER note__crsql_utrig", anew] {
        let world = World::new();
        let [a, b] = pair(&world, NOTE);
        a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
        b.pull();
        a.sql(loses).sql("UPDATE note SET body = 'mine' WHERE id = '1'");
        mend(&a, &["note has lost triggers: not every write to it is recorded. Which values were changed since"]);
        let run = a.follows(&[&b]).run(["verify", "b"]).assert_status(5);
        assert!(run.stdout.contains("it has yet to pull"), "{run}");
        assert_eq!(a.notes(), ["1|mine|1", "2|two|2"], "what is here is not undone");
        b.pull();
        a.ok(["verify", "b"]);
        assert_converged(&[&a, &b]);
    }
}

/// Writing to such a table fails.
#[test]
fn metadata_of_which_a_part_is_gone() {
    for lost in [&["pks"][..], &["clock"], &["clock", "pks"]] {
        let world = World::new();
        let [a, b] = pair(&world, NOTE);
        a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2); UPDATE note SET body = 'more'");
        b.pull();
        for end in lost {
            a.sql(&format!("DROP TABLE note__crsql_{end}"));
        }
        let update = "UPDATE note SET body = 'mine' WHERE id = '1'";
        assert!(a.connection().execute(update, []).is_err(), "what the doctor is to find");
        mend(&a, &["gone, with what was recorded of its rows"]);
        b.pull();
        a.follows(&[&b]).pull();
        a.sql(update).sql("INSERT INTO note VALUES ('3', 'three', 3); DELETE FROM note WHERE id = '2'");
        b.pull();
        assert_eq!(b.notes(), a.notes(), "{lost:?}");
        assert_eq!(a.notes(), ["1|mine|1", "3|three|3"], "{lost:?}");
        assert_converged(&[&a, &b]);
    }
}

/// An index by a collation that only an application knows hides nothing else.
#[test]
fn lost_triggers_beside_an_unknown_collation() {
    let world = World::new();
    let a = world.notes("a");
    a.sql(
        "CREATE INDEX by_body ON note (body COLLATE NOCASE); DROP TRIGGER note__crsql_utrig;
         PRAGMA writable_schema = ON;
         UPDATE sqlite_master SET sql = replace(sql, 'NOCASE', 'mine') WHERE name = 'by_body'",
    );
    let found = trouble(&a, &["--offline"]);
    assert!(found[0].0.starts_with("note replicates, but"), "{found:#?}");
    assert!(found[1].0.starts_with("note has lost triggers"), "{found:#?}");
    assert!(found[1].1.starts_with("have its application"), "{found:#?}");
}

#[test]
fn a_trigger_that_names_its_table_with_the_schema() {
    let world = World::new();
    let a = world.notes("a");
    a.sql("CREATE TRIGGER t AFTER INSERT ON main.note BEGIN UPDATE note SET stars = 1 WHERE id = NEW.id; END");
    mend(&a, &["t on note writes to note also when it is a merge"]);
    a.sql("INSERT INTO note (id) VALUES ('1')");
    assert_eq!(a.rows("SELECT stars FROM note"), ["1"], "it does what it did");
}

/// The triggers can be mended first, too: the deletion is recorded before what it is about is forgotten.
#[test]
fn deletions_are_not_lost_by_mending_triggers_first() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
    b.pull();
    a.sql("DROP TRIGGER note__crsql_dtrig; DELETE FROM note WHERE id = '1'");
    let found = trouble(&a, &["--offline"]);
    paste(&a, commands(&found[1].1)[0]);
    assert_eq!(trouble(&a, &["--offline"]), []);
    b.pull();
    assert_eq!(b.notes(), ["2|two|2"]);
    assert_converged(&[&a, &b]);
}

#[test]
fn rows_that_are_recorded_as_deleted() {
    let table = "CREATE TABLE note (k INTEGER NOT NULL, id TEXT NOT NULL, body, \"it's\" REAL, PRIMARY KEY (id, k));
                 SELECT crsql_as_crr('note');";
    let world = World::new();
    let [a, b] = pair(&world, table);
    a.sql("INSERT INTO note VALUES (1, '1', 'one', 1.5), (2, '2', 'two', NULL); DELETE FROM note WHERE k = 1");
    b.pull();
    a.sql("DROP TRIGGER note__crsql_itrig; INSERT INTO note VALUES (1, '1', 'again', 2.5)");
    mend(&a, &["note has lost triggers", "1 row is there and recorded as deleted"]);
    b.pull();
    assert_eq!(b.rows("SELECT * FROM note ORDER BY k"), ["1|1|again|2.5", "2|2|two|NULL"]);
    assert_converged_rows(&a, &b);
}

fn assert_converged_rows(a: &Repo, b: &Repo) {
    assert_eq!(a.changes(), b.changes());
}

#[test]
fn a_table_that_was_renamed() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.pull();
    let (site, version) = (a.json(&["status"])["site_id"].clone(), a.json(&["status"])["version"].clone());
    a.sql("ALTER TABLE note RENAME TO memo");
    assert!(a.connection().execute("DELETE FROM memo", []).is_err(), "what the doctor is to find");
    mend(&a, &["note was renamed to memo"]);
    a.sql("INSERT INTO memo VALUES ('2', 'two', 2)");
    let status = a.json(&["status"]);
    assert_eq!(status["site_id"], site, "nobody has to read it from the start");
    assert!(status["version"].as_i64() > version.as_i64());
    b.ok(["schema", "adopt", "a", "--yes"]);
    b.pull();
    assert_eq!(b.rows("SELECT * FROM memo ORDER BY id"), ["1|one|1", "2|two|2"]);
}

/// Whoever has made the renamed table a CRR himself is left with two sets of triggers.
#[test]
fn triggers_of_a_former_name() {
    let world = World::new();
    let a = world.notes("a");
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    a.sql("ALTER TABLE note RENAME TO memo; SELECT crsql_as_crr('memo')");
    let found = trouble(&a, &["--offline"]);
    assert_eq!(found.len(), 4, "{found:#?}");
    for (_, mend) in &found {
        paste(&a, commands(mend)[0]);
    }
    assert_eq!(trouble(&a, &["--offline"]), []);
    a.sql("INSERT INTO memo VALUES ('2', 'two', 2)");
}

#[test]
fn what_a_dropped_table_leaves() {
    let world = World::new();
    let a = world.notes("a");
    a.sql("CREATE TABLE \"go ne\" (id TEXT NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('go ne')");
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)").sql("INSERT INTO \"go ne\" VALUES (1, 2)").ok(["merge"]);
    let site = a.json(&["status"])["site_id"].clone();
    a.sql("DROP TABLE \"go ne\"");
    mend(&a, &["go ne was dropped"]);
    a.ok(["merge"]);
    assert_eq!(a.json(&["status"])["site_id"], site, "the version did not go back");
}

const TOUCH: &str = "CREATE TRIGGER touch AFTER UPDATE ON note
    BEGIN -- now
      UPDATE note SET stars = abs(random() % 1000000) WHERE id = NEW.id;
    END;";

#[test]
fn triggers_that_write_where_merges_set_them_off() {
    let world = World::new();
    let [a, b] = pair(&world, &format!("{NOTE} {TOUCH}"));
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.pull();
    a.sql("UPDATE note SET body = 'two'");
    b.pull();
    assert_ne!(a.notes(), b.notes(), "what the doctor is to find");
    mend(&a, &["touch on note writes to note also when it is a merge"]);
    mend(&b, &["touch on note writes to note also when it is a merge"]);
    a.sql("UPDATE note SET body = 'three'");
    b.pull();
    assert_converged(&[&a, &b]);
    b.sql("UPDATE note SET body = 'four'");
    a.follows(&[&b]).pull();
    assert_converged(&[&a, &b]);
    assert_ne!(a.notes(), ["1|four|1"], "local writes are touched");
}

/// A trigger may write by way of a table or view that does not replicate; one that asks stops the others behind it.
#[test]
fn triggers_behind_triggers() {
    let world = World::new();
    let a = world.notes("a");
    a.sql(
        "CREATE TABLE queue (id); CREATE VIEW front AS SELECT * FROM queue;
         CREATE TRIGGER enqueue AFTER DELETE ON note WHEN OLD.stars > 1 OR OLD.body IS NULL
         BEGIN INSERT INTO front VALUES (OLD.id); END;
         CREATE TRIGGER behind INSTEAD OF INSERT ON front BEGIN INSERT INTO queue VALUES (NEW.id); END;
         CREATE TRIGGER back AFTER INSERT ON queue BEGIN INSERT INTO note (id) VALUES ('x' || NEW.id); END;
         CREATE TRIGGER unreached AFTER DELETE ON queue BEGIN DELETE FROM note; END;
         CREATE TRIGGER asks AFTER UPDATE ON note WHEN crsql_internal_sync_bit() = 0 BEGIN DELETE FROM queue; END;",
    );
    mend(&a, &["back on queue writes to note"]);
    a.sql(
        "DROP TRIGGER back; CREATE TRIGGER back AFTER INSERT ON queue BEGIN REPLACE INTO note (id) VALUES ('x'); END",
    );
    a.sql("DROP TRIGGER enqueue");
    assert_eq!(trouble(&a, &["--offline"]), [], "nothing leads there any more");
}

#[test]
fn triggers_that_can_never_work_here() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    b.sql("CREATE TABLE gone (x); CREATE TRIGGER harmless AFTER INSERT ON note BEGIN SELECT upper(NEW.body); END");
    b.sql("CREATE TRIGGER late AFTER INSERT ON note BEGIN INSERT INTO gone VALUES (NEW.id); END; DROP TABLE gone");
    mend(&b, &["because of its trigger late: no such table"]);
    b.sql("CREATE TRIGGER thumb AFTER INSERT ON note BEGIN SELECT app_thumbnail(NEW.body); END");
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    mend(&b, &["because of its trigger thumb: no such function: app_thumbnail"]);
    b.pull();
    assert_converged(&[&a, &b]);
    assert_eq!(b.rows("SELECT name FROM sqlite_master WHERE name IN ('harmless', 'late', 'thumb')"), ["harmless"]);
}

const SEARCH: &str =
    "CREATE VIRTUAL TABLE search USING fts5 (body, stars UNINDEXED, content='note', content_rowid=\"rowid\")";

#[test]
fn full_text_indexes_that_lack_rows() {
    let world = World::new();
    let a = world.notes("a");
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)").sql(SEARCH);
    mend(&a, &["the full-text index search is not in step with note"]);
    assert_eq!(a.rows("SELECT id FROM note WHERE rowid IN (SELECT rowid FROM search('two'))"), ["2"]);
}

#[test]
fn full_text_indexes_that_have_other_words() {
    let world = World::new();
    let a = world.notes("a");
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)").sql(SEARCH);
    a.sql("INSERT INTO search (search) VALUES ('rebuild')");
    assert_eq!(trouble(&a, &["--offline", "--thorough"]), []);
    a.sql("UPDATE note SET body = 'three' WHERE id = '2'");
    assert_eq!(trouble(&a, &["--offline"]), [], "only --thorough reads the texts");
    mend_with(&a, &["--offline", "--thorough"], &["the full-text index search is not in step with note"]);
    assert_eq!(a.rows("SELECT id FROM note WHERE rowid IN (SELECT rowid FROM search('three'))"), ["2"]);
}

#[test]
fn foreign_keys_that_are_broken() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
    b.pull();
    b.sql(
        "CREATE TABLE tag (note TEXT REFERENCES note ON DELETE CASCADE, word);
         CREATE TABLE pin (place PRIMARY KEY, note TEXT REFERENCES note (id) ON DELETE SET NULL);
         CREATE TABLE seen (at, note TEXT REFERENCES note (id));
         INSERT INTO tag VALUES ('1', 'x'), ('2', 'y'), (NULL, 'z'); INSERT INTO pin VALUES (1, '1'), (2, '2');
         INSERT INTO seen VALUES (1, '2');",
    );
    assert_eq!(trouble(&b, &["--offline"]), []);
    a.sql("DELETE FROM note WHERE id = '1'");
    b.pull();
    mend(&b, &["pin: 1 row refers by note to rows of note that are not there", "tag: 1 row refers"]);
    assert_eq!(b.rows("SELECT * FROM tag ORDER BY word"), ["2|y", "NULL|z"]);
    assert_eq!(b.rows("SELECT * FROM pin"), ["1|NULL", "2|2"]);

    // What is to become of these nobody has declared: they are shown.
    a.sql("DELETE FROM note");
    b.pull();
    let found = trouble(&b, &["--offline"]);
    let (message, shown) = found.iter().find(|(message, _)| message.starts_with("seen: 1 row")).unwrap();
    assert!(shown.contains("insert what is missing into note"), "{message}: {shown}");
    paste(&b, commands(shown)[0]);
    b.sql("DELETE FROM seen");
    mend(&b, &["pin: 1 row", "tag: 1 row"]);
}

#[test]
fn foreign_keys_of_columns_that_are_no_key() {
    let world = World::new();
    let a = world.notes("a");
    a.sql("CREATE TABLE parent (id INTEGER PRIMARY KEY, code TEXT); CREATE TABLE child (x REFERENCES parent (code))");
    mend(&a, &["child: where foreign keys are enforced, nothing can be written to it: foreign key mismatch"]);
    a.sql("PRAGMA foreign_keys = on; INSERT INTO parent VALUES (1, 'a'); INSERT INTO child VALUES ('a')");
    a.sql("CREATE TABLE other (x REFERENCES note (body))");
    let found = trouble(&a, &["--offline"]);
    assert!(found[0].1.contains("declare other anew without the foreign key"), "{found:#?}");
}

#[test]
fn text_that_is_not_utf8() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    a.sql("INSERT INTO note VALUES ('it''s', CAST(x'ff41' AS TEXT), 1), (CAST(x'fe' AS TEXT), 'fine', 2)");
    let notes = |repo: &Repo| {
        let findings = repo.json(&["doctor", "--offline"]);
        let odd = |finding: &&Value| finding["message"].as_str().unwrap().contains("not valid UTF-8");
        findings.as_array().unwrap().iter().filter(odd).cloned().collect::<Vec<_>>()
    };
    let found = notes(&a);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0]["message"].as_str().unwrap().contains("note: id holds text"), "{found:#?}");
    assert!(found[1]["message"].as_str().unwrap().contains("note: body holds text"), "{found:#?}");
    assert!(found[1]["message"].as_str().unwrap().contains("the key 'it''s'"), "{found:#?}");
    for finding in &found {
        paste(&a, commands(finding["mend"].as_str().unwrap())[0]);
    }
    assert_eq!(notes(&a), [] as [Value; 0]);
    b.pull();
    assert_eq!(b.rows("SELECT hex(id), hex(body) FROM note ORDER BY stars"), ["69742773|FF41", "FE|66696E65"]);
    assert_eq!(a.changes(), b.changes());
}

#[test]
fn indexes_that_keep_rows_out() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    b.sql("CREATE UNIQUE INDEX \"only one\" ON note (body) WHERE stars > 0");
    mend(&b, &["note replicates, but what peers wrote may not fit it"]);
    a.sql("INSERT INTO note VALUES ('1', 'same', 1), ('2', 'same', 2)");
    b.pull();
    assert_converged(&[&a, &b]);
    assert!(b.rows("SELECT sql FROM sqlite_master WHERE name = 'only one'")[0].starts_with("CREATE INDEX"));
}

#[test]
fn settings_of_the_file_and_its_surroundings() {
    let world = World::new();
    let a = world.notes("a");
    a.sql("PRAGMA journal_mode = delete");
    mend(&a, &["its journal mode is delete"]);
    fs::set_permissions(a.state("config.toml"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    mend(&a, &["config.toml is open to other users"]);
    fs::create_dir_all(a.state("parts/0000 0000")).unwrap();
    let all = a.json(&["doctor", "--offline"]);
    let left = all.as_array().unwrap().iter().find(|finding| finding["about"] == "leftovers").unwrap();
    paste(&a, commands(left["mend"].as_str().unwrap())[0]);
    assert!(!a.state("parts/0000 0000").exists());
    Connection::open(a.state("state.db")).unwrap().execute_batch("SELECT 1").unwrap();
}

/// SQLite does not tell letters from capitals in names, and neither does the doctor.
#[test]
fn names_in_other_letters_are_no_fault() {
    let world = World::new();
    let a = world.repo("a");
    a.ok(["init"]);
    a.sql("CREATE TABLE Note (id TEXT NOT NULL PRIMARY KEY, body TEXT); SELECT crsql_as_crr('note')");
    a.sql("INSERT INTO NOTE VALUES ('1', 'one'); ALTER TABLE note RENAME COLUMN body TO Body");
    assert_eq!(trouble(&a, &["--offline"]), []);
    a.sql("DROP TRIGGER NOTE__crsql_utrig");
    mend(&a, &["ote has lost triggers"]);
}

#[test]
fn a_repository_that_is_not_there() {
    let world = World::new();
    let a = world.repo("a");
    let found = trouble(&a, &["--offline"]);
    paste(&a, commands(&found[0].1)[0]);
    a.sql(NOTE);
    assert_eq!(trouble(&a, &["--offline"]), []);
    fs::remove_dir_all(a.state("")).unwrap();
    mend(&a, &["there is no state directory"]);
}

#[test]
fn an_inbox_that_is_nearly_full() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.ok(["fetch"]);
    let held: i64 = Connection::open(b.state("state.db"))
        .unwrap()
        .query_row("SELECT sum(length(pack)) FROM inbox", [], |row| row.get(0))
        .unwrap();
    b.ok(["config", "set", "limits.inbox_bytes", &held.to_string()]);
    mend(&b, &["a: the inbox holds"]);
    assert_converged(&[&a, &b]);
}

/// What waits can be looked at, tried again, and let go, by what is printed.
#[test]
fn what_waits() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    a.sql("CREATE TABLE more (id TEXT NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('more')");
    a.sql("INSERT INTO more VALUES (1, 2)");
    b.pull();
    let found = trouble(&b, &["--offline"]);
    assert!(found[0].0.contains("a: 1 changes wait: table more: there is no such table"), "{found:#?}");
    let [list, retry, drop] = commands(&found[0].1)[..] else { panic!("{found:#?}") };
    paste(&b, list);
    b.sql("CREATE TABLE more (id TEXT NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('more')");
    paste(&b, retry);
    assert_eq!(trouble(&b, &["--offline"]), []);
    assert_eq!(b.rows("SELECT * FROM more"), ["1|2"]);

    a.sql("CREATE TABLE never (id TEXT NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('never')");
    a.sql("INSERT INTO never VALUES (1, 2)");
    b.pull();
    b.ok(["remote", "remove", "a"]);
    let found = trouble(&b, &["--offline"]);
    assert!(found[0].0.starts_with("site "), "{found:#?}");
    paste(&b, commands(&found[0].1)[2]);
    assert_eq!(trouble(&b, &["--offline"]), [], "after {list}, {retry} and {drop}");
}

#[test]
fn tables_that_do_not_replicate_yet() {
    let world = World::new();
    let a = world.notes("a");
    a.sql("CREATE TABLE \"it's\" (id TEXT NOT NULL PRIMARY KEY, x); INSERT INTO \"it's\" VALUES (1, 2)");
    let all = a.json(&["doctor", "--offline"]);
    let could = all.as_array().unwrap().iter().find(|finding| finding["level"] == "note").unwrap();
    paste(&a, commands(could["mend"].as_str().unwrap())[0]);
    assert_eq!(a.rows("SELECT count(*) FROM crsql_changes"), ["1"]);
}

#[test]
fn remotes_that_cannot_be_used() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    // It becomes a name of the own database when it is a remote already.
    b.ok(["remote", "add", "self", "alias.db"]);
    symlink(b.db(), world.path("alias.db")).unwrap();
    mend_with(&b, &[], &["self is this repository itself"]);
    a.sql("SELECT crsql_begin_alter('note'); ALTER TABLE note ADD COLUMN colour; SELECT crsql_commit_alter('note')");
    let found = trouble(&b, &[]);
    paste(&b, commands(&found[0].1)[1]);
    assert_eq!(trouble(&b, &[]), [], "{found:#?}");
    b.ok(["remote", "add", "gone", "gone.db"]);
    let found = trouble(&b, &[]);
    paste(&b, commands(&found[0].1)[1]);
    assert_eq!(trouble(&b, &[]), [], "{found:#?}");
}

/// The last failure of a fetch and of a merge is told until one succeeds.
#[test]
fn failures_are_told_until_it_works_again() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let (there, away) = (a.db().to_owned(), world.path("away.db"));
    fs::rename(&there, &away).unwrap();
    b.run(["fetch"]).assert_status(4);
    fs::rename(&away, &there).unwrap();
    assert!(b.ok(["status"]).contains(" (fetch, 2"), "{}", b.ok(["status"]));
    assert!(b.json(&["status"])["remotes"][0]["last_error_at"].is_i64());
    mend(&b, &["a: the last fetch failed at 2"]);
    assert!(!b.ok(["status"]).contains("failed"));

    let state = Connection::open(b.state("state.db")).unwrap();
    state.execute("UPDATE inbox SET pack = x'00' WHERE pack IS NOT NULL", []).unwrap();
    drop(state);
    b.run(["merge"]).assert_status(1);
    let status = b.json(&["status"]);
    assert!(status["remotes"][0]["merge_error"]["message"].as_str().unwrap().contains("damaged"), "{status:#}");
    assert!(b.ok(["status"]).contains(" (merge, 2"), "{}", b.ok(["status"]));
    let found = trouble(&b, &["--offline"]);
    assert!(found[0].0.starts_with("a: the last merge failed at 2"), "{found:#?}");
    let again = commands(&found[0].1).into_iter().find(|command| command.starts_with("ddcp --db b.db pull a")).unwrap();
    paste(&b, again);
    assert_eq!(trouble(&b, &["--offline"]), []);
    assert!(!b.ok(["status"]).contains("failed"));
    assert_converged(&[&a, &b]);
}

/// What is merged by `merge` is shown by `status`, whoever sent it.
#[test]
fn what_came_by_other_ways_is_shown() {
    let world = World::new();
    let [a, b, c] = world.all_notes(["a", "b", "c"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)").ok(["bundle", "create", "a.bundle"]);
    c.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    b.ok(["bundle", "fetch", "a.bundle"]);
    b.follows(&[&c]).ok(["fetch"]);
    b.ok(["remote", "remove", "c"]);
    let status = b.json(&["status"]);
    let mut shown: Vec<&str> =
        status["others"].as_array().unwrap().iter().map(|other| other["site"].as_str().unwrap()).collect();
    let (first, second) = (a.json(&["status"]), c.json(&["status"]));
    let mut sites = [first["site_id"].as_str().unwrap(), second["site_id"].as_str().unwrap()];
    sites.sort_unstable();
    shown.sort_unstable();
    assert_eq!(shown, sites);
    let printed = b.ok(["status"]);
    for site in sites {
        assert!(
            printed.contains(&format!("site     {site}, which is no remote\nfetched  2 changes not merged")),
            "{printed}"
        );
    }
    let all = b.json(&["doctor", "--offline"]);
    let note = all.as_array().unwrap().iter().find(|finding| finding["about"] == "inbox").unwrap();
    paste(&b, commands(note["mend"].as_str().unwrap())[0]);
    assert_eq!(b.json(&["status"])["others"], Value::Null);
    assert_eq!(b.notes(), ["1|one|1", "2|two|2"]);
}

/// Advice names the database as it was named, in words of a shell.
#[test]
fn the_database_is_named_as_it_was_named() {
    let world = World::new();
    let odd = world.path("it's $HOME.db");
    let name = odd.file_name().unwrap().to_str().unwrap();
    world.run(["--db", name, "init"]).assert_status(0);
    let run = world.run(["--db", name, "doctor", "--offline", "--trouble"]).assert_status(5);
    assert!(run.stdout.contains(r#"`ddcp --db "it's \$HOME.db" shell"#), "{run}");
    let run = world.run(["--db", "./none.db", "--state-dir", "st", "doctor", "--offline"]).assert_status(5);
    assert!(run.stdout.contains("mend: `ddcp --db ./none.db --state-dir st init`"), "{run}");
}

/// An earlier program took versions that nobody comes to, and passed them on.
#[test]
fn cells_with_versions_that_nobody_comes_to() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
    b.pull();
    for repo in [&a, &b] {
        repo.sql("UPDATE note__crsql_clock SET col_version = 1 << 60 WHERE key = 1 AND col_name = 'body'");
    }
    a.sql("UPDATE note SET body = 'corrected' WHERE id = '1'");
    b.run(["pull"]);
    assert_eq!(b.notes(), ["1|one|1", "2|two|2"], "what the doctor is to mend");
    let found = trouble(&a, &["--offline"]);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].0.contains("note: somebody gave 1 cell versions far above"), "{found:#?}");
    assert!(found[1].0.contains("1 change cannot be sent"), "{found:#?}");
    paste(&a, commands(&found[0].1)[0]);
    assert_eq!(trouble(&a, &["--offline"]), []);
    // The one that is mended mends the others.
    b.pull();
    assert_eq!(b.notes(), ["1|corrected|1", "2|two|2"]);
    assert_eq!(trouble(&b, &["--offline"]), []);
    a.sql("UPDATE note SET body = 'once more'");
    b.pull();
    assert_converged(&[&a, &b]);
}

#[test]
fn rows_with_causal_lengths_that_nobody_comes_to() {
    let world = World::new();
    let [a, b] = pair(&world, NOTE);
    let c = world.notes("c");
    c.follows(&[&a]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2), ('3', 'three', 3)");
    b.pull();
    c.pull();
    // Of the first row, that it is there again; of the second, that it was deleted.
    for repo in [&a, &b] {
        repo.sql(
            "DELETE FROM note WHERE id < '3'; INSERT INTO note VALUES ('1', 'poison', 1);
             UPDATE note__crsql_clock SET col_version = (1 << 60) - col_version % 2 WHERE col_name = '-1'",
        );
    }
    a.sql("DELETE FROM note WHERE id = '1'; INSERT INTO note VALUES ('1', 'corrected', 1)");
    c.run(["pull"]);
    assert_eq!(c.notes()[0], "1|one|1", "what the doctor is to mend");
    for repo in [&a, &b] {
        let found = trouble(repo, &["--offline"]);
        assert!(found[0].0.contains("note: somebody gave 2 rows causal lengths far above"), "{found:#?}");
        paste(repo, commands(&found[0].1)[0]);
    }
    a.sql("UPDATE note SET body = 'right' WHERE id = '1'");
    b.pull();
    c.pull();
    assert_eq!(c.notes(), ["1|right|1", "3|three|3"]);
    // What was put aside stays there.
    let found = trouble(&c, &["--offline"]);
    assert!(found[0].0.starts_with("a: 1 changes wait"), "{found:#?}");
    paste(&c, commands(&found[0].1)[2]);
    for repo in [&a, &b, &c] {
        assert_eq!(trouble(repo, &["--offline"]), [], "{}", repo.name());
    }
    assert_converged(&[&a, &b, &c]);
}
