//! A profile of AWS's shared files, resolved: what it begins with, and the roles from there on. No program is ever run, and
//! nobody is asked for a code or a password.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use aws_runtime::env_config::{
    file::{EnvConfigFileKind, EnvConfigFiles},
    section::{EnvConfigSections, Profile as Section},
    source,
};
use aws_types::os_shim_internal::{Env, Fs};

use super::session::Session;
use crate::{
    config::{Container, Profile, StaticKeys, Token},
    domain::{
        identity::{Role, RoleArn},
        snapshot::{Problem, Reason},
        value::SecretValue,
    },
    small_file,
};

/// What a profile means.
#[derive(Debug)]
pub(super) struct Resolved<'a> {
    /// What to begin with.
    pub(super) base: Base<'a>,
    /// The roles to assume, one from the other.
    pub(super) roles: Vec<Role>,
}

/// What to begin with.
#[derive(Debug)]
pub(super) enum Base<'a> {
    /// Static keys, of the profile or of the environment.
    Keys(Session),
    /// A web-identity token.
    WebIdentity(Role, Token),
    /// The container's agent.
    Container(&'a Container),
    /// The node's role.
    Instance(SocketAddr),
}

/// Of people with hundreds of profiles, too.
const LARGEST: u64 = 1024 * 1024;
/// Settings that would run a program, open a browser or ask somebody.
const REFUSED: [(&str, &str); 5] = [
    ("credential_process", "keytide runs no program"),
    ("sso_session", "keytide does not sign in by a browser"),
    ("sso_start_url", "keytide does not sign in by a browser"),
    ("login_session", "keytide does not sign in by a browser"),
    ("mfa_serial", "nobody is there who could type a code"),
];

/// Reads the files and follows the profile to its beginning.
///
/// # Errors
/// If a file cannot be read, or the profile does not lead to credentials: which setting, and what was expected.
pub(super) async fn resolve(profile: &Profile) -> Result<Resolved<'_>, Problem> {
    let sections = read(profile).await?;
    let mut roles = Vec::new();
    let mut seen = BTreeSet::new();
    let mut name = profile.name.clone();
    loop {
        let wrong = |what: &str| wrong(profile, &name, what);
        let section = sections.get_profile(&name).ok_or_else(|| wrong("there is no such profile"))?;
        if let Some((setting, why)) = REFUSED.iter().find(|(setting, _)| section.get(setting).is_some()) {
            return Err(wrong(&format!("{setting} is not supported, since {why}; expected static keys or a role")));
        }
        let keys = static_keys(section).map_err(wrong)?;
        // As AWS's tools do: the source of another profile gives its keys, if it has any, and not its role.
        let role = if keys.is_some() && !roles.is_empty() {
            None
        } else {
            role(section, &profile.session_name).map_err(wrong)?
        };
        let Some(role) = role else {
            let keys = keys.ok_or_else(|| wrong("it has neither aws_access_key_id nor role_arn"))?;
            roles.reverse();
            return Ok(Resolved { base: Base::Keys(Session::of_keys(&keys)), roles });
        };
        let source = (text(section, "source_profile"), text(section, "credential_source"));
        let base = match (source, text(section, "web_identity_token_file")) {
            // AWS's tools let a profile name itself as the source of its own static keys.
            ((Some(next), None), None) if next == name && keys.is_some() => {
                keys.map(|keys| Base::Keys(Session::of_keys(&keys))).ok_or_else(|| wrong("it has no static keys"))?
            }
            ((Some(next), None), None) => {
                if !seen.insert(name.clone()) || seen.contains(next) {
                    return Err(wrong(&format!(
                        "its source_profile leads in a circle, by profile {next}; expected static keys in the end"
                    )));
                }
                roles.push(role);
                name = next.to_owned();
                continue;
            }
            ((None, None), Some(file)) if file.starts_with('/') => {
                roles.reverse();
                return Ok(Resolved { base: Base::WebIdentity(role, Token::File(file.into())), roles });
            }
            ((None, None), Some(_)) => return Err(wrong("web_identity_token_file: expected an absolute path")),
            ((None, Some(kind)), None) => of_source(kind, profile).map_err(wrong)?,
            _ => {
                return Err(wrong(
                    "a role_arn needs exactly one of source_profile, credential_source and web_identity_token_file",
                ));
            }
        };
        roles.push(role);
        roles.reverse();
        return Ok(Resolved { base, roles });
    }
}

