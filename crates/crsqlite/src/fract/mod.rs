//! Order keys: texts between any two of which another fits, for lists that people sort by hand.

mod key;
mod ordered;

use rusqlite::types::ValueRef;

pub(crate) use ordered::{as_ordered, fix_conflict};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ffi::Args;
use crate::ffi::function::Output;

/// `crsql_fract_key_between(a, b)`
pub(crate) fn key_between(_engine: &Engine, args: Args<'_>) -> Result<Output> {
    let (a, b) = (args.text(0), args.text(1));
    between(a.as_deref(), b.as_deref()).map(Output::Text)
}

fn between(a: Option<&str>, b: Option<&str>) -> Result<String> {
    key::between(a, b).map_err(|error| Error::usage(error.to_string()))
}

/// A value read from an order column, as a key; none for NULL.
fn as_key(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(i) => Some(i.to_string()),
        ValueRef::Real(r) => Some(r.to_string()),
        ValueRef::Text(t) | ValueRef::Blob(t) => Some(String::from_utf8_lossy(t).into_owned()),
    }
}
