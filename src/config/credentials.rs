//! Who keytide is in AWS: chosen from both blocks and the environment, in LiteLLM's order.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Container, Credentials, Environment, Identity, Profile, StaticKeys, Token,
    aws::{AskedRole, OurAws, OurWriter},
    endpoints::host_and_port,
    fields::{Field, SessionName},
    findings::{Findings, Given, Place},
    litellm::AwsSettings,
    yaml::{Node, Position},
};
use crate::domain::{
    identity::{Expected, Role, RoleArn},
    value::SecretValue,
};

/// The session's name where nothing names it.
const SESSION_NAME: &str = "keytide";
const ROLE_SESSION_NAME: &str = "AWS_ROLE_SESSION_NAME";
const ROLE_ARN: &str = "AWS_ROLE_ARN";
const TOKEN_FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
/// The longest session of a role that another role assumed (STS, `AssumeRole`: role chaining).
const LONGEST_CHAINED: Duration = Duration::from_hours(1);
/// Where the agents of ECS and of EKS Pod Identity listen (AWS SDKs and tools, container credential provider).
const AGENTS: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
];
/// Where the instance metadata service listens (EC2, IMDS).
const METADATA: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))];

/// What an identity is to be, where it begins, and how it is proved.
struct Asked<'a> {
    roles: &'a [Given<AskedRole>],
    token: Option<Given<Token>>,
    expected: Option<&'a Given<Expected>>,
}

/// What both identities begin with, where their own blocks do not say otherwise.
#[derive(Debug)]
struct Beginning {
    /// Taken before anything that the environment gives.
    profile: Option<Given<String>>,
    session_name: String,
    allow_instance_role: bool,
}

/// Something is wrong, and is among the errors.
#[derive(Debug)]
struct Noted;

/// Who reads, and who writes if that is somebody else; none if something is wrong, which is then among the errors.
pub(super) fn choose(
    ours: &OurAws,
    writer: Option<&OurWriter>,
    theirs: &AwsSettings,
    findings: &mut Findings<'_>,
) -> Option<(Identity, Option<Identity>)> {
    let errors = findings.errors.len();
    let session_name = session_name(theirs, findings);
    let their_role =
        theirs.role.as_ref().map(|role| Given { value: vec![of_setting(role, theirs)], place: role.place.clone() });
    let is_theirs = their_role.is_some();
    let mut their_token =
        theirs.web_identity_token.as_ref().and_then(|setting| their_token(setting, is_theirs, findings));
    if let Some(id) = theirs.external_id.as_ref().filter(|_| their_token.is_some()) {
        let message = "the token is not used, since a web identity has no external id: the role is assumed from what the \
                       environment gives";
        findings.notice(&id.place, message);
        their_token = None;
    }
    let mut their_profile = theirs.profile.clone();
    if let Some(profile) = their_profile.take_if(|_| is_theirs) {
        findings.notice(&profile.place, "ignored beside aws_role_name, as in LiteLLM; keytide.aws.profile is not");
    }
    let roles = findings.either(their_role, ours.roles.clone()).map(|given| given.value).unwrap_or_default();
    let our_token = ours.token_file.clone().map(|given| given.map(Token::File));
    let token = findings.either(their_token, our_token);
    let profile = findings.either(their_profile, ours.profile.clone());
    let beginning = Beginning { profile, session_name, allow_instance_role: ours.allow_instance_role };
    let writer = writer.map(|writer| {
        let own = writer.token_file.clone().map(|given| given.map(Token::File));
        let token = own
            .or_else(|| token.as_ref().map(|given| Given { value: given.value.share(), place: given.place.clone() }));
        Asked { roles: &writer.roles, token, expected: writer.expected.as_ref() }
    });
    let reader = Asked { roles: &roles, token, expected: ours.expected.as_ref() };
    let reader = reader.identity(&beginning, findings);
    // What is wrong with the environment is wrong for both, and said once.
    let said = findings.notices.len();
    let writer = writer.map(|writer| writer.identity(&beginning, findings)).transpose();
    findings.notices.truncate(said);
    findings.unite_errors();
    match (reader, writer) {
        (Ok(reader), Ok(writer)) if findings.errors.len() == errors => Some((reader, writer)),
        _ => None,
    }
}

