//! The crate as an application embeds it.

use std::{
    fs,
    future::Future,
    io::{BufRead, BufReader, Write},
    pin::pin,
    process::{ChildStdin, Command, Stdio},
    sync::{Arc, mpsc},
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use ddcp::{
    Address, BoxFuture, Builder, BundleRequest, BundleTarget, Connector, ErrorKind, Event, Events, Handler, Limits,
    LocalPeer, NetworkConfig, Peer, Repository, Serving, Stop, SyncMode, TransportError,
};

use crate::{
    serve::Daemon,
    support::{PATIENCE, Repo, World, assert_converged},
};

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await.expect("it does not end") })
}

fn builder(repo: &Repo) -> Builder {
    Repository::builder(repo.db()).offline()
}

async fn open(repo: &Repo) -> Repository {
    builder(repo).open().await.unwrap()
}

async fn merged(events: &mut Events) -> Event {
    loop {
        match events.next().await.expect("it is open") {
            event @ Event::Merged { .. } => return event,
            Event::Error { failure, .. } => panic!("{failure}"),
            _ => {}
        }
    }
}

/// That futures can be given to any thread is part of the interface: this need only compile.
#[allow(dead_code)]
fn what_is_sent(repository: &Repository, serving: Serving, events: &mut Events) {
    fn assert_send(_: impl Send) {}
    fn assert_shared<T: Send + Sync + Clone + 'static>(_: &T) {}
    assert_shared(repository);
    assert_send(Repository::open("a.db"));
    assert_send(Repository::init("a.db"));
    assert_send(Repository::builder("a.db").init());
    assert_send(repository.serve());
    assert_send(serving.address());
    assert_send(serving.stop());
    assert_send(events.next());
    assert_send(repository.remote_add("a", "a.db", SyncMode::Auto));
    assert_send(repository.remote_list());
    assert_send(repository.config_set("access", "private"));
    assert_send(repository.fetch(None));
    assert_send(repository.merge(None));
    assert_send(repository.pull(Some("a")));
    assert_send(repository.status(false));
    assert_send(repository.log(None, 7));
}

#[test]
fn an_application_serves_and_commands_work_on_it() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    block_on(async {
        let repository = open(&b).await;
        repository.remote_add("a", a.db().to_str().unwrap(), SyncMode::Auto).await.unwrap();
        let mut events = repository.events();
        let serving = repository.serve().await.unwrap();
        let Event::Merged { remote, applied, .. } = merged(&mut events).await else { unreachable!() };
        assert_eq!((remote.as_str(), applied["note"]), ("a", 2));
        assert_eq!(b.notes(), ["1|one|1"]);

        // By the application's process, which holds the repository.
        assert_eq!(b.json(&["status"])["serving"], true);
        a.sql("UPDATE note SET stars = 2");
        b.ok(["pull"]);
        assert_eq!(b.notes(), ["1|one|2"]);
        let twice = repository.serve().await.unwrap_err();
        assert_eq!(twice.kind(), ErrorKind::Locked, "{twice}");
        repository.pull(None).await.unwrap();
        let offline = repository.remote_add("far", &format!("VLD0:{KEY}:{KEY}"), SyncMode::Manual).await;
        offline.unwrap();
        let far = repository.fetch(Some("far")).await.unwrap();
        assert!(format!("{far:?}").contains("opened it without Veilid"), "{far:?}");

        assert_eq!(serving.stop().await.ok(), Some(()));
        assert_eq!(b.json(&["status"])["serving"], false);
        // It can be served again, and ends by itself when a command asks for it.
        let serving = repository.serve().await.unwrap();
        assert_eq!(serving.address().await, None);
        b.ok(["stop"]);
        serving.ended().await.unwrap();
        drop(repository.serve().await.unwrap());
        b.ok(["remote", "remove", "far"]);
        b.ok(["pull"]);
    });
    assert_converged(&[&a, &b]);
}

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

#[test]
fn one_process_at_a_time_changes_a_repository() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.follows(&[&a]);
    block_on(async {
        let repository = open(&b).await;
        let daemon = Daemon::start(&world, &b);
        for error in [
            repository.fetch(None).await.err(),
            repository.merge(None).await.err(),
            repository.pull(None).await.err(),
            repository.serve().await.err(),
        ] {
            assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::Locked));
        }
        assert_eq!(repository.status(true).await.unwrap().remotes[0].unmerged, 0, "reading is free");
        drop(daemon);
        repository.pull(None).await.unwrap();
        b.ok(["pull"]);
    });
    assert_converged(&[&a, &b]);
}

/// Polls `work` so many times, and drops it then; what it gave if it came to its end.
async fn dropped_after<T>(polls: usize, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut polled = 0;
    std::future::poll_fn(|context: &mut Context<'_>| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending if polled == polls => Poll::Ready(None),
        Poll::Pending => {
            polled += 1;
            Poll::Pending
        }
    })
    .await
}

