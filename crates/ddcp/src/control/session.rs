//! One client: its requests are answered one after the other, and what it subscribed to is told in between.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    sync::{Mutex, Notify, OwnedSemaphorePermit},
    task::JoinSet,
    time::timeout,
};

use super::{
    CONTROL_VERSION, Command, LONGEST_LINE, execute,
    rpc::{
        self, EVENT, INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, NOT_AUTHORISED, OTHER_VERSION, PROGRESS,
        Refusal, Request,
    },
    server::{Asked, Door},
};
use crate::{
    Error, ErrorKind, Failure,
    repo::{Events, Monitor},
};

/// The longest request in bytes.
const LONGEST_REQUEST: usize = 1024 * 1024;
/// The longest first request of a client that has to show a token.
const LONGEST_HELLO: usize = 4 * 1024;
/// How long such a client may take to do so.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// How long a client may take to read a line, or to make room for it.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// How often a client is told how far its command is.
const PROGRESS_PAUSE: Duration = Duration::from_millis(250);

/// Serves the client at the other end of `stream`, until it hangs up, breaks the rules or does not read. What it asked
/// for before is still finished. Who comes by a `door` has to show its token first.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    asked: Asked,
    door: Option<Door>,
) -> io::Result<()> {
    let (read, write) = tokio::io::split(stream);
    let client =
        Arc::new(Client { writer: Mutex::new(Box::pin(write)), is_cut: AtomicBool::new(false), cut: Notify::new() });
    let mut session = Session { client: Arc::clone(&client), asked, subscription: JoinSet::new() };
    tokio::select! {
        result = session.answer_all(BufReader::new(read), door) => result,
        () = client.cut.notified() => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not read")),
    }
}

/// Where the lines for a client go. Nothing is kept for one that does not read: whoever has a line for it waits, and
/// after [`WRITE_PATIENCE`] it is cut off.
struct Client {
    writer: Mutex<std::pin::Pin<Box<dyn AsyncWrite + Send>>>,
    is_cut: AtomicBool,
    cut: Notify,
}

impl Client {
    async fn send(&self, message: &Value) -> io::Result<()> {
        let line = line(message);
        let mut writer = self.writer.lock().await;
        if self.is_cut.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let written = timeout(WRITE_PATIENCE, writer.write_all(line.as_bytes())).await;
        let result = written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if result.is_err() {
            // A part of the line may have been written: nothing can follow.
            self.is_cut.store(true, Ordering::Relaxed);
            self.cut.notify_one();
        }
        result
    }
}

/// What is written for `message`. A client takes no line that is longer, and is told so in its place.
fn line(message: &Value) -> String {
    let line = format!("{message}\n");
    if line.len() <= LONGEST_LINE {
        return line;
    }
    let failure = Failure {
        kind: ErrorKind::Failed,
        message: format!("the answer has {} bytes, and at most {LONGEST_LINE} are told", line.len()),
        hint: Some("ask for less: for one remote, or for one table".into()),
    };
    format!("{}\n", Refusal::from(failure).answer(&message["id"]))
}

struct Session {
    client: Arc<Client>,
    asked: Asked,
    /// What tells the client of events, once it has subscribed.
    subscription: JoinSet<()>,
}

impl Session {
    async fn answer_all(&mut self, mut input: BufReader<impl AsyncRead + Unpin>, door: Option<Door>) -> io::Result<()> {
        let mut _place = None;
        if let Some(door) = door {
            let line = timeout(HELLO_PATIENCE, read_line(&mut input, LONGEST_HELLO)).await??;
            let Line::Whole(line) = line else { return Ok(()) };
            _place = match self.let_in(&line, &door).await? {
                Ok(place) => Some(place),
                Err((id, refusal)) => return self.client.send(&refusal.answer(&id)).await,
            };
        }
        loop {
            match read_line(&mut input, LONGEST_REQUEST).await? {
                Line::None => return Ok(()),
                Line::Whole(line) => self.answer(&line).await?,
                Line::Broken => {
                    let message = format!("the line has no end, or more than {LONGEST_REQUEST} bytes");
                    let refusal = Refusal::wrong(INVALID_REQUEST, message);
                    return self.client.send(&refusal.answer(&Value::Null)).await;
                }
            }
        }
    }

