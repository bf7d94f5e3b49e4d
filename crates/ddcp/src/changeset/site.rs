use std::fmt;

/// Names a database among all databases: 1 to 16 bytes, 16 for every id the engine makes itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId {
    /// Zero after the first `len` bytes, so that the derived comparisons hold.
    bytes: [u8; 16],
    len: u8,
}

/// Bytes that are no site id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a site id has 1 to 16 bytes, not {0}")]
pub struct SiteIdError(pub usize);

impl SiteId {
    /// The id with these bytes.
    ///
    /// # Errors
    /// [`SiteIdError`] when there are none or more than 16.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SiteIdError> {
        if bytes.is_empty() || bytes.len() > 16 {
            return Err(SiteIdError(bytes.len()));
        }
        let mut padded = [0; 16];
        padded[..bytes.len()].copy_from_slice(bytes);
        Ok(Self { bytes: padded, len: bytes.len() as u8 })
    }

    /// The bytes as they are stored in the database.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, self.as_bytes())
    }
}

impl fmt::Debug for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SiteId({self})")
    }
}

/// Writes `bytes` as lower-case hexadecimal digits.
pub(super) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}
