use std::path::{Path, PathBuf};

use crate::{
    Failure,
    cli::{Failed, Session, address, output, progress},
    repo::{CloneReport, Monitor, Repository},
    transport::Address,
};

/// Make a new database with the shared tables of a repository and what is in them.
///
/// The repository becomes a remote of the new one. A table that cannot be had here is left out and named (exit status
/// 3). What was broken off goes on when the same command is repeated.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  ddcp clone VLD0:… notes.db
  ddcp clone /media/stick/notes.db
  ddcp clone VLD0:… notes.db --name alice")]
pub(in crate::cli) struct Args {
    /// What `ddcp address` prints at the other side, or the path of another repository's database. `-` reads it from
    /// standard input, `@FILE` from a file: other users see the arguments of programs.
    address: String,
    /// The new database. Without it `--db` says, or else the path's last part, in the current folder.
    file: Option<PathBuf>,
    /// What to call the remote.
    #[arg(long, value_name = "NAME", default_value = "origin")]
    name: String,
}

impl Args {
    /// The new database, if the words say which: `db` is what `--db` says.
    pub(in crate::cli) fn database(&self, db: Option<PathBuf>) -> Option<PathBuf> {
        let of_path = || match self.address.parse() {
            _ if !address::is_plain(&self.address) => None,
            Ok(Address::Path(path)) => path.file_name().map(PathBuf::from),
            Ok(Address::Veilid(_)) | Err(_) => None,
        };
        self.file.clone().or(db).or_else(of_path)
    }
}

pub(in crate::cli) async fn run(session: &Session, args: Args) -> Result<(), Failed> {
    let (layout, options, monitor) = (session.layout.clone(), session.options.clone(), Monitor::default());
    let address = address::given(&args.address)?;
    let work = Repository::clone_of(layout, options, &args.name, &address, &monitor);
    let report = progress::shown(session, &monitor, work).await.map_err(|error| {
        let failure = error.report();
        match Repository::is_unfinished_clone(&session.layout) {
            true => and_repeat(failure),
            false => failure,
        }
    })?;
    print(session, &report)
}

fn print(session: &Session, report: &CloneReport) -> Result<(), Failed> {
    output::print(session.format, report, |out| {
        writeln!(out, "database {}", report.database)?;
        writeln!(
            out,
            "tables   {}",
            if report.tables.is_empty() { "none".to_owned() } else { report.tables.join(", ") }
        )?;
        for (table, why) in &report.left_out {
            writeln!(out, "left out table {table}: {why}")?;
        }
        output::each_done(&report.pull.fetched, |name, report| super::fetch::line(out, name, report))?;
        output::each_done(&report.pull.merged, |name, report| super::merge::lines(out, name, report))
    })?;
    let result = output::failures_of_both(&report.pull.fetched, &report.pull.merged);
    if result.is_err() {
        let file = Path::new(&report.database).display();
        session.say(format_args!("the tables are there; `ddcp --db {file} pull` goes on with what is in them"));
    }
    result.and(output::unavailable(report.left_out.iter().map(|(table, why)| (table.as_str(), why.as_str()))))
}

/// With what leads on from an unfinished clone.
fn and_repeat(failure: Failure) -> Failure {
    const REPEAT: &str = "repeat the command: it goes on where it ended";
    let hint = failure.hint.map_or_else(|| REPEAT.to_owned(), |hint| format!("{hint}; then {REPEAT}"));
    Failure { hint: Some(hint), ..failure }
}
