//! `expect_role`: nothing is done with credentials that STS did not prove to be those of whom the configuration expects.

use std::time::Duration;

use keytide_emulator::{Fault, FaultKind, PodIdentity, Role, Seed, User};
use serde_json::Value;

use crate::{
    cast::{
        AWAY, HOME, KEYS, OFTEN, SECOND, Scene, arn, assert_clean, aws, fails, keys_of, nobody, of_user, play, pod,
        reader, reads, says, second_user, shared_files, somebody, sts, together, token,
    },
    support::{ACCESS_KEY_ID, SECRET_ACCESS_KEY, Stage, block, stderr, stdout, until},
};

const REFUSALS: &str = "keytide_identity_refusals_total";

/// Pod Identity of the role `eks`, and another one that its association could name.
fn agent(seconds: u64) -> Stage {
    let seed = Seed::default().role(reader("eks")).role(reader("other")).session_lifetime(Duration::from_secs(seconds));
    let mut stage = nobody(Seed { pod_identity: Some(association("eks")), ..seed });
    let url = format!("{}/v1/credentials", stage.aws.url());
    stage.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url).env("AWS_CONTAINER_AUTHORIZATION_TOKEN", &token("pod"));
    stage
}

fn association(role: &str) -> PodIdentity {
    PodIdentity::new(&arn(role)).session_name("eks")
}

fn expect(stage: &Stage, whom: &str) {
    aws(stage, &format!("expect_role: {whom}"));
}

fn caller(role: &str) -> String {
    format!("arn:aws:sts::{HOME}:assumed-role/{role}/eks")
}

const PROBE: &str = "GetCallerIdentity by assumed-role/eks/eks in us-east-1";
const WHO: &str = "assumed-role/eks/eks in us-east-1";

#[test]
fn who_is_expected_is_proved_before_anything_is_read() {
    let foreign = format!("arn:aws:iam::{HOME}:role/a/path/eks");
    for whom in [
        format!("\"{}\"", arn("eks")),
        format!("\"{foreign}\""),
        format!("\"{HOME}\""),
        format!("[\"{}\", \"{HOME}\"]", arn("eks")),
        format!("[\"{HOME}\", \"{}\"]", arn("eks")),
    ] {
        let stage = agent(3600);
        expect(&stage, &whom);
        reads(&stage, WHO, &[PROBE]);
        let actions: Vec<String> = stage.aws.requests().into_iter().map(|request| request.action).collect();
        assert_eq!(actions, ["AssumeRoleForPodIdentity", "GetCallerIdentity", "GetSecretValue"], "{whom}");
    }
}

#[test]
fn somebody_else_at_the_start_ends_it_at_once_with_both_names() {
    let path = format!("arn:aws:iam::{HOME}:role/a/path/eks2");
    let cases = [
        (format!("\"{}\"", arn("other")), arn("other")),
        (format!("\"{path}\""), path),
        (format!("\"{AWAY}\""), format!("somebody of account {AWAY}")),
        (format!("\"arn:aws-cn:iam::{HOME}:role/eks\""), format!("arn:aws-cn:iam::{HOME}:role/eks")),
        (format!("[\"arn:aws:iam::{AWAY}:role/eks\", \"{AWAY}\"]"), format!("arn:aws:iam::{AWAY}:role/eks")),
    ];
    together(cases, |(whom, said)| {
        let stage = agent(3600);
        expect(&stage, &whom);
        let config = stage.path("keytide.yaml").display().to_string();
        // Not --once, and with the startup_timeout of five minutes.
        let mut daemon = stage.run_with(&["--log-level", "trace", "run", "--config", &config]);
        assert_eq!(daemon.wait(), 1);
        let log = daemon.log();
        says(&log, &[&format!("refused to be {}", caller("eks")), &said, "expect_role", "the agent at"]);
        assert_clean(&log);
        let check = stage.keytide(&["check", "--online", "--config", &config]);
        let said_there = stdout(&check) + &stderr(&check);
        assert_eq!(check.status.code(), Some(1), "{said_there}");
        says(&said_there, &[&caller("eks"), &said]);
        assert_eq!((stage.values(), stage.aws.count("GetSecretValue")), (Value::Null, 0), "{log}");
    });
}

