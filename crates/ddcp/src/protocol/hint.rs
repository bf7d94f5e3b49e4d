//! Hints: "something is new here", said to repositories that may want to know at once.
//!
//! A hint carries a tag and nothing else, and brings about nothing but a look: what is new is asked for as always. The
//! tag is made of the address of who hints, which only those know who have it as a remote, and of whom it is for. So who
//! has it not as a remote learns nothing from it, and who does not know the address cannot make one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::transport::{Address, RecordId};

/// Names what the tag is for: the address serves other ends too.
const CONTEXT: &str = "ddcp 2026 hint of one repository to another, version 1";

/// Says who hints, to those who know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HintTag([u8; 32]);

impl HintTag {
    /// The tag by which the repository at the address `from` hints the repository `to`.
    #[must_use]
    pub fn new(from: &Address, to: RecordId) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&to.0).update(from.to_string().as_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(super) fn to_bytes(self) -> [u8; 32] {
        self.0
    }
}

/// Whose hints are listened to. Holds one entry per listener, whatever is sent.
#[derive(Debug, Default)]
pub struct Hints {
    listeners: Mutex<HashMap<HintTag, Arc<Notify>>>,
}

impl Hints {
    /// Listens to the hints with `tag` until the listener is dropped. Of two listeners to one tag the later is told.
    #[must_use]
    pub fn listen(self: &Arc<Self>, tag: HintTag) -> HintListener {
        let told = Arc::new(Notify::new());
        self.listeners().insert(tag, told.clone());
        HintListener { hints: self.clone(), tag, told }
    }

    /// Tells who listens, if anybody does. Many hints before they are heard are one.
    pub(super) fn tell(&self, tag: HintTag) {
        if let Some(told) = self.listeners().get(&tag) {
            told.notify_one();
        }
    }

    /// What the mutex guards is consistent after every statement, so a panic elsewhere does not spoil it.
    fn listeners(&self) -> MutexGuard<'_, HashMap<HintTag, Arc<Notify>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears the hints of one repository.
#[derive(Debug)]
pub struct HintListener {
    hints: Arc<Hints>,
    tag: HintTag,
    told: Arc<Notify>,
}

impl HintListener {
    /// Waits for the next hint; one that came since the last call counts.
    pub async fn hinted(&self) {
        self.told.notified().await;
    }
}

impl Drop for HintListener {
    fn drop(&mut self) {
        let mut listeners = self.hints.listeners();
        if listeners.get(&self.tag).is_some_and(|told| Arc::ptr_eq(told, &self.told)) {
            listeners.remove(&self.tag);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn address(secret: u8) -> Address {
        let text = |byte: u8| data_encoding::BASE64URL_NOPAD.encode(&[byte; 32]);
        format!("VLD0:{}:{}", text(1), text(secret)).parse().unwrap()
    }

    #[test]
    fn a_tag_is_of_one_whole_address_for_one_repository() {
        let [one, other] = [3, 4].map(|byte| RecordId([byte; 32]));
        let tag = HintTag::new(&address(2), one);
        assert_eq!(tag, HintTag::new(&address(2), one));
        assert_ne!(tag, HintTag::new(&address(9), one), "who knows the record alone cannot make it");
        assert_ne!(tag, HintTag::new(&address(2), other), "nor can one for whom it was not made use it");
    }

    #[test]
    fn hints_are_heard_once_by_who_listens_now() {
        let hints = Arc::new(Hints::default());
        let [tag, unknown] = [1, 2].map(|byte| HintTag::from_bytes([byte; 32]));
        hints.tell(tag);
        let first = hints.listen(tag);
        assert!(first.hinted().now_or_never().is_none());
        (0..1000).for_each(|_| hints.tell(tag));
        hints.tell(unknown);
        assert!(first.hinted().now_or_never().is_some());
        assert!(first.hinted().now_or_never().is_none(), "many are one");
        let second = hints.listen(tag);
        drop(first);
        hints.tell(tag);
        assert!(second.hinted().now_or_never().is_some(), "the end of an earlier listener is not the later one's");
        drop(second);
        assert!(hints.listeners().is_empty());
    }
}
