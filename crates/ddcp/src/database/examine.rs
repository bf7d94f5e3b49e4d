//! What may be wrong with a database that opens: damage, and tables whose shape gets in the way of replication.

use rusqlite::Connection;

use super::{Database, DatabaseError, error::message, schema, schema::quote};

/// Lines of a check that are worth reading.
const MOST_LINES: u32 = 10;

/// A table, and what is noticed about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The table.
    pub table: String,
    /// What is noticed.
    pub what: Remarked,
}

/// What can be noticed about a table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remarked {
    /// It does not replicate, and could.
    NotShared,
    /// It does not replicate, and could not: why.
    NotShareable(String),
    /// It replicates, though by now it is not fit to: why.
    Unfit(String),
    /// Triggers are missing, so that writes of some kind are not recorded.
    NotRecorded,
    /// Its key is the integer column of this name, which SQLite fills in when a row is inserted without it.
    NumberedKey(String),
    /// Its key column of this name has a collation, which replication does not heed.
    CollatedKey(String),
    /// It was dropped, and its metadata stayed.
    Dropped,
}

impl Database {
    /// SQLite's own check of the file: what it complains of, nothing if the file is sound. `thorough` also compares
    /// indexes with their tables. Reads the whole file.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn check_structure(&self, thorough: bool) -> Result<Vec<String>, DatabaseError> {
        let pragma = if thorough { "integrity_check" } else { "quick_check" };
        let lines = || {
            let mut statement = self.connection.prepare(&format!("PRAGMA {pragma}({MOST_LINES})"))?;
            let lines: rusqlite::Result<Vec<String>> = statement.query_map([], |row| row.get(0))?.collect();
            lines
        };
        let lines = self.wrap(lines())?;
        Ok(if lines == ["ok"] { Vec::new() } else { lines })
    }

    /// The journal mode, as SQLite calls it: `wal`, `delete` and others.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn journal_mode(&self) -> Result<String, DatabaseError> {
        self.wrap(self.connection.pragma_query_value(None, "journal_mode", |row| row.get(0)))
    }

    /// The version of the file's replication metadata, as CR-SQLite numbers them: 160300 is 0.16.3.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn metadata_version(&self) -> Result<i64, DatabaseError> {
        self.wrap(schema::crsqlite_version(&self.connection))
    }

    /// What is noticed about the tables, those that replicate and those that do not. Looks at the schema only.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn remarks(&self) -> Result<Vec<Remark>, DatabaseError> {
        let shared = self.tables()?;
        let mut remarks = Vec::new();
        let mut remark = |table: &str, what: Remarked| remarks.push(Remark { table: table.to_owned(), what });
        for name in self.wrap(plain_tables(&self.connection))? {
            if shared.iter().any(|table| table.name.eq_ignore_ascii_case(&name)) {
                continue;
            }
            let obstacle = self.wrap(obstacle(&self.connection, &name))?;
            remark(&name, obstacle.map_or(Remarked::NotShared, Remarked::NotShareable));
        }
        for table in &shared {
            if let Some(why) = self.wrap(obstacle(&self.connection, &table.name))? {
                remark(&table.name, Remarked::Unfit(why));
            }
            if !self.wrap(has_all_triggers(&self.connection, &table.name))? {
                remark(&table.name, Remarked::NotRecorded);
            }
            if let [key] = table.key_columns.as_slice()
                && key.declared_type == "INTEGER"
            {
                remark(&table.name, Remarked::NumberedKey(key.name.clone()));
            }
            for column in self.wrap(collated_keys(&self.connection, &table.name))? {
                remark(&table.name, Remarked::CollatedKey(column));
            }
        }
        for table in self.wrap(dropped(&self.connection))? {
            remark(&table, Remarked::Dropped);
        }
        Ok(remarks)
    }
}

/// Tables of the user's, in the order of their names.
fn plain_tables(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(
        r"SELECT name FROM pragma_table_list
          WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'
            AND name NOT LIKE 'crsql\_%' ESCAPE '\' AND name NOT LIKE '%\_\_crsql\_%' ESCAPE '\'
          ORDER BY name",
    )?;
    statement.query_map([], |row| row.get(0))?.collect()
}

