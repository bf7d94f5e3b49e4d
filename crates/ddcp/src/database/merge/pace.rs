//! When a merge lets other programs write, and how much it does at a time.
//!
//! SQLite keeps no queue of those who wait for its lock: they look again after pauses of up to 100 ms, and would hardly
//! ever meet the moment between two slices. So after some time of merging the lock stays free for longer than such a
//! pause, and whoever waits gets in. How often that is depends on whether anybody is there: it is often while others write,
//! and seldom, so that it costs little, while nobody does.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// The longest pause of who waits for a lock (SQLite's own busy handler), and a little.
const REST: Duration = Duration::from_millis(105);

/// How long merging goes on between rests while others write.
const AMONG_OTHERS: Duration = Duration::from_millis(250);

/// The same at first, and when nobody has written lately.
const AT_FIRST: Duration = Duration::from_secs(1);
const ALONE: Duration = Duration::from_secs(2);

/// What a step of a slice costs at first, in records that may change: few, since nothing is known of how long it takes.
const FIRST_STEP: usize = 64;

/// Steps become larger after one that was quick, up to the largest, and smaller after one that was slow.
const QUICK: Duration = Duration::from_millis(20);
const SLOW: Duration = Duration::from_millis(80);
const LARGEST_STEP: usize = 1 << 14;

/// What a connection remembers of its merging.
#[derive(Debug)]
pub(in crate::database) struct Pace {
    /// How long the lock was held since the last rest.
    held: Cell<Duration>,
    /// For how long it may be.
    most: Cell<Duration>,
    /// When it was taken or given back last.
    since: Cell<Instant>,
    /// The number of the file's state after the last rest, which other programs' writes change.
    seen: Cell<Option<i64>>,
    /// What the next step costs at most.
    step: Cell<usize>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            held: Cell::default(),
            most: Cell::new(AT_FIRST),
            since: Cell::new(Instant::now()),
            seen: Cell::default(),
            step: Cell::new(FIRST_STEP),
        }
    }
}

impl Pace {
    /// Rests, if it is time to. `state` is a number that the writes of others change.
    pub(super) fn rest<E>(&self, state: impl FnOnce() -> Result<i64, E>) -> Result<(), E> {
        let free = self.since.get().elapsed();
        if free >= REST {
            self.held.set(Duration::ZERO);
        }
        if self.held.get() < self.most.get() {
            return Ok(());
        }
        std::thread::sleep(REST.saturating_sub(free));
        let state = state()?;
        self.rested(self.seen.get().is_some_and(|seen| seen != state));
        self.seen.set(Some(state));
        Ok(())
    }

    fn rested(&self, others_wrote: bool) {
        self.held.set(Duration::ZERO);
        self.most.set(if others_wrote { AMONG_OTHERS } else { (self.most.get() * 2).min(ALONE) });
    }

    /// What the next step is to cost at most.
    pub(super) fn step(&self) -> usize {
        self.step.get()
    }

    /// A step took so long.
    pub(super) fn took(&self, time: Duration) {
        let step = self.step.get();
        self.step.set(match time {
            time if time < QUICK => (step * 4).min(LARGEST_STEP),
            time if time > SLOW => (step / 2).max(1),
            _ => step,
        });
    }

    /// The lock was taken.
    pub(super) fn begin(&self) {
        self.since.set(Instant::now());
    }

    /// It was given back.
    pub(super) fn end(&self) {
        self.held.set(self.held.get() + self.since.get().elapsed());
        self.since.set(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rests(pace: &Pace, state: i64) -> bool {
        let began = Instant::now();
        pace.rest(|| Ok::<_, ()>(state)).unwrap();
        began.elapsed() >= REST
    }

    #[test]
    fn steps_are_as_large_as_they_are_quick() {
        let pace = Pace::default();
        (0..9).for_each(|_| pace.took(Duration::ZERO));
        assert_eq!(pace.step(), LARGEST_STEP);
        pace.took(QUICK);
        assert_eq!(pace.step(), LARGEST_STEP);
        (0..20).for_each(|_| pace.took(SLOW * 2));
        assert_eq!(pace.step(), 1);
    }

    #[test]
    fn it_rests_the_more_often_the_more_others_write() {
        let pace = Pace::default();
        assert!(!rests(&pace, 1));
        let work = |pace: &Pace, time| {
            pace.held.set(pace.held.get() + time);
            pace.since.set(Instant::now());
        };
        work(&pace, AT_FIRST / 2);
        assert!(!rests(&pace, 1));
        work(&pace, AT_FIRST / 2);
        assert!(rests(&pace, 1));
        assert!(!rests(&pace, 2), "it has just rested");
        assert_eq!(pace.most.get(), ALONE);
        work(&pace, ALONE);
        assert!(rests(&pace, 2));
        assert_eq!(pace.most.get(), AMONG_OTHERS, "somebody has written");
        work(&pace, AMONG_OTHERS);
        assert!(rests(&pace, 2));
        assert_eq!(pace.most.get(), AMONG_OTHERS * 2, "nobody has");
        work(&pace, ALONE);
        std::thread::sleep(REST);
        assert!(!rests(&pace, 2), "the lock was free for long enough");
    }
}
