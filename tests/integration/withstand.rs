//! STS that does not answer, answers nonsense, or says no; credentials that end while they are in use.

use std::time::Duration;

use keytide_emulator::{Fault, FaultKind, Seed, User};
use serde_json::{Map, Value, json};

use crate::{
    cast::{
        AWAY, KEYS, LATE, OFTEN, arn, assert_clean, aws, aws_with, fails, lenient, nobody, of_user, play, pod, reader,
        says, somebody, sts, together, token,
    },
    support::{ACCESS_KEY_ID, SECRET_ACCESS_KEY, Stage, block, until},
};

const EXCHANGE: &str = "AssumeRoleWithWebIdentity";
const UNREADABLE: &str = "an answer that cannot be read";

/// Sessions that last so long.
fn seed(seconds: u64) -> Seed {
    Seed::default().role(reader("pod").trusts_web_identity()).session_lifetime(Duration::from_secs(seconds))
}

/// AWS's message holds what was sent, as some of AWS's do.
fn error(code: &str, status: u16) -> FaultKind {
    FaultKind::Error { code: code.to_owned(), status, message: token("pod") }
}

/// The session ends while STS is struck: what is said then, and what is counted.
fn strikes() -> [(FaultKind, &'static str, &'static str); 12] {
    let page = FaultKind::Body("<html>canary-page".to_owned());
    let half = format!(
        "<{EXCHANGE}Response><{EXCHANGE}Result><Credentials><AccessKeyId>ASIACANARY</AccessKeyId>\
         <SecretAccessKey>canary-secret-of-a-session</SecretAccessKey><SessionToken></SessionToken>\
         <Expiration>2100-01-01T00:00:00Z</Expiration></Credentials></{EXCHANGE}Result></{EXCHANGE}Response>"
    );
    [
        (FaultKind::Throttle, "throttled", "Throttling"),
        (FaultKind::InternalError, "unavailable", "InternalFailure"),
        (error("", 503), "unavailable", "HTTP status 503"),
        (FaultKind::Hang, "unavailable", "no answer in time"),
        (FaultKind::Latency(Duration::from_secs(2)), "unavailable", "no answer in time"),
        (FaultKind::CutAfter(200), "unavailable", UNREADABLE),
        (page, "unavailable", UNREADABLE),
        (FaultKind::Body(half), "unavailable", "the answer holds no valid credentials"),
        (error("IDPCommunicationError", 400), "unavailable", "IDPCommunicationError"),
        (error("AccessDenied", 403), "identity", "trust policy must allow"),
        (error("IDPRejectedClaim", 403), "identity", "is it of this cluster"),
        (error("RegionDisabledException", 403), "identity", "RegionDisabledException"),
    ]
}

#[test]
fn whatever_sts_answers_the_last_good_value_stays_and_no_word_of_it_is_passed_on() {
    together(strikes(), |(kind, reason, what)| {
        let scene = play(pod(seed(2)));
        scene.stage.aws.fault(Fault::on(EXCHANGE).kind(kind));
        scene.suffers(reason, &[EXCHANGE, &arn("pod"), what]);
        let failures = ["AssumeRoleWithWebIdentity", "throttled", "unavailable", "identity", "denied", "refused"];
        let count = |outcome: &&str| scene.daemon.metric("keytide_aws_requests_total", &[failures[0], outcome]);
        // Half of an answer is one, for who counts calls.
        assert!(what.starts_with("the answer") || failures[1..].iter().map(count).sum::<f64>() >= 1.0, "{what}");
        scene.stage.aws.clear_faults();
        scene.recovers();
    });
}

#[test]
fn an_sts_that_hangs_up_leaves_the_last_good_value() {
    let scene = play(pod(seed(2)));
    scene.stage.aws.set_down(true);
    until("the end of the session", || scene.message().contains(EXCHANGE));
    scene.suffers("unavailable", &[&arn("pod")]);
    scene.stage.aws.set_down(false);
    scene.recovers();
}

