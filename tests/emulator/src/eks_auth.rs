//! The EKS Pod Identity agent of a node: credentials for the pod that shows its token.

use std::fmt;
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use crate::access::{Access, account_of, iso};
use crate::answer::{Answer, Refusal};
use crate::{identifiers, sts};

/// The association of this emulator's pod with a role.
///
/// As on EKS its sessions carry six transitive tags (`kubernetes-namespace` and so on), so that whoever assumes another
/// role with them needs `sts:TagSession`.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodIdentity {
    /// The ARN of the role, which has to exist.
    pub role: String,
    /// The valid tokens. If empty: every one that is not expired, whoever signed it.
    #[serde(default)]
    pub tokens: Vec<String>,
    /// The name of its sessions; one like EKS's if absent.
    #[serde(default)]
    pub session_name: Option<String>,
}

const LIFETIME: Duration = Duration::from_hours(6);
/// What the agent calls a request that it does not pass on.
pub(crate) const VALIDATION: &str = "RequestValidationError";
const TAGS: [&str; 6] = [
    "eks-cluster-arn",
    "eks-cluster-name",
    "kubernetes-namespace",
    "kubernetes-service-account",
    "kubernetes-pod-name",
    "kubernetes-pod-uid",
];

// === impl PodIdentity ===

impl PodIdentity {
    /// An association with this role, for every token.
    #[must_use]
    pub fn new(role_arn: &str) -> Self {
        Self { role: role_arn.to_owned(), ..Self::default() }
    }

    /// Accepts this token, and none that is not named.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.tokens.push(token.to_owned());
        self
    }

    /// Names its sessions.
    #[must_use]
    pub fn session_name(mut self, name: &str) -> Self {
        self.session_name = Some(name.to_owned());
        self
    }
}

impl fmt::Debug for PodIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, tokens, session_name } = self;
        f.debug_struct("PodIdentity")
            .field("role", role)
            .field("tokens", &tokens.len())
            .field("session_name", session_name)
            .finish()
    }
}

pub(crate) fn action(method: &Method, path: &str) -> Option<&'static str> {
    (method == Method::GET && path == "/v1/credentials").then_some("AssumeRoleForPodIdentity")
}

pub(crate) fn answer(
    access: &mut Access,
    association: Option<&PodIdentity>,
    token: &str,
    now_ms: i64,
) -> Result<Answer, Refusal> {
    if token.is_empty() {
        return Err(Refusal::new(VALIDATION, "Service account token cannot be empty"));
    }
    let end = sts::claims(token).and_then(|claims| claims.exp);
    if end.is_some_and(|end| end.saturating_mul(1000) <= now_ms) {
        let message = "Service account token failed basic claim validations: \
                       token has invalid claims: token is expired";
        return Err(Refusal::new(VALIDATION, message));
    }
    let absent = || Refusal {
        status: StatusCode::NOT_FOUND,
        ..Refusal::new("ResourceNotFoundException", "No association was found for the service account.")
    };
    let PodIdentity { role, tokens, session_name } = association.ok_or_else(absent)?;
    if !tokens.is_empty() && !tokens.iter().any(|valid| valid == token) {
        return Err(Refusal::new("InvalidTokenException", "The token included in the request could not be verified."));
    }
    let name = session_name.clone().unwrap_or_else(|| format!("eks-emulator-pod-{}", identifiers::uuid()));
    let transitive = TAGS.map(str::to_owned).to_vec();
    let session = access.open_session(role, &name, LIFETIME, transitive, now_ms).ok_or_else(absent)?;
    Ok(Answer::document(&json!({
        "AccessKeyId": session.access_key_id,
        "SecretAccessKey": session.secret_access_key,
        "Token": session.token,
        "AccountId": account_of(role),
        "Expiration": iso(session.expires_ms),
    })))
}
