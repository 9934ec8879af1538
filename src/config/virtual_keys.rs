//! Virtual keys: how they are stored, where producers leave them, and what those may ask for.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Aws, Spool, VirtualKeys,
    aws::{OurWriter, WriterBlock},
    credentials::team_session_name,
    fields::{AbsolutePath, Count, Description, KmsKey, Prefix, Region, SecretTagKey, SecretTagValue},
    file::{Ours, check_pairs},
    findings::{Findings, Given, Place, Reader},
    litellm::{TheirVirtualKeys, Theirs},
    yaml::{Located, Pairs, Position, Unchecked},
};
use crate::domain::{
    identity::{Role, RoleArn},
    mapping::{Key, Origin, Wholesale},
    names::{SecretId, SecretName},
    virtual_key::{Allow, Metadata, Operation, Rules},
};

/// How virtual keys are stored.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "VirtualKeys")]
pub(super) struct VirtualKeysBlock {
    /// A second identity that only writes. Default: who reads also writes.
    aws: Option<Located<WriterBlock>>,
    /// What the names of their secrets begin with; a slash is put behind it. Given here, virtual keys are stored. Default:
    /// that of LiteLLM's block, `litellm/`.
    prefix: Option<Unchecked<Prefix>>,
    /// Description of their secrets. Default: that of LiteLLM's block, else none.
    description: Option<Unchecked<Description>>,
    /// Tags of their secrets: key to value. Default: those of LiteLLM's block, else none.
    tags: Option<Pairs<SecretTagKey, SecretTagValue>>,
    /// KMS key of their secrets: its ARN, id or alias. Default: that of LiteLLM's block, else AWS's own.
    kms_key_id: Option<Unchecked<KmsKey>>,
    /// Regions that their secrets are replicated to. Default: those of LiteLLM's block, else none.
    replica_regions: Option<Vec<Unchecked<Region>>>,
    /// Calls a second that write, 1 to 1000, or `none`: AWS has 50 for the whole account. Default: 10.
    rate: Option<Unchecked<Count<1000>>>,
    /// New secrets an hour, 1 to 1000000, or `none`: each costs money every month. More wait. Default: 1000.
    max_new_secrets_per_hour: Option<Unchecked<Count<1_000_000>>>,
}

/// Where producers leave virtual keys, and what they may ask for.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Spool")]
pub(super) struct SpoolBlock {
    /// The drop directory, absolute, which keytide makes. Default: `/run/keytide/spool/in`.
    directory: Option<Unchecked<AbsolutePath>>,
    /// True: it may lie on a disk, and outlive the pod. Default: false, only tmpfs.
    allow_disk: Option<Unchecked<bool>>,
    /// How many entries are taken from the drop directory at once, 1 to 1000000; more wait there. Default: 4096.
    max_entries: Option<Unchecked<Count<1_000_000>>>,
    /// The operations that are carried out. Default: `[create, rotate, rename, delete]`.
    operations: Option<Vec<Unchecked<Operation>>>,
    /// True: a file `ALIAS.key` that holds just the value is taken as well, once it has stood still for a second. Default:
    /// false.
    plain_files: Option<Unchecked<bool>>,
    /// What an entry may say that differs from the settings.
    allow: Option<AllowBlock>,
    /// Names of secrets outside of the prefix that entries may name. Default: none.
    allow_names: Option<Vec<Unchecked<SecretName>>>,
    /// Roles and regions of teams: an entry that names such a pair is written so. Default: none.
    teams: Option<Vec<Located<TeamBlock>>>,
}

/// What an entry may say that differs from the settings.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Allow")]
struct AllowBlock {
    /// True: any description. Default: false.
    description: Option<Unchecked<bool>>,
    /// Keys of tags, beside those of the settings. Default: none.
    tag_keys: Option<Vec<Unchecked<SecretTagKey>>>,
    /// KMS keys. Default: none.
    kms_key_ids: Option<Vec<Unchecked<KmsKey>>>,
    /// Regions, beside those of the settings. Default: none.
    replica_regions: Option<Vec<Unchecked<Region>>>,
}

