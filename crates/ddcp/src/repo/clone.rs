//! `clone`: a new database with the shared tables of a repository and what is in them.
//!
//! A file in the state directory says from before the first step to after the last that the clone is unfinished.
//! Every step may be repeated, so the same command goes on wherever the one before it ended.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    Held, Layout, Lock, Monitor, Options, Outcome, PullReport, Repository, SchemaReport, absolute_address, database_at,
    is_missing_or_empty, lock_error, parse_name, schema::named,
};
use crate::{
    Error,
    config::{self, ConfigError, Remote, RemoteName, SyncMode},
    database::{Database, Declared, OpenOptions},
    files::{self, Owner},
    transport::Address,
};

/// What a clone brought.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneReport {
    /// The new database's path.
    pub database: String,
    /// The remote's name.
    pub remote: String,
    /// Its tables.
    pub tables: Vec<String>,
    /// The tables of the remote that cannot be had here, and why. What is in them waits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, String>,
    /// The first fetch and merge. Where they failed, `pull` goes on, and so does a repeated clone.
    pub pull: PullReport,
}

impl Repository {
    /// Makes the database at `layout`, which must not exist, with the shared tables of the repository at `address`,
    /// which becomes its remote `name`, but those that cannot be had here; fetches and merges what is in them. What was broken off, or has failed, goes on
    /// when it is repeated.
    ///
    /// # Errors
    /// [`Error::CloneTarget`], [`Error::DatabaseMissing`], [`Error::Config`], [`Error::Locked`], [`Error::RemoteDatabase`], [`Error::Remote`],
    /// [`Error::NotAuthorised`], [`Error::BadSchema`], [`Error::Database`], [`Error::State`], [`Error::Io`]. What
    /// goes wrong with the first pull is in the report.
    #[doc(hidden)]
    pub async fn clone_of(
        layout: Layout,
        options: Options,
        name: &str,
        address: &str,
        monitor: &Monitor,
    ) -> Result<CloneReport, Error> {
        let (name, address) = (parse_name(name)?, absolute_address(address)?);
        let (host, remote) = (options.host.clone(), name.clone());
        let begun = host.blocking(move || begin(layout, options, &remote, &address)).await;
        let begun = begun.unwrap_or_else(|| Err(Error::Interrupted("a thread of this program stopped".into())));
        let (repository, _held) = begun?;
        let result = repository.finish_clone(&name, monitor).await;
        repository.shutdown().await;
        result
    }

    /// Whether a clone to `layout` was begun and has not ended.
    #[doc(hidden)]
    #[must_use]
    pub fn is_unfinished_clone(layout: &Layout) -> bool {
        layout.clone_mark().exists()
    }

    async fn finish_clone(&self, name: &RemoteName, monitor: &Monitor) -> Result<CloneReport, Error> {
        let config = self.blocking(Self::config).await?;
        let (_, remote) = config.remote(name.as_str())?;
        let client = self.client(&remote.address, &config.limits).await?;
        let definitions = client.definitions().await.map_err(|error| self.explain(error))?;
        let held = self.hold().await?;
        let (tables, left_out) = self
            .blocking(move |repository| {
                let declared = Declared::new(definitions).map_err(Error::BadSchema)?;
                let database = repository.own_database(&held)?;
                let adopted = declared.adopt(&database, None)?;
                let left = SchemaReport::whole(named(database.differences(&declared)?, adopted.left_out));
                let left_out = left.unavailable().map(|(table, why)| (table.to_owned(), why.to_owned())).collect();
                Ok((database.tables()?.into_iter().map(|table| table.name).collect(), left_out))
            })
            .await?;
        let pull = self.pull_watched(Some(name.as_str()), monitor).await?;
        let is_done = pull.fetched.iter().all(|remote| matches!(remote.outcome, Outcome::Done(_)))
            && pull.merged.iter().all(|remote| matches!(remote.outcome, Outcome::Done(_)));
        if is_done {
            self.blocking(|repository| remove_mark(&repository.layout().clone_mark())).await?;
        }
        let database = self.layout().database().display().to_string();
        Ok(CloneReport { database, remote: name.to_string(), tables, left_out, pull })
    }
}

