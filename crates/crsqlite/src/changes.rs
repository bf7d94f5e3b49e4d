//! The virtual table `crsql_changes`: every record of every CRR, in the order in which it came to
//! be, and the place where records of others are inserted.
//!
//! A scan merges one stream per clock table, each read through the index on `db_version`, and sorts
//! by `seq` inside one `db_version` only ([`records`]). So it costs what it yields, not what the tables hold.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use rusqlite::ffi;
use rusqlite::types::ValueRef;

use crate::catalog::{Crr, SENTINEL};
use crate::engine::{Cache, Engine};
use crate::error::{Error, Result};
use crate::ffi::function::Context;
use crate::ffi::vtab::{self, Constraint, Kind, Operator, Plan};
use crate::ffi::{Args, Stmt};
use crate::merge;
use crate::pack::pack_into;
use crate::records::{self, Large, Record, Stream, WHOLE_ROW};

const DECLARATION: &str = "CREATE TABLE crsql_changes (
  [table] TEXT NOT NULL, pk BLOB NOT NULL, cid TEXT NOT NULL, val ANY,
  col_version INTEGER NOT NULL, db_version INTEGER NOT NULL, site_id BLOB NOT NULL,
  cl INTEGER NOT NULL, seq INTEGER NOT NULL)";

const TABLE: i32 = 0;
const DB_VERSION: i32 = 5;
const SITE_ID: i32 = 6;
const SEQ: i32 = 8;

/// The connected table. Through it the engine hears of the ends of transactions: it is written to once in each
/// (see [`Engine::take_part`]), and SQLite tells the tables that were written to.
pub(crate) struct Changes {
    engine: Rc<Engine>,
    /// `rows_impacted` when the transaction's first merge and when each later savepoint began.
    impacted: RefCell<(i64, Vec<(i32, i64)>)>,
}

impl vtab::Table for Changes {
    type Shared = Engine;
    type Cursor = Scan;
    const KIND: Kind = Kind::Eponymous { writable: true };

    fn connect(engine: &Rc<Engine>, _args: &[String], _create: bool) -> Result<(Changes, &'static str)> {
        let impacted = RefCell::new((0, Vec::new()));
        Ok((Changes { engine: Rc::clone(engine), impacted }, DECLARATION))
    }

    fn best_index(&self, plan: &mut Plan<'_>) -> Result<()> {
        let mut text = String::new();
        let mut position = 0;
        let (mut by_version, mut by_site) = (false, false);
        for constraint in plan.constraints() {
            let Some(code) = pushed_down(constraint) else { continue };
            position += 1;
            plan.pass(constraint, position, false);
            text.push_str(code);
            by_version |= constraint.column == DB_VERSION;
            by_site |= constraint.column == SITE_ID;
        }
        let order = plan.order_by();
        let natural = [(DB_VERSION, false), (SEQ, false)];
        plan.set_ordered(!order.is_empty() && natural.starts_with(&order));
        // No estimate: two scans must seem dearer than one of everything. Else SQLite makes one scan of each side of
        // an OR and drops rows whose rowid it has seen, but all records of a base row share their rowid.
        let (cost, rows) = match (by_version, by_site) {
            (true, true) => (1.1e9, 550_000),
            (true, false) => (1.2e9, 600_000),
            (false, _) => (2e9, 1_000_000),
        };
        plan.choose(2 * i32::from(by_version) + 4 * i32::from(by_site), &text, cost, rows)
    }

    fn open(&self) -> Result<Scan> {
        Scan::new(&self.engine)
    }

    fn insert(&self, row: Args<'_>) -> Result<i64> {
        merge::merge(&self.engine, row)
    }

    fn refuse_change(&self) -> Error {
        Error::misuse("Only INSERT and SELECT statements are allowed against the crsql changes table")
    }

    fn begin(&self) -> Result<()> {
        self.engine.begun();
        self.impacted.replace((self.engine.rows_impacted.get(), Vec::new()));
        Ok(())
    }

    fn committed(&self) {
        self.engine.committed();
    }

    fn rolled_back(&self) {
        self.engine.rolled_back();
    }

    fn savepoint(&self, n: i32) -> Result<()> {
        let (first, since) = &mut *self.impacted.borrow_mut();
        if since.is_empty() && *first == self.engine.rows_impacted.get() {
            return Ok(());
        }
        since.retain(|(m, _)| *m < n);
        since.push((n, self.engine.rows_impacted.get()));
        Ok(())
    }

