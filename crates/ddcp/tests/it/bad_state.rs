//! State files that are damaged: what can be known again is, and nothing is lost.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use insta::assert_snapshot;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rusqlite::Connection;

use crate::{
    crashes::kill,
    history::{History, Seed},
    serve::Daemon,
    support::{Repo, World, assert_converged},
};

const MORE: &str = "CREATE TABLE more (id TEXT NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('more');";

/// A reader of `a` of whose changes it has merged some, some wait for a table, and some are in its inbox. It is in the
/// folder `here`, where [`again`] puts it anew.
fn reader(world: &World) -> (Repo, Repo) {
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(MORE).sql("INSERT INTO note VALUES ('1', 'one', 1)").sql("INSERT INTO more VALUES ('w', 'waits')");
    b.sql("INSERT INTO note VALUES ('own', 'own', 0)").follows(&[&a]).pull();
    let b = b.moved(&world.path("here"));
    a.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    b.ok(["fetch"]);
    b.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    Connection::open(b.state("state.db")).unwrap().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    b.copied(&world.path("base"));
    a.follows(&[&b]);
    (a, b)
}

/// The reader as it was.
fn again(world: &World, b: &Repo) {
    b.at(&world.path("base")).copied(b.root());
}

/// The files that were put aside.
fn aside(repo: &Repo) -> Vec<String> {
    let names = fs::read_dir(repo.state("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("state.db.damaged-") && !name.contains("Z-")).collect()
}

/// Fails unless a pull brings everything, and what waits is merged once its table is there.
fn assert_mends(a: &Repo, b: &Repo) {
    b.pull();
    b.sql("CREATE TABLE IF NOT EXISTS more (id TEXT NOT NULL PRIMARY KEY, x); SELECT crsql_as_crr('more')")
        .ok(["merge"]);
    a.pull();
    assert_converged(&[a, b]);
    assert!(!b.state("damaged").exists());
}

#[test]
fn a_state_file_that_is_damaged_is_put_aside_and_made_anew() {
    let world = World::new();
    let (a, b) = reader(&world);
    let diary = "Dear diary, ".repeat(400);
    fs::write(b.state("state.db"), &diary).unwrap();
    let run = b.run(["pull"]).assert_status(0);
    let [aside] = aside(&b).try_into().unwrap();
    assert_snapshot!(run.to_string().replace(&aside, "ASIDE"), @"
    status 0
    --- stdout
    a: fetched 5 changes in SIZE
    a: its tables differ from those here:
      table more: it is not here
    a: merged 5 changes (note 2), 2 known already
    a: 1 change waiting:
      table more: there is no such table, or it is no CRR

    --- stderr
    TIME  WARN ddcp::repo::mend: state.db was damaged (file is not a database) and is made anew; the old one is ASIDE. Packs saved of it: 0. The remotes are read from their start folder=DIR/.ddcp/b.db
    TIME  WARN ddcp::repo::identity: it is a copy of another repository's database, or its state directory was lost; it was given a new site id database=DIR/b.db old=SITE new=SITE
    ");
    assert_eq!(fs::read_to_string(b.state(&aside)).unwrap(), diary);
    assert_snapshot!(b.run(["log", "state.db"]).to_string().replace(&aside, "ASIDE"), @"
    status 0
    --- stdout
    TIME state.db: failed: state.db was damaged (file is not a database) and is made anew; the old one is ASIDE. Packs saved of it: 0. The remotes are read from their start
    ");
    let doctor = b.run(["doctor", "--offline"]).stdout;
    assert!(doctor.contains(&format!("{aside} was damaged and is put aside")), "{doctor}");
    assert_mends(&a, &b);
}

/// Every command by itself finds its way.
#[test]
fn no_command_fails_for_ever() {
    let world = World::new();
    let (a, b) = reader(&world);
    for arguments in
        [&["status"][..], &["log"], &["remote", "rename", "a", "c"], &["fetch"], &["merge"], &["pull"], &["init"]]
    {
        again(&world, &b);
        fs::write(b.state("state.db"), "no database".repeat(1000)).unwrap();
        let run = b.run(arguments).assert_status(0);
        assert!(run.stderr.contains("state.db was damaged"), "{arguments:?}: {run}");
        assert_eq!(aside(&b).len(), 1, "{arguments:?}");
        assert_mends(&a, &b);
    }
}

/// What is done to a state file, and what that is called.
type Damage = (String, Box<dyn Fn(&Path)>);

fn damages(state: &Path) -> Vec<Damage> {
    let length = fs::metadata(state).unwrap().len();
    let mut damages: Vec<Damage> = Vec::new();
    for length in [0, 1, 100, 4096, length / 2, length - 4096, length - 1] {
        let cut = move |path: &Path| fs::File::options().write(true).open(path).unwrap().set_len(length).unwrap();
        damages.push((format!("cut to {length} bytes"), Box::new(cut)));
    }
    for (fill, name) in [(0_u8, "zeros"), (0xff, "ones"), (0x5a, "nonsense")] {
        for page in 0..length / 4096 {
            let spoil = move |path: &Path| {
                let file = fs::File::options().write(true).open(path).unwrap();
                file.write_all_at(&[fill; 4096], page * 4096).unwrap();
            };
            damages.push((format!("{name} in page {page}"), Box::new(spoil)));
        }
    }
    for sql in [
        "DROP TABLE inbox",
        "DROP TABLE home",
        "ALTER TABLE waiting DROP COLUMN reasons",
        "PRAGMA user_version = 0",
        "PRAGMA user_version = -7",
        "UPDATE waiting SET site_id = x''",
        "UPDATE contact SET site_id = x''",
        "INSERT INTO log (at, took, remote, event) VALUES (1, 1, 'a', 'no event')",
    ] {
        damages.push((
            sql.to_owned(),
            Box::new(move |path: &Path| Connection::open(path).unwrap().execute_batch(sql).unwrap()),
        ));
    }
    damages
}

#[test]
fn wherever_it_is_damaged_nothing_is_lost() {
    let world = World::new();
    let (a, b) = reader(&world);
    let mut renewed = 0;
    let damages = damages(&b.state("state.db"));
    for (what, damage) in &damages {
        again(&world, &b);
        println!("{what}");
        damage(&b.state("state.db"));
        assert_mends(&a, &b);
        renewed += aside(&b).len();
    }
    assert!(renewed * 2 > damages.len(), "only {renewed} of {} were noticed", damages.len());
}

/// What came in a bundle that is no more cannot be fetched again.
#[test]
fn what_can_be_read_of_it_is_kept() {
    let world = World::new();
    let (a, b) = reader(&world);
    let c = world.notes("c");
    c.sql(MORE).sql("INSERT INTO more VALUES ('c', 'from a bundle')");
    c.ok(["bundle", "create", "c.bundle", "--table", "more"]);
    b.ok(["bundle", "fetch", world.path("c.bundle").to_str().unwrap()]);
    b.ok(["merge"]);
    let site = b.rows("SELECT hex(crsql_site_id())");
    let state = Connection::open(b.state("state.db")).unwrap();
    let page: u64 =
        state.query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'log'", [], |row| row.get(0)).unwrap();
    state.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(state);
    let file = fs::File::options().write(true).open(b.state("state.db")).unwrap();
    file.write_all_at(&[0x5a; 4096], (page - 1) * 4096).unwrap();
    let run = b.run(["pull"]).assert_status(0);
    assert!(run.stderr.contains("state.db was damaged"), "{run}");
    assert_eq!(b.rows("SELECT hex(crsql_site_id())"), site, "how far it was given away is known still");
    b.sql(MORE).ok(["merge"]);
    assert_eq!(b.rows("SELECT id FROM more ORDER BY id"), ["c", "w"]);
    a.pull();
    assert_converged(&[&a, &b]);
}

/// SQLite does not look into what it keeps.
#[test]
fn a_pack_that_was_damaged_while_it_waited_is_fetched_again() {
    let world = World::new();
    let (a, b) = reader(&world);
    let sql = "UPDATE waiting SET pack = zeroblob(length(pack))";
    Connection::open(b.state("state.db")).unwrap().execute_batch(sql).unwrap();
    b.sql(MORE);
    b.ok(["merge"]);
    assert_eq!(b.rows("SELECT count(*) FROM more"), ["0"]);
    assert_mends(&a, &b);
}

/// The places where a process can be killed that puts a state file aside: each is gone on from.
#[test]
fn what_was_broken_off_is_gone_on_with() {
    const NAME: &str = "state.db.damaged-20260101T000000Z";
    let world = World::new();
    let (a, b) = reader(&world);
    let mark = |repo: &Repo, text: &str| fs::write(repo.state("damaged"), text).unwrap();
    let named = format!("{NAME}\nit is none");
    let shift = |repo: &Repo, ends: &[&str]| {
        for end in ends {
            let from = PathBuf::from(format!("{}{end}", repo.state("state.db").display()));
            if from.exists() {
                fs::rename(from, repo.state(&format!("{NAME}{end}"))).unwrap();
            }
        }
    };
    type Place<'a> = (&'a str, &'a dyn Fn(&Repo));
    let places: [Place<'_>; 7] = [
        ("suspected, and sound", &|repo| mark(repo, "")),
        ("half a mark", &|repo| mark(repo, "state.db.dam")),
        ("nothing moved", &|repo| mark(repo, &named)),
        ("logs moved", &|repo| {
            mark(repo, &named);
            shift(repo, &["-wal", "-shm"]);
        }),
        ("all moved", &|repo| {
            mark(repo, &named);
            shift(repo, &["-wal", "-shm", ""]);
        }),
        ("an empty one made", &|repo| {
            mark(repo, &named);
            shift(repo, &["-wal", "-shm", ""]);
            fs::write(repo.state("state.db"), "").unwrap();
        }),
        ("another one made", &|repo| {
            mark(repo, &named);
            shift(repo, &["-wal", "-shm", ""]);
            Connection::open(repo.state("state.db")).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        }),
    ];
    for (what, place) in places {
        again(&world, &b);
        place(&b);
        println!("{what}");
        assert_mends(&a, &b);
    }
}

#[test]
fn kills_while_it_is_made_anew_lose_nothing() {
    let seed = Seed::new();
    let mut rng = seed.rng();
    let world = World::new();
    let mut history = History::new(&world, seed.rng());
    let mut damaged = 0;
    for _ in 0..20 {
        history.write();
        history.reader.ok(["fetch"]);
        spoil(&history.reader.state("state.db"), &mut StdRng::seed_from_u64(rng.random()));
        for _ in 0..2 {
            let mut child = history.reader.start(["pull"]);
            kill(&mut child, &mut rng, Duration::from_millis(80));
            history.reader.finish(child);
        }
        // What a command meets that is damaged, the next one mends.
        history.reader.run(["pull"]);
        history.reader.pull();
        history.check(&world);
        damaged += usize::from(!aside(&history.reader).is_empty());
    }
    assert!(damaged > 5, "{damaged}");
    history.converge();
}

/// Overwrites a part of the file.
fn spoil(path: &Path, rng: &mut StdRng) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    let nonsense: Vec<u8> = (0..rng.random_range(1..5000)).map(|_| rng.random()).collect();
    file.write_all_at(&nonsense, rng.random_range(0..length)).unwrap();
}

#[test]
fn a_daemon_makes_it_anew() {
    let world = World::new();
    let (a, b) = reader(&world);
    let _daemon = Daemon::start(&world, &b);
    b.ok(["status"]);
    // As a disk does it, not as a program that has it open.
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(b.state(&format!("state.db{end}")));
    }
    fs::write(b.state("state.db"), "no database".repeat(1000)).unwrap();
    assert_mends(&a, &b);
    assert_eq!(aside(&b).len(), 1);
}

#[test]
fn a_cache_of_digests_that_is_damaged_is_made_anew() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    b.follows(&[&a]).ok(["verify"]);
    let digests = b.state("digest.db");
    let length = fs::metadata(&digests).unwrap().len();
    for place in (0..length).step_by(4096) {
        let _ = fs::remove_file(b.state("digest.db-wal"));
        let file = fs::File::options().write(true).open(&digests).unwrap();
        file.write_all_at(&[0x5a; 4096], place).unwrap();
        drop(file);
        b.ok(["status"]);
        b.ok(["verify"]);
        b.ok(["status"]);
    }
    assert_eq!(b.json(&["status"])["remotes"][0]["identical"], true);
}
