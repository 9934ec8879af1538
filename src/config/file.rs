//! Our block, `keytide:`, and the file around it.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};

use super::{
    FileAccess, KubernetesSecret, OnMissing, Output, OutputKind, Refresh, State,
    aws::{AwsBlock, OurAws},
    fields::{
        AbsolutePath, CallTimeout, Field, FileMode, Id, Interval, LabelName, LabelValue, Listen, MaxStale, Share,
        Socket, StartupTimeout,
    },
    findings::{Findings, Given, Place, Reader},
    litellm::{General, GeneralSchema},
    reload::{OurReload, ReloadBlock, check_reload},
    virtual_keys::{OurSpool, OurVirtualKeys, SpoolBlock, VirtualKeysBlock},
    yaml::{Located, Node, Pairs, Position, Shape, Unchecked},
};
use crate::domain::{
    kubernetes::{ObjectName, SecretType, Settings},
    mapping::{Format, Request, Selection, Template, Wholesale},
    names::{KeyName, Member, OutputName, SecretId, VersionStage},
};

/// A file of the configuration: the two blocks that keytide reads. All else in it is LiteLLM's.
#[derive(Default)]
pub(super) struct Document {
    pub(super) general_settings: Option<Located<Option<General>>>,
    pub(super) keytide: Option<Located<Option<Block>>>,
}

/// keytide's own block. Unknown keys are errors.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Keytide")]
pub(super) struct Block {
    /// The connection to AWS.
    aws: Option<AwsBlock>,
    /// One secret whose value is a JSON object: each member becomes a key. Default: none.
    primary_secret: Option<Located<PrimaryBlock>>,
    /// Keys that are read one by one, beside those that LiteLLM's block lists. Default: none.
    keys: Option<Vec<Located<KeyBlock>>>,
    /// When and how values are read.
    refresh: Option<RefreshBlock>,
    /// Where values are written. Default: one env file, `/run/keytide/env/keys.env`, in the dialect `dotenv`.
    outputs: Option<Vec<Located<OutputBlock>>>,
    /// Where the last good values are kept over a restart.
    state: Option<Located<StateBlock>>,
    /// The port of metrics and probes.
    http: Option<HttpBlock>,
    /// The admin socket.
    admin: Option<AdminBlock>,
    /// How virtual keys are stored, beside or instead of what LiteLLM's block says. They are stored if `prefix` is given
    /// here, or LiteLLM's `store_virtual_keys` is true.
    virtual_keys: Option<VirtualKeysBlock>,
    /// Where producers leave virtual keys, and what they may ask for.
    spool: Option<Located<SpoolBlock>>,
    /// What is done when the content of outputs changed: not at the first write after a start, nor for a repair. Default:
    /// nothing.
    reload: Option<Vec<Located<ReloadBlock>>>,
}

/// One secret whose value is a JSON object.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PrimarySecret")]
struct PrimaryBlock {
    /// Its name or ARN. Required.
    name: Option<Unchecked<SecretId>>,
    /// Members that become keys of another name: member to key. Default: each member is a key of its own name.
    rename: Option<Pairs<Member, KeyName>>,
}

/// A key. Has exactly one of `secret` (the whole value, or with `member` a member of it), `member` alone (of the primary
/// secret) and `template`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Key")]
struct KeyBlock {
    /// Its name. Required.
    name: Option<Unchecked<KeyName>>,
    /// The name or the ARN of a secret.
    secret: Option<Unchecked<SecretId>>,
    /// The member of a JSON secret: of `secret`, or else of the primary secret.
    member: Option<Unchecked<Member>>,
    /// The staging label of the version that is read. Default: `AWSCURRENT`.
    version_stage: Option<Unchecked<VersionStage>>,
    /// A text with other keys' values in it, such as `postgresql://{USER|url}:{PASSWORD|url}@db/app`. Filters: `url`,
    /// `base64`, `json`. Braces are doubled.
    template: Option<Unchecked<Template>>,
    /// False: only templates use it, and outputs that list it. Default: true.
    export: Option<Unchecked<bool>>,
    /// True: it may be written under a name that changes how programs run, such as `PATH`. Default: false.
    allow_reserved: Option<Unchecked<bool>>,
}

