//! `status`: where the repository stands, from what is known here; asks no remote.

use super::{RemoteStatusReport, Repository, State, StatusReport};
use crate::{
    Error,
    config::{Remote, RemoteName},
};

impl Repository {
    /// Where the repository stands. `serving` says whether its daemon runs.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Database`], [`Error::State`], [`Error::Node`].
    pub async fn status(&self, serving: bool) -> Result<StatusReport, Error> {
        self.blocking(move |repository| {
            let config = repository.config()?;
            let database = repository.database()?;
            let state = repository.state()?;
            let schema = database.schema_fingerprint()?;
            let remotes = config
                .remotes
                .iter()
                .map(|(name, remote)| remote_status(&state, &schema, name, remote))
                .collect::<Result<_, _>>()?;
            Ok(StatusReport {
                database: repository.inner.layout.database().display().to_string(),
                site_id: database.site_id()?.to_string(),
                version: database.version()?,
                tables: database.tables()?.into_iter().map(|table| table.name).collect(),
                address: repository.address()?.map(|address| address.to_string()),
                access: config.access,
                serving,
                dropped: repository.dropped(),
                remotes,
            })
        })
        .await
    }
}

fn remote_status(
    state: &State,
    schema: &[u8],
    name: &RemoteName,
    remote: &Remote,
) -> Result<RemoteStatusReport, Error> {
    let contact = state.contact(name.as_str(), &remote.address)?;
    let (unmerged, (waiting, reasons)) = match &contact.site_id {
        Some(site) => (state.inbox_changes(site)?, state.waiting_changes(site)?),
        None => (0, (0, Vec::new())),
    };
    Ok(RemoteStatusReport {
        name: name.to_string(),
        address: remote.address.to_string(),
        sync: remote.sync,
        version: contact.db_version,
        unmerged,
        waiting,
        reasons,
        last_contact: contact.last_contact,
        last_error: contact.last_error,
        schema: state.differences(name, &remote.address)?.and_then(|known| known.now(schema)),
    })
}
