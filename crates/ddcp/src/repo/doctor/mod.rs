//! `doctor`: looks for what is wrong or will be, and says of everything it finds what mends it. Changes nothing.

use std::path::Path;

use serde::{Deserialize, Serialize};

mod files;
mod inbox;
mod network;
mod tables;

use super::{Layout, Options, State, StateError, program::shell_word};
use crate::{
    config::Config,
    database::{Database, DatabaseError, OpenOptions},
};

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// All is well.
    Ok,
    /// Worth knowing; may be as it should be.
    Note,
    /// It works, and will or may make trouble.
    Warning,
    /// Something does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// What was looked at: `database`, `engine`, `table`, `files`, `clock`, `network`, `remote` and others.
    pub about: String,
    /// What was found.
    pub message: String,
    /// What mends it: mostly a command that can be run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    fn new(level: Level, about: &str, message: impl Into<String>, mend: impl Into<Option<String>>) -> Self {
        Self { level, about: about.to_owned(), message: message.into(), mend: mend.into() }
    }

    fn ok(about: &str, message: impl Into<String>) -> Self {
        Self::new(Level::Ok, about, message, None)
    }

    fn note(about: &str, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::new(Level::Note, about, message, mend.into())
    }

    fn warning(about: &str, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::new(Level::Warning, about, message, mend.into())
    }

    fn error(about: &str, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::new(Level::Error, about, message, mend.into())
    }

    /// Whether it wants mending.
    #[must_use]
    pub fn is_trouble(&self) -> bool {
        self.level >= Level::Warning
    }
}

/// Words what mends something as commands for this repository.
pub(super) struct Advice {
    program: String,
}

impl Advice {
    pub(super) fn of(layout: &Layout) -> Self {
        Self { program: layout.program() }
    }

    /// `arguments` as a command of this program.
    fn run(&self, arguments: &str) -> String {
        format!("`{} {arguments}`", self.program)
    }

    /// A hint about this repository, its commands as [`Advice::run`] has them.
    fn named(&self, hint: &str) -> String {
        hint.replace("`ddcp ", &format!("`{} ", self.program))
    }

    /// The command that runs statements.
    fn shell(&self, sql: &str) -> String {
        self.run(&format!("shell {}", shell_word(sql)))
    }
}

/// A path as a word of a shell.
fn word(path: &Path) -> String {
    shell_word(&path.to_string_lossy())
}

/// Looks at everything on this machine that belongs to the repository at `layout`, whether or not it can be opened:
/// the database, its tables, the state directory and the clock. `thorough` reads the indexes too. Blocks: the whole
/// database is read once.
#[must_use]
pub fn examine(layout: &Layout, options: &Options, thorough: bool) -> Vec<Finding> {
    let (advice, mut findings) = (Advice::of(layout), Vec::new());
    examine_database(layout, options, thorough, &advice, &mut findings);
    let config = examine_config(layout, &mut findings);
    let state = examine_state(layout, thorough, &advice, &mut findings);
    files::examine_permissions(layout, &mut findings);
    files::examine_space(layout, &mut findings);
    files::examine_clock(state.as_ref(), &mut findings);
    if let (Some(config), Some(state)) = (config, state) {
        inbox::examine(layout, &config, &state, &advice, &mut findings);
    }
    findings
}

