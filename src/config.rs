//! The configuration: what `run` and `check` load, validated once and then trusted.
//!
//! [`load`] reads one or two YAML files, checks every field and every rule that spans fields, and returns a [`Config`]
//! whose types keep what was proved. Building clients and sockets from it is the daemon's part.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::Read,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest, Sha256};

use crate::domain::{
    identity::{Expected, Role},
    kubernetes::{ObjectName, Settings},
    mapping::{Format, Key, Origin, Request, Selection, Wholesale},
    names::{EnvName, FileName, KeyName, OutputName, SecretId},
    value::{SecretValue, is_visible},
    virtual_key::Rules,
};

mod aws;
mod credentials;
mod endpoints;
mod fields;
mod file;
mod findings;
mod litellm;
mod reload;
mod virtual_keys;
mod yaml;

pub use findings::{ConfigError, ConfigErrors, Place};
pub use reload::{HttpCall, Reload, ReloadKind, Signal, Url};
pub use yaml::Position;

use file::{Document, EntryOrigin, Ours};
use findings::{Findings, Given, Reader};
use litellm::Theirs;

/// The content of a YAML file that is not keytide's, such as a kubeconfig, read within the limits of the configuration's;
/// none if it is no YAML.
#[must_use]
pub fn plain_yaml(text: &str) -> Option<serde_json::Value> {
    yaml::value(text)
}

/// Everything that `keytide run` does, as the files and the environment ask for it.
#[derive(Debug)]
pub struct Config {
    /// Who keytide is in AWS, and where AWS is.
    pub aws: Aws,
    /// The keys that the configuration names, in its order, LiteLLM's first.
    pub keys: Vec<Key>,
    /// Secrets of which every member is a key.
    pub wholesale: Vec<Wholesale>,
    /// When and how values are read.
    pub refresh: Refresh,
    /// Where values are written; at least one if anything is read.
    pub outputs: Vec<Output>,
    /// The directory of the last good snapshot, mode 0700; none where everything is written to Kubernetes, which keeps it.
    pub state: Option<State>,
    /// Address of `/metrics` and the probes; `None` turns the port off.
    pub http: Option<SocketAddr>,
    /// The admin socket; `None` turns it off.
    pub admin: Option<PathBuf>,
    /// How virtual keys are stored; none if they are not to be.
    pub virtual_keys: Option<VirtualKeys>,
    /// What is done when the content of outputs changed.
    pub reload: Vec<Reload>,
    /// What the user should know, though it stops nothing: to be logged once at start, and shown by `check`.
    pub notices: Vec<String>,
}

/// How virtual keys are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualKeys {
    /// What entries may ask for, with the prefix and the settings for what they do not say.
    pub rules: Rules,
    /// The roles of teams, in the order of the rules' teams.
    pub teams: Vec<Role>,
    /// Writes a second; none is without limit. Default 10.
    pub rate: Option<u32>,
    /// New secrets an hour; none is without limit. Default 1,000.
    pub max_new_secrets_per_hour: Option<u32>,
    /// Where producers leave them.
    pub spool: Spool,
}

/// Where producers leave virtual keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spool {
    /// The drop directory. Default `/run/keytide/spool/in`.
    pub directory: PathBuf,
    /// True: may lie on a disk. Default false.
    pub allow_disk: bool,
    /// How many claims are held at once. Default 4,096.
    pub max_entries: usize,
    /// True: `ALIAS.key` is a value to be created. Default false.
    pub plain_files: bool,
}

/// The connection to AWS.
#[derive(Debug)]
pub struct Aws {
    /// The region of the secrets.
    pub region: String,
    /// Who reads.
    pub reader: Identity,
    /// Who writes virtual keys, where that is somebody else.
    pub writer: Option<Identity>,
    /// Where AWS is.
    pub endpoints: Endpoints,
    /// How it is reached.
    pub network: Network,
    /// What is not AWS's default and decides who sees the secrets, in sentences: endpoints, proxies, certificates.
    pub overrides: Vec<String>,
}

/// Where AWS is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Of Secrets Manager, where it is not AWS's own.
    pub secrets_manager: Option<String>,
    /// Of STS, where it is not AWS's own.
    pub sts: Option<String>,
    /// The region that requests to this STS are signed for, where it is not that of the secrets.
    pub sts_region: Option<String>,
    /// Of IAM, where it is not AWS's own.
    pub iam: Option<String>,
    /// True: the FIPS endpoints.
    pub fips: bool,
    /// True: the dual-stack endpoints.
    pub dual_stack: bool,
}

