use std::io::{self, Write};

use jiff::Timestamp;

use crate::{
    cli::{Failed, Session, output},
    config::{Access, SyncMode},
    control::Command,
    protocol::DropReport,
    repo::{MergeFailure, OtherSiteReport, RemoteStatusReport, StatusReport},
};

/// Show where the repository stands. Asks no remote.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  ddcp status\n  ddcp status --format json")]
pub(in crate::cli) struct Args {}

pub(in crate::cli) async fn run(session: &Session, _: Args) -> Result<(), Failed> {
    let status: StatusReport = session.run(Command::Status {}).await?;
    output::print(session.format, &status, |out| print(out, &status))
}

fn print(out: &mut dyn Write, status: &StatusReport) -> io::Result<()> {
    let tables = match status.tables.as_slice() {
        [] => "none; SELECT crsql_as_crr('TABLE') makes one replicate".to_owned(),
        tables => tables.join(", "),
    };
    writeln!(out, "database {}", status.database)?;
    writeln!(out, "version  {}", status.version)?;
    writeln!(out, "site id  {}", status.site_id)?;
    writeln!(out, "tables   {tables}")?;
    if !status.unreadable.is_empty() {
        let tables = status.unreadable.join(", ");
        writeln!(out, "unread   {tables}; no peer gets what is in them, `ddcp doctor` says why")?;
    }
    writeln!(out, "address  {}", status.address.as_deref().unwrap_or("none yet; `ddcp serve` gives it one"))?;
    if status.access != Access::default() {
        writeln!(out, "access   {}", status.access)?;
    }
    if let Some(why) = &status.kept_private {
        writeln!(out, "         {why}")?;
    }
    writeln!(out, "serving  {}", if status.serving { "yes" } else { "no" })?;
    if let Some(dropped) = &status.dropped {
        print_dropped(out, dropped)?;
    }
    if !status.unsent.is_empty() {
        let changes = output::count(status.unsent.count, "change");
        writeln!(out, "unsent   {changes} that cannot be sent; `ddcp doctor` says what mends it:")?;
        output::left_out(out, &status.unsent)?;
    }
    status.remotes.iter().try_for_each(|remote| print_remote(out, remote, status.version))?;
    status.others.iter().try_for_each(|other| print_other(out, other))
}

/// What came in a bundle, or from a remote that was removed.
fn print_other(out: &mut dyn Write, other: &OtherSiteReport) -> io::Result<()> {
    writeln!(out)?;
    writeln!(out, "site     {}, which is no remote", other.site)?;
    print_merge_error(out, other.merge_error.as_ref())?;
    print_unmerged(out, other.unmerged, other.waiting, &other.reasons)
}

fn print_merge_error(out: &mut dyn Write, failure: Option<&MergeFailure>) -> io::Result<()> {
    match failure {
        Some(MergeFailure { at, message, .. }) => writeln!(out, "failed   {message} (merge, {})", moment(*at)),
        None => Ok(()),
    }
}

fn print_unmerged(out: &mut dyn Write, unmerged: u64, waiting: u64, reasons: &[String]) -> io::Result<()> {
    writeln!(out, "fetched  {} not merged", output::count(unmerged, "change"))?;
    if waiting > 0 {
        writeln!(out, "waiting  {}:", output::count(waiting, "change"))?;
        reasons.iter().try_for_each(|reason| writeln!(out, "  {reason}"))?;
    }
    Ok(())
}

fn print_dropped(out: &mut dyn Write, dropped: &DropReport) -> io::Result<()> {
    writeln!(
        out,
        "dropped  {}; last a caller which {} ({}, {})",
        output::count(dropped.count, "caller"),
        dropped.last_reason.as_deref().unwrap_or("is unknown"),
        dropped.last_caller.as_deref().unwrap_or("unknown"),
        dropped.last_at.map_or_else(|| "at an unknown time".to_owned(), moment),
    )
}

fn print_remote(out: &mut dyn Write, remote: &RemoteStatusReport, own_version: i64) -> io::Result<()> {
    writeln!(out)?;
    writeln!(out, "remote   {}", remote.name)?;
    writeln!(out, "address  {}", remote.address)?;
    if remote.sync != SyncMode::Manual {
        writeln!(out, "sync     {}", remote.sync)?;
    }
    writeln!(out, "contact  {}", remote.last_contact.map_or_else(|| "never".to_owned(), moment))?;
    if let Some(version) = remote.version {
        writeln!(out, "version  {version}")?;
    }
    let is_behind = |reached: Option<i64>| remote.version.is_some_and(|version| reached.unwrap_or(0) < version);
    if is_behind(remote.merged_version) {
        let versions = [remote.fetched_version, remote.merged_version].map(|version| version.unwrap_or(0));
        writeln!(out, "behind   fetched up to version {}, merged up to {}", versions[0], versions[1])?;
    }
    if let Some(known) = remote.known_version.filter(|known| *known < own_version && remote.identical != Some(true)) {
        writeln!(out, "ahead    it has merged up to version {known} of this database's {own_version}")?;
    }
    match remote.identical {
        Some(true) => writeln!(out, "digest   identical to {}", remote.name)?,
        Some(false) => writeln!(out, "digest   differs; `ddcp verify {}` shows where", remote.name)?,
        None => {}
    }
    if let Some(transfer) = &remote.transfer {
        let (arrived, offered) = (output::bytes(transfer.bytes), output::bytes(transfer.offered_bytes));
        writeln!(out, "loading  {arrived} of {offered}, version {} of {}", transfer.version, transfer.target)?;
    }
    if let Some(error) = &remote.last_error {
        match remote.last_error_at {
            Some(at) => writeln!(out, "failed   {error} (fetch, {})", moment(at))?,
            None => writeln!(out, "failed   {error} (fetch)")?,
        }
    }
    print_merge_error(out, remote.merge_error.as_ref())?;
    if let Some(schema) = &remote.schema {
        writeln!(out, "schema   differs:")?;
        super::schema::lines(out, "  ", schema)?;
    }
    if !remote.left_out.is_empty() {
        writeln!(out, "lacks    {} that it cannot send:", output::count(remote.left_out.count, "change"))?;
        output::left_out(out, &remote.left_out)?;
    }
    print_unmerged(out, remote.unmerged, remote.waiting, &remote.reasons)
}

fn moment(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |moment| moment.to_string())
}
