//! Whether what a table's triggers have recorded is what is in the table.
//!
//! Every count reads the table, or its records, once: examining may take as long as the database is large.

use rusqlite::{Connection, OptionalExtension, Row};

use super::{
    super::{
        ColumnShape, TableShape,
        schema::quote,
        tokens::{Token, tokens},
    },
    Remark, Remarked, in_one, sql_text,
    triggers::Trigger,
};
use crate::changeset::{HIGH_VERSION, SENTINEL};

/// Versions above this are near those that peers put aside. What is written to such a cell may not reach everybody.
const FAR: i64 = HIGH_VERSION / 2;

/// The causal length that rows get which had a far one, if they are deleted; one more if they are not.
const LOWERED: i64 = 1 << 32;

/// What is wrong with the triggers and records of a table that replicates.
pub(super) fn remarks(
    connection: &Connection,
    table: &TableShape,
    stored: &[Trigger],
) -> rusqlite::Result<Vec<Remark>> {
    let records = Records { connection, table };
    if let Some(remark) = records.other_key()? {
        // Of which rows the records are cannot be told then.
        return Ok(vec![remark]);
    }
    let on_triggers = triggers(connection, table, stored)?;
    let knows_updates = !matches!(on_triggers, Some(Remarked::NotRecorded { updates: true }));
    let vanished = records.count_vanished()?;
    let (unrecorded, revived) = records.count_rows()?;
    let (far_rows, far_cells) = records.count_far()?;
    let gone = records.columns_gone()?;
    let lost = records.columns_lost(!gone.is_empty() || !knows_updates)?;
    let delete = (vanished > 0).then(|| records.sql_delete());
    let record = (unrecorded + revived > 0).then(|| records.sql_record());
    let values = (!lost.is_empty()).then(|| records.sql_record_values(&lost));
    let anew = (!knows_updates && !table.columns.is_empty()).then(|| records.sql_record_as_new());
    // Looking at the table anew drops what is recorded of rows that are gone, and records the others in a version that
    // peers may have read: so what they are to hear of is recorded before.
    let realter = || {
        let before = [&delete, &anew, &record, &values].into_iter().flatten().cloned();
        Some(before.chain([sql_realter(&table.name)]).collect::<Vec<_>>().join("; "))
    };
    let mut found = Vec::new();
    let mut remark = |what: Remarked, mend| found.push(Remark { table: table.name.clone(), what, mend });
    if vanished > 0 {
        remark(Remarked::Vanished { rows: vanished }, delete.clone());
    }
    if far_rows > 0 {
        remark(Remarked::FarLengths { rows: far_rows }, Some(records.sql_lower_lengths()));
    }
    if far_cells > 0 {
        remark(Remarked::FarVersions { cells: far_cells }, Some(records.sql_live_again()));
    }
    if let Some(what) = on_triggers {
        remark(what, realter());
    }
    for trigger in doubles(table, stored) {
        remark(Remarked::RecordedTwice(trigger.name.clone()), Some(trigger.sql_drop()));
    }
    if unrecorded > 0 {
        remark(Remarked::Unrecorded { rows: unrecorded }, record.clone());
    }
    if revived > 0 {
        remark(Remarked::Revived { rows: revived }, record.clone());
    }
    if !lost.is_empty() {
        remark(Remarked::UnrecordedColumns { columns: lost.clone(), gone }, realter());
    } else if !gone.is_empty() {
        remark(Remarked::ColumnsGone(gone), realter());
    }
    Ok(found)
}

/// The statements that have the engine look at a table anew: it makes its triggers, and records what is not recorded.
pub(super) fn sql_realter(table: &str) -> String {
    let text = sql_text(table);
    format!("SELECT crsql_begin_alter({text}); SELECT crsql_commit_alter({text})")
}

/// What is wrong with the three triggers that each table should have.
pub(super) fn triggers(
    connection: &Connection,
    table: &TableShape,
    stored: &[Trigger],
) -> rusqlite::Result<Option<Remarked>> {
    let expected = crsqlite::triggers(connection, &table.name).map_err(rusqlite::Error::from)?;
    let of_updates = format!("{}__crsql_utrig", table.name);
    let (mut is_missing, mut is_outdated, mut updates) = (false, false, false);
    for trigger in expected {
        match stored.iter().find(|known| known.name.eq_ignore_ascii_case(&trigger.name)) {
            None => (is_missing, updates) = (true, updates || trigger.name.eq_ignore_ascii_case(&of_updates)),
            Some(known) => is_outdated |= !is_same(&known.sql, &trigger.sql),
        }
    }
    Ok(match (is_missing, is_outdated) {
        (true, _) => Some(Remarked::NotRecorded { updates }),
        (_, true) => Some(Remarked::Outdated),
        _ => None,
    })
}

