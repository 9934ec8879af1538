//! Who may call and what they may do: users, roles, sessions, and the proof of a caller's identity.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hyper::http::request::Parts;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::Deserialize;

use crate::answer::{Refusal, Service};
use crate::identifiers;
use crate::oidc::OidcProvider;
use crate::sigv4::{self, Claim};

/// Allows some actions on some resources. There are no denials: what no statement allows is refused.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Such as `secretsmanager:GetSecretValue`; `*` and `?` stand for any characters and any one.
    pub actions: Vec<String>,
    /// ARNs, with the same two wildcards.
    pub resources: Vec<String>,
}

/// An IAM user with one access key.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The name in its ARN.
    pub name: String,
    /// The account in its ARN, if it is not the emulator's.
    #[serde(default)]
    pub account: Option<String>,
    /// `AKIA…`.
    pub access_key_id: String,
    /// What its requests are signed with.
    pub secret_access_key: String,
    /// What it may do; nothing if empty.
    #[serde(default)]
    pub statements: Vec<Statement>,
}

/// An IAM role.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// The name in its ARN.
    pub name: String,
    /// The account in its ARN, if it is not the emulator's.
    #[serde(default)]
    pub account: Option<String>,
    /// The path in its ARN, with a slash at both ends; `/` if empty. The ARN of a session leaves it out.
    #[serde(default)]
    pub path: String,
    /// What its sessions may do; nothing if empty.
    #[serde(default)]
    pub statements: Vec<Statement>,
    /// The ARNs of users, roles, sessions or `arn:aws:iam::ACCOUNT:root` that may assume it.
    #[serde(default)]
    pub trusted: Vec<String>,
    /// Whether its trust is for `sts:AssumeRole` only, and not for `sts:TagSession`.
    #[serde(default)]
    pub denies_tags: bool,
    /// Whether it may be assumed with a web identity token, and with which.
    #[serde(default)]
    pub web_identity: Option<WebIdentity>,
    /// What `AssumeRole` has to name.
    #[serde(default)]
    pub external_id: Option<String>,
    /// The longest session, in seconds; AWS's default of one hour if absent.
    #[serde(default)]
    pub max_session_seconds: Option<u32>,
}

/// Which web identity tokens a role accepts.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebIdentity {
    /// The valid tokens. If empty: every well-formed JWT, whoever signed it.
    #[serde(default)]
    pub tokens: Vec<String>,
    /// What the token's `sub` has to be.
    #[serde(default)]
    pub subject: Option<String>,
    /// The issuer of the [`OidcProvider`] whose tokens they have to be. If absent, nobody looks at signatures.
    #[serde(default)]
    pub provider: Option<String>,
}

/// A caller whose identity is proved.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    pub(crate) arn: String,
    pub(crate) user_id: String,
    pub(crate) access_key_id: String,
    /// The ARN of the role whose session this is.
    pub(crate) role: Option<String>,
    /// The keys of the tags that its sessions inherit.
    pub(crate) transitive: Vec<String>,
}

/// Temporary credentials, just made.
pub(crate) struct Session {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
    pub(crate) token: String,
    pub(crate) expires_ms: i64,
    pub(crate) arn: String,
    pub(crate) user_id: String,
}

/// All users, roles and sessions.
pub(crate) struct Access {
    /// The home account: of the secrets, and of who names no other.
    pub(crate) account: String,
    /// What a session lasts, whatever was asked for.
    pub(crate) session_lifetime: Option<Duration>,
    pub(crate) oidc_providers: Vec<OidcProvider>,
    keys: BTreeMap<String, Key>,
    roles: BTreeMap<String, (Role, String)>,
}

struct Key {
    secret: String,
    principal: Principal,
    statements: Vec<Statement>,
    /// The session's token and end; a user's key has neither.
    session: Option<(String, i64)>,
}

/// How long a session is remembered after its end, to tell an expired one from one that never was.
const FORGET_AFTER_MS: i64 = 24 * 60 * 60 * 1000;

// === impl Statement ===

impl Statement {
    /// Allows these actions on these resources.
    pub fn new<A: Into<String>, R: Into<String>>(
        actions: impl IntoIterator<Item = A>,
        resources: impl IntoIterator<Item = R>,
    ) -> Self {
        let actions = actions.into_iter().map(Into::into).collect();
        Self { actions, resources: resources.into_iter().map(Into::into).collect() }
    }

