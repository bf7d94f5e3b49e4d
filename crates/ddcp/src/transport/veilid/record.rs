//! The status in subkey 0 of a repository's record.
//!
//! Layout: the magic `DDCP`, one byte of format version, a CBOR map with numbered fields, and at the end the
//! owner's signature (64 bytes) over all before it. The magic is needed because a value that is read with a
//! wrong secret decrypts to garbage without an error; the signature, because the layers above trust the routes
//! and the announcement.

use minicbor::{Decode, Encode};

/// The record's number of subkeys, which is part of what its address is derived from and can never change.
/// Subkey 0 is the status; the others are for later use. With up to 32 subkeys each may hold 32 KiB.
pub(super) const SUBKEYS: u16 = 16;
/// The subkey of the status.
pub(super) const STATUS_SUBKEY: u32 = 0;
/// The longest announcement in bytes.
pub(super) const MAX_ANNOUNCEMENT: usize = 16 * 1024;

const MAGIC: &[u8; 4] = b"DDCP";
const VERSION: u8 = 1;
const SIGNATURE_BYTES: usize = 64;
const MAX_ROUTES: usize = 8;
/// A route blob with the most hops has 1,205 bytes.
const MAX_ROUTE_BYTES: usize = 1536;

/// What a repository publishes about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(super) struct Status {
    /// When it was published, milliseconds since the Unix epoch.
    #[n(0)]
    pub(super) published: u64,
    /// Private routes to the publisher, each as Veilid's route blob.
    #[n(1)]
    pub(super) routes: Vec<RouteBytes>,
    /// What the layers above announce; opaque here.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub(super) announcement: Vec<u8>,
}

/// How old a status is, among those of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Age {
    /// The sequence number under which the network holds it.
    pub(super) seq: u32,
    /// When it says that it was published.
    pub(super) published: u64,
}

impl Age {
    /// Whether this is an earlier status that somebody shows again after `newest`. One sign alone does not tell: an
    /// owner's clock may be put back, and a network that has lost a record counts from the start.
    pub(super) fn is_replay_after(self, newest: Self) -> bool {
        self.seq < newest.seq && self.published < newest.published
    }
}

/// One route blob, a CBOR byte string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub(super) struct RouteBytes(#[cbor(n(0), with = "minicbor::bytes")] pub(super) Vec<u8>);

/// Why a value is no status.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum RecordError {
    #[error("it is no DDCP status")]
    Foreign,
    #[error("it is a DDCP status of format {0}, and this program reads format {VERSION}")]
    Version(u8),
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// A status with what is needed to check who wrote it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Signed<'a> {
    pub(super) status: Status,
    /// The bytes that the signature covers.
    pub(super) covered: &'a [u8],
    pub(super) signature: &'a [u8],
}

/// The bytes of `status` that are to be signed.
pub(super) fn encode(status: &Status) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.push(VERSION);
    minicbor::encode(status, &mut bytes).expect("writing to memory does not fail");
    bytes
}

/// The value to publish: `covered` (from [`encode`]) and its signature.
pub(super) fn seal(mut covered: Vec<u8>, signature: &[u8]) -> Vec<u8> {
    covered.extend_from_slice(signature);
    covered
}

/// Reads a published value; the signature is left to the caller to check.
pub(super) fn decode(bytes: &[u8]) -> Result<Signed<'_>, RecordError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(RecordError::Foreign)?;
    let (&version, rest) = rest.split_first().ok_or(RecordError::Foreign)?;
    if version != VERSION {
        return Err(RecordError::Version(version));
    }
    let body_length = rest
        .len()
        .checked_sub(SIGNATURE_BYTES)
        .ok_or_else(|| RecordError::Damaged("its signature is missing".to_owned()))?;
    let (body, signature) = rest.split_at(body_length);
    let status: Status = minicbor::decode(body).map_err(|error| RecordError::Damaged(error.to_string()))?;
    check_bounds(&status)?;
    Ok(Signed { status, covered: &bytes[..bytes.len() - SIGNATURE_BYTES], signature })
}