/// Whether two triggers do the same: their texts are the same to SQLite, up to how names and tables are spelt.
fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (tokens(one), tokens(other));
    let is_same = |(one, other): (&Token<'_>, &Token<'_>)| one.is_same(other);
    one.len() == other.len() && one.iter().zip(&other).all(is_same)
}

/// Triggers on the table, besides its three, that record what is written: what is written twice counts twice.
fn doubles<'a>(table: &TableShape, stored: &'a [Trigger]) -> impl Iterator<Item = &'a Trigger> {
    let own = ["i", "u", "d"].map(|kind| format!("{}__crsql_{kind}trig", table.name));
    let name = table.name.clone();
    stored.iter().filter(move |trigger| {
        trigger.table.eq_ignore_ascii_case(&name)
            && trigger.records()
            && !own.iter().any(|own| own.eq_ignore_ascii_case(&trigger.name))
    })
}

/// What a row's causal length is called in the queries here.
const LENGTH: &str = "__crsql_length";

/// A table and what is recorded of it.
struct Records<'a> {
    connection: &'a Connection,
    table: &'a TableShape,
}

impl Records<'_> {
    fn name(&self, end: &str) -> String {
        quote(&format!("{}__crsql_{end}", self.table.name))
    }

    fn keys(&self, prefix: &str) -> String {
        let keys = self.table.key_columns.iter().map(|key| format!("{prefix}.{}", quote(&key.name)));
        keys.collect::<Vec<_>>().join(", ")
    }

    /// The same key, by value only, as the engine compares them; finds a number `p` by a row of this name.
    fn same_key(&self, row: &str) -> String {
        let same = self.table.key_columns.iter().map(|key| format!("p.{0} IS +{row}.{0}", quote(&key.name)));
        same.collect::<Vec<_>>().join(" AND ")
    }

    /// The same key as the table's own index finds it: a row by a number.
    fn same_row(&self) -> String {
        let same = self.table.key_columns.iter().map(|key| format!("b.{0} = p.{0}", quote(&key.name)));
        same.collect::<Vec<_>>().join(" AND ")
    }

    /// The causal length of the row that has the number `p.__crsql_key`: 0 if nothing is recorded of it.
    fn length(&self) -> String {
        let clock = self.name("clock");
        format!(
            "coalesce((SELECT col_version FROM {clock} WHERE key = p.__crsql_key AND col_name = '{SENTINEL}'), \
             (SELECT 1 FROM {clock} WHERE key = p.__crsql_key LIMIT 1), 0)"
        )
    }

    /// What is wrong if other key columns are recorded than the table has. Where they hold what the table's columns hold,
    /// these were renamed, and so can be what is recorded of them.
    fn other_key(&self) -> rusqlite::Result<Option<Remark>> {
        let pks = format!("{}__crsql_pks", self.table.name);
        let sql = "SELECT name FROM pragma_table_info(?1, 'main') WHERE name <> '__crsql_key' ORDER BY cid";
        let recorded: Vec<String> =
            self.connection.prepare(sql)?.query_map([&pks], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let keys = self.table.key_names();
        let is_known = |key: &String| recorded.iter().any(|known| known.eq_ignore_ascii_case(key));
        if recorded.len() == keys.len() && keys.iter().all(is_known) {
            return Ok(None);
        }
        let renames: Vec<(&String, &String)> =
            recorded.iter().zip(&keys).filter(|(old, new)| !old.eq_ignore_ascii_case(new)).collect();
        let mut statements = Vec::new();
        if recorded.len() == keys.len() && self.holds_the_same(&recorded)? {
            statements.extend(renames.iter().map(|(old, new)| {
                format!("ALTER TABLE {} RENAME COLUMN {} TO {}", quote(&pks), quote(old), quote(new))
            }));
        }
        statements.push(sql_realter(&self.table.name));
        let what = Remarked::OtherKey { recorded };
        Ok(Some(Remark { table: self.table.name.clone(), what, mend: Some(statements.join("; ")) }))
    }

    /// Whether every row's key is recorded in these columns, in the order of the key's.
    fn holds_the_same(&self, recorded: &[String]) -> rusqlite::Result<bool> {
        let same = recorded
            .iter()
            .zip(&self.table.key_columns)
            .map(|(old, new)| format!("p.{} IS +b.{}", quote(old), quote(&new.name)));
        let sql = format!(
            "SELECT NOT EXISTS (SELECT 1 FROM {} AS b WHERE NOT EXISTS (SELECT 1 FROM {} AS p WHERE {}))",
            quote(&self.table.name),
            self.name("pks"),
            same.collect::<Vec<_>>().join(" AND ")
        );
        self.connection.query_row(&sql, [], |row| row.get(0))
    }

    /// All rows, with the causal length that is recorded of each: 0 if nothing is.
    fn rows(&self) -> String {
        let (base, pks) = (quote(&self.table.name), self.name("pks"));
        let length = format!("SELECT {} FROM {pks} AS p WHERE {}", self.length(), self.same_key("b"));
        format!("SELECT b.*, coalesce(({length}), 0) AS {LENGTH} FROM {base} AS b")
    }

    /// Rows that are not recorded as alive.
    fn unrecorded_rows(&self) -> String {
        format!("SELECT * FROM ({}) WHERE {LENGTH} % 2 = 0", self.rows())
    }

    /// Keys of rows that are recorded as alive, and are not there.
    fn vanished_rows(&self) -> String {
        let (base, pks) = (quote(&self.table.name), self.name("pks"));
        format!(
            "SELECT * FROM (SELECT p.*, {} AS {LENGTH} FROM {pks} AS p WHERE NOT EXISTS (SELECT 1 FROM {base} AS b WHERE {})) \
             WHERE {LENGTH} % 2 = 1",
            self.length(),
            self.same_row()
        )
    }

    /// How many rows are not recorded, and how many are recorded as deleted.
    fn count_rows(&self) -> rusqlite::Result<(u64, u64)> {
        let sql = format!(
            "SELECT coalesce(sum({LENGTH} = 0), 0), coalesce(sum({LENGTH} > 0 AND {LENGTH} % 2 = 0), 0) FROM ({})",
            self.rows()
        );
        let count = |row: &Row<'_>, at| row.get::<_, i64>(at).map(i64::unsigned_abs);
        self.connection.query_row(&sql, [], |row| Ok((count(row, 0)?, count(row, 1)?)))
    }

    fn count_vanished(&self) -> rusqlite::Result<u64> {
        let sql = format!("SELECT count(*) FROM ({})", self.vanished_rows());
        self.connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
    }

    /// Rows with a causal length that no honest site comes to, and cells with such a version of other rows that are there.
    fn count_far(&self) -> rusqlite::Result<(u64, u64)> {
        let clock = self.name("clock");
        let rows = format!("SELECT count(*) FROM {clock} WHERE col_name = '{SENTINEL}' AND col_version > {FAR}");
        let cells = format!("SELECT count(*) FROM ({})", self.far_cells());
        let count = |sql: &str| self.connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs);
        Ok((count(&rows)?, count(&cells)?))
    }

    /// The numbers of rows that are there, once for each far cell. Of a row that is not there, something else is said.
    fn far_cells(&self) -> String {
        let (clock, pks, base) = (self.name("clock"), self.name("pks"), quote(&self.table.name));
        format!(
            "SELECT c.key FROM {clock} AS c WHERE c.col_name <> '{SENTINEL}' AND c.col_version > {FAR} AND c.key NOT IN \
             (SELECT key FROM {clock} WHERE col_name = '{SENTINEL}' AND (col_version > {FAR} OR col_version % 2 = 0)) AND EXISTS \
             (SELECT 1 FROM {pks} AS p JOIN {base} AS b ON {} WHERE p.__crsql_key = c.key)",
            self.same_row()
        )
    }

    /// Columns of which values are recorded nowhere, as after they were renamed. Rows are looked at if nothing at all is
    /// recorded of a column, or if `any_gone`: something is recorded of one that is not there.
    fn columns_lost(&self, any_gone: bool) -> rusqlite::Result<Vec<String>> {
        let mut lost = Vec::new();
        for column in &self.table.columns {
            if (any_gone || !self.knows(column)?) && self.has_unrecorded_values(column)? {
                lost.push(column.name.clone());
            }
        }
        Ok(lost)
    }

    /// Names under which cells are recorded that no column of the table has.
    fn columns_gone(&self) -> rusqlite::Result<Vec<String>> {
        let sql = format!(
            "SELECT DISTINCT col_name FROM {} WHERE col_name <> '{SENTINEL}' AND col_name COLLATE NOCASE NOT IN
             (SELECT name FROM pragma_table_info(?1, 'main')) ORDER BY col_name",
            self.name("clock")
        );
        self.connection.prepare(&sql)?.query_map([&self.table.name], |row| row.get(0))?.collect()
    }

    /// Whether anything is recorded of the column.
    fn knows(&self, column: &ColumnShape) -> rusqlite::Result<bool> {
        let sql = format!("SELECT EXISTS (SELECT 1 FROM {} WHERE col_name = ?1 COLLATE NOCASE)", self.name("clock"));
        self.connection.query_row(&sql, [&column.name], |row| row.get(0))
    }

    /// Whether a row that is recorded has a value in the column that is neither recorded nor what a row begins with.
    fn has_unrecorded_values(&self, column: &ColumnShape) -> rusqlite::Result<bool> {
        let (name, base) = (quote(&column.name), quote(&self.table.name));
        let sql = |default: &str| {
            format!(
                "SELECT EXISTS (SELECT 1 FROM {base} AS b CROSS JOIN {} AS p ON {} WHERE b.{name} IS NOT ({default})
                 AND {} % 2 = 1 AND NOT EXISTS (SELECT 1 FROM {} WHERE key = p.__crsql_key AND col_name = ?1 COLLATE NOCASE))",
                self.name("pks"),
                self.same_key("b"),
                self.length(),
                self.name("clock"),
            )
        };
        let default = self.default_of(column)?;
        let find = |default: &str| self.connection.query_row(&sql(default), [&column.name], |row| row.get(0));
        // DEFAULT word means the text 'word', which is no expression.
        find(&default).or_else(|_| find(&sql_text(&default)))
    }

    fn default_of(&self, column: &ColumnShape) -> rusqlite::Result<String> {
        let sql = "SELECT dflt_value FROM pragma_table_info(?1, 'main') WHERE name = ?2";
        let default: Option<Option<String>> =
            self.connection.query_row(sql, [&self.table.name, &column.name], |row| row.get(0)).optional()?;
        Ok(default.flatten().unwrap_or_else(|| "NULL".to_owned()))
    }

    /// The statement that records the deletion of rows that are gone: as if the deletions were merged.
    fn sql_delete(&self) -> String {
        let rows = self.vanished_rows();
        let pk = self.keys("gone");
        self.sql_merge(&format!(
            "SELECT crsql_pack_columns({pk}) AS pk, '{SENTINEL}' AS cid, NULL AS val, {LENGTH} + 1 AS col_version,
             {LENGTH} + 1 AS cl FROM ({rows}) AS gone"
        ))
    }

    /// The statement that records the rows of which nothing is recorded, or that they were deleted: as if they were merged.
    fn sql_record(&self) -> String {
        self.sql_record_anew(&self.unrecorded_rows(), &format!("{LENGTH} + 1"))
    }

    /// The statement that records these rows and all their cells, with the causal length that this expression gives.
    fn sql_record_anew(&self, rows: &str, length: &str) -> String {
        let pk = self.keys("new");
        let row = format!(
            "SELECT crsql_pack_columns({pk}) AS pk, '{SENTINEL}' AS cid, NULL AS val, {length} AS col_version,
             {length} AS cl FROM ({rows}) AS new"
        );
        let cells = self.table.columns.iter().map(|column| {
            let (name, text) = (quote(&column.name), sql_text(&column.name));
            format!(" UNION ALL SELECT crsql_pack_columns({pk}), {text}, new.{name}, 1, {length} FROM ({rows}) AS new")
        });
        self.sql_merge(&format!("{row}{}", cells.collect::<String>()))
    }

    /// The statement that records the values of columns of which nothing is recorded.
    fn sql_record_values(&self, columns: &[String]) -> String {
        let (rows, pk, clock) = (self.rows(), self.keys("new"), self.name("clock"));
        let pks = self.name("pks");
        let cells = columns.iter().map(|column| {
            let (name, text) = (quote(column), sql_text(column));
            format!(
                "SELECT crsql_pack_columns({pk}) AS pk, {text} AS cid, new.{name} AS val, 1 AS col_version, {LENGTH} AS cl
                 FROM ({rows}) AS new WHERE {LENGTH} % 2 = 1 AND NOT EXISTS (SELECT 1 FROM {pks} AS p JOIN {clock} AS c
                 ON c.key = p.__crsql_key AND c.col_name = {text} COLLATE NOCASE WHERE {})",
                self.same_key("new")
            )
        });
        self.sql_merge(&cells.collect::<Vec<_>>().join(" UNION ALL "))
    }

    /// The statement that has rows with far cells live again: in the next life of a row the versions of its cells begin
    /// anew, and they win over whatever version somebody claimed in the one before.
    fn sql_live_again(&self) -> String {
        let numbers = format!("SELECT p.__crsql_key FROM {} AS p WHERE {}", self.name("pks"), self.same_key("new"));
        let rows = format!("SELECT * FROM ({}) AS new WHERE ({numbers}) IN ({})", self.rows(), self.far_cells());
        self.sql_record_anew(&rows, &format!("{LENGTH} + 2"))
    }

    /// The statement that gives rows with far causal lengths lower ones: higher than those that an honest site comes to,
    /// so that the rows stay what they are, and lower than those that are put aside. The peers' own mend gives the same.
    fn sql_lower_lengths(&self) -> String {
        let clock = self.name("clock");
        format!(
            "BEGIN IMMEDIATE; WITH far AS MATERIALIZED (SELECT key AS k, col_name AS c, row_number() OVER (ORDER BY key, col_name) - 1 AS n \
             FROM {clock} WHERE key IN (SELECT key FROM {clock} WHERE col_name = '{SENTINEL}' AND col_version > {FAR})) \
             UPDATE {clock} SET col_version = CASE col_name WHEN '{SENTINEL}' THEN {LOWERED} + col_version % 2 ELSE 1 END, \
             db_version = crsql_next_db_version(), site_id = 0, seq = far.n FROM far WHERE key = far.k AND col_name = far.c; \
             COMMIT"
        )
    }

    /// The statement that records all values of which something is recorded as if they were written now: whatever was
    /// written while that was not recorded is among them, and what peers have must not undo it.
    fn sql_record_as_new(&self) -> String {
        let (rows, pk, clock, pks) = (self.rows(), self.keys("new"), self.name("clock"), self.name("pks"));
        let cells = self.table.columns.iter().map(|column| {
            let (name, text) = (quote(&column.name), sql_text(&column.name));
            format!(
                "SELECT crsql_pack_columns({pk}) AS pk, {text} AS cid, new.{name} AS val, c.col_version + 1 AS col_version,
                 {LENGTH} AS cl FROM ({rows}) AS new JOIN {pks} AS p ON {} JOIN {clock} AS c ON c.key = p.__crsql_key
                 AND c.col_name = {text} COLLATE NOCASE WHERE {LENGTH} % 2 = 1",
                self.same_key("new")
            )
        });
        self.sql_merge(&cells.collect::<Vec<_>>().join(" UNION ALL "))
    }

    /// Merges changes of this database's own. They are sorted, so all are found before the first is merged.
    fn sql_merge(&self, changes: &str) -> String {
        let sql = format!(
            "INSERT INTO crsql_changes (\"table\", pk, cid, val, col_version, db_version, site_id, cl, seq)
             SELECT {}, pk, cid, val, col_version, crsql_next_db_version(), crsql_site_id(), cl,
             row_number() OVER (ORDER BY pk, cid <> '{SENTINEL}', cid) - 1 FROM ({changes}) ORDER BY pk, cid <> '{SENTINEL}', cid",
            sql_text(&self.table.name)
        );
        sql.split('\n').map(str::trim).collect::<Vec<_>>().join(" ")
    }
}