/// How AWS is reached.
#[derive(Debug)]
pub struct Network {
    /// Time limit of a connection. Default 3.1 seconds, the SDK's own since 2026.
    pub connect_timeout: Duration,
    /// The URL of the proxy for https, which may hold a password; plain http never goes through one.
    pub proxy: Option<SecretValue>,
    /// The hosts that are reached without it: `NO_PROXY`.
    pub no_proxy: Option<String>,
    /// The certificates that are trusted instead of the system's: `SSL_CERT_FILE`.
    pub trusted: Option<PathBuf>,
    /// The directories of such certificates, between colons: `SSL_CERT_DIR`.
    pub trusted_directory: Option<PathBuf>,
    /// The certificates that are trusted beside those: `AWS_CA_BUNDLE`.
    pub ca_bundle: Option<PathBuf>,
}

/// Somebody in AWS: credentials to begin with, roles that are assumed from there, and a proof.
#[derive(Debug)]
pub struct Identity {
    /// What to begin with.
    pub base: Credentials,
    /// The roles to assume, one from the other.
    pub roles: Vec<Role>,
    /// Whom this must turn out to be.
    pub expected: Expected,
}

/// What to begin with: the one way that was chosen by the order of the settings.
#[derive(Debug, PartialEq, Eq)]
pub enum Credentials {
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and perhaps `AWS_SESSION_TOKEN`.
    Static(StaticKeys),
    /// A profile of the shared files, resolved at every renewal.
    Profile(Profile),
    /// A web-identity token (IRSA).
    WebIdentity {
        /// The role that it is exchanged for.
        role: Role,
        /// Where it is.
        token: Token,
    },
    /// The agent of EKS Pod Identity, or of ECS.
    Container(Container),
    /// The node's role, by the instance metadata service at this address.
    Instance(SocketAddr),
    /// Nothing says who keytide is. `check` goes on, so that a file can be checked anywhere; `run` refuses.
    Missing,
}

/// Static keys.
#[derive(Debug, PartialEq, Eq)]
pub struct StaticKeys {
    /// The id, which is not secret.
    pub access_key_id: String,
    /// The secret key.
    pub secret_access_key: SecretValue,
    /// The session token of temporary credentials.
    pub session_token: Option<SecretValue>,
}

/// A profile, and what a profile may refer to.
#[derive(Debug, PartialEq, Eq)]
pub struct Profile {
    /// The profile's name.
    pub name: String,
    /// `AWS_SHARED_CREDENTIALS_FILE` or `~/.aws/credentials`.
    pub credentials_file: PathBuf,
    /// `AWS_CONFIG_FILE` or `~/.aws/config`.
    pub config_file: PathBuf,
    /// The name of a session that the profile does not name.
    pub session_name: String,
    /// What `credential_source = Environment` means.
    pub environment: Option<StaticKeys>,
    /// What `credential_source = EcsContainer` means.
    pub container: Option<Container>,
    /// What `credential_source = Ec2InstanceMetadata` means; none unless the node's role is allowed.
    pub instance: Option<SocketAddr>,
}

/// Where a web-identity token, or that of a container agent, is.
#[derive(Debug, PartialEq, Eq)]
pub enum Token {
    /// In a file, read again at every renewal.
    File(PathBuf),
    /// In the configuration or the environment: it cannot be renewed.
    Text(SecretValue),
}

/// The agent of EKS Pod Identity, or of ECS.
#[derive(Debug, PartialEq, Eq)]
pub struct Container {
    /// Where it listens: an address of this machine or a link-local one.
    pub address: SocketAddr,
    /// The path of the request.
    pub path: String,
    /// What it wants to see.
    pub token: Option<Token>,
}

/// When and how values are read.
#[derive(Debug, Clone, PartialEq)]
pub struct Refresh {
    /// From the end of one refresh to the next. Default 5 minutes, at least 1 second.
    pub interval: Duration,
    /// Share of the interval by which it varies, 0 to 1. Default 0.1.
    pub jitter: f64,
    /// Time limit of one call to AWS. Default 10 seconds.
    pub call_timeout: Duration,
    /// What a listed key that AWS does not have does to the first refresh. Default [`OnMissing::Fail`].
    pub on_missing: OnMissing,
    /// How long the first refresh may take in all. Default 5 minutes.
    pub startup_timeout: Duration,
    /// The age of the last complete refresh after which readiness turns false. Default none: never.
    pub max_stale: Option<Duration>,
}

