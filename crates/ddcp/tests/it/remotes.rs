//! `remote add`, `list`, `remove`, `rename`, `set-address`.

use insta::assert_snapshot;

use crate::support::World;

const KEY: &str = "VLD0:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

#[test]
fn remotes_are_added_listed_renamed_moved_and_removed() {
    let world = World::new();
    let repo = world.notes("a");
    assert_snapshot!(repo.run(["remote", "list"]), @"status 0");
    assert_snapshot!(repo.run(["remote", "add", "bob", "b.db"]), @"status 0");
    repo.ok(["remote", "add", "alice", KEY]);
    assert_snapshot!(repo.run(["remote", "list"]), @"
    status 0
    --- stdout
    alice VLD0:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8
    bob DIR/b.db
    ");
    repo.ok(["remote", "rename", "bob", "robert"]);
    repo.ok(["remote", "set-address", "robert", "../robert.db"]);
    repo.ok(["remote", "remove", "alice"]);
    let list = repo.ok(["remote", "list"]);
    let parent = world.path("").parent().unwrap().canonicalize().unwrap();
    assert_eq!(list, format!("robert {}\n", parent.join("robert.db").display()));
    assert_snapshot!(repo.run(["remote", "add", "c", "c.db", "--format", "json"]), @"status 0");
    assert_eq!(repo.json(&["remote", "list"])[0]["name"], "c");
}

#[test]
fn relative_paths_are_meant_from_the_current_folder() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.notes("b"));
    b.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    std::fs::create_dir(world.path("sub")).unwrap();
    let in_sub = |arguments: &[&str]| {
        let status = world.command().current_dir(world.path("sub")).args(["--db", "../a.db"]).args(arguments).status();
        assert!(status.unwrap().success());
    };
    in_sub(&["remote", "add", "b", "../b.db"]);
    assert_snapshot!(a.run(["remote", "list"]), @"
    status 0
    --- stdout
    b DIR/b.db
    ");
    a.pull();
    assert_eq!(a.notes(), ["1|one|1"]);
}

#[test]
fn an_address_need_not_be_an_argument() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.run_with_input(["remote", "add", "one", "-"], b"a.db\n").assert_status(0);
    std::fs::write(world.path("address"), "a.db\n").unwrap();
    b.ok(["remote", "add", "two", "@address"]);
    b.ok(["remote", "add", "three", "none.db"]);
    b.ok(["remote", "set-address", "three", "@address"]);
    let path = a.db().display();
    assert_eq!(b.ok(["remote", "list"]), format!("one {path}\nthree {path}\ntwo {path}\n"));

    let clone = world.repo("c");
    clone.run_with_input(["clone", "-"], b"a.db\n").assert_status(0);
    assert_eq!(clone.notes(), ["1|one|1"]);
    let another = world.repo("d");
    another.ok(["clone", "@address", "d.db"]);
    assert_eq!(another.notes(), ["1|one|1"]);

    let run = b.run_with_input(["remote", "add", "four", "-"], b"\n").assert_status(2);
    assert!(run.stderr.contains("standard input holds no address"), "{run}");
    let run = b.run(["remote", "add", "four", "@none"]).assert_status(1);
    assert!(run.stderr.contains("No such file"), "{run}");
}

