//! The worker of one Kubernetes Secret: hold the Lease, watch the object, decide, write, tell. Only puts the steps in order.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        kubernetes::{Field, Live, Settings},
        names::OutputName,
        reload::Contents,
    },
    health::{Health, OutputStatus, timestamp},
    kubernetes::{
        events::{EventReason, Journal},
        lease::LeaseObject,
        outcome::{Trouble, TroubleKind},
        secret::{SecretObject, Sight},
    },
    metrics::Metrics,
    plan::{
        lease::{DURATION, Lease, Step as LeaseStep},
        publish::{Cause, Holds, Publisher, Refusal, Step, Write},
        remarks::Remarks,
        schedule,
    },
    pull::{Publication, Report, Wanted},
    render::manifest,
};

/// Time limit of a write: with the release of the Lease it fits into the supervisor's grace.
const WRITE: Duration = Duration::from_secs(5);
/// A write that the Lease leaves less time for waits for its renewal.
const LEAST: Duration = Duration::from_millis(500);
/// The longest pause before a write that failed is repeated.
const LONGEST: Duration = Duration::from_secs(15);
/// The same where somebody has to do something first.
const LONGEST_LASTING: Duration = Duration::from_mins(1);
/// A watch that ends sooner is opened again after a pause; a failed write is repeated no sooner because of what it told.
const SHORTEST: Duration = Duration::from_secs(1);
/// Somebody else was faster so often in a row that it is worth a word.
const OUTRUNS: u32 = 5;
/// So many looks in a row may be denied before a write is repeated without one.
const DENIALS: u8 = 4;
/// So many Events may wait to be told.
const EVENTS: usize = 32;

/// The worker, and everything that it owns.
#[derive(Debug)]
pub struct Publish {
    /// The name of the output.
    pub output: OutputName,
    /// The object.
    pub secret: SecretObject,
    /// What the configuration says of it.
    pub settings: Settings,
    /// The Lease, and what is known of it.
    pub lease: (LeaseObject, Lease),
    /// Its Events.
    pub journal: Journal,
    /// What it shall hold.
    pub publications: watch::Receiver<Option<Publication>>,
    /// Which of those it holds, by when it was sent.
    pub holds: watch::Sender<Option<Instant>>,
    /// How many outputs are read for.
    pub demand: Arc<watch::Sender<usize>>,
    /// Where changes are told of.
    pub contents: watch::Sender<Contents>,
    /// Where a read of AWS is asked for.
    pub wanted: mpsc::Sender<Wanted>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is reported.
    pub health: Arc<Health>,
    /// The wall clock, for timestamps.
    pub now: fn() -> SystemTime,
    /// The source of delays' randomness.
    pub random: fastrand::Rng,
}

/// Keeps the Lease, whatever the writer is at.
struct Keeper {
    face: Face,
    lease: Lease,
    object: LeaseObject,
    /// Until when it is ours.
    tenure: watch::Sender<Option<Instant>>,
    now: fn() -> SystemTime,
    start: Instant,
}

