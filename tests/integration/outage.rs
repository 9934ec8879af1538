//! AWS fails in every way that it can: the last good values stay, the daemon says why, and goes on by itself.

use std::time::{Duration, SystemTime};

use keytide_emulator::{Fault, FaultKind, Statement};
use serde_json::{Value, json};

use crate::support::{ACCESS_KEY_ID, Daemon, SECRET_ACCESS_KEY, Stage, block, stdout, until};

const OFTEN: &str = "interval: 1s, jitter: 0, call_timeout: 5s";
const KEYS: &str = "keys:\n  - {name: A, secret: prod/a}\n  - {name: B, secret: prod/b}\n";
const GET: &str = "operation=\"GetSecretValue\"";

/// A daemon with two keys that were read and written.
struct Running {
    stage: Stage,
    daemon: Daemon,
    before: (u64, i64, i64),
}

fn good() -> Value {
    json!({"A": "first a", "B": "first b"})
}

fn running(refresh: &str) -> Running {
    let stage = Stage::new();
    stage.aws.put("prod/a", "first a");
    stage.aws.put("prod/b", "first b");
    stage.config(&block(refresh, KEYS));
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(stage.values(), good());
    let before = stage.stamp("env/keys.json");
    Running { stage, daemon, before }
}

impl Running {
    /// Both keys become stale for this reason, and nothing else happens.
    #[track_caller]
    fn goes_stale(&self, reason: &str, outcome: &str) {
        let Self { stage, daemon, .. } = self;
        let label = format!("reason=\"{reason}\"");
        until(&format!("two keys stale: {reason}"), || daemon.metric("keytide_stale_keys", &[&label]) == 2.0);
        let outcome = format!("outcome=\"{outcome}\"");
        assert!(
            daemon.metric("keytide_aws_requests_total", &[GET, &outcome]) >= 1.0,
            "{}",
            daemon.get("/metrics").body
        );
        assert_eq!(stage.key_state("A"), format!("stale ({reason})"));
        let message = self.message("A");
        assert!(message.contains("GetSecretValue") && message.contains("prod/a"), "{message}");
        assert_eq!(daemon.metric("keytide_keys", &["state=\"stale\""]), 2.0);
        // It tries again and again, and each time leaves everything as it is.
        let refreshes = daemon.metric("keytide_refreshes_total", &["incomplete"]);
        until("another try", || daemon.metric("keytide_refreshes_total", &["incomplete"]) > refreshes);
        self.stays_good();
    }

    #[track_caller]
    fn stays_good(&self) {
        let Self { stage, daemon, before } = self;
        assert_eq!(stage.values(), good());
        assert_eq!(stage.stamp("env/keys.json"), *before, "nobody wrote");
        assert_eq!(daemon.metric("keytide_output_writes_total", &[]), 1.0);
        assert_eq!(daemon.get("/readyz").status, 200);
        assert_eq!(daemon.get("/livez").status, 200);
    }

    /// New values arrive in the same process.
    #[track_caller]
    fn recovers(mut self) {
        let Self { stage, daemon, .. } = &mut self;
        stage.aws.put("prod/a", "second a");
        stage.aws.put("prod/b", "second b");
        stage.until_values(&json!({"A": "second a", "B": "second b"}));
        until("fresh keys", || daemon.metric("keytide_keys", &["state=\"fresh\""]) == 2.0);
        assert_eq!(daemon.metric("keytide_stale_keys", &[]), 0.0);
        assert_eq!(stage.key_state("A"), "fresh");
        assert!(daemon.is_running());
    }

    fn message(&self, key: &str) -> String {
        let status = self.stage.status();
        let keys = status["keys"].as_array().cloned().unwrap_or_default();
        let key = keys.into_iter().find(|entry| entry["name"] == key).unwrap_or_default();
        key["message"].as_str().unwrap_or_default().to_owned()
    }

    fn strike(&self, kind: FaultKind) {
        self.stage.aws.fault(Fault::on("GetSecretValue").kind(kind));
    }
}

/// A fault that lasts until it is taken back.
#[track_caller]
fn survives(kind: FaultKind, reason: &str) {
    let running = running(OFTEN);
    running.strike(kind);
    running.goes_stale(reason, reason);
    running.stage.aws.clear_faults();
    running.recovers();
}

