//! The daemon: `ddcp serve`.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, oneshot, watch},
};

use crate::{
    Error, control,
    database::Database,
    follow::follow,
    protocol::{self, Door, Guarded, RemoteStatus, Rules},
    repo::{self, Event, Layout, Lock, Options, Repository},
    transport::{Address, Signer},
};

/// How often the database is looked at for commits of other programs. The look is one pragma, no table is read
/// unless something was committed.
const LOOK: Duration = Duration::from_millis(500);

/// How long to wait before a database that could not be read is opened again.
const REOPEN: Duration = Duration::from_secs(5);

/// How long another process that holds the repository is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

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
    let opened = tokio::task::spawn_blocking(move || Repository::init_with(layout, options));
    let repository = opened.await.map_err(|error| Error::Interrupted(error.to_string()))??;
    let lock = lock(&repository).await?;
    let (repository, _) = held.get_or_init(|| (repository, lock));
    serve_held(repository, Arc::default(), oneshot::channel().0, on_address).await
}

/// Serves a repository whose lock the caller holds, until `stop` is told or the future is dropped. `ready` is told once
/// commands are answered, and `on_address` is given the address once there is one.
///
/// # Errors
/// What keeps it from starting, or peers from being answered.
pub(crate) async fn serve_held(
    repository: &Repository,
    stop: Arc<Notify>,
    ready: oneshot::Sender<()>,
    on_address: impl FnOnce(&Address),
) -> Result<(), Error> {
    // Commands are answered from here on; those that need the node wait for it.
    let control = control::Server::bind(repository.clone(), Arc::clone(&stop))?;
    // Nobody may be waiting for it.
    let _ = ready.send(());
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

/// Takes the lock of a repository, and waits for whoever has it.
///
/// # Errors
/// As [`Repository::hold`].
pub(crate) async fn lock(repository: &Repository) -> Result<Lock, Error> {
    let started = tokio::time::Instant::now();
    loop {
        match repository.hold().await {
            Err(Error::Locked { .. }) if started.elapsed() < LOCK_PATIENCE => tokio::time::sleep(LOOK).await,
            result => return result,
        }
    }
}

async fn answer_peers(repository: &Repository, on_address: impl FnOnce(&Address)) -> Result<(), Error> {
    let node = match repository.is_offline() {
        true => None,
        false => Some(repository.node().await?),
    };
    match node {
        Some(node) => on_address(&Address::Veilid(node.address().await.map_err(Error::Node)?)),
        // There will be none: nobody is to wait for it.
        None => drop(on_address),
    }

    // Before anybody is answered, so that nobody is who should not be.
    repository.blocking(|repository| repository.reload().map(drop)).await?;
    let announcer = Announcer { rules: repository.rules(), secret: rand::random() };
    let status = repository.blocking(|repository| Ok(repo::status_of(&repository.database()?)?)).await?;
    let (announce, announcement) = watch::channel(announcer.announcement(&status));
    let watched = repository.clone();
    tokio::task::spawn_blocking(move || watch_database(&watched, &announcer, &announce));
    // The database is watched all the same: its announcement is kept to the end.
    let Some(node) = node else { return std::future::pending().await };
    let own = node.party().await.map_err(Error::Node)?.repository;
    let door = Door::new(own, Arc::new(node.clone()), rand::random());
    let guarded = Guarded::new(repository.server(), door, repository.rules(), repository.drops());
    node.serve(Arc::new(guarded), announcement).await.map_err(Error::Node)?;
    tracing::info!(database = %repository.layout().database().display(), "serving");
    std::future::pending().await
}

/// Knows what to publish.
struct Announcer {
    rules: watch::Receiver<Arc<Rules>>,
    /// By which a private repository tells that something has changed, and not what.
    secret: [u8; 32],
}

impl Announcer {
    fn announcement(&self, status: &RemoteStatus) -> Vec<u8> {
        if self.is_private() {
            protocol::private_announcement(status, &self.secret)
        } else {
            protocol::announcement(status)
        }
    }

    fn is_private(&self) -> bool {
        self.rules.borrow().private
    }
}

/// Announces the database's status at the start and after every commit, until nobody listens.
fn watch_database(repository: &Repository, announcer: &Announcer, announce: &watch::Sender<Vec<u8>>) {
    while !announce.is_closed() {
        let result =
            repository.database().and_then(|database| announce_commits(repository, &database, announcer, announce));
        if let Err(error) = result {
            tracing::error!(%error, "the database cannot be read");
            repository.tell(Event::Error { remote: None, failure: error.report() });
            std::thread::sleep(REOPEN);
        }
    }
}

/// Announces `database`'s status now and whenever another connection has committed or who may know it has changed.
fn announce_commits(
    repository: &Repository,
    database: &Database,
    announcer: &Announcer,
    announce: &watch::Sender<Vec<u8>>,
) -> Result<(), Error> {
    let mut seen = None;
    while !announce.is_closed() {
        let now = (database.data_version()?, announcer.is_private());
        if seen != Some(now) {
            seen = Some(now);
            let status = repo::status_of(database)?;
            // Before peers can read so far: a copy that is restored later is older than this.
            repository.note_version(status.db_version)?;
            repository.tell_version(status.db_version);
            announce.send_replace(announcer.announcement(&status));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
