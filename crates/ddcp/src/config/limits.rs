use std::num::{NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};

use crate::changeset;

/// What others may cost this repository: the `[limits]` table of `config.toml`. Each key may be left out.
///
/// A *caller* is a session of a client (callers are anonymous), or in a private repository the remote that has
/// proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests of one caller that are answered in a second; over them the answer is "busy".
    pub requests_per_second: NonZeroU32,
    /// Requests of one caller that are being answered at one time.
    pub requests_at_once: NonZeroU32,
    /// Offers that are begun for one caller in a second: each reads the database.
    pub offers_per_second: NonZeroU32,
    /// Offers of one caller that are in preparation at one time.
    pub offers_at_once: NonZeroU32,
    /// Requests of all callers that are answered in a second.
    pub total_requests_per_second: NonZeroU32,
    /// Callers that are kept account of; the one that has been idle for longest leaves.
    pub callers: NonZeroU32,
    /// For how many seconds a caller that floods or breaks the protocol is refused.
    pub drop_seconds: NonZeroU32,
    /// The largest pack in bytes that is fetched.
    pub pack_bytes: NonZeroU64,
    /// The most bytes that a fetched pack may decompress to.
    pub unpacked_bytes: NonZeroU64,
    /// The most bytes of one remote that are kept fetched and not merged.
    pub inbox_bytes: NonZeroU64,
    /// For how many seconds a remote may say that it is busy.
    pub patience_seconds: NonZeroU32,
}

impl Limits {
    /// What a pack of others may be once it is unpacked.
    pub(crate) fn unpacked(&self) -> changeset::Limits {
        let raw_bytes = usize::try_from(self.unpacked_bytes.get()).unwrap_or(usize::MAX);
        changeset::Limits { raw_bytes, ..changeset::Limits::default() }
    }
}

const fn number(value: u32) -> NonZeroU32 {
    match NonZeroU32::new(value) {
        Some(number) => number,
        None => NonZeroU32::MIN,
    }
}

const fn bytes(value: u64) -> NonZeroU64 {
    match NonZeroU64::new(value) {
        Some(number) => number,
        None => NonZeroU64::MIN,
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_per_second: number(5000),
            requests_at_once: number(20),
            offers_per_second: number(8),
            offers_at_once: number(4),
            total_requests_per_second: number(20_000),
            callers: number(256),
            drop_seconds: number(60),
            pack_bytes: bytes(1 << 30),
            unpacked_bytes: bytes(1_100_000_000),
            inbox_bytes: bytes(16 << 30),
            patience_seconds: number(120),
        }
    }
}
