//! Whom the daemon answers: the settings as the layer that answers takes them.

use std::sync::Arc;

use tokio::sync::watch;

use super::Repository;
use crate::{
    Error,
    config::{Access, Config},
    protocol::{DropReport, Drops, Rules},
};

/// What the daemon goes by, and what it counts, while it answers.
#[derive(Default)]
pub(super) struct Guarding {
    /// Nobody is answered by the rules of the beginning.
    rules: watch::Sender<Arc<Rules>>,
    drops: Arc<Drops>,
}

impl Repository {
    /// Reads the settings anew and puts those about callers in force; settings that cannot be read change nothing.
    /// Blocks.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub(crate) fn reload(&self) -> Result<Config, Error> {
        let config = self.config()?;
        let rules = rules_of(&config);
        self.inner.guarding.rules.send_if_modified(|current| {
            let is_new = **current != rules;
            if is_new {
                *current = Arc::new(rules);
            }
            is_new
        });
        Ok(config)
    }

    /// The rules that [`Repository::reload`] puts in force.
    pub(crate) fn rules(&self) -> watch::Receiver<Arc<Rules>> {
        self.inner.guarding.rules.subscribe()
    }

    /// Where dropped callers are counted.
    pub(crate) fn drops(&self) -> Arc<Drops> {
        Arc::clone(&self.inner.guarding.drops)
    }

    /// The callers that this process has dropped, if any.
    pub(super) fn dropped(&self) -> Option<DropReport> {
        Some(self.inner.guarding.drops.report()).filter(|report| report.count > 0)
    }
}

fn rules_of(config: &Config) -> Rules {
    Rules {
        private: config.access == Access::Private,
        remotes: config.remotes.values().filter_map(|remote| remote.address.repository()).collect(),
        limits: config.limits,
    }
}
