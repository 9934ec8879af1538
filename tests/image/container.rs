//! A container under runc, by the OCI runtime specification.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// What shall run. Without capabilities, and with no way to get some; it ends with this value.
pub(crate) struct Container {
    directory: TempDir,
    mounts: Vec<Value>,
    /// The user and the group.
    pub(crate) user: [u32; 2],
    /// The program and its arguments.
    pub(crate) words: Vec<String>,
    /// Each as `NAME=VALUE`.
    pub(crate) environment: Vec<String>,
    /// Whether its root directory is.
    pub(crate) read_only: bool,
    /// The process whose network it shares; one of its own, with nothing in it, if absent.
    pub(crate) network_of: Option<u32>,
}

// === impl Container ===

impl Container {
    /// With an empty root directory.
    pub(crate) fn new() -> Self {
        let directory = TempDir::with_prefix("keytide-image-").unwrap();
        fs::create_dir(directory.path().join("rootfs")).unwrap();
        Self {
            directory,
            mounts: vec![json!({"destination": "/proc", "type": "proc", "source": "proc"})],
            user: [0, 0],
            words: Vec::new(),
            environment: Vec::new(),
            read_only: false,
            network_of: None,
        }
    }

    /// Its root directory, as it is here.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    /// Puts the files of an archive into its root directory.
    #[track_caller]
    pub(crate) fn unpack(&self, archive: &Path) {
        // What packs it is found by its first bytes.
        let mut tar = Command::new("tar");
        if fs::read(archive).unwrap().starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            tar.arg("--zstd");
        }
        assert!(tar.arg("-xf").arg(archive).arg("-C").arg(self.root()).status().unwrap().success());
    }

    /// Mounts a file or a directory of here.
    pub(crate) fn mount(&mut self, source: &Path, destination: &str, read_only: bool) {
        let options = ["bind", if read_only { "ro" } else { "rw" }];
        self.mounts.push(json!({"destination": destination, "type": "bind", "source": source, "options": options}));
        // Where a read-only root shall get a mount, there has to be a place for it.
        let place = self.root().join(destination.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        if source.is_dir() {
            fs::create_dir_all(place).unwrap();
        } else {
            fs::write(place, "").unwrap();
        }
    }

    /// Mounts a file with this content, to be read only.
    pub(crate) fn file(&mut self, destination: &str, content: &str) {
        let source = self.directory.path().join(self.mounts.len().to_string());
        fs::write(&source, content).unwrap();
        self.mount(&source, destination, true);
    }

    /// Runs it in the foreground.
    pub(crate) fn run(&self) -> Command {
        let none: [&str; 0] = [];
        let network = self.network_of.map_or_else(
            || json!({"type": "network"}),
            |process| json!({"type": "network", "path": format!("/proc/{process}/ns/net")}),
        );
        let mut namespaces = ["pid", "ipc", "uts", "mount"].map(|name| json!({"type": name})).to_vec();
        namespaces.push(network);
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": self.user[0], "gid": self.user[1]}, "args": self.words, "cwd": "/",
                "env": self.environment, "noNewPrivileges": true,
                "capabilities": {"bounding": none, "effective": none, "permitted": none}},
            "root": {"path": "rootfs", "readonly": self.read_only},
            "mounts": self.mounts,
            "linux": {"namespaces": namespaces},
        });
        fs::write(self.directory.path().join("config.json"), spec.to_string()).unwrap();
        let mut command = self.runc(&["run", "--bundle"]);
        command.arg(self.directory.path()).arg(self.name());
        command
    }

    /// Runs this in it as well, while it runs.
    pub(crate) fn exec(&self, words: &[&str]) -> Command {
        let mut command = self.runc(&["exec"]);
        command.arg(self.name()).args(words);
        command
    }

    /// Sends a signal to its first process.
    pub(crate) fn kill(&self, signal: &str) {
        assert!(self.runc(&["kill"]).arg(self.name()).arg(signal).status().unwrap().success());
    }

    fn runc(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.directory.path().join("state")).args(arguments);
        command
    }

    fn name(&self) -> &str {
        self.directory.path().file_name().unwrap().to_str().unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Says that there is none, where it has ended.
        drop(self.runc(&["delete", "--force"]).arg(self.name()).output());
    }
}
