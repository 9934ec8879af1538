//! The chart's injection: two commands, and an application that reads nothing but its environment has its keys.

use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    helm::{self, CPU_BEFORE, DROPPED, helm},
    namespace::Namespace,
    scraping::{metrics, target},
    sidecar::application,
    starting::assert_is_restricted,
};

/// Says with which keys it started, and lives until it is asked to end.
pub(crate) const SAY: &str =
    "echo \"starts with $OPENAI_API_KEY and $DATABASE_URL\"; trap 'exit 0' TERM; sleep 6000 & wait";

/// The releases of other tests that have objects of the whole cluster.
const OTHERS: [&str; 2] = ["signalled", "litellm"];

/// The two commands of the README.
fn commands() -> (&'static str, &'static str) {
    let page = include_str!("../../README.md");
    let install = page.lines().find(|line| line.starts_with("helm install ")).unwrap();
    let patch = page.split("kubectl patch deployment my-app --patch '").nth(1).unwrap().split('\'').next().unwrap();
    (install, patch)
}

/// A Deployment that knows nothing of keytide.
fn deployment(name: &str, user: u32, group: Option<u32>) -> Value {
    let mut spec = application(SAY);
    spec["securityContext"] = json!({"runAsUser": user, "seccompProfile": {"type": "RuntimeDefault"}});
    if user > 0 {
        spec["securityContext"]["runAsNonRoot"] = json!(true);
    }
    if let Some(group) = group {
        spec["securityContext"]["fsGroup"] = json!(group);
    }
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec}}})
}

/// The pod of a Deployment whose rollout is over.
#[track_caller]
pub(crate) fn rolled_out(namespace: &Namespace, name: &str) -> Value {
    namespace.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout", "120s"]);
    let pods = namespace.pods(name);
    let living = pods.into_iter().find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    living.unwrap()
}

/// The names of all objects that a release could leave: of these namespaces, and of the cluster.
fn objects(namespaces: &[&Namespace]) -> Vec<String> {
    // What other tests make and remove meanwhile.
    let of_cluster = kinds("--namespaced=false", &["namespaces", "ipaddresses.networking.k8s.io", "componentstatuses"]);
    let selector = format!("app.kubernetes.io/instance notin ({})", OTHERS.join(","));
    let found = Cluster::shared().kubectl(&["get", &of_cluster, "--selector", &selector, "--output", "name"]);
    let mut all: Vec<String> = found.lines().map(str::to_owned).collect();
    for namespace in namespaces {
        all.extend(objects_of(namespace).iter().map(|name| format!("{}: {name}", namespace.name())));
    }
    all.sort();
    all
}

/// Those of one namespace, without what tells of them.
pub(crate) fn objects_of(namespace: &Namespace) -> Vec<String> {
    let kinds = kinds("--namespaced=true", &["events", "events.events.k8s.io"]);
    let mut all: Vec<String> =
        namespace.kubectl(&["get", &kinds, "--output", "name"]).lines().map(str::to_owned).collect();
    all.sort();
    all
}

/// All that can be listed, but these.
fn kinds(scope: &str, without: &[&str]) -> String {
    let list = Cluster::shared().kubectl(&["api-resources", "--verbs", "list", "--output", "name", scope]);
    let kinds = list.lines().filter(|kind| !without.contains(kind));
    kinds.collect::<Vec<_>>().join(",")
}

