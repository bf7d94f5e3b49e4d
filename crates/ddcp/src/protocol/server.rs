//! The side that answers: cuts packs from the database on request and hands them out in chunks.

use std::{
    collections::HashMap,
    io::{self, Write},
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use minicbor::bytes::ByteVec;
use tokio::sync::watch;

use super::{
    cache::{CacheLimits, Held, PackCache, PackWriter, Written},
    definitions::encode_definitions,
    fruitless::{Fruitless, SHORT, Start},
    gate::{Account, Preparing},
    message::{
        self, Answer, CHUNK_BYTES, DatabaseDigest, INLINE_BYTES, MOST_SUMS, Manifest, PackEntry, RemoteStatus, Request,
        WireLeftOut,
    },
    rows::{encode_rows, fits, ranges_of},
    turns::Turns,
};
use crate::{
    changeset::{Cursor, Pack, SiteId},
    database::{Digest, LeftOut, TableDefinition, TakePack, ToldRows},
    host::Host,
    transport::{BoxFuture, Handler},
};

/// Packs in one offer.
pub(crate) const MOST_PACKS: usize = 32;

/// An offer ends with the pack that reaches so many bytes, which bounds what is read ahead of a client and kept for it.
const OFFER_BYTES: u64 = 8 << 20;

/// An offer ends when it has taken so long since its first pack, or as long as that took, so that a client has
/// something to download while the next one is prepared.
const OFFER_TIME: Duration = Duration::from_millis(500);

/// How long an offer may take before the client is told to ask again. A Veilid node has few slots for calls that
/// are being handled; none may be held while a database is read.
const PATIENCE: Duration = Duration::from_millis(150);

/// How long what was prepared waits for the client to ask for it again.
const OFFER_LIFE: Duration = Duration::from_secs(60);

/// Offers kept or in preparation at once.
const MOST_OFFERS: usize = 64;

/// Offers being read from the database at once: more only compete for the same disk.
const MOST_READERS: usize = 2;

/// How far a source has given packs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// Everything up to here was given.
    pub end: Cursor,
    /// Whether there is more.
    pub more: bool,
    /// What of it was left out, since no pack can hold it.
    pub left_out: LeftOut,
}

impl Reached {
    /// Nothing was left out.
    #[must_use]
    pub fn all(end: Cursor, more: bool) -> Self {
        Self { end, more, left_out: LeftOut::default() }
    }
}

/// What the server reads from. The calls block; the server makes them off the executor.
pub trait Source: Send + Sync + 'static {
    /// Who the repository is and how far its database is.
    ///
    /// # Errors
    /// A sentence that may be shown to the peer: without paths of this machine.
    fn status(&self) -> Result<RemoteStatus, String>;

    /// Gives consecutive packs of what changed after `after`, less what `reader` wrote itself, to `take`, until that
    /// breaks off or there are no more, and says how far. The same packs again if asked
    /// again, but for what has changed in between: downloads go on after a restart of this side.
    ///
    /// # Errors
    /// As [`Source::status`].
    fn packs(&self, after: Cursor, reader: &SiteId, take: TakePack<'_>) -> Result<Reached, String>;

    /// How the shared tables are declared. A source that has no declarations of its own to tell need not.
    ///
    /// # Errors
    /// As [`Source::status`].
    fn definitions(&self) -> Result<Vec<TableDefinition>, String> {
        Err("it does not tell how its tables are declared".to_owned())
    }

    /// The digest of the database, and up to which version everything that `reader` has was merged into it. `None`
    /// while it is being made for somebody else.
    ///
    /// # Errors
    /// As [`Source::status`]; a source need not have one.
    fn digest(&self, reader: &SiteId) -> Result<Option<(Digest, Option<i64>)>, String> {
        let _ = reader;
        Err("it makes no digests".to_owned())
    }

    /// The rows in `ranges` of the digest, so long as `fits` holds of their number and the bytes of their keys: else
    /// those of fewer ranges. `None` while something is made for somebody else.
    ///
    /// # Errors
    /// As [`Source::digest`].
    fn rows(&self, ranges: &[usize], fits: &dyn Fn(usize, usize) -> bool) -> Result<Option<ToldRows>, String> {
        let _ = (ranges, fits);
        Err("it makes no digests".to_owned())
    }
}

/// Answers the requests of peers from a [`Source`]. Cheap to clone. As a [`Handler`] it is for a caller on this
/// machine, whose limits are those of the files; for strangers it stands behind a [`Guarded`](super::Guarded).
#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

