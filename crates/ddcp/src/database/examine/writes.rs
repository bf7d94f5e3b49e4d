//! Whether rows can be written to a table at all, as merges do: everything that its schema has happen then must be
//! known here.

use rusqlite::Connection;

use super::{
    super::{
        TableShape,
        error::message,
        schema::{self, quote},
    },
    Remark, Remarked, text,
    triggers::Trigger,
};

/// Why nothing can be written to the table, if so: a trigger, an index or a column asks for what is not here.
pub(super) fn obstacle(
    connection: &Connection,
    table: &TableShape,
    triggers: &[Trigger],
) -> rusqlite::Result<Option<Remark>> {
    let Some(why) = failure(connection, table) else { return Ok(None) };
    let guilty = guilty(connection, triggers, &why)?;
    let mend = guilty.map(Trigger::sql_drop);
    let what = Remarked::NotWritable { why, trigger: guilty.map(|trigger| trigger.name.clone()) };
    Ok(Some(Remark { table: table.name.clone(), what, mend }))
}

/// What SQLite says when it is to write to the table. Nothing is run.
fn failure(connection: &Connection, table: &TableShape) -> Option<String> {
    statements(table).iter().find_map(|sql| connection.prepare(sql).err()).map(|error| message(&error))
}

/// One of each kind that a merge runs.
fn statements(table: &TableShape) -> Vec<String> {
    let name = quote(&table.name);
    let columns: Vec<String> =
        table.key_columns.iter().chain(&table.columns).map(|column| quote(&column.name)).collect();
    let (list, marks) = (columns.join(", "), vec!["?"; columns.len()].join(", "));
    let sets: Vec<String> = columns.iter().map(|column| format!("{column} = ?")).collect();
    vec![
        format!("INSERT INTO {name} ({list}) VALUES ({marks})"),
        format!("UPDATE {name} SET {}", sets.join(", ")),
        format!("DELETE FROM {name}"),
    ]
}

/// The trigger because of which writing fails, if it is one. Each is tried alone, on an empty copy of the
/// schema.
fn guilty<'a>(connection: &Connection, triggers: &'a [Trigger], why: &str) -> rusqlite::Result<Option<&'a Trigger>> {
    let mut declarations = connection
        .prepare("SELECT sql FROM sqlite_master WHERE type IN ('table', 'view') AND sql IS NOT NULL ORDER BY rowid")?;
    let scratch = Connection::open_in_memory()?;
    crsqlite::register(&scratch).map_err(rusqlite::Error::from)?;
    for declaration in declarations.query_map([], |row| text(row, 0))? {
        // What cannot be declared here is missed by the triggers that use it.
        let _ = scratch.execute_batch(&declaration?);
    }
    for trigger in triggers {
        if scratch.execute_batch(&trigger.sql).is_err() {
            continue;
        }
        let target = schema::table(&scratch, trigger.table.clone())?;
        let fails = failure(&scratch, &target).is_some_and(|failure| failure == why);
        scratch.execute_batch(&trigger.sql_drop())?;
        if fails {
            return Ok(Some(trigger));
        }
    }
    Ok(None)
}
