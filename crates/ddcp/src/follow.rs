//! Following remotes: what the daemon fetches and merges by itself, as each remote's `sync` setting says.
//!
//! Each followed remote has a task of its own, so one that is slow or dead holds up none of the others. The task
//! looks whether anything is new, which is cheap, and only then fetches: at once when it is told of a change (by a
//! DHT watch), now and then in any case, and after growing pauses while it fails.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rand::Rng;
use tokio::{
    sync::Semaphore,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    Error, Failure,
    backoff::Backoff,
    config::{Remote, RemoteName, SyncMode},
    protocol::ClientError,
    repo::{Event, Outcome, PerRemote, Repository},
    transport::{
        Address, TransportError,
        veilid::{VeilidPeer, Watch},
    },
};

/// How often the settings are looked at for changes: one `stat`.
const SETTINGS_LOOK: Duration = Duration::from_secs(1);
/// How often a database on this machine is looked at for changes: two `stat`s.
const FILE_LOOK: Duration = Duration::from_secs(1);
/// How often the record of a peer is read in case a watch has missed something: one small message.
const RECORD_LOOK: Duration = Duration::from_secs(30);
/// Pauses after failures grow between these.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// Told of one change after the other, it looks no more often than this.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
/// Remotes that are fetched from at once; further ones wait.
const MOST_AT_ONCE: usize = 8;

/// Follows the remotes of `repository` that are set so, with every change of its settings, until the future is
/// dropped.
pub(crate) async fn follow(repository: Repository) {
    let places = Arc::new(Semaphore::new(MOST_AT_ONCE));
    let mut followed: HashMap<RemoteName, Followed> = HashMap::new();
    let mut seen = None;
    loop {
        let stamp = Stamp::of(&repository.layout().config());
        if seen != Some(stamp) {
            seen = Some(stamp);
            match repository.blocking(Repository::reload).await {
                Ok(config) => {
                    followed.retain(|name, task| config.remotes.get(name) == Some(&task.remote));
                    for (name, remote) in config.remotes {
                        if remote.sync != SyncMode::Manual && !followed.contains_key(&name) {
                            let task = Followed::start(&repository, &name, remote, &places);
                            followed.insert(name, task);
                        }
                    }
                }
                // What was set before stays in force.
                Err(error) => tracing::error!(%error, "the settings cannot be read"),
            }
        }
        sleep(SETTINGS_LOOK).await;
    }
}

/// A remote that is being followed; no longer when this is dropped.
struct Followed {
    remote: Remote,
    task: JoinHandle<()>,
}