/// The role and the region of a team, in LiteLLM's words.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Team")]
struct TeamBlock {
    /// ARN of the role, which is assumed from the identity that writes. Required.
    aws_role_name: Option<Unchecked<RoleArn>>,
    /// The region of the team's secrets. Required.
    aws_region_name: Option<Unchecked<Region>>,
}

/// What our block says of virtual keys, each field checked.
#[derive(Debug, Default)]
pub(super) struct OurVirtualKeys {
    pub(super) writer: Option<OurWriter>,
    prefix: Option<Given<String>>,
    description: Option<Given<String>>,
    tags: Option<Given<BTreeMap<String, String>>>,
    kms_key_id: Option<Given<String>>,
    replica_regions: Option<Given<Vec<String>>>,
    rate: Option<u32>,
    max_new_secrets_per_hour: Option<u32>,
}

/// What our block says of the spool, each field checked.
#[derive(Debug)]
pub(super) struct OurSpool {
    place: Option<Place>,
    spool: Spool,
    operations: BTreeSet<Operation>,
    allow: Allow,
    allow_names: BTreeSet<SecretName>,
    teams: Vec<(RoleArn, String)>,
}

/// How virtual keys are stored, both blocks together.
#[derive(Debug)]
pub(super) struct Writing {
    prefix: String,
    settings: Metadata,
    replicas_place: Option<Place>,
    rate: Option<u32>,
    max_new_secrets_per_hour: Option<u32>,
    pub(super) spool: Given<Spool>,
    operations: BTreeSet<Operation>,
    allow: Allow,
    allow_names: BTreeSet<SecretName>,
    teams: Vec<(RoleArn, String)>,
}

const RATE: u32 = 10;
const NEW_SECRETS: u32 = 1000;
const MAX_ENTRIES: u32 = 4096;
const LITELLM_PREFIX: &str = "litellm/";

/// How virtual keys are stored, if they are to be: both blocks together, nothing given twice.
pub(super) fn choose(ours: &Ours, theirs: &Theirs, findings: &mut Findings<'_>) -> Option<Writing> {
    let Ours { virtual_keys: ours, spool, .. } = ours;
    if theirs.virtual_keys.is_none() && ours.prefix.is_none() {
        if let Some(place) = &spool.place {
            let message =
                "nobody writes: virtual keys are not stored (store_virtual_keys, or keytide.virtual_keys.prefix)";
            findings.notice(place, message);
        }
        return None;
    }
    let theirs = theirs.virtual_keys.as_ref();
    let their = |member: fn(&TheirVirtualKeys) -> Option<Given<String>>| theirs.and_then(member);
    let their_prefix = their(|theirs| theirs.prefix.clone()).and_then(|given| {
        let Some(prefix) = prefix_of(&given.value) else {
            findings.error(&given.place, PREFIX);
            return None;
        };
        Some(Given { value: prefix, place: given.place })
    });
    let prefix = findings.either(their_prefix, ours.prefix.clone());
    let description = findings.either(their(|theirs| theirs.description.clone()), ours.description.clone());
    let kms_key_id = findings.either(their(|theirs| theirs.kms_key_id.clone()), ours.kms_key_id.clone());
    let tags = findings.either(theirs.and_then(|theirs| theirs.tags.clone()), ours.tags.clone());
    let regions =
        findings.either(theirs.and_then(|theirs| theirs.replica_regions.clone()), ours.replica_regions.clone());
    let place = spool.place.clone().or_else(|| ours.prefix.as_ref().map(|prefix| prefix.place.clone()));
    let place = place.or_else(|| theirs.map(|theirs| theirs.place.clone()));
    Some(Writing {
        prefix: prefix.map_or_else(|| LITELLM_PREFIX.to_owned(), |given| given.value),
        replicas_place: regions.as_ref().map(|given| given.place.clone()),
        settings: Metadata {
            description: description.map(|given| given.value),
            tags: tags.map(|given| given.value).unwrap_or_default(),
            kms_key_id: kms_key_id.map(|given| given.value),
            replica_regions: regions.map(|given| given.value.into_iter().collect()).unwrap_or_default(),
        },
        rate: ours.rate,
        max_new_secrets_per_hour: ours.max_new_secrets_per_hour,
        spool: Given { value: spool.spool.clone(), place: place? },
        operations: spool.operations.clone(),
        allow: spool.allow.clone(),
        allow_names: spool.allow_names.clone(),
        teams: spool.teams.clone(),
    })
}