/// Makes the repository, empty, with its remote; or takes up the one that an unfinished clone has left. Blocks.
fn begin(layout: Layout, options: Options, name: &RemoteName, address: &Address) -> Result<(Repository, Held), Error> {
    let mark = layout.clone_mark();
    layout.check_database()?;
    if !mark.exists() {
        check_target(&layout)?;
    }
    // Before anything is made: a path is easily mistyped.
    if let (Address::Path(path), None) = (address, &options.connector) {
        let open = OpenOptions { read_only: true, extension: options.extension.clone(), ..OpenOptions::default() };
        Database::open(&database_at(path), &open).map_err(Error::RemoteDatabase)?;
    }
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    files::create_private_dir(layout.state(), Owner::default()).map_err(io(layout.state()))?;
    let lock = Lock::take(&layout.lock()).map_err(|error| lock_error(&layout, error))?;
    if !mark.exists() {
        // Another may have begun and ended since it was looked at first.
        check_target(&layout)?;
        files::open_private(&mark).and_then(|_| files::sync_folder(&mark)).map_err(io(&mark))?;
    }
    let repository = Repository::init_with(layout, options)?;
    let lock = lock.move_to(&repository.inner.lock);
    repository.check_identity()?;
    repository.set_clone_remote(name, address)?;
    Ok((repository, Held::new(lock)))
}

/// A clone makes everything anew.
fn check_target(layout: &Layout) -> Result<(), Error> {
    let (database, state) = (layout.database(), layout.state());
    match database.parent() {
        Some(folder) if !folder.is_dir() => {
            let source = io::Error::new(io::ErrorKind::NotFound, "there is no such folder");
            return Err(Error::Io { path: folder.to_owned(), source });
        }
        _ => {}
    }
    if database.symlink_metadata().is_ok() {
        return Err(Error::CloneTarget(database.to_owned()));
    }
    match is_missing_or_empty(state) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::CloneTarget(state.to_owned())),
        Err(source) => Err(Error::Io { path: state.to_owned(), source }),
    }
}

fn remove_mark(mark: &Path) -> Result<(), Error> {
    match fs::remove_file(mark) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Io { path: mark.to_owned(), source }),
        _ => Ok(()),
    }
}

