//! A shopping list in two windows, without a daemon: each window has its own database, and follows the other.
//!
//!     cargo run --release --example shared-list -- alice.db bob.db
//!     cargo run --release --example shared-list -- bob.db alice.db      # in another window
//!
//! Lines that are typed: `add milk`, `done milk`, `quit`. The list is printed whenever it changes, whoever changed it. In place
//! of the other's file, `VLD0:…` is a list on another machine; `--online` prints the address of this one.

use std::{error::Error, io, path::Path, thread};

use ddcp::{ErrorKind, Event, Repository, SyncMode};
use rusqlite::{Connection, params};
use tokio::sync::mpsc::{self, Receiver};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS item (name TEXT NOT NULL PRIMARY KEY, done INTEGER NOT NULL DEFAULT 0);
    SELECT crsql_as_crr('item');";

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_online = arguments.iter().any(|argument| argument == "--online");
    arguments.retain(|argument| argument != "--online");
    let [own, other] = arguments.as_slice() else {
        return Err("usage: shared-list [--online] FILE OTHER".into());
    };

    // The repository first: a database that was copied is then known to be a copy before it is written to.
    let builder = Repository::builder(own);
    let repository = if is_online { builder } else { builder.offline() }.init().await?;
    let list = List::open(own)?;
    follow(&repository, other).await?;

    let serving = repository.serve().await?;
    if is_online && let Some(address) = serving.address().await {
        println!("this list is {address}");
    }
    let mut events = serving.events();
    let mut lines = typed();
    list.print()?;
    loop {
        tokio::select! {
            line = lines.recv() => {
                let line = line.unwrap_or_else(|| "quit".to_owned());
                match line.split_once(' ') {
                    Some(("add", name)) => list.add(name)?,
                    Some(("done", name)) => list.done(name)?,
                    _ if line == "quit" => break,
                    _ => println!("add NAME, done NAME, or quit"),
                }
                list.print()?;
            }
            event = events.next() => match event {
                // After events that were missed, anything may have changed.
                Some(Event::Merged { .. } | Event::Missed { .. }) => list.print()?,
                Some(_) => {}
                None => break,
            },
        }
    }
    serving.stop().await?;
    Ok(())
}

/// Follows the list at `address`, unless that is done already.
async fn follow(repository: &Repository, address: &str) -> Result<()> {
    match repository.remote_add("other", address, SyncMode::Auto).await {
        Err(error) if error.kind() == ErrorKind::Usage && !repository.remote_list().await?.is_empty() => {
            Ok(repository.remote_set_address("other", address).await?)
        }
        result => Ok(result?),
    }
}

/// The list, as the application has it: a table, and a connection of its own.
struct List(Connection);

impl List {
    fn open(path: impl AsRef<Path>) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        crsqlite::register(&connection)?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self(connection))
    }

    fn add(&self, name: &str) -> Result<()> {
        self.0.execute("INSERT INTO item (name) VALUES (?) ON CONFLICT DO UPDATE SET done = 0", params![name])?;
        Ok(())
    }

    fn done(&self, name: &str) -> Result<()> {
        self.0.execute("UPDATE item SET done = 1 WHERE name = ?", params![name])?;
        Ok(())
    }

    fn print(&self) -> Result<()> {
        let mut query = self.0.prepare("SELECT name, done FROM item ORDER BY name")?;
        let items = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
        let items: Vec<String> = items
            .map(|item| item.map(|(name, done)| format!("[{}] {name}", if done { 'x' } else { ' ' })))
            .collect::<rusqlite::Result<_>>()?;
        println!("list: {}", items.join(", "));
        Ok(())
    }
}

/// What is typed, line by line.
fn typed() -> Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    thread::spawn(move || {
        io::stdin().lines().map_while(io::Result::ok).try_for_each(|line| sender.blocking_send(line))
    });
    lines
}
