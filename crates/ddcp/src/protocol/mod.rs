//! What two repositories say to each other: numbered-field CBOR messages of at most
//! [`MAX_MESSAGE`](crate::transport::MAX_MESSAGE) bytes, one request and one answer at a time.
//!
//! - `Status`: who are you, and how far is your database?
//! - `Offer`: which packs hold what changed since this cursor?
//! - `Chunk`: a part of a pack.
//! - `Digest`: what adds up to the same in databases that have the same.
//! - `Challenge` and `Proof`: to a private repository, who is asking.
//!
//! `docs/protocol.md` specifies it.

mod access;
mod cache;
mod client;
mod clock;
mod credentials;
mod gate;
mod guard;
pub(crate) mod message;
mod parts;
mod progress;
mod server;
mod turns;
mod window;

pub use access::Door;
pub use client::{Client, ClientError, Fetched, Limits, OfferedPack, Sink};
pub use credentials::Credentials;
pub use gate::{DropReport, Drops};
pub use guard::{Guarded, Rules};
pub use message::{CHUNK_BYTES, DatabaseDigest, PROTOCOL_VERSION, RemoteStatus, announcement, private_announcement};
pub use parts::Parts;
pub use progress::{Meter, Progress};
pub use server::{Server, Source};
