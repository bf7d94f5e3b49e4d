//! The packs that a server has cut, kept for those who download them: small ones in memory, large ones and what
//! memory has no room for in files without a name, which are gone when they are closed, however the program ends.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::files;

/// What a server keeps at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct CacheLimits {
    /// Bytes of packs in memory, all together.
    pub(super) memory: usize,
    /// The largest pack that is kept in memory.
    pub(super) memory_pack: usize,
    /// Bytes of packs in files. A single pack may be larger.
    pub(super) disk: u64,
    /// The number of files.
    pub(super) files: usize,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self { memory: 32 << 20, memory_pack: 4 << 20, disk: 1 << 30, files: 128 }
    }
}

/// A pack in memory that nobody asked for in so long makes way for another.
const IDLE: Duration = Duration::from_secs(60);

/// Where a pack's bytes are. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Held {
    Memory(Arc<Vec<u8>>),
    File(Arc<File>),
}

impl Held {
    /// `length` bytes from `start` on, which lie within the pack. Blocks if the pack is in a file.
    pub(super) fn read(&self, start: u64, length: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::Memory(bytes) => {
                let start = usize::try_from(start).unwrap_or(usize::MAX);
                let range = bytes.get(start..start.saturating_add(length));
                range.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
            Self::File(file) => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, start)?;
                Ok(bytes)
            }
        }
    }
}

/// Takes the bytes of a pack as they are made.
pub(super) struct PackWriter {
    hash: blake3::Hasher,
    length: u64,
    memory: Vec<u8>,
    /// What memory may take; the rest, and all before it, goes to the file.
    room: usize,
    folder: Option<PathBuf>,
    file: Option<File>,
}

/// A whole pack. Cheap to clone.
#[derive(Clone)]
pub(super) struct Written {
    pub(super) id: [u8; 32],
    pub(super) length: u64,
    pub(super) held: Held,
}

impl PackWriter {
    /// Blocks, as all that writes.
    pub(super) fn finish(mut self) -> io::Result<Written> {
        let held = match self.file.take() {
            Some(mut file) => {
                file.write_all(&self.memory)?;
                Held::File(Arc::new(file))
            }
            None => {
                self.memory.shrink_to_fit();
                Held::Memory(Arc::new(self.memory))
            }
        };
        Ok(Written { id: *self.hash.finalize().as_bytes(), length: self.length, held })
    }
}

