//! The daemon: `ddcp serve`, and what an application does that serves a repository itself.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, watch},
    time::sleep,
};

use crate::{
    Error,
    announce::Announcer,
    control,
    follow::follow,
    metrics,
    repo::{Event, Held, Layout, Options, Repository},
    settings, systemd,
    transport::{Address, Signer},
};

/// How long another process that holds the repository is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// How long what is in flight may take once the daemon is told to end. With the 3 s in which the node leaves the network,
/// the end takes less than 5 s.
const GRACE: Duration = Duration::from_millis(1500);

/// Creates what is missing, holds the repository, gives its address to `on_address`, answers peers and control
/// clients, and follows the remotes that are set so, until SIGINT, SIGTERM or `ddcp stop`. Then it finishes what it is
/// doing, within 5 s; a fetch or merge that takes longer is broken off, and the next one goes on there. SIGHUP has the
/// settings read anew.
///
/// # Errors
/// What keeps it from starting: [`Error::Locked`] where another process holds the repository, and others. Once it
/// runs, failures are logged.
pub async fn serve(layout: Layout, options: Options, on_address: impl FnOnce(&Address)) -> Result<(), Error> {
    let on = |kind| signal(kind).map_err(|source| Error::Io { path: layout.database().to_owned(), source });
    let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    let hangup = on(SignalKind::hangup())?;
    let stop = Arc::new(Notify::new());
    // Outlives `running`: the lock is given back when the node is down, not before.
    let held = OnceLock::new();
    let mut running = Box::pin(run(layout, options, on_address, hangup, Arc::clone(&stop), &held));
    let reason = tokio::select! {
        result = &mut running => return end(&held).await.and(result),
        _ = interrupt.recv() => "interrupted",
        _ = terminate.recv() => "terminated",
        () = stop.notified() => "asked to stop",
    };
    tracing::info!("{reason}");
    systemd::stopping();
    if let Some((repository, _)) = held.get() {
        repository.end();
        tokio::select! {
            _ = &mut running => {}
            () = repository.idle() => {}
            () = sleep(GRACE) => tracing::info!("breaking off what is not done"),
        }
    }
    drop(running);
    end(&held).await
}

/// Leaves the network.
async fn end(held: &OnceLock<(Repository, Held)>) -> Result<(), Error> {
    if let Some((repository, _held)) = held.get() {
        repository.shutdown().await;
    }
    Ok(())
}

/// Starts everything and answers until the future is dropped.
async fn run(
    layout: Layout,
    options: Options,
    on_address: impl FnOnce(&Address),
    hangup: Signal,
    stop: Arc<Notify>,
    held: &OnceLock<(Repository, Held)>,
) -> Result<(), Error> {
    let opened = tokio::task::spawn_blocking(move || {
        let is_new = !layout.database().exists();
        Repository::init_with(layout, options).map(|repository| (repository, is_new))
    });
    let (repository, is_new) = opened.await.map_err(|error| Error::Interrupted(error.to_string()))??;
    if is_new {
        tracing::info!(database = %repository.layout().database().display(), "made a new database, with nothing in it");
    }
    let lock = lock(&repository).await?;
    let (repository, _) = held.get_or_init(|| (repository, lock));
    let mut on_address = Some(on_address);
    let on_stage = |stage: Stage<'_>| match stage {
        Stage::Address(Some(address)) => drop(on_address.take().map(|show| show(address))),
        Stage::Peers => systemd::ready(&serving(repository)),
        Stage::Commands | Stage::Address(None) => {}
    };
    tokio::select! {
        result = serve_held(repository, stop, on_stage) => result,
        () = reload_when_told(repository, hangup) => Ok(()),
        () = systemd::keep_watchdog(repository) => Ok(()),
        () = tell_failures(repository) => Ok(()),
    }
}

