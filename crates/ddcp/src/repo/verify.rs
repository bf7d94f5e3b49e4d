//! Comparing with remotes: whether both have the same, by digests, and mending what this side has lost.
//!
//! What a digest tells is on top of what versions tell. A repository that has merged everything of a remote has at least
//! what the remote has; if the digests differ all the same, either the remote lacks something, which it will fetch, or
//! records have vanished here. The second is mended by reading the remote from its start, and as somebody else, so that
//! it also gives what this repository wrote itself: merging what is there already changes nothing. That costs the transfer
//! of everything, so it is not done where each row that differs has changed here since the remote last pulled.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    FetchReport, Lock, Monitor, Outcome, PerRemote, Repository,
    digest::{Making, RemoteDigest},
    fetch::ReadFrom,
    in_order::in_order,
    way,
};
use crate::{
    Error, Failure,
    changeset::{Cursor, SiteId},
    config::{Remote, RemoteName, SyncMode},
    database::{Database, Digest, ToldRows},
    protocol::{ClientError, DatabaseDigest},
    transport::Address,
};

mod rows;

use rows::Both;
pub use rows::{DifferingRow, RowState};

/// How often the daemon looks for remotes to compare with.
const COMPARE: Duration = Duration::from_secs(30);

/// After how long a remote is asked again that did not tell its digest of the same version.
const RETRY: Duration = Duration::from_secs(600);

/// How often a remote that goes on writing is pulled from before it is compared with.
const MOST_PULLS: u32 = 3;

/// What became of a comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Whether both have the same, in the end.
    pub identical: bool,
    /// The version of this database that was compared.
    pub version: i64,
    /// The version of the remote's.
    pub remote_version: i64,
    /// What differed at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<Difference>,
    /// The records that were mended here, by table; absent if nothing was to be mended, or it was not to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mended: Option<BTreeMap<String, u64>>,
    /// What differs in the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Difference>,
    /// Up to which version of this database the remote has merged everything, if it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<i64>,
    /// Up to which version of the remote's everything is merged here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<i64>,
    /// Whether the remote has merged all of this database but what differs: it has yet to pull.
    #[serde(default)]
    pub ahead: bool,
    /// Tables of this database that were not compared, since they cannot be read by this program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
    /// Whether the remote has such tables.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unreadable_there: bool,
}

/// Where two databases differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The tables; empty if the remote has more tables than it can tell of.
    pub tables: Vec<String>,
    /// Of the 1024 ranges into which the rows are divided by their keys, how many differ: about as many as there are
    /// differing rows, while these are few.
    pub ranges: usize,
    /// Rows that differ, the first of them.
    #[serde(default)]
    pub rows: Vec<DifferingRow>,
    /// How many more are known to.
    #[serde(default)]
    pub more_rows: u64,
    /// In how many ranges that differ the remote did not tell its rows.
    #[serde(default)]
    pub untold_ranges: usize,
}

/// Both digests.
struct Compared {
    site: SiteId,
    own: Digest,
    told: DatabaseDigest,
    /// Up to which version of the remote's everything is merged here.
    merged: Option<i64>,
    unread: Unread,
}

/// What digests are not of.
struct Unread {
    /// Tables here.
    here: Vec<String>,
    /// Whether there are such at the remote: its schema is another one than this, that of its digest is not.
    there: bool,
}

impl Unread {
    fn of(database: &Database, there: &[u8]) -> Result<Self, Error> {
        let here = database.unreadable_tables()?;
        let there = here.is_empty() && database.schema_fingerprint()? != there;
        Ok(Self { here, there })
    }

    fn is_empty(&self) -> bool {
        self.here.is_empty() && !self.there
    }
}

/// What came of looking where the two differ.
#[derive(Default)]
struct Look {
    difference: Option<Difference>,
    /// Whether the remote has yet to pull what differs.
    ahead: bool,
}