fn check_bounds(status: &Status) -> Result<(), RecordError> {
    if status.routes.len() > MAX_ROUTES || status.routes.iter().any(|route| route.0.len() > MAX_ROUTE_BYTES) {
        return Err(RecordError::Damaged("its routes are too many or too long".to_owned()));
    }
    if status.announcement.len() > MAX_ANNOUNCEMENT {
        return Err(RecordError::Damaged("its announcement is too long".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn statuses() -> impl Strategy<Value = Status> {
        let route = prop::collection::vec(any::<u8>(), 0..MAX_ROUTE_BYTES).prop_map(RouteBytes);
        (any::<u64>(), prop::collection::vec(route, 0..=MAX_ROUTES), prop::collection::vec(any::<u8>(), 0..4096))
            .prop_map(|(published, routes, announcement)| Status { published, routes, announcement })
    }

    proptest! {
        #[test]
        fn statuses_survive(status in statuses(), signature in prop::collection::vec(any::<u8>(), 64)) {
            let covered = encode(&status);
            let value = seal(covered.clone(), &signature);
            let signed = decode(&value).unwrap();
            prop_assert_eq!(signed, Signed { status, covered: &covered, signature: &signature });
        }

        #[test]
        fn garbage_is_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode(&bytes).is_err());
            let _ = decode(&[b"DDCP\x01".as_slice(), &bytes].concat());
        }

        #[test]
        fn truncation_is_noticed(status in statuses(), cut in any::<prop::sample::Index>()) {
            let value = seal(encode(&status), &[9; 64]);
            let cut = cut.index(value.len());
            // Whatever still decodes is not what was signed.
            if let Ok(signed) = decode(&value[..cut]) {
                prop_assert!(signed.covered != encode(&status) || signed.signature != [9; 64]);
            }
        }
    }

    #[test]
    fn a_status_shown_again_is_told_from_a_new_one() {
        let age = |seq, published| Age { seq, published };
        let newest = age(7, 1000);
        assert!(age(6, 900).is_replay_after(newest));
        for honest in [age(7, 1000), age(8, 1100), age(8, 500), age(0, 1100)] {
            assert!(!honest.is_replay_after(newest), "{honest:?}");
        }
    }

    #[test]
    fn the_largest_status_fits_a_subkey() {
        let status = Status {
            published: u64::MAX,
            routes: vec![RouteBytes(vec![255; MAX_ROUTE_BYTES]); MAX_ROUTES],
            announcement: vec![255; MAX_ANNOUNCEMENT],
        };
        assert!(seal(encode(&status), &[0; 64]).len() <= 32 * 1024);
    }

    #[test]
    fn the_format_is_fixed() {
        let status = Status { published: 5, routes: vec![RouteBytes(vec![1, 2])], announcement: vec![3] };
        let expected = [b"DDCP\x01".as_slice(), &[0xa3, 0, 5, 1, 0x81, 0x42, 1, 2, 2, 0x41, 3]].concat();
        assert_eq!(encode(&status), expected);
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let body = [0xa4, 0, 5, 1, 0x80, 2, 0x40, 0x18, 99, 0x63, b'n', b'e', b'w'];
        let value = [b"DDCP\x01".as_slice(), &body, &[0; 64]].concat();
        assert_eq!(decode(&value).unwrap().status, Status { published: 5, ..Status::default() });
    }

    #[test]
    fn other_formats_and_oversized_fields_are_named() {
        let mut value = seal(encode(&Status::default()), &[0; 64]);
        value[4] = 2;
        assert_eq!(decode(&value), Err(RecordError::Version(2)));
        assert_eq!(decode(b"nonsense"), Err(RecordError::Foreign));
        let long = Status { announcement: vec![0; MAX_ANNOUNCEMENT + 1], ..Status::default() };
        assert!(matches!(decode(&seal(encode(&long), &[0; 64])), Err(RecordError::Damaged(_))));
        let many = Status { routes: vec![RouteBytes::default(); MAX_ROUTES + 1], ..Status::default() };
        assert!(matches!(decode(&seal(encode(&many), &[0; 64])), Err(RecordError::Damaged(_))));
    }
}
