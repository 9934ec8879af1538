//! A namespace for each test, where Pod Security enforces a level.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    memory::Usage,
    wait::{until, within},
};

/// Removed, with all that is in it, with this value; a test that fails says first what is there.
pub(crate) struct Namespace {
    cluster: &'static Cluster,
    name: String,
}

/// What a command in a container left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

// === impl Namespace ===

impl Namespace {
    /// Of the strictest level.
    pub(crate) fn new(name: &str) -> Self {
        Self::of_level(name, "restricted")
    }

    pub(crate) fn of_level(name: &str, level: &str) -> Self {
        let cluster = Cluster::shared();
        let namespace = Self { cluster, name: name.to_owned() };
        let labels = json!({"pod-security.kubernetes.io/enforce": level});
        namespace
            .apply(&[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})]);
        // Its maker is a controller, and a pod needs it.
        until("the namespace's service account", || namespace.get("serviceaccount/default").is_some());
        namespace
    }

    pub(crate) fn cluster(&self) -> &'static Cluster {
        self.cluster
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `kubectl` in this namespace. Panics if it fails. Pods that it ends are looked at before.
    #[track_caller]
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        if let ["delete", "pod", ..] | ["rollout", "restart", ..] = arguments {
            self.assert_within_limits();
        }
        self.cluster.kubectl(&[&["--namespace", &self.name], arguments].concat())
    }

    #[track_caller]
    pub(crate) fn apply(&self, objects: &[Value]) {
        self.cluster.apply(&self.name, objects);
    }

    /// None if there is no such object, which only the API server can say.
    #[track_caller]
    pub(crate) fn get(&self, object: &str) -> Option<Value> {
        let arguments = ["--namespace", &self.name, "get", object, "--ignore-not-found", "--output", "json"];
        let mut found = None;
        until(&format!("an answer about {object}"), || {
            let output = self.cluster.try_kubectl(&arguments, "");
            found = serde_json::from_slice(&output.stdout).ok();
            output.status.success()
        });
        found
    }

    /// The pods with this label `app`.
    pub(crate) fn pods(&self, app: &str) -> Vec<Value> {
        let list = self.kubectl(&["get", "pods", "--selector", &format!("app={app}"), "--output", "json"]);
        let mut list: Value = serde_json::from_str(&list).unwrap();
        list["items"].as_array_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Waits until a pod is ready.
    #[track_caller]
    pub(crate) fn until_ready(&self, pod: &str) {
        self.until_condition(pod, "Ready");
    }

    #[track_caller]
    pub(crate) fn until_condition(&self, object: &str, condition: &str) {
        let object = if object.contains('/') { object.to_owned() } else { format!("pod/{object}") };
        self.kubectl(&["wait", "--for", &format!("condition={condition}"), &object, "--timeout", "120s"]);
    }

    /// Waits until a pod is gone.
    #[track_caller]
    pub(crate) fn until_gone(&self, pod: &str) {
        until("the pod to be gone", || self.get(&format!("pod/{pod}")).is_none());
    }

    /// Runs a command in a container of a pod.
    pub(crate) fn run_in(&self, pod: &str, container: &str, command: &[&str]) -> Ran {
        let arguments = [&["--namespace", &self.name, "exec", pod, "--container", container, "--"], command].concat();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let run = || {
            let output = self.cluster.try_kubectl(&arguments, "");
            Ran { success: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) }
        };
        // The node was not reached, and nothing was run.
        let is_lost = |ran: &Ran| !ran.success && ran.stderr.contains("error dialing backend");
        let mut ran = run();
        within(Duration::from_secs(10), || {
            let done = !is_lost(&ran);
            if !done {
                ran = run();
            }
            done
        });
        ran
    }

    /// What a command prints that has to succeed.
    #[track_caller]
    pub(crate) fn exec(&self, pod: &str, container: &str, command: &[&str]) -> String {
        let ran = self.run_in(pod, container, command);
        assert!(ran.success, "{command:?} in {pod}: {}", ran.stderr);
        ran.stdout
    }

    pub(crate) fn log(&self, pod: &str, container: &str) -> String {
        self.kubectl(&["logs", pod, "--container", container])
    }

    #[track_caller]
    pub(crate) fn until_log(&self, pod: &str, container: &str, text: &str) {
        let seen = || {
            let arguments = ["--namespace", &self.name, "logs", pod, "--container", container];
            let output = self.cluster.try_kubectl(&arguments, "");
            String::from_utf8_lossy(&output.stdout).contains(text)
        };
        assert!(within(crate::wait::PATIENCE, seen), "waited for {text:?} in the log of {pod}, {container}");
    }

    pub(crate) fn describe(&self, pod: &str) -> String {
        self.kubectl(&["describe", "pod", pod])
    }

    #[track_caller]
    pub(crate) fn until_described(&self, pod: &str, text: &str) {
        let seen = within(crate::wait::PATIENCE, || self.describe(pod).contains(text));
        assert!(seen, "waited for {text:?} in the description of {pod}:\n{}", self.describe(pod));
    }

    /// The address of a pod, which is reached from here as from the node.
    #[track_caller]
    pub(crate) fn address(&self, pod: &str) -> String {
        let mut address = String::new();
        until("the pod's address", || {
            let found = self.get(&format!("pod/{pod}")).unwrap_or_default();
            found["status"]["podIP"].as_str().unwrap_or_default().clone_into(&mut address);
            !address.is_empty()
        });
        address
    }

    /// The status of a container of a pod, be it an init container.
    pub(crate) fn container(&self, pod: &str, container: &str) -> Value {
        let found = self.get(&format!("pod/{pod}")).unwrap_or_default();
        status(&found, container).cloned().unwrap_or_default()
    }

    /// The process id of a container's first process, as the node sees it.
    #[track_caller]
    pub(crate) fn process(&self, pod: &str, container: &str) -> String {
        task(&self.container(pod, container)).unwrap_or_else(|list| panic!("no task of {pod}, {container}:\n{list}"))
    }

    /// Whatever a test did to them: each keytide is within its requests, was within its limit, and did not end by it.
    #[track_caller]
    pub(crate) fn assert_within_limits(&self) {
        let list: Value = serde_json::from_str(&self.kubectl(&["get", "pods", "--output", "json"])).unwrap();
        for pod in list["items"].as_array().unwrap() {
            let name = pod["metadata"]["name"].as_str().unwrap();
            let Some(keytide) = status(pod, "keytide") else { continue };
            for state in ["state", "lastState"] {
                assert_ne!(keytide[state]["terminated"]["reason"], "OOMKilled", "keytide in {name}");
            }
            if keytide["state"]["running"].is_null() || !pod["metadata"]["deletionTimestamp"].is_null() {
                continue;
            }
            let who = format!("keytide in {}/{name}", self.name);
            match task(keytide).ok().and_then(|process| Usage::of(&process)) {
                Some(usage) => usage.assert_within_limits(&who),
                // Which the kubelet has to say too.
                None => until(&format!("{who} to be seen as ended, since it has no process"), || {
                    self.container(name, "keytide")["state"]["running"] != keytide["state"]["running"]
                }),
            }
        }
    }
}