    /// Allows everything.
    #[must_use]
    pub fn everything() -> Self {
        Self::new(["*"], ["*"])
    }

    pub(crate) fn allows(&self, action: &str, resource: &str) -> bool {
        let action = action.to_ascii_lowercase();
        self.actions.iter().any(|pattern| matches(&pattern.to_ascii_lowercase(), &action))
            && self.resources.iter().any(|pattern| matches(pattern, resource))
    }
}

// === impl User ===

impl User {
    /// A user that may do nothing yet.
    #[must_use]
    pub fn new(name: &str, access_key_id: &str, secret_access_key: &str) -> Self {
        Self {
            name: name.to_owned(),
            account: None,
            access_key_id: access_key_id.to_owned(),
            secret_access_key: secret_access_key.to_owned(),
            statements: Vec::new(),
        }
    }

    /// Also allows this.
    #[must_use]
    pub fn allow(mut self, statement: Statement) -> Self {
        self.statements.push(statement);
        self
    }

    /// In another account than the emulator's.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        self.account = Some(account.to_owned());
        self
    }
}

impl Default for User {
    /// The user of AWS's own examples, who may do everything.
    fn default() -> Self {
        Self::new("keytide", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
            .allow(Statement::everything())
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, account, access_key_id, secret_access_key: _, statements } = self;
        f.debug_struct("User")
            .field("name", name)
            .field("account", account)
            .field("access_key_id", access_key_id)
            .field("statements", statements)
            .finish_non_exhaustive()
    }
}

// === impl Role ===

impl Role {
    /// A role that nobody may assume and that may do nothing yet.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// Also allows its sessions this.
    #[must_use]
    pub fn allow(mut self, statement: Statement) -> Self {
        self.statements.push(statement);
        self
    }

    /// Lets this principal assume it.
    #[must_use]
    pub fn trusts(mut self, principal_arn: &str) -> Self {
        self.trusted.push(principal_arn.to_owned());
        self
    }

    /// Lets web identities assume it: every well-formed token until [`Role::token`] names one.
    #[must_use]
    pub fn trusts_web_identity(mut self) -> Self {
        self.web_identity.get_or_insert_default();
        self
    }

    /// Lets this web identity token assume it, and none that is not named.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.web_identity.get_or_insert_default().tokens.push(token.to_owned());
        self
    }

    /// Wants this external id.
    #[must_use]
    pub fn external_id(mut self, external_id: &str) -> Self {
        self.external_id = Some(external_id.to_owned());
        self
    }

    /// Lets nobody pass session tags, or bring inherited ones.
    #[must_use]
    pub fn denies_tags(mut self) -> Self {
        self.denies_tags = true;
        self
    }

    /// In another account than the emulator's. There AWS, and so this, wants the caller's own policies to allow
    /// `sts:AssumeRole` as well, whomever the role trusts.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        self.account = Some(account.to_owned());
        self
    }

    /// Its ARN: in its own account if it names one, else in this one.
    #[must_use]
    pub fn arn(&self, account: &str) -> String {
        let account = self.account.as_deref().unwrap_or(account);
        let path = if self.path.is_empty() { "/" } else { &self.path };
        format!("arn:aws:iam::{account}:role{path}{}", self.name)
    }
}

// === impl Principal ===

impl Principal {
    pub(crate) fn account(&self) -> &str {
        account_of(&self.arn)
    }
}

// === impl WebIdentity ===

impl fmt::Debug for WebIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, subject, provider } = self;
        f.debug_struct("WebIdentity")
            .field("tokens", &tokens.len())
            .field("subject", subject)
            .field("provider", provider)
            .finish()
    }
}

// === impl Access ===

impl Access {
    pub(crate) fn new(account: &str, session_lifetime: Option<Duration>) -> Self {
        Self {
            account: account.to_owned(),
            session_lifetime,
            oidc_providers: Vec::new(),
            keys: BTreeMap::new(),
            roles: BTreeMap::new(),
        }
    }

