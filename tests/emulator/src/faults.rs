//! Faults that a test asks for: which calls they strike, and what they do to them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Strikes the calls that it matches, from the `skip`th on, `times` times.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Such as `GetSecretValue`; every action if absent.
    #[serde(default)]
    pub action: Option<String>,
    /// The name of a secret that the call has to ask for; any if absent.
    #[serde(default)]
    pub secret: Option<String>,
    /// How many calls it strikes; all if absent.
    #[serde(default)]
    pub times: Option<u32>,
    /// How many matching calls it lets pass before.
    #[serde(default)]
    pub skip: u32,
    /// What it does.
    pub kind: FaultKind,
}

/// What a fault does to a call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum FaultKind {
    /// Waits before anything else happens; other faults still strike. In JSON `{"latency_ms": 200}`.
    #[serde(rename = "latency_ms", serialize_with = "to_millis", deserialize_with = "from_millis")]
    Latency(Duration),
    /// `ThrottlingException`, or `Throttling` of STS and IAM; of a node's agents with status 429.
    Throttle,
    /// Any error. Nothing is done.
    Error {
        /// Its code.
        code: String,
        /// Its HTTP status.
        status: u16,
        /// Its message.
        message: String,
    },
    /// The call is carried out, and this error is answered whatever came of it.
    ErrorAfter {
        /// Its code.
        code: String,
        /// Its HTTP status.
        status: u16,
        /// Its message.
        message: String,
    },
    /// `InternalServiceError`, status 500. Nothing is done.
    InternalError,
    /// The call is carried out, and the connection is cut after so many bytes of the answer's body, which promised more.
    CutAfter(usize),
    /// Nothing is done and no answer comes, until the caller goes away.
    Hang,
    /// The credentials are said to be expired. Nothing is done.
    ExpiredToken,
    /// Reads answer the version that was current before the last change, as an eventually consistent read may; before
    /// the first change that is `ResourceNotFoundException`.
    Stale,
    /// Every other read is stale, beginning with the second.
    Alternate,
    /// This body with status 200, and nothing is done.
    Body(String),
    /// `BatchGetSecretValue` names the secret neither under its values nor under its errors. Without a secret: the
    /// first of the call.
    DropEntries,
    /// `BatchGetSecretValue` answers this error for the secret. Without a secret: for each.
    EntryError {
        /// Its code.
        code: String,
        /// Its message.
        message: String,
    },
    /// `BatchGetSecretValue` answers so many secrets a page; zero: a first page with none, then the rest.
    Pages(usize),
    /// Reads, creates, puts and updates are denied with a message that holds the secret's value: for tests that no message is
    /// passed on.
    EchoValue,
}

/// Names a fault that was set, so that it can be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FaultId(u64);

/// A fault that strikes one call.
#[derive(Debug)]
pub(crate) struct Strike {
    pub(crate) kind: FaultKind,
    pub(crate) secret: Option<String>,
    /// How many calls it struck before.
    pub(crate) before: u32,
}

/// All faults that are set.
#[derive(Default)]
pub(crate) struct Faults {
    set: Vec<Armed>,
    next: u64,
}

struct Armed {
    id: FaultId,
    fault: Fault,
    struck: u32,
}

// === impl Fault ===

impl Fault {
    /// Throttles every call of this action, until told otherwise.
    #[must_use]
    pub fn on(action: &str) -> Self {
        Self { action: Some(action.to_owned()), ..Self::any() }
    }

    /// Throttles every call, until told otherwise.
    #[must_use]
    pub fn any() -> Self {
        Self { action: None, secret: None, times: None, skip: 0, kind: FaultKind::Throttle }
    }

    /// Only calls that ask for this secret.
    #[must_use]
    pub fn secret(mut self, name: &str) -> Self {
        self.secret = Some(name.to_owned());
        self
    }

    /// Only so many calls.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Not the first so many calls.
    #[must_use]
    pub fn skip(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    /// What it does.
    #[must_use]
    pub fn kind(mut self, kind: FaultKind) -> Self {
        self.kind = kind;
        self
    }

    fn matches(&self, action: &str, names: &[String]) -> bool {
        self.action.as_deref().is_none_or(|wanted| wanted == action)
            && self.secret.as_ref().is_none_or(|wanted| names.contains(wanted))
    }
}

// === impl FaultKind ===

impl FaultKind {
    /// Whether it settles what the whole call answers, so that no second one can.
    fn is_final(&self) -> bool {
        match self {
            Self::Throttle
            | Self::Error { .. }
            | Self::ErrorAfter { .. }
            | Self::InternalError
            | Self::CutAfter(_)
            | Self::Hang
            | Self::ExpiredToken
            | Self::Body(_) => true,
            Self::Latency(_)
            | Self::Stale
            | Self::Alternate
            | Self::DropEntries
            | Self::EntryError { .. }
            | Self::Pages(_)
            | Self::EchoValue => false,
        }
    }
}

// === impl FaultId ===

impl fmt::Display for FaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Strike ===

impl Strike {
    pub(crate) fn strikes(&self, name: &str) -> bool {
        self.secret.as_deref().is_none_or(|secret| secret == name)
    }

    pub(crate) fn is_stale(&self) -> bool {
        match self.kind {
            FaultKind::Stale => true,
            FaultKind::Alternate => self.before % 2 == 1,
            _ => false,
        }
    }
}

// === impl Faults ===

impl Faults {
    pub(crate) fn set(&mut self, fault: Fault) -> FaultId {
        let id = FaultId(self.next);
        self.next += 1;
        self.set.push(Armed { id, fault, struck: 0 });
        id
    }

    pub(crate) fn remove(&mut self, id: FaultId) {
        self.set.retain(|armed| armed.id != id);
    }

    pub(crate) fn clear(&mut self) {
        self.set.clear();
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (FaultId, &Fault)> {
        self.set.iter().map(|armed| (armed.id, &armed.fault))
    }

    /// The faults that strike this call, in the order in which they were set. Of those that settle the answer only the
    /// first strikes; the others wait for the next call.
    pub(crate) fn strike(&mut self, action: &str, names: &[String]) -> Vec<Strike> {
        let mut strikes = Vec::new();
        let mut settled = false;
        for armed in &mut self.set {
            let is_final = armed.fault.kind.is_final();
            if !armed.fault.matches(action, names) || settled && is_final {
                continue;
            }
            if armed.fault.skip > 0 {
                armed.fault.skip -= 1;
                continue;
            }
            settled |= is_final;
            let Fault { secret, kind, .. } = &armed.fault;
            strikes.push(Strike { kind: kind.clone(), secret: secret.clone(), before: armed.struck });
            armed.struck += 1;
        }
        self.set.retain(|armed| armed.fault.times.is_none_or(|times| armed.struck < times));
        strikes
    }
}

fn to_millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn from_millis<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}
