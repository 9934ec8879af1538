//! Where virtual keys go: the calls of `plan/push.rs`, made to AWS Secrets Manager.
//!
//! Apart from the source: other IAM actions, other errors, other quotas. Values go by `CreateSecret` and `PutSecretValue`
//! alone, since `UpdateSecret` with a token that AWS knows is an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use aws_sdk_secretsmanager::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::describe_secret::DescribeSecretOutput,
    types::{ReplicaRegionType, ReplicationStatusType, Tag},
};

use crate::{
    aws::{
        auth::Auth,
        outcome::{Failure, Raw},
    },
    domain::{
        names::SecretName,
        snapshot::{Problem, Reason},
        value::SecretValue,
        virtual_key::{Metadata, Token},
    },
    plan::push::{Answer, Call, Description, Pause, Refusal, RefusalKind},
};

/// The label of the version that readers get (AWS, staging labels).
const CURRENT: &str = "AWSCURRENT";
/// How AWS names its own key (AWS, `KmsKeyId`).
const OWN_KEY: &str = "alias/aws/secretsmanager";

/// Somebody who writes, in one region.
#[derive(Debug)]
pub struct Store {
    client: Client,
    auth: Arc<Auth>,
    region: String,
}

/// What an entry carries on its way: its token, and the value that is written. A secret that is renamed brings its own.
#[derive(Debug)]
pub struct Parcel {
    /// The `ClientRequestToken`.
    pub token: Token,
    /// The value, once it is known.
    pub value: Option<Content>,
}

/// A value as AWS has it.
#[derive(Debug)]
pub enum Content {
    /// `SecretString`.
    Text(SecretValue),
    /// `SecretBinary`, which only a renamed secret can be: its base64.
    Binary(SecretValue),
}

// === impl Store ===

impl Store {
    /// Writes with this client, whose credentials are those of `auth`.
    #[must_use]
    pub fn new(client: Client, auth: Arc<Auth>, region: String) -> Self {
        Self { client, auth, region }
    }

    /// The region of the secrets.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Who writes.
    #[must_use]
    pub fn auth(&self) -> &Arc<Auth> {
        &self.auth
    }

