//! Private repositories, the side that asks: proves who it is when that is demanded.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::Mutex;

use super::{
    access::proof_text,
    client::{Client, ClientError, unexpected},
    message::{Answer, Request},
};
use crate::transport::{RecordId, Signer};

/// What a [`Client`] proves who it is with, to the one server it talks to.
pub struct Credentials {
    signer: Arc<dyn Signer>,
    /// Whom the proofs are for: whom else they are shown to cannot use them.
    server: RecordId,
    /// Proofs that the server has taken.
    taken: AtomicU64,
    /// Held while one is made: many requests may be refused at one time.
    proving: Mutex<()>,
}

impl Credentials {
    /// Proofs by `signer` for the repository `server`.
    #[must_use]
    pub fn new(signer: Arc<dyn Signer>, server: RecordId) -> Self {
        Self { signer, server, taken: AtomicU64::new(0), proving: Mutex::default() }
    }

    /// How many proofs the server has taken so far.
    pub(super) fn proofs(&self) -> u64 {
        self.taken.load(Ordering::SeqCst)
    }

    /// Proves to the server who `client` is, unless that was done since `proofs` were counted.
    ///
    /// # Errors
    /// [`ClientError::NotAuthorised`] if the server does not take the proof, and others.
    pub(super) async fn prove(&self, client: &Client, proofs: u64) -> Result<(), ClientError> {
        let _alone = self.proving.lock().await;
        if self.proofs() != proofs {
            return Ok(());
        }
        match self.prove_once(client).await {
            // A server that was restarted after it gave the nonce does not know it as its own.
            Err(ClientError::NotAuthorised) => self.prove_once(client).await,
            proved => proved,
        }
    }

    async fn prove_once(&self, client: &Client) -> Result<(), ClientError> {
        let caller = self.signer.party().await.map_err(ClientError::Identity)?;
        let challenge = Request::Challenge { caller: caller.repository.0, key: caller.key };
        let nonce = match client.exchange(challenge).await? {
            Answer::Nonce { nonce } => nonce,
            other => return Err(unexpected(&other)),
        };
        let text = proof_text(&nonce, self.server, caller, &client.session());
        let signature = self.signer.sign(text).await.map_err(ClientError::Identity)?;
        let proof = Request::Proof { caller: caller.repository.0, key: caller.key, nonce, signature };
        match client.exchange(proof).await? {
            Answer::Authorised => {
                self.taken.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
            Answer::NotAuthorised { .. } => Err(ClientError::NotAuthorised),
            other => Err(unexpected(&other)),
        }
    }
}
