//! What was fetched and is not merged, what failed, and what was left behind.

use std::{collections::BTreeMap, ffi::OsStr, fs};

use jiff::Timestamp;

use super::{super::mend, Advice, Finding, Layout, State, word};
use crate::{Error, changeset::SiteId, config::Config};

/// Looks at the inbox, at what waits, at what failed last, and for files that nobody will ask for again.
pub(super) fn examine(layout: &Layout, config: &Config, state: &State, advice: &Advice, findings: &mut Vec<Finding>) {
    let mut found = || {
        let sites = Sites::new(config, state)?;
        examine_failures(config, state, &sites, advice, findings)?;
        examine_inbox(config, state, &sites, advice, findings)?;
        examine_leftovers(layout, &sites, findings);
        Ok::<_, Error>(())
    };
    if let Err(error) = found() {
        findings.push(Finding::error("inbox", error.to_string(), "do what the message says"));
    }
}

/// The sites of the remotes, by their names.
struct Sites(BTreeMap<SiteId, String>);

impl Sites {
    fn new(config: &Config, state: &State) -> Result<Self, Error> {
        let mut sites = BTreeMap::new();
        for (name, remote) in &config.remotes {
            if let Some(site) = state.contact(name.as_str(), &remote.address)?.site_id {
                sites.entry(site).or_insert_with(|| name.to_string());
            }
        }
        Ok(Self(sites))
    }

    /// What messages call a site, and how commands name it.
    fn label(&self, site: &SiteId) -> (String, String) {
        match self.0.get(site) {
            Some(name) => (name.clone(), name.clone()),
            None => (format!("site {site}"), site.to_string()),
        }
    }
}

fn examine_failures(
    config: &Config,
    state: &State,
    sites: &Sites,
    advice: &Advice,
    findings: &mut Vec<Finding>,
) -> Result<(), Error> {
    for (name, remote) in &config.remotes {
        let contact = state.contact(name.as_str(), &remote.address)?;
        let Some(error) = contact.last_error else { continue };
        let what = format!("{name}: the last fetch failed{}: {error}", at(contact.last_error_at));
        findings.push(Finding::warning(
            "remote",
            what,
            format!("{} tries again", advice.run(&format!("fetch {name}"))),
        ));
    }
    for (site, failure) in state.merge_failures()? {
        let what =
            format!("{}: the last merge failed{}: {}", sites.label(&site).0, at(Some(failure.at)), failure.message);
        // Of a site that is no remote only everything can be merged.
        let again = match sites.0.get(&site) {
            Some(name) => advice.run(&format!("pull {name}")),
            None => advice.run("merge"),
        };
        let mend = match failure.hint {
            Some(hint) => format!("{}; {again} tries again", advice.named(&hint)),
            None => format!("{again} tries again"),
        };
        findings.push(Finding::error("merge", what, mend));
    }
    Ok(())
}

fn at(seconds: Option<i64>) -> String {
    let moment = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
    moment.map(|moment| format!(" at {moment}")).unwrap_or_default()
}

fn examine_inbox(
    config: &Config,
    state: &State,
    sites: &Sites,
    advice: &Advice,
    findings: &mut Vec<Finding>,
) -> Result<(), Error> {
    for (site, name) in &sites.0 {
        let held = state.inbox_bytes(site)?;
        let most = config.limits.inbox_bytes.get();
        if held >= most - most / 10 {
            let what = format!("{name}: the inbox holds {held} bytes of it, and {most} are the limit");
            findings.push(Finding::warning("inbox", what, advice.run(&format!("merge {name}"))));
        }
    }
    for site in state.waiting_sites()? {
        let (changes, reasons) = state.waiting_changes(&site)?;
        let (label, name) = sites.label(&site);
        let what = format!("{label}: {changes} changes wait: {}", reasons.join("; "));
        let mend = format!(
            "{} names them; once their table or column is there, or what stands against them is gone, {} merges them; {} \
             lets them go",
            advice.run(&format!("waiting list {name}")),
            advice.run(&format!("waiting retry {name}")),
            advice.run(&format!("waiting drop {name} --yes")),
        );
        findings.push(Finding::warning("inbox", what, mend));
    }
    for site in state.inbox_sites()?.iter().filter(|site| !sites.0.contains_key(site)) {
        let changes = state.inbox_changes(site)?;
        let what = format!(
            "{changes} changes of {site}, which is no remote (they came in a bundle, or it was removed), are fetched and not \
             merged"
        );
        findings.push(Finding::note("inbox", what, advice.run("merge")));
    }
    Ok(())
}

fn examine_leftovers(layout: &Layout, sites: &Sites, findings: &mut Vec<Finding>) {
    let known: Vec<String> = sites.0.keys().map(SiteId::to_string).collect();
    let parts = fs::read_dir(layout.state().join("parts")).into_iter().flatten().flatten();
    for folder in parts.filter(|folder| !known.iter().any(|site| folder.file_name() == site.as_str())) {
        let path = folder.path();
        let what = format!("{} holds parts of a download that will not go on", path.display());
        findings.push(Finding::note("leftovers", what, format!("`rm -r {}`", word(&path))));
    }
    let damaged = fs::read_dir(layout.state()).into_iter().flatten().flatten();
    for file in damaged.filter(|file| is_damaged_state(&file.file_name())) {
        let path = file.path();
        let what = format!("{} was damaged and is put aside; another one was made", path.display());
        findings.push(Finding::note("leftovers", what, format!("`rm {}*`", word(&path))));
    }
    let aside = layout.node().with_extension("of-original");
    if aside.exists() {
        let what = format!("{} is the node of the repository that this one was copied from", aside.display());
        findings.push(Finding::note("leftovers", what, format!("`rm -r {}`", word(&aside))));
    }
}

/// Whether a file of this name is a state file that was put aside, and not one that SQLite keeps beside it.
fn is_damaged_state(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with(mend::ASIDE) && !["-wal", "-shm", "-journal"].iter().any(|end| name.ends_with(end))
}
