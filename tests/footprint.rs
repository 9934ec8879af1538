//! What the released binary costs: its size, its memory, its threads, and how often it wakes up for nothing.
//!
//! It is measured from outside, on the static binary that people get, which `KEYTIDE_RELEASE_BINARY` names. Each figure
//! is written to standard error as well as compared with its limit; `docs/MEASUREMENTS.md` explains them.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests too")]
#![expect(clippy::disallowed_methods, reason = "tests are programs of their own: they look at the clock and sleep")]

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use keytide_emulator::{Emulator, Role, Seed, Statement, Tls, User};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const LARGEST_BINARY: u64 = 15_000_000;
const LARGEST_IDLE_KIB: u64 = 12 * 1024;
const LARGEST_FOR_MANY_KIB: u64 = 10 * 1024;
const LARGEST_WITH_TLS_KIB: u64 = 16 * 1024;
const LARGEST_WITH_CLAIMS_KIB: u64 = 16 * 1024;
const LARGEST_WITH_FULL_SPOOL_KIB: u64 = 40 * 1024;
/// `spool.max_entries` as it is by default.
const CLAIMS: usize = 4096;
const FULL_SPOOL: usize = 100_000;
/// So long a spool is watched whose entries wait: each is tried, most of them again and again.
const WAITING: Duration = Duration::from_secs(20);
const FLAT_KIB: u64 = 1024;
/// The one that does everything, and the one that reads the file system's events, which notify has of its own.
const MOST_THREADS: usize = 2;
/// How long an idle daemon is watched: a whole round of its only timer, which has 30 seconds.
const WATCHED: Duration = Duration::from_secs(35);
/// That timer wakes it twice in that time at most; the rest is the system's.
const MOST_WAKE_UPS: u64 = 12;
/// The longest that a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running daemon, ended with the test.
struct Daemon {
    child: Child,
    directory: TempDir,
}

/// What the system says of the memory of a process, in KiB.
#[derive(Debug, Clone, Copy)]
struct Memory {
    /// All that is resident.
    resident: u64,
    /// Of that, what the process wrote; shown in messages.
    #[expect(dead_code, reason = "shown by Debug")]
    own: u64,
    /// The most that ever was resident.
    peak: u64,
}

// === impl Daemon ===

impl Daemon {
    /// Starts `keytide run` with these lines about its keys, and waits for the first file.
    fn start(aws: &Emulator, keys: &str) -> Self {
        let User { access_key_id, secret_access_key, .. } = User::default();
        let environment = [("AWS_ACCESS_KEY_ID", access_key_id), ("AWS_SECRET_ACCESS_KEY", secret_access_key)];
        Self::start_as(aws, "region: us-east-1", keys, environment)
    }

    /// The same, with these settings of AWS and this environment beside the endpoint.
    fn start_as<const N: usize>(aws: &Emulator, settings: &str, keys: &str, environment: [(&str, String); N]) -> Self {
        let directory = TempDir::with_prefix_in("keytide-footprint-", "/dev/shm").expect("needs a tmpfs at /dev/shm");
        let path = |name: &str| directory.path().join(name);
        let config = format!(
            "keytide:\n  aws: {{{settings}}}\n{keys}  refresh: {{interval: 1h}}\n  outputs:\n    - env_file: {{path: {}, format: posix}}\n  http: {{listen: \"127.0.0.1:0\"}}\n  admin: {{socket: {}}}\n",
            path("env/keys.env").display(),
            path("admin.sock").display()
        );
        fs::create_dir(path("env")).unwrap();
        fs::write(path("keytide.yaml"), config).unwrap();
        fs::set_permissions(path("keytide.yaml"), fs::Permissions::from_mode(0o600)).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let child = Command::new(binary())
            .args(["run", "--config"])
            .arg(path("keytide.yaml"))
            .env_clear()
            .env("AWS_ENDPOINT_URL", aws.url())
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon = Self { child, directory };
        let file = daemon.file();
        daemon.until("the first file", || file.exists());
        thread::sleep(Duration::from_secs(1));
        daemon
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("env/keys.env")
    }

    fn keys(&self) -> usize {
        fs::read_to_string(self.file()).unwrap().lines().count()
    }

