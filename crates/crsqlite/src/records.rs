//! The records of one `db_version`, in the order in which they came to be: that of `seq`.
//!
//! A clock table gives records in the order of keys. Those of an ordinary transaction are collected and sorted. Of one
//! with more than [`MOST_RECORDS`] only its parts are noted: stretches of keys, each with its lowest `seq`. A part is
//! read once the order has reached that. Transactions mostly write along the keys, so that few parts are in memory at
//! once; one that writes in any other order has all its records in memory in the end.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;

use rusqlite::types::ValueRef;

use crate::catalog::{Crr, SENTINEL, Shape};
use crate::changes::Wanted;
use crate::engine::Engine;
use crate::error::Result;
use crate::ffi::{Lease, Stmt};

/// Records of one `db_version` that are collected before they are sorted (48 bytes each).
const MOST_RECORDS: usize = if cfg!(test) { 64 } else { 1 << 17 };
/// Records of a part, about.
const PART_RECORDS: usize = if cfg!(test) { 16 } else { 1 << 13 };

/// The rows of one CRR that have records, by `db_version`.
pub(crate) struct Stream {
    crr: Rc<Crr>,
    rows: Option<Stmt>,
    /// The highest `db_version` wanted.
    last: i64,
    /// The `db_version` that statement stands on; none at the end.
    version: Option<i64>,
    /// The key of the row that statement stands on.
    key: i64,
}

impl Stream {
    pub(crate) fn start(engine: &Engine, crr: &Rc<Crr>, wanted: &Wanted) -> Result<Stream> {
        let mut rows = crr.scan.take(engine.db)?;
        rows.bind_copy(1, ValueRef::Integer(wanted.low))?;
        let mut stream = Stream { crr: Rc::clone(crr), rows: Some(rows), last: wanted.high, version: None, key: 0 };
        stream.step()?;
        Ok(stream)
    }

    /// The `db_version` of the row that it stands on; none at the end.
    pub(crate) fn version(&self) -> Option<i64> {
        self.version
    }

    pub(crate) fn crr(&self) -> &Rc<Crr> {
        &self.crr
    }

    fn step(&mut self) -> Result<()> {
        self.version = None;
        if let Some(rows) = &mut self.rows
            && rows.step()?
        {
            let version = rows.int(0);
            self.version = (version <= self.last).then_some(version);
            self.key = rows.int(1);
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(rows) = self.rows.take() {
            self.crr.scan.put(rows);
        }
    }
}

/// One record, without what is looked up only when it is shown.
#[derive(Clone, Copy)]
pub(crate) struct Record {
    pub(crate) stream: u32,
    /// Position of the column, or [`WHOLE_ROW`].
    pub(crate) column: u32,
    pub(crate) key: i64,
    pub(crate) col_version: i64,
    pub(crate) site: i64,
    pub(crate) seq: i64,
    pub(crate) causal_length: i64,
}

/// The position of the record that is about the row itself.
pub(crate) const WHOLE_ROW: u32 = u32::MAX;

impl Record {
    pub(crate) fn same_row(&self, other: &Record) -> bool {
        self.stream == other.stream && self.key == other.key
    }
}

/// The records of one stream and version.
struct Source<'s> {
    stream: u32,
    shape: &'s Shape,
    version: i64,
    wanted: &'s Wanted,
    stmt: Lease<'s>,
    /// The key of the row that statement stands on.
    at: Option<i64>,
}

impl<'s> Source<'s> {
    fn new(engine: &Engine, crr: &'s Crr, stream: usize, version: i64, wanted: &'s Wanted) -> Result<Source<'s>> {
        let stmt = crr.scan_rows.get(engine.db)?;
        let stream = u32::try_from(stream).unwrap_or(u32::MAX);
        Ok(Source { stream, shape: &crr.shape, version, wanted, stmt, at: None })
    }

    /// Adds the wanted records of row `key` to `records`. Afterwards the statement stands on the row
    /// after it, which is often the next one wanted.
    fn collect(&mut self, key: i64, records: &mut Vec<Record>) -> Result<()> {
        if self.at != Some(key) {
            self.stmt.reset();
            self.stmt.bind_copy(1, ValueRef::Integer(key))?;
            self.step()?;
        }
        let first = records.len();
        let mut causal_length = 1;
        while self.at == Some(key) {
            self.read(&mut causal_length, records);
            self.step()?;
        }
        records[first..].iter_mut().for_each(|r| r.causal_length = causal_length);
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        self.at = if self.stmt.step()? { Some(self.stmt.int(0)) } else { None };
        Ok(())
    }

    /// Adds the record that the statement stands on, or only notes the causal length that it tells.
    fn read(&self, causal_length: &mut i64, records: &mut Vec<Record>) {
        let rows = &self.stmt;
        let (name, col_version) = (rows.name(1), rows.int(2));
        let is_sentinel = name == SENTINEL.as_bytes();
        if is_sentinel {
            *causal_length = col_version;
        }
        if rows.int(5) != self.version {
            return;
        }
        // Records of columns that do not exist are not shown.
        let column = if is_sentinel { Some(WHOLE_ROW) } else { self.column(name) };
        let (Some(column), Some(key)) = (column, self.at) else { return };
        let (site, seq) = (rows.int(3), rows.int(4));
        if self.wanted.takes(site, seq) {
            let (stream, causal_length) = (self.stream, *causal_length);
            records.push(Record { stream, column, key, col_version, site, seq, causal_length });
        }
    }

    fn column(&self, name: &[u8]) -> Option<u32> {
        self.shape.column(name).and_then(|c| u32::try_from(c).ok())
    }
}

