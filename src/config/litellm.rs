//! LiteLLM's block, `general_settings`, read as LiteLLM 1.109 reads it: unknown keys are tolerated, wrong types are not.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use schemars::{JsonSchema, Schema, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use super::{
    fields::{ExternalId, Field, Profile, Region, SessionName},
    findings::{Given, Place, Reader},
    yaml::{Node, Position, Shape, Unchecked},
};
use crate::domain::{
    identity::RoleArn,
    mapping::{Key, Origin, Request, Wholesale},
    names::{EnvName, KeyName, Member, SecretId},
};

/// The two keys of `general_settings` that keytide reads. All else is dropped unseen: there may be a master key.
#[derive(Default)]
pub(super) struct General {
    system: Option<Node>,
    settings: Option<Node>,
}

/// LiteLLM's block; keytide reads two of its keys.
#[derive(JsonSchema)]
#[schemars(rename = "GeneralSettings")]
pub(super) struct GeneralSchema {
    /// `aws_secret_manager` or `custom`: keytide reads the settings; with another system it does not. Default: none.
    #[expect(dead_code, reason = "only its schema is used")]
    key_management_system: Option<String>,
    /// The settings.
    #[expect(dead_code, reason = "only its schema is used")]
    key_management_settings: Option<Settings>,
}

/// `key_management_settings`.
#[derive(JsonSchema)]
#[schemars(rename = "KeyManagementSettings")]
struct Settings {
    /// The hosted keys. Left out: all members of the primary secret. Default: left out.
    hosted_keys: Option<Unchecked<Nullable<HostedKeys>>>,
    /// The secret whose JSON object holds the hosted keys. Default: none, each key is a secret of its name.
    primary_secret_name: Option<Unchecked<Nullable<Text>>>,
    /// `read_only`, `write_only` or `read_and_write`; says whether keys are read. Default: `read_only`.
    access_mode: Option<Unchecked<AccessMode>>,
    /// True: virtual keys are stored. Default: false.
    store_virtual_keys: Option<Unchecked<Nullable<Flag>>>,
    /// What the names of stored virtual keys begin with. Default: `litellm/`.
    prefix_for_stored_virtual_keys: Option<Unchecked<Text>>,
    /// Description of stored virtual keys. Default: none.
    description: Option<Unchecked<Nullable<Text>>>,
    /// Tags of stored virtual keys. Default: none.
    tags: Option<Unchecked<Nullable<Tags>>>,
    /// KMS key of stored virtual keys. Default: AWS's.
    kms_key_id: Option<Unchecked<Nullable<Text>>>,
    /// Regions to which stored virtual keys are replicated. Default: none.
    replica_regions: Option<Unchecked<Nullable<Texts>>>,
    /// LiteLLM's own: the plug-in of the system `custom`.
    custom_secret_manager: Option<Unchecked<Nullable<Text>>>,
    /// The region of the secrets. Default: that of the environment.
    aws_region_name: Option<Unchecked<Nullable<Text>>>,
    /// ARN of the role to assume. Default: none.
    aws_role_name: Option<Unchecked<Nullable<Text>>>,
    /// Name of the role's session. Default: `AWS_ROLE_SESSION_NAME`, else `keytide`.
    aws_session_name: Option<Unchecked<Nullable<Text>>>,
    /// External id that the role asks for. Default: none.
    aws_external_id: Option<Unchecked<Nullable<Text>>>,
    /// A profile of AWS's shared files. Default: none. Ignored beside `aws_role_name`, as in LiteLLM.
    aws_profile_name: Option<Unchecked<Nullable<Text>>>,
    /// The web-identity token with which `aws_role_name` is assumed: the path of its file, `oidc/file/PATH`,
    /// `oidc/env_path/VARIABLE`, or the token itself, as it is or as `oidc/env/VARIABLE`. Default: none.
    aws_web_identity_token: Option<Unchecked<Nullable<Text>>>,
    /// Endpoint of STS. Default: AWS's of the region.
    aws_sts_endpoint: Option<Unchecked<Nullable<Text>>>,
}

/// What LiteLLM's block says, each field checked.
#[derive(Debug, Default)]
pub(super) struct Theirs {
    /// Where the system is named with which LiteLLM itself calls AWS, if it is.
    pub(super) calls_aws: Option<Place>,
    pub(super) aws: AwsSettings,
    pub(super) primary: Option<Given<SecretId>>,
    pub(super) wholesale: Option<Given<Wholesale>>,
    pub(super) keys: Vec<Given<Key>>,
    /// Secrets that are not read, but are hosted keys' all the same: no virtual key may take their place.
    pub(super) protected: Vec<SecretId>,
    /// How virtual keys are stored, if they are to be.
    pub(super) virtual_keys: Option<TheirVirtualKeys>,
}

