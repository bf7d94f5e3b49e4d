//! Worlds of repositories, and the program run in them.

use std::{
    ffi::OsStr,
    fmt, fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use regex::Regex;
use rusqlite::{Connection, types::ValueRef};
use tempfile::TempDir;

/// The program.
pub(crate) const DDCP: &str = env!("CARGO_BIN_EXE_ddcp");

/// How long a process or a condition may take before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// The table of most tests.
pub(crate) const NOTE: &str = "CREATE TABLE note (id TEXT NOT NULL PRIMARY KEY, body TEXT, stars INTEGER);
     SELECT crsql_as_crr('note');";

/// Makes a database at `path` that nobody can open until what is returned is dropped: who tries waits for a minute, as for
/// a server that is gone.
pub(crate) fn hang(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("CREATE TABLE t (x); BEGIN EXCLUSIVE").unwrap();
    connection
}

/// A folder of its own, in which repositories lie side by side.
pub(crate) struct World {
    _dir: TempDir,
    root: PathBuf,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        Self { _dir: dir, root }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The repository `NAME.db`, which need not exist yet.
    pub(crate) fn repo(&self, name: &str) -> Repo {
        Repo { root: self.root.clone(), name: name.to_owned(), db: self.path(&format!("{name}.db")) }
    }

    /// The repository `NAME.db`, made, with an empty table `note`.
    pub(crate) fn notes(&self, name: &str) -> Repo {
        let repo = self.repo(name);
        repo.ok(["init"]);
        repo.sql(NOTE);
        repo
    }

    /// `NAME.db` for each of `names`, as [`World::notes`].
    pub(crate) fn all_notes<const N: usize>(&self, names: [&str; N]) -> [Repo; N] {
        names.map(|name| self.notes(name))
    }

    /// The program in this folder, without anything of the environment of the tests.
    pub(crate) fn command(&self) -> Command {
        command(&self.root)
    }

    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Run {
        let mut command = self.command();
        command.args(arguments);
        Run::of(&self.root, start(command, Stdio::null()))
    }
}

fn command(root: &Path) -> Command {
    let mut command = Command::new(DDCP);
    hermetic(&mut command, root);
    command
}

fn hermetic(command: &mut Command, root: &Path) {
    let environment = [("PATH", "/usr/bin:/bin:/usr/sbin:/sbin"), ("LANG", "C.UTF-8"), ("TZ", "UTC"), ("DDCP", DDCP)];
    command.env_clear().envs(environment).env("HOME", root).current_dir(root);
}

fn start(mut command: Command, stdin: Stdio) -> Child {
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// A database with the state beside it.
#[derive(Clone)]
pub(crate) struct Repo {
    root: PathBuf,
    name: String,
    db: PathBuf,
}

impl Repo {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn db(&self) -> &Path {
        &self.db
    }

    /// The folder in which it lies.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The repository of the same name in the folder `root`.
    pub(crate) fn at(&self, root: &Path) -> Self {
        Self { root: root.to_owned(), name: self.name.clone(), db: root.join(format!("{}.db", self.name)) }
    }

    /// The state directory, or a file in it.
    pub(crate) fn state(&self, file: &str) -> PathBuf {
        self.root.join(".ddcp").join(format!("{}.db", self.name)).join(file)
    }

    /// `ddcp --db NAME.db`, to which a test adds what it wants.
    pub(crate) fn command(&self) -> Command {
        let mut command = command(&self.root);
        command.arg("--db").arg(self.db.file_name().unwrap());
        command
    }

    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Run {
        self.finish(self.start(arguments))
    }

    /// Runs what was made by [`Repo::command`].
    pub(crate) fn run_command(&self, command: Command) -> Run {
        Run::of(&self.root, start(command, Stdio::null()))
    }

    pub(crate) fn run_with_input<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>, input: &[u8]) -> Run {
        let mut command = self.command();
        command.args(arguments);
        let mut child = start(command, Stdio::piped());
        child.stdin.take().unwrap().write_all(input).unwrap();
        Run::of(&self.root, child)
    }

    /// Starts the program and does not wait for it.
    pub(crate) fn start<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Child {
        let mut command = self.command();
        command.args(arguments);
        start(command, Stdio::null())
    }

    /// Waits for what [`Repo::start`] started.
    pub(crate) fn finish(&self, child: Child) -> Run {
        Run::of(&self.root, child)
    }

    /// The standard output of a run that must succeed.
    pub(crate) fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let run = self.run(arguments);
        assert_eq!(run.status, Some(0), "{}: {run}", self.name);
        run.stdout
    }

    /// The JSON that a run prints which must succeed.
    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.ok(arguments.iter().chain(&["--format", "json"]));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Adds `others` as remotes, each by its name.
    pub(crate) fn follows(&self, others: &[&Repo]) -> &Self {
        for other in others {
            self.ok([OsStr::new("remote"), "add".as_ref(), other.name.as_ref(), other.db.as_ref()]);
        }
        self
    }

    pub(crate) fn pull(&self) -> String {
        self.ok(["pull"])
    }

    /// A connection such as an application has: another process's, with the engine loaded.
    pub(crate) fn connection(&self) -> Connection {
        let connection = Connection::open(&self.db).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        crsqlite::register(&connection).unwrap();
        connection
    }

    pub(crate) fn sql(&self, statements: &str) -> &Self {
        self.connection().execute_batch(statements).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        self
    }

    /// The rows of a query, the values with `|` between them.
    pub(crate) fn rows(&self, query: &str) -> Vec<String> {
        let connection = self.connection();
        let mut statement = connection.prepare(query).unwrap();
        let columns = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| {
            let values = (0..columns).map(|index| row.get_ref(index).map(text));
            Ok(values.collect::<rusqlite::Result<Vec<_>>>()?.join("|"))
        };
        statement.query_map([], row).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        self.rows("SELECT * FROM note ORDER BY id")
    }

    /// Everything that replicas must agree about: what changed, and in which life of its row. The versions of
    /// databases are their own affair, and so is whose change it was that several made alike.
    pub(crate) fn changes(&self) -> Vec<String> {
        self.rows("SELECT \"table\", hex(pk), cid, quote(val), col_version, cl FROM crsql_changes ORDER BY 1, 2, 3")
    }

    /// A copy of the repository in the folder `to`, as another machine would find it that got the disk after a crash:
    /// with the logs of its databases, without what was only in memory.
    pub(crate) fn copied(&self, to: &Path) -> Self {
        let copy = self.at(to);
        if to.exists() {
            fs::remove_dir_all(to).unwrap();
        }
        fs::create_dir_all(to).unwrap();
        for end in ["", "-wal", "-journal"] {
            let file = |repo: &Self| PathBuf::from(format!("{}{end}", repo.db.display()));
            if file(self).exists() {
                fs::copy(file(self), file(&copy)).unwrap();
            }
        }
        if self.state("").exists() {
            copy_folder(&self.state(""), &copy.state(""));
        }
        copy
    }

    /// The repository moved into the folder `to`, and at work there since: nobody takes a copy that is brought back
    /// to that place for anything else.
    pub(crate) fn moved(&self, to: &Path) -> Self {
        let moved = self.copied(to);
        fs::remove_file(&self.db).unwrap();
        fs::remove_dir_all(self.state("")).unwrap();
        moved.ok(["merge"]);
        moved
    }

    /// Whether a process that was killed left a log with one of the databases.
    pub(crate) fn has_open_log(&self) -> bool {
        let log = PathBuf::from(format!("{}-wal", self.db.display()));
        [log, self.state("state.db-wal")].iter().any(|log| log.exists())
    }

    /// Fails unless the file is sound.
    pub(crate) fn assert_sound(&self) {
        assert_eq!(self.rows("PRAGMA integrity_check"), ["ok"], "{}", self.name);
        let inbox = Connection::open(self.state("state.db")).unwrap();
        let check: String = inbox.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "{}", self.name);
    }
}

