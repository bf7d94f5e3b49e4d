use std::{process, sync::Arc};

use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    Error,
    daemon::{self, Stage},
    repo::{Events, Held, Repository},
    transport::Address,
};

/// A repository that is being served in this process: peers and control clients are answered, and remotes followed.
///
/// Dropping it ends that as [`Serving::stop`] does, and does not wait for the end.
#[derive(Debug)]
#[must_use = "it ends when this is dropped"]
pub struct Serving {
    repository: Repository,
    stop: Arc<Notify>,
    address: watch::Receiver<Option<Address>>,
    task: JoinHandle<Result<(), Error>>,
}

impl Repository {
    /// Serves the repository in this process, as `ddcp serve` does in its own: answers peers, follows the remotes whose
    /// setting says so, and takes control requests, so that commands work on it meanwhile. Signals are left to the
    /// application.
    ///
    /// Returns once commands are answered; the network may take longer ([`Serving::address`]). Must be called in a Tokio
    /// runtime, which has to live as long as it is served. An own transport's peers are answered by
    /// [`Repository::handler`], and its remotes are not followed: call [`Repository::pull`].
    ///
    /// # Errors
    /// [`Error::Locked`] where it is served already, here or by another process, or another process works on it for
    /// more than ten seconds; [`Error::Io`], [`Error::ControlPort`], [`Error::Config`].
    pub async fn serve(&self) -> Result<Serving, Error> {
        let Some(alone) = self.serve_alone() else {
            return Err(Error::Locked { path: self.layout().database().to_owned(), pid: Some(process::id()) });
        };
        let lock = daemon::lock(self).await?;
        let stop = Arc::new(Notify::new());
        let (show, address) = watch::channel(None);
        let (ready, begun) = oneshot::channel();
        let (repository, stopped) = (self.clone(), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let (mut ready, mut show) = (Some(ready), Some(show));
            let on_stage = |stage: Stage<'_>| match stage {
                Stage::Commands => drop(ready.take().map(|ready| ready.send(()))),
                Stage::Address(Some(address)) => drop(show.take().map(|show| show.send(Some(address.clone())))),
                // Nobody is to wait for it.
                Stage::Address(None) => drop(show.take()),
                Stage::Peers => {}
            };
            let result = tokio::select! {
                result = daemon::serve_held(&repository, Arc::clone(&stopped), on_stage) => result,
                () = stopped.notified() => Ok(()),
            };
            end(&repository, lock).await;
            drop(alone);
            result
        });
        let serving = Serving { repository: self.clone(), stop, address, task };
        match begun.await {
            Ok(()) => Ok(serving),
            Err(_) => serving.ended().await.and(Err(Error::Interrupted("it ended at once".into()))),
        }
    }
}

/// Leaves the network and lets the repository go: what is being merged ends with the present pack.
async fn end(repository: &Repository, lock: Held) {
    repository.end();
    repository.shutdown().await;
    drop(lock);
    repository.released().await;
    repository.begin_again();
}

impl Serving {
    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        self.repository.events()
    }

    /// Waits for the address that peers use, which the first start ever takes from the network; `None` if there will be
    /// none, since it has no network or has ended.
    pub async fn address(&self) -> Option<Address> {
        let mut address = self.address.clone();
        let address = address.wait_for(Option::is_some).await.ok()?;
        address.clone()
    }

    /// Waits until it ends by itself: asked to by a control client, or since it failed.
    ///
    /// # Errors
    /// What kept it from going on.
    pub async fn ended(mut self) -> Result<(), Error> {
        (&mut self.task).await.unwrap_or_else(|error| Err(Error::Interrupted(error.to_string())))
    }

    /// Ends it, and waits until the node is down and the repository is free for others: until nothing in this process
    /// reads or writes it any more. Nothing is lost: a merge ends with the pack that it is at, and what was being
    /// fetched goes on where it stopped. It can be served again afterwards.
    ///
    /// # Errors
    /// What ended it before.
    pub async fn stop(self) -> Result<(), Error> {
        self.stop.notify_one();
        self.ended().await
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}
