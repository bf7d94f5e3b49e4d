//! What was fetched and cannot be merged yet.

use rusqlite::{
    OptionalExtension, Row, Transaction, params,
    types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef},
};

use super::{State, StateError, site_id};
use crate::{
    changeset::{self, Pack, SiteId, Unpacked},
    database::Origin,
};

/// How the layout of `waiting` came to know what could let changes in. What is `tried` with is unknown of changes that
/// were kept by an earlier program; they are tried once more. The identity of changes was that of the bytes they were
/// kept in, and is that of what they say.
pub(super) const STEP: &str = "
    ALTER TABLE waiting RENAME COLUMN pack_id TO content;
    ALTER TABLE waiting ADD COLUMN cause TEXT NOT NULL DEFAULT 'data';
    ALTER TABLE waiting ADD COLUMN tried_schema BLOB;
    ALTER TABLE waiting ADD COLUMN tried_data BLOB;
    CREATE INDEX waiting_site ON waiting (site_id, id);
";

/// A hash of what a database looked like.
pub(crate) type Stamp = [u8; 32];

/// What has to be different before changes that wait may fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The schema: a table, a column, a key.
    Schema,
    /// The data or the schema: a constraint, a trigger, an index.
    Data,
}

impl ToSql for Cause {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Schema => "schema".into(),
            Self::Data => "data".into(),
        })
    }
}

impl FromSql for Cause {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(if value.as_str()? == "schema" { Self::Schema } else { Self::Data })
    }
}

/// Changes to keep.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// The site whose merges are to try them again.
    pub site: &'a SiteId,
    /// The changes.
    pub pack: &'a Pack,
    /// What has to be different before they may fit.
    pub cause: Cause,
    /// Why they wait: lines, one sentence each.
    pub reasons: &'a str,
    /// The schema with which they did not fit; `None` if they were not tried.
    pub schema: Option<&'a Stamp>,
}

/// Changes that wait, without themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Their place in the list.
    pub id: i64,
    /// The site whose merges try them again.
    pub site: SiteId,
    /// What has to be different before they may fit.
    pub cause: Cause,
    /// How many there are.
    pub changes: u64,
    /// Why they wait: lines, one sentence each.
    pub reasons: String,
    /// Since when, in seconds since 1970; `None` if an earlier program kept them.
    pub since: Option<i64>,
}

