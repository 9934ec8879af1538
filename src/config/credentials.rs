//! Who keytide is in AWS, and where AWS is: chosen from both blocks and the environment, in LiteLLM's order.

use std::path::{Path, PathBuf};

use super::{
    Aws, Credentials, Environment,
    fields::{Field, Region},
    file::Ours,
    findings::{Findings, Given, Place},
    litellm::{AwsSettings, Theirs},
    yaml::{Node, Position},
};
use crate::domain::value::SecretValue;

/// The session's name where nothing names it.
const SESSION_NAME: &str = "keytide";

/// Chooses; none if something is wrong, which is then among the errors.
pub(super) fn choose(config: &Path, ours: &Ours, theirs: &Theirs, findings: &mut Findings<'_>) -> Option<Aws> {
    let region = region(config, ours, theirs, findings);
    let profile = findings.either(theirs.aws.profile.clone(), ours.profile.clone());
    let credentials = credentials(profile, &theirs.aws, findings);
    let plain_http = ours.allow_plain_http;
    let secrets_manager_endpoint =
        endpoint("Secrets Manager", None, "AWS_ENDPOINT_URL_SECRETS_MANAGER", plain_http, findings);
    let sts_endpoint = endpoint("STS", theirs.aws.sts_endpoint.clone(), "AWS_ENDPOINT_URL_STS", plain_http, findings);
    Some(Aws { region: region?, credentials: credentials?, secrets_manager_endpoint, sts_endpoint })
}

fn region(config: &Path, ours: &Ours, theirs: &Theirs, findings: &mut Findings<'_>) -> Option<String> {
    if let Some(given) = findings.either(theirs.aws.region.clone(), ours.region.clone()) {
        return Some(given.value);
    }
    for name in ["AWS_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION"] {
        let Some(region) = findings.environment.set(name) else { continue };
        return match Region::read(&Node::of_text(Position { line: 0, column: 0 }, region)) {
            Ok(Region(region)) => Some(region),
            Err(expected) => {
                findings.error(&Place::environment(name), expected);
                None
            }
        };
    }
    let place = Place { path: "keytide.aws.region".to_owned(), ..Place::file(config) };
    let message = "a region is required: set it here, as aws_region_name in LiteLLM's block, or as AWS_REGION in the \
                   environment";
    // A region that is given and bad was said before.
    if !findings
        .errors
        .iter()
        .any(|error| error.place.path.ends_with("region") || error.place.path.ends_with("region_name"))
    {
        findings.error(&place, message);
    }
    None
}

fn credentials(
    profile: Option<Given<String>>,
    settings: &AwsSettings,
    findings: &mut Findings<'_>,
) -> Option<Credentials> {
    let environment = findings.environment;
    if let Some(role) = &settings.role {
        return of_role(role, settings, findings);
    }
    if let Some(token) = &settings.web_identity_token {
        findings.notice(&token.place, "ignored without aws_role_name, as in LiteLLM");
    }
    if let Some(profile) = profile {
        return Some(of_profile(profile.value, environment));
    }
    let key = pair("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", findings)?;
    if let Some((id, secret)) = key {
        return Some(Credentials::Static {
            access_key_id: id.to_owned(),
            secret_access_key: SecretValue::new(secret.to_owned()),
            session_token: environment.set("AWS_SESSION_TOKEN").map(|token| SecretValue::new(token.to_owned())),
        });
    }
    if let Some((role, token)) = pair("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", findings)? {
        return web_identity(role, &Place::environment("AWS_ROLE_ARN"), token, settings, findings);
    }
    if let Some(profile) = environment.set("AWS_PROFILE") {
        return Some(of_profile(profile.to_owned(), environment));
    }
    let (credentials_file, config_file) = shared_files(environment);
    if credentials_file.is_file() || config_file.is_file() {
        return Some(Credentials::Profile { name: "default".to_owned(), credentials_file, config_file });
    }
    let container = ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"];
    Some(match container.into_iter().find(|name| environment.set(name).is_some()) {
        Some(name) => Credentials::Unsupported {
            reason: format!(
                "this version does not take credentials from a container agent (EKS Pod Identity): {name} is set"
            ),
        },
        None => Credentials::Missing,
    })
}

/// Both variables, or none of them; the half is an error.
#[expect(clippy::option_option, reason = "an error that is noted already, none set, or both")]
fn pair<'e>(one: &str, other: &str, findings: &mut Findings<'e>) -> Option<Option<(&'e str, &'e str)>> {
    let environment = findings.environment;
    match (environment.set(one), environment.set(other)) {
        (Some(one), Some(other)) => Some(Some((one, other))),
        (None, None) => Some(None),
        (first, _) => {
            let (set, missing) = if first.is_some() { (one, other) } else { (other, one) };
            findings.error(&Place::environment(missing), format!("not set, although {set} is: set both or neither"));
            None
        }
    }
}

/// `aws_role_name`: this pod's own role, or one that a token is for.
fn of_role(role: &Given<String>, settings: &AwsSettings, findings: &mut Findings<'_>) -> Option<Credentials> {
    let environment = findings.environment;
    if let Some(token) = &settings.web_identity_token {
        if let Some(id) = &settings.external_id {
            findings.notice(&id.place, "ignored: a web identity has no external id");
        }
        return match token_file(&token.value, environment) {
            Ok(file) => web_identity(&role.value, &role.place, &file, settings, findings),
            Err(reason) => {
                findings.notice(&token.place, reason);
                Some(Credentials::Unsupported { reason: format!("{}: {reason}", token.place) })
            }
        };
    }
    if let (Some(own), Some(token)) = (environment.set("AWS_ROLE_ARN"), environment.set("AWS_WEB_IDENTITY_TOKEN_FILE"))
        && own == role.value
    {
        return web_identity(own, &role.place, token, settings, findings);
    }
    let reason = "this version does not assume a role with other credentials (AssumeRole): only aws_role_name with a \
                  web-identity token, or the pod's own AWS_ROLE_ARN";
    findings.notice(&role.place, reason);
    Some(Credentials::Unsupported { reason: format!("{}: {reason}", role.place) })
}

