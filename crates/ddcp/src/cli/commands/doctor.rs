use std::io::{self, Write};

use crate::{
    cli::{Failed, Session, output},
    control,
    repo::{self, Finding, Level, Repository},
};

/// Look for what is wrong, and say what mends it.
///
/// Looks at the database, its tables, the state, the network and the remotes, and changes nothing. Exit status 0 if all is well, 5 if there are warnings or errors.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ddcp doctor\n  ddcp doctor --offline --format json")]
pub(in crate::cli) struct Args {
    /// Look at this machine only; ask no remote.
    #[arg(long)]
    offline: bool,
    /// Also compare every index of the database with its table.
    #[arg(long)]
    thorough: bool,
    /// Show what is wrong only.
    #[arg(long)]
    trouble: bool,
}

pub(in crate::cli) async fn run(session: &Session, args: Args) -> Result<(), Failed> {
    session.check_named()?;
    let (layout, options) = (session.layout.clone(), session.options.clone());
    let looked = tokio::task::spawn_blocking(move || repo::examine(&layout, &options, args.thorough)).await;
    let mut findings = looked.map_err(|error| crate::Error::Interrupted(error.to_string()))?;
    // What keeps a repository from being opened has been found.
    if let (false, Ok(repository)) =
        (args.offline, Repository::open_with(session.layout.clone(), session.options.clone()))
    {
        match control::examine_network(&repository).await {
            Ok(found) => findings.extend(found),
            Err(failure) => findings.push(Finding {
                level: Level::Error,
                about: "network".to_owned(),
                message: format!("the remotes could not be asked: {}", failure.message),
                mend: failure.hint,
            }),
        }
    }
    for finding in &mut findings {
        finding.mend = finding.mend.take().map(|mend| session.as_named(&mend));
    }
    let is_well = !findings.iter().any(Finding::is_trouble);
    if args.trouble {
        findings.retain(Finding::is_trouble);
    }
    output::print(session.format, &findings, |out| findings.iter().try_for_each(|finding| line(out, finding)))?;
    if is_well { Ok(()) } else { Err(Failed::findings()) }
}

fn line(out: &mut dyn Write, Finding { level, about, message, mend }: &Finding) -> io::Result<()> {
    let level = match level {
        Level::Ok => "ok",
        Level::Note => "note",
        Level::Warning => "warning",
        Level::Error => "error",
    };
    writeln!(out, "{level:<8} {about:<9} {message}")?;
    match mend {
        Some(mend) => writeln!(out, "{:<18} mend: {mend}", ""),
        None => Ok(()),
    }
}