impl State {
    /// Keeps changes that could not be merged, and gives their places. Keeping the same ones twice is once, whatever
    /// bytes they come in.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn keep_waiting(&mut self, kept: &[Kept<'_>]) -> Result<Vec<i64>, StateError> {
        self.write(|transaction| kept.iter().map(|kept| keep(transaction, kept, None)).collect())
    }

    /// Has the whole inbox wait instead, so that nothing of it counts as read: this database is about to get another
    /// site id, and what was fetched under the old one lacks what that site wrote.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn put_inbox_aside(&mut self) -> Result<(), StateError> {
        self.inbox_sites()?.iter().try_for_each(|site| self.put_aside(site))
    }

    /// Has what was fetched from `site`, by whatever way, wait instead: it is to be read from the start, and may have lost
    /// this since.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn put_aside(&mut self, site: &SiteId) -> Result<(), StateError> {
        self.inbox_origins(site)?.into_iter().try_for_each(|origin| self.put_aside_origin(origin))
    }

    /// As [`State::put_aside`], of one way.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn put_aside_origin(&mut self, origin: Origin) -> Result<(), StateError> {
        if self.reaches(origin)?.is_none() {
            return Ok(());
        }
        self.write(|transaction| put_aside(transaction, origin, &origin.site))
    }

    /// Everything that waits, or what waits of one site, in the order in which it came.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn waiting(&self, site: Option<&SiteId>) -> Result<Vec<Waiting>, StateError> {
        let sql = "SELECT id, site_id, cause, changes, substr(reasons, 1, 2000), since FROM waiting
                   WHERE ?1 IS NULL OR site_id = ?1 ORDER BY id";
        self.read(|connection| {
            connection.prepare_cached(sql)?.query_map([site.map(SiteId::as_bytes)], waiting)?.collect()
        })
    }

    /// The encoded pack of changes that wait; `None` if they wait no longer.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn waiting_pack(&self, id: i64) -> Result<Option<Vec<u8>>, StateError> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT pack FROM waiting WHERE id = ?")?
                .query_row([id], |row| row.get(0))
                .optional()
        })
    }

    /// Places of the changes of `site` that may fit a database of this schema and data, though they did not when they
    /// were last tried.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn waiting_due(&self, site: &SiteId, schema: &Stamp, data: &Stamp) -> Result<Vec<i64>, StateError> {
        let sql = "SELECT id FROM waiting WHERE site_id = ?1
                   AND (tried_schema IS NOT ?2 OR (cause = 'data' AND tried_data IS NOT ?3)) ORDER BY id";
        self.read(|connection| {
            connection
                .prepare_cached(sql)?
                .query_map(params![site.as_bytes(), schema, data], |row| row.get(0))?
                .collect()
        })
    }

    /// Notes that all changes of `site` that wait do not fit a database of this schema and data.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn note_tried(&mut self, site: &SiteId, schema: &Stamp, data: &Stamp) -> Result<(), StateError> {
        let sql =
            "UPDATE waiting SET tried_data = ?3 WHERE site_id = ?1 AND tried_schema = ?2 AND tried_data IS NOT ?3";
        self.write(|t| t.execute(sql, params![site.as_bytes(), schema, data]).map(drop))
    }

    /// Has the next merge try all changes that wait, or those of one site, whatever they were tried with.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn forget_tries(&mut self, site: Option<&SiteId>) -> Result<(), StateError> {
        let sql = "UPDATE waiting SET tried_schema = NULL, tried_data = NULL WHERE ?1 IS NULL OR site_id = ?1";
        self.write(|t| t.execute(sql, [site.map(SiteId::as_bytes)]).map(drop))
    }

    /// Removes changes of which others, which are kept already, are what is left. These have been waiting as long.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn replace_waiting(&mut self, old: &[i64], new: &[i64]) -> Result<(), StateError> {
        self.write(|transaction| {
            let mut since = transaction.prepare_cached("SELECT since FROM waiting WHERE id = ?")?;
            let since = |id: &i64| since.query_row([id], |row| row.get::<_, Option<i64>>(0)).optional();
            let since =
                old.iter().map(since).collect::<rusqlite::Result<Vec<_>>>()?.into_iter().flatten().min().flatten();
            let mut keep = transaction.prepare_cached("UPDATE waiting SET since = ?2 WHERE id = ?1")?;
            let mut delete = transaction.prepare_cached("DELETE FROM waiting WHERE id = ?")?;
            new.iter().try_for_each(|id| keep.execute(params![id, since]).map(drop))?;
            old.iter().filter(|id| !new.contains(id)).try_for_each(|id| delete.execute([id]).map(drop))
        })
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

    /// Packs of `site` that wait.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn waiting_places(&self, site: &SiteId) -> Result<u64, StateError> {
        self.count("SELECT count(*) FROM waiting WHERE site_id = ?", site)
    }

    /// Changes of `site` that wait, and the reasons, one sentence each; of many only the first, and how many more.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn waiting_changes(&self, site: &SiteId) -> Result<(u64, Vec<String>), StateError> {
        let changes = self.count("SELECT coalesce(sum(changes), 0) FROM waiting WHERE site_id = ?", site)?;
        // An earlier program kept whatever names a peer had chosen.
        let sql = format!(
            "SELECT DISTINCT substr(reasons, 1, {MOST_REASON}) FROM waiting WHERE site_id = ? LIMIT {MOST_LOOKED_AT}"
        );
        let kept: Vec<String> = self.read(|connection| {
            connection.prepare_cached(&sql)?.query_map([site.as_bytes()], |row| row.get(0))?.collect()
        })?;
        let mut reasons: Vec<String> = kept.iter().flat_map(|reasons| reasons.lines()).map(str::to_owned).collect();
        reasons.sort();
        reasons.dedup();
        if reasons.len() > MOST_TOLD {
            let more = reasons.split_off(MOST_TOLD).len();
            let least = if kept.len() == MOST_LOOKED_AT { "at least " } else { "" };
            reasons.push(format!("and {least}{more} more reasons"));
        }
        Ok((changes, reasons))
    }
}