#[test]
fn a_pull_that_is_dropped_anywhere_loses_nothing() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    b.follows(&[&a]);
    let places = block_on(async {
        let repository = open(&b).await;
        for polls in 0.. {
            a.sql(&format!("INSERT INTO note VALUES ({polls}, 'by a', 1)"));
            b.sql(&format!("INSERT INTO note VALUES ('b{polls}', 'by b', 2)"));
            let is_over = dropped_after(polls, repository.pull(None)).await.is_some();
            let again = repository.pull(None).await.unwrap();
            assert!(format!("{again:?}").matches("Failed").next().is_none(), "after {polls} polls: {again:?}");
            assert_eq!(b.notes().len(), 2 * (polls + 1), "after {polls} polls");
            if is_over {
                return polls;
            }
        }
        unreachable!()
    });
    assert!(places > 5, "dropped at only {places} places");
    // Nobody is left who holds the repository.
    a.follows(&[&b]).pull();
    assert_converged(&[&a, &b]);
}

#[test]
fn a_start_that_is_dropped_anywhere_leaves_nothing_behind() {
    let world = World::new();
    let b = world.notes("b");
    block_on(async {
        for polls in 0.. {
            let repository = open(&b).await;
            let is_over = dropped_after(polls, repository.serve()).await.is_some();
            // What was begun ends, and gives the repository back.
            let deadline = tokio::time::Instant::now() + PATIENCE;
            let serving = loop {
                match repository.serve().await {
                    Ok(serving) => break serving,
                    Err(error) => assert!(tokio::time::Instant::now() < deadline, "after {polls} polls: {error}"),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            };
            serving.stop().await.unwrap();
            if is_over {
                return;
            }
        }
    });
}

#[test]
fn a_repository_is_served_again_under_its_address_after_it_was_stopped() {
    let world = World::new();
    let b = world.notes("b");
    let nobody = NetworkConfig { key: "a test".to_owned(), ..NetworkConfig::default() };
    block_on(async {
        let repository = Repository::builder(b.db()).network(nobody).open().await.unwrap();
        let mut addresses = Vec::new();
        for _ in 0..2 {
            let serving = repository.serve().await.unwrap();
            addresses.extend(serving.address().await);
            serving.stop().await.unwrap();
        }
        assert!(addresses.len() == 2 && addresses[0] == addresses[1], "{addresses:?}");
        repository.shutdown().await;
    });
}

#[test]
fn serving_has_stopped_when_nothing_is_merged_any_more() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    // Merging the row takes a while, in which nobody else can write.
    b.sql(
        "CREATE TRIGGER slow AFTER INSERT ON note BEGIN
           SELECT count(*) FROM
             (WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT i FROM n);
         END",
    );
    let other = rusqlite::Connection::open(b.db()).unwrap();
    other.busy_timeout(Duration::ZERO).unwrap();
    let may_write = || other.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok();
    block_on(async {
        let repository = open(&b).await;
        repository.remote_add("a", a.db().to_str().unwrap(), SyncMode::Auto).await.unwrap();
        let serving = repository.serve().await.unwrap();
        while may_write() {
            tokio::task::yield_now().await;
        }
        serving.stop().await.unwrap();
        assert!(may_write(), "something is being merged still");
        b.ok(["pull"]);
        repository.pull(None).await.unwrap();
    });
    assert_eq!(b.notes(), ["1|one|1"]);
}

/// Answers for another repository in this process, whatever the address.
struct Shortcut(Arc<dyn Handler>);

impl Connector for Shortcut {
    fn connect(&self, _: &Address) -> BoxFuture<'_, Result<Arc<dyn Peer>, TransportError>> {
        let peer: Arc<dyn Peer> = Arc::new(LocalPeer::new(Arc::clone(&self.0)));
        Box::pin(std::future::ready(Ok(peer)))
    }
}

#[test]
fn an_application_brings_its_own_transport_and_limits() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    block_on(async {
        let far = open(&a).await;
        let with = |inbox: u64| {
            let inbox_bytes = inbox.try_into().unwrap();
            Repository::builder(b.db())
                .connector(Arc::new(Shortcut(far.handler())))
                .limits(Limits { inbox_bytes, ..Limits::default() })
        };
        let narrow = with(1).open().await.unwrap();
        narrow.remote_add("far", &format!("VLD0:{KEY}:{KEY}"), SyncMode::Manual).await.unwrap();
        let refused = narrow.fetch(None).await.unwrap();
        assert!(format!("{refused:?}").contains("inbox_bytes"), "{refused:?}");
        drop(narrow);
        with(1 << 20).open().await.unwrap().pull(None).await.unwrap();
    });
    assert_eq!(b.notes(), ["1|one|1"]);
}

/// A copy of the database as it is now.
fn backup(repo: &Repo) -> Vec<u8> {
    repo.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    fs::read(repo.db()).unwrap()
}

fn restore(repo: &Repo, copy: &[u8]) {
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", repo.db().display()));
    }
    fs::write(repo.db(), copy).unwrap();
}

