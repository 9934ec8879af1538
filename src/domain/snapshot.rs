//! What was read from a source, and what stood in the way.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::{mapping::Request, names::VersionId, value::SecretValue};

/// The answers to the requests of one refresh. A request that is not in it was not asked.
pub type Snapshot = BTreeMap<Request, Result<Reading, Problem>>;

/// One secret as the source answered it.
#[derive(Debug)]
pub struct Reading {
    /// The text, or the base64 of a binary secret.
    pub value: SecretValue,
    /// Which version it is.
    pub version: Version,
}

/// A version of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// AWS's id of it.
    pub id: VersionId,
    /// `CreatedDate`: milliseconds since the Unix epoch by AWS's clock, where AWS gave it.
    pub created_ms: Option<i64>,
}

/// Why a value is not fresh. Made of our own words: neither a value nor a foreign message is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What kind it is.
    pub reason: Reason,
    /// What failed, and what to do.
    pub message: String,
}

/// The kinds of [`Problem`]s: the closed set behind a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// AWS asked to slow down.
    Throttled,
    /// No usable answer: no connection, a time-out, an internal error, an answer that cannot be read.
    Unavailable,
    /// No credentials, or AWS did not accept them.
    Identity,
    /// The credentials are somebody's whom `expect_role` does not expect.
    UnexpectedIdentity,
    /// AWS knows who we are, and does not allow it.
    Denied,
    /// The secret does not exist, or is scheduled for deletion.
    Absent,
    /// AWS's clock and ours differ too much.
    Clock,
    /// AWS refused the request itself, or the key that encrypts the secret.
    Refused,
    /// An error code that keytide does not know.
    Unknown,
    /// The secret was expected to be a JSON object, and is not.
    NotAnObject,
    /// The JSON object has no such member, or it is null.
    MissingMember,
    /// An older version than the one applied: waits for the next read to agree.
    StepBack,
    /// Most members are gone: waits for the next read to agree.
    Removal,
    /// A template needs a key that is not there.
    MissingInput,
    /// Recovered from the last good snapshot, not yet read in this process.
    Recovered,
}

/// When it is worth to ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Soon, with backoff.
    Backoff,
    /// With the next refresh.
    NextRefresh,
}

// === impl Problem ===

impl Problem {
    /// A problem of this kind.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl std::error::Error for Problem {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

// === impl Reason ===

impl Reason {
    /// All of them, for metrics that begin at zero.
    pub const ALL: [Self; 15] = [
        Self::Throttled,
        Self::Unavailable,
        Self::Identity,
        Self::UnexpectedIdentity,
        Self::Denied,
        Self::Absent,
        Self::Clock,
        Self::Refused,
        Self::Unknown,
        Self::NotAnObject,
        Self::MissingMember,
        Self::StepBack,
        Self::Removal,
        Self::MissingInput,
        Self::Recovered,
    ];

    /// How often a read with this problem is repeated.
    #[must_use]
    pub fn retry(self) -> Retry {
        match self {
            Self::Throttled | Self::Unavailable | Self::Identity | Self::UnexpectedIdentity | Self::Clock => {
                Retry::Backoff
            }
            Self::Denied
            | Self::Absent
            | Self::Refused
            | Self::Unknown
            | Self::NotAnObject
            | Self::MissingMember
            | Self::StepBack
            | Self::Removal
            | Self::MissingInput
            | Self::Recovered => Retry::NextRefresh,
        }
    }

    /// True if the source answered, and the answer is that there is nothing: the key was looked for.
    #[must_use]
    pub fn is_definite(self) -> bool {
        matches!(self, Self::Absent | Self::MissingMember | Self::NotAnObject | Self::MissingInput)
    }

    /// The word of metrics and status.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Identity => "identity",
            Self::UnexpectedIdentity => "unexpected_identity",
            Self::Denied => "denied",
            Self::Absent => "absent",
            Self::Clock => "clock",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::NotAnObject => "not_an_object",
            Self::MissingMember => "missing_member",
            Self::StepBack => "step_back",
            Self::Removal => "removal",
            Self::MissingInput => "missing_input",
            Self::Recovered => "recovered",
        }
    }
}
