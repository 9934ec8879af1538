//! The way up: look, claim, fold, plan, act, settle, report. Only puts the steps in order.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use thiserror::Error;
use tokio::{
    sync::Notify,
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        snapshot::Reason,
        value::SecretValue,
        virtual_key::{Order, Rejection, RejectionReason, Rules, Token, Writer},
    },
    health::{Health, SpoolProblem, timestamp},
    metrics::{Metrics, SpoolCounts},
    plan::{
        fold::Queue,
        naming,
        push::{Conditions, Later, Machine, Outcome, Pause, Step},
        rate::{NewSecrets, Rate, Versions},
        schedule,
    },
    spool::{Claimed, Look, Mark, Spool, SpoolError, shown},
    store::{Content, Parcel, Store},
};

/// Entries that are under way at once: connections cost memory, and AWS's quota is met by far fewer.
const IN_FLIGHT: usize = 16;
/// From one look at the spool to the next, where the file system gives hints.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// And where it gives none.
const LOOK_WITHOUT_HINTS: Duration = Duration::from_secs(1);
/// An entry that was claimed so long ago is sent only after a look at what is there.
const FRESH_MS: u64 = 60_000;
/// How long a secret must have been said to be absent before that is believed: reads are eventually consistent; longer where
/// this process wrote it a moment ago.
const ABSENT_FOR: Duration = Duration::from_secs(1);
const ABSENT_AFTER_WRITING: Duration = Duration::from_secs(10);
/// Why an entry waits for its hour.
const NEW_SECRETS: &str = "new_secret_limit";
/// How long AWS may deny an entry before it counts as failed.
const DENIED_FOR: Duration = Duration::from_hours(24);
/// From one removal of old failed entries to the next.
const SWEEP: Duration = Duration::from_hours(1);
/// What is left of the grace period for the others, when the daemon stops.
const DRAIN: Duration = Duration::from_secs(8);
/// The status is brought up to date at most this often while much happens.
const REPORT: Duration = Duration::from_millis(200);
/// The same trouble of many entries is said once in this time.
const TOLD_FOR: Duration = Duration::from_mins(10);
/// So many entries are named in one message or status; the rest is counted.
const NAMED: usize = 10;
/// So many new claims are read before others have a turn.
const AT_ONCE: usize = 8;
/// From one look to the next while the process ends.
const LOOK_WHILE_LEAVING: Duration = Duration::from_millis(250);
/// A look may take a quarter of the time at most, however full the spool is.
const SHARE_OF_LOOKS: u32 = 4;

/// The worker of the way up, and everything that it owns.
#[derive(Debug)]
pub struct Push {
    /// Where entries come from.
    pub spool: Spool,
    /// What they may ask for.
    pub rules: Rules,
    /// Who writes those that name no team, and those of each team.
    pub stores: Stores,
    /// How many claims are held.
    pub max_entries: usize,
    /// Writes a second.
    pub rate: Rate,
    /// New secrets an hour.
    pub new_secrets: NewSecrets,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is reported.
    pub health: Arc<Health>,
    /// The wall clock.
    pub now: fn() -> SystemTime,
    /// The source of delays' randomness.
    pub random: fastrand::Rng,
    /// True if the spool dies with the pod.
    pub in_memory: bool,
    /// With a time limit: everything that is there, then done.
    pub once: Option<Duration>,
}

/// Who writes.
#[derive(Debug)]
pub struct Stores {
    /// keytide itself.
    pub own: Arc<Store>,
    /// The teams, in the order of the rules' teams.
    pub teams: Vec<Arc<Store>>,
}

/// How the world speaks to the worker.
#[derive(Debug, Clone)]
pub struct Signals {
    /// The worker shall stop.
    pub stop: CancellationToken,
    /// The process ends: what waits is delivered first, as far as there is time.
    pub leaving: CancellationToken,
    /// Something happened in the spool.
    pub hints: Arc<Notify>,
    /// True while the file system gives hints.
    pub hinted: Arc<AtomicBool>,
}

/// How the worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop; nothing is lost.
    Stopped,
    /// Everything that was there is stored.
    Once,
}

