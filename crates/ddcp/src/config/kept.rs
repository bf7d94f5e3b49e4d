//! That a repository is private is kept in a second place: without it, settings that are lost would open it.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use super::Access;
use crate::files;

/// Why a repository is private though its settings do not say whom it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptPrivate {
    /// It was private, and its settings do not say that it is no more.
    WasPrivate,
    /// The settings are lost: their file is missing or empty, which `ddcp` never leaves so.
    SettingsLost,
}

impl fmt::Display for KeptPrivate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Self::WasPrivate => "config.toml no longer says whom this repository answers; it was private and stays so",
            Self::SettingsLost => "config.toml is missing or empty; only configured remotes are answered",
        };
        write!(f, "{why} until `ddcp config set access private`, or `address`, says which")
    }
}

/// Whom the repository answers whose settings are the file `config` with the content `text`, of which `said` is what they
/// say about it.
pub(super) fn effective(config: &Path, text: Option<&str>, said: Option<Access>) -> (Access, Option<KeptPrivate>) {
    let closed = |why| (Access::Private, Some(why));
    match said {
        Some(access) => (access, None),
        None if is_marked(config) => closed(KeptPrivate::WasPrivate),
        None if text.is_none_or(|text| text.trim().is_empty()) => closed(KeptPrivate::SettingsLost),
        None => (Access::Address, None),
    }
}

/// The file that says, by being there, that the repository is private. Nothing is read of it, so damage opens nothing.
fn mark(config: &Path) -> PathBuf {
    config.with_extension("private")
}

/// Whether the mark is there, or it cannot be found out that it is not.
fn is_marked(config: &Path) -> bool {
    !matches!(mark(config).symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Keeps in mind that the repository with the settings `config` is private.
///
/// # Errors
/// Those of the operating system.
pub(crate) fn keep_private(config: &Path) -> io::Result<()> {
    files::create_private(&mark(config))
}

/// Takes [`keep_private`] back.
///
/// # Errors
/// Those of the operating system.
pub(super) fn forget_private(config: &Path) -> io::Result<()> {
    match fs::remove_file(mark(config)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => files::sync_folder(config),
    }
}
