//! Merging row by row in slices, each a transaction of its own.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    MergeReport, Reason, Refused, dangling,
    fit::Fit,
    part::{self, Fitting, MOST_PASSES, Outcome, Part, Stop},
    strangers::{MOST_SITES, Strangers},
};
use crate::{
    changeset::{Change, PackTable, SENTINEL},
    database::{Database, DatabaseError},
};

/// What a slice costs at most, in records that may change.
const MOST_RECORDS: usize = 20_000;

/// Bytes of values and keys that a slice writes at most, but that a row is not divided.
const MOST_BYTES: usize = 4 << 20;

/// A slice ends once it has taken so long, however little it has merged: a table may be slow to write to, and a small
/// change may be one of a large row.
const LONGEST: Duration = Duration::from_millis(200);

/// The changes of a row, by their places among those that fit.
type Row = Vec<usize>;

/// What became of the changes of a merge.
#[derive(Default)]
pub(super) struct Merged {
    pub(super) report: MergeReport,
    pub(super) refused: Vec<Refused>,
}

impl Merged {
    /// Counts a change of which nothing is to be merged.
    fn pass(&mut self, change: &Change) {
        let table = self.report.table(&change.table);
        table.offered += 1;
        table.known += 1;
    }

    fn refuse(&mut self, fitting: &Fitting<'_>, reason: &Reason) {
        self.refuse_change(fitting.index, fitting.change, reason.clone());
    }

    fn refuse_change(&mut self, index: usize, change: &Change, reason: Reason) {
        *self.report.table(&change.table).refused.entry(reason.clone()).or_default() += 1;
        self.refused.push(Refused { index, change: change.clone(), reason });
    }
}

/// The merge of some changes.
pub(super) struct Merging<'m> {
    database: &'m Database,
    changes: &'m [Change],
    tables: &'m [PackTable],
    merged: Merged,
    /// The version of the schema with which it was found what fits.
    schema: i64,
    /// The open transaction is that of a slice which is done.
    is_done: bool,
}

impl<'m> Merging<'m> {
    pub(super) fn new(database: &'m Database, changes: &'m [Change], tables: &'m [PackTable]) -> Self {
        let report = MergeReport { changes: changes.len(), ..MergeReport::default() };
        let merged = Merged { report, refused: Vec::new() };
        Self { database, changes, tables, merged, schema: 0, is_done: false }
    }

    /// Merges in the open transaction, and in others after it, of which the last is left open.
    pub(super) fn run(mut self) -> Result<Merged, DatabaseError> {
        let mut rest: Vec<usize> = (0..self.changes.len()).collect();
        while !rest.is_empty() {
            self.schema = self.database.schema_version()?;
            let strangers = Strangers::look(&self.database.connection, self.changes, MOST_SITES);
            let fit = Fit::new(self.database, self.database.wrap(strangers)?, self.tables)?;
            let fitting = self.fitting(&fit, &rest)?;
            rest = self.merge_fitting(&fitting)?;
        }
        if self.database.connection.is_autocommit() {
            self.database.begin_slice()?;
        }
        Ok(self.merged)
    }

    /// Those of the changes that there is a place for.
    fn fitting<'f>(&mut self, fit: &'f Fit<'_>, rest: &[usize]) -> Result<Vec<Fitting<'f>>, DatabaseError>
    where
        'm: 'f,
    {
        let changes = self.changes;
        let mut fitting = Vec::with_capacity(rest.len());
        for &index in rest {
            if changes[index].is_of_deleted_cell() {
                self.merged.pass(&changes[index]);
                continue;
            }
            match fit.names(&changes[index])? {
                Ok(names) => fitting.push(Fitting { index, change: &changes[index], names }),
                Err(reason) => self.merged.refuse_change(index, &changes[index], reason),
            }
        }
        Ok(fitting)
    }

