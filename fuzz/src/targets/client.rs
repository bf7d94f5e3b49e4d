use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use arbitrary::{Arbitrary, Unstructured};

use super::{
    arrived::Arrived,
    sandbox::{Owner, Sandbox, proof_text, runtime},
};
use crate::{
    changeset::{Cursor, PackId, SiteId},
    database::{RANGES, TableDefinition},
    protocol::{
        Client, ClientError, Credentials, HintTag, Limits, encode_definitions,
        message::{
            self, Answer, CHUNK_BYTES, DatabaseDigest, INLINE_BYTES, Manifest, PackEntry, RemoteStatus, Request,
            Session,
        },
    },
    transport::{BoxFuture, MAX_MESSAGE, Party, Peer, RecordId, SignatureBytes, Signer, TransportError},
};

#[derive(Arbitrary, Debug)]
struct Scenario {
    /// Whether the peer wants to know who asks, and whether the client can tell.
    private: bool,
    credentials: bool,
    wanted: Wanted,
    script: Vec<Reply>,
    /// What the peer does for ever when the script has ended.
    forever: Option<Reply>,
}

#[derive(Arbitrary, Debug)]
enum Wanted {
    Packs,
    Status,
    Definitions,
    Digest,
    Hint,
}

/// What the peer does when it is asked.
#[derive(Arbitrary, Clone, Debug)]
enum Reply {
    /// What an honest one would.
    Right,
    /// An offer of its own making, of packs that it has or has not.
    Offer {
        packs: Vec<(Pack, [i8; 4], Content)>,
        end: [i8; 2],
        more: bool,
    },
    /// Part of a pack that was not asked for, or not this part.
    Chunk {
        pack: Pack,
        from: u16,
        bytes: u16,
    },
    Schema {
        pack: Pack,
        content: Content,
    },
    Working,
    Busy,
    Gone,
    Refused(String),
    NotAuthorised,
    Nonce([u8; 32]),
    Authorised,
    Bytes(Vec<u8>),
    Silence,
    Digest {
        version: i64,
        schema: Vec<u8>,
        tables: u8,
        ranges: u16,
        known: Option<i64>,
    },
    Noted,
}

/// What comes along with the promise of a pack.
#[derive(Arbitrary, Clone, Debug)]
enum Content {
    Nothing,
    Right,
    Wrong(Vec<u8>),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Pack {
    Small,
    OneChunk,
    ThreeChunks,
    Definitions,
    Unknown { bytes: u64 },
}

impl Pack {
    const HONEST: [Self; 3] = [Self::Small, Self::OneChunk, Self::ThreeChunks];

    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Small => b"small".to_vec(),
            Self::OneChunk => vec![1; CHUNK_BYTES],
            Self::ThreeChunks => vec![3; 2 * CHUNK_BYTES + 1],
            Self::Definitions => encode_definitions(&definitions()).expect("they are few"),
            Self::Unknown { .. } => Vec::new(),
        }
    }

    fn id(self) -> [u8; 32] {
        *PackId::of(&self.bytes()).as_bytes()
    }

    fn claimed(self) -> u64 {
        match self {
            Self::Unknown { bytes } => bytes,
            _ => self.bytes().len() as u64,
        }
    }

    fn entry(self, from: Cursor, to: Cursor, content: &Content) -> PackEntry {
        PackEntry {
            id: self.id(),
            bytes: self.claimed(),
            changes: 1,
            from: from.into(),
            to: to.into(),
            content: content.of(self).map(Into::into),
        }
    }
}

impl Content {
    fn of(&self, pack: Pack) -> Option<Vec<u8>> {
        match self {
            Self::Nothing => None,
            Self::Right => Some(pack.bytes()).filter(|bytes| bytes.len() <= INLINE_BYTES),
            Self::Wrong(bytes) => Some(bytes.clone()),
        }
    }
}

/// More than one message takes.
fn definitions() -> Vec<TableDefinition> {
    let sql = format!("CREATE TABLE note (id PRIMARY KEY, body /* {} */)", "x".repeat(CHUNK_BYTES));
    vec![TableDefinition { name: "note".into(), sql, indexes: Vec::new() }]
}

const LAST: i64 = Pack::HONEST.len() as i64;
const SERVER: RecordId = RecordId([0x5e; 32]);
const NONCE: [u8; 32] = [0xc0; 32];

/// A client asks this often in the longest script and not for ever.
const MOST_CALLS: usize = 200_000;

/// Follows its script, and is honest when that has ended.
struct Scripted {
    private: bool,
    caller: Owner,
    /// By their ids.
    packs: HashMap<[u8; 32], Vec<u8>>,
    forever: Option<Reply>,
    state: Mutex<State>,
}