/// When and how values are read.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Refresh")]
struct RefreshBlock {
    /// Time from the end of one refresh to the next: a duration such as `5m`, 1s to 30d. Default: `5m`.
    interval: Option<Unchecked<Interval>>,
    /// Share of the interval by which it varies, 0 to 1. Default: 0.1.
    jitter: Option<Unchecked<Share>>,
    /// Time limit of one call to AWS: a duration, 100ms to 5m. Default: `10s`.
    call_timeout: Option<Unchecked<CallTimeout>>,
    /// What a listed key that AWS does not have does to the first refresh: with `fail` it waits for it, with `skip` it
    /// goes on. Default: `fail`.
    on_missing: Option<Unchecked<OnMissing>>,
    /// Time limit of the first refresh: a duration, 1s to 24h. Default: `5m`.
    startup_timeout: Option<Unchecked<StartupTimeout>>,
    /// Age of the last complete refresh after which the pod is no longer ready: a duration, longer than `interval`.
    /// Default: none, so that an outage of AWS takes no pod out of service.
    max_stale: Option<Unchecked<MaxStale>>,
}

/// A place where values are written.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[schemars(rename = "Output")]
enum OutputBlock {
    /// One env file.
    EnvFile(EnvFileBlock),
    /// One file for each key, all swapped at once.
    Files(FilesBlock),
    /// A Kubernetes Secret in keytide's namespace.
    KubernetesSecret(KubernetesSecretBlock),
}

/// One env file.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "EnvFile")]
struct EnvFileBlock {
    /// Its name in logs, metrics and status. Default: `env_file`, then `env_file-2` and so on.
    name: Option<Unchecked<OutputName>>,
    /// Its path, absolute. Required.
    path: Option<Unchecked<AbsolutePath>>,
    /// The dialect. Default: `dotenv`.
    format: Option<Unchecked<Format>>,
    /// `auto` or the mode in octal, in quotation marks. Default: `auto`, which is 0440 in a setgid directory, else 0444 in
    /// a pod, else 0400.
    mode: Option<Unchecked<FileMode>>,
    /// Numeric group of the file; one of keytide's. Default: the directory's way.
    group: Option<Unchecked<Id>>,
    /// Numeric owner of the file; needs the capability to change it. Default: keytide's user.
    owner: Option<Unchecked<Id>>,
    /// True: the directory may lie on a disk. Default: false, only tmpfs.
    allow_disk: Option<Unchecked<bool>>,
    /// The keys that it takes. Default: all that are exported.
    keys: Option<Vec<Unchecked<KeyName>>>,
    /// Keys that it writes under another name: key to name. Default: none.
    rename: Option<Pairs<KeyName, String>>,
}

/// One file for each key.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Files")]
struct FilesBlock {
    /// Its name in logs, metrics and status. Default: `files`, then `files-2` and so on.
    name: Option<Unchecked<OutputName>>,
    /// The directory, absolute, which belongs to this output alone. Required.
    directory: Option<Unchecked<AbsolutePath>>,
    /// As in an env file.
    mode: Option<Unchecked<FileMode>>,
    /// As in an env file.
    group: Option<Unchecked<Id>>,
    /// As in an env file.
    owner: Option<Unchecked<Id>>,
    /// As in an env file.
    allow_disk: Option<Unchecked<bool>>,
    /// The keys that it takes. Default: all that are exported.
    keys: Option<Vec<Unchecked<KeyName>>>,
    /// Keys that it writes under another name: key to file name. Default: none.
    rename: Option<Pairs<KeyName, String>>,
}

/// A Kubernetes Secret in keytide's namespace, written by server-side apply. One process at a time writes it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "KubernetesSecret")]
struct KubernetesSecretBlock {
    /// Its name. Required.
    name: Option<Unchecked<ObjectName>>,
    /// Its type. Default: `Opaque`.
    #[serde(rename = "type")]
    of_type: Option<Unchecked<SecretType>>,
    /// Labels that it has. Default: none.
    labels: Option<Pairs<LabelName, LabelValue>>,
    /// Annotations that it has, beside keytide's own. Default: none.
    annotations: Option<Pairs<LabelName, String>>,
    /// False: it is only filled where somebody else made it. Default: true.
    create: Option<Unchecked<bool>>,
    /// True: a Secret that is not keytide's is filled, beside what it holds. Default: false.
    adopt: Option<Unchecked<bool>>,
    /// True: keys, labels and annotations that another field manager owns are taken. Default: false.
    force: Option<Unchecked<bool>>,
    /// The name of the Lease that decides who reads AWS for it and writes it. Default: `keytide-` and its name.
    lease: Option<Unchecked<ObjectName>>,
    /// The keys that it takes. Default: all that are exported.
    keys: Option<Vec<Unchecked<KeyName>>>,
    /// Keys that it writes under another name: key to name. Default: none.
    rename: Option<Pairs<KeyName, String>>,
}

