//! keytide in a cluster: an AWS, a namespace, the gate between keytide and the API server, and the real binary, more
//! than once if it shall have replicas.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    api::Api,
    control_plane::ControlPlane,
    gate::{Gate, Recorded},
    namespace::Namespace,
    support::{Daemon, Stage, patiently, stderr, until, within},
};

/// The pod of [`KubeStage::config`] and [`KubeStage::run`].
pub(crate) const POD: &str = "keytide-0";
/// The Secret of [`hub`].
pub(crate) const SECRET: &str = "app-keys";
/// The Lease of that Secret.
pub(crate) const LEASE: &str = "keytide-app-keys";

/// The longest until a write is repeated that somebody had to make possible: its longest pause, and the write itself.
pub(crate) const LASTING: Duration = Duration::from_secs(60 + 15);

/// Everything that a test of keytide in Kubernetes needs.
pub(crate) struct KubeStage {
    /// The AWS, and the files of the pod [`POD`].
    pub(crate) stage: Stage,
    pub(crate) namespace: Namespace,
    /// The only way that keytide has to the API server.
    pub(crate) gate: Gate,
    /// Everything, as an administrator, and past the gate.
    pub(crate) api: Api,
}

/// One more keytide in the same namespace, with files, doors and a name of its own.
pub(crate) struct Pod<'a> {
    stage: &'a KubeStage,
    name: String,
    environment: RefCell<Vec<(String, String)>>,
}

/// keytide's block of a hub: one output, the Secret [`SECRET`] with these settings, such as `, adopt: true`. The time of
/// each refresh but the first is left to the test.
pub(crate) fn hub(settings: &str, rest: &str) -> String {
    format!(
        "aws: {{region: us-east-1}}\nrefresh: {{interval: 700h, jitter: 0}}\noutputs:\n  - kubernetes_secret: \
         {{name: {SECRET}{settings}}}\n{rest}"
    )
}

/// The same of a sidecar, which also writes `env/keys.json`.
pub(crate) fn sidecar(settings: &str, rest: &str) -> String {
    hub(settings, &format!("  - env_file: {{path: \"{{dir}}/env/keys.json\", format: json}}\n{rest}"))
}

// === impl KubeStage ===

impl KubeStage {
    pub(crate) fn new(cluster: &ControlPlane) -> Self {
        let (mut stage, namespace, gate) = (Stage::new(), Namespace::new(cluster), Gate::new(cluster));
        let kubeconfig = namespace.kubeconfig(&gate.url());
        stage.env("KUBECONFIG", &kubeconfig.display().to_string()).env("POD_NAME", POD);
        Self { stage, namespace, gate, api: cluster.api().clone() }
    }

    /// In the shared cluster, with this configuration and the Role that keytide prints for it.
    pub(crate) fn with(block: &str) -> Self {
        let stage = Self::new(ControlPlane::shared());
        stage.grant(&stage.config(block));
        stage
    }

    /// Gives the service account what `keytide policy --kubernetes` prints, and nothing else.
    pub(crate) fn grant(&self, config: &Path) {
        self.namespace.role(&self.role(config));
    }

