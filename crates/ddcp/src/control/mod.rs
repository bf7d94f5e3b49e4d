//! Commands on a repository, wherever they run: in the daemon that holds it, asked over its control socket, or in
//! this process.
//!
//! The socket speaks JSON-RPC 2.0, one object a line; `docs/control.md` describes it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    Error, ErrorKind, Failure,
    config::SyncMode,
    files,
    repo::{
        Adopt, BundleReport, BundleRequest, BundleTarget, Finding, Held, Monitor, Repository, Since, Stop,
        WaitingSelection, verify_bundle,
    },
};

mod client;
mod rpc;
mod server;
mod session;
mod socket;
mod token;

pub use client::Connection;
pub use server::Server;

/// The version of the control protocol, in the answer to `hello`.
pub const CONTROL_VERSION: u32 = 1;

/// The longest line that a daemon writes, in bytes, with its end.
const LONGEST_LINE: usize = 16 * 1024 * 1024;

/// What can be asked of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", content = "params", deny_unknown_fields)]
pub enum Command {
    /// Where the repository stands: a [`StatusReport`](crate::repo::StatusReport).
    #[serde(rename = "status")]
    Status {},
    /// The address that peers use, a text, or null if there is none yet.
    #[serde(rename = "address")]
    Address {},
    /// The remotes: a list of [`RemoteEntry`](crate::repo::RemoteEntry).
    #[serde(rename = "remote.list")]
    RemoteList {},
    /// Adds a remote.
    #[serde(rename = "remote.add")]
    RemoteAdd {
        /// Its name.
        name: String,
        /// Its address.
        address: String,
        /// What the daemon does about it by itself.
        #[serde(default)]
        sync: SyncMode,
    },
    /// Removes a remote: a [`RemovedRemote`](crate::repo::RemovedRemote).
    #[serde(rename = "remote.remove")]
    RemoteRemove {
        /// Its name.
        name: String,
    },
    /// Renames a remote.
    #[serde(rename = "remote.rename")]
    RemoteRename {
        /// Its name.
        old: String,
        /// Its new name.
        new: String,
    },
    /// Gives a remote another address.
    #[serde(rename = "remote.set-address")]
    RemoteSetAddress {
        /// Its name.
        name: String,
        /// Its new address.
        address: String,
    },
    /// Changes what the daemon does about a remote by itself.
    #[serde(rename = "remote.set-sync")]
    RemoteSetSync {
        /// Its name.
        name: String,
        /// What it does from now on.
        sync: SyncMode,
    },
    /// The settings that are no remotes: an object of texts by key.
    #[serde(rename = "config.get")]
    ConfigGet {},
    /// Changes a setting that is no remote's.
    #[serde(rename = "config.set")]
    ConfigSet {
        /// Its key.
        key: String,
        /// Its new value.
        value: String,
    },
    /// What happened last, the newest first: a list of [`LogEntry`](crate::repo::LogEntry).
    #[serde(rename = "log")]
    Log {
        /// With one remote, or with all.
        remote: Option<String>,
        /// How many entries.
        most: u32,
    },
    /// Fetches: a list of [`PerRemote`](crate::repo::PerRemote)`<`[`FetchReport`](crate::repo::FetchReport)`>`.
    #[serde(rename = "fetch")]
    Fetch {
        /// One remote, or all.
        remote: Option<String>,
    },
    /// Merges: a list of [`PerRemote`](crate::repo::PerRemote)`<`[`MergeReport`](crate::repo::MergeReport)`>`.
    #[serde(rename = "merge")]
    Merge {
        /// One remote, or all.
        remote: Option<String>,
    },
    /// Fetches, then merges: a [`PullReport`](crate::repo::PullReport).
    #[serde(rename = "pull")]
    Pull {
        /// One remote, or all.
        remote: Option<String>,
    },
    /// What waits: a [`WaitingReport`](crate::repo::WaitingReport).
    #[serde(rename = "waiting.list")]
    WaitingList {
        /// A remote or the id of a site, or all.
        remote: Option<String>,
        /// A table, or all.
        table: Option<String>,
    },
    /// Tries what waits again: a list of [`PerRemote`](crate::repo::PerRemote)`<`[`MergeReport`](crate::repo::MergeReport)`>`.
    #[serde(rename = "waiting.retry")]
    WaitingRetry {
        /// A remote or the id of a site, or all.
        remote: Option<String>,
    },
    /// Lets go what waits: a [`WaitingDropReport`](crate::repo::WaitingDropReport).
    #[serde(rename = "waiting.drop")]
    WaitingDrop {
        /// A remote or the id of a site, or all.
        remote: Option<String>,
        /// A table, or all.
        table: Option<String>,
        /// Whether to do it; else it is only said what would be lost.
        #[serde(default)]
        apply: bool,
    },
    /// How a remote's tables differ from those here: a [`SchemaReport`](crate::repo::SchemaReport).
    #[serde(rename = "schema.diff")]
    SchemaDiff {
        /// The remote.
        remote: String,
    },
    /// Adds the tables and columns of a remote that are not here: an [`AdoptReport`](crate::repo::AdoptReport).
    #[serde(rename = "schema.adopt")]
    SchemaAdopt {
        /// The remote.
        remote: String,
        /// Whether to do it; else it is only said what would be done.
        #[serde(default)]
        apply: bool,
        /// Only if the statements have this hash, with which they were shown.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shown: Option<String>,
    },
    /// Pulls, compares and mends, or only compares: a list of [`PerRemote`](crate::repo::PerRemote)`<`[`VerifyReport`](crate::repo::VerifyReport)`>`.
    #[serde(rename = "verify")]
    Verify {
        /// One remote, or all.
        remote: Option<String>,
        /// Whether to pull, and to mend what is missing here; else nothing is changed.
        mend: bool,
    },
    /// What is found about the network and the remotes: a list of [`Finding`].
    #[serde(rename = "doctor")]
    Doctor {},
    /// Makes a bundle: a [`BundleReport`](crate::repo::BundleReport).
    #[serde(rename = "bundle.create")]
    BundleCreate {
        /// The bundle's absolute path.
        file: PathBuf,
        /// From where on: a version, in digits, or the name of a remote; all there is if absent.
        since: Option<String>,
        /// Of which tables only; of all if none is named.
        #[serde(default)]
        tables: Vec<String>,
        /// Whether the next bundle since the same remote begins where this one ends.
        #[serde(default)]
        mark: bool,
        /// Whether a file that is there is replaced.
        #[serde(default)]
        force: bool,
        /// Whether it is not to say whose it is.
        #[serde(default)]
        unsigned: bool,
    },
    /// Checks a bundle to its end: a [`BundleReport`](crate::repo::BundleReport).
    #[serde(rename = "bundle.verify")]
    BundleVerify {
        /// The bundle's absolute path.
        file: PathBuf,
    },
    /// Fetches what is in a bundle: a [`BundleFetchReport`](crate::repo::BundleFetchReport).
    #[serde(rename = "bundle.fetch")]
    BundleFetch {
        /// The bundle's absolute path.
        file: PathBuf,
        /// What messages call it, if that is not its path.
        name: Option<String>,
    },
}

