//! The state of one connection.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use rusqlite::types::ValueRef;

use crate::attached::{self, Attached};
use crate::catalog::{Catalog, Crr};
use crate::error::{Error, Result};
use crate::ffi::{Db, Slot, Stmt};
use crate::load::{self, Settings};
use crate::memo::Memo;
use crate::versions::Versions;

/// Versions above this are refused from others, so that nobody can bring a file to a version that
/// has no successor. It leaves room for 2^32 transactions.
pub(crate) const MAX_FOREIGN_VERSION: i64 = i64::MAX - (1 << 32);

/// The function that gives the engine to this library, and to nobody else.
pub(crate) const SHARE: &str = "crsql_internal_engine";

const USER_TRIGGERS: &str = "SELECT tbl_name FROM main.sqlite_master WHERE type = 'trigger' \
       AND lower(name) NOT IN (lower(tbl_name) || '__crsql_itrig', lower(tbl_name) || '__crsql_utrig', \
                               lower(tbl_name) || '__crsql_dtrig') \
     UNION SELECT tbl_name FROM temp.sqlite_master WHERE type = 'trigger'";

/// What errors say for which CR-SQLite has a fixed text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Messages {
    /// That text and nothing else.
    Verbatim,
    /// That text and the reason.
    Explained,
}

impl Messages {
    /// `text` is CR-SQLite's.
    pub(crate) fn compose(self, text: &str, reason: impl std::fmt::Display) -> String {
        match self {
            Messages::Verbatim => text.to_owned(),
            Messages::Explained => format!("{text}: {reason}"),
        }
    }
}

/// Everything the functions and tables of one connection share.
pub(crate) struct Engine {
    me: Weak<Engine>,
    pub(crate) db: Db,
    pub(crate) messages: Messages,
    pub(crate) site_id: [u8; 16],
    /// The setting `merge-equal-values`; only 1 means on.
    pub(crate) merge_equal_values: Cell<i64>,
    /// While not 0, CRR triggers do nothing.
    pub(crate) sync_bit: Cell<i64>,
    /// Records that merges changed since the transaction began.
    pub(crate) rows_impacted: Cell<i64>,
    pub(crate) versions: Versions,
    /// Merges in progress: more than one if a trigger inserts into `crsql_changes`.
    pub(crate) merging: Cell<u32>,
    /// What the last merged row left known about its base row.
    pub(crate) memo: RefCell<Option<Memo>>,
    /// Ordinals of foreign sites by id.
    ordinals: RefCell<HashMap<Box<[u8]>, i64>>,
    /// The one asked for last: mostly the one asked for next.
    last_ordinal: RefCell<(Box<[u8]>, i64)>,
    cache: RefCell<Option<Rc<Cache>>>,
    /// Whether the table `crsql_closing` is connected: it tells when to let the statements go.
    pub(crate) attached: Cell<bool>,
    /// No database was attached when the open transaction first wrote to a CRR.
    pub(crate) alone: Cell<bool>,
    /// The databases attached when the open transaction first wrote to a CRR; none before.
    databases: RefCell<Option<Rc<Vec<Attached>>>>,
    /// Whether the engine will be told how the open write transaction ends.
    taking_part: Cell<bool>,
}

/// What is prepared and can be thrown away at any time.
pub(crate) struct Cache {
    pub(crate) catalog: Catalog,
    pre_compact: Slot,
    pub(crate) site_by_ordinal: Slot,
    pub(crate) ordinal_by_site: Slot,
    pub(crate) add_site: Slot,
    /// Opens a savepoint around the write of one row, undoes what was done since, ends it.
    pub(crate) savepoint: Slot,
    pub(crate) rollback_to: Slot,
    pub(crate) release: Slot,
    /// The tables that have triggers which are not the engine's.
    pub(crate) user_triggers: Slot,
    /// Makes `crsql_changes` one of the tables that the transaction writes to, and writes nothing.
    take_part: Slot,
    /// By the names of tables that are being altered: what notes a row before it is written to.
    pub(crate) before: RefCell<HashMap<String, Rc<Slot>>>,
}

