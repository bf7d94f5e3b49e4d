use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use super::*;
use crate::{
    changeset::PackId,
    protocol::message::{Envelope, PROTOCOL_VERSION},
    transport::BoxFuture,
};

/// Answers in turn what it is given, the last for ever.
pub(crate) struct Scripted(pub(crate) Mutex<Vec<Answer>>);

impl Peer for Scripted {
    fn call(&self, _: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        let mut answers = self.0.lock().unwrap();
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        Box::pin(async { Ok(message::encode(answer)) })
    }
}

/// Keeps what it takes.
#[derive(Debug, Default)]
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
    PackEntry { id, bytes: bytes.len() as u64, changes: 1, from: at(from).into(), to: at(to).into(), content: None }
}

fn offer(packs: Vec<PackEntry>, end: i64, more: bool) -> Answer {
    Answer::Offer(Manifest { packs, end: at(end).into(), more, left_out: None })
}

async fn fetch(answers: Vec<Answer>, up_to: i64) -> Result<Kept, ClientError> {
    let client = Client::new(Arc::new(Scripted(Mutex::new(answers))), Limits::default(), Host::default());
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

/// Offers ever new packs, each after a pause and of few bytes.
struct Dripping(AtomicUsize);

impl Peer for Dripping {
    fn call(&self, _: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        let version = self.0.fetch_add(1, Ordering::SeqCst) as i64;
        let pack = PackEntry { content: Some(vec![0].into()), ..entry(&[0], version, version + 1) };
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok(message::encode(offer(vec![pack], version + 1, true)))
        })
    }
}

