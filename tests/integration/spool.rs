//! The protocol of the spool: how entries are taken, in which order, what they may ask for, and what becomes of them.

use std::{
    fs, mem,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use keytide_emulator::{Fault, FaultKind, Seed};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    cast::{arn, of_user},
    producer::{
        CANARY, PRODUCER, assert_failed, calls, calls_of, claim_of, claims, create, drains, drains_but, entry, failed,
        failures, fed, leave, names, once, push, push_as, shell, spool, storing, until_drained, until_value, versions,
        waiting, yard, yard_of, yard_with,
    },
    support::{Stage, USER, patiently, stderr, stdout, until},
};

const NONE: [&str; 0] = [];
/// So long a plain file stands still before it is taken.
const STANDS_STILL: Duration = Duration::from_secs(1);

fn error(code: &str, status: u16) -> FaultKind {
    FaultKind::Error { code: code.to_owned(), status, message: format!("no {CANARY}") }
}

/// A `UUIDv7` in its canonical form.
fn is_token(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    hex && parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) && parts[2].starts_with('7')
}

// --- claim and confirmation

#[test]
fn an_entry_is_taken_before_it_is_sent_and_is_gone_only_after_aws_answered() {
    let stage = yard();
    stage.aws.fault(Fault::on("CreateSecret").kind(FaultKind::Hang));
    let daemon = stage.run();
    leave(&stage, "1.json", create("k", CANARY));
    let token = claim_of(&stage, "1.json");
    assert!(is_token(&token), "{token}");
    until("a call", || stage.aws.count("CreateSecret") >= 1);
    assert_eq!(waiting(&stage), NONE);
    assert_eq!(claims(&stage), [format!("{token}~1.json")]);
    assert_eq!(stage.read(&format!("spool/.claimed/{token}~1.json")), create("k", CANARY));
    assert_eq!(fs::metadata(stage.path("spool/.claimed")).unwrap().permissions().mode() & 0o7777, 0o700);
    // The call ends without an answer, and is repeated.
    until("another call", || stage.aws.requests().len() >= 2);
    assert_eq!(claims(&stage), [format!("{token}~1.json")]);
    stage.aws.clear_faults();
    until_drained(&stage);
    assert_eq!(stage.aws.value("app/k").as_deref(), Some(CANARY));
    assert_eq!(versions(&stage, "app/k"), [token], "the identity of the entry is that of the version");
    assert!(!daemon.log().contains(CANARY), "{}", daemon.log());
}

#[test]
fn an_answer_that_is_lost_is_asked_for_again_under_the_same_token() {
    let after =
        || FaultKind::ErrorAfter { code: "InternalServiceError".to_owned(), status: 500, message: String::new() };
    for kind in [after(), FaultKind::CutAfter(0), FaultKind::CutAfter(20)] {
        let stage = yard();
        stage.aws.fault(Fault::on("CreateSecret").times(1).kind(kind));
        leave(&stage, "1.json", create("k", "1"));
        drains(&stage);
        assert_eq!(versions(&stage, "app/k").len(), 1);
        stage.aws.clear_requests();
        stage.aws.fault(Fault::on("PutSecretValue").times(1).kind(after()));
        leave(&stage, "2.json", entry("rotate", "k", &json!({"value": "2"})));
        drains(&stage);
        assert_eq!(stage.aws.value("app/k").as_deref(), Some("2"));
        assert_eq!(versions(&stage, "app/k").len(), 2);
        assert_eq!(calls(&stage), ["PutSecretValue app/k", "DescribeSecret app/k"]);
    }
}

#[test]
fn a_claim_of_a_killed_process_is_resumed_under_its_token_and_makes_one_version() {
    for (kind, sent) in [(FaultKind::Hang, false), (FaultKind::CutAfter(0), true)] {
        let stage = yard();
        stage.aws.fault(Fault::on("CreateSecret").times(1).kind(kind));
        // The second attempt looks first, and gets no further.
        stage.aws.fault(Fault::on("DescribeSecret").kind(FaultKind::Hang));
        let mut daemon = stage.run();
        leave(&stage, "1.json", create("k", "1"));
        let token = claim_of(&stage, "1.json");
        let calls = if sent { "DescribeSecret" } else { "CreateSecret" };
        until(calls, || stage.aws.count(calls) >= 1);
        daemon.kill();
        assert_eq!(claims(&stage), [format!("{token}~1.json")]);
        assert_eq!(versions(&stage, "app/k").len(), usize::from(sent));
        stage.aws.clear_faults();
        let daemon = stage.run();
        until_drained(&stage);
        daemon.until_log("claimed before this process");
        assert_eq!(versions(&stage, "app/k"), [token]);
    }
}

#[test]
fn whenever_it_is_killed_no_entry_is_lost_and_each_makes_one_version() {
    let stage = yard();
    stage.aws.fault(Fault::any().kind(FaultKind::Latency(Duration::from_millis(3))));
    let mut left = 0;
    for round in 0..25_u64 {
        let mut daemon = stage.run();
        for _ in 0..4 {
            left += 1;
            leave(&stage, &format!("{left:04}.json"), create(&format!("k{left}"), &format!("v{left}")));
        }
        thread::sleep(Duration::from_millis(fastrand::u64(0..40 + round)));
        daemon.kill();
    }
    drains(&stage);
    for n in 1..=left {
        let name = format!("app/k{n}");
        assert_eq!(stage.aws.value(&name), Some(format!("v{n}")));
        assert_eq!(versions(&stage, &name).len(), 1, "{name}");
    }
}

