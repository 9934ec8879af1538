//! The restart of a workload: an annotation of its pod template.

use std::{fmt, time::Duration};

use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    client::{Cluster, MANAGER},
    outcome::{Subject, Trouble, Verb},
};
use crate::domain::kubernetes::ObjectName;

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

/// One workload.
#[derive(Debug, Clone)]
pub struct Workload {
    cluster: Cluster,
    kind: WorkloadKind,
    name: ObjectName,
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

    fn label(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
        }
    }
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

// === impl Workload ===

impl Workload {
    /// The workload of this name in keytide's namespace.
    #[must_use]
    pub fn new(cluster: Cluster, kind: WorkloadKind, name: ObjectName) -> Self {
        Self { cluster, kind, name }
    }

    fn api(&self) -> Api<DynamicObject> {
        let resource = ApiResource {
            group: "apps".to_owned(),
            version: "v1".to_owned(),
            api_version: "apps/v1".to_owned(),
            kind: self.kind.label().to_owned(),
            plural: self.kind.resource().to_owned(),
        };
        Api::namespaced_with(self.cluster.client(), self.cluster.namespace(), &resource)
    }

    fn subject(&self) -> Subject {
        Subject { group: "apps", resource: self.kind.resource(), name: self.name.to_string() }
    }

    /// The value of an annotation of its pod template; none: it has none.
    ///
    /// # Errors
    /// If the API server does not say.
    pub async fn annotation(&self, key: &str, limit: Duration) -> Result<Option<String>, Trouble> {
        let api = self.api();
        let object = self.cluster.call(Verb::Get, &self.subject(), limit, api.get(self.name.as_str())).await?;
        let annotations = object.data.pointer("/spec/template/metadata/annotations");
        Ok(annotations.and_then(|annotations| annotations.get(key)).and_then(Value::as_str).map(str::to_owned))
    }

    /// Sets an annotation of its pod template, by which its pods are replaced one after another. By a merge patch: an apply
    /// would make a workload that does not exist.
    ///
    /// # Errors
    /// If it was not set.
    pub async fn annotate(&self, key: &str, value: &str, limit: Duration) -> Result<(), Trouble> {
        let api = self.api();
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({"spec": {"template": {"metadata": {"annotations": {key: value}}}}}));
        let call = api.patch(self.name.as_str(), &params, &patch);
        self.cluster.call(Verb::Patch, &self.subject(), limit, call).await.map(drop)
    }
}
