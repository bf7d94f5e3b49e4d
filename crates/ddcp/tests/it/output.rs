//! Help, JSON, completions, and what `--quiet` and `-v` change.

use insta::assert_snapshot;
use serde_json::Value;

use crate::support::World;

#[test]
fn help() {
    let world = World::new();
    assert_snapshot!(world.run(["--help"]), @r#"
    status 0
    --- stdout
    Distribute a SQLite database and synchronise it the way Git synchronises a repository

    Usage: ddcp [OPTIONS] <COMMAND>

    Commands:
      init         Make a database a repository, creating what is missing
      clone        Make a new database with the shared tables of a repository and what is in them
      serve        Answer peers until SIGINT or SIGTERM
      stop         End a running `ddcp serve`. Nothing is lost; what it was doing is done again by the
                   next one
      address      Print the repository's address, which peers use as a remote. Needs no network
      remote       Add, list and change the repositories that this one fetches from
      config       Show and change the settings that are no remotes
      fetch        Download new changes of one or all remotes. Tables do not change until `merge`
      merge        Merge what was fetched, of one or all remotes
      pull         Fetch, then merge, one or all remotes
      schema       Compare the tables here with a remote's, and add what is missing
      bundle       Carry changes in a file, where no network leads
      verify       Compare with remotes, and mend what is missing here
      status       Show where the repository stands. Asks no remote
      waiting      Look at what was fetched and waits, try it again, or let it go
      log          Show what was fetched and merged, and what failed: when, from whom, how much. The
                   newest first
      doctor       Look for what is wrong, and say what mends it
      shell        Run SQL on the database, with replication: interactively, from a pipe, or one
                   argument
      extension    Print the path of the SQLite extension that belongs to this program, for applications
                   to load. Needs no repository
      completions  Print a completion script

    Options:
          --db <FILE>
              The database [default: ddcp.db]
              
              [env: DDCP_DB=]

          --state-dir <DIR>
              Where the repository's state is kept [default: .ddcp/NAME beside the database]
              
              [env: DDCP_STATE_DIR=]

          --format <FORMAT>
              How data is printed

              Possible values:
              - table: For people; plain lines where stdout is no terminal
              - json:  For programs
              
              [default: table]

      -v, --verbose...
              Say more on stderr; twice for details

      -q, --quiet
              Say nothing but data and errors

          --network <FILE>
              A file that describes a private Veilid network, in place of `[network]` in config.toml
              
              [env: DDCP_NETWORK=]

          --extension <LIBRARY>
              A CR-SQLite library to load in place of the engine in this program
              
              [env: DDCP_EXTENSION=]

      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    Examples:
      ddcp --db notes.db init
      ddcp --db notes.db shell "CREATE TABLE note (id TEXT NOT NULL PRIMARY KEY, body TEXT); SELECT
      crsql_as_crr('note')"
      ddcp --db notes.db serve
      ddcp --db notes.db remote add alice VLD0:…
      ddcp --db notes.db pull
      ddcp clone VLD0:… notes.db

    Exit status: 0 done, 1 failed, 2 usage or settings, 3 some remotes failed, 4 remote unreachable,
    5 doctor or verify found something, or not all could be sent, 10 no repository here,
    11 locked by another process, 70 internal error.
    "#);
}

#[test]
fn help_of_a_command() {
    let world = World::new();
    assert_snapshot!(world.run(["merge", "--help"]), @"
    status 0
    --- stdout
    Merge what was fetched, of one or all remotes.

    Changes that do not fit the tables here (no such table or column, another key, a constraint) wait
    and are tried again by every later merge.

    Usage: ddcp merge [OPTIONS] [REMOTE]

    Arguments:
      [REMOTE]
              The remote; all if none is named

    Options:
          --db <FILE>
              The database [default: ddcp.db]
              
              [env: DDCP_DB=]

          --state-dir <DIR>
              Where the repository's state is kept [default: .ddcp/NAME beside the database]
              
              [env: DDCP_STATE_DIR=]

          --format <FORMAT>
              How data is printed

              Possible values:
              - table: For people; plain lines where stdout is no terminal
              - json:  For programs
              
              [default: table]

      -v, --verbose...
              Say more on stderr; twice for details

      -q, --quiet
              Say nothing but data and errors

          --network <FILE>
              A file that describes a private Veilid network, in place of `[network]` in config.toml
              
              [env: DDCP_NETWORK=]

          --extension <LIBRARY>
              A CR-SQLite library to load in place of the engine in this program
              
              [env: DDCP_EXTENSION=]

      -h, --help
              Print help (see a summary with '-h')

    Examples:
      ddcp merge
      ddcp merge alice
    ");
    assert_snapshot!(world.run(["remote", "add", "-h"]), @"
    status 0
    --- stdout
    Add a remote

    Usage: ddcp remote add [OPTIONS] <NAME> <ADDRESS>

    Arguments:
      <NAME>     What to call it: letters, digits, `-`, `_` and `.`
      <ADDRESS>  What `ddcp address` prints at the other side, or the path of another repository's
                 database. `-` reads it from standard input, `@FILE` from a file: other users see the
                 arguments of programs

    Options:
          --db <FILE>            The database [default: ddcp.db] [env: DDCP_DB=]
          --sync <MODE>          What `ddcp serve` does by itself: `auto` fetches and merges, `fetch`
                                 fetches, `manual` does nothing [default: manual]
          --state-dir <DIR>      Where the repository's state is kept [default: .ddcp/NAME beside the
                                 database] [env: DDCP_STATE_DIR=]
          --format <FORMAT>      How data is printed [default: table] [possible values: table, json]
      -v, --verbose...           Say more on stderr; twice for details
      -q, --quiet                Say nothing but data and errors
          --network <FILE>       A file that describes a private Veilid network, in place of `[network]`
                                 in config.toml [env: DDCP_NETWORK=]
          --extension <LIBRARY>  A CR-SQLite library to load in place of the engine in this program
                                 [env: DDCP_EXTENSION=]
      -h, --help                 Print help (see more with '--help')
    ");
}

#[test]
fn every_command_has_help_with_an_example() {
    let world = World::new();
    for command in [
        "init",
        "serve",
        "address",
        "remote",
        "fetch",
        "merge",
        "pull",
        "status",
        "waiting",
        "log",
        "shell",
        "extension",
        "completions",
    ] {
        let run = world.run([command, "--help"]).assert_status(0);
        assert!(run.stdout.contains("Example") && run.stdout.contains("\n  ddcp "), "{command}: {run}");
    }
}

#[test]
fn version() {
    let world = World::new();
    let run = world.run(["--version"]).assert_status(0);
    assert_eq!(run.stdout, format!("ddcp {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_for_every_shell() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = world.run(["completions", shell]).assert_status(0);
        for word in ["set-address", "state-dir", "serve"] {
            assert!(run.stdout.contains(word), "{shell}: {word}");
        }
    }
    world.run(["completions", "cobol"]).assert_status(2);
}

#[test]
fn json_has_the_documented_fields() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.follows(&[&a]);
    b.ok(["remote", "add", "dead", "dead.db"]);

    assert_snapshot!(b.run(["fetch", "--format", "json"]), @r#"
    status 3
    --- stdout
    [
      {
        "remote": "a",
        "done": {
          "changes": 2,
          "bytes": SIZE,
          "remote_version": 1,
          "rewound": false
        }
      },
      {
        "remote": "dead",
        "failed": {
          "kind": "unreachable",
          "message": "there is no database at DIR/dead.db",
          "hint": "check the path with `ddcp remote list`; `ddcp remote set-address` changes it"
        }
      }
    ]

    --- stderr
    error: dead: there is no database at DIR/dead.db
    hint: check the path with `ddcp remote list`; `ddcp remote set-address` changes it
    "#);
    assert_snapshot!(b.run(["status", "--format", "json"]), @r#"
    status 0
    --- stdout
    {
      "database": "DIR/b.db",
      "site_id": "SITE",
      "version": 0,
      "tables": [
        "note"
      ],
      "address": null,
      "access": "address",
      "serving": false,
      "remotes": [
        {
          "name": "a",
          "address": "DIR/a.db",
          "sync": "manual",
          "version": 1,
          "unmerged": 2,
          "waiting": 0,
          "reasons": [],
          "last_contact": TIME,
          "last_error": null,
          "fetched_version": 1
        },
        {
          "name": "dead",
          "address": "DIR/dead.db",
          "sync": "manual",
          "version": null,
          "unmerged": 0,
          "waiting": 0,
          "reasons": [],
          "last_contact": null,
          "last_error": "there is no database at DIR/dead.db",
          "last_error_at": TIME
        }
      ]
    }
    "#);
    assert_snapshot!(b.run(["merge", "--format", "json"]), @r#"
    status 0
    --- stdout
    [
      {
        "remote": "a",
        "done": {
          "changes": 2,
          "applied": {
            "note": 2
          },
          "known": 0,
          "lost": {},
          "deleted": {},
          "waiting": 0,
          "reasons": []
        }
      }
    ]
    "#);
    assert_snapshot!(b.run(["remote", "list", "--format", "json"]), @r#"
    status 0
    --- stdout
    [
      {
        "name": "a",
        "address": "DIR/a.db",
        "sync": "manual"
      },
      {
        "name": "dead",
        "address": "DIR/dead.db",
        "sync": "manual"
      }
    ]
    "#);
    assert_snapshot!(b.run(["init", "--format", "json"]), @r#"
    status 0
    --- stdout
    {
      "database": "DIR/b.db",
      "state": "DIR/.ddcp/b.db"
    }
    "#);
    let rows: Value = b.json(&["shell", "SELECT * FROM note"]);
    assert_eq!(rows, serde_json::json!([{"id": "1", "body": "one", "stars": 1}]));
}

#[test]
fn quiet_leaves_data_and_errors() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    assert_snapshot!(b.run(["fetch"]), @"
    status 0
    --- stderr
    there are no remotes; `ddcp remote add NAME ADDRESS` adds one
    ");
    assert_snapshot!(b.run(["fetch", "--quiet"]), @"status 0");
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.follows(&[&a]);
    b.ok(["remote", "add", "dead", "dead.db"]);
    assert_snapshot!(b.run(["pull", "-q"]), @"
    status 3
    --- stdout
    a: fetched 2 changes in SIZE
    a: merged 2 changes (note 2)

    --- stderr
    error: dead: there is no database at DIR/dead.db
    ");
    b.run(["pull", "-q", "-v"]).assert_status(2);
}

#[test]
fn verbose_says_more_on_stderr_only() {
    let world = World::new();
    let [a, b, c] = world.all_notes(["a", "b", "c"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let (plain, verbose) = (b.follows(&[&a]).run(["pull"]), c.follows(&[&a]).run(["pull", "-v"]));
    assert_eq!(plain.stderr, "");
    assert_eq!(verbose.stdout, plain.stdout);
    assert!(verbose.stderr.contains("fetched remote=a"), "{verbose}");
    assert!(!verbose.stderr.contains('\u{1b}'), "colours where there is no terminal");
}

#[test]
fn a_reader_that_has_enough_ends_the_program_quietly() {
    let world = World::new();
    let a = world.notes("a");
    a.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
         INSERT INTO note SELECT i, i, i FROM n",
    );
    let mut child = a.start(["shell", "SELECT * FROM note"]);
    drop(child.stdout.take());
    let run = a.finish(child);
    assert_eq!((run.status, run.stderr.as_str()), (Some(0), ""));
}
