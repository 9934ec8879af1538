//! A proxy between keytide and AWS, and the names that AWS is called by: with it, real ones reach the emulator.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keytide_emulator::{Emulator, PodIdentity, Proxy, Seed, Tls};
use serde_json::json;

use crate::{
    canary,
    network::{CHAIN, LOOPBACK, PROVED, as_pod, assert_read, check, configure, seed, start_tls},
    support::{Stage, stderr, until},
};

/// Needs a percent code in a URL, and none of it may be seen anywhere.
const PASSWORD: &str = "canary-p@ss:w/rd-4f1d09";
const ENCODED: &str = "canary-p%40ss%3Aw%2Frd-4f1d09";

/// An AWS that speaks TLS under its own names and these, behind a proxy; nothing says where it is.
fn behind(seed: Seed, names: &[&str]) -> (Stage, Proxy) {
    let names = names.iter().fold(Tls::new().name("*.us-east-1.amazonaws.com"), |tls, name| tls.name(name));
    let aws = Emulator::start_tls(seed, LOOPBACK.into(), &names).unwrap();
    let proxy = Proxy::start(aws.address()).unwrap();
    let mut stage = Stage::on(aws);
    stage.trust("AWS_CA_BUNDLE").env_remove("AWS_ENDPOINT_URL");
    (stage, proxy)
}

/// For whom it opened tunnels, each once.
fn hosts(proxy: &Proxy) -> Vec<String> {
    let mut hosts = proxy.hosts();
    hosts.sort();
    hosts.dedup();
    hosts
}

/// Its URL with a user and a password.
fn with_password(proxy: &Proxy, password: &str) -> String {
    proxy.url().replace("http://", &format!("http://team:{password}@"))
}

#[track_caller]
fn assert_untouched(proxy: &Proxy) {
    assert_eq!((proxy.hosts(), proxy.refused()), (Vec::new(), Vec::new()));
}

#[test]
fn aws_is_called_through_the_proxy_that_any_of_the_usual_variables_names() {
    for variable in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        let (mut stage, proxy) = behind(seed(), &[]);
        as_pod(&mut stage);
        configure(&stage, CHAIN);
        stage.env(variable, &proxy.url());
        assert_read(&stage, &stage.once());
        let expected = ["secretsmanager.us-east-1.amazonaws.com:443", "sts.us-east-1.amazonaws.com:443"];
        assert_eq!(hosts(&proxy), expected, "{variable}");
        // The names are also those that the services are called by.
        let called = stage.aws.requests();
        assert!(
            called
                .iter()
                .all(|request| request.host.as_deref().is_some_and(|host| host.ends_with("us-east-1.amazonaws.com")))
        );
    }
}

#[test]
fn the_first_of_these_variables_that_is_set_decides() {
    let (mut stage, proxy) = behind(seed(), &[]);
    configure(&stage, "region: us-east-1");
    let other = Proxy::start(stage.aws.address()).unwrap();
    stage.env("https_proxy", "").env("HTTPS_PROXY", &proxy.url()).env("ALL_PROXY", &other.url());
    // Of plain http, which AWS is not.
    stage.env("HTTP_PROXY", &other.url()).env("http_proxy", &other.url());
    // Without a scheme, as curl takes it.
    assert_read(&stage, &stage.once());
    stage.env("https_proxy", &proxy.address().to_string());
    assert_read(&stage, &stage.once());
    assert_eq!(proxy.hosts().len(), 2);
    assert_untouched(&other);
}

/// With these settings and this environment, in this region: AWS is called at these two hosts.
#[track_caller]
fn calls(region: &str, settings: &str, environment: &[&str], hosts_of_aws: [&str; 2]) {
    let seed = Seed { region: region.to_owned(), ..seed() };
    let (mut stage, proxy) = behind(seed, &hosts_of_aws);
    for variable in environment {
        stage.env(variable, "true");
    }
    stage.env_remove("AWS_REGION").env("HTTPS_PROXY", &proxy.url());
    configure(&stage, &PROVED.replace("us-east-1", &format!("{region}{settings}")));
    assert_read(&stage, &stage.once());
    assert_eq!(hosts(&proxy), hosts_of_aws.map(|host| format!("{host}:443")));
    let regions = stage.aws.requests().into_iter().map(|request| request.region);
    assert!(regions.eq([Some(region.to_owned()), Some(region.to_owned())]));
}