/// What a listed key that AWS does not have does to the first refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnMissing {
    /// It is not complete until the key was found.
    Fail,
    /// It is complete once the key was looked for.
    Skip,
}

/// One place where values are written.
#[derive(Debug)]
pub struct Output {
    /// Its name in logs, metrics and status: given, or made of its kind and, from the second of a kind on, a number.
    pub name: OutputName,
    /// Which keys it takes, and under which names.
    pub selection: Selection,
    /// What it writes.
    pub kind: OutputKind,
}

/// The kinds of outputs.
#[derive(Debug)]
pub enum OutputKind {
    /// One env file.
    EnvFile {
        /// Its path.
        path: PathBuf,
        /// Its dialect. Default `dotenv`.
        format: Format,
        /// Whose it is.
        access: FileAccess,
    },
    /// One file for each key, all swapped at once.
    Files {
        /// The directory that belongs to this output alone.
        directory: PathBuf,
        /// Whose the files are.
        access: FileAccess,
    },
    /// A Kubernetes Secret in keytide's namespace.
    KubernetesSecret(KubernetesSecret),
}

/// A Kubernetes Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesSecret {
    /// Its name.
    pub name: ObjectName,
    /// The Lease that decides who writes it. Default `keytide-` and the name.
    pub lease: ObjectName,
    /// What else is to be so.
    pub settings: Settings,
}

/// Mode and owners of the files of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileAccess {
    /// The mode; `None` is `auto`: 0440 where the directory is setgid, else 0444 in a pod, else 0400.
    pub mode: Option<u32>,
    /// Numeric group; one of ours.
    pub group: Option<u32>,
    /// Numeric owner; needs a capability.
    pub owner: Option<u32>,
    /// True: may lie on a disk. Default false: tmpfs only.
    pub allow_disk: bool,
}

/// Where the last good snapshot is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The directory. Default `.keytide` beside the first output.
    pub directory: PathBuf,
    /// True: may lie on a disk; true where an output beside it may.
    pub allow_disk: bool,
}

/// Where the Kubernetes API server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterAccess {
    /// As the first of these files, which are merged as `kubectl` merges them, says.
    Kubeconfig {
        /// The files.
        files: Vec<PathBuf>,
        /// True: a program that a file names may be run for credentials.
        run_programs: bool,
    },
    /// As the pod's service account says.
    Pod,
    /// Nowhere.
    None,
}

/// The files of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// `--config`.
    pub config: PathBuf,
    /// `--litellm-config`.
    pub litellm_config: Option<PathBuf>,
}

/// The process environment, read once. Its `Debug` shows no value.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

/// A file that is longer is refused before it is parsed.
const MAX_BYTES: u64 = 1 << 20;

/// Where the admin socket is, unless the configuration says otherwise.
pub const ADMIN_SOCKET: &str = "/run/keytide/private/admin.sock";

/// The env file of examples and charts, which `exec` reads unless it is told another one.
pub const ENV_FILE: &str = "/run/keytide/env/keys.env";

/// Where producers leave virtual keys, unless the configuration says otherwise.
pub const SPOOL_DIRECTORY: &str = "/run/keytide/spool/in";

/// Where the first env file is by default; the state of a configuration without outputs is beside it.
const DEFAULT_ENV_FILE: &str = "/run/keytide/env/keys.env";

/// What the content of the files is known by: two that are equal are of the same content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint(Vec<[u8; 32]>);

/// Reads and checks the configuration, as `run` and `check` do.
///
/// # Errors
/// Everything that is wrong with it, as far as one reading can see.
pub fn load(sources: &Sources, environment: &Environment) -> Result<Config, ConfigErrors> {
    let mut findings = Findings::new(environment);
    let (ours, theirs) = read_blocks(sources, &mut findings)?;
    let config = assemble(sources, ours, &theirs.unwrap_or_default(), &mut findings);
    match config {
        Some(config) if findings.errors.is_empty() => Ok(Config { notices: findings.notices, ..config }),
        _ => Err(ConfigErrors(findings.errors)),
    }
}

/// The identity of the content of the configuration's files, by which a change is seen. Reads through symbolic links, so
/// that it sees the swap of a ConfigMap.
///
/// # Errors
/// If a file cannot be read.
pub fn fingerprint(sources: &Sources) -> Result<Fingerprint, ConfigErrors> {
    let mut digests = Vec::new();
    let mut errors = Vec::new();
    for path in sources.files() {
        match read_file(path) {
            Ok(bytes) => digests.push(Sha256::digest(&bytes).into()),
            Err(message) => errors.push(ConfigError { place: Place::file(path), message }),
        }
    }
    if errors.is_empty() { Ok(Fingerprint(digests)) } else { Err(ConfigErrors(errors)) }
}

