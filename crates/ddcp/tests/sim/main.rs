//! Deterministic simulation: repositories in real files, with the real protocol and the real merge, on a machine and a
//! network that are made up from a seed. One seed is one history, to the last byte; docs/testing.md tells how to run many
//! of them, and one again.

// Half of a test's code is helpers outside of `#[test]` functions, where clippy.toml's exception does not reach.
#![allow(clippy::unwrap_used)]

mod cells;
mod crashes;
mod history;
mod identity;
mod network;
mod oracle;
mod schemas;
mod site;
mod world;
mod writes;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// Histories in a normal run of the tests: a few minutes' worth, as each takes some seconds of a processor.
const SEEDS: u64 = 120;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// `DDCP_SIM_SEEDS` histories, with seeds from `DDCP_SIM_FROM` on. A single one is told in full.
#[test]
fn all_are_equal_in_the_end_and_nothing_is_lost() {
    let from = setting("DDCP_SIM_FROM").unwrap_or(0);
    let end = from + setting("DDCP_SIM_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(from);
    let work = || {
        let mut failed = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return failed;
            }
            match catch_unwind(AssertUnwindSafe(|| history::live(seed, end - from == 1))) {
                Ok((trace, tally)) => println!("seed {seed}: {} {tally:?}", &trace.to_hex()[..16]),
                Err(_) => {
                    eprintln!("seed {seed} FAILED; again, with everything that happens: just simulate 1 {seed}");
                    failed.push(seed);
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let failed: Vec<u64> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{} of {} histories failed: {failed:?}", failed.len(), end - from);
}

#[test]
fn one_seed_is_one_history() {
    for seed in 0..5 {
        assert_eq!(history::live(seed, false), history::live(seed, false), "seed {seed}");
    }
    assert_ne!(history::live(0, false).0, history::live(1, false).0);
}
