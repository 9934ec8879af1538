//! How many writes and new secrets there may be: AWS's quotas belong to the whole account. Times are since a beginning of
//! the caller's.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use crate::domain::names::SecretName;

/// A bucket of writes that fills at a steady rate, and holds those of one second.
#[derive(Debug, Clone)]
pub struct Rate {
    /// Writes a second; none is without limit.
    limit: Option<f64>,
    /// What AWS lets us have of it just now.
    share: f64,
    tokens: f64,
    at: Duration,
    throttled_at: Option<Duration>,
}

/// How many new secrets an hour there may be: each costs money every month.
#[derive(Debug, Clone)]
pub struct NewSecrets {
    limit: Option<u32>,
    made: VecDeque<Duration>,
    promised: u32,
}

/// How often each secret was written within a day: AWS keeps about a hundred versions, and none for less than a day.
#[derive(Debug, Clone, Default)]
pub struct Versions {
    written: HashMap<SecretName, VecDeque<Duration>>,
}

/// Halved on throttling at most this often: the calls that were under way together are one word of AWS.
const HALVING: Duration = Duration::from_secs(1);
/// The smallest share of the rate that is left.
const LEAST: f64 = 1.0 / 64.0;
/// How long it takes from the smallest share to the whole, while AWS does not throttle.
const RECOVERY: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
/// After so long a read shows what was written (AWS says no time; this is long for any service of it).
const CONSISTENT: Duration = Duration::from_mins(1);
/// So many secrets are remembered; of more, those that were written longest ago are forgotten.
const REMEMBERED: usize = 1024;

// === impl Rate ===

impl Rate {
    /// A full bucket. `None` is without limit until AWS throttles.
    #[must_use]
    pub fn new(limit: Option<u32>) -> Self {
        let limit = limit.map(f64::from);
        Self { limit, share: 1.0, tokens: limit.unwrap_or_default(), at: Duration::ZERO, throttled_at: None }
    }

    /// How long until there is a write to be had; zero if there is.
    pub fn wait(&mut self, now: Duration) -> Duration {
        let Some(rate) = self.fill(now) else { return Duration::ZERO };
        let missing = 1.0 - self.tokens;
        // A nanosecond more, so that rounding does not end in another wait.
        if missing <= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(missing / rate) + Duration::from_nanos(1) }
    }

    /// Takes a write; the bucket may owe some.
    pub fn take(&mut self, now: Duration) {
        if self.fill(now).is_some() {
            self.tokens -= 1.0;
        }
    }

    /// A write that was taken was not made.
    pub fn give_back(&mut self) {
        self.tokens += 1.0;
    }

    /// AWS asked to slow down.
    pub fn throttled(&mut self, now: Duration) {
        self.fill(now);
        if self.throttled_at.is_none_or(|at| now.saturating_sub(at) >= HALVING) {
            self.share = (self.share / 2.0).max(LEAST);
            self.throttled_at = Some(now);
            self.tokens = self.tokens.min(1.0);
        }
    }

    /// Lifts our own limit: what cannot be delivered in time is lost with the pod. AWS's word still counts.
    pub fn lift(&mut self) {
        self.limit = None;
    }

    /// Writes a second just now; none is without limit.
    #[must_use]
    pub fn current(&self) -> Option<f64> {
        match self.limit {
            Some(limit) => Some(limit * self.share),
            // AWS's quota, which is everyone's.
            None => (self.share < 1.0).then_some(50.0 * self.share),
        }
    }

    /// Brings the bucket up to date; the rate, where there is one.
    fn fill(&mut self, now: Duration) -> Option<f64> {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        if self.throttled_at.is_some_and(|at| now.saturating_sub(at) >= HALVING) {
            self.share = (self.share + passed.as_secs_f64() / RECOVERY.as_secs_f64()).min(1.0);
        }
        let rate = self.current()?;
        self.tokens = (self.tokens + passed.as_secs_f64() * rate).min(rate.max(1.0));
        Some(rate)
    }
}

// === impl NewSecrets ===

impl NewSecrets {
    /// None made yet. `None` is without limit.
    #[must_use]
    pub fn new(limit: Option<u32>) -> Self {
        Self { limit, made: VecDeque::new(), promised: 0 }
    }

    /// Promises a new secret, if there may be one more this hour.
    pub fn promise(&mut self, now: Duration) -> bool {
        let Some(limit) = self.limit else { return true };
        while self.made.front().is_some_and(|at| now.saturating_sub(*at) >= HOUR) {
            self.made.pop_front();
        }
        let made = u32::try_from(self.made.len()).unwrap_or(u32::MAX);
        let allowed = made.saturating_add(self.promised) < limit;
        self.promised = self.promised.saturating_add(u32::from(allowed));
        allowed
    }

    /// The promise was used, or not.
    pub fn keep(&mut self, now: Duration, made: bool) {
        if self.limit.is_some() {
            self.promised = self.promised.saturating_sub(1);
            if made {
                self.made.push_back(now);
            }
        }
    }

    /// When there may be the next one; none if there may be one now.
    #[must_use]
    pub fn next_at(&self) -> Option<Duration> {
        let limit = usize::try_from(self.limit?).unwrap_or(usize::MAX);
        let first = self.made.front().filter(|_| self.made.len() >= limit)?;
        Some(*first + HOUR)
    }
}

// === impl Versions ===

impl Versions {
    /// How many versions a secret may have within a day before somebody should know. AWS refuses at about a hundred.
    pub const MANY: usize = 80;

    /// A version was written. How many that makes within a day.
    pub fn written(&mut self, name: &SecretName, now: Duration) -> usize {
        if self.written.len() >= REMEMBERED && !self.written.contains_key(name) {
            let oldest = self.written.iter().min_by_key(|(_, times)| times.back().copied());
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.written.remove(&oldest);
            }
        }
        let times = self.written.entry(name.clone()).or_default();
        while times.front().is_some_and(|at| now.saturating_sub(*at) >= DAY) {
            times.pop_front();
        }
        times.push_back(now);
        times.len()
    }

    /// True if a version of this secret was written so short a time ago that AWS's reads may not show it yet.
    #[must_use]
    pub fn is_recent(&self, name: &SecretName, now: Duration) -> bool {
        let last = self.written.get(name).and_then(VecDeque::back);
        last.is_some_and(|at| now.saturating_sub(*at) < CONSISTENT)
    }

    /// The most versions of one secret within the last day.
    #[must_use]
    pub fn most(&self, now: Duration) -> usize {
        let young = |times: &VecDeque<Duration>| times.iter().filter(|at| now.saturating_sub(**at) < DAY).count();
        self.written.values().map(young).max().unwrap_or(0)
    }
}
