//! Files and folders that only their owner may read.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
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
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("new-{}-{number}", std::process::id()));
    let written = write_synced(&temporary, content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
        return written;
    }
    sync_folder(path)
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Counts new files, so that no two of this process share a name while they are made.
static MADE: AtomicU64 = AtomicU64::new(0);

/// A file in the making: written beside its place and put there whole, or not at all.
pub(crate) struct NewFile {
    path: PathBuf,
    temporary: PathBuf,
    replace: bool,
    file: BufWriter<File>,
}

impl NewFile {
    /// Begins the file that is to be at `path`; one that is there is only replaced if `replace` says so.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], and others of the operating system.
    pub(crate) fn create(path: &Path, replace: bool) -> io::Result<Self> {
        check_place(path, replace)?;
        let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
        let mut name = OsString::from(".");
        name.push(path.file_name().ok_or_else(no_name)?);
        name.push(format!(".partial-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed)));
        let temporary = path.with_file_name(name);
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        Ok(Self { path: path.to_owned(), temporary, replace, file: BufWriter::new(file) })
    }

    /// Puts the file in its place, durably.
    ///
    /// # Errors
    /// As [`NewFile::create`]; the place is then as it was.
    pub(crate) fn commit(mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        check_place(&self.path, self.replace)?;
        fs::rename(&self.temporary, &self.path)?;
        sync_folder(&self.path)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Not there any more once it has been put in its place.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Whether a file may be put at `path`. What is no file, such as a device, is never replaced.
fn check_place(path: &Path, replace: bool) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if replace && metadata.is_file() => Ok(()),
        Ok(_) if replace => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes the name of the file at `path` durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?.sync_all(),
        None => Ok(()),
    }
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

    #[test]
    fn a_new_file_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        let names = || fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        let mut dropped = NewFile::create(&path, false).unwrap();
        dropped.write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(dropped);
        assert!(names().is_empty());
        let mut first = NewFile::create(&path, false).unwrap();
        let mut late = NewFile::create(&dir.path().join("./new"), false).unwrap();
        first.write_all(b"whole").unwrap();
        late.write_all(b"late").unwrap();
        first.commit().unwrap();
        assert_eq!(late.commit().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(NewFile::create(&path, false).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(names(), ["new"]);
        let mut second = NewFile::create(&path, true).unwrap();
        second.write_all(b"other").unwrap();
        second.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"other");
        assert!(NewFile::create(dir.path(), true).is_err(), "a folder is not replaced");
    }
}
