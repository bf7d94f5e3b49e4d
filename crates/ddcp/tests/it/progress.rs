//! How far a download is: on a terminal, for programs, in the log, and over the control socket.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    serve::Daemon,
    support::{DDCP, PATIENCE, Repo, World},
};

/// So many that fetching them takes seconds.
fn many(repo: &Repo) {
    repo.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000)
         INSERT INTO note SELECT i, randomblob(60), i FROM n",
    );
}

/// The progress of remote `a`, in the lines that are no error.
fn told(lines: &str) -> Vec<Value> {
    lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["progress"]["a"].clone()).collect()
}

fn assert_grows(values: &[Value]) {
    let bytes: Vec<u64> = values.iter().map(|value| value["bytes"].as_u64().unwrap()).collect();
    assert!(bytes.is_sorted(), "{bytes:?}");
    for value in values {
        assert!(value["bytes"].as_u64() <= value["offered_bytes"].as_u64(), "{value}");
        assert!(value["changes"].as_u64() <= value["offered_changes"].as_u64(), "{value}");
    }
}

#[test]
fn programs_and_people_are_told_how_far_it_is() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    many(&a);
    b.follows(&[&a]);
    let run = b.run(["fetch", "--format", "json"]).assert_status(0);
    let values = told(&run.stderr);
    assert!(!values.is_empty(), "a fetch of seconds told nothing");
    assert_grows(&values);
    let last = values.last().unwrap();
    assert_eq!(
        (&last["changes"], &last["version"], &last["target"]),
        (&600_000.into(), &1.into(), &1.into()),
        "{last}"
    );
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report[0]["done"]["bytes"], last["bytes"]);

    a.ok(["bundle", "create", "a.bundle"]);
    // Each as a new repository, so that there is everything to fetch.
    let fetch = |name: &str, options: &str| {
        let c = world.notes(name);
        c.follows(&[&a]);
        let script = format!("script -qec \"$DDCP --db {name}.db {options}\" /dev/null 2>&1");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).env_clear().envs([("DDCP", DDCP), ("PATH", "/usr/bin:/bin"), ("TERM", "xterm")]);
        let output = command.current_dir(world.path("")).stdin(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let bar = fetch("c", "fetch");
    assert!(bar.contains("iB/s, ") && bar.contains(" of ") && bar.contains("a ["), "{bar:?}");
    assert!(bar.contains("a: fetched 600000 changes in "), "{bar:?}");
    let bar = fetch("d", "bundle fetch a.bundle");
    assert!(bar.contains("iB/s, "), "{bar:?}");
    assert!(!fetch("e", "--quiet fetch").contains("iB/s"));
    assert_eq!(world.notes("f").follows(&[&a]).run(["fetch"]).stderr, "", "no terminal, no bar");
}

#[test]
fn the_daemon_tells_who_asks_for_it_and_waits_for_nobody() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    many(&a);
    b.follows(&[&a]);
    let _daemon = Daemon::start(&world, &b);
    let connect = |params: &Value| {
        let mut stream = UnixStream::connect(b.state("control.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "{}", json!({"jsonrpc": "2.0", "id": 7, "method": "fetch", "params": params})).unwrap();
        stream
    };
    // One who does not read holds up neither the fetch nor the others.
    let _deaf = connect(&json!({"remote": "a", "progress": true}));
    let watched = connect(&json!({"remote": "a", "progress": true}));
    let mut messages: Vec<Value> = Vec::new();
    for line in BufReader::new(watched).lines() {
        messages.push(serde_json::from_str(&line.unwrap()).unwrap());
        if messages.last().unwrap().get("result").is_some() {
            break;
        }
    }
    let answer = messages.pop().unwrap();
    assert_eq!((&answer["id"], &answer["result"][0]["remote"]), (&7.into(), &"a".into()), "{answer}");
    assert!(!messages.is_empty(), "nothing was told");
    for message in &messages {
        assert_eq!((&message["method"], &message["params"]["id"]), (&"progress".into(), &7.into()), "{message}");
        assert_eq!(message.get("id"), None, "a notification has no id");
        assert!(message["params"]["remotes"]["a"]["bytes"].is_u64(), "{message}");
    }
    // Who did not ask is told nothing before the answer.
    let mut line = String::new();
    BufReader::new(connect(&json!({"remote": "a"}))).read_line(&mut line).unwrap();
    assert!(serde_json::from_str::<Value>(&line).unwrap().get("result").is_some(), "{line}");

    // The command line shows what the daemon tells it.
    let c = world.notes("c");
    c.follows(&[&a]);
    let _other = Daemon::start(&world, &c);
    let shown = told(&c.run(["fetch", "--format", "json"]).assert_status(0).stderr);
    assert!(!shown.is_empty(), "nothing was shown");
    assert_grows(&shown);
}
