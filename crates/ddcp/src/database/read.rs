use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::ControlFlow,
    str,
    sync::Arc,
};

use rusqlite::{Row, named_params, types::ValueRef};

use super::{
    Database, DatabaseError, LeftOut, TableShape, Unsent, by_rows, examine::sql_text, moved, schema,
    unsent::UNKNOWN_SITE,
};
use crate::changeset::{
    Change, Cursor, Limits, MAX_NAME, Pack, PackTable, SENTINEL, SiteId, Value, check_pk, shown_key,
};

/// The changes of one version that lie behind a cursor within it. Both conditions are the engine's to evaluate, before
/// it looks up any value.
const REST_OF_VERSION: &str = r#"
    SELECT "table", pk, cid, val, col_version, db_version, site_id, cl, seq, rowid FROM crsql_changes
    WHERE db_version = :version AND seq > :seq AND site_id IS NOT :reader
    ORDER BY db_version, seq"#;

/// The changes of all later versions.
const LATER_VERSIONS: &str = r#"
    SELECT "table", pk, cid, val, col_version, db_version, site_id, cl, seq, rowid FROM crsql_changes
    WHERE db_version > :version AND site_id IS NOT :reader
    ORDER BY db_version, seq"#;

/// Bytes that a change takes in a pack besides its key and value, about.
const CHANGE_OVERHEAD: usize = 12;

/// The most names of tables and columns, and the most sites, of a pack, but for those that one more row brings: half of
/// what readers take.
const MOST_NAMES: usize = Limits::PROTOCOL.names / 2;

/// The most bytes of a pack, about: what readers take, less what the numbers of its changes may take more than
/// [`CHANGE_OVERHEAD`]. Only the values of one row can come near.
const MOST_BYTES: usize = Limits::PROTOCOL.raw_bytes - (64 << 20);

/// Changes that are left out and not counted yet.
const MOST_LEAVING_OUT: usize = 1000;

/// About how many bytes a pack has before compression, unless a reader wants otherwise.
pub const PACK_BYTES: usize = 2 * 1024 * 1024;

/// Which changes to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Leaves out what this site made.
    pub without: Option<SiteId>,
    /// Only changes of these tables; of all without a list.
    pub tables: Option<BTreeSet<String>>,
}

impl Selection {
    /// All changes but those of `site`.
    #[must_use]
    pub fn without(site: SiteId) -> Self {
        Self { without: Some(site), tables: None }
    }

    fn has_table(&self, name: &[u8]) -> bool {
        self.tables.as_ref().is_none_or(|tables| tables.iter().any(|table| table.as_bytes().eq_ignore_ascii_case(name)))
    }
}

/// How far a database was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadEnd {
    /// The database's version at the moment of reading. Less than that of the cursor given if the database went
    /// back in time, e.g. was restored from a backup; nothing is read then, and the reader starts over.
    pub version: i64,
    /// There is more behind `end`.
    pub more: bool,
    /// Everything up to here was given: all of `version` if there is no more, even if every change of it was excluded.
    pub end: Cursor,
    /// What of it was left out, since no pack can hold it.
    pub left_out: LeftOut,
}

/// Takes packs one by one, and says whether to go on.
pub type TakePack<'a> = &'a mut dyn FnMut(Pack) -> ControlFlow<()>;

impl Database {
    /// Reads the changes behind `after` that `selection` names, at one moment of the database's history, and gives them to `take` as packs that follow each other without a gap, none of them empty, until it breaks off.
    ///
    /// A pack has about `pack_bytes` before compression. One change, or those of one row, may exceed it, though never
    /// what readers take ([`Limits::PROTOCOL`]); a transaction that does is cut at twice that size, also where many of
    /// its changes share a place: see [`by_rows`]. Where packs are cut depends only on
    /// the changes, `after`, `selection` and `pack_bytes`: whoever reads again gets the same packs, but for what has
    /// changed in between.
    ///
    /// Takes time linear in the number of changes given, plus those of the version in which `after` lies, and reads
    /// no further once `take` breaks off. One pack at a time is in memory.
    ///
    /// # Errors
    /// Those of reading the database. A change that no pack can hold is left out and told.
    pub fn stream_packs(
        &self,
        after: Cursor,
        selection: &Selection,
        pack_bytes: usize,
        take: TakePack<'_>,
    ) -> Result<ReadEnd, DatabaseError> {
        self.refresh_foreign_engine()?;
        // What is read is of one moment; dropping it ends the transaction.
        let _snapshot = self.wrap(self.connection.unchecked_transaction())?;
        let version = self.version()?;
        let source = self.site_id()?;
        let (tables, mut unreadable) = (self.tables()?, self.wrap(schema::unreadable(&self.connection))?);
        let queries = [REST_OF_VERSION, LATER_VERSIONS].map(|sql| without(sql, &unreadable));
        let mut packer = Packer::new(self, source, after, selection, pack_bytes, &tables, take);
        let mut taken = self.read_behind(after, &queries, &mut packer)?;
        while let Taken::Crowded(version) = taken {
            taken = match packer.begin_again(version) {
                ControlFlow::Continue(()) => self.read_behind(by_rows::start_of(version), &queries, &mut packer)?,
                ControlFlow::Break(()) => Taken::Part,
            };
        }
        let (end, left_out) = match taken {
            Taken::Part => (packer.from, packer.left_out),
            _ => (Cursor::whole(version), packer.finish(Cursor::whole(version))),
        };
        unreadable.retain(|table| selection.has_table(table.name.as_bytes()));
        // First: of what is told one by one there is a limit.
        let mut all_left_out = self.wrap(self.unread(&unreadable, (after, end), selection.without.as_ref()))?;
        all_left_out.extend(left_out);
        Ok(ReadEnd { version, more: taken == Taken::Part, end, left_out: all_left_out })
    }

