//! The daemon's control protocol: what is said is what `docs/control.schema.json` says, and nobody who misbehaves gets
//! in the way of others.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::{
        fd::AsFd,
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    time::{Duration, Instant},
};

use ddcp::control::Command;
use insta::assert_snapshot;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use crate::{
    json_schema::Schema,
    serve::{Daemon, serve},
    support::{PATIENCE, Repo, World},
};

const SCHEMA: &str = include_str!("../../../../docs/control.schema.json");

/// The methods that are no commands on the repository.
const OTHERS: [&str; 3] = ["hello", "subscribe", "stop"];

/// A client that holds both sides to the schema.
struct Client {
    schema: Schema,
    input: Box<dyn BufRead>,
    output: Box<dyn Write>,
    /// Notifications that came while an answer was waited for.
    told: Vec<Value>,
    /// Methods that were answered with a result, and events that were told of.
    seen: BTreeSet<String>,
    last_id: u64,
}

impl Client {
    fn connect(repo: &Repo) -> Self {
        let stream = UnixStream::connect(repo.state("control.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::on(stream.try_clone().unwrap(), stream)
    }

    fn connect_tcp(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::on(stream.try_clone().unwrap(), stream)
    }

    fn on(input: impl Read + 'static, output: impl Write + 'static) -> Self {
        Self {
            schema: Schema::parse(SCHEMA),
            input: Box::new(BufReader::new(input)),
            output: Box::new(output),
            told: Vec::new(),
            seen: BTreeSet::new(),
            last_id: 0,
        }
    }

    /// The next line; null if there is none any more.
    fn read(&mut self) -> Value {
        let mut line = String::new();
        match self.input.read_line(&mut line) {
            Ok(0) | Err(_) => Value::Null,
            Ok(_) => serde_json::from_str(&line).unwrap(),
        }
    }

    /// The answer to what is asked, whatever it is.
    fn answer(&mut self, request: &Value) -> Value {
        writeln!(self.output, "{request}").unwrap();
        loop {
            let message = self.read();
            if message.get("method").is_none() {
                return message;
            }
            self.note(message);
        }
    }

    fn note(&mut self, message: Value) {
        self.schema.assert_valid("notification", &message);
        if message["method"] == "event" {
            self.seen.insert(format!("event {}", message["params"]["event"].as_str().unwrap()));
        }
        self.told.push(message);
    }

    /// The answer to a request that is as the schema says.
    fn ask(&mut self, method: &str, params: &Value) -> Value {
        self.last_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params});
        self.schema.assert_valid("request", &request);
        let answer = self.answer(&request);
        assert_eq!(answer["id"], self.last_id, "{request}: {answer}");
        self.schema.assert_valid("answer", &answer);
        answer
    }

    /// The result of a request that must succeed.
    fn ok(&mut self, method: &str, params: &Value) -> Value {
        let mut answer = self.ask(method, params);
        assert!(answer.get("error").is_none(), "{method} {params}: {answer}");
        let result = answer["result"].take();
        self.schema.assert_valid(&format!("{method}.result"), &result);
        self.seen.insert(method.to_owned());
        result
    }

    /// The code and kind of the error that a request must end with.
    fn error(&mut self, method: &str, params: &Value) -> (i64, String) {
        let answer = self.ask(method, params);
        let error = &answer["error"];
        assert_eq!(error["message"], error["data"]["message"], "{answer}");
        (error["code"].as_i64().unwrap(), error["data"]["kind"].as_str().unwrap().to_owned())
    }

    /// Waits for an event of this kind.
    fn event(&mut self, kind: &str) -> Value {
        let is_it = |message: &Value| message["method"] == "event" && message["params"]["event"] == kind;
        loop {
            if let Some(at) = self.told.iter().position(is_it) {
                return self.told.remove(at)["params"].take();
            }
            let message = self.read();
            assert!(message.is_object(), "there is no event {kind}, but {:?}", self.seen);
            self.note(message);
        }
    }
}

/// Where the daemon of `repo` serves clients on TCP.
pub(crate) fn tcp_address(repo: &Repo) -> String {
    Client::connect(repo).ok("hello", &json!({}))["tcp"].as_str().unwrap().to_owned()
}

