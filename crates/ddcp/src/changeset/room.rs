//! The memory of this process for what is unpacked. A small pack may become large, and several remotes are fetched from
//! while another's changes are merged: what all of them unpack at one time is bounded together, and whoever comes when
//! nothing is left waits.

use std::{
    ops::Deref,
    sync::{Condvar, Mutex, PoisonError},
};

use super::{
    Change, Limits, Pack, PackError,
    codec::{claimed_length, memory_of},
};

/// Bytes for all that is unpacked at one time: the largest pack that [`Limits::default`] allows, with what is made of it.
const MOST: usize = 2_600_000_000;

static ALL: Keeper = Keeper::new(MOST);

/// Hands out memory of a fixed amount.
struct Keeper {
    most: usize,
    free: Mutex<usize>,
    freed: Condvar,
    /// Held by the one that is next, so that many who want little do not keep one who wants much waiting for ever.
    next: Mutex<()>,
}

impl Keeper {
    const fn new(most: usize) -> Self {
        Self { most, free: Mutex::new(most), freed: Condvar::new(), next: Mutex::new(()) }
    }

    /// Waits until so many bytes are free. Whoever wants more than there ever are gets all, and is alone.
    fn take(&self, bytes: usize) -> usize {
        let bytes = bytes.min(self.most);
        let _next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.freed.wait_while(free, |free| *free < bytes).unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
        bytes
    }

    fn give_back(&self, bytes: usize) {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += bytes;
        self.freed.notify_all();
    }
}

/// Memory that was taken for something unpacked, until it is dropped. Who has some waits for no more of it.
#[must_use]
#[derive(Debug)]
pub struct Room {
    bytes: usize,
}

impl Room {
    fn take(bytes: usize) -> Self {
        Self { bytes: ALL.take(bytes) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        ALL.give_back(self.bytes);
    }
}

/// Waits for the memory that these packs take once they are unpacked, all together. Blocks.
pub fn room_for<'a>(encoded: impl IntoIterator<Item = &'a [u8]>, limits: &Limits) -> Room {
    let each = encoded.into_iter().map(|encoded| memory_of(encoded, limits, true));
    Room::take(each.fold(0, usize::saturating_add))
}

/// So many times as large as it is an honest pack becomes at most when it is unpacked, all but a few.
const UNPACKED_MORE: u64 = 16;

/// The bytes for which a pack counts of which `length` are there, that begin with `head`: more than those if it becomes
/// many more when it is unpacked.
#[must_use]
pub fn charge(length: u64, head: &[u8]) -> u64 {
    length.max(claimed_length(head, &Limits::of_stored()) as u64 / UNPACKED_MORE)
}

/// As [`Pack::inspect`], once there is memory for it. Blocks.
///
/// # Errors
/// As [`Pack::inspect`].
pub fn inspect(encoded: &[u8], limits: &Limits, look: impl FnMut(&Change)) -> Result<(Pack, usize), PackError> {
    let _room = Room::take(memory_of(encoded, limits, false));
    Pack::inspect(encoded, limits, look)
}

/// A pack, and the memory that was taken for it.
#[derive(Debug)]
pub struct Unpacked {
    pack: Pack,
    _room: Room,
}

impl Unpacked {
    /// As [`Pack::decode`], once there is memory for it. Blocks; whoever has one must not wait for another.
    ///
    /// # Errors
    /// As [`Pack::decode`].
    pub fn decode(encoded: &[u8], limits: &Limits) -> Result<Self, PackError> {
        let room = room_for([encoded], limits);
        Ok(Self { pack: Pack::decode(encoded, limits)?, _room: room })
    }
}

impl Deref for Unpacked {
    type Target = Pack;

    fn deref(&self) -> &Pack {
        &self.pack
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    #[test]
    fn what_is_unpacked_at_one_time_is_bounded_together() {
        static FEW: Keeper = Keeper::new(100);
        let first = FEW.take(60);
        let (got, gets) = mpsc::channel();
        thread::spawn(move || got.send(FEW.take(50)));
        assert!(gets.recv_timeout(Duration::from_millis(50)).is_err(), "110 of 100");
        FEW.give_back(first);
        let second = gets.recv_timeout(Duration::from_secs(60)).unwrap();
        FEW.give_back(second);
        assert_eq!(FEW.take(1000), 100, "more than there is is all of it");
    }

    /// Somebody who wants much is not passed by those who come later and want little.
    #[test]
    fn who_wants_much_has_a_turn() {
        static FEW: Keeper = Keeper::new(100);
        FEW.take(50);
        let (got, gets) = mpsc::channel();
        let much = got.clone();
        thread::spawn(move || much.send(("much", FEW.take(100))));
        thread::sleep(Duration::from_millis(50));
        thread::spawn(move || got.send(("little", FEW.take(1))));
        assert!(gets.recv_timeout(Duration::from_millis(50)).is_err());
        FEW.give_back(50);
        assert_eq!(gets.recv_timeout(Duration::from_secs(60)).unwrap(), ("much", 100));
        FEW.give_back(100);
        assert_eq!(gets.recv_timeout(Duration::from_secs(60)).unwrap().0, "little");
    }
}
