//! How far peers are merged, in the user's database itself, so that one transaction holds the changes and the position.

use rusqlite::{OptionalExtension, named_params, params};

use super::{Database, DatabaseError};
use crate::changeset::{Cursor, SiteId};

/// What the rows of `crsql_tracked_peers` have as their event whose tag is a [`Way`].
const EVENT: i64 = 0x4444_4350;

/// How changes are come by: from the record that an address names, from the file at a path, or in bundles. A hash, whose
/// preimages the repository knows. The default is that of positions that an earlier program kept, for each site alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Way(pub(crate) i64);

impl Way {
    /// Bundles of whoever: a site id in one is its maker's word.
    pub const BUNDLES: Self = Self(2);

    /// The way that is named by `kind` and `name`.
    #[must_use]
    pub fn new(kind: &str, name: &[u8]) -> Self {
        let hash = blake3::Hasher::new_derive_key(kind).update(name).finalize();
        let number = i64::from_le_bytes(std::array::from_fn(|at| hash.as_bytes()[at]));
        // The others are even.
        Self(number | 1)
    }

    fn event(self) -> i64 {
        if self == Self::default() { 0 } else { EVENT }
    }
}

/// What a position belongs to. Nobody proves a site id, so how far a site was read by one way says nothing of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The site that the source says it is.
    pub site: SiteId,
    /// How its changes are come by.
    pub way: Way,
}

impl From<&SiteId> for Origin {
    fn from(site: &SiteId) -> Self {
        Self { site: *site, way: Way::default() }
    }
}

