use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use veilid_core::{PublicKey, RecordKey, RouteId, Target, VeilidAPIError};

use super::{
    super::{BoxFuture, MAX_MESSAGE, Peer, TransportError},
    error::transport_error,
    node::Inner,
    record::{self, Age, RecordError, RouteBytes, STATUS_SUBKEY, Status},
    rtt::Rtt,
};
use crate::backoff::Backoff;

/// A forced read that takes longer was not answered by the network but from the local store: the library says
/// the same in both cases, after 10 s in the latter.
const READ_PROOF: Duration = Duration::from_secs(5);

/// While a peer is gone the network still answers the reading of its record, every few seconds. When nothing at
/// all has answered for so long, the trouble is on this side.
const ISOLATION: Duration = Duration::from_secs(10);

/// A repository reached over Veilid. A cheap handle; calls may be made concurrently and dropped at any time.
///
/// A call goes over one of the routes that the peer has published. When an answer does not come in little more
/// than the time that answers usually take, the next route is asked as well and the first answer counts, so
/// requests must be such that answering one twice does no harm. When no route answers, the record is read again
/// for new ones.
#[derive(Clone)]
pub struct VeilidPeer {
    shared: Arc<Shared>,
}

struct Shared {
    node: Arc<Inner>,
    key: RecordKey,
    owner: PublicKey,
    state: Mutex<State>,
    /// Held while the record is read again; the moment at which that was last finished.
    refreshed: tokio::sync::Mutex<Instant>,
}

struct State {
    routes: Vec<Arc<Route>>,
    /// The index of the route that answered last.
    preferred: usize,
    rtt: Rtt,
    announcement: Vec<u8>,
}

struct Route {
    id: RouteId,
    blob: Vec<u8>,
}

/// What a failed call tells about its efforts.
#[derive(Default)]
struct Efforts {
    attempts: usize,
    reads: usize,
    last_error: Option<String>,
}

type Attempts = JoinSet<Result<Vec<u8>, VeilidAPIError>>;

impl VeilidPeer {
    /// How long [`super::Node::connect`] tries.
    pub const CONNECT_LIMIT: Duration = Duration::from_secs(30);
    /// How long a call tries before it ends in [`TransportError::Unreachable`].
    pub const CALL_LIMIT: Duration = Duration::from_secs(30);

    pub(super) async fn connect(node: Arc<Inner>, key: RecordKey, limit: Duration) -> Result<Self, TransportError> {
        let deadline = Instant::now() + limit;
        node.wait_ready(deadline).await?;
        let descriptor = node
            .ask(deadline, |context| {
                let key = key.clone();
                Box::pin(async move { context.open_dht_record(key, None, None).await })
            })
            .await
            .map_err(transport_error)?;
        let owner = descriptor.owner();
        let status = read_status(&node, &key, &owner, deadline).await?;
        let state = State {
            routes: import(&node, status.routes),
            preferred: 0,
            rtt: Rtt::default(),
            announcement: status.announcement,
        };
        if state.routes.is_empty() {
            return Err(TransportError::Unreachable("it publishes no usable route".to_owned()));
        }
        let refreshed = tokio::sync::Mutex::new(Instant::now());
        Ok(Self { shared: Arc::new(Shared { node, key, owner, state: Mutex::new(state), refreshed }) })
    }

    /// What the peer announced when its record was last read.
    #[must_use]
    pub fn announcement(&self) -> Vec<u8> {
        self.shared.state().announcement.clone()
    }

    /// Reads the peer's record again, so that [`VeilidPeer::announcement`] is what the network has now.
    ///
    /// # Errors
    /// As for [`super::Node::connect`].
    pub async fn refresh(&self) -> Result<(), TransportError> {
        self.shared.refresh(Instant::now()).await
    }

    /// Asks the network to tell when the peer publishes something new. It may miss something while nodes come and
    /// go: [`VeilidPeer::refresh`] now and then is the net below.
    ///
    /// # Errors
    /// [`TransportError::Offline`] after the node's shutdown.
    pub async fn watch(&self) -> Result<Watch, TransportError> {
        let Shared { node, key, .. } = &*self.shared;
        let changed = node.on_change(key);
        let context = node.context().map_err(transport_error)?;
        Box::pin(context.watch_dht_values(key.clone(), None, None, None)).await.map_err(transport_error)?;
        Ok(Watch { changed })
    }

