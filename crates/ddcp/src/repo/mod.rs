//! A repository: a SQLite database, the state beside it, and what can be done with both.
//!
//! Everything that touches SQLite runs on blocking threads; the methods here are async and may be called from
//! many tasks.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex as StdMutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::{
    Error,
    changeset::SiteId,
    config::{self, Config, ConfigError, ControlAddress, Limits, NetworkConfig, Remote, RemoteName, SyncMode},
    database::{Database, DatabaseError, OpenOptions},
    denied::Denied,
    files,
    host::Host,
    protocol::Server,
    transport::{Address, Connector, Handler, Signer, veilid},
};

mod builder;
mod bundle;
mod clone;
mod digest;
mod doctor;
mod events;
mod fetch;
mod guard;
mod held;
mod hint;
mod identity;
mod in_order;
mod layout;
mod lock;
mod log;
mod look;
mod measure;
mod mend;
mod merge;
mod monitor;
mod names;
mod node;
mod pin;
mod program;
mod pull;
mod readers;
mod reading;
mod remotes;
mod report;
mod schema;
mod settings;
mod source;
mod state;
mod status;
mod turns;
mod verify;
mod waiting;
mod way;

pub use builder::Builder;
pub use bundle::{BundleFetchReport, BundleReport, BundleRequest, BundleTarget, Since, Spooled, Stop, verify_bundle};
pub use clone::CloneReport;
pub use doctor::{Finding, Level, examine};
pub use events::{Event, Events};
pub use held::Held;
pub(crate) use hint::Hinter;
pub use layout::Layout;
pub use lock::{Lock, LockError};
pub use log::{LogEntry, LogEvent};
pub(crate) use measure::Measured;
#[cfg(test)]
pub(crate) use measure::{Counted, Standing};
pub use monitor::Monitor;
pub(crate) use names::{database_at, is_same_repository};
pub(crate) use program::program;
pub use remotes::RemovedRemote;
pub use report::{
    FetchReport, MergeReport, OtherSiteReport, Outcome, PerRemote, PullReport, RemoteEntry, RemoteStatusReport,
    StatusReport,
};
pub use schema::{Adopt, AdoptReport, SchemaReport};
pub use source::DatabaseSource;
use source::OwnSource;
pub(crate) use source::status_of;
pub use state::{MergeFailure, State, StateError};
pub use verify::{Difference, DifferingRow, RowState, VerifyReport};
pub use waiting::{WaitingDropReport, WaitingReport, WaitingRow, WaitingSelection};

/// What a repository is opened with.
#[derive(Clone, Default)]
pub struct Options {
    /// A library to load into every connection in place of the engine in this program.
    pub extension: Option<PathBuf>,
    /// The private network to join, in place of what `config.toml` says.
    pub network: Option<NetworkConfig>,
    /// The file that describes it, read when it is needed, in place of what `config.toml` says.
    pub network_file: Option<PathBuf>,
    /// Whether Veilid is not to be used.
    pub offline: bool,
    /// What others may cost, in place of what `config.toml` says.
    pub limits: Option<Limits>,
    /// Where, besides its socket, the daemon takes control requests, in place of what `config.toml` says.
    pub control: Option<ControlAddress>,
    /// How remotes are reached, all of them, in place of Veilid and of files on this machine.
    pub connector: Option<Arc<dyn Connector>>,
    /// With what a repository with a connector proves who it is to private ones.
    pub signer: Option<Arc<dyn Signer>>,
    /// Where the daemon gives its metrics, in place of what `config.toml` says.
    pub metrics: Option<SocketAddr>,
    /// What time, chance and threads are taken from.
    pub host: Host,
}

/// An open repository. Cheap to clone; clones are the same.
///
/// What changes it works alone: [`fetch`](Self::fetch), [`merge`](Self::merge), [`pull`](Self::pull),
/// [`fetch_bundle`](Self::fetch_bundle), [`verify`](Self::verify) and [`schema_adopt`](Self::schema_adopt) fail with
/// [`Error::Locked`] while another process works on the repository, and keep others out meanwhile. Applications write to the database itself at any time, by connections of their own.
///
/// Dropping a future of these methods breaks the work off and loses nothing: what was fetched is stored, what was merged
/// is committed, and the next call goes on from there.
#[derive(Clone)]
pub struct Repository {
    inner: Arc<Inner>,
}

