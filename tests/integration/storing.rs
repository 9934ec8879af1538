//! What AWS is asked for by each operation, and what is there afterwards: the write vectors of LiteLLM (W01 to W22, M01) as
//! the entries that a producer leaves for them, and what may stand where something is to be written, renamed or deleted.

use std::time::Duration;

use keytide_emulator::{Fault, FaultKind, SecretView, Seed};
use serde_json::{Value, json};

use crate::{
    cast::{arn, of_user},
    producer::{
        CANARY, assert_failed, calls_of, claim_of, claims, create, drains, drains_but, entry, failed, leave, once,
        storing, until_drained, until_value, versions, waiting, yard, yard_of, yard_with,
    },
    support::{Stage, stderr, stdout, until},
};

const NONE: [&str; 0] = [];
const HASH: &str = "0a2f6ba7b3d4973643557c2bbae4f2f717b3f1d1baf8d730db9272ae6d4824ab";

/// The calls so far, each with the name below the prefix, and the error if it was one.
fn sequence(stage: &Stage) -> Vec<String> {
    let said = |call: &keytide_emulator::Request| {
        let name = call.secret_ids.concat();
        let outcome = if call.outcome == "200" { String::new() } else { format!(" {}", call.outcome) };
        format!("{} {}{outcome}", call.action, name.strip_prefix("app/").unwrap_or(&name))
    };
    calls_of(stage).iter().map(said).collect()
}

/// Leaves one entry, which is stored; the calls that it took.
#[track_caller]
fn does(stage: &Stage, entry: impl AsRef<[u8]>) -> Vec<String> {
    stage.aws.clear_requests();
    leave(stage, "1.json", entry);
    drains(stage);
    sequence(stage)
}

/// Leaves one entry, which fails; the calls that it took.
#[track_caller]
fn fails(stage: &Stage, entry: impl AsRef<[u8]>, reason: &str, parts: &[&str]) -> Vec<String> {
    stage.aws.clear_requests();
    leave(stage, "1.json", entry);
    drains_but(stage, &[("1.json", reason, parts)]);
    let calls = sequence(stage);
    assert!(crate::producer::spool(stage, &["discard", "--all"]).status.success());
    calls
}

fn rename(from: &str, to: &str) -> String {
    entry("rename", from, &json!({"new_alias": to}))
}

fn rotate(alias: &str, value: &str) -> String {
    entry("rotate", alias, &json!({"value": value}))
}

fn rotate_to(from: &str, to: &str, value: &str) -> String {
    entry("rotate", from, &json!({"new_alias": to, "value": value}))
}

fn delete(alias: &str) -> String {
    entry("delete", alias, &json!({}))
}

fn secret(stage: &Stage, alias: &str) -> SecretView {
    stage.aws.secret(&format!("app/{alias}")).unwrap_or_else(|| panic!("no secret {alias}"))
}

fn value(stage: &Stage, alias: &str) -> String {
    stage.aws.value(&format!("app/{alias}")).unwrap_or_default()
}

