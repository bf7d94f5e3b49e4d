//! Histories of an application that does what applications do: it has transaction hooks of its own, attaches other
//! databases, writes while it alters its tables, and spells names as it likes. A peer that reads what is newer than it has
//! read is in step all the time.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use proptest::prelude::*;
use rusqlite::Connection;

#[derive(Clone, Debug)]
enum Write {
    Insert(u8, u8),
    Replace(u8, u8),
    /// Key, column, value.
    Update(u8, usize, u8),
    Delete(u8),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Commit,
    Rollback,
    /// The application's commit hook refuses.
    Veto,
}

#[derive(Clone, Debug)]
enum Change {
    Add(bool),
    Drop(usize),
    Rename(usize),
    /// Another case of letters, at the site and perhaps at the peer.
    Respell(usize, bool),
    RenameKey,
    /// The table is copied to a new one, which takes its name.
    Remake,
    Write(Write),
    /// The key of a row, from and to.
    Move(u8, u8),
}

#[derive(Clone, Debug)]
enum Action {
    One(Write),
    Transaction(Vec<Write>, Option<usize>, End),
    Alter(Vec<Change>),
    /// A column gets another case of letters without more ado.
    Respell(usize),
    /// A write to the attached database's table, alone or after a write to the own one.
    Foreign(Write, bool),
    AsCrr,
    Pull,
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        3 => (0u8..6, 0u8..9).prop_map(|(k, v)| Write::Insert(k, v)),
        2 => (0u8..6, 0u8..9).prop_map(|(k, v)| Write::Replace(k, v)),
        3 => (0u8..6, 0usize..4, 0u8..9).prop_map(|(k, c, v)| Write::Update(k, c, v)),
        2 => (0u8..6).prop_map(Write::Delete),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let change = prop_oneof![
        2 => any::<bool>().prop_map(Change::Add),
        1 => (0usize..4).prop_map(Change::Drop),
        2 => (0usize..4).prop_map(Change::Rename),
        1 => (0usize..4, any::<bool>()).prop_map(|(c, both)| Change::Respell(c, both)),
        1 => Just(Change::RenameKey),
        1 => Just(Change::Remake),
        6 => write().prop_map(Change::Write),
        1 => (0u8..6, 0u8..9).prop_map(|(from, to)| Change::Move(from, to)),
    ];
    let end = prop_oneof![4 => Just(End::Commit), 1 => Just(End::Rollback), 1 => Just(End::Veto)];
    prop_oneof![
        4 => write().prop_map(Action::One),
        3 => (proptest::collection::vec(write(), 1..5), proptest::option::of(0usize..4), end)
            .prop_map(|(writes, savepoint, end)| Action::Transaction(writes, savepoint, end)),
        2 => proptest::collection::vec(change, 0..6).prop_map(Action::Alter),
        1 => (0usize..4).prop_map(Action::Respell),
        1 => (write(), any::<bool>()).prop_map(|(w, after_own)| Action::Foreign(w, after_own)),
        1 => Just(Action::AsCrr),
        4 => Just(Action::Pull),
    ]
}

/// The site, its peer, and what their tables look like.
struct World {
    site: Connection,
    peer: Connection,
    read: i64,
    key: String,
    columns: Vec<String>,
    /// How many names were given.
    serial: usize,
    /// What letters will be in capitals.
    capitals: std::cell::Cell<u32>,
    _dir: tempfile::TempDir,
}

const TABLE: &str = "CREATE TABLE item (id INTEGER PRIMARY KEY NOT NULL, name, size DEFAULT 4)";

impl World {
    fn new(hook_first: bool) -> World {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other.db");
        let c = Connection::open(&other).unwrap();
        crsqlite::register(&c).unwrap();
        c.execute_batch(&format!("{TABLE}; SELECT crsql_as_crr('item'); INSERT INTO item VALUES (1, 1, 1)")).unwrap();
        drop(c);
        let site = Connection::open_in_memory().unwrap();
        if hook_first {
            veto(&site, false);
        }
        crsqlite::register(&site).unwrap();
        if !hook_first {
            veto(&site, false);
        }
        site.execute("ATTACH ? AS arc", [other.to_str().unwrap()]).unwrap();
        let peer = open();
        for c in [&site, &peer] {
            c.execute_batch(&format!("{TABLE}; SELECT crsql_as_crr('Item')")).unwrap();
        }
        World {
            site,
            peer,
            read: 0,
            key: "id".into(),
            columns: vec!["name".into(), "size".into()],
            serial: 0,
            capitals: std::cell::Cell::new(1),
            _dir: dir,
        }
    }