    pub(crate) fn add_user(&mut self, user: User) {
        let User { name, account, access_key_id, secret_access_key, statements } = user;
        let account = account.as_ref().unwrap_or(&self.account);
        let principal = Principal {
            arn: format!("arn:aws:iam::{account}:user/{name}"),
            user_id: identifiers::unique_id("AIDA"),
            access_key_id: access_key_id.clone(),
            role: None,
            transitive: Vec::new(),
        };
        let key = Key { secret: secret_access_key, principal, statements, session: None };
        self.keys.insert(access_key_id, key);
    }

    /// Sessions of a role of the same name stay, and may from now on do what the new one may.
    pub(crate) fn add_role(&mut self, role: Role) -> String {
        let arn = role.arn(&self.account);
        self.roles.insert(arn.clone(), (role, identifiers::unique_id("AROA")));
        arn
    }

    pub(crate) fn role(&self, arn: &str) -> Option<&Role> {
        self.roles.get(arn).map(|(role, _)| role)
    }

    /// Replaces what a user (by access key id) or a role (by name or ARN) may do. Says whether there is such a one.
    pub(crate) fn allow(&mut self, who: &str, statements: &[Statement]) -> bool {
        if let Some(key) = self.keys.get_mut(who).filter(|key| key.session.is_none()) {
            key.statements = statements.to_vec();
            return true;
        }
        let role = self.keys.get(who).and_then(|key| key.principal.role.clone());
        let arn = role.as_deref().unwrap_or(who);
        let found = self.roles.iter_mut().find(|(known, (role, _))| *known == arn || role.name == who);
        found.is_some_and(|(_, (role, _))| {
            role.statements = statements.to_vec();
            true
        })
    }

    pub(crate) fn expire_sessions(&mut self, now_ms: i64) {
        for (_, expires_ms) in self.keys.values_mut().filter_map(|key| key.session.as_mut()) {
            *expires_ms = now_ms.min(*expires_ms);
        }
    }

