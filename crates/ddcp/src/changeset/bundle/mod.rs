//! A bundle: packs in a file, for people to carry where no network leads. `docs/formats.md` specifies the bytes.
//!
//! It is written and read as a stream, a pack at a time. What was cut off or altered on the way is noticed: each pack
//! by its id, everything else by the hash at the end.

use std::{collections::BTreeSet, io};

use minicbor::{Decode, Encode};

use super::{Change, Cursor, Limits, MAX_NAME, MAX_VERSION, Pack, PackError, PackId, SiteId, Unpacked, inspect};

mod read;
#[cfg(test)]
mod tests;
mod write;

pub use read::BundleReader;
pub use write::{BundleWriter, Unsigned};

const MAGIC: &[u8; 8] = b"DDCPbndl";
const VERSION: u64 = 1;

/// What stands before a pack, and before the end.
const PACK: u8 = 1;
const END: u8 = 0;

/// Bytes of a header. One with the longest names that a database holds has less.
const MAX_HEADER: usize = 1 << 20;

/// Tables that a header may name.
const MAX_TABLES: usize = 65_536;

/// Bytes of a pack, as in an offer over the network.
const MAX_PACK: u64 = 1 << 30;

/// Names what a signature is for: the key signs other things too.
const DOMAIN: &[u8] = b"ddcp bundle, version 1\0";

/// Bytes of a signature. They are the last ones of a header that has one.
const SIGNATURE: usize = 64;

/// Who is said to have made a bundle, and the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleSignature {
    /// The repository, by its record.
    pub repository: [u8; 32],
    /// The key that owns the record.
    pub key: [u8; 32],
    /// The key's signature over [`BundleReader::signed`]; zeros in a bundle in the making.
    pub bytes: [u8; SIGNATURE],
}

impl BundleSignature {
    /// Room for the signature of `repository` by `key`.
    #[must_use]
    pub fn to_come(repository: [u8; 32], key: [u8; 32]) -> Self {
        Self { repository, key, bytes: [0; SIGNATURE] }
    }

    /// What is signed: every part has a fixed length. `hash` is that of the whole bundle, but with zeros for the signature
    /// and without the bytes of its packs, for which their ids stand.
    fn text(&self, hash: &blake3::Hash) -> Vec<u8> {
        [DOMAIN, &self.repository, &self.key, hash.as_bytes()].concat()
    }
}

/// What a bundle says of itself before its packs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleHeader {
    /// The database whose changes it holds.
    pub source: SiteId,
    /// That database's version when the bundle was begun.
    pub version: i64,
    /// Exclusive start: changes up to here are left out.
    pub from: Cursor,
    /// Fingerprint of the source's schema when the bundle was begun.
    pub schema: [u8; 32],
    /// When it was begun, in milliseconds since 1970.
    pub created: i64,
    /// The only tables whose changes it holds; `None` for all.
    pub tables: Option<BTreeSet<String>>,
    /// The site whose own changes are left out: the bundle was made for it.
    pub without: Option<SiteId>,
    /// Who signs it, if somebody does.
    pub signature: Option<BundleSignature>,
}

/// What a bundle says of itself behind its packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleEnd {
    /// Inclusive end: of everything between the header's start and here nothing is missing but what the header says.
    pub to: Cursor,
    /// Number of packs.
    pub packs: u64,
    /// Number of changes in them.
    pub changes: u64,
    /// Bytes of the whole bundle.
    pub bytes: u64,
}

/// A pack of a bundle: its bytes, checked against the id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundledPack {
    /// Its place, counted from 1.
    pub number: u64,
    /// The hash of its bytes.
    pub id: PackId,
    /// Exclusive start.
    pub from: Cursor,
    /// Inclusive end.
    pub to: Cursor,
    /// The number of changes in it, as the bundle says.
    pub changes: u64,
    /// The encoded pack.
    pub bytes: Vec<u8>,
}

/// Why a file is no bundle, or one that breaks the rules.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The magic is missing.
    #[error("this is no bundle of changes")]
    NotABundle,
    /// Written by a later release.
    #[error("the bundle has format version {0}, this program reads up to {VERSION}")]
    Version(u64),
    /// It was not copied to its end.
    #[error("the bundle ends too early: it was not written or copied whole")]
    CutShort,
    /// Some of its bytes are not what they were.
    #[error("the bundle is damaged: {0}")]
    Damaged(&'static str),
    /// A size over the limit.
    #[error("the bundle has too many {what}: {claimed}, the limit is {limit}")]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// The number found.
        claimed: u64,
        /// The number allowed.
        limit: u64,
    },
    /// A pack that breaks the rules of packs.
    #[error("pack {number} of the bundle: {source}")]
    Pack {
        /// Its place, counted from 1.
        number: u64,
        /// The rule.
        source: PackError,
    },
    /// The file could not be read.
    #[error("it cannot be read: {0}")]
    Io(io::Error),
}

impl From<io::Error> for BundleError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl BundleHeader {
    /// Whether every change of the source is in the bundle that `reader` lacks, so that `reader` knows the source up
    /// to the bundle's end once it is merged.
    #[must_use]
    pub fn is_complete_for(&self, reader: &SiteId) -> bool {
        self.tables.is_none() && self.without.is_none_or(|site| site == *reader)
    }

    fn encode(&self) -> Vec<u8> {
        let wire = WireHeader {
            source: self.source.as_bytes().to_vec(),
            version: self.version,
            from: (self.from.version, self.from.seq),
            schema: self.schema,
            created: self.created,
            tables: self.tables.as_ref().map(|tables| tables.iter().cloned().collect()),
            without: self.without.map(|site| site.as_bytes().to_vec()),
            signature: self.signature.map(|signature| WireSignature {
                repository: signature.repository,
                key: signature.key,
                bytes: signature.bytes,
            }),
        };
        // The header holds nothing that CBOR cannot, and memory takes every write.
        minicbor::to_vec(&wire).unwrap_or_else(|error| unreachable!("a header could not be encoded: {error}"))
    }

