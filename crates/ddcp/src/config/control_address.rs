use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// Where, besides its socket, the daemon takes control requests: a port of this machine that no other can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ControlAddress(SocketAddr);

/// A text that is no address to take control requests at.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("control requests cannot be taken at `{text}`: {reason}")]
pub struct ControlAddressError {
    text: String,
    reason: &'static str,
}

impl ControlAddress {
    /// The address and port. Port 0 stands for any that is free.
    #[must_use]
    pub fn socket(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for ControlAddress {
    type Err = ControlAddressError;

    fn from_str(text: &str) -> Result<Self, ControlAddressError> {
        let error = |reason| ControlAddressError { text: text.to_owned(), reason };
        let address: SocketAddr =
            text.parse().map_err(|_| error("expected an IP address and a port, such as 127.0.0.1:4711"))?;
        if !address.ip().is_loopback() {
            return Err(error("other machines could reach it; only 127.0.0.1 and [::1] are allowed"));
        }
        Ok(Self(address))
    }
}

impl TryFrom<String> for ControlAddress {
    type Error = ControlAddressError;

    fn try_from(text: String) -> Result<Self, ControlAddressError> {
        text.parse()
    }
}

impl From<ControlAddress> for String {
    fn from(address: ControlAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_can_be_reached_from() {
        for text in ["127.0.0.1:4711", "127.8.9.10:0", "[::1]:80"] {
            assert_eq!(text.parse::<ControlAddress>().unwrap().to_string(), text);
        }
        for (text, reason) in [
            ("0.0.0.0:4711", "other machines"),
            ("192.168.1.7:4711", "other machines"),
            ("[::]:4711", "other machines"),
            ("[::ffff:127.0.0.1]:4711", "other machines"),
            ("localhost:4711", "expected an IP address and a port"),
            ("127.0.0.1", "expected an IP address and a port"),
            ("4711", "expected an IP address and a port"),
        ] {
            let message = text.parse::<ControlAddress>().unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
    }
}
