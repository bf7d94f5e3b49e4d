//! Versions that are read by rows.
//!
//! A cursor tells changes apart by version and seq. Engines that keep the sender's seq when they merge (CR-SQLite does,
//! and earlier releases of this program did) and those that stamp the old cells of a row that comes back to life with a
//! new version give any number of changes one place, of any size. No pack could end among them, and one that held them
//! all might be larger than readers take. So the changes of such a version are given in the order of their rows
//! instead, and each row gets a place of its own, behind all that a seq can be: see [`place_of`]. Readers need not know:
//! to them it is a seq like any other.
//!
//! What a version holds only ever becomes less, and a row keeps its number. So whoever has read up to one of these places
//! has everything of the rows before it, and whoever had read a part of the version by seqs is given that again, which
//! does no harm. All changes of one row fit into a pack, since SQLite bounds the size of a row.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, OptionalExtension, Statement, named_params};

use super::{
    Database, DatabaseError, TableShape, moved,
    read::{Packer, Record, lossy},
    schema::quote,
};
use crate::changeset::{Cursor, SENTINEL, SiteId, Value};

/// Seqs from here on stand for rows, but for that of a whole version.
pub(super) const FIRST: i64 = 1 << 62;

/// Bits of a row's number within its table. The engine has room for numbers up to 10^13.
const KEY_BITS: u32 = 44;

/// The highest number of a row, and the bits of one.
const LAST_KEY: i64 = (1 << KEY_BITS) - 1;

/// Numbers of tables; one less than there are bits for, so that no place is that of a whole version.
const TABLES: u32 = (1 << 18) - 1;

/// Where a version that is read by rows begins.
pub(super) fn start_of(version: i64) -> Cursor {
    Cursor { version, seq: FIRST }
}

/// Whether a reader who asks for what lies behind `cursor` is in the middle of a version that is read by rows.
pub(super) fn is_within(cursor: Cursor) -> bool {
    (FIRST..i64::MAX).contains(&cursor.seq)
}

/// The place of a row: after that of every row with a smaller number of the same table. Tables come in the order of
/// a number that is made of their names, so that a table which is added or dropped meanwhile moves no other one.
fn place_of(version: i64, table: u32, key: i64) -> Cursor {
    Cursor { version, seq: FIRST | i64::from(table) << KEY_BITS | key }
}

fn number_of(table: &str) -> u32 {
    let hash = blake3::hash(table.to_ascii_lowercase().as_bytes());
    hash.as_bytes()[..4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte)) % TABLES
}