/// What the output shows of itself.
#[derive(Clone)]
struct Face {
    output: OutputName,
    path: String,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

/// The writer. What it wrote is known over more than one tenure.
struct Writer {
    face: Face,
    secret: SecretObject,
    publisher: Publisher,
    publications: watch::Receiver<Option<Publication>>,
    holds: watch::Sender<Option<Instant>>,
    demand: Arc<watch::Sender<usize>>,
    contents: watch::Sender<Contents>,
    wanted: mpsc::Sender<Wanted>,
    events: mpsc::Sender<(EventReason, String, String)>,
    now: fn() -> SystemTime,
    random: fastrand::Rng,
    start: Instant,
    last_write: Option<String>,
    unrepresentable: BTreeMap<String, String>,
    remarked: Remarks,
    synced: bool,
    stale: bool,
    /// True while AWS is read for this Secret.
    demands: bool,
    work: Work,
}

/// What is under way in one tenure.
#[derive(Default)]
struct Work {
    /// A write that failed is not repeated before.
    retry: Option<Instant>,
    /// The API server does not want to be asked before.
    not_before: Option<Instant>,
    attempt: u32,
    /// How often in a row somebody else was faster.
    outruns: u32,
    /// True if somebody has to do something before the next attempt can succeed.
    lasting: bool,
    /// Why the output is not as it shall be.
    failure: Option<String>,
    /// What was said of it: a watch, a look and a write that fail in turn are not news each time.
    said: Remarks,
    /// How many looks at the Secret were taken in.
    looks: u64,
    /// Why nobody sees what becomes of the Secret.
    blind: Option<String>,
    /// How the next attempt is made.
    next: Attempt,
    /// True if a read of AWS that is asked for can say something new.
    ask: bool,
    /// The answer to the read that was asked for.
    reading: Option<oneshot::Receiver<Report>>,
    /// When what was taken in last was sent.
    sent: Option<Instant>,
}

/// How a write is attempted.
#[derive(Default)]
enum Attempt {
    /// As it was decided.
    #[default]
    Plain,
    /// After a look, since nobody knows what became of the one before; so many looks were denied.
    Unsure(u8),
    /// Fields that were keytide's are taken back.
    TakesBack,
}

/// What the watch told last.
#[derive(Clone, Default)]
struct Observed {
    /// What there is.
    live: Option<Arc<Live>>,
    /// How often that was told.
    looks: u64,
    /// Why nobody is told of changes just now.
    blind: Option<Trouble>,
}

// === impl Publish ===

impl Publish {
    /// Works until `stop`; then finishes the write in hand, and gives the Lease back.
    pub async fn run(self, stop: CancellationToken) {
        let Self {
            output,
            secret,
            settings,
            lease: (object, lease),
            mut journal,
            publications,
            holds,
            demand,
            contents,
            wanted,
            metrics,
            health,
            now,
            random,
        } = self;
        metrics.kubernetes_output(&output);
        let start = Instant::now();
        let (tenure, mut held) = watch::channel(None);
        let (events, mut told) = mpsc::channel(EVENTS);
        let done = CancellationToken::new();
        let face = Face { output, path: secret.path(), metrics, health };
        let keeper = Keeper { face: face.clone(), lease, object, tenure, now, start };
        let mut writer = Writer {
            face,
            secret,
            publisher: Publisher::new(settings),
            publications,
            holds,
            demand,
            contents,
            wanted,
            events,
            now,
            random,
            start,
            last_write: None,
            unrepresentable: BTreeMap::new(),
            remarked: Remarks::default(),
            synced: false,
            stale: false,
            demands: false,
            work: Work::default(),
        };
        let writer = async {
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    got = held.wait_for(|until| until.is_some_and(|until| until > Instant::now())) => {
                        if got.is_err() {
                            break;
                        }
                    }
                }
                writer.serve(&mut held, &stop).await;
                if writer.publications.has_changed().is_err() {
                    // Nobody reads any more: the daemon ends.
                    stop.cancelled().await;
                }
            }
            done.cancel();
        };
        // Nobody waits for an Event, and one that cannot be told is no trouble of the Secret.
        let teller = async {
            let mut said = Remarks::default();
            while let Some((reason, message, uid)) = told.recv().await {
                if let Err(trouble) = journal.tell(reason, &message, &uid, now()).await
                    && said.is_new(&trouble.message)
                {
                    tracing::warn!("an Event was not told: {trouble}");
                }
            }
        };
        tokio::select! {
            _ = async { tokio::join!(keeper.run(&done), writer) } => {}
            () = teller => {}
        }
    }
}

// === impl Face ===

impl Face {
    fn report(&self, state: &str, message: Option<String>, rest: OutputStatus) {
        self.health.output(OutputStatus {
            name: self.output.to_string(),
            kind: "kubernetes_secret".to_owned(),
            path: self.path.clone(),
            state: state.to_owned(),
            message,
            ..rest
        });
        self.health.report(&self.metrics);
    }

    /// What a worker of this output is called where it says when it will be heard of.
    fn worker(&self, what: &str) -> String {
        format!("{what} of {}", self.output)
    }
}

// === impl Keeper ===

