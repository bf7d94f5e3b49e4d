// Two databases, written independently, made equal: the same as ../python/sync.py, for Node.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import Sqlite from "better-sqlite3";

const extension = process.env.CRSQLITE ?? join(import.meta.dirname, "../../target/release/libcrsqlite");

function open(file) {
  const db = new Sqlite(file);
  // Integers as BigInt: a version, and an integer in your own tables, may be beyond what a Number holds exactly, and a
  // Number would be bound as a REAL. Blobs are Buffers.
  db.defaultSafeIntegers();
  db.loadExtension(extension);
  db.exec("CREATE TABLE IF NOT EXISTS todo (id TEXT PRIMARY KEY NOT NULL, title TEXT, done INTEGER NOT NULL DEFAULT 0)");
  db.prepare("SELECT crsql_as_crr('todo')").get();
  return db;
}

const siteId = (db) => db.prepare("SELECT crsql_site_id()").pluck().get();

/** Merges into `db` what `peer` has written since the last time. */
function pull(db, peer) {
  const since = db
    .prepare("SELECT max(version) FROM crsql_tracked_peers WHERE site_id = ? AND tag = 0 AND event = 0")
    .pluck()
    .get(siteId(peer));
  const changes = peer
    .prepare("SELECT * FROM crsql_changes WHERE db_version > ? AND site_id IS NOT ? ORDER BY db_version, seq")
    .raw()
    .all(since ?? 0n, siteId(db));
  if (changes.length === 0) return;

  const merge = db.prepare("INSERT INTO crsql_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)");
  const remember = db.prepare(`INSERT INTO crsql_tracked_peers (site_id, version, tag, event) VALUES (?, ?, 0, 0)
    ON CONFLICT DO UPDATE SET version = excluded.version`);
  // One transaction: either all of it is merged and remembered, or none.
  db.transaction(() => {
    for (const change of changes) merge.run(change);
    const [, , , , , dbVersion] = changes.at(-1);
    remember.run(siteId(peer), dbVersion);
  })();
}

const folder = mkdtempSync(join(tmpdir(), "crsqlite-"));
const alice = open(join(folder, "alice.db"));
const bob = open(join(folder, "bob.db"));

alice.exec("INSERT INTO todo (id, title) VALUES ('milk', 'buy milk'), ('bread', 'buy bread')");
pull(bob, alice);

// Both go on writing. Different columns of one row do not conflict; of one column all peers choose the same value.
alice.exec("UPDATE todo SET title = 'buy oat milk' WHERE id = 'milk'; DELETE FROM todo WHERE id = 'bread'");
bob.exec("UPDATE todo SET done = 1 WHERE id = 'milk'; INSERT INTO todo (id, title) VALUES ('tea', 'buy tea')");
pull(bob, alice);
pull(alice, bob);

const rows = (db) => db.prepare("SELECT id, title, done FROM todo ORDER BY id").raw().all();
for (const row of rows(alice)) console.log(row.join("|"));
const equal = JSON.stringify(rows(alice).map(String)) === JSON.stringify(rows(bob).map(String));

for (const db of [alice, bob]) {
  db.prepare("SELECT crsql_finalize()").get();
  db.close();
}
rmSync(folder, { recursive: true });

if (!equal) throw new Error("alice and bob differ");
console.log("alice and bob are equal");
