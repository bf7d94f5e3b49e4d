//! How many chunks are asked for at a time.
//!
//! A call crosses several links, so on slow ones the number in flight is what makes the speed. Beyond what the way
//! holds, more only wait in queues: they gain nothing, and make everything else late. So the window follows the delay:
//! the fastest answer ever is taken for the way without queues, and what the fastest answer of a round took longer
//! was spent in queues. (The fastest, since the slowest are those that a link lost and repeated.) The window doubles
//! each round at first, then grows by an eighth, while few of its chunks wait; it shrinks to that when many do. A peer
//! that is busy and calls that are lost make it smaller at once.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, SemaphorePermit};

const FIRST: usize = 8;
const LEAST: usize = 2;
/// With the size of a chunk this bounds the memory that answers take: 8 MB.
pub(super) const MOST: usize = 256;

/// Chunks waiting in queues: while fewer, the way may hold more; when more, the window is too large.
const FEW_WAIT: f64 = 8.0;
const MANY_WAIT: f64 = 16.0;

/// Nor may waiting take longer than this on a slow way, where few chunks wait long: calls are given up after 5 s.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// The way may have changed, or the fastest answer may have waited already: after so long one round is made with half
/// the window, and its fastest answer counts.
const FORGET: Duration = Duration::from_secs(30);

/// The rule, apart from clocks and tasks.
#[derive(Debug)]
pub(super) struct Window {
    size: usize,
    /// Doubles each round.
    starting: bool,
    /// The time of an answer without queues, and when it was measured.
    unhindered: Option<(Duration, Instant)>,
    /// The size to go back to after the round with half of it.
    probing: Option<usize>,
    round: Round,
    /// When it was made smaller last.
    shrunk: Option<Instant>,
}

/// Lasts until something is answered that was asked after its start.
#[derive(Debug)]
struct Round {
    start: Instant,
    fastest: Option<Duration>,
    /// There was no room for one more in flight.
    full: bool,
}

impl Window {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            size: FIRST,
            starting: true,
            unhindered: None,
            probing: None,
            round: Round { start: now, fastest: None, full: false },
            shrunk: None,
        }
    }

    /// How many may be in flight.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Notes an answer `now` to what was asked at `asked`, and whether the window was full.
    pub(super) fn answered(&mut self, asked: Instant, now: Instant, full: bool) {
        let took = now.saturating_duration_since(asked);
        self.round.fastest = Some(self.round.fastest.map_or(took, |fastest| fastest.min(took)));
        self.round.full |= full;
        if self.probing.is_none() && self.unhindered.is_none_or(|(least, _)| took < least) {
            self.unhindered = Some((took, now));
        }
        if asked > self.round.start {
            self.end_round(now);
        }
    }

    /// Notes that the peer has too much to do.
    pub(super) fn busy(&mut self, asked: Instant, now: Instant) {
        self.shrink(0.7, asked, now);
    }

    /// Notes that something asked at `asked` was not answered.
    pub(super) fn lost(&mut self, asked: Instant, now: Instant) {
        self.shrink(0.5, asked, now);
    }

    /// Once for all that was asked before the last time.
    fn shrink(&mut self, factor: f64, asked: Instant, now: Instant) {
        if self.shrunk.is_some_and(|shrunk| asked < shrunk) {
            return;
        }
        self.shrunk = Some(now);
        self.starting = false;
        self.probing = None;
        self.set(self.size as f64 * factor);
    }

    fn end_round(&mut self, now: Instant) {
        let round = std::mem::replace(&mut self.round, Round { start: now, fastest: None, full: false });
        let (Some(fastest), Some((unhindered, measured))) = (round.fastest, self.unhindered) else { return };
        if let Some(size) = self.probing.take() {
            self.unhindered = Some((fastest, now));
            self.size = size;
            return;
        }
        if now.saturating_duration_since(measured) > FORGET && self.size > LEAST {
            self.probing = Some(self.size);
            self.set(self.size as f64 / 2.0);
            return;
        }
        let size = self.size as f64;
        let waiting = size * (1.0 - unhindered.as_secs_f64() / fastest.as_secs_f64().max(f64::MIN_POSITIVE));
        let waited = fastest.saturating_sub(unhindered);
        if waiting > MANY_WAIT || waited > LONG_WAIT {
            self.starting = false;
            let held = size - waiting;
            let allowed = size * LONG_WAIT.as_secs_f64() / waited.max(LONG_WAIT).as_secs_f64();
            self.set(allowed.min(held + MANY_WAIT));
        } else if waiting > FEW_WAIT || waited > LONG_WAIT / 2 {
            self.starting = false;
        } else if round.full {
            self.set(if self.starting { size * 2.0 } else { size + (size / 8.0).clamp(1.0, FEW_WAIT) });
        }
    }

    fn set(&mut self, size: f64) {
        self.size = (size as usize).clamp(LEAST, MOST);
    }
}

