//! Days in seconds: the daemon runs in this process, on a clock that stands still until a test moves it.
//!
//! tokio's paused clock jumps to the next timer as soon as nothing is ready, also while a request is on its way. So one
//! blocking task is parked, which forbids that, and each test moves the clock itself, to one due time at a time, and waits
//! until that refresh has ended. The emulator has a thread and a clock of its own: what it waits for, it waits for really.

#![expect(
    clippy::float_cmp,
    clippy::unchecked_time_subtraction,
    clippy::unwrap_used,
    reason = "a test's helpers are tests too, and what they compare are whole numbers"
)]
#![expect(clippy::disallowed_methods, reason = "tests are programs of their own: they look at the clock and sleep")]

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    future::Future,
    net::SocketAddr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use keytide::{
    config::{
        Aws, Config, Container, Credentials, Endpoints, FileAccess, Identity, Network, OnMissing, Output, OutputKind,
        Refresh, Spool, State, StaticKeys, Token, VirtualKeys,
    },
    daemon::{Daemon, World},
    domain::{
        identity::{self, Expected, RoleArn},
        mapping::{Format, Key, Origin, Request, Selection, Wholesale},
        names::{KeyName, OutputName, SecretId},
        value::SecretValue,
        virtual_key::{Operation, Rules},
    },
    health::{Health, KeyStatus, SpoolStatus, Verdict},
    supervisor::Ending,
};
use keytide_emulator::{Emulator, Fault, FaultKind, PodIdentity, Role, Seed, Statement, User};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// 2026-11-01T00:00:00Z, in milliseconds.
const START: u64 = 1_793_491_200_000;
/// The longest that a test really waits for one refresh.
const PATIENCE: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_mins(5);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const GET: &str = "GetSecretValue";
const BATCH: &str = "BatchGetSecretValue";
const EXCHANGE: &str = "AssumeRoleWithWebIdentity";
const ASSUME: &str = "AssumeRole";
const AGENT: &str = "AssumeRoleForPodIdentity";
const WHO: &str = "GetCallerIdentity";

thread_local! {
    /// What keytide's wall clock shows. Each test has a thread of its own, and its daemon runs there and nowhere else.
    static OURS: Cell<u64> = const { Cell::new(START) };
}

/// A test that measures this process wants it for itself.
static PROCESS: RwLock<()> = RwLock::new(());

/// A directory in memory and an AWS with a clock of its own.
struct Scene {
    aws: Emulator,
    directory: TempDir,
    /// What AWS's clock shows.
    theirs: Arc<AtomicU64>,
}

/// A daemon in this thread.
struct Running<'a> {
    scene: &'a Scene,
    health: Arc<Health>,
    port: SocketAddr,
    tasks: JoinSet<anyhow::Result<Ending>>,
    stop: CancellationToken,
    /// From now to the next refresh, rounded up to a second.
    due: Duration,
}

// === impl Scene ===

impl Scene {
    fn new(seed: Seed) -> Self {
        OURS.set(START);
        let theirs = Arc::new(AtomicU64::new(START));
        let aws = Emulator::start_with(seed, ([127, 0, 0, 1], 0).into()).unwrap();
        let clock = Arc::clone(&theirs);
        aws.set_clock(move || time(clock.load(Ordering::Relaxed)));
        let directory = TempDir::with_prefix_in("keytide-clock-", "/dev/shm").expect("tests need a tmpfs at /dev/shm");
        Self { aws, directory, theirs }
    }

