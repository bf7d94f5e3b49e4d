//! A site of a history: a repository in real files, the daemon that works on it, and the application that writes to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use ddcp::{
    config::SyncMode,
    database::{Database, OpenOptions},
    repo::{Held, Layout, Options, Repository},
};
use rusqlite::{Connection, types::Value};

use crate::{
    network::Network,
    world::{Process, World},
};

/// What every site has.
const TABLES: &str = "
    CREATE TABLE own (site INTEGER NOT NULL, id INTEGER NOT NULL, n INTEGER, body, PRIMARY KEY (site, id));
    SELECT crsql_as_crr('own');
    CREATE TABLE log (id TEXT PRIMARY KEY NOT NULL, body);
    SELECT crsql_as_crr('log');
    CREATE TABLE shared (id INTEGER PRIMARY KEY NOT NULL, title TEXT, body);
    SELECT crsql_as_crr('shared');
    CREATE TABLE marks (a NOT NULL, b NOT NULL, PRIMARY KEY (b, a));
    SELECT crsql_as_crr('marks');";

/// The table that some sites get later, with a row in it before it replicates: each site its own.
const LATE_TABLE: &str = "
    CREATE TABLE late (id INTEGER PRIMARY KEY NOT NULL, body);
    INSERT INTO late VALUES (:id, 'first');
    SELECT crsql_as_crr('late');";

/// The column that some sites get later.
const LATE_COLUMN: &str = "
    SELECT crsql_begin_alter('own');
    ALTER TABLE own ADD COLUMN late DEFAULT 'none';
    SELECT crsql_commit_alter('own');";

/// Everything that replicas must agree about. The versions of databases are their own affair, and so is whose change
/// it was that several made alike, and whether there is a record that a row is in its first life, which its cells tell.
const CHANGES: &str = "
    SELECT \"table\", hex(pk), cid, quote(val), col_version, cl FROM crsql_changes
    WHERE cid <> '-1' OR cl > 1 OR \"table\" = 'marks'
    ORDER BY 1, 2, 3";

/// Does what asks nothing of the made-up machine.
fn finish<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

pub(crate) struct Site {
    pub(crate) index: usize,
    layout: Layout,
    /// The application's connection, except while the file is replaced.
    database: Option<Database>,
    daemon: Option<(Process, Repository, Held)>,
    pub(crate) has_late_table: bool,
    pub(crate) has_late_column: bool,
    pub(crate) expected: Expected,
    /// Under which number it writes rows that nobody else writes.
    pub(crate) writer: usize,
    /// A copy of the database, and what this site had written then.
    backup: Option<(Vec<u8>, Expected)>,
    ids: i64,
}

/// What this site alone wrote, and must be found everywhere in the end.
#[derive(Clone, Default)]
pub(crate) struct Expected {
    /// Rows of `own` by their id: `n`, `body`, and, if the column was there, `late`.
    pub(crate) own: BTreeMap<i64, (i64, Value, Value)>,
    pub(crate) log: BTreeSet<String>,
    pub(crate) late: BTreeSet<i64>,
    pub(crate) written: u32,
}

impl Site {
    pub(crate) fn create(folder: &Path, index: usize) -> Self {
        let layout = Layout::new(&folder.join(format!("{index}.db")), None).unwrap();
        Repository::init_with(layout.clone(), Options::default()).unwrap();
        // Chosen, so that the same seed is the same history to the last byte.
        let id = blake3::hash(&index.to_le_bytes());
        let plain = Connection::open(layout.database()).unwrap();
        let sql = "UPDATE crsql_site_id SET site_id = ? WHERE ordinal = 0";
        assert_eq!(plain.execute(sql, [&id.as_bytes()[..16]]).unwrap(), 1);
        drop(plain);
        let site = Self::open(folder, index);
        assert_eq!(site.database().site_id().unwrap().as_bytes(), &id.as_bytes()[..16]);
        site.sql(TABLES);
        site
    }