struct Inner {
    layout: Layout,
    options: Options,
    node: node::NodeSlot,
    /// Held while something is merged.
    merging: Arc<Mutex<()>>,
    /// Held while the digest is made to compare with a remote's: others are compared with meanwhile.
    digesting: Mutex<()>,
    /// Held, per remote, while it is fetched from.
    fetching: StdMutex<HashMap<RemoteName, Arc<Mutex<()>>>>,
    /// Who fetches from which site: several remotes may be one.
    turns: turns::Turns,
    /// Held while it is looked at whose site id a remote's is.
    claiming: StdMutex<()>,
    guarding: guard::Guarding,
    pin: pin::Pin,
    /// The connections from which peers are answered.
    readers: StdMutex<Weak<DatabaseSource>>,
    /// Whether nothing more is to be begun.
    is_ending: AtomicBool,
    /// What this process has done.
    counters: measure::Counters,
    /// The downloads of this process.
    transfers: monitor::Transfers,
    /// Held while a bundle is fetched.
    importing: Arc<Mutex<()>>,
    announcements: events::Announcements,
    /// The lock, while somebody here holds it.
    lock: lock::Slot,
    /// Cloned into every state file that is open here.
    state_in_use: StdMutex<Arc<()>>,
    /// Held while the lock is taken.
    locking: StdMutex<()>,
    /// Held while it is looked at whose the database is.
    identifying: StdMutex<()>,
    /// Held while it is served.
    serving: Arc<Mutex<()>>,
}

impl Repository {
    /// Creates what is missing: the database, the state directory and its files. Blocks.
    ///
    /// # Errors
    /// [`Error::Database`] where the file is not a usable database, [`Error::DatabaseMissing`] where there is a state
    /// directory without it, [`Error::OtherState`] where there is another one, [`Error::Io`], [`Error::State`].
    #[doc(hidden)]
    pub fn init_with(layout: Layout, options: Options) -> Result<Self, Error> {
        layout.check_database()?;
        let layout = layout.or_recorded()?;
        let open = OpenOptions { create: true, extension: options.extension.clone(), ..OpenOptions::default() };
        Database::open(layout.database(), &open)?;
        let io = |source| Error::Io { path: layout.state().to_owned(), source };
        let is_new = !layout.has_state_file();
        if is_new && !is_missing_or_ours(layout.state()).map_err(io)? {
            return Err(Error::ForeignFolder(layout.state().to_owned()));
        }
        files::create_private_dir(layout.state(), files::Owner::of(layout.database())).map_err(io)?;
        if !layout.config().exists() {
            if !is_new {
                config::keep_private(&layout.config()).map_err(io)?;
            }
            files::replace(&layout.config(), CONFIG_TEMPLATE.as_bytes()).map_err(io)?;
        }
        if is_new {
            State::open(&layout.state_db())?;
        }
        let repository = Self::open_with(layout, options)?;
        // A process that works on it has looked already.
        if let Ok(_lock) = repository.inner.lock.take(&repository.layout().lock()) {
            repository.check_identity()?;
        }
        Ok(repository)
    }

