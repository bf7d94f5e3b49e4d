//! Files and folders that only their owner may read, and files that are made whole or not at all. Nothing here follows
//! a link that somebody has put where a file is to be, and nothing opens a database: closing a descriptor of one that
//! is not SQLite's own takes SQLite's locks away.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::{self as unix, DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::{libc, unistd::geteuid};

/// Who gets what is made: where root works on another user's repository, that user. Nobody else gives files away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owner(Option<(u32, u32)>);

impl Owner {
    /// Whoever the file or folder `path` belongs to. Of a path that is not there, whoever runs this program.
    pub(crate) fn of(path: &Path) -> Self {
        if !geteuid().is_root() {
            return Self(None);
        }
        Self(fs::metadata(path).ok().map(|metadata| (metadata.uid(), metadata.gid())).filter(|(uid, _)| *uid != 0))
    }

    /// Whoever the folder belongs to in which `path` is, or will be.
    pub(crate) fn of_folder(path: &Path) -> Self {
        path.ancestors().skip(1).find(|folder| folder.is_dir()).map_or(Self(None), Self::of)
    }

    fn or(self, other: Self) -> Self {
        Self(self.0.or(other.0))
    }

    fn take(self, file: &File) -> io::Result<()> {
        self.0.map_or(Ok(()), |(uid, gid)| unix::fchown(file, Some(uid), Some(gid)))
    }

    /// Gives the folder `path` and what is in it to this owner, as far as it is the one's who runs this program: a
    /// library has made it. Links are not followed.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) fn take_folder(self, path: &Path) -> io::Result<()> {
        let Some((uid, gid)) = self.0 else { return Ok(()) };
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                self.take_folder(&entry.path())?;
            } else if metadata.uid() == 0 && metadata.nlink() == 1 {
                unix::lchown(entry.path(), Some(uid), Some(gid))?;
            }
        }
        match fs::symlink_metadata(path)?.uid() {
            0 => unix::lchown(path, Some(uid), Some(gid)),
            _ => Ok(()),
        }
    }
}

/// Creates `path` and its parents with mode 0700, those that are missing for `owner`, or narrows an existing folder
/// `path` to it.
///
/// # Errors
/// Those of the operating system.
pub(crate) fn create_private_dir(path: &Path, owner: Owner) -> io::Result<()> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && folder.symlink_metadata().is_err();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    if let Some((uid, gid)) = owner.0 {
        missing.iter().try_for_each(|made| unix::lchown(made, Some(uid), Some(gid)))?;
    }
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Opens `path` for reading and writing, creating it with mode 0600 if it is missing. For no database.
///
/// # Errors
/// Those of the operating system, also where `path` is a link.
pub(crate) fn open_private(path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    match create_new(path, 0o600, Owner::of_folder(path)) {
        // Another has made it in between.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open(),
        created => created,
    }
}

/// Opens the regular file `path` for reading. What is none, such as a pipe, is refused and not waited for.
///
/// # Errors
/// Those of the operating system, and [`io::ErrorKind::InvalidInput`].
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let check = |metadata: fs::Metadata| match metadata.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    };
    // Looked at before it is opened, since opening a device may do something, and after, since it may be another by then.
    check(fs::metadata(path)?)?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    check(file.metadata()?)?;
    Ok(file)
}

/// Makes the empty file `path`, with mode 0600, unless one is there. Nobody has it open when it appears, nor does this
/// open one that is there: it may be a database that is being used.
///
/// # Errors
/// Those of the operating system.
pub(crate) fn create_private(path: &Path) -> io::Result<()> {
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    match NewFile::begin(path, false, 0o600, Owner::of_folder(path))?.commit() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// A new file in `folder` that has no name: nobody else can open it, and it is gone when it is closed.
///
/// # Errors
/// Those of the operating system.
pub(crate) fn nameless(folder: &Path) -> io::Result<File> {
    let (_name, file) = temporary(0o600, Owner::default(), |end| folder.join(format!("nameless-{end}")))?;
    Ok(file)
}

/// Replaces the content of `path` at once: after a crash it has the old or the new content, never a part. The file gets
/// mode 0600, and stays its owner's.
///
/// # Errors
/// Those of the operating system; the old content then stays.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let owner = Owner::of(path).or(Owner::of_folder(path));
    let (name, mut file) = temporary(0o600, owner, |end| path.with_extension(format!("new-{end}")))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&name.0, path)?;
    sync_folder(path)
}

