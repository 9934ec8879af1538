//! Chains of roles: each is assumed from the one before it, with what its own trust policy asks for.

use std::time::Duration;

use keytide_emulator::{Fault, FaultKind, PodIdentity, Role, Seed, Statement};

use crate::{
    cast::{
        AWAY, HOME, KEYS, OFTEN, Scene, arn, aws, fails, nobody, of_user, play, pod, reader, readers, reads, somebody,
        sts, together, token,
    },
    support::{Stage, block, stderr, stdout, until},
};

const PROBE: &str = "GetCallerIdentity by user/keytide in us-east-1";

fn far(name: &str) -> String {
    format!("arn:aws:iam::{AWAY}:role/{name}")
}

/// `first`, then `far/second` of another account with an external id, then `third` at home again.
fn seed() -> Seed {
    let second = Role { path: "/far/".to_owned(), ..reader("second") };
    let third = reader("third").trusts(&far("far/second"));
    Seed::default()
        .role(of_user("first").trusts_web_identity().trusts(&arn("eks")))
        .role(second.account(AWAY).trusts(&arn("first")).external_id("two/2"))
        .role(third)
        .role(reader("eks"))
}

/// These roles as the configuration has them: an ARN, and what else is said of it.
fn roles(stage: &Stage, settings: &str, roles: &[(&str, &str)]) {
    let mut text = format!("aws:\n  region: us-east-1\n{settings}  roles:\n");
    for (arn, more) in roles {
        text += &format!("    - {{arn: \"{arn}\", {more}}}\n");
    }
    stage.config(&block(OFTEN, KEYS).replace("aws: {region: us-east-1}\n", &text));
}

#[test]
fn a_chain_of_two_roles_ends_in_another_account() {
    let stage = somebody(seed());
    let second = far("far/second");
    roles(&stage, "", &[(&arn("first"), ""), (&second, "external_id: two/2, session_name: two")]);
    let calls = [
        PROBE,
        "AssumeRole role/first as keytide by user/keytide in us-east-1",
        &format!("AssumeRole {second} as two id two/2 by assumed-role/first/keytide in us-east-1"),
    ];
    reads(&stage, &format!("arn:aws:sts::{AWAY}:assumed-role/second/two in us-east-1"), &calls);
}

#[test]
fn a_chain_of_three_roles_carries_tags_external_ids_and_durations() {
    let stage = somebody(seed());
    stage.aws.add_role(Role { max_session_seconds: Some(7200), ..of_user("first") });
    let second = far("far/second");
    let tags = "session_tags: {team: a b, env: \"1\"}, transitive_tag_keys: [team], session_duration: 2h";
    roles(
        &stage,
        "",
        &[
            (&arn("first"), tags),
            (&second, "external_id: two/2, session_duration: 15m, session_tags: {step: two}"),
            (&arn("third"), "session_duration: 1h"),
        ],
    );
    // No probe: a session with tags is always made.
    let calls = [
        "AssumeRole role/first as keytide for 7200 team=a b env=1 keep team by user/keytide in us-east-1",
        &format!("AssumeRole {second} as keytide id two/2 for 900 step=two by assumed-role/first/keytide in us-east-1"),
        &format!(
            "AssumeRole role/third as keytide for 3600 by arn:aws:sts::{AWAY}:assumed-role/second/keytide in us-east-1"
        ),
    ];
    let mut sorted = sts_of(&stage, "assumed-role/third/keytide in us-east-1");
    // The order of a mapping's entries is not a promise.
    sorted[0] = sorted[0].replace("env=1 team=a b", "team=a b env=1");
    assert_eq!(sorted, calls);
}

/// One run that reads as this; what STS was asked.
#[track_caller]
fn sts_of(stage: &Stage, who: &str) -> Vec<String> {
    let output = stage.once();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(readers(stage), [who]);
    sts(stage)
}

#[test]
fn a_tag_that_the_chain_carries_already_is_refused_by_sts_and_told_with_the_role() {
    let stage = somebody(seed());
    let tags = "session_tags: {team: a}, transitive_tag_keys: [team]";
    roles(&stage, "", &[(&arn("first"), tags), (&far("far/second"), "external_id: two/2, session_tags: {Team: b}")]);
    fails(&stage, 1, &["AssumeRole", &far("far/second"), "InvalidParameterValue", "session_tags"]);
}

#[test]
fn a_role_that_takes_no_tags_is_told_with_the_permission_that_they_need() {
    let stage = somebody(Seed::default().role(of_user("first").denies_tags()));
    roles(&stage, "", &[(&arn("first"), "session_tags: {team: a}")]);
    fails(&stage, 1, &[&arn("first"), "its trust policy must allow sts:AssumeRole and sts:TagSession"]);
    // The sessions of Pod Identity bring tags of their own.
    let seed = Seed::default().role(reader("eks")).role(reader("first").trusts(&arn("eks")).denies_tags());
    let mut stage = nobody(Seed { pod_identity: Some(PodIdentity::new(&arn("eks"))), ..seed });
    let url = format!("{}/v1/credentials", stage.aws.url());
    stage.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url).env("AWS_CONTAINER_AUTHORIZATION_TOKEN", &token("pod"));
    roles(&stage, "", &[(&arn("first"), "")]);
    fails(&stage, 1, &[&arn("first"), "sts:TagSession"]);
}

