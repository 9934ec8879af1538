//! Events: what `kubectl describe secret` shows of keytide's work. Names and reasons, never a value.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use k8s_openapi::{api::core::v1::Event, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    client::{CALL, Cluster, MANAGER},
    outcome::{Subject, Trouble, Verb},
};
use crate::domain::kubernetes::ObjectName;

/// The same again is told after so long.
const AGAIN: Duration = Duration::from_mins(10);

/// What is told of a Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventReason {
    /// It holds what it shall, for the first time since keytide started.
    Synced,
    /// Its keys changed.
    Updated,
    /// Somebody changed it, and it was put right.
    Repaired,
    /// Somebody changes it again and again.
    Contested,
    /// Values could not be read: it keeps the last good ones.
    Stale,
    /// It cannot be written.
    Refused,
    /// It is as it shall be again.
    Recovered,
}

/// The Events of one Secret. Each reason is one object that counts, so that nothing floods, and RBAC can name them.
#[derive(Debug)]
pub struct Journal {
    cluster: Cluster,
    secret: ObjectName,
    instance: String,
    told: BTreeMap<EventReason, Told>,
}

#[derive(Debug)]
struct Told {
    message: String,
    at: Instant,
    first: SystemTime,
    count: i32,
}

// === impl EventReason ===

impl EventReason {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Synced, Self::Updated, Self::Repaired, Self::Contested, Self::Stale, Self::Refused, Self::Recovered];

    /// The word of the Event.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Synced => "Synced",
            Self::Updated => "Updated",
            Self::Repaired => "Repaired",
            Self::Contested => "Contested",
            Self::Stale => "Stale",
            Self::Refused => "Refused",
            Self::Recovered => "Recovered",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Synced | Self::Updated | Self::Recovered => "Normal",
            Self::Repaired | Self::Contested | Self::Stale | Self::Refused => "Warning",
        }
    }

    /// The name of the Event's object.
    #[must_use]
    pub fn object(self, secret: &ObjectName) -> String {
        let start: String = secret.as_str().chars().take(230).collect();
        format!("{}.keytide-{}", start.trim_end_matches(['.', '-']), self.label().to_ascii_lowercase())
    }
}

// === impl Journal ===

impl Journal {
    /// The Events of a Secret; `instance` says which keytide tells them.
    #[must_use]
    pub fn new(cluster: Cluster, secret: ObjectName, instance: String) -> Self {
        Self { cluster, secret, instance, told: BTreeMap::new() }
    }

    /// Tells it, unless the same was told a short while ago.
    ///
    /// # Errors
    /// If the API server did not take it.
    pub async fn tell(
        &mut self,
        reason: EventReason,
        message: &str,
        uid: &str,
        now: SystemTime,
    ) -> Result<(), Trouble> {
        let before = self.told.get(&reason);
        if before.is_some_and(|told| told.message == message && told.at.elapsed() < AGAIN) {
            return Ok(());
        }
        let count = before.map_or(1, |told| told.count.saturating_add(1));
        let first = before.map_or(now, |told| told.first);
        let time = |at: SystemTime| Time(Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH));
        let name = reason.object(&self.secret);
        let namespace = self.cluster.namespace();
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {"apiVersion": "v1", "kind": "Secret", "name": self.secret.as_str(), "namespace": namespace},
            "reason": reason.label(),
            "message": message,
            "type": reason.kind(),
            "count": count,
            "firstTimestamp": time(first),
            "lastTimestamp": time(now),
            "source": {"component": MANAGER, "host": self.instance},
            "reportingComponent": MANAGER,
            "reportingInstance": self.instance,
        });
        if let Some(involved) = object.get_mut("involvedObject").and_then(serde_json::Value::as_object_mut)
            && !uid.is_empty()
        {
            involved.insert("uid".to_owned(), uid.into());
        }
        let api: Api<Event> = Api::namespaced(self.cluster.client(), namespace);
        let subject = Subject { group: "", resource: "events", name: name.clone() };
        let params = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(object);
        let call = api.patch(&name, &params, &patch);
        let told = Told { message: message.to_owned(), at: Instant::now(), first, count };
        self.cluster.call(Verb::Patch, &subject, CALL, call).await?;
        self.told.insert(reason, told);
        Ok(())
    }
}
