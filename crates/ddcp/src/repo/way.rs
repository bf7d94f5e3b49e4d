//! How changes are come by: what a position belongs to besides the site that a source says it is.

use std::{fs, path::Path};

use super::{Repository, State, names};
use crate::{
    Error,
    changeset::{Cursor, SiteId},
    config::{Config, Remote},
    database::{Database, Origin, Way},
    transport::{Address, RecordId},
};

/// The way to what a record names, and to what is signed by the key that owns it.
pub(super) fn of_record(record: RecordId) -> Way {
    Way::new("ddcp 2026-11 way to a record", &record.0)
}

/// The way to what is at `address`. To the file of a repository, of this user's own, that has a record it is that to the
/// record: what came by one does not come again by the other. Blocks.
pub(super) fn of_address(address: &Address) -> Way {
    let record = match address {
        Address::Path(path) => names::address_of(path).and_then(|address| address.repository()),
        Address::Veilid(_) => address.repository(),
    };
    match (record, address) {
        (Some(record), _) => of_record(record),
        (None, Address::Path(path)) => of_path(path),
        (None, Address::Veilid(key)) => Way::new("ddcp 2026-11 way to a key", key.to_string().as_bytes()),
    }
}

/// What the way to `address` may have been before: an earlier program kept one position for each site, of whatever was at
/// its remote; and a file may have come to a record. Blocks.
fn before(address: &Address) -> Vec<Way> {
    match address {
        Address::Path(path) => vec![Way::default(), of_path(path)],
        Address::Veilid(_) => vec![Way::default()],
    }
}

fn of_path(path: &Path) -> Way {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    Way::new("ddcp 2026-11 way to a path", path.as_os_str().as_encoded_bytes())
}

/// What is at `address` and says that it is `site`. Blocks.
pub(super) fn origin(address: &Address, site: SiteId) -> Origin {
    Origin { site, way: of_address(address) }
}

impl Repository {
    /// How far `origin` has been fetched. A position counts while a remote at its way is known to be its site: removing
    /// the remote, or giving it another address, forgets it. Call it before the answer of a remote is noted.
    pub(super) fn fetched_from(
        &self,
        (database, state): (&Database, &mut State),
        origin: Origin,
    ) -> Result<Cursor, Error> {
        match known_at(&self.config()?, state, origin)? {
            Some(address) => {
                for way in before(&address).into_iter().filter(|way| *way != origin.way) {
                    database.adopt_position(way, origin)?;
                    state.adopt(way, origin)?;
                }
            }
            None => {
                state.put_aside_origin(origin)?;
                if database.position(origin)? != Cursor::ZERO {
                    database.forget_position(origin)?;
                }
            }
        }
        Ok(state.fetched(origin, database.position(origin)?)?)
    }
}

/// The address of a remote at the way of `origin` that is known to be its site.
fn known_at(config: &Config, state: &State, origin: Origin) -> Result<Option<Address>, Error> {
    for (name, Remote { address, .. }) in &config.remotes {
        let is_known = state.contact(name.as_str(), address)?.site_id == Some(origin.site);
        if is_known && of_address(address) == origin.way {
            return Ok(Some(address.clone()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn one_file_is_one_way_by_all_links_to_it_and_every_record_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let [file, link, other] = ["a.db", "link.db", "b.db"].map(|name| dir.path().join(name));
        fs::write(&file, "").unwrap();
        symlink("a.db", &link).unwrap();
        let way = |path: &Path| of_address(&Address::Path(path.to_owned()));
        assert_eq!(way(&file), way(&link));
        let ways = [way(&file), way(&other), of_record(RecordId([1; 32])), of_record(RecordId([2; 32])), Way::BUNDLES];
        for (at, way) in ways.iter().enumerate() {
            assert!(*way != Way::default() && !ways[..at].contains(way), "{ways:?}");
        }
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
        let other_secret = format!("VLD0:{key}:AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8");
        let [one, two] = [format!("VLD0:{key}:{key}"), other_secret].map(|text| text.parse::<Address>().unwrap());
        assert_eq!(of_address(&one), of_address(&two), "the secret is for reading");
        assert_eq!(of_address(&one), of_record(RecordId(std::array::from_fn(|at| at as u8))));
    }
}
