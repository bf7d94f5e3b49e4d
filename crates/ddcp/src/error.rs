use std::{fmt, io, net::SocketAddr, path::PathBuf};

use nix::errno::Errno;
use rusqlite::ErrorCode;
use serde::{Deserialize, Serialize};

use crate::{
    changeset::{BundleError, PackError, SiteId},
    config::{ConfigError, RemoteName},
    database::{BadDefinition, DatabaseError},
    denied::Denied,
    disk,
    protocol::ClientError,
    repo::{StateError, program},
    transport::{Address, TransportError},
};

/// Why an operation on a repository failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no database, or no repository beside it.
    #[error("{} is no repository: {missing}", path.display())]
    NoRepository {
        /// The database's path.
        path: PathBuf,
        /// What is missing.
        missing: &'static str,
    },
    /// Somebody else's file, or in somebody else's folder.
    #[error("{0}")]
    Denied(Denied),
    /// What keeps a repository's database from being given away, where it cannot be mended.
    #[error("{}: {reason}, and its medium is read-only, so it cannot be given a site id of its own", path.display())]
    NotItself {
        /// The database's path.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A state directory is there, and the database that it belongs to is not, or is empty.
    #[error(
        "the database {} is missing, and its state directory {} is there: its disk may not be mounted{}",
        database.display(),
        state.display(),
        last.as_ref().map(|last| format!(" (the database was last at {})", last.display())).unwrap_or_default()
    )]
    DatabaseMissing {
        /// The database's path.
        database: PathBuf,
        /// The state directory.
        state: PathBuf,
        /// Where the database was when it was last seen, if that was elsewhere.
        last: Option<PathBuf>,
    },
    /// No database was named, and there are repositories beside the one that would be meant.
    #[error(
        "no database is named, {} is no repository, and its folder holds {}",
        database.display(),
        others.iter().map(|other| other.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    Unnamed {
        /// The database that would be meant.
        database: PathBuf,
        /// The databases of those repositories.
        others: Vec<PathBuf>,
    },
    /// A link that leads nowhere.
    #[error("{} is a link to {}, which is missing", link.display(), target.display())]
    DanglingLink {
        /// The link.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A file that is known by another hard link is in use by this one.
    #[error(
        "{} is another name (a hard link) of {}, and is in use by that name: SQLite keeps a log for each, and so damages \
         a file that is opened by both",
        name.display(),
        known.display()
    )]
    OtherName {
        /// The name that was given.
        name: PathBuf,
        /// The one by which the repository knows it.
        known: PathBuf,
    },
    /// A database whose state is elsewhere.
    #[error("the state of {} is in {}: one file is one repository", database.display(), state.display())]
    OtherState {
        /// The database's path.
        database: PathBuf,
        /// Its state directory.
        state: PathBuf,
    },
    /// A state directory that is another database's.
    #[error("{} is the state of {}, not of this database", state.display(), database.display())]
    ForeignState {
        /// The state directory.
        state: PathBuf,
        /// Whose it is.
        database: PathBuf,
    },
    /// The folder that is to hold the state holds something else.
    #[error("{} holds other files: it cannot be a state directory", .0.display())]
    ForeignFolder(PathBuf),
    /// Another process works on the repository.
    #[error("another ddcp process{} is working on {}", .pid.map(|pid| format!(" ({pid})")).unwrap_or_default(), path.display())]
    Locked {
        /// The database's path.
        path: PathBuf,
        /// The process, if known.
        pid: Option<u32>,
    },
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The user's database could not be used.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The state file could not be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file or folder could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon cannot take control requests at a port.
    #[error("control requests cannot be taken at {address}: {source}")]
    ControlPort {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// This side's node could not be used.
    #[error("the Veilid node: {0}")]
    Node(#[source] TransportError),
    /// A remote answered wrongly or not at all.
    #[error(transparent)]
    Remote(#[from] ClientError),
    /// The address of a remote leads back here.
    #[error("{0} is this repository itself, not another one")]
    OwnAddress(Address),
    /// A remote's database carries this database's site id.
    #[error("its database has this database's own site id ({0}): it is this database, or a copied file")]
    SameSite(SiteId),
    /// A remote's database carries the site id of another remote's.
    #[error(
        "its database has the site id of the remote `{other}` ({site}); nothing is fetched, so that the two are not mixed"
    )]
    SharedSite {
        /// The site id.
        site: SiteId,
        /// The remote that had it before.
        other: RemoteName,
    },
    /// A private repository does not know this one, whose address is given if it has one.
    #[error("not authorised: it answers only repositories that its owner has added as remotes")]
    NotAuthorised(Option<String>),
    /// A remote's packs are not what a pack should be.
    #[error("it sent a pack that cannot be used: {0}")]
    BadPack(String),
    /// A remote sent changes of this very site, which it is never asked for but by `verify`.
    #[error("it sent changes in this database's own name, which it was to leave out; they are not taken")]
    OwnChanges,
    /// A pack in the inbox is not what was stored there.
    #[error("a pack in the inbox is damaged ({0}); what was fetched from this remote and not merged has been dropped")]
    DamagedPack(String),
    /// A pack, of a remote or of the inbox, is too much for what memory there is; it may be a good one.
    #[error("a pack cannot be unpacked: there is not enough memory")]
    NoMemory,
    /// The path of a remote cannot be read as a repository's database.
    #[error("{}", remote_database(.0))]
    RemoteDatabase(#[source] DatabaseError),
    /// A remote's tables cannot be declared in this database, or may not.
    #[error("its tables cannot be declared here: {0}")]
    BadSchema(#[source] BadDefinition),
    /// The statements that would adopt the schema of the remote of this name are others than those that were shown.
    #[error("the tables of {0}, or those here, have changed since the statements were shown; nothing was run")]
    OtherStatements(String),
    /// What a clone would make is there already.
    #[error("{} exists already: a clone makes a new database", .0.display())]
    CloneTarget(PathBuf),
    /// Nothing was ever fetched from a remote, so there is nothing to merge.
    #[error("nothing has been fetched from `{0}` yet")]
    NothingFetched(String),
    /// A file is no bundle, or not a whole one.
    #[error("{file}: {source}")]
    Bundle {
        /// What it is called.
        file: String,
        /// What is wrong with it.
        source: BundleError,
    },
    /// A bundle of this database's own changes.
    #[error("{file} was made from this database itself")]
    OwnBundle {
        /// What it is called.
        file: String,
    },
    /// A bundle begins behind what is here of its source.
    #[error(
        "{file} begins with version {begins} of {source_name}, of which this repository has {}: what lies between would be missing",
        if *.known == 0 { "nothing yet".to_owned() } else { format!("only what came up to version {known}") }
    )]
    BundleGap {
        /// What it is called.
        file: String,
        /// The remote's name, or `site` and its id.
        source_name: String,
        /// The first version in it.
        begins: i64,
        /// The last version that is here.
        known: i64,
    },
    /// A bundle that cannot be made.
    #[error("{what}")]
    BundleRequest {
        /// Why.
        what: String,
        /// What to do next.
        hint: String,
    },
    /// A file that is there would be overwritten.
    #[error("{} exists already", .0.display())]
    FileExists(PathBuf),
    /// The user ended the work.
    #[error("stopped; nothing was written")]
    Stopped,
    /// A remote whose digest is of other tables.
    #[error("the tables of `{0}` are not those of this repository, so the two cannot be compared")]
    OtherTables(String),
    /// Metrics cannot be given where they are to be.
    #[error("metrics cannot be given at {address}: {source}")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// There is no address yet.
    #[error("{} has no address yet", .0.display())]
    NoAddress(PathBuf),
    /// The database was replaced in place by an older one while it was being worked on.
    #[error("the version of {} went back from {seen} to {version}", path.display())]
    WentBack {
        /// The database's path.
        path: PathBuf,
        /// The highest version that was seen.
        seen: i64,
        /// The version that it has now.
        version: i64,
    },
    /// The operation was cut off inside this program.
    #[error("the work was broken off ({0})")]
    Interrupted(String),
}

