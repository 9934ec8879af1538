//! The auth vectors of LiteLLM (A01 to A14, M04, M05, E02), with LiteLLM's own settings. Where keytide differs, it does so on
//! purpose: a web identity works with a session name too and never has a session policy, a session's default name is
//! `keytide`, and what is wrong or missing is an error instead of another identity, another region or the environment's key.

use keytide_emulator::{PodIdentity, Request, Seed};

use crate::{
    cast::{
        KEYS, OFTEN, SECOND, arn, assert_clean, fails, irsa, keys_of, litellm, litellm_with, nobody, of_user, play,
        pod, reader, readers, reads, says, second_user, session, shared_files, somebody, sts, token,
    },
    support::{Stage, block, stderr, stdout, until},
};

/// The two roles of most vectors: `pod` of the web identity, `app` of whoever may assume it.
fn roles() -> Seed {
    let app = of_user("app").trusts(&arn("pod"));
    Seed::default().role(reader("pod").trusts_web_identity()).role(app)
}

/// The settings of a role.
fn role(name: &str, more: &str) -> String {
    format!("aws_role_name: {}\n{more}", arn(name))
}

fn static_keys() -> Stage {
    let mut stage = somebody(roles());
    stage.env_remove("AWS_REGION").env("AWS_REGION_NAME", "us-east-1");
    stage
}

const BY_USER: &str = "user/keytide in us-east-1";
const PROBE: &str = "GetCallerIdentity by user/keytide in us-east-1";
const POD: &str = "AssumeRoleWithWebIdentity role/pod as keytide unsigned";

/// A01.
#[test]
fn static_keys_of_the_environment_read_and_sts_is_not_asked() {
    let stage = static_keys();
    litellm(&stage, "");
    reads(&stage, BY_USER, &[]);
}

/// A02.
#[test]
fn static_keys_with_a_session_token_read_as_that_session() {
    let pod = PodIdentity::new(&arn("pod")).session_name("lent");
    let mut stage = nobody(Seed { pod_identity: Some(pod), ..roles() });
    let [id, secret, token] = session(&stage);
    stage.env("AWS_ACCESS_KEY_ID", &id).env("AWS_SECRET_ACCESS_KEY", &secret).env("AWS_SESSION_TOKEN", &token);
    litellm(&stage, "");
    let log = reads(&stage, "assumed-role/pod/lent in us-east-1", &[]);
    assert!(!log.contains(&secret) && !log.contains(&token[..20]), "{log}");
    stage.env_remove("AWS_SESSION_TOKEN");
    fails(&stage, 1, &[&id, "AWS does not accept the credentials"]);
}

/// A03.
#[test]
fn a_role_is_assumed_under_the_session_name_of_the_settings() {
    let stage = static_keys();
    litellm(&stage, &role("app", "aws_session_name: litellm"));
    reads(
        &stage,
        "assumed-role/app/litellm in us-east-1",
        &[PROBE, "AssumeRole role/app as litellm by user/keytide in us-east-1"],
    );
}

/// A03b.
#[test]
fn a_session_without_a_name_is_called_keytide_or_as_aws_role_session_name_says() {
    // LiteLLM: litellm-session-SECONDS, another one each time.
    let mut stage = static_keys();
    litellm(&stage, &role("app", ""));
    let assumed = "AssumeRole role/app as keytide by user/keytide in us-east-1";
    reads(&stage, "assumed-role/app/keytide in us-east-1", &[PROBE, assumed]);
    stage.env("AWS_ROLE_SESSION_NAME", "team-a");
    let assumed = "AssumeRole role/app as team-a by user/keytide in us-east-1";
    reads(&stage, "assumed-role/app/team-a in us-east-1", &[PROBE, assumed]);
}

/// A04.
#[test]
fn an_external_id_is_sent_where_one_is_set_and_not_elsewhere() {
    let stage = static_keys();
    stage.aws.add_role(of_user("guarded").external_id("unique-external-id"));
    litellm(&stage, &role("guarded", "aws_external_id: unique-external-id"));
    let assumed = "AssumeRole role/guarded as keytide id unique-external-id by user/keytide in us-east-1";
    reads(&stage, "assumed-role/guarded/keytide in us-east-1", &[PROBE, assumed]);
}

