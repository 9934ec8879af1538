//! Planted values never appear anywhere but in the outputs and the state.

use std::fs;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keytide_emulator::{Fault, FaultKind};
use rustix::process::Signal;

use crate::support::{Daemon, SECRET_ACCESS_KEY, Stage, is_root, stderr, stdout, until};

const CANARIES: [&str; 6] = [
    "canary-whole-7f3a91",
    "canary-member-b20c44",
    "canary-binary-91ee07",
    "canary-malformed-55d1c8",
    "canary-master-key-3c7d12",
    SECRET_ACCESS_KEY,
];

fn stage() -> Stage {
    let mut stage = Stage::new();
    stage.env("RUST_LOG", "trace").env("LOG_SENSITIVE_BODIES", "true").env("RUST_BACKTRACE", "full");
    stage.aws.put("prod/whole", "canary-whole-7f3a91");
    stage.aws.put("prod/json", r#"{"m": "canary-member-b20c44", "n": "x"}"#);
    stage.aws.put_binary("prod/binary", b"canary-binary-91ee07");
    stage.aws.put("prod/primary", r#"{"P": "canary-member-b20c44"}"#);
    stage.config(concat!(
        "aws: {region: us-east-1}\nrefresh: {interval: 1s, call_timeout: 1s}\nprimary_secret: {name: prod/primary}\nkeys:\n",
        "  - {name: WHOLE, secret: prod/whole}\n  - {name: MEMBER, secret: prod/json, member: m}\n",
        "  - {name: BINARY, secret: prod/binary}\n  - {name: URL, template: \"x://{WHOLE|url}\"}\n",
        "outputs:\n  - env_file: {path: \"{dir}/env/keys.json\", format: json}\n  - files: {directory: \"{dir}/files\"}",
    ));
    let config = stage.read("keytide.yaml");
    stage.write("keytide.yaml", format!("general_settings:\n  master_key: canary-master-key-3c7d12\n{config}"));
    stage
}

pub(crate) fn run(stage: &Stage) -> Daemon {
    stage.run_with(&["--log-level", "trace", "run", "--config", &stage.path("keytide.yaml").display().to_string()])
}

/// Everything that somebody could see of keytide, and that is not made for the application.
pub(crate) fn seen(stage: &Stage, daemon: &Daemon) -> String {
    let socket = stage.socket().display().to_string();
    let mut text = daemon.log();
    for arguments in [
        &["--log-level", "trace", "status", "--socket", &socket][..],
        &["--log-level", "trace", "status", "--output", "json", "--socket", &socket],
        &["--log-level", "trace", "refresh", "--socket", &socket],
        &["--log-level", "trace", "check", "--config", &stage.path("keytide.yaml").display().to_string()],
    ] {
        let output = stage.keytide(arguments);
        text += &stdout(&output);
        text += &stderr(&output);
    }
    for path in ["/metrics", "/livez", "/readyz", "/startupz", "/status"] {
        text += &daemon.get(path).body;
    }
    text + &fs::read_to_string(format!("/proc/{}/cmdline", daemon.id())).unwrap()
}

fn assert_clean(text: &str) {
    for canary in CANARIES {
        let encoded = STANDARD.encode(canary);
        for form in [canary, &canary[..13], encoded.trim_end_matches('='), &encoded[..16]] {
            assert!(!text.contains(form), "{form} of {canary} in:\n{text}");
        }
    }
}

#[test]
fn no_value_is_seen_while_all_is_well() {
    let stage = stage();
    let mut daemon = run(&stage);
    daemon.until_ready();
    assert!(stage.read("env/keys.json").contains("canary-whole-7f3a91"), "the application is to see it");
    assert_clean(&seen(&stage, &daemon));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    assert_clean(&daemon.log());
}

#[test]
fn no_value_is_seen_while_everything_fails() {
    let stage = stage();
    let daemon = run(&stage);
    daemon.until_ready();
    stage.aws.put("prod/json", "{\"m\": canary-malformed-55d1c8");
    stage.aws.put("prod/primary", "canary-malformed-55d1c8");
    until("the trouble", || stage.key_state("MEMBER") == "stale (not_an_object)");
    for kind in [
        FaultKind::EchoValue,
        FaultKind::Error {
            code: "canary-whole-7f3a91".to_owned(),
            status: 400,
            message: "canary-whole-7f3a91".to_owned(),
        },
        FaultKind::Body("{\"SecretString\": \"canary-whole-7f3a91\"".to_owned()),
        FaultKind::Body("{\"VersionId\": \"canary-whole-7f3a91 and more\", \"SecretString\": 1}".to_owned()),
        FaultKind::CutAfter(60),
        FaultKind::ExpiredToken,
    ] {
        stage.aws.clear_faults();
        let before = daemon.metric("keytide_refreshes_total", &[]);
        stage.aws.fault(Fault::any().kind(kind));
        daemon.hang_up();
        until("another refresh", || daemon.metric("keytide_refreshes_total", &[]) > before + 1.0);
    }
    let text = seen(&stage, &daemon);
    assert_clean(&text);
    assert!(stage.read("env/keys.json").contains("canary-whole-7f3a91"), "and the application still has it");
}

#[test]
fn no_value_is_seen_of_a_configuration_that_is_refused() {
    let stage = stage();
    let daemon = run(&stage);
    daemon.until_ready();
    let config = stage.read("keytide.yaml");
    stage.write("keytide.yaml", config.replace("general_settings:", "general_settings: ["));
    daemon.until_log("refused");
    assert_clean(&seen(&stage, &daemon));
}

#[test]
fn nobody_looks_into_the_process() {
    let stage = stage();
    let daemon = run(&stage);
    daemon.until_ready();
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    if is_root() {
        // What is not dumpable belongs to root, also if it runs as somebody else.
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(fs::metadata(format!("/proc/{}/environ", daemon.id())).unwrap().uid(), 0);
    } else {
        assert!(fs::read(format!("/proc/{}/environ", daemon.id())).is_err());
    }
}
