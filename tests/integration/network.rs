//! AWS over TLS: whom keytide trusts, what it offers, and what it says of each endpoint that is not AWS's own.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    process::Output,
    time::Duration,
};

use keytide_emulator::{Emulator, PodIdentity, Proxy, Role, Seed, Statement, Tls};
use serde_json::json;

use crate::support::{Stage, block, stderr, stdout, until};

pub(crate) const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
/// The pod's own role, of which the other one is assumed.
const POD: &str = "arn:aws:iam::123456789012:role/pod";
const READER: &str = "arn:aws:iam::123456789012:role/reader";
const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJl";
/// `keytide.aws` of who goes from the pod's role to the one that reads.
pub(crate) const CHAIN: &str = "region: us-east-1, roles: [{arn: \"arn:aws:iam::123456789012:role/reader\"}]";
/// `keytide.aws` of who asks both services with keys of its own.
pub(crate) const PROVED: &str = "region: us-east-1, expect_role: \"123456789012\"";

const NOT_TRUSTED: &str = "of an issuer that is not trusted; AWS_CA_BUNDLE adds one";
const NOT_VALID_NOW: &str = "no TLS: the server's certificate is not valid at this time";

/// An AWS with one secret, and two roles that lead to it.
pub(crate) fn seed() -> Seed {
    let pod = Role::new("pod").allow(Statement::new(["sts:AssumeRole"], [READER])).trusts_web_identity();
    let reader = Role::new("reader").allow(Statement::new(["secretsmanager:GetSecretValue"], ["*"])).trusts(POD);
    Seed::default().secret("prod/a", "1").role(pod).role(reader)
}

pub(crate) fn start_tls(tls: &Tls) -> Emulator {
    Emulator::start_tls(seed(), LOOPBACK.into(), tls).unwrap()
}

/// Who the pod is by its service account, and nobody else.
pub(crate) fn as_pod(stage: &mut Stage) {
    let token = stage.write("token", TOKEN).display().to_string();
    stage.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    stage.env("AWS_ROLE_ARN", POD).env("AWS_WEB_IDENTITY_TOKEN_FILE", &token);
}

/// One key, with these settings of AWS.
pub(crate) fn configure(stage: &Stage, aws: &str) {
    let block = block("interval: 1s, jitter: 0", "keys: [{name: A, secret: prod/a}]");
    // TLS takes its time where the machine is busy, and `check` does not try again.
    let patience = if aws.contains("connect_timeout") { "" } else { ", connect_timeout: 20s" };
    stage.config(&block.replace("region: us-east-1", &format!("{aws}{patience}")));
}

/// A pod beside an AWS that speaks TLS, which keytide does not trust yet.
fn pod(tls: &Tls) -> Stage {
    let mut stage = Stage::on(start_tls(tls));
    as_pod(&mut stage);
    configure(&stage, CHAIN);
    stage
}

/// `keytide check` with this configuration, and what it says.
pub(crate) fn check(stage: &Stage, more: &[&str]) -> (Option<i32>, String) {
    let config = stage.path("keytide.yaml").display().to_string();
    let output = stage.keytide(&[&["check", "--config", &config], more].concat());
    (output.status.code(), stdout(&output) + &stderr(&output))
}

#[track_caller]
pub(crate) fn assert_read(stage: &Stage, output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    assert_eq!(stage.values(), json!({"A": "1"}));
}

/// The actions of AWS that were asked for, in order.
fn actions(aws: &Emulator) -> Vec<String> {
    aws.requests().into_iter().map(|request| request.action).collect()
}

