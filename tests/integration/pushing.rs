//! Virtual keys meet an AWS that fails in every way that it can: each entry waits, says why, and is stored once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use keytide_emulator::{Fault, FaultKind, Role, SecretView, Seed, Statement};
use serde_json::{Value, json};

use crate::support::{Daemon, Stage, USER, block, is_root, patiently, stderr, until};

/// Every setting of virtual keys that makes a call, and no limit of ours.
const SETTINGS: &str =
    "prefix: app/, description: made by the app, tags: {team: core}, replica_regions: [eu-west-1], rate: none";
const ROLE: &str = "arn:aws:iam::123456789012:role/writer";
/// One entry each, about a secret of its own: the call that fails.
const ACTIONS: [&str; 10] = [
    "CreateSecret",
    "PutSecretValue",
    "RestoreSecret",
    "UpdateSecret",
    "UntagResource",
    "TagResource",
    "ReplicateSecretToRegions",
    // Of a rename.
    "GetSecretValue",
    "DeleteSecret",
    // Of a delete.
    "RemoveRegionsFromReplication",
];
static SEQUENCE: AtomicU64 = AtomicU64::new(0);

/// Keytide's block for the way up alone.
pub(crate) fn up(virtual_keys: &str) -> String {
    format!(
        "aws: {{region: us-east-1}}\nrefresh: {{call_timeout: 10s}}\nvirtual_keys: {{{virtual_keys}}}\nspool: {{directory: \
         \"{{dir}}/spool/in\"}}\n"
    )
}

/// The same, whose calls do not wait for long for an answer.
fn impatient(block: &str) -> String {
    block.replace("call_timeout: 10s", "call_timeout: 1s")
}

/// A stage with this block, and the drop directory.
pub(crate) fn with_spool(stage: Stage, block: &str) -> Stage {
    stage.config(block);
    stage.make_directory("spool/in", 0o1733);
    stage
}

/// Leaves a file in the spool, as producers do, and answers its name.
pub(crate) fn leave_as(stage: &Stage, suffix: &str, content: impl AsRef<[u8]>) -> String {
    let name =
        format!("{:020}-test-{:06}{suffix}", 1_790_000_000_000_000_000_u64, SEQUENCE.fetch_add(1, Ordering::Relaxed));
    let spool = stage.path("spool/in");
    let temporary = spool.join(format!(".{name}"));
    fs::write(&temporary, content).unwrap();
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644)).unwrap();
    fs::rename(temporary, spool.join(&name)).unwrap();
    name
}

/// Leaves an entry.
pub(crate) fn leave(stage: &Stage, entry: &Value) -> String {
    leave_as(stage, ".json", entry.to_string())
}

fn create(stage: &Stage, name: &str, value: &str) {
    leave(stage, &json!({"op": "create", "name": name, "value": value}));
}

/// What the status says of the spool.
pub(crate) fn spool(stage: &Stage) -> Value {
    stage.status()["spool"].clone()
}

/// The first entries that wait: subject to reason and message.
fn problems(stage: &Stage) -> BTreeMap<String, (String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let spool = spool(stage);
    let problems = spool["problems"].as_array().cloned().unwrap_or_default();
    problems
        .iter()
        .map(|problem| (text(&problem["subject"]), (text(&problem["reason"]), text(&problem["message"]))))
        .collect()
}

/// Waits until nothing is left to do.
pub(crate) fn until_idle(stage: &Stage, daemon: &Daemon) {
    let idle = || {
        let spool = spool(stage);
        spool["claimed"] == 0 && spool["waiting"] == 0
    };
    // The status may not yet know of what was taken just now.
    let holds = |directory: &str, what: &str| {
        let files = fs::read_dir(stage.path(directory)).into_iter().flatten().flatten();
        files.map(|file| file.file_name()).any(|name| name.to_string_lossy().contains(what))
    };
    let left = || holds("spool/in", ".json") || holds("spool/in/.claimed", "~");
    assert!(patiently(|| !left() && idle()), "waited for an empty spool: {:#}\n{}", spool(stage), daemon.log());
}

