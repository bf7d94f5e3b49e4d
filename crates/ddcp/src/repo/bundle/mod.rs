//! Bundles: changes in a file, for where no network leads.
//!
//! What is in a bundle, whoever made it, goes through the inbox and `merge` as what is fetched does.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::Repository;
use crate::{
    Error,
    changeset::{BundleEnd, BundleError, BundleHeader, BundleReader, BundleSignature, Change, Cursor},
    config::Limits,
    database::{FileId, LeftOut},
    medium,
    transport::{Address, Party, RecordId, veilid::has_signed},
};

mod create;
mod fetch;
mod marks;
mod spool;

pub use create::{BundleRequest, BundleTarget, Since, Stop};
pub use fetch::BundleFetchReport;
pub use spool::Spooled;

/// What is in a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleReport {
    /// The file, or what stands for it.
    pub file: String,
    /// The site id of the database whose changes it holds, in hexadecimal.
    pub site_id: String,
    /// When it was begun: milliseconds since 1970.
    pub created: i64,
    /// Fingerprint of that database's schema then, in hexadecimal.
    pub schema: String,
    /// The first version of that database that is in it.
    pub from_version: i64,
    /// The last.
    pub to_version: i64,
    /// The tables it was restricted to, if it was.
    pub only_tables: Option<Vec<String>>,
    /// The site whose own changes are left out, in hexadecimal, if one's are.
    pub without: Option<String>,
    /// Number of changes by table.
    pub tables: BTreeMap<String, u64>,
    /// Number of changes.
    pub changes: u64,
    /// Number of packs.
    pub packs: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// The repository whose key has signed it, by its record: its address without the secret part. `None` of a bundle that
    /// nobody has signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// What no pack can hold, so that it is not in the bundle; of a bundle that was made, not of one that is read.
    #[serde(default, skip_serializing_if = "LeftOut::is_empty")]
    pub left_out: LeftOut,
}

impl BundleReport {
    fn new(file: &str, header: &BundleHeader, end: BundleEnd, tables: BTreeMap<String, u64>) -> Self {
        Self {
            file: file.to_owned(),
            site_id: header.source.to_string(),
            created: header.created,
            schema: HEXLOWER.encode(&header.schema),
            from_version: first_version(header.from),
            to_version: end.to.version,
            only_tables: header.tables.as_ref().map(|tables| tables.iter().cloned().collect()),
            without: header.without.map(|site| site.to_string()),
            tables,
            changes: end.changes,
            packs: end.packs,
            bytes: end.bytes,
            signed_by: header.signature.map(|signature| signer(&signature).repository.to_string()),
            left_out: LeftOut::default(),
        }
    }
}

impl Repository {
    /// The limits for what others send, and whether `file` is no bundle but one of the databases that are in use here.
    /// Those are not to be opened: when such a descriptor is closed, SQLite's locks on them are gone.
    ///
    /// # Errors
    /// [`Error::Bundle`], [`Error::Config`].
    pub(crate) fn limits_for_bundle(&self, file: &Path, shown: &str) -> Result<Limits, Error> {
        match self.is_database(file)? {
            true => Err(Error::Bundle { file: shown.to_owned(), source: BundleError::NotABundle }),
            false => Ok(self.config()?.limits),
        }
    }

    /// Whether `path` leads to a database that this repository works with, or to a file that SQLite keeps beside one.
    fn is_database(&self, path: &Path) -> Result<bool, Error> {
        let Some(file) = FileId::of(path) else { return Ok(false) };
        let layout = self.layout();
        let mut databases = vec![layout.database().to_owned(), layout.state_db(), layout.digests()];
        databases.extend(self.config()?.remotes.into_values().filter_map(|remote| match remote.address {
            Address::Path(path) => Some(path),
            Address::Veilid(_) => None,
        }));
        let is_of = |database: &PathBuf| {
            ["", "-wal", "-shm", "-journal"].iter().any(|end| FileId::of(&medium::beside(database, end)) == Some(file))
        };
        Ok(databases.iter().any(is_of))
    }
}

/// Reads the bundle `input`, called `shown`, to its end and checks everything; its packs may not be over `limits`. Blocks.
///
/// # Errors
/// [`Error::Bundle`].
pub fn verify_bundle(input: impl Read, shown: &str, limits: &Limits) -> Result<BundleReport, Error> {
    let wrong = |source: BundleError| Error::Bundle { file: shown.to_owned(), source };
    let mut reader = BundleReader::open(input).map_err(wrong)?.with_pack_bytes(limits.pack_bytes.get());
    let mut tables = BTreeMap::new();
    while let Some(entry) = reader.next_pack().map_err(wrong)? {
        let look = |change: &Change| count_change(&mut tables, change);
        entry.inspect(reader.header(), &limits.unpacked(), look).map_err(wrong)?;
    }
    let end = end_of(&reader).map_err(wrong)?;
    check_signature(&reader).map_err(wrong)?;
    Ok(BundleReport::new(shown, reader.header(), end, tables))
}

/// Tables that are named in a report; the changes of all others are counted together.
const MOST_TABLES: usize = 2_000;

/// What those others are called, which is no name of a table that replicates.
const OTHER_TABLES: &str = "";

fn count_change(tables: &mut BTreeMap<String, u64>, change: &Change) {
    if let Some(count) = tables.get_mut(&*change.table) {
        *count += 1;
        return;
    }
    let name = if tables.len() < MOST_TABLES { &*change.table } else { OTHER_TABLES };
    *tables.entry(name.to_owned()).or_default() += 1;
}

/// Who is said to have signed.
fn signer(signature: &BundleSignature) -> Party {
    Party { repository: RecordId(signature.repository), key: signature.key }
}

/// Who has signed a bundle that was read to its end, if somebody says so.
fn check_signature<R: Read>(reader: &BundleReader<R>) -> Result<Option<RecordId>, BundleError> {
    let (Some(signature), Some(text)) = (&reader.header().signature, reader.signed()) else { return Ok(None) };
    let party = signer(signature);
    match has_signed(&party, &text, &signature.bytes) {
        true => Ok(Some(party.repository)),
        false => Err(BundleError::Damaged("its signature is not one of who is said to have made it")),
    }
}

/// The end of a bundle that was read to it.
fn end_of<R: Read>(reader: &BundleReader<R>) -> Result<BundleEnd, BundleError> {
    reader.end().ok_or(BundleError::CutShort)
}

/// The first version with something behind `after`.
fn first_version(after: Cursor) -> i64 {
    if after.seq == i64::MAX || after == Cursor::ZERO { after.version + 1 } else { after.version }
}
