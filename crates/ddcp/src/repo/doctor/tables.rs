//! The engine and the tables.

use super::Finding;
use crate::database::{Database, DatabaseError, Remark, Remarked, sql_forget, sql_text};

pub(super) fn examine(database: &Database, findings: &mut Vec<Finding>) -> Result<(), DatabaseError> {
    let version = database.metadata_version()?;
    let (major, minor, patch) = (version / 1_000_000, version / 10_000 % 100, version / 100 % 100);
    findings.push(Finding::ok("engine", format!("the metadata is that of CR-SQLite {major}.{minor}.{patch}")));
    let mode = database.journal_mode()?;
    if mode == "wal" {
        findings.push(Finding::ok("database", "its journal mode is wal"));
    } else {
        let what = format!("its journal mode is {mode}: applications cannot write while it is read for peers");
        findings.push(Finding::warning("database", what, shell("PRAGMA journal_mode = wal")));
    }
    let shared = database.tables()?;
    if shared.is_empty() {
        let mend = shell("SELECT crsql_as_crr('TABLE')");
        findings.push(Finding::warning("table", "no table replicates: there is nothing to share", mend));
    }
    let remarks = database.remarks()?;
    for table in &shared {
        let is_fit = |remark: &Remark| remark.table != table.name || matches!(remark.what, Remarked::NumberedKey(_));
        if remarks.iter().all(is_fit) {
            findings.push(Finding::ok("table", format!("{} replicates", table.name)));
        }
    }
    findings.extend(remarks.iter().map(finding));
    Ok(())
}

/// The command that runs a statement.
fn shell(sql: &str) -> String {
    format!("`ddcp shell \"{sql}\"`")
}

fn finding(Remark { table, what }: &Remark) -> Finding {
    let text = sql_text(table);
    match what {
        Remarked::NotShared => {
            let mend = shell(&format!("SELECT crsql_as_crr({text})"));
            Finding::note("table", format!("{table} does not replicate, and could"), mend)
        }
        Remarked::NotShareable(why) => Finding::note(
            "table",
            format!("{table} does not replicate, and cannot: {why}"),
            format!(
                "if it is to be shared, declare {table} anew without that, then {}",
                shell(&format!("SELECT crsql_as_crr({text})"))
            ),
        ),
        Remarked::Unfit(why) => Finding::warning(
            "table",
            format!("{table} replicates, but what peers wrote may not fit it: {why}"),
            "`DROP INDEX` for the index that is in the way, or change the column between `crsql_begin_alter` and \
             `crsql_commit_alter`",
        ),
        Remarked::NotRecorded => Finding::error(
            "table",
            format!("{table} has lost triggers: not every write to it is recorded"),
            shell(&format!("SELECT crsql_begin_alter({text}); SELECT crsql_commit_alter({text})")),
        ),
        Remarked::NumberedKey(column) => Finding::note(
            "table",
            format!(
                "{table}: rows that two repositories insert without a value for {column} get the same number, and become one \
                 row"
            ),
            format!("give {column} a random value in every INSERT, or use a key of random texts (UUIDs)"),
        ),
        Remarked::CollatedKey(column) => Finding::warning(
            "table",
            format!(
                "{table}: the key column {column} has a collation; replication tells keys apart that it takes for equal"
            ),
            format!("declare {table} anew with {column} without COLLATE"),
        ),
        Remarked::Dropped => Finding::warning(
            "table",
            format!(
                "{table} was dropped, and what it had recorded stayed: CR-SQLite's own library cannot read such a file"
            ),
            shell(&sql_forget(table).replace('"', "\\\"")),
        ),
    }
}