/// The file that `aws_web_identity_token` means.
fn token_file(setting: &str, environment: &Environment) -> Result<String, &'static str> {
    let path = if let Some(name) = setting.strip_prefix("oidc/env_path/") {
        environment.set(name).ok_or("the environment variable that it names is not set")?
    } else {
        setting.strip_prefix("oidc/file/").unwrap_or(setting)
    };
    if path.starts_with('/') {
        Ok(path.to_owned())
    } else {
        Err(
            "expected an absolute path of a token's file, as it is or after oidc/file/, or oidc/env_path/ and the name of \
             a variable that holds one; a token itself is not taken, since it could not be renewed",
        )
    }
}

fn web_identity(
    role: &str,
    place: &Place,
    token_file: &str,
    settings: &AwsSettings,
    findings: &mut Findings<'_>,
) -> Option<Credentials> {
    if !is_role_arn(role) {
        findings.error(place, "expected the ARN of a role, such as arn:aws:iam::123456789012:role/keytide");
        return None;
    }
    if !token_file.starts_with('/') {
        findings.error(&Place::environment("AWS_WEB_IDENTITY_TOKEN_FILE"), "expected an absolute path");
        return None;
    }
    let named = settings.session_name.as_ref().map(|given| (given.value.as_str(), given.place.clone()));
    let of_variable = findings.environment.set("AWS_ROLE_SESSION_NAME");
    let (session_name, place) = named
        .or(of_variable.map(|name| (name, Place::environment("AWS_ROLE_SESSION_NAME"))))
        .unwrap_or((SESSION_NAME, place.clone()));
    let legal = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    if !(2..=64).contains(&session_name.len()) || !session_name.chars().all(legal) {
        findings.error(&place, "expected the name of a session: 2 to 64 of A-Z a-z 0-9 _ + = , . @ -");
        return None;
    }
    Some(Credentials::WebIdentity {
        role_arn: role.to_owned(),
        session_name: session_name.to_owned(),
        token_file: token_file.into(),
    })
}

fn is_role_arn(text: &str) -> bool {
    let mut parts = text.splitn(6, ':');
    let mut next = || parts.next().unwrap_or_default();
    let (arn, partition, service, region, account, resource) = (next(), next(), next(), next(), next(), next());
    arn == "arn"
        && partition.starts_with("aws")
        && service == "iam"
        && region.is_empty()
        && account.len() == 12
        && account.bytes().all(|b| b.is_ascii_digit())
        && resource.strip_prefix("role/").is_some_and(|name| !name.is_empty())
        && text.chars().all(|c| c.is_ascii_graphic())
        && text.len() <= 2048
}

fn of_profile(name: String, environment: &Environment) -> Credentials {
    let (credentials_file, config_file) = shared_files(environment);
    Credentials::Profile { name, credentials_file, config_file }
}

/// AWS's shared files, credentials first.
fn shared_files(environment: &Environment) -> (PathBuf, PathBuf) {
    let home = Path::new(environment.set("HOME").unwrap_or("/"));
    let file = |variable: &str, default: &str| {
        environment.set(variable).map_or_else(|| home.join(".aws").join(default), PathBuf::from)
    };
    (file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), file("AWS_CONFIG_FILE", "config"))
}

/// The endpoint of a service: the setting, the service's variable, or everyone's. Each is said, since it decides who sees
/// the secrets.
fn endpoint(
    service: &str,
    setting: Option<Given<String>>,
    variable: &str,
    plain_http: bool,
    findings: &mut Findings<'_>,
) -> Option<String> {
    let environment = findings.environment;
    let ignored =
        environment.set("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let of_variable = |name: &str| {
        let value = environment.set(name).filter(|_| !ignored)?.to_owned();
        Some(Given { value, place: Place::environment(name) })
    };
    let given = setting.or_else(|| of_variable(variable)).or_else(|| of_variable("AWS_ENDPOINT_URL"))?;
    match check_endpoint(&given.value, plain_http) {
        Ok(()) => {
            findings.notice(&given.place, &format!("{service} is called at this endpoint, not at AWS's own"));
            Some(given.value)
        }
        Err(expected) => {
            // One variable serves two services.
            if !findings.errors.iter().any(|error| error.place == given.place) {
                findings.error(&given.place, expected);
            }
            None
        }
    }
}

fn check_endpoint(url: &str, plain_http: bool) -> Result<(), &'static str> {
    const EXPECTED: &str = "expected an http or https URL without a user, a query or a fragment";
    let (scheme, rest) = url.split_once("://").ok_or(EXPECTED)?;
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or(EXPECTED)?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let legal = url.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '@' | '\\'));
    let port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    if !legal || !port || host.is_empty() {
        return Err(EXPECTED);
    }
    let loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    match scheme {
        "https" => Ok(()),
        "http" if plain_http || loopback => Ok(()),
        "http" => Err("plain http only to this machine: expected https, or keytide.aws.allow_plain_http: true"),
        _ => Err(EXPECTED),
    }
}