impl Engine {
    pub(crate) fn new(db: Db, settings: Settings, messages: Messages) -> Rc<Engine> {
        Rc::new_cyclic(|me| Engine {
            me: Weak::clone(me),
            db,
            messages,
            site_id: settings.site_id,
            merge_equal_values: Cell::new(settings.merge_equal_values),
            sync_bit: Cell::new(0),
            rows_impacted: Cell::new(0),
            versions: Versions::default(),
            merging: Cell::new(0),
            memo: RefCell::new(None),
            ordinals: RefCell::new(HashMap::new()),
            last_ordinal: RefCell::default(),
            cache: RefCell::new(None),
            attached: Cell::new(false),
            alone: Cell::new(false),
            databases: RefCell::new(None),
            taking_part: Cell::new(false),
        })
    }

    /// The engine itself, as [`Db::shared`] gives it.
    pub(crate) fn me(&self) -> Option<Rc<dyn Any>> {
        self.me.upgrade().map(|me| me as Rc<dyn Any>)
    }

    /// The engine that is registered on the connection.
    pub(crate) fn of(db: Db) -> Result<Rc<Engine>> {
        match db.shared(SHARE) {
            Ok(Some(engine)) => Ok(engine),
            Ok(None) | Err(_) => Err(Error::misuse("the engine is not registered on this connection by this library")),
        }
    }

    /// Statements and catalog, fit for the current schema.
    pub(crate) fn cache(&self) -> Result<Rc<Cache>> {
        let cached = self.cache.borrow().clone();
        if let Some(cache) = cached
            && cache.catalog.is_current(self.db)?
        {
            return Ok(cache);
        }
        self.reload()
    }

    fn reload(&self) -> Result<Rc<Cache>> {
        self.forget_rows();
        self.cache.replace(None);
        self.prepare()?;
        let master = "SELECT value FROM main.crsql_master WHERE key = 'pre_compact_dbversion'";
        let cache = Rc::new(Cache {
            catalog: Catalog::load(self.db)?,
            pre_compact: Slot::new(master),
            site_by_ordinal: Slot::new("SELECT site_id FROM main.crsql_site_id WHERE ordinal = ?1"),
            ordinal_by_site: Slot::new("SELECT ordinal FROM main.crsql_site_id WHERE site_id = ?1"),
            add_site: Slot::new("INSERT INTO main.crsql_site_id (site_id) VALUES (?1)"),
            savepoint: Slot::new("SAVEPOINT crsql_row"),
            rollback_to: Slot::new("ROLLBACK TO crsql_row"),
            release: Slot::new("RELEASE crsql_row"),
            user_triggers: Slot::new(USER_TRIGGERS),
            take_part: Slot::new("DELETE FROM main.crsql_changes WHERE 0"),
            before: RefCell::new(HashMap::new()),
        });
        self.cache.replace(Some(Rc::clone(&cache)));
        Ok(cache)
    }

    /// Sees to it that the engine's tables are there, without reading what the schema says of others.
    pub(crate) fn prepare(&self) -> Result<()> {
        self.attach()?;
        load::restore(self.db, &self.site_id)
    }

    /// Connects the table that tells when the connection is closed.
    fn attach(&self) -> Result<()> {
        if self.attached.get() {
            return Ok(());
        }
        Stmt::prepare(self.db, "SELECT 1 FROM crsql_closing").map(drop)
    }

    /// Lets all prepared statements go.
    pub(crate) fn release_statements(&self) {
        self.forget_rows();
        let released = self.cache.replace(None);
        drop(released);
    }

    /// Forgets what was remembered of rows and sites, because it may have changed or been undone.
    pub(crate) fn forget_rows(&self) {
        self.memo.replace(None);
        self.ordinals.borrow_mut().clear();
        self.last_ordinal.take();
    }

    /// The CRR of this name in the current schema.
    pub(crate) fn table(&self, name: &str) -> Result<Option<Rc<Crr>>> {
        Ok(self.cache()?.catalog.table(name).cloned())
    }

    /// The version of the last committed transaction.
    pub(crate) fn db_version(&self) -> Result<i64> {
        if let Some(current) = self.versions.checked() {
            return Ok(current);
        }
        // Looking at the schema reads the database, which shows what others have committed.
        let cache = self.cache()?;
        let data_version = self.db.data_version();
        let current = match self.versions.at(data_version) {
            Some(current) => current,
            None => {
                let stored = self.stored_version(&cache)?;
                self.versions.found(stored, data_version);
                stored
            }
        };
        if self.db.is_writing() {
            self.take_part_with(&cache)?;
            self.versions.hold();
        }
        Ok(current)
    }

