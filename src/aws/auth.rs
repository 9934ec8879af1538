//! Who keytide is: one source of credentials, kept until they end, renewed early by one caller for all.
//!
//! The SDK's own chain is not used: it ends at the node's role, which would answer for a pod whose own identity is
//! missing, and its cache throws away credentials that are still valid.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future},
};
use aws_runtime::env_config::{
    file::{EnvConfigFileKind, EnvConfigFiles},
    section::{EnvConfigSections, Profile},
    source,
};
use aws_sdk_sts::config::IdentityCache;
use aws_types::{
    SdkConfig,
    os_shim_internal::{Env, Fs},
};
use tokio::{sync::Mutex, time::Instant};

use super::{client::Connection, outcome::Failure};
use crate::{
    config,
    domain::{
        snapshot::{Problem, Reason},
        value::SecretValue,
    },
    metrics::Metrics,
};

/// Credentials are renewed this long before they end, or after four fifths of their life if that is later.
const RENEW_BEFORE: Duration = Duration::from_mins(5);
/// After a renewal that failed while the old credentials are valid, and after credentials that AWS did not accept, the
/// next attempt waits as long.
const PAUSE: Duration = Duration::from_mins(1);
/// A token of a service account has about 1 KiB.
const LARGEST_TOKEN: u64 = 64 * 1024;

/// The one cache of credentials of a process.
#[derive(Debug)]
pub struct Auth {
    way: Way,
    connection: Connection,
    metrics: Arc<Metrics>,
    cache: Mutex<Cache>,
}

/// Who keytide is, for status; nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// How the credentials come: `static`, `profile` or `web_identity`.
    pub kind: &'static str,
    /// The access key id, the profile or the role.
    pub name: String,
    /// When they end, in seconds since the Unix epoch.
    pub expires_at: Option<i64>,
}

#[derive(Debug)]
enum Way {
    Static { access_key_id: String, secret_access_key: SecretValue, session_token: Option<SecretValue> },
    Profile { name: String, credentials_file: PathBuf, config_file: PathBuf },
    WebIdentity { role_arn: String, session_name: String, token_file: PathBuf, sts: aws_sdk_sts::Client },
}

#[derive(Debug, Default)]
struct Cache {
    credentials: Option<Credentials>,
    renew_at: Option<SystemTime>,
    /// When the credentials were last renewed or refused.
    renewed: Option<Instant>,
    rejected: bool,
}

/// What the SDK is given: the same cache.
#[derive(Debug)]
struct Provider(Arc<Auth>);

// === impl Auth ===

impl Auth {
    /// Prepares the way that the configuration chose. Nothing is read or asked yet.
    ///
    /// # Errors
    /// If the configuration chose none.
    pub fn new(aws: config::Aws, connection: Connection, metrics: Arc<Metrics>) -> Result<Arc<Self>, Problem> {
        let config::Aws { credentials, sts_endpoint, .. } = aws;
        let way = match credentials {
            config::Credentials::Static { access_key_id, secret_access_key, session_token } => {
                Way::Static { access_key_id, secret_access_key, session_token }
            }
            config::Credentials::Profile { name, credentials_file, config_file } => {
                Way::Profile { name, credentials_file, config_file }
            }
            config::Credentials::WebIdentity { role_arn, session_name, token_file } => {
                let mut config =
                    aws_sdk_sts::config::Builder::from(connection.config()).interceptor(connection.interceptor());
                config.set_endpoint_url(sts_endpoint);
                let config = config.build();
                Way::WebIdentity { role_arn, session_name, token_file, sts: aws_sdk_sts::Client::from_conf(config) }
            }
            nobody @ (config::Credentials::Missing | config::Credentials::Unsupported { .. }) => {
                return Err(identity(nobody.missing().unwrap_or_default()));
            }
        };
        Ok(Arc::new(Self { way, connection, metrics, cache: Mutex::default() }))
    }

    /// The connection's settings with these credentials, for a service's client.
    #[must_use]
    pub fn sdk_config(self: &Arc<Self>) -> SdkConfig {
        let builder = self.connection.config().to_builder();
        let provider = SharedCredentialsProvider::new(Provider(Arc::clone(self)));
        builder.credentials_provider(provider).identity_cache(IdentityCache::no_cache()).build()
    }

    /// Makes sure that there are valid credentials, by renewing them if it is time. One caller renews, the others wait.
    ///
    /// # Errors
    /// If there are none: what is missing, or why they could not be had.
    pub async fn ready(&self) -> Result<(), Problem> {
        self.credentials().await.map(|_| ())
    }