#[tokio::test]
async fn a_peer_that_drips_is_given_up_and_what_it_sent_is_kept() {
    let least_rate = LeastRate { bytes: 1000, within: Duration::from_millis(100) };
    let limits = Limits { least_rate, ..Limits::default() };
    let client = Client::new(Arc::new(Dripping(AtomicUsize::new(0))), limits, Host::default());
    let (reader, mut kept) = (SiteId::from_bytes(&[1; 16]).unwrap(), Kept::default());
    let fetched = client.fetch(Cursor::ZERO, i64::MAX, &reader, &mut kept).await;
    assert!(matches!(fetched, Err(ClientError::TooSlow { bytes: 1..1000, .. })), "{fetched:?}");
    assert!(kept.0.iter().any(|step| matches!(step, Fetched::Pack(..))), "{kept:?}");
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
async fn answers_that_are_none_are_refused() {
    let offered = || offer(vec![entry(b"one", 0, 1)], 1, false);
    for answers in [
        vec![Answer::Authorised],
        vec![Answer::Chunk { bytes: b"one".to_vec() }],
        vec![offered(), offered()],
        vec![offered(), Answer::Chunk { bytes: Vec::new() }],
        vec![offered(), Answer::Chunk { bytes: vec![0; CHUNK_BYTES + 1] }],
    ] {
        let result = fetch(answers.clone(), 1).await;
        assert!(matches!(result, Err(ClientError::Protocol(_))), "{answers:?}");
    }
    struct Garbage;
    impl Peer for Garbage {
        fn call(&self, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
            Box::pin(async move { Ok(request.into_iter().rev().collect()) })
        }
    }
    let error = Client::new(Arc::new(Garbage), Limits::default(), Host::default()).status().await.unwrap_err();
    assert!(matches!(error, ClientError::Protocol(_)), "{error}");
}

#[tokio::test]
async fn a_digest_of_the_wrong_size_is_refused() {
    let digest = |tables: usize, ranges: usize| DatabaseDigest {
        db_version: 1,
        schema: vec![0; 32],
        tables: vec![0; tables],
        ranges: vec![0; ranges],
        known: None,
    };
    for (tables, ranges, is_one) in
        [(0, 16 * RANGES, true), (16, 16 * RANGES, true), (17, 16 * RANGES, false), (16, 16, false)]
    {
        let peer = Arc::new(Scripted(Mutex::new(vec![Answer::Digest(digest(tables, ranges))])));
        let reader = SiteId::from_bytes(&[1; 16]).unwrap();
        let result = Client::new(peer, Limits::default(), Host::default()).digest(&reader).await;
        assert_eq!(result.is_ok(), is_one, "{tables}, {ranges}");
    }
}

#[tokio::test]
async fn a_peer_that_never_gets_on_is_given_up() {
    for answer in [Answer::Busy, Answer::Working] {
        let peer = Arc::new(Scripted(Mutex::new(vec![answer])));
        let limits = Limits { patience: Duration::from_millis(50), ..Limits::default() };
        let result = Client::new(peer, limits, Host::default()).status().await;
        assert!(matches!(result, Err(ClientError::Busy(_))));
    }
}

#[tokio::test]
async fn the_words_of_a_peer_are_made_harmless() {
    let reason = format!("\u{1b}[2Jno\n{}", "x".repeat(10_000));
    let error = fetch(vec![Answer::Refused { reason }], 1).await.unwrap_err().to_string();
    assert!(error.starts_with("it refuses: \\u{1b}[2Jno\\nxxx") && error.len() < 300, "{error}");
}

#[tokio::test]
async fn a_fetch_ends_though_the_peer_goes_on() {
    let endless = fetch(vec![offer(vec![], 10, true)], 5).await.unwrap();
    assert!(matches!(endless.0.as_slice(), [Fetched::Reached(_)]), "{:?}", endless.0);
    let answers = (1..100).map(|end| offer(vec![], end, true)).collect();
    assert!(matches!(fetch(answers, 1000).await, Err(ClientError::Protocol(_))));
    let gone = vec![offer(vec![entry(b"one", 0, 1)], 1, false), Answer::Gone];
    let gone = gone.into_iter().cycle().take(100).collect();
    assert!(matches!(fetch(gone, 1).await, Err(ClientError::PacksVanish)));
}

#[tokio::test]
async fn a_later_version_is_said_to_be_one() {
    struct Later;
    impl Peer for Later {
        fn call(&self, _: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
            let later = Envelope { version: PROTOCOL_VERSION + 1, body: Answer::Busy, session: None };
            Box::pin(async move { Ok(minicbor::to_vec(later).unwrap()) })
        }
    }
    let error = Client::new(Arc::new(Later), Limits::default(), Host::default()).status().await.unwrap_err();
    assert!(error.to_string().contains("version 2 of the protocol"), "{error}");
}

/// Offers its packs one by one, and has only those that it has offered.
#[derive(Default)]
struct Holder {
    packs: Vec<Vec<u8>>,
    inline: bool,
    offered: Mutex<HashSet<[u8; 32]>>,
    /// How often each chunk was given, by pack and index.
    given: Mutex<HashMap<([u8; 32], u32), usize>>,
    calls: AtomicUsize,
    /// Answers chunks when as many offers have been asked for.
    holds_back: usize,
    offers: AtomicUsize,
    asked_for_offer: Notify,
    /// After so many chunks it is dead, or restarts with nothing offered.
    dies_after: Option<usize>,
    restarts_after: Mutex<Option<usize>>,
    /// Every n-th call fails.
    fails: Option<usize>,
    /// How long an offer takes.
    offer_takes: Duration,
}

impl Holder {
    fn chunks_given(&self) -> usize {
        self.given.lock().unwrap().values().sum()
    }

    /// Of one pack.
    fn chunks_given_of(&self, pack: [u8; 32]) -> usize {
        self.given.lock().unwrap().iter().filter(|((of, _), _)| *of == pack).map(|(_, times)| times).sum()
    }

    fn offer(&self, after: Cursor) -> Answer {
        self.offers.fetch_add(1, Ordering::SeqCst);
        self.asked_for_offer.notify_waiters();
        let index = after.version as usize;
        let bytes = &self.packs[index];
        let content = self.inline.then(|| bytes.clone().into());
        let pack = PackEntry { content, ..entry(bytes, after.version, after.version + 1) };
        self.offered.lock().unwrap().insert(pack.id);
        offer(vec![pack], after.version + 1, index + 1 < self.packs.len())
    }

    async fn chunk(&self, pack: [u8; 32], index: u32) -> Answer {
        loop {
            let asked = self.asked_for_offer.notified();
            if self.offers.load(Ordering::SeqCst) >= self.holds_back {
                break;
            }
            asked.await;
        }
        let given = self.chunks_given();
        if self.restarts_after.lock().unwrap().take_if(|chunks| given >= *chunks).is_some() {
            self.offered.lock().unwrap().clear();
        }
        if !self.offered.lock().unwrap().contains(&pack) {
            return Answer::Gone;
        }
        let bytes = self.packs.iter().find(|bytes| *PackId::of(bytes).as_bytes() == pack).unwrap();
        *self.given.lock().unwrap().entry((pack, index)).or_default() += 1;
        Answer::Chunk { bytes: bytes.chunks(CHUNK_BYTES).nth(index as usize).unwrap().to_vec() }
    }
}

impl Peer for Holder {
    fn call(&self, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        Box::pin(async move {
            let calls = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
            let is_dead = self.dies_after.is_some_and(|chunks| self.chunks_given() >= chunks);
            if is_dead || self.fails.is_some_and(|n| calls.is_multiple_of(n)) {
                return Err(TransportError::Unreachable("as asked".into()));
            }
            let answer = match message::decode::<Request>(&request).unwrap() {
                Request::Challenge { .. } | Request::Proof { .. } | Request::Digest { .. } => {
                    panic!("nobody asked for that")
                }
                Request::Offer { after, .. } => {
                    tokio::time::sleep(self.offer_takes).await;
                    self.offer(after.into())
                }
                Request::Chunk { pack, index } => self.chunk(pack, index).await,
                Request::Status | Request::Schema { .. } | Request::Rows { .. } | Request::Hint { .. } => {
                    unreachable!()
                }
            };
            Ok(message::encode(answer))
        })
    }
}

fn bytes(chunks: usize, salt: u8) -> Vec<u8> {
    (0..chunks * CHUNK_BYTES - 9).map(|i| (i / 777) as u8 ^ salt).collect()
}

/// Fetches everything; the packs that were taken, by then.
async fn fetch_from(host: &Arc<Holder>, parts: Parts, patience: Duration) -> (Vec<Vec<u8>>, Result<(), ClientError>) {
    let limits = Limits { patience, ..Limits::default() };
    let client = Client::new(Arc::clone(host) as Arc<dyn Peer>, limits, Host::default()).with_parts(parts, limits.room);
    let mut kept = Kept::default();
    let reader = SiteId::from_bytes(&[1; 16]).unwrap();
    let up_to = i64::try_from(host.packs.len()).unwrap();
    let fetching = client.fetch(Cursor::ZERO, up_to, &reader, &mut kept);
    let result = tokio::time::timeout(Duration::from_secs(60), fetching).await.expect("it ends");
    let packs = kept.0.into_iter().filter_map(|step| match step {
        Fetched::Pack(_, bytes) => Some(bytes),
        Fetched::LeftOut(_) | Fetched::Reached(_) => None,
    });
    (packs.collect(), result)
}

const PATIENT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_download_goes_on_where_an_earlier_one_was_broken_off() {
    let folder = tempfile::tempdir().unwrap();
    let parts = || Parts::in_folder(folder.path().join("parts"));
    let packs = vec![bytes(40, 1), bytes(2, 2)];
    std::fs::create_dir(folder.path().join("parts")).unwrap();
    std::fs::write(folder.path().join("parts/of-a-pack-of-old"), b"parts").unwrap();

    let dying = Arc::new(Holder { packs: packs.clone(), dies_after: Some(25), ..Holder::default() });
    let (taken, result) = fetch_from(&dying, parts(), Duration::ZERO).await;
    assert!(matches!(result, Err(ClientError::Transport(_))), "{result:?}");
    assert_eq!((taken.len(), dying.chunks_given()), (0, 25));
    let of_large = *PackId::of(&packs[0]).as_bytes();
    let held = dying.chunks_given_of(of_large);
    assert!(held > 0);

    let host = Arc::new(Holder { packs: packs.clone(), ..Holder::default() });
    let (taken, result) = fetch_from(&host, parts(), PATIENT).await;
    result.unwrap();
    assert_eq!(taken, packs);
    assert_eq!(host.chunks_given_of(of_large), 40 - held);
    assert_eq!(folder.path().join("parts").read_dir().unwrap().count(), 0, "nothing is left behind");
}

#[tokio::test]
async fn parts_of_packs_that_are_offered_late_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let parts = || Parts::in_folder(folder.path().to_owned());
    // Larger than the most that is asked for at once, so that several are begun before the first has come.
    let packs: Vec<_> = (0..4).map(|salt| bytes(MOST + 20, salt)).collect();
    let dying = Arc::new(Holder { packs: packs.clone(), dies_after: Some(3 * MOST), ..Holder::default() });
    let (stored, result) = fetch_from(&dying, parts(), Duration::ZERO).await;
    result.unwrap_err();
    let begun = packs.iter().filter(|pack| dying.chunks_given_of(*PackId::of(pack).as_bytes()) > 0).count();
    assert!(begun >= 3, "{begun}");

    let offer_takes = Duration::from_millis(200);
    let host = Arc::new(Holder { packs: packs.clone(), offer_takes, ..Holder::default() });
    let (taken, result) = fetch_from(&host, parts(), PATIENT).await;
    result.unwrap();
    assert_eq!(taken, packs);
    let all = (packs.len() + stored.len()) * (MOST + 20);
    assert_eq!(dying.chunks_given() + host.chunks_given(), all, "nothing that was kept is fetched again");
}

