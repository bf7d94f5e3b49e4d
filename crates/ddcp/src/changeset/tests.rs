use super::{wire::*, *};
use proptest::{collection::vec, prelude::*};

/// Texts that SQLite keeps and that are not UTF-8: Latin-1, half a surrogate, cut short, more bytes than needed.
const ODD: &[&[u8]] = &[b"M\xf6mma", b"\xed\xa0\x80", b"\xe2\x82", b"\xc0\x80", b"\xff"];

/// Packs a key the way the engine does.
fn pack_key(values: &[Value]) -> Vec<u8> {
    let mut out = vec![values.len() as u8];
    let put_width = |out: &mut Vec<u8>, kind: u8, value: u64, sized: bool| {
        let bytes = value.to_be_bytes();
        let width = 8 - value.leading_zeros() as usize / 8;
        assert!(!sized || width <= 4);
        out.push((width as u8) << 3 | kind);
        out.extend(&bytes[8 - width..]);
    };
    for value in values {
        match value {
            Value::Null => out.push(5),
            Value::Integer(value) => put_width(&mut out, 1, *value as u64, false),
            Value::Real(value) => {
                out.push(2);
                out.extend(value.to_be_bytes());
            }
            Value::Text(value) => {
                put_width(&mut out, 3, value.len() as u64, true);
                out.extend(value);
            }
            Value::Blob(value) => {
                put_width(&mut out, 4, value.len() as u64, true);
                out.extend(value);
            }
        }
    }
    out
}

fn finite_or_infinite() -> impl Strategy<Value = f64> {
    any::<u64>().prop_map(f64::from_bits).prop_filter("NaN", |value| !value.is_nan())
}

fn key_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::Integer),
        prop::sample::select(vec![0, 1, 127, 128, 255, 256, i64::MAX, i64::MIN, -1]).prop_map(Value::Integer),
        finite_or_infinite().prop_map(Value::Real),
        any::<String>().prop_map(|text| Value::Text(text.into())),
        Just(Value::Text("a\0b|".into())),
        vec(any::<u8>(), 0..20).prop_map(Value::Text),
        prop::sample::select(ODD).prop_map(|text| Value::Text(text.into())),
        vec(any::<u8>(), 0..300).prop_map(Value::Blob),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        key_value(),
        Just(Value::Null),
        prop::sample::select(vec![0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE / 4.0])
            .prop_map(Value::Real),
    ]
}

fn site() -> impl Strategy<Value = SiteId> {
    vec(any::<u8>(), 1..=16).prop_map(|bytes| SiteId::from_bytes(&bytes).unwrap())
}

fn table() -> impl Strategy<Value = PackTable> {
    (any::<String>(), vec(any::<String>(), 1..4)).prop_map(|(name, key_columns)| PackTable { name, key_columns })
}

prop_compose! {
    fn pack()(
        mut tables in vec(table(), 1..5),
        sites in vec(site(), 1..5),
        columns in vec(any::<String>(), 1..6),
        source in site(),
        rows in vec(
            (any::<[prop::sample::Index; 3]>(), vec(key_value(), 4), value(), 0..=MAX_VERSION, 0..=MAX_VERSION,
             0..1000_i64, any::<bool>(), any::<bool>(), 0..i64::MAX, prop::bool::weighted(0.2)),
            0..60,
        ),
        from in 0..1_000_000_i64,
    ) -> Pack {
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        tables.dedup_by(|a, b| a.name == b.name);
        let mut changes: Vec<Change> = Vec::new();
        for ([table, cid, site], key, val, col_version, cl, step, same_version, same_row, seq, of_row) in rows {
            let table = &tables[table.index(tables.len())];
            let previous = changes.last().filter(|previous| same_row && *previous.table == *table.name);
            let pk = previous.map_or_else(|| pack_key(&key[..table.key_columns.len()]).into(), |previous| previous.pk.clone());
            let (version, floor) = changes.last().map_or((from, 0), |last| (last.db_version, last.seq));
            let (db_version, seq) =
                if same_version && version > from { (version, floor.max(seq)) } else { (version + 1 + step, seq) };
            let (cid, val, col_version, cl) = match of_row {
                true => (SENTINEL, Value::Null, cl.max(1), cl.max(1)),
                false => (columns[cid.index(columns.len())].as_str(), val, col_version, (cl | 1).min(MAX_VERSION - 1)),
            };
            changes.push(Change {
                table: table.name.as_str().into(),
                pk,
                cid: cid.into(),
                val,
                col_version,
                db_version,
                site_id: sites[site.index(sites.len())],
                cl,
                seq,
            });
        }
        let to = Cursor::whole(changes.last().map_or(from, |last| last.db_version));
        Pack { source, from: Cursor::whole(from), to, tables, changes }
    }
}