/// What could not be delivered.
#[derive(Debug, Error)]
pub enum PushError {
    /// The process ends, and the spool with the pod.
    #[error("{count} virtual keys are not stored, and are lost if the pod ends: {named}")]
    Left {
        /// How many.
        count: usize,
        /// The first of them, and why.
        named: String,
    },
    /// There was no more time.
    #[error("the spool was not drained within {timeout:?}; {count} entries are left: {named}")]
    TooLate {
        /// The time limit.
        timeout: Duration,
        /// How many.
        count: usize,
        /// The first of them, and why.
        named: String,
    },
    /// Some entries can never succeed.
    #[error("{failed} entries failed, and {unreadable} cannot be read; the log and `keytide spool list` say why")]
    Failed {
        /// How many failed.
        failed: usize,
        /// How many cannot be read.
        unreadable: usize,
    },
    /// The spool cannot be used at all.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// What is known of a claim beside its order.
#[derive(Debug)]
struct Held {
    claim: Claimed,
    /// When it was taken in: a clock that steps back makes nothing younger.
    since: Duration,
    attempts: u32,
    absent_since: Option<Duration>,
    denied_since: Option<Duration>,
    problem: Option<Box<(&'static str, String)>>,
}

/// A claim that the file system keeps from its place.
#[derive(Debug)]
enum Stuck {
    /// It could not be read.
    Unread(Claimed),
    /// It failed, and could not be moved to the failed entries.
    Unmoved(Claimed, Rejection, Option<String>),
}

/// One attempt, at a place where the worker takes part.
#[derive(Debug)]
struct Attempt {
    token: Token,
    writer: Writer,
    machine: Machine,
    parcel: Parcel,
    /// True if a write is paid for that was not yet made.
    prepaid: bool,
    /// True if a new secret was promised to it.
    promised: bool,
    /// True if it wrote a version.
    wrote: bool,
    /// None: the restoring of its secret is to be marked, and it goes on.
    outcome: Option<Outcome>,
}

/// What attempts share.
#[derive(Debug, Clone)]
struct Shared {
    began: Instant,
    rate: Arc<Mutex<Rate>>,
    metrics: Arc<Metrics>,
}

/// The worker at work.
struct Working {
    push: Push,
    shared: Shared,
    queue: Queue<Held>,
    under_way: FuturesUnordered<BoxFuture<'static, Attempt>>,
    stuck: Vec<Stuck>,
    look_at: Instant,
    /// No look before: the last one took its share.
    rested_at: Instant,
    sweep_at: Instant,
    waiting: usize,
    /// True if some of those wait for room.
    crowded: bool,
    unreadable: usize,
    ignored: usize,
    settled: bool,
    failed_now: usize,
    versions: Versions,
    told: BTreeMap<String, Instant>,
    reported: Option<Instant>,
    /// True if something happened since.
    unreported: bool,
    trouble: Option<String>,
}

// === impl Push ===

impl Push {
    /// Works until told to stop.
    ///
    /// # Errors
    /// If the process ends and something is lost with it, or not everything could be stored once.
    pub async fn run(self, signals: Signals) -> Result<Ended, PushError> {
        let now = Instant::now();
        let rate = Arc::new(Mutex::new(self.rate.clone()));
        let shared = Shared { began: now, rate, metrics: Arc::clone(&self.metrics) };
        let mut working = Working {
            push: self,
            shared,
            queue: Queue::default(),
            under_way: FuturesUnordered::new(),
            stuck: Vec::new(),
            look_at: now,
            rested_at: now,
            sweep_at: now,
            waiting: 0,
            crowded: false,
            unreadable: 0,
            ignored: 0,
            settled: false,
            failed_now: 0,
            versions: Versions::default(),
            told: BTreeMap::new(),
            reported: None,
            unreported: false,
            trouble: None,
        };
        let recovered = working.push.spool.recover()?;
        if !recovered.is_empty() {
            tracing::info!(
                "{} entries of the spool were claimed before this process, and are resumed",
                recovered.len()
            );
        }
        working.take_in(recovered).await;
        working.work(signals).await
    }

    fn store(&self, writer: Writer) -> Arc<Store> {
        let team = writer.and_then(|team| self.stores.teams.get(team));
        Arc::clone(team.unwrap_or(&self.stores.own))
    }

