//! A change means one thing: what is merged ends in the same rows in whatever order, and what honest sites make passes.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::changeset::{Change, HIGH_VERSION, MAX_VERSION, PackTable, SENTINEL};

const TABLES: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, x, y); SELECT crsql_as_crr('t');
                      CREATE TABLE k (a NOT NULL, b NOT NULL, PRIMARY KEY (b, a)); SELECT crsql_as_crr('k');";

fn site(byte: u8) -> SiteId {
    SiteId::from_bytes(&[byte; 16]).unwrap()
}

fn change(id: i64, cid: &str, val: Value, col_version: i64, cl: i64) -> Change {
    let pk = crsqlite::pack::pack([ValueRef::Integer(id)]).unwrap().into();
    Change { table: "t".into(), pk, cid: cid.into(), val, col_version, db_version: 1, site_id: site(9), cl, seq: 0 }
}

fn tables() -> Vec<PackTable> {
    vec![PackTable { name: "t".into(), key_columns: vec!["id".into()] }]
}

/// Merges changes, and gives those that wait.
fn merge(site: &mut Site, changes: &[Change]) -> Vec<Refused> {
    let mut kept = Vec::new();
    let source = SiteId::from_bytes(&[9; 16]).unwrap();
    site.database.merge(&source, changes, &tables(), None, &mut keep_into(&mut kept)).unwrap();
    kept
}

fn any_change() -> impl Strategy<Value = Change> {
    let value = prop::sample::select(vec![
        Value::Null,
        Value::Integer(1),
        Value::Integer(2),
        Value::Real(0.5),
        Value::Text("x".into()),
        Value::Blob(vec![1]),
    ]);
    let cid = prop::sample::select(vec![SENTINEL, "x", "y"]);
    let version = prop_oneof![8 => 0..4_i64, 1 => Just(HIGH_VERSION), 1 => -1..=MAX_VERSION];
    (1..3_i64, cid, value, version, 0..6_i64, 1..4_u8, 1..9_i64, 0..3_i64).prop_map(
        |(id, cid, val, col_version, cl, author, db_version, seq)| {
            let (val, col_version) = if cid == SENTINEL { (Value::Null, cl) } else { (val, col_version) };
            Change { site_id: site(author), db_version, seq, ..change(id, cid, val, col_version, cl) }
        },
    )
}

/// Rows, and what is recorded of them. That a row is in its first life may be recorded, or follow from its cells.
fn everything(site: &Site) -> Vec<String> {
    let mut all = site.rows("SELECT * FROM t ORDER BY id");
    let changes = "SELECT pk, cid, val, col_version, cl FROM crsql_changes WHERE cid <> '-1' OR cl > 1 ORDER BY 1, 2";
    all.extend(site.rows(changes));
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever passes the check, in whatever order and portions two sites get it: once they have read each other, they
    /// have the same.
    #[test]
    fn what_passes_the_check_converges(
        changes in vec(any_change(), 1..14),
        order in vec(any::<prop::sample::Index>(), 14),
        portion in 1..5_usize,
    ) {
        // Of higher versions the order may matter: they are taken by steps.
        let is_taken = |change: &Change| change.check().is_ok() && change.col_version <= HIGH_VERSION;
        let changes: Vec<Change> = changes.into_iter().filter(is_taken).collect();
        let (mut a, mut b) = (Site::new(TABLES), Site::new(TABLES));
        let mut shuffled = changes.clone();
        for (at, order) in order.iter().enumerate().take(shuffled.len()) {
            let other = order.index(shuffled.len());
            shuffled.swap(at, other);
        }
        changes.chunks(portion).for_each(|portion| assert!(merge(&mut a, portion).is_empty()));
        shuffled.chunks(2).for_each(|portion| assert!(merge(&mut b, portion).is_empty()));
        for _ in 0..2 {
            a.pull(&b);
            b.pull(&a);
        }
        prop_assert_eq!(everything(&a), everything(&b));
    }
}

