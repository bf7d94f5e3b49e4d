//! Everything that is registered on a connection, in one place.

use crate::changes::Changes;
use crate::closing::Closing;
use crate::clset::ClSet;
use crate::engine::{Engine, Messages, SHARE};
use crate::error::{Error, Result};
use crate::ffi::function::{Flags, Function, Output};
use crate::ffi::{Args, Db, Stmt};
use crate::pack::{PackError, pack};
use crate::unpack_table::UnpackColumns;
use crate::{alter, attached, automigrate, before, config, crr, fract, load, local};

/// Any number of arguments.
const ANY: i8 = -1;

/// The SQL functions: name, number of arguments, flags, body.
#[rustfmt::skip]
const FUNCTIONS: &[Function<Engine>] = &[
    function("crsql_after_delete",          ANY, Flags::INNOCUOUS,     local::after_delete),
    function("crsql_after_insert",          ANY, Flags::INNOCUOUS,     local::after_insert),
    function("crsql_after_update",          ANY, Flags::INNOCUOUS,     local::after_update),
    function("crsql_as_crr",                ANY, Flags::DETERMINISTIC, as_crr),
    function("crsql_as_table",              1,   Flags::NONE,          as_table),
    function("crsql_automigrate",           ANY, Flags::NONE,          automigrate::automigrate),
    function("crsql_before_write",          ANY, Flags::INNOCUOUS,     before::before_write),
    function("crsql_begin_alter",           ANY, Flags::DIRECT_ONLY,   begin_alter),
    function("crsql_commit_alter",          ANY, Flags::DIRECT_ONLY,   commit_alter),
    function("crsql_config_get",            1,   Flags::PURE,          config::get),
    function("crsql_config_set",            2,   Flags::NONE,          config::set),
    function("crsql_db_version",            0,   Flags::INNOCUOUS,     db_version),
    function("crsql_finalize",              ANY, Flags::DIRECT_ONLY,   finalize),
    function("crsql_fract_as_ordered",      ANY, Flags::DIRECT_ONLY,   fract::as_ordered),
    function("crsql_fract_fix_conflict_return_old_key", ANY, Flags::INNOCUOUS, fract::fix_conflict),
    function("crsql_fract_key_between",     2,   Flags::PURE,          fract::key_between),
    function("crsql_get_seq",               0,   Flags::PURE,          get_seq),
    function("crsql_increment_and_get_seq", 0,   Flags::INNOCUOUS,     increment_and_get_seq),
    function(SHARE,                         1,   Flags::DIRECT_ONLY,   internal_engine),
    function("crsql_internal_sync_bit",     ANY, Flags::INNOCUOUS,     internal_sync_bit),
    function("crsql_next_db_version",       ANY, Flags::INNOCUOUS,     next_db_version),
    function("crsql_pack_columns",          ANY, Flags::NONE,          pack_columns),
    function("crsql_rows_impacted",         0,   Flags::INNOCUOUS,     rows_impacted),
    function("crsql_sha",                   0,   Flags::PURE,          sha),
    function("crsql_site_id",               0,   Flags::PURE,          site_id),
];

