//! The database file that a daemon works on. Another file that takes its place is another database, whatever it
//! holds: nothing of it is told to peers as this one's, and nothing is merged into it, before somebody has said so by
//! starting the daemon again, which looks whose it is.

use std::sync::{Mutex, PoisonError};

use super::Repository;
use crate::{
    Error,
    database::{Database, DatabaseError, FileId, RepositoryId},
};

/// Which file that is, once it is known.
#[derive(Default)]
pub(super) struct Pin(Mutex<Option<Pinned>>);

#[derive(Clone, Copy)]
struct Pinned {
    file: FileId,
    /// The number that the file carries: its content may be replaced as well.
    repository: RepositoryId,
}

impl Repository {
    /// Works on the database file that is there now from here on, and on no other. Call it with the lock held. Blocks.
    ///
    /// # Errors
    /// As [`Repository::hold`].
    pub(crate) fn pin(&self) -> Result<(), Error> {
        let before = self.pinned();
        // Whose it is may change now.
        self.set_pin(None);
        let found = self.find();
        self.set_pin(*found.as_ref().unwrap_or(&before));
        found.map(drop)
    }

    fn find(&self) -> Result<Option<Pinned>, Error> {
        self.check_identity()?;
        let database = self.database()?;
        let repository = database.repository_id()?;
        Ok(database.file().zip(repository).map(|(file, repository)| Pinned { file, repository }))
    }

    /// Looks anew whose the database is, after its log was lost: it may have gone back in time. Blocks.
    ///
    /// # Errors
    /// As [`Repository::pin`]; [`Error::Database`] where it is another file.
    pub(crate) fn pin_again(&self) -> Result<(), Error> {
        self.check_path()?;
        self.close_readers();
        self.pin()
    }

    /// Whether it works on one file and no other.
    pub(super) fn is_pinned(&self) -> bool {
        self.pinned().is_some()
    }

    /// Makes sure that the database's path leads to the file that this process works on. Without opening what else may
    /// be there: SQLite would take the log that lies beside it for that file's.
    pub(super) fn check_path(&self) -> Result<(), DatabaseError> {
        let path = self.layout().database();
        match self.pinned() {
            Some(pinned) if FileId::of(path) != Some(pinned.file) => {
                Err(DatabaseError::Replaced { path: path.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Makes sure that `database` is the one that this process works on, and still at its path.
    pub(crate) fn check_open(&self, database: &Database) -> Result<(), DatabaseError> {
        database.check_files()?;
        let Some(Pinned { file, repository }) = self.pinned() else { return Ok(()) };
        if database.file() == Some(file) && database.repository_id()? == Some(repository) {
            return Ok(());
        }
        Err(DatabaseError::Replaced { path: self.layout().database().to_owned() })
    }

    fn pinned(&self) -> Option<Pinned> {
        *self.inner.pin.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_pin(&self, pinned: Option<Pinned>) {
        *self.inner.pin.0.lock().unwrap_or_else(PoisonError::into_inner) = pinned;
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, sync::Arc};

    use super::*;
    use crate::{
        host::Host,
        protocol::{Client, ClientError, Limits, RemoteStatus},
        repo::{Layout, Options},
        transport::LocalPeer,
    };

    const TABLE: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL); SELECT crsql_as_crr('t')";

    fn repository(path: &Path) -> Repository {
        let layout = Layout::new(path, None).unwrap();
        let repository = Repository::init_with(layout, Options::default()).unwrap();
        execute(&repository, TABLE);
        repository
    }

    fn execute(repository: &Repository, sql: &str) {
        repository.database().unwrap().connection().execute_batch(sql).unwrap();
    }

    /// A peer of `repository`, for its whole life: the connections from which it is answered stay open.
    fn peer(repository: &Repository) -> Client {
        Client::new(Arc::new(LocalPeer::new(repository.handler())), Limits::default(), Host::default())
    }

    fn is_refused(status: &Result<RemoteStatus, ClientError>) -> bool {
        matches!(status, Err(ClientError::Refused(_)))
    }

    fn is_replaced(repository: &Repository) -> bool {
        matches!(repository.database(), Err(Error::Database(DatabaseError::Replaced { .. })))
    }

    #[tokio::test]
    async fn a_file_that_takes_the_place_is_not_worked_on() {
        let dir = tempfile::tempdir().unwrap();
        let [path, aside, other] = ["a.db", "aside.db", "other.db"].map(|name| dir.path().join(name));
        let repository = repository(&path);
        repository.pin().unwrap();
        let peer = peer(&repository);
        let site = peer.status().await.unwrap().site_id;
        drop(self::repository(&other));

        fs::rename(&path, &aside).unwrap();
        assert!(is_replaced(&repository) && is_refused(&peer.status().await), "it is gone");
        let content = fs::read(&other).unwrap();
        fs::copy(&other, &path).unwrap();
        assert!(is_replaced(&repository) && is_refused(&peer.status().await), "another file is there");
        assert_eq!(fs::read(&path).unwrap(), content, "which was not touched");
        fs::remove_file(&path).unwrap();

        fs::rename(&aside, &path).unwrap();
        assert_eq!(peer.status().await.unwrap().site_id, site, "it is back");
        assert!(!is_replaced(&repository));
    }

    #[tokio::test]
    async fn content_that_takes_the_place_is_not_worked_on() {
        let dir = tempfile::tempdir().unwrap();
        let repository = repository(&dir.path().join("a.db"));
        repository.pin().unwrap();
        let peer = peer(&repository);
        peer.status().await.unwrap();
        // As if another repository's database had been restored into the file.
        execute(&repository, "UPDATE crsql_master SET value = randomblob(16) WHERE key = 'ddcp_repository'");
        assert!(is_replaced(&repository) && is_refused(&peer.status().await));
        repository.pin().unwrap();
        peer.status().await.unwrap();
    }

    #[tokio::test]
    async fn a_log_that_was_removed_is_lived_without() {
        let dir = tempfile::tempdir().unwrap();
        let repository = repository(&dir.path().join("a.db"));
        execute(&repository, "PRAGMA wal_checkpoint(TRUNCATE)");
        repository.pin().unwrap();
        let peer = peer(&repository);
        let before = peer.status().await.unwrap();
        execute(&repository, "INSERT INTO t VALUES (1)");
        assert_eq!(peer.status().await.unwrap().db_version, 1);

        // What was committed is lost with it. Its number must not be used again under the same site id.
        repository.note_version(1).unwrap();
        fs::remove_file(dir.path().join("a.db-wal")).unwrap();
        repository.pin_again().unwrap();
        let after = peer.status().await.unwrap();
        assert_eq!(after.db_version, 0);
        assert_ne!(after.site_id, before.site_id);
        execute(&repository, "INSERT INTO t VALUES (2)");
        assert_eq!(peer.status().await.unwrap().db_version, 1);
        let check: String = repository
            .database()
            .unwrap()
            .connection()
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(check, "ok");
    }
}