    fn rollback_to(&self, n: i32) -> Result<()> {
        self.engine.forget_rows();
        let (first, since) = &*self.impacted.borrow();
        let before = since.iter().find(|(m, _)| *m == n).map_or(*first, |(_, impacted)| *impacted);
        self.engine.rows_impacted.set(before);
        Ok(())
    }
}

/// How a constraint is written in the plan, if the scan makes use of it: two characters each.
fn pushed_down(constraint: Constraint) -> Option<&'static str> {
    if !constraint.usable {
        return None;
    }
    match (constraint.column, constraint.operator) {
        (DB_VERSION, Operator::Equal | Operator::Is) => Some("v="),
        (DB_VERSION, Operator::Greater) => Some("v>"),
        (DB_VERSION, Operator::GreaterEqual) => Some("v]"),
        (DB_VERSION, Operator::Less) => Some("v<"),
        (DB_VERSION, Operator::LessEqual) => Some("v["),
        (SEQ, Operator::Greater) => Some("q>"),
        // An equality may be one by a collation, and so mean more tables than one; a difference means this one at least.
        (TABLE, Operator::NotEqual | Operator::IsNot) => Some("t!"),
        (SITE_ID, Operator::Equal | Operator::Is) => Some("s="),
        (SITE_ID, Operator::NotEqual | Operator::IsNot) => Some("s!"),
        _ => None,
    }
}

/// Which records a scan wants: `db_versions` from `low` to `high`. It may yield more than the query asks for: SQLite checks again.
pub(crate) struct Wanted {
    pub(crate) low: i64,
    pub(crate) high: i64,
    /// Records of this site only.
    only: Option<i64>,
    /// Records of these sites not.
    without: Vec<i64>,
    /// Records with a greater `seq`.
    after: i64,
    /// Records of these tables not. They are not even looked at, so a table that cannot be read need not be in the way of
    /// the others.
    without_tables: Vec<Vec<u8>>,
}

impl Wanted {
    fn nothing() -> Wanted {
        let without_tables = Vec::new();
        Wanted { low: 1, high: 0, only: None, without: Vec::new(), after: i64::MIN, without_tables }
    }

    fn has_table(&self, name: &str) -> bool {
        self.without_tables.iter().all(|other| other != name.as_bytes())
    }

    fn read(engine: &Engine, cache: &Cache, plan: &str, args: Args<'_>) -> Result<Wanted> {
        let (mut low, mut high) = (i64::MIN, i64::MAX);
        let mut wanted = Wanted { low, high, ..Wanted::nothing() };
        let mut nothing = false;
        for (i, code) in plan.as_bytes().chunks_exact(2).enumerate() {
            match (code, args.get(i)) {
                (b"v=", ValueRef::Integer(v)) => (low, high) = (low.max(v), high.min(v)),
                (b"v>", ValueRef::Integer(v)) => match v.checked_add(1) {
                    Some(next) => low = low.max(next),
                    None => nothing = true,
                },
                (b"v]", ValueRef::Integer(v)) => low = low.max(v),
                (b"v<", ValueRef::Integer(v)) => match v.checked_sub(1) {
                    Some(last) => high = high.min(last),
                    None => nothing = true,
                },
                (b"v[", ValueRef::Integer(v)) => high = high.min(v),
                (b"q>", ValueRef::Integer(seq)) => wanted.after = wanted.after.max(seq),
                (b"v=" | b"v>" | b"v]" | b"v<" | b"v[" | b"q>", ValueRef::Null) => nothing = true,
                (b"t!", ValueRef::Text(name)) => wanted.without_tables.push(name.to_vec()),
                (b"s=", ValueRef::Blob(id)) => match engine.find_ordinal(cache, id)? {
                    Some(ordinal) if wanted.only.is_none_or(|o| o == ordinal) => {
                        wanted.only = Some(ordinal);
                    }
                    _ => nothing = true,
                },
                (b"s!", ValueRef::Blob(id)) => {
                    wanted.without.extend(engine.find_ordinal(cache, id)?);
                }
                _ => {}
            }
        }
        if nothing {
            (low, high) = (1, 0);
        }
        (wanted.low, wanted.high) = (low, high);
        Ok(wanted)
    }

    pub(crate) fn takes(&self, site: i64, seq: i64) -> bool {
        seq > self.after && self.only.is_none_or(|only| only == site) && !self.without.contains(&site)
    }
}

/// The key and values of the row that the current record is about.
struct Row {
    record: Record,
    crr: Rc<Crr>,
    shown: Shown,
    /// Goes on to the rows after this one.
    stmt: Option<Stmt>,
}

