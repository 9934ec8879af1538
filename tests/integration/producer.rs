//! Who leaves virtual keys in the tests of the spool, and what becomes of them.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Output, Stdio},
};

use keytide_emulator::{Request, Seed, Service};
use serde_json::Value;

use crate::support::{Daemon, Stage, is_root, stderr, stdout, until};

/// The user of an application that leaves keys.
pub(crate) const PRODUCER: u32 = 1000;
/// Of values: no message may hold it.
pub(crate) const CANARY: &str = "canary-4f1d";

/// keytide with the prefix `app/`, without a limit of writes, and an empty spool.
pub(crate) fn yard() -> Stage {
    yard_with("rate: none", "")
}

/// The same with these virtual keys and this spool, each what stands between the braces of its block.
pub(crate) fn yard_with(keys: &str, spool: &str) -> Stage {
    yard_of(Seed::default(), keys, spool)
}

pub(crate) fn yard_of(seed: Seed, keys: &str, spool: &str) -> Stage {
    let stage = Stage::with(seed);
    storing(&stage, keys, spool, "");
    stage.make_directory("spool", 0o1733);
    stage
}

/// Writes `keytide.yaml`, with more lines.
pub(crate) fn storing(stage: &Stage, keys: &str, spool: &str, more: &str) {
    let refresh = if more.contains("refresh:") { "" } else { "refresh: {call_timeout: 2s}\n" };
    stage.config(&format!(
        "aws: {{region: us-east-1}}\nvirtual_keys: {{prefix: app/, {keys}}}\n\
         spool: {{directory: \"{{dir}}/spool\", {spool}}}\n{refresh}{more}"
    ));
}

/// Leaves an entry as a producer does: under a name that begins with a dot, and then renamed.
pub(crate) fn leave(stage: &Stage, file: &str, content: impl AsRef<[u8]>) {
    leave_in(&stage.path("spool"), file, content);
}

pub(crate) fn leave_in(spool: &Path, file: &str, content: impl AsRef<[u8]>) {
    let temporary = spool.join(format!(".{file}"));
    fs::write(&temporary, content).unwrap();
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644)).unwrap();
    fs::rename(temporary, spool.join(file)).unwrap();
}

/// An entry of this operation for this alias, with more members.
pub(crate) fn entry(op: &str, alias: &str, more: &Value) -> String {
    let mut entry = serde_json::json!({"op": op, "alias": alias});
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry.to_string()
}

pub(crate) fn create(alias: &str, value: &str) -> String {
    entry("create", alias, &serde_json::json!({"value": value}))
}

/// What a directory holds, in the order of bytes.
pub(crate) fn names(stage: &Stage, directory: &str) -> Vec<String> {
    let entries = fs::read_dir(stage.path(directory)).into_iter().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect();
    names.sort();
    names
}

/// The claims.
pub(crate) fn claims(stage: &Stage) -> Vec<String> {
    names(stage, "spool/.claimed")
}

/// What waits in the drop directory.
pub(crate) fn waiting(stage: &Stage) -> Vec<String> {
    names(stage, "spool").into_iter().filter(|name| !name.starts_with('.') && name != "failed").collect()
}

/// The reasons of all failed entries, in the order of their claims.
pub(crate) fn failures(stage: &Stage) -> Vec<Value> {
    let reasons = names(stage, "spool/failed").into_iter().filter(|name| name.ends_with(".error.json"));
    reasons.map(|name| serde_json::from_str(&stage.read(&format!("spool/failed/{name}"))).unwrap()).collect()
}

/// The failed entries: file, reason and message, in the order of their claims.
pub(crate) fn failed(stage: &Stage) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let failures = failures(stage).into_iter();
    failures.map(|it| (text(&it["file"]), text(&it["reason"]), text(&it["message"]))).collect()
}

/// One failed entry: its file, and parts of what is said about it.
#[track_caller]
pub(crate) fn assert_failed(stage: &Stage, expected: &[(&str, &str, &[&str])]) {
    let failed = failed(stage);
    let files: Vec<(&str, &str)> = failed.iter().map(|(file, reason, _)| (file.as_str(), reason.as_str())).collect();
    let wanted: Vec<(&str, &str)> = expected.iter().map(|(file, reason, _)| (*file, *reason)).collect();
    assert_eq!(files, wanted, "{failed:?}");
    for ((file, _, message), (_, _, parts)) in failed.iter().zip(expected) {
        for part in *parts {
            assert!(message.contains(part), "{part:?} of {file} in: {message}");
        }
        assert!(!message.contains(CANARY), "{file}: {message}");
    }
}

