//! From the SDK's errors to ours: the only place that classifies them.
//!
//! Secrets Manager answers most failures with HTTP 400, so the code decides, never the status alone. The SDK's and AWS's
//! own texts are not passed on: they may repeat what was sent.

use std::error::Error as StdError;

use aws_sdk_secretsmanager::operation::{
    batch_get_secret_value::BatchGetSecretValueError, create_secret::CreateSecretError,
    delete_secret::DeleteSecretError, describe_secret::DescribeSecretError, get_secret_value::GetSecretValueError,
    put_secret_value::PutSecretValueError, remove_regions_from_replication::RemoveRegionsFromReplicationError,
    replicate_secret_to_regions::ReplicateSecretToRegionsError, restore_secret::RestoreSecretError,
    tag_resource::TagResourceError, untag_resource::UntagResourceError, update_secret::UpdateSecretError,
};
use aws_sdk_sts::operation::{
    assume_role::AssumeRoleError, assume_role_with_web_identity::AssumeRoleWithWebIdentityError,
    get_caller_identity::GetCallerIdentityError,
};
use aws_smithy_runtime_api::client::{
    interceptors::context::Error as AnyError,
    orchestrator::{HttpResponse, OrchestratorError},
    result::{DispatchFailure, SdkError},
};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::request_id::RequestId;

use crate::{
    domain::snapshot::{Problem, Reason},
    http_client::tls_words,
};

/// An answer before it is understood, in the type of a failed call.
pub type Raw = HttpResponse;

/// How a subject begins to say its stage.
pub const STAGE: &str = " at stage ";

/// The facts of a failed call that may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind it is.
    pub reason: Reason,
    /// AWS's error code, or our word for what happened.
    pub code: String,
    /// AWS's id of the request, where it answered with one.
    pub request_id: Option<String>,
}

// === impl Failure ===

impl Failure {
    /// What an SDK call failed with.
    #[must_use]
    pub fn of<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Self {
        let request_id = error.raw_response().and_then(RequestId::request_id).and_then(printable_id);
        let plain = |reason, code: &str| Self { reason, code: code.to_owned(), request_id: request_id.clone() };
        match error {
            SdkError::ServiceError(service) => {
                let status = service.raw().status().as_u16();
                match service.err().code().and_then(printable) {
                    Some(code) => Self { reason: reason_of(&code), code, request_id },
                    None if (200..300).contains(&status) => plain(Reason::Unavailable, "an answer that cannot be read"),
                    None => plain(Reason::Unavailable, &format!("HTTP status {status} without an error code")),
                }
            }
            SdkError::TimeoutError(_) => plain(Reason::Unavailable, "no answer in time"),
            SdkError::DispatchFailure(failure) if tls_error(failure).is_some() => {
                plain(Reason::Unavailable, &tls_error(failure).unwrap_or_default())
            }
            SdkError::DispatchFailure(failure) if proxy_error(failure).is_some() => {
                plain(Reason::Unavailable, proxy_error(failure).unwrap_or_default())
            }
            SdkError::DispatchFailure(failure) if failure.is_timeout() => {
                plain(Reason::Unavailable, "no connection in time")
            }
            SdkError::DispatchFailure(failure) if failure.is_io() => {
                let cause = causes(failure).find_map(|error| Some(error.downcast_ref::<std::io::Error>()?.kind()));
                let cause = cause.filter(|kind| *kind != std::io::ErrorKind::Other);
                let code = cause.map_or("no connection".to_owned(), |kind| format!("no connection: {kind}"));
                plain(Reason::Unavailable, &code)
            }
            SdkError::DispatchFailure(_) => plain(Reason::Unavailable, "the request could not be sent"),
            SdkError::ResponseError(_) => plain(Reason::Unavailable, "an answer that cannot be read"),
            _ => plain(Reason::Unknown, "a request that could not be built"),
        }
    }

    /// What a batch said of one of its secrets.
    #[must_use]
    pub fn of_code(code: Option<&str>) -> Self {
        let code = code.and_then(printable).unwrap_or_else(|| "an error without a code".to_owned());
        Self { reason: reason_of(&code), code, request_id: None }
    }

