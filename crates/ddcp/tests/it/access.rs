//! `config`, and what it bounds: remotes that send too much or claim to be others.

use std::{collections::HashSet, fs, path::Path};

use insta::assert_snapshot;

use crate::support::{World, assert_converged};

#[test]
fn settings_are_shown_and_changed() {
    let world = World::new();
    let repo = world.notes("a");
    assert_snapshot!(repo.run(["config", "get"]), @"
    status 0
    --- stdout
    access address
    limits.callers 256
    limits.drop_seconds 60
    limits.inbox_bytes 17179869184
    limits.offers_at_once 4
    limits.offers_per_second 8
    limits.pack_bytes 1073741824
    limits.patience_seconds 120
    limits.requests_at_once 20
    limits.requests_per_second 5000
    limits.total_requests_per_second 20000
    limits.unpacked_bytes 1100000000
    ");
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
fn a_private_repository_stays_private_when_its_settings_are_lost() {
    let world = World::new();
    let repo = world.notes("a");
    repo.ok(["config", "set", "access", "private"]);
    let config = repo.state("config.toml");
    let is_private = |why: &str| {
        let run = repo.run(["config", "get", "access"]);
        assert_eq!((run.stdout.as_str(), run.status), ("private\n", Some(0)), "{run}");
        assert!(run.stderr.contains(why), "{run}");
        assert!(repo.ok(["status"]).contains(why));
        assert!(repo.json(&["status"])["kept_private"].as_str().unwrap().contains(why));
        assert!(repo.run(["doctor"]).assert_status(5).stdout.contains(why));
    };
    fs::remove_file(&config).unwrap();
    is_private("it was private and stays so");
    fs::write(&config, "").unwrap();
    is_private("it was private and stays so");
    // What begins the settings anew, does not open it.
    repo.ok(["remote", "add", "b", "b.db"]);
    is_private("it was private and stays so");
    fs::remove_file(&config).unwrap();
    repo.ok(["init"]);
    is_private("it was private and stays so");
    // Without what is known of it, too.
    fs::remove_file(&config).unwrap();
    fs::remove_file(repo.state("config.private")).unwrap();
    is_private("config.toml is missing or empty");
    repo.ok(["init"]);
    is_private("it was private and stays so");

    repo.ok(["config", "set", "access", "address"]);
    let run = repo.run(["config", "get", "access"]);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("address\n", ""));
    fs::write(&config, "# mine\n").unwrap();
    assert_eq!(repo.ok(["config", "get", "access"]), "address\n");
}

#[test]
fn wrong_settings_are_refused() {
    let world = World::new();
    let repo = world.notes("a");
    assert_snapshot!(repo.run(["config", "set", "access", "public"]), @"
    status 2
    --- stderr
    error: `public` is no value for `access`: unknown variant `public`, expected `address` or `private`
    ");
    assert_snapshot!(repo.run(["config", "set", "limits.callers", "-1"]), @"
    status 2
    --- stderr
    error: `-1` is no value for `limits.callers`: invalid value: integer `-1`, expected a nonzero u32
    ");
    for wrong in [&["config", "set", "limits.caller", "1"][..], &["config", "get", "limits.caller"]] {
        let run = repo.run(wrong).assert_status(2);
        assert!(
            run.stderr.contains("there is no setting `limits.caller`; there are access, limits.callers, "),
            "{run}"
        );
    }
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
    assert_snapshot!(reader.run(["pull"]), @"
    status 3
    --- stdout
    a: nothing new
    other: fetched 2 changes in SIZE
    a: nothing to merge
    other: merged 2 changes (note 2)

    --- stderr
    error: twin: its database has the site id of the remote `a` (SITE); nothing is fetched, so that the two are not mixed
    hint: if both are the same repository, remove one of them (`ddcp remote remove a`); if not, one is a copied file or claims to be what it is not
    ");
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
    over("limits.inbox_bytes", "10000", "there is no room for more");
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
