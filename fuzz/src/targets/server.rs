use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU32,
    ops::ControlFlow,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arbitrary::{Arbitrary, Unstructured};
use futures_util::future::join_all;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    arrived::Arrived,
    sandbox::{Keys, Owner, Sandbox, proof_text, runtime},
};
use crate::{
    changeset::{Change, Cursor, Pack, PackTable, SiteId, Value},
    config,
    database::{Digest, Mark, RANGES, RowDigest, TableDefinition, TakePack, ToldRows},
    protocol::{
        Client, ClientError, Credentials, Door, Drops, Guarded, Limits as ClientLimits, Reached, RemoteStatus, Rules,
        Server, Source,
        message::{self, Answer, CHUNK_BYTES, Manifest, Request, Session},
    },
    transport::{BoxFuture, Handler, LocalPeer, MAX_MESSAGE, Party, RecordId, SignatureBytes, Signer, TransportError},
};

#[derive(Arbitrary, Debug)]
struct Scenario {
    private: bool,
    /// Whether the limits are such that they are reached.
    tight: bool,
    /// Whether there is an account for each caller.
    roomy: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// The same question several times at once.
    Ask {
        caller: Caller,
        question: Question,
        times: u8,
    },
    Wait {
        millis: u32,
    },
    /// Reading the database takes longer from now on.
    Slow {
        centis: u8,
    },
    Rules {
        private: bool,
        friend: bool,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Caller {
    /// A program on this machine, which nothing is kept from.
    Here,
    Unnamed,
    Session(u8),
}

#[derive(Arbitrary, Debug)]
enum Question {
    Bytes(Vec<u8>),
    Status,
    Schema {
        job: u8,
    },
    Offer {
        job: u8,
        after: [i8; 2],
        reader: Vec<u8>,
    },
    /// Of a pack that was offered, if there was one.
    Chunk {
        pack: u8,
        index: u8,
    },
    UnknownChunk {
        pack: [u8; 32],
        index: u32,
    },
    Challenge {
        who: Who,
    },
    Proof {
        who: Who,
        /// Which of the nonces that were given; the last if there are fewer.
        nonce: u8,
        flaw: Flaw,
    },
    Digest {
        job: u8,
        reader: Vec<u8>,
    },
    Hint {
        tag: [u8; 32],
    },
    Rows {
        job: u8,
        ranges: Vec<u8>,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Friend,
    Stranger,
    /// A stranger who says that he is the friend.
    Impostor,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    OtherServer,
    OtherSession,
    OtherSigner,
    OtherNonce { at: u8, change: u8 },
    Signature { at: u8, change: u8 },
}

const MOST_STEPS: usize = 40;
const MOST_REQUESTS: usize = 1500;
/// Slack for clocks that count milliseconds.
const MOMENT: Duration = Duration::from_millis(10);
const NONCE_LIFE: Duration = Duration::from_secs(60);
const ADMISSION_LIFE: Duration = Duration::from_secs(15 * 60);

/// A database of three versions, with one change each, the second of which takes more than one message.
struct Versions {
    /// How often it was read at length.
    reads: Arc<AtomicUsize>,
}

const LAST: i64 = 3;

impl Source for Versions {
    fn status(&self) -> Result<RemoteStatus, String> {
        Ok(RemoteStatus { site_id: vec![7; 16], db_version: LAST, schema: vec![1; 32] })
    }

    fn packs(&self, after: Cursor, reader: &SiteId, take: TakePack<'_>) -> Result<Reached, String> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if reader.as_bytes()[0] == 0 {
            return Err("its database cannot be read at the moment".into());
        }
        for version in (1..=LAST).filter(|version| Cursor::whole(*version) > after) {
            if let ControlFlow::Break(()) = take(pack(version, after)) {
                return Ok(Reached::all(Cursor::whole(version), version < LAST));
            }
        }
        Ok(Reached::all(after.max(Cursor::whole(LAST)), false))
    }

    fn definitions(&self) -> Result<Vec<TableDefinition>, String> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let sql = format!("CREATE TABLE note (id PRIMARY KEY, body /* {} */)", "x".repeat(40_000));
        Ok(vec![TableDefinition { name: "note".into(), sql, indexes: Vec::new() }])
    }

    fn digest(&self, reader: &SiteId) -> Result<Option<(Digest, Option<i64>)>, String> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let mark = Mark { site: *reader, version: LAST, schema_version: 1, schema: [1; 32] };
        let digest = Digest { tables: [("note".to_owned(), 1)].into(), ..Digest::empty(mark) };
        Ok(Some((digest, Some(LAST))))
    }

