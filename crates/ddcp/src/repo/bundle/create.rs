use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufWriter, Seek, SeekFrom, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use jiff::Timestamp;

use super::{BundleReport, count_change};
use crate::{
    Error,
    changeset::{BundleHeader, BundleSignature, BundleWriter, Cursor, Unsigned},
    config::RemoteName,
    database::{Database, PACK_BYTES, Selection},
    files::{self, NewFile},
    repo::{Repository, reading::before_alteration},
    transport::{Address, veilid::OwnerKey},
};

/// From where on a bundle holds changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Since {
    /// All there are.
    #[default]
    Start,
    /// Those of this version of the database and of later ones.
    Version(i64),
    /// Those that a remote has not been given in a bundle before, without those it made itself.
    Remote(String),
}

impl FromStr for Since {
    type Err = std::convert::Infallible;

    /// Digits are a version, anything else names a remote.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        Ok(match text.parse() {
            Ok(version) if is_number => Self::Version(version),
            _ => Self::Remote(text.to_owned()),
        })
    }
}

/// What a bundle shall hold.
#[derive(Clone, Debug, Default)]
pub struct BundleRequest {
    /// From where on.
    pub since: Since,
    /// Of which tables only; of all if none is named.
    pub tables: Vec<String>,
    /// Whether the next bundle since the same remote begins where this one ends.
    pub mark: bool,
    /// Whether it is not to say whose it is. Otherwise it is signed by the key that owns this repository's record, if it has
    /// one, and only so it counts as fetched from here.
    pub unsigned: bool,
}

/// Where a bundle goes.
pub enum BundleTarget {
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// Whether one that is there is replaced.
        replace: bool,
    },
    /// A stream, such as standard output.
    Stream {
        /// What messages call it.
        name: String,
        /// Where the bytes go.
        output: Box<dyn Write + Send>,
    },
}

/// Ends the work that was given it when it is told to.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Tells it to end.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), Error> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Stopped) } else { Ok(()) }
    }
}

impl Repository {
    /// Makes a bundle of this database's changes: of everything up to the version at the beginning, and of what is
    /// written meanwhile as far as it is reached. Memory is bounded by a few packs. `stop` ends it early. Others may work
    /// on the repository meanwhile.
    ///
    /// # Errors
    /// [`Error::BundleRequest`], [`Error::FileExists`], [`Error::Io`], [`Error::Database`], [`Error::Config`],
    /// [`Error::State`]; there is no file then.
    pub async fn create_bundle(
        &self,
        target: BundleTarget,
        request: BundleRequest,
        stop: Stop,
    ) -> Result<BundleReport, Error> {
        self.blocking(move |repository| repository.make_bundle(target, &request, &stop)).await
    }

    fn make_bundle(&self, target: BundleTarget, request: &BundleRequest, stop: &Stop) -> Result<BundleReport, Error> {
        let database = self.database_to_give(self.look_whose_to_read()?.as_ref())?;
        let key = self.owner_key(request)?;
        let plan = self.plan(&database, request, key.as_ref())?;
        let report = match target {
            BundleTarget::File { path, replace } => {
                let failed = |source: io::Error| match source.kind() {
                    io::ErrorKind::AlreadyExists => Error::FileExists(path.clone()),
                    _ => Error::Io { path: path.clone(), source },
                };
                if self.is_database(&path)? {
                    return Err(Error::BundleRequest {
                        what: format!("{} is a database that is used here", path.display()),
                        hint: "name another file".into(),
                    });
                }
                let mut file = NewFile::create(&path, replace).map_err(failed)?;
                let (report, unsigned) = plan.write(&database, &mut file, &path.display().to_string(), stop)?;
                database.check_unchanged()?;
                if let (Some(key), Some(unsigned)) = (&key, &unsigned) {
                    sign(key, unsigned, file.written().map_err(failed)?, &path)?;
                }
                file.commit().map_err(failed)?;
                report
            }
            BundleTarget::Stream { name, mut output } => {
                let Some(key) = &key else {
                    let (report, _) = plan.write(&database, output, &name, stop)?;
                    database.check_unchanged()?;
                    return self.made(report, request, &plan);
                };
                // The signature stands in front, and is of everything.
                let folder = self.layout().state();
                let failed = |source: io::Error| Error::Io { path: folder.to_owned(), source };
                let mut file = files::nameless(folder).map_err(failed)?;
                let (report, unsigned) = plan.write(&database, BufWriter::new(&mut file), &name, stop)?;
                database.check_unchanged()?;
                unsigned.iter().try_for_each(|unsigned| sign(key, unsigned, &mut file, folder))?;
                file.seek(SeekFrom::Start(0)).map_err(failed)?;
                let copied = io::copy(&mut file, &mut output).and_then(|_| output.flush());
                copied.map_err(|source| Error::Io { path: name.into(), source })?;
                report
            }
        };
        self.made(report, request, &plan)
    }

    /// Notes what a bundle that was made has told.
    fn made(&self, report: BundleReport, request: &BundleRequest, plan: &Plan) -> Result<BundleReport, Error> {
        // A database that is found below this version has gone back in time, and needs another site id.
        if !self.is_fixed() {
            self.note_version(report.to_version)?;
        }
        if request.mark
            && plan.is_whole
            && let Some((name, address)) = &plan.remote
        {
            self.state()?.set_mark(name.as_str(), address, &plan.header.source, report.to_version)?;
        }
        Ok(report)
    }

