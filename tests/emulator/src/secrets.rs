//! What Secrets Manager knows and refuses: the secrets of one region, their versions and labels. No clock, no network:
//! the time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::answer::Refusal;
use crate::identifiers;

/// A secret's value.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// `SecretString`.
    Text(String),
    /// `SecretBinary`.
    Binary(Vec<u8>),
}

/// The secrets of one region.
pub(crate) struct Vault {
    prefix: String,
    secrets: BTreeMap<String, Secret>,
    /// When the scheduled deletions are due, and of what: so that nobody has to look at every secret.
    due: BTreeSet<(i64, String)>,
}

/// One secret with all its versions.
pub(crate) struct Secret {
    pub(crate) name: String,
    pub(crate) arn: String,
    pub(crate) description: Option<String>,
    pub(crate) kms_key_id: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
    /// The regions that it is said to be replicated to. Nothing is copied there.
    pub(crate) replicas: BTreeMap<String, Replica>,
    /// The service that manages it, if it is not its account's own.
    pub(crate) owner: Option<String>,
    /// Set if it is a replica: where its original is.
    pub(crate) primary_region: Option<String>,
    pub(crate) versions: Vec<Version>,
    pub(crate) created_ms: i64,
    pub(crate) changed_ms: i64,
    /// Set while the secret is scheduled for deletion.
    deletion: Option<Deletion>,
}

/// A region that a secret is replicated to.
#[derive(Clone, Default)]
pub(crate) struct Replica {
    pub(crate) kms_key_id: Option<String>,
    /// Set once it is removed: how many more descriptions show it.
    pub(crate) leaving: Option<u32>,
}

/// When a deletion was asked for, and when it takes place.
#[derive(Clone, Copy)]
pub(crate) struct Deletion {
    pub(crate) asked_ms: i64,
    pub(crate) due_ms: i64,
}

/// One version of a secret.
pub(crate) struct Version {
    pub(crate) id: String,
    pub(crate) value: Value,
    pub(crate) stages: BTreeSet<String>,
    pub(crate) created_ms: i64,
}

/// Which version a read asks for.
#[derive(Clone, Copy, Default)]
pub(crate) struct Wanted<'a> {
    pub(crate) version_id: Option<&'a str>,
    pub(crate) stage: Option<&'a str>,
    /// As an eventually consistent read: the world before the last change.
    pub(crate) stale: bool,
}

/// What a read found.
pub(crate) struct Found<'a> {
    pub(crate) secret: &'a Secret,
    pub(crate) version: &'a Version,
    pub(crate) stages: BTreeSet<String>,
}

/// What a write made, or had made before.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) arn: String,
    pub(crate) name: String,
    pub(crate) version_id: Option<String>,
    pub(crate) stages: BTreeSet<String>,
}

/// What a new secret carries beside its value.
#[derive(Default)]
pub(crate) struct Extras {
    pub(crate) description: Option<String>,
    pub(crate) kms_key_id: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) replicas: BTreeMap<String, Replica>,
}

/// What an update changes. An empty text takes the description or the key away.
pub(crate) struct Changes {
    pub(crate) description: Option<String>,
    pub(crate) kms_key_id: Option<String>,
    /// With the new version's id.
    pub(crate) value: Option<(String, Value)>,
}

pub(crate) const CURRENT: &str = "AWSCURRENT";
pub(crate) const PREVIOUS: &str = "AWSPREVIOUS";
const VALUE_LIMIT: usize = 65_536;
const NAME_LIMIT: usize = 512;
const VERSIONS_LIMIT: usize = 100;
const TAGS_LIMIT: usize = 50;
const DESCRIPTION_LIMIT: usize = 2048;
const KEY_LIMIT: usize = 2048;
const REGION_LIMIT: usize = 128;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

// === impl Value ===

