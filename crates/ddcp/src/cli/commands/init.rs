use serde::Serialize;

use crate::{
    Error,
    cli::{Failed, Session, output},
    repo::Repository,
};

/// Make a database a repository, creating what is missing.
///
/// Tables replicate once `SELECT crsql_as_crr('TABLE')` has made them CRRs.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ddcp --db notes.db init")]
pub(in crate::cli) struct Args {}

#[derive(Serialize)]
struct Initialised {
    database: String,
    state: String,
}

pub(in crate::cli) async fn run(session: &Session, _: Args) -> Result<(), Failed> {
    let (layout, options) = (session.layout.clone(), session.options.clone());
    let repository = tokio::task::spawn_blocking(move || Repository::init_with(layout, options))
        .await
        .map_err(|error| Error::Interrupted(error.to_string()))??;
    let made = Initialised {
        database: repository.layout().database().display().to_string(),
        state: repository.layout().state().display().to_string(),
    };
    output::print(session.format, &made, |out| {
        writeln!(out, "repository {}", made.database)?;
        writeln!(out, "state      {}", made.state)
    })
}
