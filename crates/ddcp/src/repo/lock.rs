use std::{
    fs::{File, TryLockError},
    io::{self, Read, Seek, Write},
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::files;

/// How long a lock of this process is waited for: one that was given back just now may have been inherited by a process
/// that another thread is starting, which lets it go as soon as it runs its own program.
const INHERITED: Duration = Duration::from_millis(100);

/// Held by the one process that works on a repository, until the last clone is dropped. The operating system releases
/// it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(Slot);

/// Where a lock is, while somebody holds it. Clones are the same place.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot(Arc<Place>);

#[derive(Debug, Default)]
struct Place {
    holding: Mutex<Holding>,
    /// Told when the last holder is gone.
    released: Notify,
}

#[derive(Debug, Default)]
struct Holding {
    file: Option<File>,
    /// How many locks share it. With the last of them the file is closed before the mutex is given back, so that
    /// whoever finds nobody here can take the lock.
    holders: usize,
}

impl Slot {
    fn holding(&self) -> MutexGuard<'_, Holding> {
        self.0.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody here holds the lock.
    pub(super) async fn released(&self) {
        loop {
            let mut released = pin!(self.0.released.notified());
            // From here on a notice is not missed.
            released.as_mut().enable();
            if self.holding().holders == 0 {
                return;
            }
            released.await;
        }
    }

    /// The lock, if somebody holds it.
    pub(super) fn share(&self) -> Option<Lock> {
        let mut holding = self.holding();
        if holding.holders == 0 {
            return None;
        }
        holding.holders += 1;
        Some(Lock(self.clone()))
    }

    /// Takes the lock in `path`, if nobody else holds it, not even here.
    ///
    /// # Errors
    /// [`LockError`].
    pub(super) fn take(&self, path: &Path) -> Result<Lock, LockError> {
        let mut file = files::open_private(path).map_err(LockError::Io)?;
        let until = Instant::now() + INHERITED;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            let holder = holder(&mut file);
            if holder != Some(std::process::id()) || Instant::now() >= until {
                return Err(LockError::Held(holder));
            }
            thread::sleep(INHERITED / 20);
        }
        write_holder(&mut file).map_err(LockError::Io)?;
        *self.holding() = Holding { file: Some(file), holders: 1 };
        Ok(Lock(self.clone()))
    }
}

impl Clone for Lock {
    fn clone(&self) -> Self {
        self.0.holding().holders += 1;
        Self(self.0.clone())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut holding = self.0.holding();
        holding.holders -= 1;
        if holding.holders == 0 {
            holding.file = None;
            self.0.0.released.notify_waiters();
        }
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
        Slot::default().take(path)
    }

    /// Has it held in `slot` instead. It must have no clones.
    pub(super) fn move_to(self, slot: &Slot) -> Self {
        let file = self.0.holding().file.take();
        *slot.holding() = Holding { file, holders: 1 };
        Self(slot.clone())
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
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

    #[test]
    fn a_lock_is_free_when_the_last_of_those_who_share_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let slot = Slot::default();
        assert!(slot.share().is_none());
        let first = slot.take(&path).unwrap();
        let (second, third) = (slot.share().unwrap(), first.clone());
        drop((first, second));
        assert!(Lock::take(&path).is_err());
        drop(third);
        assert!(slot.share().is_none());
        Lock::take(&path).unwrap();
        slot.take(&path).unwrap();
    }

    #[tokio::test]
    async fn the_last_holder_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot::default();
        slot.released().await;
        let first = slot.take(&dir.path().join("lock")).unwrap();
        let second = first.clone();
        let waiting = tokio::spawn({
            let slot = slot.clone();
            async move { slot.released().await }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
    }
}
