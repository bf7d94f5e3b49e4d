//! The only unsafe code of the crate: what the engine needs of SQLite's C API and rusqlite does
//! not offer.
//!
//! * [`Stmt`]: prepared statements that live as long as the engine wants, not as long as a borrow
//!   of the connection, with zero-copy parameters;
//! * [`function`]: SQL functions that share one engine per connection;
//! * [`vtab`]: virtual tables with insertion, savepoints and exact result codes.
//!
//! # Why this is sound
//!
//! A [`Db`] is a bare connection pointer. It comes to be only in [`Db::of`] and in callbacks of
//! SQLite, and is kept only in values that the connection itself owns: the data of the functions
//! and modules registered on it, which SQLite destroys before it frees the connection. Nothing
//! here is `Send`: a connection may move between threads only as a whole, which is what
//! `rusqlite::Connection: Send` promises.
#![allow(unsafe_code)]

pub(crate) mod function;
mod share;
mod stmt;
pub(crate) mod vtab;

pub(crate) use stmt::Stmt;

use std::cell::Cell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rusqlite::ffi::{self, sqlite3, sqlite3_value};
use rusqlite::types::ValueRef;

use crate::error::{Error, Result};

/// A connection, without a claim on its lifetime (see the module's notes on soundness).
#[derive(Clone, Copy)]
pub(crate) struct Db(*mut sqlite3);

impl Db {
    /// The connection behind a rusqlite handle.
    pub(crate) fn of(conn: &rusqlite::Connection) -> Db {
        // SAFETY: the pointer is only read here; what is built from it is owned by the connection.
        Db(unsafe { conn.handle() })
    }

    /// What SQLite says about the call that just failed.
    pub(crate) fn last_error(self, code: c_int) -> Error {
        // SAFETY: the connection is open; errmsg returns a terminated string or null, valid until
        // the next call on the connection, and is copied at once.
        let (extended, message) = unsafe {
            let extended = ffi::sqlite3_extended_errcode(self.0);
            let text = ffi::sqlite3_errmsg(self.0);
            let message =
                if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() };
            (extended, message)
        };
        let code = if extended & 0xff == code & 0xff { extended } else { code };
        Error::Sqlite { code, message }
    }

    /// Runs statements without parameters and results.
    pub(crate) fn execute_batch(self, sql: &str) -> Result<()> {
        let sql = c_string(sql)?;
        // SAFETY: the connection is open and the text terminated; no callback is given.
        let code = unsafe { ffi::sqlite3_exec(self.0, sql.as_ptr(), None, std::ptr::null_mut(), std::ptr::null_mut()) };
        if code == ffi::SQLITE_OK { Ok(()) } else { Err(self.last_error(code)) }
    }

    /// Sets a limit of the connection, and gives the one that it had.
    pub(crate) fn set_limit(self, id: c_int, most: c_int) -> c_int {
        // SAFETY: the connection is open; an id that SQLite does not know does nothing.
        unsafe { ffi::sqlite3_limit(self.0, id, most) }
    }

    /// The rowid of the last insert on this connection.
    pub(crate) fn last_insert_rowid(self) -> i64 {
        // SAFETY: the connection is open.
        unsafe { ffi::sqlite3_last_insert_rowid(self.0) }
    }

    /// Rows changed by the statement that ran last.
    pub(crate) fn changes(self) -> i32 {
        // SAFETY: the connection is open.
        unsafe { ffi::sqlite3_changes(self.0) }
    }

    /// Rows changed since the connection was opened (it may wrap; compare for equality only).
    pub(crate) fn total_changes(self) -> i32 {
        // SAFETY: the connection is open.
        unsafe { ffi::sqlite3_total_changes(self.0) }
    }

    /// Whether this connection holds the write lock of `main`.
    pub(crate) fn is_writing(self) -> bool {
        self.is_writing_to(c"main")
    }

    /// Whether this connection holds the write lock of the database that is attached under this name.
    pub(crate) fn is_writing_to(self, schema: &CStr) -> bool {
        self.transaction_state(schema) == ffi::SQLITE_TXN_WRITE
    }

    /// Whether a database is attached under this name (`main` and `temp` are).
    pub(crate) fn has_schema(self, schema: &CStr) -> bool {
        self.transaction_state(schema) >= 0
    }

    fn transaction_state(self, schema: &CStr) -> c_int {
        // SAFETY: the connection is open and the name terminated.
        unsafe { ffi::sqlite3_txn_state(self.0, schema.as_ptr()) }
    }

    /// A number that is another one whenever the content of `main` has changed since: by this connection's commits, and by
    /// others' as far as a read has seen them.
    pub(crate) fn data_version(self) -> u32 {
        let mut version = 0_u32;
        // SAFETY: the connection is open, the name terminated, and the operation writes one `unsigned int`.
        unsafe {
            ffi::sqlite3_file_control(
                self.0,
                c"main".as_ptr(),
                ffi::SQLITE_FCNTL_DATA_VERSION,
                (&raw mut version).cast::<c_void>(),
            );
        }
        version
    }

    /// Whether no explicit transaction or savepoint is open.
    pub(crate) fn is_autocommit(self) -> bool {
        // SAFETY: the connection is open.
        unsafe { ffi::sqlite3_get_autocommit(self.0) != 0 }
    }
}

