use std::fmt;

use super::{BoxFuture, TransportError};

/// Which repository: its record's key without the secret part. Whoever knows it can prove nothing and read nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(pub [u8; 32]);

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VLD0:{}", data_encoding::BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordId({self})")
    }
}

/// A repository and the public key that is said to own its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    /// The repository.
    pub repository: RecordId,
    /// The owner's public key: Ed25519, as Veilid's crypto kind `VLD0` has it.
    pub key: [u8; 32],
}

/// A signature by an owner's key.
pub type SignatureBytes = [u8; 64];

/// Signs in the name of this repository.
pub trait Signer: Send + Sync {
    /// This repository; the first call ever makes its address.
    fn party(&self) -> BoxFuture<'_, Result<Party, TransportError>>;

    /// The signature of this repository's owner over `text`.
    fn sign(&self, text: Vec<u8>) -> BoxFuture<'_, Result<SignatureBytes, TransportError>>;
}

/// Checks what others have signed.
pub trait Verifier: Send + Sync {
    /// Whether `party`'s key owns its repository's record and has made `signature` over `text`. Takes the same work
    /// whatever is wrong.
    fn verify(&self, party: Party, text: Vec<u8>, signature: SignatureBytes) -> BoxFuture<'_, bool>;
}
