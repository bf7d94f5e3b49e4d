//! Which repository a file belongs to, and how a file that has become a second one gets a site id of its own.
//!
//! Two databases with one site id lose writes: peers take the changes of one for those that they had of the other.
//! So the file carries the number of its repository, in `crsql_master`, whose keys the engine does not know it leaves
//! alone. A file copied by whatever means takes the number with it, and the copy's repository can tell.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::{Database, DatabaseError, from_sql_error, schema};
use crate::{changeset::SiteId, medium};

/// The keys in `crsql_master`.
const REPOSITORY: &str = "ddcp_repository";
const STATE: &str = "ddcp_state";

/// The number of a repository, drawn when it is made.
pub type RepositoryId = [u8; 16];

/// What a file says of the repository that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The repository.
    pub repository: RepositoryId,
    /// Where its state directory was when it was last looked at, so that whoever comes by another name of the file finds
    /// it. `None` if the file was last worked on before that was noted.
    pub state: Option<PathBuf>,
}

impl Database {
    /// What the file says of the repository that it belongs to, if it was ever in one.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn owner(&self) -> Result<Option<Owner>, DatabaseError> {
        self.wrap(owner(&self.connection))
    }

    /// What the file at `path` says of its repository, without opening it for more than that. `None` also where it
    /// cannot be read. `is_other_name` says that the file may be in use by another name of its own, beside which its
    /// log then lies: nothing is made beside this one, and only what was written to the file itself is seen.
    #[must_use]
    pub fn owner_of(path: &Path, is_other_name: bool) -> Option<Owner> {
        // Whoever opens a pipe waits for ever.
        fs::metadata(path).ok().filter(|metadata| metadata.is_file() && medium::irregular(path).is_none())?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = match is_other_name {
            true => Connection::open_with_flags(medium::immutable(path), flags | OpenFlags::SQLITE_OPEN_URI),
            false => Connection::open_with_flags(path, flags),
        };
        owner(&connection.ok()?).ok()?
    }

    /// The repository that the file belongs to, if it was ever in one.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn repository_id(&self) -> Result<Option<RepositoryId>, DatabaseError> {
        self.wrap(entry(&self.connection, REPOSITORY))
    }

    /// The repository that the file at `path` belongs to, without opening it for more than that. `None` also where
    /// it cannot be read.
    #[must_use]
    pub fn repository_id_of(path: &Path) -> Option<RepositoryId> {
        if medium::irregular(path).is_some() {
            return None;
        }
        let (connection, _) = medium::open_to_read(path, Duration::ZERO).ok()?;
        entry(&connection, REPOSITORY).ok()?
    }

    /// Makes the file say that it belongs to the repository of `owner`.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn set_owner(&self, owner: &Owner) -> Result<(), DatabaseError> {
        self.wrap(write(&self.connection, owner))?;
        // By another name the log is not found, in which this lies until somebody writes it to the file.
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        Ok(())
    }

    /// Gives the file the site id `new`, which nobody has, and makes it one of the repository of `owner`, in one
    /// transaction. What the old site wrote stays that site's; how far peers were read is forgotten. Returns the new site id. Takes
    /// the connection, whose engine goes on believing in the old one.
    ///
    /// Looks at every clock record once.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn renew_site_id(self, new: [u8; 16], owner: &Owner) -> Result<SiteId, DatabaseError> {
        self.begin_immediate()?;
        // Dropping the connection ends a transaction that failed.
        let old = self.site_id()?;
        self.wrap(self.connection.execute("UPDATE crsql_site_id SET site_id = ? WHERE ordinal = 0", [new]))?;
        const ADD: &str = "INSERT INTO crsql_site_id (site_id) VALUES (?) RETURNING ordinal";
        let ordinal: i64 = self.wrap(self.connection.query_row(ADD, [old.as_bytes()], |row| row.get(0)))?;
        for table in self.wrap(schema::all_tables(&self.connection))? {
            let clock = schema::quote(&format!("{}__crsql_clock", table.name));
            let sql = format!("UPDATE {clock} SET site_id = ? WHERE site_id = 0");
            self.wrap(self.connection.execute(&sql, [ordinal]))?;
        }
        // What waited for a table or a column waited in the state, which is another one, or a later one, than this file
        // had: peers are read from the start.
        self.forget_positions()?;
        self.wrap(write(&self.connection, owner))?;
        self.wrap(self.connection.execute_batch("COMMIT"))?;
        SiteId::from_bytes(&new).map_err(|error| self.error(from_sql_error(0, error)))
    }
}

fn owner(connection: &Connection) -> rusqlite::Result<Option<Owner>> {
    let Some(repository) = entry(connection, REPOSITORY)? else { return Ok(None) };
    let state: Option<Option<Vec<u8>>> = entry(connection, STATE)?;
    Ok(Some(Owner { repository, state: state.flatten().map(|path| PathBuf::from(OsStr::from_bytes(&path))) }))
}

fn entry<T: rusqlite::types::FromSql>(connection: &Connection, key: &str) -> rusqlite::Result<Option<T>> {
    connection.query_row("SELECT value FROM crsql_master WHERE key = ?", [key], |row| row.get(0)).optional()
}

/// Both entries at once: whoever reads one reads the other that belongs to it.
fn write(connection: &Connection, Owner { repository, state }: &Owner) -> rusqlite::Result<()> {
    const SQL: &str = "INSERT OR REPLACE INTO crsql_master (key, value) VALUES (?, ?), (?, ?)";
    let state = state.as_ref().map(|path| path.as_os_str().as_bytes());
    connection.execute(SQL, params![REPOSITORY, repository, STATE, state]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::OpenOptions;

    #[test]
    fn a_file_tells_its_mark_by_every_name_and_nothing_is_made_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let [path, other] = ["a.db", "an o\u{308}ther#%?.db"].map(|name| dir.path().join(name));
        let database = Database::open(&path, &OpenOptions { create: true, ..OpenOptions::default() }).unwrap();
        assert_eq!((database.owner().unwrap(), Database::owner_of(&path, false)), (None, None));
        let owner = Owner { repository: [7; 16], state: Some(dir.path().join("state")) };
        database.set_owner(&owner).unwrap();
        fs::hard_link(&path, &other).unwrap();
        for found in [database.owner().unwrap(), Database::owner_of(&path, false), Database::owner_of(&other, true)] {
            assert_eq!(found.as_ref(), Some(&owner));
        }
        drop(database);
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 2, "the log of a file is not that of its other name");
        assert_eq!(Database::owner_of(dir.path(), false), None);
    }
}
