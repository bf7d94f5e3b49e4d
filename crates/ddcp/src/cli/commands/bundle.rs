use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
};

use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    Error, ErrorKind, Failure,
    cli::{Failed, Format, Session, output},
    control::{self, Command},
    files,
    repo::{BundleFetchReport, BundleReport, BundleRequest, BundleTarget, Since, Stop, verify_bundle},
};

/// Carry changes in a file, where no network leads.
///
/// A bundle holds what `fetch` would download. `-` stands for standard input and output.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ddcp bundle create /media/stick/notes.bundle
  ddcp bundle verify /media/stick/notes.bundle
  ddcp bundle fetch /media/stick/notes.bundle && ddcp merge
  ddcp bundle create - | ssh host ddcp --db notes.db bundle fetch -
  ddcp bundle create weekly.bundle --since alice --mark")]
pub(in crate::cli) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Write this database's changes into a file.
    Create(Create),
    /// Check a bundle from its first byte to its last, and print what is in it.
    Verify {
        /// The bundle; `-` reads standard input.
        file: PathBuf,
    },
    /// Fetch what is in a bundle. Tables do not change until `merge`.
    Fetch {
        /// The bundle; `-` reads standard input.
        file: PathBuf,
    },
}

#[derive(clap::Args)]
struct Create {
    /// The bundle; `-` writes to standard output.
    file: PathBuf,
    /// Only what changed in this version of the database and later, or what the remote of this name lacks: without
    /// what it wrote itself, from where the last bundle ended that was made for it with `--mark`.
    #[arg(long, value_name = "REMOTE|VERSION")]
    since: Option<Since>,
    /// Only this table; may be given several times.
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,
    /// Remember where this bundle ends: the next one `--since` the same remote begins there.
    #[arg(long)]
    mark: bool,
    /// Overwrite the file if it is there.
    #[arg(long)]
    force: bool,
    /// Do not sign it by the key of this repository's address, if it has one: a bundle that is not signed tells nobody
    /// whose it is, is written to standard output as it is made, and does not count as fetched from here.
    #[arg(long)]
    unsigned: bool,
}

pub(in crate::cli) async fn run(session: &Session, args: Args) -> Result<(), Failed> {
    match args.verb {
        Verb::Create(args) => create(session, args).await,
        Verb::Verify { file } => verify(session, file).await,
        Verb::Fetch { file } => fetch(session, file).await,
    }
}

const STDIN: &str = "standard input";
const STDOUT: &str = "standard output";

async fn create(session: &Session, args: Create) -> Result<(), Failed> {
    let to_stdout = is_dash(&args.file);
    let target = match to_stdout {
        true if io::stdout().is_terminal() => return Err(not_on_a_terminal(STDOUT)),
        true => BundleTarget::Stream { name: STDOUT.to_owned(), output: Box::new(io::stdout()) },
        false => BundleTarget::File { path: args.file, replace: args.force },
    };
    let Create { since, tables, mark, unsigned, .. } = args;
    let request = BundleRequest { since: since.unwrap_or_default(), tables, mark, unsigned };
    let (repository, stop) = (session.repository()?, Stop::default());
    control::ensure_own_identity(&repository).await?;
    let mut work = std::pin::pin!(repository.create_bundle(target, request, stop.clone()));
    let report = tokio::select! {
        report = &mut work => report?,
        () = interrupted() => {
            stop.stop();
            // Waited for, so that nothing unfinished stays behind.
            work.await?
        }
    };
    // The bundle itself went to stdout.
    if to_stdout { tell(session, &report) } else { print(session, &report, |out| lines(out, &report)) }?;
    output::whole([&report.left_out])
}

/// Waits for SIGINT or SIGTERM.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

async fn verify(session: &Session, file: PathBuf) -> Result<(), Failed> {
    if is_dash(&file) && io::stdin().is_terminal() {
        return Err(not_on_a_terminal(STDIN));
    }
    // Wherever it is checked: only a repository has settings.
    let config = session.repository().ok().map(|repository| repository.config()).transpose()?;
    let limits = config.map(|config| config.limits).unwrap_or_default();
    let work = move || match is_dash(&file) {
        true => verify_bundle(io::stdin(), STDIN, &limits),
        false => {
            let input = files::open_regular(&file).map_err(|source| Error::Io { path: file.clone(), source })?;
            verify_bundle(input, &file.display().to_string(), &limits)
        }
    };
    let report = tokio::task::spawn_blocking(work).await.map_err(|error| Error::Interrupted(error.to_string()))??;
    print(session, &report, |out| lines(out, &report))
}

