//! Where AWS is: the region, endpoints other than AWS's own, and what else decides who sees the secrets.

use std::{
    net::Ipv6Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Endpoints, Network,
    aws::OurAws,
    fields::{Field, Region},
    findings::{Findings, Given, Place},
    litellm::AwsSettings,
    yaml::{Node, Position},
};
use crate::domain::value::SecretValue;

/// The SDK's own since 2026.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(3100);

/// What the names of AWS's endpoints end in.
const OF_AWS: [&str; 8] = [
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".amazonaws.eu",
    ".api.aws",
    ".api.amazonwebservices.com.cn",
    ".c2s.ic.gov",
    ".sc2s.sgov.gov",
    ".csp.hci.ic.gov",
];

/// A service, as its settings are called.
struct Service {
    name: &'static str,
    variable: &'static str,
}

/// For all services.
const EVERYWHERE: &str = "AWS_ENDPOINT_URL";
const SECRETS_MANAGER: Service = Service { name: "Secrets Manager", variable: "AWS_ENDPOINT_URL_SECRETS_MANAGER" };
const STS: Service = Service { name: "STS", variable: "AWS_ENDPOINT_URL_STS" };
const IAM: Service = Service { name: "IAM", variable: "AWS_ENDPOINT_URL_IAM" };

/// The region; none if there is none or it is bad, which is then among the errors.
pub(super) fn region(
    config: &Path,
    ours: &OurAws,
    theirs: &AwsSettings,
    findings: &mut Findings<'_>,
) -> Option<String> {
    if let Some(given) = findings.either(theirs.region.clone(), ours.region.clone()) {
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

/// The endpoints, and in a sentence each what is not AWS's own; each is a notice as well.
pub(super) fn choose(
    region: Option<&str>,
    ours: &OurAws,
    theirs: &AwsSettings,
    findings: &mut Findings<'_>,
) -> (Endpoints, Vec<String>) {
    let mut said = Vec::new();
    let sts = findings.either(theirs.sts_endpoint.clone(), ours.sts.clone());
    let plain_http = ours.allow_plain_http;
    let mut endpoint = |service, setting| endpoint(&service, setting, plain_http, &mut said, findings);
    let secrets_manager = endpoint(SECRETS_MANAGER, ours.secrets_manager.clone());
    let sts = endpoint(STS, sts);
    let iam = endpoint(IAM, ours.iam.clone());
    let fips = choice(ours.fips.as_ref(), "AWS_USE_FIPS_ENDPOINT", findings);
    let dual_stack = choice(ours.dual_stack.as_ref(), "AWS_USE_DUALSTACK_ENDPOINT", findings);
    let sts_region = sts.as_deref().and_then(region_of_sts).filter(|sts| Some(*sts) != region).map(str::to_owned);
    if let Some(place) = fips.as_ref().or(dual_stack.as_ref())
        && (secrets_manager.is_some() || sts.is_some())
    {
        let message = "an endpoint of one's own is called as it is: take either the endpoints or this setting out";
        findings.error(place, message);
    }
    for (place, kind) in [(&fips, "FIPS"), (&dual_stack, "dual-stack")] {
        if let Some(place) = place {
            say(&format!("AWS is called at its {kind} endpoints"), place, &mut said, findings);
        }
    }
    let endpoints =
        Endpoints { secrets_manager, sts, sts_region, iam, fips: fips.is_some(), dual_stack: dual_stack.is_some() };
    (endpoints, said)
}

/// How AWS is reached: what curl, botocore and the SDKs call it. What decides who sees the secrets is said.
pub(super) fn network(ours: &OurAws, said: &mut Vec<String>, findings: &mut Findings<'_>) -> Network {
    let proxy = first(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"], findings);
    let proxy = proxy.and_then(|Given { value, place }| match check_proxy(&value) {
        Ok(address) => {
            say(&format!("AWS is called through the proxy {address}"), &place, said, findings);
            let url = if value.contains("://") { value } else { format!("http://{value}") };
            Some(SecretValue::new(url))
        }
        Err(expected) => {
            findings.error(&place, expected);
            None
        }
    });
    let no_proxy = first(&["no_proxy", "NO_PROXY"], findings).map(|given| given.value);
    for variable in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        if findings.environment.get(variable) == Some("") {
            // The TLS library takes that for a place, and would trust nobody.
            findings.error(&Place::environment(variable), "set to nothing: name certificates, or unset it");
        }
    }
    let mut certificates = |variable: &str, what: &str| {
        let path = findings.environment.set(variable)?;
        let sentence = format!("the certificates of {path} are trusted {what}");
        say(&sentence, &Place::environment(variable), said, findings);
        Some(PathBuf::from(path))
    };
    let trusted = certificates("SSL_CERT_FILE", "instead of the system's");
    let trusted_directory = certificates("SSL_CERT_DIR", "instead of the system's");
    let ca_bundle = certificates("AWS_CA_BUNDLE", "as well");
    let connect_timeout = ours.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
    Network { connect_timeout, proxy, no_proxy, trusted, trusted_directory, ca_bundle }
}

fn say(sentence: &str, place: &Place, said: &mut Vec<String>, findings: &mut Findings<'_>) {
    findings.notice(place, sentence);
    said.push(format!("{sentence} ({place})"));
}

/// The first of these variables that is set.
fn first(variables: &[&str], findings: &Findings<'_>) -> Option<Given<String>> {
    variables.iter().find_map(|name| {
        let value = findings.environment.set(name)?.to_owned();
        Some(Given { value, place: Place::environment(name) })
    })
}

/// The proxy's address without what may be in front of it, a user and a password.
fn check_proxy(url: &str) -> Result<&str, &'static str> {
    const EXPECTED: &str = "expected the http or https URL of a proxy, such as http://proxy.example.com:3128, with user \
                            and password percent-encoded";
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (user, address) = rest.rsplit_once('@').unwrap_or(("", rest));
    let of = |text: &str, more: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c));
    let (host, port) = host_and_port(address).ok_or(EXPECTED)?;
    let six = address.starts_with('[');
    let host = if six { host.parse::<Ipv6Addr>().is_ok() } else { !host.is_empty() && of(host, "-._") };
    let port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok_and(|n| n > 0));
    // What the HTTP client cannot parse, it takes for no proxy at all.
    let legal = matches!(scheme, "http" | "https") && host && port && of(user, "-._~!$&'()*+,;=:%");
    if legal { Ok(address) } else { Err(EXPECTED) }
}

