use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Notify, Semaphore},
    task::JoinSet,
};

use super::{CONTROL_VERSION, Command, LONGEST_LINE, PROGRESS, execute, socket};
use crate::{
    Error, ErrorKind, Failure,
    repo::{Monitor, Repository},
};

/// How often a client is told how far its command is.
const PROGRESS_PAUSE: Duration = Duration::from_millis(250);

/// Clients served at once; further ones wait.
const MOST_CLIENTS: usize = 64;

/// The daemon's side of the control socket.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    asked: Asked,
}

/// What requests are answered with.
#[derive(Clone)]
struct Asked {
    repository: Repository,
    /// Told when a client asks the daemon to end.
    stop: Arc<Notify>,
}

impl Server {
    /// Binds the control socket of `repository`, whose lock the caller holds. `stop` is told when a client asks the
    /// daemon to end.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn bind(repository: Repository, stop: Arc<Notify>) -> Result<Self, Error> {
        let path = repository.layout().socket();
        let listener = socket::bind(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        Ok(Self { listener, path, asked: Asked { repository, stop } })
    }

    /// Answers clients until the future is dropped; what they asked for is then broken off.
    pub async fn run(self) {
        let places = Arc::new(Semaphore::new(MOST_CLIENTS));
        let mut clients = JoinSet::new();
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let asked = self.asked.clone();
                    clients.spawn(async move {
                        let _place = place;
                        if let Err(error) = serve_client(stream, asked).await {
                            tracing::debug!(%error, "a control client went away");
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, for instance: not for ever.
                    tracing::warn!(%error, "a control client could not be accepted");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            while clients.try_join_next().is_some() {}
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = socket::remove(&self.path) {
            tracing::warn!(%error, "the control socket could not be removed");
        }
    }
}

/// One request after the other, in order, until the client hangs up. What it asked for before is still finished.
async fn serve_client(stream: UnixStream, asked: Asked) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        (&mut stream).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let answer = wrong(&Value::Null, INVALID_REQUEST, "the line is too long or has no end");
            return stream.write_all(format!("{answer}\n").as_bytes()).await;
        }
        let answer = answer(&line, &asked, &mut stream).await;
        stream.write_all(format!("{answer}\n").as_bytes()).await?;
    }
}

const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_PARAMS: i32 = -32602;
/// A command failed; `data` holds the [`Failure`].
const COMMAND_FAILED: i32 = -32000;

const METHODS: [&str; 18] = [
    "status",
    "remote.list",
    "remote.add",
    "remote.remove",
    "remote.rename",
    "remote.set-address",
    "remote.set-sync",
    "config.get",
    "config.set",
    "log",
    "fetch",
    "merge",
    "pull",
    "schema.diff",
    "schema.adopt",
    "verify",
    "doctor",
    "bundle.fetch",
];

async fn answer(line: &[u8], asked: &Asked, client: &mut (impl AsyncWrite + Unpin)) -> Value {
    let request: Value = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => return wrong(&Value::Null, PARSE_ERROR, &error.to_string()),
    };
    let id = &request["id"];
    let Some(method) = request["method"].as_str() else {
        return wrong(id, INVALID_REQUEST, "there is no method");
    };
    if method == "hello" {
        let hello =
            json!({"control": CONTROL_VERSION, "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id()});
        return done(id, &hello);
    }
    if method == "stop" {
        asked.stop.notify_one();
        return done(id, &Value::Null);
    }
    if !METHODS.contains(&method) {
        return wrong(id, METHOD_NOT_FOUND, &format!("there is no method {method}"));
    }
    let params = request.get("params").cloned().unwrap_or_else(|| json!({}));
    let is_watched = params["progress"] == true;
    let command: Command = match serde_json::from_value(json!({"method": method, "params": params})) {
        Ok(command) => command,
        Err(error) => return wrong(id, INVALID_PARAMS, &error.to_string()),
    };
    let result = match is_watched {
        true => execute_watched(&asked.repository, command, id, client).await,
        false => execute(&asked.repository, command, true, &Monitor::default()).await,
    };
    match result {
        Ok(result) => done(id, &result),
        Err(error) => failed(id, COMMAND_FAILED, &error.report()),
    }
}

/// Does what `command` says and tells the client now and then how far it is. The work is a task of its own: a client
/// that reads slowly, or went away, does not hold it up.
async fn execute_watched(
    repository: &Repository,
    command: Command,
    id: &Value,
    client: &mut (impl AsyncWrite + Unpin),
) -> Result<Value, Error> {
    let monitor = Monitor::default();
    let mut work = JoinSet::new();
    let (worked_on, watched) = (repository.clone(), monitor.clone());
    work.spawn(async move { execute(&worked_on, command, true, &watched).await });
    let mut told = BTreeMap::new();
    let mut is_there = true;
    loop {
        tokio::select! {
            result = work.join_next() => {
                let result = result.ok_or_else(|| Error::Interrupted("there was nothing to do".into()))?;
                return result.map_err(|error| Error::Interrupted(error.to_string()))?;
            }
            () = tokio::time::sleep(PROGRESS_PAUSE), if is_there => {
                let now = monitor.read();
                if now != told {
                    let params = json!({"id": id, "remotes": now});
                    let line = json!({"jsonrpc": "2.0", "method": PROGRESS, "params": params});
                    is_there = client.write_all(format!("{line}\n").as_bytes()).await.is_ok();
                    told = now;
                }
            }
        }
    }
}

fn done(id: &Value, result: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "result": result})
}

/// A request that is no command.
fn wrong(id: &Value, code: i32, message: &str) -> Value {
    failed(id, code, &Failure { kind: ErrorKind::Usage, message: message.to_owned(), hint: None })
}

fn failed(id: &Value, code: i32, failure: &Failure) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": failure.message, "data": failure}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_can_be_asked_for() {
        let unknown = json!({"method": "", "params": {}});
        let text = serde_json::from_value::<Command>(unknown).unwrap_err().to_string();
        let names: Vec<&str> = text.split('`').skip(3).step_by(2).collect();
        assert_eq!(names, METHODS);
    }
}
