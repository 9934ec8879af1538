//! What an error of the API server means to keytide. The only place that looks at one: its text is not passed on, since it
//! quotes what was sent.

use std::{error::Error as StdError, fmt, time::Duration};

use kube::{
    Error,
    config::{InClusterError, KubeconfigError},
    core::Status,
};
use rustls::CertificateError;

use crate::domain::kubernetes::Field;

/// So many fields of a conflict are named.
const NAMED: usize = 5;

/// Of a token or a program that cannot even be asked for.
const UNUSABLE: &str = "the token, or the program that gives one, cannot be used";

/// What a call does, in the words of RBAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Read one object.
    Get,
    /// Read what a selector selects.
    List,
    /// Be told of changes.
    Watch,
    /// Make an object.
    Create,
    /// Change an object, or make it by server-side apply.
    Patch,
}

/// The object of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The API group; empty for the core.
    pub group: &'static str,
    /// The resource, as RBAC calls it.
    pub resource: &'static str,
    /// The object's name.
    pub name: String,
}

/// Why a call failed. Made of our own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What kind it is.
    pub kind: TroubleKind,
    /// What failed, and what to do.
    pub message: String,
    /// When the API server wants to be asked again.
    pub retry_after: Option<Duration>,
}

/// The kinds of [`Trouble`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TroubleKind {
    /// No usable answer: no connection, a time-out, an internal error.
    Unavailable,
    /// The API server asks to slow down.
    Throttled,
    /// It does not accept the token.
    Identity,
    /// A rule of RBAC is missing.
    Denied,
    /// There is no such object.
    Absent,
    /// The object is another one than was thought, or is there already.
    Outrun,
    /// Others own these fields: each with its manager.
    Owned(Vec<(String, Field)>),
    /// The object breaks a rule of Kubernetes.
    Invalid,
    /// A webhook or a policy refused it, or a quota.
    Refused,
    /// The namespace is on its way out, or gone.
    Terminating,
    /// The state to watch from is too old.
    Expired,
    /// An answer that keytide does not know.
    Unknown,
}

// === impl Verb ===

impl Verb {
    /// The word of RBAC.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Patch => "patch",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.resource, self.name)
    }
}

// === impl Trouble ===

impl Trouble {
    /// A trouble of this kind.
    #[must_use]
    pub fn new(kind: TroubleKind, message: String) -> Self {
        Self { kind, message, retry_after: None }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

// === impl TroubleKind ===

impl TroubleKind {
    /// The words of the metric, without `ok`.
    pub const LABELS: [&str; 12] = [
        "unavailable",
        "throttled",
        "identity",
        "denied",
        "absent",
        "outrun",
        "owned",
        "invalid",
        "refused",
        "terminating",
        "expired",
        "unknown",
    ];

    /// The word of the metric.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Throttled => "throttled",
            Self::Identity => "identity",
            Self::Denied => "denied",
            Self::Absent => "absent",
            Self::Outrun => "outrun",
            Self::Owned(_) => "owned",
            Self::Invalid => "invalid",
            Self::Refused => "refused",
            Self::Terminating => "terminating",
            Self::Expired => "expired",
            Self::Unknown => "unknown",
        }
    }

    /// True if somebody has to do something before it can succeed.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Denied | Self::Owned(_) | Self::Invalid | Self::Refused | Self::Terminating => true,
            Self::Unavailable
            | Self::Throttled
            | Self::Identity
            | Self::Absent
            | Self::Outrun
            | Self::Expired
            | Self::Unknown => false,
        }
    }
}

/// What an error means.
pub(super) fn trouble(error: &Error, verb: Verb, subject: &Subject, namespace: &str) -> Trouble {
    let Error::Api(status) = error else {
        let message = format!("failed to {verb} {subject}: {}", about(error));
        return Trouble::new(TroubleKind::Unavailable, message);
    };
    of_status(status, verb, subject, namespace)
}

