//! Any bytes given to `crsql_unpack_columns` are unpacked or refused, by the library and by SQL alike, and what was
//! unpacked packs to the same values again.
#![no_main]

use crsqlite::pack::{Value, pack, unpack};
use libfuzzer_sys::fuzz_target;
use rusqlite::Connection;

thread_local! {
    static DB: Connection = {
        let db = Connection::open_in_memory().expect("SQLite opens");
        crsqlite::register(&db).expect("the engine registers");
        db
    };
}

/// NaN can be packed, but SQLite makes NULL of it.
fn stored(value: Value<'_>) -> Value<'_> {
    match value {
        Value::Real(r) if r.is_nan() => Value::Null,
        other => other,
    }
}

/// What SQL makes of the package, packed again.
fn by_sql(db: &Connection, packed: &[u8]) -> rusqlite::Result<Vec<u8>> {
    let mut query = db.prepare_cached("SELECT cell FROM crsql_unpack_columns(?1)")?;
    let mut rows = query.query([packed])?;
    let mut again = vec![0];
    while let Some(row) = rows.next()? {
        let one = pack([row.get_ref(0)?]).expect("one value");
        again.extend_from_slice(&one[1..]);
        again[0] += 1;
    }
    Ok(again)
}

fuzz_target!(|packed: &[u8]| {
    let values = unpack(packed).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let cells = DB.with(|db| by_sql(db, packed));
    let (values, cells) = match (values, cells) {
        (Ok(values), Ok(cells)) => (values, cells),
        (Err(_), Err(_)) => return,
        (library, sql) => panic!("library: {library:?}, SQL: {sql:?}"),
    };
    let values = values.into_iter().map(stored).collect::<Vec<_>>();
    let again = pack(values.iter().copied()).expect("at most 255 values");
    assert_eq!(again, cells);
    let back = unpack(&again).expect("not empty").collect::<Result<Vec<_>, _>>().expect("just packed");
    assert_eq!(back, values);
});
