//! Any history, fetched in any portions over any path, ends in equal databases.

use proptest::{collection::vec, prelude::*};

use super::*;

const SCHEMA: &str = "CREATE TABLE notes (id INTEGER PRIMARY KEY NOT NULL, title TEXT, body);
                      SELECT crsql_as_crr('notes');
                      CREATE TABLE marks (a NOT NULL, b NOT NULL, PRIMARY KEY (b, a)); SELECT crsql_as_crr('marks');";

#[derive(Clone, Debug)]
enum Step {
    /// Statements of one transaction at a site.
    Write(usize, Vec<String>),
    /// A site pulls from another, in portions of this size.
    Pull(usize, usize, usize),
}

fn statement() -> impl Strategy<Value = String> {
    let id = 0..4_i64;
    let value = prop_oneof![
        Just("NULL".to_owned()),
        (0..3_i64).prop_map(|value| value.to_string()),
        Just("-0.0".to_owned()),
        Just("'text'".to_owned()),
        Just("x'00'".to_owned()),
        Just("hex(zeroblob(300))".to_owned()),
    ];
    (id, value, 0..7).prop_map(|(id, value, kind)| match kind {
        0 => format!("INSERT OR REPLACE INTO notes VALUES ({id}, 'title {id}', {value})"),
        1 => format!("INSERT OR IGNORE INTO notes (id, body) VALUES ({id}, {value})"),
        2 => format!("UPDATE notes SET body = {value} WHERE id >= {id}"),
        // OR REPLACE would set the cells of a living row back to lower versions, as it does in CR-SQLite: the
        // replaced row's cells, if read before, may then win elsewhere.
        3 => format!("UPDATE OR IGNORE notes SET id = id + 1 WHERE id = {id}"),
        4 => format!("DELETE FROM notes WHERE id = {id}"),
        5 => format!("INSERT OR IGNORE INTO marks VALUES ({id}, 'mark')"),
        _ => format!("DELETE FROM marks WHERE a = {id}"),
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3_usize, vec(statement(), 1..5)).prop_map(|(site, statements)| Step::Write(site, statements)),
        2 => (0..3_usize, 1..3_usize, prop_oneof![Just(1), Just(200), Just(1 << 20)])
            .prop_map(|(to, step, size)| Step::Pull(to, (to + step) % 3, size)),
    ]
}

fn pull(sites: &mut [Site], to: usize, from: usize, target_raw_bytes: usize) -> usize {
    let (low, high) = sites.split_at_mut(to.max(from));
    let (low, high) = (&mut low[to.min(from)], &mut high[0]);
    let (to, from) = if to < from { (low, high) } else { (high, low) };
    to.pull_with(from, &ReadLimits { target_raw_bytes, max_packs: 2 })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_converges(steps in vec(step(), 1..25)) {
        let mut sites: Vec<Site> = (0..3).map(|_| Site::new(SCHEMA)).collect();
        for step in steps {
            match step {
                Step::Write(site, statements) => {
                    sites[site].run(&format!("BEGIN; {}; COMMIT", statements.join(";")));
                }
                Step::Pull(to, from, size) => drop(pull(&mut sites, to, from, size)),
            }
        }
        // A line: the first and the last only meet through the one between.
        for (to, from) in [(1, 0), (1, 2), (0, 1), (2, 1)] {
            pull(&mut sites, to, from, 100);
        }
        let sites: Vec<&Site> = sites.iter().collect();
        assert_equal(&sites, "SELECT * FROM notes ORDER BY id");
        assert_equal(&sites, "SELECT * FROM marks ORDER BY a, b");
    }
}
