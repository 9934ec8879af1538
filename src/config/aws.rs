//! Our block's part on AWS: who keytide is there, and where AWS is.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use super::{
    fields::{
        AbsolutePath, ConnectTimeout, ExternalId, Profile, Region, SessionDuration, SessionName, TagKey, TagValue,
    },
    file::check_pairs,
    findings::{Given, Place, Reader},
    yaml::{Located, Pairs, Position, Unchecked},
};
use crate::domain::identity::{Expected, Role, RoleArn};

/// The connection to AWS.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Aws")]
pub(super) struct AwsBlock {
    /// The region of the secrets. Default: `AWS_REGION_NAME`, `AWS_REGION` or `AWS_DEFAULT_REGION` of the environment, in
    /// this order; one of them is required.
    region: Option<Unchecked<Region>>,
    /// The profile of AWS's shared files to begin with. Default: what the environment gives.
    profile: Option<Unchecked<Profile>>,
    /// The file of a web-identity token with which the first of `roles` is assumed; read again at every renewal. Default:
    /// what the environment gives.
    web_identity_token_file: Option<Unchecked<AbsolutePath>>,
    /// The roles to assume, one from the other; the last one reads. Default: none but the environment's.
    roles: Option<Vec<Located<RoleBlock>>>,
    /// Whom keytide must be: the ARN of a role, an account, or a list of both. Nothing is done with credentials that
    /// `GetCallerIdentity` did not prove; partition, account and role name are compared, since STS does not give the path.
    /// Default: not proved.
    #[serde(default, deserialize_with = "present")]
    expect_role: Option<Unchecked<Expected>>,
    /// True: where nothing else gives credentials, the node's role may be used (EC2 instance metadata). Default: false.
    allow_instance_role: Option<Unchecked<bool>>,
    /// True: the FIPS endpoints of AWS. Default: `AWS_USE_FIPS_ENDPOINT`, else false.
    use_fips_endpoint: Option<Unchecked<bool>>,
    /// True: the dual-stack endpoints of AWS, which have IPv6 addresses. Default: `AWS_USE_DUALSTACK_ENDPOINT`, else false.
    use_dualstack_endpoint: Option<Unchecked<bool>>,
    /// Endpoints other than AWS's own.
    endpoint_url: Option<EndpointBlock>,
    /// True: an endpoint may be plain http also where it is not on this machine. Default: false.
    allow_plain_http: Option<Unchecked<bool>>,
    /// Time limit of a connection: a duration, 100ms to 1m; that of a whole call is `refresh.call_timeout`. Default: `3.1s`.
    connect_timeout: Option<Unchecked<ConnectTimeout>>,
}

/// Endpoints other than AWS's own.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "EndpointUrl")]
struct EndpointBlock {
    /// Of Secrets Manager: an https URL. Default: `AWS_ENDPOINT_URL_SECRETS_MANAGER`, else `AWS_ENDPOINT_URL`, else AWS's.
    secrets_manager: Option<Unchecked<String>>,
    /// Of STS: an https URL. Default: `AWS_ENDPOINT_URL_STS`, else `AWS_ENDPOINT_URL`, else AWS's of the region.
    sts: Option<Unchecked<String>>,
    /// Of IAM, which only `check --simulate` asks: an https URL. Default: `AWS_ENDPOINT_URL_IAM`, else `AWS_ENDPOINT_URL`,
    /// else AWS's.
    iam: Option<Unchecked<String>>,
}

/// A role to assume.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Role")]
struct RoleBlock {
    /// Its ARN. Required.
    arn: Option<Unchecked<RoleArn>>,
    /// The name of the session, which `CloudTrail` shows. Default: `AWS_ROLE_SESSION_NAME`, else `keytide`.
    session_name: Option<Unchecked<SessionName>>,
    /// The external id that the role's trust policy asks for. Default: none.
    external_id: Option<Unchecked<ExternalId>>,
    /// Tags of the session: key to value. Default: none.
    session_tags: Option<Pairs<TagKey, TagValue>>,
    /// Keys of `session_tags` that the sessions of the roles after this one keep. Default: none.
    transitive_tag_keys: Option<Vec<Unchecked<TagKey>>>,
    /// How long a session lasts: a duration, 15m to 12h, at most the role's maximum, and at most 1h for a role that is
    /// assumed from another one. Default: STS's, one hour.
    session_duration: Option<Unchecked<SessionDuration>>,
}

