//! Offers that turned out to hold nothing: all that was read was written by the reader itself. To find that out takes as
//! long as there are changes, and anybody may claim to be the site that wrote most of them. So what was found is kept: the
//! same is not read again, and what was not read yet is read for one reader a small part of the time only.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::changeset::{Cursor, SiteId};

/// What is read in less is not worth keeping.
pub(super) const SHORT: Duration = Duration::from_millis(50);

/// After a reading without result comes a rest so many times as long, and no longer than [`LONGEST_REST`], before
/// something else is read for the same reader.
const REST: u32 = 10;
const LONGEST_REST: Duration = Duration::from_secs(20);

/// Readers that are kept; of more, the one that was read for longest ago leaves.
const MOST_READERS: usize = 256;

/// What is known of readers.
#[derive(Default)]
pub(super) struct Fruitless {
    stretches: HashMap<SiteId, Stretch>,
}

/// Everything between two places, which holds nothing for a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    /// The database that it was found in.
    source: SiteId,
    from: Cursor,
    end: Cursor,
    read: Instant,
    /// Until then nothing else is read for the reader.
    rests: Instant,
}

/// From where to read on for a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// From here.
    At(Cursor),
    /// Not yet.
    Later,
}

impl Fruitless {
    /// Whether anything is known of `reader`.
    pub(super) fn knows(&self, reader: &SiteId) -> bool {
        self.stretches.contains_key(reader)
    }

    /// From where to read for `reader`, who has everything up to `after`, in the database `source` at `version`.
    pub(super) fn start(
        &mut self,
        reader: &SiteId,
        after: Cursor,
        source: &SiteId,
        version: i64,
        now: Instant,
    ) -> Start {
        let Some(stretch) = self.stretches.get(reader) else { return Start::At(after) };
        // One that went back in time may have other changes at the same places.
        if stretch.source != *source || version < stretch.end.version {
            self.stretches.remove(reader);
            return Start::At(after);
        }
        match after {
            after if stretch.from <= after && after <= stretch.end => Start::At(stretch.end),
            after if stretch.end < after || stretch.rests <= now => Start::At(after),
            _ => Start::Later,
        }
    }

    /// Notes that there was nothing for `reader` between `from` and `end`, which was read from `began` to `now`.
    pub(super) fn note(
        &mut self,
        reader: SiteId,
        source: SiteId,
        (from, end): (Cursor, Cursor),
        (began, now): (Instant, Instant),
    ) {
        let took = now.saturating_duration_since(began);
        let known = self.stretches.get(&reader).copied();
        let adjoins = known.filter(|known| known.source == source && known.from <= end && from <= known.end);
        if took < SHORT && adjoins.is_none() {
            return;
        }
        let (from, end) = adjoins.map_or((from, end), |known| (known.from.min(from), known.end.max(end)));
        let rests = now + (took * REST).min(LONGEST_REST);
        self.stretches.insert(reader, Stretch { source, from, end, read: now, rests });
        if self.stretches.len() > MOST_READERS {
            let oldest = self.stretches.iter().min_by_key(|(_, stretch)| stretch.read).map(|(reader, _)| *reader);
            oldest.map(|oldest| self.stretches.remove(&oldest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(byte: u8) -> SiteId {
        SiteId::from_bytes(&[byte; 16]).unwrap()
    }

    #[test]
    fn what_holds_nothing_is_read_once() {
        let (began, mut known) = (Instant::now(), Fruitless::default());
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let whole = Cursor::whole;
        known.note(site(1), site(9), (whole(10), whole(20)), (at(0), at(1)));
        let mut start =
            |reader, after, version, now| known.start(&site(reader), whole(after), &site(9), version, at(now));
        assert_eq!(start(1, 10, 25, 2), Start::At(whole(20)));
        assert_eq!(start(1, 15, 25, 2), Start::At(whole(20)));
        assert_eq!(start(1, 22, 25, 2), Start::At(whole(22)), "what is new is read at once");
        assert_eq!(start(2, 0, 25, 2), Start::At(whole(0)), "for another reader");
        assert_eq!(start(1, 5, 25, 2), Start::Later);
        assert_eq!(start(1, 5, 25, 11), Start::At(whole(5)), "after ten times as long as it took");
        known.note(site(1), site(9), (whole(5), whole(20)), (at(11), at(12)));
        assert_eq!(known.start(&site(1), whole(7), &site(9), 25, at(13)), Start::At(whole(20)));
        known.note(site(1), site(9), (whole(20), whole(30)), (at(13), at(13)));
        assert_eq!(known.start(&site(1), whole(7), &site(9), 30, at(14)), Start::At(whole(30)), "they are joined");
        assert_eq!(known.start(&site(1), whole(7), &site(9), 29, at(14)), Start::At(whole(7)), "it went back in time");
        known.note(site(1), site(9), (whole(5), whole(20)), (at(11), at(12)));
        assert_eq!(
            known.start(&site(1), whole(7), &site(8), 25, at(14)),
            Start::At(whole(7)),
            "it is another database"
        );
    }

    #[test]
    fn readers_are_bounded_and_what_was_quick_is_not_kept() {
        let (began, mut known) = (Instant::now(), Fruitless::default());
        let all = (Cursor::ZERO, Cursor::whole(9));
        known.note(site(1), site(9), all, (began, began + SHORT / 2));
        assert!(known.stretches.is_empty());
        for reader in 0..=u8::MAX {
            known.note(site(reader), site(9), all, (began, began + Duration::from_secs(u64::from(reader) + 1)));
        }
        known.note(SiteId::from_bytes(b"one more").unwrap(), site(9), all, (began, began + Duration::from_secs(999)));
        assert_eq!(known.stretches.len(), MOST_READERS);
        assert!(!known.stretches.contains_key(&site(0)));
    }
}