impl Repository {
    /// Adds the remote, or gives it another address while nothing has come from the first one.
    fn set_clone_remote(&self, name: &RemoteName, address: &Address) -> Result<(), Error> {
        let (config, path) = (self.config()?, self.layout().config());
        match config.remotes.get(name) {
            Some(remote) if remote.address == *address => Ok(()),
            Some(_) if self.database()?.tables()?.is_empty() => {
                Ok(config::set_remote_address(&path, name.as_str(), address)?)
            }
            Some(_) => Err(ConfigError::NameTaken(name.clone()).into()),
            None => {
                let remote = Remote { address: address.clone(), sync: SyncMode::default() };
                Ok(config::add_remote(&path, name, &remote)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        database::TableDefinition,
        host::Host,
        protocol::{Server, Tells, table},
        transport::{BoxFuture, Connector, LocalPeer, Peer, TransportError},
    };

    impl Connector for Tells {
        fn connect(&self, _: &Address) -> BoxFuture<'_, Result<Arc<dyn Peer>, TransportError>> {
            let peer = LocalPeer::new(Arc::new(Server::new(self.clone(), None, Host::default())));
            Box::pin(async move { Ok(Arc::new(peer) as Arc<dyn Peer>) })
        }
    }

    async fn clone(layout: &Layout, definitions: Vec<TableDefinition>) -> Result<CloneReport, Error> {
        let options = Options { connector: Some(Arc::new(Tells(definitions))), ..Options::default() };
        Repository::clone_of(layout.clone(), options, "origin", "elsewhere.db", &Monitor::default()).await
    }

    #[tokio::test]
    async fn a_hostile_schema_is_not_cloned_and_an_honest_one_is_afterwards() {
        const GOOD: &str = "CREATE TABLE good (id INTEGER PRIMARY KEY NOT NULL, v)";
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("new.db"), None).unwrap();
        let good = || table("good", GOOD, &["CREATE INDEX good_v ON good (v)"]);
        for hostile in [
            table("t", "CREATE TRIGGER t AFTER INSERT ON good BEGIN DELETE FROM good; END", &[]),
            table("t", "CREATE VIEW t AS SELECT load_extension('x')", &[]),
            table("t", "ATTACH 'other.db' AS t", &[]),
            table("t", "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL); DROP TABLE good", &[]),
            table("t", "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL)", &["CREATE INDEX i ON good (v)"]),
            good(),
        ] {
            let what = format!("{hostile:?}");
            let result = clone(&layout, vec![good(), hostile]).await;
            assert!(matches!(result, Err(Error::BadSchema(_))), "{what}: {result:?}");
            let database = Database::open(layout.database(), &OpenOptions::default()).unwrap();
            assert!(database.definitions().unwrap().is_empty(), "{what}");
        }
        assert!(Repository::is_unfinished_clone(&layout));

        let report = clone(&layout, vec![good()]).await.unwrap();
        assert_eq!(report.tables, ["good"]);
        assert!(!Repository::is_unfinished_clone(&layout));
        let database = Database::open(layout.database(), &OpenOptions::default()).unwrap();
        assert_eq!(database.definitions().unwrap(), [good()]);
        assert!(matches!(clone(&layout, vec![good()]).await, Err(Error::CloneTarget(_))));
    }

    #[tokio::test]
    async fn what_cannot_be_declared_here_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let key = "id INTEGER PRIMARY KEY NOT NULL";
        for (at, (unfit, indexes)) in [
            (format!("CREATE TABLE t ({key}, v CHECK (load_extension(v)))"), vec![]),
            (format!("CREATE TABLE t ({key}, v DEFAULT (randomblob(1000000000)))"), vec![]),
            (format!("CREATE TABLE t ({key}, v COLLATE unicase)"), vec![]),
            (format!("CREATE TABLE t ({key}, v)"), vec!["CREATE INDEX i ON t (writefile(v, v))"]),
            (format!("CREATE TABLE t ({key}, v)"), vec!["CREATE INDEX crsql_by_v ON t (v)"]),
            (format!("CREATE TABLE t ({key},\u{c} v)"), vec![]),
            (format!("CREATE TABLE t ({key}, v DEFAULT '\u{1f}')"), vec![]),
            // A table that SQLite takes and the engine does not.
            (format!("CREATE TABLE t ({key}, v UNIQUE)"), vec![]),
        ]
        .into_iter()
        .enumerate()
        {
            let layout = Layout::new(&dir.path().join(format!("{at}.db")), None).unwrap();
            let good = table("good", &format!("CREATE TABLE good ({key}, v)"), &[]);
            let report = clone(&layout, vec![table("t", &unfit, &indexes), good]).await.unwrap();
            assert_eq!(report.tables, ["good"], "{unfit}");
            assert_eq!(report.left_out.keys().collect::<Vec<_>>(), ["t"], "{unfit}");
            let database = Database::open(layout.database(), &OpenOptions::default()).unwrap();
            let left =
                "SELECT count(*) FROM sqlite_master WHERE name IN ('t', 'i') OR name LIKE 't\\_\\_%' ESCAPE '\\'";
            let left: i64 = database.connection().query_row(left, [], |row| row.get(0)).unwrap();
            assert_eq!(left, 0, "{unfit}");
            assert!(!Repository::is_unfinished_clone(&layout));
        }
    }
}
