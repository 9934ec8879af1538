//! Who writes: of all that could, one at a time, and never an older version over a newer one.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use keytide_emulator::{Fault, FaultKind};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    control_plane::ControlPlane,
    gate::{Fault as Cut, Gate, Recorded},
    stage::{KubeStage, LEASE, POD, Pod, hub, sidecar},
    support::{Daemon, patiently, stderr, stdout, until},
};

const KEY: &str = "keys: [{name: A, secret: prod/a}]";
const READ: &[&str] = &["operation=\"GetSecretValue\""];
const REQUESTS: &str = "keytide_aws_requests_total";
/// The longest that nobody writes after the holder was lost: its Lease ends 10 seconds after its last renewal, and
/// whoever waits has perhaps seen that only 3 seconds later.
const TAKE_OVER: Duration = Duration::from_secs(15);
/// Longer than what must not happen would take.
const MOMENT: Duration = Duration::from_millis(1500);

/// A hub that holds the Lease and has written `A`.
fn stage(block: &str) -> (KubeStage, Daemon) {
    let stage = KubeStage::with(block);
    stage.stage.aws.put("prod/a", "1");
    let daemon = stage.run();
    stage.until_values(&daemon, &json!({"A": "1"}));
    daemon.until_ready();
    assert_eq!(stage.holder(), POD);
    (stage, daemon)
}

/// One more replica, which is ready and waits.
fn standby<'a>(stage: &'a KubeStage, name: &str, block: &str) -> (Pod<'a>, Daemon) {
    let pod = stage.pod(name);
    pod.config(block);
    let daemon = pod.run();
    daemon.until_ready();
    until("the standby to say so", || pod.output()["state"] == "standby");
    (pod, daemon)
}

