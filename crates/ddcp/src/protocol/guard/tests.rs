//! What strangers, liars and those who were remotes once get from a private repository: nothing.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;

use super::*;
use crate::{
    changeset::{Pack, PackId, SiteId},
    database::TakePack,
    host::Host,
    protocol::{
        Client, ClientError, Credentials, Fetched, Limits as ClientLimits, Reached, RemoteStatus, Sink, Source,
        access::{Nonce, proof_text},
        clock::advance,
        message::{announcement, private_announcement},
    },
    transport::{Address, LocalPeer, SignatureBytes, Signer, TransportError, Verifier},
};

mod shares;

/// Keys whose signatures are keyed hashes, and who knows all of them.
#[derive(Default)]
struct Keys(Mutex<HashMap<[u8; 32], [u8; 32]>>);

fn hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

fn sign(secret: &[u8; 32], text: &[u8]) -> SignatureBytes {
    let mut signature = [0; 64];
    blake3::Hasher::new_keyed(secret).update(text).finalize_xof().fill(&mut signature);
    signature
}

impl Keys {
    fn make(&self, name: &str) -> Owner {
        let secret = hash(name.as_bytes());
        let key = hash(&secret);
        self.0.lock().unwrap().insert(key, secret);
        Owner { secret, party: Party { repository: RecordId(hash(&key)), key } }
    }
}

impl Verifier for Keys {
    fn verify(&self, party: Party, text: Vec<u8>, signature: SignatureBytes) -> BoxFuture<'_, bool> {
        let secret = self.0.lock().unwrap().get(&party.key).copied();
        let signed = secret.is_some_and(|secret| sign(&secret, &text) == signature);
        Box::pin(async move { signed && party.repository.0 == hash(&party.key) })
    }
}

/// A repository's owner.
#[derive(Clone, Copy)]
struct Owner {
    secret: [u8; 32],
    party: Party,
}

impl Signer for Owner {
    fn party(&self) -> BoxFuture<'_, Result<Party, TransportError>> {
        Box::pin(async { Ok(self.party) })
    }

    fn sign(&self, text: Vec<u8>) -> BoxFuture<'_, Result<SignatureBytes, TransportError>> {
        Box::pin(async move { Ok(sign(&self.secret, &text)) })
    }
}

/// A database with one pack of one version.
struct Notes;

const SITE: [u8; 16] = [0xaa; 16];

fn status() -> RemoteStatus {
    RemoteStatus { site_id: SITE.to_vec(), db_version: 7, schema: vec![0xbb; 32] }
}

fn pack() -> Pack {
    let source = SiteId::from_bytes(&SITE).unwrap();
    Pack { source, from: Cursor::ZERO, to: Cursor::whole(7), tables: Vec::new(), changes: Vec::new() }
}

impl Source for Notes {
    fn status(&self) -> Result<RemoteStatus, String> {
        Ok(status())
    }

    fn packs(&self, _: Cursor, _: &SiteId, take: TakePack<'_>) -> Result<Reached, String> {
        let _ = take(pack());
        Ok(Reached::all(Cursor::whole(7), false))
    }
}

/// A private repository, its remote `friend`, and `stranger`, whom it does not know.
struct Scene {
    guarded: Arc<Guarded>,
    rules: watch::Sender<Arc<Rules>>,
    drops: Arc<Drops>,
    keys: Arc<Keys>,
    hints: Arc<Hints>,
    own: Owner,
    friend: Owner,
    stranger: Owner,
}

impl Scene {
    fn new() -> Self {
        let keys = Arc::new(Keys::default());
        let [own, friend, stranger] = ["own", "friend", "stranger"].map(|name| keys.make(name));
        let rules = Rules { private: true, remotes: [friend.party.repository].into(), limits: Limits::default() };
        let rules = watch::Sender::new(Arc::new(rules));
        let drops = Arc::new(Drops::default());
        let hints = Arc::default();
        let guarded = serve(&own, &keys, &rules, &drops, &hints);
        Self { guarded, rules, drops, keys, hints, own, friend, stranger }
    }

