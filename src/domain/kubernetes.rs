//! A Kubernetes Secret: its name and type, what it shall hold, and what the API server says that it holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{
    names::{FileName, NameError},
    value::SecretValue,
};

/// The name of an object in Kubernetes: a DNS subdomain of at most 253 characters (RFC 1123).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

/// The `type` of a Secret. Immutable in the cluster. Default `Opaque`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretType(String);

/// What the configuration says of one Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Its type.
    pub kind: SecretType,
    /// Labels that it shall have.
    pub labels: BTreeMap<String, String>,
    /// Annotations that it shall have.
    pub annotations: BTreeMap<String, String>,
    /// True: it is made where there is none. Default true.
    pub create: bool,
    /// True: one that somebody else made is filled. Default false.
    pub adopt: bool,
    /// True: fields that somebody else owns are taken. Default false.
    pub force: bool,
}

/// What a Secret shall hold. Its `Debug` shows no value.
#[derive(Debug)]
pub struct Manifest {
    /// Its type.
    pub kind: SecretType,
    /// Its keys.
    pub data: BTreeMap<String, SecretValue>,
    /// Its labels, those that are keytide's.
    pub labels: BTreeMap<String, String>,
    /// Its annotations, those that are keytide's.
    pub annotations: BTreeMap<String, String>,
}

/// A Secret as the API server has it. Its `Debug` shows no value.
#[derive(Debug, Default)]
pub struct Live {
    /// The identity of this object: another one of the same name has another.
    pub uid: String,
    /// Which state of the object this is.
    pub resource_version: String,
    /// Its type.
    pub kind: String,
    /// True: nobody can change its keys any more.
    pub immutable: bool,
    /// True: it is on its way out.
    pub deleting: bool,
    /// Its keys; none is a value that is not UTF-8.
    pub data: BTreeMap<String, Option<SecretValue>>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// The fields that keytide applied and nobody else took since.
    pub owned: BTreeSet<Field>,
    /// From which versions its values are, as its annotations say.
    pub origin: Option<Provenance>,
}

/// A field of a Secret that has an owner (Kubernetes, "Server-Side Apply").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// A key.
    Data(String),
    /// A label.
    Label(String),
    /// An annotation.
    Annotation(String),
    /// Another field, by its path.
    Other(String),
}

/// The kinds of workloads that can be restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkloadKind {
    /// A `Deployment`.
    Deployment,
    /// A `StatefulSet`.
    StatefulSet,
    /// A `DaemonSet`.
    DaemonSet,
}

/// The versions in AWS that values came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The version of each secret, by its name or ARN, with `@` and the staging label where one is configured.
    pub versions: BTreeMap<String, String>,
    /// When AWS made the newest of them: milliseconds since the Unix epoch.
    pub newest_ms: Option<i64>,
}

// === impl ObjectName ===

impl ObjectName {
    /// Parses the name.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        let of_label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let label = |label: &str| {
            !label.is_empty() && label.chars().all(of_label) && !label.starts_with('-') && !label.ends_with('-')
        };
        let legal = (1..=253).contains(&text.len()) && text.split('.').all(label);
        if legal { Ok(Self(text)) } else { Err(NameError::expecting(Self::EXPECTED)) }
    }

    /// What a name must be.
    pub const EXPECTED: &str = "expected the name of a Kubernetes object: 1 to 253 of a-z 0-9 - ., each part between dots beginning and ending \
         with a letter or digit";

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl SecretType ===

impl SecretType {
    /// A certificate with its key.
    pub const TLS: &str = "kubernetes.io/tls";
    /// The credentials of registries.
    pub const DOCKER_CONFIG: &str = "kubernetes.io/dockerconfigjson";
    /// The same in Docker's older form.
    pub const DOCKER_CFG: &str = "kubernetes.io/dockercfg";
    /// A user and a password.
    pub const BASIC_AUTH: &str = "kubernetes.io/basic-auth";
    /// A key of SSH.
    pub const SSH_AUTH: &str = "kubernetes.io/ssh-auth";
    /// Made by Kubernetes itself, and by nobody else.
    const SERVICE_ACCOUNT_TOKEN: &str = "kubernetes.io/service-account-token";

