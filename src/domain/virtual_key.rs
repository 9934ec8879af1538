//! Virtual keys: what an entry of the spool asks for, and the identity that its claim gave it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use uuid::{Builder, Uuid};

use super::{
    identity::RoleArn,
    names::{SecretId, SecretName},
    value::SecretValue,
};

/// The identity of a claimed entry, and the `ClientRequestToken` of everything that it writes: a `UUIDv7` (RFC 9562, 5.7),
/// random, so that it says nothing of the value although it becomes the version's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(Uuid);

/// Gives tokens, each greater than those before it, also when the clock steps back.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    last: Option<Token>,
}

/// The operations of entries, by the words that producers use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Store a value under a name; an upsert.
    Create,
    /// Store a new value, perhaps under a new name.
    Rotate,
    /// Give the secret a new name.
    Rename,
    /// Schedule the secret for deletion.
    Delete,
}

/// What an entry does to which secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets the value of one secret.
    Store(SecretName),
    /// Moves a secret to another name: with a value of the entry's own, or the one that it has.
    Move {
        /// The old name.
        from: SecretName,
        /// The new one.
        to: SecretName,
        /// True if the entry brings the value.
        valued: bool,
    },
    /// Schedules a secret for deletion.
    Delete {
        /// The name.
        name: SecretName,
        /// The recovery window, 7 to 30 days.
        days: u8,
    },
}

/// What a secret carries beside its value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// `Description`; none is the empty one.
    pub description: Option<String>,
    /// `Tags`.
    pub tags: BTreeMap<String, String>,
    /// `KmsKeyId`; none is AWS's own key.
    pub kms_key_id: Option<String>,
    /// The regions that it is replicated to.
    pub replica_regions: BTreeSet<String>,
}

/// The members of [`Metadata`] that an entry gives itself; the others are the settings'.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// `description`.
    pub description: Option<String>,
    /// `tags`.
    pub tags: Option<BTreeMap<String, String>>,
    /// `kms_key_id`.
    pub kms_key_id: Option<String>,
    /// `replica_regions`.
    pub replica_regions: Option<BTreeSet<String>>,
}

/// Which of the configured writers stores an entry: keytide's own, or that of the team with this number.
pub type Writer = Option<usize>;

/// What an entry asks for, without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The word that the producer used.
    pub operation: Operation,
    /// What is done.
    pub change: Change,
    /// What it gives itself of the metadata. Boxed, since hardly any entry does.
    pub given: Option<Box<Given>>,
    /// Who writes it.
    pub writer: Writer,
}

/// An entry as its author wrote it: the types are right, nothing else is checked.
#[derive(Debug, Default)]
pub struct Draft {
    /// `op`.
    pub op: Option<String>,
    /// `name`.
    pub name: Option<String>,
    /// `alias`.
    pub alias: Option<String>,
    /// `new_name`.
    pub new_name: Option<String>,
    /// `new_alias`.
    pub new_alias: Option<String>,
    /// `value`.
    pub value: Option<SecretValue>,
    /// The members that are otherwise the settings'.
    pub given: Given,
    /// `recovery_window_in_days`.
    pub recovery_window_in_days: Option<u64>,
    /// `team`: role and region.
    pub team: Option<(String, String)>,
}

/// What entries may ask for. Their authors are not trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// What names begin with; longer than a slash, and ends in one.
    pub prefix: String,
    /// What entries do not say themselves.
    pub settings: Metadata,
    /// The operations that are carried out.
    pub operations: BTreeSet<Operation>,
    /// What entries may say themselves.
    pub allow: Allow,
    /// Names outside the prefix.
    pub allow_names: BTreeSet<SecretName>,
    /// The secrets of hosted keys, which no entry touches.
    pub hosted: BTreeSet<SecretId>,
    /// The roles and regions of teams, whose numbers are their places here.
    pub teams: Vec<(RoleArn, String)>,
}

/// What an entry may say that differs from the settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allow {
    /// True: any description.
    pub description: bool,
    /// Tags with these keys, beside those of the settings.
    pub tag_keys: BTreeSet<String>,
    /// These KMS keys.
    pub kms_key_ids: BTreeSet<String>,
    /// These regions, beside those of the settings.
    pub replica_regions: BTreeSet<String>,
}

/// Why an entry can never succeed. Made of our own words: nothing of the entry but names is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// What kind it is.
    pub reason: RejectionReason,
    /// What is wrong, and what to do.
    pub message: String,
}

/// The kinds of [`Rejection`]s: the closed set behind a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RejectionReason {
    /// Not a regular file with one link.
    NotAFile,
    /// keytide may not read it any more.
    Unreadable,
    /// Larger than any entry.
    TooLarge,
    /// Not an entry: not JSON, a member missing, unknown or of the wrong type.
    Malformed,
    /// The configuration does not allow it.
    NotAllowed,
    /// The secret is not there.
    Absent,
    /// Something newer has taken its place.
    Superseded,
    /// The secret belongs to another service, or is a replica.
    NotOurs,
    /// AWS refuses the request itself.
    Refused,
    /// AWS denied it for a day.
    Denied,
}

// === impl Token ===