fn tags(secret: &SecretView) -> Vec<(&str, &str)> {
    secret.tags.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

fn is_scheduled(stage: &Stage, alias: &str) -> bool {
    secret(stage, alias).scheduled_for_deletion
}

/// LiteLLM's settings, of keytide's own nothing but the spool.
fn litellm(settings: &str) -> Stage {
    litellm_of("key_management_system: aws_secret_manager", &format!("store_virtual_keys: true\n{settings}"))
}

fn litellm_of(system: &str, settings: &str) -> Stage {
    let stage = Stage::with(Seed::default().secret("A", "1"));
    stage.make_directory("spool", 0o1733);
    stage.config("spool: {directory: \"{dir}/spool\"}\nrefresh: {call_timeout: 2s}\noutputs:\n  - env_file: {path: \"{dir}/env/keys.json\", format: json}");
    let ours = stage.read("keytide.yaml");
    let hosted = if settings.contains("hosted_keys") { "" } else { "hosted_keys: []\n" };
    let settings: String = format!("{hosted}{settings}").lines().map(|line| format!("    {line}\n")).collect();
    stage.write("keytide.yaml", format!("general_settings:\n  {system}\n  key_management_settings:\n{settings}{ours}"));
    stage
}

/// What the first call says beside the name and the token.
fn sent(stage: &Stage) -> Value {
    let mut sent = calls_of(stage).remove(0).parameters;
    let members = sent.as_object_mut().unwrap();
    members.remove("ClientRequestToken");
    members.remove("Name");
    sent
}

// --- the vectors

/// W01.
#[test]
fn a_new_key_is_one_call_with_its_value_as_it_is() {
    let stage = litellm("");
    assert_eq!(does(&stage, create("my-key", "sk-abc123")), ["CreateSecret litellm/my-key"]);
    assert_eq!(sent(&stage), json!({}));
    assert_eq!(stage.aws.value("litellm/my-key").as_deref(), Some("sk-abc123"));
}

/// W02.
#[test]
fn a_key_without_alias_is_called_virtual_key_and_its_hash() {
    for alias in [json!(null), json!("")] {
        let stage = litellm("");
        let entry = json!({"op": "create", "alias": alias, "value": "sk-abc123"}).to_string();
        assert_eq!(does(&stage, entry), [format!("CreateSecret litellm/virtual-key-{HASH}")]);
    }
}

/// W03: what AWS refuses is refused by the configuration.
#[test]
fn a_prefix_of_litellm_gets_its_slash_or_is_refused() {
    for (prefix, name) in [
        ("team-a", "team-a/k"),
        ("/abs", "/abs/k"),
        ("a/b", "a/b/k"),
        ("litellm//", "litellm/k"),
        ("team-a/", "team-a/k"),
    ] {
        let stage = litellm(&format!("prefix_for_stored_virtual_keys: \"{prefix}\""));
        assert_eq!(does(&stage, create("k", "v")), [format!("CreateSecret {name}")]);
    }
    for prefix in ["", "/", "with space", "//", "a/../b"] {
        let stage = litellm(&format!("prefix_for_stored_virtual_keys: \"{prefix}\""));
        leave(&stage, "1.json", create("k", "v"));
        let (code, log) = once(&stage);
        assert_eq!(code, Some(64), "{prefix:?}: {log}");
        assert!(log.contains("prefix_for_stored_virtual_keys") && log.contains("expected a prefix"), "{log}");
        assert_eq!(waiting(&stage), ["1.json"]);
    }
}

/// W04: what AWS would refuse fails before the call, and says so.
#[test]
fn an_alias_is_used_as_it_is_or_fails_with_a_metric() {
    for alias in ["team/a", "-", "a@b.c+d=e", &"n".repeat(300)] {
        let stage = litellm("");
        assert_eq!(does(&stage, create(alias, "v")), [format!("CreateSecret litellm/{alias}")]);
    }
    let stage = litellm("");
    let daemon = stage.run();
    let bad = ["/lead", "a b", "\u{43a}\u{43b}\u{44e}\u{447}-\u{2713}", "  pad  ", "..", "../x", "a:b", "x//y"];
    for (n, alias) in bad.iter().enumerate() {
        leave(&stage, &format!("{n}.json"), create(alias, CANARY));
    }
    until("all to fail", || failed(&stage).len() == bad.len());
    let what: &[&str] = &["alias: expected the name of a secret: 1 to 512"];
    let files: Vec<String> = (0..bad.len()).map(|n| format!("{n}.json")).collect();
    let expected: Vec<(&str, &str, &[&str])> = files.iter().map(|file| (file.as_str(), "malformed", what)).collect();
    assert_failed(&stage, &expected);
    until("the metric", || daemon.metric("keytide_spool_failed_total", &["malformed"]) == 8.0);
    assert_eq!(sequence(&stage), NONE);
}

/// W05, W05b.
#[test]
fn description_key_and_tags_go_with_the_one_call() {
    let stage = litellm(
        "description: Keys of LiteLLM\nkms_key_id: alias/my-cmk\ntags: {Environment: Prod, Owner: \"AI Platform team\"}",
    );
    assert_eq!(does(&stage, create("k", "v")), ["CreateSecret litellm/k"]);
    let expected = json!({
        "Description": "Keys of LiteLLM",
        "KmsKeyId": "alias/my-cmk",
        "Tags": [{"Key": "Environment", "Value": "Prod"}, {"Key": "Owner", "Value": "AI Platform team"}],
    });
    assert_eq!(sent(&stage), expected);
    let stage = litellm("description: \"\"\nkms_key_id: \"\"\ntags: {}");
    assert_eq!(does(&stage, create("k", "v")), ["CreateSecret litellm/k"]);
    assert_eq!(sent(&stage), json!({}));
}

/// W06, W06b.
#[test]
fn replicas_go_with_the_one_call_and_the_own_region_is_none() {
    let stage = litellm("replica_regions: [us-west-2, eu-west-1]");
    assert_eq!(does(&stage, create("k", "v")), ["CreateSecret litellm/k"]);
    assert_eq!(sent(&stage), json!({"AddReplicaRegions": [{"Region": "eu-west-1"}, {"Region": "us-west-2"}]}));
    let stage = litellm("replica_regions: [us-east-1]");
    leave(&stage, "1.json", create("k", "v"));
    let (code, log) = once(&stage);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("no replica"), "{log}");
    assert_eq!(sent(&stage), json!({}));
}

/// W07.
#[test]
fn virtual_keys_are_stored_whatever_the_access_mode_says() {
    for mode in ["read_only", "write_only", "read_and_write"] {
        let stage = litellm(&format!("access_mode: {mode}"));
        leave(&stage, "1.json", create("k", "v"));
        let (code, log) = once(&stage);
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(stage.aws.value("litellm/k").as_deref(), Some("v"));
        assert_eq!(log.contains("although this says read_only"), mode == "read_only", "{mode}: {log}");
    }
}

