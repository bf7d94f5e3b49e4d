//! Tables with an order column: triggers and a view that compute order keys.

use rusqlite::types::ValueRef;

use super::{as_key, between};
use crate::catalog::Shape;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ffi::function::Output;
use crate::ffi::{Args, Db, Stmt};
use crate::load::in_transaction;
use crate::sql::{ident, idents, join, literal, same_name};

/// `crsql_fract_as_ordered(table, order_column, list_column...)`
pub(crate) fn as_ordered(engine: &Engine, args: Args<'_>) -> Result<Output> {
    if args.len() < 2 {
        return Err(Error::usage("Must provide at least 2 arguments -- the table name and the column to order by"));
    }
    let names = (0..args.len()).map(|i| args.text(i).unwrap_or_default().into_owned());
    let names = names.collect::<Vec<_>>();
    let list = List::find(engine.db, &names[0], &names[1], &names[2..])?;
    in_transaction(engine.db, "fract_as_ordered", || list.create(engine.db))?;
    Ok(Output::Null)
}

/// A table whose rows are in an order, one per value of the list columns.
struct List {
    shape: Shape,
    order: String,
    lists: Vec<String>,
    /// All columns but the order column, as declared.
    others: Vec<String>,
}

impl List {
    fn find(db: Db, table: &str, order: &str, lists: &[String]) -> Result<List> {
        let shape = Shape::of_table(db, table)?;
        let mut columns = Vec::new();
        let mut stmt = Stmt::prepare(db, "SELECT name FROM pragma_table_info(?1, 'main') ORDER BY cid")?;
        let param = [ValueRef::Text(table.as_bytes())];
        let mut rows = stmt.query(&param)?;
        while rows.next()? {
            columns.push(rows.text(0));
        }
        if !lists.iter().map(String::as_str).chain([order]).all(|c| columns.iter().any(|k| same_name(k, c))) {
            return Err(Error::usage("all columns are not present in the base table"));
        }
        columns.retain(|c| !same_name(c, order));
        Ok(List { shape, order: order.to_owned(), lists: lists.to_vec(), others: columns })
    }

    fn create(&self, db: Db) -> Result<()> {
        let name = &self.shape.name;
        let pending = ident(&format!("__crsql_{name}_fractindex_pend_trig"));
        let move_trigger = ident(&format!("__crsql_{name}_fractindex_ezmove"));
        let view = ident(&format!("{name}_fractindex"));
        db.execute_batch(&format!(
            "DROP TRIGGER IF EXISTS {pending};
             DROP TRIGGER IF EXISTS {move_trigger};
             DROP VIEW IF EXISTS {view}"
        ))?;
        let after = join(&self.shape.keys, ", ", |k| format!("NULL AS {}", ident(&format!("after_{k}"))));
        db.execute_batch(&self.pending_trigger(&pending))?;
        db.execute_batch(&self.move_trigger(&move_trigger))?;
        db.execute_batch(&format!(
            "CREATE VIEW {view} AS
        SELECT *, {after}
        FROM {}",
            ident(name)
        ))?;
        db.execute_batch(&self.view_insert_trigger(&view))?;
        db.execute_batch(&self.view_update_trigger(&view))
    }

    /// The rows of the list of the row NEW.
    fn same_list(&self) -> String {
        if self.lists.is_empty() {
            return "1".to_owned();
        }
        join(&self.lists, " AND ", |c| format!("{0} = NEW.{0}", ident(c)))
    }

    /// The keys for the first and the last place, as the branches of a CASE, on lines of their own.
    fn ends(&self, indent: &str) -> String {
        let (table, o, list) = (ident(&self.shape.name), ident(&self.order), self.same_list());
        let end = |which: &str| format!("(SELECT {which}({o}) FROM {table} WHERE {list} AND {o} != -1 AND {o} != 1)");
        format!(
            "WHEN -1 THEN crsql_fract_key_between(NULL, {})
{indent}WHEN 1 THEN crsql_fract_key_between({}, NULL)",
            end("MIN"),
            end("MAX")
        )
    }

    fn pending_trigger(&self, trigger: &str) -> String {
        let (table, o, ends) = (ident(&self.shape.name), ident(&self.order), self.ends("            "));
        format!(
            "CREATE TRIGGER {trigger} AFTER INSERT ON {table}
        WHEN CAST(NEW.{o} AS INTEGER) = -1 OR CAST(NEW.{o} AS INTEGER) = 1 BEGIN
            UPDATE {table} SET {o} = CASE CAST(NEW.{o} AS INTEGER)
            {ends}
            END
            WHERE _rowid_ = NEW._rowid_;
        END"
        )
    }

    fn move_trigger(&self, trigger: &str) -> String {
        let (table, o, ends) = (ident(&self.shape.name), ident(&self.order), self.ends("        "));
        format!(
            "CREATE TRIGGER {trigger} AFTER UPDATE OF {o} ON {table}
      WHEN NEW.{o} = -1 OR NEW.{o} = 1 BEGIN
        UPDATE {table} SET {o} = CASE NEW.{o}
        {ends}
        END
        WHERE _rowid_ = NEW._rowid_;
      END"
        )
    }

