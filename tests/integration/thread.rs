//! The thread through everything: a secret in AWS becomes a file, and stays fresh.

use crate::support::Stage;

#[test]
fn a_primary_secret_reaches_the_env_file_and_stays_fresh() {
    let stage = Stage::new();
    stage.aws.put("app", r#"{"A": "1", "B": "it's"}"#);
    stage.config(
        "aws: {region: us-east-1}\nprimary_secret: {name: app}\nrefresh: {interval: 1s}\noutputs:\n  - env_file: {path: \"{dir}/env/keys.env\", format: posix}",
    );
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(stage.read("env/keys.env"), "A='1'\nB='it'\\''s'\n");
    assert_eq!(stage.aws.count("GetSecretValue"), 1, "one call a refresh");
    stage.aws.put("app", r#"{"A": "2", "B": "it's"}"#);
    stage.until_file("env/keys.env", "A='2'\nB='it'\\''s'\n");
}