    /// Merges what fits; rows that were refused are tried again after the others, as long as one lets in another. Gives
    /// the changes that are left to be merged because somebody has changed the schema in between.
    fn merge_fitting(&mut self, fitting: &[Fitting<'_>]) -> Result<Vec<usize>, DatabaseError> {
        let mut pass = Pass::through(fitting, part::by_row(fitting));
        for number in 1.. {
            let tried = pass.rows.len();
            if !self.merge_rows(&mut pass)? {
                let refused = pass.refused.iter().map(|(row, _)| row);
                let left = pass.rows[pass.done..].iter().chain(refused).flatten();
                return Ok(left.map(|&at| fitting[at].index).collect());
            }
            // The rows of one step were tried again as often as it is worth.
            if pass.steps <= 1 || pass.refused.is_empty() || pass.refused.len() == tried || number == MOST_PASSES {
                break;
            }
            let rows = pass.refused.iter().map(|(row, _)| row.clone()).collect();
            pass = Pass::through(fitting, rows);
        }
        for (row, reason) in pass.refused {
            row.iter().for_each(|&at| self.merged.refuse(&fitting[at], &reason));
        }
        Ok(Vec::new())
    }

    /// Merges rows, slice by slice. A slice that a row undoes begins again and ends before that row, and later ones
    /// grow again after each that was merged, so that the work is linear in the number of rows, however many are refused
    /// in this way. Says whether the schema is still the same.
    fn merge_rows(&mut self, pass: &mut Pass<'_>) -> Result<bool, DatabaseError> {
        while pass.done < pass.rows.len() {
            if !self.begin_again()? {
                return Ok(false);
            }
            match self.merge_slice(pass)? {
                Slice::Merged { rows, steps } => {
                    (pass.done, pass.most) = (pass.done + rows, pass.most.saturating_mul(2));
                    pass.steps += steps.len();
                    self.is_done = true;
                    self.note(pass, steps);
                }
                Slice::Undone(row, reason) => {
                    let is_it = |other: &Row| row.first().is_some_and(|first| other.contains(first));
                    let before = pass.rows[pass.done..].iter().position(is_it);
                    before.iter().for_each(|before| drop(pass.rows.remove(pass.done + before)));
                    pass.most = before.unwrap_or(0).max(1);
                    row.iter().for_each(|&at| self.merged.refuse(&pass.fitting[at], &reason));
                }
            }
        }
        Ok(true)
    }

    /// Sees to it that a transaction is open in which nothing has been done. Says whether the schema is still the one
    /// with which it was found what fits.
    fn begin_again(&mut self) -> Result<bool, DatabaseError> {
        if std::mem::take(&mut self.is_done) {
            self.database.commit_slice()?;
        }
        if !self.database.connection.is_autocommit() {
            return Ok(true);
        }
        self.database.begin_slice()?;
        Ok(self.database.schema_version()? == self.schema)
    }

    /// Merges a slice in steps, after each of which it may end.
    fn merge_slice(&self, pass: &Pass<'_>) -> Result<Slice, DatabaseError> {
        let began = Instant::now();
        let (mut budget, mut end, mut steps) =
            (Cost { records: MOST_RECORDS, bytes: MOST_BYTES }, pass.done, Vec::new());
        let last = pass.rows.len().min(pass.done.saturating_add(pass.most));
        while end < last && !budget.is_spent() && began.elapsed() < LONGEST {
            let first = end;
            let mut step = Cost { records: self.database.pace.step().min(budget.records), ..budget };
            while end < last && !step.is_spent() {
                let cost = pass.cost(&pass.rows[end]);
                (step, budget) = (step.less(&cost), budget.less(&cost));
                end += 1;
            }
            let mut places: Vec<usize> = pass.rows[first..end].iter().flatten().copied().collect();
            places.sort_unstable();
            let fitting: Vec<Fitting<'_>> = places.iter().map(|&at| pass.fitting[at]).collect();
            match self.merge_step(&fitting) {
                Ok(part) => steps.push((places, part)),
                Err(Stop::Failed(error)) => return Err(self.database.error(error)),
                Err(Stop::RolledBack(row, reason)) => {
                    return Ok(Slice::Undone(row.iter().map(|&at| places[at]).collect(), reason));
                }
            }
        }
        Ok(Slice::Merged { rows: end - pass.done, steps })
    }

    fn merge_step(&self, fitting: &[Fitting<'_>]) -> Result<Part, Stop> {
        let began = Instant::now();
        let part = match self.database.foreign_engine {
            None => part::merge(&self.database.connection, fitting),
            Some(_) => part::insert(&self.database.connection, fitting),
        };
        self.database.pace.took(began.elapsed());
        part
    }

    /// Counts what a slice did.
    fn note(&mut self, pass: &mut Pass<'_>, steps: Vec<(Vec<usize>, Part)>) {
        let mut deleted = Vec::new();
        for (places, part) in steps {
            self.count(pass, &places, &part);
            deleted.extend(part.deleted.iter().map(|&at| places[at]));
            let row = |row: Vec<usize>| row.iter().map(|&at| places[at]).collect();
            pass.refused.extend(part.refused.into_iter().map(|(refused, reason)| (row(refused), reason)));
        }
        self.note_deleted(pass.fitting, &deleted);
    }

    /// Counts what became of the changes at `places`.
    fn count(&mut self, pass: &Pass<'_>, places: &[usize], part: &Part) {
        for (&at, outcome) in places.iter().zip(&part.outcomes) {
            if *outcome == Outcome::Refused {
                continue;
            }
            let table = self.merged.report.table(pass.fitting[at].names.table);
            table.offered += 1;
            match outcome {
                Outcome::Applied(records) => table.applied += records,
                Outcome::Known => table.known += 1,
                Outcome::Lost => table.lost += 1,
                Outcome::Refused => {}
            }
        }
    }

    fn note_deleted(&mut self, fitting: &[Fitting<'_>], deleted: &[usize]) {
        let mut keys: BTreeMap<&str, Vec<&[u8]>> = BTreeMap::new();
        for &at in deleted {
            let (table, pk) = fitting[at].row();
            keys.entry(table).or_default().push(pk);
        }
        for (table, keys) in keys {
            self.merged.report.table(table).deleted += keys.len();
            match dangling::dangling(&self.database.connection, table, &keys) {
                Ok(sentences) => self.merged.report.dangling.extend(sentences),
                // Tables that cannot be read here, for want of a collation perhaps, stop no merge.
                Err(error) => tracing::debug!(table, %error, "what refers to deleted rows could not be looked up"),
            }
        }
    }
}

/// One go through rows.
struct Pass<'f> {
    fitting: &'f [Fitting<'f>],
    rows: Vec<Row>,
    /// As many of them are merged or refused, and committed or about to be.
    done: usize,
    /// As many go into a slice: fewer, once a row has undone one.
    most: usize,
    steps: usize,
    refused: Vec<(Row, Reason)>,
}

impl<'f> Pass<'f> {
    fn through(fitting: &'f [Fitting<'f>], rows: Vec<Row>) -> Self {
        Self { fitting, rows, done: 0, most: usize::MAX, steps: 0, refused: Vec::new() }
    }

