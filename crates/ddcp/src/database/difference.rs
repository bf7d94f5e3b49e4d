//! How a table that replicates here differs from a peer's of the same name.

use std::{collections::BTreeSet, fmt};

use crsqlite::declaration::{Column, Declaration, NotATable, REBUILT_FROM, default_expression, one_writing};
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use super::{TableShape, cut};

/// How a table differs from a peer's. Displays as a sentence about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "difference", rename_all = "kebab-case")]
pub enum TableDifference {
    /// The peer has it, this database does not.
    MissingHere,
    /// The peer has it, and it cannot be had here.
    Unavailable {
        /// Why.
        reason: String,
    },
    /// A table of this name is here and does not replicate.
    NotShared,
    /// This database has it, the peer does not.
    MissingThere,
    /// It, or a column of it, is spelt in other letters as to case. To SQLite, and to replication, that is one name.
    OtherCase {
        /// How it is spelt here.
        here: String,
        /// How at the peer.
        there: String,
    },
    /// It has another primary key.
    OtherKey {
        /// This database's key columns, in the key's order.
        here: Vec<String>,
        /// The peer's.
        there: Vec<String>,
    },
    /// It is STRICT on one side only.
    OtherStrict {
        /// Whether it is here.
        here: bool,
        /// Whether it is at the peer.
        there: bool,
    },
    /// The peer has the column, this database does not.
    ColumnMissingHere {
        /// The column.
        column: String,
    },
    /// This database has the column, the peer does not.
    ColumnMissingThere {
        /// The column.
        column: String,
    },
    /// A column has another declared type.
    OtherType {
        /// The column.
        column: String,
        /// The type here.
        here: String,
        /// The type at the peer.
        there: String,
        /// Whether it is a column of the key: rows wait then whose keys it would not tell apart as the peer does.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        key: bool,
    },
    /// A column has another collation.
    OtherCollation {
        /// The column.
        column: String,
        /// The collation here.
        here: String,
        /// The collation at the peer.
        there: String,
        /// Whether it is a column of the key: rows wait then whose keys it would not tell apart as the peer does.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        key: bool,
    },
    /// A column is NOT NULL on one side only.
    OtherNotNull {
        /// The column.
        column: String,
        /// Whether it is here.
        here: bool,
        /// Whether it is at the peer.
        there: bool,
    },
    /// A column has another default.
    OtherDefault {
        /// The column.
        column: String,
        /// The default here, as SQL; `None` without one.
        here: Option<String>,
        /// The default at the peer.
        there: Option<String>,
    },
    /// A column is generated on one side only, or by another expression.
    OtherGenerated {
        /// The column.
        column: String,
        /// The expression here; `None` if it is not generated.
        here: Option<String>,
        /// The expression at the peer.
        there: Option<String>,
    },
    /// The peer has a CHECK that is not here.
    CheckMissingHere {
        /// Its condition.
        check: String,
    },
    /// A CHECK here is not at the peer.
    CheckMissingThere {
        /// Its condition.
        check: String,
    },
}

impl TableDifference {
    /// Why the table cannot be had here, if this is it.
    #[must_use]
    pub fn obstacle(&self) -> Option<&str> {
        match self {
            Self::Unavailable { reason } => Some(reason),
            _ => None,
        }
    }

    /// The same, of each of whose texts at most so many bytes are left, and of all columns of a key together.
    #[must_use]
    pub fn shortened(mut self, most: usize) -> Self {
        for text in self.texts() {
            if text.len() > most {
                *text = cut(text, most);
            }
        }
        if let Self::OtherKey { here, there } = &mut self {
            [here, there].into_iter().for_each(|columns| shorten(columns, most));
        }
        self
    }

    /// All texts in it.
    fn texts(&mut self) -> Vec<&mut String> {
        match self {
            Self::MissingHere | Self::NotShared | Self::MissingThere | Self::OtherStrict { .. } => Vec::new(),
            Self::Unavailable { reason: text }
            | Self::ColumnMissingHere { column: text }
            | Self::ColumnMissingThere { column: text }
            | Self::OtherNotNull { column: text, .. }
            | Self::CheckMissingHere { check: text }
            | Self::CheckMissingThere { check: text } => vec![text],
            Self::OtherCase { here, there } => vec![here, there],
            Self::OtherKey { here, there } => here.iter_mut().chain(there).collect(),
            Self::OtherType { column, here, there, .. } | Self::OtherCollation { column, here, there, .. } => {
                vec![column, here, there]
            }
            Self::OtherDefault { column, here, there } | Self::OtherGenerated { column, here, there } => {
                std::iter::once(column).chain(here).chain(there).collect()
            }
        }
    }

    /// Whether adopting does away with it.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        matches!(self, Self::MissingHere | Self::ColumnMissingHere { .. })
    }
}

