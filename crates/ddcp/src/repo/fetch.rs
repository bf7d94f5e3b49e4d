//! `fetch`: a remote's new changes go into the inbox; the user's tables stay as they are.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use jiff::Timestamp;

use super::{DatabaseSource, FetchReport, LogEvent, Outcome, PerRemote, Repository, State};
use crate::{
    Error,
    changeset::{self, Cursor, Pack, SiteId},
    config::RemoteName,
    database::{Database, OpenOptions},
    protocol::{Client, Fetched, Limits, OfferedPack, Parts, RemoteStatus, Server, Sink},
    transport::{Address, LocalPeer, Peer},
};

/// Bytes of packs of one remote that may lie fetched and not merged.
const INBOX_BYTES: u64 = 16 << 30;

impl Repository {
    /// Fetches from the remote `name`, or from all at once: one that does not answer holds up none of the others.
    ///
    /// # Errors
    /// [`Error::Config`]; what goes wrong with a remote is in its report.
    pub async fn fetch(&self, name: Option<&str>) -> Result<Vec<PerRemote<FetchReport>>, Error> {
        let fetches = self.chosen(name)?.into_iter().map(|(name, address)| self.fetch_and_note(name, address));
        Ok(join_all(fetches).await)
    }

    async fn fetch_and_note(&self, name: RemoteName, address: Address) -> PerRemote<FetchReport> {
        let _alone = self.fetching(&name).await;
        let began = Timestamp::now();
        let outcome = match self.fetch_one(&name, &address).await {
            Ok(report) => {
                tracing::info!(remote = %name, changes = report.changes, bytes = report.bytes, "fetched");
                Outcome::Done(report)
            }
            Err(error) => {
                tracing::warn!(remote = %name, %error, "fetch failed");
                Outcome::Failed(error.report())
            }
        };
        if let Some(event) = LogEvent::of_fetch(&outcome) {
            let remote = name.clone();
            let noted = self.blocking(move |repository| {
                let mut state = repository.state()?;
                if let LogEvent::Failed { message } = &event {
                    state.note_error(remote.as_str(), &address, message)?;
                }
                state.note_event(remote.as_str(), began, Some(event));
                Ok(())
            });
            if let Err(error) = noted.await {
                tracing::warn!(%error, "the outcome of a fetch cannot be noted");
            }
        }
        PerRemote { remote: name.to_string(), outcome }
    }

    async fn fetch_one(&self, name: &RemoteName, address: &Address) -> Result<FetchReport, Error> {
        let client = Client::new(self.connect(address).await?, Limits::default(), self.inner.options.host.clone());
        let status = client.status().await?;
        let site = SiteId::from_bytes(&status.site_id).map_err(|error| Error::BadPack(error.to_string()))?;
        let schema = status.schema.clone();
        let Start { reader, after, up_to, room, report, state } =
            self.start(name.clone(), address.clone(), site, status).await?;
        let client = client.with_parts(Parts::in_folder(self.layout().parts(&site.to_string())), room);
        let state = Arc::new(Mutex::new(state));
        let mut inbox = Inbox { repository: self.clone(), state, site, reached: after, report };
        client.fetch(after, up_to, &reader, &mut inbox).await?;
        let name = name.clone();
        inbox.write(move |state| Ok(state.note_schema(name.as_str(), &schema)?)).await?;
        Ok(inbox.report)
    }

    /// Somebody who answers for the repository at `address`.
    async fn connect(&self, address: &Address) -> Result<Arc<dyn Peer>, Error> {
        if let Some(connector) = &self.inner.options.connector {
            return connector.connect(address).await.map_err(|error| Error::Remote(error.into()));
        }
        match address {
            Address::Veilid(record) => {
                let peer = self.node().await?.connect(record).await.map_err(|e| Error::Remote(e.into()))?;
                Ok(Arc::new(peer))
            }
            Address::Path(path) => {
                let extension = self.inner.options.extension.clone();
                let options = OpenOptions { read_only: true, extension, ..OpenOptions::default() };
                let path = path.clone();
                let open = move || Database::open(&path, &options);
                // Opened once before, so that what is wrong with the file is said in full.
                let open = self.blocking(move |_| open().map_err(Error::RemoteDatabase).map(|_| open)).await?;
                let spool = Some(self.layout().state().to_owned());
                let server = Server::new(DatabaseSource::new(open), spool, self.inner.options.host.clone());
                Ok(Arc::new(LocalPeer::new(Arc::new(server))))
            }
        }
    }