#[test]
fn both_services_are_called_in_the_region_of_the_secrets() {
    for (region, suffix) in [
        ("eu-central-1", "amazonaws.com"),
        ("cn-north-1", "amazonaws.com.cn"),
        ("us-gov-west-1", "amazonaws.com"),
        ("eusc-de-east-1", "amazonaws.eu"),
    ] {
        let hosts = [format!("secretsmanager.{region}.{suffix}"), format!("sts.{region}.{suffix}")];
        calls(region, "", &[], hosts.each_ref().map(String::as_str));
    }
}

#[test]
fn the_fips_endpoints_are_called_where_they_are_asked_for() {
    let hosts = ["secretsmanager-fips.us-east-1.amazonaws.com", "sts-fips.us-east-1.amazonaws.com"];
    calls("us-east-1", ", use_fips_endpoint: true", &[], hosts);
    calls("us-east-1", "", &["AWS_USE_FIPS_ENDPOINT"], hosts);
    // There STS has no other.
    let hosts = ["secretsmanager-fips.us-gov-west-1.amazonaws.com", "sts.us-gov-west-1.amazonaws.com"];
    calls("us-gov-west-1", ", use_fips_endpoint: true", &[], hosts);
}

#[test]
fn the_dual_stack_endpoints_are_called_where_they_are_asked_for() {
    // Secrets Manager's only one has addresses of both kinds.
    let hosts = ["secretsmanager.us-east-1.amazonaws.com", "sts.us-east-1.api.aws"];
    calls("us-east-1", ", use_dualstack_endpoint: true", &[], hosts);
    calls("us-east-1", "", &["AWS_USE_DUALSTACK_ENDPOINT"], hosts);
    let hosts = ["secretsmanager-fips.us-east-1.amazonaws.com", "sts-fips.us-east-1.api.aws"];
    calls("us-east-1", ", use_dualstack_endpoint: true", &["AWS_USE_FIPS_ENDPOINT"], hosts);
}

#[test]
fn private_endpoints_are_called_by_name_and_signed_for_the_region_that_their_name_says() {
    const SECRETS_MANAGER: &str = "vpce-0abc-1.secretsmanager.us-east-1.vpce.amazonaws.com";
    const STS: &str = "vpce-0abc-2.sts.eu-west-1.vpce.amazonaws.com";
    let (mut stage, proxy) = behind(seed(), &[SECRETS_MANAGER, STS]);
    as_pod(&mut stage);
    stage.env("HTTPS_PROXY", &proxy.url());
    let endpoints = format!("endpoint_url: {{secrets_manager: \"https://{SECRETS_MANAGER}\", sts: \"https://{STS}\"}}");
    configure(&stage, &format!("{CHAIN}, expect_role: \"123456789012\", {endpoints}"));
    assert_read(&stage, &stage.once());
    assert_eq!(hosts(&proxy), [format!("{SECRETS_MANAGER}:443"), format!("{STS}:443")]);
    for request in stage.aws.requests() {
        let (host, region) = match request.action.as_str() {
            "GetSecretValue" => (SECRETS_MANAGER, Some("us-east-1")),
            // With a token, and so without a signature.
            "AssumeRoleWithWebIdentity" => (STS, None),
            _ => (STS, Some("eu-west-1")),
        };
        assert_eq!((request.host.as_deref(), request.region.as_deref()), (Some(host), region), "{request:?}");
    }
    assert_eq!(stage.aws.requests().len(), 4);
}

#[test]
fn the_sts_endpoint_of_litellms_block_is_called_for_every_hop() {
    const STS: &str = "sts.eu-west-1.amazonaws.com";
    let (mut stage, proxy) = behind(seed(), &[STS]);
    as_pod(&mut stage);
    stage.env("HTTPS_PROXY", &proxy.url());
    configure(&stage, "region: us-east-1, expect_role: \"123456789012\"");
    let settings = format!(
        "general_settings:\n  key_management_system: aws_secret_manager\n  key_management_settings:\n    hosted_keys: \
         []\n    aws_role_name: arn:aws:iam::123456789012:role/reader\n    aws_session_name: litellm\n    \
         aws_sts_endpoint: https://{STS}\n"
    );
    stage.write("keytide.yaml", settings + &stage.read("keytide.yaml"));
    assert_read(&stage, &stage.once());
    assert_eq!(hosts(&proxy), ["secretsmanager.us-east-1.amazonaws.com:443", "sts.eu-west-1.amazonaws.com:443"]);
    let hops: Vec<String> = stage
        .aws
        .requests()
        .into_iter()
        .filter(|request| request.host.as_deref() == Some(STS))
        .map(|request| request.action)
        .collect();
    assert_eq!(hops, ["AssumeRoleWithWebIdentity", "AssumeRole", "GetCallerIdentity"]);
}

