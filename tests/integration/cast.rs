//! Who plays in the tests of identity: roles, tokens, what STS was asked, and what nobody may see.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keytide_emulator::{Request, Role, Seed, Service, Statement, User};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Daemon, SECRET_ACCESS_KEY, Stage, block, patiently, stderr, stdout, until};

/// The account of the secrets, and another one.
pub(crate) const HOME: &str = "123456789012";
pub(crate) const AWAY: &str = "210987654321";
/// The user of the stage's static keys, as [`sts`] calls it.
pub(crate) const USER: &str = "user/keytide";
pub(crate) const KEYS: &str = "keys: [{name: A, secret: A}]\n";
pub(crate) const OFTEN: &str = "interval: 1s, jitter: 0, call_timeout: 1s";
/// How late AWS's clock is after [`lenient`].
pub(crate) const LATE: Duration = Duration::from_secs(5);
/// The keys of a second user.
pub(crate) const SECOND: (&str, &str) = ("AKIASECONDUSER0EXAMPLE", "canarySecretKeyOfTheSecondUser/9d41/EXAM");
pub(crate) const PROXY_PASSWORD: &str = "canary-proxy-password-60fa";
/// The third part of every token.
const SIGNATURE: &str = "Y2FuYXJ5LXNpZ25hdHVyZS1jNDFiMDk";
/// How the second part of every token begins: `{"jti":"canary`.
const CLAIMS: &str = "eyJqdGkiOiJjYW5hcn";

/// A daemon that tells everything it can, with the key `A` read and written.
pub(crate) struct Scene {
    pub(crate) stage: Stage,
    pub(crate) daemon: Daemon,
}

