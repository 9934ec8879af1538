//! How long a change takes on its way from AWS to the Secret, beside the bare calls, and how long a drift lasts: on the
//! static binary that people get.

use std::{
    thread,
    time::{Duration, Instant},
};

use aws_sdk_secretsmanager::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
};
use keytide_emulator::User;
use rustix::process::Signal;
use serde_json::json;

use crate::{
    gate::Recorded,
    stage::{KubeStage, SECRET, hub},
    support::Daemon,
};

/// Odd, so that there is one in the middle.
const PAIRS: u32 = 101;
const MOST_MILLISECONDS_MORE: f64 = 5.0;
/// Another drift within the minute would be a fight.
const DRIFTS: u32 = 3;
const LONGEST_DRIFT: Duration = Duration::from_secs(1);
/// Whoever is measured was idle.
const PAUSE: Duration = Duration::from_millis(100);
/// Whatever else the machine does may spoil one measurement, or two.
const ATTEMPTS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_micros(50);

#[expect(clippy::print_stderr, reason = "figures, for people")]
fn say(line: &str) {
    eprintln!("    {line}");
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// A hub whose Secret is written, in the shared cluster.
fn running() -> (KubeStage, Daemon) {
    assert!(std::env::var_os("KEYTIDE_TESTED_BINARY").is_some(), "./tests/run bench names the binary");
    let kube = KubeStage::with(&hub("", "keys: [{name: A, secret: prod/a}]"));
    kube.stage.aws.put("prod/a", "first");
    let daemon = kube.run();
    kube.until_values(&daemon, &json!({"A": "first"}));
    kube.until_output("written", &[]);
    (kube, daemon)
}

/// Until keytide's next apply of the Secret is answered.
fn until_applied(kube: &KubeStage, began: Instant) -> Duration {
    let path = kube.path();
    let is_done = |request: &Recorded| request.method == "PATCH" && request.path == path && request.status == Some(200);
    while kube.gate.count(is_done) == 0 {
        assert!(began.elapsed() < PATIENCE, "{:?}", kube.gate.requests());
        thread::sleep(GLANCE);
    }
    began.elapsed()
}

/// keytide's refresh and the bare calls in turn: milliseconds that keytide takes more, pair by pair.
fn measure() -> f64 {
    let (kube, daemon) = running();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let user = User::default();
    let config = aws_sdk_secretsmanager::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(kube.stage.aws.url())
        .credentials_provider(Credentials::new(user.access_key_id, user.secret_access_key, None, None, "test"))
        .build();
    let client = Client::from_conf(config);
    let theirs = kube.namespace.path("secrets/bare");
    let keytide = |n: u32| {
        kube.stage.aws.put("prod/a", &format!("keytide {n}"));
        kube.gate.clear_requests();
        let began = Instant::now();
        daemon.signal(Signal::HUP);
        milliseconds(until_applied(&kube, began))
    };
    let bare = |n: u32| {
        kube.stage.aws.put("prod/a", &format!("keytide {n}"));
        let began = Instant::now();
        let answer = runtime.block_on(client.get_secret_value().secret_id("prod/a").send()).unwrap();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bare"},
            "stringData": {"A": format!("{} {n}", answer.secret_string().unwrap())},
        });
        kube.api.apply(&theirs, &secret, "bare", true);
        milliseconds(began.elapsed())
    };
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for n in 0..PAIRS {
        // Nobody always follows the other one.
        for turn in 0..2 {
            thread::sleep(PAUSE);
            if (n + turn) % 2 == 0 {
                ours.push(keytide(n));
            } else {
                others.push(bare(n));
            }
        }
    }
    let more = median(ours.iter().zip(&others).map(|(ours, other)| ours - other).collect());
    say(&format!(
        "a change in AWS until the Secret has it, {PAIRS} pairs in turn: keytide {:.2} ms, GetSecretValue and an apply \
         without keytide {:.2} ms; {more:.2} ms more, pair by pair, at the median; limit {MOST_MILLISECONDS_MORE}",
        median(ours),
        median(others)
    ));
    more
}

#[test]
#[ignore = "of the release binary: ./tests/run bench"]
fn a_change_takes_one_call_to_aws_one_to_kubernetes_and_five_milliseconds() {
    assert!((0..ATTEMPTS).any(|_| measure() <= MOST_MILLISECONDS_MORE), "each time it was more");
}

#[test]
#[ignore = "of the release binary: ./tests/run bench"]
fn a_drift_lasts_less_than_a_second() {
    let measure = || {
        let (kube, _daemon) = running();
        let times: Vec<Duration> = (0..DRIFTS)
            .map(|_| {
                thread::sleep(PAUSE);
                kube.gate.clear_requests();
                kube.api.merge_patch_as(&kube.path(), &json!({"data": {"A": "eA=="}}), "kubectl-edit");
                until_applied(&kube, Instant::now())
            })
            .collect();
        let longest = times.iter().copied().max().unwrap();
        say(&format!("somebody changes {SECRET}, until it is right again: {times:?}; limit {LONGEST_DRIFT:?}"));
        longest
    };
    assert!((0..ATTEMPTS).any(|_| measure() < LONGEST_DRIFT), "each time it was longer");
}
