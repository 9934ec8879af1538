//! The chart's mode `sidecar`, installed, with what Helm and the runbooks then say to type.

use serde_json::json;

use crate::{
    aws::Aws,
    helm::{self, DROPPED, command_in, helm, typed},
    injection::rolled_out,
    namespace::Namespace,
    sidecar::{Sidecar, application},
    wait::until,
};

#[test]
fn the_command_that_an_upgrade_prints_brings_an_application_its_keys_and_an_uninstall_leaves_nothing_behind() {
    let namespace = Namespace::new("patch");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    let spec = application("echo \"starts with $API_KEY\"; trap 'exit 0' TERM; while :; do sleep 0.2; done");
    namespace.apply(&[json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app"},
        "spec": {"selector": {"matchLabels": {"app": "app"}},
            "template": {"metadata": {"labels": {"app": "app"}}, "spec": spec}}})]);
    let without = rolled_out(&namespace, "app")["metadata"]["name"].as_str().unwrap().to_owned();
    namespace.until_log(&without, "app", "starts with \n");
    let before = objects(&namespace);

    let mut sidecar = Sidecar::new(&aws);
    sidecar.values["sidecar"]["env"] = json!(["API_KEY"]);
    let values = helm::values("patch", &sidecar.values("sidecar"));
    let [older, chart] = [Some("0.0.1"), None].map(|version| helm::package("patch", version));
    helm(&["install", "app", &older, "--namespace", namespace.name(), "--values", &values]);
    assert!(namespace.get(DROPPED).is_some());
    let notes = helm(&["upgrade", "app", &chart, "--namespace", namespace.name(), "--values", &values]);
    assert!(namespace.get(DROPPED).is_none());
    let patch = command_in(&notes, "kubectl --namespace patch patch deployment APP ");
    typed(&patch.replace("deployment APP ", "deployment app "));
    let with = rolled_out(&namespace, "app")["metadata"]["name"].as_str().unwrap().to_owned();
    assert_ne!(with, without);
    namespace.until_log(&with, "app", "starts with one\n");
    assert_eq!(namespace.exec(&with, "app", &["cat", "/run/keytide/env/keys.env"]), "API_KEY='one'\n");

    let said = typed(command_in(&notes, "helm --namespace patch test app "));
    assert!(said.contains("Succeeded"), "{said}");

    let page = include_str!("../../docs/runbooks/KeytideStale.md");
    let command = page.lines().find(|line| line.starts_with("kubectl exec ") && line.ends_with(" status")).unwrap();
    let table = typed(&format!("NAMESPACE=patch POD={with}; {command}"));
    let row = |begin: &str| -> Vec<&str> {
        let found = table.lines().find(|line| line.starts_with(begin));
        found.unwrap_or_else(|| panic!("{begin} in {table}")).split_whitespace().collect()
    };
    assert_eq!(row("keytide ")[..3], ["keytide", "0.1.0,", "ready,"], "{table}");
    assert_eq!(row("KEY "), ["KEY", "STATE", "SECRET", "VERSION", "AGE"]);
    assert_eq!(row("API_KEY ")[..3], ["API_KEY", "fresh", "app"], "{table}");

    helm(&["uninstall", "app", "--namespace", namespace.name(), "--wait"]);
    until("all of the release to be gone", || objects(&namespace) == before);
    for container in ["app", "keytide"] {
        assert_eq!(namespace.container(&with, container)["restartCount"], 0, "a pod keeps what it has");
    }
    assert_eq!(namespace.exec(&with, "app", &["cat", "/run/keytide/env/keys.env"]), "API_KEY='one'\n");
}

/// The names of all objects of a namespace but those that come and go with an application's pods.
fn objects(namespace: &Namespace) -> Vec<String> {
    let kinds = namespace.kubectl(&["api-resources", "--verbs", "list", "--output", "name", "--namespaced"]);
    let passing = ["pods", "replicasets.apps", "events", "events.events.k8s.io"];
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !passing.contains(kind)).collect();
    let names = namespace.kubectl(&["get", &kinds.join(","), "--output", "name"]);
    let mut names: Vec<String> = names.lines().map(str::to_owned).collect();
    names.sort();
    names
}
