use std::{cell::OnceCell, env, fs, path::PathBuf, process};

use crate::{
    config::{self, Config, ConfigError, Remote, SyncMode, add_remote, remove_remote, rename_remote, set_remote_sync},
    transport::Address,
};

thread_local! {
    static FILE: OnceCell<PathBuf> = const { OnceCell::new() };
}

/// Any file is settings or refused; and a remote that is added, changed, renamed and removed again leaves the other
/// settings as they were.
pub fn config(text: &[u8]) {
    FILE.with(|file| check(file.get_or_init(folder), text));
}

fn folder() -> PathBuf {
    let folder = env::temp_dir().join(format!("ddcp-fuzz-{}", process::id()));
    fs::create_dir_all(&folder).expect("a folder for the settings");
    folder
}

fn check(folder: &PathBuf, text: &[u8]) {
    let path = folder.join("config.toml");
    fs::write(&path, text).expect("the settings are written");
    let _ = config::load_network(&path);
    let before = match Config::load(&path) {
        Ok(before) => before,
        Err(ConfigError::Io { .. } | ConfigError::Invalid { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let (name, renamed) = ("fuzz".parse().expect("a name"), "fuzz-2".parse().expect("a name"));
    let address: Address = "fuzz \"'\\ .db".parse().expect("an address");
    match add_remote(&path, &name, &Remote { address: address.clone(), sync: SyncMode::Auto }) {
        Ok(()) => {}
        Err(ConfigError::NameTaken(_) | ConfigError::Invalid { .. }) => return,
        Err(error) => panic!("{error}"),
    }
    let load = || Config::load(&path).expect("edited settings are settings");
    assert_eq!(load().remotes[&name], Remote { address: address.clone(), sync: SyncMode::Auto });
    set_remote_sync(&path, "fuzz", SyncMode::Fetch).expect("the remote is there");
    match rename_remote(&path, "fuzz", &renamed) {
        Ok(()) => {
            assert_eq!(load().remotes[&renamed], Remote { address, sync: SyncMode::Fetch });
            remove_remote(&path, "fuzz-2").expect("the remote is there");
        }
        Err(ConfigError::NameTaken(_)) => remove_remote(&path, "fuzz").expect("the remote is there"),
        Err(error) => panic!("{error}"),
    }
    assert_eq!(load(), before);
}
