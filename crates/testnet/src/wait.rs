use std::{
    thread,
    time::{Duration, Instant},
};

/// Looks for `condition` until it holds or `limit` has passed; tells whether it holds.
pub(crate) fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
