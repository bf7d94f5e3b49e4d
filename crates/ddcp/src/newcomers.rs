//! Connections that any program of this machine may make. None is waited for at the others' expense: there are so many at
//! a time, and where one more comes, the one that has been here for longest leaves.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::task::{AbortHandle, Id, JoinSet};

/// Those who are here.
#[derive(Clone)]
pub(crate) struct Newcomers {
    most: usize,
    here: Arc<Mutex<VecDeque<AbortHandle>>>,
}

impl Newcomers {
    /// Room for `most`.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, here: Arc::default() }
    }

    /// Runs `task` for one more, among `clients`.
    pub(crate) fn spawn(&self, clients: &mut JoinSet<()>, task: impl Future<Output = ()> + Send + 'static) {
        while clients.try_join_next().is_some() {}
        let mut here = self.here();
        here.retain(|other| !other.is_finished());
        while here.len() >= self.most
            && let Some(oldest) = here.pop_front()
        {
            oldest.abort();
        }
        here.push_back(clients.spawn(task));
    }

    /// Has the task `id`, which was begun by [`Newcomers::spawn`], be none of them any more: it gives way to nobody. Whether it
    /// still was one.
    pub(crate) fn graduate(&self, id: Id) -> bool {
        let mut here = self.here();
        let before = here.len();
        here.retain(|other| other.id() != id);
        here.len() < before
    }

    /// What the mutex guards is consistent after every statement, so a panic elsewhere does not spoil it.
    fn here(&self) -> MutexGuard<'_, VecDeque<AbortHandle>> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::oneshot;

    use super::*;

    /// A task that never ends, and what tells that it was broken off.
    fn endless(newcomers: &Newcomers, clients: &mut JoinSet<()>) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        newcomers.spawn(clients, async move {
            let _sender: oneshot::Sender<()> = sender;
            pending::<()>().await;
        });
        receiver
    }

    #[tokio::test]
    async fn the_oldest_gives_way() {
        let (newcomers, mut clients) = (Newcomers::new(2), JoinSet::new());
        let [oldest, mut second, _third] = [(); 3].map(|()| endless(&newcomers, &mut clients));
        assert!(oldest.await.is_err(), "it was broken off");
        assert!(second.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
    }

    #[tokio::test]
    async fn who_is_known_gives_way_to_nobody() {
        let (newcomers, mut clients) = (Newcomers::new(1), JoinSet::new());
        let ((go, told), (done, end)) = (oneshot::channel::<()>(), oneshot::channel());
        let (let_in, is_in) = oneshot::channel();
        let known = newcomers.clone();
        newcomers.spawn(&mut clients, async move {
            let _ = let_in.send(known.graduate(tokio::task::id()));
            let _ = told.await;
            let _ = done.send(());
        });
        assert!(is_in.await.unwrap());
        let _others = [(); 2].map(|()| endless(&newcomers, &mut clients));
        go.send(()).unwrap();
        assert!(end.await.is_ok(), "it goes on to its end");
    }
}
