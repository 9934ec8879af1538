//! The restart of a workload: an annotation of its pod template.

use std::{collections::BTreeMap, fmt, time::Duration};

use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    client::{Cluster, MANAGER},
    outcome::{Subject, Trouble, Verb},
};
use crate::domain::kubernetes::{ObjectName, WorkloadKind};

/// One workload.
#[derive(Debug, Clone)]
pub struct Workload {
    cluster: Cluster,
    kind: WorkloadKind,
    name: ObjectName,
}

/// The annotation of a pod template that says for which content of a Secret its pods were started. Its name has 63
/// characters at most (Kubernetes, "Annotations", "Syntax and character set").
#[must_use]
pub fn restart_annotation(secret: &ObjectName) -> String {
    let name: String = secret.as_str().chars().take(63).collect();
    format!("restart.keytide.dev/{}", name.trim_end_matches(['.', '-']))
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
            kind: self.kind.to_string(),
            plural: self.kind.resource().to_owned(),
        };
        Api::namespaced_with(self.cluster.client(), self.cluster.namespace(), &resource)
    }

    fn subject(&self) -> Subject {
        Subject { group: "apps", resource: self.kind.resource(), name: self.name.to_string() }
    }

    /// The annotations of its pod template.
    ///
    /// # Errors
    /// If the API server does not say.
    pub async fn annotations(&self, limit: Duration) -> Result<BTreeMap<String, String>, Trouble> {
        let api = self.api();
        let object = self.cluster.call(Verb::Get, &self.subject(), limit, api.get(self.name.as_str())).await?;
        let annotations = object.data.pointer("/spec/template/metadata/annotations").and_then(Value::as_object);
        let text = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        Ok(annotations.into_iter().flatten().filter_map(text).collect())
    }

    /// Sets annotations of its pod template, by which its pods are replaced one after another. By a merge patch: an apply
    /// would make a workload that does not exist.
    ///
    /// # Errors
    /// If they were not set.
    pub async fn annotate(&self, annotations: &BTreeMap<String, String>, limit: Duration) -> Result<(), Trouble> {
        let api = self.api();
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({"spec": {"template": {"metadata": {"annotations": annotations}}}}));
        let call = api.patch(self.name.as_str(), &params, &patch);
        self.cluster.call(Verb::Patch, &self.subject(), limit, call).await.map(drop)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}