/// Copies the files of a folder of state. The node's are not looked at, sockets cannot be copied, and what databases
/// share in memory does not survive.
fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (kind, name) = (entry.file_type().unwrap(), entry.file_name());
        if kind.is_dir() && name != "veilid" {
            copy_folder(&entry.path(), &to.join(name));
        } else if kind.is_file() && !name.to_string_lossy().ends_with("-shm") {
            fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

fn text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(integer) => integer.to_string(),
        ValueRef::Real(real) => format!("{real:?}"),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(blob) => format!("blob of {}", blob.len()),
    }
}

/// Fails unless all have the same notes and the same changes, in sound files.
pub(crate) fn assert_converged(repos: &[&Repo]) {
    let first = repos[0];
    let (notes, changes) = (first.notes(), first.changes());
    first.assert_sound();
    for other in &repos[1..] {
        assert_equal(&format!("notes of {} and {}", first.name, other.name), &notes, &other.notes());
        assert_equal(&format!("changes of {} and {}", first.name, other.name), &changes, &other.changes());
        other.assert_sound();
    }
}

/// Compares long lists; of lists that differ, shows only the lines that do.
fn assert_equal(what: &str, left: &[String], right: &[String]) {
    if left == right {
        return;
    }
    let missing = |from: &[String], of: &[String]| {
        let known: std::collections::HashSet<_> = from.iter().collect();
        of.iter().filter(|line| !known.contains(line)).take(10).cloned().collect::<Vec<_>>()
    };
    panic!("{what} differ:\nonly left {:#?}\nonly right {:#?}", missing(right, left), missing(left, right));
}