/// The kinds of failure that callers tell apart. Each has an exit status of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// Anything without a kind of its own.
    Failed,
    /// The words of the call or the settings are wrong.
    Usage,
    /// Some of several remotes failed.
    Partly,
    /// A remote could not be reached.
    Unreachable,
    /// There is no database or no repository.
    NoRepository,
    /// Another process is in the way.
    Locked,
    /// There is no space left on the disk of the database or of the state.
    DiskFull,
    /// What was to be checked was checked, and is not as it should be.
    Findings,
    /// A fault of the program.
    Internal,
}

impl fmt::Display for ErrorKind {
    /// As it is written in JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl ErrorKind {
    /// The exit status.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::DiskFull => 1,
            Self::Usage => 2,
            Self::Partly => 3,
            Self::Unreachable => 4,
            Self::Findings => 5,
            Self::NoRepository => 10,
            Self::Locked => 11,
            Self::Internal => 70,
        }
    }
}

impl Error {
    /// The kind of the failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            _ if self.is_disk_full() => ErrorKind::DiskFull,
            Self::NoRepository { .. }
            | Self::DatabaseMissing { .. }
            | Self::Unnamed { .. }
            | Self::OtherState { .. }
            | Self::DanglingLink { .. }
            | Self::Database(DatabaseError::Missing { .. }) => ErrorKind::NoRepository,
            Self::Locked { .. }
            | Self::Database(DatabaseError::Locked { .. })
            | Self::Node(TransportError::InUse(_)) => ErrorKind::Locked,
            Self::Config(ConfigError::Io { .. }) => ErrorKind::Failed,
            Self::Config(_)
            | Self::ForeignFolder(_)
            | Self::OtherName { .. }
            | Self::ForeignState { .. }
            | Self::OwnAddress(_)
            | Self::BundleRequest { .. }
            | Self::FileExists(_)
            | Self::CloneTarget(_) => ErrorKind::Usage,
            Self::Remote(ClientError::Transport(error)) => transport_kind(error),
            Self::Node(TransportError::Offline(_))
            | Self::RemoteDatabase(_)
            | Self::Remote(ClientError::Busy(_) | ClientError::TooSlow { .. }) => ErrorKind::Unreachable,
            Self::Interrupted(_) => ErrorKind::Internal,
            _ => ErrorKind::Failed,
        }
    }

    /// Whether it failed for want of space on a disk.
    fn is_disk_full(&self) -> bool {
        match self {
            Self::Database(DatabaseError::DiskFull { .. }) => true,
            Self::Database(DatabaseError::Keep { source, .. }) => {
                source.downcast_ref().is_some_and(StateError::is_disk_full)
            }
            Self::State(error) => error.is_disk_full(),
            Self::Io { source, .. } | Self::Config(ConfigError::Io { source, .. }) => disk::is_full_error(source),
            _ => false,
        }
    }

    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoRepository { path, .. } => format!("`ddcp --db {} init` makes it one", path.display()),
            Self::Denied(denied)
            | Self::Database(DatabaseError::Denied(denied))
            | Self::RemoteDatabase(DatabaseError::Denied(denied)) => denied.advice(),
            Self::NotItself { .. } => "copy the database and its state directory to where they can be written".into(),
            Self::DatabaseMissing { state, .. } => format!(
                "mount its disk, or restore the file from a backup; to begin anew under another address, remove {}",
                state.display()
            ),
            Self::Unnamed { others, .. } => {
                format!("name the one you mean: `{} …`", program(others.first().map(PathBuf::as_path), None))
            }
            Self::DanglingLink { target, .. } => format!(
                "mount its disk, or restore the file; `{} init` makes a new database there",
                program(Some(target), None)
            ),
            Self::OtherName { known, .. } => {
                format!("have all programs use {}, and end those that use the other name", known.display())
            }
            Self::OtherState { database, state } => format!(
                "`{} …` uses it; to have another one, remove that",
                program(Some(database), Some(state))
            ),
            Self::ForeignState { .. } => "name another state directory, or none".into(),
            Self::OwnAddress(_) => {
                "give the remote the address of another repository: what `ddcp address` prints there, or its path".into()
            }
            Self::WentBack { .. } => "repeat it: the database is looked at again".into(),
            Self::ForeignFolder(_) => "name a folder that is empty or does not exist".into(),
            Self::Locked { .. } => "wait for it to end, or stop it".into(),
            Self::Config(error) => return config_hint(error),
            Self::Database(DatabaseError::Keep { source, .. }) => {
                return source.downcast_ref().and_then(state_hint).map(str::to_owned);
            }
            Self::Database(DatabaseError::Replaced { .. }) => {
                "put the file back that was there, or restart `ddcp serve` to take up the new one; a -wal file beside it \
                 that is not its own must be removed before"
                    .into()
            }
            Self::Database(DatabaseError::NoLibrary { name, .. }) => format!(
                "`cargo build --release -p crsqlite-loadable` in the sources of this version makes target/release/{name}; \
                 copy it beside the program, or into ../lib"
            ),
            Self::Node(TransportError::InUse(_)) => "stop the other process first".into(),
            Self::Node(TransportError::Offline(_)) => {
                "check this machine's network; `[network]` in config.toml or DDCP_NETWORK sets a private network".into()
            }
            Self::Remote(ClientError::Transport(error)) => transport_hint(error)?.into(),
            Self::Remote(ClientError::Refused(_) | ClientError::Protocol(_)) => {
                "check that both sides run the same version of ddcp (`ddcp --version`)".into()
            }
            Self::Remote(ClientError::NotKnown) => {
                "ask its owner to update ddcp; tables can be made by hand (`ddcp shell`), and what waits for them is then \
                 merged"
                    .into()
            }
            Self::OtherStatements(remote) => format!("`ddcp schema adopt {remote}` shows what it would run now"),
            Self::BadSchema(_) | Self::Remote(ClientError::Definitions(_)) => {
                "check that the peer is who you think; what you trust of its tables can be made by hand (`ddcp shell`), and \
                 what waits for them is then merged"
                    .into()
            }
            Self::CloneTarget(_) => {
                "name another file (`ddcp clone ADDRESS FILE`); to a database that is there, `ddcp remote add NAME ADDRESS` \
                 adds a remote, and `ddcp schema adopt NAME` its tables"
                    .into()
            }
            Self::Remote(ClientError::Busy(_) | ClientError::PacksVanish) => "try again later".into(),
            Self::Remote(ClientError::TooSlow { .. }) => "try again later: it goes on where it stopped".into(),
            Self::Remote(ClientError::NoRoom { .. }) => {
                "`ddcp merge` merges what has been fetched, then fetch again: it goes on where it stopped; \
                 `limits.inbox_bytes` of `ddcp config` is the limit"
                    .into()
            }
            Self::SameSite(_) => {
                "give the remote the address of another repository; a database is shared by `ddcp pull`, not by copying \
                 its file"
                    .into()
            }
            Self::SharedSite { other, .. } => format!(
                "if both are the same repository, remove one of them (`ddcp remote remove {other}`); if not, one is a \
                 copied file or claims to be what it is not"
            ),
            Self::NotAuthorised(Some(address)) => {
                format!("ask its owner to run `ddcp remote add NAME {address}`, which is this repository's address")
            }
            Self::NotAuthorised(None) => "ask its owner to add this repository as a remote (`ddcp address`)".into(),
            Self::RemoteDatabase(DatabaseError::NoRepository { path }) => {
                format!("`ddcp --db {} init` makes it one", path.display())
            }
            Self::RemoteDatabase(DatabaseError::NeedsWriting { .. }) => return None,
            Self::RemoteDatabase(_) => {
                "check the path with `ddcp remote list`; `ddcp remote set-address` changes it".into()
            }
            Self::State(error) => state_hint(error)?.into(),
            Self::Io { source, .. } => io_hint(source)?.into(),
            Self::DamagedPack(_) => "`ddcp pull` fetches it again; check the disk".into(),
            Self::NoMemory => {
                "nothing is lost: repeat the command when more memory is free; `limits.unpacked_bytes` of `ddcp config` is \
                 how large a pack may become"
                    .into()
            }
            Self::OwnChanges => {
                "check that the peer is who you think; `ddcp verify` also takes back what this database has written and lost"
                    .into()
            }
            Self::BadPack(_) => {
                "check that both sides run the same version of ddcp (`ddcp --version`), and that the peer is who you think".into()
            }
            Self::ControlPort { .. } => {
                "choose another port, or 0 for any that is free: `--control` of `ddcp serve`, or `control` in config.toml".into()
            }
            Self::NothingFetched(name) => format!("`ddcp fetch {name}` first"),
            Self::Bundle { source, .. } => bundle_hint(source)?.into(),
            Self::OwnBundle { .. } => "take it to another repository, and fetch it there".into(),
            Self::BundleGap { known: 0, .. } => {
                "have a whole one made there: `ddcp bundle create FILE`, without `--since`".into()
            }
            Self::BundleGap { known, .. } => {
                format!("have one made there that begins earlier: `ddcp bundle create FILE --since {known}`")
            }
            Self::BundleRequest { hint, .. } => hint.clone(),
            Self::FileExists(_) => "`--force` overwrites it".into(),
            Self::Metrics { .. } => "name another port with `--metrics`, or `metrics` in config.toml".into(),
            Self::OtherTables(name) => format!("`ddcp schema diff {name}` shows what differs"),
            Self::NoAddress(_) => "`ddcp serve` gives it one".into(),
            _ => return None,
        })
    }

    /// The failure as it is printed and sent over the control socket.
    #[must_use]
    pub fn report(&self) -> Failure {
        Failure { kind: self.kind(), message: self.to_string(), hint: self.hint() }
    }
}

