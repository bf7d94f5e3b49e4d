use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, time::timeout};

use super::super::{Handler, MAX_MESSAGE};

/// Answers calls of peers through a [`Handler`], at once and always.
///
/// A node runs 32 handlers of network messages and an unanswered call occupies one of them for 5 s; when all
/// are occupied the whole node stalls. So fewer calls than that are in the handler's hands at any time, and what
/// comes beyond them, or takes too long, is answered "busy".
pub(super) struct Server {
    handler: Arc<dyn Handler>,
    slots: Arc<Semaphore>,
    patience: Duration,
}

impl Server {
    /// Calls in the handler's hands at a time; the rest of the node's 32 stay free for the network's own needs.
    const SLOTS: usize = 24;
    /// A caller gives up after 5 s; an answer after that is lost.
    const PATIENCE: Duration = Duration::from_secs(4);

    pub(super) fn new(handler: Arc<dyn Handler>) -> Self {
        Self { handler, slots: Arc::new(Semaphore::new(Self::SLOTS)), patience: Self::PATIENCE }
    }

    /// The answer to `request`, at most [`MAX_MESSAGE`] bytes: longer ones would vanish without an error.
    pub(super) async fn answer(&self, request: Vec<u8>) -> Vec<u8> {
        let Some(answer) = self.handle(request).await else {
            return self.handler.busy();
        };
        if answer.len() > MAX_MESSAGE {
            tracing::error!(bytes = answer.len(), "an answer is too long to send; the peer is told to ask again");
            return self.handler.busy();
        }
        answer
    }

    /// The handler's answer, unless it has too much to do, takes too long or panics.
    async fn handle(&self, request: Vec<u8>) -> Option<Vec<u8>> {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            tracing::debug!("too many calls at a time; answering busy");
            return None;
        };
        let handler = Arc::clone(&self.handler);
        // A task of its own, so that a panic in the handler leaves no caller without an answer.
        let task = tokio::spawn(async move {
            let answer = handler.handle(request).await;
            drop(slot);
            answer
        });
        let aborter = task.abort_handle();
        match timeout(self.patience, task).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                tracing::error!(%error, "handling a call failed");
                None
            }
            Err(_) => {
                aborter.abort();
                tracing::error!("handling a call took too long; the peer is told to ask again");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::BoxFuture;
    use std::future::pending;

    struct Script;

    impl Handler for Script {
        fn handle(&self, request: Vec<u8>) -> BoxFuture<'_, Vec<u8>> {
            Box::pin(async move {
                match request.as_slice() {
                    b"hang" => pending().await,
                    b"panic" => panic!("as asked"),
                    b"long" => vec![0; MAX_MESSAGE + 1],
                    _ => request,
                }
            })
        }

        fn busy(&self) -> Vec<u8> {
            b"busy".to_vec()
        }
    }

    fn server() -> Arc<Server> {
        Arc::new(Server { patience: Duration::from_millis(500), ..Server::new(Arc::new(Script)) })
    }

    #[tokio::test]
    async fn every_call_is_answered() {
        let server = server();
        for (request, answer) in [("hello", "hello"), ("long", "busy"), ("panic", "busy"), ("hang", "busy")] {
            assert_eq!(server.answer(request.into()).await, answer.as_bytes(), "{request}");
        }
        let all = u32::try_from(Server::SLOTS).unwrap();
        let freed = timeout(Duration::from_secs(10), server.slots.acquire_many(all)).await;
        assert!(freed.is_ok(), "ended calls free their slots");
    }

    #[tokio::test]
    async fn beyond_the_limit_the_answer_is_busy_at_once() {
        let server = server();
        let hanging: Vec<_> = (0..Server::SLOTS)
            .map(|_| {
                let server = Arc::clone(&server);
                tokio::spawn(async move { server.answer(b"hang".to_vec()).await })
            })
            .collect();
        while server.slots.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(server.answer(b"hello".to_vec()).await, b"busy");
        assert!(hanging.iter().all(|call| !call.is_finished()), "it was answered before the others");
        for call in hanging {
            assert_eq!(call.await.unwrap(), b"busy");
        }
        assert_eq!(server.answer(b"hello".to_vec()).await, b"hello");
    }
}
