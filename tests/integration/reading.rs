//! What is read, with which calls, and what becomes of it.

use std::{collections::BTreeMap, fs};

use keytide_emulator::{Fault, FaultKind, Statement};
use serde_json::{Value, json};

use crate::support::{ACCESS_KEY_ID, Stage, block, stderr, stdout, until};

const SELDOM: &str = "interval: 700h, call_timeout: 5s";

/// A configuration whose keys are these lines.
fn keys(lines: &[String]) -> String {
    block(SELDOM, &format!("keys:\n{}", lines.iter().map(|line| format!("  - {line}\n")).collect::<String>()))
}

/// A stage with so many secrets of their own, each a key.
fn separate(count: usize) -> Stage {
    let stage = Stage::new();
    let mut lines = Vec::new();
    for i in 0..count {
        stage.aws.put(&format!("prod/s{i}"), &format!("value {i}"));
        lines.push(format!("{{name: K{i}, secret: prod/s{i}}}"));
    }
    stage.config(&keys(&lines));
    stage
}

fn expected(count: usize) -> Value {
    (0..count).map(|i| (format!("K{i}"), Value::from(format!("value {i}")))).collect::<serde_json::Map<_, _>>().into()
}

/// A configuration with LiteLLM's block beside ours.
fn litellm(stage: &Stage, settings: &str, rest: &str) {
    stage.config(&block(SELDOM, rest));
    let ours = stage.read("keytide.yaml");
    stage.write(
        "keytide.yaml",
        format!("general_settings:\n  key_management_system: custom\n  key_management_settings: {settings}\n{ours}"),
    );
}

/// Every call that AWS got, by its action.
fn calls(stage: &Stage) -> BTreeMap<String, usize> {
    let mut calls = BTreeMap::new();
    for request in stage.aws.requests() {
        *calls.entry(request.action).or_default() += 1;
    }
    calls
}

fn only(action: &str, count: usize) -> BTreeMap<String, usize> {
    BTreeMap::from([(action.to_owned(), count)])
}

#[track_caller]
fn complete(stage: &Stage) -> String {
    let output = stage.once();
    let log = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{log}");
    log
}

