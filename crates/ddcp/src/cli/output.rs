//! What goes to stdout: data only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, BufWriter, Write},
};

use serde::Serialize;

use super::{Failed, Format};
use crate::{
    ErrorKind, Failure,
    database::{LeftOut, Unsent},
    repo::{Outcome, PerRemote},
    text::{shown, shown_json},
};

/// Lines for people: each that is written at once is one, whatever is in it, and nothing in it is obeyed by a terminal.
pub(super) struct Lines<W>(pub(super) W);

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }

    fn write_fmt(&mut self, line: fmt::Arguments<'_>) -> io::Result<()> {
        let text = line.to_string();
        let (line, end) = text.strip_suffix('\n').map_or((text.as_str(), ""), |line| (line, "\n"));
        self.0.write_all(shown(line).as_bytes())?;
        self.0.write_all(end.as_bytes())
    }
}

/// A text that has lines of its own, such as a statement.
pub(super) fn lines_of(out: &mut dyn Write, text: &str) -> io::Result<()> {
    text.lines().try_for_each(|line| writeln!(out, "{}", line.replace('\t', "    ")))
}

/// Prints `data` as one JSON document, or as `lines` writes it.
pub(super) fn print<T: Serialize>(
    format: Format,
    data: &T,
    lines: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Failed> {
    let mut out = BufWriter::new(io::stdout().lock());
    match format {
        Format::Table => lines(&mut Lines(&mut out))?,
        Format::Json => {
            let text = serde_json::to_string_pretty(data).map_err(|error| Failure {
                kind: ErrorKind::Internal,
                message: error.to_string(),
                hint: None,
            })?;
            writeln!(out, "{}", shown_json(&text))?;
        }
    }
    Ok(out.flush()?)
}

/// The command's failure, if what was printed tells of changes that could not be sent: it did the rest.
pub(super) fn whole<'a>(reports: impl IntoIterator<Item = &'a LeftOut>) -> Result<(), Failed> {
    if reports.into_iter().all(LeftOut::is_empty) { Ok(()) } else { Err(Failed::findings()) }
}

/// What was done with the remotes of which something was.
pub(super) fn done<T>(reports: &[PerRemote<T>]) -> impl Iterator<Item = &T> {
    reports.iter().filter_map(|report| match &report.outcome {
        Outcome::Done(done) => Some(done),
        Outcome::Failed(_) => None,
    })
}

/// Runs `line` for each remote of which something was done.
pub(super) fn each_done<T>(
    reports: &[PerRemote<T>],
    mut line: impl FnMut(&str, &T) -> io::Result<()>,
) -> io::Result<()> {
    reports.iter().try_for_each(|report| match &report.outcome {
        Outcome::Done(done) => line(&report.remote, done),
        Outcome::Failed(_) => Ok(()),
    })
}

/// The remotes that failed, as the command's failure.
pub(super) fn failures<T>(reports: &[PerRemote<T>]) -> Result<(), Failed> {
    let failures = failed(reports);
    let all = failures.len() == reports.len();
    some_failed(failures, all)
}

/// As [`failures`], of a command in two steps: a remote has failed that failed in either.
pub(super) fn failures_of_both<T, U>(first: &[PerRemote<T>], second: &[PerRemote<U>]) -> Result<(), Failed> {
    let remotes: BTreeSet<&str> = names(first, |_| true).chain(names(second, |_| true)).collect();
    let broken: BTreeSet<&str> = names(first, is_failed).chain(names(second, is_failed)).collect();
    let failures = failed(first).into_iter().chain(failed(second)).collect();
    some_failed(failures, broken.len() == remotes.len())
}

fn names<T>(reports: &[PerRemote<T>], which: impl Fn(&Outcome<T>) -> bool) -> impl Iterator<Item = &str> {
    reports.iter().filter(move |report| which(&report.outcome)).map(|report| report.remote.as_str())
}

fn is_failed<T>(outcome: &Outcome<T>) -> bool {
    matches!(outcome, Outcome::Failed(_))
}

fn failed<T>(reports: &[PerRemote<T>]) -> Vec<Failure> {
    let failure = |report: &PerRemote<T>| match &report.outcome {
        Outcome::Done(_) => None,
        Outcome::Failed(failure) => Some(failure.clone().of(&report.remote)),
    };
    reports.iter().filter_map(failure).collect()
}

fn some_failed(failures: Vec<Failure>, all: bool) -> Result<(), Failed> {
    if failures.is_empty() { Ok(()) } else { Err(Failed::some(failures, all)) }
}

