use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::{AbortHandle, JoinHandle},
    time::{Instant, timeout},
};
use veilid_core::{
    CRYPTO_KIND_VLD0, KeyPair, OpaqueRecordKey, PublicKey, RecordKey, RouteId, RoutingContext, Signature, VeilidAPI,
    VeilidAPIError, VeilidAPIResult, VeilidAppCall, VeilidStateAttachment, VeilidUpdate,
};

use super::{
    super::{BoxFuture, Handler, Party, SignatureBytes, Signer, TransportError, Verifier},
    error::{retry, transport_error},
    health::Health,
    identity::{self, Identity},
    peer::{PeerFinder, VeilidPeer},
    publisher::Publisher,
    record::Age,
    server::Server,
    settings::veilid_config,
    watchdog,
    way_out::WayOut,
};
use crate::{config::NetworkConfig, files};

/// A question to the network is normally answered within a second or two; without an answer the library ends it
/// after 10 s.
const PATIENCE: Duration = Duration::from_secs(3);

/// Another way is normally found within a tenth of a second.
const CHANGE_PATIENCE: Duration = Duration::from_secs(2);

/// Where a node lives and which network it joins.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The folder of its stores and its identity; created if missing, made its owner's alone (mode 0700).
    pub dir: PathBuf,
    /// A private network; the public one if `None`.
    pub network: Option<NetworkConfig>,
    /// Whether it goes on running, so that other nodes may build on it: relay through it, and store with it.
    pub lasting: bool,
    /// Whether it may ask a router on its way (`UPnP`) to let others in.
    pub upnp: bool,
}

/// A running Veilid node: a cheap handle. Runs until [`Node::shutdown`]; one per process.
#[derive(Clone)]
pub struct Node {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) api: VeilidAPI,
    dir: PathBuf,
    /// Filled when the address is first asked for; the lock makes sure that it is made only once.
    identity: tokio::sync::Mutex<Option<Identity>>,
    pub(super) health: Health,
    way_out: WayOut,
    /// Whom to tell when a record changes.
    watched: Mutex<HashMap<OpaqueRecordKey, Arc<Notify>>>,
    /// The newest status that was seen of each record.
    pub(super) newest: Mutex<HashMap<OpaqueRecordKey, Age>>,
    /// Those that were reached, as long as somebody has them.
    peers: Mutex<HashMap<OpaqueRecordKey, PeerFinder>>,
    readiness: watch::Sender<Readiness>,
    serving: OnceLock<Serving>,
    /// A message that only this node knows: it sends it to itself to test its routes.
    pub(super) probe: Vec<u8>,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// What is there only while the node answers peers.
struct Serving {
    server: Server,
    dead_routes: mpsc::UnboundedSender<Vec<RouteId>>,
}

/// Whether the node is connected to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Readiness {
    pub(super) ready: bool,
    /// How many times it has become ready. Own routes made in an earlier epoch are not to be trusted.
    pub(super) epoch: u64,
    /// Since when `ready` is as it is.
    pub(super) since: Instant,
}

impl Node {
    /// Starts a node and lets it join the network. Returns before it is connected; see [`Node::wait_ready`].
    ///
    /// # Errors
    /// [`TransportError::InUse`] if another process runs a node in the same folder, [`TransportError::Store`] if
    /// the folder cannot be used.
    pub async fn start(options: NodeOptions) -> Result<Self, TransportError> {
        let NodeOptions { dir, network, lasting, upnp } = options;
        files::create_private_dir(&dir, files::Owner::of_folder(&dir))
            .map_err(|error| TransportError::Store { path: dir.clone(), reason: error.to_string() })?;
        let config = veilid_config(&dir, network.as_ref(), lasting, upnp)?;

        // The library must never wait in its callback: events go to a channel, and a task of ours takes them.
        let (sender, updates) = mpsc::unbounded_channel();
        let callback = Arc::new(move |update| {
            if is_of_interest(&update) {
                let _ = sender.send(update);
            }
        });
        let api =
            Box::pin(veilid_core::api_startup(callback, config)).await.map_err(|error| startup_error(&dir, &error))?;
        leave_to_owner(&dir);
        if let Err(error) = Box::pin(api.attach()).await {
            api.shutdown().await;
            return Err(transport_error(error));
        }

        let inner = Arc::new(Inner {
            api,
            dir,
            identity: tokio::sync::Mutex::default(),
            health: Health::default(),
            way_out: WayOut::default(),
            watched: Mutex::default(),
            newest: Mutex::default(),
            peers: Mutex::default(),
            readiness: watch::Sender::new(Readiness { ready: false, epoch: 0, since: Instant::now() }),
            serving: OnceLock::new(),
            probe: rand::random::<[u8; 32]>().to_vec(),
            tasks: Mutex::default(),
        });
        inner.spawn(dispatch(Arc::clone(&inner), updates));
        inner.spawn(watchdog::run(Arc::clone(&inner)));
        Ok(Self { inner })
    }

