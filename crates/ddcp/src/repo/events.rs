//! What happens in a repository, told to whoever listens. Nobody who listens holds up the work: one who falls behind
//! is told how many events were dropped meanwhile.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::pin,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{self, error::RecvError};

use super::{FetchReport, MergeReport, Outcome, Repository};
use crate::{
    Failure,
    protocol::{Meter, Progress},
};

/// Events that are kept for those who have not taken them yet.
const KEPT: usize = 256;

/// How often is told how far a download is.
const PROGRESS_PAUSE: Duration = Duration::from_millis(250);

/// Something that happened.
///
/// Events are news, not the record: they are told while this process works on the repository, and [`Repository::status`]
/// and [`Repository::log`] say what holds. In JSON, the field `event` names the variant in kebab case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// The database was written to, by whatever program, merges included. Told while the repository is served.
    LocalChange {
        /// The database's version by now.
        version: i64,
    },
    /// A followed remote was seen or said to have something new. May be told more than once for one change.
    RemoteChange {
        /// The remote's name.
        remote: String,
    },
    /// How far a download is: about four times a second, and only when something has come.
    Progress {
        /// The remote's name.
        remote: String,
        /// How far.
        #[serde(flatten)]
        progress: Progress,
    },
    /// Changes were fetched and are stored in the inbox.
    Fetched {
        /// The remote's name, or `site` and the site id where no remote has it.
        remote: String,
        /// How many.
        changes: u64,
        /// Bytes of their packs.
        bytes: u64,
    },
    /// Changes were merged into the database.
    Merged {
        /// The remote's name, or `site` and the site id where no remote has it.
        remote: String,
        /// How many were looked at.
        changes: u64,
        /// How many altered the database, by table.
        applied: BTreeMap<String, u64>,
        /// How many were here already.
        #[serde(default)]
        known: u64,
        /// How many lost against what is here, by table.
        #[serde(default)]
        lost: BTreeMap<String, u64>,
        /// How many rows were deleted, by table.
        #[serde(default)]
        deleted: BTreeMap<String, u64>,
        /// How many wait since they do not fit.
        waiting: u64,
    },
    /// Something failed that will be tried again or that somebody asked for.
    Error {
        /// The remote that it is about, if it is about one.
        remote: Option<String>,
        /// What went wrong.
        failure: Failure,
    },
    /// The receiver of this fell behind: so many events before the next one were dropped for it.
    Missed {
        /// How many.
        count: u64,
    },
}

impl Event {
    /// What to tell of a fetch: nothing if it brought nothing.
    pub(super) fn of_fetch(remote: &str, outcome: &Outcome<FetchReport>) -> Option<Self> {
        let remote = remote.to_owned();
        match outcome {
            Outcome::Done(report) => {
                (report.changes > 0).then_some(Self::Fetched { remote, changes: report.changes, bytes: report.bytes })
            }
            Outcome::Failed(failure) => Some(Self::Error { remote: Some(remote), failure: failure.clone() }),
        }
    }

    /// What to tell of a merge: nothing if there was nothing to merge.
    pub(super) fn of_merge(remote: &str, outcome: &Outcome<MergeReport>) -> Option<Self> {
        let remote = remote.to_owned();
        match outcome {
            Outcome::Done(report) => (report.changes > 0).then(|| Self::Merged {
                remote,
                changes: report.changes,
                applied: report.applied.clone(),
                known: report.known,
                lost: report.lost.clone(),
                deleted: report.deleted.clone(),
                waiting: report.waiting,
            }),
            Outcome::Failed(failure) => Some(Self::Error { remote: Some(remote), failure: failure.clone() }),
        }
    }
}

/// Receives the events of a repository from the moment it was made by [`Repository::events`].
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// Waits for the next event; `None` once the repository is closed, with all its clones. Dropping the future loses
    /// no event.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(RecvError::Lagged(count)) => Some(Event::Missed { count }),
            Err(RecvError::Closed) => None,
        }
    }
}

