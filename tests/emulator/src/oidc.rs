//! IAM's OIDC providers: whose web identity tokens are to be believed, and by which keys.

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::answer::Refusal;
use crate::sts::Claims;

/// An OIDC provider, such as a cluster of EKS.
///
/// AWS fetches its keys from the issuer; here they are given.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcProvider {
    /// The `iss` of its tokens.
    pub issuer: String,
    /// What a token's `aud` may be: AWS's client ids.
    pub audiences: Vec<String>,
    /// The keys as the issuer publishes them, a JSON Web Key Set. Those for RS256 are used, as on EKS.
    pub keys: Jwks,
}

/// A JSON Web Key Set.
#[derive(Clone, Debug, Deserialize)]
pub struct Jwks {
    keys: Vec<Jwk>,
}

#[derive(Clone, Debug, Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    kid: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

// === impl OidcProvider ===

impl OidcProvider {
    /// Whether this token is one of its own, for AWS.
    pub(crate) fn verify(&self, token: &str, claims: &Claims) -> Result<(), Refusal> {
        let refused = |message: &str| Err(Refusal::new("InvalidIdentityToken", message));
        if claims.iss != self.issuer {
            return refused("No OpenIDConnect provider found in your account for the issuer of this token");
        }
        if !claims.audiences().any(|audience| self.audiences.iter().any(|expected| expected == audience)) {
            return refused("Incorrect token audience");
        }
        if !self.keys.signed(token) {
            return refused("Couldn't retrieve verification key from your identity provider");
        }
        Ok(())
    }
}

// === impl Jwks ===

impl Jwks {
    fn signed(&self, token: &str) -> bool {
        self.try_signed(token).unwrap_or(false)
    }

    /// None for what is no token.
    fn try_signed(&self, token: &str) -> Option<bool> {
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let (message, signature) = token.rsplit_once('.')?;
        let signature = decode(signature)?;
        let header: Header = serde_json::from_slice(&decode(message.split('.').next()?)?).ok()?;
        let is_named = |key: &&Jwk| key.kty == "RSA" && key.kid == header.kid;
        let verified = self.keys.iter().filter(is_named).any(|Jwk { n, e, .. }| {
            let components = decode(n).zip(decode(e)).map(|(n, e)| RsaPublicKeyComponents { n, e });
            components
                .is_some_and(|key| key.verify(&RSA_PKCS1_2048_8192_SHA256, message.as_bytes(), &signature).is_ok())
        });
        Some(header.alg == "RS256" && verified)
    }
}
