//! The engine as a loadable extension of SQLite: `libcrsqlite.so`, entry point
//! `sqlite3_crsqlite_init`.
//!
//! ```sql
//! .load ./libcrsqlite
//! SELECT hex(crsql_site_id());
//! ```
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};

use rusqlite::ffi::{sqlite3, sqlite3_api_routines};
use rusqlite::{Connection, Result};

/// What SQLite calls when it loads the library.
///
/// # Safety
/// Called by SQLite, with its own pointers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_crsqlite_init(
    db: *mut sqlite3,
    message: *mut *mut c_char,
    api: *mut sqlite3_api_routines,
) -> c_int {
    // SAFETY: SQLite's own arguments are passed on; `register` registers, and makes the tables that
    // the extension needs, which SQLite allows in an entry point.
    unsafe { Connection::extension_init2(db, message, api, register) }
}

/// `true` asks SQLite to keep the library in memory after the connection is closed: unloading gains
/// nothing, and a library that stays can never be missing where SQLite still has a pointer into it.
#[expect(clippy::needless_pass_by_value, reason = "the signature that rusqlite calls")]
fn register(conn: Connection) -> Result<bool> {
    crsqlite_engine::register_verbatim(&conn)?;
    Ok(true)
}
