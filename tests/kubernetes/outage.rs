//! The API server fails in every way that it can: keytide says why, disturbs nothing else, and goes on by itself.

use std::{
    collections::BTreeSet,
    fs,
    ops::RangeInclusive,
    os::unix::fs::PermissionsExt as _,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keytide_emulator::{Fault as AwsFault, FaultKind};
use serde_json::{Value, json};

use crate::{
    control_plane::ControlPlane,
    gate::{Fault, Recorded},
    stage::{KubeStage, LASTING, POD, state_of},
    support::{Daemon, patiently, stderr, stdout, until, within},
};

/// The only output.
pub(crate) const ALONE: &str = "outputs: [{kubernetes_secret: {name: app}}]";
/// Beside a file.
const BOTH: &str =
    "outputs:\n  - env_file: {path: \"{dir}/env/keys.json\", format: json}\n  - kubernetes_secret: {name: app}";
/// Of what must happen within seconds, also on a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(12);
/// Of what had failed for some seconds: the longest pause before a write is repeated, and from one look at refused
/// credentials to the next.
const AFTER_PAUSES: Duration = Duration::from_secs(15 + 3);

/// keytide with one key, whose value is `first`, before it runs.
pub(crate) fn stage(cluster: &ControlPlane, outputs: &str) -> KubeStage {
    let kube = KubeStage::new(cluster);
    kube.stage.aws.put("prod/a", "first");
    configure(&kube, outputs);
    bind_role(&kube);
    kube
}

pub(crate) fn configure(kube: &KubeStage, outputs: &str) {
    kube.config(&format!(
        "aws: {{region: us-east-1}}\nrefresh: {{interval: 1s, jitter: 0}}\nkeys: [{{name: A, secret: prod/a}}]\n{outputs}"
    ));
}

/// Gives keytide the Role that it asks for.
fn bind_role(kube: &KubeStage) {
    let config = kube.stage.path("keytide.yaml").display().to_string();
    let printed = kube.stage.keytide(&["policy", "--kubernetes", "--output", "json", "--config", &config]);
    let role: Value = serde_json::from_slice(&printed.stdout).unwrap_or_else(|_| panic!("{}", stderr(&printed)));
    kube.namespace.role(&role);
}

/// A daemon that has written `first`.
fn running(cluster: &ControlPlane, outputs: &str) -> (KubeStage, Daemon) {
    let kube = stage(cluster, outputs);
    let daemon = kube.run();
    daemon.until_ready();
    holds(&kube, "first");
    (kube, daemon)
}

/// Waits until the Secret holds this value.
#[track_caller]
pub(crate) fn holds(kube: &KubeStage, value: &str) {
    kube.namespace.until_values("app", &json!({"A": value}));
}

/// The same where somebody had to do something first, for which keytide's pauses are longer.
#[track_caller]
fn holds_at_last(kube: &KubeStage, value: &str) {
    let so = within(LASTING, || kube.namespace.values("app") == json!({"A": value}));
    assert!(so, "waited for {value}; the status: {}", output(kube));
}

/// The Secret was written within this time, as the gate saw it.
#[track_caller]
fn was_written_within(kube: &KubeStage, limit: Duration, began: Instant) {
    let took = kube.gate.last(is_apply).unwrap().at.saturating_duration_since(began);
    assert!(took < limit, "{took:?}");
}

/// Puts a value in AWS, and waits until the Secret holds it.
#[track_caller]
pub(crate) fn follows(kube: &KubeStage, value: &str) {
    kube.stage.aws.put("prod/a", value);
    holds(kube, value);
}

/// What the status says of the Secret.
pub(crate) fn output(kube: &KubeStage) -> Value {
    let status = kube.stage.status();
    let outputs = status["outputs"].as_array().cloned().unwrap_or_default();
    outputs.into_iter().find(|output| output["kind"] == "kubernetes_secret").unwrap_or_default()
}

/// Waits until the status says this state of the Secret, and this in its message.
#[track_caller]
pub(crate) fn says(kube: &KubeStage, state: &str, message: &str) {
    let said =
        |output: &Value| output["state"] == state && output["message"].as_str().unwrap_or_default().contains(message);
    let so = patiently(|| said(&output(kube)));
    assert!(so, "waited for {state}, {message:?}; it is {}", output(kube));
}

/// Somebody changes the Secret, and keytide puts it right.
#[track_caller]
fn drifts(kube: &KubeStage, value: &str) {
    kube.api.merge_patch(&kube.namespace.path("secrets/app"), &drift());
    holds(kube, value);
}

fn drift() -> Value {
    json!({"data": {"A": STANDARD.encode("somebody's")}})
}

fn is_apply(request: &Recorded) -> bool {
    request.method == "PATCH" && request.path.ends_with("/secrets/app")
}

/// Those that the API server carried out, as far as keytide heard.
fn applies(kube: &KubeStage) -> usize {
    kube.gate.count(|request| is_apply(request) && request.status.is_some_and(|status| status < 300))
}

fn of_apply(fault: Fault) -> Fault {
    fault.method("PATCH").path("/secrets/app")
}

fn of_lease(fault: Fault) -> Fault {
    fault.path("/leases/")
}

/// How many of these requests come in this time, however long the test itself sleeps.
fn requests_in(kube: &KubeStage, time: Duration, is_counted: impl Fn(&Recorded) -> bool) -> usize {
    let began = Instant::now();
    thread::sleep(time);
    kube.gate.count(|request| request.at >= began && request.at < began + time && is_counted(request))
}

/// keytide goes on asking, and not too often: so many requests at most in this time, and so many at least, the pauses
/// between which may be longer.
#[track_caller]
fn asks(kube: &KubeStage, times: RangeInclusive<usize>, time: Duration) {
    let began = Instant::now();
    let requests = requests_in(kube, time, |_| true);
    assert!(requests <= *times.end(), "{requests} requests in {time:?}");
    until("it to go on asking", || kube.gate.count(|request| request.at >= began) >= *times.start());
}

fn holder(kube: &KubeStage) -> String {
    let leases = kube.api.list(&kube.namespace.path("leases"));
    leases.first().and_then(|lease| lease["spec"]["holderIdentity"].as_str()).unwrap_or_default().to_owned()
}

/// Nobody writes any more.
#[track_caller]
fn is_quiet(kube: &KubeStage) {
    let version = kube.namespace.resource_version("app");
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(kube.namespace.resource_version("app"), version, "nobody wrote");
}

// --- the API server is away

#[test]
fn a_server_killed_in_the_middle_of_an_apply_ends_with_the_secret_right_and_written_once() {
    let cluster = ControlPlane::own();
    let (kube, _daemon) = running(&cluster, ALONE);
    for (fault, value, is_done) in [(Fault::hang(), "second", false), (Fault::cut_after(), "third", true)] {
        let before = applies(&kube);
        let fault = kube.gate.fault(of_apply(fault).times(1));
        kube.stage.aws.put("prod/a", value);
        until("an apply to be struck", || kube.gate.struck(fault) == 1);
        let done = is_done.then(|| {
            holds(&kube, value);
            kube.namespace.resource_version("app")
        });
        cluster.kill_api_server();
        cluster.start_api_server();
        // An API server that starts denies what it will allow, as if somebody had to do something.
        holds_at_last(&kube, value);
        says(&kube, "written", "");
        is_quiet(&kube);
        match done {
            Some(version) => assert_eq!(kube.namespace.resource_version("app"), version, "not written again"),
            None => assert_eq!(applies(&kube) - before, 1, "written once"),
        }
    }
}

#[test]
fn while_the_api_server_is_away_the_file_goes_on_and_the_secret_follows_within_seconds() {
    let (kube, daemon) = running(ControlPlane::shared(), BOTH);
    kube.gate.set_down(true);
    let began = Instant::now();
    says(&kube, "failing", "no connection to the API server");
    for value in ["second", "third"] {
        kube.stage.aws.put("prod/a", value);
        kube.stage.until_values(&json!({"A": value}));
    }
    // Past the Lease's end.
    while began.elapsed() < Duration::from_mins(1) {
        assert_eq!(state_of(|| output(&kube)), "failing");
        assert_eq!((daemon.get("/readyz").status, daemon.get("/livez").status), (200, 200));
        thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(daemon.metric("keytide_lease_held", &[]), 0.0);
    assert_eq!(daemon.metric("keytide_output_up", &["kubernetes"]), 0.0);
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains("no connection to the API server"));
    let said: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    let once: BTreeSet<&str> = said.iter().filter_map(|line| line["message"].as_str()).collect();
    assert!(said.len() < 10 && said.len() == once.len(), "each is said once: {log}");
    assert!(!daemon.log().contains("is as it shall be again"), "{}", daemon.log());
    kube.gate.set_down(false);
    let began = Instant::now();
    holds(&kube, "third");
    says(&kube, "written", "");
    was_written_within(&kube, SOON, began);
    assert_eq!(applies(&kube), 2);
}

#[test]
fn whoever_waits_for_the_api_server_is_alive_however_long_that_takes() {
    let (kube, daemon) = running(ControlPlane::shared(), ALONE);
    kube.gate.set_down(true);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(88) {
        let answer = daemon.get("/livez");
        assert_eq!(answer.status, 200, "{answer:?} after {:?}", began.elapsed());
        thread::sleep(Duration::from_secs(1));
    }
    kube.gate.set_down(false);
    follows(&kube, "second");
}

#[test]
fn a_file_that_cannot_be_written_does_not_hold_up_the_secret() {
    let (kube, daemon) = running(ControlPlane::shared(), BOTH);
    let directory = kube.stage.path("env");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o555)).unwrap();
    follows(&kube, "second");
    assert_eq!(kube.stage.values(), json!({"A": "first"}));
    assert_eq!((output(&kube)["state"].clone(), daemon.get("/readyz").status), (json!("written"), 200));
    drifts(&kube, "second");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    kube.stage.until_values(&json!({"A": "second"}));
}

