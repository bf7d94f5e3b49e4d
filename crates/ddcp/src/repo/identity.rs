//! Notices that a database is a copy of another repository's, or was restored from an older copy of itself, and gives
//! it a site id of its own before anything is shared under the old one.
//!
//! The file and the state beside it carry the same number, and each says where the other one is. What they may say:
//!
//! | state | file | what it is |
//! | --- | --- | --- |
//! | no number | no number | a new repository: a number is drawn |
//! | no number | a number | a copied file, or the state was lost: a new site id |
//! | a number | no number | a file from before it was in a repository, restored from a backup; or made anew by the application, which harms as little: a new site id |
//! | a number | another | a copy of another repository's file: a new site id |
//! | a number | the same | the repository's own file. A new site id if both were copied, or if the version is below the highest that was seen: it went back in time, and what it writes next would have version numbers that peers have read already, so they would never ask for it |
//!
//! One file has one state: a file that says that its state is elsewhere, where that is true, is not worked on with
//! another one, since each would take it for a copy. And a state that is another file's, which is still there, is not
//! taken for this one. Neither changes anything; both are told.
//!
//! A kill between the writes to file and state is found as one of the above and costs no more than another site id.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::PoisonError,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::{Repository, State, StateError, names};
use crate::{
    Error,
    database::{Database, Owner, RepositoryId},
};

/// What the state knows of the database that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Home {
    pub(super) repository: RepositoryId,
    /// Where the database was when it was last looked at.
    pub(super) path: PathBuf,
    /// The highest version that was seen in it.
    version: i64,
}

impl Home {
    /// Whether it is that of the repository `id`.
    pub(super) fn is_of(&self, id: &RepositoryId) -> bool {
        self.repository == *id
    }

    /// The version that was seen, if `version` is before it.
    pub(super) fn goes_back(&self, version: i64) -> Option<i64> {
        (version < self.version).then_some(self.version)
    }

    /// What the state directory `state` knows of its database, whichever program made it. `None` also where it cannot be
    /// read.
    pub(super) fn of(state: &Path) -> Option<Self> {
        let file = state.join("state.db");
        fs::metadata(&file).ok().filter(fs::Metadata::is_file)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Self::read(&Connection::open_with_flags(file, flags).ok()?).ok()?
    }

    fn read(connection: &Connection) -> rusqlite::Result<Option<Self>> {
        let row = |row: &rusqlite::Row<'_>| {
            let path: Vec<u8> = row.get(1)?;
            Ok(Self { repository: row.get(0)?, path: OsStr::from_bytes(&path).into(), version: row.get(2)? })
        };
        connection.query_row("SELECT repository, path, version FROM home", [], row).optional()
    }
}

impl Repository {
    /// Makes sure that nobody else writes under this database's site id. Call it with the repository's lock held.
    /// Blocks; takes a few look-ups unless there is something to mend.
    ///
    /// # Errors
    /// [`Error::OtherState`], [`Error::ForeignState`], [`Error::Database`], [`Error::State`], [`Error::Io`] where a
    /// copied node's identity cannot be put aside.
    pub(super) fn check_identity(&self) -> Result<(), Error> {
        // Two that find the same change would each give it a site id.
        let _alone = self.inner.identifying.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_state()?;
        let database = self.database()?;
        let mut state = self.state()?;
        let path = self.layout().database().to_owned();
        let (version, owner, home) = (database.version()?, database.owner()?, state.home()?);
        self.check_only_state(home.as_ref(), owner.as_ref())?;
        let is_copied = match &home {
            Some(home) => self.is_copied_state(home)?,
            None => false,
        };
        if is_copied {
            self.put_copied_node_aside()?;
        }
        let here = |repository| Owner { repository, state: Some(self.layout().state().to_owned()) };
        let now = match (reason(home.as_ref(), owner.as_ref(), is_copied, version), &owner) {
            (Some(reason), _) => {
                let new = here(self.inner.options.host.random_bytes());
                let old = database.site_id()?;
                state.put_inbox_aside()?;
                let site = database.renew_site_id(self.inner.options.host.random_bytes(), &new)?;
                tracing::warn!(database = %path.display(), %old, new = %site, "{reason}; it was given a new site id");
                new
            }
            (None, Some(owner)) if *owner == here(owner.repository) => owner.clone(),
            (None, owner) => {
                let new = here(
                    owner.as_ref().map_or_else(|| self.inner.options.host.random_bytes(), |owner| owner.repository),
                );
                database.set_owner(&new)?;
                new
            }
        };
        let now = Home { repository: now.repository, path, version };
        if home.as_ref() != Some(&now) {
            state.set_home(&now)?;
        }
        Ok(())
    }

