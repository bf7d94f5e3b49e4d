use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use veilid_core::{AttachmentState, VeilidStateAttachmentCondition};

use super::node::Inner;

const TICK: Duration = Duration::from_secs(2);
/// A node that was connected and is not: it seldom finds back by itself.
const LOST_LIMIT: Duration = Duration::from_secs(10);
/// A node that was never connected since it was attached: the first time takes 2 to 15 s on a good network.
const JOIN_LIMIT: Duration = Duration::from_secs(60);
/// Nothing that was tried succeeded: calls, forced reads, tests of own routes, new routes.
const FAILING_LIMIT: Duration = Duration::from_secs(12);
const FIRST_PAUSE: Duration = Duration::from_secs(15);
const MAX_PAUSE: Duration = Duration::from_secs(120);

/// Why the node is to be attached anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    AddressChanged,
    Disconnected,
    NoPeers,
    NothingSucceeds,
}

/// What the watchdog sees of the node.
#[derive(Clone, Copy, Debug, Default)]
struct Observation {
    ready: bool,
    was_ready: bool,
    /// How long `ready` has been as it is.
    steady: Duration,
    has_peers: bool,
    failing_for: Option<Duration>,
    address_changed: bool,
}

/// The rule: `None` if the node is well or may still get well by itself.
fn diagnose(seen: &Observation) -> Option<Reason> {
    if seen.address_changed {
        return Some(Reason::AddressChanged);
    }
    if !seen.ready {
        let limit = if seen.was_ready { LOST_LIMIT } else { JOIN_LIMIT };
        return (seen.steady >= limit).then_some(Reason::Disconnected);
    }
    if !seen.has_peers && seen.steady >= LOST_LIMIT {
        return Some(Reason::NoPeers);
    }
    (seen.failing_for >= Some(FAILING_LIMIT)).then_some(Reason::NothingSucceeds)
}

/// Watches over the connection and brings a node back that was cut off: it cannot be relied on to find back by
/// itself, nor to know that it was cut off. Detaching and attaching takes a few seconds, and what is open stays
/// open. Pauses grow while that does not help, since the machine is then really offline.
pub(super) async fn run(node: Arc<Inner>) {
    let mut addresses = own_addresses();
    let mut pause = FIRST_PAUSE;
    let mut last: Option<(Instant, std::time::Instant)> = None;
    loop {
        sleep(TICK).await;
        let now = own_addresses();
        let address_changed = !now.is_empty() && now != addresses;
        if address_changed {
            addresses = now;
        }
        let Some(mut seen) = observe(&node).await else { continue };
        seen.address_changed = address_changed;
        let Some(reason) = diagnose(&seen) else { continue };

        if last.is_some_and(|(_, moment)| node.health.succeeded_since(moment)) {
            pause = FIRST_PAUSE;
        }
        if reason != Reason::AddressChanged && last.is_some_and(|(moment, _)| moment.elapsed() < pause) {
            continue;
        }
        if last.is_some() {
            pause = (pause * 2).min(MAX_PAUSE);
        }
        tracing::warn!(?reason, "this node seems to be cut off; connecting anew");
        reattach(&node).await;
        last = Some((Instant::now(), std::time::Instant::now()));
    }
}

async fn observe(node: &Inner) -> Option<Observation> {
    let state = match Box::pin(node.api.get_state()).await {
        Ok(state) => state,
        Err(error) => {
            tracing::debug!(%error, "the node does not tell its state");
            return None;
        }
    };
    node.note_attachment(&state.attachment);
    let readiness = node.readiness();
    Some(Observation {
        ready: readiness.ready,
        was_ready: readiness.epoch > 0,
        steady: readiness.since.elapsed(),
        has_peers: !state.network.peers.is_empty(),
        failing_for: node.health.failing_for(),
        address_changed: false,
    })
}

async fn reattach(node: &Inner) {
    // Both fail only if the node is in the wanted state already.
    if let Err(error) = Box::pin(node.api.detach()).await {
        tracing::debug!(%error, "detaching");
    }
    let detached = VeilidStateAttachmentCondition {
        opt_max_state: Some(AttachmentState::Detached),
        ..VeilidStateAttachmentCondition::default()
    };
    let limit = Some(Duration::from_secs(25));
    if let Err(error) = Box::pin(node.api.wait_for_attachment_condition(Some(detached), limit)).await {
        tracing::debug!(%error, "waiting to be detached");
    }
    if let Err(error) = Box::pin(node.api.attach()).await {
        tracing::debug!(%error, "attaching");
    }
    node.health.forgive();
    let ready = node.wait_ready(Instant::now() + Duration::from_secs(20));
    if timeout(Duration::from_secs(20), ready).await.is_ok_and(|ready| ready.is_ok()) {
        tracing::info!("connected anew");
    }
}

/// The addresses that this machine would send from, one for each family it has a route for. Connecting a UDP
/// socket sends nothing; it only makes the system choose an address.
fn own_addresses() -> Vec<IpAddr> {
    let probes: [(SocketAddr, SocketAddr); 2] = [
        ((Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::new(1, 1, 1, 1), 9).into()),
        ((Ipv6Addr::UNSPECIFIED, 0).into(), (Ipv6Addr::new(0x2606, 0x4700, 0, 0, 0, 0, 0, 0x1111), 9).into()),
    ];
    probes
        .into_iter()
        .filter_map(|(local, remote)| {
            let socket = UdpSocket::bind(local).ok()?;
            socket.connect(remote).ok()?;
            Some(socket.local_addr().ok()?.ip())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Observation = Observation {
        ready: true,
        was_ready: true,
        steady: Duration::from_secs(100),
        has_peers: true,
        failing_for: None,
        address_changed: false,
    };

    #[test]
    fn only_lasting_trouble_counts() {
        let seconds = Duration::from_secs;
        let lost = Observation { ready: false, ..WELL };
        let joining = Observation { was_ready: false, ..lost };
        let lonely = Observation { has_peers: false, ..WELL };
        let failing = |for_| Observation { failing_for: Some(seconds(for_)), ..WELL };
        for (seen, expected) in [
            (WELL, None),
            (Observation { steady: seconds(9), ..lost }, None),
            (Observation { steady: seconds(10), ..lost }, Some(Reason::Disconnected)),
            (Observation { steady: seconds(59), ..joining }, None),
            (Observation { steady: seconds(60), ..joining }, Some(Reason::Disconnected)),
            (Observation { steady: seconds(9), ..lonely }, None),
            (lonely, Some(Reason::NoPeers)),
            (failing(11), None),
            (failing(12), Some(Reason::NothingSucceeds)),
            (Observation { address_changed: true, ..WELL }, Some(Reason::AddressChanged)),
        ] {
            assert_eq!(diagnose(&seen), expected, "{seen:?}");
        }
    }
}
