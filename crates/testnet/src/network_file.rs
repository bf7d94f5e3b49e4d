use serde::Serialize;

/// The contents of `network.toml`: what a Veilid node needs to join the network. The same table
/// is `[network]` in a repository's config.toml.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct NetworkFile {
    /// The password that keeps this network apart from all others.
    pub(crate) key: String,
    /// Veilid bootstrap records: the node that others ask first.
    pub(crate) bootstrap: Vec<String>,
    /// Off: finding out one's address takes more peers than a small network has.
    pub(crate) detect_address_changes: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_written_as_documented() {
        let file = NetworkFile {
            key: "secret".to_owned(),
            bootstrap: vec!["0|0|VLD0:id|44.0.0.1|T5150,U5150".to_owned()],
            detect_address_changes: false,
        };
        let expected =
            "key = \"secret\"\nbootstrap = [\"0|0|VLD0:id|44.0.0.1|T5150,U5150\"]\ndetect_address_changes = false\n";
        assert_eq!(toml::to_string(&file).unwrap(), expected);
    }
}