/// Waits for the take-over, and says when it came through the gate.
fn taken(stage: &KubeStage, name: &str) -> Instant {
    stage.until_holder(name);
    let holder = |request: &Recorded| request.body["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
    let takes = |request: &Recorded| request.method == "PATCH" && holder(request).starts_with(&format!("{name}_"));
    stage.gate.last(takes).unwrap().at
}

#[test]
fn one_of_two_hubs_reads_and_writes_and_the_other_is_ready() {
    let (stage, first) = stage(&hub("", KEY));
    let (pod, second) = standby(&stage, "keytide-1", &hub("", KEY));
    let output = pod.output();
    assert!(output["message"].as_str().unwrap().contains(&format!("{LEASE} is held by {POD}_")), "{output}");
    for path in ["/readyz", "/startupz", "/livez"] {
        assert_eq!(second.get(path).status, 200, "{path}");
    }
    stage.stage.aws.clear_requests();
    let writes = stage.writes().len();
    second.signal(Signal::HUP);
    thread::sleep(MOMENT);
    assert_eq!((second.metric(REQUESTS, READ), stage.stage.aws.count("GetSecretValue")), (0.0, 0));
    stage.stage.aws.put("prod/a", "2");
    first.hang_up();
    stage.until_values(&first, &json!({"A": "2"}));
    assert_eq!((stage.stage.aws.count("GetSecretValue"), stage.writes().len()), (1, writes + 1));
    let held = |daemon: &Daemon| daemon.metric("keytide_lease_held", &[]);
    assert_eq!((held(&first), held(&second)), (1.0, 0.0));
    let interval = |daemon: &Daemon| daemon.metric("keytide_refresh_interval_seconds", &[]);
    assert!(interval(&first) > 0.0);
    assert_eq!(interval(&second), 0.0, "what it does not read cannot be late");
}

#[test]
fn a_refresh_of_a_standby_says_that_it_is_one() {
    let (stage, _first) = stage(&hub("", KEY));
    let (pod, _second) = standby(&stage, "keytide-1", &hub("", KEY));
    let socket = pod.path("admin.sock").display().to_string();
    let output = stage.stage.keytide(&["refresh", "--socket", &socket]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("standby"), "{}{}", stdout(&output), stderr(&output));
}

#[test]
fn every_sidecar_has_its_file_and_one_of_them_writes_the_secret() {
    let block = sidecar("", KEY);
    let (stage, first) = stage(&block);
    let (pod, second) = standby(&stage, "keytide-1", &block);
    let file = |pod: &Pod<'_>| fs::read_to_string(pod.path("env/keys.json")).unwrap_or_default();
    assert_eq!(file(&pod), "{\"A\":\"1\"}\n");
    let (version, writes) = (stage.version(), stage.writes().len());
    stage.stage.aws.put("prod/a", "2");
    second.hang_up();
    until("the file of the other", || file(&pod) == "{\"A\":\"2\"}\n");
    thread::sleep(MOMENT);
    assert_eq!((stage.version(), stage.values()), (version, json!({"A": "1"})));
    first.hang_up();
    stage.until_values(&first, &json!({"A": "2"}));
    stage.stage.until_values(&json!({"A": "2"}));
    assert_eq!(stage.writes().len(), writes + 1);
}

#[test]
fn a_holder_that_is_stopped_gives_the_lease_back_and_another_takes_it_at_once() {
    for block in [hub("", KEY), sidecar("", KEY)] {
        let (stage, mut first) = stage(&block);
        let (_pod, second) = standby(&stage, "keytide-1", &block);
        let version = stage.version();
        first.signal(Signal::TERM);
        assert_eq!(first.wait(), 0);
        let ended = Instant::now();
        assert_ne!(stage.holder(), POD);
        let took = taken(&stage, "keytide-1").saturating_duration_since(ended);
        assert!(took < Duration::from_secs(5), "{took:?}");
        stage.stage.aws.put("prod/a", "2");
        until("the metric", || second.metric("keytide_lease_held", &[]) == 1.0);
        assert_eq!(stage.version(), version, "a change of the writer is none of the Secret");
        second.hang_up();
        stage.until_values(&second, &json!({"A": "2"}));
    }
}

#[test]
fn a_holder_that_was_killed_is_followed_within_fifteen_seconds() {
    let (stage, mut first) = stage(&hub("", KEY));
    let (_pod, second) = standby(&stage, "keytide-1", &hub("", KEY));
    stage.stage.aws.put("prod/a", "2");
    first.kill();
    let killed = Instant::now();
    let took = taken(&stage, "keytide-1").saturating_duration_since(killed);
    assert!(took < TAKE_OVER, "{took:?}");
    stage.until_values(&second, &json!({"A": "2"}));
    assert_eq!(stage.namespace.lease(LEASE).unwrap()["spec"]["leaseTransitions"], 1);
}

#[test]
fn a_container_that_starts_again_in_its_pod_waits_as_any_other_would() {
    let (stage, mut first) = stage(&hub("", KEY));
    stage.stage.aws.put("prod/a", "2");
    first.kill();
    let again = stage.run();
    again.until_log("held by keytide-0_");
    stage.until_values(&again, &json!({"A": "2"}));
}

#[test]
fn ten_sidecars_write_one_change_once() {
    let block = sidecar("", KEY);
    let (stage, first) = stage(&block);
    let others: Vec<_> = (1..10).map(|number| standby(&stage, &format!("keytide-{number}"), &block)).collect();
    let writes = stage.writes().len();
    stage.stage.aws.put("prod/a", "2");
    for daemon in others.iter().map(|(_, daemon)| daemon).chain([&first]) {
        daemon.signal(Signal::HUP);
    }
    stage.until_values(&first, &json!({"A": "2"}));
    let version = stage.version();
    for (pod, _) in &others {
        let written = || fs::read_to_string(pod.path("env/keys.json")).is_ok_and(|text| text == "{\"A\":\"2\"}\n");
        until("each file", written);
    }
    thread::sleep(MOMENT);
    assert_eq!((stage.version(), stage.writes().len()), (version, writes + 1));
}

#[test]
fn a_holder_without_the_api_server_stops_before_another_begins() {
    let stage = KubeStage::new(ControlPlane::shared());
    stage.stage.aws.put("prod/a", "1");
    let block = sidecar("", KEY);
    let gate = Gate::new(ControlPlane::shared());
    let cut = stage.pod("keytide-cut");
    stage.grant(&cut.behind(&gate).config(&block));
    let lost = cut.run();
    lost.until_ready();
    stage.until_values(&lost, &json!({"A": "1"}));
    stage.config(&block);
    let other = stage.run();
    other.until_ready();
    stage.until_output("standby", &["keytide-cut_"]);
    // It could still write the Secret.
    gate.fault(Cut::hang().path("/leases/"));
    let began = Instant::now();
    let held = |daemon: &Daemon| daemon.metric("keytide_lease_held", &[]) == 1.0;
    until("the other to take over", || held(&other));
    let took = taken(&stage, POD).saturating_duration_since(began);
    assert!(took < TAKE_OVER, "{took:?}");
    until("it to know", || !held(&lost));
    gate.clear_requests();
    stage.stage.aws.put("prod/a", "2");
    lost.hang_up();
    other.hang_up();
    stage.until_values(&other, &json!({"A": "2"}));
    assert_eq!(lost.get("/readyz").status, 200);
    let output = cut.output();
    assert_eq!(output["state"], "failing", "{output}");
    gate.clear_faults();
    until("it to see the other", || cut.output()["state"] == "standby");
    stage.api.delete(&stage.path());
    stage.stage.aws.put("prod/a", "3");
    lost.hang_up();
    other.hang_up();
    stage.until_values(&other, &json!({"A": "3"}));
    thread::sleep(MOMENT);
    let path = stage.path();
    assert_eq!(gate.count(|request| request.method == "PATCH" && request.path == path), 0);
}

#[test]
fn the_times_in_a_record_are_compared_with_nobodys_clock() {
    let stage = KubeStage::with(&hub("", KEY));
    stage.stage.aws.put("prod/a", "1");
    let path = stage.namespace.path(&format!("leases/{LEASE}"));
    let spec = |time: &str| json!({"spec": {"holderIdentity": "other_1", "leaseDurationSeconds": 10, "renewTime": time, "acquireTime": time}});
    let mut lease = spec("2001-01-01T00:00:00.000000Z");
    lease["metadata"] = json!({"name": LEASE});
    stage.api.create(&stage.namespace.path("leases"), &lease);
    let daemon = stage.run();
    // It lives, says its record, although it did so long ago.
    for second in 1..=14 {
        stage.api.merge_patch(&path, &spec(&format!("2001-01-01T00:00:{second:02}.000000Z")));
        thread::sleep(Duration::from_secs(1));
        assert_eq!(stage.holder(), "other");
    }
    assert_eq!(stage.namespace.secret("app-keys"), None);
    // It is dead, although it was there a hundred years from now.
    let before = Instant::now();
    stage.api.merge_patch(&path, &spec("2126-01-01T00:00:00.000000Z"));
    let dead = Instant::now();
    let taken = taken(&stage, POD);
    let took = (taken.saturating_duration_since(before), taken.saturating_duration_since(dead));
    assert!(took.0 > Duration::from_secs(9) && took.1 < TAKE_OVER, "{took:?}");
    stage.until_values(&daemon, &json!({"A": "1"}));
}

#[test]
fn a_stale_read_after_a_take_over_changes_nothing() {
    let (stage, mut first) = stage(&hub("", KEY));
    let (_pod, second) = standby(&stage, "keytide-1", &hub("", KEY));
    stage.stage.aws.put("prod/a", "2");
    first.hang_up();
    stage.until_values(&first, &json!({"A": "2"}));
    let version = stage.version();
    stage.stage.aws.fault(Fault::on("GetSecretValue").kind(FaultKind::Stale).times(1));
    stage.stage.aws.clear_requests();
    first.signal(Signal::TERM);
    first.wait();
    stage.until_holder("keytide-1");
    until("the second read", || stage.stage.aws.count("GetSecretValue") >= 2);
    thread::sleep(MOMENT);
    assert_eq!((stage.values(), stage.version()), (json!({"A": "2"}), version), "{}", second.log());
    stage.stage.aws.put("prod/a", "3");
    second.hang_up();
    stage.until_values(&second, &json!({"A": "3"}));
}

#[test]
fn a_version_that_was_set_back_in_aws_is_written_when_two_reads_agree() {
    let (stage, mut first) = stage(&hub("", KEY));
    let (_pod, second) = standby(&stage, "keytide-1", &hub("", KEY));
    stage.stage.aws.put("prod/a", "2");
    first.hang_up();
    stage.until_values(&first, &json!({"A": "2"}));
    stage.stage.aws.rollback("prod/a");
    first.signal(Signal::TERM);
    first.wait();
    stage.until_holder("keytide-1");
    stage.until_values(&second, &json!({"A": "1"}));
}

#[test]
fn reads_that_fail_after_a_take_over_are_no_word_of_aws() {
    let block = sidecar("", KEY);
    let (stage, mut first) = stage(&block);
    let (_pod, second) = standby(&stage, "keytide-1", &block);
    stage.stage.aws.put("prod/a", "2");
    first.hang_up();
    stage.until_values(&first, &json!({"A": "2"}));
    let version = stage.version();
    stage.stage.aws.fault(Fault::on("GetSecretValue"));
    stage.stage.aws.clear_requests();
    first.signal(Signal::TERM);
    first.wait();
    stage.until_holder("keytide-1");
    until("four reads that fail", || stage.stage.aws.count("GetSecretValue") >= 4);
    assert_eq!((stage.values(), stage.version()), (json!({"A": "2"}), version), "{}", second.log());
    stage.stage.aws.clear_faults();
    second.hang_up();
    stage.stage.aws.put("prod/a", "3");
    second.hang_up();
    stage.until_values(&second, &json!({"A": "3"}));
}

#[test]
fn what_another_keytide_wrote_from_other_versions_makes_this_one_read_again() {
    let (stage, first) = stage(&hub("", KEY));
    let pod = stage.pod("keytide-stranger");
    let mut role = stage.role(&pod.config(&hub(", lease: another", KEY)));
    role["metadata"]["name"] = json!("stranger");
    stage.namespace.role(&role);
    stage.stage.aws.put("prod/a", "2");
    let second = pod.run();
    stage.until_values(&second, &json!({"A": "2"}));
    first.until_log("AWS is read again");
    until("it to agree", || stage.output()["state"] == "written" && stage.stage.key_state("A") == "fresh");
    let version = stage.version();
    thread::sleep(MOMENT);
    assert_eq!((stage.values(), stage.version()), (json!({"A": "2"}), version));
    let status = stage.stage.status();
    let written: Value = serde_json::from_str(
        stage.secret()["metadata"]["annotations"]["keytide.dev/source-versions"].as_str().unwrap(),
    )
    .unwrap();
    assert_eq!(status["keys"][0]["version"], written["prod/a"]);
}

#[test]
fn a_standby_that_cannot_prove_who_it_is_is_not_ready_until_it_can() {
    let block = hub("", KEY).replace("region: us-east-1", "region: us-east-1, expect_role: \"123456789012\"");
    let (stage, _first) = stage(&block);
    let fault = stage.stage.aws.fault(Fault::on("GetCallerIdentity").kind(FaultKind::InternalError));
    let pod = stage.pod("keytide-1");
    pod.config(&block);
    let second = pod.run();
    until("the standby", || pod.output()["state"] == "standby");
    thread::sleep(MOMENT);
    for path in ["/readyz", "/startupz"] {
        let answer = second.get(path);
        assert_eq!(answer.status, 503, "{path}");
        assert!(answer.body.contains("identity"), "{answer:?}");
    }
    stage.stage.aws.remove_fault(fault);
    second.until_ready();
    assert_eq!(second.metric(REQUESTS, READ), 0.0);
}

#[test]
fn a_rolling_update_with_a_surge_hands_over_and_brings_the_new_configuration() {
    let (stage, mut old) = stage(&hub("", KEY));
    stage.stage.aws.put("prod/b", "b");
    let more = "keys: [{name: A, secret: prod/a}, {name: B, secret: prod/b}]";
    let (_pod, new) = standby(&stage, "keytide-1", &hub("", more));
    old.signal(Signal::TERM);
    assert_eq!(old.wait(), 0);
    stage.until_values(&new, &json!({"A": "1", "B": "b"}));
    assert_eq!(stage.holder(), "keytide-1");
}

#[test]
fn a_run_once_writes_and_gives_the_lease_back() {
    let stage = KubeStage::with(&hub("", KEY));
    stage.stage.aws.put("prod/a", "1");
    for value in ["1", "2"] {
        stage.stage.aws.put("prod/a", value);
        let output = stage.stage.once();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!((stage.values(), stage.holder()), (json!({"A": value}), String::new()));
    }
    let daemon = stage.run();
    stage.until_holder(POD);
    daemon.until_ready();
    let pod = stage.pod("keytide-1");
    pod.config(&hub("", KEY));
    let output = pod.command(&["run", "--once", "--timeout", "10s"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("held by keytide-0_"), "{}", stderr(&output));
}

#[test]
fn who_comes_back_reads_before_it_makes_the_secret_again() {
    for block in [hub("", KEY), sidecar("", KEY)] {
        let (stage, daemon) = stage(&block);
        let path = stage.namespace.path(&format!("leases/{LEASE}"));
        stage.api.merge_patch(&path, &json!({"spec": {"holderIdentity": "other_1", "leaseDurationSeconds": 3600}}));
        until("it to stand by", || stage.output()["state"] == "standby");
        stage.gate.clear_requests();
        stage.api.delete(&stage.path());
        stage.stage.aws.put("prod/a", "2");
        stage.api.merge_patch(&path, &json!({"spec": {"holderIdentity": null, "leaseDurationSeconds": 10}}));
        stage.until_values(&daemon, &json!({"A": "2"}));
        assert_eq!(stage.writes().len(), 1, "{}", daemon.log());
    }
}

#[test]
fn two_that_shall_write_different_keys_under_different_leases_do_not_fight_for_ever() {
    let (stage, first) = stage(&hub("", KEY));
    stage.stage.aws.put("prod/b", "b");
    let pod = stage.pod("keytide-stranger");
    let keys = "keys: [{name: A, secret: prod/a}, {name: B, secret: prod/b}]";
    let mut role = stage.role(&pod.config(&hub(", lease: another", keys)));
    role["metadata"]["name"] = json!("stranger");
    stage.namespace.role(&role);
    let second = pod.run();
    let contested = |daemon: &Daemon| daemon.metric("keytide_output_contested", &[]);
    let deadline = Instant::now() + Duration::from_secs(110);
    while contested(&first) + contested(&second) < 1.0 {
        assert!(Instant::now() < deadline, "{} writes:\n{}\n{}", stage.writes().len(), first.log(), second.log());
        thread::sleep(Duration::from_millis(200));
    }
    assert!(stage.writes().len() <= 12, "{}", stage.writes().len());
}

#[test]
fn who_lost_the_lease_lives_on() {
    let (stage, daemon) = stage(&hub("", KEY));
    // Somebody who stays away for long.
    let other = json!({"spec": {"holderIdentity": "other_1", "leaseDurationSeconds": 3600}});
    let path = stage.namespace.path(&format!("leases/{LEASE}"));
    stage.api.merge_patch(&path, &other);
    until("it to stand by", || stage.output()["state"] == "standby");
    // A worker that is a minute late ends the life of a pod.
    let deadline = Instant::now() + Duration::from_secs(85);
    while Instant::now() < deadline {
        assert_eq!(daemon.get("/livez").status, 200, "{}", daemon.get("/livez").body);
        thread::sleep(Duration::from_secs(1));
    }
    stage.api.merge_patch(&path, &json!({"spec": {"holderIdentity": null}}));
    assert!(patiently(|| stage.holder() == POD), "{}", daemon.log());
}
