//! Databases in real files that read each other's changes.

use std::ops::ControlFlow;

use rusqlite::types::ValueRef;
use tempfile::TempDir;

use super::*;
use crate::changeset::{Cursor, Limits, Pack, Value};

mod any_schema;
mod converge;
mod crowded;
mod definitions;
mod digests;
mod files;
mod meaning;
mod refusals;
mod slices;
mod sync;
mod texts;

const NOTES: &str = "CREATE TABLE notes (id INTEGER PRIMARY KEY NOT NULL, title TEXT, body);
                     SELECT crsql_as_crr('notes');";

/// How much to read at once.
struct ReadLimits {
    target_raw_bytes: usize,
    max_packs: usize,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { target_raw_bytes: PACK_BYTES, max_packs: 8 }
    }
}

/// What was read at once.
#[derive(Debug)]
struct Batch {
    packs: Vec<Pack>,
    version: i64,
    more: bool,
    end: Cursor,
    left_out: LeftOut,
}

impl Database {
    fn read_packs(&self, after: Cursor, exclude: &SiteId, limits: &ReadLimits) -> Result<Batch, DatabaseError> {
        let mut packs = Vec::new();
        let mut take = |pack| {
            packs.push(pack);
            if packs.len() < limits.max_packs { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let ReadEnd { version, more, end, left_out } =
            self.stream_packs(after, &Selection::without(*exclude), limits.target_raw_bytes, &mut take)?;
        Ok(Batch { packs, version, more, end, left_out })
    }
}

struct Site {
    folder: TempDir,
    database: Database,
}

fn options() -> OpenOptions {
    OpenOptions { create: true, ..OpenOptions::default() }
}

impl Site {
    fn blank() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("test.db"), &options()).unwrap();
        Self { folder, database }
    }

    fn new(schema: &str) -> Self {
        let site = Self::blank();
        site.run(schema);
        site
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("test.db")
    }

    fn id(&self) -> SiteId {
        self.database.site_id().unwrap()
    }

    fn run(&self, sql: &str) {
        self.database.connection().execute_batch(sql).unwrap();
    }

    /// All rows that a query gives, as text that tells types and -0.0 apart.
    fn rows(&self, sql: &str) -> Vec<String> {
        let mut statement = self.database.connection().prepare(sql).unwrap();
        let columns = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| {
            let values = (0..columns).map(|column| row.get_ref(column).map(shown));
            Ok(format!("[{}]", values.collect::<Result<Vec<_>, _>>()?.join(", ")))
        };
        statement.query_map([], row).unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn read(&self, after: Cursor, reader: &SiteId) -> Batch {
        self.database.read_packs(after, reader, &ReadLimits::default()).unwrap()
    }

    /// Merges a pack that must fit.
    fn merge(&mut self, pack: &Pack) -> MergeReport {
        let mut none = |refused: &[Refused]| panic!("{refused:?}");
        self.database.merge(&pack.source, &pack.changes, &pack.tables, Some(pack.to), &mut none).unwrap()
    }

    /// Fetches and merges everything new, through encoded packs. Gives the number of changes.
    fn pull(&mut self, from: &Site) -> usize {
        self.pull_with(from, &ReadLimits::default())
    }

    fn pull_with(&mut self, from: &Site, limits: &ReadLimits) -> usize {
        let source = from.id();
        let mut count = 0;
        loop {
            let position = self.database.position(&source).unwrap();
            let batch = from.database.read_packs(position, &self.id(), limits).unwrap();
            assert!(batch.packs.len() <= limits.max_packs);
            let mut at = position;
            for pack in &batch.packs {
                assert_eq!((pack.from, pack.source), (at, source));
                assert!(!pack.changes.is_empty());
                at = pack.to;
                let pack = Pack::decode(&pack.encode(), &Limits::default()).unwrap();
                count += pack.changes.len();
                self.merge(&pack);
            }
            assert!(at <= batch.end && (!batch.more || at == batch.end));
            self.database.merge(&source, &[], &[], Some(batch.end), &mut |_| Ok(())).unwrap();
            if !batch.more {
                return count;
            }
        }
    }
}

/// A value as text that tells types, -0.0, and texts that are not UTF-8 apart.
fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => format!("Text({text:?})"),
            Err(_) => format!("Text({bytes:?})"),
        },
        other => format!("{:?}", rusqlite::types::Value::try_from(other).unwrap()),
    }
}

fn assert_equal(sites: &[&Site], sql: &str) {
    let first = sites[0].rows(sql);
    for site in &sites[1..] {
        assert_eq!(site.rows(sql), first);
    }
}

const ALL_NOTES: &str = "SELECT * FROM notes ORDER BY id";

fn keep_into(
    kept: &mut Vec<Refused>,
) -> impl FnMut(&[Refused]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    |refused| {
        kept.extend_from_slice(refused);
        Ok(())
    }
}
