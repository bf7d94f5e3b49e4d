use std::time::Duration;

use crate::{
    Error,
    cli::{Failed, Session},
    control::Connection,
};

/// How long the daemon may take to leave the network once it was asked to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// End a running `ddcp serve`. Nothing is lost; what it was doing is done again by the next one.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ddcp --db notes.db stop")]
pub(in crate::cli) struct Args {}

pub(in crate::cli) async fn run(session: &Session, _: Args) -> Result<(), Failed> {
    // A daemon whose database is gone can be ended as well.
    let Some(connection) = Connection::open(&session.layout).await? else {
        session.repository()?;
        session.say("`ddcp serve` does not run here");
        return Ok(());
    };
    connection.stop().await?;
    // It gives the lock back when its node is down.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match session.layout.try_lock() {
            Err(Error::Locked { .. }) if tokio::time::Instant::now() < deadline => {}
            outcome => return Ok(outcome.map(drop)?),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