/// A pool of one prepared statement with fixed text: prepared at first use, lent out, taken back.
///
/// A second borrower (a trigger that leads back into the engine) gets a statement of its own.
pub(crate) struct Slot {
    sql: String,
    idle: Cell<Option<Stmt>>,
}

impl Slot {
    pub(crate) fn new(sql: impl Into<String>) -> Slot {
        Slot { sql: sql.into(), idle: Cell::new(None) }
    }

    /// The statement, ready to bind and run.
    pub(crate) fn get(&self, db: Db) -> Result<Lease<'_>> {
        let stmt = match self.idle.take() {
            Some(stmt) => stmt,
            None => Stmt::prepare(db, &self.sql)?,
        };
        Ok(Lease { stmt: Some(stmt), home: self })
    }

    /// The statement as an owned value, for cursors that outlive the borrow; give it back by
    /// [`Slot::put`].
    pub(crate) fn take(&self, db: Db) -> Result<Stmt> {
        match self.idle.take() {
            Some(stmt) => Ok(stmt),
            None => Stmt::prepare(db, &self.sql),
        }
    }

    /// Takes a statement back.
    pub(crate) fn put(&self, mut stmt: Stmt) {
        stmt.reset();
        self.idle.set(Some(stmt));
    }
}

/// A statement lent by a [`Slot`].
pub(crate) struct Lease<'s> {
    stmt: Option<Stmt>,
    home: &'s Slot,
}

impl std::ops::Deref for Lease<'_> {
    type Target = Stmt;
    fn deref(&self) -> &Stmt {
        match &self.stmt {
            Some(stmt) => stmt,
            None => unreachable!("a lease holds its statement until it is dropped"),
        }
    }
}

impl std::ops::DerefMut for Lease<'_> {
    fn deref_mut(&mut self) -> &mut Stmt {
        match &mut self.stmt {
            Some(stmt) => stmt,
            None => unreachable!("a lease holds its statement until it is dropped"),
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(stmt) = self.stmt.take() {
            self.home.put(stmt);
        }
    }
}

/// The arguments of a function, of a filter or of an inserted row.
#[derive(Clone, Copy)]
pub(crate) struct Args<'a>(&'a [*mut sqlite3_value]);

