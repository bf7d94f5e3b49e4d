//! Whether a state file is sound.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use rusqlite::Connection;

use super::{STEPS, State, StateError};
use crate::files;

/// The file that says of the state file at `path` that it is to be looked at, or is being made anew.
pub(in crate::repo) fn damage_mark(path: &Path) -> PathBuf {
    path.with_file_name("damaged")
}

/// Has the state file at `path` looked at before it is used again.
pub(super) fn suspect(path: &Path) {
    if let Err(error) = files::create_private(&damage_mark(path)) {
        tracing::warn!(path = %path.display(), %error, "it cannot be noted that the file is damaged");
    }
}

impl State {
    /// What is wrong with the file at `path`, if something is. Reads the whole file.
    ///
    /// # Errors
    /// [`StateError`] where it cannot be told.
    pub(in crate::repo) fn damage(path: &Path) -> Result<Option<String>, StateError> {
        let complaints = Self::open_existing(path).and_then(|state| state.complaints());
        match complaints {
            Ok(complaints) => Ok((!complaints.is_empty()).then(|| complaints.join("; "))),
            Err(error) if error.is_damage() => Ok(Some(error.sqlite().to_string())),
            Err(error) => Err(error),
        }
    }

    /// What is wrong with the file. Reads it all.
    pub(in crate::repo) fn complaints(&self) -> Result<Vec<String>, StateError> {
        // With the indexes: what they lead to is read through them.
        let structure = self.check_structure(true)?;
        if !structure.is_empty() {
            return Ok(structure);
        }
        self.read(|connection| {
            let wanted = wanted_columns()?;
            if columns(connection)? != wanted {
                return Ok(vec!["its tables are not those that this program makes".to_owned()]);
            }
            let mut complaints = Vec::new();
            for (table, column) in wanted {
                let wrong = match (table.as_str(), column.as_str()) {
                    (_, "site_id") => format!("length({column}) NOT BETWEEN 1 AND 16"),
                    ("home", "repository") => format!("length({column}) <> 16"),
                    ("log", "event") => format!("NOT json_valid({column})"),
                    _ => continue,
                };
                let sql = format!("SELECT count(*) FROM {table} WHERE {wrong}");
                let count: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
                if count > 0 {
                    complaints.push(format!("{table}: {count} rows of which the {column} is none"));
                }
            }
            Ok(complaints)
        })
    }
}

/// Tables and columns, sorted.
fn columns(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    const SQL: &str = "SELECT m.name, c.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c
         WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' ORDER BY 1, 2";
    connection.prepare(SQL)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn wanted_columns() -> rusqlite::Result<&'static [(String, String)]> {
    static WANTED: OnceLock<Vec<(String, String)>> = OnceLock::new();
    if let Some(wanted) = WANTED.get() {
        return Ok(wanted);
    }
    let connection = Connection::open_in_memory()?;
    STEPS.iter().try_for_each(|step| connection.execute_batch(step))?;
    let wanted = columns(&connection)?;
    Ok(WANTED.get_or_init(|| wanted))
}
