//! From the start to the first file, over restarts, and to the end.

use std::{fs, os::unix::fs::PermissionsExt as _};

use keytide_emulator::{Fault, FaultKind};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Stage, USER, block, is_root, stderr, stdout, until};

const SELDOM: &str = "interval: 700h, call_timeout: 5s";
const TWO: &str = "keys:\n  - {name: A, secret: prod/a}\n  - {name: B, secret: prod/b}\n";
const STATE: &str = "env/.keytide/last-good.json";

fn table(stage: &Stage) -> String {
    stdout(&stage.keytide(&["status", "--socket", &stage.socket().display().to_string()]))
}

/// A stage whose two keys were read and written by a daemon that has ended.
fn after_a_run(refresh: &str) -> Stage {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    stage.aws.put("prod/b", "2");
    stage.config(&block(refresh, TWO));
    let mut daemon = stage.run();
    daemon.until_ready();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    assert_eq!(stage.values(), json!({"A": "1", "B": "2"}));
    stage
}

#[test]
fn the_first_file_waits_until_every_listed_key_was_found() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    stage.config(&block("interval: 1s, on_missing: fail", TWO));
    let daemon = stage.run();
    until("the first try", || stage.key_state("B") == "missing (absent)");
    assert_eq!(stage.key_state("A"), "fresh");
    assert!(!stage.path("env/keys.json").exists());
    assert_eq!(daemon.get("/readyz").status, 503);
    assert_eq!(daemon.get("/startupz").status, 503);
    assert_eq!(daemon.get("/livez").status, 200);
    daemon.until_log("secret prod/b: failed to call GetSecretValue");
    let table = table(&stage);
    assert!(table.contains("NOT ready") && table.contains("no such secret"), "{table}");
    stage.aws.put("prod/b", "2");
    daemon.until_ready();
    assert_eq!(stage.values(), json!({"A": "1", "B": "2"}));
    assert_eq!(daemon.get("/startupz").status, 200);
}

#[test]
fn the_status_says_what_is_missing_of_a_primary_secret_too() {
    let stage = Stage::new();
    stage.config(&block("interval: 1s", "primary_secret: {name: prod/app}"));
    let daemon = stage.run();
    daemon.until_log("no such secret");
    let table = table(&stage);
    assert!(table.contains("prod/app") && table.contains("no such secret"), "{table}");
}

#[test]
fn with_skip_a_key_that_aws_does_not_have_holds_up_nothing_and_comes_later() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    stage.config(&block("interval: 1s, on_missing: skip", TWO));
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(stage.values(), json!({"A": "1"}));
    assert_eq!(stage.key_state("B"), "missing (absent)");
    assert_eq!(daemon.metric("keytide_keys", &["missing"]), 1.0);
    stage.aws.put("prod/b", "2");
    stage.until_values(&json!({"A": "1", "B": "2"}));
}

#[test]
fn with_skip_a_key_that_could_not_be_looked_for_holds_up_the_start() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    stage.aws.put("prod/b", "2");
    stage.config(&block("interval: 1s, on_missing: skip", TWO));
    stage.aws.fault(Fault::on("GetSecretValue").secret("prod/b"));
    let daemon = stage.run();
    until("two tries", || daemon.metric("keytide_refreshes_total", &[]) >= 2.0);
    assert_eq!(daemon.get("/readyz").status, 503);
    assert!(!stage.path("env/keys.json").exists());
    stage.aws.clear_faults();
    daemon.until_ready();
    assert_eq!(stage.values(), json!({"A": "1", "B": "2"}));
}

#[test]
fn a_start_that_takes_too_long_ends_with_what_is_missing_and_why() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "canary");
    // Soon, or on a busy machine later.
    let (mut limit, mut log) = ("", String::new());
    for next in ["1s", "8s"] {
        stage.config(&block(&format!("interval: 1s, startup_timeout: {next}"), TWO));
        let mut daemon = stage.run();
        assert_eq!(daemon.wait(), 1);
        (limit, log) = (next, daemon.log());
        if !log.contains("not read yet") {
            break;
        }
    }
    let last = log.lines().last().unwrap();
    assert!(last.contains(&format!("the first refresh was not complete within {limit}")), "{log}");
    assert!(last.contains("key B: failed to call GetSecretValue for secret prod/b"), "{log}");
    assert!(last.contains("ResourceNotFoundException") && !last.contains("key A"), "{log}");
    assert!(!log.contains("canary"));
    assert!(!stage.path("env/keys.json").exists());
}