/// W08, W19.
#[test]
fn nothing_is_written_unless_virtual_keys_are_to_be_stored_by_a_system() {
    let system = "key_management_system: aws_secret_manager";
    for (system, settings) in [
        (system, "store_virtual_keys: false\nhosted_keys: [A]"),
        (system, "store_virtual_keys: false\naccess_mode: write_only"),
        (system, "hosted_keys: [A]"),
        ("master_key: sk-1", "store_virtual_keys: true\nhosted_keys: [A]"),
    ] {
        let stage = litellm_of(system, settings);
        leave(&stage, "1.json", create("k", CANARY));
        let (code, log) = once(&stage);
        // With a hosted key there is something to do.
        let reads = settings.contains("hosted_keys: [A]") && system.contains("system");
        assert_eq!(code, Some(if reads { 0 } else { 64 }), "{system}, {settings}: {log}");
        assert_eq!(waiting(&stage), ["1.json"]);
        assert!(sequence(&stage).iter().all(|call| call == "GetSecretValue A"), "{:?}", sequence(&stage));
    }
}

/// W09: a bug of LiteLLM (3.7), which keeps the old value and says nothing.
#[test]
fn creating_a_live_name_stores_the_new_value() {
    let stage = yard_with("rate: none", "");
    stage.aws.put("app/k", "sk-one");
    stage.aws.set_metadata("app/k", Some("theirs"), &[("a", "b")]);
    assert_eq!(does(&stage, create("k", "sk-two")), ["CreateSecret k ResourceExistsException", "PutSecretValue k"]);
    assert_eq!(value(&stage, "k"), "sk-two");
    let secret = secret(&stage, "k");
    assert_eq!((secret.description.as_deref(), tags(&secret)), (Some("theirs"), vec![("a", "b")]));
    assert_eq!(secret.versions.len(), 2);
}

const SETTINGS: &str = "rate: none, description: ours, kms_key_id: alias/ours, tags: {team: core, env: prod}, replica_regions: [eu-west-1]";
const RESTORED: [&str; 4] =
    ["CreateSecret k InvalidRequestException", "DescribeSecret k", "RestoreSecret k", "PutSecretValue k"];

fn scheduled(stage: &Stage, alias: &str) {
    let name = format!("app/{alias}");
    stage.aws.put(&name, "sk-one");
    stage.aws.set_metadata(&name, Some("old"), &[("team", "old"), ("gone", "x")]);
    stage.aws.schedule_deletion(&name);
}

fn assert_as_settings(stage: &Stage, alias: &str) {
    let secret = secret(stage, alias);
    assert_eq!(secret.description.as_deref(), Some("ours"));
    assert_eq!(secret.kms_key_id.as_deref(), Some("alias/ours"));
    assert_eq!(tags(&secret), [("env", "prod"), ("team", "core")]);
    assert_eq!(secret.replicas.iter().collect::<Vec<_>>(), ["eu-west-1"]);
    assert!(!secret.scheduled_for_deletion);
}

/// W10.
#[test]
fn a_name_that_is_scheduled_for_deletion_is_restored_and_made_what_the_settings_say() {
    let stage = yard_with(SETTINGS, "");
    scheduled(&stage, "k");
    let calls = does(&stage, create("k", "sk-two"));
    let all =
        [&RESTORED[..], &["UpdateSecret k", "UntagResource k", "TagResource k", "ReplicateSecretToRegions k"]].concat();
    assert_eq!(calls, all);
    assert_eq!(value(&stage, "k"), "sk-two");
    assert_as_settings(&stage, "k");
    // What is equal is not written again.
    stage.aws.schedule_deletion("app/k");
    // A secret with replicas cannot be scheduled through the API, but may be found so.
    assert_eq!(does(&stage, create("k", "sk-three")), RESTORED);
    // Only what differs.
    stage.aws.tag("app/k", "more", "x");
    stage.aws.schedule_deletion("app/k");
    assert_eq!(does(&stage, create("k", "sk-four")), [&RESTORED[..], &["UntagResource k"]].concat());
    stage.aws.set_kms_key("app/k", None);
    stage.aws.schedule_deletion("app/k");
    assert_eq!(does(&stage, create("k", "sk-five")), [&RESTORED[..], &["UpdateSecret k"]].concat());
    assert_as_settings(&stage, "k");
    assert_eq!(secret(&stage, "k").versions.len(), 5);
}

#[test]
fn a_restored_secret_loses_what_nobody_gives_it() {
    let stage = yard();
    scheduled(&stage, "k");
    stage.aws.set_kms_key("app/k", Some("alias/theirs"));
    assert_eq!(does(&stage, create("k", "v")), [&RESTORED[..], &["UpdateSecret k", "UntagResource k"]].concat());
    let secret = secret(&stage, "k");
    assert_eq!((secret.description.as_ref(), secret.kms_key_id.as_ref(), tags(&secret)), (None, None, vec![]));
}

