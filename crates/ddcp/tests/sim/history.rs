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
    oracle,
    schemas::Table,
    site::{Habits, Site},
    world::{DroppedAfter, World},
    writes::{append, write, write_drawn, write_much},
};

mod errands;

/// What a history came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) sites: u32,
    pub(crate) written: u32,
    pub(crate) crashes: u32,
    pub(crate) pulls: u32,
    pub(crate) failed: u32,
    pub(crate) restored: u32,
    pub(crate) cloned: u32,
    pub(crate) adopted: u32,
    pub(crate) verified: u32,
    pub(crate) bundles: u32,
    /// Rows that the schema of a site refuses in the end.
    pub(crate) refused: u32,
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
    folder: PathBuf,
    network: Network,
    /// The tables that were drawn. Not every site has them.
    tables: Vec<Table>,
    /// Whether sites have identities on a network, not paths on one machine.
    networked: bool,
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
        let tables: Vec<_> = (0..world.index(4)).map(|number| Table::draw(world, number)).collect();
        let networked = world.chance(0.3);
        // In UTF-16 there is no such thing.
        let bytes = world.chance(0.5);
        let sites: Vec<Site> =
            (0..count).map(|index| make_site(world, folder.path(), index, (networked, bytes), &tables)).collect();
        let links = connected(world, count);
        for site in &sites {
            site.follow(world, links.iter().filter(|link| link.0 == site.index).map(|link| &sites[link.1]));
        }
        let addresses = sites.iter().map(|site| site.layout().database().to_owned()).collect();
        let network = Network::new(world, addresses);
        world.note(&format!("{count} sites, links {links:?}"));
        let tally = Tally { sites: count as u32, ..Tally::default() };
        let folder = folder.path().to_owned();
        Self { world, folder, network, tables, networked, sites, links, tally: Arc::new(Mutex::new(tally)) }
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
        match self.world.number(0..130) {
            0..=29 => write(self.world, &mut self.sites[at]),
            30..=47 => self.write_drawn(at),
            48..=49 => write_much(self.world, &mut self.sites[at]),
            50..=83 => self.pull(at),
            84 => self.forget(at),
            85..=90 => self.crash(at),
            91..=98 => self.restart(at).await,
            99..=102 => self.part(),
            103..=105 => self.network.mend(),
            106 => self.network.set_weather(weather(self.world)),
            107..=109 => self.alter(at),
            110..=112 => self.back_up(at),
            113..=114 => self.restore().await,
            115..=129 => self.errand(at).await,
            _ => {}
        }
    }

    /// Begins `work` in the daemon of a site, if it lives, and does not wait for it. It may be dropped on its way. What
    /// went wrong must be something that may.
    fn begin<F>(&self, at: usize, what: &str, work: impl FnOnce(Repository) -> F)
    where
        F: Future<Output = Vec<Failure>> + Send + 'static,
    {
        let Some((process, repository)) = self.sites[at].daemon() else { return };
        let polls = if self.world.chance(0.2) { self.world.number(0..60) as u32 } else { u32::MAX };
        let work = DroppedAfter::new(polls, work(repository.clone()));
        let (world, tally, what) = (self.world.clone(), self.tally.clone(), format!("{at}: {what}"));
        let work = async move {
            let failures = work.await;
            world.note(&format!("{what}: {failures:?}"));
            for failure in failures.iter().flatten() {
                let mut tally = tally.lock().unwrap();
                let is_puzzled = tally.restored > 0 && is_puzzled(failure);
                assert!(is_excused(failure) || is_puzzled, "{what}: {failure:?}");
                tally.failed += 1;
            }
        };
        ddcp::host::Machine::spawn(process, Box::pin(work));
    }

    /// Somebody whom the site follows, by one of the names it has for it.
    fn any_remote(&self, at: usize) -> String {
        let from: Vec<usize> = self.links.iter().filter(|link| link.0 == at).map(|link| link.1).collect();
        let remote = from[self.world.index(from.len())];
        match self.sites[at].names_twice(remote) && self.world.chance(0.5) {
            true => format!("{remote}-again"),
            false => remote.to_string(),
        }
    }

    /// A pull, a fetch or a merge, from one remote or from all.
    fn pull(&self, at: usize) {
        let remote = self.world.chance(0.6).then(|| self.any_remote(at));
        let what = self.world.number(0..10);
        let tally = self.tally.clone();
        self.begin(at, &format!("{what} from {remote:?}"), |repository| async move {
            tally.lock().unwrap().pulls += 1;
            verb(&repository, what, remote.as_deref()).await
        });
    }

    fn write_drawn(&mut self, at: usize) {
        let site = &mut self.sites[at];
        let tables: Vec<_> = self.tables.iter().filter(|table| site.has_table(&table.name)).collect();
        if !tables.is_empty() {
            write_drawn(self.world, site, tables[self.world.index(tables.len())]);
        }
    }

    /// Removes a remote and adds it anew: what was known of it from talking to it is forgotten.
    fn forget(&self, at: usize) {
        let Some(link) = self.links.iter().find(|link| link.0 == at) else { return };
        self.world.note(&format!("{at} forgets {}", link.1));
        self.sites[at].forget(self.world, &self.sites[link.1]);
    }

    fn alter(&mut self, at: usize) {
        let what = self.world.number(0..4);
        self.world.note(&format!("{at} is altered, {what}"));
        let site = &mut self.sites[at];
        match what {
            0 => site.add_late_table(),
            1 => site.add_late_column(),
            2 => site.alter_with_data(self.world),
            _ => {
                if let Some(table) = self.tables.iter().find(|table| !site.has_table(&table.name)) {
                    site.add_drawn(table, &table.declare(self.world));
                }
            }
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
        self.sites[at].restore(self.world);
        self.world.note(&format!("{at} is restored from its backup"));
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

    /// Everybody pulls from everybody that it follows, until nobody learns anything new: soon. Then all must be equal.
    async fn converge(&mut self) {
        // What began before must not hold up, and must not spoil, what comes now.
        self.world.sleep(Duration::from_secs(10)).await;
        for site in &mut self.sites {
            site.add_late_table();
            site.add_late_column();
        }
        let rounds = self.settle().await;
        self.tally.lock().unwrap().rounds = rounds;
        self.assert_converged().await;
        if !self.tables.is_empty() {
            self.observe().await;
        }
        self.assert_open().await;
    }

    /// Gives the number of rounds that brought something.
    async fn settle(&self) -> u32 {
        let most = self.sites.len() as u32 + 2;
        for round in 0..most {
            let mut news = 0;
            for site in &self.sites {
                news += self.pull_all(site).await;
            }
            self.world.note(&format!("round {round}: {news} changes"));
            if news == 0 {
                return round;
            }
        }
        panic!("after {most} rounds there is still something new");
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

    /// In the tables that everybody has and that refuse nothing.
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

    /// One more site comes, which takes every row, and pulls from everybody, who pull from it: what one refuses would not
    /// come through it to others. Then everybody must have everything that its schema takes.
    async fn observe(&mut self) {
        for site in &mut self.sites {
            for table in &self.tables {
                if !site.has_table(&table.name) {
                    site.add_drawn(table, &table.declare(self.world));
                }
            }
        }
        let index = self.sites.len();
        let mut observer = Site::make(&self.folder, index, self.habits());
        observer.init();
        observer.add_late_table();
        observer.add_late_column();
        self.tables.iter().for_each(|table| observer.add_drawn(table, &table.plain()));
        self.join(observer, 0..index).await;
        self.settle().await;
        let observer = &self.sites[index];
        let mut refused = 0;
        for site in &self.sites {
            for table in &self.tables {
                refused += oracle::assert_agrees(site, observer, table).await;
            }
        }
        self.tally.lock().unwrap().refused = refused as u32;
    }

    /// A site, and those whom it follows and who follow it.
    async fn join(&mut self, site: Site, others: impl IntoIterator<Item = usize>) {
        let index = site.index;
        self.network.add(site.layout().database().to_owned());
        self.sites.push(site);
        for other in others {
            self.sites[index].follow(self.world, [&self.sites[other]]);
            self.sites[other].follow(self.world, [&self.sites[index]]);
            self.links.extend([(index, other), (other, index)]);
            self.start_anew(other).await;
        }
        self.restart(index).await;
    }

    /// What is peculiar about a site that comes later.
    fn habits(&self) -> Habits {
        Habits { networked: self.networked, ..Habits::default() }
    }

    /// So that the daemon knows of remotes that it was not told of.
    async fn start_anew(&mut self, at: usize) {
        if let Some((process, _)) = self.sites[at].daemon() {
            process.kill();
        }
        self.restart(at).await;
    }

    /// Fails unless what anybody writes now arrives at everybody, and comparing says that all is well.
    async fn assert_open(&mut self) {
        for site in &mut self.sites {
            append(self.world, site);
        }
        self.settle().await;
        self.assert_converged().await;
        self.assert_verified().await;
    }
}

/// A site with some of `tables`, and one backup in which it is no repository yet.
fn make_site(world: &World, folder: &Path, index: usize, (networked, bytes): (bool, bool), tables: &[Table]) -> Site {
    let mut site = Site::make(folder, index, Habits::draw(world, networked, bytes));
    site.bytes = bytes;
    if world.chance(0.7) {
        site.add_late_table();
    }
    if world.chance(0.7) {
        site.add_late_column();
    }
    for table in tables {
        if world.chance(0.8) {
            let declaration = table.declare(world);
            world.note(&declaration.sql);
            site.add_drawn(table, &declaration);
        }
    }
    (0..world.index(3)).for_each(|_| write(world, &mut site));
    if world.chance(0.3) {
        site.back_up();
    }
    site.init();
    site
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

/// Whether something may fail like that while the network is as it is and sites crash. A proof is none to a daemon that has
/// started since it was asked for, and a remote may be forgotten meanwhile.
pub(crate) fn is_excused(failure: &Failure) -> bool {
    failure.kind == ErrorKind::Unreachable
        || ["nothing has been fetched", "drops packs faster", "not authorised", "no remote named"]
            .iter()
            .any(|text| failure.message.contains(text))
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