#[test]
fn while_aws_is_away_the_secret_stays_and_what_somebody_does_to_it_is_put_right() {
    let (kube, _daemon) = running(ControlPlane::shared(), ALONE);
    kube.stage.aws.fault(AwsFault::on("GetSecretValue").kind(FaultKind::InternalError));
    until("a stale key", || kube.stage.key_state("A").starts_with("stale"));
    is_quiet(&kube);
    drifts(&kube, "first");
    kube.api.delete(&kube.namespace.path("secrets/app"));
    holds(&kube, "first");
    is_quiet(&kube);
    kube.stage.aws.clear_faults();
    follows(&kube, "second");
}

#[test]
fn while_etcd_stands_still_nothing_is_lost() {
    let cluster = ControlPlane::own();
    let (kube, daemon) = running(&cluster, BOTH);
    cluster.stop_etcd();
    kube.stage.aws.put("prod/a", "second");
    kube.stage.until_values(&json!({"A": "second"}));
    says(&kube, "failing", "");
    assert_eq!((daemon.get("/readyz").status, daemon.get("/livez").status), (200, 200));
    cluster.continue_etcd();
    holds(&kube, "second");
    says(&kube, "written", "");
    is_quiet(&kube);
}

// --- answers

#[test]
fn an_apply_that_is_refused_for_now_is_repeated() {
    let (kube, daemon) = running(ControlPlane::shared(), ALONE);
    for (status, times) in [(409, 2), (409, 7), (422, 2), (500, 3), (503, 2)] {
        let fault = kube.gate.fault(of_apply(Fault::answer(status)).times(times));
        follows(&kube, &format!("after {status} {times} times"));
        assert_eq!(kube.gate.struck(fault), times);
        says(&kube, "written", "");
    }
    for fault in [Fault::cut(), Fault::cut_after(), Fault::delay(Duration::from_secs(3))] {
        let value = format!("{fault:?}");
        let fault = kube.gate.fault(of_apply(fault).times(1));
        follows(&kube, &value);
        assert_eq!(kube.gate.struck(fault), 1);
        says(&kube, "written", "");
    }
    assert_eq!(daemon.metric("keytide_output_up", &[]), 1.0);
    is_quiet(&kube);
}

