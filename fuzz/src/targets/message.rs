use std::fmt::Debug;

use minicbor::{Decode, Encode};

use crate::{
    protocol::message::{self, Answer, Envelope, Request},
    transport::MAX_MESSAGE,
};

/// Any bytes are a request, an answer, or refused; and what was read is the same when it is written and read again. A
/// request is of the session that stands in it, however it is read.
pub fn message(bytes: &[u8]) {
    check_request(bytes);
    check::<Request>(bytes);
    check::<Answer>(bytes);
}

/// As a server for strangers reads it.
fn check_request(bytes: &[u8]) {
    let (session, request) = message::decode_request(bytes);
    let Ok(request) = request else {
        assert!(message::decode::<Request>(bytes).is_err(), "read without its session only");
        return;
    };
    assert_eq!(message::decode::<Request>(bytes).expect("read with its session"), request);
    let envelope: Envelope<Request> = minicbor::decode(bytes).expect("the whole of what was read");
    assert_eq!(envelope.session, session, "the account is not that of the request");
    let Some(session) = session else { return };
    let again = message::encode_request(session, request.clone());
    if again.len() <= MAX_MESSAGE {
        let (same_session, same) = message::decode_request(&again);
        assert_eq!((same_session, same.expect("its own encoding is a request")), (Some(session), request));
    }
}

fn check<T: Clone + Debug + PartialEq + Encode<()> + for<'b> Decode<'b, ()>>(bytes: &[u8]) {
    let Ok(read) = message::decode::<T>(bytes) else { return };
    let again = message::encode(read.clone());
    // CBOR may be written shorter than we do: a number that fills fewer bytes.
    if again.len() <= MAX_MESSAGE {
        assert_eq!(message::decode::<T>(&again).expect("its own encoding is a message"), read);
    }
}
