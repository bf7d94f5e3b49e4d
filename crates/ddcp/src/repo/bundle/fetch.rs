use std::{
    fs::File,
    io::{Seek, SeekFrom},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{end_of, first_version};
use crate::{
    Error,
    changeset::{self, BundleEnd, BundleError, BundleHeader, BundleReader, Cursor, Pack, SiteId},
    config::{Limits, RemoteName},
    files,
    protocol::{ClientError, Meter},
    repo::{
        Event, Held, LogEvent, Monitor, Outcome, Repository, State,
        report::FetchReport,
        state::{Cause, Kept},
    },
};

/// Why changes of a bundle that is not all of its source wait: until the next merge, no longer.
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
}

/// A bundle that was found to be whole.
struct Checked {
    file: File,
    /// What messages call it.
    shown: String,
    header: BundleHeader,
    end: BundleEnd,
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
        let site = checked.header.source;
        let name = self.blocking(move |repository| repository.name_of(&site)).await?;
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

    /// The first of the remotes that last answered as `site`.
    fn name_of(&self, site: &SiteId) -> Result<Option<RemoteName>, Error> {
        let state = self.state()?;
        for (name, remote) in self.config()?.remotes {
            if state.contact(name.as_str(), &remote.address)?.site_id == Some(*site) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    fn take_bundle(
        &self,
        held: &Held,
        checked: Checked,
        label: &str,
        meter: &Meter,
    ) -> Result<BundleFetchReport, Error> {
        let Checked { header, end, .. } = &checked;
        let site = header.source;
        let database = self.own_database(held)?;
        let reader = database.site_id()?;
        if site == reader {
            return Err(Error::OwnBundle { file: checked.shown });
        }
        let mut state = self.state()?;
        let fetched = state.fetched(&site, database.position(&site)?)?;
        // A bundle that ends before what is here is an old one, or its source went back in time. Only the latter has
        // something new; merging it in either case is harmless.
        let partial = !header.is_complete_for(&reader) || end.to < fetched;
        let mut report = BundleFetchReport {
            remote: label.to_owned(),
            site_id: site.to_string(),
            changes: 0,
            bytes: 0,
            from_version: first_version(header.from),
            to_version: end.to.version,
            partial,
        };
        let most = checked.limits.inbox_bytes.get();
        let held = state.held(&site)?;
        let room = Room { left: most.saturating_sub(held), most };
        let mut taker = match partial {
            true => {
                // Taken in parts it would begin anew each time.
                room.check(end.bytes)?;
                Taker { state, site, place: Place::Aside, room }
            }
            false => {
                let reached = state.read_on(&site, fetched, &header.schema)?;
                if header.from > reached {
                    let (begins, known) = (report.from_version, fetched.version);
                    return Err(Error::BundleGap { file: checked.shown, source_name: label.to_owned(), begins, known });
                }
                Taker { state, site, place: Place::Inbox { reached }, room }
            }
        };
        meter.update(|progress| {
            progress.offer(end.bytes, end.changes);
            (progress.version, progress.target) = (header.from.version, end.to.version);
        });
        let (schema, to) = (header.schema, end.to);
        checked.each_pack(meter, |bytes, pack| taker.take(bytes, pack, &mut report))?;
        taker.finish(to, &schema)?;
        Ok(report)
    }
}

impl Checked {
    /// Reads the file to its end, so that what was cut off or altered is noticed before anything is taken.
    fn open(path: &Path, shown: String, limits: Limits) -> Result<Self, Error> {
        let file = files::open_regular(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let wrong = |source| Error::Bundle { file: shown.clone(), source };
        let mut reader = BundleReader::open(&file).map_err(wrong)?.with_pack_bytes(limits.pack_bytes.get());
        while reader.next_pack().map_err(wrong)?.is_some() {}
        let end = end_of(&reader).map_err(wrong)?;
        let header = reader.header().clone();
        drop(reader);
        Ok(Self { file, shown, header, end, limits })
    }

    /// Reads the file again and gives each pack to `take`, encoded and decoded.
    fn each_pack(
        mut self,
        meter: &Meter,
        mut take: impl FnMut(&[u8], &Pack) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let wrong = |source| Error::Bundle { file: self.shown.clone(), source };
        self.file.seek(SeekFrom::Start(0)).map_err(|error| wrong(error.into()))?;
        let mut reader = BundleReader::open(&self.file).map_err(wrong)?.with_pack_bytes(self.limits.pack_bytes.get());
        if *reader.header() != self.header {
            return Err(wrong(BundleError::Damaged("it has been altered since it was looked at")));
        }
        while let Some(entry) = reader.next_pack().map_err(wrong)? {
            let pack = entry.decode_within(&self.header, &self.limits.unpacked()).map_err(wrong)?;
            take(&entry.bytes, &pack)?;
            meter.update(|progress| {
                progress.bytes = reader.position();
                progress.store(entry.changes, entry.to.version);
            });
        }
        meter.update(|progress| progress.bytes = reader.position());
        Ok(())
    }
}

/// Where the packs of a bundle go.
enum Place {
    /// Behind what was fetched before, up to `reached`.
    Inbox { reached: Cursor },
    /// To what waits for the next merge: they say nothing of how far their source was read.
    Aside,
}

struct Taker {
    state: State,
    site: SiteId,
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
}

impl Taker {
    fn take(&mut self, bytes: &[u8], pack: &Pack, report: &mut BundleFetchReport) -> Result<(), Error> {
        match &mut self.place {
            Place::Inbox { reached } if pack.to <= *reached => return Ok(()),
            Place::Inbox { reached } => {
                let charge = changeset::charge(bytes.len() as u64, bytes);
                self.room.check(charge)?;
                self.room.left -= charge;
                self.state.store(&self.site, *reached, pack.to, Some((bytes, pack.changes.len())))?;
                *reached = pack.to;
            }
            Place::Aside => {
                let (site, cause, reasons) = (&self.site, Cause::Data, NOT_YET_MERGED);
                self.state.keep_waiting(&[Kept { site, pack, cause, reasons, schema: None }])?;
            }
        }
        report.changes += pack.changes.len() as u64;
        report.bytes += bytes.len() as u64;
        Ok(())
    }

    fn finish(&mut self, to: Cursor, schema: &[u8]) -> Result<(), Error> {
        let Place::Inbox { reached } = self.place else { return Ok(()) };
        if to > reached {
            self.state.store(&self.site, reached, to, None)?;
        }
        self.state.note_schema(&self.site, schema)?;
        Ok(())
    }
}