#[test]
fn a_start_that_is_asked_to_end_says_what_was_missing() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "canary");
    stage.config(&block("interval: 1s", TWO));
    let mut daemon = stage.run();
    until("a refresh", || daemon.metric("keytide_refreshes_total", &[]) >= 1.0);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    let log = daemon.log();
    assert!(
        log.contains("asked to end before the first refresh was complete; missing: key B: failed to call"),
        "{log}"
    );
    assert!(!log.contains("canary"));
}

#[test]
fn one_that_is_replaced_or_was_complete_does_not() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    stage.config(&block("interval: 1s", TWO));
    let mut daemon = stage.run();
    until("a refresh", || daemon.metric("keytide_refreshes_total", &[]) >= 1.0);
    stage.config(&block("interval: 1s", "keys: [{name: A, secret: prod/a}]"));
    until("the second process", || daemon.log().matches("on http://").count() == 2);
    daemon.until_ready();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    assert!(!daemon.log().contains("asked to end before"), "{}", daemon.log());
}

#[test]
fn a_start_during_a_hanging_call_ends_in_time_as_well() {
    let stage = Stage::new();
    stage.config(&block("interval: 1s, startup_timeout: 1s, call_timeout: 4m", TWO));
    stage.aws.fault(Fault::any().kind(FaultKind::Hang));
    let mut daemon = stage.run();
    assert_eq!(daemon.wait(), 1);
    assert!(daemon.log().contains("key A: not read yet"), "{}", daemon.log());
}

#[test]
fn a_wrong_region_is_told() {
    let stage = Stage::new();
    stage.aws.put_in("eu-central-1", "prod/a", "1");
    stage.config(&block("interval: 1s", "keys: [{name: A, secret: prod/a}]"));
    let output = stage.once_in_vain("1s");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("correct its name or the region"), "{}", stderr(&output));
}

#[test]
fn once_ends_with_the_files_written() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    stage.aws.put("prod/b", "2");
    stage.config(&block(SELDOM, TWO));
    // Retried until it is complete.
    stage.aws.fault(Fault::on("GetSecretValue").secret("prod/b").times(1).kind(FaultKind::InternalError));
    let output = stage.once();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stage.values(), json!({"A": "1", "B": "2"}));
    assert!(!stage.socket().exists(), "no door is opened");
}

#[test]
fn once_fails_after_its_time_with_what_is_missing() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    stage.config(&block(SELDOM, TWO));
    let output = stage.once_in_vain("1s");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("key B: failed to call GetSecretValue for secret prod/b"), "{}", stderr(&output));
    assert!(!stage.path("env/keys.json").exists());
}

#[test]
fn once_does_not_take_what_was_kept_for_read() {
    let stage = after_a_run(SELDOM);
    stage.aws.set_down(true);
    let output = stage.once_in_vain("1s");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("key A: failed to call"), "{}", stderr(&output));
    assert_eq!(stage.values(), json!({"A": "1", "B": "2"}), "and the file stays");
}

#[test]
fn once_with_skip_ends_without_the_keys_that_are_not_there() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    stage.aws.put("prod/json", "{}");
    let rest = format!("{TWO}  - {{name: C, secret: prod/json, member: c}}\n  - {{name: D, template: \"{{B}}\"}}");
    stage.config(&block("interval: 1s, on_missing: skip", &rest));
    let output = stage.once();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stage.values(), json!({"A": "1"}));
}

#[test]
fn once_with_skip_ends_without_a_primary_secret_that_is_not_there() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    let rest = "primary_secret: {name: prod/app}\nkeys: [{name: A, secret: prod/a}]";
    stage.config(&block("interval: 1s, on_missing: skip", rest));
    let output = stage.once();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stage.values(), json!({"A": "1"}));
}

#[test]
fn signals_to_end_end_it_well() {
    for signal in [Signal::TERM, Signal::INT] {
        let stage = Stage::new();
        stage.aws.put("prod/a", "1");
        stage.aws.put("prod/b", "2");
        stage.config(&block(SELDOM, TWO));
        let mut daemon = stage.run();
        daemon.until_ready();
        daemon.signal(signal);
        assert_eq!(daemon.wait(), 0, "{}", daemon.log());
        assert!(daemon.log().contains("stopping on request"));
        assert!(!stage.socket().exists());
        assert_eq!(stage.values(), json!({"A": "1", "B": "2"}));
    }
}

#[test]
fn a_signal_to_end_is_heard_in_the_middle_of_a_call_and_before_the_first_file() {
    let stage = Stage::new();
    stage.config(&block("interval: 1s, call_timeout: 4m", TWO));
    stage.aws.fault(Fault::any().kind(FaultKind::Hang));
    let mut daemon = stage.run();
    until("the call", || stage.aws.count("GetSecretValue") == 2);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0, "{}", daemon.log());
}

