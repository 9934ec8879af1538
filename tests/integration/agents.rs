//! Credentials from nearby: the agent of EKS Pod Identity, and the metadata service of a node. Never through a proxy, never
//! from somebody who was not asked for.

use std::{
    net::{Ipv6Addr, TcpListener},
    time::Duration,
};

use keytide_emulator::{Emulator, Fault, FaultKind, PodIdentity, Seed};
use serde_json::json;

use crate::{
    cast::{
        LATE, PROXY_PASSWORD, SECOND, Scene, arn, assert_clean, aws, fails, irsa, keys_of, lenient, nobody, play, pod,
        reader, readers, reads, says, second_user, shared_files, sts, together, token, token_until,
    },
    support::{ACCESS_KEY_ID, SECRET_ACCESS_KEY, Stage, stderr, until},
};

const AGENT: &str = "AssumeRoleForPodIdentity";
const URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";

fn seed(token: &str) -> Seed {
    let pod = PodIdentity::new(&arn("eks")).token(token).session_name("eks");
    Seed { pod_identity: Some(pod), session_lifetime_seconds: Some(2), ..Seed::default().role(reader("eks")) }
}

/// What EKS's webhook sets for Pod Identity.
fn stage() -> Stage {
    stage_of(seed(&token("pod")))
}

fn stage_of(seed: Seed) -> Stage {
    let mut stage = nobody(seed);
    let file = stage.write("eks/token", token("pod")).display().to_string();
    let url = format!("{}/v1/credentials", stage.aws.url());
    stage.env(URI, &url).env(TOKEN_FILE, &file);
    stage
}

/// A proxy that nobody is to talk to.
struct Trap(TcpListener);

impl Trap {
    fn new(stage: &mut Stage, variables: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://keytide:{PROXY_PASSWORD}@{}", listener.local_addr().unwrap());
        for name in variables {
            stage.env(name, &url);
        }
        Self(listener)
    }

    #[track_caller]
    fn nobody_came(&self) {
        assert!(self.0.accept().is_err(), "somebody talked to the proxy");
    }
}

#[test]
fn pod_identity_is_renewed_with_the_token_that_the_file_holds_then() {
    let scene = play(stage());
    assert_eq!(readers(&scene.stage), ["assumed-role/eks/eks in us-east-1"]);
    assert!(scene.metric("keytide_credentials_expiry_timestamp_seconds") > 0.0);
    scene.stage.write("eks/token", token("second"));
    scene.stage.aws.set_pod_identity(Some(PodIdentity::new(&arn("eks")).token(&token("second")).session_name("new")));
    until("a session by the second token", || {
        readers(&scene.stage).contains(&"assumed-role/eks/new in us-east-1".to_owned())
    });
    scene.recovers();
}

fn error(status: u16) -> FaultKind {
    FaultKind::Error { code: "Canary".to_owned(), status, message: "canary-message".to_owned() }
}

#[test]
fn an_agent_that_gives_nothing_leaves_the_last_good_value() {
    let page = FaultKind::Body("<html>canary-page".to_owned());
    let half = r#"{"AccessKeyId": "ASIACANARY", "SecretAccessKey": "canary-secret", "Token": "", "Expiration": "2100-01-01T00:00:00Z"}"#;
    let old = half.replace("\"\"", "\"canary-token\"").replace("2100", "2001");
    let cases = [
        (FaultKind::Throttle, "unavailable", "HTTP status 429"),
        (FaultKind::InternalError, "unavailable", "HTTP status 500"),
        (error(403), "identity", "HTTP status 403; the service account needs a Pod Identity association"),
        (FaultKind::Hang, "unavailable", "no answer in time"),
        (FaultKind::CutAfter(20), "unavailable", "the connection ended"),
        (page, "unavailable", "the answer holds no valid credentials"),
        (FaultKind::Body(half.to_owned()), "unavailable", "the answer holds no valid credentials"),
        (FaultKind::Body(old), "unavailable", "they have already ended"),
    ];
    together(cases, |(kind, reason, what)| {
        let scene = play(stage());
        scene.stage.aws.fault(Fault::on(AGENT).kind(kind));
        scene.suffers(reason, &[&scene.stage.aws.address().to_string(), what]);
        scene.stage.aws.clear_faults();
        scene.recovers();
    });
}

