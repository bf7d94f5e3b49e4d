//! How the tables of remotes differ from this database's, and what mends that.

use std::{collections::BTreeMap, fs, path::PathBuf};

use data_encoding::HEXLOWER;
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::{Layout, MergeReport, PerRemote, Repository, State, StateError};
use crate::{
    Error,
    config::RemoteName,
    database::{Adopted, Database, Declared, TableDefinition, TableDifference},
    files,
    protocol::{Client, ClientError, RemoteStatus},
    transport::Address,
};

/// Differences that are listed, and bytes that they take; of more only the number is told.
const MOST_DIFFERENCES: usize = 1000;
const MOST_BYTES: usize = 1 << 20;

/// Bytes that are kept of a text in one: a name, an expression.
const MOST_TEXT: usize = 2048;

/// How the shared tables of a remote differ from this database's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaReport {
    /// What differs, by table.
    pub tables: BTreeMap<String, Vec<TableDifference>>,
    /// Differences beyond those in `tables`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
    /// Why it is not known what differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Which statements `schema adopt` runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adopt {
    /// None: it only says which it would run.
    Show,
    /// Those that it finds.
    Now,
    /// Those that it finds, if they are the ones that were shown with this [`AdoptReport::hash`].
    Shown(String),
}

/// What `schema adopt` does, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptReport {
    /// The statements that add the tables and columns that are not here, in their order.
    pub statements: Vec<String>,
    /// Of these statements, in hexadecimal: what to name who wants them run and no others.
    #[serde(default)]
    pub hash: String,
    /// The hash of those that were shown the last time, if any were that have not been run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown_before: Option<String>,
    /// Whether any were run.
    pub adopted: bool,
    /// What differs and stays so, among it the tables that cannot be had here.
    pub left: SchemaReport,
    /// What was merged afterwards.
    pub merged: Vec<PerRemote<MergeReport>>,
}

impl SchemaReport {
    fn of(differences: BTreeMap<String, Vec<TableDifference>>) -> Self {
        let mut report = Self::default();
        let (mut number, mut bytes) = (0, 0);
        for (table, found) in differences {
            for difference in found {
                if number == MOST_DIFFERENCES || bytes >= MOST_BYTES {
                    report.more += 1;
                    continue;
                }
                let difference = difference.shortened(MOST_TEXT);
                number += 1;
                bytes += table.len() + difference.to_string().len();
                report.tables.entry(table.clone()).or_default().push(difference);
            }
        }
        report
    }

    /// All differences, however many.
    pub(super) fn whole(tables: Differences) -> Self {
        Self { tables, ..Self::default() }
    }

    fn unknown(why: impl Into<String>) -> Self {
        Self { unknown: Some(why.into()), ..Self::default() }
    }

    /// The tables of the remote that cannot be had here, or not all of whose columns can, and why.
    pub fn unavailable(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tables.iter().flat_map(|(table, found)| {
            found.iter().filter_map(TableDifference::obstacle).map(move |reason| (table.as_str(), reason))
        })
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.tables.is_empty() && self.more == 0 && self.unknown.is_none()
    }

    fn unless_same(self) -> Option<Self> {
        (!self.is_same()).then_some(self)
    }
}

/// A remote that has been asked who it is.
struct Asked {
    name: RemoteName,
    address: Address,
    client: Client,
    status: RemoteStatus,
}

impl Repository {
    /// Asks the remote `name` how its tables differ from those here.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Config`], [`Error::Remote`], [`Error::BadSchema`], [`Error::Database`],
    /// [`Error::State`].
    pub async fn schema_diff(&self, name: &str) -> Result<SchemaReport, Error> {
        let held = self.hold_to_read().await?;
        let asked = self.ask_who(name).await?;
        let definitions = asked.client.definitions().await.map_err(|error| self.explain(error))?;
        self.blocking(move |repository| {
            let database = repository.database_to_give(held.as_ref())?;
            let report = differences(&database, definitions)?;
            asked.note(repository, &database, &report)?;
            Ok(report)
        })
        .await
    }