#[test]
fn two_commands_bring_an_application_its_keys_and_an_upgrade_and_an_uninstall_leave_nothing_behind() {
    let release = Namespace::new("keytide");
    let (restricted, baseline) = (Namespace::new("injected"), Namespace::of_level("injected-root", "baseline"));
    let aws_namespace = Namespace::new("injected-aws");
    let secret = json!({"OPENAI_API_KEY": "sk-one", "DATABASE_URL": "db \"here\" $HOME"});
    let roles = [&restricted, &baseline].map(|namespace| {
        let name = if namespace.name() == restricted.name() { "my-app" } else { "my-root" };
        helm::reader(name, &format!("{}:default", namespace.name()), "my-app/keys")
    });
    let aws = helm::aws(&aws_namespace, &json!({"my-app/keys": secret}), &roles);
    helm::trust(&aws, &[&release, &restricted, &baseline]);

    let applications = [
        (&restricted, "my-app", 1000, None),
        (&restricted, "my-app-group", 1000, Some(2000)),
        (&baseline, "my-root", 0, None),
        (&baseline, "my-root-group", 0, Some(2000)),
    ];
    for (namespace, name, user, group) in applications {
        namespace.apply(&[deployment(name, user, group)]);
    }
    for (namespace, name, ..) in applications {
        let pod = rolled_out(namespace, name);
        let pod = pod["metadata"]["name"].as_str().unwrap();
        namespace.until_log(pod, "app", "starts with  and ");
    }
    let before = objects(&[&release]);

    // The chart of before, with another port.
    let (install, patch) = commands();
    let values = helm::injecting(&aws, &[&release, &restricted, &baseline]);
    let values = helm::values("two-commands", &values);
    let previous = helm::package("two-commands", Some("0.0.1"));
    let install = install.replace("helm/keytide", &previous);
    let words: Vec<&str> =
        install.split(' ').skip(1).chain(["--values", &values, "--set", "http.port=19999"]).collect();
    helm(&words);
    for (namespace, name, ..) in applications {
        let patch = patch
            .replace("role/my-app", if namespace.name() == baseline.name() { "role/my-root" } else { "role/my-app" });
        namespace.kubectl(&["patch", "deployment", name, "--patch", &patch]);
    }
    let of_cluster = objects(&[]);
    assert!(of_cluster.iter().any(|name| name.ends_with("/keytide-inject")), "{of_cluster:?}");
    let first = applications.map(|(namespace, name, user, _)| started(namespace, name, user, 19999));
    assert!(release.get(DROPPED).is_some());
    assert_eq!(requested(&restricted, &first[0]), CPU_BEFORE);
    let exchanges = aws.requests("AssumeRoleWithWebIdentity");
    assert!(exchanges.len() >= 4 && exchanges.iter().all(|exchange| exchange["outcome"] == "200"), "{exchanges:?}");

    let chart = helm::package("two-commands", None);
    helm(&["upgrade", "keytide", &chart, "--namespace", release.name(), "--values", &values]);
    for ((namespace, ..), pod) in applications.iter().zip(&first) {
        for container in ["app", "keytide"] {
            assert_eq!(namespace.container(pod, container)["restartCount"], 0, "an upgrade changes no running pod");
        }
    }
    assert!(release.get(DROPPED).is_none(), "an upgrade removes what is no more of the chart");
    restricted.kubectl(&["rollout", "restart", "deployment/my-app"]);
    let second = started(&restricted, "my-app", 1000, 19847);
    assert_ne!(first[0], second);
    assert_eq!(requested(&restricted, &second), "10m");

    let said = helm(&["test", "keytide", "--namespace", release.name()]);
    assert!(said.contains("Succeeded"), "{said}");

    helm(&["uninstall", "keytide", "--namespace", release.name(), "--wait"]);
    assert_eq!(objects(&[&release]), before);
    assert_eq!(restricted.container(&second, "app")["restartCount"], 0, "nor does an uninstall");
    let file = restricted.exec(&second, "app", &["cat", "/run/keytide/env/keys.env"]);
    assert!(file.contains("OPENAI_API_KEY='sk-one'\n"), "{file}");
}