/// The JSON Schema of both blocks.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(file::Schema).to_value()
}

/// What `check --shared-with-litellm` says: a LiteLLM that reads the same file and sees `aws_secret_manager` calls AWS
/// itself.
///
/// # Errors
/// If a file cannot be read, as [`load`].
pub fn shared_with_litellm(sources: &Sources, environment: &Environment) -> Result<Vec<String>, ConfigErrors> {
    let mut findings = Findings::new(environment);
    let (_, theirs) = read_blocks(sources, &mut findings)?;
    if !findings.errors.is_empty() {
        return Err(ConfigErrors(findings.errors));
    }
    let place = theirs.and_then(|theirs| theirs.calls_aws);
    let message = "LiteLLM calls AWS itself where it reads this file: say custom (LiteLLM reads through keytide's \
                   plug-in), or leave the setting out and give LiteLLM its keys as environment variables";
    Ok(place.map(|place| format!("{place}: {message}")).into_iter().collect())
}

/// Both blocks, each field checked. A file that cannot be read as a whole ends it at once: what it leaves out would draw
/// errors that are none.
fn read_blocks(sources: &Sources, findings: &mut Findings<'_>) -> Result<(Option<Ours>, Option<Theirs>), ConfigErrors> {
    let mut keytide = None;
    let mut general = None;
    for path in sources.files() {
        let document = match read_document(path) {
            Ok(document) => document,
            Err(error) => {
                findings.errors.push(error);
                continue;
            }
        };
        let place = |at, name: &str| Place { position: Some(at), path: name.to_owned(), ..Place::file(path) };
        let ours = document
            .keytide
            .map(|block| Given { value: (path, block.value.unwrap_or_default()), place: place(block.at, "keytide") });
        let theirs = document.general_settings.map(|block| Given {
            value: (path, block.value.unwrap_or_default()),
            place: place(block.at, "general_settings"),
        });
        keytide = findings.either(keytide, ours);
        general = findings.either(general, theirs);
    }
    if !findings.errors.is_empty() {
        return Err(ConfigErrors(std::mem::take(&mut findings.errors)));
    }
    let ours = keytide.map(|Given { value: (path, block), .. }| block.check(&mut Reader::new(path, findings)));
    let theirs =
        general.and_then(|Given { value: (path, general), .. }| general.check(&mut Reader::new(path, findings)));
    Ok((ours, theirs))
}

#[expect(clippy::naive_bytecount, reason = "once, for a file that is refused")]
fn read_document(path: &Path) -> Result<Document, ConfigError> {
    let fail = |message: String| ConfigError { place: Place::file(path), message };
    let bytes = read_file(path).map_err(fail)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = valid.iter().filter(|&&byte| byte == b'\n').count();
        let column = String::from_utf8_lossy(valid.rsplit(|&byte| byte == b'\n').next().unwrap_or_default());
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX).saturating_add(1);
        let position = Position { line: count(line), column: count(column.chars().count()) };
        ConfigError { place: Place { position: Some(position), ..Place::file(path) }, message: "not UTF-8".to_owned() }
    })?;
    yaml::parse(text).map_err(|problem| ConfigError { place: Place::of(path, &problem), message: problem.message })
}

