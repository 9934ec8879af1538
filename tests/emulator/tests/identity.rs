//! Who one is and what one may do, where moto could not answer the same way.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests too")]

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use aws_sdk_sts::Client as Sts;
use aws_sdk_sts::error::ProvideErrorMetadata as _;
use aws_sdk_sts::operation::assume_role::builders::AssumeRoleFluentBuilder;
use aws_sdk_sts::types::Tag;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use keytide_emulator::{
    Emulator, Fault, FaultKind, OidcProvider, PodIdentity, Role, Seed, Service, Statement, User, WebIdentity,
};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[path = "support/sdk.rs"]
mod sdk;
#[path = "support/sessions.rs"]
mod sessions;

use sdk::{client, code, owner};
use sessions::{jwt, session, sts};

const KEYTIDE: &str = "arn:aws:iam::123456789012:user/keytide";
const ROOT: &str = "arn:aws:iam::123456789012:root";

/// An answer of something that is asked in plain HTTP.
#[derive(Debug)]
struct Plain {
    status: u16,
    head: String,
    body: String,
}

impl Plain {
    fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The credentials in it, proved to be some.
    fn credentials(&self) -> Credentials {
        let json = self.json();
        let field = |name: &str| json.get(name).unwrap().as_str().unwrap().to_owned();
        Credentials::from_keys(field("AccessKeyId"), field("SecretAccessKey"), Some(field("Token")))
    }
}

async fn ask(emulator: &Emulator, first: &str, headers: &[(&str, &str)], body: &str) -> Plain {
    let mut stream = TcpStream::connect(emulator.address()).await.unwrap();
    let (host, length) = (emulator.address(), body.len());
    let mut request = format!("{first} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        request += &[name, ": ", value, "\r\n"].concat();
    }
    request += &["\r\n", body].concat();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    // A connection that was cut has no head.
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
    Plain { status, head: head.to_owned(), body: body.to_owned() }
}

/// A call of IAM, signed for this region.
async fn iam(emulator: &Emulator, credentials: Credentials, region: &str, fields: &[(&str, &str)]) -> Plain {
    let url = format!("{}/", emulator.url());
    let form = [("Action", "SimulatePrincipalPolicy"), ("Version", "2010-05-08")];
    let body: String = form_urlencoded::Serializer::new(String::new()).extend_pairs(form.iter().chain(fields)).finish();
    let identity = credentials.into();
    let settings = v4::SigningParams::builder().identity(&identity).region(region).name("iam").time(now());
    let settings = settings.settings(SigningSettings::default()).build().unwrap().into();
    let request = SignableRequest::new("POST", &url, [].into_iter(), SignableBody::Bytes(body.as_bytes())).unwrap();
    let (signed, _) = sign(request, &settings).unwrap().into_parts();
    let headers: Vec<(&str, &str)> = signed.headers().collect();
    ask(emulator, "POST /", &headers, &body).await
}

#[expect(clippy::disallowed_methods, reason = "what a signature is dated with")]
fn now() -> SystemTime {
    SystemTime::now()
}

/// What stands in each element of this name.
fn elements<'a>(xml: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    xml.split(&open).skip(1).map(|rest| rest.split(&close).next().unwrap()).collect()
}

async fn whoami(emulator: &Emulator, credentials: Credentials) -> (String, String) {
    let answer = sts(&emulator.url(), credentials).get_caller_identity().send().await.unwrap();
    (answer.arn.unwrap(), answer.account.unwrap())
}

fn assume(sts: &Sts, arn: &str) -> AssumeRoleFluentBuilder {
    sts.assume_role().role_arn(arn).role_session_name("me")
}

fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().key(key).value(value).build().unwrap()
}

fn read_all() -> Statement {
    Statement::new(["secretsmanager:GetSecretValue"], ["*"])
}

async fn get(emulator: &Emulator, credentials: Credentials) -> String {
    let client = client(&emulator.url(), credentials, "us-east-1");
    code(client.get_secret_value().secret_id("a").send().await)
}

// === the tags of a session ===