impl Write for PackWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        self.memory.extend_from_slice(bytes);
        if self.memory.len() > self.room
            && self.file.is_none()
            && let Some(folder) = &self.folder
        {
            self.file = Some(files::nameless(folder)?);
        }
        // Once in a file, what is in memory is a buffer.
        if let Some(file) = &mut self.file
            && self.memory.len() >= 64 * 1024
        {
            file.write_all(&self.memory)?;
            self.memory.clear();
            self.memory.shrink_to(128 * 1024);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Kept {
    length: u64,
    held: Held,
    used: Instant,
}

/// Packs by hash.
pub(super) struct PackCache {
    limits: CacheLimits,
    /// Where files are made; without it everything is in memory.
    folder: Option<PathBuf>,
    packs: HashMap<[u8; 32], Kept>,
    /// Hashes, the most recently used last.
    order: VecDeque<[u8; 32]>,
}

impl PackCache {
    pub(super) fn new(folder: Option<PathBuf>, limits: CacheLimits) -> Self {
        Self { limits, folder, packs: HashMap::new(), order: VecDeque::new() }
    }

    /// A pack's length, and where its bytes are.
    pub(super) fn get(&mut self, id: &[u8; 32], now: Instant) -> Option<(u64, Held)> {
        let kept = self.packs.get_mut(id)?;
        kept.used = now;
        let found = (kept.length, kept.held.clone());
        self.touch(id);
        Some(found)
    }

    /// What the next pack is to be written to.
    pub(super) fn writer(&self, now: Instant) -> PackWriter {
        let busy = self.in_memory().filter(|kept| now.saturating_duration_since(kept.used) < IDLE);
        let room = self.limits.memory.saturating_sub(total(busy) as usize).min(self.limits.memory_pack);
        PackWriter {
            hash: blake3::Hasher::new(),
            length: 0,
            memory: Vec::new(),
            room,
            folder: self.folder.clone(),
            file: None,
        }
    }

    /// Keeps a pack, and drops those that were used least recently as far as the limits demand.
    pub(super) fn put(&mut self, Written { id, length, held }: Written, now: Instant) {
        self.touch(&id);
        self.packs.entry(id).or_insert(Kept { length, held, used: now }).used = now;
        while total(self.in_memory()) > self.limits.memory as u64
            && self.drop_oldest(&id, |held| matches!(held, Held::Memory(_)))
        {}
        while (total(self.in_files()) > self.limits.disk || self.in_files().count() > self.limits.files)
            && self.drop_oldest(&id, |held| matches!(held, Held::File(_)))
        {}
    }

    /// Drops the oldest pack of a kind, but not `but`; whether there was one.
    fn drop_oldest(&mut self, but: &[u8; 32], kind: impl Fn(&Held) -> bool) -> bool {
        let is_kind = |id: &[u8; 32]| self.packs.get(id).is_some_and(|kept| kind(&kept.held));
        let Some(at) = self.order.iter().position(|id| id != but && is_kind(id)) else { return false };
        self.order.remove(at).is_some_and(|id| self.packs.remove(&id).is_some())
    }

    fn in_memory(&self) -> impl Iterator<Item = &Kept> {
        self.packs.values().filter(|kept| matches!(kept.held, Held::Memory(_)))
    }

    fn in_files(&self) -> impl Iterator<Item = &Kept> {
        self.packs.values().filter(|kept| matches!(kept.held, Held::File(_)))
    }

    fn touch(&mut self, id: &[u8; 32]) {
        if self.order.back() == Some(id) {
            return;
        }
        self.order.retain(|known| known != id);
        self.order.push_back(*id);
    }
}

fn total<'a>(packs: impl Iterator<Item = &'a Kept>) -> u64 {
    packs.map(|kept| kept.length).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CacheLimits = CacheLimits { memory: 1000, memory_pack: 400, disk: 5000, files: 3 };

    fn put(cache: &mut PackCache, byte: u8, length: usize, now: Instant) -> [u8; 32] {
        let mut writer = cache.writer(now);
        for part in vec![byte; length].chunks(7) {
            writer.write_all(part).unwrap();
        }
        let written = writer.finish().unwrap();
        let id = written.id;
        assert_eq!(id, *blake3::hash(&vec![byte; length]).as_bytes());
        cache.put(written, now);
        id
    }

    fn read(cache: &mut PackCache, id: &[u8; 32], now: Instant) -> Option<Vec<u8>> {
        let (length, held) = cache.get(id, now)?;
        Some(held.read(0, usize::try_from(length).unwrap()).unwrap())
    }

    #[test]
    fn memory_is_bounded_and_the_rest_goes_to_files() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = PackCache::new(Some(folder.path().to_owned()), LIMITS);
        let now = Instant::now();
        let ids: Vec<_> = (0..5).map(|byte| put(&mut cache, byte, 300, now)).collect();
        let large = put(&mut cache, 9, 4000, now);
        assert_eq!((total(cache.in_memory()), cache.in_files().count()), (900, 3));
        for (byte, id) in (0..).zip(&ids) {
            assert_eq!(read(&mut cache, id, now), Some(vec![byte; 300]));
        }
        assert_eq!(read(&mut cache, &large, now), Some(vec![9; 4000]));
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "the files have no names");

        // Files are dropped by their number, memory is freed for what comes when nobody wants it any more.
        let another = put(&mut cache, 10, 300, now);
        assert!(cache.get(&ids[3], now).is_none() && cache.get(&another, now).is_some());
        let later = now + IDLE;
        let latest = put(&mut cache, 11, 300, later);
        assert!(matches!(cache.get(&latest, later), Some((300, Held::Memory(_)))));
        assert_eq!(total(cache.in_memory()), 900);
    }

    #[test]
    fn a_pack_beyond_all_limits_is_kept_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = PackCache::new(Some(folder.path().to_owned()), LIMITS);
        let now = Instant::now();
        let small = put(&mut cache, 1, 500, now);
        let large = put(&mut cache, 2, 100_000, now);
        assert!(cache.get(&small, now).is_none());
        assert_eq!(read(&mut cache, &large, now), Some(vec![2; 100_000]));
        let (_, held) = cache.get(&large, now).unwrap();
        assert_eq!(held.read(99_990, 10).unwrap(), [2; 10]);
        assert!(held.read(99_990, 11).is_err());
    }

    #[test]
    fn without_a_folder_everything_is_in_memory() {
        let mut cache = PackCache::new(None, LIMITS);
        let now = Instant::now();
        let ids: Vec<_> = (0..5).map(|byte| put(&mut cache, byte, 300, now)).collect();
        assert!(cache.get(&ids[1], now).is_none());
        assert_eq!(read(&mut cache, &ids[4], now), Some(vec![4; 300]));
        assert_eq!(total(cache.in_memory()), 900);
    }
}
