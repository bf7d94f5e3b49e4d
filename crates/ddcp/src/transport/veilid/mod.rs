//! The Veilid transport: one node per process, one DHT record per repository, calls over private routes.
//!
//! A repository that serves publishes a signed status in subkey 0 of its record: private routes to it and an
//! announcement of the layers above. Who has the record's key reads the status and calls over a route. Routes
//! die with the nodes they lead through, so there are several, the server replaces dead ones, and the client
//! goes from one to the next and reads the record again.
//!
//! Nothing here installs a log subscriber. Veilid's own events go to `tracing` under targets without a common
//! prefix (`net`, `rpc`, `rtab`, `stor`, `attach`, …): a subscriber should name the targets it wants
//! (`ddcp=info`) rather than those it does not.

mod error;
mod health;
mod identity;
mod key;
mod node;
mod peer;
mod publisher;
mod record;
mod routes;
mod rtt;
mod server;
mod settings;
mod watchdog;
mod way_out;

pub use identity::stored_address;
pub use key::{OwnerKey, has_signed};
pub use node::{Node, NodeOptions};
pub use peer::{VeilidPeer, Watch};
