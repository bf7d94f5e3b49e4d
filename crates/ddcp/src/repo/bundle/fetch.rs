use std::{
    fs::File,
    io::{Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::PoisonError,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{check_signature, end_of, first_version};
use crate::{
    Error,
    changeset::{self, BundleEnd, BundleError, BundleHeader, BundleReader, BundledPack, Change, Cursor, Pack, SiteId},
    config::{Limits, Remote, RemoteName},
    database::{Database, Origin, Way},
    files,
    protocol::{ClientError, Meter},
    repo::{
        Event, Held, LogEvent, Monitor, Outcome, Repository, State,
        fetch::claimant,
        merge::with_changes,
        report::FetchReport,
        state::{Cause, Kept},
        way,
    },
    transport::RecordId,
};

/// Why changes of a bundle wait that is not all of its source, or says of it what nobody has signed: until the next merge, no longer.
const NOT_YET_MERGED: &str = "fetched from a bundle; `ddcp merge` merges them";

/// What a bundle brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleFetchReport {
    /// The remote whose database it is of, or `site` and the site id.
    pub remote: String,
    /// That database's site id, in hexadecimal.
    pub site_id: String,
    /// Changes that are new here.
    pub changes: u64,
    /// Bytes of the packs that hold them.
    pub bytes: u64,
    /// The first version of that database in the bundle.
    pub from_version: i64,
    /// The last.
    pub to_version: i64,
    /// Whether something that may be lacked here is not in the bundle (of other tables, say), so that it does not count
    /// as having read the database up to its end.
    pub partial: bool,
    /// The repository whose key has signed it, by its record, if one has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// Whether it was signed by the key of the remote whose database it is of. Only then it counts as fetched from it:
    /// whoever makes a bundle writes into it whose it is.
    #[serde(default)]
    pub proven: bool,
}

/// A bundle that was found to be whole.
struct Checked {
    file: File,
    /// What messages call it.
    shown: String,
    header: BundleHeader,
    end: BundleEnd,
    /// Whose key has signed it.
    signer: Option<RecordId>,
    limits: Limits,
}

impl Repository {
    /// Puts the changes of the bundle in `file` into the inbox, as if they had been fetched from its source. The file is
    /// read twice: it is looked at as a whole before anything of it is taken.
    ///
    /// # Errors
    /// [`Error::Bundle`], [`Error::OwnBundle`], [`Error::BundleGap`], [`Error::Remote`] where there is no room for it,
    /// [`Error::Io`], [`Error::Config`], [`Error::Database`], [`Error::State`].
    pub async fn fetch_bundle(
        &self,
        file: PathBuf,
        shown: Option<String>,
        monitor: &Monitor,
    ) -> Result<BundleFetchReport, Error> {
        let held = self.hold().await?;
        let began = Timestamp::now();
        let checked = self
            .blocking(move |repository| {
                let shown = shown.unwrap_or_else(|| file.display().to_string());
                let limits = repository.limits_for_bundle(&file, &shown)?;
                Checked::open(&file, shown, limits)
            })
            .await?;
        let (site, signer) = (checked.header.source, checked.signer);
        let name = self.blocking(move |repository| repository.name_of(&site, signer)).await?;
        // Of all bundles one at a time, and of one source one fetch; always in this order.
        let alone = (self.inner.importing.clone().lock_owned().await, self.alone_with(&site).await);
        let label = name.map_or_else(|| format!("site {site}"), |name| name.to_string());
        let meter = monitor.meter(&label);
        let (taken, shown) = (label.clone(), meter.clone());
        let work = self.blocking(move |repository| {
            let _alone = alone;
            let report = repository.take_bundle(&held, checked, &label, &meter)?;
            tracing::info!(remote = %label, changes = report.changes, bytes = report.bytes, "fetched from a bundle");
            let fetched = FetchReport { changes: report.changes, bytes: report.bytes, ..FetchReport::default() };
            let outcome = Outcome::Done(fetched);
            repository.state()?.note_event(&label, began, LogEvent::of_fetch(&outcome));
            repository.tell(Event::of_fetch(&label, &outcome));
            Ok(report)
        });
        self.telling_progress(&taken, &shown, work).await
    }

    /// The first of the remotes that last answered as `site`, or else one that has not answered yet and has signed.
    fn name_of(&self, site: &SiteId, signer: Option<RecordId>) -> Result<Option<RemoteName>, Error> {
        let (state, mut signing) = (self.state()?, None);
        for (name, remote) in self.config()?.remotes {
            match state.contact(name.as_str(), &remote.address)?.site_id {
                Some(known) if known == *site => return Ok(Some(name)),
                None if signer.is_some_and(|signer| is_of(&remote, signer)) => signing = Some(name),
                _ => {}
            }
        }
        Ok(signing)
    }

    fn take_bundle(
        &self,
        held: &Held,
        checked: Checked,
        label: &str,
        meter: &Meter,
    ) -> Result<BundleFetchReport, Error> {
        let Checked { header, end, signer, .. } = &checked;
        let database = self.own_database(held)?;
        let reader = database.site_id()?;
        if header.source == reader {
            return Err(Error::OwnBundle { file: checked.shown });
        }
        let mut state = self.state()?;
        let origin = self.origin_of(&mut state, header.source, *signer)?;
        let is_proven = origin.way != Way::BUNDLES;
        let fetched = match is_proven {
            true => self.fetched_from((&database, &mut state), origin)?,
            false => state.fetched(origin, database.position(origin)?)?,
        };
        // A bundle that ends before what is here is an old one, or its source went back in time. Only the latter has
        // something new; merging it in either case is harmless.
        let partial = !header.is_complete_for(&reader) || end.to < fetched;
        let mut report = BundleFetchReport {
            remote: label.to_owned(),
            site_id: header.source.to_string(),
            changes: 0,
            bytes: 0,
            from_version: first_version(header.from),
            to_version: end.to.version,
            partial,
            signed_by: signer.map(|signer| signer.to_string()),
            proven: is_proven,
        };
        let place = match partial {
            true => Some(Place::Aside),
            false => {
                let reached = state.read_on(origin, fetched, &header.schema)?;
                place_of(header.from, reached, known_otherwise(&database, &state, origin)?)
            }
        };
        let Some(place) = place else {
            let (begins, known) = (report.from_version, fetched.version);
            return Err(Error::BundleGap { file: checked.shown, source_name: label.to_owned(), begins, known });
        };
        let most = checked.limits.inbox_bytes.get();
        let held = state.held(&origin.site)?;
        let room = Room { left: most.saturating_sub(held), most };
        if matches!(place, Place::Aside) {
            // Taken in parts it would begin anew each time.
            room.check(end.bytes)?;
        }
        meter.update(|progress| {
            progress.offer(end.bytes, end.changes);
            (progress.version, progress.target) = (header.from.version, end.to.version);
        });
        let (schema, to) = (header.schema, end.to);
        let mut taker = Taker { state, origin, reader, is_proven, place, room };
        let taken = checked.each_pack(meter, |entry, pack| taker.take(entry, pack, &mut report));
        if matches!(taken, Err(Error::Bundle { .. })) {
            // It is not what was looked at, so nothing of it counts as read.
            taker.state.put_aside_origin(origin)?;
        }
        taken?;
        taker.finish(to, &schema)?;
        Ok(report)
    }

    /// What a bundle of `site` belongs to: the remote whose key has signed it, unless that is known to be another site; or
    /// bundles.
    fn origin_of(&self, state: &mut State, site: SiteId, signer: Option<RecordId>) -> Result<Origin, Error> {
        let unproven = Origin { site, way: Way::BUNDLES };
        let Some(signer) = signer else { return Ok(unproven) };
        let config = self.config()?;
        let _alone = self.inner.claiming.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, Remote { address, .. }) in config.remotes.iter().filter(|(_, remote)| is_of(remote, signer)) {
            let known = state.contact(name.as_str(), address)?.site_id;
            if known.is_some_and(|known| known != site) || claimant(&config, state, name, address, &site)?.is_some() {
                continue;
            }
            if known.is_none() {
                state.note_site(name.as_str(), address, &site)?;
            }
            return Ok(Origin { site, way: way::of_record(signer) });
        }
        Ok(unproven)
    }
}