/// Where events are told.
pub(super) struct Announcements {
    sender: broadcast::Sender<Event>,
    /// The last version of the database that was told of, or from which on it is told.
    version: AtomicI64,
}

impl Default for Announcements {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(KEPT), version: AtomicI64::new(i64::MIN) }
    }
}

impl Repository {
    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        Events(self.inner.announcements.sender.subscribe())
    }

    /// Tells of an event, if anybody listens. Never waits.
    pub(crate) fn tell(&self, event: impl Into<Option<Event>>) {
        if let Some(event) = event.into() {
            // It fails where nobody listens.
            let _ = self.inner.announcements.sender.send(event);
        }
    }

    /// Tells that the database is at `version`, unless it was there already; of the first one seen nobody is told.
    pub(crate) fn tell_version(&self, version: i64) {
        let before = self.inner.announcements.version.swap(version, Ordering::Relaxed);
        if before != i64::MIN && before != version {
            self.tell(Event::LocalChange { version });
        }
    }

    /// Does `work` and tells meanwhile how far it is.
    pub(super) async fn telling_progress<T>(&self, remote: &str, meter: &Meter, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let mut told = Progress::default();
        loop {
            if let Some(done) = self.inner.options.host.timeout(PROGRESS_PAUSE, work.as_mut()).await {
                return done;
            }
            let progress = meter.read();
            if progress != told {
                told = progress;
                self.tell(Event::Progress { remote: remote.to_owned(), progress });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::{Layout, Options};

    fn repository() -> (tempfile::TempDir, Repository) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("a.db"), None).unwrap();
        let repository = Repository::init_with(layout, Options::default()).unwrap();
        (dir, repository)
    }

    fn change(version: i64) -> Event {
        Event::LocalChange { version }
    }

    #[tokio::test]
    async fn who_falls_behind_is_told_how_much_and_holds_up_nobody() {
        let (_dir, repository) = repository();
        let (mut slow, mut quick) = (repository.events(), repository.events());
        let end = KEPT as i64 + 10;
        for version in 1..=end {
            repository.tell(change(version));
            assert_eq!(quick.next().await, Some(change(version)));
        }
        assert_eq!(slow.next().await, Some(Event::Missed { count: 10 }));
        for version in 11..=end {
            assert_eq!(slow.next().await, Some(change(version)));
        }
        repository.tell(change(7));
        drop(repository);
        assert_eq!(slow.next().await, Some(change(7)), "what was told before the end");
        assert_eq!(slow.next().await, None);
    }

    #[tokio::test]
    async fn a_version_is_told_once_and_the_first_is_where_it_begins() {
        let (_dir, repository) = repository();
        let mut events = repository.events();
        for version in [3, 3, 4, 4, 2] {
            repository.tell_version(version);
        }
        drop(repository);
        assert_eq!((events.next().await, events.next().await), (Some(change(4)), Some(change(2))));
        assert_eq!(events.next().await, None);
    }

    #[tokio::test]
    async fn progress_is_told_while_the_work_goes_on() {
        let (_dir, repository) = repository();
        let mut events = repository.events();
        let meter = Meter::default();
        let (seen, wait) = tokio::sync::oneshot::channel();
        let work = async {
            meter.update(|progress| progress.offer(10, 1));
            wait.await.unwrap()
        };
        let listen = async {
            let event = events.next().await;
            seen.send(7).unwrap();
            event
        };
        let (done, event) = tokio::join!(repository.telling_progress("a", &meter, work), listen);
        let progress = Progress { offered_bytes: 10, offered_changes: 1, ..Progress::default() };
        assert_eq!((done, event), (7, Some(Event::Progress { remote: "a".into(), progress })));
    }

    #[test]
    fn events_in_json_name_what_they_are() {
        let progress = Progress { version: 3, ..Progress::default() };
        let event = Event::Progress { remote: "alice".into(), progress };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!((&json["event"], &json["version"]), (&"progress".into(), &3.into()));
        assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
    }
}
