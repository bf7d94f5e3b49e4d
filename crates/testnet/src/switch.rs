//! The switch's decisions, without any input or output: which ports get a frame, when, and which
//! frames are lost. Time and randomness come in as parameters.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::Rng;
use serde::{Deserialize, Serialize};

/// Bytes of offload information (`struct virtio_net_hdr`) that precede each Ethernet frame: the
/// kernel leaves checksums to the receiver on virtual links, and says so there.
pub(crate) const OFFLOAD_HEADER: usize = 10;
/// Destination, source and type of an Ethernet frame.
const ETHERNET_HEADER: usize = 14;
/// Frames on their way to one port hold at most this many bytes; what comes on top is lost, as in
/// a real switch. 250 ms at 30 MB/s.
const MAX_QUEUED: usize = 8 << 20;
/// More source addresses than this are not learned; their frames are flooded.
const MAX_ADDRESSES: usize = 4096;

type Mac = [u8; 6];

/// The quality of a host's link, each way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Link {
    /// Probability that a frame crossing the link is lost, 0 to 1.
    pub loss: f64,
    /// Time a frame takes to cross the link.
    pub delay: Duration,
}

/// What went over a host's link since the network came up, Ethernet headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStats {
    /// Bytes that reached the host.
    pub rx_bytes: u64,
    /// Frames that reached the host.
    pub rx_frames: u64,
    /// Bytes the host sent while its link was up, lost ones included.
    pub tx_bytes: u64,
    /// Frames the host sent while its link was up, lost ones included.
    pub tx_frames: u64,
    /// Frames from or to the host lost on its link: at random, because it is down or overflows.
    pub dropped_frames: u64,
}

struct Port {
    link: Link,
    up: bool,
    queued: usize,
    stats: LinkStats,
}

struct Queued {
    due: Instant,
    /// Keeps frames due at the same moment in order.
    sequence: u64,
    port: usize,
    frame: Arc<[u8]>,
}

impl Queued {
    fn order(&self) -> (Instant, u64) {
        (self.due, self.sequence)
    }
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

/// A learning Ethernet switch whose links lose and delay frames. Ports are numbered from 0.
pub(crate) struct Switch {
    ports: Vec<Port>,
    addresses: HashMap<Mac, usize>,
    queue: BinaryHeap<Reverse<Queued>>,
    sequence: u64,
}

impl Switch {
    /// A switch of `ports` perfect links.
    pub(crate) fn new(ports: usize) -> Self {
        let port = || Port { link: Link::default(), up: true, queued: 0, stats: LinkStats::default() };
        Self {
            ports: std::iter::repeat_with(port).take(ports).collect(),
            addresses: HashMap::new(),
            queue: BinaryHeap::new(),
            sequence: 0,
        }
    }

    /// The link of `port`, to change its quality.
    pub(crate) fn link_mut(&mut self, port: usize) -> &mut Link {
        &mut self.ports[port].link
    }

    /// Cuts the link of `port` (silently: the host sees no loss of carrier) or restores it.
    pub(crate) fn set_up(&mut self, port: usize, up: bool) {
        self.ports[port].up = up;
    }

    pub(crate) fn stats(&self, port: usize) -> LinkStats {
        self.ports[port].stats
    }

    /// Takes a frame (offload header first) that came in at port `from`. Returns the ports it is
    /// to be sent to at once; for others it waits in the queue.
    pub(crate) fn receive(&mut self, from: usize, frame: &[u8], now: Instant, rng: &mut impl Rng) -> Vec<usize> {
        let Some((destination, source)) = addresses(frame) else { return Vec::new() };
        let port = &mut self.ports[from];
        if !port.up {
            port.stats.dropped_frames += 1;
            return Vec::new();
        }
        port.stats.tx_frames += 1;
        port.stats.tx_bytes += ethernet_len(frame);
        if port.loses(rng) {
            return Vec::new();
        }
        let delay = port.link.delay;
        self.learn(source, from);

        let mut at_once = Vec::new();
        let mut shared = None;
        for to in self.targets(from, destination) {
            let port = &mut self.ports[to];
            if port.loses(rng) {
                continue;
            }
            let delay = delay + port.link.delay;
            if delay.is_zero() {
                port.delivered(frame);
                at_once.push(to);
                continue;
            }
            let frame = shared.get_or_insert_with(|| Arc::from(frame));
            self.enqueue(to, Arc::clone(frame), now + delay);
        }
        at_once
    }

