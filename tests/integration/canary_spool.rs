//! Planted virtual keys never appear anywhere but in the spool's own entries and in AWS.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::Path,
    process::{Child, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keytide_emulator::{Fault, FaultKind};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    canary::{run, seen},
    pushing::{leave, leave_as, spool, until_idle, with_spool},
    support::{Daemon, Stage, is_root, patiently, stderr, stdout, until},
};

const VALUE: &str = "canary-value-4be1d0";
/// Whose forms in JSON and in Rust's debug texts are others.
const ESCAPED: &str = "canary-escaped-\"\\\n\u{e9}-3f7b21";
const DESCRIPTION: &str = "canary-description-61c2f8";
const TAG: &str = "canary-tag-90aa3e";
const PLAIN: &str = "canary-plain-77d4a2";
const MOVED: &str = "canary-moved-0cf93b";
const BINARY: &str = "canary-binary-5d218e";
const PUSHED: &str = "canary-pushed-b8e6f1";
const MALFORMED: &str = "canary-malformed-e1b07c";
const CANARIES: [&str; 9] = [VALUE, ESCAPED, DESCRIPTION, TAG, PLAIN, MOVED, BINARY, PUSHED, MALFORMED];

/// What everybody who looks at a text could make a canary of.
fn forms(canary: &str) -> Vec<String> {
    let json = Value::from(canary).to_string();
    let hex = |upper: bool| {
        canary.bytes().take(14).fold(String::new(), |mut text, byte| {
            let written = if upper { write!(text, "{byte:02X}") } else { write!(text, "{byte:02x}") };
            written.unwrap();
            text
        })
    };
    let decimal: Vec<String> = canary.bytes().take(12).map(|byte| byte.to_string()).collect();
    let mut forms = vec![
        canary.to_owned(),
        canary[..12].to_owned(),
        json.trim_matches('"').to_owned(),
        format!("{canary:?}").trim_matches('"').to_owned(),
        // Its other half alone.
        canary[canary.len() - 6..].to_owned(),
        hex(false),
        hex(true),
        decimal.join(", "),
    ];
    // In base64 it looks different at each of three places.
    for before in ["", "x", "xx"] {
        let encoded = STANDARD.encode(format!("{before}{canary}"));
        forms.push(encoded[4..20].to_owned());
    }
    forms
}

#[track_caller]
fn assert_clean(text: &str) {
    for canary in CANARIES {
        for form in forms(canary) {
            assert!(!text.contains(&form), "{form} of {canary:?} in:\n{text}");
        }
    }
}

fn stage() -> Stage {
    let mut stage = Stage::new();
    stage.env("RUST_LOG", "trace").env("LOG_SENSITIVE_BODIES", "true").env("RUST_BACKTRACE", "full");
    let block = "aws: {region: us-east-1}\nrefresh: {call_timeout: 1s}\nvirtual_keys: {prefix: app/, rate: none}\nspool: \
                 {directory: \"{dir}/spool/in\", plain_files: true, allow: {description: true, tag_keys: [note]}}\n";
    with_spool(stage, block)
}

fn drop_directory(stage: &Stage) -> String {
    stage.path("spool/in").display().to_string()
}

/// What commands say of the spool, at the level at which they say everything.
fn said(stage: &Stage, arguments: &[&str]) -> String {
    let output = stage.keytide(&[&["--log-level", "trace"], arguments, &["--spool", &drop_directory(stage)]].concat());
    stdout(&output) + &stderr(&output)
}

fn all_files(directory: &Path, text: &mut String, wanted: impl Fn(&str) -> bool) {
    for file in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        text.push_str(&name);
        if wanted(&name) {
            text.push_str(&String::from_utf8_lossy(&fs::read(file.path()).unwrap_or_default()));
        }
    }
}

