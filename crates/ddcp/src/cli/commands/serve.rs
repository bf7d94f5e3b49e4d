use std::io::Write;

use serde_json::json;

use crate::{
    cli::{Failed, Format, Session},
    daemon,
};

/// Answer peers until SIGINT or SIGTERM.
///
/// Creates what is missing. Prints the repository's address on stdout, at once and as one line; logs go to stderr.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ddcp --db notes.db serve")]
pub(in crate::cli) struct Args {}

pub(in crate::cli) async fn run(session: Session, _: Args) -> Result<(), Failed> {
    let format = session.format;
    daemon::serve(session.layout, session.options, |address| {
        let address = address.to_string();
        let line = match format {
            Format::Table => address,
            Format::Json => json!({"address": address}).to_string(),
        };
        let mut stdout = std::io::stdout().lock();
        if let Err(error) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
            tracing::warn!(%error, "the address could not be printed");
        }
    })
    .await?;
    Ok(())
}
