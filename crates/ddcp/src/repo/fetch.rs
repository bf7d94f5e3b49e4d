//! `fetch`: a remote's new changes go into the inbox; the user's tables stay as they are.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use jiff::Timestamp;

use super::{
    DatabaseSource, Event, FetchReport, LogEvent, Monitor, Outcome, PerRemote, Repository, State, database_at,
    is_same_repository, turns::Turn, verify::nobody, way,
};
use crate::{
    Error,
    changeset::{self, Change, Cursor, PackError, SiteId},
    config::{self, Config, RemoteName},
    database::{Database, OpenOptions, Origin},
    protocol::{
        Client, ClientError, Credentials, Fetched, LeastRate, Limits, Meter, OfferedPack, Parts, RemoteStatus, Server,
        Sink,
    },
    transport::{Address, LocalPeer, Peer, Signer},
};

/// How often a remote is asked anew who it is, after others fetched from whom it said.
const MOST_ASKED: usize = 4;

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
        let _lock = self.hold().await?;
        let fetch = |(name, address): (RemoteName, Address)| {
            let meter = monitor.meter(name.as_str());
            self.fetch_and_note(name, address, ReadFrom::Position, meter)
        };
        Ok(join_all(self.chosen(name)?.into_iter().map(fetch)).await)
    }

    pub(super) async fn fetch_and_note(
        &self,
        name: RemoteName,
        address: Address,
        from: ReadFrom,
        meter: Meter,
    ) -> PerRemote<FetchReport> {
        let _alone = self.fetching(&name).await;
        if let Err(error) = self.check_ending() {
            // The remote has not failed.
            return PerRemote { remote: name.to_string(), outcome: Outcome::Failed(error.report()) };
        }
        let _shown = self.inner.transfers.show(&name, meter.clone());
        let began = Timestamp::now();
        let work = self.fetch_one(&name, &address, from, meter.clone());
        let outcome = match self.telling_progress(name.as_str(), &meter, work).await {
            Ok(report) => {
                match report.changes {
                    0 => tracing::debug!(remote = %name, "fetched nothing new"),
                    changes => tracing::info!(remote = %name, changes, bytes = report.bytes, "fetched"),
                }
                Outcome::Done(report)
            }
            Err(error) => {
                tracing::warn!(remote = %name, %error, "fetch failed");
                Outcome::Failed(error.report())
            }
        };
        self.inner.counters.fetched(&name, &outcome);
        if let Some(event) = LogEvent::of_fetch(&outcome) {
            let remote = name.clone();
            let noted = self.blocking(move |repository| {
                let mut state = repository.state()?;
                if let LogEvent::Failed { message } = &event
                    && repository.is_remote(remote.as_str(), &address)?
                {
                    state.note_error(remote.as_str(), &address, message, Timestamp::now().as_second())?;
                }
                state.note_event(remote.as_str(), began, Some(event));
                Ok(())
            });
            if let Err(error) = noted.await {
                tracing::warn!(%error, "the outcome of a fetch cannot be noted");
            }
        }
        self.tell(Event::of_fetch(name.as_str(), &outcome));
        PerRemote { remote: name.to_string(), outcome }
    }

    /// Keeps for `status` what went wrong with a remote.
    pub(crate) async fn note_failure(&self, name: &RemoteName, address: &Address, message: String) {
        let (name, address) = (name.clone(), address.clone());
        let now = Timestamp::now().as_second();
        let note = move |r: &Self| match r.is_remote(name.as_str(), &address)? {
            true => Ok(r.state()?.note_error(name.as_str(), &address, &message, now)?),
            false => Ok(()),
        };
        if let Err(error) = self.blocking(note).await {
            tracing::warn!(%error, "the failure could not be noted");
        }
    }

    async fn fetch_one(
        &self,
        name: &RemoteName,
        address: &Address,
        from: ReadFrom,
        meter: Meter,
    ) -> Result<FetchReport, Error> {
        let limits = self.blocking(Self::config).await?.limits;
        let client = self.client(address, &limits).await?.with_meter(meter);
        self.fetch_through(client, &limits, name, address, from).await
    }

    async fn fetch_through(
        &self,
        client: Client,
        limits: &config::Limits,
        name: &RemoteName,
        address: &Address,
        from: ReadFrom,
    ) -> Result<FetchReport, Error> {
        let (status, site, _alone) = self.answer_alone(&client).await?;
        let (schema, asked) = (status.schema.clone(), status.clone());
        let Start { origin, reader, own, after, up_to, held, report, is_owed, state } =
            self.start(name.clone(), address.clone(), site, status, from).await?;
        let most = limits.inbox_bytes.get();
        let room = most.saturating_sub(held);
        let parts = self.layout().parts(&site.to_string());
        let client = client.with_parts(Parts::in_folder(parts.clone()), room);
        let limits = limits.unpacked();
        let state = Arc::new(Mutex::new(state));
        let (name_of, address_of) = (name.clone(), address.clone());
        let repository = self.clone();
        let mut inbox = Inbox {
            repository,
            state,
            name: name_of,
            address: address_of,
            origin,
            own,
            limits,
            most,
            room,
            reached: after,
            report,
        };
        client.fetch(after, up_to, &reader, &mut inbox).await.map_err(|error| match error {
            Error::Remote(ClientError::Storage(source)) => Error::Io { path: parts, source },
            Error::Remote(error) => self.explain(error),
            other => other,
        })?;
        let (told, owner, home) = (inbox.report.left_out.clone(), inbox.name.clone(), inbox.address.clone());
        let note = move |state: &mut State| {
            if is_owed {
                state.forget_left_out(owner.as_str())?;
                state.note_left_out(owner.as_str(), &home, told)?;
            }
            Ok(state.note_schema(origin, &schema)?)
        };
        inbox.write(note).await?;
        inbox.report.schema = self.compare_schema(&client, name, address, asked).await;
        Ok(inbox.report)
    }

    /// Asks a remote who it is, and waits until nobody else fetches from that site.
    async fn answer_alone(&self, client: &Client) -> Result<(RemoteStatus, SiteId, Turn), Error> {
        let mut waited: Option<(SiteId, Turn)> = None;
        for _ in 0..MOST_ASKED {
            let asked = self.inner.turns.now();
            let status = client.status().await.map_err(|error| self.explain(error))?;
            let site = SiteId::from_bytes(&status.site_id).map_err(|error| Error::BadPack(error.to_string()))?;
            let turn = match waited.take() {
                Some((waited_for, turn)) if waited_for == site => return Ok((status, site, turn)),
                _ => self.alone_with(&site).await,
            };
            if !turn.is_after_one_since(asked) {
                return Ok((status, site, turn));
            }
            // It said so before what the other one has fetched meanwhile.
            waited = Some((site, turn));
        }
        Err(Error::BadPack("it is another site each time that it is asked".into()))
    }

    /// What asks the repository at `address`.
    pub(super) async fn client(&self, address: &Address, limits: &config::Limits) -> Result<Client, Error> {
        let patience = Duration::from_secs(u64::from(limits.patience_seconds.get()));
        let least_rate = LeastRate::default();
        // Whoever may take so long for an answer may take that for a few.
        let least_rate = LeastRate { within: least_rate.within.max(5 * patience), ..least_rate };
        let limits = Limits { pack_bytes: limits.pack_bytes.get(), patience, least_rate, ..Limits::default() };
        let client = Client::new(self.connect(address).await?, limits, self.inner.options.host.clone());
        // Who may read a file may read the database.
        let Some(server) = address.repository() else { return Ok(client) };
        let signer: Arc<dyn Signer> = match (&self.inner.options.signer, &self.inner.options.connector) {
            (Some(signer), _) => Arc::clone(signer),
            (None, None) => Arc::new(self.node().await?),
            // An application's own transport has its own rules.
            (None, Some(_)) => return Ok(client),
        };
        Ok(client.with_credentials(Credentials::new(signer, server)))
    }

    /// With what the owner of a private repository needs to know.
    pub(super) fn explain(&self, error: ClientError) -> Error {
        match error {
            ClientError::NotAuthorised => {
                Error::NotAuthorised(self.address().ok().flatten().map(|address| address.to_string()))
            }
            other => other.into(),
        }
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
                let address = address.clone();
                let path = path.clone();
                // Opened once before, so that what is wrong with the file is said in full.
                let open = self.blocking(move |repository| {
                    repository.check_not_own(&address)?;
                    let path = database_at(&path);
                    let open = move || Database::open(&path, &options).map_err(Error::RemoteDatabase);
                    open().map(|_| open)
                });
                let open = open.await?;
                let spool = (!self.has_fixed_state()).then(|| self.layout().state().to_owned());
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
        from: ReadFrom,
    ) -> Result<Start, Error> {
        let held = self.hold().await?;
        self.blocking(move |repository| {
            let database = repository.own_database(&held)?;
            let mut reader = database.site_id()?;
            if site == reader {
                return Err(Error::SameSite(site));
            }
            let mut state = repository.state()?;
            let config = repository.config()?;
            // It may have been removed, or renamed, since the fetch began.
            config.remote(name.as_str())?;
            let origin = way::origin(&address, site);
            let mut fetched = repository.fetched_from((&database, &mut state), origin)?;
            // Of two remotes that claim one site id at the same time, one is the first.
            let alone = repository.inner.claiming.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(other) = claimant(&config, &state, &name, &address, &site)? {
                return Err(Error::SharedSite { site, other });
            }
            let now = Timestamp::now().as_second();
            state.note_answer(name.as_str(), &address, origin, status.db_version, now)?;
            drop(alone);
            let rewound = status.db_version < fetched.version;
            if rewound {
                tracing::warn!(
                    remote = %name, version = status.db_version, fetched = fetched.version,
                    "the remote's database is older than what was fetched from it (restored from a backup?); reading it from the start"
                );
            }
            if from == ReadFrom::Start {
                reader = nobody(repository.inner.options.host.random_bytes())?;
            }
            // What it could not send may have become readable with its schema; that lies behind where it was read to.
            let is_owed = from == ReadFrom::Position
                && state.has_changed(origin, &status.schema)?
                && !state.left_out(name.as_str(), &address)?.is_empty();
            if rewound || is_owed {
                state.put_aside_origin(origin)?;
                fetched = Cursor::ZERO;
            } else if from == ReadFrom::Start {
                state.drop_inbox(origin)?;
                fetched = Cursor::ZERO;
            }
            let after = match is_owed {
                // Both are noted at its end: broken off, it begins again.
                true => Cursor::ZERO,
                false => {
                    if fetched == Cursor::ZERO {
                        state.forget_left_out(name.as_str())?;
                    }
                    state.read_on(origin, fetched, &status.schema)?
                }
            };
            // A remote could go back again and again, or be another each time: what was put aside is held as well.
            let held = state.held(&site)?;
            let report = FetchReport { remote_version: status.db_version, rewound, ..FetchReport::default() };
            let own = (from == ReadFrom::Position).then_some(reader);
            Ok(Start { origin, reader, own, after, up_to: status.db_version, held, report, is_owed, state })
        })
        .await
    }
}

