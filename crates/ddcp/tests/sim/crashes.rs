//! One pull, broken off at every place where it can be.

use std::{fs, path::Path, time::Duration};

use ddcp::{Failure, repo::Repository};
use tempfile::TempDir;

use crate::{
    cells::Cell,
    history::{difference, failed, folder, is_excused},
    network::Network,
    site::Site,
    world::{DroppedAfter, World},
};

/// What is broken off.
#[derive(Clone, Copy, Debug)]
enum Breaks {
    /// The process that pulls dies.
    Reader,
    /// Whoever asked for the pull goes away, and the process lives on.
    Call,
    /// The process that answers dies, and starts again.
    Server,
}

#[test]
fn a_fetch_and_merge_dropped_at_any_await_point_converges() {
    for breaks in [Breaks::Reader, Breaks::Call, Breaks::Server] {
        for seed in 0..2 {
            let start = Start::new();
            // Until there is no such place any more.
            let places = (0..).take_while(|&polls| start.pull_broken_after(seed, breaks, polls)).count();
            println!("{breaks:?}, seed {seed}: {places} places");
            assert!(places > 10, "{breaks:?} at only {places} places");
        }
    }
}

/// Two sites in files: the second has pulled from the first once, and both have written since.
struct Start {
    folder: TempDir,
}

impl Start {
    fn new() -> Self {
        let start = Self { folder: folder() };
        let world = World::new(0, false);
        let sites = [0, 1].map(|index| {
            let site = Site::create(&start.path("work"), index);
            site.sql("INSERT INTO shared VALUES (1, 'one', 1)");
            site
        });
        sites[0].follow(&world, [&sites[1]]);
        sites[1].follow(&world, [&sites[0]]);
        world.run(async {
            let mut pair = Pair::of(&world, sites);
            pair.start(1).await;
            pair.start(0).await;
            assert_eq!(pair.pull(1).await, []);
            let [server, reader] = &mut pair.sites;
            reader.sql("UPDATE shared SET title = 'of the reader'");
            server.add_late_table();
            server.sql("INSERT INTO late VALUES (101, 'waits'), (102, 'waits')");
            // Three packs and more, but few messages: what is in zeros can be compressed.
            server.sql("UPDATE shared SET body = 2; INSERT INTO shared VALUES (2, 'long', zeroblob(1100000))");
            server.sql("INSERT INTO shared VALUES (3, 'long', zeroblob(1200000)); DELETE FROM shared WHERE id = 1");
            let noise = Cell::Blob(world.bytes(70_000));
            server.connection().execute("INSERT INTO log VALUES ('noise', ?)", [noise]).unwrap();
        });
        copy(&start.path("work"), &start.path("start"));
        start
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Says whether the pull was broken off, which it is not if it needs no more polls.
    fn pull_broken_after(&self, seed: u64, breaks: Breaks, polls: u32) -> bool {
        fs::remove_dir_all(self.path("work")).unwrap();
        copy(&self.path("start"), &self.path("work"));
        let world = World::new(seed, false);
        world.run(async {
            let mut pair = Pair::of(&world, [0, 1].map(|index| Site::open(&self.path("work"), index)));
            pair.start(0).await;
            pair.start(1).await;
            let was_broken = pair.break_off(breaks, polls).await;
            pair.finish().await;
            was_broken
        })
    }
}

struct Pair<'a> {
    world: &'a World,
    network: Network,
    sites: [Site; 2],
}

impl<'a> Pair<'a> {
    fn of(world: &'a World, sites: [Site; 2]) -> Self {
        let addresses = sites.iter().map(|site| site.layout().database().to_owned()).collect();
        Self { world, network: Network::new(world, addresses), sites }
    }

    async fn start(&mut self, at: usize) {
        self.sites[at].start(self.world, &self.network).await;
    }

    async fn break_off(&mut self, breaks: Breaks, polls: u32) -> bool {
        let (reader, repository) = self.sites[1].daemon().unwrap();
        let (reader, pulling) = (reader.clone(), pull(repository.clone()));
        match breaks {
            Breaks::Reader => {
                reader.kill_after(polls);
                let done = reader.run(pulling).await;
                reader.pardon();
                if done.is_none() {
                    self.start(1).await;
                }
                done.is_none()
            }
            Breaks::Call => {
                let done = reader.run(DroppedAfter::new(polls, pulling)).await;
                done.unwrap().is_none()
            }
            Breaks::Server => {
                let server = self.sites[0].daemon().unwrap().0.clone();
                server.kill_after(polls);
                let mut pulling = std::pin::pin!(reader.run(pulling));
                let failures = tokio::select! {
                    biased;
                    failures = &mut pulling => failures,
                    () = server.died() => {
                        self.world.sleep(Duration::from_millis(300)).await;
                        self.start(0).await;
                        pulling.await
                    }
                };
                server.pardon();
                assert!(failures.unwrap().iter().all(is_excused));
                !server.is_alive()
            }
        }
    }

    /// What is left to do is done, and both are equal.
    async fn finish(&mut self) {
        assert_eq!(self.pull(1).await, []);
        let has_noise = self.sites[1].rows("SELECT id, length(body) FROM log");
        assert_eq!(has_noise, ["noise|70000"]);
        self.sites[1].add_late_table();
        assert_eq!(self.pull(1).await, []);
        assert_eq!(self.pull(0).await, []);
        let [left, right] = [0, 1].map(|at| self.sites[at].content());
        assert!(left == right, "{}", difference(&left, &right));
        for site in &self.sites {
            site.assert_sound().await;
        }
    }

    /// What failed.
    async fn pull(&self, at: usize) -> Vec<Failure> {
        let (process, repository) = self.sites[at].daemon().unwrap();
        process.run(pull(repository.clone())).await.unwrap()
    }
}

async fn pull(repository: Repository) -> Vec<Failure> {
    let report = repository.pull(None).await.unwrap();
    failed(report.fetched).into_iter().chain(failed(report.merged)).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}
