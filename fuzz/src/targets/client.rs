use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use arbitrary::{Arbitrary, Unstructured};

use super::runtime;
use crate::{
    changeset::{Cursor, PackId, SiteId},
    host::Host,
    protocol::{
        Client, ClientError, Fetched, Limits, Sink,
        message::{self, Answer, CHUNK_BYTES, Manifest, PackEntry, RemoteStatus, Request},
    },
    transport::{BoxFuture, Peer, TransportError},
};

/// What the peer does when it is asked.
#[derive(Arbitrary, Debug)]
enum Reply {
    /// What an honest one would.
    Right,
    /// An offer of its own making, of packs that it has or has not.
    Offer {
        packs: Vec<(Pack, [i8; 4])>,
        end: [i8; 2],
        more: bool,
    },
    /// Part of a pack that was not asked for, or not this part.
    Chunk {
        pack: Pack,
        from: u16,
        bytes: u16,
    },
    Working,
    Busy,
    Gone,
    Refused(String),
    Bytes(Vec<u8>),
    Silence,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Pack {
    Small,
    OneChunk,
    ThreeChunks,
    Unknown { bytes: u64 },
}

impl Pack {
    const HONEST: [Self; 3] = [Self::Small, Self::OneChunk, Self::ThreeChunks];

    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Small => b"small".to_vec(),
            Self::OneChunk => vec![1; CHUNK_BYTES],
            Self::ThreeChunks => vec![3; 2 * CHUNK_BYTES + 1],
            Self::Unknown { .. } => Vec::new(),
        }
    }

    fn entry(self, from: Cursor, to: Cursor) -> PackEntry {
        let bytes = self.bytes();
        let claimed = match self {
            Self::Unknown { bytes } => bytes,
            _ => bytes.len() as u64,
        };
        let id = *PackId::of(&bytes).as_bytes();
        PackEntry { id, bytes: claimed, changes: 1, from: from.into(), to: to.into(), content: None }
    }
}

/// Follows its script, and is honest when that has ended.
struct Scripted {
    script: Mutex<std::vec::IntoIter<Reply>>,
    packs: HashMap<[u8; 32], Vec<u8>>,
}

impl Scripted {
    fn answer(&self, request: &[u8]) -> Result<Vec<u8>, TransportError> {
        let request = message::decode::<Request>(request).expect("the client's own request");
        let reply = self.script.lock().expect("no panic").next().unwrap_or(Reply::Right);
        let cursor = |[version, seq]: [i8; 2]| Cursor { version: version.into(), seq: seq.into() };
        Ok(message::encode(match reply {
            Reply::Right => self.right(request),
            Reply::Offer { packs, end, more } => {
                let entry = |(pack, [a, b, c, d]): (Pack, [i8; 4])| pack.entry(cursor([a, b]), cursor([c, d]));
                let packs = packs.into_iter().take(100).map(entry).collect();
                Answer::Offer(Manifest { packs, end: cursor(end).into(), more })
            }
            Reply::Chunk { pack, from, bytes } => {
                let all = pack.bytes();
                let part = all.get(from.into()..).unwrap_or_default();
                Answer::Chunk { bytes: part[..part.len().min(bytes.into())].to_vec() }
            }
            Reply::Working => Answer::Working,
            Reply::Busy => Answer::Busy,
            Reply::Gone => Answer::Gone,
            Reply::Refused(reason) => Answer::Refused { reason },
            Reply::Bytes(bytes) => return Ok(bytes),
            Reply::Silence => return Err(TransportError::Unreachable("it is silent".into())),
        }))
    }

    /// One pack a version, from version 0.
    fn right(&self, request: Request) -> Answer {
        match request {
            Request::Status => Answer::Status(RemoteStatus { site_id: vec![7; 16], db_version: 3, schema: Vec::new() }),
            Request::Offer { after, .. } => {
                let after = Cursor::from(after);
                let packs = (0..).map(Cursor::whole).zip(Pack::HONEST);
                let packs = packs.filter(|(from, _)| *from >= after || after == Cursor::ZERO);
                let entry = |(from, pack): (Cursor, Pack)| pack.entry(from.max(after), Cursor::whole(from.version + 1));
                Answer::Offer(Manifest {
                    packs: packs.map(entry).collect(),
                    end: after.max(Cursor::whole(3)).into(),
                    more: false,
                })
            }
            Request::Chunk { pack, index } => {
                let chunk = self.packs.get(&pack).and_then(|bytes| bytes.chunks(CHUNK_BYTES).nth(index as usize));
                chunk.map_or(Answer::Gone, |bytes| Answer::Chunk { bytes: bytes.to_vec() })
            }
            #[allow(unreachable_patterns)]
            _ => Answer::Gone,
        }
    }
}

impl Peer for Scripted {
    fn call(&self, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        Box::pin(async move { self.answer(&request) })
    }
}

/// What arrived: checks that it does so in order and undamaged.
#[derive(Debug)]
struct Arrived {
    reached: Cursor,
    packs: usize,
}

impl Sink for Arrived {
    type Error = ClientError;

    async fn take(&mut self, step: Fetched) -> Result<(), ClientError> {
        let to = match step {
            Fetched::Pack(pack, bytes) => {
                assert!(self.reached <= pack.from && pack.from < pack.to, "{pack:?} after {:?}", self.reached);
                assert_eq!(bytes.len() as u64, pack.bytes);
                assert_eq!(*PackId::of(&bytes).as_bytes(), pack.id);
                self.packs += 1;
                pack.to
            }
            Fetched::Reached(end) => end,
        };
        assert!(self.reached <= to, "{to:?} after {:?}", self.reached);
        self.reached = to;
        Ok(())
    }
}

/// Whatever a peer answers, a fetch ends, and what it brings is in order and what was offered. With an honest peer it
/// brings all.
pub fn client(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    let Ok(script) = Vec::<Reply>::arbitrary(&mut bytes) else { return };
    let honest =
        script.iter().all(|reply| matches!(reply, Reply::Right | Reply::Working | Reply::Busy)) && script.len() < 8;
    let packs = Pack::HONEST.map(|pack| (*PackId::of(&pack.bytes()).as_bytes(), pack.bytes()));
    let peer = Scripted { script: Mutex::new(script.into_iter()), packs: packs.into() };
    let client = Client::new(Arc::new(peer), Limits::default(), Host::default());
    let reader = SiteId::from_bytes(&[1; 16]).expect("16 bytes");
    let mut arrived = Arrived { reached: Cursor::ZERO, packs: 0 };
    let result = runtime().block_on(client.fetch(Cursor::ZERO, 3, &reader, &mut arrived));
    if honest {
        result.expect("an honest peer is fetched from");
        assert_eq!((arrived.packs, arrived.reached), (3, Cursor::whole(3)));
    }
}