#[tokio::test]
async fn session_tags_have_limits() {
    let emulator = Emulator::start().unwrap();
    let arn = emulator.add_role(Role::new("tagged").trusts(KEYTIDE));
    let sts = sts(&emulator.url(), owner());
    let (long, longer) = ("x".repeat(128), "x".repeat(129));
    let (value, larger) = ("ä".repeat(256), "x".repeat(257));
    for (key, value, expected) in [
        (long.as_str(), value.as_str(), "ok"),
        ("Projekt äöü_.:/=+-@", "1 2", "ok"),
        (longer.as_str(), "x", "ValidationError"),
        ("", "x", "ValidationError"),
        ("key", larger.as_str(), "ValidationError"),
        ("a,b", "x", "ValidationError"),
        ("key", "a\nb", "ValidationError"),
        ("AWS:key", "x", "InvalidParameterValue"),
    ] {
        assert_eq!(code(assume(&sts, &arn).tags(tag(key, value)).send().await), expected, "{key} {value}");
    }
    for (count, expected) in [(50, "ok"), (51, "ValidationError")] {
        let tags = (0..count).map(|number| tag(&format!("key{number}"), "x")).collect();
        assert_eq!(code(assume(&sts, &arn).set_tags(Some(tags)).send().await), expected, "{count}");
    }
    let twice = assume(&sts, &arn).tags(tag("key", "1")).tags(tag("KEY", "2")).send().await.unwrap_err();
    let twice = twice.into_service_error();
    assert_eq!(twice.code(), Some("InvalidParameterValue"));
    assert!(twice.message().unwrap().contains("Duplicate tag keys"), "{twice:?}");
    let last = emulator.requests().pop().unwrap();
    assert_eq!(last.parameters["Tags.member.2.Value"], "2");
    assert_eq!(last.host, Some(emulator.address().to_string()));
}

#[tokio::test]
async fn to_pass_tags_is_a_right_of_its_own() {
    let emulator = Emulator::start().unwrap();
    let closed = emulator.add_role(Role::new("closed").trusts(KEYTIDE).denies_tags());
    let rooted = emulator.add_role(Role::new("rooted").trusts(ROOT));
    let sts = sts(&emulator.url(), owner());
    assert_eq!(code(assume(&sts, &closed).send().await), "ok");
    let denied = assume(&sts, &closed).tags(tag("team", "a")).send().await.unwrap_err().into_service_error();
    assert_eq!(denied.code(), Some("AccessDenied"));
    let start = format!("User: {KEYTIDE} is not authorized to perform: sts:TagSession on resource: {closed}");
    assert!(denied.message().unwrap().starts_with(&start), "{denied:?}");

    let user = User::default().access_key_id;
    emulator.allow(&user, &[Statement::new(["sts:AssumeRole"], ["*"])]);
    assert_eq!(code(assume(&sts, &rooted).send().await), "ok");
    let tagged = || assume(&sts, &rooted).tags(tag("team", "a")).send();
    assert!(tagged().await.unwrap_err().into_service_error().message().unwrap().contains("sts:TagSession"));
    emulator.allow(&user, &[Statement::new(["sts:AssumeRole", "sts:TagSession"], [rooted.as_str()])]);
    assert_eq!(code(tagged().await), "ok");
    emulator.allow(&user, &[Statement::new(["sts:TagSession"], ["*"])]);
    assert_eq!(code(tagged().await), "AccessDenied");
}

#[tokio::test]
async fn transitive_tags_are_inherited_and_cannot_be_replaced() {
    let emulator = Emulator::start().unwrap();
    let first = emulator.add_role(Role::new("first").trusts(KEYTIDE));
    let second = emulator.add_role(Role::new("second").trusts(&first));
    let third = emulator.add_role(Role::new("third").trusts(&second));
    let closed = emulator.add_role(Role::new("closed").trusts(&first).denies_tags());
    let user = sts(&emulator.url(), owner());
    let tagged = assume(&user, &first).tags(tag("team", "a")).tags(tag("stage", "b")).transitive_tag_keys("team");
    let one = sts(&emulator.url(), session(tagged.send().await.unwrap().credentials().unwrap()));
    assert_eq!(code(assume(&one, &second).tags(tag("Team", "c")).send().await), "InvalidParameterValue");
    assert_eq!(code(assume(&one, &closed).send().await), "AccessDenied");
    let tagged = assume(&one, &second).tags(tag("stage", "c")).transitive_tag_keys("stage");
    let two = sts(&emulator.url(), session(tagged.send().await.unwrap().credentials().unwrap()));
    for key in ["team", "stage"] {
        assert_eq!(code(assume(&two, &third).tags(tag(key, "d")).send().await), "InvalidParameterValue", "{key}");
    }
    assert_eq!(code(assume(&two, &third).tags(tag("other", "d")).send().await), "ok");
    let plain = assume(&user, &first).tags(tag("team", "a")).send().await.unwrap();
    let plain = sts(&emulator.url(), session(plain.credentials().unwrap()));
    assert_eq!(code(assume(&plain, &second).tags(tag("team", "c")).send().await), "ok");
}

