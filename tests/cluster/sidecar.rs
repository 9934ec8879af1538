//! A pod with keytide in it, as people write one.

use serde_json::{Value, json};

use crate::{
    aws::{ACCESS_KEY_ID, Aws, SECRET_ACCESS_KEY},
    namespace::Namespace,
};

/// The image under test.
pub(crate) const IMAGE: &str = "ghcr.io/keytide/keytide:test";
/// A Debian with busybox.
pub(crate) const APPLICATION: &str = "localhost/application:1";
/// Where metrics and probes are.
pub(crate) const PORT: u16 = 19847;

/// What the sidecar of a pod is like.
pub(crate) struct Sidecar {
    /// Below `keytide:`, without what all of them have.
    pub(crate) config: String,
    pub(crate) environment: Vec<Value>,
    /// The audience of a token of its own.
    pub(crate) audience: Option<String>,
    /// Whether the application drops virtual keys.
    pub(crate) spool: bool,
    pub(crate) user: u32,
    /// How large the volume of the outputs is.
    pub(crate) size: String,
}

// === impl Sidecar ===

impl Sidecar {
    /// With the keys of the primary secret `app`, in two files: for shells, and for the kubelet.
    pub(crate) fn new(aws: &Aws) -> Self {
        let variable = |name: &str, value: &str| json!({"name": name, "value": value});
        Self {
            config: "primary_secret: {name: app}\nrefresh: {interval: 1s, jitter: 0}\noutputs:\n  \
                     - env_file: {path: /run/keytide/env/keys.env, format: posix}\n  \
                     - env_file: {path: /run/keytide/env/kubernetes.env, format: kubernetes}\n"
                .to_owned(),
            environment: vec![
                variable("AWS_ENDPOINT_URL", &aws.url()),
                variable("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID),
                variable("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY),
            ],
            audience: None,
            spool: false,
            user: 65532,
            size: "4Mi".to_owned(),
        }
    }

    /// Is this role, by a token of its own for this audience, and nobody else.
    pub(crate) fn web_identity(mut self, role: &str, audience: &str) -> Self {
        self.environment.retain(|variable| variable["name"] == "AWS_ENDPOINT_URL");
        self.environment.push(json!({"name": "AWS_ROLE_ARN", "value": role}));
        let token = "/var/run/secrets/keytide/token";
        self.environment.push(json!({"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": token}));
        self.audience = Some(audience.to_owned());
        self
    }

    /// Also stores virtual keys below `vk/`.
    pub(crate) fn with_spool(mut self) -> Self {
        self.spool = true;
        self.config += "virtual_keys: {prefix: vk/}\nspool: {directory: /run/keytide/spool/in}\n";
        self
    }

    pub(crate) fn config(mut self, config: &str) -> Self {
        config.clone_into(&mut self.config);
        self
    }

    /// The whole configuration.
    pub(crate) fn file(&self) -> String {
        let mut text = String::from("keytide:\n  aws: {region: us-east-1, allow_plain_http: true}\n");
        for line in self.config.lines() {
            text = text + "  " + line + "\n";
        }
        text +=
            "  state: {directory: /run/keytide/private/state}\n  admin: {socket: /run/keytide/private/admin.sock}\n";
        text
    }

    /// The `ConfigMap` of its configuration.
    pub(crate) fn config_map(&self, name: &str) -> Value {
        let text = self.file();
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"keytide.yaml": text}})
    }

    /// The specification of a pod of its own, with the Kubernetes API.
    pub(crate) fn hub(&self, name: &str) -> Value {
        let mut container = self.container();
        container.as_object_mut().unwrap().remove("restartPolicy");
        let pod = json!({"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}});
        push(&mut container["env"], pod);
        json!({"containers": [container], "volumes": self.volumes(name)})
    }

    fn container(&self) -> Value {
        let mut mounts = vec![
            json!({"name": "keytide-config", "mountPath": "/etc/keytide", "readOnly": true}),
            json!({"name": "keytide-env", "mountPath": "/run/keytide/env"}),
            json!({"name": "keytide-private", "mountPath": "/run/keytide/private"}),
        ];
        if self.spool {
            mounts.push(json!({"name": "keytide-spool", "mountPath": "/run/keytide/spool"}));
        }
        if self.audience.is_some() {
            mounts.push(json!({"name": "keytide-token", "mountPath": "/var/run/secrets/keytide", "readOnly": true}));
        }
        json!({
            "name": "keytide", "image": IMAGE, "restartPolicy": "Always",
            "args": ["run", "--config", "/etc/keytide/keytide.yaml"],
            "env": self.environment,
            "ports": [{"name": "keytide-metrics", "containerPort": PORT}],
            "securityContext": {"runAsNonRoot": true, "runAsUser": self.user, "runAsGroup": self.user,
                "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"}},
            "startupProbe": {"httpGet": {"path": "/startupz", "port": PORT}, "periodSeconds": 1, "failureThreshold": 330},
            "livenessProbe": {"httpGet": {"path": "/livez", "port": PORT}},
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": PORT}, "periodSeconds": 2},
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
            "volumeMounts": mounts,
        })
    }

    fn volumes(&self, name: &str) -> Vec<Value> {
        let memory =
            |volume: &str, size: &str| json!({"name": volume, "emptyDir": {"medium": "Memory", "sizeLimit": size}});
        let mut volumes = vec![
            json!({"name": "keytide-config", "configMap": {"name": name}}),
            memory("keytide-env", &self.size),
            memory("keytide-private", "4Mi"),
        ];
        if self.spool {
            volumes.push(memory("keytide-spool", "1Mi"));
        }
        if let Some(audience) = &self.audience {
            let token = json!({"audience": audience, "expirationSeconds": 3600, "path": "token"});
            volumes.push(json!({"name": "keytide-token", "projected": {"sources": [{"serviceAccountToken": token}]}}));
        }
        volumes
    }

    /// Puts it into a pod's specification: first among the init containers, its volumes and the mounts of every
    /// container of the application.
    pub(crate) fn inject(&self, name: &str, spec: &mut Value) {
        for container in spec["containers"].as_array_mut().unwrap() {
            let mounts = &mut container["volumeMounts"];
            push(mounts, json!({"name": "keytide-env", "mountPath": "/run/keytide/env", "readOnly": true}));
            if self.spool {
                push(mounts, json!({"name": "keytide-spool", "mountPath": "/run/keytide/spool"}));
            }
        }
        let mut first = vec![self.container()];
        first.append(spec["initContainers"].as_array_mut().unwrap_or(&mut Vec::new()));
        spec["initContainers"] = first.into();
        for volume in self.volumes(name) {
            push(&mut spec["volumes"], volume);
        }
    }

    /// A pod of this name with an application of this specification.
    pub(crate) fn start(&self, namespace: &Namespace, name: &str, mut spec: Value) {
        self.inject(name, &mut spec);
        namespace.apply(&[self.config_map(name), pod(name, &spec)]);
    }

    /// The same as something that has a template of pods, such as a Deployment.
    pub(crate) fn start_as(&self, namespace: &Namespace, name: &str, mut workload: Value) {
        self.inject(name, &mut workload["spec"]["template"]["spec"]);
        namespace.apply(&[self.config_map(name), workload]);
    }
}

fn push(list: &mut Value, value: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(value),
        None => *list = vec![value].into(),
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

/// A variable that the kubelet sets from the sidecar's file.
pub(crate) fn from_file(name: &str) -> Value {
    let key = json!({"volumeName": "keytide-env", "path": "kubernetes.env", "key": name});
    json!({"name": name, "valueFrom": {"fileKeyRef": key}})
}
