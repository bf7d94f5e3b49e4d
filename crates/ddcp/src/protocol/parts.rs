//! What has arrived of packs that are being downloaded. Chunks of larger packs are written to files as they come, so
//! that a download goes on where it was broken off, in this process or a later one.
//!
//! A file has a record for each chunk, in the order of arrival: its number (4 bytes, little-endian) and its bytes.
//! Nothing in it is trusted: what was cut off in the middle is dropped, and the hash of the whole decides in the end.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{OfferedPack, message::CHUNK_BYTES};
use crate::{changeset::PackId, files};

/// Packs of at most so many chunks are held in memory until they are complete.
const SMALL: u32 = 4;

/// Bytes of a record besides its chunk.
const HEAD: u64 = 4;

/// Where parts of packs are kept. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    folder: Option<PathBuf>,
    /// Names of the files of packs that have been offered.
    offered: Arc<Mutex<HashSet<String>>>,
}

impl Parts {
    /// Keeps parts in memory only.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// Keeps parts in `folder`, which is made when it is needed. Only one may use it at a time.
    #[must_use]
    pub fn in_folder(folder: PathBuf) -> Self {
        Self { folder: Some(folder), offered: Arc::default() }
    }

    /// What there is of `pack`, or a new beginning. Blocks.
    pub(super) fn open(&self, pack: &OfferedPack, chunks: u32) -> io::Result<Assembly> {
        let store = match &self.folder {
            Some(folder) if chunks > SMALL => Store::File(PartFile::open(&folder.join(name_of(pack)), pack.bytes)?),
            _ => Store::Memory(vec![Vec::new(); chunks as usize]),
        };
        Ok(Assembly { id: pack.id, bytes: pack.bytes, store })
    }

    /// Notes that `pack` is offered.
    pub(super) fn note_offered(&self, pack: &OfferedPack) {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner).insert(name_of(pack));
    }

    /// Removes what there is of `pack`: it has been stored. Blocks.
    pub(super) fn remove(&self, pack: &OfferedPack) {
        if let Some(folder) = &self.folder {
            remove(&folder.join(name_of(pack)));
        }
    }

    /// Removes what there is of packs that have not been offered. Blocks.
    pub(super) fn remove_stale(&self) {
        let Some(Ok(entries)) = self.folder.as_ref().map(fs::read_dir) else { return };
        let offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_none_or(|name| !offered.contains(name)) {
                remove(&entry.path());
            }
        }
    }
}

fn name_of(pack: &OfferedPack) -> String {
    use std::fmt::Write;
    let mut name = String::with_capacity(2 * pack.id.len());
    for byte in pack.id {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// What is left behind costs space only, and is looked at again after the next fetch.
fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "parts of a download cannot be removed");
        }
        _ => {}
    }
}

/// A pack in the making.
#[derive(Debug)]
pub(super) struct Assembly {
    id: [u8; 32],
    bytes: u64,
    store: Store,
}

#[derive(Debug)]
enum Store {
    /// By index; empty where none has arrived.
    Memory(Vec<Vec<u8>>),
    File(PartFile),
}

/// Why a pack could not be put together.
#[derive(Debug)]
pub(super) enum AssemblyError {
    /// Its hash is not its id. Whether some of it was there before this fetch began.
    Damaged {
        resumed: bool,
    },
    Io(io::Error),
}

impl Assembly {
    /// A pack that came whole.
    pub(super) fn whole(pack: &OfferedPack, content: Vec<u8>) -> Self {
        Self { id: pack.id, bytes: pack.bytes, store: Store::Memory(vec![content]) }
    }

    /// The chunks that have not arrived.
    pub(super) fn missing(&self) -> Vec<u32> {
        let is_missing: Vec<bool> = match &self.store {
            Store::Memory(chunks) => chunks.iter().map(Vec::is_empty).collect(),
            Store::File(file) => file.places.iter().map(Option::is_none).collect(),
        };
        (0..).zip(is_missing).filter_map(|(index, missing)| missing.then_some(index)).collect()
    }

