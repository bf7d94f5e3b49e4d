//! What the schema says about the file's CRRs, and the prepared statements that belong to each.
//!
//! A [`Catalog`] is read once and kept until the schema changes. The change is noticed by a *probe*:
//! a statement that does nothing but make SQLite check the schema. If SQLite had to compile it
//! anew, the schema is no longer the one of the catalog: that holds for changes by other
//! connections, by this one in the middle of a transaction, and for those that a rollback undid.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use rusqlite::types::ValueRef;

use crate::error::{Error, Result};
use crate::ffi::{Db, Slot, Stmt};
use crate::merge::RowStatements;
use crate::sql::{ident, idents, join, literal, same_name, strip_suffix};

/// `col_name` of the record that holds a row's causal length.
pub(crate) const SENTINEL: &str = "-1";
/// What the name of a clock table ends in.
pub(crate) const CLOCK_SUFFIX: &str = "__crsql_clock";

/// The CRRs of a file, in the order of their clock tables in `sqlite_master`.
pub(crate) struct Catalog {
    /// Those that have a base table and a key table.
    pub(crate) tables: Vec<Rc<Crr>>,
    by_name: HashMap<String, usize>,
    /// Names of all clock tables, also of those without a base table: they count for `db_version`.
    clocks: Vec<Slot>,
    /// Position of the table asked for last: mostly the one asked for next.
    last: Cell<usize>,
    probe: Slot,
    compiled: Cell<i32>,
}

impl Catalog {
    /// Reads the schema.
    pub(crate) fn load(db: Db) -> Result<Catalog> {
        let probe = Slot::new("SELECT 1 FROM main.sqlite_master WHERE 0");
        let compiled = run_probe(&probe, db)?;
        let mut tables = Vec::new();
        let mut by_name = HashMap::new();
        let mut clocks = Vec::new();
        let existing = table_names(db)?;
        for (index, clock) in clock_tables(db)?.into_iter().enumerate() {
            clocks.push(Slot::new(format!("SELECT max(db_version) FROM main.{}", ident(&clock))));
            let Some(name) = strip_suffix(&clock, CLOCK_SUFFIX) else { continue };
            if let Some(shape) = Shape::read(db, name, &existing)? {
                by_name.insert(name.to_owned(), tables.len());
                tables.push(Rc::new(Crr::new(index, shape)));
            }
        }
        let compiled = Cell::new(compiled);
        Ok(Catalog { tables, by_name, clocks, last: Cell::new(0), probe, compiled })
    }

    /// Whether the schema is still the one that was read.
    pub(crate) fn is_current(&self, db: Db) -> Result<bool> {
        Ok(run_probe(&self.probe, db)? == self.compiled.get())
    }

    /// The CRR of this name. The exact name is looked for first: it is what triggers say.
    pub(crate) fn table(&self, name: &str) -> Option<&Rc<Crr>> {
        let last = self.tables.get(self.last.get());
        if last.is_some_and(|crr| crr.name() == name) {
            return last;
        }
        let index = match self.by_name.get(name) {
            Some(&index) => index,
            None => self.tables.iter().position(|crr| same_name(crr.name(), name))?,
        };
        self.last.set(index);
        self.tables.get(index)
    }

    /// The highest `db_version` of any clock table; none if there is no clock table.
    pub(crate) fn max_version(&self, db: Db) -> Result<Option<i64>> {
        let mut max = None;
        for clock in &self.clocks {
            let mut stmt = clock.get(db)?;
            let mut rows = stmt.query(&[])?;
            rows.next()?;
            max = max.max(Some(rows.int(0)));
        }
        Ok(max)
    }
}

/// Makes SQLite check the schema; returns how often that made it compile the probe anew.
fn run_probe(probe: &Slot, db: Db) -> Result<i32> {
    let mut stmt = probe.get(db)?;
    stmt.exec(&[])?;
    Ok(stmt.reprepared())
}

