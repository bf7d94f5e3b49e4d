//! Prepared statements.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::NonNull;

use rusqlite::ffi::{self, sqlite3_stmt};
use rusqlite::types::ValueRef;

use super::{Db, bytes};
use crate::error::{Error, Result};

/// A prepared statement that owns itself.
///
/// At rest (outside [`Stmt::exec`], [`Rows`] and between [`Stmt::reset`]s) no borrowed memory is
/// bound to it.
pub(crate) struct Stmt {
    raw: NonNull<sqlite3_stmt>,
    db: Db,
}

impl Stmt {
    /// Compiles the one statement `sql`, to be kept for long.
    pub(crate) fn prepare(db: Db, sql: &str) -> Result<Stmt> {
        let mut raw = std::ptr::null_mut();
        let len = c_int::try_from(sql.len()).map_err(|_| Error::misuse("a statement is longer than 2 GB"))?;
        // SAFETY: the connection is open, the text has `len` bytes, `raw` is a place for the result.
        let code = unsafe {
            ffi::sqlite3_prepare_v3(
                db.0,
                sql.as_ptr().cast::<c_char>(),
                len,
                ffi::SQLITE_PREPARE_PERSISTENT,
                &raw mut raw,
                std::ptr::null_mut(),
            )
        };
        if code != ffi::SQLITE_OK {
            return Err(db.last_error(code));
        }
        match NonNull::new(raw) {
            Some(raw) => Ok(Stmt { raw, db }),
            None => Err(Error::misuse("an empty statement cannot be prepared")),
        }
    }