impl Value {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    fn check(&self) -> Result<(), Refusal> {
        let member = match self {
            Self::Text(_) => "secretString",
            Self::Binary(_) => "secretBinary",
        };
        length(member, self.len(), 1, VALUE_LIMIT)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value(<{} bytes>)", self.len())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::Binary(bytes.to_vec())
    }
}

// === impl Vault ===

impl Vault {
    pub(crate) fn new(region: &str, account: &str) -> Self {
        let prefix = format!("arn:aws:secretsmanager:{region}:{account}:secret:");
        Self { prefix, secrets: BTreeMap::new(), due: BTreeSet::new() }
    }

    /// Deletions that are due take place. Called before every use, so that nothing else looks at due dates.
    pub(crate) fn settle(&mut self, now_ms: i64) {
        while self.due.first().is_some_and(|(due_ms, _)| *due_ms <= now_ms) {
            if let Some((_, name)) = self.due.pop_first() {
                self.secrets.remove(&name);
            }
        }
    }

    fn set_deletion(&mut self, name: &str, deletion: Option<Deletion>) -> bool {
        let Some(secret) = self.secrets.get_mut(name) else { return false };
        if let Some(Deletion { due_ms, .. }) = secret.deletion {
            self.due.remove(&(due_ms, name.to_owned()));
        }
        if let Some(Deletion { due_ms, .. }) = deletion {
            self.due.insert((due_ms, name.to_owned()));
        }
        secret.deletion = deletion;
        true
    }

    /// The secret that an id means: a name, an ARN, or an ARN without its last seven characters.
    ///
    /// An ARN whose end looks like a suffix is taken as whole, which is why AWS advises against such names.
    pub(crate) fn find(&self, id: &str) -> Result<&Secret, Refusal> {
        let Some(tail) = id.strip_prefix(&self.prefix) else {
            return self.secrets.get(id).ok_or_else(absent);
        };
        let found = match split_suffix(tail) {
            Some((name, _)) => self.secrets.get(name).filter(|secret| secret.arn == id),
            None => self.secrets.get(tail),
        };
        found.ok_or_else(absent)
    }

    fn find_mut(&mut self, id: &str) -> Result<&mut Secret, Refusal> {
        let name = self.find(id)?.name.clone();
        self.secrets.get_mut(&name).ok_or_else(absent)
    }

    fn live_mut(&mut self, id: &str) -> Result<&mut Secret, Refusal> {
        let secret = self.find_mut(id)?;
        if secret.deletion.is_some() { Err(scheduled()) } else { Ok(secret) }
    }

    /// A secret that is live, no replica and its account's own.
    fn own_mut(&mut self, id: &str) -> Result<&mut Secret, Refusal> {
        let secret = self.live_mut(id)?;
        secret.check_own()?;
        Ok(secret)
    }

    fn region(&self) -> &str {
        self.prefix.split(':').nth(3).unwrap_or_default()
    }

