//! `keytide policy`: the documents as people pipe them into `aws iam`, what is left to fill in, and what storing virtual keys
//! needs.

use std::process::Output;

use serde_json::{Value, json};

use crate::support::{Stage, block, stderr, stdout};

const ROLE: &str = "arn:aws:iam::123456789012:role/keytide";
const WRITER: &str = "arn:aws:iam::123456789012:role/writer";
const BELOW: &str = "arn:aws:secretsmanager:us-east-1:123456789012:secret:litellm/*";
const KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555";
const ONE: &str = "keys: [{name: A, secret: prod/a}]\n";
const WRITES: [&str; 9] = [
    "secretsmanager:CreateSecret",
    "secretsmanager:DeleteSecret",
    "secretsmanager:DescribeSecret",
    "secretsmanager:GetSecretValue",
    "secretsmanager:PutSecretValue",
    "secretsmanager:RestoreSecret",
    "secretsmanager:TagResource",
    "secretsmanager:UntagResource",
    "secretsmanager:UpdateSecret",
];
const REPLICATES: [&str; 2] =
    ["secretsmanager:RemoveRegionsFromReplication", "secretsmanager:ReplicateSecretToRegions"];

/// Without credentials: `policy` is asked before there are any.
fn stage(config: &str) -> Stage {
    let mut stage = Stage::new();
    stage.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    stage.config(config);
    stage
}

/// With IRSA, whose token nobody has to read.
fn of_pod(config: &str) -> Stage {
    let mut stage = stage(config);
    stage.env("AWS_ROLE_ARN", ROLE).env("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token");
    stage
}

/// LiteLLM's settings that store virtual keys, and keytide's block behind them.
fn storing(settings: &str, rest: &str) -> Stage {
    let stage = of_pod(&block("interval: 5m", &format!("{ONE}{rest}")));
    let ours = stage.read("keytide.yaml");
    let theirs = "general_settings:\n  key_management_system: aws_secret_manager\n  key_management_settings: ";
    let settings = format!("{{store_virtual_keys: true, hosted_keys: []{settings}}}");
    stage.write("keytide.yaml", format!("{theirs}{settings}\n{ours}"));
    stage
}

fn policy(stage: &Stage, more: &[&str]) -> Output {
    let config = stage.path("keytide.yaml").display().to_string();
    let output = stage.keytide(&[&["policy", "--config", &config][..], more].concat());
    assert!(stage.aws.requests().is_empty(), "nobody is asked");
    output
}

fn bare(stage: &Stage, more: &[&str]) -> Value {
    let output = policy(stage, more);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The actions on this resource, sorted.
fn actions_on(document: &Value, resource: &str) -> Vec<String> {
    let statements = document["Statement"].as_array().unwrap().iter();
    let on = statements.filter(|one| one["Resource"].as_array().unwrap().contains(&json!(resource)));
    let actions = on.flat_map(|one| one["Action"].as_array().unwrap());
    let mut actions: Vec<String> = actions.map(|action| action.as_str().unwrap().to_owned()).collect();
    actions.sort_unstable();
    actions
}

#[test]
fn the_trust_of_irsa_names_provider_audience_and_service_account() {
    let stage = of_pod(&block("interval: 5m", ONE));
    let provider = "oidc.eks.us-east-1.amazonaws.com/id/ABC";
    for given in [provider.to_owned(), format!("https://{provider}"), format!("https://{provider}/")] {
        let more = ["--document", "irsa-trust", "--oidc-provider", &given, "--service-account", "apps:litellm"];
        let trust = json!({
            "Version": "2012-10-17",
            "Statement": [{
                "Effect": "Allow",
                "Principal": {"Federated": format!("arn:aws:iam::123456789012:oidc-provider/{provider}")},
                "Action": ["sts:AssumeRoleWithWebIdentity"],
                "Condition": {"StringEquals": {
                    format!("{provider}:aud"): "sts.amazonaws.com",
                    format!("{provider}:sub"): "system:serviceaccount:apps:litellm",
                }},
            }],
        });
        let output = policy(&stage, &more);
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), trust);
        assert_eq!(stderr(&output), "", "there is nothing left to fill in");
    }
}

