//! One thread, a clock that jumps, and one source of chance: everything that happens in a world, and in which order,
//! follows from its seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    ops::Range,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use ddcp::{
    host::{Host, Machine},
    transport::BoxFuture,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::sync::watch;

/// The task that [`World::run`] was called with.
const ROOT: u64 = 0;

/// Polls after which a history is taken to go round in circles.
const MOST_POLLS: u64 = 20_000_000;

/// Cheap to clone; all clones are the same world.
#[derive(Clone)]
pub(crate) struct World {
    state: Arc<Mutex<State>>,
    ready: Arc<Ready>,
}

struct State {
    epoch: Instant,
    now: Duration,
    rng: StdRng,
    ids: u64,
    polls: u64,
    tasks: BTreeMap<u64, Task>,
    timers: BTreeMap<(Duration, u64), Waker>,
    processes: BTreeMap<u64, Life>,
    trace: blake3::Hasher,
    /// Whether notes are printed.
    tell: bool,
}

struct Task {
    process: Option<u64>,
    /// Not here while it is being polled.
    future: Option<BoxFuture<'static, ()>>,
}

/// A process that lives.
struct Life {
    /// Polls of its tasks until it is killed.
    polls_left: Option<u32>,
    alive: watch::Sender<bool>,
}

/// Tasks that were woken. A set: in which order they were woken does not matter.
#[derive(Default)]
struct Ready(Mutex<BTreeSet<u64>>);

struct TaskWaker {
    task: u64,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.0.lock().unwrap().insert(self.task);
    }
}

impl World {
    pub(crate) fn new(seed: u64, tell: bool) -> Self {
        let state = State {
            epoch: Instant::now(),
            now: Duration::ZERO,
            rng: StdRng::seed_from_u64(seed),
            ids: ROOT,
            polls: 0,
            tasks: BTreeMap::new(),
            timers: BTreeMap::new(),
            processes: BTreeMap::new(),
            trace: blake3::Hasher::new(),
            tell,
        };
        Self { state: Arc::new(Mutex::new(state)), ready: Arc::default() }
    }

    /// Runs `root` and every task to the end of `root`; what still runs then is dropped.
    pub(crate) fn run<T>(&self, root: impl Future<Output = T>) -> T {
        let mut root = pin!(root);
        self.wake(ROOT);
        let output = loop {
            let task = self.next_task();
            let waker = Waker::from(Arc::new(TaskWaker { task, ready: self.ready.clone() }));
            let mut context = Context::from_waker(&waker);
            if task != ROOT {
                self.poll_task(task, &mut context);
            } else if let Poll::Ready(output) = root.as_mut().poll(&mut context) {
                break output;
            }
        };
        let rest = std::mem::take(&mut self.lock().tasks);
        drop(rest);
        output
    }

    /// Any of the tasks that can go on; if there is none, time goes on to where one can.
    fn next_task(&self) -> u64 {
        loop {
            let mut state = self.lock();
            let mut ready = self.ready.0.lock().unwrap();
            if !ready.is_empty() {
                let chosen = state.rng.random_range(0..ready.len());
                let task = *ready.iter().nth(chosen).unwrap();
                ready.remove(&task);
                state.polls += 1;
                assert!(state.polls < MOST_POLLS, "the history does not end");
                let (now, polls) = (state.now, state.polls);
                state.trace.update(&task.to_le_bytes()).update(&now.as_nanos().to_le_bytes());
                state.trace.update(&polls.to_le_bytes());
                return task;
            }
            drop(ready);
            let ((then, _), waker) = state.timers.pop_first().expect("everything waits for nothing");
            state.now = state.now.max(then);
            drop(state);
            waker.wake();
        }
    }

    fn poll_task(&self, id: u64, context: &mut Context<'_>) {
        let (mut future, process) = {
            let mut state = self.lock();
            let Some(task) = state.tasks.get_mut(&id) else { return };
            (task.future.take().expect("a task does not poll itself"), task.process)
        };
        if process.is_some_and(|process| self.dies_now(process)) {
            drop(future);
            return;
        }
        let done = future.as_mut().poll(context).is_ready();
        let mut state = self.lock();
        if done {
            state.tasks.remove(&id);
        } else if let Some(task) = state.tasks.get_mut(&id) {
            task.future = Some(future);
            return;
        }
        drop(state);
        drop(future);
    }

