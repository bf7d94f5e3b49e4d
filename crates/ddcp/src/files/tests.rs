use std::os::unix::fs::symlink;

use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names(folder: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

#[test]
fn what_is_created_is_the_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join(".ddcp/a.db");
    create_private_dir(&state, Owner::default()).unwrap();
    assert_eq!((mode(&state), mode(&dir.path().join(".ddcp"))), (0o700, 0o700));
    let file = state.join("config.toml");
    replace(&file, b"one").unwrap();
    replace(&file, b"two").unwrap();
    assert_eq!((fs::read(&file).unwrap(), mode(&file)), (b"two".to_vec(), 0o600));
    assert_eq!(names(&state), ["config.toml"]);
    open_private(&state.join("lock")).unwrap();
    create_private(&state.join("state.db")).unwrap();
    assert_eq!((mode(&state.join("lock")), mode(&state.join("state.db"))), (0o600, 0o600));
    assert_eq!(names(&state), ["config.toml", "lock", "state.db"]);
}

#[test]
fn what_is_no_regular_file_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let [file, pipe] = ["file", "pipe"].map(|name| dir.path().join(name));
    fs::write(&file, "content").unwrap();
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(io::read_to_string(open_regular(&file).unwrap()).unwrap(), "content");
    for other in [pipe.as_path(), dir.path(), Path::new("/dev/null")] {
        assert_eq!(open_regular(other).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{}", other.display());
    }
}

#[test]
fn open_folders_are_narrowed() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    create_private_dir(dir.path(), Owner::default()).unwrap();
    assert_eq!(mode(dir.path()), 0o700);
}

#[test]
fn a_new_file_is_there_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new");
    let mut dropped = NewFile::create(&path, false).unwrap();
    dropped.write_all(b"half").unwrap();
    assert!(!path.exists());
    drop(dropped);
    assert!(names(dir.path()).is_empty());
    let mut first = NewFile::create(&path, false).unwrap();
    let mut late = NewFile::create(&dir.path().join("./new"), false).unwrap();
    first.write_all(b"whole").unwrap();
    late.write_all(b"late").unwrap();
    first.commit().unwrap();
    assert_eq!(late.commit().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(NewFile::create(&path, false).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(names(dir.path()), ["new"]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let mut second = NewFile::create(&path, true).unwrap();
    second.write_all(b"other").unwrap();
    second.commit().unwrap();
    assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"other".to_vec(), 0o640));
    assert!(NewFile::create(dir.path(), true).is_err(), "a folder is not replaced");
}

/// The names that the next files in the making will have are easily guessed.
fn plant(folder: &Path, aim: &Path, name: impl Fn(&str) -> String) {
    let next = MADE.load(Ordering::Relaxed);
    for number in next..next + 200 {
        symlink(aim, folder.join(name(&format!("{}-{number}", std::process::id())))).unwrap();
    }
}

#[test]
fn planted_links_are_neither_followed_nor_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let aim = dir.path().join("aim");
    fs::write(&aim, "precious").unwrap();
    let made = dir.path().join("made");
    fs::create_dir(&made).unwrap();
    plant(&made, &aim, |end| format!(".new.partial-{end}"));
    plant(&made, &aim, |end| format!("config.new-{end}"));
    plant(&made, &aim, |end| format!("nameless-{end}"));

    let mut new = NewFile::create(&made.join("new"), false).unwrap();
    new.write_all(b"new").unwrap();
    new.commit().unwrap();
    replace(&made.join("config.toml"), b"settings").unwrap();
    nameless(&made).unwrap().write_all(b"nameless").unwrap();
    for (name, content) in [("new", "new"), ("config.toml", "settings")] {
        let path = made.join(name);
        assert!(path.symlink_metadata().unwrap().is_file());
        assert_eq!(fs::read_to_string(path).unwrap(), content);
    }

    // Put where the file is to be, after it was begun.
    for target in [&aim, &dir.path().join("absent")] {
        let late = NewFile::create(&made.join("late"), false).unwrap();
        symlink(target, made.join("late")).unwrap();
        assert_eq!(late.commit().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(NewFile::create(&made.join("late"), true).is_err(), "a link is not replaced");
        assert!(open_private(&made.join("late")).is_err(), "nor opened");
        fs::remove_file(made.join("late")).unwrap();
    }
    assert_eq!(fs::read_to_string(&aim).unwrap(), "precious");
    assert_eq!(names(dir.path()), ["aim", "made"]);
}

#[test]
fn a_place_is_taken_once_also_without_the_systems_help() {
    let dir = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
    fs::write(&from, "first").unwrap();
    rename_to_free_place(&from, &to).unwrap();
    fs::write(&from, "second").unwrap();
    assert_eq!(rename_to_free_place(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::hard_link(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!((fs::read_to_string(&to).unwrap(), names(dir.path()).len()), ("first".to_owned(), 2));
}

#[test]
fn what_root_makes_for_another_user_is_that_users() {
    const USER: u32 = 12_345;
    if !geteuid().is_root() {
        return;
    }
    let owner = |path: &Path| fs::metadata(path).unwrap().uid();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    unix::chown(&state, Some(USER), Some(USER)).unwrap();
    let file = state.join("config.toml");
    replace(&file, b"one").unwrap();
    replace(&file, b"two").unwrap();
    open_private(&state.join("lock")).unwrap();
    create_private(&state.join("state.db")).unwrap();
    create_private_dir(&state.join("parts/site"), Owner::of_folder(&state.join("parts/site"))).unwrap();
    for name in ["config.toml", "lock", "state.db", "parts", "parts/site"] {
        assert_eq!(owner(&state.join(name)), USER, "{name}");
    }

    let precious = dir.path().join("precious");
    fs::write(&precious, "root's").unwrap();
    let made = state.join("made");
    fs::create_dir(&made).unwrap();
    fs::write(made.join("file"), "").unwrap();
    symlink(&precious, made.join("link")).unwrap();
    fs::hard_link(&precious, made.join("second-name")).unwrap();
    Owner::of(&state).take_folder(&made).unwrap();
    assert_eq!([owner(&made), owner(&made.join("file")), owner(&precious)], [USER, USER, 0]);
}