fn examine_database(layout: &Layout, options: &Options, thorough: bool, advice: &Advice, findings: &mut Vec<Finding>) {
    if let Err(error) = layout.check_database() {
        findings.push(Finding::error("database", error.to_string(), error.hint().unwrap_or_default()));
        return;
    }
    let path = layout.database();
    let with = |extension| OpenOptions { read_only: true, extension, ..OpenOptions::default() };
    let database = match Database::open(path, &with(options.extension.clone())) {
        Ok(database) => database,
        Err(error) => {
            findings.push(Finding::error("database", error.to_string(), mend_database(path, &error, advice)));
            // With the engine in the program the rest can be looked at all the same.
            match Database::open(path, &with(None)) {
                Ok(database) if matches!(error, DatabaseError::Extension { .. }) => database,
                _ => return,
            }
        }
    };
    match database.check_structure(thorough) {
        Ok(complaints) if complaints.is_empty() => {
            findings.push(Finding::ok("database", format!("{} opens and is sound", path.display())));
        }
        Ok(complaints) => {
            let what = format!("{} is damaged: {}", path.display(), complaints.join("; "));
            findings.push(Finding::error("database", what, recover(path)));
        }
        Err(error) if error.to_string().contains("no such collation sequence") => {
            let what = format!("the file cannot be checked as a whole: {error}");
            findings.push(Finding::note("database", what, "have its application run `PRAGMA integrity_check`"));
        }
        Err(error) => findings.push(Finding::error("database", error.to_string(), mend_database(path, &error, advice))),
    }
    if let Err(error) = tables::examine(&database, thorough, advice, findings) {
        findings.push(Finding::error("table", error.to_string(), mend_database(path, &error, advice)));
    }
    files::examine_writable(path, findings);
}

fn recover(path: &Path) -> String {
    format!("restore {} from a backup, or save what is left: `sqlite3 {} .recover`", path.display(), word(path))
}

fn mend_database(path: &Path, error: &DatabaseError, advice: &Advice) -> String {
    let path_word = word(path);
    match error {
        DatabaseError::Missing { .. } | DatabaseError::NoRepository { .. } => advice.run("init"),
        DatabaseError::Corrupt { .. } => recover(path),
        DatabaseError::ReadOnly { .. } => format!("`chmod u+w {path_word}`, and the same for its folder"),
        DatabaseError::Extension { .. } => {
            "`ddcp extension` prints the path of the library that belongs to this program; name it with --extension or \
             DDCP_EXTENSION, or neither to use the engine in the program"
                .to_owned()
        }
        DatabaseError::Denied(denied) => denied.advice(),
        DatabaseError::Locked { .. } => format!("`fuser {path_word}` names the programs that have it open"),
        _ => format!("do what the message says, then run {} again", advice.run("doctor")),
    }
}

fn examine_config(layout: &Layout, findings: &mut Vec<Finding>) -> Option<Config> {
    match Config::load(&layout.config()) {
        Ok(config) => {
            findings.push(match config.kept_private.filter(|_| layout.has_state()) {
                None => Finding::ok("config", "config.toml is well-formed"),
                Some(why) => Finding::warning(
                    "config",
                    why.to_string(),
                    format!("see what is left in {}", layout.config().display()),
                ),
            });
            Some(config)
        }
        Err(error) => {
            let mend = format!("mend {} in an editor; docs/config.md lists its keys", layout.config().display());
            findings.push(Finding::error("config", error.to_string(), mend));
            None
        }
    }
}

fn examine_state(layout: &Layout, thorough: bool, advice: &Advice, findings: &mut Vec<Finding>) -> Option<State> {
    let path = layout.state_db();
    if !path.exists() {
        findings.push(Finding::error(
            "state",
            format!("there is no state directory {}", layout.state().display()),
            advice.run("init"),
        ));
        return None;
    }
    // Without the mark, a large one is looked at as a whole only once a command has met what is damaged.
    let renew = || {
        format!(
            "check the disk; if it is the file, `touch {0}` and {1}: it is put aside and made anew with what can be read \
             of it, and the rest is fetched again",
            word(&layout.damage_mark()),
            advice.run("status")
        )
    };
    let mend = |error: &StateError| match error.is_damage() {
        true => renew(),
        false => "check the disk and the permissions; a file of a later ddcp needs that one".to_owned(),
    };
    let state = match State::look(&path) {
        Ok(state) => state,
        Err(error) => {
            findings.push(Finding::error("state", error.to_string(), mend(&error)));
            return None;
        }
    };
    match state.check_structure(thorough) {
        Ok(complaints) if complaints.is_empty() => {
            findings.push(Finding::ok("state", "state.db opens and is sound"));
            Some(state)
        }
        Ok(complaints) => {
            let what = format!("{} is damaged: {}", path.display(), complaints.join("; "));
            findings.push(Finding::error("state", what, renew()));
            None
        }
        Err(error) => {
            findings.push(Finding::error("state", error.to_string(), mend(&error)));
            None
        }
    }
}