async fn fetch(session: &Session, file: PathBuf) -> Result<(), Failed> {
    let report: BundleFetchReport = if is_dash(&file) {
        if io::stdin().is_terminal() {
            return Err(not_on_a_terminal(STDIN));
        }
        let repository = session.repository()?;
        let spooled = tokio::task::spawn_blocking(move || repository.spool(io::stdin()));
        let spooled = spooled.await.map_err(|error| Error::Interrupted(error.to_string()))??;
        fetch_file(session, spooled.path(), Some(STDIN.to_owned())).await?
    } else {
        // A path is meant from the folder this command runs in, which is not the daemon's.
        let absolute = std::path::absolute(&file).map_err(|source| Error::Io { path: file.clone(), source })?;
        fetch_file(session, &absolute, Some(file.display().to_string())).await?
    };
    print(session, &report, |out| fetched_lines(out, &report))
}

async fn fetch_file(session: &Session, file: &Path, name: Option<String>) -> Result<BundleFetchReport, Failed> {
    session.run_shown(Command::BundleFetch { file: file.to_owned(), name }).await
}

fn is_dash(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn not_on_a_terminal(which: &str) -> Failed {
    Failure {
        kind: ErrorKind::Usage,
        message: format!("{which} is a terminal, and a bundle is no text"),
        hint: Some("name a file, or redirect it".into()),
    }
    .into()
}

fn print<T: Serialize>(
    session: &Session,
    report: &T,
    lines: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Failed> {
    output::print(session.format, report, lines)
}

/// The report where stdout is not for it.
fn tell(session: &Session, report: &BundleReport) -> Result<(), Failed> {
    let mut text = Vec::new();
    match session.format {
        Format::Json => serde_json::to_writer(&mut text, report).map_err(io::Error::from)?,
        Format::Table => lines(&mut output::Lines(&mut text), report)?,
    }
    String::from_utf8_lossy(&text).lines().for_each(|line| session.say(line));
    Ok(())
}

fn lines(out: &mut dyn Write, report: &BundleReport) -> io::Result<()> {
    writeln!(out, "bundle   {}", report.file)?;
    writeln!(out, "site id  {}", report.site_id)?;
    if let Some(signer) = &report.signed_by {
        writeln!(out, "signed   by {signer}")?;
    }
    writeln!(out, "created  {}", time(report.created))?;
    match report.from_version <= report.to_version {
        true => writeln!(out, "versions {} to {}", report.from_version, report.to_version)?,
        false => writeln!(out, "versions none after {}", report.to_version)?,
    }
    if let Some(tables) = &report.only_tables {
        writeln!(out, "only     {}", tables.join(", "))?;
    }
    if let Some(site) = &report.without {
        writeln!(out, "without  what site {site} wrote itself")?;
    }
    let (changes, packs) = (output::count(report.changes, "change"), output::count(report.packs, "pack"));
    writeln!(out, "content  {changes} ({packs}) in {}", output::bytes(report.bytes))?;
    for (table, changes) in &report.tables {
        writeln!(out, "  {}: {}", table, output::count(*changes, "change"))?;
    }
    if !report.left_out.is_empty() {
        writeln!(out, "lacks    {} that cannot be sent:", output::count(report.left_out.count, "change"))?;
        output::left_out(out, &report.left_out)?;
    }
    Ok(())
}

fn fetched_lines(out: &mut dyn Write, report: &BundleFetchReport) -> io::Result<()> {
    let name = &report.remote;
    match report.changes {
        0 => writeln!(out, "{name}: nothing new")?,
        changes => {
            writeln!(out, "{name}: fetched {} in {}", output::count(changes, "change"), output::bytes(report.bytes))?;
        }
    }
    if report.partial {
        writeln!(out, "{name}: the bundle is not all of it, or an old one; the next fetch begins where it would have")?;
    } else if !report.proven && !name.starts_with("site ") {
        writeln!(out, "{name}: the bundle is not signed by its key; the next fetch begins where it would have")?;
    }
    Ok(())
}

fn time(milliseconds: i64) -> String {
    let second = |time: Timestamp| Timestamp::from_second(time.as_second()).unwrap_or(time);
    Timestamp::from_millisecond(milliseconds).map_or_else(|_| "unknown".to_owned(), |time| second(time).to_string())
}
