//! The messages. Fields are numbered and may be added; a reader ignores numbers it does not know.

use minicbor::{
    Decode, Encode,
    bytes::{ByteArray, ByteVec},
};

use crate::{
    changeset::Cursor,
    database::{LeftOut, Unsent},
    transport::MAX_MESSAGE,
};

/// The version of the protocol that this program speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// Bytes of a pack in one `Chunk` answer: a message less generous room for what surrounds them.
pub const CHUNK_BYTES: usize = 32_000;

/// Bytes of packs in one `Offer` answer, all together: a message less what [`MOST_PACKS`](super::server::MOST_PACKS)
/// entries take and room for what surrounds them.
pub(crate) const INLINE_BYTES: usize = 26_000;

/// Sums of tables in one `Digest` answer.
pub(crate) const MOST_SUMS: usize = 900;

/// A message, with the version of the protocol it is written in.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Envelope<T> {
    #[n(0)]
    pub(crate) version: u32,
    #[n(1)]
    pub(crate) body: T,
    /// On requests: whose they are, so far as that can be told of an anonymous caller.
    #[n(2)]
    pub(crate) session: Option<Session>,
}

/// The name that a client gives itself for one connection, at random. It keeps callers apart and, once proved to
/// be a remote's, stands for it: nobody else must know it.
pub(crate) type Session = ByteArray<16>;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Request {
    #[n(0)]
    Status,
    /// `job` is chosen by the client: asking again with the same number asks for the same offer.
    #[n(1)]
    #[cbor(map)]
    Offer {
        #[n(0)]
        job: u64,
        #[n(1)]
        after: WireCursor,
        #[cbor(n(2), with = "minicbor::bytes")]
        reader: Vec<u8>,
    },
    #[n(2)]
    #[cbor(map)]
    Chunk {
        #[cbor(n(0), with = "minicbor::bytes")]
        pack: [u8; 32],
        #[n(1)]
        index: u32,
    },
    /// How are the shared tables declared? `job` as in `Offer`.
    #[n(3)]
    #[cbor(map)]
    Schema {
        #[n(0)]
        job: u64,
    },
    /// Asks for a nonce, to prove with it that the session is of repository `caller`, whose owner has `key`.
    #[n(8)]
    #[cbor(map)]
    Challenge {
        #[cbor(n(0), with = "minicbor::bytes")]
        caller: [u8; 32],
        #[cbor(n(1), with = "minicbor::bytes")]
        key: [u8; 32],
    },
    /// The proof: `key`'s signature over [`super::access::proof_text`].
    #[n(9)]
    #[cbor(map)]
    Proof {
        #[cbor(n(0), with = "minicbor::bytes")]
        caller: [u8; 32],
        #[cbor(n(1), with = "minicbor::bytes")]
        key: [u8; 32],
        #[cbor(n(2), with = "minicbor::bytes")]
        nonce: [u8; 32],
        #[cbor(n(3), with = "minicbor::bytes")]
        signature: [u8; 64],
    },
    /// Says that there is something new at the repository that `tag` stands for; see [`super::HintTag`].
    #[n(24)]
    #[cbor(map)]
    Hint {
        #[cbor(n(0), with = "minicbor::bytes")]
        tag: [u8; 32],
    },
    /// Asks for the digest of the database. `job` is as in `Offer`; `reader` asks how far it was merged there.
    #[n(40)]
    #[cbor(map)]
    Digest {
        #[n(0)]
        job: u64,
        #[cbor(n(1), with = "minicbor::bytes")]
        reader: Vec<u8>,
    },
    /// Asks for the rows of some of the digest's ranges, to find those that differ. `job` is as in `Offer`.
    #[n(41)]
    #[cbor(map)]
    Rows {
        #[n(0)]
        job: u64,
        /// A bit for each range, the lowest of the first byte for the first.
        #[cbor(n(1), with = "minicbor::bytes")]
        ranges: Vec<u8>,
    },
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Answer {
    #[n(0)]
    Status(#[n(0)] RemoteStatus),
    #[n(1)]
    Offer(#[n(0)] Manifest),
    #[n(2)]
    #[cbor(map)]
    Chunk {
        #[cbor(n(0), with = "minicbor::bytes")]
        bytes: Vec<u8>,
    },
    /// The offer is being prepared: ask again with the same job number.
    #[n(3)]
    Working,
    /// Too much to do: ask again later.
    #[n(4)]
    Busy,
    /// The pack is no longer kept: ask for a new offer.
    #[n(5)]
    Gone,
    /// The request cannot be answered, and repeating it will not help.
    #[n(6)]
    #[cbor(map)]
    Refused {
        #[n(0)]
        reason: String,
    },
    /// The answer to `Schema`: what holds the declarations is read by `Chunk`, as a pack is.
    #[n(7)]
    #[cbor(map)]
    Schema {
        /// The BLAKE3 hash of its bytes.
        #[cbor(n(0), with = "minicbor::bytes")]
        id: [u8; 32],
        #[n(1)]
        bytes: u64,
        /// All of its bytes, if they are few.
        #[n(2)]
        content: Option<ByteVec>,
    },
    /// The repository is private, and the session has not proved that it is one of its remotes'.
    #[n(16)]
    #[cbor(map)]
    NotAuthorised {
        /// In an announcement: changes with the database, and tells nothing else.
        #[n(0)]
        change: Option<ByteArray<16>>,
    },
    /// The answer to `Challenge`.
    #[n(17)]
    #[cbor(map)]
    Nonce {
        #[cbor(n(0), with = "minicbor::bytes")]
        nonce: [u8; 32],
    },
    /// The answer to a good `Proof`: from now on the session is answered.
    #[n(18)]
    Authorised,
    /// The answer to `Hint`, whether it is of use or not.
    #[n(24)]
    Noted,
    /// The answer to `Digest`.
    #[n(40)]
    Digest(#[n(0)] DatabaseDigest),
    /// The answer to `Rows`: what holds them is read by `Chunk`, as a pack is.
    #[n(41)]
    #[cbor(map)]
    Rows {
        /// The BLAKE3 hash of its bytes.
        #[cbor(n(0), with = "minicbor::bytes")]
        id: [u8; 32],
        #[n(1)]
        bytes: u64,
        /// All of its bytes, if they are few.
        #[n(2)]
        content: Option<ByteVec>,
    },
}

impl Answer {
    /// What it says, in a word.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Status(_) => "status",
            Self::Offer(_) => "offer",
            Self::Chunk { .. } => "chunk",
            Self::Working => "working",
            Self::Busy => "busy",
            Self::Gone => "gone",
            Self::Refused { .. } => "refused",
            Self::NotAuthorised { .. } => "not-authorised",
            Self::Nonce { .. } => "nonce",
            Self::Authorised => "authorised",
            Self::Schema { .. } => "schema",
            Self::Noted => "noted",
            Self::Digest(_) => "digest",
            Self::Rows { .. } => "rows",
        }
    }
}

/// The sums of a database's rows, 16 bytes each, as they stood at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DatabaseDigest {
    /// The database's version.
    #[n(0)]
    pub db_version: i64,
    /// The fingerprint of its CRRs' schemas: digests can be compared if these are equal.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub schema: Vec<u8>,
    /// The sums of the tables, in the order of their names; none if there are too many for a message.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub tables: Vec<u8>,
    /// The sums of the ranges into which rows are divided by their keys.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub ranges: Vec<u8>,
    /// Up to which of the reader's versions everything was merged there.
    #[n(4)]
    pub known: Option<i64>,
}

/// Who a repository is and how far its database is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RemoteStatus {
    /// The site id of its database.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub site_id: Vec<u8>,
    /// Its database version.
    #[n(1)]
    pub db_version: i64,
    /// The fingerprint of its CRRs' schemas.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub schema: Vec<u8>,
}

