use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::{
    changeset::{Cursor, SiteId},
    database::TakePack,
    host::Host,
    protocol::{
        CHUNK_BYTES, Limits, Reached, RemoteStatus, Server, Source,
        client::tests::Scripted,
        message::{self, NO_MESSAGE},
    },
    transport::{BoxFuture, LocalPeer, Peer, TransportError},
};

pub(crate) fn table(name: &str, sql: &str, indexes: &[&str]) -> TableDefinition {
    let indexes = indexes.iter().map(|&index| index.to_owned()).collect();
    TableDefinition { name: name.to_owned(), sql: sql.to_owned(), indexes }
}

/// Tells these declarations.
#[derive(Clone)]
pub(crate) struct Tells(pub(crate) Vec<TableDefinition>);

impl Source for Tells {
    fn status(&self) -> Result<RemoteStatus, String> {
        Ok(RemoteStatus { site_id: vec![7; 16], db_version: 0, schema: vec![0; 32] })
    }

    fn packs(&self, after: Cursor, _: &SiteId, _: TakePack<'_>) -> Result<Reached, String> {
        Ok(Reached::all(after, false))
    }

    fn definitions(&self) -> Result<Vec<TableDefinition>, String> {
        Ok(self.0.clone())
    }
}

async fn told(definitions: Vec<TableDefinition>) -> Result<Vec<TableDefinition>, ClientError> {
    let server = Server::new(Tells(definitions), None, Host::default());
    Client::new(Arc::new(LocalPeer::new(Arc::new(server))), Limits::default(), Host::default()).definitions().await
}

async fn scripted(answers: Vec<Answer>) -> Result<Vec<TableDefinition>, ClientError> {
    Client::new(Arc::new(Scripted(Mutex::new(answers))), Limits::default(), Host::default()).definitions().await
}

fn schema(bytes: &[u8], length: u64, content: Option<&[u8]>) -> Answer {
    let content = content.map(|content| content.to_vec().into());
    Answer::Schema { id: *blake3::hash(bytes).as_bytes(), bytes: length, content }
}

#[tokio::test]
async fn declarations_of_any_length_arrive() {
    let long = format!("CREATE TABLE t (id PRIMARY KEY /* {} */)", "x".repeat(200_000));
    for definitions in [
        Vec::new(),
        vec![table("t", "CREATE TABLE t (id PRIMARY KEY)", &["CREATE INDEX i ON t (id)"])],
        vec![table("t", &long, &[]); 30],
    ] {
        assert_eq!(told(definitions.clone()).await.unwrap(), definitions);
    }
}

#[tokio::test]
async fn a_server_with_too_many_says_so() {
    let error = told(vec![table("t", &"x".repeat(1 << 20), &[]); 9]).await.unwrap_err().to_string();
    assert!(error.contains("it refuses: it cannot tell how its tables are declared: they take 94"), "{error}");
    let error = told(vec![table("t", "", &[]); 2_001]).await.unwrap_err().to_string();
    assert!(error.contains("there are 2001 tables"), "{error}");
}

#[tokio::test]
async fn what_is_not_what_was_announced_is_refused() {
    let bytes = encode_definitions(&[table("t", "CREATE TABLE t (id PRIMARY KEY)", &[])]).unwrap();
    let length = bytes.len() as u64;
    assert_eq!(scripted(vec![schema(&bytes, length, Some(&bytes))]).await.unwrap().len(), 1);
    let chunk = |bytes: &[u8]| Answer::Chunk { bytes: bytes.to_vec() };
    assert_eq!(scripted(vec![schema(&bytes, length, None), chunk(&bytes)]).await.unwrap().len(), 1);

    for answers in [
        vec![schema(b"other", length, Some(&bytes))],
        vec![schema(b"other", length, None), chunk(&bytes)],
        vec![schema(&bytes, length + 1, Some(&bytes))],
    ] {
        let result = scripted(answers).await;
        assert!(matches!(result, Err(ClientError::Definitions(DefinitionsError::Damaged))), "{result:?}");
    }
    for huge in [MAX_DEFINITIONS_BYTES as u64 + 1, u64::MAX] {
        let result = scripted(vec![schema(b"", huge, None), chunk(&[0; CHUNK_BYTES])]).await;
        assert!(matches!(result, Err(ClientError::Definitions(DefinitionsError::TooLong { .. }))), "{result:?}");
    }
    let result = scripted(vec![schema(&bytes, length, None), chunk(&bytes[1..])]).await;
    assert!(matches!(result, Err(ClientError::Protocol(_))), "{result:?}");
    let result = scripted(vec![schema(b"none", 4, Some(b"none"))]).await;
    assert!(matches!(result, Err(ClientError::Definitions(DefinitionsError::Malformed(_)))), "{result:?}");
}

