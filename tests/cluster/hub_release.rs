//! The chart's hub: two keytides, one of which keeps a Kubernetes Secret, and restarts who reads it.

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, run},
    helm::{self, command_in, helm, typed},
    injection::{SAY, objects_of, rolled_out},
    namespace::Namespace,
    scraping::{metrics, targets_of_hub},
    sidecar::application,
    wait::until,
};

/// What a hub writes, and an uninstall leaves.
const SECRET: &str = "secret/app-keys";

#[test]
fn a_rotation_arrives_in_the_secret_and_as_a_rollout_whichever_of_two_writes() {
    let namespace = Namespace::new("hub-release");
    let aws_namespace = Namespace::new("hub-release-aws");
    let role = helm::reader("hub", "hub-release:hub-keytide", "my-app/keys");
    let keys = |api: &str| json!({"OPENAI_API_KEY": api, "DATABASE_URL": "it's \"here\" $HOME"});
    let aws = helm::aws(&aws_namespace, &json!({"my-app/keys": keys("sk-one")}), &[role]);
    helm::trust(&aws, &[&namespace]);

    // It is there before its Secret, and waits for it.
    let mut spec = application(SAY);
    spec["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "app-keys"}}]);
    namespace.apply(&[json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "app"},
        "spec": {"selector": {"matchLabels": {"app": "app"}},
            "template": {"metadata": {"labels": {"app": "app"}}, "spec": spec}}})]);

    let mut values = helm::reaching(&aws);
    values["mode"] = json!("hub");
    values["aws"]["roleArn"] = json!("arn:aws:iam::123456789012:role/hub");
    values["config"] = json!({"keytide": {
        "aws": {"expect_role": "arn:aws:iam::123456789012:role/hub"},
        "primary_secret": {"name": "my-app/keys"},
        "refresh": {"interval": "1s", "jitter": 0},
        "outputs": [{"kubernetes_secret": {"name": "app-keys"}}],
        "reload": [{"rollout": {"deployment": "app", "debounce": "0s", "splay": "0s", "min_interval": "1s"}}],
    }});
    let values = helm::values("hub", &values);
    let chart = helm::package("hub", None);
    let without_application = || -> Vec<String> {
        objects_of(&namespace).into_iter().filter(|name| !name.contains("/app-") || name == SECRET).collect()
    };
    let before = without_application();
    let notes = helm(&["install", "hub", &chart, "--namespace", namespace.name(), "--values", &values]);
    typed(command_in(&notes, "kubectl --namespace hub-release rollout status "));
    let table = typed(command_in(&notes, "kubectl --namespace hub-release exec "));
    let words: Vec<&str> = table.split_whitespace().take(3).collect();
    assert_eq!(words, ["keytide", concat!(env!("CARGO_PKG_VERSION"), ","), "ready,"], "{table}");
    until_started(&namespace, "sk-one");

    until("both to be scraped by the Service's name", || {
        let targets = targets_of_hub(&namespace, "hub");
        targets.len() == 2 && targets.iter().all(|target| metrics(target).contains("keytide_lease_held"))
    });
    let hubs = hubs(&namespace);
    let first = holder(&namespace);
    assert!(hubs.len() == 2 && hubs.iter().any(|name| first.starts_with(name.as_str())), "{first} of {hubs:?}");
    aws.put("my-app/keys", &keys("sk-two"));
    until_started(&namespace, "sk-two");
    // What `kubectl get secret` shows is what the application got.
    let found = namespace.kubectl(&[
        "get",
        "secret",
        "app-keys",
        "--output",
        "go-template={{.data.OPENAI_API_KEY | base64decode}}",
    ]);
    assert_eq!(found, "sk-two");

    let said = typed(command_in(&notes, "helm --namespace hub-release test hub "));
    assert!(said.contains("Succeeded"), "{said}");

    // The other one goes on.
    let gone = hubs.iter().find(|name| first.starts_with(name.as_str())).unwrap();
    namespace.kubectl(&["delete", "pod", gone]);
    until("another holder of the Lease", || !holder(&namespace).is_empty() && holder(&namespace) != first);
    aws.put("my-app/keys", &keys("sk-three"));
    until_started(&namespace, "sk-three");

    namespace.assert_within_limits();
    helm(&["uninstall", "hub", "--namespace", namespace.name(), "--wait"]);
    // The application is not left without its keys.
    let mut expected = [before.clone(), vec![SECRET.to_owned()]].concat();
    expected.sort();
    until("nothing but the Secret", || without_application() == expected);
    typed(command_in(&notes, "kubectl --namespace hub-release delete secret "));
    until("nothing", || without_application() == before);
}

/// Waits until the application that is there now started with this key.
#[track_caller]
fn until_started(namespace: &Namespace, key: &str) {
    let expected = format!("starts with {key} and it's \"here\" $HOME\n");
    until(&expected, || {
        let pod = rolled_out(namespace, "app");
        let arguments = ["--namespace", namespace.name(), "logs", pod["metadata"]["name"].as_str().unwrap()];
        run(Cluster::shared().command("kubectl").args(arguments), "").stdout == expected.as_bytes()
    });
}

fn hubs(namespace: &Namespace) -> Vec<String> {
    let selector = "app.kubernetes.io/component=hub";
    let list = namespace.kubectl(&["get", "pods", "--selector", selector, "--output", "name"]);
    list.lines().map(|name| name.trim_start_matches("pod/").to_owned()).collect()
}

fn holder(namespace: &Namespace) -> String {
    let lease = namespace.get("lease/keytide-app-keys").unwrap_or(Value::Null);
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}
