use crate::{
    database::Declared,
    protocol::{decode_definitions, decode_rows, encode_definitions},
};

/// Any bytes are declarations of tables, or refused; what was read is the same when it is written and read again; and
/// to declare it in memory does no harm, whatever it says. Rows of a digest come the same way, and are read or refused.
pub fn definitions(bytes: &[u8]) {
    let _ = decode_rows(bytes);
    let Ok(read) = decode_definitions(bytes) else { return };
    let again = encode_definitions(&read).expect("what was read is not too much");
    assert_eq!(decode_definitions(&again).expect("its own encoding is one"), read);
    let _ = Declared::new(read);
}
