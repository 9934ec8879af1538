//! keytide is who its service account's token says, as on EKS: IRSA.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    aws::Aws,
    helm::published,
    namespace::Namespace,
    sidecar::{Sidecar, application},
    wait::until,
};

pub(crate) const AUDIENCE: &str = "sts.amazonaws.com";
pub(crate) const ROLE: &str = "arn:aws:iam::123456789012:role/app";

/// How a token is exchanged.
const EXCHANGE: &str = "AssumeRoleWithWebIdentity";

/// An AWS that trusts the tokens of this cluster's issuer, by the keys that its API server publishes; sessions end soon.
pub(crate) fn aws(namespace: &Namespace) -> Aws {
    aws_with_keys(namespace, &published("/openid/v1/jwks"))
}

fn aws_with_keys(namespace: &Namespace, keys: &Value) -> Aws {
    let discovery = published("/.well-known/openid-configuration");
    let issuer = discovery["issuer"].as_str().unwrap();
    let provider = json!({"issuer": issuer, "audiences": [AUDIENCE], "keys": keys});
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
    let exchanges = || aws.requests(EXCHANGE).len();
    let before = exchanges();
    until("sessions to be renewed", || exchanges() >= before + 3);
    aws.put("app", &json!({"API_KEY": "rotated"}));
    let read = || namespace.exec("app", "app", &["cat", "/run/keytide/env/keys.env"]);
    until("a key that a later session read", || read().contains("API_KEY='rotated'"));
}

/// A pod of this specification waits, says which call failed, and was refused by AWS with this code each time.
#[track_caller]
fn is_refused(namespace: &Namespace, aws: &Aws, mut sidecar: Sidecar, spec: &Value, code: &str) {
    sidecar.config["refresh"]["startup_timeout"] = json!("5s");
    sidecar.start(namespace, "app", spec);
    namespace.until_described("app", EXCHANGE);
    assert_eq!(namespace.container("app", "app")["started"], false);
    let exchanges = aws.requests(EXCHANGE);
    let answered: BTreeSet<&str> = exchanges.iter().filter_map(|exchange| exchange["outcome"].as_str()).collect();
    // The last one may have no answer yet.
    assert!(answered.contains(code) && answered.iter().all(|one| [code, "pending"].contains(one)), "{exchanges:?}");
}

#[test]
fn a_token_for_another_audience_is_refused_and_the_pod_says_so() {
    let namespace = Namespace::new("audience");
    let aws = aws(&namespace);
    let sidecar = Sidecar::new(&aws).web_identity(ROLE, "https://kubernetes.default.svc");
    is_refused(&namespace, &aws, sidecar, &application("sleep 600"), "InvalidIdentityToken");
}

#[test]
fn a_token_of_another_service_account_is_refused() {
    let namespace = Namespace::new("stranger");
    let aws = aws(&namespace);
    namespace.kubectl(&["create", "serviceaccount", "stranger"]);
    let mut spec = application("sleep 600");
    spec["serviceAccountName"] = json!("stranger");
    is_refused(&namespace, &aws, Sidecar::new(&aws).web_identity(ROLE, AUDIENCE), &spec, "AccessDenied");
}

#[test]
fn a_token_that_another_key_signed_is_refused() {
    let namespace = Namespace::new("forger");
    let mut keys = published("/openid/v1/jwks");
    let modulus = keys["keys"][0]["n"].as_str().unwrap();
    keys["keys"][0]["n"] = json!(modulus.replacen(char::is_lowercase, "A", 1));
    let aws = aws_with_keys(&namespace, &keys);
    let sidecar = Sidecar::new(&aws).web_identity(ROLE, AUDIENCE);
    is_refused(&namespace, &aws, sidecar, &application("sleep 600"), "InvalidIdentityToken");
}