    fn check_replicas<'a>(&self, regions: impl Iterator<Item = (&'a String, &'a Replica)>) -> Result<(), Refusal> {
        for (region, Replica { kms_key_id, .. }) in regions {
            check_region("addReplicaRegions.region", region)?;
            check_text("addReplicaRegions.kmsKeyId", kms_key_id.as_deref(), KEY_LIMIT)?;
            if region == self.region() {
                return Err(Refusal::new("InvalidParameterException", "Invalid replica region."));
            }
        }
        Ok(())
    }

    /// The name behind an id, whether or not such a secret exists.
    pub(crate) fn name_of<'a>(&'a self, id: &'a str) -> &'a str {
        match self.find(id) {
            Ok(secret) => &secret.name,
            Err(_) => match id.strip_prefix(&self.prefix) {
                Some(tail) => split_suffix(tail).map_or(tail, |(name, _)| name),
                None => id,
            },
        }
    }

    /// What policies are compared with. A secret that does not exist has no suffix, so a policy that names one does
    /// not match it: then AWS answers that access is denied, not that the secret is absent.
    pub(crate) fn resource(&self, id: &str) -> String {
        match self.find(id) {
            Ok(secret) => secret.arn.clone(),
            Err(_) if id.starts_with("arn:") => id.to_owned(),
            Err(_) => format!("{}{id}", self.prefix),
        }
    }

    /// The ARN of a secret that would be created now.
    pub(crate) fn new_arn(&self, name: &str) -> String {
        format!("{}{name}-{}", self.prefix, identifiers::arn_suffix())
    }

    /// An ARN of another account: only a resource policy could allow it, and there are none.
    pub(crate) fn is_foreign(&self, id: &str) -> bool {
        let account = |arn: &str| arn.split(':').nth(4).map(str::to_owned);
        id.starts_with("arn:aws:secretsmanager:") && account(id) != account(&self.prefix)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.secrets.keys().map(String::as_str)
    }

    // --- calls of the API

    pub(crate) fn read(&self, id: &str, wanted: Wanted<'_>) -> Result<Found<'_>, Refusal> {
        let secret = self.find(id)?;
        if secret.deletion.is_some() {
            return Err(scheduled());
        }
        if wanted.stale {
            // The version that was current before the last change; before the first there was no secret.
            let version = secret.staged(PREVIOUS).ok_or_else(absent)?;
            let stages = version.stages.iter().map(|stage| if stage == PREVIOUS { CURRENT } else { stage }.to_owned());
            return Ok(Found { secret, version, stages: stages.collect() });
        }
        let version = match (wanted.version_id, wanted.stage) {
            (Some(version_id), stage) => {
                let version = secret.version(version_id).ok_or_else(|| no_value("VersionId", version_id))?;
                if stage.is_some_and(|stage| !version.stages.contains(stage)) {
                    return Err(Refusal::new(
                        "InvalidRequestException",
                        "You provided a VersionStage that is not associated to the provided VersionId.",
                    ));
                }
                version
            }
            (None, stage) => {
                let stage = stage.unwrap_or(CURRENT);
                secret.staged(stage).ok_or_else(|| no_value("staging label", stage))?
            }
        };
        Ok(Found { secret, version, stages: version.stages.clone() })
    }

    pub(crate) fn create(
        &mut self,
        arn: String,
        name: &str,
        value: Option<Value>,
        token: &str,
        extras: Extras,
        now_ms: i64,
    ) -> Result<Written, Refusal> {
        check_name(name)?;
        check_token(token)?;
        let Extras { description, kms_key_id, tags, replicas } = extras;
        check_text("description", description.as_deref(), DESCRIPTION_LIMIT)?;
        check_text("kmsKeyId", kms_key_id.as_deref(), KEY_LIMIT)?;
        check_tags(&tags)?;
        self.check_replicas(replicas.iter())?;
        if let Some(value) = &value {
            value.check()?;
        }
        if let Some(secret) = self.secrets.get(name) {
            if secret.deletion.is_some() {
                return Err(Refusal::new(
                    "InvalidRequestException",
                    "You can't create this secret because a secret with this name is already scheduled for deletion.",
                ));
            }
            return match (secret.version(token), value) {
                (Some(version), Some(value)) if version.value == value => Ok(secret.written(Some(version))),
                _ => Err(Refusal::new(
                    "ResourceExistsException",
                    format!("The operation failed because the secret {name} already exists."),
                )),
            };
        }
        let mut secret = Secret {
            description: not_empty(description),
            kms_key_id: not_empty(kms_key_id),
            tags,
            replicas,
            ..Secret::new(name, arn, now_ms)
        };
        if let Some(value) = value {
            secret.add(token, value, &[CURRENT.to_owned()], now_ms);
        }
        let written = secret.written(secret.versions.last());
        self.secrets.insert(name.to_owned(), secret);
        Ok(written)
    }

    pub(crate) fn put(
        &mut self,
        id: &str,
        value: Value,
        token: &str,
        stages: &[String],
        now_ms: i64,
    ) -> Result<Written, Refusal> {
        check_token(token)?;
        value.check()?;
        length("versionStages", stages.len(), 1, 20)?;
        for stage in stages {
            length("versionStages", stage.chars().count(), 1, 256)?;
        }
        let secret = self.own_mut(id)?;
        if let Some(version) = secret.version(token) {
            if version.value == value {
                return Ok(secret.written(Some(version)));
            }
            return Err(known_token(token));
        }
        secret.make_room(now_ms)?;
        secret.add(token, value, stages, now_ms);
        Ok(secret.written(secret.versions.last()))
    }

    /// All of it or nothing. Unlike a put it knows no second call of the same token.
    pub(crate) fn update(&mut self, id: &str, changes: Changes, now_ms: i64) -> Result<Written, Refusal> {
        let Changes { description, kms_key_id, value } = changes;
        check_text("description", description.as_deref(), DESCRIPTION_LIMIT)?;
        check_text("kmsKeyId", kms_key_id.as_deref(), KEY_LIMIT)?;
        if let Some((token, value)) = &value {
            check_token(token)?;
            value.check()?;
        }
        let secret = self.own_mut(id)?;
        if let Some((token, _)) = &value {
            if secret.version(token).is_some() {
                return Err(known_token(token));
            }
            secret.make_room(now_ms)?;
        }
        if description.is_some() {
            secret.description = not_empty(description);
        }
        if kms_key_id.is_some() {
            secret.kms_key_id = not_empty(kms_key_id);
        }
        secret.changed_ms = now_ms;
        let Some((token, value)) = value else { return Ok(secret.written(None)) };
        secret.add(&token, value, &[CURRENT.to_owned()], now_ms);
        Ok(secret.written(secret.versions.last()))
    }

    /// `recovery_days` of `None` deletes at once. The answer has no ARN where there was no secret.
    pub(crate) fn delete(&mut self, id: &str, recovery_days: Option<i64>, now_ms: i64) -> Result<Removed, Refusal> {
        if let Ok(secret) = self.find(id) {
            secret.check_own()?;
            if !secret.replicas.is_empty() {
                let regions: Vec<&str> = secret.replicas.keys().map(String::as_str).collect();
                let (arn, regions) = (&secret.arn, regions.join(", "));
                let message = format!("You can't delete secret {arn} that still has replica regions [{regions}].");
                return Err(Refusal::new("InvalidParameterException", message));
            }
        }
        let Some(days) = recovery_days else {
            // Forced deletion of what does not exist is a success.
            let name = self.name_of(id).to_owned();
            let arn = self.find(id).map_or_else(|_| self.resource(id), |secret| secret.arn.clone());
            if self.find(id).is_ok() {
                self.remove(&name);
            }
            return Ok(Removed { arn, name, due_ms: now_ms });
        };
        let secret = self.own_mut(id)?;
        let due_ms = now_ms + days * DAY_MS;
        let removed = Removed { arn: secret.arn.clone(), name: secret.name.clone(), due_ms };
        self.set_deletion(&removed.name, Some(Deletion { asked_ms: now_ms, due_ms }));
        Ok(removed)
    }

    pub(crate) fn restore(&mut self, id: &str) -> Result<Written, Refusal> {
        let written = self.find(id)?.written(None);
        self.set_deletion(&written.name, None);
        Ok(written)
    }

    /// Its description was shown once more, which brings removed replicas nearer to their end.
    pub(crate) fn described(&mut self, id: &str) {
        let Ok(secret) = self.find_mut(id) else { return };
        secret.replicas.retain(|_, replica| {
            replica.leaving = replica.leaving.map(|shown| shown.saturating_sub(1));
            replica.leaving != Some(0)
        });
    }

    pub(crate) fn tag(&mut self, id: &str, tags: BTreeMap<String, String>) -> Result<(), Refusal> {
        check_tags(&tags)?;
        let secret = self.own_mut(id)?;
        let mut together = secret.tags.clone();
        together.extend(tags);
        check_tags(&together)?;
        secret.tags = together;
        Ok(())
    }

    pub(crate) fn untag(&mut self, id: &str, keys: &[String]) -> Result<(), Refusal> {
        let secret = self.own_mut(id)?;
        secret.tags.retain(|key, _| !keys.contains(key));
        Ok(())
    }

    pub(crate) fn replicate(&mut self, id: &str, replicas: BTreeMap<String, Replica>) -> Result<&Secret, Refusal> {
        self.check_replicas(replicas.iter())?;
        let secret = self.own_mut(id)?;
        secret.replicas.extend(replicas);
        Ok(secret)
    }

    /// The next `shown` descriptions show the regions nevertheless.
    pub(crate) fn unreplicate(&mut self, id: &str, regions: &[String], shown: u32) -> Result<&Secret, Refusal> {
        let secret = self.own_mut(id)?;
        if shown == 0 {
            secret.replicas.retain(|region, _| !regions.contains(region));
        }
        for (_, replica) in secret.replicas.iter_mut().filter(|(region, _)| regions.contains(region)) {
            replica.leaving.get_or_insert(shown);
        }
        Ok(secret)
    }

    /// A compare-and-swap on one label.
    pub(crate) fn move_stage(
        &mut self,
        id: &str,
        stage: &str,
        from: Option<&str>,
        to: Option<&str>,
        now_ms: i64,
    ) -> Result<Written, Refusal> {
        let invalid = |message: String| Refusal::new("InvalidParameterException", message);
        let secret = self.own_mut(id)?;
        for version_id in [from, to].into_iter().flatten() {
            if secret.version(version_id).is_none() {
                return Err(no_value("VersionId", version_id));
            }
        }
        let holder = secret.staged(stage).map(|version| version.id.clone());
        if let Some(from) = from
            && holder.as_deref() != Some(from)
        {
            return Err(invalid(format!("The version {from} doesn't have the staging label {stage}.")));
        }
        match (&holder, from, to) {
            (_, None, None) => return Err(invalid("You must name a version to move the label from or to.".to_owned())),
            (_, _, None) if stage == CURRENT => {
                return Err(invalid(format!("You can't remove the staging label {CURRENT} without moving it.")));
            }
            (Some(holder), None, Some(to)) if holder != to => {
                let message = format!("The staging label {stage} is attached to the version {holder}: name it.");
                return Err(invalid(message));
            }
            _ => {}
        }
        match to {
            Some(to) => secret.label(to, stage),
            None => secret.unlabel(stage),
        }
        secret.changed_ms = now_ms;
        Ok(secret.written(None))
    }

    // --- changes from outside the API, which always succeed

    /// A new version with these labels, of a secret that is made if it is not there.
    pub(crate) fn set(&mut self, name: &str, value: Value, stages: &[String], now_ms: i64) -> String {
        let arn = self.new_arn(name);
        let secret = self.secrets.entry(name.to_owned()).or_insert_with(|| Secret::new(name, arn, now_ms));
        let id = identifiers::uuid();
        secret.forget_unlabelled(now_ms, VERSIONS_LIMIT, 0);
        secret.add(&id, value, stages, now_ms);
        id
    }

    /// The label `AWSCURRENT` goes back to the version that had it before.
    pub(crate) fn roll_back(&mut self, name: &str) -> bool {
        let Some(secret) = self.secrets.get_mut(name) else { return false };
        let Some(previous) = secret.staged(PREVIOUS).map(|version| version.id.clone()) else { return false };
        secret.label(&previous, CURRENT);
        true
    }

    pub(crate) fn schedule(&mut self, name: &str, now_ms: i64) -> bool {
        self.set_deletion(name, Some(Deletion { asked_ms: now_ms, due_ms: now_ms + 30 * DAY_MS }))
    }

    pub(crate) fn remove(&mut self, name: &str) -> bool {
        self.set_deletion(name, None);
        self.secrets.remove(name).is_some()
    }

    /// Whatever somebody else does to it. Says whether there is such a secret.
    pub(crate) fn change(&mut self, name: &str, change: impl FnOnce(&mut Secret)) -> bool {
        self.secrets.get_mut(name).map(change).is_some()
    }

    pub(crate) fn current(&self, name: &str) -> Option<&Version> {
        self.secrets.get(name)?.staged(CURRENT)
    }
}

