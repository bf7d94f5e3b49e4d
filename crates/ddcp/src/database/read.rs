use std::{
    collections::{BTreeSet, HashMap},
    ops::ControlFlow,
    str,
    sync::Arc,
};

use rusqlite::{Row, named_params, types::ValueRef};

use super::{
    Database, DatabaseError, LeftOut, TableShape, Unsent, examine::sql_text, moved, schema, unsent::UNKNOWN_SITE,
};
use crate::changeset::{Change, Cursor, MAX_NAME, Pack, PackTable, SENTINEL, SiteId, Value, check_pk, shown_key};

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
    /// A pack has about `pack_bytes` before compression. One change, or several that share a place in the order, may
    /// exceed it by any amount; a transaction that does is cut at twice that size. Where packs are cut depends only on
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
        let (tables, unreadable) = (self.tables()?, self.wrap(schema::unreadable(&self.connection))?);
        let [rest_of_version, later_versions] = [REST_OF_VERSION, LATER_VERSIONS].map(|sql| without(sql, &unreadable));
        let mut packer = Packer::new(self, source, after, selection, pack_bytes, &tables, take);
        let inside_version = after.version > 0 && after.seq < i64::MAX;
        let complete = (!inside_version || self.read_query(&rest_of_version, after, &mut packer)?)
            && self.read_query(&later_versions, after, &mut packer)?;
        if !complete {
            return Ok(ReadEnd { version, more: true, end: packer.from, left_out: packer.left_out });
        }
        let end = Cursor::whole(version);
        let left_out = packer.finish(end);
        Ok(ReadEnd { version, more: false, end, left_out })
    }

    /// Gives the changes to `packer`. Says whether it took them all.
    fn read_query(&self, sql: &str, after: Cursor, packer: &mut Packer<'_>) -> Result<bool, DatabaseError> {
        let mut statement = self.wrap(self.connection.prepare_cached(sql))?;
        // No site has an empty id. NULL would leave out changes of which the site is not known.
        let reader = packer.selection.without.as_ref().map_or(&[][..], SiteId::as_bytes);
        let all = named_params! {":version": after.version, ":reader": reader, ":seq": after.seq};
        let rows = match sql.contains(":seq") {
            true => statement.query(all),
            false => statement.query(&all[..2]),
        };
        let mut rows = self.wrap(rows)?;
        while let Some(row) = self.wrap(rows.next())? {
            if !packer.push(row)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The query without these tables.
fn without(sql: &str, tables: &[String]) -> String {
    let conditions: String = tables.iter().map(|table| format!("AND \"table\" IS NOT {} ", sql_text(table))).collect();
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

/// Cuts a stream of rows into packs.
struct Packer<'a> {
    database: &'a Database,
    source: SiteId,
    selection: &'a Selection,
    pack_bytes: usize,
    shapes: HashMap<&'a str, Shape<'a>>,
    /// The row of the last cell, by rowid, and the version in which it was created, if that is recorded.
    created: (i64, Option<i64>),
    names: Names,
    take: TakePack<'a>,
    /// Where the pack in the making starts.
    from: Cursor,
    changes: Vec<Change>,
    raw_bytes: usize,
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
            shapes: tables.iter().map(Shape::new).map(|shape| (shape.table.name.as_str(), shape)).collect(),
            created: (0, None),
            names: Names::default(),
            take,
            from,
            changes: Vec::new(),
            raw_bytes: 0,
            left_out: LeftOut::default(),
            leaving_out: Vec::new(),
        }
    }

    /// Takes a row, or refuses it because no more packs are wanted.
    fn push(&mut self, row: &Row<'_>) -> Result<bool, DatabaseError> {
        if !self.selection.has_table(self.database.wrap(fields(row))?.0) {
            return Ok(true);
        }
        let place = self.database.wrap(place(row))?;
        if self.travels_with_its_row(row, place)? {
            return Ok(true);
        }
        if let Some(to) = self.cut_before(place)
            && self.cut(to).is_break()
        {
            return Ok(false);
        }
        let change = match self.change(row, place)? {
            Ok(change) => change,
            // One change that no pack can hold must not keep all the others from travelling.
            Err(reason) => {
                let (table, pk, cid, _) = self.database.wrap(fields(row))?;
                self.leave_out(place, &lossy(table), pk, &lossy(cid), reason);
                return Ok(true);
            }
        };
        let moved = self.moved(row, &change)?;
        self.add(change);
        moved.into_iter().for_each(|change| self.add(change));
        Ok(true)
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
            let created = moved::created(&self.database.connection, &shape.created_sql, rowid);
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
        self.raw_bytes += CHANGE_OVERHEAD + key_bytes + value_bytes(&change.val);
        self.changes.push(change);
    }

    /// The cells that came with the key that `created` creates, at the same place; see [`moved`].
    fn moved(&mut self, row: &Row<'_>, created: &Change) -> Result<Vec<Change>, DatabaseError> {
        if *created.cid != *SENTINEL || created.cl % 2 == 0 {
            return Ok(Vec::new());
        }
        let Some(shape) = self.shapes.get(&*created.table) else { return Ok(Vec::new()) };
        let rowid = self.database.wrap(row.get(9))?;
        let cells = moved::cells(&self.database.connection, shape.table, rowid, created.db_version);
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

    /// Where the pack in the making ends if a change at `place` comes next and should not go into it: between two
    /// transactions once it has its size, within a transaction only when it has twice that, and never between
    /// changes at the same place, which no cursor tells apart.
    fn cut_before(&self, place: Cursor) -> Option<Cursor> {
        let last = self.changes.last()?.cursor();
        if place.version > last.version {
            return (self.raw_bytes >= self.pack_bytes).then(|| Cursor::whole(last.version));
        }
        (place.seq > last.seq && self.raw_bytes >= self.pack_bytes.saturating_mul(2)).then_some(last)
    }

    fn cut(&mut self, to: Cursor) -> ControlFlow<()> {
        let changes = std::mem::take(&mut self.changes);
        self.raw_bytes = 0;
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

    /// The change of a row, or why it cannot travel.
    fn change(&mut self, row: &Row<'_>, place: Cursor) -> Result<Result<Change, &'static str>, DatabaseError> {
        let database = self.database;
        let (table, pk, cid, val) = database.wrap(fields(row))?;
        let (table, cid) = (lossy(table), lossy(cid));
        let Some(shape) = self.shapes.get(&*table) else {
            return Ok(Err("its table is no CRR any more, or has a name that is not valid UTF-8"));
        };
        if let Err(reason) = check_pk(pk, shape.table.key_columns.len()) {
            return Ok(Err(reason));
        }
        if table.len() > MAX_NAME || cid.len() > MAX_NAME {
            return Ok(Err("its name is too long"));
        }
        let site_id = database.wrap(row.get_ref(6))?.as_bytes().ok().and_then(|id| SiteId::from_bytes(id).ok());
        let Some(site_id) = site_id else { return Ok(Err(UNKNOWN_SITE)) };
        let change = Change {
            pk: self.names.key(pk),
            val: val.into(),
            col_version: database.wrap(row.get(4))?,
            db_version: place.version,
            site_id,
            cl: database.wrap(row.get(7))?,
            seq: place.seq,
            table: self.names.name(&table),
            cid: self.names.name(&cid),
        };
        Ok(change.check().map(|()| change))
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
fn lossy(name: &[u8]) -> std::borrow::Cow<'_, str> {
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
