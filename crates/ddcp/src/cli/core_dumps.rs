//! Core dumps, which would hold keys and rows in the open.

use nix::libc::{RLIMIT_CORE, rlimit, setrlimit};

/// Has this program leave none from now on.
#[allow(unsafe_code)]
pub(super) fn off() {
    let none = rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: setrlimit(2) reads the one structure, which lives until it returns. Less than before is always allowed.
    let result = unsafe { setrlimit(RLIMIT_CORE, &raw const none) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "core dumps cannot be switched off");
    }
}
