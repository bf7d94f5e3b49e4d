//! Databases that have merged the same have the same digest; others have not.

use std::collections::HashMap;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::database::Digest;

const SCHEMA: &str = "CREATE TABLE notes (id INTEGER PRIMARY KEY NOT NULL, title TEXT, body);
                      SELECT crsql_as_crr('notes');
                      CREATE TABLE marks (a NOT NULL, b NOT NULL, PRIMARY KEY (b, a)); SELECT crsql_as_crr('marks');";

fn sums(site: &Site) -> (u128, Vec<u128>) {
    let digest = site.database.digest().unwrap();
    let all = digest.ranges.iter().fold(0_u128, |all, sum| all.wrapping_add(*sum));
    assert_eq!(all, digest.total(), "tables and ranges have the same rows");
    (digest.total(), digest.ranges)
}

fn sync(sites: &mut [Site], pairs: &[(usize, usize)]) {
    for (to, from) in pairs {
        let (low, high) = sites.split_at_mut(*to.max(from));
        let (low, high) = (&mut low[*to.min(from)], &mut high[0]);
        let (to, from) = if to < from { (low, high) } else { (high, low) };
        to.pull(from);
    }
}

fn sites() -> Vec<Site> {
    (0..3).map(|_| Site::new(SCHEMA)).collect()
}

/// In two orders, over two ways.
const ALL: [(usize, usize); 6] = [(1, 0), (1, 2), (0, 1), (2, 1), (0, 2), (2, 0)];

fn assert_one_digest(sites: &[Site]) {
    let sums: Vec<_> = sites.iter().map(sums).collect();
    assert!(sums.iter().all(|other| *other == sums[0]));
}

/// Both write the same, so each keeps itself as the site: that is nothing that replicas need agree about.
#[test]
fn equal_writes_of_several_sites_are_equal() {
    let mut sites = sites();
    for site in &sites {
        site.run("INSERT INTO notes VALUES (1, 'one', 1.5); UPDATE notes SET title = 'two'");
    }
    sync(&mut sites, &ALL);
    let authors: Vec<_> = sites.iter().map(|site| site.rows("SELECT DISTINCT site_id FROM crsql_changes")).collect();
    assert_ne!(authors[0], authors[1], "their records do differ");
    assert_one_digest(&sites);
}

#[test]
fn numbers_that_merges_take_for_equal_are_equal() {
    let mut sites = sites();
    sites[0].run("INSERT INTO notes VALUES (1, 'zero', 0.0); INSERT INTO marks VALUES (1, 'key')");
    sites[1].run("INSERT INTO notes VALUES (1, 'zero', -0.0); INSERT INTO marks VALUES (1.0, 'key')");
    sync(&mut sites, &ALL);
    assert_one_digest(&sites);
}

#[test]
fn a_row_that_came_by_itself_equals_one_that_came_with_a_cell() {
    let mut sites = sites();
    sites[0].run("INSERT INTO notes VALUES (1, 'one', 1); UPDATE notes SET id = 2");
    sites[1].run("INSERT INTO notes VALUES (2, 'two', 2)");
    sync(&mut sites, &ALL);
    assert_one_digest(&sites);
}

#[test]
fn everything_that_replicates_counts() {
    let site = Site::new(SCHEMA);
    let mut seen = vec![sums(&site).0];
    for statement in [
        "INSERT INTO notes VALUES (1, 'one', 1)",
        "UPDATE notes SET body = 2",
        "UPDATE notes SET body = '2'",
        "UPDATE notes SET body = x'32'",
        "UPDATE notes SET body = NULL",
        "UPDATE notes SET id = 2",
        "INSERT INTO marks VALUES (1, 'a')",
        "DELETE FROM marks",
        "INSERT INTO marks VALUES (1, 'a')",
        "DELETE FROM notes",
        "INSERT INTO notes VALUES (2, 'one', NULL)",
    ] {
        site.run(statement);
        let now = sums(&site).0;
        assert!(!seen.contains(&now), "{statement}");
        seen.push(now);
    }
    // Behind the engine's back.
    site.run("DELETE FROM notes__crsql_clock WHERE col_name = 'title'");
    assert!(!seen.contains(&sums(&site).0));
}

