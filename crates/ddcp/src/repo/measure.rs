//! What can be counted of a repository, for those who watch over it: what this process has done since it started, and
//! where the repository stands.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
};

use super::{FetchReport, MergeReport, Outcome, Repository, verify::whole_versions, way};
use crate::{Error, ErrorKind, Failure, config::RemoteName};

/// What this process did with one remote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Fetches that succeeded.
    pub(crate) fetches: u64,
    /// Changes that were fetched, and the bytes of their packs.
    pub(crate) changes: u64,
    pub(crate) bytes: u64,
    /// Records that merges changed.
    pub(crate) merged: u64,
    /// Fetches and merges that failed, by their kind.
    pub(crate) failures: BTreeMap<ErrorKind, u64>,
}

/// Counts by remote. What is merged of sites that are no remote is counted together.
#[derive(Debug, Default)]
pub(super) struct Counters(Mutex<BTreeMap<Option<RemoteName>, Counted>>);

impl Counters {
    pub(super) fn fetched(&self, name: &RemoteName, outcome: &Outcome<FetchReport>) {
        self.count(Some(name.clone()), |counted| match outcome {
            Outcome::Done(report) => {
                counted.fetches += 1;
                counted.changes += report.changes;
                counted.bytes += report.bytes;
            }
            Outcome::Failed(failure) => counted.fail(failure),
        });
    }

    /// `label` is a remote's name, or tells of a site that is none.
    pub(super) fn merged(&self, label: &str, outcome: &Outcome<MergeReport>) {
        self.count(label.parse().ok(), |counted| match outcome {
            Outcome::Done(report) => counted.merged += report.applied.values().sum::<u64>(),
            Outcome::Failed(failure) => counted.fail(failure),
        });
    }

    /// Counts what was counted of `old` as that of `new`.
    pub(super) fn rename(&self, old: &str, new: &RemoteName) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = counted.keys().flatten().find(|name| name.as_str() == old).cloned().map(Some);
        if let Some(moved) = name.and_then(|name| counted.remove(&name)) {
            counted.insert(Some(new.clone()), moved);
        }
    }

    fn count(&self, name: Option<RemoteName>, count: impl FnOnce(&mut Counted)) {
        count(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default());
    }

    /// What was counted of those that are remotes; of remotes that are gone nothing is kept.
    fn of<'a>(&self, remotes: impl Iterator<Item = &'a RemoteName>) -> BTreeMap<Option<RemoteName>, Counted> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<Option<RemoteName>> = remotes.cloned().map(Some).chain([None]).collect();
        counted.retain(|name, _| names.contains(name));
        names.into_iter().map(|name| (name.clone(), counted.get(&name).cloned().unwrap_or_default())).collect()
    }
}

impl Counted {
    fn fail(&mut self, failure: &Failure) {
        *self.failures.entry(failure.kind).or_default() += 1;
    }
}

/// All that is measured, at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    pub(crate) version: i64,
    /// Bytes of the database with its log, and of the files of its state.
    pub(crate) database_bytes: u64,
    pub(crate) state_bytes: u64,
    /// By remote; the last is what is merged of others.
    pub(crate) counted: BTreeMap<Option<RemoteName>, Counted>,
    pub(crate) remotes: BTreeMap<RemoteName, Standing>,
    /// Answers to peers, by what they say.
    pub(crate) answers: BTreeMap<&'static str, u64>,
    pub(crate) dropped: u64,
    /// Whether the node is connected, and how often it came to be; `None` if none runs.
    pub(crate) node: Option<(bool, u64)>,
}

/// Where the repository stands with a remote.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// Seconds since 1970.
    pub(crate) last_contact: Option<i64>,
    pub(crate) version: Option<i64>,
    pub(crate) merged_version: Option<i64>,
    pub(crate) inbox_bytes: u64,
    pub(crate) inbox_changes: u64,
    pub(crate) waiting: u64,
    pub(crate) is_failing: bool,
}

impl Repository {
    /// Takes all measures. Blocks; takes a few look-ups for each remote.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Database`], [`Error::State`].
    pub(crate) fn measure(&self) -> Result<Measured, Error> {
        let (config, database, state) = (self.config()?, self.database()?, self.state()?);
        let mut remotes = BTreeMap::new();
        for (name, remote) in &config.remotes {
            let contact = state.contact(name.as_str(), &remote.address)?;
            let mut standing = Standing {
                last_contact: contact.last_contact,
                version: contact.db_version,
                is_failing: contact.last_error.is_some(),
                ..Standing::default()
            };
            if let Some(site) = contact.site_id {
                standing.merged_version = whole_versions(database.position(way::origin(&remote.address, site))?);
                standing.inbox_bytes = state.inbox_bytes(&site)?;
                standing.inbox_changes = state.inbox_changes(&site)?;
                standing.waiting = state.waiting_changes(&site)?.0;
            }
            remotes.insert(name.clone(), standing);
        }
        let drops = self.drops();
        let layout = self.layout();
        Ok(Measured {
            version: database.version()?,
            database_bytes: size(layout.database()),
            state_bytes: size(&layout.state_db()) + size(&layout.digests()),
            counted: self.inner.counters.of(config.remotes.keys()),
            remotes,
            answers: drops.answers(),
            dropped: drops.report().count,
            node: self.inner.node.running().map(|node| node.connection()),
        })
    }
}

/// Bytes of a database with its log.
fn size(path: &Path) -> u64 {
    let bytes = |end: &str| fs::metadata(format!("{}{end}", path.display())).map_or(0, |metadata| metadata.len());
    bytes("") + bytes("-wal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remotes_that_are_gone_are_forgotten_and_the_others_counted() {
        let counters = Counters::default();
        let [alice, bob]: [RemoteName; 2] = ["alice", "bob"].map(|name| name.parse().unwrap());
        let fetched = Outcome::Done(FetchReport { changes: 3, bytes: 7, ..FetchReport::default() });
        let failed = |kind| Outcome::Failed(Failure { kind, message: String::new(), hint: None });
        counters.fetched(&alice, &fetched);
        counters.fetched(&alice, &fetched);
        counters.fetched(&alice, &failed(ErrorKind::Unreachable));
        counters.fetched(&bob, &fetched);
        let applied = BTreeMap::from([("a".to_owned(), 2), ("b".to_owned(), 3)]);
        counters.merged("site 00", &Outcome::Done(MergeReport { applied, ..MergeReport::default() }));
        let counted = counters.of([&alice].into_iter());
        let of_alice = &counted[&Some(alice.clone())];
        assert_eq!((of_alice.fetches, of_alice.changes, of_alice.bytes), (2, 6, 14));
        assert_eq!(of_alice.failures, BTreeMap::from([(ErrorKind::Unreachable, 1)]));
        assert_eq!((counted[&None].merged, counted.len()), (5, 2));
        assert_eq!(counters.of([&bob].into_iter())[&Some(bob)], Counted::default());
    }
}
