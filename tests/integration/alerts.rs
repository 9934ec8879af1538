//! The alert rules and the dashboard on what a real daemon shows, as Prometheus would see it over hours.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use keytide_emulator::{Fault, FaultKind};
use serde_json::{Value, json};

use crate::{
    pushing::leave,
    support::{Daemon, Stage, stderr, stdout, until},
};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/keytide/files/alerts.yaml");
const DASHBOARD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/keytide/files/dashboard.json");
const TARGET: &str = r#"namespace="shop",pod="web-1",container="keytide",job="keytide",instance="10.0.0.1:19847""#;
/// Minutes in which all is well, in which it is not, and in which it is again.
const MINUTES: [u32; 3] = [60, 120, 60];
/// Metrics of what this daemon does not have: an output in Kubernetes, credentials that end.
const ELSEWHERE: [&str; 5] = [
    "keytide_kubernetes_",
    "keytide_lease_",
    "keytide_output_contested",
    "keytide_credentials_",
    "keytide_web_identity_",
];

fn promtool(arguments: &[&str], input: Option<&str>) -> Output {
    #[expect(clippy::disallowed_methods, reason = "how the test stage names the program")]
    let program = std::env::var_os("KEYTIDE_PROMTOOL")
        .expect("KEYTIDE_PROMTOOL must name Prometheus' promtool: `./tests/run alerts` installs it");
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    if let Some(input) = input {
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    }
    child.wait_with_output().unwrap()
}

/// One look at a daemon: each series with its value, times as their age in seconds.
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn of(daemon: &Daemon) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let text = daemon.get("/metrics").body;
        let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap();
            let is_time = name(series).ends_with("_timestamp_seconds") && value > 0.0;
            (series.to_owned(), if is_time { now - value } else { value })
        });
        Self(samples.collect())
    }
}

fn name(series: &str) -> &str {
    series.split('{').next().unwrap()
}

/// What promtool calls the values of a series that is looked at at the end of each of the three parts. Counters and
/// buckets grow evenly, times go on while all is well and stand still while it is not.
fn values(series: &str, looks: [Option<f64>; 3]) -> String {
    let name = name(series);
    let grows = ["_total", "_bucket", "_sum", "_count"].iter().any(|end| name.ends_with(end));
    let is_time = name.ends_with("_timestamp_seconds");
    let (mut text, mut before, mut begins) = (String::new(), None, 0);
    for (part, (look, minutes)) in looks.into_iter().zip(MINUTES).enumerate() {
        let more = minutes - 1;
        match look {
            None => write!(text, "_x{minutes} ").unwrap(),
            Some(age) if is_time && age > 0.0 && part != 1 => {
                write!(text, "{}+60x{more} ", f64::from(begins * 60) - age).unwrap();
            }
            // It is as old as it was when the trouble began.
            Some(age) if is_time && age > 0.0 => write!(text, "{}x{more} ", begins * 60 - 1).unwrap(),
            Some(value) if grows => {
                let from = before.unwrap_or(if part == 0 { value } else { 0.0 });
                write!(text, "{from}+{}x{more} ", (value - from) / f64::from(minutes)).unwrap();
            }
            Some(value) => write!(text, "{value}x{more} ").unwrap(),
        }
        before = look;
        begins += minutes;
    }
    text
}

/// A file for promtool: the series of three looks, and what shall be so.
fn test_file(stage: &Stage, looks: [&Scrape; 3], expected: &[Value]) -> PathBuf {
    let all: u32 = MINUTES.iter().sum();
    let mut series = vec![json!({"series": format!("up{{{TARGET}}}"), "values": format!("1x{all}")})];
    for found in looks.iter().flat_map(|look| look.0.keys()).collect::<std::collections::BTreeSet<_>>() {
        let labels = found.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
        let comma = if labels.is_empty() { "" } else { "," };
        let values = values(found, looks.map(|look| look.0.get(found).copied()));
        series.push(json!({"series": format!("{}{{{TARGET}{comma}{labels}}}", name(found)), "values": values}));
    }
    let tests = json!([{"interval": "1m", "input_series": series, "promql_expr_test": expected}]);
    let file = json!({"rule_files": [RULES], "evaluation_interval": "1m", "tests": tests});
    // JSON is YAML.
    stage.write("promtool.yaml", file.to_string())
}

