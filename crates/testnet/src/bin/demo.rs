//! Two repositories on a private Veilid network, from nothing to identical: `cargo run --release --bin demo`.
//!
//! The commands are run as a user would type them, by this very program: called as `ddcp` it is `ddcp`.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::Instant,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rusqlite::{Connection, OpenFlags, types::Value};
use serde::Deserialize;
use testnet::{Options, Testnet};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The packages that this program is built from: data that is at hand, real and uneven.
const LOCK_FILE: &str = include_str!("../../../../Cargo.lock");

const TABLE: &str = "CREATE TABLE package (name TEXT NOT NULL, version TEXT NOT NULL, source TEXT, checksum TEXT, \
                     rating INTEGER, note TEXT, PRIMARY KEY (name, version)); SELECT crsql_as_crr('package')";

fn main() -> ExitCode {
    let program = env::args_os().next().unwrap_or_default();
    if Path::new(&program).file_name() == Some("ddcp".as_ref()) {
        return ddcp::cli::main(env::args_os().collect());
    }
    if testnet::cli::is_called() {
        return testnet::cli::main();
    }
    match demo() {
        Ok(Verdict::Identical(rows)) => {
            println!("\nalice and bob are identical: {rows} rows");
            ExitCode::SUCCESS
        }
        Ok(Verdict::Different(differences)) => {
            println!("\nalice and bob differ:");
            differences.iter().for_each(|difference| println!("  {difference}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("\nerror: {error}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<Verdict> {
    let dir = tempfile::tempdir()?;
    symlink(env::current_exe()?, dir.path().join("ddcp"))?;

    println!("# A private Veilid network in network namespaces of this machine: 8 nodes, and a host for each of us.");
    let started = Instant::now();
    let testnet = Testnet::up(Options { hosts: 2, ..Options::new(env::current_exe()?) })?;
    println!("# ready after {:.1} s", started.elapsed().as_secs_f32());
    let alice = Person { name: "alice", host: "h1", dir: dir.path(), testnet: &testnet };
    let bob = Person { name: "bob", host: "h2", dir: dir.path(), testnet: &testnet };

    println!("\n# Alice and Bob each know a part of the packages that ddcp is built from; some both know.");
    let (of_alice, of_bob) = split(&packages()?);
    let alice_serves = begin(&alice, &of_alice)?;
    let bob_serves = begin(&bob, &of_bob)?;
    alice.run(&["remote", "add", "bob", &bob_serves.address])?;
    bob.run(&["remote", "add", "alice", &alice_serves.address])?;
    bob.run(&["remote", "list"])?;

    println!("\n# Bob fetches. His table does not change until he merges.");
    const COUNT: &str = "SELECT count(*) FROM package";
    bob.run(&["shell", COUNT])?;
    bob.run(&["fetch", "alice"])?;
    bob.run(&["shell", COUNT])?;
    bob.run(&["merge", "alice"])?;
    bob.run(&["shell", COUNT])?;

    println!("\n# Alice pulls: fetch and merge in one.");
    alice.run(&["pull", "bob"])?;
    alice.run(&["shell", COUNT])?;

    println!("\n# Both write: the same cell of one row, different cells of another; and Alice deletes a third.");
    alice.run(&["shell", "UPDATE package SET note = 'Alice: fast' WHERE name = 'blake3'"])?;
    bob.run(&["shell", "UPDATE package SET note = 'Bob: tree-like' WHERE name = 'blake3'"])?;
    alice.run(&["shell", "UPDATE package SET rating = 5 WHERE name = 'tokio'"])?;
    bob.run(&["shell", "UPDATE package SET note = 'what would we do without' WHERE name = 'tokio'"])?;
    alice.run(&["shell", "DELETE FROM package WHERE name = 'paste'"])?;
    bob.run(&["pull"])?;
    alice.run(&["pull"])?;
    const LOOK: &str = "SELECT name, rating, note FROM package WHERE name IN ('blake3', 'paste', 'tokio')";
    alice.run(&["shell", LOOK])?;
    bob.run(&["shell", LOOK])?;

    println!("\n# Nothing more to fetch.");
    bob.run(&["pull"])?;
    bob.run(&["status"])?;

    println!("\n# The end: row by row, as two SQLite files.");
    alice_serves.stop()?;
    bob_serves.stop()?;
    compare(&dir.path().join("alice.db"), &dir.path().join("bob.db"))
}

/// One who types commands on a host.
struct Person<'a> {
    name: &'a str,
    host: &'a str,
    dir: &'a Path,
    testnet: &'a Testnet,
}

impl Person<'_> {
    fn ddcp(&self, args: &[&str]) -> Command {
        let words: Vec<_> = args.iter().map(|word| quoted(word)).collect();
        println!("{}$ ddcp --db {}.db {}", self.name, self.name, words.join(" "));
        let mut command = self.testnet.command(self.host, self.dir.join("ddcp"));
        command.args(["--db", &format!("{}.db", self.name)]).args(args).current_dir(self.dir);
        for variable in ["DDCP_DB", "DDCP_STATE_DIR", "DDCP_NETWORK", "DDCP_EXTENSION"] {
            command.env_remove(variable);
        }
        command
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        check(&mut self.ddcp(args), args)
    }

    fn serve(&self) -> Result<Serving> {
        let log = fs::File::create(self.dir.join(format!("{}.log", self.name)))?;
        let mut process = self.ddcp(&["serve"]).stdout(Stdio::piped()).stderr(log).spawn()?;
        let stdout = process.stdout.take().ok_or("serve has no stdout")?;
        let mut address = String::new();
        BufReader::new(stdout).read_line(&mut address)?;
        print!("{address}");
        Ok(Serving { process, address: address.trim().to_owned() })
    }
}

/// Puts a word that a shell would take apart into quotes.
fn quoted(word: &str) -> String {
    if word.contains(|c: char| c.is_whitespace() || c == '\'' || c == '(') {
        format!("\"{word}\"")
    } else {
        word.to_owned()
    }
}

fn check(command: &mut Command, args: &[&str]) -> Result<()> {
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("`ddcp {}` ended with {status}", args.join(" ")).into()) }
}

/// Makes the person's repository, fills it, and serves it.
fn begin(person: &Person<'_>, packages: &[Package]) -> Result<Serving> {
    person.run(&["init"])?;
    person.run(&["shell", TABLE])?;
    let file = person.dir.join(format!("{}.sql", person.name));
    let inserts: String = packages.iter().map(Package::insert).collect();
    fs::write(&file, format!("BEGIN;\n{inserts}COMMIT;\n"))?;
    let mut command = person.ddcp(&["shell"]);
    println!("  < {}.sql   # {} rows", person.name, packages.len());
    check(command.stdin(fs::File::open(&file)?), &["shell"])?;
    person.serve()
}

/// A running `ddcp serve`.
struct Serving {
    process: Child,
    address: String,
}

impl Serving {
    fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM)?;
        let status = self.process.wait()?;
        if status.success() { Ok(()) } else { Err(format!("`ddcp serve` ended with {status}").into()) }
    }
}

