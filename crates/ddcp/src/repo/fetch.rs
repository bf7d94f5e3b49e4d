//! `fetch`: a remote's new changes go into the inbox; the user's tables stay as they are.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::task::JoinSet;

use super::{DatabaseSource, FetchReport, LogEvent, Monitor, Outcome, PerRemote, Repository, State};
use crate::{
    Error,
    changeset::{self, Cursor, Pack, SiteId},
    config::RemoteName,
    database::{Database, OpenOptions},
    protocol::{Client, Fetched, Limits, Meter, OfferedPack, RemoteStatus, Server, Sink},
    transport::{Address, LocalPeer, Peer},
};

impl Repository {
    /// Fetches from the remote `name`, or from all at once: one that does not answer holds up none of the others.
    ///
    /// # Errors
    /// [`Error::Config`]; what goes wrong with a remote is in its report.
    pub async fn fetch(&self, name: Option<&str>) -> Result<Vec<PerRemote<FetchReport>>, Error> {
        self.fetch_watched(name, &Monitor::default()).await
    }

    /// As [`Repository::fetch`]; `monitor` shows how far it is.
    ///
    /// # Errors
    /// As [`Repository::fetch`].
    pub async fn fetch_watched(
        &self,
        name: Option<&str>,
        monitor: &Monitor,
    ) -> Result<Vec<PerRemote<FetchReport>>, Error> {
        let mut fetches = JoinSet::new();
        for (name, address) in self.chosen(name)? {
            let (repository, meter) = (self.clone(), monitor.meter(name.as_str()));
            fetches.spawn(async move { repository.fetch_and_note(name, address, meter).await });
        }
        let mut reports = fetches.join_all().await;
        reports.sort_by(|a, b| a.remote.cmp(&b.remote));
        Ok(reports)
    }

    async fn fetch_and_note(&self, name: RemoteName, address: Address, meter: Meter) -> PerRemote<FetchReport> {
        let _alone = self.fetching(&name).await;
        let began = Timestamp::now();
        let outcome = match self.fetch_one(&name, &address, meter).await {
            Ok(report) => {
                tracing::info!(remote = %name, changes = report.changes, bytes = report.bytes, "fetched");
                Outcome::Done(report)
            }
            Err(error) => {
                tracing::warn!(remote = %name, %error, "fetch failed");
                let message = error.to_string();
                let noted = (name.clone(), address);
                let note = move |r: &Self| Ok(r.state()?.note_error(noted.0.as_str(), &noted.1, &message)?);
                if let Err(error) = self.blocking(note).await {
                    tracing::warn!(%error, "the failure could not be noted");
                }
                Outcome::Failed(error.report())
            }
        };
        let (remote, event) = (name.to_string(), LogEvent::of_fetch(&outcome));
        let noted = self.blocking(move |r| {
            r.state()?.note_event(&remote, began, event);
            Ok(())
        });
        if let Err(error) = noted.await {
            tracing::warn!(%error, "the log cannot be written");
        }
        PerRemote { remote: name.to_string(), outcome }
    }

    async fn fetch_one(&self, name: &RemoteName, address: &Address, meter: Meter) -> Result<FetchReport, Error> {
        let client = Client::new(self.connect(address).await?, Limits::default()).with_meter(meter);
        let status = client.status().await?;
        let site = SiteId::from_bytes(&status.site_id).map_err(|error| Error::BadPack(error.to_string()))?;
        let schema = status.schema.clone();
        let start = self.start(name.clone(), address.clone(), site, status).await?;
        let mut inbox = Inbox { repository: self.clone(), site, reached: start.after, report: start.report };
        client.fetch(start.after, start.up_to, &start.reader, &mut inbox).await?;
        self.blocking(move |repository| Ok(repository.state()?.note_schema(&site, &schema)?)).await?;
        Ok(inbox.report)
    }

    /// Somebody who answers for the repository at `address`.
    async fn connect(&self, address: &Address) -> Result<Arc<dyn Peer>, Error> {
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
                Ok(Arc::new(LocalPeer::new(Arc::new(Server::new(DatabaseSource::new(open))))))
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
            let now = Timestamp::now().as_second();
            state.note_answer(name.as_str(), &address, &site, status.db_version, now)?;
            let mut fetched = state.fetched(&site, database.position(&site)?)?;
            let rewound = status.db_version < fetched.version;
            if rewound {
                tracing::warn!(
                    remote = %name, version = status.db_version, fetched = fetched.version,
                    "the remote's database is older than what was fetched from it (restored from a backup?); reading it from the start"
                );
                state.drop_inbox(&site)?;
                fetched = Cursor::ZERO;
            }
            let after = state.read_on(&site, fetched, &status.schema)?;
            let report = FetchReport { remote_version: status.db_version, rewound, ..FetchReport::default() };
            Ok(Start { reader, after, up_to: status.db_version, report })
        })
        .await
    }
}

struct Start {
    reader: SiteId,
    after: Cursor,
    up_to: i64,
    report: FetchReport,
}

/// Stores what arrives, each step durably before the next.
struct Inbox {
    repository: Repository,
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
                self.repository.blocking(move |r| Ok(r.state()?.store(&site, from, end, None)?)).await?;
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
            .repository
            .blocking(move |repository| {
                let pack = Pack::decode(&bytes, &changeset::Limits::default())
                    .map_err(|error| Error::BadPack(error.to_string()))?;
                if pack.source != site || pack.from != offered.from || pack.to != offered.to {
                    return Err(Error::BadPack("its head is not what was offered".into()));
                }
                let mut state: State = repository.state()?;
                state.store(&site, from, to, Some((&bytes, pack.changes.len())))?;
                Ok(pack.changes.len() as u64)
            })
            .await?;
        self.reached = to;
        self.report.changes += changes;
        self.report.bytes += length;
        Ok(())
    }
}
