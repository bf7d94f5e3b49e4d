use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, PoisonError, Weak},
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
/// A call goes over one of the routes that the peer has published. When that route has answered nothing for little
/// more than the time that answers usually take, one of the calls that wait becomes the *scout*: it asks over the next
/// routes as well, and when none answers it reads the record again for new ones. The others wait for what it finds,
/// so that a broken link does not multiply the large answers that come when it is mended. While a route answers
/// others, a call waits its turn: its answer is on the way behind theirs. The first answer counts, so requests must be
/// such that answering one twice does no harm.
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
    /// Held by the call that looks for a route that answers.
    scout: tokio::sync::Mutex<()>,
    /// Tells calls that wait for the scout that something was answered.
    answered: Notify,
}

struct State {
    routes: Vec<Arc<Route>>,
    /// The index of the route that answered last.
    preferred: usize,
    rtt: Rtt,
    /// When something was answered last, over any route.
    answered: Option<Instant>,
    /// Somebody is looking for a route that answers.
    is_silent: bool,
    announcement: Vec<u8>,
}

struct Route {
    id: RouteId,
    blob: Vec<u8>,
    pulse: Mutex<Pulse>,
}

/// What a route has answered.
#[derive(Clone, Copy, Default)]
struct Pulse {
    /// When it answered last.
    answered: Option<Instant>,
    /// When the latest of the calls was made that it has answered.
    latest_asked: Option<Instant>,
}

impl Pulse {
    fn note(&mut self, asked: Instant, now: Instant) {
        self.answered = Some(now);
        self.latest_asked = self.latest_asked.max(Some(asked));
    }

    /// When to stop waiting for the answer to a call made at `asked`: `patience` after the call, or after the last
    /// answer to others as long as none of them has been made later.
    fn overdue(&self, asked: Instant, patience: Duration) -> Instant {
        let is_overtaken = self.latest_asked > Some(asked);
        let waited_since = if is_overtaken { asked } else { self.answered.map_or(asked, |last| last.max(asked)) };
        waited_since + patience
    }

    fn is_silent_since(&self, asked: Instant) -> bool {
        self.answered.is_none_or(|last| last < asked)
    }
}

impl Route {
    fn new(id: RouteId, blob: Vec<u8>) -> Self {
        Self { id, blob, pulse: Mutex::default() }
    }

    fn pulse(&self) -> std::sync::MutexGuard<'_, Pulse> {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
            answered: None,
            is_silent: false,
            announcement: status.announcement,
        };
        if state.routes.is_empty() {
            return Err(TransportError::Unreachable("it publishes no usable route".to_owned()));
        }
        let refreshed = tokio::sync::Mutex::new(Instant::now());
        let (state, scout) = (Mutex::new(state), tokio::sync::Mutex::default());
        let shared = Shared { node, key, owner, state, refreshed, scout, answered: Notify::new() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// By which others find this peer and what it has learnt.
    pub(super) fn finder(&self) -> PeerFinder {
        PeerFinder(Arc::downgrade(&self.shared))
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
        let mut call =
            Call { shared: &self.shared, request, deadline, attempts: JoinSet::new(), efforts: Efforts::default() };
        let answer = call.run().await;
        answer.ok_or_else(|| self.shared.unreachable(&call.efforts, limit))
    }
}

/// Finds a peer again while somebody has it.
pub(super) struct PeerFinder(Weak<Shared>);

impl PeerFinder {
    /// The peer, if there is one still and its address is `key`, with the same secret part.
    pub(super) fn find(&self, key: &RecordKey) -> Option<VeilidPeer> {
        self.0.upgrade().filter(|shared| shared.key == *key).map(|shared| VeilidPeer { shared })
    }

    pub(super) fn is_lost(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// A call in progress. Dropping it ends all attempts.
struct Call<'a> {
    shared: &'a Arc<Shared>,
    request: Vec<u8>,
    deadline: Instant,
    attempts: Attempts,
    efforts: Efforts,
}

impl Call<'_> {
    /// The answer, if there is one before the deadline.
    async fn run(&mut self) -> Option<Vec<u8>> {
        let mut lost = 0;
        while Instant::now() < self.deadline {
            let asked = Instant::now();
            if !self.shared.state().is_silent {
                let routes = self.shared.routes();
                let route = routes.get(lost % routes.len().max(1))?;
                if let Some(answer) = self.ask(route, asked).await {
                    return Some(answer);
                }
                if !route.pulse().is_silent_since(asked) {
                    // The route works; this message was lost on it.
                    lost += 1;
                    continue;
                }
                self.shared.demote(route);
            }
            if let Some(answer) = self.wait_for_scout(asked).await {
                return Some(answer);
            }
        }
        None
    }