impl Command {
    /// The methods that are commands. Besides there are `hello`, `subscribe` and `stop`.
    pub const METHODS: [&str; 24] = [
        "status",
        "address",
        "remote.list",
        "remote.add",
        "remote.remove",
        "remote.rename",
        "remote.set-address",
        "remote.set-sync",
        "config.get",
        "config.set",
        "log",
        "fetch",
        "merge",
        "pull",
        "waiting.list",
        "waiting.retry",
        "waiting.drop",
        "schema.diff",
        "schema.adopt",
        "verify",
        "doctor",
        "bundle.create",
        "bundle.verify",
        "bundle.fetch",
    ];

    /// Whether one process at a time may do this.
    fn is_exclusive(&self) -> bool {
        matches!(
            self,
            Self::Fetch { .. }
                | Self::Merge { .. }
                | Self::Pull { .. }
                | Self::WaitingRetry { .. }
                | Self::WaitingDrop { .. }
                | Self::SchemaDiff { .. }
                | Self::SchemaAdopt { .. }
                | Self::Verify { mend: true, .. }
                | Self::BundleCreate { .. }
                | Self::BundleFetch { .. }
        )
    }

    /// Whether it leaves the repository as it is, but for notes.
    fn only_reads(&self) -> bool {
        matches!(self, Self::SchemaDiff { .. } | Self::BundleCreate { .. })
    }
}