fn secret(stage: &Stage, name: &str) -> SecretView {
    stage.aws.secret(name).unwrap_or_else(|| panic!("there is no secret {name}"))
}

/// The values of all versions, in the order in which they were made.
fn values(stage: &Stage, name: &str) -> Vec<String> {
    secret(stage, name).versions.into_iter().map(|version| version.value).collect()
}

/// What all entries that failed say: subject to reason.
fn failed(stage: &Stage) -> BTreeMap<String, String> {
    let files = fs::read_dir(stage.path("spool/in/failed")).unwrap().flatten();
    let reasons = files.filter(|file| file.file_name().to_string_lossy().ends_with(".error.json"));
    reasons
        .map(|file| {
            let reason: Value = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
            (reason["subject"].as_str().unwrap().to_owned(), reason["reason"].as_str().unwrap().to_owned())
        })
        .collect()
}

fn key(action: &str) -> String {
    format!("app/{action}/key")
}

fn renamed(action: &str) -> String {
    format!("app/{action}/renamed")
}

/// A running daemon, and the secrets of [`ACTIONS`] as they are before their entries come.
fn prepared(stage: Stage, block: &str) -> (Stage, Daemon) {
    let stage = with_spool(stage, block);
    for action in ACTIONS {
        let name = key(action);
        match action {
            "CreateSecret" | "RemoveRegionsFromReplication" => {}
            "PutSecretValue" | "GetSecretValue" | "DeleteSecret" => drop(stage.aws.put(&name, "old")),
            _ => {
                stage.aws.put(&name, "old");
                stage.aws.set_metadata(&name, Some("of somebody else"), &[("stray", "x")]);
                stage.aws.schedule_deletion(&name);
            }
        }
    }
    let daemon = stage.run();
    // With a replica.
    create(&stage, &key("RemoveRegionsFromReplication"), "old");
    until_idle(&stage, &daemon);
    assert_eq!(secret(&stage, &key("RemoveRegionsFromReplication")).replicas.len(), 1);
    (stage, daemon)
}

/// Leaves the entries.
fn leave_all(stage: &Stage) {
    for action in ACTIONS {
        let name = key(action);
        leave(
            stage,
            &match action {
                "CreateSecret" => json!({"op": "create", "name": name, "value": "new"}),
                "GetSecretValue" | "DeleteSecret" => json!({"op": "rename", "name": name, "new_name": renamed(action)}),
                "RemoveRegionsFromReplication" => json!({"op": "delete", "name": name}),
                _ => json!({"op": "rotate", "name": name, "value": "new"}),
            },
        );
    }
}

/// Each is as its entry wants it, and has the version of its entry once.
#[track_caller]
fn assert_all_stored(stage: &Stage) {
    for action in ACTIONS {
        let view = secret(stage, &key(action));
        let values = values(stage, &key(action));
        match action {
            "GetSecretValue" | "DeleteSecret" => {
                assert!(view.scheduled_for_deletion, "{action}");
                let view = secret(stage, &renamed(action));
                assert_eq!(view.versions.len(), 1, "{action}");
                assert_eq!(stage.aws.value(&renamed(action)).as_deref(), Some("old"), "{action}");
            }
            "RemoveRegionsFromReplication" => {
                assert!(view.scheduled_for_deletion && view.replicas.is_empty(), "{action}");
                assert_eq!(values, ["old"]);
            }
            "PutSecretValue" => assert_eq!(values, ["old", "new"], "{action}"),
            _ => {
                let expected: &[&str] = if action == "CreateSecret" { &["new"] } else { &["old", "new"] };
                assert_eq!(values, expected, "{action}");
                assert!(!view.scheduled_for_deletion, "{action}");
                assert_eq!(view.description.as_deref(), Some("made by the app"), "{action}");
                assert_eq!(view.tags, BTreeMap::from([("team".to_owned(), "core".to_owned())]), "{action}");
                assert_eq!(view.replicas, BTreeSet::from(["eu-west-1".to_owned()]), "{action}");
            }
        }
        if !view.scheduled_for_deletion {
            assert_eq!(stage.aws.value(&key(action)).as_deref(), Some("new"), "{action}");
        }
    }
}