    /// This repository's address. The first call ever in this folder makes it, which needs no network; later it
    /// is always the same.
    ///
    /// # Errors
    /// [`TransportError::Store`] if the identity cannot be read or written.
    pub async fn address(&self) -> Result<RecordKey, TransportError> {
        Ok(self.inner.identity().await?.address)
    }

    /// Waits until the node is connected to the network.
    ///
    /// # Errors
    /// [`TransportError::Offline`] after `limit`.
    pub async fn wait_ready(&self, limit: Duration) -> Result<(), TransportError> {
        self.inner.wait_ready(Instant::now() + limit).await
    }

    /// Whether the node is connected to the network, and how many times it has come to be.
    #[must_use]
    pub fn connection(&self) -> (bool, u64) {
        let readiness = self.inner.readiness();
        (readiness.ready, readiness.epoch)
    }

    /// Answers peers through `handler` and publishes routes to this node, with `announcement`, under its address:
    /// from now on until [`Node::shutdown`], as soon and as long as the network allows.
    ///
    /// `announcement` may have at most 16 KiB; it is published anew shortly after it changes.
    ///
    /// # Errors
    /// Those of [`Node::address`]; [`TransportError::Other`] if the node is serving already.
    pub async fn serve(
        &self,
        handler: Arc<dyn Handler>,
        announcement: watch::Receiver<Vec<u8>>,
    ) -> Result<(), TransportError> {
        let identity = self.inner.identity().await?;
        let (dead_routes, dead) = mpsc::unbounded_channel();
        let serving = Serving { server: Server::new(handler), dead_routes };
        if self.inner.serving.set(serving).is_err() {
            return Err(TransportError::Other("this node is serving already".to_owned()));
        }
        let publisher = Publisher::new(Arc::clone(&self.inner), identity, announcement, dead);
        self.inner.spawn(publisher.run());
        Ok(())
    }

    /// Looks up the repository at `address`, within [`VeilidPeer::CONNECT_LIMIT`]. Asks nobody while somebody else has
    /// it: calls find out themselves when its routes have changed.
    ///
    /// # Errors
    /// See [`Node::connect_within`].
    pub async fn connect(&self, address: &RecordKey) -> Result<VeilidPeer, TransportError> {
        if let Some(peer) = self.inner.peers().get(&address.opaque()).and_then(|finder| finder.find(address)) {
            return Ok(peer);
        }
        let peer = self.look_up(address).await?;
        let mut peers = self.inner.peers();
        peers.retain(|_, finder| !finder.is_lost());
        peers.insert(address.opaque(), peer.finder());
        Ok(peer)
    }

    async fn look_up(&self, address: &RecordKey) -> Result<VeilidPeer, TransportError> {
        let deadline = Instant::now() + VeilidPeer::CONNECT_LIMIT;
        let first = self.connect_within(address, VeilidPeer::CONNECT_LIMIT).await;
        if !matches!(first, Err(TransportError::NotFound)) {
            return first;
        }
        // A record is visible from its first value on, some seconds after its owner's very first start: the two
        // may have been started at the same time.
        let second = self.connect_within(address, deadline.saturating_duration_since(Instant::now())).await;
        match second {
            // No news in the time that was left.
            Err(TransportError::Offline(_)) => first,
            _ => second,
        }
    }

    /// Looks up the repository at `address`: reads what it publishes and prepares to call it. Whether it answers
    /// shows with the first call.
    ///
    /// # Errors
    /// [`TransportError::Offline`] if this node is not connected within `limit`, [`TransportError::NotFound`] if
    /// nothing is published there, [`TransportError::Unreadable`] if it cannot be read with this address,
    /// [`TransportError::Unreachable`] if no usable route is published.
    pub async fn connect_within(&self, address: &RecordKey, limit: Duration) -> Result<VeilidPeer, TransportError> {
        let own = identity::stored_address(&self.inner.dir)?;
        if own.is_some_and(|own| own.opaque() == address.opaque()) {
            return Err(TransportError::Other("this is this repository's own address".to_owned()));
        }
        Box::pin(VeilidPeer::connect(Arc::clone(&self.inner), address.clone(), limit)).await
    }

