//! Changes that cannot be sent: their records are not what the engine writes. They are left out, so that all the others
//! travel, and told: by who makes packs, and by who looks for what is wrong.

use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};

use super::{Database, DatabaseError, TableShape, schema::quote};
use crate::changeset::{Cursor, MAX_VERSION, SENTINEL, SiteId};

/// A change that cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsent {
    /// Its table.
    pub table: String,
    /// The values of its key as SQL writes them.
    pub key: String,
    /// Its column; `-1` if it is about the row.
    pub column: String,
    /// Why it cannot be sent.
    pub reason: String,
}

/// Changes that cannot be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// How many.
    pub count: u64,
    /// The first of them, [`LeftOut::MOST`] at most.
    pub first: Vec<Unsent>,
}

impl LeftOut {
    /// As many are told one by one.
    pub const MOST: usize = 5;

    /// Adds one.
    pub fn add(&mut self, unsent: Unsent) {
        self.count = self.count.saturating_add(1);
        if self.first.len() < Self::MOST {
            self.first.push(unsent);
        }
    }

    /// Adds others.
    pub fn extend(&mut self, others: Self) {
        self.count = self.count.saturating_add(others.count);
        let room = Self::MOST.saturating_sub(self.first.len());
        self.first.extend(others.first.into_iter().take(room));
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Why a change of a site that the file does not know cannot be sent.
pub(super) const UNKNOWN_SITE: &str = "the site that made it is not known: crsql_site_id lacks a row";

/// Why no change of a table can be sent that cannot be read.
const UNREADABLE: &str = "its key is compared by a collation that only its application knows";

/// Why a change of a key that no table with CRRs holds cannot be sent.
const NULL_KEY: &str = "its key contains a NULL";

/// Why a change whose numbers no engine writes cannot be sent.
const OUT_OF_RANGE: &str = "its versions are out of range";

/// Why a change cannot be sent that was made where somebody had claimed the highest version there is.
const TOO_HIGH: &str = "its version is higher than any that is sent";

impl Database {
    /// The changes that cannot be sent, as far as their records tell. Reads all records.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn unsendable(&self) -> Result<LeftOut, DatabaseError> {
        self.unsendable_after(0)
    }

    /// The same of what was written after `version`. Reads the records of that.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn unsendable_after(&self, version: i64) -> Result<LeftOut, DatabaseError> {
        let mut left_out = LeftOut::default();
        for table in self.tables()? {
            self.wrap(self.unsendable_of(&table, version, &mut left_out))?;
        }
        Ok(left_out)
    }

    fn unsendable_of(&self, table: &TableShape, version: i64, left_out: &mut LeftOut) -> rusqlite::Result<()> {
        let name = |end: &str| quote(&format!("{}__crsql_{end}", table.name));
        let keys = self.recorded_keys(table)?;
        if keys.is_empty() {
            return Ok(());
        }
        let is_null: Vec<String> = keys.iter().map(|key| format!("{key} IS NULL")).collect();
        // Of all records, the table is read in its own order, not in that of versions.
        let after = if version > 0 { format!("AND records.db_version > {version}") } else { String::new() };
        let shown: Vec<String> = keys.iter().map(|key| format!("quote({key})")).collect();
        let sql = format!(
            "SELECT records.col_name, {}, site.ordinal IS NULL OR length(site.site_id) NOT BETWEEN 1 AND 16, {},
                 records.col_version > ?1
             FROM {} AS records JOIN {} AS keys ON keys.__crsql_key = records.key
                 LEFT JOIN crsql_site_id AS site ON site.ordinal = records.site_id
             WHERE (site.ordinal IS NULL OR length(site.site_id) NOT BETWEEN 1 AND 16 OR {}
                 OR records.db_version NOT BETWEEN 1 AND ?1
                 OR records.col_version NOT BETWEEN records.col_name = '{SENTINEL}' AND ?1 OR records.seq < 0)
                 {after}",
            shown.join(" || ', ' || "),
            is_null.join(" OR "),
            name("clock"),
            name("pks"),
            is_null.join(" OR "),
        );
        let mut statement = self.connection.prepare(&sql)?;
        let mut rows = statement.query(params![MAX_VERSION])?;
        while let Some(row) = rows.next()? {
            left_out.add(unsent(&table.name, row)?);
        }
        Ok(())
    }
}

impl Database {
    /// The changes of `tables`, which cannot be read here, from behind the first place to the second, but those of
    /// `reader`.
    pub(super) fn unread(
        &self,
        tables: &[TableShape],
        (after, end): (Cursor, Cursor),
        reader: Option<&SiteId>,
    ) -> rusqlite::Result<LeftOut> {
        let mut left_out = LeftOut::default();
        for table in tables {
            let name = |end: &str| quote(&format!("{}__crsql_{end}", table.name));
            let shown: Vec<String> = self.recorded_keys(table)?.iter().map(|key| format!("quote({key})")).collect();
            let sql = format!(
                "SELECT records.col_name, {}
                 FROM {} AS records JOIN {} AS keys ON keys.__crsql_key = records.key
                     LEFT JOIN crsql_site_id AS site ON site.ordinal = records.site_id
                 WHERE (records.db_version, records.seq) > (?1, ?2) AND (records.db_version, records.seq) <= (?3, ?4)
                     AND site.site_id IS NOT ?5",
                if shown.is_empty() { "''".to_owned() } else { shown.join(" || ', ' || ") },
                name("clock"),
                name("pks"),
            );
            // No site has an empty id.
            let reader = reader.map_or(&[][..], SiteId::as_bytes);
            let mut statement = self.connection.prepare(&sql)?;
            let mut rows = statement.query(params![after.version, after.seq, end.version, end.seq, reader])?;
            while let Some(row) = rows.next()? {
                let (key, column) = (text(row, 1)?, text(row, 0)?);
                left_out.add(Unsent { table: table.name.clone(), key, column, reason: UNREADABLE.to_owned() });
            }
        }
        Ok(left_out)
    }

    /// The columns of the table's keys, as they are recorded: those of the table itself may have been renamed since.
    pub(super) fn recorded_keys(&self, table: &TableShape) -> rusqlite::Result<Vec<String>> {
        let sql = "SELECT name FROM pragma_table_info(?1, 'main') WHERE name <> '__crsql_key' COLLATE NOCASE";
        let mut statement = self.connection.prepare_cached(sql)?;
        let names = statement.query_map([format!("{}__crsql_pks", table.name)], |row| row.get::<_, String>(0))?;
        names.map(|name| Ok(format!("keys.{}", quote(&name?)))).collect()
    }
}

fn unsent(table: &str, row: &Row<'_>) -> rusqlite::Result<Unsent> {
    let reason = match (row.get(2)?, row.get(3)?, row.get(4)?) {
        (true, _, _) => UNKNOWN_SITE,
        (_, true, _) => NULL_KEY,
        (_, _, true) => TOO_HIGH,
        _ => OUT_OF_RANGE,
    };
    Ok(Unsent { table: table.to_owned(), key: text(row, 1)?, column: text(row, 0)?, reason: reason.into() })
}

fn text(row: &Row<'_>, at: usize) -> rusqlite::Result<String> {
    Ok(String::from_utf8_lossy(row.get_ref(at)?.as_bytes().unwrap_or_default()).into_owned())
}