impl Repository {
    /// Pulls from the remote `name`, or from all one after the other, and compares: this database is read as a whole. One
    /// that takes long holds up none of the others.
    /// Without `mend` it only compares, what is there now, and changes nothing, here or there. With it, what is missing
    /// here though it should not be is fetched again from the start.
    ///
    /// # Errors
    /// [`Error::Config`], and as [`Repository::fetch`]; what goes wrong with a remote is in its report.
    pub async fn verify(
        &self,
        name: Option<&str>,
        mend: bool,
        monitor: &Monitor,
    ) -> Result<Vec<PerRemote<VerifyReport>>, Error> {
        let chosen = self.chosen(name)?;
        let (_held, _lock) = match mend {
            true => (Some(self.hold().await?), None),
            false => (None, self.lock_for_node(&chosen)?),
        };
        let work = |(name, address): (RemoteName, Address)| async move {
            let report = match mend {
                true => Box::pin(self.verify_one(&name, &address, monitor)).await,
                false => Box::pin(self.check_one(&name, &address)).await.map_err(|error| error.report()),
            };
            let outcome = report.map_or_else(Outcome::Failed, Outcome::Done);
            PerRemote { remote: name.to_string(), outcome }
        };
        Ok(in_order(&self.inner.options.host, chosen.into_iter().map(work)).await)
    }

    /// The lock, where one of the remotes is reached by the node of this repository, which one process at a time may
    /// start.
    fn lock_for_node(&self, chosen: &[(RemoteName, Address)]) -> Result<Option<Lock>, Error> {
        let needs_node = chosen.iter().any(|(_, address)| matches!(address, Address::Veilid(_)));
        if !needs_node || self.is_offline() {
            return Ok(None);
        }
        self.inner.lock.share().map_or_else(|| self.try_lock(), Ok).map(Some)
    }

    async fn verify_one(
        &self,
        name: &RemoteName,
        address: &Address,
        monitor: &Monitor,
    ) -> Result<VerifyReport, Failure> {
        let mut compared = self.pull_and_compare(name, address, Making::Anew, monitor).await?;
        let found = Box::pin(self.look(address, &compared, Self::database)).await.map_err(|error| error.report())?;
        let mut left = Look { difference: found.difference.clone(), ahead: found.ahead };
        let mut mended = None;
        if found.difference.is_some() && !found.ahead {
            tracing::info!(remote = %name, "digests differ; reading the remote from its start");
            self.fetch_from(ReadFrom::Start, name, address, monitor).await?;
            mended = Some(self.merge_one(name).await?);
            compared = self.pull_and_compare(name, address, Making::Kept, monitor).await?;
            left = Box::pin(self.look(address, &compared, Self::database)).await.map_err(|error| error.report())?;
        }
        let mut report = VerifyReport::new(&compared, left);
        (report.found, report.mended) = (found.difference, mended);
        Ok(report)
    }

    /// Compares what there is, and writes nothing.
    async fn check_one(&self, name: &RemoteName, address: &Address) -> Result<VerifyReport, Error> {
        let limits = self.blocking(Self::config).await?.limits;
        let client = self.client(address, &limits).await?;
        let status = client.status().await.map_err(|error| self.explain(error))?;
        let site = SiteId::from_bytes(&status.site_id).map_err(|error| Error::BadPack(error.to_string()))?;
        let (asked, there) = (address.clone(), status.schema);
        let (own, merged, unread) = self
            .blocking(move |repository| {
                let database = repository.database_to_look_at()?;
                let merged = whole_versions(database.position(way::origin(&asked, site))?);
                Ok((database.digest()?, merged, Unread::of(&database, &there)?))
            })
            .await?;
        if own.mark.site == site {
            return Err(Error::SameSite(site));
        }
        let told = client.digest(&own.mark.site).await.map_err(|error| self.explain(error))?;
        check_tables(name, &told, &own)?;
        let compared = Compared { site, own, told, merged, unread };
        let look = Box::pin(self.look(address, &compared, Self::database_to_look_at)).await?;
        Ok(VerifyReport::new(&compared, look))
    }

    /// Finds where the two differ, and asks the remote which rows those are.
    async fn look(
        &self,
        address: &Address,
        compared: &Compared,
        open: fn(&Self) -> Result<Database, Error>,
    ) -> Result<Look, Error> {
        let Some(mut difference) = difference(compared) else { return Ok(Look::default()) };
        let (known, site) = (compared.told.known, compared.site);
        let told = self.told_rows(address, compared).await?;
        let (schema, version) = (compared.own.mark.schema, compared.own.mark.version);
        self.blocking(move |repository| {
            let database = open(repository)?;
            let Some(told) = told else {
                let ahead = known.is_some_and(|known| known < version)
                    && database.has_written_after(known.unwrap_or(0), &site)?;
                difference.untold_ranges = difference.ranges;
                return Ok(Look { difference: Some(difference), ahead });
            };
            let own = database.rows_in(&told.ranges, &|_, _| true)?;
            let tables = database.tables()?;
            // What was written meanwhile is no difference that was found.
            let ahead = own.schema == schema
                && Both { own: &own, told: &told, tables: &tables }.describe(
                    &mut difference,
                    &database,
                    known.unwrap_or(0),
                    &site,
                )?;
            Ok(Look { difference: Some(difference), ahead })
        })
        .await
    }