/// Every entry waits for this reason, and all are named, with the call and the secret.
#[track_caller]
fn assert_all_wait(stage: &Stage, daemon: &Daemon, reason: &str) {
    let names_the_call = |problems: &BTreeMap<String, (String, String)>, action: &str| {
        let call = format!("failed to call {action} for secret {}", key(action));
        problems.iter().any(|(subject, (_, message))| subject.contains(&key(action)) && message.starts_with(&call))
    };
    let all = || {
        let problems = problems(stage);
        problems.len() == ACTIONS.len()
            && problems.values().all(|problem| problem.0 == reason)
            && ACTIONS.iter().all(|action| names_the_call(&problems, action))
    };
    assert!(patiently(all), "waited for {reason}: {:#?}\n{}", problems(stage), daemon.log());
    assert_eq!(daemon.log().matches("an entry waits").count(), 1, "said once: {}", daemon.log());
    let reason = format!("reason=\"{reason}\"");
    assert!(daemon.metric("keytide_spool_retries_total", &[&reason]) >= 10.0);
    assert_eq!(daemon.metric("keytide_spool_failed_total", &[]), 0.0);
    assert_eq!(daemon.get("/livez").status, 200);
}

fn error(code: &str, status: u16) -> FaultKind {
    FaultKind::Error { code: code.to_owned(), status, message: "said by a test".to_owned() }
}

fn set_faults(stage: &Stage, kind: &FaultKind) {
    for action in ACTIONS {
        // Of these the SDK reads no answer: whatever comes with status 200 is taken for done.
        let unread = ["TagResource", "UntagResource"].contains(&action) && matches!(kind, FaultKind::Body(_));
        let kind = if unread { FaultKind::InternalError } else { kind.clone() };
        stage.aws.fault(Fault::on(action).secret(&key(action)).kind(kind));
    }
}

/// Every write fails so, waits, and is stored once that is over.
#[track_caller]
fn waits_and_is_stored(kind: &FaultKind, reason: &str) {
    let block = up(SETTINGS);
    let block = if matches!(kind, FaultKind::Hang) { impatient(&block) } else { block };
    let (stage, daemon) = prepared(Stage::new(), &block);
    set_faults(&stage, kind);
    leave_all(&stage);
    assert_all_wait(&stage, &daemon, reason);
    stage.aws.clear_faults();
    until_idle(&stage, &daemon);
    assert_all_stored(&stage);
    assert_eq!(spool(&stage)["confirmed"], 11);
    assert_eq!(daemon.metric("keytide_spool_confirmed_total", &[]), 11.0);
    assert_eq!(problems(&stage), BTreeMap::new());
}

#[test]
fn a_throttled_write_waits_and_is_stored_once() {
    waits_and_is_stored(&FaultKind::Throttle, "throttled");
    waits_and_is_stored(&error("TooManyRequestsException", 429), "throttled");
}

#[test]
fn a_write_that_breaks_within_aws_waits_and_is_stored_once() {
    waits_and_is_stored(&FaultKind::InternalError, "unavailable");
    waits_and_is_stored(&error("ServiceUnavailable", 503), "unavailable");
}

/// Every write is done, its answer is this, and nobody does it twice.
#[track_caller]
fn is_not_done_twice(kind: &FaultKind) {
    let (stage, daemon) = prepared(Stage::new(), &up(SETTINGS));
    for action in ACTIONS {
        stage.aws.fault(Fault::on(action).secret(&key(action)).times(1).kind(kind.clone()));
    }
    leave_all(&stage);
    until("all of them", || spool(&stage)["confirmed"] == 11);
    until_idle(&stage, &daemon);
    assert_all_stored(&stage);
    assert_eq!(daemon.metric("keytide_spool_retries_total", &["reason=\"unavailable\""]), 10.0, "{}", daemon.log());
    assert_eq!(daemon.log().matches("an entry waits").count(), 1, "said once: {}", daemon.log());
}