    /// Takes chunks that arrived. Blocks.
    pub(super) fn put(&mut self, arrived: Vec<(u32, Vec<u8>)>) -> io::Result<()> {
        for (index, chunk) in arrived {
            match &mut self.store {
                Store::Memory(chunks) => {
                    if let Some(place) = chunks.get_mut(index as usize) {
                        *place = chunk;
                    }
                }
                Store::File(file) => file.append(index, &chunk)?,
            }
        }
        Ok(())
    }

    /// The pack's bytes, if they are what its id says; otherwise what there is of it is removed. Blocks.
    pub(super) fn finish(self) -> Result<Vec<u8>, AssemblyError> {
        let resumed = matches!(&self.store, Store::File(file) if file.resumed);
        let (bytes, path) = match self.store {
            Store::Memory(mut chunks) if chunks.len() == 1 => (chunks.remove(0), None),
            Store::Memory(chunks) => (chunks.concat(), None),
            Store::File(file) => (file.read(self.bytes).map_err(AssemblyError::Io)?, Some(file.path)),
        };
        if bytes.len() as u64 == self.bytes && *PackId::of(&bytes).as_bytes() == self.id {
            return Ok(bytes);
        }
        if let Some(path) = path {
            remove(&path);
        }
        Err(AssemblyError::Damaged { resumed })
    }
}

/// Parts of one pack on disk.
#[derive(Debug)]
struct PartFile {
    path: PathBuf,
    file: File,
    end: u64,
    /// Where the bytes of each chunk are.
    places: Vec<Option<u64>>,
    /// Bytes of the pack.
    bytes: u64,
    /// Something was there when it was opened.
    resumed: bool,
}

