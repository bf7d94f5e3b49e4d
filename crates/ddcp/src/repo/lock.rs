use std::{
    fs::{File, TryLockError},
    io::{self, Read, Seek, Write},
    path::Path,
    sync::{Arc, Weak},
};

use crate::files;

/// Held by the one process that works on a repository, until the last clone is dropped. The operating system releases
/// it when the process ends, however it ends.
#[derive(Clone, Debug)]
pub struct Lock {
    file: Arc<File>,
}

/// Finds a lock that may be held.
#[derive(Debug, Default)]
pub(super) struct WeakLock(Weak<File>);

impl WeakLock {
    pub(super) fn upgrade(&self) -> Option<Lock> {
        self.0.upgrade().map(|file| Lock { file })
    }
}

/// Why the lock could not be had.
#[derive(Debug)]
pub enum LockError {
    /// Another process holds it; its process id, if it could be read.
    Held(Option<u32>),
    /// The lock file could not be used.
    Io(io::Error),
}

impl Lock {
    /// Takes the lock in `path`, if it is free.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let mut file = files::open_private(path).map_err(LockError::Io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
            Err(TryLockError::WouldBlock) => return Err(LockError::Held(holder(&mut file))),
        }
        write_holder(&mut file).map_err(LockError::Io)?;
        Ok(Self { file: Arc::new(file) })
    }

    /// What finds the lock again as long as it is held.
    pub(super) fn downgrade(&self) -> WeakLock {
        WeakLock(Arc::downgrade(&self.file))
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_holder(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_the_next_learns_who() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::take(&path).unwrap();
        match Lock::take(&path) {
            Err(LockError::Held(pid)) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        Lock::take(&path).unwrap();
    }
}