    /// A file that says that its state is elsewhere, and is right, has no other one but a copy of it.
    fn check_only_state(&self, home: Option<&Home>, owner: Option<&Owner>) -> Result<(), Error> {
        let layout = self.layout();
        let is_its = |owner: &Owner| {
            owner.state.as_deref() == Some(layout.state())
                || home.is_some_and(|home| home.repository == owner.repository)
        };
        let Some(other) = owner.filter(|owner| !is_its(owner)) else { return Ok(()) };
        match names::of_owner(layout.database(), other) {
            Some(other) if !names::is_same_file(other.state(), layout.state()) => {
                Err(Error::OtherState { database: layout.database().to_owned(), state: other.state().to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Whether the state was copied from a repository that goes on where it was.
    ///
    /// # Errors
    /// [`Error::ForeignState`] where it is still that repository's.
    fn is_copied_state(&self, home: &Home) -> Result<bool, Error> {
        let (path, state) = (self.layout().database(), self.layout().state());
        if home.path == path || !home.path.exists() || names::is_same_file(&home.path, path) {
            return Ok(false);
        }
        let original = Database::owner_of(&home.path, false).filter(|owner| owner.repository == home.repository);
        let Some(original) = original else { return Ok(false) };
        if original.state.is_some_and(|its| names::is_same_file(&its, state)) {
            return Err(Error::ForeignState { state: state.to_owned(), database: home.path.clone() });
        }
        Ok(true)
    }

    /// Notes that the database has reached `version`. Blocks.
    ///
    /// # Errors
    /// [`Error::State`].
    pub(crate) fn note_version(&self, version: i64) -> Result<(), Error> {
        Ok(self.state()?.note_version(version)?)
    }

    /// The highest version that was seen in the database; 0 before the first. Blocks.
    ///
    /// # Errors
    /// [`Error::State`].
    pub(crate) fn noted_version(&self) -> Result<i64, Error> {
        Ok(self.state()?.home()?.map_or(0, |home| home.version))
    }

    /// The node's identity belongs to the original; two nodes must not publish under one address.
    fn put_copied_node_aside(&self) -> Result<(), Error> {
        let node = self.layout().node();
        let aside = node.with_extension("of-original");
        let put_aside = || match fs::rename(&node, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        };
        put_aside().map_err(|source| Error::Io { path: node.clone(), source })
    }
}

/// Why a database that is at `version` needs another site id, if it does.
fn reason(home: Option<&Home>, owner: Option<&Owner>, is_copied: bool, version: i64) -> Option<String> {
    match (home, owner) {
        (None, Some(_)) => {
            Some("it is a copy of another repository's database, or its state directory was lost".to_owned())
        }
        (Some(_), None) => Some(
            "it was restored from a copy that was made before its state directory was, or was made anew".to_owned(),
        ),
        (Some(home), Some(owner)) if home.repository != owner.repository => {
            Some("it is a copy of another repository's database".to_owned())
        }
        (Some(home), Some(_)) if is_copied => {
            Some(format!("it and its state were copied from {}", home.path.display()))
        }
        (Some(home), Some(_)) if version < home.version => {
            let seen = home.version;
            Some(format!(
                "its version went back from {seen} to {version}: restored from a copy, or a table was dropped"
            ))
        }
        (None, None) | (Some(_), Some(_)) => None,
    }
}

impl State {
    pub(super) fn home(&self) -> Result<Option<Home>, StateError> {
        self.read(Home::read)
    }

    pub(super) fn set_home(&mut self, home: &Home) -> Result<(), StateError> {
        self.write(|transaction| {
            let path = home.path.as_os_str().as_bytes();
            let values = params![home.repository, path, home.version];
            transaction
                .execute("INSERT OR REPLACE INTO home (one, repository, path, version) VALUES (1, ?, ?, ?)", values)
                .map(drop)
        })
    }

    /// Notes that the database has reached `version`.
    pub(super) fn note_version(&mut self, version: i64) -> Result<(), StateError> {
        self.write(|t| t.execute("UPDATE home SET version = ?1 WHERE version < ?1", [version]).map(drop))
    }
}
