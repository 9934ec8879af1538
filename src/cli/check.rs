//! `keytide check`.

use std::collections::BTreeSet;

use super::{Exit, complain, lines_of, print};
use crate::{
    config::{self, Config, Environment, OutputKind, Sources},
    domain::mapping::Request,
    plan::fan_out::Mapping,
    source,
};

/// Loads the configuration as `run` does, and says what it means.
pub(super) fn check(sources: &Sources, shared_with_litellm: bool, replicas: u32) -> Exit {
    let environment = Environment::of_process();
    let loaded = config::load(sources, &environment).and_then(|config| {
        let shared = if shared_with_litellm { config::shared_with_litellm(sources, &environment)? } else { Vec::new() };
        Ok((config, shared))
    });
    let (config, shared) = match loaded {
        Ok(loaded) => loaded,
        Err(errors) => {
            complain(&format!("the configuration is not valid:\n{errors}"));
            return Exit::Usage;
        }
    };
    let mut lines = Vec::new();
    for notice in config.notices.iter().chain(&shared) {
        lines.push(format!("note: {notice}"));
    }
    let Config { aws, keys, wholesale, refresh, outputs, .. } = config;
    let missing = aws.credentials.missing();
    let names = keys.len();
    let mapping = Mapping::new(keys, wholesale);
    let requests: BTreeSet<Request> = mapping.requests();
    lines.push(format!("region     {}", aws.region));
    lines.push(format!("keys       {names} named"));
    for all in mapping.wholesale() {
        lines.push(format!("           all members of secret {}", all.request.secret));
    }
    for output in &outputs {
        let (kind, path) = match &output.kind {
            OutputKind::EnvFile { path, .. } => ("env_file", path),
            OutputKind::Files { directory, .. } => ("files", directory),
        };
        lines.push(format!("output     {} ({kind}) {}", output.name, path.display()));
    }
    let calls = u64::try_from(source::secrets_manager::call_count(&requests)).unwrap_or(u64::MAX);
    let seconds = refresh.interval.as_secs().max(1);
    let a_day = calls.saturating_mul(86_400).div_ceil(seconds).saturating_mul(u64::from(replicas));
    lines.push(format!(
        "calls      {calls} a refresh, every {} s, {replicas} pod(s): {a_day} a day, about {} USD a month",
        refresh.interval.as_secs(),
        dollars(a_day)
    ));
    if let Some(missing) = missing.filter(|_| !requests.is_empty()) {
        print(&lines_of(&lines));
        complain(&format!("`run` would fail: {missing}"));
        return Exit::Failed;
    }
    lines.push("valid".to_owned());
    print(&lines_of(&lines))
}

/// 0.05 USD for 10,000 calls (AWS Secrets Manager, pricing), 30 days a month.
fn dollars(calls_a_day: u64) -> String {
    let cents = calls_a_day.saturating_mul(30).saturating_mul(5) / 10_000;
    format!("{}.{:02}", cents / 100, cents % 100)
}
