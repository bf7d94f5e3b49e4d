use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    config::RemoteName,
    protocol::{Meter, Progress},
};

/// Shows how far the downloads of one command are, by remote. Clones show the same.
#[derive(Clone, Debug, Default)]
pub struct Monitor(Arc<Mutex<BTreeMap<String, Meter>>>);

impl Monitor {
    /// The meter of the remote called `name`.
    #[doc(hidden)]
    #[must_use]
    pub fn meter(&self, name: &str) -> Meter {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default().clone()
    }

    /// How far each is by now.
    #[must_use]
    pub fn read(&self) -> BTreeMap<String, Progress> {
        let meters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        meters.iter().map(|(name, meter)| (name.clone(), meter.read())).collect()
    }

    /// Shows what was read from another process's monitor.
    pub(crate) fn show(&self, read: BTreeMap<String, Progress>) {
        for (name, progress) in read {
            self.meter(&name).update(|shown| *shown = progress);
        }
    }
}

/// The downloads of a process, by remote: there is one of each at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Transfers(Arc<Mutex<BTreeMap<RemoteName, Meter>>>);

impl Transfers {
    /// Shows the download from `name` until what this returns is dropped.
    pub(super) fn show(&self, name: &RemoteName, meter: Meter) -> Shown {
        self.meters().insert(name.clone(), meter);
        Shown { transfers: self.clone(), name: name.clone() }
    }

    /// How far the download from `name` is, if there is one.
    pub(super) fn of(&self, name: &RemoteName) -> Option<Progress> {
        self.meters().get(name).map(Meter::read)
    }

    fn meters(&self) -> MutexGuard<'_, BTreeMap<RemoteName, Meter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A download that is shown.
pub(super) struct Shown {
    transfers: Transfers,
    name: RemoteName,
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.transfers.meters().remove(&self.name);
    }
}