/// What a fetch brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadFrom {
    /// What is not here yet.
    Position,
    /// Everything again, also what this repository wrote itself.
    Start,
}

struct Start {
    origin: Origin,
    reader: SiteId,
    /// The site whose changes the remote is to leave out.
    own: Option<SiteId>,
    after: Cursor,
    up_to: i64,
    /// Bytes that are in the inbox already.
    held: u64,
    report: FetchReport,
    /// It is read from its start, for what it could not send before.
    is_owed: bool,
    state: State,
}

/// Another remote that has answered with the site id `site`. One repository has one site id, so two remotes that are
/// known to be one are no contradiction.
pub(super) fn claimant(
    config: &Config,
    state: &State,
    name: &RemoteName,
    address: &Address,
    site: &SiteId,
) -> Result<Option<RemoteName>, Error> {
    for (other, remote) in config.remotes.iter().filter(|(other, remote)| *other != name && remote.address != *address)
    {
        let is_claimed = state.contact(other.as_str(), &remote.address)?.site_id == Some(*site);
        if is_claimed && !is_same_repository(address, &remote.address) {
            return Ok(Some(other.clone()));
        }
    }
    Ok(None)
}

/// Stores what arrives, each step durably before the next.
struct Inbox {
    repository: Repository,
    state: Arc<Mutex<State>>,
    name: RemoteName,
    address: Address,
    origin: Origin,
    /// The site whose changes the remote is to leave out.
    own: Option<SiteId>,
    limits: changeset::Limits,
    /// Bytes of the site that may lie here, and how many of them are left.
    most: u64,
    room: u64,
    reached: Cursor,
    report: FetchReport,
}

