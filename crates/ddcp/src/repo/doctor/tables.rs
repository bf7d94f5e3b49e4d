//! The engine and the tables.

use super::{Advice, Finding};
use crate::{
    database::{Database, DatabaseError, LeftOut, Remark, Remarked, Unsent},
    medium,
};

pub(super) fn examine(
    database: &Database,
    thorough: bool,
    advice: &Advice,
    findings: &mut Vec<Finding>,
) -> Result<(), DatabaseError> {
    let version = database.metadata_version()?;
    let (major, minor, patch) = (version / 1_000_000, version / 10_000 % 100, version / 100 % 100);
    findings.push(Finding::ok("engine", format!("the metadata is that of CR-SQLite {major}.{minor}.{patch}")));
    let mode = database.journal_mode()?;
    if mode == "wal" {
        findings.push(Finding::ok("database", "its journal mode is wal"));
    } else if !medium::is_read_only(database.path()) {
        let what = format!("its journal mode is {mode}: applications cannot write while it is read for peers");
        findings.push(Finding::warning("database", what, advice.shell("PRAGMA journal_mode = wal")));
    }
    let remarks = database.remarks(thorough)?;
    let shared = database.tables()?;
    let is_lost = |remark: &Remark| {
        matches!(
            remark.what,
            Remarked::NotRecorded { .. }
                | Remarked::OtherKey { .. }
                | Remarked::Renamed { .. }
                | Remarked::Unreadable(_)
                | Remarked::MetadataLost(_)
        )
    };
    if shared.is_empty() && !remarks.iter().any(is_lost) {
        let mend = advice.shell("SELECT crsql_as_crr('TABLE')");
        findings.push(Finding::warning("table", "no table replicates: there is nothing to share", mend));
    }
    for table in &shared {
        let is_fit = |remark: &Remark| {
            !remark.table.eq_ignore_ascii_case(&table.name) || matches!(remark.what, Remarked::NumberedKey(_))
        };
        if remarks.iter().all(is_fit) {
            findings.push(Finding::ok("table", format!("{} replicates", table.name)));
        }
    }
    let is_far =
        remarks.iter().any(|remark| matches!(remark.what, Remarked::FarVersions { .. } | Remarked::FarLengths { .. }));
    findings.extend(remarks.into_iter().map(|remark| finding(remark, advice)));
    let left_out = database.unsendable()?;
    if !left_out.is_empty() {
        findings.push(unsendable(&left_out, is_far));
    }
    Ok(())
}

fn unsendable(LeftOut { count: number, first }: &LeftOut, is_far: bool) -> Finding {
    let place =
        |Unsent { table, key, column, reason }: &Unsent| format!("{table}, key {key}, column {column}: {reason}");
    let places: Vec<String> = first.iter().map(place).collect();
    let what = format!("{} cannot be sent, so no peer gets them ({})", count(*number, "change"), places.join("; "));
    let mend = match is_far {
        true => {
            "mend the versions that are too high, as said above; if some are left, delete these rows and insert them again"
        }
        false => "delete these rows and insert them again",
    };
    Finding::error("table", what, mend)
}

fn finding(Remark { table, what, mend }: Remark, advice: &Advice) -> Finding {
    let about = subject(&what);
    let shell = mend.map(|sql| advice.shell(&sql));
    match what {
        Remarked::NotShared
        | Remarked::NotShareable(_)
        | Remarked::NumberedKey(_)
        | Remarked::ColumnsGone(_)
        | Remarked::OddText { .. } => Finding::note(about, message(&table, &what), mending(&table, &what, shell)),
        Remarked::NotWritable { .. }
        | Remarked::NotRecorded { .. }
        | Remarked::Unreadable(_)
        | Remarked::MetadataLost(_)
        | Remarked::Outdated
        | Remarked::RecordedTwice(_)
        | Remarked::OtherKey { .. }
        | Remarked::Unrecorded { .. }
        | Remarked::Revived { .. }
        | Remarked::Vanished { .. }
        | Remarked::FarVersions { .. }
        | Remarked::FarLengths { .. }
        | Remarked::UnrecordedColumns { .. }
        | Remarked::Renamed { .. } => Finding::error(about, message(&table, &what), mending(&table, &what, shell)),
        _ => Finding::warning(about, message(&table, &what), mending(&table, &what, shell)),
    }
}