#[test]
fn a_hangup_refreshes_at_once() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    stage.aws.put("prod/b", "2");
    stage.config(&block(SELDOM, TWO));
    let daemon = stage.run();
    daemon.until_ready();
    for value in ["3", "4", "5"] {
        stage.aws.put("prod/a", value);
        daemon.signal(Signal::HUP);
        stage.until_values(&json!({"A": value, "B": "2"}));
    }
}

#[test]
fn a_hangup_before_the_first_file_is_no_end() {
    let stage = Stage::new();
    stage.config(&block("interval: 1s", TWO));
    let mut daemon = stage.run();
    daemon.until_log("no such secret");
    daemon.signal(Signal::HUP);
    stage.aws.put("prod/a", "1");
    stage.aws.put("prod/b", "2");
    daemon.until_ready();
    assert!(daemon.is_running());
}

#[test]
fn a_restart_during_an_outage_is_ready_at_once_and_keeps_the_files() {
    let stage = after_a_run("interval: 1s, jitter: 0");
    let before = (stage.stamp("env/keys.json"), stage.stamp(STATE));
    stage.aws.set_down(true);
    let daemon = stage.run();
    daemon.until_ready();
    until("the first try", || stage.key_state("A") == "stale (unavailable)");
    assert_eq!(daemon.get("/startupz").status, 200);
    assert_eq!((stage.stamp("env/keys.json"), stage.stamp(STATE)), before);
    // Also where the file itself is gone, as in a new pod on the same node's volume.
    fs::remove_file(stage.path("env/keys.json")).unwrap();
    stage.until_values(&json!({"A": "1", "B": "2"}));
    stage.aws.set_down(false);
    stage.aws.put("prod/a", "3");
    stage.until_values(&json!({"A": "3", "B": "2"}));
}

#[test]
fn a_recovered_value_is_called_so_until_it_was_read() {
    let stage = after_a_run(SELDOM);
    stage.aws.fault(Fault::any().kind(FaultKind::Hang));
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(stage.key_state("A"), "stale (recovered)");
    assert_eq!(daemon.metric("keytide_stale_keys", &["recovered"]), 2.0);
}

#[test]
fn a_primary_secret_survives_a_restart_during_an_outage() {
    let stage = Stage::new();
    stage.aws.put("app", r#"{"A": "1", "B": "2"}"#);
    stage.config(&block(SELDOM, "primary_secret: {name: app}"));
    let mut daemon = stage.run();
    daemon.until_ready();
    daemon.kill();
    fs::remove_file(stage.path("env/keys.json")).unwrap();
    stage.aws.set_down(true);
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(stage.values(), json!({"A": "1", "B": "2"}));
}

#[test]
fn what_the_configuration_no_longer_names_leaves_the_file_also_during_an_outage() {
    let stage = after_a_run(SELDOM);
    stage.aws.set_down(true);
    stage.config(&block(SELDOM, "keys: [{name: A, secret: prod/a}]"));
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(stage.values(), json!({"A": "1"}));
    assert_eq!(daemon.metric("keytide_keys", &[]), 1.0);
}

#[test]
fn a_key_that_now_comes_from_elsewhere_is_not_recovered() {
    let stage = after_a_run("interval: 1s");
    stage.aws.set_down(true);
    stage.config(&block("interval: 1s", "keys:\n  - {name: A, secret: prod/a}\n  - {name: B, secret: prod/other}"));
    let daemon = stage.run();
    until("the first try", || stage.key_state("B") == "missing (unavailable)");
    assert_eq!(daemon.get("/readyz").status, 503);
    assert_eq!(stage.values(), json!({"A": "1", "B": "2"}), "nothing is written before the start is complete");
}

#[test]
fn a_key_that_leaves_the_configuration_of_a_running_daemon_leaves_the_file() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    stage.aws.put("prod/b", "2");
    stage.config(&block(SELDOM, TWO));
    let daemon = stage.run();
    daemon.until_ready();
    let id = daemon.id();
    stage.config(&block(SELDOM, "keys: [{name: A, secret: prod/a}]"));
    stage.until_values(&json!({"A": "1"}));
    assert_eq!(daemon.id(), id);
    until("one key", || stage.status()["keys"].as_array().is_some_and(|keys| keys.len() == 1));
}

