//! What callers may cost: how many requests, offers and how much reading, each and together; and who is dropped.
//!
//! A caller over its share is told that it is busy here, which honest clients heed. One that floods all the same, or
//! breaks the protocol, is refused for a while at the price of a look into a table.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    clock::now,
    message::{Answer, Session},
};
use crate::{config::Limits, host::Host, transport::RecordId};

/// What a caller may do wrong, in points, before it is dropped.
const PATIENCE: f64 = 5000.0;
/// Points that are forgiven in a second. An honest client that is told "busy" with its whole window in flight
/// collects a few hundred in all.
const FORGIVEN: f64 = 100.0;
/// Points of a request over the rate.
const OVER_RATE: f64 = 1.0;
/// Points of a request that no honest client sends.
const FAULT: f64 = 500.0;

/// Challenges and proofs that are answered in a second though strangers have had their share, of all those who claim to be
/// repositories of one of so many parts of all: who is a remote, and who knows a remote's name, does not matter, so that
/// the answers do not tell it.
const KNOCKS: f64 = 1000.0;
const KNOCK_PARTS: usize = 64;

/// Log lines about dropped callers in a second, and in a burst: callers are free to come back under another name.
const LINES: (f64, f64) = (1.0, 10.0);

/// Who calls, as far as that is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// All who do not say.
    Unnamed,
    /// A session.
    Session(Session),
    /// A remote that has proved to be it.
    Remote(RecordId),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unnamed => f.write_str("without a session"),
            // Not all of it: it is what an admitted session is known by.
            Self::Session(session) => {
                write!(f, "session {}…", data_encoding::HEXLOWER.encode(&session.as_slice()[..4]))
            }
            Self::Remote(repository) => write!(f, "{repository}"),
        }
    }
}

/// Keeps the accounts of all callers.
pub(crate) struct Gate {
    table: Mutex<Table>,
    knocks: Mutex<[Bucket; KNOCK_PARTS]>,
    /// Nobody can choose a name that shares its part with somebody else's.
    secret: [u8; 32],
    drops: Arc<Drops>,
    host: Host,
}

/// Strangers, however many, have nothing of what is there for remotes.
#[derive(Default)]
struct Table {
    strangers: HashMap<Caller, Arc<Account>>,
    remotes: HashMap<Caller, Arc<Account>>,
    requests: Bucket,
}

/// What one caller has had. The default is one that nothing is refused.
#[derive(Default)]
pub(crate) struct Account {
    /// `None` for the caller on this machine.
    bounds: Option<Bounds>,
    state: Mutex<AccountState>,
}

struct Bounds {
    caller: Caller,
    limits: Mutex<Limits>,
    drops: Arc<Drops>,
    host: Host,
}

#[derive(Default)]
struct AccountState {
    last_seen: Option<Instant>,
    at_once: u32,
    preparing: u32,
    requests: Bucket,
    offers: Bucket,
    faults: Bucket,
    read_until: Duration,
    dropped: Option<(Instant, &'static str)>,
}

/// A request that is being answered.
pub(crate) struct Pass {
    pub(crate) account: Arc<Account>,
}

/// An offer that is being prepared.
pub(crate) struct Preparing {
    account: Arc<Account>,
}

impl Gate {
    pub(crate) fn new(drops: Arc<Drops>, host: Host) -> Self {
        let secret = *blake3::hash(&host.random_bytes()).as_bytes();
        Self { table: Mutex::default(), knocks: Mutex::new([Bucket::default(); KNOCK_PARTS]), secret, drops, host }
    }

    /// Lets one who claims to be `claimed` show that it is, whatever strangers have had; `None` where too many claim to be it.
    pub(crate) fn knock(&self, claimed: RecordId) -> Option<Pass> {
        let part = usize::from(blake3::keyed_hash(&self.secret, &claimed.0).as_bytes()[0]) % KNOCK_PARTS;
        let is_let_in = lock(&self.knocks)[part].take(now(&self.host), KNOCKS, 1.0);
        let state = AccountState { at_once: 1, ..AccountState::default() };
        is_let_in.then(|| Pass { account: Arc::new(Account { bounds: None, state: Mutex::new(state) }) })
    }

