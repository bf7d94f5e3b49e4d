use std::sync::Arc;

use super::*;
use crate::changeset::{Change, Cursor, Pack, PackTable, Value};

fn pack(version: i64) -> Pack {
    let source = SiteId::from_bytes(&[9; 16]).unwrap();
    let change = Change {
        table: "t".into(),
        // One column, an integer of one byte.
        pk: Arc::from([1, 9, 7].as_slice()),
        cid: "x".into(),
        val: Value::Integer(version),
        col_version: 1,
        db_version: version,
        site_id: source,
        cl: 1,
        seq: 0,
    };
    let table = PackTable { name: "t".to_owned(), key_columns: vec!["id".to_owned()] };
    Pack { source, from: Cursor::ZERO, to: Cursor::whole(version), tables: vec![table], changes: vec![change] }
}

#[test]
fn sound_packs_are_taken_over_and_others_left() {
    let dir = tempfile::tempdir().unwrap();
    let site = SiteId::from_bytes(&[1; 16]).unwrap();
    let [old, new] = ["old.db", "new.db"].map(|name| dir.path().join(name));
    let mut state = State::open(&old).unwrap();
    for version in 1..=3 {
        let kept = Kept { site: &site, pack: &pack(version), cause: Cause::Schema, reasons: "no table", schema: None };
        state.keep_waiting(&[kept]).unwrap();
    }
    state.store(&site, Cursor::ZERO, Cursor::whole(4), Some((&pack(4).encode(), 1))).unwrap();
    state.store(&site, Cursor::whole(4), Cursor::whole(5), Some((b"no pack", 1))).unwrap();
    state.store(&site, Cursor::whole(5), Cursor::whole(9), None).unwrap();
    state
        .write(|transaction| {
            transaction.execute("UPDATE waiting SET pack = x'00' WHERE id = 1", [])?;
            transaction.execute("UPDATE waiting SET site_id = x'' WHERE id = 2", [])
        })
        .unwrap();
    drop(state);

    let mut state = State::open(&new).unwrap();
    let old = State::look_at_damaged(&old).unwrap();
    assert_eq!(state.salvage(&old).unwrap(), 3);
    assert_eq!(state.salvage(&old).unwrap(), 3, "which is the same");
    let waiting = |site: &SiteId| {
        let ids = state.waiting(Some(site)).unwrap().into_iter().map(|waiting| waiting.id);
        ids.map(|id| state.waiting_pack(id).unwrap().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(waiting(&site), [pack(3).encode(), pack(4).encode()]);
    assert_eq!(waiting(&SiteId::from_bytes(&[9; 16]).unwrap()), [pack(2).encode()], "the pack says whose it is");
}
