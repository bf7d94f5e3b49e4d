//! `merge`: what lies in the inbox goes into the user's database.
//!
//! Each stretch is one transaction on the user's database, which also moves the position of its site; only then
//! does the stretch leave the inbox. A crash in between repeats a merge, and merges are idempotent.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{Event, LogEvent, MergeReport, Monitor, Outcome, PerRemote, Repository, State};
use crate::{
    Error,
    changeset::{self, Cursor, Pack, SiteId},
    config::RemoteName,
    database::{Database, Refused},
    transport::Address,
};

impl Repository {
    /// Merges what was fetched from the remote `name`, or everything that was fetched.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Database`], [`Error::State`], [`Error::NothingFetched`]. What concerns one
    /// remote's changes only is in its report.
    pub async fn merge(&self, name: Option<&str>) -> Result<Vec<PerRemote<MergeReport>>, Error> {
        let _lock = self.hold().await?;
        let alone = self.inner.merging.clone().lock_owned().await;
        let chosen = self.chosen(name)?;
        let everything = name.is_none();
        self.blocking(move |repository| {
            // Merging goes on when the caller is gone, and keeps others out to its end.
            let _alone = alone;
            let state = repository.state()?;
            let sites = sites(&state, &chosen, everything)?;
            let mut merger = Merger { repository, database: repository.database()?, state };
            let merge = |(label, site): (String, SiteId)| {
                let began = Timestamp::now();
                let outcome = match merger.merge_site(&site) {
                    Ok(report) => {
                        match report.changes {
                            0 => tracing::debug!(remote = %label, waiting = report.waiting, "merged nothing new"),
                            changes => tracing::info!(remote = %label, changes, waiting = report.waiting, "merged"),
                        }
                        Outcome::Done(report)
                    }
                    Err(error) => {
                        tracing::warn!(remote = %label, %error, "merge failed");
                        Outcome::Failed(error.report())
                    }
                };
                repository.inner.counters.merged(&label, &outcome);
                merger.state.note_event(&label, began, LogEvent::of_merge(&outcome));
                repository.tell(Event::of_merge(&label, &outcome));
                PerRemote { remote: label, outcome }
            };
            let reports = sites.into_iter().map(merge).collect();
            merger.state.note_version(merger.database.version()?)?;
            Ok(reports)
        })
        .await
    }

    /// Fetches from the remote `name` or from all, then merges what came.
    ///
    /// # Errors
    /// As [`Repository::merge`]; what goes wrong with a remote is in its report.
    pub async fn pull(&self, name: Option<&str>) -> Result<super::PullReport, Error> {
        self.pull_watched(name, &Monitor::default()).await
    }

    /// As [`Repository::pull`]; `monitor` shows how far the fetch is.
    ///
    /// # Errors
    /// As [`Repository::pull`].
    pub async fn pull_watched(&self, name: Option<&str>, monitor: &Monitor) -> Result<super::PullReport, Error> {
        let _lock = self.hold().await?;
        let fetched = self.fetch_watched(name, monitor).await?;
        let any_came = fetched.iter().any(|remote| matches!(remote.outcome, Outcome::Done(_)));
        let merged = if name.is_none() || any_came { self.merge(name).await? } else { Vec::new() };
        Ok(super::PullReport { fetched, merged })
    }
}

/// The sites to merge from, with the names to call them by. Of all, also those of which no remote tells any more.
fn sites(state: &State, chosen: &[(RemoteName, Address)], everything: bool) -> Result<Vec<(String, SiteId)>, Error> {
    let mut sites = BTreeMap::new();
    for (name, address) in chosen {
        match state.contact(name.as_str(), address)?.site_id {
            Some(site) => {
                sites.entry(site).or_insert_with(|| name.to_string());
            }
            None if everything => {}
            None => return Err(Error::NothingFetched(name.to_string())),
        }
    }
    if everything {
        for site in state.inbox_sites()?.into_iter().chain(state.waiting_sites()?) {
            sites.entry(site).or_insert_with(|| format!("site {site}"));
        }
    }
    let mut sites: Vec<_> = sites.into_iter().map(|(site, name)| (name, site)).collect();
    sites.sort();
    Ok(sites)
}

/// Reasons that are kept for one pack.
const MOST_REASONS: usize = 20;

struct Merger<'a> {
    repository: &'a Repository,
    database: Database,
    state: State,
}