    /// Calls the peer, trying for at most `limit`.
    ///
    /// # Errors
    /// [`TransportError::TooLong`] for a request over [`MAX_MESSAGE`], [`TransportError::Offline`] if this node is
    /// not connected, [`TransportError::Unreachable`] if the peer did not answer.
    pub async fn call_within(&self, request: Vec<u8>, limit: Duration) -> Result<Vec<u8>, TransportError> {
        if request.len() > MAX_MESSAGE {
            return Err(TransportError::TooLong(request.len()));
        }
        let deadline = Instant::now() + limit;
        // Dropping the set, and so this future, ends all attempts.
        let mut attempts = JoinSet::new();
        let mut efforts = Efforts::default();
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(4));
        // At first one route after the other; when none has answered, all together, with the record read again
        // before each further round.
        let mut stagger = self.shared.state().rtt.patience();
        loop {
            let round_started = Instant::now();
            let routes = self.shared.routes();
            for route in &routes {
                attempts.spawn(Arc::clone(&self.shared).attempt(Arc::clone(route), request.clone()));
                efforts.attempts += 1;
                let until = deadline.min(Instant::now() + stagger);
                if let Some(answer) = first_answer(&mut attempts, until, &mut efforts).await {
                    return Ok(answer);
                }
                self.shared.demote(route);
                drop(self.shared.node.change_way_out());
            }
            stagger = Duration::ZERO;
            efforts.reads += 1;
            let pause = backoff.step();
            tokio::select! {
                answer = next_answer(&mut attempts, &mut efforts) => return Ok(answer),
                () = self.shared.await_new_routes(&routes, round_started, pause) => {}
                () = sleep_until(deadline) => return Err(self.shared.unreachable(&efforts, limit)),
            }
        }
    }
}

/// Tells when a peer has published something new; see [`VeilidPeer::watch`].
#[derive(Clone, Debug)]
pub struct Watch {
    changed: Arc<Notify>,
}

impl Watch {
    /// Waits for the next change; one that came since the last call counts.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Peer for VeilidPeer {
    fn call(&self, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        Box::pin(self.call_within(request, Self::CALL_LIMIT))
    }
}

impl fmt::Debug for VeilidPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the key itself, which contains the read secret.
        f.debug_struct("VeilidPeer").field("record", &self.shared.key.opaque()).finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The routes, the one that answered last first.
    fn routes(&self) -> Vec<Arc<Route>> {
        let state = self.state();
        let mut routes = state.routes.clone();
        if !routes.is_empty() {
            let preferred = state.preferred % routes.len();
            routes.rotate_left(preferred);
        }
        routes
    }

    /// Lets calls begin with another route than `route`, which is slow to answer.
    fn demote(&self, route: &Arc<Route>) {
        let mut state = self.state();
        let preferred = state.preferred;
        if state.routes.get(preferred).is_some_and(|first| Arc::ptr_eq(first, route)) {
            state.preferred = (preferred + 1) % state.routes.len();
        }
    }

    /// One call over one route.
    async fn attempt(self: Arc<Self>, route: Arc<Route>, request: Vec<u8>) -> Result<Vec<u8>, VeilidAPIError> {
        let started = Instant::now();
        let mut outcome = self.send(&route, request.clone()).await;
        if matches!(outcome, Err(VeilidAPIError::NoConnection { .. } | VeilidAPIError::InvalidTarget { .. })) {
            // The library has given the route up, and does not look at it again until it is imported anew.
            let _ = self.node.api.import_remote_private_route(route.blob.clone())?;
            outcome = self.send(&route, request).await;
        }
        match &outcome {
            Ok(_) => {
                self.node.health.success();
                let mut state = self.state();
                state.rtt.note(started.elapsed());
                if let Some(index) = state.routes.iter().position(|known| Arc::ptr_eq(known, &route)) {
                    state.preferred = index;
                }
            }
            Err(error) => {
                tracing::debug!(%error, route = %route.id, "a call over this route failed");
                self.node.health.failure();
            }
        }
        outcome
    }

    async fn send(&self, route: &Route, request: Vec<u8>) -> Result<Vec<u8>, VeilidAPIError> {
        let context = self.node.context()?;
        Box::pin(context.app_call(Target::RouteId(route.id.clone()), request)).await
    }

    /// Reads the record again and takes over its routes, unless that was done after `since`.
    async fn refresh(&self, since: Instant) -> Result<(), TransportError> {
        let mut refreshed = self.refreshed.lock().await;
        if *refreshed > since {
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_secs(15);
        let outcome = read_status(&self.node, &self.key, &self.owner, deadline).await;
        *refreshed = Instant::now();
        let status = outcome?;
        let routes = import(&self.node, status.routes);
        let mut state = self.state();
        state.announcement = status.announcement;
        let is_same =
            routes.len() == state.routes.len() && routes.iter().zip(&state.routes).all(|(a, b)| a.blob == b.blob);
        if !is_same && !routes.is_empty() {
            tracing::debug!(routes = routes.len(), "the peer has new routes");
            state.routes = routes;
            state.preferred = 0;
        }
        Ok(())
    }

    /// Reads the record again; unless it has routes other than `tried`, also lets `pause` pass.
    async fn await_new_routes(&self, tried: &[Arc<Route>], since: Instant, pause: Duration) {
        if let Err(error) = self.refresh(since).await {
            tracing::debug!(%error, "reading a peer's record again");
        }
        let has_new = self.routes().iter().any(|route| !tried.iter().any(|tried| Arc::ptr_eq(tried, route)));
        if !has_new {
            sleep(pause).await;
        }
    }

    fn unreachable(&self, efforts: &Efforts, limit: Duration) -> TransportError {
        let nothing_answers = self.node.health.failing_for() >= Some(ISOLATION);
        if nothing_answers || !self.node.readiness().ready {
            return TransportError::Offline("nothing on the network answers".to_owned());
        }
        let Efforts { attempts, reads, last_error } = efforts;
        let error = last_error.as_ref().map_or_else(String::new, |error| format!("; last error: {error}"));
        TransportError::Unreachable(format!(
            "{attempts} calls over {} routes within {} s, its record read again {reads} times{error}",
            self.state().routes.len(),
            limit.as_secs(),
        ))
    }
}

