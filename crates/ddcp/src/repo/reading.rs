//! Where a source is read on, whether it answers as a remote or lies in a bundle.

use rusqlite::{OptionalExtension, params};

use super::{State, StateError};
use crate::{changeset::Cursor, database::Origin};

impl State {
    /// Where to read `origin` on, of which `fetched` is here and which has the schema `schema` now.
    ///
    /// Altering a table records cells under the db version that is current then, which may be the one that was read
    /// last. So unless the schema is known to be still the one with which everything was read, that version is read
    /// again.
    ///
    /// # Errors
    /// [`StateError`].
    pub(super) fn read_on(
        &mut self,
        origin: impl Into<Origin>,
        fetched: Cursor,
        schema: &[u8],
    ) -> Result<Cursor, StateError> {
        let origin = origin.into();
        if fetched == Cursor::ZERO {
            self.note_schema(origin, schema)?;
            return Ok(fetched);
        }
        let is_known = self.origin_schema(origin)?.is_some_and(|known| known == schema);
        Ok(if is_known { fetched } else { before_alteration(fetched) })
    }

    /// Notes that everything that was read of `origin` was read with this schema.
    ///
    /// # Errors
    /// [`StateError`].
    pub(super) fn note_schema(&mut self, origin: impl Into<Origin>, schema: &[u8]) -> Result<(), StateError> {
        let Origin { site, way } = origin.into();
        // Every fetch ends with this; nothing is written, and the disk not waited for, while it stays the same.
        let sql = "INSERT INTO origin_schema (site_id, way, schema) VALUES (?, ?, ?)
                   ON CONFLICT (site_id, way) DO UPDATE SET schema = excluded.schema WHERE schema IS NOT excluded.schema";
        self.write(|t| t.execute(sql, params![site.as_bytes(), way.0, schema]).map(drop))
    }

    /// Whether everything that was read of the origin was read with another schema than this.
    ///
    /// # Errors
    /// [`StateError`].
    pub(super) fn has_changed(&self, origin: impl Into<Origin>, schema: &[u8]) -> Result<bool, StateError> {
        Ok(self.origin_schema(origin.into())?.is_some_and(|known| known != schema))
    }

    fn origin_schema(&self, Origin { site, way }: Origin) -> Result<Option<Vec<u8>>, StateError> {
        self.read(|connection| {
            let sql = "SELECT schema FROM origin_schema WHERE site_id = ? AND way = ?";
            connection.prepare_cached(sql)?.query_row(params![site.as_bytes(), way.0], |row| row.get(0)).optional()
        })
    }
}

/// The end of the version before the one that `cursor` lies in: from there that one is read again.
pub(super) fn before_alteration(cursor: Cursor) -> Cursor {
    match cursor.version {
        ..=1 => Cursor::ZERO,
        version => Cursor::whole(version - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changeset::SiteId;

    #[test]
    fn a_version_that_may_have_been_added_to_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(&dir.path().join("state.db")).unwrap();
        let [a, b] = [[1; 16], [2; 16]].map(|bytes| SiteId::from_bytes(&bytes).unwrap());
        let (seven, six) = (Cursor::whole(7), Cursor::whole(6));
        assert_eq!(state.read_on(&a, seven, b"schema").unwrap(), six, "with which schema it was read is not known");
        assert_eq!(state.read_on(&a, seven, b"schema").unwrap(), six, "reading it again has not ended");
        state.note_schema(&a, b"schema").unwrap();
        assert_eq!(state.read_on(&a, seven, b"schema").unwrap(), seven);
        assert_eq!(state.read_on(&a, Cursor { version: 7, seq: 3 }, b"another").unwrap(), six);
        assert_eq!(state.read_on(&a, Cursor::whole(1), b"another").unwrap(), Cursor::ZERO);
        assert_eq!(state.read_on(&b, Cursor::ZERO, b"schema").unwrap(), Cursor::ZERO);
        assert_eq!(state.read_on(&b, seven, b"schema").unwrap(), seven, "read from its start with this schema");
    }
}