    /// With a primary secret `app` of two members.
    fn primary() -> Self {
        Self::new(Seed::default().secret("app", r#"{"A": "1", "B": "two"}"#))
    }

    /// With separate secrets.
    fn separate(count: usize) -> Self {
        Self::new((0..count).fold(Seed::default(), |seed, n| seed.secret(&secret(n), "value")))
    }

    /// Every member of `app` into one env file, every five minutes.
    fn config(&self) -> Config {
        let User { access_key_id, secret_access_key, .. } = User::default();
        let url = self.aws.url();
        Config {
            aws: Aws {
                region: "us-east-1".to_owned(),
                reader: Identity {
                    base: Credentials::Static(StaticKeys {
                        access_key_id,
                        secret_access_key: SecretValue::new(secret_access_key),
                        session_token: None,
                    }),
                    roles: Vec::new(),
                    expected: Expected::default(),
                },
                writer: None,
                endpoints: Endpoints { secrets_manager: Some(url.clone()), sts: Some(url), ..Endpoints::default() },
                network: Network {
                    connect_timeout: Duration::from_secs(3),
                    proxy: None,
                    no_proxy: None,
                    trusted: None,
                    trusted_directory: None,
                    ca_bundle: None,
                },
                overrides: Vec::new(),
            },
            keys: Vec::new(),
            wholesale: vec![Wholesale { request: request("app"), rename: BTreeMap::new() }],
            refresh: Refresh {
                interval: INTERVAL,
                jitter: 0.1,
                call_timeout: Duration::from_secs(10),
                on_missing: OnMissing::Fail,
                startup_timeout: INTERVAL,
                max_stale: None,
            },
            outputs: vec![Output {
                name: OutputName::parse("env_file").unwrap(),
                selection: Selection::default(),
                kind: OutputKind::EnvFile {
                    path: self.file(),
                    format: Format::Posix,
                    access: FileAccess { mode: None, group: None, owner: None, allow_disk: false },
                },
            }],
            state: Some(State { directory: self.directory.path().join(".keytide"), allow_disk: false }),
            http: Some(([127, 0, 0, 1], 0).into()),
            admin: None,
            virtual_keys: None,
            reload: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// The same with separate secrets.
    fn config_of_separate(&self, count: usize) -> Config {
        let key = |n| Key {
            name: KeyName::parse(format!("KEY_{n}")).unwrap(),
            origin: Origin::Secret(request(&secret(n))),
            export: true,
            allow_reserved: false,
        };
        Config { keys: (0..count).map(key).collect(), wholesale: Vec::new(), ..self.config() }
    }

    /// The same with sessions of a role.
    fn config_of_web_identity(&self) -> Config {
        let token_file = self.directory.path().join("token");
        // {"alg":"none"}, {"sub":"pod"}, and something for a signature.
        fs::write(&token_file, "eyJhbGciOiJub25lIn0.eyJzdWIiOiJwb2QifQ.c2ln\n").unwrap();
        let arn = self.aws.add_role(Role::new("keytide").trusts_web_identity().allow(Statement::everything()));
        let mut config = self.config();
        config.aws.reader.base = Credentials::WebIdentity { role: role(&arn), token: Token::File(token_file) };
        config
    }

    /// The same with a second role, which the first one assumes.
    fn config_of_chain(&self) -> Config {
        let mut config = self.config_of_web_identity();
        let last = Role::new("last").trusts("arn:aws:iam::123456789012:role/keytide").allow(Statement::everything());
        config.aws.reader.roles = vec![role(&self.aws.add_role(last))];
        config
    }

    /// Static keys, and a role that their user assumes.
    fn config_of_role(&self) -> Config {
        let mut config = self.config();
        let trusting = Role::new("app").trusts("arn:aws:iam::123456789012:user/keytide").allow(Statement::everything());
        config.aws.reader.roles = vec![role(&self.aws.add_role(trusting))];
        config
    }

    /// The agent of EKS Pod Identity, which gives this role.
    fn config_of_pod_identity(&self, arn: &str) -> Config {
        self.aws.set_pod_identity(Some(PodIdentity::new(arn)));
        let agent = Container {
            address: self.aws.address(),
            path: "/v1/credentials".to_owned(),
            token: Some(Token::Text(SecretValue::new("token".to_owned()))),
        };
        let mut config = self.config();
        config.aws.reader.base = Credentials::Container(agent);
        config
    }

    /// Virtual keys below `app/`, without any limit of ours, and nothing to read.
    fn config_of_spool(&self) -> Config {
        let rules =
            Rules { prefix: "app/".to_owned(), operations: Operation::ALL.into_iter().collect(), ..Rules::default() };
        let virtual_keys = VirtualKeys {
            rules,
            teams: Vec::new(),
            rate: None,
            max_new_secrets_per_hour: None,
            spool: Spool { directory: self.spool(), allow_disk: false, max_entries: 4096, plain_files: false },
        };
        let mut config = self.config();
        // The clock moves by more than those at once, perhaps while the emulator's thread waits for a processor.
        (config.refresh.call_timeout, config.aws.network.connect_timeout) = (DAY, DAY);
        Config { wholesale: Vec::new(), outputs: Vec::new(), virtual_keys: Some(virtual_keys), ..config }
    }

    fn spool(&self) -> PathBuf {
        self.directory.path().join("in")
    }

    /// Leaves an entry in the spool; `order` goes before its time in the order of names.
    fn leave(&self, order: usize, entry: &str) {
        let (temporary, name) = (self.spool().join(".entry"), self.spool().join(format!("{order:020}-test-0.json")));
        fs::write(&temporary, entry).unwrap();
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644)).unwrap();
        fs::rename(temporary, name).unwrap();
    }

    fn leave_value(&self, order: usize, operation: &str, name: &str, value: &str) {
        self.leave(order, &format!(r#"{{"op":"{operation}","name":"{name}","value":"{value}"}}"#));
    }

    /// The values of all versions, in the order in which they were made.
    fn versions(&self, name: &str) -> Vec<String> {
        let versions = self.aws.secret(name).map(|secret| secret.versions).unwrap_or_default();
        versions.into_iter().map(|version| version.value).collect()
    }

    fn failed(&self) -> Vec<String> {
        let files = fs::read_dir(self.spool().join("failed")).unwrap().map(|file| file.unwrap().path());
        let reasons = files.filter(|path| path.to_string_lossy().ends_with(".error.json"));
        reasons.map(|path| fs::read_to_string(path).unwrap()).collect()
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("keys.env")
    }

    fn content(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    /// Builds a daemon, starts it, and waits for the end of its first refresh.
    async fn run(&self, config: Config, random: u64) -> Running<'_> {
        let mut running = self.start(config, random).await;
        running.until_refreshed(1).await;
        running
    }

    /// The same of one that reads nothing, until it has looked at its spool.
    async fn run_spool(&self, config: Config, random: u64) -> Running<'_> {
        let mut running = self.start(config, random).await;
        running.settle().await;
        running
    }

    async fn start(&self, config: Config, random: u64) -> Running<'_> {
        let world = World {
            now: || time(OURS.get()),
            in_pod: false,
            cluster: keytide::config::ClusterAccess::None,
            instance: "test".to_owned(),
            origin: None,
            once: None,
            hangup: Arc::new(Notify::new()),
            last_words: |_| {},
            random: fastrand::Rng::with_seed(random),
        };
        let daemon = Daemon::build(config, world).await.unwrap();
        let (health, port) = (daemon.health(), daemon.port().unwrap());
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(daemon.run(stop.clone().cancelled_owned()));
        Running { scene: self, health, port, tasks, stop, due: Duration::ZERO }
    }
}

// === impl Running ===

impl Running<'_> {
    /// Moves all clocks.
    async fn advance(&self, by: Duration) {
        let by_ms = u64::try_from(by.as_millis()).unwrap();
        OURS.set(OURS.get() + by_ms);
        self.scene.theirs.fetch_add(by_ms, Ordering::Relaxed);
        tokio::time::advance(by).await;
    }

    /// Moves the clocks to the next refresh, whatever it is for, and waits for its end.
    async fn step(&mut self) {
        let before = self.refreshes();
        self.advance(self.due).await;
        self.until_refreshed(before + 1).await;
    }

    async fn steps_for(&mut self, duration: Duration) {
        let end = self.scene.theirs.load(Ordering::Relaxed) + u64::try_from(duration.as_millis()).unwrap();
        while self.scene.theirs.load(Ordering::Relaxed) + u64::try_from(self.due.as_millis()).unwrap() <= end {
            self.step().await;
        }
    }

    /// Moves the clocks in steps of this length; after each, everybody does what is to be done.
    async fn pass(&mut self, duration: Duration, step: Duration) {
        let mut left = duration;
        while !left.is_zero() {
            let by = step.min(left);
            left -= by;
            self.advance(by).await;
            self.settle().await;
        }
    }

    /// The same until it is so; false if it was not within this time.
    async fn pass_until(&mut self, within: Duration, step: Duration, so: impl Fn(&Self) -> bool) -> bool {
        let mut left = within;
        while !so(self) {
            if left.is_zero() {
                return false;
            }
            let by = step.min(left);
            left -= by;
            self.pass(by, step).await;
        }
        true
    }

    /// Waits until nobody has anything to do at this time, as far as can be seen from here.
    async fn settle(&mut self) {
        const CALLS: [&str; 7] =
            ["CreateSecret", "PutSecretValue", "DescribeSecret", "DeleteSecret", "RestoreSecret", GET, EXCHANGE];
        const QUIET: u32 = 12;
        let aws = &self.scene.aws;
        let deadline = Instant::now() + PATIENCE;
        let mut seen = (0, 0, 0);
        let mut quiet = 0;
        while quiet < QUIET {
            assert!(Instant::now() < deadline, "it never ends: {:?}", self.health.status().spool);
            // The driver of sockets has its turn; the emulator and the watch, in their threads, get the processor.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            thread::sleep(Duration::from_micros(100));
            let spool = self.spool();
            let attempts: u32 = spool.problems.iter().map(|problem| problem.attempts).sum();
            let state = (CALLS.iter().map(|call| aws.count(call)).sum::<usize>(), spool.confirmed, attempts);
            quiet = if state == seen { quiet + 1 } else { 0 };
            seen = state;
            if quiet == QUIET && aws.requests().iter().any(|request| request.outcome == "pending") {
                quiet = 0;
            }
        }
        if let Some(ended) = self.tasks.try_join_next() {
            panic!("the daemon ended: {:?}", ended.unwrap());
        }
        assert_eq!(self.health.live(), Verdict::Yes);
    }

    /// Waits until the daemon has seen what was left in the spool, at this time: events come from a thread of their own.
    async fn noticed(&mut self) {
        let spool = self.scene.spool();
        let deadline = Instant::now() + PATIENCE;
        let waits = || fs::read_dir(&spool).unwrap().any(|file| file.unwrap().path().extension().is_some());
        while waits() {
            assert!(Instant::now() < deadline, "nobody takes what is in the spool: {:?}", self.spool());
            self.pass(Duration::from_millis(100), Duration::from_millis(100)).await;
        }
        self.settle().await;
    }

    fn spool(&self) -> SpoolStatus {
        self.health.status().spool.unwrap()
    }

    fn refreshes(&self) -> u64 {
        self.health.status().refresh.count
    }

    async fn until_refreshed(&mut self, count: u64) {
        let deadline = Instant::now() + PATIENCE;
        let refresh = loop {
            let refresh = self.health.status().refresh;
            if refresh.count >= count {
                break refresh;
            }
            if let Some(ended) = self.tasks.try_join_next() {
                panic!("the daemon ended: {:?}", ended.unwrap());
            }
            assert!(Instant::now() < deadline, "no refresh {count}: {:?}", self.health.status());
            // The driver of sockets has its turn; the emulator, in its thread, gets the processor.
            tokio::task::yield_now().await;
            thread::sleep(Duration::from_micros(20));
        };
        assert_eq!(refresh.count, count, "one refresh at a time");
        // Every other worker that was due has its turn too.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(self.health.live(), Verdict::Yes);
        let next: jiff::Timestamp = refresh.next.unwrap().parse().unwrap();
        let next_ms = u64::try_from(next.as_millisecond()).unwrap() + 1000;
        self.due = Duration::from_millis(next_ms.saturating_sub(OURS.get()));
    }

    /// The sum of the samples of a metric whose labels contain this.
    async fn metric(&self, name: &str, label: &str) -> f64 {
        let mut stream = TcpStream::connect(self.port).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: keytide\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
        });
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// The states of all keys, each once, such as `stale (throttled)`.
    fn states(&self) -> Vec<String> {
        let state = |KeyStatus { state, reason, .. }: KeyStatus| match reason {
            Some(reason) => format!("{state} ({reason})"),
            None => state,
        };
        let mut states: Vec<String> = self.health.status().keys.into_iter().map(state).collect();
        states.sort_unstable();
        states.dedup();
        states
    }

