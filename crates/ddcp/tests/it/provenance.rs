//! Names prove nothing, keys do: what a file or a remote says of whose changes it holds moves no position but its own.

use std::{fs, path::Path};

use data_encoding::BASE64URL_NOPAD;
use ddcp::{
    changeset::{BundleHeader, BundleSignature, BundleWriter, Change, Cursor, Pack, PackTable, SiteId, Value},
    transport::veilid::OwnerKey,
};
use insta::assert_snapshot;
use rusqlite::Connection;

use crate::support::{Repo, World, assert_converged};

fn site_of(repo: &Repo) -> SiteId {
    let hex = repo.rows("SELECT hex(crsql_site_id())").remove(0);
    SiteId::from_bytes(&data_encoding::HEXUPPER.decode(hex.as_bytes()).unwrap()).unwrap()
}

fn add(repo: &Repo, ids: std::ops::RangeInclusive<u32>) {
    for id in ids {
        repo.sql(&format!("INSERT INTO note VALUES ('{id:02}', '{}', 1)", repo.name()));
    }
}

/// A change that sets the text of the note `id`, which `author` is said to have made.
fn change(id: &str, author: SiteId, db_version: i64) -> Change {
    let key = [&[1, 0x0b, id.len() as u8][..], id.as_bytes()].concat();
    Change {
        table: "note".into(),
        pk: key.into(),
        cid: "body".into(),
        val: Value::Text("forged".into()),
        col_version: 1,
        db_version,
        site_id: author,
        cl: 1,
        seq: 0,
    }
}

/// A bundle with these changes that is said to be all of `source` up to the version `to`, signed by `key`.
fn forge(path: &Path, source: SiteId, to: i64, changes: Vec<Change>, key: Option<&OwnerKey>) {
    let signature = key.map(|key| BundleSignature::to_come(key.party().repository.0, key.party().key));
    let header = BundleHeader {
        source,
        version: to,
        from: Cursor::ZERO,
        schema: [0; 32],
        created: 1,
        tables: None,
        without: None,
        signature,
    };
    let mut file = fs::File::options().create(true).truncate(true).read(true).write(true).open(path).unwrap();
    let mut writer = BundleWriter::new(&mut file, &header).unwrap();
    let tables = vec![PackTable { name: "note".into(), key_columns: vec!["id".into()] }];
    writer.add(&Pack { source, from: Cursor::ZERO, to: Cursor::whole(2), tables, changes }).unwrap();
    let (_, _, unsigned) = writer.finish(Cursor::whole(to)).unwrap();
    if let (Some(key), Some(unsigned)) = (key, unsigned) {
        unsigned.sign(&key.sign(&unsigned.text).unwrap(), &mut file).unwrap();
    }
}

/// Gives the repository a record of its own, as the first `ddcp serve` does, and returns its address.
fn give_address(repo: &Repo, seed: u8) -> String {
    let key = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
    let public = key.verifying_key().to_bytes();
    let record = blake3::hash(&[b"VLD0", public.as_slice(), b"DFLT\x10\0"].concat());
    let text = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    let address = format!("VLD0:{}:{}", text(record.as_bytes()), text(&[seed; 32]));
    let owner = format!("VLD0:{}:{}", text(&public), text(&key.to_bytes()));
    fs::create_dir_all(repo.state("veilid")).unwrap();
    fs::write(repo.state("veilid/identity.toml"), format!("address = \"{address}\"\nowner = \"{owner}\"\n")).unwrap();
    address
}

#[test]
fn a_forged_bundle_hides_nothing_of_a_remote() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    add(&a, 1..=1);
    b.follows(&[&a]).pull();
    forge(&world.path("forged.bundle"), site_of(&a), 5, vec![change("99", site_of(&a), 2)], None);
    assert_snapshot!(b.run(["bundle", "fetch", "forged.bundle"]), @"
    status 0
    --- stdout
    a: fetched 1 change in SIZE
    a: the bundle is not signed by its key; the next fetch begins where it would have
    ");
    b.ok(["merge"]);
    add(&a, 2..=5);
    b.pull();
    assert_eq!(b.rows("SELECT id FROM note WHERE id < '90'"), ["01", "02", "03", "04", "05"]);
    // Nor does it hide anything of bundles that are none.
    add(&a, 6..=6);
    a.ok(["bundle", "create", "true.bundle"]);
    forge(&world.path("forged.bundle"), site_of(&a), 100, vec![change("98", site_of(&a), 2)], None);
    for file in ["forged.bundle", "true.bundle"] {
        b.ok(["bundle", "fetch", file]);
    }
    b.ok(["merge"]);
    assert_eq!(b.rows("SELECT count(*) FROM note WHERE id < '90'"), ["6"]);
}