/// What LiteLLM's block says of virtual keys, as far as it says it.
#[derive(Debug)]
pub(super) struct TheirVirtualKeys {
    /// Where it says that they are to be stored.
    pub(super) place: Place,
    pub(super) prefix: Option<Given<String>>,
    pub(super) description: Option<Given<String>>,
    pub(super) tags: Option<Given<BTreeMap<String, String>>>,
    pub(super) kms_key_id: Option<Given<String>>,
    pub(super) replica_regions: Option<Given<Vec<String>>>,
}

/// LiteLLM's `aws_*` settings; what the block leaves out, LiteLLM's own environment variables say.
#[derive(Debug, Default)]
pub(super) struct AwsSettings {
    pub(super) region: Option<Given<String>>,
    pub(super) profile: Option<Given<String>>,
    pub(super) role: Option<Given<RoleArn>>,
    pub(super) session_name: Option<Given<String>>,
    pub(super) external_id: Option<Given<String>>,
    pub(super) web_identity_token: Option<Given<String>>,
    pub(super) sts_endpoint: Option<Given<String>>,
}

/// A field that may be `null`, which means left out.
struct Nullable<T>(Option<T>);

struct HostedKeys(Vec<Node>);
struct Text(String);
struct Texts(Vec<String>);
struct Tags(BTreeMap<String, String>);
struct Flag(bool);

#[derive(Clone, Copy, PartialEq, Eq)]
enum AccessMode {
    ReadOnly,
    WriteOnly,
    ReadAndWrite,
}

const PATH: &str = "general_settings.key_management_settings";
const SYSTEM: &str = "general_settings.key_management_system";
const SYSTEMS: [&str; 8] = [
    "google_kms",
    "azure_key_vault",
    "aws_secret_manager",
    "google_secret_manager",
    "hashicorp_vault",
    "cyberark",
    "aws_kms",
    "custom",
];

// === impl General ===

impl<'de> Deserialize<'de> for General {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Settings;

        impl<'de> Visitor<'de> for Settings {
            type Value = General;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<General, A::Error> {
                let mut general = General::default();
                while let Some(key) = entries.next_key::<Node>()? {
                    match key.text() {
                        Some("key_management_system") => general.system = Some(entries.next_value()?),
                        Some("key_management_settings") => general.settings = Some(entries.next_value()?),
                        _ => {
                            entries.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(general)
            }
        }

        deserializer.deserialize_map(Settings)
    }
}

impl General {
    /// Checks every field, and decides what LiteLLM would read; none where it would read nothing with this block.
    pub(super) fn check(self, reader: &mut Reader<'_, '_>) -> Option<Theirs> {
        let Self { system, settings } = self;
        let settings = settings.filter(|node| !matches!(node.value, Shape::Null));
        let system = match system {
            Some(node) if !matches!(node.value, Shape::Null) => {
                let place = reader.place(node.at, SYSTEM);
                reader.resolve(node, &place).map(|node| (node, place))
            }
            _ => None,
        };
        let Some((system, system_place)) = system else {
            if let Some(settings) = settings {
                let place = reader.place(settings.at, PATH);
                reader.findings.notice(&place, "ignored, as LiteLLM does, since there is no key_management_system");
            }
            return None;
        };
        let system = match system.text() {
            Some(system) if SYSTEMS.contains(&system) => system,
            _ => {
                let message = format!("expected one of {}, written exactly so", SYSTEMS.join(", "));
                reader.findings.error(&system_place, message);
                return None;
            }
        };
        if !matches!(system, "aws_secret_manager" | "custom") {
            let message = format!("{system} is not keytide's: LiteLLM's key_management_settings are ignored");
            reader.findings.notice(&system_place, &message);
            return None;
        }
        let calls_aws = (system == "aws_secret_manager").then(|| system_place.clone());
        let (at, entries) = match settings {
            None => (system_place.position.unwrap_or(Position { line: 1, column: 1 }), Vec::new()),
            Some(Node { at, value: Shape::Map(entries) }) => (at, entries),
            Some(node) => {
                let place = reader.place(node.at, PATH);
                reader.findings.error(&place, "expected a mapping");
                return None;
            }
        };
        let place = reader.place(at, PATH);
        let theirs = Settings::of(entries, &place, reader).check(&place, reader);
        Some(Theirs { calls_aws, ..theirs })
    }
}

// === impl Settings ===

impl Settings {
    /// Takes the settings that LiteLLM knows. Of duplicates the last counts, as in Python's YAML.
    fn of(entries: Vec<(Node, Node)>, place: &Place, reader: &mut Reader<'_, '_>) -> Self {
        let mut known: BTreeMap<String, Node> = BTreeMap::new();
        let mut ignored = 0;
        for (key, value) in entries {
            if let Shape::Text(name) = key.value {
                known.insert(name, value);
            } else {
                ignored += 1;
            }
        }
        let settings = Self {
            hosted_keys: take(&mut known, "hosted_keys"),
            primary_secret_name: take(&mut known, "primary_secret_name"),
            access_mode: take(&mut known, "access_mode"),
            store_virtual_keys: take(&mut known, "store_virtual_keys"),
            prefix_for_stored_virtual_keys: take(&mut known, "prefix_for_stored_virtual_keys"),
            description: take(&mut known, "description"),
            tags: take(&mut known, "tags"),
            kms_key_id: take(&mut known, "kms_key_id"),
            replica_regions: take(&mut known, "replica_regions"),
            custom_secret_manager: take(&mut known, "custom_secret_manager"),
            aws_region_name: take(&mut known, "aws_region_name"),
            aws_role_name: take(&mut known, "aws_role_name"),
            aws_session_name: take(&mut known, "aws_session_name"),
            aws_external_id: take(&mut known, "aws_external_id"),
            aws_profile_name: take(&mut known, "aws_profile_name"),
            aws_web_identity_token: take(&mut known, "aws_web_identity_token"),
            aws_sts_endpoint: take(&mut known, "aws_sts_endpoint"),
        };
        // Their names are not said: what stands in this block by mistake may be a key.
        for node in known.values() {
            let place = reader.place(node.at, place.path.clone());
            reader.findings.notice(&place, "a setting that LiteLLM does not know: ignored, as LiteLLM does");
        }
        if ignored > 0 {
            reader.findings.notice(place, "a setting whose name is not text: ignored, as LiteLLM does");
        }
        settings
    }

