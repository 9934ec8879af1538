//! Removal is a decision, not an accident; and so is a step back.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Daemon, Stage, block, until};

const SELDOM: &str = "interval: 700h, call_timeout: 5s";

/// A daemon on the primary secret `app` with these members.
fn running(value: &Value) -> (Stage, Daemon) {
    let stage = Stage::new();
    stage.aws.put("app", &value.to_string());
    stage.config(&block(SELDOM, "  - files: {directory: \"{dir}/files\"}\nprimary_secret: {name: app}"));
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(stage.values(), *value);
    (stage, daemon)
}

/// The names of the keys that the daemon knows.
fn known(stage: &Stage) -> BTreeSet<String> {
    let status = stage.status();
    let keys = status["keys"].as_array().cloned().unwrap_or_default();
    keys.iter().filter_map(|key| Some(key["name"].as_str()?.to_owned())).collect()
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(ToOwned::to_owned).into()
}

fn removals(daemon: &Daemon) -> f64 {
    daemon.metric("keytide_key_removals_total", &[])
}

fn holds(daemon: &Daemon, reason: &str) -> f64 {
    daemon.metric("keytide_holds_total", &[reason])
}

fn refresh(stage: &Stage, more: &[&str]) -> (i32, String) {
    let socket = stage.socket().display().to_string();
    let output = stage.keytide(&[&["refresh", "--socket", &socket], more].concat());
    (output.status.code().unwrap_or(-1), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_member_that_disappears_is_removed_and_counted() {
    let (stage, daemon) = running(&json!({"A": "1", "B": "2", "C": "3"}));
    stage.aws.put("app", r#"{"A": "1", "C": "3"}"#);
    let (code, report) = refresh(&stage, &[]);
    assert_eq!((code, report.as_str()), (0, "removed  B\n"));
    assert_eq!(stage.values(), json!({"A": "1", "C": "3"}));
    assert!(!stage.path("files/B").exists() && stage.path("files/A").exists());
    assert_eq!((removals(&daemon), holds(&daemon, "removal")), (1.0, 0.0));
    daemon.until_log("keys removed: B");
    assert_eq!(known(&stage), names(["A", "C"]));
}

#[test]
fn half_of_four_members_may_go_at_once() {
    let (stage, daemon) = running(&json!({"A": "1", "B": "2", "C": "3", "D": "4"}));
    stage.aws.put("app", r#"{"A": "1", "B": "2"}"#);
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"A": "1", "B": "2"}));
    assert_eq!((removals(&daemon), holds(&daemon, "removal")), (2.0, 0.0));
}

#[test]
fn two_of_three_members_may_go_at_once() {
    let (stage, daemon) = running(&json!({"A": "1", "B": "2", "C": "3"}));
    stage.aws.put("app", r#"{"A": "1"}"#);
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"A": "1"}));
    assert_eq!(removals(&daemon), 2.0);
}

#[test]
fn most_of_four_members_are_held_until_the_next_read_agrees() {
    let all = json!({"A": "1", "B": "2", "C": "3", "D": "4"});
    let (stage, daemon) = running(&all);
    let before = stage.stamp("env/keys.json");
    stage.aws.put("app", r#"{"A": "changed"}"#);
    daemon.hang_up();
    assert_eq!(stage.values(), all, "the whole refresh is held");
    assert_eq!(stage.stamp("env/keys.json"), before);
    assert_eq!((removals(&daemon), holds(&daemon, "removal")), (0.0, 1.0));
    assert_eq!(daemon.metric("keytide_stale_keys", &["removal"]), 4.0);
    assert_eq!(stage.key_state("A"), "stale (removal)");
    assert_eq!(daemon.get("/readyz").status, 200);
    daemon.until_log("3 of 4 members are gone");
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"A": "changed"}));
    assert_eq!((removals(&daemon), holds(&daemon, "removal")), (3.0, 1.0));
    assert_eq!(stage.key_state("A"), "fresh");
    assert_eq!(known(&stage), names(["A"]));
}

#[test]
fn all_members_are_held_also_if_there_is_only_one() {
    for all in [json!({"A": "1"}), json!({"A": "1", "B": "2"}), json!({"A": "1", "B": "2", "C": "3", "D": "4"})] {
        let (stage, daemon) = running(&all);
        stage.aws.put("app", "{}");
        daemon.hang_up();
        assert_eq!(stage.values(), all);
        assert_eq!(holds(&daemon, "removal"), 1.0);
        daemon.hang_up();
        assert_eq!(stage.values(), json!({}));
        assert_eq!(daemon.get("/readyz").status, 200);
    }
}

