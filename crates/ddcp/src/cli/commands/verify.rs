use std::io::{self, Write};

use crate::{
    cli::{Failed, Session, output},
    control::Command,
    repo::{Difference, DifferingRow, Outcome, PerRemote, RowState, VerifyReport},
};

/// Compare with remotes, and mend what is missing here.
///
/// Pulls first, and reads this database as a whole. If the two differ, and not only in what the remote has yet to pull, everything is fetched from the remote once more. What the remote
/// lacks it has to fetch from here. Exit status 0 if both have the same in the end, 5 if they differ.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ddcp verify alice\n  ddcp verify alice --check")]
pub(in crate::cli) struct Args {
    /// The remote; all if none is named.
    remote: Option<String>,
    /// Compare only, what is there now: fetch, merge and write nothing.
    #[arg(long)]
    check: bool,
}

pub(in crate::cli) async fn run(session: &Session, Args { remote, check }: Args) -> Result<(), Failed> {
    let reports: Vec<PerRemote<VerifyReport>> = session.run_shown(Command::Verify { remote, mend: !check }).await?;
    output::print(session.format, &reports, |out| {
        output::each_done(&reports, |remote, report| print(out, remote, report))
    })?;
    output::failures(&reports)?;
    let differs =
        |report: &PerRemote<VerifyReport>| matches!(&report.outcome, Outcome::Done(report) if !report.identical);
    if reports.iter().any(differs) { Err(Failed::findings()) } else { Ok(()) }
}

fn print(out: &mut dyn Write, remote: &str, report: &VerifyReport) -> io::Result<()> {
    if let (Some(found), Some(mended)) = (&report.found, &report.mended) {
        writeln!(out, "{remote}: differed in {}", places(found))?;
        print_rows(out, remote, found)?;
        for (table, records) in mended {
            writeln!(out, "{remote}: mended {} of {table}", output::count(*records, "record"))?;
        }
    }
    if !report.unreadable.is_empty() {
        let tables = report.unreadable.join(", ");
        writeln!(out, "{remote}: {tables} cannot be read here, and so not be compared; `ddcp doctor` says why")?;
    }
    if report.unreadable_there {
        writeln!(
            out,
            "{remote}: it has tables that it cannot read itself, and which were not compared; see `ddcp status`"
        )?;
    }
    let Some(left) = &report.left else {
        let rest = if report.identical { "" } else { "the rest is " };
        return writeln!(out, "{rest}identical to {remote}, at its version {}", report.remote_version);
    };
    writeln!(out, "{remote}: differs in {}", places(left))?;
    print_rows(out, remote, left)?;
    print_cause(out, remote, report)
}

fn print_cause(out: &mut dyn Write, remote: &str, report: &VerifyReport) -> io::Result<()> {
    if report.is_behind() {
        let (version, merged) = (report.remote_version, report.merged.unwrap_or(0));
        writeln!(out, "{remote}: it is at version {version}, and merged here up to {merged}: `ddcp pull {remote}`")?;
    }
    match (report.ahead, &report.mended) {
        (true, _) => writeln!(out, "{remote}: nothing is missing here; it has yet to pull from this repository"),
        (false, Some(_)) => writeln!(out, "{remote}: nothing is missing here; have `ddcp verify` run there"),
        (false, None) if report.is_behind() => Ok(()),
        (false, None) => writeln!(out, "{remote}: `ddcp verify {remote}` fetches again what is missing here"),
    }
}

fn print_rows(out: &mut dyn Write, remote: &str, difference: &Difference) -> io::Result<()> {
    for DifferingRow { table, key, here, there } in &difference.rows {
        let key = key.as_deref().unwrap_or("(a long key)");
        writeln!(out, "  {table} {key} {}", state(*here, *there))?;
    }
    if difference.more_rows > 0 {
        writeln!(out, "  and {}", output::count(difference.more_rows, "more row"))?;
    }
    if difference.untold_ranges > 0 {
        let ranges = output::count(difference.untold_ranges as u64, "range");
        writeln!(out, "  {remote} does not tell its rows of {ranges}")?;
    }
    Ok(())
}

fn state(here: RowState, there: RowState) -> &'static str {
    match (here, there) {
        (RowState::Present, RowState::Absent) => "is here only",
        (RowState::Absent, RowState::Present) => "is there only",
        (RowState::Present, RowState::Deleted) => "is here, and was deleted there",
        (RowState::Deleted, RowState::Present) => "is there, and was deleted here",
        (RowState::Deleted, RowState::Absent) => "was deleted here, and never was there",
        (RowState::Absent, RowState::Deleted) => "was deleted there, and never was here",
        _ => "is not the same",
    }
}

fn places(Difference { tables, ranges, .. }: &Difference) -> String {
    let ranges = output::count(*ranges as u64, "range");
    if tables.is_empty() { format!("{ranges} of keys") } else { format!("{} ({ranges} of keys)", tables.join(", ")) }
}