#[test]
fn a_bundle_brings_nothing_in_the_readers_own_name() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    let somebody = SiteId::from_bytes(&[9; 16]).unwrap();
    let changes = vec![change("98", somebody, 1), change("99", site_of(&b), 2)];
    forge(&world.path("forged.bundle"), site_of(&a), 2, changes, None);
    assert_eq!(b.json(&["bundle", "fetch", "forged.bundle"])["changes"], 1);
    b.ok(["merge"]);
    assert_eq!(b.rows("SELECT id FROM note"), ["98"]);
    // Such as it has of itself already, honest bundles hold.
    add(&b, 1..=2);
    a.follows(&[&b]).pull();
    add(&a, 3..=3);
    a.ok(["bundle", "create", "true.bundle"]);
    b.ok(["bundle", "fetch", "true.bundle"]);
    b.ok(["merge"]);
    a.pull();
    assert_converged(&[&a, &b]);
}

#[test]
fn a_remote_that_claimed_the_id_of_another_hides_nothing_of_it() {
    let world = World::new();
    let [a, b, other] = world.all_notes(["a", "b", "other"]);
    a.ok(["init"]);
    a.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let evil = world.repo("evil");
    fs::copy(a.db(), evil.db()).unwrap();
    // Says that it is the other one, and has versions that the other one will have.
    add(&evil, 50..=60);
    b.ok(["remote", "add", "evil", "evil.db"]);
    b.pull();
    // Its inbox is not that of the other one either.
    add(&evil, 61..=62);
    b.ok(["fetch"]);
    b.ok(["remote", "set-address", "evil", "other.db"]);
    add(&other, 70..=70);
    b.ok(["fetch"]);
    add(&a, 1..=20);
    b.follows(&[&a]).pull();
    assert_eq!(b.rows("SELECT count(*) FROM note WHERE id <= '20'"), ["20"]);
}

#[test]
fn positions_are_forgotten_with_the_remote_and_with_its_address() {
    let world = World::new();
    let [a, b, c] = world.all_notes(["a", "b", "c"]);
    add(&a, 1..=3);
    let fetched = || b.json(&["fetch"])[0]["done"]["changes"].as_u64().unwrap();
    b.follows(&[&a]).pull();
    assert_eq!(fetched(), 0);
    b.ok(["remote", "rename", "a", "al"]);
    assert_eq!(fetched(), 0, "it is the same one");
    b.ok(["remote", "remove", "al"]);
    b.follows(&[&a]);
    assert_eq!(fetched(), 6);
    b.ok(["merge"]);
    for address in [c.db(), a.db()] {
        b.ok(["remote", "set-address", "a", address.to_str().unwrap()]);
    }
    assert_eq!(fetched(), 6);
    // What was fetched and not merged is not lost with the remote.
    b.ok(["remote", "remove", "a"]);
    b.follows(&[&a]);
    assert_eq!(fetched(), 6);
    b.ok(["merge"]);
    assert_converged(&[&a, &b]);
}

#[test]
fn what_an_earlier_program_has_read_is_not_read_again() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    add(&a, 1..=3);
    b.follows(&[&a]).pull();
    add(&a, 4..=5);
    b.ok(["fetch"]);
    let run = |file: &Path, sql: &str| Connection::open(file).unwrap().execute_batch(sql).unwrap();
    run(b.db(), "UPDATE crsql_tracked_peers SET tag = 0, event = 0");
    run(&b.state("state.db"), "UPDATE inbox SET way = 0; UPDATE origin_schema SET way = 0");
    assert_eq!(b.json(&["fetch"])[0]["done"]["changes"], 0);
    b.ok(["merge"]);
    assert_eq!(b.json(&["fetch"])[0]["done"]["changes"], 0);
    assert_converged(&[&a, &b]);
    assert_eq!(b.rows("SELECT count(*) FROM crsql_tracked_peers"), ["1"]);
}

