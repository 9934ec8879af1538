//! Signature version 4, from the verifying side.

use hmac::{Hmac, KeyInit, Mac};
use hyper::HeaderMap;
use hyper::http::request::Parts;
use sha2::{Digest, Sha256};

/// What an `Authorization` header says about itself, nothing of it proved.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) access_key_id: String,
    pub(crate) day: String,
    pub(crate) region: String,
    pub(crate) service: String,
    signed_headers: Vec<String>,
    signature: String,
}

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

// === impl Claim ===

impl Claim {
    pub(crate) fn parse(authorization: &str) -> Option<Self> {
        let (mut credential, mut signed_headers, mut signature) = (None, None, None);
        for field in authorization.strip_prefix(ALGORITHM)?.split(',') {
            let (key, value) = field.trim().split_once('=')?;
            match key {
                "Credential" => credential = Some(value),
                "SignedHeaders" => signed_headers = Some(value),
                "Signature" => signature = Some(value),
                _ => return None,
            }
        }
        let mut scope = credential?.split('/');
        let mut next = || scope.next().filter(|part| !part.is_empty()).map(str::to_owned);
        let (access_key_id, day, region, service) = (next()?, next()?, next()?, next()?);
        let whole = scope.next() == Some("aws4_request") && scope.next().is_none();
        let signed_headers: Vec<String> = signed_headers?.split(';').map(str::to_owned).collect();
        whole.then_some(Self { access_key_id, day, region, service, signed_headers, signature: signature?.to_owned() })
    }

    /// AWS wants these covered by the signature.
    pub(crate) fn signs(&self, header: &str) -> bool {
        self.signed_headers.iter().any(|signed| signed == header)
    }

    pub(crate) fn is_by(&self, secret_key: &str, parts: &Parts, body: &[u8]) -> bool {
        let date = text(&parts.headers, "x-amz-date");
        let request = self.canonical_request(parts, body);
        let Self { day, region, service, signature, .. } = self;
        let to_sign =
            format!("{ALGORITHM}\n{date}\n{day}/{region}/{service}/aws4_request\n{}", hash(request.as_bytes()));
        let key = [day, region, service, "aws4_request"]
            .iter()
            .fold(format!("AWS4{secret_key}").into_bytes(), |key, part| sign(&key, part.as_bytes()));
        hex(&sign(&key, to_sign.as_bytes())) == *signature
    }

    fn canonical_request(&self, parts: &Parts, body: &[u8]) -> String {
        let mut query: Vec<&str> = parts.uri.query().unwrap_or_default().split('&').collect();
        query.sort_unstable();
        let headers: Vec<String> =
            self.signed_headers.iter().map(|name| format!("{name}:{}", text(&parts.headers, name))).collect();
        let headers = headers.join("\n");
        let signed = self.signed_headers.join(";");
        let (method, path, query) = (&parts.method, parts.uri.path(), query.join("&"));
        format!("{method}\n{path}\n{query}\n{headers}\n\n{signed}\n{}", hash(body))
    }
}

/// A header as it is signed: several values joined, white space at the ends gone and inside collapsed.
pub(crate) fn text(headers: &HeaderMap, name: &str) -> String {
    let values = headers.get_all(name).iter().map(|value| {
        let value = String::from_utf8_lossy(value.as_bytes());
        value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
    });
    values.collect::<Vec<_>>().join(",")
}

fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn sign(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).expect("a nibble is below 16");
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}