#[tokio::test]
async fn a_peer_that_was_restarted_is_asked_for_what_is_missing_only() {
    let folder = tempfile::tempdir().unwrap();
    let packs = vec![bytes(60, 1), bytes(9, 2)];
    let host = Arc::new(Holder { packs: packs.clone(), restarts_after: Mutex::new(Some(31)), ..Holder::default() });
    let (taken, result) = fetch_from(&host, Parts::in_folder(folder.path().to_owned()), PATIENT).await;
    result.unwrap();
    assert_eq!(taken, packs);
    assert!(host.offers.load(Ordering::SeqCst) > 2);
    assert!(host.given.lock().unwrap().values().all(|times| *times == 1));
}

#[tokio::test]
async fn parts_that_were_spoilt_on_disk_are_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let parts = || Parts::in_folder(folder.path().to_owned());
    let packs = vec![bytes(20, 1)];
    let dying = Arc::new(Holder { packs: packs.clone(), dies_after: Some(10), ..Holder::default() });
    fetch_from(&dying, parts(), Duration::ZERO).await.1.unwrap_err();
    let file = folder.path().read_dir().unwrap().next().unwrap().unwrap().path();
    let mut content = std::fs::read(&file).unwrap();
    content[50_000] ^= 1;
    std::fs::write(&file, content).unwrap();
    let host = Arc::new(Holder { packs: packs.clone(), ..Holder::default() });
    let (taken, result) = fetch_from(&host, parts(), PATIENT).await;
    result.unwrap();
    assert_eq!((taken, host.chunks_given()), (packs, 10 + 20));
}