/// The server is not believed: the key is missing, it is said why, and the server hears nothing but the greeting.
#[track_caller]
fn refuses(stage: &Stage, why: &str) {
    let output = stage.once_in_vain("1s");
    assert_eq!(output.status.code(), Some(1));
    let log = stderr(&output);
    assert!(log.contains("key A: failed to call AssumeRoleWithWebIdentity") && log.contains(why), "{log}");
    assert!(!stage.path("env/keys.json").exists());
    assert!(stage.aws.requests().is_empty(), "{:?}", stage.aws.requests());
    let (code, text) = check(stage, &["--online"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(why), "{text}");
}

/// Another AWS of the same place, with a certificate of another authority.
fn restart(stage: &mut Stage, tls: &Tls) {
    let address = stage.aws.address();
    stage.aws = Emulator::start().unwrap();
    let mut next = None;
    until("the port", || {
        next = Emulator::start_tls(seed(), address, tls).ok();
        next.is_some()
    });
    stage.aws = next.unwrap();
}

#[test]
fn a_chain_of_roles_and_the_secrets_are_reached_over_tls_of_a_private_authority() {
    for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
        let mut stage = pod(&Tls::new());
        stage.trust(variable);
        configure(&stage, &format!("{CHAIN}, expect_role: \"{READER}\""));
        assert_read(&stage, &stage.once());
        let expected = ["AssumeRoleWithWebIdentity", "AssumeRole", "GetCallerIdentity", "GetSecretValue"];
        assert_eq!(actions(&stage.aws), expected);
        let (code, text) = check(&stage, &["--online"]);
        assert_eq!(code, Some(0), "{text}");
    }
}

#[test]
fn a_bundle_adds_to_the_certificates_that_stand_instead_of_the_systems() {
    let mut stage = Stage::on(start_tls(&Tls::new()));
    let sts = start_tls(&Tls::new());
    stage.trust("AWS_CA_BUNDLE").env("AWS_ENDPOINT_URL_STS", &sts.url());
    let other = stage.write("sts.pem", sts.ca_pem().unwrap()).display().to_string();
    configure(&stage, PROVED);
    let log = stderr(&stage.once_in_vain("1s"));
    assert!(log.contains("GetCallerIdentity") && log.contains(NOT_TRUSTED), "{log}");
    assert_eq!((actions(&sts), actions(&stage.aws)), (Vec::new(), Vec::new()));
    stage.env("SSL_CERT_FILE", &other);
    assert_read(&stage, &stage.once());
    assert_eq!(actions(&sts), ["GetCallerIdentity"]);
    assert_eq!(actions(&stage.aws), ["GetSecretValue"]);
}

#[test]
fn a_server_of_an_issuer_that_nobody_trusts_is_told_nothing_and_the_message_says_what_to_do() {
    let mut stage = pod(&Tls::new());
    refuses(&stage, NOT_TRUSTED);
    // Somebody else's authority does not help.
    let other = start_tls(&Tls::new());
    let file = stage.write("other.pem", other.ca_pem().unwrap()).display().to_string();
    stage.env("AWS_CA_BUNDLE", &file).env("SSL_CERT_FILE", &file);
    refuses(&stage, NOT_TRUSTED);
}

#[test]
fn an_expired_certificate_is_told() {
    let mut stage = pod(&Tls::new().expired());
    stage.trust("AWS_CA_BUNDLE");
    refuses(&stage, NOT_VALID_NOW);
}

#[test]
fn a_certificate_for_another_name_is_told() {
    let mut stage = pod(&Tls::new());
    // An address of this machine that the certificate does not have.
    stage.aws = Emulator::start_tls(seed(), ([127, 0, 0, 2], 0).into(), &Tls::new()).unwrap();
    let endpoint = format!("https://{}", stage.aws.address());
    stage.trust("AWS_CA_BUNDLE").env("AWS_ENDPOINT_URL", &endpoint);
    refuses(&stage, "no TLS: the server's certificate is for another name");
}

#[test]
fn the_last_good_values_stay_when_a_certificate_goes_bad() {
    for (tls, why) in [(Tls::new(), NOT_TRUSTED), (Tls::new().expired(), NOT_VALID_NOW)] {
        let mut stage = pod(&Tls::new());
        stage.trust("AWS_CA_BUNDLE");
        let daemon = stage.run();
        daemon.until_ready();
        let before = stage.stamp("env/keys.json");
        restart(&mut stage, &tls);
        // The connection that was open may be reset first.
        until("the trouble", || {
            daemon.hang_up();
            stage.status()["keys"][0]["message"].as_str().unwrap_or_default().contains(why)
        });
        assert_eq!(stage.key_state("A"), "stale (unavailable)");
        assert_eq!(daemon.get("/readyz").status, 200);
        assert_eq!(stage.stamp("env/keys.json"), before);
        assert!(stage.aws.requests().is_empty());
    }
}

