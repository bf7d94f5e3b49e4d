// CR-SQLite's own build: WebAssembly, with SQLite inside, on files in memory.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";

import createModule from "@vlcn.io/wa-sqlite/dist/crsqlite-sync.mjs";
import * as api from "@vlcn.io/wa-sqlite";
import { MemoryVFS } from "@vlcn.io/wa-sqlite/src/examples/MemoryVFS.js";

// Handed over as bytes: the package would fetch() them, and Node's fetch() knows no file: URLs.
const wasmBinary = await readFile(createRequire(import.meta.url).resolve("@vlcn.io/wa-sqlite/dist/crsqlite-sync.wasm"));
const module = await createModule({ wasmBinary });
const sqlite = api.Factory(module);
const vfs = new MemoryVFS();
sqlite.vfs_register(vfs, false);

// Below the package's own interface, which is asynchronous, ends a text at its first NUL, makes an empty blob NULL and
// an INTEGER a Number: the C functions themselves.
const { SQLITE_OK, SQLITE_ROW, SQLITE_DONE } = api;

/** The address of a copy of these bytes, ended by a NUL. */
function copied(bytes) {
  const address = module._sqlite3_malloc(bytes.length + 1);
  module.HEAPU8.set(bytes, address);
  module.HEAPU8[address + bytes.length] = 0;
  return address;
}

function bind(statement, index, value) {
  const free = module._getSqliteFree();
  if (value === null) return module._sqlite3_bind_null(statement, index);
  if (typeof value === "number") return module._sqlite3_bind_double(statement, index, value);
  if (typeof value === "bigint") {
    const [low, high] = [Number(BigInt.asIntN(32, value)), Number(value >> 32n)];
    return module._sqlite3_bind_int64(statement, index, low, high);
  }
  const bytes = Buffer.from(value);
  const call = typeof value === "string" ? module._sqlite3_bind_text : module._sqlite3_bind_blob;
  return call(statement, index, copied(bytes), bytes.length, free);
}

function columnBytes(statement, index) {
  const address = module._sqlite3_column_blob(statement, index);
  return Buffer.from(module.HEAPU8.slice(address, address + module._sqlite3_column_bytes(statement, index)));
}

function column(statement, index) {
  switch (module._sqlite3_column_type(statement, index)) {
    case api.SQLITE_NULL:
      return null;
    case api.SQLITE_FLOAT:
      return module._sqlite3_column_double(statement, index);
    case api.SQLITE_INTEGER: {
      const low = module._sqlite3_column_int64(statement, index);
      return (BigInt(module.getTempRet0()) << 32n) | BigInt.asUintN(32, BigInt(low));
    }
    case api.SQLITE_TEXT:
      return columnBytes(statement, index).toString();
    default:
      return columnBytes(statement, index);
  }
}

let opened = 0;

export class Upstream {
  #name;
  #db;

  /** Opens a copy of the database file whose bytes these are. */
  static async open(image) {
    const name = `peer${opened++}`;
    const data = Uint8Array.from(image).buffer;
    vfs.mapNameToFile.set(name, { name, flags: api.SQLITE_OPEN_MAIN_DB, size: data.byteLength, data });
    return new Upstream(name, await sqlite.open_v2(name, api.SQLITE_OPEN_READWRITE, vfs.name));
  }

  constructor(name, db) {
    this.#name = name;
    this.#db = db;
  }

  /** The rows of one statement, as arrays. */
  run(sql, params = []) {
    const text = copied(Buffer.from(sql));
    const out = module._sqlite3_malloc(4);
    try {
      this.#check(module._sqlite3_prepare_v2(this.#db, text, -1, out, 0));
      return this.#rows(module.getValue(out, "*"), params);
    } finally {
      module._sqlite3_free(text);
      module._sqlite3_free(out);
    }
  }

  #rows(statement, params) {
    try {
      params.forEach((value, i) => this.#check(bind(statement, i + 1, value)));
      const width = module._sqlite3_column_count(statement);
      const rows = [];
      while (this.#check(module._sqlite3_step(statement)) === SQLITE_ROW) {
        rows.push(Array.from({ length: width }, (_, i) => column(statement, i)));
      }
      return rows;
    } finally {
      module._sqlite3_finalize(statement);
    }
  }

  #check(code) {
    if (code === SQLITE_OK || code === SQLITE_ROW || code === SQLITE_DONE) return code;
    throw new Error(module.ccall("sqlite3_errmsg", "string", ["number"], [this.#db]));
  }

  /** Closes, and returns the bytes of the database file. */
  async close() {
    this.run("SELECT crsql_finalize()");
    await sqlite.close(this.#db);
    const { data, size } = vfs.mapNameToFile.get(this.#name);
    vfs.mapNameToFile.delete(this.#name);
    return Buffer.from(data.slice(0, size));
  }
}