/// Names of the clock tables of `main`, in the order of `sqlite_master`.
pub(crate) fn clock_tables(db: Db) -> Result<Vec<String>> {
    let mut stmt = Stmt::prepare(
        db,
        "SELECT name FROM main.sqlite_master AS m WHERE type = 'table' \
           AND name LIKE '%\\_\\_crsql\\_clock' ESCAPE '\\' \
           AND 6 = (SELECT count(*) FROM pragma_table_info(m.name, 'main') WHERE name IN \
             ('key', 'col_name', 'col_version', 'db_version', 'site_id', 'seq')) \
         ORDER BY rowid",
    )?;
    let mut rows = stmt.query(&[])?;
    let mut names = Vec::new();
    while rows.next()? {
        let name = rows.text(0);
        if strip_suffix(&name, CLOCK_SUFFIX).is_some() {
            names.push(name);
        }
    }
    Ok(names)
}

/// The columns of a table that take part in replication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) name: String,
    /// Primary-key columns in the order of the PRIMARY KEY clause.
    pub(crate) keys: Vec<String>,
    /// The other columns in the order of declaration, without generated and hidden ones.
    pub(crate) columns: Vec<String>,
}

impl Shape {
    /// The shape of table `name` of `main`; none if it or its key table is not among the `existing` ones.
    fn read(db: Db, name: &str, existing: &HashSet<String>) -> Result<Option<Shape>> {
        let exists = |name: &str| existing.contains(&name.to_ascii_lowercase());
        if !exists(name) || !exists(&format!("{name}__crsql_pks")) {
            return Ok(None);
        }
        let shape = Shape::of_table(db, name)?;
        Ok((!shape.keys.is_empty()).then_some(shape))
    }

    /// The shape of table `name` of `main`, without columns if there is no such table.
    pub(crate) fn of_table(db: Db, name: &str) -> Result<Shape> {
        let mut stmt = Stmt::prepare(db, "SELECT name, pk FROM pragma_table_info(?1, 'main') ORDER BY pk, cid")?;
        let name_param = [ValueRef::Text(name.as_bytes())];
        let mut rows = stmt.query(&name_param)?;
        let mut shape = Shape { name: name.to_owned(), keys: Vec::new(), columns: Vec::new() };
        while rows.next()? {
            let list = if rows.int(1) > 0 { &mut shape.keys } else { &mut shape.columns };
            list.push(rows.text(0));
        }
        Ok(shape)
    }

    /// The position of the column `name` among [`Shape::columns`]. The exact name is looked for first: it is what
    /// records say as long as nobody renames a column.
    pub(crate) fn column(&self, name: &[u8]) -> Option<usize> {
        let exact = self.columns.iter().position(|c| c.as_bytes() == name);
        exact.or_else(|| self.columns.iter().position(|c| c.as_bytes().eq_ignore_ascii_case(name)))
    }

    /// Gives the records that meet `condition` the names of their columns as the table spells them: `ALTER TABLE` may
    /// have changed the case of letters. Of two records of one cell the one with the other spelling stays, the older.
    pub(crate) fn respell(&self, condition: &str) -> String {
        let names = join(&self.columns, ", ", |c| literal(c));
        let spelling = join(&self.columns, " ", |c| format!("WHEN {0} THEN {0}", literal(c)));
        format!(
            "UPDATE OR REPLACE {} SET col_name = CASE col_name COLLATE NOCASE {spelling} END \
             WHERE {condition} AND col_name NOT IN ({names}) AND col_name COLLATE NOCASE IN ({names})",
            self.clock()
        )
    }

    /// Whether key `p` of the key table has a row `b` in the base table, as a condition.
    pub(crate) fn has_row(&self) -> String {
        format!("EXISTS (SELECT 1 FROM {} AS b WHERE {})", self.base(), self.same_row())
    }

    /// Whether row `b` has key `p`, as a condition.
    pub(crate) fn same_row(&self) -> String {
        join(&self.keys, " AND ", |k| format!("b.{0} = p.{0}", ident(k)))
    }