// --- past the proxy

#[test]
fn the_hosts_of_no_proxy_are_reached_without_it() {
    for (variable, host, rule) in [
        ("NO_PROXY", "localhost", "localhost"),
        ("no_proxy", "localhost", "example.com, localhost"),
        ("NO_PROXY", "127.0.0.1", "127.0.0.0/8"),
        ("NO_PROXY", "localhost", "*"),
    ] {
        let (mut stage, proxy) = behind(seed(), &[]);
        let sts = format!("https://{host}:{}", stage.aws.address().port());
        stage.env("HTTPS_PROXY", &proxy.url()).env(variable, rule).env("AWS_ENDPOINT_URL", &sts);
        configure(&stage, PROVED);
        assert_read(&stage, &stage.once());
        assert_untouched(&proxy);
    }
    // Others go through it all the same.
    let (mut stage, proxy) = behind(seed(), &[]);
    let sts = stage.aws.url();
    stage.env("HTTPS_PROXY", &proxy.url()).env("NO_PROXY", "localhost").env("AWS_ENDPOINT_URL_STS", &sts);
    configure(&stage, PROVED);
    assert_read(&stage, &stage.once());
    assert_eq!(proxy.hosts(), ["secretsmanager.us-east-1.amazonaws.com:443"]);
    // The name of a host that ends alike is another one.
    let (mut stage, proxy) = behind(seed(), &[]);
    stage.env("HTTPS_PROXY", &proxy.url()).env("NO_PROXY", "east-1.amazonaws.com,anager.us-east-1.amazonaws.com");
    configure(&stage, PROVED);
    assert_read(&stage, &stage.once());
    assert_eq!(hosts(&proxy).len(), 2);
}

#[test]
fn an_ipv6_address_of_no_proxy_is_reached_without_it() {
    let aws = Emulator::start_tls(seed(), (Ipv6Addr::LOCALHOST, 0).into(), &Tls::new());
    let mut stage = Stage::on(aws.expect("tests need the address ::1"));
    let proxy = Proxy::start(stage.aws.address()).unwrap();
    let endpoint = format!("https://[::1]:{}", stage.aws.address().port());
    stage.trust("AWS_CA_BUNDLE").env("HTTPS_PROXY", &proxy.url()).env("AWS_ENDPOINT_URL", &endpoint);
    stage.env("NO_PROXY", "::1");
    configure(&stage, PROVED);
    assert_read(&stage, &stage.once());
    assert_untouched(&proxy);
}

#[test]
fn plain_http_of_this_machine_never_goes_through_a_proxy() {
    let reader = "arn:aws:iam::123456789012:role/reader";
    let mut stage = Stage::with(seed());
    stage.aws.set_pod_identity(Some(PodIdentity::new(reader)));
    let proxy = Proxy::start(stage.aws.address()).unwrap();
    for variable in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        stage.env(variable, &proxy.url());
    }
    let agent = format!("{}/v1/credentials", stage.aws.url());
    let token = stage.write("token", "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJl").display().to_string();
    stage.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    stage.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent);
    stage.env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token);
    configure(&stage, PROVED);
    assert_read(&stage, &stage.once());
    assert_untouched(&proxy);
}

// --- a proxy that asks who is there

#[test]
fn a_proxy_gets_its_password_and_nobody_else_sees_it() {
    let (mut stage, proxy) = behind(seed(), &[]);
    let proxy = proxy.credentials("team", PASSWORD);
    stage.env("HTTPS_PROXY", &with_password(&proxy, ENCODED)).env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full");
    configure(&stage, PROVED);
    let daemon = canary::run(&stage);
    daemon.until_ready();
    assert_eq!(stage.values(), json!({"A": "1"}));
    assert_eq!(proxy.refused(), Vec::<String>::new());
    let mut text = canary::seen(&stage, &daemon) + &check(&stage, &["--online"]).1;
    // Now a wrong one: after the connections that there are, nothing is read any more, and all stays.
    let proxy = proxy.credentials("team", "another");
    let before = stage.stamp("env/keys.json");
    stage.aws.set_down(true);
    until("the trouble", || stage.key_state("A") == "stale (unavailable)");
    stage.aws.set_down(false);
    until("a refusal", || !proxy.refused().is_empty());
    daemon.hang_up();
    assert_eq!(stage.key_state("A"), "stale (unavailable)");
    assert_eq!(stage.stamp("env/keys.json"), before);
    text += &canary::seen(&stage, &daemon);
    text += &check(&stage, &["--online"]).1;
    let header = STANDARD.encode(format!("team:{PASSWORD}"));
    for form in [PASSWORD, ENCODED, &PASSWORD[..9], header.trim_end_matches('=')] {
        let line = text.lines().find(|line| line.contains(form));
        assert_eq!(line, None, "{form}");
    }
}