/// Whether the key that owns the record `signer` is that of `remote`.
fn is_of(remote: &Remote, signer: RecordId) -> bool {
    remote.address.repository() == Some(signer)
}

/// How far the site of `origin` is here by other ways.
fn known_otherwise(database: &Database, state: &State, origin: Origin) -> Result<Cursor, Error> {
    let mut known = database.positions_of(&origin.site)?;
    for other in state.inbox_origins(&origin.site)? {
        known.extend(state.reaches(other)?.map(|reached| (other, reached)));
    }
    let others = known.into_iter().filter(|(other, _)| *other != origin);
    Ok(others.map(|(_, reached)| reached).max().unwrap_or(Cursor::ZERO))
}

/// Where a bundle goes that is all of its source from `from` to its end, of which `reached` is here, and `otherwise` by
/// other ways; nowhere if something is missing in between.
fn place_of(from: Cursor, reached: Cursor, otherwise: Cursor) -> Option<Place> {
    if from <= reached {
        return Some(Place::Inbox { reached });
    }
    (from <= otherwise).then_some(Place::Aside)
}

impl Checked {
    /// Reads the file to its end, so that what was cut off or altered is noticed before anything is taken.
    fn open(path: &Path, shown: String, limits: Limits) -> Result<Self, Error> {
        let file = files::open_regular(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let wrong = |source| Error::Bundle { file: shown.clone(), source };
        let mut reader = BundleReader::open(&file).map_err(wrong)?.with_pack_bytes(limits.pack_bytes.get());
        while reader.next_pack().map_err(wrong)?.is_some() {}
        let end = end_of(&reader).map_err(wrong)?;
        let signer = check_signature(&reader).map_err(wrong)?;
        let header = reader.header().clone();
        drop(reader);
        Ok(Self { file, shown, header, end, signer, limits })
    }

    /// Reads the file again and gives each pack to `take`, encoded and decoded.
    fn each_pack(
        mut self,
        meter: &Meter,
        mut take: impl FnMut(&BundledPack, &Pack) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let wrong = |source| Error::Bundle { file: self.shown.clone(), source };
        self.file.seek(SeekFrom::Start(0)).map_err(|error| wrong(error.into()))?;
        let mut reader = BundleReader::open(&self.file).map_err(wrong)?.with_pack_bytes(self.limits.pack_bytes.get());
        const ALTERED: BundleError = BundleError::Damaged("it has been altered since it was looked at");
        if *reader.header() != self.header {
            return Err(wrong(ALTERED));
        }
        while let Some(entry) = reader.next_pack().map_err(wrong)? {
            let pack = entry.decode_within(&self.header, &self.limits.unpacked()).map_err(wrong)?;
            take(&entry, &pack)?;
            meter.update(|progress| {
                progress.bytes = reader.position();
                progress.store(entry.changes, entry.to.version);
            });
        }
        meter.update(|progress| progress.bytes = reader.position());
        let is_same = reader.end() == Some(self.end) && check_signature(&reader).map_err(wrong)? == self.signer;
        if is_same { Ok(()) } else { Err(wrong(ALTERED)) }
    }
}

/// Where the packs of a bundle go.
#[derive(Clone, Copy)]
enum Place {
    /// Behind what was fetched before, up to `reached`.
    Inbox { reached: Cursor },
    /// To what waits for the next merge: they say nothing of how far their source was read.
    Aside,
}

struct Taker {
    state: State,
    origin: Origin,
    /// The own site. What is said to be its own is here, or is no business of a bundle's.
    reader: SiteId,
    is_proven: bool,
    place: Place,
    room: Room,
}

/// What of one source may lie here, fetched and not merged.
struct Room {
    left: u64,
    most: u64,
}

impl Room {
    fn check(&self, bytes: u64) -> Result<(), Error> {
        if bytes > self.left {
            return Err(ClientError::NoRoom { most: self.most }.into());
        }
        Ok(())
    }