/// What a pack that is kept takes beside its bytes and its reasons.
pub(super) const PLACE_BYTES: u64 = 200;

/// Characters of reasons that are told, reasons of one site that are looked at, and such that are told.
const MOST_REASON: usize = 2000;
const MOST_LOOKED_AT: usize = 1000;
const MOST_TOLD: usize = 50;

fn waiting(row: &Row<'_>) -> rusqlite::Result<Waiting> {
    let changes: i64 = row.get(3)?;
    let (id, cause, reasons, since) = (row.get(0)?, row.get(2)?, row.get(4)?, row.get(5)?);
    Ok(Waiting { id, site: site_id(row, 1)?, cause, changes: changes.unsigned_abs(), reasons, since })
}

/// `encoded` is the pack as bytes, if it is there already.
pub(super) fn keep(transaction: &Transaction<'_>, kept: &Kept<'_>, encoded: Option<&[u8]>) -> rusqlite::Result<i64> {
    let made;
    let bytes = match encoded {
        Some(bytes) => bytes,
        None => {
            made = kept.pack.encode();
            &made
        }
    };
    transaction
        .prepare_cached(
            "INSERT INTO waiting (site_id, content, changes, cause, reasons, tried_schema, pack, since)
             VALUES (?, ?, ?, ?, ?, ?, ?, unixepoch())
             ON CONFLICT (content) DO UPDATE SET
               cause = excluded.cause, reasons = excluded.reasons, tried_schema = excluded.tried_schema, tried_data = NULL
             RETURNING id",
        )?
        .query_row(
            params![
                kept.site.as_bytes(),
                kept.pack.content(kept.site),
                kept.pack.changes.len() as i64,
                kept.cause,
                kept.reasons,
                kept.schema,
                bytes
            ],
            |row| row.get(0),
        )
}

/// Has what was fetched from `old` wait for the next merge of `new`, of which it is no stretch. Holds one pack in memory.
pub(super) fn put_aside(transaction: &Transaction<'_>, old: Origin, new: &SiteId) -> rusqlite::Result<()> {
    const REASON: &str = "fetched from or for a database that was restored, copied or removed since";
    let Origin { site, way } = old;
    transaction
        .execute("UPDATE waiting SET site_id = ? WHERE site_id = ?", params![new.as_bytes(), site.as_bytes()])?;
    let next = "SELECT id, pack FROM inbox WHERE site_id = ? AND way = ? AND pack IS NOT NULL ORDER BY id LIMIT 1";
    let mut next = transaction.prepare(next)?;
    let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    while let Some::<(i64, Vec<u8>)>((id, bytes)) = next.query_row(params![site.as_bytes(), way.0], row).optional()? {
        match Unpacked::decode(&bytes, &changeset::Limits::of_stored()) {
            Ok(pack) => {
                let kept = Kept { site: new, pack: &pack, cause: Cause::Data, reasons: REASON, schema: None };
                keep(transaction, &kept, Some(&bytes))?;
            }
            Err(error) => tracing::warn!(%site, %error, "a pack that was damaged on disk cannot be put aside"),
        }
        transaction.execute("DELETE FROM inbox WHERE id = ?", [id])?;
    }
    let rest = "DELETE FROM inbox WHERE site_id = ? AND way = ?";
    transaction.execute(rest, params![site.as_bytes(), way.0]).map(drop)
}
