//! The bytes of a pack, as `docs/formats.md` specifies them: magic, version, length, and a zstd frame of the body.
//! The body holds dictionaries (tables, columns, sites), then each column of the changes for all of them.

use std::{
    collections::{HashMap, HashSet},
    io::{self, BufWriter, Read, Write},
    sync::Arc,
};

use super::{
    Change, Cursor, MAX_NAME, MAX_VERSION, Pack, PackTable, SiteId, Value, check_pk, key_values,
    value::is_plain,
    wire::{Reader, put_bytes, put_int, put_uint},
};

const MAGIC: &[u8; 8] = b"DDCPpack";

/// The format in which every text is UTF-8.
const PLAIN: u64 = 1;

/// The format in which it need not be. Nothing else is different; a pack that can be is written as [`PLAIN`], which
/// earlier releases read.
const ANY_TEXT: u64 = 2;

const COMPRESSION_LEVEL: i32 = 6;
/// 8 MiB: what a decoder of zstd has to keep of what it has decoded already.
const MAX_WINDOW_LOG: u32 = 23;
/// Each change takes at least one byte in each of nine columns of the body.
const MIN_BYTES_PER_CHANGE: usize = 9;

const NULL: u8 = 0;
const INTEGER: u8 = 1;
const REAL: u8 = 2;
const TEXT: u8 = 3;
const BLOB: u8 = 4;

/// What a pack from somebody else may claim. By default [`Limits::PROTOCOL`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes after decompression.
    pub raw_bytes: usize,
    /// Number of changes.
    pub changes: usize,
    /// Number of tables, of columns, and of sites.
    pub names: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::PROTOCOL
    }
}

impl Limits {
    /// What every reader takes, unless its owner has set it to less, and nobody sends more of: any row that SQLite holds
    /// fits.
    pub const PROTOCOL: Self = Self { raw_bytes: 1_100_000_000, changes: 4_000_000, names: 65_536 };

    /// Those of a pack that lies in this repository's state: how large it may be was looked at when it was fetched.
    #[must_use]
    pub fn of_stored() -> Self {
        Self { raw_bytes: usize::MAX, ..Self::default() }
    }
}

/// Bytes that are no pack, or one that breaks the rules.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The magic is missing.
    #[error("this is not a pack of changes")]
    NotAPack,
    /// Written by a later release.
    #[error("the pack has format version {0}, this program reads up to {ANY_TEXT}: install a newer one")]
    Version(u64),
    /// Over one of [`Limits`].
    #[error("the pack has too many {what}: {claimed}, the limit is {limit}")]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// The number found.
        claimed: u64,
        /// The number allowed.
        limit: usize,
    },
    /// The bytes end too early, go on too long, or do not decompress.
    #[error("the pack is damaged: {0}")]
    Damaged(&'static str),
    /// A change that no database can have made.
    #[error("change {index} of the pack is not valid: {reason}")]
    Change {
        /// Counted from 0.
        index: usize,
        /// The rule that is broken.
        reason: &'static str,
    },
}

const CUT_SHORT: PackError = PackError::Damaged("it ends too early");

