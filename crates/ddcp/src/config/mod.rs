//! Settings of a repository: `config.toml`, for people to read and edit.
//!
//! ```toml
//! access = "private"         # whom `serve` answers: "address" (whoever has it) or "private" (configured remotes)
//!
//! [remotes.alice]
//! address = "VLD0:…"
//! sync = "auto"              # what `serve` does by itself: "auto", "fetch" or "manual"
//!
//! [limits]                   # what others may cost
//! requests_per_second = 5000
//!
//! [network]                  # only for a private Veilid network
//! key = "…"
//! bootstrap = ["0|0|VLD0:…|44.0.0.1|T5150,U5150"]
//! ```
//!
//! Commands change single entries and keep the comments and the order of the rest.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml_edit::{DocumentMut, Item, Table, value};

use crate::{
    files,
    transport::{Address, AddressError},
};

mod access;
mod control_address;
mod kept;
mod limits;
mod name;
mod network;
mod settings;
mod sync_mode;

pub use access::{Access, AccessError};
pub use control_address::{ControlAddress, ControlAddressError};
pub use kept::KeptPrivate;
pub(crate) use kept::keep_private;
pub use limits::Limits;
pub use name::{NameError, RemoteName};
pub use network::NetworkConfig;
pub use settings::{set_setting, settings};
pub use sync_mode::{SyncMode, SyncModeError};

/// The settings of one repository, as read from its `config.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Whom the daemon answers.
    pub access: Access,
    /// Why only remotes are answered, where the settings do not say so.
    pub kept_private: Option<KeptPrivate>,
    /// What others may cost.
    pub limits: Limits,
    /// The configured remotes, by name.
    pub remotes: BTreeMap<RemoteName, Remote>,
    /// Where the daemon gives its metrics; nowhere if absent.
    pub metrics: Option<SocketAddr>,
    /// The private network that the node joins; the public one if absent.
    pub network: Option<NetworkConfig>,
    /// Where, besides its socket, the daemon takes control requests.
    pub control: Option<ControlAddress>,
    /// Whether the node asks the router, by `UPnP`, to let others in.
    pub upnp: bool,
}

/// A repository to fetch from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Where it is.
    pub address: Address,
    /// What the daemon does about it by itself.
    pub sync: SyncMode,
}

/// Why settings could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is not valid TOML, or has a key or value that is not known.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column where they are known.
        reason: String,
    },
    /// The file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such setting.
    #[error("there is no setting `{key}`; there are {keys}")]
    NoSetting {
        /// The word that was given.
        key: String,
        /// Those that there are.
        keys: String,
    },
    /// A setting cannot have this value.
    #[error("`{value}` is no value for `{key}`: {reason}")]
    Value {
        /// The setting.
        key: String,
        /// The value that was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such remote.
    #[error("there is no remote named `{0}`")]
    NoRemote(String),
    /// The name is in use.
    #[error("a remote named `{0}` exists already")]
    NameTaken(RemoteName),
    /// The name is not allowed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The address is not one.
    #[error(transparent)]
    Address(#[from] AddressError),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileShape {
    access: Option<Access>,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    remotes: BTreeMap<String, RemoteShape>,
    metrics: Option<SocketAddr>,
    network: Option<NetworkConfig>,
    control: Option<ControlAddress>,
    #[serde(default)]
    upnp: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoteShape {
    address: String,
    #[serde(default)]
    sync: SyncMode,
}

impl Config {
    /// Reads the settings in `path`. A missing file has no settings, and then nobody but remotes is answered.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] naming the file and the place, [`ConfigError::Io`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let parsed = Self::parse(text.as_deref().unwrap_or_default());
        let (config, said) = parsed.map_err(|reason| ConfigError::Invalid { path: path.to_owned(), reason })?;
        let (access, kept_private) = kept::effective(path, text.as_deref(), said);
        Ok(Self { access, kept_private, ..config })
    }

    /// The settings in `text` and whom they say is answered, or what is wrong with it.
    fn parse(text: &str) -> Result<(Self, Option<Access>), String> {
        let mut shape: FileShape = toml::from_str(text).map_err(|error| one_line(&error, text))?;
        let remotes = std::mem::take(&mut shape.remotes)
            .into_iter()
            .map(|(name, remote)| {
                let address = remote.address.parse().map_err(|error| format!("remote `{name}`: {error}"))?;
                let name = name.parse().map_err(|error: NameError| error.to_string())?;
                Ok((name, Remote { address, sync: remote.sync }))
            })
            .collect::<Result<_, String>>()?;
        let FileShape { access: said, limits, metrics, network, control, upnp, .. } = shape;
        let access = said.unwrap_or_default();
        Ok((Self { access, kept_private: None, limits, remotes, metrics, network, control, upnp }, said))
    }

    /// The remote `name`.
    ///
    /// # Errors
    /// [`ConfigError::NoRemote`].
    pub fn remote(&self, name: &str) -> Result<(&RemoteName, &Remote), ConfigError> {
        self.remotes.iter().find(|(known, _)| known.as_str() == name).ok_or_else(|| ConfigError::NoRemote(name.into()))
    }
}

/// Reads the network settings in the file that `DDCP_NETWORK` names.
///
/// # Errors
/// As [`Config::load`], also where the file is missing.
pub fn load_network(path: &Path) -> Result<NetworkConfig, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    toml::from_str(&text)
        .map_err(|error| ConfigError::Invalid { path: path.to_owned(), reason: one_line(&error, &text) })
}

