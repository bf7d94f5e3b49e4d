//! What operations say of what they did: printed by the command line, sent over the control socket.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{MergeFailure, SchemaReport};
use crate::{
    Failure,
    config::{Access, SyncMode},
    database::LeftOut,
    protocol::{DropReport, Progress},
};

/// A configured remote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteEntry {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// What the daemon does about it by itself.
    pub sync: SyncMode,
}

/// What became of one of several remotes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerRemote<T> {
    /// The remote's name.
    pub remote: String,
    /// What was done, or why not.
    #[serde(flatten)]
    pub outcome: Outcome<T>,
}

/// Success or failure, tagged by the field's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome<T> {
    /// What was done.
    Done(T),
    /// Why not.
    Failed(Failure),
}

/// What a fetch brought.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchReport {
    /// Changes that are new in the inbox.
    pub changes: u64,
    /// Bytes of the packs that hold them.
    pub bytes: u64,
    /// The remote's database version.
    pub remote_version: i64,
    /// What the remote has and cannot send.
    #[serde(default, skip_serializing_if = "LeftOut::is_empty")]
    pub left_out: LeftOut,
    /// Whether the remote's history was found to be older than what had been fetched, and read from its start.
    pub rewound: bool,
    /// How the remote's tables differ from those here, if they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<SchemaReport>,
}

/// What a merge changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeReport {
    /// Changes looked at.
    pub changes: u64,
    /// Changes that altered the database, by table.
    pub applied: BTreeMap<String, u64>,
    /// Changes that were here already.
    #[serde(default)]
    pub known: u64,
    /// Changes that lost against what is here, which is newer or greater and stays, by table.
    #[serde(default)]
    pub lost: BTreeMap<String, u64>,
    /// Rows that were deleted here, by table.
    #[serde(default)]
    pub deleted: BTreeMap<String, u64>,
    /// Rows of tables here that refer to a row that was deleted, a sentence for each foreign key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dangling: Vec<String>,
    /// All changes of this remote that wait because they do not fit this database's schema, constraints or triggers.
    pub waiting: u64,
    /// Why they wait, a sentence each.
    pub reasons: Vec<String>,
}

/// What a pull did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullReport {
    /// The fetch, per remote.
    pub fetched: Vec<PerRemote<FetchReport>>,
    /// The merge, per remote.
    pub merged: Vec<PerRemote<MergeReport>>,
}

/// Where a repository stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The database's path.
    pub database: String,
    /// Its site id, in hexadecimal.
    pub site_id: String,
    /// Its version.
    pub version: i64,
    /// Its replicated tables.
    pub tables: Vec<String>,
    /// Tables that replicate and cannot be read by this program, so that no peer gets what is in them: their keys are
    /// compared by a collation that only their application knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
    /// The address that peers use, once there is one.
    pub address: Option<String>,
    /// Whom `ddcp serve` answers.
    #[serde(default)]
    pub access: Access,
    /// Why it is private, where its settings do not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_private: Option<String>,
    /// Whether `ddcp serve` runs here.
    pub serving: bool,
    /// Callers that it has dropped, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<DropReport>,
    /// Changes of this database that cannot be sent, so that no peer gets them.
    #[serde(default, skip_serializing_if = "LeftOut::is_empty")]
    pub unsent: LeftOut,
    /// The remotes.
    pub remotes: Vec<RemoteStatusReport>,
    /// Sites that are no remotes, of which something was fetched that is not merged: in a bundle, or from a remote that
    /// was removed. A merge of everything merges it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<OtherSiteReport>,
}

/// What is here of a site that is no remote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherSiteReport {
    /// The site id, in hexadecimal.
    pub site: String,
    /// Changes fetched, not merged.
    pub unmerged: u64,
    /// Changes that were tried and wait for the schema or a constraint.
    pub waiting: u64,
    /// Why they wait.
    pub reasons: Vec<String>,
    /// How the last merge failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_error: Option<MergeFailure>,
}

/// Where a repository stands with one remote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteStatusReport {
    /// The remote's name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// What the daemon does about it by itself.
    pub sync: SyncMode,
    /// The version it last answered with.
    pub version: Option<i64>,
    /// Changes fetched, not merged.
    pub unmerged: u64,
    /// Changes that were tried and wait for the schema or a constraint.
    pub waiting: u64,
    /// Why they wait.
    pub reasons: Vec<String>,
    /// When it last answered: seconds since 1970.
    pub last_contact: Option<i64>,
    /// What went wrong since.
    pub last_error: Option<String>,
    /// When that was: seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error_at: Option<i64>,
    /// How the last merge of what was fetched from it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_error: Option<MergeFailure>,
    /// How its tables differed when it was last fetched from, if they did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<SchemaReport>,
    /// Up to which of its versions everything was fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched_version: Option<i64>,
    /// Up to which of its versions everything was merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged_version: Option<i64>,
    /// Up to which version of this database it had merged everything when it last told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_version: Option<i64>,
    /// Whether it had the same, when it last told of its digest, as this database has now; `None` if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identical: Option<bool>,
    /// What it has told that it has and cannot send.
    #[serde(default, skip_serializing_if = "LeftOut::is_empty")]
    pub left_out: LeftOut,
    /// How far the download from it is that the daemon is at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Progress>,
}