    /// The remote's rows in the ranges that differ; `None` if it knows no such question, or has other rows by now.
    async fn told_rows(&self, address: &Address, compared: &Compared) -> Result<Option<ToldRows>, Error> {
        let limits = self.blocking(Self::config).await?.limits;
        let told = match self.client(address, &limits).await?.rows(&differing(compared)).await {
            Ok(told) => told,
            Err(ClientError::NotKnown) => return Ok(None),
            Err(error) => return Err(self.explain(error)),
        };
        let is_of_digest = told.version == compared.told.db_version && told.schema == compared.own.mark.schema;
        Ok(is_of_digest.then_some(told))
    }

    /// Compares once nothing is known that is not merged here.
    async fn pull_and_compare(
        &self,
        name: &RemoteName,
        address: &Address,
        mut making: Making,
        monitor: &Monitor,
    ) -> Result<Compared, Failure> {
        let mut pulls = 0;
        loop {
            let fetched = self.fetch_from(ReadFrom::Position, name, address, monitor).await?;
            self.merge_one(name).await?;
            let compared = Box::pin(self.compare(name, address, making)).await.map_err(|error| error.report())?;
            pulls += 1;
            let has_moved = compared.told.db_version > fetched.remote_version;
            if !has_moved || pulls == MOST_PULLS || difference(&compared).is_none() {
                return Ok(compared);
            }
            making = Making::Kept;
        }
    }

    async fn fetch_from(
        &self,
        from: ReadFrom,
        name: &RemoteName,
        address: &Address,
        monitor: &Monitor,
    ) -> Result<FetchReport, Failure> {
        let meter = monitor.meter(name.as_str());
        done(Box::pin(self.fetch_and_note(name.clone(), address.clone(), from, meter)).await)
    }

    /// Merges what was fetched from the remote; the records that changed, by table.
    async fn merge_one(&self, name: &RemoteName) -> Result<BTreeMap<String, u64>, Failure> {
        let mut changed = BTreeMap::new();
        for report in self.merge(Some(name.as_str())).await.map_err(|error| error.report())? {
            changed.extend(done(report)?.applied);
        }
        Ok(changed)
    }

    /// Asks the remote for its digest, keeps that, and makes the own.
    async fn compare(&self, name: &RemoteName, address: &Address, making: Making) -> Result<Compared, Error> {
        let limits = self.blocking(Self::config).await?.limits;
        let held = self.hold().await?;
        let alone = self.inner.digesting.lock().await;
        let own = self.blocking(move |repository| repository.own_digest(&held, making)).await?;
        drop(alone);
        let own = own.ok_or_else(|| Error::Interrupted("no digest was made".into()))?;
        let client = self.client(address, &limits).await?;
        let status = client.status().await.map_err(|error| self.explain(error))?;
        let site = SiteId::from_bytes(&status.site_id).map_err(|error| Error::BadPack(error.to_string()))?;
        let told = client.digest(&own.mark.site).await.map_err(|error| self.explain(error))?;
        self.note_told(name, address, &told).await?;
        check_tables(name, &told, &own)?;
        let address = address.clone();
        let (merged, unread) = self
            .blocking(move |repository| {
                let database = repository.database()?;
                let merged = whole_versions(database.position(way::origin(&address, site))?);
                Ok((merged, Unread::of(&database, &status.schema)?))
            })
            .await?;
        Ok(Compared { site, own, told, merged, unread })
    }

    async fn note_told(&self, name: &RemoteName, address: &Address, told: &DatabaseDigest) -> Result<(), Error> {
        let (version, schema, total, known) = (told.db_version, told.schema.clone(), total(told), told.known);
        let (name, address) = (name.clone(), address.clone());
        self.blocking(move |repository| {
            let Some(site) = repository.state()?.contact(name.as_str(), &address)?.site_id else { return Ok(()) };
            let told = RemoteDigest { site, version, schema, total, known };
            repository.with_digests(|digests| digests.note_remote(name.as_str(), &address, &told))
        })
        .await
    }