/// What a row's statement yields after `__crsql_key` and the keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Nothing,
    Cell(u32),
    All,
}

impl Row {
    /// Reads the row; none if its key is not known.
    fn read(engine: &Engine, crr: &Rc<Crr>, record: Record, shown: Shown) -> Result<Option<Row>> {
        let mut stmt = slot(crr, shown).take(engine.db)?;
        stmt.bind_copy(1, ValueRef::Integer(record.key))?;
        Row { record, crr: Rc::clone(crr), shown, stmt: Some(stmt) }.advance(record)
    }

    /// Whether the row of `record` is the neighbour of this one, to which the statement goes on without
    /// a search.
    fn leads_to(&self, record: &Record, shown: Shown) -> bool {
        self.shown == shown && self.record.stream == record.stream && self.record.key.checked_add(1) == Some(record.key)
    }

    /// The statement's next row; none if it is not the row of `record`.
    fn advance(mut self, record: Record) -> Result<Option<Row>> {
        self.record = record;
        let found = match &mut self.stmt {
            Some(stmt) => stmt.step()? && stmt.int(0) == record.key,
            None => false,
        };
        Ok(found.then_some(self))
    }

    /// The statement's column with the value of column `column` of the table.
    fn value_at(&self, column: u32) -> Option<usize> {
        let first = 1 + self.crr.shape.keys.len();
        match self.shown {
            Shown::Nothing => None,
            Shown::Cell(_) => Some(first),
            Shown::All => Some(first + column as usize),
        }
    }
}

fn slot(crr: &Crr, shown: Shown) -> &crate::ffi::Slot {
    match shown {
        Shown::Nothing => &crr.key_read,
        Shown::Cell(column) => &crr.cells[column as usize].read,
        Shown::All => &crr.row_read,
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        if let Some(stmt) = self.stmt.take() {
            slot(&self.crr, self.shown).put(stmt);
        }
    }
}

/// A scan of `crsql_changes`.
pub(crate) struct Scan {
    engine: Rc<Engine>,
    cache: Option<Rc<Cache>>,
    wanted: Wanted,
    streams: Vec<Stream>,
    /// Records of the current `db_version`, in order, and the current one among them.
    records: Vec<Record>,
    /// What is still to come of it, if it is large.
    large: Large,
    position: usize,
    version: i64,
    row: Option<Row>,
    /// The packed key of the current row.
    pk: Vec<u8>,
    sites: HashMap<i64, Option<Rc<[u8]>>>,
    /// The one shown last.
    site: Option<(i64, Option<Rc<[u8]>>)>,
    done: Cell<bool>,
}

impl Scan {
    fn new(engine: &Rc<Engine>) -> Result<Scan> {
        Ok(Scan {
            engine: Rc::clone(engine),
            cache: None,
            wanted: Wanted::nothing(),
            streams: Vec::new(),
            records: Vec::new(),
            large: Large::default(),
            position: 0,
            version: 0,
            row: None,
            pk: Vec::new(),
            sites: HashMap::new(),
            site: None,
            done: Cell::new(true),
        })
    }

    /// Goes to the next record at or after the current position that has a key.
    fn settle(&mut self) -> Result<()> {
        loop {
            while self.position == self.records.len() {
                if !self.next_records()? {
                    self.done.set(true);
                    return Ok(());
                }
            }
            if self.read_row()? {
                return Ok(());
            }
            self.position += 1;
        }
    }

    /// Goes on to the next records, of which none may be wanted; false if there are none left.
    fn next_records(&mut self) -> Result<bool> {
        self.position = 0;
        if self.large.fill(&self.engine, &self.streams, &self.wanted, &mut self.records)? {
            return Ok(true);
        }
        self.records.clear();
        let Some(version) = self.streams.iter().filter_map(Stream::version).min() else {
            return Ok(false);
        };
        self.version = version;
        self.large = records::collect(&self.engine, version, &mut self.streams, &self.wanted, &mut self.records)?;
        Ok(true)
    }

