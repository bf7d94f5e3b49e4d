//! A site of a history: a repository in real files, the daemon that works on it, and the application that writes to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
};

use ddcp::{
    config::SyncMode,
    database::{Database, OpenOptions},
    repo::{Held, Layout, Options, Repository},
    transport::Signer,
};
use rusqlite::Connection;

use crate::{
    cells::{Cell, line},
    identity::{Keys, Owner},
    network::Network,
    schemas::{Declaration, Table},
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
    WHERE (cid <> '-1' OR cl > 1 OR \"table\" = 'marks') AND \"table\" NOT LIKE 'drawn%'
    ORDER BY 1, 2, 3";

/// Does what asks nothing of the made-up machine.
fn finish<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

/// What is peculiar about a site.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Habits {
    /// Its text is UTF-16.
    pub(crate) utf16: bool,
    /// Its database has no write-ahead log.
    pub(crate) journal: bool,
    /// Its application has SQLite call it at commits and rollbacks.
    pub(crate) hooks: bool,
    /// Its application has foreign keys enforced.
    pub(crate) foreign_keys: bool,
    /// Its database is used by two names.
    pub(crate) linked: bool,
    /// It is on a network where it has an identity.
    pub(crate) networked: bool,
    /// It answers its remotes only, who prove who they are.
    pub(crate) private: bool,
}

impl Habits {
    pub(crate) fn draw(world: &World, networked: bool, bytes: bool) -> Self {
        Self {
            utf16: !bytes && world.chance(0.1),
            journal: world.chance(0.1),
            hooks: world.chance(0.3),
            foreign_keys: world.chance(0.2),
            linked: world.chance(0.3),
            networked,
            private: networked && world.chance(0.5),
        }
    }
}

impl Habits {
    /// With what a site proves who it is, if anybody asks for that.
    pub(crate) fn signer(&self, index: usize) -> Option<Arc<dyn Signer>> {
        self.networked.then(|| Arc::new(Owner::of(index)) as Arc<dyn Signer>)
    }
}

pub(crate) struct Site {
    pub(crate) index: usize,
    layout: Layout,
    pub(crate) habits: Habits,
    /// The application's connection, except while the file is replaced.
    database: Option<Database>,
    daemon: Option<(Process, Repository, Held)>,
    pub(crate) expected: Expected,
    /// Under which number it writes rows that nobody else writes.
    pub(crate) writer: usize,
    /// Copies of the database, and what this site had written then.
    backups: Vec<(Vec<u8>, Expected)>,
    ids: i64,
    /// Whether its application writes text that is none.
    pub(crate) bytes: bool,
    /// Drawn tables in which its application writes nothing that is refused.
    pub(crate) careful: BTreeSet<String>,
}

/// What this site alone wrote, and must be found everywhere in the end.
#[derive(Clone, Default)]
pub(crate) struct Expected {
    /// Rows of `own` by their id: `n`, `body`, and, if the column was there, `late`.
    pub(crate) own: BTreeMap<i64, (i64, Cell, Cell)>,
    pub(crate) log: BTreeSet<String>,
    pub(crate) late: BTreeSet<i64>,
    pub(crate) written: u32,
}

impl Site {
    /// A repository with the tables that every site has.
    pub(crate) fn create(folder: &Path, index: usize) -> Self {
        let site = Self::make(folder, index, Habits::default());
        site.init();
        site
    }

    /// A database with the tables that every site has, which is no repository yet.
    pub(crate) fn make(folder: &Path, index: usize, habits: Habits) -> Self {
        let path = folder.join(format!("{index}.db"));
        if habits.utf16 || habits.journal {
            let journal = if habits.journal { "delete" } else { "wal" };
            let encoding = if habits.utf16 { "UTF-16le" } else { "UTF-8" };
            let sql =
                format!("PRAGMA encoding = '{encoding}'; PRAGMA journal_mode = {journal}; CREATE TABLE plain (x)");
            Connection::open(&path).unwrap().execute_batch(&sql).unwrap();
        }
        symlink(&path, folder.join(format!("{index}.link.db"))).unwrap();
        drop(Database::open(&path, &OpenOptions { create: true, ..OpenOptions::default() }).unwrap());
        give_id(&path, index);
        let site = Self::open_as(folder, index, habits);
        assert_eq!(site.database().site_id().unwrap().as_bytes(), &id_of(index));
        site.sql(TABLES);
        site
    }

    /// Makes the database a repository.
    pub(crate) fn init(&self) {
        let repository = Repository::init_with(self.layout.clone(), Options::default()).unwrap();
        if self.habits.private {
            finish(repository.config_set("access", "private")).unwrap();
        }
    }

    /// A site whose files are there.
    pub(crate) fn open(folder: &Path, index: usize) -> Self {
        Self::open_as(folder, index, Habits::default())
    }

    pub(crate) fn open_as(folder: &Path, index: usize, habits: Habits) -> Self {
        let layout = Layout::new(&folder.join(format!("{index}.db")), None).unwrap();
        let database = Database::open(layout.database(), &OpenOptions::default()).unwrap();
        if habits.hooks {
            database.connection().commit_hook(Some(|| false)).unwrap();
            database.connection().rollback_hook(Some(|| ())).unwrap();
        }
        database.connection().pragma_update(None, "foreign_keys", habits.foreign_keys).unwrap();
        Self {
            index,
            layout,
            habits,
            database: Some(database),
            daemon: None,
            expected: Expected::default(),
            writer: index,
            backups: Vec::new(),
            ids: 0,
            bytes: false,
            careful: BTreeSet::new(),
        }
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// One of the names of its database.
    pub(crate) fn path(&self, world: &World) -> PathBuf {
        let path = self.layout.database();
        match self.habits.linked && world.chance(0.5) {
            true => path.with_file_name(format!("{}.link.db", self.index)),
            false => path.to_owned(),
        }
    }

    /// Makes `others` its remotes, named by their numbers; some by a second name too.
    pub(crate) fn follow<'a>(&self, world: &World, others: impl IntoIterator<Item = &'a Site>) {
        for other in others {
            self.add_remote(&other.index.to_string(), &other.address(world));
            if world.chance(0.1) {
                self.add_remote(&format!("{}-again", other.index), &other.address(world));
            }
        }
    }

    pub(crate) fn add_remote(&self, name: &str, address: &str) {
        let repository = Repository::open_with(self.layout.clone(), Options::default()).unwrap();
        finish(repository.remote_add(name, address, SyncMode::Manual)).unwrap();
    }

    /// Removes `other` from its remotes and adds it anew.
    pub(crate) fn forget(&self, world: &World, other: &Site) {
        let repository = Repository::open_with(self.layout.clone(), Options::default()).unwrap();
        finish(repository.remote_remove(&other.index.to_string())).unwrap();
        // It may have none.
        drop(finish(repository.remote_remove(&format!("{}-again", other.index))));
        self.follow(world, [other]);
    }

    /// Where others find it.
    pub(crate) fn address(&self, world: &World) -> String {
        match self.habits.networked {
            true => Owner::of(self.index).address(),
            false => self.path(world).to_str().unwrap().to_owned(),
        }
    }

    /// Starts the daemon with what is in the files.
    pub(crate) async fn start(&mut self, world: &World, network: &Network) {
        self.daemon = None;
        let process = world.start_process();
        let options = Options {
            connector: Some(network.ways_from(self.index, process.clone())),
            signer: self.habits.signer(self.index),
            host: process.host(),
            ..Options::default()
        };
        let layout = Layout::new(&self.path(world), None).unwrap();
        let repository = Repository::open_with(layout, options).unwrap();
        let held = repository.clone();
        let lock = process.run(async move { held.hold().await }).await.expect("it lives").unwrap();
        let handler = match self.habits.networked {
            true => {
                let (guarding, own) = (repository.clone(), Owner::of(self.index).party.repository);
                let guarded = process.run(async move { guarding.guarded(own, Arc::new(Keys)).await });
                Arc::new(guarded.await.expect("it lives").unwrap())
            }
            false => repository.handler(),
        };
        network.serve(self.index, process.clone(), handler);
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
        self.backups.push((fs::read(self.layout.database()).unwrap(), self.expected.clone()));
    }

    pub(crate) fn can_be_restored(&self) -> bool {
        !self.backups.is_empty()
    }

    /// Ends the daemon and puts one of the copies in place of the database.
    pub(crate) fn restore(&mut self, world: &World) {
        let (copy, expected) = self.backups.swap_remove(world.index(self.backups.len()));
        if let Some((process, ..)) = self.daemon.take() {
            process.kill();
        }
        self.database = None;
        let path = self.layout.database();
        for suffix in ["-wal", "-shm", "-journal"] {
            assert!(!Path::new(&format!("{}{suffix}", path.display())).exists(), "a connection is open still");
        }
        fs::write(path, copy).unwrap();
        let fresh = Self::open_as(path.parent().expect("it is in a folder"), self.index, self.habits);
        // What it wrote since may come back from others, and then it is not the only writer of its old rows any more.
        let expected = Expected { own: BTreeMap::new(), ..expected };
        let (backups, careful) = (std::mem::take(&mut self.backups), std::mem::take(&mut self.careful));
        *self =
            Self { writer: self.writer + 100, ids: self.ids, bytes: self.bytes, expected, backups, careful, ..fresh };
    }

    pub(crate) fn sql(&self, sql: &str) {
        self.database().connection().execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    pub(crate) fn connection(&self) -> &Connection {
        self.database().connection()
    }

    /// Whether it has the table, by whatever case of letters.
    pub(crate) fn has_table(&self, name: &str) -> bool {
        self.count("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name LIKE ?", name)
    }

    pub(crate) fn has_late_column(&self) -> bool {
        self.count("SELECT count(*) FROM pragma_table_info('own') WHERE name = ?", "late")
    }

    fn count(&self, sql: &str, name: &str) -> bool {
        self.connection().query_row(sql, [name], |row| row.get::<_, i64>(0)).unwrap() > 0
    }

    pub(crate) fn add_late_table(&mut self) {
        if !self.has_table("late") {
            let id = self.new_id();
            self.expected.late.insert(id);
            self.sql(&LATE_TABLE.replace(":id", &id.to_string()));
        }
    }

    /// Makes a table that was drawn, declared like that.
    pub(crate) fn add_drawn(&mut self, table: &Table, declaration: &Declaration) {
        self.sql(&declaration.sql);
        if declaration.avoids_refused {
            self.careful.insert(table.name.clone());
        }
    }

    /// A number that nobody else uses, and that was not used before.
    pub(crate) fn new_id(&mut self) -> i64 {
        self.ids += 1;
        self.index as i64 * 1_000_000 + self.ids
    }

    pub(crate) fn add_late_column(&self) {
        if !self.has_late_column() {
            self.sql(LATE_COLUMN);
        }
    }

    /// The answer to a query.
    pub(crate) fn cells(&self, sql: &str) -> Vec<Vec<Cell>> {
        let mut statement = self.connection().prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        let rows = statement.query_map([], Cell::all_of).unwrap().collect::<Result<_, _>>();
        rows.unwrap_or_else(|error| panic!("site {}: {sql}: {error}", self.index))
    }

    /// The answer to a query, a line for each row.
    pub(crate) fn rows(&self, sql: &str) -> Vec<String> {
        self.cells(sql).iter().map(|cells| line(cells)).collect()
    }

    /// What it holds in tables that take everything, all of which replicates.
    pub(crate) fn content(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for table in self.database().tables().unwrap() {
            if table.name.to_lowercase().starts_with("drawn") {
                continue;
            }
            let columns: Vec<_> = table.key_columns.iter().chain(&table.columns).map(|column| &*column.name).collect();
            let (name, columns) = (table.name, columns.join(", "));
            let rows = self.rows(&format!("SELECT {columns} FROM {name} ORDER BY {columns}"));
            lines.extend(rows.into_iter().map(|row| format!("{name}: {row}")));
        }
        lines.extend(self.rows(CHANGES).into_iter().map(|change| format!("change: {change}")));
        lines
    }

    /// Whether it has a second name for the site `other`.
    pub(crate) fn names_twice(&self, other: usize) -> bool {
        self.daemon().is_some_and(|(_, repository)| {
            let config = repository.config().unwrap();
            config.remote(&format!("{other}-again")).is_ok()
        })
    }

    /// Rows come into a table while it is altered.
    pub(crate) fn alter_with_data(&mut self, world: &World) {
        let ids = [self.new_id().to_string(), self.new_id().to_string()];
        let commits = world.chance(0.8);
        self.sql("BEGIN; SELECT crsql_begin_alter('log')");
        for id in &ids {
            self.sql(&format!("INSERT INTO log VALUES ('{id}', 'written in an alteration')"));
        }
        self.sql("SELECT crsql_commit_alter('log')");
        self.sql(if commits { "COMMIT" } else { "ROLLBACK" });
        if commits {
            self.expected.log.extend(ids);
        }
    }

    /// Why changes wait that it has fetched.
    pub(crate) async fn waits_for(&self) -> Vec<String> {
        let (process, repository) = self.daemon().expect("it was started");
        let repository = repository.clone();
        let status = process.run(async move { repository.status(false).await }).await.expect("it lives").unwrap();
        status.remotes.into_iter().flat_map(|remote| remote.reasons).collect()
    }

    /// Fails unless both files are sound and nothing is left to be merged but what tables that were drawn refuse.
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
            let may_wait = remote.reasons.iter().all(|reason| reason.to_lowercase().starts_with("table drawn"));
            assert!(may_wait && (remote.waiting > 0 || remote.reasons.is_empty()), "{about}");
            assert_eq!((remote.unmerged, &remote.last_error), (0, &None), "{about}");
        }
    }

    /// Fails unless everything that `writer` alone wrote, and did not change or delete since, is here.
    pub(crate) fn assert_has(&self, writer: &Site) {
        let about = format!("what site {} wrote, at site {}", writer.index, self.index);
        let own = self.rows(&format!("SELECT id, n, body, late FROM own WHERE site = {} ORDER BY id", writer.writer));
        let expected =
            writer.expected.own.iter().map(|(id, (n, body, late))| {
                line(&[Cell::Integer(*id), Cell::Integer(*n), body.clone(), late.clone()])
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

/// The id of a site: chosen, so that the same seed is the same history to the last byte.
fn id_of(index: usize) -> [u8; 16] {
    let hash = blake3::hash(&index.to_le_bytes());
    std::array::from_fn(|at| hash.as_bytes()[at])
}

/// Gives the database at `path`, which has changed nothing yet, the id of a site.
pub(crate) fn give_id(path: &Path, index: usize) {
    let sql = "UPDATE crsql_site_id SET site_id = ? WHERE ordinal = 0";
    assert_eq!(Connection::open(path).unwrap().execute(sql, [id_of(index)]).unwrap(), 1);
}
