//! Which changes a database has a place for.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use rusqlite::types::ValueRef;

use super::{
    super::{Database, DatabaseError, encoding::Encoding},
    Reason,
    far::{self, Recorded},
    keys::{Keys, Unfit},
    strangers::Strangers,
};
use crate::{
    changeset::{Change, PackTable, SENTINEL, check_pk, key_values},
    database::TableShape,
};

/// The places here of what another database has. Names are compared as SQLite compares them: `Note` is `note`.
pub(super) struct Fit<'d> {
    database: &'d Database,
    encoding: Encoding,
    strangers: Strangers,
    /// By the names that the other database gives its tables.
    tables: HashMap<String, Result<Place, Reason>>,
    /// The last key that was looked at: mostly that of the next change, too.
    last: RefCell<Option<LastKey>>,
}

/// A key, and why no row here can have it, if none can.
struct LastKey {
    table: Arc<str>,
    pk: Arc<[u8]>,
    unfit: Option<Reason>,
}

/// A table here, of the same name and with the same key as one of the other database.
pub(super) struct Place {
    shape: TableShape,
    /// By name, the places of columns among those of the shape.
    columns: HashMap<String, usize>,
    keys: Keys,
    recorded: Recorded,
}

/// The names here of what a change is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'f> {
    pub(super) table: &'f str,
    pub(super) cid: &'f str,
    /// How many columns the table has besides its key.
    pub(super) columns: usize,
}

impl<'d> Fit<'d> {
    pub(super) fn new(
        database: &'d Database,
        strangers: Strangers,
        foreign: &[PackTable],
    ) -> Result<Self, DatabaseError> {
        let local = database.tables()?;
        let place = |table: &PackTable| Ok((table.name.clone(), database.wrap(place(database, &local, table))?));
        let tables = foreign.iter().map(place).collect::<Result<_, DatabaseError>>()?;
        Ok(Self { database, encoding: database.encoding()?, strangers, tables, last: RefCell::default() })
    }

    /// What the change is about is called here, or why there is no place for it.
    ///
    /// # Errors
    /// Those of reading what is here.
    pub(super) fn names(&self, change: &Change) -> Result<Result<Names<'_>, Reason>, DatabaseError> {
        let found = self.place(change).and_then(|place| Ok((place, place.names(change)?)));
        let (place, names) = match found {
            Ok(found) => found,
            Err(reason) => return Ok(Err(reason)),
        };
        if let Some(reason) = self.database.wrap(self.unfit_key(place, change))? {
            return Ok(Err(reason));
        }
        if self.strangers.keep_out(&change.site_id) {
            return Ok(Err(Reason::TooManySites));
        }
        if !self.encoding.holds(change) {
            return Ok(Err(Reason::Text));
        }
        let is_far = far::is_high(change)
            && self.database.wrap(place.recorded.is_far(&self.database.connection, change, &key_of(change)))?;
        Ok(if is_far { Err(Reason::Far) } else { Ok(names) })
    }

    /// Why no row here can have the key of the change.
    fn unfit_key(&self, place: &Place, change: &Change) -> rusqlite::Result<Option<Reason>> {
        let mut last = self.last.borrow_mut();
        if let Some(last) = &*last
            && Arc::ptr_eq(&last.pk, &change.pk)
            && Arc::ptr_eq(&last.table, &change.table)
        {
            return Ok(last.unfit.clone());
        }
        let unfit = place.unfit_key(self.database, change)?;
        *last = Some(LastKey { table: change.table.clone(), pk: change.pk.clone(), unfit: unfit.clone() });
        Ok(unfit)
    }

    fn place(&self, change: &Change) -> Result<&Place, Reason> {
        match self.tables.get(&*change.table) {
            Some(place) => place.as_ref().map_err(Clone::clone),
            None => Err(Reason::NoTable),
        }
    }
}

impl Place {
    fn names(&self, change: &Change) -> Result<Names<'_>, Reason> {
        let cid = match &*change.cid {
            SENTINEL => SENTINEL,
            name => self.column(name).ok_or_else(|| Reason::NoColumn(Arc::clone(&change.cid)))?,
        };
        Ok(Names { table: &self.shape.name, cid, columns: self.shape.columns.len() })
    }

    fn column(&self, name: &str) -> Option<&str> {
        let columns = &self.shape.columns;
        let exact = self.columns.get(name).map(|&column| &columns[column]);
        let same = || columns.iter().find(|column| column.name.eq_ignore_ascii_case(name));
        exact.or_else(same).map(|column| column.name.as_str())
    }

    fn unfit_key(&self, database: &Database, change: &Change) -> rusqlite::Result<Option<Reason>> {
        if check_pk(&change.pk, self.shape.key_columns.len()).is_err() {
            return Ok(Some(Reason::OtherKey));
        }
        Ok(self.keys.check(&database.connection, &key_of(change))?.map(|unfit| match unfit {
            Unfit::Altered => Reason::KeyAltered,
            Unfit::Taken => Reason::KeyTaken,
        }))
    }
}

fn key_of(change: &Change) -> Vec<ValueRef<'_>> {
    key_values(&change.pk).into_iter().flatten().flatten().collect()
}

fn place(database: &Database, local: &[TableShape], foreign: &PackTable) -> rusqlite::Result<Result<Place, Reason>> {
    let Some(shape) = local.iter().find(|table| table.name.eq_ignore_ascii_case(&foreign.name)) else {
        return Ok(Err(Reason::NoTable));
    };
    if !shape.has_key(&foreign.key_columns) {
        return Ok(Err(Reason::OtherKey));
    }
    let columns = shape.columns.iter().enumerate().map(|(at, column)| (column.name.clone(), at)).collect();
    let keys = Keys::of(&database.connection, shape)?;
    let recorded = Recorded::of(shape, &database.recorded_keys(shape)?);
    Ok(Ok(Place { shape: shape.clone(), columns, keys, recorded }))
}
