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
    os::unix::fs::MetadataExt as _,
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
        Refresh, State, StaticKeys, Token,
    },
    daemon::{Daemon, World},
    domain::{
        identity::{self, Expected, RoleArn},
        mapping::{Format, Key, Origin, Request, Selection, Wholesale},
        names::{KeyName, OutputName, SecretId},
        value::SecretValue,
    },
    health::{Health, KeyStatus, Verdict},
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
            state: State { directory: self.directory.path().join(".keytide"), allow_disk: false },
            http: Some(([127, 0, 0, 1], 0).into()),
            admin: None,
            virtual_keys: None,
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

    fn file(&self) -> PathBuf {
        self.directory.path().join("keys.env")
    }

    fn content(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    /// Builds a daemon, starts it, and waits for the end of its first refresh.
    async fn run(&self, config: Config, random: u64) -> Running<'_> {
        let world = World {
            now: || time(OURS.get()),
            in_pod: false,
            origin: None,
            once: None,
            hangup: Arc::new(Notify::new()),
            random: fastrand::Rng::with_seed(random),
        };
        let daemon = Daemon::build(config, world).await.unwrap();
        let (health, port) = (daemon.health(), daemon.port().unwrap());
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(daemon.run(stop.clone().cancelled_owned()));
        let mut running = Running { scene: self, health, port, tasks, stop, due: Duration::ZERO };
        running.until_refreshed(1).await;
        running
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