    /// AWS did not accept the credentials: they are renewed at the next call, but not more than once a minute.
    pub async fn reject(&self) {
        self.cache.lock().await.rejected = true;
    }

    /// Who keytide is, without asking anybody.
    pub async fn identity(&self) -> Identity {
        let expires_at = self.cache.lock().await.credentials.as_ref().and_then(expiry_seconds);
        let (kind, name) = match &self.way {
            Way::Static { access_key_id, .. } => ("static", access_key_id),
            Way::Profile { name, .. } => ("profile", name),
            Way::WebIdentity { role_arn, .. } => ("web_identity", role_arn),
        };
        Identity { kind, name: name.clone(), expires_at }
    }

    /// The identity in the words of an error message.
    #[must_use]
    pub fn who(&self) -> String {
        match &self.way {
            Way::Static { access_key_id, .. } => format!("the identity of access key {access_key_id}"),
            Way::Profile { name, .. } => format!("the identity of profile {name}"),
            Way::WebIdentity { role_arn, .. } => format!("role {role_arn}"),
        }
    }

    async fn credentials(&self) -> Result<Credentials, Problem> {
        // Held while renewing: that is what makes everybody else wait for the one answer.
        let mut cache = self.cache.lock().await;
        let now = self.connection.clock().now();
        let paused = cache.renewed.is_some_and(|at| at.elapsed() < PAUSE);
        let valid = |credentials: &&Credentials| credentials.expiry().is_none_or(|expiry| expiry > now);
        if let Some(credentials) = cache.credentials.as_ref().filter(valid) {
            let due = cache.rejected || cache.renew_at.is_some_and(|at| at <= now);
            if !due || paused {
                return Ok(credentials.clone());
            }
        }
        let renewed = self.obtain().await;
        let now = self.connection.clock().now();
        let valid = |credentials: &&Credentials| credentials.expiry().is_none_or(|expiry| expiry > now);
        cache.renewed = Some(Instant::now());
        match renewed {
            Ok(credentials) => {
                self.metrics.credentials_expiry(expiry_seconds(&credentials));
                cache.rejected = false;
                cache.renew_at = credentials.expiry().map(|expiry| renew_at(now, expiry));
                cache.credentials = Some(credentials.clone());
                Ok(credentials)
            }
            // What is valid is used to its end, also if its renewal fails.
            Err(problem) => match cache.credentials.as_ref().filter(valid) {
                Some(credentials) if !cache.rejected => {
                    tracing::warn!(reason = problem.reason.label(), "failed to renew the credentials early: {problem}");
                    Ok(credentials.clone())
                }
                _ => Err(problem),
            },
        }
    }

    async fn obtain(&self) -> Result<Credentials, Problem> {
        match &self.way {
            Way::Static { access_key_id, secret_access_key, session_token } => Ok(Credentials::new(
                access_key_id,
                secret_access_key.expose(),
                session_token.as_ref().map(|token| token.expose().to_owned()),
                None,
                "keytide",
            )),
            Way::Profile { name, credentials_file, config_file } => {
                from_profile(name, credentials_file, config_file).await
            }
            Way::WebIdentity { role_arn, session_name, token_file, sts } => {
                let token = read_token(token_file)?;
                let answer = sts
                    .assume_role_with_web_identity()
                    .role_arn(role_arn)
                    .role_session_name(session_name)
                    .web_identity_token(token.expose())
                    .send()
                    .await
                    .map_err(|error| sts_problem(&Failure::of(&error), role_arn, token_file))?;
                let whole = answer.credentials().filter(|answer| {
                    let parts = [answer.access_key_id(), answer.secret_access_key(), answer.session_token()];
                    parts.iter().all(|part| !part.is_empty())
                });
                let expiry = whole.and_then(|answer| SystemTime::try_from(*answer.expiration()).ok());
                // By the clock as that answer set it.
                let now = self.connection.clock().now();
                let (Some(answer), Some(expiry)) = (whole, expiry.filter(|expiry| *expiry > now)) else {
                    return Err(Problem::new(
                        Reason::Unavailable,
                        format!(
                            "failed to call AssumeRoleWithWebIdentity for {role_arn}: the answer holds no valid credentials"
                        ),
                    ));
                };
                Ok(Credentials::new(
                    answer.access_key_id(),
                    answer.secret_access_key(),
                    Some(answer.session_token().to_owned()),
                    Some(expiry),
                    "keytide",
                ))
            }
        }
    }
}

// === impl Provider ===