    /// Leaves the network and stops the node, within 3 seconds. Nothing is lost if it is killed instead.
    pub async fn shutdown(&self) {
        for task in self.inner.tasks().drain(..) {
            task.abort();
        }
        if timeout(Duration::from_secs(3), self.inner.api.clone().shutdown()).await.is_err() {
            tracing::debug!("the node did not shut down in time; leaving it to the end of the process");
        }
        leave_to_owner(&self.inner.dir);
    }
}

/// What the Veilid library has made in `dir` belongs to whom the state directory belongs to, also where root runs this.
fn leave_to_owner(dir: &Path) {
    if let Err(error) = files::Owner::of_folder(dir).take_folder(dir) {
        tracing::warn!(folder = %dir.display(), %error, "the node's files could not be given to the repository's owner");
    }
}

impl Signer for Node {
    fn party(&self) -> BoxFuture<'_, Result<Party, TransportError>> {
        Box::pin(async move { identity::party(&self.inner.identity().await?) })
    }

    fn sign(&self, text: Vec<u8>) -> BoxFuture<'_, Result<SignatureBytes, TransportError>> {
        Box::pin(async move {
            let identity = self.inner.identity().await?;
            let signature = self.inner.sign(&identity.owner, text).await.map_err(transport_error)?;
            signature.try_into().map_err(|_| TransportError::Other("the signature has an odd length".to_owned()))
        })
    }
}

impl Verifier for Node {
    fn verify(&self, party: Party, text: Vec<u8>, signature: SignatureBytes) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let signed = self.inner.verify(&identity::public_key(&party), text, &signature).await;
            let owned = identity::is_owner(&self.inner.api, &party).await;
            signed && owned
        })
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

impl Inner {
    pub(super) fn readiness(&self) -> Readiness {
        *self.readiness.borrow()
    }

    pub(super) fn watch_readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Notes what the library says about being connected.
    pub(super) fn note_attachment(&self, state: &VeilidStateAttachment) {
        let ready = state.state.is_attached() && state.public_internet_ready;
        let changed = self.readiness.send_if_modified(|readiness| {
            if readiness.ready == ready {
                return false;
            }
            *readiness = Readiness { ready, epoch: readiness.epoch + u64::from(ready), since: Instant::now() };
            true
        });
        if changed {
            tracing::info!(ready, peers = state.live_peer_count.as_u64(), "connection to the network");
        }
    }

    pub(super) async fn wait_ready(&self, deadline: Instant) -> Result<(), TransportError> {
        let started = Instant::now();
        let mut readiness = self.readiness.subscribe();
        match tokio::time::timeout_at(deadline, readiness.wait_for(|readiness| readiness.ready)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(TransportError::Offline(format!("no connection within {} s", started.elapsed().as_secs()))),
        }
    }

    /// What to ask the network through.
    pub(super) fn context(&self) -> VeilidAPIResult<RoutingContext> {
        self.way_out.context(&self.api)
    }

    /// Nothing answered: questions take another way from now on, if one can be found. Returns at once;
    /// the handle tells when that is done.
    pub(super) fn change_way_out(self: &Arc<Self>) -> JoinHandle<()> {
        let node = Arc::clone(self);
        tokio::spawn(async move { node.way_out.change(&node.api).await })
    }

