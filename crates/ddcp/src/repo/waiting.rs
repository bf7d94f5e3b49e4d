//! What waits: fetched, and refused by the tables here. It can be looked at, tried again, and let go.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::types::ValueRef;
use serde::{Deserialize, Serialize};

use super::{
    LogEvent, Repository, State,
    merge::{unpack, with_changes},
    state::{Kept, Waiting},
};
use crate::{
    Error,
    changeset::{Change, Pack, SiteId, Unpacked, key_values},
    config::{Config, ConfigError},
    database::{cut, sql_value},
};

/// Rows that are listed, and bytes of their texts; of more only the number is told.
const MOST_ROWS: usize = 10_000;
const MOST_BYTES: usize = 4 << 20;

/// Bytes of one value of a key that are shown.
const MOST_VALUE: usize = 1000;

/// A row of which changes wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingRow {
    /// The remote that sent them; absent if it is none any more, or they came in a bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// The site that sent them, in hexadecimal.
    pub site: String,
    /// The row's table.
    pub table: String,
    /// The values of its key, as SQL.
    pub key: Vec<String>,
    /// How many changes of it wait.
    pub changes: u64,
    /// Why they wait.
    pub reason: String,
    /// Since when they have been waiting: seconds since 1970. Absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<i64>,
}

/// What waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingReport {
    /// The rows, in the order in which their changes came.
    pub rows: Vec<WaitingRow>,
    /// Rows beyond those in `rows`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
    /// Changes of all of them.
    pub changes: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What was let go, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingDropReport {
    /// The changes.
    #[serde(flatten)]
    pub waiting: WaitingReport,
    /// Whether it was done.
    pub dropped: bool,
}

/// Which of what waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitingSelection {
    /// What this remote sent: its name, or the id of a site in hexadecimal. Without it, what anybody sent.
    pub remote: Option<String>,
    /// Changes of this table, in whatever letters. Without it, of every table.
    pub table: Option<String>,
}

impl WaitingSelection {
    fn has_table(&self, table: &str) -> bool {
        self.table.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(table))
    }
}

impl Repository {
    /// What waits, row by row. Every change that waits is read.
    ///
    /// # Errors
    /// [`Error::Config`] where there is no such remote, [`Error::State`], [`Error::DamagedPack`].
    pub async fn waiting_list(&self, selection: WaitingSelection) -> Result<WaitingReport, Error> {
        self.blocking(move |repository| {
            let state = repository.state()?;
            let senders = Senders::new(&repository.config()?, &state)?;
            let mut listing = Listing::default();
            for waiting in senders.chosen(&state, &selection)? {
                let Some(pack) = stored(&state, waiting.id)? else { continue };
                let changes = pack.changes.iter().filter(|change| selection.has_table(&change.table));
                listing.add(&senders, &waiting, changes);
            }
            Ok(listing.report)
        })
        .await
    }

    /// Lets go what waits, for good: it is never merged, and not fetched again unless [`Repository::verify`] finds that
    /// it is missing. Without `apply` it is only said what would be.
    ///
    /// # Errors
    /// As [`Repository::waiting_list`]; [`Error::Locked`].
    pub async fn waiting_drop(&self, selection: WaitingSelection, apply: bool) -> Result<WaitingDropReport, Error> {
        let _lock = self.hold().await?;
        let alone = self.inner.merging.clone().lock_owned().await;
        self.blocking(move |repository| {
            // To its end, also when the caller is gone.
            let _alone = alone;
            let mut state = repository.state()?;
            let senders = Senders::new(&repository.config()?, &state)?;
            let mut listing = Listing::default();
            for waiting in senders.chosen(&state, &selection)? {
                let Some(pack) = stored(&state, waiting.id)? else { continue };
                let (gone, left): (Vec<_>, Vec<_>) =
                    pack.changes.iter().cloned().partition(|change| selection.has_table(&change.table));
                listing.add(&senders, &waiting, gone.iter());
                if apply && !gone.is_empty() {
                    drop_changes(&mut state, &senders, &waiting, &with_changes(&pack, left), gone.len() as u64)?;
                }
            }
            Ok(WaitingDropReport { waiting: listing.report, dropped: apply })
        })
        .await
    }
}

fn stored(state: &State, id: i64) -> Result<Option<Unpacked>, Error> {
    state.waiting_pack(id)?.map(|bytes| unpack(&bytes)).transpose()
}

/// Keeps what is left of changes that wait, and no more of them.
fn drop_changes(state: &mut State, senders: &Senders, waiting: &Waiting, left: &Pack, gone: u64) -> Result<(), Error> {
    let began = Timestamp::now();
    let Waiting { id, site, cause, reasons, .. } = waiting;
    let kept = if left.changes.is_empty() {
        Vec::new()
    } else {
        state.keep_waiting(&[Kept { site, pack: left, cause: *cause, reasons, schema: None }])?
    };
    state.replace_waiting(&[*id], &kept)?;
    state.note_event(&senders.label(site), began, Some(LogEvent::Dropped { changes: gone }));
    Ok(())
}

