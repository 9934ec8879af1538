//! What an answer looks like on the wire: JSON 1.1 for Secrets Manager, query XML for STS and IAM, and what the agents of
//! a node make of it.

use hyper::StatusCode;
use serde_json::{Value as Json, json};

use crate::{eks_auth, identifiers};

/// The services on the one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Service {
    /// AWS Secrets Manager, JSON 1.1.
    SecretsManager,
    /// AWS Security Token Service, the query protocol.
    Sts,
    /// AWS Identity and Access Management, the query protocol.
    Iam,
    /// EKS Auth, as the Pod Identity agent of a node passes it on: `GET /v1/credentials`.
    #[serde(rename = "eks-auth")]
    EksAuth,
    /// The metadata service of an instance, version 2: below `/latest/`.
    Metadata,
}

/// Why a call is refused, in the service's own words.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) status: StatusCode,
}

/// A whole answer, not yet sent.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) body: Vec<u8>,
    /// Written to the record of requests: `200` or the error's code.
    pub(crate) outcome: String,
    pub(crate) request_id: String,
    /// One that only this answer has.
    pub(crate) header: Option<(&'static str, String)>,
}

const JSON: &str = "application/x-amz-json-1.1";
const PLAIN_JSON: &str = "application/json";
const XML: &str = "text/xml";
const TEXT: &str = "text/plain; charset=utf-8";
const HTML: &str = "text/html";

// === impl Service ===

impl Service {
    /// As it stands in a signature's scope and in the front of an IAM action.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SecretsManager => "secretsmanager",
            Self::Sts => "sts",
            Self::Iam => "iam",
            Self::EksAuth => "eks-auth",
            Self::Metadata => "metadata",
        }
    }

    /// Of the query protocol's services.
    fn namespace(self) -> &'static str {
        match self {
            Self::Iam => "https://iam.amazonaws.com/doc/2010-05-08/",
            _ => "https://sts.amazonaws.com/doc/2011-06-15/",
        }
    }

    /// What a whole answer of it is.
    fn content_type(self) -> &'static str {
        match self {
            Self::SecretsManager => JSON,
            Self::Sts | Self::Iam => XML,
            Self::EksAuth => PLAIN_JSON,
            Self::Metadata => TEXT,
        }
    }
}

// === impl Refusal ===

impl Refusal {
    pub(crate) fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), status: StatusCode::BAD_REQUEST }
    }

    /// As a fault describes it.
    pub(crate) fn of(code: &str, status: u16, message: &str) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
        Self { status, ..Self::new(code, message) }
    }

    pub(crate) fn forbidden(code: &str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, ..Self::new(code, message) }
    }

    pub(crate) fn internal(service: Service) -> Self {
        let code = match service {
            Service::SecretsManager => "InternalServiceError",
            Service::Sts => "InternalFailure",
            Service::Iam => "ServiceFailure",
            Service::EksAuth => "InternalServerException",
            Service::Metadata => "InternalServerError",
        };
        let message = "An error occurred on the server side.";
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, ..Self::new(code, message) }
    }

    pub(crate) fn throttled(service: Service) -> Self {
        let (code, status) = match service {
            Service::SecretsManager => ("ThrottlingException", StatusCode::BAD_REQUEST),
            Service::Sts | Service::Iam => ("Throttling", StatusCode::BAD_REQUEST),
            Service::EksAuth => ("ThrottlingException", StatusCode::TOO_MANY_REQUESTS),
            Service::Metadata => ("TooManyRequests", StatusCode::TOO_MANY_REQUESTS),
        };
        Self { status, ..Self::new(code, "Rate exceeded") }
    }

    pub(crate) fn expired(service: Service) -> Self {
        let message = "The security token included in the request is expired";
        match service {
            Service::SecretsManager | Service::EksAuth => Self::new("ExpiredTokenException", message),
            Service::Sts | Service::Iam => Self::forbidden("ExpiredToken", message),
            Service::Metadata => Self { status: StatusCode::UNAUTHORIZED, ..Self::new("Unauthorized", message) },
        }
    }
}

// === impl Answer ===

impl Answer {
    fn whole(service: Service, body: String) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: service.content_type(),
            body: body.into_bytes(),
            outcome: "200".to_owned(),
            request_id: identifiers::uuid(),
            header: None,
        }
    }

    pub(crate) fn json(body: &Json) -> Self {
        Self::whole(Service::SecretsManager, body.to_string())
    }

    /// Of the Pod Identity agent.
    pub(crate) fn document(body: &Json) -> Self {
        Self::whole(Service::EksAuth, body.to_string())
    }

    /// Of the metadata service.
    pub(crate) fn text(body: String) -> Self {
        Self::whole(Service::Metadata, body)
    }

    /// `result` is the XML inside `<ActionResult>`.
    pub(crate) fn xml(service: Service, action: &str, result: &str) -> Self {
        let (request_id, namespace) = (identifiers::uuid(), service.namespace());
        let body = format!(
            "<{action}Response xmlns=\"{namespace}\">\
             <{action}Result>{result}</{action}Result>\
             <ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{action}Response>"
        );
        Self { request_id, ..Self::whole(service, body) }
    }

    pub(crate) fn refused(service: Service, refusal: Refusal) -> Self {
        let request_id = identifiers::uuid();
        let (content_type, body) = match service {
            Service::SecretsManager => {
                (JSON, json!({ "__type": refusal.code, "Message": refusal.message }).to_string())
            }
            Service::Sts | Service::Iam => (XML, error_xml(service, &refusal, &request_id)),
            Service::EksAuth => (TEXT, error_text(&refusal, &request_id)),
            Service::Metadata => (HTML, error_html(refusal.status)),
        };
        let Refusal { code, message: _, status } = refusal;
        Self { status, content_type, outcome: code, request_id, ..Self::whole(service, body) }
    }

    /// A body that is not the service's own, under its content type.
    pub(crate) fn verbatim(service: Service, body: String) -> Self {
        Self::whole(service, body)
    }
}

fn error_xml(service: Service, refusal: &Refusal, request_id: &str) -> String {
    let Refusal { code, message, status } = refusal;
    let fault = if status.is_server_error() { "Receiver" } else { "Sender" };
    let (namespace, code, message) = (service.namespace(), escape(code), escape(message));
    format!(
        "<ErrorResponse xmlns=\"{namespace}\"><Error><Type>{fault}</Type>\
         <Code>{code}</Code><Message>{message}</Message></Error>\
         <RequestId>{request_id}</RequestId></ErrorResponse>"
    )
}

/// The agent's own word, or what it makes of an error of EKS Auth.
fn error_text(refusal: &Refusal, request_id: &str) -> String {
    let Refusal { code, message, status } = refusal;
    if code == eks_auth::VALIDATION {
        return format!("{message}\n");
    }
    let fault = if status.is_server_error() { "server" } else { "client" };
    format!("[{request_id}]: ({code}): {message}, fault: {fault}\n")
}

fn error_html(status: StatusCode) -> String {
    let title = format!("{} - {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
    format!(
        "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n\
         <html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n \
         <head>\n  <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n </body>\n</html>\n"
    )
}

/// Text for the inside of an XML element.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