#[test]
fn an_apply_that_is_refused_again_and_again_is_said_and_comes_at_a_growing_distance() {
    let (kube, daemon) = running(ControlPlane::shared(), ALONE);
    for (status, words) in [
        (409, "somebody else changed it at the same time"),
        (422, "it breaks a rule of Kubernetes (status 422)"),
        (500, "the API server answered 500"),
    ] {
        let fault = kube.gate.fault(of_apply(Fault::answer(status).message("canary-words")));
        kube.stage.aws.put("prod/a", &format!("after {status}"));
        says(&kube, "failing", words);
        // Also while others are read anew each second, and where AWS says the same each second.
        let requests = requests_in(&kube, Duration::from_secs(3), is_apply);
        assert!(requests <= 3, "{requests} in 3 s, {status}");
        kube.gate.clear_fault(fault);
        holds(&kube, &format!("after {status}"));
        says(&kube, "written", "");
    }
    assert!(!daemon.log().contains("canary-words"));
}

#[test]
fn an_api_server_that_asks_for_a_pause_gets_it_whatever_happens() {
    // Longer than it takes to look what the status says of it.
    const PAUSE: u32 = 10;
    let (kube, _daemon) = running(ControlPlane::shared(), ALONE);
    let fault = kube.gate.fault(of_apply(Fault::answer(429).retry_after(PAUSE)).times(1));
    kube.stage.aws.put("prod/a", "second");
    until("an apply to be struck", || kube.gate.struck(fault) == 1);
    says(&kube, "failing", "the API server asks to slow down");
    kube.stage.aws.put("prod/a", "third");
    kube.api.merge_patch(&kube.namespace.path("secrets/app"), &drift());
    holds(&kube, "third");
    let at: Vec<(Instant, Option<u16>)> =
        kube.gate.requests().iter().filter(|r| is_apply(r)).map(|r| (r.at, r.status)).collect();
    let struck = at.iter().position(|(_, status)| *status == Some(429)).unwrap();
    assert!(at[struck + 1].0 - at[struck].0 >= Duration::from_secs(PAUSE.into()), "{at:?}");
}

