//! Looking at a remote without fetching from it, and being told that it has changed.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::{
    Error,
    file_watch::FileWatch,
    protocol::ClientError,
    repo::{Repository, database_at},
    transport::{
        Address,
        veilid::{VeilidPeer, Watch},
    },
};

/// How often a database on this machine is looked at in any case: two `stat`s.
const FILE_LOOK: Duration = Duration::from_secs(10);
/// A commit is seen by readers only some time after it was written: after so long it is looked for once more.
const FILE_SETTLED: Duration = Duration::from_secs(2);
/// How often the record of a peer is read in case a watch has missed something: one small message.
const RECORD_LOOK: Duration = Duration::from_secs(30);

/// What a remote looks like from outside. Two sights that are equal mean that nothing has been written in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// The files of a database on this machine: its own and that of its log.
    Files([Stamp; 2]),
    /// What a peer publishes.
    Announcement(Vec<u8>),
}

/// Size and time of a file; `None` if it cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(Option<(u64, SystemTime)>);

impl Stamp {
    pub(crate) fn of(path: &Path) -> Self {
        let stamp = |metadata: fs::Metadata| Some((metadata.len(), metadata.modified().ok()?));
        Self(fs::metadata(path).ok().and_then(stamp))
    }
}

/// Looks at a remote without fetching from it.
pub(super) enum Scout {
    File(FileScout),
    Peer(Box<PeerScout>),
}

pub(super) struct FileScout {
    path: PathBuf,
    /// Where `path` led when it was last looked at: a link's target and its log are what changes.
    file: PathBuf,
    files: FileWatch,
}

pub(super) struct PeerScout {
    address: veilid_core::RecordKey,
    /// Once it was reached.
    reached: Option<(VeilidPeer, Watch)>,
}

impl Scout {
    pub(super) fn new(address: Address) -> Self {
        match address {
            Address::Path(path) => {
                Self::File(FileScout { files: FileWatch::database(&path), file: path.clone(), path })
            }
            Address::Veilid(address) => Self::Peer(Box::new(PeerScout { address, reached: None })),
        }
    }

    /// When to look again at a remote that was fetched from so many times since it looks as it does.
    pub(super) fn interval(&self, times: u8) -> Duration {
        match self {
            Self::File(_) if times < self.times() => FILE_SETTLED,
            Self::File(_) => FILE_LOOK,
            Self::Peer(_) => RECORD_LOOK,
        }
    }

    /// How many times a remote must be fetched from to have all that there was when it was looked at.
    pub(super) fn times(&self) -> u8 {
        match self {
            Self::File(_) => 2,
            Self::Peer(_) => 1,
        }
    }

    /// Waits to be told of a change.
    pub(super) async fn told(&mut self) {
        match self {
            Self::File(scout) => while !scout.files.changed().await {},
            Self::Peer(scout) => match &scout.reached {
                Some((_, watch)) => watch.changed().await,
                None => std::future::pending().await,
            },
        }
    }

    /// Whether a look needs no more than one question to the network.
    pub(super) fn is_reached(&self) -> bool {
        match self {
            Self::File(_) => true,
            Self::Peer(scout) => scout.reached.is_some(),
        }
    }

    pub(super) async fn look(&mut self, repository: &Repository) -> Result<Sight, Error> {
        match self {
            Self::File(scout) => scout.look(repository).await,
            Self::Peer(scout) => scout.look(repository).await,
        }
    }
}

impl FileScout {
    async fn look(&mut self, repository: &Repository) -> Result<Sight, Error> {
        let path = self.path.clone();
        let file = repository.blocking(move |_| Ok(database_at(&path))).await?;
        if file != self.file {
            self.files = FileWatch::database(&file);
            self.file = file;
        }
        let mut log = self.file.clone().into_os_string();
        log.push("-wal");
        Ok(Sight::Files([Stamp::of(&self.file), Stamp::of(Path::new(&log))]))
    }
}

impl PeerScout {
    async fn look(&mut self, repository: &Repository) -> Result<Sight, Error> {
        let remote = |error| Error::Remote(ClientError::Transport(error));
        let peer = match &self.reached {
            Some((peer, _)) => {
                peer.refresh().await.map_err(remote)?;
                peer.clone()
            }
            None => repository.node().await?.connect(&self.address).await.map_err(remote)?,
        };
        // Asked for anew each time, since a watch may end: while it is in force that changes nothing.
        let watch = peer.watch().await.map_err(remote)?;
        let sight = Sight::Announcement(peer.announcement());
        self.reached = Some((peer, watch));
        Ok(sight)
    }
}
