//! The secrets of the identity, wherever they are kept, never appear anywhere.

use std::fs;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use keytide_emulator::{Emulator, Fault, FaultKind, PodIdentity, Proxy, Role, Seed, Statement, Tls, User};

use crate::support::{ACCESS_KEY_ID, Daemon, SECRET_ACCESS_KEY, Stage, block, is_root, stderr, stdout, until};

const CANARY: &str = "canary-identity-5e1f07";
const ROLE: &str = "arn:aws:iam::123456789012:role/keytide";
const ONE: &str = "keys: [{name: A, secret: prod/a}]\n";

fn seed() -> Seed {
    let role = Role::new("keytide").allow(Statement::everything()).trusts_web_identity();
    let mut seed = Seed::default().role(role).user(User::new("c", "AKIACANARY", CANARY).allow(Statement::everything()));
    seed.pod_identity = Some(PodIdentity::new(ROLE));
    seed
}

/// Without credentials, and with everything that makes programs talk.
fn stage() -> Stage {
    let mut stage = Stage::with(seed());
    stage.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    stage.env("RUST_LOG", "trace").env("LOG_SENSITIVE_BODIES", "true").env("RUST_BACKTRACE", "full");
    stage.aws.put("prod/a", "1");
    stage.config(&block("interval: 700h, call_timeout: 1s", ONE));
    stage
}

/// A well-formed JSON web token whose claims and signature are canaries.
fn token() -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let claims = format!("{{\"sub\":\"{CANARY}\",\"aud\":\"sts.amazonaws.com\"}}");
    format!("{}.{}.{}", part("{\"alg\":\"RS256\"}"), part(&claims), part(CANARY))
}

fn with_agent() -> Stage {
    let mut stage = stage();
    let agent = format!("{}/v1/credentials", stage.aws.url());
    stage.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent);
    stage
}

/// LiteLLM's settings of the role and its token before keytide's block.
fn with_setting(token: &str) -> Stage {
    let stage = stage();
    let ours = stage.read("keytide.yaml");
    stage.write(
        "keytide.yaml",
        format!(
            "general_settings:\n  key_management_system: aws_secret_manager\n  key_management_settings:\n    \
             hosted_keys: []\n    aws_role_name: {ROLE}\n    aws_web_identity_token: {token}\n{ours}"
        ),
    );
    stage
}

fn run(stage: &Stage) -> Daemon {
    stage.run_with(&["--log-level", "trace", "run", "--config", &stage.path("keytide.yaml").display().to_string()])
}

/// What one command says, at the level at which it says everything.
fn said(stage: &Stage, arguments: &[&str]) -> String {
    let config = stage.path("keytide.yaml").display().to_string();
    let output = stage.keytide(&[&["--log-level", "trace"], arguments, &["--config", &config]].concat());
    stdout(&output) + &stderr(&output)
}

/// What the commands say that a user types before there is a daemon, or beside it.
fn asked(stage: &Stage) -> String {
    let mut text = String::new();
    for arguments in [
        &["check", "--online"][..],
        &["check", "--online", "--output", "json"],
        &["policy"],
        &["policy", "--output", "json"],
    ] {
        text += &said(stage, arguments);
    }
    text
}

/// What a running daemon shows.
fn shown(stage: &Stage, daemon: &Daemon) -> String {
    let mut text = daemon.log();
    let socket = stage.socket().display().to_string();
    for arguments in [&["status"][..], &["status", "--output", "json"], &["refresh"]] {
        let output = stage.keytide(&[&["--log-level", "trace"], arguments, &["--socket", &socket]].concat());
        text += &(stdout(&output) + &stderr(&output));
    }
    for path in ["/metrics", "/livez", "/readyz", "/startupz"] {
        text += &daemon.get(path).body;
    }
    text + &fs::read_to_string(format!("/proc/{}/cmdline", daemon.id())).unwrap()
}

fn assert_clean(text: &str) {
    let token = token();
    let mut forms = vec![CANARY.to_owned(), CANARY[..15].to_owned(), token.clone(), SECRET_ACCESS_KEY.to_owned()];
    forms.extend(token.split('.').skip(1).map(|part| part[..16].to_owned()));
    for secret in [CANARY.to_owned(), format!("user:{CANARY}"), token] {
        let encoded = STANDARD.encode(secret);
        forms.extend([encoded.trim_end_matches('=').to_owned(), encoded[..20].to_owned()]);
    }
    for form in forms {
        assert!(!text.contains(&form), "{form} in:\n{text}");
    }
}