#[test]
fn every_way_to_be_somebody_is_proved() {
    let expected = format!("expect_role: \"{}\"", arn("expected"));
    let seed = || Seed::default().user(second_user()).role(of_user("one")).role(reader("node"));
    // The environment's static keys.
    let stage = somebody(seed());
    aws(&stage, &expected);
    let log = fails(&stage, 1, &["refused to be arn:aws:iam::123456789012:user/keytide", &arn("expected")]);
    assert!(log.contains("the identity of access key"), "{log}");
    // A profile, also one with a role.
    let mut stage = nobody(seed());
    let role = format!("[profile team]\nrole_arn = {}\nsource_profile = base\n", arn("one"));
    let first = (ACCESS_KEY_ID, SECRET_ACCESS_KEY);
    shared_files(&mut stage, &role, &format!("[base]\n{}[second]\n{}", keys_of(first), keys_of(SECOND)));
    aws(&stage, &format!("profile: second, {expected}"));
    fails(&stage, 1, &["refused to be arn:aws:iam::123456789012:user/second", &arn("expected"), "profile second"]);
    aws(&stage, &format!("profile: team, {expected}"));
    fails(&stage, 1, &["refused to be arn:aws:sts::123456789012:assumed-role/one/keytide", "profile team"]);
    // The node.
    let mut stage = nobody(Seed { instance_role: Some(arn("node")), ..seed() });
    let url = stage.aws.url();
    stage.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url);
    aws(&stage, &format!("allow_instance_role: true, {expected}"));
    fails(&stage, 1, &["refused to be arn:aws:sts::123456789012:assumed-role/node/i-0123456789abcdef0"]);
    assert_eq!(stage.aws.count("GetSecretValue"), 0);
}

#[test]
fn a_configured_role_that_is_not_the_expected_one_is_an_error_before_anybody_is_asked() {
    let role = |name: &str| format!("roles: [{{arn: \"{}\"}}]", arn(name));
    let stage = somebody(Seed::default());
    for (whom, what) in [
        (format!("\"{}\"", arn("two")), format!("expects {}, but the configured role is {}", arn("two"), arn("one"))),
        (
            format!("\"{AWAY}\""),
            format!("expects somebody of account {AWAY}, but the configured role is {}", arn("one")),
        ),
        (
            format!("[\"{}\", \"{AWAY}\"]", arn("one")),
            "the role is not of this account: nobody could be both".to_owned(),
        ),
        (format!("[\"{}\", \"{}\"]", arn("one"), arn("two")), "expected the ARN of a role, an account".to_owned()),
        (HOME.to_owned(), "in quotation marks".to_owned()),
        ("[]".to_owned(), "expected the ARN of a role, an account".to_owned()),
        ("keytide".to_owned(), "expected the ARN of a role, an account".to_owned()),
    ] {
        aws(&stage, &format!("{}, expect_role: {whom}", role("one")));
        fails(&stage, 64, &["keytide.aws.expect_role", &what]);
    }
    // The role of IRSA is known as well.
    let stage = pod(Seed::default());
    expect(&stage, &format!("\"{}\"", arn("two")));
    fails(&stage, 64, &["keytide.aws.expect_role", &arn("two"), &arn("pod")]);
}

#[test]
fn what_sts_does_not_prove_is_not_used() {
    let cases = [
        (FaultKind::Throttle, "Throttling"),
        (FaultKind::InternalError, "InternalFailure"),
        (FaultKind::Body("<x/>".to_owned()), "GetCallerIdentity"),
        (FaultKind::Error { code: "AccessDenied".to_owned(), status: 403, message: token("pod") }, "AccessDenied"),
    ];
    together(cases, |(kind, what)| {
        let stage = agent(3600);
        expect(&stage, &format!("\"{}\"", arn("eks")));
        stage.aws.fault(Fault::on("GetCallerIdentity").kind(kind));
        fails(&stage, 1, &["failed to call GetCallerIdentity", what]);
        assert_eq!(stage.aws.count("GetSecretValue"), 0);
    });
}

/// A daemon that expects to be the role `eks`.
fn expecting() -> Scene {
    let stage = agent(2);
    expect(&stage, &format!("\"{}\"", arn("eks")));
    play(stage)
}

#[test]
fn somebody_else_later_reads_nothing_and_the_last_good_value_stays_until_we_are_ourselves_again() {
    let scene = expecting();
    assert_eq!(scene.metric(REFUSALS), 0.0);
    assert_eq!(scene.stage.status()["identity"]["caller"], caller("eks"));
    scene.stage.aws.set_pod_identity(Some(association("other")));
    scene.suffers(
        "unexpected_identity",
        &["refused to be", &caller("other"), &arn("eks"), "expect_role", "the agent at"],
    );
    assert!(scene.metric(REFUSALS) >= 1.0);
    scene.stage.aws.put("A", "of somebody else");
    let refusals = scene.metric(REFUSALS);
    until("another refusal", || scene.metric(REFUSALS) > refusals);
    scene.stays();
    let read_by_others =
        scene.stage.aws.requests().into_iter().filter(|request| {
            request.action == "GetSecretValue" && request.principal.as_deref() == Some(&caller("other"))
        });
    assert_eq!(read_by_others.count(), 0);
    scene.stage.aws.put("A", "1");
    scene.stage.aws.set_pod_identity(Some(association("eks")));
    scene.recovers();
}

