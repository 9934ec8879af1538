//! The real SDK of STS, and the credentials that it gets.

use aws_credential_types::Credentials;
use aws_sdk_sts::Client as Sts;
use aws_sdk_sts::config::retry::RetryConfig;
use aws_sdk_sts::config::{BehaviorVersion, Region};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

pub(crate) fn sts(url: &str, credentials: Credentials) -> Sts {
    let config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(url)
        .region(Region::from_static("us-east-1"))
        .credentials_provider(credentials)
        .retry_config(RetryConfig::disabled())
        .build();
    Sts::from_conf(config)
}

pub(crate) fn session(credentials: &aws_sdk_sts::types::Credentials) -> Credentials {
    let (id, key) = (credentials.access_key_id(), credentials.secret_access_key());
    Credentials::from_keys(id, key, Some(credentials.session_token().to_owned()))
}

pub(crate) fn jwt(claims: &str) -> String {
    let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
    format!("{}.{}.{}", part(r#"{"alg":"RS256"}"#), part(claims), part("signature"))
}
