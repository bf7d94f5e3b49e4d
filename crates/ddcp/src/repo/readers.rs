//! Those who read the database for peers, and the write-ahead log, which cannot begin anew while one of them reads. Peers
//! may ask without a pause, so once the log is long, readers wait at a barrier until nobody reads, and it is emptied.

use std::{
    fs,
    path::PathBuf,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::host::Host;

/// A log of more bytes is emptied. SQLite itself lets one without readers grow to about half of this.
pub(super) const LONG_LOG: u64 = 8 << 20;

/// How long who reads is waited for, with the barrier down.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the log is left alone when it could not be emptied: an application may be in the middle of reading. Doubled each
/// time in a row, up to the second number.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));

/// Lets readers in, and sees to it that the log does not grow without an end.
pub(super) struct Readers {
    log: PathBuf,
    host: Host,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Who reads, for a moment each.
    brief: usize,
    /// Who reads for as long as it takes to read the whole database.
    long: usize,
    is_closed: bool,
    /// Whether nobody is let in who reads for long, since the log is to be emptied first.
    is_wanted: bool,
    failures: u32,
    /// When it may be tried again to empty the log.
    not_before: Option<Instant>,
}

/// Somebody who reads, until this is dropped.
pub(super) struct Reading<'a> {
    readers: &'a Readers,
    is_long: bool,
}

impl Readers {
    /// Those of the database whose log is, or will be, the file `log`.
    pub(super) fn new(log: PathBuf, host: Host) -> Self {
        Self { log, host, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits until a reader may begin that needs a moment. Where the log has become long, `empty` is called first, while
    /// nobody reads, and says whether it did. Blocks.
    pub(super) fn enter(&self, empty: impl FnOnce() -> bool) -> Reading<'_> {
        if self.is_due() {
            self.empty_alone(empty);
        }
        let mut state =
            self.changed.wait_while(self.state(), |state| state.is_closed).unwrap_or_else(PoisonError::into_inner);
        state.brief += 1;
        Reading { readers: self, is_long: false }
    }

    /// Lets a reader in that reads the whole database; `None` while the log is to be emptied first.
    pub(super) fn enter_for_long(&self) -> Option<Reading<'_>> {
        let mut state = self.state();
        if state.is_closed || state.is_wanted {
            return None;
        }
        state.long += 1;
        Some(Reading { readers: self, is_long: true })
    }

    /// Whether the log is to be emptied now. Whoever reads for long is waited for outside of the barrier.
    fn is_due(&self) -> bool {
        if !fs::metadata(&self.log).is_ok_and(|log| log.len() > LONG_LOG) {
            self.state().is_wanted = false;
            return false;
        }
        let now = self.host.now();
        let mut state = self.state();
        let is_time = state.not_before.is_none_or(|moment| moment <= now);
        state.is_wanted |= is_time;
        is_time && !state.is_closed && state.long == 0
    }

    fn empty_alone(&self, empty: impl FnOnce() -> bool) {
        let mut state = self.state();
        if state.is_closed {
            return;
        }
        state.is_closed = true;
        let waited = self.changed.wait_timeout_while(state, PATIENCE, |state| state.brief > 0);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let is_alone = state.brief == 0;
        drop(state);
        let is_done = is_alone && empty();
        self.open(is_done);
    }

    /// Lifts the barrier.
    fn open(&self, is_done: bool) {
        let mut state = self.state();
        state.failures = if is_done { 0 } else { state.failures.saturating_add(1) };
        let pause = match state.failures {
            0 => Duration::ZERO,
            failures => PAUSES.0.saturating_mul(1 << failures.min(10)).min(PAUSES.1),
        };
        state.not_before = Some(self.host.now() + pause);
        (state.is_closed, state.is_wanted) = (false, false);
        drop(state);
        self.changed.notify_all();
    }

    /// What the mutex guards is consistent after every statement, so a panic elsewhere does not spoil it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut state = self.readers.state();
        let count = if self.is_long { &mut state.long } else { &mut state.brief };
        *count -= 1;
        drop(state);
        self.readers.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;
    use crate::{
        changeset::{Cursor, SiteId},
        database::{Database, OpenOptions},
        medium::beside,
        protocol::Source,
        repo::{DatabaseSource, Layout, Options, Repository, source::OwnSource},
    };

    fn readers(dir: &tempfile::TempDir, bytes: u64) -> Readers {
        let log = dir.path().join("a.db-wal");
        fs::File::create(&log).unwrap().set_len(bytes).unwrap();
        Readers::new(log, Host::default())
    }