    /// Asks over `route`, and waits for the answer for as long as the route gives reason to.
    async fn ask(&mut self, route: &Arc<Route>, asked: Instant) -> Option<Vec<u8>> {
        self.send(route);
        loop {
            let patience = self.shared.state().rtt.patience();
            let until = route.pulse().overdue(asked, patience).min(self.deadline);
            if self.attempts.is_empty() || until <= Instant::now() {
                return None;
            }
            if let Some(answer) = self.first_answer(until).await {
                return Some(answer);
            }
        }
    }

    fn send(&mut self, route: &Arc<Route>) {
        self.attempts.spawn(Arc::clone(self.shared).attempt(Arc::clone(route), self.request.clone()));
        self.efforts.attempts += 1;
    }

    /// Waits until something has been answered since `asked`, or becomes the one who looks for a route itself. The
    /// answer if it came meanwhile.
    async fn wait_for_scout(&mut self, asked: Instant) -> Option<Vec<u8>> {
        let shared = self.shared;
        let mut answered = pin!(shared.answered.notified());
        answered.as_mut().enable();
        if shared.state().answered.is_none_or(|last| last < asked) {
            tokio::select! {
                answer = next_answer(&mut self.attempts, &mut self.efforts) => return Some(answer),
                () = answered => {}
                _scout = shared.scout.lock() => {
                    // It may have been given back because something was answered.
                    if shared.state().answered.is_none_or(|last| last < asked) {
                        return self.scout().await;
                    }
                }
                () = sleep_until(self.deadline) => return None,
            }
        }
        // What was asked before the silence may be on its way.
        let patience = shared.state().rtt.patience();
        self.first_answer(self.deadline.min(Instant::now() + patience)).await
    }

    /// Asks over one route after the other; when none has answered, over all together, with the record read again
    /// before each further round.
    async fn scout(&mut self) -> Option<Vec<u8>> {
        self.shared.state().is_silent = true;
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(4));
        let mut stagger = self.shared.state().rtt.patience();
        loop {
            let round_started = Instant::now();
            let routes = self.shared.routes();
            for route in &routes {
                drop(self.shared.node.change_way_out());
                self.send(route);
                if let Some(answer) = self.first_answer(self.deadline.min(Instant::now() + stagger)).await {
                    return Some(answer);
                }
                self.shared.demote(route);
            }
            stagger = Duration::ZERO;
            self.efforts.reads += 1;
            let pause = backoff.step();
            tokio::select! {
                answer = next_answer(&mut self.attempts, &mut self.efforts) => return Some(answer),
                () = self.shared.await_new_routes(&routes, round_started, pause) => {}
                () = sleep_until(self.deadline) => return None,
            }
        }
    }

    /// The first answer until `until`; `None` also as soon as all attempts have failed.
    async fn first_answer(&mut self, until: Instant) -> Option<Vec<u8>> {
        first_answer(&mut self.attempts, until, &mut self.efforts).await
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
                let now = Instant::now();
                route.pulse().note(started, now);
                let mut state = self.state();
                state.rtt.note(now - started);
                state.answered = Some(now);
                state.is_silent = false;
                if let Some(index) = state.routes.iter().position(|known| Arc::ptr_eq(known, &route)) {
                    state.preferred = index;
                }
                drop(state);
                self.answered.notify_waiters();
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
            Ok(id) => imported.push(Arc::new(Route::new(id, blob))),
            Err(error) => tracing::debug!(%error, "a published route cannot be used"),
        }
    }
    imported
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(500);

    #[test]
    fn a_call_waits_its_turn_on_a_route_that_answers_others() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pulse = Pulse::default();
        assert!(pulse.is_silent_since(at(0)));
        assert_eq!(pulse.overdue(at(100), PATIENCE), at(600));
        // Answers to earlier calls put it off, again and again.
        for ms in [0, 20, 40] {
            pulse.note(at(ms), at(ms + 900));
            assert_eq!(pulse.overdue(at(100), PATIENCE), at(ms + 900) + PATIENCE);
        }
        assert!(!pulse.is_silent_since(at(100)) && pulse.is_silent_since(at(950)));
        // One to a later call does not: this call was lost.
        pulse.note(at(120), at(1000));
        assert_eq!(pulse.overdue(at(100), PATIENCE), at(600));
        // What was answered long before counts for nothing.
        assert_eq!(pulse.overdue(at(5000), PATIENCE), at(5500));
    }
}
