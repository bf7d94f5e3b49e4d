//! What applications write, by chance.

use rusqlite::{ToSql, params_from_iter};

use crate::{
    cells::Cell,
    schemas::{Column, Kind, REFUSED, Table},
    site::Site,
    world::World,
};

/// One transaction of a few statements, which is sometimes rolled back.
pub(crate) fn write(world: &World, site: &mut Site) {
    let rolls_back = world.chance(0.05);
    let statements = 1 + world.number(0..4);
    site.sql("BEGIN");
    if rolls_back {
        (0..statements).for_each(|_| write_shared(world, site));
        site.sql("ROLLBACK");
        return;
    }
    for _ in 0..statements {
        match world.number(0..10) {
            0..=3 => write_own(world, site),
            4 => append(world, site),
            5 if site.has_table("late") => write_late(world, site),
            _ => write_shared(world, site),
        }
    }
    site.sql("COMMIT");
    site.expected.written += 1;
    world.note(&format!("{} writes", site.index));
}

/// Many rows, or values that do not fit into one message or one pack, in one transaction.
pub(crate) fn write_much(world: &World, site: &mut Site) {
    site.sql("BEGIN");
    match world.number(0..3) {
        0 => (0..200).for_each(|_| append(world, site)),
        1 => {
            // Noise: what can be compressed fits.
            let length = world.number(100_000..400_000) as usize;
            let id = world.number(0..6) as i64;
            put_own(site, id, 0, Cell::Blob(world.bytes(length)));
        }
        _ => {
            for _ in 0..3 {
                let value = Cell::Blob(world.bytes(700_000));
                let sql = "INSERT INTO shared VALUES (?, 'big', ?) ON CONFLICT DO UPDATE SET body = excluded.body";
                let id = world.number(0..6) as i64;
                site.connection().execute(sql, (id, value)).unwrap();
            }
        }
    }
    site.sql("COMMIT");
    world.note(&format!("{} writes much", site.index));
}

/// Rows that nobody else writes: the last that this site wrote is what must be everywhere.
fn write_own(world: &World, site: &mut Site) {
    let (writer, id) = (site.writer, world.number(0..6) as i64);
    match site.expected.own.get(&id).map(|row| row.0) {
        Some(_) if world.chance(0.25) => {
            site.connection().execute("DELETE FROM own WHERE site = ? AND id = ?", (writer, id)).unwrap();
            site.expected.own.remove(&id);
        }
        Some(_) if site.has_late_column() && world.chance(0.3) => {
            let late = value(world, site.bytes);
            let sql = "UPDATE own SET late = ? WHERE site = ? AND id = ?";
            site.connection().execute(sql, (&late, writer, id)).unwrap();
            site.expected.own.entry(id).and_modify(|row| row.2 = late);
        }
        Some(n) => {
            site.connection().execute("UPDATE own SET n = n + 1 WHERE site = ? AND id = ?", (writer, id)).unwrap();
            site.expected.own.entry(id).and_modify(|row| row.0 = n + 1);
        }
        None => put_own(site, id, 0, value(world, site.bytes)),
    }
}

fn put_own(site: &mut Site, id: i64, n: i64, body: Cell) {
    let sql = "INSERT INTO own (site, id, n, body) VALUES (?, ?, ?, ?)
               ON CONFLICT DO UPDATE SET n = excluded.n, body = excluded.body";
    site.connection().execute(sql, (site.writer, id, n, &body)).unwrap();
    let row = site.expected.own.entry(id).or_insert((n, Cell::Null, Cell::word("none")));
    (row.0, row.1) = (n, body);
}

/// Rows that are never changed.
pub(crate) fn append(world: &World, site: &mut Site) {
    let id = site.new_id().to_string();
    site.connection().execute("INSERT INTO log VALUES (?, ?)", (&id, value(world, site.bytes))).unwrap();
    site.expected.log.insert(id);
}