/// Everything that somebody could see of the way up, and that is not an entry.
fn shown(stage: &Stage, daemon: &Daemon) -> String {
    let mut text = seen(stage, daemon);
    text += &said(stage, &["spool", "list"]);
    text += &said(stage, &["spool", "list", "--output", "json"]);
    let spool = stage.path("spool/in");
    all_files(&spool.join("failed"), &mut text, |name| name.ends_with(".error.json"));
    all_files(&spool.join(".results"), &mut text, |_| true);
    all_files(&spool.join(".claimed"), &mut text, |_| false);
    all_files(&spool, &mut text, |_| false);
    text + &looked_into(daemon.id())
}

/// What the system tells of a process.
fn looked_into(id: u32) -> String {
    ["cmdline", "environ", "comm", "maps"]
        .map(|file| {
            fs::read(format!("/proc/{id}/{file}"))
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .unwrap_or_default()
        })
        .concat()
}

fn push(stage: &Stage, arguments: &[&str], value: &[u8]) -> Child {
    let spool = drop_directory(stage);
    let all = [&["--log-level", "trace", "push"], arguments, &["--spool", &spool]].concat();
    let mut command = stage.command(&all);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One that does not read it has ended.
    drop(child.stdin.take().unwrap().write_all(value));
    child
}

fn pushed(stage: &Stage, arguments: &[&str], value: &[u8]) -> String {
    let output = push(stage, arguments, value).wait_with_output().unwrap();
    stdout(&output) + &stderr(&output)
}

#[test]
fn no_virtual_key_is_seen_while_all_is_well() {
    let stage = stage();
    for name in ["app/moved", "app/rotated", "app/gone"] {
        stage.aws.put(name, MOVED);
    }
    stage.aws.put_binary("app/binary", BINARY.as_bytes());
    stage.aws.put("app/back", MOVED);
    stage.aws.set_metadata("app/back", Some(DESCRIPTION), &[("note", TAG)]);
    stage.aws.schedule_deletion("app/back");
    let daemon = run(&stage);
    for entry in [
        json!({"op": "create", "alias": "plain-value", "value": VALUE}),
        json!({"op": "create", "alias": "escaped", "value": ESCAPED}),
        json!({"op": "create", "alias": "rich", "value": VALUE, "description": DESCRIPTION, "tags": {"note": TAG}}),
        json!({"op": "create", "alias": null, "value": VALUE}),
        json!({"op": "create", "alias": "back", "value": ESCAPED}),
        json!({"op": "rotate", "name": "app/rotated", "new_name": "app/rotated-2", "value": VALUE}),
        json!({"op": "rename", "name": "app/moved", "new_name": "app/moved-2", "description": DESCRIPTION}),
        json!({"op": "rename", "name": "app/binary", "new_name": "app/binary-2", "tags": {"note": TAG}}),
        json!({"op": "delete", "name": "app/gone"}),
    ] {
        leave(&stage, &entry);
    }
    leave_as(&stage, ".key", PLAIN);
    let text = pushed(&stage, &["app/pushed", "--wait", "20s"], PUSHED.as_bytes());
    assert!(text.contains("stored"), "{text}");
    assert_clean(&text);
    until_idle(&stage, &daemon);
    until("the plain file", || stage.aws.names().iter().any(|name| stage.aws.value(name).as_deref() == Some(PLAIN)));
    assert_eq!(stage.aws.value("app/escaped").as_deref(), Some(ESCAPED));
    assert_eq!(stage.aws.value("app/moved-2").as_deref(), Some(MOVED));
    assert_eq!(stage.aws.secret("app/binary-2").unwrap().versions[0].value, STANDARD.encode(BINARY));
    assert_eq!(spool(&stage)["failed"], 0);
    assert_clean(&shown(&stage, &daemon));
}

