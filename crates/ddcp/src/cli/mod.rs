//! The command line: parses, calls, prints.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, parser::ValueSource};

use crate::{
    Error, ErrorKind, Failure,
    config::load_network,
    repo::{Layout, Monitor, Options, Repository, program},
    text::{shown, shown_of},
};

mod address;
mod commands;
mod core_dumps;
mod heap;
mod logging;
mod output;
mod progress;
mod shell;

/// Distribute a SQLite database and synchronise it the way Git synchronises a repository.
#[derive(Parser)]
#[command(name = "ddcp", version, max_term_width = 100, after_help = EXAMPLES, disable_help_subcommand = true)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ddcp --db notes.db init
  ddcp --db notes.db shell \"CREATE TABLE note (id TEXT NOT NULL PRIMARY KEY, body TEXT); SELECT crsql_as_crr('note')\"
  ddcp --db notes.db serve
  ddcp --db notes.db remote add alice VLD0:…
  ddcp --db notes.db pull
  ddcp clone VLD0:… notes.db

Exit status: 0 done, 1 failed, 2 usage or settings, 3 some remotes failed, 4 remote unreachable,
5 doctor or verify found something, or not all could be sent, 10 no repository here,
11 locked by another process, 70 internal error.";

/// The database where none is named.
const DEFAULT_DB: &str = "ddcp.db";

#[derive(clap::Args)]
struct Global {
    /// The database [default: ddcp.db].
    #[arg(long, global = true, env = "DDCP_DB", value_name = "FILE")]
    db: Option<PathBuf>,
    /// Where the repository's state is kept [default: .ddcp/NAME beside the database].
    #[arg(long, global = true, env = "DDCP_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// How data is printed.
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Say more on stderr; twice for details.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Say nothing but data and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// A file that describes a private Veilid network, in place of `[network]` in config.toml.
    #[arg(long, global = true, env = "DDCP_NETWORK", value_name = "FILE")]
    network: Option<PathBuf>,
    /// Whether the network was named on the command line, and not by the environment.
    #[arg(skip)]
    is_network_typed: bool,
    /// A CR-SQLite library to load in place of the engine in this program.
    #[arg(long, global = true, env = "DDCP_EXTENSION", value_name = "LIBRARY")]
    extension: Option<PathBuf>,
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people; plain lines where stdout is no terminal.
    #[default]
    Table,
    /// For programs.
    Json,
}

#[derive(Subcommand)]
enum Command {
    Init(commands::init::Args),
    Clone(commands::clone::Args),
    Serve(commands::serve::Args),
    Stop(commands::stop::Args),
    Address(commands::address::Args),
    Remote(commands::remote::Args),
    Config(commands::config::Args),
    Fetch(commands::fetch::Args),
    Merge(commands::merge::Args),
    Pull(commands::pull::Args),
    Schema(commands::schema::Args),
    Bundle(commands::bundle::Args),
    Verify(commands::verify::Args),
    Status(commands::status::Args),
    Waiting(commands::waiting::Args),
    Log(commands::log::Args),
    Doctor(commands::doctor::Args),
    Shell(commands::shell::Args),
    Extension(commands::extension::Args),
    Completions(commands::completions::Args),
}

/// Runs the command line `arguments`, the program's name first, and returns its exit status.
#[must_use]
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    heap::bound();
    let arguments = match parse(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { ErrorKind::Usage.exit_code() } else { 0 });
        }
    };
    let is_serving = matches!(arguments.command, Command::Serve(_));
    logging::init(&arguments.global, is_serving);
    if is_serving {
        core_dumps::off();
    }
    let quiet = arguments.global.quiet;
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Failed::from(Error::Io { path: "the async runtime".into(), source }));
    let result = result.and_then(|runtime| {
        let result = runtime.block_on(dispatch(arguments));
        // What still runs on other threads has nothing to lose: all that is kept was kept durably.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            failed.print(quiet);
            ExitCode::from(failed.kind.exit_code())
        }
    }
}