    /// The Role that keytide prints for a configuration.
    pub(crate) fn role(&self, config: &Path) -> Value {
        let output = self.policy(config, &["--output", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no role: {}", stderr(&output)))
    }

    /// `keytide policy --kubernetes`, with these arguments.
    pub(crate) fn policy(&self, config: &Path, arguments: &[&str]) -> Output {
        let config = config.display().to_string();
        let arguments = [&["policy", "--kubernetes", "--config", &config], arguments].concat();
        self.stage.keytide(&arguments)
    }

    /// Writes `keytide.yaml`, as [`Stage::config`] does.
    pub(crate) fn config(&self, block: &str) -> PathBuf {
        self.stage.config(block)
    }

    pub(crate) fn run(&self) -> Daemon {
        self.stage.run()
    }

    pub(crate) fn pod(&self, name: &str) -> Pod<'_> {
        self.stage.make_directory(name, 0o755);
        Pod { stage: self, name: name.to_owned(), environment: RefCell::default() }
    }

    /// Waits until [`SECRET`] holds exactly this; the daemon's log says why it does not.
    #[track_caller]
    pub(crate) fn until_values(&self, daemon: &Daemon, values: &Value) {
        self.values_after(patiently(|| self.values() == *values), daemon, values);
    }

    /// The same where somebody had to do something first, for which keytide's pauses are longer.
    #[track_caller]
    pub(crate) fn until_values_at_last(&self, daemon: &Daemon, values: &Value) {
        self.values_after(within(LASTING, || self.values() == *values), daemon, values);
    }

    #[track_caller]
    fn values_after(&self, so: bool, daemon: &Daemon, values: &Value) {
        assert!(so, "waited for {values}, the Secret holds {}; the log:\n{}", self.values(), daemon.log());
    }

    pub(crate) fn values(&self) -> Value {
        self.namespace.values(SECRET)
    }

    /// [`SECRET`] itself.
    #[track_caller]
    pub(crate) fn secret(&self) -> Value {
        self.namespace.secret(SECRET).expect("a Secret of this name")
    }

    pub(crate) fn path(&self) -> String {
        self.namespace.path(&format!("secrets/{SECRET}"))
    }

    pub(crate) fn version(&self) -> String {
        self.namespace.resource_version(SECRET)
    }

    /// The requests that would change [`SECRET`], in the order in which they came through the gate.
    pub(crate) fn writes(&self) -> Vec<Recorded> {
        let path = self.path();
        self.gate.requests().into_iter().filter(|request| request.method == "PATCH" && request.path == path).collect()
    }

    /// When the last of them came.
    pub(crate) fn last_write(&self) -> Instant {
        self.writes().last().expect("a write").at
    }

    /// Changes [`SECRET`] as somebody else does, and waits until keytide's watch has told it.
    pub(crate) fn patch_and_tell(&self, change: &Value) {
        let changed = self.api.merge_patch(&self.path(), change);
        let version = changed["metadata"]["resourceVersion"].as_str().unwrap();
        until("the watch to tell it", || self.gate.has_told(version));
    }

    /// The pod that holds [`LEASE`]; empty if none does.
    pub(crate) fn holder(&self) -> String {
        let lease = self.namespace.lease(LEASE).unwrap_or_default();
        let identity = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        identity.rsplit_once('_').map_or(identity, |(pod, _)| pod).to_owned()
    }

    #[track_caller]
    pub(crate) fn until_holder(&self, pod: &str) {
        assert!(
            patiently(|| self.holder() == pod),
            "waited for {pod} to hold the Lease, which {:?} does",
            self.holder()
        );
    }

    /// The output [`SECRET`] in the status of the daemon of [`KubeStage::run`].
    pub(crate) fn output(&self) -> Value {
        output_of(&self.stage.status())
    }

    /// Waits until the status says this of [`SECRET`]: a word, and each part of the message.
    #[track_caller]
    pub(crate) fn until_output(&self, state: &str, parts: &[&str]) {
        let says = |output: &Value| {
            let message = output["message"].as_str().unwrap_or_default();
            output["state"] == state && parts.iter().all(|part| message.contains(part))
        };
        assert!(patiently(|| says(&self.output())), "waited for {state}, {parts:?}: {}", self.output());
    }

    /// Makes [`SECRET`] as somebody else does.
    pub(crate) fn make_secret(&self, mut secret: Value) {
        secret["metadata"]["name"] = json!(SECRET);
        self.api.create(&self.namespace.path("secrets"), &secret);
    }
}

/// The state of an output, which is asked for again where no answer came.
#[track_caller]
pub(crate) fn state_of(output: impl Fn() -> Value) -> Value {
    let mut state = Value::Null;
    until("an answer of the admin socket", || {
        state = output()["state"].clone();
        !state.is_null()
    });
    state
}

/// The first Secret in a status.
fn output_of(status: &Value) -> Value {
    let outputs = status["outputs"].as_array().cloned().unwrap_or_default();
    outputs.into_iter().find(|output| output["kind"] == "kubernetes_secret").unwrap_or_default()
}

// === impl Pod ===

impl Pod<'_> {
    /// Writes the pod's `keytide.yaml`, where `{dir}` is the pod's directory.
    pub(crate) fn config(&self, block: &str) -> PathBuf {
        self.stage.stage.config_in(&self.stage.stage.path(&self.name), block)
    }

    /// Sets a variable of this pod's environment.
    pub(crate) fn env(&self, name: &str, value: &str) -> &Self {
        self.environment.borrow_mut().push((name.to_owned(), value.to_owned()));
        self
    }

    /// Gives it a way of its own to the API server.
    pub(crate) fn behind(&self, gate: &Gate) -> &Self {
        self.env("KUBECONFIG", &self.stage.namespace.kubeconfig(&gate.url()).display().to_string())
    }

    pub(crate) fn run(&self) -> Daemon {
        self.stage.stage.start(self.command(&["run"]))
    }

    /// `keytide` with its configuration and these arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let config = self.path("keytide.yaml").display().to_string();
        let mut command = self.stage.stage.command(&[arguments, &["--config", &config]].concat());
        command.env("POD_NAME", &self.name).envs(self.environment.borrow().iter().cloned());
        command
    }

    pub(crate) fn status(&self) -> Value {
        self.stage.stage.status_at(&self.path("admin.sock"))
    }

    /// The first Secret in its status.
    pub(crate) fn output(&self) -> Value {
        output_of(&self.status())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.stage.stage.path(&format!("{}/{name}", self.name))
    }
}