    /// Makes one call.
    ///
    /// # Errors
    /// If AWS refused it, or it failed.
    pub async fn carry_out(&self, call: &Call, parcel: &mut Parcel) -> Result<Answer, Refusal> {
        if let Err(problem) = self.auth.ready().await {
            return Err(Refusal { kind: RefusalKind::Transient(Pause::Backoff), problem });
        }
        let answer = self.send(call, parcel).await;
        // A wrong signature may be that of a wrong key.
        if let Err(refusal) = &answer
            && matches!(refusal.problem.reason, Reason::Identity | Reason::Clock)
        {
            self.auth.reject().await;
        }
        answer
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each call")]
    async fn send(&self, call: &Call, parcel: &mut Parcel) -> Result<Answer, Refusal> {
        let Self { client, .. } = self;
        let token = parcel.token.to_string();
        if let Call::Create(name, _) | Call::Put(name) = call
            && parcel.value.is_none()
        {
            return Err(unreadable("GetSecretValue", name));
        }
        match call {
            Call::Describe(name) => {
                let answer = client.describe_secret().secret_id(name.as_str()).send().await;
                let described = answer.map_err(|error| self.refusal("DescribeSecret", name, &error))?;
                Ok(Answer::Described(self.description(described, parcel.token)))
            }
            Call::Read(name) => {
                let answer = client.get_secret_value().secret_id(name.as_str()).send().await;
                let read = answer.map_err(|error| self.refusal("GetSecretValue", name, &error))?;
                parcel.value = match (read.secret_string, read.secret_binary) {
                    (Some(text), _) => Some(Content::Text(SecretValue::new(text))),
                    (None, Some(blob)) => Some(Content::Binary(SecretValue::from_binary(blob.as_ref()))),
                    (None, None) => return Err(unreadable("GetSecretValue", name)),
                };
                Ok(Answer::Done)
            }
            Call::Create(name, metadata) => {
                let Metadata { description, tags, kms_key_id, replica_regions } = metadata;
                let (text, binary) = content(parcel.value.as_ref());
                let answer = client
                    .create_secret()
                    .name(name.as_str())
                    .client_request_token(token)
                    .set_secret_string(text)
                    .set_secret_binary(binary)
                    .set_description(description.clone())
                    .set_kms_key_id(kms_key_id.clone())
                    .set_tags(some(tags_of(tags)))
                    .set_add_replica_regions(some(regions_of(replica_regions)))
                    .send()
                    .await;
                answer.map_err(|error| self.refusal("CreateSecret", name, &error))?;
                Ok(Answer::Written { current: true })
            }
            Call::Put(name) => {
                let (text, binary) = content(parcel.value.as_ref());
                let answer = client
                    .put_secret_value()
                    .secret_id(name.as_str())
                    .client_request_token(token)
                    .set_secret_string(text)
                    .set_secret_binary(binary)
                    .send()
                    .await;
                let written = answer.map_err(|error| self.refusal("PutSecretValue", name, &error))?;
                let stages = written.version_stages.unwrap_or_default();
                Ok(Answer::Written { current: stages.iter().any(|stage| stage == CURRENT) })
            }
            Call::Restore(name) => {
                let answer = client.restore_secret().secret_id(name.as_str()).send().await;
                answer.map_err(|error| self.refusal("RestoreSecret", name, &error))?;
                Ok(Answer::Done)
            }
            Call::Update(name, description, key) => {
                let answer = client
                    .update_secret()
                    .secret_id(name.as_str())
                    .description(description)
                    .set_kms_key_id(key.clone())
                    .send()
                    .await;
                answer.map_err(|error| self.refusal("UpdateSecret", name, &error))?;
                Ok(Answer::Done)
            }
            Call::Tag(name, tags) => {
                let answer = client.tag_resource().secret_id(name.as_str()).set_tags(Some(tags_of(tags))).send().await;
                answer.map_err(|error| self.refusal("TagResource", name, &error))?;
                Ok(Answer::Done)
            }
            Call::Untag(name, keys) => {
                let keys = keys.iter().cloned().collect();
                let answer = client.untag_resource().secret_id(name.as_str()).set_tag_keys(Some(keys)).send().await;
                answer.map_err(|error| self.refusal("UntagResource", name, &error))?;
                Ok(Answer::Done)
            }
            Call::Replicate(name, regions) => {
                let answer = client
                    .replicate_secret_to_regions()
                    .secret_id(name.as_str())
                    .set_add_replica_regions(Some(regions_of(regions)))
                    .send()
                    .await;
                answer.map_err(|error| self.refusal("ReplicateSecretToRegions", name, &error))?;
                Ok(Answer::Done)
            }
            Call::Unreplicate(name, regions) => {
                let answer = client
                    .remove_regions_from_replication()
                    .secret_id(name.as_str())
                    .set_remove_replica_regions(Some(regions.iter().cloned().collect()))
                    .send()
                    .await;
                let left = answer.map_err(|error| self.refusal("RemoveRegionsFromReplication", name, &error))?;
                Ok(Answer::Replicas(replicas_of(left.replication_status)))
            }
            Call::Delete(name, days) => {
                let answer = client
                    .delete_secret()
                    .secret_id(name.as_str())
                    .recovery_window_in_days(i64::from(*days))
                    .send()
                    .await;
                answer.map_err(|error| self.refusal("DeleteSecret", name, &error))?;
                Ok(Answer::Done)
            }
        }
    }

    fn description(&self, described: DescribeSecretOutput, token: Token) -> Description {
        let DescribeSecretOutput {
            description,
            kms_key_id,
            deleted_date,
            owning_service,
            primary_region,
            replication_status,
            tags,
            version_ids_to_stages,
            ..
        } = described;
        let versions = version_ids_to_stages.unwrap_or_default();
        let is_current = |stages: &Vec<String>| stages.iter().any(|stage| stage == CURRENT);
        let tags = tags
            .unwrap_or_default()
            .into_iter()
            .filter_map(|Tag { key, value, .. }| Some((key?, value.unwrap_or_default())));
        Description {
            current: versions.iter().find(|(_, stages)| is_current(stages)).map(|(id, _)| id.clone()),
            ours: versions.get(&token.to_string()).map(is_current),
            deleted: deleted_date.is_some(),
            managed: owning_service.is_some_and(|service| !service.is_empty()),
            replica: primary_region.is_some_and(|region| !region.is_empty() && region != self.region),
            metadata: Metadata {
                description: description.filter(|text| !text.is_empty()),
                // Nobody but AWS sets or removes its own.
                tags: tags.filter(|(key, _)| !key.starts_with("aws:")).collect(),
                kms_key_id: kms_key_id.filter(|key| !key.is_empty() && !key.ends_with(OWN_KEY)),
                replica_regions: replicas_of(replication_status),
            },
        }
    }

    fn refusal<E: ProvideErrorMetadata>(&self, action: &str, name: &SecretName, error: &SdkError<E, Raw>) -> Refusal {
        let failure = Failure::of(error);
        let problem = failure.write_problem(action, &format!("secret {name}"), &self.auth.who());
        let kind = match (failure.code.as_str(), failure.reason) {
            ("ResourceExistsException", _) => RefusalKind::Exists,
            ("ResourceNotFoundException", _) => RefusalKind::Absent,
            ("InvalidRequestException", _) => RefusalKind::State,
            ("ValidationException" | "InvalidParameterException", _) => RefusalKind::Invalid,
            (_, Reason::Denied | Reason::Refused | Reason::Unknown) => RefusalKind::Transient(Pause::Slow),
            _ => RefusalKind::Transient(Pause::Backoff),
        };
        Refusal { kind, problem }
    }
}

fn content(value: Option<&Content>) -> (Option<String>, Option<aws_sdk_secretsmanager::primitives::Blob>) {
    match value {
        Some(Content::Text(text)) => (Some(text.expose().to_owned()), None),
        Some(Content::Binary(base64)) => (None, base64.to_binary().map(aws_sdk_secretsmanager::primitives::Blob::new)),
        None => (None, None),
    }
}

/// Nothing is not the empty list.
fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

fn tags_of(tags: &BTreeMap<String, String>) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

fn regions_of(regions: &BTreeSet<String>) -> Vec<ReplicaRegionType> {
    regions.iter().map(|region| ReplicaRegionType::builder().region(region).build()).collect()
}

fn replicas_of(status: Option<Vec<ReplicationStatusType>>) -> BTreeSet<String> {
    status.unwrap_or_default().into_iter().filter_map(|replica| replica.region).collect()
}

fn unreadable(action: &str, name: &SecretName) -> Refusal {
    let message = format!("failed to call {action} for secret {name}: the answer holds no value");
    Refusal { kind: RefusalKind::Transient(Pause::Backoff), problem: Problem::new(Reason::Unavailable, message) }
}