#[test]
fn nothing_of_an_entry_that_is_none_is_seen() {
    let stage = stage();
    let daemon = run(&stage);
    let c = MALFORMED;
    let large = format!("{{\"op\":\"create\",\"alias\":\"a\",\"value\":\"{c}{}\"}}", "x".repeat(600 * 1024));
    let long = json!({"op": "create", "alias": "long", "value": c.repeat(4000)}).to_string();
    let entries = [
        c.to_owned(),
        format!("\"{c}\""),
        format!("[\"{c}\"]"),
        format!("{{\"op\":\"create\",\"alias\":\"a\",\"value\":\"{c}"),
        format!("{{\"op\":\"create\",\"alias\":\"a\",\"value\":{c}}}"),
        format!("{{\"op\":\"create\",\"alias\":\"a\",\"value\":\"{c}\"}} {c}"),
        format!("{{\"op\":\"create\",\"alias\":\"a\",\"value\":\"{c}\",\"value\":\"{c}\"}}"),
        format!("{{\"op\":\"create\",\"alias\":\"a\",\"value\":\"x\",\"{c}\":1}}"),
        json!({"op": c, "alias": "a", "value": c}).to_string(),
        json!({"op": [c], "alias": "a", "value": c}).to_string(),
        json!({"op": "create", "alias": "a", "value": [c]}).to_string(),
        json!({"op": "create", "alias": "a", "value": {"k": c}}).to_string(),
        json!({"op": "create", "alias": [c], "value": c}).to_string(),
        json!({"op": "create", "name": {"k": c}, "value": c}).to_string(),
        json!({"op": "create", "name": "other/name", "value": c}).to_string(),
        json!({"op": "create", "name": "app/../x", "value": c}).to_string(),
        json!({"op": "create", "name": "app/a", "alias": "a", "value": c}).to_string(),
        json!({"op": "create", "alias": "a", "value": "x", "description": [c]}).to_string(),
        json!({"op": "create", "alias": "a", "value": "x", "tags": c}).to_string(),
        json!({"op": "create", "alias": "a", "value": "x", "tags": {"note": [c]}}).to_string(),
        json!({"op": "create", "alias": "a", "value": "x", "tags": {"other": c}}).to_string(),
        json!({"op": "create", "alias": "a", "value": "x", "tags": {"note": c.repeat(20)}}).to_string(),
        json!({"op": "create", "alias": "a", "value": "x", "description": c.repeat(200)}).to_string(),
        json!({"op": "create", "alias": "a", "value": "x", "kms_key_id": [c]}).to_string(),
        json!({"op": "create", "alias": "a", "value": "x", "replica_regions": [c, 1]}).to_string(),
        json!({"op": "create", "alias": "a", "value": "x", "recovery_window_in_days": c}).to_string(),
        json!({"op": "create", "alias": "a", "value": "x", "team": c}).to_string(),
        json!({"op": "create", "alias": "a", "value": "x", "team": {"aws_role_name": [c], "aws_region_name": c}})
            .to_string(),
        json!({"op": "rename", "name": "app/a", "new_name": "app/b", "value": c}).to_string(),
        json!({"op": "rename", "name": "app/a", "new_name": [c]}).to_string(),
        json!({"op": "delete", "name": "app/a", "value": c}).to_string(),
        json!({"op": "delete", "name": "app/a", "recovery_window_in_days": c}).to_string(),
        large,
        long,
    ];
    for entry in &entries {
        leave_as(&stage, ".json", entry);
    }
    let mut invalid = format!("{{\"op\":\"create\",\"alias\":\"a\",\"value\":\"{c}").into_bytes();
    invalid.extend(b"\xff\"}");
    leave_as(&stage, ".json", &invalid);
    leave_as(&stage, ".key", [c.as_bytes(), b"\xfe"].concat());
    leave_as(&stage, ".key", c.repeat(4000));
    let count = entries.len() + 3;
    let all = || spool(&stage)["failed"] == count;
    assert!(patiently(all), "{count}: {:#}\n{}", spool(&stage), said(&stage, &["spool", "list"]));
    assert_clean(&shown(&stage, &daemon));
    // They fail again, and are seen by nobody again.
    assert_clean(&said(&stage, &["spool", "retry", "--all"]));
    until("them to be looked at again", || {
        daemon.metric("keytide_spool_failed_total", &[]) == 2.0 * f64::from(u32::try_from(count).unwrap())
    });
    until("them all", all);
    assert_clean(&shown(&stage, &daemon));
    assert_clean(&said(&stage, &["spool", "discard", "--all"]));
    assert_clean(&daemon.log());
}