    #[test]
    fn a_short_log_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let readers = readers(&dir, LONG_LOG);
        drop(readers.enter(|| panic!("it is short")));
        fs::remove_file(&readers.log).unwrap();
        drop(readers.enter(|| panic!("it is not there")));
    }

    #[test]
    fn a_long_log_is_emptied_while_nobody_reads() {
        let dir = tempfile::tempdir().unwrap();
        let readers = readers(&dir, LONG_LOG + 1);
        let before = readers.enter(|| false);
        readers.state().not_before = None;
        let is_alone = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _reading = readers.enter(|| {
                    is_alone.store(true, Ordering::SeqCst);
                    true
                });
            });
            while !readers.state().is_closed {
                thread::yield_now();
            }
            assert!(!is_alone.load(Ordering::SeqCst), "somebody reads");
            assert!(readers.enter_for_long().is_none());
            drop(before);
        });
        assert!(is_alone.load(Ordering::SeqCst));
    }

    #[test]
    fn what_cannot_be_emptied_is_left_alone_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let readers = readers(&dir, LONG_LOG + 1);
        drop(readers.enter(|| false));
        drop(readers.enter(|| panic!("it was tried just now")));
        assert!(readers.enter_for_long().is_some(), "nobody is kept out meanwhile");
        readers.state().not_before = None;
        let tried = AtomicBool::new(false);
        drop(readers.enter(|| !tried.swap(true, Ordering::SeqCst)));
        assert!(tried.load(Ordering::SeqCst));
    }

    #[test]
    fn who_reads_for_long_is_not_followed_by_another_before_the_log_is_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let readers = readers(&dir, LONG_LOG + 1);
        let long = readers.enter_for_long().unwrap();
        drop(readers.enter(|| panic!("somebody reads for long")));
        assert!(readers.enter_for_long().is_none());
        drop(long);
        assert!(readers.enter_for_long().is_none());
        drop(readers.enter(|| true));
        assert!(readers.enter_for_long().is_some());
    }

    /// Reads offers, one after the other without a pause, until `is_over`.
    fn read(source: &dyn Source, is_over: &AtomicBool) {
        let reader = SiteId::from_bytes(&[1; 16]).unwrap();
        while !is_over.load(Ordering::Relaxed) {
            let take: &mut dyn FnMut(_) -> _ = &mut |_| {
                thread::sleep(Duration::from_millis(60));
                std::ops::ControlFlow::Continue(())
            };
            source.packs(Cursor::ZERO, &reader, take).unwrap();
        }
    }

    /// How long the log becomes while four read from `source` and an application writes 120 MiB.
    fn longest_log(source: &dyn Source, database: &Path) -> u64 {
        let writer = rusqlite::Connection::open(database).unwrap();
        crsqlite::register(&writer).unwrap();
        writer.busy_timeout(Duration::from_secs(10)).unwrap();
        writer.pragma_update(None, "synchronous", "off").unwrap();
        let (is_over, mut longest) = (AtomicBool::new(false), 0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| read(source, &is_over));
            }
            for _ in 0..300 {
                writer.execute_batch("UPDATE t SET x = randomblob(100000) WHERE id <= 4").unwrap();
                longest = longest.max(fs::metadata(beside(database, "-wal")).unwrap().len());
                thread::sleep(Duration::from_millis(10));
            }
            is_over.store(true, Ordering::Relaxed);
        });
        longest
    }

    #[test]
    fn readers_without_a_pause_do_not_keep_the_log_from_beginning_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let layout = Layout::new(&path, None).unwrap();
        let own = OwnSource::new(Repository::init_with(layout, Options::default()).unwrap());
        let rows: Vec<String> = (1..=100).map(|id| format!("({id}, randomblob(100000))")).collect();
        let writer = rusqlite::Connection::open(&path).unwrap();
        crsqlite::register(&writer).unwrap();
        writer.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, x); SELECT crsql_as_crr('t')").unwrap();
        writer.execute_batch(&format!("INSERT INTO t VALUES {}", rows.join(", "))).unwrap();

        let longest = longest_log(&own, &path);
        assert!(longest < 6 * LONG_LOG, "the log grew to {} MiB", longest >> 20);
        let without = DatabaseSource::new({
            let path = path.clone();
            move || Ok(Database::open(&path, &OpenOptions::default())?)
        });
        let unbounded = longest_log(&without, &path);
        assert!(unbounded > 2 * longest, "{} and {} MiB", unbounded >> 20, longest >> 20);
    }
}
