//! Whom the daemon answers: the settings as the layer that answers takes them.

use std::sync::Arc;

use tokio::sync::watch;

use super::Repository;
use crate::{
    Error,
    config::{self, Access, Config, ConfigError},
    protocol::{Door, DropReport, Drops, Guarded, Hints, Rules},
    transport::{RecordId, Verifier},
};

/// What the daemon goes by, and what it counts, while it answers.
#[derive(Default)]
pub(super) struct Guarding {
    settings: watch::Sender<Arc<Config>>,
    /// Nobody is answered by the rules of the beginning.
    rules: watch::Sender<Arc<Rules>>,
    drops: Arc<Drops>,
    hints: Arc<Hints>,
}

impl Repository {
    /// What answers strangers, by the settings as they are and will be: this repository is `own`, and who callers are
    /// `verifier` tells.
    ///
    /// # Errors
    /// [`Error::Config`].
    #[doc(hidden)]
    pub async fn guarded(&self, own: RecordId, verifier: Arc<dyn Verifier>) -> Result<Guarded, Error> {
        // Before anybody is answered, so that nobody is who should not be.
        self.blocking(|repository| repository.reload().map(drop)).await?;
        let host = self.inner.options.host.clone();
        let [one, other] = [host.random_bytes(), host.random_bytes()];
        let secret = std::array::from_fn(|at| if at < 16 { one[at] } else { other[at - 16] });
        let door = Door::new(own, verifier, secret, host);
        Ok(Guarded::new(self.server(), door, self.rules(), self.drops()).with_hints(self.hints()))
    }

    /// Reads the settings anew and puts them in force in this process; settings that cannot be read change nothing.
    /// Blocks.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub(crate) fn reload(&self) -> Result<Config, Error> {
        let config = self.config()?;
        self.keep_private(&config)?;
        replace(&self.inner.guarding.rules, rules_of(&config));
        replace(&self.inner.guarding.settings, config.clone());
        Ok(config)
    }

    /// Keeps in a second place that the repository is private, and says it where the settings do not.
    fn keep_private(&self, config: &Config) -> Result<(), Error> {
        if config.access != Access::Private {
            return Ok(());
        }
        let path = self.inner.layout.config();
        config::keep_private(&path).map_err(|source| ConfigError::Io { path, source })?;
        if let Some(why) =
            config.kept_private.filter(|_| config.kept_private != self.inner.guarding.settings.borrow().kept_private)
        {
            tracing::warn!("{why}");
        }
        Ok(())
    }

    /// The settings that [`Repository::reload`] puts in force; none before it was called.
    pub(crate) fn settings_in_force(&self) -> watch::Receiver<Arc<Config>> {
        self.inner.guarding.settings.subscribe()
    }

    /// The rules that [`Repository::reload`] puts in force.
    pub(crate) fn rules(&self) -> watch::Receiver<Arc<Rules>> {
        self.inner.guarding.rules.subscribe()
    }

    /// Where dropped callers are counted.
    pub(crate) fn drops(&self) -> Arc<Drops> {
        Arc::clone(&self.inner.guarding.drops)
    }

    /// Where the hints of peers arrive.
    pub(crate) fn hints(&self) -> Arc<Hints> {
        Arc::clone(&self.inner.guarding.hints)
    }

    /// The callers that this process has dropped, if any.
    pub(super) fn dropped(&self) -> Option<DropReport> {
        Some(self.inner.guarding.drops.report()).filter(|report| report.count > 0)
    }
}

/// Tells who listens of `new`, if it is that.
fn replace<T: PartialEq>(told: &watch::Sender<Arc<T>>, new: T) {
    told.send_if_modified(|current| {
        let is_new = **current != new;
        if is_new {
            *current = Arc::new(new);
        }
        is_new
    });
}

fn rules_of(config: &Config) -> Rules {
    Rules {
        private: config.access == Access::Private,
        remotes: config.remotes.values().filter_map(|remote| remote.address.repository()).collect(),
        limits: config.limits,
    }
}