/// The first answer of `attempts` until `until`; `None` also as soon as all have failed.
async fn first_answer(attempts: &mut Attempts, until: Instant, efforts: &mut Efforts) -> Option<Vec<u8>> {
    loop {
        tokio::select! {
            attempt = attempts.join_next() => match attempt? {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => efforts.last_error = Some(error.to_string()),
                Err(error) => efforts.last_error = Some(error.to_string()),
            },
            () = sleep_until(until) => return None,
        }
    }
}

/// The first answer of `attempts`; waits for ever if there is none.
async fn next_answer(attempts: &mut Attempts, efforts: &mut Efforts) -> Vec<u8> {
    let never = Instant::now() + Duration::from_secs(24 * 3600);
    match first_answer(attempts, never, efforts).await {
        Some(answer) => answer,
        None => std::future::pending().await,
    }
}

/// Reads and checks what is published in the open record `key`, from the network.
async fn read_status(
    node: &Arc<Inner>,
    key: &RecordKey,
    owner: &PublicKey,
    deadline: Instant,
) -> Result<Status, TransportError> {
    let value = node
        .ask(deadline, |context| {
            Box::pin(async move {
                let started = Instant::now();
                let outcome = context.get_dht_value(key.clone(), STATUS_SUBKEY, true).await;
                if outcome.is_ok() {
                    if node.readiness().ready && started.elapsed() < READ_PROOF {
                        node.health.success();
                    } else {
                        node.health.failure();
                    }
                }
                outcome
            })
        })
        .await
        .map_err(|error| match error {
            VeilidAPIError::Generic { ref message } if message.contains("decrypt") => TransportError::Unreadable,
            other => transport_error(other),
        })?
        .ok_or(TransportError::NotFound)?;

    let signed = record::decode(value.data()).map_err(|error| match error {
        RecordError::Version(_) => TransportError::Other(format!("what is published there cannot be read: {error}")),
        RecordError::Foreign | RecordError::Damaged(_) => {
            tracing::debug!(%error, "a published status is unreadable");
            TransportError::Unreadable
        }
    })?;
    if !node.verify(owner, signed.covered.to_vec(), signed.signature).await {
        tracing::warn!("a published status is not signed by the owner of its record");
        return Err(TransportError::Unreadable);
    }
    let age = Age { seq: value.seq().to_option().unwrap_or_default(), published: signed.status.published };
    node.check_age(key, age)?;
    Ok(signed.status)
}

/// The routes that can be used. Importing is local; a route already imported keeps its id.
fn import(node: &Inner, routes: Vec<RouteBytes>) -> Vec<Arc<Route>> {
    let mut imported = Vec::new();
    for RouteBytes(blob) in routes {
        match node.api.import_remote_private_route(blob.clone()) {
            Ok(id) => imported.push(Arc::new(Route { id, blob })),
            Err(error) => tracing::debug!(%error, "a published route cannot be used"),
        }
    }
    imported
}