struct State {
    script: std::vec::IntoIter<Reply>,
    calls: usize,
    session: Option<Session>,
    proved: bool,
}

impl Scripted {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    fn answer(&self, request: &[u8]) -> Result<Vec<u8>, TransportError> {
        assert!(request.len() <= MAX_MESSAGE);
        let (session, request) = message::decode_request(request);
        let (session, request) = (session.expect("its session"), request.expect("the client's own request"));
        let mut state = self.state();
        assert_eq!(*state.session.get_or_insert(session), session, "one client is one session");
        state.calls += 1;
        assert!(state.calls <= MOST_CALLS, "it asks for ever");
        let reply = state.script.next().or_else(|| self.forever.clone()).unwrap_or(Reply::Right);
        drop(state);
        let cursor = |[version, seq]: [i8; 2]| Cursor { version: version.into(), seq: seq.into() };
        Ok(message::encode(match reply {
            Reply::Right => self.right(session, request),
            Reply::Offer { packs, end, more } => {
                let entry = |(pack, [a, b, c, d], content): (Pack, [i8; 4], Content)| {
                    pack.entry(cursor([a, b]), cursor([c, d]), &content)
                };
                let packs = packs.into_iter().take(100).map(entry).collect();
                Answer::Offer(Manifest { packs, end: cursor(end).into(), more, left_out: None })
            }
            Reply::Chunk { pack, from, bytes } => {
                let all = pack.bytes();
                let part = all.get(from.into()..).unwrap_or_default();
                Answer::Chunk { bytes: part[..part.len().min(bytes.into())].to_vec() }
            }
            Reply::Schema { pack, content } => {
                Answer::Schema { id: pack.id(), bytes: pack.claimed(), content: content.of(pack).map(Into::into) }
            }
            Reply::Working => Answer::Working,
            Reply::Busy => Answer::Busy,
            Reply::Gone => Answer::Gone,
            Reply::Refused(reason) => Answer::Refused { reason },
            Reply::NotAuthorised => Answer::NotAuthorised { change: None },
            Reply::Nonce(nonce) => Answer::Nonce { nonce },
            Reply::Authorised => Answer::Authorised,
            Reply::Bytes(bytes) => return Ok(bytes),
            Reply::Digest { version, schema, tables, ranges, known } => {
                let (tables, ranges) = (vec![1; tables.into()], vec![2; ranges.into()]);
                Answer::Digest(DatabaseDigest { db_version: version, schema, tables, ranges, known })
            }
            Reply::Noted => Answer::Noted,
            Reply::Silence => return Err(TransportError::Unreachable("it is silent".into())),
        }))
    }

    fn right(&self, session: Session, request: Request) -> Answer {
        match request {
            Request::Challenge { .. } if self.private => Answer::Nonce { nonce: NONCE },
            Request::Proof { caller, key, nonce, signature } if self.private => {
                let party = Party { repository: RecordId(caller), key };
                let signed = self.caller.sign(&proof_text(&nonce, SERVER, party, &session));
                if (party, nonce, signature) != (self.caller.party, NONCE, signed) {
                    return Answer::NotAuthorised { change: None };
                }
                self.state().proved = true;
                Answer::Authorised
            }
            Request::Challenge { .. } | Request::Proof { .. } => Answer::Refused { reason: "why?".into() },
            _ if self.private && !self.state().proved => Answer::NotAuthorised { change: None },
            Request::Status => Answer::Status(status()),
            Request::Digest { .. } => Answer::Digest(digest()),
            Request::Rows { .. } => Answer::Refused { reason: "it makes no digests".into() },
            Request::Hint { .. } => Answer::Noted,
            Request::Offer { after, .. } => offer(after.into()),
            Request::Schema { .. } => {
                Answer::Schema { id: Pack::Definitions.id(), bytes: Pack::Definitions.claimed(), content: None }
            }
            Request::Chunk { pack, index } => {
                let chunk = self.packs.get(&pack).and_then(|bytes| bytes.chunks(CHUNK_BYTES).nth(index as usize));
                chunk.map_or(Answer::Gone, |bytes| Answer::Chunk { bytes: bytes.to_vec() })
            }
        }
    }
}

fn status() -> RemoteStatus {
    RemoteStatus { site_id: vec![7; 16], db_version: LAST, schema: Vec::new() }
}

fn digest() -> DatabaseDigest {
    let (tables, ranges) = (vec![1; 16], vec![2; 16 * RANGES]);
    DatabaseDigest { db_version: LAST, schema: vec![3; 32], tables, ranges, known: Some(1) }
}