#[test]
fn credentials_of_an_agent_that_aws_does_not_know_are_not_seen() {
    let scene = play(stage());
    let body = r#"{"AccessKeyId": "ASIACANARY", "SecretAccessKey": "canary-secret", "Token": "canary-token", "Expiration": "2100-01-01T00:00:00Z"}"#;
    scene.stage.aws.fault(Fault::on(AGENT).times(1).kind(FaultKind::Body(body.to_owned())));
    scene.suffers("identity", &["GetSecretValue", "UnrecognizedClientException", "the agent at"]);
}

#[test]
fn a_pod_without_an_association_is_told_what_it_needs_and_goes_on_once_there_is_one() {
    let stage = stage();
    let words = ["HTTP status 404", "the service account needs a Pod Identity association", "pods.eks.amazonaws.com"];
    stage.aws.set_pod_identity(None);
    fails(&stage, 1, &words);
    let association = || Some(PodIdentity::new(&arn("eks")).session_name("eks"));
    stage.aws.set_pod_identity(association());
    let scene = play(stage);
    scene.stage.aws.set_pod_identity(None);
    scene.suffers("identity", &words);
    scene.stage.aws.set_pod_identity(association());
    scene.recovers();
}

#[test]
fn an_agents_token_that_cannot_be_used_is_told_by_its_file() {
    let cases = [
        ("missing", "entity not found"),
        ("empty", "the file is empty"),
        ("directory", "not a regular file"),
        ("two lines", "it holds what cannot be sent"),
        ("ended", "HTTP status 400"),
        ("somebody else's", "HTTP status 400"),
    ];
    together(cases, |(case, what)| {
        let mut scene = play(stage());
        let file = scene.stage.path("eks/token");
        match case {
            "missing" => std::fs::remove_file(&file).unwrap(),
            "directory" => {
                std::fs::remove_file(&file).unwrap();
                std::fs::create_dir(&file).unwrap();
            }
            "empty" => drop(scene.stage.write("eks/token", "\n")),
            "two lines" => drop(scene.stage.write("eks/token", format!("{}\nX: y", token("pod")))),
            "ended" => drop(scene.stage.write("eks/token", token_until(1_700_000_000))),
            _ => drop(scene.stage.write("eks/token", token("another-pod"))),
        }
        // What the agent does not take is not the file's fault, as far as keytide knows.
        let file_is_said = if what.starts_with("HTTP") { String::new() } else { file.display().to_string() };
        scene.suffers("identity", &[what, &file_is_said]);
        if case == "directory" {
            std::fs::remove_dir(&file).unwrap();
        }
        scene.stage.write("eks/token", token("pod"));
        scene.heals();
    });
}

#[test]
fn an_agent_that_does_not_run_is_told_with_the_add_on() {
    let mut stage = stage();
    stage.env(URI, "http://127.0.0.1:1/v1/credentials");
    fails(&stage, 1, &["127.0.0.1:1", "no connection", "does the add-on eks-pod-identity-agent run on this node?"]);
    assert!(stage.aws.requests().is_empty(), "nobody else is tried");
}

#[test]
fn an_agent_with_an_ipv6_address_is_asked_there() {
    // All of AWS listens there, since its agent's sessions are its own.
    let mut stage = stage();
    let there = Emulator::start_with(seed(&token("pod")).secret("A", "1"), (Ipv6Addr::LOCALHOST, 0).into()).unwrap();
    stage.env("AWS_ENDPOINT_URL", &there.url()).env(URI, &format!("{}/v1/credentials", there.url()));
    assert!(there.url().starts_with("http://[::1]:"));
    let output = stage.once();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stage.values(), json!({"A": "1"}));
    assert_eq!(there.count(AGENT), 1);
    assert!(stage.aws.requests().is_empty());
}

