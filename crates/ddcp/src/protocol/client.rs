//! The side that asks: follows a peer's offers and downloads the packs, as many chunks at a time as the way there
//! holds, while the next offer is asked for and packs that have arrived are stored.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt,
    future::{Either, join, select},
    stream,
};
use tokio::sync::mpsc;

use super::{
    Meter,
    credentials::Credentials,
    definitions::DefinitionsError,
    hint::HintTag,
    message::{
        self, Answer, CHUNK_BYTES, DatabaseDigest, Manifest, MessageError, NO_MESSAGE, PackEntry, RemoteStatus,
        Request, Session,
    },
    parts::{Assembly, AssemblyError, Parts},
    rate::{LeastRate, Rate},
    rows::RowsError,
    window::{Gate, MOST},
};
use crate::{
    changeset::{Cursor, SiteId},
    database::{LeftOut, RANGES},
    host::Host,
    text::shown,
    transport::{Peer, TransportError},
};

/// Packs being downloaded at once, so that the window is full across the end of a small pack.
const PACKS_AHEAD: usize = 16;

/// Times in a row that an offer may be lost before one of its packs was stored.
const MOST_LOST_OFFERS: u32 = 16;

/// Offers without a pack in a row, in one fetch. An honest server reads on until it has a pack or the end.
const MOST_EMPTY_OFFERS: u32 = 16;

/// Pauses before a question is repeated.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Bounds on what a peer may make this side hold and wait for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest pack in bytes.
    pub pack_bytes: u64,
    /// Bytes of packs in one fetch, all together.
    pub room: u64,
    /// The most packs in one offer.
    pub packs: usize,
    /// How long a peer that has answered before may answer nothing but "busy" or "working", or nothing at all.
    pub patience: Duration,
    /// How fast a peer must send.
    pub least_rate: LeastRate,
}

