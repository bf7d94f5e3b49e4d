//! Foreign keys are not enforced in merging: merges do as the writes did where they were made. What a merge leaves
//! without the row that it refers to is told.

use rusqlite::{Connection, types::ValueRef};

use super::super::schema::{self, quote};
use crate::changeset::key_values;

/// A foreign key to the primary key of a table, whose columns have an index.
struct Reference {
    child: String,
    columns: Vec<String>,
    /// Per column: the place of the value among those of the parent's key.
    places: Vec<usize>,
}

/// A sentence for each foreign key that refers to some of the rows of `table` with these keys, which are gone. One
/// look-up per foreign key and row; keys without an index, which would cost a whole table each, are not looked at.
pub(super) fn dangling(connection: &Connection, table: &str, keys: &[&[u8]]) -> rusqlite::Result<Vec<String>> {
    let mut sentences = Vec::new();
    for reference in references(connection, table)? {
        let mut count = 0;
        let is_same = |column: &String| format!("{} = ?", quote(column));
        let condition: Vec<String> = reference.columns.iter().map(is_same).collect();
        let child = quote(&reference.child);
        let sql = format!("SELECT EXISTS (SELECT 1 FROM main.{child} WHERE {})", condition.join(" AND "));
        let mut refers = connection.prepare(&sql)?;
        for key in keys {
            let Ok(values) = key_values(key).map(Iterator::collect::<Result<Vec<_>, _>>) else { continue };
            let Ok(values) = values else { continue };
            for (at, &place) in reference.places.iter().enumerate() {
                refers.raw_bind_parameter(at + 1, to_sql(values[place]))?;
            }
            let mut rows = refers.raw_query();
            count += usize::from(rows.next()?.is_some_and(|row| row.get(0) == Ok(true)));
        }
        if count > 0 {
            let (child, columns) = (&reference.child, reference.columns.join(", "));
            let rows = if count == 1 { "row" } else { "rows" };
            sentences.push(format!("table {child}: {columns} refers to {count} {rows} of {table} that were deleted"));
        }
    }
    Ok(sentences)
}

fn to_sql(value: ValueRef<'_>) -> rusqlite::types::ToSqlOutput<'_> {
    rusqlite::types::ToSqlOutput::Borrowed(value)
}

/// A foreign key's number and child table, and each child column with the parent's that it refers to.
type ForeignKey = (i64, String, Vec<(String, Option<String>)>);

fn references(connection: &Connection, table: &str) -> rusqlite::Result<Vec<Reference>> {
    let sql = "SELECT m.name, f.id, f.\"from\", f.\"to\" FROM main.sqlite_master AS m
               JOIN pragma_foreign_key_list(m.name, 'main') AS f
               WHERE m.type = 'table' AND f.\"table\" = ?1 COLLATE NOCASE ORDER BY m.name, f.id, f.seq";
    let parent = schema::table(connection, table.to_owned())?.key_names();
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([table])?;
    let mut keys: Vec<ForeignKey> = Vec::new();
    while let Some(row) = rows.next()? {
        let (child, id): (String, i64) = (row.get(0)?, row.get(1)?);
        if !keys.last().is_some_and(|(last, name, _)| *last == id && *name == child) {
            keys.push((id, child, Vec::new()));
        }
        if let Some((_, _, columns)) = keys.last_mut() {
            columns.push((row.get(2)?, row.get(3)?));
        }
    }
    let mut references = Vec::new();
    for (_, child, columns) in keys {
        let Some(places) = places(&parent, &columns) else { continue };
        let columns: Vec<String> = columns.into_iter().map(|(from, _)| from).collect();
        if has_index(connection, &child, &columns)? {
            references.push(Reference { child, columns, places });
        }
    }
    Ok(references)
}

/// Where the values that the columns refer to are in the parent's key; none if they refer to something else.
fn places(parent: &[String], columns: &[(String, Option<String>)]) -> Option<Vec<usize>> {
    if columns.len() != parent.len() {
        return None;
    }
    let place = |(at, (_, to)): (usize, &(String, Option<String>))| match to {
        None => Some(at),
        Some(to) => parent.iter().position(|key| key.eq_ignore_ascii_case(to)),
    };
    columns.iter().enumerate().map(place).collect()
}

/// Whether an index, the rowid included, begins with these columns in any order.
fn has_index(connection: &Connection, table: &str, columns: &[String]) -> rusqlite::Result<bool> {
    let begins = |index: &[String]| {
        index.len() >= columns.len()
            && index[..columns.len()].iter().all(|name| columns.iter().any(|c| c.eq_ignore_ascii_case(name)))
    };
    if begins(&schema::table(connection, table.to_owned())?.key_names()) {
        return Ok(true);
    }
    let sql =
        "SELECT l.name, i.name FROM pragma_index_list(?1, 'main') AS l JOIN pragma_index_info(l.name, 'main') AS i
               WHERE NOT l.partial ORDER BY l.name, i.seqno";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([table])?;
    let mut indexes: Vec<(String, Vec<String>)> = Vec::new();
    while let Some(row) = rows.next()? {
        let (name, column): (String, Option<String>) = (row.get(0)?, row.get(1)?);
        if indexes.last().is_none_or(|(last, _)| *last != name) {
            indexes.push((name, Vec::new()));
        }
        if let Some((_, columns)) = indexes.last_mut() {
            columns.push(column.unwrap_or_default());
        }
    }
    Ok(indexes.iter().any(|(_, index)| begins(index)))
}