#[test]
fn no_virtual_key_is_seen_while_aws_fails_in_every_way() {
    let stage = stage();
    let echo = |code: &str, status| FaultKind::Error {
        code: code.to_owned(),
        status,
        message: CANARIES.map(|canary| format!("{canary} {}", Value::from(canary))).concat(),
    };
    let kinds = [
        FaultKind::EchoValue,
        FaultKind::CutAfter(0),
        FaultKind::CutAfter(60),
        FaultKind::Body(format!("{{\"ARN\": \"{VALUE}\", \"VersionId\": {VALUE}")),
        FaultKind::Body(format!("<html>{VALUE} {ESCAPED}</html>")),
        FaultKind::ExpiredToken,
        FaultKind::Hang,
        echo(VALUE, 400),
        echo("AccessDeniedException", 400),
        echo("InternalServiceError", 500),
        echo("ThrottlingException", 400),
        echo("EncryptionFailure", 400),
        echo("SomethingNew", 400),
        // These fail.
        echo("ValidationException", 400),
        echo("InvalidParameterException", 400),
    ];
    let failing = 2;
    for (n, kind) in kinds.iter().enumerate() {
        for operation in ["create", "rotate", "back", "rename", "binary", "delete"] {
            let name = format!("app/{operation}-{n}");
            match operation {
                "create" => {}
                "binary" => drop(stage.aws.put_binary(&name, BINARY.as_bytes())),
                _ => drop(stage.aws.put(&name, MOVED)),
            }
            if operation == "back" {
                stage.aws.set_metadata(&name, Some(DESCRIPTION), &[("other", TAG)]);
                stage.aws.schedule_deletion(&name);
            }
            // Some at the first call, some at a later one.
            let skip = u32::from(["back", "rename", "binary"].contains(&operation));
            stage.aws.fault(Fault::any().secret(&name).skip(skip).kind(kind.clone()));
        }
    }
    let daemon = run(&stage);
    for n in 0..kinds.len() {
        leave(
            &stage,
            &json!({"op": "create", "name": format!("app/create-{n}"), "value": VALUE, "description": DESCRIPTION}),
        );
        leave(&stage, &json!({"op": "rotate", "name": format!("app/rotate-{n}"), "value": ESCAPED}));
        leave(&stage, &json!({"op": "create", "name": format!("app/back-{n}"), "value": VALUE, "tags": {"note": TAG}}));
        for moved in ["rename", "binary"] {
            let (from, to) = (format!("app/{moved}-{n}"), format!("app/{moved}-{n}-new"));
            leave(&stage, &json!({"op": "rename", "name": from, "new_name": to, "tags": {"note": TAG}}));
        }
        leave(&stage, &json!({"op": "delete", "name": format!("app/delete-{n}")}));
    }
    until("all of them to have been tried", || {
        let all: std::collections::BTreeSet<String> =
            stage.aws.requests().into_iter().flat_map(|request| request.secret_ids).collect();
        (0..kinds.len()).all(|n| {
            ["create", "rotate", "back", "rename", "binary", "delete"]
                .iter()
                .all(|operation| all.contains(&format!("app/{operation}-{n}")))
        })
    });
    until("some to have failed", || spool(&stage)["failed"].as_u64() >= Some(2 * failing));
    until("the trouble", || spool(&stage)["problems"].as_array().is_some_and(|problems| problems.len() == 10));
    let text = shown(&stage, &daemon);
    assert!(text.contains("failed to call CreateSecret for secret app/create-"), "{text}");
    assert!(text.contains("AccessDeniedException"), "{text}");
    assert_clean(&text);
    // The renamed ones that came so far carry their values, and nobody else does.
    stage.aws.clear_faults();
    until("one that was renamed", || {
        stage.aws.names().iter().any(|name| name.ends_with("-new") && stage.aws.value(name).as_deref() == Some(MOVED))
    });
    assert_clean(&shown(&stage, &daemon));
}