    pub(crate) fn clock(&self) -> String {
        format!("main.{}", ident(&format!("{}{CLOCK_SUFFIX}", self.name)))
    }

    pub(crate) fn pks(&self) -> String {
        format!("main.{}", ident(&format!("{}__crsql_pks", self.name)))
    }

    pub(crate) fn base(&self) -> String {
        format!("main.{}", ident(&self.name))
    }
}

/// Names of all tables of `main`, in small letters as far as SQLite ignores case.
fn table_names(db: Db) -> Result<HashSet<String>> {
    let mut stmt = Stmt::prepare(db, "SELECT name FROM main.sqlite_master WHERE type = 'table'")?;
    let mut rows = stmt.query(&[])?;
    let mut names = HashSet::new();
    while rows.next()? {
        names.insert(rows.text(0).to_ascii_lowercase());
    }
    Ok(names)
}

/// One CRR and its statements.
///
/// Parameters are numbered; `keys` stands for one parameter per key column, in their order.
pub(crate) struct Crr {
    /// Position of the clock table among the file's clock tables.
    pub(crate) index: usize,
    pub(crate) shape: Shape,

    /// keys → nothing; makes a key if there is none.
    pub(crate) key_insert: Slot,
    /// keys → key.
    pub(crate) key_find: Slot,
    /// key → nothing.
    pub(crate) key_forget: Slot,

    /// key, `db_version`, first seq: writes the first record of every cell of a new key. (OR FAIL,
    /// because it needs no statement journal: the records of a new key conflict with nothing.)
    pub(crate) first_touch: Slot,
    /// key, `db_version`, first seq: counts up every cell's version, or starts it at 1.
    pub(crate) touch_all: Slot,
    /// key, `db_version`, seq, `col_name`: counts up one cell's version, if it has a record.
    pub(crate) touch: Slot,
    /// key, `db_version`, seq, `col_name`: the first record of one cell.
    pub(crate) touch_new: Slot,
    /// key, `db_version`, seq: the row (re)appears.
    pub(crate) create: Slot,
    /// key, `db_version`, seq: the row reappears, if it has a sentinel.
    pub(crate) recreate: Slot,
    /// key, `db_version`, seq: the row disappears.
    pub(crate) kill: Slot,
    /// key → `col_name` of all records.
    names: Slot,
    /// key: spells the names in the cells' records as the table does.
    respell: Slot,
    /// The names of the columns, sorted by their bytes.
    sorted: Vec<String>,
    /// key: removes the cells' records.
    pub(crate) drop_cells: Slot,
    /// old key, new key: moves the cells' records.
    pub(crate) move_cells: Slot,

    /// keys → key, `col_name` and `col_version` of all records (one row with NULLs if the key has none).
    pub(crate) records: Slot,
    /// key, `col_name`, `col_version`, `db_version`, site ordinal, seq: writes a record.
    pub(crate) record: Slot,
    /// The same, if there is a record to overwrite.
    pub(crate) record_again: Slot,
    /// key, `db_version`: sets the cells' versions to 0.
    pub(crate) zero_cells: Slot,
    /// The same, and gives each a place of its own in that version.
    pub(crate) pull_cells: Slot,
    /// key, `col_name` → site id of the record.
    pub(crate) record_site: Slot,
    /// keys: makes the base row with defaults, if absent.
    pub(crate) row_insert: Slot,
    /// keys: removes the base row.
    pub(crate) row_delete: Slot,
    /// keys → a row if the base row is there.
    pub(crate) row_exists: Slot,
    /// The statements that write whole base rows.
    pub(crate) rows: RowStatements,
    /// keys → the values of all columns.
    pub(crate) row_values: Slot,
    /// One per column.
    pub(crate) cells: Vec<CellStmts>,