#[tokio::test]
async fn what_comes_with_the_offer_is_not_asked_for() {
    let packs: Vec<_> = (0..4).map(|salt| vec![salt; 300]).collect();
    let host = Arc::new(Holder { packs: packs.clone(), inline: true, ..Holder::default() });
    let (taken, result) = fetch_from(&host, Parts::in_memory(), PATIENT).await;
    result.unwrap();
    assert_eq!((taken, host.calls.load(Ordering::SeqCst)), (packs, 4));
    let lying = offer(vec![PackEntry { content: Some(b"two".to_vec().into()), ..entry(b"one", 0, 1) }], 1, false);
    assert!(matches!(fetch(vec![lying], 1).await, Err(ClientError::Damaged)));
}

#[tokio::test]
async fn the_next_offer_is_asked_for_while_packs_are_downloaded() {
    let packs: Vec<_> = (0..3).map(|salt| bytes(6, salt)).collect();
    let host = Arc::new(Holder { packs: packs.clone(), holds_back: 2, ..Holder::default() });
    let (taken, result) = fetch_from(&host, Parts::in_memory(), PATIENT).await;
    result.unwrap();
    assert_eq!(taken, packs);
}

#[tokio::test]
async fn calls_that_fail_now_and_then_are_repeated_and_a_peer_that_is_gone_is_given_up() {
    let packs = vec![bytes(30, 1)];
    let host = Arc::new(Holder { packs: packs.clone(), fails: Some(3), ..Holder::default() });
    let (taken, result) = fetch_from(&host, Parts::in_memory(), PATIENT).await;
    result.unwrap();
    assert_eq!(taken, packs);

    let dying = Arc::new(Holder { packs, dies_after: Some(7), ..Holder::default() });
    let (patience, started) = (Duration::from_millis(300), Instant::now());
    let (_, result) = fetch_from(&dying, Parts::in_memory(), patience).await;
    assert!(matches!(result, Err(ClientError::Transport(_))), "{result:?}");
    assert!(Instant::now() - started >= patience);
    // One that never answered is given up at once.
    let never = Arc::new(Holder { packs: vec![bytes(1, 1)], fails: Some(1), ..Holder::default() });
    let (_, result) = fetch_from(&never, Parts::in_memory(), PATIENT).await;
    assert!(matches!(result, Err(ClientError::Transport(_))));
    assert_eq!(never.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_there_is_no_room_for_is_not_downloaded() {
    let packs: Vec<_> = (0..3).map(|salt| bytes(2, salt)).collect();
    let host = Arc::new(Holder { packs: packs.clone(), ..Holder::default() });
    let room = 5 * CHUNK_BYTES as u64;
    let client = Client::new(Arc::clone(&host) as Arc<dyn Peer>, Limits::default(), Host::default())
        .with_parts(Parts::in_memory(), room);
    let mut kept = Kept::default();
    let reader = SiteId::from_bytes(&[1; 16]).unwrap();
    let error = client.fetch(Cursor::ZERO, 3, &reader, &mut kept).await.unwrap_err();
    assert!(matches!(error, ClientError::NoRoom { most } if most == room), "{error}");
    let stored = kept.0.iter().filter(|step| matches!(step, Fetched::Pack(..))).count();
    assert_eq!((stored, host.chunks_given()), (2, 4));
}