    /// Adds to this database the tables and columns of the remote `name` that are not here, as `adopt` says, or only says
    /// how. Each table is adopted whole or not at all; those that cannot be had here are named in the report.
    /// Nothing is ever dropped or altered otherwise. Then merges what was fetched from the remote and waited for them.
    ///
    /// # Errors
    /// As [`Repository::schema_diff`]; the tables that were adopted before stay. [`Error::OtherStatements`].
    pub async fn schema_adopt(&self, name: &str, adopt: Adopt) -> Result<AdoptReport, Error> {
        let held = self.hold().await?;
        let asked = self.ask_who(name).await?;
        let definitions = asked.client.definitions().await.map_err(|error| self.explain(error))?;
        let mut report = self
            .blocking(move |repository| {
                let database = repository.own_database(&held)?;
                let declared = Declared::new(definitions).map_err(Error::BadSchema)?;
                let shown = Shown::open(repository.layout());
                let shown_before = shown.last(&asked.name);
                let apply = adopt != Adopt::Show;
                let Adopted { statements, left_out } = adopt_as(&adopt, &asked.name, &declared, &database)?;
                let hash = hash_of(&statements);
                match apply {
                    true => shown.forget(&asked.name)?,
                    false => shown.note(&asked.name, &hash)?,
                }
                let differences = named(database.differences(&declared)?, left_out);
                asked.note(repository, &database, &SchemaReport::of(differences.clone()))?;
                let (adopted, left) = (apply && !statements.is_empty(), SchemaReport::of(lasting(differences)));
                Ok(AdoptReport { statements, hash, shown_before, adopted, left, merged: Vec::new() })
            })
            .await?;
        if report.adopted {
            report.merged = match self.merge(Some(name)).await {
                Err(Error::NothingFetched(_)) => Vec::new(),
                merged => merged?,
            };
        }
        Ok(report)
    }

    async fn ask_who(&self, name: &str) -> Result<Asked, Error> {
        let (config, name) = (self.blocking(Self::config).await?, name.to_owned());
        let (name, remote) = config.remote(&name)?;
        let (name, address) = (name.clone(), remote.address.clone());
        let client = self.client(&address, &config.limits).await?;
        let status = client.status().await.map_err(|error| self.explain(error))?;
        Ok(Asked { name, address, client, status })
    }

    /// How the tables of a remote that has just been asked for its status differ from those here; `None` if they do
    /// not. What cannot be found out is said in the report, and asked again the next time: it is not what the fetch
    /// was for.
    pub(super) async fn compare_schema(
        &self,
        client: &Client,
        name: &RemoteName,
        address: &Address,
        status: RemoteStatus,
    ) -> Option<SchemaReport> {
        let asked = Asked { name: name.clone(), address: address.clone(), client: client.clone(), status };
        match self.compare_with(asked).await {
            Ok(report) => report.unless_same(),
            Err(error) => {
                tracing::warn!(remote = %name, %error, "the remote's tables cannot be compared with those here");
                Some(SchemaReport::unknown(error.to_string()))
            }
        }
    }

    async fn compare_with(&self, asked: Asked) -> Result<SchemaReport, Error> {
        let (name, address, there) = (asked.name.clone(), asked.address.clone(), asked.status.schema.clone());
        let known = self.blocking(move |repository| {
            let here = repository.database()?.schema_fingerprint()?;
            if here.as_slice() == there {
                return Ok(Some(SchemaReport::default()));
            }
            let known = repository.state()?.differences(&name, &address)?;
            Ok(known.filter(|known| known.here == here && known.there == there).map(|known| known.report))
        });
        if let Some(known) = known.await? {
            return Ok(known);
        }
        let definitions = asked.client.definitions().await;
        self.blocking(move |repository| {
            let database = repository.database()?;
            let compared = match definitions {
                Ok(definitions) => differences(&database, definitions),
                Err(error) => Err(error.into()),
            };
            let report = match compared {
                Ok(report) => report,
                // As long as the remote's schema stays as it is, so does this.
                Err(error @ (Error::BadSchema(_) | Error::Remote(ClientError::Definitions(_)))) => {
                    SchemaReport::unknown(error.to_string())
                }
                Err(error) => {
                    let report = SchemaReport::unknown(error.to_string());
                    asked.note_for(repository, &database, &[], &report)?;
                    return Ok(report);
                }
            };
            asked.note(repository, &database, &report)?;
            Ok(report)
        })
        .await
    }
}