    /// Asks the remotes on the network that are followed for their digests, now and then and only those of whose current
    /// version everything is merged here, until the future is dropped.
    pub(crate) async fn keep_comparing(&self) {
        let mut tried = HashMap::new();
        loop {
            self.inner.options.host.sleep(COMPARE).await;
            if let Err(error) = self.compare_settled(&mut tried).await {
                tracing::debug!(%error, "remotes cannot be compared with");
            }
        }
    }

    /// Compares with the remotes with which it is worth it, but those that were `tried` not long ago at the same version:
    /// they do not answer, or know no digests.
    async fn compare_settled(&self, tried: &mut HashMap<RemoteName, (i64, Instant)>) -> Result<(), Error> {
        let host = &self.inner.options.host;
        for Settled { name, address, version } in self.blocking(Self::settled).await? {
            if tried.get(&name).is_some_and(|(tried, when)| *tried == version && host.since(*when) < RETRY) {
                continue;
            }
            tried.insert(name.clone(), (version, host.now()));
            if let Err(error) = Box::pin(self.compare(&name, &address, Making::Kept)).await {
                tracing::debug!(remote = %name, %error, "a remote cannot be compared with");
            }
        }
        Ok(())
    }

    /// The followed remotes whose digest, as it would be now, is not known and worth asking for: versions do not tell
    /// already that it is another one. A remote that is a file keeps no digest; making one reads all of it. Blocks.
    fn settled(&self) -> Result<Vec<Settled>, Error> {
        let has_connector = self.inner.options.connector.is_some();
        let is_asked = |remote: &Remote| {
            remote.sync != SyncMode::Manual && (has_connector || matches!(remote.address, Address::Veilid(_)))
        };
        let mut settled = Vec::new();
        let asked: Vec<_> = self.config()?.remotes.into_iter().filter(|(_, remote)| is_asked(remote)).collect();
        if asked.is_empty() {
            return Ok(settled);
        }
        let (state, database, digests) = (self.state()?, self.database()?, self.digests()?);
        for (name, Remote { address, .. }) in asked {
            let contact = state.contact(name.as_str(), &address)?;
            let (Some(site), Some(version), None) = (contact.site_id, contact.db_version, contact.last_error) else {
                continue;
            };
            let is_merged = database.position(way::origin(&address, site))? >= Cursor::whole(version)
                && state.inbox_changes(&site)? == 0
                && state.waiting_changes(&site)?.0 == 0;
            let is_told = digests.remote(name.as_str(), &address)?.is_some_and(|told| told.version == version);
            if is_merged && !is_told {
                settled.push(Settled { name, address, version });
            }
        }
        Ok(settled)
    }
}

/// A remote of whose `version` everything is merged here.
struct Settled {
    name: RemoteName,
    address: Address,
    version: i64,
}

fn done<T>(report: PerRemote<T>) -> Result<T, Failure> {
    match report.outcome {
        Outcome::Done(done) => Ok(done),
        Outcome::Failed(failure) => Err(failure),
    }
}

/// The sum of all rows.
fn total(told: &DatabaseDigest) -> u128 {
    sums(&told.ranges).fold(0, u128::wrapping_add)
}

fn sums(bytes: &[u8]) -> impl Iterator<Item = u128> {
    bytes.chunks_exact(16).map(|sum| u128::from_le_bytes(std::array::from_fn(|at| sum[at])))
}

fn check_tables(name: &RemoteName, told: &DatabaseDigest, own: &Digest) -> Result<(), Error> {
    if told.schema == own.mark.schema { Ok(()) } else { Err(Error::OtherTables(name.to_string())) }
}

impl VerifyReport {
    fn new(compared: &Compared, Look { difference, ahead }: Look) -> Self {
        Self {
            identical: difference.is_none() && compared.unread.is_empty(),
            version: compared.own.mark.version,
            remote_version: compared.told.db_version,
            found: None,
            mended: None,
            left: difference,
            known: compared.told.known,
            merged: compared.merged,
            ahead,
            unreadable: compared.unread.here.clone(),
            unreadable_there: compared.unread.there,
        }
    }

    /// Whether the remote has changes that are not merged here.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.merged.unwrap_or(0) < self.remote_version
    }
}