    fn now_ms(&self) -> u64 {
        let since = (self.now)().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

// === impl Working ===

impl Working {
    async fn work(mut self, signals: Signals) -> Result<Ended, PushError> {
        let Signals { stop, leaving, hints, hinted } = signals;
        let limit = self.push.once.map(|timeout| (timeout, Instant::now() + timeout));
        let mut deadline = None;
        loop {
            // Whoever stops without leaving leaves the rest to the next process.
            let working = deadline.is_none() || leaving.is_cancelled();
            if self.crowded && self.has_room() {
                self.look_at = self.look_at.min(Instant::now());
            }
            if working && Instant::now() >= self.look_at.max(self.rested_at) {
                let again = match deadline {
                    Some(_) => LOOK_WHILE_LEAVING,
                    None if hinted.load(Ordering::Relaxed) => LOOK_AGAIN,
                    None => LOOK_WITHOUT_HINTS,
                };
                self.look(again, deadline.is_some()).await;
            }
            if Instant::now() >= self.sweep_at {
                self.sweep();
            }
            if working {
                self.dispatch();
            }
            self.report(false);
            let idle = self.queue.is_empty() && self.waiting == 0 && self.stuck.is_empty() && self.trouble.is_none();
            if deadline.is_some() && self.under_way.is_empty() && (!working || (idle && self.settled)) {
                return self.left(leaving.is_cancelled());
            }
            if limit.is_some() && idle && self.settled {
                self.report(true);
                let (failed, unreadable) = (self.failed_now, self.unreadable);
                let whole = failed == 0 && unreadable == 0;
                return if whole { Ok(Ended::Once) } else { Err(PushError::Failed { failed, unreadable }) };
            }
            let wake = self.wake_at(working);
            let next = deadline.map_or(wake, |end: Instant| wake.min(end));
            let next = limit.map_or(next, |(_, end)| next.min(end));
            self.push.health.due("push", next);
            tokio::select! {
                biased;
                () = stop.cancelled(), if deadline.is_none() => {
                    deadline = Some(Instant::now() + DRAIN);
                    if leaving.is_cancelled() {
                        self.prepare_to_leave();
                    }
                }
                Some(attempt) = self.under_way.next(), if !self.under_way.is_empty() => {
                    self.take_out(attempt, deadline.is_some());
                }
                () = hints.notified(), if working => self.look_at = Instant::now(),
                () = sleep_until(next) => {
                    if let Some((timeout, _)) = limit.filter(|(_, end)| Instant::now() >= *end) {
                        self.report(true);
                        let (count, named) = self.named();
                        return Err(PushError::TooLate { timeout, count, named });
                    }
                    if deadline.is_some_and(|end| Instant::now() >= end) {
                        return self.left(leaving.is_cancelled());
                    }
                }
            }
        }
    }

    /// When there is something to do without a hint.
    fn wake_at(&self, working: bool) -> Instant {
        let mut wake = self.sweep_at;
        if !working {
            return wake;
        }
        wake = wake.min(self.look_at.max(self.rested_at));
        if let Some(at) = self.reported.filter(|_| self.unreported) {
            wake = wake.min(at + REPORT);
        }
        if self.under_way.len() < IN_FLIGHT
            && let Some(ready) = self.queue.next_at()
        {
            let now = self.shared.elapsed();
            let paid = now + self.shared.rate().wait(now);
            wake = wake.min(self.shared.began + ready.max(paid));
        }
        wake
    }

    /// How many more claims may be held.
    fn room(&self) -> usize {
        self.push.max_entries.saturating_sub(self.queue.len() + self.stuck.len())
    }

    /// True if there is room for so many that it is worth to list a full spool.
    fn has_room(&self) -> bool {
        self.room() >= self.push.max_entries.div_ceil(2)
    }

    /// Looks at the spool, and takes in what is new.
    async fn look(&mut self, again: Duration, last: bool) {
        let began = Instant::now();
        self.look_at = began + again;
        self.settled = false;
        self.free_the_stuck().await;
        if self.crowded && !self.has_room() {
            return;
        }
        let room = self.room();
        let scan = self.push.spool.scan(Look { room, now_ms: self.push.now_ms(), last }).await;
        self.rested_at = began + began.elapsed().saturating_mul(SHARE_OF_LOOKS);
        if let Some(error) = scan.trouble {
            self.push.metrics.spool_error();
            self.look_at = began + LOOK_WITHOUT_HINTS.min(again);
            let message = error.to_string();
            if self.trouble.as_ref() != Some(&message) {
                tracing::error!("the spool cannot be used: {message}");
            }
            self.trouble = Some(message);
        } else {
            if let Some(trouble) = self.trouble.take() {
                tracing::info!("the spool can be used again; it could not: {trouble}");
            }
            self.settled = scan.claimed.is_empty() && scan.rejected.is_empty() && scan.again.is_none();
        }
        for remark in &scan.remarks {
            tracing::warn!("{remark}");
        }
        self.crowded = scan.crowded > 0;
        self.waiting = scan.crowded + scan.unsettled;
        (self.unreadable, self.ignored) = (scan.unreadable, scan.ignored);
        if let Some(soon) = scan.again {
            self.look_at = self.look_at.min(Instant::now() + soon);
        }
        if !scan.claimed.is_empty() {
            // Perhaps more came while these were taken.
            let soon = if self.push.once.is_some() { Duration::ZERO } else { LOOK_WITHOUT_HINTS };
            self.look_at = self.look_at.min(Instant::now() + soon);
        }
        for (claim, rejection) in scan.rejected {
            self.fail(claim, None, rejection);
        }
        self.take_in(scan.claimed).await;
        if self.crowded && self.has_room() {
            // What was looked at stays where it is, or failed: what is behind it is next.
            self.look_at = began;
        }
        self.look_at_writer();
        self.unreported = true;
    }

    /// Reads claims, and puts them into their queues.
    async fn take_in(&mut self, claims: Vec<Claimed>) {
        for (i, claim) in claims.into_iter().enumerate() {
            if i % AT_ONCE == AT_ONCE - 1 {
                self.push.health.due("push", Instant::now());
                yield_now().await;
            }
            if self.queue.contains(claim.token) {
                continue;
            }
            match self.push.spool.read(&claim) {
                Ok(draft) => match draft.and_then(|draft| naming::order(&draft, &self.push.rules)) {
                    Ok(order) => {
                        let held = Held {
                            since: self.shared.elapsed(),
                            attempts: 0,
                            absent_since: None,
                            denied_since: None,
                            problem: None,
                            claim,
                        };
                        self.queue.push(held.claim.token, order, held);
                    }
                    Err(rejection) => self.fail(claim, None, rejection),
                },
                Err(error) => {
                    self.push.metrics.spool_error();
                    self.tell("spool", &format!("entry {} could not be read yet: {error}", shown(&claim.name)));
                    // By then another one of its name may have been sent.
                    self.stuck.push(Stuck::Unread(Claimed { resumed: true, ..claim }));
                }
            }
        }
    }

    /// Tries again what the file system kept from its place.
    async fn free_the_stuck(&mut self) {
        let mut unread = Vec::new();
        for stuck in std::mem::take(&mut self.stuck) {
            match stuck {
                Stuck::Unread(claim) => unread.push(claim),
                Stuck::Unmoved(claim, rejection, subject) => self.put_away(claim, rejection, subject),
            }
        }
        self.take_in(unread).await;
    }

    /// Who writes is somebody that the status shows.
    fn look_at_writer(&self) {
        // Not waited for: an attempt that is getting credentials goes on only after this.
        let Some(known) = self.push.stores.own.auth().known().now_or_never() else { return };
        self.push.health.update(|status| {
            let Some(writer) = status.spool.as_mut().and_then(|spool| spool.writer.as_mut()) else { return };
            writer.account = known.caller.as_ref().map(|caller| caller.account().to_string());
            writer.caller = known.caller.as_ref().map(ToString::to_string);
            writer.expires = known.expires_at.and_then(timestamp);
            writer.token_expires = known.token_expires_at.and_then(timestamp);
        });
    }

    /// Starts what may go now.
    fn dispatch(&mut self) {
        while self.under_way.len() < IN_FLIGHT {
            let now = self.shared.elapsed();
            if !self.shared.rate().wait(now).is_zero() {
                return;
            }
            let Some(token) = self.queue.choose(now) else { return };
            self.start(token, now);
        }
    }

    fn start(&mut self, token: Token, now: Duration) {
        let Some((order, held)) = self.queue.get(token) else { return };
        let value = match self.value_of(order, held) {
            Ok(Ok(value)) => value,
            Ok(Err(rejection)) => {
                let order = order.clone();
                if let Some(held) = self.queue.done(token) {
                    self.fail(held.claim, Some(&order), rejection);
                }
                return;
            }
            Err(error) => {
                let message = format!("the entry could not be read: {error}");
                self.again(token, Later { reason: "spool", message, pause: Pause::Backoff, absent: false }, false);
                return;
            }
        };
        let (order, waits) = (order.clone(), held.problem.as_ref().is_some_and(|problem| problem.0 == NEW_SECRETS));
        let promised = order.change.is_valued() && self.push.new_secrets.promise(now);
        if let Some(at) = self.push.new_secrets.next_at().filter(|_| waits && !promised) {
            // It is known to be new: AWS need not be asked again.
            self.queue.again(token, at);
            return;
        }
        if !self.fold(token) {
            if promised {
                self.push.new_secrets.keep(now, false);
            }
            return;
        }
        let Some((_, held)) = self.queue.get(token) else { return };
        let claim = &held.claim;
        let age = self.push.now_ms().saturating_sub(token.claimed_ms());
        let fresh = age <= FRESH_MS && now.saturating_sub(held.since) <= Duration::from_millis(FRESH_MS);
        let settling = order.change.names().any(|name| self.versions.is_recent(name, now));
        let patience = if settling { ABSENT_AFTER_WRITING } else { ABSENT_FOR };
        let conditions = Conditions {
            careful: claim.resumed || held.attempts > 0 || !fresh,
            believes_absence: held.absent_since.is_some_and(|since| now.saturating_sub(since) >= patience),
            may_create: promised || !order.change.is_valued(),
            restored: claim.restored,
            forced: claim.forced,
        };
        let store = self.push.store(order.writer);
        let machine = Machine::new(&order, token, &self.push.rules.settings, store.region(), conditions);
        self.shared.rate().take(now);
        self.go_on(Attempt {
            token,
            writer: order.writer,
            machine,
            parcel: Parcel { token, value: value.map(Content::Text) },
            prepaid: true,
            promised,
            wrote: false,
            outcome: None,
        });
    }

    /// The value of an entry as it is now: its file may have been written to since it was read.
    fn value_of(&self, order: &Order, held: &Held) -> Result<Result<Option<SecretValue>, Rejection>, SpoolError> {
        Ok(self.push.spool.read(&held.claim)?.and_then(|draft| {
            let again = naming::order(&draft, &self.push.rules)?;
            if again == *order {
                return Ok(draft.value);
            }
            let message = "the file was changed after it was dropped: write it whole, then rename it".to_owned();
            Err(Rejection { reason: RejectionReason::Malformed, message })
        }))
    }

    /// The entry is under way. Older ones that it makes unnecessary are removed, and what was known of them is now known of
    /// it. False if it cannot go on.
    fn fold(&mut self, token: Token) -> bool {
        let older = self.queue.older_than(token);
        let restored = older.iter().any(|older| self.queue.get(*older).is_some_and(|(_, held)| held.claim.restored));
        if restored && let Err(error) = self.push.spool.mark(token, Mark::Restored, true) {
            let message = format!("the restoring of a secret could not be noted: {error}");
            self.again(token, Later { reason: "spool", message, pause: Pause::Backoff, absent: false }, false);
            return false;
        }
        let folded = self.queue.begin(token);
        let denied_since = folded.iter().filter_map(|held| held.denied_since).min();
        if let Some(held) = self.queue.payload_mut(token) {
            held.claim.restored |= restored;
            held.claim.resumed |= folded.iter().any(|held| held.claim.resumed || held.attempts > 0);
            held.attempts = folded.iter().map(|held| held.attempts).fold(held.attempts, u32::max);
            held.denied_since = held.denied_since.or(denied_since);
        }
        for held in folded {
            self.push.metrics.spool_folded();
            tracing::debug!(entry = %held.claim.token, "folded into a later entry of the same secret");
            if let Err(error) = self.push.spool.settle(&held.claim) {
                // It is read again by the next process, and then is older than what is there.
                self.tell("spool", &format!("a folded entry could not be removed: {error}"));
            }
        }
        true
    }

    fn go_on(&mut self, attempt: Attempt) {
        let store = self.push.store(attempt.writer);
        self.under_way.push(Box::pin(attempt.run(store, self.shared.clone())));
    }

    /// Takes out an attempt that is at its end, or at its mark.
    fn take_out(&mut self, mut attempt: Attempt, draining: bool) {
        let token = attempt.token;
        let Some(outcome) = attempt.outcome.take() else {
            let restoring = attempt.machine.step() == Step::Mark { restoring: true };
            match self.push.spool.mark(token, Mark::Restored, restoring) {
                Ok(()) => {
                    if let Some(held) = self.queue.payload_mut(token) {
                        held.claim.restored = restoring;
                    }
                    attempt.machine.marked();
                    self.go_on(attempt);
                }
                Err(error) => {
                    self.end_attempt(&attempt, false);
                    let message = format!("the restoring of a secret could not be noted: {error}");
                    self.again(
                        token,
                        Later { reason: "spool", message, pause: Pause::Backoff, absent: false },
                        draining,
                    );
                }
            }
            return;
        };
        let created = matches!(outcome, Outcome::Confirmed { created: true });
        self.end_attempt(&attempt, created);
        match outcome {
            Outcome::Confirmed { .. } => self.confirm(token, attempt.wrote, draining),
            Outcome::Failed(rejection) => {
                let order = self.queue.get(token).map(|(order, _)| order.clone());
                if let Some(held) = self.queue.done(token) {
                    self.fail(held.claim, order.as_ref(), rejection);
                }
            }
            Outcome::Later(later) => self.again(token, later, draining),
        }
    }

    fn end_attempt(&mut self, attempt: &Attempt, created: bool) {
        if attempt.prepaid {
            self.shared.rate().give_back();
        }
        if attempt.promised {
            self.push.new_secrets.keep(self.shared.elapsed(), created);
        }
        if created {
            self.push.metrics.spool_new_secret();
        }
    }

    fn confirm(&mut self, token: Token, wrote: bool, draining: bool) {
        let Some((order, held)) = self.queue.get(token) else { return };
        if let Err(error) = self.push.spool.settle(&held.claim) {
            let message = format!("the entry is stored, but could not be removed from the spool: {error}");
            self.again(token, Later { reason: "spool", message, pause: Pause::Backoff, absent: false }, draining);
            return;
        }
        let operation = order.operation;
        let waited_ms = i64::try_from(self.push.now_ms()).unwrap_or(i64::MAX).saturating_sub(held.claim.dropped_ms);
        let waited = Duration::from_millis(u64::try_from(waited_ms).unwrap_or(0));
        self.push.metrics.spool_confirmed(operation, waited.as_secs_f64());
        tracing::debug!(entry = %token, operation = operation.label(), "stored: {}", order.change.subject());
        if wrote && let Some(name) = order.change.names().last() {
            let count = self.versions.written(name, self.shared.elapsed());
            if count == Versions::MANY {
                tracing::warn!(
                    "secret {name} got {count} versions within a day: AWS keeps about a hundred, and then refuses more"
                );
            }
        }
        self.queue.done(token);
        let at = i64::try_from(self.push.now_ms() / 1000).ok().and_then(timestamp);
        self.push.health.update(|status| {
            if let Some(spool) = &mut status.spool {
                spool.last_confirmed = at;
                spool.confirmed += 1;
            }
        });
    }

    fn fail(&mut self, claim: Claimed, order: Option<&Order>, rejection: Rejection) {
        let subject = order.map(|order| format!("{} {}", order.operation, order.change.subject()));
        self.failed_now += 1;
        self.push.metrics.spool_failed(order.map(|order| order.operation), rejection.reason);
        let message = format!(
            "entry {} failed{}: {}; it is kept for 7 days (`keytide spool list`)",
            shown(&claim.name),
            subject.as_deref().map(|subject| format!(" ({subject})")).unwrap_or_default(),
            rejection.message
        );
        let reason = rejection.reason.label();
        if order.is_some() {
            tracing::error!(entry = %claim.token, reason, "{message}");
        } else {
            // What nobody understands anybody may have written, as often as he likes.
            self.tell(reason, &message);
        }
        self.put_away(claim, rejection, subject);
    }

    /// Moves a failed entry to the others.
    fn put_away(&mut self, claim: Claimed, rejection: Rejection, subject: Option<String>) {
        let now_ms = self.push.now_ms();
        if let Err(error) = self.push.spool.fail(&claim, &rejection, subject.as_deref(), now_ms) {
            self.push.metrics.spool_error();
            self.tell("spool", &format!("a failed entry could not be moved yet: {error}"));
            self.stuck.push(Stuck::Unmoved(claim, rejection, subject));
        }
    }

    /// Puts an entry back, to be tried again.
    fn again(&mut self, token: Token, later: Later, draining: bool) {
        let Later { reason, message, pause, absent } = later;
        let now = self.shared.elapsed();
        let next_secret = self.push.new_secrets.next_at();
        let Some((order, _)) = self.queue.get(token) else { return };
        let operation = order.operation;
        let who = self.push.store(order.writer).auth().who();
        let denied = Reason::Denied.label();
        let Some(held) = self.queue.payload_mut(token) else { return };
        held.attempts = held.attempts.saturating_add(1);
        held.absent_since = absent.then(|| held.absent_since.unwrap_or(now));
        // A call that never came so far says nothing of what is allowed.
        let silent = [Reason::Unavailable, Reason::Throttled, Reason::Identity, Reason::Clock].map(Reason::label);
        if reason == denied {
            held.denied_since.get_or_insert(now);
        } else if !silent.contains(&reason) {
            held.denied_since = None;
        }
        let denied_for = held.denied_since.filter(|_| reason == denied).map(|since| now.saturating_sub(since));
        let too_long = denied_for.is_some_and(|time| time >= DENIED_FOR);
        let mut delay = match pause {
            Pause::Soon => schedule::soon(&mut self.push.random),
            Pause::Backoff => schedule::backoff(held.attempts, &mut self.push.random),
            Pause::Slow => schedule::slow(held.attempts, &mut self.push.random),
        };
        if reason == NEW_SECRETS
            && let Some(at) = next_secret
        {
            delay = delay.max(at.saturating_sub(now));
        }
        if draining {
            delay = delay.min(schedule::hurried(&mut self.push.random));
        }
        held.problem = Some(Box::new((reason, message.clone())));
        self.push.metrics.spool_retry(operation, reason);
        if too_long {
            let order = self.queue.get(token).map(|(order, _)| order.clone());
            if let Some(held) = self.queue.done(token) {
                let message = format!("AWS denied it to {who} for a day: {message}");
                self.fail(held.claim, order.as_ref(), Rejection { reason: RejectionReason::Denied, message });
            }
            return;
        }
        self.queue.again(token, now + delay);
        self.unreported = true;
        self.tell(reason, &format!("an entry waits, and is tried again: {message}"));
    }

    /// Says something once, however many entries it concerns.
    fn tell(&mut self, reason: &str, message: &str) {
        let now = Instant::now();
        if self.told.get(reason).is_some_and(|at| now.saturating_duration_since(*at) < TOLD_FOR) {
            return;
        }
        self.told.insert(reason.to_owned(), now);
        tracing::warn!(reason, "{message}");
    }

    fn sweep(&mut self) {
        self.sweep_at = Instant::now() + SWEEP;
        let now_ms = self.push.now_ms();
        match self.push.spool.sweep(now_ms) {
            Ok(0) => {}
            Ok(removed) => tracing::warn!("{removed} failed entries were kept for 7 days, and are removed"),
            Err(error) => tracing::warn!("failed entries could not be looked at: {error}"),
        }
    }

    /// What is not yet claimed is claimed, and everything may go at once.
    fn prepare_to_leave(&mut self) {
        self.look_at = Instant::now();
        self.rested_at = self.look_at;
        self.shared.rate().lift();
        self.queue.hurry();
        if !self.queue.is_empty() {
            tracing::info!("{} entries of the spool are delivered before the end", self.queue.len());
        }
    }

    /// The end: nothing is under way, or there is no more time.
    fn left(mut self, leaving: bool) -> Result<Ended, PushError> {
        self.report(true);
        let (count, named) = self.named();
        if (count == 0 && self.trouble.is_none()) || !leaving {
            return Ok(Ended::Stopped);
        }
        for (token, order, held) in self.queue.iter() {
            tracing::error!(entry = %token, "not stored: {} {}, {}", order.operation, order.change.subject(), held.why());
        }
        if self.push.in_memory {
            return Err(PushError::Left { count, named });
        }
        tracing::warn!("{count} virtual keys are not stored yet; the spool is on a disk, and keeps them");
        Ok(Ended::Stopped)
    }

    /// How many entries are left, and the first of them in words.
    fn named(&self) -> (usize, String) {
        let count = self.queue.len() + self.waiting + self.stuck.len() + self.unreadable;
        let mut named: Vec<String> = self
            .queue
            .iter()
            .take(NAMED)
            .map(|(_, order, held)| format!("{} {} ({})", order.operation, order.change.subject(), held.why()))
            .collect();
        if self.unreadable > 0 {
            named.push(format!("{} files that keytide may not read", self.unreadable));
        }
        let rest = count - self.unreadable - self.queue.len().min(NAMED);
        if rest > 0 {
            named.push(format!("and {rest} more"));
        }
        named.extend(self.trouble.iter().map(|trouble| format!("the spool cannot be used: {trouble}")));
        (count, named.join("; "))
    }

    /// Brings metrics and status up to date; not too often, unless it is the end.
    fn report(&mut self, at_once: bool) {
        let now = Instant::now();
        self.unreported = true;
        if !at_once && self.reported.is_some_and(|at| now.saturating_duration_since(at) < REPORT) {
            return;
        }
        self.reported = Some(now);
        self.unreported = false;
        let failed = self.push.spool.failed().count().unwrap_or_default();
        let oldest = self.queue.iter().next().map(|(token, _, _)| token.claimed_ms() / 1000);
        let oldest = oldest.and_then(|seconds| i64::try_from(seconds).ok());
        let elapsed = self.shared.elapsed();
        let rate = {
            let mut rate = self.shared.rate();
            rate.wait(elapsed);
            rate.current()
        };
        let claimed = self.queue.len() + self.stuck.len();
        let busiest = self.versions.most(elapsed);
        self.push.metrics.spool(&SpoolCounts {
            waiting: self.waiting,
            claimed,
            failed,
            unreadable: self.unreadable,
            ignored: self.ignored,
            oldest,
            rate: rate.unwrap_or(f64::INFINITY),
            busiest,
        });
        let problems: Vec<SpoolProblem> = self
            .queue
            .iter()
            .filter_map(|(token, order, held)| {
                let (reason, message) = held.problem.as_deref()?;
                Some(SpoolProblem {
                    entry: token.to_string(),
                    operation: order.operation.label().to_owned(),
                    subject: order.change.subject(),
                    attempts: held.attempts,
                    reason: (*reason).to_owned(),
                    message: message.clone(),
                })
            })
            .take(NAMED)
            .collect();
        let (waiting, unreadable, ignored) = (self.waiting, self.unreadable, self.ignored);
        let trouble = self.trouble.clone();
        self.push.health.update(|status| {
            let Some(spool) = &mut status.spool else { return };
            spool.waiting = waiting;
            spool.claimed = claimed;
            spool.failed = failed;
            spool.unreadable = unreadable;
            spool.ignored = ignored;
            spool.oldest = oldest.and_then(timestamp);
            spool.writes_per_second = rate;
            spool.trouble = trouble;
            spool.problems = problems;
        });
    }
}

// === impl Held ===

impl Held {
    /// Why it waits.
    fn why(&self) -> &str {
        self.problem.as_ref().map_or("not tried yet", |problem| problem.1.as_str())
    }
}

// === impl Attempt ===

impl Attempt {
    /// Goes on to the end, or to the mark.
    async fn run(mut self, store: Arc<Store>, shared: Shared) -> Self {
        loop {
            let call = match self.machine.step() {
                Step::Call(call) => call,
                Step::Mark { .. } => return self,
                Step::Ended(outcome) => {
                    self.outcome = Some(outcome);
                    return self;
                }
            };
            if call.is_write() && !std::mem::take(&mut self.prepaid) {
                shared.write().await;
            }
            let answer = store.carry_out(&call, &mut self.parcel).await;
            match &answer {
                Ok(_) => self.wrote |= call.makes_version(),
                Err(refusal) if refusal.problem.reason == Reason::Throttled && call.is_write() => {
                    shared.metrics.spool_throttled();
                    shared.rate().throttled(shared.elapsed());
                }
                Err(_) => {}
            }
            if let Some(outcome) = self.machine.observe(answer) {
                self.outcome = Some(outcome);
                return self;
            }
        }
    }
}

// === impl Shared ===

impl Shared {
    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn rate(&self) -> std::sync::MutexGuard<'_, Rate> {
        // Nothing panics while it is held; if it did, what it guards would still be whole.
        self.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there may be another write.
    async fn write(&self) {
        loop {
            let wait = {
                let now = self.elapsed();
                let mut rate = self.rate();
                let wait = rate.wait(now);
                if wait.is_zero() {
                    rate.take(now);
                }
                wait
            };
            if wait.is_zero() {
                return;
            }
            sleep(wait).await;
        }
    }
}
