//! What people do now and then: compare, adopt tables, clone, carry bundles.

use ddcp::{
    Adopt, BundleRequest, BundleTarget, Error, Failure, Monitor, Outcome, PerRemote, Since, Stop, VerifyReport,
    repo::{Layout, Options, Repository},
};

use super::{History, failed};
use crate::{
    identity::Owner,
    network::Weather,
    site::{Site, give_id},
    world::DroppedAfter,
};

impl History<'_> {
    pub(super) async fn errand(&mut self, at: usize) {
        match self.world.number(0..10) {
            0..=3 => self.verify(at),
            4..=5 => self.adopt(at),
            6..=8 => self.carry(at).await,
            _ => self.clone_from(at).await,
        }
    }

    fn verify(&self, at: usize) {
        let remote = self.world.chance(0.5).then(|| self.any_remote(at));
        let mends = self.world.chance(0.7);
        let tally = self.tally.clone();
        self.begin(at, &format!("verifies {remote:?}, mends: {mends}"), |repository| async move {
            tally.lock().unwrap().verified += 1;
            let reports = repository.verify(remote.as_deref(), mends, &Monitor::default()).await;
            reports.map_or_else(|error| vec![error.report()], without_other_tables)
        });
    }

    /// Takes over the tables and columns of a remote.
    fn adopt(&self, at: usize) {
        let remote = self.any_remote(at);
        let tally = self.tally.clone();
        self.begin(at, &format!("adopts from {remote}"), |repository| async move {
            tally.lock().unwrap().adopted += 1;
            match repository.schema_adopt(&remote, Adopt::Now).await {
                Ok(report) => failed(report.merged),
                Err(error) => vec![error.report()],
            }
        });
    }

    /// Makes a bundle at one site and has it fetched at another, whether they follow each other or not.
    async fn carry(&self, from: usize) {
        let to = self.world.index(self.sites.len());
        let Some((process, repository)) = self.sites[from].daemon() else { return };
        let path = self.folder.join(format!("{}.bundle", self.world.number(0..u64::MAX)));
        let since = match self.world.number(0..3) {
            0 => Since::Start,
            1 => Since::Version(self.world.number(0..10) as i64),
            _ => Since::Remote(self.any_remote(from)),
        };
        let mark = matches!(since, Since::Remote(_)) && self.world.chance(0.5);
        let tables = if !mark && self.world.chance(0.2) { vec!["log".to_owned()] } else { Vec::new() };
        self.world.note(&format!("{from} makes a bundle since {since:?} for {to}, marked: {mark}"));
        let target = BundleTarget::File { path: path.clone(), replace: false };
        let (making, request) = (repository.clone(), BundleRequest { since, tables, mark, unsigned: false });
        let made = process.run(async move { making.create_bundle(target, request, Stop::default()).await }).await;
        match made {
            Some(Ok(report)) => self.world.note(&format!("a bundle of {} changes", report.changes)),
            // It has no such version yet.
            Some(Err(Error::BundleRequest { .. })) | None => return,
            Some(Err(error)) => panic!("{from}: a bundle: {error:?}"),
        }
        let tally = self.tally.clone();
        self.begin(to, "fetches the bundle", |repository| async move {
            tally.lock().unwrap().bundles += 1;
            let fetched = repository.fetch_bundle(path, None, &Monitor::default()).await;
            match fetched {
                Ok(_) => repository.merge(None).await.map_or_else(|error| vec![error.report()], failed),
                Err(Error::BundleGap { .. } | Error::OwnBundle { .. }) => Vec::new(),
                Err(error) => vec![error.report()],
            }
        });
    }

    /// A site comes that has the tables of another, and its rows.
    async fn clone_from(&mut self, origin: usize) {
        if self.tally.lock().unwrap().cloned > 0 || self.sites[origin].daemon().is_none() {
            return;
        }
        let index = self.sites.len();
        let layout = Layout::new(&self.folder.join(format!("{index}.db")), None).unwrap();
        self.network.add(layout.database().to_owned());
        self.world.note(&format!("{index} is to be a clone of {origin}"));
        let address = match self.networked {
            true => Owner::of(index).address(),
            false => layout.database().to_str().unwrap().to_owned(),
        };
        self.sites[origin].add_remote(&index.to_string(), &address);
        self.start_anew(origin).await;
        // Nobody answers: the clone begins, and gets an id that the seed tells before anything comes.
        self.network.cut(index, origin);
        let (name, address) = (origin.to_string(), self.sites[origin].address(self.world));
        let from = (&*name, &*address);
        assert!(self.try_clone(&layout, index, from, u32::MAX).await.is_err());
        give_id(layout.database(), index);
        self.network.mend();
        let polls = self.world.number(0..60) as u32;
        drop(self.try_clone(&layout, index, from, polls).await);
        self.network.set_weather(Weather::FAIR);
        self.start_anew(origin).await;
        if Repository::is_unfinished_clone(&layout) {
            let failures = self.try_clone(&layout, index, from, u32::MAX).await;
            assert_eq!(failures.unwrap_or_else(|failure| vec![failure]), [], "{index}: cloning {origin}");
        }
        self.tally.lock().unwrap().cloned += 1;
        self.sites.push(Site::open_as(&self.folder, index, self.habits()));
        self.links.extend([(index, origin), (origin, index)]);
        self.restart(index).await;
    }

    /// What failed of a clone that is dropped after so many polls.
    async fn try_clone(
        &self,
        layout: &Layout,
        index: usize,
        (name, from): (&str, &str),
        polls: u32,
    ) -> Result<Vec<Failure>, Failure> {
        let process = self.world.start_process();
        let options = Options {
            connector: Some(self.network.ways_from(index, process.clone())),
            signer: self.habits().signer(index),
            host: process.host(),
            ..Options::default()
        };
        let (layout, name, address) = (layout.clone(), name.to_owned(), from.to_owned());
        let cloning = DroppedAfter::new(polls, async move {
            Repository::clone_of(layout, options, &name, &address, &Monitor::default()).await
        });
        let done = process.run(cloning).await.expect("it lives");
        process.kill();
        // The folder has another name each time.
        self.world.note(&format!("{index} clones: {:?}", done.as_ref().map(Result::is_ok)));
        match done {
            Some(Ok(report)) => Ok(failed(report.pull.fetched).into_iter().chain(failed(report.pull.merged)).collect()),
            Some(Err(error)) => Err(error.report()),
            None => Ok(Vec::new()),
        }
    }

    /// Everybody compares with one whom it follows, and finds no difference but what is refused.
    pub(super) async fn assert_verified(&self) {
        for site in &self.sites {
            let (process, repository) = site.daemon().expect("it was started");
            let (repository, remote) = (repository.clone(), self.any_remote(site.index));
            let comparing = async move { repository.verify(Some(&remote), true, &Monitor::default()).await };
            for report in process.run(comparing).await.expect("it lives").unwrap() {
                let remote: usize = report.remote.trim_end_matches("-again").parse().unwrap();
                let waits = !site.waits_for().await.is_empty() || !self.sites[remote].waits_for().await.is_empty();
                match report.outcome {
                    Outcome::Done(report) if waits => self.world.note(&format!("waits, so {report:?}")),
                    Outcome::Done(report) => {
                        assert!(report.identical && report.found.is_none(), "{} and {remote}: {report:?}", site.index);
                    }
                    Outcome::Failed(failure) if has_other_tables(&failure) => {}
                    Outcome::Failed(failure) => panic!("{} and {remote}: {failure:?}", site.index),
                }
            }
        }
    }
}

fn without_other_tables(reports: Vec<PerRemote<VerifyReport>>) -> Vec<Failure> {
    failed(reports).into_iter().filter(|failure| !has_other_tables(failure)).collect()
}

/// Digests can be compared of the same tables only.
fn has_other_tables(failure: &Failure) -> bool {
    failure.message.contains("tables")
}
