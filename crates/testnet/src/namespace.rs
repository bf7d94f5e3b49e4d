//! Network namespaces without names: each lives as long as a process in it, so nothing is left
//! behind, whatever happens. Without root they belong to a user namespace of our own.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{ErrorKind, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::{Pid, getegid, geteuid},
};

use crate::{Error, wait::wait_until};

/// Environment variable that marks all processes of a network with its directory.
pub(crate) const MARK: &str = "TESTNET_DIR";
/// What a process gets to end by itself before it is killed.
const GRACE: std::time::Duration = std::time::Duration::from_secs(2);

/// Moves this process into a new network namespace, and into a new user namespace where it may
/// not make one otherwise. The process must not have started threads yet.
pub(crate) fn isolate() -> Result<(), Error> {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => return Ok(()),
        Err(Errno::EPERM) => {}
        Err(error) => return Err(Error::NoNamespaces(error)),
    }
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(Error::NoNamespaces)?;
    write_map("/proc/self/setgroups", "deny")?;
    write_map("/proc/self/uid_map", &format!("0 {user} 1"))?;
    write_map("/proc/self/gid_map", &format!("0 {group} 1"))?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(Error::NoNamespaces)
}

fn write_map(path: &'static str, map: &str) -> Result<(), Error> {
    fs::write(path, map).map_err(Error::file("write", path))
}

/// Moves this process into the network namespace of process `pid`, and the user namespace that
/// owns it. The process must not have started threads yet.
pub(crate) fn enter(pid: u32) -> Result<(), Error> {
    let user = format!("/proc/{pid}/ns/user");
    if inode(&user)? != inode("/proc/self/ns/user")? {
        setns(open(&user)?, CloneFlags::CLONE_NEWUSER).map_err(Error::system("enter the host's user namespace"))?;
    }
    let network = open(&format!("/proc/{pid}/ns/net"))?;
    setns(network, CloneFlags::CLONE_NEWNET).map_err(Error::system("enter the host's network namespace"))
}

fn open(path: &str) -> Result<File, Error> {
    File::open(path).map_err(Error::file("open", path))
}

fn inode(path: &str) -> Result<u64, Error> {
    fs::metadata(path).map(|found| found.ino()).map_err(Error::file("read", path))
}

/// Runs lines of `ip` commands in this process's network namespace.
pub(crate) fn ip(script: &str) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::IpCommand(error.to_string());
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| if error.kind() == ErrorKind::NotFound { Error::NoIpCommand(error) } else { failed(error) })?;
    if let Some(mut stdin) = ip.stdin.take() {
        // A command that fails early closes its input; its exit status says more.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = ip.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::IpCommand(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")))
}

/// Ends every process marked as belonging to the network in `dir`, except this one: what still
/// runs on its hosts, or was left by a predecessor that crashed.
pub(crate) fn end_processes(dir: &Path) {
    signal_processes(dir, Signal::SIGTERM);
    if !wait_until(GRACE, || marked_processes(dir).is_empty()) {
        signal_processes(dir, Signal::SIGKILL);
        wait_until(GRACE, || marked_processes(dir).is_empty());
    }
}

fn signal_processes(dir: &Path, signal: Signal) {
    for pid in marked_processes(dir) {
        // It may have ended meanwhile.
        let _ = kill(pid, signal);
    }
}

fn marked_processes(dir: &Path) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let own = Pid::this();
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
        .filter(|&pid| pid != own && is_marked(pid, dir))
        .collect()
}

/// A process that has ended but is not yet waited for has no environment, so it does not count.
fn is_marked(pid: Pid, dir: &Path) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else { return false };
    environment
        .split(|&byte| byte == 0)
        .filter_map(|variable| variable.strip_prefix(MARK.as_bytes())?.strip_prefix(b"="))
        .any(|marked| OsStr::from_bytes(marked) == dir)
}
