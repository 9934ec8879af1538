//! A workload whose pods read the Secret when they start is restarted: once for one change, and for nothing else.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    gate::Fault,
    stage::{KubeStage, SECRET, hub},
    support::{Daemon, patiently, until},
};

const KEYS: &str = "keys: [{name: A, secret: prod/a}, {name: B, secret: prod/b}]\n";
/// Longer than what must not happen would take.
const MOMENT: Duration = Duration::from_millis(1500);

fn action(kind: &str) -> String {
    format!("{KEYS}reload:\n  - rollout: {{{kind}: app, debounce: 0s, splay: 0s, min_interval: 0s}}\n")
}

fn annotation() -> String {
    format!("restart.keytide.dev/{SECRET}")
}

fn path_of(stage: &KubeStage, resource: &str) -> String {
    stage.namespace.path("secrets/x").replace("/api/v1/", "/apis/apps/v1/").replace("secrets/x", resource)
}

/// Makes a workload without pods, which nobody looks after here.
fn make(stage: &KubeStage, resource: &str, kind: &str) {
    let mut workload = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "app"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "web"}]},
            },
        },
    });
    if kind == "StatefulSet" {
        workload["spec"]["serviceName"] = "web".into();
    }
    stage.api.create(&path_of(stage, resource), &workload);
}

/// The workload's annotation, and its generation, which moves with each restart.
fn state(stage: &KubeStage, resource: &str) -> (Value, Value) {
    let workload = stage.api.get(&path_of(stage, &format!("{resource}/app"))).unwrap();
    let annotations = &workload["spec"]["template"]["metadata"]["annotations"];
    (annotations[annotation()].clone(), workload["metadata"]["generation"].clone())
}

fn content(stage: &KubeStage) -> Value {
    stage.secret()["metadata"]["annotations"]["keytide.dev/content"].clone()
}

fn started(resource: &str, kind: &str) -> (KubeStage, Daemon) {
    let stage = KubeStage::with(&hub("", &action(&kind.to_lowercase())));
    stage.stage.aws.put("prod/a", "1");
    stage.stage.aws.put("prod/b", "b");
    make(&stage, resource, kind);
    let daemon = stage.run();
    stage.until_values(&daemon, &json!({"A": "1", "B": "b"}));
    daemon.until_ready();
    (stage, daemon)
}

fn change(stage: &KubeStage, daemon: &Daemon, value: &str) {
    stage.stage.aws.put("prod/a", value);
    daemon.hang_up();
    stage.until_values(daemon, &json!({"A": value, "B": "b"}));
}

#[track_caller]
fn until_restarted(stage: &KubeStage, daemon: &Daemon, resource: &str) {
    let so = patiently(|| state(stage, resource).0 == content(stage));
    assert!(so, "{:?} of {}:\n{}", state(stage, resource), content(stage), daemon.log());
}

#[test]
fn each_kind_of_workload_is_restarted_once_for_one_change() {
    for (resource, kind) in
        [("deployments", "Deployment"), ("statefulsets", "StatefulSet"), ("daemonsets", "DaemonSet")]
    {
        let (stage, daemon) = started(resource, kind);
        thread::sleep(MOMENT);
        assert_eq!(state(&stage, resource), (Value::Null, json!(1)), "the first write is no change");
        change(&stage, &daemon, "2");
        until_restarted(&stage, &daemon, resource);
        daemon.hang_up();
        thread::sleep(MOMENT);
        assert_eq!(state(&stage, resource).1, json!(2), "{kind}: one restart");
        assert_eq!(daemon.metric("keytide_reloads_total", &["rollout", "ok"]), 1.0);
    }
}

#[test]
fn a_restart_of_keytide_a_repair_and_a_version_without_another_value_restart_nothing() {
    let (stage, mut daemon) = started("deployments", "Deployment");
    change(&stage, &daemon, "2");
    until_restarted(&stage, &daemon, "deployments");
    let before = state(&stage, "deployments");
    stage.stage.aws.put("prod/a", "2");
    daemon.hang_up();
    stage.api.delete(&stage.path());
    stage.until_values(&daemon, &json!({"A": "2", "B": "b"}));
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    let daemon = stage.run();
    daemon.until_ready();
    stage.until_output("written", &[]);
    thread::sleep(MOMENT);
    assert_eq!(state(&stage, "deployments"), before);
    assert_eq!(content(&stage), before.0);
}

#[test]
fn a_writer_that_dies_before_the_restart_is_followed_by_one_that_sees_it() {
    let (stage, mut daemon) = started("deployments", "Deployment");
    change(&stage, &daemon, "2");
    until_restarted(&stage, &daemon, "deployments");
    let fault = stage.gate.fault(Fault::hang().method("PATCH").path("/deployments/"));
    change(&stage, &daemon, "3");
    until("the restart to be on its way", || stage.gate.struck(fault) == 1);
    daemon.kill();
    stage.gate.clear_faults();
    let daemon = stage.run();
    until_restarted(&stage, &daemon, "deployments");
    assert_eq!(state(&stage, "deployments").1, json!(3));
}

#[test]
fn of_two_hubs_the_one_that_writes_restarts() {
    let (stage, daemon) = started("deployments", "Deployment");
    let second = stage.pod("keytide-1");
    second.config(&hub("", &action("deployment")));
    let other = second.run();
    other.until_ready();
    change(&stage, &daemon, "2");
    until_restarted(&stage, &daemon, "deployments");
    thread::sleep(MOMENT);
    assert_eq!(state(&stage, "deployments").1, json!(2));
    let (first, second) =
        (daemon.metric("keytide_reloads_total", &["\"ok\""]), other.metric("keytide_reloads_total", &["\"ok\""]));
    assert_eq!((first, second), (1.0, 0.0));
}

#[test]
fn while_a_key_is_stale_nothing_is_restarted() {
    let (stage, daemon) = started("deployments", "Deployment");
    stage.stage.aws.remove("prod/b");
    stage.stage.aws.put("prod/a", "2");
    daemon.hang_up();
    stage.until_values(&daemon, &json!({"A": "2", "B": "b"}));
    thread::sleep(MOMENT);
    assert_eq!(state(&stage, "deployments").1, json!(1));
    assert_eq!(daemon.metric("keytide_reload_pending", &["rollout"]), 1.0);
    stage.stage.aws.put("prod/b", "b");
    daemon.hang_up();
    until_restarted(&stage, &daemon, "deployments");
}

#[test]
fn a_workload_that_is_missing_or_may_not_be_touched_is_said_and_tried_again() {
    let stage = KubeStage::with(&hub("", &action("deployment").replace("rollout: {", "rollout: {timeout: 2s, ")));
    stage.stage.aws.put("prod/a", "1");
    stage.stage.aws.put("prod/b", "b");
    let daemon = stage.run();
    stage.until_values(&daemon, &json!({"A": "1", "B": "b"}));
    daemon.until_log("failed to get deployments/app: it does not exist");
    let config = stage.stage.path("keytide.yaml");
    let mut role = stage.role(&config);
    let rules = role["rules"].as_array_mut().unwrap();
    rules.retain(|rule| rule["resources"][0] != "deployments");
    stage.namespace.role(&role);
    change(&stage, &daemon, "2");
    daemon.until_log("the service account may not get deployments app");
    assert_eq!(daemon.metric("keytide_reload_pending", &["rollout"]), 1.0);
    assert!(stage.output()["state"] == "written", "the Secret is not held up");
}
