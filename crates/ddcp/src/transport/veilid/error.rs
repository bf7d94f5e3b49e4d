use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use veilid_core::{VeilidAPIError, VeilidAPIResult};

use super::super::{BoxFuture, TransportError};
use crate::backoff::Backoff;

/// What the library reports, in our terms.
pub(super) fn transport_error(error: VeilidAPIError) -> TransportError {
    match error {
        VeilidAPIError::KeyNotFound { .. } => TransportError::NotFound,
        VeilidAPIError::NotInitialized | VeilidAPIError::Shutdown => {
            TransportError::Offline("the node has been shut down".to_owned())
        }
        VeilidAPIError::Timeout => TransportError::Offline("the network did not answer in time".to_owned()),
        VeilidAPIError::TryAgain { message } | VeilidAPIError::NoConnection { message } => {
            TransportError::Offline(message)
        }
        other => TransportError::Other(other.to_string()),
    }
}

/// Whether the same operation may succeed a moment later.
fn is_transient(error: &VeilidAPIError) -> bool {
    matches!(error, VeilidAPIError::TryAgain { .. } | VeilidAPIError::NoConnection { .. } | VeilidAPIError::Timeout)
}

/// Repeats `operation` while it fails for a passing reason or does not end, until `deadline`. Between attempts
/// `recover` is run, followed by growing pauses. The first attempt is given up after `patience`; later ones may
/// take their time, since only an attempt that is waited for can show that there is nothing to be found.
pub(super) async fn retry<'a, T>(
    deadline: Instant,
    patience: Duration,
    mut operation: impl FnMut() -> BoxFuture<'a, VeilidAPIResult<T>>,
    mut recover: impl FnMut() -> BoxFuture<'a, ()>,
) -> VeilidAPIResult<T> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut limit = deadline.min(Instant::now() + patience);
    loop {
        let error = match timeout_at(limit, operation()).await.unwrap_or(Err(VeilidAPIError::Timeout)) {
            Err(error) if is_transient(&error) => error,
            lasting => return lasting,
        };
        let pause = backoff.step();
        if Instant::now() + pause >= deadline {
            return Err(error);
        }
        tracing::debug!(%error, "trying again");
        let _ = timeout_at(deadline, recover()).await;
        sleep(pause).await;
        limit = deadline;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// What an attempt does in these tests.
    #[derive(Clone, Copy)]
    enum Attempt {
        Hangs,
        Passes(u8),
        FailsForNow,
        FailsForGood,
    }

    /// The outcome of attempts as in `script`, with how many were made and how often recovery was tried.
    async fn run(script: &[Attempt], seconds: u64) -> (VeilidAPIResult<u8>, usize, usize) {
        let (attempts, recoveries) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let outcome = retry(
            Instant::now() + Duration::from_secs(seconds),
            Duration::from_millis(50),
            || {
                let attempt = script[attempts.fetch_add(1, Ordering::Relaxed).min(script.len() - 1)];
                Box::pin(async move {
                    match attempt {
                        Attempt::Hangs => std::future::pending().await,
                        Attempt::Passes(value) => Ok(value),
                        Attempt::FailsForNow => Err(VeilidAPIError::try_again("not yet")),
                        Attempt::FailsForGood => Err(VeilidAPIError::generic("no")),
                    }
                })
            },
            || {
                recoveries.fetch_add(1, Ordering::Relaxed);
                Box::pin(std::future::ready(()))
            },
        )
        .await;
        (outcome, attempts.into_inner(), recoveries.into_inner())
    }

    #[tokio::test]
    async fn passing_failures_are_repeated_and_lasting_ones_are_not() {
        use Attempt::{FailsForGood, FailsForNow, Passes};
        assert_eq!(run(&[FailsForNow, FailsForNow, Passes(7)], 60).await, (Ok(7), 3, 2));
        let (outcome, attempts, recoveries) = run(&[FailsForGood], 60).await;
        assert!(outcome.is_err());
        assert_eq!((attempts, recoveries), (1, 0));
    }

    #[tokio::test]
    async fn an_attempt_without_end_is_given_up_soon() {
        assert_eq!(run(&[Attempt::Hangs, Attempt::Passes(7)], 3600).await, (Ok(7), 2, 1));
    }

    #[tokio::test]
    async fn the_deadline_ends_it() {
        for attempt in [Attempt::Hangs, Attempt::FailsForNow] {
            let (outcome, ..) = run(&[attempt], 1).await;
            assert!(outcome.is_err_and(|error| is_transient(&error)));
        }
    }
}
