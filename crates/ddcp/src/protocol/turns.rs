//! Who may read the database next: the caller that has had the least of its time, so that one with much to read
//! holds up nobody who wants little.
//!
//! Start-time fair queueing: each caller's next turn starts, in a time that only passes while somebody reads, where
//! its last one ended. A caller that comes new or has been away starts at the present, so idling saves up nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{clock::now, gate::Account};
use crate::host::Host;

/// A bounded number of turns that are taken at one time.
pub(crate) struct Turns {
    queue: Mutex<Queue>,
    host: Host,
}

struct Queue {
    free: usize,
    /// Where the turn that started last started.
    now: Duration,
    /// By start, then in the order of asking.
    waiting: BTreeMap<(Duration, u64), Waiter>,
    tickets: u64,
}

struct Waiter {
    account: Arc<Account>,
    ready: oneshot::Sender<Turn>,
}

/// A turn: it ends when this is dropped, and the time until then is the caller's.
pub(crate) struct Turn {
    turns: Option<Arc<Turns>>,
    account: Arc<Account>,
    began: Instant,
    host: Host,
}

impl Turns {
    pub(crate) fn new(at_once: usize, host: Host) -> Arc<Self> {
        let queue = Queue { free: at_once, now: Duration::ZERO, waiting: BTreeMap::new(), tickets: 0 };
        Arc::new(Self { queue: Mutex::new(queue), host })
    }

    /// Waits for a turn of `account`'s.
    pub(crate) async fn take(self: &Arc<Self>, account: &Arc<Account>) -> Turn {
        let waiting = {
            let mut queue = self.queue();
            let start = account.read_until().max(queue.now);
            account.set_read_until(start);
            if queue.free > 0 {
                queue.free -= 1;
                queue.now = start;
                return self.turn(account);
            }
            let (ready, waiting) = oneshot::channel();
            queue.tickets += 1;
            let ticket = queue.tickets;
            queue.waiting.insert((start, ticket), Waiter { account: Arc::clone(account), ready });
            waiting
        };
        match waiting.await {
            Ok(turn) => turn,
            // Only the end of `Turns` drops a waiter, and the caller holds that.
            Err(_) => self.turn_of(None, account),
        }
    }

    fn turn(self: &Arc<Self>, account: &Arc<Account>) -> Turn {
        self.turn_of(Some(Arc::clone(self)), account)
    }

    fn turn_of(&self, turns: Option<Arc<Self>>, account: &Arc<Account>) -> Turn {
        Turn { turns, account: Arc::clone(account), began: now(&self.host), host: self.host.clone() }
    }

    /// Gives a turn that ended to whoever is next.
    fn pass_on(self: &Arc<Self>) {
        loop {
            let waiter = {
                let mut queue = self.queue();
                let Some(((start, _), waiter)) = queue.waiting.pop_first() else {
                    queue.free += 1;
                    return;
                };
                queue.now = queue.now.max(start);
                waiter
            };
            match waiter.ready.send(self.turn(&waiter.account)) {
                Ok(()) => return,
                // It waits no longer. The turn is still here to pass on.
                Err(mut turn) => turn.turns = None,
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.turns.take() else { return };
        self.account.add_read_time(now(&self.host).saturating_duration_since(self.began));
        turns.pass_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::clock::advance;

    /// Lets every task that can go on do so.
    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_has_read_much_waits_for_who_has_read_little() {
        let turns = Turns::new(1, Host::default());
        let (greedy, modest) = (Arc::new(Account::default()), Arc::new(Account::default()));
        let long = turns.take(&greedy).await;
        advance(Duration::from_secs(10));
        drop(long);
        let held = turns.take(&modest).await;
        let order = Arc::new(Mutex::new(String::new()));
        let join = |account: &Arc<Account>, name: char| {
            let (turns, account, order) = (turns.clone(), account.clone(), order.clone());
            tokio::spawn(async move {
                let _turn = turns.take(&account).await;
                order.lock().unwrap().push(name);
                advance(Duration::from_secs(1));
            })
        };
        let tasks =
            [join(&greedy, 'g'), join(&greedy, 'g'), join(&modest, 'm'), join(&modest, 'm'), join(&modest, 'm')];
        settle().await;
        drop(held);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), "mmmgg", "the greedy one has had ten seconds already");
    }

    #[tokio::test]
    async fn who_gives_up_waiting_holds_up_nobody() {
        let turns = Turns::new(2, Host::default());
        let account = Arc::new(Account::default());
        let (one, two) = (turns.take(&account).await, turns.take(&account).await);
        for _ in 0..3 {
            let waited = tokio::time::timeout(Duration::from_millis(1), turns.take(&account)).await;
            assert!(waited.is_err());
        }
        drop((one, two));
        let all = [turns.take(&account).await, turns.take(&account).await];
        assert_eq!(turns.queue().free, 0);
        drop(all);
        let queue = turns.queue();
        assert_eq!((queue.free, queue.waiting.len()), (2, 0));
    }
}