    /// Lets one request of `caller` in, or says what to answer instead.
    pub(crate) fn enter(&self, caller: Caller, limits: &Limits) -> Result<Pass, Answer> {
        let now = now(&self.host);
        let account = {
            let mut table = lock(&self.table);
            // Strangers cannot use up what is there for remotes, who are few and bounded one by one.
            let is_stranger = !matches!(caller, Caller::Remote(_));
            if is_stranger && !table.requests.take(now, f64::from(limits.total_requests_per_second.get()), 1.0) {
                return Err(Answer::Busy);
            }
            table.account(caller, limits, &self.drops, &self.host).ok_or(Answer::Busy)?
        };
        account.enter(now, limits)?;
        Ok(Pass { account })
    }
}

impl Table {
    /// The account of `caller`, a new one if need be; `None` if there are too many, all at work.
    fn account(&mut self, caller: Caller, limits: &Limits, drops: &Arc<Drops>, host: &Host) -> Option<Arc<Account>> {
        let accounts = match caller {
            Caller::Remote(_) => &mut self.remotes,
            Caller::Session(_) | Caller::Unnamed => &mut self.strangers,
        };
        if let Some(account) = accounts.get(&caller) {
            if let Some(bounds) = &account.bounds {
                *lock(&bounds.limits) = *limits;
            }
            return Some(Arc::clone(account));
        }
        if accounts.len() >= limits.callers.get() as usize {
            let idle = accounts.iter().filter_map(|(caller, account)| Some((account.idle_since()?, *caller)));
            let (_, longest) = idle.min_by_key(|(since, _)| *since)?;
            accounts.remove(&longest);
        }
        let bounds = Bounds { caller, limits: Mutex::new(*limits), drops: Arc::clone(drops), host: host.clone() };
        let account = Arc::new(Account { bounds: Some(bounds), state: Mutex::default() });
        accounts.insert(caller, Arc::clone(&account));
        Some(account)
    }
}

impl Account {
    fn enter(&self, now: Instant, limits: &Limits) -> Result<(), Answer> {
        let mut state = lock(&self.state);
        state.last_seen = Some(now);
        if let Some((until, why)) = state.dropped {
            if now < until {
                let seconds = (until - now).as_secs_f64().ceil();
                return Err(Answer::Refused {
                    reason: format!("it has dropped this caller, which {why}, for {seconds} s"),
                });
            }
            state.dropped = None;
        }
        let rate = f64::from(limits.requests_per_second.get());
        if !state.requests.take(now, rate, 1.0) {
            drop(state);
            self.count_against(OVER_RATE, "sends requests faster than they may come");
            return Err(Answer::Busy);
        }
        if state.at_once >= limits.requests_at_once.get() {
            return Err(Answer::Busy);
        }
        state.at_once += 1;
        Ok(())
    }

    /// Takes note of a request that no honest client sends: `why` completes "a caller which …".
    pub(crate) fn fault(&self, why: &'static str) {
        self.count_against(FAULT, why);
    }

    fn count_against(&self, points: f64, why: &'static str) {
        let Some(bounds) = &self.bounds else { return };
        let now = now(&bounds.host);
        let mut state = lock(&self.state);
        if bounds.caller == Caller::Unnamed && points >= FAULT {
            // What one of them does is not the others' fault; the rate of all of them is bounded.
            return;
        }
        if state.faults.take_up_to(now, FORGIVEN, PATIENCE, points) {
            return;
        }
        let life = Duration::from_secs(u64::from(lock(&bounds.limits).drop_seconds.get()));
        state.dropped = Some((now + life, why));
        state.faults = Bucket::default();
        bounds.drops.note(now, bounds.caller, why, life);
    }

    /// Whether one more offer may be begun; it counts until what this returns is dropped.
    pub(crate) fn begin_offer(self: &Arc<Self>) -> Option<Preparing> {
        let mut state = lock(&self.state);
        if let Some(bounds) = &self.bounds {
            let limits = *lock(&bounds.limits);
            if state.preparing >= limits.offers_at_once.get() {
                return None;
            }
            let rate = f64::from(limits.offers_per_second.get());
            if !state.offers.take_up_to(now(&bounds.host), rate, rate * 4.0, 1.0) {
                return None;
            }
        }
        state.preparing += 1;
        Some(Preparing { account: Arc::clone(self) })
    }

    /// Up to where the caller has read, in the time of [`super::turns::Turns`].
    pub(super) fn read_until(&self) -> Duration {
        lock(&self.state).read_until
    }

    pub(super) fn set_read_until(&self, until: Duration) {
        lock(&self.state).read_until = until;
    }

    pub(super) fn add_read_time(&self, time: Duration) {
        lock(&self.state).read_until += time;
    }

