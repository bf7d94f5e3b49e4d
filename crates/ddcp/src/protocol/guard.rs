//! What stands before a [`Server`] that strangers can reach: it keeps callers apart, bounds what each may cost, and
//! in a private repository answers remotes only.

use std::{collections::HashSet, sync::Arc};

use tokio::sync::watch;

use super::{
    access::{Door, Proof},
    gate::{Account, Caller, Drops, Gate},
    hint::{HintTag, Hints},
    message::{self, Answer, Request, Session},
    rows::ranges_of,
    server::Server,
};
use crate::{
    changeset::{Cursor, MAX_VERSION},
    config::Limits,
    host::Host,
    transport::{BoxFuture, Handler, Party, RecordId},
};

/// Whom to answer, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whether only [`Rules::remotes`] are answered.
    pub private: bool,
    /// The configured remotes that have an identity.
    pub remotes: HashSet<RecordId>,
    /// What callers may cost.
    pub limits: Limits,
}

impl Default for Rules {
    /// Nobody is answered.
    fn default() -> Self {
        Self { private: true, remotes: HashSet::new(), limits: Limits::default() }
    }
}

/// A [`Server`] for strangers.
pub struct Guarded {
    server: Server,
    door: Door,
    gate: Gate,
    rules: watch::Receiver<Arc<Rules>>,
    hints: Arc<Hints>,
    drops: Arc<Drops>,
    host: Host,
}

impl Guarded {
    /// Guards `server` by `rules`, which may change at any time and then hold from the next request on. Answers and
    /// dropped callers are counted in `drops`.
    #[must_use]
    pub fn new(server: Server, door: Door, rules: watch::Receiver<Arc<Rules>>, drops: Arc<Drops>) -> Self {
        let host = server.host();
        let gate = Gate::new(Arc::clone(&drops), host.clone());
        Self { server, door, gate, rules, hints: Arc::default(), drops, host }
    }

    /// The same, which gives the hints of peers to `hints`.
    #[must_use]
    pub fn with_hints(self, hints: Arc<Hints>) -> Self {
        Self { hints, ..self }
    }

    async fn answer(&self, bytes: &[u8]) -> Answer {
        let rules = Arc::clone(&self.rules.borrow());
        let (session, request) = message::decode_request(bytes);
        let remote = self.door.caller(session.as_ref(), |caller| rules.remotes.contains(&caller));
        let caller = match (remote, session) {
            (Some(remote), _) => Caller::Remote(remote),
            (None, Some(session)) => Caller::Session(session),
            (None, None) => Caller::Unnamed,
        };
        let pass = match (self.gate.enter(caller, &rules.limits), claimed(&request)) {
            (Ok(pass), _) => pass,
            (Err(Answer::Busy), Some(claimed)) => match self.gate.knock(claimed) {
                Some(pass) => pass,
                None => return Answer::Busy,
            },
            (Err(instead), _) => return instead,
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                pass.account.fault("sends what is no request");
                return Answer::Refused { reason: error.to_string() };
            }
        };
        match request {
            Request::Challenge { caller, key } => self.challenge(session, party(caller, key)),
            Request::Proof { caller, key, nonce, signature } => {
                let proof = Proof { caller: party(caller, key), nonce, signature };
                self.prove(session, &proof, &rules, &pass.account).await
            }
            _ if rules.private && remote.is_none() => Answer::NotAuthorised { change: None },
            Request::Hint { tag } => {
                self.hints.tell(HintTag::from_bytes(tag));
                Answer::Noted
            }
            request => {
                if let Some(why) = nonsense(&request) {
                    pass.account.fault(why);
                    return Answer::Refused { reason: format!("the caller {why}") };
                }
                self.server.answer(request, &pass.account).await
            }
        }
    }

    fn challenge(&self, session: Option<Session>, caller: Party) -> Answer {
        match session {
            Some(session) => {
                Answer::Nonce { nonce: self.door.challenge(&session, caller, self.host.random().to_be_bytes()) }
            }
            None => no_session(),
        }
    }

    async fn prove(&self, session: Option<Session>, proof: &Proof, rules: &Rules, account: &Account) -> Answer {
        let Some(session) = session else { return no_session() };
        if self.door.prove(&session, proof, |caller| rules.remotes.contains(&caller)).await {
            tracing::info!(remote = %proof.caller.repository, "a remote has proved who it is");
            return Answer::Authorised;
        }
        account.fault("offers proofs that are none");
        Answer::NotAuthorised { change: None }
    }
}

/// Whom a request that is about a proof claims to come from.
fn claimed<E>(request: &Result<Request, E>) -> Option<RecordId> {
    match request {
        Ok(Request::Challenge { caller, .. } | Request::Proof { caller, .. }) => Some(RecordId(*caller)),
        _ => None,
    }
}

fn party(repository: [u8; 32], key: [u8; 32]) -> Party {
    Party { repository: RecordId(repository), key }
}

fn no_session() -> Answer {
    Answer::Refused { reason: "a proof needs a session to hold for".to_owned() }
}

/// What no honest client asks, whatever the state of the two databases.
fn nonsense(request: &Request) -> Option<&'static str> {
    let reader = match request {
        Request::Offer { after, reader, .. } => {
            let after = Cursor::from(*after);
            if !(0..=MAX_VERSION).contains(&after.version) || after.seq < 0 {
                return Some("asks for what follows a cursor that no database has");
            }
            reader
        }
        Request::Digest { reader, .. } => reader,
        Request::Rows { ranges, .. } => {
            return ranges_of(ranges).is_none().then_some("asks for rows of ranges that are none");
        }
        _ => return None,
    };
    if !(1..=16).contains(&reader.len()) {
        return Some("gives itself an impossible site id");
    }
    None
}

impl Handler for Guarded {
    fn handle(&self, request: Vec<u8>) -> BoxFuture<'_, Vec<u8>> {
        Box::pin(async move {
            let answer = self.answer(&request).await;
            self.drops.note_answer(&answer);
            message::encode(answer)
        })
    }

    fn busy(&self) -> Vec<u8> {
        self.drops.note_answer(&Answer::Busy);
        message::encode(Answer::Busy)
    }
}

#[cfg(test)]
mod tests;
