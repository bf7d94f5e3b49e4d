//! The metrics of a running `ddcp serve`.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Instant,
};

use crate::{
    serve::{Daemon, serve},
    support::{PATIENCE, Repo, World},
};

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The status line and the body that a request is answered with.
fn ask(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn scrape(address: SocketAddr) -> String {
    let (status, body) = ask(address, "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9184\r\n\r\n");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(body.ends_with("# EOF\n"), "{body}");
    body
}

fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

fn daemon(world: &World, repo: &Repo, address: SocketAddr) -> Daemon {
    let mut command = serve(world, repo);
    command.arg("--metrics").arg(address.to_string());
    Daemon::spawn(world, command)
}

#[test]
fn what_was_done_and_where_things_stand_is_measured() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    b.sql("INSERT INTO note VALUES ('1', 'one', 1), ('2', 'two', 2)");
    a.follows(&[&b]).ok(["remote", "add", "gone", "gone.db"]);
    let address = free_port();
    let _serve = daemon(&world, &a, address);
    let before = scrape(address);
    assert_eq!(value(&before, "ddcp_changes_fetched_total{remote=\"b\"}"), Some(0.0), "{before}");
    assert_eq!(value(&before, "ddcp_remote_version{remote=\"b\"}"), None, "nothing is known of it yet");

    a.run(["fetch"]).assert_status(3);
    let fetched = scrape(address);
    assert_eq!(value(&fetched, "ddcp_changes_fetched_total{remote=\"b\"}"), Some(4.0), "{fetched}");
    assert_eq!(value(&fetched, "ddcp_fetches_total{remote=\"b\"}"), Some(1.0));
    assert_eq!(value(&fetched, "ddcp_inbox_changes{remote=\"b\"}"), Some(4.0));
    assert!(value(&fetched, "ddcp_inbox_bytes{remote=\"b\"}").unwrap() > 0.0);
    assert_eq!(value(&fetched, "ddcp_failures_total{remote=\"gone\",kind=\"unreachable\"}"), Some(1.0));
    assert_eq!(value(&fetched, "ddcp_remote_failing{remote=\"gone\"}"), Some(1.0));
    assert_eq!(value(&fetched, "ddcp_remote_failing{remote=\"b\"}"), Some(0.0));

    a.ok(["merge"]);
    let merged = scrape(address);
    assert_eq!(value(&merged, "ddcp_records_merged_total{remote=\"b\"}"), Some(4.0), "{merged}");
    assert_eq!(value(&merged, "ddcp_inbox_changes{remote=\"b\"}"), Some(0.0));
    let version = value(&merged, "ddcp_remote_version{remote=\"b\"}").unwrap();
    assert_eq!(value(&merged, "ddcp_remote_merged_version{remote=\"b\"}"), Some(version));
    assert!(value(&merged, "ddcp_remote_last_contact_timestamp_seconds{remote=\"b\"}").unwrap() > 1.7e9);
    assert_eq!(value(&merged, "ddcp_database_version"), Some(1.0));
    assert_eq!(value(&merged, "ddcp_node_connected"), Some(0.0), "there is no network");
    assert_eq!(value(&merged, "ddcp_callers_dropped_total"), Some(0.0));
    assert!(value(&merged, "process_resident_memory_bytes").unwrap() > 1e6);

    a.ok(["remote", "remove", "gone"]);
    assert!(!scrape(address).contains("=\"gone\""), "what is no remote has no series");
}

#[test]
fn other_requests_are_refused_and_slow_ones_hold_up_nobody() {
    let world = World::new();
    let repo = world.notes("a");
    let address = free_port();
    fs::write(repo.state("config.toml"), format!("metrics = \"{address}\"\n")).unwrap();
    let _serve = Daemon::start(&world, &repo);
    let status = |request: &str| ask(address, request).0;
    assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), "HTTP/1.1 404 Not Found");
    assert_eq!(status("POST /metrics HTTP/1.1\r\n\r\n"), "HTTP/1.1 405 Method Not Allowed");
    assert_eq!(status("\0\r\n\r\n"), "HTTP/1.1 400 Bad Request");
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n", "x".repeat(9000));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(long.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "it is not read to its end");

    // A web page whose name was made to lead here.
    assert_eq!(status("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n"), "HTTP/1.1 403 Forbidden");
    assert_eq!(status("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1.evil.example:80\r\n\r\n"), "HTTP/1.1 403 Forbidden");
    for host in ["localhost", "LOCALHOST:9184", "127.0.0.1", "[::1]:9184", "::1"] {
        assert_eq!(status(&format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n")), "HTTP/1.1 200 OK", "{host}");
    }

    let idle: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
    let started = Instant::now();
    scrape(address);
    assert!(started.elapsed() < PATIENCE / 10);
    drop(idle);
}

#[test]
fn a_port_that_is_taken_is_told() {
    let world = World::new();
    let repo = world.notes("a");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut command = serve(&world, &repo);
    command.arg("--metrics").arg(address.to_string());
    let run = repo.run_command(command).assert_status(1);
    assert!(run.stderr.contains(&format!("error: metrics cannot be given at {address}")), "{run}");
    assert!(run.stderr.contains("hint: name another port with `--metrics`"), "{run}");
}