    fn rows(&self, ranges: &[usize], fits: &dyn Fn(usize, usize) -> bool) -> Result<Option<ToldRows>, String> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        assert!(fits(ranges.len(), 0) && ranges.iter().all(|range| *range < RANGES));
        let row = |range: &usize| RowDigest {
            table: 0,
            name: *range as u128,
            key: vec![1, 9, 1],
            length: 1,
            number: 1,
            id: 0,
        };
        let rows = ranges.iter().map(row).collect();
        Ok(Some(ToldRows { version: LAST, schema: [1; 32], ranges: ranges.to_vec(), rows }))
    }
}

fn pack(version: i64, after: Cursor) -> Pack {
    /// What cannot be compressed.
    static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut noise = vec![0; 40_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        noise
    });
    let source = SiteId::from_bytes(&[7; 16]).expect("16 bytes");
    let change = Change {
        table: "note".into(),
        pk: [1, 9, version as u8].as_slice().into(),
        cid: "body".into(),
        val: Value::Blob(if version == 2 { NOISE.clone() } else { vec![version as u8; 1000] }),
        col_version: 1,
        db_version: version,
        site_id: source,
        cl: 1,
        seq: 0,
    };
    Pack {
        source,
        from: Cursor::whole(version - 1).max(after),
        to: Cursor::whole(version),
        tables: vec![PackTable { name: "note".into(), key_columns: vec!["id".into()] }],
        changes: vec![change],
    }
}

impl Signer for Owner {
    fn party(&self) -> BoxFuture<'_, Result<Party, TransportError>> {
        Box::pin(async { Ok(self.party) })
    }

    fn sign(&self, text: Vec<u8>) -> BoxFuture<'_, Result<SignatureBytes, TransportError>> {
        Box::pin(async move { Ok(Owner::sign(self, &text)) })
    }
}

/// Whose account a request is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Payer {
    Unnamed,
    Session([u8; 16]),
    Friend,
}

struct Nonce {
    bytes: [u8; 32],
    session: [u8; 16],
    party: Party,
    made: Instant,
}

struct Admission {
    nonce: [u8; 32],
    until: Instant,
}

/// A proof as it is sent, and whether anything is wrong with it but its nonce.
struct Sent {
    nonce: [u8; 32],
    party: Party,
    is_flawless: bool,
}

/// A server with its friend, and what must be true of them by the documents.
struct Scene {
    server: Server,
    guarded: Arc<Guarded>,
    rules: watch::Sender<Arc<Rules>>,
    machine: Sandbox,
    reads: Arc<AtomicUsize>,
    own: Owner,
    friend: Owner,
    stranger: Owner,
    began: Instant,
    roomy: bool,
    asked_here: bool,
    offered: Vec<[u8; 32]>,
    nonces: Vec<Nonce>,
    used: HashSet<[u8; 32]>,
    admitted: HashMap<[u8; 16], Admission>,
    /// Requests that were neither put off nor refused for what the caller did before.
    let_in: HashMap<Payer, u64>,
}