/// Adds a remote to the settings in `path`.
///
/// # Errors
/// [`ConfigError::NameTaken`], and those of [`Config::load`].
pub fn add_remote(path: &Path, name: &RemoteName, added: &Remote) -> Result<(), ConfigError> {
    edit(path, |config, remotes| {
        if config.remotes.contains_key(name) {
            return Err(ConfigError::NameTaken(name.clone()));
        }
        let mut remote = Table::new();
        remote["address"] = value(added.address.to_string());
        if added.sync != SyncMode::default() {
            remote["sync"] = value(added.sync.to_string());
        }
        remotes.insert(name.as_str(), Item::Table(remote));
        Ok(())
    })
}

/// Removes a remote from the settings in `path`.
///
/// # Errors
/// [`ConfigError::NoRemote`], and those of [`Config::load`].
pub fn remove_remote(path: &Path, name: &str) -> Result<(), ConfigError> {
    edit(path, |config, remotes| {
        config.remote(name)?;
        remotes.remove(name);
        Ok(())
    })
}

/// Renames a remote in the settings in `path`.
///
/// # Errors
/// [`ConfigError::NoRemote`], [`ConfigError::NameTaken`], and those of [`Config::load`].
pub fn rename_remote(path: &Path, old: &str, new: &RemoteName) -> Result<(), ConfigError> {
    edit(path, |config, remotes| {
        config.remote(old)?;
        if config.remotes.contains_key(new) {
            return Err(ConfigError::NameTaken(new.clone()));
        }
        let item = remotes.remove(old).ok_or_else(|| ConfigError::NoRemote(old.into()))?;
        remotes.insert(new.as_str(), item);
        Ok(())
    })
}

/// Gives a remote another address in the settings in `path`.
///
/// # Errors
/// [`ConfigError::NoRemote`], and those of [`Config::load`].
pub fn set_remote_address(path: &Path, name: &str, address: &Address) -> Result<(), ConfigError> {
    edit(path, |config, remotes| {
        config.remote(name)?;
        remotes[name]["address"] = value(address.to_string());
        Ok(())
    })
}

/// Changes what the daemon does about a remote by itself, in the settings in `path`.
///
/// # Errors
/// [`ConfigError::NoRemote`], and those of [`Config::load`].
pub fn set_remote_sync(path: &Path, name: &str, sync: SyncMode) -> Result<(), ConfigError> {
    edit(path, |config, remotes| {
        config.remote(name)?;
        remotes[name]["sync"] = value(sync.to_string());
        Ok(())
    })
}