#[test]
fn a_bundle_that_the_remotes_key_has_signed_counts_as_fetched_from_it() {
    let world = World::new();
    let [a, b] = world.all_notes(["a", "b"]);
    let address = give_address(&a, 7);
    let record = address.rsplit_once(':').unwrap().0.to_owned();
    add(&a, 1..=3);
    assert_eq!(a.json(&["bundle", "create", "first.bundle"])["signed_by"], *record);
    assert!(world.run(["bundle", "verify", "first.bundle"]).stdout.contains(&format!("\nsigned   by {record}\n")));
    b.ok(["remote", "add", "alice", &address]);
    let fetched = b.json(&["bundle", "fetch", "first.bundle"]);
    assert_eq!(
        (&fetched["remote"], &fetched["proven"], &fetched["signed_by"]),
        (&"alice".into(), &true.into(), &record.as_str().into())
    );
    b.ok(["merge", "alice"]);
    assert_eq!(b.json(&["status"])["remotes"][0]["merged_version"], 3);
    // Through a pipe, which cannot be signed as it is written.
    add(&a, 4..=5);
    let mut piped = a.command();
    piped.args(["--quiet", "bundle", "create", "-", "--since", "3"]);
    piped.stdout(fs::File::create(world.path("second.bundle")).unwrap());
    assert!(piped.status().unwrap().success());
    assert_eq!(b.json(&["bundle", "fetch", "second.bundle"])["proven"], true);
    b.ok(["merge"]);
    assert_eq!(b.json(&["status"])["remotes"][0]["merged_version"], 5);
    assert_converged(&[&a, &b]);

    a.ok(["bundle", "create", "unsigned.bundle", "--unsigned"]);
    assert!(a.json(&["bundle", "verify", "unsigned.bundle"])["signed_by"].is_null());
    assert_eq!(b.json(&["bundle", "fetch", "unsigned.bundle"])["proven"], false);
}

#[test]
fn nobody_signs_for_another() {
    let world = World::new();
    let [a, b, mallory] = world.all_notes(["a", "b", "mallory"]);
    let (alice, evil) = (give_address(&a, 7), give_address(&mallory, 8));
    add(&a, 1..=1);
    a.ok(["bundle", "create", "true.bundle"]);
    b.ok(["remote", "add", "alice", &alice]);
    b.ok(["remote", "add", "mallory", &evil]);
    b.ok(["bundle", "fetch", "true.bundle"]);
    b.ok(["merge"]);
    // By a key that is another remote's.
    let key = OwnerKey::stored(&mallory.state("veilid")).unwrap().unwrap();
    let forged = world.path("forged.bundle");
    forge(&forged, site_of(&a), 5, vec![change("99", site_of(&a), 2)], Some(&key));
    let fetched = b.json(&["bundle", "fetch", "forged.bundle"]);
    assert_eq!((&fetched["remote"], &fetched["proven"]), (&"alice".into(), &false.into()), "{fetched}");
    b.ok(["merge"]);
    assert_eq!(b.json(&["status"])["remotes"][0]["merged_version"], 1);
    // A signature that was made for something else.
    let (mut whole, other) = (fs::read(&forged).unwrap(), fs::read(world.path("true.bundle")).unwrap());
    let at = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).position(|window| window == part).unwrap();
    let public = ed25519_dalek::SigningKey::from_bytes(&[7; 32]).verifying_key().to_bytes();
    let (from, to) = (at(&other, &public) - 34, at(&whole, &key.party().key) - 34);
    whole[to..to + 132].copy_from_slice(&other[from..from + 132]);
    let end = whole.len() - 32;
    let hash = blake3::hash(&whole[..end]);
    whole[end..].copy_from_slice(hash.as_bytes());
    fs::write(&forged, whole).unwrap();
    assert_snapshot!(b.run(["bundle", "fetch", "forged.bundle"]), @"
    status 1
    --- stderr
    error: forged.bundle: the bundle is damaged: its signature is not one of who is said to have made it
    hint: copy it once more; if that does not help, have it made anew with `ddcp bundle create`
    ");
    world.run(["bundle", "verify", "forged.bundle"]).assert_status(1);
    let mut lines = b.rows("SELECT id FROM note");
    lines.sort();
    assert_eq!(lines, ["01", "99"]);
}