#[test]
fn the_trust_of_pod_identity_is_for_the_service_of_eks_with_its_tags() {
    let trust = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow",
            "Principal": {"Service": "pods.eks.amazonaws.com"},
            "Action": ["sts:AssumeRole", "sts:TagSession"],
        }],
    });
    let nobody = stage(&block("interval: 5m", ONE));
    let output = policy(&nobody, &["--document", "pod-identity-trust"]);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), trust);
    assert_eq!(stderr(&output), "", "there is nothing left to fill in");
    let mut associated = stage(&block("interval: 5m", ONE));
    associated.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials");
    assert_eq!(bare(&associated, &["--document", "pod-identity-trust"]), trust);
}

#[test]
fn the_trust_of_a_role_names_who_comes_before_it_and_the_external_id() {
    let config = block("interval: 5m", ONE)
        .replace("us-east-1}", &format!("us-east-1, roles: [{{arn: \"{WRITER}\", external_id: x-1}}]}}"));
    let trust = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow",
            "Principal": {"AWS": ROLE},
            "Action": ["sts:AssumeRole"],
            "Condition": {"StringEquals": {"sts:ExternalId": "x-1"}},
        }],
    });
    assert_eq!(bare(&of_pod(&config), &["--document", "role-trust"]), trust);
}

#[test]
fn what_the_configuration_does_not_say_is_told_with_the_option_that_says_it() {
    let nobody = stage(&block("interval: 5m", ONE));
    let said = stderr(&policy(&nobody, &[]));
    for option in ["--account", "--oidc-provider", "--service-account"] {
        assert!(said.contains(option), "{option} in {said}");
    }
    let all = ["--account", "123456789012", "--oidc-provider", "oidc.example.com/id/A", "--service-account", "a:b"];
    let output = policy(&nobody, &all);
    assert_eq!(stderr(&output), "");
    for placeholder in ["ACCOUNT", "OIDC_PROVIDER"] {
        assert!(!stdout(&output).contains(placeholder), "{placeholder} in {}", stdout(&output));
    }
}

#[test]
fn an_option_is_asked_for_only_where_its_placeholder_stands() {
    // The role says the account.
    let said = stderr(&policy(&of_pod(&block("interval: 5m", ONE)), &[]));
    assert!(said.contains("--service-account") && !said.contains("--account"), "{said}");
    // The name of a secret is no placeholder.
    let named = of_pod(&block("interval: 5m", "keys: [{name: A, secret: ACCOUNT/OIDC_PROVIDER}]\n"));
    assert_eq!(stderr(&policy(&named, &["--document", "permissions"])), "");
}

#[test]
fn a_service_account_without_its_namespace_is_refused() {
    let stage = of_pod(&block("interval: 5m", ONE));
    for wrong in ["litellm", "apps:", ":litellm", "system:serviceaccount:apps:litellm", "*:*"] {
        let output = policy(&stage, &["--service-account", wrong, "--document", "irsa-trust"]);
        assert_eq!(output.status.code(), Some(64), "{wrong}: {}", stdout(&output));
    }
}