    /// What a row may cost. One that changes as a whole takes the records of all its cells along.
    fn cost(&self, row: &Row) -> Cost {
        let of_row = row.iter().map(|&at| &self.fitting[at]);
        let is_whole = |fitting: &Fitting<'_>| fitting.change.cl > 1 || *fitting.change.cid == *SENTINEL;
        let columns = of_row.clone().find(|fitting| is_whole(fitting)).map_or(0, |fitting| fitting.names.columns);
        let key = row.first().map_or(0, |&at| self.fitting[at].change.pk.len());
        let bytes = of_row.map(|fitting| fitting.change.val.content().len()).sum::<usize>();
        Cost { records: row.len() + columns, bytes: key + bytes }
    }
}

/// What became of a slice.
enum Slice {
    /// So many rows were merged, in steps: the places of their changes, and what became of them.
    Merged { rows: usize, steps: Vec<(Vec<usize>, Part)> },
    /// The changes at these places were refused so that the transaction is gone.
    Undone(Vec<usize>, Reason),
}

/// What is to be spent, or what something costs.
#[derive(Clone, Copy)]
struct Cost {
    records: usize,
    bytes: usize,
}

impl Cost {
    fn is_spent(&self) -> bool {
        self.records == 0 || self.bytes == 0
    }

    fn less(self, cost: &Self) -> Self {
        let (records, bytes) = (self.records.saturating_sub(cost.records), self.bytes.saturating_sub(cost.bytes));
        Self { records, bytes }
    }
}