#[test]
fn members_that_turn_to_null_are_gone_as_well() {
    let all = json!({"A": "1", "B": "2"});
    let (stage, daemon) = running(&all);
    stage.aws.put("app", r#"{"A": null, "B": null}"#);
    daemon.hang_up();
    assert_eq!(stage.values(), all);
    assert_eq!(holds(&daemon, "removal"), 1.0);
}

#[test]
fn a_held_removal_is_forgotten_when_the_members_come_back() {
    let all = json!({"A": "1", "B": "2", "C": "3", "D": "4"});
    let (stage, daemon) = running(&all);
    let before = stage.stamp("env/keys.json");
    stage.aws.put("app", "{}");
    daemon.hang_up();
    stage.aws.put("app", &all.to_string());
    daemon.hang_up();
    assert_eq!(stage.key_state("A"), "fresh");
    stage.aws.put("app", "{}");
    daemon.hang_up();
    assert_eq!(holds(&daemon, "removal"), 2.0, "two reads that are not in a row do not agree");
    assert_eq!(stage.values(), all);
    assert_eq!(stage.stamp("env/keys.json"), before);
}

#[test]
fn another_version_does_not_agree_with_a_held_removal() {
    let all = json!({"A": "1", "B": "2", "C": "3", "D": "4"});
    let (stage, daemon) = running(&all);
    stage.aws.put("app", r#"{"A": "1"}"#);
    daemon.hang_up();
    stage.aws.put("app", r#"{"B": "2"}"#);
    daemon.hang_up();
    assert_eq!(stage.values(), all);
    assert_eq!(holds(&daemon, "removal"), 2.0);
}

#[test]
fn people_accept_a_removal_at_once() {
    let (stage, daemon) = running(&json!({"A": "1", "B": "2", "C": "3", "D": "4"}));
    stage.aws.put("app", r#"{"A": "1"}"#);
    daemon.hang_up();
    assert_eq!(known(&stage), names(["A", "B", "C", "D"]));
    let (code, report) = refresh(&stage, &["--accept-removals"]);
    assert_eq!((code, report.as_str()), (0, "removed  B\nremoved  C\nremoved  D\n"));
    assert_eq!(stage.values(), json!({"A": "1"}));
}

#[test]
fn a_removal_that_nobody_held_yet_can_be_accepted_too() {
    let (stage, daemon) = running(&json!({"A": "1", "B": "2", "C": "3", "D": "4"}));
    stage.aws.put("app", "{}");
    let (code, report) = refresh(&stage, &["--accept-removals", "--output", "json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(code, 0);
    assert_eq!(report, json!({"complete": true, "changed": [], "removed": ["A", "B", "C", "D"], "problems": []}));
    assert_eq!(stage.values(), json!({}));
    assert_eq!((removals(&daemon), holds(&daemon, "removal")), (4.0, 0.0));
}

#[test]
fn a_refresh_that_holds_a_removal_says_how_to_accept_it() {
    let (stage, _daemon) = running(&json!({"A": "1", "B": "2", "C": "3", "D": "4"}));
    stage.aws.put("app", "{}");
    let (code, report) = refresh(&stage, &[]);
    assert_eq!(code, 1);
    assert!(report.contains("4 of 4 members are gone") && report.contains("--accept-removals"), "{report}");
}

#[test]
fn members_may_come_and_go_in_one_version() {
    let (stage, daemon) = running(&json!({"A": "1", "B": "2", "C": "3", "D": "4"}));
    stage.aws.put("app", r#"{"A": "1", "B": "2", "E": "5", "F": "6"}"#);
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"A": "1", "B": "2", "E": "5", "F": "6"}));
    assert_eq!(removals(&daemon), 2.0);
    assert_eq!(daemon.metric("keytide_key_changes_total", &[]), 6.0);
}

#[test]
fn a_primary_secret_that_is_no_object_leaves_the_last_good_values() {
    let all = json!({"A": "1", "B": "2"});
    let (stage, daemon) = running(&all);
    let before = stage.stamp("env/keys.json");
    let long = "x".repeat(65_536);
    for bad in ["canary {", "[\"canary\"]", "\"canary\"", "1", "null", "{\"A\": \"canary\"", "{} canary", &long] {
        stage.aws.put("app", bad);
        daemon.hang_up();
        assert_eq!(stage.key_state("A"), "stale (not_an_object)", "{bad:.20}");
        assert_eq!(stage.values(), all);
    }
    assert_eq!(stage.stamp("env/keys.json"), before);
    assert_eq!(daemon.metric("keytide_stale_keys", &["not_an_object"]), 2.0);
    assert_eq!(daemon.get("/readyz").status, 200);
    assert!(!daemon.log().contains("canary") && !stage.status().to_string().contains("canary"));
    stage.aws.put("app", r#"{"A": "1", "B": "3"}"#);
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"A": "1", "B": "3"}));
    assert_eq!(stage.key_state("A"), "fresh");
}

#[test]
fn a_binary_primary_secret_leaves_the_last_good_values() {
    let all = json!({"A": "1"});
    let (stage, daemon) = running(&all);
    stage.aws.put_binary("app", b"{\"A\": \"2\"}");
    daemon.hang_up();
    assert_eq!(stage.key_state("A"), "stale (not_an_object)");
    assert_eq!(stage.values(), all);
}

#[test]
fn a_listed_member_that_disappears_is_kept_and_stale() {
    let stage = Stage::new();
    stage.aws.put("app", r#"{"a": "1", "b": "2"}"#);
    let rest = "keys:\n  - {name: A, secret: app, member: a}\n  - {name: B, secret: app, member: b}\n  \
                - {name: URL, template: \"x://{A}\"}";
    stage.config(&block(SELDOM, rest));
    let daemon = stage.run();
    daemon.until_ready();
    stage.aws.put("app", r#"{"b": "3"}"#);
    let (code, report) = refresh(&stage, &[]);
    assert_eq!(code, 1);
    assert!(report.contains("changed  B\n") && report.contains("no member a"), "{report}");
    assert_eq!(stage.values(), json!({"A": "1", "B": "3", "URL": "x://1"}));
    assert_eq!(stage.key_state("A"), "stale (missing_member)");
    assert_eq!(stage.key_state("B"), "fresh");
    assert_eq!(stage.key_state("URL"), "stale (missing_member)");
    assert_eq!(daemon.metric("keytide_stale_keys", &["missing_member"]), 2.0);
    assert_eq!(removals(&daemon), 0.0);
    stage.aws.put("app", r#"{"a": "4", "b": "3"}"#);
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"A": "4", "B": "3", "URL": "x://4"}));
    assert_eq!(stage.key_state("A"), "fresh");
}

#[test]
fn a_listed_member_is_never_removed_with_those_that_came_wholesale() {
    let stage = Stage::new();
    stage.aws.put("app", r#"{"LISTED": "1", "B": "2"}"#);
    stage.config(&block(SELDOM, "primary_secret: {name: app}\nkeys: [{name: LISTED, member: LISTED}]"));
    let daemon = stage.run();
    daemon.until_ready();
    stage.aws.put("app", "{}");
    daemon.hang_up();
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"LISTED": "1"}));
    assert_eq!(stage.key_state("LISTED"), "stale (missing_member)");
}

