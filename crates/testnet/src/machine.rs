//! A machine of the network: a process in a network namespace of its own, which it keeps alive.
//! A host only waits there; an infrastructure node runs Veilid. It takes orders on stdin and
//! reports on stdout, one JSON object a line, and ends when stdin does, so it never outlives the
//! process that started it.

use std::{
    io::{self, BufRead, Write},
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};
use serde::{Deserialize, Serialize};

use crate::{Error, namespace, node, wait::wait_until};

/// The gateway every machine has a default route to, without which Veilid finds no global
/// network. Nobody answers there.
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(44, 0, 0, 254);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0x2a10, 0x44, 0, 0, 0, 0, 0, 0xfffe);

/// The kernel notices a change of carrier within a second.
const CARRIER_LIMIT: Duration = Duration::from_secs(10);

/// The addresses of a machine. They must look global to Veilid: private and documentation ranges
/// are not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// In 44.0.0.0/24.
    pub ipv4: Ipv4Addr,
    /// In `2a10:44::/64`.
    pub ipv6: Ipv6Addr,
}

impl Addresses {
    /// The addresses of machine `number`, 1 to 253.
    pub(crate) fn of(number: u8) -> Self {
        Self { ipv4: Ipv4Addr::new(44, 0, 0, number), ipv6: Ipv6Addr::new(0x2a10, 0x44, 0, 0, 0, 0, 0, number.into()) }
    }
}

/// What a machine is told to do.
#[derive(Serialize, Deserialize)]
pub(crate) enum Order {
    /// Set up the interface `eth0`, which has been put into the namespace, and start.
    Start { addresses: Addresses, node: Option<node::Setup> },
    /// Store `value` in a new DHT record.
    Write { value: String },
    /// Read a record from the network.
    Read { key: String },
}

/// What a machine reports.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    /// The namespace exists.
    Isolated,
    /// The interface is up, and a node is attached to the network.
    Ready,
    /// The value is in the record of this key.
    Written { key: String },
    /// The value found.
    Read { value: String },
    /// The last order failed.
    Failed { message: String },
}

/// Sends an event to the process that started this one.
pub(crate) fn report(event: &Event) -> Result<(), Error> {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    let sent = stdout.write_all(&line).and_then(|()| stdout.flush());
    sent.map_err(Error::file("write to", "stdout"))
}

/// Runs a machine; returns when stdin ends.
pub(crate) fn run() -> Result<(), Error> {
    namespace::isolate()?;
    report(&Event::Isolated)?;
    let Some(Order::Start { addresses, node }) = next_order()? else { return Ok(()) };
    namespace::ip(&interface_script(addresses))?;
    wait_for_carrier()?;
    if let Some(setup) = node {
        return node::run(setup);
    }
    report(&Event::Ready)?;
    while next_order()?.is_some() {}
    Ok(())
}

/// Waits for an order; none when there will be no more.
pub(crate) fn next_order() -> Result<Option<Order>, Error> {
    let mut line = String::new();
    let stdin = PathBuf::from("stdin");
    io::stdin().lock().read_line(&mut line).map_err(Error::file("read from", &stdin))?;
    if line.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&line).map(Some).map_err(|error| Error::file("read from", &stdin)(error.into()))
}

/// Waits until the kernel has noticed that the other end of the link is up: Veilid gives up at once
/// where it finds no interface that works.
fn wait_for_carrier() -> Result<(), Error> {
    let up = || {
        getifaddrs().is_ok_and(|mut found| {
            found.any(|found| found.interface_name == "eth0" && found.flags.contains(InterfaceFlags::IFF_RUNNING))
        })
    };
    if wait_until(CARRIER_LIMIT, up) {
        return Ok(());
    }
    Err(Error::IpCommand("the interface eth0 does not come up".to_owned()))
}

/// Segments are cut here, not in the switch, so that it loses single packets as a real link does.
fn interface_script(Addresses { ipv4, ipv6 }: Addresses) -> String {
    format!(
        "link set lo up\n\
         link set eth0 gso_max_segs 1\n\
         address add {ipv4}/24 dev eth0\n\
         address add {ipv6}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via {GATEWAY4}\n\
         route add default via {GATEWAY6}\n"
    )
}
