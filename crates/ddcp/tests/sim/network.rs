//! A network that loses, duplicates, delays and reorders messages, and can be cut.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use ddcp::{
    host::Machine,
    transport::{Address, BoxFuture, Connector, Handler, MAX_MESSAGE, Peer, TransportError},
};
use tokio::sync::mpsc::{self, UnboundedSender};

use crate::world::{Process, World};

/// How long a caller waits before it sends its request again.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How often a request is sent.
const ATTEMPTS: usize = 3;

/// What befalls messages, each with a probability.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    /// Of being delayed by seconds.
    pub(crate) late: f64,
    /// Of a server having all its places taken.
    pub(crate) busy: f64,
}

impl Weather {
    pub(crate) const FAIR: Self = Self { loss: 0.0, duplication: 0.0, late: 0.0, busy: 0.0 };
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Network {
    world: World,
    state: Arc<Mutex<State>>,
}

struct State {
    weather: Weather,
    sites: Vec<Site>,
    cut: BTreeSet<(usize, usize)>,
}

struct Site {
    address: PathBuf,
    serving: Option<(Process, Arc<dyn Handler>)>,
}

impl Network {
    pub(crate) fn new(world: &World, addresses: Vec<PathBuf>) -> Self {
        let sites = addresses.into_iter().map(|address| Site { address, serving: None }).collect();
        let state = State { weather: Weather::FAIR, sites, cut: BTreeSet::new() };
        Self { world: world.clone(), state: Arc::new(Mutex::new(state)) }
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.world.note(&format!("{weather:?}"));
        self.state.lock().unwrap().weather = weather;
    }

    /// Cuts the link between two sites, in one direction.
    pub(crate) fn cut(&self, from: usize, to: usize) {
        self.state.lock().unwrap().cut.insert((from, to));
    }

    pub(crate) fn mend(&self) {
        self.world.note("links are mended");
        self.state.lock().unwrap().cut.clear();
    }

    /// From now on `handler`, in `process`, answers for `site`.
    pub(crate) fn serve(&self, site: usize, process: Process, handler: Arc<dyn Handler>) {
        self.state.lock().unwrap().sites[site].serving = Some((process, handler));
    }

    /// Nobody answers for `site` any more.
    pub(crate) fn stop(&self, site: usize) {
        self.state.lock().unwrap().sites[site].serving = None;
    }

    /// The way from `site` to all others.
    pub(crate) fn ways_from(&self, site: usize, process: Process) -> Arc<dyn Connector> {
        Arc::new(Ways { network: self.clone(), site, process })
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.state.lock().unwrap().cut.contains(&(from, to))
    }

    fn weather(&self) -> Weather {
        self.state.lock().unwrap().weather
    }

    /// Has `arrive` happen as often, and when, as the weather will have it.
    fn carry(&self, (from, to): (usize, usize), message: &[u8], arrive: impl Fn() + Clone + Send + 'static) {
        assert!(message.len() <= MAX_MESSAGE, "a message of {} bytes", message.len());
        let weather = self.weather();
        let copies = if self.world.chance(weather.duplication) { 2 } else { 1 };
        for _ in 0..copies {
            let hash = blake3::hash(message).to_hex();
            if self.is_cut(from, to) || self.world.chance(weather.loss) {
                self.world.note(&format!("{from} → {to}: {} bytes {} are lost", message.len(), &hash[..8]));
                continue;
            }
            let late = self.world.chance(weather.late);
            let pause = if late { self.world.millis(100..8000) } else { self.world.millis(1..60) };
            let (network, length, arrive) = (self.clone(), message.len(), arrive.clone());
            let arrival = self.world.sleep(pause);
            self.world.spawn(async move {
                arrival.await;
                if !network.is_cut(from, to) {
                    network.world.note(&format!("{from} → {to}: {length} bytes {} arrive", &hash[..8]));
                    arrive();
                }
            });
        }
    }

    fn ask(&self, from: usize, to: usize, request: Vec<u8>, answered: UnboundedSender<Vec<u8>>) {
        let network = self.clone();
        let message = request.clone();
        self.carry((from, to), &message, move || {
            let Some((process, handler)) = network.state.lock().unwrap().sites[to].serving.clone() else { return };
            let (network, request, answered) = (network.clone(), request.clone(), answered.clone());
            process.spawn(Box::pin(async move {
                let busy = network.world.chance(network.weather().busy);
                let answer = if busy { handler.busy() } else { handler.handle(request).await };
                let message = answer.clone();
                network.carry((to, from), &message, move || drop(answered.send(answer.clone())));
            }));
        });
    }
}

struct Ways {
    network: Network,
    site: usize,
    process: Process,
}

impl Connector for Ways {
    fn connect(&self, address: &Address) -> BoxFuture<'_, Result<Arc<dyn Peer>, TransportError>> {
        let Address::Path(path) = address else { panic!("{address} is no address of this network") };
        // It may be a link to it.
        let file = path.canonicalize().unwrap_or_else(|_| path.clone());
        let to = self.network.state.lock().unwrap().sites.iter().position(|site| site.address == file);
        Box::pin(async move {
            let to = to.ok_or(TransportError::NotFound)?;
            let way = Way { network: self.network.clone(), from: self.site, to, process: self.process.clone() };
            Ok(Arc::new(way) as Arc<dyn Peer>)
        })
    }
}

struct Way {
    network: Network,
    from: usize,
    to: usize,
    process: Process,
}

impl Peer for Way {
    fn call(&self, request: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        Box::pin(async move {
            // An answer to any of the attempts will do; the others are nobody's any more.
            let (answered, mut answers) = mpsc::unbounded_channel();
            for _ in 0..ATTEMPTS {
                self.network.ask(self.from, self.to, request.clone(), answered.clone());
                let patience = self.process.sleep(PATIENCE);
                tokio::select! {
                    biased;
                    answer = answers.recv() => return Ok(answer.expect("its sender is kept")),
                    () = patience => {}
                }
            }
            Err(TransportError::Unreachable("no answer".to_owned()))
        })
    }
}
