use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep};
use veilid_core::VeilidAPIError;

use super::{super::TransportError, backoff::Backoff};

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
pub(super) fn is_transient(error: &VeilidAPIError) -> bool {
    matches!(error, VeilidAPIError::TryAgain { .. } | VeilidAPIError::NoConnection { .. } | VeilidAPIError::Timeout)
}

/// Repeats `operation` with growing pauses while it fails for a passing reason, until `deadline`.
pub(super) async fn retry<T, F>(deadline: Instant, mut operation: impl FnMut() -> F) -> Result<T, VeilidAPIError>
where
    F: Future<Output = Result<T, VeilidAPIError>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        let error = match operation().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let pause = backoff.step();
        if !is_transient(&error) || Instant::now() + pause >= deadline {
            return Err(error);
        }
        tracing::debug!(%error, "trying again");
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn passing_failures_are_repeated_and_lasting_ones_are_not() {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut left = 3;
        let result = retry(deadline, || {
            left -= 1;
            let outcome = if left == 0 { Ok(7) } else { Err(VeilidAPIError::try_again("not yet")) };
            async move { outcome }
        });
        assert_eq!(result.await, Ok(7));

        let mut calls = 0;
        let result: Result<(), _> = retry(deadline, || {
            calls += 1;
            async { Err(VeilidAPIError::generic("no")) }
        })
        .await;
        assert!(result.is_err());
        assert_eq!(calls, 1);
    }

    #[tokio::test]
    async fn the_deadline_ends_it() {
        let started = Instant::now();
        let result: Result<(), _> =
            retry(started + Duration::from_millis(400), || async { Err(VeilidAPIError::Timeout) }).await;
        assert!(matches!(result, Err(VeilidAPIError::Timeout)));
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
