//! Reading from AWS Secrets Manager with the fewest calls that its quotas reward.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use aws_sdk_secretsmanager::{
    Client,
    operation::get_secret_value::GetSecretValueOutput,
    primitives::{Blob, DateTime},
    types::SecretValueEntry,
};
use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;

use crate::{
    aws::{
        auth::Auth,
        outcome::{Failure, STAGE},
    },
    domain::{
        mapping::Request,
        names::{SecretId, VersionId},
        snapshot::{Problem, Reading, Reason, Snapshot, Version},
        value::SecretValue,
    },
};

/// Up to so many secrets are read singly: `GetSecretValue` has a hundred times the quota of `BatchGetSecretValue`.
const SINGLY: usize = 5;
/// The most ids of one `BatchGetSecretValue` (AWS, `SecretIdList`).
const BATCH: usize = 20;
/// Calls that are under way at once.
const IN_FLIGHT: usize = 8;
/// A batch of 20 whole secrets is 1.3 MB, and AWS may split it; more pages than ids would go on for ever.
const MOST_PAGES: usize = BATCH + 1;
/// How long a denied batch call is remembered.
const DENIED_FOR: Duration = Duration::from_hours(24);

/// A reader of secrets.
#[derive(Debug)]
pub struct SecretsManager {
    client: Client,
    auth: Arc<Auth>,
    batch_denied: Option<Instant>,
}

enum Call {
    Get(Request),
    Batch(Vec<Request>),
}

type Answers = Vec<(Request, Result<Reading, Problem>)>;

// === impl SecretsManager ===

impl SecretsManager {
    /// A reader with this client, whose credentials are those of `auth`.
    #[must_use]
    pub fn new(client: Client, auth: Arc<Auth>) -> Self {
        Self { client, auth, batch_denied: None }
    }

    /// Reads each request once. Every request comes back, as a reading or as a problem.
    pub async fn read(&mut self, requests: &BTreeSet<Request>) -> Snapshot {
        if requests.is_empty() {
            return Snapshot::new();
        }
        if let Err(problem) = self.auth.ready().await {
            return requests.iter().map(|request| (request.clone(), Err(problem.clone()))).collect();
        }
        let batches = self.batch_denied.is_none_or(|at| at.elapsed() >= DENIED_FOR);
        if batches {
            self.batch_denied = None;
        }
        let mut snapshot = self.carry_out(calls(requests, batches)).await;
        // The batch permission is one of its own. Whoever lacks it reads one by one; throttling never leads here.
        let denied =
            |answer: &Result<Reading, Problem>| answer.as_ref().is_err_and(|problem| problem.reason == Reason::Denied);
        if batches && self.batch_denied.is_some() {
            let again: BTreeSet<Request> =
                snapshot.iter().filter(|(_, answer)| denied(answer)).map(|(request, _)| request.clone()).collect();
            snapshot.extend(self.carry_out(calls(&again, false)).await);
        }
        // A wrong signature may be that of a wrong key.
        let rejected = |problem: &Problem| matches!(problem.reason, Reason::Identity | Reason::Clock);
        if snapshot.values().any(|answer| answer.as_ref().is_err_and(rejected)) {
            self.auth.reject().await;
        }
        snapshot
    }

    /// True while secrets are read one by one, since the batch call is denied.
    #[must_use]
    pub fn is_batch_denied(&self) -> bool {
        self.batch_denied.is_some()
    }

    async fn carry_out(&mut self, calls: Vec<Call>) -> Snapshot {
        let (client, who) = (&self.client, self.auth.who());
        let who = who.as_str();
        let answers: Vec<(Answers, bool)> = stream::iter(calls)
            .map(|call| async move {
                match call {
                    Call::Get(request) => (vec![get(client, request, who).await], false),
                    Call::Batch(requests) => batch(client, requests, who).await,
                }
            })
            .buffer_unordered(IN_FLIGHT)
            .collect()
            .await;
        if answers.iter().any(|(_, denied)| *denied) {
            tracing::warn!(
                "secretsmanager:BatchGetSecretValue is denied: secrets are read one by one for a day; allow it on * to {who}"
            );
            self.batch_denied = Some(Instant::now());
        }
        answers.into_iter().flat_map(|(answers, _)| answers).collect()
    }
}

/// How many calls of which kind one refresh makes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallCount {
    /// `GetSecretValue`.
    pub get: usize,
    /// `BatchGetSecretValue`.
    pub batch: usize,
}

/// How many calls one refresh of these requests makes.
#[must_use]
pub fn call_count(requests: &BTreeSet<Request>) -> CallCount {
    calls(requests, true).iter().fold(CallCount::default(), |CallCount { get, batch }, call| match call {
        Call::Get(_) => CallCount { get: get + 1, batch },
        Call::Batch(_) => CallCount { get, batch: batch + 1 },
    })
}

