//! The body of a pack, as it is read: first its dictionaries, then where each of its columns begins; the changes are made
//! one by one from all columns at once, so that none but those that are kept take memory.
//!
//! What the bytes become is larger than they are: an empty name is one byte, and a `String` on the heap. All of it is
//! charged to a budget before it is made.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use super::{
    Change, Cursor, Limits, MAX_NAME, MAX_VERSION, Pack, PackError, PackTable, SiteId, Value, check_pk,
    codec::{BLOB, CUT_SHORT, INTEGER, NULL, REAL, TEXT, within},
    shown_key,
    wire::Reader,
};

/// Each change takes at least one byte in each of nine columns of the body.
const MIN_BYTES_PER_CHANGE: usize = 9;

/// The most columns of a key: a packed key counts them in a byte.
const MAX_KEY_COLUMNS: usize = 255;

/// The most of a table on average.
const MOST_KEY_COLUMNS: usize = 4;

/// What a thing of its own on the heap takes besides its content: its counters and what the allocator keeps.
const ALLOCATION: usize = 32;

/// Bytes that are made of one of the body at most: a table without key columns and with the shortest name takes two.
pub(super) const MOST_MADE: usize = (2 * ALLOCATION + 2 * size_of::<PackTable>()).div_ceil(2);

pub(super) fn decode_body(body: &[u8], limits: &Limits) -> Result<Pack, PackError> {
    let (mut pack, changes) = open_body(body, limits)?;
    ask_for(changes.memory)?;
    pack.changes.try_reserve_exact(changes.count).map_err(|_| PackError::NoMemory)?;
    for change in changes {
        pack.changes.push(change?);
    }
    Ok(pack)
}

/// A pack without its changes, and these, to be made one by one. The memory that all of them take is within the limits.
pub(super) fn open_body<'a>(body: &'a [u8], limits: &Limits) -> Result<(Pack, Changes<'a>), PackError> {
    let mut reader = Reader::new(body);
    let mut budget = Budget { used: 0, limit: limits.memory };
    let source = SiteId::from_bytes(reader.bytes().ok_or(CUT_SHORT)?)
        .map_err(|_| PackError::Damaged("its source is no site id"))?;
    let from = cursor(&mut reader)?;
    let to = cursor(&mut reader)?;
    if from > to {
        return Err(PackError::Damaged("it ends before it starts"));
    }
    let tables = tables(&mut reader, limits, &mut budget)?;
    let names = Names {
        tables: tables.iter().map(|table| (table.name.as_str().into(), table.key_columns.len())).collect(),
        columns: names(&mut reader, limits, &mut budget)?,
        sites: sites(&mut reader, limits, &mut budget)?,
    };
    let count = within("changes", reader.uint().ok_or(CUT_SHORT)?, limits.changes)?;
    if count > reader.rest().len() / MIN_BYTES_PER_CHANGE {
        return Err(CUT_SHORT);
    }
    budget.charge(count.saturating_mul(size_of::<Change>()))?;
    let columns = Columns::open(&mut reader, count, &mut budget)?;
    if !reader.is_empty() {
        return Err(PackError::Damaged("bytes are left over"));
    }
    let changes = Changes {
        names,
        columns,
        count,
        memory: budget.used,
        index: 0,
        from,
        to,
        previous: None,
        key: None,
        deleted: VecDeque::new(),
    };
    Ok((Pack { source, from, to, tables, changes: Vec::new() }, changes))
}

/// Fails where there are not so many bytes of memory. Many small allocations have no way to say so: the first for which there
/// is none ends the process.
fn ask_for(bytes: usize) -> Result<(), PackError> {
    const MUCH: usize = 16 << 20;
    if bytes < MUCH {
        return Ok(());
    }
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| PackError::NoMemory)
}

/// The memory that may be taken for what is made of a body.
struct Budget {
    used: usize,
    limit: usize,
}

impl Budget {
    fn charge(&mut self, bytes: usize) -> Result<(), PackError> {
        self.used = self.used.saturating_add(bytes);
        within("bytes of memory", self.used as u64, self.limit).map(drop)
    }

    /// Charges for `number` things of their own on the heap with so many bytes of content in all.
    fn charge_for(&mut self, number: usize, content: usize) -> Result<(), PackError> {
        self.charge(number.saturating_mul(ALLOCATION).saturating_add(content))
    }
}