#[test]
fn a_write_that_was_done_although_aws_says_it_broke_is_not_done_twice() {
    let (code, message) = ("InternalServiceError".to_owned(), "done, in truth".to_owned());
    is_not_done_twice(&FaultKind::ErrorAfter { code, status: 500, message });
}

#[test]
fn a_write_whose_answer_is_cut_is_not_done_twice() {
    is_not_done_twice(&FaultKind::CutAfter(0));
    is_not_done_twice(&FaultKind::CutAfter(20));
}

#[test]
fn a_write_that_is_never_answered_waits_and_is_stored_once() {
    waits_and_is_stored(&FaultKind::Hang, "unavailable");
}

#[test]
fn a_write_that_somebody_else_answers_waits_and_is_stored_once() {
    waits_and_is_stored(&FaultKind::Body("<html>sign in to the airport</html>".to_owned()), "unavailable");
}

#[test]
fn a_write_with_credentials_that_aws_does_not_accept_waits_and_is_stored_once() {
    waits_and_is_stored(&FaultKind::ExpiredToken, "identity");
    waits_and_is_stored(&error("UnrecognizedClientException", 400), "identity");
    waits_and_is_stored(&error("InvalidClientTokenId", 403), "identity");
}

#[test]
fn a_write_whose_signature_does_not_match_waits_and_is_stored_once() {
    for code in ["SignatureDoesNotMatch", "InvalidSignatureException", "RequestExpired"] {
        waits_and_is_stored(&error(code, 403), "clock");
    }
}

#[test]
fn a_denied_write_waits_and_is_stored_once() {
    waits_and_is_stored(&error("AccessDeniedException", 400), "denied");
}

#[test]
fn a_write_whose_kms_key_cannot_be_used_waits_and_is_stored_once() {
    waits_and_is_stored(&error("EncryptionFailure", 400), "refused");
}

#[test]
fn a_write_whose_kms_key_cannot_decrypt_waits_and_is_stored_once() {
    waits_and_is_stored(&error("DecryptionFailure", 400), "refused");
}

#[test]
fn a_write_beyond_a_limit_of_aws_waits_and_is_stored_once() {
    waits_and_is_stored(&error("LimitExceededException", 400), "refused");
}

#[test]
fn a_write_with_an_error_that_nobody_knows_waits_and_is_stored_once() {
    waits_and_is_stored(&error("SomethingNewException", 418), "unknown");
}

#[test]
fn a_write_that_aws_refuses_as_it_is_fails_and_can_be_retried() {
    for code in ["ValidationException", "InvalidParameterException"] {
        let (stage, daemon) = prepared(Stage::new(), &up(SETTINGS));
        set_faults(&stage, &error(code, 400));
        leave_all(&stage);
        // Of a delete, and of what comes before it, AWS says so for a while after other changes.
        let waiting: BTreeSet<&str> = BTreeSet::from(["DeleteSecret", "RemoveRegionsFromReplication"]);
        let all_failed = patiently(|| failed(&stage).len() == ACTIONS.len() - waiting.len());
        assert!(all_failed, "{:#?}\n{}", failed(&stage), daemon.log());
        for (subject, reason) in failed(&stage) {
            assert_eq!(reason, "refused", "{subject}");
            assert!(!waiting.iter().any(|action| subject.contains(action)), "{subject}");
        }
        until("the count", || spool(&stage)["failed"] == 8);
        assert_eq!(daemon.metric("keytide_spool_failed_total", &["reason=\"refused\""]), 8.0);
        assert_eq!(daemon.log().matches("it is kept for 7 days").count(), 8, "each once: {}", daemon.log());
        stage.aws.clear_faults();
        until_idle(&stage, &daemon);
        let retried =
            stage.keytide(&["spool", "retry", "--all", "--spool", &stage.path("spool/in").display().to_string()]);
        assert!(retried.status.success(), "{}", stderr(&retried));
        until("no failed entry", || spool(&stage)["failed"] == 0 && spool(&stage)["confirmed"] == 11);
        assert_all_stored(&stage);
    }
}

