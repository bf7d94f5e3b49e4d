//! The daemon: `ddcp serve`.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
};

use crate::{
    Error,
    announce::Announcer,
    control,
    follow::follow,
    protocol::{Door, Guarded},
    repo::{Layout, Lock, Options, Repository},
    transport::{Address, Signer},
};

/// How long another process that holds the repository is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Creates what is missing, holds the repository, gives its address to `on_address` answers peers and control
/// clients, and follows the remotes that are set so, until SIGINT, SIGTERM or `ddcp stop`.
///
/// # Errors
/// What keeps it from starting: [`Error::Locked`] where another process holds the repository, and others. Once it
/// runs, failures are logged.
pub async fn serve(layout: Layout, options: Options, on_address: impl FnOnce(&Address)) -> Result<(), Error> {
    let io = |source| Error::Io { path: layout.database().to_owned(), source };
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
    // Outlives `run`: the lock is given back when the node is down, not before.
    let held = OnceLock::new();
    let result = tokio::select! {
        result = run(layout, options, on_address, &held) => result,
        _ = interrupt.recv() => {
            tracing::info!("interrupted");
            Ok(())
        }
        _ = terminate.recv() => {
            tracing::info!("terminated");
            Ok(())
        }
    };
    if let Some((repository, _lock)) = held.get() {
        repository.shutdown().await;
    }
    result
}

/// Starts everything and answers until the future is dropped.
async fn run(
    layout: Layout,
    options: Options,
    on_address: impl FnOnce(&Address),
    held: &OnceLock<(Repository, Lock)>,
) -> Result<(), Error> {
    let opened = tokio::task::spawn_blocking(move || Repository::init(layout, options));
    let repository = opened.await.map_err(|error| Error::Interrupted(error.to_string()))??;
    let lock = lock(&repository).await?;
    let (repository, _) = held.get_or_init(|| (repository, lock));
    // Commands are answered from here on; those that need the node wait for it.
    let stop = Arc::new(Notify::new());
    let control = control::Server::bind(repository.clone(), Arc::clone(&stop))?;
    tokio::select! {
        result = answer_peers(repository, on_address) => result,
        () = control.run() => Ok(()),
        () = stop.notified() => {
            tracing::info!("asked to stop");
            Ok(())
        }
        () = follow(repository.clone()) => Ok(()),
    }
}

async fn lock(repository: &Repository) -> Result<Lock, Error> {
    let started = tokio::time::Instant::now();
    loop {
        match repository.hold().await {
            Err(Error::Locked { .. }) if started.elapsed() < LOCK_PATIENCE => tokio::time::sleep(LOCK_PAUSE).await,
            result => return result,
        }
    }
}

async fn answer_peers(repository: &Repository, on_address: impl FnOnce(&Address)) -> Result<(), Error> {
    let node = repository.node().await?;
    on_address(&Address::Veilid(node.address().await.map_err(Error::Node)?));

    // Before anybody is answered, so that nobody is who should not be.
    repository.blocking(|repository| repository.reload().map(drop)).await?;
    let (announce, announced) = watch::channel(Vec::new());
    let announcer = Announcer::new(repository.clone(), announce);
    announcer.announce().await?;
    let own = node.party().await.map_err(Error::Node)?.repository;
    let door = Door::new(own, Arc::new(node.clone()), rand::random());
    let guarded = Guarded::new(repository.server(), door, repository.rules(), repository.drops());
    node.serve(Arc::new(guarded), announced).await.map_err(Error::Node)?;
    tracing::info!(database = %repository.layout().database().display(), "serving");
    announcer.run().await;
    Ok(())
}
