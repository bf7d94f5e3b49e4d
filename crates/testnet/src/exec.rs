//! `testnet exec`: turns this process into a command on a host.

use std::{env, os::unix::process::CommandExt, path::Path, process::Command};

use crate::{
    Error,
    control::{self, Answer, Request},
    namespace,
    up::NETWORK_FILE,
};

/// Where `ddcp` looks for the network to join.
const NETWORK_VARIABLE: &str = "DDCP_NETWORK";

/// Replaces this process by `program` on `host`, so that its standard streams, exit status and
/// signals are the command's. Returns only if that fails. `DDCP_NETWORK` is set unless it is
/// already. The process must not have started threads yet.
pub(crate) fn exec(dir: &Path, host: &str, program: &str, arguments: &[String]) -> Error {
    match enter(dir, host) {
        Ok(()) => {}
        Err(error) => return error,
    }
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) => return Error::file("find", dir)(error),
    };
    let mut command = Command::new(program);
    command.args(arguments).env(namespace::MARK, &dir);
    if env::var_os(NETWORK_VARIABLE).is_none() {
        command.env(NETWORK_VARIABLE, dir.join(NETWORK_FILE));
    }
    let error = command.exec();
    Error::Exec { program: program.to_owned(), host: host.to_owned(), error }
}

fn enter(dir: &Path, host: &str) -> Result<(), Error> {
    match control::ask(dir, &Request::Locate { machine: host.to_owned() })? {
        Answer::Located { pid, .. } => namespace::enter(pid),
        _ => Err(Error::Refused(format!("{host} cannot be located"))),
    }
}