struct Inner {
    source: Box<dyn Source>,
    host: Host,
    /// Who may read the database.
    turns: Arc<Turns>,
    jobs: Mutex<HashMap<JobKey, Job>>,
    packs: Mutex<PackCache>,
    fruitless: Mutex<Fruitless>,
    /// Of a caller on this machine.
    own: Arc<Account>,
}

/// What is being prepared, and for which number of a client's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum JobKey {
    Offer(SiteId, u64),
    Schema(u64),
    Digest(SiteId, u64),
    Rows(u64),
}

struct Job {
    /// `None` until it is ready; then the answer, and since when there is one.
    answer: watch::Receiver<Option<(Answer, Instant)>>,
}

impl Job {
    /// Since when there is an answer.
    fn ready(&self) -> Option<Instant> {
        self.answer.borrow().as_ref().map(|(_, since)| *since)
    }

    /// Whether it is worth keeping: it is being worked on, however long that takes, or its answer is fresh.
    fn is_alive(&self, host: &Host) -> bool {
        match self.ready() {
            Some(since) => host.since(since) < OFFER_LIFE,
            // Without its sender it has ended without an answer.
            None => self.answer.has_changed().is_ok(),
        }
    }
}

impl Server {
    /// A server that answers from `source`. It keeps packs that are large in nameless files in `spool`, or everything
    /// in memory without it.
    #[must_use]
    pub fn new(source: impl Source, spool: Option<PathBuf>, host: Host) -> Self {
        Self {
            inner: Arc::new(Inner {
                source: Box::new(source),
                turns: Turns::new(MOST_READERS, host.clone()),
                host,
                jobs: Mutex::default(),
                packs: Mutex::new(PackCache::new(spool, CacheLimits::default())),
                fruitless: Mutex::default(),
                own: Arc::default(),
            }),
        }
    }

    /// The machine it runs on.
    pub(super) fn host(&self) -> Host {
        self.inner.host.clone()
    }

    /// Answers `request` at the expense of `account`.
    pub(super) async fn answer(&self, request: Request, account: &Arc<Account>) -> Answer {
        match request {
            Request::Status => self.status(account).await,
            Request::Offer { job, after, reader } => match SiteId::from_bytes(&reader) {
                Ok(reader) => {
                    let after = after.into();
                    let cut = move |inner: &Inner| inner.offer(&reader, after);
                    self.job(JobKey::Offer(reader, job), account, cut).await
                }
                Err(error) => Answer::Refused { reason: error.to_string() },
            },
            Request::Digest { job, reader } => match SiteId::from_bytes(&reader) {
                Ok(reader) => {
                    self.job(JobKey::Digest(reader, job), account, move |inner: &Inner| inner.digest(&reader)).await
                }
                Err(error) => Answer::Refused { reason: error.to_string() },
            },
            Request::Rows { job, ranges } => match ranges_of(&ranges) {
                Some(ranges) => self.job(JobKey::Rows(job), account, move |inner: &Inner| inner.rows(&ranges)).await,
                None => Answer::Refused { reason: "these are no ranges of a digest".to_owned() },
            },
            Request::Chunk { pack, index } => self.chunk(&pack, index, account).await,
            Request::Schema { job } => self.job(JobKey::Schema(job), account, Inner::schema).await,
            Request::Challenge { .. } | Request::Proof { .. } => {
                Answer::Refused { reason: "nobody has to prove who he is here".to_owned() }
            }
            // Nobody listens behind this.
            Request::Hint { .. } => Answer::Noted,
        }
    }

    async fn status(&self, account: &Arc<Account>) -> Answer {
        let inner = self.inner.clone();
        let read = async move {
            let turn = inner.turns.take(account).await;
            let work = Arc::clone(&inner);
            let status = inner.host.blocking(move || (work.source.status(), turn));
            status.await.map(|(status, _)| status)
        };
        match self.inner.host.timeout(PATIENCE, read).await {
            Some(Some(Ok(status))) => Answer::Status(status),
            Some(Some(Err(reason))) => Answer::Refused { reason },
            Some(None) | None => Answer::Busy,
        }
    }

    /// Starts `work` or finds what was started under this key, and waits a little for its answer.
    async fn job(
        &self,
        key: JobKey,
        account: &Arc<Account>,
        work: impl FnOnce(&Inner) -> Result<Answer, String> + Send + 'static,
    ) -> Answer {
        let Some(mut ready) = self.find_or_start(key, account, work) else { return Answer::Busy };
        let answer = self.inner.host.timeout(PATIENCE, ready.wait_for(Option::is_some)).await;
        match answer {
            Some(Ok(answer)) => answer.as_ref().map_or(Answer::Working, |(answer, _)| answer.clone()),
            // The job ended without an answer: it panicked or the runtime is going down.
            Some(Err(_)) => Answer::Busy,
            None => Answer::Working,
        }
    }

