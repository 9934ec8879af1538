//! A Kubernetes of one node: every program is the real one.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
};

use serde_json::Value;

/// The node and its control plane, which end with this process.
pub(crate) struct Cluster {
    programs: PathBuf,
    directory: PathBuf,
    supervisor: Mutex<Supervisor>,
}

/// The shell that starts, signals and kills the programs.
struct Supervisor {
    _shell: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

// === impl Cluster ===

impl Cluster {
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn start() -> Self {
        let [programs, images, directory] =
            ["KUBEBUILDER_ASSETS", "KEYTIDE_CLUSTER_IMAGES", "KEYTIDE_CLUSTER_DIRECTORY"].map(|name| {
                let folder = env::var_os(name).map(PathBuf::from);
                folder.unwrap_or_else(|| panic!("{name} is not set: ./tests/run cluster does all"))
            });
        let mut command = Command::new("sh");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/node.sh"));
        command.args([&programs, &images, &directory]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = command.spawn().unwrap();
        let (orders, answers) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
        let supervisor = Mutex::new(Supervisor { _shell: shell, orders, answers });
        let cluster = Self { programs, directory, supervisor };
        let answer = cluster.order("up");
        assert_eq!(answer, "ready", "the cluster does not come up");
        cluster
    }

    /// `kubectl`, as an administrator types it. Panics if it fails.
    #[track_caller]
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        success(arguments, self.try_kubectl(arguments, ""))
    }

    pub(crate) fn try_kubectl(&self, arguments: &[&str], input: &str) -> Output {
        run(self.command("kubectl").args(arguments), input)
    }

    /// `kubectl apply` of these objects.
    #[track_caller]
    pub(crate) fn apply(&self, namespace: &str, objects: &[Value]) {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let arguments = ["apply", "--namespace", namespace, "-f", "-"];
        success(&arguments, self.try_kubectl(&arguments, &list.to_string()));
    }

    /// A program that finds this cluster by itself, as on an administrator's machine.
    pub(crate) fn command(&self, program: &str) -> Command {
        let own = self.programs.join(program);
        let mut command = Command::new(if own.is_file() { own } else { PathBuf::from(program) });
        let path = env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.programs.display()));
        command.env("KUBECONFIG", self.directory.join("admin.conf"));
        command
    }

    /// What is here goes with the cluster.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn kill(&self, program: &str) {
        self.order(&format!("kill {program}"));
    }

    pub(crate) fn start_again(&self, program: &str) {
        self.order(&format!("start {program}"));
    }

    fn order(&self, order: &str) -> String {
        let mut supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(supervisor.orders, "{order}").unwrap();
        let mut answer = String::new();
        supervisor.answers.read_line(&mut answer).unwrap();
        assert!(!answer.is_empty(), "the node does not {order}");
        answer.trim().to_owned()
    }
}

/// Runs a command with this input, to its end.
pub(crate) fn run(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// What a command printed that has to succeed.
#[track_caller]
pub(crate) fn success(arguments: &[&str], output: Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} failed: {error}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}
