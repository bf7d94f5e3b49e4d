// One peer, twice: the same database under both engines, given the same statements, compared after each transaction.
import { Ours, blankImage } from "./ours.js";
import { Upstream } from "./upstream.js";
import { showRow } from "./values.js";

/** The engines did different things. */
export class Difference extends Error {}

const quoted = (name) => `"${name}"`;

export class Twin {
  #trace;

  static async open(name, siteId, trace) {
    const image = blankImage(siteId);
    return new Twin(name, siteId, trace, await Ours.open(image), await Upstream.open(image));
  }

  constructor(name, siteId, trace, ours, upstream) {
    this.name = name;
    this.siteId = siteId;
    this.ours = ours;
    this.upstream = upstream;
    this.statements = 0;
    this.#trace = trace;
  }

  /** Runs the statement under both engines. Returns whether it succeeded, which must be the same on both. */
  run(sql, params = []) {
    return this.runEach(sql, params, params);
  }

  /** As `run`, with parameters of their own for each engine. */
  runEach(sql, oursParams, upstreamParams) {
    this.statements += 1;
    this.#trace(`${this.name}: ${sql}${oursParams.length > 0 ? `  -- ${showRow(oursParams)}` : ""}`);
    const ours = attempt(this.ours, sql, oursParams);
    const upstream = attempt(this.upstream, sql, upstreamParams);
    if ((ours.error === undefined) !== (upstream.error === undefined)) {
      throw new Difference(`${sql}  -- ${showRow(oursParams)}
      ours:     ${ours.error ?? "succeeded"}
      upstream: ${upstream.error ?? "succeeded"}`);
    }
    if (ours.error === undefined) compareRows(sql, ours.rows, upstream.rows);
    else this.#trace(`  both refuse it: ${ours.error} | ${upstream.error}`);
    return ours.error === undefined;
  }

  /** Compares everything that both store: tables, clocks, keys, sites, versions, and the change set in its own order. */
  compare(tables) {
    for (const { name, keys } of tables) {
      this.#same(`SELECT * FROM ${quoted(name)} ORDER BY ${keys.map((key) => quoted(key.name)).join(", ")}`);
      this.#same(`SELECT * FROM ${quoted(`${name}__crsql_clock`)} ORDER BY key, col_name`);
      this.#same(`SELECT * FROM ${quoted(`${name}__crsql_pks`)} ORDER BY __crsql_key`);
    }
    this.#same("SELECT site_id, ordinal FROM crsql_site_id ORDER BY ordinal");
    this.#same("SELECT crsql_db_version(), crsql_get_seq()");
    this.#same("SELECT rowid, * FROM crsql_changes");
  }

  #same(sql) {
    compareRows(sql, this.ours.run(sql), this.upstream.run(sql));
  }

  /** Closes both, and opens under each engine the file that the other one wrote. */
  async swapFiles() {
    this.#trace(`${this.name}: the engines swap their files`);
    const [fromOurs, fromUpstream] = [await this.ours.close(), await this.upstream.close()];
    this.ours = await Ours.open(fromUpstream);
    this.upstream = await Upstream.open(fromOurs);
    const check = "PRAGMA integrity_check";
    for (const engine of [this.ours, this.upstream]) compareRows(check, engine.run(check), [["ok"]]);
  }

  /** Closes both, and opens under each engine the file that ours wrote. */
  async shareOurs() {
    this.#trace(`${this.name}: upstream gets our file`);
    const image = await this.ours.close();
    await this.upstream.close();
    this.ours = await Ours.open(image);
    this.upstream = await Upstream.open(image);
  }

  async close() {
    await this.ours.close();
    await this.upstream.close();
  }
}

function attempt(engine, sql, params) {
  try {
    return { rows: engine.run(sql, params) };
  } catch (error) {
    return { error: error.message };
  }
}

function compareRows(sql, ours, upstream) {
  for (let i = 0; i < Math.max(ours.length, upstream.length); i++) {
    const [left, right] = [ours, upstream].map((rows) => (i < rows.length ? showRow(rows[i]) : "no more rows"));
    if (left !== right) {
      throw new Difference(`${sql}, row ${i}\n      ours:     ${left}\n      upstream: ${right}`);
    }
  }
}