    /// When the next waiting frame is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse(queued)| queued.due)
    }

    /// The next frame that is due by `now`, and the port it goes to.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(usize, Arc<[u8]>)> {
        while self.next_due().is_some_and(|due| due <= now) {
            let Some(Reverse(Queued { port: to, frame, .. })) = self.queue.pop() else { break };
            let port = &mut self.ports[to];
            port.queued -= frame.len();
            if port.up {
                port.delivered(&frame);
                return Some((to, frame));
            }
            // Cut while the frame was on its way.
            port.stats.dropped_frames += 1;
        }
        None
    }

    fn learn(&mut self, source: Mac, port: usize) {
        if is_group(source) {
            return;
        }
        if self.addresses.len() < MAX_ADDRESSES || self.addresses.contains_key(&source) {
            self.addresses.insert(source, port);
        }
    }

    /// The port where `destination` was seen, or all but the frame's own.
    fn targets(&self, from: usize, destination: Mac) -> Vec<usize> {
        match self.addresses.get(&destination) {
            Some(&port) if port == from => Vec::new(),
            Some(&port) => vec![port],
            None => (0..self.ports.len()).filter(|&port| port != from).collect(),
        }
    }

    fn enqueue(&mut self, to: usize, frame: Arc<[u8]>, due: Instant) {
        let port = &mut self.ports[to];
        if port.queued + frame.len() > MAX_QUEUED {
            port.stats.dropped_frames += 1;
            return;
        }
        port.queued += frame.len();
        self.sequence += 1;
        self.queue.push(Reverse(Queued { due, sequence: self.sequence, port: to, frame }));
    }
}

impl Port {
    /// Whether a frame crossing the link now is lost; counts it if so.
    fn loses(&mut self, rng: &mut impl Rng) -> bool {
        let lost = !self.up || (self.link.loss > 0.0 && rng.random_bool(self.link.loss.min(1.0)));
        self.stats.dropped_frames += u64::from(lost);
        lost
    }

    fn delivered(&mut self, frame: &[u8]) {
        self.stats.rx_frames += 1;
        self.stats.rx_bytes += ethernet_len(frame);
    }
}

/// Destination and source of a frame; none if it is too short to be one.
fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    let header = frame.get(OFFLOAD_HEADER..OFFLOAD_HEADER + ETHERNET_HEADER)?;
    let (destination, rest) = header.split_first_chunk::<6>()?;
    let source = rest.first_chunk::<6>()?;
    Some((*destination, *source))
}

fn ethernet_len(frame: &[u8]) -> u64 {
    (frame.len() - OFFLOAD_HEADER) as u64
}