impl ProvideCredentials for Provider {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            self.0.credentials().await.map_err(|problem| CredentialsError::provider_error(problem.message))
        })
    }
}

fn renew_at(now: SystemTime, expiry: SystemTime) -> SystemTime {
    let life = expiry.duration_since(now).unwrap_or_default();
    // A tenth of jitter, so that pods that started together do not renew together.
    let early = RENEW_BEFORE.min(life / 5).mul_f64(1.0 + 0.1 * fastrand::f64());
    expiry.checked_sub(early).unwrap_or(now)
}

fn expiry_seconds(credentials: &Credentials) -> Option<i64> {
    let since = credentials.expiry()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok()
}

fn identity(message: String) -> Problem {
    Problem::new(Reason::Identity, message)
}

fn read_token(file: &Path) -> Result<SecretValue, Problem> {
    let unreadable = |what: &str| {
        identity(format!(
            "failed to use the web identity token {}: {what}; expected the token that the EKS webhook projects into the \
             pod (service account annotation eks.amazonaws.com/role-arn)",
            file.display()
        ))
    };
    let metadata = std::fs::metadata(file).map_err(|error| unreadable(&error.kind().to_string()))?;
    if !metadata.is_file() || metadata.len() > LARGEST_TOKEN {
        return Err(unreadable("not a regular file of 64 KiB at most"));
    }
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(&error.kind().to_string()))?;
    let token = SecretValue::new(text.trim().to_owned());
    drop(zeroize::Zeroizing::new(text));
    match token.expose().split('.').filter(|part| !part.is_empty()).count() {
        3 => Ok(token),
        0 => Err(unreadable("the file is empty")),
        _ => Err(unreadable("not a whole JSON web token")),
    }
}

fn sts_problem(failure: &Failure, role_arn: &str, token_file: &Path) -> Problem {
    let Failure { reason, code, request_id } = failure;
    let id = request_id.as_ref().map(|id| format!(", request id {id}")).unwrap_or_default();
    let advice = match reason {
        Reason::Denied => {
            "; the role's trust policy must allow sts:AssumeRoleWithWebIdentity to this cluster's OIDC provider, \
                           for this service account and the audience sts.amazonaws.com"
                .to_owned()
        }
        Reason::Identity => format!("; the token in {} is not valid for it, or has ended", token_file.display()),
        _ => String::new(),
    };
    // A role that does not trust us is a matter of identity: no key's policy is at fault.
    let reason = if *reason == Reason::Denied { Reason::Identity } else { *reason };
    Problem::new(reason, format!("failed to call AssumeRoleWithWebIdentity for {role_arn} ({code}{id}){advice}"))
}

async fn from_profile(name: &str, credentials_file: &Path, config_file: &Path) -> Result<Credentials, Problem> {
    let wrong = |what: &str| {
        identity(format!(
            "failed to use profile {name} of {} and {}: {what}",
            credentials_file.display(),
            config_file.display()
        ))
    };
    let mut files = EnvConfigFiles::builder();
    for (kind, path) in [(EnvConfigFileKind::Credentials, credentials_file), (EnvConfigFileKind::Config, config_file)] {
        match std::fs::read_to_string(path) {
            Ok(text) => files = files.with_contents(kind, text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(wrong(&format!("{}: {}", path.display(), error.kind()))),
        }
    }
    let malformed = || wrong("the files are not in the format of AWS's shared configuration");
    let source =
        source::load(&Env::from_slice(&[]), &Fs::from_slice(&[]), &files.build()).await.map_err(|_| malformed())?;
    let set = EnvConfigSections::parse(source).map_err(|_| malformed())?;
    let profile = set.get_profile(name).ok_or_else(|| wrong("there is no such profile"))?;
    let unsupported =
        ["credential_process", "sso_session", "sso_start_url", "role_arn", "credential_source", "login_session"];
    if let Some(setting) = unsupported.iter().find(|setting| profile.get(setting).is_some()) {
        return Err(wrong(&format!(
            "{setting} is not supported; expected aws_access_key_id and aws_secret_access_key"
        )));
    }
    let text = |profile: &Profile, setting| profile.get(setting).filter(|text| !text.is_empty()).map(str::to_owned);
    match (text(profile, "aws_access_key_id"), text(profile, "aws_secret_access_key")) {
        (Some(id), Some(secret)) => {
            Ok(Credentials::new(id, secret, text(profile, "aws_session_token"), None, "keytide"))
        }
        (None, _) => Err(wrong("it has no aws_access_key_id")),
        (_, None) => Err(wrong("it has no aws_secret_access_key")),
    }
}