    /// Binds all parameters, runs the statement to its end and forgets the parameters.
    pub(crate) fn exec(&mut self, params: &[ValueRef<'_>]) -> Result<()> {
        let mut rows = self.query(params)?;
        while rows.next()? {}
        Ok(())
    }

    /// Binds all parameters and starts the statement.
    pub(crate) fn query<'s>(&'s mut self, params: &'s [ValueRef<'s>]) -> Result<Rows<'s>> {
        let mut borrowed = false;
        for (i, param) in params.iter().enumerate() {
            borrowed |= matches!(param, ValueRef::Text(_) | ValueRef::Blob(_));
            // SAFETY of lending: `Rows` keeps the parameters borrowed and unbinds them when dropped.
            if let Err(error) = self.bind(i + 1, *param, ffi::SQLITE_STATIC()) {
                self.unbind();
                return Err(error);
            }
        }
        Ok(Rows { stmt: self, borrowed })
    }

    /// Binds one parameter by copy, counting from 1, for statements that are stepped by hand.
    pub(crate) fn bind_copy(&mut self, index: usize, value: ValueRef<'_>) -> Result<()> {
        self.bind(index, value, ffi::SQLITE_TRANSIENT())
    }

    fn bind(&mut self, index: usize, value: ValueRef<'_>, kind: ffi::sqlite3_destructor_type) -> Result<()> {
        let index = c_int::try_from(index).unwrap_or(c_int::MAX);
        let raw = self.raw.as_ptr();
        // SAFETY: a live statement; slices are valid for their length. With SQLITE_STATIC the
        // callers above see to it that the memory stays until it is unbound. An empty slice's
        // pointer is dangling but not null, and nothing is read through it.
        let code = unsafe {
            match value {
                ValueRef::Null => ffi::sqlite3_bind_null(raw, index),
                ValueRef::Integer(i) => ffi::sqlite3_bind_int64(raw, index, i),
                ValueRef::Real(r) => ffi::sqlite3_bind_double(raw, index, r),
                ValueRef::Text(t) => ffi::sqlite3_bind_text64(
                    raw,
                    index,
                    t.as_ptr().cast::<c_char>(),
                    t.len() as u64,
                    kind,
                    ffi::SQLITE_UTF8 as u8,
                ),
                ValueRef::Blob(b) => {
                    ffi::sqlite3_bind_blob64(raw, index, b.as_ptr().cast::<c_void>(), b.len() as u64, kind)
                }
            }
        };
        if code == ffi::SQLITE_OK { Ok(()) } else { Err(self.db.last_error(code)) }
    }

    /// Moves to the next row; false at the end.
    pub(crate) fn step(&mut self) -> Result<bool> {
        // SAFETY: a live statement.
        match unsafe { ffi::sqlite3_step(self.raw.as_ptr()) } {
            ffi::SQLITE_ROW => Ok(true),
            ffi::SQLITE_DONE => Ok(false),
            code => Err(self.db.last_error(code)),
        }
    }

    /// Ends the run; the statement can be bound and stepped anew.
    pub(crate) fn reset(&mut self) {
        // SAFETY: a live statement. The code repeats the last step's error, which was reported.
        unsafe { ffi::sqlite3_reset(self.raw.as_ptr()) };
    }

    fn unbind(&mut self) {
        // SAFETY: a live statement.
        unsafe { ffi::sqlite3_clear_bindings(self.raw.as_ptr()) };
    }

    /// How often SQLite had to compile the statement again because the schema had changed.
    pub(crate) fn reprepared(&self) -> c_int {
        // SAFETY: a live statement.
        unsafe { ffi::sqlite3_stmt_status(self.raw.as_ptr(), ffi::SQLITE_STMTSTATUS_REPREPARE, 0) }
    }

    /// Column `i` of the current row, in its own type.
    pub(crate) fn column(&self, i: usize) -> ValueRef<'_> {
        let i = c_int::try_from(i).unwrap_or(c_int::MAX);
        let raw = self.raw.as_ptr();
        // SAFETY: a live statement (an index out of range reads NULL). Text and blobs stay valid
        // until the next step or reset, both of which need `&mut self`.
        unsafe {
            match ffi::sqlite3_column_type(raw, i) {
                ffi::SQLITE_INTEGER => ValueRef::Integer(ffi::sqlite3_column_int64(raw, i)),
                ffi::SQLITE_FLOAT => ValueRef::Real(ffi::sqlite3_column_double(raw, i)),
                ffi::SQLITE_TEXT => {
                    let data = ffi::sqlite3_column_text(raw, i);
                    ValueRef::Text(bytes(data, ffi::sqlite3_column_bytes(raw, i)))
                }
                ffi::SQLITE_BLOB => {
                    let data = ffi::sqlite3_column_blob(raw, i).cast::<u8>();
                    ValueRef::Blob(bytes(data, ffi::sqlite3_column_bytes(raw, i)))
                }
                _ => ValueRef::Null,
            }
        }
    }

    /// Column `i` as an integer; 0 for NULL.
    pub(crate) fn int(&self, i: usize) -> i64 {
        // SAFETY: a live statement.
        unsafe { ffi::sqlite3_column_int64(self.raw.as_ptr(), c_int::try_from(i).unwrap_or(c_int::MAX)) }
    }

    /// Column `i` as bytes: text, or a blob's.
    pub(crate) fn bytes(&self, i: usize) -> &[u8] {
        match self.column(i) {
            ValueRef::Text(b) | ValueRef::Blob(b) => b,
            _ => &[],
        }
    }

    /// Column `i`, known to be text or NULL, as bytes; empty for NULL. Saves asking for the type.
    pub(crate) fn name(&self, i: usize) -> &[u8] {
        let i = c_int::try_from(i).unwrap_or(c_int::MAX);
        let raw = self.raw.as_ptr();
        // SAFETY: a live statement; the bytes stay valid until the next step or reset, both of which
        // need `&mut self`. Asking for the length first makes SQLite convert to UTF-8.
        unsafe {
            let len = ffi::sqlite3_column_bytes(raw, i);
            bytes(ffi::sqlite3_column_blob(raw, i).cast::<u8>(), len)
        }
    }

    /// Column `i` as text; empty for NULL.
    pub(crate) fn text(&self, i: usize) -> String {
        match self.column(i) {
            ValueRef::Text(b) | ValueRef::Blob(b) => String::from_utf8_lossy(b).into_owned(),
            ValueRef::Integer(i) => i.to_string(),
            ValueRef::Real(r) => r.to_string(),
            ValueRef::Null => String::new(),
        }
    }

    /// Whether column `i` is NULL.
    pub(crate) fn is_null(&self, i: usize) -> bool {
        matches!(self.column(i), ValueRef::Null)
    }

    pub(super) fn raw(&self) -> *mut sqlite3_stmt {
        self.raw.as_ptr()
    }
}

impl Drop for Stmt {
    fn drop(&mut self) {
        // SAFETY: finalised once, here. SQLite keeps the connection's memory until the last
        // statement is finalised.
        unsafe { ffi::sqlite3_finalize(self.raw.as_ptr()) };
    }
}

/// A running statement and its borrowed parameters.
pub(crate) struct Rows<'s> {
    stmt: &'s mut Stmt,
    borrowed: bool,
}

impl Rows<'_> {
    /// Moves to the next row; false at the end.
    pub(crate) fn next(&mut self) -> Result<bool> {
        self.stmt.step()
    }
}

impl std::ops::Deref for Rows<'_> {
    type Target = Stmt;
    fn deref(&self) -> &Stmt {
        self.stmt
    }
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        self.stmt.reset();
        if self.borrowed {
            self.stmt.unbind();
        }
    }
}
