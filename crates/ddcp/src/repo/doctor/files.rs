//! What surrounds the database: permissions, space, the clock, and what was left behind.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use jiff::{Timestamp, ToSpan};
use nix::unistd::{AccessFlags, access, geteuid};

use super::{Finding, Layout, State, word};
use crate::{disk, medium};

/// Less than this is soon used up by a fetch.
const LITTLE_SPACE: u64 = 256 << 20;

/// How far in the future something may lie that happened here.
const CLOCK_TOLERANCE: i64 = 60;

/// No clock that is right shows an earlier time: 2026-01-01.
const EARLIEST: i64 = 1_767_225_600;

/// Files of the state directory that are their owner's alone.
const PRIVATE: [&str; 10] = [
    "config.private",
    "config.toml",
    "control.token",
    "digest.db",
    "history",
    "lock",
    "state.db",
    "state.db-shm",
    "state.db-wal",
    "veilid/identity.toml",
];

pub(super) fn examine_writable(database: &Path, findings: &mut Vec<Finding>) {
    if medium::is_read_only(database) {
        let what =
            format!("{} is on a read-only medium: it can be read, and nothing can be merged", database.display());
        findings.push(Finding::note("database", what, "mount it for writing, if it is to be written"));
        return;
    }
    let folder = database.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for path in [database, folder] {
        if access(path, AccessFlags::W_OK).is_err() {
            let what = format!("{} cannot be written by this user: nothing can be merged", path.display());
            findings.push(Finding::error("database", what, format!("`chmod u+w {}`", word(path))));
        }
    }
}

pub(super) fn examine_permissions(layout: &Layout, findings: &mut Vec<Finding>) {
    let before = findings.len();
    let folders = [layout.state().to_owned(), layout.node()];
    let files = PRIVATE.map(|name| layout.state().join(name));
    // What root writes here belongs to whom the folder belongs to.
    let owner = match geteuid().is_root() {
        true => fs::metadata(layout.state()).map_or(0, |metadata| metadata.uid()),
        false => geteuid().as_raw(),
    };
    let wanted = folders.iter().map(|path| (path, "700")).chain(files.iter().map(|path| (path, "600")));
    for (path, mode) in wanted {
        let Ok(metadata) = fs::metadata(path) else { continue };
        let (word, path) = (word(path), path.display());
        if metadata.permissions().mode() & 0o077 != 0 {
            let what = format!("{path} is open to other users of this machine");
            findings.push(Finding::error("files", what, format!("`chmod {mode} {word}`")));
        }
        if metadata.uid() != owner {
            let (what, mend) = match geteuid().is_root() {
                true => ("the one whom the state directory belongs to", format!("`chown {owner} {word}`")),
                false => {
                    ("the one who runs this command", format!("`sudo chown $(id -u) {word}`, or run ddcp as its owner"))
                }
            };
            findings.push(Finding::warning("files", format!("{path} belongs to another user than {what}"), mend));
        }
    }
    if findings.len() == before && layout.state().exists() {
        findings.push(Finding::ok("files", "the state directory is its owner's alone"));
    }
}

pub(super) fn examine_space(layout: &Layout, findings: &mut Vec<Finding>) {
    for path in [layout.database(), layout.state()] {
        let Some(free) = disk::free(path) else { continue };
        let what = format!("{} free on the disk of {}", indicatif::HumanBytes(free), path.display());
        if free < LITTLE_SPACE {
            findings.push(Finding::warning("disk", format!("only {what}"), "free some space"));
        } else {
            findings.push(Finding::ok("disk", what));
        }
    }
}

pub(super) fn examine_clock(state: Option<&State>, findings: &mut Vec<Finding>) {
    const SET: &str = "`sudo timedatectl set-ntp true`, or set the clock by hand";
    let now = Timestamp::now();
    let happened = state.and_then(|state| state.log(None, 1).ok()).and_then(|log| log.first().map(|entry| entry.at));
    let latest = happened.and_then(|at| Timestamp::from_millisecond(at).ok());
    if now.as_second() < EARLIEST {
        findings.push(Finding::error("clock", format!("this machine's clock says {now}"), SET));
    } else if let Some(latest) = latest.filter(|latest| *latest > now + CLOCK_TOLERANCE.seconds()) {
        let what = format!("this machine's clock says {now}, but something happened here at {latest}");
        findings.push(Finding::warning("clock", what, SET));
    } else {
        findings.push(Finding::ok("clock", "this machine's clock is later than all that happened here"));
    }
}
