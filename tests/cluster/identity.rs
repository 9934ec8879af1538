//! keytide is who its service account's token says, as on EKS: IRSA.

use serde_json::{Value, json};

use crate::{
    aws::Aws,
    cluster::Cluster,
    namespace::Namespace,
    sidecar::{Sidecar, application},
    wait::until,
};

pub(crate) const AUDIENCE: &str = "sts.amazonaws.com";
pub(crate) const ROLE: &str = "arn:aws:iam::123456789012:role/app";

/// An AWS that trusts the tokens of this cluster's issuer, by the keys that its API server publishes; sessions end soon.
pub(crate) fn aws(namespace: &Namespace) -> Aws {
    let published =
        |path: &str| -> Value { serde_json::from_str(&Cluster::shared().kubectl(&["get", "--raw", path])).unwrap() };
    let discovery = published("/.well-known/openid-configuration");
    let issuer = discovery["issuer"].as_str().unwrap();
    let provider = json!({"issuer": issuer, "audiences": [AUDIENCE], "keys": published("/openid/v1/jwks")});
    let subject = format!("system:serviceaccount:{}:default", namespace.name());
    let role = json!({"name": "app", "web_identity": {"provider": issuer, "subject": subject},
        "statements": [{"actions": ["secretsmanager:GetSecretValue", "secretsmanager:BatchGetSecretValue"],
            "resources": ["arn:aws:secretsmanager:us-east-1:123456789012:secret:app-??????"]},
            {"actions": ["secretsmanager:BatchGetSecretValue"], "resources": ["*"]}]});
    let seed = json!({"secrets": {"app": {"API_KEY": "abc"}}, "oidc_providers": [provider], "roles": [role],
        "session_lifetime_seconds": 15, "users": []});
    Aws::start(namespace, &seed)
}

#[test]
fn a_token_of_the_service_account_is_exchanged_for_the_role_and_renewed() {
    let namespace = Namespace::new("identity");
    let aws = aws(&namespace);
    let sidecar = Sidecar::new(&aws).web_identity(ROLE, AUDIENCE);
    sidecar.start(&namespace, "app", &application("cat /run/keytide/env/keys.env; env; cat /proc/mounts; sleep 600"));
    namespace.until_ready("app");
    namespace.until_log("app", "app", " /proc ");
    let log = namespace.log("app", "app");
    assert!(log.contains("API_KEY='abc'"), "{log}");
    assert!(!log.contains("AWS_ROLE") && !log.contains("/var/run/secrets"), "the token is keytide's alone: {log}");
    let exchanges = || aws.requests("AssumeRoleWithWebIdentity").len();
    let before = exchanges();
    until("sessions to be renewed", || exchanges() >= before + 3);
    aws.put("app", &json!({"API_KEY": "rotated"}));
    let read = || namespace.exec("app", "app", &["cat", "/run/keytide/env/keys.env"]);
    until("a key that a later session read", || read().contains("API_KEY='rotated'"));
}

#[test]
fn a_token_for_another_audience_is_refused_and_the_pod_says_so() {
    let namespace = Namespace::new("audience");
    let aws = aws(&namespace);
    let mut sidecar = Sidecar::new(&aws).web_identity(ROLE, "https://kubernetes.default.svc");
    sidecar.config["refresh"]["startup_timeout"] = json!("5s");
    sidecar.start(&namespace, "app", &application("sleep 600"));
    namespace.until_described("app", "AssumeRoleWithWebIdentity");
    assert_eq!(namespace.container("app", "app")["started"], false);
}

#[test]
fn a_token_of_another_service_account_is_refused() {
    let namespace = Namespace::new("stranger");
    let aws = aws(&namespace);
    namespace.kubectl(&["create", "serviceaccount", "stranger"]);
    let mut sidecar = Sidecar::new(&aws).web_identity(ROLE, AUDIENCE);
    sidecar.config["refresh"]["startup_timeout"] = json!("5s");
    let mut spec = application("sleep 600");
    spec["serviceAccountName"] = json!("stranger");
    sidecar.start(&namespace, "app", &spec);
    namespace.until_described("app", "AssumeRoleWithWebIdentity");
    assert_eq!(namespace.container("app", "app")["started"], false);
}