fn write_late(world: &World, site: &mut Site) {
    let id = site.new_id();
    site.expected.late.insert(id);
    site.connection().execute("INSERT INTO late VALUES (?, ?)", (id, value(world, site.bytes))).unwrap();
}

/// Rows that all sites write, change, delete and rename.
fn write_shared(world: &World, site: &Site) {
    let id = world.number(0..4);
    let value = value(world, site.bytes);
    let connection = site.connection();
    let done = match world.number(0..7) {
        0 | 1 => {
            let sql = "INSERT INTO shared VALUES (?, 'title', ?) ON CONFLICT DO UPDATE SET body = excluded.body";
            connection.execute(sql, (id, value))
        }
        2 => connection.execute("UPDATE shared SET body = ? WHERE id >= ?", (value, id)),
        3 => connection.execute("UPDATE OR IGNORE shared SET id = id + 1 WHERE id = ?", [id]),
        4 => connection.execute("DELETE FROM shared WHERE id = ?", [id]),
        5 => connection.execute("INSERT OR IGNORE INTO marks VALUES (?, 'mark')", [id]),
        _ => connection.execute("DELETE FROM marks WHERE a = ?", [id]),
    };
    done.unwrap();
}

/// One statement on a table that was drawn, which may be refused.
pub(crate) fn write_drawn(world: &World, site: &mut Site, table: &Table) {
    let drawing = Drawing { world, table, careful: site.careful.contains(&table.name), bytes: site.bytes };
    let (sql, values) = match world.number(0..10) {
        0..=3 => drawing.insert(),
        4..=6 => drawing.update(),
        7 => drawing.update_all(),
        8 => drawing.rename(),
        _ => (format!("DELETE FROM {} WHERE {}", table.name, drawing.found()), drawing.key(&table.keys)),
    };
    let connection = site.connection();
    connection.execute_batch("BEGIN").unwrap();
    let done = connection.execute(&sql, params_from_iter(values.iter().map(|value| value as &dyn ToSql)));
    if !connection.is_autocommit() {
        connection.execute_batch(if done.is_ok() { "COMMIT" } else { "ROLLBACK" }).unwrap();
    }
    site.expected.written += u32::from(done.is_ok());
    world.note(&format!("{} writes: {sql} {values:?}: {done:?}", site.index));
}

/// Draws statements, each with its values.
struct Drawing<'a> {
    world: &'a World,
    table: &'a Table,
    /// Whether rows that hold what is refused are left alone, and none is made.
    careful: bool,
    bytes: bool,
}

