use rusqlite::params;

use super::{contact::Contact, *};
use crate::{
    changeset::{Change, Limits, Pack, PackTable, Value},
    transport::Address,
};

fn state() -> (tempfile::TempDir, State) {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(&dir.path().join("state.db")).unwrap();
    (dir, state)
}

fn site(byte: u8) -> SiteId {
    SiteId::from_bytes(&[byte; 16]).unwrap()
}

fn at(version: i64) -> Cursor {
    Cursor { version, seq: 0 }
}

/// Changes of one row each.
fn pack(values: &[&str]) -> Pack {
    let change = |(seq, value): (usize, &&str)| Change {
        table: "a".into(),
        pk: [1, 0b1001, seq as u8 + 1].into(),
        cid: "x".into(),
        val: Value::Text(value.as_bytes().to_vec()),
        col_version: 1,
        db_version: 1,
        site_id: site(9),
        cl: 1,
        seq: seq as i64,
    };
    let tables = vec![PackTable { name: "a".to_owned(), key_columns: vec!["id".to_owned()] }];
    let changes = values.iter().enumerate().map(change).collect();
    Pack { source: site(9), from: at(0), to: Cursor::whole(1), tables, changes }
}

fn keep(state: &mut State, of: u8, pack: &Pack, cause: Cause, reasons: &str) {
    state.keep_waiting(&[Kept { site: &site(of), pack, cause, reasons, schema: None }]).unwrap();
}

#[test]
fn the_inbox_is_a_queue_per_site_and_survives_reopening() {
    let (dir, mut state) = state();
    state.store(&site(1), at(0), at(3), Some((b"one", 2))).unwrap();
    state.store(&site(2), at(0), at(9), Some((b"other", 5))).unwrap();
    state.store(&site(1), at(3), at(4), Some((b"two", 1))).unwrap();
    drop(state);
    let mut state = State::open(&dir.path().join("state.db")).unwrap();
    assert_eq!(state.fetched(&site(1), at(0)).unwrap(), at(4));
    assert_eq!(state.inbox_changes(&site(1)).unwrap(), 3);
    let first = state.next_stretch(&site(1)).unwrap().unwrap();
    assert_eq!((first.from, first.to, first.pack.as_deref()), (at(0), at(3), Some(&b"one"[..])));
    state.remove_stretch(first.id).unwrap();
    assert_eq!(state.next_stretch(&site(1)).unwrap().unwrap().pack.as_deref(), Some(&b"two"[..]));
    assert_eq!(state.inbox_sites().unwrap(), [site(1), site(2)]);
}

#[test]
fn a_file_of_an_earlier_program_is_brought_up_to_date_and_one_of_a_later_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let first = Connection::open(&path).unwrap();
    first.execute_batch(TABLES).unwrap();
    let contact = "INSERT INTO contact (remote, address, site_id, schema) VALUES ('a', '/a.db', ?, ?)";
    first.execute(contact, params![site(1).as_bytes(), b"schema"]).unwrap();
    first.pragma_update(None, "user_version", 1).unwrap();
    drop(first);
    let mut state = State::open(&path).unwrap();
    assert!(state.log(None, 1).unwrap().is_empty());
    assert_eq!(state.read_on(&site(1), at(7), b"schema").unwrap(), at(7), "the schema it was read with is kept");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = State::open(&path).err().unwrap().to_string();
    assert!(error.contains("made by a later ddcp (layout 99"), "{error}");
}

#[test]
fn a_gap_after_what_was_merged_empties_the_inbox() {
    let (_dir, mut state) = state();
    state.store(&site(1), at(5), at(8), Some((b"pack", 1))).unwrap();
    assert_eq!(state.fetched(&site(1), at(5)).unwrap(), at(8));
    assert_eq!(state.fetched(&site(1), at(2)).unwrap(), at(2));
    assert_eq!(state.next_stretch(&site(1)).unwrap(), None);
}

#[test]
fn empty_stretches_become_one() {
    let (_dir, mut state) = state();
    state.store(&site(1), at(0), at(3), None).unwrap();
    state.store(&site(1), at(3), at(7), None).unwrap();
    state.store(&site(1), at(7), at(8), Some((b"pack", 1))).unwrap();
    state.store(&site(1), at(8), at(9), None).unwrap();
    let first = state.next_stretch(&site(1)).unwrap().unwrap();
    assert_eq!((first.from, first.to, first.pack), (at(0), at(7), None));
    assert_eq!(state.fetched(&site(1), at(0)).unwrap(), at(9));
}