/// Makes a file that was not there.
fn create_new(path: &Path, mode: u32, owner: Owner) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)?;
    owner.take(&file)?;
    Ok(file)
}

/// Counts files in the making, so that no two of this process try the same name.
static MADE: AtomicU64 = AtomicU64::new(0);

/// The name of a file in the making. The file is removed with this, unless it has got another name.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Not there any more once it has been put in its place.
        let _ = fs::remove_file(&self.0);
    }
}

/// A file that was not there, of one of the names that `name` makes of the ends of names that it is given.
fn temporary(mode: u32, owner: Owner, name: impl Fn(&str) -> PathBuf) -> io::Result<(Temporary, File)> {
    /// Names that may be taken: by what processes of the same number have left, or by somebody who is in the way.
    const TRIES: u32 = 1000;
    let mut result = Err(io::ErrorKind::AlreadyExists.into());
    for _ in 0..TRIES {
        let path = name(&format!("{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed)));
        result = create_new(&path, mode, owner).map(|file| (Temporary(path), file));
        match &result {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            _ => break,
        }
    }
    result
}

/// A file in the making: written beside its place and put there whole, or not at all.
pub(crate) struct NewFile {
    path: PathBuf,
    replace: bool,
    temporary: Temporary,
    file: BufWriter<File>,
}

impl NewFile {
    /// Begins the file that is to be at `path`; one that is there is only replaced if `replace` says so, and its mode
    /// and owner are kept.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`], and others of the operating system.
    pub(crate) fn create(path: &Path, replace: bool) -> io::Result<Self> {
        check_place(path, replace)?;
        let new = Self::begin(path, replace, 0o600, Owner::of(path))?;
        if let (true, Ok(old)) = (replace, path.symlink_metadata()) {
            new.file.get_ref().set_permissions(old.permissions())?;
        }
        Ok(new)
    }

    fn begin(path: &Path, replace: bool, mode: u32, owner: Owner) -> io::Result<Self> {
        let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "the path names no file");
        let file_name = path.file_name().ok_or_else(no_name)?;
        let (temporary, file) = temporary(mode, owner, |end| {
            let mut name = OsString::from(".");
            name.push(file_name);
            name.push(format!(".partial-{end}"));
            path.with_file_name(name)
        })?;
        Ok(Self { path: path.to_owned(), replace, temporary, file: BufWriter::new(file) })
    }

    /// The file as it was written so far.
    ///
    /// # Errors
    /// Those of the operating system.
    pub(crate) fn written(&mut self) -> io::Result<&mut File> {
        self.file.flush()?;
        Ok(self.file.get_mut())
    }

    /// Puts the file in its place, durably. It is closed before it is there.
    ///
    /// # Errors
    /// As [`NewFile::create`]; the place is then as it was.
    pub(crate) fn commit(self) -> io::Result<()> {
        let Self { path, replace, temporary, file } = self;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        drop(file);
        if replace {
            check_place(&path, true)?;
            fs::rename(&temporary.0, &path)?;
        } else {
            rename_to_free_place(&temporary.0, &path)?;
        }
        sync_folder(&path)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Whether a file may be put at `path`. What is no file, such as a device, is never replaced.
fn check_place(path: &Path, replace: bool) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if replace && metadata.is_file() => Ok(()),
        Ok(_) if replace => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Gives `from` the name `to`, which nothing has.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`], and others of the operating system.
pub(crate) fn rename_to_free_place(from: &Path, to: &Path) -> io::Result<()> {
    match rename_no_replace(from, to) {
        Err(error) if is_not_supported(&error) => {}
        renamed => return renamed,
    }
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        // File systems without either, such as exFAT's. What is put there in between is replaced, but not followed.
        Err(error) if is_not_supported(&error) => {
            check_place(to, false)?;
            fs::rename(from, to)
        }
        Err(error) => Err(error),
    }
}

fn is_not_supported(error: &io::Error) -> bool {
    let codes = [libc::EINVAL, libc::ENOSYS, libc::EOPNOTSUPP, libc::EPERM, libc::EMLINK];
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

#[cfg(target_os = "linux")]
fn rename_no_replace(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

#[cfg(not(target_os = "linux"))]
fn rename_no_replace(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes the name of the file at `path` durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "files/tests.rs"]
mod tests;
