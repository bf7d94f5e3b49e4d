//! What goes to stdout: data only.

use std::{
    collections::BTreeSet,
    io::{self, BufWriter, Write},
};

use serde::Serialize;

use super::{Failed, Format};
use crate::{
    ErrorKind, Failure,
    repo::{Outcome, PerRemote},
};

/// Prints `data` as one JSON document, or as `lines` writes it.
pub(super) fn print<T: Serialize>(
    format: Format,
    data: &T,
    lines: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Failed> {
    let mut out = BufWriter::new(io::stdout().lock());
    match format {
        Format::Table => lines(&mut out)?,
        Format::Json => {
            let text = serde_json::to_string_pretty(data).map_err(|error| Failure {
                kind: ErrorKind::Internal,
                message: error.to_string(),
                hint: None,
            })?;
            writeln!(out, "{text}")?;
        }
    }
    Ok(out.flush()?)
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

/// `1 change`, `2 changes`.
pub(super) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// A number of bytes for people.
pub(super) fn bytes(number: u64) -> String {
    indicatif::HumanBytes(number).to_string()
}
