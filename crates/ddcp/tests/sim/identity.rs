//! Who sites are on a network whose addresses are records: as with Veilid, but that signatures are keyed hashes, and that
//! there is somebody who knows all keys.

use data_encoding::BASE64URL_NOPAD;
use ddcp::transport::{BoxFuture, Party, RecordId, SignatureBytes, Signer, TransportError, Verifier};

/// More sites than any history has.
const MOST_SITES: usize = 32;

/// The owner of a site's record.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    secret: [u8; 32],
    pub(crate) party: Party,
}

impl Owner {
    /// The owner of the record of the site `index`.
    pub(crate) fn of(index: usize) -> Self {
        assert!(index < MOST_SITES, "site {index}");
        let secret = hash(&index.to_le_bytes());
        let key = hash(&secret);
        Self { secret, party: Party { repository: RecordId(hash(&key)), key } }
    }

    /// The address of its site.
    pub(crate) fn address(&self) -> String {
        let [record, secret] = [&self.party.repository.0, &self.secret].map(|bytes| BASE64URL_NOPAD.encode(bytes));
        format!("VLD0:{record}:{secret}")
    }

    fn sign(&self, text: &[u8]) -> SignatureBytes {
        let mut signature = [0; 64];
        blake3::Hasher::new_keyed(&self.secret).update(text).finalize_xof().fill(&mut signature);
        signature
    }
}

impl Signer for Owner {
    fn party(&self) -> BoxFuture<'_, Result<Party, TransportError>> {
        Box::pin(async { Ok(self.party) })
    }

    fn sign(&self, text: Vec<u8>) -> BoxFuture<'_, Result<SignatureBytes, TransportError>> {
        Box::pin(async move { Ok(Owner::sign(self, &text)) })
    }
}

/// Knows all keys.
pub(crate) struct Keys;

impl Verifier for Keys {
    fn verify(&self, party: Party, text: Vec<u8>, signature: SignatureBytes) -> BoxFuture<'_, bool> {
        let owner = (0..MOST_SITES).map(Owner::of).find(|owner| owner.party == party);
        Box::pin(async move { owner.is_some_and(|owner| owner.sign(&text) == signature) })
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}
