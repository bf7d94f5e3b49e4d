//! What each has for itself, whatever others do.

use super::*;

#[tokio::test]
async fn remotes_begin_new_sessions_while_strangers_flood() {
    let scene = Scene::new();
    for flood in 0..50_000_u32 {
        let session: [u8; 16] = std::array::from_fn(|at| flood.to_be_bytes()[at % 4]);
        let request = message::encode_request(session.into(), Request::Status);
        let _ = scene.guarded.handle(request).await;
    }
    // Those who claim to be somebody have a share of their own, and each what others do not use up.
    for flood in 0..5_000_u32 {
        let caller = Party { repository: RecordId(hash(&flood.to_be_bytes())), key: [0; 32] };
        let request = Request::Challenge { caller: caller.repository.0, key: caller.key };
        scene.ask(2, request).await;
    }
    let proof = scene.proof(1, &scene.friend).await;
    assert_eq!(scene.ask(1, proof).await, Answer::Authorised);
    assert!(scene.is_told(1).await);
    // Who claims to be it has no more than its share.
    let request = || Request::Challenge { caller: scene.stranger.party.repository.0, key: scene.stranger.party.key };
    let mut last = None;
    for _ in 0..5_000 {
        last = Some(scene.ask(3, request()).await);
    }
    assert_eq!(last, Some(Answer::Busy));
    let proof = scene.proof(4, &scene.friend).await;
    assert_eq!(scene.ask(4, proof).await, Answer::Authorised);
}

#[tokio::test]
async fn a_remote_that_uses_up_its_nonces_shuts_out_nobody_else() {
    let scene = Scene::new();
    let other = scene.keys.make("other");
    scene.set_remotes(&[scene.friend, other]);
    for number in 0..1024_u16 {
        let session = (number % 200) as u8;
        let proof = scene.proof(session, &other).await;
        assert_eq!(scene.ask(session, proof).await, Answer::Authorised);
        advance(Duration::from_millis(5));
    }
    let proof = scene.proof(200, &other).await;
    assert_eq!(scene.ask(200, proof).await, refused(), "it has used up what is its own");
    let proof = scene.proof(201, &scene.friend).await;
    assert_eq!(scene.ask(201, proof).await, Answer::Authorised);
    advance(Duration::from_secs(61));
    let proof = scene.proof(1, &other).await;
    assert_eq!(scene.ask(1, proof).await, Answer::Authorised, "and has it again");
}

/// A server that is restarted after its first answer.
struct Restarted {
    before: Arc<Guarded>,
    after: Arc<Guarded>,
    answers: AtomicUsize,
}

impl Handler for Restarted {
    fn handle(&self, request: Vec<u8>) -> BoxFuture<'_, Vec<u8>> {
        match self.answers.fetch_add(1, Ordering::SeqCst) {
            // What it asked first, and the nonce.
            0 | 1 => self.before.handle(request),
            _ => self.after.handle(request),
        }
    }

    fn busy(&self) -> Vec<u8> {
        self.after.busy()
    }
}

#[tokio::test]
async fn a_server_that_restarts_between_nonce_and_proof_is_shown_another_proof() {
    let scene = Scene::new();
    let door = Door::new(scene.own.party.repository, scene.keys.clone(), [9; 32], Host::default());
    let server = Server::new(Notes, None, Host::default());
    let after = Arc::new(Guarded::new(server, door, scene.rules.subscribe(), scene.drops.clone()));
    let restarted = Restarted { before: scene.guarded.clone(), after, answers: AtomicUsize::new(0) };
    let peer = Arc::new(LocalPeer::new(Arc::new(restarted)));
    let client = |owner: Owner| {
        let credentials = Credentials::new(Arc::new(owner), scene.own.party.repository);
        Client::new(peer.clone(), ClientLimits::default(), Host::default()).with_credentials(credentials)
    };
    assert_eq!(client(scene.friend).status().await.unwrap(), status());
    assert!(matches!(client(scene.stranger).status().await, Err(ClientError::NotAuthorised)));
}
