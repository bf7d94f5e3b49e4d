use crate::{
    cli::{Failed, Session, output},
    control::Command,
    repo::PullReport,
};

/// Fetch, then merge, one or all remotes.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ddcp pull\n  ddcp pull alice")]
pub(in crate::cli) struct Args {
    /// The remote; all if none is named.
    remote: Option<String>,
}

pub(in crate::cli) async fn run(session: &Session, args: Args) -> Result<(), Failed> {
    let report: PullReport = session.run_shown(Command::Pull { remote: args.remote }).await?;
    if report.fetched.is_empty() {
        session.say("there are no remotes; `ddcp remote add NAME ADDRESS` adds one");
    }
    output::print(session.format, &report, |out| {
        output::each_done(&report.fetched, |name, report| super::fetch::line(out, name, report))?;
        output::each_done(&report.merged, |name, report| super::merge::lines(out, name, report))
    })?;
    output::failures_of_both(&report.fetched, &report.merged)?;
    output::whole(output::done(&report.fetched).map(|report| &report.left_out))
}
