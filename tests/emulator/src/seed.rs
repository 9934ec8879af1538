//! What an emulator begins with, from a JSON file or from code.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::access::{Role, User};
use crate::eks_auth::PodIdentity;
use crate::oidc::OidcProvider;
use crate::secrets::Value;

/// The state at the start. As JSON each field is optional; see `examples/seed.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Seed {
    /// The region of the secrets and of [`Emulator::put`](crate::Emulator::put).
    pub region: String,
    /// The id of the home account, twelve digits.
    pub account: String,
    /// Secrets by name. In JSON a text, an object that is stored as the text it is written in, or
    /// `{"$binary": "BASE64"}`.
    #[serde(deserialize_with = "secrets")]
    pub secrets: BTreeMap<String, Value>,
    /// The users; by default one, [`User::default`], who may do everything.
    pub users: Vec<User>,
    /// The roles.
    pub roles: Vec<Role>,
    /// The OIDC providers, for roles that name one.
    pub oidc_providers: Vec<OidcProvider>,
    /// What every session lasts, in seconds, whatever was asked for.
    pub session_lifetime_seconds: Option<u64>,
    /// The role that the Pod Identity agent gives out; none if absent.
    pub pod_identity: Option<PodIdentity>,
    /// The ARN of the role that the metadata service gives out; none if absent.
    pub instance_role: Option<String>,
}

/// Why a seed file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeedError {
    /// The file cannot be read.
    #[error("failed to read the seed file")]
    Read(#[source] io::Error),
    /// The file is no seed.
    #[error("failed to parse the seed file")]
    Parse(#[source] serde_json::Error),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Binary {
    #[serde(rename = "$binary")]
    base64: String,
}

// === impl Seed ===

impl Seed {
    /// Reads a JSON file.
    ///
    /// # Errors
    ///
    /// If the file cannot be read or is no seed.
    pub fn read(path: &Path) -> Result<Self, SeedError> {
        let text = fs::read_to_string(path).map_err(SeedError::Read)?;
        Self::parse(&text)
    }

    /// Reads JSON text.
    ///
    /// # Errors
    ///
    /// If the text is no seed.
    pub fn parse(text: &str) -> Result<Self, SeedError> {
        serde_json::from_str(text).map_err(SeedError::Parse)
    }

    /// Also this secret.
    #[must_use]
    pub fn secret(mut self, name: &str, value: &str) -> Self {
        self.secrets.insert(name.to_owned(), value.into());
        self
    }

    /// Also this role.
    #[must_use]
    pub fn role(mut self, role: Role) -> Self {
        self.roles.push(role);
        self
    }

    /// Also this provider.
    #[must_use]
    pub fn oidc_provider(mut self, provider: OidcProvider) -> Self {
        self.oidc_providers.push(provider);
        self
    }

    /// Also this user.
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.users.push(user);
        self
    }

    /// Every session lasts this long, whatever was asked for. Whole seconds, since answers hold no more.
    #[must_use]
    pub fn session_lifetime(mut self, lifetime: Duration) -> Self {
        self.session_lifetime_seconds = Some(lifetime.as_secs());
        self
    }
}

impl Default for Seed {
    fn default() -> Self {
        Self {
            region: "us-east-1".to_owned(),
            account: "123456789012".to_owned(),
            secrets: BTreeMap::new(),
            users: vec![User::default()],
            roles: Vec::new(),
            oidc_providers: Vec::new(),
            session_lifetime_seconds: None,
            pod_identity: None,
            instance_role: None,
        }
    }
}

fn secrets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Value>, D::Error> {
    let raw = BTreeMap::<String, Box<RawValue>>::deserialize(deserializer)?;
    let parse = |(name, raw): (String, Box<RawValue>)| {
        let json = raw.get();
        let value = if json.starts_with('"') {
            Value::Text(serde_json::from_str(json).map_err(D::Error::custom)?)
        } else if let Ok(Binary { base64 }) = serde_json::from_str(json) {
            let bytes = STANDARD.decode(base64);
            Value::Binary(bytes.map_err(|_| D::Error::custom(format!("secret {name}: $binary is not base64")))?)
        } else {
            Value::Text(json.to_owned())
        };
        Ok((name, value))
    };
    raw.into_iter().map(parse).collect()
}
