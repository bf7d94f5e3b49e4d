// SQLite's values in JavaScript, without loss: NULL is null, INTEGER a BigInt, REAL a Number, TEXT a string, BLOB a
// Uint8Array. Both engines take and give them in this form.

const INTEGERS = [
  0n, 1n, -1n, 2n, 5n, 127n, 128n, -128n, 255n, 256n, 65536n, 2n ** 31n - 1n, 2n ** 31n, -(2n ** 31n) - 1n,
  2n ** 53n + 1n, 2n ** 56n, 2n ** 63n - 1n, -(2n ** 63n),
];
const REALS = [
  0.0, -0.0, 1.0, -1.5, 0.1, Math.PI, 2 ** 53, 123456789.123456789, 1e300, -1e300, 5e-324, 2.2250738585072009e-308,
  Number.MAX_VALUE, Infinity, -Infinity,
];
const TEXTS = ["", "a", "A", "b", "ä", "日本語", "🙂", "nul\0inside", "\0", "it's", "-1", "1", "1.0", " ", "x".repeat(300)];
const BLOBS = [[], [0], [0xff, 0], [0x31], [0x61], Array(300).fill(7)].map((bytes) => Uint8Array.from(bytes));

const ALL = [...INTEGERS, ...REALS, ...TEXTS, ...BLOBS];

// By the declared type of the column. A REAL never goes to a TEXT column, see docs/interoperability.md; what a STRICT
// table would refuse now and then goes to one, as both engines must refuse it.
const POOLS = {
  ANY: ALL,
  INTEGER: [...INTEGERS, 1.0, -0.0],
  REAL: [...REALS, ...INTEGERS],
  TEXT: [...TEXTS, ...INTEGERS, ...BLOBS],
  BLOB: ALL,
};

// Few, so that peers meet on them.
const KEYS = {
  ANY: [1n, 1.0, "1", Uint8Array.of(0x31), 0n, -0.0, 0.5, "", "é", Uint8Array.of(), -(2n ** 63n), Infinity],
  INTEGER: [1n, 2n, 3n, 0n, -1n, 128n, 2n ** 53n + 1n, 2n ** 63n - 2n],
  TEXT: ["", "a", "A", "ä", "nul\0inside", "🙂", "1"],
  BLOB: [Uint8Array.of(), Uint8Array.of(0), Uint8Array.of(0, 1), Uint8Array.of(0xff), Uint8Array.of(0x61)],
};

/** A value for a column declared with this type. */
export function randomValue(random, type) {
  return random.chance(0.15) ? null : random.pick(POOLS[type]);
}

/** A value for a key column declared with this type. */
export function randomKey(random, type) {
  return random.pick(KEYS[type]);
}

/** A text that is the same for two values only if SQLite holds them to be identical, type and bits. */
export function show(value) {
  if (value === null) return "NULL";
  if (typeof value === "bigint") return `${value}`;
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value === "number") return Number.isInteger(value) ? `${Object.is(value, -0) ? "-0" : value}.0` : `${value}`;
  return `x'${Buffer.from(value).toString("hex")}'`;
}

/** A row of values as one line. */
export function showRow(row) {
  return row.map(show).join(", ");
}
