// A random history of a few peers: each is a twin (twin.js), and everything comes from one seed.
//
// What a peer merges is read from the *other* engine's twin of the sender, so that change rows travel from one
// engine to the other all the time, in both directions.
import { Random } from "./random.js";
import { creation, randomMigration, randomTables } from "./schema.js";
import { Difference, Twin } from "./twin.js";
import { randomValue, showRow } from "./values.js";
import { randomWrite } from "./writes.js";

const STEPS = 40;
const CHANGES = `SELECT "table", pk, cid, val, col_version, db_version, site_id, cl, seq FROM crsql_changes`;
const MERGE = "INSERT INTO crsql_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";
const CID = 2, VAL = 3, COL_VERSION = 4, DB_VERSION = 5, SITE_ID = 6, CL = 7, SEQ = 8;

/**
 * Runs the history of this seed. Resolves to what was done, as counts; rejects with a Difference, whose message names
 * the step, once the two engines differ.
 */
export async function runHistory(seed, trace = () => {}) {
  const history = new History(seed, trace);
  try {
    await history.run();
  } catch (error) {
    if (error instanceof Difference) error.message = `seed ${seed}, step ${history.step}: ${error.message}`;
    throw error;
  }
  return history.counts;
}

class History {
  constructor(seed, trace) {
    this.random = new Random(seed);
    this.trace = trace;
    this.step = 0;
    this.counts = { statements: 0, rows: 0, swaps: 0, alterations: 0, converged: 0 };
    // What only some histories have. Without any of it peers that have seen everything are equal.
    this.changingKeys = this.random.chance(0.6);
    this.altering = this.random.chance(0.4);
    this.forging = this.random.chance(0.3);
    this.migrations = [];
    this.late = [];
  }

  async run() {
    const tables = randomTables(this.random);
    this.peers = [];
    for (const name of ["alice", "bob", "carol"].slice(0, 2 + this.random.below(2))) {
      const twin = await Twin.open(name, this.random.bytes(16), this.trace);
      this.peers.push(Object.assign(twin, { tables: structuredClone(tables), migrated: 0, seen: new Map() }));
    }
    for (const peer of this.peers) this.create(peer);
    while (this.step < STEPS) {
      this.step += 1;
      await this.act(this.random.pick(this.peers));
    }
    await this.exchangeEverything();
    for (const peer of this.peers) {
      this.counts.statements += peer.statements;
      await peer.close();
    }
  }

  create(peer) {
    for (const table of peer.tables) {
      expectSuccess(peer.run(creation(table)));
      // Rows that are there already become changes of the table's first version.
      const rows = this.random.chance(0.3) ? this.random.below(4) : 0;
      for (let i = 0; i < rows; i++) this.write(peer, table);
      expectSuccess(peer.run("SELECT crsql_as_crr(?)", [table.name]));
    }
    peer.compare(peer.tables);
  }

  async act(peer) {
    const dice = this.random.next();
    if (dice < 0.45) this.writeTransaction(peer);
    else if (dice < 0.82) this.receive(peer);
    else if (dice < 0.9) this.filter(peer);
    else if (dice < 0.95) {
      await peer.swapFiles();
      this.counts.swaps += 1;
    } else if (this.altering) await this.migrate(peer);
    peer.compare(peer.tables);
  }

  // Local writes

  write(peer, table = this.random.pick(peer.tables)) {
    const { sql, params } = randomWrite(this.random, table, this);
    return peer.run(sql, params);
  }

  writeTransaction(peer) {
    if (this.random.chance(0.4)) return void this.write(peer);
    expectSuccess(peer.run("BEGIN"));
    const count = 1 + this.random.below(6);
    for (let i = 0; i < count; i++) {
      if (this.random.chance(0.1)) this.writeInSavepoint(peer);
      else this.write(peer);
    }
    expectSuccess(peer.run(this.random.chance(0.1) ? "ROLLBACK" : "COMMIT"));
  }