/// Broadcast and multicast addresses are never a source.
fn is_group(address: Mac) -> bool {
    address[0] & 1 == 1
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const BROADCAST: Mac = [0xff; 6];

    fn mac(last: u8) -> Mac {
        [2, 0, 0, 0, 0, last]
    }

    fn frame(destination: Mac, source: Mac, payload: usize) -> Vec<u8> {
        let mut frame = vec![0; OFFLOAD_HEADER];
        frame.extend(destination);
        frame.extend(source);
        frame.extend([8, 0]);
        frame.resize(frame.len() + payload, 0xaa);
        frame
    }

    struct Bench {
        switch: Switch,
        rng: StdRng,
        now: Instant,
    }

    impl Bench {
        /// A switch of three ports that has learned `mac(n)` at port n.
        fn new() -> Self {
            let mut bench = Self { switch: Switch::new(3), rng: StdRng::seed_from_u64(7), now: Instant::now() };
            for port in 0..3 {
                bench.send(port, BROADCAST, mac(port as u8));
            }
            bench
        }

        fn send(&mut self, from: usize, destination: Mac, source: Mac) -> Vec<usize> {
            self.switch.receive(from, &frame(destination, source, 46), self.now, &mut self.rng)
        }

        fn pop(&mut self, after: Duration) -> Option<usize> {
            self.switch.pop_due(self.now + after).map(|(port, _)| port)
        }
    }

    #[test]
    fn floods_what_it_does_not_know_and_learns_where_senders_are() {
        let mut bench = Bench { switch: Switch::new(3), rng: StdRng::seed_from_u64(7), now: Instant::now() };
        assert_eq!(bench.send(0, mac(1), mac(0)), [1, 2]);
        assert_eq!(bench.send(1, mac(0), mac(1)), [0]);
        assert_eq!(bench.send(0, mac(1), mac(0)), [1]);
        assert_eq!(bench.send(0, BROADCAST, mac(0)), [1, 2]);
    }

    #[test]
    fn follows_an_address_that_moves() {
        let mut bench = Bench::new();
        bench.send(2, BROADCAST, mac(1));
        assert_eq!(bench.send(0, mac(1), mac(0)), [2]);
    }

    #[test]
    fn sends_nothing_back_to_the_port_it_came_from() {
        let mut bench = Bench::new();
        assert_eq!(bench.send(0, mac(0), mac(0)), [0; 0]);
    }

    #[test]
    fn never_learns_a_group_address() {
        let mut bench = Bench::new();
        bench.send(0, BROADCAST, BROADCAST);
        assert_eq!(bench.send(1, BROADCAST, mac(1)), [0, 2]);
    }

    #[test]
    fn ignores_runts() {
        let mut bench = Bench::new();
        let runt = vec![0; OFFLOAD_HEADER + ETHERNET_HEADER - 1];
        assert!(bench.switch.receive(0, &runt, bench.now, &mut bench.rng).is_empty());
        assert!(bench.switch.receive(0, &[], bench.now, &mut bench.rng).is_empty());
    }

    #[test]
    fn delays_add_up_over_both_links_and_keep_the_order() {
        let mut bench = Bench::new();
        bench.switch.link_mut(0).delay = Duration::from_millis(10);
        bench.switch.link_mut(1).delay = Duration::from_millis(5);
        let now = bench.now;
        for length in [50, 60, 70] {
            let sent = frame(mac(1), mac(0), length);
            assert!(bench.switch.receive(0, &sent, now, &mut bench.rng).is_empty());
        }
        assert_eq!(bench.switch.next_due(), Some(now + Duration::from_millis(15)));
        assert_eq!(bench.pop(Duration::from_millis(14)), None);
        let due = now + Duration::from_millis(15);
        let lengths: Vec<_> =
            std::iter::from_fn(|| bench.switch.pop_due(due)).map(|(port, frame)| (port, frame.len())).collect();
        let header = OFFLOAD_HEADER + ETHERNET_HEADER;
        assert_eq!(lengths, [(1, header + 50), (1, header + 60), (1, header + 70)]);
        assert_eq!(bench.switch.next_due(), None);
        assert_eq!(bench.send(2, mac(2), mac(2)), [0; 0]);
    }

    #[test]
    fn a_later_frame_with_less_delay_arrives_first() {
        let mut bench = Bench::new();
        bench.switch.link_mut(1).delay = Duration::from_millis(100);
        bench.send(0, mac(1), mac(0));
        bench.switch.link_mut(2).delay = Duration::from_millis(1);
        bench.send(0, mac(2), mac(0));
        assert_eq!(bench.pop(Duration::from_millis(100)), Some(2));
        assert_eq!(bench.pop(Duration::from_millis(100)), Some(1));
    }

    #[test]
    fn loses_the_asked_share_each_way() {
        let mut bench = Bench::new();
        bench.switch.link_mut(1).loss = 0.2;
        let to = (0..10_000).filter(|_| bench.send(0, mac(1), mac(0)).is_empty()).count();
        let from = (0..10_000).filter(|_| bench.send(1, mac(0), mac(1)).is_empty()).count();
        let others = (0..10_000).filter(|_| bench.send(0, mac(2), mac(0)).is_empty()).count();
        assert!((1_800..2_200).contains(&to), "{to} of 10000 lost towards the host");
        assert!((1_800..2_200).contains(&from), "{from} of 10000 lost from the host");
        assert_eq!(others, 0);
        assert_eq!(bench.switch.stats(1).dropped_frames, (to + from) as u64);
    }

    #[test]
    fn total_loss_lets_nothing_through() {
        let mut bench = Bench::new();
        bench.switch.link_mut(1).loss = 1.0;
        assert!((0..100).all(|_| bench.send(0, mac(1), mac(0)).is_empty()));
    }

    #[test]
    fn a_cut_is_silent_both_ways_and_heals() {
        let mut bench = Bench::new();
        bench.switch.set_up(1, false);
        assert!(bench.send(0, mac(1), mac(0)).is_empty());
        assert!(bench.send(1, mac(0), mac(1)).is_empty());
        assert_eq!(bench.send(0, BROADCAST, mac(0)), [2]);
        bench.switch.set_up(1, true);
        assert_eq!(bench.send(0, mac(1), mac(0)), [1]);
        assert_eq!(bench.send(1, mac(0), mac(1)), [0]);
    }

    #[test]
    fn a_cut_loses_what_is_on_its_way() {
        let mut bench = Bench::new();
        bench.switch.link_mut(1).delay = Duration::from_millis(10);
        bench.send(0, mac(1), mac(0));
        bench.switch.set_up(1, false);
        assert_eq!(bench.pop(Duration::from_secs(1)), None);
        assert_eq!(bench.switch.next_due(), None);
        assert_eq!(bench.switch.stats(1).dropped_frames, 1);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut bench = Bench::new();
        bench.switch.link_mut(1).delay = Duration::from_secs(1);
        let sent = frame(mac(1), mac(0), 1_500);
        let count = 2 * MAX_QUEUED / sent.len();
        for _ in 0..count {
            bench.switch.receive(0, &sent, bench.now, &mut bench.rng);
        }
        let delivered = std::iter::from_fn(|| bench.pop(Duration::from_secs(1))).count();
        assert_eq!(delivered, MAX_QUEUED / sent.len());
        assert_eq!(bench.switch.stats(1).dropped_frames, (count - delivered) as u64);
        // Room again once it has been emptied.
        bench.send(0, mac(1), mac(0));
        assert_eq!(bench.pop(Duration::from_secs(1)), Some(1));
    }

    #[test]
    fn counts_bytes_as_the_host_sees_them() {
        let mut bench = Bench { switch: Switch::new(2), rng: StdRng::seed_from_u64(7), now: Instant::now() };
        let sent = frame(mac(1), mac(0), 100);
        bench.switch.receive(0, &sent, bench.now, &mut bench.rng);
        bench.switch.link_mut(1).delay = Duration::from_millis(1);
        bench.switch.receive(0, &sent, bench.now, &mut bench.rng);
        assert_eq!(bench.switch.stats(1).rx_bytes, 114);
        bench.pop(Duration::from_millis(1));
        assert_eq!(bench.switch.stats(0), LinkStats { tx_bytes: 228, tx_frames: 2, ..LinkStats::default() });
        assert_eq!(bench.switch.stats(1), LinkStats { rx_bytes: 228, rx_frames: 2, ..LinkStats::default() });
    }
}
