//! The three calls to STS. No session policy is ever sent: it would be a ceiling on what the role may do.

use aws_credential_types::Credentials;
use aws_sdk_sts::{
    Client,
    config::{Config, IdentityCache, Region},
    types::{AssumedRoleUser, Credentials as Answer, Tag},
};

use super::{
    session::{Proof, Session},
    token,
};
use crate::{
    aws::{
        client::{Clock, Connection},
        outcome::Failure,
    },
    config::{Endpoints, Token},
    domain::{
        identity::{Caller, Role},
        snapshot::{Problem, Reason},
    },
};

/// The gate to STS.
#[derive(Debug, Clone)]
pub(super) struct Sts {
    client: Client,
    clock: Clock,
}

/// A call to STS that brought no session.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The problem in words.
    pub(super) problem: Problem,
    /// True if the credentials that asked are no longer good.
    pub(super) credentials_ended: bool,
}

// === impl Sts ===

impl Sts {
    /// A client for this endpoint, or AWS's of the region.
    pub(super) fn new(connection: &Connection, endpoints: &Endpoints) -> Self {
        let mut config = aws_sdk_sts::config::Builder::from(connection.config()).interceptor(connection.interceptor());
        config.set_endpoint_url(endpoints.sts.clone());
        if let Some(region) = &endpoints.sts_region {
            config.set_region(Some(Region::new(region.clone())));
        }
        let config = config.identity_cache(IdentityCache::no_cache()).build();
        Self { client: Client::from_conf(config), clock: connection.clock().clone() }
    }

    /// Assumes a role with these credentials; `who` names them, `tagged` says that the session carries tags.
    pub(super) async fn assume_role(
        &self,
        role: &Role,
        tagged: bool,
        with: &Credentials,
        who: &str,
    ) -> Result<Session, Refusal> {
        let Role { arn, session_name, external_id, session_tags, transitive_tag_keys, duration } = role;
        let tag = |(key, value): &(String, String)| Tag::builder().key(key).value(value).build().ok();
        let tags: Vec<Tag> = session_tags.iter().filter_map(tag).collect();
        let answer = self
            .client
            .assume_role()
            .role_arn(arn.as_str())
            .role_session_name(session_name)
            .set_external_id(external_id.clone())
            .set_tags(Some(tags).filter(|tags| !tags.is_empty()))
            .set_transitive_tag_keys(Some(transitive_tag_keys.clone()).filter(|keys| !keys.is_empty()))
            .set_duration_seconds(duration.and_then(|duration| i32::try_from(duration.as_secs()).ok()))
            .customize()
            .config_override(Config::builder().credentials_provider(with.clone()))
            .send()
            .await
            .map_err(|error| {
                let failure = Failure::of(&error);
                let advice = match failure.reason {
                    Reason::Denied => {
                        let id = match external_id {
                            Some(_) => "; is the external id the one that its trust policy asks for?",
                            None => "; its trust policy may ask for an external id, and none is configured",
                        };
                        let tags = if tagged { " and sts:TagSession" } else { "" };
                        format!(
                            "; its trust policy must allow sts:AssumeRole{tags} to {who}, whose own policy must allow it \
                             too where that is somebody of another account or the trust policy names an account{id}"
                        )
                    }
                    Reason::Identity => format!("; AWS does not accept the credentials of {who}"),
                    Reason::Clock => wrong_signature(who),
                    Reason::Refused => {
                        "; AWS refused the request: is the session's duration within the role's maximum, does no tag of \
                         session_tags come from an earlier session, are they few enough, and is STS active in this region?"
                            .to_owned()
                    }
                    _ => String::new(),
                };
                Refusal {
                    credentials_ended: is_of_credentials(failure.reason),
                    problem: problem("AssumeRole", &format!("role {arn}"), &failure, &advice),
                }
            })?;
        self.session(answer.credentials, answer.assumed_role_user).ok_or_else(|| incomplete("AssumeRole", role))
    }