impl Scene {
    fn new(scenario: &Scenario) -> Self {
        let [own, friend, stranger] = ["own", "friend", "stranger"].map(Owner::named);
        let rules =
            Rules { private: scenario.private, remotes: [friend.party.repository].into(), limits: limits(scenario) };
        let rules = watch::Sender::new(Arc::new(rules));
        let machine = Sandbox::default();
        let reads = Arc::<AtomicUsize>::default();
        let server = Server::new(Versions { reads: Arc::clone(&reads) }, None, machine.host());
        let door =
            Door::new(own.party.repository, Arc::new(Keys(vec![own, friend, stranger])), [0xd0; 32], machine.host());
        let guarded = Guarded::new(server.clone(), door, rules.subscribe(), Arc::new(Drops::default()));
        Self {
            server,
            guarded: Arc::new(guarded),
            rules,
            machine,
            reads,
            own,
            friend,
            stranger,
            began: Instant::now(),
            roomy: scenario.roomy,
            asked_here: false,
            offered: Vec::new(),
            nonces: Vec::new(),
            used: HashSet::new(),
            admitted: HashMap::new(),
            let_in: HashMap::new(),
        }
    }

    fn party(&self, who: Who) -> Party {
        match who {
            Who::Friend => self.friend.party,
            Who::Stranger => self.stranger.party,
            Who::Impostor => Party { repository: self.friend.party.repository, key: self.stranger.party.key },
        }
    }

    /// The bytes of `question`, and the proof that they hold.
    fn request(&self, caller: Caller, question: Question) -> (Vec<u8>, Option<Sent>) {
        let request = match question {
            Question::Bytes(bytes) => return (bytes, None),
            Question::Status => Request::Status,
            Question::Schema { job } => Request::Schema { job: job.into() },
            Question::Offer { job, after: [version, seq], reader } => Request::Offer {
                job: job.into(),
                after: Cursor { version: version.into(), seq: seq.into() }.into(),
                reader,
            },
            Question::Chunk { pack, index } => {
                let pack = self.offered.get(usize::from(pack)).copied().unwrap_or_default();
                Request::Chunk { pack, index: index.into() }
            }
            Question::Digest { job, reader } => Request::Digest { job: job.into(), reader },
            Question::Hint { tag } => Request::Hint { tag },
            Question::Rows { job, ranges } => Request::Rows { job: job.into(), ranges },
            Question::UnknownChunk { pack, index } => Request::Chunk { pack, index },
            Question::Challenge { who } => {
                let Party { repository, key } = self.party(who);
                Request::Challenge { caller: repository.0, key }
            }
            Question::Proof { who, nonce, flaw } => {
                let session = session(caller).map_or([0; 16], |session| *session);
                let (request, sent) = self.proof(who, usize::from(nonce), flaw, session);
                return (sealed(caller, request), Some(sent));
            }
        };
        (sealed(caller, request), None)
    }

    fn proof(&self, who: Who, nonce: usize, flaw: Flaw, session: [u8; 16]) -> (Request, Sent) {
        let known = self.nonces.get(nonce).or(self.nonces.last());
        let mut nonce = known.map_or([0; 32], |nonce| nonce.bytes);
        if let Flaw::OtherNonce { at, change } = flaw {
            nonce[usize::from(at) % 32] ^= change;
        }
        let party = self.party(who);
        let server = if flaw == Flaw::OtherServer { self.stranger } else { self.own }.party.repository;
        let named = if flaw == Flaw::OtherSession { [0xee; 16] } else { session };
        let signer = match (who, flaw) {
            (Who::Friend, Flaw::OtherSigner) | (Who::Stranger | Who::Impostor, _) => self.stranger,
            (Who::Friend, _) => self.friend,
        };
        let mut signature = signer.sign(&proof_text(&nonce, server, party, &named));
        let sound = signature;
        if let Flaw::Signature { at, change } = flaw {
            signature[usize::from(at) % 64] ^= change;
        }
        let is_flawless = who == Who::Friend
            && signature == sound
            && matches!(flaw, Flaw::None | Flaw::OtherNonce { .. } | Flaw::Signature { .. });
        let Party { repository, key } = party;
        (Request::Proof { caller: repository.0, key, nonce, signature }, Sent { nonce, party, is_flawless })
    }