impl Drawing<'_> {
    fn insert(&self) -> (String, Vec<Cell>) {
        let (names, columns) = (self.table.names(), &self.table.columns);
        let excluded: Vec<_> = columns.iter().map(|column| format!("{0} = excluded.{0}", column.name)).collect();
        let update = format!(" ON CONFLICT DO UPDATE SET {} WHERE true{}", excluded.join(", "), self.not_refused());
        let (verb, clause) = match self.world.number(0..3) {
            0 => ("INSERT OR IGNORE", ""),
            1 if !self.careful => ("INSERT OR REPLACE", ""),
            _ => ("INSERT", &*update),
        };
        let (name, places) = (&self.table.name, vec!["?"; names.len()].join(", "));
        let sql = format!("{verb} INTO {name} ({}) VALUES ({places}){clause}", names.join(", "));
        (sql, self.key(&self.table.keys).into_iter().chain(self.values(columns)).collect())
    }

    /// One column or two of one row.
    fn update(&self) -> (String, Vec<Cell>) {
        let columns = self.some_columns();
        let sql = format!("UPDATE {} SET {} WHERE {}", self.table.name, set(&columns), self.found());
        (sql, self.values(&columns).into_iter().chain(self.key(&self.table.keys)).collect())
    }

    fn update_all(&self) -> (String, Vec<Cell>) {
        let columns = self.some_columns();
        let sql = format!("UPDATE {} SET {} WHERE true{}", self.table.name, set(&columns), self.not_refused());
        (sql, self.values(&columns))
    }

    /// Gives a row another key.
    fn rename(&self) -> (String, Vec<Cell>) {
        let key = &self.table.keys[..1];
        let sql = format!("UPDATE {} SET {} WHERE {}", self.table.name, set(key), self.found());
        (sql, self.key(key).into_iter().chain(self.key(&self.table.keys)).collect())
    }

    fn some_columns(&self) -> Vec<Column> {
        let columns = &self.table.columns;
        let chosen = [self.world.index(columns.len()), self.world.index(columns.len())];
        columns.iter().enumerate().filter(|(at, _)| chosen.contains(at)).map(|(_, column)| *column).collect()
    }

    fn found(&self) -> String {
        let keys = self.table.keys.iter().map(|key| format!("{} = ?", key.name)).collect::<Vec<_>>();
        keys.join(" AND ") + &self.not_refused()
    }

    fn not_refused(&self) -> String {
        if self.careful { format!(" AND title IS NOT '{REFUSED}'") } else { String::new() }
    }

    fn key(&self, columns: &[Column]) -> Vec<Cell> {
        columns.iter().map(|column| key_of(self.world, column.kind)).collect()
    }

    fn values(&self, columns: &[Column]) -> Vec<Cell> {
        let value = |column: &Column| match value_of(self.world, column.kind, self.bytes) {
            value if self.careful && value == Cell::word(REFUSED) => Cell::word("good"),
            value => value,
        };
        columns.iter().map(value).collect()
    }
}

fn set(columns: &[Column]) -> String {
    columns.iter().map(|column| format!("{} = ?", column.name)).collect::<Vec<_>>().join(", ")
}

fn key_of(world: &World, kind: Kind) -> Cell {
    let number = world.number(0..4);
    match kind {
        Kind::Integer => Cell::Integer(number as i64),
        Kind::Blob => Cell::Blob(vec![number as u8; 2]),
        _ => Cell::word(&format!("k{number}")),
    }
}

fn value_of(world: &World, kind: Kind, bytes: bool) -> Cell {
    if world.chance(0.1) {
        return Cell::Null;
    }
    let number = world.number(0..5) as i64;
    match kind {
        // What strict tables do not take.
        Kind::Integer | Kind::Real if world.chance(0.1) => Cell::word("none"),
        Kind::Integer if world.chance(0.1) => Cell::Integer(i64::MIN),
        Kind::Integer => Cell::Integer(number - 1),
        Kind::Real => Cell::Real(number as f64 / 2.0),
        Kind::Text => text(world, bytes),
        Kind::Json if world.chance(0.15) => Cell::word("no JSON"),
        Kind::Json => Cell::word(&format!("{{\"k\": {number}}}")),
        Kind::Blob => Cell::Blob(world.bytes(3)),
        Kind::Any => value(world, bytes),
    }
}

fn text(world: &World, bytes: bool) -> Cell {
    match world.number(0..8) {
        0 => Cell::word(REFUSED),
        1 => Cell::word("longer than some"),
        2 => Cell::word(""),
        3 => Cell::word("Word "),
        4 if bytes => Cell::Text(vec![b'a', 0xff, 0xc3]),
        _ => Cell::word("word"),
    }
}

fn value(world: &World, bytes: bool) -> Cell {
    match world.number(0..7) {
        0 => Cell::Null,
        1 => Cell::Integer(world.number(0..3) as i64),
        2 => Cell::Real(world.number(0..3) as f64 / 2.0),
        3 => Cell::word("text"),
        4 => Cell::word(&"long text ".repeat(world.number(1..200) as usize)),
        5 if bytes => Cell::Text(vec![0xff; 2]),
        _ => Cell::Blob(world.bytes(3)),
    }
}