    /// `None` while it is being worked for.
    fn idle_since(&self) -> Option<Instant> {
        let state = lock(&self.state);
        if state.at_once > 0 || state.preparing > 0 { None } else { state.last_seen }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        lock(&self.account.state).at_once -= 1;
    }
}

impl Drop for Preparing {
    fn drop(&mut self) {
        lock(&self.account.state).preparing -= 1;
    }
}

/// A token bucket. A new one is full.
#[derive(Clone, Copy, Default)]
struct Bucket {
    /// How much is missing.
    missing: f64,
    since: Option<Instant>,
}

impl Bucket {
    /// Takes `tokens` of a bucket that holds two seconds' worth of `rate`, unless that many are missing.
    fn take(&mut self, now: Instant, rate: f64, tokens: f64) -> bool {
        self.take_up_to(now, rate, rate * 2.0, tokens)
    }

    fn take_up_to(&mut self, now: Instant, rate: f64, holds: f64, tokens: f64) -> bool {
        let passed = self.since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64());
        self.missing = (self.missing - passed * rate).max(0.0);
        self.since = Some(now);
        let enough = self.missing + tokens <= holds;
        if enough {
            self.missing += tokens;
        }
        enough
    }
}

/// Callers that were dropped since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropReport {
    /// How many.
    pub count: u64,
    /// Who was the last, as far as that is known.
    pub last_caller: Option<String>,
    /// What it did.
    pub last_reason: Option<String>,
    /// When: seconds since 1970.
    pub last_at: Option<i64>,
}

/// Keeps count of answers and of dropped callers, for those who look after the repository.
#[derive(Default)]
pub struct Drops {
    state: Mutex<(DropReport, Bucket)>,
    answers: Mutex<BTreeMap<&'static str, u64>>,
}

impl Drops {
    /// What there is to tell.
    #[must_use]
    pub fn report(&self) -> DropReport {
        lock(&self.state).0.clone()
    }

    /// The answers that were given, by what they say.
    #[must_use]
    pub fn answers(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.answers).clone()
    }

    pub(super) fn note_answer(&self, answer: &Answer) {
        *lock(&self.answers).entry(answer.name()).or_default() += 1;
    }

    fn note(&self, now: Instant, caller: Caller, why: &'static str, life: Duration) {
        let mut state = lock(&self.state);
        let (report, lines) = &mut *state;
        report.count += 1;
        report.last_caller = Some(caller.to_string());
        report.last_reason = Some(why.to_owned());
        report.last_at = Some(Timestamp::now().as_second());
        if lines.take_up_to(now, LINES.0, LINES.1, 1.0) {
            tracing::warn!(%caller, seconds = life.as_secs(), "dropping a caller, which {why}");
        }
    }
}

