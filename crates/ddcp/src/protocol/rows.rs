//! The rows of some ranges of a database's digest, by which the rows are found that differ: the bytes in which they
//! travel, and the question for them. `docs/formats.md` specifies the bytes.

use minicbor::{Decode, Encode, bytes::ByteArray};

use super::{
    client::{Client, ClientError, unexpected},
    document::Document,
    message::{Answer, Request},
};
use crate::database::{RANGES, RowDigest, ToldRows};

/// The most bytes that rows may take, encoded.
const MOST_BYTES: usize = 4 << 20;

/// The most bytes of a row besides its key.
const ROW_OVERHEAD: usize = 64;

/// The version of the encoding.
const VERSION: u32 = 1;

/// Why rows could not be understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowsError {
    /// They take too much room.
    #[error("they take {bytes} bytes; at most {MOST_BYTES} are taken")]
    TooLong {
        /// How much.
        bytes: u64,
    },
    /// They are of a version that this program does not know.
    #[error("they are written in version {0}, and this program knows version {VERSION}")]
    Version(u32),
    /// They are not what they should be.
    #[error("they are malformed ({0})")]
    Malformed(String),
    /// What arrived is not what was announced.
    #[error("they arrived damaged (their hash is not the one that was told)")]
    Damaged,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Encoded {
    #[n(0)]
    version: u32,
    #[n(1)]
    db_version: i64,
    #[cbor(n(2), with = "minicbor::bytes")]
    schema: [u8; 32],
    #[cbor(n(3), with = "minicbor::bytes")]
    ranges: Vec<u8>,
    #[n(4)]
    rows: Vec<EncodedRow>,
}

#[derive(Encode, Decode)]
struct EncodedRow {
    #[n(0)]
    table: u32,
    #[n(1)]
    name: ByteArray<16>,
    #[cbor(n(2), with = "minicbor::bytes")]
    key: Vec<u8>,
    #[n(3)]
    length: i64,
    #[n(4)]
    number: ByteArray<16>,
}

#[derive(Decode)]
#[cbor(map)]
struct VersionOnly {
    #[n(0)]
    version: u32,
}

/// How many rows with keys of so many bytes in all fit.
pub(super) fn fits(rows: usize, key_bytes: usize) -> bool {
    rows.saturating_mul(ROW_OVERHEAD).saturating_add(key_bytes) < MOST_BYTES - 4096
}

/// The bytes of rows.
pub(super) fn encode_rows(told: ToldRows) -> Vec<u8> {
    let row = |row: RowDigest| EncodedRow {
        table: row.table,
        name: row.name.to_le_bytes().into(),
        key: row.key,
        length: row.length,
        number: row.number.to_le_bytes().into(),
    };
    let encoded = Encoded {
        version: VERSION,
        db_version: told.version,
        schema: told.schema,
        ranges: bits(&told.ranges),
        rows: told.rows.into_iter().map(row).collect(),
    };
    // It holds nothing that CBOR cannot, and memory takes every write.
    minicbor::to_vec(encoded).unwrap_or_else(|error| unreachable!("rows could not be encoded: {error}"))
}

/// Reads rows. Takes memory by what is there, not by what is claimed.
///
/// # Errors
/// [`RowsError`].
pub fn decode_rows(bytes: &[u8]) -> Result<ToldRows, RowsError> {
    check_length(bytes.len() as u64)?;
    let malformed = |error: minicbor::decode::Error| RowsError::Malformed(error.to_string());
    let VersionOnly { version } = minicbor::decode(bytes).map_err(malformed)?;
    if version != VERSION {
        return Err(RowsError::Version(version));
    }
    let encoded: Encoded = minicbor::decode(bytes).map_err(malformed)?;
    let ranges = ranges_of(&encoded.ranges).ok_or_else(|| RowsError::Malformed("a range is none".into()))?;
    let row = |row: EncodedRow| RowDigest {
        table: row.table,
        name: u128::from_le_bytes(*row.name),
        key: row.key,
        length: row.length,
        number: u128::from_le_bytes(*row.number),
        id: 0,
    };
    let rows = encoded.rows.into_iter().map(row).collect();
    Ok(ToldRows { version: encoded.db_version, schema: encoded.schema, ranges, rows })
}

