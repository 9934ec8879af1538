//! STS: who am I, and sessions of roles.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value as Json;

use crate::access::{Access, Principal, Role, Session, account_of, denial, iso, matches};
use crate::answer::{Answer, Refusal, Service, escape};
use crate::form::{Form, required};
use crate::session_tags::SessionTags;

/// What a web identity token says about itself. Whether it is true, an `OidcProvider` knows.
#[derive(Default, Deserialize)]
pub(crate) struct Claims {
    #[serde(default)]
    sub: String,
    #[serde(default)]
    aud: Json,
    #[serde(default)]
    pub(crate) iss: String,
    pub(crate) exp: Option<i64>,
}

const HOUR: u32 = 3600;

// === impl Claims ===

impl Claims {
    /// One, or a list.
    pub(crate) fn audiences(&self) -> impl Iterator<Item = &str> {
        let list = self.aud.as_array().into_iter().flatten();
        self.aud.as_str().into_iter().chain(list.filter_map(Json::as_str))
    }
}

/// Whether a call needs no signature.
pub(crate) fn is_unsigned(action: &str) -> bool {
    action == "AssumeRoleWithWebIdentity"
}

/// Answers a call; `caller` is known unless the call is unsigned.
pub(crate) fn answer(
    access: &mut Access,
    action: &str,
    form: &Form,
    caller: Option<&Principal>,
    now_ms: i64,
) -> Result<Answer, Refusal> {
    if form.get("Version").map(String::as_str) != Some("2011-06-15") {
        return Err(Refusal::new("InvalidAction", format!("Could not find operation {action} for this version")));
    }
    let result = match (action, caller) {
        ("GetCallerIdentity", Some(caller)) => identity(caller),
        ("AssumeRole", Some(caller)) => assume_role(access, form, caller, now_ms)?,
        ("AssumeRoleWithWebIdentity", _) => assume_role_with_web_identity(access, form, now_ms)?,
        _ => return Err(Refusal::new("InvalidAction", format!("Could not find operation {action}"))),
    };
    Ok(Answer::xml(Service::Sts, action, &result))
}

fn identity(caller: &Principal) -> String {
    let (arn, user_id, account) = (escape(&caller.arn), escape(&caller.user_id), escape(caller.account()));
    format!("<Arn>{arn}</Arn><UserId>{user_id}</UserId><Account>{account}</Account>")
}

fn assume_role(access: &mut Access, form: &Form, caller: &Principal, now_ms: i64) -> Result<String, Refusal> {
    let role_arn = required(form, "RoleArn", "roleArn")?;
    let session_name = session_name(form)?;
    let duration = duration(form, access.role(role_arn), 43_200)?;
    let tags = SessionTags::read(form)?;
    if form.contains_key("Policy") || form.contains_key("PolicyArns.member.1.arn") {
        return Err(Refusal::new("ValidationError", "this emulator has no session policies"));
    }
    let refused = |action: &str| Refusal::forbidden("AccessDenied", denial(caller, action, role_arn));
    let denied = || refused("sts:AssumeRole");
    let role = access.role(role_arn).ok_or_else(denied)?;
    let external_id = form.get("ExternalId");
    if role.external_id.is_some() && role.external_id.as_ref() != external_id {
        return Err(denied());
    }
    if !may(access, "sts:AssumeRole", role, role_arn, caller) {
        return Err(denied());
    }
    let tagged = !tags.is_empty() || !caller.transitive.is_empty();
    if tagged && (role.denies_tags || !may(access, "sts:TagSession", role, role_arn, caller)) {
        return Err(refused("sts:TagSession"));
    }
    let transitive = tags.inherit(&caller.transitive)?;
    if caller.role.is_some() && duration > HOUR {
        return Err(Refusal::new(
            "ValidationError",
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining",
        ));
    }
    let session = open(access, role_arn, session_name, duration, transitive, now_ms).ok_or_else(denied)?;
    Ok(session_xml(&session))
}

/// Whether the role trusts the caller with this. One that names the caller's account leaves the choice to the policies of
/// the caller; from another account they have to allow it in any case.
fn may(access: &Access, action: &str, role: &Role, role_arn: &str, caller: &Principal) -> bool {
    let root = format!("arn:aws:iam::{}:root", caller.account());
    let is_caller = |trusted: &String| matches(trusted, &caller.arn) || caller.role.as_ref() == Some(trusted);
    let named = role.trusted.iter().any(is_caller);
    let at_home = account_of(role_arn) == caller.account();
    named && at_home || (named || role.trusted.contains(&root)) && access.is_allowed(caller, action, role_arn)
}

