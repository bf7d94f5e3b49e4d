use crate::{
    changeset::{Cursor, PackId},
    database::LeftOut,
    protocol::{ClientError, Fetched, Sink},
};

/// What a fetch brought: checks that it comes in order and undamaged.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) reached: Cursor,
    pub(super) packs: usize,
}

impl Arrived {
    pub(super) fn nothing() -> Self {
        Self { reached: Cursor::ZERO, packs: 0 }
    }
}

impl Sink for Arrived {
    type Error = ClientError;

    async fn take(&mut self, step: Fetched) -> Result<(), ClientError> {
        let to = match step {
            Fetched::Pack(pack, bytes) => {
                assert!(self.reached <= pack.from && pack.from < pack.to, "{pack:?} after {:?}", self.reached);
                assert_eq!(bytes.len() as u64, pack.bytes);
                assert_eq!(*PackId::of(&bytes).as_bytes(), pack.id);
                self.packs += 1;
                pack.to
            }
            Fetched::LeftOut(left_out) => {
                assert!(left_out.first.len() <= LeftOut::MOST);
                self.reached
            }
            Fetched::Reached(end) => end,
        };
        assert!(self.reached <= to, "{to:?} after {:?}", self.reached);
        self.reached = to;
        Ok(())
    }
}