/// Does what `command` says. `serving` says whether this process is the repository's daemon; `monitor` shows how far
/// a download is.
async fn execute(repository: &Repository, command: Command, serving: bool, monitor: &Monitor) -> Result<Value, Error> {
    match command {
        Command::Status {} => json(repository.status(serving).await?),
        Command::Address {} => json(repository.blocking(Repository::address).await?.map(|a| a.to_string())),
        Command::RemoteList {} => json(repository.blocking(Repository::remotes).await?),
        Command::RemoteAdd { name, address, sync } => {
            json(repository.blocking(move |r| r.add_remote(&name, &address, sync)).await?)
        }
        Command::RemoteRemove { name } => json(repository.blocking(move |r| r.remove_remote(&name)).await?),
        Command::RemoteRename { old, new } => json(repository.blocking(move |r| r.rename_remote(&old, &new)).await?),
        Command::RemoteSetAddress { name, address } => {
            json(repository.blocking(move |r| r.set_remote_address(&name, &address)).await?)
        }
        Command::RemoteSetSync { name, sync } => {
            json(repository.blocking(move |r| r.set_remote_sync(&name, sync)).await?)
        }
        Command::ConfigGet {} => json(repository.blocking(Repository::settings).await?),
        Command::ConfigSet { key, value } => json(repository.blocking(move |r| r.set_setting(&key, &value)).await?),
        Command::Log { remote, most } => json(repository.log(remote.as_deref(), most).await?),
        Command::Fetch { remote } => json(repository.fetch_watched(remote.as_deref(), monitor).await?),
        Command::Merge { remote } => json(repository.merge(remote.as_deref()).await?),
        Command::Pull { remote } => json(repository.pull_watched(remote.as_deref(), monitor).await?),
        Command::WaitingList { remote, table } => {
            json(repository.waiting_list(WaitingSelection { remote, table }).await?)
        }
        Command::WaitingRetry { remote } => json(repository.waiting_retry(remote.as_deref()).await?),
        Command::WaitingDrop { remote, table, apply } => {
            json(repository.waiting_drop(WaitingSelection { remote, table }, apply).await?)
        }
        Command::SchemaDiff { remote } => json(repository.schema_diff(&remote).await?),
        Command::SchemaAdopt { remote, apply, shown } => {
            let adopt = match (apply, shown) {
                (false, _) => Adopt::Show,
                (true, None) => Adopt::Now,
                (true, Some(hash)) => Adopt::Shown(hash),
            };
            json(repository.schema_adopt(&remote, adopt).await?)
        }
        Command::Verify { remote, mend } => json(repository.verify(remote.as_deref(), mend, monitor).await?),
        Command::Doctor {} => json(repository.examine_network(serving).await?),
        Command::BundleCreate { file, since, tables, mark, force, unsigned } => {
            let since = since.map_or(Since::Start, |text| text.parse().unwrap_or_else(|never| match never {}));
            let target = BundleTarget::File { path: file, replace: force };
            let request = BundleRequest { since, tables, mark, unsigned };
            json(repository.create_bundle(target, request, Stop::default()).await?)
        }
        Command::BundleVerify { file } => json(repository.blocking(move |r| verify_file(r, &file)).await?),
        Command::BundleFetch { file, name } => json(repository.fetch_bundle(file, name, monitor).await?),
    }
}

fn verify_file(repository: &Repository, path: &Path) -> Result<BundleReport, Error> {
    let shown = path.display().to_string();
    let limits = repository.limits_for_bundle(path, &shown)?;
    let file = files::open_regular(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    verify_bundle(file, &shown, &limits)
}

fn json(value: impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|error| Error::Interrupted(error.to_string()))
}

/// How long a command tries for the repository while neither its daemon answers nor the lock is free: a daemon
/// that is starting or ending, or another command at work.
const PATIENCE: Duration = Duration::from_secs(10);

/// Has `command` done by the repository's daemon, or in this process if none runs.
///
/// # Errors
/// What went wrong, as it may be printed.
pub async fn run<T: DeserializeOwned>(repository: &Repository, command: Command) -> Result<T, Failure> {
    run_watched(repository, command, &Monitor::default()).await
}