impl Default for Limits {
    fn default() -> Self {
        let (patience, least_rate) = (Duration::from_secs(120), LeastRate::default());
        Self { pack_bytes: 1 << 30, room: 16 << 30, packs: 64, patience, least_rate }
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
    /// The peer sends, but next to nothing.
    #[error("it sends too slowly: {bytes} bytes in {} s", .within.as_secs())]
    TooSlow {
        /// What came.
        bytes: u64,
        /// In this time.
        within: Duration,
    },
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
    /// More than there is room for.
    #[error("there is no room for more: {most} bytes of changes may lie fetched and not merged")]
    NoRoom {
        /// The limit.
        most: u64,
    },
    /// The repository is private, and this one is none of its remotes.
    #[error("not authorised: it is private, and this repository is none of its remotes")]
    NotAuthorised,
    /// This side's identity, which it was to prove, could not be used.
    #[error("this repository's identity cannot be used: {0}")]
    Identity(TransportError),
    /// Packs kept vanishing before they could be downloaded.
    #[error("it drops packs faster than they can be downloaded")]
    PacksVanish,
    /// The peer is older than the question.
    #[error("it does not know this request: it runs an older version of ddcp")]
    NotKnown,
    /// The declarations of the peer's tables are none, or too much.
    #[error("the declarations of its tables cannot be used: {0}")]
    Definitions(#[from] DefinitionsError),
    /// The rows that the peer told are none, or too many.
    #[error("what it tells of its rows cannot be used: {0}")]
    Rows(#[from] RowsError),
    /// What arrived could not be kept on this side.
    #[error("what arrives cannot be kept: {0}")]
    Storage(#[source] std::io::Error),
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
    /// What of the following, up to what is reached next, the peer cannot send. In the peer's words, made printable.
    LeftOut(LeftOut),
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

/// What is to be read.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    after: Cursor,
    up_to: i64,
    reader: &'a SiteId,
}

/// What an offer promises, in order.
enum Promise {
    /// A pack, with its bytes if the offer held them.
    Pack(OfferedPack, Option<Vec<u8>>),
    LeftOut(LeftOut),
    Reached(Cursor),
}

/// A promise that has been kept, or not.
enum Arrival {
    Pack(OfferedPack, Assembly),
    LeftOut(LeftOut),
    Reached(Cursor),
    /// The peer no longer has the pack.
    Gone,
}

/// Asks one peer. Cheap to clone; clones share the window.
#[derive(Clone)]
pub struct Client {
    peer: Arc<dyn Peer>,
    limits: Limits,
    host: Host,
    parts: Parts,
    gate: Arc<Gate>,
    /// When the peer last gave something.
    given: Arc<Mutex<Option<Instant>>>,
    rate: Arc<Rate>,
    credentials: Option<Arc<Credentials>>,
    session: Session,
    meter: Meter,
}

impl Client {
    /// A client of `peer`. It keeps packs in memory while they arrive; see [`Client::with_parts`].
    #[must_use]
    pub fn new(peer: Arc<dyn Peer>, limits: Limits, host: Host) -> Self {
        let gate = Arc::new(Gate::new(host.now()));
        let rate = Arc::new(Rate::new(limits.least_rate, host.now()));
        let session = host.random_bytes().into();
        Self {
            peer,
            limits,
            host,
            parts: Parts::in_memory(),
            gate,
            given: Arc::default(),
            rate,
            credentials: None,
            session,
            meter: Meter::default(),
        }
    }

    /// The same client, which shows on `meter` how far its downloads are.
    #[must_use]
    pub fn with_meter(self, meter: Meter) -> Self {
        Self { meter, ..self }
    }

    /// The client, able to prove to a private repository who asks.
    #[must_use]
    pub fn with_credentials(self, credentials: Credentials) -> Self {
        Self { credentials: Some(Arc::new(credentials)), ..self }
    }

    /// The same client, which keeps packs in `parts` while they arrive, and may take `room` bytes of them.
    #[must_use]
    pub fn with_parts(self, parts: Parts, room: u64) -> Self {
        Self { parts, limits: Limits { room, ..self.limits }, ..self }
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

    /// Tells the peer that there is something new at the repository that `tag` stands for.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::NotKnown`] of a peer that is too old for hints.
    pub async fn hint(&self, tag: HintTag) -> Result<(), ClientError> {
        match self.ask(Request::Hint { tag: tag.to_bytes() }).await? {
            Answer::Noted => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// The digest of the peer's database, and how far it has merged what `reader` has.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::NotKnown`] of a peer that is too old to have one.
    pub async fn digest(&self, reader: &SiteId) -> Result<DatabaseDigest, ClientError> {
        let request = Request::Digest { job: self.host.random(), reader: reader.as_bytes().to_vec() };
        match self.ask(request).await? {
            Answer::Digest(digest) if digest.ranges.len() == 16 * RANGES && digest.tables.len() % 16 == 0 => Ok(digest),
            Answer::Digest(_) => Err(ClientError::Protocol("its digest has the wrong size".into())),
            other => Err(unexpected(&other)),
        }
    }

    /// Downloads everything after `after` that `reader` did not write itself, and gives it to `sink` in order,
    /// step by step, at least up to the version `up_to`: what a peer that is being written to adds meanwhile is for
    /// the next fetch, so that a fetch ends. What `sink` took before an error need not be fetched again, nor what
    /// has been kept in parts.
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
        self.meter.update(|progress| (progress.version, progress.target) = (after.version, up_to));
        self.begin_to_measure();
        let mut wanted = Wanted { after, up_to, reader };
        let mut store = Store { client: self, sink, reached: after, packs: 0 };
        let mut lost = 0;
        loop {
            if self.follow(wanted, &mut store).await? {
                break;
            }
            tracing::debug!("the peer has dropped a pack that it offered; asking for another offer");
            lost = if store.reached > wanted.after { 0 } else { lost + 1 };
            if lost > MOST_LOST_OFFERS {
                return Err(ClientError::PacksVanish.into());
            }
            wanted.after = store.reached;
        }
        self.remove_stale_parts().await;
        Ok(())
    }

    /// Follows offers until there are no more, or until a pack is gone before it was downloaded; whether it was the
    /// former. Offers, downloads and storage go on at the same time, each a little ahead of the next.
    async fn follow<S: Sink>(&self, wanted: Wanted<'_>, store: &mut Store<'_, S>) -> Result<bool, S::Error> {
        let (offer, offers) = mpsc::channel(1);
        let (arrive, mut arrivals) = mpsc::channel(1);
        let offering = async move {
            if let Err(error) = self.follow_offers(wanted, &offer).await {
                let _ = offer.send(Err(error)).await;
            }
        };
        let promises = stream::unfold(offers, |mut offers| async move { Some((offers.recv().await?, offers)) })
            .flat_map(|offer: Result<Vec<Promise>, ClientError>| match offer {
                Ok(promises) => stream::iter(promises).map(Ok).left_stream(),
                Err(error) => stream::iter([Err(error)]).right_stream(),
            });
        let downloading = async move {
            let mut downloads = pin!(promises.map(|promise| self.await_promise(promise)).buffered(PACKS_AHEAD));
            while let Some(arrival) = downloads.next().await {
                let is_last = matches!(arrival, Err(_) | Ok(Arrival::Gone));
                if arrive.send(arrival).await.is_err() || is_last {
                    return;
                }
            }
        };
        let storing = async {
            while let Some(arrival) = arrivals.recv().await {
                if !store.take(arrival?).await? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        match select(pin!(storing), pin!(join(offering, downloading))).await {
            Either::Left((stored, _)) => stored,
            Either::Right((_, storing)) => storing.await,
        }
    }

    /// Asks for one offer after the other, each as soon as the one before has been taken up.
    async fn follow_offers(
        &self,
        wanted: Wanted<'_>,
        offers: &mpsc::Sender<Result<Vec<Promise>, ClientError>>,
    ) -> Result<(), ClientError> {
        let mut after = wanted.after;
        let mut empty = 0;
        let mut room = self.limits.room;
        loop {
            let Offer { packs, end, more, left_out } = self.offer(after, wanted.reader).await?;
            empty = if packs.is_empty() { empty + 1 } else { 0 };
            if empty > MOST_EMPTY_OFFERS {
                return Err(ClientError::Protocol("it goes on offering nothing".into()));
            }
            let mut promises = Vec::with_capacity(packs.len() + 2);
            let mut fits = true;
            for (pack, content) in packs {
                let left = room.checked_sub(pack.bytes);
                fits = left.is_some();
                let Some(left) = left else { break };
                room = left;
                self.parts.note_offered(&pack);
                self.meter.update(|progress| progress.offer(pack.bytes, pack.changes));
                promises.push(Promise::Pack(pack, content));
            }
            if fits {
                promises.extend(left_out.map(Promise::LeftOut));
                promises.push(Promise::Reached(end));
            }
            // Nobody takes it: a pack was gone.
            if offers.send(Ok(promises)).await.is_err() {
                return Ok(());
            }
            if !fits {
                return Err(ClientError::NoRoom { most: self.limits.room });
            }
            if !more || end.version > wanted.up_to {
                return Ok(());
            }
            after = end;
        }
    }

    async fn offer(&self, after: Cursor, reader: &SiteId) -> Result<Offer, ClientError> {
        let request =
            Request::Offer { job: self.host.random(), after: after.into(), reader: reader.as_bytes().to_vec() };
        match self.ask(request).await? {
            Answer::Offer(manifest) => {
                let content = |pack: &PackEntry| pack.content.as_ref().map_or(0, |content| content.len() as u64);
                self.check_rate(manifest.packs.iter().map(content).sum())?;
                self.check(after, manifest)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Refuses offers that are too large, out of order, or would go on for ever.
    fn check(&self, after: Cursor, manifest: Manifest) -> Result<Offer, ClientError> {
        let wrong = |what: &str| Err(ClientError::Protocol(format!("its offer {what}")));
        let Manifest { packs, end, more, left_out } = manifest;
        let end = Cursor::from(end);
        if packs.len() > self.limits.packs {
            return wrong("has too many packs");
        }
        let mut reached = after;
        let mut offered = Vec::with_capacity(packs.len());
        for PackEntry { id, bytes, changes, from, to, content } in packs {
            let (from, to) = (Cursor::from(from), Cursor::from(to));
            if from < reached || to <= from {
                return wrong("is out of order");
            }
            if bytes > self.limits.pack_bytes {
                return Err(ClientError::TooLarge { bytes, most: self.limits.pack_bytes });
            }
            reached = to;
            offered.push((OfferedPack { id, bytes, changes, from, to }, content.map(Vec::from)));
        }
        if end < reached || (more && end <= after) {
            return wrong("does not lead on");
        }
        Ok(Offer { packs: offered, end, more, left_out: left_out.map(|left_out| left_out.read(printable)) })
    }

    async fn await_promise(&self, promise: Result<Promise, ClientError>) -> Result<Arrival, ClientError> {
        match promise? {
            Promise::Pack(pack, Some(content)) => {
                self.meter.update(|progress| progress.bytes += content.len() as u64);
                let assembly = Assembly::whole(&pack, content);
                Ok(Arrival::Pack(pack, assembly))
            }
            Promise::Pack(pack, None) => self.download(pack).await,
            Promise::LeftOut(left_out) => Ok(Arrival::LeftOut(left_out)),
            Promise::Reached(end) => Ok(Arrival::Reached(end)),
        }
    }

    /// Gets the chunks of a pack that are not there yet. Those that arrive before a failure are kept.
    async fn download(&self, pack: OfferedPack) -> Result<Arrival, ClientError> {
        let too_large = || ClientError::TooLarge { bytes: pack.bytes, most: self.limits.pack_bytes };
        let chunks = u32::try_from(pack.bytes.div_ceil(CHUNK_BYTES as u64)).map_err(|_| too_large())?;
        let (parts, offered) = (self.parts.clone(), pack.clone());
        let mut assembly = self.on_disk(move || parts.open(&offered, chunks)).await?;
        let missing = assembly.missing();
        let held = (u64::from(chunks) - missing.len() as u64) * CHUNK_BYTES as u64;
        self.meter.update(|progress| progress.bytes += held.min(pack.bytes));
        let (id, bytes) = (pack.id, pack.bytes);
        let chunk = |index| async move { (index, self.chunk(id, bytes, index).await) };
        let mut arriving = pin!(stream::iter(missing).map(chunk).buffer_unordered(MOST).ready_chunks(MOST));
        while let Some(answers) = arriving.next().await {
            let mut arrived = Vec::with_capacity(answers.len());
            let mut stop = None;
            for (index, answer) in answers {
                match answer {
                    Ok(Some(chunk)) => {
                        self.meter.update(|progress| progress.bytes += chunk.len() as u64);
                        arrived.push((index, chunk));
                    }
                    Ok(None) => stop = Some(Ok(Arrival::Gone)),
                    Err(error) => stop = Some(Err(error)),
                }
            }
            assembly = self.on_disk(move || assembly.put(arrived).map(|()| assembly)).await?;
            if let Some(stop) = stop {
                return stop;
            }
        }
        Ok(Arrival::Pack(pack, assembly))
    }

    /// A part of what has the hash `pack` and `length` bytes; `None` if the peer no longer has it.
    pub(super) async fn chunk(&self, pack: [u8; 32], length: u64, index: u32) -> Result<Option<Vec<u8>>, ClientError> {
        let rest = length.saturating_sub(u64::from(index) * CHUNK_BYTES as u64);
        match self.ask(Request::Chunk { pack, index }).await? {
            Answer::Chunk { bytes } if bytes.len() as u64 == rest.min(CHUNK_BYTES as u64) => {
                self.check_rate(bytes.len() as u64)?;
                Ok(Some(bytes))
            }
            Answer::Gone => Ok(None),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks until there is an answer, proving who asks if that is demanded.
    pub(super) async fn ask(&self, request: Request) -> Result<Answer, ClientError> {
        let proofs = self.credentials.as_ref().map(|credentials| credentials.proofs());
        match self.exchange(request.clone()).await? {
            Answer::NotAuthorised { .. } => {}
            answer => return Ok(answer),
        }
        let (Some(credentials), Some(proofs)) = (&self.credentials, proofs) else {
            return Err(ClientError::NotAuthorised);
        };
        credentials.prove(self, proofs).await?;
        match self.exchange(request).await? {
            Answer::NotAuthorised { .. } => Err(ClientError::NotAuthorised),
            answer => Ok(answer),
        }
    }

    /// The peer is asked for much from now on, and was not before.
    pub(super) fn begin_to_measure(&self) {
        self.rate.begin(self.host.now());
    }

    /// Notes that so many bytes have come of what was asked for; gives up a peer of which too few have come for long.
    fn check_rate(&self, bytes: u64) -> Result<(), ClientError> {
        let within = self.rate.least().within;
        self.rate.note(bytes, self.host.now()).map_err(|bytes| ClientError::TooSlow { bytes, within })
    }

    /// What time, chance and threads are taken from.
    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// The name of this connection.
    pub(super) fn session(&self) -> Session {
        self.session
    }

    /// Asks until the answer is neither "busy" nor "working", waiting longer each time. A peer that has answered
    /// before may also be out of reach for a while.
    pub(super) async fn exchange(&self, request: Request) -> Result<Answer, ClientError> {
        let needs_place = matches!(request, Request::Chunk { .. });
        let request = message::encode_request(self.session, request);
        let started = self.host.now();
        let mut pause = FIRST_PAUSE;
        loop {
            let place = if needs_place { Some(self.gate.enter(|| self.host.now()).await) } else { None };
            let failure = match self.peer.call(request.clone()).await {
                Ok(bytes) => match message::decode(&bytes)? {
                    Answer::Refused { reason } if reason.starts_with(NO_MESSAGE) => return Err(ClientError::NotKnown),
                    Answer::Refused { reason } => return Err(ClientError::Refused(printable(&reason))),
                    Answer::Working => {
                        // It has waited itself before it said so.
                        pause = FIRST_PAUSE;
                        ClientError::Busy(self.quiet(started))
                    }
                    Answer::Busy => {
                        if let Some(place) = place {
                            place.busy(self.host.now());
                        }
                        ClientError::Busy(self.quiet(started))
                    }
                    answer => {
                        if let Some(place) = place {
                            place.answered(self.host.now());
                        }
                        if !matches!(answer, Answer::Gone) {
                            *self.given.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.host.now());
                        }
                        return Ok(answer);
                    }
                },
                Err(error) if error.is_passing() && self.given().is_some() => {
                    tracing::debug!(%error, "a call failed; repeating it");
                    if let Some(place) = place {
                        place.lost(self.host.now());
                    }
                    error.into()
                }
                Err(error) => return Err(error.into()),
            };
            if self.quiet(started) > self.limits.patience {
                return Err(failure);
            }
            self.host.sleep(self.host.vary(pause, &(0.75..1.25))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn given(&self) -> Option<Instant> {
        *self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the peer has given nothing, counted from `started` at most.
    fn quiet(&self, started: Instant) -> Duration {
        let since = self.given().map_or(started, |given| given.max(started));
        self.host.since(since)
    }

    /// Runs `work` on files, off the executor.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, ClientError> {
        self.host.blocking(work).await.unwrap_or_else(|| Err(stopped())).map_err(ClientError::Storage)
    }

    async fn remove_stale_parts(&self) {
        let parts = self.parts.clone();
        self.host.blocking(move || parts.remove_stale()).await;
    }
}

/// An offer that was found to be one.
struct Offer {
    /// Its packs, with the bytes of those that came with it.
    packs: Vec<(OfferedPack, Option<Vec<u8>>)>,
    end: Cursor,
    more: bool,
    left_out: Option<LeftOut>,
}

/// The last stage of a fetch: puts packs together and gives them to the sink.
struct Store<'a, S> {
    client: &'a Client,
    sink: &'a mut S,
    reached: Cursor,
    /// Packs that were stored.
    packs: usize,
}

impl<S: Sink> Store<'_, S> {
    /// Whether to go on. Meanwhile the peer is asked for little more.
    async fn take(&mut self, arrival: Arrival) -> Result<bool, S::Error> {
        let (host, began) = (self.client.host.clone(), self.client.host.now());
        let stored = self.store(arrival).await;
        self.client.rate.excuse(host.since(began));
        stored
    }

    async fn store(&mut self, arrival: Arrival) -> Result<bool, S::Error> {
        match arrival {
            Arrival::Gone => return Ok(false),
            Arrival::LeftOut(left_out) => self.sink.take(Fetched::LeftOut(left_out)).await?,
            Arrival::Reached(end) => {
                self.sink.take(Fetched::Reached(end)).await?;
                self.client.meter.update(|progress| progress.store(0, end.version));
                self.reached = end;
            }
            Arrival::Pack(pack, assembly) => {
                let bytes = match self.client.host.blocking(move || assembly.finish()).await {
                    Some(Ok(bytes)) => bytes,
                    // What an earlier fetch left behind was spoilt by a power cut, say; it has been removed.
                    Some(Err(AssemblyError::Damaged { resumed: true })) => return Ok(false),
                    Some(Err(AssemblyError::Damaged { resumed: false })) => return Err(ClientError::Damaged.into()),
                    Some(Err(AssemblyError::Io(error))) => return Err(ClientError::Storage(error).into()),
                    None => return Err(ClientError::Storage(stopped()).into()),
                };
                let (parts, offered) = (self.client.parts.clone(), pack.clone());
                self.sink.take(Fetched::Pack(pack, bytes)).await?;
                self.reached = offered.to;
                self.client.meter.update(|progress| progress.store(offered.changes, offered.to.version));
                self.client.host.blocking(move || parts.remove(&offered)).await;
                self.packs += 1;
                // An earlier fetch was at most so far ahead: parts of what has not been offered by now never will be.
                if self.packs == PACKS_AHEAD {
                    self.client.remove_stale_parts().await;
                }
            }
        }
        Ok(true)
    }
}

pub(super) fn stopped() -> std::io::Error {
    std::io::Error::other("the work was broken off")
}

pub(super) fn unexpected(answer: &Answer) -> ClientError {
    let what = match answer {
        Answer::Status(_) => "a status",
        Answer::Offer(_) => "an offer",
        Answer::Chunk { .. } => "a chunk of the wrong size",
        Answer::Schema { .. } => "declarations of tables",
        Answer::Gone => "that something is gone",
        Answer::Nonce { .. } | Answer::Authorised => "about a proof",
        Answer::Noted => "that it has noted something",
        Answer::Digest(_) => "a digest",
        Answer::Rows { .. } => "rows",
        Answer::Working | Answer::Busy | Answer::Refused { .. } | Answer::NotAuthorised { .. } => "something else",
    };
    ClientError::Protocol(format!("it answers {what}, which was not the question"))
}

/// A peer's words go to terminals and logs, and are not many.
fn printable(text: &str) -> String {
    shown(&text.chars().take(200).collect::<String>())
}

#[cfg(test)]
pub(super) mod tests;