fn error(code: &str, status: u16) -> FaultKind {
    FaultKind::Error { code: code.to_owned(), status, message: "canary".to_owned() }
}

#[test]
fn throttling_leaves_the_last_good_values() {
    survives(FaultKind::Throttle, "throttled");
}

#[test]
fn internal_errors_leave_the_last_good_values() {
    survives(FaultKind::InternalError, "unavailable");
}

#[test]
fn errors_without_a_code_leave_the_last_good_values() {
    survives(error("", 503), "unavailable");
}

#[test]
fn an_unknown_error_leaves_the_last_good_values_and_is_called_by_its_code() {
    let running = running(OFTEN);
    running.strike(error("BrandNewException", 400));
    running.goes_stale("unknown", "unknown");
    assert!(running.message("A").contains("BrandNewException"), "{}", running.message("A"));
    assert!(!running.message("A").contains("canary"));
    assert!(!running.daemon.log().contains("canary"));
    running.stage.aws.clear_faults();
    running.recovers();
}

#[test]
fn a_refused_decryption_leaves_the_last_good_values() {
    survives(error("DecryptionFailure", 400), "refused");
}

#[test]
fn answers_cut_in_the_middle_leave_the_last_good_values() {
    survives(FaultKind::CutAfter(20), "unavailable");
}

#[test]
fn answers_that_are_no_json_leave_the_last_good_values() {
    survives(FaultKind::Body("<html>a proxy's page</html>".to_owned()), "unavailable");
}