    fn check(self, place: &Place, reader: &mut Reader<'_, '_>) -> Theirs {
        let Self {
            hosted_keys,
            primary_secret_name,
            access_mode,
            store_virtual_keys,
            prefix_for_stored_virtual_keys,
            description,
            tags,
            kms_key_id,
            replica_regions,
            custom_secret_manager,
            aws_region_name,
            aws_role_name,
            aws_session_name,
            aws_external_id,
            aws_profile_name,
            aws_web_identity_token,
            aws_sts_endpoint,
        } = self;
        let path = |name: &str| format!("{PATH}.{name}");
        reader.value(&path("custom_secret_manager"), custom_secret_manager);
        let prefix = reader.field(&path("prefix_for_stored_virtual_keys"), prefix_for_stored_virtual_keys);
        let description = text(&path("description"), description, reader);
        let tags = reader.field(&path("tags"), tags).and_then(flatten::<Tags>);
        let kms_key_id = text(&path("kms_key_id"), kms_key_id, reader);
        let replica_regions = reader.field(&path("replica_regions"), replica_regions).and_then(flatten::<Texts>);
        let mut setting = |name: &str, setting, variable: &str| {
            text(&path(name), setting, reader).or_else(|| {
                let value = reader.findings.environment.set(variable)?.to_owned();
                Some(Given { value, place: Place::environment(variable) })
            })
        };
        // The environment variables of the region are everyone's.
        let region = setting("aws_region_name", aws_region_name, "");
        let profile = setting("aws_profile_name", aws_profile_name, "AWS_PROFILE_NAME");
        let role = setting("aws_role_name", aws_role_name, "AWS_ROLE_NAME");
        let session_name = setting("aws_session_name", aws_session_name, "AWS_SESSION_NAME");
        let external_id = setting("aws_external_id", aws_external_id, "AWS_EXTERNAL_ID");
        let web_identity_token = setting("aws_web_identity_token", aws_web_identity_token, "AWS_WEB_IDENTITY_TOKEN");
        let sts_endpoint = setting("aws_sts_endpoint", aws_sts_endpoint, "AWS_STS_ENDPOINT");
        let aws = AwsSettings {
            region: reread(region, |Region(region)| region, reader),
            profile: reread(profile, |Profile(profile)| profile, reader),
            role: reread(role, |role: RoleArn| role, reader),
            session_name: reread(session_name, |SessionName(name)| name, reader),
            external_id: reread(external_id, |ExternalId(id)| id, reader),
            web_identity_token,
            sts_endpoint,
        };
        let store_virtual_keys = reader.field(&path("store_virtual_keys"), store_virtual_keys);
        let store_virtual_keys = store_virtual_keys.and_then(flatten::<Flag>).filter(|given| given.value.0);
        let access_mode = reader.field(&path("access_mode"), access_mode);
        let read_only = access_mode.as_ref().filter(|mode| mode.value == AccessMode::ReadOnly);
        if let (Some(store), Some(mode)) = (&store_virtual_keys, read_only) {
            let place = store.place.line();
            let message = format!(
                "virtual keys are stored although this says read_only, as in LiteLLM (store_virtual_keys at {place})"
            );
            reader.findings.notice(&mode.place, &message);
        }
        let primary = text(&path("primary_secret_name"), primary_secret_name, reader);
        let primary = reread(primary, |secret: SecretId| secret, reader);
        let hosted_keys = reader.field(&path("hosted_keys"), hosted_keys).and_then(flatten::<HostedKeys>);
        let virtual_keys = store_virtual_keys.map(|store| TheirVirtualKeys {
            place: store.place,
            prefix: prefix.map(|given| given.map(|Text(text)| text)),
            description,
            tags: tags.map(|given| given.map(|Tags(tags)| tags)),
            kms_key_id,
            replica_regions: replica_regions.map(|given| given.map(|Texts(regions)| regions)),
        });
        let mut theirs = Theirs { aws, virtual_keys, ..Theirs::default() };
        if access_mode.is_some_and(|mode| mode.value == AccessMode::WriteOnly) {
            let names = hosted_keys.iter().flat_map(|keys| &keys.value.0).filter_map(Node::text);
            theirs.protected = names.filter_map(|name| SecretId::parse(name).ok()).collect();
            theirs.protected.extend(primary.map(|primary| primary.value));
            return theirs;
        }
        match (hosted_keys, &primary) {
            (Some(keys), primary) => {
                theirs.keys = check_hosted_keys(keys, primary.as_ref().map(|primary| &primary.value), reader);
            }
            (None, Some(primary)) => {
                let request = Request { secret: primary.value.clone(), stage: None };
                let value = Wholesale { request, rename: BTreeMap::new() };
                theirs.wholesale = Some(Given { value, place: primary.place.clone() });
            }
            (None, None) => {
                let message = "neither hosted_keys nor primary_secret_name is given: there is nothing to list, so \
                               nothing is read for LiteLLM";
                reader.findings.notice(place, message);
            }
        }
        theirs.primary = primary;
        theirs
    }
}

fn take<T>(known: &mut BTreeMap<String, Node>, name: &str) -> Option<Unchecked<T>> {
    known.remove(name).map(Unchecked::from)
}

fn flatten<T>(given: Given<Nullable<T>>) -> Option<Given<T>> {
    let Given { value, place } = given;
    value.0.map(|value| Given { value, place })
}

/// A text setting. The empty text counts as left out, as for Python's `if`.
fn text(path: &str, setting: Option<Unchecked<Nullable<Text>>>, reader: &mut Reader<'_, '_>) -> Option<Given<String>> {
    let given = flatten(reader.field(path, setting)?)?;
    Some(given.map(|text| text.0)).filter(|given| !given.value.is_empty())
}

/// Checks a text further, as a field of ours.
fn reread<T: Field, U>(
    text: Option<Given<String>>,
    value: impl FnOnce(T) -> U,
    reader: &mut Reader<'_, '_>,
) -> Option<Given<U>> {
    let Given { value: text, place } = text?;
    match T::read(&Node::of_text(Position { line: 0, column: 0 }, &text)) {
        Ok(field) => Some(Given { value: value(field), place }),
        Err(expected) => {
            reader.findings.error(&place, expected);
            None
        }
    }
}

fn check_hosted_keys(
    keys: Given<HostedKeys>,
    primary: Option<&SecretId>,
    reader: &mut Reader<'_, '_>,
) -> Vec<Given<Key>> {
    let mut checked: Vec<Given<Key>> = Vec::new();
    for (i, node) in keys.value.0.into_iter().enumerate() {
        let place = reader.place(node.at, format!("{PATH}.hosted_keys[{i}]"));
        let Some(text) = node.text() else {
            reader.findings.notice(&place, "not text: ignored, as LiteLLM does");
            continue;
        };
        if text.starts_with("os.environ/") {
            let message = "os.environ/ means nothing in a list, and LiteLLM never asks for such a name: ignored";
            reader.findings.notice(&place, message);
            continue;
        }
        let name = match KeyName::parse(text) {
            Ok(name) => name,
            Err(expected) => {
                reader.findings.error(&place, expected.to_string());
                continue;
            }
        };
        if name.is_never_read() {
            let message = "never read from AWS, as in LiteLLM, since the connection to AWS is made of it: ignored";
            reader.findings.notice(&place, message);
            continue;
        }
        if EnvName::parse(text).is_ok_and(|name| name.is_reserved()) {
            let message = "a name that changes how programs run: give it in keytide.keys, with allow_reserved: true, \
                           instead of here";
            reader.findings.error(&place, message);
            continue;
        }
        if checked.iter().any(|key| key.value.name == name) {
            reader.findings.notice(&place, "given twice in this list: taken once");
            continue;
        }
        let secret = match primary {
            Some(primary) => Ok(primary.clone()),
            None => SecretId::parse(text),
        };
        let request = match secret {
            Ok(secret) => Request { secret, stage: None },
            Err(expected) => {
                reader.findings.error(&place, expected.to_string());
                continue;
            }
        };
        let origin = match primary {
            Some(_) => Origin::Member(request, Member::new(text)),
            None => Origin::Secret(request),
        };
        checked.push(Given { value: Key { name, origin, export: true, allow_reserved: false }, place });
    }
    checked
}

// === impl Field ===

impl<T: Field> Field for Nullable<T> {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        if matches!(node.value, Shape::Null) { Ok(Self(None)) } else { T::read(node).map(|value| Self(Some(value))) }
    }

