use std::fmt::Debug;

use minicbor::{Decode, Encode};

use crate::{
    protocol::message::{self, Answer, Request},
    transport::MAX_MESSAGE,
};

/// Any bytes are a request, an answer, or refused; and what was read is the same when it is written and read again.
pub fn message(bytes: &[u8]) {
    check::<Request>(bytes);
    check::<Answer>(bytes);
}

fn check<T: Clone + Debug + PartialEq + Encode<()> + for<'b> Decode<'b, ()>>(bytes: &[u8]) {
    let Ok(read) = message::decode::<T>(bytes) else { return };
    let again = message::encode(read.clone());
    // CBOR may be written shorter than we do: a number that fills fewer bytes.
    if again.len() <= MAX_MESSAGE {
        assert_eq!(message::decode::<T>(&again).expect("its own encoding is a message"), read);
    }
}