#[test]
fn what_waits_is_kept_once() {
    let (_dir, mut state) = state();
    keep(&mut state, 1, &pack(&["one", "two"]), Cause::Schema, "no table a");
    keep(&mut state, 1, &pack(&["one", "two"]), Cause::Schema, "no table a\nno table b");
    assert_eq!(state.waiting_changes(&site(1)).unwrap(), (2, vec!["no table a".to_owned(), "no table b".to_owned()]));
    keep(&mut state, 2, &pack(&["one", "two"]), Cause::Schema, "no table a");
    keep(&mut state, 1, &pack(&["one"]), Cause::Schema, "no table a");
    let waiting = state.waiting(Some(&site(1))).unwrap();
    assert_eq!(waiting.iter().map(|waiting| waiting.changes).collect::<Vec<_>>(), [2, 1]);
    let kept = Pack::decode(&state.waiting_pack(waiting[0].id).unwrap().unwrap(), &Limits::of_stored()).unwrap();
    assert_eq!(kept, pack(&["one", "two"]));
    let ids: Vec<i64> = waiting.iter().map(|waiting| waiting.id).collect();
    state.replace_waiting(&ids, &ids[1..]).unwrap();
    assert_eq!(state.waiting_changes(&site(1)).unwrap().0, 1, "what is left of them stays");
    state.replace_waiting(&ids, &[]).unwrap();
    assert_eq!((state.waiting_changes(&site(1)).unwrap().0, state.waiting(None).unwrap().len()), (0, 1));
}

#[test]
fn what_waits_is_due_when_what_it_waits_for_may_have_come() {
    let (_dir, mut state) = state();
    let due = |state: &State, schema, data| state.waiting_due(&site(1), &[schema; 32], &[data; 32]).unwrap().len();
    let (missing, refused) = (pack(&["missing"]), pack(&["refused"]));
    let schema = Some(&[1; 32]);
    for (pack, cause) in [(&missing, Cause::Schema), (&refused, Cause::Data)] {
        state.keep_waiting(&[Kept { site: &site(1), pack, cause, reasons: "no", schema }]).unwrap();
    }
    assert_eq!((due(&state, 1, 1), due(&state, 2, 1)), (1, 2), "with which data was not noted");
    state.note_tried(&site(1), &[1; 32], &[1; 32]).unwrap();
    assert_eq!((due(&state, 1, 1), due(&state, 1, 2), due(&state, 2, 1)), (0, 1, 2));
    state.keep_waiting(&[Kept { site: &site(1), pack: &refused, cause: Cause::Data, reasons: "no", schema }]).unwrap();
    assert_eq!(due(&state, 1, 1), 1, "what is kept anew was tried with other data, perhaps");
    state.note_tried(&site(1), &[1; 32], &[1; 32]).unwrap();
    state.forget_tries(Some(&site(2))).unwrap();
    assert_eq!(due(&state, 1, 1), 0);
    state.forget_tries(None).unwrap();
    assert_eq!(due(&state, 1, 1), 2);
}

#[test]
fn a_contact_belongs_to_an_address() {
    let (_dir, mut state) = state();
    let (old, new) = (Address::Path("old.db".into()), Address::Path("new.db".into()));
    state.note_answer("bob", &old, &site(1), 7, 1000).unwrap();
    state.note_error("bob", &old, "gone", 7).unwrap();
    let contact = state.contact("bob", &old).unwrap();
    assert_eq!((contact.db_version, contact.last_error.as_deref()), (Some(7), Some("gone")));
    assert_eq!(state.contact("bob", &new).unwrap(), Contact::default());
    state.note_error("bob", &new, "never there", 8).unwrap();
    assert_eq!(state.contact("bob", &new).unwrap().site_id, None);
    state.copy_remote("bob", "rob").unwrap();
    state.retain_remotes(&["eve", "rob"]).unwrap();
    assert_eq!(state.contact("rob", &new).unwrap().last_error.as_deref(), Some("never there"));
    assert_eq!(state.contact("bob", &new).unwrap(), Contact::default());
    state.retain_remotes(&[]).unwrap();
    assert_eq!(state.contact("rob", &new).unwrap(), Contact::default());
}