/// The dictionaries.
struct Names {
    /// The tables, and the number of their key columns.
    tables: Vec<(Arc<str>, usize)>,
    columns: Vec<Arc<str>>,
    sites: Vec<SiteId>,
}

/// The columns of a body, each to be read from its start.
struct Columns<'a> {
    tables: Reader<'a>,
    key_lengths: Reader<'a>,
    keys: Reader<'a>,
    cids: Reader<'a>,
    kinds: Reader<'a>,
    integers: Reader<'a>,
    reals: Reader<'a>,
    lengths: Reader<'a>,
    contents: Reader<'a>,
    col_versions: Reader<'a>,
    db_versions: Reader<'a>,
    cls: Reader<'a>,
    seqs: Reader<'a>,
    sites: Reader<'a>,
}

impl<'a> Columns<'a> {
    /// Finds where each column begins, and charges for what its entries become.
    fn open(reader: &mut Reader<'a>, count: usize, budget: &mut Budget) -> Result<Self, PackError> {
        let tables = numbers(reader, count)?;
        let key_lengths = numbers(reader, count)?;
        let keys = contents(reader, key_lengths.clone(), budget)?;
        let cids = numbers(reader, count)?;
        let kinds = reader.take(count).ok_or(CUT_SHORT)?;
        let of_kinds = |wanted: &[u8]| kinds.iter().filter(|kind| wanted.contains(kind)).count();
        let integers = numbers(reader, of_kinds(&[INTEGER]))?;
        let reals = reader.take(of_kinds(&[REAL]).saturating_mul(8)).ok_or(CUT_SHORT)?;
        let lengths = numbers(reader, of_kinds(&[TEXT, BLOB]))?;
        Ok(Self {
            tables,
            key_lengths,
            keys,
            cids,
            kinds: Reader::new(kinds),
            integers,
            reals: Reader::new(reals),
            contents: contents(reader, lengths.clone(), budget)?,
            lengths,
            col_versions: numbers(reader, count)?,
            db_versions: numbers(reader, count)?,
            cls: numbers(reader, count)?,
            seqs: numbers(reader, count)?,
            sites: numbers(reader, count)?,
        })
    }

    fn value(&mut self) -> Result<Value, PackError> {
        Ok(match self.kinds.byte().ok_or(CUT_SHORT)? {
            NULL => Value::Null,
            INTEGER => Value::Integer(self.integers.int().ok_or(CUT_SHORT)?),
            REAL => Value::Real(f64::from_le_bytes(self.reals.array().ok_or(CUT_SHORT)?)),
            TEXT => Value::Text(self.content()?),
            BLOB => Value::Blob(self.content()?),
            _ => return Err(PackError::Damaged("a value has an unknown type")),
        })
    }

    fn content(&mut self) -> Result<Vec<u8>, PackError> {
        let length = self.lengths.size().ok_or(CUT_SHORT)?;
        let bytes = self.contents.take(length).ok_or(CUT_SHORT)?;
        let mut content = Vec::new();
        content.try_reserve_exact(length).map_err(|_| PackError::NoMemory)?;
        content.extend_from_slice(bytes);
        Ok(content)
    }
}

/// The changes of a body, made one by one.
pub(super) struct Changes<'a> {
    names: Names,
    columns: Columns<'a>,
    /// The number of changes.
    pub(super) count: usize,
    /// Bytes that all of them take, with the names.
    memory: usize,
    /// Changes that have been made.
    index: usize,
    from: Cursor,
    to: Cursor,
    /// Where the change before stands.
    previous: Option<Cursor>,
    /// The key of the change before. One that repeats is held once, so that a long one repeated many times costs what
    /// was sent.
    key: Option<Arc<[u8]>>,
    /// The last deletions of rows, with what makes them.
    deleted: VecDeque<Deletion>,
}

/// Deletions before a cell of a deleted row among which the row's own is looked for.
const MOST_DELETED: usize = 64;

/// In a version of the database, a row's end of a life.
#[derive(PartialEq, Eq)]
struct Deletion {
    table: Arc<str>,
    pk: Arc<[u8]>,
    cl: i64,
    db_version: i64,
}