/// A failure in words, for people and for the control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// What happened, to what.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Failure {
    /// The same failure, said of `whom`.
    #[must_use]
    pub fn of(mut self, whom: &str) -> Self {
        self.message = format!("{whom}: {}", self.message);
        self
    }
}

fn transport_kind(error: &TransportError) -> ErrorKind {
    match error {
        TransportError::NotFound
        | TransportError::Unreadable
        | TransportError::Replayed
        | TransportError::Unreachable(_)
        | TransportError::Offline(_) => ErrorKind::Unreachable,
        TransportError::InUse(_) => ErrorKind::Locked,
        _ => ErrorKind::Failed,
    }
}

fn transport_hint(error: &TransportError) -> Option<&'static str> {
    Some(match error {
        TransportError::NotFound | TransportError::Unreadable => {
            "compare the address with what `ddcp address` prints at the other side; it must have run `ddcp serve` once"
        }
        TransportError::Replayed => "try again in a minute; if it stays so, ask the owner to restart `ddcp serve`",
        TransportError::Unreachable(_) => "check that `ddcp serve` runs at the other side, then try again",
        TransportError::Offline(_) => "check this machine's network, then try again",
        _ => return None,
    })
}

/// What is wrong with the database of a remote, without the advice that is for one's own.
fn remote_database(error: &DatabaseError) -> String {
    match error {
        DatabaseError::Missing { path } => format!("there is no database at {}", path.display()),
        DatabaseError::NotADatabase { path } => format!("{} is not a SQLite database", path.display()),
        DatabaseError::NoRepository { path } => format!("{} is no repository's database", path.display()),
        DatabaseError::Corrupt { path, detail } => {
            format!("its database {} is corrupt or cannot be read ({detail})", path.display())
        }
        other => other.to_string(),
    }
}