#[test]
fn odd_and_taken_names_are_refused() {
    let world = World::new();
    let repo = world.notes("a");
    repo.ok(["remote", "add", "alice-2.home_pc", "b.db"]);
    for name in ["", "a b", "a/b", "ä", "-", ".hidden", "a;rm", "tab\there", &"x".repeat(65)] {
        let run = repo.run(["remote", "add", "--", name, "b.db"]).assert_status(2);
        assert!(run.stderr.contains("is no name for a remote") && run.stdout.is_empty(), "{run}");
    }
    assert_snapshot!(repo.run(["remote", "add", "a b\u{7}", "b.db"]), @r"
    status 2
    --- stderr
    error: `a b\u{7}` is no name for a remote: use 1 to 64 letters, digits, `-`, `_` or `.`, beginning with a letter or digit
    ");
    assert_snapshot!(repo.run(["remote", "add", "alice-2.home_pc", "c.db"]), @"
    status 2
    --- stderr
    error: a remote named `alice-2.home_pc` exists already
    hint: `ddcp remote set-address alice-2.home_pc ADDRESS` changes its address
    ");
    repo.ok(["remote", "add", "bob", "c.db"]);
    assert_snapshot!(repo.run(["remote", "rename", "bob", "alice-2.home_pc"]), @"
    status 2
    --- stderr
    error: a remote named `alice-2.home_pc` exists already
    hint: `ddcp remote set-address alice-2.home_pc ADDRESS` changes its address
    ");
    assert_snapshot!(repo.run(["remote", "rename", "bob", "b b"]), @"
    status 2
    --- stderr
    error: `b b` is no name for a remote: use 1 to 64 letters, digits, `-`, `_` or `.`, beginning with a letter or digit
    ");
    assert_snapshot!(repo.run(["remote", "remove", "eve"]), @"
    status 2
    --- stderr
    error: there is no remote named `eve`
    hint: `ddcp remote list` shows the remotes
    ");
    for arguments in
        [&["remote", "rename", "eve", "adam"][..], &["remote", "set-address", "eve", "e.db"], &["fetch", "eve"]]
    {
        let run = repo.run(arguments).assert_status(2);
        assert!(run.stderr.contains("there is no remote named `eve`"), "{run}");
    }
    assert_snapshot!(repo.run(["remote", "list"]), @"
    status 0
    --- stdout
    alice-2.home_pc DIR/b.db
    bob DIR/c.db
    ");
}

#[test]
fn malformed_addresses_are_refused() {
    let world = World::new();
    let repo = world.notes("a");
    repo.ok(["remote", "add", "good", "b.db"]);
    for address in
        ["", "  ", "VLD0:", "VLD0:nonsense", "VLD1:a:b", &KEY[..60], &KEY[..90], "https://example.org/a.db", "a\nb"]
    {
        let add = repo.run(["remote", "add", "bad", address]).assert_status(2);
        let change = repo.run(["remote", "set-address", "good", address]).assert_status(2);
        assert!(add.stderr.contains("is no address: ") && change.stderr == add.stderr, "{add}{change}");
    }
    assert_snapshot!(repo.run(["remote", "add", "bad", "VLD0:nonsense"]), @"
    status 2
    --- stderr
    error: `VLD0:nonsense` is no address: the key after VLD0: is damaged; expected VLD0:… as `ddcp address` prints it, or the path of a database
    ");
    assert_snapshot!(repo.run(["remote", "add", "bad", &KEY[..48]]), @"
    status 2
    --- stderr
    error: `VLD0:AAECAwQFBgc…` is no address: its secret part is missing; expected VLD0:… as `ddcp address` prints it, or the path of a database
    ");
    assert_snapshot!(repo.run(["remote", "list"]), @"
    status 0
    --- stdout
    good DIR/b.db
    ");
}

#[test]
fn what_was_fetched_from_a_removed_remote_can_still_be_merged() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.notes("b"));
    b.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    a.follows(&[&b]).ok(["fetch"]);
    assert_snapshot!(a.run(["remote", "remove", "b"]), @"
    status 0
    --- stderr
    b: 2 changes that had been fetched from it stay; `ddcp merge` merges them
    ");
    assert_snapshot!(a.run(["merge"]), @"
    status 0
    --- stdout
    site SITE: merged 2 changes (note 2)
    ");
    assert_eq!(a.notes(), ["1|one|1"]);
}

#[test]
fn a_renamed_remote_keeps_what_is_known_of_it() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.notes("b"));
    b.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    a.follows(&[&b]).ok(["fetch"]);
    a.ok(["remote", "rename", "b", "bob"]);
    assert_snapshot!(a.run(["status"]), @"
    status 0
    --- stdout
    database DIR/a.db
    version  0
    site id  SITE
    tables   note
    address  none yet; `ddcp serve` gives it one
    serving  no

    remote   bob
    address  DIR/b.db
    contact  TIME
    version  1
    behind   fetched up to version 1, merged up to 0
    fetched  2 changes not merged
    ");
    a.ok(["merge", "bob"]);
    assert_eq!(a.notes(), ["1|one|1"]);
}

fn rows(file: &std::path::Path, sql: &str) -> Vec<String> {
    let connection = rusqlite::Connection::open(file).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn all_that_is_known_of_a_remote_goes_by_its_new_name() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.notes("b"));
    b.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.follows(&[&a]);
    a.follows(&[&b]).pull();
    b.pull();
    a.run(["verify", "b"]).assert_status(0);
    a.ok(["bundle", "create", "b.bundle", "--since", "b", "--mark"]);
    a.ok(["remote", "rename", "b", "bob"]);
    let status = a.ok(["status"]);
    assert!(status.contains("digest   identical to bob"), "{status}");
    let log = a.ok(["log", "bob"]);
    assert!(log.contains("bob: fetched 2 changes") && a.ok(["log", "b"]).is_empty(), "{log}");
    let again = a.json(&["bundle", "create", "again.bundle", "--since", "bob"]);
    assert!(again["from_version"].as_i64() > Some(0) && again["changes"] == 0, "{again}");
    // A new remote by the old name is nobody yet.
    a.ok(["remote", "add", "b", "c.db"]);
    assert!(a.ok(["status"]).contains("contact  never"));
    for table in ["contact", "bundle_mark"] {
        assert_eq!(rows(&a.state("state.db"), &format!("SELECT remote FROM {table}")), ["bob"], "{table}");
    }
    assert_eq!(rows(&a.state("digest.db"), "SELECT name FROM remote"), ["bob"]);
}

/// A name that is taken is refused, and what is known of it stays.
#[test]
fn a_rename_to_a_taken_name_changes_nothing() {
    let world = World::new();
    let repos = world.all_notes(["a", "b", "c"]);
    let [a, b, c] = &repos;
    a.follows(&[b, c]).pull();
    let before = a.ok(["status"]);
    a.run(["remote", "rename", "b", "c"]).assert_status(2);
    a.run(["remote", "rename", "d", "e"]).assert_status(2);
    assert_eq!(a.ok(["status"]), before);
}

#[test]
fn nothing_is_left_of_a_removed_remote_but_what_can_be_merged() {
    let world = World::new();
    let (a, b) = (world.notes("a"), world.notes("b"));
    b.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    a.follows(&[&b]).pull();
    a.run(["verify", "b"]);
    a.ok(["bundle", "create", "b.bundle", "--since", "b", "--mark"]);
    let site = b.json(&["status"])["site_id"].as_str().unwrap().to_owned();
    let parts = a.state("parts").join(&site);
    std::fs::create_dir_all(&parts).unwrap();
    std::fs::write(parts.join("of a pack"), "chunks").unwrap();
    // Another name for the same repository keeps what is the repository's.
    a.ok(["remote", "add", "same", "b.db"]);
    a.ok(["fetch", "same"]);
    assert_snapshot!(a.run(["remote", "remove", "b"]), @"status 0");
    assert!(parts.exists());
    assert_eq!(rows(&a.state("state.db"), "SELECT remote FROM contact"), ["same"]);
    a.ok(["remote", "remove", "same"]);
    assert!(!parts.exists());
    for (file, table) in [("state.db", "contact"), ("state.db", "bundle_mark"), ("digest.db", "remote")] {
        assert_eq!(rows(&a.state(file), &format!("SELECT 'left' FROM {table}")), [""; 0], "{table}");
    }
    assert_eq!(a.notes(), ["1|one|1"]);
}

#[test]
fn an_unknown_key_in_the_settings_is_named() {
    let world = World::new();
    let repo = world.notes("a");
    let config = repo.state("config.toml");
    for (text, message) in [
        ("[remotes.b]\naddress = \"b.db\"\ncolour = \"red\"\n", "line 3: unknown field `colour`"),
        ("\n\n[remote.b]\naddress = \"b.db\"\n", "line 3: unknown field `remote`"),
        ("[network]\nkey = \"k\"\nkeys = 1\n", "line 3: unknown field `keys`"),
        ("[remotes.b]\naddress = 3\n", "line 2: invalid type"),
        ("[remotes\n", "line 1: "),
        ("[remotes.\"a b\"]\naddress = \"b.db\"\n", "`a b` is no name"),
        ("[remotes.b]\naddress = \"VLD0:x\"\n", "remote `b`: `VLD0:x` is no address"),
    ] {
        std::fs::write(&config, text).unwrap();
        for arguments in [&["remote", "list"][..], &["fetch"], &["pull"], &["status"], &["remote", "add", "c", "c.db"]]
        {
            let run = repo.run(arguments).assert_status(2);
            let place = format!("error: {}: {message}", config.display());
            assert!(run.stderr.contains(&place), "{text}{run}");
        }
        assert_eq!(std::fs::read_to_string(&config).unwrap(), text);
    }
    std::fs::write(&config, "[remotes.b]\naddress = \"b.db\"\ncolour = \"red\"\n").unwrap();
    assert_snapshot!(repo.run(["pull"]), @"
    status 2
    --- stderr
    error: DIR/.ddcp/a.db/config.toml: line 3: unknown field `colour`, expected `address` or `sync`
    hint: mend DIR/.ddcp/a.db/config.toml in an editor; docs/config.md lists its keys
    ");
}

#[test]
fn remotes_added_at_the_same_time_are_all_kept() {
    let world = World::new();
    let repo = world.notes("a");
    let adding: Vec<_> = (0..12)
        .map(|number| repo.start(["remote".to_owned(), "add".to_owned(), format!("r{number}"), "b.db".to_owned()]))
        .collect();
    for process in adding {
        repo.finish(process).assert_status(0);
    }
    assert_eq!(repo.ok(["remote", "list"]).lines().count(), 12);
}
