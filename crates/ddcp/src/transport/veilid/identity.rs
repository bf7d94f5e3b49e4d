use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use veilid_core::{
    BarePublicKey, CRYPTO_KIND_VLD0, DHTSchema, KeyPair, PublicKey, RecordKey, VeilidAPI, VeilidAPIResult,
};

use super::{
    super::{Party, TransportError, address::repository_of},
    error::transport_error,
    record::SUBKEYS,
};
use crate::files;

const FILE: &str = "identity.toml";
const HEADER: &str = "\
# The address of this repository and the key pair that owns it. Whoever has the owner key can publish in its
# place; without it the address is lost. Keep this file secret and keep a copy of it.
";

/// A repository's address and the key pair that may publish under it. Kept in our own file: Veilid's stores
/// can then be lost without losing the address.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    pub(super) address: RecordKey,
    pub(super) owner: KeyPair,
}

/// The address of the repository whose node lives in `dir`, if it has one already. Needs no node.
///
/// # Errors
/// [`TransportError::Store`] if the file exists and cannot be read.
pub fn stored_address(dir: &Path) -> Result<Option<RecordKey>, TransportError> {
    Ok(load(dir)?.map(|identity| identity.address))
}

/// The stored identity, if there is one.
pub(super) fn load(dir: &Path) -> Result<Option<Identity>, TransportError> {
    let path = dir.join(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TransportError::Store { path, reason: error.to_string() }),
    };
    // The parser's message quotes the line, which may be the secret key's.
    toml::from_str(&text).map(Some).map_err(|error| TransportError::Store {
        path,
        reason: format!("the file is damaged ({}); restore it from a copy", error.message()),
    })
}

/// Stores `identity`, for ever.
pub(super) fn save(dir: &Path, identity: &Identity) -> Result<(), TransportError> {
    let path = dir.join(FILE);
    let store_error = |path: PathBuf, reason: String| TransportError::Store { path, reason };
    let text = toml::to_string(identity).map_err(|error| store_error(path.clone(), error.to_string()))?;
    files::replace(&path, format!("{HEADER}{text}").as_bytes()).map_err(|error| store_error(path, error.to_string()))
}

/// The schema of every repository's record.
pub(super) fn schema() -> VeilidAPIResult<DHTSchema> {
    DHTSchema::dflt(SUBKEYS)
}

/// Makes a new owner key and record. The record is local and open; it becomes visible with its first value.
pub(super) async fn create(api: &VeilidAPI) -> VeilidAPIResult<Identity> {
    let descriptor = api.routing_context()?.create_dht_record(CRYPTO_KIND_VLD0, schema()?, None).await?;
    let owner = descriptor
        .owner_keypair()
        .ok_or_else(|| veilid_core::VeilidAPIError::internal("a created record has no owner key"))?;
    Ok(Identity { address: descriptor.key(), owner })
}

/// Checks that address and owner of a stored identity belong together.
pub(super) async fn check(api: &VeilidAPI, dir: &Path, identity: &Identity) -> Result<(), TransportError> {
    let secret = identity.address.encryption_key();
    let derived = match schema() {
        Ok(schema) => api.get_dht_record_key(schema, identity.owner.key(), secret).await,
        Err(error) => Err(error),
    };
    match derived.map_err(transport_error)? {
        address if address == identity.address => Ok(()),
        _ => Err(TransportError::Store {
            path: dir.join(FILE),
            reason: "its address and its owner key do not belong together; restore it from a copy".to_owned(),
        }),
    }
}

/// Whether `party`'s key owns its record: the key determines the record. Needs no network.
pub(super) async fn is_owner(api: &VeilidAPI, party: &Party) -> bool {
    let Ok(schema) = schema() else { return false };
    let derived = api.get_dht_record_key(schema, public_key(party), None).await;
    derived.ok().as_ref().and_then(repository_of) == Some(party.repository)
}

/// The owner key that `party` names.
pub(super) fn public_key(party: &Party) -> PublicKey {
    PublicKey::new(CRYPTO_KIND_VLD0, BarePublicKey::new(&party.key))
}

