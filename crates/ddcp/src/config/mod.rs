//! Settings of a repository: `config.toml`.

mod network;

pub use network::NetworkConfig;