    /// The key with which a bundle is signed, if it is to be and there is one. Where nothing can be written it is not asked
    /// for: the copy of another repository has that one's.
    fn owner_key(&self, request: &BundleRequest) -> Result<Option<OwnerKey>, Error> {
        match request.unsigned || self.has_fixed_state() {
            true => Ok(None),
            false => OwnerKey::stored(&self.layout().node()).map_err(Error::Node),
        }
    }

    /// What a request means for the database as it is.
    fn plan(&self, database: &Database, request: &BundleRequest, key: Option<&OwnerKey>) -> Result<Plan, Error> {
        let source = database.site_id()?;
        let version = database.version()?;
        let remote = match &request.since {
            Since::Remote(name) => Some(self.known_remote(name)?),
            _ => None,
        };
        if request.mark && (remote.is_none() || !request.tables.is_empty()) {
            return Err(Error::BundleRequest {
                what: "only a bundle of all tables since a remote can be marked".into(),
                hint: "`ddcp bundle create FILE --since REMOTE --mark`".into(),
            });
        }
        if request.mark && self.has_fixed_state() {
            return Err(Error::BundleRequest {
                what: format!("a mark cannot be kept: {} is on a read-only medium", self.layout().state().display()),
                hint: "leave out `--mark`".into(),
            });
        }
        let since = match (&request.since, &remote) {
            (Since::Version(since), _) if *since > version => return Err(too_far(*since, version)),
            (Since::Version(since), _) => *since,
            // A mark ahead of the database is of a time that a restored backup has undone.
            (_, Some((name, address))) => {
                let mark = self.state_to_read()?.mark(name.as_str(), address, &source)?;
                mark.filter(|mark| *mark <= version).unwrap_or(0)
            }
            (_, None) => 0,
        };
        let without = match &remote {
            Some((name, address)) => self.state_to_read()?.contact(name.as_str(), address)?.site_id,
            None => None,
        };
        let mut known = database.unreadable_tables()?;
        let is_whole = known.is_empty();
        known.extend(database.tables()?.into_iter().map(|table| table.name));
        let tables = chosen_tables(&known, &request.tables)?;
        let header = BundleHeader {
            source,
            version,
            // The version itself is repeated, since altering a table adds to the version that is current then.
            from: before_alteration(Cursor::whole(since)),
            schema: database.schema_fingerprint()?,
            created: Timestamp::now().as_millisecond(),
            tables,
            without,
            signature: key.map(OwnerKey::party).map(|party| BundleSignature::to_come(party.repository.0, party.key)),
        };
        Ok(Plan { header, remote, is_whole })
    }

    fn known_remote(&self, name: &str) -> Result<(RemoteName, Address), Error> {
        let config = self.config()?;
        let (name, remote) = config.remote(name)?;
        Ok((name.clone(), remote.address.clone()))
    }
}

struct Plan {
    header: BundleHeader,
    /// For whom it is, if it is for somebody.
    remote: Option<(RemoteName, Address)>,
    /// All tables can be read. What could not be lies before the mark once it can: the next bundle begins where this did.
    is_whole: bool,
}

impl Plan {
    /// Writes the bundle, and gives what is left to be signed.
    fn write(
        &self,
        database: &Database,
        output: impl Write,
        shown: &str,
        stop: &Stop,
    ) -> Result<(BundleReport, Option<Unsigned>), Error> {
        let failed = |source| Error::Io { path: shown.into(), source };
        let header = &self.header;
        let selection = Selection {
            without: header.without,
            tables: header.tables.as_ref().map(|tables| tables.iter().cloned().collect()),
        };
        let mut writer = BundleWriter::new(output, header).map_err(failed)?;
        let mut tables = BTreeMap::new();
        let mut failure = None;
        let read = database.stream_packs(header.from, &selection, PACK_BYTES, &mut |pack| {
            pack.changes.iter().for_each(|change| count_change(&mut tables, change));
            match stop.check().and_then(|()| writer.add(&pack).map_err(failed)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        if read.end < header.from {
            return Err(went_back(shown));
        }
        let (_, end, unsigned) = writer.finish(read.end).map_err(failed)?;
        let report = BundleReport::new(shown, header, end, tables);
        Ok((BundleReport { left_out: read.left_out, ..report }, unsigned))
    }
}

/// Signs the bundle in `file`, which is or will be at `path`.
fn sign(key: &OwnerKey, unsigned: &Unsigned, file: &mut File, path: &Path) -> Result<(), Error> {
    let signature = key.sign(&unsigned.text).map_err(Error::Node)?;
    unsigned.sign(&signature, file).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// The tables that are named, by the names their changes carry; `None` if none is.
fn chosen_tables(known: &[String], named: &[String]) -> Result<Option<BTreeSet<String>>, Error> {
    if named.is_empty() {
        return Ok(None);
    }
    let chosen = named.iter().map(|name| {
        // SQLite takes names in any case.
        let table = known.iter().find(|table| table.eq_ignore_ascii_case(name));
        table.cloned().ok_or_else(|| Error::BundleRequest {
            what: format!("there is no table {name} that replicates"),
            hint: "`ddcp status` lists the tables that do".into(),
        })
    });
    Ok(Some(chosen.collect::<Result<_, _>>()?))
}

fn too_far(since: i64, version: i64) -> Error {
    Error::BundleRequest {
        what: format!("this database is at version {version}: nothing has changed since {since}"),
        hint: "`ddcp status` tells the version".into(),
    }
}

fn went_back(shown: &str) -> Error {
    Error::BundleRequest {
        what: format!("the database was replaced by an older one while {shown} was made"),
        hint: "repeat the command".into(),
    }
}
