//! Applications that write to the file into which the daemon merges: whether one of them is ever refused.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, TransactionBehavior};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Bench, Result, peer::until};

/// What an application waits for others at most, as the applications of the users do.
const BUSY: Duration = Duration::from_secs(5);

/// Between two transactions of a writer.
const PAUSE: Duration = Duration::from_millis(20);

/// Rows of a transaction.
const ROWS: usize = 3;

/// The program in Python that does as [`write()`] does.
const PYTHON: &str = include_str!("applications.py");

/// What an application has to say at its end.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    commits: usize,
    longest_ms: f64,
    refused: BTreeMap<String, u64>,
}

impl Bench<'_> {
    /// A Python and a Rust process write to the file into which the daemon merges what another peer writes all the time.
    pub(crate) fn applications(&self, extension: &Path) -> Result<Value> {
        let extension = extension.canonicalize().map_err(|error| format!("{}: {error}", extension.display()))?;
        let peers = self.peers()?;
        let (here, there) = (&peers[0], &peers[1]);
        here.follow("there", there)?;
        there.follow("here", here)?;
        there.write("first")?;
        until("they are in step", || here.has("first"))?;

        let seconds = self.arguments.minutes * 60;
        let mut python = Command::new("python3");
        python.args(["-c", PYTHON]).arg(here.database()).arg(&extension).arg(seconds.to_string());
        let mut rust = Command::new(std::env::current_exe()?);
        rust.arg("write").arg(here.database()).arg(seconds.to_string());
        let applications = [python, rust].map(|mut command| command.stdout(Stdio::piped()).spawn());
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut written = 1;
        while Instant::now() < deadline {
            there.write(&format!("there {written}"))?;
            written += 1;
            thread::sleep(PAUSE);
        }
        let mut reports = Vec::new();
        for application in applications {
            let output = application?.wait_with_output()?;
            reports.push(serde_json::from_slice::<Report>(&output.stdout)?);
        }
        let commits: usize = reports.iter().map(|report| report.commits).sum();
        let wanted = i64::try_from(written + ROWS * commits)?;
        until("both have all rows", || Ok(here.rows()? == wanted && there.rows()? == wanted))?;
        let identical = here.content()? == there.content()?;
        Ok(json!({
            "part": "applications", "seconds": seconds, "identical": identical, "rows": wanted, "merged_rows": written,
            "python": reports[0], "rust": reports[1],
        }))
    }
}

/// Writes to the database at `path` for so long, and prints a [`Report`].
pub(crate) fn write(path: &PathBuf, seconds: u64) -> Result<()> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    crsqlite::register(&connection)?;
    let mut report = Report { commits: 0, longest_ms: 0.0, refused: BTreeMap::new() };
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < deadline {
        let began = Instant::now();
        match write_some(&mut connection, report.commits) {
            Ok(()) => report.commits += 1,
            Err(error) => *report.refused.entry(error.to_string()).or_default() += 1,
        }
        report.longest_ms = report.longest_ms.max(began.elapsed().as_secs_f64() * 1000.0);
        thread::sleep(PAUSE);
    }
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn write_some(connection: &mut Connection, number: usize) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for row in 0..ROWS {
        let id = format!("rust {number} {row}");
        transaction.prepare_cached("INSERT INTO item VALUES (?, hex(randomblob(32)))")?.execute([id])?;
    }
    let last = format!("rust {} 0", number.saturating_sub(1));
    transaction.prepare_cached("UPDATE item SET body = 'changed' WHERE id = ?")?.execute([last])?;
    transaction.commit()
}
