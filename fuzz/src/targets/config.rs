use std::{
    cell::OnceCell,
    env, fs,
    path::{Path, PathBuf},
    process,
};

use crate::{
    config::{
        self, Config, ConfigError, Remote, SyncMode, add_remote, remove_remote, rename_remote, set_remote_address,
        set_remote_sync, set_setting, settings,
    },
    transport::Address,
};

thread_local! {
    static FILE: OnceCell<PathBuf> = const { OnceCell::new() };
}

/// Any file is settings or refused; and a setting that is changed and changed back, and a remote that is added, changed,
/// renamed and removed again, leave the other settings as they were.
pub fn config(text: &[u8]) {
    FILE.with(|file| check(file.get_or_init(folder), text));
}

fn folder() -> PathBuf {
    let folder = env::temp_dir().join(format!("ddcp-fuzz-{}", process::id()));
    fs::create_dir_all(&folder).expect("a folder for the settings");
    folder
}

fn check(folder: &Path, text: &[u8]) {
    let path = folder.join("config.toml");
    let _ = fs::remove_file(path.with_extension("private"));
    fs::write(&path, text).expect("the settings are written");
    let _ = config::load_network(&path);
    let before = match Config::load(&path) {
        Ok(before) => before,
        Err(ConfigError::Io { .. } | ConfigError::Invalid { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    if !check_setting(&path, &before, text.len()) {
        return;
    }
    let (name, renamed) = ("fuzz".parse().expect("a name"), "fuzz-2".parse().expect("a name"));
    let [first, address]: [Address; 2] = ["fuzz.db", "fuzz \"'\\ .db"].map(|text| text.parse().expect("an address"));
    match add_remote(&path, &name, &Remote { address: first.clone(), sync: SyncMode::Auto }) {
        Ok(()) => {}
        Err(ConfigError::NameTaken(_) | ConfigError::Invalid { .. }) => return,
        Err(error) => panic!("{error}"),
    }
    let load = || Config::load(&path).expect("edited settings are settings");
    assert_eq!(load().remotes[&name], Remote { address: first, sync: SyncMode::Auto });
    set_remote_address(&path, "fuzz", &address).expect("the remote is there");
    set_remote_sync(&path, "fuzz", SyncMode::Fetch).expect("the remote is there");
    match rename_remote(&path, "fuzz", &renamed) {
        Ok(()) => {
            assert_eq!(load().remotes[&renamed], Remote { address, sync: SyncMode::Fetch });
            remove_remote(&path, "fuzz-2").expect("the remote is there");
        }
        Err(ConfigError::NameTaken(_)) => remove_remote(&path, "fuzz").expect("the remote is there"),
        Err(error) => panic!("{error}"),
    }
    assert_eq!(said(load()), said(before));
}

/// The settings without why they are private: settings that were lost are no more once they have been changed.
fn said(config: Config) -> Config {
    Config { kept_private: None, ..config }
}

/// Changes one setting and puts it back; whether the file is one in which that can be done.
fn check_setting(path: &Path, before: &Config, choice: usize) -> bool {
    let known = settings(before);
    let (key, old) = known.iter().nth(choice % known.len()).expect("there are settings");
    let new = if key == "access" { "private" } else { "7" };
    match set_setting(path, key, new) {
        Ok(()) => {}
        Err(ConfigError::Invalid { .. }) => {
            assert_eq!(Config::load(path).expect("still settings"), *before);
            return false;
        }
        Err(error) => panic!("{error}"),
    }
    let changed = Config::load(path).expect("edited settings are settings");
    let mut expected = known.clone();
    expected.insert(key.clone(), new.to_owned());
    assert_eq!(settings(&changed), expected);
    assert_eq!((&changed.remotes, &changed.network), (&before.remotes, &before.network));
    set_setting(path, key, old).expect("it was so before");
    assert_eq!(said(Config::load(path).expect("edited settings are settings")), said(before.clone()));
    true
}