impl Database {
    /// Gives `packer` the changes of the version in which `after` lies, of the rows behind it. Says whether it took
    /// them all. Takes time linear in their number.
    pub(super) fn read_by_rows(&self, after: Cursor, packer: &mut Packer<'_>) -> Result<bool, DatabaseError> {
        let read = after.seq - FIRST;
        let (first, key) = ((read >> KEY_BITS) as u32, read & LAST_KEY);
        let mut tables: BTreeMap<u32, Vec<&TableShape>> = BTreeMap::new();
        for table in packer.tables() {
            tables.entry(number_of(&table.name)).or_default().push(table);
        }
        for (number, tables) in tables.range(first..) {
            let after = place_of(after.version, *number, if *number == first { key } else { 0 });
            if !self.read_rows_of(tables, after, packer)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The rows of tables that have one number, mostly of one.
    fn read_rows_of(
        &self,
        tables: &[&TableShape],
        after: Cursor,
        packer: &mut Packer<'_>,
    ) -> Result<bool, DatabaseError> {
        let records: Vec<String> = tables.iter().enumerate().map(|(at, table)| records_sql(at, table)).collect();
        let order = if tables.len() > 1 { "2, 1" } else { "2" };
        let sql = format!("{} ORDER BY {order}", records.join(" UNION ALL "));
        let mut statement = self.wrap(self.connection.prepare(&sql))?;
        let mut rows = self.wrap(statement.query(named_params! {
            ":version": after.version,
            ":after": after.seq & LAST_KEY,
            ":last": LAST_KEY,
            ":reader": packer.reader(),
        }))?;
        let mut readers = Vec::new();
        for table in tables {
            readers.push(Rows::new(&self.connection, table, &self.wrap(self.recorded_keys(table))?));
        }
        let mut row: Option<Row> = None;
        while let Some(next) = self.wrap(rows.next())? {
            let (at, key) = (self.wrap(next.get::<_, u32>(0))? as usize, self.wrap(next.get(1))?);
            if let Some(whole) = row.take_if(|row| (row.at, row.key) != (at, key))
                && !self.give(&mut readers[whole.at], after, whole, packer)?
            {
                return Ok(false);
            }
            let row = row.get_or_insert_with(|| Row { at, key, records: Vec::new() });
            row.records.push(self.wrap(Recorded::read(next))?);
        }
        row.map_or(Ok(true), |row| self.give(&mut readers[row.at], after, row, packer))
    }

    /// Gives a row. Says whether it was taken.
    fn give(
        &self,
        rows: &mut Rows<'_, '_>,
        after: Cursor,
        mut row: Row,
        packer: &mut Packer<'_>,
    ) -> Result<bool, DatabaseError> {
        let place = Cursor { seq: after.seq & !LAST_KEY | row.key, ..after };
        if packer.cut_for(place).is_break() {
            return Ok(false);
        }
        let Some(Known { pk, cl, created }) = self.wrap(rows.known(row.key))? else { return Ok(true) };
        // What is said of the row as a whole comes first.
        row.records.sort_unstable_by(|a, b| (a.cid != SENTINEL, &a.cid).cmp(&(b.cid != SENTINEL, &b.cid)));
        for Recorded { cid, col_version, site } in &row.records {
            let is_moved = cid != SENTINEL && created.is_some_and(|created| place.version < created);
            let Some(val) = (if is_moved { None } else { self.wrap(rows.value(row.key, cid))? }) else { continue };
            let (table, col_version, site) = (&*rows.table.name, *col_version, *site);
            let record = Record { table, pk: &pk, cid, val: val.as_ref(), col_version, place, site, cl };
            packer.give(&record, row.key)?;
        }
        Ok(true)
    }
}

/// The records of a version of one table that the reader did not write, as its place, key, column, version and site.
fn records_sql(at: usize, table: &TableShape) -> String {
    format!(
        "SELECT {at}, records.key, records.col_name, records.col_version, site.site_id
         FROM {} AS records LEFT JOIN crsql_site_id AS site ON site.ordinal = records.site_id
         WHERE records.db_version = :version AND records.key > :after AND records.key <= :last
             AND site.site_id IS NOT :reader",
        quote(&format!("{}__crsql_clock", table.name))
    )
}

/// What a version holds of a row.
struct Row {
    /// The place of its table.
    at: usize,
    key: i64,
    records: Vec<Recorded>,
}

struct Recorded {
    cid: String,
    col_version: i64,
    /// Not known of some damaged files.
    site: Option<SiteId>,
}

impl Recorded {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        let site = row.get_ref(4)?.as_bytes().ok().and_then(|id| SiteId::from_bytes(id).ok());
        Ok(Self { cid: lossy(row.get_ref(2)?.as_bytes()?).into_owned(), col_version: row.get(3)?, site })
    }
}

/// What is known of a row besides.
struct Known {
    pk: Vec<u8>,
    cl: i64,
    /// The version in which it was created, if that is recorded; see [`moved`].
    created: Option<i64>,
}

/// Finds the rows of a table.
struct Rows<'c, 't> {
    connection: &'c Connection,
    table: &'t TableShape,
    known_sql: String,
    known: Option<Statement<'c>>,
    /// By columns.
    values: HashMap<usize, Statement<'c>>,
}

impl<'c, 't> Rows<'c, 't> {
    fn new(connection: &'c Connection, table: &'t TableShape, keys: &[String]) -> Self {
        let name = |end: &str| quote(&format!("{}__crsql_{end}", table.name));
        let (clock, pks) = (name("clock"), name("pks"));
        let known_sql = format!(
            "SELECT crsql_pack_columns({}), records.col_version, records.db_version FROM {pks} AS keys
             LEFT JOIN {clock} AS records ON records.key = keys.__crsql_key AND records.col_name = '{SENTINEL}'
             WHERE keys.__crsql_key = ?1",
            keys.join(", ")
        );
        Self { connection, table, known_sql, known: None, values: HashMap::new() }
    }

    /// None if there is no such row, as in damaged files.
    fn known(&mut self, key: i64) -> rusqlite::Result<Option<Known>> {
        let statement = match &mut self.known {
            Some(statement) => statement,
            unprepared => unprepared.insert(self.connection.prepare(&self.known_sql)?),
        };
        let known = statement.query_row([key], |row| {
            let length: Option<i64> = row.get(1)?;
            let version: Option<i64> = row.get(2)?;
            let is_alive = length.is_some_and(|length| length % 2 == 1);
            Ok(Known { pk: row.get(0)?, cl: length.unwrap_or(1), created: version.filter(|_| is_alive) })
        });
        known.optional()
    }

    /// The value of a cell; NULL for the record of the row. None if there is no such column any more.
    fn value(&mut self, key: i64, cid: &str) -> rusqlite::Result<Option<Value>> {
        if cid == SENTINEL {
            return Ok(Some(Value::Null));
        }
        let Some(column) = moved::column(self.table, cid.as_bytes()) else { return Ok(None) };
        let statement = match self.values.entry(column) {
            std::collections::hash_map::Entry::Occupied(prepared) => prepared.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(self.connection.prepare(&moved::value_sql(self.table, &self.table.columns[column]))?)
            }
        };
        // A row that is gone though its records say that it is there reads as NULLs, as in `crsql_changes`.
        Ok(Some(statement.query_row([key], |row| row.get(0)).optional()?.unwrap_or(Value::Null)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_place_of_a_row_is_the_end_of_its_version() {
        let last = place_of(1, TABLES - 1, LAST_KEY);
        assert!(is_within(last) && last < Cursor::whole(1));
        assert!(is_within(start_of(1)) && start_of(1) < place_of(1, 0, 1));
        assert!(!is_within(Cursor::whole(1)) && !is_within(Cursor { version: 1, seq: FIRST - 1 }));
        assert_eq!(number_of("Notes"), number_of("notes"));
    }
}
