//! `keytide check`: what the configuration means, what it costs, and with `--online` whether AWS agrees.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::Serialize;

use super::{Exit, Form, block_on, complain, identity_lines, lines_of, print};
use crate::{
    aws::{auth::Auth, client::Connection, iam},
    config::{self, Config, Environment, OnMissing, OutputKind, Sources, VirtualKeys},
    daemon,
    domain::{
        identity::Caller,
        mapping::Request,
        snapshot::{Problem, Reason},
    },
    health::IdentityStatus,
    metrics::Metrics,
    plan::{
        fan_out::{Ledger, Mapping},
        policy::{Need, Place, Policy, reads, writes},
    },
    process,
    pull::timestamp,
    source::{self, secrets_manager::CallCount},
    telemetry,
};

/// What is asked of `check`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) shared_with_litellm: bool,
    pub(super) replicas: u32,
    pub(super) online: bool,
    pub(super) simulate: bool,
}

/// Everything that `check` says.
#[derive(Debug, Serialize)]
struct Report {
    /// True if `run` would work.
    ok: bool,
    /// Why it would not.
    problems: Vec<String>,
    /// What else somebody should know.
    notices: Vec<String>,
    region: String,
    /// How many keys the configuration names.
    keys: usize,
    /// The secrets of which every member is a key.
    wholesale: Vec<String>,
    outputs: Vec<OutputReport>,
    calls: Calls,
    /// Only with `--online`.
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<Online>,
}

#[derive(Debug, Serialize)]
struct OutputReport {
    name: String,
    kind: &'static str,
    path: String,
}

/// What refreshing costs, for all pods together.
#[derive(Debug, Serialize)]
struct Calls {
    replicas: u32,
    interval_seconds: f64,
    get_a_refresh: usize,
    batch_a_refresh: usize,
    a_day: u64,
    dollars_a_month: String,
    sts_a_day: u64,
    /// Shares of AWS's quotas for account and region, in percent.
    quotas: Vec<Share>,
}

/// The share of one quota.
#[derive(Debug, Serialize)]
struct Share {
    quota: &'static str,
    a_second: u32,
    on_average: f64,
    /// If all pods refresh in the same second, as after a rollout of all at once.
    all_at_once: f64,
}

/// What AWS said.
#[derive(Debug, Default, Serialize)]
struct Online {
    reader: Option<IdentityStatus>,
    writer: Option<IdentityStatus>,
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
    /// `not_provable`, `allowed` or `denied`.
    verdict: &'static str,
}

/// How problems begin.
const RUN: &str = "`run` would fail";
const STORING: &str = "virtual keys could not be stored";
/// `GetSecretValue` with `DescribeSecret` (AWS Secrets Manager, quotas).
const GETS_A_SECOND: u32 = 10_000;
/// `BatchGetSecretValue`, which AWS does not raise.
const BATCHES_A_SECOND: u32 = 100;

/// Loads the configuration as `run` does, and says what it means.
pub(super) fn check(sources: &Sources, asked: Asked, form: Form) -> Exit {
    process::protect();
    let environment = Environment::of_process();
    let loaded = config::load(sources, &environment).and_then(|config| {
        let more =
            if asked.shared_with_litellm { config::shared_with_litellm(sources, &environment)? } else { Vec::new() };
        Ok((config, more))
    });
    let (mut config, shared) = match loaded {
        Ok(loaded) => loaded,
        Err(errors) => {
            complain(&format!("the configuration is not valid:\n{errors}"));
            return Exit::Usage;
        }
    };
    config.notices.extend(shared);
    if asked.simulate && config.virtual_keys.is_none() {
        config
            .notices
            .push("--simulate has nothing to ask: no virtual keys are stored, and reads are tried".to_owned());
    }
    let mut report = Report::of(&config, asked.replicas);
    let idle = Mapping::new(config.keys.clone(), config.wholesale.clone()).requests().is_empty();
    if let Some(missing) = config.aws.reader.missing().filter(|_| asked.online || !idle) {
        report.problems.push(format!("{RUN}: {missing}"));
    } else if asked.online {
        match block_on(online(config, asked.simulate)).map_err(anyhow::Error::from).flatten() {
            Ok((online, problems)) => {
                report.problems.extend(problems);
                report.online = Some(online);
            }
            Err(error) => report.problems.push(format!("{RUN}: {error:#}")),
        }
    }
    report.ok = report.problems.is_empty();
    let shown = match form {
        Form::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report).unwrap_or_default())),
        Form::Text => print(&lines_of(&report.lines())),
    };
    if form == Form::Text {
        for problem in &report.problems {
            complain(problem);
        }
    }
    if report.ok { shown } else { Exit::Failed }
}