    fn find_or_start(
        &self,
        key: JobKey,
        account: &Arc<Account>,
        work: impl FnOnce(&Inner) -> Result<Answer, String> + Send + 'static,
    ) -> Option<watch::Receiver<Option<(Answer, Instant)>>> {
        let mut jobs = lock(&self.inner.jobs);
        jobs.retain(|_, job| job.is_alive(&self.inner.host));
        if let Some(job) = jobs.get(&key) {
            return Some(job.answer.clone());
        }
        let preparing = account.begin_offer()?;
        if jobs.len() >= MOST_OFFERS {
            // What was answered is kept only in case the answer was lost.
            let answered = jobs.iter().filter_map(|(key, job)| Some((*key, job.ready()?)));
            let (oldest, _) = answered.min_by_key(|(_, since)| *since)?;
            jobs.remove(&oldest);
        }
        let (sender, receiver) = watch::channel(None);
        jobs.insert(key, Job { answer: receiver.clone() });
        self.inner.host.spawn(prepare(self.inner.clone(), key, work, account.clone(), preparing, sender));
        Some(receiver)
    }

    async fn chunk(&self, pack: &[u8; 32], index: u32, account: &Account) -> Answer {
        let Some((length, held)) = lock(&self.inner.packs).get(pack, self.inner.host.now()) else {
            return Answer::Gone;
        };
        let start = u64::from(index) * CHUNK_BYTES as u64;
        if start >= length {
            account.fault("asks for chunks that packs do not have");
            return Answer::Refused { reason: format!("the pack has no chunk {index}") };
        }
        let size = (length - start).min(CHUNK_BYTES as u64) as usize;
        let read = match held {
            Held::Memory(_) => held.read(start, size),
            Held::File(_) => {
                let read = self.inner.host.blocking(move || held.read(start, size)).await;
                read.unwrap_or_else(|| Err(io::Error::other("stopped")))
            }
        };
        match read {
            Ok(bytes) => Answer::Chunk { bytes },
            Err(error) => {
                tracing::error!(%error, "a pack that was put aside cannot be read");
                Answer::Gone
            }
        }
    }
}

/// Does what reads the database, when it is the caller's turn.
async fn prepare(
    inner: Arc<Inner>,
    key: JobKey,
    work: impl FnOnce(&Inner) -> Result<Answer, String> + Send + 'static,
    account: Arc<Account>,
    _preparing: Preparing,
    ready: watch::Sender<Option<(Answer, Instant)>>,
) {
    let _turn = inner.turns.take(&account).await;
    let read = inner.clone();
    let Some(answer) = inner.host.blocking(move || work(&read)).await else { return };
    if answer == Ok(Answer::Busy) {
        // Not kept: asked again, it is tried again.
        lock(&inner.jobs).remove(&key);
    }
    let answer = answer.unwrap_or_else(|reason| Answer::Refused { reason });
    let _ = ready.send(Some((answer, inner.host.now())));
}

impl Inner {
    /// Prepares an offer, or finds that there is nothing to offer. Blocks.
    fn offer(&self, reader: &SiteId, after: Cursor) -> Result<Answer, String> {
        let began = self.host.now();
        let is_known = lock(&self.fruitless).knows(reader);
        let from = match is_known.then(|| self.standing()).transpose()? {
            Some((source, version)) => lock(&self.fruitless).start(reader, after, &source, version, began),
            None => Start::At(after),
        };
        let Start::At(from) = from else { return Ok(Answer::Busy) };
        let offer = self.cut(reader, from)?;
        let (end, now) = (Cursor::from(offer.end), self.host.now());
        let is_fruitless = offer.packs.is_empty() && offer.left_out.is_none() && end > from;
        if is_fruitless && (is_known || now - began >= SHORT) {
            let (source, _) = self.standing()?;
            lock(&self.fruitless).note(*reader, source, (from, end), (began, now));
        }
        Ok(Answer::Offer(offer))
    }

    /// The database's site and version.
    fn standing(&self) -> Result<(SiteId, i64), String> {
        let status = self.source.status()?;
        Ok((SiteId::from_bytes(&status.site_id).map_err(|error| error.to_string())?, status.db_version))
    }