fn assert_holds(file: &Path) {
    let output = promtool(&["test", "rules", file.to_str().unwrap()], None);
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}

/// These alerts, and no other, fire then.
fn firing(minute: u32, alerts: &[(&str, &str)]) -> Value {
    let samples: Vec<Value> = alerts
        .iter()
        .map(|(name, labels)| json!({"labels": format!("{{alertname=\"{name}\",{labels}}}"), "value": 1}))
        .collect();
    json!({
        "expr": "max without (alertstate, severity, __name__) (ALERTS{alertstate=\"firing\"})",
        "eval_time": format!("{minute}m"), "exp_samples": samples,
    })
}

fn queries_of_dashboard() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(DASHBOARD).unwrap()).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$namespace", ".*").replace("$pod", ".*").replace("$__rate_interval", "5m");
            queries.push(query);
        }
    }
    queries
}

/// A server that is told of changes, and at first does not want to be.
fn grumbling_server() -> (String, Arc<AtomicBool>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}/-/reload", listener.local_addr().unwrap());
    let content = Arc::new(AtomicBool::new(false));
    let says = Arc::clone(&content);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            drop(stream.read(&mut [0; 4096]));
            let status = if says.load(Ordering::SeqCst) { "200 OK" } else { "503 Service Unavailable" };
            drop(stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes()));
        }
    });
    (url, content)
}

#[test]
#[ignore = "needs promtool: ./tests/run alerts"]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let stage = Stage::new();
    stage.aws.put("prod/primary", r#"{"A": "1"}"#);
    stage.config("aws: {region: us-east-1}\nprimary_secret: {name: prod/primary}\noutputs:\n  - env_file: {path: \"{dir}/env/keys.env\"}");
    stage.make_directory("env", 0o755);
    let daemon = stage.run();
    daemon.until_ready();
    let output = promtool(&["check", "metrics"], Some(&daemon.get("/metrics").body));
    assert!(output.status.success() && output.stdout.is_empty(), "{}{}", stdout(&output), stderr(&output));
}

