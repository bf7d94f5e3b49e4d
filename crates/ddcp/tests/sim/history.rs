//! Histories: sites write, pull, crash and are cut off, as chance will have it; then all is mended, and after a few rounds
//! of pulls everybody must have the same, and everything.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use ddcp::{
    ErrorKind, Failure,
    repo::{Outcome, PerRemote, Repository},
};
use tempfile::TempDir;

use crate::{
    network::{Network, Weather},
    site::Site,
    world::{DroppedAfter, World},
    writes::{write, write_much},
};

/// What a history came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) sites: u32,
    pub(crate) written: u32,
    pub(crate) crashes: u32,
    pub(crate) pulls: u32,
    pub(crate) failed: u32,
    pub(crate) restored: u32,
    pub(crate) rounds: u32,
}

/// Lives the history of `seed`, and tells it if asked to. Gives the hash of everything that happened.
///
/// # Panics
/// Where something is lost or different in the end.
pub(crate) fn live(seed: u64, tell: bool) -> (blake3::Hash, Tally) {
    let world = World::new(seed, tell);
    let folder = folder();
    let tally = world.run(History::new(&world, &folder).live());
    let trace = world.trace();
    drop(world);
    let open = open_files(folder.path());
    assert!(open.is_empty(), "files that nobody has closed: {open:?}");
    (trace, tally)
}

/// The files below `folder` that this process has open.
fn open_files(folder: &Path) -> Vec<PathBuf> {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    // Other threads open and close theirs meanwhile.
    let files = descriptors.filter_map(|descriptor| fs::read_link(descriptor.unwrap().path()).ok());
    files.filter(|file| file.starts_with(folder)).collect()
}

/// In memory, where there is such a folder: the histories crash processes, not machines.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

struct History<'a> {
    world: &'a World,
    network: Network,
    sites: Vec<Site>,
    /// Who follows whom; each pair in both directions.
    links: BTreeSet<(usize, usize)>,
    tally: Arc<Mutex<Tally>>,
}

impl Drop for History<'_> {
    /// Each handler knows the network, which knows the handlers.
    fn drop(&mut self) {
        (0..self.sites.len()).for_each(|at| self.network.stop(at));
    }
}

impl<'a> History<'a> {
    fn new(world: &'a World, folder: &TempDir) -> Self {
        let count = 2 + world.index(7).min(world.index(7));
        let mut sites: Vec<Site> = (0..count).map(|index| Site::create(folder.path(), index)).collect();
        for site in &mut sites {
            if world.chance(0.7) {
                site.add_late_table();
            }
            if world.chance(0.7) {
                site.add_late_column();
            }
        }
        let links = connected(world, count);
        for site in &sites {
            site.follow(links.iter().filter(|link| link.0 == site.index).map(|link| &sites[link.1]));
        }
        // Some are two remotes of one.
        for &(from, to) in links.iter().filter(|_| world.chance(0.2)) {
            world.note(&format!("{from} follows {to} twice"));
            sites[from].follow_link(&sites[to]);
        }
        let addresses = sites.iter().map(|site| site.layout().database().to_owned()).collect();
        let network = Network::new(world, addresses);
        world.note(&format!("{count} sites, links {links:?}"));
        let tally = Tally { sites: count as u32, ..Tally::default() };
        Self { world, network, sites, links, tally: Arc::new(Mutex::new(tally)) }
    }

    async fn live(mut self) -> Tally {
        self.heal().await;
        let steps = self.world.number(20..80);
        for _ in 0..steps {
            self.step().await;
            self.world.sleep(self.world.millis(0..600)).await;
        }
        self.heal().await;
        self.converge().await;
        let mut tally = *self.tally.lock().unwrap();
        tally.written = self.sites.iter().map(|site| site.expected.written).sum();
        tally
    }

    async fn step(&mut self) {
        let at = self.world.index(self.sites.len());
        match self.world.number(0..100) {
            0..=33 => write(self.world, &mut self.sites[at]),
            34..=35 => write_much(self.world, &mut self.sites[at]),
            36..=69 => self.pull(at),
            70 => self.forget(at),
            71..=76 => self.crash(at),
            77..=84 => self.restart(at).await,
            85..=88 => self.part(),
            89..=91 => self.network.mend(),
            92 => self.network.set_weather(weather(self.world)),
            93..=94 => self.alter(at),
            95..=97 => self.back_up(at),
            _ => self.restore().await,
        }
    }

