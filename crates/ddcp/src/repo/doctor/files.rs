//! What surrounds the database: permissions, space, the clock, and what was left behind.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use jiff::{Timestamp, ToSpan};
use nix::unistd::{AccessFlags, access, geteuid};

use super::{Finding, Layout, State};
use crate::{Error, changeset::SiteId, config::Config, disk};

/// Less than this is soon used up by a fetch.
const LITTLE_SPACE: u64 = 256 << 20;

/// How far in the future something may lie that happened here.
const CLOCK_TOLERANCE: i64 = 60;

/// No clock that is right shows an earlier time: 2026-01-01.
const EARLIEST: i64 = 1_767_225_600;

/// Files of the state directory that are their owner's alone.
const PRIVATE: [&str; 9] = [
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
    let folder = database.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for path in [database, folder] {
        if access(path, AccessFlags::W_OK).is_err() {
            let what = format!("{} cannot be written by this user: nothing can be merged", path.display());
            findings.push(Finding::error("database", what, format!("`chmod u+w {}`", path.display())));
        }
    }
}

pub(super) fn examine_permissions(layout: &Layout, findings: &mut Vec<Finding>) {
    let before = findings.len();
    let folders = [layout.state().to_owned(), layout.node()];
    let files = PRIVATE.map(|name| layout.state().join(name));
    let wanted = folders.iter().map(|path| (path, "700")).chain(files.iter().map(|path| (path, "600")));
    for (path, mode) in wanted {
        let Ok(metadata) = fs::metadata(path) else { continue };
        let path = path.display();
        if metadata.permissions().mode() & 0o077 != 0 {
            let what = format!("{path} is open to other users of this machine");
            findings.push(Finding::error("files", what, format!("`chmod {mode} {path}`")));
        }
        if metadata.uid() != geteuid().as_raw() {
            let what = format!("{path} belongs to another user than the one who runs this command");
            findings.push(Finding::warning(
                "files",
                what,
                format!("`sudo chown $(id -u) {path}`, or run ddcp as its owner"),
            ));
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

/// What was fetched and is not merged, and files that nobody will ask for again.
pub(super) fn examine_leftovers(layout: &Layout, config: &Config, state: &State, findings: &mut Vec<Finding>) {
    if let Err(error) = look_for_leftovers(layout, config, state, findings) {
        findings.push(Finding::error("leftovers", error.to_string(), "do what the message says"));
    }
}

fn look_for_leftovers(
    layout: &Layout,
    config: &Config,
    state: &State,
    findings: &mut Vec<Finding>,
) -> Result<(), Error> {
    let mut known = Vec::new();
    for (name, remote) in &config.remotes {
        let Some(site) = state.contact(name.as_str(), &remote.address)?.site_id else { continue };
        known.push(site);
        let held = state.inbox_bytes(&site)?;
        let most = config.limits.inbox_bytes.get();
        if held >= most - most / 10 {
            let what = format!("{name}: the inbox holds {held} bytes of it, and {most} are the limit");
            findings.push(Finding::warning("inbox", what, format!("`ddcp merge {name}`")));
        }
    }
    for site in state.waiting_sites()? {
        let (changes, reasons) = state.waiting_changes(&site)?;
        let what = format!("{} {changes} changes wait: {}", label(config, state, &site)?, reasons.join("; "));
        findings.push(Finding::warning("inbox", what, "make the table or column that is missing, then `ddcp merge`"));
    }
    for site in state.inbox_sites()?.iter().filter(|site| !known.contains(site)) {
        let changes = state.inbox_changes(site)?;
        let what = format!("{changes} changes of {site}, which is no remote any more, are fetched and not merged");
        findings.push(Finding::note("inbox", what, "`ddcp merge`"));
    }
    let known: Vec<String> = known.iter().map(SiteId::to_string).collect();
    let parts = fs::read_dir(layout.state().join("parts")).into_iter().flatten().flatten();
    for folder in parts.filter(|folder| !known.iter().any(|site| folder.file_name() == site.as_str())) {
        let path = folder.path();
        let what = format!("{} holds parts of a download that will not go on", path.display());
        findings.push(Finding::note("leftovers", what, format!("`rm -r {}`", path.display())));
    }
    let aside = layout.node().with_extension("of-original");
    if aside.exists() {
        let what = format!("{} is the node of the repository that this one was copied from", aside.display());
        findings.push(Finding::note("leftovers", what, format!("`rm -r {}`", aside.display())));
    }
    Ok(())
}

fn label(config: &Config, state: &State, site: &SiteId) -> Result<String, Error> {
    for (name, remote) in &config.remotes {
        if state.contact(name.as_str(), &remote.address)?.site_id == Some(*site) {
            return Ok(format!("{name}:"));
        }
    }
    Ok(format!("site {site}:"))
}
