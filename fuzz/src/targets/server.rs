use std::ops::ControlFlow;

use arbitrary::{Arbitrary, Unstructured};

use super::runtime;
use crate::{
    changeset::{Change, Cursor, Pack, PackTable, SiteId},
    database::{TableDefinition, TakePack},
    host::Host,
    protocol::{
        RemoteStatus, Server, Source,
        message::{self, Answer, Request},
    },
    transport::{Handler as _, MAX_MESSAGE},
};

#[derive(Arbitrary, Debug)]
enum Question {
    Bytes(Vec<u8>),
    Status,
    Schema {
        job: u8,
    },
    Offer {
        job: u8,
        after: [i8; 2],
        reader: Vec<u8>,
    },
    /// Of a pack that was offered, if there was one.
    Chunk {
        pack: u8,
        index: u8,
    },
    UnknownChunk {
        pack: [u8; 32],
        index: u32,
    },
}

/// A database of three versions, with one change each.
struct Versions;

const LAST: i64 = 3;

impl Source for Versions {
    fn status(&self) -> Result<RemoteStatus, String> {
        Ok(RemoteStatus { site_id: vec![7; 16], db_version: LAST, schema: vec![1; 32] })
    }

    fn packs(&self, after: Cursor, reader: &SiteId, take: TakePack<'_>) -> Result<(Cursor, bool), String> {
        if reader.as_bytes()[0] == 0 {
            return Err("its database cannot be read at the moment".into());
        }
        for version in (1..=LAST).filter(|version| Cursor::whole(*version) > after) {
            if let ControlFlow::Break(()) = take(pack(version, after)) {
                return Ok((Cursor::whole(version), version < LAST));
            }
        }
        Ok((after.max(Cursor::whole(LAST)), false))
    }

    fn definitions(&self) -> Result<Vec<TableDefinition>, String> {
        let sql = format!("CREATE TABLE note (id PRIMARY KEY, body /* {} */)", "x".repeat(40_000));
        Ok(vec![TableDefinition { name: "note".into(), sql, indexes: Vec::new() }])
    }
}

fn pack(version: i64, after: Cursor) -> Pack {
    let source = SiteId::from_bytes(&[7; 16]).expect("16 bytes");
    let change = Change {
        table: "note".into(),
        pk: [1, 9, version as u8].as_slice().into(),
        cid: "body".into(),
        val: rusqlite::types::Value::Blob(vec![version as u8; 1000]),
        col_version: 1,
        db_version: version,
        site_id: source,
        cl: 1,
        seq: 0,
    };
    Pack {
        source,
        from: Cursor::whole(version - 1).max(after),
        to: Cursor::whole(version),
        tables: vec![PackTable { name: "note".into(), key_columns: vec!["id".into()] }],
        changes: vec![change],
    }
}

/// Whatever a server is asked, it answers with a message of the protocol that is not too long.
pub fn server(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    let Ok(questions) = Vec::<Question>::arbitrary(&mut bytes) else { return };
    runtime().block_on(async {
        let server = Server::new(Versions, None, Host::default());
        let mut offered = Vec::new();
        for question in questions.into_iter().take(30) {
            let request = match question {
                Question::Bytes(bytes) => bytes,
                Question::Status => message::encode(Request::Status),
                Question::Schema { job } => message::encode(Request::Schema { job: job.into() }),
                Question::Offer { job, after: [version, seq], reader } => message::encode(Request::Offer {
                    job: job.into(),
                    after: Cursor { version: version.into(), seq: seq.into() }.into(),
                    reader,
                }),
                Question::Chunk { pack, index } => {
                    let pack = offered.get(usize::from(pack)).copied().unwrap_or_default();
                    message::encode(Request::Chunk { pack, index: index.into() })
                }
                Question::UnknownChunk { pack, index } => message::encode(Request::Chunk { pack, index }),
            };
            let answer = server.handle(request).await;
            assert!(answer.len() <= MAX_MESSAGE);
            match message::decode::<Answer>(&answer).expect("an answer of the protocol") {
                Answer::Offer(manifest) => offered.extend(manifest.packs.iter().map(|pack| pack.id)),
                Answer::Schema { id, .. } => offered.push(id),
                Answer::Chunk { bytes } => assert!(!bytes.is_empty()),
                _ => {}
            }
        }
    });
}