impl Pack {
    /// The pack as bytes. Linear in the size of the changes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut encoded = Vec::new();
        // Memory takes every write, and compressing has no way to fail but running out of it.
        self.write_to(&mut encoded).expect("zstd compresses any bytes");
        encoded
    }

    /// Writes the pack as bytes. What it holds is not copied in between, so a large value costs no more memory. The
    /// same pack gives the same bytes.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_to(&self, mut out: impl Write) -> io::Result<()> {
        let body = Body::of(self);
        let length = body.length();
        let mut head = MAGIC.to_vec();
        put_uint(&mut head, if self.is_plain() { PLAIN } else { ANY_TEXT });
        put_uint(&mut head, length);
        out.write_all(&head)?;
        let mut encoder = zstd::stream::write::Encoder::new(out, COMPRESSION_LEVEL)?;
        encoder.set_pledged_src_size(Some(length))?;
        // Each write to the encoder is a call to C, and most values are short.
        let mut buffer = BufWriter::with_capacity(64 * 1024, encoder);
        body.write_to(&mut buffer)?;
        buffer.into_inner().map_err(io::IntoInnerError::into_error)?.finish()?;
        Ok(())
    }

    /// Reads a pack, from anybody: whatever the bytes are, the result is a pack that keeps every rule or an error,
    /// and the memory used is bounded by what `limits` allow and what was really sent, not by what is claimed.
    ///
    /// # Errors
    /// [`PackError`].
    pub fn decode(encoded: &[u8], limits: &Limits) -> Result<Self, PackError> {
        let mut reader = Reader::new(encoded);
        if reader.take(MAGIC.len()) != Some(MAGIC) {
            return Err(PackError::NotAPack);
        }
        let version = reader.uint().ok_or(CUT_SHORT)?;
        if !(PLAIN..=ANY_TEXT).contains(&version) {
            return Err(PackError::Version(version));
        }
        let length = within("bytes", reader.uint().ok_or(CUT_SHORT)?, limits.raw_bytes)?;
        let body = decompress(reader.rest(), length)?;
        let pack = decode_body(&body, limits)?;
        if version == PLAIN && !pack.is_plain() {
            return Err(PackError::Damaged("a text is not valid UTF-8"));
        }
        Ok(pack)
    }

    fn is_plain(&self) -> bool {
        // Of a key that repeats, the first is looked at.
        let mut previous: &[u8] = &[];
        self.changes.iter().all(|change| {
            let repeats = change.pk.as_ptr() == previous.as_ptr();
            previous = &change.pk;
            is_plain(change.val.as_ref()) && (repeats || has_plain_key(&change.pk))
        })
    }
}

fn has_plain_key(pk: &[u8]) -> bool {
    key_values(pk).into_iter().flatten().flatten().all(is_plain)
}

fn within(what: &'static str, claimed: u64, limit: usize) -> Result<usize, PackError> {
    match usize::try_from(claimed) {
        Ok(size) if size <= limit => Ok(size),
        _ => Err(PackError::TooLarge { what, claimed, limit }),
    }
}

/// Exactly `length` bytes of a single frame. The buffer grows with what really comes out of the decoder.
fn decompress(frame: &[u8], length: usize) -> Result<Vec<u8>, PackError> {
    let damaged = |_| PackError::Damaged("it does not decompress");
    let mut decoder = zstd::stream::read::Decoder::with_buffer(frame).map_err(damaged)?.single_frame();
    decoder.window_log_max(MAX_WINDOW_LOG).map_err(damaged)?;
    let mut body = Vec::new();
    decoder.by_ref().take(length as u64 + 1).read_to_end(&mut body).map_err(damaged)?;
    if body.len() != length {
        return Err(PackError::Damaged("its length is not what it says"));
    }
    if !decoder.finish().is_empty() {
        return Err(PackError::Damaged("bytes are left over"));
    }
    Ok(body)
}

/// Numbers names in the order of their first use.
#[derive(Default)]
struct Dictionary<'a> {
    numbers: HashMap<&'a [u8], u64>,
    names: Vec<&'a [u8]>,
}

impl<'a> Dictionary<'a> {
    fn number(&mut self, name: &'a [u8]) -> u64 {
        *self.numbers.entry(name).or_insert_with(|| {
            self.names.push(name);
            self.names.len() as u64 - 1
        })
    }
}

/// The body of a pack, but for the contents of texts and blobs, which are written from where they are.
struct Body<'a> {
    before: Vec<u8>,
    changes: &'a [Change],
    contents: u64,
    after: Vec<u8>,
}

