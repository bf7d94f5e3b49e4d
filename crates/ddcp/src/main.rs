//! The `ddcp` command.

fn main() -> std::process::ExitCode {
    ddcp::cli::main(std::env::args_os().collect())
}