#[test]
fn a_slow_sts_is_waited_for() {
    let stage = pod(seed(3 + LATE.as_secs()));
    lenient(&stage);
    stage.aws.fault(Fault::on(EXCHANGE).kind(FaultKind::Latency(Duration::from_millis(400))));
    let scene = play(stage);
    until("a renewal", || scene.stage.aws.count(EXCHANGE) >= 2);
    assert_eq!(scene.daemon.metric("keytide_refreshes_total", &["incomplete"]), 0.0);
    scene.recovers();
}

#[test]
fn a_start_without_sts_ends_with_the_role_and_what_failed() {
    let cases: [(FaultKind, &[&str]); 6] = [
        (FaultKind::Throttle, &["Throttling"]),
        (FaultKind::InternalError, &["InternalFailure"]),
        (FaultKind::Hang, &["the first refresh was not complete within"]),
        (FaultKind::CutAfter(50), &[UNREADABLE]),
        (FaultKind::Body("canary-nonsense".to_owned()), &[UNREADABLE]),
        (error("AccessDenied", 403), &["trust policy must allow sts:AssumeRoleWithWebIdentity"]),
    ];
    together(cases, |(kind, parts)| {
        let stage = pod(seed(3600));
        let hangs = matches!(kind, FaultKind::Hang);
        stage.aws.fault(Fault::on(EXCHANGE).kind(kind));
        let log = fails(&stage, 1, parts);
        // A call that is still under way when the time is over has not failed yet.
        assert!(hangs || log.contains(&arn("pod")), "{log}");
        assert_eq!(stage.aws.count("GetSecretValue"), 0);
    });
}

#[test]
fn a_start_waits_for_an_sts_that_comes_back() {
    let stage = pod(seed(3600));
    stage.aws.fault(Fault::on(EXCHANGE).times(2));
    let scene = play(stage);
    assert_eq!(scene.stage.aws.count(EXCHANGE), 3);
    scene.recovers();
}

#[test]
fn a_role_that_does_not_trust_us_is_told_with_both_and_is_used_once_it_does() {
    let stage = somebody(Seed::default().role(reader("app")).session_lifetime(Duration::from_secs(2)));
    aws(&stage, &format!("roles: [{{arn: \"{}\"}}]", arn("app")));
    let who = format!("the identity of access key {ACCESS_KEY_ID}");
    let words = ["AssumeRole", &arn("app"), "its trust policy must allow sts:AssumeRole", &who, "external id"];
    fails(&stage, 1, &words);
    stage.aws.add_role(of_user("app"));
    let scene = play(stage);
    scene.stage.aws.add_role(reader("app"));
    scene.suffers("identity", &words);
    scene.stage.aws.add_role(of_user("app"));
    scene.recovers();
}

#[test]
fn a_wrong_and_a_missing_external_id_are_told_apart() {
    let stage = somebody(Seed::default().role(of_user("app").external_id("right")));
    aws(&stage, &format!("roles: [{{arn: \"{}\", external_id: wrong}}]", arn("app")));
    fails(&stage, 1, &[&arn("app"), "is the external id the one that its trust policy asks for?"]);
    aws(&stage, &format!("roles: [{{arn: \"{}\"}}]", arn("app")));
    fails(&stage, 1, &[&arn("app"), "may ask for an external id, and none is configured"]);
    // The configuration is corrected under the running process.
    stage.aws.add_role(of_user("app").external_id("wrong"));
    aws(&stage, &format!("roles: [{{arn: \"{}\", external_id: wrong}}]", arn("app")));
    let scene = play(stage);
    scene.stage.aws.add_role(of_user("app").external_id("right"));
    aws(&scene.stage, &format!("roles: [{{arn: \"{}\", external_id: right}}]", arn("app")));
    until("the right one", || sts(&scene.stage).iter().any(|call| call.contains(" id right by ")));
    scene.recovers();
}

#[test]
fn a_role_of_another_account_needs_a_policy_of_ours_too_and_that_is_said() {
    let foreign = reader("foreign").account(AWAY).trusts(&arn("pod"));
    let stage = pod(Seed::default().role(reader("pod").trusts_web_identity()).role(foreign));
    let foreign = format!("arn:aws:iam::{AWAY}:role/foreign");
    aws(&stage, &format!("roles: [{{arn: \"{foreign}\"}}]"));
    stage.aws.allow("pod", &[]);
    fails(&stage, 1, &[&foreign, &format!("role {}", arn("pod")), "whose own policy must allow it too"]);
}

