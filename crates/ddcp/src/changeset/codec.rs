//! The bytes of a pack, as `docs/formats.md` specifies them: magic, version, length, and a zstd frame of the body.
//! The body holds dictionaries (tables, columns, sites), then each column of the changes for all of them.

use std::{
    collections::HashMap,
    io::{self, BufWriter, Read, Write},
    sync::Arc,
};

use super::{
    Change, Cursor, Pack, PackTable, Value,
    decode::{MOST_MADE, decode_body, open_body},
    key_values,
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
/// Bytes of the body that are decompressed before it is known whether there are more.
const FIRST_BYTES: usize = 64 * 1024;

pub(super) const NULL: u8 = 0;
pub(super) const INTEGER: u8 = 1;
pub(super) const REAL: u8 = 2;
pub(super) const TEXT: u8 = 3;
pub(super) const BLOB: u8 = 4;

/// What a pack from somebody else may claim. By default [`Limits::PROTOCOL`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes after decompression.
    pub raw_bytes: usize,
    /// Number of changes.
    pub changes: usize,
    /// Number of tables, of columns, and of sites.
    pub names: usize,
    /// Bytes of memory for everything that is made of the decompressed bytes.
    pub memory: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::PROTOCOL
    }
}

impl Limits {
    /// What every reader takes, unless its owner has set it to less, and nobody sends more of: any row that SQLite holds
    /// fits.
    pub const PROTOCOL: Self =
        Self { raw_bytes: 1_100_000_000, changes: 4_000_000, names: 65_536, memory: 1_500_000_000 };

    /// Those of a pack that lies in this repository's state: how large it may be was looked at when it was fetched.
    #[must_use]
    pub fn of_stored() -> Self {
        Self { raw_bytes: usize::MAX, memory: usize::MAX, ..Self::default() }
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
    /// The machine, or a limit of this process, has no more. The pack may be a good one.
    #[error("there is not enough memory to unpack it")]
    NoMemory,
    /// The bytes end too early, go on too long, or do not decompress.
    #[error("the pack is damaged: {0}")]
    Damaged(&'static str),
    /// A change that no database can have made.
    #[error("change {index} of the pack ({change}) is not valid: {reason}")]
    Change {
        /// Counted from 0.
        index: usize,
        /// Its table, key and column, for people.
        change: String,
        /// The rule that is broken.
        reason: &'static str,
    },
}

pub(super) const CUT_SHORT: PackError = PackError::Damaged("it ends too early");

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

    /// Reads a pack, from anybody: whatever the bytes are, the result is a pack that keeps every rule or an error, and
    /// the memory used is bounded by what `limits` allow and what was really sent, not by what is claimed.
    ///
    /// # Errors
    /// [`PackError`].
    pub fn decode(encoded: &[u8], limits: &Limits) -> Result<Self, PackError> {
        let container = Container::open(encoded, limits)?;
        let pack = decode_body(&container.unpack()?, limits)?;
        container.check_texts(|| pack.is_plain())?;
        Ok(pack)
    }

    /// Reads a pack as [`Pack::decode`] does, and keeps none of its changes: `look` sees each once. What is given back
    /// is without them, and their number. Takes the memory of the decompressed bytes and of one change.
    ///
    /// # Errors
    /// As [`Pack::decode`], and then the pack is none, whatever `look` has seen.
    pub fn inspect(encoded: &[u8], limits: &Limits, mut look: impl FnMut(&Change)) -> Result<(Self, usize), PackError> {
        let container = Container::open(encoded, limits)?;
        let body = container.unpack()?;
        let (pack, changes) = open_body(&body, limits)?;
        let count = changes.count;
        let mut are_plain = true;
        let mut key: Option<Arc<[u8]>> = None;
        for change in changes {
            let change = change?;
            let repeats = key.as_ref().is_some_and(|key| Arc::ptr_eq(key, &change.pk));
            are_plain = are_plain && has_plain_texts(&change, repeats);
            look(&change);
            key = Some(change.pk);
        }
        container.check_texts(|| are_plain)?;
        Ok((pack, count))
    }

    fn is_plain(&self) -> bool {
        let mut previous: &[u8] = &[];
        self.changes.iter().all(|change| {
            let repeats = change.pk.as_ptr() == previous.as_ptr();
            previous = &change.pk;
            has_plain_texts(change, repeats)
        })
    }
}

/// Whether the texts of a change are UTF-8. Of a key that repeats, the first is looked at.
fn has_plain_texts(change: &Change, key_repeats: bool) -> bool {
    is_plain(change.val.as_ref()) && (key_repeats || has_plain_key(&change.pk))
}

fn has_plain_key(pk: &[u8]) -> bool {
    key_values(pk).into_iter().flatten().flatten().all(is_plain)
}

pub(super) fn within(what: &'static str, claimed: u64, limit: usize) -> Result<usize, PackError> {
    match usize::try_from(claimed) {
        Ok(size) if size <= limit => Ok(size),
        _ => Err(PackError::TooLarge { what, claimed, limit }),
    }
}

/// What surrounds the body.
struct Container<'a> {
    version: u64,
    /// Bytes of the body, as claimed.
    length: usize,
    frame: &'a [u8],
}