    fn until(&mut self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(self.child.try_wait().unwrap().is_none(), "the daemon ended; its log:\n{}", log());
            assert!(Instant::now() < deadline, "waited for {what}; the log:\n{}", log());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Refreshes so many times, one after the other.
    fn refresh(&mut self, aws: &Emulator, times: usize) {
        self.refresh_by(aws, times, ("GetSecretValue", 1));
    }

    /// The same, where a refresh is so many calls of this action.
    fn refresh_by(&mut self, aws: &Emulator, times: usize, (action, calls): (&str, usize)) {
        for _ in 0..times {
            aws.clear_requests();
            let id = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
            kill_process(id, Signal::HUP).unwrap();
            self.until("a refresh", || aws.count(action) >= calls);
        }
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string()).join(file)
    }

    fn memory(&self) -> Memory {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        Memory { resident: field(&status, "VmRSS"), own: field(&status, "RssAnon"), peak: field(&status, "VmHWM") }
    }

    /// The names of its threads.
    fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(self.proc("task")).unwrap();
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap().trim().to_owned()).collect()
    }

    /// How often its threads went to sleep so far.
    fn sleeps(&self) -> u64 {
        let tasks = fs::read_dir(self.proc("task")).unwrap();
        let statuses = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
        statuses.map(|status| field(&status, "voluntary_ctxt_switches")).sum()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[expect(clippy::disallowed_methods, reason = "how the test stage names the binary that it built")]
fn binary() -> PathBuf {
    std::env::var_os("KEYTIDE_RELEASE_BINARY")
        .expect("KEYTIDE_RELEASE_BINARY must name the static release binary: `./tests/run footprint` builds it")
        .into()
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[expect(clippy::print_stderr, reason = "figures, for people")]
fn say(line: &str) {
    eprintln!("    {line}");
}

/// An AWS with separate secrets, and the lines that ask for each.
fn separate(count: usize) -> (Emulator, String) {
    let aws = Emulator::start().unwrap();
    let keys = separate_in(&aws, count);
    (aws, keys)
}

fn separate_in(aws: &Emulator, count: usize) -> String {
    let mut keys = String::from("  keys:\n");
    for n in 0..count {
        aws.put(&format!("app/key-{n:04}"), &format!("sk-{n:045}"));
        writeln!(keys, "    - {{name: KEY_{n:04}, secret: app/key-{n:04}}}").unwrap();
    }
    keys
}

/// An AWS with JSON secrets of 200 members, and the lines that ask for each member.
fn members(count: usize) -> (Emulator, String) {
    let aws = Emulator::start().unwrap();
    let mut keys = String::from("  keys:\n");
    for secret in 0..count / 200 {
        let names: Vec<String> = (0..200).map(|n| format!("KEY_{:04}", secret * 200 + n)).collect();
        let object: Vec<String> = names.iter().map(|name| format!("\"{name}\": \"sk-{name:0>45}\"")).collect();
        aws.put(&format!("app/set-{secret:02}"), &format!("{{{}}}", object.join(", ")));
        for name in names {
            writeln!(keys, "    - {{name: {name}, secret: app/set-{secret:02}, member: {name}}}").unwrap();
        }
    }
    (aws, keys)
}

/// An AWS with one primary secret. 5,000 members of this kind just fit into AWS's 64 KiB.
fn primary(count: usize) -> (Emulator, String) {
    let object: Vec<String> = (0..count).map(|n| format!("\"K{n}\":\"v\"")).collect();
    let seed = Seed::default().secret("app", &format!("{{{}}}", object.join(",")));
    let aws = Emulator::start_with(seed, ([127, 0, 0, 1], 0).into()).unwrap();
    (aws, "  primary_secret: {name: app}\n".to_owned())
}

#[test]
#[ignore = "needs the release binary: ./tests/run footprint"]
fn the_binary_is_small_and_needs_nothing_of_its_image() {
    const PT_INTERP: u32 = 3;
    let elf = fs::read(binary()).unwrap();
    let number = |at: usize, length: usize| {
        elf[at..at + length].iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    assert_eq!((&elf[..4], elf[4], elf[5]), (&b"\x7fELF"[..], 2, 1), "ELF, 64 bits, little-endian");
    let (headers, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    let interpreter =
        (0..count).any(|n| number(usize::try_from(headers + n * size).unwrap(), 4) == u64::from(PT_INTERP));
    assert!(!interpreter, "it asks for a dynamic linker: build it with -C target-feature=+crt-static");
    let size = u64::try_from(elf.len()).unwrap();
    say(&format!("binary: {size} bytes, static; limit {LARGEST_BINARY}"));
    assert!(size <= LARGEST_BINARY, "{size}");
}

#[test]
#[ignore = "needs the release binary: ./tests/run footprint"]
fn a_hundred_keys_are_kept_in_little_memory_and_many_in_a_little_more() {
    let idle = {
        let (aws, keys) = separate(100);
        let daemon = Daemon::start(&aws, &keys);
        assert_eq!(daemon.keys(), 100);
        daemon.memory()
    };
    say(&format!("100 separate keys: {idle:?} KiB; limit {LARGEST_IDLE_KIB}"));
    assert!(idle.resident <= LARGEST_IDLE_KIB, "{idle:?}");
    for (what, (aws, keys)) in [("one primary secret", primary(5000)), ("25 JSON secrets, by member", members(5000))] {
        let mut daemon = Daemon::start(&aws, &keys);
        assert_eq!(daemon.keys(), 5000);
        let first = daemon.memory();
        if what == "one primary secret" {
            daemon.refresh(&aws, 20);
        }
        let many = daemon.memory();
        let more = many.resident.saturating_sub(idle.resident);
        say(&format!(
            "5,000 keys, {what}: {first:?} KiB, later {many:?}, {more} more; limit {LARGEST_FOR_MANY_KIB} more"
        ));
        assert!(more <= LARGEST_FOR_MANY_KIB, "{what}: {many:?}, {idle:?}");
    }
}

#[test]
#[ignore = "needs the release binary: ./tests/run footprint"]
fn memory_with_tls_to_both_services_stays_small() {
    const ROLE: &str = "arn:aws:iam::123456789012:role/keytide";
    const BATCHES: (&str, usize) = ("BatchGetSecretValue", 100 / 20);
    let reads = Statement::new(["secretsmanager:GetSecretValue", "secretsmanager:BatchGetSecretValue"], ["*"]);
    let seed = Seed::default().role(Role::new("keytide").allow(reads).trusts_web_identity());
    let aws = Emulator::start_tls(seed, ([127, 0, 0, 1], 0).into(), &Tls::new()).unwrap();
    let keys = separate_in(&aws, 100);
    let files = TempDir::with_prefix_in("keytide-footprint-", "/dev/shm").expect("needs a tmpfs at /dev/shm");
    let write = |name: &str, content: &str| {
        fs::write(files.path().join(name), content).unwrap();
        files.path().join(name).display().to_string()
    };
    let environment = [
        ("AWS_ROLE_ARN", ROLE.to_owned()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", write("token", "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJwb2QifQ.c2lnbmF0dXJl")),
        ("AWS_CA_BUNDLE", write("ca.pem", aws.ca_pem().unwrap())),
    ];
    let mut daemon = Daemon::start_as(&aws, &format!("region: us-east-1, expect_role: \"{ROLE}\""), &keys, environment);
    assert_eq!(daemon.keys(), 100);
    for action in ["AssumeRoleWithWebIdentity", "GetCallerIdentity"] {
        assert_eq!(aws.count(action), 1, "{action}");
    }
    let first = daemon.memory();
    daemon.refresh_by(&aws, 200, BATCHES);
    let later = daemon.memory();
    say(&format!(
        "100 separate keys over TLS, by a web identity that is proved: {first:?} KiB, after 200 refreshes {later:?}; \
         limit {LARGEST_WITH_TLS_KIB}"
    ));
    for memory in [first, later] {
        assert!(memory.resident <= LARGEST_WITH_TLS_KIB, "{memory:?}");
    }
}

/// A spool with so many entries that wait, since AWS is away: the memory of who holds them, at its largest.
fn waiting(count: usize, directory: &TempDir, settings: &str) -> Memory {
    let path = |name: &str| directory.path().join(name);
    let (spool, staging) = (path("spool"), path("staging"));
    let (aws, mut keys) = separate(100);
    write!(
        keys,
        "  virtual_keys: {{prefix: team/, rate: none, max_new_secrets_per_hour: none}}\n  spool: {{directory: {}{settings}}}\n",
        spool.display()
    )
    .unwrap();
    let mut daemon = Daemon::start(&aws, &keys);
    aws.set_down(true);
    fs::create_dir(&staging).unwrap();
    for n in 0..count {
        let (name, secret) = (format!("{n:020}-footprint-0.json"), format!("team/key-{n:06}"));
        let entry = format!("{{\"op\":\"create\",\"name\":\"{secret}\",\"value\":\"sk-{n:045}\"}}");
        fs::write(staging.join(&name), entry).unwrap();
        fs::rename(staging.join(&name), spool.join(&name)).unwrap();
    }
    let claimed = || fs::read_dir(spool.join(".claimed")).unwrap().count();
    daemon.until("the claims", || claimed() == count.min(CLAIMS));
    let began = Instant::now();
    let mut largest = daemon.memory();
    while began.elapsed() < WAITING {
        thread::sleep(Duration::from_millis(100));
        let memory = daemon.memory();
        if memory.resident > largest.resident {
            largest = memory;
        }
    }
    let largest = Memory { peak: daemon.memory().peak, ..largest };
    assert_eq!(claimed(), count.min(CLAIMS));
    assert!(daemon.threads().len() <= MOST_THREADS, "{:?}", daemon.threads());
    largest
}

#[test]
#[ignore = "needs the release binary: ./tests/run footprint"]
fn waiting_entries_are_kept_in_little_memory() {
    let directory = TempDir::with_prefix_in("keytide-footprint-", "/dev/shm").unwrap();
    let memory = waiting(CLAIMS, &directory, "");
    say(&format!("{CLAIMS} entries that wait, beside 100 keys: {memory:?} KiB; limit {LARGEST_WITH_CLAIMS_KIB}"));
    assert!(memory.resident.max(memory.peak) <= LARGEST_WITH_CLAIMS_KIB, "{memory:?}");
}

#[test]
#[ignore = "needs the release binary: ./tests/run footprint"]
fn a_full_spool_on_a_disk_is_kept_in_little_memory() {
    let directory = TempDir::with_prefix_in("keytide-footprint-", env!("CARGO_TARGET_TMPDIR")).unwrap();
    let memory = waiting(FULL_SPOOL, &directory, ", allow_disk: true");
    say(&format!(
        "{FULL_SPOOL} entries on a disk, beside 100 keys: {memory:?} KiB; limit {LARGEST_WITH_FULL_SPOOL_KIB}"
    ));
    assert!(memory.resident.max(memory.peak) <= LARGEST_WITH_FULL_SPOOL_KIB, "{memory:?}");
}

#[test]
#[ignore = "needs the release binary: ./tests/run footprint"]
fn memory_is_flat_over_refreshes() {
    let (aws, keys) = primary(100);
    let mut daemon = Daemon::start(&aws, &keys);
    daemon.refresh(&aws, 200);
    let before = daemon.memory();
    daemon.refresh(&aws, 2000);
    let after = daemon.memory();
    say(&format!("before 2,000 refreshes {before:?} KiB, after them {after:?}; limit {FLAT_KIB} more"));
    assert!(after.resident.saturating_sub(before.resident) < FLAT_KIB, "{before:?}, {after:?}");
}

#[test]
#[ignore = "needs the release binary: ./tests/run footprint"]
fn an_idle_daemon_has_few_threads_and_sleeps() {
    let (aws, keys) = separate(100);
    let daemon = Daemon::start(&aws, &keys);
    let before = daemon.sleeps();
    thread::sleep(WATCHED);
    let wake_ups = daemon.sleeps() - before;
    let threads = daemon.threads();
    let seconds = WATCHED.as_secs();
    say(&format!(
        "{wake_ups} wake-ups in {seconds} s, limit {MOST_WAKE_UPS}; threads {threads:?}, limit {MOST_THREADS}"
    ));
    assert!(threads.len() <= MOST_THREADS, "{threads:?}");
    assert!(wake_ups <= MOST_WAKE_UPS, "{wake_ups}");
}