/// What a process printed, and how it ended. Displays as snapshots need it: without what differs between runs.
pub(crate) struct Run {
    /// `None` if a signal ended it.
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    root: PathBuf,
}

impl Run {
    /// Waits for `child`.
    fn of(root: &Path, child: Child) -> Self {
        let output = output(child);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            status: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            root: root.to_owned(),
        }
    }

    pub(crate) fn assert_status(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "{self}");
        self
    }
}

fn output(child: Child) -> Output {
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = receiver.recv_timeout(PATIENCE) else {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        panic!("a process had not ended after {PATIENCE:?}");
    };
    output.unwrap()
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => writeln!(f, "status {status}")?,
            None => writeln!(f, "killed")?,
        }
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.is_empty() {
                writeln!(f, "--- {name}\n{}", normal(text, &self.root))?;
            }
        }
        Ok(())
    }
}

/// `text` without paths, ids, sizes and times of this run.
fn normal(text: &str, root: &Path) -> String {
    let rules = [
        (r"\b[0-9a-f]{32}\b", "SITE"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
        (r#""(last_contact|last_error_at)": \d+"#, r#""$1": TIME"#),
        (r#""bytes": [1-9]\d*"#, r#""bytes": SIZE"#),
        (r"\bin [\d.]+ (B|KiB|MiB)\b", "in SIZE"),
        (r"process \(\d+\)", "process (PID)"),
    ];
    let text = text.replace(root.to_str().unwrap(), "DIR");
    rules.iter().fold(text, |text, (pattern, name)| Regex::new(pattern).unwrap().replace_all(&text, *name).into_owned())
}

/// Fails unless everything in `folder` is its owner's alone. What the Veilid library makes is closed by its folder.
pub(crate) fn assert_private(folder: &Path) {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(folder), 0o700, "{}", folder.display());
    let entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!entries.is_empty(), "{} is empty", folder.display());
    for entry in entries {
        if entry.is_dir() && entry.file_name() != Some("veilid".as_ref()) {
            assert_private(&entry);
        } else {
            assert_eq!(mode(&entry) & 0o077, 0, "{}: {:o}", entry.display(), mode(&entry));
        }
    }
}

/// Runs a shell script as root of a private mount namespace, where it may mount what it likes; `$DDCP` is the
/// program. `None`, with the reason printed, where this machine does not allow such namespaces.
pub(crate) fn with_mounts(world: &World, script: &str) -> Option<Run> {
    let in_namespace = |script: &str| {
        let mut command = Command::new("unshare");
        hermetic(&mut command, &world.root);
        command.args(["--map-root-user", "--mount", "sh", "-ec", script]);
        command
    };
    let probe = in_namespace("mkdir probe && mount -t tmpfs none probe").output();
    match probe {
        Ok(output) if output.status.success() => {}
        other => {
            // Past the test harness, which keeps to itself what a test that passes prints.
            let _ = writeln!(io::stderr(), "SKIPPED, no private mount namespaces here (root has them): {other:?}");
            return None;
        }
    }
    fs::remove_dir(world.path("probe")).unwrap();
    Some(Run::of(&world.root, start(in_namespace(script), Stdio::null())))
}