#[test]
fn a_process_killed_while_it_restores_leaves_the_rest_to_the_next() {
    for (action, skip) in [
        ("PutSecretValue", 0),
        ("UpdateSecret", 0),
        ("UntagResource", 0),
        ("TagResource", 0),
        ("ReplicateSecretToRegions", 0),
    ] {
        let stage = yard_with(SETTINGS, "");
        scheduled(&stage, "k");
        stage.aws.fault(Fault::on(action).skip(skip).kind(FaultKind::Hang));
        let mut daemon = stage.run();
        leave(&stage, "1.json", create("k", "sk-two"));
        let token = claim_of(&stage, "1.json");
        until(action, || stage.aws.count(action) == 1);
        daemon.kill();
        assert!(claims(&stage).contains(&format!("{token}~1.json")), "{:?}", claims(&stage));
        stage.aws.clear_faults();
        drains(&stage);
        assert_eq!(value(&stage, "k"), "sk-two", "{action}");
        assert_as_settings(&stage, "k");
        assert_eq!(versions(&stage, "app/k").len(), 2, "{action}");
        assert_eq!(versions(&stage, "app/k")[1], token, "{action}");
        assert_eq!(claims(&stage), NONE);
    }
}

#[test]
fn a_restored_secret_whose_value_is_refused_does_not_stay_live_with_the_old_value_unnoticed() {
    let stage = yard();
    scheduled(&stage, "k");
    stage.aws.fault(Fault::on("PutSecretValue").times(2).kind(FaultKind::InternalError));
    assert_eq!(does(&stage, create("k", "v")).iter().filter(|call| call.starts_with("RestoreSecret")).count(), 1);
    assert_eq!(value(&stage, "k"), "v");
    assert_eq!(secret(&stage, "k").description, None);
}

/// W11.
#[test]
fn a_rotation_is_one_call_and_touches_nothing_else() {
    let stage = yard_with(SETTINGS, "");
    stage.aws.put("app/k", "sk-one");
    stage.aws.set_metadata("app/k", Some("theirs"), &[("a", "b")]);
    assert_eq!(does(&stage, rotate("k", "sk-two")), ["PutSecretValue k"]);
    assert_eq!(value(&stage, "k"), "sk-two");
    let secret = secret(&stage, "k");
    assert_eq!((secret.description.as_deref(), tags(&secret)), (Some("theirs"), vec![("a", "b")]));
    // Rotation to the same name is one.
    assert_eq!(does(&stage, rotate_to("k", "k", "sk-three")), ["PutSecretValue k"]);
    assert_eq!(secret.versions.len(), 2);
    assert!(!is_scheduled(&stage, "k"));
}

/// W12, W15: a bug of LiteLLM (0.9): the new secret has no tags, and the description of somebody else. The old one's
/// replicas are in the way of its end (3.7).
#[test]
fn a_rotation_to_a_new_name_keeps_tags_and_description_and_the_old_one_goes_with_its_replicas() {
    for to in ["k2", "k9"] {
        let stage = yard_with(
            "rate: none, description: ours, kms_key_id: alias/ours, tags: {team: core}, replica_regions: [eu-west-1]",
            "",
        );
        does(&stage, create("k", "sk-one"));
        stage.aws.set_metadata("app/k", Some("theirs"), &[("a", "b"), ("team", "other")]);
        let calls = does(&stage, rotate_to("k", to, "sk-two"));
        assert_eq!(calls[..2], ["DescribeSecret k".to_owned(), format!("CreateSecret {to}")]);
        assert_eq!(calls[2..], ["DescribeSecret k", "RemoveRegionsFromReplication k", "DeleteSecret k"]);
        let new = secret(&stage, to);
        assert_eq!((new.description.as_deref(), tags(&new)), (Some("theirs"), vec![("a", "b"), ("team", "other")]));
        assert_eq!(new.kms_key_id.as_deref(), Some("alias/ours"));
        assert_eq!(new.replicas.iter().collect::<Vec<_>>(), ["eu-west-1"]);
        assert_eq!(value(&stage, to), "sk-two");
        assert!(is_scheduled(&stage, "k"));
    }
}