/// A digest that is brought forward by what changed, as the cache of a repository does.
struct Kept {
    digest: Digest,
    rows: HashMap<(String, i64), u128>,
}

impl Kept {
    fn bring_forward(kept: Option<Self>, site: &Site) -> Self {
        let snapshot = site.database.snapshot().unwrap();
        let now = *snapshot.mark();
        let kept = kept.filter(|kept| kept.digest.mark.leads_to(&now));
        let after = kept.as_ref().map(|kept| kept.digest.mark.version);
        let mut kept = kept.unwrap_or(Self { digest: Digest::empty(now), rows: HashMap::new() });
        for table in snapshot.tables() {
            kept.digest.tables.entry(table.name.clone()).or_default();
            let take = &mut |row: crate::database::DigestedRow| {
                let id = (table.name.clone(), row.key);
                let before = match row.number {
                    Some(number) => kept.rows.insert(id, number),
                    None => kept.rows.remove(&id),
                };
                kept.digest.count(&table.name, row.range, before, row.number);
                Ok::<_, DatabaseError>(())
            };
            snapshot.rows(table, after, take).unwrap();
        }
        kept.digest.mark = now;
        kept
    }
}

/// Altering adds records under the version that was there before, and removes some.
#[test]
fn alterations_are_noticed() {
    let site = Site::new(SCHEMA);
    site.run("INSERT INTO notes VALUES (1, 'one', 1), (2, 'two', 2)");
    let kept = Kept::bring_forward(None, &site);
    site.run(
        "SELECT crsql_begin_alter('notes'); ALTER TABLE notes DROP COLUMN title; DELETE FROM notes WHERE id = 1;
         INSERT INTO notes VALUES (3, 'three'); SELECT crsql_commit_alter('notes')",
    );
    let forward = Kept::bring_forward(Some(kept), &site);
    assert!(forward.digest == site.database.digest().unwrap());
}

fn statement() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just("NULL".to_owned()),
        (0..3_i64).prop_map(|value| value.to_string()),
        Just("-0.0".to_owned()),
        Just("0.0".to_owned()),
        Just("'text'".to_owned()),
        Just("x'00'".to_owned()),
    ];
    (0..4_i64, value, 0..9).prop_map(|(id, value, kind)| match kind {
        0 => format!("INSERT OR REPLACE INTO notes VALUES ({id}, 'title {id}', {value})"),
        1 => format!("INSERT OR IGNORE INTO notes (id, body) VALUES ({id}, {value})"),
        2 => format!("UPDATE notes SET body = {value} WHERE id >= {id}"),
        3 => format!("UPDATE OR IGNORE notes SET id = id + 1 WHERE id = {id}"),
        4 => format!("DELETE FROM notes WHERE id = {id}"),
        5 => format!("INSERT OR IGNORE INTO marks VALUES ({id}, 'mark')"),
        6 => format!("INSERT OR IGNORE INTO marks VALUES ({id}.0, 'mark')"),
        7 => "SELECT crsql_begin_alter('notes'); SELECT crsql_commit_alter('notes')".to_owned(),
        _ => format!("DELETE FROM marks WHERE a = {id}"),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Three sites write and pull from each other at random. Whatever the order, a digest that is brought forward is
    /// the one that is made anew; and once all have pulled from all, there is only one.
    #[test]
    fn any_history_ends_in_one_digest(steps in vec((0..3_usize, 0..4_usize, vec(statement(), 1..4)), 1..20)) {
        let mut sites = sites();
        let mut kept: Vec<Option<Kept>> = vec![None, None, None];
        for (at, other, statements) in steps {
            match other {
                // Altering ends a transaction, so none is begun here.
                3 => statements.iter().for_each(|statement| sites[at].run(statement)),
                other if other != at => sync(&mut sites, &[(at, other)]),
                _ => {}
            }
            let forward = Kept::bring_forward(kept[at].take(), &sites[at]);
            let anew = sites[at].database.digest().unwrap();
            prop_assert_eq!(forward.digest.ranges.clone(), anew.ranges);
            prop_assert_eq!(forward.digest.mark, anew.mark);
            kept[at] = Some(forward);
        }
        sync(&mut sites, &ALL);
        assert_one_digest(&sites);
    }
}
