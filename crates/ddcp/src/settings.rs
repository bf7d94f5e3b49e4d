//! Puts the settings in force when their file changes.

use std::{path::Path, time::Duration};

use tokio::time::sleep;

use crate::{Error, file_watch::FileWatch, follow::Stamp, repo::Repository};

/// Editors empty a file before they write it, and an empty one would make a private repository public: it is read when
/// it has stayed the same for so long.
const SETTLED: Duration = Duration::from_millis(100);

/// Reads the settings anew whenever the file changes, until the future is dropped. What cannot be read changes nothing.
pub(crate) async fn keep_in_force(repository: &Repository) {
    let path = repository.layout().config();
    let mut file = FileWatch::file(&path);
    let mut seen = None;
    let mut told = false;
    loop {
        if told || seen != Some(Stamp::of(&path)) {
            seen = Some(settled(&path).await);
            if let Err(error) = reload(repository).await {
                tracing::error!(%error, "the settings cannot be read; those from before stay in force");
            }
        }
        told = file.changed().await;
    }
}

async fn settled(path: &Path) -> Stamp {
    let mut before = Stamp::of(path);
    loop {
        sleep(SETTLED).await;
        let now = Stamp::of(path);
        if now == before {
            return now;
        }
        before = now;
    }
}

/// Reads the settings and puts them in force.
///
/// # Errors
/// [`Error::Config`]: nothing has changed then.
pub(crate) async fn reload(repository: &Repository) -> Result<(), Error> {
    repository.blocking(|repository| repository.reload().map(drop)).await
}