impl Sink for Inbox {
    type Error = Error;

    async fn take(&mut self, step: Fetched) -> Result<(), Error> {
        match step {
            Fetched::Pack(offered, bytes) => self.store_pack(offered, bytes).await,
            Fetched::Reached(end) if end > self.reached => {
                let (origin, from) = (self.origin, self.reached);
                self.write(move |state| Ok(state.store(origin, from, end, None)?)).await?;
                self.reached = end;
                Ok(())
            }
            Fetched::Reached(_) => Ok(()),
            Fetched::LeftOut(left_out) => {
                self.report.left_out.extend(left_out.clone());
                let (name, address) = (self.name.clone(), self.address.clone());
                self.write(move |state| Ok(state.note_left_out(name.as_str(), &address, left_out)?)).await
            }
        }
    }
}

impl Inbox {
    async fn store_pack(&mut self, offered: OfferedPack, bytes: Vec<u8>) -> Result<(), Error> {
        let (origin, own, from, to) = (self.origin, self.own, self.reached, offered.to);
        let (length, limits) = (bytes.len() as u64, self.limits);
        let charge = changeset::charge(length, &bytes);
        self.room = self.room.checked_sub(charge).ok_or(ClientError::NoRoom { most: self.most })?;
        let changes = self
            .write(move |state| {
                let changes = check(&origin.site, own, &offered, &bytes, &limits)?;
                state.store(origin, from, to, Some((&bytes, changes)))?;
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

/// The number of changes in a pack that is what was offered, and has none of the site `own`. What it holds is dropped before
/// it is stored.
fn check(
    site: &SiteId,
    own: Option<SiteId>,
    offered: &OfferedPack,
    bytes: &[u8],
    limits: &changeset::Limits,
) -> Result<usize, Error> {
    let mut has_own = false;
    let look = |change: &Change| has_own |= Some(change.site_id) == own;
    let (pack, changes) = changeset::inspect(bytes, limits, look).map_err(|error| match error {
        PackError::NoMemory => Error::NoMemory,
        bad => Error::BadPack(bad.to_string()),
    })?;
    if pack.source != *site || pack.from != offered.from || pack.to != offered.to {
        return Err(Error::BadPack("its head is not what was offered".into()));
    }
    if has_own { Err(Error::OwnChanges) } else { Ok(changes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        changeset::{Pack, PackTable, Value},
        database::TakePack,
        host::Host,
        protocol::{Reached, Source},
        repo::{Layout, Options},
    };

    /// Says that it is `site`, and sends a pack of `source` with a change of `author`.
    #[derive(Clone, Copy)]
    struct Liar {
        site: SiteId,
        source: SiteId,
        author: Option<SiteId>,
    }

    impl Liar {
        fn new(site: SiteId, source: SiteId) -> Self {
            Self { site, source, author: None }
        }

        fn changes(self) -> Vec<Change> {
            let change = |site_id| Change {
                table: "note".into(),
                pk: [1, 0x09, 1].as_slice().into(),
                cid: "body".into(),
                val: Value::Null,
                col_version: 1,
                db_version: 1,
                site_id,
                cl: 1,
                seq: 0,
            };
            self.author.into_iter().map(change).collect()
        }
    }

    impl Source for Liar {
        fn status(&self) -> Result<RemoteStatus, String> {
            Ok(RemoteStatus { site_id: self.site.as_bytes().to_vec(), db_version: 1, schema: vec![0; 32] })
        }

        fn packs(&self, from: Cursor, _: &SiteId, take: TakePack<'_>) -> Result<Reached, String> {
            let to = Cursor::whole(1);
            if from < to {
                let tables = vec![PackTable { name: "note".into(), key_columns: vec!["id".into()] }];
                let _ = take(Pack { source: self.source, from, to, tables, changes: self.changes() });
            }
            Ok(Reached::all(to, false))
        }
    }

    fn repository() -> (tempfile::TempDir, Repository) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("a.db"), None).unwrap();
        let repository = Repository::init_with(layout, Options::default()).unwrap();
        (dir, repository)
    }

    async fn fetch(repository: &Repository, name: &str, liar: Liar) -> Result<FetchReport, Error> {
        fetch_from(repository, name, liar, ReadFrom::Position).await
    }

    async fn fetch_from(repository: &Repository, name: &str, liar: Liar, from: ReadFrom) -> Result<FetchReport, Error> {
        let peer = LocalPeer::new(Arc::new(Server::new(liar, None, Host::default())));
        let client = Client::new(Arc::new(peer), Limits::default(), Host::default());
        let config = repository.config().unwrap();
        let (name, remote) = config.remote(name).unwrap();
        repository.fetch_through(client, &config.limits, name, &remote.address, from).await
    }

    #[tokio::test]
    async fn a_remote_that_lies_about_its_site_is_refused() {
        let (_dir, repository) = repository();
        for name in ["honest", "liar"] {
            repository.add_remote(name, &format!("{name}.db"), crate::config::SyncMode::Manual).unwrap();
        }
        let own = repository.database().unwrap().site_id().unwrap();
        let [one, other] = [1, 2].map(|byte| SiteId::from_bytes(&[byte; 16]).unwrap());
        fetch(&repository, "honest", Liar::new(one, one)).await.unwrap();
        let way = |name| way::of_address(&repository.config().unwrap().remote(name).unwrap().1.address);
        let reached = |site| {
            let origin = Origin { site, way: way(if site == one { "honest" } else { "liar" }) };
            repository.state().unwrap().fetched(origin, Cursor::ZERO).unwrap()
        };
        assert_eq!(reached(one), Cursor::whole(1));

        let claims_own = fetch(&repository, "liar", Liar::new(own, own)).await;
        assert!(matches!(claims_own, Err(Error::SameSite(_))), "{claims_own:?}");
        let claims_others = fetch(&repository, "liar", Liar::new(one, one)).await;
        assert!(matches!(claims_others, Err(Error::SharedSite { .. })), "{claims_others:?}");
        let sends_others = fetch(&repository, "liar", Liar::new(other, one)).await;
        assert!(matches!(sends_others, Err(Error::BadPack(_))), "{sends_others:?}");
        assert_eq!(reached(other), Cursor::ZERO);

        fetch(&repository, "honest", Liar::new(one, one)).await.unwrap();
        fetch(&repository, "liar", Liar::new(other, other)).await.unwrap();
    }
    #[tokio::test]
    async fn changes_in_the_own_name_are_taken_by_verify_alone() {
        let (_dir, repository) = repository();
        repository.add_remote("liar", "liar.db", crate::config::SyncMode::Manual).unwrap();
        let (own, site) = (repository.database().unwrap().site_id().unwrap(), SiteId::from_bytes(&[1; 16]).unwrap());
        let liar = Liar { author: Some(own), ..Liar::new(site, site) };
        let refused = fetch(&repository, "liar", liar).await;
        assert!(matches!(refused, Err(Error::OwnChanges)), "{refused:?}");
        assert_eq!(repository.state().unwrap().inbox_changes(&site).unwrap(), 0);
        fetch(&repository, "liar", Liar { author: Some(site), ..liar }).await.unwrap();
        let taken = fetch_from(&repository, "liar", liar, ReadFrom::Start).await.unwrap();
        assert_eq!(taken.changes, 1);
    }
}