    async fn ask(&self, session: u8, request: Request) -> Answer {
        ask(&self.guarded, session, request).await
    }

    async fn nonce(&self, session: u8, caller: Party) -> Nonce {
        let request = Request::Challenge { caller: caller.repository.0, key: caller.key };
        match self.ask(session, request).await {
            Answer::Nonce { nonce } => nonce,
            other => panic!("{other:?}"),
        }
    }

    /// A proof by `owner` for this server in `session`.
    async fn proof(&self, session: u8, owner: &Owner) -> Request {
        let nonce = self.nonce(session, owner.party).await;
        proof(&nonce, self.own.party.repository, owner, session)
    }

    async fn is_told(&self, session: u8) -> bool {
        match self.ask(session, Request::Status).await {
            Answer::Status(_) => true,
            Answer::NotAuthorised { change: None } => false,
            other => panic!("{other:?}"),
        }
    }

    fn set_remotes(&self, remotes: &[Owner]) {
        self.rules.send_modify(|rules| {
            let remotes = remotes.iter().map(|owner| owner.party.repository).collect();
            *rules = Arc::new(Rules { remotes, ..(**rules).clone() });
        });
    }

    fn client(&self, owner: &Owner) -> Client {
        let credentials = Credentials::new(Arc::new(*owner), self.own.party.repository);
        Client::new(Arc::new(LocalPeer::new(self.guarded.clone())), ClientLimits::default(), Host::default())
            .with_credentials(credentials)
    }
}

fn serve(
    own: &Owner,
    keys: &Arc<Keys>,
    rules: &watch::Sender<Arc<Rules>>,
    drops: &Arc<Drops>,
    hints: &Arc<Hints>,
) -> Arc<Guarded> {
    let door = Door::new(own.party.repository, keys.clone(), hash(&own.secret), Host::default());
    let server = Server::new(Notes, None, Host::default());
    Arc::new(Guarded::new(server, door, rules.subscribe(), drops.clone()).with_hints(hints.clone()))
}

async fn ask(guarded: &Guarded, session: u8, request: Request) -> Answer {
    let bytes = guarded.handle(message::encode_request([session; 16].into(), request)).await;
    message::decode(&bytes).unwrap()
}

fn proof(nonce: &Nonce, server: RecordId, owner: &Owner, session: u8) -> Request {
    let text = proof_text(nonce, server, owner.party, &[session; 16].into());
    let Party { repository, key } = owner.party;
    Request::Proof { caller: repository.0, key, nonce: *nonce, signature: sign(&owner.secret, &text) }
}

fn refused() -> Answer {
    Answer::NotAuthorised { change: None }
}

#[tokio::test]
async fn without_a_proof_nothing_is_told() {
    let scene = Scene::new();
    let id = *PackId::of(&pack().encode()).as_bytes();
    let offer = |reader| Request::Offer { job: 1, after: Cursor::ZERO.into(), reader };
    let requests = [
        Request::Status,
        offer(vec![1; 16]),
        offer(vec![]),
        Request::Chunk { pack: id, index: 0 },
        Request::Chunk { pack: [0; 32], index: 9 },
        Request::Schema { job: 1 },
        Request::Digest { job: 2, reader: vec![1; 16] },
        Request::Rows { job: 3, ranges: vec![1; 128] },
    ];
    // Also when a remote is being served and the packs are there.
    let proof = scene.proof(1, &scene.friend).await;
    assert_eq!(scene.ask(1, proof).await, Answer::Authorised);
    assert!(matches!(scene.ask(1, offer(vec![1; 16])).await, Answer::Offer(_)));
    assert!(matches!(scene.ask(1, Request::Chunk { pack: id, index: 0 }).await, Answer::Chunk { .. }));
    for request in requests {
        assert_eq!(scene.ask(2, request.clone()).await, refused(), "{request:?}");
        let unnamed = scene.guarded.handle(message::encode(request)).await;
        assert_eq!(unnamed, message::encode(refused()));
    }
}