/// What a `Status` means, which comes as an answer or in a watch.
pub(super) fn of_status(status: &Status, verb: Verb, subject: &Subject, namespace: &str) -> Trouble {
    let details = status.details.as_ref();
    let causes = || details.into_iter().flat_map(|details| &details.causes);
    let has_cause = |reason: &str| causes().any(|cause| cause.reason == reason);
    let owners: Vec<(String, Field)> = causes()
        .filter(|cause| cause.reason == "FieldManagerConflict")
        .map(|cause| (manager_of(&cause.message), field_of(&cause.field)))
        .collect();
    let by_admission = admission(&status.message);
    let is_namespace = details.is_some_and(|details| details.kind == "namespaces");
    let kind = match (status.code, status.reason.as_str()) {
        (401, _) => TroubleKind::Identity,
        (403, _) if has_cause("NamespaceTerminating") => TroubleKind::Terminating,
        (403 | 422 | 400, _) if by_admission.is_some() => TroubleKind::Refused,
        (403, _) if status.message.contains("exceeded quota") => TroubleKind::Refused,
        (403, _) => TroubleKind::Denied,
        (404, _) if is_namespace => TroubleKind::Terminating,
        (404, _) => TroubleKind::Absent,
        (409, _) if !owners.is_empty() => TroubleKind::Owned(owners),
        (409, _) => TroubleKind::Outrun,
        (410, _) => TroubleKind::Expired,
        (422 | 400 | 413, _) => TroubleKind::Invalid,
        (429, _) => TroubleKind::Throttled,
        (500..=599, _) => TroubleKind::Unavailable,
        _ => TroubleKind::Unknown,
    };
    let why = why(&kind, status, by_admission, verb, subject, namespace);
    // An API server that is too busy for a `Status` says a second, in a header that kube does not show.
    let wait = details.map_or(u32::from(kind == TroubleKind::Throttled), |details| details.retry_after_seconds);
    let retry_after = (wait > 0).then(|| Duration::from_secs(wait.min(600).into()));
    Trouble { message: format!("failed to {verb} {subject}: {why}"), kind, retry_after }
}

fn why(
    kind: &TroubleKind,
    status: &Status,
    by_admission: Option<String>,
    verb: Verb,
    subject: &Subject,
    namespace: &str,
) -> String {
    match kind {
        TroubleKind::Unavailable => format!("the API server answered {}", status.code),
        TroubleKind::Throttled => "the API server asks to slow down".to_owned(),
        TroubleKind::Identity => "the API server does not accept the service account's token".to_owned(),
        TroubleKind::Denied => {
            let Subject { group, resource, name } = subject;
            // An apply of what does not exist needs `create` as well.
            let verb = if status.message.contains("cannot create resource") { Verb::Create } else { verb };
            format!(
                "forbidden: the service account may not {verb} {resource} {name} in namespace {namespace}; add the rule \
                 {{apiGroups: [\"{group}\"], resources: [{resource}], resourceNames: [{name}], verbs: [{verb}]}} to its \
                 Role (`keytide policy --kubernetes` prints the whole one)"
            )
        }
        TroubleKind::Absent => "it does not exist".to_owned(),
        TroubleKind::Outrun => "somebody else changed it at the same time".to_owned(),
        TroubleKind::Owned(owners) => {
            let named = owners.iter().take(NAMED).map(|(manager, field)| format!("{field} belongs to {manager}"));
            let named = named.collect::<Vec<_>>().join(", ");
            let more = owners.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{named}{more}; force: true takes it")
        }
        TroubleKind::Invalid => {
            let fields: Vec<&str> = status
                .details
                .iter()
                .flat_map(|details| &details.causes)
                .map(|cause| cause.field.as_str())
                .filter(|field| is_path(field))
                .collect();
            let at = if fields.is_empty() { String::new() } else { format!(" at {}", fields.join(", ")) };
            format!("it breaks a rule of Kubernetes{at} (status {})", status.code)
        }
        TroubleKind::Refused => by_admission.unwrap_or_else(|| "a resource quota is used up".to_owned()),
        TroubleKind::Terminating if status.code == 404 => format!("the namespace {namespace} does not exist"),
        TroubleKind::Terminating => format!("the namespace {namespace} is being deleted"),
        TroubleKind::Expired => "the state to watch from is too old".to_owned(),
        TroubleKind::Unknown => format!("an unexpected answer, status {}", status.code),
    }
}

/// Who refused, where it was a webhook or a policy: its name, not its words.
fn admission(message: &str) -> Option<String> {
    let named = |start: &str, quote: char| {
        let (_, rest) = message.split_once(start)?;
        let (name, _) = rest.split_once(quote)?;
        is_path(name).then(|| name.to_owned())
    };
    if let Some(name) = named("ValidatingAdmissionPolicy '", '\'') {
        return Some(format!("the ValidatingAdmissionPolicy {name} refused it"));
    }
    let webhook = named("admission webhook \"", '"')?;
    Some(format!("the admission webhook {webhook} refused it"))
}

/// The manager in `conflict with "kubectl-edit" using v1`.
fn manager_of(message: &str) -> String {
    let name = message.split('"').nth(1).filter(|name| is_path(name));
    name.map_or_else(|| "another manager".to_owned(), |name| format!("manager {name}"))
}

