//! Telling a remote that there is something new here.

use super::Repository;
use crate::{
    Error,
    protocol::{Client, HintTag},
    transport::{Address, RecordId, Signer},
};

/// Hints one repository.
pub(crate) struct Hinter {
    client: Client,
    tag: HintTag,
}

impl Repository {
    /// What hints the repository `remote` at `address`.
    ///
    /// # Errors
    /// [`Error::Remote`] where it cannot be found, [`Error::Node`], [`Error::Config`], [`Error::NoAddress`].
    pub(crate) async fn hinter(&self, address: &Address, remote: RecordId) -> Result<Hinter, Error> {
        let (own, limits) =
            self.blocking(|repository| Ok((repository.address()?, repository.config()?.limits))).await?;
        let own = own.ok_or_else(|| Error::NoAddress(self.layout().database().to_owned()))?;
        Ok(Hinter { client: self.client(address, &limits).await?, tag: HintTag::new(&own, remote) })
    }

    /// The tag with which the repository at `address` hints this one.
    ///
    /// # Errors
    /// [`Error::Node`], [`Error::Config`].
    pub(crate) async fn tag_of_hints_from(&self, address: &Address) -> Result<HintTag, Error> {
        let own = self.node().await?.party().await.map_err(Error::Node)?;
        Ok(HintTag::new(address, own.repository))
    }
}

impl Hinter {
    /// Says that there is something new here.
    ///
    /// # Errors
    /// [`Error::Remote`].
    pub(crate) async fn hint(&self) -> Result<(), Error> {
        Ok(self.client.hint(self.tag).await?)
    }
}
