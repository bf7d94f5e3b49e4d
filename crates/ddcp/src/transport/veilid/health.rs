use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Whether this node still reaches others, judged by what it tried: answered calls and forced reads.
/// Answers of the library alone prove nothing, since a node that was cut off does not know it.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last_success: Option<Instant>,
    /// The first failure since the last success.
    failing_since: Option<Instant>,
}

impl Health {
    /// Another node answered.
    pub(super) fn success(&self) {
        let mut state = self.state();
        state.last_success = Some(Instant::now());
        state.failing_since = None;
    }

    /// Something that needs another node's answer failed.
    pub(super) fn failure(&self) {
        self.state().failing_since.get_or_insert_with(Instant::now);
    }

    /// How long nothing has succeeded although something was tried.
    pub(super) fn failing_for(&self) -> Option<Duration> {
        self.state().failing_since.map(|since| since.elapsed())
    }

    /// Whether anything succeeded after `moment`.
    pub(super) fn succeeded_since(&self, moment: Instant) -> bool {
        self.state().last_success.is_some_and(|last| last > moment)
    }

    /// Forgets failures, after the node was attached anew.
    pub(super) fn forgive(&self) {
        self.state().failing_since = None;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_success_ends_a_run_of_failures() {
        let health = Health::default();
        let start = Instant::now();
        assert!(health.failing_for().is_none() && !health.succeeded_since(start));
        health.failure();
        let first = health.failing_for().unwrap();
        health.failure();
        assert!(health.failing_for().unwrap() >= first, "the first failure counts");
        health.success();
        assert!(health.failing_for().is_none() && health.succeeded_since(start));
    }
}