    async fn end(mut self) {
        self.stop.cancel();
        let ended = self.tasks.join_next().await.unwrap().unwrap();
        assert_eq!(ended.unwrap(), Ending::Stopped);
    }
}

fn time(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}

fn secret(n: usize) -> String {
    format!("app/key-{n:03}")
}

fn role(arn: &str) -> identity::Role {
    identity::Role::plain(RoleArn::parse(arn).unwrap(), "keytide".to_owned())
}

fn request(secret: &str) -> Request {
    Request { secret: SecretId::parse(secret).unwrap(), stage: None }
}

/// Runs a test on a paused clock, beside others.
fn paused(test: impl Future<Output = ()>) {
    let _others = PROCESS.read().unwrap_or_else(PoisonError::into_inner);
    block_on(test);
}

/// The same with nobody else in this process.
fn paused_alone(test: impl Future<Output = ()>) {
    let _nobody = PROCESS.write().unwrap_or_else(PoisonError::into_inner);
    block_on(test);
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (parked, park) = mpsc::channel::<()>();
    drop(runtime.spawn_blocking(move || park.recv()));
    runtime.block_on(test);
    // Now the parked task ends, and the runtime can.
    drop(parked);
}

/// The times at which AWS was asked, each once, in milliseconds.
fn asked_at(aws: &Emulator) -> Vec<i64> {
    let mut times: Vec<i64> = aws.requests().iter().map(|request| request.at_ms).collect();
    times.dedup();
    times
}

/// The pauses between calls, rounded down to a second.
fn pauses(aws: &Emulator) -> Vec<Duration> {
    let times = asked_at(aws);
    let later = times.iter().skip(1);
    later.zip(&times).map(|(to, from)| Duration::from_secs(u64::try_from(to - from).unwrap() / 1000)).collect()
}

fn resident_kib() -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_day_of_refreshes_is_one_call_each_and_nothing_else() {
    paused(async {
        let scene = Scene::primary();
        let mut running = scene.run(scene.config(), 1).await;
        running.steps_for(DAY).await;
        let refreshes = running.refreshes();
        assert!((280..=296).contains(&refreshes), "288 or so, give or take the jitter: {refreshes}");
        let requests = scene.aws.requests();
        assert_eq!(u64::try_from(requests.len()).unwrap(), refreshes);
        assert!(requests.iter().all(|request| request.action == GET && request.outcome == "200"));
        assert_eq!(running.states(), ["fresh"]);
        running.end().await;
    });
}