/// The calls to Secrets Manager, as `Action name`.
pub(crate) fn calls(stage: &Stage) -> Vec<String> {
    calls_of(stage).iter().map(|call| format!("{} {}", call.action, call.secret_ids.join(" "))).collect()
}

pub(crate) fn calls_of(stage: &Stage) -> Vec<Request> {
    stage.aws.requests().into_iter().filter(|request| request.service == Service::SecretsManager).collect()
}

/// One run to the end of what is there; the exit code and the log.
pub(crate) fn once(stage: &Stage) -> (Option<i32>, String) {
    let output = stage.once();
    let log = stdout(&output) + &stderr(&output);
    assert!(!log.contains(CANARY), "{log}");
    (output.status.code(), log)
}

/// One run after which nothing is left, and nothing failed.
#[track_caller]
pub(crate) fn drains(stage: &Stage) {
    let (code, log) = once(stage);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!((claims(stage), waiting(stage), failed(stage)), (vec![], vec![], vec![]), "{log}");
}

/// One run after which something failed, and nothing else is left.
#[track_caller]
pub(crate) fn drains_but(stage: &Stage, expected: &[(&str, &str, &[&str])]) -> String {
    let (code, log) = once(stage);
    assert_eq!(code, Some(1), "{log}");
    assert_failed(stage, expected);
    assert_eq!((claims(stage), waiting(stage)), (Vec::<String>::new(), Vec::<String>::new()), "{log}");
    log
}

/// Waits until nothing waits and nothing is claimed: however many there are, for as long as they become fewer.
#[track_caller]
pub(crate) fn until_drained(stage: &Stage) {
    let left = || waiting(stage).len() + claims(stage).len();
    let mut fewest = usize::MAX;
    while fewest > 0 {
        let mut now = fewest;
        until(&format!("fewer than {fewest} in the spool"), || {
            now = left();
            now < fewest
        });
        fewest = now;
    }
}

/// The one claim's token, once there is one claim.
#[track_caller]
pub(crate) fn claim_of(stage: &Stage, file: &str) -> String {
    let end = format!("~{file}");
    let mut token = None;
    until(&format!("a claim of {file}"), || {
        token = claims(stage).iter().find_map(|claim| claim.strip_suffix(&end).map(str::to_owned));
        token.is_some()
    });
    token.unwrap()
}

/// The ids of a secret's versions, the oldest first.
pub(crate) fn versions(stage: &Stage, name: &str) -> Vec<String> {
    stage
        .aws
        .secret(name)
        .map(|secret| secret.versions.into_iter().map(|version| version.id).collect())
        .unwrap_or_default()
}

/// `keytide` with something on its standard input, as this user.
pub(crate) fn fed(stage: &Stage, user: u32, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = stage.command(arguments);
    if is_root() {
        command.uid(user).gid(user);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Whoever refuses its arguments does not read.
    drop(child.stdin.take().unwrap().write_all(input));
    child.wait_with_output().unwrap()
}

/// `keytide push` into the stage's spool.
pub(crate) fn push(stage: &Stage, arguments: &[&str], input: &[u8]) -> Output {
    push_as(stage, PRODUCER, arguments, input)
}

pub(crate) fn push_as(stage: &Stage, user: u32, arguments: &[&str], input: &[u8]) -> Output {
    let spool = stage.path("spool").display().to_string();
    fed(stage, user, &[&["push", "--spool", &spool], arguments].concat(), input)
}

/// A shell of this user, in the stage's spool.
pub(crate) fn shell(stage: &Stage, user: u32, script: &str) -> Output {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).current_dir(stage.path("spool"));
    if is_root() {
        command.uid(user).gid(user);
    }
    command.output().unwrap()
}

/// `keytide spool` with these arguments.
pub(crate) fn spool(stage: &Stage, arguments: &[&str]) -> Output {
    let directory = stage.path("spool").display().to_string();
    stage.keytide(&[&["spool"], arguments, &["--spool", &directory]].concat())
}

/// Waits until this secret holds this.
#[track_caller]
pub(crate) fn until_value(stage: &Stage, daemon: &Daemon, name: &str, value: &str) {
    let so = crate::support::patiently(|| stage.aws.value(name).as_deref() == Some(value));
    assert!(so, "waited for {value:?} in {name}; the log:\n{}", daemon.log());
}
