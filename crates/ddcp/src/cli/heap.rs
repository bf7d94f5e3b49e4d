//! The program's heap.

/// Makes glibc give back what has been freed. By default each of many threads keeps a heap of its own as large as the
/// most it ever held; while packs pass from thread to thread that is several times what is in use. To be called before
/// there is a second thread.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
pub(super) fn bound() {
    use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, mallopt};
    // SAFETY: mallopt(3) takes two numbers, and nobody else sets them. An option that the library does not know changes
    // nothing.
    unsafe {
        mallopt(M_ARENA_MAX, 2);
        mallopt(M_MMAP_THRESHOLD, 1 << 20);
    }
}

/// Other libraries' heaps stay as they are.
#[cfg(not(target_env = "gnu"))]
pub(super) fn bound() {}
