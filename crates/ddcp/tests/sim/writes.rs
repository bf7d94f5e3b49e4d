//! What applications write, by chance.

use rusqlite::types::Value;

use crate::{site::Site, world::World};

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
            5 if site.has_late_table => write_late(world, site),
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
            put_own(site, id, 0, Value::Blob(world.bytes(length)));
        }
        _ => {
            for _ in 0..3 {
                let value = Value::Blob(world.bytes(700_000));
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
        Some(_) if site.has_late_column && world.chance(0.3) => {
            let late = value(world);
            let sql = "UPDATE own SET late = ? WHERE site = ? AND id = ?";
            site.connection().execute(sql, (&late, writer, id)).unwrap();
            site.expected.own.entry(id).and_modify(|row| row.2 = late);
        }
        Some(n) => {
            site.connection().execute("UPDATE own SET n = n + 1 WHERE site = ? AND id = ?", (writer, id)).unwrap();
            site.expected.own.entry(id).and_modify(|row| row.0 = n + 1);
        }
        None => put_own(site, id, 0, value(world)),
    }
}

fn put_own(site: &mut Site, id: i64, n: i64, body: Value) {
    let sql = "INSERT INTO own (site, id, n, body) VALUES (?, ?, ?, ?)
               ON CONFLICT DO UPDATE SET n = excluded.n, body = excluded.body";
    site.connection().execute(sql, (site.writer, id, n, &body)).unwrap();
    let row = site.expected.own.entry(id).or_insert((n, Value::Null, Value::Text("none".to_owned())));
    (row.0, row.1) = (n, body);
}

/// Rows that are never changed.
fn append(world: &World, site: &mut Site) {
    let id = site.new_id().to_string();
    site.connection().execute("INSERT INTO log VALUES (?, ?)", (&id, value(world))).unwrap();
    site.expected.log.insert(id);
}

fn write_late(world: &World, site: &mut Site) {
    let id = site.new_id();
    site.expected.late.insert(id);
    site.connection().execute("INSERT INTO late VALUES (?, ?)", (id, value(world))).unwrap();
}

/// Rows that all sites write, change, delete and rename.
fn write_shared(world: &World, site: &Site) {
    let id = world.number(0..4);
    let value = value(world);
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

fn value(world: &World) -> Value {
    match world.number(0..6) {
        0 => Value::Null,
        1 => Value::Integer(world.number(0..3) as i64),
        2 => Value::Real(world.number(0..3) as f64 / 2.0),
        3 => Value::Text("text".to_owned()),
        4 => Value::Text("long text ".repeat(world.number(1..200) as usize)),
        _ => Value::Blob(world.bytes(3)),
    }
}