    /// Counts a poll of a task of `process`, and kills it if it has had enough of them.
    fn dies_now(&self, process: u64) -> bool {
        let mut state = self.lock();
        let Some(life) = state.processes.get_mut(&process) else { return true };
        let dies = match &mut life.polls_left {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        drop(state);
        if dies {
            self.kill(process);
        }
        dies
    }

    fn kill(&self, process: u64) {
        let mut state = self.lock();
        let Some(life) = state.processes.remove(&process) else { return };
        let theirs: Vec<u64> =
            state.tasks.iter().filter(|(_, task)| task.process == Some(process)).map(|(id, _)| *id).collect();
        let tasks: Vec<_> = theirs.iter().filter_map(|id| state.tasks.remove(id)).collect();
        drop(state);
        self.note(&format!("process {process} dies with {} tasks", tasks.len()));
        drop(tasks);
        life.alive.send_replace(false);
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_in(None, Box::pin(task));
    }

    fn spawn_in(&self, process: Option<u64>, future: BoxFuture<'static, ()>) {
        let mut state = self.lock();
        if process.is_some_and(|process| !state.processes.contains_key(&process)) {
            drop(state);
            return;
        }
        let id = state.next_id();
        state.tasks.insert(id, Task { process, future: Some(future) });
        drop(state);
        self.wake(id);
    }

    fn wake(&self, task: u64) {
        self.ready.0.lock().unwrap().insert(task);
    }

    /// A process, alive.
    pub(crate) fn start_process(&self) -> Process {
        let mut state = self.lock();
        let id = state.next_id();
        let (alive, watched) = watch::channel(true);
        state.processes.insert(id, Life { polls_left: None, alive });
        Process { world: self.clone(), id, alive: watched }
    }

    pub(crate) fn sleep(&self, pause: Duration) -> Sleep {
        let until = self.lock().now + pause;
        Sleep { world: self.clone(), until, timer: None }
    }

    /// Something worth knowing when a history is looked at. Is part of the trace.
    pub(crate) fn note(&self, what: &str) {
        let mut state = self.lock();
        state.trace.update(what.as_bytes());
        if state.tell {
            eprintln!("{:>12.6} {what}", state.now.as_secs_f64());
        }
    }

    /// A hash of everything that happened so far.
    pub(crate) fn trace(&self) -> blake3::Hash {
        self.lock().trace.finalize()
    }

    pub(crate) fn number(&self, range: Range<u64>) -> u64 {
        self.lock().rng.random_range(range)
    }

    pub(crate) fn index(&self, length: usize) -> usize {
        self.lock().rng.random_range(0..length)
    }

    pub(crate) fn chance(&self, probability: f64) -> bool {
        self.lock().rng.random_bool(probability)
    }

    pub(crate) fn millis(&self, range: Range<u64>) -> Duration {
        Duration::from_micros(self.number(range.start * 1000..range.end * 1000))
    }

    pub(crate) fn bytes(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.lock().rng.fill(bytes.as_mut_slice());
        bytes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }
}

/// Is ready when the time has come.
pub(crate) struct Sleep {
    world: World,
    until: Duration,
    timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let world = self.world.clone();
        let mut state = world.lock();
        if state.now >= self.until {
            return Poll::Ready(());
        }
        let timer = *self.timer.get_or_insert_with(|| state.next_id());
        state.timers.insert((self.until, timer), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.world.lock().timers.remove(&(self.until, timer));
        }
    }
}

/// A process: tasks that end together. Also a machine, for what runs in it.
#[derive(Clone)]
pub(crate) struct Process {
    world: World,
    id: u64,
    alive: watch::Receiver<bool>,
}

impl Process {
    pub(crate) fn host(&self) -> Host {
        Host::new(self.clone())
    }

    pub(crate) fn is_alive(&self) -> bool {
        *self.alive.borrow()
    }

    /// Its tasks are dropped where they are, now.
    pub(crate) fn kill(&self) {
        self.world.kill(self.id);
    }

    /// Its tasks are dropped where they are after so many more polls of any of them.
    pub(crate) fn kill_after(&self, polls: u32) {
        if let Some(life) = self.world.lock().processes.get_mut(&self.id) {
            life.polls_left = Some(polls);
        }
    }

    /// It is not killed after all.
    pub(crate) fn pardon(&self) {
        if let Some(life) = self.world.lock().processes.get_mut(&self.id) {
            life.polls_left = None;
        }
    }

    /// Is ready when it is dead.
    pub(crate) async fn died(&self) {
        // An error means that the world has ended.
        drop(self.alive.clone().wait_for(|alive| !alive).await);
    }

    /// Runs `work` in this process. `None` if the process dies before.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (done, result) = tokio::sync::oneshot::channel();
        self.spawn(Box::pin(async move { drop(done.send(work.await)) }));
        result.await.ok()
    }
}

impl Machine for Process {
    fn now(&self) -> Instant {
        let state = self.world.lock();
        state.epoch + state.now
    }

    fn sleep(&self, pause: Duration) -> BoxFuture<'static, ()> {
        Box::pin(self.world.sleep(pause))
    }

    fn random(&self) -> u64 {
        self.world.lock().rng.random()
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.world.spawn_in(Some(self.id), task);
    }

    /// A thread that begins a little later, now and then much later, and is as fast as the files are.
    fn block(&self, work: Box<dyn FnOnce() + Send>) {
        let pause = if self.world.chance(0.03) { self.world.millis(50..500) } else { self.world.millis(0..3) };
        let begin = self.world.sleep(pause);
        self.spawn(Box::pin(async move {
            begin.await;
            work();
        }));
    }
}

/// Is dropped at the poll after so many. `None` if it was.
pub(crate) struct DroppedAfter<F> {
    future: Option<Pin<Box<F>>>,
    polls_left: u32,
}

impl<F> DroppedAfter<F> {
    pub(crate) fn new(polls: u32, future: F) -> Self {
        Self { future: Some(Box::pin(future)), polls_left: polls }
    }
}

impl<F: Future> Future for DroppedAfter<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls_left == 0 {
            self.future = None;
            return Poll::Ready(None);
        }
        self.polls_left -= 1;
        let future = self.future.as_mut().expect("not polled after its end");
        future.as_mut().poll(context).map(Some)
    }
}
