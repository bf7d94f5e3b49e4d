use std::{
    collections::BTreeSet,
    io::{self, Read},
};

use arbitrary::{Arbitrary, Unstructured};

use super::pack::{contained, put_uint};
use crate::changeset::{
    BundleEnd, BundleError, BundleHeader, BundleReader, BundleWriter, BundledPack, Change, Cursor, Pack, PackId,
    PackTable, SiteId, Value,
};

const MAGIC: &[u8] = b"DDCPbndl";

/// Any bytes are a bundle that keeps the rules or are refused; the same however few bytes come at a time. What was
/// read is the same when it is written and read again, and refused when it was cut short. Bytes without the magic are
/// taken for the plan of a bundle, since hardly any change of one gets past its hashes.
pub fn bundle(bytes: &[u8]) {
    if bytes.starts_with(MAGIC) {
        check(bytes);
    } else if let Ok(plan) = Plan::arbitrary(&mut Unstructured::new(bytes)) {
        check(&plan.written());
    }
}

/// A bundle whose hashes are right, whatever else is not.
#[derive(Arbitrary, Debug)]
struct Plan {
    header: Header,
    packs: Vec<Entry>,
    end: (Where, Where),
    /// What the end says of the number of packs and changes beyond the truth.
    excess: (u8, u8),
    left_over: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Header {
    Sound { from: (Where, Where), tables: Option<Vec<String>>, without: Option<[u8; 16]> },
    Bytes { version: u8, header: Vec<u8> },
}

/// A number of a cursor: mostly a small one.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Where {
    Small(i8),
    Any(i64),
    Whole,
}

impl Where {
    fn number(self) -> i64 {
        match self {
            Self::Small(number) => number.into(),
            Self::Any(number) => number,
            Self::Whole => i64::MAX,
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Entry {
    from: (Where, Where),
    to: (Where, Where),
    pack: Inner,
    /// What the bundle says of the number of changes beyond the truth.
    excess: u8,
}

#[derive(Arbitrary, Debug)]
enum Inner {
    /// What stands before it, with the change of a version or none.
    Sound {
        change: Option<u8>,
        foreign: bool,
    },
    Body(Vec<u8>),
    Bytes(Vec<u8>),
}

impl Plan {
    fn written(&self) -> Vec<u8> {
        let mut bytes = self.header.written();
        for entry in &self.packs {
            entry.write(&mut bytes);
        }
        bytes.push(0);
        put_cursor(&mut bytes, self.end);
        let changes: u64 = self.packs.iter().map(Entry::claimed).sum();
        put_uint(&mut bytes, self.packs.len() as u64 + u64::from(self.excess.0));
        put_uint(&mut bytes, changes + u64::from(self.excess.1));
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());
        bytes.extend(&self.left_over);
        bytes
    }
}

impl Header {
    fn written(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Sound { from, tables, without } => {
                let header = BundleHeader {
                    source: site(7),
                    version: 3,
                    from: cursor(*from),
                    schema: [9; 32],
                    created: 1_750_000_000_123,
                    tables: tables.clone().map(BTreeSet::from_iter),
                    without: without.map(|bytes| SiteId::from_bytes(&bytes).expect("16 bytes")),
                    signature: None,
                };
                BundleWriter::new(&mut bytes, &header).expect("memory takes every write");
            }
            Self::Bytes { version, header } => {
                bytes.extend(MAGIC);
                put_uint(&mut bytes, u64::from(version % 4));
                put_uint(&mut bytes, header.len() as u64);
                bytes.extend(header);
            }
        }
        bytes
    }
}

impl Entry {
    fn write(&self, out: &mut Vec<u8>) {
        let pack = match &self.pack {
            Inner::Sound { change, foreign } => self.sound(*change, *foreign).encode(),
            Inner::Body(body) => contained(body),
            Inner::Bytes(bytes) => bytes.clone(),
        };
        out.push(1);
        put_uint(out, pack.len() as u64);
        out.extend(PackId::of(&pack).as_bytes());
        put_cursor(out, self.from);
        put_cursor(out, self.to);
        put_uint(out, self.claimed());
        out.extend(pack);
    }

    fn claimed(&self) -> u64 {
        let changes = matches!(self.pack, Inner::Sound { change: Some(_), .. });
        u64::from(changes) + u64::from(self.excess)
    }

