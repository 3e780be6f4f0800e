//! Certificates of clients that are no pods.

use serde::{Deserialize, Serialize};

/// What the state keeps of one until it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Grant {
    pub(crate) identity: String,
    pub(crate) serial: String,
    /// SHA-256 of the key's SubjectPublicKeyInfo, in hex.
    pub(crate) key: String,
    /// In seconds since 1970.
    pub(crate) not_after: u64,
    /// Who asked for it.
    pub(crate) by: String,
    /// SHA-256 of the root's key that proves it, in hex.
    pub(crate) anchor: String,
}