const fn function(
    name: &'static str,
    args: i8,
    flags: Flags,
    body: fn(&Engine, Args<'_>) -> Result<Output>,
) -> Function<Engine> {
    Function { name, args, flags, body }
}

/// Prepares the file and registers functions and tables on the connection. Does nothing if
/// they are there already.
pub(crate) fn register(db: Db, messages: Messages) -> Result<()> {
    if is_registered(db)? {
        return Ok(());
    }
    let engine = Engine::new(db, load::load(db)?, messages);
    for function in FUNCTIONS {
        db.create_function(&engine, function)?;
    }
    db.create_module::<Changes>("crsql_changes", &engine)?;
    db.create_module::<UnpackColumns>("crsql_unpack_columns", &engine)?;
    db.create_module::<ClSet>("clset", &engine)?;
    db.create_module::<Closing>("crsql_closing", &engine)?;
    Ok(())
}

fn is_registered(db: Db) -> Result<bool> {
    Stmt::prepare(db, "SELECT 1 FROM pragma_module_list WHERE name = 'crsql_changes'")?.query(&[])?.next()
}

/// The table's name from `(table)` or `(schema, table)`; the schema does not matter unless it is another database. `wanted` is what
/// the message for no arguments asks for, in CR-SQLite's own layout.
fn table_name(engine: &Engine, function: &str, wanted: &str, args: Args<'_>) -> Result<String> {
    let name = match args.len() {
        0 => {
            return Err(Error::usage(format!(
                "Wrong number of args provided to {function}. Provide the {wanted} name and table \
                 name or just the table name."
            )));
        }
        2 => {
            attached::refuse_schema(engine, function, &args.text(0).unwrap_or_default())?;
            args.text(1)
        }
        _ => args.text(0),
    };
    name.map(std::borrow::Cow::into_owned)
        .ok_or_else(|| Error::usage(format!("{function} needs the name of a table, not NULL")))
}

fn as_crr(engine: &Engine, args: Args<'_>) -> Result<Output> {
    let name = table_name(engine, "crsql_as_crr", "schema \n         ", args)?;
    crr::as_crr(engine, &name)?;
    Ok("OK".into())
}

fn begin_alter(engine: &Engine, args: Args<'_>) -> Result<Output> {
    let name = table_name(engine, "crsql_begin_alter", "\n          schema", args)?;
    alter::begin(engine, &name)?;
    Ok("OK".into())
}

fn commit_alter(engine: &Engine, args: Args<'_>) -> Result<Output> {
    let name = table_name(engine, "crsql_commit_alter", "\n          schema", args)?;
    alter::commit(engine, &name)?;
    Ok(Output::Null)
}

fn as_table(engine: &Engine, args: Args<'_>) -> Result<Output> {
    let name = args.text(0).ok_or_else(|| Error::usage("crsql_as_table needs the name of a table, not NULL"))?;
    crr::as_table(engine, &name)?;
    Ok(Output::Null)
}

fn db_version(engine: &Engine, _args: Args<'_>) -> Result<Output> {
    engine.db_version().map(Output::Int)
}

fn next_db_version(engine: &Engine, args: Args<'_>) -> Result<Output> {
    let min = if args.len() == 1 { args.int(0) } else { i64::MIN };
    engine.next_db_version(min).map(Output::Int)
}

fn finalize(engine: &Engine, _args: Args<'_>) -> Result<Output> {
    engine.release_statements();
    Ok("finalized".into())
}

fn get_seq(engine: &Engine, _args: Args<'_>) -> Result<Output> {
    Ok(Output::Int(engine.versions.seq()))
}

fn increment_and_get_seq(engine: &Engine, _args: Args<'_>) -> Result<Output> {
    engine.take_part()?;
    Ok(Output::Int(engine.versions.bump(1)))
}

/// Gives the engine to who asks by [`Db::shared`]; to SQL, which cannot, nothing.
fn internal_engine(engine: &Engine, args: Args<'_>) -> Result<Output> {
    args.share(0, engine.me());
    Ok(Output::Null)
}

fn internal_sync_bit(engine: &Engine, args: Args<'_>) -> Result<Output> {
    if args.len() == 1 {
        engine.sync_bit.set(args.int(0));
        engine.forget_rows();
    }
    Ok(Output::Int(engine.sync_bit.get()))
}

fn pack_columns(_engine: &Engine, args: Args<'_>) -> Result<Output> {
    match pack(args.iter()) {
        Ok(packed) => Ok(Output::Blob(packed)),
        Err(PackError::TooManyValues) => Err(Error::change(rusqlite::ffi::SQLITE_ABORT, "Failed to pack columns")),
        Err(error) => Err(error.into()),
    }
}

fn rows_impacted(engine: &Engine, _args: Args<'_>) -> Result<Output> {
    Ok(Output::Int(engine.rows_impacted.get()))
}

/// What built this library: the commit, if the build named it (`CRSQLITE_SHA`), else the version.
fn sha(_engine: &Engine, _args: Args<'_>) -> Result<Output> {
    const BUILD: &str = match option_env!("CRSQLITE_SHA") {
        Some(commit) => commit,
        None => concat!("v", env!("CARGO_PKG_VERSION")),
    };
    Ok(BUILD.into())
}

fn site_id(engine: &Engine, _args: Args<'_>) -> Result<Output> {
    Ok(Output::Blob(engine.site_id.to_vec()))
}