    /// Takes the first request of a client that has to show the token, and gives it its place. All it learns otherwise is
    /// that it has not.
    async fn let_in(&mut self, line: &[u8], door: &Door) -> io::Result<Result<OwnedSemaphorePermit, (Value, Refusal)>> {
        let request = match rpc::parse(line) {
            Ok(request) => request,
            Err(refused) => return Ok(Err(refused)),
        };
        let shown = request.params.get("token").and_then(Value::as_str);
        if request.method == "hello" && shown.is_some_and(|shown| door.opens_to(shown)) {
            return Ok(match door.enter() {
                Ok(place) => {
                    self.answer(line).await?;
                    Ok(place)
                }
                Err(refusal) => Err((request.id.unwrap_or_default(), refusal)),
            });
        }
        let refusal = Refusal::wrong(NOT_AUTHORISED, "the first request must be `hello` with the token").with_hint(
            "the token is in `control.token` in the state directory; it is another each time the daemon starts",
        );
        Ok(Err((request.id.unwrap_or_default(), refusal)))
    }

    /// Does what a line asks for and answers it, unless it is a notification.
    async fn answer(&mut self, line: &[u8]) -> io::Result<()> {
        let request = match rpc::parse(line) {
            Ok(request) => request,
            Err((id, refusal)) => return self.client.send(&refusal.answer(&id)).await,
        };
        // Made before the answer, so that nothing that happens after it is missed.
        let events = (request.method == "subscribe").then(|| self.asked.repository.events());
        let id = request.id.clone();
        let result = self.execute(request).await?;
        if let Some(id) = id {
            let answer = match &result {
                Ok(result) => rpc::answer(&id, result),
                Err(refusal) => refusal.answer(&id),
            };
            self.client.send(&answer).await?;
        }
        if let (Some(events), Ok(_)) = (events, result) {
            self.subscription.spawn(tell_events(events, Arc::clone(&self.client)));
        }
        Ok(())
    }

    async fn execute(&mut self, request: Request) -> io::Result<Result<Value, Refusal>> {
        let Request { id, method, mut params } = request;
        Ok(match method.as_str() {
            "hello" => self.hello(params),
            "subscribe" if !params.is_empty() => Err(Refusal::wrong(INVALID_PARAMS, "`subscribe` takes no params")),
            "subscribe" if !self.subscription.is_empty() => {
                Err(Failure { kind: ErrorKind::Usage, message: "it is subscribed already".into(), hint: None }.into())
            }
            "subscribe" => Ok(Value::Null),
            "stop" => {
                self.asked.stop.notify_one();
                Ok(Value::Null)
            }
            name if !Command::METHODS.contains(&name) => {
                Err(Refusal::wrong(METHOD_NOT_FOUND, format!("there is no method {name}")))
            }
            _ => {
                let is_watched = params.remove("progress") == Some(true.into());
                match serde_json::from_value(json!({"method": method, "params": params})) {
                    Ok(command) => self.command(command, id.filter(|_| is_watched)).await?,
                    Err(error) => Err(Refusal::wrong(INVALID_PARAMS, error.to_string())),
                }
            }
        })
    }