/// As [`run`]; `monitor` shows meanwhile how far a download is, wherever it is done.
///
/// # Errors
/// As [`run`].
pub async fn run_watched<T: DeserializeOwned>(
    repository: &Repository,
    command: Command,
    monitor: &Monitor,
) -> Result<T, Failure> {
    let value = with_deadline(repository, command, monitor).await?;
    serde_json::from_value(value).map_err(|error| misunderstood(&error))
}

fn misunderstood(error: &serde_json::Error) -> Failure {
    Failure {
        kind: ErrorKind::Internal,
        message: format!("the daemon's answer cannot be understood: {error}"),
        hint: Some("restart `ddcp serve`, so that it runs the same version as this command".into()),
    }
}

async fn with_deadline(repository: &Repository, command: Command, monitor: &Monitor) -> Result<Value, Failure> {
    if command.only_reads() && repository.is_fixed() {
        repository.hold_to_read().await.map_err(|error| error.report())?;
        return in_this_process(repository, command, monitor).await;
    }
    if command.is_exclusive() {
        return match hold(repository).await? {
            Holder::Daemon(connection) => connection.call(&command, monitor).await,
            Holder::Here(_lock) => in_this_process(repository, command, monitor).await,
        };
    }
    match Connection::open(repository.layout()).await? {
        Some(connection) => connection.call(&command, monitor).await,
        None => in_this_process(repository, command, monitor).await,
    }
}

/// Who holds a repository. Either way its database is known to have a site id of its own.
enum Holder {
    Daemon(Connection),
    Here(Held),
}

async fn hold(repository: &Repository) -> Result<Holder, Failure> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(connection) = Connection::open(repository.layout()).await? {
            return Ok(Holder::Daemon(connection));
        }
        match repository.hold().await {
            Ok(lock) => return Ok(Holder::Here(lock)),
            Err(Error::Locked { .. }) if tokio::time::Instant::now() < deadline => {}
            Err(error) => return Err(error.report()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What is found about the network and the remotes, by the repository's daemon or, if none runs, by this process. The
/// repository stays as it is.
///
/// # Errors
/// What keeps from looking, as it may be printed.
pub async fn examine_network(repository: &Repository) -> Result<Vec<Finding>, Failure> {
    let (command, monitor) = (Command::Doctor {}, Monitor::default());
    let value = match Connection::open(repository.layout()).await? {
        Some(connection) => connection.call(&command, &monitor).await?,
        None => {
            // Not `hold`, which may give the database a new site id.
            let lock = (!repository.has_fixed_state()).then(|| repository.try_lock());
            let _lock = lock.transpose().map_err(|error| error.report())?;
            in_this_process(repository, command, &monitor).await?
        }
    };
    serde_json::from_value(value).map_err(|error| misunderstood(&error))
}

/// Makes sure that the database has a site id of its own, before something is given away under it that no daemon
/// gives away.
///
/// # Errors
/// What went wrong, as it may be printed.
pub async fn ensure_own_identity(repository: &Repository) -> Result<(), Failure> {
    if repository.is_fixed() {
        return repository.hold_to_read().await.map(drop).map_err(|error| error.report());
    }
    hold(repository).await.map(drop)
}

async fn in_this_process(repository: &Repository, command: Command, monitor: &Monitor) -> Result<Value, Failure> {
    let result = execute(repository, command, false, monitor).await.map_err(|error| error.report());
    repository.shutdown().await;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_can_be_asked_for() {
        let unknown = serde_json::json!({"method": "", "params": {}});
        let text = serde_json::from_value::<Command>(unknown).unwrap_err().to_string();
        let names: Vec<&str> = text.split('`').skip(3).step_by(2).collect();
        assert_eq!(names, Command::METHODS);
    }

    #[test]
    fn params_that_are_not_known_are_refused() {
        let misspelt = serde_json::json!({"method": "fetch", "params": {"remot": "alice"}});
        let text = serde_json::from_value::<Command>(misspelt).unwrap_err().to_string();
        assert!(text.contains("unknown field `remot`"), "{text}");
    }
}