#[test]
fn pods_that_start_together_do_not_stay_together() {
    paused(async {
        let mut seconds = Vec::new();
        for seed in 0..16 {
            let scene = Scene::primary();
            let mut running = scene.run(scene.config(), seed).await;
            running.step().await;
            running.step().await;
            running.step().await;
            running.end().await;
            let pauses = pauses(&scene.aws);
            let (second, later) = pauses.split_first().unwrap();
            assert!(*second <= INTERVAL + Duration::from_secs(1), "{second:?}");
            for pause in later {
                assert!(*pause >= INTERVAL.mul_f64(0.9) && *pause <= INTERVAL.mul_f64(1.1), "{pause:?}");
            }
            seconds.push(*second);
        }
        seconds.sort_unstable();
        let widest = seconds.iter().zip(seconds.iter().skip(1)).map(|(a, b)| *b - *a).max().unwrap();
        assert!(*seconds.first().unwrap() < INTERVAL / 4 && *seconds.last().unwrap() > INTERVAL * 3 / 4, "{seconds:?}");
        assert!(widest < INTERVAL / 2, "spread over the whole interval: {seconds:?}");
    });
}

#[test]
fn a_throttled_minute_is_met_with_growing_pauses_and_no_more_calls_than_a_refresh() {
    const KEYS: usize = 100;
    paused(async {
        let scene = Scene::separate(KEYS);
        let mut running = scene.run(scene.config_of_separate(KEYS), 2).await;
        assert_eq!((scene.aws.count(BATCH), scene.aws.count(GET)), (5, 0), "100 secrets, 20 a call");
        let content = scene.content();
        scene.aws.fault(Fault::any());
        scene.aws.clear_requests();
        running.step().await;
        running.steps_for(Duration::from_mins(1)).await;
        assert_eq!(running.states(), ["stale (throttled)"]);
        assert_eq!(scene.content(), content);
        assert_eq!(running.health.ready(), Verdict::Yes);
        let attempts = asked_at(&scene.aws).len();
        assert!((5..=8).contains(&attempts), "{attempts}");
        assert_eq!(scene.aws.count(BATCH), attempts * 5, "each attempt is one refresh");
        assert_eq!(scene.aws.count(GET), 0, "throttling never leads to more calls");
        for (attempt, pause) in pauses(&scene.aws).into_iter().enumerate() {
            let most = Duration::from_secs(1 << attempt).min(Duration::from_mins(1));
            // Rounded up where the clock is moved, and down where it is read.
            let (least, most) = (most / 2 - Duration::from_millis(500), most + Duration::from_secs(1));
            assert!(pause >= least && pause <= most, "pause {attempt}: {pause:?}");
        }
        scene.aws.clear_faults();
        running.step().await;
        assert_eq!(running.states(), ["fresh"], "recovery needs nothing but the next attempt");
        let due = running.due;
        assert!(due > Duration::from_mins(1), "and then there are no more retries: {due:?}");
        running.end().await;
    });
}

#[test]
fn a_day_of_throttling_makes_fewer_calls_than_a_call_a_half_minute() {
    paused(async {
        let scene = Scene::primary();
        let mut running = scene.run(scene.config(), 3).await;
        scene.aws.fault(Fault::any());
        scene.aws.clear_requests();
        running.steps_for(DAY).await;
        let calls = scene.aws.count(GET);
        // Retries are 30 to 60 s apart; full refreshes come between them.
        assert!((1440..=2500).contains(&calls), "{calls}");
        assert_eq!(running.states(), ["stale (throttled)"]);
        scene.aws.clear_faults();
        running.step().await;
        assert_eq!(running.states(), ["fresh"]);
        running.end().await;
    });
}

#[test]
fn a_session_is_used_until_shortly_before_its_end() {
    paused(async {
        let scene = Scene::primary();
        let mut running = scene.run(scene.config_of_web_identity(), 4).await;
        running.steps_for(DAY).await;
        let (sessions, reads) = (scene.aws.count(EXCHANGE), scene.aws.count(GET));
        assert!((24..=30).contains(&sessions), "sessions of one hour in a day: {sessions}");
        assert_eq!(u64::try_from(reads).unwrap(), running.refreshes());
        let requests = scene.aws.requests();
        assert_eq!(requests.len(), sessions + reads);
        assert!(requests.iter().all(|request| request.outcome == "200"), "no session was used after its end");
        running.end().await;
    });
}

/// How many calls there were to STS, of each kind.
fn sts(aws: &Emulator) -> (usize, usize, usize) {
    (aws.count(EXCHANGE), aws.count(ASSUME), aws.count(WHO))
}

#[test]
fn a_day_of_a_chain_of_two_roles_makes_as_many_sts_calls_as_sessions_end() {
    for seed in [20, 21, 22] {
        paused(async {
            let scene = Scene::primary();
            let mut running = scene.run(scene.config_of_chain(), seed).await;
            running.steps_for(DAY).await;
            let (first, second, who) = sts(&scene.aws);
            assert!(first + second <= 54, "{first} + {second}");
            assert!(first >= 24 && second >= 24, "sessions of one hour: {first}, {second}");
            assert_eq!(who, 0, "nobody asked for a proof");
            assert_eq!(u64::try_from(scene.aws.count(GET)).unwrap(), running.refreshes());
            let requests = scene.aws.requests();
            assert!(requests.iter().all(|request| request.outcome == "200"), "no session was used after its end");
            running.end().await;
        });
    }
}

#[test]
fn an_expected_role_is_proved_once_a_session() {
    paused(async {
        let scene = Scene::primary();
        let mut config = scene.config_of_chain();
        config.aws.reader.expected.role = RoleArn::parse("arn:aws:iam::123456789012:role/last");
        let mut running = scene.run(config, 23).await;
        running.steps_for(DAY).await;
        let (_, sessions, who) = sts(&scene.aws);
        assert_eq!(who, sessions);
        running.end().await;
    });
}

#[test]
fn a_role_over_static_keys_asks_once_who_they_are() {
    paused(async {
        let scene = Scene::primary();
        let mut running = scene.run(scene.config_of_role(), 24).await;
        running.steps_for(DAY).await;
        let (exchanges, sessions, who) = sts(&scene.aws);
        assert_eq!((exchanges, who), (0, 1));
        assert!((24..=27).contains(&sessions), "{sessions}");
        assert_eq!(running.states(), ["fresh"]);
        running.end().await;
    });
}

