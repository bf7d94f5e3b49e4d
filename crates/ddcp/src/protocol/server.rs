//! The side that answers: cuts packs from the database on request and hands them out in chunks.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::message::{self, Answer, CHUNK_BYTES, Manifest, PackEntry, RemoteStatus, Request};
use super::{
    gate::{Account, Preparing},
    turns::Turns,
};
use crate::{
    changeset::{Cursor, Pack, PackId, SiteId},
    transport::{BoxFuture, Handler},
};

/// Packs in one offer: with the pack size target this bounds what one offer reads and what the cache must hold.
pub(crate) const MOST_PACKS: usize = 8;

/// How long an offer may take before the client is told to ask again. A Veilid node has few slots for calls that
/// are being handled; none may be held while a database is read.
const PATIENCE: Duration = Duration::from_millis(150);

/// How long a prepared offer waits for the client to ask for it again.
const OFFER_LIFE: Duration = Duration::from_secs(60);

/// Offers kept or in preparation at once.
const MOST_OFFERS: usize = 64;

/// Offers being read from the database at once: more only compete for the same disk.
const MOST_READERS: usize = 2;

/// Bytes of packs kept for clients that are downloading them.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// What the server reads from. The calls block; the server makes them off the executor.
pub trait Source: Send + Sync + 'static {
    /// Who the repository is and how far its database is.
    ///
    /// # Errors
    /// A sentence that may be shown to the peer: without paths of this machine.
    fn status(&self) -> Result<RemoteStatus, String>;

    /// Up to `most` consecutive packs of what changed after `after`, less what `reader` wrote itself; where they
    /// end; and whether there is more.
    ///
    /// # Errors
    /// As [`Source::status`].
    fn packs(&self, after: Cursor, reader: &SiteId, most: usize) -> Result<(Vec<Pack>, Cursor, bool), String>;
}

/// Answers the requests of peers from a [`Source`]. Cheap to clone. As a [`Handler`] it is for a caller on this
/// machine, whose limits are those of the files; for strangers it stands behind a [`Guarded`](super::Guarded).
#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

struct Inner {
    source: Box<dyn Source>,
    /// Who may read the database.
    turns: Arc<Turns>,
    offers: Mutex<HashMap<OfferKey, Offer>>,
    packs: Mutex<PackCache>,
    /// Of a caller on this machine.
    own: Arc<Account>,
}

type OfferKey = (SiteId, u64);

struct Offer {
    made: Instant,
    /// `None` until it is ready.
    answer: watch::Receiver<Option<Answer>>,
}

impl Server {
    /// A server that answers from `source`.
    #[must_use]
    pub fn new(source: impl Source) -> Self {
        Self {
            inner: Arc::new(Inner {
                source: Box::new(source),
                turns: Turns::new(MOST_READERS),
                offers: Mutex::default(),
                packs: Mutex::default(),
                own: Arc::default(),
            }),
        }
    }

    /// Answers `request` at the expense of `account`.
    pub(super) async fn answer(&self, request: Request, account: &Arc<Account>) -> Answer {
        match request {
            Request::Status => self.status(account).await,
            Request::Offer { job, after, reader } => match SiteId::from_bytes(&reader) {
                Ok(reader) => self.offer((reader, job), after.into(), account).await,
                Err(error) => Answer::Refused { reason: error.to_string() },
            },
            Request::Chunk { pack, index } => self.chunk(&pack, index, account),
            Request::Challenge { .. } | Request::Proof { .. } => {
                Answer::Refused { reason: "nobody has to prove who he is here".to_owned() }
            }
        }
    }