impl Keeper {
    async fn run(mut self, done: &CancellationToken) {
        let worker = self.face.worker("lease");
        let mut held = false;
        let mut failure: Option<String> = None;
        let mut said = Remarks::default();
        let mut follows: Option<String> = None;
        while !done.is_cancelled() {
            let now = self.start.elapsed();
            let until = self.lease.held_until(now);
            if until.is_some() != held {
                held = until.is_some();
                self.turn(held);
            }
            self.tenure.send_if_modified(|tenure| {
                let until = until.map(|until| self.start + until);
                std::mem::replace(tenure, until) != until
            });
            if held {
                follows = None;
            } else {
                self.stand_by(failure.as_deref(), &mut follows);
            }
            let step = self.lease.step(now);
            let asked = self.start.elapsed();
            let identity = self.lease.identity().to_owned();
            let wall = (self.now)();
            self.face.health.due(&worker, Instant::now() + DURATION);
            let result = match &step {
                LeaseStep::Wait(at) => {
                    // It may end before the next step is due.
                    let at = self.start + until.map_or(*at, |until| until.min(*at));
                    self.face.health.due(&worker, at + DURATION);
                    tokio::select! {
                        biased;
                        () = done.cancelled() => break,
                        () = sleep_until(at) => continue,
                    }
                }
                LeaseStep::Look => self.object.look().await,
                LeaseStep::Create => self.object.create(&identity, wall).await.map(Some),
                LeaseStep::Renew(record) => self.object.renew(record, wall).await.map(Some),
                LeaseStep::Take(record) => self.object.take(record, &identity, wall).await.map(Some),
            };
            let now = self.start.elapsed();
            match result {
                Ok(record) if step == LeaseStep::Look => self.lease.saw(record, asked, now),
                Ok(Some(record)) => self.lease.confirmed(record, asked, now),
                Ok(None) => self.lease.outrun(now),
                Err(trouble) if trouble.kind == TroubleKind::Outrun => self.lease.outrun(now),
                // Somebody removed it; but where nothing can be made, there is more amiss.
                Err(trouble) if trouble.kind == TroubleKind::Absent && step != LeaseStep::Create => {
                    self.lease.outrun(now);
                }
                Err(trouble) => {
                    self.lease.failed(now, trouble.retry_after);
                    if said.is_new(&trouble.message) {
                        tracing::warn!(output.name = %self.face.output, "the Lease of output {}: {trouble}", self.face.output);
                    }
                    failure = Some(trouble.message);
                    continue;
                }
            }
            if self.lease.held_until(now).is_some() || step == LeaseStep::Look {
                failure = None;
                said.forget();
            }
        }
        if self.lease.held_until(self.start.elapsed()).is_some()
            && let Some(record) = self.lease.record()
            && let Err(trouble) = self.object.release(record).await
        {
            tracing::warn!("the Lease of output {} is not given back, and ends by itself: {trouble}", self.face.output);
        }
    }

    fn turn(&self, held: bool) {
        let (name, output) = (self.object.name(), &self.face.output);
        self.face.metrics.lease(output, held);
        if held {
            tracing::info!(output.name = %output, "this keytide holds the Lease {name}: it reads and writes for output {output}");
        } else {
            tracing::warn!(output.name = %output, "this keytide no longer holds the Lease {name} of output {output}");
        }
    }

    /// Somebody else writes, or nobody knows who does.
    fn stand_by(&self, trouble: Option<&str>, follows: &mut Option<String>) {
        let holder = self.lease.holder().filter(|holder| *holder != self.lease.identity());
        let (name, output) = (self.object.name(), &self.face.output);
        if let Some(holder) = holder
            && follows.as_deref() != Some(holder)
        {
            tracing::info!(output.name = %output, "the Lease {name} is held by {holder}: this keytide stands by for output {output}");
            *follows = Some(holder.to_owned());
        }
        let (state, message) = match (holder, trouble) {
            (_, Some(trouble)) => ("failing", trouble.to_owned()),
            (Some(holder), None) => {
                self.face.health.written(output.as_str());
                self.face.metrics.output_up(output, true);
                ("standby", format!("the Lease {name} is held by {holder}"))
            }
            (None, None) => ("waiting", format!("the Lease {name} is not held yet")),
        };
        self.face.report(state, Some(message), OutputStatus::default());
    }
}

// === impl Writer ===

impl Writer {
    /// Writes, for as long as the Lease is held.
    async fn serve(&mut self, held: &mut watch::Receiver<Option<Instant>>, stop: &CancellationToken) {
        self.publisher.begin();
        self.work = Work { ask: true, ..Work::default() };
        self.publications.mark_changed();
        self.face.report("waiting", Some("looks what the Secret holds".to_owned()), self.facts(0));
        let (sender, observed) = watch::channel(Observed::default());
        let watching = observe(self.secret.clone(), sender, self.random.fork());
        tokio::select! {
            biased;
            () = self.tend(observed, held, stop) => {}
            () = watching => {}
        }
        // Whoever writes now tells of changes.
        self.contents.send_if_modified(|contents| contents.set_mark(&self.face.output, None));
        self.face.health.idle(&self.face.worker("publish"));
        if std::mem::take(&mut self.demands) {
            self.demand.send_modify(|demand| *demand = demand.saturating_sub(1));
        }
    }