    /// Opens an existing repository. Blocks.
    ///
    /// # Errors
    /// [`Error::NoRepository`], [`Error::Denied`], [`Error::DatabaseMissing`], [`Error::OtherState`].
    #[doc(hidden)]
    pub fn open_with(layout: Layout, options: Options) -> Result<Self, Error> {
        let parts = [layout.database().to_owned(), layout.state_db(), layout.config()];
        if let Some(denied) = parts.iter().find_map(|path| Denied::find(path)) {
            return Err(Error::Denied(denied));
        }
        layout.check_database()?;
        let missing = |missing| Error::NoRepository { path: layout.database().to_owned(), missing };
        if !layout.database().exists() {
            return Err(missing("there is no such file"));
        }
        layout.check_state()?;
        if !layout.has_state_file() {
            return Err(missing("it has no state directory"));
        }
        Ok(Self {
            inner: Arc::new(Inner {
                layout,
                options,
                node: node::NodeSlot::default(),
                merging: Arc::default(),
                digesting: Mutex::default(),
                fetching: StdMutex::default(),
                turns: turns::Turns::default(),
                claiming: StdMutex::default(),
                guarding: guard::Guarding::default(),
                pin: pin::Pin::default(),
                readers: StdMutex::default(),
                is_ending: AtomicBool::new(false),
                counters: measure::Counters::default(),
                transfers: monitor::Transfers::default(),
                importing: Arc::default(),
                announcements: events::Announcements::default(),
                lock: lock::Slot::default(),
                state_in_use: StdMutex::default(),
                locking: StdMutex::default(),
                identifying: StdMutex::default(),
                serving: Arc::default(),
            }),
        })
    }

