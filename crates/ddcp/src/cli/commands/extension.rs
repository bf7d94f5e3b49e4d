use serde_json::json;

use crate::{
    Error,
    cli::{Failed, Session, output},
    database::own_library,
};

/// Print the path of the SQLite extension that belongs to this program, for applications to load. Needs no
/// repository.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ddcp extension
  sqlite3 notes.db -cmd \".load $(ddcp extension)\"")]
pub(in crate::cli) struct Args {}

pub(in crate::cli) fn run(session: &Session, _: Args) -> Result<(), Failed> {
    let path = own_library().map_err(Error::from)?.display().to_string();
    output::print(session.format, &json!({"path": path}), |out| writeln!(out, "{path}"))
}
