//! What every test stands on: a directory in memory, an AWS of its own, and the real binary as a process.

use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, TcpStream},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown},
        net::UnixStream,
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use keytide_emulator::{Emulator, Seed};
use serde_json::Value;
use tempfile::TempDir;

/// The longest that a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);
/// The user of keytide's image: nobody in particular, without capabilities.
pub(crate) const USER: u32 = 65532;
/// The emulator's user that may do everything.
pub(crate) const ACCESS_KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
pub(crate) const SECRET_ACCESS_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

/// A directory on a tmpfs, an AWS, and the means to start keytide there as user 65532 where the tests run as root.
pub(crate) struct Stage {
    pub(crate) aws: Emulator,
    directory: TempDir,
    environment: Vec<(String, String)>,
}

/// A running `keytide run`, ended with the test.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

/// The answer of an HTTP server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with(Seed::default())
    }

    /// With an AWS that begins with this.
    pub(crate) fn with(seed: Seed) -> Self {
        Self::on(Emulator::start_with(seed, (Ipv4Addr::LOCALHOST, 0).into()).unwrap())
    }

    /// On this AWS, which is what the environment's endpoint says.
    pub(crate) fn on(aws: Emulator) -> Self {
        let directory = TempDir::with_prefix_in("keytide-test-", "/dev/shm").expect("tests need a tmpfs at /dev/shm");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let environment = [
            ("AWS_ENDPOINT_URL", aws.url()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY.to_owned()),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let stage = Self { aws, directory, environment };
        stage.own(stage.directory.path());
        stage
    }

    /// Sets a variable of keytide's environment, which holds nothing else.
    pub(crate) fn env(&mut self, name: &str, value: &str) -> &mut Self {
        self.env_remove(name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn env_remove(&mut self, name: &str) -> &mut Self {
        self.environment.retain(|(set, _)| set != name);
        self
    }

    /// Writes the certificate authority of an AWS that speaks TLS, and names the file in this variable.
    pub(crate) fn trust(&mut self, variable: &str) -> &mut Self {
        let file = self.write("ca.pem", self.aws.ca_pem().expect("an AWS that speaks TLS"));
        self.env(variable, &file.display().to_string())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file that keytide's user owns.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        self.own(&path);
        path
    }

    /// Makes a directory that keytide's user owns.
    pub(crate) fn make_directory(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        self.own(&path);
        path
    }

    /// Writes `keytide.yaml`: keytide's block with `{dir}` replaced by the stage's directory, and doors of its own.
    pub(crate) fn config(&self, block: &str) -> PathBuf {
        self.config_in(self.directory.path(), block)
    }

    /// The same in a directory below, for one of several daemons.
    pub(crate) fn config_in(&self, directory: &Path, block: &str) -> PathBuf {
        let mut text = String::from("keytide:\n");
        for line in block.lines() {
            text.push_str("  ");
            text.push_str(&line.replace("{dir}", &directory.display().to_string()));
            text.push('\n');
        }
        let says = |door: &str| block.lines().any(|line| line.starts_with(door));
        if !says("http:") {
            text.push_str("  http: {listen: \"127.0.0.1:0\"}\n");
        }
        if !says("admin:") {
            text.push_str("  admin: {socket: ");
            text.push_str(&directory.join("admin.sock").display().to_string());
            text.push_str("}\n");
        }
        self.write(&directory.join("keytide.yaml").display().to_string(), text)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("admin.sock")
    }

    /// `keytide` with these arguments, as keytide's user, with the stage's environment and no other.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.binary());
        command.args(arguments).env_clear().envs(self.environment.iter().cloned()).stdin(Stdio::null());
        command.current_dir(self.directory.path());
        if is_root() {
            // Root's child of another user has no supplementary groups, and no capabilities after `exec`.
            command.uid(USER).gid(USER);
        }
        command
    }

    /// Runs `keytide` to its end.
    pub(crate) fn keytide(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// `keytide run --once` with `keytide.yaml`, to its end.
    pub(crate) fn once(&self) -> Output {
        self.once_within("20s")
    }

    pub(crate) fn once_within(&self, timeout: &str) -> Output {
        let config = self.path("keytide.yaml").display().to_string();
        self.keytide(&["run", "--config", &config, "--once", "--timeout", timeout])
    }

    /// `keytide run --once` that lacks something, with as little patience as it takes to say what: on a busy machine more.
    pub(crate) fn once_in_vain(&self, timeout: &str) -> Output {
        let output = self.once_within(timeout);
        let said = stderr(&output);
        let silent = ["not read yet", "not read since"].into_iter().any(|unread| said.contains(unread));
        if silent { self.once() } else { output }
    }

    /// `keytide run` with `keytide.yaml` in the background.
    pub(crate) fn run(&self) -> Daemon {
        self.run_with(&["run", "--config", &self.path("keytide.yaml").display().to_string()])
    }

    pub(crate) fn run_with(&self, arguments: &[&str]) -> Daemon {
        self.start(self.command(arguments))
    }

    /// Starts this command, which ends up as keytide, in the background.
    pub(crate) fn start(&self, mut command: Command) -> Daemon {
        let log = self.path(&format!("log-{:08x}", fastrand::u32(..)));
        let file = fs::File::create(&log).unwrap();
        let out = file.try_clone().unwrap();
        let child = command.stdout(out).stderr(file).spawn().unwrap();
        Daemon { child, log }
    }

    /// What the running daemon says of itself.
    pub(crate) fn status(&self) -> Value {
        self.status_at(&self.socket())
    }

    pub(crate) fn status_at(&self, socket: &Path) -> Value {
        let output = self.keytide(&["status", "--output", "json", "--socket", &socket.display().to_string()]);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// The state of one key, such as `fresh` or `stale (denied)`.
    pub(crate) fn key_state(&self, name: &str) -> String {
        let status = self.status();
        let keys = status.get("keys").and_then(Value::as_array).cloned().unwrap_or_default();
        let Some(key) = keys.iter().find(|key| key["name"] == name) else { return "unknown".to_owned() };
        let state = key["state"].as_str().unwrap_or_default().to_owned();
        key["reason"].as_str().map_or(state.clone(), |reason| format!("{state} ({reason})"))
    }

    /// Asks for a refresh and waits for it; panics if the daemon cannot be reached.
    pub(crate) fn refresh(&self) -> Value {
        let output = self.keytide(&["refresh", "--output", "json", "--socket", &self.socket().display().to_string()]);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("no report: {}", String::from_utf8_lossy(&output.stderr)))
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// What `env/keys.json` of [`block`] holds.
    pub(crate) fn values(&self) -> Value {
        serde_json::from_str(&self.read("env/keys.json")).unwrap_or(Value::Null)
    }

    /// Waits until `env/keys.json` holds exactly this.
    pub(crate) fn until_values(&self, values: &Value) {
        let so = patiently(|| self.values() == *values);
        assert!(so, "waited for env/keys.json to hold {values}, it holds {}", self.values());
    }

    /// Which file this is, and when it was written: the same only if nobody wrote.
    pub(crate) fn stamp(&self, name: &str) -> (u64, i64, i64) {
        let metadata = fs::metadata(self.path(name)).unwrap();
        (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
    }

    /// Waits until the file holds exactly this.
    pub(crate) fn until_file(&self, name: &str, content: &str) {
        let so = patiently(|| self.read(name) == content);
        assert!(so, "waited for {name} to hold {content:?}, it holds {:?}", self.read(name));
    }

    fn own(&self, path: &Path) {
        if is_root() {
            chown(path, Some(USER), Some(USER)).unwrap();
        }
    }

    /// The binary under test, where keytide's user can reach it: a checkout below somebody's home is closed to others.
    fn binary(&self) -> PathBuf {
        let named = std::env::var_os("KEYTIDE_TESTED_BINARY");
        let built = named.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_keytide")), PathBuf::from);
        let open = |path: &Path| fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0);
        if !is_root() || built.ancestors().all(open) {
            return built;
        }
        let copy = self.path("keytide");
        if !copy.exists() {
            fs::copy(&built, &copy).unwrap();
        }
        copy
    }
}

impl Daemon {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the log contains this.
    pub(crate) fn until_log(&self, text: &str) {
        let so = patiently(|| self.log().contains(text));
        assert!(so, "waited for {text:?} in the log:\n{}", self.log());
    }

    /// Where the port listens.
    pub(crate) fn address(&self) -> String {
        self.until_log("on http://");
        let log = self.log();
        let address = log.rsplit("on http://").next().unwrap();
        address.split(['"', ' ', '\n']).next().unwrap().to_owned()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request("GET", path).as_bytes()).unwrap();
        answer(stream)
    }

    /// The sum of all samples of a metric whose labels contain each of these.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.get("/metrics").body;
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until `/readyz` says yes.
    pub(crate) fn until_ready(&self) {
        let so = patiently(|| self.get("/readyz").status == 200);
        assert!(so, "waited for readiness; the log:\n{}", self.log());
    }

    /// Asks for a refresh by SIGHUP, which has no pause, and waits for the end of one.
    pub(crate) fn hang_up(&self) {
        let refreshes = || self.metric("keytide_refreshes_total", &[]);
        let before = refreshes();
        self.signal(rustix::process::Signal::HUP);
        until("a refresh after SIGHUP", || refreshes() > before);
    }

    /// SIGHUP, if there is still somebody to hear it.
    pub(crate) fn hang_up_if_running(&mut self) {
        if self.is_running() && self.log().contains("on http://") {
            self.signal(rustix::process::Signal::HUP);
        }
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_raw(i32::try_from(self.id()).unwrap()).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Waits for the end, and returns the exit code; a signal is -1.
    pub(crate) fn wait(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "the daemon did not end; its log:\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// One request to the admin socket, as anybody could send it.
pub(crate) fn ask_socket(path: &Path, method: &str, target: &str) -> Answer {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request(method, target).as_bytes()).unwrap();
    answer(stream)
}

/// Waits until it is so; `what` says what was waited for.
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(patiently(condition), "waited for {what}");
}

/// Waits until it is so; false if it never was.
pub(crate) fn patiently(condition: impl FnMut() -> bool) -> bool {
    within(PATIENCE, condition)
}

/// The same with another patience: of what may take longer, because it pauses as it says.
pub(crate) fn within(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let looked = Instant::now();
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        // A look that starts a program shall not keep the machine from what is waited for.
        thread::sleep(looked.elapsed().clamp(Duration::from_millis(20), Duration::from_millis(100)));
    }
}

/// keytide's block with one output, `env/keys.json`. An interval of `700h` leaves the time of each refresh to the test.
pub(crate) fn block(refresh: &str, rest: &str) -> String {
    format!(
        "aws: {{region: us-east-1}}\nrefresh: {{{refresh}}}\noutputs:\n  - env_file: {{path: \"{{dir}}/env/keys.json\", \
         format: json}}\n{rest}"
    )
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Fails where the test cannot show anything: nobody else has several users, and file systems to mount.
#[track_caller]
pub(crate) fn needs_root() {
    assert!(is_root(), "only root can be several users and mount file systems: run this test as root");
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn request(method: &str, target: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: keytide\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
}

fn answer(mut stream: impl std::io::Read) -> Answer {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Answer { status, body: body.to_owned() }
}
