//! SIGKILL at any moment loses nothing: repeating the command completes it.

use std::{
    thread,
    time::{Duration, Instant},
};

use rand::Rng as _;

use crate::support::{Repo, World, assert_converged};

const ROWS: usize = 20_000;
const ROUNDS: usize = 12;

/// Starts a command and kills it within the time it would take; whether it was killed before it ended. Early moments
/// are as likely as late ones on a logarithmic scale, for the time it takes varies with what else the machine does.
fn run_and_kill(repo: &Repo, command: &str, takes: Duration) -> bool {
    let mut child = repo.start([command]);
    // Not a wait for anything: the moment of the crash.
    thread::sleep(takes.mul_f64(10_f64.powf(rand::rng().random_range(-1.5..0.0))));
    child.kill().unwrap();
    repo.finish(child).status.is_none()
}

fn change_all(repo: &Repo, round: usize) {
    repo.sql(&format!("UPDATE note SET body = 'round {round} of ' || id"));
}

#[test]
fn kills_in_fetch_and_merge_lose_nothing() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO note SELECT printf('%06d', i), randomblob(50), i FROM n"
    ));
    b.follows(&[&a]);
    let time = |command: &str| {
        let start = Instant::now();
        b.ok([command]);
        start.elapsed()
    };
    let (fetch, merge) = (time("fetch"), time("merge"));

    let mut killed = [0, 0];
    for round in 0..ROUNDS {
        change_all(&a, round);
        killed[0] += usize::from(run_and_kill(&b, "fetch", fetch));
        b.assert_sound();
        // Half of the rounds go on from where fetch was killed, the others from a whole one.
        if round % 2 == 0 {
            b.ok(["fetch"]);
        }
        killed[1] += usize::from(run_and_kill(&b, "merge", merge));
        b.assert_sound();
        assert_eq!(b.rows("SELECT count(*) FROM note"), [ROWS.to_string()]);
    }
    assert!(killed.iter().all(|times| *times > 0), "killed {killed:?} of {ROUNDS} times; the test tests nothing");
    b.pull();
    assert_converged(&[&a, &b]);
    assert_eq!(b.json(&["pull"])["fetched"][0]["done"]["changes"], 0);
}

#[test]
fn a_first_pull_survives_kills() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
         INSERT INTO note SELECT printf('%06d', i), randomblob(50), i FROM n"
    ));
    b.follows(&[&a]);
    for _ in 0..ROUNDS {
        run_and_kill(&b, "pull", Duration::from_millis(100));
        b.assert_sound();
    }
    b.pull();
    assert_converged(&[&a, &b]);
}