/// What a deletion answers.
pub(crate) struct Removed {
    pub(crate) arn: String,
    pub(crate) name: String,
    pub(crate) due_ms: i64,
}

// === impl Secret ===

impl Secret {
    fn new(name: &str, arn: String, now_ms: i64) -> Self {
        Self {
            name: name.to_owned(),
            arn,
            description: None,
            kms_key_id: None,
            tags: BTreeMap::new(),
            replicas: BTreeMap::new(),
            owner: None,
            primary_region: None,
            versions: Vec::new(),
            created_ms: now_ms,
            changed_ms: now_ms,
            deletion: None,
        }
    }

    pub(crate) fn deletion(&self) -> Option<Deletion> {
        self.deletion
    }

    fn check_own(&self) -> Result<(), Refusal> {
        if self.primary_region.is_some() {
            return Err(Refusal::new(
                "InvalidParameterException",
                "Operation not permitted on a replica secret. Call must be made in primary secret's region.",
            ));
        }
        if self.owner.is_some() {
            return Err(Refusal::new(
                "InvalidRequestException",
                "The secret is managed by another service, and you must use that service to update it.",
            ));
        }
        Ok(())
    }

    pub(crate) fn staged(&self, stage: &str) -> Option<&Version> {
        self.versions.iter().rev().find(|version| version.stages.contains(stage))
    }