#[test]
fn a_file_of_certificates_that_cannot_be_used_ends_it_at_once_and_is_named() {
    let good = start_tls(&Tls::new());
    let good = good.ca_pem().unwrap();
    let cut = good.split_at(good.len() / 2).0;
    let armour = |label: &str, body: &str| format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
    let cases: [(&str, Vec<u8>); 8] = [
        ("empty", Vec::new()),
        ("text", b"no certificate at all\n".to_vec()),
        ("binary", vec![0x30, 0x82, 0x01, 0xff, 0x00, 0xfe]),
        ("not base64", armour("CERTIFICATE", "!!!! canary-of-a-file").into_bytes()),
        ("not x509", armour("CERTIFICATE", "Y2FuYXJ5LW9mLWEtZmlsZQ==").into_bytes()),
        ("a key", armour("PRIVATE KEY", "Y2FuYXJ5LW9mLWEtZmlsZQ==").into_bytes()),
        ("cut off", cut.as_bytes().to_vec()),
        ("half written", format!("{good}{cut}").into_bytes()),
    ];
    let mut stage = pod(&Tls::new());
    for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
        stage.env_remove("AWS_CA_BUNDLE").env_remove("SSL_CERT_FILE");
        for (what, content) in &cases {
            let file = stage.write("bundle.pem", content).display().to_string();
            stage.env(variable, &file);
            refuses_file(&stage, what, variable, &file);
        }
        let closed = stage.write("closed.pem", good);
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        let directory = stage.make_directory("directory.pem", 0o755);
        for (what, path) in [("missing", stage.path("missing.pem")), ("a directory", directory), ("closed", closed)] {
            let file = path.display().to_string();
            stage.env(variable, &file);
            refuses_file(&stage, what, variable, &file);
        }
    }
    assert!(stage.aws.requests().is_empty());
}

#[track_caller]
fn refuses_file(stage: &Stage, what: &str, variable: &str, file: &str) {
    let output = stage.once();
    let log = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{what} of {variable}: {log}");
    let errors: String = log.lines().filter(|line| !line.contains("WARN") && !line.contains("\"warn\"")).collect();
    for text in [errors, check(stage, &["--online"]).1] {
        assert!(text.contains("failed to") && text.contains(variable) && text.contains(file), "{what}: {text}");
        assert!(!text.contains("panicked") && !text.contains("canary-of-a-file"), "{what}: {text}");
    }
    assert_eq!(check(stage, &["--online"]).0, Some(1), "{what} of {variable}");
}

#[test]
fn a_variable_that_is_set_to_nothing_is_not_set_but_where_that_would_trust_nobody() {
    let mut stage = pod(&Tls::new());
    stage.trust("AWS_CA_BUNDLE");
    for variable in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        stage.env(variable, "");
        let output = stage.once();
        assert_eq!(output.status.code(), Some(64), "{variable}: {}", stderr(&output));
        assert!(stderr(&output).contains(variable), "{}", stderr(&output));
        stage.env_remove(variable);
    }
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "NO_PROXY"] {
        stage.env(variable, "");
        let output = stage.once();
        assert_eq!(output.status.code(), Some(0), "{variable}: {}", stderr(&output));
        stage.env_remove(variable);
    }
    stage.trust("SSL_CERT_FILE").env("AWS_CA_BUNDLE", "");
    assert_read(&stage, &stage.once());
}

#[test]
fn a_directory_of_certificates_that_decides_whom_keytide_trusts_is_said() {
    let mut stage = pod(&Tls::new());
    stage.write("authorities/one.pem", stage.aws.ca_pem().unwrap());
    let directory = stage.make_directory("authorities", 0o755).display().to_string();
    stage.env("SSL_CERT_DIR", &directory);
    let log = stderr(&stage.once_in_vain("2s"));
    // Either it decides nothing, or it is said.
    let trusted = !stage.aws.requests().is_empty();
    assert_eq!(log.contains("SSL_CERT_DIR"), trusted, "{log}");
}

