//! Making a table anew, for what `ALTER TABLE` cannot do.

use super::Declaration;
use crate::sql::{ident, join, literal};

/// Yields the columns whose values are kept when the table `?1` is made anew: all but the generated ones.
pub const KEPT: &str = "SELECT name FROM pragma_table_xinfo(?1, 'main') WHERE hidden = 0 ORDER BY cid";

/// Yields the statements of the indexes and triggers of the table `?1`, without the triggers of a CRR.
pub const MADE_ANEW: &str = "SELECT sql FROM main.sqlite_master
    WHERE tbl_name = ?1 COLLATE NOCASE AND type IN ('index', 'trigger') AND sql IS NOT NULL
      AND (type = 'index' OR name NOT LIKE '%\\_\\_crsql\\__trig' ESCAPE '\\') ORDER BY type, rowid";

/// Yields the statement that the table `?1` was declared by, as SQLite keeps it.
pub const REBUILT_FROM: &str = "SELECT sql FROM main.sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE";

/// Yields whether rows of the table `?1` have a rowid that is in no column.
pub const IS_ROWID_KEPT: &str =
    "SELECT NOT wr AND (NOT EXISTS (SELECT 1 FROM pragma_table_info(?1, 'main') WHERE pk > 0)
        OR EXISTS (SELECT 1 FROM pragma_index_list(?1, 'main') WHERE origin = 'pk'))
    FROM pragma_table_list WHERE schema = 'main' AND name = ?1 COLLATE NOCASE";

/// A table that is to be made anew, and what has to be known of it: the answers to [`KEPT`], [`IS_ROWID_KEPT`] and
/// [`MADE_ANEW`].
#[derive(Clone, Debug)]
pub struct Rebuild<'a> {
    /// The table, as its declaration ([`REBUILT_FROM`]) says.
    pub declaration: &'a Declaration<'a>,
    /// The columns whose values are kept.
    pub kept: &'a [String],
    /// Whether rows have a rowid that is in no column. Full-text indexes and others refer to it.
    pub has_rowid: bool,
    /// The statements of its indexes and triggers.
    pub beside: &'a [String],
}

impl Rebuild<'_> {
    /// The statements that make the table anew with more columns, of which these are the definitions, and every row as it
    /// was. They are to be run in one transaction, with `foreign_keys` off: dropping the table would otherwise delete
    /// rows that refer to it, or be refused because of them. Nothing is renamed, which would change what views, triggers
    /// and foreign keys of other tables say.
    #[must_use]
    pub fn statements(&self, added: &[&str]) -> Vec<String> {
        let name = self.declaration.name();
        let kept = format!("{name}__crsql_kept");
        let (table, copy) = (ident(name), ident(&kept));
        let columns: Vec<String> =
            self.rowid().map(str::to_owned).into_iter().chain(self.kept.iter().map(|column| ident(column))).collect();
        // The sign takes a column's affinity away, so that the copy keeps each value as it is stored.
        let values = join(columns.iter().enumerate(), ", ", |(at, column)| format!("+{column} AS c{at}"));
        let places = join(0..columns.len(), ", ", |at| format!("c{at}"));
        let mut statements = vec![format!("CREATE TEMP TABLE {copy} AS SELECT {values} FROM main.{table}")];
        let rename = |from: &str, to: &str| {
            format!("UPDATE main.sqlite_sequence SET name = {} WHERE name = {}", literal(to), literal(from))
        };
        if self.declaration.is_numbered() {
            statements.push(rename(name, &kept));
        }
        statements.extend([
            format!("DROP TABLE main.{table}"),
            self.declaration.with_columns(added),
            format!("INSERT INTO main.{table} ({}) SELECT {places} FROM temp.{copy}", columns.join(", ")),
            format!("DROP TABLE temp.{copy}"),
        ]);
        if self.declaration.is_numbered() {
            // AUTOINCREMENT gives no number twice, also none of a row that is gone.
            statements.push(format!("DELETE FROM main.sqlite_sequence WHERE name = {}", literal(name)));
            statements.push(rename(&kept, name));
        }
        statements.extend(self.beside.iter().cloned());
        statements
    }

    /// A name for the rowid that no column has.
    fn rowid(&self) -> Option<&'static str> {
        let is_free = |name: &&str| self.declaration.column(name).is_none();
        ["rowid", "_rowid_", "oid"].into_iter().find(is_free).filter(|_| self.has_rowid)
    }
}
