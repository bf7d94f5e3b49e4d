//! Which changes a database has a place for.

use std::{collections::HashMap, sync::Arc};

use super::{super::encoding::Encoding, Reason, strangers::Strangers};
use crate::{
    changeset::{Change, PackTable, SENTINEL, check_pk},
    database::TableShape,
};

/// The places here of what another database has. Names are compared as SQLite compares them: `Note` is `note`.
pub(super) struct Fit {
    encoding: Encoding,
    strangers: Strangers,
    /// By the names that the other database gives its tables.
    tables: HashMap<String, Result<Place, Reason>>,
}

/// A table here, of the same name and with the same key as one of the other database.
pub(super) struct Place {
    shape: TableShape,
    /// By name, the places of columns among those of the shape.
    columns: HashMap<String, usize>,
}

/// The names here of what a change is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'f> {
    pub(super) table: &'f str,
    pub(super) cid: &'f str,
    /// How many columns the table has besides its key.
    pub(super) columns: usize,
}

impl Fit {
    pub(super) fn new(encoding: Encoding, strangers: Strangers, local: &[TableShape], foreign: &[PackTable]) -> Self {
        let tables = foreign.iter().map(|table| (table.name.clone(), place(local, table))).collect();
        Self { encoding, strangers, tables }
    }

    /// What the change is about is called here, or why there is no place for it.
    pub(super) fn names(&self, change: &Change) -> Result<Names<'_>, Reason> {
        let place = match self.tables.get(&*change.table) {
            Some(Ok(place)) => place,
            Some(Err(reason)) => return Err(reason.clone()),
            None => return Err(Reason::NoTable),
        };
        let table = place.shape.name.as_str();
        let cid = match &*change.cid {
            SENTINEL => SENTINEL,
            name => place.column(name).ok_or_else(|| Reason::NoColumn(Arc::clone(&change.cid)))?,
        };
        check_pk(&change.pk, place.shape.key_columns.len()).map_err(|_| Reason::OtherKey)?;
        if self.strangers.keep_out(&change.site_id) {
            return Err(Reason::TooManySites);
        }
        if self.encoding.holds(change) {
            Ok(Names { table, cid, columns: place.shape.columns.len() })
        } else {
            Err(Reason::Text)
        }
    }
}

impl Place {
    fn column(&self, name: &str) -> Option<&str> {
        let columns = &self.shape.columns;
        let exact = self.columns.get(name).map(|&column| &columns[column]);
        let same = || columns.iter().find(|column| column.name.eq_ignore_ascii_case(name));
        exact.or_else(same).map(|column| column.name.as_str())
    }
}

fn place(local: &[TableShape], foreign: &PackTable) -> Result<Place, Reason> {
    let shape = local.iter().find(|table| table.name.eq_ignore_ascii_case(&foreign.name)).ok_or(Reason::NoTable)?;
    let is_same = |(here, there): (&String, &String)| here.eq_ignore_ascii_case(there);
    let keys = shape.key_names();
    if keys.len() != foreign.key_columns.len() || !keys.iter().zip(&foreign.key_columns).all(is_same) {
        return Err(Reason::OtherKey);
    }
    let columns = shape.columns.iter().enumerate().map(|(at, column)| (column.name.clone(), at)).collect();
    Ok(Place { shape: shape.clone(), columns })
}
