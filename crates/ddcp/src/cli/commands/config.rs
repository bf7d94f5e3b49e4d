use std::collections::BTreeMap;

use clap::Subcommand;

use crate::{
    Error,
    cli::{Failed, Session, output},
    config::ConfigError,
    control::Command,
};

/// Show and change the settings that are no remotes.
///
/// `access` is whom `ddcp serve` answers: `address` (whoever has the address) or `private` (only the repositories that
/// are remotes here). `limits.…` is what others may cost; docs/config.md explains each.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ddcp config get
  ddcp config set access private
  ddcp config set limits.inbox_bytes 1000000000")]
pub(in crate::cli) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Print one setting, or all, `KEY VALUE` a line.
    Get {
        /// Which one.
        key: Option<String>,
    },
    /// Change a setting.
    Set {
        /// Which one.
        key: String,
        /// What it is from now on.
        #[arg(allow_negative_numbers = true)]
        value: String,
    },
}

pub(in crate::cli) async fn run(session: &Session, args: Args) -> Result<(), Failed> {
    match args.verb {
        Verb::Set { key, value } => session.run(Command::ConfigSet { key, value }).await,
        Verb::Get { key: None } => {
            let settings = settings(session).await?;
            output::print(session.format, &settings, |out| {
                settings.iter().try_for_each(|(key, value)| writeln!(out, "{key} {value}"))
            })
        }
        Verb::Get { key: Some(key) } => {
            let mut settings = settings(session).await?;
            let Some(value) = settings.remove(&key) else {
                let keys = settings.into_keys().collect::<Vec<_>>().join(", ");
                return Err(Error::from(ConfigError::NoSetting { key, keys }).into());
            };
            output::print(session.format, &value, |out| writeln!(out, "{value}"))
        }
    }
}

async fn settings(session: &Session) -> Result<BTreeMap<String, String>, Failed> {
    if let Some(why) = session.repository()?.config()?.kept_private {
        session.say(why);
    }
    session.run(Command::ConfigGet {}).await
}
