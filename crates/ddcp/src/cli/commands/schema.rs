use std::io::{self, Write};

use clap::Subcommand;

use crate::{
    Error,
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
  ddcp schema adopt alice --yes=3f9a…   # runs what was shown with this hash
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
        /// Do it; without this, only show the statements. With the HASH that was shown with them exactly those are run, and
        /// if they would be others by now, none. Without one, those that this command shows, if they are not others than the
        /// ones that were shown before.
        #[arg(long, value_name = "HASH", num_args = 0..=1, require_equals = true)]
        yes: Option<Option<String>>,
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

async fn adopt(session: &Session, remote: String, yes: Option<Option<String>>) -> Result<(), Failed> {
    let shown = match yes {
        None => return show(session, &remote, &ask(session, &remote, None).await?),
        Some(Some(hash)) => hash,
        Some(None) => {
            let report = ask(session, &remote, None).await?;
            if report.shown_before.as_ref().is_some_and(|before| *before != report.hash) {
                show(session, &remote, &report)?;
                return Err(Error::OtherStatements(remote).into());
            }
            report.hash
        }
    };
    let report = ask(session, &remote, Some(shown)).await?;
    print(session, &report)?;
    session.say(match report.adopted {
        true => "these statements were run",
        false => "there is nothing to add",
    });
    output::failures(&report.merged).and(output::unavailable(report.left.unavailable()))
}

async fn ask(session: &Session, remote: &str, shown: Option<String>) -> Result<AdoptReport, Failed> {
    session.run(Command::SchemaAdopt { remote: remote.to_owned(), apply: shown.is_some(), shown }).await
}

/// Prints what would be done.
fn show(session: &Session, remote: &str, report: &AdoptReport) -> Result<(), Failed> {
    print(session, report)?;
    match report.statements.is_empty() {
        true => session.say("there is nothing to add"),
        false => session.say(format_args!(
            "nothing was changed; `ddcp schema adopt {remote} --yes={}` runs these statements",
            report.hash
        )),
    }
    Ok(())
}

fn print(session: &Session, report: &AdoptReport) -> Result<(), Failed> {
    output::print(session.format, report, |out| {
        report.statements.iter().try_for_each(|sql| output::lines_of(out, &format!("{sql};")))?;
        if !report.left.is_same() {
            writeln!(out, "stays as it is:")?;
            lines(out, "  ", &report.left)?;
        }
        output::each_done(&report.merged, |name, report| super::merge::lines(out, name, report))
    })
}

/// A line for each difference, after `indent`.
pub(super) fn lines(out: &mut dyn Write, indent: &str, report: &SchemaReport) -> io::Result<()> {
    for (table, differences) in &report.tables {
        differences.iter().try_for_each(|difference| writeln!(out, "{indent}table {table}: {difference}"))?;
    }
    if report.more > 0 {
        writeln!(out, "{indent}and {}", output::count(report.more, "more difference"))?;
    }
    match &report.unknown {
        Some(why) => writeln!(out, "{indent}not known where: {why}"),
        None => Ok(()),
    }
}