impl Token {
    /// Parses the text of a `UUIDv7`; none if it is not one in its canonical form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let uuid = Uuid::try_parse(text).ok()?;
        (uuid.get_version_num() == 7 && uuid.hyphenated().to_string() == text).then_some(Self(uuid))
    }

    /// When the entry was claimed: milliseconds since the Unix epoch.
    #[must_use]
    pub fn claimed_ms(self) -> u64 {
        let (high, _) = self.0.as_u64_pair();
        high >> 16
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

// === impl Tokens ===

impl Tokens {
    /// No token that is given later is below this one.
    pub fn seen(&mut self, token: Token) {
        self.last = self.last.max(Some(token));
    }

    /// A new token for this time, in milliseconds since the Unix epoch.
    pub fn next(&mut self, now_ms: u64, random: &mut fastrand::Rng) -> Token {
        let mut bytes = [0_u8; 10];
        random.fill(&mut bytes);
        // The upper bits of the twelve behind the time begin at zero, so that there is room to count within a millisecond.
        let mut ms = now_ms;
        let mut count = u16::from_be_bytes([bytes[0] & 0x07, bytes[1]]);
        if let Some(last) = self.last.filter(|last| last.claimed_ms() >= now_ms) {
            ms = last.claimed_ms();
            let (high, _) = last.0.as_u64_pair();
            count = u16::try_from(high & 0x0fff).unwrap_or_default().saturating_add(1);
            if count > 0x0fff {
                ms = ms.saturating_add(1);
                count = 0;
            }
        }
        [bytes[0], bytes[1]] = count.to_be_bytes();
        let token = Token(Builder::from_unix_timestamp_millis(ms, &bytes).into_uuid());
        self.last = Some(token);
        token
    }
}

// === impl Operation ===

impl Operation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Create, Self::Rotate, Self::Rename, Self::Delete];

    /// The word of entries, logs and metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Rotate => "rotate",
            Self::Rename => "rename",
            Self::Delete => "delete",
        }
    }

    /// The operation that a word means.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.label() == word)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

// === impl Change ===

impl Change {
    /// The secrets that it touches, the first one first.
    pub fn names(&self) -> impl Iterator<Item = &SecretName> {
        let (first, second) = match self {
            Self::Store(name) | Self::Delete { name, .. } => (name, None),
            Self::Move { from, to, .. } => (from, Some(to)),
        };
        std::iter::once(first).chain(second)
    }

    /// What it is about in a message, behind the operation.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::Store(name) | Self::Delete { name, .. } => name.to_string(),
            Self::Move { from, to, .. } => format!("{from} to {to}"),
        }
    }

    /// True if the entry brings a value.
    #[must_use]
    pub fn is_valued(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Move { valued: true, .. })
    }
}

// === impl Given ===

impl Given {
    /// True if it gives nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The whole, with the settings for what is not given.
    #[must_use]
    pub fn over(&self, settings: &Metadata) -> Metadata {
        let Self { description, tags, kms_key_id, replica_regions } = self.clone();
        let or = settings.clone();
        Metadata {
            description: description.or(or.description),
            tags: tags.unwrap_or(or.tags),
            kms_key_id: kms_key_id.or(or.kms_key_id),
            replica_regions: replica_regions.unwrap_or(or.replica_regions),
        }
    }
}

// === impl Order ===

impl Order {
    /// What the secret that it makes carries, with the settings for what the entry does not give.
    #[must_use]
    pub fn metadata(&self, settings: &Metadata) -> Metadata {
        self.given.as_ref().map_or_else(|| settings.clone(), |given| given.over(settings))
    }
}

// === impl RejectionReason ===

impl RejectionReason {
    /// All of them, for metrics that begin at zero.
    pub const ALL: [Self; 10] = [
        Self::NotAFile,
        Self::Unreadable,
        Self::TooLarge,
        Self::Malformed,
        Self::NotAllowed,
        Self::Absent,
        Self::Superseded,
        Self::NotOurs,
        Self::Refused,
        Self::Denied,
    ];

    /// The word of metrics and error files.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NotAFile => "not_a_file",
            Self::Unreadable => "unreadable",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::NotAllowed => "not_allowed",
            Self::Absent => "absent",
            Self::Superseded => "superseded",
            Self::NotOurs => "not_ours",
            Self::Refused => "refused",
            Self::Denied => "denied",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_grow_whatever_the_clock_does() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut tokens = Tokens::default();
        let mut before: Option<Token> = None;
        for round in 0..20_000_u64 {
            let now = match round % 5 {
                0 => 1_793_491_200_000 + round / 100,
                1 => 1_793_491_100_000,
                2 => 0,
                _ => 1_793_491_200_000,
            };
            let token = tokens.next(now, &mut random);
            assert!(before < Some(token), "{before:?} {token}");
            assert_eq!(Token::parse(&token.to_string()), Some(token));
            assert!(token.claimed_ms() >= now);
            before = Some(token);
        }
    }

    #[test]
    fn only_a_canonical_uuidv7_is_a_token() {
        let token = Tokens::default().next(1_793_491_200_000, &mut fastrand::Rng::with_seed(1));
        let text = token.to_string();
        for other in [
            text.to_uppercase(),
            text.replace('-', ""),
            format!("{{{text}}}"),
            "01936f3e-0000-4000-8000-000000000000".to_owned(),
            String::new(),
        ] {
            assert_eq!(Token::parse(&other), None, "{other}");
        }
        assert_eq!(token.claimed_ms(), 1_793_491_200_000);
    }
}
