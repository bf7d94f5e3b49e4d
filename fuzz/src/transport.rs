//! The part of `ddcp`'s transport that needs no Veilid, and an address that is any text.

use std::{convert::Infallible, fmt, str::FromStr};

#[path = "../../crates/ddcp/src/transport/identity.rs"]
mod identity;
#[path = "../../crates/ddcp/src/transport/local.rs"]
mod local;
#[path = "../../crates/ddcp/src/transport/peer.rs"]
mod peer;

pub use identity::{Party, RecordId, SignatureBytes, Signer, Verifier};
pub use local::LocalPeer;
pub use peer::{BoxFuture, Handler, MAX_MESSAGE, Peer, TransportError};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(String);

pub type AddressError = Infallible;

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