/// W13, W13b: a bug of LiteLLM (3.7), which loses the second rotation.
#[test]
fn a_key_without_alias_is_rotated_again_and_again() {
    let stage = yard();
    let hashes = [
        "virtual-key-8ff1ea1e82b0c13d9bbd2a5e2d8dda4c9f4a4b7d3f0f6f8a2a7d8f0b9d9d5a0e",
        "virtual-key-0000000000000000000000000000000000000000000000000000000000000000",
    ];
    let unnamed = |value: &str| json!({"op": "create", "value": value}).to_string();
    does(&stage, unnamed("sk-one"));
    let first = stage.aws.names().remove(0);
    let again =
        |old: &str, value: &str| json!({"op": "rotate", "name": old, "new_alias": "", "value": value}).to_string();
    does(&stage, again(&first, "sk-two"));
    let second = stage.aws.names().into_iter().find(|name| *name != first).unwrap();
    does(&stage, again(&second, "sk-three"));
    let third = stage.aws.names().into_iter().find(|name| ![&first, &second].contains(&name)).unwrap();
    assert_eq!(stage.aws.value(&third).as_deref(), Some("sk-three"));
    assert!(stage.aws.secret(&first).unwrap().scheduled_for_deletion);
    assert!(stage.aws.secret(&second).unwrap().scheduled_for_deletion);
    assert!(!stage.aws.secret(&third).unwrap().scheduled_for_deletion);
    // As LiteLLM asks for it: under a name that never was.
    for hash in hashes {
        assert_eq!(
            does(&stage, rotate(hash, "sk-four")),
            [format!("PutSecretValue {hash} ResourceNotFoundException"), format!("CreateSecret {hash}"),]
        );
        assert_eq!(value(&stage, hash), "sk-four");
    }
}

/// W14, W14b, W14c.
#[test]
fn a_rotation_stores_the_value_whatever_is_there() {
    let stage = yard_with(SETTINGS, "");
    assert_eq!(does(&stage, rotate("k", "v")), ["PutSecretValue k ResourceNotFoundException", "CreateSecret k"]);
    assert_as_settings(&stage, "k");
    let calls = does(&stage, rotate_to("absent", "new", "v"));
    assert_eq!(calls.last().unwrap(), "CreateSecret new");
    assert!(calls.iter().all(|call| call == "CreateSecret new" || call.starts_with("DescribeSecret ")), "{calls:?}");
    assert_eq!(value(&stage, "new"), "v");
    assert_as_settings(&stage, "new");
    // Onto a live name.
    let stage = yard();
    stage.aws.put("app/old", "old");
    stage.aws.put("app/live", "live");
    assert_eq!(
        does(&stage, rotate_to("old", "live", "new")),
        [
            "DescribeSecret old",
            "CreateSecret live ResourceExistsException",
            "PutSecretValue live",
            "DescribeSecret live",
            "DescribeSecret old",
            "DeleteSecret old"
        ]
    );
    assert_eq!(value(&stage, "live"), "new");
    assert!(is_scheduled(&stage, "old") && !is_scheduled(&stage, "live"));
    // A rotation of what is scheduled for deletion.
    assert_eq!(
        does(&stage, rotate("old", "again")),
        ["PutSecretValue old InvalidRequestException", "DescribeSecret old", "RestoreSecret old", "PutSecretValue old"]
    );
    assert_eq!(value(&stage, "old"), "again");
}

/// W16, W16e: a bug of LiteLLM (0.9): a rename drops tags and description.
#[test]
fn a_rename_reads_once_and_keeps_value_tags_and_description() {
    let stage = yard_with("rate: none, description: ours, tags: {team: core}", "");
    for from in ["k", "virtual-key-0a2f6ba7"] {
        stage.aws.put(&format!("app/{from}"), "sk-one");
        stage.aws.set_metadata(&format!("app/{from}"), Some("theirs"), &[("a", "b")]);
        let to = format!("{from}-new");
        let calls = does(&stage, rename(from, &to));
        assert_eq!(
            calls,
            // Looked at again, so that nothing goes that somebody wrote to the old name meanwhile.
            [
                format!("DescribeSecret {from}"),
                format!("GetSecretValue {from}"),
                format!("CreateSecret {to}"),
                format!("DescribeSecret {from}"),
                format!("DeleteSecret {from}"),
            ]
        );
        let new = secret(&stage, &to);
        assert_eq!(value(&stage, &to), "sk-one");
        assert_eq!((new.description.as_deref(), tags(&new)), (Some("theirs"), vec![("a", "b")]));
        assert!(is_scheduled(&stage, from));
    }
}

#[test]
fn a_rename_with_tags_or_a_description_of_its_own_sets_those() {
    let stage = yard_with("rate: none, tags: {team: core}", "allow: {description: true, tag_keys: [c]}");
    stage.aws.put("app/k", "v");
    stage.aws.set_metadata("app/k", Some("theirs"), &[("a", "b")]);
    does(&stage, entry("rename", "k", &json!({"new_alias": "k2", "description": "new"})));
    let new = secret(&stage, "k2");
    assert_eq!((new.description.as_deref(), tags(&new)), (Some("new"), vec![("a", "b")]));
    does(&stage, entry("rename", "k2", &json!({"new_alias": "k3", "tags": {"c": "d"}})));
    let new = secret(&stage, "k3");
    assert_eq!((new.description.as_deref(), tags(&new)), (Some("new"), vec![("c", "d"), ("team", "core")]));
}

