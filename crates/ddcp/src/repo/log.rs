//! What happened to a repository: kept in its state file, for people to read.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::{FetchReport, MergeReport, Outcome, Repository, State, StateError};
use crate::Error;

/// Entries that are kept; older ones are dropped.
const MOST_ENTRIES: i64 = 10_000;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When it began: milliseconds since 1970.
    pub at: i64,
    /// How long it took, in milliseconds.
    pub took: i64,
    /// The remote that it was about.
    pub remote: String,
    /// What it was.
    #[serde(flatten)]
    pub event: LogEvent,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LogEvent {
    /// Changes were fetched.
    Fetched {
        /// How many.
        changes: u64,
        /// Bytes of their packs.
        bytes: u64,
    },
    /// Changes were merged.
    Merged {
        /// How many were looked at.
        changes: u64,
        /// How many altered the database, by table.
        applied: BTreeMap<String, u64>,
        /// How many were here already.
        #[serde(default)]
        known: u64,
        /// How many lost against what is here, by table.
        #[serde(default)]
        lost: BTreeMap<String, u64>,
        /// How many rows were deleted, by table.
        #[serde(default)]
        deleted: BTreeMap<String, u64>,
        /// How many wait since they do not fit.
        waiting: u64,
    },
    /// Changes that waited were let go.
    Dropped {
        /// How many.
        changes: u64,
    },
    /// A fetch or a merge failed; of the same failure again and again only the last is kept.
    Failed {
        /// Why.
        message: String,
    },
}

impl LogEvent {
    /// What to tell of a fetch: nothing if it brought nothing.
    pub(super) fn of_fetch(outcome: &Outcome<FetchReport>) -> Option<Self> {
        match outcome {
            Outcome::Done(report) => {
                (report.changes > 0).then_some(Self::Fetched { changes: report.changes, bytes: report.bytes })
            }
            Outcome::Failed(failure) => Some(Self::Failed { message: failure.message.clone() }),
        }
    }

    /// What to tell of a merge: nothing if there was nothing to merge.
    pub(super) fn of_merge(outcome: &Outcome<MergeReport>) -> Option<Self> {
        match outcome {
            Outcome::Done(report) => (report.changes > 0).then(|| Self::Merged {
                changes: report.changes,
                applied: report.applied.clone(),
                known: report.known,
                lost: report.lost.clone(),
                deleted: report.deleted.clone(),
                waiting: report.waiting,
            }),
            Outcome::Failed(failure) => Some(Self::Failed { message: failure.message.clone() }),
        }
    }
}

impl Repository {
    /// What happened last, with one remote or with all: at most `most` entries, the newest first.
    ///
    /// # Errors
    /// [`Error::State`].
    pub async fn log(&self, remote: Option<&str>, most: u32) -> Result<Vec<LogEntry>, Error> {
        let remote = remote.map(str::to_owned);
        self.blocking(move |repository| Ok(repository.state_to_read()?.log(remote.as_deref(), most)?)).await
    }
}

impl State {
    /// Adds to the log what began at `began` and has ended now. A log that cannot be written stops nothing.
    pub(super) fn note_event(&mut self, remote: &str, began: Timestamp, event: Option<LogEvent>) {
        let Some(event) = event else { return };
        let took = Timestamp::now().duration_since(began).as_millis();
        let entry = LogEntry {
            at: began.as_millisecond(),
            took: i64::try_from(took).unwrap_or(i64::MAX),
            remote: remote.to_owned(),
            event,
        };
        if let Err(error) = self.add_entry(&entry) {
            tracing::warn!(%error, "the log cannot be written");
        }
    }

    fn add_entry(&mut self, entry: &LogEntry) -> Result<(), StateError> {
        let event = serde_json::to_string(&entry.event).unwrap_or_default();
        self.write(|transaction| {
            if matches!(entry.event, LogEvent::Failed { .. }) {
                transaction.execute(
                    "DELETE FROM log WHERE event = ?2
                     AND id = (SELECT max(id) FROM log WHERE remote = ?1)",
                    params![entry.remote, event],
                )?;
            }
            transaction.execute(
                "INSERT INTO log (at, took, remote, event) VALUES (?, ?, ?, ?)",
                params![entry.at, entry.took, entry.remote, event],
            )?;
            transaction.execute("DELETE FROM log WHERE id <= (SELECT max(id) FROM log) - ?", [MOST_ENTRIES]).map(drop)
        })
    }

    /// The newest `most` entries about one remote or all, the newest first.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn log(&self, remote: Option<&str>, most: u32) -> Result<Vec<LogEntry>, StateError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT at, took, remote, event FROM log WHERE ?1 IS NULL OR remote = ?1 ORDER BY id DESC LIMIT ?2",
            )?;
            let entries = statement.query_map(params![remote, most], |row| {
                let event: String = row.get(3)?;
                let event = serde_json::from_str(&event).map_err(|error| {
                    rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, Box::new(error))
                })?;
                Ok(LogEntry { at: row.get(0)?, took: row.get(1)?, remote: row.get(2)?, event })
            })?;
            entries.collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(changes: u64) -> Option<LogEvent> {
        Some(LogEvent::Fetched { changes, bytes: 7 })
    }

    fn failed(message: &str) -> Option<LogEvent> {
        Some(LogEvent::Failed { message: message.to_owned() })
    }

    #[test]
    fn the_newest_comes_first_and_a_failure_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(&dir.path().join("state.db")).unwrap();
        let now = Timestamp::now();
        for event in [fetched(1), failed("gone"), failed("gone"), None, failed("still gone"), failed("gone")] {
            state.note_event("a", now, event);
        }
        state.note_event("b", now, fetched(2));
        let events =
            |remote, most| state.log(remote, most).unwrap().into_iter().map(|e| Some(e.event)).collect::<Vec<_>>();
        assert_eq!(events(Some("a"), 9), [failed("gone"), failed("still gone"), failed("gone"), fetched(1)]);
        assert_eq!(events(None, 2), [fetched(2), failed("gone")]);
    }
}