/// Where a choice is made with yes, if it is.
fn choice(setting: Option<&Given<bool>>, variable: &str, findings: &mut Findings<'_>) -> Option<Place> {
    if let Some(given) = setting {
        return given.value.then(|| given.place.clone());
    }
    let place = Place::environment(variable);
    match findings.environment.set(variable)?.to_ascii_lowercase().as_str() {
        "true" => Some(place),
        "false" => None,
        _ => {
            findings.error(&place, "expected true or false");
            None
        }
    }
}

/// The endpoint of a service: the setting, the service's variable, or everyone's. Each is said, since it decides who sees
/// the secrets.
fn endpoint(
    service: &Service,
    setting: Option<Given<String>>,
    plain_http: bool,
    said: &mut Vec<String>,
    findings: &mut Findings<'_>,
) -> Option<String> {
    let environment = findings.environment;
    let ignored =
        environment.set("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    let of_variable = |name: &str| {
        let value = environment.set(name).filter(|_| !ignored)?.to_owned();
        Some(Given { value, place: Place::environment(name) })
    };
    let given = setting.or_else(|| of_variable(service.variable)).or_else(|| of_variable(EVERYWHERE))?;
    match check_endpoint(&given.value, plain_http) {
        Ok(()) => {
            let sentence = format!("{} is called at {}, not at AWS's own endpoint", service.name, given.value);
            // Nobody asks IAM without being told to; the variable for all is said for the others.
            if service.variable != IAM.variable || given.place != Place::environment(EVERYWHERE) {
                say(&sentence, &given.place, said, findings);
            }
            Some(given.value)
        }
        Err(expected) => {
            // One variable serves several services.
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
    let (host, port) = host_and_port(authority).ok_or(EXPECTED)?;
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

/// The host of an authority (RFC 3986, 3.2), without the brackets of an IPv6 address, and what is behind it: nothing, or a
/// colon and a port. None if a bracket is not closed.
pub(super) fn host_and_port(authority: &str) -> Option<(&str, &str)> {
    match authority.strip_prefix('[') {
        Some(six) => six.split_once(']'),
        None => Some(authority.split_at(authority.find(':').unwrap_or(authority.len()))),
    }
}

/// The region that an endpoint of STS belongs to, where its name says so: requests to it are signed for that region.
fn region_of_sts(url: &str) -> Option<&str> {
    let host = url.split_once("://")?.1.split(['/', ':']).next()?;
    if host == "sts.amazonaws.com" {
        return Some("us-east-1");
    }
    // sts.REGION.amazonaws.com, sts-fips.REGION.…, sts.REGION.api.aws, vpce-….sts.REGION.vpce.amazonaws.com
    let mut labels = host.split('.').filter(|_| OF_AWS.iter().any(|domain| host.ends_with(domain)));
    labels.find(|label| matches!(*label, "sts" | "sts-fips"))?;
    labels.next().filter(|label| label.bytes().any(|b| b.is_ascii_digit()) && label.contains('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_of_a_proxy_is_not_part_of_its_address() {
        for (url, address) in [
            ("http://proxy.example.com:3128", Some("proxy.example.com:3128")),
            ("proxy:3128", Some("proxy:3128")),
            ("https://user:pass%40word@[::1]:3128/", Some("[::1]:3128")),
            ("http://user:p@ss@proxy", None),
            ("http://user:p ss@proxy", None),
            ("http://user:p/ss@proxy", None),
            ("socks5://proxy:1080", None),
            ("http://", None),
            ("http://proxy/path", None),
            ("http://proxy:port", None),
            ("http://proxy:99999", None),
            ("http://:3128", None),
            ("http://[]:3128", None),
            ("http://[::1", None),
            ("http://::1:3128", None),
            ("http://a]b:3128", None),
        ] {
            assert_eq!(check_proxy(url).ok(), address, "{url}");
        }
    }

    #[test]
    fn the_name_of_an_sts_says_its_region() {
        for (url, region) in [
            ("https://sts.eu-west-1.amazonaws.com", Some("eu-west-1")),
            ("https://sts.amazonaws.com/", Some("us-east-1")),
            ("https://sts-fips.us-gov-west-1.amazonaws.com", Some("us-gov-west-1")),
            ("https://sts.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
            ("https://vpce-0abc-1.sts.eu-central-1.vpce.amazonaws.com", Some("eu-central-1")),
            ("https://sts.example.com", None),
            ("https://sts.prod-1.example.com", None),
            ("http://127.0.0.1:4566", None),
        ] {
            assert_eq!(region_of_sts(url), region, "{url}");
        }
    }
}
