//! The real SDK of Secrets Manager, pointed at something that speaks like it.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::config::retry::RetryConfig;
use aws_sdk_secretsmanager::config::timeout::TimeoutConfig;
use aws_sdk_secretsmanager::config::{BehaviorVersion, Builder, Region};
use aws_sdk_secretsmanager::error::{ProvideErrorMetadata, SdkError};
use keytide_emulator::User;

pub(crate) fn owner() -> Credentials {
    let User { access_key_id, secret_access_key, .. } = User::default();
    Credentials::from_keys(access_key_id, secret_access_key, None)
}

/// Without an endpoint: the real one.
pub(crate) fn config(credentials: Credentials, region: &'static str) -> Builder {
    aws_sdk_secretsmanager::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static(region))
        .credentials_provider(credentials)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().operation_timeout(Duration::from_secs(5)).build())
}

pub(crate) fn client(url: &str, credentials: Credentials, region: &'static str) -> Client {
    Client::from_conf(config(credentials, region).endpoint_url(url).build())
}

/// `ok`, the error's code, or `network`.
pub(crate) fn code<T, E: ProvideErrorMetadata>(result: Result<T, SdkError<E>>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(SdkError::ServiceError(error)) => error.err().code().unwrap_or("none").to_owned(),
        Err(_) => "network".to_owned(),
    }
}
