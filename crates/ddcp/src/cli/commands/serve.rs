use std::{io::Write, net::SocketAddr};

use serde_json::json;

use crate::{
    cli::{Failed, Format, Session},
    config::ControlAddress,
    daemon, systemd,
};

/// Answer peers until SIGINT or SIGTERM.
///
/// Makes a database that is named with `--db` a repository, and makes a new one where there is none; without `--db` only in
/// a folder that holds no other repository. Prints the repository's address on stdout, at once and as one line, unless that
/// is systemd's journal; logs go to stderr.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  ddcp --db notes.db serve\n  ddcp --db notes.db serve --control 127.0.0.1:4711\n  ddcp --db notes.db serve --metrics 127.0.0.1:9184"
)]
pub(in crate::cli) struct Args {
    /// Take control requests on this port of this machine too, from clients that show the token in `control.token` of
    /// the state directory.
    #[arg(long, value_name = "127.0.0.1:PORT")]
    control: Option<ControlAddress>,
    /// Give metrics for Prometheus at this address, under /metrics.
    #[arg(long, value_name = "127.0.0.1:PORT")]
    metrics: Option<SocketAddr>,
}

pub(in crate::cli) async fn run(mut session: Session, args: Args) -> Result<(), Failed> {
    session.check_named()?;
    let format = session.format;
    session.options.control = args.control;
    session.options.metrics = args.metrics;
    daemon::serve(session.layout, session.options, |address| {
        if systemd::is_journal(std::io::stdout()) {
            tracing::info!("`ddcp address` prints the address; the journal, which others may read, is not told");
            return;
        }
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