// === impl Asked ===

impl Asked<'_> {
    fn identity(self, beginning: &Beginning, findings: &mut Findings<'_>) -> Result<Identity, Noted> {
        let Self { roles, token, expected } = self;
        let Beginning { profile, session_name, allow_instance_role: _ } = beginning;
        let role = |asked: &AskedRole| {
            let AskedRole {
                arn,
                session_name: named,
                external_id,
                session_tags,
                transitive_tag_keys,
                duration,
                from_litellm: _,
            } = asked.clone();
            let session_name = named.unwrap_or_else(|| session_name.clone());
            Role { arn, session_name, external_id, session_tags, transitive_tag_keys, duration }
        };
        let own = findings.environment.set(ROLE_ARN).zip(findings.environment.set(TOKEN_FILE));
        let own = own.filter(|_| profile.is_none());
        let (base, rest) = match (roles.split_first(), token, own) {
            (Some((first, rest)), Some(token), _) => {
                if let Some(profile) = profile {
                    let message = "a chain begins with a profile or with a web identity token: take one of them out";
                    findings.error(&profile.place, message);
                }
                refuse_for_web_identity(first, findings);
                (Credentials::WebIdentity { role: role(&first.value), token: token.value }, rest)
            }
            // The pod's own role is not assumed from itself.
            (Some((first, rest)), None, Some((arn, file))) if arn == first.value.arn.as_str() => {
                if first.value.from_litellm && first.value.external_id.is_some() {
                    let message =
                        "the external id is not used: the role is AWS_ROLE_ARN, for which the pod has a token";
                    findings.notice(&first.place, message);
                } else {
                    refuse_for_web_identity(first, findings);
                }
                if static_keys(findings)?.is_some() {
                    let message = "static keys are not used: the role is AWS_ROLE_ARN, for which the pod has a token";
                    findings.notice(&Place::environment(ACCESS_KEY_ID), message);
                }
                let token = token_file(file, &Place::environment(TOKEN_FILE), findings)?;
                (Credentials::WebIdentity { role: role(&first.value), token }, rest)
            }
            (_, token, _) => {
                if let Some(token) = token {
                    findings.error(&token.place, "a token is exchanged for a role: give it in roles");
                }
                (ambient(beginning, findings)?, roles)
            }
        };
        let temporary = match &base {
            Credentials::WebIdentity { .. } | Credentials::Container(_) | Credentials::Instance(_) => true,
            Credentials::Static(keys) => keys.session_token.is_some(),
            Credentials::Profile(_) | Credentials::Missing => false,
        };
        for (i, asked) in rest.iter().enumerate() {
            if (temporary || i > 0) && asked.value.duration.is_some_and(|duration| duration > LONGEST_CHAINED) {
                let message = "expected a session_duration of at most 1h: AWS ends the session of a role that was assumed \
                               with temporary credentials after an hour";
                findings.error(&asked.place, message);
            }
        }
        let identity = Identity {
            base,
            roles: rest.iter().map(|asked| role(&asked.value)).collect(),
            expected: expected.map(|given| given.value.clone()).unwrap_or_default(),
        };
        if let (Some(expected), Some(last)) = (expected, identity.all_roles().last()) {
            check_expected(expected, &last.arn, findings);
        }
        Ok(identity)
    }
}

/// What the configuration itself shows to be somebody else is refused before anybody is asked.
fn check_expected(expected: &Given<Expected>, last: &RoleArn, findings: &mut Findings<'_>) {
    if !expected.value.may_be(last) {
        let message = format!("expects {}, but the configured role is {last}", expected.value);
        findings.error(&expected.place, message);
    }
}

fn refuse_for_web_identity(role: &Given<AskedRole>, findings: &mut Findings<'_>) {
    if role.value.external_id.is_some() {
        findings.error(
            &role.place,
            "a role that is assumed with a web-identity token has no external_id: take one of them out",
        );
    }
    if !role.value.session_tags.is_empty() {
        let message = "a role that is assumed with a web-identity token has no session_tags: they are in the token";
        findings.error(&role.place, message);
    }
}