#[test]
fn a_directory_of_certificates_without_one_is_no_panic() {
    let mut stage = pod(&Tls::new());
    let directory = stage.make_directory("none", 0o755).display().to_string();
    stage.trust("AWS_CA_BUNDLE").env("SSL_CERT_DIR", &directory);
    let output = stage.once_within("2s");
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    assert!(matches!(output.status.code(), Some(0 | 1)), "{:?}", output.status);
}

#[test]
fn a_server_of_tls_1_2_is_called_too() {
    let mut stage = pod(&Tls::new().only_1_2());
    stage.trust("AWS_CA_BUNDLE");
    assert_read(&stage, &stage.once());
}

// --- what a client says first

/// What of a `ClientHello` (RFC 8446, 4.1.2) is looked at.
#[derive(Debug, Default)]
struct Hello {
    server_name: String,
    versions: Vec<u16>,
    groups: Vec<u16>,
    key_shares: Vec<u16>,
}

/// Bytes, from the front.
struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (front, rest) = self.0.split_at(count);
        self.0 = rest;
        front
    }

    /// A number of so many bytes.
    fn number(&mut self, width: usize) -> usize {
        self.bytes(width).iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
    }

    /// What stands behind its length, which has so many bytes.
    fn block(&mut self, width: usize) -> Wire<'a> {
        let length = self.number(width);
        Wire(self.bytes(length))
    }

    fn numbers(mut self) -> Vec<u16> {
        let mut numbers = Vec::new();
        while !self.0.is_empty() {
            numbers.push(u16::try_from(self.number(2)).unwrap());
        }
        numbers
    }
}

impl Hello {
    fn read(mut stream: impl std::io::Read) -> Self {
        let mut handshake = Vec::new();
        // A greeting may take several records.
        while handshake.len() < 4 || handshake.len() < 4 + Wire(&handshake[1..4]).number(3) {
            let mut record = [0; 5];
            stream.read_exact(&mut record).unwrap();
            assert_eq!(record[0], 22, "a handshake");
            let mut fragment = vec![0; Wire(&record[3..]).number(2)];
            stream.read_exact(&mut fragment).unwrap();
            handshake.extend(fragment);
        }
        Self::parse(&handshake)
    }

    fn parse(handshake: &[u8]) -> Self {
        let mut wire = Wire(handshake);
        assert_eq!(wire.number(1), 1, "a ClientHello");
        let mut wire = wire.block(3);
        wire.bytes(2 + 32);
        wire.block(1);
        wire.block(2);
        wire.block(1);
        let mut extensions = wire.block(2);
        let mut hello = Self::default();
        while !extensions.0.is_empty() {
            let kind = extensions.number(2);
            let mut extension = extensions.block(2);
            match kind {
                0 => {
                    let mut names = extension.block(2);
                    assert_eq!(names.number(1), 0, "a host name");
                    hello.server_name = String::from_utf8(names.block(2).0.to_vec()).unwrap();
                }
                10 => hello.groups = extension.block(2).numbers(),
                43 => hello.versions = extension.block(1).numbers(),
                51 => {
                    let mut shares = extension.block(2);
                    while !shares.0.is_empty() {
                        hello.key_shares.push(u16::try_from(shares.number(2)).unwrap());
                        shares.block(2);
                    }
                }
                _ => {}
            }
        }
        hello
    }
}

/// The greeting of the first who comes, to whom nobody answers.
fn first_hello(listener: &TcpListener) -> Hello {
    listener.set_nonblocking(true).unwrap();
    let mut stream = None;
    until("somebody to come", || {
        stream = listener.accept().ok();
        stream.is_some()
    });
    let (stream, _) = stream.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    Hello::read(stream)
}