#[test]
fn a_restored_database_is_given_away_under_a_site_id_of_its_own_by_every_verb() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)").follows(&[&b]).ok(["init"]);
    let copy = backup(&a);
    let site_of = |repo: &Repo| repo.rows("SELECT hex(crsql_site_id())");
    block_on(async {
        let through = |far: &Repository| Repository::builder(b.db()).connector(Arc::new(Shortcut(far.handler())));
        let far = open(&a).await;
        let reader = through(&far).open().await.unwrap();
        reader.remote_add("far", &format!("VLD0:{KEY}:{KEY}"), SyncMode::Manual).await.unwrap();
        drop(far);
        let bundle = || BundleTarget::Stream { name: "nowhere".to_owned(), output: Box::new(std::io::sink()) };
        for verb in ["handler", "bundle", "schema diff", "fetch", "merge"] {
            a.sql("INSERT OR REPLACE INTO note VALUES ('2', 'two', 2)");
            let far = open(&a).await;
            far.merge(None).await.unwrap();
            restore(&a, &copy);
            let site = site_of(&a);
            match verb {
                "handler" => drop(through(&far).open().await.unwrap().fetch(Some("far")).await.unwrap()),
                "bundle" => {
                    far.create_bundle(bundle(), BundleRequest::default(), Stop::default()).await.unwrap();
                }
                "schema diff" => drop(far.schema_diff("b").await.unwrap()),
                "fetch" => drop(far.fetch(None).await.unwrap()),
                _ => drop(far.merge(None).await.unwrap()),
            }
            assert_ne!(site_of(&a), site, "{verb}");
        }

        // Also by what has answered before.
        a.sql("INSERT OR REPLACE INTO note VALUES ('2', 'two', 2)");
        let far = open(&a).await;
        let reader = through(&far).open().await.unwrap();
        reader.pull(Some("far")).await.unwrap();
        let site = site_of(&a);
        restore(&a, &copy);
        a.sql("INSERT INTO note VALUES ('3', 'after the loss', 3)");
        reader.pull(Some("far")).await.unwrap();
        assert_ne!(site_of(&a), site);
        assert!(b.notes().contains(&"3|after the loss|3".to_owned()), "{:?}", b.notes());
    });
}

#[test]
fn what_is_not_there_is_opened_only_if_it_may_be_made() {
    let world = World::new();
    let repo = world.repo("new");
    block_on(async {
        assert_eq!(Repository::open(repo.db()).await.unwrap_err().kind(), ErrorKind::NoRepository);
        let state = world.path("elsewhere");
        builder(&repo).state_dir(&state).init().await.unwrap();
        assert!(state.join("state.db").exists() && !repo.state("").exists());
        assert_eq!(builder(&repo).open().await.unwrap_err().kind(), ErrorKind::NoRepository, "its state is elsewhere");
        builder(&repo).state_dir(&state).open().await.unwrap();
        // A future that is never polled to its end has made nothing worse.
        let mut context = Context::from_waker(Waker::noop());
        let _ = pin!(Repository::init(repo.db())).poll(&mut context);
        Repository::init(repo.db()).await.unwrap();
    });
}

/// A window of the example.
struct Window {
    keys: ChildStdin,
    shown: mpsc::Receiver<String>,
}

impl Window {
    fn open(world: &World, own: &str, other: &str) -> Self {
        // `cargo test` builds examples with the tests, beside their folder.
        let mut program = std::env::current_exe().unwrap();
        program.pop();
        program.set_file_name("examples");
        let program = program.join("shared-list");
        assert!(program.exists(), "`cargo build --release -p ddcp --examples` makes {}", program.display());
        let mut child = Command::new(program)
            .args([own, other])
            .current_dir(world.path(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (keys, screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, shown) = mpsc::channel();
        thread::spawn(move || {
            BufReader::new(screen).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)).ok();
            assert!(child.wait().unwrap().success());
            sender.send("the end".to_owned()).ok();
        });
        Self { keys, shown }
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.keys, "{line}").unwrap();
    }

    fn wait_for(&self, line: &str) {
        while self.shown.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("it does not show {line:?}")) != line {}
    }
}

#[test]
fn the_shared_list_is_the_same_in_both_windows() {
    let world = World::new();
    let mut alice = Window::open(&world, "alice.db", "bob.db");
    let mut bob = Window::open(&world, "bob.db", "alice.db");
    alice.type_line("add milk");
    bob.wait_for("list: [ ] milk");
    bob.type_line("add bread");
    alice.wait_for("list: [ ] bread, [ ] milk");
    bob.type_line("done milk");
    alice.wait_for("list: [ ] bread, [x] milk");
    for window in [&mut alice, &mut bob] {
        window.type_line("quit");
        window.wait_for("the end");
    }
    // Opened again, it is as it was.
    let again = Window::open(&world, "alice.db", "bob.db");
    again.wait_for("list: [ ] bread, [x] milk");
}