    async fn ask(&mut self, caller: Caller, question: Question, times: usize) {
        let (bytes, proof) = self.request(caller, question);
        if matches!(caller, Caller::Here) {
            self.asked_here = true;
            let answer = self.server.handle(bytes.clone()).await;
            self.look_at(&bytes, &answer);
            return;
        }
        // What one proof opens is there for the next.
        let times = if proof.is_some() { 1 } else { times };
        let payer = self.payer(message::decode_request(&bytes).0);
        let guarded = Arc::clone(&self.guarded);
        let asked = Instant::now();
        for answer in join_all((0..times).map(|_| guarded.handle(bytes.clone()))).await {
            let answer = self.look_at(&bytes, &answer);
            self.judge(&bytes, payer, asked, proof.as_ref(), answer);
        }
        assert!(self.machine.at_work() <= 2, "the database is read by more than two");
    }

    /// On whose account a request of `session` goes.
    fn payer(&mut self, session: Option<Session>) -> Payer {
        let Some(session) = session else { return Payer::Unnamed };
        let is_remote = self.rules.borrow().remotes.contains(&self.friend.party.repository);
        match self.admitted.get(&*session) {
            Some(admission) if admission.until > Instant::now() && is_remote => Payer::Friend,
            Some(_) => {
                self.admitted.remove(&*session);
                Payer::Session(*session)
            }
            None => Payer::Session(*session),
        }
    }

    /// Any answer: a message of the protocol that holds what it says.
    fn look_at(&mut self, request: &[u8], answer: &[u8]) -> Answer {
        assert!(answer.len() <= MAX_MESSAGE);
        let answer = message::decode::<Answer>(answer).expect("an answer of the protocol");
        let request = message::decode::<Request>(request);
        match &answer {
            Answer::Offer(manifest) => {
                assert!(matches!(request, Ok(Request::Offer { .. })));
                check_manifest(manifest);
                self.offered.extend(manifest.packs.iter().map(|pack| pack.id));
                self.offered.truncate(256);
            }
            Answer::Schema { id, .. } => {
                assert!(matches!(request, Ok(Request::Schema { .. })));
                self.offered.push(*id);
                self.offered.truncate(256);
            }
            Answer::Rows { id, .. } => {
                assert!(matches!(request, Ok(Request::Rows { .. })));
                self.offered.push(*id);
                self.offered.truncate(256);
            }
            Answer::Chunk { bytes } => {
                assert!(matches!(request, Ok(Request::Chunk { .. })));
                assert!((1..=CHUNK_BYTES).contains(&bytes.len()));
            }
            Answer::Digest(digest) => {
                assert!(matches!(request, Ok(Request::Digest { .. })));
                assert_eq!((digest.tables.len(), digest.ranges.len()), (16, 16 * RANGES));
            }
            Answer::Noted => assert!(matches!(request, Ok(Request::Hint { .. }))),
            Answer::NotAuthorised { change } => assert_eq!(*change, None),
            _ => {}
        }
        answer
    }