    /// Where its parts are.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    /// What one at a time has, who serves this repository.
    pub(crate) fn serve_alone(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.inner.serving).try_lock_owned().ok()
    }

    /// Whether it has no Veilid node.
    pub(crate) fn is_offline(&self) -> bool {
        self.inner.options.offline || self.inner.options.connector.is_some()
    }

    /// The settings, read anew, with the options in place of what they replace.
    ///
    /// # Errors
    /// [`Error::Config`].
    #[doc(hidden)]
    pub fn config(&self) -> Result<Config, Error> {
        let mut config = Config::load(&self.inner.layout.config())?;
        let Options { limits, control, metrics, .. } = &self.inner.options;
        config.limits = limits.unwrap_or(config.limits);
        config.control = control.or(config.control);
        config.metrics = metrics.or(config.metrics);
        Ok(config)
    }

    /// The remotes in the order of their names.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub(crate) fn remotes(&self) -> Result<Vec<RemoteEntry>, Error> {
        let entry = |(name, remote): (RemoteName, Remote)| RemoteEntry {
            name: name.to_string(),
            address: remote.address.to_string(),
            sync: remote.sync,
        };
        Ok(self.config()?.remotes.into_iter().map(entry).collect())
    }

    /// Adds a remote.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::OwnAddress`].
    pub(crate) fn add_remote(&self, name: &str, address: &str, sync: SyncMode) -> Result<(), Error> {
        let (name, address) = (parse_name(name)?, absolute_address(address)?);
        self.check_not_own(&address)?;
        config::add_remote(&self.inner.layout.config(), &name, &Remote { address, sync })?;
        self.reload().map(drop)
    }

    /// Gives a remote another address.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::OwnAddress`].
    pub(crate) fn set_remote_address(&self, name: &str, address: &str) -> Result<(), Error> {
        let address = absolute_address(address)?;
        self.check_not_own(&address)?;
        let is_other = self.config()?.remote(name)?.1.address != address;
        config::set_remote_address(&self.inner.layout.config(), name, &address)?;
        if is_other {
            // How far it was read as well: a position counts while its remote is known to be its site.
            self.state()?.forget_contact(name)?;
        }
        self.reload().map(drop)
    }

    /// Changes what the daemon does about a remote by itself.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub(crate) fn set_remote_sync(&self, name: &str, sync: SyncMode) -> Result<(), Error> {
        config::set_remote_sync(&self.inner.layout.config(), name, sync)?;
        self.reload().map(drop)
    }

    /// The settings that are no remotes, by their keys.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub(crate) fn settings(&self) -> Result<BTreeMap<String, String>, Error> {
        Ok(config::settings(&self.config()?))
    }

    /// Changes a setting that is no remote's.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub(crate) fn set_setting(&self, key: &str, value: &str) -> Result<(), Error> {
        config::set_setting(&self.inner.layout.config(), key, value)?;
        self.reload().map(drop)
    }

    /// The address that peers use, if there is one yet. Needs no network.
    ///
    /// # Errors
    /// [`Error::Node`].
    pub fn address(&self) -> Result<Option<Address>, Error> {
        Ok(veilid::stored_address(&self.inner.layout.node()).map_err(Error::Node)?.map(Address::Veilid))
    }

    /// Makes sure that `address` is another repository's, as far as this machine can tell. Blocks.
    ///
    /// # Errors
    /// [`Error::OwnAddress`].
    fn check_not_own(&self, address: &Address) -> Result<(), Error> {
        let is_own = match address {
            Address::Path(path) => {
                let (path, own) = (database_at(path), self.layout().database());
                path == own || names::is_same_file(&path, own)
            }
            address @ Address::Veilid(_) => self.address().ok().flatten().as_ref() == Some(address),
        };
        if is_own { Err(Error::OwnAddress(address.clone())) } else { Ok(()) }
    }

    /// Opens the user's database, to look at it. Who writes to it or gives it away asks for
    /// [`Repository::own_database`]. Blocks.
    ///
    /// # Errors
    /// [`Error::Database`].
    #[doc(hidden)]
    pub fn database(&self) -> Result<Database, Error> {
        Ok(self.open_database()?)
    }

    /// The user's database, opened in a way that leaves every byte of it and of its log as they are. Blocks.
    fn database_to_look_at(&self) -> Result<Database, Error> {
        self.check_path()?;
        Ok(Database::open_to_look(self.inner.layout.database(), self.inner.options.extension.clone())?)
    }

    /// As [`Repository::database`], with that layer's own error.
    fn open_database(&self) -> Result<Database, DatabaseError> {
        self.open_database_as(false)
    }

    fn open_database_as(&self, read_only: bool) -> Result<Database, DatabaseError> {
        let extension = self.inner.options.extension.clone();
        let options = OpenOptions { extension, read_only, ..OpenOptions::default() };
        self.check_path()?;
        let database = Database::open(self.inner.layout.database(), &options)?;
        match self.check_open(&database) {
            Ok(()) => Ok(database),
            Err(error) => {
                database.abandon();
                Err(error)
            }
        }
    }

    /// What answers the requests of peers, over Veilid or over a transport of an application's own. It keeps what
    /// peers are in the middle of downloading, so one repository needs one.
    #[must_use]
    pub fn handler(&self) -> Arc<dyn Handler> {
        Arc::new(self.server())
    }

    /// What reads the database for peers. For strangers it stands behind a [`Guarded`](crate::protocol::Guarded).
    pub(crate) fn server(&self) -> Server {
        let spool = Some(self.inner.layout.state().to_owned());
        let source = OwnSource::new(self.clone());
        *self.inner.readers.lock().unwrap_or_else(PoisonError::into_inner) = source.readers();
        Server::new(source, spool, self.inner.options.host.clone())
    }

    /// Closes the connections from which peers are answered; new ones are opened as they are needed.
    fn close_readers(&self) {
        let readers = self.inner.readers.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(readers) = readers {
            readers.close();
        }
    }

    /// Has nothing more begun, and work that goes on in steps end with the present one.
    pub(crate) fn end(&self) {
        self.inner.is_ending.store(true, Ordering::Relaxed);
    }

    /// Waits until nothing here works on the repository.
    pub(crate) async fn released(&self) {
        self.inner.lock.released().await;
    }

    /// Takes [`Repository::end`] back, when everything has ended.
    pub(crate) fn begin_again(&self) {
        self.inner.is_ending.store(false, Ordering::Relaxed);
    }

    /// # Errors
    /// [`Error::Interrupted`] after [`Repository::end`].
    fn check_ending(&self) -> Result<(), Error> {
        if self.inner.is_ending.load(Ordering::Relaxed) {
            return Err(Error::Interrupted("`ddcp serve` is ending; the next one goes on here".into()));
        }
        Ok(())
    }

    /// Waits until nothing is fetched or merged.
    pub(crate) async fn idle(&self) {
        let fetching: Vec<_> = {
            let locks = self.inner.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            locks.values().cloned().collect()
        };
        for lock in fetching.iter().chain([&self.inner.merging, &self.inner.importing]) {
            drop(lock.lock().await);
        }
    }

    /// The configured remotes, or the one that is named.
    fn chosen(&self, name: Option<&str>) -> Result<Vec<(RemoteName, Address)>, Error> {
        let config = self.config()?;
        Ok(match name {
            Some(name) => {
                let (name, remote) = config.remote(name)?;
                vec![(name.clone(), remote.address.clone())]
            }
            None => config.remotes.into_iter().map(|(name, remote)| (name, remote.address)).collect(),
        })
    }

    /// Waits until nobody else fetches from the remote `name`.
    async fn fetching(&self, name: &RemoteName) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.inner.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            locks.entry(name.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// Waits until nobody else fetches from `site`.
    async fn alone_with(&self, site: &SiteId) -> turns::Turn {
        self.inner.turns.of(site).await
    }

    /// Runs `work` on a thread that may block.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        // It may go on when the caller is gone, and must not do so beside another process.
        let (repository, lock) = (self.clone(), self.inner.lock.share());
        let work = move || {
            let result = work(&repository);
            drop(lock);
            result
        };
        let done = self.inner.options.host.blocking(work).await;
        done.unwrap_or_else(|| Err(Error::Interrupted("a thread of this program stopped".into())))
    }
}

