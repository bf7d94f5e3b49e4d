//! What can be read of a damaged state file.

use std::path::Path;

use rusqlite::{Connection, Row, Transaction, params};

use super::{
    State, StateError,
    waiting::{self, Cause, Kept},
};
use crate::changeset::{Limits, SiteId, Unpacked};

/// Why what is salvaged waits: until the next merge.
const SALVAGED: &str = "saved from a state.db that was damaged; `ddcp merge` merges it";

impl State {
    /// Takes over what can be read of the damaged file `old`, and makes sense: packs, of the inbox and such that waited,
    /// which wait for the next merge; contacts; the log. Returns the number of packs.
    ///
    /// # Errors
    /// [`StateError`] where this file cannot be written.
    pub(in crate::repo) fn salvage(&mut self, old: &Self) -> Result<u64, StateError> {
        let old = &old.connection;
        self.write(|transaction| {
            take_log(old, transaction)?;
            take_contacts(old, transaction)?;
            Ok(take_packs(old, transaction, "waiting")? + take_packs(old, transaction, "inbox")?)
        })
    }

    /// As [`State::look`], of a file that is damaged; `None` if it is not even a database.
    pub(in crate::repo) fn look_at_damaged(path: &Path) -> Option<Self> {
        Self::look_anyway(path).ok()
    }
}

fn take_packs(old: &Connection, new: &Transaction<'_>, table: &str) -> rusqlite::Result<u64> {
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let mut packs = 0;
    each(old, table, "site_id, pack", read, |(site, bytes): (Vec<u8>, Option<Vec<u8>>)| {
        let Some(bytes) = bytes else { return Ok(()) };
        // Damage inside a pack does not get past its checks.
        let Ok(pack) = Unpacked::decode(&bytes, &Limits::of_stored()) else { return Ok(()) };
        let site = SiteId::from_bytes(&site).unwrap_or(pack.source);
        packs += 1;
        let kept = Kept { site: &site, pack: &pack, cause: Cause::Data, reasons: SALVAGED, schema: None };
        waiting::keep(new, &kept, Some(&bytes)).map(drop)
    })?;
    Ok(packs)
}

fn take_contacts(old: &Connection, new: &Transaction<'_>) -> rusqlite::Result<()> {
    type Contact = (String, String, Option<Vec<u8>>, Option<i64>, Option<i64>, Option<String>);
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?));
    let columns = "remote, address, site_id, db_version, last_contact, last_error";
    each(old, "contact", columns, read, |(remote, address, site, version, contact, error): Contact| {
        let site = site.filter(|site| SiteId::from_bytes(site).is_ok());
        let sql = format!("INSERT OR IGNORE INTO contact ({columns}) VALUES (?, ?, ?, ?, ?, ?)");
        new.execute(&sql, params![remote, address, site, version, contact, error]).map(drop)
    })
}

fn take_log(old: &Connection, new: &Transaction<'_>) -> rusqlite::Result<()> {
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    each(old, "log", "at, took, remote, event", read, |(at, took, remote, event): (i64, i64, String, String)| {
        let sql = "INSERT INTO log (at, took, remote, event) SELECT ?1, ?2, ?3, ?4 WHERE json_valid(?4)";
        new.execute(sql, params![at, took, remote, event]).map(drop)
    })
}

/// Gives to `store` what `read` makes of each row of `table` that can be read.
fn each<T>(
    old: &Connection,
    table: &str,
    columns: &str,
    read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    mut store: impl FnMut(T) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    for id in ids(old, table) {
        // One by one: what cannot be read ends a statement.
        let row = old.query_row(&format!("SELECT {columns} FROM {table} WHERE rowid = ?"), [id], |row| read(row));
        if let Ok(row) = row {
            store(row)?;
        }
    }
    Ok(())
}

/// The places of the rows, from the first up to one where the table cannot be read, and from the last down to another.
fn ids(old: &Connection, table: &str) -> Vec<i64> {
    let mut found: Vec<i64> = Vec::new();
    for order in ["ASC", "DESC"] {
        let after = found.last().copied();
        let sql = format!("SELECT rowid FROM {table} WHERE ?1 IS NULL OR rowid > ?1 ORDER BY rowid {order}");
        let Ok(mut statement) = old.prepare(&sql) else { continue };
        let Ok(rows) = statement.query_map([after], |row| row.get::<_, i64>(0)) else { continue };
        let mut last = None;
        for id in rows.map_while(Result::ok) {
            // A table that leads back into itself has no end.
            if last.is_some_and(|last| (id > last) != (order == "ASC")) {
                break;
            }
            last = Some(id);
            found.push(id);
        }
    }
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests;
