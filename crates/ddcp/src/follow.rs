//! Following remotes: what the daemon fetches and merges by itself, as each remote's `sync` setting says.
//!
//! Each followed remote has a task of its own, so one that is slow or dead holds up none of the others. The task
//! looks whether anything is new, which is cheap, and only then fetches: at once when it is told of a change (by a hint
//! of the remote, by a DHT watch, by the file system), now and then in any case, and after growing pauses while it fails.
//!
//! Remotes that may follow this repository are hinted when something is new here; see [`hint`].

use std::{collections::HashMap, sync::Arc, time::Duration};

use rand::Rng;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    Error, Failure,
    backoff::Backoff,
    config::{Remote, RemoteName, SyncMode},
    protocol::{ClientError, HintListener},
    repo::{Event, Outcome, PerRemote, Repository},
    transport::{Address, TransportError},
};

mod hint;
mod scout;

pub(crate) use scout::Stamp;
use scout::{Scout, Sight};

/// Pauses after failures grow between these.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// Told of one change after the other, it fetches no more often than this.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// What a watch tells within this time after a hint was followed, the hint has told already.
const HINT_COVERS: Duration = Duration::from_secs(3);
/// Remotes that are fetched from at once without ado.
const PLACES: usize = 8;
/// How long a further one waits for a place. Then it goes on without: others may be slow, and a fetch takes bounded
/// memory.
const PLACE_PATIENCE: Duration = Duration::from_secs(1);

/// Follows the remotes of `repository` that are set so, with every change of its settings, and hints them when something
/// new is `announced` here, until the future is dropped.
pub(crate) async fn follow(repository: Repository, announced: watch::Receiver<Vec<u8>>) {
    let places = Arc::new(Semaphore::new(PLACES));
    let mut settings = repository.settings_in_force();
    let mut followed: HashMap<RemoteName, Followed> = HashMap::new();
    loop {
        let remotes = settings.borrow_and_update().remotes.clone();
        followed.retain(|name, task| remotes.get(name) == Some(&task.remote));
        for (name, remote) in remotes {
            followed
                .entry(name)
                .or_insert_with_key(|name| Followed::start(&repository, name, remote, &places, &announced));
        }
        if settings.changed().await.is_err() {
            return;
        }
    }
}

/// A remote with the tasks for it, which end when this is dropped.
struct Followed {
    remote: Remote,
    _tasks: JoinSet<()>,
}

impl Followed {
    fn start(
        repository: &Repository,
        name: &RemoteName,
        remote: Remote,
        places: &Arc<Semaphore>,
        announced: &watch::Receiver<Vec<u8>>,
    ) -> Self {
        let mut tasks = JoinSet::new();
        if remote.sync != SyncMode::Manual {
            tracing::info!(remote = %name, sync = %remote.sync, "following");
            let follower = Follower {
                repository: repository.clone(),
                name: name.clone(),
                address: remote.address.clone(),
                sync: remote.sync,
                places: Arc::clone(places),
                scout: Scout::new(remote.address.clone()),
                seen: None,
                covered: Instant::now(),
            };
            tasks.spawn(follower.run());
        }
        if let Some(id) = remote.address.repository() {
            tasks.spawn(hint::hint(repository.clone(), remote.address.clone(), id, announced.clone()));
        }
        Self { remote, _tasks: tasks }
    }
}

struct Follower {
    repository: Repository,
    name: RemoteName,
    address: Address,
    sync: SyncMode,
    places: Arc<Semaphore>,
    scout: Scout,
    /// What the remote looked like when it was last fetched from and merged without a rest.
    seen: Option<Seen>,
    /// Until when a hint tells all that a watch can tell.
    covered: Instant,
}

struct Seen {
    sight: Sight,
    /// How many times it was fetched from since it looks so.
    times: u8,
}

/// Why a step is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// There may be something new.
    Look,
    /// The remote says that there is.
    Hint,
}