/// What a merge made of the changes that it looked at.
pub(super) struct Merged<'a> {
    pub(super) changes: u64,
    pub(super) applied: &'a BTreeMap<String, u64>,
    pub(super) known: u64,
    pub(super) lost: &'a BTreeMap<String, u64>,
    pub(super) deleted: &'a BTreeMap<String, u64>,
}

impl fmt::Display for Merged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = total(self.lost);
        write!(f, "merged {}", count(self.changes, "change"))?;
        if !self.applied.is_empty() {
            write!(f, " ({})", by_table(self.applied))?;
        }
        match self.known {
            0 if self.applied.is_empty() && lost == 0 => write!(f, ", none of them new")?,
            0 => {}
            known if known == self.changes => write!(f, ", all known already")?,
            known => write!(f, ", {known} known already")?,
        }
        match lost {
            0 => {}
            lost if lost == self.changes => write!(f, ", all lost against yours ({})", by_table(self.lost))?,
            lost => write!(f, ", {lost} lost against yours ({})", by_table(self.lost))?,
        }
        match total(self.deleted) {
            0 => Ok(()),
            deleted => write!(f, "; {} deleted ({})", count(deleted, "row"), by_table(self.deleted)),
        }
    }
}

fn total(numbers: &BTreeMap<String, u64>) -> u64 {
    numbers.values().sum()
}

/// `note 2, tag 1`.
fn by_table(numbers: &BTreeMap<String, u64>) -> String {
    let tables: Vec<String> = numbers.iter().map(|(table, number)| format!("{table} {number}")).collect();
    tables.join(", ")
}

/// Lines about changes that cannot be sent.
pub(super) fn left_out(out: &mut dyn Write, LeftOut { count: number, first }: &LeftOut) -> io::Result<()> {
    for Unsent { table, key, column, reason } in first {
        writeln!(out, "  table {table}, key {key}, column {column}: {reason}")?;
    }
    match number.saturating_sub(first.len() as u64) {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more"),
    }
}

/// The tables of a remote that cannot be had here, each with the reason, as the command's failure: the rest was done.
pub(super) fn unavailable<'a>(tables: impl Iterator<Item = (&'a str, &'a str)>) -> Result<(), Failed> {
    const HINT: &str =
        "make such a table by hand, without what is not known here (`ddcp shell`); what waits for it is then merged";
    let failure = |(table, why): (&str, &str)| Failure {
        kind: ErrorKind::Partly,
        message: format!("table {table} cannot be had here: {why}"),
        hint: None,
    };
    let mut failures: Vec<Failure> = tables.map(failure).collect();
    if let Some(last) = failures.last_mut() {
        last.hint = Some(HINT.into());
    }
    some_failed(failures, false)
}

/// `1 change`, `2 changes`.
pub(super) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// A number of bytes for people.
pub(super) fn bytes(number: u64) -> String {
    indicatif::HumanBytes(number).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_chose_begins_no_line_and_moves_no_cursor() {
        let mut out = Vec::new();
        let out_lines: &mut dyn Write = &mut Lines(&mut out);
        let table = "a\nerror: b\u{1b}[2J\u{202e}";
        writeln!(out_lines, "table {table}").unwrap();
        lines_of(out_lines, "CREATE TABLE a (\n\tx, -- \u{202e}\n)").unwrap();
        let expected = "table a\\nerror: b\\u{1b}[2J\\u{202e}\nCREATE TABLE a (\n    x, -- \\u{202e}\n)\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn what_became_of_changes_is_told_apart() {
        let told = |changes, applied: &[(&str, u64)], known, lost: &[(&str, u64)], deleted: &[(&str, u64)]| {
            let map =
                |pairs: &[(&str, u64)]| pairs.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
            let (applied, lost, deleted) = (map(applied), map(lost), map(deleted));
            Merged { changes, applied: &applied, known, lost: &lost, deleted: &deleted }.to_string()
        };
        assert_eq!(told(2, &[("a", 1), ("b", 1)], 0, &[], &[]), "merged 2 changes (a 1, b 1)");
        assert_eq!(told(2, &[], 2, &[], &[]), "merged 2 changes, all known already");
        assert_eq!(told(2, &[], 0, &[("a", 2)], &[]), "merged 2 changes, all lost against yours (a 2)");
        assert_eq!(told(2, &[], 1, &[("a", 1)], &[]), "merged 2 changes, 1 known already, 1 lost against yours (a 1)");
        assert_eq!(
            told(120, &[("a", 100)], 15, &[("a", 3), ("b", 2)], &[("a", 1)]),
            "merged 120 changes (a 100), 15 known already, 5 lost against yours (a 3, b 2); 1 row deleted (a 1)"
        );
        assert_eq!(told(1, &[], 0, &[], &[]), "merged 1 change, none of them new");
    }
}
