//! Telling a full disk from a broken one.

use std::{io, path::Path};

/// What SQLite may ask for at once, for the index of a log (32 KiB), with the pages around it.
const NEXT_TO_NOTHING: u64 = 64 * 1024;

/// Whether the operating system refused for want of space.
pub(crate) fn is_full_error(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether next to nothing is left on the file system of `path`. SQLite has errors for which that is the only sign.
pub(crate) fn is_full(path: &Path) -> bool {
    free(path).is_some_and(|free| free < NEXT_TO_NOTHING)
}

/// Bytes that this user may still write on the file system of `path`, or of the folder that it would be in.
pub(crate) fn free(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let space = nix::sys::statvfs::statvfs(existing).ok()?;
    Some(space.blocks_available().saturating_mul(space.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_others() {
        assert!(is_full(Path::new("/proc/self/none")), "/proc has no blocks at all");
        assert!(!is_full(&std::env::temp_dir().join("none/at all")));
        assert!(is_full_error(&io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32)));
        assert!(!is_full_error(&io::Error::from_raw_os_error(nix::errno::Errno::EIO as i32)));
    }
}
