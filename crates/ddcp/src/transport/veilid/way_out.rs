use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use veilid_core::{PrivateSpec, RouteId, RoutingContext, SafetySelection, SafetySpec, VeilidAPI, VeilidAPIResult};

use super::routes;

/// Questions to the network's records leave over at least so many other nodes: no one of these knows both who
/// asks and what for. The library's own choice is the same.
const HOPS: usize = 2;
/// Changing more often would take away a way before it had its chance.
const MIN_INTERVAL: Duration = Duration::from_secs(3);

/// The way on which a node's own questions leave: a route over other nodes, which hides who asks.
///
/// The library picks one itself and keeps to it. When a node on it dies the library finds that out only after
/// 10 to 30 s, and until then nothing is answered although the network is well. So whoever gets no answer asks
/// for another way, which is tested when it is made.
#[derive(Debug, Default)]
pub(super) struct WayOut {
    /// The library's choice if `None`.
    chosen: Mutex<Option<RouteId>>,
    /// Held while another is made; when that was last begun.
    changed: tokio::sync::Mutex<Option<Instant>>,
}

impl WayOut {
    /// What questions are asked through.
    pub(super) fn context(&self, api: &VeilidAPI) -> VeilidAPIResult<RoutingContext> {
        let context = api.routing_context()?;
        let Some(chosen) = self.chosen().clone() else { return Ok(context) };
        // Of a route that has died since, the library makes the best: it chooses another itself.
        context.with_safety(SafetySelection::Safe(SafetySpec {
            preferred_route: Some(chosen),
            hop_count: HOPS,
            ..SafetySpec::default()
        }))
    }

    /// Takes another way, unless that was done a moment ago. Keeps to the present one if none can be made.
    pub(super) async fn change(&self, api: &VeilidAPI) {
        let mut changed = self.changed.lock().await;
        if changed.is_some_and(|at| at.elapsed() < MIN_INTERVAL) {
            return;
        }
        *changed = Some(Instant::now());
        let spec = PrivateSpec { hop_count: HOPS, ..PrivateSpec::default() };
        let route = match routes::new(api, &spec).await {
            Ok(route) => route,
            Err(error) => {
                tracing::debug!(%error, "no other way out of this node can be found");
                return;
            }
        };
        tracing::debug!(route = %route.route_id, "questions leave this node on another way");
        let previous = self.chosen().replace(route.route_id);
        if let Some(previous) = previous {
            routes::release(api, &previous);
        }
    }

    fn chosen(&self) -> std::sync::MutexGuard<'_, Option<RouteId>> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