impl PartFile {
    fn open(path: &Path, bytes: u64) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            files::create_private_dir(folder, files::Owner::of_folder(folder))?;
        }
        let file = files::open_private(path)?;
        let chunks = usize::try_from(bytes.div_ceil(CHUNK_BYTES as u64)).unwrap_or(usize::MAX);
        let mut parts = Self { path: path.to_owned(), file, end: 0, places: vec![None; chunks], bytes, resumed: false };
        parts.scan()?;
        Ok(parts)
    }

    /// Finds the whole records at the start, and drops what is behind them.
    fn scan(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let mut head = [0; HEAD as usize];
        while self.end + HEAD <= length {
            self.file.read_exact_at(&mut head, self.end)?;
            let index = u32::from_le_bytes(head);
            let Some(size) = self.size_of(index).filter(|size| self.end + HEAD + size <= length) else { break };
            self.places[index as usize] = Some(self.end + HEAD);
            self.end += HEAD + size;
        }
        self.resumed = self.end > 0;
        self.file.set_len(self.end)
    }

    fn size_of(&self, index: u32) -> Option<u64> {
        let rest = self.bytes.checked_sub(u64::from(index) * CHUNK_BYTES as u64)?;
        (rest > 0).then_some(rest.min(CHUNK_BYTES as u64))
    }

    fn append(&mut self, index: u32, chunk: &[u8]) -> io::Result<()> {
        let mut record = Vec::with_capacity(HEAD as usize + chunk.len());
        record.extend(index.to_le_bytes());
        record.extend_from_slice(chunk);
        self.file.write_all_at(&record, self.end)?;
        if let Some(place) = self.places.get_mut(index as usize) {
            *place = Some(self.end + HEAD);
        }
        self.end += record.len() as u64;
        Ok(())
    }

    fn read(&self, bytes: u64) -> io::Result<Vec<u8>> {
        let mut whole = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        for (chunk, place) in whole.chunks_mut(CHUNK_BYTES).zip(&self.places) {
            let place = place.ok_or(io::ErrorKind::UnexpectedEof)?;
            self.file.read_exact_at(chunk, place)?;
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changeset::Cursor;

    fn pack(bytes: &[u8]) -> OfferedPack {
        let (from, to) = (Cursor::ZERO, Cursor::whole(1));
        OfferedPack { id: *PackId::of(bytes).as_bytes(), bytes: bytes.len() as u64, changes: 1, from, to }
    }

    fn content(chunks: usize) -> Vec<u8> {
        (0..chunks * CHUNK_BYTES - 7).map(|i| (i / 1000) as u8).collect()
    }

    fn chunks_of(bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        (0..).zip(bytes.chunks(CHUNK_BYTES).map(<[u8]>::to_vec)).collect()
    }

    fn names(folder: &Path) -> usize {
        folder.read_dir().map_or(0, Iterator::count)
    }

    #[test]
    fn a_pack_is_put_together_from_chunks_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        for count in [1, 3, 9] {
            let bytes = content(count);
            let pack = pack(&bytes);
            let chunks = u32::try_from(count).unwrap();
            for parts in [Parts::in_memory(), Parts::in_folder(folder.path().join("parts"))] {
                let mut assembly = parts.open(&pack, chunks).unwrap();
                assert_eq!(assembly.missing(), (0..chunks).collect::<Vec<_>>());
                let mut arrived = chunks_of(&bytes);
                arrived.reverse();
                assembly.put(arrived).unwrap();
                assert!(assembly.missing().is_empty());
                assert_eq!(assembly.finish().unwrap(), bytes);
                parts.remove(&pack);
            }
        }
        assert_eq!(names(&folder.path().join("parts")), 0);
    }

    #[test]
    fn what_was_broken_off_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let parts = || Parts::in_folder(folder.path().to_owned());
        let bytes = content(9);
        let pack = pack(&bytes);
        let mut arrived = chunks_of(&bytes);
        let rest = arrived.split_off(5);
        let mut assembly = parts().open(&pack, 9).unwrap();
        assembly.put(arrived).unwrap();
        drop(assembly);
        // Half a record, as of a process that was killed while it wrote.
        let path = folder.path().join(name_of(&pack));
        let length = fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(length - 100).unwrap();

        let mut assembly = parts().open(&pack, 9).unwrap();
        assert_eq!(assembly.missing(), [4, 5, 6, 7, 8]);
        assembly.put(rest).unwrap();
        assembly.put(vec![(4, chunks_of(&bytes)[4].1.clone())]).unwrap();
        assert_eq!(assembly.finish().unwrap(), bytes);
    }

    #[test]
    fn damage_is_found_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let parts = Parts::in_folder(folder.path().to_owned());
        let bytes = content(9);
        let pack = pack(&bytes);
        let mut assembly = parts.open(&pack, 9).unwrap();
        assembly.put(chunks_of(&bytes)).unwrap();
        let path = folder.path().join(name_of(&pack));
        File::options().write(true).open(&path).unwrap().write_all_at(b"damage", 70_000).unwrap();
        let assembly = parts.open(&pack, 9).unwrap();
        assert!(assembly.missing().is_empty());
        assert!(matches!(assembly.finish(), Err(AssemblyError::Damaged { resumed: true })));
        assert_eq!(names(folder.path()), 0);
        // A file that never was one of these begins anew.
        fs::write(&path, [0xff; 100_000]).unwrap();
        assert_eq!(parts.open(&pack, 9).unwrap().missing().len(), 9);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn parts_of_packs_that_are_not_offered_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (content(5), content(6));
        let parts = Parts::in_folder(folder.path().to_owned());
        for bytes in [&old, &new] {
            parts.open(&pack(bytes), 9).unwrap().put(chunks_of(bytes)).unwrap();
        }
        parts.note_offered(&pack(&new));
        parts.remove_stale();
        assert_eq!(names(folder.path()), 1);
        assert!(parts.open(&pack(&new), 6).unwrap().missing().is_empty());
    }
}
