//! A pod with keytide in it, as the packaged chart prints it and `kubectl patch` takes it.

use std::{collections::BTreeMap, sync::Mutex};

use serde_json::{Value, json};

use crate::{
    aws::{ACCESS_KEY_ID, Aws, SECRET_ACCESS_KEY},
    cluster::{Cluster, run, success},
    helm,
    namespace::Namespace,
};

/// The image under test.
pub(crate) const IMAGE: &str = "ghcr.io/keytide/keytide:test";
/// A Debian with busybox.
pub(crate) const APPLICATION: &str = "localhost/application:1";

/// keytide in a pod, by the chart.
pub(crate) struct Sidecar {
    /// Below `keytide:`, without what all of them have.
    pub(crate) config: Value,
    /// Other values of the chart.
    pub(crate) values: Value,
}

// === impl Sidecar ===

impl Sidecar {
    /// With the keys of the primary secret `app`, in two files: for shells, and for the kubelet.
    pub(crate) fn new(aws: &Aws) -> Self {
        let variable = |name: &str, value: &str| json!({"name": name, "value": value});
        let file = |name: &str, format: &str| json!({"env_file": {"path": format!("/run/keytide/env/{name}"), "format": format}});
        Self {
            config: json!({
                "primary_secret": {"name": "app"},
                "refresh": {"interval": "1s", "jitter": 0},
                "outputs": [file("keys.env", "posix"), file("kubernetes.env", "kubernetes")],
            }),
            values: json!({
                "image": {"tag": "test"},
                "aws": {"region": "us-east-1", "secretsManagerEndpoint": aws.url(), "stsEndpoint": aws.url()},
                "extraEnv": [
                    variable("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID),
                    variable("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY),
                ],
            }),
        }
    }

    /// Is this role, by a token of its own for this audience, and nobody else.
    pub(crate) fn web_identity(mut self, role: &str, audience: &str) -> Self {
        self.values["extraEnv"] = json!([]);
        self.values["aws"]["roleArn"] = json!(role);
        self.values["aws"]["tokenAudience"] = json!(audience);
        self
    }

    /// Also stores virtual keys below `vk/`.
    pub(crate) fn with_spool(mut self) -> Self {
        self.values["sidecar"]["spool"] = json!(true);
        self.config["virtual_keys"] = json!({"prefix": "vk/"});
        self.config["spool"] = json!({"directory": "/run/keytide/spool/in"});
        self
    }

    pub(crate) fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// The whole configuration.
    pub(crate) fn file(&self) -> Value {
        let mut config = self.config.clone();
        config["aws"] = json!({"region": "us-east-1", "allow_plain_http": true});
        config["state"] = json!({"directory": "/run/keytide/private/state"});
        config["admin"] = json!({"socket": "/run/keytide/private/admin.sock"});
        json!({"keytide": config})
    }

    /// The values of a release of this mode.
    pub(crate) fn values(&self, mode: &str) -> Value {
        let mut values = self.values.clone();
        values["mode"] = json!(mode);
        values["config"] = self.file();
        values
    }

    /// The patch that the chart prints, and the `ConfigMap` that it names.
    fn printed(&self, name: &str) -> (String, Value) {
        static PRINTED: Mutex<BTreeMap<String, (String, Value)>> = Mutex::new(BTreeMap::new());
        let values = self.values("sidecar");
        let key = format!("{name} {values}");
        if let Some(printed) = PRINTED.lock().unwrap().get(&key) {
            return printed.clone();
        }
        let templates = ["templates/configmap.yaml", "templates/snippet.yaml"];
        let mut objects = helm::template(name, &values, &templates);
        objects.sort_by_key(|object| object["data"]["patch.yaml"].is_string());
        let [config_map, patch] = objects.try_into().unwrap();
        let printed = (patch["data"]["patch.yaml"].as_str().unwrap().to_owned(), config_map);
        PRINTED.lock().unwrap().insert(key, printed.clone());
        printed
    }

    /// The `ConfigMap` of its configuration.
    pub(crate) fn config_map(&self, name: &str) -> Value {
        self.printed(name).1
    }

    /// What `kubectl patch` makes of something that has a template of pods.
    #[track_caller]
    fn patched(&self, name: &str, workload: &Value) -> Value {
        let arguments = ["patch", "--local", "--filename", "-", "--output", "json", "--patch", &self.printed(name).0];
        let mut command = Cluster::shared().command("kubectl");
        let text = success(&arguments, run(command.args(arguments), &workload.to_string()));
        serde_json::from_str(&text).unwrap()
    }

    /// The template of a pod with it, from one of this specification.
    fn template(&self, name: &str, spec: &Value) -> Value {
        let labels = json!({"app": name});
        let workload = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}}});
        self.patched(name, &workload)["spec"]["template"].take()
    }

    /// Puts it into a pod's specification.
    pub(crate) fn inject(&self, name: &str, spec: &mut Value) {
        *spec = self.template(name, spec)["spec"].take();
    }

    /// A pod of this name with an application of this specification.
    #[track_caller]
    pub(crate) fn start(&self, namespace: &Namespace, name: &str, spec: &Value) {
        let mut pod = self.template(name, spec);
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        namespace.apply(&[self.config_map(name), pod]);
    }

    /// The same as something that has a template of pods, such as a Deployment.
    #[track_caller]
    pub(crate) fn start_as(&self, namespace: &Namespace, name: &str, workload: &Value) {
        namespace.apply(&[self.config_map(name), self.patched(name, workload)]);
    }
}

pub(crate) fn pod(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec})
}

/// The specification of an application, which runs this shell script as user 1000.
pub(crate) fn application(script: &str) -> Value {
    let security = json!({"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}});
    let container = json!({
        "name": "app", "image": APPLICATION, "command": ["sh", "-c", script],
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
    });
    json!({"automountServiceAccountToken": false, "terminationGracePeriodSeconds": 15, "securityContext": security,
        "containers": [container]})
}