#[tokio::test]
async fn a_proof_opens_its_own_session_only() {
    let scene = Scene::new();
    assert!(!scene.is_told(1).await);
    let proof = scene.proof(1, &scene.friend).await;
    assert_eq!(scene.ask(2, proof.clone()).await, refused(), "stolen");
    assert!(!scene.is_told(2).await);
    assert_eq!(scene.ask(1, proof.clone()).await, Answer::Authorised);
    assert!(scene.is_told(1).await);
    assert_eq!(scene.ask(2, proof).await, refused(), "stolen after it was used");
    assert!(!scene.is_told(2).await);
}

#[tokio::test]
async fn a_proof_is_good_once() {
    let scene = Scene::new();
    let proof = scene.proof(1, &scene.friend).await;
    assert_eq!(scene.ask(1, proof.clone()).await, Answer::Authorised);
    // A message may come twice: it does no more.
    advance(Duration::from_secs(50));
    assert_eq!(scene.ask(1, proof.clone()).await, Answer::Authorised);
    advance(Duration::from_secs(15 * 60 - 50));
    assert!(!scene.is_told(1).await, "the second one has not prolonged it");
    assert_eq!(scene.ask(1, proof).await, refused());

    let proof = scene.proof(1, &scene.friend).await;
    assert_eq!(scene.ask(1, proof.clone()).await, Answer::Authorised);
    scene.set_remotes(&[]);
    assert!(!scene.is_told(1).await);
    scene.set_remotes(&[scene.friend]);
    assert_eq!(scene.ask(1, proof).await, refused(), "replayed after its session ended, while the nonce is fresh");
    assert!(!scene.is_told(1).await);
}

#[tokio::test]
async fn a_proof_for_one_server_is_none_for_another() {
    let scene = Scene::new();
    // The friend also fetches from Mallory, who passes on this server's nonce and session.
    let mallory = scene.keys.make("mallory");
    let nonce = scene.nonce(1, scene.friend.party).await;
    let relayed = proof(&nonce, mallory.party.repository, &scene.friend, 1);
    assert_eq!(scene.ask(1, relayed).await, refused());
    assert!(!scene.is_told(1).await);
}

#[tokio::test]
async fn a_server_in_the_middle_gets_nothing() {
    let scene = Scene::new();
    let mallory = scene.keys.make("mallory");
    // Mallory hands every message on, both ways.
    let credentials = Credentials::new(Arc::new(scene.friend), mallory.party.repository);
    let peer = Arc::new(LocalPeer::new(scene.guarded.clone()));
    let client = Client::new(peer, ClientLimits::default(), Host::default()).with_credentials(credentials);
    assert!(matches!(client.status().await, Err(ClientError::NotAuthorised)));
}

#[tokio::test]
async fn who_is_no_remote_is_refused_whatever_he_signs() {
    let scene = Scene::new();
    let proof_of = scene.proof(1, &scene.stranger).await;
    assert_eq!(scene.ask(1, proof_of).await, refused(), "a good proof of somebody unknown");
    // The friend's record with a key that does not own it.
    let liar = Owner { party: Party { key: scene.stranger.party.key, ..scene.friend.party }, ..scene.stranger };
    let claimed = scene.proof(2, &liar).await;
    assert_eq!(scene.ask(2, claimed).await, refused());
    // The friend's record and key, signed with another key.
    let forger = Owner { secret: scene.stranger.secret, ..scene.friend };
    let forged = scene.proof(3, &forger).await;
    assert_eq!(scene.ask(3, forged).await, refused());
    for session in 1..=3 {
        assert!(!scene.is_told(session).await);
    }
}

