//! `status`: where the repository stands, from what is known here; asks no remote.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension};

use super::{
    OtherSiteReport, RemoteStatusReport, Repository, State, StateError, StatusReport,
    digest::{Digests, RemoteDigest},
    verify::whole_versions,
    way,
};
use crate::{
    Error,
    changeset::SiteId,
    config::{Remote, RemoteName},
    database::{Database, Digest, LeftOut},
};

/// That all changes up to a version can be sent is noted when so many more were looked at.
const NOTED_EACH: i64 = 100;

/// A digest that is so many records behind is not brought forward by a look at the status.
const MOST_CHANGED: u32 = 10_000;

impl Repository {
    /// Where the repository stands. `serving` says whether its daemon runs.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Database`], [`Error::State`], [`Error::Node`].
    pub async fn status(&self, serving: bool) -> Result<StatusReport, Error> {
        self.blocking(move |repository| {
            let config = repository.config()?;
            let database = repository.database_to_read()?;
            let state = repository.state_to_read()?;
            let schema = database.schema_fingerprint()?;
            let sources = Sources::new(repository, &state, &database)?;
            let remotes = config
                .remotes
                .iter()
                .map(|(name, remote)| sources.status_of(name, remote, &schema))
                .collect::<Result<_, _>>()?;
            let others = sources.others(config.remotes.iter())?;
            let unsent = repository.unsent(&database)?;
            Ok(StatusReport {
                database: repository.inner.layout.database().display().to_string(),
                site_id: database.site_id()?.to_string(),
                version: database.version()?,
                tables: database.tables()?.into_iter().map(|table| table.name).collect(),
                unreadable: database.unreadable_tables()?,
                address: repository.address()?.map(|address| address.to_string()),
                access: config.access,
                kept_private: config.kept_private.map(|why| why.to_string()),
                serving,
                dropped: repository.dropped(),
                unsent,
                remotes,
                others,
            })
        })
        .await
    }
}

impl Repository {
    /// The changes of the own database that cannot be sent. Looks at what was written since all could. Blocks.
    fn unsent(&self, database: &Database) -> Result<LeftOut, Error> {
        let mut state = self.state_to_read()?;
        let version = database.version()?;
        let sendable = Some(state.sendable()?).filter(|sendable| *sendable <= version).unwrap_or(0);
        let unsent = database.unsendable_after(sendable)?;
        if unsent.is_empty() && version >= sendable + NOTED_EACH && !self.has_fixed_state() {
            state.note_sendable(version)?;
        }
        Ok(unsent)
    }
}

impl State {
    /// Up to which version of the database every change was found fit to be sent.
    fn sendable(&self) -> Result<i64, StateError> {
        let version = |connection: &Connection| {
            connection.query_row("SELECT sendable FROM home", [], |row| row.get(0)).optional()
        };
        Ok(self.read(version)?.unwrap_or(0))
    }

    fn note_sendable(&mut self, version: i64) -> Result<(), StateError> {
        self.write(|t| t.execute("UPDATE home SET sendable = ?1", [version]).map(drop))
    }
}

/// What is looked at for each remote.
struct Sources<'a> {
    repository: &'a Repository,
    state: &'a State,
    database: &'a Database,
    digests: Option<(Digests, Option<Digest>)>,
}

impl<'a> Sources<'a> {
    fn new(repository: &'a Repository, state: &'a State, database: &'a Database) -> Result<Self, Error> {
        // Nobody has told of a digest before there is a cache.
        let is_there = repository.layout().digests().exists() && !repository.has_fixed_state();
        let digests = is_there.then(|| repository.kept_digest(database, MOST_CHANGED)).transpose()?.flatten();
        Ok(Self { repository, state, database, digests })
    }

    /// Sites that are none of the remotes, with something of them in the inbox or waiting, or of which a merge failed.
    fn others<'r>(
        &self,
        remotes: impl Iterator<Item = (&'r RemoteName, &'r Remote)>,
    ) -> Result<Vec<OtherSiteReport>, Error> {
        let state = self.state;
        let mut others: BTreeSet<SiteId> = state.inbox_sites()?.into_iter().chain(state.waiting_sites()?).collect();
        others.extend(state.merge_failures()?.into_iter().map(|(site, _)| site));
        for (name, remote) in remotes {
            if let Some(site) = state.contact(name.as_str(), &remote.address)?.site_id {
                others.remove(&site);
            }
        }
        let report = |site: SiteId| {
            let (waiting, reasons) = state.waiting_changes(&site)?;
            let (unmerged, merge_error) = (state.inbox_changes(&site)?, state.merge_failure(&site)?);
            Ok(OtherSiteReport { site: site.to_string(), unmerged, waiting, reasons, merge_error })
        };
        others.into_iter().map(report).collect()
    }

    fn status_of(&self, name: &RemoteName, remote: &Remote, schema: &[u8]) -> Result<RemoteStatusReport, Error> {
        let contact = self.state.contact(name.as_str(), &remote.address)?;
        let mut report = RemoteStatusReport {
            name: name.to_string(),
            address: remote.address.to_string(),
            sync: remote.sync,
            version: contact.db_version,
            last_contact: contact.last_contact,
            last_error: contact.last_error,
            last_error_at: contact.last_error_at,
            schema: self.state.differences(name, &remote.address)?.and_then(|known| known.now(schema)),
            left_out: self.state.left_out(name.as_str(), &remote.address)?,
            transfer: self.repository.inner.transfers.of(name),
            ..RemoteStatusReport::default()
        };
        let Some(site) = contact.site_id else { return Ok(report) };
        report.unmerged = self.state.inbox_changes(&site)?;
        report.merge_error = self.state.merge_failure(&site)?;
        (report.waiting, report.reasons) = self.state.waiting_changes(&site)?;
        let origin = way::origin(&remote.address, site);
        let merged = self.database.position(origin)?;
        report.merged_version = whole_versions(merged);
        report.fetched_version = whole_versions(self.state.reaches(origin)?.unwrap_or(merged).max(merged));
        let Some((digests, own)) = &self.digests else { return Ok(report) };
        let told = match digests.remote(name.as_str(), &remote.address) {
            // Whoever compares next makes it anew.
            Err(error) if error.is_damage() => None,
            told => told?.filter(|told| told.site == site),
        };
        report.known_version = told.as_ref().and_then(|told| told.known);
        let is_merged = report.unmerged == 0 && report.merged_version >= contact.db_version;
        let at = contact.db_version;
        report.identical = told.zip(own.as_ref()).and_then(|(told, own)| is_identical(&told, own, at, is_merged));
        // A digest is not of what cannot be read.
        if !report.left_out.is_empty() || !self.database.unreadable_tables()?.is_empty() {
            report.identical = report.identical.filter(|identical| !identical);
        }
        Ok(report)
    }
}

/// Whether a remote that was at version `at` when it last answered, and `told` its digest, has what is here. `is_merged`
/// says that all of that version is merged. `None` if it is not known: a digest tells of the two databases as they were
/// when it was made, so that they differ only follows if neither has had anything to merge or to pull since.
fn is_identical(told: &RemoteDigest, own: &Digest, at: Option<i64>, is_merged: bool) -> Option<bool> {
    if told.schema != own.mark.schema || Some(told.version) < at {
        return None;
    }
    let is_settled = is_merged && Some(told.version) == at && told.known >= Some(own.mark.version);
    let is_equal = told.total == own.total();
    (is_equal || is_settled).then_some(is_equal)
}