    fn sound(&self, version: Option<u8>, foreign: bool) -> Pack {
        let source = site(if foreign { 8 } else { 7 });
        let change = |version: u8| Change {
            table: "note".into(),
            pk: [1, 9, version].as_slice().into(),
            cid: "body".into(),
            val: Value::Integer(version.into()),
            col_version: 1,
            db_version: version.into(),
            site_id: source,
            cl: 1,
            seq: 0,
        };
        let changes: Vec<_> = version.map(change).into_iter().collect();
        let table = || PackTable { name: "note".into(), key_columns: vec!["id".into()] };
        let tables = changes.iter().map(|_| table()).collect();
        Pack { source, from: cursor(self.from), to: cursor(self.to), tables, changes }
    }
}

fn site(byte: u8) -> SiteId {
    SiteId::from_bytes(&[byte; 16]).expect("16 bytes")
}

fn cursor((version, seq): (Where, Where)) -> Cursor {
    Cursor { version: version.number(), seq: seq.number() }
}

fn put_cursor(out: &mut Vec<u8>, at: (Where, Where)) {
    for number in [at.0.number(), at.1.number()] {
        put_uint(out, ((number << 1) ^ (number >> 63)) as u64);
    }
}

/// What a bundle holds.
#[derive(Debug, PartialEq)]
struct Content {
    header: BundleHeader,
    packs: Vec<BundledPack>,
    end: BundleEnd,
}

fn check(bytes: &[u8]) {
    let whole = read(bytes, bytes.len());
    let trickled = read(Trickle(bytes), bytes.len());
    assert_eq!(outcome(&whole), outcome(&trickled), "it depends on how the bytes come");
    let Ok(Content { header, packs, end }) = whole else { return };
    assert_eq!(end.bytes, bytes.len() as u64);
    for cut in [0, bytes.len() / 2, bytes.len() - 33, bytes.len() - 1] {
        assert!(read(&bytes[..cut], cut).is_err(), "cut at {cut} of {} bytes", bytes.len());
    }
    let Ok(decoded) = packs.iter().map(|pack| pack.decode(&header)).collect::<Result<Vec<_>, _>>() else { return };
    let mut writer = BundleWriter::new(Vec::new(), &header).expect("memory takes every write");
    for (pack, entry) in decoded.iter().zip(&packs) {
        assert_eq!((pack.source, pack.from, pack.to), (header.source, entry.from, entry.to));
        assert_eq!(pack.changes.len() as u64, entry.changes);
        writer.add(pack).expect("memory takes every write");
    }
    let (again, _, _) = writer.finish(end.to).expect("memory takes every write");
    let again = read(again.as_slice(), again.len()).expect("its own writing is a bundle");
    assert_eq!((&again.header, again.end.to, again.end.changes), (&header, end.to, end.changes));
    let decoded_again = again.packs.iter().map(|pack| pack.decode(&header).expect("just written"));
    assert!(decoded_again.eq(decoded));
}

/// Reads to the end, and checks on the way that the packs follow each other.
fn read(input: impl Read, length: usize) -> Result<Content, BundleError> {
    let mut reader = BundleReader::open(input)?;
    let header = reader.header().clone();
    let mut packs = Vec::<BundledPack>::new();
    let mut reached = header.from;
    while let Some(pack) = reader.next_pack()? {
        assert!(reached <= pack.from && pack.from < pack.to, "{pack:?} after {reached:?}");
        assert_eq!(pack.number, packs.len() as u64 + 1);
        assert_eq!(PackId::of(&pack.bytes), pack.id);
        assert!(reader.end().is_none() && reader.position() <= length as u64);
        reached = pack.to;
        packs.push(pack);
    }
    let end = reader.end().expect("the last pack was read");
    assert!(reached <= end.to && end.packs == packs.len() as u64);
    assert!(matches!(reader.next_pack(), Ok(None)), "something follows the end");
    Ok(Content { header, packs, end })
}

fn outcome(result: &Result<Content, BundleError>) -> Result<&Content, String> {
    result.as_ref().map_err(ToString::to_string)
}

/// Gives a few bytes at a time.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let few = buffer.len().min(1 + self.0.len() % 7);
        self.0.read(&mut buffer[..few])
    }
}
