//! What is too long for an answer and no pack: the answer names it by its hash, and it is read by `Chunk`, as a pack is.

use std::pin::pin;

use futures_util::{StreamExt, stream};
use minicbor::bytes::ByteVec;

use super::{
    client::{Client, ClientError, stopped},
    message::{Answer, CHUNK_BYTES, Request},
    window::MOST,
};

/// Times that the peer may drop it before it was downloaded.
const MOST_LOST: u32 = 4;

/// A document, as an answer names it.
pub(super) struct Document {
    /// The BLAKE3 hash of its bytes.
    pub(super) id: [u8; 32],
    /// Their number.
    pub(super) bytes: u64,
    /// All of them, if they came with the answer.
    pub(super) content: Option<ByteVec>,
}

impl Client {
    /// Asks by `request`, has `document` look at the answer, and its length, and downloads it. `read` gets the bytes, or
    /// nothing where they are not what was named.
    pub(super) async fn document<T: Send + 'static>(
        &self,
        request: impl Fn() -> Request,
        document: impl Fn(Answer) -> Result<Document, ClientError>,
        read: impl FnOnce(Option<Vec<u8>>) -> T + Send + 'static,
    ) -> Result<T, ClientError> {
        self.begin_to_measure();
        for _ in 0..MOST_LOST {
            let Document { id, bytes: length, content } = document(self.ask(request()).await?)?;
            let bytes = match content {
                Some(content) => Some(content.into()),
                None => self.download_all(id, length).await?,
            };
            let Some(bytes) = bytes else { continue };
            let work = move || {
                let is_whole = bytes.len() as u64 == length && blake3::hash(&bytes) == id;
                read(is_whole.then_some(bytes))
            };
            return self.host().blocking(work).await.ok_or_else(|| ClientError::Storage(stopped()));
        }
        Err(ClientError::PacksVanish)
    }

    /// What has the hash `id`, in memory; `None` if the peer drops it meanwhile.
    async fn download_all(&self, id: [u8; 32], length: u64) -> Result<Option<Vec<u8>>, ClientError> {
        let chunks = u32::try_from(length.div_ceil(CHUNK_BYTES as u64)).unwrap_or(u32::MAX);
        let mut arriving = pin!(stream::iter(0..chunks).map(|index| self.chunk(id, length, index)).buffered(MOST));
        let mut bytes = Vec::new();
        while let Some(chunk) = arriving.next().await {
            match chunk? {
                Some(chunk) => bytes.extend(chunk),
                None => return Ok(None),
            }
        }
        Ok(Some(bytes))
    }
}
