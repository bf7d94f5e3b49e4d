//! Making and releasing own routes.

use tokio::task::JoinSet;
use veilid_core::{PrivateSpec, RouteBlob, RouteId, VeilidAPI, VeilidAPIError, VeilidAPIResult};

/// So many are tried at the same time, since any may lead over a dead node, which shows only after seconds.
const CANDIDATES: usize = 4;

/// A new route as `spec` says, tested: the first that works of some.
pub(super) async fn new(api: &VeilidAPI, spec: &PrivateSpec) -> VeilidAPIResult<RouteBlob> {
    let mut candidates = JoinSet::new();
    for _ in 0..CANDIDATES {
        let (api, spec) = (api.clone(), spec.clone());
        candidates.spawn(async move { Box::pin(api.new_custom_private_route(spec)).await });
    }
    let mut failure = VeilidAPIError::try_again("no route was tried");
    while let Some(candidate) = candidates.join_next().await {
        match candidate {
            Ok(Ok(route)) => {
                tokio::spawn(release_all(api.clone(), candidates));
                return Ok(route);
            }
            Ok(Err(error)) => failure = error,
            Err(error) => failure = VeilidAPIError::internal(error),
        }
    }
    Err(failure)
}

/// Releases the rest when they are done. To stop them would leave them behind.
async fn release_all(api: VeilidAPI, mut routes: JoinSet<VeilidAPIResult<RouteBlob>>) {
    while let Some(route) = routes.join_next().await {
        if let Ok(Ok(route)) = route {
            release(&api, &route.route_id);
        }
    }
}

/// Releases an own route, and the import of it that tests may have made under the same id: the library releases one
/// at a time. Nothing happens to one that has died and is gone already.
pub(super) fn release(api: &VeilidAPI, id: &RouteId) {
    while api.release_private_route(id.clone()).is_ok() {}
}