    /// Sees to it that `row` is that of the current record; false if its key is unknown.
    fn read_row(&mut self) -> Result<bool> {
        let record = self.records[self.position];
        if let Some(row) = &self.row
            && row.record.same_row(&record)
            && (row.shown == Shown::All || record.column == WHOLE_ROW)
        {
            return Ok(true);
        }
        let more = self.records.get(self.position + 1).is_some_and(|next| next.same_row(&record));
        let shown = match (more, record.column) {
            (true, _) => Shown::All,
            (false, WHOLE_ROW) => Shown::Nothing,
            (false, column) => Shown::Cell(column),
        };
        let crr = self.streams[record.stream as usize].crr();
        self.row = match self.row.take() {
            Some(row) if row.leads_to(&record, shown) => row.advance(record)?,
            _ => None,
        };
        if self.row.is_none() {
            self.row = Row::read(&self.engine, crr, record, shown)?;
        }
        let Some(Row { stmt: Some(stmt), .. }) = &self.row else { return Ok(false) };
        pack_into(&mut self.pk, (1..=crr.shape.keys.len()).map(|i| stmt.column(i)))?;
        Ok(true)
    }

    fn site(&mut self, ordinal: i64, out: Context) -> Result<()> {
        if ordinal == 0 {
            out.set(ValueRef::Blob(&self.engine.site_id));
            return Ok(());
        }
        if self.site.as_ref().is_none_or(|(known, _)| *known != ordinal) {
            let id = match self.sites.get(&ordinal) {
                Some(id) => id.clone(),
                None => self.look_up_site(ordinal)?,
            };
            self.sites.insert(ordinal, id.clone());
            self.site = Some((ordinal, id));
        }
        match &self.site {
            Some((_, Some(id))) => out.set(ValueRef::Blob(id)),
            _ => out.set(ValueRef::Null),
        }
        Ok(())
    }

    fn look_up_site(&self, ordinal: i64) -> Result<Option<Rc<[u8]>>> {
        let Some(cache) = &self.cache else { return Ok(None) };
        let mut stmt = cache.site_by_ordinal.get(self.engine.db)?;
        let ordinal = [ValueRef::Integer(ordinal)];
        let mut rows = stmt.query(&ordinal)?;
        Ok(if rows.next()? { Some(Rc::from(rows.bytes(0))) } else { None })
    }
}

impl vtab::Cursor for Scan {
    fn filter(&mut self, _number: i32, plan: &str, args: Args<'_>) -> Result<()> {
        self.row = None;
        self.streams.clear();
        self.records.clear();
        self.large = Large::default();
        self.position = 0;
        self.sites.clear();
        self.site = None;
        let cache = self.engine.cache()?;
        self.wanted = Wanted::read(&self.engine, &cache, plan, args)?;
        if self.wanted.low <= self.wanted.high {
            for crr in cache.catalog.tables.iter().filter(|crr| self.wanted.has_table(crr.name())) {
                let stream = Stream::start(&self.engine, crr, &self.wanted)?;
                if stream.version().is_some() {
                    self.streams.push(stream);
                }
            }
        }
        self.cache = Some(cache);
        self.done.set(false);
        self.settle()
    }

    fn next(&mut self) -> Result<()> {
        self.position += 1;
        self.settle()
    }

    fn at_end(&self) -> bool {
        self.done.get()
    }

    fn column(&mut self, i: usize, out: Context) -> Result<()> {
        let Some(row) = &self.row else { return Ok(()) };
        let Some(stmt) = &row.stmt else { return Ok(()) };
        let Some(record) = self.records.get(self.position) else { return Ok(()) };
        match i {
            0 => out.set(ValueRef::Text(row.crr.name().as_bytes())),
            1 => out.set(ValueRef::Blob(&self.pk)),
            2 => match row.crr.shape.columns.get(record.column as usize) {
                Some(name) => out.set(ValueRef::Text(name.as_bytes())),
                None => out.set(ValueRef::Text(SENTINEL.as_bytes())),
            },
            3 if record.column == WHOLE_ROW => out.set(ValueRef::Null),
            3 => match row.value_at(record.column) {
                Some(value) => out.set_column(stmt, value),
                None => out.set(ValueRef::Null),
            },
            4 => out.set(ValueRef::Integer(record.col_version)),
            5 => out.set(ValueRef::Integer(self.version)),
            6 => return self.site(record.site, out),
            7 => out.set(ValueRef::Integer(record.causal_length)),
            8 => out.set(ValueRef::Integer(record.seq)),
            _ => {
                return Err(Error::Sqlite {
                    code: ffi::SQLITE_RANGE,
                    message: "crsql_changes has no such column".to_owned(),
                });
            }
        }
        Ok(())
    }

    fn rowid(&self) -> i64 {
        match (&self.row, self.records.get(self.position)) {
            (Some(row), Some(record)) => row.crr.change_rowid(record.key),
            _ => 0,
        }
    }
}
