//! `keytide check --online`: who this is and what it may read, without changing anything, and the same verdict as `run`.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Output,
    thread,
    time::SystemTime,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keytide_emulator::{Fault, FaultKind, PodIdentity, Role, Seed, Statement, User};
use serde_json::{Value, json};

use crate::support::{ACCESS_KEY_ID, SECRET_ACCESS_KEY, Stage, block, stderr, stdout};

const ROOT: &str = "arn:aws:iam::123456789012:root";
const USER: &str = "arn:aws:iam::123456789012:user/keytide";
const POD: &str = "arn:aws:iam::123456789012:role/eks/pod";
const TWO: &str = "arn:aws:iam::123456789012:role/two";
const WRITER: &str = "arn:aws:iam::123456789012:role/writer";
const TWO_KEYS: &str = "keys: [{name: A, secret: prod/a}, {name: B, secret: prod/json, member: user}]\n";
const GET: &str = "secretsmanager:GetSecretValue";
const BATCH: &str = "secretsmanager:BatchGetSecretValue";
/// What neither changes anything nor costs a permission to write.
const HARMLESS: [&str; 7] = [
    "GetSecretValue",
    "BatchGetSecretValue",
    "GetCallerIdentity",
    "AssumeRole",
    "AssumeRoleWithWebIdentity",
    "AssumeRoleForPodIdentity",
    "SimulatePrincipalPolicy",
];

fn reader(name: &str) -> Role {
    Role::new(name).allow(Statement::new([GET, BATCH], ["*"]))
}

fn seed() -> Seed {
    let pod = Role { path: "/eks/".to_owned(), ..reader("pod").trusts_web_identity() };
    let pod = pod.allow(Statement::new(["sts:*"], ["*"]));
    let mut seed = Seed::default().role(pod).role(reader("two").trusts(ROOT));
    seed.pod_identity = Some(PodIdentity::new(POD));
    seed
}

fn secrets(stage: &Stage) {
    for name in ["prod/a", "prod/b", "prod/c", "prod/d", "prod/e", "prod/f"] {
        stage.aws.put(name, "1");
    }
    stage.aws.put("prod/json", r#"{"user": "u"}"#);
}

/// Static keys of a user who may do everything.
fn stage(rest: &str) -> Stage {
    let stage = Stage::with(seed());
    secrets(&stage);
    stage.config(&block("interval: 5m, call_timeout: 1s", rest));
    stage
}

/// No keys of the environment, and this in `keytide.aws`.
fn without_keys(aws: &str) -> Stage {
    let mut stage = stage("");
    stage
        .config(&block("interval: 5m, call_timeout: 1s", TWO_KEYS).replace("us-east-1}", &format!("us-east-1{aws}}}")));
    stage.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    stage
}

fn with_irsa(aws: &str, claims: &Value) -> Stage {
    let mut stage = without_keys(aws);
    let token = stage.write("token", token(claims)).display().to_string();
    stage.env("AWS_ROLE_ARN", POD).env("AWS_WEB_IDENTITY_TOKEN_FILE", &token);
    stage
}

fn with_pod_identity(aws: &str) -> Stage {
    let mut stage = without_keys(aws);
    let token = stage.write("token", token(&json!({}))).display().to_string();
    let agent = format!("{}/v1/credentials", stage.aws.url());
    stage.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent).env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token);
    stage
}

fn with_profile(aws: &str) -> Stage {
    let mut stage = without_keys(aws);
    let keys = format!("[team]\naws_access_key_id = {ACCESS_KEY_ID}\naws_secret_access_key = {SECRET_ACCESS_KEY}\n");
    let file = stage.write("credentials", keys).display().to_string();
    stage.env("AWS_SHARED_CREDENTIALS_FILE", &file).env("AWS_PROFILE", "team");
    stage
}

/// The user may read these secrets, one by one, and nothing else.
fn allow_only(stage: &Stage, names: &[&str]) {
    let arns: Vec<String> = names.iter().filter_map(|name| stage.aws.arn(name)).collect();
    stage.aws.allow(ACCESS_KEY_ID, &[Statement::new([GET], arns)]);
}