    /// Begins a pull, a fetch or a merge, from one remote or from all, and does not wait for it. It may be dropped on
    /// its way.
    fn pull(&self, at: usize) {
        let Some((process, repository)) = self.sites[at].daemon() else { return };
        let from: Vec<usize> = self.links.iter().filter(|link| link.0 == at).map(|link| link.1).collect();
        let remote = self.world.chance(0.6).then(|| from[self.world.index(from.len())].to_string());
        let what = self.world.number(0..10);
        let polls = if self.world.chance(0.2) { self.world.number(0..60) as u32 } else { u32::MAX };
        let (world, tally, repository) = (self.world.clone(), self.tally.clone(), repository.clone());
        let work = async move {
            tally.lock().unwrap().pulls += 1;
            let work = verb(&repository, what, remote.as_deref());
            let failures = DroppedAfter::new(polls, work).await;
            world.note(&format!("{at}: {what} from {remote:?}: {failures:?}"));
            for failure in failures.iter().flatten() {
                let mut tally = tally.lock().unwrap();
                let is_puzzled = tally.restored > 0 && is_puzzled(failure);
                assert!(is_excused(failure) || is_puzzled, "{failure:?}");
                tally.failed += 1;
            }
        };
        ddcp::host::Machine::spawn(process, Box::pin(work));
    }

    /// Removes a remote and adds it anew: what was known of it from talking to it is forgotten.
    fn forget(&self, at: usize) {
        let Some(link) = self.links.iter().find(|link| link.0 == at) else { return };
        self.world.note(&format!("{at} forgets {}", link.1));
        self.sites[at].forget(&self.sites[link.1]);
    }

    fn alter(&mut self, at: usize) {
        let table = self.world.chance(0.5);
        self.world.note(&format!("{at} gets the late {}", if table { "table" } else { "column" }));
        match table {
            true => self.sites[at].add_late_table(),
            false => self.sites[at].add_late_column(),
        }
    }

    fn back_up(&mut self, at: usize) {
        self.world.note(&format!("{at} is backed up"));
        self.sites[at].back_up();
    }

    /// Kills the daemon: at once, or when it has done a little more.
    fn crash(&self, at: usize) {
        let Some((process, _)) = self.sites[at].daemon() else { return };
        self.tally.lock().unwrap().crashes += 1;
        match self.world.chance(0.2) {
            true => process.kill(),
            false => process.kill_after(self.world.number(0..100) as u32),
        }
    }

    async fn restart(&mut self, at: usize) {
        if self.sites[at].daemon().is_none() {
            self.world.note(&format!("{at} starts"));
            self.sites[at].start(self.world, &self.network).await;
        }
    }

    /// Puts a database back to where its backup was made. What nobody has read since is lost, of course.
    async fn restore(&mut self) {
        let Some(at) = self.sites.iter().position(Site::can_be_restored) else { return };
        self.network.stop(at);
        let is_unmarked = self.world.chance(0.3);
        self.sites[at].restore(is_unmarked);
        let of_when = if is_unmarked { ", made before it was a repository" } else { "" };
        self.world.note(&format!("{at} is restored from its backup{of_when}"));
        self.tally.lock().unwrap().restored += 1;
        self.restart(at).await;
    }

    /// Cuts the sites into two camps, or some one-way links.
    fn part(&self) {
        let camps: Vec<bool> = self.sites.iter().map(|_| self.world.chance(0.5)).collect();
        let one_way = self.world.chance(0.3);
        self.world.note(&format!("parted {camps:?}, one way: {one_way}"));
        for &(from, to) in &self.links {
            if camps[from] != camps[to] && (camps[from] || !one_way) {
                self.network.cut(from, to);
            }
        }
    }

    /// Links and weather are as good as can be, and all sites are up.
    async fn heal(&mut self) {
        self.network.mend();
        self.network.set_weather(Weather::FAIR);
        for at in 0..self.sites.len() {
            // One that is to be killed after a few more polls is as good as dead.
            if let Some((process, _)) = self.sites[at].daemon() {
                process.pardon();
            }
            self.restart(at).await;
        }
    }

    /// Everybody pulls from everybody that it follows, until nobody learns anything new: soon.
    async fn converge(&mut self) {
        // What began before must not hold up, and must not spoil, what comes now.
        self.world.sleep(Duration::from_secs(10)).await;
        for site in &mut self.sites {
            site.add_late_table();
            site.add_late_column();
        }
        let most = self.sites.len() as u32 + 2;
        for round in 0..most {
            let mut news = 0;
            for site in &self.sites {
                news += self.pull_all(site).await;
            }
            self.world.note(&format!("round {round}: {news} changes"));
            if news == 0 {
                self.tally.lock().unwrap().rounds = round;
                break;
            }
            assert!(round + 1 < most, "after {most} rounds there is still something new");
        }
        self.assert_converged().await;
    }