#[track_caller]
fn assert_modern(hello: &Hello, name: &str) {
    const TLS_1_3: u16 = 0x0304;
    const TLS_1_2: u16 = 0x0303;
    /// The IANA number of X25519 beside ML-KEM-768.
    const X25519MLKEM768: u16 = 0x11ec;
    assert_eq!(hello.server_name, name);
    assert_eq!(hello.versions, [TLS_1_3, TLS_1_2], "the newest first, and nothing older");
    assert_eq!(hello.groups.first(), Some(&X25519MLKEM768), "{hello:?}");
    assert_eq!(hello.key_shares.first(), Some(&X25519MLKEM768), "{hello:?}");
}

#[test]
fn tls_1_2_is_the_least_and_the_post_quantum_exchange_is_preferred() {
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let address = listener.local_addr().unwrap();
    let mut stage = Stage::new();
    configure(&stage, "region: us-east-1");
    stage.env("AWS_ENDPOINT_URL", &format!("https://localhost:{}", address.port()));
    let daemon = stage.run();
    assert_modern(&first_hello(&listener), "localhost");
    drop(daemon);
    // The same through a proxy, with the name that AWS is called by.
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).unwrap();
    stage.env_remove("AWS_ENDPOINT_URL").env("HTTPS_PROXY", &proxy.url());
    let daemon = stage.run();
    assert_modern(&first_hello(&listener), "secretsmanager.us-east-1.amazonaws.com");
    drop(daemon);
}

// --- IPv6

#[test]
fn a_machine_that_has_nothing_but_ipv6_is_enough() {
    let listen: SocketAddr = (Ipv6Addr::LOCALHOST, 0).into();
    let mut stage = Stage::on(Emulator::start_with(seed(), listen).expect("tests need the address ::1"));
    assert!(stage.aws.url().starts_with("http://[::1]:"), "{}", stage.aws.url());
    configure(&stage, "region: us-east-1, roles: [{arn: \"arn:aws:iam::123456789012:role/reader\"}]");
    as_pod(&mut stage);
    assert_read(&stage, &stage.once());
    let mut stage = Stage::on(Emulator::start_tls(seed(), listen, &Tls::new()).unwrap());
    let endpoint = format!("https://[::1]:{}", stage.aws.address().port());
    stage.trust("AWS_CA_BUNDLE").env("AWS_ENDPOINT_URL", &endpoint);
    configure(&stage, CHAIN);
    as_pod(&mut stage);
    assert_read(&stage, &stage.once());
    let authority = endpoint.trim_start_matches("https://");
    assert!(stage.aws.requests().iter().all(|request| request.host.as_deref() == Some(authority)));
}

#[test]
fn the_agent_of_pod_identity_is_asked_over_ipv6() {
    let aws = Emulator::start_with(seed(), (Ipv6Addr::LOCALHOST, 0).into()).expect("tests need the address ::1");
    aws.set_pod_identity(Some(PodIdentity::new(READER)));
    let mut stage = Stage::on(aws);
    let agent = format!("{}/v1/credentials", stage.aws.url());
    let token = stage.write("token", TOKEN).display().to_string();
    stage.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    stage.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent);
    stage.env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token);
    configure(&stage, "region: us-east-1");
    assert_read(&stage, &stage.once());
    assert_eq!(actions(&stage.aws).len(), 2);
}

// --- plain http

#[test]
fn plain_http_to_another_machine_is_refused_unless_it_is_allowed() {
    for url in [
        "http://secretsmanager.us-east-1.amazonaws.com",
        "http://192.0.2.1:4566",
        "http://[2001:db8::1]:4566",
        "http://0.0.0.0:4566",
        "http://localhost.example.com",
        "http://127.0.0.1.example.com",
        "http://127.0.0.1@example.com",
    ] {
        let mut stage = Stage::new();
        let services = ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SECRETS_MANAGER", "AWS_ENDPOINT_URL_STS"];
        for variable in services {
            stage.env(variable, url);
            configure(&stage, "region: us-east-1");
            let output = stage.once();
            let log = stderr(&output);
            assert_eq!(output.status.code(), Some(64), "{variable}={url}: {log}");
            assert!(log.contains(variable) && log.contains("expected"), "{log}");
            stage.env_remove(variable);
        }
        configure(&stage, &format!("region: us-east-1, endpoint_url: {{secrets_manager: \"{url}\"}}"));
        let output = stage.once();
        assert_eq!(output.status.code(), Some(64), "{url}: {}", stderr(&output));
        let allowed = format!("{PROVED}, allow_plain_http: true, endpoint_url: {{secrets_manager: \"{url}\"}}");
        configure(&stage, &allowed);
        let (code, text) = check(&stage, &[]);
        let user = url.contains('@');
        assert_eq!(code, Some(if user { 64 } else { 0 }), "{text}");
        assert!(user || text.contains(&format!("called at {url}, not at AWS's own")), "{text}");
    }
}

