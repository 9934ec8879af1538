//! Asking AWS, without changing anything: who this is, what it may read, what it could store.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Serialize;

use super::RUN;
use crate::{
    aws::{auth::Auth, client::Connection, iam},
    cli::identity_lines,
    config::{Config, OnMissing},
    daemon,
    domain::{
        identity::Caller,
        mapping::Request,
        snapshot::{Problem, Reason},
    },
    health::{IdentityStatus, timestamp},
    metrics::Metrics,
    plan::{
        fan_out::{Ledger, Mapping},
        policy::{Need, Place, Policy, reads, writes},
    },
    telemetry,
};

/// What AWS said.
#[derive(Debug, Default, Serialize)]
pub(super) struct Online {
    reader: Option<IdentityStatus>,
    writer: Option<IdentityStatus>,
    /// What else somebody should know.
    remarks: Vec<String>,
    secrets: Vec<SecretReport>,
    /// True: read one by one, which `run` would do too.
    batch_denied: bool,
    /// What storing virtual keys needs, which cannot be tried.
    writes: Vec<NeedReport>,
    /// What would allow what is denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    allow: Option<Policy>,
}

#[derive(Debug, Serialize)]
struct SecretReport {
    secret: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<String>,
    /// `read`, or the reason why not.
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

#[derive(Debug, Serialize)]
struct NeedReport {
    action: &'static str,
    resource: String,
    verdict: Verdict,
}

/// What is known of something that cannot be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// Nothing: Secrets Manager has no dry run, and IAM was not asked or did not say.
    NotProvable,
    /// IAM says that the policies allow it.
    Allowed,
    /// IAM says that they do not.
    Denied,
}

/// How problems begin that concern virtual keys only.
const STORING: &str = "virtual keys could not be stored";

/// Asks AWS, and changes nothing. The problems are those with which `run` would fail.
pub(super) async fn online(config: Config, simulate: bool) -> anyhow::Result<(Online, Vec<String>)> {
    let Config { mut aws, keys, wholesale, refresh, virtual_keys, .. } = config;
    let metrics = Arc::new(Metrics::new(std::iter::empty()));
    let statuses = (daemon::described(&aws, &aws.reader), aws.writer.as_ref().map(|one| daemon::described(&aws, one)));
    let connection = Connection::new(&aws, refresh.call_timeout, telemetry::wall_clock(), metrics)?;
    let (region, endpoints) = (aws.region.clone(), aws.endpoints.clone());
    let writer = aws.writer.take();
    let mut reader = daemon::reader(aws, &connection)?;
    let writer = writer.map(|writer| reader.auth.beside(writer)).transpose()?;
    let mut online = Online::default();
    let mut problems = Vec::new();

    let reading = prove(&reader.auth, statuses.0, RUN, &mut online.reader, (&mut problems, &mut online.remarks)).await;
    // Who reads also writes, unless somebody else does.
    let (who_writes, writing) = match (&writer, statuses.1) {
        (Some(writer), Some(status)) => {
            (writer, prove(writer, status, STORING, &mut online.writer, (&mut problems, &mut online.remarks)).await)
        }
        _ => (&reader.auth, reading.clone()),
    };
    let who_writes = Arc::clone(who_writes);
    for (role, (arn, region)) in virtual_keys.iter().flat_map(|keys| keys.teams.iter().zip(&keys.rules.teams)) {
        match who_writes.then(role.clone()).ready().await {
            Ok(()) => online.remarks.push(format!("team {arn} in {region}: may be assumed")),
            Err(problem) => problems.push(format!("{STORING} for team {arn}: {problem}")),
        }
    }
    let mut denied = Vec::new();
    if let Some(caller) = reading {
        let place = Place { region: &region, account: caller.as_ref().map(Caller::account) };
        let mapping = Mapping::new(keys, wholesale);
        let snapshot = reader.source.read(&mapping.requests()).await;
        for (request, answer) in &snapshot {
            let problem = answer.as_ref().err();
            if problem.is_some_and(|problem| problem.reason == Reason::Denied) {
                denied.extend(reads(&[request.clone()].into(), false, &place));
            }
            online.secrets.push(SecretReport::of(request, problem));
        }
        online.batch_denied = reader.source.is_batch_denied();
        denied.extend(reads(&[].into(), online.batch_denied, &place));
        let skip = refresh.on_missing == OnMissing::Skip;
        let mut ledger = Ledger::recovered(&mapping, BTreeMap::new(), BTreeMap::new());
        ledger.apply(&mapping, snapshot, false);
        let missing = ledger.missing(&mapping, skip);
        problems.extend(missing.into_iter().map(|(what, problem)| format!("{RUN}: {what}: {problem}")));
    }
    if let (Some(Some(caller)), Some(virtual_keys)) = (writing, virtual_keys) {
        let place = Place { region: &region, account: Some(caller.account()) };
        let needs = writes(&virtual_keys.rules, &place);
        let decisions = if simulate {
            let asked = ask_iam(&connection, endpoints.iam.as_deref(), &who_writes, &caller, &needs).await;
            asked.inspect_err(|problem| problems.push(format!("{STORING}, as far as can be told: {problem}"))).ok()
        } else {
            None
        };
        for need in needs {
            let (verdict, problem) = judge(&need, decisions.as_deref(), &caller);
            problems.extend(problem.map(|problem| format!("{STORING}: {problem}")));
            if verdict == Verdict::Denied {
                denied.push(need.clone());
            }
            online.writes.push(NeedReport { action: need.action, resource: need.resource, verdict });
        }
    }
    online.allow = (!denied.is_empty()).then(|| Policy::allowing(&denied));
    Ok((online, problems))
}