#[tokio::test]
async fn a_remote_that_is_removed_is_refused_at_once() {
    let scene = Scene::new();
    let open = scene.proof(1, &scene.friend).await;
    assert_eq!(scene.ask(1, open).await, Answer::Authorised);
    let pending = scene.proof(2, &scene.friend).await;
    assert!(scene.is_told(1).await);
    scene.set_remotes(&[scene.stranger]);
    assert!(!scene.is_told(1).await, "in the middle of its session");
    assert_eq!(scene.ask(2, pending).await, refused(), "with a nonce from before");
    scene.set_remotes(&[scene.friend]);
    assert!(!scene.is_told(1).await, "the session does not come back");
}

#[tokio::test]
async fn nonces_are_fresh_and_the_servers_own() {
    let scene = Scene::new();
    let late = scene.proof(1, &scene.friend).await;
    advance(Duration::from_secs(61));
    assert_eq!(scene.ask(1, late).await, refused(), "an expired nonce");

    let server = scene.own.party.repository;
    let mut nonce = scene.nonce(1, scene.friend.party).await;
    nonce[7] = nonce[7].wrapping_add(1);
    for made_up in [[0; 32], [0xff; 32], nonce] {
        let forged = proof(&made_up, server, &scene.friend, 1);
        assert_eq!(scene.ask(1, forged).await, refused(), "a nonce of one's own");
    }
    let anothers = scene.nonce(1, scene.stranger.party).await;
    let forged = proof(&anothers, server, &scene.friend, 1);
    assert_eq!(scene.ask(1, forged).await, refused(), "a nonce for another caller");
    let other_server = serve(&scene.stranger, &scene.keys, &scene.rules, &scene.drops, &scene.hints);
    let request = Request::Challenge { caller: scene.friend.party.repository.0, key: scene.friend.party.key };
    let Answer::Nonce { nonce } = ask(&other_server, 1, request).await else { panic!("no nonce") };
    assert_eq!(scene.ask(1, proof(&nonce, server, &scene.friend, 1)).await, refused(), "a nonce of another server");
    assert!(!scene.is_told(1).await);
}

#[tokio::test]
async fn a_flood_of_challenges_pushes_out_no_nonce() {
    let scene = Scene::new();
    let pending = scene.proof(1, &scene.friend).await;
    for flood in 0..20_000_u32 {
        let caller = hash(&flood.to_be_bytes());
        let session: [u8; 16] = std::array::from_fn(|at| caller[at]);
        let request = message::encode_request(session.into(), Request::Challenge { caller, key: caller });
        let answer = message::decode::<Answer>(&scene.guarded.handle(request).await).unwrap();
        assert!(matches!(answer, Answer::Nonce { .. } | Answer::Busy), "{answer:?}");
    }
    advance(Duration::from_secs(1));
    assert_eq!(scene.ask(1, pending).await, Answer::Authorised);
    assert!(scene.is_told(1).await);
}

#[tokio::test]
async fn remotes_are_served_while_strangers_flood() {
    let scene = Scene::new();
    let proof = scene.proof(1, &scene.friend).await;
    assert_eq!(scene.ask(1, proof).await, Answer::Authorised);
    let mut answers = Vec::new();
    for flood in 0..50_000_u32 {
        let session: [u8; 16] = std::array::from_fn(|at| flood.to_be_bytes()[at % 4]);
        let request = message::encode_request(session.into(), Request::Status);
        answers.push(message::decode::<Answer>(&scene.guarded.handle(request).await).unwrap());
    }
    assert_eq!(answers.last(), Some(&Answer::Busy), "the strangers have had their share");
    assert!(scene.is_told(1).await);
}

#[tokio::test]
async fn whom_it_answers_can_be_changed_at_any_time() {
    let scene = Scene::new();
    assert!(!scene.is_told(1).await);
    scene.rules.send_modify(|rules| *rules = Arc::new(Rules { private: false, ..(**rules).clone() }));
    assert!(scene.is_told(1).await);
    scene.rules.send_modify(|rules| *rules = Arc::new(Rules { private: true, ..(**rules).clone() }));
    assert!(!scene.is_told(1).await);
    scene.rules.send_replace(Arc::default());
    let proof = scene.proof(1, &scene.friend).await;
    assert_eq!(scene.ask(1, proof).await, refused(), "before the settings are read nobody is let in");
}