impl<'a> Args<'a> {
    /// # Safety
    /// `argv` points at `argc` protected values that live for `'a` (or `argc` is 0).
    unsafe fn new(argc: c_int, argv: *mut *mut sqlite3_value) -> Args<'a> {
        match usize::try_from(argc) {
            // SAFETY: promised by the caller.
            Ok(n) if n > 0 => Args(unsafe { std::slice::from_raw_parts(argv, n) }),
            _ => Args(&[]),
        }
    }

    pub(crate) fn len(self) -> usize {
        self.0.len()
    }

    /// The arguments from `start` on (none if there are fewer).
    pub(crate) fn from(self, start: usize) -> Args<'a> {
        Args(self.0.get(start..).unwrap_or_default())
    }

    /// The `i`th argument in its own type; NULL beyond the end.
    pub(crate) fn get(self, i: usize) -> ValueRef<'a> {
        let Some(&value) = self.0.get(i) else { return ValueRef::Null };
        // SAFETY: a live protected value; the text or blob it points to lives as long as the value
        // is not converted again, and this module only ever converts to UTF-8.
        unsafe {
            match ffi::sqlite3_value_type(value) {
                ffi::SQLITE_INTEGER => ValueRef::Integer(ffi::sqlite3_value_int64(value)),
                ffi::SQLITE_FLOAT => ValueRef::Real(ffi::sqlite3_value_double(value)),
                ffi::SQLITE_TEXT => ValueRef::Text(value_bytes(value)),
                ffi::SQLITE_BLOB => ValueRef::Blob(value_bytes(value)),
                _ => ValueRef::Null,
            }
        }
    }

    /// All arguments, in order.
    pub(crate) fn iter(self) -> impl Iterator<Item = ValueRef<'a>> {
        (0..self.len()).map(move |i| self.get(i))
    }

    /// The `i`th argument converted to an integer as SQLite converts; 0 for NULL and beyond the end.
    pub(crate) fn int(self, i: usize) -> i64 {
        // SAFETY: a live protected value.
        self.0.get(i).map_or(0, |&value| unsafe { ffi::sqlite3_value_int64(value) })
    }

    /// The `i`th argument as text (numbers are written out, blobs read as text); none for NULL and
    /// beyond the end.
    pub(crate) fn text(self, i: usize) -> Option<std::borrow::Cow<'a, str>> {
        // SQLite is not asked for the text of a blob: it might move the blob away from under who has it from `get`.
        match self.get(i) {
            ValueRef::Null => None,
            ValueRef::Text(b) | ValueRef::Blob(b) => Some(String::from_utf8_lossy(b)),
            ValueRef::Integer(_) | ValueRef::Real(_) => {
                let &value = self.0.get(i)?;
                // SAFETY: a live protected value, of which nothing is borrowed: it is a number.
                let text = unsafe { bytes(ffi::sqlite3_value_text(value), ffi::sqlite3_value_bytes(value)) };
                Some(String::from_utf8_lossy(text))
            }
        }
    }
}

/// The bytes of a text (in UTF-8) or blob.
///
/// # Safety
/// `value` is a protected value of one of these types that lives, unconverted, for `'a`.
unsafe fn value_bytes<'a>(value: *mut sqlite3_value) -> &'a [u8] {
    // SAFETY: promised by the caller. Asking for the length first makes SQLite convert a text to
    // UTF-8; asking for the blob then spares the copy that `sqlite3_value_text` makes of a text
    // without a NUL at its end.
    unsafe {
        let len = ffi::sqlite3_value_bytes(value);
        bytes(ffi::sqlite3_value_blob(value).cast::<u8>(), len)
    }
}

/// # Safety
/// `data` points at `len` bytes that live for `'a`, or is null.
unsafe fn bytes<'a>(data: *const u8, len: c_int) -> &'a [u8] {
    match usize::try_from(len) {
        // SAFETY: promised by the caller.
        Ok(n) if n > 0 && !data.is_null() => unsafe { std::slice::from_raw_parts(data, n) },
        _ => &[],
    }
}

/// Text for SQLite, which ends it at a NUL.
pub(crate) fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::misuse("a name or statement contains a NUL character"))
}

/// Runs `body`; a panic becomes an error instead of unwinding into SQLite.
#[inline]
fn guarded<R>(body: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| Err(Error::internal()))
}
