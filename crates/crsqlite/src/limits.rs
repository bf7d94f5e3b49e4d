//! Bounds on what one connection may be made to do, whoever wrote the SQL that it is given.

use rusqlite::ffi;

use crate::ffi::Db;

/// What is bounded; see <https://sqlite.org/c3ref/c_limit_attached.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Bytes of a text or blob, and of a row.
    Length,
    /// Bytes of a statement.
    Statement,
    /// Instructions of a compiled statement. One that takes more fails with the code for memory that has run out.
    Instructions,
}

/// Sets a limit of `connection`, and gives the one that it had. SQLite takes none that is above its own.
pub fn set(connection: &rusqlite::Connection, limit: Limit, most: i32) -> i32 {
    let id = match limit {
        Limit::Length => ffi::SQLITE_LIMIT_LENGTH,
        Limit::Statement => ffi::SQLITE_LIMIT_SQL_LENGTH,
        Limit::Instructions => ffi::SQLITE_LIMIT_VDBE_OP,
    };
    Db::of(connection).set_limit(id, most.max(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_over_a_limit_fail_and_the_connection_works_on() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        let sum = |terms: usize| format!("SELECT {}", vec!["random()"; terms].join(" + "));
        assert!(connection.prepare(&sum(500)).is_ok());
        let before = set(&connection, Limit::Instructions, 200);
        let error = connection.prepare(&sum(500)).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::OutOfMemory));
        assert!(connection.prepare(&sum(20)).is_ok());
        assert_eq!(set(&connection, Limit::Instructions, before), 200);
        assert!(connection.prepare(&sum(500)).is_ok());
        set(&connection, Limit::Length, 1000);
        assert!(connection.query_row("SELECT length(zeroblob(1001))", [], |_| Ok(())).is_err());
        set(&connection, Limit::Statement, 100);
        assert!(connection.prepare(&sum(20)).is_err());
    }
}