    fn version(&self, id: &str) -> Option<&Version> {
        self.versions.iter().rev().find(|version| version.id == id)
    }

    fn written(&self, version: Option<&Version>) -> Written {
        Written {
            arn: self.arn.clone(),
            name: self.name.clone(),
            version_id: version.map(|version| version.id.clone()),
            stages: version.map(|version| version.stages.clone()).unwrap_or_default(),
        }
    }

    fn add(&mut self, id: &str, value: Value, stages: &[String], now_ms: i64) {
        let first = self.versions.is_empty();
        let version = Version { id: id.to_owned(), value, stages: BTreeSet::new(), created_ms: now_ms };
        self.versions.push(version);
        self.changed_ms = now_ms;
        for stage in stages {
            self.label(id, stage);
        }
        if first {
            self.label(id, CURRENT);
        }
    }

    /// Puts a label on one version, and so takes it off every other. The version that loses `AWSCURRENT` gets
    /// `AWSPREVIOUS`.
    fn label(&mut self, id: &str, stage: &str) {
        let holder = self.staged(stage).map(|version| version.id.clone());
        if holder.as_deref() == Some(id) {
            return;
        }
        self.unlabel(stage);
        if let Some(version) = self.versions.iter_mut().find(|version| version.id == id) {
            version.stages.insert(stage.to_owned());
        }
        if let (CURRENT, Some(holder)) = (stage, holder) {
            self.label(&holder, PREVIOUS);
        }
    }

