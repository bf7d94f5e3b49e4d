//! Copies of a row's values.

use std::ops::Range;

use rusqlite::types::ValueRef;

/// The values of one row, in two buffers that the next row uses again.
#[derive(Default)]
pub(crate) struct Values {
    slots: Vec<Slot>,
    bytes: Vec<u8>,
}

enum Slot {
    Null,
    Integer(i64),
    Real(f64),
    Text(Range<usize>),
    Blob(Range<usize>),
}

impl Values {
    /// Forgets the values, keeps the buffers.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
        self.bytes.clear();
    }

    /// Bytes of texts and blobs.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn push(&mut self, value: ValueRef<'_>) {
        let slot = match value {
            ValueRef::Null => Slot::Null,
            ValueRef::Integer(i) => Slot::Integer(i),
            ValueRef::Real(r) => Slot::Real(r),
            ValueRef::Text(t) => Slot::Text(self.copy(t)),
            ValueRef::Blob(b) => Slot::Blob(self.copy(b)),
        };
        self.slots.push(slot);
    }

    fn copy(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    /// The `i`th value; none if there are fewer.
    pub(crate) fn get(&self, i: usize) -> Option<ValueRef<'_>> {
        let bytes = |range: &Range<usize>| &self.bytes[range.clone()];
        self.slots.get(i).map(|slot| match slot {
            Slot::Null => ValueRef::Null,
            Slot::Integer(i) => ValueRef::Integer(*i),
            Slot::Real(r) => ValueRef::Real(*r),
            Slot::Text(range) => ValueRef::Text(bytes(range)),
            Slot::Blob(range) => ValueRef::Blob(bytes(range)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_put_in() {
        let rows = [
            vec![ValueRef::Text(b"one"), ValueRef::Null, ValueRef::Blob(b"\0\xff"), ValueRef::Text(b"")],
            vec![ValueRef::Integer(-1), ValueRef::Real(0.5), ValueRef::Blob(b"")],
        ];
        let mut values = Values::default();
        for row in rows {
            values.clear();
            row.iter().for_each(|v| values.push(*v));
            let back = (0..row.len()).map(|i| values.get(i).unwrap()).collect::<Vec<_>>();
            assert_eq!(back, row);
            assert_eq!(values.get(row.len()), None);
        }
    }
}
