//! What was read from a source.

use std::collections::BTreeMap;

use super::{mapping::Request, names::VersionId, value::SecretValue};

/// One secret as AWS answered it.
#[derive(Debug)]
pub struct Reading {
    /// The text, or the base64 of a binary secret.
    pub value: SecretValue,
    /// Which version it is.
    pub version: Version,
}

/// A version of a secret: its id, and when AWS made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// AWS's id of the version.
    pub id: VersionId,
    /// `CreatedDate`, in milliseconds since the Unix epoch by AWS's clock; absent where AWS gave none.
    pub created_ms: Option<i64>,
}

/// The answers to the requests of one refresh. A request that is not in it was not asked.
#[derive(Debug)]
pub struct Snapshot<E> {
    /// Each request with what came back.
    pub readings: BTreeMap<Request, Result<Reading, E>>,
}