fn role() -> Seed {
    Seed::default()
        .role(Role::new("writer").trusts("arn:aws:iam::123456789012:user/keytide").allow(Statement::everything()))
}

fn as_role(block: &str) -> String {
    block.replace("aws: {region: us-east-1}\n", &format!("aws: {{region: us-east-1, roles: [{{arn: \"{ROLE}\"}}]}}\n"))
}

fn below(action: &str) -> String {
    format!("arn:aws:secretsmanager:us-east-1:123456789012:secret:app/{action}/*")
}

#[test]
fn credentials_that_lose_one_permission_say_which_and_go_on_when_they_have_it_again() {
    let (stage, daemon) = prepared(Stage::with(role()), &as_role(&up(SETTINGS)));
    let mut statements = vec![Statement::new(["secretsmanager:DescribeSecret"], ["*"])];
    for action in ACTIONS {
        let others = ACTIONS.into_iter().filter(|other| *other != action).map(below);
        statements.push(Statement::new([format!("secretsmanager:{action}")], others));
    }
    stage.aws.allow(ROLE, &statements);
    leave_all(&stage);
    assert_all_wait(&stage, &daemon, "denied");
    for (subject, (_, message)) in problems(&stage) {
        let action = ACTIONS.into_iter().find(|action| subject.contains(&key(action))).unwrap();
        assert!(message.contains(&format!("allow secretsmanager:{action}")), "{message}");
        assert!(message.contains(&format!("role {ROLE}")), "{message}");
    }
    stage.aws.allow(ROLE, &[Statement::everything()]);
    until_idle(&stage, &daemon);
    assert_all_stored(&stage);
}

#[test]
fn an_entry_that_comes_while_credentials_are_renewed_holds_nobody_up() {
    let stage = with_spool(Stage::with(role()), &as_role(&up("prefix: app/")));
    stage.aws.fault(Fault::on("AssumeRole").kind(FaultKind::Latency(Duration::from_millis(700))));
    let daemon = stage.run();
    daemon.until_ready();
    create(&stage, "app/0", "1");
    until("the exchange", || stage.aws.count("AssumeRole") == 1);
    // Each is a look at the spool, while the first one waits for its session.
    for n in 1..4 {
        create(&stage, &format!("app/{n}"), "1");
        thread::sleep(Duration::from_millis(50));
    }
    until_idle(&stage, &daemon);
    assert!((0..4).all(|n| values(&stage, &format!("app/{n}")) == ["1"]));
    assert_eq!(stage.aws.count("AssumeRole"), 1);
    assert_eq!(daemon.get("/livez").status, 200);
}

#[test]
fn a_create_that_may_not_set_its_tags_says_so() {
    let stage = with_spool(Stage::with(role()), &as_role(&up(SETTINGS)));
    let actions =
        ["secretsmanager:CreateSecret", "secretsmanager:DescribeSecret", "secretsmanager:ReplicateSecretToRegions"];
    stage.aws.allow(ROLE, &[Statement::new(actions, ["*"])]);
    let daemon = stage.run();
    create(&stage, "app/a", "1");
    until("the problem", || problems(&stage).get("app/a").is_some_and(|(reason, _)| reason == "denied"));
    let message = problems(&stage)["app/a"].1.clone();
    assert!(message.contains("secretsmanager:TagResource") && message.contains(ROLE), "{message}");
    stage.aws.allow(ROLE, &[Statement::everything()]);
    until_idle(&stage, &daemon);
    assert_eq!(values(&stage, "app/a"), ["1"]);
}