/// One call a secret up to five, and where a version stage is asked for, which the batch call cannot say.
fn calls(requests: &BTreeSet<Request>, batches: bool) -> Vec<Call> {
    let (plain, staged): (Vec<Request>, Vec<Request>) =
        requests.iter().cloned().partition(|request| request.stage.is_none());
    let mut calls: Vec<Call> = staged.into_iter().map(Call::Get).collect();
    if plain.len() <= SINGLY || !batches {
        calls.extend(plain.into_iter().map(Call::Get));
    } else {
        calls.extend(plain.chunks(BATCH).map(|chunk| Call::Batch(chunk.to_vec())));
    }
    calls
}

async fn get(client: &Client, request: Request, who: &str) -> (Request, Result<Reading, Problem>) {
    let stage = request.stage.as_ref().map(ToString::to_string);
    let answer =
        client.get_secret_value().secret_id(request.secret.as_str()).set_version_stage(stage.clone()).send().await;
    let subject = match stage {
        Some(stage) => format!("secret {}{STAGE}{stage}", request.secret),
        None => format!("secret {}", request.secret),
    };
    let reading = match answer {
        Ok(GetSecretValueOutput { version_id, secret_string, secret_binary, created_date, .. }) => {
            reading(&subject, version_id, secret_string, secret_binary, created_date)
        }
        Err(error) => Err(Failure::of(&error).problem("GetSecretValue", &subject, who)),
    };
    (request, reading)
}

/// Reads a batch, all of its pages. The flag says that the call itself is denied.
async fn batch(client: &Client, requests: Vec<Request>, who: &str) -> (Answers, bool) {
    let mut waiting: BTreeMap<&SecretId, &Request> =
        requests.iter().map(|request| (&request.secret, request)).collect();
    let mut answers = Answers::with_capacity(requests.len());
    let mut token: Option<String> = None;
    let mut failed = None;
    for _ in 0..MOST_PAGES {
        let ids = requests.iter().map(|request| request.secret.to_string()).collect();
        let call = client.batch_get_secret_value().set_secret_id_list(Some(ids)).set_next_token(token.take());
        let page = match call.send().await {
            Ok(page) => page,
            Err(error) => {
                failed = Some(Failure::of(&error));
                break;
            }
        };
        for entry in page.secret_values.into_iter().flatten() {
            let SecretValueEntry { arn, name, version_id, secret_string, secret_binary, created_date, .. } = entry;
            let Some(request) = take(&mut waiting, arn.as_deref(), name.as_deref()) else { continue };
            let subject = format!("secret {}", request.secret);
            answers.push((request.clone(), reading(&subject, version_id, secret_string, secret_binary, created_date)));
        }
        for error in page.errors.into_iter().flatten() {
            let Some(request) = take(&mut waiting, error.secret_id(), error.secret_id()) else { continue };
            let failure = Failure::of_code(error.error_code());
            let subject = format!("secret {}", request.secret);
            answers.push((request.clone(), Err(failure.problem("GetSecretValue", &subject, who))));
        }
        token = page.next_token.filter(|token| !token.is_empty());
        if token.is_none() || waiting.is_empty() {
            break;
        }
    }
    let denied = failed.as_ref().is_some_and(|failure| failure.reason == Reason::Denied);
    for request in waiting.into_values() {
        let subject = format!("secret {}", request.secret);
        let problem = match &failed {
            Some(failure) => failure.problem("BatchGetSecretValue", &subject, who),
            None => Problem::new(
                Reason::Unavailable,
                format!("failed to call BatchGetSecretValue for {subject}: the answer leaves it out"),
            ),
        };
        answers.push((request.clone(), Err(problem)));
    }
    (answers, denied)
}

/// The request that an answer belongs to: asked for by name, by ARN, or by an ARN without its six random characters.
fn take<'a>(
    waiting: &mut BTreeMap<&'a SecretId, &'a Request>,
    arn: Option<&str>,
    name: Option<&str>,
) -> Option<&'a Request> {
    let by = |id: &SecretId| {
        let id = id.as_str();
        name == Some(id)
            || arn.is_some_and(|arn| {
                arn == id || arn.strip_prefix(id).is_some_and(|rest| rest.len() == 7 && rest.starts_with('-'))
            })
    };
    let id = *waiting.keys().find(|id| by(id))?;
    waiting.remove(id)
}

fn reading(
    subject: &str,
    version_id: Option<String>,
    text: Option<String>,
    binary: Option<Blob>,
    created: Option<DateTime>,
) -> Result<Reading, Problem> {
    let unreadable =
        |what: &str| Problem::new(Reason::Unavailable, format!("failed to read {subject}: the answer holds no {what}"));
    let id = version_id.and_then(|id| VersionId::parse(id).ok()).ok_or_else(|| unreadable("version id"))?;
    let value = match (text, binary) {
        (Some(text), _) => SecretValue::new(text),
        (None, Some(blob)) => SecretValue::from_binary(blob.as_ref()),
        (None, None) => return Err(unreadable("value")),
    };
    let created_ms = created.and_then(|created| created.to_millis().ok());
    Ok(Reading { value, version: Version { id, created_ms } })
}