/// A [`Cursor`] on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) struct WireCursor {
    #[n(0)]
    version: i64,
    #[n(1)]
    seq: i64,
}

impl From<Cursor> for WireCursor {
    fn from(cursor: Cursor) -> Self {
        Self { version: cursor.version, seq: cursor.seq }
    }
}

impl From<WireCursor> for Cursor {
    fn from(cursor: WireCursor) -> Self {
        Self { version: cursor.version, seq: cursor.seq }
    }
}

/// The packs that follow a cursor, in order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Manifest {
    #[n(0)]
    pub(crate) packs: Vec<PackEntry>,
    /// Everything up to here has been offered, or holds nothing for this reader.
    #[n(1)]
    pub(crate) end: WireCursor,
    /// Whether there is more after `end`.
    #[n(2)]
    pub(crate) more: bool,
    /// What of it no pack can hold, if there is such.
    #[n(3)]
    pub(crate) left_out: Option<WireLeftOut>,
}

/// A [`LeftOut`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct WireLeftOut {
    #[n(0)]
    count: u64,
    #[n(1)]
    first: Vec<WireUnsent>,
}

/// An [`Unsent`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct WireUnsent {
    #[n(0)]
    table: String,
    #[n(1)]
    key: String,
    #[n(2)]
    column: String,
    #[n(3)]
    reason: String,
}