/// Where the last good values are kept.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "State")]
struct StateBlock {
    /// The directory, absolute, which belongs to keytide alone. Required in this block; without the block, `.keytide`
    /// beside the first env file.
    directory: Option<Unchecked<AbsolutePath>>,
    /// True: it may lie on a disk. Default: false; without the block, as the output that it lies beside.
    allow_disk: Option<Unchecked<bool>>,
}

/// The port of metrics and probes.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Http")]
struct HttpBlock {
    /// Address and port, or `none`. Default: `[::]:19847`.
    listen: Option<Unchecked<Listen>>,
}

/// The admin socket.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Admin")]
struct AdminBlock {
    /// Absolute path of the socket, or `none`. Default: `/run/keytide/private/admin.sock`.
    socket: Option<Unchecked<Socket>>,
}

/// What our block says, each field checked.
#[derive(Debug)]
pub(super) struct Ours {
    pub(super) aws: OurAws,
    pub(super) virtual_keys: OurVirtualKeys,
    pub(super) spool: OurSpool,
    pub(super) primary: Option<Given<Wholesale>>,
    pub(super) keys: Vec<Given<Entry>>,
    pub(super) refresh: Refresh,
    pub(super) outputs: Vec<Given<Output>>,
    pub(super) state: Option<Given<State>>,
    pub(super) http: Option<std::net::SocketAddr>,
    pub(super) admin: Option<PathBuf>,
    pub(super) reload: Vec<Given<OurReload>>,
}

/// An entry of `keys`.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: KeyName,
    pub(super) origin: EntryOrigin,
    pub(super) export: bool,
    pub(super) allow_reserved: bool,
}

/// Where an entry's value comes from; the primary secret is not yet known.
#[derive(Debug)]
pub(super) enum EntryOrigin {
    Secret(Request),
    Member(Request, Member),
    PrimaryMember(Option<VersionStage>, Member),
    Template(Template),
}

/// The JSON Schema of a configuration file.
#[derive(JsonSchema)]
#[schemars(rename = "Configuration")]
pub(super) struct Schema {
    /// LiteLLM's block, read as LiteLLM reads it.
    #[expect(dead_code, reason = "only its schema is used")]
    general_settings: Option<GeneralSchema>,
    /// keytide's own block.
    #[expect(dead_code, reason = "only its schema is used")]
    keytide: Option<Block>,
}