#[test]
fn hosted_keys_of_litellm_are_each_a_secret_of_their_name() {
    let stage = Stage::new();
    stage.aws.put("OPENAI_API_KEY", "sk-1");
    stage.aws.put("litellm_master_key", "sk-2");
    stage.aws.put("NOT_LISTED", "sk-3");
    litellm(&stage, r#"{hosted_keys: ["OPENAI_API_KEY", "litellm_master_key"]}"#, "");
    complete(&stage);
    assert_eq!(stage.values(), json!({"OPENAI_API_KEY": "sk-1", "litellm_master_key": "sk-2"}));
    assert_eq!(calls(&stage), only("GetSecretValue", 2));
}

#[test]
fn hosted_keys_of_litellm_with_a_primary_secret_are_its_members_and_cost_one_call() {
    let stage = Stage::new();
    stage.aws.put("app", r#"{"A": "1", "B": "2", "C": "3", "NOT_LISTED": "4"}"#);
    litellm(&stage, r#"{hosted_keys: ["A", "B", "C"], primary_secret_name: app}"#, "");
    complete(&stage);
    assert_eq!(stage.values(), json!({"A": "1", "B": "2", "C": "3"}));
    assert_eq!(calls(&stage), only("GetSecretValue", 1));
}

#[test]
fn a_primary_secret_of_litellm_without_hosted_keys_is_exported_whole() {
    let stage = Stage::new();
    stage.aws.put("app", r#"{"B": "2", "A": "1"}"#);
    litellm(&stage, "{primary_secret_name: app}", "");
    complete(&stage);
    assert_eq!(stage.values(), json!({"A": "1", "B": "2"}));
    assert_eq!(calls(&stage), only("GetSecretValue", 1));
}

#[test]
fn an_empty_list_of_hosted_keys_reads_nothing_of_litellm() {
    let stage = Stage::new();
    stage.aws.put("app", r#"{"A": "1"}"#);
    stage.aws.put("mine", "2");
    litellm(&stage, "{hosted_keys: [], primary_secret_name: app}", "keys: [{name: MINE, secret: mine}]");
    complete(&stage);
    assert_eq!(stage.values(), json!({"MINE": "2"}));
    let asked: Vec<String> = stage.aws.requests().into_iter().flat_map(|request| request.secret_ids).collect();
    assert_eq!(asked, ["mine"]);
}

#[test]
fn hosted_keys_left_out_without_a_primary_secret_read_nothing_and_a_notice_says_so() {
    let stage = Stage::new();
    stage.aws.put("mine", "2");
    litellm(&stage, "{store_virtual_keys: false}", "keys: [{name: MINE, secret: mine}]");
    let log = complete(&stage);
    assert!(log.contains("nothing is read"), "{log}");
    assert_eq!(calls(&stage), only("GetSecretValue", 1));
}

#[test]
fn the_keys_of_both_blocks_are_one_set() {
    let stage = Stage::new();
    stage.aws.put("app", r#"{"A": "1", "user": "me"}"#);
    stage.aws.put("other", "3");
    let rest = "keys:\n  - {name: DB_USER, member: user}\n  - {name: OTHER, secret: other}";
    litellm(&stage, r#"{hosted_keys: ["A"], primary_secret_name: app}"#, rest);
    complete(&stage);
    assert_eq!(stage.values(), json!({"A": "1", "DB_USER": "me", "OTHER": "3"}));
    assert_eq!(calls(&stage), only("GetSecretValue", 2));
}

#[test]
fn up_to_five_secrets_are_read_singly() {
    for count in [1, 5] {
        let stage = separate(count);
        complete(&stage);
        assert_eq!(stage.values(), expected(count));
        assert_eq!(calls(&stage), only("GetSecretValue", count), "{count} secrets");
    }
}

#[test]
fn more_secrets_are_read_twenty_in_a_call() {
    for count in [6, 20, 21, 45] {
        let stage = separate(count);
        complete(&stage);
        assert_eq!(stage.values(), expected(count));
        assert_eq!(calls(&stage), only("BatchGetSecretValue", count.div_ceil(20)), "{count} secrets");
    }
}

#[test]
fn an_unchanged_refresh_costs_the_same_calls_and_no_other() {
    let stage = separate(21);
    let daemon = stage.run();
    daemon.until_ready();
    daemon.hang_up();
    assert_eq!(calls(&stage), only("BatchGetSecretValue", 4));
}

#[test]
fn many_keys_of_one_secret_cost_one_call() {
    let stage = Stage::new();
    stage.aws.put("db", r#"{"user": "u", "password": "p", "host": "h"}"#);
    let of = |name: &str, member: &str| format!("{{name: {name}, secret: db, member: {member}}}");
    stage.config(&keys(&[of("U", "user"), of("P", "password"), of("P2", "password"), of("H", "host")]));
    complete(&stage);
    assert_eq!(stage.values(), json!({"U": "u", "P": "p", "P2": "p", "H": "h"}));
    assert_eq!(calls(&stage), only("GetSecretValue", 1));
}

#[test]
fn keys_with_a_version_stage_are_read_singly_beside_a_batch() {
    let stage = Stage::new();
    let mut lines = Vec::new();
    for i in 0..6 {
        stage.aws.put(&format!("s{i}"), "old");
        stage.aws.put(&format!("s{i}"), "new");
        lines.push(format!("{{name: K{i}, secret: s{i}}}"));
    }
    lines.push("{name: BEFORE, secret: s0, version_stage: AWSPREVIOUS}".to_owned());
    lines.push("{name: NOW, secret: s1, version_stage: AWSCURRENT}".to_owned());
    stage.config(&keys(&lines));
    complete(&stage);
    assert_eq!(stage.values()["BEFORE"], "old");
    assert_eq!(stage.values()["NOW"], "new");
    assert_eq!(stage.values()["K0"], "new");
    let expected = BTreeMap::from([("BatchGetSecretValue".to_owned(), 1), ("GetSecretValue".to_owned(), 2)]);
    assert_eq!(calls(&stage), expected);
}

#[test]
fn a_staging_label_of_ones_own_is_followed() {
    let stage = Stage::new();
    stage.aws.put("s", "current");
    stage.aws.put_stage("s", "candidate", "next");
    stage.config(&keys(&["{name: NEXT, secret: s, version_stage: candidate}".to_owned()]));
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(stage.values(), json!({"NEXT": "next"}));
    stage.aws.put_stage("s", "candidate", "later");
    daemon.hang_up();
    assert_eq!(stage.values(), json!({"NEXT": "later"}));
}

#[test]
fn secrets_may_be_named_by_their_arn_also_in_a_batch() {
    let stage = Stage::new();
    let mut lines = Vec::new();
    for i in 0..7 {
        stage.aws.put(&format!("prod/s{i}"), &format!("value {i}"));
        let arn = stage.aws.arn(&format!("prod/s{i}")).unwrap();
        // Whole, and without the six characters that AWS adds.
        let id = if i % 2 == 0 { arn } else { arn[..arn.len() - 7].to_owned() };
        lines.push(format!("{{name: K{i}, secret: \"{id}\"}}"));
    }
    stage.config(&keys(&lines));
    complete(&stage);
    assert_eq!(stage.values(), expected(7));
    assert_eq!(calls(&stage), only("BatchGetSecretValue", 1));
}

#[test]
fn a_binary_secret_is_carried_as_base64() {
    let bytes = [0_u8, 255, 254, 10, 13, 0];
    let stage = Stage::new();
    stage.aws.put_binary("blob", &bytes);
    stage.config(&keys(&["{name: BLOB, secret: blob}".to_owned()]));
    complete(&stage);
    assert_eq!(stage.values(), json!({"BLOB": "AP/+Cg0A"}));

    let stage = separate(6);
    stage.aws.put_binary("prod/s3", &bytes);
    complete(&stage);
    assert_eq!(stage.values()["K3"], "AP/+Cg0A", "in a batch too");
}

#[test]
fn members_that_are_not_text_are_written_as_their_json() {
    let stage = Stage::new();
    stage.aws.put(
        "app",
        r#"{"TEXT": "a b", "EMPTY": "", "INT": 5432, "BIG": 12345678901234567890123, "FLOAT": 1.50, "EXP": 1e400,
            "YES": true, "NO": false, "NULL": null, "OBJECT": { "b" : [1, "x  y"], "a": null }, "LIST": [ ] }"#,
    );
    stage.config(&block(SELDOM, "primary_secret: {name: app}"));
    complete(&stage);
    assert_eq!(
        stage.values(),
        json!({
            "TEXT": "a b", "EMPTY": "", "INT": "5432", "BIG": "12345678901234567890123", "FLOAT": "1.50",
            "EXP": "1e400", "YES": "true", "NO": "false", "OBJECT": r#"{"b":[1,"x  y"],"a":null}"#, "LIST": "[]",
        })
    );
}

#[test]
fn of_duplicate_members_the_last_wins_with_a_warning() {
    let stage = Stage::new();
    stage.aws.put("app", r#"{"DOUBLE": "canary-first", "B": "2", "DOUBLE": "canary-last"}"#);
    stage.config(&block(SELDOM, "primary_secret: {name: app}"));
    let log = complete(&stage);
    assert_eq!(stage.values(), json!({"DOUBLE": "canary-last", "B": "2"}));
    assert!(log.contains("DOUBLE more than once"), "{log}");
    assert!(!log.contains("canary"), "{log}");
}

#[test]
fn a_listed_member_that_is_null_counts_as_missing() {
    let stage = Stage::new();
    stage.aws.put("db", r#"{"user": null, "password": "p"}"#);
    let listed = [
        "{name: USER_NAME, secret: db, member: user}".to_owned(),
        "{name: PASSWORD, secret: db, member: password}".to_owned(),
    ];
    stage.config(&keys(&listed));
    let output = stage.once_in_vain("1s");
    assert_eq!(output.status.code(), Some(1));
    let log = stderr(&output);
    assert!(log.contains("USER_NAME") && log.contains("null") && !log.contains("key PASSWORD"), "{log}");
}

#[test]
fn templates_join_keys_through_filters() {
    let stage = Stage::new();
    stage.aws.put("db", r#"{"user": "a b", "password": "p@ss/\"w\" ✓"}"#);
    stage.config(&keys(&[
        "{name: DB_USER, secret: db, member: user, export: false}".to_owned(),
        "{name: DB_PASSWORD, secret: db, member: password, export: false}".to_owned(),
        r#"{name: URL, template: "pg://{DB_USER|url}:{DB_PASSWORD|url}@db:5432/{{app}}"}"#.to_owned(),
        r#"{name: BASIC, template: "{DB_USER|base64}"}"#.to_owned(),
        r#"{name: DOCUMENT, template: "[{DB_PASSWORD|json}, {DB_USER|json}]"}"#.to_owned(),
        r#"{name: PLAIN, template: "{DB_USER}-{DB_PASSWORD}"}"#.to_owned(),
    ]));
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(
        stage.values(),
        json!({
            "URL": "pg://a%20b:p%40ss%2F%22w%22%20%E2%9C%93@db:5432/{app}",
            "BASIC": "YSBi",
            "DOCUMENT": r#"["p@ss/\"w\" ✓", "a b"]"#,
            "PLAIN": "a b-p@ss/\"w\" ✓",
        })
    );
    stage.aws.put("db", r#"{"user": "new", "password": "p"}"#);
    daemon.hang_up();
    assert_eq!(stage.values()["URL"], "pg://new:p@db:5432/{app}");
    assert_eq!(stage.key_state("URL"), "fresh");
}

#[test]
fn members_and_keys_are_renamed() {
    let stage = Stage::new();
    stage.aws.put("app", r#"{"db_password": "p", "with space": "s", "B": "2"}"#);
    let rest = r#"  - env_file: {path: "{dir}/env/renamed.json", format: json, keys: [B, DB_PASSWORD], rename: {B: BEE}}
primary_secret: {name: app, rename: {db_password: DB_PASSWORD, "with space": SPACE}}"#;
    stage.config(&block(SELDOM, rest));
    complete(&stage);
    assert_eq!(stage.values(), json!({"DB_PASSWORD": "p", "SPACE": "s", "B": "2"}));
    let renamed: Value = serde_json::from_str(&stage.read("env/renamed.json")).unwrap();
    assert_eq!(renamed, json!({"BEE": "2", "DB_PASSWORD": "p"}));
}

#[test]
fn names_that_change_how_programs_run_are_exported_only_by_an_entry_that_says_so() {
    let stage = Stage::new();
    stage.aws.put(
        "app",
        r#"{"GOOD": "1", "LD_PRELOAD": "x", "PATH": "x", "PYTHONPATH": "x", "https_proxy": "x", "BASH_ENV": "x",
            "AWS_ACCESS_KEY_ID": "x", "AWS_PROFILE": "x", "NODE_OPTIONS": "--max-old-space-size=1"}"#,
    );
    let rest = "primary_secret: {name: app}\nkeys: [{name: NODE_OPTIONS, member: NODE_OPTIONS, allow_reserved: true}]";
    stage.config(&block(SELDOM, rest));
    let log = complete(&stage);
    assert_eq!(stage.values(), json!({"GOOD": "1", "NODE_OPTIONS": "--max-old-space-size=1"}));
    for name in ["LD_PRELOAD", "PATH", "PYTHONPATH", "https_proxy", "BASH_ENV", "AWS_ACCESS_KEY_ID", "AWS_PROFILE"] {
        assert!(log.contains(&format!("member {name} of")), "{name}: {log}");
    }
}

#[test]
fn the_names_that_the_connection_to_aws_is_made_of_are_never_keys() {
    let stage = Stage::new();
    let listed = "{name: AWS_SECRET_ACCESS_KEY, secret: s, allow_reserved: true}".to_owned();
    stage.config(&keys(&[listed]));
    let output = stage.once();
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("never read from AWS"), "{}", stderr(&output));
    assert!(stage.aws.requests().is_empty());
}

#[test]
fn a_name_that_an_output_cannot_carry_is_left_out_of_that_output_alone() {
    let stage = Stage::new();
    stage.aws.put("app", r#"{"GOOD": "1", "tls.key": "2", "1A": "3", "a b": "4", ".hidden": "5", "": "6"}"#);
    let rest = "  - files: {directory: \"{dir}/files\"}\nprimary_secret: {name: app}";
    stage.config(&block(SELDOM, rest));
    let log = complete(&stage);
    assert_eq!(stage.values(), json!({"GOOD": "1"}));
    for (name, value) in [("GOOD", "1"), ("tls.key", "2"), ("1A", "3")] {
        assert_eq!(stage.read(&format!("files/{name}")), value, "{name}");
    }
    assert!(!stage.path("files/a b").exists() && !stage.path("files/.hidden").exists());
    for name in ["tls.key", "1A", "a b"] {
        assert!(log.contains(&format!("output env_file cannot carry key {name}")), "{name}: {log}");
    }
}

#[test]
fn a_batch_is_read_over_all_its_pages() {
    for page in [0, 1, 2, 5] {
        let stage = separate(7);
        stage.aws.fault(Fault::on("BatchGetSecretValue").kind(FaultKind::Pages(page)));
        complete(&stage);
        assert_eq!(stage.values(), expected(7), "{page} a page");
        let pages = if page == 0 { 2 } else { 7_usize.div_ceil(page) };
        assert_eq!(calls(&stage), only("BatchGetSecretValue", pages), "{page} a page");
    }
}

#[test]
fn a_secret_that_a_batch_leaves_out_is_asked_for_again_and_its_value_stays() {
    let stage = separate(6);
    let daemon = stage.run();
    daemon.until_ready();
    let before = stage.stamp("env/keys.json");
    stage.aws.fault(Fault::on("BatchGetSecretValue").secret("prod/s3").times(1).kind(FaultKind::DropEntries));
    daemon.hang_up();
    daemon.until_log("the answer leaves it out");
    until("the retry", || stage.key_state("K3") == "fresh");
    assert_eq!(stage.stamp("env/keys.json"), before);
    let retried = stage.aws.requests().pop().unwrap();
    assert_eq!((retried.action.as_str(), retried.secret_ids), ("GetSecretValue", vec!["prod/s3".to_owned()]));
}

#[test]
fn one_bad_secret_of_a_batch_does_not_hold_up_the_others() {
    let stage = separate(6);
    let daemon = stage.run();
    daemon.until_ready();
    let denied = FaultKind::EntryError { code: "AccessDeniedException".into(), message: "no".into() };
    let fault = stage.aws.fault(Fault::on("BatchGetSecretValue").secret("prod/s0").kind(denied));
    stage.aws.put("prod/s0", "changed 0");
    stage.aws.put("prod/s1", "changed 1");
    stage.aws.remove("prod/s2");
    daemon.hang_up();
    let values = stage.values();
    assert_eq!(
        (&values["K0"], &values["K1"], &values["K2"]),
        (&json!("value 0"), &json!("changed 1"), &json!("value 2"))
    );
    assert_eq!(stage.key_state("K0"), "stale (denied)");
    assert_eq!(stage.key_state("K1"), "fresh");
    assert_eq!(stage.key_state("K2"), "stale (absent)");
    stage.aws.remove_fault(fault);
    daemon.hang_up();
    assert_eq!(stage.values()["K0"], "changed 0");
    assert_eq!(stage.key_state("K0"), "fresh");
    assert_eq!(stage.aws.count("BatchGetSecretValue"), 3);
}

#[test]
fn where_the_batch_call_is_denied_secrets_are_read_singly_and_that_is_remembered() {
    let stage = separate(7);
    stage.aws.allow(ACCESS_KEY_ID, &[Statement::new(["secretsmanager:GetSecretValue"], ["*"])]);
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(stage.values(), expected(7));
    assert_eq!((stage.aws.count("BatchGetSecretValue"), stage.aws.count("GetSecretValue")), (1, 7));
    daemon.until_log("BatchGetSecretValue is denied");
    daemon.hang_up();
    daemon.hang_up();
    assert_eq!((stage.aws.count("BatchGetSecretValue"), stage.aws.count("GetSecretValue")), (1, 21));
}

#[test]
fn a_throttled_batch_never_leads_to_more_calls() {
    let stage = separate(7);
    let daemon = stage.run();
    daemon.until_ready();
    stage.aws.fault(Fault::on("BatchGetSecretValue").times(2));
    daemon.hang_up();
    until("the retries to succeed", || stage.key_state("K0") == "fresh");
    assert!(daemon.metric("keytide_aws_requests_total", &["BatchGetSecretValue", "throttled"]) >= 2.0);
    assert_eq!(stage.aws.count("GetSecretValue"), 0);
}

#[test]
fn values_reach_files_byte_for_byte() {
    let long = "ab✓ ".repeat(10_000) + &"x".repeat(65_536 - 60_000);
    assert_eq!(long.len(), 65_536);
    let values = [
        ("LONG", long.as_str()),
        ("EDGES", " \t leading and trailing \t \r\n\n"),
        ("QUOTES", "'\"`$HOME ${X} !# \\ \\n"),
        ("CONTROL", "\u{1}\u{7f}\0\u{85}\u{2028}\u{feff}"),
        ("WORDS", "True"),
        ("JSON", r#"{"a": 1}"#),
    ];
    let stage = Stage::new();
    let mut lines = Vec::new();
    for (name, value) in values {
        stage.aws.put(name, value);
        lines.push(format!("{{name: {name}, secret: {name}}}"));
    }
    let block = keys(&lines).replacen("keys:\n", "  - files: {directory: \"{dir}/files\"}\nkeys:\n", 1);
    stage.config(&block);
    complete(&stage);
    let read = stage.values();
    for (name, value) in values {
        let file = fs::read(stage.path(&format!("files/{name}"))).unwrap();
        assert!(file == value.as_bytes(), "files: {name}");
        assert!(read[name] == *value, "json: {name}");
    }
}

#[test]
fn a_primary_secret_of_64_kib_is_read_whole() {
    let mut members = serde_json::Map::new();
    for i in 0..1200 {
        members.insert(format!("KEY_{i:04}"), Value::from(format!("value of {i:04} {}", "x".repeat(20))));
    }
    let short = Value::Object(members.clone()).to_string().len();
    let padding = "p".repeat(65_536 - short - r#","PAD":"""#.len());
    members.insert("PAD".to_owned(), Value::from(padding));
    let object = Value::Object(members);
    assert_eq!(object.to_string().len(), 65_536);
    let stage = Stage::new();
    stage.aws.put("app", &object.to_string());
    stage.config(&block(SELDOM, "primary_secret: {name: app}"));
    complete(&stage);
    assert!(stage.values() == object);
    assert_eq!(calls(&stage), only("GetSecretValue", 1));
}

#[test]
fn check_says_how_many_calls_a_configuration_costs() {
    for (count, calls) in [(5, 5), (45, 3)] {
        let stage = separate(count);
        let output = stage.keytide(&["check", "--config", &stage.path("keytide.yaml").display().to_string()]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(stdout(&output).contains(&format!("{calls} a refresh")), "{}", stdout(&output));
        assert!(stage.aws.requests().is_empty());
    }
}
