//! What is written to a CRR while it is altered.
//!
//! Between `crsql_begin_alter` and `crsql_commit_alter` the CRR's own triggers are away. Objects in the temporary schema
//! stand in for them:
//!
//! * a table of values that rows had before they were first written to, by their keys in the key table;
//! * triggers that fill it by [`before_write`]. They name key columns only, since a column that a trigger names cannot be
//!   dropped, and all columns in the list of UPDATE OF, which SQLite does not look at when a column is dropped but rewrites
//!   when one is renamed. So the list also tells what each column is called now.
//!
//! A table that is dropped and made anew takes the triggers with it: then columns are what their names say, and only rows
//! that are new or gone are noticed.

use std::rc::Rc;

use rusqlite::types::ValueRef;

use crate::catalog::Shape;
use crate::crr;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ffi::function::Output;
use crate::ffi::{Args, Db, Slot, Stmt};
use crate::sql::{ident, join, literal, same_name};

/// The temporary table of old values. Column `k` is the key, the others are called `v` and the name of the column.
pub(crate) fn notes(name: &str) -> String {
    ident(&format!("{name}__crsql_before"))
}

/// The column of that table for column `name`.
pub(crate) fn old_value(name: &str) -> String {
    ident(&format!("v{name}"))
}

fn trigger(name: &str, kind: char) -> String {
    ident(&format!("{name}__crsql_before_{kind}"))
}

/// Begins to note what is written to the CRR, unless that has begun already. A table whose key is not that of its key table
/// is not watched: all its metadata will be made anew.
pub(crate) fn start(db: Db, shape: &Shape) -> Result<()> {
    let name = &shape.name;
    let keys = key_columns(db, name)?;
    let known = |key: &String| shape.keys.iter().find(|k| same_name(k, key));
    let same_keys = keys.len() == shape.keys.len() && keys.iter().all(|key| known(key).is_some());
    if !same_keys || is_noting(db, name)? {
        return Ok(());
    }
    let types = pairs_of(db, name, "main")?;
    let type_of = |c: &String| types.iter().find(|(name, _)| same_name(name, c)).map_or("", |(_, text)| text.as_str());
    let values = join(&shape.columns, "", |c| format!(", {} {}", old_value(c), note_of_type(type_of(c))));
    let all = join(keys.iter().chain(&shape.columns), ",", |c| ident(c));
    let note = |row: &str| {
        let keys = join(&keys, ", ", |k| format!("{row}.{}", ident(k)));
        format!("SELECT crsql_before_write({}, {keys});", literal(name))
    };
    let (new, old) = (note("NEW"), note("OLD"));
    let mut sql = format!("CREATE TEMP TABLE {} (k INTEGER PRIMARY KEY{values});", notes(name));
    for (kind, event, body) in [
        ('i', "INSERT".to_owned(), new.clone()),
        ('u', format!("UPDATE OF {all}"), format!("{old} {new}")),
        ('d', "DELETE".to_owned(), old.clone()),
    ] {
        sql += &format!(
            "CREATE TEMP TRIGGER {} BEFORE {event} ON {} WHEN crsql_internal_sync_bit() = 0 BEGIN {body} END;",
            trigger(name, kind),
            shape.base()
        );
    }
    db.execute_batch(&sql)
}

fn is_noting(db: Db, name: &str) -> Result<bool> {
    crr::exists(db, "temp.sqlite_master", "table", &format!("{name}__crsql_before"))
}

/// The columns of the key table, in its order.
fn key_columns(db: Db, name: &str) -> Result<Vec<String>> {
    let columns = columns_of(db, &format!("{name}__crsql_pks"), "main")?;
    Ok(columns.into_iter().skip(1).collect())
}

/// What the column of old values is declared as, so that its type is known later: in digits, so that the declaration has no
/// affinity but BLOB, which leaves values as they are.
fn note_of_type(declared: &str) -> String {
    let digits = declared.bytes().map(|byte| format!("{:02x}", byte.to_ascii_lowercase())).collect::<String>();
    format!("\"blob {digits}\"")
}

/// Columns of a table in their order, with the types that they are declared to have.
fn pairs_of(db: Db, table: &str, schema: &str) -> Result<Vec<(String, String)>> {
    let mut stmt = Stmt::prepare(db, "SELECT name, type FROM pragma_table_info(?1, ?2) ORDER BY cid")?;
    let params = [ValueRef::Text(table.as_bytes()), ValueRef::Text(schema.as_bytes())];
    let mut rows = stmt.query(&params)?;
    let mut pairs = Vec::new();
    while rows.next()? {
        pairs.push((rows.text(0), rows.text(1)));
    }
    Ok(pairs)
}

