//! What is remarked; and whatever is done to a table without telling the engine: what is printed mends it, and a peer
//! gets what is there.

use proptest::prelude::*;

use super::*;
use crate::database::OpenOptions;

#[derive(Clone, Debug)]
enum Deed {
    DropTrigger(char),
    Insert(u8, u8),
    Update(u8, u8),
    Rekey(u8, u8),
    Delete(u8),
    AddColumn(bool),
    RenameColumn(u8, u8),
    RenameKey,
    /// As it should be done.
    Tell,
    MakeAnew,
    RenameTable,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        2 => prop::sample::select(vec!['i', 'u', 'd']).prop_map(Deed::DropTrigger),
        4 => (0..6_u8, 0..4_u8).prop_map(|(key, value)| Deed::Insert(key, value)),
        2 => (0..6_u8, 0..4_u8).prop_map(|(key, value)| Deed::Update(key, value)),
        1 => (0..6_u8, 0..6_u8).prop_map(|(old, new)| Deed::Rekey(old, new)),
        2 => (0..6_u8).prop_map(Deed::Delete),
        1 => any::<bool>().prop_map(Deed::AddColumn),
        1 => (0..4_u8, 0..4_u8).prop_map(|(old, new)| Deed::RenameColumn(old, new)),
        1 => Just(Deed::RenameKey),
        1 => Just(Deed::Tell),
        1 => Just(Deed::MakeAnew),
        1 => Just(Deed::RenameTable),
    ]
}

const CHANGES: &str = "SELECT * FROM crsql_changes";

/// The one table of the user's, with its columns.
fn table(connection: &Connection) -> TableShape {
    let name = plain_tables(connection).unwrap().remove(0);
    schema::table(connection, name).unwrap()
}

/// Does it, if it can be done. What fails is what an application would see fail.
fn act(connection: &Connection, deed: &Deed) {
    let TableShape { name, key_columns, columns } = table(connection);
    let key = &key_columns[0].name;
    let column = |at: &u8| columns[usize::from(*at) % columns.len()].name.clone();
    let tell = |sql: &str| format!("SELECT crsql_begin_alter('{name}'); {sql}; SELECT crsql_commit_alter('{name}')");
    let sql = match deed {
        Deed::DropTrigger(kind) => format!("DROP TRIGGER IF EXISTS {name}__crsql_{kind}trig"),
        Deed::Insert(id, value) => {
            let value = if *value == 0 { "NULL".to_owned() } else { value.to_string() };
            format!("INSERT INTO {name} ({key}, k, {}) VALUES ({id}, 1, {value})", column(&0))
        }
        Deed::Update(id, value) => format!("UPDATE {name} SET {} = {value} WHERE {key} = '{id}'", column(value)),
        Deed::Rekey(old, new) => format!("UPDATE {name} SET {key} = {new} WHERE {key} = '{old}'"),
        Deed::Delete(id) => format!("DELETE FROM {name} WHERE {key} = '{id}'"),
        Deed::AddColumn(has_default) => {
            let default = if *has_default { "DEFAULT 7" } else { "" };
            format!("ALTER TABLE {name} ADD COLUMN c{} {default}", columns.len())
        }
        Deed::RenameColumn(old, new) => format!("ALTER TABLE {name} RENAME COLUMN {} TO r{new}", column(old)),
        Deed::RenameKey => {
            format!("ALTER TABLE {name} RENAME COLUMN {key} TO {}", if key == "id" { "key" } else { "id" })
        }
        Deed::Tell => tell("SELECT 1"),
        Deed::MakeAnew => format!(
            "CREATE TABLE anew ({key} TEXT NOT NULL, k INTEGER NOT NULL, a, b DEFAULT 5, PRIMARY KEY ({key}, k));
             INSERT INTO anew ({key}, k, a) SELECT {key}, k, {} FROM {name};
             DROP TABLE {name}; ALTER TABLE anew RENAME TO {name}",
            column(&0)
        ),
        Deed::RenameTable => format!("ALTER TABLE {name} RENAME TO {}", if name == "note" { "memo" } else { "note" }),
    };
    if connection.execute_batch(&format!("BEGIN; {sql}; COMMIT")).is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK").unwrap();
    }
}