#[tokio::test]
async fn declarations_that_go_on_vanishing_are_given_up() {
    struct Vanishing;
    impl Peer for Vanishing {
        fn call(&self, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
            Box::pin(async move {
                Ok(message::encode(match message::decode_request(&request).1.unwrap() {
                    Request::Schema { .. } => schema(b"gone", 4, None),
                    _ => Answer::Gone,
                }))
            })
        }
    }
    let result = Client::new(Arc::new(Vanishing), Limits::default(), Host::default()).definitions().await;
    assert!(matches!(result, Err(ClientError::PacksVanish)), "{result:?}");
}

#[tokio::test]
async fn a_peer_that_is_too_old_to_tell_is_known_by_its_refusal() {
    let refused = |reason: &str| scripted(vec![Answer::Refused { reason: reason.to_owned() }]);
    let result = refused(&format!("{NO_MESSAGE} (unknown variant)")).await;
    assert!(matches!(result, Err(ClientError::NotKnown)), "{result:?}");
    assert!(matches!(refused("not today").await, Err(ClientError::Refused(_))));
}

/// CBOR of an array with this many entries, of which there are none.
fn claim(entries: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    Encoder::new(&mut bytes).map(2).unwrap().u8(0).unwrap().u8(1).unwrap().u8(1).unwrap().array(entries).unwrap();
    bytes
}

#[test]
fn lengths_are_not_believed() {
    for entries in [1, 2_000, 2_001, u64::MAX] {
        assert!(matches!(decode_definitions(&claim(entries)), Err(DefinitionsError::Malformed(_))), "{entries}");
    }
    let too_many = [0xa2, 0, 1, 1, 0x81, 0xa1, 2, 0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert!(matches!(decode_definitions(&too_many), Err(DefinitionsError::Malformed(_))));
    let endless = [0xa2, 0, 1, 1, 0x9f, 0xa0, 0xa0];
    assert!(matches!(decode_definitions(&endless), Err(DefinitionsError::Malformed(_))));
    let mut followed = encode_definitions(&[]).unwrap();
    followed.push(0);
    assert!(matches!(decode_definitions(&followed), Err(DefinitionsError::Malformed(_))));
    let too_long = vec![0; MAX_DEFINITIONS_BYTES + 1];
    assert!(matches!(decode_definitions(&too_long), Err(DefinitionsError::TooLong { .. })));
}

#[test]
fn a_later_version_is_named_and_unknown_fields_are_ignored() {
    let later = [0xa2, 0, 2, 1, 0x63, b'n', b'e', b'w'];
    assert!(matches!(decode_definitions(&later), Err(DefinitionsError::Version(2))));
    let with_more = [0xa3, 0, 1, 9, 0x81, 0xa0, 1, 0x81, 0xa2, 0, 0x61, b't', 7, 0xf5];
    assert_eq!(decode_definitions(&with_more).unwrap(), [table("t", "", &[])]);
}

fn definitions() -> impl Strategy<Value = Vec<TableDefinition>> {
    let table = (".{0,20}", ".{0,200}", prop::collection::vec(".{0,50}", 0..5))
        .prop_map(|(name, sql, indexes)| TableDefinition { name, sql, indexes });
    prop::collection::vec(table, 0..10)
}

proptest! {
    #[test]
    fn declarations_round_trip(definitions in definitions()) {
        prop_assert_eq!(decode_definitions(&encode_definitions(&definitions).unwrap()).unwrap(), definitions);
    }

    #[test]
    fn damaged_declarations_do_not_panic(
        definitions in definitions(), at in any::<prop::sample::Index>(), with in any::<u8>(), keep in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encode_definitions(&definitions).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = with;
        let _ = decode_definitions(&bytes);
        bytes.truncate(keep.index(bytes.len()));
        let _ = decode_definitions(&bytes);
    }
}