#[test]
fn a_role_over_pod_identity_asks_once_who_that_is() {
    paused(async {
        let scene = Scene::primary();
        let pod = Role::new("pod").allow(Statement::everything());
        let pod = scene.aws.add_role(pod);
        let trusting = Role::new("app").trusts(&pod).allow(Statement::everything());
        let app = scene.aws.add_role(trusting);
        let mut config = scene.config_of_pod_identity(&pod);
        config.aws.reader.roles = vec![role(&app)];
        let mut running = scene.run(config, 27).await;
        running.steps_for(DAY).await;
        let (exchanges, sessions, who) = sts(&scene.aws);
        assert_eq!((exchanges, who), (0, 1));
        assert!((24..=27).contains(&sessions), "{sessions}");
        let agent = scene.aws.count(AGENT);
        assert!((4..=5).contains(&agent), "sessions of six hours: {agent}");
        assert_eq!(running.states(), ["fresh"]);
        running.end().await;
    });
}

#[test]
fn a_role_that_the_pod_already_is_is_not_assumed_but_proved_for_every_session_of_the_pod() {
    paused(async {
        let scene = Scene::primary();
        let pod = scene.aws.add_role(Role::new("pod").allow(Statement::everything()));
        let mut config = scene.config_of_pod_identity(&pod);
        config.aws.reader.roles = vec![role(&pod)];
        let mut running = scene.run(config, 28).await;
        running.steps_for(DAY).await;
        let agent = scene.aws.count(AGENT);
        assert_eq!(sts(&scene.aws), (0, 0, agent));
        assert!((4..=5).contains(&agent), "sessions of six hours: {agent}");
        // Somebody gives the pod another role, which this one does not trust.
        let content = scene.content();
        let other = scene.aws.add_role(Role::new("other").allow(Statement::everything()));
        scene.aws.set_pod_identity(Some(PodIdentity::new(&other)));
        running.steps_for(Duration::from_hours(7)).await;
        assert_eq!(running.states(), ["stale (identity)"], "nobody else's credentials are used");
        assert_eq!(scene.content(), content);
        let by_other =
            |request: &keytide_emulator::Request| request.principal.as_ref().is_some_and(|who| who.contains("/other/"));
        assert!(!scene.aws.requests().iter().any(|request| request.action == GET && by_other(request)));
        scene.aws.set_pod_identity(Some(PodIdentity::new(&pod)));
        running.steps_for(Duration::from_hours(7)).await;
        assert_eq!(running.states(), ["fresh"], "recovery needs no restart");
        running.end().await;
    });
}

#[test]
fn static_keys_never_ask_sts() {
    paused(async {
        let scene = Scene::primary();
        let mut running = scene.run(scene.config(), 25).await;
        running.steps_for(DAY).await;
        assert_eq!(sts(&scene.aws), (0, 0, 0));
        running.end().await;
    });
}

#[test]
fn an_hour_without_sts_costs_nothing_before_the_sessions_end_and_no_value_after() {
    for kind in [
        FaultKind::Throttle,
        FaultKind::InternalError,
        FaultKind::Body("<html>not STS</html>".to_owned()),
        FaultKind::CutAfter(40),
    ] {
        paused(async {
            let scene = Scene::primary();
            let mut running = scene.run(scene.config_of_chain(), 26).await;
            let content = scene.content();
            for action in [EXCHANGE, ASSUME, WHO] {
                scene.aws.fault(Fault::on(action).kind(kind.clone()));
            }
            scene.aws.clear_requests();
            running.steps_for(Duration::from_mins(50)).await;
            assert_eq!(running.states(), ["fresh"], "the session lasts");
            assert_eq!(sts(&scene.aws), (0, 0, 0), "and nobody is asked before it is time");
            running.steps_for(Duration::from_mins(70)).await;
            let state = running.states();
            assert!(["stale (throttled)", "stale (unavailable)"].contains(&state.join(",").as_str()), "{state:?}");
            assert_eq!(scene.content(), content);
            assert_eq!(running.health.ready(), Verdict::Yes);
            let (first, second, _) = sts(&scene.aws);
            assert!(first + second <= 2 * 120, "no more than two attempts a minute: {first} + {second}");
            scene.aws.clear_faults();
            running.step().await;
            assert_eq!(running.states(), ["fresh"], "recovery needs nothing but the next attempt");
            running.end().await;
        });
    }
}

#[test]
fn a_denied_batch_call_is_remembered_for_a_day() {
    const KEYS: usize = 7;
    paused(async {
        let scene = Scene::separate(KEYS);
        let user = User::default().access_key_id;
        scene.aws.allow(&user, &[Statement::new(["secretsmanager:GetSecretValue"], ["*"])]);
        let mut config = scene.config_of_separate(KEYS);
        config.refresh.interval = HOUR;
        let mut running = scene.run(config, 5).await;
        let count = |action| scene.aws.count(action);
        assert_eq!((count(BATCH), count(GET)), (1, KEYS), "the same refresh reads one by one");
        running.steps_for(DAY - Duration::from_secs(1)).await;
        assert_eq!(count(BATCH), 1, "remembered for a day");
        let refreshes = usize::try_from(running.refreshes()).unwrap();
        assert_eq!(count(GET), refreshes * KEYS);
        running.step().await;
        assert_eq!((count(BATCH), count(GET)), (2, (refreshes + 1) * KEYS), "then tried again, and still denied");
        scene.aws.allow(&user, &[Statement::everything()]);
        running.steps_for(DAY + HOUR + HOUR).await;
        scene.aws.clear_requests();
        running.step().await;
        assert_eq!((count(BATCH), count(GET)), (1, 0), "allowed since: one call");
        assert_eq!(running.states(), ["fresh"]);
        running.end().await;
    });
}

/// The wall clock of the machine jumps, and that of AWS does not.
async fn jump(running: &mut Running<'_>, to: u64) {
    let content = running.scene.content();
    let due = running.due;
    OURS.set(to);
    running.due = due;
    for _ in 0..4 {
        running.step().await;
        assert_eq!(running.scene.content(), content, "the last good values stay, to the byte");
        assert_eq!(running.health.ready(), Verdict::Yes);
        if running.states() == ["fresh"] {
            return;
        }
    }
    panic!("no recovery: {:?}", running.health.status().keys);
}

