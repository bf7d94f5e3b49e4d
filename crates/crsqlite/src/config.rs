//! `crsql_config_get` and `crsql_config_set`.

use rusqlite::ffi;
use rusqlite::types::ValueRef;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ffi::function::Output;
use crate::ffi::{Args, Stmt};

const MERGE_EQUAL_VALUES: &str = "merge-equal-values";

/// `crsql_config_get(name)`
pub(crate) fn get(engine: &Engine, args: Args<'_>) -> Result<Output> {
    check_name(args)?;
    Ok(Output::Int(engine.merge_equal_values.get()))
}

/// `crsql_config_set(name, value)`: for this connection at once, for others when they load.
pub(crate) fn set(engine: &Engine, args: Args<'_>) -> Result<Output> {
    check_name(args)?;
    let ValueRef::Integer(value) = args.get(1) else {
        return Err(Error::usage("The value of merge-equal-values must be an integer, 0 or 1"));
    };
    engine.merge_equal_values.set(value);
    let stored = Stmt::prepare(
        engine.db,
        "INSERT OR REPLACE INTO main.crsql_master (key, value) \
         VALUES ('config.merge-equal-values', ?1)",
    )
    .and_then(|mut stmt| stmt.exec(&[ValueRef::Integer(value)]));
    match stored {
        Err(error) if error.code() & 0xff == ffi::SQLITE_READONLY => Err(Error::Sqlite {
            code: ffi::SQLITE_READONLY,
            message: "Could not persist config in database".to_owned(),
        }),
        Err(error) => Err(error),
        Ok(()) => Ok(Output::Int(value)),
    }
}

fn check_name(args: Args<'_>) -> Result<()> {
    if args.text(0).as_deref() == Some(MERGE_EQUAL_VALUES) {
        return Ok(());
    }
    Err(Error::usage("Unknown setting name"))
}