#[test]
fn what_came_while_aws_was_away_is_stored_in_its_order() {
    const NAMES: usize = 8;
    let stage = with_spool(Stage::new(), &up("prefix: app/, rate: none"));
    let daemon = stage.run();
    daemon.until_ready();
    stage.aws.set_down(true);
    for n in 0..NAMES {
        let (x, y) = (format!("app/{n}/x"), format!("app/{n}/y"));
        create(&stage, &x, "1");
        leave(&stage, &json!({"op": "rename", "name": x, "new_name": y}));
        create(&stage, &x, "2");
        leave(&stage, &json!({"op": "rotate", "name": y, "value": "3"}));
        leave(&stage, &json!({"op": "delete", "name": x}));
    }
    let tried_again = || {
        let spool = spool(&stage);
        let problems = spool["problems"].as_array().cloned().unwrap_or_default();
        spool["claimed"] == NAMES * 5
            && problems.len() == NAMES
            && problems.iter().all(|problem| problem["attempts"].as_u64() > Some(1))
    };
    assert!(patiently(tried_again), "{:#}\n{}", spool(&stage), daemon.log());
    assert!(problems(&stage).values().all(|(reason, _)| reason == "unavailable"), "{:?}", problems(&stage));
    assert_eq!(daemon.log().matches("an entry waits").count(), 1, "{}", daemon.log());
    assert_eq!(daemon.get("/readyz").status, 200);
    stage.aws.set_down(false);
    until_idle(&stage, &daemon);
    for n in 0..NAMES {
        let (x, y) = (format!("app/{n}/x"), format!("app/{n}/y"));
        assert_eq!(values(&stage, &y), ["1", "3"], "moved, then rotated");
        assert!(!secret(&stage, &y).scheduled_for_deletion);
        assert_eq!(values(&stage, &x), ["1", "2"], "moved away, then made anew");
        assert!(secret(&stage, &x).scheduled_for_deletion);
    }
}

#[test]
fn the_trouble_of_some_names_holds_up_no_other() {
    const BAD: usize = 24;
    const GOOD: usize = 100;
    let stage = with_spool(Stage::new(), &impatient(&up("prefix: app/, rate: none")));
    let bad = |n: usize| format!("app/bad/{n}");
    // More than are ever under way at once.
    for n in 0..BAD {
        let kind = match n % 4 {
            0 => FaultKind::InternalError,
            1 => error("AccessDeniedException", 400),
            2 => error("LimitExceededException", 400),
            _ => FaultKind::Hang,
        };
        stage.aws.fault(Fault::any().secret(&bad(n)).kind(kind));
        create(&stage, &bad(n), "1");
        create(&stage, &bad(n), "2");
    }
    let daemon = stage.run();
    for n in 0..GOOD {
        create(&stage, &format!("app/good/{n}"), "1");
    }
    until("all others", || (0..GOOD).all(|n| stage.aws.value(&format!("app/good/{n}")).is_some()));
    until("the count", || spool(&stage)["confirmed"] == GOOD);
    assert!(spool(&stage)["claimed"].as_u64().unwrap() >= 24, "{:#}", spool(&stage));
    stage.aws.clear_faults();
    until_idle(&stage, &daemon);
    for n in 0..BAD {
        assert_eq!(stage.aws.value(&bad(n)).as_deref(), Some("2"));
    }
}

#[test]
fn the_way_down_is_what_it_always_is_beside_a_full_spool() {
    const ENTRIES: usize = 5000;
    let rest =
        "primary_secret: {name: prod/primary}\nvirtual_keys: {prefix: app/}\nspool: {directory: \"{dir}/spool/in\"}\n";
    let stage = with_spool(Stage::new(), &block("interval: 700h", rest));
    stage.aws.put("prod/primary", "{\"A\": \"1\"}");
    stage.aws.fault(Fault::on("CreateSecret"));
    for n in 0..ENTRIES {
        create(&stage, &format!("app/{n}"), "1");
    }
    let daemon = stage.run();
    daemon.until_ready();
    let full = || {
        let spool = spool(&stage);
        spool["claimed"] == 4096 && spool["waiting"] == ENTRIES - 4096
    };
    assert!(patiently(full), "{:#}\n{}", spool(&stage), daemon.log());
    let before = stage.aws.count("GetSecretValue");
    stage.aws.put("prod/primary", "{\"A\": \"2\"}");
    let report = stage.refresh();
    assert_eq!(report["complete"], true, "{report}");
    assert_eq!(stage.values(), json!({"A": "2"}));
    daemon.hang_up();
    assert_eq!(stage.aws.count("GetSecretValue"), before + 2, "one call a refresh");
    assert_eq!(daemon.get("/livez").status, 200);
    assert_eq!(daemon.get("/readyz").status, 200);
    assert_eq!(daemon.metric("keytide_keys", &["state=\"stale\""]), 0.0);
    assert_eq!(daemon.metric("keytide_spool_entries", &["state=\"claimed\""]), 4096.0);
    assert_eq!(daemon.metric("keytide_spool_entries", &["state=\"waiting\""]), 904.0);
}