impl fmt::Display for TableDifference {
    /// A peer chose some of the names, and they go to a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |columns: &[String]| shown(&columns.join(", "));
        let typed = |name: &str| match name {
            "" => "without a type".to_owned(),
            name => format!("of type {}", shown(name)),
        };
        let some = |what: &str, text: &Option<String>| match text {
            Some(text) => format!("{what} {}", shown(text)),
            None => format!("no {what}"),
        };
        let waits = |key: bool| if key { ": rows wait whose keys are other keys here" } else { "" };
        let is = |what: &str, is: bool| if is { what.to_owned() } else { format!("not {what}") };
        match self {
            Self::MissingHere => f.write_str("it is not here"),
            Self::Unavailable { reason } => write!(f, "it cannot be had here: {}", shown(reason)),
            Self::NotShared => f.write_str("it is here, but does not replicate"),
            Self::MissingThere => f.write_str("it is not there"),
            Self::OtherCase { here, there } => {
                write!(f, "{} is spelt {} here: names that differ in case only are one name", shown(there), shown(here))
            }
            Self::OtherKey { here, there } => {
                write!(f, "it has another primary key: ({}) here, ({}) there", list(here), list(there))
            }
            Self::OtherStrict { here, there } => {
                write!(f, "it is {} here, {} there", is("STRICT", *here), is("STRICT", *there))
            }
            Self::ColumnMissingHere { column } => write!(f, "column {} is not here", shown(column)),
            Self::ColumnMissingThere { column } => write!(f, "column {} is not there", shown(column)),
            Self::OtherType { column, here, there, key } => {
                write!(f, "column {} is {} here, {} there{}", shown(column), typed(here), typed(there), waits(*key))
            }
            Self::OtherCollation { column, here, there, key } => {
                let (column, here, there) = (shown(column), shown(here), shown(there));
                write!(f, "column {column} is compared by {here} here, by {there} there{}", waits(*key))
            }
            Self::OtherNotNull { column, here, there } => {
                let nullable = |not_null: bool| if not_null { "NOT NULL" } else { "nullable" };
                write!(f, "column {} is {} here, {} there", shown(column), nullable(*here), nullable(*there))
            }
            Self::OtherDefault { column, here, there } => {
                write!(
                    f,
                    "column {} has {} here, {} there",
                    shown(column),
                    some("default", here),
                    some("default", there)
                )
            }
            Self::OtherGenerated { column, here, there } => {
                let told = |text: &Option<String>| match text {
                    Some(text) => format!("generated as {}", shown(text)),
                    None => "not generated".to_owned(),
                };
                write!(f, "column {} is {} here, {} there", shown(column), told(here), told(there))
            }
            Self::CheckMissingHere { check } => write!(f, "CHECK ({}) is not here", shown(check)),
            Self::CheckMissingThere { check } => write!(f, "CHECK ({}) is not there", shown(check)),
        }
    }
}

/// Leaves the first of some names, of at most so many bytes together, and a sign where some are left out.
fn shorten(names: &mut Vec<String>, most: usize) {
    let mut bytes = 0;
    let fit = names.iter().take_while(|name| {
        bytes += name.len();
        bytes <= most
    });
    let fit = fit.count();
    if fit < names.len() {
        names.truncate(fit);
        names.push("…".to_owned());
    }
}

/// What may be shown of a peer's text: all but what a terminal would not show as it is.
fn shown(text: &str) -> String {
    crate::text::shown(text)
}

/// All of a table's declaration that decides which rows it takes and how they compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TableDetails {
    pub(super) columns: Vec<ColumnDetails>,
    /// Of the table, not of a column of its own.
    checks: BTreeSet<String>,
    is_strict: bool,
}

/// A column, also one that is generated and so does not replicate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ColumnDetails {
    pub(super) name: String,
    declared_type: String,
    not_null: bool,
    pub(super) default: Option<String>,
    collation: String,
    generated: Option<String>,
    checks: BTreeSet<String>,
}

impl TableDetails {
    /// Those of the table `name`. What cannot be read in its statement is left out: the text is the owner's.
    pub(super) fn read(connection: &Connection, name: &str) -> rusqlite::Result<Self> {
        const COLUMNS: &str =
            r#"SELECT name, type, "notnull", dflt_value, cid FROM pragma_table_xinfo(?1, 'main') ORDER BY cid"#;
        let sql = declared(connection, name)?;
        let declaration = Declaration::parse(&sql);
        let mut statement = connection.prepare_cached(COLUMNS)?;
        let row = |row: &rusqlite::Row<'_>| {
            let name: String = row.get(0)?;
            let at = row.get::<_, u32>(4)? as usize;
            let text = declaration.as_ref().ok().and_then(|declaration| column(declaration, at, &name));
            let column = ColumnDetails {
                declared_type: row.get::<_, String>(1)?.to_ascii_uppercase(),
                not_null: row.get(2)?,
                default: row.get(3)?,
                collation: text.and_then(Column::collation).unwrap_or("BINARY").to_ascii_uppercase(),
                generated: text.and_then(Column::generated).map(str::to_owned),
                checks: text.map(|text| text.checks().iter().cloned().collect()).unwrap_or_default(),
                name,
            };
            Ok(column)
        };
        let columns = statement.query_map([name], row)?.collect::<rusqlite::Result<_>>()?;
        let checks = |table: &Declaration<'_>| table.checks().iter().cloned().collect();
        Ok(Self {
            columns,
            checks: declaration.as_ref().map(checks).unwrap_or_default(),
            is_strict: declaration.is_ok_and(|table| table.is_strict()),
        })
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.name.clone()).collect()
    }

    fn column(&self, name: &str) -> Option<&ColumnDetails> {
        self.columns.iter().find(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// The names of the columns of `there` that this table lacks.
    pub(super) fn lacks<'a>(&self, there: &'a Self) -> impl Iterator<Item = &'a ColumnDetails> {
        there.columns.iter().filter(|column| self.column(&column.name).is_none())
    }

    /// The conditions that also rows of `other` could be held to: they are of columns that it has.
    fn checks_on(&self, other: &Self) -> BTreeSet<&String> {
        let of_columns = self.columns.iter().filter(|column| other.column(&column.name).is_some());
        self.checks.iter().chain(of_columns.flat_map(|column| &column.checks)).collect()
    }
}