fn assume_role_with_web_identity(access: &mut Access, form: &Form, now_ms: i64) -> Result<String, Refusal> {
    let role_arn = required(form, "RoleArn", "roleArn")?;
    let session_name = session_name(form)?;
    let token = required(form, "WebIdentityToken", "webIdentityToken")?;
    let duration = duration(form, access.role(role_arn), 43_200)?;
    let denied = || Refusal::forbidden("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity");
    let invalid = || Refusal::new("InvalidIdentityToken", "The ID Token provided is not a valid JWT.");
    let trust = access.role(role_arn).and_then(|role| role.web_identity.as_ref());
    let known = trust.is_some_and(|trust| trust.tokens.iter().any(|valid| valid == token));
    let claims = match claims(token) {
        Some(claims) => claims,
        None if known => Claims::default(),
        None => return Err(invalid()),
    };
    if let Some(end) = claims.exp
        && end.saturating_mul(1000) <= now_ms
    {
        let (now, end) = (iso(now_ms), iso(end.saturating_mul(1000)));
        let message = format!("Token expired: current date/time {now} must be before the expiration date/time {end}");
        return Err(Refusal::new("ExpiredTokenException", message));
    }
    let trust = trust.ok_or_else(denied)?;
    if !known && !trust.tokens.is_empty() {
        let message = "Couldn't retrieve verification key from your identity provider";
        return Err(Refusal::new("InvalidIdentityToken", message));
    }
    if let Some(issuer) = &trust.provider {
        let provider = access.oidc_providers.iter().find(|provider| provider.issuer == *issuer);
        provider.ok_or_else(denied)?.verify(token, &claims)?;
    }
    if trust.subject.as_ref().is_some_and(|subject| *subject != claims.sub) {
        return Err(denied());
    }
    let session = open(access, role_arn, session_name, duration, Vec::new(), now_ms).ok_or_else(denied)?;
    let audience = claims.audiences().next().unwrap_or_default();
    let Claims { sub, iss, .. } = &claims;
    Ok(format!(
        "<SubjectFromWebIdentityToken>{}</SubjectFromWebIdentityToken><Audience>{}</Audience>\
         <Provider>{}</Provider>{}",
        escape(sub),
        escape(audience),
        escape(iss),
        session_xml(&session)
    ))
}

fn open(
    access: &mut Access,
    role_arn: &str,
    name: &str,
    seconds: u32,
    transitive: Vec<String>,
    now_ms: i64,
) -> Option<Session> {
    access.open_session(role_arn, name, Duration::from_secs(seconds.into()), transitive, now_ms)
}

fn session_xml(session: &Session) -> String {
    let Session { access_key_id, secret_access_key, token, expires_ms, arn, user_id } = session;
    format!(
        "<AssumedRoleUser><AssumedRoleId>{}</AssumedRoleId><Arn>{}</Arn></AssumedRoleUser>\
         <Credentials><AccessKeyId>{access_key_id}</AccessKeyId>\
         <SecretAccessKey>{secret_access_key}</SecretAccessKey><SessionToken>{token}</SessionToken>\
         <Expiration>{}</Expiration></Credentials>",
        escape(user_id),
        escape(arn),
        iso(*expires_ms)
    )
}

fn session_name(form: &Form) -> Result<&str, Refusal> {
    let name = required(form, "RoleSessionName", "roleSessionName")?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    if (2..=64).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(name);
    }
    Err(Refusal::new(
        "ValidationError",
        "1 validation error detected: Value at 'roleSessionName' failed to satisfy constraint: \
         Member must satisfy regular expression pattern: [\\w+=,.@-]* and have 2 to 64 characters",
    ))
}

fn duration(form: &Form, role: Option<&Role>, most: u32) -> Result<u32, Refusal> {
    let Some(asked) = form.get("DurationSeconds") else { return Ok(HOUR) };
    let seconds = asked.parse().ok().filter(|seconds| (900..=most).contains(seconds)).ok_or_else(|| {
        let message = format!(
            "1 validation error detected: Value at 'durationSeconds' failed to satisfy constraint: \
             Member must have value between 900 and {most}"
        );
        Refusal::new("ValidationError", message)
    })?;
    let longest = role.and_then(|role| role.max_session_seconds).unwrap_or(HOUR);
    if seconds > longest {
        let message = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
        return Err(Refusal::new("ValidationError", message));
    }
    Ok(seconds)
}

pub(crate) fn claims(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (header, payload, signature) = (parts.next()?, parts.next()?, parts.next()?);
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
    let header: Json = serde_json::from_slice(&decode(header)?).ok()?;
    let whole = parts.next().is_none() && header.is_object() && decode(signature).is_some();
    serde_json::from_slice(&decode(payload)?).ok().filter(|_| whole)
}
