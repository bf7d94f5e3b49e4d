use std::io::{self, Write};

use crate::{
    cli::{Failed, Session, output},
    control::Command,
    repo::{FetchReport, PerRemote},
};

/// Download new changes of one or all remotes. Tables do not change until `merge`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ddcp fetch\n  ddcp fetch alice")]
pub(in crate::cli) struct Args {
    /// The remote; all if none is named.
    remote: Option<String>,
}

pub(in crate::cli) async fn run(session: &Session, args: Args) -> Result<(), Failed> {
    let reports: Vec<PerRemote<FetchReport>> = session.run_shown(Command::Fetch { remote: args.remote }).await?;
    if reports.is_empty() {
        session.say("there are no remotes; `ddcp remote add NAME ADDRESS` adds one");
    }
    output::print(session.format, &reports, |out| output::each_done(&reports, |name, report| line(out, name, report)))?;
    output::failures(&reports)?;
    output::whole(output::done(&reports).map(|report| &report.left_out))
}

pub(super) fn line(out: &mut dyn Write, name: &str, report: &FetchReport) -> io::Result<()> {
    if report.rewound {
        writeln!(out, "{name}: its database is older than what was fetched before; read from the start")?;
    }
    match report.changes {
        0 => writeln!(out, "{name}: nothing new")?,
        changes => {
            writeln!(out, "{name}: fetched {} in {}", output::count(changes, "change"), output::bytes(report.bytes))?;
        }
    }
    if !report.left_out.is_empty() {
        let count = output::count(report.left_out.count, "change");
        writeln!(out, "{name}: it cannot send {count}; `ddcp doctor` there says more:")?;
        output::left_out(out, &report.left_out)?;
    }
    let Some(schema) = &report.schema else { return Ok(()) };
    writeln!(out, "{name}: its tables differ from those here:")?;
    super::schema::lines(out, "  ", schema)
}
