use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{CloneReport, Layout, Monitor, Options, Repository};
use crate::{
    Error,
    config::{ControlAddress, Limits, NetworkConfig},
    host::Host,
    transport::Connector,
};

/// Says how a repository is opened; made by [`Repository::builder`].
#[derive(Clone)]
#[must_use = "it opens nothing before `open` or `init`"]
pub struct Builder {
    database: PathBuf,
    state_dir: Option<PathBuf>,
    options: Options,
}

impl Repository {
    /// Opens the repository of the database at `path`, with its state in `.ddcp` beside it.
    ///
    /// # Errors
    /// [`Error::NoRepository`] where there is none: [`Repository::init`] makes one; [`Error::DatabaseMissing`] where there
    /// is a state directory without its database; [`Error::DanglingLink`], [`Error::OtherName`], [`Error::Io`].
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder(path).open().await
    }

    /// As [`Repository::open`]; creates what is missing, also the database.
    ///
    /// # Errors
    /// [`Error::Database`] where the file is not a usable database, [`Error::ForeignFolder`] where the state would get
    /// in the way of other files, [`Error::DatabaseMissing`], [`Error::OtherState`], [`Error::ForeignState`],
    /// [`Error::DanglingLink`], [`Error::OtherName`], [`Error::Io`], [`Error::State`].
    pub async fn init(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder(path).init().await
    }

    /// Opens the repository of the database at `path` in another way than usual.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder { database: path.as_ref().to_owned(), state_dir: None, options: Options::default() }
    }
}

impl Builder {
    /// Keeps the state in this folder.
    pub fn state_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.state_dir = Some(path.as_ref().to_owned());
        self
    }

    /// Joins this private Veilid network, in place of what `config.toml` says.
    pub fn network(mut self, network: NetworkConfig) -> Self {
        self.options.network = Some(network);
        self
    }

    /// Uses no network: only remotes on this machine can be reached, and nobody can reach this repository over Veilid.
    pub fn offline(mut self) -> Self {
        self.options.offline = true;
        self
    }

    /// Reaches all remotes through `connector`, over a transport of the application's own; Veilid is not used.
    pub fn connector(mut self, connector: Arc<dyn Connector>) -> Self {
        self.options.connector = Some(connector);
        self
    }

    /// Lets others cost no more than this, in place of what `config.toml` says.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.options.limits = Some(limits);
        self
    }

    /// Has [`Repository::serve`] take control requests at this port too, in place of what `config.toml` says.
    pub fn control(mut self, address: ControlAddress) -> Self {
        self.options.control = Some(address);
        self
    }

    /// Has [`Repository::serve`] give metrics for Prometheus at this address, in place of what `config.toml` says.
    pub fn metrics(mut self, address: SocketAddr) -> Self {
        self.options.metrics = Some(address);
        self
    }

    /// Loads this CR-SQLite library into every connection, in place of the engine in this program.
    pub fn extension(mut self, library: impl AsRef<Path>) -> Self {
        self.options.extension = Some(library.as_ref().to_owned());
        self
    }

    /// Takes time, chance and threads from `host`.
    pub fn host(mut self, host: Host) -> Self {
        self.options.host = host;
        self
    }

    /// Opens the repository.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub async fn open(self) -> Result<Repository, Error> {
        self.make(Repository::open_with).await
    }

    /// Opens the repository and creates what is missing.
    ///
    /// # Errors
    /// As [`Repository::init`].
    pub async fn init(self) -> Result<Repository, Error> {
        self.make(Repository::init_with).await
    }

    /// Makes the database, which must not exist, as a clone of the repository at `address`: its shared tables and what is
    /// in them. That repository becomes the remote `name`. What was broken off goes on when this is repeated.
    ///
    /// # Errors
    /// [`Error::CloneTarget`] where there is a database already, [`Error::DatabaseMissing`], [`Error::Remote`], [`Error::RemoteDatabase`],
    /// [`Error::NotAuthorised`] where the other one cannot be read, [`Error::BadSchema`], [`Error::Config`],
    /// [`Error::Locked`], [`Error::Database`], [`Error::State`], [`Error::Io`]. What goes wrong with the first pull is in
    /// the report.
    pub async fn clone_of(self, name: &str, address: &str) -> Result<CloneReport, Error> {
        let host = self.options.host.clone();
        let (layout, options) = blocking(&host, move || self.parts()).await?;
        Repository::clone_of(layout, options, name, address, &Monitor::default()).await
    }

    async fn make(self, open: fn(Layout, Options) -> Result<Repository, Error>) -> Result<Repository, Error> {
        let host = self.options.host.clone();
        blocking(&host, move || self.parts().and_then(|(layout, options)| open(layout, options))).await
    }

    fn parts(self) -> Result<(Layout, Options), Error> {
        let Self { database, state_dir, options } = self;
        Ok((Layout::new(&database, state_dir.as_deref())?, options))
    }
}

async fn blocking<T: Send + 'static>(
    host: &Host,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = host.blocking(work).await;
    done.unwrap_or_else(|| Err(Error::Interrupted("a thread of this program stopped".into())))
}
