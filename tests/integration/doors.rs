//! The two doors, and what people type at them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    thread,
    time::Duration,
};

use keytide_emulator::{Fault, FaultKind};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{ACCESS_KEY_ID, Answer, Daemon, Stage, ask_socket, block, stderr, stdout, until};

const SELDOM: &str = "interval: 700h, call_timeout: 60s";
const TWO: &str = "keys:\n  - {name: FIRST_KEY, secret: prod/first}\n  - {name: SECOND_KEY, secret: prod/second}\n";

fn stage() -> Stage {
    let stage = Stage::new();
    stage.aws.put("prod/first", "canary-1");
    stage.aws.put("prod/second", "canary-2");
    stage.config(&block(SELDOM, TWO));
    stage
}

fn ready() -> (Stage, Daemon) {
    let stage = stage();
    let daemon = stage.run();
    daemon.until_ready();
    (stage, daemon)
}

fn at_the_socket(stage: &Stage, arguments: &[&str]) -> (i32, String, String) {
    let socket = stage.socket().display().to_string();
    let output = stage.keytide(&[arguments, &["--socket", &socket]].concat());
    (output.status.code().unwrap_or(-1), stdout(&output), stderr(&output))
}

fn request(daemon: &Daemon, text: &str) -> String {
    let mut stream = TcpStream::connect(daemon.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_probes_say_no_before_the_first_file_and_yes_after() {
    let stage = stage();
    let fault = stage.aws.fault(Fault::any().kind(FaultKind::InternalError));
    let daemon = stage.run();
    until("the first try", || daemon.metric("keytide_refreshes_total", &[]) >= 1.0);
    let codes = || ["/livez", "/readyz", "/startupz"].map(|path| daemon.get(path).status);
    assert_eq!(codes(), [200, 503, 503]);
    assert_eq!(daemon.metric("keytide_ready", &[]), 0.0);
    assert_eq!(daemon.metric("keytide_output_up", &[]), 0.0);
    stage.aws.remove_fault(fault);
    daemon.until_ready();
    assert_eq!(codes(), [200, 200, 200]);
    assert_eq!(daemon.metric("keytide_ready", &[]), 1.0);
    assert_eq!(daemon.metric("keytide_output_up", &[]), 1.0);
}

/// What is written of each family: its type, and the names and values of its samples.
fn families(text: &str) -> Vec<(String, String, Vec<(String, f64)>)> {
    let mut families: Vec<(String, String, Vec<(String, f64)>)> = Vec::new();
    let mut helped = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').unwrap();
            assert!(words.len() > 10, "{line}");
            name.clone_into(&mut helped);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, helped, "each family has its help");
            families.push((name.to_owned(), kind.to_owned(), Vec::new()));
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap().to_owned();
            let (family, _, samples) = families.last_mut().unwrap();
            assert!(name.starts_with(family.as_str()), "{line}");
            assert_eq!(series.contains('{'), series.ends_with('}'), "{line}");
            samples.push((name, value.parse().unwrap_or_else(|_| panic!("{line}"))));
        }
    }
    families
}