#[test]
fn an_apply_that_hangs_ends_and_is_repeated() {
    let (kube, daemon) = running(ControlPlane::shared(), ALONE);
    let fault = kube.gate.fault(of_apply(Fault::hang()).times(1));
    follows(&kube, "second");
    assert_eq!((kube.gate.struck(fault), daemon.get("/livez").status), (1, 200));
    is_quiet(&kube);
}

#[test]
fn calls_for_the_lease_that_fail_are_repeated_and_it_is_held_on() {
    let (kube, daemon) = running(ControlPlane::shared(), ALONE);
    let before = holder(&kube);
    assert!(before.starts_with(POD), "{before}");
    let renewals = || daemon.metric("keytide_kubernetes_requests_total", &["patch", "leases", "ok"]);
    for (fault, times) in [
        (Fault::answer(409), 1),
        (Fault::answer(422), 1),
        (Fault::answer(429).retry_after(2), 1),
        (Fault::answer(500), 2),
        (Fault::cut(), 1),
        (Fault::cut_after(), 1),
        (Fault::delay(Duration::from_secs(2)), 1),
    ] {
        let fault = kube.gate.fault(of_lease(fault).times(times));
        until("a call for the Lease to be struck", || kube.gate.struck(fault) == times);
        let before = renewals();
        until("the Lease to be renewed", || renewals() > before);
    }
    assert_eq!((holder(&kube), daemon.metric("keytide_lease_held", &[])), (before, 1.0));
    assert_eq!(daemon.metric("keytide_lease_transitions_total", &[]), 1.0);
    follows(&kube, "second");
    assert_eq!(applies(&kube), 2);
}

#[test]
fn a_lease_that_was_lost_is_held_again_and_nothing_is_written_in_between() {
    let (kube, daemon) = running(ControlPlane::shared(), ALONE);
    for (fault, value) in [(Fault::hang(), "second"), (Fault::answer(409), "third"), (Fault::answer(503), "fourth")] {
        let lost = Instant::now();
        let fault = kube.gate.fault(of_lease(fault));
        until("the Lease to be lost", || daemon.metric("keytide_lease_held", &[]) == 0.0);
        let reading = ["keytide_refresh_interval_seconds", "keytide_keys"];
        until("no key to be counted", || reading.iter().all(|name| daemon.metric(name, &[]) == 0.0));
        let before = applies(&kube);
        kube.stage.aws.put("prod/a", value);
        // No hot loop, also where it is outrun each time.
        asks(&kube, 0..=10, Duration::from_secs(3));
        assert_eq!((applies(&kube), daemon.get("/readyz").status), (before, 200));
        assert!(lost.elapsed() >= Duration::from_secs(8), "it was confirmed a moment before");
        // One that hangs has to end before there is a pause, and another call.
        let calls = || daemon.metric("keytide_kubernetes_requests_total", &["\"leases\""]);
        let before = calls();
        until("a call to end", || calls() > before);
        kube.gate.clear_fault(fault);
        let began = Instant::now();
        holds(&kube, value);
        says(&kube, "written", "");
        was_written_within(&kube, SOON, began);
        assert!(holder(&kube).starts_with(POD));
    }
    is_quiet(&kube);
}