fn columns_of(db: Db, table: &str, schema: &str) -> Result<Vec<String>> {
    Ok(pairs_of(db, table, schema)?.into_iter().map(|(name, _)| name).collect())
}

/// Removes all of it, if it is there.
pub(crate) fn stop(db: Db, name: &str) -> Result<()> {
    let triggers = join(['i', 'u', 'd'], "", |kind| format!("DROP TRIGGER IF EXISTS temp.{};", trigger(name, kind)));
    db.execute_batch(&format!("{triggers} DROP TABLE IF EXISTS temp.{}", notes(name)))
}

/// `crsql_before_write(table, keys...)`: notes the row with these keys, if there is one that has records and was not noted
/// yet.
pub(crate) fn before_write(engine: &Engine, args: Args<'_>) -> Result<Output> {
    let name = args.text(0).unwrap_or_default();
    let cache = engine.cache()?;
    let known = cache.before.borrow().get(&*name).cloned();
    let note = match known {
        Some(note) => note,
        None => {
            let note = Rc::new(Slot::new(note_statement(engine.db, &name)?));
            cache.before.borrow_mut().insert(name.into_owned(), Rc::clone(&note));
            note
        }
    };
    let keys = args.from(1).iter().collect::<Vec<_>>();
    note.get(engine.db)?.exec(&keys)?;
    Ok(Output::Null)
}

fn note_statement(db: Db, name: &str) -> Result<String> {
    let Some(tracked) = Tracked::of(db, name)?.filter(|tracked| tracked.table.is_some()) else {
        return Err(Error::usage(format!("table {name} is not being altered")));
    };
    let table = Shape::of_table(db, tracked.table.as_deref().unwrap_or(name))?;
    let value = |(_, now): &(String, String)| match table.columns.iter().any(|c| same_name(c, now)) {
        true => format!(", b.{}", ident(now)),
        false => ", NULL".to_owned(),
    };
    let pairs = || tracked.keys.iter().enumerate();
    Ok(format!(
        "INSERT OR IGNORE INTO temp.{} SELECT p.__crsql_key{} FROM main.{} AS p JOIN {} AS b ON {} WHERE {}",
        notes(name),
        join(&tracked.columns, "", value),
        ident(&format!("{name}__crsql_pks")),
        table.base(),
        join(pairs(), " AND ", |(_, (old, now))| format!("b.{} = p.{}", ident(now), ident(old))),
        join(pairs(), " AND ", |(i, (old, _))| format!("p.{} IS +?{}", ident(old), i + 1)),
    ))
}

/// What became of the columns of a table since its alteration began.
pub(crate) struct Tracked {
    /// What the table is called now; none if it was dropped, also if there is a new one of its name.
    pub(crate) table: Option<String>,
    /// Key columns, in their order: the name in the key table and the name now.
    pub(crate) keys: Vec<(String, String)>,
    /// The other columns: the name then and the name now.
    pub(crate) columns: Vec<(String, String)>,
    /// Columns that have the name of one there was, and are another one: dropped and added anew, or renamed to it.
    pub(crate) replaced: Vec<String>,
}

impl Tracked {
    /// None if no alteration of the table has begun.
    pub(crate) fn of(db: Db, name: &str) -> Result<Option<Tracked>> {
        if !is_noting(db, name)? {
            return Ok(None);
        }
        let keys = key_columns(db, name)?;
        let noted = columns_of(db, &format!("{name}__crsql_before"), "temp")?;
        let columns = noted.iter().skip(1).filter_map(|c| c.get(1..)).map(str::to_owned).collect::<Vec<_>>();
        let (table, now) = names_now(db, name)?;
        let now = if now.len() == keys.len() + columns.len() { now } else { [&keys[..], &columns[..]].concat() };
        let mut pairs = keys.iter().chain(&columns).cloned().zip(now).collect::<Vec<_>>();
        let columns = pairs.split_off(keys.len());
        Ok(Some(Tracked { table, keys: pairs, columns, replaced: Vec::new() }))
    }

    /// Finds out which columns of the table called `name` now are others than their names say. SQLite keeps the order of
    /// columns and adds new ones at the end, and no statement changes a type: a column that stands behind one that came
    /// after it, or has another type, is another one.
    pub(crate) fn find_replaced(&mut self, db: Db, name: &str) -> Result<()> {
        let now = pairs_of(db, name, "main")?;
        let noted = pairs_of(db, &format!("{name}__crsql_before"), "temp")?;
        let place = |column: &str| now.iter().position(|(name, _)| same_name(name, column));
        let known = |column: &str| self.keys.iter().chain(&self.columns).any(|(_, name)| same_name(name, column));
        let first_new = now.iter().position(|(name, _)| !known(name)).unwrap_or(now.len());
        let is_new_type = |old: &str, place: usize| {
            let noted = noted.iter().find(|(name, _)| name.get(1..) == Some(old));
            noted.is_some_and(|(_, noted)| format!("\"{noted}\"") != note_of_type(&now[place].1))
        };
        let is_same_table = self.table.is_some();
        let mut replaced = Vec::new();
        for (i, (old, column)) in self.columns.iter().enumerate() {
            let Some(at) = place(column) else { continue };
            let mut later = self.columns[i + 1..].iter().filter_map(|(_, name)| place(name));
            let is_behind = is_same_table && (at > first_new || later.any(|other| other < at));
            if is_behind || is_new_type(old, at) {
                replaced.push(column.clone());
            }
        }
        self.replaced = replaced;
        Ok(())
    }

