//! How one gets to the emulator: over TLS, and through a proxy.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_secretsmanager::Client;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, Connector};
use keytide_emulator::{Emulator, Fault, FaultKind, Proxy, Seed, Tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, ProtocolVersion, RootCertStore};

#[path = "support/sdk.rs"]
mod sdk;

use sdk::{client, code, config, owner};

fn free() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn start(tls: &Tls) -> Emulator {
    Emulator::start_tls(Seed::default().secret("a", "one"), free(), tls).unwrap()
}

/// A client that trusts this emulator and nobody else: at its own address, or through a proxy at AWS's.
fn trusting(emulator: &Emulator, proxy: Option<ProxyConfig>) -> Client {
    client_of(proxy.is_none().then(|| emulator.url()), emulator.ca_pem().unwrap(), proxy)
}

fn client_of(url: Option<String>, authority: &str, proxy: Option<ProxyConfig>) -> Client {
    let store = TrustStore::empty().with_pem_certificate(authority);
    let context = TlsContext::builder().with_trust_store(store).build().unwrap();
    let mut settings = config(owner(), "us-east-1");
    settings.set_endpoint_url(url);
    let http = Builder::new().build_with_connector_fn(move |_, _| {
        let mut connector = Connector::builder();
        connector.set_proxy_config(proxy.clone());
        connector.tls_provider(Provider::Rustls(CryptoMode::AwsLc)).tls_context(context.clone()).build()
    });
    Client::from_conf(settings.http_client(http).build())
}

async fn get(client: &Client) -> String {
    code(client.get_secret_value().secret_id("a").send().await)
}

/// The version that a client which speaks all of them gets.
async fn version(emulator: &Emulator, name: &'static str) -> std::io::Result<ProtocolVersion> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(emulator.ca_pem().unwrap().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let connector = TlsConnector::from(Arc::new(config.with_no_client_auth()));
    let stream = TcpStream::connect(emulator.address()).await?;
    let stream = connector.connect(name.try_into().unwrap(), stream).await?;
    Ok(stream.get_ref().1.protocol_version().unwrap())
}

/// What a proxy answers to a request, up to the end of the connection.
async fn ask(proxy: &Proxy, request: &str) -> String {
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

// === TLS ===

#[tokio::test]
async fn over_tls_it_is_the_same_emulator() {
    let emulator = start(&Tls::new());
    assert!(emulator.url().starts_with("https://localhost:"));
    let client = trusting(&emulator, None);
    assert_eq!(get(&client).await, "ok");
    for (kind, expected) in [
        (FaultKind::Throttle, "ThrottlingException"),
        (FaultKind::CutAfter(10), "network"),
        (FaultKind::Body("<html>".into()), "none"),
    ] {
        emulator.fault(Fault::any().times(1).kind(kind));
        assert_eq!(get(&client).await, expected);
    }
    emulator.fault(Fault::any().times(1).kind(FaultKind::Hang));
    tokio::time::timeout(Duration::from_millis(300), get(&client)).await.unwrap_err();
    for _ in 0..3 {
        emulator.set_down(true);
        assert_eq!(get(&client).await, "network");
        emulator.set_down(false);
        assert_eq!(get(&client).await, "ok");
    }
    let host = emulator.requests()[0].host.clone().unwrap();
    assert_eq!(format!("https://{host}"), emulator.url());
}

#[tokio::test]
async fn nobody_trusts_it_without_its_authority() {
    let (emulator, other) = (start(&Tls::new()), start(&Tls::new()));
    assert_eq!(get(&client(&emulator.url(), owner(), "us-east-1")).await, "network");
    assert_ne!(emulator.ca_pem(), other.ca_pem());
    let mut settings = config(owner(), "us-east-1");
    settings.set_endpoint_url(Some(emulator.url()));
    let store = TrustStore::empty().with_pem_certificate(other.ca_pem().unwrap());
    let context = TlsContext::builder().with_trust_store(store).build().unwrap();
    let http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc)).tls_context(context).build_https();
    assert_eq!(get(&Client::from_conf(settings.http_client(http).build())).await, "network");
    assert_eq!(emulator.count("GetSecretValue"), 0);

    let expired = start(&Tls::new().expired());
    assert_eq!(get(&trusting(&expired, None)).await, "network");
    let plain = Emulator::start().unwrap();
    assert_eq!(plain.ca_pem(), None);
}

