//! The smallest Role (`rbac.authorization.k8s.io/v1`) for a configuration: each object by its name, nothing cluster-wide.

use std::fmt;

use serde::Serialize;

/// The rules that the outputs and actions of one configuration need.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Role {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    rules: Vec<Rule>,
}

#[derive(Debug, Serialize)]
struct Metadata {
    name: &'static str,
}

/// What may be done to some objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    api_groups: Vec<&'static str>,
    resources: Vec<&'static str>,
    resource_names: Vec<String>,
    verbs: Vec<&'static str>,
}

// === impl Role ===

impl Role {
    /// A Role of these rules.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        Self {
            api_version: "rbac.authorization.k8s.io/v1",
            kind: "Role",
            metadata: Metadata { name: "keytide" },
            rules,
        }
    }

    /// The rules.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

impl fmt::Display for Role {
    /// As YAML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { api_version, kind, metadata: Metadata { name }, rules } = self;
        write!(f, "apiVersion: {api_version}\nkind: {kind}\nmetadata:\n  name: {name}\nrules:\n")?;
        for Rule { api_groups, resources, resource_names, verbs } in rules {
            writeln!(f, "  - apiGroups: {api_groups:?}\n    resources: {resources:?}")?;
            writeln!(f, "    resourceNames: {resource_names:?}\n    verbs: {verbs:?}")?;
        }
        Ok(())
    }
}

// === impl Rule ===

impl Rule {
    /// A Secret that is watched and written. `create` is needed only where there may be none; it can be given by name,
    /// since a create by server-side apply is authorized with the object's name.
    #[must_use]
    pub fn secrets(names: Vec<String>, create: bool) -> Self {
        let mut verbs = vec!["get", "list", "watch", "patch"];
        verbs.extend(create.then_some("create"));
        Self::new("", "secrets", names, verbs)
    }

    /// The Leases that decide who writes.
    #[must_use]
    pub fn leases(names: Vec<String>) -> Self {
        Self::new("coordination.k8s.io", "leases", names, vec!["get", "patch", "create"])
    }

    /// The Events that tell of it.
    #[must_use]
    pub fn events(names: Vec<String>) -> Self {
        Self::new("", "events", names, vec!["patch", "create"])
    }

    /// The workloads that are restarted.
    #[must_use]
    pub fn workloads(resource: &'static str, names: Vec<String>) -> Self {
        Self::new("apps", resource, names, vec!["get", "patch"])
    }

    fn new(group: &'static str, resource: &'static str, names: Vec<String>, verbs: Vec<&'static str>) -> Self {
        Self { api_groups: vec![group], resources: vec![resource], resource_names: names, verbs }
    }

    /// The API group; empty for the core.
    #[must_use]
    pub fn group(&self) -> &str {
        self.api_groups.first().copied().unwrap_or_default()
    }

    /// The resource.
    #[must_use]
    pub fn resource(&self) -> &str {
        self.resources.first().copied().unwrap_or_default()
    }

    /// The objects' names.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.resource_names
    }

    /// What may be done.
    #[must_use]
    pub fn verbs(&self) -> &[&'static str] {
        &self.verbs
    }
}