    /// The same for the table that is called `name` now: if it is not the one that was there when the alteration began,
    /// its columns are what their names say.
    pub(crate) fn seen_from(self, name: &str) -> Tracked {
        if self.table.as_deref().is_some_and(|table| same_name(table, name)) {
            return Tracked { columns: one_for_each_name(&self.columns), ..self };
        }
        let by_name = |pairs: Vec<(String, String)>| pairs.into_iter().map(|(old, _)| (old.clone(), old)).collect();
        Tracked { table: None, keys: by_name(self.keys), columns: by_name(self.columns), replaced: Vec::new() }
    }
}

/// SQLite leaves the name of a dropped column in the list, and another column may have taken it since. That is one that was
/// renamed to it, the last one if there are several.
fn one_for_each_name(columns: &[(String, String)]) -> Vec<(String, String)> {
    let renamed = |(old, now): &(String, String)| !same_name(old, now);
    let better = |other: &(String, String), this: &(String, String)| renamed(other) || !renamed(this);
    let beaten = |at: usize| {
        let this = &columns[at];
        let rivals = || columns.iter().enumerate().filter(|(i, other)| *i != at && same_name(&other.1, &this.1));
        rivals().any(|(i, other)| better(other, this) && (i > at || !renamed(this)))
    };
    (0..columns.len()).filter(|at| !beaten(*at)).map(|at| columns[at].clone()).collect()
}

/// The table that the update trigger is on, and the columns in its list; nothing if it is gone.
fn names_now(db: Db, name: &str) -> Result<(Option<String>, Vec<String>)> {
    let name = trigger(name, 'u');
    let sql = "SELECT tbl_name, sql FROM temp.sqlite_master WHERE type = 'trigger' AND substr(sql, 1, length(?1)) = ?1";
    let mut stmt = Stmt::prepare(db, sql)?;
    let head = format!("CREATE TRIGGER {name} BEFORE UPDATE OF ");
    let param = [ValueRef::Text(head.as_bytes())];
    let mut rows = stmt.query(&param)?;
    if !rows.next()? {
        return Ok((None, Vec::new()));
    }
    Ok((Some(rows.text(0)), quoted_names(&rows.text(1)[head.len()..])))
}

/// The list of quoted names that `text` begins with.
fn quoted_names(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = text.trim_start();
    while let Some(quoted) = rest.strip_prefix('"') {
        let mut name = String::new();
        let mut chars = quoted.char_indices().peekable();
        rest = "";
        while let Some((i, c)) = chars.next() {
            if c != '"' {
                name.push(c);
            } else if chars.next_if(|(_, next)| *next == '"').is_some() {
                name.push('"');
            } else {
                rest = quoted[i + 1..].trim_start();
                break;
            }
        }
        names.push(name);
        match rest.strip_prefix(',') {
            Some(more) => rest = more.trim_start(),
            None => break,
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_columns_with_one_name_now_the_one_renamed_last_is_there() {
        let pairs = |columns: &[(&str, &str)]| {
            columns.iter().map(|(old, now)| ((*old).to_owned(), (*now).to_owned())).collect::<Vec<_>>()
        };
        let kept = |columns: &[(&str, &str)]| one_for_each_name(&pairs(columns));
        assert_eq!(kept(&[("a", "a"), ("b", "z")]), pairs(&[("a", "a"), ("b", "z")]));
        assert_eq!(kept(&[("a", "a"), ("b", "A")]), pairs(&[("b", "A")]));
        assert_eq!(kept(&[("b", "a"), ("a", "a")]), pairs(&[("b", "a")]));
        assert_eq!(kept(&[("a", "t"), ("b", "t"), ("t", "t")]), pairs(&[("b", "t")]));
    }

    #[test]
    fn lists_of_names() {
        assert_eq!(quoted_names(r#""a","b c" , "d""e""" ON main."foo""#), ["a", "b c", "d\"e\""]);
        assert_eq!(quoted_names(r#""a" ON main."b","c""#), ["a"]);
        assert!(quoted_names("ON x").is_empty());
    }
}