/// A hundred secrets, which are five calls.
fn hundred(stage: &Stage, aws: &str) -> Value {
    let mut values = Map::new();
    let mut keys = "keys:\n".to_owned();
    for i in 0..100 {
        stage.aws.put(&format!("s{i}"), "1");
        keys += &format!("  - {{name: K{i}, secret: s{i}}}\n");
        values.insert(format!("K{i}"), "1".into());
    }
    aws_with(stage, aws, OFTEN, &keys);
    Value::Object(values)
}

#[test]
fn a_hundred_secrets_are_read_with_one_session_and_survive_its_end_in_the_middle() {
    let stage = pod(seed(3600));
    let values = hundred(&stage, "use_fips_endpoint: false");
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(stage.values(), values);
    assert_eq!((stage.aws.count(EXCHANGE), stage.aws.count("BatchGetSecretValue")), (1, 5));
    // Two of five calls pass; then the session is over.
    stage.aws.fault(Fault::on("BatchGetSecretValue").skip(2).times(3).kind(FaultKind::ExpiredToken));
    until("a part of the keys to go stale", || daemon.metric("keytide_stale_keys", &["\"identity\""]) > 0.0);
    assert_eq!(stage.values(), values, "nothing is missing, and nothing is half");
    until("all keys fresh", || daemon.metric("keytide_keys", &["fresh"]) == 100.0);
    assert_eq!(stage.aws.count("GetSecretValue"), 0, "an ended session is no reason for more calls");
    assert_clean(&daemon.log());
}

#[test]
fn sessions_that_aws_ends_early_are_replaced() {
    let stage = pod(seed(4));
    let values = hundred(&stage, "use_fips_endpoint: false");
    let daemon = stage.run();
    daemon.until_ready();
    stage.aws.expire_sessions();
    until("stale keys", || daemon.metric("keytide_stale_keys", &["\"identity\""]) == 100.0);
    assert_eq!(stage.values(), values);
    until("fresh keys", || daemon.metric("keytide_keys", &["fresh"]) == 100.0);
    stage.aws.put("s7", "2");
    until("a new value", || stage.values()["K7"] == "2");
}

#[test]
fn credentials_that_aws_does_not_accept_are_not_renewed_at_every_read() {
    let scene = play(pod(seed(3600)));
    scene.stage.aws.fault(Fault::on("GetSecretValue").kind(FaultKind::ExpiredToken));
    scene.suffers("identity", &["GetSecretValue", "ExpiredTokenException", &arn("pod")]);
    let before = scene.stage.aws.count("GetSecretValue");
    until("three more reads", || scene.stage.aws.count("GetSecretValue") >= before + 3);
    assert_eq!(scene.stage.aws.count(EXCHANGE), 1, "at most once a minute");
    scene.stage.aws.clear_faults();
    scene.recovers();
}

#[test]
fn a_wrong_secret_key_is_told_as_that_and_not_as_a_matter_of_clocks() {
    let mut stage = somebody(Seed::default().role(of_user("app")));
    stage.env("AWS_SECRET_ACCESS_KEY", "canary-not-the-secret-key-of-this-id");
    let log = fails(&stage, 1, &["GetSecretValue", ACCESS_KEY_ID]);
    assert!(log.contains("secret access key") || log.contains("AWS_SECRET_ACCESS_KEY"), "{log}");
    aws(&stage, &format!("roles: [{{arn: \"{}\"}}]", arn("app")));
    let log = fails(&stage, 1, &["GetCallerIdentity", ACCESS_KEY_ID]);
    assert!(log.contains("secret access key") || log.contains("AWS_SECRET_ACCESS_KEY"), "{log}");
}

