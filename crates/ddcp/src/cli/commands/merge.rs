use std::io::{self, Write};

use crate::{
    cli::{Failed, Session, output},
    control::Command,
    repo::{MergeReport, PerRemote},
};

/// Merge what was fetched, of one or all remotes.
///
/// Changes that do not fit the tables here (no such table or column, another key, a constraint) wait and are tried
/// again by every later merge.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ddcp merge\n  ddcp merge alice")]
pub(in crate::cli) struct Args {
    /// The remote; all if none is named.
    remote: Option<String>,
}

pub(in crate::cli) async fn run(session: &Session, args: Args) -> Result<(), Failed> {
    let reports: Vec<PerRemote<MergeReport>> = session.run(Command::Merge { remote: args.remote }).await?;
    if reports.is_empty() {
        session.say("nothing has been fetched");
    }
    output::print(session.format, &reports, |out| {
        output::each_done(&reports, |name, report| lines(out, name, report))
    })?;
    output::failures(&reports)
}

pub(super) fn lines(out: &mut dyn Write, name: &str, report: &MergeReport) -> io::Result<()> {
    let applied: u64 = report.applied.values().sum();
    match (report.changes, applied) {
        (0, _) => writeln!(out, "{name}: nothing to merge")?,
        (_, 0) if report.waiting > 0 => writeln!(out, "{name}: nothing of it could be merged")?,
        (changes, 0) => writeln!(out, "{name}: merged {}, all known already", output::count(changes, "change"))?,
        (changes, _) => {
            let tables: Vec<String> =
                report.applied.iter().map(|(table, applied)| format!("{table} {applied}")).collect();
            writeln!(out, "{name}: merged {} ({})", output::count(changes, "change"), tables.join(", "))?;
        }
    }
    if report.waiting > 0 {
        writeln!(out, "{name}: {} waiting:", output::count(report.waiting, "change"))?;
        report.reasons.iter().try_for_each(|reason| writeln!(out, "  {reason}"))?;
    }
    Ok(())
}
