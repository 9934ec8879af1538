//! What the spool shows of itself: metrics, probes, status and log.

use std::{fs, os::unix::fs::PermissionsExt as _};

use keytide_emulator::{Fault, FaultKind};
use serde_json::{Value, json};

use crate::{
    pushing::{leave, leave_as, spool, until_idle, up, with_spool},
    support::{Daemon, Stage, patiently, stdout, until},
};

fn entries(daemon: &Daemon, state: &str) -> f64 {
    daemon.metric("keytide_spool_entries", &[&format!("state=\"{state}\"")])
}

fn status_text(stage: &Stage) -> String {
    stdout(&stage.keytide(&["status", "--socket", &stage.socket().display().to_string()]))
}

#[test]
fn each_metric_of_the_spool_moves_as_it_is_documented() {
    let stage = with_spool(Stage::new(), &up("prefix: app/, rate: 25"));
    for name in ["app/moved", "app/gone", "app/rotated"] {
        stage.aws.put(name, "1");
    }
    let daemon = stage.run();
    daemon.until_ready();
    // All are there from the first scrape on.
    let body = daemon.get("/metrics").body;
    for line in fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/METRICS.md")).unwrap().lines() {
        if let Some(name) = line.strip_prefix("| `keytide_spool").and_then(|rest| rest.split('`').next()) {
            assert!(body.contains(&format!("\nkeytide_spool{name}")), "keytide_spool{name} in:\n{body}");
        }
    }
    for state in ["waiting", "claimed", "failed", "unreadable", "ignored"] {
        assert_eq!(entries(&daemon, state), 0.0, "{state}");
    }
    assert_eq!(daemon.metric("keytide_spool_oldest_claim_timestamp_seconds", &[]), 0.0);
    assert_eq!(daemon.metric("keytide_spool_write_rate", &[]), 25.0);

    leave(&stage, &json!({"op": "create", "name": "app/new", "value": "1"}));
    leave(&stage, &json!({"op": "rotate", "name": "app/rotated", "value": "2"}));
    leave(&stage, &json!({"op": "rename", "name": "app/moved", "new_name": "app/moved-2"}));
    leave(&stage, &json!({"op": "delete", "name": "app/gone"}));
    until_idle(&stage, &daemon);
    for operation in ["create", "rotate", "rename", "delete"] {
        let label = format!("operation=\"{operation}\"");
        assert_eq!(daemon.metric("keytide_spool_confirmed_total", &[&label]), 1.0, "{operation}");
    }
    assert_eq!(daemon.metric("keytide_spool_confirmation_duration_seconds_count", &[]), 4.0);
    assert!(daemon.metric("keytide_spool_confirmation_duration_seconds_sum", &[]) > 0.0);
    assert_eq!(daemon.metric("keytide_spool_confirmation_duration_seconds_bucket", &["le=\"3600\""]), 4.0);
    assert_eq!(daemon.metric("keytide_spool_new_secrets_total", &[]), 1.0, "what is renamed is no secret more");
    until("the busiest secret", || daemon.metric("keytide_spool_busiest_secret_versions", &[]) == 1.0);

    // One that waits, and what is behind it.
    stage.aws.fault(Fault::any().secret("app/new").kind(FaultKind::InternalError));
    for value in ["2", "3", "4", "5"] {
        leave(&stage, &json!({"op": "rotate", "name": "app/new", "value": value}));
    }
    until("the trouble", || daemon.metric("keytide_spool_retries_total", &["rotate", "reason=\"unavailable\""]) >= 2.0);
    until("the claims", || entries(&daemon, "claimed") >= 1.0);
    let oldest = daemon.metric("keytide_spool_oldest_claim_timestamp_seconds", &[]);
    let said: Value = spool(&stage);
    let shown: jiff::Timestamp = said["oldest"].as_str().unwrap().parse().unwrap();
    assert_eq!(oldest, f64::from(u32::try_from(shown.as_second()).unwrap()), "the same in both");
    stage.aws.clear_faults();
    until_idle(&stage, &daemon);
    assert_eq!(stage.aws.value("app/new").as_deref(), Some("5"));
    let folded = daemon.metric("keytide_spool_folded_total", &[]);
    let confirmed = daemon.metric("keytide_spool_confirmed_total", &[]);
    assert_eq!(folded + confirmed, 8.0, "each entry is one or the other");
    assert!(folded >= 1.0);
    until("no claim", || daemon.metric("keytide_spool_oldest_claim_timestamp_seconds", &[]) == 0.0);

    // And those that never go.
    leave(&stage, &json!({"op": "rename", "name": "app/nothing", "new_name": "app/b"}));
    leave(&stage, &json!({"op": "create", "name": "elsewhere/a", "value": "1"}));
    leave_as(&stage, ".json", "{");
    leave_as(&stage, ".json", "x".repeat(600 * 1024));
    leave_as(&stage, ".txt", "no entry");
    let closed = leave_as(&stage, ".tmp", "{}");
    let path = stage.path("spool/in").join(&closed);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    fs::rename(&path, path.with_extension("json")).unwrap();
    let all = || {
        entries(&daemon, "failed") == 4.0 && entries(&daemon, "unreadable") == 1.0 && entries(&daemon, "ignored") == 1.0
    };
    assert!(patiently(all), "{}", daemon.get("/metrics").body);
    for (operation, reason) in
        [("rename", "absent"), ("unknown", "not_allowed"), ("unknown", "malformed"), ("unknown", "too_large")]
    {
        let labels = [format!("operation=\"{operation}\""), format!("reason=\"{reason}\"")];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        assert_eq!(daemon.metric("keytide_spool_failed_total", &labels), 1.0, "{operation} {reason}");
    }
    assert_eq!(daemon.metric("keytide_spool_failed_total", &[]), 4.0);

    // The status says the same.
    until("the same of the status", || {
        let spool = spool(&stage);
        spool["failed"] == 4
            && spool["unreadable"] == 1
            && spool["ignored"] == 1
            && spool["claimed"] == 0
            && spool["waiting"] == 0
    });
    let said = spool(&stage);
    assert_eq!(said["confirmed"].as_f64(), Some(confirmed));
    assert_eq!(said["writes_per_second"].as_f64(), Some(25.0));
    assert_eq!(said["problems"], json!([]));
    assert!(said["last_confirmed"].is_string() && said["oldest"].is_null() && said["trouble"].is_null(), "{said}");
    let text = status_text(&stage);
    for part in [
        format!("SPOOL  {}", stage.path("spool/in").display()).as_str(),
        "claimed 0; waiting 0; confirmed",
        "FAILED 4 (`keytide spool list`); unreadable 1",
        "ignored 1 files",
        "writes at most 25.0 a second",
    ] {
        assert!(text.contains(part), "{part} in:\n{text}");
    }
    // Each is said once; of those that nobody understands, once for each reason.
    let log = daemon.log();
    assert_eq!(log.matches("it is kept for 7 days").count(), 4, "{log}");
    assert_eq!(log.matches("may not read it").count(), 1, "{log}");
    assert!(log.contains(path.with_extension("json").file_name().unwrap().to_str().unwrap()), "{log}");
}