// --- watches

#[test]
fn a_watch_that_is_too_old_is_begun_anew() {
    let (kube, daemon) = running(ControlPlane::shared(), ALONE);
    // The list passes, the watch behind it does not.
    let fault = kube.gate.fault(Fault::answer(410).method("GET").path("/secrets").skip(1).times(1));
    kube.gate.cut_connections();
    until("the watch to be too old", || kube.gate.struck(fault) == 1);
    drifts(&kube, "first");
    let fault = kube.gate.fault(Fault::watch_error(410).times(1));
    kube.gate.cut_connections();
    until("the watch to be too old", || kube.gate.struck(fault) == 1);
    drifts(&kube, "first");
    says(&kube, "written", "");
    assert!(!daemon.log().contains("too old"), "{}", daemon.log());
}

#[test]
fn a_watch_that_ends_at_once_again_and_again_makes_no_hot_loop() {
    let (kube, daemon) = running(ControlPlane::shared(), ALONE);
    for (fault, value) in [(Fault::watch_error(410), "second"), (Fault::watch_error(500), "third")] {
        let fault = kube.gate.fault(fault);
        kube.gate.cut_connections();
        until("a watch to end", || kube.gate.struck(fault) > 0);
        // A list and a watch a second, and the Lease.
        asks(&kube, 2..=16, Duration::from_secs(5));
        follows(&kube, value);
        drifts(&kube, value);
        kube.gate.clear_fault(fault);
    }
    until("a watch", || daemon.metric("keytide_output_up", &[]) == 1.0);
    says(&kube, "written", "");
}

