//! The inbox: what was fetched and not yet merged.

use rusqlite::{OptionalExtension, Transaction, named_params, params};

use super::{State, StateError, cursor, site_id, waiting::PLACE_BYTES};
use crate::changeset::{self, Cursor, SiteId};

/// A stretch of a remote's changes: fetched, not merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Its place in the inbox.
    pub id: i64,
    /// Where it begins (exclusive).
    pub from: Cursor,
    /// Where it ends (inclusive).
    pub to: Cursor,
    /// The encoded pack; `None` where the stretch holds nothing for this repository.
    pub pack: Option<Vec<u8>>,
}

impl State {
    /// How far the packs of `site` reach that lie in the inbox without a gap after `merged`, the position that
    /// the user's database says was merged. Packs behind a gap or before it are of no use (the database was
    /// replaced by an older copy of itself) and are dropped, to be fetched again.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn fetched(&mut self, site: &SiteId, merged: Cursor) -> Result<Cursor, StateError> {
        self.write(|transaction| {
            let bounds = "SELECT from_version, from_seq, to_version, to_seq FROM inbox WHERE site_id = ? ORDER BY id";
            let mut reached = None;
            let mut broken = false;
            {
                let mut statement = transaction.prepare_cached(bounds)?;
                let mut rows = statement.query([site.as_bytes()])?;
                while let Some(row) = rows.next()? {
                    let (from, to) = (cursor(row, 0)?, cursor(row, 2)?);
                    broken |= from > reached.unwrap_or(merged);
                    reached = Some(to);
                }
            }
            if broken {
                transaction.execute("DELETE FROM inbox WHERE site_id = ?", [site.as_bytes()])?;
                reached = None;
            }
            Ok(reached.unwrap_or(merged))
        })
    }

    /// How far the packs of `site` in the inbox reach, if there are any.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn reaches(&self, site: &SiteId) -> Result<Option<Cursor>, StateError> {
        self.read(|connection| {
            let sql = "SELECT to_version, to_seq FROM inbox WHERE site_id = ? ORDER BY id DESC LIMIT 1";
            connection.prepare_cached(sql)?.query_row([site.as_bytes()], |row| cursor(row, 0)).optional()
        })
    }

    /// Puts a stretch at the end of the inbox. Empty stretches that follow each other become one.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn store(
        &mut self,
        site: &SiteId,
        from: Cursor,
        to: Cursor,
        pack: Option<(&[u8], usize)>,
    ) -> Result<(), StateError> {
        self.write(|transaction| {
            if pack.is_none() && extend_empty(transaction, site, to)? {
                return Ok(());
            }
            let (bytes, changes) = pack.unzip();
            transaction
                .prepare_cached(
                    "INSERT INTO inbox (site_id, from_version, from_seq, to_version, to_seq, changes, pack)
                     VALUES (:site, :from_version, :from_seq, :to_version, :to_seq, :changes, :pack)",
                )?
                .execute(named_params! {
                    ":site": site.as_bytes(),
                    ":from_version": from.version,
                    ":from_seq": from.seq,
                    ":to_version": to.version,
                    ":to_seq": to.seq,
                    ":changes": changes.unwrap_or(0) as i64,
                    ":pack": bytes,
                })?;
            Ok(())
        })
    }

    /// Forgets what was fetched from `site`: it has begun anew.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn drop_inbox(&mut self, site: &SiteId) -> Result<(), StateError> {
        self.write(|t| t.execute("DELETE FROM inbox WHERE site_id = ?", [site.as_bytes()]).map(drop))
    }

    /// The oldest stretch of `site` in the inbox.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn next_stretch(&self, site: &SiteId) -> Result<Option<Stretch>, StateError> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT id, from_version, from_seq, to_version, to_seq, pack FROM inbox
                     WHERE site_id = ? ORDER BY id LIMIT 1",
                )?
                .query_row([site.as_bytes()], |row| {
                    Ok(Stretch { id: row.get(0)?, from: cursor(row, 1)?, to: cursor(row, 3)?, pack: row.get(5)? })
                })
                .optional()
        })
    }

    /// Removes a stretch that has been merged.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn remove_stretch(&mut self, id: i64) -> Result<(), StateError> {
        self.write(|t| t.execute("DELETE FROM inbox WHERE id = ?", [id]).map(drop))
    }

    /// The sites with something in the inbox.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn inbox_sites(&self) -> Result<Vec<SiteId>, StateError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT DISTINCT site_id FROM inbox ORDER BY site_id")?
                .query_map([], |row| site_id(row, 0))?
                .collect()
        })
    }

    /// Changes in the inbox that `site` sent.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn inbox_changes(&self, site: &SiteId) -> Result<u64, StateError> {
        self.count("SELECT coalesce(sum(changes), 0) FROM inbox WHERE site_id = ?", site)
    }

    /// The bytes for which all that `site` sent and that is not merged counts, in the inbox and waiting: more than they are
    /// where little becomes much.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn held(&self, site: &SiteId) -> Result<u64, StateError> {
        const SQL: &str =
            "SELECT length(pack), substr(pack, 1, 32), 0 FROM inbox WHERE site_id = ?1 AND pack IS NOT NULL
            UNION ALL SELECT length(pack), substr(pack, 1, 32), length(reasons) FROM waiting WHERE site_id = ?1";
        self.read(|connection| {
            let mut statement = connection.prepare_cached(SQL)?;
            let mut rows = statement.query([site.as_bytes()])?;
            let mut held = 0_u64;
            while let Some(row) = rows.next()? {
                let (length, reasons): (i64, i64) = (row.get(0)?, row.get(2)?);
                let head = row.get_ref(1)?.as_blob()?;
                let beside = reasons.unsigned_abs() + PLACE_BYTES;
                held = held.saturating_add(changeset::charge(length.unsigned_abs(), head)).saturating_add(beside);
            }
            Ok(held)
        })
    }

    /// Bytes of packs in the inbox that `site` sent.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn inbox_bytes(&self, site: &SiteId) -> Result<u64, StateError> {
        self.count("SELECT coalesce(sum(length(pack)), 0) FROM inbox WHERE site_id = ?", site)
    }
}

/// Moves the end of the last stretch of `site`, if that is an empty one; whether it was.
fn extend_empty(transaction: &Transaction<'_>, site: &SiteId, to: Cursor) -> rusqlite::Result<bool> {
    let moved = transaction
        .prepare_cached(
            "UPDATE inbox SET to_version = ?2, to_seq = ?3
             WHERE id = (SELECT max(id) FROM inbox WHERE site_id = ?1) AND pack IS NULL",
        )?
        .execute(params![site.as_bytes(), to.version, to.seq])?;
    Ok(moved > 0)
}
