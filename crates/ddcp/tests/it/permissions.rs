//! Files of other users, and root at work on them. Only root can try this out.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use insta::assert_snapshot;
use nix::unistd::geteuid;

use crate::support::{DDCP, Repo, World};

/// A user without a name.
const SERVICE: u32 = 54_321;

/// The program as another user runs it.
pub(crate) struct OtherUser<'a> {
    world: &'a World,
    program: PathBuf,
}

impl<'a> OtherUser<'a> {
    /// `None`, with the reason printed, where this user cannot become another.
    pub(crate) fn new(world: &'a World) -> Option<Self> {
        if !geteuid().is_root() {
            eprintln!("SKIPPED, only root can be another user");
            return None;
        }
        let program = world.path("program");
        fs::copy(DDCP, &program).unwrap();
        mode(&world.path(""), 0o755);
        Some(Self { world, program })
    }

    pub(crate) fn run<S: AsRef<OsStr>>(
        &self,
        repo: &Repo,
        arguments: impl IntoIterator<Item = S>,
    ) -> crate::support::Run {
        let mut command = Command::new(&self.program);
        command.env_clear().env("HOME", self.world.path("")).current_dir(self.world.path(""));
        command.arg("--db").arg(repo.db()).args(arguments).uid(SERVICE).gid(SERVICE);
        repo.run_command(command)
    }
}

pub(crate) fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Gives everything in the folder away, but for the program.
pub(crate) fn give(path: &Path) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path()));
    }
    chown(path, Some(SERVICE), Some(SERVICE)).unwrap();
}

/// Fails unless everything in the folder is the service's.
fn assert_given(path: &Path) {
    let metadata = fs::symlink_metadata(path).unwrap();
    assert_eq!(metadata.uid(), SERVICE, "{}", path.display());
    assert!(metadata.mode() & 0o077 == 0 || !path.to_str().unwrap().contains(".ddcp"), "{}", path.display());
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| assert_given(&entry.unwrap().path()));
    }
}

#[test]
fn what_is_denied_is_said() {
    let world = World::new();
    let Some(other) = OtherUser::new(&world) else { return };
    let [a, b] = world.all_notes(["a", "b"]);
    mode(a.db(), 0o644);
    assert_snapshot!(other.run(&a, ["status"]), @"
    status 1
    --- stderr
    error: permission denied: 54321 may not read DIR/.ddcp, which belongs to root
    hint: run the command as root (`sudo ddcp …`), or let 54321 read it
    ");
    mode(&world.path(".ddcp"), 0o755);
    mode(&a.state(""), 0o755);
    assert_snapshot!(other.run(&a, ["pull"]), @"
    status 1
    --- stderr
    error: permission denied: 54321 may not read DIR/.ddcp/a.db/state.db, which belongs to root
    hint: run the command as root (`sudo ddcp …`), or let 54321 read it
    ");
    mode(&a.state("state.db"), 0o644);
    assert_snapshot!(other.run(&a, ["remote", "list"]), @"
    status 1
    --- stderr
    error: permission denied: 54321 may not read DIR/.ddcp/a.db/config.toml, which belongs to root
    hint: run the command as root (`sudo ddcp …`), or let 54321 read it
    ");
    mode(a.db(), 0o600);
    assert_snapshot!(other.run(&a, ["shell", "SELECT 1"]), @"
    status 1
    --- stderr
    error: permission denied: 54321 may not read DIR/a.db, which belongs to root
    hint: run the command as root (`sudo ddcp …`), or let 54321 read it
    ");
    // A remote's.
    give(&b.state(""));
    chown(b.db(), Some(SERVICE), Some(SERVICE)).unwrap();
    mode(&world.path(""), 0o777);
    b.follows(&[&a]);
    assert_snapshot!(other.run(&b, ["pull"]), @"
    status 4
    --- stderr
    error: a: permission denied: 54321 may not read DIR/a.db, which belongs to root
    hint: run the command as root (`sudo ddcp …`), or let 54321 read it
    ");
    fs::create_dir(world.path("closed")).unwrap();
    mode(&world.path("closed"), 0o700);
    assert_snapshot!(other.run(&world.repo("closed/a"), ["status"]), @"
    status 1
    --- stderr
    error: permission denied: 54321 may not read DIR/closed, which belongs to root
    hint: run the command as root (`sudo ddcp …`), or let 54321 read it
    ");
}

#[test]
fn what_root_writes_stays_the_owners() {
    let world = World::new();
    let Some(other) = OtherUser::new(&world) else { return };
    let [a, b] = world.all_notes(["a", "b"]);
    a.sql("INSERT INTO note VALUES ('1', hex(randomblob(2000000)), 1)");
    give(&b.state(""));
    give(&world.path(".ddcp"));
    give(b.db());
    chown(world.path(""), Some(SERVICE), Some(SERVICE)).unwrap();
    for arguments in [
        &["remote", "add", "a", "a.db"][..],
        &["config", "set", "access", "private"],
        &["fetch"],
        &["pull"],
        &["verify"],
        &["init"],
        &["status"],
        &["bundle", "create", "b.bundle"],
        &["address"],
    ] {
        b.run(arguments);
        assert_given(&b.state(""));
    }
    assert!(b.state("digest.db").exists());
    fs::write(b.state("state.db"), "no database").unwrap();
    b.ok(["status"]);
    assert_given(&b.state(""));
    assert_given(b.db());
    // Its owner goes on.
    give(a.db());
    a.sql("INSERT INTO note VALUES ('2', 'two', 2)");
    other.run(&b, ["pull"]).assert_status(0);
    other.run(&b, ["remote", "rename", "a", "c"]).assert_status(0);
    assert_eq!(b.rows("SELECT count(*) FROM note"), ["2"]);
}

#[test]
fn a_repository_that_root_makes_of_a_users_database_is_the_users() {
    let world = World::new();
    let Some(other) = OtherUser::new(&world) else { return };
    let a = world.repo("a");
    rusqlite::Connection::open(a.db()).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    chown(world.path(""), Some(SERVICE), Some(SERVICE)).unwrap();
    give(a.db());
    a.ok(["init"]);
    assert_given(&world.path(".ddcp"));
    other.run(&a, ["status"]).assert_status(0);
    other.run(&a, ["remote", "add", "b", "b.db"]).assert_status(0);
}