// === other accounts ===

#[tokio::test]
async fn a_role_of_another_account_is_its_own() {
    let emulator = Emulator::start().unwrap();
    emulator.put("a", "one");
    let arn = emulator.add_role(Role::new("far").account("999999999999").trusts(KEYTIDE).allow(read_all()));
    assert_eq!(arn, "arn:aws:iam::999999999999:role/far");
    let sts = sts(&emulator.url(), owner());
    let answer = assume(&sts, &arn).send().await.unwrap();
    let far = session(answer.credentials().unwrap());
    let expected = ("arn:aws:sts::999999999999:assumed-role/far/me".to_owned(), "999999999999".to_owned());
    assert_eq!(whoami(&emulator, far.clone()).await, expected);
    assert_eq!(get(&emulator, far).await, "ok");

    // Between accounts both sides have to agree, for the tags as well.
    let user = User::default().access_key_id;
    emulator.allow(&user, &[]);
    assert_eq!(code(assume(&sts, &arn).send().await), "AccessDenied");
    emulator.allow(&user, &[Statement::new(["sts:AssumeRole"], [arn.as_str()])]);
    assert_eq!(code(assume(&sts, &arn).send().await), "ok");
    assert_eq!(code(assume(&sts, &arn).tags(tag("team", "a")).send().await), "AccessDenied");

    let stranger = User::new("far", "AKIAFAR", "key").account("999999999999").allow(Statement::everything());
    emulator.add_user(stranger);
    let stranger = Credentials::from_keys("AKIAFAR", "key", None);
    let expected = ("arn:aws:iam::999999999999:user/far".to_owned(), "999999999999".to_owned());
    assert_eq!(whoami(&emulator, stranger.clone()).await, expected);
    // The root of an account stands for its own principals only.
    let rooted = emulator.add_role(Role::new("rooted").trusts(ROOT));
    assert_eq!(code(assume(&sessions::sts(&emulator.url(), stranger), &rooted).send().await), "AccessDenied");
    emulator.allow(&arn, &[]);
    assert_eq!(get(&emulator, session(answer.credentials().unwrap())).await, "AccessDeniedException");
}

// === the Pod Identity agent ===

const POD: &str = "GET /v1/credentials";

#[tokio::test]
async fn a_pod_gets_the_credentials_of_its_role() {
    let role = Role::new("pod").allow(read_all());
    let arn = role.arn("123456789012");
    let seed = Seed {
        pod_identity: Some(PodIdentity::new(&arn).session_name("reader")),
        ..Seed::default().secret("a", "one").role(role).session_lifetime(Duration::from_mins(5))
    };
    let emulator = Emulator::start_with(seed, ([127, 0, 0, 1], 0).into()).unwrap();
    let answer = ask(&emulator, POD, &[("Authorization", "any")], "").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.to_lowercase().contains("content-type: application/json"), "{}", answer.head);
    assert_eq!(answer.json()["AccountId"], "123456789012");
    let expiration: jiff::Timestamp = answer.json()["Expiration"].as_str().unwrap().parse().unwrap();
    let left = expiration.as_second() - jiff::Timestamp::try_from(now()).unwrap().as_second();
    assert!((295..=300).contains(&left), "{left}");
    let identity = whoami(&emulator, answer.credentials()).await.0;
    assert_eq!(identity, "arn:aws:sts::123456789012:assumed-role/pod/reader");
    assert_eq!(get(&emulator, answer.credentials()).await, "ok");
    emulator.expire_sessions();
    assert_eq!(get(&emulator, answer.credentials()).await, "ExpiredTokenException");

    // Its tags are transitive.
    let next = emulator.add_role(Role::new("next").trusts(&arn));
    let answer = ask(&emulator, POD, &[("Authorization", "any")], "").await;
    let pod = sts(&emulator.url(), answer.credentials());
    let named = assume(&pod, &next).tags(tag("kubernetes-namespace", "x"));
    assert_eq!(code(named.send().await), "InvalidParameterValue");
    assert_eq!(code(assume(&pod, &next).send().await), "ok");
}