fn token(claims: &Value) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", part(r#"{"alg":"RS256"}"#), part(&claims.to_string()), part("signature"))
}

fn check(stage: &Stage, more: &[&str]) -> Output {
    let config = stage.path("keytide.yaml").display().to_string();
    stage.keytide(&[&["check", "--online", "--config", &config][..], more].concat())
}

/// The report, which is all of standard output.
fn report(stage: &Stage, more: &[&str]) -> Value {
    let output = check(stage, &[&["--output", "json"][..], more].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("standard output is not one JSON document: {error}: {}{}", stdout(&output), stderr(&output))
    });
    assert_eq!(output.status.code(), Some(i32::from(report["ok"] != true)), "{report}");
    report
}

/// The files below the stage, with when they were changed.
fn files(path: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            all.extend(files(&entry.path()));
        }
        // The copy of the binary that `Stage` makes where the checkout is closed to keytide's user.
        if entry.file_name() != "keytide" {
            all.insert(entry.path(), metadata.modified().unwrap());
        }
    }
    all
}

/// Checks in both forms, sees that nothing is changed, and that `run` agrees. What people read, and the report.
fn checked(stage: &Stage, code: i32) -> (String, Value) {
    let before = files(&stage.path(""));
    let (text, report) = (check(stage, &[]), report(stage, &[]));
    assert_eq!(files(&stage.path("")), before, "no file and no directory is made or changed");
    for request in stage.aws.requests() {
        assert!(HARMLESS.contains(&request.action.as_str()), "{request:?}");
    }
    let said = stdout(&text) + &stderr(&text);
    assert_eq!(text.status.code(), Some(code), "{said}");
    assert_eq!(report["ok"], code == 0, "{report}");
    // A `run` that would work ends by itself; one that would not has had its chance by then.
    let run = stage.once_within(if code == 0 { "20s" } else { "600ms" });
    assert_eq!(run.status.code(), Some(code), "`run` agrees with `check`: {}\n{said}", stderr(&run));
    (said, report)
}