    async fn tend(
        &mut self,
        mut observed: watch::Receiver<Observed>,
        held: &mut watch::Receiver<Option<Instant>>,
        stop: &CancellationToken,
    ) {
        let worker = self.face.worker("publish");
        loop {
            let Some(until) = held.borrow_and_update().filter(|until| *until > Instant::now()) else { return };
            self.face.health.due(&worker, Instant::now() + WRITE + DURATION);
            let due = self.turn(until).await;
            let next = due.map_or(until, |due| due.min(until));
            self.face.health.due(&worker, next + DURATION);
            let reading = async {
                match &mut self.work.reading {
                    Some(reading) => drop(reading.await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = held.changed() => {}
                changed = observed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let state = observed.borrow_and_update().clone();
                    self.watches(state);
                }
                changed = self.publications.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_in();
                }
                () = reading => self.work.reading = None,
                () = sleep_until(next) => {}
            }
        }
    }

    /// Takes in what the watch told.
    fn watches(&mut self, observed: Observed) {
        let Observed { live, looks, blind } = observed;
        if std::mem::replace(&mut self.work.looks, looks) != looks {
            self.sees(live);
        }
        match blind {
            Some(trouble) => self.is_blind(trouble),
            None => self.work.blind = None,
        }
    }

    /// Takes in what there is.
    fn sees(&mut self, live: Option<Arc<Live>>) {
        self.publisher.observed(live, self.start.elapsed());
        let work = &mut self.work;
        work.ask = true;
        // It answers again: soon, but not at the pace of whoever changes it.
        if !work.lasting {
            work.retry = work.retry.map(|retry| retry.min(Instant::now() + SHORTEST));
        }
        if !std::mem::replace(&mut self.demands, true) {
            // Only now: what AWS says after this is newer than what the Secret holds.
            self.demand.send_modify(|demand| *demand += 1);
        }
    }

    /// Nobody sees what becomes of the Secret.
    fn is_blind(&mut self, trouble: Trouble) {
        self.work.not_before = trouble.retry_after.map(|pause| Instant::now() + pause).or(self.work.not_before);
        if trouble.kind.is_lasting() {
            self.tell(EventReason::Refused, &trouble.message);
        }
        self.is_failing(&trouble.message);
        self.work.blind = Some(trouble.message);
    }

    /// Takes in what AWS said.
    fn take_in(&mut self) {
        let news = self.publications.borrow_and_update().as_ref().map(|publication| {
            let Publication { wish, began, sent, stale } = publication;
            (wish.share(), began.saturating_duration_since(self.start), *sent, stale.clone())
        });
        let Some((wish, began, sent, stale)) = news else { return };
        self.unrepresentable = wish.unrepresentable.iter().map(|(key, rule)| (key.to_string(), rule.clone())).collect();
        for (key, rule) in &self.unrepresentable {
            let remark = format!("output {} cannot carry key {key}: {rule}", self.face.output);
            if self.remarked.is_new(&remark) {
                tracing::warn!("{remark}");
            }
        }
        self.work.ask |= self.publisher.wished(wish, began);
        self.work.sent = Some(sent);
        match (&stale, self.stale) {
            (Some(keys), _) => {
                self.tell(EventReason::Stale, &format!("values are not fresh, and stay as they are: {keys}"));
            }
            (None, true) => self.tell(EventReason::Recovered, "all values are fresh again"),
            (None, false) => {}
        }
        self.stale = stale.is_some();
    }

    /// Decides and does it. Says when to look again at the latest.
    async fn turn(&mut self, until: Instant) -> Option<Instant> {
        if let Some(retry) = self.work.retry.max(self.work.not_before).filter(|retry| *retry > Instant::now()) {
            return Some(retry);
        }
        (self.work.retry, self.work.not_before) = (None, None);
        match self.publisher.step(self.start.elapsed()) {
            Step::Idle => self.waits("AWS is not read yet"),
            Step::Holds(holds) => self.holds(&holds),
            Step::ReadAgain => self.read_again(),
            Step::Contested(at) => {
                self.face.metrics.output_contested(&self.face.output, true);
                let message = "somebody changes it again and again: it is put right at a growing distance";
                self.tell(EventReason::Contested, message);
                self.is_failing(message);
                return Some(self.start + at);
            }
            Step::Refuse(refusal) => self.refused(&refusal),
            Step::Write(write) => return self.write(*write, until).await,
        }
        None
    }

