// Compares the engine with CR-SQLite's own build. See docs/interoperability.md.
//
//   npm test --workspace tests/interop                      200 histories
//   npm test --workspace tests/interop -- --first 1000 --seeds 5000
//   npm test --workspace tests/interop -- --seed 17         one, with its statements
import assert from "node:assert/strict";
import test from "node:test";
import { parseArgs } from "node:util";

import { runHistory } from "./history.js";
import { Difference } from "./twin.js";

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
  const differences = [];
  for (let seed = first; seed < first + count; seed++) {
    try {
      const counts = await runHistory(seed, one ? console.log : undefined);
      for (const [key, value] of Object.entries(counts)) total[key] = (total[key] ?? 0) + value;
    } catch (error) {
      if (!(error instanceof Difference)) throw error;
      differences.push(error.message);
    }
  }
  t.diagnostic(`${count - differences.length} of ${count} histories equal; ${JSON.stringify(total)}`);
  const shown = differences.slice(0, 5).join("\n");
  assert.equal(differences.length, 0, `${differences.length} of ${count} histories differ (again: --seed N)\n${shown}`);
});
