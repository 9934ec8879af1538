//! Credentials from somebody nearby: the agent of EKS Pod Identity or ECS, and the node's metadata service.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use serde::Deserialize;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{session::Session, token};
use crate::{
    config::Container,
    domain::{
        snapshot::{Problem, Reason},
        value::SecretValue,
    },
    http_client::{AgentAnswer, AgentError, Method, ask_agent},
};

/// The metadata service is on this node: what it does not answer soon, it does not answer.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a session with the metadata service lasts, in seconds; it is used at once.
const METADATA_SESSION: &str = "60";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

/// What both answer (AWS SDKs and tools, container credential provider; EC2, instance metadata).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    access_key_id: Zeroizing<String>,
    secret_access_key: Zeroizing<String>,
    token: Zeroizing<String>,
    expiration: String,
}

/// Asks the agent of EKS Pod Identity, or of ECS.
pub(super) async fn container(agent: &Container, limit: Duration) -> Result<Session, Problem> {
    let Container { address, path, token } = agent;
    let failed = |reason, what: &str, advice: &str| {
        Problem::new(reason, format!("failed to get credentials from the container agent at {address}: {what}{advice}"))
    };
    let unusable = |place: &str, what: &str| {
        let advice = "; expected the token that the EKS Pod Identity webhook projects into the pod";
        failed(Reason::Identity, &format!("the token {place}: {what}"), advice)
    };
    let place = token.as_ref().map(token::place).unwrap_or_default();
    let token = token.as_ref().map(token::read).transpose().map_err(|what| unusable(&place, &what))?;
    let authorization = token.as_ref().map(|token| ("authorization", token.expose()));
    let headers: Vec<_> = authorization.into_iter().collect();
    let answer = timeout(limit, ask_agent(*address, Method::GET, path, &headers)).await;
    match answer {
        Err(_) => Err(failed(Reason::Unavailable, "no answer in time", "")),
        Ok(Err(AgentError::Header)) => Err(unusable(&place, "it holds what cannot be sent, such as a second line")),
        Ok(Err(error)) => Err(failed(
            Reason::Unavailable,
            &error.to_string(),
            "; does the add-on eks-pod-identity-agent run on this node?",
        )),
        Ok(Ok(AgentAnswer { status: 200, body })) => {
            session(&body).ok_or_else(|| failed(Reason::Unavailable, "the answer holds no valid credentials", ""))
        }
        Ok(Ok(AgentAnswer { status, .. })) if status >= 500 || status == 429 => {
            Err(failed(Reason::Unavailable, &format!("HTTP status {status}"), ""))
        }
        Ok(Ok(AgentAnswer { status, .. })) => {
            let advice = if headers.is_empty() {
                "; no token was sent: AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE is not set"
            } else {
                "; the service account needs a Pod Identity association, made before the pod, and its role must trust \
                 pods.eks.amazonaws.com for sts:AssumeRole and sts:TagSession"
            };
            Err(failed(Reason::Identity, &format!("HTTP status {status}"), advice))
        }
    }
}

/// Asks the node's metadata service, version 2 only.
pub(super) async fn instance(address: SocketAddr) -> Result<Session, Problem> {
    let limited = timeout(METADATA_TIMEOUT, async {
        let begin = ("x-aws-ec2-metadata-token-ttl-seconds", METADATA_SESSION);
        let token = SecretValue::new(ask(address, Method::PUT, "/latest/api/token", begin).await?);
        let header = ("x-aws-ec2-metadata-token", token.expose());
        let roles = ask(address, Method::GET, ROLES, header).await?;
        let role = roles.lines().next().unwrap_or_default().trim();
        if role.is_empty() || !role.bytes().all(|b| b.is_ascii_alphanumeric() || b"+=,.@-_".contains(&b)) {
            let message = format!("failed to get the node's credentials from {address}: the node has no role");
            return Err(Problem::new(Reason::Identity, message));
        }
        let answer = Zeroizing::new(ask(address, Method::GET, &format!("{ROLES}{role}"), header).await?);
        session(answer.as_bytes()).ok_or_else(|| {
            let message =
                format!("failed to get the node's credentials from {address}: the answer holds none that are valid");
            Problem::new(Reason::Unavailable, message)
        })
    });
    limited.await.unwrap_or_else(|_| {
        let message = format!(
            "failed to get the node's credentials from {address}: no answer in time; a pod reaches the metadata service \
             only where the node's hop limit is 2 or more"
        );
        Err(Problem::new(Reason::Unavailable, message))
    })
}

async fn ask(
    address: SocketAddr,
    method: Method,
    target: &str,
    header: (&'static str, &str),
) -> Result<String, Problem> {
    let failed = |reason, what: &str| {
        Problem::new(reason, format!("failed to get the node's credentials from {address}{target}: {what}"))
    };
    match ask_agent(address, method, target, &[header]).await {
        Err(error) => Err(failed(Reason::Unavailable, &error.to_string())),
        Ok(AgentAnswer { status: 200, body }) => {
            String::from_utf8(body.to_vec()).map_err(|_| failed(Reason::Unavailable, "the answer is not text"))
        }
        Ok(AgentAnswer { status: 404, .. }) => Err(failed(Reason::Identity, "the node has no role")),
        Ok(AgentAnswer { status, .. }) => Err(failed(Reason::Unavailable, &format!("HTTP status {status}"))),
    }
}

fn session(body: &[u8]) -> Option<Session> {
    let Answer { access_key_id, secret_access_key, token, expiration } = serde_json::from_slice(body).ok()?;
    let expiration: jiff::Timestamp = expiration.parse().ok()?;
    let expiry =
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(expiration.as_second()).ok()?))?;
    Session::temporary(&access_key_id, &secret_access_key, &token, expiry)
}