#[test]
fn a_proof_that_fails_later_leaves_the_last_good_value() {
    let scene = expecting();
    scene.stage.aws.fault(Fault::on("GetCallerIdentity").kind(FaultKind::Hang));
    scene.suffers("unavailable", &["failed to call GetCallerIdentity", "no answer in time"]);
    scene.stage.aws.clear_faults();
    scene.recovers();
}

#[test]
fn each_session_is_proved_once_and_not_at_every_read() {
    let stage = agent(3600);
    expect(&stage, &format!("\"{}\"", arn("eks")));
    let scene = play(stage);
    until("three reads", || scene.stage.aws.count("GetSecretValue") >= 3);
    assert_eq!(sts(&scene.stage), [PROBE]);
    scene.recovers();
}

#[test]
fn a_profile_that_becomes_somebody_elses_is_refused_at_its_next_renewal() {
    let second = format!("arn:aws:iam::{HOME}:user/second");
    let mut stage = nobody(
        Seed::default()
            .user(second_user())
            .role(of_user("one"))
            .role(Role { path: "/other/".to_owned(), ..reader("two").trusts(&second) })
            .session_lifetime(Duration::from_secs(2)),
    );
    let config = |role: &str, source: &str| {
        format!("[profile team]\nrole_arn = arn:aws:iam::{HOME}:role/{role}\nsource_profile = {source}\n")
    };
    let first = (ACCESS_KEY_ID, SECRET_ACCESS_KEY);
    let keys = format!("[base]\n{}[second]\n{}", keys_of(first), keys_of(SECOND));
    shared_files(&mut stage, &config("one", "base"), &keys);
    aws(&stage, &format!("profile: team, expect_role: \"{}\"", arn("one")));
    let scene = play(stage);
    scene.stage.write("aws/config", config("other/two", "second"));
    let two = format!("arn:aws:sts::{HOME}:assumed-role/two/keytide");
    scene.suffers("unexpected_identity", &["refused to be", &two, &arn("one"), "profile team"]);
    assert!(scene.metric(REFUSALS) >= 1.0);
    scene.stage.write("aws/config", config("one", "base"));
    scene.recovers();
}

#[test]
fn a_role_that_we_already_are_is_proved_by_the_call_that_says_so() {
    let stage = agent(2);
    aws(&stage, &format!("roles: [{{arn: \"{0}\"}}], expect_role: \"{0}\"", arn("eks")));
    reads(&stage, WHO, &[PROBE]);
    let scene = play(stage);
    // The association changes: the role would have to be assumed by somebody whom it does not trust.
    scene.stage.aws.set_pod_identity(Some(association("other")));
    scene.suffers("identity", &["AssumeRole", &arn("eks")]);
    scene.stage.aws.set_pod_identity(Some(association("eks")));
    scene.recovers();
}

#[test]
fn a_restart_does_not_forget_who_is_expected() {
    // What was kept is used; somebody else still reads nothing.
    let mut scene = expecting();
    scene.daemon.kill();
    let Scene { stage, daemon: _ } = scene;
    stage.aws.set_pod_identity(Some(association("other")));
    stage.aws.put("A", "of somebody else");
    let scene = play(stage);
    scene.suffers("unexpected_identity", &[&caller("other"), &arn("eks")]);
    scene.stage.aws.put("A", "1");
    scene.stage.aws.set_pod_identity(Some(association("eks")));
    scene.recovers();
}

#[test]
fn a_user_of_an_expected_account_reads() {
    let mut stage = nobody(Seed { users: Vec::new(), ..Seed::default() });
    stage.aws.add_user(User { account: Some(AWAY.to_owned()), ..second_user() });
    stage.env("AWS_ACCESS_KEY_ID", SECOND.0).env("AWS_SECRET_ACCESS_KEY", SECOND.1);
    stage.config(&block(OFTEN, KEYS));
    expect(&stage, &format!("\"{AWAY}\""));
    let who = format!("arn:aws:iam::{AWAY}:user/second in us-east-1");
    reads(&stage, &who, &[&format!("GetCallerIdentity by {who}")]);
    expect(&stage, &format!("\"{HOME}\""));
    fails(&stage, 1, &["refused to be", &format!("arn:aws:iam::{AWAY}:user/second"), HOME]);
}