#[test]
fn everything_that_is_said_is_in_the_schema() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let _daemon = Daemon::start(&world, &b);
    let path = |repo: &Repo| repo.db().to_str().unwrap().to_owned();
    let mut client = Client::connect(&b);
    client.ok("hello", &json!({"control": 1}));
    client.ok("subscribe", &json!({}));
    assert_eq!(client.error("subscribe", &json!({})), (-32000, "usage".to_owned()), "twice");
    assert!(client.ok("address", &json!({})).as_str().unwrap().starts_with("VLD0:"));

    client.ok("remote.add", &json!({"name": "x", "address": path(&a)}));
    client.ok("remote.add", &json!({"name": "dead", "address": "/nowhere.db", "sync": "manual"}));
    client.ok("remote.rename", &json!({"old": "x", "new": "a"}));
    client.ok("remote.set-address", &json!({"name": "a", "address": path(&a)}));
    assert_eq!(client.ok("remote.list", &json!({}))[0]["name"], "a");
    client.ok("fetch", &json!({"remote": "a"}));
    assert_eq!(client.event("fetched")["changes"], 2);
    client.ok("merge", &json!({"remote": "a"}));
    assert_eq!(client.event("merged")["applied"], json!({"note": 2}));
    let pulled = client.ok("pull", &json!({}));
    assert_eq!(pulled["fetched"][1]["failed"]["kind"], "unreachable", "{pulled}");
    let error = client.event("error");
    assert_eq!((&error["remote"], &error["failure"]["kind"]), (&"dead".into(), &"unreachable".into()));
    client.ok("remote.remove", &json!({"name": "dead"}));
    assert_eq!(client.ok("status", &json!({}))["remotes"].as_array().unwrap().len(), 1);

    a.sql("CREATE TABLE extra (id INTEGER PRIMARY KEY NOT NULL, x); SELECT crsql_as_crr('extra')");
    a.sql("INSERT INTO extra VALUES (1, 'x')");
    let missing = json!({"extra": [{"difference": "missing-here"}]});
    assert_eq!(client.ok("schema.diff", &json!({"remote": "a"}))["tables"], missing);
    assert_eq!(client.ok("fetch", &json!({}))[0]["done"]["schema"]["tables"], missing);
    assert_eq!(client.ok("status", &json!({}))["remotes"][0]["schema"]["tables"], missing);
    client.ok("merge", &json!({}));
    let waiting = client.ok("waiting.list", &json!({"remote": "a"}));
    assert_eq!((&waiting["rows"][0]["table"], &waiting["rows"][0]["key"]), (&"extra".into(), &json!(["1"])));
    assert_eq!(client.ok("waiting.retry", &json!({}))[0]["done"]["waiting"], 1);
    assert_eq!(client.ok("waiting.drop", &json!({"table": "EXTRA"}))["dropped"], false);
    assert_eq!(client.ok("waiting.drop", &json!({"table": "note", "apply": true}))["changes"], 0);
    assert_eq!(client.ok("waiting.drop", &json!({"apply": true}))["changes"], 1);
    a.sql("UPDATE extra SET x = 'y'");
    client.ok("pull", &json!({}));
    assert_eq!(client.ok("schema.adopt", &json!({"remote": "a"}))["adopted"], false);
    let adopted = client.ok("schema.adopt", &json!({"remote": "a", "apply": true}));
    assert_eq!(adopted["merged"][0]["done"]["applied"], json!({"extra": 1}), "{adopted}");
    assert_eq!(client.ok("verify", &json!({"mend": true}))[0]["done"]["identical"], true);
    let found = client.ok("doctor", &json!({}));
    assert!(found.as_array().unwrap().iter().any(|finding| finding["about"] == "remote"), "{found}");

    client.ok("config.set", &json!({"key": "access", "value": "private"}));
    assert_eq!(client.ok("config.get", &json!({}))["access"], "private");
    let bundle = |name: &str| world.path(name).to_str().unwrap().to_owned();
    a.ok(["bundle", "create", "a.bundle"]);
    client.ok("bundle.fetch", &json!({"file": bundle("a.bundle"), "progress": true}));
    let made = client.ok("bundle.create", &json!({"file": bundle("b.bundle"), "since": "1", "tables": ["note"]}));
    assert_eq!(client.ok("bundle.verify", &json!({"file": bundle("b.bundle")}))["changes"], made["changes"]);
    assert_eq!(client.error("bundle.create", &json!({"file": bundle("b.bundle")})), (-32000, "usage".to_owned()));
    let log = client.ok("log", &json!({"most": 100}));
    let kinds: BTreeSet<_> = log.as_array().unwrap().iter().map(|entry| entry["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, BTreeSet::from(["dropped", "failed", "fetched", "merged"]), "each kind of entry was seen");

    // What happens by itself.
    client.ok("remote.set-sync", &json!({"name": "a", "sync": "auto"}));
    let mut number = 1;
    let mut write_until_told = |client: &mut Client, repo: &Repo, kind: &str| {
        let deadline = Instant::now() + PATIENCE;
        while !client.seen.contains(&format!("event {kind}")) {
            assert!(Instant::now() < deadline, "no {kind}");
            number += 1;
            repo.sql(&format!("INSERT INTO note VALUES ('{}{number}', 'later', 2)", repo.name()));
            client.ok("status", &json!({}));
        }
    };
    write_until_told(&mut client, &b, "local-change");
    write_until_told(&mut client, &a, "remote-change");

    // A fetch that takes long enough to tell how far it is.
    client.ok("remote.set-sync", &json!({"name": "a", "sync": "manual"}));
    a.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 150000)
         INSERT INTO note SELECT 'many' || i, randomblob(60), i FROM n",
    );
    client.ok("fetch", &json!({"remote": "a", "progress": true}));
    assert_eq!(client.event("progress")["remote"], "a");
    let shown = |message: &Value| message["method"] == "progress" && message["params"]["id"] == client.last_id;
    assert!(client.told.iter().any(shown), "{:?}", client.told);

    // Subscribed as it is and not read meanwhile, it would be hung up on, too.
    client = Client { seen: client.seen, ..Client::connect(&b) };
    fall_behind(&mut client, &b);
    client.ok("stop", &json!({}));

    let mut said: BTreeSet<String> = Command::METHODS.iter().chain(&OTHERS).map(|&name| name.to_owned()).collect();
    let documented = client.schema.definitions();
    let methods: BTreeSet<String> =
        documented.keys().filter_map(|name| name.strip_suffix(".result")).map(str::to_owned).collect();
    assert_eq!(methods, said, "the schema has the methods that there are");
    let events = documented["event"]["oneOf"].as_array().unwrap();
    said.extend(
        events.iter().map(|event| format!("event {}", event["properties"]["event"]["const"].as_str().unwrap())),
    );
    assert_eq!(client.seen, said, "each method and each event was heard");
}

