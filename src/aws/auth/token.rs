//! Tokens: read again each time, and never shown.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{config::Token, domain::value::SecretValue, small_file};

/// A token of a service account has about 1 KiB.
const LARGEST: u64 = 64 * 1024;

/// What a token says of itself. Nothing is proved by it: STS checks the signature.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Claims {
    /// When it ends, in seconds since the Unix epoch (RFC 7519, 4.1.4).
    pub(super) exp: Option<i64>,
    #[serde(default)]
    sub: String,
}

/// Reads the token.
///
/// # Errors
/// In words why it cannot be used.
pub(super) fn read(token: &Token) -> Result<SecretValue, String> {
    match token {
        Token::Text(text) => Ok(text.share()),
        Token::File(file) => read_file(file),
    }
}

/// The same, with what a JSON web token says of itself.
///
/// # Errors
/// In words why it cannot be one.
pub(super) fn read_web_identity(token: &Token) -> Result<(SecretValue, Claims), String> {
    let token = read(token)?;
    let parts: Vec<&str> = token.expose().split('.').collect();
    match parts[..] {
        [header, payload, signature] if ![header, payload, signature].contains(&"") => {
            let payload = Zeroizing::new(URL_SAFE_NO_PAD.decode(payload).unwrap_or_default());
            let claims = serde_json::from_slice::<Claims>(&payload).unwrap_or_default();
            Ok((token, claims))
        }
        _ => Err("not a whole JSON web token".to_owned()),
    }
}

// === impl Claims ===

impl Claims {
    /// The service account that the token is of, as `NAMESPACE:NAME`, if it is of one: what a trust policy must name.
    pub(super) fn service_account(&self) -> Option<&str> {
        let account = self.sub.strip_prefix("system:serviceaccount:")?;
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
        (account.len() <= 320 && account.chars().all(legal)).then_some(account)
    }
}

/// Where the token is, in words.
pub(super) fn place(token: &Token) -> String {
    match token {
        Token::Text(_) => "of the configuration".to_owned(),
        Token::File(file) => file.display().to_string(),
    }
}

fn read_file(file: &Path) -> Result<SecretValue, String> {
    let bytes = Zeroizing::new(small_file::read(file, LARGEST)?);
    let text = std::str::from_utf8(&bytes).map_err(|_| "not text".to_owned())?;
    let token = SecretValue::new(text.trim().to_owned());
    if token.expose().is_empty() { Err("the file is empty".to_owned()) } else { Ok(token) }
}