impl Followed {
    fn start(repository: &Repository, name: &RemoteName, remote: Remote, places: &Arc<Semaphore>) -> Self {
        tracing::info!(remote = %name, sync = %remote.sync, "following");
        let follower = Follower {
            repository: repository.clone(),
            name: name.clone(),
            address: remote.address.clone(),
            sync: remote.sync,
            places: Arc::clone(places),
            scout: Scout::new(remote.address.clone()),
            done: None,
        };
        Self { remote, task: tokio::spawn(follower.run()) }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Follower {
    repository: Repository,
    name: RemoteName,
    address: Address,
    sync: SyncMode,
    places: Arc<Semaphore>,
    scout: Scout,
    /// What the remote looked like before it was last fetched from and merged without a rest.
    done: Option<Sight>,
}

impl Follower {
    async fn run(mut self) {
        let mut backoff = new_backoff();
        loop {
            let pause = match self.step().await {
                Ok(()) => {
                    backoff = new_backoff();
                    with_jitter(self.scout.interval())
                }
                Err(error) => {
                    tracing::debug!(remote = %self.name, %error, "following a remote");
                    backoff.step()
                }
            };
            let looked = Instant::now();
            tokio::select! {
                // A burst of changes is fetched together.
                () = self.scout.hint() => sleep_until(looked + SHORTEST_PAUSE).await,
                () = sleep(pause) => {}
            }
        }
    }

    /// Looks for something new, and fetches and merges it. A failure of these two is logged and kept for `status`
    /// where it happens.
    async fn step(&mut self) -> Result<(), Failure> {
        let sight = match self.scout.look(&self.repository).await {
            Ok(sight) => sight,
            Err(error) => {
                if matches!(error, Error::Remote(ClientError::Transport(TransportError::Replayed))) {
                    self.repository.note_failure(&self.name, &self.address, error.to_string()).await;
                }
                return Err(error.report());
            }
        };
        if self.done.as_ref() == Some(&sight) {
            return Ok(());
        }
        // The first sight of it may be of nothing new.
        self.repository.tell(self.done.as_ref().map(|_| Event::RemoteChange { remote: self.name.to_string() }));
        let Ok(_place) = self.places.acquire().await else { return Ok(()) };
        let name = Some(self.name.as_str());
        let fetched = succeeded(self.repository.fetch(name).await);
        if self.sync != SyncMode::Auto {
            fetched?;
        } else {
            // What came before a failure is merged all the same: a full inbox may be what failed.
            let merged = succeeded(self.repository.merge(name).await);
            fetched?;
            if merged?.iter().any(|report| report.waiting > 0) {
                // The table or column may appear: tried again at the next look.
                return Ok(());
            }
        }
        self.done = Some(sight);
        Ok(())
    }
}

/// What was done with each remote, unless it failed with one.
fn succeeded<T>(reports: Result<Vec<PerRemote<T>>, Error>) -> Result<Vec<T>, Failure> {
    let outcome = |report: PerRemote<T>| match report.outcome {
        Outcome::Done(done) => Ok(done),
        Outcome::Failed(failure) => Err(failure),
    };
    reports.map_err(|error| error.report())?.into_iter().map(outcome).collect()
}

/// What a remote looks like from outside. Two sights that are equal mean that nothing has been written in between.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sight {
    /// The files of a database on this machine: its own and that of its log.
    Files([Stamp; 2]),
    /// What a peer publishes.
    Announcement(Vec<u8>),
}

/// Size and time of a file; `None` if it cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp(Option<(u64, SystemTime)>);

impl Stamp {
    fn of(path: &Path) -> Self {
        let stamp = |metadata: fs::Metadata| Some((metadata.len(), metadata.modified().ok()?));
        Self(fs::metadata(path).ok().and_then(stamp))
    }
}

/// Looks at a remote without fetching from it.
enum Scout {
    File(PathBuf),
    Peer(Box<PeerScout>),
}

struct PeerScout {
    address: veilid_core::RecordKey,
    /// Once it was reached.
    reached: Option<(VeilidPeer, Watch)>,
}

impl Scout {
    fn new(address: Address) -> Self {
        match address {
            Address::Path(path) => Self::File(path),
            Address::Veilid(address) => Self::Peer(Box::new(PeerScout { address, reached: None })),
        }
    }

    fn interval(&self) -> Duration {
        match self {
            Self::File(_) => FILE_LOOK,
            Self::Peer(_) => RECORD_LOOK,
        }
    }

    /// Waits to be told of a change.
    async fn hint(&self) {
        match self {
            Self::Peer(scout) => match &scout.reached {
                Some((_, watch)) => watch.changed().await,
                None => std::future::pending().await,
            },
            Self::File(_) => std::future::pending().await,
        }
    }

    async fn look(&mut self, repository: &Repository) -> Result<Sight, Error> {
        match self {
            Self::File(path) => {
                let mut log = path.clone().into_os_string();
                log.push("-wal");
                Ok(Sight::Files([Stamp::of(path), Stamp::of(Path::new(&log))]))
            }
            Self::Peer(scout) => scout.look(repository).await,
        }
    }
}

impl PeerScout {
    async fn look(&mut self, repository: &Repository) -> Result<Sight, Error> {
        let remote = |error| Error::Remote(ClientError::Transport(error));
        let peer = match &self.reached {
            Some((peer, _)) => {
                peer.refresh().await.map_err(remote)?;
                peer.clone()
            }
            None => repository.node().await?.connect(&self.address).await.map_err(remote)?,
        };
        // Asked for anew each time, since a watch may end: while it is in force that changes nothing.
        let watch = peer.watch().await.map_err(remote)?;
        let sight = Sight::Announcement(peer.announcement());
        self.reached = Some((peer, watch));
        Ok(sight)
    }
}

fn new_backoff() -> Backoff {
    Backoff::new(FIRST_PAUSE, LONGEST_PAUSE)
}

/// So that those who were started together do not all ask together for ever.
fn with_jitter(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.75..=1.25))
}