#[test]
fn an_entry_older_than_what_is_current_is_superseded_and_only_force_overwrites() {
    let stage = yard();
    stage.aws.fault(Fault::on("CreateSecret").times(1).kind(FaultKind::Hang));
    let mut daemon = stage.run();
    leave(&stage, "1.json", create("k", "older"));
    let older = claim_of(&stage, "1.json");
    until("a call", || stage.aws.count("CreateSecret") == 1);
    daemon.kill();
    // Another pod stores the same key meanwhile.
    let config = stage.read("keytide.yaml").replace("/spool\"", "/other\"").replace("admin.sock", "other.sock");
    let config = stage.write("other.yaml", config).display().to_string();
    crate::producer::leave_in(&stage.make_directory("other", 0o1733), "1.json", create("k", "newer"));
    let output = stage.keytide(&["run", "--config", &config, "--once"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stage.aws.value("app/k").as_deref(), Some("newer"));
    let daemon = stage.run();
    until_drained(&stage);
    assert_eq!(stage.aws.value("app/k").as_deref(), Some("newer"));
    assert_failed(&stage, &[("1.json", "superseded", &["app/k", "newer version", "--force"])]);
    daemon.until_log("superseded");
    // Nobody overwrites by accident.
    let output = spool(&stage, &["retry", &older]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--force") && stderr(&output).contains(&older), "{}", stderr(&output));
    assert_eq!(failures(&stage).len(), 1);
    assert_eq!(stage.aws.value("app/k").as_deref(), Some("newer"));
    let output = spool(&stage, &["retry", "--force", "--all"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    until_value(&stage, &daemon, "app/k", "older");
    until_drained(&stage);
    assert_eq!(failed(&stage), []);
    let version = versions(&stage, "app/k").pop().unwrap();
    assert_eq!(stdout(&output), format!("{older} is tried again\n"));
    assert!(version > older, "under an identity that is newer than what was there");
}

#[test]
fn another_configuration_keeps_the_claims() {
    let stage = yard();
    let hang = stage.aws.fault(Fault::on("CreateSecret").kind(FaultKind::Hang));
    let mut daemon = stage.run();
    leave(&stage, "1.json", create("k", "1"));
    let token = claim_of(&stage, "1.json");
    until("a call", || stage.aws.count("CreateSecret") >= 1);
    let id = daemon.id();
    storing(&stage, "rate: 5, tags: {team: core}", "", "");
    daemon.until_log("keytide replaces itself");
    daemon.until_log("claimed before this process");
    assert_eq!(claims(&stage), [format!("{token}~1.json")]);
    stage.aws.remove_fault(hang);
    until_drained(&stage);
    assert_eq!(versions(&stage, "app/k"), [token]);
    assert_eq!(stage.aws.secret("app/k").unwrap().tags["team"], "core");
    assert!(daemon.is_running());
    assert_eq!(daemon.id(), id);
}

// --- order and folding

#[test]
fn the_order_is_that_of_the_bytes_of_the_files_names() {
    let stage = yard();
    let files = ["10.json", "9.json", "Z.json", "_.json", "a.json", "\u{e9}.json", "\u{1f511}.json"];
    for (i, file) in files.iter().enumerate().rev() {
        leave(&stage, file, create(&format!("k{i}"), "v"));
        thread::sleep(Duration::from_millis(3));
    }
    // The later time is not the later name.
    leave(&stage, "2-two.json", create("same", "two"));
    leave(&stage, "10-ten.json", create("same", "ten"));
    drains(&stage);
    let tokens: Vec<String> = (0..files.len()).flat_map(|i| versions(&stage, &format!("app/k{i}"))).collect();
    assert_eq!(tokens.len(), files.len());
    assert!(tokens.is_sorted(), "{tokens:?}");
    assert_eq!(stage.aws.value("app/same").as_deref(), Some("two"));
}

#[test]
fn waiting_values_of_one_name_become_one_write_under_the_last_ones_token() {
    let stage = yard_with("rate: 1", "");
    stage.aws.fault(Fault::on("CreateSecret").secret("app/k").times(1).kind(FaultKind::Hang));
    leave(&stage, "0.json", create("first", "v"));
    for n in 1..=5 {
        let op = if n % 2 == 0 { "rotate" } else { "create" };
        leave(&stage, &format!("{n}.json"), entry(op, "k", &json!({"value": format!("v{n}")})));
    }
    let daemon = stage.run();
    until("the one write", || stage.aws.count("CreateSecret") >= 2);
    let token = claim_of(&stage, "5.json");
    assert_eq!(claims(&stage), [format!("{token}~5.json")], "the older ones are removed before the last is sent");
    assert_eq!(daemon.metric("keytide_spool_folded_total", &[]), 4.0);
    until_drained(&stage);
    assert_eq!(stage.aws.value("app/k").as_deref(), Some("v5"));
    assert_eq!(versions(&stage, "app/k"), [token]);
}

#[test]
fn values_are_not_folded_across_a_delete_or_a_rename() {
    let stage = yard();
    leave(&stage, "1.json", create("k", "1"));
    leave(&stage, "2.json", entry("delete", "k", &json!({})));
    leave(&stage, "3.json", create("k", "3"));
    leave(&stage, "4.json", create("old", "4"));
    leave(&stage, "5.json", entry("rename", "old", &json!({"new_alias": "new"})));
    leave(&stage, "6.json", create("old", "6"));
    drains(&stage);
    let values = |name: &str| -> Vec<String> {
        stage.aws.secret(name).unwrap().versions.into_iter().map(|version| version.value).collect()
    };
    assert_eq!(values("app/k"), ["1", "3"]);
    assert_eq!(values("app/old"), ["4", "6"]);
    assert_eq!(values("app/new"), ["4"]);
    for name in ["app/k", "app/old", "app/new"] {
        assert!(!stage.aws.secret(name).unwrap().scheduled_for_deletion, "{name}");
    }
    assert_eq!(stage.aws.count("DeleteSecret"), 2);
}

#[test]
fn values_with_other_metadata_are_not_folded() {
    let stage = yard_with("rate: none", "allow: {description: true}");
    leave(&stage, "1.json", entry("create", "k", &json!({"value": "1", "description": "one"})));
    leave(&stage, "2.json", entry("create", "k", &json!({"value": "2", "description": "two"})));
    leave(&stage, "3.json", entry("create", "k", &json!({"value": "3", "description": "two"})));
    drains(&stage);
    let secret = stage.aws.secret("app/k").unwrap();
    assert_eq!(secret.versions.iter().map(|version| version.value.as_str()).collect::<Vec<_>>(), ["1", "3"]);
    assert_eq!(stage.aws.count("CreateSecret"), 2);
}

#[test]
fn one_bad_entry_never_holds_up_anothers_name() {
    let stage = yard();
    stage.aws.fault(Fault::any().secret("app/denied").kind(error("AccessDeniedException", 400)));
    stage.aws.fault(Fault::any().secret("app/hangs").kind(FaultKind::Hang));
    stage.aws.fault(Fault::any().secret("app/broken").kind(FaultKind::InternalError));
    for (n, alias) in ["denied", "hangs", "broken"].iter().enumerate() {
        leave(&stage, &format!("0{n}.json"), create(alias, CANARY));
    }
    leave(&stage, "05.json", "{");
    leave(&stage, "06.json", create("not legal", "v"));
    for n in 0..40 {
        leave(&stage, &format!("1{n:02}.json"), create(&format!("k{n}"), "v"));
    }
    let daemon = stage.run();
    until("the others", || (0..40).all(|n| stage.aws.value(&format!("app/k{n}")).is_some()));
    // And what comes behind a bad one of the same name waits for it.
    leave(&stage, "2.json", entry("delete", "denied", &json!({})));
    let left = || claims(&stage).iter().map(|claim| claim[37..].to_owned()).collect::<Vec<_>>();
    until("four that wait", || left() == ["00.json", "01.json", "02.json", "2.json"]);
    assert_eq!(failed(&stage).len(), 2);
    assert!(calls(&stage).iter().all(|call| !call.ends_with("DeleteSecret app/denied")));
    // They are tried again, as long as it takes.
    until("repetitions", || stage.aws.requests().iter().filter(|call| call.secret_ids == ["app/broken"]).count() >= 3);
    stage.aws.clear_faults();
    daemon.until_log("AccessDenied");
    until_value(&stage, &daemon, "app/broken", CANARY);
    assert!(!daemon.log().contains(CANARY), "{}", daemon.log());
}

#[test]
fn more_of_one_names_entries_than_may_be_under_way_leave_room_for_others() {
    let stage = yard();
    stage.aws.fault(Fault::any().secret("app/slow").kind(FaultKind::Hang));
    for n in 0..30 {
        let op = if n % 2 == 0 { create("slow", "v") } else { entry("delete", "slow", &json!({})) };
        leave(&stage, &format!("0{n:02}.json"), op);
    }
    leave(&stage, "1.json", create("quick", "v"));
    let daemon = stage.run();
    until_value(&stage, &daemon, "app/quick", "v");
    until("the others to wait", || claims(&stage).len() == 30);
}

// --- plain files

#[test]
fn a_plain_file_is_a_value_for_the_alias_that_is_its_name_once_it_stands_still() {
    let stage = yard_with("rate: none", "plain_files: true");
    let daemon = stage.run();
    for (file, content) in
        [("team-a.key", "sk-1"), ("team-b.key", "sk-2\n"), ("team-c.key", "sk-3\r\n\n"), ("d.json.key", "{}")]
    {
        leave(&stage, file, content);
    }
    for (name, value) in
        [("app/team-a", "sk-1"), ("app/team-b", "sk-2"), ("app/team-c", "sk-3\r\n"), ("app/d.json", "{}")]
    {
        until_value(&stage, &daemon, name, value);
    }
    // Written bit by bit, and not renamed: never taken in between.
    // Whoever pauses for a second is through; a machine that holds up the writer for so long has it begin anew.
    let mut whole = String::new();
    let name = (0..10).map(|attempt| format!("slow-{attempt}")).find(|name| {
        let path = stage.path(&format!("spool/{name}.key"));
        whole.clear();
        let mut paused = Instant::now();
        (0..16).all(|n| {
            let before = mem::replace(&mut paused, Instant::now());
            whole.push_str(&format!("{n:03}-"));
            fs::write(&path, &whole).unwrap();
            // Which is gone where it was taken meanwhile.
            drop(fs::set_permissions(&path, fs::Permissions::from_mode(0o644)));
            let kept_up = before.elapsed() < STANDS_STILL;
            thread::sleep(Duration::from_millis(100));
            let there = path.exists();
            let kept_up = kept_up && paused.elapsed() < STANDS_STILL;
            assert!(there || !kept_up, "taken after {n}");
            kept_up
        })
    });
    let name = format!("app/{}", name.expect("a machine that lets a test write ten times a second"));
    until_value(&stage, &daemon, &name, &whole);
    until_drained(&stage);
    assert_eq!(versions(&stage, &name).len(), 1);
    // The same name again is the next value.
    leave(&stage, "team-a.key", "sk-4");
    until_value(&stage, &daemon, "app/team-a", "sk-4");
}

#[test]
fn a_plain_file_that_cannot_be_a_value_fails() {
    let stage = yard_with("rate: none", "plain_files: true");
    leave(&stage, "1.key", "");
    leave(&stage, "2.key", "\n");
    leave(&stage, "3.key", b"\xff\xfecanary-4f1d");
    leave(&stage, "4 4.key", CANARY);
    leave(&stage, "5.key", format!("{}\n", "v".repeat(65_536)));
    leave(&stage, "6.key", format!("{CANARY}{}", "v".repeat(65_536)));
    let empty: &[&str] = &["value: expected at least one character"];
    drains_but(
        &stage,
        &[
            ("1.key", "malformed", empty),
            ("2.key", "malformed", empty),
            ("3.key", "malformed", &["UTF-8"]),
            ("4 4.key", "malformed", &["expected the name of a secret"]),
            ("6.key", "too_large", &["65537 bytes"]),
        ],
    );
    assert_eq!(stage.aws.value("app/5").unwrap().len(), 65_536);
}

#[test]
fn without_plain_files_only_json_is_taken_and_names_that_begin_with_a_dot_are_never_read() {
    for plain in [false, true] {
        let stage = yard_with("rate: none", &format!("plain_files: {plain}"));
        let ignored = [".1.json", ".json", ".key", "2.txt", "3.json.tmp", "4.JSON", "5json", "6.json ", "noend"];
        for file in ignored {
            fs::write(stage.path("spool").join(file), create("k", "v")).unwrap();
        }
        if !plain {
            leave(&stage, "7.key", "v");
        }
        leave(&stage, "8.json", create("real", "v"));
        let (code, log) = once(&stage);
        assert_eq!(code, Some(0), "{log}");
        for file in ignored {
            assert!(stage.path("spool").join(file).exists(), "{file}");
        }
        assert_eq!(stage.path("spool/7.key").exists(), !plain);
        assert_eq!(stage.aws.names(), ["app/real"]);
        assert_eq!(failed(&stage), []);
    }
}

#[test]
fn a_files_name_may_be_200_bytes_long() {
    let stage = yard();
    let named = |length: usize| format!("{}.json", "n".repeat(length - 5));
    leave(&stage, &named(200), create("fits", "v"));
    let longest = named(255);
    fs::write(stage.path("spool").join(&longest), create("long", CANARY)).unwrap();
    fs::write(stage.path("spool").join(named(201)), create("longer", CANARY)).unwrap();
    for length in [255, 201] {
        fs::set_permissions(stage.path("spool").join(named(length)), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let (code, log) = once(&stage);
    assert_eq!(code, Some(1), "{log}");
    assert_eq!(stage.aws.names(), ["app/fits"]);
    let failed = failed(&stage);
    assert_eq!(failed.len(), 2, "{failed:?}");
    for (_, reason, message) in failed {
        assert_eq!(reason, "malformed");
        assert!(message.contains("200 bytes"), "{message}");
    }
}

// --- names, and who may ask for what

#[test]
fn a_key_without_an_alias_is_named_after_its_hash() {
    let stage = yard();
    for (n, entry) in [json!({}), json!({"alias": null}), json!({"alias": ""})].into_iter().enumerate() {
        let mut entry = entry;
        entry["op"] = json!("create");
        entry["value"] = json!("sk-abc123");
        leave(&stage, &format!("{n}.json"), entry.to_string());
    }
    drains(&stage);
    let hash = "0a2f6ba7b3d4973643557c2bbae4f2f717b3f1d1baf8d730db9272ae6d4824ab";
    assert_eq!(stage.aws.names(), [format!("app/virtual-key-{hash}")]);
    // The hash of the old value is not known when it is rotated: whoever rotates says the name.
    leave(&stage, "4.json", json!({"op": "rotate", "value": "sk-new"}).to_string());
    leave(&stage, "5.json", json!({"op": "delete"}).to_string());
    leave(&stage, "6.json", json!({"op": "delete", "alias": ""}).to_string());
    let required: &[&str] = &["name or alias is required"];
    drains_but(
        &stage,
        &[("4.json", "malformed", required), ("5.json", "malformed", required), ("6.json", "malformed", required)],
    );
}

#[test]
fn a_name_is_whole_and_an_alias_gets_the_prefix() {
    let stage = yard_with("rate: none", "allow_names: [elsewhere/one]");
    let named = |name: &str| json!({"op": "create", "name": name, "value": CANARY}).to_string();
    leave(&stage, "01.json", named("app/named"));
    leave(&stage, "02.json", create("aliased/deep", "v"));
    leave(&stage, "03.json", named("elsewhere/one"));
    leave(&stage, "04.json", create("app/app", "v"));
    leave(&stage, "05.json", named("elsewhere/two"));
    leave(&stage, "06.json", named("elsewhere/one/more"));
    leave(&stage, "07.json", named("app"));
    leave(&stage, "08.json", named("app/"));
    leave(&stage, "09.json", named("application/k"));
    leave(&stage, "10.json", named("App/k"));
    leave(&stage, "11.json", named("app/../other"));
    leave(&stage, "12.json", create("..", CANARY));
    leave(&stage, "13.json", create("/abs", CANARY));
    leave(&stage, "14.json", json!({"op": "create", "name": "app/a", "alias": "a", "value": CANARY}).to_string());
    leave(&stage, "15.json", entry("rename", "aliased/deep", &json!({"new_name": "elsewhere/two"})));
    leave(&stage, "16.json", create(&"n".repeat(509), CANARY));
    leave(&stage, "17.json", create(&"m".repeat(508), "v"));
    let outside: &[&str] = &["name: expected the name of a secret below the prefix app/"];
    let no_name: &[&str] = &["expected the name of a secret: 1 to 512"];
    drains_but(
        &stage,
        &[
            ("05.json", "not_allowed", outside),
            ("06.json", "not_allowed", outside),
            ("07.json", "not_allowed", outside),
            ("08.json", "not_allowed", outside),
            ("09.json", "not_allowed", outside),
            ("10.json", "not_allowed", outside),
            ("11.json", "malformed", no_name),
            ("12.json", "malformed", no_name),
            ("13.json", "malformed", no_name),
            ("14.json", "malformed", &["name or alias, not both"]),
            ("15.json", "not_allowed", &["new_name", "below the prefix"]),
            ("16.json", "malformed", no_name),
        ],
    );
    let long = format!("app/{}", "m".repeat(508));
    assert_eq!(stage.aws.names(), ["app/aliased/deep", "app/app/app", &long, "app/named", "elsewhere/one"]);
}

#[test]
fn the_secret_of_a_hosted_key_is_never_touched() {
    let stage = Stage::with(Seed::default().secret("app/hosted", "h").secret("app/primary", "{\"P\": \"p\"}"));
    stage.make_directory("spool", 0o1733);
    stage.aws.put("app/by-arn", "a");
    let arn = stage.aws.arn("app/by-arn").unwrap();
    let partial = arn.rsplit_once('-').unwrap().0.replace("by-arn", "by-part");
    stage.aws.put("app/by-part", "b");
    storing(
        &stage,
        "rate: none",
        "allow_names: [app/hosted]",
        &format!(
            "primary_secret: {{name: app/primary}}\nkeys: [{{name: H, secret: app/hosted}}, {{name: A, secret: \"{arn}\"}}, \
             {{name: B, secret: \"{partial}\"}}]\noutputs:\n  - env_file: {{path: \"{{dir}}/env/keys.json\", format: json}}\n"
        ),
    );
    let mut expected = Vec::new();
    let mut n = 10;
    for alias in ["hosted", "primary", "by-arn", "by-part"] {
        for entry in [
            create(alias, CANARY),
            entry("rotate", alias, &json!({"value": CANARY})),
            entry("delete", alias, &json!({})),
            entry("rename", alias, &json!({"new_alias": "mine"})),
            entry("rename", "mine", &json!({"new_alias": alias})),
            entry("rotate", "mine", &json!({"new_alias": alias, "value": CANARY})),
        ] {
            n += 1;
            leave(&stage, &format!("{n}.json"), entry);
            expected.push(format!("{n}.json"));
        }
    }
    leave(&stage, "99.json", create("by-arn-2", "v"));
    let what: &[&str] = &["alias", "hosted key"];
    let expected: Vec<(&str, &str, &[&str])> =
        expected.iter().map(|file| (file.as_str(), "not_allowed", what)).collect();
    drains_but(&stage, &expected);
    for (name, value) in [("hosted", "h"), ("by-arn", "a"), ("by-part", "b")] {
        assert_eq!(stage.aws.value(&format!("app/{name}")).as_deref(), Some(value));
        assert_eq!(versions(&stage, &format!("app/{name}")).len(), 1);
    }
    assert_eq!(stage.aws.value("app/by-arn-2").as_deref(), Some("v"), "only a secret of that very name is meant");
}

#[test]
fn only_the_operations_of_the_configuration_are_carried_out() {
    let all = [
        create("k", CANARY),
        entry("delete", "k", &json!({})),
        entry("rename", "k", &json!({"new_alias": "k2"})),
        entry("rotate", "k", &json!({"value": CANARY})),
    ];
    for (i, operation) in ["create", "delete", "rename", "rotate"].iter().enumerate() {
        let stage = yard_with("rate: none", &format!("operations: [{operation}]"));
        stage.aws.put("app/k", "0");
        for (n, entry) in all.iter().enumerate() {
            leave(&stage, &format!("{n}.json"), entry);
        }
        let what: &[&str] = &["is not among keytide.spool.operations"];
        let files: Vec<String> = (0..4).filter(|n| *n != i).map(|n| format!("{n}.json")).collect();
        let expected: Vec<(&str, &str, &[&str])> =
            files.iter().map(|file| (file.as_str(), "not_allowed", what)).collect();
        drains_but(&stage, &expected);
        assert!(!calls(&stage).is_empty());
    }
}

#[test]
fn what_an_entry_gives_itself_is_what_the_settings_say_or_what_is_allowed() {
    let settings = "rate: none, description: ours, tags: {team: core, env: prod}, kms_key_id: alias/ours, replica_regions: [eu-west-1]";
    let given = |more: Value| {
        let mut more = more;
        more["value"] = json!(CANARY);
        more
    };
    let cases = [
        ("description", json!({"description": "theirs"}), json!({"description": "ours"})),
        ("tags", json!({"tags": {"owner": "canary-4f1d"}}), json!({"tags": {"team": "core"}})),
        ("tags", json!({"tags": {"team": "canary-4f1d"}}), json!({"tags": {}})),
        ("kms_key_id", json!({"kms_key_id": "alias/canary-4f1d"}), json!({"kms_key_id": "alias/ours"})),
        ("replica_regions", json!({"replica_regions": ["eu-north-1"]}), json!({"replica_regions": ["eu-west-1"]})),
        ("replica_regions", json!({"replica_regions": ["eu-west-1", "eu-north-1"]}), json!({"replica_regions": []})),
    ];
    let stage = yard_with(settings, "");
    let mut expected = Vec::new();
    for (n, (member, other, same)) in cases.iter().enumerate() {
        leave(&stage, &format!("{n}-a.json"), entry("create", &format!("a{n}"), &given(other.clone())));
        leave(&stage, &format!("{n}-b.json"), entry("create", &format!("b{n}"), &given(same.clone())));
        expected.push((format!("{n}-a.json"), format!("{member}: ")));
    }
    let parts: Vec<[&str; 2]> = expected.iter().map(|(_, part)| [part.as_str(), "keytide.spool.allow."]).collect();
    let expected: Vec<(&str, &str, &[&str])> = expected
        .iter()
        .zip(&parts)
        .map(|((file, _), parts)| (file.as_str(), "not_allowed", parts.as_slice()))
        .collect();
    drains_but(&stage, &expected);
    for n in 0..cases.len() {
        let secret = stage.aws.secret(&format!("app/b{n}")).unwrap();
        assert_eq!(secret.description.as_deref(), Some("ours"));
        assert_eq!(secret.kms_key_id.as_deref(), Some("alias/ours"));
        assert_eq!(secret.tags.into_iter().collect::<Vec<_>>(), [pair("env", "prod"), pair("team", "core")]);
        assert_eq!(secret.replicas.into_iter().collect::<Vec<_>>(), ["eu-west-1"]);
    }
}

fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

#[test]
fn what_is_allowed_is_set_and_tags_and_regions_add_to_those_of_the_settings() {
    let stage = yard_with(
        "rate: none, description: ours, tags: {team: core}, replica_regions: [eu-west-1]",
        "allow: {description: true, tag_keys: [owner, team], kms_key_ids: [alias/theirs], replica_regions: [eu-north-1]}",
    );
    let given = json!({
        "value": "v", "description": "theirs", "tags": {"owner": "b"}, "kms_key_id": "alias/theirs",
        "replica_regions": ["eu-north-1"],
    });
    leave(&stage, "1.json", entry("create", "k", &given));
    leave(&stage, "2.json", entry("create", "t", &json!({"value": "v", "tags": {"team": "other"}})));
    leave(&stage, "3.json", entry("create", "x", &json!({"value": "v", "tags": {"third": "x"}})));
    leave(&stage, "4.json", entry("create", "y", &json!({"value": "v", "kms_key_id": "alias/more"})));
    leave(&stage, "5.json", entry("create", "z", &json!({"value": "v", "replica_regions": ["us-west-2"]})));
    drains_but(
        &stage,
        &[
            ("2.json", "not_allowed", &["tags: "]),
            ("3.json", "not_allowed", &["tags: "]),
            ("4.json", "not_allowed", &["kms_key_id: "]),
            ("5.json", "not_allowed", &["replica_regions: "]),
        ],
    );
    let secret = stage.aws.secret("app/k").unwrap();
    assert_eq!(secret.description.as_deref(), Some("theirs"));
    assert_eq!(secret.kms_key_id.as_deref(), Some("alias/theirs"));
    assert_eq!(secret.tags.into_iter().collect::<Vec<_>>(), [pair("owner", "b"), pair("team", "core")]);
    assert_eq!(secret.replicas.into_iter().collect::<Vec<_>>(), ["eu-north-1", "eu-west-1"]);
    assert_eq!(calls(&stage), ["CreateSecret app/k"]);
}

#[test]
fn the_recovery_window_is_seven_days_unless_the_entry_says_another() {
    let stage = yard();
    for (n, days) in
        [json!({}), json!({"recovery_window_in_days": 7}), json!({"recovery_window_in_days": 30})].iter().enumerate()
    {
        stage.aws.put(&format!("app/k{n}"), "v");
        leave(&stage, &format!("{n}.json"), entry("delete", &format!("k{n}"), days));
    }
    for (n, days) in [json!(6), json!(31), json!(0), json!(-7), json!(7.0), json!("7"), json!(1e30)].iter().enumerate()
    {
        leave(&stage, &format!("9{n}.json"), entry("delete", "k0", &json!({"recovery_window_in_days": days})));
    }
    let (code, log) = once(&stage);
    assert_eq!(code, Some(1), "{log}");
    let failed = failed(&stage);
    assert_eq!(failed.len(), 7, "{failed:?}");
    for (file, reason, message) in failed {
        assert_eq!(reason, "malformed", "{file}");
        assert!(message.starts_with("recovery_window_in_days: expected"), "{file}: {message}");
    }
    let mut days: Vec<_> = calls_of(&stage)
        .iter()
        .map(|call| (call.secret_ids[0].clone(), call.parameters["RecoveryWindowInDays"].as_u64().unwrap()))
        .collect();
    days.sort();
    assert_eq!(days, [("app/k0".to_owned(), 7), ("app/k1".to_owned(), 7), ("app/k2".to_owned(), 30)]);
}

#[test]
fn a_listed_team_is_written_with_its_role_in_its_region_at_every_step() {
    let team = arn("team");
    let seed = Seed::default().role(of_user("team")).role(of_user("third"));
    let teams = format!(
        "teams: [{{aws_role_name: \"{team}\", aws_region_name: eu-west-1}}, {{aws_role_name: \"{}\", aws_region_name: eu-north-1}}]",
        arn("third")
    );
    let stage = yard_of(seed, "rate: none, tags: {team: core}, replica_regions: [us-west-2]", &teams);
    stage.aws.put("app/old", "ours");
    stage.aws.put_in("eu-west-1", "app/old", "theirs");
    let pair = |role: &str, region: &str| json!({"aws_role_name": arn(role), "aws_region_name": region});
    let with = |op: &str, alias: &str, more: Value| {
        let mut more = more;
        more["team"] = pair("team", "eu-west-1");
        entry(op, alias, &more)
    };
    leave(&stage, "1.json", with("create", "k", json!({"value": "1"})));
    leave(&stage, "2.json", with("rename", "old", json!({"new_alias": "new"})));
    leave(&stage, "3.json", with("rotate", "k", json!({"new_alias": "k2", "value": "2"})));
    leave(&stage, "4.json", with("delete", "k2", json!({})));
    leave(&stage, "5.json", create("k", "not the team's"));
    drains(&stage);
    let of_team: Vec<_> =
        calls_of(&stage).into_iter().filter(|call| call.region.as_deref() == Some("eu-west-1")).collect();
    assert!(of_team.iter().all(|call| call.principal.as_ref().unwrap().contains("assumed-role/team/")), "{of_team:?}");
    let ours: Vec<_> =
        calls_of(&stage).into_iter().filter(|call| call.region.as_deref() != Some("eu-west-1")).collect();
    assert_eq!(ours.len(), 1, "{ours:?}");
    assert_eq!((ours[0].region.as_deref(), ours[0].action.as_str()), (Some("us-east-1"), "CreateSecret"));
    assert_eq!(stage.aws.value("app/k").as_deref(), Some("not the team's"));
    assert_eq!(stage.aws.value("app/old").as_deref(), Some("ours"));
    assert_eq!(stage.aws.secret("app/new"), None);
    let there = |name: &str| stage.aws.secret_in("eu-west-1", name).unwrap();
    assert!(there("app/old").scheduled_for_deletion && there("app/k").scheduled_for_deletion);
    assert_eq!(there("app/new").staged("AWSCURRENT").unwrap().value, "theirs");
    assert!(there("app/k2").scheduled_for_deletion);
    // What is not listed as a pair is nobody.
    for (n, team) in [
        pair("team", "us-east-1"),
        pair("team", "eu-north-1"),
        pair("keytide", "eu-west-1"),
        json!({"aws_role_name": "", "aws_region_name": ""}),
    ]
    .iter()
    .enumerate()
    {
        leave(&stage, &format!("{n}.json"), entry("create", "k", &json!({"value": CANARY, "team": team})));
    }
    let what: &[&str] = &["team: ", "keytide.spool.teams"];
    drains_but(
        &stage,
        &[
            ("0.json", "not_allowed", what),
            ("1.json", "not_allowed", what),
            ("2.json", "not_allowed", what),
            ("3.json", "not_allowed", what),
        ],
    );
}

#[test]
fn without_teams_no_entry_says_who_writes() {
    let stage = yard_of(Seed::default().role(of_user("team")), "rate: none", "");
    let team = json!({"aws_role_name": arn("team"), "aws_region_name": "us-east-1"});
    leave(&stage, "1.json", entry("create", "k", &json!({"value": CANARY, "team": team})));
    leave(&stage, "2.json", entry("create", "k", &json!({"value": "v", "team": null})));
    drains_but(&stage, &[("1.json", "not_allowed", &["keytide.spool.teams"])]);
    assert_eq!(stage.aws.value("app/k").as_deref(), Some("v"));
}

// --- failed entries

#[test]
fn a_failed_entry_is_kept_beside_a_reason_that_holds_no_value() {
    let stage = yard();
    let text = format!(r#"{{"op":"create","alias":"k","value":"{CANARY}","extra":"{CANARY}"}}"#);
    leave(&stage, "7-app-1.json", &text);
    drains_but(&stage, &[("7-app-1.json", "malformed", &["a member is unknown"])]);
    let reason = failures(&stage).remove(0);
    let token = reason["token"].as_str().unwrap();
    assert!(is_token(token));
    let mut members: Vec<&String> = reason.as_object().unwrap().keys().collect();
    members.sort();
    assert_eq!(members, ["failed_at", "file", "message", "reason", "subject", "token"]);
    assert_eq!(reason["subject"], Value::Null);
    assert!(reason["failed_at"].as_str().unwrap().ends_with('Z'), "{reason}");
    assert!(!reason.to_string().contains(CANARY), "{reason}");
    assert_eq!(names(&stage, "spool/failed"), [format!("{token}.error.json"), format!("{token}~7-app-1.json")]);
    assert_eq!(stage.read(&format!("spool/failed/{token}~7-app-1.json")), text);
    let mode = |path: &str| fs::metadata(stage.path(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("spool/failed"), 0o700);
    assert_eq!(mode(&format!("spool/failed/{token}.error.json")), 0o600);
    // One that was understood says what it was about.
    leave(&stage, "8.json", entry("rename", "gone", &json!({"new_alias": "elsewhere"})));
    let (code, log) = once(&stage);
    assert_eq!(code, Some(1), "{log}");
    let reason = failures(&stage).remove(1);
    assert_eq!(reason["reason"], "absent");
    assert!(reason["subject"].as_str().unwrap().starts_with("rename app/gone"), "{reason}");
    // It is kept across starts, whatever time its producer gave it.
    let kept = names(&stage, "spool/failed");
    for file in &kept {
        let status =
            Command::new("touch").args(["-d", "2001-01-01"]).arg(stage.path("spool/failed").join(file)).status();
        assert!(status.unwrap().success());
    }
    let (code, log) = once(&stage);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(names(&stage, "spool/failed"), kept);
}

#[test]
fn spool_list_shows_what_waits_is_claimed_and_failed_and_never_a_value() {
    let stage = yard_with("rate: none", "max_entries: 2");
    stage.aws.fault(Fault::any().kind(FaultKind::Hang));
    let value = json!({"op": "create", "alias": "b", "value": CANARY, "description": CANARY}).to_string();
    let daemon = stage.run();
    leave(&stage, "1.json", value);
    until("a failure", || failures(&stage).len() == 1);
    for n in 2..6 {
        leave(&stage, &format!("{n}.json"), create(&format!("k{n}"), CANARY));
    }
    until("two claims", || claims(&stage).len() == 2);
    let output = spool(&stage, &["list", "--output", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!listed.to_string().contains(CANARY), "{listed}");
    let mut states: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["state"].as_str().unwrap(), it["file"].as_str().unwrap()))
        .collect();
    states.sort_unstable();
    let (claimed, left): (Vec<_>, Vec<_>) = states.into_iter().partition(|(state, _)| *state == "claimed");
    assert_eq!(claimed.len(), 2);
    assert_eq!(left, [("failed", "1.json"), ("waiting", "4.json"), ("waiting", "5.json")]);
    let failed = listed.as_array().unwrap().iter().find(|it| it["state"] == "failed").unwrap();
    assert_eq!(failed["reason"], "not_allowed");
    assert!(failed["message"].as_str().unwrap().contains("keytide.spool.allow.description"), "{failed}");
    let waiting = listed.as_array().unwrap().iter().find(|it| it["file"] == "2.json").unwrap();
    assert_eq!(waiting["subject"], "create k2");
    let text = stdout(&spool(&stage, &["list"]));
    assert!(text.starts_with("ENTRY") && !text.contains(CANARY), "{text}");
    for part in ["failed (not_allowed)", "claimed", "waiting", "create k2", "5.json", failed["token"].as_str().unwrap()]
    {
        assert!(text.contains(part), "{part:?} in:\n{text}");
    }
    drop(daemon);
}

#[test]
fn an_empty_spool_is_listed_as_that_and_none_is_an_error() {
    let stage = yard();
    drains(&stage);
    assert_eq!(stdout(&spool(&stage, &["list"])), "the spool is empty\n");
    let output = spool(&stage, &["list", "--output", "json"]);
    assert_eq!(stdout(&output).trim(), "[]");
    let output = stage.keytide(&["spool", "list", "--spool", &stage.path("none").display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/none"), "{}", stderr(&output));
    assert!(!stage.path("none").exists());
}

#[test]
fn a_failed_entry_is_tried_again_and_succeeds_once_the_cause_is_gone() {
    let stage = yard();
    leave(&stage, "1.json", json!({"op": "create", "name": "team/k", "value": "v"}).to_string());
    leave(&stage, "2.json", "{");
    drains_but(&stage, &[("1.json", "not_allowed", &["below the prefix"]), ("2.json", "malformed", &["cut off"])]);
    let token = failures(&stage)[0]["token"].as_str().unwrap().to_owned();
    storing(&stage, "rate: none", "allow_names: [team/k]", "");
    let daemon = stage.run();
    daemon.until_log("on http://");
    let output = spool(&stage, &["retry", &token]);
    assert_eq!(stdout(&output), format!("{token} is tried again\n"), "{}", stderr(&output));
    until_value(&stage, &daemon, "team/k", "v");
    until("the end of it", || failed(&stage).len() == 1 && claims(&stage).is_empty());
    assert_eq!(versions(&stage, "team/k"), std::slice::from_ref(&token), "the same identity");
    // It is not there any more.
    for action in ["retry", "discard"] {
        let output = spool(&stage, &[action, &token]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(&format!("{token}: there is no such failed entry")), "{}", stderr(&output));
        assert_eq!(spool(&stage, &[action]).status.code(), Some(64), "which ones must be said");
        assert_eq!(spool(&stage, &[action, "1.json"]).status.code(), Some(64));
    }
    // What fails again is there again.
    let output = spool(&stage, &["retry", "--all"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let again = || failed(&stage).len() == 1 && claims(&stage).is_empty() && names(&stage, "spool/.retry").is_empty();
    assert!(
        patiently(again),
        "{:?}, {:?}, {:?}:\n{}",
        failed(&stage),
        claims(&stage),
        names(&stage, "spool/.retry"),
        daemon.log()
    );
    assert_failed(&stage, &[("2.json", "malformed", &["cut off"])]);
}

#[test]
fn a_discarded_entry_is_gone_with_everything_that_was_kept_of_it() {
    let stage = yard();
    for n in 1..=3 {
        leave(&stage, &format!("{n}.json"), format!("{{{CANARY}"));
    }
    let (code, _) = once(&stage);
    assert_eq!(code, Some(1));
    let token = failures(&stage)[1]["token"].as_str().unwrap().to_owned();
    let output = spool(&stage, &["discard", &token]);
    assert_eq!(stdout(&output), format!("{token} is discarded\n"), "{}", stderr(&output));
    assert_eq!(failed(&stage).iter().map(|it| it.0.as_str()).collect::<Vec<_>>(), ["1.json", "3.json"]);
    let output = spool(&stage, &["discard", "--all"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for directory in ["spool/failed", "spool/.results", "spool/.claimed", "spool/.retry"] {
        assert_eq!(names(&stage, directory), NONE, "{directory}");
    }
    assert_eq!(spool(&stage, &["discard", "--all"]).status.code(), Some(0));
}

// --- keytide push

#[test]
fn push_leaves_a_well_formed_entry_with_the_value_from_standard_input() {
    let stage = yard();
    let daemon = stage.run();
    daemon.until_log("on http://");
    let run = |arguments: &[&str], input: &str| {
        let output = push(&stage, &[arguments, &["--wait", "15s"]].concat(), input.as_bytes());
        assert_eq!((output.status.code(), stdout(&output)), (Some(0), "stored\n".to_owned()), "{}", stderr(&output));
    };
    let value = |name: &str| stage.aws.value(name).unwrap_or_default();
    run(&["app/k"], "one\n");
    assert_eq!(value("app/k"), "one", "without the line feed of a here-document");
    run(&["k", "--alias", "--op", "rotate"], "\"two\"\\\u{1f511}\n\n");
    assert_eq!(value("app/k"), "\"two\"\\\u{1f511}\n");
    run(&["app/k", "--op", "rotate", "--new-name", "app/k2"], "three");
    assert_eq!(value("app/k2"), "three");
    assert!(stage.aws.secret("app/k").unwrap().scheduled_for_deletion);
    run(&["k2", "--alias", "--op", "rename", "--new-name", "k3"], "");
    assert_eq!(value("app/k3"), "three");
    run(&["app/k3", "--op", "delete", "--recovery-window-in-days", "9"], "");
    assert!(stage.aws.secret("app/k3").unwrap().scheduled_for_deletion);
    let days = calls_of(&stage).pop().unwrap().parameters["RecoveryWindowInDays"].clone();
    assert_eq!(days, 9);
    assert_eq!(failed(&stage), []);
}

#[test]
fn push_names_the_file_and_makes_it_readable_whatever_the_umask() {
    let stage = yard();
    let spool = stage.path("spool").display().to_string();
    let command = stage.command(&["push", "--spool", &spool, "app/k"]);
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        shell(&stage, PRODUCER, &format!("umask 0777; printf %s '{CANARY}' | {program} push --spool {spool} app/k"));
    assert!(output.status.success(), "{}", stderr(&output));
    let name = stdout(&output).trim().to_owned();
    assert_eq!(waiting(&stage), [name.as_str()]);
    let parts: Vec<&str> = name.strip_suffix(".json").unwrap().split('-').collect();
    assert!(parts[0].len() == 20 && parts[0].bytes().all(|byte| byte.is_ascii_digit()) && parts.len() == 3, "{name}");
    let metadata = fs::metadata(stage.path("spool").join(&name)).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o644);
    assert_eq!(names(&stage, "spool"), [name.as_str()], "no temporary file is left");
    drains(&stage);
    assert_eq!(stage.aws.value("app/k").as_deref(), Some(CANARY));
}

#[test]
fn push_refuses_a_value_that_is_none_and_repeats_no_byte_of_it() {
    let stage = yard();
    let cases: [(&[u8], &str); 5] = [
        (b"", "at least one character"),
        (b"\n", "at least one character"),
        (b"canary-4f1d\xff", "not UTF-8"),
        (&b"v".repeat(65_537), "longer than 65536 bytes"),
        (&b"v".repeat(200_000), "longer than 65536 bytes"),
    ];
    for (input, what) in cases {
        let output = push(&stage, &["app/k"], input);
        assert_eq!(output.status.code(), Some(64), "{what}");
        assert!(stderr(&output).contains(what), "{what}: {}", stderr(&output));
        assert!(!(stderr(&output) + &stdout(&output)).contains(CANARY));
    }
    for arguments in [&["app/k", CANARY][..], &["app/k", "--value", CANARY], &["app/k", "--op", "steal"], &[]] {
        assert_eq!(push(&stage, arguments, b"v").status.code(), Some(64), "{arguments:?}");
    }
    assert_eq!(names(&stage, "spool"), NONE);
    for input in [b"v".repeat(65_536), [b"w".repeat(65_536), b"\n".to_vec()].concat()] {
        let output = push(&stage, &["app/k"], &input);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    }
    drains(&stage);
    assert_eq!(stage.aws.value("app/k").unwrap(), "w".repeat(65_536));
}

#[test]
fn push_waits_for_aws_and_says_what_failed_or_where_the_entry_is() {
    let stage = yard();
    // Nobody takes it.
    let output = push(&stage, &["app/k", "--wait", "1s"], b"v");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("not yet taken after 1 s; it stays in the spool"), "{}", stderr(&output));
    drains(&stage);
    assert_eq!(stage.aws.value("app/k").as_deref(), Some("v"));
    // AWS does not answer.
    stage.aws.fault(Fault::any().kind(FaultKind::Hang));
    let daemon = stage.run();
    daemon.until_log("on http://");
    let output = push(&stage, &["app/k", "--wait", "3s"], b"w");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("taken, and not yet confirmed by AWS after 3 s"), "{}", stderr(&output));
    stage.aws.clear_faults();
    until_value(&stage, &daemon, "app/k", "w");
    // It can never succeed.
    let output = push(&stage, &["other/k", "--wait"], CANARY.as_bytes());
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("the entry failed (not_allowed): name: expected") && !said.contains(CANARY), "{said}");
    // There is no spool.
    let none = stage.path("none").display().to_string();
    let output = fed(&stage, PRODUCER, &["push", "--spool", &none, "app/k"], CANARY.as_bytes());
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/none") && stderr(&output).contains("--spool"), "{}", stderr(&output));
}

#[test]
fn what_push_writes_is_valid_by_the_schema_of_an_entry() {
    let stage = yard();
    let output = stage.keytide(&["schema", "entry"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    for arguments in [
        &["app/k"][..],
        &["k", "--alias"],
        &["k", "--alias", "--op", "rotate", "--new-name", "k2"],
        &["app/k", "--op", "rename", "--new-name", "app/k2"],
        &["app/k", "--op", "delete", "--recovery-window-in-days", "30"],
    ] {
        let output = push_as(&stage, USER, arguments, b"v");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let file = format!("spool/{}", stdout(&output).trim());
        let entry: Value = serde_json::from_str(&stage.read(&file)).unwrap();
        let wrong = invalid(&schema, &schema, &entry);
        assert_eq!(wrong, None, "{entry}");
    }
    let wrong = json!({"op": "steal"});
    assert!(invalid(&schema, &schema, &wrong).is_some(), "the check itself finds what is wrong");
    assert!(invalid(&schema, &schema, &json!({"op": "create", "valeu": "v"})).is_some());
}

/// What is wrong with a value by a schema, as far as entries need: types, constants, members, ranges.
fn invalid(root: &Value, schema: &Value, value: &Value) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return invalid(root, root.pointer(reference.trim_start_matches('#')).unwrap(), value);
    }
    for any in ["anyOf", "oneOf"] {
        if let Some(schemas) = schema[any].as_array() {
            return schemas
                .iter()
                .all(|schema| invalid(root, schema, value).is_some())
                .then(|| format!("{any}: {value}"));
        }
    }
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "null" => value.is_null(),
        _ => panic!("the schema has a type that this test does not know: {kind}"),
    };
    let typed = match &schema["type"] {
        Value::String(kind) => is(kind),
        Value::Array(kinds) => kinds.iter().any(|kind| is(kind.as_str().unwrap())),
        _ => true,
    };
    let listed = schema["enum"].as_array().is_none_or(|values| values.contains(value));
    let constant = schema.get("const").is_none_or(|constant| constant == value);
    let within = value.as_u64().is_none_or(|number| {
        schema["minimum"].as_u64().is_none_or(|least| number >= least)
            && schema["maximum"].as_u64().is_none_or(|most| number <= most)
    });
    if !(typed && listed && constant && within) {
        return Some(value.to_string());
    }
    let object = value.as_object()?;
    if let Some(name) =
        schema["required"].as_array().into_iter().flatten().find(|name| !object.contains_key(name.as_str().unwrap()))
    {
        return Some(format!("{name} is missing"));
    }
    object.iter().find_map(|(name, member)| match schema["properties"].get(name) {
        Some(schema) => invalid(root, schema, member),
        None if schema["additionalProperties"] == false => Some(name.clone()),
        None => None,
    })
}

#[test]
fn the_value_is_in_no_argument_and_no_environment_of_a_waiting_push() {
    let stage = yard();
    let spool = stage.path("spool").display().to_string();
    let mut command = stage.command(&["push", "--spool", &spool, "app/k", "--wait", "60s"]);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), CANARY.as_bytes()).unwrap();
    until("an entry", || waiting(&stage).len() == 1);
    for file in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{}/{file}", child.id())).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&bytes).contains(CANARY), "{file}");
    }
    drains(&stage);
    assert!(child.wait().unwrap().success());
}

// --- once, and the end

#[test]
fn once_drains_what_is_there_and_ends() {
    let stage = yard_with("rate: none", "max_entries: 3, plain_files: true");
    for n in 0..20 {
        leave(&stage, &format!("{n}.json"), create(&format!("k{n}"), "v"));
    }
    leave(&stage, "plain.key", "v");
    drains(&stage);
    assert_eq!(stage.aws.names().len(), 21);
    // And when there is nothing.
    stage.aws.clear_requests();
    drains(&stage);
    assert_eq!(calls(&stage), NONE);
}

#[test]
fn once_says_what_is_left_when_there_is_no_more_time() {
    let stage = yard();
    stage.aws.fault(Fault::any().secret("app/stuck").kind(FaultKind::InternalError));
    leave(&stage, "1.json", create("stuck", CANARY));
    leave(&stage, "2.json", create("fine", "v"));
    let output = stage.once_within("4s");
    let log = stdout(&output) + &stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    for part in ["not drained within 4s", "1 entries are left", "create app/stuck", "InternalServiceError"] {
        assert!(log.contains(part), "{part:?} in: {log}");
    }
    assert!(!log.contains(CANARY) && !log.contains("app/fine"), "{log}");
    assert_eq!(stage.aws.names(), ["app/fine"]);
    assert_eq!(claims(&stage).len(), 1, "it stays");
    stage.aws.clear_faults();
    drains(&stage);
    assert_eq!(stage.aws.value("app/stuck").as_deref(), Some(CANARY));
}

#[test]
fn at_the_end_everything_that_waits_is_delivered_whatever_the_rate() {
    let stage = yard_with("rate: 1", "max_entries: 5");
    let mut daemon = stage.run();
    daemon.until_log("on http://");
    for n in 0..30 {
        leave(&stage, &format!("{n:02}.json"), create(&format!("k{n}"), "v"));
    }
    until("the first", || !stage.aws.names().is_empty());
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0, "{}", daemon.log());
    assert_eq!(stage.aws.names().len(), 30, "{}", daemon.log());
    assert_eq!((claims(&stage), waiting(&stage)), (vec![], vec![]));
}

#[test]
fn an_entry_that_was_never_tried_goes_first_at_the_end() {
    let stage = yard_with("rate: 1", "");
    stage.aws.fault(Fault::any().secret("app/stuck").kind(FaultKind::Hang));
    let mut daemon = stage.run();
    daemon.until_log("on http://");
    leave(&stage, "1.json", create("stuck", "v"));
    until("a call", || stage.aws.count("CreateSecret") == 1);
    for n in 2..9 {
        leave(&stage, &format!("{n}.json"), create(&format!("k{n}"), "v"));
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 1, "{}", daemon.log());
    assert_eq!(stage.aws.names().len(), 7, "{}", daemon.log());
    assert_eq!(claims(&stage).len(), 1);
}

#[test]
fn what_could_not_be_delivered_by_the_end_is_named_and_is_still_there() {
    let stage = yard();
    stage.aws.set_down(true);
    let mut daemon = stage.run();
    daemon.until_log("on http://");
    leave(&stage, "1.json", create("k1", CANARY));
    leave(&stage, "2.json", entry("delete", "k2", &json!({})));
    until("two claims", || claims(&stage).len() == 2);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 1, "{}", daemon.log());
    let log = daemon.log();
    for part in ["2 virtual keys are not stored", "lost if the pod ends", "create app/k1", "delete app/k2"] {
        assert!(log.contains(part), "{part:?} in: {log}");
    }
    assert!(!log.contains(CANARY), "{log}");
    assert_eq!(claims(&stage).len(), 2);
    stage.aws.set_down(false);
    stage.aws.put("app/k2", "v");
    drains(&stage);
    assert_eq!(stage.aws.value("app/k1").as_deref(), Some(CANARY));
    assert!(stage.aws.secret("app/k2").unwrap().scheduled_for_deletion);
}

#[test]
fn a_spool_on_a_disk_outlives_the_pod_so_its_end_is_no_failure() {
    let stage = yard();
    let disk = tempfile::TempDir::with_prefix_in("keytide-test-", "/tmp").unwrap();
    fs::set_permissions(disk.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let directory = disk.path().join("spool");
    let config = stage.read("keytide.yaml");
    let config =
        config.replace(&format!("\"{}\"", stage.path("spool").display()), &format!("\"{}\"", directory.display()));
    stage.write("keytide.yaml", &config);
    let mut daemon = stage.run();
    // Whoever looks at the file system, and not at a flag, knows a disk: /tmp may be none.
    if !patiently(|| daemon.log().contains("on http://") || !daemon.is_running()) || !daemon.is_running() {
        assert!(daemon.log().contains("is not on a tmpfs"), "{}", daemon.log());
        assert!(!directory.exists());
    }
    daemon.kill();
    stage.write("keytide.yaml", config.replace("spool: {", "spool: {allow_disk: true, "));
    stage.aws.set_down(true);
    let mut daemon = stage.run();
    daemon.until_log("on http://");
    crate::producer::leave_in(&directory, "1.json", create("k", "v"));
    until("a claim", || fs::read_dir(directory.join(".claimed")).unwrap().count() == 1);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0, "{}", daemon.log());
    daemon.until_log("the spool is on a disk, and keeps them");
    stage.aws.set_down(false);
    let (code, log) = once(&stage);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(stage.aws.value("app/k").as_deref(), Some("v"));
}
