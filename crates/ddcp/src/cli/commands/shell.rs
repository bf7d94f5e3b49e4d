use crate::{
    Error, ErrorKind, Failure,
    cli::{
        Failed, Session,
        shell::{self, ShellError, ShellOptions},
    },
};

/// Run SQL on the database, with replication: interactively, from a pipe, or one argument.
///
/// Commands of the shell itself: .tables .schema .help .quit
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ddcp shell
  ddcp shell \"SELECT count(*) FROM note\"
  ddcp shell < schema.sql
  ddcp shell --format json \"SELECT * FROM note\"")]
pub(in crate::cli) struct Args {
    /// Statements; without them they are read from stdin.
    sql: Option<String>,
}

pub(in crate::cli) async fn run(session: Session, args: Args) -> Result<(), Failed> {
    let work = move || {
        let repository = session.repository()?;
        // Before something is written to it: what a restored copy writes under its old site id, no peer asks for.
        if let Err(error) = repository.look_whose() {
            match error {
                Error::OtherState { .. } | Error::ForeignState { .. } => return Err(error.into()),
                // What cannot be written can be looked at.
                error => tracing::debug!(%error, "it was not looked at whose the database is"),
            }
        }
        let database = repository.database_to_read()?;
        let options =
            ShellOptions { sql: args.sql.as_deref(), format: session.format, history: Some(session.layout.history()) };
        shell::run(database.connection(), &options).map_err(|error| failed(&error))
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Interrupted(error.to_string()))?
}

fn failed(error: &ShellError) -> Failed {
    let kind = match error {
        ShellError::Command { .. } => ErrorKind::Usage,
        _ => ErrorKind::Failed,
    };
    Failure { kind, message: error.to_string(), hint: None }.into()
}