/// Tables that are there, and of whose two tables of metadata one or both are gone, though the rest is there.
pub(super) fn halved(connection: &Connection, stored: &[Trigger]) -> rusqlite::Result<Vec<Remark>> {
    let mut statement = connection.prepare(
        r"SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '%\_\_crsql\_%' ESCAPE '\' ORDER BY name",
    )?;
    let names = statement.query_map([], |row| super::text(row, 0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut exists = connection
        .prepare("SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE)")?;
    let mut remarks = Vec::new();
    for name in names {
        let metadata = ["clock", "pks"].map(|end| format!("{name}__crsql_{end}"));
        let mut missing = Vec::new();
        for table in &metadata {
            if !exists.query_row([table], |row| row.get::<_, bool>(0))? {
                missing.push(table.clone());
            }
        }
        let triggers: Vec<&Trigger> =
            own_triggers(&name, stored).filter(|trigger| trigger.table.eq_ignore_ascii_case(&name)).collect();
        let was_shared = missing.len() < metadata.len() || !triggers.is_empty();
        if was_shared && !missing.is_empty() {
            remarks.push(remark_halved(name, missing, &triggers));
        }
    }
    Ok(remarks)
}

/// Has the next command of this program give the file another site id, and read peers from their start: what they know
/// of the rows is the only memory of their versions, and they leave out what the site wrote that asks.
const FORGET_REPOSITORY: &str = "DELETE FROM crsql_master WHERE key = 'ddcp_repository'";

/// What is left of the metadata says nothing without the rest: everything is recorded anew.
fn remark_halved(table: String, missing: Vec<String>, triggers: &[&Trigger]) -> Remark {
    let mut statements = vec![KEEP_VERSION.to_owned()];
    statements.extend(triggers.iter().map(|trigger| trigger.sql_drop()));
    let metadata = ["clock", "pks"].map(|end| quote(&format!("{table}__crsql_{end}")));
    statements.extend(metadata.iter().map(|name| format!("DROP TABLE IF EXISTS {name}")));
    statements.extend([format!("SELECT crsql_as_crr({})", sql_text(&table)), FORGET_REPOSITORY.to_owned()]);
    Remark { what: Remarked::MetadataLost(missing), mend: Some(in_one(&statements)), table }
}

/// The triggers that have the names of the three of the table `table`.
fn own_triggers<'a>(table: &str, stored: &'a [Trigger]) -> impl Iterator<Item = &'a Trigger> {
    let names = ["i", "u", "d"].map(|kind| format!("{table}__crsql_{kind}trig"));
    stored.iter().filter(move |trigger| names.iter().any(|name| name.eq_ignore_ascii_case(&trigger.name)))
}

