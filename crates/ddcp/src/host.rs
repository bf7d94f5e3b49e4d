//! What [`protocol`](crate::protocol) and [`repo`](crate::repo) take from the machine they run on: time, chance, tasks,
//! and threads that may block. A simulation puts a [`Machine`] of its own in place of the real one.

use std::{
    fmt,
    future::Future,
    ops::Range,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, Either, select};
use tokio::sync::oneshot;

/// What a [`Host`] is made of.
pub trait Machine: Send + Sync {
    /// A clock that never goes back.
    fn now(&self) -> Instant;

    /// Is ready after `pause`.
    fn sleep(&self, pause: Duration) -> BoxFuture<'static, ()>;

    /// Any number, of equal chance; outside a simulation one that nobody can guess.
    fn random(&self) -> u64;

    /// Runs `task` beside the caller, to its end or to that of the machine.
    fn spawn(&self, task: BoxFuture<'static, ()>);

    /// Runs `work`, which may block, where it holds up no task.
    fn block(&self, work: Box<dyn FnOnce() + Send>);
}

/// The machine that the program runs on. Cheap to clone; by default the real one, with Tokio's clock and threads.
#[derive(Clone)]
pub struct Host(Arc<dyn Machine>);

impl Host {
    /// A host that is made of `machine`.
    pub fn new(machine: impl Machine + 'static) -> Self {
        Self(Arc::new(machine))
    }

    pub(crate) fn now(&self) -> Instant {
        self.0.now()
    }

    pub(crate) fn since(&self, then: Instant) -> Duration {
        self.now().saturating_duration_since(then)
    }

    pub(crate) async fn sleep(&self, pause: Duration) {
        self.0.sleep(pause).await;
    }

    /// What `work` gives; `None` if it takes longer than `limit`.
    pub(crate) async fn timeout<F: Future>(&self, limit: Duration, work: F) -> Option<F::Output> {
        match select(pin!(work), self.0.sleep(limit)).await {
            Either::Left((output, _)) => Some(output),
            Either::Right(_) => None,
        }
    }

    pub(crate) fn random(&self) -> u64 {
        self.0.random()
    }

    /// 16 bytes that nobody else has.
    pub(crate) fn random_bytes(&self) -> [u8; 16] {
        (u128::from(self.random()) << 64 | u128::from(self.random())).to_le_bytes()
    }

    /// `pause` times any number in `range`, so that many clients do not come back at once.
    pub(crate) fn vary(&self, pause: Duration, range: &Range<f64>) -> Duration {
        let fraction = (self.random() >> 11) as f64 / (1_u64 << 53) as f64;
        pause.mul_f64(range.start + (range.end - range.start) * fraction)
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(Box::pin(task));
    }

    /// Runs `work` where it may block. It goes on when the caller is gone; `None` if it did not come to its end: it
    /// panicked, or the machine is going down.
    pub(crate) async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = oneshot::channel();
        self.0.block(Box::new(move || drop(done.send(work()))));
        result.await.ok()
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new(Tokio)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Host")
    }
}

/// The real machine.
struct Tokio;

impl Machine for Tokio {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep(&self, pause: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(pause))
    }

    fn random(&self) -> u64 {
        rand::random()
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn block(&self, work: Box<dyn FnOnce() + Send>) {
        tokio::task::spawn_blocking(work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_takes_too_long_is_given_up() {
        let host = Host::default();
        let endless = std::future::pending::<()>();
        assert_eq!(host.timeout(Duration::from_millis(1), endless).await, None);
        assert_eq!(host.timeout(Duration::from_secs(60), async { 7 }).await, Some(7));
    }

    #[tokio::test]
    async fn work_that_panics_has_no_result() {
        let host = Host::default();
        assert_eq!(host.blocking(|| 7).await, Some(7));
        let panics = || -> u8 { panic!("on purpose") };
        assert_eq!(host.blocking(panics).await, None);
    }

    #[test]
    fn pauses_vary_within_their_range() {
        let host = Host::default();
        for _ in 0..100 {
            let pause = host.vary(Duration::from_secs(1), &(0.75..1.25));
            assert!((0.75..1.25).contains(&pause.as_secs_f64()), "{pause:?}");
        }
    }
}