// === impl Document ===

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Blocks;

        impl<'de> Visitor<'de> for Blocks {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }

            fn visit_unit<E>(self) -> Result<Document, E> {
                Ok(Document::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Document, A::Error> {
                let mut document = Document::default();
                while let Some(key) = entries.next_key::<Node>()? {
                    match key.value {
                        Shape::Text(name) if name == "keytide" => {
                            if document.keytide.is_some() {
                                return Err(A::Error::duplicate_field("keytide"));
                            }
                            document.keytide = Some(entries.next_value()?);
                        }
                        Shape::Text(name) if name == "general_settings" => {
                            document.general_settings = Some(entries.next_value()?);
                        }
                        _ => {
                            entries.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(document)
            }
        }

        deserializer.deserialize_any(Blocks)
    }
}

// === impl Block ===

impl Block {
    /// The second pass: checks every field.
    pub(super) fn check(self, reader: &mut Reader<'_, '_>) -> Ours {
        let Self { aws, primary_secret, keys, refresh, outputs, state, http, admin, virtual_keys, spool, reload } =
            self;
        let HttpBlock { listen } = http.unwrap_or_default();
        let AdminBlock { socket } = admin.unwrap_or_default();
        Ours {
            aws: aws.unwrap_or_default().check(reader),
            virtual_keys: virtual_keys.unwrap_or_default().check(reader),
            spool: SpoolBlock::check_or_default(spool, reader),
            primary: primary_secret.and_then(|block| block.value.check(block.at, reader)),
            keys: keys
                .unwrap_or_default()
                .into_iter()
                .enumerate()
                .filter_map(|(i, key)| {
                    let place = reader.place(key.at, format!("keytide.keys[{i}]"));
                    key.value.check(place, reader)
                })
                .collect(),
            refresh: refresh.unwrap_or_default().check(reader),
            outputs: check_outputs(outputs.unwrap_or_default(), reader),
            state: state.and_then(|block| block.value.check(block.at, reader)),
            http: reader.value("keytide.http.listen", listen).map_or_else(default_listen, |listen| listen.0),
            admin: reader.value("keytide.admin.socket", socket).map_or_else(default_socket, |socket| socket.0),
            reload: check_reload(reload.unwrap_or_default(), reader),
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the default of a setting that may be none")]
fn default_listen() -> Option<std::net::SocketAddr> {
    Some((std::net::Ipv6Addr::UNSPECIFIED, 19847).into())
}

#[expect(clippy::unnecessary_wraps, reason = "the default of a setting that may be none")]
fn default_socket() -> Option<PathBuf> {
    Some(super::ADMIN_SOCKET.into())
}

// === impl Ours ===

impl Ours {
    /// What holds without our block.
    pub(super) fn defaults(findings: &mut Findings<'_>) -> Self {
        Block::default().check(&mut Reader::new(Path::new(""), findings))
    }
}

// === impl PrimaryBlock ===

impl PrimaryBlock {
    fn check(self, at: Position, reader: &mut Reader<'_, '_>) -> Option<Given<Wholesale>> {
        let Self { name, rename } = self;
        let place = reader.place(at, "keytide.primary_secret");
        let secret = reader.required(&place, "name", name);
        let rename = check_pairs("keytide.primary_secret.rename", rename, reader);
        let mut names = BTreeMap::new();
        for (_, name) in &rename {
            if let Some(first) = names.insert(name.value.clone(), name.place.line()) {
                reader.findings.error(&name.place, format!("two members become this key; the other is at {first}"));
            } else if name.value.is_never_read() {
                reader.findings.error(&name.place, NEVER_READ);
            }
        }
        let rename = rename.into_iter().map(|(member, name)| (member, name.value)).collect();
        let request = Request { secret: secret?, stage: None };
        Some(Given { value: Wholesale { request, rename }, place })
    }
}

/// Why the five names of [`KeyName::is_never_read`] are no keys.
const NEVER_READ: &str = "this name is never read from AWS, since the connection to AWS is made of it";

// === impl KeyBlock ===

impl KeyBlock {
    fn check(self, place: Place, reader: &mut Reader<'_, '_>) -> Option<Given<Entry>> {
        let Self { name, secret, member, version_stage, template, export, allow_reserved } = self;
        let path = |field: &str| format!("{}.{field}", place.path);
        let shape = (secret.is_some(), member.is_some(), template.is_some());
        let staged = version_stage.is_some();
        let name = reader.required(&place, "name", name);
        let secret = reader.value(&path("secret"), secret);
        let member = reader.value(&path("member"), member);
        let stage = reader.value(&path("version_stage"), version_stage);
        let template = reader.value(&path("template"), template);
        let export = reader.value(&path("export"), export).unwrap_or(true);
        let allow_reserved = reader.value(&path("allow_reserved"), allow_reserved).unwrap_or(false);
        if name.as_ref().is_some_and(KeyName::is_never_read) {
            reader.findings.error(&place, NEVER_READ);
        }
        let origin = match (shape, secret, member, template) {
            ((true, true, false), Some(secret), Some(member), _) => {
                Some(EntryOrigin::Member(Request { secret, stage }, member))
            }
            ((true, false, false), Some(secret), ..) => Some(EntryOrigin::Secret(Request { secret, stage })),
            ((false, true, false), _, Some(member), _) => Some(EntryOrigin::PrimaryMember(stage, member)),
            ((false, false, true), _, _, Some(template)) if !staged => Some(EntryOrigin::Template(template)),
            ((false, false, false), ..) => {
                reader.findings.error(&place, "expected secret, member (of the primary secret) or template");
                None
            }
            ((_, _, true), ..) if shape != (false, false, true) || staged => {
                reader.findings.error(&place, "template stands alone: it has no secret, member or version_stage");
                None
            }
            // A field that was given is bad, or refers to a variable that is not set.
            _ => {
                reader.findings.incomplete(&place);
                None
            }
        };
        Some(Given { value: Entry { name: name?, origin: origin?, export, allow_reserved }, place })
    }
}

// === impl RefreshBlock ===

impl RefreshBlock {
    fn check(self, reader: &mut Reader<'_, '_>) -> Refresh {
        let Self { interval, jitter, call_timeout, on_missing, startup_timeout, max_stale } = self;
        let interval = reader
            .value("keytide.refresh.interval", interval)
            .map_or(Duration::from_mins(5), |interval: Interval| interval.0);
        let max_stale: Option<Given<MaxStale>> = reader.field("keytide.refresh.max_stale", max_stale);
        if let Some(max_stale) = &max_stale
            && max_stale.value.0 <= interval
        {
            let message = "expected a duration longer than refresh.interval: readiness would turn false between two \
                           refreshes that are both well";
            reader.findings.error(&max_stale.place, message);
        }
        Refresh {
            interval,
            jitter: reader.value("keytide.refresh.jitter", jitter).map_or(0.1, |share: Share| share.0),
            call_timeout: reader
                .value("keytide.refresh.call_timeout", call_timeout)
                .map_or(Duration::from_secs(10), |timeout: CallTimeout| timeout.0),
            on_missing: reader.value("keytide.refresh.on_missing", on_missing).unwrap_or(OnMissing::Fail),
            startup_timeout: reader
                .value("keytide.refresh.startup_timeout", startup_timeout)
                .map_or(Duration::from_mins(5), |timeout: StartupTimeout| timeout.0),
            max_stale: max_stale.map(|given| given.value.0),
        }
    }
}

// === impl OutputBlock ===

fn check_outputs(blocks: Vec<Located<OutputBlock>>, reader: &mut Reader<'_, '_>) -> Vec<Given<Output>> {
    let mut outputs: Vec<Given<Output>> = Vec::new();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, block) in blocks.into_iter().enumerate() {
        let kind = block.value.kind();
        let number = kinds.entry(kind).and_modify(|number| *number += 1).or_insert(1);
        let name = if *number == 1 { kind.to_owned() } else { format!("{kind}-{number}") };
        let name = OutputName::parse(name).expect("a kind and a number are a name");
        let place = reader.place(block.at, format!("keytide.outputs[{i}].{kind}"));
        let Some(output) = block.value.check(name, &place, reader) else { continue };
        if let Some(twin) = outputs.iter().find(|other| other.value.name == output.name) {
            let message = format!("two outputs have this name; the other is at {}", twin.place.line());
            reader.findings.error(&place, message);
        }
        outputs.push(Given { value: output, place });
    }
    outputs
}

impl OutputBlock {
    fn kind(&self) -> &'static str {
        match self {
            Self::EnvFile(_) => "env_file",
            Self::Files(_) => "files",
            Self::KubernetesSecret(_) => "kubernetes_secret",
        }
    }

    fn check(self, default_name: OutputName, place: &Place, reader: &mut Reader<'_, '_>) -> Option<Output> {
        let path = |field: &str| format!("{}.{field}", place.path);
        let (name, selection, kind) = match self {
            Self::EnvFile(block) => {
                let EnvFileBlock { name, path: file, format, mode, group, owner, allow_disk, keys, rename } = block;
                let file = reader.required(place, "path", file);
                let format = reader.value(&path("format"), format).unwrap_or(Format::Dotenv);
                let access = check_access(place, mode, group, owner, allow_disk, reader);
                let kind = file.map(|AbsolutePath(path)| OutputKind::EnvFile { path, format, access });
                (name, check_selection(place, keys, rename, reader), kind)
            }
            Self::Files(block) => {
                let FilesBlock { name, directory, mode, group, owner, allow_disk, keys, rename } = block;
                let directory = reader.required(place, "directory", directory);
                let access = check_access(place, mode, group, owner, allow_disk, reader);
                let kind = directory.map(|AbsolutePath(directory)| OutputKind::Files { directory, access });
                (name, check_selection(place, keys, rename, reader), kind)
            }
            Self::KubernetesSecret(block) => {
                let (keys, rename, kind) = block.check(place, reader);
                // Its `name` is that of the Secret.
                (None, check_selection(place, keys, rename, reader), kind)
            }
        };
        let name = reader.value(&path("name"), name).unwrap_or(default_name);
        Some(Output { name, selection, kind: kind? })
    }
}

type Keys = Option<Vec<Unchecked<KeyName>>>;
type Names = Option<Pairs<KeyName, String>>;

impl KubernetesSecretBlock {
    fn check(self, place: &Place, reader: &mut Reader<'_, '_>) -> (Keys, Names, Option<OutputKind>) {
        let Self { name, of_type, labels, annotations, create, adopt, force, lease, keys, rename } = self;
        let path = |field: &str| format!("{}.{field}", place.path);
        let name = reader.required(place, "name", name);
        let lease = reader.value(&path("lease"), lease).or_else(|| {
            let name: &ObjectName = name.as_ref()?;
            let lease = ObjectName::parse(format!("keytide-{name}"));
            if lease.is_err() {
                reader.findings.error(place, "the name is too long to name a Lease after it: give lease");
            }
            lease.ok()
        });
        let annotations = check_pairs(&path("annotations"), annotations, reader);
        for (key, given) in &annotations {
            if key.is_ours() {
                reader.findings.error(&given.place, "annotations of keytide.dev/ are keytide's own");
            }
        }
        let settings = Settings {
            kind: reader.value(&path("type"), of_type).unwrap_or_default(),
            labels: check_pairs(&path("labels"), labels, reader)
                .into_iter()
                .map(|(key, value): (LabelName, Given<LabelValue>)| (key.0, value.value.0))
                .collect(),
            annotations: annotations.into_iter().map(|(key, value)| (key.0, value.value)).collect(),
            create: reader.value(&path("create"), create).unwrap_or(true),
            adopt: reader.value(&path("adopt"), adopt).unwrap_or(false),
            force: reader.value(&path("force"), force).unwrap_or(false),
        };
        let kind = name.zip(lease);
        let kind = kind.map(|(name, lease)| OutputKind::KubernetesSecret(KubernetesSecret { name, lease, settings }));
        (keys, rename, kind)
    }
}

fn check_access(
    place: &Place,
    mode: Option<Unchecked<FileMode>>,
    group: Option<Unchecked<Id>>,
    owner: Option<Unchecked<Id>>,
    allow_disk: Option<Unchecked<bool>>,
    reader: &mut Reader<'_, '_>,
) -> FileAccess {
    let path = |field: &str| format!("{}.{field}", place.path);
    FileAccess {
        mode: reader.value(&path("mode"), mode).and_then(|mode| mode.0),
        group: reader.value(&path("group"), group).map(|id| id.0),
        owner: reader.value(&path("owner"), owner).map(|id| id.0),
        allow_disk: reader.value(&path("allow_disk"), allow_disk).unwrap_or(false),
    }
}

fn check_selection(
    place: &Place,
    keys: Option<Vec<Unchecked<KeyName>>>,
    rename: Option<Pairs<KeyName, String>>,
    reader: &mut Reader<'_, '_>,
) -> Selection {
    let keys = keys.map(|keys| {
        let mut names: Vec<KeyName> = Vec::new();
        for (i, key) in keys.into_iter().enumerate() {
            let Some(key) = reader.field(&format!("{}.keys[{i}]", place.path), Some(key)) else { continue };
            if names.contains(&key.value) {
                reader.findings.error(&key.place, "given twice");
            } else {
                names.push(key.value);
            }
        }
        names
    });
    let rename = check_pairs(&format!("{}.rename", place.path), rename, reader);
    Selection { keys, rename: rename.into_iter().map(|(key, name)| (key, name.value)).collect() }
}

pub(super) fn check_pairs<K: Field + Ord, V: Field>(
    path: &str,
    pairs: Option<Pairs<K, V>>,
    reader: &mut Reader<'_, '_>,
) -> Vec<(K, Given<V>)> {
    let mut checked: Vec<(K, Given<V>)> = Vec::new();
    for (key, value) in pairs.map(|pairs| pairs.0).unwrap_or_default() {
        let key = reader.field(path, Some(key));
        let value = reader.field(path, Some(value));
        let (Some(key), Some(value)) = (key, value) else { continue };
        match checked.iter().find(|(other, _)| *other == key.value) {
            Some((_, twin)) => {
                let message = format!("a key is given twice; the other is at {}", twin.place.line());
                reader.findings.error(&key.place, message);
            }
            None => checked.push((key.value, value)),
        }
    }
    checked
}

// === impl StateBlock ===

impl StateBlock {
    fn check(self, at: Position, reader: &mut Reader<'_, '_>) -> Option<Given<State>> {
        let Self { directory, allow_disk } = self;
        let place = reader.place(at, "keytide.state");
        let directory = reader.required(&place, "directory", directory);
        let allow_disk = reader.value("keytide.state.allow_disk", allow_disk).unwrap_or(false);
        directory.map(|AbsolutePath(directory)| Given { value: State { directory, allow_disk }, place })
    }
}
