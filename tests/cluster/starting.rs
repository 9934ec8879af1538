//! An application starts with its keys.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    aws::Aws,
    namespace::Namespace,
    sidecar::{Sidecar, application, pod},
    wait::until,
};

/// An application that lives until it is asked to end.
pub(crate) const WAIT: &str = "trap 'exit 0' TERM; while :; do sleep 0.2; done";

fn keys() -> serde_json::Value {
    json!({"secrets": {"app": {"API_KEY": "abc", "DB_PASSWORD": "it's \"one\" $HOME"}}})
}

#[test]
fn an_application_reads_its_keys_from_a_file_and_from_its_environment() {
    let namespace = Namespace::new("starting");
    let aws =
        Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "abc", "DB_PASSWORD": "one $HOME \"two\""}}}));
    let mut sidecar = Sidecar::new(&aws);
    sidecar.values["sidecar"]["env"] = json!(["API_KEY", "DB_PASSWORD"]);
    sidecar.start(&namespace, "app", &application(WAIT));
    namespace.until_ready("app");
    let file = ". /run/keytide/env/keys.env; printf '%s %s' \"$API_KEY\" \"$DB_PASSWORD\"";
    assert_eq!(namespace.exec("app", "app", &["sh", "-c", file]), "abc one $HOME \"two\"");
    let environment = namespace.exec("app", "app", &["sh", "-c", "tr '\\0' '\\n' </proc/1/environ"]);
    assert!(environment.contains("API_KEY=abc\n"), "{environment}");
    assert!(environment.contains("DB_PASSWORD=one $HOME \"two\"\n"), "{environment}");
    assert!(!environment.contains("AWS_"), "the application holds no credential: {environment}");
    let mounts = namespace.exec("app", "app", &["cat", "/proc/mounts"]);
    let secrets: Vec<&str> =
        mounts.lines().filter(|mount| mount.contains("secrets") || mount.contains("private")).collect();
    assert!(secrets.is_empty(), "nor a token, nor what is keytide's alone: {secrets:?}");
    assert_is_restricted(&namespace, "app");
}

#[test]
fn a_rotation_arrives_in_the_file_that_the_application_reads() {
    let namespace = Namespace::new("rotation");
    let aws = Aws::start(&namespace, &keys());
    Sidecar::new(&aws).start(&namespace, "app", &application(WAIT));
    namespace.until_ready("app");
    aws.put("app", &json!({"API_KEY": "rotated", "DB_PASSWORD": "two"}));
    let read = || namespace.exec("app", "app", &["sh", "-c", ". /run/keytide/env/keys.env; echo $API_KEY"]);
    until("the rotated key", || read() == "rotated\n");
}

#[test]
fn an_application_that_is_signalled_reads_the_rotated_key() {
    let namespace = Namespace::new("signal");
    let aws = Aws::start(&namespace, &keys());
    let script = "trap '. /run/keytide/env/keys.env; echo reads $API_KEY' HUP; echo waits; while :; do sleep 0.2; done";
    let mut spec = application(script);
    spec["shareProcessNamespace"] = json!(true);
    // A signal goes to processes of the same user only.
    spec["securityContext"]["runAsUser"] = json!(65532);
    let mut sidecar = Sidecar::new(&aws);
    let signal = json!({"process": "sh", "signal": "HUP", "debounce": "0s", "splay": "0s", "outputs": ["env_file"]});
    sidecar.config["reload"] = json!([{"signal": signal}]);
    sidecar.start(&namespace, "app", &spec);
    namespace.until_log("app", "app", "waits");
    aws.put("app", &json!({"API_KEY": "rotated", "DB_PASSWORD": "two"}));
    namespace.until_log("app", "app", "reads rotated");
    assert_eq!(namespace.container("app", "app")["restartCount"], 0);
}

#[test]
fn the_sidecar_runs_beside_any_user_with_and_without_a_group_for_volumes() {
    let namespace = Namespace::of_level("users", "baseline");
    let aws = Aws::start(&namespace, &keys());
    let names = [(1000, None), (1000, Some(2000)), (0, None), (0, Some(2000))].map(|(user, group)| {
        let name = format!("app-{user}-{}", group.unwrap_or_default());
        let mut spec = application(WAIT);
        spec["securityContext"] = json!({"runAsUser": user, "seccompProfile": {"type": "RuntimeDefault"}});
        if let Some(group) = group {
            spec["securityContext"]["fsGroup"] = json!(group);
        }
        Sidecar::new(&aws).start(&namespace, &name, &spec);
        (name, user)
    });
    for (name, user) in names {
        namespace.until_ready(&name);
        let script = "id -u; . /run/keytide/env/keys.env; echo $API_KEY; touch /run/keytide/env/x 2>&1 || echo refused";
        let said = namespace.exec(&name, "app", &["sh", "-c", script]);
        assert!(said.starts_with(&format!("{user}\nabc\n")) && said.ends_with("refused\n"), "{name}: {said}");
        assert_is_restricted(&namespace, &name);
    }
}