    fn unlabel(&mut self, stage: &str) {
        for version in &mut self.versions {
            version.stages.remove(stage);
        }
    }

    /// Fails if there are too many versions that are still too young to go.
    fn make_room(&mut self, now_ms: i64) -> Result<(), Refusal> {
        self.forget_unlabelled(now_ms, VERSIONS_LIMIT, DAY_MS);
        if self.versions.len() < VERSIONS_LIMIT {
            return Ok(());
        }
        Err(Refusal::new("LimitExceededException", "The secret has the greatest number of versions that are allowed."))
    }

    /// The oldest versions without a label go once there are too many of them; none younger than `age_ms`.
    fn forget_unlabelled(&mut self, now_ms: i64, limit: usize, age_ms: i64) {
        let mut surplus = (self.versions.len() + 1).saturating_sub(limit);
        self.versions.retain(|version| {
            let goes = surplus > 0 && version.stages.is_empty() && now_ms - version.created_ms >= age_ms;
            surplus -= usize::from(goes);
            !goes
        });
    }
}

/// `NAME-AbCdEf` taken apart.
fn split_suffix(tail: &str) -> Option<(&str, &str)> {
    let (name, suffix) = tail.rsplit_once('-')?;
    let looks_random = suffix.len() == 6 && suffix.bytes().all(|byte| byte.is_ascii_alphanumeric());
    looks_random.then_some((name, suffix))
}