#[test]
fn a_token_of_the_settings_begins_the_chain() {
    let stage = nobody(seed());
    let file = stage.write("own/token", token("own")).display().to_string();
    let settings = format!("  web_identity_token_file: {file}\n");
    roles(
        &stage,
        &settings,
        &[(&arn("first"), "session_duration: 1h, session_name: one"), (&far("far/second"), "external_id: two/2")],
    );
    let calls = [
        "AssumeRoleWithWebIdentity role/first as one for 3600 unsigned",
        &format!("AssumeRole {} as keytide id two/2 by assumed-role/first/one in us-east-1", far("far/second")),
    ];
    reads(&stage, &format!("arn:aws:sts::{AWAY}:assumed-role/second/keytide in us-east-1"), &calls);
    roles(&stage, &settings, &[(&arn("first"), "external_id: x-1")]);
    fails(&stage, 64, &["keytide.aws.roles[0]", "a role that is assumed with a web-identity token has no external_id"]);
    roles(&stage, &settings, &[(&arn("first"), "session_tags: {a: b}")]);
    fails(&stage, 64, &["keytide.aws.roles[0]", "has no session_tags: they are in the token"]);
}

#[test]
fn a_session_longer_than_an_hour_in_a_chain_is_an_error_of_the_configuration() {
    let long = "session_duration: 61m";
    let message = "expected a session_duration of at most 1h";
    let second = far("far/second");
    let stage = somebody(seed());
    roles(&stage, "", &[(&arn("first"), ""), (&second, long)]);
    fails(&stage, 64, &["keytide.aws.roles[1]", message]);
    roles(&stage, "", &[(&arn("first"), ""), (&second, ""), (&arn("third"), long)]);
    fails(&stage, 64, &["keytide.aws.roles[2]", message]);
    // From a token's session the first role that is assumed is one of a chain already.
    let stage = pod(seed());
    roles(&stage, "", &[(&arn("third"), long)]);
    fails(&stage, 64, &["keytide.aws.roles[0]", message]);
    for (duration, what) in [("14m", "at least 15m"), ("13h", "at most 12h"), ("long", "a duration such as 1h")] {
        roles(&stage, "", &[(&arn("first"), &format!("session_duration: {duration}"))]);
        fails(&stage, 64, &["keytide.aws.roles[0].session_duration", what]);
    }
    // What STS itself does not allow is told as that.
    let stage = somebody(seed());
    roles(&stage, "", &[(&arn("first"), "session_duration: 2h")]);
    fails(&stage, 1, &[&arn("first"), "is the session's duration within the role's maximum"]);
}

#[test]
fn each_error_of_a_role_is_told_with_its_place() {
    let stage = somebody(seed());
    let tags: String = (0..51).map(|i| format!("t{i}: x, ")).collect();
    for (more, place, what) in [
        ("session_name: a", "session_name", "expected the name of a session"),
        ("external_id: \"a b\"", "external_id", "expected an external id"),
        ("transitive_tag_keys: [team]", "transitive_tag_keys[0]", "expected a key of session_tags"),
        (&format!("session_tags: {{{tags}}}"), "roles[0]", "expected at most 50 session_tags"),
        ("policy: x", "roles[0]", "policy"),
    ] {
        roles(&stage, "", &[(&arn("first"), more)]);
        fails(&stage, 64, &["keytide.aws.roles[0]", place, what]);
    }
    roles(&stage, "", &[("first", "")]);
    fails(&stage, 64, &["keytide.aws.roles[0].arn", "expected the ARN of a role"]);
}

#[test]
fn each_hop_of_a_chain_keeps_its_session_and_only_the_struck_one_is_asked_again() {
    let second = far("far/second");
    let stage = somebody(seed());
    roles(&stage, "", &[(&arn("first"), ""), (&second, "external_id: two/2")]);
    stage.aws.fault(Fault::on("AssumeRole").skip(1).times(2).kind(FaultKind::InternalError));
    let scene = play(stage);
    let calls = sts(&scene.stage);
    assert_eq!(calls.iter().filter(|call| call.starts_with("AssumeRole role/first ")).count(), 1, "{calls:?}");
    assert_eq!(calls.iter().filter(|call| call.starts_with(&format!("AssumeRole {second} "))).count(), 3, "{calls:?}");
    assert_eq!(calls.iter().filter(|call| call.starts_with("GetCallerIdentity")).count(), 1, "{calls:?}");
    until("more reads", || scene.stage.aws.count("GetSecretValue") >= 3);
    assert_eq!(sts(&scene.stage).len(), calls.len());
    scene.recovers();
}

