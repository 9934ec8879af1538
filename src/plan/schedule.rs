//! When the next read happens.

use std::time::Duration;

/// The shortest pause before a read that failed is repeated.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest one, where the interval is not shorter still.
const LONGEST_RETRY: Duration = Duration::from_mins(1);
/// The longest one before the first refresh is complete: a pod waits for it.
const LONGEST_RETRY_AT_START: Duration = Duration::from_secs(15);

/// The same where somebody has to do something first.
const FIRST_SLOW_RETRY: Duration = Duration::from_secs(10);
const LONGEST_SLOW_RETRY: Duration = Duration::from_mins(10);

/// The schedule of one daemon.
#[derive(Debug)]
pub struct Schedule {
    interval: Duration,
    jitter: f64,
    random: fastrand::Rng,
}

// === impl Schedule ===

impl Schedule {
    /// A schedule with its own source of randomness.
    #[must_use]
    pub fn new(interval: Duration, jitter: f64, random: fastrand::Rng) -> Self {
        Self { interval, jitter, random }
    }

    /// From the first refresh to the second: a random part of the interval, so that pods that were rolled out together
    /// do not stay together.
    pub fn second(&mut self) -> Duration {
        self.interval.mul_f64(self.random.f64())
    }

    /// From one refresh to the next: the interval, give or take the jitter.
    pub fn following(&mut self) -> Duration {
        self.interval.mul_f64(1.0 + self.jitter * (2.0 * self.random.f64() - 1.0))
    }

    /// The pause before the `attempt`th repetition, from 1: doubled each time, the upper half of it random.
    pub fn retry(&mut self, attempt: u32, starting: bool) -> Duration {
        let longest = if starting { LONGEST_RETRY_AT_START } else { LONGEST_RETRY };
        doubled(attempt, FIRST_RETRY, longest.min(self.interval.max(FIRST_RETRY)), &mut self.random)
    }
}

/// The pause before the `attempt`th repetition of a write, from 1.
pub fn backoff(attempt: u32, random: &mut fastrand::Rng) -> Duration {
    doubled(attempt, FIRST_RETRY, LONGEST_RETRY, random)
}

/// The same where somebody has to do something first.
pub fn slow(attempt: u32, random: &mut fastrand::Rng) -> Duration {
    doubled(attempt, FIRST_SLOW_RETRY, LONGEST_SLOW_RETRY, random)
}

/// The pause before another look at something that is on its way.
pub fn soon(random: &mut fastrand::Rng) -> Duration {
    FIRST_RETRY.mul_f64(1.0 + random.f64())
}

/// The longest pause when there is little time left.
pub fn hurried(random: &mut fastrand::Rng) -> Duration {
    FIRST_RETRY.mul_f64(0.25 + 0.25 * random.f64())
}

/// Doubled each time, the upper half of it random.
fn doubled(attempt: u32, first: Duration, longest: Duration, random: &mut fastrand::Rng) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)));
    doubled.min(longest).mul_f64(0.5 + 0.5 * random.f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_within_their_bounds_and_vary() {
        let interval = Duration::from_mins(5);
        let mut schedule = Schedule::new(interval, 0.1, fastrand::Rng::with_seed(7));
        let next: Vec<Duration> = (0..1000).map(|_| schedule.following()).collect();
        assert!(next.iter().all(|d| *d >= interval.mul_f64(0.9) && *d <= interval.mul_f64(1.1)));
        assert!(next.iter().max().unwrap().saturating_sub(*next.iter().min().unwrap()) > Duration::from_secs(50));
        let second: Vec<Duration> = (0..1000).map(|_| schedule.second()).collect();
        assert!(second.iter().any(|d| *d < interval / 10) && second.iter().any(|d| *d > interval.mul_f64(0.9)));
        assert!(second.iter().all(|d| *d <= interval));
        for attempt in 1..100 {
            let retry = schedule.retry(attempt, false);
            assert!(retry >= FIRST_RETRY / 2 && retry <= LONGEST_RETRY, "{attempt}: {retry:?}");
            assert!(schedule.retry(attempt, true) <= LONGEST_RETRY_AT_START);
        }
    }
}
