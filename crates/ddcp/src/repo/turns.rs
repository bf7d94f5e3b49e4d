//! One fetch at a time from each site. What arrives and what was fetched is kept by site, and several remotes may be the
//! same one: a database by its path and by its address, or by a link.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex as StdMutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::changeset::SiteId;

/// Of more sites than this, those from which nothing is being fetched are forgotten.
const MOST_SITES: usize = 1024;

/// Whose turn it is, by site.
#[derive(Default)]
pub(super) struct Turns {
    /// Counts the turns that have ended.
    ended: Arc<AtomicU64>,
    /// In each the number of its last turn.
    sites: StdMutex<HashMap<SiteId, Arc<Mutex<u64>>>>,
}

/// The sole right to fetch from a site, until it is dropped.
pub(super) struct Turn {
    ended: Arc<AtomicU64>,
    last: OwnedMutexGuard<u64>,
}

impl Turns {
    /// The present moment, to compare with [`Turn::is_after_one_since`].
    pub(super) fn now(&self) -> u64 {
        self.ended.load(Ordering::SeqCst)
    }

    /// Waits until nobody else fetches from `site`.
    pub(super) async fn of(&self, site: &SiteId) -> Turn {
        let lock = {
            let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
            if sites.len() >= MOST_SITES {
                sites.retain(|_, lock| Arc::strong_count(lock) > 1);
            }
            Arc::clone(sites.entry(*site).or_default())
        };
        Turn { last: lock.lock_owned().await, ended: Arc::clone(&self.ended) }
    }
}

impl Turn {
    /// Whether somebody else has fetched from the site since `moment`: what it said of itself then may be outdated.
    pub(super) fn is_after_one_since(&self, moment: u64) -> bool {
        *self.last > moment
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.last = self.ended.fetch_add(1, Ordering::SeqCst) + 1;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn sites_have_turns_of_their_own_and_know_who_was_before() {
        let turns = Turns::default();
        let [one, other] = [1, 2].map(|byte| SiteId::from_bytes(&[byte; 16]).unwrap());
        let asked = turns.now();
        let first = turns.of(&one).await;
        assert!(!first.is_after_one_since(asked));
        assert!(turns.of(&one).now_or_never().is_none(), "one at a time");
        assert!(turns.of(&other).now_or_never().is_some());
        drop(first);
        let second = turns.of(&one).await;
        assert!(second.is_after_one_since(asked) && !second.is_after_one_since(turns.now()));
    }

    #[tokio::test]
    async fn a_peer_that_is_another_site_each_time_takes_no_room() {
        let turns = Turns::default();
        let kept = turns.of(&SiteId::from_bytes(&[0; 16]).unwrap()).await;
        for number in 1..5000_u64 {
            drop(turns.of(&SiteId::from_bytes(&number.to_le_bytes()).unwrap()).await);
        }
        assert!(turns.sites.lock().unwrap().len() <= MOST_SITES);
        assert!(turns.of(&SiteId::from_bytes(&[0; 16]).unwrap()).now_or_never().is_none());
        drop(kept);
    }
}