#[tokio::test]
async fn a_pod_has_to_show_its_token() {
    let emulator = Emulator::start().unwrap();
    let arn = emulator.add_role(Role::new("pod"));
    let with = async |token: &str| ask(&emulator, POD, &[("Authorization", token)], "").await;
    assert_eq!(with("known").await.status, 404);
    emulator.set_pod_identity(Some(PodIdentity::new(&arn).token("known").token("canary-token")));
    assert_eq!(with("known").await.status, 200);
    assert_eq!(with("canary-token").await.status, 200);
    let unknown = with("canary-unknown").await;
    assert!(unknown.status == 400 && unknown.body.contains("(InvalidTokenException)"), "{unknown:?}");
    for headers in [&[][..], &[("Authorization", "")]] {
        let missing = ask(&emulator, POD, headers, "").await;
        assert_eq!((missing.status, missing.body.as_str()), (400, "Service account token cannot be empty\n"));
    }
    let expired = with(&jwt(r#"{"exp":1}"#)).await;
    assert!(expired.status == 400 && expired.body.contains("token is expired"), "{expired:?}");
    emulator.set_pod_identity(None);
    assert_eq!(with("known").await.status, 404);

    let requests = emulator.requests();
    assert!(requests.iter().all(|request| request.service == Service::EksAuth), "{requests:?}");
    assert_eq!(emulator.count("AssumeRoleForPodIdentity"), requests.len());
    assert_eq!((requests[1].outcome.as_str(), requests[3].outcome.as_str()), ("200", "InvalidTokenException"));
    assert!(!format!("{requests:?}").contains("canary"));
    assert_eq!(serde_json::to_value(Service::EksAuth).unwrap(), "eks-auth");
}

// === OIDC ===

const ISSUER: &str = "https://oidc.eks.us-east-1.amazonaws.com/id/EXAMPLE";

/// A key of an issuer.
struct Signer(KeyPair);

impl Signer {
    fn new() -> Self {
        Self(KeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    fn token(&self, kid: &str, claims: &Json) -> String {
        let part = |json: Json| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", part(json!({"alg": "RS256", "kid": kid})), part(claims.clone()));
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// As an issuer publishes it.
    fn jwk(&self, kid: &str) -> Json {
        // PKCS #1: a sequence of the modulus, of 256 bytes behind a zero, and the exponent 65537.
        let modulus = self.0.public_key().as_ref().get(9..265).unwrap();
        json!({"use": "sig", "kty": "RSA", "alg": "RS256", "kid": kid, "n": URL_SAFE_NO_PAD.encode(modulus), "e": "AQAB"})
    }
}

#[tokio::test]
async fn a_role_of_a_provider_is_assumed_with_a_token_that_the_provider_signed() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let keys = json!({"keys": [stranger.jwk("other"), signer.jwk("one")]});
    let provider = json!({"issuer": ISSUER, "audiences": ["sts.amazonaws.com"], "keys": keys});
    let provider: OidcProvider = serde_json::from_value(provider).unwrap();
    let pod = "system:serviceaccount:shop:app";
    let trust = |issuer: &str| WebIdentity {
        provider: Some(issuer.to_owned()),
        subject: Some(pod.to_owned()),
        ..WebIdentity::default()
    };
    let role = |name: &str, issuer: &str| Role { web_identity: Some(trust(issuer)), ..Role::new(name) };
    let seed = Seed::default().oidc_provider(provider).role(role("app", ISSUER)).role(role("none", "https://other"));
    let emulator = Emulator::start_with(seed, ([127, 0, 0, 1], 0).into()).unwrap();
    let sts = sts(&emulator.url(), owner());
    let assume = async |role: &str, token: String| {
        let request = sts.assume_role_with_web_identity().role_session_name("pod").web_identity_token(token);
        code(request.role_arn(format!("arn:aws:iam::123456789012:role/{role}")).send().await)
    };
    let claims = json!({"iss": ISSUER, "aud": ["sts.amazonaws.com"], "sub": pod});
    assert_eq!(assume("app", signer.token("one", &claims)).await, "ok");
    let with = |name: &str, value: Json| {
        let mut claims = claims.clone();
        claims[name] = value;
        signer.token("one", &claims)
    };
    let invalid = [
        with("iss", json!("https://other")),
        with("aud", json!("https://kubernetes.default.svc")),
        signer.token("other", &claims),
        stranger.token("one", &claims),
        jwt(&claims.to_string()),
    ];
    for token in invalid {
        assert_eq!(assume("app", token).await, "InvalidIdentityToken");
    }
    assert_eq!(assume("app", with("sub", json!("system:serviceaccount:shop:other"))).await, "AccessDenied");
    assert_eq!(assume("app", with("exp", json!(1))).await, "ExpiredTokenException");
    assert_eq!(assume("none", signer.token("one", &claims)).await, "AccessDenied");
}

// === the metadata service ===

const ROLE_PATH: &str = "GET /latest/meta-data/iam/security-credentials/";
const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds";

async fn metadata_token(emulator: &Emulator, ttl: &str) -> Plain {
    ask(emulator, "PUT /latest/api/token", &[(TTL, ttl)], "").await
}

#[tokio::test]
async fn an_instance_gives_its_role_to_whoever_has_a_token() {
    let emulator = Emulator::start().unwrap();
    emulator.put("a", "one");
    let arn = emulator.add_role(Role { path: "/nodes/".into(), ..Role::new("node").allow(read_all()) });
    emulator.set_instance_role(Some(&arn));
    for ttl in ["0", "21601", "x", ""] {
        assert_eq!(metadata_token(&emulator, ttl).await.status, 400, "{ttl}");
    }
    assert_eq!(ask(&emulator, "PUT /latest/api/token", &[], "").await.status, 400);
    let token = metadata_token(&emulator, "60").await;
    assert!(token.head.contains("x-aws-ec2-metadata-token-ttl-seconds: 60"), "{}", token.head);
    let token = token.body.as_str();
    let with = async |first: &str| ask(&emulator, first, &[("X-aws-ec2-metadata-token", token)], "").await;
    let role = with(ROLE_PATH).await;
    assert_eq!((role.status, role.body.as_str()), (200, "node"));
    let answer = with(&format!("{ROLE_PATH}node")).await;
    let json = answer.json();
    assert_eq!((&json["Code"], &json["Type"]), (&"Success".into(), &"AWS-HMAC".into()));
    assert!(json["LastUpdated"].as_str() < json["Expiration"].as_str());
    let identity = whoami(&emulator, answer.credentials()).await.0;
    assert_eq!(identity, "arn:aws:sts::123456789012:assumed-role/node/i-0123456789abcdef0");
    assert_eq!(get(&emulator, answer.credentials()).await, "ok");

    assert_eq!(with(&format!("{ROLE_PATH}other")).await.status, 404);
    assert_eq!(with("GET /latest/user-data").await.status, 404);
    assert_eq!(ask(&emulator, ROLE_PATH, &[], "").await.status, 401);
    assert_eq!(ask(&emulator, ROLE_PATH, &[("X-aws-ec2-metadata-token", "wrong")], "").await.status, 401);
    emulator.set_instance_role(None);
    assert_eq!(with(ROLE_PATH).await.status, 404);
    assert_eq!(with(&format!("{ROLE_PATH}node")).await.status, 404);
    emulator.set_clock(|| now() + Duration::from_mins(2));
    assert_eq!(with(ROLE_PATH).await.status, 401);

    let requests = emulator.requests();
    assert!(!format!("{requests:?}").contains(token));
    let node = requests.iter().filter(|request| request.service == Service::Metadata);
    let actions: Vec<&str> = node.map(|request| request.action.as_str()).skip(5).take(3).collect();
    assert_eq!(actions, ["MetadataToken", "MetadataRole", "MetadataCredentials"]);
    assert_eq!(emulator.count("MetadataOther"), 1);
}

#[tokio::test]
async fn faults_strike_the_agents_of_a_node() {
    let emulator = Emulator::start().unwrap();
    let arn = emulator.add_role(Role::new("node"));
    emulator.set_instance_role(Some(&arn));
    emulator.set_pod_identity(Some(PodIdentity::new(&arn)));
    let pod = async || ask(&emulator, POD, &[("Authorization", "any")], "").await;
    let node = async || metadata_token(&emulator, "60").await;
    let error = FaultKind::Error { code: "Odd".into(), status: 418, message: "tea".into() };
    for (kind, status, body) in [
        (FaultKind::Throttle, 429, "(ThrottlingException)"),
        (error, 418, "(Odd): tea"),
        (FaultKind::InternalError, 500, "(InternalServerException)"),
        (FaultKind::ExpiredToken, 400, "(ExpiredTokenException)"),
        (FaultKind::Body("<html>".into()), 200, "<html>"),
        (FaultKind::Latency(Duration::from_millis(10)), 200, "AccessKeyId"),
    ] {
        emulator.fault(Fault::on("AssumeRoleForPodIdentity").times(1).kind(kind.clone()));
        let answer = pod().await;
        assert!(answer.status == status && answer.body.contains(body), "{kind:?} {answer:?}");
        emulator.fault(Fault::on("MetadataToken").times(1).kind(kind.clone()));
        let answer = node().await;
        assert_eq!(answer.status, if kind_is_expiry(&kind) { 401 } else { status }, "{kind:?}");
    }
    emulator.fault(Fault::on("AssumeRoleForPodIdentity").times(1).kind(FaultKind::CutAfter(5)));
    assert_eq!(pod().await.body.len(), 5);
    emulator.fault(Fault::any().kind(FaultKind::Hang));
    tokio::time::timeout(Duration::from_millis(100), pod()).await.unwrap_err();
    tokio::time::timeout(Duration::from_millis(100), node()).await.unwrap_err();
}

fn kind_is_expiry(kind: &FaultKind) -> bool {
    matches!(kind, FaultKind::ExpiredToken)
}

#[test]
fn only_roles_that_exist_are_given_out() {
    let start = |seed: Seed| Emulator::start_with(seed, ([127, 0, 0, 1], 0).into());
    let none = "arn:aws:iam::123456789012:role/none";
    let error = start(Seed { instance_role: Some(none.to_owned()), ..Seed::default() }).unwrap_err();
    assert_eq!(error.to_string(), format!("no role {none}"));
    start(Seed { pod_identity: Some(PodIdentity::new(none)), ..Seed::default() }).unwrap_err();
}

// === IAM ===

#[tokio::test]
async fn a_simulation_says_what_a_principal_may_do() {
    let emulator = Emulator::start().unwrap();
    let secret = "arn:aws:secretsmanager:us-east-1:123456789012:secret:team/a-abcdef";
    let other = "arn:aws:secretsmanager:us-east-1:123456789012:secret:other-abcdef";
    let statement = Statement::new(["secretsmanager:Get*"], ["arn:aws:secretsmanager:*:*:secret:team/*"]);
    let arn = emulator.add_role(Role { path: "/apps/".into(), ..Role::new("reader").allow(statement) });
    let answer = iam(
        &emulator,
        owner(),
        "us-east-1",
        &[
            ("PolicySourceArn", &arn),
            ("ActionNames.member.1", "secretsmanager:GetSecretValue"),
            ("ActionNames.member.2", "secretsmanager:PutSecretValue"),
            ("ResourceArns.member.1", secret),
            ("ResourceArns.member.2", other),
        ],
    )
    .await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let start = "<SimulatePrincipalPolicyResponse xmlns=\"https://iam.amazonaws.com/doc/2010-05-08/\">\
                 <SimulatePrincipalPolicyResult><IsTruncated>false</IsTruncated><EvaluationResults><member>";
    assert!(answer.body.starts_with(start), "{}", answer.body);
    assert_eq!(elements(&answer.body, "EvalResourceName"), [secret, other, secret, other]);
    let (get, put) = ("secretsmanager:GetSecretValue", "secretsmanager:PutSecretValue");
    assert_eq!(elements(&answer.body, "EvalActionName"), [get, get, put, put]);
    let decisions = ["allowed", "implicitDeny", "implicitDeny", "implicitDeny"];
    assert_eq!(elements(&answer.body, "EvalDecision"), decisions);

    let everywhere = [("PolicySourceArn", KEYTIDE), ("ActionNames.member.1", get)];
    let answer = iam(&emulator, owner(), "us-east-1", &everywhere).await;
    assert_eq!(elements(&answer.body, "EvalResourceName"), ["*"]);
    assert_eq!(elements(&answer.body, "EvalDecision"), ["allowed"]);
    let last = emulator.requests().pop().unwrap();
    assert_eq!((last.service, last.action.as_str()), (Service::Iam, "SimulatePrincipalPolicy"));
    assert_eq!(last.principal.as_deref(), Some(KEYTIDE));
    emulator.fault(Fault::on("SimulatePrincipalPolicy").times(1));
    let throttled = iam(&emulator, owner(), "us-east-1", &everywhere).await;
    assert_eq!(elements(&throttled.body, "Code"), ["Throttling"]);
}

#[tokio::test]
async fn a_simulation_is_for_those_who_may_simulate() {
    let emulator = Emulator::start().unwrap();
    let arn = emulator.add_role(Role::new("reader").trusts(KEYTIDE));
    let far = emulator.add_role(Role::new("reader").account("999999999999"));
    let get = ("ActionNames.member.1", "secretsmanager:GetSecretValue");
    let assumed = "arn:aws:sts::123456789012:assumed-role/reader/me";
    let none = "arn:aws:iam::123456789012:role/none";
    let gap = ("ActionNames.member.3", "secretsmanager:GetSecretValue");
    for (fields, status, expected) in [
        (&[("PolicySourceArn", assumed), get][..], 400, "InvalidInput"),
        (&[("PolicySourceArn", none), get], 404, "NoSuchEntity"),
        (&[("PolicySourceArn", "arn:aws:iam::123456789012:user/none"), get], 404, "NoSuchEntity"),
        (&[("PolicySourceArn", &far), get], 403, "AccessDenied"),
        (&[("PolicySourceArn", &arn)], 400, "ValidationError"),
        (&[get], 400, "ValidationError"),
        (&[("PolicySourceArn", &arn), get, gap], 400, "MalformedInput"),
        (&[("PolicySourceArn", &arn), ("ActionNames.member.1", "secretsmanager:*")], 400, "InvalidInput"),
        (&[("PolicySourceArn", &arn), get, ("ResourceArns.member.1", "a")], 400, "InvalidInput"),
        (&[("PolicySourceArn", &arn), get, ("PolicyInputList.member.1", "{}")], 400, "InvalidInput"),
    ] {
        let answer = iam(&emulator, owner(), "us-east-1", fields).await;
        assert_eq!((answer.status, elements(&answer.body, "Code")), (status, vec![expected]), "{fields:?}");
    }
    let fields = [("PolicySourceArn", arn.as_str()), get];
    let elsewhere = iam(&emulator, owner(), "eu-west-1", &fields).await;
    assert_eq!((elsewhere.status, elements(&elsewhere.body, "Code")), (403, vec!["SignatureDoesNotMatch"]));

    let answer = assume(&sts(&emulator.url(), owner()), &arn).send().await.unwrap();
    let reader = session(answer.credentials().unwrap());
    let denied = iam(&emulator, reader.clone(), "us-east-1", &fields).await;
    let message = format!(
        "User: {assumed} is not authorized to perform: iam:SimulatePrincipalPolicy on resource: {arn} \
         because no identity-based policy allows the iam:SimulatePrincipalPolicy action"
    );
    assert_eq!((denied.status, elements(&denied.body, "Message")), (403, vec![message.as_str()]));
    emulator.allow(&arn, &[Statement::new(["iam:SimulatePrincipalPolicy"], [arn.as_str()])]);
    let answer = iam(&emulator, reader, "us-east-1", &fields).await;
    assert_eq!(elements(&answer.body, "EvalDecision"), ["implicitDeny"]);
}
