//! `config`, and what it bounds: remotes that send too much or claim to be others.

use std::{collections::HashSet, fs, path::Path};

use insta::assert_snapshot;

use crate::support::{World, assert_converged};

#[test]
fn settings_are_shown_and_changed() {
    let world = World::new();
    let repo = world.notes("a");
    assert_snapshot!(repo.run(["config", "get"]), @"");
    assert_snapshot!(repo.run(["config", "set", "access", "private"]), @"status 0");
    assert_snapshot!(repo.run(["config", "get", "access"]), @"
    status 0
    --- stdout
    private
    ");
    assert_eq!(repo.json(&["config", "get"])["access"], "private");
    assert_eq!(repo.json(&["config", "get", "limits.callers"]), "256");
    repo.ok(["config", "set", "limits.callers", "12"]);
    assert_eq!(repo.ok(["config", "get", "limits.callers"]), "12\n");
    let text = fs::read_to_string(repo.state("config.toml")).unwrap();
    assert!(text.contains("# Settings of this repository.") && text.contains("access = \"private\"\n"), "{text}");
    assert_eq!(repo.json(&["status"])["access"], "private");
    assert!(repo.ok(["status"]).contains("access   private\n"));
}

#[test]
fn wrong_settings_are_refused() {
    let world = World::new();
    let repo = world.notes("a");
    assert_snapshot!(repo.run(["config", "set", "access", "public"]), @"");
    assert_snapshot!(repo.run(["config", "set", "limits.callers", "-1"]), @"");
    assert_snapshot!(repo.run(["config", "set", "limits.caller", "1"]), @"");
    assert_snapshot!(repo.run(["config", "get", "acess"]), @"");
    assert_eq!(repo.ok(["config", "get", "access"]), "address\n");
}

#[test]
fn two_remotes_with_one_site_id_are_not_mixed() {
    let world = World::new();
    let [a, other] = world.all_notes(["a", "other"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    fs::copy(a.db(), world.path("twin.db")).unwrap();
    let twin = rusqlite::Connection::open(world.path("twin.db")).unwrap();
    other.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    let reader = world.notes("reader");
    reader.follows(&[&a]).pull();
    reader.ok(["remote", "add", "twin", "twin.db"]);
    reader.follows(&[&other]);
    assert_snapshot!(reader.run(["pull"]), @"");
    assert_eq!(reader.notes(), ["1|one|1", "2|two|2"], "the others are fetched");
    assert!(reader.ok(["status"]).contains("failed   its database has the site id of the remote `a`"));
    drop(twin);

    // The owner of the settings says which of them it is.
    reader.ok(["remote", "remove", "a"]);
    reader.ok(["pull", "twin"]);
    // One address under two names is one repository.
    reader.ok(["remote", "add", "again", "twin.db"]);
    reader.ok(["pull"]);
}

#[test]
fn what_is_over_a_limit_is_not_taken_and_the_others_are_fetched() {
    let world = World::new();
    let [large, small, reader] = world.all_notes(["large", "small", "reader"]);
    large.sql("INSERT INTO note VALUES ('1', hex(randomblob(50000)), 1)");
    small.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    reader.follows(&[&large, &small]);
    let over = |limit: &str, value: &str, reason: &str| {
        reader.ok(["config", "set", limit, value]);
        let run = reader.run(["fetch"]).assert_status(3);
        assert!(run.stderr.contains(&format!("error: large: {reason}")), "{}", run.stderr);
        assert!(reader.ok(["status"]).contains(&format!("failed   {reason}")));
    };
    over("limits.pack_bytes", "10000", "it offers a pack of ");
    reader.ok(["config", "set", "limits.pack_bytes", "1000000"]);
    over("limits.unpacked_bytes", "10000", "it sent a pack that cannot be used: the pack has too many bytes");
    reader.ok(["config", "set", "limits.unpacked_bytes", "1000000"]);
    over("limits.inbox_bytes", "10000", "what is fetched and not merged has reached the limit");
    reader.ok(["config", "set", "limits.inbox_bytes", "1000000"]);
    reader.pull();
    assert_eq!(reader.rows("SELECT count(*), sum(length(body)) FROM note"), ["2|100003"]);
    large.follows(&[&reader]).pull();
    small.follows(&[&reader]).pull();
    assert_converged(&[&large, &small, &reader]);
}

/// Every `fn` in the Rust sources under `folder`.
fn functions(folder: &Path, found: &mut HashSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let names = text.split("fn ").skip(1).filter_map(|rest| rest.split('(').next());
            found.extend(names.map(str::to_owned));
        }
    }
}

#[test]
fn tests_that_the_security_model_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let mut known = HashSet::new();
    for folder in ["crates/ddcp/src", "crates/ddcp/tests", "crates/testnet/tests"] {
        functions(&root.join(folder), &mut known);
    }
    let (_, table) = text.split_once("| attack |").unwrap();
    let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 20, "{}", rows.len());
    for row in rows {
        let tests: Vec<&str> = row.rsplit('|').nth(1).unwrap().split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{row}");
        for test in tests {
            assert!(known.contains(test), "{test}: {row}");
        }
    }
}
