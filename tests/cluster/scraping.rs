//! A real Prometheus finds the sidecar's port by itself and scrapes it.

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
    /// Scrapes these; with these rules.
    fn start(targets: &[String], rules: &Value) -> Self {
        let directory = Cluster::shared().directory().join("prometheus");
        fs::create_dir(&directory).unwrap();
        let job = json!({"job_name": "keytide", "static_configs": [{"targets": targets}]});
        // YAML has JSON in it.
        let config = json!({"global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.json"], "scrape_configs": [job]});
        fs::write(directory.join("prometheus.yml"), config.to_string()).unwrap();
        fs::write(directory.join("rules.json"), rules.to_string()).unwrap();
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
    let stale = json!({"alert": "Stale", "expr": "keytide_keys{state=\"stale\"} > 0", "for": "1s"});
    let prometheus =
        Prometheus::start(&[target(&namespace, "app")], &json!({"groups": [{"name": "keytide", "rules": [stale]}]}));
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
    assert_eq!(prometheus.alerts("Stale"), Vec::<String>::new());
    aws.down(8);
    until("the alert to fire", || prometheus.alerts("Stale").contains(&"firing".to_owned()));
    until("the alert to resolve", || prometheus.alerts("Stale").is_empty() && !aws.is_down());
}

/// The port of a pod that the chart's `PodMonitor` scrapes. Debian's Prometheus cannot ask the API server itself.
pub(crate) fn target(namespace: &Namespace, pod: &str) -> String {
    let found = namespace.get(&format!("pod/{pod}")).unwrap();
    let values = json!({"mode": "sidecar", "podMonitor": {"enabled": true}});
    let [monitor] = helm::template("keytide", &values, &["templates/podmonitor.yaml"]).try_into().unwrap();
    let expected = monitor["spec"]["selector"]["matchLabels"].as_object().unwrap();
    let labels = &found["metadata"]["labels"];
    assert!(!expected.is_empty() && expected.iter().all(|(name, value)| labels[name] == *value), "{labels}");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    // What Prometheus asks for where nothing else is said.
    assert_eq!(endpoint["path"], "/metrics");
    let containers = ["initContainers", "containers"].map(|list| found["spec"][list].clone());
    let ports =
        containers.iter().filter_map(Value::as_array).flatten().filter_map(|container| container["ports"].as_array());
    let port = ports.flatten().find(|port| port["name"] == endpoint["port"]).unwrap();
    format!("{}:{}", namespace.address(pod), port["containerPort"])
}