/// While all is well, and while every call fails in every way that could carry a canary back.
fn assert_never_seen(stage: &Stage, aws: &Emulator) {
    let text = asked(stage);
    assert!(text.contains("\"ok\": true"), "{text}");
    assert_clean(&text);
    let daemon = run(stage);
    daemon.until_ready();
    let error = |status| FaultKind::Error { code: CANARY.to_owned(), status, message: CANARY.to_owned() };
    for kind in [
        error(400),
        error(403),
        FaultKind::Body(format!("<ErrorResponse><Error><Code>{CANARY}</Code></Error></ErrorResponse>{}", token())),
        FaultKind::EchoValue,
        FaultKind::CutAfter(60),
        FaultKind::ExpiredToken,
    ] {
        aws.clear_faults();
        aws.fault(Fault::any().kind(kind));
        daemon.hang_up();
        let text = said(stage, &["check", "--online", "--output", "json"]);
        assert!(text.contains("\"ok\": false"), "{text}");
        assert_clean(&text);
    }
    assert_clean(&said(stage, &["check", "--online"]));
    assert_clean(&said(stage, &["run", "--once", "--timeout", "300ms"]));
    assert_clean(&shown(stage, &daemon));
}

#[test]
fn the_token_of_a_web_identity_is_never_seen() {
    let mut stage = stage();
    let file = stage.write("token", token()).display().to_string();
    stage.env("AWS_ROLE_ARN", ROLE).env("AWS_WEB_IDENTITY_TOKEN_FILE", &file);
    assert_never_seen(&stage, &stage.aws);
}

#[test]
fn a_file_in_the_place_of_a_token_is_never_seen() {
    let mut stage = stage();
    let file = stage.write("token", format!("{CANARY}\n{}", token())).display().to_string();
    stage.env("AWS_ROLE_ARN", ROLE).env("AWS_WEB_IDENTITY_TOKEN_FILE", &file);
    let output = asked(&stage);
    assert!(output.contains(&file), "{output}");
    assert_clean(&output);
}

#[test]
fn a_literal_token_of_the_settings_is_never_seen() {
    let stage = with_setting(&token());
    assert_never_seen(&stage, &stage.aws);
    let mut stage = with_setting("oidc/env/TOKEN_OF_THE_POD");
    stage.env("TOKEN_OF_THE_POD", &token());
    assert_clean(&asked(&stage));
    for wrong in [format!("{}x/y", token()), format!("oidc/other/{CANARY}"), format!("[{}]", token())] {
        let output = asked(&with_setting(&wrong));
        assert!(output.contains("aws_web_identity_token"), "{output}");
        assert_clean(&output);
    }
}

#[test]
fn static_keys_and_session_tokens_are_never_seen() {
    let mut stage = stage();
    stage.env("AWS_ACCESS_KEY_ID", "AKIACANARY").env("AWS_SECRET_ACCESS_KEY", CANARY);
    assert_never_seen(&stage, &stage.aws);
    stage.env("AWS_SESSION_TOKEN", &token());
    assert_clean(&asked(&stage));
    assert_clean(&said(&stage, &["run", "--once", "--timeout", "300ms"]));
    stage.env_remove("AWS_ACCESS_KEY_ID");
    assert_clean(&asked(&stage));
}

#[test]
fn the_token_for_an_agent_is_never_seen() {
    let mut stage = with_agent();
    let file = stage.write("token", token()).display().to_string();
    stage.env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &file);
    assert_never_seen(&stage, &stage.aws);
    let mut stage = with_agent();
    stage.env("AWS_CONTAINER_AUTHORIZATION_TOKEN", &token());
    assert_clean(&asked(&stage));
    // What no header can hold is refused without being shown.
    stage.env("AWS_CONTAINER_AUTHORIZATION_TOKEN", &format!("{CANARY}\n{}", token()));
    assert_clean(&asked(&stage));
}

