//! Metrics of the daemon, as Prometheus and its likes collect them: `GET /metrics`.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Metric, Registry, Unit},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::JoinSet,
};

use crate::{
    Error, ErrorKind,
    config::RemoteName,
    newcomers::Newcomers,
    repo::{Measured, Repository},
};

/// Collectors that are answered at once; the oldest gives way.
const MOST_CLIENTS: usize = 32;

/// The longest head of a request.
const LONGEST_HEAD: usize = 8 * 1024;

/// How long a collector may take to ask and to read the answer.
const PATIENCE: Duration = Duration::from_secs(10);

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Listens for collectors.
///
/// # Errors
/// [`Error::Metrics`].
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Metrics { address, source })?;
    let bound = listener.local_addr().unwrap_or(address);
    if !bound.ip().is_loopback() {
        tracing::warn!(%bound, "whoever reaches this port may read the metrics, names of remotes among them");
    }
    tracing::info!("metrics at http://{bound}/metrics");
    Ok(listener)
}

/// Answers collectors until the future is dropped; without a `listener` nobody.
pub(crate) async fn serve(repository: Repository, listener: Option<TcpListener>) {
    let Some(listener) = listener else { return std::future::pending().await };
    let (newcomers, mut clients) = (Newcomers::new(MOST_CLIENTS), JoinSet::new());
    // However many ask, one looks at a time.
    let source = Arc::new(Mutex::new(repository));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let source = Arc::clone(&source);
                newcomers.spawn(&mut clients, async move {
                    let answered = tokio::time::timeout(PATIENCE, answer(stream, &source)).await;
                    if !matches!(answered, Ok(Ok(()))) {
                        tracing::debug!("a collector of metrics went away or was too slow");
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, for instance: not for ever.
                tracing::warn!(%error, "a collector of metrics could not be accepted");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Answers one request; then the connection is closed.
async fn answer(mut stream: TcpStream, source: &Mutex<Repository>) -> std::io::Result<()> {
    let is_local = stream.local_addr()?.ip().to_canonical().is_loopback();
    let (status, kind, body) = match asked(&mut stream, is_local).await? {
        Asked::Metrics => match source.lock().await.blocking(Repository::measure).await {
            Ok(measured) => ("200 OK", CONTENT_TYPE, render(&measured, &Process::look())),
            Err(error) => ("500 Internal Server Error", "text/plain", format!("{error}\n")),
        },
        Asked::OtherHost => {
            ("403 Forbidden", "text/plain", "ask by an address of this machine, or as localhost\n".to_owned())
        }
        Asked::Other => ("404 Not Found", "text/plain", "metrics are at /metrics\n".to_owned()),
        Asked::WrongMethod => ("405 Method Not Allowed", "text/plain", "GET only\n".to_owned()),
        Asked::Nonsense => ("400 Bad Request", "text/plain", "that is no request\n".to_owned()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Metrics,
    Other,
    /// The client takes this machine for one of another name: a web page whose name leads here.
    OtherHost,
    WrongMethod,
    Nonsense,
}

async fn asked(stream: &mut TcpStream, is_local: bool) -> std::io::Result<Asked> {
    let mut head = Vec::new();
    loop {
        let mut part = [0; 1024];
        let read = stream.read(&mut part).await?;
        head.extend_from_slice(&part[..read]);
        match parse(&head, is_local) {
            Some(asked) => return Ok(asked),
            None if read == 0 || head.len() > LONGEST_HEAD => return Ok(Asked::Nonsense),
            None => {}
        }
    }
}

/// What a request asks for, which came by this machine alone if it `is_local`; `None` if its head is not there yet.
fn parse(head: &[u8], is_local: bool) -> Option<Asked> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => None,
        Err(_) => Some(Asked::Nonsense),
        Ok(httparse::Status::Complete(_)) => {
            let path = request.path.unwrap_or_default();
            let mut hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
            if is_local && !hosts.all(|host| is_own_name(host.value)) {
                return Some(Asked::OtherHost);
            }
            Some(match (request.method, path.split('?').next()) {
                (Some("GET"), Some("/metrics")) => Asked::Metrics,
                (Some("GET"), _) => Asked::Other,
                _ => Asked::WrongMethod,
            })
        }
    }
}

/// Whether a `Host` names this machine itself. Names that others give out may lead to it too.
fn is_own_name(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let host = host.trim();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let is_address = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    name.eq_ignore_ascii_case("localhost") || is_address(name) || is_address(host)
}

/// What the operating system says of this process.
#[derive(Clone, Copy, Debug, Default)]
struct Process {
    memory: Option<u64>,
    files: Option<u64>,
}

impl Process {
    fn look() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
        let files = fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as u64);
        Self { memory: kilobytes.map(|kilobytes| kilobytes * 1024), files }
    }
}

type Labels = Vec<(&'static str, String)>;

/// What is shown. All labels are names of remotes in config.toml, or words of this program.
#[derive(Default)]
struct Metrics(Registry);

impl Metrics {
    fn register(&mut self, name: &str, help: &str, unit: Option<Unit>, metric: impl Metric) {
        match unit {
            Some(unit) => self.0.register_with_unit(name, help, unit, metric),
            None => self.0.register(name, help, metric),
        }
    }

    /// A number without labels, if it is known.
    fn gauge(&mut self, name: &str, help: &str, unit: Option<Unit>, value: Option<i64>) {
        let Some(value) = value else { return };
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        self.register(name, help, unit, gauge);
    }

    /// A count without labels, if it is known.
    fn counter(&mut self, name: &str, help: &str, value: Option<u64>) {
        let Some(value) = value else { return };
        let counter = Counter::<u64>::default();
        counter.inc_by(value);
        self.register(name, help, None, counter);
    }

    fn gauges(&mut self, name: &str, help: &str, unit: Option<Unit>, values: impl IntoIterator<Item = (Labels, i64)>) {
        let family = Family::<Labels, Gauge>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.register(name, help, unit, family);
    }

    fn counters(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.register(name, help, None, family);
    }
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn render(measured: &Measured, process: &Process) -> String {
    let mut metrics = Metrics::default();
    let bytes = || Some(Unit::Bytes);
    metrics.gauge("ddcp_database_version", "Version of the database", None, Some(measured.version));
    let (database, state) = (Some(number(measured.database_bytes)), Some(number(measured.state_bytes)));
    metrics.gauge("ddcp_database", "The database with its log", bytes(), database);
    metrics.gauge("ddcp_state", "What the repository keeps beside the database", bytes(), state);
    render_counted(&mut metrics, measured);
    render_standing(&mut metrics, measured);
    let answers = measured.answers.iter().map(|(answer, count)| (vec![("answer", (*answer).to_owned())], *count));
    metrics.counters("ddcp_answers", "Answers to requests of peers, by what they say", answers);
    metrics.counter("ddcp_callers_dropped", "Callers refused for a while for what they did", Some(measured.dropped));
    let connected = measured.node.map(|(connected, _)| i64::from(connected));
    metrics.gauge("ddcp_node_connected", "Whether the node is connected to the network", None, connected);
    let connections = measured.node.map(|(_, times)| times);
    metrics.counter("ddcp_node_connections", "Times that the node came to be connected", connections);
    metrics.gauge("process_resident_memory", "Memory of this process", bytes(), process.memory.map(number));
    metrics.gauge("process_open_fds", "Files that this process has open", None, process.files.map(number));
    let mut text = String::new();
    // Memory takes every write.
    let _ = encode(&mut text, &metrics.0);
    text
}

/// What was done with each remote.
fn render_counted(metrics: &mut Metrics, measured: &Measured) {
    let label = |name: &Option<RemoteName>| match name {
        Some(name) => vec![("remote", name.to_string())],
        None => vec![("remote", String::new())],
    };
    let counted = || measured.counted.iter().map(|(name, counted)| (label(name), counted));
    metrics.counters("ddcp_fetches", "Fetches that succeeded", counted().map(|(l, c)| (l, c.fetches)));
    metrics.counters("ddcp_changes_fetched", "Changes fetched", counted().map(|(l, c)| (l, c.changes)));
    metrics.counters("ddcp_bytes_fetched", "Bytes of packs fetched", counted().map(|(l, c)| (l, c.bytes)));
    metrics.counters("ddcp_records_merged", "Records that merges changed", counted().map(|(l, c)| (l, c.merged)));
    let failures = counted().flat_map(|(labels, counted)| {
        let of_kind = move |(kind, count): (&ErrorKind, &u64)| {
            let kind = ("kind", kind.to_string());
            (labels.iter().cloned().chain([kind]).collect(), *count)
        };
        counted.failures.iter().map(of_kind).collect::<Vec<_>>()
    });
    metrics.counters("ddcp_failures", "Fetches and merges that failed, by the kind of failure", failures);
}

/// Where the repository stands with each remote.
fn render_standing(metrics: &mut Metrics, measured: &Measured) {
    let standing = || measured.remotes.iter().map(|(name, standing)| (vec![("remote", name.to_string())], standing));
    let contact = standing().filter_map(|(l, s)| Some((l, s.last_contact?)));
    metrics.gauges("ddcp_remote_last_contact_timestamp", "When it last answered", Some(Unit::Seconds), contact);
    let failing = standing().map(|(l, s)| (l, i64::from(s.is_failing)));
    metrics.gauges("ddcp_remote_failing", "Whether something has gone wrong since it last answered", None, failing);
    let version = standing().filter_map(|(l, s)| Some((l, s.version?)));
    metrics.gauges("ddcp_remote_version", "Version of its database when it last answered", None, version);
    let merged = standing().map(|(l, s)| (l, s.merged_version.unwrap_or(0)));
    metrics.gauges("ddcp_remote_merged_version", "Version up to which it is merged here", None, merged);
    let bytes = standing().map(|(l, s)| (l, number(s.inbox_bytes)));
    metrics.gauges("ddcp_inbox", "Packs fetched and not merged", Some(Unit::Bytes), bytes);
    let changes = standing().map(|(l, s)| (l, number(s.inbox_changes)));
    metrics.gauges("ddcp_inbox_changes", "Changes fetched and not merged", None, changes);
    let waiting = standing().map(|(l, s)| (l, number(s.waiting)));
    metrics.gauges("ddcp_waiting_changes", "Changes that do not fit the tables here", None, waiting);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::repo::{Counted, Standing};

    #[test]
    fn requests_are_read_as_they_come() {
        let request = b"GET /metrics?x=1 HTTP/1.1\r\nHost: localhost:9184\r\n\r\n";
        for end in 0..request.len() {
            assert_eq!(parse(&request[..end], true), None, "{end}");
        }
        assert_eq!(parse(request, true), Some(Asked::Metrics));
        assert_eq!(parse(b"GET / HTTP/1.0\r\n\r\n", true), Some(Asked::Other));
        assert_eq!(parse(b"POST /metrics HTTP/1.1\r\n\r\n", true), Some(Asked::WrongMethod));
        assert_eq!(parse(b"\x16\x03\x01", true), Some(Asked::Nonsense));
        let elsewhere = b"GET /metrics HTTP/1.1\r\nHost: server.example\r\n\r\n";
        assert_eq!(parse(elsewhere, true), Some(Asked::OtherHost));
        assert_eq!(parse(elsewhere, false), Some(Asked::Metrics), "that machine is called so");
    }

    #[test]
    fn the_text_is_as_collectors_read_it() {
        let counted =
            Counted { changes: 3, failures: BTreeMap::from([(ErrorKind::Unreachable, 2)]), ..Counted::default() };
        let name: RemoteName = "alice".parse().unwrap();
        let measured = Measured {
            version: 7,
            counted: BTreeMap::from([(Some(name.clone()), counted)]),
            remotes: BTreeMap::from([(name, Standing { last_contact: Some(1000), ..Standing::default() })]),
            answers: BTreeMap::from([("status", 5), ("busy", 1)]),
            node: Some((true, 2)),
            ..Measured::default()
        };
        let text = render(&measured, &Process { memory: Some(4096), files: None });
        for line in [
            "# TYPE ddcp_database_version gauge",
            "ddcp_database_version 7",
            "# TYPE ddcp_changes_fetched counter",
            "ddcp_changes_fetched_total{remote=\"alice\"} 3",
            "ddcp_failures_total{remote=\"alice\",kind=\"unreachable\"} 2",
            "ddcp_remote_last_contact_timestamp_seconds{remote=\"alice\"} 1000",
            "ddcp_answers_total{answer=\"busy\"} 1",
            "ddcp_node_connected 1",
            "process_resident_memory_bytes 4096",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(!text.contains("process_open_fds "), "what is not known is not told");
    }
}