/// A snapshot that cannot be used: the start is as if there were none, with a warning.
#[track_caller]
fn ignores(snapshot: &[u8]) {
    let stage = after_a_run("interval: 1s");
    stage.write(STATE, snapshot);
    stage.aws.set_down(true);
    let daemon = stage.run();
    daemon.until_log("is not one that this version wrote");
    until("the first try", || stage.key_state("A") == "missing (unavailable)");
    assert!(!daemon.log().contains("canary"), "{}", daemon.log());
    assert_eq!(daemon.get("/readyz").status, 503);
    assert_eq!(daemon.metric("keytide_state_errors_total", &[]), 1.0);
    assert_eq!(stage.values(), json!({"A": "1", "B": "2"}), "the file is not touched");
    stage.aws.set_down(false);
    daemon.until_ready();
    let kept: Value = serde_json::from_str(&stage.read(STATE)).unwrap();
    assert_eq!(kept["format"], 1);
}

#[test]
fn a_snapshot_that_is_cut_off_is_ignored_with_a_warning() {
    let stage = after_a_run(SELDOM);
    let whole = stage.read(STATE);
    ignores(&whole.as_bytes()[..whole.len() / 2]);
}

#[test]
fn a_snapshot_that_is_no_json_is_ignored_with_a_warning() {
    ignores(b"canary \xff\xfe");
}

#[test]
fn an_empty_snapshot_is_ignored_with_a_warning() {
    ignores(b"");
}

#[test]
fn a_snapshot_of_another_format_is_ignored_with_a_warning() {
    ignores(br#"{"format": 2, "secrets": [], "kept": [], "canary": "canary"}"#);
}

#[test]
fn a_second_start_without_a_change_writes_nothing() {
    let stage = after_a_run("interval: 1s, jitter: 0");
    let before = (stage.stamp("env/keys.json"), stage.stamp(STATE));
    let daemon = stage.run();
    daemon.until_ready();
    until("three refreshes", || daemon.metric("keytide_refreshes_total", &["complete"]) >= 3.0);
    assert_eq!((stage.stamp("env/keys.json"), stage.stamp(STATE)), before);
    assert_eq!(daemon.metric("keytide_output_writes_total", &[]), 0.0);
    assert_eq!(daemon.metric("keytide_output_repairs_total", &[]), 0.0);
    assert_eq!(stage.key_state("A"), "fresh");
}

#[test]
fn the_snapshot_is_for_keytide_alone() {
    let stage = after_a_run(SELDOM);
    let mode = |name: &str| fs::metadata(stage.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("env/.keytide"), 0o700);
    assert_eq!(mode(STATE), 0o600);
}

#[test]
fn an_empty_list_of_hosted_keys_alone_starts_and_calls_nobody() {
    let stage = Stage::new();
    stage.config("aws: {region: us-east-1}\nspool: {directory: \"{dir}/spool/in\"}");
    let ours = stage.read("keytide.yaml");
    let general = "general_settings:\n  key_management_system: custom\n  key_management_settings: \
                   {hosted_keys: [], primary_secret_name: app, store_virtual_keys: true}\n";
    stage.write("keytide.yaml", format!("{general}{ours}"));
    let mut daemon = stage.run();
    daemon.until_ready();
    assert!(stage.aws.requests().is_empty());
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
}

#[test]
fn the_first_process_of_a_container_hears_the_signal_to_end() {
    let stage = Stage::new();
    stage.aws.put("prod/a", "1");
    stage.aws.put("prod/b", "2");
    stage.config(&block(SELDOM, TWO));
    let keytide = stage.command(&["run", "--config", &stage.path("keytide.yaml").display().to_string()]);
    // A process namespace of its own: the kernel drops signals to its first process that have no handler.
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["--pid", "--fork"]);
    if is_root() {
        let user = USER.to_string();
        unshare.args(["--setgid", &user, "--setuid", &user]);
    } else {
        unshare.arg("--user");
    }
    unshare.arg(keytide.get_program()).args(keytide.get_args()).current_dir(stage.path(""));
    unshare.env_clear().envs(keytide.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut parent = unshare.stderr(fs::File::create(stage.path("log")).unwrap()).spawn().unwrap();
    stage.until_values(&json!({"A": "1", "B": "2"}));
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", parent.id())).unwrap();
    let first = children.split_whitespace().next().unwrap();
    let status = fs::read_to_string(format!("/proc/{first}/status")).unwrap();
    assert!(status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")), "{status}");
    let first = rustix::process::Pid::from_raw(first.parse().unwrap()).unwrap();
    rustix::process::kill_process(first, Signal::TERM).unwrap();
    assert_eq!(parent.wait().unwrap().code(), Some(0), "{}", stage.read("log"));
}