    /// The order value of a row that is put after the one that the `after_` columns name.
    fn placed(&self) -> String {
        let (table, o, list) = (ident(&self.shape.name), ident(&self.order), self.same_list());
        let after = |k: &String| format!("NEW.{}", ident(&format!("after_{k}")));
        let is_after = join(&self.shape.keys, " AND ", |k| format!("{} = {}", ident(k), after(k)));
        let position = format!("(SELECT {o} FROM {table} WHERE {is_after})");
        let lists = join(&self.lists, "", |c| format!("{}, ", literal(c)));
        let keys = join(&self.shape.keys, ", ", |k| literal(k));
        let values = join(&self.shape.keys, ", ", after);
        format!(
            "CASE (
                  SELECT count(*) FROM {table} WHERE {list} AND {o} = {position}
                )
                  WHEN 1 THEN crsql_fract_key_between(
                    {position},
                    (SELECT {o} FROM {table} WHERE {list} AND {o} >
                      {position}
                    ORDER BY {o} ASC LIMIT 1)
                  )
                  WHEN 0 THEN -1
                  ELSE crsql_fract_fix_conflict_return_old_key(
                    {}, {}, {lists} -1, {keys}, {values}
                  )
                END",
            literal(&self.shape.name),
            literal(&self.order)
        )
    }

    fn view_insert_trigger(&self, view: &str) -> String {
        let name = &self.shape.name;
        let trigger = ident(&format!("{name}_fractindex_insert_trig"));
        let columns = join(&self.others, ", ", |c| ident(c));
        let values = join(&self.others, ", ", |c| format!("NEW.{}", ident(c)));
        format!(
            "CREATE TRIGGER {trigger}
        INSTEAD OF INSERT ON {view}
        BEGIN
            INSERT INTO {}
              ({columns}, {})
            VALUES
              (
                {values},
                {}
              );
        END",
            ident(name),
            ident(&self.order),
            self.placed()
        )
    }

    fn view_update_trigger(&self, view: &str) -> String {
        let name = &self.shape.name;
        let trigger = ident(&format!("{name}_fractindex_update_trig"));
        let sets = join(&self.others, ", ", |c| format!("{0} = NEW.{0}", ident(c)));
        let same = join(&self.shape.keys, " AND ", |k| format!("{0} = NEW.{0}", ident(k)));
        format!(
            "CREATE TRIGGER {trigger}
        INSTEAD OF UPDATE ON {view}
        BEGIN
            UPDATE {} SET
                {sets},
                {} = {}
              WHERE {same};
        END",
            ident(name),
            ident(&self.order),
            self.placed()
        )
    }
}

/// `crsql_fract_fix_conflict_return_old_key(table, order_column, list_column..., -1, key..., value...)`
///
/// Several rows share an order key and another is to follow the given one: moves that row a bit to
/// the front and returns a key between its new place and the old one.
pub(crate) fn fix_conflict(engine: &Engine, args: Args<'_>) -> Result<Output> {
    if args.len() < 4 {
        return Err(Error::usage("Too few arguments to fix_conflict_return_old_key"));
    }
    let end = (2..args.len()).find(|i| matches!(args.get(*i), ValueRef::Integer(_)));
    let keys = end.map_or(0, |end| args.len() - end - 1);
    let (Some(end), true) = (end, keys > 0 && keys % 2 == 0) else {
        return Err(Error::usage(
            "Incorrect number of primary keys and values provided. \
             Must have at least 1 primary key.",
        ));
    };
    let names = (0..end + 1 + keys / 2).map(|i| args.text(i).unwrap_or_default().into_owned()).collect::<Vec<_>>();
    let place = Place { table: &names[0], order: &names[1], lists: &names[2..end], keys: &names[end + 1..] };
    let values = args.from(end + 1 + keys / 2).iter().collect::<Vec<_>>();
    place
        .make_room(engine.db, &values)
        .map(Output::Text)
        .map_err(|_| Error::usage("Failed fixing up ordering conflicts on insert"))
}

/// A row of an ordered table.
struct Place<'a> {
    table: &'a str,
    order: &'a str,
    lists: &'a [String],
    keys: &'a [String],
}

impl Place<'_> {
    fn make_room(&self, db: Db, key: &[ValueRef<'_>]) -> Result<String> {
        let (table, o) = (ident(self.table), ident(self.order));
        let is_row = join(self.keys.iter().enumerate(), " AND ", |(i, k)| format!("{} = ?{}", ident(k), i + 1));
        let same_list = if self.lists.is_empty() {
            "1".to_owned()
        } else {
            let lists = idents(self.lists);
            format!("({lists}) IS (SELECT {lists} FROM {table} WHERE {is_row})")
        };
        let one = |sql: &str| -> Result<Option<String>> {
            let mut stmt = Stmt::prepare(db, sql)?;
            let mut rows = stmt.query(key)?;
            Ok(if rows.next()? { as_key(rows.column(0)) } else { None })
        };
        let here = one(&format!("SELECT {o} FROM {table} WHERE {is_row}"))?
            .ok_or_else(|| Error::usage("there is no such row or it has no place yet"))?;
        let before = one(&format!(
            "SELECT max({o}) FROM {table} WHERE {same_list} AND {o} != -1 AND {o} != 1 \
             AND {o} < (SELECT {o} FROM {table} WHERE {is_row})"
        ))?;
        let moved = between(before.as_deref(), Some(&here))?;
        let mut params = key.to_vec();
        params.push(ValueRef::Text(moved.as_bytes()));
        Stmt::prepare(db, &format!("UPDATE {table} SET {o} = ?{} WHERE {is_row}", key.len() + 1))?.exec(&params)?;
        between(Some(&moved), Some(&here))
    }
}
