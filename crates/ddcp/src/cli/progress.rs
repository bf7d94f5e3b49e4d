//! How far a download is: bars on a terminal, JSON lines for programs, log lines else. All of it on stderr.

use std::{
    collections::BTreeMap,
    future::Future,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{Format, Session};
use crate::{protocol::Progress, repo::Monitor};

/// What is over sooner shows no bar.
const FIRST_LOOK: Duration = Duration::from_millis(250);
/// How often bars are drawn.
const LOOK: Duration = Duration::from_millis(100);
/// How often a JSON line is written, if something has changed.
const JSON_PAUSE: Duration = Duration::from_millis(500);
/// How often a log line is.
const LOG_PAUSE: Duration = Duration::from_secs(5);

/// Characters of a name in front of a bar.
const LONGEST_NAME: usize = 16;

/// Does `work` and shows meanwhile what `monitor` says.
pub(super) async fn shown<T>(session: &Session, monitor: &Monitor, work: impl Future<Output = T>) -> T {
    let mut display = Display::new(session);
    let mut work = std::pin::pin!(work);
    let mut pause = display.first_look();
    loop {
        tokio::select! {
            result = &mut work => {
                display.finish(begun(monitor));
                return result;
            }
            () = sleep(pause) => display.show(begun(monitor)),
        }
        pause = display.look();
    }
}

/// The downloads that have something to download.
fn begun(monitor: &Monitor) -> BTreeMap<String, Progress> {
    monitor.read().into_iter().filter(|(_, progress)| progress.offered_bytes > 0).collect()
}

enum Display {
    Hidden,
    Bars(Bars),
    Json { told: BTreeMap<String, Progress> },
    Log { told: BTreeMap<String, Progress> },
}

impl Display {
    fn new(session: &Session) -> Self {
        match session.format {
            _ if session.quiet => Self::Hidden,
            Format::Json => Self::Json { told: BTreeMap::new() },
            Format::Table if session.verbose > 0 => Self::Log { told: BTreeMap::new() },
            Format::Table if io::stderr().is_terminal() => Self::Bars(Bars::default()),
            Format::Table => Self::Hidden,
        }
    }

    fn first_look(&self) -> Duration {
        match self {
            Self::Bars(_) => FIRST_LOOK,
            _ => self.look(),
        }
    }

    fn look(&self) -> Duration {
        match self {
            Self::Hidden => Duration::MAX,
            Self::Bars(_) => LOOK,
            Self::Json { .. } => JSON_PAUSE,
            Self::Log { .. } => LOG_PAUSE,
        }
    }

    fn show(&mut self, now: BTreeMap<String, Progress>) {
        match self {
            Self::Bars(bars) => bars.draw(&now),
            Self::Json { told } if *told != now => {
                // Whoever does not read it any more does not want it any more.
                let _ = writeln!(io::stderr().lock(), "{}", json!({"progress": now}));
                *told = now;
            }
            Self::Log { told } if *told != now => {
                for (remote, progress) in &now {
                    tracing::info!(%remote, "{}", line(progress));
                }
                *told = now;
            }
            Self::Hidden | Self::Json { .. } | Self::Log { .. } => {}
        }
    }

    /// A program that was told how far it was is told the end as well.
    fn finish(&mut self, now: BTreeMap<String, Progress>) {
        match self {
            Self::Bars(bars) => bars.clear(),
            Self::Json { told } if !told.is_empty() => self.show(now),
            _ => {}
        }
    }
}

/// One line for each remote that has something to offer.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    bars: BTreeMap<String, Bar>,
}

struct Bar {
    bar: ProgressBar,
    began: Instant,
}

impl Bars {
    fn draw(&mut self, now: &BTreeMap<String, Progress>) {
        for (remote, progress) in now {
            let Bar { bar, began } = self.bars.entry(remote.clone()).or_insert_with(|| {
                let bar = self.all.add(ProgressBar::new(0).with_style(style()).with_prefix(short(remote)));
                Bar { bar, began: Instant::now() }
            });
            bar.set_length(progress.offered_bytes);
            bar.set_position(progress.bytes);
            bar.set_message(message(progress, rate(progress.bytes, began.elapsed())));
        }
    }

    fn clear(&mut self) {
        // Nothing to do about a terminal that is gone.
        let _ = self.all.clear();
    }
}

fn style() -> ProgressStyle {
    // A template that is a constant; the default is another bar.
    ProgressStyle::with_template("{prefix} [{bar:12}] {binary_bytes}/{binary_total_bytes} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// A name, or as much of it as leaves room for what changes.
fn short(name: &str) -> String {
    match name.char_indices().nth(LONGEST_NAME) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// Bytes a second.
fn rate(bytes: u64, elapsed: Duration) -> u64 {
    (bytes as f64 / elapsed.as_secs_f64().max(0.1)) as u64
}

fn message(progress: &Progress, rate: u64) -> String {
    format!("{}/s, {}", HumanBytes(rate), what(progress))
}

fn line(progress: &Progress) -> String {
    let (bytes, offered) = (HumanBytes(progress.bytes), HumanBytes(progress.offered_bytes));
    format!("fetching: {bytes} of {offered} known so far, {}", what(progress))
}

/// Changes, and how far the source's versions are; what lies between is not counted in bytes before it is offered.
fn what(progress: &Progress) -> String {
    let changes = format!("{} of {} changes", progress.changes, progress.offered_changes);
    match progress.target - progress.version {
        ..=0 => changes,
        ahead => format!("{changes}, {ahead} versions ahead"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_is_said() {
        let mut progress =
            Progress { bytes: 2048, offered_bytes: 4096, changes: 5, offered_changes: 9, version: 3, target: 7 };
        assert_eq!(message(&progress, 1024), "1.00 KiB/s, 5 of 9 changes, 4 versions ahead");
        assert_eq!(line(&progress), "fetching: 2.00 KiB of 4.00 KiB known so far, 5 of 9 changes, 4 versions ahead");
        progress.version = 7;
        assert_eq!(what(&progress), "5 of 9 changes");
        assert_eq!(rate(1000, Duration::from_secs(2)), 500);
        assert_eq!(rate(1000, Duration::ZERO), 10_000);
        assert_eq!((short("alice").as_str(), short("site 0123456789abcdef").as_str()), ("alice", "site 0123456789a…"));
        assert!(ProgressStyle::with_template("{prefix} [{bar:20}] {wide_msg}").is_ok());
    }
}