    /// Nothing can be said yet; what was wrong before still is.
    fn waits(&self, why: &str) {
        if self.work.failure.is_none() {
            self.face.report("waiting", Some(why.to_owned()), self.facts(0));
        }
    }

    /// Asks for a read of AWS, one at a time, and only where it can say something new.
    fn read_again(&mut self) {
        self.waits("another keytide wrote it from other versions: AWS is read again");
        if !self.work.ask || self.work.reading.is_some() {
            return;
        }
        let (reply, reading) = oneshot::channel();
        if self.wanted.try_send(Wanted { accept_removals: false, reply }).is_ok() {
            let output = &self.face.output;
            tracing::info!(
                output.name = %output,
                "output {output} was written by another keytide from other versions: AWS is read again before it is changed"
            );
            self.work.ask = false;
            self.work.reading = Some(reading);
        }
    }

    async fn write(&mut self, write: Write, until: Instant) -> Option<Instant> {
        let Write { manifest, resource_version, cause, force } = write;
        if let Err(rule) = manifest::check(&manifest) {
            self.fails(&format!("{} is not written: {rule}", self.face.path), true);
            return self.work.retry;
        }
        let attempt = std::mem::take(&mut self.work.next);
        if let Attempt::Unsure(denied) = attempt {
            return Some(self.look_first(denied).await);
        }
        let limit = until.saturating_duration_since(Instant::now()).min(WRITE);
        if limit < LEAST {
            return Some(until);
        }
        let force = force || matches!(attempt, Attempt::TakesBack);
        match self.secret.apply(&manifest, resource_version.as_deref(), force, limit).await {
            Ok(live) => {
                let keys = manifest.data.len();
                self.work.outruns = 0;
                self.publisher.written(manifest, live, cause, self.start.elapsed());
                self.wrote(cause, keys);
                // What was written is looked at as anything else is.
                Some(Instant::now())
            }
            Err(trouble) => {
                self.fell(trouble, force).await;
                self.work.retry.max(self.work.not_before)
            }
        }
    }

    /// Looks what became of a write that nobody heard of. Says when to go on.
    async fn look_first(&mut self, denied: u8) -> Instant {
        match self.secret.look().await {
            Ok(live) => self.publisher.observed(live.map(Arc::new), self.start.elapsed()),
            Err(trouble) => {
                // Who may not look writes all the same; but an API server that starts denies what it will allow.
                let denied = if trouble.kind == TroubleKind::Denied { denied.saturating_add(1) } else { denied };
                if denied < DENIALS {
                    self.work.next = Attempt::Unsure(denied);
                }
                self.fails(&trouble.message, trouble.kind.is_lasting());
            }
        }
        self.work.retry.unwrap_or_else(Instant::now)
    }

    /// A write failed.
    async fn fell(&mut self, trouble: Trouble, force: bool) {
        let trouble = match trouble.kind {
            TroubleKind::Owned(ref owners) if !force => {
                let fields: Vec<Field> = owners.iter().map(|(_, field)| field.clone()).collect();
                if self.publisher.had(&fields) {
                    // Somebody took what was ours: that is a repair, and bounded as one.
                    self.work.next = Attempt::TakesBack;
                    self.work.retry = Some(Instant::now());
                    return;
                }
                trouble
            }
            // The watch may not tell, or not yet.
            TroubleKind::Outrun => match self.secret.look().await {
                Ok(live) => {
                    self.publisher.observed(live.map(Arc::new), self.start.elapsed());
                    self.work.ask = true;
                    if self.work.outruns < OUTRUNS {
                        self.work.outruns += 1;
                        self.work.retry = Some(Instant::now() + schedule::hurried(&mut self.random));
                        return;
                    }
                    trouble
                }
                Err(trouble) => trouble,
            },
            _ => trouble,
        };
        if trouble.kind == TroubleKind::Unavailable {
            self.work.next = Attempt::Unsure(0);
        }
        self.fails(&trouble.message, trouble.kind.is_lasting());
        self.work.not_before = trouble.retry_after.map(|pause| Instant::now() + pause);
    }

    /// A write failed: it is repeated later.
    fn fails(&mut self, message: &str, lasting: bool) {
        self.work.attempt = self.work.attempt.saturating_add(1);
        self.work.lasting = lasting;
        let longest = if lasting { LONGEST_LASTING } else { LONGEST };
        let pause = schedule::backoff(self.work.attempt, &mut self.random).min(longest);
        self.work.retry = Some(Instant::now() + pause);
        if lasting {
            self.tell(EventReason::Refused, message);
        }
        self.is_failing(message);
    }

