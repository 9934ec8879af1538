//! A real Prometheus scrapes the port that the chart's monitors name.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    aws::{Aws, ask},
    cluster::Cluster,
    helm,
    hub::grant,
    namespace::Namespace,
    sidecar::{Sidecar, application},
    wait::{PATIENCE, until, within},
};

const LISTEN: &str = "127.0.0.1:9090";

/// Prometheus, ended with the test.
struct Prometheus {
    process: Child,
    address: &'static str,
}

impl Prometheus {
    /// Scrapes a pod's keytide, with the labels that a `PodMonitor` gives it; with these rules.
    fn start(namespace: &Namespace, pod: &str, rules: &str) -> Self {
        let directory = Cluster::shared().directory().join("prometheus");
        fs::create_dir(&directory).unwrap();
        let labels = json!({"namespace": namespace.name(), "pod": pod, "container": "keytide"});
        let targets = json!([{"targets": [target(namespace, pod, "sidecar")], "labels": labels}]);
        let job = json!({"job_name": format!("{}/keytide", namespace.name()), "static_configs": targets});
        // YAML has JSON in it.
        let config = json!({"global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.json"], "scrape_configs": [job]});
        fs::write(directory.join("prometheus.yml"), config.to_string()).unwrap();
        fs::write(directory.join("rules.json"), rules).unwrap();
        let log = fs::File::create(directory.join("log")).unwrap();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", directory.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", directory.join("data").display()));
        command.arg(format!("--web.listen-address={LISTEN}")).stdin(Stdio::null());
        let process = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Self { process, address: LISTEN }
    }

    fn log(&self) -> String {
        let targets = self.ask("targets");
        fs::read_to_string(Cluster::shared().directory().join("prometheus/log")).unwrap() + &targets.to_string()
    }

    /// The data of an answer of its API.
    fn ask(&self, path: &str) -> Value {
        let answer = ask(self.address, "GET", &format!("/api/v1/{path}"), "");
        let body: Value = answer.and_then(|answer| serde_json::from_str(&answer.body).ok()).unwrap_or_default();
        body["data"].clone()
    }

    /// The states of an alert, in one of which it is.
    fn alerts(&self, name: &str) -> Vec<String> {
        let alerts = self.ask("alerts")["alerts"].as_array().cloned().unwrap_or_default();
        let named = alerts.iter().filter(|alert| alert["labels"]["alertname"] == name);
        named.filter_map(|alert| alert["state"].as_str().map(str::to_owned)).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The metrics of docs/METRICS.md.
fn documented() -> Vec<&'static str> {
    let page = include_str!("../../docs/METRICS.md");
    page.lines().filter_map(|line| line.strip_prefix("| `keytide_")?.split('`').next()).collect()
}

#[test]
fn prometheus_has_every_documented_metric_and_an_alert_fires_and_resolves() {
    let namespace = Namespace::new("scraping");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    let mut sidecar = Sidecar::new(&aws).with_spool();
    // One that has all there is: a Secret with a Lease, and something to tell of changes.
    let secret = json!({"kubernetes_secret": {"name": "keys", "lease": "keys"}});
    sidecar.config["outputs"].as_array_mut().unwrap().push(secret);
    sidecar.config["reload"] = json!([{"generation": {"path": "/run/keytide/env/generation"}}]);
    let mut spec = application("sleep 600");
    spec["automountServiceAccountToken"] = json!(true);
    grant(&namespace, "keytide", &sidecar.file());
    spec["serviceAccountName"] = json!("keytide");
    sidecar.start(&namespace, "app", &spec);
    namespace.until_ready("app");
    let rules = rules();
    let prometheus = Prometheus::start(&namespace, "app", &rules.to_string());
    let up = || prometheus.ask("query?query=up")["result"][0]["value"][1] == "1";
    assert!(within(PATIENCE, up), "waited for Prometheus to scrape the pod: {}", prometheus.log());
    let expected = documented();
    assert!(expected.len() > 40, "{expected:?}");
    let missing = || {
        let families = prometheus.ask("metadata");
        let has = |name: &str| families[format!("keytide_{name}")].is_array();
        expected.iter().filter(|name| !has(name)).copied().collect::<Vec<_>>()
    };
    until("every metric", || missing().is_empty());
    let evaluated = || {
        let groups = prometheus.ask("rules")["groups"].as_array().cloned().unwrap_or_default();
        groups.iter().filter_map(|group| group["rules"].as_array().cloned()).flatten().collect::<Vec<_>>()
    };
    let unknown = |rule: &Value| rule["health"] == "unknown";
    until("an evaluation of every rule", || !evaluated().is_empty() && !evaluated().iter().any(unknown));
    let groups = rules["groups"].as_array().unwrap();
    let expected: usize = groups.iter().filter_map(|group| group["rules"].as_array()).map(Vec::len).sum();
    assert_healthy(&evaluated(), expected);
    assert_eq!(prometheus.alerts("KeytideStale"), Vec::<String>::new());
    aws.ill(&json!("internal_error"));
    until("the alert to fire", || prometheus.alerts("KeytideStale").contains(&"firing".to_owned()));
    aws.well();
    until("the alert to resolve", || prometheus.alerts("KeytideStale").is_empty());
    assert_healthy(&evaluated(), expected);
}

#[track_caller]
fn assert_healthy(rules: &[Value], expected: usize) {
    assert!(rules.len() == expected && expected > 20, "{} rules of {expected}", rules.len());
    for rule in rules {
        assert!(rule["health"] == "ok" && rule["lastError"].as_str().unwrap_or_default().is_empty(), "{rule}");
    }
}

/// How many times faster all goes than in the chart's rules: a quarter of an hour takes five seconds.
const FASTER: u64 = 180;