/// The sidecar's process, as the kernel sees it: user 65532, without capabilities, unable to get more, under seccomp.
#[track_caller]
pub(crate) fn assert_is_restricted(namespace: &Namespace, pod: &str) {
    let status = fs::read_to_string(format!("/proc/{}/status", namespace.process(pod, "keytide"))).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid:"), "65532 65532 65532 65532");
    assert_eq!(field("Gid:"), "65532 65532 65532 65532");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
}

#[test]
fn a_sidecar_that_its_startup_probe_ends_says_what_it_waited_for() {
    let namespace = Namespace::new("probed");
    let aws = Aws::start(&namespace, &json!({"secrets": {}}));
    let mut sidecar = Sidecar::new(&aws);
    // Shorter than `startup_timeout`, as after a mistake in somebody's own ConfigMap.
    sidecar.values["startupProbe"] = json!({"periodSeconds": 1, "failureThreshold": 3});
    sidecar.start(&namespace, "app", &application(WAIT));
    let missing = "asked to end before the first refresh was complete; missing: all members of secret app";
    namespace.until_described("app", missing);
    aws.put("app", &json!({"API_KEY": "abc"}));
    namespace.until_ready("app");
}

/// What the sidecar may cost a pod's start, in seconds: the kubelet asks the startup probe a second after the volumes are there,
/// and acts on its answer once it has looked at its containers again, which it does once a second.
const START: f64 = 1.5;
/// How many pods with the sidecar.
const ROUNDS: u32 = 24;
/// To so many of them comes one without, whose times hardly differ.
const WITH_TO_WITHOUT: u32 = 3;

#[test]
#[ignore = "alone on the node: its pods' start is measured"]
#[expect(clippy::print_stderr, reason = "figures, for people")]
fn the_sidecar_delays_a_pod_by_little() {
    let namespace = Namespace::new("delay");
    let aws = Aws::start(&namespace, &keys());
    // Others may use the machine meanwhile: measured again before it counts as missed.
    let kept = (0..3).any(|attempt| {
        let [without, with] = mean_starts(&namespace, &aws, attempt);
        eprintln!(
            "    a pod is ready after {without:.2} s without the sidecar, {with:.2} s with it; limit {START} s more"
        );
        with - without <= START
    });
    assert!(kept, "three times more than {START} s");
}

/// How long a pod takes to be ready, without and with the sidecar, measured in turn. The mean, since what most of it depends on,
/// the moment within the kubelet's second, is spread evenly.
fn mean_starts(namespace: &Namespace, aws: &Aws, attempt: u32) -> [f64; 2] {
    let sidecar = Sidecar::new(aws);
    namespace.apply(&[sidecar.config_map("app")]);
    let mut times: [Vec<Duration>; 2] = Default::default();
    for round in 0..ROUNDS {
        for (with, times) in times.iter_mut().enumerate() {
            if with == 0 && !round.is_multiple_of(WITH_TO_WITHOUT) {
                continue;
            }
            let name = format!("app-{with}-{attempt}-{round}");
            let mut spec = application(WAIT);
            // As pods are where nobody says otherwise: with the volume of the service account's token.
            spec["automountServiceAccountToken"] = json!(true);
            if with == 1 {
                sidecar.inject("app", &mut spec);
            }
            // Each pod comes at another moment of the kubelet's second, and after the end of the pod before it.
            thread::sleep(Duration::from_millis(600 + u64::from(round) * 1000 / u64::from(ROUNDS)));
            let began = Instant::now();
            namespace.apply(&[pod(&name, &spec)]);
            namespace.until_ready(&name);
            times.push(began.elapsed());
            namespace.kubectl(&["delete", "pod", &name, "--wait=false"]);
        }
    }
    times.map(|times| times.iter().sum::<Duration>().as_secs_f64() / f64::from(u32::try_from(times.len()).unwrap()))
}
