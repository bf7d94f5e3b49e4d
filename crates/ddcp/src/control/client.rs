use std::{io, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use super::{CONTROL_VERSION, Command, LONGEST_LINE, rpc::PROGRESS, socket};
use crate::{
    ErrorKind, Failure,
    repo::{Layout, Monitor},
};

/// How long a daemon may take to say who it is.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// A connection to a repository's daemon.
pub struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects to the daemon of the repository at `layout`; `None` if none runs.
    ///
    /// # Errors
    /// When the socket cannot be used, or the daemon is of another version.
    pub async fn open(layout: &Layout) -> Result<Option<Self>, Failure> {
        let path = layout.socket();
        let stream = socket::connect(&path).await.map_err(|error| Failure {
            kind: ErrorKind::Failed,
            message: format!("{}: {error}", path.display()),
            hint: Some("the daemon's control socket belongs to the user who started `ddcp serve`".into()),
        })?;
        let Some(stream) = stream else { return Ok(None) };
        let mut connection = Self { stream: BufReader::new(stream) };
        let unwatched = Monitor::default();
        let hello = connection.request("hello", json!({"control": CONTROL_VERSION}), &unwatched);
        match tokio::time::timeout(HELLO_PATIENCE, hello).await {
            Ok(Ok(hello)) if hello["control"] == CONTROL_VERSION => Ok(Some(connection)),
            Ok(Ok(_)) => Err(Failure {
                kind: ErrorKind::Failed,
                message: format!(
                    "`ddcp serve` runs for {}, but is another version of ddcp",
                    layout.database().display()
                ),
                hint: Some("restart it with this version".into()),
            }),
            // It went away between the connection and its answer.
            Ok(Err(Broken::Closed)) => Ok(None),
            Ok(Err(Broken::Failed(failure))) => Err(failure),
            Err(_) => Err(Failure {
                kind: ErrorKind::Failed,
                message: format!("`ddcp serve` runs for {}, but does not answer", layout.database().display()),
                hint: Some("restart it".into()),
            }),
        }
    }

    /// Has the daemon do what `command` says and waits for the outcome; `monitor` shows meanwhile how far it is.
    ///
    /// # Errors
    /// What the daemon reports, or that it went away.
    pub async fn call(mut self, command: &Command, monitor: &Monitor) -> Result<Value, Failure> {
        let mut request = serde_json::to_value(command).map_err(|error| internal(&error))?;
        let mut params = request["params"].take();
        params["progress"] = true.into();
        let method = request["method"].as_str().unwrap_or_default().to_owned();
        self.request(&method, params, monitor).await.map_err(|broken| match broken {
            Broken::Failed(failure) => failure,
            Broken::Closed => Failure {
                kind: ErrorKind::Failed,
                message: "`ddcp serve` went away before it was done".into(),
                hint: Some("nothing is half done; repeat the command".into()),
            },
        })
    }

    /// Asks the daemon to end and waits until it no longer answers.
    ///
    /// # Errors
    /// What the daemon reports.
    pub async fn stop(mut self) -> Result<(), Failure> {
        match self.request("stop", json!({}), &Monitor::default()).await {
            Err(Broken::Failed(failure)) => return Err(failure),
            Ok(_) | Err(Broken::Closed) => {}
        }
        let mut rest = Vec::new();
        // It hangs up when it ends, which is all that is waited for.
        let _ = self.stream.read_to_end(&mut rest).await;
        Ok(())
    }

    /// Sends a request and waits for its answer; what comes before it says how far the daemon is.
    async fn request(&mut self, method: &str, params: Value, monitor: &Monitor) -> Result<Value, Broken> {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        // A daemon that turns this client away does not read, and has said why: what cannot be written is of no matter.
        let _ = self.stream.write_all(format!("{request}\n").as_bytes()).await;
        loop {
            let mut message = self.receive().await?;
            if message["method"] == PROGRESS {
                if let Ok(progress) = serde_json::from_value(message["params"]["remotes"].take()) {
                    monitor.show(progress);
                }
                continue;
            }
            return match message.get("error") {
                Some(error) => Err(Broken::Failed(failure(error))),
                None => Ok(message["result"].take()),
            };
        }
    }

    async fn receive(&mut self) -> Result<Value, Broken> {
        let mut line = Vec::new();
        (&mut self.stream).take(LONGEST_LINE as u64).read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Err(Broken::Closed);
        }
        serde_json::from_slice(&line).map_err(|error| Broken::Failed(internal(&error)))
    }
}

enum Broken {
    Closed,
    Failed(Failure),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Failed(internal(&error)),
        }
    }
}

fn internal(error: &dyn std::error::Error) -> Failure {
    Failure { kind: ErrorKind::Internal, message: format!("the control socket: {error}"), hint: None }
}

/// The failure in a JSON-RPC error object: ours are in its `data`.
fn failure(error: &Value) -> Failure {
    serde_json::from_value(error["data"].clone()).unwrap_or_else(|_| Failure {
        kind: ErrorKind::Internal,
        message: format!("`ddcp serve` answers: {}", error["message"].as_str().unwrap_or("an error without words")),
        hint: None,
    })
}