impl<'a> Container<'a> {
    fn open(encoded: &'a [u8], limits: &Limits) -> Result<Self, PackError> {
        let mut reader = Reader::new(encoded);
        if reader.take(MAGIC.len()) != Some(MAGIC) {
            return Err(PackError::NotAPack);
        }
        let version = reader.uint().ok_or(CUT_SHORT)?;
        if !(PLAIN..=ANY_TEXT).contains(&version) {
            return Err(PackError::Version(version));
        }
        let length = within("bytes", reader.uint().ok_or(CUT_SHORT)?, limits.raw_bytes)?;
        Ok(Self { version, length, frame: reader.rest() })
    }

    fn unpack(&self) -> Result<Vec<u8>, PackError> {
        decompress(self.frame, self.length)
    }

    fn check_texts(&self, are_plain: impl FnOnce() -> bool) -> Result<(), PackError> {
        if self.version == PLAIN && !are_plain() {
            return Err(PackError::Damaged("a text is not valid UTF-8"));
        }
        Ok(())
    }
}

/// The memory that reading a pack of these bytes takes at most, what is made of it included where that `is_kept`. By
/// what it claims: one that does not keep to it is no pack.
pub(super) fn memory_of(encoded: &[u8], limits: &Limits, is_kept: bool) -> usize {
    let length = claimed_length(encoded, limits);
    let made = if is_kept { length.saturating_mul(MOST_MADE).min(limits.memory) } else { length };
    length.saturating_add(made)
}

/// Bytes of the body, as the pack claims; 0 of one that would be refused for what stands before the body.
pub(super) fn claimed_length(encoded: &[u8], limits: &Limits) -> usize {
    Container::open(encoded, limits).map_or(0, |container| container.length)
}

/// Exactly `length` bytes of a single frame. The buffer grows with what really comes out of the decoder.
fn decompress(frame: &[u8], length: usize) -> Result<Vec<u8>, PackError> {
    let damaged = |_| PackError::Damaged("it does not decompress");
    let mut decoder = zstd::stream::read::Decoder::with_buffer(frame).map_err(damaged)?.single_frame();
    decoder.window_log_max(MAX_WINDOW_LOG).map_err(damaged)?;
    let mut body = Vec::new();
    loop {
        let wanted = (2 * body.len()).max(FIRST_BYTES).min(length) - body.len();
        body.try_reserve_exact(wanted).map_err(|_| PackError::NoMemory)?;
        let came = decoder.by_ref().take(wanted as u64).read_to_end(&mut body).map_err(damaged)?;
        if came < wanted || wanted == 0 {
            break;
        }
    }
    let mut more = [0];
    if body.len() != length || decoder.read(&mut more).map_err(damaged)? != 0 {
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
