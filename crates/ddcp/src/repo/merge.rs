//! `merge`: what lies in the inbox goes into the user's database.
//!
//! Each stretch is merged in slices; the last transaction on the user's database also moves the position of its site, and only
//! then does the stretch leave the inbox. A crash in between repeats a merge, and merges are idempotent.
//!
//! What does not fit waits, as whole rows, and is tried again at the end of this merge and of every later one before
//! which something has changed that could let it in: the schema, or the data where a constraint or a trigger refused it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    iter::Peekable,
};

use jiff::Timestamp;

use self::together::Together;
use super::{
    Event, LogEvent, MergeReport, Outcome, PerRemote, Repository, State,
    state::{Cause, Kept, Stamp},
};
use crate::{
    Error,
    changeset::{self, Change, Cursor, Pack, PackError, SiteId, Unpacked},
    config::RemoteName,
    database::{self, Database, Origin, Reason, Refused},
    text::shown_of,
    transport::Address,
};

mod together;

impl Repository {
    /// Merges what was fetched from the remote `name`, or everything that was fetched.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Database`], [`Error::State`], [`Error::NothingFetched`]. What concerns one
    /// remote's changes only is in its report.
    pub async fn merge(&self, name: Option<&str>) -> Result<Vec<PerRemote<MergeReport>>, Error> {
        let (chosen, everything) = (self.chosen(name)?, name.is_none());
        self.merge_sites(move |state| sites(state, &chosen, everything)).await
    }

    /// Merges what was fetched from the sites that `choose` chooses.
    pub(super) async fn merge_sites(
        &self,
        choose: impl FnOnce(&State) -> Result<Vec<(String, SiteId)>, Error> + Send + 'static,
    ) -> Result<Vec<PerRemote<MergeReport>>, Error> {
        let held = self.hold().await?;
        let alone = self.inner.merging.clone().lock_owned().await;
        self.blocking(move |repository| {
            // Merging goes on when the caller is gone, and keeps others out to its end.
            let _alone = alone;
            let state = repository.state()?;
            let sites = choose(&state)?;
            let mut merger = Merger { repository, database: repository.own_database(&held)?, state };
            let reports = merger.merge(sites);
            merger.state.note_version(merger.database.version()?)?;
            Ok(reports)
        })
        .await
    }

    /// Tries again what waits and was sent by the remote of this name, or the site with this id in hexadecimal, or by
    /// anybody; nothing else is merged.
    ///
    /// # Errors
    /// [`Error::Config`] where there is no such remote; as [`Repository::merge`].
    pub async fn waiting_retry(&self, remote: Option<&str>) -> Result<Vec<PerRemote<MergeReport>>, Error> {
        let held = self.hold().await?;
        let alone = self.inner.merging.clone().lock_owned().await;
        let remote = remote.map(str::to_owned);
        self.blocking(move |repository| {
            let _alone = alone;
            let state = repository.state()?;
            let sites = repository.waiting_senders(&state, remote.as_deref())?;
            let mut merger = Merger { repository, database: repository.own_database(&held)?, state };
            let reports = merger.retry_sites(sites)?;
            merger.state.note_version(merger.database.version()?)?;
            Ok(reports)
        })
        .await
    }
}

/// The sites to merge from, with the names to call them by. Of all, also those of which no remote tells any more.
pub(super) fn sites(
    state: &State,
    chosen: &[(RemoteName, Address)],
    everything: bool,
) -> Result<Vec<(String, SiteId)>, Error> {
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

/// Reasons that are kept apart for one pack, while not much of its site waits.
const MOST_REASONS: usize = 20;

/// Kept packs of a site above which the changes of one pack are kept together, whatever their reasons: each place takes
/// more than a small change.
const MANY_PLACES: u64 = 1000;

/// Bytes of the name of a table, and of a whole reason, that are kept.
const MOST_NAME: usize = 100;
const MOST_REASON: usize = 400;

/// Bytes of packs that wait and are tried again together, so that a row of which each brings a part is whole.
const TOGETHER: u64 = 4 << 20;

/// How often what waits is tried in one merge, while one row lets in another.
const ROUNDS: usize = 4;

/// The merge of what one site sent.
struct Work {
    label: String,
    site: SiteId,
    began: Timestamp,
    /// The last place taken by what waited of the site before.
    waited: i64,
    report: Result<MergeReport, Error>,
}

struct Merger<'a> {
    repository: &'a Repository,
    database: Database,
    state: State,
}