fn lock_error(layout: &Layout, error: LockError) -> Error {
    match error {
        LockError::Held(pid) => Error::Locked { path: layout.database().to_owned(), pid },
        LockError::Io(source) => Error::Io { path: layout.lock(), source },
    }
}

/// Whether a folder is there for a repository to take. Another program's must not be closed to its users.
fn is_missing_or_empty(folder: &Path) -> std::io::Result<bool> {
    // A first start that was killed leaves nothing but these; of `config.` there may be one that was half written.
    has_only(folder, &["lock", "veilid", "clone"], &["config.", ".state.db.partial-"])
}

/// As [`is_missing_or_empty`], also of a state directory from which the state file was taken away.
fn is_missing_or_ours(folder: &Path) -> std::io::Result<bool> {
    let names = ["lock", "veilid", "clone", "parts", "history", "shown", "control.token", "control.sock"];
    has_only(folder, &names, &["config.", "shown.new-", ".state.db.partial-", "state.db", "digest.db"])
}

/// Whether all that is in a folder has one of these names, or a name that begins with one of these beginnings.
fn has_only(folder: &Path, names: &[&str], beginnings: &[&str]) -> std::io::Result<bool> {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.try_fold(true, |ours, entry| {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            let is_ours = names.contains(&name.as_ref()) || beginnings.iter().any(|begin| name.starts_with(begin));
            Ok::<_, std::io::Error>(ours && is_ours)
        })?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

const CONFIG_TEMPLATE: &str = "\
# Settings of this repository. `ddcp remote add NAME ADDRESS` adds remotes below.
#
# access = \"private\"             # answer configured remotes only; without it, whoever has the address
#
# [network]                      # a private Veilid network; the public one without this table
# key = \"…\"                      # the network key
# bootstrap = [\"0|0|VLD0:…|203.0.113.7|T5150,U5150\"]
# listen = \":5150\"
# public_address = \"host.example:5150\"
";

fn parse_name(name: &str) -> Result<RemoteName, ConfigError> {
    Ok(name.parse()?)
}

/// The address in `address`; a path is made absolute: a daemon outlives the folder it was typed in.
///
/// # Errors
/// [`Error::Config`] where it is no address, [`Error::Io`] where the current folder is unknown.
pub fn absolute_address(address: &str) -> Result<Address, Error> {
    match address.parse().map_err(ConfigError::from)? {
        Address::Path(path) => {
            let absolute = std::path::absolute(&path).map_err(|source| Error::Io { path, source })?;
            Ok(Address::Path(names::in_real_folder(&absolute)))
        }
        address @ Address::Veilid(_) => Ok(address),
    }
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Repository").field(&self.inner.layout.database()).finish()
    }
}
