use std::{future::Future, pin::Pin};

/// The largest request or answer in bytes: what one Veilid `app_call` carries.
pub const MAX_MESSAGE: usize = 32 * 1024;

/// A boxed future, for the traits below that are used as trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One peer that answers requests. Calls may be made concurrently; answers may arrive in any order.
pub trait Peer: Send + Sync {
    /// Sends `request` (at most [`MAX_MESSAGE`] bytes) and waits for the answer.
    fn call(&self, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>>;
}

/// What answers requests of peers.
pub trait Handler: Send + Sync + 'static {
    /// The answer (at most [`MAX_MESSAGE`] bytes), within milliseconds: longer work is a job of the handler's
    /// own, and the answer says "working, ask again".
    fn handle(&self, request: Vec<u8>) -> BoxFuture<'_, Vec<u8>>;

    /// The answer when too many requests are being handled already.
    fn busy(&self) -> Vec<u8>;
}

/// Why a peer could not be reached, for people.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Nothing is known on the network under this address (mistyped, or its owner never came online).
    #[error("nothing is published under this address")]
    NotFound,
    /// The record exists but cannot be read with this address: its secret part is missing or wrong.
    #[error("what is published under this address cannot be read with it: its secret part is missing or wrong")]
    Unreadable,
    /// What the network gives for this address is older than what it gave before.
    #[error("the network gives an older status of it than before: somebody replays it, or nodes are behind")]
    Replayed,
    /// The address is known, but nobody answers.
    #[error("the peer does not answer ({0})")]
    Unreachable(String),
    /// This machine's own node is not connected.
    #[error("this node is not connected to the network ({0})")]
    Offline(String),
    /// Another process uses the node's stores.
    #[error("another process is running a node in {0}")]
    InUse(std::path::PathBuf),
    /// A message over [`MAX_MESSAGE`] bytes.
    #[error("a message of {0} bytes is too long to send")]
    TooLong(usize),
    /// The node's own files could not be used.
    #[error("{path}: {reason}")]
    Store {
        /// The file or folder.
        path: std::path::PathBuf,
        /// What was wrong with it.
        reason: String,
    },
    /// Anything else the network library reports.
    #[error("{0}")]
    Other(String),
}

impl TransportError {
    /// Whether the same call may succeed later: the way to the peer is broken, or its program is not running.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Offline(_))
    }
}