/// W16b, W16c, W16d.
#[test]
fn a_rename_to_the_same_name_or_of_what_is_not_there_fails() {
    let stage = yard();
    stage.aws.put("app/k", "v");
    assert_eq!(fails(&stage, rename("k", "k"), "malformed", &["new_name"]), NONE);
    assert_eq!(
        fails(&stage, entry("rename", "k", &json!({})), "malformed", &["new_name or new_alias is required"]),
        NONE
    );
    let calls = fails(&stage, rename("absent", "k2"), "absent", &["app/absent", "app/k2"]);
    assert!(calls.iter().all(|call| call.starts_with("DescribeSecret ")), "{calls:?}");
    stage.aws.schedule_deletion("app/k");
    let calls = fails(&stage, rename("k", "k2"), "absent", &["app/k"]);
    assert!(calls.iter().all(|call| call.starts_with("DescribeSecret ")), "{calls:?}");
    assert!(is_scheduled(&stage, "k"));
    assert_eq!(stage.aws.names(), ["app/k"]);
}

#[test]
fn a_rename_onto_a_live_or_a_scheduled_name_takes_it_over() {
    let stage = yard();
    for to in ["live", "scheduled"] {
        stage.aws.put("app/k", "moved");
        stage.aws.restore("app/k");
        stage.aws.set_metadata("app/k", Some("theirs"), &[("a", "b")]);
        scheduled(&stage, to);
        if to == "live" {
            stage.aws.restore("app/live");
        }
        let calls = does(&stage, rename("k", to));
        let new = secret(&stage, to);
        assert_eq!(value(&stage, to), "moved");
        assert_eq!((new.description.as_deref(), tags(&new)), (Some("theirs"), vec![("a", "b")]), "{calls:?}");
        assert!(is_scheduled(&stage, "k") && !new.scheduled_for_deletion);
        assert_eq!(calls.last().unwrap(), "DeleteSecret k");
        let first = if to == "live" { "ResourceExistsException" } else { "InvalidRequestException" };
        assert_eq!(
            calls[..3],
            ["DescribeSecret k".to_owned(), "GetSecretValue k".to_owned(), format!("CreateSecret {to} {first}")]
        );
    }
}

#[test]
fn a_move_that_is_cut_off_at_any_step_is_finished_by_the_next_process() {
    let steps = ["DescribeSecret", "GetSecretValue", "CreateSecret", "RemoveRegionsFromReplication", "DeleteSecret"];
    for renames in [true, false] {
        for action in steps {
            for done in [false, true] {
                if action == "GetSecretValue" && !renames {
                    continue;
                }
                let stage = yard_with("rate: none, replica_regions: [eu-west-1]", "");
                does(&stage, create("k", "old"));
                stage.aws.set_metadata("app/k", Some("theirs"), &[("a", "b")]);
                stage.aws.clear_requests();
                let cut = if done { FaultKind::CutAfter(0) } else { FaultKind::Hang };
                stage.aws.fault(Fault::on(action).times(1).kind(cut));
                let (entry, value_after) =
                    if renames { (rename("k", "k2"), "old") } else { (rotate_to("k", "k2", "new"), "new") };
                let mut daemon = stage.run();
                leave(&stage, "1.json", entry);
                until(action, || stage.aws.count(action) >= 1);
                std::thread::sleep(Duration::from_millis(50));
                daemon.kill();
                stage.aws.clear_faults();
                drains(&stage);
                let said = format!("{action}, {done}: {:?}", sequence(&stage));
                assert_eq!(value(&stage, "k2"), value_after, "{said}");
                let new = secret(&stage, "k2");
                assert_eq!((new.description.as_deref(), tags(&new)), (Some("theirs"), vec![("a", "b")]), "{said}");
                assert_eq!(new.versions.len(), 1, "{said}");
                assert_eq!(new.replicas.len(), 1, "{said}");
                assert!(is_scheduled(&stage, "k"), "{said}");
            }
        }
    }
}

#[test]
fn a_binary_secret_keeps_its_bytes_when_it_is_renamed() {
    let stage = yard();
    let bytes: Vec<u8> = (0..=255).collect();
    stage.aws.put_binary("app/k", &bytes);
    let before = secret(&stage, "k").versions.remove(0).value;
    does(&stage, rename("k", "k2"));
    assert_eq!(secret(&stage, "k2").versions.remove(0).value, before);
    assert_eq!(stage.aws.value("app/k2"), None, "still no text");
}

/// W17, W17b: a bug of LiteLLM (3.7): keys without an alias are never deleted.
#[test]
fn a_delete_is_one_call_also_of_a_key_without_alias() {
    let stage = yard();
    for alias in ["k", &format!("virtual-key-{HASH}")] {
        stage.aws.put(&format!("app/{alias}"), "v");
        assert_eq!(does(&stage, delete(alias)), [format!("DeleteSecret {alias}")]);
        assert_eq!(
            calls_of(&stage)[0].parameters,
            json!({"SecretId": format!("app/{alias}"), "RecoveryWindowInDays": 7})
        );
        assert!(is_scheduled(&stage, alias));
    }
}

