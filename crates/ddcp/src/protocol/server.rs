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
    gate::{Account, Preparing},
    message::{
        self, Answer, CHUNK_BYTES, DatabaseDigest, INLINE_BYTES, MOST_SUMS, Manifest, PackEntry, RemoteStatus, Request,
    },
    turns::Turns,
};
use crate::{
    changeset::{Cursor, Pack, SiteId},
    database::{Digest, TableDefinition, TakePack},
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

/// How long a prepared offer waits for the client to ask for it again.
const OFFER_LIFE: Duration = Duration::from_secs(60);

/// Offers kept or in preparation at once.
const MOST_OFFERS: usize = 64;

/// Offers being read from the database at once: more only compete for the same disk.
const MOST_READERS: usize = 2;

/// What the server reads from. The calls block; the server makes them off the executor.
pub trait Source: Send + Sync + 'static {
    /// Who the repository is and how far its database is.
    ///
    /// # Errors
    /// A sentence that may be shown to the peer: without paths of this machine.
    fn status(&self) -> Result<RemoteStatus, String>;

    /// Gives consecutive packs of what changed after `after`, less what `reader` wrote itself, to `take`, until that
    /// breaks off or there are no more; where they end; and whether there is more. The same packs again if asked
    /// again, but for what has changed in between: downloads go on after a restart of this side.
    ///
    /// # Errors
    /// As [`Source::status`].
    fn packs(&self, after: Cursor, reader: &SiteId, take: TakePack<'_>) -> Result<(Cursor, bool), String>;

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
    /// Of a caller on this machine.
    own: Arc<Account>,
}

/// What is being prepared, and for which number of a client's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum JobKey {
    Offer(SiteId, u64),
    Schema(u64),
    Digest(SiteId, u64),
}

struct Job {
    made: Instant,
    /// `None` until it is ready.
    answer: watch::Receiver<Option<Answer>>,
}

impl Server {
    /// A server that answers from `source`. It keeps packs that are large in nameless files in `spool`, or everything
    /// in memory without it.
    #[must_use]
    pub fn new(source: impl Source, spool: Option<PathBuf>, host: Host) -> Self {
        Self {
            inner: Arc::new(Inner {
                source: Box::new(source),
                host,
                turns: Turns::new(MOST_READERS),
                jobs: Mutex::default(),
                packs: Mutex::new(PackCache::new(spool, CacheLimits::default())),
                own: Arc::default(),
            }),
        }
    }

