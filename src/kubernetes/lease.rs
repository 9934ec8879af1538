//! The calls behind `plan::lease`.

use std::time::{Duration, SystemTime};

use k8s_openapi::{
    api::coordination::v1::{Lease as Object, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    client::{Cluster, MANAGER},
    outcome::{Subject, Trouble, TroubleKind, Verb},
};
use crate::{
    domain::kubernetes::ObjectName,
    plan::lease::{DURATION, Record},
};

/// Time limit of one call: a holder has to hear soon whether it still is one.
const LIMIT: Duration = Duration::from_secs(3);

/// One Lease.
#[derive(Debug)]
pub struct LeaseObject {
    cluster: Cluster,
    name: ObjectName,
}

// === impl LeaseObject ===

impl LeaseObject {
    /// The Lease of this name in keytide's namespace.
    #[must_use]
    pub fn new(cluster: Cluster, name: ObjectName) -> Self {
        Self { cluster, name }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    fn api(&self) -> Api<Object> {
        Api::namespaced(self.cluster.client(), self.cluster.namespace())
    }

    fn subject(&self) -> Subject {
        Subject { group: "coordination.k8s.io", resource: "leases", name: self.name.to_string() }
    }

    /// What the API server has; none: no such Lease.
    ///
    /// # Errors
    /// If it does not say.
    pub async fn look(&self) -> Result<Option<Record>, Trouble> {
        Ok(self.cluster.look(&self.api(), &self.subject(), LIMIT).await?.map(record))
    }

    /// Makes it, for whoever this is. By an apply, since RBAC can name the object of one; with a field manager that nobody
    /// else has, so that of two who make it at one time one gets a conflict.
    ///
    /// # Errors
    /// If it was not made; [`TroubleKind::Outrun`]: somebody else was faster.
    pub async fn create(&self, identity: &str, now: SystemTime) -> Result<Record, Trouble> {
        let params = PatchParams { field_manager: Some(identity.to_owned()), ..PatchParams::default() };
        let object = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name.as_str()},
            "spec": spec(identity, now, Some(0)),
        });
        let made = self.patch(&params, &Patch::Apply(object)).await;
        made.map_err(|trouble| match trouble.kind {
            TroubleKind::Owned(_) => Trouble { kind: TroubleKind::Outrun, ..trouble },
            _ => trouble,
        })
    }

    /// Says that its holder is still there.
    ///
    /// # Errors
    /// If that could not be said; [`TroubleKind::Outrun`]: the record moved.
    pub async fn renew(&self, record: &Record, now: SystemTime) -> Result<Record, Trouble> {
        self.merge(record, json!({"renewTime": time(now)})).await
    }

    /// Takes it over.
    ///
    /// # Errors
    /// As [`LeaseObject::renew`].
    pub async fn take(&self, record: &Record, identity: &str, now: SystemTime) -> Result<Record, Trouble> {
        let others = record.holder.as_deref() != Some(identity);
        let transitions = record.transitions.saturating_add(i32::from(others));
        self.merge(record, spec(identity, now, Some(transitions))).await
    }

    /// Gives it back, so that whoever waits need not wait.
    ///
    /// # Errors
    /// As [`LeaseObject::renew`].
    pub async fn release(&self, record: &Record) -> Result<(), Trouble> {
        self.merge(record, json!({"holderIdentity": null})).await.map(drop)
    }

    async fn merge(&self, record: &Record, spec: Value) -> Result<Record, Trouble> {
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let patch = json!({"metadata": {"resourceVersion": record.resource_version}, "spec": spec});
        self.patch(&params, &Patch::Merge(patch)).await
    }

    async fn patch<P: Serialize + std::fmt::Debug>(
        &self,
        params: &PatchParams,
        patch: &Patch<P>,
    ) -> Result<Record, Trouble> {
        let api = self.api();
        let call = api.patch(self.name.as_str(), params, patch);
        self.cluster.call(Verb::Patch, &self.subject(), LIMIT, call).await.map(record)
    }
}

fn spec(identity: &str, now: SystemTime, transitions: Option<i32>) -> Value {
    let time = time(now);
    json!({
        "holderIdentity": identity,
        "leaseDurationSeconds": DURATION.as_secs(),
        "acquireTime": time,
        "renewTime": time,
        "leaseTransitions": transitions,
    })
}

/// For people: nobody compares it.
fn time(now: SystemTime) -> MicroTime {
    MicroTime(Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH))
}

fn record(object: Object) -> Record {
    let Object { metadata, spec } = object;
    let LeaseSpec { holder_identity, lease_duration_seconds, lease_transitions, .. } = spec.unwrap_or_default();
    let seconds = lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    Record {
        holder: holder_identity.filter(|holder| !holder.is_empty()),
        duration: seconds.map_or(DURATION, |seconds| Duration::from_secs(seconds.min(3600))),
        transitions: lease_transitions.unwrap_or_default(),
        resource_version: metadata.resource_version.unwrap_or_default(),
    }
}