#[test]
fn the_keys_of_a_profile_are_never_seen() {
    let mut stage = stage();
    let keys = format!("[team]\naws_access_key_id = AKIACANARY\naws_secret_access_key = {CANARY}\n");
    let file = stage.write("credentials", keys).display().to_string();
    stage.env("AWS_SHARED_CREDENTIALS_FILE", &file).env("AWS_PROFILE", "team");
    assert_never_seen(&stage, &stage.aws);
    for broken in [
        format!("[team]\naws_access_key_id = AKIACANARY\naws_session_token = {CANARY}\n"),
        format!("[team\naws_secret_access_key = {CANARY}\n"),
        format!("{CANARY}\n[team]\n{}\n", token()),
        format!("[team]\nrole_arn = {CANARY}\nsource_profile = {CANARY}\n"),
        format!("[team]\naws_access_key_id = A\naws_secret_access_key = x\ncredential_process = echo {CANARY}\n"),
    ] {
        stage.write("credentials", broken);
        assert_clean(&asked(&stage));
    }
}

#[test]
fn the_password_of_a_proxy_is_never_seen() {
    let aws = Emulator::start_tls(seed(), ([127, 0, 0, 1], 0).into(), &Tls::new()).unwrap();
    aws.put("prod/a", "1");
    let proxy = Proxy::start(aws.address()).unwrap().credentials("user", CANARY);
    let mut stage = stage();
    let bundle = stage.write("ca.pem", aws.ca_pem().unwrap()).display().to_string();
    stage.env("AWS_CA_BUNDLE", &bundle).env("AWS_ENDPOINT_URL", &aws.url());
    stage.env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID).env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY);
    let address = proxy.address();
    stage.env("HTTPS_PROXY", &format!("http://user:{CANARY}@{address}"));
    assert_never_seen(&stage, &aws);
    assert!(!proxy.hosts().is_empty(), "it went through the proxy");
    for wrong in [
        format!("http://user:{CANARY}x@{address}"),
        format!("http://user:{CANARY}@127.0.0.1:1"),
        format!("socks5://user:{CANARY}@{address}"),
        format!("http://user:{CANARY}@{address}:x:y"),
        format!("user:{CANARY}@{address}"),
    ] {
        stage.env("HTTPS_PROXY", &wrong);
        assert_clean(&said(&stage, &["check", "--online", "--output", "json"]));
        assert_clean(&said(&stage, &["run", "--once", "--timeout", "300ms"]));
    }
}

#[test]
fn what_iam_answers_is_never_seen() {
    let mut stage = with_setting(&token());
    stage.env("AWS_ACCESS_KEY_ID", "AKIACANARY").env("AWS_SECRET_ACCESS_KEY", CANARY);
    let config = stage.read("keytide.yaml").replace("hosted_keys: []", "hosted_keys: []\n    store_virtual_keys: true");
    stage.write("keytide.yaml", config);
    for kind in [
        FaultKind::Error { code: CANARY.to_owned(), status: 403, message: CANARY.to_owned() },
        FaultKind::Body(format!("<member><EvalActionName>{CANARY}</EvalActionName></member>")),
        FaultKind::CutAfter(60),
    ] {
        stage.aws.clear_faults();
        stage.aws.fault(Fault::on("SimulatePrincipalPolicy").kind(kind));
        for form in ["text", "json"] {
            assert_clean(&said(&stage, &["check", "--online", "--simulate", "--output", form]));
        }
    }
    assert_eq!(stage.aws.count("SimulatePrincipalPolicy"), 6);
}

#[test]
fn nobody_looks_into_a_check_that_holds_values() {
    let mut stage = stage();
    stage.env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID).env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY);
    stage.config(&block(
        "interval: 700h, call_timeout: 20s",
        "keys: [{name: A, secret: prod/a}, {name: B, secret: prod/b}]\n",
    ));
    stage.aws.fault(Fault::on("GetSecretValue").secret("prod/b").kind(FaultKind::Hang));
    let check = stage.run_with(&["check", "--online", "--config", &stage.path("keytide.yaml").display().to_string()]);
    until("both reads", || stage.aws.count("GetSecretValue") == 2);
    let limits = fs::read_to_string(format!("/proc/{}/limits", check.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    if is_root() {
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(fs::metadata(format!("/proc/{}/environ", check.id())).unwrap().uid(), 0);
    } else {
        assert!(fs::read(format!("/proc/{}/environ", check.id())).is_err());
    }
}