/// A05.
#[test]
fn irsa_alone_is_one_unsigned_exchange() {
    // LiteLLM, by boto3: botocore-session-SECONDS.
    let mut stage = pod(roles());
    litellm(&stage, "");
    reads(&stage, "assumed-role/pod/keytide in us-east-1", &[POD]);
    stage.env("AWS_ROLE_SESSION_NAME", "team-a");
    let exchanged = "AssumeRoleWithWebIdentity role/pod as team-a unsigned";
    reads(&stage, "assumed-role/pod/team-a in us-east-1", &[exchanged]);
}

/// A05b.
#[test]
fn static_keys_beside_irsa_win_and_a_notice_says_so() {
    let mut stage = static_keys();
    irsa(&mut stage, "pod");
    litellm(&stage, "");
    let log = reads(&stage, BY_USER, &[]);
    says(&log, &["static keys are used, although AWS_ROLE_ARN names a role"]);
}

/// A06.
#[test]
fn the_role_of_irsa_is_exchanged_once_and_not_assumed_from_itself() {
    let mut stage = pod(roles());
    litellm(&stage, &role("pod", ""));
    reads(&stage, "assumed-role/pod/keytide in us-east-1", &[POD]);
    // LiteLLM ignores the session's name here.
    litellm(&stage, &role("pod", "aws_session_name: litellm"));
    let exchanged = "AssumeRoleWithWebIdentity role/pod as litellm unsigned";
    reads(&stage, "assumed-role/pod/litellm in us-east-1", &[exchanged]);
    // Also beside static keys: who names the pod's own role means the token.
    stage.env("AWS_ACCESS_KEY_ID", SECOND.0).env("AWS_SECRET_ACCESS_KEY", SECOND.1);
    litellm(&stage, &role("pod", ""));
    reads(&stage, "assumed-role/pod/keytide in us-east-1", &[POD]);
}

/// A06c.
#[test]
fn an_external_id_beside_the_role_of_irsa_does_not_keep_it_from_its_token() {
    // LiteLLM goes through the default chain, which has no external id.
    let stage = pod(roles());
    litellm(&stage, &role("pod", "aws_external_id: unique-external-id"));
    reads(&stage, "assumed-role/pod/keytide in us-east-1", &[POD]);
    litellm(
        &stage,
        &role("pod", "aws_external_id: x-1\naws_web_identity_token: os.environ/AWS_WEB_IDENTITY_TOKEN_FILE"),
    );
    reads(&stage, "assumed-role/pod/keytide in us-east-1", &[POD]);
}

/// A07.
#[test]
fn another_role_is_assumed_from_the_role_of_irsa() {
    // LiteLLM asks GetCallerIdentity in between, for its log. Who exchanged a token knows.
    let stage = pod(roles());
    stage.aws.add_role(reader("guarded").trusts(&arn("pod")).external_id("x-1"));
    litellm(&stage, &role("guarded", "aws_external_id: x-1\naws_session_name: litellm"));
    reads(
        &stage,
        "assumed-role/guarded/litellm in us-east-1",
        &[
            "AssumeRoleWithWebIdentity role/pod as litellm unsigned",
            "AssumeRole role/guarded as litellm id x-1 by assumed-role/pod/litellm in us-east-1",
        ],
    );
}

/// A07b.
#[test]
fn static_keys_beside_irsa_assume_another_role() {
    let mut stage = static_keys();
    irsa(&mut stage, "pod");
    litellm(&stage, &role("app", ""));
    let assumed = "AssumeRole role/app as keytide by user/keytide in us-east-1";
    let log = reads(&stage, "assumed-role/app/keytide in us-east-1", &[PROBE, assumed]);
    says(&log, &["static keys are used"]);
}

/// The settings of the page's example for EKS.
const EKS: &str = "store_virtual_keys: true\naws_region_name: us-east-1\n\
                   aws_web_identity_token: os.environ/AWS_WEB_IDENTITY_TOKEN_FILE\n";

/// A08.
#[test]
fn the_example_for_eks_in_litellms_documentation_exchanges_the_pods_token() {
    let mut stage = pod(roles());
    stage.env_remove("AWS_REGION");
    litellm(&stage, &role("pod", EKS));
    reads(&stage, "assumed-role/pod/keytide in us-east-1", &[POD]);
    // The token is of use for another role that trusts it, too; LiteLLM leaves it aside.
    stage.aws.add_role(reader("other").trusts_web_identity());
    litellm(&stage, &role("other", EKS));
    let exchanged = "AssumeRoleWithWebIdentity role/other as keytide unsigned";
    reads(&stage, "assumed-role/other/keytide in us-east-1", &[exchanged]);
}

