//! Telling a remote at once that there is something new here, in case it follows this repository.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    Error,
    backoff::Backoff,
    protocol::ClientError,
    repo::{Hinter, Repository},
    transport::{Address, RecordId},
};

/// A hint that takes longer is of no use: the remote hears of the change by its watch.
const LIMIT: Duration = Duration::from_secs(5);
/// Pauses after hints that got no answer grow between these.
const UNREACHED: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(5 * 60));
/// And these, for a remote that does not know hints or does not know this repository.
const UNWANTED: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(60 * 60));

/// Hints `remote` at `address` whenever something new is announced, one hint at a time: what is announced meanwhile
/// is told together.
pub(super) async fn hint(
    repository: Repository,
    address: Address,
    remote: RecordId,
    mut announced: watch::Receiver<Vec<u8>>,
) {
    let new = |(first, longest)| Backoff::new(first, longest);
    let (mut unreached, mut unwanted) = (new(UNREACHED), new(UNWANTED));
    let mut hinter = None;
    while announced.changed().await.is_ok() {
        let pause = match send(&repository, &address, remote, &mut hinter).await {
            Ok(()) => {
                (unreached, unwanted) = (new(UNREACHED), new(UNWANTED));
                continue;
            }
            Err(Some(error)) if is_unwanted(&error) => {
                tracing::debug!(%remote, %error, "a hint is not wanted");
                unwanted.step()
            }
            Err(error) => {
                let error = error.map_or_else(|| "no answer in time".to_owned(), |error| error.to_string());
                tracing::debug!(%remote, error, "a hint did not arrive");
                unreached.step()
            }
        };
        sleep(pause).await;
    }
}

/// Sends one hint; `None` as the error if there was no answer in time.
async fn send(
    repository: &Repository,
    address: &Address,
    remote: RecordId,
    hinter: &mut Option<Hinter>,
) -> Result<(), Option<Error>> {
    let hinter = match hinter {
        Some(hinter) => hinter,
        None => hinter.insert(repository.hinter(address, remote).await.map_err(Some)?),
    };
    timeout(LIMIT, hinter.hint()).await.map_err(|_| None)?.map_err(Some)
}

fn is_unwanted(error: &Error) -> bool {
    let Error::Remote(error) = error else { return false };
    matches!(
        error,
        ClientError::NotKnown | ClientError::Refused(_) | ClientError::Protocol(_) | ClientError::NotAuthorised
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::TransportError;

    #[test]
    fn a_peer_that_knows_no_hints_is_left_alone_and_one_out_of_reach_is_not() {
        for unwanted in [ClientError::NotKnown, ClientError::Refused("no".into()), ClientError::NotAuthorised] {
            assert!(is_unwanted(&Error::Remote(unwanted)));
        }
        let unreachable = ClientError::Transport(TransportError::Unreachable("it is silent".into()));
        assert!(!is_unwanted(&Error::Remote(unreachable)));
    }
}