/// Runs `change` on the `[remotes]` table of a valid file and replaces the file whole.
fn edit(path: &Path, change: impl FnOnce(&Config, &mut Table) -> Result<(), ConfigError>) -> Result<(), ConfigError> {
    edit_document(path, |config, document| {
        let remotes = document.entry("remotes").or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        });
        let remotes = remotes.as_table_mut().ok_or_else(|| ConfigError::Invalid {
            path: path.to_owned(),
            reason: "`remotes` is written inline; write it as [remotes.NAME] tables".into(),
        })?;
        change(config, remotes)
    })
}

/// Runs `change` on a valid file and replaces the file whole.
fn edit_document(
    path: &Path,
    change: impl FnOnce(&Config, &mut DocumentMut) -> Result<(), ConfigError>,
) -> Result<(), ConfigError> {
    let io = |source| ConfigError::Io { path: path.to_owned(), source };
    // One at a time: of two that read the same file, the second to write would undo the first.
    let lock = files::open_private(&path.with_extension("lock")).map_err(io)?;
    lock.lock().map_err(io)?;
    let config = Config::load(path)?;
    let text = read(path)?.unwrap_or_default();
    let invalid = |reason: String| ConfigError::Invalid { path: path.to_owned(), reason };
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| invalid(error.to_string()))?;
    change(&config, &mut document)?;
    // Settings that are lost must not open it by being begun anew.
    let text = document.to_string();
    let (_, said) = Config::parse(&text).map_err(invalid)?;
    if said.unwrap_or(config.access) == Access::Private {
        keep_private(path).map_err(io)?;
    }
    files::replace(path, text.as_bytes()).map_err(io)?;
    match said {
        Some(Access::Address) => kept::forget_private(path).map_err(io),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<String>, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Io { path: path.to_owned(), source }),
    }
}