    /// A site whose files are there.
    pub(crate) fn open(folder: &Path, index: usize) -> Self {
        let layout = Layout::new(&folder.join(format!("{index}.db")), None).unwrap();
        let database = Database::open(layout.database(), &OpenOptions::default()).unwrap();
        let tables = database.tables().unwrap();
        let has_late_table = tables.iter().any(|table| table.name == "late");
        let has_late_column = tables.iter().flat_map(|table| &table.columns).any(|column| column.name == "late");
        Self {
            index,
            layout,
            database: Some(database),
            daemon: None,
            has_late_table,
            has_late_column,
            expected: Expected::default(),
            writer: index,
            backup: None,
            ids: 0,
        }
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes `others` its remotes, named by their numbers.
    pub(crate) fn follow<'a>(&self, others: impl IntoIterator<Item = &'a Site>) {
        let repository = Repository::open_with(self.layout.clone(), Options::default()).unwrap();
        for other in others {
            let address = other.layout.database().to_str().unwrap();
            finish(repository.remote_add(&other.index.to_string(), address, SyncMode::Manual)).unwrap();
        }
    }

    /// Makes `other` a remote once more, by a link to its database.
    pub(crate) fn follow_link(&self, other: &Site) {
        let path = other.layout.database();
        let link = path.with_file_name(format!("link-{}.db", other.index));
        if !link.exists() {
            std::os::unix::fs::symlink(path, &link).unwrap();
        }
        let repository = Repository::open_with(self.layout.clone(), Options::default()).unwrap();
        let name = link_name(other.index);
        finish(repository.remote_add(&name, link.to_str().unwrap(), SyncMode::Manual)).unwrap();
    }

    /// Removes `other` from its remotes and adds it anew.
    pub(crate) fn forget(&self, other: &Site) {
        let repository = Repository::open_with(self.layout.clone(), Options::default()).unwrap();
        finish(repository.remote_remove(&other.index.to_string())).unwrap();
        self.follow([other]);
    }

    /// Starts the daemon with what is in the files.
    pub(crate) async fn start(&mut self, world: &World, network: &Network) {
        self.daemon = None;
        let process = world.start_process();
        let options = Options {
            connector: Some(network.ways_from(self.index, process.clone())),
            host: process.host(),
            ..Options::default()
        };
        let repository = Repository::open_with(self.layout.clone(), options).unwrap();
        let held = repository.clone();
        let lock = process.run(async move { held.hold().await }).await.expect("it lives").unwrap();
        network.serve(self.index, process.clone(), repository.handler());
        self.daemon = Some((process, repository, lock));
    }

    /// The daemon, if it lives.
    pub(crate) fn daemon(&self) -> Option<(&Process, &Repository)> {
        let (process, repository, _) = self.daemon.as_ref()?;
        process.is_alive().then_some((process, repository))
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("it is open")
    }

    /// Copies the database.
    pub(crate) fn back_up(&mut self) {
        self.sql("PRAGMA wal_checkpoint(TRUNCATE)");
        self.backup = Some((fs::read(self.layout.database()).unwrap(), self.expected.clone()));
    }

    pub(crate) fn can_be_restored(&self) -> bool {
        self.backup.is_some()
    }

    /// Ends the daemon and puts the copy in place of the database: one from before it was a repository's, if
    /// `is_unmarked`.
    pub(crate) fn restore(&mut self, is_unmarked: bool) {
        let Some((copy, expected)) = self.backup.take() else { return };
        if let Some((process, ..)) = self.daemon.take() {
            process.kill();
        }
        self.database = None;
        let path = self.layout.database();
        for suffix in ["-wal", "-shm"] {
            assert!(!Path::new(&format!("{}{suffix}", path.display())).exists(), "a connection is open still");
        }
        fs::write(path, copy).unwrap();
        if is_unmarked {
            let file = Connection::open(path).unwrap();
            file.execute("DELETE FROM crsql_master WHERE key LIKE 'ddcp_%'", []).unwrap();
        }
        let fresh = Self::open(path.parent().expect("it is in a folder"), self.index);
        // What it wrote since may come back from others, and then it is not the only writer of its old rows any more.
        let expected = Expected { own: BTreeMap::new(), ..expected };
        *self = Self { writer: self.writer + 100, ids: self.ids, expected, ..fresh };
    }