    /// Gives what lies behind `after` to `packer`: the rest of its version, then all later ones.
    fn read_behind(
        &self,
        after: Cursor,
        [rest_of_version, later_versions]: &[String; 2],
        packer: &mut Packer<'_>,
    ) -> Result<Taken, DatabaseError> {
        let rest = if by_rows::is_within(after) {
            if self.read_by_rows(after, packer)? { Taken::All } else { Taken::Part }
        } else if after.version > 0 && after.seq < i64::MAX {
            self.read_query(rest_of_version, after, packer)?
        } else {
            Taken::All
        };
        if rest == Taken::All { self.read_query(later_versions, after, packer) } else { Ok(rest) }
    }

    fn read_query(&self, sql: &str, after: Cursor, packer: &mut Packer<'_>) -> Result<Taken, DatabaseError> {
        let mut statement = self.wrap(self.connection.prepare_cached(sql))?;
        let all = named_params! {":version": after.version, ":reader": packer.reader(), ":seq": after.seq};
        let rows = match sql.contains(":seq") {
            true => statement.query(all),
            false => statement.query(&all[..2]),
        };
        let mut rows = self.wrap(rows)?;
        while let Some(row) = self.wrap(rows.next())? {
            let taken = packer.push(row)?;
            if taken != Taken::All {
                return Ok(taken);
            }
        }
        Ok(Taken::All)
    }
}

/// How much of what was read is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    All,
    /// No more packs are wanted.
    Part,
    /// More changes of this version share a place than packs are to hold: it has to be read by rows.
    Crowded(i64),
}

/// The query without these tables.
fn without(sql: &str, tables: &[TableShape]) -> String {
    let condition = |table: &TableShape| format!("AND \"table\" IS NOT {} ", sql_text(&table.name));
    let conditions: String = tables.iter().map(condition).collect();
    sql.replace("ORDER BY", &format!("{conditions}ORDER BY"))
}

/// What is needed of a table for each of its rows.
struct Shape<'a> {
    table: &'a TableShape,
    created_sql: String,
}

impl<'a> Shape<'a> {
    fn new(table: &'a TableShape) -> Self {
        Self { table, created_sql: moved::created_sql(&table.name) }
    }
}

/// A change as it is read.
pub(super) struct Record<'r> {
    pub(super) table: &'r str,
    pub(super) pk: &'r [u8],
    pub(super) cid: &'r str,
    pub(super) val: ValueRef<'r>,
    pub(super) col_version: i64,
    pub(super) place: Cursor,
    /// Not known of some damaged files.
    pub(super) site: Option<SiteId>,
    pub(super) cl: i64,
}

impl Record<'_> {
    /// Whether it is of a cell whose row is deleted, and gone; see [`Change::is_of_deleted_cell`].
    fn says_nothing(&self) -> bool {
        self.cl > 0 && self.cl % 2 == 0 && self.val == ValueRef::Null && self.cid != SENTINEL
    }
}

/// Cuts a stream of changes into packs.
pub(super) struct Packer<'a> {
    database: &'a Database,
    source: SiteId,
    selection: &'a Selection,
    pack_bytes: usize,
    tables: &'a [TableShape],
    shapes: HashMap<&'a str, Shape<'a>>,
    /// The row of the last cell, by rowid, and the version in which it was created, if that is recorded.
    created: (i64, Option<i64>),
    names: Names,
    take: TakePack<'a>,
    /// Where the pack in the making starts.
    from: Cursor,
    changes: Vec<Change>,
    raw_bytes: usize,
    /// The place of the last change, and the bytes of all changes there.
    place: (Cursor, usize),
    seen: Seen,
    /// What was left out of the packs that are made.
    left_out: LeftOut,
    /// What was left out since the last of them.
    leaving_out: Vec<(Cursor, Unsent)>,
}