/// LiteLLM's `aws_role_name`, with the settings that belong to it.
fn of_setting(role: &Given<RoleArn>, theirs: &AwsSettings) -> Given<AskedRole> {
    let value = AskedRole {
        arn: role.value.clone(),
        session_name: theirs.session_name.as_ref().map(|given| given.value.clone()),
        external_id: theirs.external_id.as_ref().map(|given| given.value.clone()),
        session_tags: Vec::new(),
        transitive_tag_keys: Vec::new(),
        duration: None,
        from_litellm: true,
    };
    Given { value, place: role.place.clone() }
}

/// The name of sessions that no setting names.
fn session_name(theirs: &AwsSettings, findings: &mut Findings<'_>) -> String {
    match named(theirs, findings) {
        Ok(name) => name.to_owned(),
        Err(expected) => {
            findings.error(&Place::environment(ROLE_SESSION_NAME), expected);
            SESSION_NAME.to_owned()
        }
    }
}

/// The name of a team's session. What is wrong with it is said where the others are chosen.
pub(super) fn team_session_name(theirs: &AwsSettings, findings: &Findings<'_>) -> String {
    named(theirs, findings).unwrap_or(SESSION_NAME).to_owned()
}

/// The name that LiteLLM's block or the environment gives them, or ours.
fn named<'a>(theirs: &'a AwsSettings, findings: &Findings<'a>) -> Result<&'a str, Cow<'static, str>> {
    if let Some(name) = &theirs.session_name {
        return Ok(&name.value);
    }
    let Some(name) = findings.environment.set(ROLE_SESSION_NAME) else { return Ok(SESSION_NAME) };
    SessionName::read(&Node::of_text(Position { line: 0, column: 0 }, name)).map(|_| name)
}

/// What the environment gives, the setting of a profile before it.
fn ambient(beginning: &Beginning, findings: &mut Findings<'_>) -> Result<Credentials, Noted> {
    let Beginning { profile, session_name, allow_instance_role } = beginning;
    let environment = findings.environment;
    if let Some(profile) = profile {
        return of_profile(&profile.value, beginning, findings);
    }
    let keys = static_keys(findings)?;
    let irsa = pair(ROLE_ARN, TOKEN_FILE, findings)?;
    if let Some(keys) = keys {
        if irsa.is_some() {
            let message =
                "static keys are used, although AWS_ROLE_ARN names a role: unset this variable to be the role";
            findings.notice(&Place::environment(ACCESS_KEY_ID), message);
        }
        return Ok(Credentials::Static(keys));
    }
    let named = environment.set("AWS_PROFILE");
    if let Some((arn, file)) = irsa {
        if named.is_some() {
            let message = "not used, since AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE are set";
            findings.notice(&Place::environment("AWS_PROFILE"), message);
        }
        let token = token_file(file, &Place::environment(TOKEN_FILE), findings);
        let Some(arn) = RoleArn::parse(arn) else {
            findings.error(&Place::environment(ROLE_ARN), RoleArn::EXPECTED);
            return Err(Noted);
        };
        return Ok(Credentials::WebIdentity { role: Role::plain(arn, session_name.clone()), token: token? });
    }
    if let Some(name) = named {
        return of_profile(name, beginning, findings);
    }
    // Somebody set its variable for this process; the files may be there for something else.
    if let Some(container) = container(findings)? {
        return Ok(Credentials::Container(container));
    }
    let (credentials_file, config_file) = shared_files(environment);
    if credentials_file.is_file() || config_file.is_file() {
        return of_profile("default", beginning, findings);
    }
    let instance = if *allow_instance_role { instance(findings)? } else { None };
    Ok(instance.map_or(Credentials::Missing, Credentials::Instance))
}

