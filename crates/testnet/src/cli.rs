//! The `testnet` command line. Part of the library, so that any program can be the `testnet`
//! program too (see [`is_called`]).

use std::{
    env,
    io::{ErrorKind, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};

use crate::{
    ARG0, Error,
    control::{self, Answer, LinkChange, Request},
    exec, machine, up,
};

/// Exit codes of `exec` when it is not the command that fails, as env(1) has them.
const EXEC_FAILED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// A private Veilid network on this machine, in network namespaces.
///
/// Works as root and, where user namespaces are allowed, without.
#[derive(Parser)]
#[command(
    name = "testnet",
    version,
    after_help = "Example:\n  testnet up --dir /tmp/net &\n  testnet exec --dir /tmp/net h1 -- ddcp serve\n  \
                  testnet link --dir /tmp/net h1 --loss 0.1 --delay 40\n  testnet down --dir /tmp/net"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args)]
struct Place {
    /// The network's directory.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a network; print `ready` when it works; stay until SIGTERM, SIGINT or `testnet down`.
    Up {
        #[command(flatten)]
        place: Place,
        /// Infrastructure nodes; with fewer than 5 no Veilid network forms.
        #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(5..=99))]
        nodes: u8,
        /// Free hosts, named h1, h2, ...
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(0..=99))]
        hosts: u8,
        /// Also stop when stdin ends.
        #[arg(long, hide = true)]
        until_stdin_ends: bool,
    },
    /// Stop a network and every process on its hosts.
    Down {
        #[command(flatten)]
        place: Place,
    },
    /// Run a command on a host; its exit status is that of the command.
    ///
    /// `DDCP_NETWORK` is set for it, unless it is already. Where the command cannot be run, the
    /// status is 125, 126 (not executable) or 127 (not found).
    Exec {
        #[command(flatten)]
        place: Place,
        /// h1, h2, ... (or a node: n1, n2, ...).
        host: String,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Degrade, cut or restore a host's link; what is not given stays as it is.
    Link {
        #[command(flatten)]
        place: Place,
        /// h1, h2, ... (or a node: n1, n2, ...).
        host: String,
        /// Probability that a packet is lost, each way: 0 to 1.
        #[arg(long, value_name = "P")]
        loss: Option<f64>,
        /// Milliseconds that a packet takes longer, each way.
        #[arg(long, value_name = "MS", value_parser = milliseconds)]
        delay: Option<Duration>,
        /// Cut the link, silently.
        #[arg(long, conflicts_with = "up")]
        down: bool,
        /// Restore a link that was cut.
        #[arg(long)]
        up: bool,
    },
    /// Print what went over each link so far, as JSON.
    Stats {
        #[command(flatten)]
        place: Place,
    },
    /// A machine of the network; started by `up`.
    #[command(hide = true)]
    Machine {
        #[allow(dead_code, reason = "for who looks at the list of processes")]
        name: String,
    },
}

/// Whether this process was started to be the `testnet` program, whatever its file is called. A
/// program that starts a [`Testnet`](crate::Testnet) with itself as
/// [`exe`](crate::Options::exe) asks this first, and if so does nothing but [`main`].
pub fn is_called() -> bool {
    env::args_os().next().is_some_and(|name| name == ARG0)
}

/// The `testnet` program. Call it before any thread is started.
pub fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err((error, code)) => {
            eprintln!("error: {error}");
            ExitCode::from(code)
        }
    }
}

fn run(verb: Verb) -> Result<(), (Error, u8)> {
    let result = match verb {
        Verb::Up { place, nodes, hosts, until_stdin_ends } => {
            up::run(&up::Plan { dir: place.dir, nodes, hosts, until_stdin_ends })
        }
        Verb::Down { place } => up::down(&place.dir),
        Verb::Exec { place, host, command } => return Err(run_exec(&place, &host, &command)),
        Verb::Link { place, host, loss, delay, down, up } => {
            let up = (up || down).then_some(up);
            control::change_link(&place.dir, LinkChange { machine: host, loss, delay, up })
        }
        Verb::Stats { place } => print_stats(&place),
        Verb::Machine { .. } => machine::run(),
    };
    result.map_err(|error| (error, 1))
}

fn run_exec(place: &Place, host: &str, command: &[String]) -> (Error, u8) {
    // clap requires one.
    let (program, arguments) = command.split_first().map_or(("", &[][..]), |(program, rest)| (program, rest));
    let error = exec::exec(&place.dir, host, program, arguments);
    let code = match &error {
        Error::Exec { error, .. } if error.kind() == ErrorKind::NotFound => NOT_FOUND,
        Error::Exec { .. } => NOT_EXECUTABLE,
        _ => EXEC_FAILED,
    };
    (error, code)
}

fn print_stats(place: &Place) -> Result<(), Error> {
    let Answer::Stats(stats) = control::ask(&place.dir, &Request::Stats)? else { return Ok(()) };
    let mut stdout = std::io::stdout().lock();
    let printed = serde_json::to_writer_pretty(&mut stdout, &stats).map_err(std::io::Error::from);
    printed.and_then(|()| writeln!(stdout)).map_err(Error::file("write to", "stdout"))
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let milliseconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    Duration::try_from_secs_f64(milliseconds / 1e3).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn delays_are_milliseconds() {
        assert_eq!(milliseconds("1.5"), Ok(Duration::from_micros(1500)));
        assert!(milliseconds("-1").is_err());
        assert!(milliseconds("soon").is_err());
    }
}
