//! One function per target.

mod client;
mod config;
mod definitions;
mod message;
mod pack;
mod record;
mod server;

pub use client::client;
pub use config::config;
pub use definitions::definitions;
pub use message::message;
pub use pack::pack;
pub use record::record;
pub use server::server;

/// A runtime whose time passes as soon as everybody waits.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}