/// A statement of an application, with all that SQL allows.
fn statement() -> impl Strategy<Value = String> {
    (1..5_i64, 0..3_i64, 0..11).prop_map(|(id, value, kind)| match kind {
        0 => format!("INSERT OR REPLACE INTO t VALUES ({id}, {value}, 'text')"),
        1 => format!("INSERT OR IGNORE INTO t (id, x) VALUES ({id}, {value})"),
        2 => format!("UPDATE t SET x = {value} WHERE id >= {id}"),
        3 => format!("UPDATE OR REPLACE t SET id = id + 1, y = {value} WHERE id = {id}"),
        4 => format!("DELETE FROM t WHERE id = {id}"),
        5 => format!("INSERT OR REPLACE INTO k VALUES ({id}, {value})"),
        6 => format!("UPDATE OR REPLACE k SET a = a + 1 WHERE b = {value}"),
        7 => format!("DELETE FROM k WHERE a = {id}"),
        8 => format!("PRAGMA recursive_triggers = {}", value % 2),
        9 => format!("INSERT INTO t VALUES ({id}, 'gone', {value}) ON CONFLICT DO UPDATE SET x = 'gone'"),
        _ => {
            format!("SAVEPOINT s; DELETE FROM t; INSERT OR IGNORE INTO t VALUES ({id}, 1, 1); ROLLBACK TO s; RELEASE s")
        }
    })
}

/// Fires before what set it off is recorded, so that cells of deleted rows are.
const CLEANING: &str = "
    CREATE TRIGGER clean AFTER UPDATE ON t WHEN NEW.x = 'gone' AND crsql_internal_sync_bit() = 0
    BEGIN DELETE FROM t WHERE id = NEW.id; END;
    CREATE TRIGGER cut AFTER INSERT ON t WHEN NEW.x = 2 AND crsql_internal_sync_bit() = 0
    BEGIN DELETE FROM t WHERE id = NEW.id; END";

/// All changes as an earlier program sends them: whatever is in `crsql_changes`.
fn all_changes(site: &Site) -> Vec<Change> {
    let sql = "SELECT \"table\", pk, cid, val, col_version, db_version, site_id, cl, seq FROM crsql_changes ORDER BY db_version, seq";
    let mut statement = site.database.connection().prepare(sql).unwrap();
    let change = |row: &rusqlite::Row<'_>| {
        Ok(Change {
            table: row.get::<_, String>(0)?.into(),
            pk: row.get::<_, Vec<u8>>(1)?.into(),
            cid: row.get::<_, String>(2)?.into(),
            val: row.get_ref(3)?.into(),
            col_version: row.get(4)?,
            db_version: row.get(5)?,
            site_id: SiteId::from_bytes(row.get_ref(6)?.as_blob().unwrap()).unwrap(),
            cl: row.get(7)?,
            seq: row.get(8)?,
        })
    };
    statement.query_map([], change).unwrap().map(Result::unwrap).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// What the engine records of any writes, deletions, returns, changes of keys, and merges of all that passes, whoever
    /// sends it: this program, or one that sends all there is.
    #[test]
    fn honest_histories_pass(steps in vec((0..2_usize, vec(statement(), 1..4), any::<bool>()), 1..20), cleaning in any::<bool>()) {
        let mut sites = [Site::new(TABLES), Site::new(TABLES)];
        if cleaning {
            sites.iter().for_each(|site| site.run(CLEANING));
        }
        for (at, statements, pulls) in steps {
            let sql = statements.join(";");
            sites[at].run(&if sql.contains("PRAGMA") { sql } else { format!("BEGIN; {sql}; COMMIT") });
            let [a, b] = &mut sites;
            let (to, from) = if at == 0 { (a, b) } else { (b, a) };
            if pulls {
                // Takes what it is given: nothing of it is left out, and all of it decodes.
                let batch = from.read(Cursor::ZERO, &to.id());
                prop_assert_eq!(batch.left_out.count, 0);
                to.pull(from);
            }
            let changes = all_changes(from);
            let version = from.database.version().unwrap();
            let table = |name: &str, keys: &[&str]| PackTable { name: name.into(), key_columns: keys.iter().map(|key| (*key).into()).collect() };
            let tables = vec![table("t", &["id"]), table("k", &["b", "a"])];
            let pack = Pack { source: from.id(), from: Cursor::ZERO, to: Cursor::whole(version), tables, changes };
            prop_assert_eq!(Pack::decode(&pack.encode(), &Limits::default()).map(|_| ()), Ok(()));
        }
    }
}

