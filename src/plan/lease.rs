//! Who writes: a Lease (`coordination.k8s.io/v1`) that one process at a time holds.
//!
//! Nobody's wall clock is compared with anybody else's, as client-go does it too: whoever waits measures on his own
//! monotonic clock how long the record stands still. So clocks may differ by any amount. All times are since some start.

use std::time::Duration;

/// How long a holder may be silent. Others take the Lease so long after they saw it move last.
pub const DURATION: Duration = Duration::from_secs(10);
/// From one renewal to the next, and from one look of somebody who waits to the next.
pub const PERIOD: Duration = Duration::from_secs(3);
/// The pause before a call that failed is repeated; doubled each time for whoever does not hold it.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST: Duration = Duration::from_secs(5);

/// A Lease as the API server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; none if it was given back.
    pub holder: Option<String>,
    /// How long the holder may be silent, as he says.
    pub duration: Duration,
    /// How often it went from one to another.
    pub transitions: i32,
    /// Which state of the object this is: it moves with each renewal.
    pub resource_version: String,
}

/// What one process knows of a Lease.
#[derive(Debug)]
pub struct Lease {
    identity: String,
    seen: Option<Seen>,
    held_until: Option<Duration>,
    next: Duration,
    /// How often in a row somebody else was faster.
    outruns: u32,
    /// How often in a row a call failed.
    failures: u32,
}

#[derive(Debug)]
struct Seen {
    /// None: there is no such object.
    record: Option<Record>,
    /// Since when it looks like this.
    since: Duration,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Read it.
    Look,
    /// There is none: make it.
    Create,
    /// It is ours: say that we are still there.
    Renew(Record),
    /// Its holder gave it back, or was silent for too long.
    Take(Record),
    /// Nothing before this time.
    Wait(Duration),
}

// === impl Lease ===

impl Lease {
    /// Knows nothing yet. No two processes may have the same identity.
    #[must_use]
    pub fn new(identity: String) -> Self {
        Self { identity, seen: None, held_until: None, next: Duration::ZERO, outruns: 0, failures: 0 }
    }

    /// Who this is.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Until when it is ours; none if it is not.
    #[must_use]
    pub fn held_until(&self, now: Duration) -> Option<Duration> {
        self.held_until.filter(|until| now < *until)
    }