    /// The number of changes that came or altered something. Some lie here already: what an unfinished pull fetched from
    /// a site that has another id since.
    async fn pull_all(&self, site: &Site) -> u64 {
        let (process, repository) = site.daemon().expect("it was started");
        let pulling = repository.clone();
        let report = process.run(async move { pulling.pull(None).await }).await.expect("it lives").unwrap();
        let merged = report.merged.iter().flat_map(|remote| match &remote.outcome {
            Outcome::Done(done) => done.applied.values(),
            Outcome::Failed(failure) => panic!("site {}: merging {}: {failure:?}", site.index, remote.remote),
        });
        let fetched = report.fetched.iter().map(|remote| match &remote.outcome {
            Outcome::Done(done) => &done.changes,
            Outcome::Failed(failure) => panic!("site {}: {}: {failure:?}", site.index, remote.remote),
        });
        merged.chain(fetched).sum()
    }

    async fn assert_converged(&self) {
        let first = self.sites[0].content();
        for site in &self.sites {
            let content = site.content();
            if content != first {
                panic!("sites 0 and {} differ:\n{}", site.index, difference(&first, &content));
            }
            for writer in &self.sites {
                site.assert_has(writer);
            }
            site.assert_sound().await;
        }
    }
}

/// Fetches, merges or pulls, and gives what failed.
async fn verb(repository: &Repository, what: u64, remote: Option<&str>) -> Vec<Failure> {
    let failure = |failure: ddcp::Error| vec![failure.report()];
    match what {
        0 | 1 => repository.fetch(remote).await.map_or_else(failure, failed),
        2 => repository.merge(remote).await.map_or_else(failure, failed),
        _ => match repository.pull(remote).await {
            Ok(report) => failed(report.fetched).into_iter().chain(failed(report.merged)).collect(),
            Err(error) => failure(error),
        },
    }
}

pub(crate) fn failed<T>(reports: Vec<PerRemote<T>>) -> Vec<Failure> {
    let failure = |report: PerRemote<T>| match report.outcome {
        Outcome::Done(_) => None,
        Outcome::Failed(failure) => Some(failure),
    };
    reports.into_iter().filter_map(failure).collect()
}

/// Whether something may fail like that while the network is as it is and sites crash.
pub(crate) fn is_excused(failure: &Failure) -> bool {
    failure.kind == ErrorKind::Unreachable
        || ["nothing has been fetched", "drops packs faster"].iter().any(|text| failure.message.contains(text))
}

/// Whether a fetch met a database that was replaced under its hands.
fn is_puzzled(failure: &Failure) -> bool {
    ["its offer does not lead on", "its head is not what was offered"].iter().any(|text| failure.message.contains(text))
}

/// Links that lead from everywhere to everywhere.
fn connected(world: &World, count: usize) -> BTreeSet<(usize, usize)> {
    let tree = (1..count).map(|site| (site, world.index(site))).collect::<Vec<_>>();
    let more = (0..world.index(count)).map(|_| (world.index(count), world.index(count))).collect::<Vec<_>>();
    let pairs = tree.into_iter().chain(more).filter(|(a, b)| a != b);
    pairs.flat_map(|(a, b)| [(a, b), (b, a)]).collect()
}

fn weather(world: &World) -> Weather {
    let up_to = |most: f64| world.number(0..1000) as f64 / 1000.0 * most;
    match world.number(0..3) {
        0 => Weather::FAIR,
        1 => Weather { loss: up_to(0.05), duplication: up_to(0.1), late: up_to(0.05), busy: up_to(0.1) },
        _ => Weather { loss: up_to(0.4), duplication: up_to(0.5), late: up_to(0.3), busy: up_to(0.3) },
    }
}

/// The lines that only one side has.
pub(crate) fn difference(left: &[String], right: &[String]) -> String {
    let only = |these: &[String], those: &[String]| {
        let known: BTreeSet<_> = those.iter().collect();
        these.iter().filter(|line| !known.contains(line)).take(20).cloned().collect::<Vec<_>>().join("\n  ")
    };
    format!("only left:\n  {}\nonly right:\n  {}", only(left, right), only(right, left))
}