#[test]
fn static_keys_that_aws_does_not_know_are_told_by_their_id() {
    let mut stage = somebody(Seed::default());
    stage.env("AWS_ACCESS_KEY_ID", "AKIANOBODY");
    fails(&stage, 1, &["UnrecognizedClientException", "AWS does not accept the credentials", "AKIANOBODY"]);
    // Once AWS knows them, the running process goes on.
    let scene = {
        stage.env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID);
        play(stage)
    };
    scene.stage.aws.fault(Fault::on("GetSecretValue").kind(error("UnrecognizedClientException", 400)));
    scene.suffers("identity", &[ACCESS_KEY_ID]);
    scene.stage.aws.clear_faults();
    scene.recovers();
}

#[test]
fn static_keys_beside_a_role_are_what_assumes_it() {
    let stage = somebody(Seed::default().role(of_user("app")));
    stage.aws.add_user(User::new("keytide", ACCESS_KEY_ID, SECRET_ACCESS_KEY));
    fails(&stage, 1, &["AccessDeniedException", "allow secretsmanager:GetSecretValue"]);
    aws(&stage, &format!("roles: [{{arn: \"{}\"}}]", arn("app")));
    play(stage).recovers();
}

#[test]
fn the_half_of_a_pair_is_an_error_that_names_the_other_half() {
    let pairs = [
        ("AWS_SECRET_ACCESS_KEY", "canary-secret", "AWS_ACCESS_KEY_ID"),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID, "AWS_SECRET_ACCESS_KEY"),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pod", "AWS_WEB_IDENTITY_TOKEN_FILE"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token", "AWS_ROLE_ARN"),
    ];
    for (set, value, missing) in pairs {
        let mut stage = nobody(Seed::default());
        stage.env(set, value);
        fails(&stage, 64, &[missing, &format!("not set, although {set} is: set both or neither")]);
    }
    let mut stage = nobody(Seed::default());
    stage.env("AWS_ROLE_ARN", "pod").env("AWS_WEB_IDENTITY_TOKEN_FILE", "/token");
    fails(&stage, 64, &["AWS_ROLE_ARN", "expected the ARN of a role"]);
    stage.env("AWS_ROLE_ARN", &arn("pod")).env("AWS_WEB_IDENTITY_TOKEN_FILE", "token");
    fails(&stage, 64, &["AWS_WEB_IDENTITY_TOKEN_FILE", "expected an absolute path"]);
}

#[test]
fn a_start_without_credentials_asks_nobody_and_names_every_way() {
    let stage = nobody(Seed::default());
    stage.config(&block(OFTEN, KEYS));
    let ways = ["AWS_WEB_IDENTITY_TOKEN_FILE", "eks.amazonaws.com/role-arn", "allow_instance_role"];
    says(&fails(&stage, 1, &ways), &["Pod Identity"]);
    assert!(stage.aws.requests().is_empty());
    assert_eq!(stage.values(), json!(null));
}

#[test]
fn a_key_with_a_line_break_at_its_end_is_an_error_that_says_so_and_no_panic() {
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", format!("{ACCESS_KEY_ID}\n")),
        ("AWS_ACCESS_KEY_ID", " ".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "canary-secret-with-an-end\n".to_owned()),
        ("AWS_SESSION_TOKEN", "canary token".to_owned()),
    ] {
        let mut stage = somebody(Seed::default());
        stage.env(name, &value);
        let log = fails(&stage, 64, &["AWS_ACCESS_KEY_ID", "holds what no key holds"]);
        assert!(!log.contains("panicked") && !log.contains("canary"), "{log}");
    }
}

#[test]
fn an_answer_whose_id_is_no_id_is_no_panic() {
    let answer = "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials>\
                  <AccessKeyId>AS&#10;IA</AccessKeyId><SecretAccessKey>x</SecretAccessKey><SessionToken>y</SessionToken>\
                  <Expiration>2100-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>";
    let stage = somebody(Seed::default().role(of_user("app")));
    aws(&stage, &format!("roles: [{{arn: \"{}\"}}]", arn("app")));
    stage.aws.fault(Fault::on("AssumeRole").kind(FaultKind::Body(answer.to_owned())));
    let log = fails(&stage, 1, &["AssumeRole", "the answer holds no valid credentials"]);
    assert!(!log.contains("panicked"), "{log}");
}
