use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicI64, Ordering},
};

use crate::{
    Error,
    changeset::{Cursor, SiteId},
    database::{Database, DatabaseError, Digest, PACK_BYTES, Selection, TableDefinition, TakePack, ToldRows},
    protocol::{Reached, RemoteStatus, Source},
    repo::Repository,
};

use super::{digest::Making, readers::Readers, verify::whole_versions};

/// Whether a connection may be used again.
type Check = dyn Fn(&Database) -> Result<(), DatabaseError> + Send + Sync;

/// Serves a database to peers. Connections are opened as requests need them and kept.
pub struct DatabaseSource {
    open: Box<dyn Fn() -> Result<Database, Error> + Send + Sync>,
    check: Box<Check>,
    idle: Mutex<Vec<Database>>,
    /// Of a database with a log that may be emptied: the repository's own.
    readers: Option<Readers>,
}

impl DatabaseSource {
    /// A source that opens its connections by `open`.
    pub fn new(open: impl Fn() -> Result<Database, Error> + Send + Sync + 'static) -> Self {
        Self { open: Box::new(open), check: Box::new(Database::check_files), idle: Mutex::default(), readers: None }
    }

    /// The same, which uses a connection again only if `check` holds for it.
    fn with_check(self, check: impl Fn(&Database) -> Result<(), DatabaseError> + Send + Sync + 'static) -> Self {
        Self { check: Box::new(check), ..self }
    }

    /// The same, whose readers leave the log of the database moments in which it begins anew.
    fn with_readers(self, readers: Readers) -> Self {
        Self { readers: Some(readers), ..self }
    }

    /// Empties the log; whether it did.
    fn empty_log(&self) -> bool {
        let emptied = self.connection().and_then(|database| {
            let is_empty = database.empty_log()?;
            self.idle().push(database);
            Ok(is_empty)
        });
        emptied.unwrap_or_else(|error| {
            tracing::warn!(%error, "the write-ahead log of the database is long and cannot be emptied");
            false
        })
    }

    /// Closes the connections that are not being used.
    pub(super) fn close(&self) {
        let idle = std::mem::take(&mut *self.idle());
        idle.into_iter().for_each(Database::abandon);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Database>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to the file that is there now.
    fn connection(&self) -> Result<Database, Error> {
        let idle = self.idle().pop();
        match idle {
            Some(database) if (self.check)(&database).is_ok() => Ok(database),
            Some(stale) => {
                stale.abandon();
                self.close();
                (self.open)()
            }
            None => (self.open)(),
        }
    }

    /// Runs `read` on a connection. One that failed is closed: its file may have been replaced.
    fn with<T>(&self, read: impl FnOnce(&Database) -> Result<T, DatabaseError>) -> Result<T, String> {
        let _reading = self.readers.as_ref().map(|readers| readers.enter(|| self.empty_log()));
        self.with_long(read)
    }

    /// As [`DatabaseSource::with`], for who has been let in.
    fn with_long<T>(&self, read: impl FnOnce(&Database) -> Result<T, DatabaseError>) -> Result<T, String> {
        let result = self.connection().and_then(|database| {
            let value = read(&database)?;
            database.check_unchanged()?;
            self.idle().push(database);
            Ok(value)
        });
        result.map_err(|error| {
            tracing::error!(%error, "a peer's request could not be answered");
            "its database cannot be read at the moment".to_owned()
        })
    }
}

impl Source for DatabaseSource {
    fn status(&self) -> Result<RemoteStatus, String> {
        self.with(status_of)
    }

    fn packs(&self, after: Cursor, reader: &SiteId, take: TakePack<'_>) -> Result<Reached, String> {
        self.with(|database| {
            let read = database.stream_packs(after, &Selection::without(*reader), PACK_BYTES, take)?;
            Ok(Reached { end: read.end, more: read.more, left_out: read.left_out })
        })
    }

    fn definitions(&self) -> Result<Vec<TableDefinition>, String> {
        self.with(Database::definitions)
    }

    /// Reads the whole database: nothing is kept beside it.
    fn digest(&self, reader: &SiteId) -> Result<Option<(Digest, Option<i64>)>, String> {
        self.with(|database| {
            let known = whole_versions(database.furthest_position(reader)?);
            Ok(Some((database.digest()?, known)))
        })
    }

