use std::io::{self, Read, Seek, SeekFrom, Write};

use super::{BundleEnd, BundleHeader, BundleSignature, END, MAGIC, PACK, SIGNATURE, VERSION};
use crate::changeset::{
    Cursor, Pack, PackId,
    wire::{put_int, put_uint},
};

/// Bytes of the hash of the whole.
const HASH: u64 = 32;

/// Writes a bundle: the header at once, then packs, then the end, without which nobody takes it.
pub struct BundleWriter<W> {
    output: W,
    hasher: blake3::Hasher,
    /// Of all but the bytes of packs; what is signed is made of it.
    heads: blake3::Hasher,
    /// Who is to sign, and where the signature goes.
    signature: Option<(BundleSignature, u64)>,
    bytes: u64,
    packs: u64,
    changes: u64,
}

/// A bundle that is whole but for the signature for which it has room.
#[derive(Clone, Debug)]
pub struct Unsigned {
    /// What is to be signed.
    pub text: Vec<u8>,
    /// Where the signature goes.
    at: u64,
}

impl Unsigned {
    /// Puts the signature into the bundle in `file`, and its hash behind it. Reads it all once.
    ///
    /// # Errors
    /// Those of `file`.
    pub fn sign(&self, signature: &[u8; SIGNATURE], file: &mut (impl Read + Write + Seek)) -> io::Result<()> {
        file.seek(SeekFrom::Start(self.at))?;
        file.write_all(signature)?;
        let end = file.seek(SeekFrom::End(0))?.saturating_sub(HASH);
        file.seek(SeekFrom::Start(0))?;
        let hash = blake3::Hasher::new().update_reader(Read::by_ref(file).take(end))?.finalize();
        file.seek(SeekFrom::Start(end))?;
        file.write_all(hash.as_bytes())
    }
}

impl<W: Write> BundleWriter<W> {
    /// Begins a bundle. One whose header has a signature has room for it: it must be signed when it is finished.
    ///
    /// # Errors
    /// Those of `output`.
    pub fn new(output: W, header: &BundleHeader) -> io::Result<Self> {
        let encoded = header.encode();
        let mut start = MAGIC.to_vec();
        put_uint(&mut start, VERSION);
        put_uint(&mut start, encoded.len() as u64);
        let at = (start.len() + encoded.len()).saturating_sub(SIGNATURE) as u64;
        let mut writer = Self {
            output,
            hasher: blake3::Hasher::new(),
            heads: blake3::Hasher::new(),
            signature: header.signature.map(|signature| (signature, at)),
            bytes: 0,
            packs: 0,
            changes: 0,
        };
        writer.put_head(&start)?;
        writer.put_head(&encoded)?;
        Ok(writer)
    }

    /// Adds a pack: of the header's source, behind the pack before.
    ///
    /// # Errors
    /// Those of the output.
    pub fn add(&mut self, pack: &Pack) -> io::Result<()> {
        let bytes = pack.encode();
        let mut head = vec![PACK];
        put_uint(&mut head, bytes.len() as u64);
        head.extend(PackId::of(&bytes).as_bytes());
        put_cursor(&mut head, pack.from);
        put_cursor(&mut head, pack.to);
        put_uint(&mut head, pack.changes.len() as u64);
        self.put_head(&head)?;
        self.put(&bytes)?;
        self.packs += 1;
        self.changes += pack.changes.len() as u64;
        Ok(())
    }

    /// Ends the bundle: nothing is missing up to `to`. Gives the output back, and what is left to do if it is to be signed.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self, to: Cursor) -> io::Result<(W, BundleEnd, Option<Unsigned>)> {
        let mut end = vec![END];
        put_cursor(&mut end, to);
        put_uint(&mut end, self.packs);
        put_uint(&mut end, self.changes);
        self.put_head(&end)?;
        let hash = self.hasher.finalize();
        self.put(hash.as_bytes())?;
        self.output.flush()?;
        let unsigned =
            self.signature.map(|(signature, at)| Unsigned { text: signature.text(&self.heads.finalize()), at });
        let end = BundleEnd { to, packs: self.packs, changes: self.changes, bytes: self.bytes };
        Ok((self.output, end, unsigned))
    }

    fn put_head(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.heads.update(bytes);
        self.put(bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.output.write_all(bytes)
    }
}

fn put_cursor(out: &mut Vec<u8>, cursor: Cursor) {
    put_int(out, cursor.version);
    put_int(out, cursor.seq);
}