/// What the mutexes guard is consistent after every statement, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::protocol::clock::advance;

    fn session(number: u8) -> Caller {
        Caller::Session([number; 16].into())
    }

    fn limits(change: impl FnOnce(&mut Limits)) -> Limits {
        let mut limits = Limits::default();
        change(&mut limits);
        limits
    }

    fn number(value: u32) -> NonZeroU32 {
        NonZeroU32::new(value).unwrap()
    }

    fn gate() -> (Gate, Arc<Drops>) {
        let drops = Arc::new(Drops::default());
        (Gate::new(drops.clone(), Host::default()), drops)
    }

    #[test]
    fn a_fast_link_is_not_slowed_down() {
        let (gate, _) = gate();
        for _ in 0..10 {
            for _ in 0..5000 {
                assert!(gate.enter(session(1), &Limits::default()).is_ok());
            }
            advance(Duration::from_secs(1));
        }
    }

    #[test]
    fn one_caller_over_its_rate_is_told_and_the_others_are_served() {
        let (gate, _) = gate();
        let limits = limits(|limits| limits.requests_per_second = number(10));
        let served = (0..100).filter(|_| gate.enter(session(1), &limits).is_ok()).count();
        assert_eq!(served, 20);
        assert!(matches!(gate.enter(session(1), &limits), Err(Answer::Busy)));
        assert!(gate.enter(session(2), &limits).is_ok());
        advance(Duration::from_millis(150));
        assert!(gate.enter(session(1), &limits).is_ok());
    }

    #[test]
    fn all_together_are_bounded_whatever_they_call_themselves() {
        let (gate, _) = gate();
        let limits = limits(|limits| limits.total_requests_per_second = number(100));
        let served = (0..=255).cycle().take(1000).filter(|caller| gate.enter(session(*caller), &limits).is_ok());
        assert_eq!(served.count(), 200);
    }

    #[test]
    fn requests_at_once_are_bounded() {
        let (gate, _) = gate();
        let limits = limits(|limits| limits.requests_at_once = number(3));
        let held: Vec<Pass> = (0..3).map(|_| gate.enter(session(1), &limits).ok().unwrap()).collect();
        assert!(matches!(gate.enter(session(1), &limits), Err(Answer::Busy)));
        assert!(gate.enter(session(2), &limits).is_ok());
        drop(held);
        assert!(gate.enter(session(1), &limits).is_ok());
    }

    #[test]
    fn offers_are_bounded_in_rate_and_number() {
        let (gate, _) = gate();
        let limits = limits(|limits| {
            limits.offers_per_second = number(2);
            limits.offers_at_once = number(3);
        });
        let account = gate.enter(session(1), &limits).ok().unwrap().account.clone();
        let preparing: Vec<_> = (0..10).map_while(|_| account.begin_offer()).collect();
        assert_eq!(preparing.len(), 3, "at once");
        drop(preparing);
        assert_eq!((0..10).map_while(|_| account.begin_offer().map(drop)).count(), 5, "a burst of four seconds' worth");
        advance(Duration::from_secs(1));
        assert_eq!((0..10).map_while(|_| account.begin_offer().map(drop)).count(), 2);
    }

    #[test]
    fn a_flood_is_dropped_for_a_while() {
        let (gate, drops) = gate();
        let limits = limits(|limits| limits.requests_per_second = number(10));
        let dropped = (0..10_000).find_map(|_| match gate.enter(session(1), &limits) {
            Err(Answer::Refused { reason }) => Some(reason),
            _ => None,
        });
        let reason = dropped.unwrap();
        assert!(reason.contains("sends requests faster than they may come, for 60 s"), "{reason}");
        assert!(gate.enter(session(2), &limits).is_ok(), "the others are served");
        assert_eq!(drops.report().count, 1);
        advance(Duration::from_secs(61));
        assert!(gate.enter(session(1), &limits).is_ok());
    }

    #[test]
    fn a_client_that_heeds_busy_is_never_dropped() {
        let (gate, drops) = gate();
        let limits = limits(|limits| limits.requests_per_second = number(1));
        // 64 in flight, each waiting twice as long after each "busy", up to two seconds.
        for _ in 0..50 {
            for wait in [20, 40, 80, 160, 320, 640, 1280, 2000, 2000, 2000] {
                for _ in 0..64 {
                    let _ = gate.enter(session(1), &limits);
                }
                advance(Duration::from_millis(wait));
            }
        }
        assert_eq!(drops.report().count, 0);
    }

    #[test]
    fn faults_drop_the_session_that_makes_them() {
        let (gate, drops) = gate();
        let limits = Limits::default();
        for caller in [session(1), Caller::Unnamed] {
            for _ in 0..11 {
                if let Ok(pass) = gate.enter(caller, &limits) {
                    pass.account.fault("sends nonsense");
                }
            }
        }
        assert!(matches!(gate.enter(session(1), &limits), Err(Answer::Refused { .. })));
        assert!(gate.enter(Caller::Unnamed, &limits).is_ok(), "what one of the unnamed does is not the others' fault");
        let report = drops.report();
        assert_eq!((report.count, report.last_reason.as_deref()), (1, Some("sends nonsense")));
        let caller = report.last_caller.unwrap();
        assert_eq!(caller, "session 01010101…", "a session's name is a secret");
    }

    #[test]
    fn accounts_are_bounded_and_the_idle_leave_first() {
        let (gate, _) = gate();
        let limits = limits(|limits| limits.callers = number(2));
        let busy = gate.enter(session(1), &limits).ok().unwrap();
        advance(Duration::from_secs(1));
        for other in 2..100 {
            assert!(gate.enter(session(other), &limits).is_ok());
            assert_eq!(lock(&gate.table).strangers.len(), 2);
        }
        assert!(lock(&gate.table).strangers.contains_key(&session(1)), "it is at work");
        let _second = gate.enter(session(2), &limits).ok().unwrap();
        assert!(matches!(gate.enter(session(3), &limits), Err(Answer::Busy)), "all are at work");
        drop(busy);
        assert!(gate.enter(session(3), &limits).is_ok());
    }
}