fn subject(what: &Remarked) -> &'static str {
    match what {
        Remarked::Diverging { .. } => "trigger",
        Remarked::OutOfStep(_) => "index",
        Remarked::KeyViolated { .. } | Remarked::KeyMismatch(_) => "key",
        _ => "table",
    }
}

fn message(table: &str, what: &Remarked) -> String {
    match what {
        Remarked::NotShared => format!("{table} does not replicate, and could"),
        Remarked::NotShareable(why) => format!("{table} does not replicate, and cannot: {why}"),
        Remarked::Unfit(why) => format!("{table} replicates, but what peers wrote may not fit it: {why}"),
        Remarked::NotWritable { why, trigger: Some(trigger) } => format!(
            "nothing that peers wrote can be merged into {table}, because of its trigger {trigger}: {why}. What an \
             application gives its own connections is not known here"
        ),
        Remarked::NotWritable { why, trigger: None } => {
            format!("nothing that peers wrote can be merged into {table}: {why}")
        }
        Remarked::Unreadable(why) => format!(
            "{table} replicates, but cannot be read here, so no peer gets what is in it, and nothing that peers wrote can \
             be merged into it: {why}"
        ),
        Remarked::NotRecorded { updates: false } => {
            format!("{table} has lost triggers: not every write to it is recorded")
        }
        Remarked::NotRecorded { updates: true } => format!(
            "{table} has lost triggers: not every write to it is recorded. Which values were changed since is not known: \
             the mend records all of them as written now, so that they win over what peers have"
        ),
        Remarked::MetadataLost(missing) => {
            let (are, missing) = (if missing.len() == 1 { "is" } else { "are" }, missing.join(" and "));
            format!(
                "{table}: {missing} {are} gone, with what was recorded of its rows: writing to it fails, and no peer gets \
                 anything of it. The mend records the rows anew; deletions that peers have not heard of are forgotten. \
                 Pull before anything is written to it: only peers know its versions"
            )
        }
        Remarked::Outdated => format!(
            "{table} was altered without crsql_begin_alter and crsql_commit_alter: its triggers are for other columns, \
             and writing to it fails or is not recorded"
        ),
        Remarked::RecordedTwice(trigger) => {
            format!("{table}: the trigger {trigger} records every write once more, or fails")
        }
        Remarked::OtherKey { recorded } => format!(
            "{table} has another key than the one that is recorded ({}): writing to it fails, and peers get nothing of it",
            recorded.join(", ")
        ),
        Remarked::Unrecorded { rows } => {
            format!("{table}: nothing is recorded of {}, which no peer will get", count(*rows, "row"))
        }
        Remarked::Revived { rows } => {
            format!("{table}: {} there and recorded as deleted, which no peer will get", are(*rows))
        }
        Remarked::Vanished { rows } => {
            format!("{table}: {} deleted without a record: no peer will hear of it", were(*rows))
        }
        Remarked::FarVersions { cells } => format!(
            "{table}: somebody gave {} versions far above those that honest sites come to: what is written to them may \
             reach no peer",
            count(*cells, "cell")
        ),
        Remarked::FarLengths { rows } => format!(
            "{table}: somebody gave {} causal lengths far above those that honest sites come to: what is written to them may \
             reach no peer",
            count(*rows, "row")
        ),
        Remarked::UnrecordedColumns { columns, gone } => {
            let before = if gone.is_empty() { String::new() } else { format!(", but values of {}", gone.join(", ")) };
            format!("{table}: nothing is recorded of values of {}{before}: no peer will get them", columns.join(", "))
        }
        Remarked::ColumnsGone(gone) => {
            format!("{table}: values are recorded of {}, which it does not have any more", gone.join(", "))
        }
        Remarked::Diverging { trigger, written } => format!(
            "{trigger} on {table} writes to {written} also when it is a merge that sets it off. That is not recorded, and \
             the peers' tables drift apart"
        ),
        Remarked::NumberedKey(column) => format!(
            "{table}: rows that two repositories insert without a value for {column} get the same number, and become one \
             row"
        ),
        Remarked::CollatedKey(column) => format!(
            "{table}: the key column {column} has a collation; replication tells keys apart that it takes for equal"
        ),
        Remarked::Dropped => format!(
            "{table} was dropped, and what it had recorded stayed: CR-SQLite's own library cannot read such a file"
        ),
        Remarked::Renamed { to } => {
            format!("{table} was renamed to {to}, and does not replicate since: writing to it fails")
        }
        Remarked::OddText { column, key, rows } => format!(
            "{table}: {column} holds text that is not valid UTF-8, in {} (the first has the key {key}). It replicates as \
             it is, but not into databases that store UTF-16",
            count(*rows, "row")
        ),
        Remarked::OutOfStep(content) => {
            format!(
                "the full-text index {table} is not in step with {content}: searching misses rows, and writing may fail"
            )
        }
        Remarked::KeyViolated { parent, columns, rows, .. } => {
            let (columns, refer) = (columns.join(", "), if *rows == 1 { "refers" } else { "refer" });
            format!("{table}: {} {refer} by {columns} to rows of {parent} that are not there", count(*rows, "row"))
        }
        Remarked::KeyMismatch(why) => {
            format!("{table}: where foreign keys are enforced, nothing can be written to it: {why}")
        }
    }
}