impl<'a> Packer<'a> {
    fn new(
        database: &'a Database,
        source: SiteId,
        from: Cursor,
        selection: &'a Selection,
        pack_bytes: usize,
        tables: &'a [TableShape],
        take: TakePack<'a>,
    ) -> Self {
        Self {
            database,
            source,
            selection,
            pack_bytes,
            tables,
            shapes: tables.iter().map(Shape::new).map(|shape| (shape.table.name.as_str(), shape)).collect(),
            created: (0, None),
            names: Names::default(),
            take,
            from,
            changes: Vec::new(),
            raw_bytes: 0,
            place: (Cursor::ZERO, 0),
            seen: Seen::default(),
            left_out: LeftOut::default(),
            leaving_out: Vec::new(),
        }
    }

    /// The tables whose changes are wanted.
    pub(super) fn tables(&self) -> impl Iterator<Item = &'a TableShape> + use<'a> {
        let selection = self.selection;
        self.tables.iter().filter(move |table| selection.has_table(table.name.as_bytes()))
    }

    /// The site whose changes are left out. No site has an empty id, which leaves out none; NULL would leave out changes
    /// of which the site is not known.
    pub(super) fn reader(&self) -> &'a [u8] {
        self.selection.without.as_ref().map_or(&[][..], SiteId::as_bytes)
    }

    /// Takes a row of `crsql_changes`, or refuses it.
    fn push(&mut self, row: &Row<'_>) -> Result<Taken, DatabaseError> {
        let database = self.database;
        let (table, pk, cid, val) = database.wrap(fields(row))?;
        if !self.selection.has_table(table) {
            return Ok(Taken::All);
        }
        let place = database.wrap(place(row))?;
        if self.travels_with_its_row(row, place)? {
            return Ok(Taken::All);
        }
        if self.is_crowded(place, pk) {
            return Ok(Taken::Crowded(place.version));
        }
        if self.cut_for(place).is_break() {
            return Ok(Taken::Part);
        }
        let site = database.wrap(row.get_ref(6))?.as_bytes().ok().and_then(|id| SiteId::from_bytes(id).ok());
        let (col_version, cl) = (database.wrap(row.get(4))?, database.wrap(row.get(7))?);
        let record = Record { table: &lossy(table), pk, cid: &lossy(cid), val, col_version, place, site, cl };
        self.give(&record, moved::key_of(database.wrap(row.get(9))?))?;
        Ok(Taken::All)
    }

    /// Takes a change of the row with this number, and what came with it. One that no pack can hold must not keep all
    /// the others from travelling: it is left out.
    pub(super) fn give(&mut self, record: &Record<'_>, key: i64) -> Result<(), DatabaseError> {
        if record.says_nothing() {
            return Ok(());
        }
        let change = match self.change(record) {
            Ok(change) => change,
            Err(reason) => {
                self.leave_out(record.place, record.table, record.pk, record.cid, reason);
                return Ok(());
            }
        };
        let moved = self.moved(key, &change)?;
        self.add(change);
        moved.into_iter().for_each(|change| self.add(change));
        Ok(())
    }

    /// Whether there is more at `place` than a pack is to hold, and another row comes next. Cursors within versions that
    /// are read by rows take the highest seqs, so those must not occur.
    fn is_crowded(&self, place: Cursor, pk: &[u8]) -> bool {
        let is_full = self.place.1 >= self.pack_bytes.saturating_mul(2) || self.seen.is_full();
        let is_same_place = || self.changes.last().is_some_and(|last| last.cursor() == place && *last.pk != *pk);
        place.seq >= by_rows::FIRST || is_full && is_same_place()
    }

    /// Forgets what it has of the version, which is read again by rows; cuts a pack if there is something before it.
    fn begin_again(&mut self, version: i64) -> ControlFlow<()> {
        self.changes.retain(|change| change.db_version < version);
        self.leaving_out.retain(|(place, _)| place.version < version);
        self.place = (Cursor::ZERO, 0);
        match self.changes.last() {
            Some(last) => self.cut(Cursor::whole(last.db_version)),
            None => {
                (self.raw_bytes, self.seen) = (0, Seen::default());
                ControlFlow::Continue(())
            }
        }
    }

    /// Whether a cell is older than its row; see [`moved`].
    fn travels_with_its_row(&mut self, row: &Row<'_>, place: Cursor) -> Result<bool, DatabaseError> {
        let (table, _, cid, _) = self.database.wrap(fields(row))?;
        let Some(shape) = str::from_utf8(table).ok().and_then(|table| self.shapes.get(table)) else {
            return Ok(false);
        };
        if cid == SENTINEL.as_bytes() {
            return Ok(false);
        }
        // Cells of one row mostly follow each other.
        let rowid = self.database.wrap(row.get(9))?;
        if self.created.0 != rowid {
            let created = moved::created(&self.database.connection, &shape.created_sql, moved::key_of(rowid));
            self.created = (rowid, self.database.wrap(created)?);
        }
        Ok(self.created.1.is_some_and(|created| place.version < created))
    }

    fn leave_out(&mut self, place: Cursor, table: &str, pk: &[u8], column: &str, reason: &str) {
        let key = shown_key(pk).unwrap_or_else(|| "(unreadable)".to_owned());
        tracing::warn!(%table, %key, %column, %reason, "a change is left out");
        let unsent = Unsent { table: table.to_owned(), key, column: column.to_owned(), reason: reason.to_owned() };
        self.leaving_out.push((place, unsent));
        if self.leaving_out.len() > MOST_LEAVING_OUT {
            self.count_left_out(place);
        }
    }

    /// Counts what was left out up to `end`.
    fn count_left_out(&mut self, end: Cursor) {
        let (before, after) = std::mem::take(&mut self.leaving_out).into_iter().partition(|(place, _)| *place <= end);
        self.leaving_out = after;
        let before: Vec<(Cursor, Unsent)> = before;
        before.into_iter().for_each(|(_, unsent)| self.left_out.add(unsent));
    }

    fn add(&mut self, change: Change) {
        let repeats_key = self.changes.last().is_some_and(|previous| Arc::ptr_eq(&previous.pk, &change.pk));
        let key_bytes = if repeats_key { 0 } else { change.pk.len() };
        let bytes = CHANGE_OVERHEAD + key_bytes + value_bytes(&change.val);
        if self.raw_bytes + bytes > MOST_BYTES {
            return self.leave_out(change.cursor(), &change.table, &change.pk, &change.cid, TOO_LARGE);
        }
        let at_its_place = if self.place.0 == change.cursor() { self.place.1 } else { 0 };
        self.place = (change.cursor(), at_its_place + bytes);
        self.raw_bytes += bytes;
        self.seen.add(&change, self.changes.last());
        self.changes.push(change);
    }

    /// The cells that came with the key that `created` creates, at the same place; see [`moved`].
    fn moved(&mut self, key: i64, created: &Change) -> Result<Vec<Change>, DatabaseError> {
        if *created.cid != *SENTINEL || created.cl % 2 == 0 {
            return Ok(Vec::new());
        }
        let Some(shape) = self.shapes.get(&*created.table) else { return Ok(Vec::new()) };
        let cells = moved::cells(&self.database.connection, shape.table, key, created.db_version);
        let mut changes = Vec::new();
        for cell in self.database.wrap(cells)? {
            let cid = self.names.name(&cell.cid);
            let change = Change { cid, val: cell.val, col_version: cell.col_version, ..created.clone() };
            match change.check() {
                Ok(()) => changes.push(change),
                Err(reason) => self.leave_out(created.cursor(), &created.table, &created.pk, &cell.cid, reason),
            }
        }
        Ok(changes)
    }

    /// Cuts a pack, if a change at `place` comes next and should not go into the one in the making. Says whether to go
    /// on.
    pub(super) fn cut_for(&mut self, place: Cursor) -> ControlFlow<()> {
        self.cut_before(place).map_or(ControlFlow::Continue(()), |to| self.cut(to))
    }

    /// Where the pack in the making ends if a change at `place` comes next and should not go into it: between two
    /// transactions once it has its size, within a transaction only when it has twice that, and never between
    /// changes at the same place, which no cursor tells apart.
    fn cut_before(&self, place: Cursor) -> Option<Cursor> {
        let last = self.changes.last()?.cursor();
        let has = |bytes| self.raw_bytes >= bytes || self.seen.is_full();
        if place.version > last.version {
            return has(self.pack_bytes).then(|| Cursor::whole(last.version));
        }
        (place.seq > last.seq && has(self.pack_bytes.saturating_mul(2))).then_some(last)
    }

    fn cut(&mut self, to: Cursor) -> ControlFlow<()> {
        let changes = std::mem::take(&mut self.changes);
        (self.raw_bytes, self.seen) = (0, Seen::default());
        let from = std::mem::replace(&mut self.from, to);
        self.count_left_out(to);
        let tables = self.tables_of(&changes);
        (self.take)(Pack { source: self.source, from, to, tables, changes })
    }

    fn tables_of(&self, changes: &[Change]) -> Vec<PackTable> {
        let mut tables: Vec<PackTable> = Vec::new();
        for change in changes {
            // Neighbours are mostly of one table, and there are few tables.
            if tables.iter().rev().all(|table| table.name != *change.table) {
                let key_columns =
                    self.shapes.get(&*change.table).map(|shape| shape.table.key_names()).unwrap_or_default();
                tables.push(PackTable { name: change.table.to_string(), key_columns });
            }
        }
        tables
    }

    /// Gives what is left, the database having been read up to `end`, and says what was left out of all. A pack that has its size ends as if another
    /// version followed: it stays the same when one does.
    fn finish(mut self, end: Cursor) -> LeftOut {
        if let Some(last) = self.changes.last() {
            let has_its_size = self.raw_bytes >= self.pack_bytes;
            let to = if has_its_size { Cursor::whole(last.db_version) } else { end };
            // There is nothing left to break off.
            let _ = self.cut(to);
        }
        self.count_left_out(Cursor::whole(i64::MAX));
        self.left_out
    }

    /// The change that a record tells of, or why it cannot travel.
    fn change(&mut self, record: &Record<'_>) -> Result<Change, &'static str> {
        let Record { table, pk, cid, val, col_version, place, site, cl } = *record;
        let Some(shape) = self.shapes.get(table) else {
            return Err("its table is no CRR any more, or has a name that is not valid UTF-8");
        };
        check_pk(pk, shape.table.key_columns.len())?;
        if table.len() > MAX_NAME || cid.len() > MAX_NAME {
            return Err("its name is too long");
        }
        let change = Change {
            pk: self.names.key(pk),
            val: val.into(),
            col_version,
            db_version: place.version,
            site_id: site.ok_or(UNKNOWN_SITE)?,
            cl,
            seq: place.seq,
            table: self.names.name(table),
            cid: self.names.name(cid),
        };
        change.check().map(|()| change)
    }
}