fn adopt_as(adopt: &Adopt, remote: &RemoteName, declared: &Declared, database: &Database) -> Result<Adopted, Error> {
    let found = declared.adoption(database)?;
    match adopt {
        Adopt::Show => return Ok(found),
        Adopt::Shown(hash) if *hash != hash_of(&found.statements) => {
            return Err(Error::OtherStatements(remote.to_string()));
        }
        Adopt::Now | Adopt::Shown(_) => {}
    }
    Ok(declared.adopt(database, Some(&found.statements))?)
}

fn hash_of(statements: &[String]) -> String {
    let mut hasher = blake3::Hasher::new();
    for sql in statements {
        hasher.update(&(sql.len() as u64).to_le_bytes()).update(sql.as_bytes());
    }
    HEXLOWER.encode(&hasher.finalize().as_bytes()[..16])
}

/// Of each remote, the hash of the statements that were shown last and have not been run.
struct Shown(PathBuf);

impl Shown {
    fn open(layout: &Layout) -> Self {
        Self(layout.shown())
    }

    /// A file that cannot be read says nothing: what is run then is what is shown with it.
    fn all(&self) -> BTreeMap<String, String> {
        fs::read(&self.0).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    fn last(&self, remote: &RemoteName) -> Option<String> {
        self.all().remove(remote.as_str())
    }

    fn note(&self, remote: &RemoteName, hash: &str) -> Result<(), Error> {
        self.change(|all| all.insert(remote.to_string(), hash.to_owned()).as_deref() != Some(hash))
    }

    fn forget(&self, remote: &RemoteName) -> Result<(), Error> {
        self.change(|all| all.remove(remote.as_str()).is_some())
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, String>) -> bool) -> Result<(), Error> {
        let mut all = self.all();
        if !change(&mut all) {
            return Ok(());
        }
        let text = serde_json::to_vec(&all).unwrap_or_default();
        files::replace(&self.0, &text).map_err(|source| Error::Io { path: self.0.clone(), source })
    }
}

impl Asked {
    /// Keeps for `status` what differs.
    fn note(&self, repository: &Repository, database: &Database, report: &SchemaReport) -> Result<(), Error> {
        self.note_for(repository, database, &self.status.schema, report)
    }

    /// As [`Asked::note`], of a remote's schema with the fingerprint `there`; nothing is known of one without.
    fn note_for(
        &self,
        repository: &Repository,
        database: &Database,
        there: &[u8],
        report: &SchemaReport,
    ) -> Result<(), Error> {
        if repository.has_fixed_state() {
            return Ok(());
        }
        let here = database.schema_fingerprint()?;
        Ok(repository.state()?.note_differences(&self.name, &self.address, &here, there, report)?)
    }
}

fn differences(database: &Database, definitions: Vec<TableDefinition>) -> Result<SchemaReport, Error> {
    let declared = Declared::new(definitions).map_err(Error::BadSchema)?;
    Ok(SchemaReport::of(database.differences(&declared)?))
}

type Differences = BTreeMap<String, Vec<TableDifference>>;

/// The differences, with the tables among them that could not be adopted, and why.
pub(super) fn named(mut differences: Differences, left_out: BTreeMap<String, String>) -> Differences {
    for (table, reason) in left_out {
        let found = differences.entry(table).or_default();
        found.retain(|difference| *difference != TableDifference::MissingHere);
        found.insert(0, TableDifference::Unavailable { reason });
    }
    differences
}

/// The differences that adopting does not mend.
fn lasting(differences: Differences) -> Differences {
    let lasts = |difference: &TableDifference| !difference.is_adopted();
    let of_table = |(table, found): (String, Vec<TableDifference>)| {
        let found: Vec<_> = found.into_iter().filter(lasts).collect();
        (!found.is_empty()).then_some((table, found))
    };
    differences.into_iter().filter_map(of_table).collect()
}

/// What differed when the schemas had these fingerprints.
pub(super) struct KnownDifferences {
    here: Vec<u8>,
    there: Vec<u8>,
    report: SchemaReport,
}

