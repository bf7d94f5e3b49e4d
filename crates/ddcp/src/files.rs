//! Files and folders that only their owner may read.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

/// Creates `path` and its parents with mode 0700, or narrows an existing folder `path` to it.
///
/// # Errors
/// Those of the operating system.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Opens `path` for reading and writing, creating it with mode 0600 if it is missing.
///
/// # Errors
/// Those of the operating system.
pub(crate) fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// A new file in `folder` that has no name: nobody else can open it, and it is gone when it is closed.
///
/// # Errors
/// Those of the operating system.
pub(crate) fn nameless(folder: &Path) -> io::Result<File> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let name = format!("nameless-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let path = folder.join(name);
    // One of a process of the same number that was killed in the line between.
    let _ = fs::remove_file(&path);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Replaces the content of `path` at once: after a crash it has the old or the new content, never a part.
/// The file gets mode 0600.
///
/// # Errors
/// Those of the operating system; the old content then stays.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let written = write_synced(&temporary, content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
        return written;
    }
    match path.parent() {
        Some(parent) => File::open(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?.sync_all(),
        None => Ok(()),
    }
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_created_is_the_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join(".ddcp/a.db");
        create_private_dir(&state).unwrap();
        assert_eq!((mode(&state), mode(&dir.path().join(".ddcp"))), (0o700, 0o700));
        let file = state.join("config.toml");
        replace(&file, b"one").unwrap();
        replace(&file, b"two").unwrap();
        assert_eq!((fs::read(&file).unwrap(), mode(&file)), (b"two".to_vec(), 0o600));
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
        open_private(&state.join("lock")).unwrap();
        assert_eq!(mode(&state.join("lock")), 0o600);
    }

    #[test]
    fn open_folders_are_narrowed() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        create_private_dir(dir.path()).unwrap();
        assert_eq!(mode(dir.path()), 0o700);
    }
}
