//! Who keytide is: from the environment, a profile or a token, and never somebody else.

use std::{fs, time::Duration};

use keytide_emulator::{Role, Seed, Statement};
use serde_json::json;

use crate::support::{ACCESS_KEY_ID, SECRET_ACCESS_KEY, Stage, block, stderr, until};

const ONE: &str = "keys: [{name: A, secret: prod/a}]\n";
const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJl";

fn without_keys() -> Stage {
    let mut stage = Stage::new();
    stage.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    stage.aws.put("prod/a", "1");
    stage.config(&block("interval: 1s", ONE));
    stage
}

fn with_token(lifetime: Duration) -> Stage {
    let role =
        Role::new("keytide").allow(Statement::new(["secretsmanager:GetSecretValue"], ["*"])).trusts_web_identity();
    let mut stage = Stage::with(Seed::default().role(role).session_lifetime(lifetime));
    stage.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    let token = stage.path("token").display().to_string();
    stage.env("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/keytide").env("AWS_WEB_IDENTITY_TOKEN_FILE", &token);
    stage.aws.put("prod/a", "1");
    stage.config(&block("interval: 1s", ONE));
    stage
}

#[test]
fn without_credentials_it_ends_at_once_and_says_what_is_missing() {
    let stage = without_keys();
    let output = stage.once();
    assert_eq!(output.status.code(), Some(1));
    let log = stderr(&output);
    for part in ["AWS_WEB_IDENTITY_TOKEN_FILE", "eks.amazonaws.com/role-arn", "allow_instance_role"] {
        assert!(log.contains(part), "{part} in {log}");
    }
    assert!(stage.aws.requests().is_empty());
}

#[test]
fn a_half_set_pair_is_an_error_that_names_the_other_half() {
    let mut stage = without_keys();
    stage.env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID);
    let output = stage.once();
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("AWS_SECRET_ACCESS_KEY"), "{}", stderr(&output));
}

#[test]
fn a_profile_gives_its_static_keys() {
    let mut stage = without_keys();
    let keys = format!("[team]\naws_access_key_id = {ACCESS_KEY_ID}\naws_secret_access_key = {SECRET_ACCESS_KEY}\n");
    let file = stage.write("credentials", keys).display().to_string();
    stage.env("AWS_SHARED_CREDENTIALS_FILE", &file).env("AWS_PROFILE", "team");
    assert_eq!(stage.once().status.code(), Some(0));
    assert_eq!(stage.values(), json!({"A": "1"}));
}

#[test]
fn a_profile_that_runs_a_program_or_is_not_there_is_refused() {
    let mut stage = without_keys();
    let marker = stage.path("ran");
    let file = stage.write("config", format!("[profile team]\ncredential_process = touch {}\n", marker.display()));
    stage.env("AWS_CONFIG_FILE", &file.display().to_string()).env("AWS_PROFILE", "team");
    let log = stderr(&stage.once_within("2s"));
    assert!(log.contains("credential_process is not supported"), "{log}");
    assert!(!marker.exists());
    stage.env("AWS_PROFILE", "nobody");
    let log = stderr(&stage.once_within("2s"));
    assert!(log.contains("profile nobody") && log.contains("no such profile"), "{log}");
}

#[test]
fn a_web_identity_reads_its_token_again_at_every_renewal() {
    let stage = with_token(Duration::from_secs(4));
    stage.write("token", TOKEN);
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(stage.values(), json!({"A": "1"}));
    assert_eq!(stage.aws.count("AssumeRoleWithWebIdentity"), 1);
    assert!(daemon.metric("keytide_credentials_expiry_timestamp_seconds", &[]) > 0.0);
    until("a renewal", || stage.aws.count("AssumeRoleWithWebIdentity") >= 2);
    assert_eq!(stage.key_state("A"), "fresh");
    fs::remove_file(stage.path("token")).unwrap();
    until("the end of the session", || stage.key_state("A") == "stale (identity)");
    assert_eq!(stage.values(), json!({"A": "1"}), "the last good value stays");
    let message = stage.status()["keys"][0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains(&stage.path("token").display().to_string()), "{message}");
    stage.write("token", TOKEN);
    until("the recovery", || stage.key_state("A") == "fresh");
    assert!(!daemon.log().contains(TOKEN));
}

#[test]
fn a_token_that_cannot_be_one_is_told_by_its_file() {
    for (content, what) in [("", "the file is empty"), ("eyJhbGciOiJSUzI1NiJ9.eyJz", "not a whole JSON web token")] {
        let stage = with_token(Duration::from_hours(1));
        stage.write("token", content);
        let log = stderr(&stage.once_within("2s"));
        assert!(log.contains(what) && log.contains("/token"), "{log}");
        assert_eq!(stage.aws.count("AssumeRoleWithWebIdentity"), 0);
    }
}

#[test]
fn a_role_that_does_not_trust_us_is_told_with_what_to_do() {
    let mut stage = with_token(Duration::from_hours(1));
    stage.write("token", TOKEN);
    stage.aws.add_role(Role::new("other"));
    stage.env("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/other");
    let log = stderr(&stage.once_within("2s"));
    assert!(log.contains("role/other") && log.contains("trust policy"), "{log}");
}