    /// Sees to it that the engine is told how the open write transaction ends, if there is one. What is remembered of
    /// a transaction must not be remembered without it.
    ///
    /// SQLite's commit and rollback hooks would tell too, but a connection has one of each, and they are the
    /// application's.
    pub(crate) fn take_part(&self) -> Result<()> {
        if self.taking_part.get() || !self.db.is_writing() {
            return Ok(());
        }
        let cache = self.cache()?;
        self.take_part_with(&cache)
    }

    fn take_part_with(&self, cache: &Cache) -> Result<()> {
        if self.taking_part.get() { Ok(()) } else { cache.take_part.get(self.db)?.exec(&[]) }
    }

    /// The attached databases, looked up once in a transaction.
    pub(crate) fn attached(&self) -> Result<Rc<Vec<Attached>>> {
        let known = self.databases.borrow().clone();
        if let Some(known) = known {
            return Ok(known);
        }
        let found = Rc::new(attached::list(self.db)?);
        self.alone.set(found.is_empty());
        self.databases.replace(Some(Rc::clone(&found)));
        Ok(found)
    }

    /// The engine takes part in the open write transaction.
    pub(crate) fn begun(&self) {
        self.taking_part.set(true);
    }

    fn ended(&self) {
        self.taking_part.set(false);
        self.alone.set(false);
        self.databases.replace(None);
    }

    /// The transaction in which the engine took part was committed.
    pub(crate) fn committed(&self) {
        self.ended();
        self.versions.commit(self.db.data_version());
        self.rows_impacted.set(0);
        self.memo.replace(None);
    }

    /// The transaction in which the engine took part was rolled back.
    pub(crate) fn rolled_back(&self) {
        self.ended();
        self.versions.rollback(self.db.data_version());
        self.rows_impacted.set(0);
        self.forget_rows();
    }

    /// Also where no table is a CRR any more: a version that was given is not given again. (CR-SQLite begins at 0 again.)
    fn stored_version(&self, cache: &Cache) -> Result<i64> {
        let max = cache.catalog.max_version(self.db)?.unwrap_or(0);
        let mut stmt = cache.pre_compact.get(self.db)?;
        let mut rows = stmt.query(&[])?;
        let compacted = if rows.next()? { rows.int(0) } else { 0 };
        Ok(max.max(compacted))
    }

    /// The version of the open transaction, raised to `min` if it is lower.
    pub(crate) fn next_db_version(&self, min: i64) -> Result<i64> {
        let current = self.db_version()?;
        self.versions
            .reserve(current, min)
            .ok_or_else(|| Error::Metadata("the database has reached its highest possible version".to_owned()))
    }

    /// The ordinal of a site that won a record: 0 for this database (also for no id at all), a new
    /// one for an id never seen.
    pub(crate) fn ordinal(&self, cache: &Cache, site_id: &[u8]) -> Result<i64> {
        if site_id.is_empty() || site_id == self.site_id {
            return Ok(0);
        }
        if *self.last_ordinal.borrow().0 == *site_id {
            return Ok(self.last_ordinal.borrow().1);
        }
        let known = self.ordinals.borrow().get(site_id).copied();
        let ordinal = match known {
            Some(ordinal) => ordinal,
            None => self.find_or_add_ordinal(cache, site_id)?,
        };
        self.ordinals.borrow_mut().insert(site_id.into(), ordinal);
        self.last_ordinal.replace((site_id.into(), ordinal));
        Ok(ordinal)
    }

    fn find_or_add_ordinal(&self, cache: &Cache, site_id: &[u8]) -> Result<i64> {
        if let Some(ordinal) = self.find_ordinal(cache, site_id)? {
            return Ok(ordinal);
        }
        cache.add_site.get(self.db)?.exec(&[ValueRef::Blob(site_id)])?;
        Ok(self.db.last_insert_rowid())
    }

    /// The ordinal of a known site.
    pub(crate) fn find_ordinal(&self, cache: &Cache, site_id: &[u8]) -> Result<Option<i64>> {
        let mut stmt = cache.ordinal_by_site.get(self.db)?;
        let param = [ValueRef::Blob(site_id)];
        let mut rows = stmt.query(&param)?;
        Ok(if rows.next()? { Some(rows.int(0)) } else { None })
    }

    /// Runs `body` while CRR triggers are switched off.
    pub(crate) fn untracked<R>(&self, body: impl FnOnce() -> R) -> R {
        /// Puts the bit back also if `body` panics, or no later write would be recorded.
        struct Restore<'e>(&'e Cell<i64>, i64);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.set(self.1);
            }
        }
        let _restore = Restore(&self.sync_bit, self.sync_bit.replace(1));
        body()
    }
}
