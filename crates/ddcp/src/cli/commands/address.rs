use serde_json::json;

use crate::{
    Error,
    cli::{Failed, Session, output},
};

/// Print the repository's address, which peers use as a remote. Needs no network.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  ddcp --db notes.db address")]
pub(in crate::cli) struct Args {}

pub(in crate::cli) fn run(session: &Session, _: Args) -> Result<(), Failed> {
    let address = session.repository()?.address()?;
    let address = address.ok_or_else(|| Error::NoAddress(session.layout.database().to_owned()))?.to_string();
    output::print(session.format, &json!({"address": address}), |out| writeln!(out, "{address}"))
}