#[test]
fn whoever_cannot_watch_says_so_and_writes_all_the_same() {
    let (kube, daemon) = running(ControlPlane::shared(), ALONE);
    // Each watch but no list.
    let faults: Vec<_> = (0..12)
        .map(|n| kube.gate.fault(Fault::answer(500).method("GET").path("/secrets").skip(1 + n).times(1)))
        .collect();
    kube.gate.cut_connections();
    until("a watch to fail", || kube.gate.struck(faults[0]) > 0);
    says(&kube, "failing", "the API server answered 500");
    follows(&kube, "second");
    for _ in 0..20 {
        assert_eq!(state_of(|| output(&kube)), "failing", "nobody would see what somebody does to it");
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(daemon.metric("keytide_output_up", &[]), 0.0);
    kube.gate.clear_faults();
    says(&kube, "written", "");
}

#[test]
fn a_watch_that_fell_silent_holds_up_no_change_and_its_successor_sees_what_it_missed() {
    let (kube, _daemon) = running(ControlPlane::shared(), ALONE);
    let fault = kube.gate.fault(Fault::silence());
    kube.api.merge_patch(&kube.namespace.path("secrets/app"), &drift());
    until("the gate to swallow it", || kube.gate.struck(fault) > 0);
    kube.gate.clear_fault(fault);
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(kube.namespace.values("app"), json!({"A": "somebody's"}), "nobody knows");
    // It is decided on a state that is not the present one any more.
    let began = Instant::now();
    follows(&kube, "second");
    was_written_within(&kube, SOON, began);
    kube.api.merge_patch(&kube.namespace.path("secrets/app"), &drift());
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(kube.namespace.values("app"), json!({"A": "somebody's"}), "nobody knows");
    kube.gate.cut_connections();
    holds(&kube, "second");
}

#[test]
fn what_somebody_does_while_the_watch_is_cut_is_put_right() {
    let (kube, _daemon) = running(ControlPlane::shared(), ALONE);
    kube.gate.set_down(true);
    kube.api.merge_patch(&kube.namespace.path("secrets/app"), &drift());
    kube.gate.set_down(false);
    holds(&kube, "first");
    kube.gate.set_down(true);
    kube.api.delete(&kube.namespace.path("secrets/app"));
    kube.gate.set_down(false);
    holds(&kube, "first");
    says(&kube, "written", "");
}

// --- tokens

#[test]
fn a_token_that_is_not_accepted_is_said_and_the_next_one_in_the_file_taken() {
    let (kube, daemon) = running(ControlPlane::shared(), ALONE);
    kube.namespace.revoke();
    says(&kube, "failing", "the API server does not accept the service account's token");
    kube.stage.aws.put("prod/a", "second");
    // It goes on asking, at no great pace.
    asks(&kube, 1..=12, Duration::from_secs(3));
    assert_eq!(daemon.get("/livez").status, 200);
    kube.namespace.replace_token(&kube.namespace.new_token());
    let began = Instant::now();
    holds(&kube, "second");
    says(&kube, "written", "");
    was_written_within(&kube, AFTER_PAUSES, began);
}

#[test]
fn a_token_that_was_followed_by_another_one_in_time_is_missed_by_nobody() {
    let kube = stage(ControlPlane::shared(), ALONE);
    let (namespace, api) = (&kube.namespace, &kube.api);
    let bound = api.create(&namespace.path("secrets"), &json!({"metadata": {"name": "bound"}}));
    let request = json!({"spec": {"expirationSeconds": 3600, "boundObjectRef": {
        "kind": "Secret", "apiVersion": "v1", "name": "bound", "uid": bound["metadata"]["uid"],
    }}});
    let answer = api.create(&namespace.path("serviceaccounts/keytide/token"), &request);
    let old = answer["status"]["token"].as_str().unwrap().to_owned();
    namespace.replace_token(&old);
    let daemon = kube.run();
    daemon.until_ready();
    namespace.replace_token(&namespace.new_token());
    api.delete(&namespace.path("secrets/bound"));
    let old = namespace.api(&old);
    until("the old token to be refused", || old.ask("GET", "/version", None).is_ok_and(|reply| reply.status == 401));
    until("keytide to be refused once", || kube.gate.count(|request| request.status == Some(401)) > 0);
    let began = Instant::now();
    follows(&kube, "second");
    was_written_within(&kube, SOON, began);
    assert_eq!(daemon.metric("keytide_lease_transitions_total", &[]), 1.0, "{}", daemon.log());
}

// --- refused by what is in the cluster

#[test]
fn a_namespace_that_is_being_deleted_takes_in_nothing_which_is_said() {
    let kube = stage(ControlPlane::shared(), ALONE);
    kube.namespace.terminate();
    let daemon = kube.run();
    says(&kube, "failing", &format!("the namespace {} is being deleted", kube.namespace.name()));
    asks(&kube, 1..=10, Duration::from_secs(3));
    assert_eq!((daemon.get("/livez").status, daemon.get("/readyz").status), (200, 503));
}

#[test]
fn a_namespace_that_is_deleted_beneath_keytide_is_said_too() {
    let (kube, daemon) = running(ControlPlane::shared(), ALONE);
    kube.namespace.terminate();
    kube.api.delete(&kube.namespace.path("secrets/app"));
    says(&kube, "failing", &format!("the namespace {} is being deleted", kube.namespace.name()));
    asks(&kube, 0..=10, Duration::from_secs(3));
    assert_eq!(daemon.get("/livez").status, 200);
}

#[test]
fn a_namespace_that_does_not_exist_is_said_and_makes_no_hot_loop() {
    let mut kube = stage(ControlPlane::shared(), ALONE);
    let name = kube.namespace.name().to_owned();
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "keytide", "namespace": name}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
    });
    kube.api.apply(&format!("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{name}"), &binding, "test", true);
    let kubeconfig = fs::read_to_string(kube.namespace.kubeconfig(&kube.gate.url())).unwrap();
    let kubeconfig = kubeconfig.replace(&format!("namespace: {name}"), "namespace: nowhere");
    let kubeconfig = kube.stage.write("kubeconfig", kubeconfig);
    kube.stage.env("KUBECONFIG", &kubeconfig.display().to_string());
    let _daemon = kube.run();
    says(&kube, "failing", "the namespace nowhere does not exist");
    asks(&kube, 1..=10, Duration::from_secs(3));
}