/// Lets as many in as the [`Window`] says, in the order in which they came.
pub(super) struct Gate {
    places: Semaphore,
    state: Mutex<GateState>,
}

struct GateState {
    window: Window,
    /// Places there are, taken or free: the window's size as soon as enough have left.
    places: usize,
}

impl Gate {
    pub(super) fn new(now: Instant) -> Self {
        let window = Window::new(now);
        let places = window.size();
        Self { places: Semaphore::new(places), state: Mutex::new(GateState { window, places }) }
    }

    /// Waits for a place.
    pub(super) async fn enter(&self, now: impl Fn() -> Instant) -> Place<'_> {
        // The semaphore is never closed; without a permit a place is one too many, which does no harm.
        let permit = self.places.acquire().await.ok();
        Place { gate: self, permit, asked: now() }
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, event: impl FnOnce(&mut Window)) {
        let state = &mut *self.state();
        event(&mut state.window);
        let size = state.window.size();
        if size > state.places {
            self.places.add_permits(size - state.places);
            state.places = size;
        } else if size < state.places {
            state.places -= self.places.forget_permits(state.places - size);
        }
    }
}

/// A place among those in flight.
pub(super) struct Place<'a> {
    gate: &'a Gate,
    permit: Option<SemaphorePermit<'a>>,
    asked: Instant,
}