    fn rows(&self, ranges: &[usize], fits: &dyn Fn(usize, usize) -> bool) -> Result<Option<ToldRows>, String> {
        let reading = self.readers.as_ref().map(Readers::enter_for_long);
        if matches!(reading, Some(None)) {
            return Ok(None);
        }
        self.with_long(|database| database.rows_in(ranges, fits).map(Some))
    }
}

/// Serves a repository's own database. How far peers may have read is noted before they are told: a database that is
/// below that one day was restored from an older copy.
pub(super) struct OwnSource {
    repository: Repository,
    database: Arc<DatabaseSource>,
    noted: AtomicI64,
    /// Held while the digest is made, or rows of it are found, which may take long: others are told to ask again.
    digesting: Mutex<()>,
}

impl OwnSource {
    pub(super) fn new(repository: Repository) -> Self {
        let (opened, checked) = (repository.clone(), repository.clone());
        let open = move || opened.look_whose().and_then(|held| opened.own_database(&held));
        let mut log = repository.layout().database().as_os_str().to_owned();
        log.push("-wal");
        let readers = Readers::new(log.into(), repository.inner.options.host.clone());
        let database = DatabaseSource::new(open).with_check(move |database| checked.check_open(database));
        let database = database.with_readers(readers);
        Self { repository, database: Arc::new(database), noted: AtomicI64::new(0), digesting: Mutex::default() }
    }

    /// Its connections.
    pub(super) fn readers(&self) -> Weak<DatabaseSource> {
        Arc::downgrade(&self.database)
    }

    fn note(&self, version: i64) -> Result<(), String> {
        if version <= self.noted.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.repository.note_version(version).map_err(|error| {
            tracing::error!(%error, "a peer's request could not be answered");
            "its state cannot be written at the moment".to_owned()
        })?;
        self.noted.fetch_max(version, Ordering::Relaxed);
        Ok(())
    }
}

impl Source for OwnSource {
    fn status(&self) -> Result<RemoteStatus, String> {
        let noted = self.noted.load(Ordering::Relaxed);
        let mut status = self.database.status()?;
        if status.db_version < noted {
            // Nothing more is told under a site id that has told of later versions. A connection that is opened anew
            // looks whose the database is.
            self.database.close();
            self.noted.store(0, Ordering::Relaxed);
            status = self.database.status()?;
        }
        self.note(status.db_version)?;
        Ok(status)
    }

    fn packs(&self, after: Cursor, reader: &SiteId, take: TakePack<'_>) -> Result<Reached, String> {
        let reached = self.database.packs(after, reader, take)?;
        self.note(reached.end.version)?;
        Ok(reached)
    }

    fn definitions(&self) -> Result<Vec<TableDefinition>, String> {
        self.database.definitions()
    }

    fn digest(&self, reader: &SiteId) -> Result<Option<(Digest, Option<i64>)>, String> {
        let Ok(_alone) = self.digesting.try_lock() else { return Ok(None) };
        // Before the digest: what is merged while that is made need not be in it.
        let known = self.database.with(|database| Ok(whole_versions(database.furthest_position(reader)?)))?;
        let reading = self.database.readers.as_ref().map(Readers::enter_for_long);
        if matches!(reading, Some(None)) {
            return Ok(None);
        }
        let held = self.repository.look_whose();
        let made = held.and_then(|held| self.repository.own_digest(&held, Making::Kept)).map_err(|error| {
            tracing::error!(%error, "a peer's request could not be answered");
            "its digest cannot be made at the moment".to_owned()
        })?;
        let Some(digest) = made else { return Ok(None) };
        self.note(digest.mark.version)?;
        Ok(Some((digest, known)))
    }

    fn rows(&self, ranges: &[usize], fits: &dyn Fn(usize, usize) -> bool) -> Result<Option<ToldRows>, String> {
        // It reads the whole database, which strangers may ask for.
        let Ok(_alone) = self.digesting.try_lock() else { return Ok(None) };
        let Some(told) = self.database.rows(ranges, fits)? else { return Ok(None) };
        self.note(told.version)?;
        Ok(Some(told))
    }
}

/// Who `database` is and how far it is.
pub(crate) fn status_of(database: &Database) -> Result<RemoteStatus, DatabaseError> {
    Ok(RemoteStatus {
        site_id: database.site_id()?.as_bytes().to_vec(),
        db_version: database.version()?,
        schema: database.schema_fingerprint()?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::{Layout, Options};

    #[test]
    fn one_digest_is_made_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("a.db"), None).unwrap();
        let source = OwnSource::new(Repository::init_with(layout, Options::default()).unwrap());
        let reader = SiteId::from_bytes(&[1; 16]).unwrap();
        let held = source.digesting.lock().unwrap();
        assert!(source.digest(&reader).unwrap().is_none());
        assert!(source.rows(&[0], &|_, _| true).unwrap().is_none(), "finding rows reads as much");
        drop(held);
        assert_eq!(source.rows(&[0], &|_, _| true).unwrap().unwrap().ranges, [0]);
        let (digest, known) = source.digest(&reader).unwrap().unwrap();
        assert_eq!((digest.total(), known), (0, None));
    }
}