/// Why a change of a row that is larger than any pack cannot travel.
const TOO_LARGE: &str = "it is too large, together with the others of its row";

/// The names and sites of a pack in the making.
#[derive(Default)]
struct Seen {
    names: HashSet<Arc<str>>,
    sites: HashSet<SiteId>,
}

impl Seen {
    /// Notes those of a change. Mostly the last one had the same table and site.
    fn add(&mut self, change: &Change, last: Option<&Change>) {
        if last.is_none_or(|last| !Arc::ptr_eq(&last.table, &change.table)) {
            self.names.insert(Arc::clone(&change.table));
        }
        if !self.names.contains(&change.cid) {
            self.names.insert(Arc::clone(&change.cid));
        }
        if last.is_none_or(|last| last.site_id != change.site_id) {
            self.sites.insert(change.site_id);
        }
    }

    fn is_full(&self) -> bool {
        self.names.len().max(self.sites.len()) >= MOST_NAMES
    }
}

fn place(row: &Row<'_>) -> rusqlite::Result<Cursor> {
    Ok(Cursor { version: row.get(5)?, seq: row.get(8)? })
}

type Fields<'a> = (&'a [u8], &'a [u8], &'a [u8], ValueRef<'a>);

/// Table, key, column and value.
fn fields<'a>(row: &'a Row<'_>) -> rusqlite::Result<Fields<'a>> {
    Ok((row.get_ref(0)?.as_bytes()?, row.get_ref(1)?.as_bytes()?, row.get_ref(2)?.as_bytes()?, row.get_ref(3)?))
}

/// Names that are not UTF-8 (SQLite does not look) do not occur in the schema, so they are refused like unknown ones.
pub(super) fn lossy(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name)
}

fn value_bytes(value: &Value) -> usize {
    match value {
        Value::Integer(_) | Value::Real(_) => 8,
        other => other.content().len(),
    }
}

/// Holds each name once, and each key once among neighbours.
#[derive(Default)]
struct Names {
    names: HashMap<String, Arc<str>>,
    key: Option<Arc<[u8]>>,
}

impl Names {
    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        let shared: Arc<str> = name.into();
        self.names.insert(name.to_owned(), Arc::clone(&shared));
        shared
    }

    fn key(&mut self, key: &[u8]) -> Arc<[u8]> {
        match &self.key {
            Some(previous) if **previous == *key => Arc::clone(previous),
            _ => Arc::clone(self.key.insert(key.into())),
        }
    }
}