/// A well-formed web-identity token of somebody.
pub(crate) fn token(subject: &str) -> String {
    token_with(&format!(r#""sub":"{subject}""#))
}

/// A token of the subject `pod` with this end, in seconds since 1970.
pub(crate) fn token_until(end: i64) -> String {
    token_with(&format!(r#""sub":"pod","exp":{end}"#))
}

fn token_with(claims: &str) -> String {
    let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"jti":"canary-jti-58e2",{claims}}}"#));
    format!("{}.{claims}.{SIGNATURE}", URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256"}"#))
}

/// A role of the home account.
pub(crate) fn arn(name: &str) -> String {
    format!("arn:aws:iam::{HOME}:role/{name}")
}

/// A role whose sessions may read everything, and be whoever trusts them.
pub(crate) fn reader(name: &str) -> Role {
    Role::new(name).allow(Statement::everything())
}

/// One that the user of the static keys may assume.
pub(crate) fn of_user(name: &str) -> Role {
    reader(name).trusts(&format!("arn:aws:iam::{HOME}:{USER}"))
}

/// The user `second`, who may do everything.
pub(crate) fn second_user() -> User {
    User::new("second", SECOND.0, SECOND.1).allow(Statement::everything())
}

/// An AWS with the secret `A`, and an environment without credentials.
pub(crate) fn nobody(seed: Seed) -> Stage {
    let mut stage = somebody(seed);
    stage.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    stage
}

/// The same with the static keys of [`USER`].
pub(crate) fn somebody(seed: Seed) -> Stage {
    let stage = Stage::with(seed.secret("A", "1"));
    stage.config(&block(OFTEN, KEYS));
    stage
}

/// AWS accepts a session for [`LATE`] after the end that it told, and calls have their time: what was signed with a
/// session that was valid then fails on no machine, however busy.
pub(crate) fn lenient(stage: &Stage) {
    stage.aws.set_clock(|| SystemTime::now() - LATE);
    stage.config(&block(&OFTEN.replace("call_timeout: 1s", "call_timeout: 10s"), KEYS));
}

/// A pod of EKS with an annotated service account: IRSA of the role `pod`, whose token file is `token`.
pub(crate) fn pod(seed: Seed) -> Stage {
    let mut stage = nobody(seed);
    irsa(&mut stage, "pod");
    stage
}

/// What EKS's webhook sets.
pub(crate) fn irsa(stage: &mut Stage, role: &str) {
    let file = stage.write("token", token("pod")).display().to_string();
    stage.env("AWS_ROLE_ARN", &arn(role)).env("AWS_WEB_IDENTITY_TOKEN_FILE", &file);
}

/// keytide's block with this `aws`, which is YAML in one line, and more lines below.
pub(crate) fn aws(stage: &Stage, aws: &str) {
    aws_with(stage, aws, OFTEN, KEYS);
}

pub(crate) fn aws_with(stage: &Stage, aws: &str, refresh: &str, rest: &str) {
    stage.config(&block(refresh, rest).replace("{region: us-east-1}", &format!("{{region: us-east-1, {aws}}}")));
}

/// LiteLLM's settings with the hosted key `A`, and of keytide's own nothing but where and when.
pub(crate) fn litellm(stage: &Stage, settings: &str) {
    litellm_with(stage, &format!("hosted_keys: [A]\n{settings}"));
}

pub(crate) fn litellm_with(stage: &Stage, settings: &str) {
    let spool = if settings.contains("store_virtual_keys") { "spool: {directory: \"{dir}/spool/in\"}\n" } else { "" };
    stage.config(&block(OFTEN, spool).replace("aws: {region: us-east-1}\n", ""));
    let ours = stage.read("keytide.yaml");
    let settings: String = settings.lines().map(|line| format!("    {}\n", line.trim())).collect();
    let system = "general_settings:\n  key_management_system: aws_secret_manager\n  key_management_settings:\n";
    stage.write("keytide.yaml", format!("{system}{settings}{ours}"));
}

/// Both of AWS's shared files.
pub(crate) fn shared_files(stage: &mut Stage, config: &str, credentials: &str) {
    let config = stage.write("aws/config", config).display().to_string();
    let credentials = stage.write("aws/credentials", credentials).display().to_string();
    stage.env("AWS_CONFIG_FILE", &config).env("AWS_SHARED_CREDENTIALS_FILE", &credentials);
}

/// Static keys as the shared files have them.
pub(crate) fn keys_of((id, secret): (&str, &str)) -> String {
    format!("aws_access_key_id = {id}\naws_secret_access_key = {secret}\n")
}

/// The Pod Identity agent's answer, asked by the test itself: keys of a session that AWS accepts.
pub(crate) fn session(stage: &Stage) -> [String; 3] {
    let mut stream = TcpStream::connect(stage.aws.address()).unwrap();
    let head = "GET /v1/credentials HTTP/1.1\r\nHost: agent\r\nAuthorization: test\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    stage.aws.clear_requests();
    ["AccessKeyId", "SecretAccessKey", "Token"].map(|part| body[part].as_str().unwrap().to_owned())
}

/// What STS was asked, one line a call: the action, the role, what else was sent, by whom it was signed, for which region.
/// Nothing else is ever sent, so no session policy either.
pub(crate) fn sts(stage: &Stage) -> Vec<String> {
    stage.aws.requests().iter().filter(|request| request.service == Service::Sts).map(line).collect()
}

fn line(request: &Request) -> String {
    let mut sent = request.parameters.as_object().cloned().unwrap_or_default();
    sent.remove("Version");
    let mut take = |name: &str| sent.remove(name).and_then(|value| value.as_str().map(str::to_owned));
    let mut text = request.action.clone();
    for (name, word) in
        [("RoleArn", ""), ("RoleSessionName", "as "), ("ExternalId", "id "), ("DurationSeconds", "for ")]
    {
        text += &take(name).map(|value| format!(" {word}{value}")).unwrap_or_default();
    }
    for i in 1.. {
        let (key, value) = (take(&format!("Tags.member.{i}.Key")), take(&format!("Tags.member.{i}.Value")));
        let Some((key, value)) = key.zip(value) else { break };
        text += &format!(" {key}={value}");
    }
    for i in 1.. {
        let Some(key) = take(&format!("TransitiveTagKeys.member.{i}")) else { break };
        text += &format!(" keep {key}");
    }
    assert!(sent.is_empty(), "{} with what nobody asked for: {sent:?}", request.action);
    text += &match (&request.access_key_id, &request.principal, &request.region) {
        (None, None, None) => " unsigned".to_owned(),
        (id, principal, region) => {
            let who = principal.as_deref().or(id.as_deref()).unwrap_or("nobody");
            format!(" by {who} in {}", region.as_deref().unwrap_or("nowhere"))
        }
    };
    short(&text)
}

/// Without what all ARNs of the home account have in common.
fn short(text: &str) -> String {
    text.replace(&format!("arn:aws:iam::{HOME}:"), "").replace(&format!("arn:aws:sts::{HOME}:"), "")
}

/// Who read secrets, in which region; each once.
pub(crate) fn readers(stage: &Stage) -> Vec<String> {
    let asked = stage.aws.requests().into_iter().filter(|request| request.service == Service::SecretsManager);
    let mut readers: Vec<String> = asked
        .map(|request| {
            let who = request.principal.or(request.access_key_id).unwrap_or_default();
            short(&format!("{who} in {}", request.region.unwrap_or_default()))
        })
        .collect();
    readers.dedup();
    readers
}

/// Tries all cases at the same time: most of them wait.
pub(crate) fn together<T: Send>(cases: impl IntoIterator<Item = T>, test: impl Fn(T) + Sync) {
    thread::scope(|scope| {
        for case in cases {
            let test = &test;
            scope.spawn(move || test(case));
        }
    });
}

/// One run, after which the key is there; answers what keytide said.
#[track_caller]
pub(crate) fn reads(stage: &Stage, who: &str, calls: &[&str]) -> String {
    stage.aws.clear_requests();
    let (code, log) = once(stage, "10s");
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(stage.values(), json!({"A": "1"}));
    assert_eq!(sts(stage), calls, "{log}");
    assert_eq!(readers(stage), [who]);
    fs::remove_dir_all(stage.path("env")).unwrap();
    log
}

/// One run that ends with this code and nothing written, and says all of this and no secret; answers what it said.
#[track_caller]
pub(crate) fn fails(stage: &Stage, code: i32, parts: &[&str]) -> String {
    // Soon, or on a busy machine later.
    let (mut ended, mut log) = (None, String::new());
    for timeout in ["400ms", "10s"] {
        stage.aws.clear_requests();
        (ended, log) = once(stage, timeout);
        if parts.iter().all(|part| log.contains(part)) {
            break;
        }
    }
    assert_eq!(ended, Some(code), "{log}");
    says(&log, parts);
    assert_eq!(stage.values(), Value::Null);
    if code == 64 {
        assert!(stage.aws.requests().is_empty(), "nobody is asked: {log}");
    }
    log
}

fn once(stage: &Stage, timeout: &str) -> (Option<i32>, String) {
    let config = stage.path("keytide.yaml").display().to_string();
    let arguments = ["--log-level", "trace", "run", "--config", &config, "--once", "--timeout", timeout];
    let output = stage.keytide(&arguments);
    let log = stdout(&output) + &stderr(&output);
    assert_clean(&log);
    (output.status.code(), log)
}

#[track_caller]
pub(crate) fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} in:\n{text}");
    }
}

