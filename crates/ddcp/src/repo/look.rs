//! Looking at a repository that cannot be written: on a stick that is write-protected, in a snapshot, in an image.
//!
//! Nobody else can write there either, so what needs the lock elsewhere is done without, and nothing is noted. What
//! changes the repository fails, and says why.

use super::{Held, Repository, State};
use crate::{
    Error,
    database::{Database, DatabaseError},
    medium,
};

impl Repository {
    /// Whether the state directory is on a medium that is mounted read-only.
    pub(crate) fn has_fixed_state(&self) -> bool {
        medium::is_read_only(self.layout().state())
    }

    /// Whether the database, or the state directory, is on a medium that is mounted read-only.
    pub(crate) fn is_fixed(&self) -> bool {
        self.has_fixed_state() || medium::is_read_only(self.layout().database())
    }

    /// Opens the state file, only to read where it cannot be written. Blocks.
    ///
    /// # Errors
    /// As [`Repository::state`].
    pub(super) fn state_to_read(&self) -> Result<State, Error> {
        match self.has_fixed_state() {
            true => Ok(State::look(&self.layout().state_db())?),
            false => self.state(),
        }
    }

    /// Opens the user's database, only to read where it cannot be written. Blocks.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub(crate) fn database_to_read(&self) -> Result<Database, Error> {
        match self.open_database_as(false) {
            Err(DatabaseError::ReadOnly { .. }) => Ok(self.open_database_as(true)?),
            opened => Ok(opened?),
        }
    }

    /// As [`Repository::hold`], for what only reads; without a lock where nothing can be written.
    ///
    /// # Errors
    /// As [`Repository::hold`]; [`Error::NotItself`] where the database would have to get a site id of its own.
    pub(crate) async fn hold_to_read(&self) -> Result<Option<Held>, Error> {
        match self.is_fixed() {
            true => self.blocking(Self::look_at_identity).await.map(|()| None),
            false => self.hold().await.map(Some),
        }
    }

    /// As [`Repository::look_whose`], for what only reads; nothing where nothing can be written.
    ///
    /// # Errors
    /// As [`Repository::hold_to_read`].
    pub(super) fn look_whose_to_read(&self) -> Result<Option<Held>, Error> {
        match self.is_fixed() {
            true => self.look_at_identity().map(|()| None),
            false => self.look_whose().map(Some),
        }
    }

    /// Opens the user's database for who gives something of it away; `held` is nothing where it cannot be written. Blocks.
    ///
    /// # Errors
    /// As [`Repository::own_database`].
    pub(super) fn database_to_give(&self, held: Option<&Held>) -> Result<Database, Error> {
        match held {
            Some(held) => self.own_database(held),
            None => self.database_to_read(),
        }
    }

    /// Makes sure that the database is what its state says that it is. A copy with its state is: it has the original's
    /// changes, and gets no others.
    fn look_at_identity(&self) -> Result<(), Error> {
        let database = self.database_to_read()?;
        let (home, mark) = (self.state_to_read()?.home()?, database.repository_id()?);
        let version = database.version()?;
        let reason = match home {
            None if mark.is_none() => return Ok(()),
            Some(home) if mark.is_some_and(|mark| home.is_of(&mark)) => match home.goes_back(version) {
                None => return Ok(()),
                Some(seen) => format!("its version went back from {seen} to {version}"),
            },
            _ => "it is not the database that its state belongs to".to_owned(),
        };
        Err(Error::NotItself { path: self.layout().database().to_owned(), reason })
    }
}