/// A08b.
#[test]
fn that_example_works_with_a_session_name_too() {
    // LiteLLM: an exception, and the environment's key.
    let mut stage = pod(roles());
    let exchanged = "AssumeRoleWithWebIdentity role/pod as litellm unsigned";
    litellm(&stage, &role("pod", &format!("{EKS}aws_session_name: litellm")));
    reads(&stage, "assumed-role/pod/litellm in us-east-1", &[exchanged]);
    stage.env("AWS_SESSION_NAME", "litellm");
    litellm(&stage, &role("pod", EKS));
    reads(&stage, "assumed-role/pod/litellm in us-east-1", &[exchanged]);
}

/// A08d and A08e.
#[test]
fn without_hosted_keys_nothing_hangs_and_nothing_is_asked_for() {
    // LiteLLM: 68 calls at boot, and with a session name it hangs.
    let stage = pod(roles());
    for session in ["", "aws_session_name: litellm"] {
        stage.aws.clear_requests();
        litellm_with(&stage, &role("pod", &format!("{EKS}{session}")));
        let output = stage.once();
        let log = stderr(&output);
        assert!(output.status.code().is_some(), "{log}");
        says(&log, &["neither hosted_keys nor primary_secret_name is given"]);
        assert!(stage.aws.requests().is_empty(), "{log}");
        // With a primary secret there is something to read.
        stage.aws.put("all", r#"{"A": "1"}"#);
        litellm_with(&stage, &role("pod", &format!("{EKS}{session}\nprimary_secret_name: all")));
        let who = if session.is_empty() { "keytide" } else { "litellm" };
        let exchanged = format!("AssumeRoleWithWebIdentity role/pod as {who} unsigned");
        reads(&stage, &format!("assumed-role/pod/{who} in us-east-1"), &[&exchanged]);
    }
}

/// A09.
#[test]
fn every_form_of_a_token_is_exchanged_without_a_session_policy() {
    // LiteLLM sends a policy that is for Bedrock and denies secretsmanager:*; a raw path and a raw token it refuses (A09e),
    // and a file outside of its directories (A09b).
    let mut stage = static_keys();
    let file = stage.write("elsewhere/token", token("pod")).display().to_string();
    stage.env("MY_TOKEN_FILE", &file).env("MY_TOKEN", &token("pod"));
    let exchanged = "AssumeRoleWithWebIdentity role/pod as litellm unsigned";
    for (form, notice) in [
        ("oidc/env_path/MY_TOKEN_FILE".to_owned(), false),
        (format!("oidc/file/{file}"), false),
        (format!("oidc/file//{}", &file[1..]), false),
        (file.clone(), false),
        ("os.environ/MY_TOKEN_FILE".to_owned(), false),
        ("oidc/env/MY_TOKEN".to_owned(), true),
        ("os.environ/MY_TOKEN".to_owned(), true),
        (token("pod"), true),
    ] {
        litellm(&stage, &role("pod", &format!("aws_session_name: litellm\naws_web_identity_token: {form}")));
        let log = reads(&stage, "assumed-role/pod/litellm in us-east-1", &[exchanged]);
        assert_eq!(log.contains("cannot be renewed: give the path of its file instead"), notice, "{form}: {log}");
    }
    litellm(&stage, &role("pod", &format!("aws_web_identity_token: {file}")));
    reads(&stage, "assumed-role/pod/keytide in us-east-1", &[POD]);
}

/// A09c.
#[test]
fn a_token_that_cannot_be_found_is_an_error_and_no_other_identity_is_tried() {
    let mut stage = static_keys();
    litellm(&stage, &role("pod", "aws_web_identity_token: oidc/env_path/NOSUCH"));
    fails(&stage, 64, &["aws_web_identity_token", "the environment variable that it names is not set"]);
    for form in ["no/such/thing", "oidc/google/audience", "oidc/env_path/A10"] {
        stage.env("A10", "relative/path");
        litellm(&stage, &role("pod", &format!("aws_web_identity_token: {form}")));
        fails(&stage, 64, &["aws_web_identity_token", "expected the absolute path of a token's file"]);
    }
    let gone = stage.path("gone").display().to_string();
    litellm(&stage, &role("pod", &format!("aws_web_identity_token: {gone}")));
    fails(&stage, 1, &[&gone, "entity not found"]);
    assert!(stage.aws.requests().is_empty());
    // What refers to a variable that is not set is left out, and that is said.
    litellm(&stage, &role("app", "aws_web_identity_token: os.environ/NOSUCH"));
    let assumed = "AssumeRole role/app as keytide by user/keytide in us-east-1";
    let log = reads(&stage, "assumed-role/app/keytide in us-east-1", &[PROBE, assumed]);
    says(&log, &["aws_web_identity_token", "is not set: taken as left out"]);
    stage.env("A", "of the environment");
    litellm(&stage, &role("pod", &format!("aws_web_identity_token: {gone}")));
    fails(&stage, 1, &[&gone]);
}

/// A09d.
#[test]
fn an_external_id_beside_a_token_assumes_the_role_from_the_own_identity() {
    // LiteLLM: a ParamValidationError, and the environment's key.
    let mut stage = static_keys();
    let file = stage.write("elsewhere/token", token("pod")).display().to_string();
    stage.aws.add_role(of_user("guarded").trusts_web_identity().trusts(&arn("pod")).external_id("x-1"));
    let settings = format!("aws_session_name: litellm\naws_external_id: x-1\naws_web_identity_token: {file}");
    litellm(&stage, &role("guarded", &settings));
    let assumed = "AssumeRole role/guarded as litellm id x-1 by user/keytide in us-east-1";
    let log = reads(&stage, "assumed-role/guarded/litellm in us-east-1", &[PROBE, assumed]);
    says(&log, &["a web identity has no external id"]);
    stage.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    irsa(&mut stage, "pod");
    let calls = [
        "AssumeRoleWithWebIdentity role/pod as litellm unsigned",
        "AssumeRole role/guarded as litellm id x-1 by assumed-role/pod/litellm in us-east-1",
    ];
    reads(&stage, "assumed-role/guarded/litellm in us-east-1", &calls);
}

/// A10.
#[test]
fn the_region_is_that_of_the_settings_then_of_three_variables_and_none_is_an_error() {
    // LiteLLM without one: us-west-2.
    let mut stage = static_keys();
    for region in ["eu-west-1", "eu-west-2", "eu-west-3", "eu-central-1"] {
        stage.aws.put_in(region, "A", "1");
    }
    stage.env("AWS_REGION_NAME", "eu-west-2").env("AWS_REGION", "eu-west-3").env("AWS_DEFAULT_REGION", "eu-central-1");
    litellm(&stage, "aws_region_name: eu-west-1");
    reads(&stage, "user/keytide in eu-west-1", &[]);
    litellm(&stage, &role("app", "aws_region_name: eu-west-1"));
    let calls = [
        "GetCallerIdentity by user/keytide in eu-west-1",
        "AssumeRole role/app as keytide by user/keytide in eu-west-1",
    ];
    reads(&stage, "assumed-role/app/keytide in eu-west-1", &calls);
    litellm(&stage, "");
    for (variable, region) in
        [("AWS_REGION_NAME", "eu-west-2"), ("AWS_REGION", "eu-west-3"), ("AWS_DEFAULT_REGION", "eu-central-1")]
    {
        reads(&stage, &format!("user/keytide in {region}"), &[]);
        stage.env_remove(variable);
    }
    fails(&stage, 64, &["a region is required", "aws_region_name", "AWS_REGION"]);
    stage.env("MY_REGION", "eu-west-1");
    litellm(&stage, "aws_region_name: os.environ/MY_REGION");
    reads(&stage, "user/keytide in eu-west-1", &[]);
}

/// A10f.
#[test]
fn a_region_that_cannot_be_one_is_an_error_and_not_the_environments_key() {
    let mut stage = static_keys();
    litellm(&stage, "aws_region_name: EU_WEST_1");
    fails(&stage, 64, &["aws_region_name", "expected a region such as us-east-1"]);
    stage.env("AWS_REGION_NAME", "EU_WEST_1");
    litellm(&stage, "");
    fails(&stage, 64, &["AWS_REGION_NAME", "expected a region such as us-east-1"]);
}

/// A11.
#[test]
fn a_profile_gives_its_keys_and_a_missing_one_is_an_error() {
    // LiteLLM with a missing one: the environment's key.
    let mut stage = static_keys();
    stage.aws.add_user(second_user());
    shared_files(&mut stage, "", &format!("[team]\n{}", keys_of(SECOND)));
    litellm(&stage, "aws_profile_name: team");
    reads(&stage, "user/second in us-east-1", &[]);
    litellm(&stage, "aws_profile_name: nobody");
    stage.env("A", "of the environment");
    fails(
        &stage,
        1,
        &["profile nobody", "there is no such profile", &stage.path("aws/credentials").display().to_string()],
    );
    assert!(stage.aws.requests().is_empty(), "and nobody else is tried");
    // Beside a role LiteLLM ignores it, and so it is here.
    litellm(&stage, &role("app", "aws_profile_name: team"));
    let assumed = "AssumeRole role/app as keytide by user/keytide in us-east-1";
    let log = reads(&stage, "assumed-role/app/keytide in us-east-1", &[PROBE, assumed]);
    says(&log, &["aws_profile_name", "ignored beside aws_role_name, as in LiteLLM"]);
}

/// A12.
#[test]
fn litellms_own_variables_stand_for_settings_that_are_left_out() {
    let mut stage = static_keys();
    stage.aws.add_role(of_user("guarded").external_id("x-1"));
    stage.env("AWS_ROLE_NAME", &arn("guarded")).env("AWS_EXTERNAL_ID", "x-1");
    litellm(&stage, "");
    let assumed = "AssumeRole role/guarded as keytide id x-1 by user/keytide in us-east-1";
    reads(&stage, "assumed-role/guarded/keytide in us-east-1", &[PROBE, assumed]);
    stage.env("AWS_SESSION_NAME", "litellm");
    let assumed = "AssumeRole role/guarded as litellm id x-1 by user/keytide in us-east-1";
    reads(&stage, "assumed-role/guarded/litellm in us-east-1", &[PROBE, assumed]);
    // A setting goes before its variable.
    litellm(&stage, &role("guarded", "aws_session_name: mine"));
    let assumed = "AssumeRole role/guarded as mine id x-1 by user/keytide in us-east-1";
    reads(&stage, "assumed-role/guarded/mine in us-east-1", &[PROBE, assumed]);
    // They are LiteLLM's: without its block they are nobody's.
    stage.config(&block(OFTEN, KEYS));
    reads(&stage, BY_USER, &[]);
}

/// A12b.
#[test]
fn litellms_variables_of_a_token_and_of_a_profile_stand_for_their_settings() {
    let mut stage = static_keys();
    let file = stage.write("elsewhere/token", token("pod")).display().to_string();
    stage.env("AWS_ROLE_NAME", &arn("pod")).env("AWS_WEB_IDENTITY_TOKEN", &file);
    litellm(&stage, "");
    reads(&stage, "assumed-role/pod/keytide in us-east-1", &[POD]);
    let mut stage = static_keys();
    stage.aws.add_user(second_user());
    shared_files(&mut stage, "", &format!("[team]\n{}", keys_of(SECOND)));
    stage.env("AWS_PROFILE_NAME", "team");
    litellm(&stage, "");
    reads(&stage, "user/second in us-east-1", &[]);
}

/// A13.
#[test]
fn sts_is_asked_at_the_endpoint_of_the_settings_and_secrets_are_not() {
    let mut stage = static_keys();
    let port = stage.aws.address().port();
    let there = format!("http://localhost:{port}");
    let hosts = |stage: &Stage| -> Vec<(String, String)> {
        let of = |request: Request| (request.action, request.host.unwrap_or_default());
        stage.aws.requests().into_iter().map(of).collect()
    };
    let (sts, secrets) = (format!("localhost:{port}"), format!("127.0.0.1:{port}"));
    let expected = [("GetCallerIdentity", &sts), ("AssumeRole", &sts), ("GetSecretValue", &secrets)];
    let expected = expected.map(|(action, host)| (action.to_owned(), host.clone()));
    let assumed = "AssumeRole role/app as keytide by user/keytide in us-east-1";
    litellm(&stage, &role("app", &format!("aws_sts_endpoint: {there}")));
    let log = reads(&stage, "assumed-role/app/keytide in us-east-1", &[PROBE, assumed]);
    assert_eq!(hosts(&stage), expected);
    says(&log, &["aws_sts_endpoint", &format!("STS is called at {there}, not at AWS's own endpoint")]);
    stage.env("AWS_STS_ENDPOINT", &there);
    litellm(&stage, &role("app", ""));
    reads(&stage, "assumed-role/app/keytide in us-east-1", &[PROBE, assumed]);
    assert_eq!(hosts(&stage), expected);
}

/// A14.
#[test]
fn settings_refer_to_variables_and_one_that_is_not_set_leaves_its_setting_out() {
    let mut stage = static_keys();
    stage.aws.add_role(of_user("guarded").external_id("x-1"));
    stage.env("MYROLE", &arn("guarded")).env("MYID", "x-1");
    litellm(
        &stage,
        "aws_role_name: os.environ/MYROLE\naws_external_id: os.environ/MYID\naws_session_name: os.environ/NOSUCH",
    );
    let assumed = "AssumeRole role/guarded as keytide id x-1 by user/keytide in us-east-1";
    let log = reads(&stage, "assumed-role/guarded/keytide in us-east-1", &[PROBE, assumed]);
    says(&log, &["aws_session_name", "is not set: taken as left out"]);
}

/// M04.
#[test]
fn a_role_is_one_round_of_sts_for_many_reads() {
    let stage = static_keys();
    litellm(&stage, &role("app", ""));
    let scene = play(stage);
    until("three reads", || scene.stage.aws.count("GetSecretValue") >= 3);
    assert_eq!(sts(&scene.stage), [PROBE, "AssumeRole role/app as keytide by user/keytide in us-east-1"]);
    assert_eq!(readers(&scene.stage), ["assumed-role/app/keytide in us-east-1"]);
    scene.recovers();
}

/// M05.
#[test]
fn pod_identity_reads_as_the_role_of_its_association_and_assumes_no_role_twice() {
    let pod = PodIdentity::new(&arn("pod")).token(&token("pod")).session_name("eks");
    let roles = Seed::default().role(reader("pod")).role(reader("app").trusts(&arn("pod")));
    let mut stage = nobody(Seed { pod_identity: Some(pod), ..roles });
    let file = stage.write("eks/token", token("pod")).display().to_string();
    let agent = format!("{}/v1/credentials", stage.aws.url());
    stage.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent).env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &file);
    litellm(&stage, "");
    reads(&stage, "assumed-role/pod/eks in us-east-1", &[]);
    assert_eq!(stage.aws.count("AssumeRoleForPodIdentity"), 1);
    let probe = "GetCallerIdentity by assumed-role/pod/eks in us-east-1";
    litellm(&stage, &role("pod", ""));
    reads(&stage, "assumed-role/pod/eks in us-east-1", &[probe]);
    litellm(&stage, &role("app", "aws_session_name: litellm"));
    let assumed = "AssumeRole role/app as litellm by assumed-role/pod/eks in us-east-1";
    reads(&stage, "assumed-role/app/litellm in us-east-1", &[probe, assumed]);
}