impl Drop for Namespace {
    #[expect(clippy::print_stderr, reason = "what a person needs who looks at a failed test")]
    fn drop(&mut self) {
        if thread::panicking() {
            for arguments in [
                &["get", "pods", "--output", "wide"][..],
                &["describe", "pods"],
                &["get", "events", "--sort-by", "{.lastTimestamp}"],
                &["logs", "--selector", "app", "--all-containers", "--tail", "40", "--prefix"],
            ] {
                let output = self.cluster.try_kubectl(&[&["--namespace", &self.name], arguments].concat(), "");
                eprintln!("--- {} in {}\n{}", arguments.join(" "), self.name, String::from_utf8_lossy(&output.stdout));
            }
        }
        if !thread::panicking() {
            self.assert_within_limits();
        }
        self.cluster.try_kubectl(&["delete", "namespace", &self.name, "--wait=false"], "");
    }
}

/// The status of a container of this pod.
fn status<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    let lists = ["initContainerStatuses", "containerStatuses"].map(|list| &pod["status"][list]);
    let mut all = lists.into_iter().filter_map(Value::as_array).flatten();
    all.find(|status| status["name"] == container)
}

/// The first process of a container with this status; else what processes there are.
fn task(status: &Value) -> Result<String, String> {
    let id = status["containerID"].as_str().unwrap_or_default().trim_start_matches("containerd://");
    let list = run_on_node("ctr", &["--namespace", "k8s.io", "task", "list"]);
    let line = list.lines().find(|line| !id.is_empty() && line.starts_with(id) && line.contains("RUNNING"));
    line.and_then(|line| line.split_whitespace().nth(1)).map(str::to_owned).ok_or(list)
}

/// Runs a program of the node, which has to succeed.
#[track_caller]
pub(crate) fn run_on_node(program: &str, arguments: &[&str]) -> String {
    let mut command = Cluster::shared().command(program);
    crate::cluster::success(arguments, crate::cluster::run(command.args(arguments), ""))
}