/// W18, W18b, W18c: a bug of LiteLLM (0.9): one delete that fails ends the others.
#[test]
fn a_delete_of_what_is_gone_succeeds_and_one_that_fails_keeps_no_other_from_it() {
    let stage = yard();
    for alias in ["a", "c", "owned"] {
        stage.aws.put(&format!("app/{alias}"), "v");
    }
    stage.aws.put("app/d", "v");
    stage.aws.schedule_deletion("app/d");
    stage.aws.set_owner("app/owned", Some("rds"));
    for (n, alias) in ["a", "b", "owned", "", "c", "d"].iter().enumerate() {
        leave(&stage, &format!("{n}.json"), delete(alias));
    }
    drains_but(
        &stage,
        &[
            ("2.json", "not_ours", &["app/owned", "managed by another service"]),
            ("3.json", "malformed", &["name or alias is required"]),
        ],
    );
    assert!(is_scheduled(&stage, "a") && is_scheduled(&stage, "c") && is_scheduled(&stage, "d"));
    assert!(!is_scheduled(&stage, "owned"));
    assert_eq!(sequence(&stage).iter().filter(|call| call.starts_with("DeleteSecret d")).count(), 1);
}

/// W20, W20b, W20c: a bug of LiteLLM (3.7): only the first call goes to the team's region.
#[test]
fn all_calls_of_a_teams_entry_go_to_the_teams_region() {
    let role = arn("team");
    let teams = format!("teams: [{{aws_role_name: \"{role}\", aws_region_name: eu-west-1}}]");
    let stage = yard_of(Seed::default().role(of_user("team")), "rate: none, replica_regions: [us-west-2]", &teams);
    let with = |op: &str, alias: &str, more: Value| {
        let mut more = more;
        more["team"] = json!({"aws_role_name": role, "aws_region_name": "eu-west-1"});
        entry(op, alias, &more)
    };
    for (entry, least) in [
        (with("create", "k", json!({"value": "1"})), 1),
        (with("create", "k", json!({"value": "2"})), 2),
        (with("rename", "k", json!({"new_alias": "k2"})), 5),
        (with("create", "k", json!({"value": "3"})), 4),
        (with("rotate", "k", json!({"new_alias": "k3", "value": "4"})), 4),
        (with("delete", "k3", json!({})), 2),
    ] {
        let calls = does(&stage, entry);
        assert!(calls.len() >= least, "{calls:?}");
        for call in calls_of(&stage) {
            assert_eq!(call.region.as_deref(), Some("eu-west-1"), "{call:?}");
        }
    }
    assert_eq!(stage.aws.names(), NONE);
    assert_eq!(stage.aws.secret_in("eu-west-1", "app/k2").unwrap().staged("AWSCURRENT").unwrap().value, "2");
}

/// W21.
#[test]
fn what_aws_cannot_do_now_is_tried_again_until_it_can() {
    let denied =
        || FaultKind::Error { code: "AccessDeniedException".to_owned(), status: 400, message: CANARY.to_owned() };
    let kms = FaultKind::Error { code: "EncryptionFailure".to_owned(), status: 400, message: CANARY.to_owned() };
    for (kind, reason) in [
        (FaultKind::Throttle, "throttled"),
        (FaultKind::InternalError, "unavailable"),
        (FaultKind::Hang, "unavailable"),
        (denied(), "denied"),
        (kms, ""),
        (FaultKind::EchoValue, "denied"),
    ] {
        let stage = yard();
        stage.aws.fault(Fault::on("CreateSecret").times(1).kind(kind));
        let daemon = stage.run();
        leave(&stage, "1.json", create("k", CANARY));
        until_value(&stage, &daemon, "app/k", CANARY);
        until_drained(&stage);
        assert_eq!(failed(&stage), []);
        assert_eq!(versions(&stage, "app/k").len(), 1);
        assert!(daemon.metric("keytide_spool_retries_total", &[reason]) >= 1.0, "{reason}");
        assert!(!daemon.log().contains(CANARY), "{}", daemon.log());
    }
}

/// W22.
#[test]
fn two_rotations_that_wait_are_one_write() {
    let stage = yard();
    stage.aws.put("app/k", "sk-one");
    leave(&stage, "1.json", rotate("k", "sk-two"));
    leave(&stage, "2.json", rotate("k", "sk-two"));
    drains(&stage);
    assert_eq!(sequence(&stage), ["PutSecretValue k"]);
}

