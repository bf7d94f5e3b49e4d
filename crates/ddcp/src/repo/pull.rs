//! `pull`: what each remote has is merged as soon as it is here, however long another one takes.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use super::{
    FetchReport, MergeReport, Monitor, Outcome, PerRemote, PullReport, Repository, State, fetch::ReadFrom, merge::sites,
};
use crate::{Error, changeset::SiteId, config::RemoteName, transport::Address};

impl Repository {
    /// Fetches from the remote `name` or from all, and merges what came of each as soon as it is there.
    ///
    /// # Errors
    /// As [`Repository::merge`]; what goes wrong with a remote is in its report.
    pub async fn pull(&self, name: Option<&str>) -> Result<PullReport, Error> {
        self.pull_watched(name, &Monitor::default()).await
    }

    /// As [`Repository::pull`]; `monitor` shows how far the fetch is.
    ///
    /// # Errors
    /// As [`Repository::pull`].
    pub async fn pull_watched(&self, name: Option<&str>, monitor: &Monitor) -> Result<PullReport, Error> {
        let _lock = self.hold().await?;
        let (chosen, everything) = (self.chosen(name)?, name.is_none());
        let pulls = chosen.iter().map(|remote| self.pull_one(remote, &chosen, everything, monitor));
        let (mut fetched, mut merged) = (Vec::new(), Vec::new());
        for pulled in join_all(pulls).await {
            let (fetch, merge) = pulled?;
            fetched.push(fetch);
            merged.extend(merge);
        }
        if everything {
            let left = self.blocking(move |repository| left(&repository.state()?, &chosen)).await?;
            if !left.is_empty() {
                merged.extend(self.merge_sites(|_| Ok(left)).await?);
            }
        }
        Ok(PullReport { fetched, merged: together(merged) })
    }

    /// Fetches from one of the remotes `chosen` and merges what is here of it.
    async fn pull_one(
        &self,
        (name, address): &(RemoteName, Address),
        chosen: &[(RemoteName, Address)],
        everything: bool,
        monitor: &Monitor,
    ) -> Result<(PerRemote<FetchReport>, Vec<PerRemote<MergeReport>>), Error> {
        let meter = monitor.meter(name.as_str());
        let fetched = self.fetch_and_note(name.clone(), address.clone(), ReadFrom::Position, meter).await;
        // What came before a failure is merged all the same where all is to be.
        if !everything && matches!(fetched.outcome, Outcome::Failed(_)) {
            return Ok((fetched, Vec::new()));
        }
        let (name, address, chosen) = (name.clone(), address.clone(), chosen.to_vec());
        let its_own = move |state: &State| {
            let site = state.contact(name.as_str(), &address)?.site_id;
            let mut sites = sites_of(state, &chosen)?;
            sites.retain(|(_, of)| Some(*of) == site);
            Ok(sites)
        };
        let merged = self.merge_sites(its_own).await?;
        Ok((fetched, merged))
    }
}

/// The sites that the remotes are known to be.
fn sites_of(state: &State, chosen: &[(RemoteName, Address)]) -> Result<Vec<(String, SiteId)>, Error> {
    let mut known = Vec::new();
    for (name, address) in chosen {
        if state.contact(name.as_str(), address)?.site_id.is_some() {
            known.push((name.clone(), address.clone()));
        }
    }
    sites(state, &known, false)
}

/// The sites of which something is left to merge: of no remote, or it waits, and what came of another may let it in.
fn left(state: &State, chosen: &[(RemoteName, Address)]) -> Result<Vec<(String, SiteId)>, Error> {
    let there: Vec<SiteId> = [state.inbox_sites()?, state.waiting_sites()?].concat();
    let mut sites = sites(state, chosen, true)?;
    sites.retain(|(_, site)| there.contains(site));
    Ok(sites)
}

/// One report for each name, of all merges of what it sent.
fn together(reports: Vec<PerRemote<MergeReport>>) -> Vec<PerRemote<MergeReport>> {
    let mut by_name: BTreeMap<String, Outcome<MergeReport>> = BTreeMap::new();
    for PerRemote { remote, outcome } in reports {
        let outcome = match (by_name.remove(&remote), outcome) {
            (Some(Outcome::Done(mut first)), Outcome::Done(then)) => {
                first.add(then);
                Outcome::Done(first)
            }
            (Some(failed @ Outcome::Failed(_)), _) => failed,
            (_, outcome) => outcome,
        };
        by_name.insert(remote, outcome);
    }
    by_name.into_iter().map(|(remote, outcome)| PerRemote { remote, outcome }).collect()
}

impl MergeReport {
    /// Adds what a later merge of the same did.
    fn add(&mut self, then: Self) {
        let add = |all: &mut BTreeMap<String, u64>, more: BTreeMap<String, u64>| {
            more.into_iter().for_each(|(table, number)| *all.entry(table).or_default() += number);
        };
        self.changes += then.changes;
        self.known += then.known;
        add(&mut self.applied, then.applied);
        add(&mut self.lost, then.lost);
        add(&mut self.deleted, then.deleted);
        self.dangling.extend(then.dangling);
        (self.waiting, self.reasons) = (then.waiting, then.reasons);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, Failure};

    fn done(remote: &str, changes: u64, waiting: u64) -> PerRemote<MergeReport> {
        let applied = BTreeMap::from([("note".to_owned(), changes)]);
        let report = MergeReport { changes, applied, waiting, ..MergeReport::default() };
        PerRemote { remote: remote.to_owned(), outcome: Outcome::Done(report) }
    }

    #[test]
    fn of_each_name_there_is_one_report() {
        assert_eq!(
            together(vec![done("b", 1, 9), done("a", 2, 0), done("b", 3, 4)]),
            [done("a", 2, 0), done("b", 4, 4)]
        );
        let failure = Failure { kind: ErrorKind::Failed, message: "no".to_owned(), hint: None };
        let failed = PerRemote { remote: "a".to_owned(), outcome: Outcome::Failed(failure) };
        for reports in [[failed.clone(), done("a", 1, 0)], [done("a", 1, 0), failed.clone()]] {
            assert_eq!(together(reports.to_vec()), std::slice::from_ref(&failed));
        }
    }
}
