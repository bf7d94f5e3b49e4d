//! The side that asks: follows a peer's offers and downloads the packs, several chunks in flight.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::{sync::Semaphore, time::Instant};

use super::{
    Meter,
    message::{self, Answer, CHUNK_BYTES, Manifest, MessageError, RemoteStatus, Request},
};
use crate::{
    changeset::{Cursor, PackId, SiteId},
    transport::{Peer, TransportError},
};

/// Chunks in flight. A call crosses several links, so on slow ones the window is what makes the speed; on fast
/// ones more than this gains nothing.
const WINDOW: usize = 32;

/// Packs being downloaded at once, so that the window is full across the end of a small pack.
const PACKS_AHEAD: usize = 8;

/// Times that packs may be gone before they were downloaded, in one fetch.
const MOST_LOST_OFFERS: u32 = 5;

/// Offers without a pack in a row, in one fetch. An honest server reads on until it has a pack or the end.
const MOST_EMPTY_OFFERS: u32 = 16;

/// Bounds on what a peer may make this side hold and wait for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest pack in bytes.
    pub pack_bytes: u64,
    /// The most packs in one offer.
    pub packs: usize,
    /// How long a peer may answer "busy" or "working" without anything else.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { pack_bytes: 1 << 30, packs: 64, patience: Duration::from_secs(120) }
    }
}

/// Why a peer's answers could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The peer could not be reached.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The peer's answer is no message, or not one to the question.
    #[error("its answer cannot be understood: {0}")]
    Protocol(String),
    /// The peer refuses, with its own words.
    #[error("it refuses: {0}")]
    Refused(String),
    /// The peer kept saying that it is busy.
    #[error("it has been busy for {} s", .0.as_secs())]
    Busy(Duration),
    /// What was downloaded is not what was offered.
    #[error("a pack arrived damaged (its hash is not the one that was offered)")]
    Damaged,
    /// A pack larger than this side takes.
    #[error("it offers a pack of {bytes} bytes; at most {most} are taken")]
    TooLarge {
        /// The size it claims.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// Packs kept vanishing before they could be downloaded.
    #[error("it drops packs faster than they can be downloaded")]
    PacksVanish,
}

impl From<MessageError> for ClientError {
    fn from(error: MessageError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// A pack as it is offered: enough to fetch and check it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedPack {
    /// The hash of its bytes.
    pub id: [u8; 32],
    /// Its length in bytes.
    pub bytes: u64,
    /// The number of changes in it.
    pub changes: u64,
    /// Where it begins (exclusive).
    pub from: Cursor,
    /// Where it ends (inclusive).
    pub to: Cursor,
}

/// One step of a fetch.
#[derive(Debug)]
pub enum Fetched {
    /// A pack's bytes, checked against its hash.
    Pack(OfferedPack, Vec<u8>),
    /// Everything up to the cursor has been delivered, or holds nothing for this reader.
    Reached(Cursor),
}

/// Takes what a fetch brings.
pub trait Sink: Send {
    /// Why it may fail.
    type Error: From<ClientError>;

    /// Takes one step, durably: it will not be brought again.
    fn take(&mut self, step: Fetched) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Asks one peer. Cheap to clone; clones share the window.
#[derive(Clone)]
pub struct Client {
    peer: Arc<dyn Peer>,
    limits: Limits,
    window: Arc<Semaphore>,
    meter: Meter,
}

impl Client {
    /// A client of `peer`.
    #[must_use]
    pub fn new(peer: Arc<dyn Peer>, limits: Limits) -> Self {
        Self { peer, limits, window: Arc::new(Semaphore::new(WINDOW)), meter: Meter::default() }
    }

    /// The same client, which shows on `meter` how far its downloads are.
    #[must_use]
    pub fn with_meter(self, meter: Meter) -> Self {
        Self { meter, ..self }
    }