/// The identity as others see it.
pub(super) fn party(identity: &Identity) -> Result<Party, TransportError> {
    let damaged = || TransportError::Other("this repository's identity is damaged".to_owned());
    let repository = repository_of(&identity.address).ok_or_else(damaged)?;
    let key = identity.owner.key().value().as_ref().try_into().map_err(|_| damaged())?;
    Ok(Party { repository, key })
}

/// Opens the own record for writing.
///
/// If Veilid's stores were lost and the network does not have the record either, it is made again: the owner
/// key and the schema determine the record, and opening it with the stored address restores the read secret.
pub(super) async fn open(api: &VeilidAPI, identity: &Identity) -> VeilidAPIResult<()> {
    let context = api.routing_context()?;
    let owner = || Some(identity.owner.clone());
    let Err(error) = context.open_dht_record(identity.address.clone(), owner(), None).await else {
        return Ok(());
    };
    tracing::info!(%error, "the own record is not in the node's store; making it again");
    let _ = context.create_dht_record(CRYPTO_KIND_VLD0, schema()?, owner()).await?;
    let _ = context.open_dht_record(identity.address.clone(), owner(), None).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::NetworkConfig,
        transport::{
            RecordId, Signer, Verifier,
            veilid::{Node, NodeOptions, OwnerKey, has_signed},
        },
    };
    use std::str::FromStr;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    fn identity() -> Identity {
        Identity {
            address: RecordKey::from_str(&format!("VLD0:{KEY}:{KEY}")).unwrap(),
            owner: KeyPair::from_str(&format!("VLD0:{KEY}:{KEY}")).unwrap(),
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(stored_address(dir.path()).unwrap(), None);
        save(dir.path(), &identity()).unwrap();
        let loaded = load(dir.path()).unwrap().unwrap();
        assert_eq!((loaded.address, loaded.owner), (identity().address, identity().owner));
        assert_eq!(stored_address(dir.path()).unwrap(), Some(identity().address));
    }

    #[test]
    fn damage_is_reported_without_secrets() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), format!("address = 'VLD0:x'\nowner = 'VLD0:{KEY}:{KEY}").as_bytes()).unwrap();
        let error = stored_address(dir.path()).unwrap_err().to_string();
        assert!(error.contains(FILE) && error.contains("damaged"), "{error}");
        assert!(!error.contains(KEY), "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_owns_its_own_record_only() {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let network = NetworkConfig {
            key: "nobody else's".to_owned(),
            listen: Some(format!("127.0.0.1:{port}")),
            ..NetworkConfig::default()
        };
        let options = NodeOptions { dir: dir.path().to_owned(), network: Some(network), lasting: false, upnp: false };
        let node = Box::pin(Node::start(options)).await.unwrap();
        let party = node.party().await.unwrap();
        assert_eq!(Some(party.repository), repository_of(&node.address().await.unwrap()));

        let text = b"a text".to_vec();
        let signature = node.sign(text.clone()).await.unwrap();
        assert!(node.verify(party, text.clone(), signature).await);
        assert!(!node.verify(party, b"another text".to_vec(), signature).await);
        assert!(!node.verify(party, text.clone(), [0; 64]).await);
        let elsewhere = Party { repository: RecordId([1; 32]), ..party };
        assert!(!node.verify(elsewhere, text.clone(), signature).await, "a good signature, for somebody else's record");
        for key in [[0; 32], [0xff; 32], [1; 32]] {
            assert!(!node.verify(Party { key, ..party }, text.clone(), signature).await, "{key:?}");
        }
        // What is signed and checked without a node is the same.
        let key = OwnerKey::stored(dir.path()).unwrap().unwrap();
        assert_eq!((key.party(), key.sign(&text).unwrap()), (party, signature));
        assert!(has_signed(&party, &text, &signature) && !has_signed(&party, b"another text", &signature));
        node.shutdown().await;
    }
}
