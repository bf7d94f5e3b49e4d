use std::io::{self, Read};

use proptest::prelude::*;

use super::*;
use crate::changeset::{tests::one_change, wire::put_uint};

fn header() -> BundleHeader {
    BundleHeader {
        source: one_change().source,
        version: 6,
        from: Cursor::whole(3),
        schema: [9; 32],
        created: 1_750_000_000_123,
        tables: None,
        without: None,
        signature: None,
    }
}

/// A pack with the change of version `version`.
fn pack(version: i64) -> Pack {
    let mut pack = one_change();
    (pack.from, pack.to) = (Cursor::whole(version - 1), Cursor::whole(version));
    pack.changes[0].db_version = version;
    pack
}

fn written(header: &BundleHeader, packs: &[Pack], to: Cursor) -> Vec<u8> {
    let mut writer = BundleWriter::new(Vec::new(), header).unwrap();
    packs.iter().for_each(|pack| writer.add(pack).unwrap());
    writer.finish(to).unwrap().0
}

fn bundle() -> Vec<u8> {
    written(&header(), &[pack(4), pack(6)], Cursor::whole(7))
}

/// Everything in a bundle, read to its end.
fn read(input: impl Read) -> Result<(BundleHeader, Vec<Pack>, BundleEnd), BundleError> {
    let mut reader = BundleReader::open(input)?;
    let mut packs = Vec::new();
    while let Some(pack) = reader.next_pack()? {
        packs.push(pack.decode(reader.header())?);
    }
    let end = reader.end().unwrap();
    assert_eq!(reader.next_pack().unwrap(), None);
    Ok((reader.header().clone(), packs, end))
}

fn refused(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

#[test]
fn bundles_survive() {
    let bytes = bundle();
    let end = BundleEnd { to: Cursor::whole(7), packs: 2, changes: 2, bytes: bytes.len() as u64 };
    assert_eq!(read(bytes.as_slice()).unwrap(), (header(), vec![pack(4), pack(6)], end));
    let site = SiteId::from_bytes(b"reader").unwrap();
    let partial = BundleHeader { tables: Some(["notes".into()].into()), without: Some(site), ..header() };
    assert_eq!(read(written(&partial, &[], partial.from).as_slice()).unwrap().0, partial);
}

/// A bundle with room for a signature, signed with these bytes; and what they are to be a signature of.
fn signed(bytes: [u8; 64]) -> (Vec<u8>, Vec<u8>) {
    let header = BundleHeader { signature: Some(BundleSignature::to_come([7; 32], [8; 32])), ..header() };
    let mut writer = BundleWriter::new(Vec::new(), &header).unwrap();
    for version in [4, 6] {
        writer.add(&pack(version)).unwrap();
    }
    let (written, _, unsigned) = writer.finish(Cursor::whole(7)).unwrap();
    let (mut file, unsigned) = (io::Cursor::new(written), unsigned.unwrap());
    unsigned.sign(&bytes, &mut file).unwrap();
    (file.into_inner(), unsigned.text)
}

/// What the signature of a bundle must be of.
fn signed_text(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut reader = BundleReader::open(bytes).unwrap();
    assert_eq!(reader.signed(), None, "before all is read");
    while reader.next_pack().unwrap().is_some() {}
    reader.signed()
}

#[test]
fn a_signature_is_of_everything_but_itself() {
    let (bytes, text) = signed([5; 64]);
    let (read_header, packs, end) = read(bytes.as_slice()).unwrap();
    let signature = BundleSignature { repository: [7; 32], key: [8; 32], bytes: [5; 64] };
    assert_eq!(read_header, BundleHeader { signature: Some(signature), ..header() });
    assert_eq!((packs, end.bytes), (vec![pack(4), pack(6)], bytes.len() as u64));
    assert_eq!(signed_text(&bytes), Some(text.clone()));
    assert_eq!(signed([6; 64]).1, text, "the signature is not part of what is signed");
    assert_eq!(signed_text(&bundle()), None);
    // Another pack, which would be read as well as the one that was signed.
    let other = BundleHeader { signature: Some(signature), ..header() };
    let other = written(&other, &[pack(4), pack(7)], Cursor::whole(7));
    assert_ne!(signed_text(&other), Some(text));
}

#[test]
fn a_signature_that_is_not_last_in_the_header_is_refused() {
    let mut head = BundleHeader { signature: Some(BundleSignature::to_come([7; 32], [8; 32])), ..header() }.encode();
    // A map of one entry more, which nobody knows.
    head[0] += 1;
    head.extend([0x08, 0xf6]);
    let mut bytes = MAGIC.to_vec();
    put_uint(&mut bytes, VERSION);
    put_uint(&mut bytes, head.len() as u64);
    bytes.extend(head);
    assert!(refused(&bytes).contains("not at the end of its header"));
}

#[test]
fn a_bundle_is_complete_for_whom_nothing_was_left_out() {
    let [a, b] = [[1; 16], [2; 16]].map(|bytes| SiteId::from_bytes(&bytes).unwrap());
    assert!(header().is_complete_for(&a));
    let for_a = BundleHeader { without: Some(a), ..header() };
    assert!(for_a.is_complete_for(&a) && !for_a.is_complete_for(&b));
    assert!(!BundleHeader { tables: Some(BTreeSet::new()), ..for_a }.is_complete_for(&a));
}

#[test]
fn every_cut_is_noticed() {
    let bytes = bundle();
    for length in 0..bytes.len() {
        let expected = if length < MAGIC.len() { "no bundle" } else { "ends too early" };
        let error = refused(&bytes[..length]);
        assert!(error.contains(expected), "{length}: {error}");
    }
    let longer = [bytes.as_slice(), b"\0"].concat();
    assert!(refused(&longer).contains("left over"));
}

#[test]
fn packs_out_of_order_are_refused() {
    let wrong = |packs: &[Pack], to| refused(&written(&header(), packs, to));
    assert!(wrong(&[pack(6), pack(4)], Cursor::whole(7)).contains("out of order"));
    assert!(wrong(&[pack(4), pack(4)], Cursor::whole(7)).contains("out of order"));
    assert!(wrong(&[pack(3)], Cursor::whole(7)).contains("out of order"), "before the start");
    assert!(wrong(&[pack(6)], Cursor::whole(5)).contains("not that of its packs"), "behind the end");
}

#[test]
fn packs_that_do_not_belong_here_are_refused() {
    let foreign = BundleHeader { source: SiteId::from_bytes(b"other").unwrap(), ..header() };
    assert!(refused(&written(&foreign, &[pack(4)], Cursor::whole(4))).contains("another database"));
    let restricted = BundleHeader { tables: Some(["other".into()].into()), ..header() };
    assert!(refused(&written(&restricted, &[pack(4)], Cursor::whole(4))).contains("does not name"));
    let broken = Pack { changes: vec![crate::changeset::Change { cl: -1, ..pack(4).changes.remove(0) }], ..pack(4) };
    assert!(refused(&written(&header(), &[broken], Cursor::whole(4))).contains("pack 1 of the bundle: change 0"));
}

#[test]
fn claims_are_not_believed() {
    let start = |version: u64, length: u64| {
        let mut bytes = MAGIC.to_vec();
        put_uint(&mut bytes, version);
        put_uint(&mut bytes, length);
        bytes
    };
    assert!(refused(&start(2, 0)).contains("format version 2"));
    assert!(refused(&start(1, u64::MAX)).contains("too many bytes in its header"));
    // So many bytes are allowed, but do not come, and are not allocated before they do.
    assert!(refused(&start(1, 1 << 20)).contains("ends too early"));
    let garbage = [start(1, 9), vec![0xff; 9]].concat();
    assert!(refused(&garbage).contains("header"));
    assert!(refused(&[MAGIC.as_slice(), &[0xff; 20]].concat()).contains("number is too long"));

    let head = header().encode();
    let with_pack = |length: u64| {
        let mut bytes = [start(1, head.len() as u64), head.clone(), vec![PACK]].concat();
        put_uint(&mut bytes, length);
        [bytes, vec![0; 64]].concat()
    };
    assert!(refused(&with_pack(MAX_PACK + 1)).contains("too many bytes in a pack"));
    let absent = BundleHeader { from: Cursor { version: MAX_VERSION + 1, seq: 0 }, ..header() };
    assert!(refused(&written(&absent, &[], absent.from)).contains("out of range"));
    let long = BundleHeader { tables: Some(["t".repeat(MAX_NAME + 1)].into()), ..header() };
    assert!(refused(&written(&long, &[], long.from)).contains("name is too long"));
    let many = BundleHeader { tables: Some((0..=MAX_TABLES).map(|at| format!("{at:x}")).collect()), ..header() };
    assert!(refused(&written(&many, &[], many.from)).contains("too many tables"));
}

#[test]
fn an_input_that_fails_is_told_from_a_short_one() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the stick was pulled out"))
        }
    }
    let bytes = bundle();
    let error = read(bytes[..40].chain(Broken)).unwrap_err();
    assert_eq!(error.to_string(), "it cannot be read: the stick was pulled out");
}

