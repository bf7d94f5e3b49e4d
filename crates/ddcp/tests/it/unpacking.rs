//! Files and schemas of others that are small and become large: what becomes of them is bounded, whatever they claim.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::support::{Repo, Run, World};

const MIB: u64 = 1 << 20;

/// The program with so many bytes for everything that it has mapped.
fn within(repo: &Repo, bytes: u64, arguments: &[&str]) -> Run {
    let program = repo.command();
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(format!("ulimit -v {} && exec \"$0\" \"$@\"", bytes / 1024));
    command.arg(program.get_program()).args(program.get_args()).args(arguments);
    command.env_clear().envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(repo.root()).stdin(Stdio::null());
    repo.run_command(command)
}

fn uint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes(out: &mut Vec<u8>, content: &[u8]) {
    uint(out, content.len() as u64);
    out.extend(content);
}

/// A number of entries of the same bytes.
fn column(out: &mut Vec<u8>, entries: usize, entry: &[u8]) {
    (0..entries).for_each(|_| out.extend(entry));
}

const SITE: [u8; 16] = [7; 16];
/// Version 1, all of it: as a range's end.
const END: [u8; 11] = [2, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];

/// The front of a body: source and range.
fn front() -> Vec<u8> {
    let mut body = Vec::new();
    bytes(&mut body, &SITE);
    body.extend([0, 0]);
    body.extend(END);
    body
}

/// A body with the dictionaries that one change of the table `note` needs, up to the number of changes.
fn dictionaries() -> Vec<u8> {
    let mut body = front();
    body.push(1);
    bytes(&mut body, b"note");
    body.push(1);
    bytes(&mut body, b"id");
    body.push(1);
    bytes(&mut body, b"body");
    body.push(1);
    bytes(&mut body, &SITE);
    body
}

/// A body with so many changes, of the column `body` each: `lengths` and `keys` are the columns of keys, `kinds` and
/// `values` those of values.
fn changes(count: usize, lengths: &[u8], keys: &[u8], kind: u8, values: &[u8]) -> Vec<u8> {
    let mut body = dictionaries();
    uint(&mut body, count as u64);
    column(&mut body, count, &[0]);
    body.extend(lengths);
    body.extend(keys);
    column(&mut body, count, &[0]);
    column(&mut body, count, &[kind]);
    body.extend(values);
    column(&mut body, count, &[2]);
    body.push(2);
    column(&mut body, count - 1, &[0]);
    column(&mut body, count, &[2]);
    column(&mut body, count, &[0]);
    column(&mut body, count, &[0]);
    body
}

/// A bundle of one pack with this body.
fn bundle(body: &[u8], changes: u64) -> Vec<u8> {
    let mut pack = b"DDCPpack\x01".to_vec();
    uint(&mut pack, body.len() as u64);
    pack.extend(zstd::bulk::compress(body, 3).unwrap());
    let header = [&[0xa5, 0, 0x50][..], &SITE, &[1, 1, 2, 0x82, 0, 0, 3, 0x58, 32], &[0; 32], &[4, 0]].concat();
    let mut out = b"DDCPbndl\x01".to_vec();
    bytes(&mut out, &header);
    out.push(1);
    uint(&mut out, pack.len() as u64);
    out.extend(blake3::hash(&pack).as_bytes());
    out.extend([0, 0]);
    out.extend(END);
    uint(&mut out, changes);
    out.extend(&pack);
    out.push(0);
    out.extend(END);
    uint(&mut out, 1);
    uint(&mut out, changes);
    let hash = blake3::hash(&out);
    out.extend(hash.as_bytes());
    out
}

