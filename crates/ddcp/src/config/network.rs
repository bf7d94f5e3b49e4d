use serde::{Deserialize, Serialize};

/// A private Veilid network: the `[network]` table of `config.toml`, or the whole of the file that
/// `DDCP_NETWORK` names. Without it the public Veilid network is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// The network key: nodes with another one are not understood.
    pub key: String,
    /// Veilid bootstrap records, `"0|0|<node id>|<IPv4>|T5150,U5150"` each. Empty on the node that the
    /// others bootstrap from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bootstrap: Vec<String>,
    /// Where to listen (UDP, TCP and WebSocket), `"host:port"` or `":port"`; Veilid's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// `"name:port"` under which other nodes reach this one, where it cannot find out by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_address: Option<String>,
    /// Whether the node watches for changes of its public address. Small networks must turn it off: finding
    /// out an address takes more peers than they have.
    #[serde(default)]
    pub detect_address_changes: bool,
}