impl Follower {
    async fn run(mut self) {
        let hints = self.listen().await;
        let mut backoff = new_backoff();
        let mut cause = Cause::Look;
        loop {
            let began = Instant::now();
            let (pause, gap) = match self.step(cause, hints.as_ref()).await {
                Ok(()) => {
                    backoff = new_backoff();
                    let times = self.seen.as_ref().map_or(0, |seen| seen.times);
                    (with_jitter(self.scout.interval(times)), SHORTEST_PAUSE)
                }
                Err(error) => {
                    tracing::debug!(remote = %self.name, %error, "following a remote");
                    // Whoever hints is there again; but many hints are no reason to try all the time.
                    (backoff.step(), FIRST_PAUSE)
                }
            };
            let covered = self.covered;
            cause = tokio::select! {
                () = hinted(hints.as_ref()) => Cause::Hint,
                () = async {
                    self.scout.told().await;
                    sleep_until(covered).await;
                } => Cause::Look,
                () = sleep(pause) => Cause::Look,
            };
            if cause == Cause::Hint {
                tracing::debug!(remote = %self.name, "the remote hints that something is new");
            }
            // A burst of changes is fetched together.
            sleep_until(began + gap).await;
        }
    }

    /// Listens to the remote's hints, if it can give any.
    async fn listen(&self) -> Option<HintListener> {
        self.address.repository()?;
        match self.repository.tag_of_hints_from(&self.address).await {
            Ok(tag) => Some(self.repository.hints().listen(tag)),
            Err(error) => {
                tracing::debug!(remote = %self.name, %error, "its hints cannot be heard");
                None
            }
        }
    }

    /// Looks for something new unless it is known that there is, and fetches and merges it.
    async fn step(&mut self, cause: Cause, hints: Option<&HintListener>) -> Result<(), Failure> {
        let sight = if cause == Cause::Hint && self.scout.is_reached() { None } else { self.look(hints).await? };
        let times = match (&self.seen, &sight) {
            (Some(seen), Some(sight)) if seen.sight == *sight => seen.times,
            _ => 0,
        };
        if times >= self.scout.times() {
            return Ok(());
        }
        // The first sight of it may be of nothing new.
        if times == 0 && (cause == Cause::Hint || self.seen.is_some()) {
            self.repository.tell(Event::RemoteChange { remote: self.name.to_string() });
        }
        let is_merged = self.fetch_and_merge().await?;
        match sight {
            // A table or column that is missing may appear: tried again at the next look.
            Some(_) if !is_merged => self.seen = None,
            Some(sight) => self.seen = Some(Seen { sight, times: times + 1 }),
            None => self.covered = Instant::now() + HINT_COVERS,
        }
        Ok(())
    }

    /// What the remote looks like; `None` if it hints meanwhile that it has changed.
    async fn look(&mut self, hints: Option<&HintListener>) -> Result<Option<Sight>, Failure> {
        let may_break_off = self.scout.is_reached();
        let looked = tokio::select! {
            looked = self.scout.look(&self.repository) => looked,
            () = hinted(hints), if may_break_off => return Ok(None),
        };
        match looked {
            Ok(sight) => Ok(Some(sight)),
            Err(error) => {
                if matches!(error, Error::Remote(ClientError::Transport(TransportError::Replayed))) {
                    self.repository.note_failure(&self.name, &self.address, error.to_string()).await;
                }
                Err(error.report())
            }
        }
    }

    /// Whether all that came could be merged. A failure is logged and kept for `status` where it happens.
    async fn fetch_and_merge(&self) -> Result<bool, Failure> {
        let _place = timeout(PLACE_PATIENCE, self.places.acquire()).await;
        let name = Some(self.name.as_str());
        let fetched = succeeded(self.repository.fetch(name).await);
        if self.sync != SyncMode::Auto {
            return fetched.map(|_| true);
        }
        // What came before a failure is merged all the same: a full inbox may be what failed.
        let merged = succeeded(self.repository.merge(name).await);
        fetched?;
        Ok(merged?.iter().all(|report| report.waiting == 0))
    }
}

/// Waits for the next hint; for ever where none can come.
async fn hinted(hints: Option<&HintListener>) {
    match hints {
        Some(hints) => hints.hinted().await,
        None => std::future::pending().await,
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

fn new_backoff() -> Backoff {
    Backoff::new(FIRST_PAUSE, LONGEST_PAUSE)
}

/// So that those who were started together do not all ask together for ever.
fn with_jitter(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.75..=1.25))
}