    /// Cuts an offer's packs, each encoded and put away before the next is read. Costs what the packs hold, not what
    /// the database holds. Blocks.
    fn cut(&self, reader: &SiteId, after: Cursor) -> Result<Manifest, String> {
        let started = self.host.now();
        let mut until = None;
        let mut offer = OfferedPacks::default();
        let mut failure = None;
        let Reached { end, more, left_out } = self.source.packs(after, reader, &mut |pack| {
            match self.keep(&pack) {
                Ok(written) => offer.add(&pack, &written),
                Err(error) => {
                    failure = Some(error);
                    return ControlFlow::Break(());
                }
            }
            let now = self.host.now();
            let until = *until.get_or_insert_with(|| now + OFFER_TIME.max(now - started));
            if offer.is_full() || now >= until { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(error) = failure {
            return Err(no_room(&error));
        }
        Ok(Manifest { packs: offer.packs, end: end.into(), more, left_out: WireLeftOut::new(left_out) })
    }

    /// Encodes the declarations of the shared tables and puts them away as a pack is. Blocks.
    fn schema(&self) -> Result<Answer, String> {
        let bytes = encode_definitions(&self.source.definitions()?).map_err(|error| {
            tracing::error!(%error, "the declarations of the tables here cannot be told to a peer");
            format!("it cannot tell how its tables are declared: {error}")
        })?;
        let written = self.keep_written(|writer| writer.write_all(&bytes)).map_err(|error| no_room(&error))?;
        let content = (bytes.len() <= INLINE_BYTES).then(|| bytes.into());
        Ok(Answer::Schema { id: written.id, bytes: written.length, content })
    }

    /// Makes the digest. Blocks.
    fn digest(&self, reader: &SiteId) -> Result<Answer, String> {
        let Some((digest, known)) = self.source.digest(reader)? else { return Ok(Answer::Busy) };
        let bytes = |sums: &mut dyn Iterator<Item = u128>| sums.flat_map(u128::to_le_bytes).collect::<Vec<u8>>();
        let tables =
            if digest.tables.len() <= MOST_SUMS { bytes(&mut digest.tables.values().copied()) } else { Vec::new() };
        let ranges = bytes(&mut digest.ranges.iter().copied());
        let (db_version, schema) = (digest.mark.version, digest.mark.schema.to_vec());
        Ok(Answer::Digest(DatabaseDigest { db_version, schema, tables, ranges, known }))
    }

    /// Finds rows, and puts them away as a pack is. Blocks.
    fn rows(&self, ranges: &[usize]) -> Result<Answer, String> {
        let Some(rows) = self.source.rows(ranges, &fits)? else { return Ok(Answer::Busy) };
        let bytes = encode_rows(rows);
        let written = self.keep_written(|writer| writer.write_all(&bytes)).map_err(|error| no_room(&error))?;
        let content = (bytes.len() <= INLINE_BYTES).then(|| bytes.into());
        Ok(Answer::Rows { id: written.id, bytes: written.length, content })
    }

    fn keep(&self, pack: &Pack) -> io::Result<Written> {
        self.keep_written(|writer| pack.write_to(writer))
    }

    fn keep_written(&self, write: impl FnOnce(&mut PackWriter) -> io::Result<()>) -> io::Result<Written> {
        let mut writer = lock(&self.packs).writer(self.host.now());
        write(&mut writer)?;
        let written = writer.finish()?;
        lock(&self.packs).put(written.clone(), self.host.now());
        Ok(written)
    }
}

/// What a peer is told.
fn no_room(error: &io::Error) -> String {
    tracing::error!(%error, "what was prepared for a peer cannot be kept");
    "it has no room to prepare its answer at the moment".to_owned()
}

/// An offer in the making.
#[derive(Default)]
struct OfferedPacks {
    packs: Vec<PackEntry>,
    bytes: u64,
    /// Bytes that go with the offer.
    inline: usize,
}

impl OfferedPacks {
    fn add(&mut self, pack: &Pack, written: &Written) {
        self.bytes += written.length;
        let content = match &written.held {
            Held::Memory(bytes) if bytes.len() <= INLINE_BYTES - self.inline => Some(bytes.to_vec().into()),
            _ => None,
        };
        self.inline += content.as_ref().map_or(0, |content: &ByteVec| content.len());
        self.packs.push(PackEntry {
            id: written.id,
            bytes: written.length,
            changes: pack.changes.len() as u64,
            from: pack.from.into(),
            to: pack.to.into(),
            content,
        });
    }

    fn is_full(&self) -> bool {
        self.packs.len() >= MOST_PACKS || self.bytes >= OFFER_BYTES
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

/// What the mutexes guard is consistent after every statement, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
