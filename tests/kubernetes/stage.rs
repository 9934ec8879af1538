//! keytide in a cluster: an AWS, a namespace, the gate between keytide and the API server, and the real binary, more
//! than once if it shall have replicas.

use std::path::PathBuf;

use serde_json::Value;

use crate::{
    api::Api,
    control_plane::ControlPlane,
    gate::Gate,
    namespace::Namespace,
    support::{Daemon, Stage},
};

/// The pod of [`KubeStage::config`] and [`KubeStage::run`].
pub(crate) const POD: &str = "keytide-0";

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
}

// === impl KubeStage ===

impl KubeStage {
    pub(crate) fn new(cluster: &ControlPlane) -> Self {
        let (mut stage, namespace, gate) = (Stage::new(), Namespace::new(cluster), Gate::new(cluster));
        let kubeconfig = namespace.kubeconfig(&gate.url());
        stage.env("KUBECONFIG", &kubeconfig.display().to_string()).env("POD_NAME", POD);
        Self { stage, namespace, gate, api: cluster.api().clone() }
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
        Pod { stage: self, name: name.to_owned() }
    }
}

// === impl Pod ===

impl Pod<'_> {
    /// Writes the pod's `keytide.yaml`, where `{dir}` is the pod's directory.
    pub(crate) fn config(&self, block: &str) -> PathBuf {
        self.stage.stage.config_in(&self.stage.stage.path(&self.name), block)
    }

    pub(crate) fn run(&self) -> Daemon {
        let config = self.path("keytide.yaml").display().to_string();
        let mut command = self.stage.stage.command(&["run", "--config", &config]);
        command.env("POD_NAME", &self.name);
        self.stage.stage.start(command)
    }

    pub(crate) fn status(&self) -> Value {
        self.stage.stage.status_at(&self.path("admin.sock"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.stage.stage.path(&format!("{}/{name}", self.name))
    }
}
