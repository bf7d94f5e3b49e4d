//! Private repositories, the side that answers: who has proved to be a remote.
//!
//! Callers are anonymous, so who they are is proved inside the messages. A caller asks for a nonce (`Challenge`) and
//! signs it with the key that owns its own record (`Proof`). The signature also covers both repositories and the
//! session, so it is of no use at another server, in another session, or a second time.
//!
//! Nonces are not stored: each carries its time and a keyed hash by which the server knows its own, so a flood of
//! challenges takes no memory and pushes out nobody's nonce. What is stored is which nonces have been used, and only
//! remotes can use one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{clock::now, message::Session};
use crate::{
    host::Host,
    transport::{Party, RecordId, SignatureBytes, Verifier},
};

/// How long a nonce can be used.
const NONCE_LIFE: Duration = Duration::from_secs(60);

/// How long a session is answered after it proved whose it is.
const ADMISSION_LIFE: Duration = Duration::from_secs(15 * 60);

/// Sessions of one remote at a time; the oldest leaves. Each fetch is one.
const MOST_SESSIONS: usize = 64;

/// Used nonces that are remembered of one remote. An honest one uses one for each session, so this is never reached
/// without malice, and shuts out nobody but the one remote.
const MOST_USED: usize = 1024;

/// Names what the signature is for: the key signs other things too.
const DOMAIN: &[u8] = b"ddcp proof of access, version 1\0";

const TIME_BYTES: usize = 8;
const UNIQUE_BYTES: usize = 16;

/// A nonce: when it was made, what makes it unique, and the first half of the keyed hash over both, the session and
/// the caller.
pub(crate) type Nonce = [u8; 32];

/// What a caller signs: every part has a fixed length.
pub(crate) fn proof_text(nonce: &Nonce, server: RecordId, caller: Party, session: &Session) -> Vec<u8> {
    let parts: [&[u8]; 6] = [DOMAIN, nonce, &server.0, &caller.repository.0, &caller.key, session.as_slice()];
    parts.concat()
}

/// Knows which sessions belong to whom. Whether a repository is let in is the layers' above.
pub struct Door {
    own: RecordId,
    verifier: Arc<dyn Verifier>,
    secret: [u8; 32],
    host: Host,
    started: Instant,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    admitted: HashMap<[u8; 16], Admission>,
    /// Nonces by who has used them, with the moment from which on they would be refused for their age.
    used: HashMap<RecordId, HashMap<Nonce, Instant>>,
}

struct Admission {
    caller: RecordId,
    nonce: Nonce,
    until: Instant,
}

/// What a caller shows.
#[derive(Clone, Copy)]
pub(crate) struct Proof {
    pub(crate) caller: Party,
    pub(crate) nonce: Nonce,
    pub(crate) signature: SignatureBytes,
}

impl Door {
    /// The door of repository `own`. `secret` must be random, and known to nobody.
    #[must_use]
    pub fn new(own: RecordId, verifier: Arc<dyn Verifier>, secret: [u8; 32], host: Host) -> Self {
        let started = now(&host);
        Self { own, verifier, secret, host, started, known: Mutex::default() }
    }

    /// A nonce for `caller` in `session`; `unique` must be random.
    pub(crate) fn challenge(&self, session: &Session, caller: Party, unique: [u8; 8]) -> Nonce {
        let age =
            u64::try_from(now(&self.host).saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX);
        self.nonce(age.to_be_bytes(), unique, session, caller)
    }

    fn nonce(&self, time: [u8; 8], unique: [u8; 8], session: &Session, caller: Party) -> Nonce {
        let parts: [&[u8]; 5] = [&time, &unique, session.as_slice(), &caller.repository.0, &caller.key];
        let hash = blake3::keyed_hash(&self.secret, &parts.concat());
        let mut nonce = [0; 32];
        nonce[..TIME_BYTES].copy_from_slice(&time);
        nonce[TIME_BYTES..UNIQUE_BYTES].copy_from_slice(&unique);
        nonce[UNIQUE_BYTES..].copy_from_slice(&hash.as_bytes()[..32 - UNIQUE_BYTES]);
        nonce
    }

