//! The programs in `examples/` that need nothing but this program and an interpreter.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    control::tcp_address,
    serve::{Daemon, serve},
    support::{Repo, Run, World},
};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name).canonicalize().unwrap()
}

/// Whether `program` is here. CI installs all of them, so that nothing is skipped there.
fn is_here(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "CI has no {program}");
        // Past the test harness, which keeps to itself what a test that passes prints.
        let _ = writeln!(io::stderr(), "SKIPPED, {program} is not here");
    }
    found
}

/// Two databases, and a daemon on the second, which has the first as a remote.
fn pair(world: &World) -> (Repo, Repo, Daemon) {
    let [a, b] = world.all_notes(["a", "b"]);
    b.follows(&[&a]);
    let mut command = serve(world, &b);
    command.args(["--control", "127.0.0.1:0"]);
    let daemon = Daemon::spawn(world, command);
    (a, b, daemon)
}

fn run(repo: &Repo, mut command: Command, arguments: &[&str]) -> Run {
    command.args(arguments).current_dir(repo.root());
    repo.run_command(command).assert_status(0)
}

#[test]
fn the_python_client_pulls_and_is_told() {
    let world = World::new();
    if !is_here("python3") {
        return;
    }
    let (a, b, _daemon) = pair(&world);
    let client = |arguments: &[&str]| {
        let mut command = Command::new("python3");
        command.arg(example("control/client.py"));
        let run = run(&b, command, arguments);
        let lines: Vec<&str> = run.stdout.lines().collect();
        assert_eq!(lines[1..3], ["tables: note", "fetched from a: 2 changes"], "{run}");
        assert!(lines[3].starts_with("event: fetched {") && lines[3].contains("\"changes\": 2, "), "{run}");
    };
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    client(&[".ddcp/b.db/control.sock"]);
    assert_eq!(b.notes(), ["1|one|1"]);
    a.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    client(&[&tcp_address(&b), ".ddcp/b.db/control.token"]);
    assert_eq!(b.notes(), ["1|one|1", "2|two|2"]);
}

#[test]
fn the_shell_client_pulls_and_is_told() {
    let world = World::new();
    if !is_here("socat") {
        return;
    }
    let (a, b, _daemon) = pair(&world);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let run = run(&b, Command::new(example("control/client")), &[".ddcp/b.db/control.sock"]);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 5, "{run}");
    for (line, start) in lines.iter().zip([
        "hello: {\"id\":1,\"jsonrpc\":\"2.0\",\"result\":{\"control\":1,",
        "status: {\"id\":2,",
        "subscribe: {\"id\":3,\"jsonrpc\":\"2.0\",\"result\":null}",
        "pull: {\"id\":4,",
        "event: {\"jsonrpc\":\"2.0\",\"method\":\"event\",",
    ]) {
        assert!(line.starts_with(start), "{run}");
    }
    assert_eq!(b.notes(), ["1|one|1"]);
}
