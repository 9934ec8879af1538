//! A Kubernetes of one's own: etcd and kube-apiserver, the real programs, on this machine.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::Deref,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::{
    api::{Api, Upstream},
    support::until,
};

/// The longest that an API server may take to its first good word, on a machine that is busy with other things.
const START: Duration = Duration::from_mins(2);
/// Where no system takes a port by itself.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// An API server and its etcd, stopped and removed with this value or with the process, however that one ends.
pub(crate) struct ControlPlane {
    supervisor: Mutex<Supervisor>,
    directory: PathBuf,
    upstream: Upstream,
    api: Api,
}

/// A control plane of one test alone. One at a time, since starting one keeps the machine busy.
pub(crate) struct Own {
    // It ends before another one may start.
    cluster: ControlPlane,
    _turn: MutexGuard<'static, ()>,
}

/// The shell that starts and stops the programs, and outlives this process by the moment that it needs to clean up.
struct Supervisor {
    shell: Child,
    /// Absent once it shall end.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// Of the API server.
    process: String,
}

// === impl ControlPlane ===

impl ControlPlane {
    /// The one of all tests that do it no harm.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<ControlPlane> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// One that may be harmed.
    pub(crate) fn own() -> Own {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Own { cluster: Self::start(), _turn: turn }
    }

    fn start() -> Self {
        for _ in 0..10 {
            let port = fastrand::u16(PORTS);
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
                && let Some(started) = Self::start_on(port)
            {
                return started;
            }
        }
        panic!("no free port for an API server");
    }

    /// None where somebody else took the port.
    fn start_on(port: u16) -> Option<Self> {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { env::temp_dir() };
        let directory = place.join(format!("keytide-kubernetes-{:016x}", fastrand::u64(..)));
        // Before the directory, so that nothing can come between it and who removes it.
        let mut supervisor = Supervisor::start(&directory, port);
        fs::create_dir(&directory).unwrap();
        // keytide's user reads the certificate here.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let token = format!("{:032x}", fastrand::u128(..));
        let ca = write_identities(&directory, &token);
        let upstream = Upstream::tls(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), ca.as_bytes());
        supervisor.order("start etcd");
        supervisor.process = supervisor.order("start api");
        let api = Api::new(upstream.clone(), &token);
        let started = Self { supervisor: Mutex::new(supervisor), directory, upstream, api };
        started.is_ready().then_some(started)
    }

    /// Everything, as an administrator.
    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    pub(crate) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.upstream.address())
    }

    /// What is here goes with the cluster.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The certificate of the authority that the API server's own is of.
    pub(crate) fn ca_path(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// Asks the API server to end, and waits for it.
    pub(crate) fn stop_api_server(&self) {
        self.order("signal api TERM");
        let process = self.supervisor().process.clone();
        // Here, since the supervisor must always hear when this process ends.
        until("kube-apiserver to end", || has_ended(&process));
        self.kill_api_server();
    }

    pub(crate) fn kill_api_server(&self) {
        self.order("kill api");
    }

    /// Starts it again where it was, with the data and the keys that it had, and waits until it is ready.
    pub(crate) fn start_api_server(&self) {
        let process = self.order("start api");
        self.supervisor().process = process;
        assert!(self.is_ready(), "somebody took the API server's port");
    }

    /// Lets etcd stand still.
    pub(crate) fn stop_etcd(&self) {
        self.order("signal etcd STOP");
    }

    pub(crate) fn continue_etcd(&self) {
        self.order("signal etcd CONT");
    }

    fn order(&self, order: &str) -> String {
        self.supervisor().order(order)
    }

    fn supervisor(&self) -> MutexGuard<'_, Supervisor> {
        self.supervisor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the API server is ready; false where somebody else has its port.
    fn is_ready(&self) -> bool {
        let process = self.supervisor().process.clone();
        let api = self.api.clone().within(Duration::from_secs(5));
        let deadline = Instant::now() + START;
        while !api.ask("GET", "/readyz", None).is_ok_and(|reply| reply.status == 200) {
            let log = || fs::read_to_string(self.directory.join("api.log")).unwrap_or_default();
            if has_ended(&process) {
                assert!(log().contains("address already in use"), "kube-apiserver ended:\n{}", tail(&log()));
                return false;
            }
            assert!(Instant::now() < deadline, "kube-apiserver is not ready after {START:?}:\n{}", tail(&log()));
            thread::sleep(Duration::from_millis(50));
        }
        true
    }
}

// === impl Own ===

impl Deref for Own {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        &self.cluster
    }
}

// === impl Supervisor ===

impl Supervisor {
    fn start(directory: &Path, port: u16) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kubernetes/control_plane.sh");
        let mut command = Command::new("sh");
        command.arg(script).arg(programs()).arg(directory).arg(port.to_string());
        // Out of the terminal's reach: on Ctrl-C this process ends, and the shell cleans up.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = command.spawn().unwrap();
        let (orders, answers) = (shell.stdin.take(), BufReader::new(shell.stdout.take().unwrap()));
        Self { shell, orders, answers, process: String::new() }
    }

    fn order(&mut self, order: &str) -> String {
        writeln!(self.orders.as_ref().unwrap(), "{order}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert!(!answer.is_empty(), "the control plane does not {order}");
        answer.trim().to_owned()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.orders.take());
        drop(self.shell.wait());
    }
}

/// Where etcd and kube-apiserver are.
fn programs() -> PathBuf {
    let folder = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from).unwrap_or_default();
    let here = ["etcd", "kube-apiserver"].iter().all(|program| folder.join(program).is_file());
    assert!(here, "KUBEBUILDER_ASSETS names no folder with etcd and kube-apiserver: ./tests/run kubernetes does all");
    folder.canonicalize().unwrap()
}

fn has_ended(process: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with(['Z', 'X']))
}

/// The last lines, which say why.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(15)).fold(String::new(), |text, line| text + line + "\n")
}

/// Writes all keys, certificates and the administrator's token; returns the authority's certificate.
fn write_identities(directory: &Path, token: &str) -> String {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.distinguished_name.push(DnType::CommonName, "kubernetes");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_key = KeyPair::generate().unwrap();
    let pem = ca.self_signed(&ca_key).unwrap().pem();
    let names = ["127.0.0.1", "localhost", "kubernetes.default.svc"].map(str::to_owned);
    let mut leaf = CertificateParams::new(names).unwrap();
    leaf.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    let server = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    let accounts = KeyPair::generate().unwrap();
    let write = |name: &str, content: String, mode| {
        let path = directory.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    write("ca.pem", pem.clone(), 0o644);
    write("server.pem", server.pem(), 0o600);
    write("server.key", key.serialize_pem(), 0o600);
    write("accounts.key", accounts.serialize_pem(), 0o600);
    write("accounts.pub", accounts.public_key_pem(), 0o600);
    write("tokens.csv", format!("{token},admin,1,\"system:masters\"\n"), 0o600);
    pem
}
