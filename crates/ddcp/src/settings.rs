//! Puts the settings in force when their file changes.

use crate::{Error, file_watch::FileWatch, follow::Stamp, repo::Repository};

/// Reads the settings anew whenever the file changes, until the future is dropped. What cannot be read changes nothing.
pub(crate) async fn keep_in_force(repository: &Repository) {
    let path = repository.layout().config();
    let mut file = FileWatch::file(&path);
    let mut seen = None;
    let mut told = false;
    loop {
        let stamp = Stamp::of(&path);
        if told || seen != Some(stamp) {
            seen = Some(stamp);
            if let Err(error) = reload(repository).await {
                tracing::error!(%error, "the settings cannot be read; those from before stay in force");
            }
        }
        told = file.changed().await;
    }
}

/// Reads the settings and puts them in force.
///
/// # Errors
/// [`Error::Config`]: nothing has changed then.
pub(crate) async fn reload(repository: &Repository) -> Result<(), Error> {
    repository.blocking(|repository| repository.reload().map(drop)).await
}