    /// `db_version` → `db_version`, key of all rows with records of this version and later ones, in this
    /// order.
    pub(crate) scan: Slot,
    /// `db_version`, first key, last key → key of all rows between with records of this version, in order.
    pub(crate) scan_keys: Slot,
    /// key → key, `col_name`, `col_version`, site ordinal, seq, `db_version` of the records of this row
    /// and of those after it, in the order of key and `col_name`.
    pub(crate) scan_rows: Slot,
    /// key → key, keys, all columns of this row and of those after it, in the order of key.
    pub(crate) row_read: Slot,
    /// The same without the columns.
    pub(crate) key_read: Slot,
}

/// The statements of one column of a CRR.
pub(crate) struct CellStmts {
    /// keys, value: makes the base row with this value, or sets the value.
    pub(crate) insert: Slot,
    /// keys, value: sets the value if the row exists.
    pub(crate) update: Slot,
    /// keys → value.
    pub(crate) value: Slot,
    /// key → key, keys, value of this row and of those after it, in the order of key.
    pub(crate) read: Slot,
}

impl Crr {
    pub(crate) fn new(index: usize, shape: Shape) -> Crr {
        let (clock, pks, base) = (shape.clock(), shape.pks(), shape.base());
        // In conditions parameters are written `+?1`. If there are statistics of an index (ANALYZE), SQLite
        // looks at the value of a plain parameter to choose a plan, and chooses anew whenever one is bound.
        let keys = idents(&shape.keys);
        let marks = join(1..=shape.keys.len(), ",", |i| format!("?{i}"));
        let same =
            |by: &str| join(shape.keys.iter().enumerate(), " AND ", |(i, k)| format!("{} {by} +?{}", ident(k), i + 1));
        let is_key = same("=");
        let value_mark = format!("?{}", shape.keys.len() + 1);
        let columns = "key, col_name, col_version, db_version, site_id, seq";
        let stamp = "db_version = excluded.db_version, site_id = 0, seq = excluded.seq";
        let own = |first_version: &str, next_version: &str, rows: &str| {
            let rows = if rows.is_empty() {
                format!("(?1, '{SENTINEL}', {first_version}, ?2, 0, ?3)")
            } else {
                rows.to_owned()
            };
            Slot::new(format!(
                "INSERT INTO {clock} ({columns}) VALUES {rows} \
                 ON CONFLICT (key, col_name) DO UPDATE SET col_version = {next_version}, {stamp}"
            ))
        };
        let all_cells =
            join(shape.columns.iter().enumerate(), ", ", |(i, c)| format!("(?1, {}, 1, ?2, 0, ?3 + {i})", literal(c)));
        // A range of one value: SQLite takes it for several rows and so keeps its place in the B-tree
        // between finding the record and writing it. With an equality it searches twice. OR FAIL for
        // want of a statement journal, which several rows would need; there is never more than one.
        let one_cell = |mark: &str| format!("col_name >= +{mark} AND col_name <= +{mark}");
        let next_odd = "col_version + 1 + (col_version & 1)";
        let read = |values: &str| {
            let p_keys = join(&shape.keys, ", ", |k| format!("p.{}", ident(k)));
            let join_base = if values.is_empty() {
                String::new()
            } else {
                let on = join(&shape.keys, " AND ", |k| format!("b.{0} = p.{0}", ident(k)));
                format!(" LEFT JOIN {base} AS b ON {on}")
            };
            Slot::new(format!(
                "SELECT p.__crsql_key, {p_keys}{values} FROM {pks} AS p{join_base} \
                 WHERE p.__crsql_key >= +?1 ORDER BY p.__crsql_key"
            ))
        };
        let cell = |column: &String| {
            let c = ident(column);
            CellStmts {
                insert: Slot::new(format!(
                    "INSERT INTO {base} ({keys}, {c}) VALUES ({marks}, {value_mark}) \
                     ON CONFLICT ({keys}) DO UPDATE SET {c} = excluded.{c}"
                )),
                update: Slot::new(format!("UPDATE {base} SET {c} = {value_mark} WHERE {is_key}")),
                value: Slot::new(format!("SELECT {c} FROM {base} WHERE {is_key}")),
                read: read(&format!(", b.{c}")),
            }
        };
        let mut sorted = shape.columns.clone();
        sorted.sort_unstable();
        Crr {
            index,
            key_insert: Slot::new(format!("INSERT OR IGNORE INTO {pks} ({keys}) VALUES ({marks})")),
            key_find: Slot::new(format!("SELECT __crsql_key FROM {pks} WHERE {}", same("IS"))),
            key_forget: Slot::new(format!("DELETE FROM {pks} WHERE __crsql_key = +?1")),
            first_touch: Slot::new(format!("INSERT OR FAIL INTO {clock} ({columns}) VALUES {all_cells}")),
            touch_all: own("1", "col_version + 1", &all_cells),
            touch: Slot::new(format!(
                "UPDATE OR FAIL {clock} SET col_version = col_version + 1, db_version = ?2, site_id = 0, seq = ?3 \
                 WHERE key = +?1 AND {}",
                one_cell("?4")
            )),
            touch_new: Slot::new(format!("INSERT INTO {clock} ({columns}) VALUES (?1, ?4, 1, ?2, 0, ?3)")),
            create: own("1", next_odd, ""),
            recreate: Slot::new(format!(
                "UPDATE {clock} SET col_version = {next_odd}, db_version = ?2, site_id = 0, \
                 seq = ?3 WHERE key = +?1 AND col_name = '{SENTINEL}'"
            )),
            kill: own("2", "col_version + 1", ""),
            names: Slot::new(format!("SELECT col_name FROM {clock} WHERE key = +?1")),
            respell: Slot::new(shape.respell("key = +?1")),
            sorted,
            drop_cells: Slot::new(format!("DELETE FROM {clock} WHERE key = +?1 AND col_name <> '{SENTINEL}'")),
            move_cells: Slot::new(format!(
                "UPDATE OR REPLACE {clock} SET key = ?2 WHERE key = +?1 AND col_name <> '{SENTINEL}'"
            )),
            records: Slot::new(format!(
                "SELECT p.__crsql_key, c.col_name, c.col_version FROM {pks} AS p \
                 LEFT JOIN {clock} AS c ON c.key = p.__crsql_key WHERE {}",
                join(shape.keys.iter().enumerate(), " AND ", |(i, k)| format!("p.{} IS +?{}", ident(k), i + 1))
            )),
            record: Slot::new(format!(
                "INSERT INTO {clock} ({columns}) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
                 ON CONFLICT (key, col_name) DO UPDATE SET col_version = excluded.col_version, \
                 db_version = excluded.db_version, site_id = excluded.site_id, seq = excluded.seq"
            )),
            record_again: Slot::new(format!(
                "UPDATE OR FAIL {clock} SET col_version = ?3, db_version = ?4, site_id = ?5, seq = ?6 \
                 WHERE key = +?1 AND {}",
                one_cell("?2")
            )),
            zero_cells: Slot::new(format!(
                "UPDATE {clock} SET col_version = 0, db_version = ?2 \
                 WHERE key = +?1 AND col_name <> '{SENTINEL}'"
            )),
            pull_cells: Slot::new(format!(
                "UPDATE {clock} SET col_version = 0, db_version = ?2, seq = crsql_increment_and_get_seq() \
                 WHERE key = +?1 AND col_name <> '{SENTINEL}'"
            )),
            record_site: Slot::new(format!(
                "SELECT s.site_id FROM {clock} AS c JOIN main.crsql_site_id AS s \
                 ON s.ordinal = c.site_id WHERE c.key = +?1 AND c.col_name = +?2"
            )),
            row_insert: Slot::new(format!(
                "INSERT INTO {base} ({keys}) VALUES ({marks}) ON CONFLICT ({keys}) DO NOTHING"
            )),
            row_delete: Slot::new(format!("DELETE FROM {base} WHERE {is_key}")),
            row_exists: Slot::new(format!("SELECT 1 FROM {base} WHERE {is_key}")),
            rows: RowStatements::default(),
            row_values: Slot::new(format!(
                "SELECT {} FROM {base} WHERE {is_key}",
                // A table of keys only has no values, but a SELECT has columns.
                if shape.columns.is_empty() { "1".to_owned() } else { idents(&shape.columns) }
            )),
            cells: shape.columns.iter().map(cell).collect(),
            // DISTINCT in the order of the index, which holds all three columns: nothing is sorted,
            // and the table is not looked at.
            scan: Slot::new(format!(
                "SELECT DISTINCT db_version, key FROM {clock} \
                 WHERE db_version >= +?1 ORDER BY db_version, key"
            )),
            scan_keys: Slot::new(format!(
                "SELECT DISTINCT key FROM {clock} \
                 WHERE db_version = +?1 AND key BETWEEN +?2 AND +?3 ORDER BY key"
            )),
            scan_rows: Slot::new(format!(
                "SELECT key, col_name, col_version, site_id, seq, db_version FROM {clock} \
                 WHERE key >= +?1 ORDER BY key, col_name"
            )),
            row_read: read(&join(&shape.columns, "", |c| format!(", b.{}", ident(c)))),
            key_read: read(""),
            shape,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.shape.name
    }

    /// The id that a row of `crsql_changes` has if it is about this key.
    pub(crate) fn change_rowid(&self, key: i64) -> i64 {
        const SLAB: i64 = 10_000_000_000_000;
        let index = i64::try_from(self.index).unwrap_or(0);
        index.wrapping_mul(SLAB).wrapping_add(key % SLAB)
    }

    /// The key of the tuple, made if there is none; whether it existed. `expect_new` only chooses
    /// the faster way.
    pub(crate) fn key(&self, db: Db, tuple: &[ValueRef<'_>], expect_new: bool) -> Result<(i64, bool)> {
        if !expect_new && let Some(key) = self.find_key(db, tuple)? {
            return Ok((key, true));
        }
        if let Some(key) = self.make_key(db, tuple)? {
            return Ok((key, false));
        }
        match self.find_key(db, tuple)? {
            Some(key) => Ok((key, true)),
            None => Err(Error::usage("failed geteting or creating lookaside key")),
        }
    }

    /// A new key for the tuple; none if it has one.
    pub(crate) fn make_key(&self, db: Db, tuple: &[ValueRef<'_>]) -> Result<Option<i64>> {
        self.key_insert.get(db)?.exec(tuple)?;
        Ok((db.changes() > 0).then(|| db.last_insert_rowid()))
    }

    /// Spells the names in the records of a row's cells as the table does. Returns whether any was spelled otherwise.
    pub(crate) fn respell(&self, db: Db, key: i64) -> Result<bool> {
        if !self.is_misspelt(db, key)? {
            return Ok(false);
        }
        self.respell.get(db)?.exec(&[ValueRef::Integer(key)])?;
        Ok(db.changes() > 0)
    }

    fn is_misspelt(&self, db: Db, key: i64) -> Result<bool> {
        let mut stmt = self.names.get(db)?;
        let key = [ValueRef::Integer(key)];
        let mut rows = stmt.query(&key)?;
        while rows.next()? {
            let name = rows.name(0);
            let exact = self.sorted.binary_search_by(|column| column.as_bytes().cmp(name)).is_ok();
            if !exact && name != SENTINEL.as_bytes() {
                return Ok(self.shape.column(name).is_some());
            }
        }
        Ok(false)
    }

    fn find_key(&self, db: Db, tuple: &[ValueRef<'_>]) -> Result<Option<i64>> {
        let mut stmt = self.key_find.get(db)?;
        let mut rows = stmt.query(tuple)?;
        Ok(if rows.next()? { Some(rows.int(0)) } else { None })
    }
}