/// Written by the first program that knew bundles: every later one reads it.
#[test]
fn the_first_version_is_read_for_ever() {
    let (read_header, packs, end) = read(include_bytes!("version-1.bundle").as_slice()).unwrap();
    let alice = SiteId::from_bytes(b"alice").unwrap();
    let header = BundleHeader { tables: Some(["notes".into()].into()), without: Some(alice), ..header() };
    assert_eq!((read_header, packs), (header, vec![pack(4), pack(6)]));
    assert_eq!((end.to, end.packs, end.changes), (Cursor::whole(7), 2, 2));
}

proptest! {
    #[test]
    fn no_altered_byte_is_missed(at in any::<prop::sample::Index>(), bit in 0..8_u32, is_signed: bool) {
        let mut bytes = if is_signed { signed([5; 64]).0 } else { bundle() };
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(read(bytes.as_slice()).is_err(), "byte {at}");
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..500), kept in 0..120_usize) {
        let _ = read([&bundle()[..kept], bytes.as_slice()].concat().as_slice());
    }
}

/// A header may name many tables, and each pack may be of many: each is looked up, not searched for.
#[test]
fn many_tables_are_checked_in_no_more_time_than_it_takes_to_read_them() {
    let names: Vec<String> = (0..60_000).map(|at| format!("{at:x}")).collect();
    let header = BundleHeader { tables: Some(names.iter().cloned().collect()), ..header() };
    let tables = names.into_iter().map(|name| crate::changeset::PackTable { name, key_columns: vec!["id".to_owned()] });
    let mut pack = Pack { tables: tables.collect(), changes: Vec::new(), ..pack(4) };
    let began = std::time::Instant::now();
    assert!(read(&*written(&header, &[pack.clone()], Cursor::whole(4))).is_ok());
    pack.tables[59_999].name = "another".to_owned();
    assert!(refused(&written(&header, &[pack], Cursor::whole(4))).contains("does not name"));
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}