#[test]
fn an_agents_token_goes_to_nobody_who_is_not_of_this_machine_or_its_link() {
    let mut stage = stage();
    for url in [
        "http://192.0.2.1/v1/credentials",
        "http://169.254.169.254/v1/credentials",
        "http://agent.example.com/v1/credentials",
        "http://127.0.0.1@agent.example.com/v1/credentials",
        "https://127.0.0.1/v1/credentials",
        "http://[fd00:ec2::24]/v1/credentials",
        "ftp://169.254.170.23/",
        "169.254.170.23",
    ] {
        stage.env(URI, url);
        fails(&stage, 64, &[URI, "its token is sent nowhere else"]);
    }
    stage.env_remove(URI).env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", ".example.com/v1");
    fails(&stage, 64, &["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "its token is sent nowhere else"]);
    stage.env_remove("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    let url = format!("{}/v1/credentials", stage.aws.url());
    stage.env(URI, &url).env(TOKEN_FILE, "eks/token");
    fails(&stage, 64, &[TOKEN_FILE, "expected an absolute path"]);
}

#[test]
fn no_proxy_sees_an_agents_token_or_anything_else_of_this_machine() {
    let variables = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    together([&variables[..3], &variables[3..]], |variables| {
        let mut stage = stage();
        let trap = Trap::new(&mut stage, variables);
        aws(&stage, &format!("roles: [{{arn: \"{}\"}}]", arn("eks")));
        let scene = play(stage);
        until("two sessions", || scene.stage.aws.count(AGENT) >= 2);
        assert!(scene.daemon.log().contains("AWS is called through the proxy 127.0.0.1:"));
        scene.recovers();
        trap.nobody_came();
    });
    // Nor do others learn its password where it cannot be used.
    let mut stage = stage();
    stage.env("HTTPS_PROXY", &format!("socks5://keytide:{PROXY_PASSWORD}@127.0.0.1:1"));
    fails(&stage, 64, &["HTTPS_PROXY", "expected the http or https URL of a proxy"]);
    stage.env("HTTPS_PROXY", &format!("http://keytide:{PROXY_PASSWORD}/x@127.0.0.1:1"));
    fails(&stage, 64, &["HTTPS_PROXY", "expected the http or https URL of a proxy"]);
}

#[test]
fn no_proxy_sees_a_web_identity_token_or_the_nodes_credentials() {
    let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let mut stage = pod(Seed::default().role(reader("pod").trusts_web_identity()));
    let trap = Trap::new(&mut stage, &names);
    reads(&stage, "assumed-role/pod/keytide in us-east-1", &["AssumeRoleWithWebIdentity role/pod as keytide unsigned"]);
    trap.nobody_came();
    let mut stage = node("allow_instance_role: true");
    let trap = Trap::new(&mut stage, &names);
    reads(&stage, NODE, &[]);
    trap.nobody_came();
}

#[test]
fn the_order_of_identities_is_that_of_the_documentation_and_one_is_tried() {
    // The agent, and everything that goes before it, one after the other.
    let mut stage = stage();
    stage.aws.add_role(reader("pod").trusts_web_identity());
    stage.aws.add_user(second_user());
    stage.aws.set_instance_role(Some(&arn("eks")));
    let url = stage.aws.url();
    stage.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url);
    aws(&stage, "allow_instance_role: true");
    let keys = keys_of(SECOND);
    shared_files(&mut stage, "", &format!("[default]\nregion = x\n[team]\n{keys}"));
    reads(&stage, "assumed-role/eks/eks in us-east-1", &[]);
    assert_eq!(stage.aws.count("MetadataToken"), 0);
    stage.env("AWS_PROFILE", "team");
    reads(&stage, "user/second in us-east-1", &[]);
    irsa(&mut stage, "pod");
    let exchanged = "AssumeRoleWithWebIdentity role/pod as keytide unsigned";
    reads(&stage, "assumed-role/pod/keytide in us-east-1", &[exchanged]);
    stage.env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID).env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY);
    reads(&stage, "user/keytide in us-east-1", &[]);
    aws(&stage, "profile: team");
    reads(&stage, "user/second in us-east-1", &[]);
    let file = stage.path("token").display().to_string();
    let roles = format!("roles: [{{arn: \"{}\"}}], web_identity_token_file: {file}", arn("pod"));
    aws(&stage, &format!("{roles}, profile: team"));
    fails(&stage, 64, &["keytide.aws.profile", "take one of them out"]);
    aws(&stage, &roles);
    reads(&stage, "assumed-role/pod/keytide in us-east-1", &[exchanged]);
    assert_eq!(stage.aws.count(AGENT), 0);
}