#[tokio::test]
async fn its_certificate_is_for_its_names_only() {
    let emulator = start(&Tls::new().name("*.us-east-1.amazonaws.com").name("10.0.0.1"));
    for name in ["localhost", "127.0.0.1", "::1", "10.0.0.1", "sts.us-east-1.amazonaws.com"] {
        assert_eq!(version(&emulator, name).await.unwrap(), ProtocolVersion::TLSv1_3, "{name}");
    }
    for name in ["sts.us-west-2.amazonaws.com", "10.0.0.2"] {
        version(&emulator, name).await.unwrap_err();
    }
    Emulator::start_tls(Seed::default(), free(), &Tls::new().name("ä")).unwrap_err();
}

#[tokio::test]
async fn it_may_speak_nothing_newer_than_1_2() {
    let emulator = start(&Tls::new().only_1_2());
    assert_eq!(version(&emulator, "localhost").await.unwrap(), ProtocolVersion::TLSv1_2);
    assert_eq!(get(&trusting(&emulator, None)).await, "ok");
}

#[tokio::test]
async fn a_plain_one_answers_over_tls_as_well() {
    let mut emulator = Emulator::start_with(Seed::default().secret("a", "one"), free()).unwrap();
    let (address, authority) = emulator.also_tls(free(), &Tls::new()).unwrap();
    let (plain, tls) = (emulator.url(), format!("https://localhost:{}", address.port()));
    let client_by_tls = client_of(Some(tls.clone()), &authority, None);
    assert!(plain.starts_with("http://"));
    assert_eq!(get(&client(&plain, owner(), "us-east-1")).await, "ok");
    assert_eq!(get(&client_by_tls).await, "ok");
    assert_eq!(get(&client(&tls, owner(), "us-east-1")).await, "network");
    assert_eq!(emulator.count("GetSecretValue"), 2);
    emulator.set_down(true);
    assert_eq!(get(&client_by_tls).await, "network");
    drop(emulator);
    std::net::TcpStream::connect(address).unwrap_err();
}

#[test]
fn a_tls_port_stops_in_the_middle_of_a_handshake() {
    let emulator = start(&Tls::new());
    let silent = std::net::TcpStream::connect(emulator.address()).unwrap();
    drop(emulator);
    drop(silent);
}

// === the proxy ===

#[tokio::test]
async fn a_proxy_leads_every_host_to_the_emulator() {
    let emulator = start(&Tls::new().name("*.us-east-1.amazonaws.com"));
    let proxy = Proxy::start(emulator.address()).unwrap();
    let client = trusting(&emulator, Some(ProxyConfig::all(proxy.url()).unwrap()));
    assert_eq!(get(&client).await, "ok");
    assert_eq!(proxy.hosts(), ["secretsmanager.us-east-1.amazonaws.com:443"]);
    assert_eq!(proxy.refused(), [""; 0]);
    let host = emulator.requests()[0].host.clone();
    assert_eq!(host.as_deref(), Some("secretsmanager.us-east-1.amazonaws.com"));
}