#[test]
fn what_is_put_aside_waits_under_the_site_that_the_remote_has_now() {
    let (_dir, mut state) = state();
    let address = Address::Path("bob.db".into());
    state.note_answer("bob", &address, &site(1), 9, 1000).unwrap();
    let (one, two, other) = (pack(&["one", "1"]), pack(&["two", "2", "zwei"]), pack(&["other"]));
    state.store(&site(1), at(0), at(3), Some((&one.encode(), 2))).unwrap();
    state.store(&site(1), at(3), at(5), None).unwrap();
    keep(&mut state, 1, &two, Cause::Schema, "no table a");
    state.store(&site(3), at(0), at(1), Some((&other.encode(), 1))).unwrap();

    state.note_answer("bob", &address, &site(1), 9, 1001).unwrap();
    assert_eq!(state.inbox_changes(&site(1)).unwrap(), 2, "nothing is new");
    state.note_answer("bob", &address, &site(2), 1, 1002).unwrap();
    assert_eq!(state.fetched(&site(2), at(0)).unwrap(), at(0));
    assert_eq!((state.inbox_sites().unwrap(), state.waiting_sites().unwrap()), (vec![site(3)], vec![site(2)]));
    assert_eq!(state.waiting_changes(&site(2)).unwrap().0, 5);
    let reasons: usize = state.waiting(Some(&site(2))).unwrap().iter().map(|waiting| waiting.reasons.len()).sum();
    let bytes = (one.encode().len() + two.encode().len() + reasons) as u64 + 2 * waiting::PLACE_BYTES;
    assert_eq!(state.held(&site(2)).unwrap(), bytes, "it is held still");

    state.put_inbox_aside().unwrap();
    assert_eq!(state.inbox_sites().unwrap(), []);
    let waiting = state.waiting(Some(&site(3))).unwrap();
    let kept = state.waiting_pack(waiting[0].id).unwrap().unwrap();
    assert_eq!((kept, state.waiting_changes(&site(3)).unwrap().0), (other.encode(), 1));
}

#[test]
fn nobody_is_waited_for_who_is_writing() {
    let (dir, mut state) = state();
    state.note_error("a", &Address::Path("/a.db".into()), "gone", 7).unwrap();
    let path = dir.path().join("state.db");
    let writer = Connection::open(&path).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE; DELETE FROM contact").unwrap();
    let began = std::time::Instant::now();
    let contact = State::open(&path).unwrap().contact("a", &Address::Path("/a.db".into())).unwrap();
    assert_eq!(contact.last_error.as_deref(), Some("gone"));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[test]
fn what_is_wrong_with_a_file_is_told() {
    let (dir, state) = state();
    let path = dir.path().join("state.db");
    drop(state);
    assert_eq!(State::damage(&path).unwrap(), None);
    for sql in [
        "INSERT INTO log (at, took, remote, event) VALUES (1, 1, 'a', 'no JSON')",
        "DELETE FROM log; INSERT INTO origin_schema VALUES (x'', 0, x'')",
        "DELETE FROM origin_schema; ALTER TABLE inbox RENAME COLUMN pack TO packs",
        "ALTER TABLE inbox RENAME COLUMN packs TO pack; DROP TABLE home",
        "PRAGMA user_version = -1",
    ] {
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        assert!(State::damage(&path).unwrap().is_some(), "{sql}");
    }
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(State::damage(&path).is_err(), "that of a later program is none");
}

#[test]
fn many_reasons_are_counted() {
    let (_dir, mut state) = state();
    for number in 0..200 {
        let text = number.to_string();
        keep(&mut state, 1, &pack(&[&text]), Cause::Data, &format!("reason {number:03}\n{}", "x".repeat(5000)));
    }
    let (changes, reasons) = state.waiting_changes(&site(1)).unwrap();
    assert_eq!((changes, reasons.len()), (200, 51));
    assert_eq!((reasons[0].as_str(), reasons[50].as_str()), ("reason 000", "and 151 more reasons"));
    assert!(state.waiting(None).unwrap().iter().all(|waiting| waiting.reasons.len() <= 2000));
    assert_eq!(state.waiting_places(&site(1)).unwrap(), 200);
}

/// A pack of zeros counts for what becomes of it, wherever it lies.
#[test]
fn what_becomes_much_counts_for_much() {
    let (_dir, mut state) = state();
    let mut large = pack(&["one"]);
    large.changes[0].val = Value::Blob(vec![0; 1 << 20]);
    let (encoded, before) = (large.encode(), state.held(&site(1)).unwrap());
    assert!(encoded.len() < 1000 && before == 0);
    state.store(&site(1), at(0), at(1), Some((&encoded, 1))).unwrap();
    state.store(&site(1), at(1), at(2), None).unwrap();
    let held = state.held(&site(1)).unwrap();
    assert!((1 << 16..1 << 17).contains(&held), "{held}");
    keep(&mut state, 1, &large, Cause::Data, "no");
    assert_eq!(state.held(&site(1)).unwrap(), 2 * held + 2);
}
