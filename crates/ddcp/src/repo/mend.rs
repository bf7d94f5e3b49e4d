//! A `state.db` that is damaged is put aside, and another one made with what can be known again.
//!
//! What waited in it counts as read, and so does nothing that was in its inbox: the positions are in the user's
//! database, and how far the inbox reached is gone with it. So all remotes are read from their start afterwards, and
//! what can be read of the old file waits for the next merge besides: it may have come from where it cannot be had again.
//!
//! A mark in the state directory says from before the first step to after the last that the state file is not to be
//! used. While it is empty the file is only suspected; then it has the name under which the old file is put aside. Every
//! step may be repeated, so whoever finds the mark goes on wherever the one before was killed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use jiff::Timestamp;
use rusqlite::ffi;

use super::{Layout, LogEvent, Repository, State, StateError, lock_error};
use crate::{Error, database::Database, files};

/// What the names of files begin with that were put aside.
pub(super) const ASIDE: &str = "state.db.damaged-";

/// A state file of so many bytes is looked at as a whole before a command changes anything; a larger one only when
/// something in it has turned out to be damaged.
const SMALL: u64 = 32 << 20;

impl Layout {
    /// Whether there is a state file, or one that is being made anew.
    pub(super) fn has_state_file(&self) -> bool {
        self.state_db().exists() || self.damage_mark().exists()
    }
}

/// A state file that is put aside.
struct Aside {
    /// Its name in the state directory.
    name: String,
    /// What was wrong with it.
    reason: String,
}

impl Repository {
    /// Opens the state file; one that is damaged is made anew before, unless it is being used. Blocks.
    ///
    /// # Errors
    /// [`Error::State`]; [`Error::Locked`] where another process works on a repository whose state file is damaged.
    pub(super) fn state(&self) -> Result<State, Error> {
        let in_use = self.inner.state_in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.layout().state_db();
        let opened = match self.layout().damage_mark().exists() || self.has_empty_state() {
            true => Err(damaged(&path)),
            false => State::open_existing(&path),
        };
        let state = match opened {
            Err(error) if error.is_damage() && Arc::strong_count(&in_use) == 1 => {
                self.mend_state()?;
                State::open_existing(&path)
            }
            opened => opened,
        };
        Ok(state?.with_use(&in_use))
    }

    /// Makes sure that the state file is sound, as far as that can be told at little cost. Call it with the lock held.
    /// Blocks.
    ///
    /// # Errors
    /// As [`Repository::state`].
    pub(super) fn check_state(&self) -> Result<(), Error> {
        let state = self.state()?;
        let is_small = fs::metadata(self.layout().state_db()).is_ok_and(|metadata| metadata.len() <= SMALL);
        if !is_small || state.complaints().is_ok_and(|complaints| complaints.is_empty()) {
            return Ok(());
        }
        self.suspect_state()?;
        drop(state);
        self.state().map(drop)
    }

    /// Whether nothing is in the state file, though the database was in a repository: it was cut off.
    fn has_empty_state(&self) -> bool {
        let is_empty = fs::metadata(self.layout().state_db()).is_ok_and(|metadata| metadata.len() == 0);
        is_empty && Database::repository_id_of(self.layout().database()).is_some()
    }

    fn suspect_state(&self) -> Result<(), Error> {
        let mark = self.layout().damage_mark();
        files::create_private(&mark).map_err(|source| Error::Io { path: mark, source })
    }

    /// Makes the state file anew if it is damaged. Nobody here may have it open.
    fn mend_state(&self) -> Result<(), Error> {
        let layout = self.layout();
        let _lock = match self.inner.lock.share() {
            Some(lock) => lock,
            None => self.inner.lock.take(&layout.lock()).map_err(|error| lock_error(layout, error))?,
        };
        self.suspect_state()?;
        let mark = layout.damage_mark();
        let io = |source| Error::Io { path: mark.clone(), source };
        let begun = Aside::read(&mark).map_err(io)?;
        let aside = match begun {
            Some(aside) => Some(aside),
            None if self.has_empty_state() => Some(Aside::new(layout, "it is empty".to_owned())),
            None => State::damage(&layout.state_db())?.map(|reason| Aside::new(layout, reason)),
        };
        if let Some(aside) = aside {
            // From here on the mark says more than that the file is suspected.
            files::replace(&mark, aside.text().as_bytes()).map_err(io)?;
            self.renew_state(&aside)?;
        }
        fs::remove_file(&mark).and_then(|()| files::sync_folder(&mark)).map_err(io)
    }

    fn renew_state(&self, aside: &Aside) -> Result<(), Error> {
        let layout = self.layout();
        let old = aside.put(layout).map_err(|source| Error::Io { path: layout.state_db(), source })?;
        self.database()?.forget_positions()?;
        let mut state = State::open(&layout.state_db())?;
        let old = old.exists().then(|| State::look_at_damaged(&old)).flatten();
        let packs = old.as_ref().map_or(Ok(0), |old| state.salvage(old))?;
        // Without it, how far peers may have read is not known, and the database gets another site id.
        if let Some(home) = old.as_ref().and_then(|old| old.home().ok().flatten()) {
            state.set_home(&home)?;
        }
        let Aside { name, reason } = aside;
        let message = format!(
            "state.db was damaged ({reason}) and is made anew; the old one is {name}. Packs saved of it: {packs}. The remotes \
             are read from their start"
        );
        tracing::warn!(folder = %layout.state().display(), "{message}");
        state.note_event("state.db", Timestamp::now(), Some(LogEvent::Failed { message }));
        Ok(())
    }
}

impl Aside {
    fn new(layout: &Layout, reason: String) -> Self {
        let now = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        let name = |number: u32| match number {
            0 => format!("{ASIDE}{now}"),
            number => format!("{ASIDE}{now}-{number}"),
        };
        let is_free = |name: &String| layout.state().join(name).symlink_metadata().is_err();
        let name = (0..).map(name).find(is_free).unwrap_or_default();
        Self { name, reason }
    }

    /// What the mark says; nothing if the file is only suspected.
    fn read(mark: &Path) -> io::Result<Option<Self>> {
        let text = fs::read_to_string(mark)?;
        let (name, reason) = text.split_once('\n').unwrap_or_default();
        let is_name = name.starts_with(ASIDE) && !name.contains('/');
        Ok(is_name.then(|| Self { name: name.to_owned(), reason: reason.to_owned() }))
    }

    fn text(&self) -> String {
        format!("{}\n{}", self.name, self.reason)
    }

    /// Puts the state file and its logs aside, and returns where it is. If that has been done, what lies in its place is
    /// a new one that was not completed, and is removed.
    fn put(&self, layout: &Layout) -> io::Result<PathBuf> {
        let (path, aside) = (layout.state_db(), layout.state().join(&self.name));
        let is_done = aside.symlink_metadata().is_ok();
        // The logs first: SQLite takes them for those of whatever is in the file's place.
        for end in ["-wal", "-shm", "-journal", ""] {
            let (from, to) = (named(&path, end), named(&aside, end));
            let is_there = is_done || to.symlink_metadata().is_ok();
            let moved = if is_there { fs::remove_file(&from) } else { fs::rename(&from, &to) };
            match moved {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        files::sync_folder(&path)?;
        Ok(aside)
    }
}

fn named(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// What is said of a file that is known to be damaged, and being used.
fn damaged(path: &Path) -> StateError {
    StateError::new(path, rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), None))
}
