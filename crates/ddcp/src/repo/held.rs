//! What shows that a database is its own: whoever writes to it or gives something of it away does so under its site id,
//! which nobody else may have.

use std::sync::PoisonError;

use super::{Layout, Lock, Repository, lock_error};
use crate::{Error, database::Database};

/// The right to write to a repository's database and to give it away: it was looked at whose it is. Mostly with the
/// repository's lock, which is held until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Held {
    /// `None` where it was looked at and other processes may work meanwhile.
    lock: Option<Lock>,
}

impl Held {
    pub(super) fn new(lock: Lock) -> Self {
        Self { lock: Some(lock) }
    }

    /// Whether other processes are kept out.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.lock.is_some()
    }

    /// The same, and others may work on the repository meanwhile.
    #[must_use]
    pub fn beside_others(self) -> Self {
        Self { lock: None }
    }
}

impl Layout {
    /// Takes the lock of the repository if no other process holds it.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Io`].
    pub(crate) fn try_lock(&self) -> Result<Lock, Error> {
        Lock::take(&self.lock()).map_err(|error| lock_error(self, error))
    }
}

impl Repository {
    /// Takes the lock of the repository if no other process holds it. Of its database nothing is looked at.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Io`].
    #[doc(hidden)]
    pub fn try_lock(&self) -> Result<Lock, Error> {
        self.layout().try_lock()
    }

    /// Takes the lock for work on the repository, and makes sure that its database has a site id of its own. Where this
    /// repository or a clone of it holds the lock already, it is shared.
    ///
    /// # Errors
    /// As [`Repository::try_lock`]; [`Error::OtherState`], [`Error::ForeignState`], [`Error::Database`],
    /// [`Error::State`].
    #[doc(hidden)]
    pub async fn hold(&self) -> Result<Held, Error> {
        self.blocking(Self::hold_now).await
    }

    /// As [`Repository::hold`], where it may block.
    fn hold_now(&self) -> Result<Held, Error> {
        let _alone = self.inner.locking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = self.inner.lock.share() {
            return Ok(Held::new(lock));
        }
        let layout = self.layout();
        let lock = self.inner.lock.take(&layout.lock()).map_err(|error| lock_error(layout, error))?;
        self.check_identity()?;
        Ok(Held::new(lock))
    }

    /// Makes sure that the database has a site id of its own, beside whoever works on the repository: a process that
    /// holds it has looked. Blocks.
    ///
    /// # Errors
    /// As [`Repository::hold`], without [`Error::Locked`].
    #[doc(hidden)]
    pub fn look_whose(&self) -> Result<Held, Error> {
        match self.hold_now() {
            Ok(held) => Ok(held.beside_others()),
            Err(Error::Locked { .. }) => Ok(Held { lock: None }),
            Err(error) => Err(error),
        }
    }

    /// Opens the database for who writes to it or gives it away: the one way to it for both. A database that has gone
    /// back in time since it was looked at is looked at again. Blocks.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::State`]; where it has gone back, as [`Repository::hold`].
    pub(crate) fn own_database(&self, _: &Held) -> Result<Database, Error> {
        // The state first: versions that are noted meanwhile are of a database that goes on.
        let noted = self.noted_version()?;
        let database = self.database()?;
        if database.version()? >= noted {
            return Ok(database);
        }
        database.abandon();
        self.look_again()?;
        self.database()
    }

    /// Looks again whose the database is, which has gone back in time: it was replaced in place, or has lost its log.
    /// Blocks.
    ///
    /// # Errors
    /// As [`Repository::hold`]; [`Error::Database`] where another file is worked on than the one that is there.
    pub(crate) fn look_again(&self) -> Result<(), Error> {
        self.check_path()?;
        self.close_readers();
        if self.is_pinned() { self.pin() } else { self.check_identity() }
    }
}
