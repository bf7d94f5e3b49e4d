use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixListener},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::{
    rpc::{Refusal, TOO_MANY_CLIENTS},
    session, socket,
    token::Token,
};
use crate::{Error, ErrorKind, config::ControlAddress, newcomers::Newcomers, repo::Repository};

/// Clients that are served at once on the socket, and as many on TCP; further ones are told so.
const MOST_CLIENTS: usize = 64;

/// How long one that is told so may take to hear it.
const GOODBYE: Duration = Duration::from_secs(1);

/// The daemon's side of the control protocol.
pub struct Server {
    socket: UnixListener,
    path: PathBuf,
    tcp: Option<(TcpListener, Token)>,
    token_file: PathBuf,
    asked: Asked,
}

/// What requests are answered with.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) repository: Repository,
    /// Told when a client asks the daemon to end.
    pub(super) stop: Arc<Notify>,
    /// Where else than on the socket clients are served.
    pub(super) tcp: Option<SocketAddr>,
    work: Arc<Mutex<JoinSet<()>>>,
}

impl Asked {
    /// Does `work`, to its end even if whoever asked for it is gone meanwhile, unless the daemon ends.
    pub(super) async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Error> {
        let (done, result) = oneshot::channel();
        {
            let mut running = self.work.lock().unwrap_or_else(PoisonError::into_inner);
            while running.try_join_next().is_some() {}
            running.spawn(async move { drop(done.send(work.await)) });
        }
        result.await.map_err(|_| Error::Interrupted("the daemon ends".into()))
    }
}

impl Server {
    /// Binds the control socket of `repository`, whose lock the caller holds, and the port at
    /// `address` if there is one. `stop` is told when a client asks the daemon to end.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::ControlPort`].
    pub fn bind(repository: Repository, address: Option<ControlAddress>, stop: Arc<Notify>) -> Result<Self, Error> {
        let (path, token_file) = (repository.layout().socket(), repository.layout().control_token());
        let failed = |path: &PathBuf| {
            let path = path.clone();
            move |source| Error::Io { path, source }
        };
        let tcp = match address {
            Some(address) => {
                let address = address.socket();
                let listener = bind_tcp(address).map_err(|source| Error::ControlPort { address, source })?;
                Some((listener, Token::create(&token_file).map_err(failed(&token_file))?))
            }
            None => {
                Token::remove(&token_file).map_err(failed(&token_file))?;
                None
            }
        };
        let socket = socket::bind(&path).map_err(failed(&path))?;
        let bound = tcp.as_ref().and_then(|(listener, _)| listener.local_addr().ok());
        if let Some(address) = bound {
            tracing::info!(%address, token = %token_file.display(), "control requests are taken on TCP");
        }
        let asked = Asked { repository, stop, tcp: bound, work: Arc::default() };
        Ok(Self { socket, path, tcp, token_file, asked })
    }

    /// Answers clients until the future is dropped; what they asked for is then broken off.
    pub async fn run(self) {
        let on_socket = accept_all(&self.asked, &self.socket);
        match &self.tcp {
            Some((listener, token)) => {
                let on_tcp = accept_strangers(&self.asked, token, listener);
                tokio::join!(on_socket, on_tcp);
            }
            None => on_socket.await,
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Serves whoever connects to the socket: the owner's programs.
async fn accept_all(asked: &Asked, listener: &UnixListener) {
    let places = Arc::new(Semaphore::new(MOST_CLIENTS));
    let mut clients = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    let asked = asked.clone();
                    clients.spawn(async move {
                        let _place = place;
                        note_end(session::serve(stream, asked, None).await);
                    });
                }
                Err(_) => turn_away(stream).await,
            },
            Err(error) => cannot_accept(&error).await,
        }
        while clients.try_join_next().is_some() {}
    }
}

/// Serves whoever connects to the port and shows the token. Until they have, they take nobody's place.
async fn accept_strangers(asked: &Asked, token: &Token, listener: &TcpListener) {
    let door = Door {
        token: token.clone(),
        strangers: Newcomers::new(MOST_CLIENTS),
        places: Arc::new(Semaphore::new(MOST_CLIENTS)),
    };
    let mut clients = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (asked, inner) = (asked.clone(), door.clone());
                let session = async move { note_end(session::serve(stream, asked, Some(inner)).await) };
                door.strangers.spawn(&mut clients, session);
            }
            Err(error) => cannot_accept(&error).await,
        }
    }
}

/// Where those who come on TCP wait until they have shown the token.
#[derive(Clone)]
pub(super) struct Door {
    token: Token,
    strangers: Newcomers,
    places: Arc<Semaphore>,
}

impl Door {
    /// Whether `shown` is the token.
    pub(super) fn opens_to(&self, shown: &str) -> bool {
        self.token.is(shown)
    }

    /// Gives the client whose task this is, and who has shown the token, a place.
    ///
    /// # Errors
    /// The refusal, where there is none.
    pub(super) fn enter(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| too_many())?;
        self.strangers.graduate(tokio::task::id());
        Ok(place)
    }
}

fn note_end(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a control client went away");
    }
}

/// Out of file descriptors, for instance: not for ever.
async fn cannot_accept(error: &io::Error) {
    tracing::warn!(%error, "a control client could not be accepted");
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// Tells a client that there are too many. Nobody is waited for: a new connection takes so short a line at once.
async fn turn_away(mut stream: impl AsyncWrite + Unpin) {
    let line = format!("{}\n", too_many().answer(&serde_json::Value::Null));
    let _ = timeout(GOODBYE, stream.write_all(line.as_bytes())).await;
}

fn too_many() -> Refusal {
    let message = format!("the daemon serves {MOST_CLIENTS} control clients already");
    let mut refusal = Refusal::wrong(TOO_MANY_CLIENTS, message).with_hint("end some of them, and try again");
    refusal.failure.kind = ErrorKind::Failed;
    refusal
}

impl Drop for Server {
    fn drop(&mut self) {
        // What was asked for is not to go on after the daemon's lock is given back.
        self.asked.work.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        if let Err(error) = socket::remove(&self.path).and_then(|()| Token::remove(&self.token_file)) {
            tracing::warn!(%error, "the control socket could not be removed");
        }
    }
}