/// Asks AWS, and changes nothing. The problems are those with which `run` would fail.
async fn online(config: Config, simulate: bool) -> anyhow::Result<(Online, Vec<String>)> {
    let Config { mut aws, keys, wholesale, refresh, virtual_keys, .. } = config;
    let metrics = Arc::new(Metrics::new(std::iter::empty()));
    let statuses = (daemon::described(&aws, &aws.reader), aws.writer.as_ref().map(|one| daemon::described(&aws, one)));
    let connection = Connection::new(&aws, refresh.call_timeout, telemetry::wall_clock(), metrics)?;
    let (region, endpoints) = (aws.region.clone(), aws.endpoints.clone());
    let writer = aws.writer.take().map(|writer| Auth::new(writer, &endpoints, connection.clone())).transpose()?;
    let mut reader = daemon::reader(aws, &connection)?;
    let mut online = Online::default();
    let mut problems = Vec::new();

    let reading = prove(&reader.auth, statuses.0, RUN, &mut online.reader, &mut problems).await;
    // Who reads also writes, unless somebody else does.
    let (who_writes, writing) = match (&writer, statuses.1) {
        (Some(writer), Some(status)) => {
            (writer, prove(writer, status, STORING, &mut online.writer, &mut problems).await)
        }
        _ => (&reader.auth, reading.clone()),
    };
    let who_writes = Arc::clone(who_writes);
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
    if let (Some(Some(caller)), Some(VirtualKeys { prefix, replica_regions, kms_key_id: _ })) = (writing, virtual_keys)
    {
        let place = Place { region: &region, account: Some(caller.account()) };
        let needs = writes(&prefix, !replica_regions.is_empty(), &place);
        let asked = if simulate {
            Some(ask_iam(&connection, endpoints.iam.as_deref(), &who_writes, &caller, &needs).await)
        } else {
            None
        };
        let decisions = match asked.transpose() {
            Ok(decisions) => decisions,
            Err(problem) => {
                problems.push(format!("{STORING}, as far as can be told: {problem}"));
                None
            }
        };
        for need in needs {
            let Need { action, resource } = &need;
            let decision = decisions.as_ref().map(|all| all.iter().find(|decision| decision.action == *action));
            let verdict = match decision {
                None => "not_provable",
                Some(Some(decision)) if decision.allowed => "allowed",
                Some(Some(_)) => {
                    problems.push(format!("{STORING}: the policies of {caller} do not allow {action} on {resource}"));
                    denied.push(need.clone());
                    "denied"
                }
                Some(None) => {
                    problems.push(format!("{STORING}: the answer of SimulatePrincipalPolicy says nothing of {action}"));
                    "not_provable"
                }
            };
            online.writes.push(NeedReport { action: need.action, resource: need.resource, verdict });
        }
    }
    online.allow = (!denied.is_empty()).then(|| Policy::allowing(&denied));
    Ok((online, problems))
}

