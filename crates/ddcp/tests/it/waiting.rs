//! `ddcp waiting`: what waits is listed row by row, tried again, and let go only when that is asked for.

use insta::assert_snapshot;

use crate::support::{Repo, World, assert_converged};

const DRAFT: &str = "CREATE TABLE draft (id TEXT NOT NULL, n INTEGER NOT NULL, body, PRIMARY KEY (id, n)); SELECT crsql_as_crr('draft');";

/// `b` has merged of `a` what it could: rows of `draft` wait, and one that a trigger refuses.
fn waiting(world: &World) -> [Repo; 2] {
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(&format!("{DRAFT} INSERT INTO draft VALUES ('it''s', 1, 'x'), (x'00ff', 2, 'y')"));
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
    b.sql(
        "CREATE TRIGGER small BEFORE INSERT ON note WHEN NEW.id = '2' BEGIN SELECT RAISE(ABORT, 'not that one'); END",
    );
    b.follows(&[&a]).pull();
    [a, b]
}

fn changes(repo: &Repo, arguments: &[&str]) -> u64 {
    let list: Vec<&str> = ["waiting", "list"].iter().chain(arguments).copied().collect();
    repo.json(&list)["changes"].as_u64().unwrap()
}

#[test]
fn rows_are_listed_with_sender_reason_and_time() {
    let world = World::new();
    let [_, b] = waiting(&world);
    let shown = b.run(["waiting", "list"]);
    assert!(shown.stdout.lines().all(|line| line.starts_with("a: ") && line.contains(", since 2")), "{shown}");
    assert!(shown.stdout.contains("draft ('it''s', 1): 1 change, since"), "{shown}");
    assert!(shown.stdout.contains("draft (x'00ff', 2): 1 change, since"), "{shown}");
    let [note] = shown.stdout.lines().filter(|line| line.contains("note ('2')")).collect::<Vec<_>>()[..] else {
        panic!("{shown}")
    };
    assert!(note.contains("not that one"), "{shown}");
    assert_eq!(changes(&b, &["--table", "DRAFT"]), 2);
    assert_eq!(changes(&b, &["a"]), changes(&b, &[]));
    let row = &b.json(&["waiting", "list", "--table", "draft"])["rows"][0];
    assert_eq!((&row["remote"], &row["changes"], row["since"].is_i64()), (&"a".into(), &1.into(), true), "{row:#}");
    b.run(["waiting", "list", "nobody"]).assert_status(2);
    b.ok(["remote", "remove", "a"]);
    let shown = b.ok(["waiting", "list"]);
    let site = b.json(&["status"])["others"][0]["site"].as_str().unwrap().to_owned();
    assert!(shown.starts_with(&format!("site {site}: ")), "{shown}");
    assert_eq!(changes(&b, &[&site]), changes(&b, &[]));
}

