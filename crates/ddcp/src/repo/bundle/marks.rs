//! Up to where a remote has been given bundles.

use rusqlite::{OptionalExtension, params};

use crate::{
    changeset::SiteId,
    repo::{State, StateError},
    transport::Address,
};

impl State {
    /// The version of the database `source` up to which the last marked bundle for the remote `name` at `address` went.
    ///
    /// # Errors
    /// [`StateError`].
    pub(super) fn mark(&self, name: &str, address: &Address, source: &SiteId) -> Result<Option<i64>, StateError> {
        self.read(|connection| {
            let sql = "SELECT version FROM bundle_mark WHERE remote = ? AND address = ? AND source = ?";
            let key = params![name, address.to_string(), source.as_bytes()];
            connection.query_row(sql, key, |row| row.get(0)).optional()
        })
    }

    /// Sets [`State::mark`].
    ///
    /// # Errors
    /// [`StateError`].
    pub(super) fn set_mark(
        &mut self,
        name: &str,
        address: &Address,
        source: &SiteId,
        version: i64,
    ) -> Result<(), StateError> {
        let sql = "INSERT OR REPLACE INTO bundle_mark (remote, address, source, version) VALUES (?, ?, ?, ?)";
        let row = params![name, address.to_string(), source.as_bytes(), version];
        self.write(|transaction| transaction.execute(sql, row).map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_one_remote_at_one_address_and_of_one_database() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = State::open(&dir.path().join("state.db")).unwrap();
        let [a, b] = [[1; 16], [2; 16]].map(|bytes| SiteId::from_bytes(&bytes).unwrap());
        let (here, there) = (Address::Path("/here.db".into()), Address::Path("/there.db".into()));
        state.set_mark("alice", &here, &a, 7).unwrap();
        state.set_mark("alice", &here, &a, 9).unwrap();
        assert_eq!(state.mark("alice", &here, &a).unwrap(), Some(9));
        assert_eq!(state.mark("alice", &there, &a).unwrap(), None);
        assert_eq!(state.mark("alice", &here, &b).unwrap(), None);
    }
}