/// Has so much happen while a client does not read that it misses some of it.
fn fall_behind(client: &mut Client, repo: &Repo) {
    let mut other = Client::connect(repo);
    // So that few lines fill what the system keeps for a reader.
    let nowhere = format!("{}.db", "/none".repeat(400));
    for number in 0..16 {
        other.ok("remote.add", &json!({"name": format!("none{number}"), "address": nowhere}));
    }
    let deadline = Instant::now() + PATIENCE;
    while !client.seen.contains("event missed") {
        assert!(Instant::now() < deadline, "nobody misses anything");
        let mut slow = Client::connect(repo);
        slow.ok("subscribe", &json!({}));
        for _ in 0..25 {
            other.ok("fetch", &json!({}));
        }
        // On a machine so busy that this takes more than ten seconds, it is hung up on.
        while let message @ Value::Object(_) = slow.read() {
            slow.note(message);
            if let Some(missed) = slow.seen.take("event missed") {
                client.seen.insert(missed);
                break;
            }
        }
    }
}

#[test]
fn requests_that_are_wrong_are_told_why() {
    let world = World::new();
    let repo = world.notes("a");
    let _daemon = Daemon::start(&world, &repo);
    let mut client = Client::connect(&repo);
    let mut wrong = |text: &str| {
        let answer = client.answer(&serde_json::from_str(text).unwrap());
        client.schema.assert_valid("answer", &answer);
        format!("{} {}", answer["error"]["code"], answer["error"]["message"].as_str().unwrap())
    };
    assert_snapshot!(wrong(r#"{"jsonrpc":"2.0","id":1,"method":"hello","params":{"control":2}}"#), @"-32001 this daemon speaks version 1 of the control protocol, not 2");
    assert_snapshot!(wrong(r#"{"jsonrpc":"2.0","id":1,"method":"hello","params":{"control":"1"}}"#), @r#"-32602 invalid type: string "1", expected u32"#);
    assert_snapshot!(wrong(r#"[{"jsonrpc":"2.0","id":1,"method":"hello"}]"#), @"-32600 batches are not taken: send one request a line");
    assert_snapshot!(wrong(r#"{"id":1,"method":"hello"}"#), @r#"-32600 it does not say "jsonrpc": "2.0""#);
    assert_snapshot!(wrong(r#"{"jsonrpc":"2.0","id":1,"method":"fetch","params":["a"]}"#), @"-32602 params are given by name, in an object");
    assert_snapshot!(wrong(r#"{"jsonrpc":"2.0","id":1,"method":"fetch","params":{"remot":"a"}}"#), @"-32602 unknown field `remot`, expected `remote`");
    assert_snapshot!(wrong(r#"{"jsonrpc":"2.0","id":1,"method":"subscribe","params":{"to":"all"}}"#), @"-32602 `subscribe` takes no params");

    // A notification is carried out and not answered.
    let (method, params) = ("remote.add", json!({"name": "b", "address": "/b.db"}));
    writeln!(client.output, "{}", json!({"jsonrpc": "2.0", "method": method, "params": params})).unwrap();
    assert_eq!(client.ok("remote.list", &json!({}))[0]["name"], "b");
}

#[test]
fn on_tcp_nothing_is_answered_before_the_token_is_shown() {
    let world = World::new();
    let repo = world.notes("a");
    let mut command = serve(&world, &repo);
    command.args(["--control", "127.0.0.1:0"]);
    let daemon = Daemon::spawn(&world, command);
    let address = tcp_address(&repo);
    let file = repo.state("control.token");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let token = fs::read_to_string(&file).unwrap().trim_end().to_owned();

    let hello = |token: &str| json!({"jsonrpc": "2.0", "id": 1, "method": "hello", "params": {"token": token}});
    for (request, code) in [
        (json!({"jsonrpc": "2.0", "id": 1, "method": "status"}), -32002),
        (json!({"jsonrpc": "2.0", "id": 1, "method": "status", "params": {"token": token}}), -32002),
        (json!({"jsonrpc": "2.0", "id": 1, "method": "hello"}), -32002),
        (hello(""), -32002),
        (hello(&token[..42]), -32002),
        (hello(&token.to_lowercase()), -32002),
        (json!("GET / HTTP/1.1"), -32600),
    ] {
        let mut client = Client::connect_tcp(&address);
        let answer = client.answer(&request);
        client.schema.assert_valid("answer", &answer);
        assert_eq!(answer["error"]["code"], code, "{request}: {answer}");
        assert_eq!(client.read(), Value::Null, "it hangs up after {request}");
    }
    let mut flood = Client::connect_tcp(&address);
    let _ = flood.output.write_all(&[b' '; 8192]);
    assert_eq!(flood.read(), Value::Null, "a first line without end");

    let mut client = Client::connect_tcp(&address);
    client.ok("hello", &json!({"control": 1, "token": token}));
    assert_eq!(client.ok("status", &json!({}))["serving"], true);
    client.ok("stop", &json!({}));
    drop(daemon);
    repo.ok(["stop"]);
    let mut daemon = Daemon::start(&world, &repo);
    assert!(!file.exists(), "there is none for a daemon without a port");
    assert_eq!(Client::connect(&repo).ok("hello", &json!({})).get("tcp"), None);
    assert_eq!(daemon.end(nix::sys::signal::Signal::SIGTERM), Some(0));
}

#[test]
fn who_does_not_show_the_token_is_not_waited_for() {
    let world = World::new();
    let repo = world.notes("a");
    let config = repo.state("config.toml");
    fs::write(&config, "control = \"[::1]:0\"\n").unwrap();
    let _daemon = Daemon::start(&world, &repo);
    let address = tcp_address(&repo);
    let mut silent = Client::connect_tcp(&address);
    let asked = Instant::now();
    assert_eq!(silent.read(), Value::Null, "it hangs up");
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
}

#[test]
fn who_does_not_show_the_token_takes_nobody_s_place() {
    let world = World::new();
    let repo = world.notes("a");
    let mut command = serve(&world, &repo);
    command.args(["--control", "127.0.0.1:0"]);
    let _daemon = Daemon::spawn(&world, command);
    let address = tcp_address(&repo);
    let token = fs::read_to_string(repo.state("control.token")).unwrap().trim_end().to_owned();
    let mut known = Client::connect_tcp(&address);
    known.ok("hello", &json!({"token": token}));
    let _silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let asked = Instant::now();
    let mut further = Client::connect_tcp(&address);
    further.ok("hello", &json!({"token": token}));
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    assert_eq!(known.ok("status", &json!({}))["serving"], true, "who has shown it stays");
}

#[test]
fn control_stays_on_this_machine() {
    let world = World::new();
    let repo = world.notes("a");
    let run = repo.run(["serve", "--control", "0.0.0.0:4711"]).assert_status(2);
    assert!(run.stderr.contains("other machines could reach it; only 127.0.0.1 and [::1] are allowed"), "{run}");
    fs::write(repo.state("config.toml"), "control = \"192.168.0.1:4711\"\n").unwrap();
    let run = repo.run(["serve"]).assert_status(2);
    assert!(run.stderr.contains("control requests cannot be taken at `192.168.0.1:4711`"), "{run}");
    fs::write(repo.state("config.toml"), "").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let run = repo.run(["serve", "--control", &taken.local_addr().unwrap().to_string()]).assert_status(1);
    assert!(run.stderr.contains("Address already in use") && run.stderr.contains("choose another port"), "{run}");
}

#[test]
fn too_many_clients_are_told_so() {
    let world = World::new();
    let repo = world.notes("a");
    let _daemon = Daemon::start(&world, &repo);
    let mut clients: Vec<Client> = (0..64).map(|_| Client::connect(&repo)).collect();
    for client in &mut clients {
        client.ok("hello", &json!({}));
    }
    let mut further = Client::connect(&repo);
    let answer = further.read();
    further.schema.assert_valid("answer", &answer);
    assert_eq!((&answer["error"]["code"], &answer["id"]), (&(-32003).into(), &Value::Null), "{answer}");
    assert_eq!(further.read(), Value::Null, "it hangs up");
    let run = repo.run(["status"]).assert_status(1);
    assert!(run.stderr.contains("serves 64 control clients already"), "{run}");
    drop(clients);
    let deadline = Instant::now() + PATIENCE;
    while repo.run(["status"]).status != Some(0) {
        assert!(Instant::now() < deadline, "there is no room again");
    }
}

#[test]
fn a_subscriber_that_does_not_read_is_cut_off() {
    let world = World::new();
    let repo = world.notes("a");
    let _daemon = Daemon::start(&world, &repo);
    let mut deaf = UnixStream::connect(repo.state("control.sock")).unwrap();
    writeln!(deaf, "{}", json!({"jsonrpc": "2.0", "id": 1, "method": "subscribe"})).unwrap();
    let mut other = Client::connect(&repo);
    other.ok("remote.add", &json!({"name": "none", "address": "/none.db"}));
    let deadline = Instant::now() + PATIENCE;
    let has_hung_up = || {
        let mut file = [PollFd::new(deaf.as_fd(), PollFlags::empty())];
        poll(&mut file, PollTimeout::ZERO).unwrap() == 1 && file[0].any() == Some(true)
    };
    while !has_hung_up() {
        assert!(Instant::now() < deadline, "it is served still");
        other.ok("fetch", &json!({"remote": "none"}));
    }
}