    /// The problem in a sentence: what failed, how AWS calls it, what to do. `who` names the identity.
    #[must_use]
    pub fn problem(&self, action: &str, subject: &str, who: &str) -> Problem {
        let Self { reason, code, request_id: _ } = self;
        let advice = match reason {
            Reason::Denied => {
                // AWS looks at the policies first, and a name that nobody has matches no policy that ends in -??????.
                let allow = format!("allow secretsmanager:{action} on it, and kms:Decrypt on its key if that is not AWS's own, to {who}");
                let foreign = if subject.contains("arn:") { ", in its own policy too where it is another account's" } else { "" };
                format!(": {allow}{foreign}; or there is no such secret, which AWS then does not say")
            }
            Reason::Absent if code == "InvalidRequestException" => {
                ": the secret is scheduled for deletion, or managed by another service; restore it, or take it from the configuration".to_owned()
            }
            Reason::Absent if subject.contains(STAGE) => {
                ": no such secret for this account and region, or no version of it at this stage".to_owned()
            }
            Reason::Absent => ": no such secret for this account and region; create it, or correct its name or the region".to_owned(),
            Reason::Identity => format!(": AWS does not accept the credentials of {who}"),
            Reason::Clock => format!(
                ": the clocks of this machine and of AWS differ too much, which the next call allows for; or the secret access \
                 key of {who} is wrong"
            ),
            Reason::Throttled => ": AWS asks for fewer calls; retried with backoff".to_owned(),
            Reason::Refused => ": AWS refused the request, or cannot use the KMS key of the secret".to_owned(),
            _ => String::new(),
        };
        Problem::new(*reason, format!("failed to call {action} for {subject} ({}){advice}", self.facts()))
    }

    /// The same for a call that writes.
    #[must_use]
    pub fn write_problem(&self, action: &str, subject: &str, who: &str) -> Problem {
        let Self { reason, code, request_id: _ } = self;
        let advice = match (reason, code.as_str()) {
            (Reason::Denied, _) => {
                // AWS asks for these as well, where a new secret has tags or replicas.
                let more = if action == "CreateSecret" {
                    ", and secretsmanager:TagResource and secretsmanager:ReplicateSecretToRegions for its tags and replicas,"
                } else {
                    ""
                };
                format!(
                    ": allow secretsmanager:{action}{more} on it to {who} (`keytide policy` prints all that is needed)"
                )
            }
            (_, "LimitExceededException") => {
                ": AWS keeps about a hundred versions of a secret, none for less than a day; retried slowly".to_owned()
            }
            (_, "EncryptionFailure" | "DecryptionFailure") => format!(
                ": AWS cannot use the KMS key of the secret; enable it, and allow kms:GenerateDataKey and kms:Decrypt on it to {who}"
            ),
            (_, "ResourceExistsException") => ": there is such a secret, or such a version, already".to_owned(),
            (_, "ResourceNotFoundException") => ": no such secret for this account and region".to_owned(),
            (_, "InvalidRequestException") => {
                ": the secret is scheduled for deletion, or managed by another service".to_owned()
            }
            (Reason::Refused, _) => ": AWS refuses the request as it is".to_owned(),
            _ => return self.problem(action, subject, who),
        };
        Problem::new(*reason, format!("failed to call {action} for {subject} ({}){advice}", self.facts()))
    }

    /// The code, and the id of the request where there is one: what AWS's support asks for.
    #[must_use]
    pub fn facts(&self) -> String {
        let Self { reason: _, code, request_id } = self;
        request_id.as_ref().map_or_else(|| code.clone(), |id| format!("{code}, request id {id}"))
    }
}

/// Why there is no TLS, if that is so.
fn tls_error(failure: &DispatchFailure) -> Option<String> {
    let tls = causes(failure).find_map(|error| error.downcast_ref::<rustls::Error>())?;
    Some(tls_words(tls, "AWS_CA_BUNDLE"))
}