/// The content of a file of the configuration, which only root and keytide may be able to write: who writes it reads all
/// that the role can read.
fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let kind = |error: std::io::Error| format!("cannot be read: {}", error.kind());
    // Not opened before it is known to be a file: the opening of a pipe waits for a writer.
    if !std::fs::metadata(path).map_err(kind)?.is_file() {
        return Err("not a regular file".to_owned());
    }
    let file = File::open(path).map_err(kind)?;
    let metadata = file.metadata().map_err(kind)?;
    if !metadata.is_file() {
        return Err("not a regular file".to_owned());
    }
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != 0 && owner != own {
        return Err(format!("belongs to user {owner}: it must belong to root or to user {own} (chown {own} FILE)"));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err("others than its owner can write it (chmod go-w FILE)".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(kind)?;
    if bytes.len() > usize::try_from(MAX_BYTES).unwrap_or(usize::MAX) {
        return Err("larger than 1 MiB".to_owned());
    }
    Ok(bytes)
}

/// The rules that span fields.
fn assemble(sources: &Sources, ours: Option<Ours>, theirs: &Theirs, findings: &mut Findings<'_>) -> Option<Config> {
    let ours = ours.unwrap_or_else(|| Ours::defaults(findings));
    let writing = virtual_keys::choose(&ours, theirs, findings);
    let aws = choose_aws(&sources.config, &ours, theirs, writing.is_some(), findings);
    let Ours { aws: _, virtual_keys: _, spool: _, primary, keys, refresh, outputs, state, http, admin, reload } = ours;
    let wholesale = check_wholesale(primary.clone(), theirs.wholesale.clone(), findings);
    let keys = check_keys(
        keys,
        theirs.keys.clone(),
        primary.as_ref(),
        theirs.primary.as_ref(),
        !wholesale.is_empty(),
        findings,
    );
    check_renamed(&keys, &wholesale, findings);
    if keys.is_empty() && wholesale.is_empty() && writing.is_none() && findings.errors.is_empty() {
        let message = "nothing to do: give keys to read (keytide.keys, keytide.primary_secret, or hosted_keys in \
                       LiteLLM's block), or virtual keys to store (keytide.virtual_keys.prefix, or store_virtual_keys \
                       in LiteLLM's block)";
        findings.error(&Place::file(&sources.config), message);
    }
    let reads = !keys.is_empty() || !wholesale.is_empty();
    let outputs = if outputs.is_empty() && reads { vec![default_output(&sources.config)] } else { outputs };
    for output in &outputs {
        check_output(output, &keys, !wholesale.is_empty(), findings);
    }
    check_objects(&outputs, findings);
    let reload = reload::finish(reload, &outputs, reads, findings);
    let state = state.or_else(|| default_state(&outputs, &sources.config));
    check_paths(&outputs, &reload, state.as_ref(), admin.as_deref(), writing.as_ref(), &sources.config, findings);
    let aws = aws?;
    let virtual_keys = writing.map(|writing| writing.finish(&keys, &wholesale, &aws, theirs, findings));
    Some(Config {
        aws,
        keys: keys.into_iter().map(|key| key.value).collect(),
        wholesale: wholesale.into_iter().map(|wholesale| wholesale.value).collect(),
        refresh,
        outputs: outputs.into_iter().map(|output| output.value).collect(),
        state: state.map(|state| state.value),
        http,
        admin,
        virtual_keys,
        reload: reload.into_iter().map(|action| action.value).collect(),
        notices: Vec::new(),
    })
}

fn choose_aws(config: &Path, ours: &Ours, theirs: &Theirs, storing: bool, findings: &mut Findings<'_>) -> Option<Aws> {
    let region = endpoints::region(config, &ours.aws, &theirs.aws, findings);
    let writer = ours.virtual_keys.writer.as_ref();
    if let Some(writer) = writer.filter(|_| !storing) {
        let message = "nobody writes: virtual keys are not stored (store_virtual_keys, or keytide.virtual_keys.prefix)";
        findings.notice(&writer.place, message);
    }
    let identities = credentials::choose(&ours.aws, writer, &theirs.aws, findings);
    let (endpoints, mut overrides) = endpoints::choose(region.as_deref(), &ours.aws, &theirs.aws, findings);
    let network = endpoints::network(&ours.aws, &mut overrides, findings);
    let (reader, writer) = identities?;
    Some(Aws { region: region?, reader, writer, endpoints, network, overrides })
}

fn check_wholesale(
    ours: Option<Given<Wholesale>>,
    theirs: Option<Given<Wholesale>>,
    findings: &mut Findings<'_>,
) -> Vec<Given<Wholesale>> {
    if let (Some(ours), Some(theirs)) = (&ours, &theirs)
        && ours.value.request == theirs.value.request
    {
        let message = format!("this secret is given twice; the other is at {}", theirs.place.line());
        findings.error(&ours.place, message);
    }
    theirs.into_iter().chain(ours).collect()
}

/// The union of both lists, LiteLLM's first.
fn check_keys(
    ours: Vec<Given<file::Entry>>,
    theirs: Vec<Given<Key>>,
    our_primary: Option<&Given<Wholesale>>,
    their_primary: Option<&Given<SecretId>>,
    wholesale: bool,
    findings: &mut Findings<'_>,
) -> Vec<Given<Key>> {
    let mut keys = theirs;
    for Given { value: entry, place } in ours {
        let file::Entry { name, origin, export, allow_reserved } = entry;
        let origin = match origin {
            EntryOrigin::Secret(request) => Origin::Secret(request),
            EntryOrigin::Member(request, member) => Origin::Member(request, member),
            EntryOrigin::Template(template) => Origin::Template(template),
            EntryOrigin::PrimaryMember(stage, member) => {
                let secret = match (our_primary, their_primary) {
                    (Some(ours), None) => ours.value.request.secret.clone(),
                    (None, Some(theirs)) => theirs.value.clone(),
                    (Some(ours), Some(theirs)) if ours.value.request.secret == theirs.value => theirs.value.clone(),
                    (None, None) => {
                        findings.error(&place, "member without secret: there is no primary secret");
                        continue;
                    }
                    (Some(ours), Some(theirs)) => {
                        let message = format!(
                            "member without secret: there are two primary secrets, at {} and {}; say which in secret",
                            ours.place.line(),
                            theirs.place.line()
                        );
                        findings.error(&place, message);
                        continue;
                    }
                };
                Origin::Member(Request { secret, stage }, member)
            }
        };
        if let Some(twin) = keys.iter().find(|key| key.value.name == name) {
            let message =
                format!("this name is given twice; the other is {} at {}", twin.place.path, twin.place.line());
            findings.error(&place, message);
        }
        keys.push(Given { value: Key { name, origin, export, allow_reserved }, place });
    }
    for key in &keys {
        let Origin::Template(template) = &key.value.origin else { continue };
        for name in template.keys() {
            match keys.iter().find(|key| key.value.name == *name).map(|key| &key.value.origin) {
                Some(Origin::Template(_)) => {
                    findings.error(&key.place, "a template joins keys that are read, not other templates");
                }
                None if !wholesale => findings.error(&key.place, "the template names a key that is not configured"),
                _ => {}
            }
        }
    }
    keys
}

/// A member must not become a key that is also given by name.
fn check_renamed(keys: &[Given<Key>], wholesale: &[Given<Wholesale>], findings: &mut Findings<'_>) {
    for secret in wholesale {
        for name in secret.value.rename.values() {
            if let Some(twin) = keys.iter().find(|key| key.value.name == *name) {
                let message = format!("a member is renamed to a key that is also given at {}", twin.place.line());
                findings.error(&secret.place, message);
            }
        }
    }
}

/// The keys that an output lists must exist, and end under names that it can carry, each under its own.
fn check_output(output: &Given<Output>, keys: &[Given<Key>], wholesale: bool, findings: &mut Findings<'_>) {
    let Given { value: Output { name: output_name, selection, kind }, place } = output;
    let find = |name: &KeyName| keys.iter().find(|key| key.value.name == *name);
    let listed = selection.keys.iter().flatten();
    for name in listed.chain(selection.rename.keys()) {
        if find(name).is_none() && !wholesale {
            findings.error(place, format!("the output {output_name} names a key that is not configured: {name}"));
        }
    }
    let mut taken: BTreeMap<&str, &KeyName> = BTreeMap::new();
    let exported = keys.iter().filter(|key| key.value.export).map(|key| &key.value.name);
    let names: Vec<&KeyName> = match &selection.keys {
        Some(listed) => listed.iter().collect(),
        None => exported.chain(selection.rename.keys().filter(|name| find(name).is_none())).collect(),
    };
    for name in names {
        let written = selection.rename.get(name).map_or(name.as_str(), String::as_str);
        if let Some(twin) = taken.insert(written, name) {
            let message = format!("the output {output_name} would write the keys {twin} and {name} under one name");
            findings.error(place, message);
        }
        let key = find(name);
        let place = key.map_or(place, |key| &key.place);
        let refuse = |rule: &str| format!("the output {output_name} cannot write the key {name}: {rule}");
        let error = match kind {
            OutputKind::Files { .. } => FileName::parse(written).err().map(|rule| refuse(&rule.to_string())),
            OutputKind::KubernetesSecret(secret) => {
                secret.settings.kind.check_key(written).err().map(|rule| refuse(&rule.to_string()))
            }
            OutputKind::EnvFile { format, .. } => match EnvName::parse(written) {
                Err(rule) => Some(refuse(&rule.to_string())),
                Ok(env) if *format == Format::Posix && env.is_shell_read_only() => {
                    Some(refuse("a shell that reads the file could not set this variable"))
                }
                Ok(env) if env.is_reserved() && !key.is_some_and(|key| key.value.allow_reserved) => Some(refuse(
                    "its name changes how programs run; say allow_reserved: true in keytide.keys, or rename it",
                )),
                Ok(_) => None,
            },
        };
        if let Some(error) = error {
            findings.error(place, error);
        }
    }
}

fn default_output(config: &Path) -> Given<Output> {
    let access = FileAccess { mode: None, group: None, owner: None, allow_disk: false };
    let kind = OutputKind::EnvFile { path: DEFAULT_ENV_FILE.into(), format: Format::Dotenv, access };
    let name = OutputName::parse("env_file").expect("a legal name");
    let place = Place { path: "keytide.outputs".to_owned(), ..Place::file(config) };
    Given { value: Output { name, selection: Selection::default(), kind }, place }
}

/// `.keytide` beside the first env file, else beside the first directory of files; none where all is in Kubernetes.
fn default_state(outputs: &[Given<Output>], config: &Path) -> Option<Given<State>> {
    let paths = outputs.iter().filter_map(|output| match &output.value.kind {
        OutputKind::EnvFile { path, access, .. } => Some((false, path.as_path(), access.allow_disk)),
        OutputKind::Files { directory, access } => Some((true, directory.as_path(), access.allow_disk)),
        OutputKind::KubernetesSecret(_) => None,
    });
    let nothing = outputs.is_empty().then_some((false, Path::new(DEFAULT_ENV_FILE), false));
    // Of those that come first the first: false is before true.
    let (_, beside, allow_disk) = paths.min_by_key(|(files, ..)| *files).or(nothing)?;
    let place = Place { path: "keytide.state".to_owned(), ..Place::file(config) };
    Some(Given { value: State { directory: beside.with_file_name(".keytide"), allow_disk }, place })
}

/// Each Secret is written by one output, and decided on by a Lease of its own.
fn check_objects(outputs: &[Given<Output>], findings: &mut Findings<'_>) {
    let mut secrets: BTreeMap<&ObjectName, &Place> = BTreeMap::new();
    let mut leases: BTreeMap<&ObjectName, &Place> = BTreeMap::new();
    for output in outputs {
        let OutputKind::KubernetesSecret(secret) = &output.value.kind else { continue };
        for (what, taken, name) in [("Secret", &mut secrets, &secret.name), ("Lease", &mut leases, &secret.lease)] {
            if let Some(other) = taken.insert(name, &output.place) {
                let message = format!("two outputs have the {what} {name}; the other is {}", other.path);
                findings.error(&output.place, message);
            }
        }
    }
}

/// No two things are written at one path, nor one inside another.
fn check_paths(
    outputs: &[Given<Output>],
    reload: &[Given<Reload>],
    state: Option<&Given<State>>,
    admin: Option<&Path>,
    writing: Option<&virtual_keys::Writing>,
    config: &Path,
    findings: &mut Findings<'_>,
) {
    let mut taken: Vec<(&Path, &Place)> = Vec::new();
    let outputs = outputs.iter().filter_map(|output| match &output.value.kind {
        OutputKind::EnvFile { path, .. } => Some((path.as_path(), &output.place)),
        OutputKind::Files { directory, .. } => Some((directory.as_path(), &output.place)),
        OutputKind::KubernetesSecret(_) => None,
    });
    let generations = reload.iter().filter_map(|action| Some((action.value.file()?, &action.place)));
    let admin_place = Place { path: "keytide.admin.socket".to_owned(), ..Place::file(config) };
    let admin = admin.map(|path| (path, &admin_place));
    let spool = writing.map(|writing| (writing.spool.value.directory.as_path(), &writing.spool.place));
    let others = state.map(|state| (state.value.directory.as_path(), &state.place));
    for (path, place) in outputs.chain(generations).chain(others).chain(admin).chain(spool) {
        if let Some((_, other)) = taken.iter().find(|(other, _)| path.starts_with(other) || other.starts_with(path)) {
            let message =
                format!("two things would be written at one path, or one inside another; the other is {}", other.path);
            findings.error(place, message);
        }
        taken.push((path, place));
    }
}

// === impl Identity ===

impl Identity {
    /// Why keytide cannot be anybody, where it cannot: `run` refuses with it, if anything is to be read.
    #[must_use]
    pub fn missing(&self) -> Option<&'static str> {
        matches!(self.base, Credentials::Missing).then_some(
            "no AWS credentials: neither IRSA (AWS_ROLE_ARN, AWS_WEB_IDENTITY_TOKEN_FILE) nor EKS Pod Identity \
             (AWS_CONTAINER_CREDENTIALS_FULL_URI) is set, and there are no static keys and no profile. For IRSA the \
             service account needs the annotation eks.amazonaws.com/role-arn, and the pod must have been made after it, \
             by a cluster with the EKS pod identity webhook, without eks.amazonaws.com/skip-containers for this \
             container; or mount a projected token and set both variables. For Pod Identity the service account needs an \
             association, made before the pod. The node's role is used only with aws.allow_instance_role",
        )
    }

    /// The roles in the order in which they are assumed, also the one of a web identity.
    pub fn all_roles(&self) -> impl Iterator<Item = &Role> {
        let first = if let Credentials::WebIdentity { role, .. } = &self.base { Some(role) } else { None };
        first.into_iter().chain(&self.roles)
    }
}

