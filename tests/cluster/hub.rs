//! A hub: keytide as a Deployment of its own, which writes a Kubernetes Secret and restarts who reads it.

use std::process::Command;

use serde_json::{Value, json};

use crate::{
    aws::Aws,
    cluster::{run, success},
    helm::{self, DROPPED, helm},
    namespace::Namespace,
    sidecar::{Sidecar, application, pod},
    wait::until,
};

/// The service account `keytide`, with the Role that keytide prints for this configuration, and nothing else.
pub(crate) fn grant(namespace: &Namespace, account: &str, config: &Value) {
    let file = namespace.cluster().directory().join(format!("{}.yaml", namespace.name()));
    std::fs::write(&file, config.to_string()).unwrap();
    let file = file.display().to_string();
    let arguments = ["policy", "--kubernetes", "--config", &file, "--output", "json"];
    let printed = success(&arguments, run(Command::new(env!("CARGO_BIN_EXE_keytide")).args(arguments), ""));
    let role: Value = serde_json::from_str(&printed).unwrap();
    let name = role["metadata"]["name"].clone();
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace.name()}]});
    namespace.apply(&[
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}}),
        role,
        binding,
    ]);
}

fn deployment(name: &str, spec: &Value) -> Value {
    let labels = json!({"app": name});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec}}})
}

#[test]
fn a_rotation_arrives_in_the_secret_and_as_a_rollout_of_the_application_before_and_after_an_upgrade() {
    let namespace = Namespace::new("hub");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    // It waits for the Secret that it names.
    let mut spec = application("echo reads $API_KEY; trap 'exit 0' TERM; while :; do sleep 0.2; done");
    spec["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "keys"}}]);
    namespace.apply(&[deployment("app", &spec)]);
    let hub = Sidecar::new(&aws).config(json!({
        "primary_secret": {"name": "app"},
        "refresh": {"interval": "1s", "jitter": 0},
        "outputs": [{"kubernetes_secret": {"name": "keys"}}],
        "reload": [{"rollout": {"deployment": "app", "splay": "0s", "min_interval": "1s"}}],
    }));
    grant(&namespace, "keytide", &hub.file());
    let mut values = hub.values("hub");
    values["serviceAccount"] = json!({"create": false, "name": "keytide"});
    values["rbac"] = json!({"create": false});
    let values = helm::values("hub-upgrade", &values);
    let before = helm::package("hub-upgrade", Some("0.0.1"));
    helm(&["install", "hub", &before, "--namespace", namespace.name(), "--values", &values]);
    namespace.kubectl(&["rollout", "status", "deployment/hub-keytide", "--timeout", "120s"]);
    until("the Secret", || namespace.get("secret/keys").is_some());
    let mut mounts = application("sleep 600");
    mounts["volumes"] = json!([{"name": "keys", "secret": {"secretName": "keys"}}]);
    mounts["containers"][0]["volumeMounts"] = json!([{"name": "keys", "mountPath": "/keys"}]);
    namespace.apply(&[pod("mounts", &mounts)]);
    namespace.until_ready("mounts");
    namespace.kubectl(&["rollout", "status", "deployment/app", "--timeout", "120s"]);
    let reads = || namespace.kubectl(&["logs", "deployment/app"]);
    until("the key", || reads() == "reads one\n");
    aws.put("app", &json!({"API_KEY": "rotated"}));
    let mounted = || namespace.exec("mounts", "app", &["cat", "/keys/API_KEY"]);
    until("the rotated key in the volume of the Secret", || mounted() == "rotated");
    let one_reads = |text: &str| {
        namespace.pods("app").iter().filter_map(|pod| pod["metadata"]["name"].as_str()).any(|pod| {
            let arguments = ["--namespace", namespace.name(), "logs", pod];
            namespace.cluster().try_kubectl(&arguments, "").stdout == text.as_bytes()
        })
    };
    until("a pod with the rotated key", || one_reads("reads rotated\n"));
    namespace.kubectl(&["rollout", "status", "deployment/app", "--timeout", "120s"]);
    let revisions = || {
        let names = namespace.kubectl(&["get", "replicasets", "--selector", "app=app", "--output", "name"]);
        names.lines().count()
    };
    assert_eq!(revisions(), 2, "one restart for one change");
    namespace.assert_within_limits();

    assert!(namespace.get(DROPPED).is_some());
    let chart = helm::package("hub-upgrade", None);
    helm(&["upgrade", "hub", &chart, "--namespace", namespace.name(), "--values", &values]);
    namespace.kubectl(&["rollout", "status", "deployment/hub-keytide", "--timeout", "120s"]);
    assert!(namespace.get(DROPPED).is_none());
    aws.put("app", &json!({"API_KEY": "again"}));
    until("a pod with the key from after the upgrade", || one_reads("reads again\n"));
    assert_eq!(revisions(), 3, "an upgrade restarts no application");
}
