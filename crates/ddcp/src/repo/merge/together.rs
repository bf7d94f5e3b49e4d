//! Changes that waited in several packs, to be merged at once.

use std::{collections::HashSet, sync::Arc};

use crate::changeset::{Change, Cursor, Limits, Pack, PackTable, SiteId};

/// Packs that become one. What still waits afterwards is kept as parts of that one, so it is none that could not be
/// read again.
pub(super) struct Together {
    ids: Vec<i64>,
    pack: Pack,
    columns: HashSet<Arc<str>>,
    sites: HashSet<SiteId>,
}

impl Together {
    pub(super) fn of(site: &SiteId) -> Self {
        let (from, to) = (Cursor::ZERO, Cursor::ZERO);
        Self {
            ids: Vec::new(),
            pack: Pack { source: *site, from, to, tables: Vec::new(), changes: Vec::new() },
            columns: HashSet::new(),
            sites: HashSet::new(),
        }
    }

    /// Adds a pack; gives it back if one of its tables has another key than in a pack that was added, or if it would
    /// be too much.
    pub(super) fn add(&mut self, id: i64, pack: Pack) -> Result<(), Pack> {
        if !self.has_room(&pack) {
            return Err(pack);
        }
        let known = |table: &PackTable| self.pack.tables.iter().find(|known| known.name == table.name);
        if pack.tables.iter().any(|table| known(table).is_some_and(|known| known != table)) {
            return Err(pack);
        }
        let new: Vec<PackTable> = pack.tables.into_iter().filter(|table| known(table).is_none()).collect();
        self.pack.tables.extend(new);
        self.pack.to = self.pack.to.max(pack.to);
        for change in &pack.changes {
            self.columns.insert(Arc::clone(&change.cid));
            self.sites.insert(change.site_id);
        }
        self.pack.changes.extend(pack.changes);
        self.ids.push(id);
        Ok(())
    }

    /// Whether there is room for a pack: always for the first.
    fn has_room(&self, pack: &Pack) -> bool {
        let Limits { changes, names, .. } = Limits::PROTOCOL;
        let new_columns: HashSet<&str> =
            pack.changes.iter().map(|change| &*change.cid).filter(|cid| !self.columns.contains(*cid)).collect();
        let new_sites: HashSet<&SiteId> =
            pack.changes.iter().map(|change| &change.site_id).filter(|site| !self.sites.contains(*site)).collect();
        self.ids.is_empty()
            || self.pack.changes.len() + pack.changes.len() <= changes
                && self.pack.tables.len() + pack.tables.len() <= names
                && self.columns.len() + new_columns.len() <= names
                && self.sites.len() + new_sites.len() <= names
    }

    /// The changes as a pack has them: in order, and each once.
    pub(super) fn into_pack(self) -> (Vec<i64>, Pack) {
        let mut pack = self.pack;
        pack.changes.sort_by_key(Change::cursor);
        pack.changes.dedup();
        (self.ids, pack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changeset::Value;

    /// A pack with a site of its own for each change.
    fn pack(first: u32, changes: u32) -> Pack {
        let change = |n: u32| Change {
            table: "note".into(),
            pk: [1, 9, 1][..].into(),
            cid: "body".into(),
            val: Value::Null,
            col_version: 1,
            db_version: 1,
            site_id: SiteId::from_bytes(&n.to_be_bytes()).unwrap(),
            cl: 1,
            seq: 0,
        };
        let tables = vec![PackTable { name: "note".to_owned(), key_columns: vec!["id".to_owned()] }];
        let source = SiteId::from_bytes(&[1]).unwrap();
        let changes = (first..first + changes).map(change).collect();
        Pack { source, from: Cursor::ZERO, to: Cursor::whole(1), tables, changes }
    }

    #[test]
    fn what_waits_is_put_together_as_long_as_it_can_be_read_again() {
        let site = SiteId::from_bytes(&[1]).unwrap();
        let mut together = Together::of(&site);
        assert!(together.add(1, pack(0, 40_000)).is_ok());
        assert!(together.add(2, pack(0, 40_000)).is_ok(), "the same sites");
        let refused = together.add(3, pack(40_000, 40_000)).unwrap_err();
        assert!(together.add(4, pack(40_000, 25_536)).is_ok());
        let (ids, whole) = together.into_pack();
        assert_eq!(ids, [1, 2, 4]);
        Pack::decode(&whole.encode(), &Limits::of_stored()).unwrap();
        assert!(Together::of(&site).add(3, refused).is_ok(), "the first always has room");
    }
}
