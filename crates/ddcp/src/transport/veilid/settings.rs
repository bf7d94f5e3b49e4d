use std::path::Path;

use veilid_core::{
    VEILID_CAPABILITY_DHT, VEILID_CAPABILITY_RELAY, VEILID_CAPABILITY_ROUTE, VEILID_CAPABILITY_SIGNAL,
    VeilidCapability, VeilidConfig,
};

use super::super::TransportError;
use crate::config::NetworkConfig;

/// What other nodes come to rely on: that it passes on what goes over their routes, that they are reached through it, that
/// it keeps records. A node that runs for one command would let them down a moment later, and spend a transfer's link
/// on theirs.
const FOR_OTHERS: [VeilidCapability; 4] =
    [VEILID_CAPABILITY_ROUTE, VEILID_CAPABILITY_RELAY, VEILID_CAPABILITY_SIGNAL, VEILID_CAPABILITY_DHT];

/// The node's settings: all stores under `dir`; a private network if one is given, the public one otherwise.
/// Unless it is `lasting`, others do not build on it. Routers are asked to let others in, only where `upnp` says so.
pub(super) fn veilid_config(
    dir: &Path,
    network: Option<&NetworkConfig>,
    lasting: bool,
    upnp: bool,
) -> Result<VeilidConfig, TransportError> {
    let folder = dir.to_str().ok_or_else(|| TransportError::Store {
        path: dir.to_owned(),
        reason: "the node's folder must have a name in UTF-8".to_owned(),
    })?;
    let mut config = VeilidConfig::new("ddcp", "", "", Some(folder), Some(folder));
    // No keyring service runs on servers; the folder is the owner's alone instead.
    config.protected_store.allow_insecure_fallback = true;
    config.protected_store.always_use_insecure_storage = true;
    config.network.upnp = upnp;
    if !lasting {
        config.capabilities.disable.extend(FOR_OTHERS);
    }
    if let Some(network) = network {
        set_network(&mut config, network);
    }
    Ok(config)
}

fn set_network(config: &mut VeilidConfig, settings: &NetworkConfig) {
    let network = &mut config.network;
    network.network_key_password = Some(settings.key.clone());
    network.routing_table.bootstrap.clear();
    network.routing_table.bootstrap_keys.clear();
    network.routing_table.bootstrap_records.clone_from(&settings.bootstrap);
    network.detect_address_changes = Some(settings.detect_address_changes);

    let protocol = &mut network.protocol;
    if let Some(listen) = &settings.listen {
        for address in
            [&mut protocol.udp.listen_address, &mut protocol.tcp.listen_address, &mut protocol.ws.listen_address]
        {
            address.clone_from(listen);
        }
    }
    if let Some(public) = &settings.public_address {
        protocol.udp.public_address = Some(public.clone());
        protocol.tcp.public_address = Some(public.clone());
        protocol.ws.url = Some(format!("ws://{public}/ws"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_network_replaces_the_public_one() {
        let public = veilid_config(Path::new("/tmp/node"), None, true, false).unwrap();
        assert!(public.network.network_key_password.is_none());
        assert!(!public.network.routing_table.bootstrap.is_empty());
        assert!(public.table_store.directory.starts_with("/tmp/node/"));
        assert!(public.protected_store.directory.starts_with("/tmp/node/"));

        assert!(public.capabilities.disable.is_empty());
        assert!(!public.network.upnp);
        let passing = veilid_config(Path::new("/tmp/node"), None, false, true).unwrap();
        assert!(passing.network.upnp, "who asks for it has it");
        assert!(passing.capabilities.disable.contains(&VEILID_CAPABILITY_ROUTE));

        let settings = NetworkConfig {
            key: "secret".to_owned(),
            bootstrap: vec!["0|0|VLD0:x|44.0.0.1|T5150,U5150".to_owned()],
            listen: Some("h1.test:5150".to_owned()),
            public_address: Some("h1.test:5151".to_owned()),
            detect_address_changes: false,
        };
        let private = veilid_config(Path::new("/tmp/node"), Some(&settings), true, false).unwrap().network;
        assert_eq!(private.network_key_password.as_deref(), Some("secret"));
        assert!(private.routing_table.bootstrap.is_empty() && private.routing_table.bootstrap_keys.is_empty());
        assert_eq!(private.routing_table.bootstrap_records, settings.bootstrap);
        assert_eq!(private.detect_address_changes, Some(false));
        assert_eq!(private.protocol.tcp.listen_address, "h1.test:5150");
        assert_eq!(private.protocol.ws.url.as_deref(), Some("ws://h1.test:5151/ws"));
        assert!(!private.upnp);
    }
}