#[test]
fn no_virtual_key_is_seen_in_what_is_left_behind() {
    let stage = stage();
    stage.aws.fault(Fault::any().kind(FaultKind::EchoValue));
    let mut daemon = run(&stage);
    for n in 0..12 {
        leave(&stage, &json!({"op": "create", "alias": format!("left-{n}"), "value": VALUE, "tags": {"note": TAG}}));
    }
    until("all of them", || spool(&stage)["claimed"] == 12);
    let text = shown(&stage, &daemon);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 1, "{}", daemon.log());
    let log = daemon.log();
    assert!(log.contains("12 virtual keys are not stored") && log.contains("create app/left-0"), "{log}");
    assert_clean(&(text + &log));
    // And of the next one, which has less time still.
    let output = stage.keytide(&[
        "--log-level",
        "trace",
        "run",
        "--config",
        &stage.path("keytide.yaml").display().to_string(),
        "--once",
        "--timeout",
        "4s",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output) + &stderr(&output);
    assert!(text.contains("was not drained") && text.contains("app/left-0"), "{text}");
    assert_clean(&text);
    assert_clean(&said(&stage, &["spool", "list"]));
}

#[test]
fn whoever_pushes_a_virtual_key_shows_it_to_nobody() {
    let stage = stage();
    // Nobody is there to take it.
    let mut text = pushed(&stage, &["app/a"], PUSHED.as_bytes());
    text += &pushed(&stage, &["app/a", "--wait", "100ms"], PUSHED.as_bytes());
    for wrong in [PUSHED.repeat(4000).into_bytes(), [PUSHED.as_bytes(), b"\xff"].concat()] {
        text += &pushed(&stage, &["app/a"], &wrong);
    }
    text +=
        &pushed(&stage, &["app/a", "--op", PUSHED], PUSHED.as_bytes()).replace(PUSHED, "what was given as an argument");
    let nowhere = stage.path("nowhere").display().to_string();
    let mut command = stage.command(&["--log-level", "trace", "push", "app/a", "--spool", &nowhere]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdin.take().unwrap().write_all(PUSHED.as_bytes()));
    let output = child.wait_with_output().unwrap();
    text += &(stdout(&output) + &stderr(&output));
    assert_clean(&text);

    let daemon = run(&stage);
    until_idle(&stage, &daemon);
    assert_eq!(stage.aws.value("app/a").as_deref(), Some(PUSHED));
    stage.aws.fault(Fault::any().secret("app/refused").kind(FaultKind::Error {
        code: "ValidationException".to_owned(),
        status: 400,
        message: PUSHED.to_owned(),
    }));
    let text = pushed(&stage, &["app/refused", "--wait", "20s"], PUSHED.as_bytes());
    assert!(text.contains("the entry failed (refused)"), "{text}");
    assert_clean(&text);
    let text = pushed(&stage, &["elsewhere/a", "--wait", "20s"], PUSHED.as_bytes());
    assert!(text.contains("the entry failed (not_allowed)"), "{text}");
    assert_clean(&text);

    stage.aws.fault(Fault::any().secret("app/hangs").kind(FaultKind::Hang));
    let mut child = push(&stage, &["app/hangs", "--wait", "1h"], PUSHED.as_bytes());
    until("it to be taken", || spool(&stage)["claimed"] == 1);
    assert_clean(&looked_into(child.id()));
    if is_root() {
        // What is not dumpable belongs to root, also if it runs as somebody else.
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(fs::metadata(format!("/proc/{}/environ", child.id())).unwrap().uid(), 0);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_clean(&shown(&stage, &daemon));
}