    /// A new session of a role, which has to exist.
    pub(crate) fn open_session(
        &mut self,
        role_arn: &str,
        name: &str,
        asked: Duration,
        transitive: Vec<String>,
        now_ms: i64,
    ) -> Option<Session> {
        let (role, unique_id) = self.roles.get(role_arn)?;
        let lifetime = self.session_lifetime.unwrap_or(asked);
        let session = Session {
            access_key_id: identifiers::session_key_id(),
            secret_access_key: identifiers::secret_key(),
            token: identifiers::session_token(),
            expires_ms: now_ms.saturating_add(i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX)),
            arn: format!("arn:aws:sts::{}:assumed-role/{}/{name}", account_of(role_arn), role.name),
            user_id: format!("{unique_id}:{name}"),
        };
        let principal = Principal {
            arn: session.arn.clone(),
            user_id: session.user_id.clone(),
            access_key_id: session.access_key_id.clone(),
            role: Some(role_arn.to_owned()),
            transitive,
        };
        self.keys.retain(|_, key| key.session.as_ref().is_none_or(|(_, end)| now_ms - end < FORGET_AFTER_MS));
        let key = Key {
            secret: session.secret_access_key.clone(),
            principal,
            statements: Vec::new(),
            session: Some((session.token.clone(), session.expires_ms)),
        };
        self.keys.insert(session.access_key_id.clone(), key);
        Some(session)
    }

    /// What a user or a role may do, by its ARN.
    pub(crate) fn statements_of(&self, arn: &str) -> Option<&[Statement]> {
        let user = || self.keys.values().find(|key| key.session.is_none() && key.principal.arn == arn);
        let role = self.roles.get(arn).map(|(role, _)| role.statements.as_slice());
        role.or_else(|| user().map(|user| user.statements.as_slice()))
    }

    pub(crate) fn is_allowed(&self, principal: &Principal, action: &str, resource: &str) -> bool {
        let statements = match &principal.role {
            Some(role) => self.roles.get(role).map(|(role, _)| &role.statements),
            None => self.keys.get(&principal.access_key_id).map(|key| &key.statements),
        };
        statements.is_some_and(|statements| statements.iter().any(|statement| statement.allows(action, resource)))
    }

    /// `shown` is the resource as the caller named it, which is how AWS names it in the refusal.
    pub(crate) fn authorise(
        &self,
        principal: &Principal,
        action: &str,
        resource: &str,
        shown: &str,
    ) -> Result<(), Refusal> {
        if self.is_allowed(principal, action, resource) {
            return Ok(());
        }
        Err(Refusal::new("AccessDeniedException", denial(principal, action, shown)))
    }

    /// Proves who signed a request.
    pub(crate) fn identify(
        &self,
        service: Service,
        claim: Option<&Claim>,
        parts: &Parts,
        body: &[u8],
        now_ms: i64,
    ) -> Result<Principal, Refusal> {
        let refuse = |(json, query): (&str, &str), message: &str| match service {
            Service::SecretsManager => Refusal::new(json, message),
            _ => Refusal::forbidden(query, message),
        };
        let bad_signature = ("InvalidSignatureException", "SignatureDoesNotMatch");
        if !parts.headers.contains_key("authorization") {
            let codes = ("MissingAuthenticationTokenException", "MissingAuthenticationToken");
            return Err(refuse(codes, "Missing Authentication Token"));
        }
        let date = sigv4::text(&parts.headers, "x-amz-date");
        let claim = claim.filter(|claim| claim.signs("host") && claim.signs("x-amz-date"));
        let (Some(claim), Some(signed_ms)) = (claim, signed_at(&date)) else {
            let codes = ("IncompleteSignatureException", "IncompleteSignature");
            return Err(refuse(codes, "The request signature does not conform to AWS standards."));
        };
        let key = self.keys.get(&claim.access_key_id);
        let token = sigv4::text(&parts.headers, "x-amz-security-token");
        let Some(key) = key.filter(|key| key.session.as_ref().map_or("", |(token, _)| token) == token) else {
            let codes = ("UnrecognizedClientException", "InvalidClientTokenId");
            return Err(refuse(codes, "The security token included in the request is invalid."));
        };
        if claim.service != service.name() || !date.starts_with(&claim.day) {
            let message = format!("Credential should be scoped to correct service: '{}'.", service.name());
            return Err(refuse(bad_signature, &message));
        }
        if service == Service::Iam && claim.region != "us-east-1" {
            return Err(refuse(bad_signature, "Credential should be scoped to a valid region."));
        }
        let minutes = match service {
            Service::SecretsManager => 5,
            _ => 15,
        };
        let skew_ms = now_ms - signed_ms;
        if skew_ms.abs() > minutes * 60 * 1000 {
            let state = if skew_ms > 0 { "Signature expired" } else { "Signature not yet current" };
            let message = format!("{state}: {date} is more than {minutes} minutes from the server's time.");
            return Err(refuse(bad_signature, &message));
        }
        if !claim.is_by(&key.secret, parts, body) {
            let message = "The request signature we calculated does not match the signature you provided. \
                           Check your AWS Secret Access Key and signing method.";
            return Err(refuse(bad_signature, message));
        }
        if key.session.as_ref().is_some_and(|(_, expires_ms)| now_ms >= *expires_ms) {
            return Err(Refusal::expired(service));
        }
        Ok(key.principal.clone())
    }
}

/// The fifth field of an ARN.
pub(crate) fn account_of(arn: &str) -> &str {
    arn.split(':').nth(4).unwrap_or_default()
}

/// AWS's sentence about what nobody allowed.
pub(crate) fn denial(principal: &Principal, action: &str, resource: &str) -> String {
    format!(
        "User: {} is not authorized to perform: {action} on resource: {resource} \
         because no identity-based policy allows the {action} action",
        principal.arn
    )
}

/// `*` stands for any characters, `?` for any one.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut read) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while let Some(byte) = text.get(read) {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at + 1, read));
                at += 1;
            }
            Some(expected) if expected == byte || *expected == b'?' => {
                at += 1;
                read += 1;
            }
            _ => match retry {
                Some((after_star, from)) => {
                    retry = Some((after_star, from + 1));
                    (at, read) = (after_star, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at).all(|byte| *byte == b'*')
}

fn signed_at(date: &str) -> Option<i64> {
    let date = DateTime::strptime("%Y%m%dT%H%M%SZ", date).ok()?;
    let time = TimeZone::UTC.to_timestamp(date).ok()?;
    Some(time.as_millisecond())
}

/// An instant as STS writes it, to the second.
pub(crate) fn iso(ms: i64) -> String {
    let time = Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX);
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