#[test]
fn a_roll_back_is_applied_when_two_reads_agree() {
    let stage = Stage::new();
    stage.aws.put_dated("s", "old", 1_700_000_000_000);
    stage.aws.put_dated("s", "new", 1_700_000_001_000);
    stage.config(&block(SELDOM, "keys: [{name: A, secret: s}]"));
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(stage.values(), json!({"A": "new"}));
    stage.aws.rollback("s");
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"A": "new"}));
    assert_eq!(stage.key_state("A"), "stale (step_back)");
    assert_eq!(holds(&daemon, "step_back"), 1.0);
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"A": "old"}));
    assert_eq!(stage.key_state("A"), "fresh");
    assert_eq!(holds(&daemon, "step_back"), 1.0);
    stage.aws.rollback("s");
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"A": "new"}), "forward again needs no second read");
}

#[test]
fn a_roll_back_of_the_primary_secret_is_held_too() {
    let (stage, daemon) = running(&json!({"A": "1", "B": "2"}));
    stage.aws.put("app", r#"{"A": "2"}"#);
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"A": "2"}));
    stage.aws.rollback("app");
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"A": "2"}));
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"A": "1", "B": "2"}));
}

#[test]
fn a_step_back_is_noticed_also_over_a_restart() {
    let stage = Stage::new();
    stage.aws.put_dated("s", "old", 1_700_000_000_000);
    stage.aws.put_dated("s", "new", 1_700_000_001_000);
    stage.config(&block(SELDOM, "keys: [{name: A, secret: s}]"));
    let mut daemon = stage.run();
    daemon.until_ready();
    daemon.kill();
    stage.aws.rollback("s");
    let daemon = stage.run();
    until("the first refresh", || holds(&daemon, "step_back") == 1.0);
    assert_eq!(stage.values(), json!({"A": "new"}));
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"A": "old"}));
}