#[tokio::test]
async fn a_proxy_may_want_credentials() {
    let emulator = start(&Tls::new().name("*.us-east-1.amazonaws.com"));
    let proxy = Proxy::start(emulator.address()).unwrap().credentials("user", "pass-word");
    let through = || ProxyConfig::all(proxy.url()).unwrap();
    assert_eq!(get(&trusting(&emulator, Some(through()))).await, "network");
    let wrong = through().with_basic_auth("user", "other");
    assert_eq!(get(&trusting(&emulator, Some(wrong))).await, "network");
    let refused = "CONNECT secretsmanager.us-east-1.amazonaws.com:443 HTTP/1.1";
    assert_eq!((proxy.hosts().len(), proxy.refused()), (0, vec![refused.to_owned(); 2]));
    let right = through().with_basic_auth("user", "pass-word");
    assert_eq!(get(&trusting(&emulator, Some(right))).await, "ok");
    assert_eq!(proxy.hosts().len(), 1);
    assert!(!format!("{proxy:?}").contains("pass"));
    let answer = ask(&proxy, "CONNECT a:1 HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 407 ") && answer.contains("Proxy-Authenticate: Basic"), "{answer}");
}

#[tokio::test]
async fn a_proxy_refuses_what_is_no_tunnel() {
    let emulator = Emulator::start().unwrap();
    let proxy = Proxy::start(emulator.address()).unwrap();
    let posted = ask(&proxy, "POST http://127.0.0.1/ HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}").await;
    assert!(posted.starts_with("HTTP/1.1 405 "), "{posted}");
    let portless = ask(&proxy, "CONNECT localhost HTTP/1.1\r\n\r\n").await;
    assert!(portless.starts_with("HTTP/1.1 400 "), "{portless}");
    assert_eq!(proxy.refused(), ["POST http://127.0.0.1/ HTTP/1.1", "CONNECT localhost HTTP/1.1"]);
    assert_eq!(proxy.hosts(), [""; 0]);
    assert_eq!(emulator.requests().len(), 0);

    // What comes right behind the head is not lost.
    let tunnelled = "CONNECT any:80 HTTP/1.1\r\n\r\nGET /_emulator/requests HTTP/1.0\r\n\r\n";
    let answer = ask(&proxy, tunnelled).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("[]\n"), "{answer}");
    drop(emulator);
    let answer = ask(&proxy, "CONNECT any:80 HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

#[test]
fn a_proxy_stops_with_its_tunnels() {
    let emulator = Emulator::start().unwrap();
    for _ in 0..50 {
        let proxy = Proxy::start(emulator.address()).unwrap();
        let address = proxy.address();
        let mut tunnel = std::net::TcpStream::connect(address).unwrap();
        std::io::Write::write_all(&mut tunnel, b"CONNECT any:80 HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        std::io::Read::read_exact(&mut tunnel, &mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        drop(proxy);
        std::net::TcpStream::connect(address).unwrap_err();
    }
}

// === the controls ===

#[tokio::test]
async fn the_controls_work_over_http() {
    let emulator = Emulator::start().unwrap();
    emulator.put("team/a", "one");
    let client = client(&emulator.url(), owner(), "us-east-1");
    let control = async |path: &str, body: &str| {
        let mut stream = TcpStream::connect(emulator.address()).await.unwrap();
        let length = body.len();
        let head = format!("PUT /_emulator/{path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n");
        let request = format!("{head}content-length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    let describe = async || client.describe_secret().secret_id("team/a").send().await.unwrap();

    assert_eq!(control("recording", "false").await, "204");
    describe().await;
    assert_eq!(emulator.requests().len(), 0);
    assert_eq!(control("recording", "true").await, "204");
    describe().await;
    assert_eq!(emulator.requests().len(), 1);
    assert_eq!(control("recording", "maybe").await, "400");

    assert_eq!(control("owner/team/a", "\"rds\"").await, "204");
    assert_eq!(control("primary-region/team/a", "\"eu-west-1\"").await, "204");
    let described = describe().await;
    assert_eq!((described.owning_service(), described.primary_region()), (Some("rds"), Some("eu-west-1")));
    assert_eq!(control("owner/team/a", "null").await, "204");
    assert_eq!(describe().await.owning_service(), None);
    assert_eq!(control("owner/team/b", "null").await, "404");
    assert_eq!(control("owner/team/a", "1").await, "400");
    assert_eq!(control("slow-replication", "3").await, "204");
    assert_eq!(control("slow-replication", "-1").await, "400");
}