#[test]
fn a_clock_that_jumps_is_corrected_by_that_of_aws() {
    paused(async {
        let scene = Scene::primary();
        let mut running = scene.run(scene.config(), 6).await;
        let hour = u64::try_from(HOUR.as_millis()).unwrap();
        for _ in 0..2 {
            jump(&mut running, OURS.get() + hour).await;
            running.steps_for(HOUR).await;
            assert_eq!(running.states(), ["fresh"]);
            jump(&mut running, OURS.get() - hour).await;
            running.steps_for(HOUR).await;
            assert_eq!(running.states(), ["fresh"]);
        }
        assert!(
            running.metric("keytide_aws_requests_total", "outcome=\"clock\"").await <= 8.0,
            "one failed call a jump"
        );
        running.end().await;
    });
}

#[test]
fn sessions_survive_a_clock_that_jumps() {
    paused(async {
        let scene = Scene::primary();
        let mut running = scene.run(scene.config_of_web_identity(), 7).await;
        let hours = 2 * u64::try_from(HOUR.as_millis()).unwrap();
        jump(&mut running, OURS.get() + hours).await;
        running.steps_for(4 * HOUR).await;
        assert_eq!(running.states(), ["fresh"]);
        jump(&mut running, OURS.get() - hours).await;
        running.steps_for(4 * HOUR).await;
        assert_eq!(running.states(), ["fresh"]);
        let sessions = scene.aws.count(EXCHANGE);
        assert!(sessions <= 16, "{sessions}");
        running.end().await;
    });
}

#[test]
fn an_endpoint_that_never_answers_costs_one_time_limit_a_refresh() {
    paused(async {
        let scene = Scene::primary();
        let mut running = scene.run(scene.config(), 8).await;
        scene.aws.fault(Fault::on(GET).times(1).kind(FaultKind::Hang));
        scene.aws.clear_requests();
        let before = running.refreshes();
        running.advance(running.due).await;
        while scene.aws.count(GET) == 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(running.refreshes(), before, "it waits");
        running.advance(Duration::from_secs(10)).await;
        running.until_refreshed(before + 1).await;
        assert_eq!(running.states(), ["stale (unavailable)"]);
        running.step().await;
        assert_eq!(running.states(), ["fresh"]);
        assert_eq!(scene.aws.count(GET), 2);
        running.end().await;
    });
}

#[test]
fn ten_thousand_refreshes_leave_no_trace() {
    const WARM: u64 = 2000;
    const MANY: u64 = 10_000;
    paused_alone(async {
        let scene = Scene::primary();
        let mut running = scene.run(scene.config(), 9).await;
        let inode = fs::metadata(scene.file()).unwrap().ino();
        let mut before = 0;
        for refresh in 0..WARM + MANY {
            if refresh == WARM {
                before = resident_kib();
            }
            running.step().await;
            // The record is the emulator's, in this process too.
            if refresh % 100 == 0 {
                scene.aws.clear_requests();
            }
        }
        let grown = resident_kib() - before;
        assert!(grown < 1024, "{grown} KiB more after {MANY} refreshes");
        assert_eq!(running.refreshes(), WARM + MANY + 1);
        assert_eq!(running.metric("keytide_refreshes_total", "outcome=\"complete\"").await, 12_001.0);
        assert_eq!(running.metric("keytide_output_writes_total", "").await, 1.0, "the first one");
        assert_eq!(running.metric("keytide_output_repairs_total", "").await, 0.0);
        assert_eq!(fs::metadata(scene.file()).unwrap().ino(), inode);
        running.end().await;
    });
}

const CREATE: &str = "CreateSecret";
const PUT: &str = "PutSecretValue";
const DESCRIBE: &str = "DescribeSecret";
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn an_hour_without_aws_costs_few_calls_and_no_entry() {
    const NAMES: u32 = 5;
    paused(async {
        let scene = Scene::new(Seed::default().secret("app/rotated", "0"));
        let mut running = scene.run_spool(scene.config_of_spool(), 30).await;
        scene.aws.set_down(true);
        for n in 0..NAMES - 1 {
            scene.leave_value(usize::try_from(n).unwrap(), "create", &format!("app/{n}"), "1");
        }
        scene.leave_value(10, "rotate", "app/rotated", "1");
        running.noticed().await;
        running.pass(HOUR, SECOND).await;
        let spool = running.spool();
        assert_eq!((spool.claimed, spool.failed, spool.confirmed), (5, 0, 0));
        assert_eq!(spool.problems.len(), 5);
        for problem in &spool.problems {
            assert_eq!(problem.reason, "unavailable");
            // 1, 2, 4, … 60 s, the upper half of each random.
            assert!((60..=130).contains(&problem.attempts), "{}: {}", problem.subject, problem.attempts);
        }
        let attempts: u32 = spool.problems.iter().map(|problem| problem.attempts).sum();
        let calls = running.metric("keytide_aws_requests_total", "outcome=\"unavailable\"").await;
        assert_eq!(calls, f64::from(attempts), "one call an attempt");
        let retries = running.metric("keytide_spool_retries_total", "reason=\"unavailable\"").await;
        assert_eq!(retries, f64::from(attempts), "each is counted with its reason");
        assert_eq!(running.metric("keytide_spool_oldest_claim_timestamp_seconds", "").await, 1_793_491_200.0);
        scene.aws.set_down(false);
        let stored =
            running.pass_until(Duration::from_secs(62), SECOND, |running| running.spool().confirmed == 5).await;
        assert!(stored, "the next attempt stores it: {:?}", running.spool());
        for n in 0..NAMES - 1 {
            assert_eq!(scene.versions(&format!("app/{n}")), ["1"]);
        }
        assert_eq!(scene.versions("app/rotated"), ["0", "1"]);
        running.end().await;
    });
}

