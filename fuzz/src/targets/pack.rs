use crate::changeset::{Limits, Pack};

/// Small enough that a bomb is cheap to try, large enough for what the fuzzer makes.
const LIMITS: Limits = Limits { raw_bytes: 4 << 20, changes: 10_000, names: 1_000, memory: 64 << 20 };

const MAGIC: &[u8] = b"DDCPpack";

/// Any bytes are a pack that keeps the rules or are refused, and a pack that was read is the same when it is written
/// and read again. Bytes without the magic are taken for a body, since hardly any change of a compressed one arrives.
pub fn pack(bytes: &[u8]) {
    if bytes.starts_with(MAGIC) {
        check(bytes);
    } else {
        check(&contained(bytes));
    }
}

fn check(encoded: &[u8]) {
    let Ok(pack) = Pack::decode(encoded, &LIMITS) else { return };
    assert!(pack.from <= pack.to);
    let mut reached = pack.from;
    for change in &pack.changes {
        assert!(reached <= change.cursor() && pack.from < change.cursor() && change.cursor() <= pack.to);
        assert!(pack.tables.iter().any(|table| *table.name == *change.table));
        assert_eq!(change.check(), Ok(()));
        reached = change.cursor();
    }
    let again = Pack::decode(&pack.encode(), &LIMITS).expect("its own encoding is a pack");
    assert_eq!(again, pack);
}

/// The container of a body, as `docs/formats.md` has it, in the version that takes any bytes for text.
pub(super) fn contained(body: &[u8]) -> Vec<u8> {
    let mut encoded = MAGIC.to_vec();
    encoded.push(2);
    put_uint(&mut encoded, body.len() as u64);
    encoded.extend(zstd::bulk::compress(body, 1).expect("zstd compresses any bytes"));
    encoded
}

/// Appends a `uint`, as `docs/formats.md` has it.
pub(super) fn put_uint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