/// M01: a bug of LiteLLM (3.7): what is replicated can never be deleted.
#[test]
fn replicas_are_removed_and_awaited_before_a_secret_is_deleted() {
    let stage = yard_with("rate: none, replica_regions: [eu-west-1, us-west-2]", "");
    does(&stage, create("k", "v"));
    assert_eq!(
        does(&stage, delete("k")),
        [
            "DeleteSecret k InvalidParameterException",
            "DescribeSecret k",
            "RemoveRegionsFromReplication k",
            "DeleteSecret k"
        ]
    );
    assert!(is_scheduled(&stage, "k"));
    // It takes AWS a while.
    does(&stage, create("slow", "v"));
    stage.aws.set_slow_replication(2);
    let calls = does(&stage, delete("slow"));
    assert!(is_scheduled(&stage, "slow"), "{calls:?}");
    assert_eq!(calls.last().unwrap(), "DeleteSecret slow");
    assert_eq!(
        calls.iter().filter(|call| call.starts_with("DeleteSecret slow")).count(),
        2,
        "not tried before they are gone: {calls:?}"
    );
    // Renamed away as well.
    stage.aws.set_slow_replication(0);
    does(&stage, create("r", "v"));
    stage.aws.set_slow_replication(2);
    does(&stage, rename("r", "r2"));
    assert!(is_scheduled(&stage, "r"));
    assert_eq!(value(&stage, "r2"), "v");
    assert_eq!(versions(&stage, "app/r2").len(), 1);
}

// --- what is not ours

#[test]
fn a_secret_of_another_service_is_left_alone() {
    for alias in ["owned", "replica"] {
        let stage = yard();
        stage.aws.put("app/mine", "mine");
        let name = format!("app/{alias}");
        stage.aws.put(&name, "theirs");
        if alias == "owned" {
            stage.aws.set_owner(&name, Some("rds"));
        } else {
            stage.aws.set_primary_region(&name, Some("eu-west-1"));
        }
        for entry in [
            create(alias, CANARY),
            rotate(alias, CANARY),
            delete(alias),
            rename(alias, "new"),
            rotate_to(alias, "new", CANARY),
            rename("mine", alias),
            rotate_to("mine", alias, CANARY),
        ] {
            let what = if alias == "owned" {
                "managed by another service"
            } else {
                "the replica of a secret of another region"
            };
            let calls = fails(&stage, &entry, "not_ours", &[&name, what]);
            assert!(!calls.is_empty());
            assert_eq!(stage.aws.value(&name).as_deref(), Some("theirs"), "{entry}");
            assert_eq!(versions(&stage, &name).len(), 1);
            assert_eq!(value(&stage, "mine"), "mine");
            assert!(!is_scheduled(&stage, "mine") && !is_scheduled(&stage, alias), "{entry}");
            assert_eq!(stage.aws.secret("app/new"), None, "{entry}");
        }
    }
}

#[test]
fn a_request_that_aws_refuses_for_good_fails_and_passes_no_word_of_it_on() {
    let stage = yard();
    let kind =
        FaultKind::Error { code: "InvalidParameterException".to_owned(), status: 400, message: CANARY.to_owned() };
    stage.aws.fault(Fault::on("CreateSecret").kind(kind));
    fails(&stage, create("k", CANARY), "refused", &["CreateSecret", "app/k", "InvalidParameterException"]);
    stage.aws.clear_faults();
    does(&stage, create("k", CANARY));
}

#[test]
fn reads_that_lag_behind_do_not_make_a_secret_absent() {
    let stage = yard();
    stage.aws.put("app/k", "v");
    let kind = FaultKind::Error { code: "ResourceNotFoundException".to_owned(), status: 400, message: String::new() };
    stage.aws.fault(Fault::on("DeleteSecret").times(1).kind(kind.clone()));
    let calls = does(&stage, delete("k"));
    assert!(is_scheduled(&stage, "k"), "{calls:?}");
    stage.aws.put("app/r", "v");
    stage.aws.fault(Fault::on("DescribeSecret").times(1).kind(kind));
    does(&stage, rename("r", "r2"));
    assert_eq!(value(&stage, "r2"), "v");
    assert!(is_scheduled(&stage, "r"));
}

#[test]
fn new_secrets_have_a_limit_an_hour_and_those_that_are_there_have_none() {
    let stage = yard_with("rate: none, max_new_secrets_per_hour: 2", "");
    stage.aws.put("app/there", "0");
    for n in 0..4 {
        leave(&stage, &format!("{n}.json"), create(&format!("k{n}"), "v"));
    }
    leave(&stage, "9.json", create("there", "1"));
    let output = stage.once_within("4s");
    let log = stdout(&output) + &stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("max_new_secrets_per_hour") && log.contains("2 entries are left"), "{log}");
    assert_eq!(stage.aws.names(), ["app/k0", "app/k1", "app/there"]);
    assert_eq!(value(&stage, "there"), "1");
    // They are not lost.
    storing(&stage, "rate: none, max_new_secrets_per_hour: none", "", "");
    drains(&stage);
    assert_eq!(stage.aws.names().len(), 5);
}
