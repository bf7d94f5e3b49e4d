//! SQLite's locks are a process's, and gone when it closes any descriptor of the file. Whatever a repository does, those
//! of other connections to its databases stay.

use std::{
    fs,
    future::Future,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use ddcp::{Adopt, BundleRequest, BundleTarget, Event, Monitor, Repository, Stop, SyncMode, repo::examine};
use regex::Regex;
use rusqlite::Connection;

use crate::support::{PATIENCE, World};

/// A transaction that reads a database.
struct Reader {
    _connection: Connection,
    path: PathBuf,
    inode: u64,
}

impl Reader {
    fn of(path: PathBuf) -> Self {
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema").unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        let reader = Self { _connection: connection, path, inode };
        reader.assert_locked("nothing");
        reader
    }

    fn assert_locked(&self, after: &str) {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let place = format!(":{} ", self.inode);
        assert!(locks.contains(&place), "{} has lost its lock after {after}:\n{locks}", self.path.display());
    }
}

/// What an application may do with a repository, one after the other.
async fn work(repository: &Repository, folder: &Path, look: impl Fn(&str)) {
    let step = |what: &'static str| {
        let look = &look;
        move || look(what)
    };
    let bundle = |name: &str, replace| BundleTarget::File { path: folder.join(name), replace };
    let create = |target| repository.create_bundle(target, BundleRequest::default(), Stop::default());
    checked(repository.status(false), step("status")).await;
    checked(repository.log(None, 10), step("log")).await;
    checked(repository.fetch(None), step("fetch")).await;
    checked(repository.merge(None), step("merge")).await;
    checked(repository.pull(None), step("pull")).await;
    checked(repository.schema_diff("a"), step("schema diff")).await;
    checked(repository.schema_adopt("a", Adopt::Now), step("schema adopt")).await;
    checked(repository.verify(None, true, &Monitor::default()), step("verify")).await;
    checked(create(bundle("b.bundle", false)), step("bundle create")).await;
    checked(create(bundle("b.bundle", true)), step("bundle create --force")).await;
    checked(repository.fetch_bundle(folder.join("a.bundle"), None, &Monitor::default()), step("bundle fetch")).await;
    checked(repository.remote_add("more", "more.db", SyncMode::Manual), step("remote add")).await;
    checked(repository.remote_rename("more", "less"), step("remote rename")).await;
    checked(repository.remote_set_address("less", "less.db"), step("remote set-address")).await;
    checked(repository.remote_remove("less"), step("remote remove")).await;
    checked(repository.config_set("limits.callers", "9"), step("config set")).await;
    checked(Repository::open(folder.join("b.db")), step("open")).await;
    checked(Repository::init(folder.join("b.db")), step("init")).await;
    // What is no bundle, and what is no place for one.
    for database in ["b.db", ".ddcp/b.db/state.db", ".ddcp/b.db/state.db-shm", ".ddcp/b.db/digest.db", "a.db"] {
        let result = repository.fetch_bundle(folder.join(database), None, &Monitor::default()).await;
        assert!(result.unwrap_err().to_string().contains("is no bundle"), "{database}");
        let result = create(bundle(database, true)).await;
        assert!(result.unwrap_err().to_string().contains("is a database that is used here"), "{database}");
        look(database);
    }
}

async fn checked<T>(work: impl Future<Output = Result<T, ddcp::Error>>, look: impl FnOnce()) {
    work.await.unwrap();
    look();
}

#[test]
fn locks_of_other_connections_stay_whatever_is_done() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)").ok(["bundle", "create", "a.bundle"]);
    b.follows(&[&a]).ok(["verify"]);
    a.sql(
        "CREATE TABLE more (id TEXT NOT NULL PRIMARY KEY); SELECT crsql_as_crr('more'); INSERT INTO more VALUES ('1')",
    );
    let readers = [b.db().to_owned(), b.state("state.db"), b.state("digest.db"), a.db().to_owned()].map(Reader::of);
    let look = |after: &str| readers.iter().for_each(|reader| reader.assert_locked(after));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let repository = Repository::builder(b.db()).offline().open().await.unwrap();
        let mut events = repository.events();
        let folder = world.path("");
        tokio::time::timeout(PATIENCE * 2, work(&repository, &folder, look)).await.expect("it does not end");
        assert!(matches!(events.next().await, Some(Event::Fetched { .. })));
        look("events");
        for thorough in [false, true] {
            let _ = examine(repository.layout(), &ddcp::repo::Options::default(), thorough);
            look("doctor");
        }
    });
    assert_eq!(b.notes(), a.notes());
}

/// Only these parts of the program open files by themselves; whoever wants to be one of them shows that what is opened
/// is never a database.
#[test]
fn few_parts_of_the_program_open_files() {
    const ALLOWED: [&str; 8] = [
        "cli/address.rs",               // a file that holds an address, before anything else is open
        "config/mod.rs",                // config.toml
        "control/socket.rs",            // a folder
        "files.rs",                     // what is new, bundles, and folders
        "metrics.rs",                   // /proc
        "repo/mend.rs",                 // the mark
        "repo/schema.rs",               // which statements were shown
        "transport/veilid/identity.rs", // the node's identity
    ];
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut opening = Vec::new();
    let mut folders = vec![source.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") && opens_files(&path) {
                opening.push(path.strip_prefix(&source).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    opening.sort();
    assert_eq!(opening, ALLOWED);
}

/// Whether the code in the file, without its tests, opens files other than through SQLite.
fn opens_files(path: &Path) -> bool {
    let ways =
        Regex::new(r"\b(File::(open|create|options)|fs::(read|read_to_string|write|copy|OpenOptions))\b").unwrap();
    if path.file_stem().is_some_and(|name| name == "tests") || path.components().any(|part| part.as_os_str() == "tests")
    {
        return false;
    }
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let opens_itself = code.contains("use std::") && code.contains("OpenOptions::new()");
    opens_itself || ways.is_match(code)
}