    fn decode(bytes: &[u8]) -> Result<Self, BundleError> {
        const DAMAGED: BundleError = BundleError::Damaged("its header cannot be understood");
        let mut decoder = minicbor::Decoder::new(bytes);
        let wire: WireHeader = decoder.decode().map_err(|_| DAMAGED)?;
        if decoder.position() != bytes.len() {
            return Err(DAMAGED);
        }
        let tables = wire.tables.as_deref().unwrap_or_default();
        if tables.len() > MAX_TABLES {
            let (claimed, limit) = (tables.len() as u64, MAX_TABLES as u64);
            return Err(BundleError::TooLarge { what: "tables", claimed, limit });
        }
        if tables.iter().any(|table| table.len() > MAX_NAME) {
            return Err(BundleError::Damaged("a name is too long"));
        }
        let site = |bytes: &[u8]| SiteId::from_bytes(bytes).map_err(|_| DAMAGED);
        let header = Self {
            source: site(&wire.source)?,
            version: wire.version,
            from: cursor(wire.from.0, wire.from.1)?,
            schema: wire.schema,
            created: wire.created,
            tables: wire.tables.map(BTreeSet::from_iter),
            without: wire.without.as_deref().map(site).transpose()?,
            signature: wire.signature.map(|wire| BundleSignature {
                repository: wire.repository,
                key: wire.key,
                bytes: wire.bytes,
            }),
        };
        if header.signature.is_some_and(|signature| !bytes.ends_with(&signature.bytes)) {
            return Err(BundleError::Damaged("its signature is not at the end of its header"));
        }
        if !(0..=MAX_VERSION).contains(&header.version) {
            return Err(OUT_OF_RANGE);
        }
        Ok(header)
    }
}

impl BundledPack {
    /// The pack itself, if it keeps every rule and is what `header` and its own entry say.
    ///
    /// # Errors
    /// [`BundleError::Pack`], [`BundleError::Damaged`].
    pub fn decode(&self, header: &BundleHeader) -> Result<Pack, BundleError> {
        let pack = Pack::decode(&self.bytes, &Limits::default()).map_err(|error| self.wrong(error))?;
        self.check(header, &pack, pack.changes.len()).map(|()| pack)
    }

    /// As [`BundledPack::decode`], of a pack that keeps these limits, once there is memory for it. Blocks, as
    /// [`Unpacked::decode`] does.
    ///
    /// # Errors
    /// As [`BundledPack::decode`].
    pub fn decode_within(&self, header: &BundleHeader, limits: &Limits) -> Result<Unpacked, BundleError> {
        let pack = Unpacked::decode(&self.bytes, limits).map_err(|error| self.wrong(error))?;
        self.check(header, &pack, pack.changes.len()).map(|()| pack)
    }

    /// As [`BundledPack::decode_within`], of which nothing is kept: `look` sees each change once.
    ///
    /// # Errors
    /// As [`BundledPack::decode`].
    pub fn inspect(
        &self,
        header: &BundleHeader,
        limits: &Limits,
        look: impl FnMut(&Change),
    ) -> Result<(), BundleError> {
        let (pack, changes) = inspect(&self.bytes, limits, look).map_err(|error| self.wrong(error))?;
        self.check(header, &pack, changes)
    }

    fn wrong(&self, source: PackError) -> BundleError {
        BundleError::Pack { number: self.number, source }
    }

    /// Whether a pack, of so many changes, is what is said of it.
    fn check(&self, header: &BundleHeader, pack: &Pack, changes: usize) -> Result<(), BundleError> {
        if pack.source != header.source {
            return Err(BundleError::Damaged("a pack is of another database"));
        }
        if (pack.from, pack.to, changes as u64) != (self.from, self.to, self.changes) {
            return Err(BundleError::Damaged("a pack is not what stands before it"));
        }
        if let Some(tables) = &header.tables
            && !pack.tables.iter().all(|table| tables.contains(&table.name))
        {
            return Err(BundleError::Damaged("a pack is of a table that the bundle does not name"));
        }
        Ok(())
    }
}

/// The header's bytes: a map of numbered fields, so that later releases may add some.
#[derive(Encode, Decode)]
#[cbor(map)]
struct WireHeader {
    #[cbor(n(0), with = "minicbor::bytes")]
    source: Vec<u8>,
    #[n(1)]
    version: i64,
    #[n(2)]
    from: (i64, i64),
    #[cbor(n(3), with = "minicbor::bytes")]
    schema: [u8; 32],
    #[n(4)]
    created: i64,
    #[n(5)]
    tables: Option<Vec<String>>,
    #[cbor(n(6), with = "minicbor::bytes")]
    without: Option<Vec<u8>>,
    #[n(7)]
    signature: Option<WireSignature>,
}

#[derive(Encode, Decode)]
#[cbor(array)]
struct WireSignature {
    #[cbor(n(0), with = "minicbor::bytes")]
    repository: [u8; 32],
    #[cbor(n(1), with = "minicbor::bytes")]
    key: [u8; 32],
    #[cbor(n(2), with = "minicbor::bytes")]
    bytes: [u8; SIGNATURE],
}

const OUT_OF_RANGE: BundleError = BundleError::Damaged("a version is out of range");

fn cursor(version: i64, seq: i64) -> Result<Cursor, BundleError> {
    if !(0..=MAX_VERSION).contains(&version) || seq < 0 {
        return Err(OUT_OF_RANGE);
    }
    Ok(Cursor { version, seq })
}
