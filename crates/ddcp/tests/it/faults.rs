//! A disk that fails or is full costs nothing but a repeat: the command says what is wrong, and nothing is half done.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nix::errno::Errno;
use rand::seq::IteratorRandom as _;

use crate::{
    history::{History, Seed, setting},
    support::{NOTE, Repo, Run, World, with_mounts},
};

/// Operations that are made to fail in a normal run, of each kind; `just crash` tries them all.
const FAULTS: usize = 25;

/// What fails in a command.
#[derive(Clone, Copy, Debug)]
struct Fault {
    code: Errno,
    /// Whether all operations after it fail too.
    lasts: bool,
}

const KINDS: [Fault; 4] = [
    Fault { code: Errno::EIO, lasts: false },
    Fault { code: Errno::EIO, lasts: true },
    Fault { code: Errno::ENOSPC, lasts: false },
    Fault { code: Errno::ENOSPC, lasts: true },
];

/// Makes operations on files fail in a program that is started with it; see `fail_io.c`.
struct Saboteur {
    library: PathBuf,
    count: PathBuf,
}

impl Saboteur {
    fn new(world: &World) -> Self {
        let library = world.path("fail_io.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fail_io.c");
        // What the compiler checks by itself would call functions of other names.
        let arguments = ["-O1", "-Wall", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-o"];
        let status = Command::new("cc").args(arguments).arg(&library).arg(source).arg("-ldl").status();
        assert!(status.expect("a C compiler").success());
        Self { library, count: world.path("count") }
    }

    /// Runs a command of which the operation `at`, from 1, fails; none for 0. Returns also the number of operations
    /// that might have failed.
    fn run(&self, repo: &Repo, arguments: &[&str], fault: Fault, at: usize) -> (Run, usize) {
        let mut command = repo.command();
        command
            .args(arguments)
            .env("LD_PRELOAD", &self.library)
            .env("FAIL_BELOW", repo.root())
            .env("FAIL_ERRNO", (fault.code as i32).to_string())
            .env("FAIL_AT", at.to_string())
            .env("FAIL_COUNT", &self.count);
        if fault.lasts {
            command.env("FAIL_ON", "1");
        }
        let run = repo.run_command(command);
        (run, fs::read_to_string(&self.count).unwrap().trim().parse().unwrap())
    }

    /// Tries `arguments` on a copy of `base`, with one operation after the other failing, or with as many of them as
    /// are wanted; `after` looks at the copy.
    fn sweep(&self, world: &World, seed: &Seed, base: &Repo, arguments: &[&str], mut after: impl FnMut(&Repo)) {
        for fault in KINDS {
            let copy = || base.copied(&world.path("faulty"));
            let (run, operations) = self.run(&copy(), arguments, fault, 0);
            run.assert_status(0);
            let most = setting("DDCP_CRASH_FAULTS", FAULTS);
            let mut places = (1..=operations).choose_multiple(&mut seed.rng(), most);
            places.sort_unstable();
            let mut failed = 0;
            for at in places {
                let repo = copy();
                let (run, _) = self.run(&repo, arguments, fault, at);
                let what = format!("{arguments:?}, {fault:?} at {at} of {operations}: {run}");
                failed += usize::from(run.status != Some(0));
                assert_told(&run, fault, &repo, &what);
                // Should what follows fail, this tells after what.
                println!("{what}");
                after(&repo);
            }
            assert!(failed > 0, "{arguments:?}: {fault:?} disturbs nothing");
        }
    }
}

/// Fails unless the run did what was asked, or ended with an error that names the file and helps.
fn assert_told(run: &Run, fault: Fault, repo: &Repo, what: &str) {
    assert!(!run.stderr.contains("panicked"), "{what}");
    if run.status == Some(0) {
        return;
    }
    assert_eq!(run.status, Some(1), "{what}");
    let errors: Vec<_> = run.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(!errors.is_empty(), "{what}");
    for error in errors {
        assert!(error.contains(repo.root().to_str().unwrap()), "names no file: {what}");
    }
    // Where SQLite may not open a file for writing it does so for reading, and says no more.
    let advice = match fault.code {
        Errno::ENOSPC => ["free some space", "and the disk", "the space left"],
        _ => ["check the disk", "and the disk", "is read-only: allow this user to write the file and its folder"],
    };
    assert!(advice.iter().any(|advice| run.stderr.contains(advice)), "{what}");
}

/// A reader in the folder `faulty` that has fetched and merged, written something itself, and is behind again.
fn reader_behind(world: &World, seed: &Seed) -> History {
    let mut history = History::new(world, seed.rng());
    history.reader.pull();
    history.write();
    history.write_own("own 1");
    history.source.pull();
    history.check(world);
    history.reader = history.reader.moved(&world.path("faulty"));
    history
}

#[test]
fn a_pull_on_a_disk_that_fails_is_repeated_without_loss() {
    let seed = Seed::new();
    let world = World::new();
    let history = reader_behind(&world, &seed);
    let base = history.reader.copied(&world.path("base"));
    Saboteur::new(&world).sweep(&world, &seed, &base, &["pull"], |repo| {
        let mut history = history.clone();
        history.reader = repo.clone();
        history.check(&world);
        history.converge_reader();
    });
}

/// A copy is given a site id of its own, by the first pull or, if that fails, by the next.
#[test]
fn a_copy_on_a_disk_that_fails_becomes_itself() {
    let seed = Seed::new();
    let world = World::new();
    let history = reader_behind(&world, &seed);
    let original = history.reader.moved(&world.path("original"));
    let site_id = original.json(&["status"])["site_id"].clone();
    Saboteur::new(&world).sweep(&world, &seed, &original, &["pull"], |repo| {
        let mut history = history.clone();
        history.reader = repo.clone();
        history.check(&world);
        history.converge_reader();
        assert_ne!(repo.json(&["status"])["site_id"], site_id);
    });
}

#[test]
fn an_init_on_a_disk_that_fails_is_repeated() {
    let seed = Seed::new();
    let world = World::new();
    let source = world.notes("source");
    source.sql("INSERT INTO note VALUES ('1', 'one', 1)");
    let base = world.repo("reader");
    Saboteur::new(&world).sweep(&world, &seed, &base, &["init"], |repo| {
        repo.ok(["init"]);
        repo.sql(NOTE).follows(&[&source]).pull();
        repo.assert_sound();
        assert_eq!(repo.notes(), source.notes());
    });
}

#[test]
fn settings_on_a_disk_that_fails_are_the_old_or_the_new() {
    let seed = Seed::new();
    let world = World::new();
    let base = world.notes("reader");
    base.ok(["remote", "add", "first", "first.db"]);
    Saboteur::new(&world).sweep(&world, &seed, &base, &["remote", "add", "second", "second.db"], |repo| {
        let remotes = repo.json(&["remote", "list"]);
        let names: Vec<_> = remotes.as_array().unwrap().iter().map(|remote| remote["name"].as_str().unwrap()).collect();
        assert!(names == ["first"] || names == ["first", "second"], "{names:?}");
    });
}

/// What a file system with so many KiB left makes of a pull; and of another when there is room again.
#[test]
fn a_pull_on_a_disk_that_fills_up_is_repeated_without_loss() {
    const SPACES: [u32; 16] = [0, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536];
    let seed = Seed::new();
    let world = World::new();
    let mut history = History::new(&world, seed.rng());
    history.reader.pull();
    for _ in 0..4 {
        history.write();
    }
    history.check(&world);
    history.reader = history.reader.moved(&world.path("disk"));
    history.reader.copied(&world.path("base"));
    fs::remove_file(history.reader.db()).unwrap();
    let mut script = String::from("mount -t tmpfs -o size=16m none disk\n");
    for space in SPACES {
        write!(
            script,
            r#"
            rm -rf disk/* disk/.ddcp && cp -r base/. disk
            left=$(df --output=avail -k disk | tail -1)
            head -c $((left - {space}))k /dev/zero > disk/filler
            code=0; "$DDCP" --db disk/reader.db pull > /dev/null 2> error || code=$?
            echo "{space} $code $(tr '\n' ' ' < error)"
            mkdir -p full{space} && cp -r disk/reader.db* disk/.ddcp full{space}
            rm disk/filler
            "$DDCP" --db disk/reader.db pull > /dev/null
            mkdir -p after{space} && cp -r disk/reader.db* disk/.ddcp after{space}
            "#
        )
        .unwrap();
    }
    let Some(run) = with_mounts(&world, &script) else { return };
    let run = run.assert_status(0);
    let outcomes: Vec<_> = run.stdout.lines().collect();
    assert_eq!(outcomes.len(), SPACES.len(), "{run}");
    let disk = world.path("disk");
    for (outcome, space) in outcomes.iter().zip(SPACES) {
        let told = outcome.starts_with(&format!("{space} 1 error: "))
            && ["is full", "free some space", disk.to_str().unwrap()].iter().all(|words| outcome.contains(words));
        assert!(told || outcome.starts_with(&format!("{space} 0 ")), "{outcome}");
        let mut history = history.clone();
        history.reader = history.reader.at(&world.path(&format!("full{space}")));
        history.check(&world);
        history.reader = history.reader.at(&world.path(&format!("after{space}")));
        history.converge_reader();
    }
    assert!(outcomes[0].starts_with("0 1 ") && outcomes[SPACES.len() - 1].ends_with(" 0 "), "{run}");
}

#[test]
fn a_damaged_state_file_on_a_disk_that_fails_is_made_anew_without_loss() {
    let seed = Seed::new();
    let world = World::new();
    let history = reader_behind(&world, &seed);
    history.reader.ok(["fetch"]);
    fs::write(history.reader.state("state.db"), "no database".repeat(1000)).unwrap();
    let base = history.reader.copied(&world.path("base"));
    Saboteur::new(&world).sweep(&world, &seed, &base, &["pull"], |repo| {
        let mut history = history.clone();
        history.reader = repo.clone();
        history.check(&world);
        history.converge_reader();
    });
}
