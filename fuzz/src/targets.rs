//! One function per target.

mod config;
mod message;
mod pack;
mod record;

pub use config::config;
pub use message::message;
pub use pack::pack;
pub use record::record;
