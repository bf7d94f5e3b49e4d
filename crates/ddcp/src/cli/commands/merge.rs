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
    let MergeReport { changes, applied, known, lost, deleted, .. } = report;
    let nothing_fitted = applied.is_empty() && lost.is_empty() && *known == 0 && report.waiting > 0;
    match changes {
        0 if applied.is_empty() && deleted.is_empty() => writeln!(out, "{name}: nothing to merge")?,
        _ if nothing_fitted => writeln!(out, "{name}: nothing of it could be merged")?,
        _ => writeln!(out, "{name}: {}", output::Merged { changes: *changes, applied, known: *known, lost, deleted })?,
    }
    report.dangling.iter().try_for_each(|sentence| writeln!(out, "{name}: {sentence}"))?;
    if report.waiting > 0 {
        writeln!(out, "{name}: {} waiting:", output::count(report.waiting, "change"))?;
        report.reasons.iter().try_for_each(|reason| writeln!(out, "  {reason}"))?;
    }
    Ok(())
}
