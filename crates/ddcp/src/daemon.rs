//! The daemon: `ddcp serve`.

use std::{sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    Error, control,
    database::{Database, DatabaseError},
    protocol,
    repo::{self, DatabaseSource, Layout, Options, Repository},
    transport::Address,
};

/// How often the database is looked at for commits of other programs. The look is one pragma, no table is read
/// unless something was committed.
const LOOK: Duration = Duration::from_millis(500);

/// How long to wait before a database that could not be read is opened again.
const REOPEN: Duration = Duration::from_secs(5);

/// Creates what is missing, holds the repository, gives its address to `on_address` and answers peers and control
/// clients until SIGINT or SIGTERM.
///
/// # Errors
/// What keeps it from starting: [`Error::Locked`] where another process holds the repository, and others. Once it
/// runs, failures are logged.
pub async fn serve(layout: Layout, options: Options, on_address: impl FnOnce(&Address)) -> Result<(), Error> {
    let io = |source| Error::Io { path: layout.database().to_owned(), source };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
    let repository = tokio::task::spawn_blocking({
        let layout = layout.clone();
        move || Repository::init(layout, options)
    })
    .await
    .map_err(|error| Error::Interrupted(error.to_string()))??;
    let _lock = repository.try_lock()?;
    let control = control::Server::bind(repository.clone())?;

    let node = repository.node().await?;
    let address = node.address().await.map_err(Error::Node)?;
    on_address(&Address::Veilid(address));

    let (announce, announcement) = watch::channel(Vec::new());
    let watcher = tokio::task::spawn_blocking({
        let repository = repository.clone();
        move || watch_database(&repository, &announce)
    });
    let served = repository.clone();
    let source = DatabaseSource::new(move || served.open_database());
    node.serve(Arc::new(protocol::Server::new(source)), announcement).await.map_err(Error::Node)?;
    tracing::info!(database = %layout.database().display(), "serving");

    tokio::select! {
        _ = interrupt.recv() => tracing::info!("interrupted"),
        _ = terminate.recv() => tracing::info!("terminated"),
        () = control.run() => {}
    }
    repository.shutdown().await;
    drop(watcher);
    Ok(())
}

/// Announces the database's status at the start and after every commit, until nobody listens.
fn watch_database(repository: &Repository, announce: &watch::Sender<Vec<u8>>) {
    while !announce.is_closed() {
        let result = repository.open_database().and_then(|database| announce_commits(&database, announce));
        if let Err(error) = result {
            tracing::error!(%error, "the database cannot be read");
            std::thread::sleep(REOPEN);
        }
    }
}

/// Announces `database`'s status now and whenever another connection has committed.
fn announce_commits(database: &Database, announce: &watch::Sender<Vec<u8>>) -> Result<(), DatabaseError> {
    let mut seen = None;
    while !announce.is_closed() {
        let now = database.data_version()?;
        if seen != Some(now) {
            seen = Some(now);
            announce.send_replace(protocol::announcement(&repo::status_of(database)?));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