#[test]
fn a_policy_that_refuses_is_named_without_its_words_and_when_it_is_gone_the_secret_follows() {
    const CANARY: &str = "canary-policy-5b1d08";
    let (kube, daemon) = running(ControlPlane::shared(), ALONE);
    let name = kube.namespace.name();
    kube.namespace.refuse_secrets_with("object.metadata.name == 'app'", CANARY);
    kube.stage.aws.put("prod/a", "second");
    says(&kube, "failing", &format!("the ValidatingAdmissionPolicy {name} refused it"));
    let refused = |event: &Value| event["reason"] == "Refused" && event.to_string().contains(name);
    until("an Event", || kube.namespace.events().iter().any(refused));
    let seen = [daemon.log(), kube.stage.status().to_string(), json!(kube.namespace.events()).to_string()].concat();
    assert!(!seen.contains(CANARY), "{seen}");
    assert_eq!((kube.namespace.values("app"), daemon.get("/readyz").status), (json!({"A": "first"}), 200));
    kube.namespace.allow_secrets();
    holds_at_last(&kube, "second");
    says(&kube, "written", "");
}

#[test]
fn a_secret_that_something_keeps_from_being_deleted_is_said_and_made_anew_once_it_is_gone() {
    let (kube, _daemon) = running(ControlPlane::shared(), ALONE);
    let path = kube.namespace.path("secrets/app");
    kube.api.merge_patch(&path, &json!({"metadata": {"finalizers": ["keytide.test/hold"]}}));
    let uid = kube.api.get(&path).unwrap()["metadata"]["uid"].clone();
    kube.api.delete(&path);
    says(&kube, "failing", "it is being deleted, and something holds that up (metadata.finalizers)");
    asks(&kube, 0..=4, Duration::from_secs(3));
    kube.api.merge_patch(&path, &json!({"metadata": {"finalizers": null}}));
    let began = Instant::now();
    holds(&kube, "first");
    says(&kube, "written", "");
    was_written_within(&kube, SOON, began);
    assert_ne!(kube.api.get(&path).unwrap()["metadata"]["uid"], uid);
}

// --- canaries

#[test]
fn no_value_and_no_token_is_seen_whatever_the_api_server_does() {
    const CANARY: &str = "canary-value-0c71f2";
    let mut kube = stage(ControlPlane::shared(), ALONE);
    kube.stage.aws.put("prod/a", CANARY);
    kube.stage.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
    let config = kube.stage.path("keytide.yaml").display().to_string();
    let daemon = kube.stage.run_with(&["--log-level", "trace", "run", "--config", &config]);
    daemon.until_ready();
    holds(&kube, CANARY);
    let encoded = STANDARD.encode(CANARY);
    let refusal = format!("Secret \"app\" is invalid: data[A]: Invalid value: \"{encoded}\": {CANARY}");
    for (number, status) in [400, 403, 409, 422, 500].into_iter().enumerate() {
        let fault = kube.gate.fault(of_apply(Fault::answer(status).message(&refusal)).times(1));
        kube.stage.aws.put("prod/a", &format!("{CANARY}-{number}"));
        until("an apply to be struck", || kube.gate.struck(fault) == 1);
        holds(&kube, &format!("{CANARY}-{number}"));
    }
    for fault in [Fault::watch_error(500).times(1), Fault::answer(400).message(&refusal).path("/secrets").times(1)] {
        let fault = kube.gate.fault(fault);
        kube.gate.cut_connections();
        until("a watch to be struck", || kube.gate.struck(fault) == 1);
    }
    drifts(&kube, &format!("{CANARY}-4"));
    let token = kube.namespace.token();
    kube.namespace.replace_token(&format!("{token}\n"));
    let socket = kube.stage.socket().display().to_string();
    let mut seen = daemon.log();
    for arguments in [
        &["--log-level", "trace", "status", "--socket", &socket][..],
        &["--log-level", "trace", "status", "--output", "json", "--socket", &socket],
        &["--log-level", "trace", "check", "--online", "--config", &config],
    ] {
        let output = kube.stage.keytide(arguments);
        seen += &stdout(&output);
        seen += &stderr(&output);
    }
    seen += &daemon.get("/metrics").body;
    seen += &json!(kube.namespace.events()).to_string();
    seen += &fs::read_to_string(format!("/proc/{}/cmdline", daemon.id())).unwrap();
    let signature = token.rsplit('.').next().unwrap();
    for canary in [CANARY, encoded.trim_end_matches('='), &token, signature] {
        assert!(!seen.contains(canary), "{canary} in:\n{seen}");
    }
}
