//! Being told when files change, so that nothing has to look at them over and over.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::unix::AsyncFd,
    time::{sleep, timeout},
};

/// Where the system tells of changes: how often to look all the same. Network file systems tell nothing of what other
/// machines do.
const NET: Duration = Duration::from_secs(5);
/// Where it does not: how often to look.
const POLL: Duration = Duration::from_millis(500);

/// Tells when some files of one folder may have changed. Reading them is no change.
pub(crate) struct FileWatch {
    folder: PathBuf,
    names: Vec<OsString>,
    /// `None` where the folder cannot be watched; that is tried again.
    told: Option<AsyncFd<OwnedFd>>,
}

impl FileWatch {
    /// Watches the SQLite database at `path` and its logs.
    pub(crate) fn database(path: &Path) -> Self {
        Self::new(path, &["", "-wal", "-journal"])
    }

    /// Watches the file at `path`.
    pub(crate) fn file(path: &Path) -> Self {
        Self::new(path, &[""])
    }

    fn new(path: &Path, endings: &[&str]) -> Self {
        // SQLite puts the logs beside the file that a link leads to.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name = |ending: &&str| {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(ending);
            name
        };
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        let told = listen(&folder).ok();
        Self { names: endings.iter().map(name).collect(), told, folder }
    }

    /// Waits until it is time to look: at once when a file was written, made, renamed or removed since the last call,
    /// and now and then in any case. Whether it was told.
    pub(crate) async fn changed(&mut self) -> bool {
        let Some(fd) = &self.told else {
            sleep(POLL).await;
            self.told = listen(&self.folder).ok();
            return false;
        };
        match timeout(NET, told(fd, &self.names)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!(folder = %self.folder.display(), %error, "the folder is not watched any more");
                self.told = None;
                true
            }
            Err(_) => false,
        }
    }
}

/// Waits for a change of one of `names`.
async fn told(fd: &AsyncFd<OwnedFd>, names: &[OsString]) -> io::Result<()> {
    loop {
        let mut ready = fd.readable().await?;
        if let Ok(read) = ready.try_io(|fd| read_events(fd.get_ref(), |name| names.iter().any(|known| known == name))) {
            return read;
        }
    }
}

#[cfg(target_os = "linux")]
fn listen(folder: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    let changes = WatchFlags::MODIFY
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF;
    let fd = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    add_watch(&fd, folder, changes | WatchFlags::ONLYDIR)?;
    watch_readiness(fd)
}

#[cfg(target_os = "linux")]
#[expect(deprecated, reason = "an `OwnedFd` is one descriptor for all its life; what replaces `new` is `unsafe`")]
fn watch_readiness(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

/// Reads all that the system has to tell. [`io::ErrorKind::WouldBlock`] if none of it is about a file of interest.
#[cfg(target_os = "linux")]
fn read_events(fd: &OwnedFd, is_of_interest: impl Fn(&OsStr) -> bool) -> io::Result<()> {
    use std::{mem::MaybeUninit, os::unix::ffi::OsStrExt};

    use rustix::{
        fs::inotify::{ReadFlags, Reader},
        io::Errno,
    };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(fd, &mut buffer);
    let mut found = false;
    loop {
        match events.next() {
            // The folder was removed or renamed: another one may be there.
            Ok(event) if event.events().intersects(ReadFlags::IGNORED | ReadFlags::MOVE_SELF) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            // Without a name: it had more to tell than it keeps.
            Ok(event) => {
                found |= event.file_name().is_none_or(|name| is_of_interest(OsStr::from_bytes(name.to_bytes())));
            }
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if found => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn listen(_: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_os = "linux"))]
fn read_events(_: &OwnedFd, _: impl Fn(&OsStr) -> bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use rusqlite::Connection;

    /// Shorter than [`NET`], by far: what comes within it was told.
    const SOON: Duration = Duration::from_secs(2);

    async fn is_told(watch: &mut FileWatch) -> bool {
        timeout(SOON, watch.changed()).await == Ok(true)
    }

    /// Forgets what has happened so far.
    fn settle(watch: &FileWatch) {
        let _ = read_events(watch.told.as_ref().unwrap().get_ref(), |_| false);
    }

    #[tokio::test]
    async fn commits_are_told_in_every_journal_mode_and_reading_is_not() {
        for mode in ["wal", "delete"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.db");
            let connection = Connection::open(&path).unwrap();
            connection.pragma_update(None, "journal_mode", mode).unwrap();
            connection.execute_batch("CREATE TABLE t (x)").unwrap();
            let link = dir.path().join("link.db");
            std::os::unix::fs::symlink(&path, &link).unwrap();
            let mut watches = [FileWatch::database(&path), FileWatch::database(&link)];
            connection.execute_batch("INSERT INTO t VALUES (1)").unwrap();
            for watch in &mut watches {
                assert!(is_told(watch).await, "{mode}");
                settle(watch);
            }
            let rows: i64 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
            assert_eq!(rows, 1);
            fs::write(dir.path().join("another.db"), "x").unwrap();
            assert!(!is_told(&mut watches[0]).await, "{mode}");
        }
    }

    #[tokio::test]
    async fn a_file_that_appears_is_told_and_so_is_a_folder_that_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        let path = folder.join("a.db");
        let mut watch = FileWatch::file(&path);
        assert!(watch.told.is_none());
        fs::create_dir(&folder).unwrap();
        watch.changed().await;
        assert!(watch.told.is_some());
        fs::write(&path, "x").unwrap();
        assert!(is_told(&mut watch).await);
        fs::rename(&folder, dir.path().join("aside")).unwrap();
        assert!(is_told(&mut watch).await && watch.told.is_none(), "the old folder is not watched");
    }

    #[tokio::test]
    async fn without_a_word_it_is_time_to_look_now_and_then() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = FileWatch::file(&dir.path().join("a.db"));
        assert_eq!(timeout(NET * 2, watch.changed()).await, Ok(false));
    }
}
