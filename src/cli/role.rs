//! `keytide policy --kubernetes`: the smallest Role for a configuration.

use std::collections::{BTreeMap, BTreeSet};

use super::{Exit, Form, complain, print};
use crate::{
    config::{self, Config, Environment, KubernetesSecret, OutputKind, ReloadKind, Sources},
    kubernetes::events::EventReason,
    plan::role::{Role, Rule},
};

/// Prints it, ready for `kubectl apply --namespace NAMESPACE --filename -`.
pub(super) fn role(sources: &Sources, form: Form) -> Exit {
    let config = match config::load(sources, &Environment::of_process()) {
        Ok(config) => config,
        Err(errors) => {
            complain(&format!("the configuration is not valid:\n{errors}"));
            return Exit::Usage;
        }
    };
    let rules = rules(&config);
    if rules.is_empty() {
        complain("this configuration needs no Role: it has no output kubernetes_secret");
        return Exit::Done;
    }
    let role = Role::new(rules);
    match form {
        Form::Text => print(&role.to_string()),
        Form::Json => print(&format!("{}\n", serde_json::to_string_pretty(&role).unwrap_or_default())),
    }
}

/// What the outputs of a configuration need of Kubernetes.
pub(super) fn rules(config: &Config) -> Vec<Rule> {
    let (mut made, mut filled, mut leases, mut events) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for output in &config.outputs {
        let OutputKind::KubernetesSecret(KubernetesSecret { name, lease, settings }) = &output.kind else { continue };
        if settings.create { &mut made } else { &mut filled }.push(name.to_string());
        leases.push(lease.to_string());
        events.extend(EventReason::ALL.map(|reason| reason.object(name)));
    }
    let mut workloads: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
    for action in &config.reload {
        if let ReloadKind::Rollout { workload, name, .. } = &action.kind {
            workloads.entry(workload.resource()).or_default().insert(name.to_string());
        }
    }
    let workload = |(resource, names): (_, BTreeSet<String>)| Rule::workloads(resource, names.into_iter().collect());
    let rules = [Rule::secrets(made, true), Rule::secrets(filled, false), Rule::leases(leases), Rule::events(events)];
    rules.into_iter().chain(workloads.into_iter().map(workload)).filter(|rule| !rule.names().is_empty()).collect()
}