#[test]
fn the_announcement_of_a_private_repository_tells_only_that_something_changed() {
    let secret = [7; 32];
    let announced = private_announcement(&status(), &secret);
    assert_eq!(announced, private_announcement(&status(), &secret));
    let next = private_announcement(&RemoteStatus { db_version: 8, ..status() }, &secret);
    assert_ne!(announced, next);
    assert_ne!(announced, private_announcement(&status(), &[8; 32]), "it cannot be guessed");
    assert_eq!(announced.len(), next.len());
    let told = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
    assert!(!told(&announced, &SITE) && !told(&announced, &[0xbb; 32]));
    assert!(told(&announcement(&status()), &SITE));
    let read: Answer = message::decode(&announced).unwrap();
    assert!(matches!(read, Answer::NotAuthorised { change: Some(_) }));
}

/// Takes what comes.
struct Kept(Vec<Fetched>);

impl Sink for Kept {
    type Error = ClientError;

    async fn take(&mut self, step: Fetched) -> Result<(), ClientError> {
        self.0.push(step);
        Ok(())
    }
}

#[tokio::test]
async fn a_client_proves_who_it_is_by_itself() {
    let scene = Scene::new();
    let client = scene.client(&scene.friend);
    assert_eq!(client.status().await.unwrap(), status());
    advance(Duration::from_secs(16 * 60));
    let mut kept = Kept(Vec::new());
    let reader = SiteId::from_bytes(&[1; 16]).unwrap();
    client.fetch(Cursor::ZERO, 7, &reader, &mut kept).await.unwrap();
    assert!(matches!(kept.0.as_slice(), [Fetched::Pack(..), Fetched::Reached(_)]), "also when the session has ended");

    let refused = scene.client(&scene.stranger).status().await;
    assert!(matches!(refused, Err(ClientError::NotAuthorised)));
    let nameless =
        Client::new(Arc::new(LocalPeer::new(scene.guarded.clone())), ClientLimits::default(), Host::default());
    assert!(matches!(nameless.status().await, Err(ClientError::NotAuthorised)));
    scene.set_remotes(&[]);
    assert!(matches!(client.status().await, Err(ClientError::NotAuthorised)), "revoked");
}

/// Counts the signatures.
struct Counting(Owner, Arc<AtomicUsize>);

impl Signer for Counting {
    fn party(&self) -> BoxFuture<'_, Result<Party, TransportError>> {
        self.0.party()
    }

    fn sign(&self, text: Vec<u8>) -> BoxFuture<'_, Result<SignatureBytes, TransportError>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.sign(text)
    }
}