/// What a key's message has to say where it is not read.
#[track_caller]
fn assert_told(stage: &Stage, parts: &[&str]) {
    let output = stage.once_in_vain("1s");
    let log = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    let line = log.lines().rfind(|line| line.contains("key A: failed to call")).unwrap_or_default();
    for part in parts {
        assert!(line.contains(part), "{part} in the message of the key, the log:\n{log}");
    }
    assert!(stage.aws.requests().is_empty());
}

#[test]
fn a_proxy_that_does_not_accept_the_password_is_told() {
    let (mut stage, proxy) = behind(seed(), &[]);
    let proxy = proxy.credentials("team", PASSWORD);
    configure(&stage, "region: us-east-1");
    for url in [proxy.url(), with_password(&proxy, "wrong")] {
        stage.env("HTTPS_PROXY", &url);
        assert_told(&stage, &["proxy", "password"]);
    }
    assert_eq!(proxy.hosts(), Vec::<String>::new());
    assert!(!proxy.refused().is_empty());
}

#[test]
fn a_proxy_that_is_not_there_is_told_and_is_not_passed_by() {
    let (mut stage, proxy) = behind(seed(), &[]);
    // At the emulator's own place AWS would be reached without the proxy.
    stage.env("AWS_ENDPOINT_URL", &stage.aws.url()).env("HTTPS_PROXY", &proxy.url());
    configure(&stage, "region: us-east-1");
    drop(proxy);
    assert_told(&stage, &["proxy"]);
}

#[test]
fn a_proxy_that_does_not_reach_aws_is_told() {
    let nobody = TcpListener::bind(LOOPBACK).unwrap().local_addr().unwrap();
    let (mut stage, _) = behind(seed(), &[]);
    let proxy = Proxy::start(nobody).unwrap();
    stage.env("HTTPS_PROXY", &proxy.url());
    configure(&stage, "region: us-east-1");
    assert_told(&stage, &["proxy"]);
    assert_eq!(hosts(&proxy), ["secretsmanager.us-east-1.amazonaws.com:443"]);
}

#[test]
fn a_proxy_that_never_answers_is_given_up_in_time() {
    let silent = TcpListener::bind(LOOPBACK).unwrap();
    let (mut stage, _) = behind(seed(), &[]);
    stage.env("HTTPS_PROXY", &format!("http://{}", silent.local_addr().unwrap()));
    configure(&stage, "region: us-east-1, connect_timeout: 200ms");
    assert_told(&stage, &["in time"]);
}