    /// Answers `request` at the expense of `account`.
    pub(super) async fn answer(&self, request: Request, account: &Arc<Account>) -> Answer {
        match request {
            Request::Status => self.status(account).await,
            Request::Offer { job, after, reader } => match SiteId::from_bytes(&reader) {
                Ok(reader) => {
                    let after = after.into();
                    let cut = move |inner: &Inner| inner.cut(&reader, after).map(Answer::Offer);
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
            Some(Ok(answer)) => answer.clone().unwrap_or(Answer::Working),
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
    ) -> Option<watch::Receiver<Option<Answer>>> {
        let mut jobs = lock(&self.inner.jobs);
        jobs.retain(|_, job| self.inner.host.since(job.made) < OFFER_LIFE);
        if let Some(job) = jobs.get(&key) {
            return Some(job.answer.clone());
        }
        let preparing = account.begin_offer()?;
        if jobs.len() >= MOST_OFFERS {
            // What was answered is kept only in case the answer was lost.
            let answered = jobs.iter().filter(|(_, job)| job.answer.borrow().is_some());
            let oldest = *answered.min_by_key(|(_, job)| job.made)?.0;
            jobs.remove(&oldest);
        }
        let (sender, receiver) = watch::channel(None);
        jobs.insert(key, Job { made: self.inner.host.now(), answer: receiver.clone() });
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
    ready: watch::Sender<Option<Answer>>,
) {
    let _turn = inner.turns.take(&account).await;
    let read = inner.clone();
    let Some(answer) = inner.host.blocking(move || work(&read)).await else { return };
    if answer == Ok(Answer::Busy) {
        // Not kept: asked again, it is tried again.
        lock(&inner.jobs).remove(&key);
    }
    let _ = ready.send(Some(answer.unwrap_or_else(|reason| Answer::Refused { reason })));
}

impl Inner {
    /// Cuts an offer's packs, each encoded and put away before the next is read. Costs what the packs hold, not what
    /// the database holds. Blocks.
    fn cut(&self, reader: &SiteId, after: Cursor) -> Result<Manifest, String> {
        let started = self.host.now();
        let mut until = None;
        let mut offer = OfferedPacks::default();
        let mut failure = None;
        let (end, more) = self.source.packs(after, reader, &mut |pack| {
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
        Ok(Manifest { packs: offer.packs, end: end.into(), more })
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
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::{
        changeset::{Change, PackId, PackTable, Value},
        database::Mark,
    };

    /// Has packs with one random value each, of the sizes given.
    struct Values {
        sizes: Vec<usize>,
        /// Packs that were cut and not yet taken: more than one would mean that memory is not bounded.
        alive: Arc<AtomicUsize>,
    }

    fn value(size: usize, salt: u64) -> Value {
        let mut state = salt + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        Value::Blob((0..size).map(|_| next()).collect())
    }

    impl Source for Values {
        fn status(&self) -> Result<RemoteStatus, String> {
            Ok(RemoteStatus { site_id: vec![7; 16], db_version: self.sizes.len() as i64, schema: vec![0; 32] })
        }

        fn packs(&self, after: Cursor, _: &SiteId, take: TakePack<'_>) -> Result<(Cursor, bool), String> {
            let site = SiteId::from_bytes(&[7; 16]).unwrap();
            let mut at = after;
            for (version, size) in (1..).zip(&self.sizes).skip(after.version as usize) {
                let to = Cursor::whole(version);
                let change = Change {
                    table: "t".into(),
                    pk: [1, 9, 1].as_slice().into(),
                    cid: "c".into(),
                    val: value(*size, version as u64),
                    col_version: 1,
                    db_version: version,
                    site_id: site,
                    cl: 1,
                    seq: 0,
                };
                let tables = vec![PackTable { name: "t".into(), key_columns: vec!["id".into()] }];
                assert_eq!(self.alive.fetch_add(1, Ordering::SeqCst), 0);
                let flow = take(Pack { source: site, from: at, to, tables, changes: vec![change] });
                self.alive.fetch_sub(1, Ordering::SeqCst);
                at = to;
                if flow.is_break() {
                    break;
                }
            }
            Ok((at, (at.version as usize) < self.sizes.len()))
        }
    }

    fn server(sizes: &[usize], folder: &tempfile::TempDir) -> Server {
        let source = Values { sizes: sizes.to_vec(), alive: Arc::default() };
        Server::new(source, Some(folder.path().to_owned()), Host::default())
    }

    async fn ask(server: &Server, request: Request) -> Answer {
        let bytes = server.handle(message::encode(request)).await;
        assert!(bytes.len() <= crate::transport::MAX_MESSAGE);
        message::decode(&bytes).unwrap()
    }

    async fn offer(server: &Server, after: Cursor) -> Manifest {
        loop {
            let request = Request::Offer { job: 1, after: after.into(), reader: vec![1; 16] };
            match ask(server, request).await {
                Answer::Offer(manifest) => return manifest,
                Answer::Working => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn download(server: &Server, pack: &PackEntry) -> Vec<u8> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < pack.bytes {
            let index = u32::try_from(bytes.len() / CHUNK_BYTES).unwrap();
            match ask(server, Request::Chunk { pack: pack.id, index }).await {
                Answer::Chunk { bytes: chunk } => bytes.extend(chunk),
                other => panic!("{other:?}"),
            }
        }
        bytes
    }

    #[tokio::test]
    async fn large_packs_are_held_in_files_and_read_from_there() {
        let folder = tempfile::tempdir().unwrap();
        let server = server(&[9_000_000, 6_000_000, 10], &folder);
        let first = offer(&server, Cursor::ZERO).await;
        assert!(first.more && first.packs.len() == 1, "one pack is as much as an offer holds");
        let packs = &lock(&server.inner.packs).get(&first.packs[0].id, Instant::now()).unwrap();
        assert!(matches!(packs, (_, Held::File(_))));
        let bytes = download(&server, &first.packs[0]).await;
        assert_eq!(*PackId::of(&bytes).as_bytes(), first.packs[0].id);
        let pack = Pack::decode(&bytes, &crate::changeset::Limits::default()).unwrap();
        assert_eq!(pack.changes[0].val, value(9_000_000, 1));
        let beyond = Request::Chunk { pack: first.packs[0].id, index: 9_000_000 / CHUNK_BYTES as u32 + 1 };
        assert!(matches!(ask(&server, beyond).await, Answer::Refused { .. }));
    }

    #[tokio::test]
    async fn a_server_that_was_restarted_offers_the_same_packs() {
        let folder = tempfile::tempdir().unwrap();
        let sizes = [5_000_000, 100, 70_000, 3_000_000];
        let before = offer(&server(&sizes, &folder), Cursor::ZERO).await;
        let restarted = server(&sizes, &folder);
        assert_eq!(ask(&restarted, Request::Chunk { pack: before.packs[0].id, index: 0 }).await, Answer::Gone);
        let after = offer(&restarted, Cursor::ZERO).await;
        let ids = |manifest: &Manifest| manifest.packs.iter().map(|pack| pack.id).collect::<Vec<_>>();
        assert!(before.packs.len() >= 2, "{before:?}");
        let both = before.packs.len().min(after.packs.len());
        assert_eq!(ids(&before)[..both], ids(&after)[..both]);
        let rest = offer(&server(&sizes, &folder), before.packs[0].to.into()).await;
        assert_eq!(rest.packs[0].id, before.packs[1].id);
    }

    /// Is at work for somebody else the first time.
    struct Sums(AtomicUsize);

    impl Source for Sums {
        fn status(&self) -> Result<RemoteStatus, String> {
            Err("only digests are asked for".to_owned())
        }

        fn packs(&self, _: Cursor, _: &SiteId, _: TakePack<'_>) -> Result<(Cursor, bool), String> {
            Err("only digests are asked for".to_owned())
        }

        fn digest(&self, reader: &SiteId) -> Result<Option<(Digest, Option<i64>)>, String> {
            let mark = Mark { site: *reader, version: 7, schema_version: 1, schema: [9; 32] };
            let is_free = self.0.fetch_add(1, Ordering::SeqCst) > 0;
            let tables = (0..1000_u32).map(|number| (number.to_string(), 1)).collect();
            Ok(is_free.then(|| (Digest { tables, ..Digest::empty(mark) }, Some(3))))
        }
    }

    #[tokio::test]
    async fn a_digest_that_is_made_for_others_is_asked_for_again() {
        let server = Server::new(Sums(AtomicUsize::new(0)), None, Host::default());
        let mut answers = Vec::new();
        while !matches!(answers.last(), Some(Answer::Digest(_))) {
            answers.push(ask(&server, Request::Digest { job: 1, reader: vec![1; 16] }).await);
        }
        assert!(answers.contains(&Answer::Busy), "{answers:?}");
        let Some(Answer::Digest(digest)) = answers.last() else { unreachable!() };
        assert_eq!((digest.db_version, digest.known, digest.ranges.len()), (7, Some(3), 16 * 1024));
        assert!(digest.tables.is_empty(), "so many sums do not fit a message");
        let values = Values { sizes: Vec::new(), alive: Arc::default() };
        let without = Server::new(values, None, Host::default());
        let answer = ask(&without, Request::Digest { job: 1, reader: vec![1; 16] }).await;
        assert!(matches!(answer, Answer::Refused { .. }), "a source need not have digests");
    }

    #[tokio::test]
    async fn small_packs_come_with_the_offer() {
        let folder = tempfile::tempdir().unwrap();
        let server = server(&[100, 20_000, 40_000, 20_000, 3000], &folder);
        let manifest = offer(&server, Cursor::ZERO).await;
        let inline: Vec<bool> = manifest.packs.iter().map(|pack| pack.content.is_some()).collect();
        assert_eq!(inline, [true, true, false, false, true]);
        for pack in &manifest.packs {
            let bytes = download(&server, pack).await;
            assert!(pack.content.as_ref().is_none_or(|content| ***content == *bytes));
        }
    }
}