// === impl StaticKeys ===

impl StaticKeys {
    /// True if they could be keys: visible characters, as they stand in the header of a request.
    #[must_use]
    pub fn is_legal(&self) -> bool {
        let Self { access_key_id, secret_access_key, session_token } = self;
        is_visible(access_key_id)
            && access_key_id.len() <= Self::LONGEST_ID
            && secret_access_key.is_visible()
            && session_token.as_ref().is_none_or(SecretValue::is_visible)
    }

    /// The longest id (STS, `AccessKeyId`).
    pub const LONGEST_ID: usize = 128;
}

// === impl Token ===

impl Token {
    /// The same token, not a second copy of it.
    #[must_use]
    pub fn share(&self) -> Self {
        match self {
            Self::File(file) => Self::File(file.clone()),
            Self::Text(text) => Self::Text(text.share()),
        }
    }
}

// === impl OutputKind ===

impl OutputKind {
    /// True if it is an object in Kubernetes, and no file.
    #[must_use]
    pub fn is_in_kubernetes(&self) -> bool {
        matches!(self, Self::KubernetesSecret(_))
    }
}

// === impl KubernetesSecret ===

impl KubernetesSecret {
    /// What status and `check` call it by, as `kubectl` does.
    #[must_use]
    pub fn path(&self) -> String {
        format!("secrets/{}", self.name)
    }
}