impl KnownDifferences {
    /// What differs now that this database has the fingerprint `here`, if anything does.
    pub(super) fn now(self, here: &[u8]) -> Option<SchemaReport> {
        if self.there == here {
            None
        } else if self.here == here {
            self.report.unless_same()
        } else {
            Some(SchemaReport::unknown("the tables here have changed since it was asked"))
        }
    }
}

impl State {
    /// What is known to differ between this database and the remote `name`, if its address is still `address`.
    ///
    /// # Errors
    /// [`StateError`].
    pub(super) fn differences(
        &self,
        name: &RemoteName,
        address: &Address,
    ) -> Result<Option<KnownDifferences>, StateError> {
        const SQL: &str = "SELECT schema_here, schema_there, differences FROM contact
            WHERE remote = ? AND address = ? AND differences IS NOT NULL";
        self.read(|connection| {
            let row = |row: &rusqlite::Row<'_>| {
                let report: String = row.get(2)?;
                let report = serde_json::from_str(&report)
                    .map_err(|_| SchemaReport::unknown("it was noted by another version of ddcp"))
                    .unwrap_or_else(|unknown| unknown);
                Ok(KnownDifferences { here: row.get(0)?, there: row.get(1)?, report })
            };
            connection.prepare_cached(SQL)?.query_row([name.as_str(), &address.to_string()], row).optional()
        })
    }

    fn note_differences(
        &mut self,
        name: &RemoteName,
        address: &Address,
        here: &[u8],
        there: &[u8],
        report: &SchemaReport,
    ) -> Result<(), StateError> {
        const SQL: &str = "UPDATE contact SET schema_here = ?3, schema_there = ?4, differences = ?5
            WHERE remote = ?1 AND address = ?2";
        let report = serde_json::to_string(report).unwrap_or_default();
        let values = params![name.as_str(), address.to_string(), here, there, report];
        self.write(|transaction| transaction.execute(SQL, values).map(drop))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_differences_only_the_number_is_told() {
        let missing = |number: usize| (format!("t{number:05}"), vec![TableDifference::MissingHere]);
        let report = SchemaReport::of((0..5000).map(missing).collect());
        assert_eq!((report.tables.len(), report.more), (MOST_DIFFERENCES, 4000));
        assert!(!report.is_same());
        assert!(SchemaReport::of(BTreeMap::new()).is_same());
    }

    /// A peer's expressions are as long as it likes, and the report is kept and told at every `status`.
    #[test]
    fn what_is_kept_of_differences_is_bounded() {
        let long = |number: usize| {
            let check = format!("{number} {}", "x".repeat(200_000));
            (format!("t{number:05}"), vec![TableDifference::CheckMissingHere { check }])
        };
        let report = SchemaReport::of((0..1000).map(long).collect());
        assert_eq!(report.tables.len() + report.more as usize, 1000);
        assert!(report.tables.len() > 100, "{}", report.tables.len());
        assert!(serde_json::to_string(&report).unwrap().len() < 2 << 20);
        let keys = vec!["k".repeat(2000); 255];
        let other = TableDifference::OtherKey { here: keys.clone(), there: keys };
        let report = SchemaReport::of((0..100).map(|number| (format!("t{number}"), vec![other.clone()])).collect());
        assert!(serde_json::to_string(&report).unwrap().len() < 2 << 20);
        let short = TableDifference::OtherKey { here: vec!["a".into(), "b".into()], there: vec!["c".into()] };
        assert_eq!(SchemaReport::of([("t".to_owned(), vec![short.clone()])].into()).tables["t"], [short]);
    }

    #[test]
    fn what_is_known_holds_for_the_schemas_it_was_found_with() {
        let known = |report: SchemaReport| KnownDifferences { here: vec![1], there: vec![2], report };
        let differs = SchemaReport::of([("t".to_owned(), vec![TableDifference::MissingHere])].into());
        assert_eq!(known(differs.clone()).now(&[1]), Some(differs.clone()));
        assert_eq!(known(SchemaReport::default()).now(&[1]), None);
        assert_eq!(known(differs.clone()).now(&[2]), None, "they are the same now");
        assert!(known(differs).now(&[3]).unwrap().unknown.is_some());
    }
}