/// Bodies that are worst for one dictionary or column each, with the number of their changes.
fn bodies() -> Vec<(&'static str, Vec<u8>, u64)> {
    const MANY: usize = 4_000_000;
    let tables = |tables: usize, keys: usize| {
        let mut body = front();
        uint(&mut body, tables as u64);
        for table in 0..tables {
            bytes(&mut body, format!("{table}").as_bytes());
            uint(&mut body, keys as u64);
            column(&mut body, keys, &[0]);
        }
        body.extend([0, 0, 0]);
        body
    };
    let few = |count: usize| [vec![3], vec![0; count - 1]].concat();
    let key = [1, 9, 1];
    let large = |length: usize| {
        let mut lengths = Vec::new();
        uint(&mut lengths, length as u64);
        [lengths, vec![0; length]].concat()
    };
    let large_key = 300_000_000_u32;
    let mut lengths = Vec::new();
    uint(&mut lengths, u64::from(large_key) + 6);
    let large_key = [&[1, 0x24][..], &large_key.to_be_bytes(), &vec![0; large_key as usize]].concat();
    vec![
        ("names of key columns", tables(40, 65_536), 0),
        ("key columns", tables(65_536, 255), 0),
        ("tables", tables(65_536, 1), 0),
        ("changes", changes(MANY, &few(MANY), &key, 0, &[]), MANY as u64),
        ("keys", changes(MANY, &vec![3; MANY], &key.repeat(MANY), 0, &[]), MANY as u64),
        ("texts", changes(MANY, &few(MANY), &key, 3, &[vec![1; MANY], vec![b'x'; MANY]].concat()), MANY as u64),
        ("a blob", changes(1, &few(1), &key, 4, &large(500_000_000)), 1),
        ("a blob that is claimed", changes(1, &few(1), &key, 4, &large(64)[..8]), 1),
        ("a key", changes(1, &lengths, &large_key, 0, &[]), 1),
    ]
}

/// A pack is unpacked, or refused with the reason, in the memory that there is: nothing of it ends the process.
#[test]
fn a_pack_that_becomes_large_is_taken_or_refused_within_the_memory_there_is() {
    let world = World::new();
    let reader = world.notes("reader");
    for (what, body, count) in bodies() {
        let bundle = bundle(&body, count);
        drop(body);
        assert!(bundle.len() < 300_000, "{what}: {} bytes", bundle.len());
        fs::write(world.path("x.bundle"), bundle).unwrap();
        for arguments in [["bundle", "verify", "x.bundle"], ["bundle", "fetch", "x.bundle"]] {
            let began = Instant::now();
            let run = within(&reader, 900 * MIB, &arguments);
            assert!(matches!(run.status, Some(0 | 1)), "{what}: {run}");
            assert!(run.status == Some(0) || run.stderr.contains("error: "), "{what}: {run}");
            assert!(began.elapsed() < Duration::from_secs(60), "{what}: {:?}", began.elapsed());
        }
    }
    let names = within(&reader, 900 * MIB, &["status"]);
    assert_eq!(names.status, Some(0), "{names}");
}

/// What no table has is refused for itself, not for the memory that it would take.
#[test]
fn a_key_of_more_columns_than_there_can_be_is_refused() {
    let world = World::new();
    let reader = world.notes("reader");
    let (_, body, _) = bodies().swap_remove(0);
    fs::write(world.path("x.bundle"), bundle(&body, 0)).unwrap();
    let run = within(&reader, 300 * MIB, &["bundle", "fetch", "x.bundle"]);
    assert_eq!(run.status, Some(1), "{run}");
    assert!(run.stderr.contains("too many key columns: 65536, the limit is 255"), "{run}");
}

/// A schema of a few hundred bytes costs little wherever it is looked at.
#[test]
fn a_schema_that_is_much_work_costs_a_fetch_little() {
    let world = World::new();
    let [liar, reader] = [world.repo("liar"), world.repo("reader")];
    liar.ok(["init"]);
    reader.ok(["init"]);
    liar.sql("CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, v); SELECT crsql_as_crr('t')");
    let doubling: String = (1..=30).map(|at| format!(", g{at} AS (g{} + g{})", at - 1, at - 1)).collect();
    let bomb = format!("CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, v, g0 AS (id){doubling}, CHECK (g30 > 0))");
    let connection = rusqlite::Connection::open(liar.db()).unwrap();
    connection.pragma_update(None, "writable_schema", true).unwrap();
    let set = "UPDATE sqlite_master SET sql = ? WHERE name = 't' AND type = 'table'";
    connection.execute(set, [bomb]).unwrap();
    drop(connection);
    reader.follows(&[&liar]);
    let began = Instant::now();
    let run = within(&reader, 500 * MIB, &["fetch", "liar"]);
    assert_eq!(run.status, Some(0), "{run}");
    assert!(run.stdout.contains("is too much") || run.stderr.contains("is too much"), "{run}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let run = within(&reader, 500 * MIB, &["schema", "adopt", "liar", "--yes"]);
    assert_eq!(run.status, Some(3), "{run}");
    assert!(reader.rows("SELECT name FROM sqlite_master WHERE name = 't'").is_empty());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}
