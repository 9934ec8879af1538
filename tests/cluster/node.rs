//! The node's kubelet dies and comes back.

use serde_json::json;

use crate::{
    cluster::Cluster,
    identity::{self, AUDIENCE, ROLE},
    namespace::Namespace,
    scraping::{metrics, target},
    sidecar::{Sidecar, application},
    wait::until,
};

#[test]
#[ignore = "alone on the node: it takes away the kubelet"]
fn keys_move_on_while_the_kubelet_is_dead_and_its_next_token_is_used_when_it_is_back() {
    let namespace = Namespace::new("kubelet");
    let aws = identity::aws(&namespace);
    let script = "while sleep 0.2; do cat /run/keytide/env/keys.env; done";
    Sidecar::new(&aws).web_identity(ROLE, AUDIENCE).start(&namespace, "app", &application(script));
    namespace.until_ready("app");
    let address = target(&namespace, "app", "sidecar");
    Cluster::shared().kill("kubelet");
    aws.put("app", &json!({"API_KEY": "two"}));
    let metrics = || metrics(&address);
    until("the change", || metrics().contains("keytide_key_changes_total 2"));
    let token = |metrics: String| {
        let line =
            metrics.lines().find(|line| line.starts_with("keytide_web_identity_token_expiry_timestamp_seconds "));
        line.map(str::to_owned).unwrap()
    };
    let old = token(metrics());
    Cluster::shared().start_again("kubelet");
    // Which asks for a new token of the pod's service account, as it does in any pod once in a while.
    until("a session by the new token", || token(metrics()) != old);
    namespace.until_log("app", "app", "API_KEY='two'");
    namespace.until_ready("app");
    let exchanges = aws.requests("AssumeRoleWithWebIdentity");
    assert!(exchanges.iter().all(|exchange| exchange["outcome"] == "200"), "{exchanges:?}");
    for container in ["app", "keytide"] {
        assert_eq!(namespace.container("app", container)["restartCount"], 0);
    }
}
