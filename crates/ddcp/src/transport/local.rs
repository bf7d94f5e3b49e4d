use std::sync::Arc;

use super::{BoxFuture, Handler, MAX_MESSAGE, Peer, TransportError};

/// A repository on this machine, asked without a network: its handler is called directly.
#[derive(Clone)]
pub struct LocalPeer {
    handler: Arc<dyn Handler>,
}

impl LocalPeer {
    /// A peer that `handler` answers for.
    pub fn new(handler: Arc<dyn Handler>) -> Self {
        Self { handler }
    }
}

impl Peer for LocalPeer {
    fn call(&self, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        Box::pin(async move {
            check_length(&request)?;
            let answer = self.handler.handle(request).await;
            check_length(&answer)?;
            Ok(answer)
        })
    }
}

/// The limit of every transport holds here too, so that what works locally also works over the network.
fn check_length(message: &[u8]) -> Result<(), TransportError> {
    if message.len() > MAX_MESSAGE { Err(TransportError::TooLong(message.len())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with as many bytes as the first two of the request say.
    struct Sized;

    impl Handler for Sized {
        fn handle(&self, request: Vec<u8>) -> BoxFuture<'_, Vec<u8>> {
            let length = usize::from(u16::from_be_bytes([request[0], request[1]]));
            Box::pin(async move { vec![1; length] })
        }

        fn busy(&self) -> Vec<u8> {
            Vec::new()
        }
    }

    #[tokio::test]
    async fn both_ways_are_limited() {
        let peer = LocalPeer::new(Arc::new(Sized));
        assert_eq!(peer.call(vec![0x80, 0]).await.unwrap().len(), MAX_MESSAGE);
        assert!(matches!(peer.call(vec![0x80, 1]).await, Err(TransportError::TooLong(32_769))));
        let mut request = vec![0; MAX_MESSAGE];
        assert!(peer.call(request.clone()).await.unwrap().is_empty());
        request.push(0);
        assert!(matches!(peer.call(request).await, Err(TransportError::TooLong(32_769))));
    }
}
