//! What `kubectl describe` shows of keytide's work; and that no value is anywhere but in the Secret.

use std::{thread, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keytide_emulator::{Fault, FaultKind};
use serde_json::{Value, json};

use crate::{
    control_plane::ControlPlane,
    gate::Fault as Cut,
    stage::{KubeStage, LEASE, SECRET, hub},
    support::{Daemon, SECRET_ACCESS_KEY, stderr, stdout, until},
};

const KEY: &str = "keys: [{name: A, secret: prod/a}]";
/// Longer than what must not happen would take.
const MOMENT: Duration = Duration::from_millis(1500);
const CANARIES: [&str; 5] =
    ["canary-first-5b1f07", "canary-second-e3a9c2", "canary-theirs-77d0aa", "canary-member-1c9b3e", SECRET_ACCESS_KEY];

fn stage(settings: &str) -> (KubeStage, Daemon) {
    let stage = KubeStage::with(&hub(settings, KEY));
    stage.stage.aws.put("prod/a", "1");
    let daemon = stage.run();
    (stage, daemon)
}

/// The Event of a reason.
fn event(stage: &KubeStage, reason: &str) -> Option<Value> {
    stage.namespace.events().into_iter().find(|event| event["reason"] == reason)
}

/// Waits for it, and returns its type and text.
fn told(stage: &KubeStage, reason: &str) -> (String, String) {
    until(reason, || event(stage, reason).is_some());
    let event = event(stage, reason).unwrap();
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    assert_eq!((text("reportingController"), &event["regarding"]["name"]), ("keytide".to_owned(), &json!(SECRET)));
    (text("type"), text("note"))
}

/// How often Events were told.
fn tells(stage: &KubeStage) -> usize {
    stage.gate.count(|request| request.path.contains("/events/"))
}

#[test]
fn the_life_of_a_secret_is_told_in_its_events() {
    let (stage, daemon) = stage("");
    assert_eq!(told(&stage, "Synced"), ("Normal".to_owned(), "1 keys are as AWS Secrets Manager has them".to_owned()));
    stage.stage.aws.put("prod/a", "2");
    daemon.hang_up();
    assert_eq!(told(&stage, "Updated"), ("Normal".to_owned(), "1 keys written".to_owned()));
    let uid = stage.secret()["metadata"]["uid"].clone();
    assert_eq!(event(&stage, "Updated").unwrap()["regarding"]["uid"], uid, "describe finds it by this");
    stage.api.merge_patch(&stage.path(), &json!({"data": {"A": "eA=="}}));
    assert_eq!(told(&stage, "Repaired").0, "Warning");
    stage.stage.aws.fault(Fault::on("GetSecretValue"));
    daemon.hang_up();
    let (kind, note) = told(&stage, "Stale");
    assert_eq!(kind, "Warning");
    assert!(note.contains("A (throttled)"), "{note}");
    stage.stage.aws.clear_faults();
    daemon.hang_up();
    assert_eq!(told(&stage, "Recovered"), ("Normal".to_owned(), "all values are fresh again".to_owned()));
    assert!(event(&stage, "Refused").is_none() && event(&stage, "Contested").is_none());
}

#[test]
fn what_stands_in_the_way_is_told_and_that_it_is_over() {
    let stage = KubeStage::with(&hub("", KEY));
    stage.stage.aws.put("prod/a", "1");
    stage.make_secret(json!({}));
    let daemon = stage.run();
    let (kind, note) = told(&stage, "Refused");
    assert_eq!(kind, "Warning");
    assert!(note.contains("adopt: true"), "{note}");
    stage.api.delete(&stage.path());
    stage.until_values(&daemon, &json!({"A": "1"}));
    assert_eq!(told(&stage, "Recovered").0, "Normal");
}

#[test]
fn the_same_is_not_told_again_and_again() {
    let (stage, daemon) = stage("");
    told(&stage, "Synced");
    stage.stage.aws.fault(Fault::on("GetSecretValue"));
    daemon.hang_up();
    told(&stage, "Stale");
    thread::sleep(MOMENT);
    let before = tells(&stage);
    for _ in 0..20 {
        daemon.hang_up();
    }
    assert_eq!(tells(&stage), before);
    stage.stage.aws.clear_faults();
    for value in 0..20 {
        stage.stage.aws.put("prod/a", &format!("value {value}"));
        daemon.hang_up();
        stage.until_values(&daemon, &json!({"A": format!("value {value}")}));
    }
    thread::sleep(MOMENT);
    // It is fresh again, and changed.
    assert!(tells(&stage) <= before + 2, "{}", tells(&stage) - before);
    assert!(stage.namespace.events().len() <= 4);
}

/// Everything that somebody without the right to read the Secret could see.
fn seen(stage: &KubeStage, daemon: &Daemon) -> String {
    let (socket, config) =
        (stage.stage.socket().display().to_string(), stage.stage.path("keytide.yaml").display().to_string());
    let mut text = daemon.log();
    for arguments in [
        &["--log-level", "trace", "status", "--socket", &socket][..],
        &["--log-level", "trace", "status", "--output", "json", "--socket", &socket],
        &["--log-level", "trace", "refresh", "--socket", &socket],
        &["--log-level", "trace", "check", "--online", "--config", &config],
        &["--log-level", "trace", "policy", "--kubernetes", "--config", &config],
    ] {
        let output = stage.stage.keytide(arguments);
        text += &stdout(&output);
        text += &stderr(&output);
    }
    for path in ["/metrics", "/readyz", "/livez", "/startupz"] {
        text += &daemon.get(path).body;
    }
    for event in stage.namespace.events() {
        text += &event.to_string();
    }
    text += &stage.namespace.lease(LEASE).unwrap_or_default().to_string();
    text += &stage.namespace.secret(SECRET).unwrap_or_default()["metadata"].to_string();
    // All that it sent, but for the values of the Secret.
    for mut request in stage.gate.requests() {
        if let Some(body) = request.body.as_object_mut() {
            body.remove("data");
        }
        for part in [request.path, request.query, request.body.to_string()] {
            text += &part;
        }
    }
    text
}

#[track_caller]
fn assert_clean(stage: &KubeStage, daemon: &Daemon) {
    let seen = seen(stage, daemon);
    let token = stage.namespace.token();
    for canary in CANARIES.into_iter().chain([&*token]) {
        for spelled in [canary.to_owned(), STANDARD.encode(canary)] {
            let at = seen.find(&spelled);
            let around = at.map(|at| seen.chars().skip(at.saturating_sub(300)).take(600).collect::<String>());
            assert!(at.is_none(), "{spelled}: {around:?}");
        }
    }
}

#[test]
fn no_value_is_anywhere_but_in_the_secret() {
    let [first, second, theirs, member, _] = CANARIES;
    let mut stage = KubeStage::new(ControlPlane::shared());
    stage.stage.env("RUST_LOG", "trace").env("LOG_SENSITIVE_BODIES", "true").env("RUST_BACKTRACE", "full");
    let keys = "keys:\n  - {name: A, secret: prod/a}\n  - {name: M, secret: prod/json, member: m}\n  - {name: URL, template: \
                \"x://{A}\"}";
    let config = stage.config(&hub(", adopt: true", keys));
    stage.grant(&config);
    stage.stage.aws.put("prod/a", first);
    stage.stage.aws.put("prod/json", &json!({"m": member}).to_string());
    stage.make_secret(json!({"data": {"THEIRS": STANDARD.encode(theirs)}}));
    let daemon = stage.stage.run_with(&["--log-level", "trace", "run", "--config", &config.display().to_string()]);
    let url = format!("x://{first}");
    stage.until_values(&daemon, &json!({"A": first, "M": member, "URL": url, "THEIRS": theirs}));
    stage.until_output("written", &[]);
    assert_clean(&stage, &daemon);
    // The API server's own words quote what was sent.
    for status in [400, 409, 422, 500] {
        let echo = format!("Invalid value: \"{second}\" {}", STANDARD.encode(second));
        let fault = stage.gate.fault(Cut::answer(status).message(&echo).method("PATCH").path("/secrets/").times(1));
        stage.stage.aws.put("prod/a", &format!("{second} {status}"));
        daemon.hang_up();
        until("the fault", || stage.gate.struck(fault) == 1);
        let url = format!("x://{second} {status}");
        stage.until_values(
            &daemon,
            &json!({"A": format!("{second} {status}"), "M": member, "URL": url, "THEIRS": theirs}),
        );
    }
    // So do AWS's.
    stage.stage.aws.fault(Fault::any().kind(FaultKind::EchoValue));
    daemon.hang_up();
    stage.stage.aws.clear_faults();
    // Somebody edits, takes and deletes it.
    stage.api.merge_patch_as(&stage.path(), &json!({"data": {"A": STANDARD.encode(theirs)}}), "kubectl-edit");
    until("a repair", || daemon.metric("keytide_output_repairs_total", &[]) >= 1.0);
    stage.api.delete(&stage.path());
    until("another", || daemon.metric("keytide_output_repairs_total", &[]) >= 2.0);
    stage.stage.aws.put("prod/json", second);
    daemon.hang_up();
    thread::sleep(MOMENT);
    assert_clean(&stage, &daemon);
}