#[tokio::test]
async fn many_requests_at_once_make_one_proof() {
    let scene = Scene::new();
    let signatures = Arc::new(AtomicUsize::new(0));
    let signer = Arc::new(Counting(scene.friend, signatures.clone()));
    let peer = Arc::new(LocalPeer::new(scene.guarded.clone()));
    let client = Client::new(peer, ClientLimits::default(), Host::default())
        .with_credentials(Credentials::new(signer, scene.own.party.repository));
    let answers = futures_util::future::join_all((0..16).map(|_| client.status())).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(signatures.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_session_that_breaks_the_protocol_is_dropped_and_others_are_served() {
    let scene = Scene::new();
    scene.rules.send_modify(|rules| *rules = Arc::new(Rules { private: false, ..(**rules).clone() }));
    let offer = |version, seq, reader: usize| Request::Offer {
        job: 1,
        after: Cursor { version, seq }.into(),
        reader: vec![1; reader],
    };
    assert!(matches!(scene.ask(9, offer(0, 0, 16)).await, Answer::Offer(_)));
    let id = *PackId::of(&pack().encode()).as_bytes();
    let faults = [
        (offer(-1, 0, 16), "asks for what follows a cursor that no database has"),
        (offer(1 << 62, 0, 16), "asks for what follows a cursor that no database has"),
        (offer(0, -1, 16), "asks for what follows a cursor that no database has"),
        (offer(0, 0, 17), "gives itself an impossible site id"),
        (Request::Chunk { pack: id, index: u32::MAX }, "asks for chunks that packs do not have"),
    ];
    for (session, (request, why)) in faults.into_iter().enumerate() {
        let session = u8::try_from(session).unwrap();
        for _ in 0..12 {
            assert!(matches!(scene.ask(session, request.clone()).await, Answer::Refused { .. }), "{request:?}");
        }
        let Answer::Refused { reason } = scene.ask(session, Request::Status).await else { panic!("{request:?}") };
        assert!(reason.contains(why), "{reason}");
        assert!(scene.is_told(9).await, "others are served");
    }
    for _ in 0..12 {
        let mut garbage = message::encode_request([50; 16].into(), Request::Status);
        let end = garbage.len() - 18;
        garbage[end] ^= 0xff;
        let _ = scene.guarded.handle(garbage).await;
        let _ = scene.guarded.handle(b"garbage".to_vec()).await;
    }
    assert_eq!(scene.drops.report().count, 5);
    advance(Duration::from_secs(61));
    assert!(scene.is_told(0).await, "not for ever");
}

#[tokio::test]
async fn offered_proofs_that_are_none_are_a_fault() {
    let scene = Scene::new();
    for _ in 0..12 {
        let wrong = scene.ask(1, Request::Challenge { caller: [1; 32], key: [2; 32] }).await;
        if let Answer::Nonce { nonce } = wrong {
            let _ = scene.ask(1, Request::Proof { caller: [1; 32], key: [2; 32], nonce, signature: [3; 64] }).await;
        }
    }
    assert_eq!(scene.drops.report().last_reason.as_deref(), Some("offers proofs that are none"));
}

#[tokio::test]
async fn hints_are_heard_and_nothing_is_told_of_it() {
    let scene = Scene::new();
    let address: Address = format!("{}:{}", scene.friend.party.repository, "A".repeat(43)).parse().unwrap();
    let tag = HintTag::new(&address, scene.own.party.repository);
    let listener = scene.hints.listen(tag);
    let hint = |tag: HintTag| Request::Hint { tag: tag.to_bytes() };

    assert_eq!(scene.ask(1, hint(tag)).await, refused(), "a private repository hears its remotes only");
    assert!(listener.hinted().now_or_never().is_none());
    let client = scene.client(&scene.friend);
    client.hint(tag).await.unwrap();
    assert!(listener.hinted().now_or_never().is_some());

    scene.rules.send_modify(|rules| *rules = Arc::new(Rules { private: false, ..(**rules).clone() }));
    let unknown = HintTag::new(&address, scene.stranger.party.repository);
    assert_eq!(scene.ask(2, hint(unknown)).await, scene.ask(2, hint(tag)).await, "who asks cannot tell who is known");
    assert!(listener.hinted().now_or_never().is_some());
}

#[tokio::test]
async fn a_flood_of_hints_is_a_flood_of_requests() {
    let scene = Scene::new();
    scene.rules.send_modify(|rules| *rules = Arc::new(Rules { private: false, ..(**rules).clone() }));
    let mut noted = 0;
    let dropped = loop {
        match scene.ask(1, Request::Hint { tag: [7; 32] }).await {
            Answer::Noted => noted += 1,
            Answer::Busy => {}
            Answer::Refused { .. } => break true,
            other => panic!("{other:?}"),
        }
        assert!(noted < 100_000, "it goes on and on");
    };
    assert!(dropped && noted > 0);
    assert!(scene.is_told(2).await, "the others are served");
}