/// `==` takes -0.0 for 0.0.
fn real_bits(pack: &Pack) -> Vec<u64> {
    let real = |change: &Change| match change.val {
        Value::Real(value) => Some(value.to_bits()),
        _ => None,
    };
    pack.changes.iter().filter_map(real).collect()
}

fn small_limits() -> Limits {
    Limits { raw_bytes: 1 << 20, changes: 10_000, names: 100, memory: 16 << 20 }
}

proptest! {
    #[test]
    fn packs_survive(pack in pack()) {
        let encoded = pack.encode();
        let decoded = Pack::decode(&encoded, &Limits::default());
        prop_assert_eq!(decoded.as_ref(), Ok(&pack));
        prop_assert_eq!(real_bits(&decoded.unwrap()), real_bits(&pack));
        prop_assert_eq!(PackId::of(&encoded), PackId::of(&pack.encode()), "the encoding is deterministic");
    }

    /// Releases that read version 1 only can read every pack of which no text is odd.
    #[test]
    fn the_version_is_the_earliest_that_holds_the_texts(pack in pack()) {
        let is_odd = |value: Value| matches!(value, Value::Text(text) if std::str::from_utf8(&text).is_err());
        let keys = pack.changes.iter().flat_map(|change| key_values(&change.pk).unwrap().map(|value| value.unwrap().into()));
        let any_odd = pack.changes.iter().map(|change| change.val.clone()).chain(keys).any(is_odd);
        let mut encoded = pack.encode();
        prop_assert_eq!(encoded[8], 1 + u8::from(any_odd));
        encoded[8] = 1;
        let plain = Pack::decode(&encoded, &Limits::default());
        prop_assert_eq!(plain.err(), any_odd.then_some(PackError::Damaged("a text is not valid UTF-8")));
    }

    #[test]
    fn keys_are_read_as_they_were_packed(values in vec(key_value(), 1..5)) {
        let pk = pack_key(&values);
        let read: Vec<Value> = key_values(&pk).unwrap().map(|value| value.unwrap().into()).collect();
        prop_assert_eq!(read, values);
    }

    #[test]
    fn cut_packs_are_refused(pack in pack(), cut in any::<prop::sample::Index>()) {
        let encoded = pack.encode();
        let cut = cut.index(encoded.len());
        prop_assert!(Pack::decode(&encoded[..cut], &small_limits()).is_err());
    }

    #[test]
    fn what_decodes_from_damaged_bodies_keeps_the_rules(
        pack in pack(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut body = codec::encode_body(&pack);
        for (at, byte) in damage {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if let Ok(pack) = decode::decode_body(&body, &small_limits()) {
            for change in &pack.changes {
                prop_assert!(change.check().is_ok());
                prop_assert!(pack.from < change.cursor() && change.cursor() <= pack.to);
                let table = pack.tables.iter().find(|table| table.name == *change.table).unwrap();
                prop_assert!(check_pk(&change.pk, table.key_columns.len()).is_ok());
            }
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..2000), header in 0..3_usize) {
        let mut encoded = [&b""[..], b"DDCPpack\x01", b"DDCPpack\x02"][header].to_vec();
        encoded.extend(&bytes);
        let _ = Pack::decode(&encoded, &small_limits());
        let _ = decode::decode_body(&bytes, &small_limits());
        let _ = check_pk(&bytes, 2);
    }

    #[test]
    fn integers_survive(unsigned in any::<u64>(), signed in any::<i64>()) {
        let mut out = Vec::new();
        put_uint(&mut out, unsigned);
        put_int(&mut out, signed);
        let mut reader = Reader::new(&out);
        prop_assert_eq!(reader.uint(), Some(unsigned));
        prop_assert_eq!(reader.int(), Some(signed));
        prop_assert!(reader.is_empty());
    }

    #[test]
    fn site_ids_survive(bytes in vec(any::<u8>(), 0..20)) {
        match SiteId::from_bytes(&bytes) {
            Ok(site) => prop_assert_eq!(site.as_bytes(), &bytes[..]),
            Err(error) => prop_assert_eq!(error, SiteIdError(bytes.len())),
        }
    }
}

pub(super) fn one_change() -> Pack {
    let site = SiteId::from_bytes(&[7; 16]).unwrap();
    let change = Change {
        table: "notes".into(),
        pk: pack_key(&[Value::Integer(1)]).into(),
        cid: "body".into(),
        val: Value::Text("milk\0and honey".into()),
        col_version: 1,
        db_version: 5,
        site_id: site,
        cl: 1,
        seq: 0,
    };
    let tables = vec![PackTable { name: "notes".to_owned(), key_columns: vec!["id".to_owned()] }];
    Pack { source: site, from: Cursor::whole(4), to: Cursor::whole(5), tables, changes: vec![change] }
}

/// What decoding says after `edit`.
fn refused(edit: impl FnOnce(&mut Pack)) -> PackError {
    let mut pack = one_change();
    edit(&mut pack);
    Pack::decode(&pack.encode(), &small_limits()).unwrap_err()
}

#[test]
fn changes_that_no_database_makes_are_refused() {
    type Edit = fn(&mut Change);
    let edits: Vec<(&str, Edit)> = vec![
        ("db_version", |change| change.db_version = 0),
        ("db_version", |change| change.db_version = MAX_VERSION + 1),
        ("db_version", |change| change.db_version = i64::MIN),
        ("col_version", |change| change.col_version = -1),
        ("col_version", |change| change.col_version = i64::MAX),
        ("causal length", |change| change.cl = -1),
        ("causal length", |change| change.cl = 0),
        ("two causal lengths", |change| (change.cid, change.val, change.cl) = (SENTINEL.into(), Value::Null, 3)),
        ("two causal lengths", |change| {
            (change.cid, change.val, change.col_version) = (SENTINEL.into(), Value::Null, 0);
        }),
        ("has a value", |change| change.cid = SENTINEL.into()),
        ("has a value", |change| change.cl = 2),
        ("a row that is deleted", |change| (change.cl, change.val) = (2, Value::Null)),
        ("fewest bytes", |change| change.pk = [1, 2 << 3 | 1, 0, 1].as_slice().into()),
        ("fewest bytes", |change| change.pk = [1, 1 << 3 | 1, 0].as_slice().into()),
        ("fewest bytes", |change| change.pk = [1, 2 << 3 | 3, 0, 1, b'x'].as_slice().into()),
        ("unknown type", |change| change.pk = [1, 1 << 3 | 2, 0, 0, 0, 0, 0, 0, 0, 0].as_slice().into()),
        ("causal length", |change| change.cl = MAX_VERSION + 1),
        ("seq", |change| change.seq = -1),
        ("outside", |change| change.db_version = 4),
        ("outside", |change| change.db_version = 6),
        ("not a number", |change| change.val = Value::Real(f64::NAN)),
        ("key columns", |change| change.pk = pack_key(&[Value::Integer(1), Value::Integer(2)]).into()),
        ("key columns", |change| change.pk = [0].as_slice().into()),
        ("unknown type", |change| change.pk = pack_key(&[Value::Null]).into()),
        ("unknown type", |change| change.pk = [1, 9 << 3 | 1, 0, 0, 0, 0, 0, 0, 0, 0, 0].as_slice().into()),
        ("cut short", |change| change.pk = [1, 4 << 3 | 3, 0xff, 0xff, 0xff, 0xff].as_slice().into()),
        ("left over", |change| change.pk = [1, 1, 1].as_slice().into()),
    ];
    for (expected, edit) in edits {
        let error = refused(|pack| edit(&mut pack.changes[0]));
        assert!(error.to_string().contains(expected), "{error} does not mention {expected}");
        assert!(matches!(error, PackError::Change { index: 0, .. }), "{error:?}");
    }
}

/// A trigger that deletes a row before the write that set it off is recorded leaves such cells.
#[test]
fn cells_of_a_deleted_row_come_behind_its_deletion_only() {
    let decoded = |edit: &dyn Fn(&mut Pack)| {
        let mut pack = one_change();
        let cell = Change { val: Value::Null, cl: 2, seq: 5, ..pack.changes.remove(0) };
        let deletion = Change { cid: SENTINEL.into(), col_version: 2, seq: 4, ..cell.clone() };
        pack.changes = vec![deletion, cell.clone(), Change { cid: "title".into(), seq: 6, ..cell }];
        edit(&mut pack);
        Pack::decode(&pack.encode(), &small_limits()).map(|pack| pack.changes.len())
    };
    assert_eq!(decoded(&|_| {}), Ok(3));
    assert_eq!(decoded(&|pack| (pack.from, _) = (Cursor { version: 5, seq: 4 }, pack.changes.remove(0))), Ok(2), "cut");
    let is_refused = |edit: &dyn Fn(&mut Pack)| assert!(decoded(edit).is_err());
    is_refused(&|pack| drop(pack.changes.remove(0)));
    is_refused(&|pack| pack.changes[0].pk = pack_key(&[Value::Integer(2)]).into());
    is_refused(&|pack| (pack.changes[0].cl, pack.changes[0].col_version) = (4, 4));
    is_refused(&|pack| {
        pack.to = Cursor::whole(6);
        pack.changes[1..].iter_mut().for_each(|change| change.db_version = 6);
    });
}

#[test]
fn packs_that_contradict_themselves_are_refused() {
    assert_eq!(refused(|pack| pack.from = Cursor::whole(6)), PackError::Damaged("it ends before it starts"));
    assert_eq!(
        refused(|pack| pack.changes[0].pk = [].as_slice().into()),
        PackError::Damaged("the first key is missing")
    );
    let twice =
        refused(|pack| pack.tables.push(PackTable { name: "other".to_owned(), key_columns: vec!["x".repeat(2049)] }));
    assert!(matches!(twice, PackError::TooLarge { what: "bytes in a name", claimed: 2049, .. }), "{twice:?}");
    let unordered = refused(|pack| {
        pack.to = Cursor::whole(9);
        let mut later = pack.changes[0].clone();
        later.db_version = 7;
        pack.changes.insert(0, later);
    });
    let change = "table notes, key 1, column body".to_owned();
    assert_eq!(unordered, PackError::Change { index: 1, change, reason: "it is out of order" });
}

#[test]
fn foreign_bytes_say_what_they_are() {
    let encoded = one_change().encode();
    assert_eq!(Pack::decode(b"PK\x03\x04", &small_limits()), Err(PackError::NotAPack));
    let mut newer = encoded.clone();
    newer[8] = 3;
    assert_eq!(Pack::decode(&newer, &small_limits()), Err(PackError::Version(3)));
    newer[8] = 0;
    assert_eq!(Pack::decode(&newer, &small_limits()), Err(PackError::Version(0)));
    let mut longer = encoded.clone();
    longer.push(0);
    assert_eq!(Pack::decode(&longer, &small_limits()), Err(PackError::Damaged("bytes are left over")));
}

#[test]
fn claims_are_not_believed() {
    // A body that decompresses to 64 MiB behind a header that admits 100 bytes, and one that claims 1 GB.
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
    for (claim, limits) in [(100, small_limits()), (1_000_000_000, Limits::default())] {
        let mut encoded = b"DDCPpack\x01".to_vec();
        put_uint(&mut encoded, claim);
        encoded.extend(&bomb);
        let damaged = PackError::Damaged("its length is not what it says");
        assert_eq!(Pack::decode(&encoded, &limits), Err(damaged));
    }
    let mut encoded = b"DDCPpack\x01".to_vec();
    put_uint(&mut encoded, u64::MAX);
    let too_large = PackError::TooLarge { what: "bytes", claimed: u64::MAX, limit: Limits::default().raw_bytes };
    assert_eq!(Pack::decode(&encoded, &Limits::default()), Err(too_large));
    // A number of changes that the body is too short for.
    let empty = Pack { changes: Vec::new(), ..one_change() };
    let mut body = codec::encode_body(&empty);
    body.pop();
    put_uint(&mut body, 3_000_000);
    assert_eq!(decode::decode_body(&body, &Limits::default()), Err(PackError::Damaged("it ends too early")));
}

#[test]
fn a_repeated_key_is_held_once() {
    let mut pack = one_change();
    pack.changes[0].pk = pack_key(&[Value::Text("k".repeat(100_000).into())]).into();
    let change = pack.changes[0].clone();
    pack.changes.extend((1..1000).map(|seq| Change { seq, ..change.clone() }));
    let encoded = pack.encode();
    assert!(encoded.len() < 10_000, "{} bytes", encoded.len());
    let decoded = Pack::decode(&encoded, &Limits::default()).unwrap();
    assert_eq!(decoded, pack);
    assert!(decoded.changes.windows(2).all(|pair| std::sync::Arc::ptr_eq(&pair[0].pk, &pair[1].pk)));
}

#[test]
fn large_values_survive() {
    let mut pack = one_change();
    pack.changes[0].val =
        Value::Blob((0..5_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect());
    assert_eq!(Pack::decode(&pack.encode(), &Limits::default()), Ok(pack));
}

/// The example of docs/formats.md: changing these bytes breaks every stored pack and every older peer.
#[test]
fn the_format_is_what_it_was() {
    let mut expected = Vec::new();
    put_bytes(&mut expected, &[7; 16]);
    expected.extend([8, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
    expected.extend([10, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
    expected.extend(b"\x01\x05notes\x01\x02id");
    expected.extend(b"\x01\x04body");
    expected.push(1);
    put_bytes(&mut expected, &[7; 16]);
    expected.push(1); // one change
    expected.extend([0, 3, 1, 9, 1, 0]); // its table, its key of three bytes, its column
    expected.extend(b"\x03\x0emilk\0and honey");
    expected.extend([2, 2, 2, 0, 0]); // col_version 1, one version on, cl 1, seq 0, its site
    assert_eq!(codec::encode_body(&one_change()), expected);
}

/// Packs as programs of format version 1 wrote them, and what they hold. These files never change: what was fetched
/// and what lies in bundles must stay readable, and peers of an earlier version understood.
#[test]
fn packs_of_format_version_1_are_read() {
    let files: [(&[u8], Pack); 3] = [
        (include_bytes!("golden/one-change.pack"), one_change()),
        (include_bytes!("golden/no-changes.pack"), Pack { changes: Vec::new(), ..one_change() }),
        (include_bytes!("golden/all-kinds.pack"), all_kinds()),
    ];
    for (bytes, expected) in files {
        let pack = Pack::decode(bytes, &Limits::default()).unwrap();
        assert_eq!(pack, expected);
        assert_eq!(real_bits(&pack), real_bits(&expected));
    }
}

/// As above, of format version 2.
#[test]
fn packs_of_format_version_2_are_read() {
    let bytes = include_bytes!("golden/odd-text.pack");
    assert_eq!(bytes[..9], *b"DDCPpack\x02");
    assert_eq!(Pack::decode(bytes, &Limits::default()), Ok(odd_text()));
}

/// A pack with text that is not UTF-8, in a key and in a value.
fn odd_text() -> Pack {
    let mut pack = one_change();
    pack.changes = ODD
        .iter()
        .zip(0..)
        .map(|(text, seq)| Change {
            pk: pack_key(&[Value::Text(text.to_vec())]).into(),
            val: Value::Text([b"value ", *text].concat()),
            seq,
            ..pack.changes[0].clone()
        })
        .collect();
    pack
}

/// Every kind of value and key, several tables and sites, a repeated key, a version cut in the middle.
fn all_kinds() -> Pack {
    let (me, other) = (SiteId::from_bytes(&[0xab; 16]).unwrap(), SiteId::from_bytes(&[1]).unwrap());
    let values = [
        Value::Null,
        Value::Integer(i64::MIN),
        Value::Integer(i64::MAX),
        Value::Real(-0.0),
        Value::Real(f64::INFINITY),
        Value::Real(f64::MIN_POSITIVE / 4.0),
        Value::Text(Vec::new()),
        Value::Text("Zürich\0\u{1f9c0}".into()),
        Value::Blob(vec![]),
        Value::Blob((0..=255).collect()),
    ];
    let keys = [
        pack_key(&[Value::Integer(-1), Value::Text("k".into())]),
        pack_key(&[Value::Real(1.5), Value::Blob(vec![0, 255])]),
    ];
    let mut changes: Vec<Change> = (0..)
        .zip(values)
        .map(|(n, val)| Change {
            table: "t \"quoted\"".into(),
            pk: keys[usize::from(n >= 5)].as_slice().into(),
            cid: ["a", "b", "ç"][n as usize % 3].into(),
            val,
            col_version: 1 << n,
            db_version: 7 + n / 4,
            site_id: if n % 2 == 0 { me } else { other },
            cl: 1 + 2 * n,
            seq: n % 4,
        })
        .collect();
    changes.push(Change {
        table: "u".into(),
        pk: pack_key(&[Value::Integer(i64::MIN)]).into(),
        cid: SENTINEL.into(),
        val: Value::Null,
        col_version: 2,
        db_version: MAX_VERSION,
        site_id: other,
        cl: 2,
        seq: i64::MAX - 1,
    });
    let table = |name: &str, keys: &[&str]| PackTable {
        name: name.to_owned(),
        key_columns: keys.iter().map(|key| (*key).to_owned()).collect(),
    };
    Pack {
        source: me,
        from: Cursor { version: 6, seq: 3 },
        to: Cursor { version: MAX_VERSION, seq: i64::MAX - 1 },
        tables: vec![table("t \"quoted\"", &["x", "y"]), table("u", &["id"])],
        changes,
    }
}

/// What is made of a pack, as far as it can be counted from outside.
fn memory_made(pack: &Pack) -> usize {
    let names = |table: &PackTable| {
        let columns: usize = table.key_columns.iter().map(|name| size_of::<String>() + name.capacity()).sum();
        size_of::<PackTable>() + table.name.capacity() + columns
    };
    let mut previous: *const u8 = std::ptr::null();
    let mut of_change = |change: &Change| {
        let key = if change.pk.as_ptr() == previous { 0 } else { change.pk.len() + 16 };
        previous = change.pk.as_ptr();
        let value = match &change.val {
            Value::Text(bytes) | Value::Blob(bytes) => bytes.capacity(),
            _ => 0,
        };
        size_of::<Change>() + key + value
    };
    pack.tables.iter().map(names).sum::<usize>() + pack.changes.iter().map(&mut of_change).sum::<usize>()
}

proptest! {
    /// A pack is refused or what is made of it stays within the limit, and looking at it finds the same as reading it.
    #[test]
    fn what_is_made_of_a_pack_is_within_the_limit(pack in pack(), memory in 0..20_000_usize) {
        let encoded = pack.encode();
        let limits = Limits { memory, ..small_limits() };
        let decoded = Pack::decode(&encoded, &limits);
        match &decoded {
            Ok(decoded) => prop_assert!(memory_made(decoded) <= memory, "{} of {memory}", memory_made(decoded)),
            Err(error) => {
                prop_assert!(matches!(error, PackError::TooLarge { what: "bytes of memory", .. }), "{error:?}");
            }
        }
        let mut seen = Vec::new();
        let looked_at = Pack::inspect(&encoded, &limits, |change| seen.push(change.clone()));
        let looked_at = looked_at.map(|(head, count)| {
            assert_eq!((head.changes.len(), count), (0, seen.len()));
            Pack { changes: seen, ..head }
        });
        prop_assert_eq!(looked_at, decoded);
    }
}

/// The worst that fits in few bytes, of each dictionary and each column: what it would become is counted before it is
/// made.
#[test]
fn bodies_that_become_much_more_than_they_are_are_refused() {
    let tables = |tables: usize, keys: usize| {
        let mut body = encoded_head();
        put_uint(&mut body, tables as u64);
        for table in 0..tables {
            put_bytes(&mut body, format!("{table}").as_bytes());
            put_uint(&mut body, keys as u64);
            body.extend(vec![0; keys]);
        }
        [body, vec![0, 0, 0]].concat()
    };
    const TWO: [&[u8]; 2] = [&[1, 9, 1], &[1, 9, 2]];
    let limits = Limits::default();
    let refused = |body: &[u8], limits: &Limits| decode::decode_body(body, limits).unwrap_err();
    assert_eq!(
        refused(&tables(1, 256), &limits),
        PackError::TooLarge { what: "key columns", claimed: 256, limit: 255 }
    );
    assert!(decode::decode_body(&tables(1, 255), &limits).is_ok());
    let few = Limits { memory: 1 << 20, ..limits };
    let is_too_much = |body: &[u8]| matches!(refused(body, &few), PackError::TooLarge { what: "bytes of memory", .. });
    assert!(is_too_much(&tables(200, 255)), "names of keys");
    assert!(is_too_much(&tables(20_000, 0)), "tables");
    let names = |names: usize, name: &[u8], before: usize| {
        let mut body = [encoded_head(), vec![0; 1 + before]].concat();
        put_uint(&mut body, names as u64);
        (0..names).for_each(|_| put_bytes(&mut body, name));
        [body, vec![0; 2 - before]].concat()
    };
    assert!(is_too_much(&names(60_000, b"", 0)), "columns");
    assert!(is_too_much(&names(65_000, b"s", 1)), "sites");
    let change = |count: usize, key: fn(usize) -> &'static [u8], val: Value| {
        let mut pack = one_change();
        pack.changes[0].val = val;
        let changes = (0..count).map(|seq| Change {
            pk: key(seq).into(),
            seq: i64::try_from(seq).unwrap(),
            ..pack.changes[0].clone()
        });
        pack.changes = changes.collect();
        codec::encode_body(&pack)
    };
    let fits = (1 << 20) / size_of::<Change>();
    assert!(is_too_much(&change(fits, |_| TWO[0], Value::Null)), "changes");
    assert!(is_too_much(&change(fits * 9 / 10, |at| TWO[at % 2], Value::Null)), "keys");
    assert!(is_too_much(&change(fits * 9 / 10, |_| TWO[0], Value::Text(b"x".to_vec()))), "values");
    assert!(decode::decode_body(&change(fits * 9 / 10, |_| TWO[0], Value::Null), &few).is_ok());
}

/// Source and range of a body.
fn encoded_head() -> Vec<u8> {
    let mut body = Vec::new();
    put_bytes(&mut body, &[7; 16]);
    [0, 0, 2, 0].iter().for_each(|number| put_uint(&mut body, *number));
    body
}