  writeInSavepoint(peer) {
    peer.run("SAVEPOINT inner");
    this.write(peer);
    if (this.random.chance(0.5)) peer.run("ROLLBACK TO inner");
    peer.run("RELEASE inner");
  }

  // Reading

  /** Reads some of the changes, by conditions that hold for a few of them. */
  filter(peer) {
    const rows = peer.ours.run(CHANGES);
    if (rows.length === 0) return;
    const names = [`"table"`, "pk", "cid", "val", "col_version", "db_version", "site_id", "cl", "seq"];
    const conditions = this.random.shuffled(names.keys()).slice(0, 1 + this.random.below(3)).map((index) => ({
      text: `${names[index]} ${this.random.pick(["=", "!=", "<", "<=", ">", ">=", "IS", "IS NOT"])} ?`,
      value: this.random.pick(rows)[index],
    }));
    const where = conditions.map(({ text }) => text).join(" AND ");
    peer.run(`${CHANGES} WHERE ${where}`, conditions.map(({ value }) => value));
    peer.run(`SELECT count(*), max(db_version) FROM crsql_changes WHERE ${where}`, conditions.map(({ value }) => value));
  }

  // Alterations

  /** The peer's next alteration; a new one if it has made all that there are. */
  async migrate(peer) {
    if (peer.migrated === this.migrations.length) {
      this.migrations.push(randomMigration(this.random, peer.tables, this.migrations.length));
    }
    const { name, sql, apply } = this.migrations[peer.migrated++];
    const table = peer.tables.find((each) => each.name === name);
    expectSuccess(peer.run("SELECT crsql_begin_alter(?)", [name]));
    expectSuccess(peer.run(sql));
    apply(table);
    const writes = this.random.chance(0.5) ? this.random.below(4) : 0;
    for (let i = 0; i < writes; i++) this.write(peer, table);
    expectSuccess(peer.run("SELECT crsql_commit_alter(?)", [name]));
    this.counts.alterations += 1;
    // What upstream does then is a known difference, see docs/interoperability.md: it goes on with our file.
    if (writes > 0 || /(RENAME|DROP) COLUMN/.test(sql)) await peer.shareOurs();
  }

  // Exchange

  /** Merges some of another peer's changes: new ones, all, old ones, some, in any order, and more than once. */
  receive(peer) {
    const sender = this.random.pick(this.peers.filter((each) => each !== peer));
    const kind = this.random.pick(["new", "new", "new", "all", "some", "shuffled", "repeated", "captured", "late"]);
    if (kind === "late" && this.late.length > 0) return this.merge(peer, this.random.pick(this.late));
    if (kind === "new") return this.receiveNew(peer, sender);

    const batch = read(sender, CHANGES);
    if (kind === "captured") return void this.late.push(batch);
    if (kind === "some") return this.merge(peer, this.random.some(batch, 0.5));
    if (kind === "shuffled") return this.merge(peer, this.random.shuffled(batch));
    if (kind === "repeated") return this.merge(peer, [...batch, ...this.random.some(batch, 0.5)]);
    return this.merge(peer, batch);
  }

  receiveNew(peer, sender) {
    const since = peer.seen.get(sender) ?? 0n;
    const batch = read(sender, `${CHANGES} WHERE db_version > ? AND site_id IS NOT ?`, [since, peer.siteId]);
    const merged = this.merge(peer, batch);
    if (merged && batch.length > 0) peer.seen.set(sender, batch.at(-1).forOurs[DB_VERSION]);
  }