impl ColumnDetails {
    /// `key` says whether it is a column of the key.
    fn differences(&self, there: &Self, key: bool) -> Vec<TableDifference> {
        let mut found = Vec::new();
        let column = self.name.clone();
        if self.name != there.name {
            found.push(TableDifference::OtherCase { here: column.clone(), there: there.name.clone() });
        }
        if self.generated != there.generated {
            let (here, there) = (self.generated.clone(), there.generated.clone());
            found.push(TableDifference::OtherGenerated { column, here, there });
            return found;
        }
        if self.declared_type != there.declared_type {
            let (here, there) = (self.declared_type.clone(), there.declared_type.clone());
            found.push(TableDifference::OtherType { column: column.clone(), here, there, key });
        }
        if self.collation != there.collation {
            let (here, there) = (self.collation.clone(), there.collation.clone());
            found.push(TableDifference::OtherCollation { column: column.clone(), here, there, key });
        }
        if self.not_null != there.not_null {
            let (here, there) = (self.not_null, there.not_null);
            found.push(TableDifference::OtherNotNull { column: column.clone(), here, there });
        }
        if meaning(&self.default) != meaning(&there.default) {
            let (here, there) = (self.default.clone(), there.default.clone());
            found.push(TableDifference::OtherDefault { column, here, there });
        }
        found
    }
}

/// A default in one writing; none and NULL are the same.
fn meaning(default: &Option<String>) -> Option<String> {
    let text = default.as_deref()?;
    let one = one_writing(&default_expression(text).unwrap_or_else(|| text.to_owned()));
    (one != "null").then_some(one)
}

/// The column at the place `at` if that is called `name`, which it is where the text is read as SQLite reads it; else the
/// one that is.
fn column<'d, 'a>(declaration: &'d Declaration<'a>, at: usize, name: &str) -> Option<&'d Column<'a>> {
    let there = declaration.columns().get(at).filter(|column| column.name().eq_ignore_ascii_case(name));
    there.or_else(|| declaration.column(name))
}

/// The statement that declared the table `name`; empty without one.
pub(super) fn declared(connection: &Connection, name: &str) -> rusqlite::Result<String> {
    Ok(connection.prepare_cached(REBUILT_FROM)?.query_row([name], |row| row.get(0)).optional()?.unwrap_or_default())
}

/// How two tables differ that have one name.
pub(super) fn compare(
    (here, ours): (&TableShape, &TableDetails),
    (there, theirs): (&TableShape, &TableDetails),
) -> Vec<TableDifference> {
    let mut found = Vec::new();
    if here.name != there.name {
        found.push(TableDifference::OtherCase { here: here.name.clone(), there: there.name.clone() });
    }
    if !here.has_key(&there.key_names()) {
        found.push(TableDifference::OtherKey { here: here.key_names(), there: there.key_names() });
        return found;
    }
    if ours.is_strict != theirs.is_strict {
        found.push(TableDifference::OtherStrict { here: ours.is_strict, there: theirs.is_strict });
    }
    let is_key = |name: &str| here.key_columns.iter().any(|key| key.name.eq_ignore_ascii_case(name));
    for column in &theirs.columns {
        match ours.column(&column.name) {
            None => found.push(TableDifference::ColumnMissingHere { column: column.name.clone() }),
            Some(ours) => found.extend(ours.differences(column, is_key(&ours.name))),
        }
    }
    let only_here = theirs.lacks(ours);
    found.extend(only_here.map(|column| TableDifference::ColumnMissingThere { column: column.name.clone() }));
    let (our_checks, their_checks) = (ours.checks_on(theirs), theirs.checks_on(ours));
    let text = |check: &&String| (*check).clone();
    let missing = their_checks.difference(&our_checks).map(text);
    found.extend(missing.map(|check| TableDifference::CheckMissingHere { check }));
    let more = our_checks.difference(&their_checks).map(text);
    found.extend(more.map(|check| TableDifference::CheckMissingThere { check }));
    found
}

impl From<NotATable> for super::Refusal {
    fn from(error: NotATable) -> Self {
        Self::unavailable(error.to_string())
    }
}