/// What a proxy did, if it was one. The HTTP client does not show the type of this error, only its words, which are constant.
fn proxy_error(failure: &DispatchFailure) -> Option<&'static str> {
    causes(failure).find_map(|error| {
        let words = error.to_string();
        Some(match words.strip_prefix("tunnel error: ")? {
            "failed to create underlying connection" => "no connection to the proxy",
            "proxy authorization required" => "the proxy does not accept the user and password of its URL",
            _ => "the proxy does not let keytide through",
        })
    })
}

/// The errors behind a failure. The source of an I/O error is that of what it wraps, not what it wraps.
fn causes<'a>(failure: &'a DispatchFailure) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let first = failure.as_connector_error().map(|error| -> &'a (dyn StdError + 'static) { error });
    std::iter::successors(first, |error| {
        let error: &'a (dyn StdError + 'static) = *error;
        match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        }
    })
}

/// The same classification for the interceptor, which sees the error before it has a type.
#[must_use]
pub fn reason_in_flight(error: &OrchestratorError<AnyError>) -> Reason {
    let Some(operation) = error.as_operation_error() else { return Reason::Unavailable };
    macro_rules! code_of {
        ($($error:ty),* $(,)?) => {
            None$(.or_else(|| operation.downcast_ref::<$error>().map(ProvideErrorMetadata::code)))*
        };
    }
    let code = code_of!(
        GetSecretValueError,
        BatchGetSecretValueError,
        CreateSecretError,
        PutSecretValueError,
        DescribeSecretError,
        UpdateSecretError,
        DeleteSecretError,
        RestoreSecretError,
        TagResourceError,
        UntagResourceError,
        ReplicateSecretToRegionsError,
        RemoveRegionsFromReplicationError,
        AssumeRoleError,
        AssumeRoleWithWebIdentityError,
        GetCallerIdentityError,
    );
    match code {
        Some(Some(code)) => printable(code).map_or(Reason::Unavailable, |code| reason_of(&code)),
        Some(None) => Reason::Unavailable,
        None => Reason::Unknown,
    }
}

fn reason_of(code: &str) -> Reason {
    match code {
        "ThrottlingException"
        | "Throttling"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "SlowDown"
        | "RequestThrottled"
        | "ProvisionedThroughputExceededException" => Reason::Throttled,
        "InternalServiceError"
        | "InternalServiceErrorException"
        | "InternalFailure"
        | "InternalServerError"
        | "ServiceUnavailable"
        | "ServiceUnavailableException"
        | "IDPCommunicationError"
        | "RequestTimeout" => Reason::Unavailable,
        "ExpiredTokenException"
        | "ExpiredToken"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "MissingAuthenticationTokenException"
        | "MissingAuthenticationToken"
        | "InvalidIdentityToken"
        | "InvalidAccessKeyId"
        | "IDPRejectedClaim" => Reason::Identity,
        "AccessDeniedException" | "AccessDenied" | "NotAuthorized" => Reason::Denied,
        "ResourceNotFoundException" | "InvalidRequestException" => Reason::Absent,
        "SignatureDoesNotMatch" | "InvalidSignatureException" | "RequestExpired" | "RequestTimeTooSkewed" => {
            Reason::Clock
        }
        "ValidationException"
        | "ValidationError"
        | "InvalidParameterException"
        | "InvalidParameterValue"
        | "LimitExceededException"
        | "EncryptionFailure"
        | "DecryptionFailure"
        | "DecryptionFailureException"
        | "PackedPolicyTooLarge"
        | "MalformedPolicyDocument"
        | "RegionDisabledException"
        // Of writes, which mostly have an answer to it.
        | "ResourceExistsException" => Reason::Refused,
        _ => Reason::Unknown,
    }
}

/// A code comes from outside: it is shown only if it looks like AWS's, such as `AccessDeniedException`.
fn printable(text: &str) -> Option<String> {
    let text = text.rsplit('#').next().unwrap_or(text);
    let legal = text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
    (legal && text.len() <= 64).then(|| text.to_owned())
}

/// As does the id of a request, which is hexadecimal with hyphens.
fn printable_id(text: &str) -> Option<String> {
    let legal = text.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    (legal && text.len() <= 64).then(|| text.to_owned())
}
