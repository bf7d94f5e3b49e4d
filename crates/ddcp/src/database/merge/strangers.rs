//! The sites whose names a database keeps: each that has written a record has a row in `crsql_site_id`, for good. A peer can
//! make up any number of them, so there is an end to it that no honest network reaches.

use std::collections::HashSet;

use rusqlite::Connection;

use crate::changeset::{Change, SiteId};

/// The most sites that a database keeps the names of, but for those of the merge that reaches it.
pub(super) const MOST_SITES: i64 = 1 << 20;

/// Which sites may write.
pub(super) enum Strangers {
    Welcome,
    /// There are too many: only these, which are known.
    Unwelcome(HashSet<SiteId>),
}

impl Strangers {
    /// Looks whether there is a place for more sites than `most`, and which of those of `changes` have one. Mostly a single
    /// look-up.
    pub(super) fn look(connection: &Connection, changes: &[Change], most: i64) -> rusqlite::Result<Self> {
        const LAST: &str = "SELECT coalesce(max(ordinal), 0) FROM crsql_site_id";
        const KNOWN: &str = "SELECT EXISTS (SELECT 1 FROM crsql_site_id WHERE site_id = ?)";
        let last: i64 = connection.prepare_cached(LAST)?.query_row([], |row| row.get(0))?;
        if last < most {
            return Ok(Self::Welcome);
        }
        let sites: HashSet<SiteId> = changes.iter().map(|change| change.site_id).collect();
        let mut known = connection.prepare_cached(KNOWN)?;
        let mut is_known = |site: &SiteId| known.query_row([site.as_bytes()], |row| row.get::<_, bool>(0));
        let kept = sites.into_iter().filter_map(|site| match is_known(&site) {
            Ok(is_known) => is_known.then_some(Ok(site)),
            Err(error) => Some(Err(error)),
        });
        Ok(Self::Unwelcome(kept.collect::<rusqlite::Result<_>>()?))
    }

    pub(super) fn keep_out(&self, site: &SiteId) -> bool {
        matches!(self, Self::Unwelcome(known) if !known.contains(site))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changeset::Value;

    #[test]
    fn strangers_are_kept_out_once_there_are_too_many() {
        let connection = Connection::open_in_memory().unwrap();
        crsqlite::register(&connection).unwrap();
        let site = |byte: u8| SiteId::from_bytes(&[byte; 16]).unwrap();
        for byte in 1..=3 {
            connection.execute("INSERT INTO crsql_site_id (site_id) VALUES (?)", [site(byte).as_bytes()]).unwrap();
        }
        let change = |byte: u8| Change {
            table: "t".into(),
            pk: [1, 9, 1].as_slice().into(),
            cid: "c".into(),
            val: Value::Null,
            col_version: 1,
            db_version: 1,
            site_id: site(byte),
            cl: 1,
            seq: 0,
        };
        let changes: Vec<Change> = (2..=9).map(change).collect();
        let kept_out = |most: i64| {
            let strangers = Strangers::look(&connection, &changes, most).unwrap();
            changes.iter().filter(|change| strangers.keep_out(&change.site_id)).count()
        };
        assert_eq!((kept_out(4), kept_out(3), kept_out(0)), (0, 6, 6));
    }
}
