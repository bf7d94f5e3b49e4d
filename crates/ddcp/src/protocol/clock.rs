//! The time by which callers are judged.

#[cfg(not(test))]
pub(super) fn now(host: &crate::host::Host) -> std::time::Instant {
    host.now()
}

#[cfg(test)]
pub(super) use test::{advance, now};

/// In tests time stands still until it is put forward.
#[cfg(test)]
mod test {
    use std::{
        cell::Cell,
        time::{Duration, Instant},
    };

    use crate::host::Host;

    thread_local! {
        static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
    }

    pub(in crate::protocol) fn now(host: &Host) -> Instant {
        NOW.with(|now| {
            let time = now.get().unwrap_or_else(|| host.now());
            now.set(Some(time));
            time
        })
    }

    pub(in crate::protocol) fn advance(by: Duration) {
        NOW.set(Some(now(&Host::default()) + by));
    }
}
