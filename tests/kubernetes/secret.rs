//! What the Secret holds: what AWS has, what the configuration makes of it, and what others put there.

use std::{thread, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    stage::{KubeStage, SECRET, hub},
    support::{Daemon, until},
};

const KEY: &str = "keys: [{name: A, secret: prod/a}]";
/// Longer than what must not happen would take.
const MOMENT: Duration = Duration::from_millis(1500);
/// The most that one secret of AWS holds; sixteen of them are the most that a Secret holds.
const LARGEST: usize = 65_536;

/// A hub before its start, with `1` in `prod/a`.
fn stage(settings: &str, rest: &str) -> KubeStage {
    let stage = KubeStage::with(&hub(settings, rest));
    stage.stage.aws.put("prod/a", "1");
    stage
}

/// One that has written this.
fn written(settings: &str, rest: &str, values: &Value) -> (KubeStage, Daemon) {
    let stage = stage(settings, rest);
    let daemon = stage.run();
    stage.until_values(&daemon, values);
    until("the status", || stage.output()["state"] == "written");
    (stage, daemon)
}

/// Values as a Secret has them.
fn data(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), json!(STANDARD.encode(value)))).collect()
}

fn annotation(secret: &Value, name: &str) -> Value {
    secret["metadata"]["annotations"][name].clone()
}

#[test]
fn a_secret_is_made_and_each_change_in_aws_is_one_apply_to_the_state_that_was_seen() {
    let (stage, daemon) = written("", KEY, &json!({"A": "1"}));
    assert_eq!(stage.secret()["type"], "Opaque");
    let made = &stage.writes()[0];
    assert_eq!((made.status, made.body["metadata"].get("resourceVersion")), (Some(201), None));
    assert_eq!(made.content_type, "application/apply-patch+yaml");
    assert!(made.query.contains("fieldManager=keytide") && !made.query.contains("force=true"), "{}", made.query);
    for value in ["2", "3"] {
        let version = stage.version();
        stage.stage.aws.put("prod/a", value);
        daemon.hang_up();
        stage.until_values(&daemon, &json!({"A": value}));
        assert_eq!(stage.writes().last().unwrap().body["metadata"]["resourceVersion"], version);
    }
    // What somebody else did to it in between is seen too.
    stage.patch_and_tell(&json!({"metadata": {"labels": {"theirs": "yes"}}}));
    thread::sleep(MOMENT);
    let version = stage.version();
    stage.stage.aws.put("prod/a", "4");
    daemon.hang_up();
    stage.until_values(&daemon, &json!({"A": "4"}));
    assert_eq!(stage.writes().last().unwrap().body["metadata"]["resourceVersion"], version);
    assert_eq!(stage.writes().len(), 4);
    assert_eq!(stage.gate.count(|request| matches!(request.method.as_str(), "POST" | "PUT" | "DELETE")), 0);
    assert_eq!(daemon.metric("keytide_output_writes_total", &[]), 4.0);
    assert_eq!(daemon.metric("keytide_output_up", &[]), 1.0);
}