impl Deletion {
    fn of(change: &Change) -> Self {
        let (table, pk) = (Arc::clone(&change.table), Arc::clone(&change.pk));
        Self { table, pk, cl: change.cl, db_version: change.db_version }
    }
}

impl Iterator for Changes<'_> {
    type Item = Result<Change, PackError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index == self.count {
            return None;
        }
        let change = self.make();
        self.index = if change.is_ok() { self.index + 1 } else { self.count };
        Some(change)
    }
}

impl Changes<'_> {
    fn make(&mut self) -> Result<Change, PackError> {
        let (table, key_columns) = entry(&mut self.columns.tables, &self.names.tables)?;
        let (table, key_columns) = (Arc::clone(table), *key_columns);
        let before = self.previous.unwrap_or(Cursor { seq: 0, ..self.from });
        let change = Change {
            table,
            cid: Arc::clone(entry(&mut self.columns.cids, &self.names.columns)?),
            val: self.columns.value()?,
            col_version: self.columns.col_versions.int().ok_or(CUT_SHORT)?,
            db_version: before.version.wrapping_add(self.columns.db_versions.int().ok_or(CUT_SHORT)?),
            site_id: *entry(&mut self.columns.sites, &self.names.sites)?,
            cl: self.columns.cls.int().ok_or(CUT_SHORT)?,
            seq: before.seq.wrapping_add(self.columns.seqs.int().ok_or(CUT_SHORT)?),
            pk: self.key()?,
        };
        let named = |reason| PackError::Change { index: self.index, change: named(&change), reason };
        self.check(&change, key_columns).map_err(named)?;
        self.note_deletion(&change);
        self.previous = Some(change.cursor());
        Ok(change)
    }

    fn key(&mut self) -> Result<Arc<[u8]>, PackError> {
        let key = match (self.columns.key_lengths.size().ok_or(CUT_SHORT)?, &self.key) {
            (0, Some(previous)) => return Ok(Arc::clone(previous)),
            (0, None) => return Err(PackError::Damaged("the first key is missing")),
            (length, _) => self.columns.keys.take(length).ok_or(CUT_SHORT)?,
        };
        ask_for(key.len())?;
        Ok(Arc::clone(self.key.insert(key.into())))
    }

    fn check(&self, change: &Change, key_columns: usize) -> Result<(), &'static str> {
        change.check()?;
        check_pk(&change.pk, key_columns)?;
        let place = change.cursor();
        if place <= self.from || place > self.to {
            return Err("it lies outside what the pack covers");
        }
        if self.previous.is_some_and(|previous| place < previous) {
            return Err("it is out of order");
        }
        self.check_deleted(change)
    }

    /// A cell of a deleted row comes in the version in which the row was deleted, behind the deletion, if it comes at all:
    /// see [`Change::is_of_deleted_cell`]. The pack may begin between the two.
    fn check_deleted(&self, change: &Change) -> Result<(), &'static str> {
        let goes_on = || self.from.version == change.db_version;
        if !change.is_of_deleted_cell() || goes_on() || self.deleted.contains(&Deletion::of(change)) {
            return Ok(());
        }
        Err("it is of a cell, and of a row that is deleted")
    }

    fn note_deletion(&mut self, change: &Change) {
        if change.is_of_row() && change.cl % 2 == 0 {
            self.deleted.truncate(MOST_DELETED - 1);
            self.deleted.push_front(Deletion::of(change));
        }
    }
}

/// What the change is about, for people: the peer chose the names.
fn named(change: &Change) -> String {
    const MOST: usize = 100;
    let shown = |text: &str| text.chars().take(MOST).flat_map(char::escape_debug).collect::<String>();
    let key: String = shown_key(&change.pk).map_or_else(|| "unreadable".into(), |key| key.chars().take(MOST).collect());
    format!("table {}, key {key}, column {}", shown(&change.table), shown(&change.cid))
}

/// The entry of a dictionary that the next number of a column refers to.
fn entry<'d, T>(column: &mut Reader<'_>, dictionary: &'d [T]) -> Result<&'d T, PackError> {
    let place = column.size().ok_or(CUT_SHORT)?;
    dictionary.get(place).ok_or(PackError::Damaged("a reference leads nowhere"))
}

/// So many numbers, to be read on their own.
fn numbers<'a>(reader: &mut Reader<'a>, count: usize) -> Result<Reader<'a>, PackError> {
    reader.uints(count).ok_or(CUT_SHORT)
}

