//! How the `testnet` commands talk to a running network: a socket in its directory, one JSON
//! request and one JSON answer per connection.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt},
    net::UnixListener,
};

use crate::{Addresses, Error, LinkStats};

const SOCKET: &str = "control.sock";
/// A request is answered at once; stopping takes its time.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// A client that connects has its request ready.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);

/// What can be asked of a running network.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Where a machine is.
    Locate { machine: String },
    /// Change a machine's link; what is `None` stays.
    Link(LinkChange),
    /// What went over each machine's link.
    Stats,
    /// End the network; answered when it has ended.
    Stop,
}

/// A change of a machine's link; what is `None` stays.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct LinkChange {
    pub(crate) machine: String,
    pub(crate) loss: Option<f64>,
    pub(crate) delay: Option<Duration>,
    pub(crate) up: Option<bool>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Located { pid: u32, addresses: Addresses },
    Stats(BTreeMap<String, LinkStats>),
    Failed { message: String },
}

/// Asks the network in `dir`.
pub(crate) fn ask(dir: &Path, request: &Request) -> Result<Answer, Error> {
    let folder = File::open(dir).map_err(|_| Error::NotRunning(dir.to_owned()))?;
    let mut stream = UnixStream::connect(socket_path(&folder)).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => Error::NotRunning(dir.to_owned()),
        _ => Error::file("connect to", dir.join(SOCKET))(error),
    })?;
    let answer = exchange(&mut stream, request).map_err(Error::file("talk to", dir.join(SOCKET)))?;
    match answer {
        Answer::Failed { message } => Err(Error::Refused(message)),
        answer => Ok(answer),
    }
}

/// Asks the network in `dir` to change a link.
pub(crate) fn change_link(dir: &Path, change: LinkChange) -> Result<(), Error> {
    if change.loss.is_some_and(|loss| !(0.0..=1.0).contains(&loss)) {
        return Err(Error::Refused("loss is a probability: a number from 0 to 1".to_owned()));
    }
    ask(dir, &Request::Link(change)).map(drop)
}

fn exchange(stream: &mut UnixStream, request: &Request) -> std::io::Result<Answer> {
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(&line(request)?)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

/// Listens in `dir`, in place of a predecessor that crashed.
pub(crate) fn listen(dir: &Path) -> Result<UnixListener, Error> {
    remove(dir);
    let open = || UnixListener::bind(socket_path(&File::open(dir)?));
    open().map_err(Error::file("listen on", dir.join(SOCKET)))
}

pub(crate) fn remove(dir: &Path) {
    // Most often there is none.
    let _ = std::fs::remove_file(dir.join(SOCKET));
}

/// Reads the request of a client.
pub(crate) async fn read_request(stream: &mut tokio::net::UnixStream) -> std::io::Result<Request> {
    let mut request = String::new();
    tokio::time::timeout(REQUEST_LIMIT, tokio::io::BufReader::new(stream).read_line(&mut request)).await??;
    Ok(serde_json::from_str(&request)?)
}

/// Answers a client; one that has gone away does not matter.
pub(crate) async fn reply(stream: &mut tokio::net::UnixStream, answer: &Answer) {
    let Ok(line) = line(answer) else { return };
    let _ = stream.write_all(&line).await;
}

fn line(message: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// The socket's path by way of its open folder: a socket's path may have 107 bytes only, which
/// temporary folders can exceed.
fn socket_path(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}