/// The static keys of the environment.
fn static_keys(findings: &mut Findings<'_>) -> Result<Option<StaticKeys>, Noted> {
    let pair = pair(ACCESS_KEY_ID, "AWS_SECRET_ACCESS_KEY", findings)?;
    let session_token = findings.environment.set("AWS_SESSION_TOKEN");
    let Some((id, secret)) = pair else { return Ok(None) };
    let keys = StaticKeys {
        access_key_id: id.to_owned(),
        secret_access_key: SecretValue::new(secret.to_owned()),
        session_token: session_token.map(|token| SecretValue::new(token.to_owned())),
    };
    if keys.is_legal() {
        return Ok(Some(keys));
    }
    let message = "this, AWS_SECRET_ACCESS_KEY or AWS_SESSION_TOKEN holds what no key holds, such as a space or a line break at \
                   its end";
    findings.error(&Place::environment(ACCESS_KEY_ID), message);
    Err(Noted)
}

/// Both variables, or none of them; the half is an error.
fn pair<'e>(one: &str, other: &str, findings: &mut Findings<'e>) -> Result<Option<(&'e str, &'e str)>, Noted> {
    let environment = findings.environment;
    match (environment.set(one), environment.set(other)) {
        (Some(one), Some(other)) => Ok(Some((one, other))),
        (None, None) => Ok(None),
        (first, _) => {
            let (set, missing) = if first.is_some() { (one, other) } else { (other, one) };
            findings.error(&Place::environment(missing), format!("not set, although {set} is: set both or neither"));
            Err(Noted)
        }
    }
}

/// The token that `aws_web_identity_token` means: a path, LiteLLM's references to one, or the token itself.
fn their_token(setting: &Given<String>, has_role: bool, findings: &mut Findings<'_>) -> Option<Given<Token>> {
    const NOT_SET: &str = "the environment variable that it names is not set";
    let (text, place) = (setting.value.as_str(), &setting.place);
    let environment = findings.environment;
    let named = |name: &str| environment.set(name).ok_or(NOT_SET);
    let meant = if let Some(name) = text.strip_prefix("oidc/env_path/").or_else(|| text.strip_prefix("oidc/env/")) {
        named(name)
    } else {
        Ok(text.strip_prefix("oidc/file/").unwrap_or(text))
    };
    let token = meant.and_then(|meant| {
        if meant.starts_with('/') {
            Ok(Token::File(PathBuf::from(meant)))
        } else if meant.split('.').filter(|part| !part.is_empty()).count() == 3 && !meant.contains('/') {
            Ok(Token::Text(SecretValue::new(meant.to_owned())))
        } else {
            Err("expected the absolute path of a token's file, as it is, after oidc/file/ or in the variable that \
                 oidc/env_path/ names; or a token, as it is or in the variable that oidc/env/ names")
        }
    });
    match token {
        // LiteLLM does not look at it either.
        _ if !has_role => {
            findings.notice(place, "ignored without aws_role_name, as in LiteLLM");
            None
        }
        Ok(token) => {
            if matches!(token, Token::Text(_)) {
                findings.notice(place, "a token ends, and cannot be renewed: give the path of its file instead");
            }
            Some(Given { value: token, place: place.clone() })
        }
        Err(expected) => {
            findings.error(place, expected);
            None
        }
    }
}

fn token_file(path: &str, place: &Place, findings: &mut Findings<'_>) -> Result<Token, Noted> {
    if path.starts_with('/') {
        return Ok(Token::File(path.into()));
    }
    findings.error(place, "expected an absolute path");
    Err(Noted)
}

fn of_profile(name: &str, beginning: &Beginning, findings: &mut Findings<'_>) -> Result<Credentials, Noted> {
    let Beginning { session_name, allow_instance_role, profile: _ } = beginning;
    let (credentials_file, config_file) = shared_files(findings.environment);
    Ok(Credentials::Profile(Profile {
        name: name.to_owned(),
        credentials_file,
        config_file,
        session_name: session_name.clone(),
        environment: static_keys(findings)?,
        container: container(findings)?,
        instance: if *allow_instance_role { instance(findings)? } else { None },
    }))
}

/// AWS's shared files, credentials first.
fn shared_files(environment: &Environment) -> (PathBuf, PathBuf) {
    let home = Path::new(environment.set("HOME").unwrap_or("/"));
    let file = |variable: &str, default: &str| {
        environment.set(variable).map_or_else(|| home.join(".aws").join(default), PathBuf::from)
    };
    (file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), file("AWS_CONFIG_FILE", "config"))
}

