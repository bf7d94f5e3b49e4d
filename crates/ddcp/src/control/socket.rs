//! The control socket's file.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

/// A socket's path may have 107 bytes, the state directory's may have thousands.
const LONGEST_PATH: usize = 100;

/// A path that reaches the socket, short enough; the folder stays open while it is used.
struct Reach {
    path: PathBuf,
    _folder: Option<File>,
}

impl Reach {
    fn new(path: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket's path names no file"));
        };
        if path.as_os_str().len() <= LONGEST_PATH {
            return Ok(Self { path: path.to_owned(), _folder: None });
        }
        let folder = File::open(parent)?;
        let short = format!("/proc/self/fd/{}", folder.as_raw_fd());
        Ok(Self { path: Path::new(&short).join(name), _folder: Some(folder) })
    }
}

/// Binds the socket, with mode 0600. What a process that was killed left behind is replaced: the caller holds the
/// repository's lock.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    remove(path)?;
    let reach = Reach::new(path)?;
    let listener = UnixListener::bind(&reach.path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Removes the socket's file, if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Connects to the socket; `None` if nobody listens.
pub(super) async fn connect(path: &Path) -> io::Result<Option<UnixStream>> {
    let reach = match Reach::new(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        reach => reach?,
    };
    match UnixStream::connect(&reach.path).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_paths_are_reached_and_dead_sockets_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        for folder in [dir.path(), &deep] {
            let path = folder.join("control.sock");
            assert!(connect(&path).await.unwrap().is_none());
            drop(bind(&path).unwrap());
            assert!(connect(&path).await.unwrap().is_none(), "nobody listens any more");
            let _listener = bind(&path).unwrap();
            assert!(connect(&path).await.unwrap().is_some());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
