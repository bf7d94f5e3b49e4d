use clap::{Subcommand, ValueEnum};

use crate::{
    cli::{Failed, Session, address::given, output},
    config::SyncMode,
    control::Command,
    repo::{RemoteEntry, RemovedRemote, is_same_repository},
    transport::Address,
};

/// Add, list and change the repositories that this one fetches from.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ddcp remote add alice VLD0:…
  ddcp remote add alice @address-of-alice
  ddcp remote add bob VLD0:… --sync auto
  ddcp remote set alice sync fetch
  ddcp remote add backup /media/stick/notes.db
  ddcp remote list")]
pub(in crate::cli) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Add a remote.
    Add {
        /// What to call it: letters, digits, `-`, `_` and `.`.
        name: String,
        /// What `ddcp address` prints at the other side, or the path of another repository's database. `-` reads it from
        /// standard input, `@FILE` from a file: other users see the arguments of programs.
        address: String,
        /// What `ddcp serve` does by itself: `auto` fetches and merges, `fetch` fetches, `manual` does nothing.
        #[arg(long, default_value_t, value_name = "MODE")]
        sync: SyncMode,
    },
    /// Print the remotes, `NAME ADDRESS` a line.
    List,
    /// Remove a remote. What was fetched from it can still be merged.
    Remove {
        /// Its name.
        name: String,
    },
    /// Give a remote another name.
    Rename {
        /// Its name.
        old: String,
        /// Its new name.
        new: String,
    },
    /// Give a remote another address.
    SetAddress {
        /// Its name.
        name: String,
        /// Its new address; `-` reads it from standard input, `@FILE` from a file.
        address: String,
    },
    /// Change a setting of a remote.
    Set {
        /// Its name.
        name: String,
        /// Which setting.
        setting: Setting,
        /// What `ddcp serve` does by itself: `auto` fetches and merges, `fetch` fetches, `manual` does nothing.
        #[arg(value_name = "MODE")]
        value: SyncMode,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Setting {
    /// What `ddcp serve` does by itself.
    Sync,
}

pub(in crate::cli) async fn run(session: &Session, args: Args) -> Result<(), Failed> {
    match args.verb {
        Verb::List => list(session).await,
        // A path is meant from the folder this command runs in, which is not the daemon's.
        Verb::Add { name, address, sync } => {
            let address = absolute(&address)?;
            session.run::<()>(Command::RemoteAdd { name: name.clone(), address: address.to_string(), sync }).await?;
            tell_same(session, &name, &address).await
        }
        Verb::Remove { name } => remove(session, name).await,
        Verb::Rename { old, new } => session.run(Command::RemoteRename { old, new }).await,
        Verb::Set { name, setting: Setting::Sync, value } => {
            session.run(Command::RemoteSetSync { name, sync: value }).await
        }
        Verb::SetAddress { name, address } => {
            let address = absolute(&address)?;
            let command = Command::RemoteSetAddress { name: name.clone(), address: address.to_string() };
            session.run::<()>(command).await?;
            tell_same(session, &name, &address).await
        }
    }
}

fn absolute(address: &str) -> Result<Address, Failed> {
    Ok(crate::repo::absolute_address(&given(address)?)?)
}

/// Says which other remotes are the repository at `address` too, which is the remote `name`.
async fn tell_same(session: &Session, name: &str, address: &Address) -> Result<(), Failed> {
    let remotes: Vec<RemoteEntry> = session.run(Command::RemoteList {}).await?;
    for other in remotes.iter().filter(|other| other.name != name) {
        if other.address.parse().is_ok_and(|its: Address| is_same_repository(&its, address)) {
            session.say(format_args!(
                "{name} is the same repository as {}: what one has fetched, the other has",
                other.name
            ));
        }
    }
    Ok(())
}

async fn remove(session: &Session, name: String) -> Result<(), Failed> {
    let RemovedRemote { kept } = session.run(Command::RemoteRemove { name: name.clone() }).await?;
    if kept > 0 {
        let kept = output::count(kept, "change");
        session.say(format_args!("{name}: {kept} that had been fetched from it stay; `ddcp merge` merges them"));
    }
    Ok(())
}

async fn list(session: &Session) -> Result<(), Failed> {
    let remotes: Vec<RemoteEntry> = session.run(Command::RemoteList {}).await?;
    output::print(session.format, &remotes, |out| {
        remotes.iter().try_for_each(|remote| writeln!(out, "{} {}", remote.name, remote.address))
    })
}