fn check_length(bytes: u64) -> Result<(), RowsError> {
    if bytes > MOST_BYTES as u64 { Err(RowsError::TooLong { bytes }) } else { Ok(()) }
}

/// A bit for each range.
fn bits(ranges: &[usize]) -> Vec<u8> {
    let mut bits = vec![0; RANGES / 8];
    for range in ranges {
        bits[range / 8] |= 1 << (range % 8);
    }
    bits
}

/// The ranges whose bits are set; `None` if there are not as many bits as ranges.
pub(super) fn ranges_of(bits: &[u8]) -> Option<Vec<usize>> {
    let is_set = |range: &usize| bits[range / 8] >> (range % 8) & 1 == 1;
    (bits.len() == RANGES / 8).then(|| (0..RANGES).filter(is_set).collect())
}

impl Client {
    /// The peer's rows in those of `ranges` that it tells: all but the last if they are too many.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::NotKnown`] of a peer that is too old to tell.
    pub async fn rows(&self, ranges: &[usize]) -> Result<ToldRows, ClientError> {
        let request = || Request::Rows { job: self.host().random(), ranges: bits(ranges) };
        let document = |answer| match answer {
            Answer::Rows { id, bytes, content } => {
                check_length(bytes)?;
                Ok(Document { id, bytes, content })
            }
            other => Err(unexpected(&other)),
        };
        let read = |bytes: Option<Vec<u8>>| decode_rows(&bytes.ok_or(RowsError::Damaged)?);
        Ok(self.document(request, document, read).await??)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    prop_compose! {
        fn row()(
            table in 0..2000_u32,
            name in any::<u128>(),
            key in vec(any::<u8>(), 0..40),
            length in any::<i64>(),
            number in any::<u128>(),
        ) -> RowDigest {
            RowDigest { table, name, key, length, number, id: 0 }
        }
    }

    proptest! {
        #[test]
        fn rows_survive(
            version in any::<i64>(),
            schema in any::<[u8; 32]>(),
            ranges in prop::collection::btree_set(0..RANGES, 0..30),
            rows in vec(row(), 0..30),
        ) {
            let told = ToldRows { version, schema, ranges: ranges.into_iter().collect(), rows };
            prop_assert_eq!(decode_rows(&encode_rows(told.clone())).unwrap(), told);
        }

        #[test]
        fn damage_does_no_harm(rows in vec(row(), 0..5), at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let mut bytes = encode_rows(ToldRows { version: 1, schema: [0; 32], ranges: vec![7], rows });
            let at = at.index(bytes.len());
            bytes[at] = with;
            let _ = decode_rows(&bytes);
        }
    }

    #[test]
    fn what_fits_is_taken() {
        let (name, number) = (u128::MAX, u128::MAX);
        let row = RowDigest { table: u32::MAX, name, key: vec![0; 100], length: i64::MAX, number, id: 0 };
        let most = (1..).find(|rows| !fits(*rows, rows * 100)).unwrap() - 1;
        let bytes =
            encode_rows(ToldRows { version: i64::MAX, schema: [0; 32], ranges: vec![1], rows: vec![row; most] });
        assert!(decode_rows(&bytes).is_ok() && bytes.len() > MOST_BYTES / 2, "{}", bytes.len());
        assert!(matches!(decode_rows(&vec![0; MOST_BYTES + 1]), Err(RowsError::TooLong { .. })));
        let later =
            minicbor::to_vec(Encoded { version: 2, db_version: 0, schema: [0; 32], ranges: vec![], rows: vec![] });
        assert!(matches!(decode_rows(&later.unwrap()), Err(RowsError::Version(2))));
    }
}