/// The remotes by their sites.
struct Senders(BTreeMap<SiteId, String>);

impl Senders {
    fn new(config: &Config, state: &State) -> Result<Self, Error> {
        let mut remotes = BTreeMap::new();
        for (name, remote) in &config.remotes {
            if let Some(site) = state.contact(name.as_str(), &remote.address)?.site_id {
                remotes.entry(site).or_insert_with(|| name.to_string());
            }
        }
        Ok(Self(remotes))
    }

    fn label(&self, site: &SiteId) -> String {
        self.0.get(site).cloned().unwrap_or_else(|| format!("site {site}"))
    }

    /// What waits of the sender that is selected, tables aside.
    fn chosen(&self, state: &State, selection: &WaitingSelection) -> Result<Vec<Waiting>, Error> {
        let Some(remote) = &selection.remote else { return Ok(state.waiting(None)?) };
        let site = chosen_site(state, &self.0, remote)?;
        Ok(state.waiting(Some(&site))?)
    }
}

/// The site of the remote of this name, or the site with this id, if something of it waits.
fn chosen_site(state: &State, remotes: &BTreeMap<SiteId, String>, remote: &str) -> Result<SiteId, Error> {
    let by_name = remotes.iter().find(|(_, name)| *name == remote).map(|(site, _)| *site);
    let is_it = |site: &SiteId| site.to_string().eq_ignore_ascii_case(remote);
    match by_name {
        Some(site) => Ok(site),
        None => match state.waiting_sites()?.into_iter().find(is_it) {
            Some(site) => Ok(site),
            None => Err(ConfigError::NoRemote(remote.to_owned()).into()),
        },
    }
}

impl Repository {
    /// The sites of which something waits and that `remote` names, or all of them, with what to call them.
    pub(super) fn waiting_senders(&self, state: &State, remote: Option<&str>) -> Result<Vec<(String, SiteId)>, Error> {
        let senders = Senders::new(&self.config()?, state)?;
        let sites = match remote {
            Some(remote) => vec![chosen_site(state, &senders.0, remote)?],
            None => state.waiting_sites()?,
        };
        Ok(sites.into_iter().map(|site| (senders.label(&site), site)).collect())
    }
}

/// A report in the making.
#[derive(Default)]
struct Listing {
    report: WaitingReport,
    /// Bytes of the texts of its rows.
    bytes: usize,
}

impl Listing {
    /// Adds changes that are kept together.
    fn add<'a>(&mut self, senders: &Senders, waiting: &Waiting, changes: impl Iterator<Item = &'a Change>) {
        let mut rows: Vec<(&Change, u64)> = Vec::new();
        let mut places: BTreeMap<(&str, &[u8]), usize> = BTreeMap::new();
        for change in changes {
            let place = *places.entry((&change.table, &change.pk)).or_insert(rows.len());
            if place == rows.len() {
                rows.push((change, 0));
            }
            rows[place].1 += 1;
        }
        for (change, changes) in rows {
            self.report.changes += changes;
            if self.report.rows.len() == MOST_ROWS || self.bytes >= MOST_BYTES {
                self.report.more += 1;
                continue;
            }
            let row = WaitingRow {
                remote: senders.0.get(&waiting.site).cloned(),
                site: waiting.site.to_string(),
                table: change.table.to_string(),
                key: key(&change.pk),
                changes,
                reason: waiting.reasons.lines().collect::<Vec<_>>().join("; "),
                since: waiting.since,
            };
            let key: usize = row.key.iter().map(String::len).sum();
            self.bytes += row.table.len() + key + row.reason.len();
            self.report.rows.push(row);
        }
    }
}

/// The values of a key, as SQL; the beginning of those that are long. Of a key that is not one, its bytes.
fn key(pk: &[u8]) -> Vec<String> {
    let values = key_values(pk).and_then(|values| values.map(|value| value.map(short)).collect::<Result<Vec<_>, _>>());
    values.unwrap_or_else(|_| vec![short(ValueRef::Blob(pk))])
}

fn short(value: ValueRef<'_>) -> String {
    // A byte becomes at least one of the text, so no more is needed of it.
    let begin = |bytes: &[u8]| bytes.len().min(MOST_VALUE);
    let text = match value {
        ValueRef::Text(bytes) => {
            let text = std::str::from_utf8(bytes).map(|text| text.floor_char_boundary(MOST_VALUE));
            sql_value(ValueRef::Text(&bytes[..text.unwrap_or_else(|_| begin(bytes))]))
        }
        ValueRef::Blob(blob) => sql_value(ValueRef::Blob(&blob[..begin(blob)])),
        other => sql_value(other),
    };
    cut(&text, MOST_VALUE)
}