#[test]
fn what_is_denied_for_a_day_has_failed_and_not_before() {
    paused(async {
        let scene = Scene::new(Seed::default());
        let mut running = scene.run_spool(scene.config_of_spool(), 31).await;
        let denied = FaultKind::Error { code: "AccessDeniedException".to_owned(), status: 400, message: String::new() };
        scene.aws.fault(Fault::on(CREATE).kind(denied));
        scene.leave_value(0, "create", "app/a", "1");
        running.noticed().await;
        let step = Duration::from_secs(20);
        running.pass(DAY - Duration::from_mins(1), step).await;
        let spool = running.spool();
        assert_eq!((spool.claimed, spool.failed), (1, 0), "not before");
        assert_eq!(spool.problems.first().map(|problem| problem.reason.as_str()), Some("denied"));
        let attempts = scene.aws.count(CREATE);
        assert!((24 * 6..=24 * 12 + 10).contains(&attempts), "{attempts}");
        let failed = running.pass_until(Duration::from_mins(12), step, |running| running.spool().failed == 1).await;
        assert!(failed, "{:?}", running.spool());
        let reasons = scene.failed();
        assert!(reasons.len() == 1 && reasons.iter().all(|reason| reason.contains("\"denied\"")), "{reasons:?}");
        assert_eq!(running.metric("keytide_spool_failed_total", "reason=\"denied\"").await, 1.0);
        scene.aws.clear_faults();
        let calls = scene.aws.count(CREATE);
        running.pass(HOUR, step).await;
        assert_eq!(scene.aws.count(CREATE), calls, "nobody asks for it again");
        running.end().await;
    });
}

/// Denied for twenty hours, then something else for a while, then denied again. True if it has failed after a day of all.
async fn fails_in_spite_of(something: FaultKind) -> bool {
    let scene = Scene::new(Seed::default());
    let mut running = scene.run_spool(scene.config_of_spool(), 32).await;
    let denied = FaultKind::Error { code: "AccessDeniedException".to_owned(), status: 400, message: String::new() };
    let fault = scene.aws.fault(Fault::on(CREATE).kind(denied.clone()));
    scene.leave_value(0, "create", "app/a", "1");
    running.noticed().await;
    let step = Duration::from_secs(30);
    running.pass(Duration::from_hours(20), step).await;
    scene.aws.remove_fault(fault);
    let other = scene.aws.fault(Fault::on(CREATE).kind(something));
    running.pass(Duration::from_mins(30), step).await;
    scene.aws.remove_fault(other);
    scene.aws.fault(Fault::on(CREATE).kind(denied));
    running.pass(Duration::from_hours(5), step).await;
    let spool = running.spool();
    assert_eq!(spool.claimed + spool.failed, 1);
    if spool.failed == 0 {
        scene.aws.clear_faults();
        assert!(running.pass_until(Duration::from_mins(11), step, |running| running.spool().confirmed == 1).await);
        assert_eq!(scene.versions("app/a"), ["1"]);
    }
    running.end().await;
    spool.failed == 1
}

#[test]
fn a_day_of_denials_begins_anew_when_it_was_allowed_between() {
    paused(async {
        // AWS looks at the permission first, then at the key.
        let key = FaultKind::Error { code: "EncryptionFailure".to_owned(), status: 400, message: String::new() };
        assert!(!fails_in_spite_of(key).await);
    });
}

#[test]
fn a_day_of_denials_does_not_begin_anew_when_aws_was_away_between() {
    paused(async {
        assert!(fails_in_spite_of(FaultKind::InternalError).await);
    });
}

#[test]
fn new_secrets_beyond_those_of_an_hour_come_in_the_next_ones() {
    paused(async {
        let scene = Scene::new(Seed::default());
        let mut config = scene.config_of_spool();
        config.virtual_keys.as_mut().unwrap().max_new_secrets_per_hour = Some(2);
        let mut running = scene.run_spool(config, 33).await;
        for n in 0..5 {
            scene.leave_value(n, "create", &format!("app/{n}"), "1");
        }
        running.noticed().await;
        let confirmed = |running: &Running<'_>| running.spool().confirmed;
        // At once; but a call may be on its way when it is quiet here.
        let (seconds, moment) = (Duration::from_secs(10), Duration::from_millis(100));
        assert!(running.pass_until(seconds, moment, |running| confirmed(running) == 2).await, "{:?}", running.spool());
        assert!(running.spool().problems.iter().all(|problem| problem.reason == "new_secret_limit"));
        let step = Duration::from_secs(5);
        let minute = Duration::from_mins(1);
        for (made, calls) in [(2, 5), (4, 7)] {
            running.pass(minute, step).await;
            assert_eq!(confirmed(&running), made);
            let before = scene.aws.requests().len();
            running.pass(HOUR - 3 * minute, step).await;
            assert_eq!(confirmed(&running), made, "not before the hour is over");
            assert_eq!(scene.aws.requests().len(), before, "and no call meanwhile");
            assert!(before <= 2 * calls, "{before}");
            running.pass(3 * minute, step).await;
        }
        assert_eq!(confirmed(&running), 5);
        for n in 0..5 {
            assert_eq!(scene.versions(&format!("app/{n}")), ["1"]);
        }
        assert_eq!(running.metric("keytide_spool_new_secrets_total", "").await, 5.0);
        running.end().await;
    });
}

#[test]
fn an_entry_that_waited_for_more_than_a_minute_is_sent_after_one_look() {
    const ENTRIES: usize = 90;
    paused(async {
        let scene = Scene::new(Seed::default());
        let mut config = scene.config_of_spool();
        config.virtual_keys.as_mut().unwrap().rate = Some(1);
        let mut running = scene.run_spool(config, 34).await;
        for n in 0..ENTRIES {
            scene.leave_value(n, "create", &format!("app/{n}"), "1");
        }
        running.noticed().await;
        let all = u64::try_from(ENTRIES).unwrap();
        assert!(running.pass_until(Duration::from_mins(2), SECOND, |running| running.spool().confirmed == all).await);
        let requests = scene.aws.requests();
        let mut looked = 0;
        for n in 0..ENTRIES {
            let name = format!("app/{n}");
            let of_name: Vec<_> = requests.iter().filter(|request| request.secret_ids.contains(&name)).collect();
            let actions: Vec<&str> = of_name.iter().map(|request| request.action.as_str()).collect();
            let waited = of_name.last().unwrap().at_ms - i64::try_from(START).unwrap();
            // The clocks move by a second.
            match waited {
                ..=58_000 => assert_eq!(actions, [CREATE], "{name} after {waited} ms"),
                63_000.. => assert_eq!(actions, [DESCRIBE, CREATE], "{name} after {waited} ms"),
                _ => {}
            }
            looked += usize::from(actions.contains(&DESCRIBE));
        }
        assert!((20..=50).contains(&looked), "those that were not sent within a minute: {looked}");
        running.end().await;
    });
}

