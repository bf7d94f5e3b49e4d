// The tables of a history: every shape of key, and columns of every type.

const column = (name, type = "ANY", constraint = "") => ({ name, type, constraint });

const SHAPES = [
  {
    name: "by_integer",
    keys: [column("id", "INTEGER")],
    columns: [column("a"), column("b", "TEXT", "DEFAULT 'q'"), column("c", "REAL"), column("d", "INTEGER", "NOT NULL DEFAULT 5")],
  },
  { name: "by_text", keys: [column("k", "TEXT")], columns: [column("v"), column("it's a column", "TEXT")] },
  { name: "by_blob", keys: [column("k", "BLOB")], columns: [column("v", "BLOB")] },
  { name: "by_any", keys: [column("k")], columns: [column("v"), column("w")] },
  { name: "compound", keys: [column("b"), column("a", "TEXT")], columns: [column("c"), column("d")] },
  { name: "only_key", keys: [column("k")], columns: [] },
  { name: "only_keys", keys: [column("x", "TEXT"), column("y", "INTEGER")], columns: [] },
  {
    name: "strictly",
    keys: [column("id", "TEXT")],
    columns: [column("v"), column("r", "REAL"), column("i", "INTEGER"), column("t", "TEXT", "NOT NULL DEFAULT ''")],
    options: "STRICT, WITHOUT ROWID",
  },
  {
    name: "computing",
    keys: [column("id", "INTEGER")],
    columns: [column("a"), column("b")],
    generated: [`"kind" TEXT AS (typeof(a)) STORED`],
  },
];

/** The tables of one history. */
export function randomTables(random) {
  return random.shuffled(SHAPES).slice(0, 2 + random.below(3)).map((shape) => structuredClone(shape));
}

/** The column as it stands in CREATE TABLE and ALTER TABLE. */
export function declaration({ name, type, constraint }, strict = false) {
  // A column of no type, as SQLite knows it outside STRICT tables: ANY would mean NUMERIC there.
  const typeName = type === "ANY" && !strict ? "" : type;
  return [`"${name}"`, typeName, constraint].filter(Boolean).join(" ");
}

/** CREATE TABLE. */
export function creation({ name, keys, columns, generated = [], options }) {
  const strict = options?.includes("STRICT");
  const parts = [
    ...keys.map((key) => `${declaration(key, strict)} NOT NULL`),
    ...columns.map((each) => declaration(each, strict)),
    ...generated,
    `PRIMARY KEY (${keys.map((key) => `"${key.name}"`).join(", ")})`,
  ];
  return `CREATE TABLE "${name}" (${parts.join(", ")})${options ? ` ${options}` : ""}`;
}

/**
 * One change of one table's schema: the table's name, the statement, and what it does to the description of the table.
 * Every peer makes the same changes, each when it comes to it.
 */
export function randomMigration(random, tables, serial) {
  const { name, keys, columns, options, generated = [] } = random.pick(tables);
  const alter = (text) => `ALTER TABLE "${name}" ${text}`;
  const free = columns.filter((each) => !generated.some((text) => text.includes(`(${each.name})`)));

  const kind = random.pick(["add", "add", "add", "drop", "drop", "rename", "rename key"]);
  if (kind === "drop" && free.length > 0) {
    const gone = random.pick(free).name;
    return { name, sql: alter(`DROP COLUMN "${gone}"`), apply: (table) => remove(table.columns, gone) };
  }
  if (kind === "rename" && free.length > 0) {
    const [from, to] = [random.pick(free).name, `renamed${serial}`];
    return { name, sql: alter(`RENAME COLUMN "${from}" TO "${to}"`), apply: (table) => rename(table.columns, from, to) };
  }
  if (kind === "rename key") {
    const [from, to] = [random.pick(keys).name, `key${serial}`];
    return { name, sql: alter(`RENAME COLUMN "${from}" TO "${to}"`), apply: (table) => rename(table.keys, from, to) };
  }
  const added = random.pick([
    column(`added${serial}`),
    column(`added${serial}`, "ANY", "DEFAULT 4"),
    column(`added${serial}`, "TEXT", "DEFAULT NULL"),
    column(`added${serial}`, "TEXT", "NOT NULL DEFAULT 'it''s'"),
    column(`added${serial}`, "INTEGER", "NOT NULL DEFAULT -7"),
    column(`added${serial}`, "REAL", "DEFAULT 0.5"),
  ]);
  const sql = alter(`ADD COLUMN ${declaration(added, options?.includes("STRICT"))}`);
  return { name, sql, apply: (table) => table.columns.push({ ...added }) };
}

const remove = (columns, name) => columns.splice(columns.findIndex((each) => each.name === name), 1);
const rename = (columns, from, to) => (columns.find((each) => each.name === from).name = to);