/// Tables that are gone and have left their clock table behind.
pub(super) fn dropped(connection: &Connection, stored: &[Trigger]) -> rusqlite::Result<Vec<Remark>> {
    let mut statement = connection.prepare(
        "SELECT substr(clock.name, 1, length(clock.name) - 13) AS gone FROM sqlite_master AS clock
         WHERE clock.type = 'table' AND substr(clock.name, -13) = '__crsql_clock'
           AND NOT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = gone COLLATE NOCASE)
         ORDER BY gone",
    )?;
    let gone: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(gone.into_iter().map(|table| remark_dropped(table, stored)).collect())
}

/// Without it the highest version that was ever given would be forgotten with the records, and given again.
const KEEP_VERSION: &str =
    "INSERT OR REPLACE INTO crsql_master (key, value) VALUES ('pre_compact_dbversion', crsql_db_version())";

fn remark_dropped(table: String, stored: &[Trigger]) -> Remark {
    let name = |end: &str| quote(&format!("{table}__crsql_{end}"));
    let triggers: Vec<&Trigger> = own_triggers(&table, stored).collect();
    let mut statements = vec![KEEP_VERSION.to_owned()];
    statements.extend(triggers.iter().map(|trigger| trigger.sql_drop()));
    let renamed = triggers.first().map(|trigger| trigger.table.clone());
    // Recorded anew before what was recorded is forgotten.
    statements.extend(renamed.iter().map(|to| format!("SELECT crsql_as_crr({})", sql_text(to))));
    statements.extend(["clock", "pks"].map(|end| format!("DROP TABLE IF EXISTS {}", name(end))));
    let what = renamed.map_or(Remarked::Dropped, |to| Remarked::Renamed { to });
    Remark { table, what, mend: Some(in_one(&statements)) }
}
