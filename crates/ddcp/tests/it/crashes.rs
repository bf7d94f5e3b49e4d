//! SIGKILL at any moment loses nothing: repeating the command completes it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::{
    history::{History, Seed, setting},
    serve::serve,
    support::{NOTE, PATIENCE, Repo, World, assert_converged},
};

/// Kills in a normal run; `just crash` sets more.
const KILLS: u32 = 60;
/// Kills between two times that everything is repeated and compared.
const SERIES: u32 = 10;

/// How long commands take that nobody disturbs.
struct Undisturbed {
    fetch: Duration,
    merge: Duration,
    pull: Duration,
}

impl Undisturbed {
    fn measure(history: &mut History) -> Self {
        let time = |repo: &Repo, command| {
            let started = Instant::now();
            repo.ok([command]);
            started.elapsed()
        };
        history.write();
        let (fetch, merge) = (time(&history.reader, "fetch"), time(&history.reader, "merge"));
        history.write();
        Self { fetch, merge, pull: time(&history.reader, "pull") }
    }
}

/// Kills the process at a moment of its first `takes`, each as likely as any other.
pub(crate) fn kill(child: &mut Child, rng: &mut StdRng, takes: Duration) {
    // Not a wait for anything: the moment of the crash.
    thread::sleep(takes.mul_f64(rng.random_range(0.0..1.0)));
    child.kill().unwrap();
}

/// Starts a command and kills it; whether it was killed before it ended.
fn run_and_kill(repo: &Repo, command: &str, rng: &mut StdRng, takes: Duration) -> bool {
    let mut child = repo.start([command]);
    kill(&mut child, rng, takes);
    let run = repo.finish(child);
    assert!(matches!(run.status, None | Some(0)), "{command}: {run}");
    run.status.is_none()
}

#[test]
fn kills_lose_nothing() {
    let seed = Seed::new();
    let mut rng = seed.rng();
    let world = World::new();
    let mut history = History::new(&world, seed.rng());
    let kills = setting("DDCP_CRASH_KILLS", KILLS);
    let (mut killed, mut in_the_middle, mut runs) = (0, 0, 0);
    let started = Instant::now();
    while killed < kills {
        let undisturbed = Undisturbed::measure(&mut history);
        for _ in 0..SERIES {
            history.write();
            history.write_own(&format!("own {runs}"));
            let (command, takes) =
                *[("fetch", undisturbed.fetch), ("merge", undisturbed.merge), ("pull", undisturbed.pull)]
                    .choose(&mut rng)
                    .unwrap();
            // What a fetch that was killed left is also for a merge to go on from.
            if command == "merge" && rng.random() {
                history.reader.ok(["fetch"]);
            }
            runs += 1;
            if run_and_kill(&history.reader, command, &mut rng, takes) {
                killed += 1;
                in_the_middle += u32::from(history.reader.has_open_log());
            }
            history.check(&world);
        }
        history.converge();
        assert!(runs < 20 * kills.max(SERIES), "only {killed} of {runs} were killed before they ended");
    }
    println!("{killed} kills in {runs} runs, {in_the_middle} with a database open, in {:?}", started.elapsed());
    assert!(in_the_middle * 4 > killed, "only {in_the_middle} of {killed} kills came while a database was open");
}

#[test]
fn kills_of_a_first_pull_lose_nothing() {
    let seed = Seed::new();
    let mut rng = seed.rng();
    let world = World::new();
    let mut history = History::new(&world, seed.rng());
    for _ in 0..20 {
        history.write();
    }
    for _ in 0..setting("DDCP_CRASH_KILLS", KILLS).div_ceil(5) {
        run_and_kill(&history.reader, "pull", &mut rng, Duration::from_millis(100));
        history.check(&world);
    }
    history.converge();
}

#[test]
fn kills_of_init_leave_what_another_takes_up() {
    let seed = Seed::new();
    let mut rng = seed.rng();
    for _ in 0..setting("DDCP_CRASH_KILLS", KILLS).div_ceil(5) {
        let world = World::new();
        let repo = world.repo("a");
        for _ in 0..3 {
            run_and_kill(&repo, "init", &mut rng, Duration::from_millis(40));
        }
        repo.ok(["init"]);
        repo.sql(NOTE).assert_sound();
    }
}

/// An application that writes rows to the reader's database, each in a transaction of its own, until it is killed.
struct Writer {
    child: Child,
    prefix: String,
}

impl Writer {
    /// More rows than are written before it is killed.
    const ROWS: usize = 5_000;

    fn start(repo: &Repo, prefix: String) -> Self {
        let mut command = repo.command();
        command.arg("shell").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let statements: String = (0..Self::ROWS)
            .map(|row| format!("INSERT INTO note VALUES ('{prefix} {row}', 'my own', 0);\nSELECT {row};\n"))
            .collect();
        // Ends with an error when the program is killed.
        thread::spawn(move || stdin.write_all(statements.as_bytes()));
        Self { child, prefix }
    }

    /// The rows whose transactions had ended when it was killed.
    fn committed(mut self) -> Vec<String> {
        let stdout = self.child.stdout.take().unwrap();
        self.child.wait().unwrap();
        let rows = BufReader::new(stdout).lines().map(|line| format!("{} {}", self.prefix, line.unwrap()));
        rows.collect()
    }
}

#[test]
fn kills_of_the_daemon_and_of_a_writer_lose_nothing() {
    let seed = Seed::new();
    let mut rng = seed.rng();
    let world = World::new();
    let mut history = History::new(&world, seed.rng());
    history.reader.ok(["remote", "set", "source", "sync", "auto"]);
    let (mut committed, mut merged) = (0, 0);
    // It merges within 200 ms, but later where the machine is busy and the writer holds the lock: longer after a round
    // in which it did not come that far.
    let mut takes = Duration::from_millis(500);
    for round in 0..setting("DDCP_CRASH_KILLS", KILLS).div_ceil(4) {
        history.write();
        let mut command = serve(&world, &history.reader);
        let mut daemon = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut writer = Writer::start(&history.reader, format!("own {round}"));
        kill(&mut daemon, &mut rng, takes);
        writer.child.kill().unwrap();
        daemon.wait().unwrap();
        let rows = writer.committed();
        committed += rows.len();
        rows.iter().for_each(|id| history.has_own(id));
        let further = history.check(&world);
        merged += usize::from(further);
        takes = if further { takes / 2 } else { takes * 2 }.clamp(Duration::from_millis(200), Duration::from_secs(10));
    }
    println!("{committed} transactions committed meanwhile; the daemon had merged {merged} times");
    assert!(committed > 0 && merged > 0, "{committed} transactions, {merged} merges");
    history.converge();
}

#[test]
fn a_merge_that_is_killed_between_slices_is_done_again() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    // One pack, and several slices.
    a.sql(
        "WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
         INSERT INTO note SELECT i, NULL, NULL FROM n",
    );
    b.follows(&[&a]).ok(["fetch"]);
    let merged = || b.rows("SELECT count(*) FROM note").remove(0).parse::<u32>().unwrap();
    let mut child = b.start(["merge"]);
    let began = Instant::now();
    while merged() == 0 {
        assert!(began.elapsed() < PATIENCE, "nothing is merged");
        thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    b.finish(child);
    let part = merged();
    assert!((1..100_000).contains(&part), "{part} rows were merged when it was killed");
    b.assert_sound();
    b.sql("INSERT INTO note VALUES ('own', 'in between', 1)");
    b.ok(["merge"]);
    a.follows(&[&b]).pull();
    assert_converged(&[&a, &b]);
    assert_eq!(merged(), 100_001);
}
