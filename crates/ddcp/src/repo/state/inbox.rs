//! The inbox: what was fetched and not yet merged.

use rusqlite::{OptionalExtension, Transaction, named_params, params};

use super::{State, StateError, cursor, site_id, waiting::PLACE_BYTES};
use crate::{
    changeset::{self, Cursor, PackId, SiteId},
    database::{Origin, Way},
};

/// A stretch of a remote's changes: fetched, not merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// Its place in the inbox.
    pub id: i64,
    /// How it was come by.
    pub way: Way,
    /// Where it begins (exclusive).
    pub from: Cursor,
    /// Where it ends (inclusive).
    pub to: Cursor,
    /// The encoded pack; `None` where the stretch holds nothing for this repository.
    pub pack: Option<Vec<u8>>,
}

impl State {
    /// How far the packs of `origin` reach that lie in the inbox without a gap after `merged`, the position that
    /// the user's database says was merged. Packs behind a gap or before it are of no use (the database was
    /// replaced by an older copy of itself) and are dropped, to be fetched again.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn fetched(&mut self, origin: impl Into<Origin>, merged: Cursor) -> Result<Cursor, StateError> {
        let Origin { site, way } = origin.into();
        self.write(|transaction| {
            let bounds = "SELECT from_version, from_seq, to_version, to_seq FROM inbox
                 WHERE site_id = ? AND way = ? ORDER BY id";
            let mut reached = None;
            let mut broken = false;
            {
                let mut statement = transaction.prepare_cached(bounds)?;
                let mut rows = statement.query(params![site.as_bytes(), way.0])?;
                while let Some(row) = rows.next()? {
                    let (from, to) = (cursor(row, 0)?, cursor(row, 2)?);
                    broken |= from > reached.unwrap_or(merged);
                    reached = Some(to);
                }
            }
            if broken {
                let sql = "DELETE FROM inbox WHERE site_id = ? AND way = ?";
                transaction.execute(sql, params![site.as_bytes(), way.0])?;
                reached = None;
            }
            Ok(reached.unwrap_or(merged))
        })
    }

    /// How far the packs of `origin` in the inbox reach, if there are any.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn reaches(&self, origin: impl Into<Origin>) -> Result<Option<Cursor>, StateError> {
        let Origin { site, way } = origin.into();
        self.read(|connection| {
            let sql = "SELECT to_version, to_seq FROM inbox WHERE site_id = ? AND way = ? ORDER BY id DESC LIMIT 1";
            connection.prepare_cached(sql)?.query_row(params![site.as_bytes(), way.0], |row| cursor(row, 0)).optional()
        })
    }

    /// Puts a stretch at the end of the inbox. Empty stretches that follow each other become one.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn store(
        &mut self,
        origin: impl Into<Origin>,
        from: Cursor,
        to: Cursor,
        pack: Option<(&[u8], usize)>,
    ) -> Result<(), StateError> {
        self.store_of_bundle(origin, from, to, pack, None)
    }

    /// As [`State::store`], of the pack with this id of a bundle that nobody has signed, which is then known.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn store_of_bundle(
        &mut self,
        origin: impl Into<Origin>,
        from: Cursor,
        to: Cursor,
        pack: Option<(&[u8], usize)>,
        id: Option<&PackId>,
    ) -> Result<(), StateError> {
        let origin = origin.into();
        self.write(|transaction| {
            if let Some(id) = id {
                note_bundle_pack(transaction, id)?;
            }
            if pack.is_none() && extend_empty(transaction, origin, to)? {
                return Ok(());
            }
            let (bytes, changes) = pack.unzip();
            transaction
                .prepare_cached(
                    "INSERT INTO inbox (site_id, way, from_version, from_seq, to_version, to_seq, changes, pack)
                     VALUES (:site, :way, :from_version, :from_seq, :to_version, :to_seq, :changes, :pack)",
                )?
                .execute(named_params! {
                    ":site": origin.site.as_bytes(),
                    ":way": origin.way.0,
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

    /// Whether the pack with this id is one of the last that were taken from bundles that nobody has signed.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn knows_bundle_pack(&self, id: &PackId) -> Result<bool, StateError> {
        const SQL: &str = "SELECT EXISTS (SELECT 1 FROM bundle_pack WHERE id = ?)";
        self.read(|connection| connection.prepare_cached(SQL)?.query_row([id.as_bytes()], |row| row.get(0)))
    }

    /// Forgets what was fetched from `origin`: it has begun anew.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn drop_inbox(&mut self, origin: impl Into<Origin>) -> Result<(), StateError> {
        let Origin { site, way } = origin.into();
        let sql = "DELETE FROM inbox WHERE site_id = ? AND way = ?";
        self.write(|t| t.execute(sql, params![site.as_bytes(), way.0]).map(drop))
    }

    /// Has what was fetched from the site of `origin` by the way `before` count as come by in that of `origin`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn adopt(&mut self, before: Way, origin: Origin) -> Result<(), StateError> {
        const IS_KEPT: &str = "SELECT EXISTS (SELECT 1 FROM inbox WHERE site_id = ?1 AND way = ?2)
             OR EXISTS (SELECT 1 FROM origin_schema WHERE site_id = ?1 AND way = ?2)";
        let Origin { site, way } = origin;
        let old = params![site.as_bytes(), before.0];
        let is_kept: bool = self.read(|c| c.prepare_cached(IS_KEPT)?.query_row(old, |row| row.get(0)))?;
        if !is_kept {
            return Ok(());
        }
        self.write(|transaction| {
            for table in ["inbox", "origin_schema"] {
                let sql = format!("UPDATE OR REPLACE {table} SET way = ? WHERE site_id = ? AND way = ?");
                transaction.execute(&sql, params![way.0, site.as_bytes(), before.0])?;
            }
            Ok(())
        })
    }

    /// The ways by which something in the inbox of `site` was come by.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn inbox_origins(&self, site: &SiteId) -> Result<Vec<Origin>, StateError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT DISTINCT way FROM inbox WHERE site_id = ? ORDER BY way")?
                .query_map([site.as_bytes()], |row| Ok(Origin { site: *site, way: Way(row.get(0)?) }))?
                .collect()
        })
    }

    /// The oldest stretch of `site` in the inbox.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn next_stretch(&self, site: &SiteId) -> Result<Option<Stretch>, StateError> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT id, from_version, from_seq, to_version, to_seq, pack, way FROM inbox
                     WHERE site_id = ? ORDER BY id LIMIT 1",
                )?
                .query_row([site.as_bytes()], |row| {
                    let (from, to) = (cursor(row, 1)?, cursor(row, 3)?);
                    Ok(Stretch { id: row.get(0)?, way: Way(row.get(6)?), from, to, pack: row.get(5)? })
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

/// Packs of bundles that are known.
const MOST_BUNDLE_PACKS: i64 = 65_536;

fn note_bundle_pack(transaction: &Transaction<'_>, id: &PackId) -> rusqlite::Result<()> {
    const ADD: &str = "INSERT INTO bundle_pack (id) VALUES (?) ON CONFLICT (id) DO NOTHING";
    transaction.prepare_cached(ADD)?.execute([id.as_bytes()])?;
    const BOUND: &str = "DELETE FROM bundle_pack WHERE number <= (SELECT max(number) FROM bundle_pack) - ?";
    transaction.prepare_cached(BOUND)?.execute([MOST_BUNDLE_PACKS]).map(drop)
}

/// Moves the end of the last stretch of `origin`, if that is an empty one; whether it was.
fn extend_empty(transaction: &Transaction<'_>, origin: Origin, to: Cursor) -> rusqlite::Result<bool> {
    let moved = transaction
        .prepare_cached(
            "UPDATE inbox SET to_version = ?2, to_seq = ?3
             WHERE id = (SELECT max(id) FROM inbox WHERE site_id = ?1 AND way = ?4) AND pack IS NULL",
        )?
        .execute(params![origin.site.as_bytes(), to.version, to.seq, origin.way.0])?;
    Ok(moved > 0)
}
