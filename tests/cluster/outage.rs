//! AWS is away, or too much is asked of a volume.

use std::time::Duration;

use serde_json::json;

use crate::{
    aws::Aws,
    namespace::Namespace,
    sidecar::{Sidecar, application},
    wait::{until, within},
};

#[test]
fn keys_stay_while_aws_is_away_for_two_minutes_and_move_on_after() {
    let namespace = Namespace::new("outage");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    Sidecar::new(&aws).start(&namespace, "app", &application("sleep 600"));
    namespace.until_ready("app");
    aws.down(120);
    assert!(aws.is_down());
    let read = || namespace.exec("app", "app", &["cat", "/run/keytide/env/keys.env"]);
    let ended = within(Duration::from_secs(130), || {
        let ready = namespace.get("pod/app").unwrap()["status"]["conditions"].to_string();
        assert_eq!(read(), "API_KEY='one'\n");
        assert!(!ready.contains("\"False\""), "an outage makes no pod unready: {ready}");
        !aws.is_down()
    });
    assert!(ended, "AWS came back");
    aws.put("app", &json!({"API_KEY": "two"}));
    until("the key of now", || read() == "API_KEY='two'\n");
    assert_eq!(namespace.container("app", "keytide")["restartCount"], 0);
}

#[test]
fn a_pod_that_starts_while_aws_is_out_waits_says_why_and_starts_once_it_is_back() {
    let namespace = Namespace::new("waiting");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    aws.down(25);
    let mut sidecar = Sidecar::new(&aws);
    sidecar.config["refresh"]["startup_timeout"] = json!("5s");
    sidecar.start(&namespace, "app", &application("sleep 600"));
    namespace
        .until_described("app", "the first refresh was not complete within 5s; missing: all members of secret app");
    assert_ne!(namespace.container("app", "app")["started"], true, "the application waits");
    namespace.until_ready("app");
}

#[test]
fn a_volume_that_is_full_keeps_the_last_whole_file_until_there_is_room() {
    let namespace = Namespace::new("full");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    let mut sidecar = Sidecar::new(&aws);
    sidecar.values["volumes"]["env"]["sizeLimit"] = json!("64Ki");
    sidecar.start(&namespace, "app", &application("sleep 600"));
    namespace.until_ready("app");
    let read = || namespace.exec("app", "app", &["cat", "/run/keytide/env/keys.env"]);
    aws.put("app", &json!({"API_KEY": "x".repeat(60_000)}));
    namespace.until_log("app", "keytide", "No space left on device");
    assert_eq!(read(), "API_KEY='one'\n");
    aws.put("app", &json!({"API_KEY": "two"}));
    until("the key of now", || read() == "API_KEY='two'\n");
}
