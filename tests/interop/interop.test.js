// Compares the engine with CR-SQLite's own build. See docs/interoperability.md.
//
//   node tests/interop/interop.test.js                              200 histories
//   node tests/interop/interop.test.js --first 1000 --seeds 5000
//   node tests/interop/interop.test.js --seed 17                    one, with its statements
import assert from "node:assert/strict";
import test from "node:test";
import { parseArgs } from "node:util";

import { runHistory } from "./history.js";
import { Random } from "./random.js";
import { Difference, Twin } from "./twin.js";
import { randomValue } from "./values.js";

const { values: options } = parseArgs({
  options: {
    first: { type: "string", default: process.env.INTEROP_FIRST ?? "1" },
    seeds: { type: "string", default: process.env.INTEROP_SEEDS ?? "200" },
    seed: { type: "string", default: process.env.INTEROP_SEED },
  },
});
const one = options.seed !== undefined;
const first = Number(one ? options.seed : options.first);
const count = one ? 1 : Number(options.seeds);

test(`random histories, seeds ${first} to ${first + count - 1}`, async (t) => {
  const total = {};
  let differences = 0;
  for (let seed = first; seed < first + count; seed++) {
    try {
      const counts = await runHistory(seed, one ? console.log : undefined);
      for (const [key, value] of Object.entries(counts)) total[key] = (total[key] ?? 0) + value;
    } catch (error) {
      if (!(error instanceof Difference)) throw error;
      console.error(error.message);
      differences += 1;
    }
  }
  t.diagnostic(`${count - differences} of ${count} histories equal; ${JSON.stringify(total)}`);
  assert.equal(differences, 0, `${differences} of ${count} histories differ: run one again by --seed N`);
});

test("values are packed, unpacked and ordered alike", async () => {
  await beside(first, (both, random) => {
    for (let i = 0; i < 2000; i++) {
      const values = Array.from({ length: random.below(6) }, () => randomValue(random, "ANY"));
      both(`SELECT crsql_pack_columns(${values.map(() => "?").join(", ")})`, values);
    }
    both("WITH RECURSIVE n (i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM n WHERE i < 62) " +
      "SELECT crsql_pack_columns(1 << i, (1 << i) - 1, -(1 << i)) FROM n");
    for (const pack of ["010901", "0141ffffffffffffff80", "020b01610c0100", "0105", "00", "0109", "0106", "010901ff"]) {
      both("SELECT cell FROM crsql_unpack_columns(?)", [Buffer.from(pack, "hex")]);
    }
  });
});

test("order keys are made alike", async () => {
  await beside(first, (both, random) => {
    const keys = [null, ...both("SELECT crsql_fract_key_between(NULL, NULL)").flat(), null];
    for (let i = 0; i < 3000; i++) {
      const at = 1 + random.below(keys.length - 1);
      const [made] = both("SELECT crsql_fract_key_between(?, ?)", [keys[at - 1], keys[at]]).flat();
      keys.splice(at, 0, made);
    }
    for (const pair of [["b", "a0"], ["a0 ", null], ["a1", "a0"], ["!0", null], [null, `A${" ".repeat(26)}`]]) {
      both("SELECT crsql_fract_key_between(?, ?)", pair);
    }
  });
});

test("ordered lists and clset tables in a file that changes hands", async () => {
  const twin = await Twin.open("list", new Random(first).bytes(16), () => {});
  const item = { name: "item", keys: [{ name: "id" }] };
  const note = { name: "note", keys: [{ name: "id" }] };
  const succeed = (sql) => assert.ok(twin.run(sql), sql);

  succeed("CREATE TABLE item (id INTEGER PRIMARY KEY NOT NULL, list TEXT, position)");
  succeed("SELECT crsql_as_crr('item')");
  succeed("SELECT crsql_fract_as_ordered('item', 'position', 'list')");
  succeed("CREATE VIRTUAL TABLE note_schema USING clset(id PRIMARY KEY NOT NULL, body)");
  for (let round = 0; round < 3; round++) {
    const id = 10 * round;
    succeed(`INSERT INTO item VALUES (${id}, 'shop', 1), (${id + 1}, 'shop', -1), (${id + 2}, 'work', 1)`);
    succeed(`INSERT INTO item_fractindex (id, list, after_id) VALUES (${id + 3}, 'shop', ${id})`);
    succeed(`UPDATE item SET position = (SELECT position FROM item WHERE id = ${id}) WHERE id = ${id + 3}`);
    succeed(`INSERT INTO item_fractindex (id, list, after_id) VALUES (${id + 4}, 'shop', ${id + 3})`);
    succeed(`UPDATE item_fractindex SET after_id = ${id + 1} WHERE id = ${id}`);
    succeed(`INSERT INTO note VALUES (${id}, 'first')`);
    twin.compare([item, note]);
    await twin.swapFiles();
  }
  const versions = () => [twin.ours, twin.upstream].map((engine) => engine.run("SELECT crsql_db_version()")[0][0]);
  const [before] = versions();
  succeed("DROP TABLE note_schema");
  // Upstream's version falls with the table, and is given again. That of our file stays, under upstream too.
  const [ours, upstream] = versions();
  assert.equal(ours, before);
  assert.ok(upstream < before);
  await twin.shareOurs();
  twin.compare([item]);
  await twin.close();
});

/** Calls `use` with a function that runs a statement on a blank database under both engines, and returns its rows. */
async function beside(seed, use) {
  const random = new Random(seed);
  const twin = await Twin.open("beside", random.bytes(16), () => {});
  use((sql, params = []) => (twin.run(sql, params) ? twin.ours.run(sql, params) : []), random);
  await twin.close();
}
