// Random statements of an application on one table.
import { randomKey, randomValue } from "./values.js";

const list = (columns) => columns.map((each) => `"${each.name}"`).join(", ");
const equals = (columns) => columns.map((each) => `"${each.name}" = ?`);

function where({ keys }, random) {
  // IS, not =, as two blobs or texts may be empty and a key of no type may be anything.
  return {
    text: keys.map((key) => `"${key.name}" IS ?`).join(" AND "),
    params: keys.map((key) => randomKey(random, key.type)),
  };
}

function insert(table, random) {
  const columns = random.some(table.columns, 0.8);
  const verb = random.pick(["INSERT", "INSERT", "INSERT OR REPLACE", "INSERT OR REPLACE", "INSERT OR IGNORE"]);
  const marks = [...table.keys, ...columns].map(() => "?").join(", ");
  const params = [
    ...table.keys.map((key) => randomKey(random, key.type)),
    ...columns.map((each) => randomValue(random, each.type)),
  ];
  return { sql: `${verb} INTO "${table.name}" (${list([...table.keys, ...columns])}) VALUES (${marks})`, params };
}

function upsert(table, random) {
  const { sql, params } = insert(table, random);
  const set = random.some(table.columns, 0.5);
  const action = set.length > 0 ? `UPDATE SET ${equals(set).join(", ")}` : "NOTHING";
  return {
    sql: `${sql.replace(/^INSERT( OR \w+)?/, "INSERT")} ON CONFLICT (${list(table.keys)}) DO ${action}`,
    params: [...params, ...set.map((each) => randomValue(random, each.type))],
  };
}

function update(table, random) {
  if (table.columns.length === 0) return changeKey(table, random);
  const some = random.some(table.columns, 0.4);
  const set = some.length > 0 ? some : [random.pick(table.columns)];
  const row = where(table, random);
  const all = random.chance(0.1);
  return {
    sql: `UPDATE "${table.name}" SET ${equals(set).join(", ")}${all ? "" : ` WHERE ${row.text}`}`,
    params: [...set.map((each) => randomValue(random, each.type)), ...(all ? [] : row.params)],
  };
}

function changeKey(table, random) {
  const some = random.some(table.columns, 0.3);
  const row = where(table, random);
  return {
    sql: `UPDATE ${random.pick(["", "OR REPLACE", "OR IGNORE"])} "${table.name}"
      SET ${equals([...table.keys, ...some]).join(", ")} WHERE ${row.text}`.replace(/\s+/g, " "),
    params: [...where(table, random).params, ...some.map((each) => randomValue(random, each.type)), ...row.params],
  };
}

function remove(table, random) {
  if (random.chance(0.05)) return { sql: `DELETE FROM "${table.name}"`, params: [] };
  const row = where(table, random);
  return { sql: `DELETE FROM "${table.name}" WHERE ${row.text}`, params: row.params };
}

/** A statement that inserts, updates, upserts or deletes; changes of keys only if `changingKeys`. */
export function randomWrite(random, table, { changingKeys }) {
  const kinds = [insert, insert, insert, upsert, remove];
  kinds.push(...(changingKeys ? [update, update, changeKey] : table.columns.length > 0 ? [update, update, update] : []));
  return random.pick(kinds)(table, random);
}
