//! When a reload action is due: after a change, once it is quiet, at a random time within the splay, never while keys are
//! stale, again until it succeeds. Times are since a beginning of the caller's.

use std::time::Duration;

use super::schedule::{backoff, slow};
use crate::domain::reload::Pace;

/// Changes that never end put an action off for so many times its `debounce`, and no longer.
const LONGEST: u32 = 10;

/// How a failure is to be treated. Nothing is given up: a consumer would go on with values that are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It may pass by itself.
    Soon,
    /// Somebody has to do something first.
    Slowly,
}

/// The state of one action.
#[derive(Debug)]
pub struct Timing {
    pace: Pace,
    /// True: also while keys are stale.
    always: bool,
    random: fastrand::Rng,
    stale: bool,
    fresh_at: Duration,
    pending: Option<Pending>,
    ended_at: Option<Duration>,
}

/// Changes that consumers were not told of.
#[derive(Debug)]
struct Pending {
    first: Duration,
    last: Duration,
    splay: Duration,
    attempts: u32,
    retry: Option<Duration>,
}

// === impl Timing ===

impl Timing {
    /// An action that waits for its pace and for fresh keys. Nothing is due.
    #[must_use]
    pub fn new(pace: Pace, random: fastrand::Rng) -> Self {
        Self { pace, always: false, random, stale: true, fresh_at: Duration::ZERO, pending: None, ended_at: None }
    }

    /// One that follows each change at once, whatever the keys are: it disturbs nobody.
    #[must_use]
    pub fn at_once(timeout: Duration, random: fastrand::Rng) -> Self {
        let none = Duration::ZERO;
        Self::always(Pace { debounce: none, splay: none, min_interval: none, timeout }, random)
    }

    /// One that keeps its pace, whatever the keys are.
    #[must_use]
    pub fn always(pace: Pace, random: fastrand::Rng) -> Self {
        Self { always: true, ..Self::new(pace, random) }
    }