/// The most bytes of a text in it.
const MOST_TEXT: usize = 96;

impl WireLeftOut {
    /// `left_out`, cut to what a message has room for; `None` if it is empty.
    pub(crate) fn new(left_out: LeftOut) -> Option<Self> {
        let short = |text: String| text[..text.floor_char_boundary(MOST_TEXT)].to_owned();
        let unsent = |Unsent { table, key, column, reason }| WireUnsent {
            table: short(table),
            key: short(key),
            column: short(column),
            reason: short(reason),
        };
        let first = left_out.first.into_iter().take(LeftOut::MOST).map(unsent).collect();
        (left_out.count > 0).then_some(Self { count: left_out.count, first })
    }

    /// What it says, each text as `shown` has it.
    pub(crate) fn read(self, shown: impl Fn(&str) -> String) -> LeftOut {
        let unsent = |WireUnsent { table, key, column, reason }: WireUnsent| Unsent {
            table: shown(&table),
            key: shown(&key),
            column: shown(&column),
            reason: shown(&reason),
        };
        LeftOut { count: self.count, first: self.first.into_iter().take(LeftOut::MOST).map(unsent).collect() }
    }
}

/// One pack of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct PackEntry {
    /// The BLAKE3 hash of its bytes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub(crate) id: [u8; 32],
    #[n(1)]
    pub(crate) bytes: u64,
    #[n(2)]
    pub(crate) changes: u64,
    #[n(3)]
    pub(crate) from: WireCursor,
    #[n(4)]
    pub(crate) to: WireCursor,
    /// All of its bytes, if they are few.
    #[n(5)]
    pub(crate) content: Option<ByteVec>,
}

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("it speaks version {0} of the protocol and this program version {PROTOCOL_VERSION}")]
    Version(u32),
    #[error("{NO_MESSAGE} ({0})")]
    Malformed(String),
}

/// How a server begins its refusal of a request that it cannot read. To a client, whose requests are well-formed, it
/// says that the server is older than the request.
pub(crate) const NO_MESSAGE: &str = "it is no message of this protocol";

/// The bytes of a message.
pub(crate) fn encode<T: Encode<()>>(body: T) -> Vec<u8> {
    seal(&Envelope { version: PROTOCOL_VERSION, body, session: None })
}

/// The bytes of a request of `session`.
pub(crate) fn encode_request(session: Session, body: Request) -> Vec<u8> {
    seal(&Envelope { version: PROTOCOL_VERSION, body, session: Some(session) })
}

fn seal<T: Encode<()>>(envelope: &Envelope<T>) -> Vec<u8> {
    // The messages hold nothing that CBOR cannot, and memory takes every write.
    minicbor::to_vec(envelope).unwrap_or_else(|error| unreachable!("a message could not be encoded: {error}"))
}

/// The bytes a server publishes beside its routes: the answer to `Status` that nobody had to ask for.
#[must_use]
pub fn announcement(status: &RemoteStatus) -> Vec<u8> {
    encode(Answer::Status(status.clone()))
}

/// As [`announcement`], for a private repository: whoever does not know `secret` learns from it only that something
/// has changed.
#[must_use]
pub fn private_announcement(status: &RemoteStatus, secret: &[u8; 32]) -> Vec<u8> {
    let hash = blake3::keyed_hash(secret, &announcement(status));
    let change = std::array::from_fn(|at| hash.as_bytes()[at]);
    encode(Answer::NotAuthorised { change: Some(ByteArray::from(change)) })
}

/// Reads a request, and who sent it. Of one that cannot be read the session is told where that can be.
///
/// Of one that can be read, both come from one reading: two that look for different fields can take ill-formed CBOR
/// differently, and the request of one session would be charged to another.
pub(crate) fn decode_request(bytes: &[u8]) -> (Option<Session>, Result<Request, MessageError>) {
    #[derive(Decode)]
    #[cbor(map)]
    struct SessionOnly {
        #[n(2)]
        session: Option<Session>,
    }
    match open(bytes) {
        Ok(Envelope { session, body, .. }) => (session, Ok(body)),
        Err(error) => {
            let head = minicbor::decode::<SessionOnly>(bytes.get(..MAX_MESSAGE).unwrap_or(bytes));
            (head.ok().and_then(|head| head.session), Err(error))
        }
    }
}

