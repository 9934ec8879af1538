//! What refreshing costs: calls a day, money, and shares of AWS's quotas.

use std::time::Duration;

use serde::Serialize;

use crate::{
    config::{Credentials, Identity},
    source::secrets_manager::CallCount,
};

/// What refreshing costs, for all pods together.
#[derive(Debug, Serialize)]
pub(super) struct Calls {
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

/// `GetSecretValue` with `DescribeSecret` (AWS Secrets Manager, quotas).
const GETS_A_SECOND: u32 = 10_000;
/// `BatchGetSecretValue`, which AWS does not raise.
const BATCHES_A_SECOND: u32 = 100;

// === impl Calls ===

impl Calls {
    pub(super) fn of(CallCount { get, batch }: CallCount, interval: Duration, sts_a_day: u64, replicas: u32) -> Self {
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

    pub(super) fn lines(&self) -> Vec<String> {
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
pub(super) fn sessions_a_day(identity: &Identity) -> u64 {
    const SESSION: Duration = Duration::from_hours(1);
    let a_day = |lasts: Duration| 86_400_u64.div_ceil(lasts.as_secs().max(1));
    let mut sessions: Vec<u64> = identity.all_roles().map(|role| a_day(role.duration.unwrap_or(SESSION))).collect();
    // What a profile holds is not looked at: perhaps a role.
    let of_profile = matches!(identity.base, Credentials::Profile(_)) && identity.roles.is_empty();
    let of_agent = matches!(identity.base, Credentials::Container(_) | Credentials::Instance(_));
    if of_profile {
        sessions.push(a_day(SESSION));
    }
    // An agent's session lasts six hours, and is no call to STS.
    let proved = sessions.last().copied().unwrap_or(if of_agent { 4 } else { 1 });
    let proofs = if identity.expected.is_set() { proved } else { 0 };
    sessions.iter().sum::<u64>().saturating_add(proofs)
}

/// 0.05 USD for 10,000 calls (AWS Secrets Manager, pricing), 30 days a month.
fn dollars(calls_a_day: u64) -> String {
    let cents = calls_a_day.saturating_mul(30).saturating_mul(5) / 10_000;
    format!("{}.{:02}", cents / 100, cents % 100)
}
