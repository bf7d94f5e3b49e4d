//! What peers are told of this database without asking: published after every commit of any process.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    Error,
    database::{Database, DatabaseError},
    file_watch::FileWatch,
    protocol::{self, RemoteStatus, Rules},
    repo::{Event, Repository, status_of},
};

/// When to look, in milliseconds, after the files were told to have changed: a commit is seen by others only some time after it is
/// written, since it goes to the disk in between. A look is one pragma, no table is read unless something was committed.
const LOOKS: [u64; 5] = [3, 15, 60, 250, 1000];

/// Looks are no closer than this, whatever is written.
const LOOK_PAUSE: Duration = Duration::from_millis(3);

/// Announcements are no closer than this: each reads the tables' versions and is noted on disk.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(200);

/// How long to wait before a database that could not be read is opened again.
const REOPEN: Duration = Duration::from_secs(5);

/// The same, where its log was removed or its version went back: whoever still has the old log must let go of it first.
const LOG_PAUSE: Duration = Duration::from_millis(500);

/// Announces the status of a repository's database.
pub(crate) struct Announcer {
    repository: Repository,
    rules: watch::Receiver<Arc<Rules>>,
    /// By which a private repository tells that something has changed, and not what.
    secret: [u8; 32],
    announce: watch::Sender<Vec<u8>>,
}

/// What an announcement depends on: the commits of other connections, and who may know of them.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    data_version: i64,
    private: bool,
}

impl Announcer {
    /// Announces the status of `repository`'s database to `announce`.
    pub(crate) fn new(repository: Repository, announce: watch::Sender<Vec<u8>>) -> Self {
        Self { rules: repository.rules(), repository, secret: rand::random(), announce }
    }

    /// Announces the database's status as it is.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::State`].
    pub(crate) async fn announce(&self) -> Result<(), Error> {
        let database = self.repository.blocking(Repository::database).await?;
        self.look(database, None).await.map(drop)
    }

    /// Announces the database's status after every commit of any process, until the future is dropped.
    pub(crate) async fn run(self) {
        let mut told = None;
        let mut must_look = false;
        loop {
            let started = Instant::now();
            let result = if must_look { self.repository.blocking(Repository::pin_again).await } else { Ok(()) };
            let error = match result {
                Ok(()) => {
                    must_look = false;
                    let Err(error) = self.follow_commits().await;
                    error
                }
                Err(error) => error,
            };
            must_look |= matches!(error, Error::Database(DatabaseError::LogRemoved { .. }) | Error::WentBack { .. });
            let text = error.to_string();
            if started.elapsed() > REOPEN || told.as_ref() != Some(&text) {
                tracing::error!(error = text, "the database cannot be read");
                self.repository.tell(Event::Error { remote: None, failure: error.report() });
                told = Some(text);
            }
            sleep(if must_look { LOG_PAUSE } else { REOPEN }).await;
        }
    }

    async fn follow_commits(&self) -> Result<Infallible, Error> {
        let mut rules = self.rules.clone();
        let mut files = FileWatch::database(self.repository.layout().database());
        let mut database = self.repository.blocking(Repository::database).await?;
        let mut seen = None;
        let mut looks = LOOKS.iter();
        loop {
            let now;
            (database, now) = self.look(database, seen).await?;
            sleep(if seen == Some(now) { LOOK_PAUSE } else { ANNOUNCE_PAUSE }).await;
            seen = Some(now);
            let next_look = async {
                match looks.next() {
                    Some(pause) => sleep(Duration::from_millis(*pause)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                told = files.changed() => if told { looks = LOOKS.iter() },
                () = next_look => {}
                _ = rules.changed() => {}
            }
        }
    }

    /// Announces the status of `database` if that may be another one than when `seen` was.
    async fn look(&self, database: Database, seen: Option<Seen>) -> Result<(Database, Seen), Error> {
        let private = self.rules.borrow().private;
        let looked = self.repository.blocking(move |repository| match look_at(repository, &database, private, seen) {
            Ok((now, status)) => Ok((database, now, status)),
            Err(error) => {
                database.abandon();
                Err(error)
            }
        });
        let (database, now, status) = looked.await?;
        if let Some(status) = status {
            let announcement = self.announcement(&status, private);
            // Not every commit changes what is told: that of how far a remote was merged does not.
            self.announce.send_if_modified(|told| {
                let is_new = *told != announcement;
                if is_new {
                    *told = announcement;
                }
                is_new
            });
        }
        Ok((database, now))
    }

    fn announcement(&self, status: &RemoteStatus, private: bool) -> Vec<u8> {
        if private { protocol::private_announcement(status, &self.secret) } else { protocol::announcement(status) }
    }
}

/// What `database` has now, with its status if that is not as `seen`. Blocks.
fn look_at(
    repository: &Repository,
    database: &Database,
    private: bool,
    seen: Option<Seen>,
) -> Result<(Seen, Option<RemoteStatus>), Error> {
    database.check_files()?;
    let now = Seen { data_version: database.data_version()?, private };
    if seen == Some(now) {
        return Ok((now, None));
    }
    repository.check_open(database)?;
    // Versions that are noted from here on are of a database that goes on.
    let noted = repository.noted_version()?;
    let status = status_of(database)?;
    if status.db_version < noted {
        let path = repository.layout().database().to_owned();
        return Err(Error::WentBack { path, seen: noted, version: status.db_version });
    }
    // Before peers can read so far: a copy that is restored later is older than this.
    repository.note_version(status.db_version)?;
    repository.tell_version(status.db_version);
    Ok((now, Some(status)))
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;
    use tokio::time::timeout;

    use super::*;
    use crate::repo::{Layout, Options};

    const PATIENCE: Duration = Duration::from_secs(60);

    struct Announced {
        _dir: tempfile::TempDir,
        repository: Repository,
        application: Connection,
        announced: watch::Receiver<Vec<u8>>,
    }

    /// A repository with the table `t`, whose commits are announced.
    async fn announced() -> Announced {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("a.db"), None).unwrap();
        let repository = Repository::init_with(layout, Options::default()).unwrap();
        let application = Connection::open(repository.layout().database()).unwrap();
        crsqlite::register(&application).unwrap();
        application
            .execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, x); SELECT crsql_as_crr('t')")
            .unwrap();
        repository.reload().unwrap();
        let (announce, announced) = watch::channel(Vec::new());
        let announcer = Announcer::new(repository.clone(), announce);
        announcer.announce().await.unwrap();
        tokio::spawn(announcer.run());
        Announced { _dir: dir, repository, application, announced }
    }

