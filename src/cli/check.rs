//! `keytide check`: what the configuration means, what it costs, and with `--online` whether AWS agrees.

mod calls;
mod cluster;
mod online;

use std::path::Path;

use serde::Serialize;

use self::{
    calls::{Calls, sessions_a_day},
    cluster::{InCluster, in_cluster},
    online::{Online, online},
};
use super::{Exit, Form, block_on, complain, lines_of, print};
use crate::{
    config::{self, ClusterAccess, Config, Environment, OutputKind, Sources},
    plan::fan_out::Mapping,
    process, reload, source,
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
    /// What is done when their content changed.
    reload: Vec<ReloadReport>,
    calls: Calls,
    /// Only with `--online`.
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<Online>,
    /// Only with `--online`, and where an output is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    kubernetes: Option<InCluster>,
}

#[derive(Debug, Serialize)]
struct OutputReport {
    name: String,
    kind: &'static str,
    path: String,
}

#[derive(Debug, Serialize)]
struct ReloadReport {
    name: String,
    kind: &'static str,
    what: String,
}

/// How problems begin.
const RUN: &str = "`run` would fail";

/// Loads the configuration as `run` does, and says what it means.
pub(super) fn check(sources: &Sources, kubeconfig: Option<&Path>, asked: Asked, form: Form) -> Exit {
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
    config.notices.extend(reload::remarks(&config.reload));
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
        let access = ClusterAccess::choose(kubeconfig, &environment);
        match block_on(in_cluster(&config, &access)) {
            Ok((cluster, problems)) => {
                report.problems.extend(problems);
                report.kubernetes = cluster;
            }
            Err(error) => report.problems.push(format!("{RUN}: {error}")),
        }
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

// === impl Report ===

impl Report {
    fn of(config: &Config, replicas: u32) -> Self {
        let Config { aws, keys, wholesale, refresh, outputs, reload, notices, .. } = config;
        let mapping = Mapping::new(keys.clone(), wholesale.clone());
        // Of those who share a Secret one reads, whom the Lease decides on.
        let shared = !outputs.is_empty() && outputs.iter().all(|output| output.kind.is_in_kubernetes());
        let readers = if shared { 1 } else { replicas };
        let outputs = outputs.iter().map(|output| {
            let (kind, path) = match &output.kind {
                OutputKind::EnvFile { path, .. } => ("env_file", path.display().to_string()),
                OutputKind::Files { directory, .. } => ("files", directory.display().to_string()),
                OutputKind::KubernetesSecret(secret) => ("kubernetes_secret", secret.path()),
            };
            OutputReport { name: output.name.to_string(), kind, path }
        });
        Self {
            ok: false,
            problems: Vec::new(),
            notices: notices.clone(),
            region: aws.region.clone(),
            keys: keys.len(),
            wholesale: mapping.wholesale().map(|all| all.request.secret.to_string()).collect(),
            outputs: outputs.collect(),
            reload: reload
                .iter()
                .map(|action| ReloadReport { name: action.name.to_string(), kind: action.kind(), what: action.what() })
                .collect(),
            calls: Calls::of(
                source::secrets_manager::call_count(&mapping.requests()),
                refresh.interval,
                sessions_a_day(&aws.reader),
                readers,
            ),
            online: None,
            kubernetes: None,
        }
    }

    /// For people: readable in ten seconds.
    fn lines(&self) -> Vec<String> {
        let Self { ok: _, problems, notices, region, keys, wholesale, outputs, reload, calls, online, kubernetes } =
            self;
        let mut lines: Vec<String> = notices.iter().map(|notice| format!("note: {notice}")).collect();
        let mut line = |name: &str, text: String| lines.push(format!("{name:<10} {text}").trim_end().to_owned());
        line("region", region.clone());
        for (name, text) in online.iter().flat_map(Online::lines) {
            line(name, text);
        }
        line("keys", format!("{keys} named"));
        for secret in wholesale {
            line("", format!("all members of secret {secret}"));
        }
        for OutputReport { name, kind, path } in outputs {
            let tried = if online.is_some() && *kind != "kubernetes_secret" { ", not tried" } else { "" };
            line("output", format!("{name} ({kind}) {path}{tried}"));
        }
        for (name, text) in kubernetes.iter().flat_map(InCluster::lines) {
            line(name, text);
        }
        for ReloadReport { name, kind, what } in reload {
            let tried = if online.is_some() { ", not tried" } else { "" };
            line("reload", format!("{name} ({kind}) {what}{tried}"));
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