#[test]
fn keys_are_selected_renamed_and_made_of_others() {
    let keys = "keys:\n  - {name: A, secret: prod/a}\n  - {name: B, secret: prod/b, member: user}\n  - {name: C, secret: \
                prod/c}\n  - {name: URL, template: \"x://{B|url}:{A}@db\"}";
    let stage = KubeStage::with(&hub(", keys: [A, URL], rename: {A: tls.key, URL: url}", keys));
    stage.stage.aws.put("prod/a", "1");
    stage.stage.aws.put("prod/b", r#"{"user": "a b"}"#);
    stage.stage.aws.put("prod/c", "c");
    let daemon = stage.run();
    stage.until_values(&daemon, &json!({"tls.key": "1", "url": "x://a%20b:1@db"}));
    let versions = annotation(&stage.secret(), "keytide.dev/source-versions");
    let versions: Value = serde_json::from_str(versions.as_str().unwrap()).unwrap();
    let names: Vec<&String> = versions.as_object().unwrap().keys().collect();
    assert_eq!(names, ["prod/a", "prod/b"]);
}

#[test]
fn all_members_of_a_primary_secret_come_and_go() {
    let stage = KubeStage::with(&hub("", "primary_secret: {name: app}"));
    stage.stage.aws.put("app", r#"{"A": "1", "B": 2}"#);
    let daemon = stage.run();
    stage.until_values(&daemon, &json!({"A": "1", "B": "2"}));
    stage.stage.aws.put("app", r#"{"A": "1", "C": true}"#);
    daemon.hang_up();
    stage.until_values(&daemon, &json!({"A": "1", "C": "true"}));
}

#[test]
fn what_left_the_configuration_disappears_and_what_is_others_stays() {
    let keys = "keys: [{name: A, secret: prod/a}, {name: B, secret: prod/b}]";
    let stage = KubeStage::with(&hub(", labels: {app: web, tier: back}, annotations: {team: core, note: old}", keys));
    stage.stage.aws.put("prod/a", "1");
    stage.stage.aws.put("prod/b", "b");
    let daemon = stage.run();
    stage.until_values(&daemon, &json!({"A": "1", "B": "b"}));
    assert_eq!(stage.secret()["metadata"]["labels"], json!({"app": "web", "tier": "back"}));
    let theirs = json!({
        "metadata": {"labels": {"theirs": "yes"}, "annotations": {"theirs": "yes"}}, "data": {"THEIRS": "dGhlaXJz"},
    });
    stage.api.merge_patch(&stage.path(), &theirs);
    stage.config(&hub(", labels: {app: other}, annotations: {note: new}", KEY));
    stage.until_values(&daemon, &json!({"A": "1", "THEIRS": "theirs"}));
    let metadata = stage.secret()["metadata"].clone();
    assert_eq!(metadata["labels"], json!({"app": "other", "theirs": "yes"}));
    let annotations = metadata["annotations"].as_object().unwrap();
    let names: Vec<&str> =
        annotations.keys().map(String::as_str).filter(|name| !name.starts_with("keytide.dev/")).collect();
    assert_eq!((names, &annotations["note"]), (vec!["note", "theirs"], &json!("new")));
}

#[test]
fn each_type_is_made_as_it_is_asked_for() {
    for (kind, keys, values) in [
        ("kubernetes.io/tls", "A: tls.crt, B: tls.key", json!({"tls.crt": "1", "tls.key": "{}"})),
        (
            "kubernetes.io/dockerconfigjson",
            "A: other, B: .dockerconfigjson",
            json!({"other": "1", ".dockerconfigjson": "{}"}),
        ),
        ("kubernetes.io/basic-auth", "A: username, B: password", json!({"username": "1", "password": "{}"})),
        ("kubernetes.io/ssh-auth", "A: known, B: ssh-privatekey", json!({"known": "1", "ssh-privatekey": "{}"})),
        ("example.com/own", "A: a, B: b", json!({"a": "1", "b": "{}"})),
    ] {
        let stage = KubeStage::with(&hub(
            &format!(", type: {kind}, rename: {{{keys}}}"),
            "keys: [{name: A, secret: prod/a}, {name: B, secret: prod/b}]",
        ));
        stage.stage.aws.put("prod/a", "1");
        stage.stage.aws.put("prod/b", "{}");
        let daemon = stage.run();
        stage.until_values(&daemon, &values);
        assert_eq!(stage.secret()["type"], kind);
    }
}

#[test]
fn what_a_type_needs_is_checked_before_the_call() {
    for (kind, rename, parts) in [
        ("kubernetes.io/tls", "tls.crt", &["kubernetes.io/tls", "tls.key"][..]),
        ("kubernetes.io/dockerconfigjson", ".dockerconfigjson", &["JSON object", ".dockerconfigjson"]),
        ("kubernetes.io/basic-auth", "user", &["username", "password"]),
    ] {
        let (name, keys) = (format!(", type: {kind}, rename: {{A: {rename}}}"), "keys: [{name: A, secret: prod/a}]");
        let stage = stage(&name, keys);
        let daemon = stage.run();
        stage.until_output("failing", parts);
        thread::sleep(MOMENT);
        assert_eq!((stage.writes().len(), stage.namespace.secret(SECRET)), (0, None), "{kind}");
        assert_eq!((daemon.get("/readyz").status, daemon.metric("keytide_output_up", &[])), (503, 0.0));
    }
}

#[test]
fn a_secret_of_others_is_filled_once_they_made_it() {
    let stage = stage(", create: false, adopt: true", KEY);
    let daemon = stage.run();
    stage.until_output("failing", &["does not exist", "create: false"]);
    assert_eq!(daemon.get("/readyz").status, 503);
    assert_eq!(stage.writes().len(), 0);
    stage.make_secret(json!({"data": data(&[("THEIRS", "x")])}));
    stage.until_values(&daemon, &json!({"A": "1", "THEIRS": "x"}));
    daemon.until_ready();
    // It is gone again, and keytide does not make it.
    stage.api.delete(&stage.path());
    stage.until_output("failing", &["does not exist"]);
    thread::sleep(MOMENT);
    assert_eq!(stage.namespace.secret(SECRET), None);
}

#[test]
fn a_secret_of_others_is_not_touched_unless_it_shall_be_adopted() {
    let stage = stage("", KEY);
    stage.make_secret(json!({"data": data(&[("THEIRS", "x")])}));
    let version = stage.version();
    let daemon = stage.run();
    stage.until_output("failing", &["is not keytide's", "adopt: true"]);
    thread::sleep(MOMENT);
    assert_eq!((stage.version(), stage.writes().len()), (version, 0));
    stage.config(&hub(", adopt: true", KEY));
    stage.until_values(&daemon, &json!({"A": "1", "THEIRS": "x"}));
    stage.until_output("written", &[]);
}

#[test]
fn another_type_is_in_the_way_and_is_said() {
    let stage = stage(", adopt: true", KEY);
    stage.make_secret(json!({"type": "example.com/other"}));
    let daemon = stage.run();
    stage.until_output("failing", &["type example.com/other, not Opaque", "delete it", "type: example.com/other"]);
    assert_eq!(stage.writes().len(), 0);
    stage.api.delete(&stage.path());
    stage.until_values(&daemon, &json!({"A": "1"}));
    // One of its own as well, when the configuration asks for another type.
    stage.config(&hub(", type: example.com/new", KEY));
    stage.until_output("failing", &["type Opaque, not example.com/new"]);
    assert_eq!(stage.values(), json!({"A": "1"}));
}

#[test]
fn an_immutable_secret_is_refused_until_somebody_deletes_it() {
    let (stage, daemon) = written("", KEY, &json!({"A": "1"}));
    stage.patch_and_tell(&json!({"immutable": true}));
    thread::sleep(MOMENT);
    stage.until_output("written", &[]);
    let writes = stage.writes().len();
    stage.stage.aws.put("prod/a", "2");
    daemon.hang_up();
    stage.until_output("failing", &["immutable", "delete it"]);
    thread::sleep(MOMENT);
    assert_eq!((stage.values(), stage.writes().len()), (json!({"A": "1"}), writes));
    stage.api.delete(&stage.path());
    stage.until_values(&daemon, &json!({"A": "2"}));
    stage.until_output("written", &[]);
}

#[test]
fn a_conflict_names_the_other_manager_and_the_field_and_force_takes_it() {
    let stage = stage(", adopt: true", KEY);
    let theirs = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "data": data(&[("A", "theirs"), ("B", "b")]),
    });
    stage.api.apply(&stage.path(), &theirs, "argocd-controller", false);
    let daemon = stage.run();
    stage.until_output("failing", &["data.A", "argocd-controller", "force: true"]);
    assert_eq!(stage.values(), json!({"A": "theirs", "B": "b"}));
    stage.config(&hub(", adopt: true, force: true", KEY));
    stage.until_values(&daemon, &json!({"A": "1", "B": "b"}));
    stage.until_output("written", &[]);
    assert!(stage.writes().last().unwrap().query.contains("force=true"));
}

/// So many keys, each with the most that AWS keeps in a secret.
fn large(count: usize) -> String {
    let keys: Vec<String> = (0..count).map(|number| format!("{{name: K{number}, secret: large/{number}}}")).collect();
    format!("keys: [{}]", keys.join(", "))
}

#[test]
fn a_mebibyte_is_written_and_one_byte_more_is_refused_before_the_call() {
    let stage = KubeStage::with(&hub("", &large(16)));
    for number in 0..16 {
        stage.stage.aws.put(&format!("large/{number}"), &"x".repeat(LARGEST));
    }
    stage.stage.aws.put("large/16", "x");
    let daemon = stage.run();
    until("the Secret", || stage.namespace.secret(SECRET).is_some());
    let values = stage.values();
    let sizes = values.as_object().unwrap().values().map(|value| value.as_str().unwrap().len());
    assert_eq!(sizes.sum::<usize>(), 1024 * 1024, "{}", daemon.log());
    let writes = stage.writes().len();
    stage.config(&hub("", &large(17)));
    stage.until_output("failing", &["1048577 bytes", "1048576"]);
    assert_eq!((stage.writes().len(), stage.values() == values), (writes, true));
}

#[test]
fn bytes_that_are_no_text_are_carried_as_base64_and_those_of_others_are_left_alone() {
    let stage = stage(", adopt: true", "keys: [{name: BLOB, secret: blob}]");
    stage.stage.aws.put_binary("blob", &[0, 255, 254]);
    stage.make_secret(json!({"data": {"THEIRS": STANDARD.encode([0, 255, 254])}}));
    let daemon = stage.run();
    until("it", || stage.secret()["data"]["BLOB"] == STANDARD.encode("AP/+"));
    stage.stage.aws.put_binary("blob", &[1]);
    daemon.hang_up();
    until("the change", || stage.secret()["data"]["BLOB"] == STANDARD.encode("AQ=="));
    assert_eq!(stage.secret()["data"]["THEIRS"], STANDARD.encode([0, 255, 254]));
}

#[test]
fn the_annotations_are_of_the_source_and_of_no_clock_and_no_value() {
    let stage = stage("", KEY);
    let id = stage.stage.aws.put_dated("prod/a", "a value of its own", 1_000_000_000_123);
    let mut daemon = stage.run();
    stage.until_values(&daemon, &json!({"A": "a value of its own"}));
    let annotations = stage.secret()["metadata"]["annotations"].clone();
    assert_eq!(annotations["keytide.dev/source-versions"], json!({"prod/a": id}).to_string());
    assert_eq!(annotations["keytide.dev/source-time"], "2001-09-09T01:46:40.123Z");
    let names: Vec<&String> = annotations.as_object().unwrap().keys().collect();
    assert_eq!(names, ["keytide.dev/content", "keytide.dev/source-time", "keytide.dev/source-versions"]);
    let digest = Sha256::digest("a value of its own")
        .iter()
        .take(4)
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    assert!(!annotations.to_string().contains(&digest), "{annotations}");
    // Whoever writes it, and whenever: it is the same.
    daemon.signal(rustix::process::Signal::TERM);
    daemon.wait();
    stage.api.delete(&stage.path());
    let pod = stage.pod("keytide-1");
    pod.config(&hub("", KEY));
    let other = pod.run();
    stage.until_values(&other, &json!({"A": "a value of its own"}));
    assert_eq!(stage.secret()["metadata"]["annotations"], annotations);
    // Another version with the same value changes the versions, and not what workloads are restarted for.
    let next = stage.stage.aws.put("prod/a", "a value of its own");
    other.hang_up();
    let versions = json!({"prod/a": next}).to_string();
    until("the version", || annotation(&stage.secret(), "keytide.dev/source-versions") == versions);
    assert_eq!(annotation(&stage.secret(), "keytide.dev/content"), annotations["keytide.dev/content"]);
}

#[test]
fn a_key_that_aws_no_longer_has_stays_with_its_last_good_value() {
    let (stage, daemon) = written("", KEY, &json!({"A": "1"}));
    let version = stage.version();
    stage.stage.aws.remove("prod/a");
    daemon.hang_up();
    until("it to be stale", || stage.stage.key_state("A").starts_with("stale"));
    thread::sleep(MOMENT);
    assert_eq!((stage.values(), stage.version()), (json!({"A": "1"}), version));
    assert_eq!(stage.output()["state"], "written");
}
