//! What two repositories say to each other: numbered-field CBOR messages of at most
//! [`MAX_MESSAGE`](crate::transport::MAX_MESSAGE) bytes, one request and one answer at a time.
//!
//! - `Status`: who are you, and how far is your database?
//! - `Offer`: which packs hold what changed since this cursor?
//! - `Chunk`: a part of a pack.
//! - `Schema`: how are the shared tables declared?
//! - `Digest`: what adds up to the same in databases that have the same.
//! - `Rows`: the rows of a part of that.
//! - `Challenge` and `Proof`: to a private repository, who is asking.
//! - `Hint`: there is something new here.
//!
//! `docs/protocol.md` specifies it.

mod access;
mod cache;
mod client;
mod clock;
mod credentials;
mod definitions;
mod document;
mod fruitless;
mod gate;
mod guard;
mod hint;
pub(crate) mod message;
mod parts;
mod progress;
mod rate;
mod rows;
mod server;
mod turns;
mod window;

pub use access::Door;
pub use client::{Client, ClientError, Fetched, Limits, OfferedPack, Sink};
pub use credentials::Credentials;
#[cfg(test)]
pub(crate) use definitions::tests::{Tells, table};
pub use definitions::{DefinitionsError, MAX_DEFINITIONS_BYTES, decode_definitions, encode_definitions};
pub use gate::{DropReport, Drops};
pub use guard::{Guarded, Rules};
pub use hint::{HintListener, HintTag, Hints};
pub use message::{CHUNK_BYTES, DatabaseDigest, PROTOCOL_VERSION, RemoteStatus, announcement, private_announcement};
pub use parts::Parts;
pub use progress::{Meter, Progress};
pub use rate::LeastRate;
pub use rows::{RowsError, decode_rows};
pub use server::{Reached, Server, Source};