/// The error without the quoted source lines, with its place as `line N`.
fn one_line(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().trim_end();
    match error.span() {
        Some(span) => {
            let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
            format!("line {line}: {message}")
        }
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn name(text: &str) -> RemoteName {
        text.parse().unwrap()
    }

    fn at(path: &str) -> Remote {
        Remote { address: Address::Path(path.into()), sync: SyncMode::Manual }
    }

    #[test]
    fn a_missing_file_means_no_settings_and_opens_nothing() {
        let expected =
            Config { access: Access::Private, kept_private: Some(KeptPrivate::SettingsLost), ..Config::default() };
        assert_eq!(Config::load(Path::new("/nonexistent/config.toml")).unwrap(), expected);
    }

    #[test]
    fn what_was_private_stays_so_until_the_settings_say_otherwise() {
        let access = |path: &Path| Config::load(path).map(|config| (config.access, config.kept_private)).unwrap();
        let kept = (Access::Private, Some(KeptPrivate::WasPrivate));
        let (_dir, path) = file("# mine\n");
        assert_eq!(access(&path), (Access::Address, None));
        set_setting(&path, "access", "private").unwrap();
        assert_eq!(access(&path), (Access::Private, None));
        for lost in ["", " \n", "# mine\n", "[limits]\ncallers = 7\n"] {
            fs::write(&path, lost).unwrap();
            assert_eq!(access(&path), kept, "{lost:?}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(access(&path), kept);
        // However the mark is damaged, it is one.
        fs::write(path.with_extension("private"), [0xff; 100]).unwrap();
        assert_eq!(access(&path), kept);
        fs::remove_file(path.with_extension("private")).unwrap();
        std::os::unix::fs::symlink("nowhere", path.with_extension("private")).unwrap();
        assert_eq!(access(&path), kept);
        set_setting(&path, "access", "address").unwrap();
        assert_eq!(access(&path), (Access::Address, None));
        fs::write(&path, "# mine\n").unwrap();
        assert_eq!(access(&path), (Access::Address, None), "the owner has opened it");
    }

    #[test]
    fn settings_that_are_begun_anew_open_nothing() {
        let (_dir, path) = file("");
        assert_eq!(Config::load(&path).unwrap().kept_private, Some(KeptPrivate::SettingsLost));
        add_remote(&path, &name("bob"), &at("bob.db")).unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!((config.access, config.kept_private), (Access::Private, Some(KeptPrivate::WasPrivate)));
    }

    #[test]
    fn unknown_keys_are_named_with_their_line() {
        let (_dir, path) = file("[remotes.a]\naddress = \"a.db\"\ncolour = 3\n");
        let message = Config::load(&path).unwrap_err().to_string();
        assert!(message.contains("config.toml: line 3: unknown field `colour`"), "{message}");
    }

    #[test]
    fn limits_are_read_and_wrong_ones_named() {
        let (_dir, path) = file("access = \"private\"\n[limits]\ncallers = 7\n");
        let config = Config::load(&path).unwrap();
        assert_eq!((config.access, config.limits.callers.get()), (Access::Private, 7));
        assert_eq!(config.limits.pack_bytes, Limits::default().pack_bytes);
        for (text, reason) in [
            ("[limits]\ncallers = 0\n", "line 2: invalid value: integer `0`, expected a nonzero u32"),
            ("[limits]\ncaller = 1\n", "line 2: unknown field `caller`"),
            ("access = \"all\"\n", "line 1: unknown variant `all`, expected `address` or `private`"),
        ] {
            let (_dir, path) = file(text);
            let message = Config::load(&path).unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
    }

    #[test]
    fn bad_names_and_addresses_are_refused() {
        let (_dir, path) = file("[remotes.\"a b\"]\naddress = \"a.db\"\n");
        assert!(Config::load(&path).unwrap_err().to_string().contains("`a b`"));
        let (_dir, path) = file("[remotes.a]\naddress = \"VLD0:x\"\n");
        assert!(Config::load(&path).unwrap_err().to_string().contains("remote `a`: `VLD0:x` is no address"));
    }

    #[test]
    fn edits_keep_comments_and_order() {
        let (_dir, path) = file("# mine\n[network] # private\nkey = \"k\"\n");
        add_remote(&path, &name("bob"), &at("bob.db")).unwrap();
        add_remote(&path, &name("al"), &at("al.db")).unwrap();
        rename_remote(&path, "bob", &name("rob")).unwrap();
        set_remote_address(&path, "rob", &Address::Path("rob.db".into())).unwrap();
        remove_remote(&path, "al").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "# mine\n[network] # private\nkey = \"k\"\n\n[remotes.rob]\naddress = \"rob.db\"\n");
    }

    #[test]
    fn whether_a_remote_is_followed_is_a_setting_of_its_own() {
        let (_dir, path) = file("[remotes.old]\naddress = \"old.db\"\n");
        add_remote(&path, &name("bob"), &Remote { sync: SyncMode::Auto, ..at("bob.db") }).unwrap();
        set_remote_sync(&path, "old", SyncMode::Fetch).unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!(
            (config.remote("bob").unwrap().1.sync, config.remote("old").unwrap().1.sync),
            (SyncMode::Auto, SyncMode::Fetch)
        );
        set_remote_sync(&path, "bob", SyncMode::Manual).unwrap();
        assert_eq!(Config::load(&path).unwrap().remote("bob").unwrap().1, &at("bob.db"));
        assert!(matches!(set_remote_sync(&path, "eve", SyncMode::Auto), Err(ConfigError::NoRemote(_))));
        let (_dir, path) = file("[remotes.a]\naddress = \"a.db\"\nsync = \"often\"\n");
        let message = Config::load(&path).unwrap_err().to_string();
        assert!(message.contains("line 3: unknown variant `often`"), "{message}");
    }

    #[test]
    fn a_name_is_given_once() {
        let (_dir, path) = file("");
        add_remote(&path, &name("bob"), &at("bob.db")).unwrap();
        let twice = add_remote(&path, &name("bob"), &at("bob.db"));
        assert!(matches!(twice, Err(ConfigError::NameTaken(_))));
        assert!(matches!(remove_remote(&path, "eve"), Err(ConfigError::NoRemote(_))));
        add_remote(&path, &name("eve"), &at("eve.db")).unwrap();
        assert!(matches!(rename_remote(&path, "eve", &name("bob")), Err(ConfigError::NameTaken(_))));
    }
}
