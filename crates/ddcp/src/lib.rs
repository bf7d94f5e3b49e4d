//! DDCP, Database-to-Database Copy: distribute a SQLite database and synchronise it the way Git
//! synchronises a repository.

pub mod changeset;
pub mod config;
pub mod database;
pub mod transport;
