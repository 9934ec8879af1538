//! Asking the Kubernetes API server, without changing anything: what the service account may do, what the Secrets are.

use std::sync::Arc;

use serde::Serialize;

use super::RUN;
use crate::{
    cli::role::rules,
    config::{ClusterAccess, Config, KubernetesSecret, Output, OutputKind},
    kubernetes::{access, client::Cluster, lease::LeaseObject, secret::SecretObject},
    metrics::Metrics,
    plan::{
        publish::permitted,
        role::{Role, Rule},
    },
};

/// What the API server said.
#[derive(Debug, Serialize)]
pub(super) struct InCluster {
    namespace: String,
    secrets: Vec<ObjectReport>,
    /// What would allow what is denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    allow: Option<Role>,
}

#[derive(Debug, Serialize)]
struct ObjectReport {
    output: String,
    secret: String,
    /// What it is, or why it could not be written.
    state: String,
    lease: String,
    /// Who writes it now.
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<String>,
}

/// Asks the API server; none where no output needs it. The problems are those with which `run` would fail.
pub(super) async fn in_cluster(config: &Config, access: &ClusterAccess) -> (Option<InCluster>, Vec<String>) {
    let rules = rules(config);
    if rules.is_empty() {
        return (None, Vec::new());
    }
    let metrics = Arc::new(Metrics::new(std::iter::empty()));
    let cluster = match Cluster::connect(access, &config.aws.network, metrics).await {
        Ok(cluster) => cluster,
        Err(error) => return (None, vec![format!("{RUN}: {error}")]),
    };
    let mut problems = Vec::new();
    let mut allow = Vec::new();
    for rule in &rules {
        match access::missing(&cluster, rule).await {
            Ok(missing) if missing.is_empty() => {}
            Ok(missing) => {
                for (name, verb) in &missing {
                    problems.push(format!(
                        "{RUN}: the service account may not {verb} {} {name} in namespace {}",
                        rule.resource(),
                        cluster.namespace()
                    ));
                }
                allow.push(rule.clone());
            }
            // The next question would get the same answer.
            Err(trouble) => {
                problems.push(format!("{RUN}: {trouble}"));
                break;
            }
        }
    }
    let mut secrets = Vec::new();
    let may = problems.is_empty();
    for output in config.outputs.iter().filter(|_| may) {
        let Output { name, kind: OutputKind::KubernetesSecret(secret), .. } = output else { continue };
        secrets.push(look(&cluster, name.as_str(), secret, &mut problems).await);
    }
    let allow: Option<Vec<Rule>> = (!allow.is_empty()).then_some(allow);
    let namespace = cluster.namespace().to_owned();
    (Some(InCluster { namespace, secrets, allow: allow.map(Role::new) }), problems)
}

async fn look(cluster: &Cluster, output: &str, secret: &KubernetesSecret, problems: &mut Vec<String>) -> ObjectReport {
    let KubernetesSecret { name, lease, settings } = secret;
    let live = SecretObject::new(cluster.clone(), name.clone()).look().await;
    let state = match live {
        Ok(live) => match permitted(settings, live.as_ref()) {
            Err(refusal) => Err(refusal.to_string()),
            Ok(()) if live.as_ref().is_none() => Ok("to be made".to_owned()),
            Ok(()) if live.as_ref().is_some_and(|live| !live.is_ours()) => Ok("to be adopted".to_owned()),
            Ok(()) => Ok("keytide's".to_owned()),
        },
        Err(trouble) => Err(trouble.to_string()),
    };
    let state = state.unwrap_or_else(|why| {
        problems.push(format!("{RUN}: output {output}: secrets/{name}: {why}"));
        format!("NOT WRITTEN: {why}")
    });
    let record = LeaseObject::new(cluster.clone(), lease.clone()).look().await.ok().flatten();
    ObjectReport {
        output: output.to_owned(),
        secret: name.to_string(),
        state,
        lease: lease.to_string(),
        holder: record.and_then(|record| record.holder),
    }
}

// === impl InCluster ===

impl InCluster {
    /// For people: a name and a text a line.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let Self { namespace, secrets, allow } = self;
        let mut lines = vec![("namespace", namespace.clone())];
        for ObjectReport { output: _, secret, state, lease, holder } in secrets {
            lines.push(("object", format!("secrets/{secret}: {state}")));
            let holder = holder.as_deref().unwrap_or("nobody");
            lines.push(("", format!("Lease {lease}, held by {holder}")));
        }
        if let Some(role) = allow {
            lines.push(("allow", serde_json::to_string(role.rules()).unwrap_or_default()));
        }
        lines
    }
}
