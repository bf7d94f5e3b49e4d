//! CR-SQLite as a library that is loaded, in place of the engine in this program.

use std::{
    env,
    path::{Path, PathBuf},
};

use rusqlite::Connection;

use super::{DatabaseError, error};

/// Where the loadable library that belongs to this program may lie, seen from the program's folder.
const PLACES: [&str; 3] = [".", "../lib", "../lib/ddcp"];

/// Loads `library` for the rest of the connection's life; `database` is what the connection is to.
#[allow(unsafe_code)]
pub(super) fn load(connection: &Connection, database: &Path, library: &Path) -> Result<(), DatabaseError> {
    // SAFETY: loading runs the library's code, which the user named for that purpose. Extension loading is
    // switched off again before any SQL of others runs, so that SQL cannot load more.
    let loaded =
        unsafe { connection.load_extension_enable().and_then(|()| connection.load_extension(library, None::<&str>)) };
    loaded.and(connection.load_extension_disable()).map_err(|error| DatabaseError::Extension {
        path: database.to_owned(),
        extension: library.to_owned(),
        detail: error::message(&error),
    })
}

/// Finds the loadable library that was built with this program: beside it, or in `../lib` or `../lib/ddcp`.
///
/// # Errors
/// [`DatabaseError::NoLibrary`], which names what was looked for and what was found instead.
pub fn own_library() -> Result<PathBuf, DatabaseError> {
    let name = format!("{}crsqlite{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let folder = env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned)).unwrap_or_default();
    let present =
        PLACES.map(|place| folder.join(place).join(&name)).into_iter().filter_map(|path| path.canonicalize().ok());
    let own = version(None)?;
    let mut others = Vec::new();
    for path in present {
        match version(Some(&path)) {
            Ok(found) if found == own => return Ok(path),
            Ok(found) => others.push(format!("{} is of another version ({found})", path.display())),
            Err(error) => others.push(error.to_string()),
        }
    }
    Err(DatabaseError::NoLibrary { name, folder, others })
}

/// What `crsql_sha()` says of `library`, or of the engine in this program.
fn version(library: Option<&Path>) -> Result<String, DatabaseError> {
    let memory = Path::new(":memory:");
    let sqlite = |error| DatabaseError::from_sqlite(memory, error);
    let connection = Connection::open_in_memory().map_err(sqlite)?;
    match library {
        Some(library) => load(&connection, memory, library)?,
        None => crsqlite::register(&connection).map_err(|error| sqlite(error.into()))?,
    }
    let version = connection.query_row("SELECT crsql_sha()", [], |row| row.get(0)).map_err(sqlite)?;
    connection.query_row("SELECT crsql_finalize()", [], |_| Ok(())).map_err(sqlite)?;
    Ok(version)
}