/// A path such as `.data.A`.
fn field_of(path: &str) -> Field {
    let owned = |name: &str| name.to_owned();
    if let Some(name) = path.strip_prefix(".data.") {
        Field::Data(owned(name))
    } else if let Some(name) = path.strip_prefix(".metadata.labels.") {
        Field::Label(owned(name))
    } else if let Some(name) = path.strip_prefix(".metadata.annotations.") {
        Field::Annotation(owned(name))
    } else if is_path(path) {
        Field::Other(path.trim_start_matches('.').to_owned())
    } else {
        Field::Other("a field".to_owned())
    }
}

/// True for what can be a name or a path: no text that anybody could have put a value into by way of quoting.
fn is_path(text: &str) -> bool {
    (1..=300).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._/[]~:@ ".contains(c))
}

/// What kind of thing went wrong where there was no answer.
pub(super) fn about(error: &Error) -> &'static str {
    match error {
        Error::Api(_) => "the API server refused",
        Error::HyperError(_) | Error::Service(_) | Error::HttpError(_) => about_connection(error),
        Error::ReadEvents(_) | Error::LinesCodecMaxLineLengthExceeded => "the watch broke off",
        Error::FromUtf8(_) | Error::SerdeError(_) => "the answer cannot be read",
        Error::Auth(_) => UNUSABLE,
        Error::RustlsTls(_) | Error::TlsRequired => "the certificates cannot be used",
        Error::ProxyProtocolUnsupported { .. } | Error::ProxyProtocolDisabled { .. } => {
            "a proxy of this kind cannot be used; expected http or https"
        }
        _ => "the request could not be made",
    }
}

/// Why there is no connection, or none any more.
fn about_connection(error: &Error) -> &'static str {
    causes(error)
        .find_map(|cause| tls(cause).or_else(|| proxy(cause)).or_else(|| token(cause)))
        .unwrap_or("no connection to the API server, or it broke off")
}

/// Why there is no TLS, if that is so. The library's own words hold names and certificates.
fn tls(cause: &(dyn StdError + 'static)) -> Option<&'static str> {
    Some(match cause.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "no TLS: the API server's certificate is not of the certificate authority that is trusted here"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "no TLS: the API server's certificate is for another name",
        rustls::Error::InvalidCertificate(_) => "no TLS: the API server's certificate is not valid",
        _ => "no TLS: the API server and keytide do not agree",
    })
}

/// What a proxy did, if it was one. Its error has no type that can be seen, only words, which are constant.
fn proxy(cause: &(dyn StdError + 'static)) -> Option<&'static str> {
    Some(match cause.to_string().strip_prefix("tunnel error: ")? {
        "failed to create underlying connection" => "no connection to the proxy",
        "proxy authorization required" => "the proxy does not accept the user and password of its URL",
        _ => "the proxy does not let keytide through",
    })
}

/// What is wrong with the credentials, if that is it.
fn token(cause: &(dyn StdError + 'static)) -> Option<&'static str> {
    cause.downcast_ref::<kube::client::AuthError>().map(|_| UNUSABLE)
}

/// The errors behind one. The source of an I/O error is that of what it wraps, not what it wraps.
fn causes(error: &Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let first: &(dyn StdError + 'static) = error;
    std::iter::successors(Some(first), |error| {
        let error: &(dyn StdError + 'static) = *error;
        match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        }
    })
}

/// What is wrong with a kubeconfig.
pub(super) fn about_kubeconfig(error: &KubeconfigError) -> &'static str {
    match error {
        KubeconfigError::CurrentContextNotSet => "it has no current-context",
        KubeconfigError::LoadContext(_) => "its current-context names a context that it does not have",
        KubeconfigError::LoadClusterOfContext(_) => "its context names a cluster that it does not have",
        KubeconfigError::MissingClusterUrl | KubeconfigError::ParseClusterUrl(_) => {
            "its cluster has no server, or one that is no URL"
        }
        KubeconfigError::LoadCertificateAuthority(_) | KubeconfigError::ParseCertificates(_) => {
            "the certificate authority of its cluster cannot be read"
        }
        KubeconfigError::LoadClientCertificate(_) | KubeconfigError::LoadClientKey(_) => {
            "the certificate or the key of its user cannot be read"
        }
        _ => "it cannot be used",
    }
}

/// What is wrong with the files of a pod.
pub(super) fn about_pod(error: &InClusterError) -> &'static str {
    match error {
        InClusterError::ReadDefaultNamespace(_) => "the namespace cannot be read",
        InClusterError::ReadCertificateBundle(_) | InClusterError::ParseCertificates(_) => {
            "the certificate authority cannot be read"
        }
        InClusterError::ReadEnvironmentVariable(_)
        | InClusterError::ParseClusterPort(_)
        | InClusterError::ParseClusterUrl(_) => "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT name no address",
    }
}
