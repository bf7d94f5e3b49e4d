//! What the key that owns a repository's record signs, and has signed, where no node runs: as Veilid's crypto kind `VLD0`
//! does, Ed25519ph with a context.

use std::path::Path;

use ed25519_dalek::{Digest, Sha512, Signature, SigningKey, VerifyingKey};

use super::identity;
use crate::transport::{Party, RecordId, SignatureBytes, TransportError};

/// The context of all signatures of the kind.
const CONTEXT: &[u8] = b"VLD0_SIGN";

/// What the key of a record is hashed with, besides the record's schema.
const KIND: &[u8] = b"VLD0";

/// The key that owns this repository's record.
pub struct OwnerKey {
    party: Party,
    key: SigningKey,
}

impl OwnerKey {
    /// That of the repository whose node lives in `dir`, if it has one already.
    ///
    /// # Errors
    /// [`TransportError::Store`] if it cannot be read, [`TransportError::Other`] if it is damaged.
    pub fn stored(dir: &Path) -> Result<Option<Self>, TransportError> {
        let Some(identity) = identity::load(dir)? else { return Ok(None) };
        let damaged = || TransportError::Other("this repository's identity is damaged".to_owned());
        let party = identity::party(&identity)?;
        let secret = identity.owner.secret().value().as_ref().try_into().map_err(|_| damaged())?;
        let key = SigningKey::from_bytes(&secret);
        let is_one = key.verifying_key().to_bytes() == party.key && record_of(&party.key) == Some(party.repository);
        if is_one { Ok(Some(Self { party, key })) } else { Err(damaged()) }
    }

    /// Whose key it is.
    #[must_use]
    pub fn party(&self) -> Party {
        self.party
    }

    /// The signature over `text`.
    ///
    /// # Errors
    /// [`TransportError::Other`]
    pub fn sign(&self, text: &[u8]) -> Result<SignatureBytes, TransportError> {
        let signature = self.key.sign_prehashed(Sha512::new_with_prefix(text), Some(CONTEXT));
        signature.map(|signature| signature.to_bytes()).map_err(|error| TransportError::Other(error.to_string()))
    }
}

/// Whether `party`'s key owns its repository's record and has made `signature` over `text`.
#[must_use]
pub fn has_signed(party: &Party, text: &[u8], signature: &SignatureBytes) -> bool {
    let Ok(key) = VerifyingKey::from_bytes(&party.key) else { return false };
    let signature = Signature::from_bytes(signature);
    record_of(&party.key) == Some(party.repository)
        && key.verify_prehashed_strict(Sha512::new_with_prefix(text), Some(CONTEXT), &signature).is_ok()
}

/// The record that `key` owns: the key and the schema determine it.
fn record_of(key: &[u8; 32]) -> Option<RecordId> {
    let schema = identity::schema().ok()?.compile();
    let hash = blake3::Hasher::new().update(KIND).update(key).update(&schema).finalize();
    Some(RecordId(*hash.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(seed: u8) -> OwnerKey {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let public = key.verifying_key().to_bytes();
        OwnerKey { party: Party { repository: record_of(&public).unwrap(), key: public }, key }
    }

    #[test]
    fn a_signature_is_of_one_text_by_the_key_of_one_record() {
        let (one, other) = (owner(1), owner(2));
        let signature = one.sign(b"a text").unwrap();
        assert!(has_signed(&one.party(), b"a text", &signature));
        assert!(!has_signed(&one.party(), b"another text", &signature));
        assert!(!has_signed(&other.party(), b"a text", &signature));
        assert!(!has_signed(&one.party(), b"a text", &[0; 64]));
        let claimed = Party { repository: other.party().repository, ..one.party() };
        assert!(!has_signed(&claimed, b"a text", &signature), "a good signature, for somebody else's record");
        for key in [[0; 32], [0xff; 32], [1; 32]] {
            assert!(!has_signed(&Party { key, ..one.party() }, b"a text", &signature), "{key:?}");
        }
    }

    #[test]
    fn an_identity_that_is_none_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(OwnerKey::stored(dir.path()).unwrap().is_none());
        let text = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
        let identity = format!("address = \"VLD0:{text}:{text}\"\nowner = \"VLD0:{text}:{text}\"\n");
        std::fs::write(dir.path().join("identity.toml"), identity).unwrap();
        assert!(matches!(OwnerKey::stored(dir.path()), Err(TransportError::Other(_))));
    }
}
