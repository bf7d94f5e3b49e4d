// The engine of this repository, loaded into better-sqlite3, on files.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

import Sqlite from "better-sqlite3";

const target = resolve(import.meta.dirname, "../..", process.env.CARGO_TARGET_DIR ?? "target");
const extension = process.env.CRSQLITE ?? join(target, "release/libcrsqlite");

const folder = mkdtempSync(join(tmpdir(), "crsqlite-interop-"));
process.once("exit", () => rmSync(folder, { recursive: true }));
let opened = 0;

export class Ours {
  #file = join(folder, `peer${opened++}.db`);
  #db;

  /** Opens a copy of the database file whose bytes these are. */
  static async open(image) {
    return new Ours(image);
  }

  constructor(image) {
    writeFileSync(this.#file, image);
    this.#db = new Sqlite(this.#file);
    this.#db.defaultSafeIntegers(true);
    // Nothing here survives a crash of the machine, so nothing waits for the disk.
    this.#db.pragma("synchronous = OFF");
    this.#db.loadExtension(extension);
  }

  /** The rows of one statement, as arrays. */
  run(sql, params = []) {
    const statement = this.#db.prepare(sql);
    if (statement.reader) return statement.raw().all(params);
    statement.run(params);
    return [];
  }

  /** Closes, and returns the bytes of the database file. */
  async close() {
    this.run("SELECT crsql_finalize()");
    this.#db.close();
    const image = readFileSync(this.#file);
    rmSync(this.#file);
    return image;
  }
}

/** The bytes of a database that knows nothing of CRRs except which site it is. */
export function blankImage(siteId) {
  const db = new Sqlite(":memory:");
  db.exec(`CREATE TABLE crsql_site_id (site_id BLOB NOT NULL, ordinal INTEGER PRIMARY KEY);
    CREATE UNIQUE INDEX crsql_site_id_site_id ON crsql_site_id (site_id)`);
  db.prepare("INSERT INTO crsql_site_id VALUES (?, 0)").run(siteId);
  const image = db.serialize();
  db.close();
  return image;
}