/// Collects the wanted records of `version`, on which some of the streams stand, and moves these on. What is
/// returned has those records that are not put into `records` because they are too many.
pub(crate) fn collect(
    engine: &Engine,
    version: i64,
    streams: &mut [Stream],
    wanted: &Wanted,
    records: &mut Vec<Record>,
) -> Result<Large> {
    let mut parts = Parts::default();
    for (index, stream) in streams.iter_mut().enumerate().filter(|(_, s)| s.version == Some(version)) {
        let crr = Rc::clone(&stream.crr);
        let mut source = Source::new(engine, &crr, index, version, wanted)?;
        while stream.version == Some(version) {
            let first = records.len();
            source.collect(stream.key, records)?;
            parts.note(source.stream, stream.key, &records[first..]);
            if parts.records > MOST_RECORDS {
                records.clear();
            }
            stream.step()?;
        }
    }
    if parts.records > MOST_RECORDS {
        return Ok(Large::new(version, parts));
    }
    // Stable: equal seqs stay in the order of tables, keys and columns.
    records.sort_by_key(|r| r.seq);
    Ok(Large::default())
}

/// A stretch of keys of one stream.
struct Part {
    stream: u32,
    first_key: i64,
    last_key: i64,
    lowest_seq: i64,
    records: usize,
}

/// The parts of a version in the making.
#[derive(Default)]
struct Parts {
    parts: Vec<Part>,
    records: usize,
}

impl Parts {
    /// Notes the records of the row `key`, which lies behind those before.
    fn note(&mut self, stream: u32, key: i64, records: &[Record]) {
        let Some(lowest_seq) = records.iter().map(|r| r.seq).min() else { return };
        self.records += records.len();
        match self.parts.last_mut().filter(|part| part.stream == stream && part.records < PART_RECORDS) {
            Some(part) => {
                part.last_key = key;
                part.lowest_seq = part.lowest_seq.min(lowest_seq);
                part.records += records.len();
            }
            None => {
                self.parts.push(Part { stream, first_key: key, last_key: key, lowest_seq, records: records.len() });
            }
        }
    }
}

/// What is still to come of a version with many records.
#[derive(Default)]
pub(crate) struct Large {
    version: i64,
    /// Those that were not read yet, by their lowest `seq`.
    parts: VecDeque<Part>,
    /// The records that were read, the next one first.
    reached: BinaryHeap<Reverse<Placed>>,
}

impl Large {
    fn new(version: i64, Parts { mut parts, .. }: Parts) -> Large {
        parts.sort_by_key(|part| part.lowest_seq);
        Large { version, parts: parts.into(), reached: BinaryHeap::new() }
    }

    /// Puts the next records into `records` in place of what is there; false if there are none left.
    pub(crate) fn fill(
        &mut self,
        engine: &Engine,
        streams: &[Stream],
        wanted: &Wanted,
        records: &mut Vec<Record>,
    ) -> Result<bool> {
        records.clear();
        loop {
            let bound = self.parts.front().map(|part| part.lowest_seq);
            while records.len() < PART_RECORDS
                && let Some(Reverse(next)) = self.reached.peek()
                && bound.is_none_or(|bound| next.record.seq < bound)
            {
                records.extend(self.reached.pop().map(|Reverse(next)| next.record));
            }
            if !records.is_empty() {
                return Ok(true);
            }
            let Some(part) = self.parts.pop_front() else { return Ok(false) };
            self.read(engine, streams, wanted, &part)?;
        }
    }

    fn read(&mut self, engine: &Engine, streams: &[Stream], wanted: &Wanted, part: &Part) -> Result<()> {
        let index = part.stream as usize;
        let crr = &streams[index].crr;
        let mut source = Source::new(engine, crr, index, self.version, wanted)?;
        let mut keys = crr.scan_keys.get(engine.db)?;
        let bounds = [self.version, part.first_key, part.last_key].map(ValueRef::Integer);
        let mut rows = keys.query(&bounds)?;
        let mut records = Vec::with_capacity(part.records);
        while rows.next()? {
            source.collect(rows.int(0), &mut records)?;
        }
        let placed = |(place, record)| Reverse(Placed { record, place });
        self.reached.extend(records.into_iter().enumerate().map(placed));
        Ok(())
    }
}