    /// Parses a type: any text without blanks, but for that of service accounts, which Kubernetes itself fills.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let legal = (1..=253).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic());
        (legal && text != Self::SERVICE_ACCOUNT_TOKEN).then(|| Self(text.to_owned()))
    }

    /// The type as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks the name of a key: that of a file, or the one that this type has although it begins with a dot.
    ///
    /// # Errors
    /// If a Secret of this type cannot have it.
    pub fn check_key(&self, name: &str) -> Result<(), NameError> {
        let dotted = matches!(
            (self.as_str(), name),
            (Self::DOCKER_CONFIG, ".dockerconfigjson") | (Self::DOCKER_CFG, ".dockercfg")
        );
        if dotted { Ok(()) } else { FileName::parse(name).map(drop) }
    }
}

impl Default for SecretType {
    fn default() -> Self {
        Self("Opaque".to_owned())
    }
}

impl fmt::Display for SecretType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl WorkloadKind ===

impl WorkloadKind {
    /// The resource, as RBAC calls it.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Self::Deployment => "deployments",
            Self::StatefulSet => "statefulsets",
            Self::DaemonSet => "daemonsets",
        }
    }
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
        })
    }
}

// === impl Manifest ===

impl Manifest {
    /// The fields that this owns.
    #[must_use]
    pub fn fields(&self) -> BTreeSet<Field> {
        let data = self.data.keys().cloned().map(Field::Data);
        let labels = self.labels.keys().cloned().map(Field::Label);
        let annotations = self.annotations.keys().cloned().map(Field::Annotation);
        data.chain(labels).chain(annotations).collect()
    }

    /// True if the Secret holds all of it, and nothing that keytide wrote besides.
    #[must_use]
    pub fn is_in(&self, live: &Live) -> bool {
        let labels = self.labels.iter().all(|(name, value)| live.labels.get(name) == Some(value));
        let annotations = self.annotations.iter().all(|(name, value)| live.annotations.get(name) == Some(value));
        labels
            && annotations
            && self.kind.as_str() == live.kind
            && self.has_data_of(live)
            && live.owned.is_subset(&self.fields())
    }

    /// True if the Secret's keys are these, as far as they are keytide's.
    #[must_use]
    pub fn has_data_of(&self, live: &Live) -> bool {
        let value = |name: &String| live.data.get(name).and_then(Option::as_ref);
        let left = live.owned.iter().any(|field| matches!(field, Field::Data(name) if !self.data.contains_key(name)));
        !left && self.data.iter().all(|(name, wanted)| value(name) == Some(wanted))
    }

    /// True if both say the same.
    #[must_use]
    pub fn says(&self, other: &Self) -> bool {
        let Self { kind, data, labels, annotations } = self;
        *kind == other.kind && *data == other.data && *labels == other.labels && *annotations == other.annotations
    }
}

// === impl Live ===

impl Live {
    /// True if keytide wrote it, be it another process of it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.origin.is_some() || !self.owned.is_empty()
    }

    /// The value of a key that is keytide's.
    #[must_use]
    pub fn own_value(&self, name: &str) -> Option<&SecretValue> {
        let ours = self.owned.contains(&Field::Data(name.to_owned()));
        self.data.get(name).and_then(Option::as_ref).filter(|_| ours)
    }
}

// === impl Field ===

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data(name) => write!(f, "data.{name}"),
            Self::Label(name) => write!(f, "metadata.labels.{name}"),
            Self::Annotation(name) => write!(f, "metadata.annotations.{name}"),
            Self::Other(path) => f.write_str(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_subdomains() {
        for name in ["a", "app-keys", "app.keys", "0", &"a".repeat(253)] {
            assert!(ObjectName::parse(name).is_ok(), "{name}");
        }
        for name in ["", "App", "a_b", "-a", "a-", "a..b", ".a", "a/b", &"a".repeat(254)] {
            assert!(ObjectName::parse(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_secret_with_a_field_more_that_is_ours_is_not_what_it_shall_be() {
        let value = || SecretValue::new("v".to_owned());
        let manifest = Manifest {
            kind: SecretType::default(),
            data: BTreeMap::from([("A".to_owned(), value())]),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        };
        let mut live = Live {
            kind: "Opaque".to_owned(),
            data: BTreeMap::from([("A".to_owned(), Some(value())), ("THEIRS".to_owned(), None)]),
            owned: BTreeSet::from([Field::Data("A".to_owned())]),
            ..Live::default()
        };
        assert!(manifest.is_in(&live));
        live.data.insert("OLD".to_owned(), Some(value()));
        live.owned.insert(Field::Data("OLD".to_owned()));
        assert!(!manifest.is_in(&live));
    }
}
