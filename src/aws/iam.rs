//! One question to IAM: whether the policies of a role would allow something. By hand, since the SDK's crate for IAM is larger
//! than all else here, and `check --simulate` is the only one who asks.

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4::SigningParams,
};
use aws_smithy_runtime_api::client::{http::HttpConnector as _, orchestrator::HttpRequest};
use aws_smithy_types::{body::SdkBody, byte_stream::ByteStream};
use tokio::time::{Instant, timeout};

use super::{auth::Auth, client::Connection, outcome::Failure};
use crate::{
    domain::{
        identity::partition_of,
        snapshot::{Problem, Reason},
    },
    metrics::CallOutcome,
};

const ACTION: &str = "SimulatePrincipalPolicy";
const FORM: &str = "application/x-www-form-urlencoded";

/// What IAM would say to one action on one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The action.
    pub action: String,
    /// The resource.
    pub resource: String,
    /// Whether the policies allow it. Policies of the resource and of the organisation are not looked at.
    pub allowed: bool,
}

/// Asks for every one of these actions on every one of these resources. `source` is the ARN of a role or a user.
///
/// # Errors
/// If IAM does not answer, or does not allow the question (`iam:SimulatePrincipalPolicy` on the source).
pub async fn simulate(
    connection: &Connection,
    endpoint: Option<&str>,
    auth: &Auth,
    source: &str,
    actions: &[&str],
    resources: &[String],
) -> Result<Vec<Decision>, Problem> {
    let mut form = vec![("Action", ACTION.to_owned()), ("Version", "2010-05-08".to_owned())];
    form.push(("PolicySourceArn", source.to_owned()));
    let numbered = |list: &str, i: usize| format!("{list}.member.{}", i + 1);
    let mut fields: Vec<(String, String)> = form.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    fields.extend(actions.iter().enumerate().map(|(i, action)| (numbered("ActionNames", i), (*action).to_owned())));
    fields.extend(resources.iter().enumerate().map(|(i, arn)| (numbered("ResourceArns", i), arn.clone())));
    let body: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    let began = Instant::now();
    let credentials = auth.credentials().await?;
    let asked = ask(connection, endpoint, &credentials, body.join("&"));
    let answer = match timeout(connection.call_timeout(), asked).await {
        Ok(answer) => answer,
        Err(_) => Err(unavailable("no answer in time")),
    };
    let answer = answer.and_then(|(status, text)| read(status, &text, source, &auth.who()));
    let outcome = answer.as_ref().map_or_else(|problem| CallOutcome::Failed(problem.reason), |_| CallOutcome::Ok);
    connection.metrics().aws_request("IAM", ACTION, outcome, began.elapsed().as_secs_f64());
    answer
}

async fn ask(
    connection: &Connection,
    endpoint: Option<&str>,
    credentials: &Credentials,
    body: String,
) -> Result<(u16, String), Problem> {
    let unbuilt = || Problem::new(Reason::Unknown, format!("failed to call {ACTION}: the request could not be built"));
    let region = connection.config().region().map(ToString::to_string).unwrap_or_default();
    let (own, region) = global(&region, connection.config().use_fips().unwrap_or(false))
        .or_else(|| endpoint.map(|url| (url, "us-east-1")))
        .ok_or_else(|| {
            let message = "the endpoint of IAM is not known in this partition: give it as aws.endpoint_url.iam";
            Problem::new(Reason::Refused, format!("failed to call {ACTION}: {message}"))
        })?;
    let url = format!("{}/", endpoint.unwrap_or(own).trim_end_matches('/'));
    let identity = credentials.clone().into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("iam")
        .time(connection.clock().now())
        .settings(SigningSettings::default())
        .build()
        .map_err(|_| unbuilt())?;
    let headers = [("content-type", FORM)].into_iter();
    let signable = SignableRequest::new("POST", url.as_str(), headers, SignableBody::Bytes(body.as_bytes()));
    let (instructions, _) = sign(signable.map_err(|_| unbuilt())?, &params.into()).map_err(|_| unbuilt())?.into_parts();
    let length = body.len().to_string();
    let mut request = HttpRequest::new(SdkBody::from(body));
    request.set_method("POST").map_err(|_| unbuilt())?;
    request.set_uri(url).map_err(|_| unbuilt())?;
    request.headers_mut().insert("content-type", FORM);
    request.headers_mut().insert("content-length", length);
    for (name, value) in instructions.headers() {
        request.headers_mut().insert(name.to_owned(), value.to_owned());
    }
    let answer = connection.connector().call(request).await.map_err(|_| unavailable("no connection"))?;
    let status = answer.status().as_u16();
    let body = ByteStream::new(answer.into_body()).collect().await.map_err(|_| unavailable("the connection ended"))?;
    Ok((status, String::from_utf8_lossy(&body.into_bytes()).into_owned()))
}

