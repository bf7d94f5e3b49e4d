//! Remotes and other settings, as an application asks for them. Named as the commands and the control methods are.

use std::collections::BTreeMap;

use super::{RemoteEntry, RemovedRemote, Repository};
use crate::{Error, config::SyncMode};

impl Repository {
    /// The remotes in the order of their names.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub async fn remote_list(&self) -> Result<Vec<RemoteEntry>, Error> {
        self.blocking(Self::remotes).await
    }

    /// Adds the remote `name`: the repository at `address`, a Veilid address or the path of a database. What is done
    /// about it while this one is served, `sync` says.
    ///
    /// # Errors
    /// [`Error::Config`] where the name is taken or not allowed, or the address is none; [`Error::OwnAddress`].
    pub async fn remote_add(&self, name: &str, address: &str, sync: SyncMode) -> Result<(), Error> {
        let (name, address) = (name.to_owned(), address.to_owned());
        self.blocking(move |repository| repository.add_remote(&name, &address, sync)).await
    }

    /// Removes a remote. What was fetched from it stays, for [`Repository::merge`].
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::State`].
    pub async fn remote_remove(&self, name: &str) -> Result<RemovedRemote, Error> {
        let name = name.to_owned();
        self.blocking(move |repository| repository.remove_remote(&name)).await
    }

    /// Gives a remote another name.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::State`].
    pub async fn remote_rename(&self, old: &str, new: &str) -> Result<(), Error> {
        let (old, new) = (old.to_owned(), new.to_owned());
        self.blocking(move |repository| repository.rename_remote(&old, &new)).await
    }

    /// Gives a remote another address.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::OwnAddress`].
    pub async fn remote_set_address(&self, name: &str, address: &str) -> Result<(), Error> {
        let (name, address) = (name.to_owned(), address.to_owned());
        self.blocking(move |repository| repository.set_remote_address(&name, &address)).await
    }

    /// Changes what is done about a remote while this repository is served.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub async fn remote_set_sync(&self, name: &str, sync: SyncMode) -> Result<(), Error> {
        let name = name.to_owned();
        self.blocking(move |repository| repository.set_remote_sync(&name, sync)).await
    }

    /// The settings that are no remotes, by their keys.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub async fn config_get(&self) -> Result<BTreeMap<String, String>, Error> {
        self.blocking(Self::settings).await
    }

    /// Changes a setting that is no remote's.
    ///
    /// # Errors
    /// [`Error::Config`] where there is no such setting, or it cannot have this value.
    pub async fn config_set(&self, key: &str, value: &str) -> Result<(), Error> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.blocking(move |repository| repository.set_setting(&key, &value)).await
    }
}