impl Merger<'_> {
    /// Merges the inboxes of the sites, then tries what waits of them. What goes wrong with one stops no other.
    fn merge(&mut self, sites: Vec<(String, SiteId)>) -> Vec<PerRemote<MergeReport>> {
        let mut works: Vec<Work> = sites.into_iter().map(|(label, site)| self.merge_inbox(label, site)).collect();
        if let Err(error) = self.retry_all(&mut works) {
            tracing::warn!(%error, "what waits could not be tried again");
        }
        works.into_iter().map(|work| self.finish(work)).collect()
    }

    /// Tries what waits of the sites, whatever it was tried with before.
    fn retry_sites(&mut self, sites: Vec<(String, SiteId)>) -> Result<Vec<PerRemote<MergeReport>>, Error> {
        let mut works = Vec::new();
        for (label, site) in sites {
            self.state.forget_tries(Some(&site))?;
            let (began, report) = (Timestamp::now(), Ok(MergeReport::default()));
            works.push(Work { label, site, began, waited: i64::MAX, report });
        }
        self.retry_all(&mut works)?;
        Ok(works.into_iter().map(|work| self.finish(work)).collect())
    }

    fn merge_inbox(&mut self, label: String, site: SiteId) -> Work {
        let began = Timestamp::now();
        let waited = self.state.waiting(Some(&site)).map(|waiting| waiting.last().map_or(0, |last| last.id));
        let mut report = MergeReport::default();
        let (waited, report) = match waited {
            Ok(waited) => (waited, self.merge_stretches(&site, &mut report).map(|()| report)),
            Err(error) => (0, Err(error.into())),
        };
        Work { label, site, began, waited, report }
    }

    /// Costs what the inbox of the site holds.
    fn merge_stretches(&mut self, site: &SiteId, report: &mut MergeReport) -> Result<(), Error> {
        // Drops what lies behind a gap: a database that was restored from a backup lacks what comes before it.
        for origin in self.state.inbox_origins(site)? {
            self.state.fetched(origin, self.database.position(origin)?)?;
        }
        while let Some(stretch) = self.state.next_stretch(site)? {
            let origin = Origin { site: *site, way: stretch.way };
            match &stretch.pack {
                Some(bytes) => {
                    let pack = self.stored(origin, bytes)?;
                    report.changes += pack.changes.len() as u64;
                    self.merge_pack(origin, &pack, Some(stretch.to), report)?;
                }
                None => self.advance(origin, stretch.to)?,
            }
            self.state.remove_stretch(stretch.id)?;
            self.repository.check_ending()?;
        }
        Ok(())
    }

    /// Merges one pack; what does not fit is put aside before the merge is committed. Gives its places.
    fn merge_pack(
        &mut self,
        origin: Origin,
        pack: &Pack,
        position: Option<Cursor>,
        report: &mut MergeReport,
    ) -> Result<Vec<i64>, Error> {
        let schema = self.database.schema_stamp()?;
        let (state, mut kept) = (&mut self.state, Vec::new());
        let mut keep = |refused: &[Refused]| {
            kept = keep_waiting(state, &origin.site, pack, refused, &schema)?;
            Ok(())
        };
        let merged = self.database.merge(origin, &pack.changes, &pack.tables, position, &mut keep)?;
        add(report, &merged);
        Ok(kept)
    }

    /// A pack of the inbox. One that was damaged on disk, or is not valid, is dropped with what follows it, to be fetched
    /// again or refused then.
    fn stored(&mut self, origin: Origin, bytes: &[u8]) -> Result<Unpacked, Error> {
        let unpacked = unpack(bytes);
        if matches!(unpacked, Err(Error::DamagedPack(_) | Error::BadPack(_))) {
            self.state.drop_inbox(origin)?;
        }
        unpacked
    }

    fn advance(&mut self, origin: Origin, position: Cursor) -> Result<(), Error> {
        self.database.merge(origin, &[], &[], Some(position), &mut |_| Ok(()))?;
        Ok(())
    }

    /// Tries what waits, as long as one site's row may let in another's.
    fn retry_all(&mut self, works: &mut [Work]) -> Result<(), Error> {
        let waiting: HashSet<SiteId> = self.state.waiting_sites()?.into_iter().collect();
        if !works.iter().any(|work| waiting.contains(&work.site)) {
            return Ok(());
        }
        let schema = self.database.schema_stamp()?;
        for round in 0..ROUNDS {
            let data = self.database.data_stamp()?;
            let commits = self.database.data_version()?;
            let (mut tried, mut applied) = (false, false);
            for work in works.iter_mut().filter(|work| work.report.is_ok()) {
                let due = self.state.waiting_due(&work.site, &schema, &data)?;
                tried |= !due.is_empty();
                applied |= self.retry(work, due, round == 0);
            }
            if !tried {
                return Ok(());
            }
            if !applied {
                return self.note_tried(works, &schema, commits);
            }
        }
        Ok(())
    }

    /// Tries changes that wait; whether any altered the database.
    fn retry(&mut self, work: &mut Work, due: Vec<i64>, is_first: bool) -> bool {
        let Ok(mut report) = std::mem::replace(&mut work.report, Ok(MergeReport::default())) else { return false };
        let before = total(&report.applied);
        let old: HashSet<i64> = due.iter().copied().filter(|id| is_first && *id <= work.waited).collect();
        let result = self.retry_together(&work.site, due, &old, &mut report);
        let applied = total(&report.applied) > before;
        work.report = result.map(|()| report);
        applied
    }

    fn retry_together(
        &mut self,
        site: &SiteId,
        due: Vec<i64>,
        old: &HashSet<i64>,
        report: &mut MergeReport,
    ) -> Result<(), Error> {
        let mut due = due.into_iter().peekable();
        while due.peek().is_some() {
            let batch = self.batch(&mut due)?;
            let limits = changeset::Limits::of_stored();
            let _room = changeset::room_for(batch.iter().map(|(_, encoded)| &encoded[..]), &limits);
            let mut together = Together::of(site);
            for (id, encoded) in batch {
                let pack = match Pack::decode(&encoded, &limits).map_err(not_unpacked) {
                    Ok(pack) => pack,
                    Err(error @ (Error::DamagedPack(_) | Error::BadPack(_))) => {
                        self.lose(site, id)?;
                        tracing::warn!(%site, %error, "changes that waited are damaged, and fetched again");
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                if old.contains(&id) {
                    report.changes += pack.changes.len() as u64;
                }
                if let Err(pack) = together.add(id, pack) {
                    self.retry_pack(site, std::mem::replace(&mut together, Together::of(site)), report)?;
                    together.add(id, pack).unwrap_or_default();
                }
            }
            self.retry_pack(site, together, report)?;
            self.repository.check_ending()?;
        }
        Ok(())
    }

    /// The next of what waits, so much as is tried together: not many bytes, nor such as become many.
    fn batch(&self, due: &mut Peekable<impl Iterator<Item = i64>>) -> Result<Vec<(i64, Vec<u8>)>, Error> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(id) = due.next_if(|_| bytes < TOGETHER) {
            let Some(encoded) = self.state.waiting_pack(id)? else { continue };
            bytes += changeset::charge(encoded.len() as u64, &encoded);
            batch.push((id, encoded));
        }
        Ok(batch)
    }

    /// Drops changes that waited and were damaged on disk. They count as read: the site is read from its start.
    fn lose(&mut self, site: &SiteId, id: i64) -> Result<(), Error> {
        self.database.forget_positions_of(site)?;
        self.state.put_aside(site)?;
        self.state.replace_waiting(&[id], &[])?;
        Ok(())
    }

    /// Merges changes that wait. Those that still do not fit are kept anew, by reasons.
    fn retry_pack(&mut self, site: &SiteId, together: Together, report: &mut MergeReport) -> Result<(), Error> {
        let (ids, pack) = together.into_pack();
        let kept = self.merge_pack(site.into(), &pack, None, report)?;
        Ok(self.state.replace_waiting(&ids, &kept)?)
    }

    /// Notes with what everything that waits was tried in vain, unless another program has committed since.
    fn note_tried(&mut self, works: &[Work], schema: &Stamp, commits: i64) -> Result<(), Error> {
        self.database.settle();
        let data = self.database.data_stamp()?;
        if self.database.data_version()? != commits {
            return Ok(());
        }
        works
            .iter()
            .filter(|work| work.report.is_ok())
            .try_for_each(|work| Ok(self.state.note_tried(&work.site, schema, &data)?))
    }

    /// Keeps for `status` what went wrong. That it cannot be kept stops nothing.
    fn note_outcome(&mut self, site: &SiteId, outcome: &Outcome<MergeReport>) {
        let failure = match outcome {
            Outcome::Done(_) => None,
            Outcome::Failed(failure) => Some(failure),
        };
        if let Err(error) = self.state.note_merge(site, Timestamp::now().as_second(), failure) {
            tracing::warn!(%error, "the outcome of a merge cannot be noted");
        }
    }

    /// Tells what became of a merge.
    fn finish(&mut self, work: Work) -> PerRemote<MergeReport> {
        let Work { label, site, began, report, .. } = work;
        let report = report.and_then(|mut report| {
            (report.waiting, report.reasons) = self.state.waiting_changes(&site)?;
            Ok(report)
        });
        let outcome = match report {
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
        self.repository.inner.counters.merged(&label, &outcome);
        self.state.note_event(&label, began, LogEvent::of_merge(&outcome));
        self.note_outcome(&site, &outcome);
        self.repository.tell(Event::of_merge(&label, &outcome));
        PerRemote { remote: label, outcome }
    }
}

fn total(by_table: &BTreeMap<String, u64>) -> u64 {
    by_table.values().sum()
}

/// Adds what the merge of a pack did.
fn add(report: &mut MergeReport, merged: &database::MergeReport) {
    let count = |by_table: &mut BTreeMap<String, u64>, table: &str, number: usize| {
        if number > 0 {
            *by_table.entry(table.to_owned()).or_default() += number as u64;
        }
    };
    for (name, table) in &merged.tables {
        count(&mut report.applied, name, table.applied);
        count(&mut report.lost, name, table.lost);
        count(&mut report.deleted, name, table.deleted);
        report.known += table.known as u64;
    }
    report.dangling.extend(merged.dangling.iter().cloned());
}

/// A pack that lies in the state, once there is memory for it.
pub(super) fn unpack(bytes: &[u8]) -> Result<Unpacked, Error> {
    Unpacked::decode(bytes, &changeset::Limits::of_stored()).map_err(not_unpacked)
}

fn not_unpacked(error: PackError) -> Error {
    match error {
        PackError::NoMemory => Error::NoMemory,
        // An earlier program took it.
        invalid @ PackError::Change { .. } => Error::BadPack(invalid.to_string()),
        damage => Error::DamagedPack(damage.to_string()),
    }
}

/// Puts changes that do not fit aside, those of each reason by themselves, with a sentence that a person can act on.
/// Gives their places.
fn keep_waiting(
    state: &mut State,
    site: &SiteId,
    pack: &Pack,
    refused: &[Refused],
    schema: &Stamp,
) -> Result<Vec<i64>, super::StateError> {
    let mut by_reason: BTreeMap<(Cause, String), Vec<Change>> = BTreeMap::new();
    for refused in refused {
        by_reason.entry((cause(&refused.reason), sentence(refused))).or_default().push(refused.change.clone());
    }
    let most = if state.waiting_places(site)? > MANY_PLACES { 0 } else { MOST_REASONS };
    let groups: Vec<(Cause, String, Pack)> = lump(by_reason, most)
        .into_iter()
        .map(|((cause, reasons), changes)| (cause, reasons, with_changes(pack, changes)))
        .collect();
    let kept: Vec<Kept<'_>> = groups
        .iter()
        .map(|(cause, reasons, pack)| Kept { site, pack, cause: *cause, reasons, schema: Some(schema) })
        .collect();
    state.keep_waiting(&kept)
}

/// Why a change waits. The peer chose the names, as long as it likes, and they go to a terminal.
fn sentence(refused: &Refused) -> String {
    let table = database::cut(&refused.change.table, MOST_NAME);
    database::cut(&shown_of(format_args!("table {table}: {}", refused.reason)), MOST_REASON)
}

/// Puts all reasons but the first few together, by cause.
fn lump(by_reason: BTreeMap<(Cause, String), Vec<Change>>, most: usize) -> BTreeMap<(Cause, String), Vec<Change>> {
    let mut lumped = BTreeMap::new();
    let mut rest: BTreeMap<Cause, (String, usize, Vec<Change>)> = BTreeMap::new();
    for ((cause, reason), changes) in by_reason {
        if lumped.len() < most {
            lumped.insert((cause, reason), changes);
            continue;
        }
        let (_, reasons, all) = rest.entry(cause).or_insert_with(|| (reason, 0, Vec::new()));
        *reasons += 1;
        all.extend(changes);
    }
    let together = |(cause, (first, reasons, changes)): (Cause, (String, usize, Vec<Change>))| {
        let reason = match reasons {
            1 => first,
            _ if most > 0 => format!("and {reasons} more reasons"),
            _ => format!("{first}, and {} more reasons", reasons - 1),
        };
        ((cause, reason), changes)
    };
    lumped.extend(rest.into_iter().map(together));
    lumped
}

pub(super) fn with_changes(pack: &Pack, changes: Vec<Change>) -> Pack {
    let names: BTreeSet<&str> = changes.iter().map(|change| change.table.as_ref()).collect();
    let tables = pack.tables.iter().filter(|table| names.contains(table.name.as_str())).cloned().collect();
    Pack { source: pack.source, from: pack.from, to: pack.to, tables, changes }
}

fn cause(reason: &Reason) -> Cause {
    if reason.lies_in_schema() { Cause::Schema } else { Cause::Data }
}
