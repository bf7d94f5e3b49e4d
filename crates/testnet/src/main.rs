//! The `testnet` program; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    testnet::cli::main()
}