#[test]
fn the_status_names_what_waits_and_the_probes_name_nothing() {
    let stage = with_spool(Stage::new(), &up("prefix: app/, rate: none"));
    let daemon = stage.run();
    daemon.until_ready();
    stage.aws.fault(Fault::any().kind(FaultKind::InternalError));
    for n in 0..15 {
        leave(&stage, &json!({"op": "create", "name": format!("app/hidden-{n:02}"), "value": "1"}));
    }
    leave(&stage, &json!({"op": "create", "name": "elsewhere/hidden", "value": "1"}));
    until("the trouble", || spool(&stage)["problems"].as_array().is_some_and(|problems| problems.len() == 10));
    until("the failure", || spool(&stage)["failed"] == 1);
    let said = spool(&stage);
    assert_eq!(said["claimed"], 15);
    assert!(said["oldest"].is_string(), "{said}");
    for problem in said["problems"].as_array().unwrap() {
        assert_eq!(problem["reason"], "unavailable", "{problem}");
        assert_eq!(problem["operation"], "create", "{problem}");
        assert!(problem["attempts"].as_u64() >= Some(1), "{problem}");
        assert!(problem["subject"].as_str().unwrap().starts_with("app/hidden-"), "{problem}");
        assert!(
            problem["message"].as_str().unwrap().contains("CreateSecret")
                || problem["message"].as_str().unwrap().contains("DescribeSecret"),
            "{problem}"
        );
    }
    let text = status_text(&stage);
    assert!(text.contains("! create app/hidden-00: unavailable ("), "{text}");
    assert!(text.contains("claimed 15, the oldest for "), "{text}");
    for path in ["/metrics", "/readyz", "/livez", "/startupz"] {
        let answer = daemon.get(path);
        assert_eq!(answer.status, 200, "an AWS that is away takes no pod out of service: {path}");
        for word in ["hidden", "app/", "elsewhere", "-test-", "spool/in"] {
            assert!(!answer.body.contains(word), "{word} in {path}:\n{}", answer.body);
        }
    }
    assert_eq!(daemon.log().matches("an entry waits").count(), 1, "{}", daemon.log());
    stage.aws.clear_faults();
    until_idle(&stage, &daemon);
    assert_eq!(spool(&stage)["problems"], json!([]));
}

#[test]
fn a_spool_that_is_gone_is_counted_and_shown_until_it_is_back() {
    let stage = with_spool(Stage::new(), &up("prefix: app/"));
    let daemon = stage.run();
    leave(&stage, &json!({"op": "create", "name": "app/first", "value": "1"}));
    until_idle(&stage, &daemon);
    assert_eq!(daemon.metric("keytide_spool_errors_total", &[]), 0.0);
    let (spool_path, aside) = (stage.path("spool/in"), stage.path("spool/aside"));
    fs::rename(&spool_path, &aside).unwrap();
    stage.make_directory("spool/in", 0o1733);
    // Where the watch is: a hint, and nothing that is taken from there.
    fs::write(aside.join("a.json"), "{}").unwrap();
    until("the trouble", || daemon.metric("keytide_spool_errors_total", &[]) >= 2.0);
    until("the same of the status", || spool(&stage)["trouble"].is_string());
    assert!(status_text(&stage).contains("! the spool cannot be used: "), "{}", status_text(&stage));
    assert_eq!(daemon.get("/livez").status, 200);
    assert_eq!(daemon.log().matches("the spool cannot be used").count(), 1, "said once: {}", daemon.log());
    fs::remove_file(aside.join("a.json")).unwrap();
    fs::remove_dir(&spool_path).unwrap();
    fs::rename(&aside, &spool_path).unwrap();
    until("no trouble", || spool(&stage)["trouble"].is_null());
    leave(&stage, &json!({"op": "create", "name": "app/second", "value": "1"}));
    until("the second entry", || stage.aws.value("app/second").is_some());
    assert_eq!(daemon.log().matches("the spool can be used again").count(), 1, "{}", daemon.log());
}