impl Merger<'_> {
    /// Costs what the inbox and the waiting changes of the site hold.
    fn merge_site(&mut self, site: &SiteId) -> Result<MergeReport, Error> {
        let mut report = MergeReport::default();
        // Drops what lies behind a gap: a database that was restored from a backup lacks what comes before it.
        self.state.fetched(site, self.database.position(site)?)?;
        let waited_before = self.state.last_waiting(site)?;
        while let Some(stretch) = self.state.next_stretch(site)? {
            match &stretch.pack {
                Some(bytes) => {
                    let pack = self.stored(site, bytes)?;
                    self.merge_pack(&pack, Some(stretch.to), &mut report)?;
                }
                None => self.advance(site, stretch.to)?,
            }
            self.state.remove_stretch(stretch.id)?;
            self.repository.check_ending()?;
        }
        self.retry_waiting(site, waited_before, &mut report)?;
        (report.waiting, report.reasons) = self.state.waiting_changes(site)?;
        Ok(report)
    }

    /// Merges one pack; what does not fit is put aside before the merge is committed. Says how many were.
    fn merge_pack(&mut self, pack: &Pack, position: Option<Cursor>, report: &mut MergeReport) -> Result<usize, Error> {
        let state = &mut self.state;
        let mut keep = |refused: &[Refused]| Ok(keep_waiting(state, pack, refused)?);
        let merged = self.database.merge(&pack.source, &pack.changes, &pack.tables, position, &mut keep)?;
        report.changes += merged.changes as u64;
        for (name, table) in merged.tables.iter().filter(|(_, table)| table.applied > 0) {
            *report.applied.entry(name.clone()).or_default() += table.applied as u64;
        }
        Ok(merged.refused())
    }

    /// A pack of the inbox. One that was damaged on disk is dropped with what follows it, to be fetched again.
    fn stored(&mut self, site: &SiteId, bytes: &[u8]) -> Result<Pack, Error> {
        decode(bytes).or_else(|error| {
            self.state.drop_inbox(site)?;
            Err(error)
        })
    }

    fn advance(&mut self, site: &SiteId, position: Cursor) -> Result<(), Error> {
        self.database.merge(site, &[], &[], Some(position), &mut |_| Ok(()))?;
        Ok(())
    }

    /// Tries the changes that waited before this merge. Those that still do not fit are kept again, as a pack of
    /// their own unless none fitted.
    fn retry_waiting(&mut self, site: &SiteId, up_to: i64, report: &mut MergeReport) -> Result<(), Error> {
        let mut after = 0;
        while let Some(waiting) = self.state.next_waiting(site, after)?.filter(|waiting| waiting.id <= up_to) {
            after = waiting.id;
            let pack = decode(&waiting.pack)?;
            let refused = self.merge_pack(&pack, None, report)?;
            if refused < pack.changes.len() {
                self.state.remove_waiting(waiting.id)?;
            }
        }
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Result<Pack, Error> {
    // How large it may be was looked at when it was fetched.
    let limits = changeset::Limits { raw_bytes: usize::MAX, ..changeset::Limits::default() };
    Pack::decode(bytes, &limits).map_err(|error| Error::DamagedPack(error.to_string()))
}

/// Puts changes that do not fit aside, with the reasons a person can act on.
fn keep_waiting(state: &mut State, pack: &Pack, refused: &[Refused]) -> Result<(), Error> {
    let reasons: BTreeSet<String> = refused
        .iter()
        // The peer chose the names, and they go to a terminal.
        .map(|refused| format!("table {}: {}", refused.change.table, refused.reason).escape_debug().to_string())
        .collect();
    let more = reasons.len().saturating_sub(MOST_REASONS);
    let mut reasons: Vec<String> = reasons.into_iter().take(MOST_REASONS).collect();
    if more > 0 {
        reasons.push(format!("and {more} more reasons"));
    }
    let changes: Vec<_> = refused.iter().map(|refused| refused.change.clone()).collect();
    let names: BTreeSet<&str> = changes.iter().map(|change| change.table.as_ref()).collect();
    let tables = pack.tables.iter().filter(|table| names.contains(table.name.as_str())).cloned().collect();
    let kept = Pack { source: pack.source, from: pack.from, to: pack.to, tables, changes };
    state.keep_waiting(&pack.source, &kept.encode(), kept.changes.len(), &reasons.join("\n"))?;
    Ok(())
}