#[test]
fn a_chain_survives_the_end_of_its_sessions_and_names_the_hop_that_fails() {
    let second = far("far/second");
    let first = arn("first");
    let cases: [(&str, FaultKind, &str); 3] = [
        ("AssumeRoleWithWebIdentity", FaultKind::Throttle, &first),
        ("AssumeRole", FaultKind::Hang, &second),
        ("AssumeRole", FaultKind::ExpiredToken, &second),
    ];
    together(cases, |(action, kind, role)| {
        let mut stage = pod(seed().session_lifetime(Duration::from_secs(2)));
        stage.env("AWS_ROLE_ARN", &first);
        roles(&stage, "", &[(&second, "external_id: two/2")]);
        let reason = match kind {
            FaultKind::Throttle => "throttled",
            FaultKind::Hang => "unavailable",
            _ => "identity",
        };
        let scene = play(stage);
        scene.stage.aws.fault(Fault::on(action).kind(kind));
        scene.suffers(reason, &[action, role]);
        scene.stage.aws.clear_faults();
        scene.recovers();
    });
}

#[test]
fn a_chain_whose_middle_loses_its_trust_heals_when_it_is_trusted_again() {
    let second = far("far/second");
    let stage = somebody(seed().session_lifetime(Duration::from_secs(2)));
    roles(&stage, "", &[(&arn("first"), ""), (&second, "external_id: two/2"), (&arn("third"), "")]);
    let scene = play(stage);
    scene.stage.aws.allow("first", &[]);
    scene.suffers(
        "identity",
        &["AssumeRole", &second, &format!("role {}", arn("first")), "whose own policy must allow it"],
    );
    scene.stage.aws.allow("first", &[Statement::everything()]);
    scene.recovers();
}

/// A daemon with a role over static keys, for whom `GetCallerIdentity` is struck.
fn unasked(kind: FaultKind) -> Scene {
    let stage = somebody(seed());
    aws(&stage, &format!("roles: [{{arn: \"{}\"}}]", arn("first")));
    stage.aws.fault(Fault::on("GetCallerIdentity").kind(kind));
    play(stage)
}

#[test]
fn who_could_not_be_asked_who_we_are_assumes_the_role_once_and_does_not_ask_at_every_read() {
    let scene = unasked(FaultKind::InternalError);
    until("three reads", || scene.stage.aws.count("GetSecretValue") >= 3);
    let calls = sts(&scene.stage);
    assert_eq!(calls.iter().filter(|call| call.starts_with("AssumeRole role/first as keytide by")).count(), 1);
    assert_eq!(calls.len(), 2, "while the session lasts there is nothing to ask: {calls:?}");
    scene.recovers();
}

#[test]
fn a_question_who_we_are_that_is_never_answered_keeps_nobody_from_reading() {
    let scene = unasked(FaultKind::Hang);
    until("three reads", || scene.stage.aws.count("GetSecretValue") >= 3);
    assert_eq!(scene.daemon.metric("keytide_refreshes_total", &["incomplete"]), 0.0);
    scene.recovers();
}

#[test]
fn a_role_that_we_already_are_is_shown_with_who_sts_says_that_is() {
    let mut stage = nobody(Seed { pod_identity: Some(PodIdentity::new(&arn("eks")).session_name("eks")), ..seed() });
    let url = format!("{}/v1/credentials", stage.aws.url());
    stage.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url).env("AWS_CONTAINER_AUTHORIZATION_TOKEN", &token("pod"));
    roles(&stage, "", &[(&arn("eks"), "")]);
    let scene = play(stage);
    let identity = scene.stage.status()["identity"].clone();
    assert_eq!(identity["caller"], format!("arn:aws:sts::{HOME}:assumed-role/eks/eks"), "{identity}");
    assert_eq!(identity["account"], HOME, "{identity}");
    assert_eq!(sts(&scene.stage), ["GetCallerIdentity by assumed-role/eks/eks in us-east-1"]);
}

#[test]
fn a_second_identity_that_writes_is_understood_and_not_asked_by_who_reads() {
    let stage = somebody(seed());
    let writer = |more: &str| {
        stage.config(&block(OFTEN, &format!("{KEYS}virtual_keys:\n  aws:\n    roles:\n{more}\n")));
    };
    writer(&format!(
        "      - {{arn: \"{}\", external_id: w-1, session_name: writer, session_duration: 30m}}",
        arn("first")
    ));
    reads(&stage, "user/keytide in us-east-1", &[]);
    let config = stage.path("keytide.yaml").display().to_string();
    let output = stage.keytide(&["check", "--config", &config]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    writer(&format!("      - {{arn: \"{}\"}}\n    expect_role: \"{}\"", arn("first"), arn("third")));
    fails(&stage, 64, &["keytide.virtual_keys.aws.expect_role", &arn("third"), &arn("first")]);
    writer(&format!(
        "      - {{arn: \"{}\"}}\n      - {{arn: \"{}\", session_duration: 2h}}",
        arn("first"),
        arn("third")
    ));
    fails(&stage, 64, &["keytide.virtual_keys.aws.roles[1]", "at most 1h"]);
    stage.config(&block(OFTEN, &format!("{KEYS}virtual_keys: {{aws: {{expect_role: \"{HOME}\"}}}}\n")));
    fails(&stage, 64, &["keytide.virtual_keys.aws", "roles is required"]);
}
