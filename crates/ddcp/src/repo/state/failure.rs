//! Merges that failed, until one succeeds.

use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::{State, StateError, site_id};
use crate::{Failure, changeset::SiteId};

/// How the last merge of what a site sent failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeFailure {
    /// When: seconds since 1970.
    pub at: i64,
    /// Why.
    pub message: String,
    /// What to do about it, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl State {
    /// Notes how a merge of what `site` sent has ended at `now`, in seconds since 1970: a failure is kept until one
    /// succeeds.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn note_merge(&mut self, site: &SiteId, now: i64, failure: Option<&Failure>) -> Result<(), StateError> {
        let Some(failure) = failure else {
            return if self.merge_failure(site)?.is_some() { self.forget_merge_failure(site) } else { Ok(()) };
        };
        let sql = "INSERT OR REPLACE INTO merge_failure (site_id, at, message, hint) VALUES (?, ?, ?, ?)";
        self.write(|t| t.execute(sql, params![site.as_bytes(), now, failure.message, failure.hint]).map(drop))
    }

    fn forget_merge_failure(&mut self, site: &SiteId) -> Result<(), StateError> {
        self.write(|t| t.execute("DELETE FROM merge_failure WHERE site_id = ?", [site.as_bytes()]).map(drop))
    }

    /// How the last merge of what `site` sent failed, if it did.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn merge_failure(&self, site: &SiteId) -> Result<Option<MergeFailure>, StateError> {
        Ok(self.merge_failures()?.into_iter().find(|(failed, _)| failed == site).map(|(_, failure)| failure))
    }

    /// The sites of which the last merge failed, and how.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn merge_failures(&self) -> Result<Vec<(SiteId, MergeFailure)>, StateError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT site_id, at, message, hint FROM merge_failure ORDER BY site_id")?
                .query_map([], |row| {
                    let failure = MergeFailure { at: row.get(1)?, message: row.get(2)?, hint: row.get(3)? };
                    Ok((site_id(row, 0)?, failure))
                })?
                .collect()
        })
    }
}