/// Checks that an application started with the keys, beside a keytide that has all that it needs, and the application nothing
/// of it. Answers its pod.
#[track_caller]
fn started(namespace: &Namespace, name: &str, user: u32, expected_port: u64) -> String {
    let found = rolled_out(namespace, name);
    let pod = found["metadata"]["name"].as_str().unwrap();
    namespace.until_log(pod, "app", "starts with sk-one and db \"here\" $HOME\n");
    assert_eq!(namespace.exec(pod, "app", &["id", "-u"]), format!("{user}\n"));
    let environment = namespace.exec(pod, "app", &["sh", "-c", "tr '\\0' '\\n' </proc/1/environ"]);
    assert!(environment.contains("OPENAI_API_KEY=sk-one\n") && !environment.contains("AWS"), "{environment}");
    let mounts = namespace.exec(pod, "app", &["cat", "/proc/mounts"]);
    assert!(mounts.contains(" /run/keytide/env ") && !mounts.contains("/run/keytide/private"), "{mounts}");
    assert!(!mounts.contains("secrets"), "no token: {mounts}");
    // The same by what was asked of the kubelet.
    let named = |list: &str, name: &str| {
        found["spec"][list].as_array().unwrap().iter().find(|one| one["name"] == name).cloned().unwrap_or_default()
    };
    let (app, keytide) = (named("containers", "app"), named("initContainers", "keytide"));
    let volumes = |container: &Value| -> Vec<String> {
        let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
        mounts.iter().filter_map(|mount| mount["name"].as_str().map(str::to_owned)).collect()
    };
    assert_eq!(volumes(&app), ["keytide-env"]);
    assert!(volumes(&keytide).contains(&"keytide-token".to_owned()), "{keytide}");
    let audience = &named("volumes", "keytide-token")["projected"]["sources"][0]["serviceAccountToken"]["audience"];
    assert_eq!(*audience, "sts.amazonaws.com");
    assert_eq!(port(&found), Some(expected_port));
    let metrics = metrics(&target(namespace, pod, "injection"));
    assert!(metrics.contains("keytide_output_up"), "{metrics}");
    assert_is_restricted(namespace, pod);
    assert_eq!(namespace.container(pod, "keytide")["restartCount"], 0);
    pod.to_owned()
}

/// What a pod's keytide asks for of a processor.
fn requested(namespace: &Namespace, pod: &str) -> Value {
    namespace.get(&format!("pod/{pod}")).unwrap()["spec"]["initContainers"][0]["resources"]["requests"]["cpu"].take()
}

/// The port of a pod's keytide, if it has one.
fn port(pod: &Value) -> Option<u64> {
    pod["spec"]["initContainers"][0]["ports"][0]["containerPort"].as_u64()
}

#[test]
fn a_rotation_arrives_by_signal_in_an_application_and_in_the_file_that_it_reads_then() {
    let namespace = Namespace::new("signalled");
    let role = helm::reader("my-app", "signalled:default", "my-app/keys");
    let aws = helm::aws(&namespace, &json!({"my-app/keys": {"API_KEY": "one"}}), &[role]);
    helm::trust(&aws, &[&namespace]);
    let values = helm::values("signalled", &helm::injecting(&aws, &[&namespace]));
    let chart = helm::package("signalled", None);
    helm(&["install", "signalled", &chart, "--namespace", namespace.name(), "--values", &values]);

    let config = "keytide:
  primary_secret: {name: my-app/keys}
  refresh: {interval: 1s, jitter: 0}
  outputs:
    - env_file: {path: /run/keytide/env/keys.env, format: posix}
  reload:
    - signal: {process: sh, signal: HUP, debounce: 0s, splay: 0s}
  state: {directory: /run/keytide/private/state}
  admin: {socket: /run/keytide/private/admin.sock}
";
    let script = "trap '. /run/keytide/env/keys.env; echo \"is told of $API_KEY\"' HUP; trap 'exit 0' TERM
        . /run/keytide/env/keys.env; echo \"starts with $API_KEY\"; while :; do sleep 0.2; done";
    let mut pod = crate::sidecar::pod("app", &application(script));
    pod["spec"]["shareProcessNamespace"] = json!(true);
    pod["metadata"]["labels"]["keytide.dev/inject"] = json!("true");
    // A signal goes to processes of the same user only, which is the application's here.
    pod["metadata"]["annotations"] = json!({"keytide.dev/config": "app", "keytide.dev/run-as-user": "1000",
        "keytide.dev/role-arn": "arn:aws:iam::123456789012:role/my-app"});
    let configuration = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "app"},
        "data": {"keytide.yaml": config}});
    namespace.apply(&[configuration, pod]);
    namespace.until_log("app", "app", "starts with one\n");
    aws.put("my-app/keys", &json!({"API_KEY": "two"}));
    namespace.until_log("app", "app", "is told of two\n");
    assert_eq!(namespace.exec("app", "app", &["cat", "/run/keytide/env/keys.env"]), "API_KEY='two'\n");
    for container in ["app", "keytide"] {
        assert_eq!(namespace.container("app", container)["restartCount"], 0);
    }
    helm(&["uninstall", "signalled", "--namespace", namespace.name(), "--wait"]);
}
