use std::io::{self, Write};

use clap::Subcommand;

use crate::{
    cli::{Failed, Session, output},
    control::Command,
    repo::{AdoptReport, SchemaReport},
};

/// Compare the tables here with a remote's, and add what is missing.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ddcp schema diff alice
  ddcp schema adopt alice          # shows what it would do
  ddcp schema adopt alice --yes")]
pub(in crate::cli) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Ask a remote how its shared tables differ from those here.
    Diff {
        /// The remote.
        remote: String,
    },
    /// Add the shared tables and columns of a remote that are not here, as they are declared there. Drops and alters
    /// nothing else.
    ///
    /// A table that cannot be had here is left out and named (exit status 3). What was fetched from the remote is merged
    /// afterwards, also what waited.
    Adopt {
        /// The remote.
        remote: String,
        /// Do it; without this, only show the statements.
        #[arg(long)]
        yes: bool,
    },
}

pub(in crate::cli) async fn run(session: &Session, args: Args) -> Result<(), Failed> {
    match args.verb {
        Verb::Diff { remote } => diff(session, remote).await,
        Verb::Adopt { remote, yes } => adopt(session, remote, yes).await,
    }
}

async fn diff(session: &Session, remote: String) -> Result<(), Failed> {
    let report: SchemaReport = session.run(Command::SchemaDiff { remote }).await?;
    if report.is_same() {
        session.say("no shared table differs");
    }
    output::print(session.format, &report, |out| lines(out, "", &report))
}

async fn adopt(session: &Session, remote: String, apply: bool) -> Result<(), Failed> {
    let report: AdoptReport = session.run(Command::SchemaAdopt { remote: remote.clone(), apply }).await?;
    output::print(session.format, &report, |out| {
        report.statements.iter().try_for_each(|sql| writeln!(out, "{sql};"))?;
        if !report.left.is_same() {
            writeln!(out, "stays as it is:")?;
            lines(out, "  ", &report.left)?;
        }
        output::each_done(&report.merged, |name, report| super::merge::lines(out, name, report))
    })?;
    match (report.statements.is_empty(), report.adopted) {
        (true, _) => session.say("there is nothing to add"),
        (false, false) => {
            session.say(format_args!("nothing was changed; `ddcp schema adopt {remote} --yes` runs these statements"));
        }
        (false, true) => session.say("these statements were run"),
    }
    let failed = output::failures(&report.merged);
    match apply {
        true => failed.and(output::unavailable(report.left.unavailable())),
        false => failed,
    }
}

/// A line for each difference, after `indent`.
pub(super) fn lines(out: &mut dyn Write, indent: &str, report: &SchemaReport) -> io::Result<()> {
    for (table, differences) in &report.tables {
        differences
            .iter()
            .try_for_each(|difference| writeln!(out, "{indent}table {}: {difference}", table.escape_debug()))?;
    }
    if report.more > 0 {
        writeln!(out, "{indent}and {}", output::count(report.more, "more difference"))?;
    }
    match &report.unknown {
        Some(why) => writeln!(out, "{indent}not known where: {why}"),
        None => Ok(()),
    }
}