#[test]
fn a_bare_document_that_several_have_is_not_chosen_for_anybody() {
    let config = block("interval: 5m", ONE)
        .replace("us-east-1}", &format!("us-east-1, roles: [{{arn: \"{WRITER}\"}}, {{arn: \"{WRITER}-2\"}}]}}"));
    let stage = of_pod(&config);
    let output = policy(&stage, &["--document", "permissions"]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(64), String::new()));
    for choice in ["--of", "base", ROLE, WRITER] {
        assert!(stderr(&output).contains(choice), "{choice} in {}", stderr(&output));
    }
    let assume = json!([{"Effect": "Allow", "Action": ["sts:AssumeRole"], "Resource": [WRITER]}]);
    for of in ["base", ROLE] {
        assert_eq!(bare(&stage, &["--document", "permissions", "--of", of])["Statement"], assume);
    }
    let output = policy(&stage, &["--document", "role-trust"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(!stderr(&output).contains("base"), "the first one has no such document: {}", stderr(&output));
    let output = policy(&stage, &["--document", "permissions", "--of", "arn:aws:iam::123456789012:role/typo"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains(ROLE), "it says who there is: {}", stderr(&output));
}

#[test]
fn storing_virtual_keys_writes_below_the_prefix_and_replicas_add_to_it() {
    let permissions = ["--document", "permissions"];
    let stored = bare(&storing("", ""), &permissions);
    assert_eq!(actions_on(&stored, BELOW), WRITES);
    let mut more = [&WRITES[..], &REPLICATES].concat();
    more.sort_unstable();
    let replicated = bare(&storing(", replica_regions: [eu-west-1]", ""), &permissions);
    assert_eq!(actions_on(&replicated, BELOW), more);
    let elsewhere = bare(&storing(", prefix_for_stored_virtual_keys: team/", ""), &permissions);
    assert_eq!(actions_on(&elsewhere, &BELOW.replace("litellm/", "team/")), WRITES);
    assert_eq!(actions_on(&elsewhere, BELOW), [""; 0]);
}

#[test]
fn a_key_of_kms_is_used_by_secrets_manager_and_nobody_else() {
    let via = json!({"StringEquals": {"kms:ViaService": "secretsmanager.us-east-1.amazonaws.com"}});
    let condition_on = |document: &Value| {
        let statements = document["Statement"].as_array().unwrap();
        statements.iter().find(|one| one["Resource"] == json!([KEY])).unwrap()["Condition"].clone()
    };
    let permissions = ["--document", "permissions"];
    let stored = bare(&storing(&format!(", kms_key_id: \"{KEY}\""), ""), &permissions);
    assert_eq!(actions_on(&stored, KEY), ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"]);
    assert_eq!(condition_on(&stored), via);
    let read = bare(&of_pod(&block("interval: 5m", ONE)), &["--document", "permissions", "--kms-key", KEY]);
    assert_eq!(actions_on(&read, KEY), ["kms:Decrypt"], "who only reads does not encrypt");
    assert_eq!(condition_on(&read), via);
    let alias = policy(&storing(", kms_key_id: alias/team", ""), &permissions);
    assert!(stderr(&alias).contains("alias/team") && stderr(&alias).contains("--kms-key"), "{}", stderr(&alias));
}

#[test]
fn a_second_identity_takes_the_writes_and_leaves_the_reads() {
    let rest = format!("virtual_keys: {{aws: {{roles: [{{arn: \"{WRITER}\"}}]}}}}\n");
    let stage = storing(&format!(", kms_key_id: \"{KEY}\""), &rest);
    let of = |who: &str| bare(&stage, &["--document", "permissions", "--of", who]);
    let (reader, writer) = (of("base"), of(WRITER));
    assert_eq!(actions_on(&reader, BELOW), [""; 0]);
    assert_eq!(actions_on(&reader, KEY), [""; 0]);
    assert_eq!(actions_on(&reader, WRITER), ["sts:AssumeRole"]);
    assert!(reader.to_string().contains("secret:prod/a-??????"), "{reader}");
    assert_eq!(actions_on(&writer, BELOW), WRITES);
    assert_eq!(actions_on(&writer, KEY), ["kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"]);
    assert!(!writer.to_string().contains("prod/a"), "{writer}");
}

#[test]
fn what_entries_may_ask_for_is_what_the_policy_allows() {
    const TEAM: &str = "arn:aws:iam::999999999999:role/team";
    let rest = format!(
        "spool:\n  operations: [create, delete]\n  allow_names: [elsewhere/one]\n  teams: [{{aws_role_name: \"{TEAM}\", \
         aws_region_name: eu-west-1}}]\n"
    );
    let stage = storing("", &rest);
    let of = |who: &str| bare(&stage, &["--document", "permissions", "--of", who]);
    let writer = of("base");
    let actions = actions_on(&writer, BELOW);
    assert!(!actions.contains(&"secretsmanager:GetSecretValue".to_owned()), "only a rename reads: {actions:?}");
    let named = BELOW.replace("litellm/*", "elsewhere/one");
    // AWS matches the bare name where there is no such secret.
    for resource in [named.clone(), format!("{named}-??????")] {
        assert_eq!(actions_on(&writer, &resource), actions);
    }
    assert_eq!(actions_on(&writer, TEAM), ["sts:AssumeRole"]);
    let there = BELOW.replace("us-east-1:123456789012", "eu-west-1:999999999999");
    assert_eq!(actions_on(&of(TEAM), &there), actions);
    let trust = bare(&stage, &["--document", "role-trust", "--of", TEAM]);
    assert!(trust.to_string().contains(ROLE), "{trust}");
}

#[test]
fn the_roles_of_a_profile_are_said_not_to_be_looked_at() {
    let config = block("interval: 5m", ONE).replace("us-east-1}", "us-east-1, profile: team}");
    let output = policy(&stage(&config), &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("the roles of profile team"), "{}", stderr(&output));
}

#[test]
fn the_credentials_of_whoever_types_it_change_nothing() {
    let plain = stage(&block("interval: 5m", ONE));
    let mut personal = stage(&block("interval: 5m", ONE));
    let file = personal.write("config", "[default]\nrole_arn = x\n").display().to_string();
    personal
        .env("AWS_ACCESS_KEY_ID", "AKIAPERSONAL")
        .env("AWS_SECRET_ACCESS_KEY", "x")
        .env("AWS_PROFILE", "me")
        .env("AWS_CONFIG_FILE", &file)
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/shell");
    assert_eq!(stdout(&policy(&personal, &[])), stdout(&policy(&plain, &[])));
}

#[test]
fn a_bare_document_with_something_left_to_fill_in_is_not_piped_into_aws() {
    let output = policy(&stage(&block("interval: 5m", ONE)), &["--document", "permissions"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("<ACCOUNT>") && stderr(&output).contains("--account"), "{}", stderr(&output));
}

#[test]
fn the_pods_own_role_is_not_of_the_account_of_a_role_further_on() {
    let config = block("interval: 5m", ONE)
        .replace("us-east-1}", "us-east-1, roles: [{arn: \"arn:aws:iam::999999999999:role/reader\"}]}");
    let more = ["--document", "irsa-trust", "--oidc-provider", "oidc.example.com/id/A", "--service-account", "a:b"];
    let trust = bare(&stage(&config), &[&more[..], &["--account", "123456789012"]].concat());
    assert_eq!(
        trust["Statement"][0]["Principal"]["Federated"],
        "arn:aws:iam::123456789012:oidc-provider/oidc.example.com/id/A"
    );
}

#[test]
fn a_provider_that_can_be_none_is_refused() {
    let stage = of_pod(&block("interval: 5m", ONE));
    for wrong in ["", "None", "http://x y", "https://", "*.example.com"] {
        let output = policy(&stage, &["--oidc-provider", wrong, "--document", "irsa-trust"]);
        assert_eq!(output.status.code(), Some(64), "{wrong}: {}", stdout(&output));
    }
}

#[test]
fn the_role_of_the_pod_can_be_said_where_the_configuration_does_not() {
    let config =
        block("interval: 5m", ONE).replace("us-east-1}", &format!("us-east-1, roles: [{{arn: \"{WRITER}\"}}]}}"));
    let stage = stage(&config);
    let trust = ["--document", "role-trust"];
    let output = policy(&stage, &trust);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--base-role"), "{}", stderr(&output));
    let whole = bare(&stage, &[&trust[..], &["--base-role", ROLE, "--identity", "irsa"]].concat());
    assert_eq!(whole["Statement"][0]["Principal"]["AWS"], ROLE);
}
