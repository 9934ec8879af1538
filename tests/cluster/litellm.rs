//! The LiteLLM proxy beside keytide, with the configuration and the patch of deploy/litellm, and what it answers on `/v1/models`.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    aws::ask_with,
    cluster::Cluster,
    helm::{self, helm},
    namespace::{Namespace, run_on_node},
    wait::until,
};

const KEY: &str = "sk-of-the-master";

#[test]
fn the_litellm_proxy_starts_with_its_master_key_and_lists_its_models_for_who_has_it() {
    let namespace = Namespace::new("litellm");
    let aws_namespace = Namespace::new("litellm-aws");
    let archives = std::env::var("KEYTIDE_CLUSTER_IMAGES").unwrap();
    run_on_node("ctr", &["--namespace", "k8s.io", "images", "import", &format!("{archives}/litellm/litellm.tar")]);
    let secret = json!({"litellm_master_key": KEY, "OPENAI_API_KEY": "sk-of-openai"});
    let role = helm::reader("litellm", "litellm:litellm", "litellm_secrets");
    let aws = helm::aws(&aws_namespace, &json!({"litellm_secrets": secret}), &[role]);
    helm::trust(&aws, &[&namespace]);
    let values = helm::values("litellm", &helm::injecting(&aws, &[&namespace]));
    let chart = helm::package("litellm", None);
    helm(&["install", "litellm", &chart, "--namespace", namespace.name(), "--values", &values]);

    namespace.kubectl(&["apply", "--kustomize", &overlay()]);
    namespace.kubectl(&["rollout", "status", "deployment/litellm", "--timeout", "400s"]);
    let service = namespace.get("service/litellm").unwrap();
    let address = format!("{}:4000", service["spec"]["clusterIP"].as_str().unwrap());
    let models = |key: &str| {
        let mut answer = None;
        until("an answer of LiteLLM", || {
            answer = ask_with(&address, "GET", "/v1/models", &format!("Authorization: Bearer {key}\r\n"), "");
            answer.is_some()
        });
        answer.unwrap()
    };
    let with = models(KEY);
    let listed: Value = serde_json::from_str(&with.body).unwrap_or_default();
    assert_eq!((with.status, &listed["data"][0]["id"]), (200, &json!("gpt")), "{with:?}");
    for (key, expected) in [("sk-of-nobody", 400..=401), ("", 401..=401)] {
        let without = models(key);
        assert!(expected.contains(&without.status) && !without.body.contains("gpt"), "{without:?}");
    }

    let pods = namespace.kubectl(&["get", "pods", "--selector", "app.kubernetes.io/name=litellm", "--output", "name"]);
    let pod = pods.trim().trim_start_matches("pod/");
    let script = "for name in 'self/environ', 'mounts': print(open('/proc/' + name).read())";
    let has = namespace.exec(pod, "litellm", &["python3", "-c", script]);
    assert!(has.contains("/run/keytide/env") && !has.contains("AWS_") && !has.contains("secrets"), "{has}");
    for container in ["litellm", "keytide"] {
        assert_eq!(namespace.container(pod, container)["restartCount"], 0);
    }
    helm(&["uninstall", "litellm", "--namespace", namespace.name(), "--wait"]);
}

/// deploy/litellm with the image of here, which may ask nobody for prices.
fn overlay() -> String {
    let overlay = Cluster::shared().directory().join("litellm");
    fs::create_dir(&overlay).unwrap();
    let overlay = overlay.canonicalize().unwrap();
    // Kustomize takes no absolute path.
    let up = "../".repeat(overlay.components().count() - 1);
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/litellm").canonicalize().unwrap();
    let patch = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "litellm", "namespace": "litellm"},
        "spec": {"template": {"spec": {"containers": [
            {"name": "litellm", "env": [{"name": "LITELLM_LOCAL_MODEL_COST_MAP", "value": "True"}]}]}}}});
    let file = json!({
        "resources": [format!("{up}{}", base.display().to_string().trim_start_matches('/'))],
        "images": [{"name": "ghcr.io/berriai/litellm", "newName": "localhost/litellm", "newTag": "1"}],
        "patches": [{"patch": patch.to_string()}],
    });
    fs::write(overlay.join("kustomization.yaml"), file.to_string()).unwrap();
    overlay.to_str().unwrap().to_owned()
}