    async fn status(&self, account: &Arc<Account>) -> Answer {
        let inner = self.inner.clone();
        let read = async move {
            let turn = inner.turns.take(account).await;
            let status = tokio::task::spawn_blocking(move || (inner.source.status(), turn));
            status.await.ok().map(|(status, _)| status)
        };
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(Some(Ok(status))) => Answer::Status(status),
            Ok(Some(Err(reason))) => Answer::Refused { reason },
            Ok(None) | Err(_) => Answer::Busy,
        }
    }

    /// Starts preparing the offer or finds it, and waits a little for it.
    async fn offer(&self, key: OfferKey, after: Cursor, account: &Arc<Account>) -> Answer {
        let Some(mut ready) = self.find_or_start(key, after, account) else { return Answer::Busy };
        let answer = tokio::time::timeout(PATIENCE, ready.wait_for(Option::is_some)).await;
        match answer {
            Ok(Ok(answer)) => answer.clone().unwrap_or(Answer::Working),
            // The job ended without an answer: it panicked or the runtime is going down.
            Ok(Err(_)) => Answer::Busy,
            Err(_) => Answer::Working,
        }
    }

    fn find_or_start(
        &self,
        key: OfferKey,
        after: Cursor,
        account: &Arc<Account>,
    ) -> Option<watch::Receiver<Option<Answer>>> {
        let mut offers = lock(&self.inner.offers);
        offers.retain(|_, offer| offer.made.elapsed() < OFFER_LIFE);
        if let Some(offer) = offers.get(&key) {
            return Some(offer.answer.clone());
        }
        let preparing = account.begin_offer()?;
        if offers.len() >= MOST_OFFERS {
            // Answered offers are kept only in case the answer was lost.
            let answered = offers.iter().filter(|(_, offer)| offer.answer.borrow().is_some());
            let oldest = *answered.min_by_key(|(_, offer)| offer.made)?.0;
            offers.remove(&oldest);
        }
        let (sender, receiver) = watch::channel(None);
        offers.insert(key, Offer { made: Instant::now(), answer: receiver.clone() });
        tokio::spawn(prepare(self.inner.clone(), key.0, after, account.clone(), preparing, sender));
        Some(receiver)
    }

    fn chunk(&self, pack: &[u8; 32], index: u32, account: &Account) -> Answer {
        let Some(bytes) = lock(&self.inner.packs).get(pack) else { return Answer::Gone };
        let start = (index as usize).saturating_mul(CHUNK_BYTES);
        match bytes.get(start..bytes.len().min(start.saturating_add(CHUNK_BYTES))) {
            Some(chunk) if !chunk.is_empty() => Answer::Chunk { bytes: chunk.to_vec() },
            _ => {
                account.fault("asks for chunks that packs do not have");
                Answer::Refused { reason: format!("the pack has no chunk {index}") }
            }
        }
    }
}

/// Reads an offer from the database and keeps its packs. Costs what the packs hold, not what the database holds.
async fn prepare(
    inner: Arc<Inner>,
    reader: SiteId,
    after: Cursor,
    account: Arc<Account>,
    _preparing: Preparing,
    ready: watch::Sender<Option<Answer>>,
) {
    let _turn = inner.turns.take(&account).await;
    let work = inner.clone();
    let read = tokio::task::spawn_blocking(move || {
        let (packs, end, more) = work.source.packs(after, &reader, MOST_PACKS)?;
        let packs = packs.iter().map(|pack| (PackFacts::of(pack), pack.encode())).collect::<Vec<_>>();
        Ok::<_, String>((packs, end, more))
    });
    let answer = match read.await {
        Ok(Ok((packs, end, more))) => {
            let mut cache = lock(&inner.packs);
            let packs = packs
                .into_iter()
                .map(|(about, bytes)| {
                    let id = *PackId::of(&bytes).as_bytes();
                    let entry = about.entry(id, bytes.len() as u64);
                    cache.put(id, bytes.into());
                    entry
                })
                .collect();
            Answer::Offer(Manifest { packs, end: end.into(), more })
        }
        Ok(Err(reason)) => Answer::Refused { reason },
        Err(_) => return,
    };
    let _ = ready.send(Some(answer));
}

/// What a manifest says of a pack besides its hash and length.
struct PackFacts {
    changes: u64,
    from: Cursor,
    to: Cursor,
}

impl PackFacts {
    fn of(pack: &Pack) -> Self {
        Self { changes: pack.changes.len() as u64, from: pack.from, to: pack.to }
    }

    fn entry(self, id: [u8; 32], bytes: u64) -> PackEntry {
        PackEntry { id, bytes, changes: self.changes, from: self.from.into(), to: self.to.into() }
    }
}

impl Handler for Server {
    fn handle(&self, request: Vec<u8>) -> BoxFuture<'_, Vec<u8>> {
        Box::pin(async move {
            let answer = match message::decode::<Request>(&request) {
                Ok(request) => self.answer(request, &self.inner.own).await,
                Err(error) => Answer::Refused { reason: error.to_string() },
            };
            message::encode(answer)
        })
    }

    fn busy(&self) -> Vec<u8> {
        message::encode(Answer::Busy)
    }
}

/// Packs by hash, the least recently asked for leaving first. A pack over the limit is kept alone.
#[derive(Default)]
struct PackCache {
    packs: HashMap<[u8; 32], Arc<[u8]>>,
    /// Hashes, the most recently used last.
    order: VecDeque<[u8; 32]>,
    bytes: usize,
}

impl PackCache {
    fn get(&mut self, id: &[u8; 32]) -> Option<Arc<[u8]>> {
        let pack = self.packs.get(id)?.clone();
        self.touch(id);
        Some(pack)
    }

    fn put(&mut self, id: [u8; 32], pack: Arc<[u8]>) {
        self.touch(&id);
        let length = pack.len();
        if self.packs.insert(id, pack).is_none() {
            self.bytes += length;
        }
        while self.bytes > CACHE_BYTES && self.order.len() > MOST_PACKS {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.packs.remove(&oldest).map_or(0, |pack| pack.len());
        }
    }

    fn touch(&mut self, id: &[u8; 32]) {
        if self.order.back() == Some(id) {
            return;
        }
        self.order.retain(|known| known != id);
        self.order.push_back(*id);
    }
}

/// What the mutexes guard is consistent after every statement, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