#[test]
fn the_rate_is_kept_after_one_burst() {
    const RATE: usize = 20;
    const ENTRIES: usize = 100;
    let stage = with_spool(Stage::new(), &up("prefix: app/, rate: 20"));
    for n in 0..ENTRIES {
        create(&stage, &format!("app/{n}"), "1");
    }
    let daemon = stage.run();
    until_idle(&stage, &daemon);
    let times: Vec<i64> = stage
        .aws
        .requests()
        .iter()
        .filter(|request| request.action == "CreateSecret")
        .map(|request| request.at_ms)
        .collect();
    assert_eq!(times.len(), ENTRIES, "one call each");
    let (first, last) = (times[0], times[ENTRIES - 1]);
    // A bucket of one second, then one by one: four seconds, less what the first calls took to arrive.
    assert!(last - first >= 3500, "{ENTRIES} writes in {} ms", last - first);
    for (i, from) in times.iter().enumerate() {
        let within = times.iter().skip(i).filter(|at| *at - from < 1000).count();
        assert!(within <= RATE * 5 / 2, "{within} writes within a second");
    }
    assert!(times[RATE - 1] - first < last - times[RATE - 1], "those that were saved go at once");
    assert_eq!(daemon.metric("keytide_spool_write_rate", &[]), 20.0);
    assert_eq!(daemon.metric("keytide_spool_throttles_total", &[]), 0.0);
}

#[test]
fn throttling_halves_the_rate_for_a_while() {
    let stage = with_spool(Stage::new(), &up("prefix: app/, rate: 40"));
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(daemon.metric("keytide_spool_write_rate", &[]), 40.0);
    stage.aws.fault(Fault::on("CreateSecret").times(1));
    create(&stage, "app/0", "1");
    until("the throttling", || daemon.metric("keytide_spool_throttles_total", &[]) == 1.0);
    let rate = || daemon.metric("keytide_spool_write_rate", &[]);
    until("a halved rate", || rate() < 30.0);
    assert!(rate() >= 20.0, "halved once: {}", rate());
    let mut n = 0;
    let grown = patiently(|| {
        n += 1;
        create(&stage, &format!("app/{n}"), "1");
        thread::sleep(Duration::from_millis(200));
        rate() > 34.0
    });
    assert!(grown, "it comes back: {}", rate());
    until_idle(&stage, &daemon);
    assert!((0..=n).all(|n| stage.aws.value(&format!("app/{n}")).is_some()));
    assert_eq!(daemon.metric("keytide_spool_throttles_total", &[]), 1.0);
}