    fn take(&mut self, bytes: u64) -> Result<(), Error> {
        self.check(bytes)?;
        self.left -= bytes;
        Ok(())
    }
}

impl Taker {
    fn take(&mut self, entry: &BundledPack, pack: &Pack, report: &mut BundleFetchReport) -> Result<(), Error> {
        let others = self.of_others(pack);
        let (bytes, pack) =
            others.as_ref().map_or((entry.bytes.as_slice(), pack), |(bytes, pack)| (bytes.as_slice(), pack));
        match self.place {
            // That something was read so far is the word of whoever made the bundle before; but this very pack is here.
            Place::Inbox { reached }
                if pack.to <= reached && (self.is_proven || self.state.knows_bundle_pack(&entry.id)?) =>
            {
                return Ok(());
            }
            Place::Inbox { reached } if pack.to > reached => {
                self.room.take(changeset::charge(bytes.len() as u64, bytes))?;
                let content = Some((bytes, pack.changes.len()));
                let id = (!self.is_proven).then_some(&entry.id);
                self.state.store_of_bundle(self.origin, reached, pack.to, content, id)?;
                self.place = Place::Inbox { reached: pack.to };
            }
            Place::Inbox { .. } | Place::Aside if pack.changes.is_empty() => return Ok(()),
            Place::Inbox { .. } | Place::Aside => {
                self.room.take(changeset::charge(bytes.len() as u64, bytes))?;
                let (site, cause, reasons) = (&self.origin.site, Cause::Data, NOT_YET_MERGED);
                self.state.keep_waiting(&[Kept { site, pack, cause, reasons, schema: None }])?;
            }
        }
        report.changes += pack.changes.len() as u64;
        report.bytes += bytes.len() as u64;
        Ok(())
    }

    /// The pack without changes in the own name, if it has some.
    fn of_others(&self, pack: &Pack) -> Option<(Vec<u8>, Pack)> {
        let is_own = |change: &Change| change.site_id == self.reader;
        if !pack.changes.iter().any(is_own) {
            return None;
        }
        let others = pack.changes.iter().filter(|change| !is_own(change)).cloned().collect();
        let pack = with_changes(pack, others);
        Some((pack.encode(), pack))
    }

    fn finish(&mut self, to: Cursor, schema: &[u8]) -> Result<(), Error> {
        let Place::Inbox { reached } = self.place else { return Ok(()) };
        if to > reached {
            self.state.store(self.origin, reached, to, None)?;
        }
        self.state.note_schema(self.origin, schema)?;
        Ok(())
    }
}