/// The agent that the environment names. Its token goes nowhere but to an address of this machine or of the link.
fn container(findings: &mut Findings<'_>) -> Result<Option<Container>, Noted> {
    const FULL: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
    const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
    const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
    let environment = findings.environment;
    let (variable, found) = match (environment.set(RELATIVE), environment.set(FULL)) {
        (Some(path), _) => {
            (RELATIVE, local(&format!("http://169.254.170.2{path}"), &AGENTS).filter(|_| path.starts_with('/')))
        }
        (None, Some(url)) => (FULL, local(url, &AGENTS)),
        (None, None) => return Ok(None),
    };
    let Some((address, path)) = found else {
        let message = "expected the path (relative) or the http URL (full) of the agent at 169.254.170.23 or \
                       [fd00:ec2::23] (EKS), 169.254.170.2 (ECS), or on this machine; its token is sent nowhere else";
        findings.error(&Place::environment(variable), message);
        return Err(Noted);
    };
    let token = match environment.set(TOKEN_FILE) {
        Some(file) => Some(token_file(file, &Place::environment(TOKEN_FILE), findings)?),
        None => environment
            .set("AWS_CONTAINER_AUTHORIZATION_TOKEN")
            .map(|token| Token::Text(SecretValue::new(token.trim().to_owned()))),
    };
    Ok(Some(Container { address, path, token }))
}

/// The instance metadata service, unless it is turned off.
fn instance(findings: &mut Findings<'_>) -> Result<Option<SocketAddr>, Noted> {
    const ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
    let environment = findings.environment;
    if environment.set("AWS_EC2_METADATA_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let Some(url) = environment.set(ENDPOINT) else {
        let mode = environment.set("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE");
        let six = mode.is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
        let [four_address, six_address] = METADATA;
        return Ok(Some((if six { six_address } else { four_address }, 80).into()));
    };
    let found = local(url, &METADATA).filter(|(_, path)| path == "/");
    if found.is_none() {
        let message = "expected http and the address of the instance metadata service, or one of this machine";
        findings.error(&Place::environment(ENDPOINT), message);
        return Err(Noted);
    }
    Ok(found.map(|(address, _)| address))
}

/// Address and path of a URL of plain http that leads to one of these addresses or to this machine. No names but
/// `localhost`: what a name means, somebody else decides.
fn local(url: &str, addresses: &[IpAddr]) -> Option<(SocketAddr, String)> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let legal = path.chars().all(|c| c.is_ascii_graphic() && c != '#');
    let (host, port) = host_and_port(authority)?;
    let address = match host {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        host => host.parse().ok()?,
    };
    let port = if port.is_empty() { 80 } else { port.strip_prefix(':')?.parse().ok()? };
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    (legal && (address.is_loopback() || addresses.contains(&address))).then_some(((address, port).into(), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_token_goes_nowhere_but_to_this_machine_and_its_link() {
        for (url, address, path) in [
            ("http://169.254.170.23/v1/credentials", "169.254.170.23:80", "/v1/credentials"),
            ("http://[fd00:ec2::23]/v1/credentials", "[fd00:ec2::23]:80", "/v1/credentials"),
            ("http://169.254.170.2:8080/a?b=c", "169.254.170.2:8080", "/a?b=c"),
            ("http://127.0.0.7:1", "127.0.0.7:1", "/"),
            ("http://[::1]:81/x", "[::1]:81", "/x"),
            ("http://localhost/x", "127.0.0.1:80", "/x"),
        ] {
            assert_eq!(local(url, &AGENTS), Some((address.parse().unwrap(), path.to_owned())), "{url}");
        }
        for url in [
            "https://169.254.170.23/",
            "http://169.254.169.254/",
            "http://169.254.170.23.example.com/",
            "http://169.254.170.23@example.com/",
            "http://example.com/169.254.170.23",
            "http://10.0.0.1/",
            "http://127.0.0.1:99999/",
            "http://[::1/",
            "http://",
            "127.0.0.1/",
        ] {
            assert_eq!(local(url, &AGENTS), None, "{url}");
        }
    }
}
