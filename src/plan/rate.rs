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

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Takes whatever may be taken until this time.
    fn take_all(rate: &mut Rate, mut now: Duration, until: Duration) -> u32 {
        let mut taken = 0;
        while now <= until {
            let wait = rate.wait(now);
            if wait.is_zero() {
                rate.take(now);
                taken += 1;
            } else {
                now += wait;
            }
        }
        taken
    }
    #[test]
    fn throttling_halves_the_rate_once_a_second_and_it_comes_back() {
        let mut rate = Rate::new(Some(40));
        let begin = ms(10_000);
        for i in 0..100 {
            rate.throttled(begin + ms(i * 9));
            assert_eq!(rate.current(), Some(20.0));
        }
        // A second later it has not recovered by more than a thirtieth of the whole a second.
        rate.throttled(begin + ms(1000));
        assert!(rate.current().is_some_and(|rate| (10.0..11.0).contains(&rate)), "{rate:?}");
        rate.wait(begin + ms(1999));
        assert!(rate.current().is_some_and(|rate| rate < 11.0), "{rate:?}");
        rate.wait(begin + ms(33_000));
        assert_eq!(rate.current(), Some(40.0));
        for i in 0..100 {
            rate.throttled(begin + ms(60_000 + i * 1000));
        }
        let least = rate.current().unwrap();
        assert!((40.0 / 64.0..2.0).contains(&least), "{least}");
    }

    #[test]
    fn without_a_limit_there_is_none_until_aws_throttles() {
        let mut rate = Rate::new(None);
        for _ in 0..10_000 {
            assert!(rate.wait(Duration::ZERO).is_zero());
            rate.take(Duration::ZERO);
        }
        rate.throttled(ms(1));
        assert!(rate.current().is_some_and(|rate| rate <= 25.0));
        assert!(take_all(&mut rate, ms(1), ms(1001)) <= 27);
        rate.wait(ms(40_000));
        assert_eq!(rate.current(), None);
    }

    #[test]
    fn what_was_not_made_is_given_back_and_a_lifted_limit_is_none() {
        let mut rate = Rate::new(Some(1));
        rate.take(Duration::ZERO);
        assert!(!rate.wait(Duration::ZERO).is_zero());
        rate.give_back();
        assert!(rate.wait(Duration::ZERO).is_zero());
        rate.take(Duration::ZERO);
        rate.lift();
        assert!(rate.wait(Duration::ZERO).is_zero());
    }

    #[test]
    fn versions_are_counted_for_a_day_each_secret_for_itself() {
        let name = |i: usize| SecretName::parse(format!("keys/{i}")).unwrap();
        let mut versions = Versions::default();
        for i in 1..=5 {
            assert_eq!(versions.written(&name(0), Duration::from_hours(i)), usize::try_from(i).unwrap());
        }
        assert_eq!(versions.written(&name(1), Duration::from_hours(5)), 1);
        assert_eq!(versions.most(Duration::from_hours(5)), 5);
        assert_eq!(versions.most(Duration::from_hours(26)), 3);
        assert_eq!(versions.written(&name(0), Duration::from_hours(26)), 4);
        // Many other secrets take no memory without an end, and nothing from the one that is written.
        for i in 2..REMEMBERED + 200 {
            versions.written(&name(i), Duration::from_hours(26));
        }
        assert!(versions.written.len() <= REMEMBERED);
        assert_eq!(versions.most(Duration::from_hours(100)), 0);
    }

    proptest! {
        #[test]
        fn there_are_never_more_writes_than_the_rate_and_one_second_of_it(
            limit in 1..200_u32,
            steps in vec((0..700_u64, 0..40_u32, prop::bool::weighted(0.1)), 1..60),
        ) {
            let mut rate = Rate::new(Some(limit));
            let (mut now, mut taken) = (Duration::ZERO, 0_u32);
            for (pause, wanted, throttled) in steps {
                now += ms(pause);
                if throttled {
                    rate.throttled(now);
                }
                for _ in 0..wanted {
                    if rate.wait(now).is_zero() {
                        rate.take(now);
                        taken += 1;
                    }
                }
                let most = f64::from(limit) * (now.as_secs_f64() + 1.0);
                prop_assert!(f64::from(taken) <= most + 1e-6, "{} of {} after {:?}", taken, most, now);
            }
        }

        #[test]
        fn nearly_all_of_the_rate_is_used_where_it_is_wanted(limit in 1..200_u32, from in 0..100_000_u64) {
            let mut rate = Rate::new(Some(limit));
            // What a whole second holds is taken at once.
            let burst = take_all(&mut rate, ms(from), ms(from));
            prop_assert_eq!(burst, limit);
            let taken = take_all(&mut rate, ms(from), ms(from + 60_000));
            let whole = f64::from(limit) * 60.0;
            prop_assert!(f64::from(taken) >= 0.98 * whole - 1.0 && f64::from(taken) <= whole + 1.0, "{}", taken);
        }

        #[test]
        fn no_hour_has_more_new_secrets_than_allowed(
            limit in 1..6_u32,
            steps in vec((0..1500_u64, 0..3_u8, any::<bool>()), 1..120),
        ) {
            let mut new = NewSecrets::new(Some(limit));
            let (mut now, mut promised, mut made) = (Duration::ZERO, 0_usize, Vec::new());
            for (pause, act, used) in steps {
                now += Duration::from_secs(pause);
                if act < 2 {
                    let expected = new.next_at().filter(|at| *at > now);
                    let allowed = new.promise(now);
                    prop_assert!(!(allowed && expected.is_some()), "{:?} {:?}", new, now);
                    promised += usize::from(allowed);
                } else if promised > 0 {
                    new.keep(now, used);
                    promised -= 1;
                    made.extend(used.then_some(now));
                }
            }
            let limit = usize::try_from(limit).unwrap();
            for window in made.windows(limit + 1) {
                prop_assert!(window[limit].saturating_sub(window[0]) >= HOUR, "{:?}", window);
            }
            // And once nothing is promised, the next one may be made when that is said.
            for _ in 0..promised {
                new.keep(now, false);
            }
            let at = new.next_at().unwrap_or(now).max(now);
            prop_assert!(new.promise(at));
        }
    }
}
