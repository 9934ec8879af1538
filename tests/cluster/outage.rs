//! AWS is away, or too much is asked of a volume.

use std::{fs, io::ErrorKind, time::Duration};

use serde_json::json;

use crate::{
    aws::Aws,
    namespace::{Namespace, run_on_node},
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
    aws.ill(&json!("hang"));
    let mut sidecar = Sidecar::new(&aws);
    sidecar.config["refresh"]["startup_timeout"] = json!("5s");
    sidecar.start(&namespace, "app", &application("sleep 600"));
    namespace
        .until_described("app", "the first refresh was not complete within 5s; missing: all members of secret app");
    assert_ne!(namespace.container("app", "app")["started"], true, "the application waits");
    aws.well();
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

#[test]
fn a_spool_that_is_full_loses_nothing_that_was_accepted_and_takes_more_once_there_is_room() {
    let namespace = Namespace::new("spool-full");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    let mut sidecar = Sidecar::new(&aws).with_spool();
    sidecar.values["volumes"]["spool"]["sizeLimit"] = json!("64Ki");
    sidecar.start(&namespace, "app", &application("sleep 600"));
    namespace.until_ready("app");
    let drop = |i: u32| {
        let entry = json!({"op": "create", "alias": format!("k{i}"), "value": format!("sk-{i}")});
        format!("echo '{entry}' >.new && mv .new 0000000170000000000{i}-app-{i}.json")
    };
    let shell = |script: &str| {
        let script = format!("cd /run/keytide/spool/in; umask 022; {script}");
        namespace.run_in("app", "app", &["sh", "-c", &script])
    };
    let stored = |i: u32| aws.get(&format!("vk/k{i}")).is_some_and(|value| value == format!("sk-{i}"));
    aws.ill(&json!("internal_error"));
    // In one go. What is wrong with the first entry finds no room either.
    let accepted = (1..=4).map(drop).collect::<Vec<_>>().join(" && ");
    let ran = shell(&format!(
        "echo wrong >.wrong && {accepted} && echo accepted; cat /dev/zero >.filler; {} || echo refused; \
         mv .wrong 00000001700000000000-app-0.json",
        drop(5)
    ));
    assert_eq!(ran.stdout, "accepted\nrefused\n", "{ran:?}");
    assert_eq!(ran.stderr.matches("No space left on device").count(), 2, "{ran:?}");
    aws.well();
    until("what was accepted", || (1..=4).all(stored));
    assert!(!stored(5));
    // The room of those that are stored.
    let taken = shell(&drop(5));
    assert!(taken.success, "{taken:?}");
    until("what came after", || stored(5));
    let log = namespace.log("app", "keytide");
    assert!(log.contains("the reason of a failed entry could not be kept: "), "{log}");
    let list = namespace.exec("app", "keytide", &["/keytide", "spool", "list"]);
    assert!(list.contains("00000001700000000000-app-0.json"), "the entry itself is: {list}");
    assert_eq!(namespace.container("app", "keytide")["restartCount"], 0);
}

#[test]
fn last_good_values_that_cannot_be_written_are_told_keys_move_on_and_they_are_kept_once_there_is_room() {
    let namespace = Namespace::new("private-full");
    let aws = Aws::start(&namespace, &json!({"secrets": {"app": {"API_KEY": "one"}}}));
    let mut sidecar = Sidecar::new(&aws);
    sidecar.values["volumes"]["private"]["sizeLimit"] = json!("64Ki");
    sidecar.start(&namespace, "app", &application("sleep 600"));
    namespace.until_ready("app");
    // No other container mounts it: the node fills it.
    let process = namespace.process("app", "keytide");
    let filler = format!("/proc/{process}/root/run/keytide/private/filler");
    let full = fs::write(&filler, vec![0; 128 * 1024]).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    let read = || namespace.exec("app", "app", &["cat", "/run/keytide/env/keys.env"]);
    aws.put("app", &json!({"API_KEY": "two"}));
    until("the changed key", || read() == "API_KEY='two'\n");
    namespace.until_log("app", "keytide", "the last good values would not survive a restart: ");
    let log = namespace.log("app", "keytide");
    assert!(log.contains("No space left on device"), "{log}");
    fs::remove_file(&filler).unwrap();
    aws.put("app", &json!({"API_KEY": "three"}));
    until("the next key", || read() == "API_KEY='three'\n");
    assert_eq!(namespace.container("app", "keytide")["restartCount"], 0);
    // They are kept again: a keytide that cannot read AWS goes on with them.
    aws.ill(&json!("internal_error"));
    run_on_node("kill", &["-KILL", &process]);
    let back = || {
        let keytide = namespace.container("app", "keytide");
        keytide["restartCount"] == 1 && keytide["ready"] == true
    };
    until("a new sidecar that is ready", back);
    assert_eq!(read(), "API_KEY='three'\n");
}