impl<'a> Body<'a> {
    fn of(pack: &'a Pack) -> Self {
        let (mut tables, mut columns, mut sites) =
            (Dictionary::default(), Dictionary::default(), Dictionary::default());
        for table in &pack.tables {
            tables.number(table.name.as_bytes());
        }
        let mut table_column = Vec::new();
        let mut cid_column = Vec::new();
        let mut site_column = Vec::new();
        for change in &pack.changes {
            put_uint(&mut table_column, tables.number(change.table.as_bytes()));
            put_uint(&mut cid_column, columns.number(change.cid.as_bytes()));
            put_uint(&mut site_column, sites.number(change.site_id.as_bytes()));
        }

        let mut before = Vec::new();
        put_bytes(&mut before, pack.source.as_bytes());
        put_cursor(&mut before, pack.from);
        put_cursor(&mut before, pack.to);
        put_tables(&mut before, &tables.names, &pack.tables);
        put_names(&mut before, &columns.names);
        put_names(&mut before, &sites.names);
        put_uint(&mut before, pack.changes.len() as u64);
        before.extend(table_column);
        put_keys(&mut before, &pack.changes);
        before.extend(cid_column);
        let contents = put_values(&mut before, &pack.changes);
        let mut after = Vec::new();
        put_versions(&mut after, &pack.changes, pack.from.version);
        after.extend(site_column);
        Self { before, changes: &pack.changes, contents, after }
    }

    fn length(&self) -> u64 {
        self.before.len() as u64 + self.contents + self.after.len() as u64
    }

    fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.before)?;
        for change in self.changes {
            out.write_all(change.val.content())?;
        }
        out.write_all(&self.after)
    }
}

#[cfg(test)]
pub(super) fn encode_body(pack: &Pack) -> Vec<u8> {
    let mut bytes = Vec::new();
    Body::of(pack).write_to(&mut bytes).expect("memory takes every write");
    bytes
}

fn put_cursor(body: &mut Vec<u8>, cursor: Cursor) {
    put_int(body, cursor.version);
    put_int(body, cursor.seq);
}

fn put_names(body: &mut Vec<u8>, names: &[&[u8]]) {
    put_uint(body, names.len() as u64);
    for name in names {
        put_bytes(body, name);
    }
}

fn put_tables(body: &mut Vec<u8>, names: &[&[u8]], tables: &[PackTable]) {
    let shapes: HashMap<&[u8], &PackTable> = tables.iter().map(|table| (table.name.as_bytes(), table)).collect();
    put_uint(body, names.len() as u64);
    for name in names {
        put_bytes(body, name);
        let key_columns = shapes.get(name).map_or(&[][..], |table| &table.key_columns);
        put_names(body, &key_columns.iter().map(String::as_bytes).collect::<Vec<_>>());
    }
}

/// Lengths, then bytes. No packed key is empty, so length 0 stands for the key of the change before.
fn put_keys(body: &mut Vec<u8>, changes: &[Change]) {
    let mut bytes = Vec::new();
    let mut previous: &[u8] = &[];
    for change in changes {
        if *change.pk == *previous {
            put_uint(body, 0);
            continue;
        }
        previous = &change.pk;
        put_uint(body, previous.len() as u64);
        bytes.extend_from_slice(previous);
    }
    body.extend(bytes);
}

