use std::io::{self, Write};

use crate::{
    cli::{Failed, Session, output},
    control::Command,
    repo::{Difference, Outcome, PerRemote, VerifyReport},
};

/// Compare with remotes, and mend what is missing here.
///
/// Pulls first, and reads this database as a whole. If the two differ, everything is fetched from the remote once more. What the remote
/// lacks it has to fetch from here. Exit status 0 if both have the same in the end, 5 if they differ.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ddcp verify alice\n  ddcp verify alice --check")]
pub(in crate::cli) struct Args {
    /// The remote; all if none is named.
    remote: Option<String>,
    /// Compare only; fetch nothing again.
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
        for (table, records) in mended {
            writeln!(out, "{remote}: mended {} of {table}", output::count(*records, "record"))?;
        }
    }
    let Some(left) = &report.left else {
        return writeln!(out, "identical to {remote}, at its version {}", report.remote_version);
    };
    writeln!(out, "{remote}: differs in {}", places(left))?;
    match (&report.mended, report.known) {
        (None, _) => writeln!(out, "{remote}: `ddcp verify {remote}` fetches again what is missing here"),
        (Some(_), Some(known)) if known >= report.version => {
            writeln!(out, "{remote}: nothing is missing here; have `ddcp verify` run there")
        }
        (Some(_), _) => writeln!(out, "{remote}: nothing is missing here; it has yet to pull from this repository"),
    }
}

fn places(Difference { tables, ranges }: &Difference) -> String {
    let ranges = output::count(*ranges as u64, "range");
    if tables.is_empty() { format!("{ranges} of keys") } else { format!("{} ({ranges} of keys)", tables.join(", ")) }
}