    /// Who the peer is and how far its database is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<RemoteStatus, ClientError> {
        match self.ask(Request::Status).await? {
            Answer::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    /// Downloads everything after `after` that `reader` did not write itself, and gives it to `sink` in order,
    /// step by step, at least up to the version `up_to`: what a peer that is being written to adds meanwhile is for
    /// the next fetch, so that a fetch ends. What `sink` took before an error need not be fetched again.
    ///
    /// # Errors
    /// [`ClientError`], and what `sink` returns.
    pub async fn fetch<S: Sink>(
        &self,
        after: Cursor,
        up_to: i64,
        reader: &SiteId,
        sink: &mut S,
    ) -> Result<(), S::Error> {
        let mut after = after;
        let mut lost = 0;
        let mut empty = 0;
        self.meter.update(|progress| (progress.version, progress.target) = (after.version, up_to));
        loop {
            let (packs, end, more) = self.offer(after, reader).await?;
            empty = if packs.is_empty() { empty + 1 } else { 0 };
            if empty > MOST_EMPTY_OFFERS {
                return Err(ClientError::Protocol("it goes on offering nothing".into()).into());
            }
            self.meter.update(|progress| packs.iter().for_each(|pack| progress.offer(pack.bytes, pack.changes)));
            let client = self.clone();
            let download = move |pack| {
                let client = client.clone();
                async move { client.download(pack).await }
            };
            let mut downloads = stream::iter(packs).map(download).buffered(PACKS_AHEAD);
            let mut gone = false;
            while let Some(download) = downloads.next().await {
                let Some((pack, bytes)) = download? else {
                    gone = true;
                    break;
                };
                after = pack.to;
                let changes = pack.changes;
                sink.take(Fetched::Pack(pack, bytes)).await?;
                self.meter.update(|progress| progress.store(changes, after.version));
            }
            drop(downloads);
            if gone {
                lost += 1;
                if lost > MOST_LOST_OFFERS {
                    return Err(ClientError::PacksVanish.into());
                }
                continue;
            }
            after = end;
            sink.take(Fetched::Reached(end)).await?;
            self.meter.update(|progress| progress.store(0, end.version));
            if !more || end.version > up_to {
                return Ok(());
            }
        }
    }

    async fn offer(&self, after: Cursor, reader: &SiteId) -> Result<(Vec<OfferedPack>, Cursor, bool), ClientError> {
        let request = Request::Offer { job: rand::random(), after: after.into(), reader: reader.as_bytes().to_vec() };
        match self.ask(request).await? {
            Answer::Offer(manifest) => self.check(after, manifest),
            other => Err(unexpected(&other)),
        }
    }

    /// Refuses offers that are too large, out of order, or would go on for ever.
    fn check(&self, after: Cursor, manifest: Manifest) -> Result<(Vec<OfferedPack>, Cursor, bool), ClientError> {
        let wrong = |what: &str| Err(ClientError::Protocol(format!("its offer {what}")));
        let Manifest { packs, end, more } = manifest;
        let end = Cursor::from(end);
        if packs.len() > self.limits.packs {
            return wrong("has too many packs");
        }
        let mut reached = after;
        let mut offered = Vec::with_capacity(packs.len());
        for pack in packs {
            let (from, to) = (Cursor::from(pack.from), Cursor::from(pack.to));
            if from < reached || to <= from {
                return wrong("is out of order");
            }
            if pack.bytes > self.limits.pack_bytes {
                return Err(ClientError::TooLarge { bytes: pack.bytes, most: self.limits.pack_bytes });
            }
            reached = to;
            offered.push(OfferedPack { id: pack.id, bytes: pack.bytes, changes: pack.changes, from, to });
        }
        if end < reached || (more && end <= after) {
            return wrong("does not lead on");
        }
        Ok((offered, end, more))
    }

    /// The bytes of a pack; `None` if the peer no longer has it.
    async fn download(&self, pack: OfferedPack) -> Result<Option<(OfferedPack, Vec<u8>)>, ClientError> {
        let chunks = pack.bytes.div_ceil(CHUNK_BYTES as u64);
        let chunks = u32::try_from(chunks)
            .map_err(|_| ClientError::TooLarge { bytes: pack.bytes, most: self.limits.pack_bytes })?;
        let (client, id) = (self.clone(), pack.id);
        let chunk = move |index| {
            let client = client.clone();
            async move { client.chunk(id, index).await }
        };
        let arriving = stream::iter(0..chunks).map(chunk).buffered(WINDOW);
        let bytes = arriving
            .try_fold(Some(Vec::new()), async |bytes, chunk| Ok(bytes.zip(chunk).map(|(b, c)| joined(b, &c))))
            .await?;
        let Some(bytes) = bytes else { return Ok(None) };
        if bytes.len() as u64 != pack.bytes || *PackId::of(&bytes).as_bytes() != pack.id {
            return Err(ClientError::Damaged);
        }
        Ok(Some((pack, bytes)))
    }

    async fn chunk(&self, pack: [u8; 32], index: u32) -> Result<Option<Vec<u8>>, ClientError> {
        let _slot = self.window.acquire().await.map_err(|error| ClientError::Protocol(error.to_string()))?;
        match self.ask(Request::Chunk { pack, index }).await? {
            Answer::Chunk { bytes } if !bytes.is_empty() && bytes.len() <= CHUNK_BYTES => {
                self.meter.update(|progress| progress.bytes += bytes.len() as u64);
                Ok(Some(bytes))
            }
            Answer::Gone => Ok(None),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks until the answer is neither "busy" nor "working", waiting longer each time.
    async fn ask(&self, request: Request) -> Result<Answer, ClientError> {
        let request = message::encode(request);
        let started = Instant::now();
        let mut wait = Duration::from_millis(20);
        loop {
            let bytes = self.peer.call(request.clone()).await?;
            match message::decode(&bytes)? {
                Answer::Working | Answer::Busy => {}
                Answer::Refused { reason } => return Err(ClientError::Refused(printable(&reason))),
                answer => return Ok(answer),
            }
            if started.elapsed() > self.limits.patience {
                return Err(ClientError::Busy(started.elapsed()));
            }
            tokio::time::sleep(wait.mul_f64(rand::random_range(0.75..1.25))).await;
            wait = (wait * 2).min(Duration::from_secs(2));
        }
    }
}

fn joined(mut bytes: Vec<u8>, chunk: &[u8]) -> Vec<u8> {
    bytes.extend_from_slice(chunk);
    bytes
}

fn unexpected(answer: &Answer) -> ClientError {
    let what = match answer {
        Answer::Status(_) => "a status",
        Answer::Offer(_) => "an offer",
        Answer::Chunk { .. } => "a chunk of the wrong size",
        Answer::Gone => "that something is gone",
        Answer::Working | Answer::Busy | Answer::Refused { .. } => "something else",
    };
    ClientError::Protocol(format!("it answers {what}, which was not the question"))
}

/// A peer's words may go to a terminal: no control characters, and not many.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{
        protocol::message::{Envelope, PROTOCOL_VERSION, PackEntry},
        transport::BoxFuture,
    };

    /// Answers in turn what it is given, the last for ever.
    struct Scripted(Mutex<Vec<Answer>>);

    impl Peer for Scripted {
        fn call(&self, _: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
            let mut answers = self.0.lock().unwrap();
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
            Box::pin(async { Ok(message::encode(answer)) })
        }
    }

    /// Keeps what it takes.
    #[derive(Default)]
    struct Kept(Vec<Fetched>);

    impl Sink for Kept {
        type Error = ClientError;

        async fn take(&mut self, step: Fetched) -> Result<(), ClientError> {
            self.0.push(step);
            Ok(())
        }
    }

    fn at(version: i64) -> Cursor {
        Cursor { version, seq: 0 }
    }

    fn entry(bytes: &[u8], from: i64, to: i64) -> PackEntry {
        let id = *PackId::of(bytes).as_bytes();
        PackEntry { id, bytes: bytes.len() as u64, changes: 1, from: at(from).into(), to: at(to).into() }
    }

    fn offer(packs: Vec<PackEntry>, end: i64, more: bool) -> Answer {
        Answer::Offer(Manifest { packs, end: at(end).into(), more })
    }

    async fn fetch(answers: Vec<Answer>, up_to: i64) -> Result<Kept, ClientError> {
        let client = Client::new(Arc::new(Scripted(Mutex::new(answers))), Limits::default());
        let mut kept = Kept::default();
        let reader = SiteId::from_bytes(&[1; 16]).unwrap();
        client.fetch(Cursor::ZERO, up_to, &reader, &mut kept).await.map(|()| kept)
    }

    #[tokio::test]
    async fn packs_arrive_checked_and_in_order() {
        let chunk = |bytes: &[u8]| Answer::Chunk { bytes: bytes.to_vec() };
        let offered = offer(vec![entry(b"one", 0, 1), entry(b"two", 1, 2)], 3, false);
        let kept = fetch(vec![Answer::Working, offered, chunk(b"one"), chunk(b"two")], 3).await.unwrap();
        let [Fetched::Pack(_, one), Fetched::Pack(_, two), Fetched::Reached(end)] = kept.0.as_slice() else {
            panic!("{:?}", kept.0)
        };
        assert_eq!((one.as_slice(), two.as_slice(), *end), (&b"one"[..], &b"two"[..], at(3)));
    }

    #[tokio::test]
    async fn what_is_not_what_was_offered_is_refused() {
        let chunk = Answer::Chunk { bytes: b"two".to_vec() };
        let result = fetch(vec![offer(vec![entry(b"one", 0, 1)], 1, false), chunk], 1).await;
        assert!(matches!(result, Err(ClientError::Damaged)));
    }

    #[tokio::test]
    async fn offers_that_lie_are_refused() {
        for (packs, end, more) in [
            (vec![entry(b"a", 1, 1)], 1, false),
            (vec![entry(b"a", 0, 2), entry(b"b", 1, 3)], 3, false),
            (vec![entry(b"a", 0, 2)], 1, false),
            (vec![entry(b"a", 0, 1); 65], 1, false),
            (vec![], 0, true),
        ] {
            let result = fetch(vec![offer(packs.clone(), end, more)], 9).await;
            assert!(matches!(result, Err(ClientError::Protocol(_))), "{packs:?}");
        }
        let huge = PackEntry { bytes: 1 << 40, ..entry(b"a", 0, 1) };
        let result = fetch(vec![offer(vec![huge], 1, false)], 1).await;
        assert!(matches!(result, Err(ClientError::TooLarge { .. })));
    }

    #[tokio::test]
    async fn a_fetch_ends_though_the_peer_goes_on() {
        let endless = fetch(vec![offer(vec![], 10, true)], 5).await.unwrap();
        assert!(matches!(endless.0.as_slice(), [Fetched::Reached(_)]), "{:?}", endless.0);
        let answers = (1..100).map(|end| offer(vec![], end, true)).collect();
        assert!(matches!(fetch(answers, 1000).await, Err(ClientError::Protocol(_))));
        let gone = vec![offer(vec![entry(b"one", 0, 1)], 1, false), Answer::Gone];
        let gone = gone.into_iter().cycle().take(40).collect();
        assert!(matches!(fetch(gone, 1).await, Err(ClientError::PacksVanish)));
    }

    #[tokio::test]
    async fn a_later_version_is_said_to_be_one() {
        struct Later;
        impl Peer for Later {
            fn call(&self, _: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
                let later = Envelope { version: PROTOCOL_VERSION + 1, body: Answer::Busy };
                Box::pin(async move { Ok(minicbor::to_vec(later).unwrap()) })
            }
        }
        let error = Client::new(Arc::new(Later), Limits::default()).status().await.unwrap_err();
        assert!(error.to_string().contains("version 2 of the protocol"), "{error}");
    }
}