/// Proves that there are credentials, and says whose they are; the inner one is none where only that could not be asked.
async fn prove(
    auth: &Auth,
    status: IdentityStatus,
    without: &str,
    report: &mut Option<IdentityStatus>,
    problems: &mut Vec<String>,
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
            Err(_) => None,
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
    let resources: BTreeSet<String> =
        needs.iter().map(|need| need.resource.replace('*', "keytide-check-AbCdEf")).collect();
    let resources: Vec<String> = resources.into_iter().collect();
    // IAM wants the role itself, whose path only the configuration knows.
    let source = match (auth.role().filter(|role| caller.is_role(role)), caller.role_name()) {
        (Some(role), _) => role.to_string(),
        (None, Some(name)) => format!("arn:{}:iam::{}:role/{name}", caller.partition(), caller.account()),
        (None, None) => caller.to_string(),
    };
    iam::simulate(connection, endpoint, auth, &source, &actions, &resources).await
}

// === impl Report ===

impl Report {
    fn of(config: &Config, replicas: u32) -> Self {
        let Config { aws, keys, wholesale, refresh, outputs, notices, .. } = config;
        let mapping = Mapping::new(keys.clone(), wholesale.clone());
        let outputs = outputs.iter().map(|output| {
            let (kind, path) = match &output.kind {
                OutputKind::EnvFile { path, .. } => ("env_file", path),
                OutputKind::Files { directory, .. } => ("files", directory),
            };
            OutputReport { name: output.name.to_string(), kind, path: path.display().to_string() }
        });
        Self {
            ok: false,
            problems: Vec::new(),
            notices: notices.clone(),
            region: aws.region.clone(),
            keys: keys.len(),
            wholesale: mapping.wholesale().map(|all| all.request.secret.to_string()).collect(),
            outputs: outputs.collect(),
            calls: Calls::of(
                source::secrets_manager::call_count(&mapping.requests()),
                refresh.interval,
                sessions_a_day(&aws.reader),
                replicas,
            ),
            online: None,
        }
    }

