//! Bundles: changes carried in files.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use insta::assert_snapshot;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    serve::Daemon,
    support::{PATIENCE, Repo, World, assert_converged},
};

fn add(repo: &Repo, id: &str) {
    repo.sql(&format!("INSERT INTO note VALUES ('{id}', '{}', 1)", repo.name()));
}

/// What a shell says to `script`, with `$DDCP` the program.
fn shell(world: &World, script: &str) -> std::process::Output {
    Command::new("sh")
        .args(["-c", script])
        .env_clear()
        .env("DDCP", crate::support::DDCP)
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", world.path(""))
        .current_dir(world.path(""))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn a_bundle_is_its_owner_s_alone() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let repo = world.notes("a");
    add(&repo, "1");
    let mode = || fs::metadata(world.path("a.bundle")).unwrap().permissions().mode() & 0o777;
    repo.ok(["bundle", "create", "a.bundle"]);
    assert_eq!(mode(), 0o600);
    // Whoever has opened it to others is not contradicted.
    fs::set_permissions(world.path("a.bundle"), fs::Permissions::from_mode(0o644)).unwrap();
    repo.ok(["bundle", "create", "a.bundle", "--force"]);
    assert_eq!(mode(), 0o644);
}

#[test]
fn a_bundle_is_made_checked_fetched_and_merged() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)").sql("DELETE FROM note WHERE id = '2'");
    assert_snapshot!(a.run(["bundle", "create", "a.bundle"]), @"
    status 0
    --- stdout
    bundle   a.bundle
    site id  SITE
    created  TIME
    versions 1 to 2
    content  3 changes (1 pack) in SIZE
      note: 3 changes
    ");
    assert_snapshot!(world.run(["bundle", "verify", "a.bundle"]), @"
    status 0
    --- stdout
    bundle   a.bundle
    site id  SITE
    created  TIME
    versions 1 to 2
    content  3 changes (1 pack) in SIZE
      note: 3 changes
    ");
    assert_snapshot!(b.run(["bundle", "fetch", "a.bundle"]), @"
    status 0
    --- stdout
    site SITE: fetched 3 changes in SIZE
    ");
    assert_eq!(b.notes(), [""; 0]);
    assert_snapshot!(b.run(["merge"]), @"
    status 0
    --- stdout
    site SITE: merged 3 changes (note 3)
    ");
    assert_converged(&[&a, &b]);
    assert_snapshot!(b.run(["bundle", "fetch", "a.bundle"]), @"
    status 0
    --- stdout
    site SITE: nothing new
    ");
    // A later fetch begins where it would have: nobody proves whose a bundle is that is not signed.
    add(&a, "3");
    b.follows(&[&a]);
    assert_eq!(b.json(&["fetch"])[0]["done"]["changes"], 5);
    a.ok(["bundle", "create", "again.bundle"]);
    let report = b.json(&["bundle", "fetch", "again.bundle"]);
    assert_eq!((&report["remote"], &report["changes"]), (&"a".into(), &5.into()), "{report}");
    b.ok(["merge", "a"]);
    assert_converged(&[&a, &b]);
}

#[test]
fn bundles_travel_through_pipes() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    add(&a, "1");
    let piped = shell(&world, "$DDCP --db a.db bundle create - | $DDCP --db b.db bundle fetch -");
    let stdout = String::from_utf8(piped.stdout).unwrap();
    assert!(piped.status.success() && stdout.contains("fetched 2 changes in"), "{stdout}");
    let told = String::from_utf8(piped.stderr).unwrap();
    assert!(told.contains("bundle   standard output") && told.contains("note: 2 changes"), "{told}");
    b.ok(["merge"]);
    assert_converged(&[&a, &b]);
    let verified = shell(&world, "$DDCP --db a.db --quiet bundle create - | $DDCP bundle verify - --format json");
    let report: serde_json::Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(report["file"], "standard input");
    assert_eq!(report["tables"]["note"], 2);
    assert!(verified.stderr.is_empty());
    let left: Vec<_> = fs::read_dir(b.state("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("incoming")), "{left:?}");
}

#[test]
fn what_a_killed_process_left_is_removed() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    add(&a, "1");
    a.ok(["bundle", "create", "a.bundle"]);
    fs::write(b.state("incoming-1"), b"half a bundle").unwrap();
    let run = b.run_with_input(["bundle", "fetch", "-"], &fs::read(world.path("a.bundle")).unwrap());
    assert_eq!(run.assert_status(0).stderr, "");
    assert!(!b.state("incoming-1").exists());
}

#[test]
fn a_damaged_bundle_is_refused_as_a_whole() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    // More than one pack, so that there would be something to take before the damage is met.
    a.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4500)
           INSERT INTO note SELECT i, randomblob(500), i FROM n",
    )
    .sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4500)
           INSERT INTO note SELECT 'x' || i, randomblob(500), i FROM n",
    );
    assert!(a.json(&["bundle", "create", "a.bundle"])["packs"].as_u64().unwrap() > 1);
    let whole = fs::read(world.path("a.bundle")).unwrap();
    let damaged = world.path("damaged.bundle");
    let fetch = |bytes: &[u8]| {
        fs::write(&damaged, bytes).unwrap();
        b.run(["bundle", "fetch", "damaged.bundle"]).assert_status(1)
    };
    assert_snapshot!(fetch(&whole[..whole.len() - 1]), @"
    status 1
    --- stderr
    error: damaged.bundle: the bundle ends too early: it was not written or copied whole
    hint: copy it once more; if that does not help, have it made anew with `ddcp bundle create`
    ");
    for at in [10, 60, whole.len() / 2, whole.len() - 100, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let run = fetch(&bytes);
        assert!(run.stderr.starts_with("error: damaged.bundle: the bundle "), "byte {at}: {run}");
        assert_eq!(world.run(["bundle", "verify", "damaged.bundle"]).assert_status(1).stderr, run.stderr);
    }
    let mut later = whole.clone();
    later[8] = 9;
    assert!(fetch(&later).stderr.contains("format version 9, this program reads up to 1\nhint: install a newer ddcp"));
    fs::write(&damaged, "hello").unwrap();
    assert_snapshot!(b.run_with_input(["bundle", "fetch", "-"], b"hello"), @"
    status 1
    --- stderr
    error: standard input: this is no bundle of changes
    hint: `ddcp bundle create FILE` makes one
    ");
    assert_snapshot!(b.run(["bundle", "fetch", "absent.bundle"]), @"
    status 1
    --- stderr
    error: DIR/absent.bundle: No such file or directory (os error 2)
    ");
    b.assert_sound();
    assert_snapshot!(b.run(["merge"]), @"
    status 0
    --- stderr
    nothing has been fetched
    ");
}

#[test]
fn a_gap_is_refused_with_what_fills_it() {
    let world = World::new();
    let [a, b, c] = world.all_notes(["a", "b", "c"]);
    (1..=3).for_each(|id| add(&a, &id.to_string()));
    a.ok(["bundle", "create", "first.bundle"]);
    (4..=8).for_each(|id| add(&a, &id.to_string()));
    assert_eq!(a.json(&["bundle", "create", "late.bundle", "--since", "6"])["from_version"], 6);
    assert_snapshot!(b.run(["bundle", "fetch", "late.bundle"]), @"
    status 1
    --- stderr
    error: late.bundle begins with version 6 of site SITE, of which this repository has nothing yet: what lies between would be missing
    hint: have a whole one made there: `ddcp bundle create FILE`, without `--since`
    ");
    b.ok(["bundle", "fetch", "first.bundle"]);
    assert_snapshot!(b.run(["bundle", "fetch", "late.bundle"]), @"
    status 1
    --- stderr
    error: late.bundle begins with version 6 of site SITE, of which this repository has only what came up to version 3: what lies between would be missing
    hint: have one made there that begins earlier: `ddcp bundle create FILE --since 3`
    ");
    b.ok(["merge"]);
    a.ok(["bundle", "create", "fitting.bundle", "--since", "3"]);
    // One that overlaps, not merged before the next comes.
    b.ok(["bundle", "fetch", "fitting.bundle"]);
    b.ok(["bundle", "fetch", "late.bundle"]);
    b.ok(["merge"]);
    assert_converged(&[&a, &b]);
    // An old one comes late: harmless, and it says so.
    assert_snapshot!(b.run(["bundle", "fetch", "first.bundle"]), @"
    status 0
    --- stdout
    site SITE: fetched 6 changes in SIZE
    site SITE: the bundle is not all of it, or an old one; the next fetch begins where it would have
    ");
    assert_snapshot!(b.run(["merge"]), @"
    status 0
    --- stdout
    site SITE: merged 6 changes, all known already
    ");
    b.follows(&[&a]);
    assert_eq!(b.json(&["fetch"])[0]["done"]["changes"], 16, "what nobody has signed does not count as read from it");
    assert_snapshot!(a.run(["bundle", "create", "none.bundle", "--since", "9"]), @"
    status 2
    --- stderr
    error: this database is at version 8: nothing has changed since 9
    hint: `ddcp status` tells the version
    ");
    assert!(!world.path("none.bundle").exists());
    c.ok(["bundle", "fetch", "first.bundle"]);
}

#[test]
fn ones_own_bundle_is_refused() {
    let world = World::new();
    let a = world.notes("a");
    a.ok(["bundle", "create", "a.bundle"]);
    assert_snapshot!(a.run(["bundle", "fetch", "a.bundle"]), @"
    status 1
    --- stderr
    error: a.bundle was made from this database itself
    hint: take it to another repository, and fetch it there
    ");
}

#[test]
fn a_file_is_not_overwritten_unasked() {
    let world = World::new();
    let a = world.notes("a");
    fs::write(world.path("dear.txt"), "dear").unwrap();
    assert_snapshot!(a.run(["bundle", "create", "dear.txt"]), @"
    status 2
    --- stderr
    error: dear.txt exists already
    hint: `--force` overwrites it
    ");
    assert_eq!(fs::read(world.path("dear.txt")).unwrap(), b"dear");
    a.ok(["bundle", "create", "dear.txt", "--force"]);
    world.run(["bundle", "verify", "dear.txt"]).assert_status(0);
    assert_snapshot!(a.run(["bundle", "create", "/dev/null", "--force"]), @"
    status 1
    --- stderr
    error: /dev/null: it is no regular file
    ");
    assert_snapshot!(a.run(["bundle", "create", "no/such/folder.bundle"]), @"
    status 1
    --- stderr
    error: no/such/folder.bundle: No such file or directory (os error 2)
    ");
}

#[test]
fn some_tables_travel_alone_and_move_no_position() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    for repo in [&a, &b] {
        repo.sql("CREATE TABLE extra (id INTEGER NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('extra')");
    }
    add(&a, "1");
    a.sql("INSERT INTO extra VALUES (1, 'one')");
    let report = a.json(&["bundle", "create", "extra.bundle", "--table", "EXTRA"]);
    assert_eq!(report["tables"], serde_json::json!({"extra": 1}));
    assert_eq!(report["only_tables"], serde_json::json!(["extra"]));
    assert_eq!(b.json(&["bundle", "fetch", "extra.bundle"])["partial"], true);
    assert_eq!(b.json(&["bundle", "fetch", "extra.bundle"])["changes"], 1, "twice is once");
    assert_snapshot!(b.run(["merge"]), @"
    status 0
    --- stdout
    site SITE: merged 1 change (extra 1)
    ");
    assert_eq!((b.rows("SELECT * FROM extra"), b.notes()), (vec!["1|one".to_owned()], vec![]));
    b.follows(&[&a]);
    assert_eq!(b.json(&["pull"])["fetched"][0]["done"]["changes"], 3, "all of it is still to be fetched");
    assert_converged(&[&a, &b]);
    assert_snapshot!(a.run(["bundle", "create", "x.bundle", "--table", "nowhere"]), @"
    status 2
    --- stderr
    error: there is no table nowhere that replicates
    hint: `ddcp status` lists the tables that do
    ");
}

#[test]
fn a_restricted_bundle_that_does_not_fit_waits_once() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(
        "CREATE TABLE extra (id INTEGER NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('extra');
           INSERT INTO extra VALUES (1, 'one')",
    );
    a.ok(["bundle", "create", "extra.bundle", "--table", "extra"]);
    for _ in 0..2 {
        b.ok(["bundle", "fetch", "extra.bundle"]);
        let waits = &b.json(&["merge"])[0]["done"];
        assert_eq!((&waits["waiting"], waits["reasons"].as_array().unwrap().len()), (&1.into(), 1), "{waits}");
    }
    b.sql("CREATE TABLE extra (id INTEGER NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('extra')").ok(["merge"]);
    assert_eq!(b.rows("SELECT * FROM extra"), ["1|one"]);
}

#[test]
fn a_bundle_for_a_remote_leaves_out_what_it_wrote_and_what_it_was_given() {
    let world = World::new();
    let [a, alice, c] = world.all_notes(["a", "alice", "c"]);
    add(&a, "1");
    add(&alice, "2");
    a.follows(&[&alice]).pull();
    let since_alice =
        |file: &str, more: &[&str]| a.json(&[&["bundle", "create", file, "--since", "alice"], more].concat());
    let first = since_alice("first.bundle", &[]);
    assert_eq!((&first["changes"], &first["from_version"]), (&2.into(), &1.into()), "{first}");
    assert_eq!(first["without"], alice.json(&["status"])["site_id"]);
    // Unmarked, so the next begins at the start again.
    assert_eq!(since_alice("second.bundle", &["--mark"])["from_version"], 1);
    let given = a.json(&["status"])["version"].clone();
    add(&a, "3");
    add(&a, "4");
    let third = since_alice("third.bundle", &["--mark"]);
    assert_eq!(third["from_version"], given, "the version itself is repeated: {third}");
    for file in ["second.bundle", "third.bundle"] {
        assert_eq!(alice.json(&["bundle", "fetch", file])["partial"], false);
    }
    alice.ok(["merge"]);
    assert_converged(&[&a, &alice]);
    // For somebody else it is not all there is.
    assert_eq!(c.json(&["bundle", "fetch", "second.bundle"])["partial"], true);
    c.ok(["merge"]);
    assert_eq!(c.notes(), ["1|a|1"]);
    c.follows(&[&a]).pull();
    assert_converged(&[&a, &c]);
    // The mark goes with the remote.
    a.ok(["remote", "rename", "alice", "al"]);
    assert_ne!(a.json(&["bundle", "create", "4.bundle", "--since", "al"])["from_version"], 1);
    a.ok(["remote", "remove", "al"]);
    a.follows(&[&alice]);
    assert_eq!(since_alice("5.bundle", &[])["from_version"], 1);
    assert_snapshot!(a.run(["bundle", "create", "6.bundle", "--since", "bob"]), @"
    status 2
    --- stderr
    error: there is no remote named `bob`
    hint: `ddcp remote list` shows the remotes
    ");
    assert_snapshot!(a.run(["bundle", "create", "6.bundle", "--mark"]), @"
    status 2
    --- stderr
    error: only a bundle of all tables since a remote can be marked
    hint: `ddcp bundle create FILE --since REMOTE --mark`
    ");
}

#[test]
fn what_altering_a_table_adds_to_the_current_version_is_not_missed() {
    let world = World::new();
    let [a, b, c] = world.all_notes(["a", "b", "c"]);
    add(&a, "1");
    a.ok(["bundle", "create", "before.bundle"]);
    let alter = "SELECT crsql_begin_alter('note'); ALTER TABLE note ADD COLUMN colour TEXT DEFAULT 'red';
                 SELECT crsql_commit_alter('note')";
    let version = a.json(&["status"])["version"].clone();
    for repo in [&b, &c] {
        repo.ok(["bundle", "fetch", "before.bundle"]);
        repo.ok(["merge"]);
    }
    a.sql(alter);
    assert_eq!(a.json(&["status"])["version"], version, "altering a table does not raise the version");
    a.ok(["bundle", "create", "after.bundle", "--since", &version.to_string()]);
    for repo in [&b, &c] {
        repo.sql(alter);
    }
    b.ok(["bundle", "fetch", "after.bundle"]);
    b.ok(["merge"]);
    c.follows(&[&a]).pull();
    assert_converged(&[&a, &b, &c]);
}

#[test]
fn a_bundle_is_not_written_to_a_terminal() {
    let world = World::new();
    world.notes("a");
    let run = shell(&world, "script -qec \"$DDCP --db a.db bundle create -\" /dev/null");
    let text = String::from_utf8(run.stdout).unwrap();
    assert!(text.contains("standard output is a terminal, and a bundle is no text"), "{text}");
    assert_eq!(run.status.code(), Some(2));
}

/// Names in the folder that have to do with `big.bundle`.
fn traces(world: &World) -> Vec<String> {
    let names = fs::read_dir(world.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("big.bundle")).collect()
}

#[test]
fn a_create_that_is_ended_early_leaves_no_bundle() {
    let world = World::new();
    let a = world.notes("a");
    a.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)
           INSERT INTO note SELECT i, randomblob(100), i FROM n",
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let child = a.start(["bundle", "create", "big.bundle"]);
        let deadline = Instant::now() + PATIENCE;
        while traces(&world).is_empty() {
            assert!(Instant::now() < deadline, "nothing was begun");
            thread::sleep(Duration::from_millis(2));
        }
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let run = a.finish(child);
        assert_ne!(run.status, Some(0), "it had ended before {signal}");
        assert!(!world.path("big.bundle").exists());
        if signal != Signal::SIGKILL {
            assert_eq!(traces(&world), [""; 0]);
            assert_eq!(run.stderr, "error: stopped; nothing was written\n");
        }
    }
    a.ok(["bundle", "create", "big.bundle"]);
    world.run(["bundle", "verify", "big.bundle"]).assert_status(0);
}

#[test]
fn the_daemon_fetches_bundles_too() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    add(&a, "1");
    a.ok(["bundle", "create", "a.bundle"]);
    let _daemon = Daemon::start(&world, &b);
    // The path is meant from the folder of the command, not of the daemon.
    fs::create_dir(world.path("sub")).unwrap();
    let fetched = shell(&world, "cd sub && $DDCP --db ../b.db bundle fetch ../a.bundle");
    assert!(fetched.status.success(), "{fetched:?}");
    add(&a, "2");
    let piped =
        shell(&world, "$DDCP --db a.db bundle create - | $DDCP --db b.db bundle fetch - && $DDCP --db b.db merge");
    assert!(piped.status.success(), "{piped:?}");
    assert_converged(&[&a, &b]);
    let garbage = b.run_with_input(["bundle", "fetch", "-"], b"no bundle");
    assert!(garbage.stderr.starts_with("error: standard input: this is no bundle"), "{garbage}");
    // Making one needs nothing of the daemon.
    b.ok(["bundle", "create", "b.bundle"]);
}

#[test]
fn bundles_keep_the_limits_of_the_settings() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    for row in 0..8 {
        a.sql(&format!("INSERT INTO note VALUES ('{row}', hex(randomblob(400000)), 1)"));
    }
    let bytes = a.json(&["bundle", "create", "a.bundle"])["bytes"].as_u64().unwrap();
    let limit = |key: &str, value: u64| b.ok(["config", "set", &format!("limits.{key}"), &value.to_string()]);

    limit("pack_bytes", 1000);
    let refused = b.run(["bundle", "fetch", "a.bundle"]).assert_status(1);
    assert!(
        refused.stderr.contains("too many bytes in a pack") && refused.stderr.contains("limits.pack_bytes"),
        "{refused}"
    );
    b.run(["bundle", "verify", "a.bundle"]).assert_status(1);
    world.run(["bundle", "verify", "a.bundle"]).assert_status(0);
    limit("pack_bytes", bytes);

    limit("unpacked_bytes", 1000);
    let refused = b.run(["bundle", "fetch", "a.bundle"]).assert_status(1);
    assert!(refused.stderr.contains("limits.unpacked_bytes"), "{refused}");
    b.run(["bundle", "verify", "a.bundle"]).assert_status(1);
    limit("unpacked_bytes", bytes * 10);

    // What there is room for is taken, merged, and gone on from.
    limit("inbox_bytes", bytes * 2 / 3);
    let full = b.run(["bundle", "fetch", "a.bundle"]).assert_status(1);
    assert_snapshot!(full.stderr.replace(&(bytes * 2 / 3).to_string(), "MOST"), @"
    error: there is no room for more: MOST bytes of changes may lie fetched and not merged
    hint: `ddcp merge` merges what has been fetched, then fetch again: it goes on where it stopped; `limits.inbox_bytes` of `ddcp config` is the limit
    ");
    b.ok(["merge"]);
    let rows = b.rows("SELECT count(*) FROM note")[0].parse::<u32>().unwrap();
    assert!((1..8).contains(&rows), "{rows}");
    b.ok(["bundle", "fetch", "a.bundle"]);
    b.ok(["merge"]);
    assert_converged(&[&a, &b]);

    // One that says nothing of how far it was read is taken whole or not at all.
    let c = world.notes("c");
    c.ok(["config", "set", "limits.inbox_bytes", &(bytes / 2).to_string()]);
    a.ok(["bundle", "create", "part.bundle", "--table", "note"]);
    c.run(["bundle", "fetch", "part.bundle"]).assert_status(1);
    c.ok(["config", "set", "limits.inbox_bytes", &(bytes * 2).to_string()]);
    c.ok(["bundle", "fetch", "part.bundle"]);
    c.ok(["merge"]);
    assert_converged(&[&a, &c]);
}