/// How far the start of serving has come.
pub(crate) enum Stage<'a> {
    /// Commands are answered; those that need the node wait for it.
    Commands,
    /// The address is known; `None` if there will be none.
    Address(Option<&'a Address>),
    /// Peers are answered.
    Peers,
}

/// Serves a repository whose lock the caller holds, until the future is dropped. `stop` is told when a control client
/// asks for the end, `on_stage` how far the start is.
///
/// # Errors
/// What keeps it from starting, or peers from being answered.
pub(crate) async fn serve_held(
    repository: &Repository,
    stop: Arc<Notify>,
    mut on_stage: impl FnMut(Stage<'_>),
) -> Result<(), Error> {
    repository.blocking(Repository::pin).await?;
    repository.stay().await;
    let (announce, announced) = watch::channel(Vec::new());
    let config = repository.blocking(Repository::config).await?;
    let control = control::Server::bind(repository.clone(), config.control, stop)?;
    let metrics = match config.metrics {
        Some(address) => Some(metrics::bind(address).await?),
        None => None,
    };
    on_stage(Stage::Commands);
    tokio::select! {
        result = answer_peers(repository, announce, on_stage) => result,
        () = control.run() => Ok(()),
        () = follow(repository.clone(), announced) => Ok(()),
        () = settings::keep_in_force(repository) => Ok(()),
        () = repository.keep_comparing() => Ok(()),
        () = metrics::serve(repository.clone(), metrics) => Ok(()),
    }
}

/// Reads the settings anew at every SIGHUP.
async fn reload_when_told(repository: &Repository, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        systemd::reloading();
        match settings::reload(repository).await {
            Ok(()) => tracing::info!("the settings were read anew"),
            Err(error) => tracing::error!(%error, "the settings cannot be read; those from before stay in force"),
        }
        systemd::ready(&serving(repository));
    }
}

/// What it does, in a line.
fn serving(repository: &Repository) -> String {
    let remotes = repository.settings_in_force().borrow().remotes.len();
    format!("serving {} with {remotes} remotes", repository.layout().database().display())
}

/// Tells systemd why the database cannot be served, when it cannot.
async fn tell_failures(repository: &Repository) {
    let mut events = repository.events();
    while let Some(event) = events.next().await {
        if let Event::Error { remote: None, failure } = event {
            systemd::status(&failure.message);
        }
    }
}

/// Takes the lock of a repository, and waits for whoever has it.
///
/// # Errors
/// As [`Repository::hold`].
pub(crate) async fn lock(repository: &Repository) -> Result<Held, Error> {
    let started = tokio::time::Instant::now();
    loop {
        match repository.hold().await {
            Err(Error::Locked { .. }) if started.elapsed() < LOCK_PATIENCE => sleep(LOCK_PAUSE).await,
            result => return result,
        }
    }
}

async fn answer_peers(
    repository: &Repository,
    announce: watch::Sender<Vec<u8>>,
    mut on_stage: impl FnMut(Stage<'_>),
) -> Result<(), Error> {
    let node = match repository.is_offline() {
        true => None,
        false => Some(repository.node().await?),
    };
    let address = match &node {
        Some(node) => Some(Address::Veilid(node.address().await.map_err(Error::Node)?)),
        None => None,
    };
    on_stage(Stage::Address(address.as_ref()));

    // Before anybody is answered, so that nobody is who should not be.
    repository.blocking(|repository| repository.reload().map(drop)).await?;
    let announced = announce.subscribe();
    let announcer = Announcer::new(repository.clone(), announce);
    announcer.announce().await?;
    if let Some(node) = node {
        let own = node.party().await.map_err(Error::Node)?.repository;
        let server = repository.guarded(own, Arc::new(node.clone())).await?;
        node.serve(Arc::new(server), announced).await.map_err(Error::Node)?;
    }
    tracing::info!(database = %repository.layout().database().display(), "serving");
    on_stage(Stage::Peers);
    announcer.run().await;
    Ok(())
}