fn read(status: u16, text: &str, source: &str, who: &str) -> Result<Vec<Decision>, Problem> {
    if status != 200 {
        let failure = Failure::of_code(elements(text, "Code").next());
        let advice = match failure.reason {
            Reason::Denied => format!(": allow iam:{ACTION} on {source} to {who}, or leave --simulate out"),
            _ if failure.code == "NoSuchEntity" => {
                ": STS does not say the path of a role; give the whole ARN as expect_role".to_owned()
            }
            _ => String::new(),
        };
        return Err(Problem::new(
            failure.reason,
            format!("failed to call {ACTION} for {source} ({}){advice}", failure.code),
        ));
    }
    let decisions = elements(text, "member").filter_map(|member| {
        let of = |name| elements(member, name).next();
        Some(Decision {
            action: of("EvalActionName")?.to_owned(),
            resource: of("EvalResourceName")?.to_owned(),
            allowed: of("EvalDecision")? == "allowed",
        })
    });
    Ok(decisions.collect())
}

/// The text inside each outermost element of this name; elements of the same name may lie in it, as AWS's `member` does.
fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let (_, inside) = rest.split_once(&open)?;
        let (mut depth, mut length) = (1_u32, 0);
        while depth > 0 {
            let ahead = inside.get(length..)?;
            let end = ahead.find(&close)?;
            let (step, deeper) = match ahead.find(&open) {
                Some(begin) if begin < end => (begin + open.len(), true),
                _ => (end + close.len(), false),
            };
            depth = if deeper { depth + 1 } else { depth - 1 };
            length += step;
        }
        rest = inside.get(length..)?;
        inside.get(..length - close.len())
    })
}

/// IAM has one endpoint a partition, in one region (AWS General Reference, IAM endpoints).
fn global(region: &str, fips: bool) -> Option<(&'static str, &'static str)> {
    match partition_of(region) {
        "aws" if fips => Some(("https://iam-fips.amazonaws.com", "us-east-1")),
        "aws" => Some(("https://iam.amazonaws.com", "us-east-1")),
        "aws-cn" => Some(("https://iam.cn-north-1.amazonaws.com.cn", "cn-north-1")),
        "aws-us-gov" => Some(("https://iam.us-gov.amazonaws.com", "us-gov-west-1")),
        _ => None,
    }
}

fn unavailable(what: &str) -> Problem {
    Problem::new(Reason::Unavailable, format!("failed to call {ACTION}: {what}"))
}

/// Percent-encoded, all but the unreserved characters (RFC 3986, 2.3).
fn encoded(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_a_refusal_is_told() {
        // As AWS documents it: members in members, and the decision behind them.
        let answer = "<R><EvaluationResults><member><MatchedStatements><member><SourcePolicyId>p</SourcePolicyId></member>\
                      <member/></MatchedStatements><MissingContextValues/><EvalResourceName>*</EvalResourceName>\
                      <EvalDecision>allowed</EvalDecision><EvalActionName>a:B</EvalActionName></member><member>\
                      <EvalActionName>a:C</EvalActionName><EvalResourceName>*</EvalResourceName>\
                      <EvalDecision>explicitDeny</EvalDecision></member></EvaluationResults></R>";
        let decision =
            |action: &str, allowed| Decision { action: action.to_owned(), resource: "*".to_owned(), allowed };
        assert_eq!(read(200, answer, "arn", "me").unwrap(), [decision("a:B", true), decision("a:C", false)]);
        assert_eq!(read(200, "<member><member></member>", "arn", "me").unwrap(), []);
        let problem = read(403, "<E><Code>AccessDenied</Code></E>", "arn", "me").unwrap_err();
        assert_eq!(problem.reason, Reason::Denied);
        assert!(problem.message.contains("allow iam:SimulatePrincipalPolicy on arn to me"), "{problem}");
    }

    #[test]
    fn what_is_sent_is_encoded() {
        assert_eq!(encoded("a:*/é~"), "a%3A%2A%2F%C3%A9~");
    }
}