/// What `credential_source` means.
fn of_source<'a>(kind: &str, profile: &'a Profile) -> Result<Base<'a>, &'static str> {
    let Profile { environment, container, instance, .. } = profile;
    match kind {
        "Environment" => environment.as_ref().map(|keys| Base::Keys(Session::of_keys(keys))).ok_or(
            "credential_source is Environment, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set",
        ),
        "EcsContainer" => container.as_ref().map(Base::Container).ok_or(
            "credential_source is EcsContainer, and AWS_CONTAINER_CREDENTIALS_FULL_URI is not set",
        ),
        "Ec2InstanceMetadata" => instance.map(Base::Instance).ok_or(
            "credential_source is Ec2InstanceMetadata: the node's role is used only with keytide.aws.allow_instance_role",
        ),
        _ => Err("credential_source: expected Environment, EcsContainer or Ec2InstanceMetadata"),
    }
}

/// The role that a profile asks for.
fn role(section: &Section, session_name: &str) -> Result<Option<Role>, &'static str> {
    let Some(arn) = text(section, "role_arn") else { return Ok(None) };
    let arn = RoleArn::parse(arn).ok_or("role_arn: expected the ARN of a role")?;
    let duration = match text(section, "duration_seconds") {
        None => None,
        Some(seconds) => Some(
            seconds
                .parse()
                .ok()
                .filter(|seconds| (900..=43_200).contains(seconds))
                .map(Duration::from_secs)
                .ok_or("duration_seconds: expected 900 to 43200")?,
        ),
    };
    let session_name = text(section, "role_session_name").unwrap_or(session_name).to_owned();
    if !Role::is_session_name(&session_name) {
        return Err("role_session_name: expected 2 to 64 of A-Z a-z 0-9 _ + = , . @ -");
    }
    let external_id = text(section, "external_id").map(str::to_owned);
    Ok(Some(Role { external_id, duration, ..Role::plain(arn, session_name) }))
}

/// The static keys of a profile; the half of a pair is an error that names the other half.
fn static_keys(section: &Section) -> Result<Option<StaticKeys>, &'static str> {
    const ID: &str = "aws_access_key_id";
    const SECRET: &str = "aws_secret_access_key";
    let secret = |setting| text(section, setting).map(|text| SecretValue::new(text.to_owned()));
    let keys = match (text(section, ID), secret(SECRET)) {
        (Some(id), Some(secret_access_key)) => {
            StaticKeys { access_key_id: id.to_owned(), secret_access_key, session_token: secret("aws_session_token") }
        }
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err("it has no aws_access_key_id"),
        (Some(_), None) => return Err("it has no aws_secret_access_key"),
    };
    if keys.is_legal() {
        Ok(Some(keys))
    } else {
        Err("its keys hold what no key holds, such as a space or a second line")
    }
}

fn text<'a>(section: &'a Section, setting: &str) -> Option<&'a str> {
    section.get(setting).filter(|text| !text.is_empty())
}

async fn read(profile: &Profile) -> Result<EnvConfigSections, Problem> {
    let Profile { name, credentials_file, config_file, .. } = profile;
    if ![credentials_file, config_file].iter().any(|path| path.exists()) {
        return Err(wrong(profile, name, "neither file is there"));
    }
    let mut files = EnvConfigFiles::builder();
    for (kind, path) in [(EnvConfigFileKind::Credentials, credentials_file), (EnvConfigFileKind::Config, config_file)] {
        // Either may be missing.
        if !path.exists() {
            continue;
        }
        let text = small_file::read(path, LARGEST)
            .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "not text".to_owned()));
        let text = text.map_err(|what| wrong(profile, name, &format!("{}: {what}", path.display())))?;
        files = files.with_contents(kind, text);
    }
    let malformed = || wrong(profile, name, "the files are not in the format of AWS's shared configuration");
    let source =
        source::load(&Env::from_slice(&[]), &Fs::from_slice(&[]), &files.build()).await.map_err(|_| malformed())?;
    EnvConfigSections::parse(source).map_err(|_| malformed())
}

fn wrong(profile: &Profile, name: &str, what: &str) -> Problem {
    let Profile { credentials_file, config_file, .. } = profile;
    let files = format!("{} and {}", credentials_file.display(), config_file.display());
    Problem::new(Reason::Identity, format!("failed to use profile {name} of {files}: {what}"))
}
