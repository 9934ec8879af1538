//! The way up: look, claim, fold, plan, act, settle, report. Only puts the steps in order.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
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
        virtual_key::{Change, Order, Rejection, RejectionReason, Rules, Token, Writer},
    },
    health::{Health, SpoolProblem, timestamp},
    metrics::{Metrics, SpoolCounts},
    plan::{
        fold::{Queue, Taken},
        naming,
        push::{Conditions, Later, Machine, Outcome, Pause, Step},
        rate::{NewSecrets, Rate, Versions},
        schedule,
    },
    spool::{Claimed, Spool, SpoolError, shown},
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
const AT_ONCE: usize = 32;

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
    #[error("{count} entries failed; `keytide spool list` says why")]
    Failed {
        /// How many.
        count: usize,
    },
    /// The spool cannot be used at all.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// What is known of a claim beside its order.
#[derive(Debug)]
struct Held {
    claim: Claimed,
    attempts: u32,
    absent_seen: bool,
    denied_since: Option<Duration>,
    problem: Option<Box<(&'static str, String)>>,
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
    /// Claims that could not be read yet.
    unread: Vec<Claimed>,
    look_at: Instant,
    sweep_at: Instant,
    waiting: usize,
    unreadable: usize,
    settled: bool,
    failed_now: usize,
    versions: Versions,
    told: BTreeMap<String, Instant>,
    reported: Option<Instant>,
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
            unread: Vec::new(),
            look_at: now,
            sweep_at: now,
            waiting: 0,
            unreadable: 0,
            settled: false,
            failed_now: 0,
            versions: Versions::default(),
            told: BTreeMap::new(),
            reported: None,
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
            if deadline.is_none() && Instant::now() >= self.look_at {
                let again = if hinted.load(Ordering::Relaxed) { LOOK_AGAIN } else { LOOK_WITHOUT_HINTS };
                self.look(again).await;
            }
            if Instant::now() >= self.sweep_at {
                self.sweep();
            }
            if deadline.is_none() || leaving.is_cancelled() {
                self.dispatch();
            }
            self.report(self.under_way.is_empty());
            let idle = self.queue.is_empty() && self.waiting == 0 && self.unread.is_empty();
            if deadline.is_some() && self.under_way.is_empty() && (idle || !leaving.is_cancelled()) {
                return self.left(leaving.is_cancelled());
            }
            if limit.is_some() && idle && self.settled {
                let count = self.failed_now;
                return if count == 0 { Ok(Ended::Once) } else { Err(PushError::Failed { count }) };
            }
            let wake = self.wake_at(deadline.is_some());
            let next = deadline.map_or(wake, |end: Instant| wake.min(end));
            let next = limit.map_or(next, |(_, end)| next.min(end));
            self.push.health.due("push", next);
            tokio::select! {
                biased;
                () = stop.cancelled(), if deadline.is_none() => {
                    let end = Instant::now() + DRAIN;
                    deadline = Some(end);
                    if leaving.is_cancelled() {
                        self.prepare_to_leave().await;
                    }
                }
                Some(attempt) = self.under_way.next(), if !self.under_way.is_empty() => self.take_out(attempt, deadline.is_some()),
                () = hints.notified(), if deadline.is_none() => self.look_at = Instant::now(),
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
    fn wake_at(&self, draining: bool) -> Instant {
        let mut wake = self.sweep_at;
        if !draining {
            wake = wake.min(self.look_at);
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

    /// Looks at the spool, and takes in what is new.
    async fn look(&mut self, again: Duration) {
        self.look_at = Instant::now() + again;
        let unread = std::mem::take(&mut self.unread);
        self.take_in(unread).await;
        let room = self.push.max_entries.saturating_sub(self.queue.len());
        let now_ms = self.push.now_ms();
        match self.push.spool.scan(room, now_ms).await {
            Ok(scan) => {
                if let Some(trouble) = self.trouble.take() {
                    tracing::info!("the spool can be used again; it could not: {trouble}");
                }
                for remark in &scan.remarks {
                    tracing::warn!("{remark}");
                }
                (self.waiting, self.unreadable) = (scan.waiting, scan.unreadable);
                self.settled = scan.claimed.is_empty() && scan.again.is_none();
                if let Some(soon) = scan.again {
                    self.look_at = self.look_at.min(Instant::now() + soon);
                }
                if !scan.claimed.is_empty() {
                    // Perhaps more came while these were taken.
                    let soon = if self.push.once.is_some() { Duration::ZERO } else { LOOK_WITHOUT_HINTS };
                    self.look_at = self.look_at.min(Instant::now() + soon);
                }
                self.take_in(scan.claimed).await;
            }
            Err(error) => {
                self.push.metrics.spool_error();
                self.look_at = Instant::now() + LOOK_WITHOUT_HINTS;
                let message = error.to_string();
                if self.trouble.as_ref() != Some(&message) {
                    tracing::error!("the spool cannot be used: {message}");
                }
                self.trouble = Some(message);
            }
        }
    }

    /// Reads claims, and puts them into their queues.
    async fn take_in(&mut self, claims: Vec<Claimed>) {
        for (i, claim) in claims.into_iter().enumerate() {
            if i % AT_ONCE == AT_ONCE - 1 {
                yield_now().await;
            }
            if self.queue.contains(claim.token) {
                continue;
            }
            match self.push.spool.read(&claim) {
                Ok(draft) => match draft.and_then(|draft| naming::order(&draft, &self.push.rules)) {
                    Ok(order) => {
                        let held = Held { attempts: 0, absent_seen: false, denied_since: None, problem: None, claim };
                        self.queue.push(held.claim.token, order, held);
                    }
                    Err(rejection) => self.fail(&claim, None, &rejection),
                },
                Err(error) => {
                    self.push.metrics.spool_error();
                    self.tell("spool", &format!("entry {} could not be read yet: {error}", shown(&claim.name)));
                    self.unread.push(claim);
                }
            }
        }
    }

    /// Starts what may go now.
    fn dispatch(&mut self) {
        while self.under_way.len() < IN_FLIGHT {
            let now = self.shared.elapsed();
            if !self.shared.rate().wait(now).is_zero() {
                return;
            }
            let Some(Taken { token, folded }) = self.queue.take(now) else { return };
            for (older, _, held) in folded {
                self.push.metrics.spool_folded();
                tracing::debug!(entry = %older, "folded into a later entry of the same secret");
                if let Err(error) = self.push.spool.settle(&held.claim) {
                    self.tell("spool", &format!("a folded entry could not be removed: {error}"));
                }
            }
            self.start(token, now);
        }
    }

    fn start(&mut self, token: Token, now: Duration) {
        let Some((order, held)) = self.queue.get(token) else { return };
        let draft = self.push.spool.read(&held.claim);
        let draft = match draft {
            Ok(Ok(draft)) => match naming::order(&draft, &self.push.rules) {
                Ok(again) if again == *order => Ok(draft),
                Ok(_) => Err(Rejection {
                    reason: RejectionReason::Malformed,
                    message: "the file was changed after it was dropped: write it whole, then rename it".to_owned(),
                }),
                Err(rejection) => Err(rejection),
            },
            Ok(Err(rejection)) => Err(rejection),
            Err(error) => {
                let message = format!("the entry could not be read: {error}");
                let later = Later { reason: "spool", message, pause: Pause::Backoff };
                self.again(token, later, false);
                return;
            }
        };
        let draft = match draft {
            Ok(draft) => draft,
            Err(rejection) => {
                let order = order.clone();
                if let Some(held) = self.queue.done(token) {
                    self.fail(&held.claim, Some(&order), &rejection);
                }
                return;
            }
        };
        let stores = matches!(order.change, Change::Store(_));
        let promised = stores && self.push.new_secrets.promise(now);
        let claim = &held.claim;
        let age = self.push.now_ms().saturating_sub(token.claimed_ms());
        let conditions = Conditions {
            careful: claim.resumed || held.attempts > 0 || age > FRESH_MS,
            believes_absence: held.absent_seen,
            may_create: promised || !stores,
            restored: claim.restored,
        };
        let machine = Machine::new(order, token, &self.push.rules.settings, conditions);
        let writer = order.writer;
        self.shared.rate().take(now);
        self.go_on(Attempt {
            token,
            writer,
            machine,
            parcel: Parcel { token, value: draft.value.map(Content::Text) },
            prepaid: true,
            promised,
            wrote: false,
            outcome: None,
        });
    }

    fn go_on(&mut self, attempt: Attempt) {
        let store = self.push.store(attempt.writer);
        self.under_way.push(Box::pin(attempt.run(store, self.shared.clone())));
    }

    /// Takes out an attempt that is at its end, or at its mark.
    fn take_out(&mut self, mut attempt: Attempt, draining: bool) {
        let token = attempt.token;
        let Some(outcome) = attempt.outcome.take() else {
            match self.push.spool.mark(token) {
                Ok(()) => {
                    if let Some(held) = self.queue.payload_mut(token) {
                        held.claim.restored = true;
                    }
                    attempt.machine.marked();
                    self.go_on(attempt);
                }
                Err(error) => {
                    self.end_attempt(&attempt, false);
                    let message = format!("the restoring of a secret could not be noted: {error}");
                    self.again(token, Later { reason: "spool", message, pause: Pause::Backoff }, draining);
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
                    self.fail(&held.claim, order.as_ref(), &rejection);
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
            self.again(token, Later { reason: "spool", message, pause: Pause::Backoff }, draining);
            return;
        }
        let operation = order.operation;
        let waited_ms = i64::try_from(self.push.now_ms()).unwrap_or(i64::MAX).saturating_sub(held.claim.dropped_ms);
        let waited = Duration::from_millis(u64::try_from(waited_ms).unwrap_or(0));
        self.push.metrics.spool_confirmed(operation, waited.as_secs_f64());
        tracing::debug!(entry = %token, operation = operation.label(), "{} is stored as asked", order.change.subject());
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

    fn fail(&mut self, claim: &Claimed, order: Option<&Order>, rejection: &Rejection) {
        let subject = order.map(|order| format!("{} {}", order.operation, order.change.subject()));
        self.failed_now += 1;
        self.push.metrics.spool_failed(order.map(|order| order.operation), rejection.reason);
        tracing::error!(
            entry = %claim.token,
            reason = rejection.reason.label(),
            "entry {} failed{}: {}; it is kept for 7 days (`keytide spool list`)",
            shown(&claim.name),
            subject.as_deref().map(|subject| format!(" ({subject})")).unwrap_or_default(),
            rejection.message
        );
        let now_ms = self.push.now_ms();
        if let Err(error) = self.push.spool.fail(claim, rejection, subject.as_deref(), now_ms) {
            self.push.metrics.spool_error();
            self.tell("spool", &format!("a failed entry could not be moved, and is looked at again: {error}"));
            self.unread.push(claim.clone());
        }
    }

    /// Puts an entry back, to be tried again.
    fn again(&mut self, token: Token, later: Later, draining: bool) {
        let Later { reason, message, pause } = later;
        let now = self.shared.elapsed();
        let next_secret = self.push.new_secrets.next_at();
        let Some((order, _)) = self.queue.get(token) else { return };
        let operation = order.operation;
        let who = self.push.store(order.writer).auth().who();
        let denied = Reason::Denied.label();
        let Some(held) = self.queue.payload_mut(token) else { return };
        held.attempts = held.attempts.saturating_add(1);
        held.absent_seen |= reason == Reason::Absent.label();
        held.denied_since = (reason == denied).then(|| held.denied_since.unwrap_or(now));
        let too_long = held.denied_since.is_some_and(|since| now.saturating_sub(since) >= DENIED_FOR);
        let mut delay = match pause {
            Pause::Soon => schedule::soon(&mut self.push.random),
            Pause::Backoff => schedule::backoff(held.attempts, &mut self.push.random),
            Pause::Slow => schedule::slow(held.attempts, &mut self.push.random),
        };
        if reason == "new_secret_limit"
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
                self.fail(&held.claim, order.as_ref(), &Rejection { reason: RejectionReason::Denied, message });
            }
            return;
        }
        self.queue.again(token, now + delay);
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
        match self.push.spool.failed().sweep(self.push.now_ms()) {
            Ok(0) => {}
            Ok(removed) => tracing::warn!("{removed} failed entries were kept for 7 days, and are removed"),
            Err(error) => tracing::warn!("failed entries could not be looked at: {error}"),
        }
    }

    /// What is not yet claimed is claimed, and everything may go at once.
    async fn prepare_to_leave(&mut self) {
        self.look(LOOK_AGAIN).await;
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
        if count == 0 || !leaving {
            return Ok(Ended::Stopped);
        }
        let error = PushError::Left { count, named };
        if self.push.in_memory {
            return Err(error);
        }
        tracing::warn!("{count} virtual keys are not stored yet; the spool is on a disk, and keeps them");
        Ok(Ended::Stopped)
    }

    /// How many entries are left, and the first of them in words.
    fn named(&self) -> (usize, String) {
        let count = self.queue.len() + self.waiting + self.unread.len();
        let problem =
            |held: &Held| held.problem.as_ref().map_or("not tried yet".to_owned(), |problem| problem.1.clone());
        let mut named: Vec<String> = self
            .queue
            .iter()
            .take(NAMED)
            .map(|(_, order, held)| format!("{} {} ({})", order.operation, order.change.subject(), problem(held)))
            .collect();
        if count > named.len() {
            named.push(format!("and {} more", count - named.len()));
        }
        (count, named.join("; "))
    }

    /// Brings metrics and status up to date; not too often, unless it is quiet.
    fn report(&mut self, quiet: bool) {
        let now = Instant::now();
        if !quiet && self.reported.is_some_and(|at| now.saturating_duration_since(at) < REPORT) {
            return;
        }
        self.reported = Some(now);
        let failed = self.push.spool.failed().count().unwrap_or_default();
        let oldest = self.queue.iter().next().map(|(token, _, _)| token.claimed_ms() / 1000);
        let oldest = oldest.and_then(|seconds| i64::try_from(seconds).ok());
        let elapsed = self.shared.elapsed();
        let rate = {
            let mut rate = self.shared.rate();
            rate.wait(elapsed);
            rate.current()
        };
        let claimed = self.queue.len() + self.unread.len();
        let busiest = self.versions.most(elapsed);
        self.push.metrics.spool(&SpoolCounts {
            waiting: self.waiting,
            claimed,
            failed,
            unreadable: self.unreadable,
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
        let (waiting, unreadable, trouble) = (self.waiting, self.unreadable, self.trouble.clone());
        self.push.health.update(|status| {
            let Some(spool) = &mut status.spool else { return };
            spool.waiting = waiting;
            spool.claimed = claimed;
            spool.failed = failed;
            spool.unreadable = unreadable;
            spool.oldest = oldest.and_then(timestamp);
            spool.writes_per_second = rate;
            spool.trouble = trouble;
            spool.problems = problems;
        });
    }
}

// === impl Attempt ===

impl Attempt {
    /// Goes on to the end, or to the mark.
    async fn run(mut self, store: Arc<Store>, shared: Shared) -> Self {
        loop {
            let call = match self.machine.step() {
                Step::Call(call) => call,
                Step::Mark => return self,
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
                Err(refusal) if refusal.problem.reason == Reason::Throttled => {
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
