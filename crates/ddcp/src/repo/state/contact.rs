//! What is known of remotes from talking to them.

use rusqlite::{OptionalExtension, params};

use super::{State, StateError, waiting::put_aside};
use crate::{
    changeset::SiteId,
    database::{LeftOut, Origin},
    transport::Address,
};

/// What is known of a remote from talking to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contact {
    /// The site id it last answered with.
    pub site_id: Option<SiteId>,
    /// The database version it last answered with.
    pub db_version: Option<i64>,
    /// When it last answered, in seconds since 1970.
    pub last_contact: Option<i64>,
    /// What went wrong since.
    pub last_error: Option<String>,
    /// When that was, in seconds since 1970.
    pub last_error_at: Option<i64>,
}

impl State {
    /// What is known of the remote `name`, if its address is still `address`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn contact(&self, name: &str, address: &Address) -> Result<Contact, StateError> {
        let contact = self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT site_id, db_version, last_contact, last_error, last_error_at FROM contact
                     WHERE remote = ? AND address = ?",
                )?
                .query_row([name, &address.to_string()], |row| {
                    let site_id = row.get::<_, Option<Vec<u8>>>(0)?;
                    Ok(Contact {
                        site_id: site_id.and_then(|bytes| SiteId::from_bytes(&bytes).ok()),
                        db_version: row.get(1)?,
                        last_contact: row.get(2)?,
                        last_error: row.get(3)?,
                        last_error_at: row.get(4)?,
                    })
                })
                .optional()
        })?;
        Ok(contact.unwrap_or_default())
    }

    /// Notes that the remote `name`, come by in the way of `origin`, answered as its site. What lies here of the site that
    /// it was before waits for the next merge of this one.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn note_answer(
        &mut self,
        name: &str,
        address: &Address,
        origin: impl Into<Origin>,
        db_version: i64,
        now: i64,
    ) -> Result<(), StateError> {
        let Origin { site, way } = origin.into();
        let before = self.contact(name, address)?.site_id.filter(|before| *before != site);
        self.write(|transaction| {
            if let Some(before) = before {
                put_aside(transaction, Origin { site: before, way }, &site)?;
            }
            transaction
                .execute(
                    "INSERT INTO contact (remote, address, site_id, db_version, last_contact) VALUES (?, ?, ?, ?, ?)
                     ON CONFLICT (remote) DO UPDATE SET address = excluded.address, site_id = excluded.site_id,
                         db_version = excluded.db_version, last_contact = excluded.last_contact, last_error = NULL,
                         last_error_at = NULL",
                    params![name, address.to_string(), site.as_bytes(), db_version, now],
                )
                .map(drop)
        })
    }

    /// Notes that the remote `name`, which nobody has talked to yet, is `site`: its key has signed so.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn note_site(&mut self, name: &str, address: &Address, site: &SiteId) -> Result<(), StateError> {
        let sql = "INSERT INTO contact (remote, address, site_id) VALUES (?1, ?2, ?3)
             ON CONFLICT (remote) DO UPDATE SET address = ?2, site_id = ?3 WHERE address <> ?2 OR site_id IS NULL";
        let row = params![name, address.to_string(), site.as_bytes()];
        self.write(|transaction| transaction.execute(sql, row).map(drop))
    }

    /// Forgets what talking to the remote `name` has told: it is another one from now on.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn forget_contact(&mut self, name: &str) -> Result<(), StateError> {
        self.write(|transaction| transaction.execute("DELETE FROM contact WHERE remote = ?", [name]).map(drop))
    }

    /// Notes that talking to the remote `name` failed at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn note_error(&mut self, name: &str, address: &Address, error: &str, now: i64) -> Result<(), StateError> {
        let address = address.to_string();
        self.write(|transaction| {
            transaction.execute("DELETE FROM contact WHERE remote = ? AND address <> ?", [name, &address])?;
            transaction
                .execute(
                    "INSERT INTO contact (remote, address, last_error, last_error_at) VALUES (?, ?, ?, ?)
                     ON CONFLICT (remote) DO UPDATE SET last_error = excluded.last_error,
                         last_error_at = excluded.last_error_at",
                    params![name, address, error, now],
                )
                .map(drop)
        })
    }

    /// What the remote `name` at `address` has told that it has and cannot send.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn left_out(&self, name: &str, address: &Address) -> Result<LeftOut, StateError> {
        let sql = "SELECT left_out FROM contact WHERE remote = ? AND address = ?";
        let text: Option<Option<String>> =
            self.read(|c| c.prepare_cached(sql)?.query_row([name, &address.to_string()], |row| row.get(0)).optional())?;
        Ok(text.flatten().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    /// Adds to [`State::left_out`].
    ///
    /// # Errors
    /// [`StateError`].
    pub fn note_left_out(&mut self, name: &str, address: &Address, left_out: LeftOut) -> Result<(), StateError> {
        let mut all = self.left_out(name, address)?;
        all.extend(left_out);
        let text = serde_json::to_string(&all).unwrap_or_default();
        self.write(|t| t.execute("UPDATE contact SET left_out = ? WHERE remote = ?", [&text, name]).map(drop))
    }

    /// Forgets [`State::left_out`]: the remote is read from its start.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn forget_left_out(&mut self, name: &str) -> Result<(), StateError> {
        let sql = "UPDATE contact SET left_out = NULL WHERE remote = ? AND left_out IS NOT NULL";
        self.write(|t| t.execute(sql, [name]).map(drop))
    }
}
