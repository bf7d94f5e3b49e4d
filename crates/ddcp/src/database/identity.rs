//! Which repository a file belongs to, and how a file that has become a second one gets a site id of its own.
//!
//! Two databases with one site id lose writes: peers take the changes of one for those that they had of the other.
//! So the file carries the number of its repository, in `crsql_master`, whose keys the engine does not know it leaves
//! alone. A file copied by whatever means takes the number with it, and the copy's repository can tell.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OptionalExtension, params};

use super::{Database, DatabaseError, from_sql_error, schema};
use crate::{changeset::SiteId, medium};

/// The key in `crsql_master`.
const KEY: &str = "ddcp_repository";

/// The number of a repository, drawn when it is made.
pub type RepositoryId = [u8; 16];

impl Database {
    /// The repository that the file belongs to, if it was ever in one.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn repository_id(&self) -> Result<Option<RepositoryId>, DatabaseError> {
        self.wrap(repository_id(&self.connection))
    }

    /// The repository that the file at `path` belongs to, without opening it for more than that. `None` also where
    /// it cannot be read.
    #[must_use]
    pub fn repository_id_of(path: &Path) -> Option<RepositoryId> {
        let (connection, _) = medium::open_to_read(path, Duration::ZERO).ok()?;
        repository_id(&connection).ok()?
    }

    /// Makes the file one of repository `id`.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn set_repository_id(&self, id: &RepositoryId) -> Result<(), DatabaseError> {
        const SQL: &str = "INSERT OR REPLACE INTO crsql_master (key, value) VALUES (?, ?)";
        self.wrap(self.connection.execute(SQL, params![KEY, id]))?;
        Ok(())
    }

    /// Forgets how far peers were read, so that each is read from its start. That merges again what was merged, which
    /// changes nothing, and what is not there: how far peers were read says nothing of what waits in the state.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn forget_positions(&self) -> Result<(), DatabaseError> {
        const SQL: &str = "DELETE FROM crsql_tracked_peers WHERE tag = 0 AND event = 0";
        self.wrap(self.connection.execute(SQL, [])).map(drop)
    }

    /// As [`Database::forget_positions`], of one peer.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn forget_position(&self, peer: &SiteId) -> Result<(), DatabaseError> {
        const SQL: &str = "DELETE FROM crsql_tracked_peers WHERE site_id = ? AND tag = 0 AND event = 0";
        self.wrap(self.connection.execute(SQL, [peer.as_bytes()])).map(drop)
    }

    /// Gives the file the site id `new`, which nobody has, and makes it one of repository `id`, in one transaction.
    /// What the old site wrote stays that site's; how far peers were read is forgotten. Returns the new site id. Takes
    /// the connection, whose engine goes on believing in the old one.
    ///
    /// Looks at every clock record once.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn renew_site_id(self, new: [u8; 16], id: &RepositoryId) -> Result<SiteId, DatabaseError> {
        self.begin_immediate()?;
        // Dropping the connection ends a transaction that failed.
        let old = self.site_id()?;
        self.wrap(self.connection.execute("UPDATE crsql_site_id SET site_id = ? WHERE ordinal = 0", [new]))?;
        const ADD: &str = "INSERT INTO crsql_site_id (site_id) VALUES (?) RETURNING ordinal";
        let ordinal: i64 = self.wrap(self.connection.query_row(ADD, [old.as_bytes()], |row| row.get(0)))?;
        for table in self.tables()? {
            let clock = schema::quote(&format!("{}__crsql_clock", table.name));
            let sql = format!("UPDATE {clock} SET site_id = ? WHERE site_id = 0");
            self.wrap(self.connection.execute(&sql, [ordinal]))?;
        }
        // What waited for a table or a column waited in the state, which is another one, or a later one, than this file
        // had: peers are read from the start.
        self.forget_positions()?;
        self.set_repository_id(id)?;
        self.wrap(self.connection.execute_batch("COMMIT"))?;
        SiteId::from_bytes(&new).map_err(|error| self.error(from_sql_error(0, error)))
    }
}

fn repository_id(connection: &Connection) -> rusqlite::Result<Option<RepositoryId>> {
    connection.query_row("SELECT value FROM crsql_master WHERE key = ?", [KEY], |row| row.get(0)).optional()
}