/// E02.
#[test]
fn the_endpoint_of_bedrock_is_not_that_of_secrets() {
    // LiteLLM sends secrets to a host that does not exist.
    let mut stage = static_keys();
    let vpce = "https://vpce-0abc.bedrock-runtime.us-east-1.vpce.amazonaws.com";
    stage.env("AWS_BEDROCK_RUNTIME_ENDPOINT", vpce);
    litellm(&stage, "");
    let log = reads(&stage, BY_USER, &[]);
    assert!(!log.contains("vpce"), "{log}");
    let host = stage.aws.requests().pop().and_then(|request| request.host);
    assert_eq!(host, Some(stage.aws.address().to_string()));
}

#[test]
fn a_token_in_the_settings_is_not_seen_where_they_are_refused_or_shown() {
    let stage = static_keys();
    litellm(&stage, &role("pod", &format!("aws_web_identity_token: {}\naws_region_name: EU_WEST_1", token("pod"))));
    fails(&stage, 64, &["aws_region_name"]);
    litellm(&stage, &role("pod", &format!("aws_web_identity_token: {}.and.more", token("pod"))));
    fails(&stage, 64, &["aws_web_identity_token"]);
    litellm(&stage, &role("pod", &format!("aws_web_identity_token: {}", token("pod"))));
    let config = stage.path("keytide.yaml").display().to_string();
    for arguments in [&["check", "--config", &config][..], &["check", "--online", "--config", &config]] {
        let output = stage.keytide(arguments);
        assert_clean(&(stdout(&output) + &stderr(&output)));
    }
}
