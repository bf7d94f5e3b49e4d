use std::{
    mem,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use veilid_core::{PrivateSpec, RouteId, Target};

use super::{
    super::TransportError,
    error::transport_error,
    identity::{self, Identity},
    node::{Inner, Readiness},
    record::{self, MAX_ANNOUNCEMENT, RouteBytes, STATUS_SUBKEY, Status},
    routes,
};
use crate::backoff::Backoff;

/// Routes over different relays: when a relay dies its owner notices only after 14 to 30 s, while a client with
/// several routes is back after one unanswered call.
const ROUTES: usize = 3;
/// Relays are chosen at random; so often another one is asked for before a double is accepted.
const EXTRA_ALLOCATIONS: usize = 4;
/// Announcements change with every write of an application; they are published together.
const DEBOUNCE: Duration = Duration::from_millis(300);
const PUBLISH_INTERVAL: Duration = Duration::from_secs(2);
/// The record is published anew now and then, so that it survives the nodes that hold it.
const REFRESH: Duration = Duration::from_secs(15 * 60);
/// How often the own routes are tested, when all is well and when something is not.
const PROBE: Duration = Duration::from_secs(15);
const PROBE_IN_TROUBLE: Duration = Duration::from_secs(1);
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// Clients may be in the middle of something over a route that has been replaced.
const RETIREMENT: Duration = Duration::from_secs(60);

/// Keeps this repository's status in its record true: routes that work and the latest announcement.
pub(super) struct Publisher {
    node: Arc<Inner>,
    identity: Identity,
    announcement: watch::Receiver<Vec<u8>>,
    /// Whether the layers above may still change the announcement.
    announcing: bool,
    dead: mpsc::UnboundedReceiver<Vec<RouteId>>,
    routes: Vec<OwnRoute>,
    /// Replaced routes, with the moment to release them.
    retired: Vec<(Instant, RouteId)>,
    /// The epoch of the connection that the routes belong to.
    epoch: u64,
    published: Option<Published>,
    opened: bool,
}

struct OwnRoute {
    id: RouteId,
    blob: Vec<u8>,
    /// The nodes it leads through, if known.
    relays: Option<String>,
    /// Tests in a row that went unanswered.
    unanswered: u32,
}

/// What the network has.
struct Published {
    routes: Vec<RouteBytes>,
    announcement: Vec<u8>,
    at: Instant,
}

impl Publisher {
    pub(super) fn new(
        node: Arc<Inner>,
        identity: Identity,
        announcement: watch::Receiver<Vec<u8>>,
        dead: mpsc::UnboundedReceiver<Vec<RouteId>>,
    ) -> Self {
        Self {
            node,
            identity,
            announcement,
            announcing: true,
            dead,
            routes: Vec::new(),
            retired: Vec::new(),
            epoch: 0,
            published: None,
            opened: false,
        }
    }

    /// Runs for ever.
    pub(super) async fn run(mut self) {
        let mut readiness = self.node.watch_readiness();
        let mut backoff = new_backoff();
        let mut next_probe = Instant::now() + PROBE;
        loop {
            let Ok(ready) = readiness.wait_for(|readiness| readiness.ready).await.map(|ready| *ready) else { return };
            self.enter_epoch(ready);
            let retry_at = match Box::pin(self.bring_up_to_date()).await {
                Ok(()) => {
                    backoff = new_backoff();
                    self.next_refresh()
                }
                Err(error) => {
                    tracing::debug!(%error, "publishing this repository's status failed; trying again");
                    drop(self.node.change_way_out());
                    Instant::now() + backoff.step()
                }
            };
            tokio::select! {
                changed = self.announcement.changed(), if self.announcing => match changed {
                    Ok(()) => self.let_changes_gather().await,
                    Err(_) => self.announcing = false,
                },
                Some(dead) = self.dead.recv() => self.drop_routes(&dead),
                _ = readiness.changed() => {}
                () = sleep_until(next_probe) => {
                    let well = self.probe().await;
                    next_probe = Instant::now() + if well { PROBE } else { PROBE_IN_TROUBLE };
                }
                () = sleep_until(retry_at) => {}
            }
            self.release_retired();
        }
    }

    /// After the node was cut off its routes lead nowhere, although it may not know.
    fn enter_epoch(&mut self, readiness: Readiness) {
        if readiness.epoch != self.epoch {
            self.epoch = readiness.epoch;
            self.retire(|_| true);
        }
    }

    /// Opens the record, makes missing routes and publishes what has changed. The first route is published at
    /// once, the others together.
    async fn bring_up_to_date(&mut self) -> Result<(), TransportError> {
        if !self.opened {
            identity::open(&self.node.api, &self.identity).await.map_err(transport_error)?;
            self.opened = true;
        }
        let mut spare = EXTRA_ALLOCATIONS;
        while self.routes.len() < ROUTES {
            if let Err(error) = self.add_route(&mut spare).await {
                tracing::debug!(%error, routes = self.routes.len(), "no further route for now");
                // What there is must be published all the same.
                if !self.routes.is_empty() {
                    self.publish().await?;
                }
                return Err(error);
            }
            if self.routes.len() == 1 {
                self.publish().await?;
            }
        }
        self.publish().await
    }

    /// Makes one more route, over relays that no other leads through if `spare` attempts allow.
    async fn add_route(&mut self, spare: &mut usize) -> Result<(), TransportError> {
        loop {
            let route = routes::new(&self.node.api, &PrivateSpec::default()).await.map_err(transport_error)?;
            let relays = self.relays(&route.route_id).await;
            let is_double = relays.is_some() && self.routes.iter().any(|other| other.relays == relays);
            if is_double && *spare > 0 {
                *spare -= 1;
                routes::release(&self.node.api, &route.route_id);
                continue;
            }
            tracing::debug!(id = %route.route_id, relays = relays.as_deref().unwrap_or("unknown"), "new route");
            self.routes.push(OwnRoute { id: route.route_id, blob: route.blob, relays, unanswered: 0 });
            return Ok(());
        }
    }

    /// The nodes that route `id` leads through. The library tells only in its debugging output; without that, a
    /// route counts as different from all others.
    async fn relays(&self, id: &RouteId) -> Option<String> {
        let listing = Box::pin(self.node.api.debug("route list".to_owned())).await.ok()?;
        relays_of(&listing, &id.to_string()).map(str::to_owned)
    }

    /// Publishes routes and announcement if they differ from what the network has, or if it is time to refresh.
    async fn publish(&mut self) -> Result<(), TransportError> {
        let mut announcement = self.announcement.borrow_and_update().clone();
        if announcement.len() > MAX_ANNOUNCEMENT {
            tracing::error!(bytes = announcement.len(), "the announcement is too long to publish; leaving it out");
            announcement.clear();
        }
        let routes: Vec<_> = self.routes.iter().map(|route| RouteBytes(route.blob.clone())).collect();
        let is_current = self.published.as_ref().is_some_and(|published| {
            published.routes == routes && published.announcement == announcement && published.at.elapsed() < REFRESH
        });
        if is_current {
            return Ok(());
        }
        self.write(&routes, &announcement).await?;
        tracing::info!(routes = routes.len(), "published this repository's status");
        self.published = Some(Published { routes, announcement, at: Instant::now() });
        Ok(())
    }

    async fn write(&self, routes: &[RouteBytes], announcement: &[u8]) -> Result<(), TransportError> {
        const ATTEMPTS: usize = 5;
        let context = self.node.context().map_err(transport_error)?;
        let key = &self.identity.address;
        for _ in 0..ATTEMPTS {
            let value = self.signed_status(routes.to_vec(), announcement.to_vec()).await?;
            let newer = Box::pin(context.set_dht_value(key.clone(), STATUS_SUBKEY, value, None)).await;
            let Some(newer) = newer.map_err(transport_error)? else {
                return self.flush().await;
            };
            // This node is the only writer: a newer value is an older one of its own that its store has lost, or
            // a copy of this repository is running elsewhere.
            tracing::warn!(seq = %newer.seq(), "the network has a newer status of this repository; replacing it");
        }
        Err(TransportError::Other(
            "another node keeps publishing under this repository's address: is a copy of it running elsewhere?"
                .to_owned(),
        ))
    }

    /// A `set` that answers "done" may only have stored the value here.
    async fn flush(&self) -> Result<(), TransportError> {
        let context = self.node.context().map_err(transport_error)?;
        let limit = Some(Duration::from_secs(10));
        match Box::pin(context.flush_dht_record(self.identity.address.clone(), limit)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(TransportError::Offline("the network has not taken the status yet".to_owned())),
            Err(error) => Err(transport_error(error)),
        }
    }

    async fn signed_status(&self, routes: Vec<RouteBytes>, announcement: Vec<u8>) -> Result<Vec<u8>, TransportError> {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let published = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        let covered = record::encode(&Status { published, routes, announcement });
        let signature = self.node.sign(&self.identity.owner, covered.clone()).await.map_err(transport_error)?;
        Ok(record::seal(covered, &signature))
    }

    /// Calls this node over each of its own routes: that proves that peers can, or shows which route is dead.
    /// Returns whether all answered.
    async fn probe(&mut self) -> bool {
        let Ok(context) = self.node.api.routing_context() else { return false };
        let mut calls = JoinSet::new();
        for route in &self.routes {
            // Only an imported route can be called; the import has the route's own id.
            if let Err(error) = self.node.api.import_remote_private_route(route.blob.clone()) {
                tracing::debug!(%error, "an own route cannot be tested");
            }
            let (context, id, probe) = (context.clone(), route.id.clone(), self.node.probe.clone());
            calls.spawn(async move {
                let call = Box::pin(context.app_call(Target::RouteId(id.clone()), probe));
                let outcome = timeout(PROBE_LIMIT, call).await;
                let answered = matches!(outcome, Ok(Ok(_)));
                if !answered {
                    tracing::debug!(route = %id, ?outcome, "an own route does not answer");
                }
                (id, answered)
            });
        }
        let answers = calls.join_all().await;
        for (id, answered) in &answers {
            if let Some(route) = self.routes.iter_mut().find(|route| route.id == *id) {
                route.unanswered = if *answered { 0 } else { route.unanswered + 1 };
            }
        }
        if answers.iter().any(|(_, answered)| *answered) {
            self.node.health.success();
            // One lost message is no death.
            self.retire(|route| route.unanswered >= 2);
        } else if !answers.is_empty() {
            self.node.health.failure();
            self.replace_all_routes().await;
        }
        answers.iter().all(|(_, answered)| *answered)
    }

    /// When no route answers, either all are dead or this node is cut off: a new one, which the library tests,
    /// tells. In the first case it replaces the others; the second is the watchdog's business.
    async fn replace_all_routes(&mut self) {
        let mut routes = mem::take(&mut self.routes);
        let outcome = self.add_route(&mut 0).await;
        mem::swap(&mut self.routes, &mut routes);
        match outcome {
            Ok(()) => {
                tracing::debug!("all own routes are dead; making new ones");
                self.node.health.success();
                self.retire(|_| true);
                self.routes = routes;
            }
            Err(error) => tracing::debug!(%error, "no own route answers and no new one can be made"),
        }
    }

    fn drop_routes(&mut self, dead: &[RouteId]) {
        self.retired.retain(|(_, id)| !dead.contains(id));
        let before = self.routes.len();
        self.routes.retain(|route| !dead.contains(&route.id));
        if self.routes.len() < before {
            tracing::debug!(lost = before - self.routes.len(), "own routes have died");
        }
    }

    fn retire(&mut self, is_bad: impl Fn(&OwnRoute) -> bool) {
        let (bad, good) = mem::take(&mut self.routes).into_iter().partition(is_bad);
        self.routes = good;
        let release_at = Instant::now() + RETIREMENT;
        let bad: Vec<OwnRoute> = bad;
        self.retired.extend(bad.into_iter().map(|route| (release_at, route.id)));
    }

    fn release_retired(&mut self) {
        let now = Instant::now();
        let (due, kept) = mem::take(&mut self.retired).into_iter().partition(|(at, _)| *at <= now);
        self.retired = kept;
        let due: Vec<(Instant, RouteId)> = due;
        for (_, id) in due {
            routes::release(&self.node.api, &id);
        }
    }

    /// Waits a moment, so that a burst of changes is published once, and not more often than
    /// [`PUBLISH_INTERVAL`].
    async fn let_changes_gather(&self) {
        let interval = self
            .published
            .as_ref()
            .map_or(Duration::ZERO, |published| PUBLISH_INTERVAL.saturating_sub(published.at.elapsed()));
        sleep(interval.max(DEBOUNCE)).await;
    }

    fn next_refresh(&self) -> Instant {
        self.published.as_ref().map_or_else(Instant::now, |published| published.at) + REFRESH
    }
}

fn new_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(500), Duration::from_secs(15))
}

/// The relays of route `id` in the library's listing of routes (`ID: … hops=[A,B] …`, a line each).
fn relays_of<'a>(listing: &'a str, id: &str) -> Option<&'a str> {
    let line = listing.lines().find_map(|line| line.trim_start().strip_prefix(id)?.strip_prefix(':'))?;
    let (_, rest) = line.split_once("hops=[")?;
    let (relays, _) = rest.split_once(']')?;
    (!relays.is_empty()).then_some(relays)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_are_found_in_the_listing() {
        let listing = "Allocated Routes: (count = 2):\n\
            VLD0:aa: count=1 keys=[VLD0:k] hops=[VLD0:relay1] auto=false\n\
            VLD0:aab: count=2 keys=[VLD0:l] hops=[VLD0:relay2,VLD0:relay3] auto=false\n";
        assert_eq!(relays_of(listing, "VLD0:aa"), Some("VLD0:relay1"));
        assert_eq!(relays_of(listing, "VLD0:aab"), Some("VLD0:relay2,VLD0:relay3"));
        assert_eq!(relays_of(listing, "VLD0:b"), None);
        assert_eq!(relays_of("VLD0:aa: hops=[] x", "VLD0:aa"), None);
    }
}