    /// An answer to a stranger: no more than he may know.
    fn judge(&mut self, request: &[u8], payer: Payer, asked: Instant, proof: Option<&Sent>, answer: Answer) {
        let is_private = self.rules.borrow().private;
        let is_put_off = match &answer {
            Answer::Busy => true,
            Answer::Refused { reason } => reason.starts_with("it has dropped this caller"),
            _ => false,
        };
        if !is_put_off {
            *self.let_in.entry(payer).or_default() += 1;
        }
        let (session, _) = message::decode_request(request);
        match answer {
            Answer::Status(_)
            | Answer::Offer(_)
            | Answer::Schema { .. }
            | Answer::Chunk { .. }
            | Answer::Digest(_)
            | Answer::Rows { .. }
            | Answer::Noted
            | Answer::Working
            | Answer::Gone => assert!(!is_private || payer == Payer::Friend, "a stranger is told something"),
            Answer::NotAuthorised { .. } => match proof {
                Some(proof) => assert!(!self.is_good(proof, session, asked, false), "a good proof is not taken"),
                // Of the fuzzer's own bytes.
                None if matches!(message::decode(request), Ok(Request::Proof { .. })) => {}
                None => assert!(is_private && payer != Payer::Friend, "somebody is not told what he may know"),
            },
            Answer::Nonce { nonce } => self.note_nonce(request, nonce),
            Answer::Authorised => {
                let proof = proof.expect("nobody gave a proof");
                assert!(self.is_good(proof, session, asked, true), "a bad proof is taken");
                let session = *session.expect("it holds for a session");
                if self.used.insert(proof.nonce) {
                    let until = asked + ADMISSION_LIFE;
                    self.admitted.insert(session, Admission { nonce: proof.nonce, until });
                }
            }
            Answer::Busy | Answer::Refused { .. } => {}
        }
    }

    fn note_nonce(&mut self, request: &[u8], bytes: [u8; 32]) {
        let (session, request) = message::decode_request(request);
        let Ok(Request::Challenge { caller, key }) = request else { panic!("nobody asked for a nonce") };
        let party = Party { repository: RecordId(caller), key };
        let session = *session.expect("a nonce is for a session");
        assert!(self.nonces.iter().all(|known| known.bytes != bytes), "a nonce twice");
        self.nonces.push(Nonce { bytes, session, party, made: Instant::now() });
    }

    /// Whether a proof is to be taken; where that turns on a moment, as `benefit` says.
    fn is_good(&self, proof: &Sent, session: Option<Session>, asked: Instant, benefit: bool) -> bool {
        let Some(session) = session else { return false };
        let Some(nonce) = self.nonces.iter().find(|nonce| nonce.bytes == proof.nonce) else { return false };
        let age = asked - nonce.made;
        let is_fresh = if benefit { age <= NONCE_LIFE + MOMENT } else { age + MOMENT < NONCE_LIFE };
        let is_first = !self.used.contains(&proof.nonce)
            || self.admitted.get(&*session).is_some_and(|admission| admission.nonce == proof.nonce);
        let is_remote = self.rules.borrow().remotes.contains(&proof.party.repository);
        proof.is_flawless
            && nonce.session == *session
            && nonce.party == proof.party
            && is_fresh
            && is_first
            && is_remote
    }

    /// Nobody got more than the limits leave.
    fn check_limits(&self) {
        let limits = self.rules.borrow().limits;
        let seconds = (Instant::now() - self.began + MOMENT).as_secs_f64();
        let most = |rate: NonZeroU32, holds: f64| f64::from(rate.get()) * (holds + seconds) + 1.0;
        let strangers = self.let_in.iter().filter(|(payer, _)| **payer != Payer::Friend);
        let of_strangers: u64 = strangers.map(|(_, count)| count).sum();
        assert!(of_strangers as f64 <= most(limits.total_requests_per_second, 2.0), "{of_strangers} of strangers");
        if !self.roomy {
            return;
        }
        for (payer, count) in &self.let_in {
            assert!(*count as f64 <= most(limits.requests_per_second, 2.0), "{count} of {payer:?}");
        }
        let reads = self.reads.load(Ordering::Relaxed);
        let most_reads = self.let_in.len() as f64 * most(limits.offers_per_second, 4.0);
        assert!(self.asked_here || reads as f64 <= most_reads, "{reads} reads");
    }

    fn set_rules(&self, private: bool, friend: bool) {
        let remotes = [self.friend.party.repository].into_iter().filter(|_| friend).collect();
        self.rules.send_modify(|rules| *rules = Arc::new(Rules { private, remotes, limits: rules.limits }));
    }