    impl Announced {
        fn write(&self, id: i64) {
            self.application.execute("INSERT INTO t VALUES (?, 'x')", [id]).unwrap();
        }

        /// What is to be announced by now.
        fn expected(&self) -> Vec<u8> {
            protocol::announcement(&status_of(&self.repository.database().unwrap()).unwrap())
        }

        async fn wait_for(&mut self, announcement: Vec<u8>) {
            let told = self.announced.wait_for(|told| *told == announcement);
            assert!(timeout(PATIENCE, told).await.is_ok(), "it was not announced");
        }
    }

    #[tokio::test]
    async fn commits_are_announced_at_once() {
        let mut announced = announced().await;
        let first = announced.expected();
        announced.wait_for(first).await;
        let mut delays = Vec::new();
        for id in 0..20 {
            // The pause after the one before must not be counted.
            sleep(ANNOUNCE_PAUSE * 2).await;
            let started = Instant::now();
            announced.write(id);
            let expected = announced.expected();
            announced.wait_for(expected).await;
            delays.push(started.elapsed());
        }
        delays.sort();
        // Looking without being told would take seconds.
        assert!(delays[10] < Duration::from_secs(1), "{delays:?}");
    }

    #[tokio::test]
    async fn constant_writing_is_announced_a_few_times_a_second() {
        let mut announced = announced().await;
        let started = Instant::now();
        let mut times = 0;
        for id in 0.. {
            announced.write(id);
            times += u32::from(announced.announced.has_changed().unwrap());
            announced.announced.mark_unchanged();
            if started.elapsed() > Duration::from_secs(3) {
                break;
            }
            tokio::task::yield_now().await;
        }
        let most = started.elapsed().as_millis() / ANNOUNCE_PAUSE.as_millis() + 2;
        assert!((2..=most).contains(&u128::from(times)), "{times} of at most {most}");
        let last = announced.expected();
        announced.wait_for(last).await;
    }

    #[tokio::test]
    async fn what_takes_the_files_place_is_not_announced() {
        let mut announced = announced().await;
        announced.repository.pin().unwrap();
        let path = announced.repository.layout().database().to_owned();
        let aside = path.with_extension("aside");
        let first = announced.expected();
        announced.wait_for(first.clone()).await;
        std::fs::rename(&path, &aside).unwrap();
        let other = path.with_file_name("other.db");
        Repository::init_with(Layout::new(&other, None).unwrap(), Options::default()).unwrap();
        std::fs::rename(&other, &path).unwrap();
        // Long enough for many looks.
        sleep(Duration::from_secs(2)).await;
        assert_eq!(*announced.announced.borrow(), first);
        std::fs::rename(&aside, &path).unwrap();
        announced.write(1);
        let expected = announced.expected();
        announced.wait_for(expected).await;
    }

    #[tokio::test]
    async fn commits_are_announced_after_the_log_was_removed() {
        let mut announced = announced().await;
        announced.repository.pin().unwrap();
        announced.write(1);
        let expected = announced.expected();
        // It has the database open now.
        announced.wait_for(expected).await;
        let path = announced.repository.layout().database().to_owned();
        // The application closes its database, the log is removed, and it opens it again.
        announced.application = Connection::open_in_memory().unwrap();
        std::fs::remove_file(path.with_file_name("a.db-wal")).unwrap();
        sleep(LOG_PAUSE * 4).await;
        announced.application = Connection::open(&path).unwrap();
        crsqlite::register(&announced.application).unwrap();
        announced
            .application
            .execute_batch("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY NOT NULL, x)")
            .unwrap();
        announced.application.query_row("SELECT crsql_as_crr('t')", [], |_| Ok(())).unwrap();
        announced.write(7);
        let expected = announced.expected();
        announced.wait_for(expected).await;
    }
}
