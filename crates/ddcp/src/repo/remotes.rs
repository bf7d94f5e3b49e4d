//! What is kept of a remote besides its settings: it goes when the remote is removed, and keeps it company when it gets
//! another name.

use std::{fs, io};

use rusqlite::{Connection, params_from_iter};
use serde::{Deserialize, Serialize};

use super::{Repository, State, StateError, digest::Digests, parse_name};
use crate::{Error, changeset::SiteId, config, transport::Address};

/// What is left of a remote that was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedRemote {
    /// Changes that were fetched from it, are not merged, and stay for [`Repository::merge`].
    pub kept: u64,
}

impl Repository {
    /// Removes a remote with all that is known of it. What was fetched from it stays, for `merge`.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::State`], [`Error::Io`].
    pub(crate) fn remove_remote(&self, name: &str) -> Result<RemovedRemote, Error> {
        let address = self.config()?.remote(name)?.1.address.clone();
        let site = self.state()?.contact(name, &address)?.site_id;
        config::remove_remote(&self.inner.layout.config(), name)?;
        self.reload()?;
        self.forget_others()?;
        match site {
            Some(site) if !self.has_remote_of(&site)? => self.forget_site(&site),
            _ => Ok(RemovedRemote::default()),
        }
    }

    /// Gives a remote another name. What is known of it is there under one of its names at any moment, whatever ends the
    /// program.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::State`].
    pub(crate) fn rename_remote(&self, old: &str, new: &str) -> Result<(), Error> {
        let new = parse_name(new)?;
        let remotes = self.config()?.remotes;
        if remotes.keys().any(|name| name.as_str() == old) && !remotes.contains_key(&new) {
            self.state()?.copy_remote(old, new.as_str())?;
            if let Some(digests) = self.kept_digests()? {
                digests.copy_remote(old, new.as_str())?;
            }
        }
        config::rename_remote(&self.inner.layout.config(), old, &new)?;
        self.inner.counters.rename(old, &new);
        self.reload()?;
        self.forget_others()
    }

    /// Whether `name` is a remote at `address` still, while something was done with it.
    pub(super) fn is_remote(&self, name: &str, address: &Address) -> Result<bool, Error> {
        Ok(self.config()?.remote(name).is_ok_and(|(_, remote)| remote.address == *address))
    }

    /// Forgets all that is known of names that are no remotes.
    fn forget_others(&self) -> Result<(), Error> {
        let config = self.config()?;
        let names: Vec<&str> = config.remotes.keys().map(crate::config::RemoteName::as_str).collect();
        self.state()?.retain_remotes(&names)?;
        if let Some(digests) = self.kept_digests()? {
            digests.retain_remotes(&names)?;
        }
        Ok(())
    }

    /// Forgets what helped to fetch from `site`. Its changes that are here stay.
    fn forget_site(&self, site: &SiteId) -> Result<RemovedRemote, Error> {
        let parts = self.layout().parts(&site.to_string());
        match fs::remove_dir_all(&parts) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Io { path: parts, source: error });
            }
            _ => {}
        }
        let state = self.state()?;
        Ok(RemovedRemote { kept: state.inbox_changes(site)? + state.waiting_changes(site)?.0 })
    }

    fn has_remote_of(&self, site: &SiteId) -> Result<bool, Error> {
        let state = self.state()?;
        for (name, remote) in self.config()?.remotes {
            if state.contact(name.as_str(), &remote.address)?.site_id == Some(*site) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The cache of digests, if there is one.
    fn kept_digests(&self) -> Result<Option<Digests>, Error> {
        self.layout().digests().exists().then(|| self.digests()).transpose()
    }
}

/// The tables of the state that know remotes by their names, and the columns besides the name.
const BY_NAME: [(&str, &str); 2] = [
    (
        "contact",
        "address, site_id, db_version, last_contact, last_error, last_error_at, schema_here, schema_there, differences, left_out",
    ),
    ("bundle_mark", "address, source, version"),
];

impl State {
    /// Has what is known of the remote `old` known of `new` as well, and the log call it `new`.
    pub(super) fn copy_remote(&mut self, old: &str, new: &str) -> Result<(), StateError> {
        self.write(|transaction| {
            for (table, columns) in BY_NAME {
                let sql = format!(
                    "INSERT OR REPLACE INTO {table} (remote, {columns}) SELECT ?2, {columns} FROM {table} WHERE remote = ?1"
                );
                transaction.execute(&sql, [old, new])?;
            }
            transaction.execute("UPDATE log SET remote = ?2 WHERE remote = ?1", [old, new]).map(drop)
        })
    }

    /// Forgets what is known of remotes with other names than these. The log, and what was fetched, stay.
    pub(super) fn retain_remotes(&mut self, names: &[&str]) -> Result<(), StateError> {
        self.write(|transaction| BY_NAME.iter().try_for_each(|(table, _)| retain(transaction, table, "remote", names)))
    }
}

/// Removes the rows of `table` whose `column` is none of `names`.
pub(super) fn retain(connection: &Connection, table: &str, column: &str, names: &[&str]) -> rusqlite::Result<()> {
    let places = vec!["?"; names.len()].join(", ");
    let sql = format!("DELETE FROM {table} WHERE {column} NOT IN ({places})");
    connection.execute(&sql, params_from_iter(names)).map(drop)
}