#[test]
#[ignore = "needs promtool: ./tests/run alerts"]
fn promtool_sees_the_alerts_fire_on_what_a_daemon_in_trouble_shows_and_resolve_when_it_is_over() {
    let stage = Stage::new();
    let (url, content) = grumbling_server();
    stage.aws.put("prod/primary", r#"{"A": "1", "B": "2"}"#);
    let config = format!(
        "aws: {{region: us-east-1}}\nprimary_secret: {{name: prod/primary}}\nrefresh: {{interval: 1s}}\n\
         outputs:\n  - env_file: {{path: \"{{dir}}/env/keys.env\"}}\nstate: {{directory: \"{{dir}}/state\"}}\n\
         virtual_keys: {{prefix: app/}}\nspool: {{directory: \"{{dir}}/spool/in\"}}\n\
         reload:\n  - http: {{url: \"{url}\", debounce: 0s, splay: 0s, min_interval: 0s}}"
    );
    let file = stage.config(&config);
    for directory in ["env", "spool"] {
        stage.make_directory(directory, 0o755);
    }
    let daemon = stage.run();
    daemon.until_ready();
    leave(&stage, &json!({"op": "create", "name": "app/first", "value": "1"}));
    until("a key to be stored", || daemon.metric("keytide_spool_confirmed_total", &[]) == 1.0);
    let well = Scrape::of(&daemon);

    stage.aws.put("prod/primary", r#"{"A": "2", "B": "2"}"#);
    until("the consumer to grumble", || daemon.metric("keytide_reloads_total", &["failed"]) >= 2.0);
    stage.aws.fault(Fault::on("GetSecretValue").kind(FaultKind::Throttle));
    stage.aws.fault(Fault::on("CreateSecret").kind(FaultKind::Error {
        code: "AccessDeniedException".to_owned(),
        status: 400,
        message: "no".to_owned(),
    }));
    leave(&stage, &json!({"op": "create", "name": "app/waits", "value": "1"}));
    leave(&stage, &json!({"op": "create", "name": "elsewhere/fails", "value": "1"}));
    let good = fs::read_to_string(&file).unwrap();
    stage.write("keytide.yaml", good.replace("interval: 1s", "interval: soon"));
    fs::rename(stage.path("env"), stage.path("gone")).unwrap();
    let shows = |name: &str, label: &str, value: f64| daemon.metric(name, &[label]) == value;
    until("the trouble to be seen", || {
        shows("keytide_stale_keys", "throttled", 2.0)
            && shows("keytide_config_valid", "", 0.0)
            && shows("keytide_output_up", "", 0.0)
            && shows("keytide_spool_entries", "claimed", 1.0)
            && shows("keytide_spool_entries", "failed", 1.0)
    });
    let trouble = Scrape::of(&daemon);

    stage.aws.clear_faults();
    fs::rename(stage.path("gone"), stage.path("env")).unwrap();
    stage.write("keytide.yaml", good);
    content.store(true, Ordering::SeqCst);
    let spool = stage.path("spool/in").display().to_string();
    let output = stage.keytide(&["spool", "discard", "--all", "--spool", &spool]);
    assert!(output.status.success(), "{}", stderr(&output));
    daemon.hang_up();
    until("the trouble to be over", || {
        shows("keytide_keys", "fresh", 2.0)
            && shows("keytide_config_valid", "", 1.0)
            && shows("keytide_output_up", "", 1.0)
            && shows("keytide_spool_entries", "", 0.0)
            && shows("keytide_reload_pending", "", 0.0)
    });
    let over = Scrape::of(&daemon);

    let (shop, pod) = ("namespace=\"shop\"", "namespace=\"shop\",pod=\"web-1\"");
    let alerts = [
        ("KeytideConfigRefused", shop),
        ("KeytideOutputFailing", "namespace=\"shop\",output=\"env_file\""),
        ("KeytideRefreshFailing", shop),
        ("KeytideReloadFailing", "namespace=\"shop\",action=\"http\""),
        ("KeytideStale", shop),
        ("KeytideThrottled", shop),
        ("KeytideVirtualKeysFailed", pod),
        ("KeytideVirtualKeysWaiting", shop),
    ];
    let [first, second, third] = MINUTES;
    let mut expected =
        vec![firing(first - 1, &[]), firing(first + second - 1, &alerts), firing(first + second + third - 1, &[])];
    // No panel is dead: each query has an answer in the midst of it.
    for query in queries_of_dashboard() {
        let elsewhere = ELSEWHERE.iter().any(|metric| query.contains(metric));
        let only_if_any = query.ends_with(" > 0") && query.contains("increase(");
        if !elsewhere && !only_if_any {
            // The consumer is told when the trouble is over.
            let late = query.contains("keytide_reload_last_success_timestamp_seconds");
            let eval_time = format!("{}m", first + second + if late { third - 5 } else { 0 } - 5);
            let asks = format!("count({query}) > bool 0");
            expected.push(json!({"expr": asks, "eval_time": eval_time, "exp_samples": [{"value": 1, "labels": "{}"}]}));
        }
    }
    assert!(expected.len() > 40, "{}", expected.len());
    assert_holds(&test_file(&stage, [&well, &trouble, &over], &expected));
}

#[test]
#[ignore = "needs promtool: ./tests/run alerts"]
fn promtool_understands_the_queries_of_the_dashboard_and_of_the_runbooks() {
    let stage = Stage::new();
    let mut queries = queries_of_dashboard();
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/runbooks")).unwrap() {
        let page = fs::read_to_string(entry.unwrap().path()).unwrap();
        queries.extend(page.split("```promql\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()));
    }
    let rules: Vec<Value> = queries
        .iter()
        .enumerate()
        .map(|(number, query)| json!({"record": format!("query:{number}"), "expr": query}))
        .collect();
    assert!(rules.len() > 80, "{}", rules.len());
    let file = stage.write("rules.yaml", json!({"groups": [{"name": "queries", "rules": rules}]}).to_string());
    let output = promtool(&["check", "rules", file.to_str().unwrap()], None);
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}
