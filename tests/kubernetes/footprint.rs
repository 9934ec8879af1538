//! What the output costs in memory, on the static binary that people get.

use std::{fs, thread, time::Duration};

use rustix::process::Signal;

use crate::{control_plane::ControlPlane, stage::KubeStage, support::until};

const LARGEST_KIB: u64 = 18 * 1024;
const FLAT_KIB: u64 = 1024;
const REFRESHES: f64 = 10_000.0;

fn resident_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[expect(clippy::print_stderr, reason = "figures, for people")]
fn say(line: &str) {
    eprintln!("    {line}");
}

#[test]
#[ignore = "of the release binary: ./tests/run footprint"]
fn memory_with_a_secret_and_its_watch_is_small_and_flat_over_ten_thousand_refreshes() {
    assert!(std::env::var_os("KEYTIDE_TESTED_BINARY").is_some(), "./tests/run footprint names the binary");
    let kube = KubeStage::new(ControlPlane::shared());
    let members: Vec<String> = (0..100).map(|n| format!("\"KEY_{n}\": \"value {n} {}\"", "x".repeat(40))).collect();
    kube.stage.aws.put("app", &format!("{{{}}}", members.join(",")));
    kube.stage.aws.set_recording(false);
    let config = kube.config(
        "aws: {region: us-east-1}\nprimary_secret: {name: app}\nrefresh: {interval: 1h}\noutputs:\n  \
         - kubernetes_secret: {name: keys}\n",
    );
    kube.grant(&config);
    let daemon = kube.run();
    daemon.until_ready();
    until("the Secret", || kube.namespace.secret("keys").is_some());
    let refresh_until = |count: f64| {
        while daemon.metric("keytide_refreshes_total", &["complete"]) < count {
            for _ in 0..50 {
                daemon.signal(Signal::HUP);
                thread::sleep(Duration::from_millis(3));
            }
        }
    };
    refresh_until(200.0);
    let before = resident_kib(daemon.id());
    let version = kube.namespace.resource_version("keys");
    refresh_until(REFRESHES);
    let after = resident_kib(daemon.id());
    say(&format!(
        "before {REFRESHES} refreshes {before} KiB, after them {after}; limit {LARGEST_KIB}, {FLAT_KIB} more"
    ));
    assert!(before <= LARGEST_KIB && after <= LARGEST_KIB, "{before}, {after}");
    assert!(after.saturating_sub(before) < FLAT_KIB, "{before}, {after}");
    assert_eq!(kube.namespace.resource_version("keys"), version, "nothing was written");
}
