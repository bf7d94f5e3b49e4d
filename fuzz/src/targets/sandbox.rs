//! The machine and the repositories' owners that clients and servers have here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    host::{Host, Machine},
    transport::{BoxFuture, Party, RecordId, SignatureBytes, Verifier},
};

/// A runtime whose time passes as soon as everybody waits.
pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

/// A machine on a [`runtime`]: its clock is the runtime's, its chance is the same in each run, and what may block takes
/// as long as it is told. Clones are the same machine.
#[derive(Clone, Default)]
pub(super) struct Sandbox {
    drawn: Arc<AtomicU64>,
    slowness: Arc<AtomicU64>,
    at_work: Arc<AtomicUsize>,
}

impl Sandbox {
    pub(super) fn host(&self) -> Host {
        Host::new(self.clone())
    }

    /// From now on what may block takes so long.
    pub(super) fn set_slowness(&self, pause: Duration) {
        self.slowness.store(pause.as_millis() as u64, Ordering::Relaxed);
    }

    /// Work that blocks at the moment.
    pub(super) fn at_work(&self) -> usize {
        self.at_work.load(Ordering::Relaxed)
    }
}

impl Machine for Sandbox {
    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn sleep(&self, pause: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(pause))
    }

    fn random(&self) -> u64 {
        let drawn = self.drawn.fetch_add(1, Ordering::Relaxed);
        let hash = blake3::hash(&drawn.to_le_bytes());
        u64::from_le_bytes(std::array::from_fn(|at| hash.as_bytes()[at]))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn block(&self, work: Box<dyn FnOnce() + Send>) {
        let slowness = self.slowness.load(Ordering::Relaxed);
        if slowness == 0 {
            return work();
        }
        let at_work = Arc::clone(&self.at_work);
        at_work.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(slowness)).await;
            at_work.fetch_sub(1, Ordering::Relaxed);
            work();
        });
    }
}

/// What a proof begins with, as `docs/protocol.md` has it.
const DOMAIN: &[u8] = b"ddcp proof of access, version 1\0";

/// What a proof signs, as `docs/protocol.md` has it.
pub(super) fn proof_text(nonce: &[u8; 32], server: RecordId, caller: Party, session: &[u8; 16]) -> Vec<u8> {
    [DOMAIN, nonce, &server.0, &caller.repository.0, &caller.key, session].concat()
}

/// A repository's owner. Its key signs by a keyed hash, and whoever knows the owner can check that.
#[derive(Clone, Copy)]
pub(super) struct Owner {
    secret: [u8; 32],
    pub(super) party: Party,
}

impl Owner {
    pub(super) fn named(name: &str) -> Self {
        let secret = hash(name.as_bytes());
        let key = hash(&secret);
        Self { secret, party: Party { repository: RecordId(hash(&key)), key } }
    }

    pub(super) fn sign(&self, text: &[u8]) -> SignatureBytes {
        let mut signature = [0; 64];
        blake3::Hasher::new_keyed(&self.secret).update(text).finalize_xof().fill(&mut signature);
        signature
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

/// Checks the signatures of these owners.
pub(super) struct Keys(pub(super) Vec<Owner>);

impl Verifier for Keys {
    fn verify(&self, party: Party, text: Vec<u8>, signature: SignatureBytes) -> BoxFuture<'_, bool> {
        let is_good = self.0.iter().any(|owner| owner.party == party && owner.sign(&text) == signature);
        Box::pin(async move { is_good })
    }
}