const FREE_SPACE: &str = "free some space and repeat; nothing is lost";
const CHECK_DISK: &str = "check the disk and the space left on it, and repeat; nothing is lost";

fn io_hint(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error().map(Errno::from_raw) {
        _ if disk::is_full_error(error) => Some(FREE_SPACE),
        Some(Errno::EIO) => Some(CHECK_DISK),
        Some(Errno::EACCES | Errno::EPERM) => {
            Some("run the command as the user whom it belongs to, or let this user (`id -un`) read and write it")
        }
        _ => None,
    }
}

fn state_hint(error: &StateError) -> Option<&'static str> {
    if error.is_disk_full() {
        return Some(FREE_SPACE);
    }
    if error.is_io() {
        return Some(CHECK_DISK);
    }
    Some(match error.sqlite().sqlite_error_code() {
        Some(ErrorCode::ReadOnly) => "allow this user to write the file and its folder, and check the disk",
        _ if error.is_damage() => {
            "repeat the command: the file is then put aside and made anew, with what can be read of it, and the rest is \
             fetched again; check the disk"
        }
        _ => return None,
    })
}

fn bundle_hint(error: &BundleError) -> Option<&'static str> {
    Some(match error {
        BundleError::NotABundle => "`ddcp bundle create FILE` makes one",
        BundleError::Version(_) => "install a newer ddcp",
        BundleError::Io(_) => return None,
        BundleError::TooLarge { .. } | BundleError::Pack { source: PackError::TooLarge { .. }, .. } => {
            "`limits.pack_bytes` and `limits.unpacked_bytes` of `ddcp config` bound its packs; have it made anew if that is \
             more than they ever should be"
        }
        _ => "copy it once more; if that does not help, have it made anew with `ddcp bundle create`",
    })
}

fn config_hint(error: &ConfigError) -> Option<String> {
    Some(match error {
        ConfigError::Io { source, .. } => return io_hint(source).map(str::to_owned),
        ConfigError::Invalid { path, .. } => {
            format!("mend {} in an editor; docs/config.md lists its keys", path.display())
        }
        ConfigError::NoSetting { .. } => "`ddcp config get` shows the settings".into(),
        ConfigError::NoRemote(_) => "`ddcp remote list` shows the remotes".into(),
        ConfigError::NameTaken(name) => format!("`ddcp remote set-address {name} ADDRESS` changes its address"),
        _ => return None,
    })
}