/// A record among those of equal `seq`: in the order of tables, keys and columns.
struct Placed {
    record: Record,
    /// Its place in its part. The parts of a stream have no keys in common.
    place: usize,
}

impl Placed {
    fn order(&self) -> (i64, u32, i64, usize) {
        (self.record.seq, self.record.stream, self.record.key, self.place)
    }
}

impl PartialEq for Placed {
    fn eq(&self, other: &Placed) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Placed {}

impl PartialOrd for Placed {
    fn partial_cmp(&self, other: &Placed) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Placed {
    fn cmp(&self, other: &Placed) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, params};

    /// Two CRRs and, of `rows` rows each, one transaction that writes them in the order that `place` makes of theirs.
    fn written(rows: i64, place: impl Fn(i64) -> i64) -> Connection {
        let conn = Connection::open_in_memory().unwrap();
        crate::register(&conn).unwrap();
        conn.execute_batch(
            "CREATE TABLE a (id INTEGER PRIMARY KEY NOT NULL, x, y); SELECT crsql_as_crr('a');
             CREATE TABLE b (id INTEGER PRIMARY KEY NOT NULL, x); SELECT crsql_as_crr('b');
             INSERT INTO a VALUES (-1, 'before', 1);",
        )
        .unwrap();
        for table in ["a", "b"] {
            // The keys' own order is that of the numbers.
            let sql = format!("INSERT INTO {table}__crsql_pks (__crsql_key, id) VALUES (?1 + 10, ?1)");
            (0..rows).for_each(|row| assert_eq!(conn.execute(&sql, [row]), Ok(1)));
        }
        conn.execute_batch("BEGIN").unwrap();
        for row in (0..rows).map(place) {
            conn.execute("INSERT INTO a VALUES (?1, ?1, -?1)", [row]).unwrap();
            conn.execute("INSERT INTO b VALUES (?1, ?1)", [row]).unwrap();
        }
        conn.execute_batch("DELETE FROM a WHERE id % 7 = 3; COMMIT; INSERT INTO b VALUES (-1, 'after')").unwrap();
        conn
    }

    type Found = (i64, i64, String, Vec<u8>, String);

    fn found(conn: &Connection, after: (i64, i64)) -> Vec<Found> {
        let sql = "SELECT db_version, seq, \"table\", pk, cid FROM crsql_changes WHERE db_version = ? AND seq > ?";
        let mut stmt = conn.prepare(sql).unwrap();
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?));
        stmt.query_map(params![after.0, after.1], row).unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// The same from the clock tables, sorted here.
    fn expected(conn: &Connection, version: i64) -> Vec<Found> {
        let mut all = Vec::new();
        for table in ["a", "b"] {
            let sql = format!(
                "SELECT db_version, seq, '{table}', crsql_pack_columns(p.id), col_name FROM {table}__crsql_clock AS c
                 JOIN {table}__crsql_pks AS p ON p.__crsql_key = c.key WHERE db_version = ? ORDER BY c.key, col_name"
            );
            let mut stmt = conn.prepare(&sql).unwrap();
            let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?));
            all.extend(stmt.query_map([version], row).unwrap().map(|row: Result<Found, _>| row.unwrap()));
        }
        all.sort_by_key(|(_, seq, ..)| *seq);
        all
    }

    #[test]
    fn a_large_transaction_is_read_in_its_order_however_it_went_along_the_keys() {
        let rows = 500;
        let orders: [fn(i64) -> i64; 4] =
            [|row| row, |row| 499 - row, |row| row * 171 % 500, |row| row / 50 * 50 + 49 - row % 50];
        for order in orders {
            let conn = written(rows, order);
            let all = expected(&conn, 2);
            assert!(all.len() > 10 * super::MOST_RECORDS);
            assert_eq!(found(&conn, (2, -1)), all);
            assert_eq!((found(&conn, (1, -1)).len(), found(&conn, (3, -1)).len()), (2, 1));
            let everything: i64 = conn.query_row("SELECT count(*) FROM crsql_changes", [], |row| row.get(0)).unwrap();
            assert_eq!(everything, i64::try_from(all.len()).unwrap() + 3);
        }
    }

    #[test]
    fn a_large_transaction_is_read_on_from_any_place_in_it() {
        let conn = written(300, |row| row * 7 % 300);
        let all = expected(&conn, 2);
        for seq in [0, 1, 77, 500, 898, 899, 5000] {
            let rest: Vec<Found> = all.iter().filter(|change| change.1 > seq).cloned().collect();
            assert_eq!(found(&conn, (2, seq)), rest, "after {seq}");
        }
    }
}