#[test]
fn a_proxy_that_can_be_none_is_an_error_of_the_configuration_and_nothing_is_sent() {
    let mut stage = Stage::on(start_tls(&Tls::new()));
    stage.trust("AWS_CA_BUNDLE");
    configure(&stage, "region: us-east-1");
    assert_read(&stage, &stage.once());
    stage.aws.clear_requests();
    let mut wrong = Vec::new();
    for url in [
        "http://",
        "://127.0.0.1:1",
        "socks5://127.0.0.1:1",
        "socks5h://127.0.0.1:1",
        "ftp://127.0.0.1:1",
        "file:///etc/passwd",
        "http://127.0.0.1:port",
        "http://127.0.0.1:99999",
        "http://[::1",
        "http://::1:3128",
        "http://[]:3128",
        "http://a]b:3128",
        "http://:3128",
        "http://two words:3128",
        "http://127.0.0.1:1/path",
        "http://127.0.0.1:1?query",
        "http://127.0.0.1:1#fragment",
        "http://team:canary-p@ss@127.0.0.1:1",
        "http://team:canary-p/ss@127.0.0.1:1",
        "http://team:canary-p#ss@127.0.0.1:1",
        "http://team:canary-\u{e9}@127.0.0.1:1",
    ] {
        for variable in ["HTTPS_PROXY", "all_proxy"] {
            stage.env(variable, url);
            let output = stage.once_within("1s");
            let (code, log) = (output.status.code(), stderr(&output));
            assert!(stage.aws.requests().is_empty(), "{variable}={url} was passed by");
            assert!(!log.contains("canary-"), "{log}");
            let told = log.contains(variable) && log.contains("of a proxy");
            if (code, told, check(&stage, &["--online"]).0) != (Some(64), true, Some(64)) {
                wrong.push(format!("{variable}={url}: {code:?} {}", log.lines().last().unwrap_or_default()));
            }
            stage.env_remove(variable);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

// --- a real one

/// A running tinyproxy, ended with the test.
struct Tinyproxy {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Tinyproxy {
    /// Starts one for connections to this port, with more lines of configuration.
    fn start(stage: &Stage, target: u16, more: &str) -> Self {
        #[expect(clippy::disallowed_methods, reason = "how the test stage names the program")]
        let program = std::env::var_os("KEYTIDE_TINYPROXY")
            .expect("KEYTIDE_TINYPROXY must name Debian's tinyproxy: `./tests/run network` installs it");
        let log = stage.path("tinyproxy.log");
        // It takes no port of its own choice; somebody else may take this one before it does.
        for _ in 0..5 {
            let port = TcpListener::bind(LOOPBACK).unwrap().local_addr().unwrap().port();
            let config = format!(
                "Port {port}\nListen 127.0.0.1\nAllow 127.0.0.1\nConnectPort {target}\nTimeout 30\nMaxClients 20\n\
                 LogFile \"{}\"\nLogLevel Info\n{more}\n",
                log.display()
            );
            fs::write(stage.path("tinyproxy.conf"), config).unwrap();
            let child = Command::new(&program)
                .arg("-d")
                .arg("-c")
                .arg(stage.path("tinyproxy.conf"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(fs::File::create(stage.path("tinyproxy.err")).unwrap())
                .spawn()
                .expect("KEYTIDE_TINYPROXY must name a program");
            let mut proxy = Self { child, port, log: log.clone() };
            let mut up = false;
            until("tinyproxy", || {
                up = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
                up || proxy.child.try_wait().unwrap().is_some()
            });
            if up && proxy.child.try_wait().unwrap().is_none() {
                return proxy;
            }
        }
        panic!("tinyproxy does not start: {}", stage.read("tinyproxy.err"));
    }

    fn url(&self, user: &str) -> String {
        format!("http://{user}127.0.0.1:{}", self.port)
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Tinyproxy {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
#[ignore = "needs tinyproxy: ./tests/run network"]
fn tinyproxy_tunnels_to_both_services() {
    let mut stage = Stage::on(start_tls(&Tls::new()));
    as_pod(&mut stage);
    let port = stage.aws.address().port();
    let tinyproxy = Tinyproxy::start(&stage, port, "");
    stage.trust("AWS_CA_BUNDLE").env("HTTPS_PROXY", &tinyproxy.url(""));
    configure(&stage, CHAIN);
    let daemon = stage.run();
    daemon.until_ready();
    assert_eq!(stage.values(), json!({"A": "1"}));
    let tunnel = format!("CONNECT localhost:{port} HTTP/1.1");
    until("the log", || tinyproxy.log().contains(&tunnel));
    assert!(stage.aws.requests().iter().all(|request| request.host == Some(format!("localhost:{port}"))));
    // Without it nothing is read, and the last good value stays.
    drop(tinyproxy);
    until("the trouble", || stage.key_state("A") == "stale (unavailable)");
    assert_eq!(stage.values(), json!({"A": "1"}));
}

#[test]
#[ignore = "needs tinyproxy: ./tests/run network"]
fn tinyproxy_gets_the_password_that_it_asks_for() {
    let mut stage = Stage::on(start_tls(&Tls::new()));
    let port = stage.aws.address().port();
    let tinyproxy = Tinyproxy::start(&stage, port, "BasicAuth team canary-pass");
    stage.trust("AWS_CA_BUNDLE").env("HTTPS_PROXY", &tinyproxy.url("team:canary%2Dpass@"));
    configure(&stage, "region: us-east-1");
    assert_read(&stage, &stage.once());
    stage.aws.clear_requests();
    fs::remove_file(stage.path("env/keys.json")).unwrap();
    stage.env("HTTPS_PROXY", &tinyproxy.url(""));
    assert_told(&stage, &["proxy", "password"]);
    // That it calls `401`, which is no proxy's to say, and so may mean anything.
    stage.env("HTTPS_PROXY", &tinyproxy.url("team:wrong@"));
    assert_told(&stage, &["proxy"]);
    // A port that it does not tunnel to.
    let other = start_tls(&Tls::new());
    stage.env("AWS_ENDPOINT_URL", &other.url()).env("HTTPS_PROXY", &tinyproxy.url("team:canary%2Dpass@"));
    assert_told(&stage, &["proxy"]);
    assert!(other.requests().is_empty());
}