fn is_fault(remark: &Remark) -> bool {
    !matches!(remark.what, Remarked::NumberedKey(_) | Remarked::CollatedKey(_))
}

fn faults(database: &Database) -> Vec<Remark> {
    database.remarks(false).unwrap().into_iter().filter(is_fault).collect()
}

fn rows(connection: &Connection, sql: &str) -> Rows {
    let mut statement = connection.prepare(sql).unwrap();
    let count = statement.column_count();
    let row = |row: &Row<'_>| (0..count).map(|at| row.get(at)).collect();
    statement.query_map([], row).unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

type Rows = Vec<Vec<rusqlite::types::Value>>;

/// What a peer has that has the same table, and merges these changes, of which it may lack some names.
fn at_peer(connection: &Connection, table: &TableShape, changes: &Rows) -> Rows {
    let peer = Connection::open_in_memory().unwrap();
    crsqlite::register(&peer).unwrap();
    let declaration: String = connection
        .query_row("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?1", [&table.name], |row| row.get(0))
        .unwrap();
    peer.execute_batch(&format!("{declaration}; SELECT crsql_as_crr('{}')", table.name)).unwrap();
    for change in changes {
        let sql = "INSERT INTO crsql_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
        let _ = peer.execute(sql, rusqlite::params_from_iter(change));
    }
    rows(&peer, &format!("SELECT * FROM {} ORDER BY 1, 2", table.name))
}

/// Whether a peer that has read everything so far could know what is wrong from what is recorded: not of values that
/// were changed under a name, or a key, that has records already.
fn is_told(deeds: &[Deed], found: &[Remark]) -> bool {
    let renames = deeds.iter().filter(|deed| matches!(deed, Deed::RenameColumn(..))).count();
    let is_silent = |deed: &Deed| matches!(deed, Deed::DropTrigger('u') | Deed::MakeAnew | Deed::RenameKey);
    renames < 2
        && !deeds.iter().any(is_silent)
        && found.iter().all(|remark| !matches!(remark.what, Remarked::OtherKey { .. }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_mends_does_mend(deeds in prop::collection::vec(deed(), 1..14)) {
        let dir = tempfile::tempdir().unwrap();
        let open = || Database::open(&dir.path().join("a.db"), &OpenOptions { create: true, ..OpenOptions::default() });
        let database = open().unwrap();
        database.connection().execute_batch(
            "CREATE TABLE note (id TEXT NOT NULL, k INTEGER NOT NULL, a, b DEFAULT 5, PRIMARY KEY (id, k));
             SELECT crsql_as_crr('note'); INSERT INTO note VALUES ('0', 1, 1, 1), ('1', 1, NULL, NULL);",
        ).unwrap();
        for deed in &deeds {
            act(database.connection(), deed);
        }
        // As the command that is pasted: each with a connection of its own.
        let found = faults(&database);
        let told = is_told(&deeds, &found);
        // Of a key that is not the recorded one nothing can be read.
        let read = if told { rows(database.connection(), CHANGES) } else { Rows::new() };
        let version = database.version().unwrap();
        for remark in &found {
            let mend = remark.mend.as_ref().unwrap_or_else(|| panic!("{remark:?}"));
            open().unwrap().connection().execute_batch(mend).unwrap_or_else(|error| panic!("{error}: {remark:#?}"));
        }
        // A table under a new name shows what else is wrong with it only when it replicates again.
        for remark in faults(&database) {
            open().unwrap().connection().execute_batch(remark.mend.as_deref().unwrap_or_default()).unwrap();
        }
        prop_assert_eq!(faults(&database), [], "after {:#?}", found);
        let connection = database.connection();
        let table = table(connection);
        let here = rows(connection, &format!("SELECT * FROM {} ORDER BY 1, 2", table.name));
        prop_assert_eq!(&here, &at_peer(connection, &table, &rows(connection, CHANGES)));
        // A peer that had read everything hears of what was mended.
        let news = rows(connection, &format!("{CHANGES} WHERE db_version > {version}"));
        if told {
            prop_assert_eq!(&here, &at_peer(connection, &table, &[read, news].concat()));
        }
        // And it can be written to.
        let key = &table.key_columns[0].name;
        connection.execute_batch(&format!("INSERT INTO {0} ({key}, k) VALUES ('new', 2); UPDATE {0} SET k = 3; DELETE FROM {0}", table.name)).unwrap();
    }
}

fn remarks(schema: &str) -> Vec<(String, Remarked)> {
    let dir = tempfile::tempdir().unwrap();
    let options = OpenOptions { create: true, ..OpenOptions::default() };
    let database = Database::open(&dir.path().join("a.db"), &options).unwrap();
    database.connection().execute_batch(schema).unwrap();
    assert_eq!(database.check_structure(true).unwrap(), [""; 0]);
    assert_eq!(database.journal_mode().unwrap(), "wal");
    database.remarks(true).unwrap().into_iter().map(|remark| (remark.table, remark.what)).collect()
}

#[test]
fn nothing_is_remarked_of_a_fit_table() {
    assert_eq!(remarks("CREATE TABLE a (id TEXT NOT NULL PRIMARY KEY, b); SELECT crsql_as_crr('a');"), []);
}

#[test]
fn tables_that_do_not_replicate_are_named_with_the_reason() {
    let found = remarks(
        "CREATE TABLE fit (id TEXT NOT NULL PRIMARY KEY); CREATE TABLE keyless (a);
         CREATE TABLE once (id TEXT NOT NULL PRIMARY KEY, mail TEXT); CREATE UNIQUE INDEX one ON once (mail);
         CREATE VIEW v AS SELECT * FROM fit;",
    );
    let [(fit, could), (keyless, no_key), (once, unique)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((fit.as_str(), could), ("fit", &Remarked::NotShared));
    assert!(matches!(no_key, Remarked::NotShareable(why) if keyless == "keyless" && why.contains("no primary key")));
    assert!(matches!(unique, Remarked::NotShareable(why) if once == "once" && why.contains("unique indices")));
}

#[test]
fn shapes_that_make_trouble_are_named() {
    let found = remarks(
        "CREATE TABLE n (id INTEGER NOT NULL PRIMARY KEY, b); SELECT crsql_as_crr('n');
         CREATE TABLE c (id TEXT NOT NULL COLLATE NOCASE PRIMARY KEY, b); SELECT crsql_as_crr('c');
         CREATE TABLE gone (id TEXT NOT NULL PRIMARY KEY, b); SELECT crsql_as_crr('gone'); DROP TABLE gone;
         CREATE TABLE t (id TEXT NOT NULL PRIMARY KEY, b); SELECT crsql_as_crr('t'); DROP TRIGGER t__crsql_utrig;
         CREATE TABLE u (id TEXT NOT NULL PRIMARY KEY, b); SELECT crsql_as_crr('u'); CREATE UNIQUE INDEX ub ON u (b);",
    );
    assert!(found.contains(&("n".into(), Remarked::NumberedKey("id".into()))), "{found:?}");
    assert!(found.contains(&("c".into(), Remarked::CollatedKey("id".into()))), "{found:?}");
    assert!(found.contains(&("gone".into(), Remarked::Dropped)), "{found:?}");
    assert!(found.contains(&("t".into(), Remarked::NotRecorded { updates: true })), "{found:?}");
    assert!(found.iter().any(|(table, what)| table == "u" && matches!(what, Remarked::Unfit(_))), "{found:?}");
    assert_eq!(found.len(), 5, "{found:?}");
}
