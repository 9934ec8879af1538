//! What an answer looks like on the wire: JSON 1.1 for Secrets Manager, query XML for STS.

use hyper::StatusCode;
use serde_json::{Value as Json, json};

use crate::identifiers;

/// The two services on the one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Service {
    /// AWS Secrets Manager, JSON 1.1.
    SecretsManager,
    /// AWS Security Token Service, the query protocol.
    Sts,
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
}

const JSON: &str = "application/x-amz-json-1.1";
const XML: &str = "text/xml";

// === impl Service ===

impl Service {
    /// As it stands in a signature's scope and in the front of an IAM action.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SecretsManager => "secretsmanager",
            Self::Sts => "sts",
        }
    }
}

// === impl Refusal ===

impl Refusal {
    pub(crate) fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), status: StatusCode::BAD_REQUEST }
    }

    pub(crate) fn forbidden(code: &str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, ..Self::new(code, message) }
    }

    pub(crate) fn internal(service: Service) -> Self {
        let code = match service {
            Service::SecretsManager => "InternalServiceError",
            Service::Sts => "InternalFailure",
        };
        let message = "An error occurred on the server side.";
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, ..Self::new(code, message) }
    }

    pub(crate) fn throttled(service: Service) -> Self {
        let code = match service {
            Service::SecretsManager => "ThrottlingException",
            Service::Sts => "Throttling",
        };
        Self::new(code, "Rate exceeded")
    }

    pub(crate) fn expired(service: Service) -> Self {
        let message = "The security token included in the request is expired";
        match service {
            Service::SecretsManager => Self::new("ExpiredTokenException", message),
            Service::Sts => Self::forbidden("ExpiredToken", message),
        }
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn json(body: &Json) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: JSON,
            body: body.to_string().into_bytes(),
            outcome: "200".to_owned(),
            request_id: identifiers::uuid(),
        }
    }

    /// `result` is the XML inside `<ActionResult>`.
    pub(crate) fn xml(action: &str, result: &str) -> Self {
        let request_id = identifiers::uuid();
        let body = format!(
            "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <{action}Result>{result}</{action}Result>\
             <ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{action}Response>"
        );
        Self {
            status: StatusCode::OK,
            content_type: XML,
            body: body.into_bytes(),
            outcome: "200".to_owned(),
            request_id,
        }
    }

    pub(crate) fn refused(service: Service, refusal: Refusal) -> Self {
        let Refusal { code, message, status } = refusal;
        let request_id = identifiers::uuid();
        let (content_type, body) = match service {
            Service::SecretsManager => (JSON, json!({ "__type": code, "Message": message }).to_string()),
            Service::Sts => {
                let fault = if status.is_server_error() { "Receiver" } else { "Sender" };
                let (code, message) = (escape(&code), escape(&message));
                let body = format!(
                    "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>{fault}</Type>\
                     <Code>{code}</Code><Message>{message}</Message></Error>\
                     <RequestId>{request_id}</RequestId></ErrorResponse>"
                );
                (XML, body)
            }
        };
        Self { status, content_type, body: body.into_bytes(), outcome: code, request_id }
    }

    /// A body that is not the service's own, under its content type.
    pub(crate) fn verbatim(service: Service, body: String) -> Self {
        let content_type = match service {
            Service::SecretsManager => JSON,
            Service::Sts => XML,
        };
        Self {
            status: StatusCode::OK,
            content_type,
            body: body.into_bytes(),
            outcome: "200".to_owned(),
            request_id: identifiers::uuid(),
        }
    }
}

/// Text for the inside of an XML element.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