/// keytide's wall clock jumps, and AWS's does not.
fn jump_of_ours(forward: bool) {
    let hour = u64::try_from(HOUR.as_millis()).unwrap();
    OURS.set(if forward { OURS.get() + hour } else { OURS.get() - hour });
}

#[test]
fn entries_survive_a_clock_that_jumps_in_their_order() {
    for seed in 35..38 {
        for first in [true, false] {
            paused(async {
                let scene = Scene::new(Seed::default());
                let mut running = scene.run_spool(scene.config_of_spool(), seed).await;
                let mut order = 0;
                let mut expected = Vec::new();
                for forward in [first, !first, !first, first] {
                    for _ in 0..3 {
                        order += 1;
                        expected.push(order.to_string());
                        scene.leave_value(order, "create", "app/a", &order.to_string());
                        running.noticed().await;
                        let confirmed = u64::try_from(order).unwrap();
                        let minutes = Duration::from_mins(3);
                        let stored =
                            running.pass_until(minutes, SECOND, |running| running.spool().confirmed == confirmed);
                        assert!(stored.await, "entry {order}: {:?} {:?}", running.spool(), scene.failed());
                    }
                    jump_of_ours(forward);
                }
                assert_eq!(scene.versions("app/a"), expected);
                assert_eq!(scene.aws.value("app/a"), expected.last().cloned());
                assert_eq!(running.spool().failed, 0);
                running.end().await;
            });
        }
    }
}

#[test]
fn entries_that_wait_while_the_clock_jumps_keep_their_order() {
    for forward in [true, false] {
        paused(async {
            let scene = Scene::new(Seed::default().secret("app/a", "0"));
            let mut running = scene.run_spool(scene.config_of_spool(), 39).await;
            let away = scene.aws.fault(Fault::any().kind(FaultKind::InternalError));
            scene.leave_value(1, "rotate", "app/a", "1");
            scene.leave(2, r#"{"op":"rename","name":"app/a","new_name":"app/b"}"#);
            running.noticed().await;
            jump_of_ours(forward);
            scene.leave_value(3, "rotate", "app/b", "3");
            scene.leave_value(4, "create", "app/a", "4");
            running.noticed().await;
            running.pass(Duration::from_mins(5), SECOND).await;
            jump_of_ours(!forward);
            scene.leave_value(5, "rotate", "app/b", "5");
            running.noticed().await;
            scene.aws.remove_fault(away);
            let minutes = Duration::from_mins(5);
            let stored = running.pass_until(minutes, SECOND, |running| running.spool().claimed == 0).await;
            assert!(stored, "{:?} {:?}", running.spool(), scene.failed());
            assert_eq!(scene.versions("app/a"), ["0", "1", "4"]);
            assert_eq!(scene.aws.value("app/a").as_deref(), Some("4"));
            assert_eq!(scene.versions("app/b"), ["1", "5"], "the value that was moved, and the last of those folded");
            assert_eq!(scene.aws.value("app/b").as_deref(), Some("5"));
            assert_eq!(running.spool().failed, 0);
            running.end().await;
        });
    }
}

#[test]
fn a_failed_entry_is_removed_after_a_week_when_two_looks_agree() {
    paused(async {
        let scene = Scene::new(Seed::default());
        // What the file system says of a file is of the machine's own clock.
        let real = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
        let real = u64::try_from(real).unwrap();
        OURS.set(real);
        scene.theirs.store(real, Ordering::Relaxed);
        let mut running = scene.run_spool(scene.config_of_spool(), 40).await;
        scene.leave(0, "{");
        running.noticed().await;
        assert!(running.pass_until(HOUR, SECOND, |running| running.spool().failed == 1).await);
        let week = 7 * 24 * 60 * 60 * 1000;
        let step = Duration::from_mins(1);
        // A clock that was wrong for one look.
        OURS.set(real + 2 * week);
        running.pass(HOUR + step, step).await;
        assert_eq!(scene.failed().len(), 1, "one look is not enough");
        OURS.set(real);
        running.pass(HOUR + step, step).await;
        OURS.set(real + 2 * week);
        running.pass(HOUR, step).await;
        assert_eq!(scene.failed().len(), 1, "nor are two that did not agree with the one between");
        OURS.set(real + week - 24 * 60 * 60 * 1000);
        running.pass(3 * HOUR, step).await;
        assert_eq!(scene.failed().len(), 1, "six days are no week");
        OURS.set(real + week + 60_000);
        running.pass(3 * HOUR, step).await;
        assert_eq!(scene.failed().len(), 0, "after seven it is gone");
        assert!(running.pass_until(step, SECOND, |running| running.spool().failed == 0).await);
        let left = |name: &str| fs::read_dir(scene.spool().join(name)).unwrap().count();
        assert_eq!((left("failed"), left(".results"), left(".claimed")), (0, 0, 0));
        running.end().await;
    });
}

#[test]
fn many_versions_of_one_secret_are_counted_for_a_day() {
    const VERSIONS: u16 = 82;
    paused(async {
        let scene = Scene::new(Seed::default().secret("app/a", "0"));
        let mut running = scene.run_spool(scene.config_of_spool(), 41).await;
        for n in 0..usize::from(VERSIONS) {
            scene.leave_value(n, "rotate", "app/a", &n.to_string());
            running.noticed().await;
            let stored = u64::try_from(n).unwrap() + 1;
            assert!(running.pass_until(HOUR, SECOND, |running| running.spool().confirmed == stored).await);
        }
        assert_eq!(scene.aws.count(PUT), usize::from(VERSIONS), "one call each");
        running.pass(SECOND, SECOND).await;
        let busiest = "keytide_spool_busiest_secret_versions";
        assert_eq!(running.metric(busiest, "").await, f64::from(VERSIONS));
        let step = Duration::from_mins(1);
        running.pass(DAY - HOUR, step).await;
        assert_eq!(running.metric(busiest, "").await, f64::from(VERSIONS), "within a day");
        running.pass(HOUR + HOUR, step).await;
        assert_eq!(running.metric(busiest, "").await, 0.0, "and not after it");
        running.end().await;
    });
}
