//! What a test sees of a secret.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::secrets::{Secret, Version};
use crate::secrets_manager::shown;

/// A secret as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretView {
    /// Its description, unless that is empty.
    pub description: Option<String>,
    /// Its KMS key; none is AWS's own.
    pub kms_key_id: Option<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// The regions that it is replicated to, with those that are still being removed.
    pub replicas: BTreeSet<String>,
    /// Its versions, in the order in which they were made, also those without a label.
    pub versions: Vec<VersionView>,
    /// Whether its deletion is scheduled.
    pub scheduled_for_deletion: bool,
}

/// One version of a secret. Its `Debug` does not show the value.
#[derive(Clone, PartialEq, Eq)]
pub struct VersionView {
    /// The version's id: the token of the call that made it.
    pub id: String,
    /// The value; a binary one as base64.
    pub value: String,
    /// Its labels.
    pub stages: BTreeSet<String>,
}

// === impl SecretView ===

impl SecretView {
    pub(crate) fn of(secret: &Secret) -> Self {
        let version = |version: &Version| VersionView {
            id: version.id.clone(),
            value: shown(&version.value),
            stages: version.stages.clone(),
        };
        Self {
            description: secret.description.clone(),
            kms_key_id: secret.kms_key_id.clone(),
            tags: secret.tags.clone(),
            replicas: secret.replicas.keys().cloned().collect(),
            versions: secret.versions.iter().map(version).collect(),
            scheduled_for_deletion: secret.deletion().is_some(),
        }
    }

    /// The version with this label, if there is one.
    #[must_use]
    pub fn staged(&self, stage: &str) -> Option<&VersionView> {
        self.versions.iter().find(|version| version.stages.contains(stage))
    }
}

// === impl VersionView ===

impl fmt::Debug for VersionView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, value, stages } = self;
        let value = format_args!("<{} bytes>", value.len());
        f.debug_struct("VersionView").field("id", id).field("value", &value).field("stages", stages).finish()
    }
}
