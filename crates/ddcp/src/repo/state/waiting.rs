//! What was fetched and cannot be merged yet.

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::{State, StateError, site_id};
use crate::changeset::{PackId, SiteId};

/// Changes that could not be merged yet, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its place in the list.
    pub id: i64,
    /// The encoded pack.
    pub pack: Vec<u8>,
}

impl State {
    /// Keeps changes that could not be merged; keeping the same ones twice is once.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn keep_waiting(
        &mut self,
        site: &SiteId,
        pack: &[u8],
        changes: usize,
        reasons: &str,
    ) -> Result<(), StateError> {
        self.write(|transaction| keep(transaction, site, pack, changes as i64, reasons))
    }

    /// Has the whole inbox wait instead, so that nothing of it counts as read: this database is about to get another
    /// site id, and what was fetched under the old one lacks what that site wrote.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn put_inbox_aside(&mut self) -> Result<(), StateError> {
        self.inbox_sites()?.iter().try_for_each(|site| self.put_aside(site))
    }

    /// Has what was fetched from `site` wait instead: it is to be read from the start, and may have lost this since.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn put_aside(&mut self, site: &SiteId) -> Result<(), StateError> {
        self.write(|transaction| put_aside(transaction, site, site))
    }

    /// The next of the changes of `site` that wait, after place `after`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn next_waiting(&self, site: &SiteId, after: i64) -> Result<Option<Waiting>, StateError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT id, pack FROM waiting WHERE site_id = ? AND id > ? ORDER BY id LIMIT 1")?
                .query_row(params![site.as_bytes(), after], |row| Ok(Waiting { id: row.get(0)?, pack: row.get(1)? }))
                .optional()
        })
    }

    /// The last place taken by changes of `site` that wait; 0 if none do.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn last_waiting(&self, site: &SiteId) -> Result<i64, StateError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT coalesce(max(id), 0) FROM waiting WHERE site_id = ?")?
                .query_row([site.as_bytes()], |row| row.get(0))
        })
    }

    /// Removes changes that wait no longer.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn remove_waiting(&mut self, id: i64) -> Result<(), StateError> {
        self.write(|t| t.execute("DELETE FROM waiting WHERE id = ?", [id]).map(drop))
    }

    /// The sites with changes that wait.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn waiting_sites(&self) -> Result<Vec<SiteId>, StateError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT DISTINCT site_id FROM waiting ORDER BY site_id")?
                .query_map([], |row| site_id(row, 0))?
                .collect()
        })
    }

    /// Bytes of packs of `site` that wait.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn waiting_bytes(&self, site: &SiteId) -> Result<u64, StateError> {
        self.count("SELECT coalesce(sum(length(pack)), 0) FROM waiting WHERE site_id = ?", site)
    }

    /// Changes of `site` that wait, and the reasons, one sentence each.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn waiting_changes(&self, site: &SiteId) -> Result<(u64, Vec<String>), StateError> {
        let count = self.count("SELECT coalesce(sum(changes), 0) FROM waiting WHERE site_id = ?", site)?;
        let reasons = self.read(|connection| {
            connection
                .prepare_cached("SELECT DISTINCT reasons FROM waiting WHERE site_id = ? ORDER BY reasons")?
                .query_map([site.as_bytes()], |row| row.get::<_, String>(0))?
                .collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let mut reasons: Vec<String> = reasons.iter().flat_map(|text| text.lines()).map(str::to_owned).collect();
        reasons.sort();
        reasons.dedup();
        Ok((count, reasons))
    }
}

fn keep(
    transaction: &Transaction<'_>,
    site: &SiteId,
    pack: &[u8],
    changes: i64,
    reasons: &str,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO waiting (site_id, pack_id, changes, reasons, pack) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (pack_id) DO UPDATE SET reasons = excluded.reasons",
        )?
        .execute(params![site.as_bytes(), PackId::of(pack).as_bytes(), changes, reasons, pack])
        .map(drop)
}

/// Has what was fetched from `old` wait for the next merge of `new`, of which it is no stretch. Holds one pack in memory.
pub(super) fn put_aside(transaction: &Transaction<'_>, old: &SiteId, new: &SiteId) -> rusqlite::Result<()> {
    transaction.execute("UPDATE waiting SET site_id = ? WHERE site_id = ?", params![new.as_bytes(), old.as_bytes()])?;
    let next = "SELECT id, changes, pack FROM inbox WHERE site_id = ? AND pack IS NOT NULL ORDER BY id LIMIT 1";
    let mut next = transaction.prepare(next)?;
    let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    while let Some::<(i64, i64, Vec<u8>)>((id, changes, pack)) = next.query_row([old.as_bytes()], row).optional()? {
        keep(transaction, new, &pack, changes, "fetched from or for a database that was restored or copied since")?;
        transaction.execute("DELETE FROM inbox WHERE id = ?", [id])?;
    }
    transaction.execute("DELETE FROM inbox WHERE site_id = ?", [old.as_bytes()]).map(drop)
}
