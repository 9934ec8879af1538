//! `keytide install` and `keytide exec`, in the pod that their page shows.

use serde_json::{Value, json};

use crate::{
    aws::Aws,
    namespace::Namespace,
    sidecar::{APPLICATION, IMAGE, Sidecar},
};

/// A program that reads nothing but its environment.
const SERVER: &str = "#!/bin/sh\necho \"starts with $API_KEY\"; trap 'exit 0' TERM; while :; do sleep 0.2; done\n";

#[test]
fn an_application_that_keytide_starts_in_a_restricted_pod_is_started_again_with_the_rotated_key() {
    let namespace = Namespace::new("exec");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    let page = include_str!("../../docs/EXEC.md");
    let manifest = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let manifest: Value = serde_saphyr::from_str(manifest).unwrap();
    let mut spec = manifest["spec"].clone();
    // The image under test, and an application.
    assert_eq!(spec["initContainers"][0]["image"], format!("ghcr.io/keytide/keytide:{}", env!("CARGO_PKG_VERSION")));
    spec["initContainers"][0]["image"] = json!(IMAGE);
    let app = &mut spec["containers"][0];
    app["image"] = json!(APPLICATION);
    // Debian's image says no user.
    app["securityContext"]["runAsUser"] = json!(1000);
    app["volumeMounts"].as_array_mut().unwrap().push(json!({"name": "app", "mountPath": "/app"}));
    let volume = json!({"name": "app", "configMap": {"name": "server", "defaultMode": 0o755}});
    spec["volumes"].as_array_mut().unwrap().push(volume);
    namespace.apply(&[json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "server"},
        "data": {"my-server": SERVER}})]);
    Sidecar::new(&aws).start(&namespace, "app", &spec);
    namespace.until_log("app", "app", "starts with one\n");
    let installed = namespace.log("app", "keytide-install");
    assert!(installed.contains(env!("CARGO_PKG_VERSION")) && installed.contains("/tools/keytide"), "{installed}");
    let program = namespace.exec("app", "app", &["sh", "-c", "tr '\\0' ' ' </proc/1/cmdline"]);
    assert_eq!(program, "/tools/keytide exec --on-change restart -- /app/my-server ");
    aws.put("app", &json!({"API_KEY": "two"}));
    namespace.until_log("app", "app", "starts with two\n");
    let processes = namespace.exec("app", "app", &["ps"]);
    assert_eq!(processes.matches("/bin/sh /app/my-server").count(), 1, "the first is gone: {processes}");
    for container in ["app", "keytide"] {
        assert_eq!(namespace.container("app", container)["restartCount"], 0);
    }
    // It ends with what it started, long before the grace period does.
    namespace.kubectl(&["delete", "pod", "app", "--timeout", "25s"]);
}