// === impl ClusterAccess ===

impl ClusterAccess {
    /// The first that is given: `--kubeconfig`, `KUBECONFIG`, the pod. Not `~/.kube/config`: nobody's own cluster is written
    /// by accident.
    #[must_use]
    pub fn choose(kubeconfig: Option<&Path>, environment: &Environment) -> Self {
        if let Some(file) = kubeconfig {
            return Self::Kubeconfig { files: vec![file.to_owned()], run_programs: true };
        }
        if let Some(files) = environment.set("KUBECONFIG") {
            let files = files.split(':').filter(|file| !file.is_empty()).map(PathBuf::from).collect();
            return Self::Kubeconfig { files, run_programs: false };
        }
        if environment.set("KUBERNETES_SERVICE_HOST").is_some() { Self::Pod } else { Self::None }
    }
}

// === impl Sources ===

impl Sources {
    /// The files, each once.
    fn files(&self) -> impl Iterator<Item = &Path> {
        let other = self.litellm_config.iter().filter(|path| **path != self.config);
        std::iter::once(&self.config).chain(other).map(PathBuf::as_path)
    }
}

// === impl Environment ===

impl Environment {
    /// The environment of this process. Variables that are not UTF-8 are left out, but for those that decide who keytide is
    /// and whom it trusts: what cannot be read of them is replaced, so that they are refused and not passed by.
    #[must_use]
    pub fn of_process() -> Self {
        let decides = |name: &str| {
            name.starts_with("AWS_") || name.starts_with("SSL_CERT_") || name.to_ascii_lowercase().ends_with("_proxy")
        };
        Self::from_pairs(std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let value = match value.into_string() {
                Ok(value) => value,
                Err(value) if decides(&name) => value.to_string_lossy().into_owned(),
                Err(_) => return None,
            };
            Some((name, value))
        }))
    }

    /// An environment of these variables.
    pub fn from_pairs<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    /// The same without the credentials of whoever sits at the keyboard: a policy is for a pod.
    #[must_use]
    pub fn without_personal_credentials(mut self) -> Self {
        let personal = |name: &str| {
            let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
            keys.contains(&name) || name.starts_with("AWS_PROFILE") || name.starts_with("AWS_CONTAINER_")
        };
        self.0.retain(|name, _| !personal(name));
        for name in ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"] {
            self.0.insert(name.to_owned(), "/nonexistent".to_owned());
        }
        self
    }

    /// The value of a variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The value of a variable; the empty one counts as not set, as for AWS's tools.
    fn set(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests;
