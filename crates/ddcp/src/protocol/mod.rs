//! What two repositories say to each other: numbered-field CBOR messages of at most
//! [`MAX_MESSAGE`](crate::transport::MAX_MESSAGE) bytes, one request and one answer at a time.
//!
//! - `Status`: who are you, and how far is your database?
//! - `Offer`: which packs hold what changed since this cursor?
//! - `Chunk`: a part of a pack.
//!
//! `docs/protocol.md` specifies it.

mod client;
pub(crate) mod message;
mod server;

pub use client::{Client, ClientError, Fetched, Limits, OfferedPack, Sink};
pub use message::{CHUNK_BYTES, PROTOCOL_VERSION, RemoteStatus, announcement};
pub use server::{Server, Source};