/// The ranges that differ.
fn differing(Compared { own, told, .. }: &Compared) -> Vec<usize> {
    let sums = own.ranges.iter().zip(sums(&told.ranges)).enumerate();
    sums.filter(|(_, (own, told))| *own != told).map(|(range, _)| range).collect()
}

/// Where the two differ; `None` if they are the same.
fn difference(compared: &Compared) -> Option<Difference> {
    let ranges = differing(compared).len();
    if ranges == 0 {
        return None;
    }
    let Compared { own, told, .. } = compared;
    // The schemas are the same, so the tables are.
    let tables = own.tables.iter().zip(sums(&told.tables)).filter(|((_, own), told)| *own != told);
    Some(Difference { tables: tables.map(|((name, _), _)| name.clone()).collect(), ranges, ..Difference::default() })
}

/// Up to which version everything of a site is here, whose position is `position`.
pub(super) fn whole_versions(position: Cursor) -> Option<i64> {
    match position {
        Cursor::ZERO => None,
        position if position == Cursor::whole(position.version) => Some(position.version),
        position => Some(position.version - 1),
    }
}

/// A site that wrote nothing, as which everything is given.
pub(super) fn nobody(bytes: [u8; 16]) -> Result<SiteId, Error> {
    SiteId::from_bytes(&bytes).map_err(|error| Error::Interrupted(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;
    use crate::{
        repo::{Layout, Options},
        transport::{BoxFuture, Connector, Handler, LocalPeer, Peer, TransportError},
    };

    /// The way to one other repository, on which calls are counted.
    struct Way {
        there: Arc<dyn Handler>,
        calls: AtomicU64,
    }

    impl Connector for Way {
        fn connect(&self, _: &Address) -> BoxFuture<'_, Result<Arc<dyn Peer>, TransportError>> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            let peer: Arc<dyn Peer> = Arc::new(LocalPeer::new(Arc::clone(&self.there)));
            Box::pin(async move { Ok(peer) })
        }
    }

    fn repository(dir: &tempfile::TempDir, name: &str, connector: Option<Arc<dyn Connector>>) -> Repository {
        let layout = Layout::new(&dir.path().join(name), None).unwrap();
        Repository::init_with(layout, Options { connector, ..Options::default() }).unwrap()
    }

    fn run(repository: &Repository, sql: &str) {
        repository.database().unwrap().connection().execute_batch(sql).unwrap();
    }

    async fn identical(repository: &Repository) -> Option<bool> {
        repository.status(true).await.unwrap().remotes[0].identical
    }

    #[tokio::test]
    async fn followed_remotes_are_compared_with_once_versions_leave_it_open() {
        let dir = tempfile::tempdir().unwrap();
        let b = repository(&dir, "b.db", None);
        let way = Arc::new(Way { there: b.handler(), calls: AtomicU64::new(0) });
        let a = repository(&dir, "a.db", Some(way.clone()));
        let table = "CREATE TABLE t (id TEXT NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('t')";
        for repository in [&a, &b] {
            run(repository, table);
        }
        run(&b, "INSERT INTO t VALUES ('1', 1), ('2', 2)");
        a.add_remote("b", "b.db", SyncMode::Manual).unwrap();
        a.pull(None).await.unwrap();
        let calls = || way.calls.load(Ordering::SeqCst);
        let (mut tried, pulled) = (HashMap::new(), calls());
        a.compare_settled(&mut tried).await.unwrap();
        assert_eq!((calls(), identical(&a).await), (pulled, None), "nobody asked for it");

        a.set_remote_sync("b", SyncMode::Auto).unwrap();
        for _ in 0..2 {
            a.compare_settled(&mut tried).await.unwrap();
            assert_eq!((calls(), identical(&a).await), (pulled + 1, Some(true)), "asked once a version");
        }
        run(&b, "INSERT INTO t VALUES ('3', 3)");
        a.fetch(None).await.unwrap();
        let fetched = calls();
        a.compare_settled(&mut tried).await.unwrap();
        assert_eq!(calls(), fetched, "versions tell already that they differ");
        assert_eq!(identical(&a).await, None);
        a.merge(None).await.unwrap();
        a.compare_settled(&mut tried).await.unwrap();
        assert_eq!((calls(), identical(&a).await), (fetched + 1, Some(true)));
    }
}