// --- what is not AWS's own is said

#[test]
fn what_decides_who_sees_the_secrets_is_said_at_the_start_and_in_the_status() {
    let mut stage = pod(&Tls::new());
    let proxy = Proxy::start(stage.aws.address()).unwrap().credentials("team", "canary-of-a-proxy");
    let url = proxy.url().replace("http://", "http://team:canary-of-a-proxy@");
    stage.trust("AWS_CA_BUNDLE").trust("SSL_CERT_FILE").env("HTTPS_PROXY", &url);
    let (aws, ca, address) = (stage.aws.url(), stage.path("ca.pem").display().to_string(), proxy.address());
    let daemon = stage.run();
    daemon.until_ready();
    let expected = [
        format!("Secrets Manager is called at {aws}, not at AWS's own endpoint (environment: AWS_ENDPOINT_URL)"),
        format!("STS is called at {aws}, not at AWS's own endpoint (environment: AWS_ENDPOINT_URL)"),
        format!("AWS is called through the proxy {address} (environment: HTTPS_PROXY)"),
        format!("the certificates of {ca} are trusted instead of the system's (environment: SSL_CERT_FILE)"),
        format!("the certificates of {ca} are trusted as well (environment: AWS_CA_BUNDLE)"),
    ];
    says(&stage, &daemon.log(), &expected);
    assert!(!(daemon.log() + &stage.status().to_string()).contains("canary-of-a-proxy"));
}

#[test]
fn endpoints_of_another_kind_are_said_at_the_start_and_in_the_status() {
    let aws = start_tls(&Tls::new().name("*.us-east-1.amazonaws.com").name("*.us-east-1.api.aws"));
    let proxy = Proxy::start(aws.address()).unwrap();
    let mut stage = Stage::on(aws);
    stage.trust("AWS_CA_BUNDLE").env_remove("AWS_ENDPOINT_URL").env("https_proxy", &proxy.url());
    stage.env("AWS_USE_DUALSTACK_ENDPOINT", "true");
    configure(&stage, &format!("{PROVED}, use_fips_endpoint: true"));
    let file = stage.path("keytide.yaml");
    let daemon = stage.run();
    daemon.until_ready();
    let expected = [
        format!("AWS is called at its FIPS endpoints ({}:2:76: keytide.aws.use_fips_endpoint)", file.display()),
        "AWS is called at its dual-stack endpoints (environment: AWS_USE_DUALSTACK_ENDPOINT)".to_owned(),
        format!("AWS is called through the proxy {} (environment: https_proxy)", proxy.address()),
    ];
    says(&stage, &daemon.log(), &expected);
}

#[track_caller]
fn says(stage: &Stage, log: &str, expected: &[String]) {
    let status = stage.status();
    let overrides = status["identity"]["overrides"].as_array().cloned().unwrap_or_default();
    let overrides: Vec<&str> = overrides.iter().filter_map(serde_json::Value::as_str).collect();
    for sentence in expected {
        assert!(overrides.iter().any(|said| said.starts_with(sentence)), "{sentence} in {overrides:#?}");
        // The log names the place in front of the sentence.
        let (sentence, place) = sentence.rsplit_once(" (").unwrap();
        let place = place.trim_end_matches(')');
        assert!(log.lines().any(|line| line.contains(&format!("{place}: {sentence}"))), "{place}: {sentence} in {log}");
    }
}