/// `shell` is the command that runs the statements which mend it, if statements do.
fn mending(table: &str, what: &Remarked, shell: Option<String>) -> String {
    match (what, shell) {
        (Remarked::NotShareable(_), Some(shell)) => {
            format!("if it is to be shared, declare {table} anew without that, then {shell}")
        }
        (Remarked::NotWritable { .. }, Some(shell)) => {
            format!("{shell}; an application that needs the trigger makes it a TEMP TRIGGER on its own connections")
        }
        (Remarked::KeyViolated { is_decided: false, parent, .. }, Some(shell)) => {
            format!("{shell} shows them: insert what is missing into {parent}, or delete or change these")
        }
        (Remarked::FarLengths { .. }, Some(shell)) => {
            format!("{shell}; the same on every other repository that has merged them")
        }
        (_, Some(shell)) => shell,
        (Remarked::NotWritable { .. }, None) => {
            format!("declare {table} without what is not known here, or make what is missing")
        }
        (Remarked::NumberedKey(column), None) => {
            format!("give {column} a random value in every INSERT, or use a key of random texts (UUIDs)")
        }
        (Remarked::Unreadable(_), None) => format!(
            "declare {table} anew with a key without that collation, between `crsql_begin_alter` and \
             `crsql_commit_alter`, in its application; peers then get all that is in it"
        ),
        (Remarked::NotRecorded { .. } | Remarked::Outdated, None) => {
            format!("have its application, which knows what is not known here, run {}", realter(table))
        }
        (Remarked::CollatedKey(column), None) => format!("declare {table} anew with {column} without COLLATE"),
        (Remarked::KeyMismatch(_) | Remarked::KeyViolated { .. }, None) => {
            format!("declare {table} anew without the foreign key")
        }
        (_, None) => "declare it anew without that, between `crsql_begin_alter` and `crsql_commit_alter`".to_owned(),
    }
}

/// The statements that have the engine look at a table anew.
fn realter(table: &str) -> String {
    let text = format!("'{}'", table.replace('\'', "''"));
    format!("`SELECT crsql_begin_alter({text}); SELECT crsql_commit_alter({text})`")
}

fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

fn are(rows: u64) -> String {
    if rows == 1 { "1 row is".to_owned() } else { format!("{rows} rows are") }
}

fn were(rows: u64) -> String {
    if rows == 1 { "1 row was".to_owned() } else { format!("{rows} rows were") }
}
