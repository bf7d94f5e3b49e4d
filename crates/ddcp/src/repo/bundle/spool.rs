use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::{Error, files, repo::Repository};

/// What the files begin with that hold what came on standard input.
const PREFIX: &str = "incoming-";

/// A stream that was written to a private file, so that it can be read twice and by another process. The file is gone
/// when this is dropped; one that a killed process left is removed by the next.
#[derive(Debug)]
pub struct Spooled {
    path: PathBuf,
    /// Locked while somebody uses the file.
    file: File,
}

impl Spooled {
    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Spooled {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a temporary file could not be removed");
        }
    }
}

impl Repository {
    /// Writes `input` to a file in the state directory. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn spool(&self, mut input: impl Read) -> Result<Spooled, Error> {
        let folder = self.layout().state();
        remove_left_behind(folder);
        let path = folder.join(format!("{PREFIX}{}", std::process::id()));
        let failed = |source: io::Error| Error::Io { path: path.clone(), source };
        let file = files::open_private(&path).map_err(failed)?;
        file.lock().map_err(failed)?;
        let mut spooled = Spooled { path: path.clone(), file };
        spooled.file.set_len(0).and_then(|()| io::copy(&mut input, &mut spooled.file)).map_err(failed)?;
        Ok(spooled)
    }
}

fn remove_left_behind(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
        let is_free = files::open_regular(&entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if is_free {
            let _ = fs::remove_file(entry.path());
        }
    }
}