const PREFIX: &str = "expected a prefix for names of secrets: longer than a slash, of A-Z a-z 0-9 / _ + = . @ -";

/// A prefix, with its slash; none if no name could follow it.
pub(super) fn prefix_of(text: &str) -> Option<String> {
    let stem = text.trim_end_matches('/');
    let legal = !stem.is_empty() && SecretName::parse(format!("{stem}/k")).is_ok();
    legal.then(|| format!("{stem}/"))
}

// === impl Writing ===

impl Writing {
    /// With what the other parts of the configuration say.
    pub(super) fn finish(
        self,
        keys: &[Given<Key>],
        wholesale: &[Given<Wholesale>],
        aws: &Aws,
        theirs: &Theirs,
        findings: &mut Findings<'_>,
    ) -> VirtualKeys {
        let Self {
            prefix,
            mut settings,
            replicas_place,
            rate,
            max_new_secrets_per_hour,
            spool,
            operations,
            allow,
            allow_names,
            teams,
        } = self;
        if let (true, Some(place)) = (settings.replica_regions.remove(&aws.region), &replicas_place) {
            findings.notice(place, "the region of the secrets themselves is no replica: left out");
        }
        let read = keys.iter().filter_map(|key| match &key.value.origin {
            Origin::Secret(request) | Origin::Member(request, _) => Some(&request.secret),
            Origin::Template(_) => None,
        });
        let whole = wholesale.iter().map(|secret| &secret.value.request.secret);
        let hosted: BTreeSet<SecretId> = read.chain(whole).chain(&theirs.protected).cloned().collect();
        let session_name = team_session_name(&theirs.aws, findings);
        let role = |arn: &RoleArn| Role {
            arn: arn.clone(),
            session_name: session_name.clone(),
            external_id: None,
            session_tags: Vec::new(),
            transitive_tag_keys: Vec::new(),
            duration: None,
        };
        VirtualKeys {
            teams: teams.iter().map(|(arn, _)| role(arn)).collect(),
            rules: Rules { prefix, settings, operations, allow, allow_names, hosted, teams },
            rate,
            max_new_secrets_per_hour,
            spool: spool.value,
        }
    }
}

// === impl VirtualKeysBlock ===

impl VirtualKeysBlock {
    pub(super) fn check(self, reader: &mut Reader<'_, '_>) -> OurVirtualKeys {
        let Self { aws, prefix, description, tags, kms_key_id, replica_regions, rate, max_new_secrets_per_hour } = self;
        let path = |name: &str| format!("keytide.virtual_keys.{name}");
        let tags = tags.and_then(|tags| {
            let place = reader.place(tags.0.first().map(|(key, _)| key.node.at)?, path("tags"));
            let checked = check_pairs(&path("tags"), Some(tags), reader);
            if checked.len() > 50 {
                reader.findings.error(&place, "expected at most 50 tags");
            }
            let tags = checked.into_iter().map(|(key, value)| (key.0, value.value.0)).collect();
            Some(Given { value: tags, place })
        });
        let count = |value: Option<Count<1000>>, default| value.map_or(Some(default), |count| count.0);
        let new = reader.value(&path("max_new_secrets_per_hour"), max_new_secrets_per_hour);
        OurVirtualKeys {
            writer: aws.and_then(|block| block.value.check(block.at, reader)),
            prefix: reader.certain(&path("prefix"), prefix).map(|given| given.map(|prefix| prefix.0)),
            description: reader.field(&path("description"), description).map(|given| given.map(|text| text.0)),
            tags,
            kms_key_id: reader.certain(&path("kms_key_id"), kms_key_id).map(|given| given.map(|key| key.0)),
            replica_regions: list(&path("replica_regions"), replica_regions, reader)
                .map(|given| given.map(|regions| regions.into_iter().map(|region| region.0).collect())),
            rate: count(reader.value(&path("rate"), rate), RATE),
            max_new_secrets_per_hour: new.map_or(Some(NEW_SECRETS), |count: Count<1_000_000>| count.0),
        }
    }
}