    /// It is decided again whenever something changes, which costs nobody anything.
    fn refused(&mut self, refusal: &Refusal) {
        let message = format!("{} is not written: {refusal}", self.face.path);
        self.tell(EventReason::Refused, &message);
        self.is_failing(&message);
    }

    /// Says why, once.
    fn is_failing(&mut self, message: &str) {
        let output = &self.face.output;
        self.face.metrics.output_up(output, false);
        if self.work.said.is_new(message) {
            tracing::error!(output.name = %output, "output {output} cannot be written: {message}");
        }
        self.work.failure = Some(message.to_owned());
        self.face.report("failing", Some(message.to_owned()), self.facts(0));
    }

    fn holds(&mut self, holds: &Holds) {
        (self.work.attempt, self.work.outruns, self.work.lasting) = (0, 0, false);
        let Face { output, metrics, health, .. } = &self.face;
        self.contents.send_if_modified(|contents| contents.set_mark(output, Some(&holds.content)));
        self.holds.send_if_modified(|held| std::mem::replace(held, self.work.sent) != self.work.sent);
        metrics.output_contested(output, false);
        metrics.output_keys(output, holds.keys, self.unrepresentable.len());
        if let Some(why) = self.work.blind.clone() {
            self.face.report("failing", Some(why), self.facts(holds.keys));
            return;
        }
        health.written(output.as_str());
        metrics.output_up(output, true);
        if !std::mem::replace(&mut self.synced, true) {
            let keys = holds.keys;
            self.tell(EventReason::Synced, &format!("{keys} keys are as AWS Secrets Manager has them"));
        }
        if self.work.failure.take().is_some() {
            self.work.said.forget();
            tracing::info!(output.name = %output, "output {output} is as it shall be again");
            self.tell(EventReason::Recovered, "it is as it shall be again");
        }
        self.face.report("written", None, self.facts(holds.keys));
    }

    fn wrote(&mut self, cause: Cause, keys: usize) {
        let Face { output, metrics, .. } = &self.face;
        let since = (self.now)().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let at = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        metrics.output_written(output, cause == Cause::Repair, at);
        match cause {
            Cause::Made | Cause::Change => {
                tracing::info!(output.name = %output, keys, "output {output} written: {keys} keys");
                if self.synced {
                    self.tell(EventReason::Updated, &format!("{keys} keys written"));
                }
                self.last_write = timestamp(at);
            }
            Cause::Repair => {
                let message = "it was changed or removed by somebody else: written again";
                tracing::warn!(output.name = %output, "output {output}: {message}");
                self.tell(EventReason::Repaired, message);
            }
        }
    }

    fn tell(&self, reason: EventReason, message: &str) {
        // Where many wait, the API server is away, and one more says nothing new.
        let uid = self.publisher.uid().to_owned();
        drop(self.events.try_send((reason, message.to_owned(), uid)));
    }

    fn facts(&self, keys: usize) -> OutputStatus {
        OutputStatus {
            keys,
            unrepresentable: self.unrepresentable.clone(),
            last_write: self.last_write.clone(),
            ..OutputStatus::default()
        }
    }
}

/// Watches the Secret, again and again.
async fn observe(secret: SecretObject, sender: watch::Sender<Observed>, mut random: fastrand::Rng) {
    let mut attempt = 0_u32;
    loop {
        let began = Instant::now();
        let tell = |sight| {
            sender.send_modify(|observed| match sight {
                Sight::Live(live) => {
                    observed.live = live;
                    observed.looks = observed.looks.wrapping_add(1);
                }
                Sight::Watching => observed.blind = None,
            });
        };
        let ended = secret.watch(tell).await;
        let lasted = began.elapsed() >= SHORTEST;
        match ended {
            Ok(()) if lasted => attempt = 0,
            Ok(()) => sleep(SHORTEST).await,
            Err(trouble) => {
                attempt = if lasted { 1 } else { attempt.saturating_add(1) };
                let pause = schedule::backoff(attempt, &mut random).min(LONGEST);
                let pause = trouble.retry_after.unwrap_or_default().max(pause);
                sender.send_modify(|observed| observed.blind = Some(trouble));
                sleep(pause).await;
            }
        }
    }
}
