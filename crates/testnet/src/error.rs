use std::{io, path::PathBuf};

/// Why a private network could not be made, reached or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither the caller's own rights nor a user namespace allow network namespaces.
    #[error("network namespaces cannot be made here: run as root, or allow unprivileged user namespaces ({0})")]
    NoNamespaces(nix::Error),
    /// A system call that sets up or enters a namespace failed.
    #[error("cannot {doing}: {error}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        error: nix::Error,
    },
    /// A file or process of the network could not be used.
    #[error("cannot {doing} {path}: {error}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The `ip` command is not installed.
    #[error("the `ip` command is missing: install the package iproute2 ({0})")]
    NoIpCommand(io::Error),
    /// The `ip` command refused to set up an interface.
    #[error("the `ip` command failed: {0}")]
    IpCommand(String),
    /// A network lives in this directory already.
    #[error("a testnet is already running in {0}: stop it with `testnet down --dir {0}`")]
    AlreadyRunning(PathBuf),
    /// No network lives in this directory.
    #[error("no testnet is running in {0}: start one with `testnet up --dir {0}`")]
    NotRunning(PathBuf),
    /// A node or host died, or did not answer in time.
    #[error("{machine}: {problem}")]
    Machine {
        /// `h1`, `n1`, ...
        machine: String,
        /// What happened.
        problem: String,
    },
    /// The Veilid nodes did not find each other in time, or their table does not work.
    #[error("the Veilid network did not come up: {0}")]
    NotReady(String),
    /// `testnet up` ended before the network was ready.
    #[error("testnet up failed: {0}")]
    Up(String),
    /// The running network refused a request.
    #[error("{0}")]
    Refused(String),
    /// The program to run on a host cannot be started.
    #[error("cannot run {program} on {host}: {error}")]
    Exec {
        /// The program asked for.
        program: String,
        /// The host it should have run on.
        host: String,
        /// What the system said.
        error: io::Error,
    },
    /// `veilid-core` failed.
    #[error("Veilid: {0}")]
    Veilid(#[from] veilid_core::VeilidAPIError),
}

impl Error {
    /// For `map_err`: what was being done with which file.
    pub(crate) fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |error| Self::File { doing, path, error }
    }

    /// For `map_err`: what was being asked of the kernel.
    pub(crate) fn system(doing: &'static str) -> impl FnOnce(nix::Error) -> Self {
        move |error| Self::System { doing, error }
    }
}
