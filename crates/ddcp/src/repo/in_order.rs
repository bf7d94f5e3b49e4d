//! Work on one remote after the other, unless one takes long.

use std::{future::Future, pin::pin, time::Duration};

use futures_util::{
    FutureExt, StreamExt,
    future::{Either, select},
    stream::FuturesUnordered,
};

use crate::host::Host;

/// After so long the next is begun, though the one before has not ended.
const HEAD_START: Duration = Duration::from_secs(10);

/// What becomes of all `works`, in their order. Each is begun when the one before has ended, or has had its head start: one
/// that takes long, or for ever, holds up none of the others.
pub(super) async fn in_order<F: Future>(host: &Host, works: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    with_head_start(host, HEAD_START, works).await
}

async fn with_head_start<F: Future>(host: &Host, most: Duration, works: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let (mut ended, mut running) = (Vec::new(), FuturesUnordered::new());
    for (place, work) in works.into_iter().enumerate() {
        running.push(work.map(move |output| (place, output)));
        let mut head_start = pin!(host.sleep(most));
        while !ended.iter().any(|(other, _)| *other == place) {
            match select(running.next(), head_start.as_mut()).await {
                Either::Left((output, _)) => ended.extend(output),
                Either::Right(_) => break,
            }
        }
    }
    ended.extend(running.collect::<Vec<_>>().await);
    ended.sort_by_key(|(place, _)| *place);
    ended.into_iter().map(|(_, output)| output).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::{sync::Notify, task::yield_now};

    use super::*;

    /// Three works, of which the first ends when the last has begun; who begins and ends when, with this head start.
    async fn log(most: Duration) -> Vec<String> {
        let (log, released) = (Mutex::new(Vec::new()), Notify::new());
        let work = |number: u32| {
            let (log, released) = (&log, &released);
            async move {
                log.lock().unwrap().push(format!("{number} begins"));
                match number {
                    1 => released.notified().await,
                    2 => yield_now().await,
                    _ => released.notify_one(),
                }
                log.lock().unwrap().push(format!("{number} ends"));
                number
            }
        };
        assert_eq!(with_head_start(&Host::default(), most, (1..=3).map(work)).await, [1, 2, 3]);
        log.into_inner().unwrap()
    }

    #[tokio::test]
    async fn one_that_takes_long_holds_up_none_and_the_others_wait_for_each_other() {
        let expected = ["1 begins", "2 begins", "2 ends", "3 begins", "3 ends", "1 ends"];
        assert_eq!(log(Duration::from_millis(50)).await, expected);
        let stuck = tokio::time::timeout(Duration::from_millis(200), log(Duration::from_secs(60))).await;
        assert!(stuck.is_err(), "without a head start that ends, the first is waited for");
    }
}