/// Why the engine would not take this table, empty, for one that replicates. It is asked: an empty database gets the
/// same table.
fn obstacle(connection: &Connection, table: &str) -> rusqlite::Result<Option<String>> {
    let mut statement = connection.prepare_cached(
        "SELECT sql FROM sqlite_master WHERE tbl_name = ?1 COLLATE NOCASE AND type IN ('table', 'index') AND sql IS NOT NULL
         ORDER BY type DESC",
    )?;
    let declarations: Vec<String> = statement.query_map([table], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let trial = Connection::open_in_memory()?;
    crsqlite::register(&trial).map_err(rusqlite::Error::from)?;
    let made = declarations
        .iter()
        .try_for_each(|declaration| trial.execute_batch(declaration))
        .and_then(|()| trial.query_row("SELECT crsql_as_crr(?1)", [table], |_| Ok(())));
    Ok(made.err().map(|error| message(&error)))
}

fn has_all_triggers(connection: &Connection, table: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM sqlite_master WHERE type = 'trigger'
               AND name IN (?1 || '__crsql_itrig', ?1 || '__crsql_utrig', ?1 || '__crsql_dtrig')";
    connection.query_row(sql, [table], |row| row.get::<_, i64>(0)).map(|triggers| triggers == 3)
}

/// Key columns that are compared otherwise than byte by byte.
fn collated_keys(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare_cached(
        "SELECT info.name FROM pragma_index_list(?1) AS list JOIN pragma_index_xinfo(list.name) AS info
         WHERE list.origin = 'pk' AND info.key AND info.coll <> 'BINARY' COLLATE NOCASE AND info.name IS NOT NULL",
    )?;
    statement.query_map([table], |row| row.get(0))?.collect()
}

/// Tables that are gone and have left their clock table behind.
fn dropped(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(
        "SELECT substr(clock.name, 1, length(clock.name) - 13) AS gone FROM sqlite_master AS clock
         WHERE clock.type = 'table' AND substr(clock.name, -13) = '__crsql_clock'
           AND NOT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = gone COLLATE NOCASE)
         ORDER BY gone",
    )?;
    statement.query_map([], |row| row.get(0))?.collect()
}

/// What a statement calls the table `name`: a text in SQL.
#[must_use]
pub fn sql_text(name: &str) -> String {
    format!("'{}'", name.replace('\'', "''"))
}

/// The statement that removes what is left of a dropped table.
#[must_use]
pub fn sql_forget(table: &str) -> String {
    let name = |end: &str| quote(&format!("{table}__crsql_{end}"));
    format!("DROP TABLE {}; DROP TABLE {}", name("clock"), name("pks"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::OpenOptions;

    fn remarks(schema: &str) -> Vec<(String, Remarked)> {
        let dir = tempfile::tempdir().unwrap();
        let options = OpenOptions { create: true, ..OpenOptions::default() };
        let database = Database::open(&dir.path().join("a.db"), &options).unwrap();
        database.connection().execute_batch(schema).unwrap();
        assert_eq!(database.check_structure(true).unwrap(), [""; 0]);
        assert_eq!(database.journal_mode().unwrap(), "wal");
        database.remarks().unwrap().into_iter().map(|remark| (remark.table, remark.what)).collect()
    }

    #[test]
    fn nothing_is_remarked_of_a_fit_table() {
        assert_eq!(remarks("CREATE TABLE a (id TEXT NOT NULL PRIMARY KEY, b); SELECT crsql_as_crr('a');"), []);
    }

    #[test]
    fn tables_that_do_not_replicate_are_named_with_the_reason() {
        let found = remarks(
            "CREATE TABLE fit (id TEXT NOT NULL PRIMARY KEY); CREATE TABLE keyless (a);
             CREATE TABLE once (id TEXT NOT NULL PRIMARY KEY, mail TEXT); CREATE UNIQUE INDEX one ON once (mail);
             CREATE VIEW v AS SELECT * FROM fit;",
        );
        let [(fit, could), (keyless, no_key), (once, unique)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((fit.as_str(), could), ("fit", &Remarked::NotShared));
        assert!(
            matches!(no_key, Remarked::NotShareable(why) if keyless == "keyless" && why.contains("no primary key"))
        );
        assert!(matches!(unique, Remarked::NotShareable(why) if once == "once" && why.contains("unique indices")));
    }

    #[test]
    fn shapes_that_make_trouble_are_named() {
        let found = remarks(
            "CREATE TABLE n (id INTEGER NOT NULL PRIMARY KEY, b); SELECT crsql_as_crr('n');
             CREATE TABLE c (id TEXT NOT NULL COLLATE NOCASE PRIMARY KEY, b); SELECT crsql_as_crr('c');
             CREATE TABLE gone (id TEXT NOT NULL PRIMARY KEY, b); SELECT crsql_as_crr('gone'); DROP TABLE gone;
             CREATE TABLE t (id TEXT NOT NULL PRIMARY KEY, b); SELECT crsql_as_crr('t'); DROP TRIGGER t__crsql_utrig;
             CREATE TABLE u (id TEXT NOT NULL PRIMARY KEY, b); SELECT crsql_as_crr('u'); CREATE UNIQUE INDEX ub ON u (b);",
        );
        assert!(found.contains(&("n".into(), Remarked::NumberedKey("id".into()))), "{found:?}");
        assert!(found.contains(&("c".into(), Remarked::CollatedKey("id".into()))), "{found:?}");
        assert!(found.contains(&("gone".into(), Remarked::Dropped)), "{found:?}");
        assert!(found.contains(&("t".into(), Remarked::NotRecorded)), "{found:?}");
        assert!(found.iter().any(|(table, what)| table == "u" && matches!(what, Remarked::Unfit(_))), "{found:?}");
        assert_eq!(found.len(), 5, "{found:?}");
    }
}
