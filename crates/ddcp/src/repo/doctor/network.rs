//! The network, and each remote.

use std::time::Duration;

use futures_util::future::join_all;

use super::{super::Repository, Advice, Finding};
use crate::{
    Error,
    config::{Config, Remote, RemoteName},
    database::DatabaseError,
    protocol::RemoteStatus,
    transport::Address,
};

/// How long the node may take to be connected.
const ATTACH_PATIENCE: Duration = Duration::from_secs(20);

/// How long a remote may take to answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

impl Repository {
    /// Looks at the network and asks each remote who it is, all at once and each within 20 s. `serving` says whether
    /// this process is the repository's daemon. Without one a node is started if a remote needs it.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Database`].
    pub async fn examine_network(&self, serving: bool) -> Result<Vec<Finding>, Error> {
        let (config, own) = self
            .blocking(|repository| {
                let database = repository.database_to_read()?;
                let (schema, site) = (database.schema_fingerprint()?, database.site_id()?);
                let own = Own { address: repository.address()?, schema, site: site.as_bytes().to_vec() };
                Ok((repository.config()?, own))
            })
            .await?;
        let advice = Advice::of(self.layout());
        let mut findings = vec![if serving {
            Finding::ok("serve", "`ddcp serve` runs: peers are answered")
        } else {
            Finding::note("serve", "`ddcp serve` does not run: peers cannot fetch from here", advice.run("serve"))
        }];
        let is_remote = |remote: &Remote| matches!(remote.address, Address::Veilid(_));
        if serving || (self.inner.options.connector.is_none() && config.remotes.values().any(is_remote)) {
            findings.push(self.examine_node().await);
        }
        if config.remotes.is_empty() {
            findings.push(Finding::note("remote", "there are no remotes", advice.run("remote add NAME ADDRESS")));
        }
        let look = |(name, remote)| self.examine_remote(name, remote, &config, &own, &advice);
        findings.extend(join_all(config.remotes.iter().map(look)).await);
        Ok(findings)
    }

    async fn examine_node(&self) -> Finding {
        const MEND: &str =
            "check this machine's network; `[network]` in config.toml or DDCP_NETWORK sets a private network";
        let attached = async {
            let node = self.node().await?;
            node.wait_ready(ATTACH_PATIENCE).await.map_err(Error::Node)
        };
        match attached.await {
            Ok(()) => Finding::ok("network", "the node is connected to the network"),
            Err(error) => Finding::error("network", error.to_string(), error.hint().unwrap_or_else(|| MEND.to_owned())),
        }
    }

    async fn examine_remote(
        &self,
        name: &RemoteName,
        remote: &Remote,
        config: &Config,
        own: &Own,
        advice: &Advice,
    ) -> Finding {
        if own.address.as_ref() == Some(&remote.address) {
            let what = format!("{name} is this repository's own address");
            return Finding::error("remote", what, advice.run(&format!("remote remove {name}")));
        }
        let asked = async {
            let client = self.client(&remote.address, &config.limits).await?;
            client.status().await.map_err(|error| self.explain(error))
        };
        match self.inner.options.host.timeout(ANSWER_PATIENCE, asked).await {
            Some(Ok(status)) => of_answer(name, &status, own, advice),
            Some(Err(Error::OwnAddress(_))) => itself(name, advice),
            Some(Err(error)) => {
                let mend = mend_remote(name, &error, advice);
                Finding::error("remote", format!("{name}: {error}"), mend)
            }
            None => {
                let what = format!("{name} has not answered within {} s", ANSWER_PATIENCE.as_secs());
                Finding::error("remote", what, "check that `ddcp serve` runs at the other side, then try again")
            }
        }
    }
}

/// Who this repository is.
struct Own {
    address: Option<Address>,
    site: Vec<u8>,
    schema: [u8; 32],
}

/// What to do about a remote that cannot be asked.
fn mend_remote(name: &RemoteName, error: &Error, advice: &Advice) -> String {
    let is_wrong_path =
        matches!(error, Error::RemoteDatabase(error) if !matches!(error, DatabaseError::NoRepository { .. }));
    match error.hint() {
        Some(hint) if !is_wrong_path => hint,
        _ => format!(
            "{} changes the address, {} forgets it",
            advice.run(&format!("remote set-address {name} ADDRESS")),
            advice.run(&format!("remote remove {name}"))
        ),
    }
}

fn of_answer(name: &RemoteName, status: &RemoteStatus, own: &Own, advice: &Advice) -> Finding {
    if status.site_id == own.site {
        return itself(name, advice);
    }
    if status.schema != own.schema {
        let what =
            format!("{name} answers, but its tables are not those of this repository: what does not fit will wait");
        let mend = format!(
            "{} shows what differs, {} adds what is not here",
            advice.run(&format!("schema diff {name}")),
            advice.run(&format!("schema adopt {name} --yes"))
        );
        return Finding::warning("remote", what, mend);
    }
    Finding::ok("remote", format!("{name} answers, at version {}, with the same tables", status.db_version))
}

fn itself(name: &RemoteName, advice: &Advice) -> Finding {
    let what = format!("{name} is this repository itself, or a copy of its file");
    Finding::error("remote", what, advice.run(&format!("remote remove {name}")))
}