    pub(crate) fn sql(&self, sql: &str) {
        self.database().connection().execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    pub(crate) fn connection(&self) -> &Connection {
        self.database().connection()
    }

    pub(crate) fn add_late_table(&mut self) {
        if !std::mem::replace(&mut self.has_late_table, true) {
            let id = self.new_id();
            self.expected.late.insert(id);
            self.sql(&LATE_TABLE.replace(":id", &id.to_string()));
        }
    }

    /// A number that nobody else uses, and that was not used before.
    pub(crate) fn new_id(&mut self) -> i64 {
        self.ids += 1;
        self.index as i64 * 1_000_000 + self.ids
    }

    pub(crate) fn add_late_column(&mut self) {
        if !std::mem::replace(&mut self.has_late_column, true) {
            self.sql(LATE_COLUMN);
        }
    }

    /// The answer to a query, a line for each row.
    pub(crate) fn rows(&self, sql: &str) -> Vec<String> {
        let mut statement = self.database().connection().prepare(sql).unwrap();
        let columns = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| {
            let values: Vec<Value> = (0..columns).map(|column| row.get(column)).collect::<Result<_, _>>()?;
            Ok(values.iter().map(text).collect::<Vec<_>>().join("|"))
        };
        statement.query_map([], row).unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// What it holds, all of which replicates.
    pub(crate) fn content(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for table in self.database().tables().unwrap() {
            let columns: Vec<_> = table.key_columns.iter().chain(&table.columns).map(|column| &*column.name).collect();
            let (name, columns) = (table.name, columns.join(", "));
            let rows = self.rows(&format!("SELECT {columns} FROM {name} ORDER BY {columns}"));
            lines.extend(rows.into_iter().map(|row| format!("{name}: {row}")));
        }
        lines.extend(self.rows(CHANGES).into_iter().map(|change| format!("change: {change}")));
        lines
    }

    /// Fails unless both files are sound and nothing is left to be merged.
    pub(crate) async fn assert_sound(&self) {
        let (process, repository) = self.daemon().expect("it was started");
        let repository = repository.clone();
        let status = process.run(async move { repository.status(true).await }).await.expect("it lives").unwrap();
        assert_eq!(self.rows("PRAGMA integrity_check"), ["ok"], "site {}", self.index);
        let state = Connection::open(self.layout.state_db()).unwrap();
        let check: String = state.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "state of site {}", self.index);
        for remote in &status.remotes {
            let about = format!("site {} about {}: {:?}", self.index, remote.name, remote.reasons);
            assert_eq!((remote.unmerged, remote.waiting, &remote.last_error), (0, 0, &None), "{about}");
        }
    }

    /// Fails unless everything that `writer` alone wrote, and did not change or delete since, is here.
    pub(crate) fn assert_has(&self, writer: &Site) {
        let about = format!("what site {} wrote, at site {}", writer.index, self.index);
        let own = self.rows(&format!("SELECT id, n, body, late FROM own WHERE site = {} ORDER BY id", writer.writer));
        let expected = writer.expected.own.iter().map(|(id, (n, body, late))| {
            [Value::Integer(*id), Value::Integer(*n), body.clone(), late.clone()].map(|value| text(&value)).join("|")
        });
        assert_eq!(own, expected.collect::<Vec<_>>(), "rows of its own: {about}");
        let keys = |sql: &str| self.rows(sql).into_iter().collect::<BTreeSet<_>>();
        let log = keys("SELECT id FROM log");
        assert!(writer.expected.log.is_subset(&log), "log: {about}: {:?}", writer.expected.log.difference(&log));
        let late = keys("SELECT id FROM late");
        for id in &writer.expected.late {
            assert!(late.contains(&id.to_string()), "late: {about}: {id} of {late:?}");
        }
    }
}

/// Tells types, and values, apart; long ones by their hash.
fn text(value: &Value) -> String {
    let bytes = |bytes: &[u8]| format!("{} bytes {}", bytes.len(), &blake3::hash(bytes).to_hex()[..8]);
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(integer) => integer.to_string(),
        Value::Real(real) => format!("{real:?}"),
        Value::Text(text) if text.len() < 60 => text.clone(),
        Value::Text(text) => bytes(text.as_bytes()),
        Value::Blob(blob) => bytes(blob),
    }
}

/// What the remote is called that is `index` by a link.
fn link_name(index: usize) -> String {
    format!("link-{index}")
}