#[test]
fn it_is_tried_again_at_once_and_nothing_else_is_merged() {
    let world = World::new();
    let [a, b] = waiting(&world);
    a.sql("INSERT INTO note VALUES ('3', 'three', 0)");
    b.ok(["fetch"]);
    let since = b.json(&["waiting", "list"])["rows"][0]["since"].clone();
    b.run(["waiting", "retry"]).assert_status(0);
    assert_eq!(b.notes(), ["1|one|1"], "refused again, and what was fetched stays in the inbox");
    assert_eq!(b.json(&["waiting", "list"])["rows"][0]["since"], since);
    b.sql("DROP TRIGGER small").sql(DRAFT);
    let tried = b.ok(["waiting", "retry", "a"]);
    assert!(tried.contains("draft 2") && tried.contains("note"), "{tried}");
    assert_eq!(b.notes(), ["1|one|1", "2|two|2"]);
    assert_eq!(changes(&b, &[]), 0);
    assert_eq!(b.json(&["status"])["remotes"][0]["unmerged"], 2);
    b.ok(["merge"]);
    assert_converged(&[&a, &b]);
    assert_snapshot!(b.run(["waiting", "retry"]), @"
    status 0
    --- stderr
    nothing waits
    ");
}

#[test]
fn it_is_let_go_only_when_asked_for() {
    let world = World::new();
    let [a, b] = waiting(&world);
    let all = changes(&b, &[]);
    b.run(["waiting", "drop"]).assert_status(2);
    b.run(["waiting", "drop", "a", "--all"]).assert_status(2);
    let shown = b.run(["waiting", "drop", "a"]).assert_status(0);
    assert!(shown.stdout.contains("draft ('it''s', 1): 1 change"), "{shown}");
    assert!(shown.stderr.contains("nothing was dropped"), "{shown}");
    assert_eq!(changes(&b, &[]), all);

    let dropped = b.run(["waiting", "drop", "--table", "draft", "--yes"]).assert_status(0);
    assert!(dropped.stdout.contains("draft (x'00ff', 2): 1 change"), "{dropped}");
    assert!(dropped.stderr.contains("dropped 2 changes; `ddcp --db b.db verify a` fetches again"), "{dropped}");
    assert_eq!((changes(&b, &[]), changes(&b, &["--table", "draft"])), (all - 2, 0), "the others wait on");
    assert!(b.ok(["log"]).contains("a: dropped 2 changes that waited"), "{}", b.ok(["log"]));
    b.ok(["waiting", "drop", "a", "--yes"]);
    assert_eq!(changes(&b, &[]), 0);
    assert!(b.ok(["waiting", "drop", "--all", "--yes"]).is_empty());

    // It does not come by itself, and can be had again.
    b.sql("DROP TRIGGER small").sql(DRAFT);
    b.pull();
    assert_eq!((b.notes(), b.rows("SELECT count(*) FROM draft")), (vec!["1|one|1".to_owned()], vec!["0".to_owned()]));
    b.ok(["verify", "a"]);
    assert_converged(&[&a, &b]);
    assert_eq!(a.changes(), b.changes());
}

/// Changes that are kept together are taken apart where only some of them are let go.
#[test]
fn what_came_in_a_bundle_can_be_let_go() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(&format!("{DRAFT} INSERT INTO draft VALUES ('x', 1, 'x')")).ok(["bundle", "create", "a.bundle"]);
    b.ok(["bundle", "fetch", "a.bundle"]);
    b.ok(["merge"]);
    let dropped = b.run(["waiting", "drop", "--all", "--yes"]).assert_status(0);
    assert!(dropped.stderr.contains("dropped 1 change; where they came from"), "{dropped}");
    assert_eq!(b.json(&["status"]).get("others"), None);
}

/// Names are as long as the sender likes, and each of them is another reason.
#[test]
fn reasons_are_short_and_what_waits_takes_little_more_than_it_was() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    for table in 0..40 {
        let name = format!("t{table}_{}", "é".repeat(700));
        let declared =
            format!("CREATE TABLE \"{name}\" (id INTEGER PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('{name}')");
        a.sql(&format!("{declared}; INSERT INTO \"{name}\" (id, v) VALUES (1, 'x'), (2, 'y')"));
    }
    b.follows(&[&a]).pull();
    let status = b.json(&["status"]);
    let remote = &status["remotes"][0];
    let reasons: Vec<&str> =
        remote["reasons"].as_array().unwrap().iter().map(|reason| reason.as_str().unwrap()).collect();
    assert!(reasons.len() <= 51 && reasons.iter().all(|reason| reason.len() <= 403), "{reasons:#?}");
    assert_eq!(remote["waiting"], 80);
    let state = std::fs::metadata(b.state("state.db")).unwrap().len();
    assert!(state < 1 << 20, "{state} bytes");
}

#[test]
fn a_list_of_what_waits_has_an_end() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(&format!("{DRAFT} INSERT INTO draft VALUES (replace(hex(zeroblob(1000000)), '0', 'k'), 1, 'x'), (zeroblob(1000000), 2, 'y')"));
    b.follows(&[&a]).pull();
    let list = b.json(&["waiting", "list"]);
    let rows = list["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        let key = row["key"][0].as_str().unwrap();
        assert!((900..=1003).contains(&key.len()) && key.ends_with('…'), "{}", key.len());
    }
}
