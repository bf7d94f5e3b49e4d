//! How fast a peer must send what it was asked for. Patience bounds each answer; without this a peer that sends little with
//! each of them would be waited for as long as it likes.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The least that must come in a time.
#[derive(Clone, Copy, Debug)]
pub struct LeastRate {
    /// So many bytes of packs or documents.
    pub bytes: u64,
    /// In each stretch of so long.
    pub within: Duration,
}

impl Default for LeastRate {
    /// What no way over which a fetch makes sense falls short of: one chunk in 75 s.
    fn default() -> Self {
        Self { bytes: 256 << 10, within: Duration::from_secs(600) }
    }
}

/// What has come, of one peer.
pub(super) struct Rate {
    least: LeastRate,
    stretch: Mutex<Stretch>,
}

/// The time that is being measured.
struct Stretch {
    began: Instant,
    bytes: u64,
}

impl Rate {
    pub(super) fn new(least: LeastRate, now: Instant) -> Self {
        Self { least, stretch: Mutex::new(Stretch { began: now, bytes: 0 }) }
    }

    /// Begins to measure: the peer was not asked for anything before.
    pub(super) fn begin(&self, now: Instant) {
        *self.stretch() = Stretch { began: now, bytes: 0 };
    }

    /// Notes time that was not the peer's: what it had sent was being stored.
    pub(super) fn excuse(&self, spent: Duration) {
        self.stretch().began += spent;
    }

    /// Notes that `bytes` have come. Gives what came in a stretch that has ended, if that was too little.
    pub(super) fn note(&self, bytes: u64, now: Instant) -> Result<(), u64> {
        let mut stretch = self.stretch();
        stretch.bytes += bytes;
        if now.saturating_duration_since(stretch.began) < self.least.within {
            return Ok(());
        }
        let came = std::mem::replace(&mut *stretch, Stretch { began: now, bytes: 0 }).bytes;
        if came < self.least.bytes { Err(came) } else { Ok(()) }
    }

    pub(super) fn least(&self) -> LeastRate {
        self.least
    }

    fn stretch(&self) -> MutexGuard<'_, Stretch> {
        self.stretch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stretch_must_bring_the_least_and_storing_is_excused() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let rate = Rate::new(LeastRate { bytes: 100, within: Duration::from_secs(10) }, start);
        assert_eq!(rate.note(1, at(9)), Ok(()));
        assert_eq!(rate.note(99, at(10)), Ok(()), "it is enough");
        assert_eq!(rate.note(99, at(20)), Err(99), "what came before does not count");
        rate.begin(at(100));
        rate.excuse(Duration::from_secs(5));
        assert_eq!(rate.note(1, at(114)), Ok(()));
        assert_eq!(rate.note(1, at(115)), Err(2));
    }
}