/// All is well, and this is who it is.
fn assert_good(stage: &Stage, arn: &str, way: &[&str], ends: bool) {
    let (said, report) = checked(stage, 0);
    for part in [&[arn, "123456789012", "prod/a", "prod/json"], way].concat() {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_eq!(said.contains("until 20"), ends, "{said}");
    let reader = &report["online"]["reader"];
    assert!(reader["caller"].as_str().unwrap().starts_with(arn), "{reader}");
    assert_eq!((&reader["account"], reader["expires"].is_string()), (&json!("123456789012"), ends));
    let secrets = json!([{"secret": "prod/a", "result": "read"}, {"secret": "prod/json", "result": "read"}]);
    assert_eq!(report["online"]["secrets"], secrets);
    assert_eq!(report["problems"], json!([]));
}

/// It would not work, for these reasons.
fn assert_bad(stage: &Stage, parts: &[&str]) -> Value {
    let (said, report) = checked(stage, 1);
    let problems = report["problems"].to_string();
    for part in parts {
        assert!(said.contains(part) && problems.contains(part), "{part} in {said}\nand in {problems}");
    }
    report
}

/// Several at once, since each `run` waits for its time.
fn each_at_once(cases: &[(Stage, &[&str])]) {
    thread::scope(|scope| {
        for (stage, parts) in cases {
            scope.spawn(|| assert_bad(stage, parts));
        }
    });
}

#[test]
fn everybody_who_may_read_is_told_who_he_is_how_and_until_when() {
    let session = |role: &str| format!("arn:aws:sts::123456789012:assumed-role/{role}/");
    let (pod, two) = (session("pod"), session("two"));
    let roles = format!(", roles: [{{arn: \"{TWO}\"}}]");
    let expected = format!(", expect_role: \"{POD}\"");
    let cases: [(Stage, &str, &[&str], bool); 7] = [
        (stage(TWO_KEYS), USER, &["static", ACCESS_KEY_ID], false),
        (with_profile(""), USER, &["profile team"], false),
        (with_irsa("", &json!({})), &pod, &["web_identity", POD], true),
        (with_pod_identity(""), &pod, &["container 127.0.0.1:"], true),
        (with_irsa(&roles, &json!({})), &two, &[POD, TWO], true),
        (with_pod_identity(&roles), &two, &["container 127.0.0.1:", TWO], true),
        (with_irsa(&expected, &json!({})), &pod, &["nobody but", POD], true),
    ];
    thread::scope(|scope| {
        for (stage, arn, way, ends) in &cases {
            scope.spawn(|| assert_good(stage, arn, way, *ends));
        }
    });
}

#[test]
fn a_web_identity_token_is_told_with_its_end() {
    let stage = with_irsa("", &json!({"exp": 4_102_444_800_u64}));
    let (said, report) = checked(&stage, 0);
    assert!(said.contains("2100-01-01T00:00:00Z"), "{said}");
    assert_eq!(report["online"]["reader"]["token_expires"], "2100-01-01T00:00:00Z");
}

#[test]
fn a_denied_secret_is_told_among_those_that_may_be_read_with_what_would_allow_it() {
    let stage = stage(TWO_KEYS);
    allow_only(&stage, &["prod/json"]);
    let report = assert_bad(&stage, &["prod/a", "AccessDenied", GET, ACCESS_KEY_ID]);
    assert_eq!(report["online"]["secrets"][0]["result"], "denied");
    assert_eq!(report["online"]["secrets"][1]["result"], "read");
    let arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod/a-??????";
    let allow = json!([{"Effect": "Allow", "Action": [GET], "Resource": [arn]}]);
    assert_eq!(report["online"]["allow"]["Statement"], allow);
}

#[test]
fn a_missing_secret_a_missing_member_and_a_primary_secret_that_is_no_json_are_told() {
    let binary = stage("primary_secret: {name: prod/binary}\n");
    binary.aws.put_binary("prod/binary", b"\xff\x00");
    each_at_once(&[
        (
            stage("keys: [{name: A, secret: prod/a}, {name: B, secret: prod/typo}]\n"),
            &["key B", "prod/typo", "ResourceNotFoundException", "no such secret"],
        ),
        (stage("keys: [{name: A, secret: prod/json, member: password}]\n"), &["key A", "password", "prod/json"]),
        (stage("primary_secret: {name: prod/a}\n"), &["prod/a", "JSON"]),
        (binary, &["prod/binary", "JSON"]),
    ]);
}

#[test]
fn a_secret_that_is_not_there_is_not_said_to_lack_what_its_policy_allows() {
    // AWS looks at the policies first, and a name that nobody has has no six characters that a policy could match.
    let stage = stage("keys: [{name: A, secret: prod/a}, {name: B, secret: prod/typo}]\n");
    let arn = |name: &str| format!("arn:aws:secretsmanager:us-east-1:123456789012:secret:{name}-??????");
    stage.aws.allow(ACCESS_KEY_ID, &[Statement::new([GET], [arn("prod/a"), arn("prod/typo")])]);
    assert_bad(&stage, &["prod/typo", "AccessDenied", "no such secret"]);
}

#[test]
fn with_skip_a_missing_secret_is_told_and_holds_up_nothing() {
    let stage = stage("");
    stage.config(&block(
        "interval: 5m, on_missing: skip",
        "keys: [{name: A, secret: prod/a}, {name: B, secret: prod/typo}]\n",
    ));
    let (said, report) = checked(&stage, 0);
    assert!(said.contains("prod/typo") && said.contains("absent"), "{said}");
    assert_eq!(report["online"]["secrets"][1]["result"], "absent");
    // What is denied was not looked for.
    allow_only(&stage, &["prod/a"]);
    stage.aws.put("prod/typo", "1");
    assert_bad(&stage, &["prod/typo", "AccessDenied"]);
}

#[test]
fn a_denied_batch_is_told_and_holds_up_nothing() {
    let keys: Vec<String> = ["a", "b", "c", "d", "e", "f"].map(|x| format!("{{name: {x}, secret: prod/{x}}}")).into();
    let stage = stage(&format!("keys: [{}]\n", keys.join(", ")));
    stage.aws.allow(ACCESS_KEY_ID, &[Statement::new([GET], ["*"])]);
    let (said, report) = checked(&stage, 0);
    assert!(said.contains("BatchGetSecretValue is denied"), "{said}");
    assert_eq!(report["online"]["batch_denied"], true);
    let allow = json!([{"Effect": "Allow", "Action": [BATCH], "Resource": ["*"]}]);
    assert_eq!(report["online"]["allow"]["Statement"], allow);
}

#[test]
fn without_credentials_it_says_what_is_missing_and_asks_nobody() {
    let stage = without_keys("");
    assert_bad(&stage, &["no AWS credentials", "AWS_WEB_IDENTITY_TOKEN_FILE", "Pod Identity"]);
    assert!(stage.aws.requests().is_empty());
}

#[test]
fn an_identity_that_sts_refuses_is_told_with_who_it_was_to_be() {
    let mut untrusted = with_irsa("", &json!({}));
    untrusted.env("AWS_ROLE_ARN", TWO);
    let mut unknown = stage(TWO_KEYS);
    unknown.env("AWS_ACCESS_KEY_ID", "AKIANOBODY");
    let nobody = with_pod_identity("");
    nobody.aws.set_pod_identity(None);
    each_at_once(&[
        (untrusted, &[TWO, "AccessDenied", "trust policy"]),
        (with_irsa(&format!(", roles: [{{arn: \"{WRITER}\"}}]"), &json!({})), &[WRITER, POD, "sts:AssumeRole"]),
        (with_irsa("", &json!({"exp": 1})), &["ExpiredTokenException", "1970-01-01T00:00:01Z", "/token"]),
        (unknown, &["AKIANOBODY", "InvalidClientTokenId"]),
        (nobody, &["404", "Pod Identity association"]),
    ]);
}

#[test]
fn a_failed_identity_is_shown_with_the_way_it_was_to_come() {
    let chain = with_irsa(&format!(", roles: [{{arn: \"{WRITER}\"}}]"), &json!({}));
    let output = check(&chain, &[]);
    let line = stdout(&output).lines().find(|line| line.starts_with("identity")).map(str::to_owned);
    let line = line.unwrap_or_else(|| panic!("no line says who it was to be: {}", stdout(&output)));
    assert!(line.contains(POD) && line.contains(WRITER), "{line}");
}

#[test]
fn somebody_else_than_expected_is_refused_before_a_secret_is_read() {
    let stage = with_pod_identity(&format!(", expect_role: \"{TWO}\""));
    assert_bad(&stage, &["refused to be", "assumed-role/pod/", TWO, "expect_role"]);
    assert_eq!(stage.aws.count("GetSecretValue"), 0);
    let account = with_profile(", expect_role: \"999999999999\"");
    assert_bad(&account, &[USER, "999999999999"]);
    assert_eq!(account.aws.count("GetSecretValue"), 0);
}

#[test]
fn an_aws_that_is_down_is_told_by_the_call_that_failed() {
    let sts = with_irsa("", &json!({}));
    sts.aws.fault(Fault::on("AssumeRoleWithWebIdentity").kind(FaultKind::InternalError));
    let mut down = with_irsa("", &json!({}));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    down.env("AWS_ENDPOINT_URL_STS", &format!("http://{nobody}"));
    let throttled = stage(TWO_KEYS);
    throttled.aws.fault(Fault::on("GetSecretValue").kind(FaultKind::Throttle));
    let expired = stage(TWO_KEYS);
    expired.aws.fault(Fault::on("GetSecretValue").kind(FaultKind::ExpiredToken));
    each_at_once(&[
        (sts, &["AssumeRoleWithWebIdentity", POD]),
        (down, &["AssumeRoleWithWebIdentity", POD, "no connection"]),
        (throttled, &["GetSecretValue", "prod/a", "ThrottlingException"]),
        (expired, &["ExpiredToken", ACCESS_KEY_ID]),
    ]);
}

#[test]
fn an_sts_that_only_does_not_say_who_this_is_holds_up_nothing() {
    let stage = stage(TWO_KEYS);
    stage.aws.fault(Fault::on("GetCallerIdentity").kind(FaultKind::InternalError));
    checked(&stage, 0);
}

#[test]
fn a_configuration_that_is_not_valid_is_64_with_nothing_on_standard_output() {
    let stage = stage("keys: [{name: A, secret: prod/a, typo: 1}]\n");
    for more in [&[][..], &["--output", "json"]] {
        let output = check(&stage, more);
        assert_eq!((output.status.code(), stdout(&output)), (Some(64), String::new()));
        assert!(stderr(&output).contains("typo"), "{}", stderr(&output));
    }
    assert!(stage.aws.requests().is_empty());
}

#[test]
fn replicas_multiply_calls_and_shares_of_the_quotas() {
    let keys: Vec<String> = (0..30).map(|i| format!("{{name: K{i}, secret: many/{i}}}")).collect();
    let staged = "{name: S, secret: prod/a, version_stage: AWSCURRENT}";
    let stage = stage("");
    for i in 0..30 {
        stage.aws.put(&format!("many/{i}"), "1");
    }
    stage.config(&block("interval: 1m", &format!("keys: [{}, {staged}]\n", keys.join(", "))));
    let calls = report(&stage, &["--replicas", "500"])["calls"].clone();
    // 30 secrets are two batches, one stage is a read of its own: 3 calls a minute, 1440 minutes, 500 pods.
    assert_eq!(calls["get_a_refresh"], 1);
    assert_eq!(calls["batch_a_refresh"], 2);
    assert_eq!(calls["a_day"], 3 * 1440 * 500);
    // 30 days of 216 times 10,000 calls at 0.05 USD.
    assert_eq!(calls["dollars_a_month"], "324.00");
    assert_eq!(calls["sts_a_day"], 0);
    let quotas = json!([
        // 500 calls a minute are 8.3333 a second of 10,000.
        {"quota": "GetSecretValue", "a_second": 10_000, "on_average": 0.0833, "all_at_once": 5.0},
        // 1000 calls a minute are 16.6667 a second of 100.
        {"quota": "BatchGetSecretValue", "a_second": 100, "on_average": 16.6667, "all_at_once": 1000.0},
    ]);
    assert_eq!(calls["quotas"], quotas);
    let said = stdout(&check(&stage, &["--replicas", "500"]));
    for part in ["2160000 a day", "324.00 USD", "16.6667 %", "1000 %"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[test]
fn sessions_of_a_chain_are_counted_among_the_calls_to_sts() {
    let roles = format!(", roles: [{{arn: \"{TWO}\", session_duration: 15m}}], expect_role: \"{TWO}\"");
    let calls = report(&with_irsa(&roles, &json!({})), &["--replicas", "10"])["calls"].clone();
    // Each pod a day: 24 exchanges of the token, 96 sessions of a quarter of an hour, and each of these is proved.
    assert_eq!(calls["sts_a_day"], 10 * (24 + 96 + 96));
}

#[test]
fn an_interval_of_a_fraction_is_counted_as_it_is() {
    let stage = stage("");
    stage.config(&block("interval: 1500ms", "keys: [{name: A, secret: prod/a}]\n"));
    assert_eq!(report(&stage, &[])["calls"]["a_day"], 57_600);
}

#[test]
fn five_secrets_are_a_page_that_one_takes_in() {
    let stage = stage(
        "primary_secret: {name: prod/json}\nkeys: [{name: A, secret: prod/a}, {name: B, secret: prod/b}, {name: C, \
         secret: prod/c}, {name: D, secret: prod/d}]\n",
    );
    for names in [&["prod/json", "prod/a", "prod/b", "prod/c", "prod/d"][..], &["prod/a"]] {
        allow_only(&stage, names);
        let output = check(&stage, &[]);
        let said = stdout(&output) + &stderr(&output);
        assert!(said.lines().count() <= 25, "{} lines: {said}", said.lines().count());
        for name in ["prod/json", "prod/a", "prod/b", "prod/c", "prod/d"] {
            let lines = said.lines().filter(|line| line.starts_with("secret ") && line.contains(name));
            assert_eq!(lines.count(), 1, "{name} in {said}");
        }
    }
}

// --- who writes

const STORING: &str = "general_settings:\n  key_management_system: aws_secret_manager\n  key_management_settings: \
                       {store_virtual_keys: true, hosted_keys: []}\n";

/// Virtual keys, which the role `writer` stores; `prod/a` is read by the user.
fn storing(writer: Role) -> Stage {
    let stage = Stage::with(seed().role(writer));
    secrets(&stage);
    let aws = format!("virtual_keys: {{aws: {{roles: [{{arn: \"{WRITER}\"}}]}}}}\n");
    stage.config(&block(
        "interval: 5m, call_timeout: 1s",
        &format!("{TWO_KEYS}{aws}spool: {{directory: \"{{dir}}/spool/in\"}}\n"),
    ));
    let ours = stage.read("keytide.yaml");
    stage.write("keytide.yaml", format!("{STORING}{ours}"));
    stage
}

fn writer() -> Role {
    Role::new("writer").trusts(ROOT)
}

fn verdicts(report: &Value) -> BTreeMap<String, String> {
    let text = |one: &Value, name: &str| one[name].as_str().unwrap().to_owned();
    let writes = report["online"]["writes"].as_array().unwrap();
    writes.iter().map(|one| (text(one, "action").replace("secretsmanager:", ""), text(one, "verdict"))).collect()
}

#[test]
fn writes_are_listed_as_what_cannot_be_proved_and_are_not_tried() {
    let stage = storing(writer());
    let (said, report) = checked(&stage, 0);
    assert!(said.contains("not provable") && said.contains("--simulate") && said.contains("litellm/"), "{said}");
    assert!(said.contains("assumed-role/writer/"), "the writer is proved: {said}");
    let verdicts = verdicts(&report);
    assert_eq!(verdicts.len(), 9);
    assert!(verdicts.values().all(|verdict| verdict == "not_provable"), "{verdicts:?}");
    assert_eq!(stage.aws.count("SimulatePrincipalPolicy"), 0);
}

#[test]
fn the_role_of_a_team_is_proved_from_who_writes() {
    const TEAM: &str = "arn:aws:iam::123456789012:role/team";
    let stage = storing(writer());
    let teams = format!("teams: [{{aws_role_name: \"{TEAM}\", aws_region_name: eu-west-1}}]");
    let config = stage.read("keytide.yaml").replace("spool: {", &format!("spool: {{{teams}, "));
    stage.write("keytide.yaml", config);
    let problems = report(&stage, &[])["problems"].to_string();
    assert!(problems.contains("virtual keys could not be stored for team") && problems.contains(TEAM), "{problems}");
    stage.aws.add_role(Role::new("team").trusts(WRITER));
    let said = report(&stage, &[]).to_string();
    assert!(said.contains("may be assumed") && !said.contains("could not be stored for team"), "{said}");
}

#[test]
fn simulated_writes_are_allowed_or_denied_one_by_one() {
    let below = "arn:aws:secretsmanager:us-east-1:123456789012:secret:litellm/*";
    let ask = || Statement::new(["iam:SimulatePrincipalPolicy"], [WRITER]);
    let all = storing(writer().allow(ask()).allow(Statement::new(["secretsmanager:*"], [below])));
    let answer = report(&all, &["--simulate"]);
    assert!(verdicts(&answer).values().all(|verdict| verdict == "allowed"), "{answer}");
    assert_eq!(answer["ok"], true);
    let put = storing(writer().allow(ask()).allow(Statement::new(["secretsmanager:PutSecretValue"], [below])));
    let answer = report(&put, &["--simulate"]);
    let verdicts = verdicts(&answer);
    assert_eq!((&verdicts["PutSecretValue"][..], &verdicts["CreateSecret"][..]), ("allowed", "denied"));
    assert_eq!(answer["ok"], false);
    let problems = answer["problems"].to_string();
    for part in ["secretsmanager:CreateSecret", "assumed-role/writer/", "litellm/"] {
        assert!(problems.contains(part), "{part} in {problems}");
    }
    let allow = answer["online"]["allow"].to_string();
    assert!(allow.contains("CreateSecret") && allow.contains(below) && !allow.contains("PutSecretValue"), "{allow}");
    for request in [all.aws.requests(), put.aws.requests()].concat() {
        assert!(HARMLESS.contains(&request.action.as_str()), "{request:?}");
    }
}

#[test]
fn who_may_not_ask_iam_is_told_what_to_allow_or_leave_out() {
    let answer = report(&storing(writer()), &["--simulate"]);
    let problems = answer["problems"].to_string();
    for part in ["iam:SimulatePrincipalPolicy", WRITER, "--simulate"] {
        assert!(problems.contains(part), "{part} in {problems}");
    }
    assert!(verdicts(&answer).values().all(|verdict| verdict == "not_provable"), "{answer}");
}

#[test]
fn an_answer_of_iam_that_decides_nothing_is_no_permission() {
    let stage = storing(writer());
    stage.aws.fault(Fault::on("SimulatePrincipalPolicy").kind(FaultKind::Body("<Other/>".to_owned())));
    let answer = report(&stage, &["--simulate"]);
    assert_eq!(answer["ok"], false, "{answer}");
    assert!(answer["problems"].to_string().contains("SimulatePrincipalPolicy"), "{answer}");
}

#[test]
fn iam_is_asked_about_a_role_with_its_path_wherever_the_configuration_says_it() {
    let expected = with_pod_identity(&format!(", expect_role: \"{POD}\""));
    for stage in [with_irsa("", &json!({})), expected] {
        let everything = Statement::new(["secretsmanager:*", "iam:*"], ["*"]);
        stage
            .aws
            .add_role(Role { path: "/eks/".to_owned(), ..Role::new("pod").allow(everything).trusts_web_identity() });
        let ours = stage.read("keytide.yaml");
        stage.write("keytide.yaml", format!("{STORING}{ours}"));
        let answer = report(&stage, &["--simulate"]);
        assert!(verdicts(&answer).values().all(|verdict| verdict == "allowed"), "{}", answer["problems"]);
    }
}

#[test]
fn somebody_who_may_not_be_the_writer_reads_and_is_told_that_virtual_keys_could_not_be_stored() {
    let stage = storing(Role::new("writer").trusts("arn:aws:iam::123456789012:user/other"));
    stage.aws.add_user(User::new("keytide", ACCESS_KEY_ID, SECRET_ACCESS_KEY).allow(Statement::new([GET], ["*"])));
    let (text, answer) = (check(&stage, &[]), report(&stage, &[]));
    let said = stdout(&text) + &stderr(&text);
    for part in [WRITER, "sts:AssumeRole", "virtual keys could not be stored", "NOT valid"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(!said.contains("`run` would fail"), "{said}");
    assert_eq!((text.status.code(), &answer["ok"]), (Some(1), &json!(false)));
    assert!(answer["online"]["reader"]["caller"] == USER, "who reads is fine: {answer}");
    assert_eq!(answer["online"]["secrets"][0]["result"], "read");
}

#[test]
fn the_session_of_the_writer_is_named_as_the_environment_says() {
    let mut stage = storing(writer());
    stage.env("AWS_ROLE_SESSION_NAME", "my-pod");
    let caller = report(&stage, &[])["online"]["writer"]["caller"].clone();
    assert_eq!(caller, "arn:aws:sts::123456789012:assumed-role/writer/my-pod");
}