    /// The time limit of one attempt.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.pace.timeout
    }

    /// Contents changed. A change after a failure begins anew: it supersedes what could not be told.
    pub fn changed(&mut self, now: Duration) {
        match &mut self.pending {
            Some(pending) if pending.attempts == 0 => pending.last = now,
            _ => {
                let splay = self.pace.splay.mul_f64(self.random.f64());
                self.pending = Some(Pending { first: now, last: now, splay, attempts: 0, retry: None });
            }
        }
    }

    /// Some keys are not fresh, or all are.
    pub fn set_stale(&mut self, now: Duration, stale: bool) {
        if self.stale && !stale {
            self.fresh_at = now;
        }
        self.stale = stale;
    }

    /// True if a change was noticed and no attempt succeeded since.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// True if it waits for fresh keys.
    #[must_use]
    pub fn is_postponed(&self) -> bool {
        self.stale && !self.always && self.pending.is_some()
    }

    /// When the next attempt is due; none while there is nothing to be told, or keys are stale.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        let Pending { first, last, splay, attempts: _, retry } = self.pending.as_ref()?;
        if self.is_postponed() {
            return None;
        }
        let Pace { debounce, splay: _, min_interval, timeout: _ } = self.pace;
        let due = retry.unwrap_or_else(|| {
            let quiet = last.saturating_add(debounce);
            let bounded = quiet.min(first.saturating_add(debounce.saturating_mul(LONGEST)));
            // The end of an outage is the same moment for all pods.
            let fresh = if self.always { Duration::ZERO } else { self.fresh_at };
            bounded.max(fresh).saturating_add(*splay)
        });
        Some(due.max(self.ended_at.map_or(Duration::ZERO, |at| at.saturating_add(min_interval))))
    }

    /// An attempt succeeded: every change that was noticed is told.
    pub fn succeeded(&mut self, now: Duration) {
        self.pending = None;
        self.ended_at = Some(now);
    }

    /// There was nothing to be told after all: nobody was disturbed.
    pub fn spared(&mut self) {
        self.pending = None;
    }

    /// An attempt failed.
    pub fn failed(&mut self, now: Duration, again: Again) {
        self.ended_at = Some(now);
        if let Some(pending) = &mut self.pending {
            pending.attempts = pending.attempts.saturating_add(1);
            let pause = match again {
                Again::Soon => backoff(pending.attempts, &mut self.random),
                Again::Slowly => slow(pending.attempts, &mut self.random),
            };
            pending.retry = Some(now.saturating_add(pause));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn pace(debounce: u64, splay: u64, min_interval: u64) -> Pace {
        Pace { debounce: ms(debounce), splay: ms(splay), min_interval: ms(min_interval), timeout: ms(1000) }
    }

    fn timing(pace: Pace, seed: u64) -> Timing {
        let mut timing = Timing::new(pace, fastrand::Rng::with_seed(seed));
        timing.set_stale(Duration::ZERO, false);
        timing
    }

    #[test]
    fn several_quick_changes_are_told_once_it_is_quiet() {
        let mut timing = timing(pace(1000, 0, 0), 1);
        assert_eq!(timing.due(), None);
        for at in [100, 400, 900] {
            timing.changed(ms(at));
        }
        assert_eq!(timing.due(), Some(ms(1900)));
        timing.succeeded(ms(1900));
        assert_eq!((timing.due(), timing.is_pending()), (None, false));
    }

    #[test]
    fn changes_that_never_end_put_it_off_for_ten_debounces() {
        let mut timing = timing(pace(1000, 0, 0), 1);
        for at in (0..60_000).step_by(500) {
            timing.changed(ms(at));
        }
        assert_eq!(timing.due(), Some(ms(10_000)));
    }

    #[test]
    fn pods_that_become_fresh_together_do_not_reload_together() {
        let due: Vec<Duration> = (0..100)
            .map(|seed| {
                let mut timing = timing(pace(1000, 30_000, 0), seed);
                timing.set_stale(ms(5), true);
                timing.changed(ms(10));
                assert_eq!((timing.due(), timing.is_postponed()), (None, true));
                timing.set_stale(ms(600_000), false);
                timing.due().unwrap()
            })
            .collect();
        assert!(due.iter().all(|due| (ms(600_000)..=ms(630_000)).contains(due)));
        let spread = due.iter().max().unwrap().saturating_sub(*due.iter().min().unwrap());
        assert!(spread > ms(25_000), "{spread:?}");
    }

    #[test]
    fn a_failure_is_tried_again_at_growing_distances_until_a_newer_change_supersedes_it() {
        let mut timing = timing(pace(1000, 0, 0), 3);
        timing.changed(ms(0));
        let mut now = timing.due().unwrap();
        let mut pauses = Vec::new();
        for _ in 0..20 {
            timing.failed(now, Again::Soon);
            let due = timing.due().unwrap();
            pauses.push(due.saturating_sub(now));
            now = due;
        }
        assert!(pauses[0] <= ms(1000) && pauses[19] >= ms(30_000) && pauses[19] <= ms(60_000), "{pauses:?}");
        timing.failed(now, Again::Slowly);
        assert!(timing.due().unwrap() >= now + ms(300_000));
        timing.changed(now + ms(10));
        assert_eq!(timing.due(), Some(now + ms(1010)));
    }

    #[test]
    fn what_disturbs_nobody_follows_at_once_also_while_keys_are_stale() {
        let mut timing = Timing::at_once(ms(1000), fastrand::Rng::with_seed(1));
        timing.set_stale(ms(1), true);
        timing.changed(ms(7));
        assert_eq!(timing.due(), Some(ms(7)));
    }

    /// What happens to an action at one instant.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Change,
        Stale(bool),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![3 => Just(Event::Change), 1 => any::<bool>().prop_map(Event::Stale)]
    }

    proptest! {
        /// Whatever changes, becomes stale and fails in whatever order: attempts keep their distance, none begins while keys
        /// are stale, and every change is followed by an attempt that succeeds.
        #[test]
        fn every_change_is_told_and_none_while_keys_are_stale(
            debounce in 0..3000_u64,
            splay in 0..30_000_u64,
            min_interval in 0..20_000_u64,
            seed: u64,
            events in vec((0..5000_u64, event()), 1..60),
            outcomes in vec(0..3_u8, 0..40),
        ) {
            let pace = pace(debounce, splay, min_interval);
            let mut timing = timing(pace, seed);
            let (mut now, mut stale, mut untold) = (Duration::ZERO, false, None::<Duration>);
            let mut ended: Option<Duration> = None;
            let mut outcomes = outcomes.into_iter();
            let mut attempt = |timing: &mut Timing, at: Duration, untold: &mut Option<Duration>, stale: bool| {
                prop_assert!(!stale, "an attempt while keys are stale");
                prop_assert!(untold.is_some(), "an attempt without a change");
                prop_assert!(ended.is_none_or(|ended| at >= ended + pace.min_interval));
                ended = Some(at);
                match outcomes.next() {
                    Some(1) => timing.failed(at, Again::Soon),
                    Some(2) => timing.failed(at, Again::Slowly),
                    _ => {
                        timing.succeeded(at);
                        *untold = None;
                    }
                }
                Ok(())
            };
            for (pause, event) in events {
                let next = now + ms(pause);
                while let Some(due) = timing.due().filter(|due| *due <= next) {
                    now = now.max(due);
                    attempt(&mut timing, now, &mut untold, stale)?;
                }
                now = next;
                match event {
                    Event::Change => {
                        timing.changed(now);
                        untold.get_or_insert(now);
                        // At the latest after the debounces, the splay and the distance from the last attempt.
                        let latest = now + pace.debounce * LONGEST + pace.splay + pace.min_interval;
                        prop_assert!(timing.due().is_none_or(|due| due <= latest));
                    }
                    Event::Stale(so) => {
                        timing.set_stale(now, so);
                        stale = so;
                    }
                }
                prop_assert_eq!(timing.is_pending(), untold.is_some());
                prop_assert_eq!(timing.due().is_some(), untold.is_some() && !stale);
            }
            timing.set_stale(now, false);
            while let Some(due) = timing.due() {
                now = now.max(due);
                attempt(&mut timing, now, &mut untold, false)?;
            }
            prop_assert_eq!(untold, None, "a change that nobody was told of");
        }
    }
}