impl Place<'_> {
    pub(super) fn answered(self, now: Instant) {
        let full = self.gate.places.available_permits() == 0;
        self.gate.note(|window| window.answered(self.asked, now, full));
    }

    pub(super) fn busy(self, now: Instant) {
        self.gate.note(|window| window.busy(self.asked, now));
    }

    pub(super) fn lost(self, now: Instant) {
        self.gate.note(|window| window.lost(self.asked, now));
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        if state.places > state.window.size()
            && let Some(permit) = self.permit.take()
        {
            permit.forget();
            state.places -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A way that takes `delay` there and back and carries one chunk each `interval`.
    struct Way {
        window: Window,
        now: Instant,
        delay: Duration,
        interval: Duration,
        /// When the last chunk so far leaves the narrowest link.
        free: Instant,
        flying: VecDeque<(Instant, Instant)>,
        answers: u32,
    }

    impl Way {
        fn new(delay: u64, interval_us: u64) -> Self {
            let now = Instant::now();
            Self {
                window: Window::new(now),
                now,
                delay: Duration::from_millis(delay),
                interval: Duration::from_micros(interval_us),
                free: now,
                flying: VecDeque::new(),
                answers: 0,
            }
        }

        /// Keeps the window full for so long; chunks that were answered per second.
        fn run(&mut self, seconds: u64) -> f64 {
            let (end, before) = (self.now + Duration::from_secs(seconds), self.answers);
            while self.now < end {
                while self.flying.len() < self.window.size() {
                    self.free = self.free.max(self.now) + self.interval;
                    self.flying.push_back((self.now, self.free + self.delay));
                }
                let (asked, at) = self.flying.pop_front().unwrap();
                self.now = at;
                self.answers += 1;
                self.window.answered(asked, at, true);
            }
            f64::from(self.answers - before) / seconds as f64
        }

        /// What the narrowest link carries per second.
        fn most(&self) -> f64 {
            1.0 / self.interval.as_secs_f64()
        }
    }

    #[test]
    fn every_way_is_filled_and_none_overfilled() {
        // From this machine to a long and fast way, and one as slow as an old modem.
        for (delay, interval_us) in [(2, 1200), (30, 3000), (250, 10_000), (600, 8_000), (1800, 20_000), (300, 250_000)]
        {
            let mut way = Way::new(delay, interval_us);
            way.run(10);
            let rate = way.run(20);
            assert!(rate > 0.9 * way.most(), "{delay} ms, {interval_us} us: {rate} of {} per second", way.most());
            let waiting = way.free.saturating_duration_since(way.now).as_secs_f64() / way.interval.as_secs_f64();
            assert!(waiting <= MANY_WAIT + 1.0, "{delay} ms, {interval_us} us: {waiting} wait, {:?}", way.window);
            assert!(way.free - way.now < LONG_WAIT * 2, "{:?}", way.window);
        }
    }

    #[test]
    fn it_does_not_grow_for_ever_nor_past_its_bound() {
        let mut fast = Way::new(2000, 10);
        fast.run(60);
        assert_eq!(fast.window.size(), MOST);
        // Queues of its own are not taken for the length of the way.
        let mut slow = Way::new(50, 20_000);
        slow.run(600);
        assert!(slow.window.size() as f64 <= 2.0 * MANY_WAIT + 4.0, "{:?}", slow.window);
    }

    #[test]
    fn a_way_that_has_become_longer_is_learnt() {
        let mut way = Way::new(20, 10_000);
        way.run(20);
        way.delay = Duration::from_millis(900);
        way.run(90);
        assert!(way.run(20) > 0.85 * way.most(), "{:?}", way.window);
    }

    #[test]
    fn losses_of_one_time_count_once() {
        let mut way = Way::new(1000, 100);
        way.run(20);
        let (size, asked) = (way.window.size(), way.now);
        let later = asked + Duration::from_secs(1);
        for _ in 0..50 {
            way.window.lost(asked, later);
        }
        assert_eq!(way.window.size(), size / 2);
        way.window.busy(later, later + Duration::from_secs(1));
        assert!(way.window.size() < size / 2);
        for n in 2..100 {
            way.window.lost(asked + Duration::from_secs(n), asked + Duration::from_secs(n + 1));
        }
        assert_eq!(way.window.size(), LEAST);
    }

    #[test]
    fn it_grows_only_when_it_is_used() {
        let now = Instant::now();
        let mut window = Window::new(now);
        for n in 0..100 {
            let asked = now + Duration::from_millis(n * 10);
            window.answered(asked, asked + Duration::from_millis(5), false);
        }
        assert_eq!(window.size(), FIRST);
    }

    #[tokio::test]
    async fn the_gate_lets_in_as_many_as_the_window_says() {
        let gate = Gate::new(Instant::now());
        let mut places = Vec::new();
        for _ in 0..FIRST {
            places.push(gate.enter(Instant::now).await);
        }
        let full = |gate: &Gate| gate.places.try_acquire().is_err();
        assert!(full(&gate));
        let now = Instant::now();
        places.pop().unwrap().lost(now);
        assert_eq!(gate.state().window.size(), FIRST / 2);
        places.truncate(FIRST / 2);
        assert!(full(&gate), "those that are too many leave without a successor");
        places.pop();
        assert!(!full(&gate));
        places.clear();
        assert_eq!((gate.places.available_permits(), gate.state().places), (FIRST / 2, FIRST / 2));
        for _ in 0..FIRST / 2 {
            places.push(gate.enter(Instant::now).await);
        }
        places.pop().unwrap().answered(Instant::now());
        assert!(gate.state().window.size() > FIRST / 2);
    }
}