/// The rules of the chart's `PrometheusRule`, faster.
fn rules() -> Value {
    let values = json!({"mode": "sidecar", "prometheusRule": {"enabled": true}});
    let [rule] = helm::template("keytide", &values, &["templates/prometheusrule.yaml"]).try_into().unwrap();
    let mut groups = rule["spec"]["groups"].clone();
    let rules = groups.as_array_mut().unwrap().iter_mut().filter_map(|group| group["rules"].as_array_mut()).flatten();
    for rule in rules {
        for member in ["expr", "for", "keep_firing_for"] {
            if let Some(text) = rule[member].as_str() {
                rule[member] = json!(faster(text));
            }
        }
    }
    json!({"groups": groups})
}

/// Every duration of a rule, and every number from 300 on, which are seconds in all of them: the others are counts and
/// shares.
fn faster(text: &str) -> String {
    let mut faster = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(|character: char| character.is_ascii_digit()) {
        let (before, number) = rest.split_at(start);
        let end = number.find(|character: char| !character.is_ascii_digit()).unwrap_or(number.len());
        let (digits, behind) = number.split_at(end);
        let number: u64 = digits.parse().unwrap();
        let word = before.ends_with(|character: char| character.is_alphanumeric() || "_.".contains(character));
        let unit = behind.find(|character: char| !character.is_alphanumeric()).unwrap_or(behind.len());
        let (unit, after) = behind.split_at(unit);
        let seconds = match unit {
            _ if word => None,
            "s" => Some(number),
            "m" => Some(number * 60),
            "h" => Some(number * 3600),
            "" if number >= 300 => Some(number),
            _ => None,
        };
        faster += before;
        let sooner = match seconds {
            Some(seconds) if unit.is_empty() => (seconds / FASTER).to_string(),
            Some(seconds) => format!("{}ms", seconds * 1000 / FASTER),
            None => format!("{digits}{unit}"),
        };
        faster += &sooner;
        rest = after;
    }
    faster + rest
}

/// The port of a pod that the chart's `PodMonitor` scrapes. Debian's Prometheus cannot ask the API server itself.
pub(crate) fn target(namespace: &Namespace, pod: &str, mode: &str) -> String {
    let found = namespace.get(&format!("pod/{pod}")).unwrap();
    let values = json!({"mode": mode, "podMonitor": {"enabled": true}});
    let (selector, name) = scraped("keytide", &values, "podmonitor");
    let labels = &found["metadata"]["labels"];
    assert!(selector.iter().all(|(name, value)| labels[name] == *value), "{labels}");
    let containers = ["initContainers", "containers"].map(|list| found["spec"][list].clone());
    let ports =
        containers.iter().filter_map(Value::as_array).flatten().filter_map(|container| container["ports"].as_array());
    let port = ports.flatten().find(|port| port["name"] == name).unwrap();
    format!("{}:{}", namespace.address(pod), port["containerPort"])
}

/// The addresses that the `ServiceMonitor` of a hub scrapes.
pub(crate) fn targets_of_hub(namespace: &Namespace, release: &str) -> Vec<String> {
    let values = json!({"mode": "hub", "existingConfigMap": "any", "rbac": {"create": false}, "serviceMonitor": {"enabled": true}});
    let (selector, name) = scraped(release, &values, "servicemonitor");
    let selector: Vec<String> =
        selector.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap())).collect();
    let selector = selector.join(",");
    let services = namespace.kubectl(&["get", "services", "--selector", &selector, "--output", "json"]);
    let services: Value = serde_json::from_str(&services).unwrap();
    let [service] = services["items"].as_array().unwrap().as_slice() else { panic!("one Service: {services}") };
    let of_service = format!("kubernetes.io/service-name={}", service["metadata"]["name"].as_str().unwrap());
    let slices = namespace.kubectl(&["get", "endpointslices", "--selector", &of_service, "--output", "json"]);
    let slices: Value = serde_json::from_str(&slices).unwrap();
    let mut targets = Vec::new();
    let list = |list: &Value| list.as_array().cloned().unwrap_or_default();
    for slice in list(&slices["items"]) {
        // One that selects no pod yet has no port.
        let Some(port) = list(&slice["ports"]).into_iter().find(|port| port["name"] == name) else { continue };
        let addresses = list(&slice["endpoints"]).into_iter().map(|endpoint| endpoint["addresses"][0].clone());
        targets.extend(addresses.map(|address| format!("{}:{}", address.as_str().unwrap(), port["port"])));
    }
    targets
}

/// The metrics of a target, once it answers.
#[track_caller]
pub(crate) fn metrics(target: &str) -> String {
    let mut metrics = None;
    until("metrics", || {
        metrics = ask(target, "GET", "/metrics", "");
        metrics.is_some()
    });
    metrics.unwrap().body
}

/// What a monitor of the chart selects, and the name of the port that it scrapes there.
fn scraped(release: &str, values: &Value, monitor: &str) -> (serde_json::Map<String, Value>, String) {
    let [monitor] = helm::template(release, values, &[&format!("templates/{monitor}.yaml")]).try_into().unwrap();
    let spec = &monitor["spec"];
    let selector = spec["selector"]["matchLabels"].as_object().unwrap().clone();
    assert!(!selector.is_empty());
    let endpoint = [&spec["podMetricsEndpoints"][0], &spec["endpoints"][0]].into_iter().find(|one| one.is_object());
    let endpoint = endpoint.unwrap();
    // What Prometheus asks for where nothing else is said.
    assert_eq!(endpoint["path"], "/metrics");
    (selector, endpoint["port"].as_str().unwrap().to_owned())
}