impl Database {
    /// How far the changes of `origin` are merged here; [`Cursor::ZERO`] if nothing is.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn position(&self, origin: impl Into<Origin>) -> Result<Cursor, DatabaseError> {
        let Origin { site, way } = origin.into();
        const SQL: &str = "SELECT version, seq FROM crsql_tracked_peers WHERE site_id = ? AND tag = ? AND event = ?";
        let row = |row: &rusqlite::Row<'_>| {
            Ok(Cursor { version: row.get(0)?, seq: row.get::<_, Option<i64>>(1)?.unwrap_or(0) })
        };
        let position = self.connection.query_row(SQL, params![site.as_bytes(), way.0, way.event()], row).optional();
        Ok(self.wrap(position)?.unwrap_or(Cursor::ZERO))
    }

    /// How far `site` is merged here, by each way.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn positions_of(&self, site: &SiteId) -> Result<Vec<(Origin, Cursor)>, DatabaseError> {
        const SQL: &str = "SELECT tag, version, coalesce(seq, 0) FROM crsql_tracked_peers
             WHERE site_id = ?1 AND (event = ?2 OR (tag = 0 AND event = 0))";
        let row = |row: &rusqlite::Row<'_>| {
            let origin = Origin { site: *site, way: Way(row.get(0)?) };
            Ok((origin, Cursor { version: row.get(1)?, seq: row.get(2)? }))
        };
        let positions = || -> rusqlite::Result<Vec<_>> {
            self.connection.prepare_cached(SQL)?.query_map(params![site.as_bytes(), EVENT], row)?.collect()
        };
        self.wrap(positions())
    }

    /// How far `site` is merged here by the way by which most of it is.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn furthest_position(&self, site: &SiteId) -> Result<Cursor, DatabaseError> {
        let positions = self.positions_of(site)?.into_iter().map(|(_, position)| position);
        Ok(positions.max().unwrap_or(Cursor::ZERO))
    }

    /// Has `origin` take over the position of its site by the way `before`, if there is one and none of `origin`.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn adopt_position(&self, before: Way, origin: Origin) -> Result<(), DatabaseError> {
        let old = Origin { way: before, ..origin };
        // Looked at first: a statement that writes waits for whoever is writing, though there is nothing to write.
        if self.position(old)? == Cursor::ZERO {
            return Ok(());
        }
        if self.position(origin)? != Cursor::ZERO {
            return self.forget_position(old);
        }
        const SQL: &str = "UPDATE crsql_tracked_peers SET tag = :tag, event = :event
             WHERE site_id = :site AND tag = :old_tag AND event = :old_event";
        let row = named_params! {
            ":site": origin.site.as_bytes(),
            ":tag": origin.way.0,
            ":event": origin.way.event(),
            ":old_tag": before.0,
            ":old_event": before.event(),
        };
        self.wrap(self.connection.execute(SQL, row)).map(drop)
    }

    /// Forgets how far peers were read, so that each is read from its start. That merges again what was merged, which
    /// changes nothing, and what is not there: how far peers were read says nothing of what waits in the state.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn forget_positions(&self) -> Result<(), DatabaseError> {
        const SQL: &str = "DELETE FROM crsql_tracked_peers WHERE event = ? OR (tag = 0 AND event = 0)";
        self.wrap(self.connection.execute(SQL, [EVENT])).map(drop)
    }

    /// As [`Database::forget_positions`], of one peer by one way.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn forget_position(&self, origin: impl Into<Origin>) -> Result<(), DatabaseError> {
        let Origin { site, way } = origin.into();
        const SQL: &str = "DELETE FROM crsql_tracked_peers WHERE site_id = ? AND tag = ? AND event = ?";
        self.wrap(self.connection.execute(SQL, params![site.as_bytes(), way.0, way.event()])).map(drop)
    }

    /// As [`Database::forget_position`], by whatever way.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn forget_positions_of(&self, site: &SiteId) -> Result<(), DatabaseError> {
        const SQL: &str =
            "DELETE FROM crsql_tracked_peers WHERE site_id = ? AND (event = ? OR (tag = 0 AND event = 0))";
        self.wrap(self.connection.execute(SQL, params![site.as_bytes(), EVENT])).map(drop)
    }

    /// Moves the position of `origin`. What is at the end of a way is one site at a time: of another one that was there
    /// before nothing is kept, so that who is ever another one adds nothing to the user's database. Bundles are of many.
    pub(super) fn store_position(&self, origin: Origin, position: Cursor) -> rusqlite::Result<()> {
        let Origin { site, way } = origin;
        let (site, event) = (site.as_bytes(), way.event());
        if way.event() == EVENT && way != Way::BUNDLES {
            const CLEAR: &str = "DELETE FROM crsql_tracked_peers WHERE tag = ? AND event = ? AND site_id <> ?";
            self.connection.prepare_cached(CLEAR)?.execute(params![way.0, event, site])?;
        }
        const SQL: &str =
            "INSERT INTO crsql_tracked_peers (site_id, version, seq, tag, event) VALUES (:site, :version, :seq, :tag, :event)
             ON CONFLICT (site_id, tag, event) DO UPDATE SET version = excluded.version, seq = excluded.seq";
        let Cursor { version, seq } = position;
        let row = named_params! {":site": site, ":version": version, ":seq": seq, ":tag": way.0, ":event": event};
        self.connection.prepare_cached(SQL)?.execute(row).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::OpenOptions;

    fn database(dir: &tempfile::TempDir) -> Database {
        Database::open(&dir.path().join("a.db"), &OpenOptions { create: true, ..OpenOptions::default() }).unwrap()
    }

    fn site(number: u8) -> SiteId {
        SiteId::from_bytes(&[number; 16]).unwrap()
    }

    fn rows(database: &Database) -> i64 {
        let sql = "SELECT count(*) FROM crsql_tracked_peers";
        database.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_position_is_of_one_site_by_one_way() {
        let dir = tempfile::tempdir().unwrap();
        let mut database = database(&dir);
        let [one, other] = [b"one", b"two"].map(|name| Origin { site: site(1), way: Way::new("ways", name) });
        let bundles = Origin { site: site(1), way: Way::BUNDLES };
        for (origin, version) in [(one, 7), (bundles, 9)] {
            database.merge(origin, &[], &[], Some(Cursor::whole(version)), &mut |_| Ok(())).unwrap();
        }
        let position = |database: &Database, origin: Origin| database.position(origin).unwrap();
        assert_eq!(position(&database, one), Cursor::whole(7));
        assert_eq!((position(&database, other), position(&database, (&site(1)).into())), (Cursor::ZERO, Cursor::ZERO));
        assert_eq!(database.furthest_position(&site(1)).unwrap(), Cursor::whole(9));
        database.forget_position(bundles).unwrap();
        assert_eq!(database.furthest_position(&site(1)).unwrap(), Cursor::whole(7));
        database.forget_positions_of(&site(1)).unwrap();
        assert_eq!(rows(&database), 0);
    }

    #[test]
    fn who_is_ever_another_site_adds_one_row() {
        let dir = tempfile::tempdir().unwrap();
        let mut database = database(&dir);
        let way = Way::new("ways", b"a liar");
        for number in 1..20 {
            let origin = Origin { site: site(number), way };
            database.merge(origin, &[], &[], Some(Cursor::whole(7)), &mut |_| Ok(())).unwrap();
        }
        assert_eq!(rows(&database), 1);
    }

    #[test]
    fn what_an_earlier_program_has_read_is_taken_over_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut database = database(&dir);
        let origin = Origin { site: site(1), way: Way::new("ways", b"one") };
        database.merge(&site(1), &[], &[], Some(Cursor::whole(7)), &mut |_| Ok(())).unwrap();
        database.adopt_position(Way::default(), origin).unwrap();
        assert_eq!((database.position(origin).unwrap(), rows(&database)), (Cursor::whole(7), 1));
        database.merge(&site(1), &[], &[], Some(Cursor::whole(99)), &mut |_| Ok(())).unwrap();
        database.adopt_position(Way::default(), origin).unwrap();
        assert_eq!((database.position(origin).unwrap(), rows(&database)), (Cursor::whole(7), 1), "the own one stays");
        database.forget_positions().unwrap();
        assert_eq!(rows(&database), 0);
    }
}
