use std::io::{self, Write};

use super::{BundleEnd, BundleHeader, END, MAGIC, PACK, VERSION};
use crate::changeset::{
    Cursor, Pack, PackId,
    wire::{put_int, put_uint},
};

/// Writes a bundle: the header at once, then packs, then the end, without which nobody takes it.
pub struct BundleWriter<W> {
    output: W,
    hasher: blake3::Hasher,
    bytes: u64,
    packs: u64,
    changes: u64,
}

impl<W: Write> BundleWriter<W> {
    /// Begins a bundle.
    ///
    /// # Errors
    /// Those of `output`.
    pub fn new(output: W, header: &BundleHeader) -> io::Result<Self> {
        let mut writer = Self { output, hasher: blake3::Hasher::new(), bytes: 0, packs: 0, changes: 0 };
        let header = header.encode();
        let mut start = MAGIC.to_vec();
        put_uint(&mut start, VERSION);
        put_uint(&mut start, header.len() as u64);
        writer.put(&start)?;
        writer.put(&header)?;
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
        self.put(&head)?;
        self.put(&bytes)?;
        self.packs += 1;
        self.changes += pack.changes.len() as u64;
        Ok(())
    }

    /// Ends the bundle: nothing is missing up to `to`. Gives the output back.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self, to: Cursor) -> io::Result<(W, BundleEnd)> {
        let mut end = vec![END];
        put_cursor(&mut end, to);
        put_uint(&mut end, self.packs);
        put_uint(&mut end, self.changes);
        self.put(&end)?;
        let hash = self.hasher.finalize();
        self.put(hash.as_bytes())?;
        self.output.flush()?;
        Ok((self.output, BundleEnd { to, packs: self.packs, changes: self.changes, bytes: self.bytes }))
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
