use std::io::{BufReader, Read};

use super::{
    BundleEnd, BundleError, BundleHeader, BundledPack, END, MAGIC, MAX_HEADER, MAX_PACK, PACK, SIGNATURE, VERSION,
    cursor,
};
use crate::changeset::{
    Cursor, PackId,
    wire::{MAX_UINT, Reader},
};

/// Reads a bundle, from anybody: memory is bounded by the largest pack, and grows as bytes arrive, not as they are
/// announced.
pub struct BundleReader<R> {
    input: Hashed<R>,
    header: BundleHeader,
    /// The end of the pack before.
    reached: Cursor,
    packs: u64,
    changes: u64,
    end: Option<BundleEnd>,
    /// The most bytes of a pack that are taken.
    pack_bytes: u64,
}

impl<R: Read> BundleReader<R> {
    /// Reads the header, and leaves the packs to be read by [`BundleReader::next_pack`].
    ///
    /// The header is only sure to be what was written once [`BundleReader::end`] is there.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn open(input: R) -> Result<Self, BundleError> {
        let (hasher, heads) = (blake3::Hasher::new(), blake3::Hasher::new());
        let mut input = Hashed { input: BufReader::new(input), hasher, heads, bytes: 0 };
        match input.take(MAGIC.len()) {
            Ok(magic) if magic == MAGIC => {}
            Ok(_) | Err(BundleError::CutShort) => return Err(BundleError::NotABundle),
            Err(error) => return Err(error),
        }
        match input.uint()? {
            VERSION => {}
            other => return Err(BundleError::Version(other)),
        }
        let length = input.size("bytes in its header", MAX_HEADER as u64)?;
        let mut encoded = input.take_content(length)?;
        let header = BundleHeader::decode(&encoded)?;
        if header.signature.is_some() {
            let at = encoded.len() - SIGNATURE;
            encoded[at..].fill(0);
        }
        input.heads.update(&encoded);
        Ok(Self { input, reached: header.from, header, packs: 0, changes: 0, end: None, pack_bytes: MAX_PACK })
    }

    /// The same, which takes packs of at most so many bytes.
    #[must_use]
    pub fn with_pack_bytes(self, most: u64) -> Self {
        Self { pack_bytes: most.min(MAX_PACK), ..self }
    }

    /// What stands at the front.
    pub fn header(&self) -> &BundleHeader {
        &self.header
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.input.bytes
    }

    /// What stands at the end, once all packs are read and every byte is known to be what was written.
    pub fn end(&self) -> Option<BundleEnd> {
        self.end
    }

    /// What the header's signature must be of, once all packs are read; `None` of a bundle that has none.
    pub fn signed(&self) -> Option<Vec<u8>> {
        let signature = self.header.signature.filter(|_| self.end.is_some())?;
        Some(signature.text(&self.input.heads.finalize()))
    }

    /// The next pack; none behind the last, and then [`BundleReader::end`] is there.
    ///
    /// # Errors
    /// [`BundleError`]; nothing more can be read then.
    pub fn next_pack(&mut self) -> Result<Option<BundledPack>, BundleError> {
        if self.end.is_some() {
            return Ok(None);
        }
        match self.input.take(1)?.as_slice() {
            [PACK] => self.pack().map(Some),
            [END] => {
                self.end = Some(self.read_end()?);
                Ok(None)
            }
            _ => Err(BundleError::Damaged("neither a pack nor the end follows")),
        }
    }

    fn pack(&mut self) -> Result<BundledPack, BundleError> {
        let length = self.input.size("bytes in a pack", self.pack_bytes)?;
        let id = PackId::from_bytes(self.input.array()?);
        let (from, to) = (self.input.cursor()?, self.input.cursor()?);
        let changes = self.input.uint()?;
        if from < self.reached || to <= from {
            return Err(BundleError::Damaged("its packs are out of order"));
        }
        let bytes = self.input.take_content(length)?;
        if PackId::of(&bytes) != id {
            return Err(BundleError::Damaged("the hash of a pack is not what it says"));
        }
        self.reached = to;
        self.packs += 1;
        self.changes = self.changes.saturating_add(changes);
        Ok(BundledPack { number: self.packs, id, from, to, changes, bytes })
    }

    fn read_end(&mut self) -> Result<BundleEnd, BundleError> {
        let to = self.input.cursor()?;
        let (packs, changes) = (self.input.uint()?, self.input.uint()?);
        let hash = self.input.hasher.finalize();
        if self.input.take_content(32)? != hash.as_bytes() {
            return Err(BundleError::Damaged("the hash of the whole is not what it says"));
        }
        if (packs, changes) != (self.packs, self.changes) || to < self.reached {
            return Err(BundleError::Damaged("its end is not that of its packs"));
        }
        if !self.input.is_at_end()? {
            return Err(BundleError::Damaged("bytes are left over"));
        }
        Ok(BundleEnd { to, packs, changes, bytes: self.input.bytes })
    }
}

/// Reads bytes and hashes them.
struct Hashed<R> {
    input: BufReader<R>,
    hasher: blake3::Hasher,
    /// Of all but the bytes of packs.
    heads: blake3::Hasher,
    bytes: u64,
}

impl<R: Read> Hashed<R> {
    fn take(&mut self, length: usize) -> Result<Vec<u8>, BundleError> {
        let bytes = self.take_content(length)?;
        self.heads.update(&bytes);
        Ok(bytes)
    }

    /// As `take`, of what the hash of the heads leaves out.
    fn take_content(&mut self, length: usize) -> Result<Vec<u8>, BundleError> {
        let mut bytes = Vec::new();
        self.input.by_ref().take(length as u64).read_to_end(&mut bytes)?;
        if bytes.len() < length {
            return Err(BundleError::CutShort);
        }
        self.hasher.update(&bytes);
        self.bytes += length as u64;
        Ok(bytes)
    }

    fn array(&mut self) -> Result<[u8; 32], BundleError> {
        self.take(32)?.try_into().map_err(|_| BundleError::CutShort)
    }

    /// The bytes of one LEB128 number, read as the numbers of a pack are.
    fn number(&mut self) -> Result<Vec<u8>, BundleError> {
        let mut bytes = Vec::with_capacity(MAX_UINT);
        while bytes.len() < MAX_UINT {
            bytes.extend(self.take(1)?);
            if bytes.last().is_some_and(|byte| byte & 0x80 == 0) {
                return Ok(bytes);
            }
        }
        Err(NO_NUMBER)
    }

    fn uint(&mut self) -> Result<u64, BundleError> {
        Reader::new(&self.number()?).uint().ok_or(NO_NUMBER)
    }

    fn int(&mut self) -> Result<i64, BundleError> {
        Reader::new(&self.number()?).int().ok_or(NO_NUMBER)
    }

    fn cursor(&mut self) -> Result<Cursor, BundleError> {
        cursor(self.int()?, self.int()?)
    }

    fn size(&mut self, what: &'static str, limit: u64) -> Result<usize, BundleError> {
        let claimed = self.uint()?;
        match usize::try_from(claimed) {
            Ok(size) if claimed <= limit => Ok(size),
            _ => Err(BundleError::TooLarge { what, claimed, limit }),
        }
    }

    fn is_at_end(&mut self) -> Result<bool, BundleError> {
        Ok(self.input.by_ref().take(1).read_to_end(&mut Vec::new())? == 0)
    }
}

const NO_NUMBER: BundleError = BundleError::Damaged("a number is too long");