    /// For people: readable in ten seconds.
    fn lines(&self) -> Vec<String> {
        let Self { ok: _, problems, notices, region, keys, wholesale, outputs, calls, online } = self;
        let mut lines: Vec<String> = notices.iter().map(|notice| format!("note: {notice}")).collect();
        let mut line = |name: &str, text: String| lines.push(format!("{name:<10} {text}").trim_end().to_owned());
        line("region", region.clone());
        if let Some(Online { reader, writer, secrets, batch_denied, writes, allow }) = online {
            for (name, identity) in [("identity", reader), ("writer", writer)] {
                for (i, text) in identity.iter().flat_map(identity_lines).enumerate() {
                    line(if i == 0 { name } else { "" }, text);
                }
                if identity.as_ref().is_some_and(|identity| identity.caller.is_none()) {
                    line("", "NOT PROVED".to_owned());
                }
            }
            for SecretReport { secret, stage, result, message: _ } in secrets {
                let stage = stage.as_ref().map(|stage| format!(" at {stage}")).unwrap_or_default();
                let result = if *result == "read" { "may be read".to_owned() } else { format!("NOT READ ({result})") };
                line("secret", format!("{secret}{stage}: {result}"));
            }
            if *batch_denied {
                line("batch", "BatchGetSecretValue is denied: secrets are read one by one".to_owned());
            }
            let mut verdicts: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
            for NeedReport { action, resource, verdict } in writes {
                let action = action.rsplit(':').next().unwrap_or(action);
                verdicts.entry((verdict, resource)).or_default().push(action);
            }
            for ((verdict, resource), actions) in verdicts {
                let verdict = match verdict {
                    "not_provable" => "not provable without writing (--simulate asks IAM)",
                    "allowed" => "allowed, says IAM",
                    _ => "DENIED, says IAM",
                };
                line("writes", format!("{verdict}: {} on {resource}", actions.join(", ")));
            }
            if let Some(policy) = allow {
                line("allow", serde_json::to_string(policy).unwrap_or_default());
            }
        }
        line("keys", format!("{keys} named"));
        for secret in wholesale {
            line("", format!("all members of secret {secret}"));
        }
        for OutputReport { name, kind, path } in outputs {
            let tried = if online.is_some() { ", not tried" } else { "" };
            line("output", format!("{name} ({kind}) {path}{tried}"));
        }
        for (i, text) in calls.lines().into_iter().enumerate() {
            line(if i == 0 { "calls" } else { "" }, text);
        }
        lines.push(match problems.len() {
            0 => "valid".to_owned(),
            1 => "NOT valid: 1 problem".to_owned(),
            many => format!("NOT valid: {many} problems"),
        });
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

// === impl Calls ===

impl Calls {
    fn of(CallCount { get, batch }: CallCount, interval: Duration, sts_a_day: u64, replicas: u32) -> Self {
        let pods = u64::from(replicas);
        let milliseconds = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).max(1);
        let calls = u64::try_from(get + batch).unwrap_or(u64::MAX);
        let a_day = calls.saturating_mul(86_400_000).div_ceil(milliseconds).saturating_mul(pods);
        let share = |quota, count: usize, a_second: u32| {
            let at_once = f64::from(u32::try_from(count).unwrap_or(u32::MAX)) * f64::from(replicas);
            let percent = |calls_a_second: f64| (calls_a_second / f64::from(a_second) * 1e6).round() / 1e4;
            Share {
                quota,
                a_second,
                on_average: percent(at_once / interval.as_secs_f64()),
                all_at_once: percent(at_once),
            }
        };
        let quotas = [
            (get > 0).then(|| share("GetSecretValue", get, GETS_A_SECOND)),
            (batch > 0).then(|| share("BatchGetSecretValue", batch, BATCHES_A_SECOND)),
        ];
        Self {
            replicas,
            interval_seconds: interval.as_secs_f64(),
            get_a_refresh: get,
            batch_a_refresh: batch,
            a_day,
            dollars_a_month: dollars(a_day),
            sts_a_day: sts_a_day * pods,
            quotas: quotas.into_iter().flatten().collect(),
        }
    }

    fn lines(&self) -> Vec<String> {
        let Self {
            replicas,
            interval_seconds,
            get_a_refresh,
            batch_a_refresh,
            a_day,
            dollars_a_month,
            sts_a_day,
            quotas,
        } = self;
        let calls = get_a_refresh + batch_a_refresh;
        let mut lines = vec![format!(
            "{calls} a refresh, every {interval_seconds} s, {replicas} pod(s): {a_day} a day, about {dollars_a_month} USD a \
             month; about {sts_a_day} to STS a day"
        )];
        for Share { quota, a_second, on_average, all_at_once } in quotas {
            let on_average = if *on_average < 0.01 { "less than 0.01".to_owned() } else { on_average.to_string() };
            let too_many = if *all_at_once > 100.0 { ": do not start them all at once" } else { "" };
            lines.push(format!(
                "{on_average} % of AWS's quota of {quota} ({a_second} a second), {all_at_once} % if all pods refresh at \
                 once{too_many}"
            ));
        }
        lines
    }
}

/// About how many calls to STS the sessions of a day cost: one a hop and session, and one to prove it where that is asked.
fn sessions_a_day(identity: &config::Identity) -> u64 {
    const SESSION: Duration = Duration::from_hours(1);
    let sessions = identity.all_roles().map(|role| {
        let lasts = role.duration.unwrap_or(SESSION).as_secs().max(1);
        86_400_u64.div_ceil(lasts)
    });
    let sessions: Vec<u64> = sessions.collect();
    let proofs = if identity.expected.is_set() { sessions.last().copied().unwrap_or(1) } else { 0 };
    sessions.iter().sum::<u64>().saturating_add(proofs)
}

/// 0.05 USD for 10,000 calls (AWS Secrets Manager, pricing), 30 days a month.
fn dollars(calls_a_day: u64) -> String {
    let cents = calls_a_day.saturating_mul(30).saturating_mul(5) / 10_000;
    format!("{}.{:02}", cents / 100, cents % 100)
}
