use std::sync::Arc;

use super::{Address, BoxFuture, Peer, TransportError};

/// Finds the peer at an address: what an application implements that carries requests over a transport of its own, and
/// gives to [`Options`](crate::repo::Options).
pub trait Connector: Send + Sync {
    /// Somebody who answers for the repository at `address`. Need not ask the network: that the peer cannot be
    /// reached may also show in the first call.
    fn connect(&self, address: &Address) -> BoxFuture<'_, Result<Arc<dyn Peer>, TransportError>>;
}