#[test]
fn metrics_are_the_text_format_of_prometheus() {
    let (_stage, daemon) = ready();
    let answer = request(&daemon, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.to_ascii_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    let families = families(body);
    assert!(families.len() > 15);
    for (name, kind, samples) in &families {
        assert!(name.starts_with("keytide_") || name.starts_with("process_"), "{name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(samples.iter().all(|(_, value)| value.is_finite() && *value >= 0.0), "{name}");
        if kind == "histogram" {
            assert!(name.ends_with("_seconds"), "{name}");
        }
    }
    let mut names: Vec<&String> = families.iter().map(|(name, ..)| name).collect();
    names.dedup();
    assert_eq!(names.len(), families.len());
}

#[test]
fn the_interval_is_told_by_who_reads_and_by_nobody_else() {
    let interval = |daemon: &Daemon| daemon.metric("keytide_refresh_interval_seconds", &[]);
    let (_stage, daemon) = ready();
    assert_eq!(interval(&daemon), 700.0 * 3600.0);
    let stage = Stage::new();
    stage.config("virtual_keys: {prefix: app/}\nspool: {directory: \"{dir}/spool/in\"}");
    stage.make_directory("spool", 0o755);
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(interval(&daemon), 0.0);
}

#[test]
fn the_port_has_nothing_else() {
    let (_stage, daemon) = ready();
    for path in ["/", "/status", "/refresh", "/metrics/", "/metricsx", "/livez/..", "/debug/pprof", "/%2e%2e/metrics"] {
        assert_eq!(daemon.get(path).status, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE"] {
        for path in ["/metrics", "/readyz", "/refresh"] {
            let text = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            let answer = request(&daemon, &text);
            assert!(answer.starts_with("HTTP/1.1 40"), "{method} {path}: {answer}");
        }
    }
    assert!(request(&daemon, "no HTTP at all\r\n\r\n").starts_with("HTTP/1.1 400"));
    assert_eq!(daemon.metric("keytide_refreshes_total", &[]), 1.0, "nobody at the port starts work");
}

#[test]
fn the_port_names_no_secret_and_no_key() {
    let stage = stage();
    stage.aws.fault(Fault::on("GetSecretValue").secret("prod/second").times(1).kind(FaultKind::InternalError));
    let daemon = stage.run();
    let look = || {
        for path in ["/metrics", "/livez", "/readyz", "/startupz", "/status"] {
            let Answer { body, .. } = daemon.get(path);
            for word in ["prod/", "FIRST_KEY", "SECOND_KEY", "canary", ACCESS_KEY_ID, "keys.json"] {
                assert!(!body.contains(word), "{path}: {body}");
            }
        }
    };
    until("the first try", || daemon.metric("keytide_refreshes_total", &[]) >= 1.0);
    look();
    daemon.until_ready();
    look();
    stage.aws.remove("prod/first");
    stage.aws.put("prod/second", "canary\n3");
    daemon.hang_up();
    assert_eq!(daemon.metric("keytide_stale_keys", &["absent"]), 1.0);
    look();
}

#[test]
fn the_port_can_be_turned_off() {
    let stage = stage();
    stage.config(&format!("{}http: {{listen: none}}\n", block(SELDOM, TWO)));
    let daemon = stage.run();
    until("the first file", || stage.status()["ready"] == true);
    assert!(!daemon.log().contains("http://127.0.0.1:0"));
    assert!(!daemon.log().contains("metrics and probes on"));
}

#[test]
fn a_port_that_is_taken_is_told() {
    let (stage, daemon) = ready();
    let taken = daemon.address();
    // A file of its own: the first one would follow a change of its file.
    let config = stage.read("keytide.yaml").replace("127.0.0.1:0", &taken).replace("admin.sock", "second.sock");
    let config = stage.write("second.yaml", config.replace("env/keys.json", "second/keys.json"));
    let mut second = stage.run_with(&["run", "--config", &config.display().to_string()]);
    assert_eq!(second.wait(), 1);
    assert!(second.log().contains(&format!("failed to listen on {taken} (http.listen)")), "{}", second.log());
}

#[test]
fn half_a_request_does_not_hold_up_the_end() {
    let (_stage, mut daemon) = ready();
    let silent = TcpStream::connect(daemon.address()).unwrap();
    let mut half = TcpStream::connect(daemon.address()).unwrap();
    half.write_all(b"GET /metrics HTT").unwrap();
    let mut idle = TcpStream::connect(daemon.address()).unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    idle.read_exact(&mut [0; 12]).unwrap();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0, "{}", daemon.log());
    drop((silent, half, idle));
}

#[test]
fn the_admin_socket_has_its_mode_and_no_leftovers() {
    let (stage, _daemon) = ready();
    let metadata = fs::metadata(stage.socket()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o660);
    let names = fs::read_dir(stage.path("")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!names.into_iter().any(|name| name.to_string_lossy().ends_with(".tmp")));
}

#[test]
fn the_admin_socket_replaces_that_of_a_killed_process() {
    let (stage, mut daemon) = ready();
    daemon.kill();
    let dead = fs::metadata(stage.socket()).unwrap().ino();
    assert_eq!(at_the_socket(&stage, &["status"]).0, 1);
    let daemon = stage.run();
    daemon.until_ready();
    assert_ne!(fs::metadata(stage.socket()).unwrap().ino(), dead);
    assert_eq!(stage.status()["ready"], true);
}

#[test]
fn without_the_directory_of_the_socket_keytide_works_without_that_door() {
    let stage = stage();
    stage.config(&format!("{}admin: {{socket: \"{{dir}}/nowhere/admin.sock\"}}\n", block(SELDOM, TWO)));
    let daemon = stage.run();
    daemon.until_ready();
    daemon.until_log("no admin socket");
}

#[test]
fn the_admin_socket_answers_status_and_refresh_only() {
    let (stage, _daemon) = ready();
    let socket = stage.socket();
    assert_eq!(ask_socket(&socket, "GET", "/status").status, 200);
    assert_eq!(ask_socket(&socket, "GET", "/refresh").status, 405);
    assert_eq!(ask_socket(&socket, "POST", "/status").status, 405);
    assert_eq!(ask_socket(&socket, "GET", "/metrics").status, 404);
    assert_eq!(ask_socket(&socket, "POST", "/refresh?accept_removal=true").status, 400);
    assert_eq!(ask_socket(&socket, "POST", "/refresh?accept_removals=maybe").status, 400);
    assert_eq!(stage.aws.count("GetSecretValue"), 2);
}

#[test]
fn the_status_is_json_for_programs() {
    let (stage, daemon) = ready();
    let (code, out, _) = at_the_socket(&stage, &["status", "--output", "json"]);
    assert_eq!(code, 0);
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(status["ready"], true);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    let identity = &status["identity"];
    assert_eq!((&identity["kind"], &identity["name"]), (&json!("static"), &json!(ACCESS_KEY_ID)));
    assert_eq!((&identity["region"], &identity["expires"]), (&json!("us-east-1"), &Value::Null));
    let overrides = identity["overrides"].as_array().unwrap();
    assert!(overrides[0].as_str().unwrap().contains(&stage.aws.url()), "{overrides:?}");
    assert_eq!(status["refresh"]["complete"], true);
    assert_eq!(status["refresh"]["count"], 1);
    assert_eq!(status["refresh"]["interval_seconds"], 700 * 3600);
    let key = &status["keys"][0];
    assert_eq!(
        (&key["name"], &key["state"], &key["secret"]),
        (&json!("FIRST_KEY"), &json!("fresh"), &json!("prod/first"))
    );
    assert_eq!(key["version"].as_str().unwrap().len(), 36);
    assert_eq!(status["outputs"][0]["path"], stage.path("env/keys.json").display().to_string());
    assert_eq!(status["outputs"][0]["state"], "written");
    assert_eq!(status["outputs"][0]["keys"], 2);
    assert!(!out.contains("canary"));
    assert!(!daemon.log().contains("canary"));
}

#[test]
fn the_status_is_a_table_for_people() {
    let (stage, daemon) = ready();
    stage.aws.remove("prod/second");
    daemon.hang_up();
    let (code, table, _) = at_the_socket(&stage, &["status"]);
    assert_eq!(code, 0);
    let line = |start: &str| table.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{table}"));
    assert!(line("keytide ").contains(", ready, up "), "{table}");
    assert!(line("identity ").contains("us-east-1"), "{table}");
    assert!(line("FIRST_KEY ").contains("fresh") && line("FIRST_KEY ").contains("prod/first"), "{table}");
    assert!(line("SECOND_KEY ").contains("stale (absent)"), "{table}");
    assert!(line("env_file ").contains("keys.json") && line("env_file ").contains("written"), "{table}");
    assert!(line("! SECOND_KEY").contains("no such secret"), "{table}");
    assert!(!table.contains("canary"), "{table}");
}

#[test]
fn the_outputs_are_shown_before_the_first_file_too() {
    let stage = stage();
    stage.aws.remove("prod/second");
    let daemon = stage.run();
    until("the first try", || daemon.metric("keytide_refreshes_total", &[]) >= 1.0);
    assert_eq!(stage.status()["outputs"][0]["state"], "waiting", "{}", stage.status());
}

#[test]
fn without_a_daemon_status_and_refresh_say_where_they_looked() {
    let stage = stage();
    for command in ["status", "refresh"] {
        let (code, out, err) = at_the_socket(&stage, &[command]);
        assert_eq!((code, out.as_str()), (1, ""));
        assert!(err.contains(&stage.socket().display().to_string()) && err.contains("keytide run"), "{err}");
    }
}

#[test]
fn a_refresh_reports_what_changed() {
    let (stage, _daemon) = ready();
    stage.aws.put("prod/first", "canary-3");
    let (code, out, _) = at_the_socket(&stage, &["refresh"]);
    assert_eq!((code, out.as_str()), (0, "changed  FIRST_KEY\n"));
    assert_eq!(stage.values(), json!({"FIRST_KEY": "canary-3", "SECOND_KEY": "canary-2"}));
}

#[test]
fn a_refresh_reports_that_nothing_changed() {
    let (stage, _daemon) = ready();
    let before = stage.stamp("env/keys.json");
    let (code, out, _) = at_the_socket(&stage, &["refresh"]);
    assert_eq!((code, out.as_str()), (0, "nothing changed\n"));
    assert_eq!(stage.stamp("env/keys.json"), before);
    assert_eq!(stage.aws.count("GetSecretValue"), 4);
}

#[test]
fn a_refresh_that_is_not_complete_says_why_and_fails() {
    let (stage, _daemon) = ready();
    stage.aws.fault(Fault::on("GetSecretValue").secret("prod/second").kind(FaultKind::InternalError));
    let report = stage.refresh();
    assert_eq!(report["complete"], false);
    assert!(report["problems"][0].as_str().unwrap().starts_with("key SECOND_KEY: "), "{report}");
    let (code, ..) = at_the_socket(&stage, &["status"]);
    assert_eq!(code, 0, "the status itself can be told");
}

#[test]
fn refreshes_asked_for_at_the_same_time_are_one() {
    let (stage, daemon) = ready();
    // While the daemon reads, others ask.
    stage.aws.fault(Fault::any().kind(FaultKind::Latency(Duration::from_secs(7))).times(2));
    stage.aws.put("prod/first", "canary-3");
    daemon.signal(Signal::HUP);
    until("the calls", || stage.aws.count("GetSecretValue") == 4);
    let reports: Vec<Value> = thread::scope(|scope| {
        let asking: Vec<_> = (0..5).map(|_| scope.spawn(|| stage.refresh())).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    for report in reports {
        assert_eq!(report, json!({"complete": true, "changed": [], "removed": [], "problems": []}));
    }
    assert_eq!(stage.aws.count("GetSecretValue"), 6);
    assert_eq!(daemon.metric("keytide_refreshes_total", &[]), 3.0);
}

#[test]
fn too_many_who_ask_are_told_so() {
    let (stage, daemon) = ready();
    stage.aws.fault(Fault::any().kind(FaultKind::Latency(Duration::from_secs(5))).times(2));
    daemon.signal(Signal::HUP);
    until("the calls", || stage.aws.count("GetSecretValue") == 4);
    let socket = stage.socket();
    let mut codes: Vec<u16> = thread::scope(|scope| {
        let asking: Vec<_> = (0..20).map(|_| scope.spawn(|| ask_socket(&socket, "POST", "/refresh").status)).collect();
        asking.into_iter().map(|asking| asking.join().unwrap()).collect()
    });
    codes.sort_unstable();
    assert_eq!(codes.iter().filter(|code| **code == 200).count(), 16, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 503).count(), 4, "{codes:?}");
    assert_eq!(daemon.metric("keytide_refreshes_total", &[]), 3.0);
}

#[test]
fn a_pause_between_requested_refreshes_holds_up_no_other() {
    let stage = stage();
    stage.config(&block("interval: 1s, jitter: 0", TWO));
    let daemon = stage.run();
    daemon.until_ready();
    stage.refresh();
    thread::scope(|scope| {
        scope.spawn(|| stage.refresh());
        // The second one waits for its time; the daemon's own go on.
        thread::sleep(Duration::from_millis(200));
        let before = daemon.metric("keytide_refreshes_total", &[]);
        thread::sleep(Duration::from_secs(5));
        assert!(daemon.metric("keytide_refreshes_total", &[]) >= before + 2.0, "the schedule stood still");
    });
}

#[test]
fn bad_arguments_end_with_64_and_help_with_0() {
    let stage = Stage::new();
    for bad in [
        &["run"][..],
        &[],
        &["frobnicate"],
        &["run", "--config", "x", "--timeout", "5s"],
        &["run", "--config", "x", "--once", "--timeout", "0s"],
        &["run", "--config", "x", "--once", "--timeout", "soon"],
        &["status", "--watch", "--output", "json"],
        &["completions", "basic"],
        &["run", "--config", "/nowhere/keytide.yaml"],
        &["check", "--config", "/nowhere/keytide.yaml"],
    ] {
        let output = stage.keytide(bad);
        assert_eq!(output.status.code(), Some(64), "{bad:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{bad:?}");
    }
    for good in [&["--help"][..], &["run", "--help"], &["--version"], &["help", "status"]] {
        let output = stage.keytide(good);
        assert_eq!(output.status.code(), Some(0), "{good:?}");
        assert!(stdout(&output).contains("keytide"), "{good:?}");
        assert!(output.stderr.is_empty(), "{good:?}");
    }
}

#[test]
fn completions_are_scripts_of_each_shell() {
    let stage = Stage::new();
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef keytide"), ("fish", "complete -c keytide")] {
        let output = stage.keytide(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        let script = stdout(&output);
        assert!(script.contains(word) && script.contains("accept-removals"), "{shell}");
    }
    let script = stage.write("completions.bash", stage.keytide(&["completions", "bash"]).stdout);
    assert!(std::process::Command::new("bash").arg("-n").arg(script).status().unwrap().success());
}

#[test]
fn the_schema_is_one_of_the_configuration() {
    let stage = Stage::new();
    let output = stage.keytide(&["schema"]);
    assert_eq!(output.status.code(), Some(0));
    let schema: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(schema["$schema"].as_str().unwrap().contains("json-schema.org"), "{schema}");
    let properties = schema["properties"].as_object().unwrap();
    assert!(properties.contains_key("keytide") && properties.contains_key("general_settings"));
    for setting in ["primary_secret", "on_missing", "version_stage", "allow_reserved", "hosted_keys", "call_timeout"] {
        assert!(schema.to_string().contains(&format!("\"{setting}\"")), "{setting}");
    }
}

#[test]
fn a_pipe_that_closes_early_is_no_failure() {
    let (stage, _daemon) = ready();
    let mut child = stage
        .command(&["status", "--socket", &stage.socket().display().to_string()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