    /// The record, as it was last seen.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        self.seen.as_ref()?.record.as_ref()
    }

    /// Who holds it, as far as was seen.
    #[must_use]
    pub fn holder(&self) -> Option<&str> {
        self.seen.as_ref()?.record.as_ref()?.holder.as_deref()
    }

    /// What to do now.
    #[must_use]
    pub fn step(&self, now: Duration) -> Step {
        let Some(Seen { record, since }) = &self.seen else {
            return if now < self.next { Step::Wait(self.next) } else { Step::Look };
        };
        let Some(record) = record else {
            return if now < self.next { Step::Wait(self.next) } else { Step::Create };
        };
        if self.held_until(now).is_some() {
            return if now < self.next { Step::Wait(self.next) } else { Step::Renew(record.clone()) };
        }
        // A record of its own that was not confirmed in time is nobody else's.
        let free = record.holder.as_deref().is_none_or(|holder| holder == self.identity);
        let silent = *since + record.duration;
        if free || now >= silent {
            return if now < self.next { Step::Wait(self.next) } else { Step::Take(record.clone()) };
        }
        if now < self.next { Step::Wait(self.next.min(silent)) } else { Step::Look }
    }

    /// The API server said what there is; the question was asked at `asked`.
    pub fn saw(&mut self, record: Option<Record>, asked: Duration, now: Duration) {
        self.failures = 0;
        let ours = record.as_ref().is_some_and(|record| record.holder.as_deref() == Some(&self.identity));
        if !ours {
            self.held_until = None;
        }
        let same = self.seen.as_ref().is_some_and(|seen| seen.record == record);
        if !same {
            self.seen = Some(Seen { record, since: now });
        }
        // Somebody who gave it back, or never was there, is followed at once.
        let free =
            self.seen.as_ref().is_some_and(|seen| seen.record.as_ref().is_none_or(|record| record.holder.is_none()));
        self.next = if free || ours { now + self.pause() } else { asked + PERIOD };
    }

    /// The API server confirmed that it is ours; the question was asked at `asked`, from when it counts.
    pub fn confirmed(&mut self, record: Record, asked: Duration, now: Duration) {
        if record.holder.as_deref() != Some(&self.identity) {
            return self.saw(Some(record), asked, now);
        }
        (self.outruns, self.failures) = (0, 0);
        self.held_until = Some(asked + record.duration);
        self.seen = Some(Seen { record: Some(record), since: now });
        self.next = asked + PERIOD;
    }

    /// The record moved before our write: by somebody who was faster, or by a write of ours whose answer was lost. Until it
    /// was looked at, what was confirmed holds.
    pub fn outrun(&mut self, now: Duration) {
        self.outruns = self.outruns.saturating_add(1);
        self.seen = None;
        self.next = now + self.pause();
    }

    /// Who was outrun once looks again at once; who is outrun again and again does not.
    fn pause(&self) -> Duration {
        if self.outruns > 1 { AGAIN } else { Duration::ZERO }
    }

    /// A call failed, and nothing is known of what became of it.
    pub fn failed(&mut self, now: Duration, pause: Option<Duration>) {
        let held = self.held_until(now).is_some();
        let own = if held { AGAIN } else { AGAIN.saturating_mul(2_u32.saturating_pow(self.failures)).min(LONGEST) };
        self.failures = self.failures.saturating_add(1).min(8);
        self.next = now + pause.unwrap_or(own).clamp(AGAIN, DURATION);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn record(holder: Option<&str>, version: u32) -> Record {
        Record {
            holder: holder.map(str::to_owned),
            duration: DURATION,
            transitions: 0,
            resource_version: version.to_string(),
        }
    }

    #[test]
    fn a_silent_holder_is_followed_after_its_duration_and_a_living_one_never() {
        let mut lease = Lease::new("b".to_owned());
        assert_eq!(lease.step(Duration::ZERO), Step::Look);
        lease.saw(Some(record(Some("a"), 1)), Duration::ZERO, Duration::ZERO);
        for second in 1_u32..60 {
            let now = SECOND * second;
            assert!(!matches!(lease.step(now), Step::Take(_)), "at {second}");
            if lease.step(now) == Step::Look {
                lease.saw(Some(record(Some("a"), second)), now, now);
            }
        }
        // It stands still from second 57 on, the last look that saw it move.
        let silent = (57..100).map(|second| SECOND * second).find(|now| matches!(lease.step(*now), Step::Take(_)));
        assert!(silent.is_some_and(|at| at <= SECOND * 57 + DURATION), "{silent:?}");
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once() {
        let mut lease = Lease::new("b".to_owned());
        lease.saw(Some(record(None, 7)), SECOND, SECOND);
        assert_eq!(lease.step(SECOND), Step::Take(record(None, 7)));
        lease.outrun(SECOND);
        assert_eq!(lease.step(SECOND), Step::Look);
    }

    #[test]
    fn whoever_is_outrun_again_and_again_pauses() {
        let mut lease = Lease::new("a".to_owned());
        lease.saw(None, Duration::ZERO, Duration::ZERO);
        lease.outrun(SECOND);
        assert_eq!(lease.step(SECOND), Step::Look);
        lease.saw(Some(record(Some("a"), 1)), SECOND, SECOND);
        lease.outrun(SECOND);
        assert_eq!(lease.step(SECOND), Step::Wait(SECOND + AGAIN));
        lease.confirmed(record(Some("a"), 2), SECOND * 2, SECOND * 2);
        lease.outrun(SECOND * 5);
        assert_eq!(lease.step(SECOND * 5), Step::Look);
    }

    #[test]
    fn it_counts_from_the_question_and_ends_unless_it_is_renewed() {
        let mut lease = Lease::new("b".to_owned());
        lease.saw(None, Duration::ZERO, Duration::ZERO);
        assert_eq!(lease.step(Duration::ZERO), Step::Create);
        lease.confirmed(record(Some("b"), 1), SECOND, SECOND * 4);
        assert_eq!(lease.held_until(SECOND * 4), Some(SECOND + DURATION));
        assert_eq!(lease.step(SECOND * 4), Step::Renew(record(Some("b"), 1)));
        lease.failed(SECOND * 5, None);
        assert_eq!(lease.step(SECOND * 5), Step::Wait(SECOND * 6));
        assert_eq!(lease.held_until(SECOND + DURATION), None);
        // Others may have it by now.
        assert!(!matches!(lease.step(SECOND * 12), Step::Renew(_)));
    }

    /// A Lease object with optimistic concurrency, and processes whose answers come late or never.
    #[derive(Debug, Clone, Copy)]
    enum Luck {
        Fine,
        /// The call is done, its answer comes later.
        Late(u64),
        /// The call is done, its answer never comes.
        Lost,
        /// The call is never done.
        Dropped,
    }

    /// A call: when its answer comes, what it says (a record; or true: outrun, false: there is none), when it was asked, and
    /// whether it writes.
    type Call = (u64, Option<Result<Record, bool>>, u64, bool);

    fn luck() -> impl Strategy<Value = Luck> {
        prop_oneof![
            5 => Just(Luck::Fine),
            2 => (1_u64..20_000).prop_map(Luck::Late),
            1 => Just(Luck::Lost),
            1 => Just(Luck::Dropped),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
        #[test]
        fn no_two_hold_it_at_one_time(
            lucks in proptest::collection::vec(luck(), 400),
            dead in proptest::collection::vec((0_usize..3, 0_u64..300_000), 0..3),
        ) {
            let mut object: Option<Record> = None;
            let mut version = 0_u32;
            let mut processes: Vec<Lease> = ["a", "b", "c"].map(|name| Lease::new(name.to_owned())).into();
            // Each waits for one answer at a time: when it comes, what it says, when it was asked.
            let mut busy: Vec<Option<Call>> = vec![None; 3];
            let mut lucks = lucks.into_iter().cycle();
            let ms = Duration::from_millis;
            for now in (0_u64..300_000).step_by(50) {
                for index in 0..3 {
                    if dead.iter().any(|(who, at)| *who == index && now >= *at) {
                        continue;
                    }
                    if let Some((due, answer, asked, wrote)) = busy[index].clone() {
                        if now < due {
                            continue;
                        }
                        let lease = &mut processes[index];
                        match answer {
                            Some(Ok(record)) if wrote => lease.confirmed(record, ms(asked), ms(now)),
                            Some(Ok(record)) => lease.saw(Some(record), ms(asked), ms(now)),
                            Some(Err(true)) => lease.outrun(ms(now)),
                            Some(Err(false)) => lease.saw(None, ms(asked), ms(now)),
                            None => lease.failed(ms(now), None),
                        }
                        busy[index] = None;
                    }
                    let step = processes[index].step(ms(now));
                    if matches!(step, Step::Wait(_)) {
                        continue;
                    }
                    let luck = lucks.next().unwrap();
                    let identity = processes[index].identity().to_owned();
                    let mut answer = match (&step, &object) {
                        (_, None) if step == Step::Look => Some(Err(false)),
                        (Step::Look, Some(record)) => Some(Ok(record.clone())),
                        _ => None,
                    };
                    if !matches!(luck, Luck::Dropped) && step != Step::Look {
                        let expected = match &step {
                            Step::Renew(record) | Step::Take(record) => Some(record.resource_version.clone()),
                            _ => None,
                        };
                        let fits = expected == object.as_ref().map(|record| record.resource_version.clone());
                        if fits {
                            version += 1;
                            object = Some(record(Some(&identity), version));
                            answer = object.clone().map(Ok);
                        } else {
                            answer = Some(Err(true));
                        }
                    }
                    let wrote = step != Step::Look;
                    busy[index] = Some(match luck {
                        Luck::Fine => (now, answer, now, wrote),
                        Luck::Late(by) => (now + by, answer, now, wrote),
                        Luck::Lost | Luck::Dropped => (now + 4_000, None, now, wrote),
                    });
                }
                let holders: Vec<&str> = processes
                    .iter()
                    .filter(|lease| lease.held_until(ms(now)).is_some())
                    .map(Lease::identity)
                    .collect();
                prop_assert!(holders.len() <= 1, "at {now} ms: {holders:?}");
            }
            if dead.is_empty() {
                prop_assert!(object.is_some());
            }
        }
    }
}
