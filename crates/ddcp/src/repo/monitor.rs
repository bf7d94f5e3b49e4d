use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::protocol::{Meter, Progress};

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