/// One pack a version, from version 0; small ones come along.
fn offer(after: Cursor) -> Answer {
    let packs = (0..).map(Cursor::whole).zip(Pack::HONEST);
    let packs = packs.filter(|(from, _)| *from >= after || after == Cursor::ZERO);
    let entry =
        |(from, pack): (Cursor, Pack)| pack.entry(from.max(after), Cursor::whole(from.version + 1), &Content::Right);
    let end = after.max(Cursor::whole(LAST)).into();
    Answer::Offer(Manifest { packs: packs.map(entry).collect(), end, more: false, left_out: None })
}

impl Peer for Scripted {
    fn call(&self, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        Box::pin(async move { self.answer(&request) })
    }
}

/// Signs proofs for [`SERVER`], and would be shocked to see anything else.
struct Careful(Owner);

impl Signer for Careful {
    fn party(&self) -> BoxFuture<'_, Result<Party, TransportError>> {
        Box::pin(async { Ok(self.0.party) })
    }

    fn sign(&self, text: Vec<u8>) -> BoxFuture<'_, Result<SignatureBytes, TransportError>> {
        let part = |at: usize| text.get(at..).unwrap_or_default();
        let nonce: [u8; 32] = part(32).first_chunk().copied().expect("a nonce");
        let session: [u8; 16] = part(text.len() - 16).first_chunk().copied().expect("a session");
        assert_eq!(text, proof_text(&nonce, SERVER, self.0.party, &session), "a peer can have anything signed");
        let signature = self.0.sign(&text);
        Box::pin(async move { Ok(signature) })
    }
}

/// Whatever a peer answers, what was asked of it ends, and what a fetch brings is in order and what was offered. With
/// an honest peer it brings all. Whatever nonce a peer gives, nothing is signed but a proof for the one that was meant.
pub fn client(bytes: &[u8]) {
    let Ok(scenario) = Scenario::arbitrary(&mut Unstructured::new(bytes)) else { return };
    let Scenario { private, credentials, wanted, script, forever } = scenario;
    let is_patience_tried = |reply: &Reply| matches!(reply, Reply::Right | Reply::Working | Reply::Busy);
    let honest =
        script.iter().all(is_patience_tried) && script.len() < 6 && matches!(forever, None | Some(Reply::Right));
    let caller = Owner::named("caller");
    let packs = [Pack::Definitions].into_iter().chain(Pack::HONEST).map(|pack| (pack.id(), pack.bytes())).collect();
    let state = State { script: script.into_iter(), calls: 0, session: None, proved: false };
    let peer = Scripted { private, caller, packs, forever, state: Mutex::new(state) };
    let limits = Limits { patience: Duration::from_secs(2), ..Limits::default() };
    runtime().block_on(async {
        let mut client = Client::new(Arc::new(peer), limits, Sandbox::default().host());
        if credentials {
            client = client.with_credentials(Credentials::new(Arc::new(Careful(caller)), SERVER));
        }
        let asking = ask(&client, &wanted, honest);
        let result = tokio::time::timeout(Duration::from_secs(24 * 3600), asking).await.expect("it ends");
        match result {
            Err(ClientError::NotAuthorised) if honest => assert!(private && !credentials),
            Err(error) if honest => panic!("an honest peer is not understood: {error}"),
            Ok(()) if honest => assert!(!private || credentials),
            _ => {}
        }
    });
}

async fn ask(client: &Client, wanted: &Wanted, honest: bool) -> Result<(), ClientError> {
    match wanted {
        Wanted::Packs => {
            let reader = SiteId::from_bytes(&[1; 16]).expect("16 bytes");
            let mut arrived = Arrived::nothing();
            client.fetch(Cursor::ZERO, LAST, &reader, &mut arrived).await?;
            assert!(!honest || (arrived.packs, arrived.reached) == (3, Cursor::whole(LAST)), "{arrived:?}");
        }
        Wanted::Status => {
            let found = client.status().await?;
            assert!(!honest || found == status(), "{found:?}");
        }
        Wanted::Definitions => {
            let found = client.definitions().await?;
            assert!(!honest || found == definitions(), "{found:?}");
        }
        Wanted::Digest => {
            let found = client.digest(&SiteId::from_bytes(&[1; 16]).expect("16 bytes")).await?;
            assert_eq!((found.ranges.len(), found.tables.len() % 16), (16 * RANGES, 0));
            assert!(!honest || found == digest(), "{found:?}");
        }
        Wanted::Hint => client.hint(HintTag::new(&"VLD0:notes".parse().expect("any text"), SERVER)).await?,
    }
    Ok(())
}