    /// Exchanges a web-identity token for a session of the role. With it comes the end of the token, as far as it is known.
    pub(super) async fn assume_role_with_web_identity(
        &self,
        role: &Role,
        token: &Token,
    ) -> Result<(Session, Option<i64>), Refusal> {
        const ACTION: &str = "AssumeRoleWithWebIdentity";
        let Role { arn, session_name, duration, external_id: _, session_tags: _, transitive_tag_keys: _ } = role;
        let place = token::place(token);
        let (token, claims) = token::read_web_identity(token).map_err(|what| Refusal {
            credentials_ended: false,
            problem: Problem::new(
                Reason::Identity,
                format!(
                    "failed to use the web identity token {place}: {what}; expected the token that the kubelet projects \
                     into the pod (on EKS: service account annotation eks.amazonaws.com/role-arn, or a projected volume \
                     of your own)"
                ),
            ),
        })?;
        let answer = self
            .client
            .assume_role_with_web_identity()
            .role_arn(arn.as_str())
            .role_session_name(session_name)
            .web_identity_token(token.expose())
            .set_duration_seconds(duration.and_then(|duration| i32::try_from(duration.as_secs()).ok()))
            .send()
            .await
            .map_err(|error| {
                let failure = Failure::of(&error);
                let advice = match failure.reason {
                    Reason::Denied => {
                        let account = claims.service_account().map(|name| format!(" {name}")).unwrap_or_default();
                        format!(
                            "; the role's trust policy must allow sts:AssumeRoleWithWebIdentity to this cluster's OIDC \
                             provider, for this service account{account} and the audience sts.amazonaws.com (keytide \
                             policy prints one)"
                        )
                    }
                    Reason::Refused => "; is the session's duration within the role's maximum, and STS active in this region?"
                        .to_owned(),
                    Reason::Identity => match claims.exp.filter(|end| *end <= seconds(&self.clock)) {
                        Some(end) => format!("; the token in {place} ended at {}: the kubelet writes a new one", at(end)),
                        None => format!(
                            "; the token in {place} is not valid for it: is it of this cluster, and is the cluster's OIDC \
                             provider known in the role's account?"
                        ),
                    },
                    _ => String::new(),
                };
                Refusal {
                    credentials_ended: false,
                    problem: problem(ACTION, &format!("role {arn}"), &failure, &advice),
                }
            })?;
        let session = self.session(answer.credentials, answer.assumed_role_user);
        session.map(|session| (session, claims.exp)).ok_or_else(|| incomplete(ACTION, role))
    }

    /// Whose credentials these are, by `GetCallerIdentity`, which needs no permission.
    pub(super) async fn caller(&self, credentials: &Credentials, who: &str) -> Result<Caller, Refusal> {
        const ACTION: &str = "GetCallerIdentity";
        let answer = self
            .client
            .get_caller_identity()
            .customize()
            .config_override(Config::builder().credentials_provider(credentials.clone()))
            .send()
            .await
            .map_err(|error| {
                let failure = Failure::of(&error);
                let advice = match failure.reason {
                    Reason::Identity => format!("; AWS does not accept the credentials of {who}"),
                    Reason::Clock => wrong_signature(who),
                    _ => String::new(),
                };
                Refusal {
                    credentials_ended: is_of_credentials(failure.reason),
                    problem: problem(ACTION, who, &failure, &advice),
                }
            })?;
        answer.arn().and_then(Caller::parse).ok_or_else(|| Refusal {
            credentials_ended: false,
            problem: Problem::new(
                Reason::Unavailable,
                format!("failed to call {ACTION} for {who}: the answer does not say who that is"),
            ),
        })
    }

    /// None unless everything is there, and valid by the clock as that answer set it.
    fn session(&self, answer: Option<Answer>, user: Option<AssumedRoleUser>) -> Option<Session> {
        let answer = answer?;
        let expiry = std::time::SystemTime::try_from(*answer.expiration()).ok()?;
        let (id, secret) = (answer.access_key_id(), answer.secret_access_key());
        let session = Session::temporary(id, secret, answer.session_token(), expiry)?;
        let proof = user.and_then(|user| Caller::parse(user.arn())).map(Proof::Told);
        Some(Session { proof, ..session }).filter(|session| session.is_valid(self.clock.now()))
    }
}

// === impl Refusal ===

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { problem, credentials_ended: false }
    }
}

fn wrong_signature(who: &str) -> String {
    format!(
        "; the clocks of this machine and of AWS differ too much, which the next call allows for; or the secret access key of \
         {who} is wrong"
    )
}

/// A wrong signature may be that of a wrong key.
fn is_of_credentials(reason: Reason) -> bool {
    matches!(reason, Reason::Identity | Reason::Clock)
}

/// Who nobody trusts is a matter of identity: no key's policy is at fault.
fn problem(action: &str, subject: &str, failure: &Failure, advice: &str) -> Problem {
    let reason = match failure.reason {
        Reason::Denied | Reason::Refused => Reason::Identity,
        other => other,
    };
    Problem::new(reason, format!("failed to call {action} for {subject} ({}){advice}", failure.facts()))
}

fn incomplete(action: &str, role: &Role) -> Refusal {
    let message = format!("failed to call {action} for role {}: the answer holds no valid credentials", role.arn);
    Problem::new(Reason::Unavailable, message).into()
}

fn seconds(clock: &Clock) -> i64 {
    let since = clock.now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn at(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| "an unknown time".to_owned(), |at| at.to_string())
}
