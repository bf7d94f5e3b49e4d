//! What systemd is told where it runs this program, with `Type=notify` or `notify-reload`; elsewhere nothing happens.

use std::{os::fd::AsFd, time::Duration};

use nix::sys::stat::fstat;
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::{repo::Repository, text::shown};

/// The daemon has started, or has done what a reload asks for.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&shown(status))]);
}

/// The settings are about to be read anew.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "systemd is not told of a reload"),
    }
}

/// The daemon is ending.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// What the daemon does, or why it does not, for `systemctl status`.
pub(crate) fn status(text: &str) {
    tell(&[NotifyState::Status(&shown(text))]);
}

/// Tells that the daemon is alive as often as is wanted, while it is: as long as its tasks and the threads for
/// blocking work get on.
pub(crate) async fn keep_watchdog(repository: &Repository) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut beat = interval((limit / 3).max(Duration::from_millis(100)));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        if repository.blocking(|_| Ok(())).await.is_ok() {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

/// Whether what is written to `output` goes to the journal, which others than the owner may read.
pub(crate) fn is_journal(output: impl AsFd) -> bool {
    let Some(journal) = std::env::var_os("JOURNAL_STREAM") else { return false };
    fstat(output).is_ok_and(|file| journal.to_str() == Some(&format!("{}:{}", file.st_dev, file.st_ino)))
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}
