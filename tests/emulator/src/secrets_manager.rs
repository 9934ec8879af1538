//! Secrets Manager's actions: JSON in, permissions, the vault, JSON out.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use crate::access::{self, Principal};
use crate::answer::Refusal;
use crate::faults::{FaultKind, Strike};
use crate::secrets::{self, CURRENT, Changes, Extras, Found, Secret, Value, Vault, Wanted};
use crate::world::World;

/// One call whose caller is known.
pub(crate) struct Call<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) region: &'a str,
    pub(crate) principal: &'a Principal,
    pub(crate) strikes: &'a [Strike],
    pub(crate) now_ms: i64,
}

/// Which secrets a call names, and what else it says, without any value: for the record and the faults.
pub(crate) struct Named {
    pub(crate) secret_ids: Vec<String>,
    pub(crate) parameters: Json,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Get {
    secret_id: String,
    version_id: Option<String>,
    version_stage: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BatchGet {
    secret_id_list: Option<Vec<String>>,
    filters: Option<Json>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    name: String,
    client_request_token: Option<String>,
    secret_string: Option<String>,
    secret_binary: Option<String>,
    description: Option<String>,
    kms_key_id: Option<String>,
    #[serde(default)]
    tags: Vec<Tag>,
    add_replica_regions: Option<Vec<Replica>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Update {
    secret_id: String,
    client_request_token: Option<String>,
    secret_string: Option<String>,
    secret_binary: Option<String>,
    description: Option<String>,
    kms_key_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Put {
    secret_id: String,
    client_request_token: Option<String>,
    secret_string: Option<String>,
    secret_binary: Option<String>,
    version_stages: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Delete {
    secret_id: String,
    recovery_window_in_days: Option<i64>,
    force_delete_without_recovery: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct One {
    secret_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TagResource {
    secret_id: String,
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UntagResource {
    secret_id: String,
    tag_keys: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct MoveStage {
    secret_id: String,
    version_stage: String,
    remove_from_version_id: Option<String>,
    move_to_version_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Replicate {
    secret_id: String,
    add_replica_regions: Vec<Replica>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Replica {
    region: String,
    kms_key_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Unreplicate {
    secret_id: String,
    remove_replica_regions: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Tag {
    key: String,
    #[serde(default)]
    value: String,
}

const BATCH_LIMIT: usize = 20;

// === impl Call ===

impl Call<'_> {
    pub(crate) fn answer(&mut self, action: &str, body: &[u8]) -> Result<Json, Refusal> {
        match action {
            "GetSecretValue" => self.get(&parse(body)?),
            "BatchGetSecretValue" => self.batch_get(&parse(body)?),
            "CreateSecret" => self.create(parse(body)?),
            "PutSecretValue" => self.put(parse(body)?),
            "UpdateSecret" => self.update(parse(body)?),
            "DeleteSecret" => self.delete(&parse(body)?),
            "RestoreSecret" => self.restore(&parse(body)?),
            "DescribeSecret" => self.describe(&parse(body)?),
            "TagResource" => self.tag(parse(body)?),
            "UntagResource" => self.untag(&parse(body)?),
            "ReplicateSecretToRegions" => self.replicate(parse(body)?),
            "RemoveRegionsFromReplication" => self.unreplicate(&parse(body)?),
            "UpdateSecretVersionStage" => self.move_stage(&parse(body)?),
            _ => Err(Refusal::new("UnknownOperationException", "")),
        }
    }

    fn vault(&mut self) -> &mut Vault {
        self.world.vault(self.region, self.now_ms)
    }

    /// Whether the caller may do this to the secret. AWS looks at this before it looks for the secret.
    fn authorise(&mut self, action: &str, id: &str) -> Result<(), Refusal> {
        secrets::length("secretId", id.chars().count(), 1, 2048)?;
        let action = format!("secretsmanager:{action}");
        let vault = self.vault();
        let resource = vault.resource(id);
        if vault.is_foreign(id) {
            let message = access::denial(self.principal, &action, id).replace("identity-based", "resource-based");
            return Err(Refusal::new("AccessDeniedException", message));
        }
        self.world.access.authorise(self.principal, &action, &resource, id)
    }

    fn get(&mut self, get: &Get) -> Result<Json, Refusal> {
        let Get { secret_id, version_id, version_stage } = get;
        let wanted = Wanted { version_id: version_id.as_deref(), stage: version_stage.as_deref(), stale: false };
        self.read(secret_id, wanted).map(|found| value_json(&found))
    }

    fn read(&mut self, id: &str, wanted: Wanted<'_>) -> Result<Found<'_>, Refusal> {
        self.authorise("GetSecretValue", id)?;
        let (strikes, principal) = (self.strikes, self.principal);
        let vault = self.world.vault(self.region, self.now_ms);
        let name = vault.name_of(id);
        let mut stale = wanted.stale;
        for strike in strikes.iter().filter(|strike| strike.strikes(name)) {
            stale |= strike.is_stale();
            if let FaultKind::EchoValue = strike.kind {
                return Err(echo(principal, "GetSecretValue", id, vault.current(name).map(|version| &version.value)));
            }
        }
        vault.read(id, Wanted { stale, ..wanted })
    }

    fn batch_get(&mut self, batch: &BatchGet) -> Result<Json, Refusal> {
        let invalid = |message: &str| Refusal::new("InvalidParameterException", message);
        let BatchGet { secret_id_list, filters, max_results, next_token } = batch;
        let ids = match (secret_id_list, filters) {
            (Some(ids), None) => ids,
            (None, Some(_)) => return Err(invalid("This emulator has no Filters.")),
            _ => return Err(invalid("You must include exactly one of SecretIdList and Filters.")),
        };
        secrets::length("secretIdList", ids.len(), 1, BATCH_LIMIT)?;
        if max_results.is_some() {
            return Err(invalid("You can't use MaxResults without Filters."));
        }
        let action = "secretsmanager:BatchGetSecretValue";
        self.world.access.authorise(self.principal, action, "*", "*")?;

        let page = match next_token {
            Some(token) => Page::parse(token)
                .ok_or_else(|| Refusal::new("InvalidNextTokenException", "The NextToken is invalid."))?,
            None => Page::first(self.strikes),
        };
        let (mut values, mut errors) = (Vec::new(), Vec::new());
        let mut dropped = false;
        for id in ids.iter().skip(page.offset).take(page.size) {
            let name = self.vault().name_of(id).to_owned();
            let mut striking = self.strikes.iter().filter(|strike| strike.strikes(&name));
            if !dropped && striking.clone().any(|strike| matches!(strike.kind, FaultKind::DropEntries)) {
                dropped = true;
                continue;
            }
            let error = striking.find_map(|strike| match &strike.kind {
                FaultKind::EntryError { code, message } => Some(Refusal::new(code, message)),
                _ => None,
            });
            let entry = match error {
                Some(error) => Err(error),
                None => self.read(id, Wanted::default()).map(|found| value_json(&found)),
            };
            match entry {
                Ok(value) => values.push(value),
                Err(Refusal { code, message, .. }) => {
                    errors.push(json!({ "SecretId": id, "ErrorCode": code, "Message": message }));
                }
            }
        }
        let mut answer = json!({ "SecretValues": values, "Errors": errors });
        if let Some(token) = page.next(ids.len())
            && let Some(answer) = answer.as_object_mut()
        {
            answer.insert("NextToken".to_owned(), token.into());
        }
        Ok(answer)
    }

    fn create(&mut self, create: Create) -> Result<Json, Refusal> {
        let Create { name, secret_string, secret_binary, description, kms_key_id, tags, .. } = create;
        let Create { client_request_token, add_replica_regions, .. } = create;
        let token = required_token(client_request_token)?;
        let value = value(secret_string, secret_binary)?;
        self.echo("CreateSecret", &name, value.as_ref())?;
        let arn = self.vault().new_arn(&name);
        self.world.access.authorise(self.principal, "secretsmanager:CreateSecret", &arn, &name)?;
        if !tags.is_empty() {
            self.world.access.authorise(self.principal, "secretsmanager:TagResource", &arn, &name)?;
        }
        if add_replica_regions.is_some() {
            self.world.access.authorise(self.principal, "secretsmanager:ReplicateSecretToRegions", &arn, &name)?;
        }
        let replicas = add_replica_regions.map(replicas).transpose()?.unwrap_or_default();
        let extras = Extras { description, kms_key_id, tags: collect(tags), replicas };
        let now_ms = self.now_ms;
        let written = self.vault().create(arn, &name, value, &token, extras, now_ms)?;
        let mut answer = json!({ "ARN": written.arn, "Name": written.name });
        insert(&mut answer, "VersionId", written.version_id);
        let secret = self.vault().find(&name)?;
        let status = Some(secret).filter(|secret| !secret.replicas.is_empty()).map(replication_json);
        insert(&mut answer, "ReplicationStatus", status);
        Ok(answer)
    }

    fn update(&mut self, update: Update) -> Result<Json, Refusal> {
        let Update { secret_id, client_request_token, secret_string, secret_binary, description, kms_key_id } = update;
        self.authorise("UpdateSecret", &secret_id)?;
        let value = value(secret_string, secret_binary)?;
        self.echo("UpdateSecret", &secret_id, value.as_ref())?;
        let value = match value {
            Some(value) => Some((required_token(client_request_token)?, value)),
            None => None,
        };
        let now_ms = self.now_ms;
        let written = self.vault().update(&secret_id, Changes { description, kms_key_id, value }, now_ms)?;
        let mut answer = json!({ "ARN": written.arn, "Name": written.name });
        insert(&mut answer, "VersionId", written.version_id);
        Ok(answer)
    }

    fn put(&mut self, put: Put) -> Result<Json, Refusal> {
        let Put { secret_id, client_request_token, secret_string, secret_binary, version_stages } = put;
        self.authorise("PutSecretValue", &secret_id)?;
        let token = required_token(client_request_token)?;
        let value = value(secret_string, secret_binary)?.ok_or_else(|| {
            Refusal::new("InvalidRequestException", "You must provide either SecretString or SecretBinary.")
        })?;
        self.echo("PutSecretValue", &secret_id, Some(&value))?;
        let stages = version_stages.unwrap_or_else(|| vec![CURRENT.to_owned()]);
        let now_ms = self.now_ms;
        let written = self.vault().put(&secret_id, value, &token, &stages, now_ms)?;
        Ok(json!({
            "ARN": written.arn,
            "Name": written.name,
            "VersionId": written.version_id,
            "VersionStages": written.stages,
        }))
    }

    /// The fault that denies a write with the very value that was to be written.
    fn echo(&self, action: &str, id: &str, value: Option<&Value>) -> Result<(), Refusal> {
        let echoes = self.strikes.iter().any(|strike| matches!(strike.kind, FaultKind::EchoValue));
        if echoes { Err(echo(self.principal, action, id, value)) } else { Ok(()) }
    }

    fn delete(&mut self, delete: &Delete) -> Result<Json, Refusal> {
        let Delete { secret_id, recovery_window_in_days, force_delete_without_recovery } = delete;
        self.authorise("DeleteSecret", secret_id)?;
        let forced = force_delete_without_recovery.unwrap_or_default();
        let invalid = |message: &str| Err(Refusal::new("InvalidParameterException", message));
        let days = match (forced, recovery_window_in_days) {
            (true, Some(_)) => {
                return invalid("You can't use ForceDeleteWithoutRecovery in conjunction with RecoveryWindowInDays.");
            }
            (true, None) => None,
            (false, days) => Some(days.unwrap_or(30)),
        };
        if days.is_some_and(|days| !(7..=30).contains(&days)) {
            return invalid("The RecoveryWindowInDays value must be between 7 and 30 days (inclusive).");
        }
        let now_ms = self.now_ms;
        let removed = self.vault().delete(secret_id, days, now_ms)?;
        Ok(json!({ "ARN": removed.arn, "Name": removed.name, "DeletionDate": seconds(removed.due_ms) }))
    }

    fn restore(&mut self, one: &One) -> Result<Json, Refusal> {
        self.authorise("RestoreSecret", &one.secret_id)?;
        let written = self.vault().restore(&one.secret_id)?;
        Ok(json!({ "ARN": written.arn, "Name": written.name }))
    }

    fn describe(&mut self, one: &One) -> Result<Json, Refusal> {
        self.authorise("DescribeSecret", &one.secret_id)?;
        let vault = self.vault();
        let json = description_json(vault.find(&one.secret_id)?);
        vault.described(&one.secret_id);
        Ok(json)
    }

    fn tag(&mut self, tag: TagResource) -> Result<Json, Refusal> {
        self.authorise("TagResource", &tag.secret_id)?;
        self.vault().tag(&tag.secret_id, collect(tag.tags))?;
        Ok(json!({}))
    }

    fn untag(&mut self, untag: &UntagResource) -> Result<Json, Refusal> {
        self.authorise("UntagResource", &untag.secret_id)?;
        self.vault().untag(&untag.secret_id, &untag.tag_keys)?;
        Ok(json!({}))
    }

    fn replicate(&mut self, replicate: Replicate) -> Result<Json, Refusal> {
        self.authorise("ReplicateSecretToRegions", &replicate.secret_id)?;
        let secret = self.vault().replicate(&replicate.secret_id, replicas(replicate.add_replica_regions)?)?;
        Ok(json!({ "ARN": secret.arn, "ReplicationStatus": replication_json(secret) }))
    }

    fn unreplicate(&mut self, unreplicate: &Unreplicate) -> Result<Json, Refusal> {
        let Unreplicate { secret_id, remove_replica_regions } = unreplicate;
        self.authorise("RemoveRegionsFromReplication", secret_id)?;
        let shown = self.world.slow_replication;
        let secret = self.vault().unreplicate(secret_id, remove_replica_regions, shown)?;
        Ok(json!({ "ARN": secret.arn, "ReplicationStatus": replication_json(secret) }))
    }

    fn move_stage(&mut self, moved: &MoveStage) -> Result<Json, Refusal> {
        let MoveStage { secret_id, version_stage, remove_from_version_id, move_to_version_id } = moved;
        self.authorise("UpdateSecretVersionStage", secret_id)?;
        let (from, to) = (remove_from_version_id.as_deref(), move_to_version_id.as_deref());
        let now_ms = self.now_ms;
        let written = self.vault().move_stage(secret_id, version_stage, from, to, now_ms)?;
        Ok(json!({ "ARN": written.arn, "Name": written.name }))
    }
}

/// A part of a batch: the token that names it holds all of this.
struct Page {
    offset: usize,
    size: usize,
    then: usize,
}

// === impl Page ===

impl Page {
    fn first(strikes: &[Strike]) -> Self {
        let size = strikes.iter().find_map(|strike| match strike.kind {
            FaultKind::Pages(size) => Some(size),
            _ => None,
        });
        let size = size.unwrap_or(BATCH_LIMIT);
        Self { offset: 0, size, then: if size == 0 { BATCH_LIMIT } else { size } }
    }

    fn parse(token: &str) -> Option<Self> {
        let token = STANDARD.decode(token).ok()?;
        let (offset, size) = std::str::from_utf8(&token).ok()?.split_once(' ')?;
        let size = size.parse().ok()?;
        Some(Self { offset: offset.parse().ok()?, size, then: size })
    }

    fn next(&self, all: usize) -> Option<String> {
        let offset = self.offset + self.size;
        (offset < all).then(|| STANDARD.encode(format!("{offset} {}", self.then)))
    }
}

/// What a body says, as far as it can be read.
pub(crate) fn named(body: &[u8]) -> Named {
    let mut parameters: Json = serde_json::from_slice(body).unwrap_or_default();
    if let Some(parameters) = parameters.as_object_mut() {
        parameters.remove("SecretString");
        parameters.remove("SecretBinary");
    }
    let one = ["SecretId", "Name"].iter().find_map(|key| parameters.get(key)?.as_str());
    let many = parameters.get("SecretIdList").and_then(Json::as_array).into_iter().flatten();
    let secret_ids = one.into_iter().chain(many.filter_map(Json::as_str)).map(str::to_owned).collect();
    Named { secret_ids, parameters }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    // serde's message could quote a value.
    let json: Json = serde_json::from_slice(body).map_err(|_| Refusal::new("SerializationException", ""))?;
    serde_json::from_value(json).map_err(|_| {
        Refusal::new(
            "ValidationException",
            "1 validation error detected: a member is missing (Member must not be null) or of the wrong type",
        )
    })
}

fn value(text: Option<String>, binary: Option<String>) -> Result<Option<Value>, Refusal> {
    match (text, binary) {
        (Some(_), Some(_)) => Err(Refusal::new(
            "InvalidParameterException",
            "You can't specify both a binary secret value and a string secret value in the same secret.",
        )),
        (Some(text), None) => Ok(Some(Value::Text(text))),
        (None, Some(base64)) => {
            let bytes = STANDARD.decode(base64).map_err(|_| Refusal::new("SerializationException", ""))?;
            Ok(Some(Value::Binary(bytes)))
        }
        (None, None) => Ok(None),
    }
}

fn echo(principal: &Principal, action: &str, id: &str, value: Option<&Value>) -> Refusal {
    let denial = access::denial(principal, &format!("secretsmanager:{action}"), id);
    Refusal::new("AccessDeniedException", format!("{denial}: {}", value.map(shown).unwrap_or_default()))
}

fn required_token(token: Option<String>) -> Result<String, Refusal> {
    let message = "You must provide a ClientRequestToken value. We recommend a UUID-type value.";
    token.ok_or_else(|| Refusal::new("InvalidRequestException", message))
}

fn collect(tags: Vec<Tag>) -> BTreeMap<String, String> {
    tags.into_iter().map(|Tag { key, value }| (key, value)).collect()
}

fn replicas(regions: Vec<Replica>) -> Result<BTreeMap<String, secrets::Replica>, Refusal> {
    secrets::length("addReplicaRegions", regions.len(), 1, usize::MAX)?;
    let replica = |Replica { region, kms_key_id }: Replica| (region, secrets::Replica { kms_key_id, leaving: None });
    Ok(regions.into_iter().map(replica).collect())
}

pub(crate) fn value_json(found: &Found<'_>) -> Json {
    let Found { secret, version, stages } = found;
    let mut json = json!({
        "ARN": secret.arn,
        "Name": secret.name,
        "VersionId": version.id,
        "VersionStages": stages,
        "CreatedDate": seconds(version.created_ms),
    });
    let key = match version.value {
        Value::Text(_) => "SecretString",
        Value::Binary(_) => "SecretBinary",
    };
    insert(&mut json, key, Some(shown(&version.value)));
    json
}

fn description_json(secret: &Secret) -> Json {
    let tags: Vec<Json> = secret.tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect();
    let labelled = secret.versions.iter().filter(|version| !version.stages.is_empty());
    let versions: BTreeMap<&str, &BTreeSet<String>> =
        labelled.map(|version| (version.id.as_str(), &version.stages)).collect();
    let mut json = json!({
        "ARN": secret.arn,
        "Name": secret.name,
        "Tags": tags,
        "VersionIdsToStages": versions,
        "CreatedDate": seconds(secret.created_ms),
        "LastChangedDate": seconds(secret.changed_ms),
    });
    if !secret.replicas.is_empty() {
        insert(&mut json, "ReplicationStatus", Some(replication_json(secret)));
        insert(&mut json, "PrimaryRegion", secret.arn.split(':').nth(3));
    }
    insert(&mut json, "PrimaryRegion", secret.primary_region.clone());
    insert(&mut json, "OwningService", secret.owner.clone());
    insert(&mut json, "Description", secret.description.clone());
    insert(&mut json, "KmsKeyId", secret.kms_key_id.clone());
    insert(&mut json, "DeletedDate", secret.deletion().map(|deletion| seconds(deletion.asked_ms)));
    json
}

fn replication_json(secret: &Secret) -> Json {
    let replica = |(region, replica): (&String, &secrets::Replica)| {
        let status = if replica.leaving.is_some() { "InProgress" } else { "InSync" };
        let mut json = json!({ "Region": region, "Status": status });
        insert(&mut json, "KmsKeyId", replica.kms_key_id.clone());
        json
    };
    secret.replicas.iter().map(replica).collect()
}

fn insert(json: &mut Json, key: &str, value: Option<impl Into<Json>>) {
    if let (Some(object), Some(value)) = (json.as_object_mut(), value) {
        object.insert(key.to_owned(), value.into());
    }
}

pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        Value::Binary(bytes) => STANDARD.encode(bytes),
    }
}

/// Seconds since 1970 with their milliseconds, as the protocol writes an instant.
fn seconds(ms: i64) -> f64 {
    let whole = i32::try_from(ms.div_euclid(1000)).unwrap_or(i32::MAX);
    let part = i32::try_from(ms.rem_euclid(1000)).unwrap_or_default();
    f64::from(whole) + f64::from(part) / 1000.0
}