/// The rows that a trigger deletes before the write is recorded: an earlier program sends their cells, this one does not.
#[test]
fn cells_of_deleted_rows_say_nothing() {
    let a = Site::new(&format!(
        "{TABLES} INSERT INTO t VALUES (1, 1, 1), (2, 1, 1); {CLEANING}; UPDATE t SET x = 'gone' WHERE id = 1"
    ));
    let all = all_changes(&a);
    assert_eq!(all.iter().filter(|change| change.is_of_deleted_cell()).count(), 1, "what the trigger leaves");
    let mut b = Site::new(TABLES);
    let batch = a.read(Cursor::ZERO, &b.id());
    assert!(!batch.packs.iter().flat_map(|pack| &pack.changes).any(Change::is_of_deleted_cell));
    assert_eq!(batch.left_out.count, 0);
    assert_eq!(merge(&mut b, &all), []);
    assert_equal(&[&a, &b], "SELECT * FROM t");
    // By themselves they delete nothing, whatever they claim.
    assert_eq!(merge(&mut b, &[change(2, "x", Value::Null, 7, 2)]), []);
    assert_equal(&[&a, &b], "SELECT * FROM t");
}

#[test]
fn high_versions_are_taken_by_steps() {
    let mut a = Site::new(&format!("{TABLES} INSERT INTO t VALUES (1, 'own', 1)"));
    let step = 1_i64 << 32;
    let far = |kept: Vec<Refused>| kept.iter().map(|kept| kept.reason.clone()).collect::<Vec<_>>();
    let cell = |version, cl| change(1, "x", Value::Text(b"theirs".to_vec()), version, cl);
    assert_eq!(far(merge(&mut a, &[cell(MAX_VERSION, 1)])), [Reason::Far]);
    assert_eq!(far(merge(&mut a, &[cell(HIGH_VERSION + 1, 1)])), [Reason::Far]);
    assert_eq!(far(merge(&mut a, &[cell(1, MAX_VERSION - 1)])), [Reason::Far]);
    assert_eq!(far(merge(&mut a, &[change(1, SENTINEL, Value::Null, MAX_VERSION, MAX_VERSION)])), [Reason::Far]);
    assert_eq!(a.rows("SELECT x FROM t"), [r#"[Text("own")]"#]);
    assert_eq!(far(merge(&mut a, &[cell(HIGH_VERSION, 1)])), []);
    assert_eq!(far(merge(&mut a, &[cell(HIGH_VERSION + step + 1, 1)])), [Reason::Far]);
    assert_eq!(far(merge(&mut a, &[cell(HIGH_VERSION + step, 1)])), []);
    assert_eq!(
        a.rows("SELECT col_version FROM t__crsql_clock WHERE col_name = 'x'"),
        [format!("[Integer({})]", HIGH_VERSION + step)]
    );
    // A new life begins anew, and what belongs to the one before has lost.
    a.run("DELETE FROM t; INSERT INTO t VALUES (1, 'own', 1)");
    assert_eq!(far(merge(&mut a, &[cell(HIGH_VERSION + step, 3)])), [Reason::Far]);
    assert_eq!(far(merge(&mut a, &[cell(MAX_VERSION, 1)])), []);
    assert_eq!(a.rows("SELECT x FROM t"), [r#"[Text("own")]"#]);
    // A row that nobody has heard of, too.
    assert_eq!(far(merge(&mut a, &[change(7, "x", Value::Null, MAX_VERSION, 1)])), [Reason::Far]);
}
