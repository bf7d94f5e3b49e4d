use std::{
    io::{self, Write},
    time::Duration,
};

use jiff::Timestamp;

use crate::{
    cli::{Failed, Session, output},
    control::Command,
    repo::{LogEntry, LogEvent},
};

/// Show what was fetched and merged, and what failed: when, from whom, how much. The newest first.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ddcp log\n  ddcp log alice -n 100")]
pub(in crate::cli) struct Args {
    /// The remote; all if none is named.
    remote: Option<String>,
    /// How many entries.
    #[arg(short = 'n', long, default_value_t = 20, value_name = "COUNT")]
    number: u32,
}

pub(in crate::cli) async fn run(session: &Session, Args { remote, number }: Args) -> Result<(), Failed> {
    let entries: Vec<LogEntry> = session.run(Command::Log { remote, most: number }).await?;
    output::print(session.format, &entries, |out| entries.iter().try_for_each(|entry| line(out, entry)))
}

fn line(out: &mut dyn Write, LogEntry { at, took, remote, event }: &LogEntry) -> io::Result<()> {
    let moment = Timestamp::from_millisecond(*at).unwrap_or_default().strftime("%FT%TZ");
    let took = indicatif::HumanDuration(Duration::from_millis(took.unsigned_abs()));
    match event {
        LogEvent::Fetched { changes, bytes } => {
            let changes = output::count(*changes, "change");
            writeln!(out, "{moment} {remote}: fetched {changes} in {}, {took:#}", output::bytes(*bytes))
        }
        LogEvent::Merged { changes, applied, known, lost, deleted, waiting } => {
            let merged = output::Merged { changes: *changes, applied, known: *known, lost, deleted };
            let waiting = if *waiting > 0 { format!(", {waiting} waiting") } else { String::new() };
            writeln!(out, "{moment} {remote}: {merged}{waiting}, {took:#}")
        }
        LogEvent::Dropped { changes } => {
            writeln!(out, "{moment} {remote}: dropped {} that waited", output::count(*changes, "change"))
        }
        LogEvent::Failed { message } => writeln!(out, "{moment} {remote}: failed: {message}"),
    }
}