    /// Lets `session` in as `proof` says, if the proof is good and `is_remote` holds for the caller. All is checked
    /// in any case, so that the time taken does not tell who is known here.
    pub(crate) async fn prove(
        &self,
        session: &Session,
        proof: &Proof,
        is_remote: impl Fn(RecordId) -> bool + Send,
    ) -> bool {
        let text = proof_text(&proof.nonce, self.own, proof.caller, session);
        let signed = self.verifier.verify(proof.caller, text, proof.signature).await;
        let made_here = self.made_here(session, proof);
        let remote = is_remote(proof.caller.repository);
        signed & made_here & remote && self.admit(session, proof)
    }

    /// Whether the nonce was made here, for this session and caller.
    fn made_here(&self, session: &Session, proof: &Proof) -> bool {
        let (time, unique) =
            (std::array::from_fn(|at| proof.nonce[at]), std::array::from_fn(|at| proof.nonce[TIME_BYTES + at]));
        let expected = self.nonce(time, unique, session, proof.caller);
        // Comparing keyed hashes of both takes the same time wherever they differ.
        blake3::keyed_hash(&self.secret, &expected) == blake3::keyed_hash(&self.secret, &proof.nonce)
    }

    /// Notes that `session` is the caller's, unless the nonce is too old or was used before.
    fn admit(&self, session: &Session, proof: &Proof) -> bool {
        let now = now(&self.host);
        let made = Duration::from_millis(u64::from_be_bytes(std::array::from_fn(|at| proof.nonce[at])));
        let Some(expiry) = self.started.checked_add(made).and_then(|made| made.checked_add(NONCE_LIFE)) else {
            return false;
        };
        let mut known = self.known();
        known.used.retain(|_, nonces| {
            nonces.retain(|_, expiry| *expiry > now);
            !nonces.is_empty()
        });
        known.admitted.retain(|_, admission| admission.until > now);
        let caller = proof.caller.repository;
        let used = known.used.entry(caller).or_default();
        if used.contains_key(&proof.nonce) {
            // A transport may bring a message twice: what it did it has done, and it does no more.
            return known.admitted.get(&**session).is_some_and(|admission| admission.nonce == proof.nonce);
        }
        if expiry <= now || used.len() >= MOST_USED {
            return false;
        }
        used.insert(proof.nonce, expiry);
        known.make_room(caller);
        let admission = Admission { caller, nonce: proof.nonce, until: now + ADMISSION_LIFE };
        known.admitted.insert(**session, admission);
        true
    }

    /// Whose `session` is, if that has been proved and `is_remote` still holds. A session whose remote is one no
    /// more ends for good.
    pub(crate) fn caller(&self, session: Option<&Session>, is_remote: impl Fn(RecordId) -> bool) -> Option<RecordId> {
        let session = session?;
        let mut known = self.known();
        let admission = known.admitted.get(&**session)?;
        if admission.until > now(&self.host) && is_remote(admission.caller) {
            return Some(admission.caller);
        }
        known.admitted.remove(&**session);
        None
    }

    /// What the mutex guards is consistent after every statement, so a panic elsewhere does not spoil it.
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Ends the oldest session of `caller` if it has as many as it may.
    fn make_room(&mut self, caller: RecordId) {
        let of_caller = || self.admitted.iter().filter(|(_, admission)| admission.caller == caller);
        if of_caller().count() < MOST_SESSIONS {
            return;
        }
        let oldest = of_caller().min_by_key(|(_, admission)| admission.until).map(|(session, _)| *session);
        if let Some(oldest) = oldest {
            self.admitted.remove(&oldest);
        }
    }
}
