//! How the shared tables of a repository are declared: the bytes in which that travels, and the question for it.
//! `docs/formats.md` specifies the bytes. What the declarations say is not looked at here:
//! [`Declared`](crate::database::Declared) does.

use minicbor::{Decoder, Encoder, decode};

use super::{
    client::{Client, ClientError, unexpected},
    document::Document,
    message::{Answer, Request},
};
use crate::database::{BadDefinition, MAX_STATEMENTS, MAX_TABLES, TableDefinition, check_number};

/// The most bytes that declarations may take, encoded.
pub const MAX_DEFINITIONS_BYTES: usize = 8 << 20;

/// The version of the encoding.
const VERSION: u32 = 1;

/// Why declarations could not be told or understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DefinitionsError {
    /// They take too much room.
    #[error("they take {bytes} bytes; at most {MAX_DEFINITIONS_BYTES} are taken")]
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
    /// There are too many.
    #[error(transparent)]
    Bad(#[from] BadDefinition),
    /// What arrived is not what was announced.
    #[error("they arrived damaged (their hash is not the one that was told)")]
    Damaged,
}

/// The bytes of declarations.
///
/// # Errors
/// [`DefinitionsError::TooLong`], [`DefinitionsError::Bad`]: a reader would refuse them.
pub fn encode_definitions(definitions: &[TableDefinition]) -> Result<Vec<u8>, DefinitionsError> {
    check_number(definitions)?;
    let mut bytes = Vec::new();
    // Memory takes every write.
    encode(definitions, &mut Encoder::new(&mut bytes))
        .unwrap_or_else(|error| unreachable!("declarations could not be encoded: {error}"));
    check_length(bytes.len() as u64)?;
    Ok(bytes)
}

type EncodeResult = Result<(), minicbor::encode::Error<std::convert::Infallible>>;

fn encode(definitions: &[TableDefinition], encoder: &mut Encoder<&mut Vec<u8>>) -> EncodeResult {
    encoder.map(2)?.u8(0)?.u32(VERSION)?.u8(1)?.array(definitions.len() as u64)?;
    for TableDefinition { name, sql, indexes } in definitions {
        encoder.map(3)?.u8(0)?.str(name)?.u8(1)?.str(sql)?.u8(2)?.array(indexes.len() as u64)?;
        for index in indexes {
            encoder.str(index)?;
        }
    }
    Ok(())
}

/// Reads declarations. Takes memory by what is there, not by what is claimed.
///
/// # Errors
/// [`DefinitionsError`].
pub fn decode_definitions(bytes: &[u8]) -> Result<Vec<TableDefinition>, DefinitionsError> {
    check_length(bytes.len() as u64)?;
    let malformed = |error: decode::Error| DefinitionsError::Malformed(error.to_string());
    // The version first: of a later one the rest may be anything.
    let mut version = None;
    entries(&mut Decoder::new(bytes), |key, decoder| match key {
        0 => decoder.u32().map(|found| version = Some(found)),
        _ => decoder.skip(),
    })
    .map_err(malformed)?;
    match version {
        Some(VERSION) => {}
        Some(other) => return Err(DefinitionsError::Version(other)),
        None => return Err(DefinitionsError::Malformed("it has no version".into())),
    }
    let mut definitions = Vec::new();
    let mut decoder = Decoder::new(bytes);
    entries(&mut decoder, |key, decoder| match key {
        1 => tables(decoder).map(|found| definitions = found),
        _ => decoder.skip(),
    })
    .map_err(malformed)?;
    if decoder.position() != bytes.len() {
        return Err(DefinitionsError::Malformed("something follows the end".into()));
    }
    Ok(definitions)
}

fn check_length(bytes: u64) -> Result<(), DefinitionsError> {
    if bytes > MAX_DEFINITIONS_BYTES as u64 { Err(DefinitionsError::TooLong { bytes }) } else { Ok(()) }
}

/// Gives each entry of a map to `take`, which reads its value.
fn entries<'b>(
    decoder: &mut Decoder<'b>,
    mut take: impl FnMut(u64, &mut Decoder<'b>) -> Result<(), decode::Error>,
) -> Result<(), decode::Error> {
    let count = decoder.map()?.ok_or_else(|| decode::Error::message("a map has no length"))?;
    (0..count).try_for_each(|_| {
        let key = decoder.u64()?;
        take(key, decoder)
    })
}

/// The length of an array, of which there may be `most`.
fn length(decoder: &mut Decoder<'_>, most: usize) -> Result<usize, decode::Error> {
    let length = decoder.array()?.ok_or_else(|| decode::Error::message("a list has no length"))?;
    match usize::try_from(length) {
        Ok(length) if length <= most => Ok(length),
        _ => Err(decode::Error::message("a list is too long")),
    }
}

fn tables(decoder: &mut Decoder<'_>) -> Result<Vec<TableDefinition>, decode::Error> {
    let count = length(decoder, MAX_TABLES)?;
    let mut left = MAX_STATEMENTS - count;
    let mut tables = Vec::new();
    for _ in 0..count {
        let mut table = TableDefinition { name: String::new(), sql: String::new(), indexes: Vec::new() };
        entries(decoder, |key, decoder| {
            match key {
                0 => decoder.str()?.clone_into(&mut table.name),
                1 => decoder.str()?.clone_into(&mut table.sql),
                2 if table.indexes.is_empty() => {
                    let count = length(decoder, left)?;
                    left -= count;
                    for _ in 0..count {
                        table.indexes.push(decoder.str()?.to_owned());
                    }
                }
                _ => decoder.skip()?,
            }
            Ok(())
        })?;
        tables.push(table);
    }
    Ok(tables)
}

impl Client {
    /// How the peer's shared tables are declared. They are checked for their extent only.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::NotKnown`] of a peer that is too old to tell.
    pub async fn definitions(&self) -> Result<Vec<TableDefinition>, ClientError> {
        let request = || Request::Schema { job: self.host().random() };
        let document = |answer| match answer {
            Answer::Schema { id, bytes, content } => {
                check_length(bytes)?;
                Ok(Document { id, bytes, content })
            }
            other => Err(unexpected(&other)),
        };
        let read = |bytes: Option<Vec<u8>>| decode_definitions(&bytes.ok_or(DefinitionsError::Damaged)?);
        Ok(self.document(request, document, read).await??)
    }
}

#[cfg(test)]
pub(super) mod tests;