/// A second identity that only writes; region and endpoints are those of `keytide.aws`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "WriterAws")]
pub(super) struct WriterBlock {
    /// The file of a web-identity token with which the first of these `roles` is assumed. Default: they are assumed from
    /// where the roles of `keytide.aws` are.
    web_identity_token_file: Option<Unchecked<AbsolutePath>>,
    /// The roles to assume, one from the other; the last one writes. Required.
    roles: Option<Vec<Located<RoleBlock>>>,
    /// Whom keytide must be when it writes: as in `keytide.aws`. Default: not proved.
    #[serde(default, deserialize_with = "present")]
    expect_role: Option<Unchecked<Expected>>,
}

/// What our block says of AWS, each field checked.
#[derive(Debug, Default)]
pub(super) struct OurAws {
    pub(super) region: Option<Given<String>>,
    pub(super) profile: Option<Given<String>>,
    pub(super) token_file: Option<Given<PathBuf>>,
    pub(super) roles: Option<Given<Vec<Given<AskedRole>>>>,
    pub(super) expected: Option<Given<Expected>>,
    pub(super) allow_instance_role: bool,
    pub(super) fips: Option<Given<bool>>,
    pub(super) dual_stack: Option<Given<bool>>,
    pub(super) secrets_manager: Option<Given<String>>,
    pub(super) sts: Option<Given<String>>,
    pub(super) iam: Option<Given<String>>,
    pub(super) allow_plain_http: bool,
    pub(super) connect_timeout: Option<Duration>,
}

/// What our block says of the identity that writes.
#[derive(Debug)]
pub(super) struct OurWriter {
    pub(super) place: Place,
    pub(super) token_file: Option<Given<PathBuf>>,
    pub(super) roles: Vec<Given<AskedRole>>,
    pub(super) expected: Option<Given<Expected>>,
}

/// A role as a block asks for it; the name of its session is perhaps left to the environment.
#[derive(Debug, Clone)]
pub(super) struct AskedRole {
    pub(super) arn: RoleArn,
    pub(super) session_name: Option<String>,
    pub(super) external_id: Option<String>,
    pub(super) session_tags: Vec<(String, String)>,
    pub(super) transitive_tag_keys: Vec<String>,
    pub(super) duration: Option<Duration>,
    /// True for LiteLLM's `aws_role_name`, which is read with LiteLLM's tolerance.
    pub(super) from_litellm: bool,
}

/// What is there is read, also if there is nothing behind its name: a pin that somebody's template left empty is no pin.
fn present<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<Option<Unchecked<T>>, D::Error> {
    Unchecked::deserialize(deserializer).map(Some)
}

// === impl AwsBlock ===

impl AwsBlock {
    pub(super) fn check(self, reader: &mut Reader<'_, '_>) -> OurAws {
        let Self {
            region,
            profile,
            web_identity_token_file,
            roles,
            expect_role,
            allow_instance_role,
            use_fips_endpoint,
            use_dualstack_endpoint,
            endpoint_url,
            allow_plain_http,
            connect_timeout,
        } = self;
        let EndpointBlock { secrets_manager, sts, iam } = endpoint_url.unwrap_or_default();
        let path = |name: &str| format!("keytide.aws.{name}");
        OurAws {
            region: reader.field(&path("region"), region).map(|given| given.map(|region| region.0)),
            profile: reader.certain(&path("profile"), profile).map(|given| given.map(|profile| profile.0)),
            token_file: reader
                .certain(&path("web_identity_token_file"), web_identity_token_file)
                .map(|given| given.map(|path| path.0)),
            roles: check_roles("keytide.aws.roles", roles, reader),
            expected: reader.certain(&path("expect_role"), expect_role),
            allow_instance_role: reader.value(&path("allow_instance_role"), allow_instance_role).unwrap_or(false),
            fips: reader.certain(&path("use_fips_endpoint"), use_fips_endpoint),
            dual_stack: reader.certain(&path("use_dualstack_endpoint"), use_dualstack_endpoint),
            secrets_manager: reader.certain(&path("endpoint_url.secrets_manager"), secrets_manager),
            sts: reader.certain(&path("endpoint_url.sts"), sts),
            iam: reader.certain(&path("endpoint_url.iam"), iam),
            allow_plain_http: reader.value(&path("allow_plain_http"), allow_plain_http).unwrap_or(false),
            connect_timeout: reader
                .value(&path("connect_timeout"), connect_timeout)
                .map(|timeout: ConnectTimeout| timeout.0),
        }
    }
}