fn check_name(name: &str) -> Result<(), Refusal> {
    length("name", name.chars().count(), 1, NAME_LIMIT)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/_+=.@-".contains(&byte);
    if name.bytes().all(allowed) {
        return Ok(());
    }
    Err(Refusal::new(
        "ValidationException",
        "Invalid name. Must be a valid name containing alphanumeric characters, or any of the following: -/_+=.@",
    ))
}

fn check_region(member: &str, region: &str) -> Result<(), Refusal> {
    length(member, region.len(), 1, REGION_LIMIT)?;
    let is_part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase());
    let is_region = region.rsplit_once('-').is_some_and(|(place, number)| {
        place.split('-').all(is_part) && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    if is_region {
        return Ok(());
    }
    Err(Refusal::new(
        "ValidationException",
        format!(
            "1 validation error detected: Value at '{member}' failed to satisfy constraint: \
             Member must satisfy regular expression pattern: ^([a-z]+-)+\\d+$"
        ),
    ))
}

fn check_text(member: &str, text: Option<&str>, most: usize) -> Result<(), Refusal> {
    length(member, text.unwrap_or_default().chars().count(), 0, most)
}

fn not_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn check_token(token: &str) -> Result<(), Refusal> {
    length("clientRequestToken", token.chars().count(), 32, 64)
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), Refusal> {
    if tags.len() > TAGS_LIMIT {
        return Err(Refusal::new("InvalidParameterException", "A secret can have at most 50 tags."));
    }
    for (key, value) in tags {
        length("tags.key", key.chars().count(), 1, 128)?;
        length("tags.value", value.chars().count(), 0, 256)?;
        if key.to_ascii_lowercase().starts_with("aws:") {
            return Err(Refusal::new("InvalidParameterException", "Tag keys that begin with aws: are reserved."));
        }
    }
    Ok(())
}

/// AWS's sentence about a member's length. The value itself, which AWS sometimes quotes, is left out.
pub(crate) fn length(member: &str, length: usize, least: usize, most: usize) -> Result<(), Refusal> {
    let constraint = if length < least {
        format!("greater than or equal to {least}")
    } else if length > most {
        format!("less than or equal to {most}")
    } else {
        return Ok(());
    };
    Err(Refusal::new(
        "ValidationException",
        format!(
            "1 validation error detected: Value at '{member}' failed to satisfy constraint: \
             Member must have length {constraint}"
        ),
    ))
}

fn absent() -> Refusal {
    Refusal::new("ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
}

fn no_value(what: &str, which: &str) -> Refusal {
    Refusal::new(
        "ResourceNotFoundException",
        format!("Secrets Manager can't find the specified secret value for {what}: {which}"),
    )
}

fn known_token(token: &str) -> Refusal {
    Refusal::new(
        "ResourceExistsException",
        format!(
            "You can't use ClientRequestToken {token} because that value is already in use for a version of the secret."
        ),
    )
}

fn scheduled() -> Refusal {
    Refusal::new(
        "InvalidRequestException",
        "You can't perform this operation on the secret because it was marked for deletion.",
    )
}
