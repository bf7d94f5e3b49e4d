//! The repository's Veilid node: started by whoever needs the network first, gone after a shutdown, and started anew by
//! the next who needs it.

use std::sync::{Mutex as StdMutex, PoisonError};

use tokio::sync::Mutex;

use super::Repository;
use crate::{
    Error,
    config::load_network,
    transport::{
        TransportError,
        veilid::{Node, NodeOptions},
    },
};

/// Where the node is, while one runs.
#[derive(Default)]
pub(super) struct NodeSlot {
    running: StdMutex<Option<Node>>,
    /// Held while the node is started or shut down: a process has one at a time. True while the repository is served:
    /// its node is then one on which others may build.
    lasting: Mutex<bool>,
}

impl NodeSlot {
    /// The node, if one runs.
    pub(super) fn running(&self) -> Option<Node> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, node: Option<Node>) -> Option<Node> {
        std::mem::replace(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner), node)
    }
}

impl Repository {
    /// The repository's Veilid node, started if it does not run.
    ///
    /// # Errors
    /// [`Error::Node`], [`Error::Config`].
    #[doc(hidden)]
    pub async fn node(&self) -> Result<Node, Error> {
        if self.is_offline() {
            return Err(Error::Node(TransportError::Offline("the application has opened it without Veilid".into())));
        }
        let lasting = self.inner.node.lasting.lock().await;
        if let Some(node) = self.inner.node.running() {
            return Ok(node);
        }
        let config = self.config()?;
        let network = match (&self.inner.options.network, &self.inner.options.network_file) {
            (Some(network), _) => Some(network.clone()),
            (None, Some(file)) => Some(load_network(file)?),
            (None, None) => config.network,
        };
        let options = NodeOptions { dir: self.inner.layout.node(), network, lasting: *lasting, upnp: config.upnp };
        let node = Node::start(options).await.map_err(Error::Node)?;
        self.inner.node.put(Some(node.clone()));
        Ok(node)
    }

    /// Has the node, once it is started, be one on which others may build.
    pub(crate) async fn stay(&self) {
        *self.inner.node.lasting.lock().await = true;
    }

    /// Shuts the node down, if it runs. What needs the network afterwards starts another.
    pub async fn shutdown(&self) {
        let mut lasting = self.inner.node.lasting.lock().await;
        *lasting = false;
        if let Some(node) = self.inner.node.put(None) {
            node.shutdown().await;
        }
    }
}