/// What IAM decided of a need, where it was asked, and what is wrong with that.
fn judge(need: &Need, decisions: Option<&[iam::Decision]>, caller: &Caller) -> (Verdict, Option<String>) {
    let Need { action, resource } = need;
    let Some(decisions) = decisions else { return (Verdict::NotProvable, None) };
    let decisions: Vec<_> = decisions.iter().filter(|decision| decision.action == *action).collect();
    match decisions[..] {
        [_, ..] if decisions.iter().all(|decision| decision.allowed) => (Verdict::Allowed, None),
        [_, ..] => (Verdict::Denied, Some(format!("the policies of {caller} do not allow {action} on {resource}"))),
        [] => (Verdict::NotProvable, Some(format!("the answer of SimulatePrincipalPolicy says nothing of {action}"))),
    }
}

/// Proves that there are credentials, and says whose they are; the inner one is none where only that could not be asked.
async fn prove(
    auth: &Auth,
    status: IdentityStatus,
    without: &str,
    report: &mut Option<IdentityStatus>,
    (problems, remarks): (&mut Vec<String>, &mut Vec<String>),
) -> Option<Option<Caller>> {
    let status = report.insert(status);
    if let Err(problem) = auth.ready().await {
        problems.push(format!("{without}: {problem}"));
        return None;
    }
    let known = auth.known().await;
    let caller = match known.caller {
        Some(caller) => Some(caller),
        None => match auth.caller().await {
            Ok(caller) => Some(caller),
            Err(problem) if problem.reason == Reason::Identity => {
                problems.push(format!("{without}: {problem}"));
                return None;
            }
            // Nobody needs to know who reads, but for whom it may be.
            Err(problem) => {
                remarks.push(format!("who that is was not told: {problem}"));
                None
            }
        },
    };
    status.account = caller.as_ref().map(|caller| caller.account().to_string());
    status.caller = caller.as_ref().map(Caller::to_string);
    status.expires = known.expires_at.and_then(timestamp);
    status.token_expires = known.token_expires_at.and_then(timestamp);
    Some(caller)
}

/// Asks IAM about a secret below the prefix that there is not.
async fn ask_iam(
    connection: &Connection,
    endpoint: Option<&str>,
    auth: &Auth,
    caller: &Caller,
    needs: &[Need],
) -> Result<Vec<iam::Decision>, Problem> {
    let actions: Vec<&str> = needs.iter().map(|need| need.action).collect();
    let resources: BTreeSet<String> = needs
        .iter()
        .map(|need| need.resource.replace('*', "keytide-check-AbCdEf").replace("-??????", "-AbCdEf"))
        .collect();
    let resources: Vec<String> = resources.into_iter().collect();
    // IAM wants the role itself, whose path only the configuration knows.
    let source = match (auth.role().filter(|role| caller.is_role(role)), caller.role_name()) {
        (Some(role), _) => role.to_string(),
        (None, Some(name)) => format!("arn:{}:iam::{}:role/{name}", caller.partition(), caller.account()),
        (None, None) => caller.to_string(),
    };
    iam::simulate(connection, endpoint, auth, &source, &actions, &resources).await
}

// === impl Online ===

impl Online {
    /// For people: a name and a text a line; no name where it belongs to the line before.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let Self { reader, writer, remarks, secrets, batch_denied, writes, allow } = self;
        let mut lines = Vec::new();
        let mut line = |name: &'static str, text: String| lines.push((name, text));
        for (name, identity) in [("identity", reader), ("writer", writer)] {
            for (i, text) in identity.iter().flat_map(identity_lines).enumerate() {
                line(if i == 0 { name } else { "" }, text);
            }
            if identity.as_ref().is_some_and(|identity| identity.caller.is_none()) {
                line("", "NOT PROVED".to_owned());
            }
        }
        for remark in remarks {
            line("remark", remark.clone());
        }
        for SecretReport { secret, stage, result, message: _ } in secrets {
            let stage = stage.as_ref().map(|stage| format!(" at {stage}")).unwrap_or_default();
            let result = if *result == "read" { "may be read".to_owned() } else { format!("NOT READ ({result})") };
            line("secret", format!("{secret}{stage}: {result}"));
        }
        if *batch_denied {
            line("batch", "BatchGetSecretValue is denied: secrets are read one by one".to_owned());
        }
        let mut verdicts: BTreeMap<(Verdict, &str), Vec<&str>> = BTreeMap::new();
        for NeedReport { action, resource, verdict } in writes {
            let action = action.rsplit(':').next().unwrap_or(action);
            verdicts.entry((*verdict, resource)).or_default().push(action);
        }
        for ((verdict, resource), actions) in verdicts {
            let verdict = match verdict {
                Verdict::NotProvable => "not provable without writing (--simulate asks IAM)",
                Verdict::Allowed => "allowed, says IAM",
                Verdict::Denied => "DENIED, says IAM",
            };
            line("writes", format!("{verdict}: {} on {resource}", actions.join(", ")));
        }
        if let Some(policy) = allow {
            line("allow", serde_json::to_string(policy).unwrap_or_default());
        }
        lines
    }
}

// === impl SecretReport ===

impl SecretReport {
    fn of(request: &Request, problem: Option<&Problem>) -> Self {
        Self {
            secret: request.secret.to_string(),
            stage: request.stage.as_ref().map(ToString::to_string),
            result: problem.map_or("read", |problem| problem.reason.label()),
            message: problem.map(|problem| problem.message.clone()),
        }
    }
}
