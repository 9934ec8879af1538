//! Credentials, and who STS says they belong to.

use std::time::SystemTime;

use aws_credential_types::Credentials;

use crate::{
    config::StaticKeys,
    domain::{identity::Caller, value::is_visible},
};

/// Where the SDK's messages say that credentials come from.
const PROVIDER: &str = "keytide";

/// Credentials as one hop has them.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// The credentials; their `Debug` is redacted.
    pub(super) credentials: Credentials,
    /// Who they belong to, where STS said so.
    pub(super) proof: Option<Proof>,
}

/// How it is known who credentials belong to.
#[derive(Debug, Clone)]
pub(super) enum Proof {
    /// STS said so when it made the session.
    Told(Caller),
    /// `GetCallerIdentity` said so.
    Asked(Caller),
}

// === impl Session ===

impl Session {
    /// Keys that somebody wrote down. They do not end, as far as anybody can tell.
    pub(super) fn of_keys(keys: &StaticKeys) -> Self {
        let StaticKeys { access_key_id, secret_access_key, session_token } = keys;
        let token = session_token.as_ref().map(|token| token.expose().to_owned());
        let credentials = Credentials::new(access_key_id, secret_access_key.expose(), token, None, PROVIDER);
        Self { credentials, proof: None }
    }

    /// Temporary credentials; none if some part is missing, as in an answer that was cut in half, or cannot be one: the SDK
    /// ends the process over an id that is not legal in a header.
    pub(super) fn temporary(id: &str, secret: &str, token: &str, expiry: SystemTime) -> Option<Self> {
        let whole = [id, secret, token].into_iter().all(is_visible) && id.len() <= StaticKeys::LONGEST_ID;
        let credentials = || Credentials::new(id, secret, Some(token.to_owned()), Some(expiry), PROVIDER);
        whole.then(|| Self { credentials: credentials(), proof: None })
    }

    /// True if they are of use at this time.
    pub(super) fn is_valid(&self, now: SystemTime) -> bool {
        self.credentials.expiry().is_none_or(|expiry| expiry > now)
    }

    /// When they end, in seconds since the Unix epoch.
    pub(super) fn expires_at(&self) -> Option<i64> {
        let since = self.credentials.expiry()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        i64::try_from(since.as_secs()).ok()
    }
}

// === impl Proof ===

impl Proof {
    /// Who that is.
    pub(super) fn caller(&self) -> &Caller {
        match self {
            Self::Told(caller) | Self::Asked(caller) => caller,
        }
    }
}