/// No token, no secret key, no password.
#[track_caller]
pub(crate) fn assert_clean(text: &str) {
    for canary in [SIGNATURE, CLAIMS, SECRET_ACCESS_KEY, SECOND.1, PROXY_PASSWORD, "canary-"] {
        assert!(!text.contains(canary), "{canary} in:\n{text}");
    }
}

/// Starts the daemon, and waits for the key.
#[track_caller]
pub(crate) fn play(stage: Stage) -> Scene {
    let config = stage.path("keytide.yaml").display().to_string();
    let daemon = stage.run_with(&["--log-level", "trace", "run", "--config", &config]);
    daemon.until_ready();
    assert_eq!(stage.values(), json!({"A": "1"}));
    Scene { stage, daemon }
}

impl Scene {
    /// What the key's state says about it.
    pub(crate) fn message(&self) -> String {
        self.stage.status()["keys"][0]["message"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.daemon.metric(name, &[])
    }

    /// The key goes stale for this reason, with these words, and nothing else happens.
    #[track_caller]
    pub(crate) fn suffers(&self, reason: &str, parts: &[&str]) {
        let label = format!("reason=\"{reason}\"");
        until(&label, || self.daemon.metric("keytide_stale_keys", &[&label]) >= 1.0);
        // At the very end of a session a read may still go out with it, and be the first to fail.
        let mut said = String::new();
        let so = patiently(|| {
            let key = &self.stage.status()["keys"][0];
            said = format!("{}: {}", key["reason"], key["message"].as_str().unwrap_or_default());
            key["state"] == "stale" && key["reason"] == reason && parts.iter().all(|part| said.contains(part))
        });
        assert!(so, "waited for {reason} with {parts:?}, it is {said}");
        self.stays();
    }

    /// The last good value stays, the pod stays ready, and nobody sees a secret.
    #[track_caller]
    pub(crate) fn stays(&self) {
        assert_eq!(self.stage.values(), json!({"A": "1"}));
        for path in ["/readyz", "/livez"] {
            assert_eq!(self.daemon.get(path).status, 200, "{path}");
        }
        assert_clean(&self.seen());
    }

    /// The key gets fresh again, without another process.
    #[track_caller]
    pub(crate) fn heals(&mut self) {
        until("a fresh key", || self.daemon.metric("keytide_keys", &["fresh"]) >= 1.0);
        self.stays();
        assert!(self.daemon.is_running());
    }

    /// That, and a new value arrives.
    #[track_caller]
    pub(crate) fn recovers(mut self) {
        self.heals();
        self.stage.aws.put("A", "2");
        self.daemon.signal(Signal::HUP);
        self.stage.until_values(&json!({"A": "2"}));
        assert!(self.daemon.is_running());
    }

    /// Everything that somebody could see, and that is not made for the application.
    fn seen(&self) -> String {
        let socket = self.stage.socket().display().to_string();
        let mut text = self.daemon.log();
        for form in ["text", "json"] {
            let output = self.stage.keytide(&["--log-level", "trace", "status", "--output", form, "--socket", &socket]);
            text += &(stdout(&output) + &stderr(&output));
        }
        for path in ["/metrics", "/livez", "/readyz", "/startupz"] {
            text += &self.daemon.get(path).body;
        }
        text
    }
}