#[test]
fn new_secrets_beyond_the_hours_wait_without_a_call_and_rotations_go_on() {
    let stage = with_spool(Stage::new(), &up("prefix: app/, rate: none, max_new_secrets_per_hour: 3"));
    stage.aws.put("app/old", "1");
    let daemon = stage.run();
    for n in 0..3 {
        create(&stage, &format!("app/{n}"), "1");
    }
    until_idle(&stage, &daemon);
    assert_eq!(daemon.metric("keytide_spool_new_secrets_total", &[]), 3.0);
    create(&stage, "app/3", "1");
    create(&stage, "app/4", "1");
    until("both to wait", || problems(&stage).len() == 2);
    for (subject, (reason, message)) in problems(&stage) {
        assert_eq!(reason, "new_secret_limit", "{subject}");
        assert!(message.contains(&subject) && message.contains("max_new_secrets_per_hour"), "{message}");
    }
    stage.aws.clear_requests();
    for n in 0..3 {
        leave(&stage, &json!({"op": "rotate", "name": format!("app/{n}"), "value": "2"}));
    }
    // An upsert of what is there, and a name that was there, make no secret more.
    create(&stage, "app/old", "2");
    leave(&stage, &json!({"op": "rename", "name": "app/0", "new_name": "app/moved"}));
    until("all others", || spool(&stage)["claimed"] == 2);
    // Longer than any backoff of a failure that passes, at first.
    thread::sleep(Duration::from_secs(3));
    let waiting = |id: &String| id == "app/3" || id == "app/4";
    assert!(
        !stage.aws.requests().iter().any(|request| request.secret_ids.iter().any(waiting)),
        "no call while it waits"
    );
    assert_eq!(stage.aws.value("app/old").as_deref(), Some("2"));
    assert_eq!(stage.aws.value("app/moved").as_deref(), Some("2"));
    assert_eq!(stage.aws.value("app/2").as_deref(), Some("2"));
    assert_eq!(stage.aws.value("app/3"), None);
    assert_eq!(daemon.metric("keytide_spool_retries_total", &["reason=\"new_secret_limit\""]), 2.0);
    // Somebody else makes one of them; nothing else waits for the hour then. A later value of it is no reason to ask.
    assert_eq!(daemon.log().matches("max_new_secrets_per_hour").count(), 1, "said once: {}", daemon.log());
}

#[test]
fn a_file_is_noticed_at_once_where_the_file_system_tells() {
    let stage = with_spool(Stage::new(), &up("prefix: app/"));
    let daemon = stage.run();
    create(&stage, "app/first", "1");
    until_idle(&stage, &daemon);
    // The look that follows a claim is over; the next one is half a minute away, which is longer than a test waits.
    thread::sleep(Duration::from_secs(3));
    create(&stage, "app/second", "1");
    until("the second one", || stage.aws.value("app/second").is_some());
    assert!(!daemon.log().contains("gives no events"), "{}", daemon.log());
}

#[test]
fn without_watches_the_spool_is_looked_at_and_that_is_said_once() {
    let mut probe = Command::new("unshare");
    if is_root() {
        probe.uid(USER).gid(USER);
    }
    let script =
        "echo 0 >/proc/sys/user/max_inotify_instances && exec setpriv --ambient-caps=-all --inh-caps=-all \"$@\"";
    let shell = ["--user", "--map-current-user", "--keep-caps", "sh", "-c", script, "sh"];
    let probe = probe.args(shell).arg("true").output().expect("this test needs the program unshare");
    assert!(probe.status.success(), "this test needs user namespaces for ordinary users: {}", stderr(&probe));
    let stage = with_spool(Stage::new(), &up("prefix: app/"));
    let keytide = stage.command(&["run", "--config", &stage.path("keytide.yaml").display().to_string()]);
    let mut command = Command::new("unshare");
    command.args(shell).arg(keytide.get_program()).args(keytide.get_args()).env_clear().env("PATH", "/usr/bin:/bin");
    for (name, value) in keytide.get_envs() {
        command.env(name, value.unwrap());
    }
    if is_root() {
        command.uid(USER).gid(USER);
    }
    let daemon = stage.start(command);
    daemon.until_log("the file system gives no events of the spool");
    for n in 0..3 {
        create(&stage, &format!("app/{n}"), "1");
        until("the entry", || stage.aws.value(&format!("app/{n}")).is_some());
        // Past the look that follows a claim.
        thread::sleep(Duration::from_millis(1500));
    }
    assert_eq!(daemon.log().matches("gives no events of the spool").count(), 1, "{}", daemon.log());
    assert_eq!(daemon.get("/livez").status, 200);
}