#[test]
fn answers_without_a_value_leave_the_last_good_values() {
    let running = running(OFTEN);
    running.strike(FaultKind::Body(r#"{"Name": "prod/a", "VersionId": "v"}"#.to_owned()));
    until("two stale keys", || running.daemon.metric("keytide_stale_keys", &["unavailable"]) == 2.0);
    assert!(running.message("A").contains("holds no value"), "{}", running.message("A"));
    running.stays_good();
    running.stage.aws.clear_faults();
    running.recovers();
}

#[test]
fn calls_that_are_never_answered_leave_the_last_good_values() {
    let running = running("interval: 1s, jitter: 0, call_timeout: 1s");
    running.strike(FaultKind::Hang);
    running.goes_stale("unavailable", "unavailable");
    running.stage.aws.clear_faults();
    running.recovers();
}

#[test]
fn connections_that_are_hung_up_leave_the_last_good_values() {
    let running = running(OFTEN);
    running.stage.aws.set_down(true);
    running.goes_stale("unavailable", "unavailable");
    running.stage.aws.set_down(false);
    running.recovers();
}

#[test]
fn expired_credentials_leave_the_last_good_values() {
    survives(FaultKind::ExpiredToken, "identity");
}

#[test]
fn denied_access_leaves_the_last_good_values_and_says_what_to_allow_to_whom() {
    let running = running(OFTEN);
    running.stage.aws.allow(ACCESS_KEY_ID, &[]);
    running.goes_stale("denied", "denied");
    let message = running.message("A");
    assert!(message.contains("allow secretsmanager:GetSecretValue"), "{message}");
    assert!(message.contains(ACCESS_KEY_ID) && !message.contains(SECRET_ACCESS_KEY), "{message}");
    running.stage.aws.allow(ACCESS_KEY_ID, &[Statement::everything()]);
    running.recovers();
}

#[test]
fn a_deleted_secret_leaves_its_last_good_value_until_it_is_restored() {
    let running = running(OFTEN);
    for secret in ["prod/a", "prod/b"] {
        running.stage.aws.schedule_deletion(secret);
    }
    running.goes_stale("absent", "absent");
    assert!(running.message("A").contains("scheduled for deletion"), "{}", running.message("A"));
    for secret in ["prod/a", "prod/b"] {
        running.stage.aws.restore(secret);
    }
    until("fresh keys", || running.daemon.metric("keytide_keys", &["fresh"]) == 2.0);
    running.stays_good();
    running.recovers();
}

#[test]
fn a_secret_that_is_gone_leaves_its_last_good_value_until_there_is_one_again() {
    let running = running(OFTEN);
    running.stage.aws.remove("prod/a");
    running.stage.aws.remove("prod/b");
    running.goes_stale("absent", "absent");
    running.recovers();
}

#[test]
fn a_failing_secret_does_not_hold_up_another() {
    let running = running(OFTEN);
    running.stage.aws.fault(Fault::on("GetSecretValue").secret("prod/a"));
    running.stage.aws.put("prod/a", "second a");
    running.stage.aws.put("prod/b", "second b");
    running.stage.until_values(&json!({"A": "first a", "B": "second b"}));
    until("one stale key", || running.stage.key_state("A") == "stale (throttled)");
    assert_eq!(running.stage.key_state("B"), "fresh");
    running.stage.aws.clear_faults();
    running.recovers();
}

#[test]
fn a_retry_asks_only_for_what_failed() {
    let running = running("interval: 700h, call_timeout: 5s");
    running.stage.aws.clear_requests();
    running.stage.aws.fault(Fault::on("GetSecretValue").secret("prod/a").times(2));
    running.daemon.hang_up();
    until("the retries to succeed", || running.stage.key_state("A") == "fresh");
    let asked = running.stage.aws.requests().into_iter().flat_map(|request| request.secret_ids);
    assert_eq!(asked.filter(|id| id == "prod/b").count(), 1);
    assert_eq!(running.stage.aws.count("GetSecretValue"), 4);
    running.stays_good();
}

#[test]
fn many_secrets_in_a_failing_batch_keep_their_values() {
    let stage = Stage::new();
    let mut block = block(OFTEN, "keys:\n");
    let mut values = serde_json::Map::new();
    // Two batches, of 20 and of 10: where only one of them fails, what is asked again is more than is read singly.
    for i in 0..30 {
        stage.aws.put(&format!("s{i}"), "1");
        block.push_str(&format!("  - {{name: K{i}, secret: s{i}}}\n"));
        values.insert(format!("K{i}"), "1".into());
    }
    stage.config(&block);
    let daemon = stage.run();
    daemon.until_ready();
    let before = stage.stamp("env/keys.json");
    for kind in [FaultKind::InternalError, FaultKind::CutAfter(100), FaultKind::Body("{}".to_owned())] {
        stage.aws.fault(Fault::on("BatchGetSecretValue").kind(kind));
        until("stale keys", || daemon.metric("keytide_stale_keys", &["unavailable"]) == 30.0);
        stage.aws.clear_faults();
        until("fresh keys", || daemon.metric("keytide_keys", &["fresh"]) == 30.0);
    }
    assert_eq!(stage.values(), Value::Object(values));
    assert_eq!(stage.stamp("env/keys.json"), before);
    assert_eq!(stage.aws.count("GetSecretValue"), 0, "a failing batch is no reason for more calls");
}

#[test]
fn reads_that_alternate_between_new_and_old_stay_on_the_new_one() {
    let running = running(OFTEN);
    for (secret, value) in [("prod/a", "second a"), ("prod/b", "second b")] {
        running.stage.aws.put(secret, value);
    }
    let new = json!({"A": "second a", "B": "second b"});
    running.stage.until_values(&new);
    let before = running.stage.stamp("env/keys.json");
    for secret in ["prod/a", "prod/b"] {
        running.stage.aws.fault(Fault::on("GetSecretValue").secret(secret).kind(FaultKind::Alternate));
    }
    let holds = || running.daemon.metric("keytide_holds_total", &["step_back"]);
    until("four steps back", || {
        assert_eq!(running.stage.values(), new);
        holds() >= 4.0
    });
    assert_eq!(running.stage.stamp("env/keys.json"), before);
    assert_eq!(running.daemon.get("/readyz").status, 200);
}

#[test]
fn one_stale_read_after_a_change_is_no_step_back() {
    let running = running("interval: 700h, call_timeout: 5s");
    running.stage.aws.put("prod/a", "second a");
    running.stage.aws.put("prod/b", "second b");
    running.daemon.hang_up();
    let new = json!({"A": "second a", "B": "second b"});
    assert_eq!(running.stage.values(), new);
    running.stage.aws.fault(Fault::on("GetSecretValue").secret("prod/a").times(1).kind(FaultKind::Stale));
    running.daemon.hang_up();
    assert_eq!(running.stage.values(), new);
    assert_eq!(running.stage.key_state("A"), "stale (step_back)");
    assert_eq!(running.daemon.metric("keytide_stale_keys", &["step_back"]), 1.0);
    running.daemon.hang_up();
    assert_eq!(running.stage.key_state("A"), "fresh");
    assert_eq!(running.stage.values(), new);
}

/// AWS's clock jumps against ours.
#[track_caller]
fn survives_a_clock(shift: impl Fn(SystemTime) -> SystemTime + Send + 'static) {
    let running = running(OFTEN);
    running.stage.aws.set_clock(move || shift(SystemTime::now()));
    until("a clock error", || running.daemon.metric("keytide_aws_requests_total", &[GET, "\"clock\""]) >= 1.0);
    until("fresh keys", || running.daemon.metric("keytide_keys", &["fresh"]) == 2.0);
    running.stays_good();
    // What was on its way when the clock jumped is over.
    running.daemon.hang_up();
    running.daemon.hang_up();
    let errors = running.daemon.metric("keytide_aws_requests_total", &[GET, "\"clock\""]);
    assert!(errors <= 2.0, "{errors} errors: one for each key, corrected at once");
    running.daemon.hang_up();
    running.daemon.hang_up();
    assert_eq!(running.daemon.metric("keytide_aws_requests_total", &[GET, "\"clock\""]), errors, "corrected for good");
    running.recovers();
}

#[test]
fn a_clock_that_is_an_hour_behind_corrects_itself() {
    survives_a_clock(|now| now + Duration::from_hours(1));
}

#[test]
fn a_clock_that_is_an_hour_ahead_corrects_itself() {
    survives_a_clock(|now| now - Duration::from_hours(1));
}

#[test]
fn readiness_turns_false_only_where_max_stale_asks_for_it() {
    let running = running("interval: 1s, jitter: 0, call_timeout: 5s, max_stale: 2s");
    running.stage.aws.set_down(true);
    until("readiness to end", || running.daemon.get("/readyz").status == 503);
    let why = running.daemon.get("/readyz").body;
    assert!(why.contains("max_stale"), "{why}");
    assert_eq!(running.daemon.metric("keytide_ready", &[]), 0.0);
    assert_eq!(running.stage.status()["ready"], false);
    assert_eq!(running.daemon.get("/livez").status, 200);
    assert_eq!(running.daemon.get("/startupz").status, 200);
    assert_eq!(running.stage.values(), good());
    assert_eq!(running.stage.stamp("env/keys.json"), running.before);
    running.stage.aws.set_down(false);
    until("readiness again", || running.daemon.get("/readyz").status == 200);
    running.recovers();
}

/// A daemon that starts where AWS cannot be reached, with values of an earlier one.
#[track_caller]
fn starts_without(endpoint: &str) {
    let running = running("interval: 1s, jitter: 0, call_timeout: 1s");
    let Running { mut stage, mut daemon, before } = running;
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    stage.env("AWS_ENDPOINT_URL", endpoint);
    let text = stage.read("keytide.yaml").replace("{region: us-east-1}", "{region: us-east-1, allow_plain_http: true}");
    stage.write("keytide.yaml", text);
    let daemon = stage.run();
    daemon.until_ready();
    until("stale keys", || daemon.metric("keytide_stale_keys", &["unavailable"]) == 2.0);
    assert_eq!(stage.values(), good());
    assert_eq!(stage.stamp("env/keys.json"), before);
    assert!(daemon.metric("keytide_aws_requests_total", &[GET, "unavailable"]) >= 1.0);
    let table = stdout(&stage.keytide(&["status", "--socket", &stage.socket().display().to_string()]));
    assert!(table.contains("stale (unavailable)"), "{table}");
    let mut daemon = daemon;
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.wait(), 0);
}

#[test]
fn a_refused_connection_leaves_the_last_good_values() {
    starts_without("http://127.0.0.1:1");
}

#[test]
fn a_name_that_does_not_resolve_leaves_the_last_good_values() {
    starts_without("http://nosuch.invalid");
}