    /// The name with some letters in capitals.
    fn spell(&self, name: &str) -> String {
        let spell = |c: char| {
            let bits = self.capitals.get();
            self.capitals.set(bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
            if bits >> 31 == 1 { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }
        };
        name.chars().map(spell).collect()
    }

    fn name(&mut self, prefix: &str) -> String {
        self.serial += 1;
        format!("{prefix}{}", self.serial)
    }

    fn sql(&self, schema: &str, write: &Write) -> Option<String> {
        let (table, key) = (self.spell("item"), self.spell(&self.key));
        let column = |at: usize| self.columns.get(at).map(|c| self.spell(c));
        let row = |verb: &str, k: u8, v: u8| match column(0) {
            Some(c) => format!("{verb} INTO {schema}.{table} ({key}, {c}) VALUES ({k}, {v})"),
            None => format!("{verb} INTO {schema}.{table} ({key}) VALUES ({k})"),
        };
        Some(match *write {
            Write::Insert(k, v) => row("INSERT OR IGNORE", k, v),
            Write::Replace(k, v) => row("REPLACE", k, v),
            Write::Update(k, c, v) => format!("UPDATE {schema}.{table} SET {} = {v} WHERE {key} = {k}", column(c)?),
            Write::Delete(k) => format!("DELETE FROM {schema}.{table} WHERE {key} = {k}"),
        })
    }

    fn write(&self, write: &Write) {
        let Some(sql) = self.sql("main", write) else { return };
        self.site.execute_batch(&sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    fn transaction(&self, writes: &[Write], savepoint: Option<usize>, end: End) {
        self.site.execute_batch("BEGIN").unwrap();
        for (i, write) in writes.iter().enumerate() {
            if savepoint == Some(i) {
                self.site.execute_batch("SAVEPOINT inner").unwrap();
                self.write(write);
                self.site.execute_batch("ROLLBACK TO inner; RELEASE inner").unwrap();
            }
            self.write(write);
        }
        match end {
            End::Commit => self.site.execute_batch("COMMIT").unwrap(),
            End::Rollback => self.site.execute_batch("ROLLBACK").unwrap(),
            End::Veto => {
                veto(&self.site, true);
                // A transaction that wrote nothing is not asked about, and commits.
                let _ = self.site.execute_batch("COMMIT");
                veto(&self.site, false);
            }
        }
        assert!(self.site.is_autocommit());
        assert_eq!(one(&self.site, "SELECT crsql_get_seq()"), "0");
    }

    fn alter(&mut self, changes: &[Change]) {
        let begin = |this: &World| format!("SELECT crsql_begin_alter('{}')", this.spell("item"));
        self.site.execute_batch(&begin(self)).unwrap();
        let mut schema = Vec::new();
        for change in changes {
            // A table that is made anew forgets what its columns were called, and what is written to it later is not noticed.
            let renames = |c: &Change| matches!(c, Change::Rename(_) | Change::RenameKey);
            let remakes = matches!(change, Change::Remake);
            if remakes && changes.iter().any(renames) {
                continue;
            }
            self.change(change, &mut schema);
            if remakes {
                break;
            }
        }
        self.site.execute_batch(&format!("SELECT crsql_commit_alter('{}')", self.spell("item"))).unwrap();
        let sql = schema.join(";");
        self.peer.execute_batch(&format!("{}; {sql}; SELECT crsql_commit_alter('item')", begin(self))).unwrap();
    }

    /// Runs the change, and adds to `schema` what the peer is to run.
    fn change(&mut self, change: &Change, schema: &mut Vec<String>) {
        let at = |at: usize| (at < self.columns.len()).then_some(at);
        let (sql, at_peer) = match change {
            Change::Write(write) => return self.write(write),
            Change::Move(from, to) => {
                let key = self.spell(&self.key);
                let sql = format!("UPDATE OR REPLACE item SET {key} = {to} WHERE {key} = {from}");
                return self.site.execute_batch(&sql).unwrap();
            }
            Change::Add(default) => {
                let name = self.name("added");
                let sql = format!("ALTER TABLE item ADD COLUMN {name} {}", if *default { "DEFAULT 7" } else { "" });
                self.columns.push(name);
                (sql, true)
            }
            Change::Drop(column) => {
                let Some(column) = at(*column) else { return };
                (format!("ALTER TABLE item DROP COLUMN {}", self.columns.remove(column)), true)
            }
            Change::Rename(column) => {
                let Some(column) = at(*column) else { return };
                let name = self.name("renamed");
                let old = std::mem::replace(&mut self.columns[column], name.clone());
                (format!("ALTER TABLE item RENAME COLUMN {old} TO {name}"), true)
            }
            Change::Respell(column, both) => {
                let Some(column) = at(*column) else { return };
                (self.respelling(column), *both)
            }
            Change::RenameKey => {
                let name = self.name("key");
                let old = std::mem::replace(&mut self.key, name.clone());
                (format!("ALTER TABLE item RENAME COLUMN {old} TO {name}"), true)
            }
            Change::Remake => {
                let create = one(&self.site, "SELECT sql FROM sqlite_master WHERE name = 'item'");
                let create = create.replacen("item", "new", 1);
                let sql = format!(
                    "{create}; INSERT INTO new SELECT * FROM item; DROP TABLE item; ALTER TABLE new RENAME TO item"
                );
                return self.site.execute_batch(&sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
            }
        };
        self.site.execute_batch(&sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        if at_peer {
            schema.push(sql);
        }
    }

    fn respelling(&self, column: usize) -> String {
        let name = &self.columns[column];
        format!("ALTER TABLE item RENAME COLUMN {name} TO {}", self.spell(name))
    }

    /// What is written to the attached database is refused, and leaves nothing there or here.
    fn foreign(&self, write: &Write, after_own: bool) {
        let World { site, .. } = self;
        let sql = match *write {
            Write::Insert(k, v) | Write::Replace(k, v) => {
                format!("REPLACE INTO arc.{} VALUES ({k}, {v}, 0)", self.spell("item"))
            }
            Write::Update(_, _, v) => format!("UPDATE arc.item SET name = {v}"),
            Write::Delete(_) => "DELETE FROM arc.item".to_owned(),
        };
        let own = if after_own { "BEGIN; INSERT OR REPLACE INTO item DEFAULT VALUES;" } else { "BEGIN;" };
        let before = changes(site, "").len();
        let refused = site.execute_batch(&format!("{own} {sql}")).unwrap_err();
        assert!(refused.to_string().contains("attached database arc"), "{refused}");
        site.execute_batch("ROLLBACK").unwrap();
        assert_eq!(query(site, "SELECT * FROM arc.item"), ["1,1,1"]);
        assert_eq!(changes(site, "").len(), before);
    }

    fn pull(&mut self) {
        let rows = changes(&self.site, &format!("WHERE db_version > {}", self.read));
        apply(&self.peer, &rows);
        // Not `crsql_db_version()`, which may be one that was reserved and never written.
        let version = |row: &Row| match row[5] {
            rusqlite::types::Value::Integer(version) => version,
            _ => 0,
        };
        self.read = rows.iter().map(version).max().unwrap_or(self.read);
        let table = format!("SELECT * FROM item ORDER BY {}", self.key);
        assert_eq!(query(&self.peer, &table), query(&self.site, &table), "after version {}", self.read);
        // One record for each cell, however it is spelt.
        let twice = "SELECT key, lower(col_name) FROM item__crsql_clock GROUP BY 1, 2 HAVING count(*) > 1";
        assert_eq!(query(&self.site, twice), [""; 0]);
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::One(write) => self.write(write),
            Action::Transaction(writes, savepoint, end) => self.transaction(writes, *savepoint, *end),
            Action::Alter(changes) => self.alter(changes),
            Action::Respell(column) if *column < self.columns.len() => {
                self.site.execute_batch(&self.respelling(*column)).unwrap();
            }
            Action::Respell(_) => {}
            Action::Foreign(write, after_own) => self.foreign(write, *after_own),
            Action::AsCrr => {
                self.site.execute_batch(&format!("SELECT crsql_as_crr('{}')", self.spell("item"))).unwrap();
            }
            Action::Pull => self.pull(),
        }
    }
}

fn veto(c: &Connection, refuse: bool) {
    c.commit_hook(Some(move || refuse)).unwrap();
    c.rollback_hook(Some(|| {})).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_peer_stays_in_step(hook_first: bool, actions in proptest::collection::vec(action(), 1..40)) {
        let mut world = World::new(hook_first);
        for action in &actions {
            world.act(action);
        }
        world.pull();
        prop_assert_eq!(one(&world.site, "PRAGMA integrity_check"), "ok");
    }
}
