//! How request and answer get from one repository to another: byte messages of at most
//! [`MAX_MESSAGE`] bytes. A transport knows nothing of SQL or of what the bytes mean.

mod address;
mod connector;
mod identity;
mod local;
mod peer;
#[doc(hidden)]
pub mod veilid;

pub use address::{Address, AddressError};
pub use connector::Connector;
pub use identity::{Party, RecordId, SignatureBytes, Signer, Verifier};
pub use local::LocalPeer;
pub use peer::{BoxFuture, Handler, MAX_MESSAGE, Peer, TransportError};
