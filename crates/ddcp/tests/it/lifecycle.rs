//! What `ddcp serve` does when it is told to read its settings or to end, and when its files are taken away.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    follow::wait_until,
    serve::{Daemon, serve},
    support::{PATIENCE, Repo, World, assert_converged, hang},
};

/// What a service manager waits before it kills.
const END: Duration = Duration::from_secs(5);

/// What systemd has been told.
struct Systemd {
    socket: UnixDatagram,
    told: Vec<String>,
}

impl Systemd {
    fn new(world: &World) -> Self {
        let socket = UnixDatagram::bind(world.path("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, told: Vec::new() }
    }

    /// Waits for a line that begins with `start`, counting from what was waited for last.
    fn wait_for(&mut self, start: &str) -> String {
        loop {
            if let Some(at) = self.told.iter().position(|line| line.starts_with(start)) {
                return self.told.drain(..=at).next_back().unwrap();
            }
            let mut message = [0; 4096];
            let length = self.socket.recv(&mut message).unwrap_or_else(|error| panic!("{start}: {error}"));
            self.told.extend(String::from_utf8(message[..length].to_vec()).unwrap().lines().map(str::to_owned));
        }
    }
}

#[test]
fn systemd_is_told_and_a_hangup_has_the_settings_read() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let mut systemd = Systemd::new(&world);
    let mut command = serve(&world, &b);
    command.env("NOTIFY_SOCKET", world.path("notify")).env("WATCHDOG_USEC", "600000");
    let mut daemon = Daemon::spawn(&world, command);
    systemd.wait_for("READY=1");
    assert!(systemd.wait_for("STATUS=").ends_with("/b.db with 0 remotes"));
    systemd.wait_for("WATCHDOG=1");
    systemd.wait_for("WATCHDOG=1");

    let config = b.state("config.toml");
    let settings = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{settings}\n[remotes.a]\naddress = \"{}\"\nsync = \"auto\"\n", a.db().display()))
        .unwrap();
    daemon.signal(Signal::SIGHUP);
    systemd.wait_for("RELOADING=1");
    systemd.wait_for("MONOTONIC_USEC=");
    systemd.wait_for("READY=1");
    assert!(systemd.wait_for("STATUS=").ends_with("/b.db with 1 remotes"));
    wait_until("the new remote is followed", || b.notes() == ["1|one|1"]);

    let good = fs::read(&config).unwrap();
    fs::write(&config, "nonsense").unwrap();
    daemon.signal(Signal::SIGHUP);
    systemd.wait_for("READY=1");
    let status = systemd.wait_for("STATUS=");
    assert!(status.ends_with("/b.db with 1 remotes"), "those from before are in force: {status}");
    b.run(["status"]).assert_status(2);
    fs::write(&config, good).unwrap();
    a.sql("UPDATE note SET stars = 2");
    wait_until("it goes on when they are mended", || b.notes() == ["1|one|2"]);
    fs::write(&config, settings).unwrap();
    daemon.signal(Signal::SIGHUP);
    systemd.wait_for("READY=1");
    assert!(systemd.wait_for("STATUS=").ends_with("/b.db with 0 remotes"));

    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    systemd.wait_for("STOPPING=1");
}

/// Ends the daemon as a service manager does: it must be gone when that would kill it.
fn end_in_time(daemon: &mut Daemon) {
    let started = Instant::now();
    assert_eq!(daemon.end(Signal::SIGTERM), Some(0));
    assert!(started.elapsed() < END, "{:?}", started.elapsed());
}

#[test]
fn it_ends_in_time_though_a_fetch_never_does() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    let _hanging = hang(&world.path("hangs.db"));
    let mut daemon = Daemon::start(&world, &b);
    b.ok(["remote", "add", "hangs", "hangs.db", "--sync", "auto"]);
    b.ok(["remote", "add", "a", "a.db", "--sync", "auto"]);
    let fetch = b.start(["fetch", "hangs"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    wait_until("it is at work", || b.notes() == ["1|one|1"]);
    end_in_time(&mut daemon);
    assert_ne!(b.finish(fetch).status, Some(0));
}

#[test]
fn it_ends_in_time_in_the_middle_of_a_merge_and_the_next_goes_on() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
         INSERT INTO note SELECT i, hex(randomblob(50)), i FROM n",
    );
    let count = |repo: &Repo| repo.rows("SELECT count(*) FROM note")[0].parse::<u32>().unwrap();
    let mut daemon = Daemon::start(&world, &b);
    b.ok(["remote", "add", "a", "a.db", "--sync", "auto"]);
    wait_until("something is fetched", || b.ok(["status"]).contains("unmerged ") || count(&b) > 0);
    end_in_time(&mut daemon);
    b.ok(["pull"]);
    assert_eq!(count(&b), 100_000);
    assert_converged(&[&a, &b]);
}

#[test]
fn a_database_that_is_replaced_is_refused_with_the_reason() {
    let world = World::new();
    let [a, b, c] = world.all_notes(["a", "b", "c"]);
    c.sql("INSERT INTO note VALUES ('c', 'from c', 1)");
    let _daemon = Daemon::start(&world, &b);
    b.ok(["remote", "add", "a", "a.db", "--sync", "auto"]);
    a.sql("INSERT INTO note VALUES ('a', 'from a', 1)");
    wait_until("it is at work", || b.notes() == ["a|from a|1"]);

    fs::rename(b.db(), world.path("aside.db")).unwrap();
    for log in ["b.db-wal", "b.db-shm"] {
        let _ = fs::rename(world.path(log), world.path(&log.replace("b.db", "aside.db")));
    }
    fs::copy(c.db(), b.db()).unwrap();
    let content = fs::read(b.db()).unwrap();
    let status = b.run(["status"]).assert_status(1);
    assert!(status.stderr.contains("b.db was replaced by another file"), "{status}");
    assert!(status.stderr.contains("hint: put the file back"), "{status}");
    wait_until("the log says so", || {
        fs::read_to_string(world.path("serve.log")).unwrap().contains("was replaced by another file")
    });
    a.sql("UPDATE note SET stars = 2");
    b.run(["pull"]).assert_status(1);
    assert_eq!(fs::read(b.db()).unwrap(), content, "nothing is merged into it");
    assert!(!world.path("b.db-wal").exists(), "it is not even opened");

    fs::rename(world.path("aside.db"), b.db()).unwrap();
    for log in ["b.db-wal", "b.db-shm"] {
        let _ = fs::rename(world.path(&log.replace("b.db", "aside.db")), world.path(log));
    }
    wait_until("it goes on when the file is back", || b.run(["pull"]).status == Some(0));
    assert_eq!(b.notes(), ["a|from a|2"]);
}
