use std::io::{self, Write};

use clap::Subcommand;
use jiff::Timestamp;

use crate::{
    cli::{Failed, Session, output},
    control::Command,
    repo::{MergeReport, PerRemote, WaitingDropReport, WaitingReport, WaitingRow},
};

/// Look at what was fetched and waits, try it again, or let it go.
///
/// Changes wait whose table or column is not here, or which a constraint, a trigger or an index refused.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ddcp waiting list
  ddcp waiting retry alice
  ddcp waiting drop alice --table draft        # shows what would be lost
  ddcp waiting drop alice --table draft --yes
  ddcp waiting drop --all --yes")]
pub(in crate::cli) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List what waits: from whom, which row, how many changes, why, and since when.
    List {
        /// The remote, or the id of a site that is none; all if none is named.
        remote: Option<String>,
        /// Only of this table.
        #[arg(long)]
        table: Option<String>,
    },
    /// Try it again now. What was fetched and was not tried yet stays as it is.
    Retry {
        /// The remote, or the id of a site that is none; all if none is named.
        remote: Option<String>,
    },
    /// Let it go: it is not merged any more. `verify` can bring it back, as long as the remote has it.
    Drop {
        /// The remote, or the id of a site that is none.
        #[arg(required_unless_present_any = ["table", "all"])]
        remote: Option<String>,
        /// Only of this table.
        #[arg(long)]
        table: Option<String>,
        /// Everything that waits.
        #[arg(long, conflicts_with_all = ["remote", "table"])]
        all: bool,
        /// Do it; without this, only show what would be lost.
        #[arg(long)]
        yes: bool,
    },
}

pub(in crate::cli) async fn run(session: &Session, args: Args) -> Result<(), Failed> {
    match args.verb {
        Verb::List { remote, table } => list(session, remote, table).await,
        Verb::Retry { remote } => retry(session, remote).await,
        Verb::Drop { remote, table, yes, .. } => let_go(session, remote, table, yes).await,
    }
}

async fn list(session: &Session, remote: Option<String>, table: Option<String>) -> Result<(), Failed> {
    let report: WaitingReport = session.run(Command::WaitingList { remote, table }).await?;
    if report.changes == 0 {
        session.say("nothing waits");
    }
    output::print(session.format, &report, |out| lines(out, &report))
}

async fn retry(session: &Session, remote: Option<String>) -> Result<(), Failed> {
    let reports: Vec<PerRemote<MergeReport>> = session.run(Command::WaitingRetry { remote }).await?;
    if reports.is_empty() {
        session.say("nothing waits");
    }
    output::print(session.format, &reports, |out| {
        output::each_done(&reports, |name, report| super::merge::lines(out, name, report))
    })?;
    output::failures(&reports)
}

async fn let_go(session: &Session, remote: Option<String>, table: Option<String>, apply: bool) -> Result<(), Failed> {
    let command = Command::WaitingDrop { remote, table, apply };
    let report: WaitingDropReport = session.run(command).await?;
    output::print(session.format, &report, |out| lines(out, &report.waiting))?;
    let changes = output::count(report.waiting.changes, "change");
    match (report.waiting.changes, report.dropped) {
        (0, _) => session.say("nothing of that waits"),
        (_, false) => {
            session.say(format_args!("nothing was dropped; the same with `--yes` drops these {changes} for good"));
        }
        (_, true) => {
            let mut remotes: Vec<&str> = report.waiting.rows.iter().filter_map(|row| row.remote.as_deref()).collect();
            remotes.dedup();
            let again = match remotes.as_slice() {
                [] => "where they came from they can be had again".to_owned(),
                [remote, ..] => format!("`{} verify {remote}` fetches again what is missing here", session.program),
            };
            session.say(format_args!("dropped {changes}; {again}"));
        }
    }
    Ok(())
}

fn lines(out: &mut dyn Write, report: &WaitingReport) -> io::Result<()> {
    report.rows.iter().try_for_each(|row| line(out, row))?;
    match report.more {
        0 => Ok(()),
        more => writeln!(out, "and {}", output::count(more, "more row")),
    }
}

fn line(out: &mut dyn Write, row: &WaitingRow) -> io::Result<()> {
    let sender = row.remote.clone().unwrap_or_else(|| format!("site {}", row.site));
    let since = row.since.and_then(|since| Timestamp::from_second(since).ok());
    let since = since.map(|since| format!(", since {since}")).unwrap_or_default();
    let row_name = format!("{} ({})", row.table, row.key.join(", "));
    let changes = output::count(row.changes, "change");
    writeln!(out, "{sender}: {}: {changes}{since}: {}", row_name, row.reason)
}
