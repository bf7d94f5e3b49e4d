use std::sync::{
    LazyLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::*;
use crate::{
    changeset::{Change, PackId, PackTable, Value},
    database::Mark,
    host::Machine,
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

    fn packs(&self, after: Cursor, _: &SiteId, take: TakePack<'_>) -> Result<Reached, String> {
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
        Ok(Reached::all(at, (at.version as usize) < self.sizes.len()))
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

    fn packs(&self, _: Cursor, _: &SiteId, _: TakePack<'_>) -> Result<Reached, String> {
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

/// A machine whose clock is set by hand.
#[derive(Clone, Default)]
struct ByHand(Arc<AtomicUsize>);

impl ByHand {
    fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as usize, Ordering::SeqCst);
    }
}

impl Machine for ByHand {
    fn now(&self) -> Instant {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        *START + Duration::from_millis(self.0.load(Ordering::SeqCst) as u64)
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::task::yield_now())
    }

    fn random(&self) -> u64 {
        7
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn block(&self, work: Box<dyn FnOnce() + Send>) {
        tokio::task::spawn_blocking(work);
    }
}

/// Makes its digest when it is told that it may.
struct Slow {
    begun: Arc<AtomicUsize>,
    may_end: Arc<AtomicBool>,
}

impl Source for Slow {
    fn status(&self) -> Result<RemoteStatus, String> {
        Err("only digests are asked for".to_owned())
    }

    fn packs(&self, _: Cursor, _: &SiteId, _: TakePack<'_>) -> Result<Reached, String> {
        Err("only digests are asked for".to_owned())
    }

    fn digest(&self, reader: &SiteId) -> Result<Option<(Digest, Option<i64>)>, String> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        while !self.may_end.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let mark = Mark { site: *reader, version: 7, schema_version: 1, schema: [9; 32] };
        Ok(Some((Digest::empty(mark), None)))
    }
}

/// The first answer that is not "still working".
async fn ask_until_ready(server: &Server, request: Request) -> Answer {
    loop {
        match ask(server, request.clone()).await {
            Answer::Working => tokio::task::yield_now().await,
            answer => return answer,
        }
    }
}

#[tokio::test]
async fn what_takes_longer_than_answers_are_kept_is_answered_all_the_same() {
    let (begun, may_end, machine) = (Arc::default(), Arc::new(AtomicBool::new(false)), ByHand::default());
    let source = Slow { begun: Arc::clone(&begun), may_end: Arc::clone(&may_end) };
    let server = Server::new(source, None, Host::new(machine.clone()));
    let digest = Request::Digest { job: 1, reader: vec![1; 16] };
    for _ in 0..3 {
        assert_eq!(ask(&server, digest.clone()).await, Answer::Working);
        machine.advance(OFFER_LIFE);
    }
    may_end.store(true, Ordering::SeqCst);
    assert!(matches!(ask_until_ready(&server, digest.clone()).await, Answer::Digest(_)));
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    // It is kept from then on, for a while.
    machine.advance(OFFER_LIFE / 2);
    ask_until_ready(&server, digest.clone()).await;
    assert_eq!(begun.load(Ordering::SeqCst), 1);
    machine.advance(OFFER_LIFE);
    ask_until_ready(&server, digest).await;
    assert_eq!(begun.load(Ordering::SeqCst), 2);
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

/// Has a long history that the reader wrote itself, which takes long to read.
struct OwnWork(Arc<AtomicUsize>);

impl Source for OwnWork {
    fn status(&self) -> Result<RemoteStatus, String> {
        Ok(RemoteStatus { site_id: vec![7; 16], db_version: 1000, schema: vec![0; 32] })
    }

    fn packs(&self, after: Cursor, _: &SiteId, _: TakePack<'_>) -> Result<Reached, String> {
        if after.version < 1000 {
            self.0.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(Reached::all(Cursor::whole(1000), false))
    }
}

#[tokio::test]
async fn what_holds_nothing_for_a_reader_is_read_once() {
    let read = Arc::new(AtomicUsize::new(0));
    let server = Server::new(OwnWork(Arc::clone(&read)), None, Host::default());
    let ask = async |job: u64, after: i64| loop {
        let after = Cursor::whole(after).into();
        match ask(&server, Request::Offer { job, after, reader: vec![1; 16] }).await {
            Answer::Working => {}
            other => return other,
        }
    };
    for job in 0..20 {
        let Answer::Offer(offer) = ask(job, 500).await else { panic!("no offer") };
        assert_eq!((offer.packs.len(), Cursor::from(offer.end), offer.more), (0, Cursor::whole(1000), false));
    }
    assert_eq!(read.load(Ordering::SeqCst), 1);
    assert_eq!(ask(99, 400).await, Answer::Busy, "more of it is not read at once");
    assert_eq!(read.load(Ordering::SeqCst), 1);
}