    fn schema() -> Schema {
        json_schema!({"anyOf": [T::schema(), {"type": "null"}]})
    }
}

impl Field for HostedKeys {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        let Shape::List(items) = &node.value else { return Err("expected a list".into()) };
        let copy = |item: &Node| match item.text() {
            Some(text) => Node::of_text(item.at, text),
            None => Node { at: item.at, value: Shape::Null },
        };
        Ok(Self(items.iter().map(copy).collect()))
    }

    fn schema() -> Schema {
        json_schema!({"type": "array"})
    }
}

impl Field for Text {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        super::fields::text(node, "expected text").map(|text| Self(text.to_owned()))
    }
}

impl Field for Texts {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        match &node.value {
            Shape::List(items) => {
                let texts: Option<_> = items.iter().map(|item| item.text().map(str::to_owned)).collect();
                texts.map(Self).ok_or("expected a list of texts".into())
            }
            _ => Err("expected a list of texts".into()),
        }
    }

    fn schema() -> Schema {
        json_schema!({"type": "array", "items": {"type": "string"}})
    }
}

const TAGS: &str = "expected a mapping of texts to texts: put numbers in quotation marks";

impl Field for Tags {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        let Shape::Map(entries) = &node.value else { return Err(TAGS.into()) };
        let pair = |(key, value): &(Node, Node)| Some((key.text()?.to_owned(), value.text()?.to_owned()));
        entries.iter().map(pair).collect::<Option<_>>().map(Self).ok_or(TAGS.into())
    }

    fn schema() -> Schema {
        json_schema!({"type": "object", "additionalProperties": {"type": "string"}})
    }
}

impl Field for Flag {
    /// Pydantic's lax boolean.
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        let flag = match &node.value {
            Shape::Bool(flag) => Some(*flag),
            Shape::Number(number) if number.to_bits() == 0.0_f64.to_bits() => Some(false),
            Shape::Number(number) if number.to_bits() == 1.0_f64.to_bits() => Some(true),
            Shape::Text(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
                "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
                _ => None,
            },
            _ => None,
        };
        flag.map(Self).ok_or(Cow::Borrowed("expected true or false"))
    }

    fn schema() -> Schema {
        json_schema!({"type": ["boolean", "string", "number"]})
    }
}

impl Field for AccessMode {
    fn read(node: &Node) -> Result<Self, Cow<'static, str>> {
        match node.text() {
            Some("read_only") => Ok(Self::ReadOnly),
            Some("write_only") => Ok(Self::WriteOnly),
            Some("read_and_write") => Ok(Self::ReadAndWrite),
            _ => Err("expected read_only, write_only or read_and_write".into()),
        }
    }

    fn schema() -> Schema {
        json_schema!({"enum": ["read_only", "write_only", "read_and_write"]})
    }
}
