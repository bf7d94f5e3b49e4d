//! Any order, grouping and repetition of the same changes leaves all databases equal.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use proptest::prelude::*;
use rusqlite::Connection;
use rusqlite::types::Value;

const KEYS: [&str; 6] = ["1", "-9223372036854775808", "9223372036854775807", "'k'", "''", "x'00'"];

#[derive(Clone, Debug)]
enum Op {
    Insert(usize, Value, Value),
    Update(usize, bool, Value),
    Delete(usize),
    Upsert(usize, Value),
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(0), Just(-1), any::<i64>()].prop_map(Value::Integer),
        prop_oneof![
            Just(0.0),
            Just(-0.0),
            Just(f64::INFINITY),
            Just(f64::NEG_INFINITY),
            Just(5e-324),
            Just(f64::MAX),
            Just(-1.5)
        ]
        .prop_map(Value::Real),
        prop_oneof![Just(""), Just("a"), Just("a\0"), Just("\0"), Just("日本")].prop_map(|t| Value::Text(t.into())),
        proptest::sample::select(vec![&b""[..], b"\0", b"\0\0", b"\xff"]).prop_map(|b: &[u8]| Value::Blob(b.into())),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..KEYS.len();
    prop_oneof![
        3 => (key.clone(), value(), value()).prop_map(|(k, x, y)| Op::Insert(k, x, y)),
        3 => (key.clone(), any::<bool>(), value()).prop_map(|(k, w, v)| Op::Update(k, w, v)),
        2 => key.clone().prop_map(Op::Delete),
        1 => (key, value()).prop_map(|(k, v)| Op::Upsert(k, v)),
    ]
}

fn site() -> Connection {
    let c = open();
    c.execute_batch(
        "CREATE TABLE foo (k PRIMARY KEY NOT NULL, x, y NOT NULL DEFAULT 7);
         CREATE TABLE tag (k NOT NULL, t NOT NULL, PRIMARY KEY (k, t));
         SELECT crsql_as_crr('foo'); SELECT crsql_as_crr('tag')",
    )
    .unwrap();
    c
}

fn run(c: &Connection, op: &Op) {
    let y = |v: &Value| if *v == Value::Null { Value::Integer(0) } else { v.clone() };
    match op {
        Op::Insert(k, a, b) => {
            let sql = format!("INSERT OR IGNORE INTO foo VALUES ({}, ?, ?)", KEYS[*k]);
            c.execute(&sql, [a.clone(), y(b)]).unwrap();
            c.execute(&format!("INSERT OR IGNORE INTO tag VALUES ({}, 't')", KEYS[*k]), [])
        }
        Op::Update(k, first, v) => {
            let (column, v) = if *first { ("x", v.clone()) } else { ("y", y(v)) };
            c.execute(&format!("UPDATE foo SET {column} = ? WHERE k IS {}", KEYS[*k]), [v])
        }
        Op::Delete(k) => {
            c.execute(&format!("DELETE FROM tag WHERE k IS {}", KEYS[*k]), []).unwrap();
            c.execute(&format!("DELETE FROM foo WHERE k IS {}", KEYS[*k]), [])
        }
        Op::Upsert(k, v) => c.execute(
            &format!("INSERT INTO foo VALUES ({}, ?1, 1) ON CONFLICT DO UPDATE SET x = ?1", KEYS[*k]),
            [v.clone()],
        ),
    }
    .unwrap();
}

/// What must be equal: rows, and what is known of every cell, apart from local numbers.
fn state(c: &Connection) -> Vec<String> {
    let mut all = query(c, "SELECT 'row', * FROM foo ORDER BY k");
    all.extend(query(c, "SELECT 'tag', * FROM tag ORDER BY k"));
    all.extend(query(c, "SELECT [table], pk, cid, val, col_version, cl FROM crsql_changes ORDER BY 1, 2, 3"));
    // -0.0 equals 0.0 and no write of one over the other is a change.
    all.into_iter().map(|row| row.replace("-0.0", "0.0")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    /// Each site writes alone; fresh databases get all changes in different orders, repeated.
    #[test]
    fn order_grouping_and_repetition_do_not_matter(
        histories in proptest::collection::vec(proptest::collection::vec(op(), 1..12), 2..=5),
        orders in proptest::collection::vec(any::<u64>(), 2..4),
    ) {
        let mut all = Vec::new();
        for ops in &histories {
            let c = site();
            ops.iter().for_each(|op| run(&c, op));
            all.extend(changes(&c, ""));
        }
        let mut states = Vec::new();
        for seed in orders {
            let mut rows = all.clone();
            let mut random = seed | 1;
            let mut below = |n: usize| {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                usize::try_from(random >> 33).unwrap() % n
            };
            for i in (1..rows.len()).rev() {
                rows.swap(i, below(i + 1));
            }
            let again = below(rows.len() + 1);
            rows.extend_from_within(..again);
            let c = site();
            let size = 1 + below(7);
            rows.chunks(size).for_each(|group| apply(&c, group));
            apply(&c, &rows);
            states.push(state(&c));
        }
        for other in &states[1..] {
            prop_assert_eq!(&states[0], other);
        }
    }

    /// Sites write and exchange what is new since the last exchange; in the end all are equal.
    #[test]
    fn sites_that_exchange_deltas_become_equal(
        count in 2usize..=5,
        script in proptest::collection::vec((0usize..5, op(), 0usize..5, any::<bool>()), 1..40),
    ) {
        let sites = (0..count).map(|_| site()).collect::<Vec<_>>();
        let mut seen = vec![vec![0i64; count]; count];
        let mut sync = |from: usize, to: usize| {
            let since = seen[to][from];
            let own = one(&sites[to], "SELECT quote(crsql_site_id())");
            let rows = changes(
                &sites[from],
                &format!("WHERE db_version > {since} AND site_id IS NOT {own} \
                          ORDER BY db_version, seq ASC"),
            );
            // Not crsql_db_version(): that counts versions which this connection reserved for updates that changed
            // nothing, and which may yet be given to a write.
            let stored = "SELECT coalesce(max(db_version), 0) FROM crsql_changes";
            seen[to][from] = one(&sites[from], stored).parse().unwrap();
            apply(&sites[to], &rows);
        };
        for (at, op, with, exchange) in script {
            let (at, with) = (at % count, with % count);
            run(&sites[at], &op);
            if exchange && at != with {
                sync(at, with);
            }
        }
        for _ in 0..3 {
            for (a, b) in (0..count).flat_map(|a| (0..count).map(move |b| (a, b))) {
                if a != b {
                    sync(a, b);
                }
            }
        }
        let first = state(&sites[0]);
        for other in &sites[1..] {
            prop_assert_eq!(&first, &state(other));
        }
    }
}