/// Types, then integers, reals, and lengths of texts and blobs. How many bytes their contents have, which come next.
fn put_values(body: &mut Vec<u8>, changes: &[Change]) -> u64 {
    let (mut integers, mut reals, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    let mut contents = 0;
    let mut sized = |length: usize| {
        put_uint(&mut lengths, length as u64);
        contents += length as u64;
    };
    for change in changes {
        let kind = match &change.val {
            Value::Null => NULL,
            Value::Integer(value) => {
                put_int(&mut integers, *value);
                INTEGER
            }
            Value::Real(value) => {
                reals.extend(value.to_le_bytes());
                REAL
            }
            Value::Text(value) => {
                sized(value.len());
                TEXT
            }
            Value::Blob(value) => {
                sized(value.len());
                BLOB
            }
        };
        body.push(kind);
    }
    for part in [integers, reals, lengths] {
        body.extend(part);
    }
    contents
}

fn put_versions(body: &mut Vec<u8>, changes: &[Change], from_version: i64) {
    for change in changes {
        put_int(body, change.col_version);
    }
    let mut previous = from_version;
    for change in changes {
        put_int(body, change.db_version.wrapping_sub(previous));
        previous = change.db_version;
    }
    for change in changes {
        put_int(body, change.cl);
    }
    let mut previous = 0;
    for change in changes {
        put_int(body, change.seq.wrapping_sub(previous));
        previous = change.seq;
    }
}

pub(super) fn decode_body(body: &[u8], limits: &Limits) -> Result<Pack, PackError> {
    let mut reader = Reader::new(body);
    let source = SiteId::from_bytes(reader.bytes().ok_or(CUT_SHORT)?)
        .map_err(|_| PackError::Damaged("its source is no site id"))?;
    let from = cursor(&mut reader)?;
    let to = cursor(&mut reader)?;
    if from > to {
        return Err(PackError::Damaged("it ends before it starts"));
    }
    let tables = tables(&mut reader, limits)?;
    let columns = names(&mut reader, limits)?;
    let sites = sites(&mut reader, limits)?;

    let count = within("changes", reader.uint().ok_or(CUT_SHORT)?, limits.changes)?;
    if count > reader.rest().len() / MIN_BYTES_PER_CHANGE {
        return Err(CUT_SHORT);
    }
    let mut changes = Vec::with_capacity(count);
    let table_numbers = indices(&mut reader, count, tables.len())?;
    let keys = keys(&mut reader, count)?;
    let cid_numbers = indices(&mut reader, count, columns.len())?;
    let values = values(&mut reader, count)?;
    let col_versions = integers(&mut reader, count)?;
    let db_versions = deltas(&mut reader, count, from.version)?;
    let cls = integers(&mut reader, count)?;
    let seqs = deltas(&mut reader, count, 0)?;
    let site_numbers = indices(&mut reader, count, sites.len())?;
    if !reader.is_empty() {
        return Err(PackError::Damaged("bytes are left over"));
    }

    let table_names: Vec<Arc<str>> = tables.iter().map(|table| table.name.as_str().into()).collect();
    let mut previous = from;
    for (index, (pk, val)) in keys.into_iter().zip(values).enumerate() {
        let table = table_numbers[index];
        let change = Change {
            table: Arc::clone(&table_names[table]),
            pk,
            cid: Arc::clone(&columns[cid_numbers[index]]),
            val,
            col_version: col_versions[index],
            db_version: db_versions[index],
            site_id: sites[site_numbers[index]],
            cl: cls[index],
            seq: seqs[index],
        };
        check(&change, &tables[table], from, previous, to).map_err(|reason| PackError::Change { index, reason })?;
        previous = change.cursor();
        changes.push(change);
    }
    Ok(Pack { source, from, to, tables, changes })
}

fn check(change: &Change, table: &PackTable, from: Cursor, previous: Cursor, to: Cursor) -> Result<(), &'static str> {
    change.check()?;
    check_pk(&change.pk, table.key_columns.len())?;
    let place = change.cursor();
    if place <= from || place > to {
        return Err("it lies outside what the pack covers");
    }
    if place < previous {
        return Err("it is out of order");
    }
    Ok(())
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
fn entries(reader: &mut Reader<'_>, what: &'static str, limits: &Limits) -> Result<usize, PackError> {
    let count = within(what, reader.uint().ok_or(CUT_SHORT)?, limits.names)?;
    if count > reader.rest().len() { Err(CUT_SHORT) } else { Ok(count) }
}

fn name<'a>(reader: &mut Reader<'a>) -> Result<&'a str, PackError> {
    let bytes = reader.bytes().ok_or(CUT_SHORT)?;
    if bytes.len() > MAX_NAME {
        return Err(PackError::TooLarge { what: "bytes in a name", claimed: bytes.len() as u64, limit: MAX_NAME });
    }
    std::str::from_utf8(bytes).map_err(|_| PackError::Damaged("a name is not valid UTF-8"))
}