// === impl SpoolBlock ===

impl SpoolBlock {
    pub(super) fn check_or_default(block: Option<Located<Self>>, reader: &mut Reader<'_, '_>) -> OurSpool {
        match block {
            Some(Located { at, value }) => {
                let place = reader.place(at, "keytide.spool");
                value.check(Some(place), reader)
            }
            None => Self::default().check(None, reader),
        }
    }

    fn check(self, place: Option<Place>, reader: &mut Reader<'_, '_>) -> OurSpool {
        let Self { directory, allow_disk, max_entries, operations, plain_files, allow, allow_names, teams } = self;
        let AllowBlock { description, tag_keys, kms_key_ids, replica_regions } = allow.unwrap_or_default();
        let path = |name: &str| format!("keytide.spool.{name}");
        let max_entries = reader.field(&path("max_entries"), max_entries).and_then(|given: Given<Count<1_000_000>>| {
            if given.value.0.is_none() {
                reader.findings.error(&given.place, "expected a number: what is held at once must have an end");
            }
            given.value.0
        });
        let all = || Operation::ALL.into_iter().collect();
        let operations = list(&path("operations"), operations, reader).map(|given| given.value);
        let mut pairs: Vec<(RoleArn, String)> = Vec::new();
        for (i, block) in teams.unwrap_or_default().into_iter().enumerate() {
            let place = reader.place(block.at, path(&format!("teams[{i}]")));
            let TeamBlock { aws_role_name, aws_region_name } = block.value;
            let role = reader.required(&place, "aws_role_name", aws_role_name);
            let region = reader.required(&place, "aws_region_name", aws_region_name);
            let (Some(role), Some(Region(region))) = (role, region) else { continue };
            if pairs.contains(&(role.clone(), region.clone())) {
                reader.findings.error(&place, "given twice");
            }
            pairs.push((role, region));
        }
        let set = |name: &str, regions, reader: &mut Reader<'_, '_>| {
            let regions = list::<Region>(&path(name), regions, reader);
            regions.map(|given| given.value.into_iter().map(|region| region.0).collect()).unwrap_or_default()
        };
        OurSpool {
            place,
            spool: Spool {
                directory: reader
                    .value(&path("directory"), directory)
                    .map_or_else(|| PathBuf::from(super::SPOOL_DIRECTORY), |AbsolutePath(path)| path),
                allow_disk: reader.value(&path("allow_disk"), allow_disk).unwrap_or(false),
                max_entries: usize::try_from(max_entries.unwrap_or(MAX_ENTRIES)).unwrap_or(usize::MAX),
                plain_files: reader.value(&path("plain_files"), plain_files).unwrap_or(false),
            },
            operations: operations.map_or_else(all, |given| given.into_iter().collect()),
            allow: Allow {
                description: reader.value(&path("allow.description"), description).unwrap_or(false),
                tag_keys: list(&path("allow.tag_keys"), tag_keys, reader)
                    .map(|given| given.value.into_iter().map(|SecretTagKey(key)| key).collect())
                    .unwrap_or_default(),
                kms_key_ids: list(&path("allow.kms_key_ids"), kms_key_ids, reader)
                    .map(|given| given.value.into_iter().map(|KmsKey(key)| key).collect())
                    .unwrap_or_default(),
                replica_regions: set("allow.replica_regions", replica_regions, reader),
            },
            allow_names: list(&path("allow_names"), allow_names, reader)
                .map(|given| given.value.into_iter().collect())
                .unwrap_or_default(),
            teams: pairs,
        }
    }
}

/// A list, each of whose items is checked.
pub(super) fn list<T: super::fields::Field>(
    path: &str,
    items: Option<Vec<Unchecked<T>>>,
    reader: &mut Reader<'_, '_>,
) -> Option<Given<Vec<T>>> {
    let items = items?;
    let at = items.first().map_or(Position { line: 1, column: 1 }, |item| item.node.at);
    let place = reader.place(at, path);
    let mut checked = Vec::with_capacity(items.len());
    for (i, item) in items.into_iter().enumerate() {
        checked.extend(reader.certain(&format!("{path}[{i}]"), Some(item)).map(|given| given.value));
    }
    Some(Given { value: checked, place })
}