// === impl RoleBlock ===

/// None if the list is left out. A role that cannot be used is left out of the list; its error is noted.
fn check_roles(
    path: &str,
    blocks: Option<Vec<Located<RoleBlock>>>,
    reader: &mut Reader<'_, '_>,
) -> Option<Given<Vec<Given<AskedRole>>>> {
    let blocks = blocks?;
    let place = reader.place(blocks.first()?.at, path);
    let mut roles = Vec::new();
    for (i, block) in blocks.into_iter().enumerate() {
        let place = reader.place(block.at, format!("{path}[{i}]"));
        if let Some(role) = block.value.check(&place, reader) {
            roles.push(Given { value: role, place });
        }
    }
    Some(Given { value: roles, place })
}

impl RoleBlock {
    fn check(self, place: &Place, reader: &mut Reader<'_, '_>) -> Option<AskedRole> {
        let Self { arn, session_name, external_id, session_tags, transitive_tag_keys, session_duration } = self;
        let path = |name: &str| format!("{}.{name}", place.path);
        let arn = reader.required(place, "arn", arn);
        let session_name = reader.certain(&path("session_name"), session_name).map(|given| given.value.0);
        let external_id = reader.certain(&path("external_id"), external_id).map(|given| given.value.0);
        let session_tags: Vec<(String, String)> = check_pairs(&path("session_tags"), session_tags, reader)
            .into_iter()
            .map(|(key, value)| (key.0, value.value.0))
            .collect();
        let mut transitive = Vec::new();
        for (i, key) in transitive_tag_keys.unwrap_or_default().into_iter().enumerate() {
            let Some(key) = reader.field(&format!("{}.transitive_tag_keys[{i}]", place.path), Some(key)) else {
                continue;
            };
            let TagKey(name) = key.value;
            if !session_tags.iter().any(|(tag, _)| *tag == name) {
                reader.findings.error(&key.place, "expected a key of session_tags");
            }
            transitive.push(name);
        }
        let lower: BTreeSet<String> = session_tags.iter().map(|(key, _)| key.to_lowercase()).collect();
        if lower.len() < session_tags.len() || lower.iter().any(|key| key.starts_with("aws:")) {
            let message =
                "expected keys of session_tags that differ in more than their case, and do not begin with aws:";
            reader.findings.error(place, message);
        }
        if session_tags.len() > Role::MOST_TAGS {
            reader.findings.error(place, "expected at most 50 session_tags");
        }
        let duration = reader.value(&path("session_duration"), session_duration);
        Some(AskedRole {
            arn: arn?,
            session_name,
            external_id,
            session_tags,
            transitive_tag_keys: transitive,
            duration: duration.map(|SessionDuration(duration)| duration),
            from_litellm: false,
        })
    }
}

// === impl WriterBlock ===

impl WriterBlock {
    pub(super) fn check(self, at: Position, reader: &mut Reader<'_, '_>) -> Option<OurWriter> {
        let Self { web_identity_token_file, roles, expect_role } = self;
        let place = reader.place(at, "keytide.virtual_keys.aws");
        let path = |name: &str| format!("{}.{name}", place.path);
        let token_file = reader
            .certain(&path("web_identity_token_file"), web_identity_token_file)
            .map(|given| given.map(|path| path.0));
        let roles = check_roles(&path("roles"), roles, reader).map(|given| given.value).unwrap_or_default();
        if roles.is_empty() {
            let message = "roles is required: without a role of its own, who reads also writes";
            let said = reader.findings.errors.iter().any(|error| error.place.path.starts_with(&place.path));
            if !said {
                reader.findings.error(&place, message);
            }
            return None;
        }
        let expected = reader.certain(&path("expect_role"), expect_role);
        Some(OurWriter { place, token_file, roles, expected })
    }
}