/// Reads a message.
pub(crate) fn decode<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, MessageError> {
    open(bytes).map(|envelope| envelope.body)
}

/// Reads a message with its envelope. The version is looked at first, so that a later version's message is told from
/// garbage.
fn open<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<Envelope<T>, MessageError> {
    #[derive(Decode)]
    #[cbor(map)]
    struct VersionOnly {
        #[n(0)]
        version: u32,
    }
    let malformed = |error: minicbor::decode::Error| MessageError::Malformed(error.to_string());
    if bytes.len() > MAX_MESSAGE {
        return Err(MessageError::Malformed(format!("{} bytes are too long", bytes.len())));
    }
    let VersionOnly { version } = minicbor::decode(bytes).map_err(malformed)?;
    if version != PROTOCOL_VERSION {
        return Err(MessageError::Version(version));
    }
    minicbor::decode(bytes).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_chunk_fits_one_message() {
        let bytes = encode(Answer::Chunk { bytes: vec![0xff; CHUNK_BYTES] });
        assert!(bytes.len() <= MAX_MESSAGE, "{}", bytes.len());
    }

    #[test]
    fn a_full_manifest_fits_one_message() {
        let cursor = Cursor { version: i64::MAX, seq: i64::MAX }.into();
        let entry =
            PackEntry { id: [0xff; 32], bytes: u64::MAX, changes: u64::MAX, from: cursor, to: cursor, content: None };
        let mut packs = vec![entry; crate::protocol::server::MOST_PACKS];
        // A few larger contents, and many small ones.
        for sizes in [vec![INLINE_BYTES], vec![INLINE_BYTES / packs.len(); packs.len()]] {
            for (pack, size) in packs.iter_mut().zip(sizes) {
                pack.content = Some(vec![0xff; size].into());
            }
            let text = "\u{1f9c0}".repeat(100);
            let unsent =
                || Unsent { table: text.clone(), key: text.clone(), column: text.clone(), reason: text.clone() };
            let left_out = LeftOut { count: u64::MAX, first: std::iter::repeat_with(unsent).take(9).collect() };
            let left_out = WireLeftOut::new(left_out);
            let manifest = Manifest { packs: packs.clone(), end: cursor, more: true, left_out };
            let bytes = encode(Answer::Offer(manifest)).len();
            assert!(bytes <= MAX_MESSAGE, "{bytes}");
            packs.iter_mut().for_each(|pack| pack.content = None);
        }
    }

    #[test]
    fn a_full_schema_fits_one_message() {
        let content = Some(vec![0xff; INLINE_BYTES].into());
        let bytes = encode(Answer::Schema { id: [0xff; 32], bytes: u64::MAX, content });
        assert!(bytes.len() <= MAX_MESSAGE, "{}", bytes.len());
    }

    #[test]
    fn a_request_of_a_later_program_is_refused_in_known_words() {
        let later = Envelope { version: PROTOCOL_VERSION, body: (99, 0_u64), session: None };
        let error = decode::<Request>(&minicbor::to_vec(later).unwrap()).unwrap_err();
        assert!(error.to_string().starts_with(NO_MESSAGE), "{error}");
    }

    #[test]
    fn another_version_is_named() {
        let bytes = minicbor::to_vec(Envelope { version: 9, body: Request::Status, session: None }).unwrap();
        assert!(matches!(decode::<Request>(&bytes), Err(MessageError::Version(9))));
    }

    #[test]
    fn the_session_is_that_of_the_request_also_where_it_is_ill_formed() {
        let [mine, other] = [[1; 16], [2; 16]].map(Session::from);
        let mut bytes = Vec::new();
        let mut encoder = minicbor::Encoder::new(&mut bytes);
        encoder.begin_map().unwrap().u8(2).unwrap().encode(mine).unwrap();
        encoder.u8(0).unwrap().u32(PROTOCOL_VERSION).unwrap();
        encoder.u8(1).unwrap().array(2).unwrap().u8(3).unwrap().begin_map().unwrap().u8(0).unwrap().u8(7).unwrap();
        // An end where a value should be: it ends the request for who skips it, and is skipped by who reads it.
        encoder.u8(99).unwrap().end().unwrap().u8(2).unwrap().encode(other).unwrap();
        encoder.end().unwrap().end().unwrap();
        let (session, request) = decode_request(&bytes);
        let envelope: Envelope<Request> = minicbor::decode(&bytes).unwrap();
        assert_eq!((session, request.unwrap()), (envelope.session, envelope.body));
        assert_eq!(session, Some(mine));
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let mut bytes = Vec::new();
        let mut encoder = minicbor::Encoder::new(&mut bytes);
        encoder.map(3).unwrap().u8(0).unwrap().u32(PROTOCOL_VERSION).unwrap();
        encoder.u8(1).unwrap().encode(Request::Status).unwrap();
        encoder.u8(7).unwrap().str("from a later program").unwrap();
        assert_eq!(decode::<Request>(&bytes).unwrap(), Request::Status);
    }

    #[test]
    fn contents_of_packs_are_a_field_that_older_programs_skip() {
        #[derive(Encode, Decode)]
        #[cbor(map)]
        struct Older {
            #[cbor(n(0), with = "minicbor::bytes")]
            id: [u8; 32],
            #[n(1)]
            bytes: u64,
            #[n(2)]
            changes: u64,
            #[n(3)]
            from: WireCursor,
            #[n(4)]
            to: WireCursor,
        }
        let (from, to) = (Cursor::ZERO.into(), Cursor::whole(7).into());
        let entry = PackEntry { id: [1; 32], bytes: 3, changes: 2, from, to, content: Some(vec![1, 2, 3].into()) };
        let older: Older = minicbor::decode(&minicbor::to_vec(&entry).unwrap()).unwrap();
        assert_eq!((older.id, older.bytes, older.to), (entry.id, entry.bytes, entry.to));
        let entry: PackEntry = minicbor::decode(&minicbor::to_vec(&older).unwrap()).unwrap();
        assert_eq!(entry.content, None);
    }

    #[test]
    fn a_full_digest_fits_one_message() {
        let (tables, ranges) = (vec![0xff; 16 * MOST_SUMS], vec![0xff; 16 * crate::database::RANGES]);
        let digest =
            DatabaseDigest { db_version: i64::MAX, schema: vec![0xff; 32], tables, ranges, known: Some(i64::MAX) };
        let bytes = encode(Answer::Digest(digest)).len();
        assert!(bytes <= MAX_MESSAGE, "{bytes}");
    }

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            (any::<u64>(), prop::collection::vec(any::<u8>(), 0..20))
                .prop_map(|(job, reader)| Request::Digest { job, reader }),
            (any::<u64>(), prop::collection::vec(any::<u8>(), 0..200))
                .prop_map(|(job, ranges)| Request::Rows { job, ranges }),
            Just(Request::Status),
            (any::<u64>(), any::<(i64, i64)>(), prop::collection::vec(any::<u8>(), 0..20)).prop_map(
                |(job, (version, seq), reader)| Request::Offer { job, after: Cursor { version, seq }.into(), reader }
            ),
            (any::<[u8; 32]>(), any::<u32>()).prop_map(|(pack, index)| Request::Chunk { pack, index }),
            any::<u64>().prop_map(|job| Request::Schema { job }),
            any::<[[u8; 32]; 2]>().prop_map(|[caller, key]| Request::Challenge { caller, key }),
            (any::<[[u8; 32]; 5]>()).prop_map(|[caller, key, nonce, first, second]| {
                let signature = std::array::from_fn(|at| if at < 32 { first[at] } else { second[at - 32] });
                Request::Proof { caller, key, nonce, signature }
            }),
            any::<[u8; 32]>().prop_map(|tag| Request::Hint { tag }),
        ]
    }

    proptest! {
        #[test]
        fn requests_round_trip(request in request()) {
            prop_assert_eq!(decode::<Request>(&encode(request.clone())).unwrap(), request);
        }

        #[test]
        fn the_session_is_read_whatever_the_body_is(request in request(), session in any::<[u8; 16]>(), at in 3..20_usize) {
            let bytes = encode_request(session.into(), request.clone());
            let (read, body) = decode_request(&bytes);
            prop_assert_eq!((read, body.unwrap()), (Some(session.into()), request));
            let unknown = Envelope { version: PROTOCOL_VERSION, body: (99, at as u64), session: Some(session.into()) };
            let (read, body) = decode_request(&minicbor::to_vec(unknown).unwrap());
            prop_assert_eq!(read, Some(session.into()));
            prop_assert!(body.is_err());
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_request(&bytes);
            let _ = decode::<Answer>(&bytes);
        }

        #[test]
        fn damaged_messages_do_not_panic(request in request(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let mut bytes = encode(request);
            let at = at.index(bytes.len());
            bytes[at] = with;
            let _ = decode_request(&bytes);
        }
    }
}
