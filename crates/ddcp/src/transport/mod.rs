//! How request and answer get from one repository to another: byte messages of at most
//! [`MAX_MESSAGE`] bytes. A transport knows nothing of SQL or of what the bytes mean.

mod address;
mod local;
mod peer;
pub mod veilid;

pub use address::{Address, AddressError};
pub use local::LocalPeer;
pub use peer::{BoxFuture, Handler, MAX_MESSAGE, Peer, TransportError};