    fn hello(&self, params: Map<String, Value>) -> Result<Value, Refusal> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Hello {
            control: Option<u32>,
            #[serde(rename = "token")]
            _token: Option<String>,
        }
        let hello: Hello = serde_json::from_value(Value::Object(params))
            .map_err(|error| Refusal::wrong(INVALID_PARAMS, error.to_string()))?;
        if let Some(other) = hello.control.filter(|version| *version != CONTROL_VERSION) {
            let message = format!("this daemon speaks version {CONTROL_VERSION} of the control protocol, not {other}");
            return Err(Refusal::wrong(OTHER_VERSION, message)
                .with_hint("let the client and `ddcp serve` be of one version of ddcp"));
        }
        let mut result =
            json!({"control": CONTROL_VERSION, "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id()});
        if let Some(address) = self.asked.tcp {
            result["tcp"] = address.to_string().into();
        }
        Ok(result)
    }

    /// Does what `command` says, and tells meanwhile how far it is if `watched` is the id of a request that wants to
    /// know.
    async fn command(&self, command: Command, watched: Option<Value>) -> io::Result<Result<Value, Refusal>> {
        let monitor = Monitor::default();
        let (repository, shown) = (self.asked.repository.clone(), monitor.clone());
        let work = self.asked.finish(async move { execute(&repository, command, true, &shown).await });
        let done = |result: Result<Result<Value, Error>, Error>| Ok(result.flatten().map_err(|e| e.report().into()));
        let Some(id) = watched else { return done(work.await) };
        let mut told = BTreeMap::new();
        let mut work = std::pin::pin!(work);
        loop {
            if let Ok(result) = timeout(PROGRESS_PAUSE, work.as_mut()).await {
                return done(result);
            }
            let now = monitor.read();
            if now != told {
                self.client.send(&rpc::notification(PROGRESS, json!({"id": id, "remotes": now}))).await?;
                told = now;
            }
        }
    }
}

/// Tells of events until there are no more or nobody reads them.
async fn tell_events(mut events: Events, client: Arc<Client>) {
    while let Some(event) = events.next().await {
        if client.send(&rpc::notification(EVENT, event)).await.is_err() {
            return;
        }
    }
}

/// What was read of a line.
enum Line {
    /// The client has hung up.
    None,
    Whole(Vec<u8>),
    /// It is too long, or the client hung up in the middle of it.
    Broken,
}

async fn read_line(input: &mut BufReader<impl AsyncRead + Unpin>, longest: usize) -> io::Result<Line> {
    let mut line = Vec::new();
    input.take(longest as u64).read_until(b'\n', &mut line).await?;
    Ok(match line.last() {
        None => Line::None,
        Some(b'\n') => Line::Whole(line),
        Some(_) => Line::Broken,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(room: usize) -> (Client, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(room);
        (Client { writer: Mutex::new(Box::pin(ours)), is_cut: AtomicBool::new(false), cut: Notify::new() }, theirs)
    }

    #[tokio::test]
    async fn who_hangs_up_is_cut_off_and_told_nothing_more() {
        let (client, theirs) = client(64);
        client.send(&json!(1)).await.unwrap();
        drop(theirs);
        assert!(client.send(&json!(2)).await.is_err());
        client.cut.notified().await;
        assert!(client.send(&json!(3)).await.is_err());
    }

    #[test]
    fn answers_have_a_greatest_length() {
        let answer = |bytes: usize| line(&rpc::answer(&7.into(), &"x".repeat(bytes).into()));
        let around = answer(0).len();
        let longest = answer(LONGEST_LINE - around);
        assert!(longest.len() == LONGEST_LINE && longest.contains("xxx"));
        let refused: Value = serde_json::from_str(&answer(LONGEST_LINE - around + 1)).unwrap();
        assert_eq!((&refused["id"], &refused["result"]), (&7.into(), &Value::Null));
        assert!(refused["error"]["message"].as_str().unwrap().contains("at most 16777216"), "{refused}");
    }

    #[tokio::test]
    async fn lines_have_an_end_and_a_greatest_length() {
        let mut input = BufReader::new(&b"one\n\n12345678\n9"[..]);
        assert!(matches!(read_line(&mut input, 8).await.unwrap(), Line::Whole(line) if line == b"one\n"));
        assert!(matches!(read_line(&mut input, 8).await.unwrap(), Line::Whole(line) if line == b"\n"));
        assert!(matches!(read_line(&mut input, 8).await.unwrap(), Line::Broken));
        assert!(matches!(read_line(&mut input, 8).await.unwrap(), Line::Whole(line) if line == b"\n"));
        assert!(matches!(read_line(&mut input, 8).await.unwrap(), Line::Broken));
        assert!(matches!(read_line(&mut input, 8).await.unwrap(), Line::None));
    }
}
