//! A source that goes on writing, and what a repository that follows it may hold while it is killed or its disk fails.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    env,
    str::FromStr,
    thread,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::support::{Repo, World};

/// Rows of the source at any time.
const ROWS: u64 = 300;
/// Every so many rows a value is large.
const LARGE_EVERY: u64 = 100;
const LARGE_BYTES: usize = 60_000;

/// A number from the environment, which `just crash` sets.
pub(crate) fn setting<T: FromStr>(name: &str, default: T) -> T {
    env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// A source of random choices: `DDCP_CRASH_SEED`, or else another one each time. Says which, should the test fail.
pub(crate) struct Seed(u64);

impl Seed {
    pub(crate) fn new() -> Self {
        Self(setting("DDCP_CRASH_SEED", rand::random()))
    }

    pub(crate) fn rng(&self) -> StdRng {
        StdRng::seed_from_u64(self.0)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("DDCP_CRASH_SEED={} makes the same choices", self.0);
        }
    }
}

/// The repository `source` and another that follows it, `reader`, with all that the source ever held.
#[derive(Clone)]
pub(crate) struct History {
    pub(crate) source: Repo,
    pub(crate) reader: Repo,
    rng: StdRng,
    /// The number of transactions; the stars of the rows that the last one wrote.
    version: u64,
    alive: BTreeSet<u64>,
    next: u64,
    /// Rows as they stood after each transaction of the source.
    ever: HashSet<String>,
    /// Rows that the reader wrote, which it must keep.
    own: BTreeSet<String>,
    /// When the rows were written that the reader had when it was last looked at; `None` for one that was deleted.
    seen: BTreeMap<String, Option<u64>>,
}

impl History {
    /// Two repositories that follow each other; the source has [`ROWS`] rows.
    pub(crate) fn new(world: &World, rng: StdRng) -> Self {
        let [source, reader] = world.all_notes(["source", "reader"]);
        reader.follows(&[&source]);
        source.follows(&[&reader]);
        let mut history = Self {
            source,
            reader,
            rng,
            version: 0,
            alive: BTreeSet::new(),
            next: 0,
            ever: HashSet::new(),
            own: BTreeSet::new(),
            seen: BTreeMap::new(),
        };
        for _ in 0..5 {
            history.transaction(|history| history.insert(ROWS / 5));
        }
        history
    }

    /// Five transactions of the source: updates of a half of its rows, some with large values, new ones, deletions.
    pub(crate) fn write(&mut self) {
        self.transaction(|history| history.update(ROWS / 4));
        self.transaction(|history| history.insert(10));
        self.transaction(|history| history.delete(5));
        self.transaction(|history| history.insert(2) + &history.delete(7));
        self.transaction(|history| history.update(ROWS / 4));
    }

    /// A row of the reader's own, in a transaction of its own.
    pub(crate) fn write_own(&mut self, id: &str) {
        self.reader.sql(&format!("INSERT INTO note VALUES ('{id}', 'my own', 0)"));
        self.has_own(id);
    }

    /// Notes that the reader has committed a row of its own.
    pub(crate) fn has_own(&mut self, id: &str) {
        self.own.insert(format!("{id}|my own|0"));
    }

    fn transaction(&mut self, statements: impl FnOnce(&mut Self) -> String) {
        self.version += 1;
        let statements = statements(self);
        self.source.sql(&format!("BEGIN; {statements} COMMIT;"));
        self.ever.extend(self.source.rows("SELECT * FROM note WHERE id LIKE 's%'"));
    }

    fn insert(&mut self, count: u64) -> String {
        let rows: Vec<u64> = (self.next..self.next + count).collect();
        self.next += count;
        self.alive.extend(&rows);
        rows.iter()
            .map(|row| format!("INSERT INTO note VALUES ('s{row}', {}, {});", self.body(*row), self.version))
            .collect()
    }

    fn update(&mut self, count: u64) -> String {
        (0..count)
            .map(|_| {
                let row = self.any();
                format!("UPDATE note SET body = {}, stars = {} WHERE id = 's{row}';", self.body(row), self.version)
            })
            .collect()
    }

    fn delete(&mut self, count: u64) -> String {
        (0..count)
            .map(|_| {
                let row = self.any();
                self.alive.remove(&row);
                format!("DELETE FROM note WHERE id = 's{row}';")
            })
            .collect()
    }

    fn any(&mut self) -> u64 {
        let place = self.rng.random_range(0..self.alive.len());
        *self.alive.iter().nth(place).unwrap()
    }

    /// What the row is to hold from this version on. Large values do not compress well.
    fn body(&mut self, row: u64) -> String {
        let version = self.version;
        if !row.is_multiple_of(LARGE_EVERY) {
            return format!("'version {version} of {row}'");
        }
        let bytes: String = (0..LARGE_BYTES).map(|_| char::from(self.rng.random_range(b'a'..=b'z'))).collect();
        format!("'version {version} of {row}: {bytes}'")
    }

    /// Fails unless the repository opens, its files are sound, and it holds nothing that the source never held,
    /// nothing older than when it was last looked at, and all of its own. Says whether it has come further since.
    ///
    /// Looks at a copy: what a crash left behind is for the next command to find.
    pub(crate) fn check(&mut self, world: &World) -> bool {
        let copy = self.reader.copied(&world.path("copy"));
        copy.ok(["status"]);
        copy.assert_sound();
        let rows = copy.rows("SELECT * FROM note");
        let (theirs, own): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.starts_with('s'));
        let own: BTreeSet<_> = own.into_iter().collect();
        let lost: Vec<_> = self.own.difference(&own).collect();
        assert!(lost.is_empty(), "its own rows were lost: {lost:?}");

        let mut now: BTreeMap<String, Option<u64>> = self.seen.keys().map(|id| (id.clone(), None)).collect();
        for row in theirs {
            assert!(self.ever.contains(&row), "the source never had {}", shortened(&row));
            let (id, version) = (row.split('|').next().unwrap(), row.rsplit('|').next().unwrap());
            now.insert(id.to_owned(), Some(version.parse().unwrap()));
        }
        for (id, before) in &self.seen {
            match (before, now[id]) {
                (Some(before), Some(after)) => assert!(*before <= after, "{id} went back from {before} to {after}"),
                (Some(_), None) => {
                    let alive = id[1..].parse().is_ok_and(|row| self.alive.contains(&row));
                    assert!(!alive, "{id} is gone, though the source has it");
                }
                (None, after) => assert!(after.is_none(), "{id} was deleted and is there again"),
            }
        }
        let further = self.seen != now;
        self.seen = now;
        further
    }

    /// Fails unless repeating what was broken off makes both equal and leaves nothing behind.
    pub(crate) fn converge(&self) {
        self.reader.pull();
        self.source.pull();
        self.converge_reader();
    }

    /// The same, if the source has what the reader wrote.
    pub(crate) fn converge_reader(&self) {
        self.reader.pull();
        let status = self.reader.json(&["status"]);
        let remote = &status["remotes"][0];
        assert_eq!((&remote["unmerged"], &remote["waiting"]), (&0.into(), &0.into()), "{remote}");
        assert_eq!(self.reader.json(&["pull"])["fetched"][0]["done"]["changes"], 0);
        crate::support::assert_converged(&[&self.source, &self.reader]);
    }
}

fn shortened(row: &str) -> String {
    row.chars().take(80).collect()
}