/// As many bytes as `lengths` say together, each of them to become a thing of its own.
fn contents<'a>(
    reader: &mut Reader<'a>,
    mut lengths: Reader<'_>,
    budget: &mut Budget,
) -> Result<Reader<'a>, PackError> {
    let (mut number, mut bytes) = (0, 0_usize);
    while !lengths.is_empty() {
        let length = lengths.size().ok_or(CUT_SHORT)?;
        number += usize::from(length > 0);
        bytes = bytes.checked_add(length).ok_or(CUT_SHORT)?;
    }
    budget.charge_for(number, bytes)?;
    reader.take(bytes).map(Reader::new).ok_or(CUT_SHORT)
}

fn cursor(reader: &mut Reader<'_>) -> Result<Cursor, PackError> {
    let version = reader.int().ok_or(CUT_SHORT)?;
    let seq = reader.int().ok_or(CUT_SHORT)?;
    if !(0..=MAX_VERSION).contains(&version) || seq < 0 {
        return Err(PackError::Damaged("its range is out of range"));
    }
    Ok(Cursor { version, seq })
}

/// The number of entries of a dictionary, each of at least one byte.
fn entries(reader: &mut Reader<'_>, what: &'static str, most: usize) -> Result<usize, PackError> {
    let count = within(what, reader.uint().ok_or(CUT_SHORT)?, most)?;
    if count > reader.rest().len() { Err(CUT_SHORT) } else { Ok(count) }
}

fn name<'a>(reader: &mut Reader<'a>) -> Result<&'a str, PackError> {
    let bytes = reader.bytes().ok_or(CUT_SHORT)?;
    if bytes.len() > MAX_NAME {
        return Err(PackError::TooLarge { what: "bytes in a name", claimed: bytes.len() as u64, limit: MAX_NAME });
    }
    std::str::from_utf8(bytes).map_err(|_| PackError::Damaged("a name is not valid UTF-8"))
}

fn tables(reader: &mut Reader<'_>, limits: &Limits, budget: &mut Budget) -> Result<Vec<PackTable>, PackError> {
    let mut seen = HashSet::new();
    let (mut tables, mut keys) = (Vec::new(), 0);
    for _ in 0..entries(reader, "tables", limits.names)? {
        let table = name(reader)?;
        if !seen.insert(table) {
            return Err(PackError::Damaged("a table occurs twice"));
        }
        // It is held as the name of a table and as that of changes.
        budget.charge_for(2, 2 * table.len() + 2 * size_of::<PackTable>())?;
        let key_columns = key_columns(reader, budget)?;
        keys += key_columns.len();
        within("key columns of all tables", keys as u64, limits.names.saturating_mul(MOST_KEY_COLUMNS))?;
        tables.push(PackTable { name: table.to_owned(), key_columns });
    }
    Ok(tables)
}

fn key_columns(reader: &mut Reader<'_>, budget: &mut Budget) -> Result<Vec<String>, PackError> {
    let mut columns = Vec::new();
    for _ in 0..entries(reader, "key columns", MAX_KEY_COLUMNS)? {
        let column = name(reader)?;
        budget.charge_for(1, column.len() + size_of::<String>())?;
        columns.push(column.to_owned());
    }
    Ok(columns)
}

fn names(reader: &mut Reader<'_>, limits: &Limits, budget: &mut Budget) -> Result<Vec<Arc<str>>, PackError> {
    let mut names = Vec::new();
    for _ in 0..entries(reader, "columns", limits.names)? {
        let name = name(reader)?;
        budget.charge_for(1, name.len() + size_of::<Arc<str>>())?;
        names.push(name.into());
    }
    Ok(names)
}

fn sites(reader: &mut Reader<'_>, limits: &Limits, budget: &mut Budget) -> Result<Vec<SiteId>, PackError> {
    let mut sites = Vec::new();
    for _ in 0..entries(reader, "sites", limits.names)? {
        let site = SiteId::from_bytes(reader.bytes().ok_or(CUT_SHORT)?);
        budget.charge(size_of::<SiteId>())?;
        sites.push(site.map_err(|_| PackError::Damaged("a site id is too short or too long"))?);
    }
    Ok(sites)
}
