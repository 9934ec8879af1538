//! The node's kubelet dies and comes back.

use serde_json::json;

use crate::{
    aws::{Aws, ask},
    cluster::Cluster,
    namespace::Namespace,
    sidecar::{PORT, Sidecar, application},
    wait::until,
};

#[test]
#[ignore = "alone on the node: it takes away the kubelet"]
fn keys_move_on_while_the_kubelet_is_dead_and_no_container_restarts_when_it_is_back() {
    let namespace = Namespace::new("kubelet");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    let script = "while sleep 0.2; do cat /run/keytide/env/keys.env; done";
    Sidecar::new(&aws).start(&namespace, "app", application(script));
    namespace.until_ready("app");
    let address = format!("{}:{PORT}", namespace.address("app"));
    Cluster::shared().kill("kubelet");
    aws.put("app", &json!({"API_KEY": "two"}));
    let changes = || ask(&address, "GET", "/metrics", "").unwrap().body;
    until("the change", || changes().contains("keytide_key_changes_total 2"));
    Cluster::shared().start_again("kubelet");
    namespace.until_log("app", "app", "API_KEY='two'");
    namespace.until_ready("app");
    for container in ["app", "keytide"] {
        assert_eq!(namespace.container("app", container)["restartCount"], 0);
    }
}