    /// Notes the answer and finds where to read on.
    async fn start(
        &self,
        name: RemoteName,
        address: Address,
        site: SiteId,
        status: RemoteStatus,
    ) -> Result<Start, Error> {
        self.blocking(move |repository| {
            let database = repository.database()?;
            let reader = database.site_id()?;
            if site == reader {
                return Err(Error::SameSite(site));
            }
            let mut state = repository.state()?;
            let known_schema = state.contact(name.as_str(), &address)?.schema;
            let now = Timestamp::now().as_second();
            state.note_answer(name.as_str(), &address, &site, status.db_version, now)?;
            let mut after = state.fetched(&site, database.position(&site)?)?;
            let rewound = status.db_version < after.version;
            if rewound {
                tracing::warn!(
                    remote = %name, version = status.db_version, fetched = after.version,
                    "the remote's database is older than what was fetched from it (restored from a backup?); reading it from the start"
                );
                state.drop_inbox(&site)?;
                after = Cursor::ZERO;
            }
            if known_schema.is_some_and(|known| known != status.schema) {
                after = before_alteration(after);
            }
            let room = INBOX_BYTES.saturating_sub(state.inbox_bytes(&site)?);
            let report = FetchReport { remote_version: status.db_version, rewound, ..FetchReport::default() };
            Ok(Start { reader, after, up_to: status.db_version, room, report, state })
        })
        .await
    }
}

/// Where to read on when the remote's schema has changed since. Altering a table records cells under the db version
/// that is current then, which may be the one that was read last: that one is read again.
fn before_alteration(after: Cursor) -> Cursor {
    match after.version {
        ..=1 => Cursor::ZERO,
        version => Cursor::whole(version - 1),
    }
}

struct Start {
    reader: SiteId,
    after: Cursor,
    up_to: i64,
    /// Bytes of packs that may be fetched.
    room: u64,
    report: FetchReport,
    state: State,
}

/// Stores what arrives, each step durably before the next.
struct Inbox {
    repository: Repository,
    state: Arc<Mutex<State>>,
    site: SiteId,
    reached: Cursor,
    report: FetchReport,
}

impl Sink for Inbox {
    type Error = Error;

    async fn take(&mut self, step: Fetched) -> Result<(), Error> {
        match step {
            Fetched::Pack(offered, bytes) => self.store_pack(offered, bytes).await,
            Fetched::Reached(end) if end > self.reached => {
                let (site, from) = (self.site, self.reached);
                self.write(move |state| Ok(state.store(&site, from, end, None)?)).await?;
                self.reached = end;
                Ok(())
            }
            Fetched::Reached(_) => Ok(()),
        }
    }
}

impl Inbox {
    async fn store_pack(&mut self, offered: OfferedPack, bytes: Vec<u8>) -> Result<(), Error> {
        let (site, from, to) = (self.site, self.reached, offered.to);
        let length = bytes.len() as u64;
        let changes = self
            .write(move |state| {
                let changes = check(&site, &offered, &bytes)?;
                state.store(&site, from, to, Some((&bytes, changes)))?;
                Ok(changes as u64)
            })
            .await?;
        self.reached = to;
        self.report.changes += changes;
        self.report.bytes += length;
        Ok(())
    }

    /// Runs `work` on the state file, which stays open.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let state = self.state.clone();
        self.repository.blocking(move |_| work(&mut state.lock().unwrap_or_else(PoisonError::into_inner))).await
    }
}

/// The number of changes in a pack that is what was offered. What it holds is dropped before it is stored.
fn check(site: &SiteId, offered: &OfferedPack, bytes: &[u8]) -> Result<usize, Error> {
    let pack = Pack::decode(bytes, &changeset::Limits::default()).map_err(|error| Error::BadPack(error.to_string()))?;
    if pack.source != *site || pack.from != offered.from || pack.to != offered.to {
        return Err(Error::BadPack("its head is not what was offered".into()));
    }
    Ok(pack.changes.len())
}
