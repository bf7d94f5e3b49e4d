//! One function per target.

mod arrived;
mod bundle;
mod client;
mod config;
mod definitions;
mod message;
mod pack;
mod record;
mod sandbox;
mod server;

pub use bundle::bundle;
pub use client::client;
pub use config::config;
pub use definitions::definitions;
pub use message::message;
pub use pack::pack;
pub use record::record;
pub use server::server;
