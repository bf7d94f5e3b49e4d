use crate::record;

/// Any value of a DHT record is a status with what was signed, or refused; and a status that was read is the same
/// when it is written and read again.
pub fn record(bytes: &[u8]) {
    let Ok(signed) = record::decode(bytes) else { return };
    assert_eq!([signed.covered, signed.signature].concat(), bytes);
    let again = record::seal(record::encode(&signed.status), signed.signature);
    assert_eq!(record::decode(&again).expect("its own encoding is a status").status, signed.status);
}