/// The arguments, with those that the environment gives in place of such that are missing. A variable that is empty is
/// one that is not set.
fn parse(arguments: Vec<OsString>) -> Result<Arguments, clap::Error> {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let command = Arguments::command().mut_args(|argument| match argument.get_env() {
        Some(name) if is_empty(name) => argument.env(None::<&'static str>),
        _ => argument,
    });
    let mut matches = command.try_get_matches_from(arguments)?;
    let is_typed = matches.value_source("network") == Some(ValueSource::CommandLine);
    let mut arguments = Arguments::from_arg_matches_mut(&mut matches)?;
    arguments.global.is_network_typed = is_typed;
    Ok(arguments)
}

async fn dispatch(mut arguments: Arguments) -> Result<(), Failed> {
    if let Command::Clone(args) = &arguments.command {
        arguments.global.db = args.database(arguments.global.db);
    }
    let session = Session::new(arguments.global)?;
    match arguments.command {
        Command::Init(args) => commands::init::run(&session, args).await,
        Command::Clone(args) => commands::clone::run(&session, args).await,
        Command::Serve(args) => commands::serve::run(session, args).await,
        Command::Stop(args) => commands::stop::run(&session, args).await,
        Command::Address(args) => commands::address::run(&session, args),
        Command::Remote(args) => commands::remote::run(&session, args).await,
        Command::Config(args) => commands::config::run(&session, args).await,
        Command::Fetch(args) => commands::fetch::run(&session, args).await,
        Command::Merge(args) => commands::merge::run(&session, args).await,
        Command::Pull(args) => commands::pull::run(&session, args).await,
        Command::Schema(args) => commands::schema::run(&session, args).await,
        Command::Bundle(args) => commands::bundle::run(&session, args).await,
        Command::Verify(args) => commands::verify::run(&session, args).await,
        Command::Status(args) => commands::status::run(&session, args).await,
        Command::Waiting(args) => commands::waiting::run(&session, args).await,
        Command::Log(args) => commands::log::run(&session, args).await,
        Command::Doctor(args) => commands::doctor::run(&session, args).await,
        Command::Shell(args) => commands::shell::run(session, args).await,
        Command::Extension(args) => commands::extension::run(&session, args),
        Command::Completions(args) => commands::completions::run(args),
    }
}

/// What every command knows.
struct Session {
    layout: Layout,
    /// The program's name and the options by which the repository was named.
    program: String,
    /// Whether somebody has said which database is meant.
    is_named: bool,
    options: Options,
    format: Format,
    verbose: u8,
    quiet: bool,
}

impl Session {
    fn new(global: Global) -> Result<Self, Failed> {
        let is_named = global.db.is_some();
        let program = program(global.db.as_deref(), global.state_dir.as_deref());
        let layout = Layout::new(&global.db.unwrap_or_else(|| DEFAULT_DB.into()), global.state_dir.as_deref())?;
        // What was typed for this command is looked at even if it does not need it.
        if let Some(path) = global.network.as_deref().filter(|_| global.is_network_typed) {
            load_network(path).map_err(Error::from)?;
        }
        let options = Options { extension: global.extension, network_file: global.network, ..Options::default() };
        let Global { format, verbose, quiet, .. } = global;
        Ok(Self { layout, is_named, program, options, format, verbose, quiet })
    }

    fn repository(&self) -> Result<Repository, Failed> {
        self.check_named()?;
        Ok(Repository::open_with(self.layout.clone(), self.options.clone())?)
    }

    /// Makes sure that it need not be guessed which database is meant.
    fn check_named(&self) -> Result<(), Failed> {
        if self.is_named || self.layout.has_state() {
            return Ok(());
        }
        match self.layout.neighbours() {
            others if others.is_empty() => Ok(()),
            others => Err(Error::Unnamed { database: self.layout.database().to_owned(), others }.into()),
        }
    }

    /// Has a control command done by the daemon or here.
    async fn run<T: serde::de::DeserializeOwned>(&self, command: crate::control::Command) -> Result<T, Failed> {
        Ok(crate::control::run(&self.repository()?, command).await?)
    }

    /// As [`Session::run`], and shows meanwhile how far a download is.
    async fn run_shown<T: serde::de::DeserializeOwned>(&self, command: crate::control::Command) -> Result<T, Failed> {
        let (repository, monitor) = (self.repository()?, Monitor::default());
        let work = crate::control::run_watched(&repository, command, &monitor);
        Ok(progress::shown(self, &monitor, work).await?)
    }

    /// Advice with commands for this repository, which name it as it was named for this command.
    fn as_named(&self, advice: &str) -> String {
        advice.replace(&format!("`{} ", self.layout.program()), &format!("`{} ", self.program))
    }

    /// Prints what only people want to know.
    fn say(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            eprintln!("{}", shown_of(text));
        }
    }
}

/// A command's failure: what is printed, and the exit status.
struct Failed {
    kind: ErrorKind,
    failures: Vec<Failure>,
}

impl Failed {
    /// Of several remotes, those that failed.
    fn some(failures: Vec<Failure>, all: bool) -> Self {
        let first = failures.first().map_or(ErrorKind::Failed, |failure| failure.kind);
        let kind = match failures.iter().all(|failure| failure.kind == first) {
            true if all => first,
            false if all => ErrorKind::Failed,
            _ => ErrorKind::Partly,
        };
        Self { kind, failures }
    }

    /// A check that ended, and found what its output tells.
    fn findings() -> Self {
        Self { kind: ErrorKind::Findings, failures: Vec::new() }
    }

    fn print(&self, quiet: bool) {
        let mut stderr = io::stderr().lock();
        for failure in &self.failures {
            let _ = writeln!(stderr, "error: {}", shown(&failure.message));
            if let Some(hint) = failure.hint.as_ref().filter(|_| !quiet) {
                let _ = writeln!(stderr, "hint: {}", shown(hint));
            }
        }
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { kind: failure.kind, failures: vec![failure] }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        error.report().into()
    }
}

/// The pipe that stdout led to was closed, which is how `| head` ends a command; anything else is said.
impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { kind: ErrorKind::Failed, failures: Vec::new() };
        }
        Failure { kind: ErrorKind::Failed, message: format!("stdout: {error}"), hint: None }.into()
    }
}

fn command_tree() -> clap::Command {
    Arguments::command()
}