    /// Asks the network until there is an answer, a lasting failure, or `deadline`. A question that goes
    /// unanswered is asked again on another way.
    pub(super) async fn ask<'a, T: Send + 'a>(
        self: &'a Arc<Self>,
        deadline: Instant,
        mut question: impl FnMut(RoutingContext) -> BoxFuture<'a, VeilidAPIResult<T>>,
    ) -> VeilidAPIResult<T> {
        let attempt = || match self.context() {
            Ok(context) => question(context),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        };
        let recover = || -> BoxFuture<'a, ()> {
            self.health.failure();
            let change = self.change_way_out();
            Box::pin(async move {
                // When all that are tried lead over dead nodes that shows only after 5 s.
                let _ = timeout(CHANGE_PATIENCE, change).await;
            })
        };
        retry(deadline, PATIENCE, attempt, recover).await
    }

    /// What is told when the record `key`, which must be watched, changes.
    pub(super) fn on_change(&self, key: &RecordKey) -> Arc<Notify> {
        self.watched().entry(key.opaque()).or_default().clone()
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, HashMap<OpaqueRecordKey, Arc<Notify>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peers(&self) -> std::sync::MutexGuard<'_, HashMap<OpaqueRecordKey, PeerFinder>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a status of the record `key` that is older than one seen before; otherwise remembers its age.
    pub(super) fn check_age(&self, key: &RecordKey, age: Age) -> Result<(), TransportError> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let known = newest.entry(key.opaque()).or_insert(age);
        if age.is_replay_after(*known) {
            tracing::warn!(record = %key.opaque(), "the network gives an older status than before; it is ignored");
            return Err(TransportError::Replayed);
        }
        *known = age;
        Ok(())
    }

    async fn identity(&self) -> Result<Identity, TransportError> {
        let mut cached = self.identity.lock().await;
        if let Some(identity) = &*cached {
            return Ok(identity.clone());
        }
        let identity = match identity::load(&self.dir)? {
            Some(identity) => {
                identity::check(&self.api, &self.dir, &identity).await?;
                identity
            }
            None => {
                let identity = Box::pin(identity::create(&self.api)).await.map_err(transport_error)?;
                identity::save(&self.dir, &identity)?;
                identity
            }
        };
        *cached = Some(identity.clone());
        Ok(identity)
    }

    /// The signature of `owner` over `message`.
    pub(super) async fn sign(&self, owner: &KeyPair, message: Vec<u8>) -> Result<Vec<u8>, VeilidAPIError> {
        let crypto = self.api.crypto()?;
        let system = crypto.get_async(CRYPTO_KIND_VLD0).ok_or_else(unsupported)?;
        let signature = system.sign(&owner.key(), &owner.secret(), message.into()).await?;
        Ok(signature.ref_value().to_vec())
    }

    /// Whether `signature` is `owner`'s over `message`.
    pub(super) async fn verify(&self, owner: &PublicKey, message: Vec<u8>, signature: &[u8]) -> bool {
        let Ok(crypto) = self.api.crypto() else { return false };
        let Some(system) = crypto.get_async(CRYPTO_KIND_VLD0) else { return false };
        let signature = Signature::new(CRYPTO_KIND_VLD0, veilid_core::BareSignature::new(signature));
        system.verify(owner, message.into(), &signature).await.unwrap_or(false)
    }

    /// Runs `task` until the node is shut down.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let handle = tokio::spawn(task).abort_handle();
        self.tasks().push(handle);
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, Vec<AbortHandle>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a call; every call gets an answer, since each unanswered one holds up the node for 5 s.
    async fn answer(&self, call: &VeilidAppCall) {
        let request = call.message();
        let answer = if request == self.probe {
            self.probe.clone()
        } else if let Some(serving) = self.serving.get() {
            serving.server.answer(request.to_vec()).await
        } else {
            Vec::new()
        };
        if let Err(error) = self.api.app_call_reply(call.id(), answer).await {
            tracing::debug!(%error, "an answer came too late");
        }
    }
}

fn unsupported() -> VeilidAPIError {
    VeilidAPIError::internal("the VLD0 crypto system is missing")
}

/// Log lines and traffic figures are not taken: there are many of them.
fn is_of_interest(update: &VeilidUpdate) -> bool {
    matches!(
        update,
        VeilidUpdate::AppCall(_)
            | VeilidUpdate::Attachment(_)
            | VeilidUpdate::RouteChange(_)
            | VeilidUpdate::ValueChange(_)
            | VeilidUpdate::Shutdown
    )
}

async fn dispatch(node: Arc<Inner>, mut updates: mpsc::UnboundedReceiver<VeilidUpdate>) {
    while let Some(update) = updates.recv().await {
        match update {
            VeilidUpdate::AppCall(call) => {
                let node = Arc::clone(&node);
                tokio::spawn(async move { node.answer(&call).await });
            }
            VeilidUpdate::Attachment(state) => node.note_attachment(&state),
            VeilidUpdate::RouteChange(change) if !change.dead_routes.is_empty() => {
                if let Some(serving) = node.serving.get() {
                    let _ = serving.dead_routes.send(change.dead_routes);
                }
            }
            // Also the end of a watch is told: whoever watches looks, and watches again.
            VeilidUpdate::ValueChange(change) => {
                if let Some(changed) = node.watched().get(&change.key.opaque()) {
                    changed.notify_one();
                }
            }
            VeilidUpdate::Shutdown => return,
            _ => {}
        }
    }
}

fn startup_error(dir: &Path, error: &VeilidAPIError) -> TransportError {
    let reason = error.to_string();
    // The library has no error of its own for this: the lock is the one on its keyring file.
    if matches!(error, VeilidAPIError::AlreadyInitialized) || reason.contains("already locked") {
        return TransportError::InUse(dir.to_owned());
    }
    TransportError::Store { path: dir.to_owned(), reason }
}
