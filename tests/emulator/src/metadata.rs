//! The metadata service of an instance, version 2: the role of the node, for whoever can reach it.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use serde_json::json;

use crate::access::{Access, iso};
use crate::answer::{Answer, Refusal};
use crate::{identifiers, sigv4};

/// What an instance knows of itself.
#[derive(Default)]
pub(crate) struct Metadata {
    /// The ARN of its role.
    pub(crate) role: Option<String>,
    /// The tokens that were given out, and their ends.
    tokens: BTreeMap<String, i64>,
}

const TOKEN: &str = "MetadataToken";
const ROLE: &str = "MetadataRole";
const CREDENTIALS: &str = "MetadataCredentials";
/// What is not here.
const OTHER: &str = "MetadataOther";

const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const LONGEST_TTL_SECONDS: i64 = 21_600;
const LIFETIME: Duration = Duration::from_hours(6);
const INSTANCE: &str = "i-0123456789abcdef0";
const CREDENTIALS_PATH: &str = "meta-data/iam/security-credentials/";

// === impl Metadata ===

impl Metadata {
    pub(crate) fn answer(
        &mut self,
        access: &mut Access,
        action: &str,
        parts: &Parts,
        now_ms: i64,
    ) -> Result<Answer, Refusal> {
        if action == TOKEN {
            return self.token(parts, now_ms);
        }
        let token = sigv4::text(&parts.headers, "x-aws-ec2-metadata-token");
        if self.tokens.get(&token).is_none_or(|end| *end <= now_ms) {
            return Err(refusal(StatusCode::UNAUTHORIZED));
        }
        let absent = || refusal(StatusCode::NOT_FOUND);
        let arn = self.role.as_ref().ok_or_else(absent)?;
        let name = access.role(arn).ok_or_else(absent)?.name.clone();
        match action {
            ROLE => Ok(Answer::text(name)),
            CREDENTIALS if parts.uri.path().rsplit('/').next() == Some(&name) => {
                let session = access.open_session(arn, INSTANCE, LIFETIME, Vec::new(), now_ms).ok_or_else(absent)?;
                let credentials = json!({
                    "Code": "Success",
                    "LastUpdated": iso(now_ms),
                    "Type": "AWS-HMAC",
                    "AccessKeyId": session.access_key_id,
                    "SecretAccessKey": session.secret_access_key,
                    "Token": session.token,
                    "Expiration": iso(session.expires_ms),
                });
                Ok(Answer::text(format!("{credentials:#}")))
            }
            _ => Err(absent()),
        }
    }

    fn token(&mut self, parts: &Parts, now_ms: i64) -> Result<Answer, Refusal> {
        if parts.headers.contains_key("x-forwarded-for") {
            return Err(refusal(StatusCode::FORBIDDEN));
        }
        let ttl = sigv4::text(&parts.headers, TTL_HEADER).parse().ok();
        let ttl = ttl.filter(|seconds| (1..=LONGEST_TTL_SECONDS).contains(seconds));
        let ttl = ttl.ok_or_else(|| refusal(StatusCode::BAD_REQUEST))?;
        let token = identifiers::metadata_token();
        self.tokens.retain(|_, end| *end > now_ms);
        self.tokens.insert(token.clone(), now_ms.saturating_add(ttl * 1000));
        Ok(Answer { header: Some((TTL_HEADER, ttl.to_string())), ..Answer::text(token) })
    }
}

pub(crate) fn action(method: &Method, path: &str) -> Option<&'static str> {
    let path = path.strip_prefix("/latest/")?;
    Some(match (method.as_str(), path) {
        ("PUT", "api/token") => TOKEN,
        ("GET", CREDENTIALS_PATH) => ROLE,
        ("GET", path) if path.starts_with(CREDENTIALS_PATH) => CREDENTIALS,
        _ => OTHER,
    })
}

fn refusal(status: StatusCode) -> Refusal {
    let reason = status.canonical_reason().unwrap_or_default();
    Refusal { status, ..Refusal::new(reason.replace(' ', ""), reason) }
}