const NODE: &str = "assumed-role/node/i-0123456789abcdef0 in us-east-1";

/// An instance whose role may read, and a pod on it that has nothing.
fn node(settings: &str) -> Stage {
    let seed = Seed { instance_role: Some(arn("node")), session_lifetime_seconds: Some(2), ..Seed::default() };
    let mut stage = nobody(seed.role(reader("node")));
    let url = stage.aws.url();
    stage.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url);
    aws(&stage, settings);
    stage
}

#[test]
fn the_node_is_never_asked_for_its_role_unless_that_is_allowed() {
    let stage = node("use_fips_endpoint: false");
    fails(&stage, 1, &["allow_instance_role"]);
    assert!(stage.aws.requests().is_empty(), "{:?}", stage.aws.requests());
    let mut stage = node("allow_instance_role: true");
    stage.env("AWS_EC2_METADATA_DISABLED", "true");
    fails(&stage, 1, &["no AWS credentials"]);
    assert!(stage.aws.requests().is_empty());
    stage.env_remove("AWS_EC2_METADATA_DISABLED").env("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://192.0.2.1/");
    fails(&stage, 64, &["AWS_EC2_METADATA_SERVICE_ENDPOINT", "the address of the instance metadata service"]);
}

#[test]
fn a_pod_whose_own_identity_fails_is_not_the_node() {
    let mut stage = node("allow_instance_role: true");
    irsa(&mut stage, "nosuch");
    fails(&stage, 1, &[&arn("nosuch"), "trust policy"]);
    assert_eq!(stage.aws.count("MetadataToken"), 0);
}

#[test]
fn the_nodes_role_reads_where_that_is_allowed_and_is_renewed() {
    let stage = node("allow_instance_role: true");
    let scene = play(stage);
    assert_eq!(readers(&scene.stage), [NODE]);
    until("a renewal", || scene.stage.aws.count("MetadataCredentials") >= 2);
    assert!(sts(&scene.stage).is_empty());
    scene.recovers();
}

#[test]
fn a_metadata_service_that_gives_nothing_leaves_the_last_good_value() {
    let cases: [(&str, FaultKind, &str, &str); 6] = [
        ("MetadataRole", error(404), "identity", "the node has no role"),
        ("MetadataToken", FaultKind::InternalError, "unavailable", "HTTP status 500"),
        ("MetadataToken", FaultKind::Hang, "unavailable", "hop limit is 2 or more"),
        ("MetadataRole", FaultKind::Body("canary role\r\nx".to_owned()), "identity", "the node has no role"),
        ("MetadataCredentials", FaultKind::Body("{canary-".to_owned()), "unavailable", "none that are valid"),
        ("MetadataCredentials", FaultKind::CutAfter(20), "unavailable", "the connection ended"),
    ];
    together(cases, |(action, kind, reason, what)| {
        let scene = play(node("allow_instance_role: true"));
        scene.stage.aws.fault(Fault::on(action).kind(kind));
        scene.suffers(reason, &["failed to get the node's credentials", what]);
        scene.stage.aws.clear_faults();
        scene.recovers();
    });
}

#[test]
fn what_an_agent_gives_is_used_to_its_end_and_asked_for_once_for_all() {
    let mut stage = stage_of(seed(&token("pod")).session_lifetime(Duration::from_secs(2) + LATE));
    lenient(&stage);
    stage.aws.set_pod_identity(Some(PodIdentity::new(&arn("eks")).session_name("eks")));
    stage.env("RUST_LOG", "trace");
    let Scene { stage, daemon } = play(stage);
    stage.aws.fault(Fault::on(AGENT).kind(FaultKind::Latency(Duration::from_millis(300))));
    let before = stage.aws.count(AGENT);
    until("a renewal", || stage.aws.count(AGENT) > before);
    until("another read", || daemon.metric("keytide_refreshes_total", &[]) >= 3.0);
    assert_eq!(daemon.metric("keytide_refreshes_total", &["incomplete"]), 0.0);
    says(&daemon.get("/metrics").body, &["service=\"Container Agent\""]);
    assert_clean(&daemon.log());
}