  /** Merges in one transaction, or each row in its own. Returns whether all rows were taken. */
  merge(peer, batch) {
    const rows = this.forging ? batch.map((row) => (this.random.chance(0.2) ? this.forged(peer, row) : row)) : batch;
    this.counts.rows += rows.length;
    if (rows.length === 0) return true;
    if (this.random.chance(0.1)) return rows.map((row) => mergeRow(peer, row)).every(Boolean);
    expectSuccess(peer.run("BEGIN"));
    const merged = rows.every((row) => mergeRow(peer, row));
    // A refused row ends the transaction, and the counter is not looked at after a rollback: see "Known differences" in
    // docs/interoperability.md.
    if (merged && !peer.rolledBack) peer.run("SELECT crsql_rows_impacted()");
    expectSuccess(peer.run(merged ? "COMMIT" : "ROLLBACK"));
    peer.rolledBack = !merged;
    return merged;
  }

  /** The row with other versions, value and author, such as a peer with another past could have sent. */
  forged(peer, { forOurs, forUpstream }) {
    const cl = BigInt(this.random.below(7));
    const sentinel = forOurs[CID] === "-1" || cl % 2n === 0n;
    const table = peer.tables.find((each) => each.name === forOurs[0]);
    const type = table?.columns.find((each) => each.name === forOurs[CID])?.type ?? "INTEGER";
    const change = [
      [CID, sentinel ? "-1" : forOurs[CID]],
      [VAL, sentinel ? null : randomValue(this.random, type)],
      [COL_VERSION, sentinel ? cl : BigInt(this.random.below(7))],
      [DB_VERSION, BigInt(this.random.below(60))],
      [SITE_ID, this.random.pick([Uint8Array.of(1), Uint8Array.of(2, 0), forOurs[SITE_ID]])],
      [CL, cl],
      [SEQ, BigInt(this.random.below(9))],
    ];
    const apply = (row) => change.reduce((out, [index, value]) => out.with(index, value), row);
    return { forOurs: apply(forOurs), forUpstream: apply(forUpstream) };
  }

  /** All peers get to the same schema and give each other everything, twice; then their tables are equal. */
  async exchangeEverything() {
    for (const peer of this.peers) {
      while (peer.migrated < this.migrations.length) await this.migrate(peer);
    }
    const pairs = this.peers.flatMap((to) => this.peers.filter((from) => from !== to).map((from) => [to, from]));
    for (const [to, from] of [...pairs, ...pairs]) {
      for (const row of read(from, CHANGES)) mergeRow(to, row);
      to.compare(to.tables);
    }
    if (this.changingKeys || this.forging || this.altering) return;
    this.expectConvergence();
    this.counts.converged += 1;
  }

  expectConvergence() {
    const [first, ...others] = this.peers;
    // Of the keys 1 and 1.0, which are one, a key column without a type stores the one that came first, as upstream does.
    for (const { name, keys } of first.tables.filter((table) => table.keys.every((key) => key.type !== "ANY"))) {
      const sql = `SELECT * FROM "${name}" ORDER BY ${keys.map((key) => `"${key.name}"`).join(", ")}`;
      // -0.0 and 0.0 written at once are equal, so that neither wins over the other, as upstream.
      const dump = (peer) => peer.ours.run(sql).map((row) => showRow(row.map((value) => (value === 0 ? 0 : value)))).join("\n");
      for (const other of others) {
        if (dump(first) === dump(other)) continue;
        throw new Difference(`${name} of ${first.name} and ${other.name}:\n${dump(first)}\n  and\n${dump(other)}`);
      }
    }
  }
}

/** Change rows of a peer: for each engine the row that the other one read. */
function read(sender, sql, params = []) {
  const [ours, upstream] = [sender.ours.run(sql, params), sender.upstream.run(sql, params)];
  return ours.map((row, i) => ({ forOurs: upstream[i], forUpstream: row }));
}

/** Merges a row. Returns whether it was taken. */
function mergeRow(peer, { forOurs, forUpstream }) {
  const taken = peer.runEach(MERGE, forOurs, forUpstream);
  // Upstream forgets to, see "Known differences" in docs/interoperability.md.
  if (!taken) peer.run("SELECT crsql_internal_sync_bit(0)");
  return taken;
}

function expectSuccess(succeeded) {
  if (!succeeded) throw new Error("the history makes a statement that neither engine takes");
}