#[derive(Deserialize)]
struct LockFile {
    package: Vec<Package>,
}

#[derive(Clone, Deserialize)]
struct Package {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
}

impl Package {
    fn insert(&self) -> String {
        let text = |text: &Option<String>| text.as_deref().map_or("NULL".to_owned(), literal);
        let (name, version) = (literal(&self.name), literal(&self.version));
        format!(
            "INSERT INTO package (name, version, source, checksum) VALUES ({name}, {version}, {}, {});\n",
            text(&self.source),
            text(&self.checksum)
        )
    }
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn packages() -> Result<Vec<Package>> {
    Ok(toml::from_str::<LockFile>(LOCK_FILE)?.package)
}

/// Every second package to each, and every tenth to both.
fn split(packages: &[Package]) -> (Vec<Package>, Vec<Package>) {
    let numbered = || packages.iter().enumerate();
    let of_alice = numbered().filter(|(number, _)| number % 2 == 0 || number % 10 == 5).map(|(_, p)| p.clone());
    let of_bob = numbered().filter(|(number, _)| number % 2 == 1 || number % 10 == 0).map(|(_, p)| p.clone());
    (of_alice.collect(), of_bob.collect())
}

enum Verdict {
    Identical(usize),
    Different(Vec<String>),
}

type Rows = BTreeMap<(String, String), Vec<Value>>;

fn compare(alice: &Path, bob: &Path) -> Result<Verdict> {
    let (alice, bob) = (rows(alice)?, rows(bob)?);
    let keys = alice.keys().chain(bob.keys().filter(|key| !alice.contains_key(*key)));
    let differences: Vec<_> = keys
        .filter(|key| alice.get(*key) != bob.get(*key))
        .map(|key| format!("{key:?}: alice {:?}, bob {:?}", alice.get(key), bob.get(key)))
        .collect();
    Ok(if differences.is_empty() { Verdict::Identical(alice.len()) } else { Verdict::Different(differences) })
}

fn rows(database: &Path) -> Result<Rows> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut statement = connection.prepare("SELECT name, version, source, checksum, rating, note FROM package")?;
    let rows = statement.query_map([], |row| {
        let values = (2..6).map(|column| row.get(column)).collect::<rusqlite::Result<Vec<Value>>>()?;
        Ok(((row.get(0)?, row.get(1)?), values))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
