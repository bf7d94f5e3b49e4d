//! SQL functions over shared data.

use std::ffi::{c_char, c_int, c_void};
use std::rc::Rc;

use rusqlite::ffi::{self, sqlite3_context, sqlite3_value};
use rusqlite::types::ValueRef;

use super::{Args, Db, Stmt, c_string, guarded};
use crate::error::{Error, Result};

/// What a function returns.
pub(crate) enum Output {
    Null,
    Int(i64),
    Text(String),
    Blob(Vec<u8>),
}

impl From<i64> for Output {
    fn from(value: i64) -> Output {
        Output::Int(value)
    }
}

impl From<&str> for Output {
    fn from(value: &str) -> Output {
        Output::Text(value.to_owned())
    }
}

/// Flags of a function, as SQLite lists them.
#[derive(Clone, Copy)]
pub(crate) struct Flags(c_int);

impl Flags {
    pub(crate) const NONE: Flags = Flags(0);
    pub(crate) const DETERMINISTIC: Flags = Flags(ffi::SQLITE_DETERMINISTIC);
    pub(crate) const INNOCUOUS: Flags = Flags(ffi::SQLITE_INNOCUOUS);
    pub(crate) const PURE: Flags = Flags(ffi::SQLITE_DETERMINISTIC | ffi::SQLITE_INNOCUOUS);
    pub(crate) const DIRECT_ONLY: Flags = Flags(ffi::SQLITE_DIRECTONLY);
}

/// One SQL function: name, number of arguments (-1: any), flags, body.
pub(crate) struct Function<T> {
    pub(crate) name: &'static str,
    pub(crate) args: i8,
    pub(crate) flags: Flags,
    pub(crate) body: fn(&T, Args<'_>) -> Result<Output>,
}

struct Data<T> {
    shared: Rc<T>,
    body: fn(&T, Args<'_>) -> Result<Output>,
}

impl Db {
    /// Registers a function; `shared` lives until the connection is closed.
    pub(crate) fn create_function<T: 'static>(self, shared: &Rc<T>, function: &Function<T>) -> Result<()> {
        let name = c_string(function.name)?;
        let data = Box::new(Data { shared: Rc::clone(shared), body: function.body });
        // SAFETY: the data is handed over to SQLite, which destroys it by `destroy` when the
        // function goes, or when this call fails.
        let code = unsafe {
            ffi::sqlite3_create_function_v2(
                self.0,
                name.as_ptr(),
                c_int::from(function.args),
                ffi::SQLITE_UTF8 | function.flags.0,
                Box::into_raw(data).cast::<c_void>(),
                Some(call::<T>),
                None,
                None,
                Some(destroy::<Data<T>>),
            )
        };
        if code == ffi::SQLITE_OK { Ok(()) } else { Err(self.last_error(code)) }
    }
}

unsafe extern "C" fn call<T: 'static>(context: *mut sqlite3_context, argc: c_int, argv: *mut *mut sqlite3_value) {
    // SAFETY: the user data is what `create_function` gave; the arguments live for this call.
    let (data, args) = unsafe { (&*ffi::sqlite3_user_data(context).cast::<Data<T>>(), Args::new(argc, argv)) };
    let result = Context(context);
    match guarded(|| (data.body)(&data.shared, args)) {
        Ok(Output::Null) => result.set(ValueRef::Null),
        Ok(Output::Int(i)) => result.set(ValueRef::Integer(i)),
        Ok(Output::Text(t)) => result.set(ValueRef::Text(t.as_bytes())),
        Ok(Output::Blob(b)) => result.set(ValueRef::Blob(&b)),
        Err(error) => result.fail(&error),
    }
}

pub(super) unsafe extern "C" fn destroy<D>(data: *mut c_void) {
    // SAFETY: made by `Box::into_raw` of the same type, destroyed once.
    drop(unsafe { Box::from_raw(data.cast::<D>()) });
}

/// Where a function or a virtual table puts its value.
#[derive(Clone, Copy)]
pub(crate) struct Context(pub(super) *mut sqlite3_context);

impl Context {
    /// Returns a copy of the value.
    pub(crate) fn set(self, value: ValueRef<'_>) {
        // SAFETY: the context lives for the callback that made it; SQLite copies the bytes.
        unsafe {
            match value {
                ValueRef::Null => ffi::sqlite3_result_null(self.0),
                ValueRef::Integer(i) => ffi::sqlite3_result_int64(self.0, i),
                ValueRef::Real(r) => ffi::sqlite3_result_double(self.0, r),
                ValueRef::Text(t) => ffi::sqlite3_result_text64(
                    self.0,
                    t.as_ptr().cast::<c_char>(),
                    t.len() as u64,
                    ffi::SQLITE_TRANSIENT(),
                    ffi::SQLITE_UTF8 as u8,
                ),
                ValueRef::Blob(b) => ffi::sqlite3_result_blob64(
                    self.0,
                    b.as_ptr().cast::<c_void>(),
                    b.len() as u64,
                    ffi::SQLITE_TRANSIENT(),
                ),
            }
        }
    }

    /// Returns column `i` of the statement's current row.
    pub(crate) fn set_column(self, stmt: &Stmt, i: usize) {
        let i = c_int::try_from(i).unwrap_or(c_int::MAX);
        // SAFETY: a live statement and context; SQLite copies the value.
        unsafe { ffi::sqlite3_result_value(self.0, ffi::sqlite3_column_value(stmt.raw(), i)) }
    }

    /// Fails with the error's message and code.
    fn fail(self, error: &Error) {
        let message = error.to_string();
        // SAFETY: the context lives; the message is copied.
        unsafe {
            ffi::sqlite3_result_error(
                self.0,
                message.as_ptr().cast::<c_char>(),
                c_int::try_from(message.len()).unwrap_or(c_int::MAX),
            );
            ffi::sqlite3_result_error_code(self.0, error.code());
        }
    }
}