    /// Whatever others did, after a while the friend reads everything, and nothing any more once he is none.
    async fn end(&mut self) {
        self.machine.set_slowness(Duration::ZERO);
        sleep(Duration::from_secs(600)).await;
        assert_eq!(self.machine.at_work(), 0);
        self.set_rules(true, true);
        let credentials = || Credentials::new(Arc::new(self.friend), self.own.party.repository);
        let peer = Arc::new(LocalPeer::new(Arc::clone(&self.guarded) as Arc<dyn Handler>));
        let client = |machine: &Sandbox| Client::new(peer.clone(), ClientLimits::default(), machine.host());
        let machine = Sandbox::default();
        let friend = client(&machine).with_credentials(credentials());
        let mut arrived = Arrived::nothing();
        let reader = SiteId::from_bytes(&[1; 16]).expect("16 bytes");
        friend.fetch(Cursor::ZERO, LAST, &reader, &mut arrived).await.expect("the friend is served");
        assert_eq!((arrived.packs, arrived.reached), (3, Cursor::whole(LAST)));
        assert_eq!(friend.definitions().await.expect("the friend is served").len(), 1);
        let stranger = client(&machine).status().await;
        assert!(matches!(stranger, Err(ClientError::NotAuthorised)), "{stranger:?}");
        self.set_rules(true, false);
        let status = friend.status().await;
        assert!(matches!(status, Err(ClientError::NotAuthorised)), "{status:?}");
    }
}

fn limits(scenario: &Scenario) -> config::Limits {
    let number = |number| NonZeroU32::new(number).expect("not zero");
    let callers = number(if scenario.roomy { 10_000 } else { 2 });
    let limits = config::Limits { callers, ..config::Limits::default() };
    if !scenario.tight {
        return limits;
    }
    config::Limits {
        requests_per_second: number(5),
        requests_at_once: number(3),
        offers_per_second: number(1),
        offers_at_once: number(2),
        total_requests_per_second: number(20),
        ..limits
    }
}

fn session(caller: Caller) -> Option<Session> {
    match caller {
        Caller::Here | Caller::Unnamed => None,
        Caller::Session(number) => Some([number % 8; 16].into()),
    }
}

fn sealed(caller: Caller, request: Request) -> Vec<u8> {
    match session(caller) {
        Some(session) => message::encode_request(session, request),
        None => message::encode(request),
    }
}

fn check_manifest(manifest: &Manifest) {
    let mut reached = manifest.packs.first().map_or(manifest.end, |pack| pack.from).into();
    for pack in &manifest.packs {
        let (from, to) = (Cursor::from(pack.from), Cursor::from(pack.to));
        assert!(reached <= from && from < to, "{pack:?} after {reached:?}");
        reached = to;
        if let Some(content) = &pack.content {
            assert_eq!((content.len() as u64, *blake3::hash(content).as_bytes()), (pack.bytes, pack.id));
        }
    }
    assert!(reached <= manifest.end.into(), "{manifest:?}");
}

/// Whatever a server is asked, by whomever, it answers with a message of the protocol that is not too long; tells
/// strangers of a private repository nothing; takes good proofs and no others; lets nobody cost more than the limits
/// say; and serves its friend in the end.
pub fn server(bytes: &[u8]) {
    let Ok(scenario) = Scenario::arbitrary(&mut Unstructured::new(bytes)) else { return };
    runtime().block_on(async {
        let mut scene = Scene::new(&scenario);
        let mut left = MOST_REQUESTS;
        for step in scenario.steps.into_iter().take(MOST_STEPS) {
            match step {
                Step::Ask { caller, question, times } => {
                    let times = (1 + usize::from(times)).min(left);
                    left -= times;
                    scene.ask(caller, question, times).await;
                }
                Step::Wait { millis } => sleep(Duration::from_millis((millis % (20 * 60 * 1000)).into())).await,
                Step::Slow { centis } => scene.machine.set_slowness(Duration::from_millis(10 * u64::from(centis))),
                Step::Rules { private, friend } => scene.set_rules(private, friend),
            }
            scene.check_limits();
        }
        scene.end().await;
    });
}