fn tables(reader: &mut Reader<'_>, limits: &Limits) -> Result<Vec<PackTable>, PackError> {
    let mut seen = HashSet::new();
    (0..entries(reader, "tables", limits)?)
        .map(|_| {
            let table = name(reader)?;
            if !seen.insert(table) {
                return Err(PackError::Damaged("a table occurs twice"));
            }
            let key_columns = (0..entries(reader, "key columns", limits)?)
                .map(|_| name(reader).map(str::to_owned))
                .collect::<Result<_, _>>()?;
            Ok(PackTable { name: table.to_owned(), key_columns })
        })
        .collect()
}

fn names(reader: &mut Reader<'_>, limits: &Limits) -> Result<Vec<Arc<str>>, PackError> {
    (0..entries(reader, "columns", limits)?).map(|_| name(reader).map(Arc::from)).collect()
}

fn sites(reader: &mut Reader<'_>, limits: &Limits) -> Result<Vec<SiteId>, PackError> {
    (0..entries(reader, "sites", limits)?)
        .map(|_| {
            let bytes = reader.bytes().ok_or(CUT_SHORT)?;
            SiteId::from_bytes(bytes).map_err(|_| PackError::Damaged("a site id is too short or too long"))
        })
        .collect()
}

fn indices(reader: &mut Reader<'_>, count: usize, length: usize) -> Result<Vec<usize>, PackError> {
    (0..count)
        .map(|_| match reader.size().ok_or(CUT_SHORT)? {
            index if index < length => Ok(index),
            _ => Err(PackError::Damaged("a reference leads nowhere")),
        })
        .collect()
}

fn integers(reader: &mut Reader<'_>, count: usize) -> Result<Vec<i64>, PackError> {
    (0..count).map(|_| reader.int().ok_or(CUT_SHORT)).collect()
}

fn deltas(reader: &mut Reader<'_>, count: usize, start: i64) -> Result<Vec<i64>, PackError> {
    let mut value = start;
    (0..count)
        .map(|_| {
            value = value.wrapping_add(reader.int().ok_or(CUT_SHORT)?);
            Ok(value)
        })
        .collect()
}

/// A key that repeats is held once, so that a long one repeated many times costs what was sent.
fn keys(reader: &mut Reader<'_>, count: usize) -> Result<Vec<Arc<[u8]>>, PackError> {
    let lengths = sizes(reader, count)?;
    let mut keys: Vec<Arc<[u8]>> = Vec::with_capacity(count);
    for length in lengths {
        let key = match (length, keys.last()) {
            (0, Some(previous)) => Arc::clone(previous),
            (0, None) => return Err(PackError::Damaged("the first key is missing")),
            _ => reader.take(length).ok_or(CUT_SHORT)?.into(),
        };
        keys.push(key);
    }
    Ok(keys)
}

fn sizes(reader: &mut Reader<'_>, count: usize) -> Result<Vec<usize>, PackError> {
    (0..count).map(|_| reader.size().ok_or(CUT_SHORT)).collect()
}

fn values(reader: &mut Reader<'_>, count: usize) -> Result<Vec<Value>, PackError> {
    let kinds = reader.take(count).ok_or(CUT_SHORT)?;
    let of_kinds = |wanted: &[u8]| kinds.iter().filter(|kind| wanted.contains(kind)).count();
    let mut integers = integers(reader, of_kinds(&[INTEGER]))?.into_iter();
    let reals = reader.take(of_kinds(&[REAL]).saturating_mul(8)).ok_or(CUT_SHORT)?;
    let mut reals = Reader::new(reals);
    let mut lengths = sizes(reader, of_kinds(&[TEXT, BLOB]))?.into_iter();
    let mut bytes = || reader.take(lengths.next()?);
    kinds
        .iter()
        .map(|kind| {
            Ok(match *kind {
                NULL => Value::Null,
                INTEGER => Value::Integer(integers.next().ok_or(CUT_SHORT)?),
                REAL => Value::Real(f64::from_le_bytes(reals.array().ok_or(CUT_SHORT)?)),
                TEXT => Value::Text(bytes().ok_or(CUT_SHORT)?.to_vec()),
                BLOB => Value::Blob(bytes().ok_or(CUT_SHORT)?.to_vec()),
                _ => return Err(PackError::Damaged("a value has an unknown type")),
            })
        })
        .collect()
}
