//! The worker of one Kubernetes Secret: hold the Lease, watch the object, decide, write, tell. Only puts the steps in order.

use std::{
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
        secret::SecretObject,
    },
    metrics::Metrics,
    plan::{
        lease::{DURATION, Lease, Step as LeaseStep},
        publish::{Cause, Holds, Publisher, Refusal, Step, Write},
        schedule,
    },
    pull::{Publication, Report, Wanted},
};

/// The longest pause before a write that failed is repeated.
const LONGEST: Duration = Duration::from_secs(30);
/// The same where somebody has to do something first.
const LONGEST_LASTING: Duration = Duration::from_mins(1);
/// A watch that ends sooner is opened again after a pause.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);
/// A write that the Lease leaves less time for waits for its renewal.
const LEAST: Duration = Duration::from_millis(500);
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

/// What the keeper of the Lease tells the writer: until when it is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tenure {
    until: Option<Instant>,
}

/// Keeps the Lease, whatever the writer is at.
struct Keeper {
    output: OutputName,
    path: String,
    lease: Lease,
    object: LeaseObject,
    tenure: watch::Sender<Tenure>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    now: fn() -> SystemTime,
    start: Instant,
}

/// The writer, while the Lease is held.
struct Writer<'a> {
    all: &'a mut Open,
    publisher: Publisher,
    retry: Option<Instant>,
    /// When the API server wants to be asked again, whatever happens before.
    not_before: Option<Instant>,
    attempt: u32,
    /// What was told last, so that it is told once.
    told: Option<String>,
    failing: bool,
    stale: bool,
    /// True: fields that were keytide's are taken back.
    take_back: bool,
    /// The answer to the read that was asked for.
    reading: Option<oneshot::Receiver<Report>>,
    synced: bool,
    /// True once AWS is read for this Secret.
    asks: bool,
}

/// What the watch told last: what there is, or why nobody knows.
type Observed = Option<Result<Option<Arc<Live>>, Trouble>>;

/// What outlives a tenure.
struct Open {
    output: OutputName,
    secret: SecretObject,
    settings: Settings,
    publications: watch::Receiver<Option<Publication>>,
    demand: Arc<watch::Sender<usize>>,
    contents: watch::Sender<Contents>,
    wanted: mpsc::Sender<Wanted>,
    events: mpsc::Sender<(EventReason, String, String)>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    now: fn() -> SystemTime,
    random: fastrand::Rng,
    start: Instant,
    last_write: Option<String>,
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
        let (tenure, mut held) = watch::channel(Tenure::default());
        let (events, mut told) = mpsc::channel(EVENTS);
        let done = CancellationToken::new();
        let keeper = Keeper {
            output: output.clone(),
            path: path_of(&secret),
            lease,
            object,
            tenure,
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
            now,
            start,
        };
        let mut open = Open {
            output,
            secret,
            settings,
            publications,
            demand,
            contents,
            wanted,
            events,
            metrics,
            health,
            now,
            random,
            start,
            last_write: None,
        };
        let writer = async {
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    got = held.wait_for(|tenure| tenure.until.is_some_and(|until| until > Instant::now())) => {
                        if got.is_err() {
                            break;
                        }
                    }
                }
                open.serve(&mut held, &stop).await;
            }
            done.cancel();
        };
        // Nobody waits for an Event, and one that cannot be told is no trouble of the Secret.
        let teller = async {
            while let Some((reason, message, uid)) = told.recv().await {
                if let Err(trouble) = journal.tell(reason, &message, &uid, now()).await {
                    tracing::debug!("an Event was not told: {trouble}");
                }
            }
        };
        tokio::select! {
            _ = async { tokio::join!(keeper.run(&done), writer) } => {}
            () = teller => {}
        }
    }
}

fn path_of(secret: &SecretObject) -> String {
    format!("secrets/{}", secret.name())
}

// === impl Keeper ===

impl Keeper {
    async fn run(mut self, done: &CancellationToken) {
        let mut held = false;
        let mut said: Option<String> = None;
        loop {
            let now = self.start.elapsed();
            let until = self.lease.held_until(now);
            if until.is_some() != held {
                held = until.is_some();
                self.metrics.lease(&self.output, held);
                let (name, output) = (self.object.name(), &self.output);
                if held {
                    tracing::info!(output.name = %output, "this keytide holds the Lease {name}: it reads and writes for output {output}");
                } else {
                    tracing::warn!(output.name = %output, "this keytide no longer holds the Lease {name} of output {output}");
                }
            }
            self.tenure.send_if_modified(|tenure| {
                let until = until.map(|until| self.start + until);
                std::mem::replace(&mut tenure.until, until) != until
            });
            if !held {
                self.stand_by(said.as_deref());
            }
            let step = self.lease.step(now);
            self.health.due("lease", Instant::now() + DURATION);
            let asked = self.start.elapsed();
            let identity = self.lease.identity().to_owned();
            let wall = (self.now)();
            let result = match &step {
                LeaseStep::Wait(at) => {
                    // It may end before the next step is due.
                    let at = until.map_or(*at, |until| until.min(*at));
                    tokio::select! {
                        biased;
                        () = done.cancelled() => break,
                        () = sleep_until(self.start + at) => continue,
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
                Err(trouble) if matches!(trouble.kind, TroubleKind::Outrun | TroubleKind::Absent) => {
                    self.lease.outrun(now);
                }
                Err(trouble) => {
                    self.lease.failed(now, trouble.retry_after);
                    if said.as_ref() != Some(&trouble.message) {
                        tracing::warn!(output.name = %self.output, "the Lease of output {}: {trouble}", self.output);
                        said = Some(trouble.message);
                    }
                    if done.is_cancelled() {
                        break;
                    }
                    continue;
                }
            }
            said = None;
        }
        if self.lease.held_until(self.start.elapsed()).is_some()
            && let Some(record) = self.lease.record()
            && let Err(trouble) = self.object.release(record).await
        {
            tracing::warn!("the Lease of output {} is not given back, and ends by itself: {trouble}", self.output);
        }
    }

    /// Somebody else writes, or nobody knows who does.
    fn stand_by(&self, trouble: Option<&str>) {
        let holder = self.lease.holder().filter(|holder| *holder != self.lease.identity());
        let (state, message) = match (holder, trouble) {
            (Some(holder), _) => {
                self.health.written(self.output.as_str());
                ("standby", format!("the Lease {} is held by {holder}", self.object.name()))
            }
            (None, Some(trouble)) => ("failing", trouble.to_owned()),
            (None, None) => ("waiting", format!("the Lease {} is not held yet", self.object.name())),
        };
        self.health.output(OutputStatus {
            name: self.output.to_string(),
            kind: "kubernetes_secret".to_owned(),
            path: self.path.clone(),
            state: state.to_owned(),
            message: Some(message),
            ..OutputStatus::default()
        });
        self.health.report(&self.metrics);
    }
}

// === impl Open ===

impl Open {
    /// Writes, for as long as the Lease is held.
    async fn serve(&mut self, held: &mut watch::Receiver<Tenure>, stop: &CancellationToken) {
        let (sender, observed) = watch::channel(None);
        let secret = self.secret.clone();
        let mut random = self.random.clone();
        let observer = async move {
            let mut attempt = 0;
            loop {
                let began = Instant::now();
                let ended = secret.watch(|live| drop(sender.send_replace(Some(Ok(live.map(Arc::new)))))).await;
                let lasted = began.elapsed() >= SHORTEST_WATCH;
                match ended {
                    Ok(()) if lasted => attempt = 0,
                    Ok(()) => sleep(SHORTEST_WATCH).await,
                    Err(trouble) => {
                        attempt = if lasted { 1 } else { attempt + 1_u32 };
                        let pause = schedule::backoff(attempt, &mut random).min(LONGEST);
                        let pause = trouble.retry_after.unwrap_or(pause);
                        sender.send_replace(Some(Err(trouble)));
                        sleep(pause).await;
                    }
                }
            }
        };
        let demand = Arc::clone(&self.demand);
        let publisher = Publisher::new(self.settings.clone());
        let mut writer = Writer {
            all: self,
            publisher,
            retry: None,
            not_before: None,
            attempt: 0,
            told: None,
            failing: false,
            stale: false,
            take_back: false,
            reading: None,
            synced: false,
            asks: false,
        };
        tokio::select! {
            biased;
            () = writer.run(observed, held, stop) => {}
            () = observer => {}
        }
        let asks = writer.asks;
        // Whoever writes now tells of changes.
        self.contents.send_if_modified(|contents| contents.set_mark(&self.output, None));
        if asks {
            demand.send_modify(|demand| *demand = demand.saturating_sub(1));
        }
    }
}

// === impl Writer ===

impl Writer<'_> {
    async fn run(
        &mut self,
        mut observed: watch::Receiver<Observed>,
        held: &mut watch::Receiver<Tenure>,
        stop: &CancellationToken,
    ) {
        self.all.publications.mark_changed();
        loop {
            let Some(until) = held.borrow_and_update().until.filter(|until| *until > Instant::now()) else { return };
            let due = self.turn(until).await;
            if self.all.publications.has_changed().is_err() {
                return;
            }
            let next = due.map_or(until, |due| due.min(until));
            self.all.health.due("publish", next + DURATION);
            let reading = async {
                match &mut self.reading {
                    Some(reading) => reading.await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = held.changed() => {}
                changed = observed.changed() => {
                    let state = observed.borrow_and_update().clone();
                    match state.filter(|_| changed.is_ok()) {
                        Some(Ok(live)) => self.sees(live),
                        Some(Err(trouble)) => self.fails(&trouble.message, trouble.kind.is_lasting()),
                        None => return,
                    }
                }
                changed = self.all.publications.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_in();
                }
                _ = reading => self.reading = None,
                () = sleep_until(next) => {}
            }
        }
    }

    /// Takes in what there is.
    fn sees(&mut self, live: Option<Arc<Live>>) {
        self.publisher.observed(live, self.all.start.elapsed());
        // It answers again.
        self.retry = None;
        if !std::mem::replace(&mut self.asks, true) {
            // Only now: what AWS says after this is newer than what the Secret holds.
            self.all.demand.send_modify(|demand| *demand += 1);
        }
    }

    /// Takes in what AWS said.
    fn take_in(&mut self) {
        let news = self.all.publications.borrow_and_update().as_ref().map(|publication| {
            let Publication { wish, began, stale } = publication;
            (wish.share(), began.saturating_duration_since(self.all.start), stale.clone())
        });
        let Some((wish, began, stale)) = news else { return };
        for (key, rule) in &wish.unrepresentable {
            tracing::debug!("output {} cannot carry key {key}: {rule}", self.all.output);
        }
        self.publisher.wished(wish, began);
        self.retry = None;
        match (&stale, self.stale) {
            (Some(keys), _) => {
                self.event(EventReason::Stale, &format!("values are not fresh, and stay as they are: {keys}"))
            }
            (None, true) => self.event(EventReason::Recovered, "all values are fresh again"),
            (None, false) => {}
        }
        self.stale = stale.is_some();
    }

    /// Decides and does it. Says when to look again at the latest.
    async fn turn(&mut self, until: Instant) -> Option<Instant> {
        if let Some(retry) = self.retry.max(self.not_before).filter(|retry| *retry > Instant::now()) {
            return Some(retry);
        }
        self.retry = None;
        let now = self.all.start.elapsed();
        match self.publisher.step(now) {
            Step::Idle => None,
            Step::Holds(holds) => {
                self.holds(&holds);
                None
            }
            Step::ReadAgain => {
                self.read_again();
                None
            }
            Step::Contested(at) => {
                self.all.metrics.output_contested(&self.all.output, true);
                let message = "somebody changes it again and again: it is put right at a growing distance";
                self.event(EventReason::Contested, message);
                self.report("failing", Some(message.to_owned()), None);
                Some(self.all.start + at)
            }
            Step::Refuse(refusal) => {
                self.refused(&refusal);
                self.retry
            }
            Step::Write(write) => self.write(*write, until).await,
        }
    }

    /// Asks for a read of AWS, once at a time.
    fn read_again(&mut self) {
        if self.reading.is_some() {
            return;
        }
        let (reply, reading) = oneshot::channel();
        if self.all.wanted.try_send(Wanted { accept_removals: false, reply }).is_ok() {
            tracing::info!(
                output.name = %self.all.output,
                "output {} was written by another keytide from other versions: AWS is read again before it is changed",
                self.all.output
            );
            self.reading = Some(reading);
        }
    }

    async fn write(&mut self, write: Write, until: Instant) -> Option<Instant> {
        let Write { manifest, resource_version, cause, force } = write;
        if let Err(rule) = crate::render::manifest::check(&manifest) {
            self.fails(&format!("{} is not written: {rule}", self.all.secret_path()), true);
            return self.retry;
        }
        let limit = until.saturating_duration_since(Instant::now());
        if limit < LEAST {
            return Some(until);
        }
        let force = force || std::mem::take(&mut self.take_back);
        let result = self.all.secret.apply(&manifest, resource_version.as_deref(), force, limit).await;
        match result {
            Ok(live) => {
                let uid = live.uid.clone();
                let keys = manifest.data.len();
                self.publisher.written(manifest, live, cause, self.all.start.elapsed());
                self.wrote(cause, keys, &uid);
                // What was written is looked at as anything else is.
                Some(Instant::now())
            }
            Err(trouble) => {
                self.fell(&trouble, force);
                self.retry
            }
        }
    }

    /// A write failed.
    fn fell(&mut self, trouble: &Trouble, force: bool) {
        match &trouble.kind {
            TroubleKind::Owned(owners) if !force => {
                let fields: Vec<Field> = owners.iter().map(|(_, field)| field.clone()).collect();
                if self.publisher.had(&fields) {
                    // Somebody took what was ours: that is a repair, and bounded as one.
                    self.take_back = true;
                    self.retry = Some(Instant::now());
                    return;
                }
            }
            TroubleKind::Outrun => {
                // The watch brings the state that it has now.
                self.attempt = self.attempt.saturating_add(1);
                self.retry = Some(Instant::now() + schedule::hurried(&mut self.all.random));
                return;
            }
            _ => {}
        }
        self.fails(&trouble.message, trouble.kind.is_lasting());
        self.not_before = trouble.retry_after.map(|pause| Instant::now() + pause);
    }

    /// Says why, once, and tries again later.
    fn fails(&mut self, message: &str, lasting: bool) {
        self.attempt = self.attempt.saturating_add(1);
        let longest = if lasting { LONGEST_LASTING } else { LONGEST };
        let pause = schedule::backoff(self.attempt, &mut self.all.random).min(longest);
        self.retry = Some(Instant::now() + pause);
        self.all.metrics.output_up(&self.all.output, false);
        self.failing = true;
        if self.told.as_deref() != Some(message) {
            self.told = Some(message.to_owned());
            tracing::error!(output.name = %self.all.output, "output {} cannot be written: {message}", self.all.output);
        }
        if lasting {
            self.event(EventReason::Refused, message);
        }
        self.report("failing", Some(message.to_owned()), None);
    }

    fn refused(&mut self, refusal: &Refusal) {
        self.fails(&format!("{} is not written: {refusal}", self.all.secret_path()), true);
    }

    fn holds(&mut self, holds: &Holds) {
        self.attempt = 0;
        self.told = None;
        self.all.metrics.output_up(&self.all.output, true);
        self.all.metrics.output_contested(&self.all.output, false);
        self.all.metrics.output_keys(&self.all.output, holds.keys, 0);
        if std::mem::take(&mut self.failing) {
            tracing::info!(output.name = %self.all.output, "output {} is as it shall be again", self.all.output);
            self.event(EventReason::Recovered, "it is as it shall be again");
        }
        if !std::mem::replace(&mut self.synced, true) {
            let keys = holds.keys;
            self.event(EventReason::Synced, &format!("{keys} keys are as AWS Secrets Manager has them"));
        }
        self.all.contents.send_if_modified(|contents| contents.set_mark(&self.all.output, Some(&holds.content)));
        self.all.health.written(self.all.output.as_str());
        self.all.health.report(&self.all.metrics);
        self.report("written", None, Some(holds.keys));
    }

    fn wrote(&mut self, cause: Cause, keys: usize, uid: &str) {
        let Open { output, metrics, now, .. } = &*self.all;
        let since = now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let at = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        metrics.output_written(output, cause == Cause::Repair, at);
        match cause {
            Cause::Made | Cause::Change => {
                tracing::info!(output.name = %output, keys, "output {output} written: {keys} keys");
                if self.synced {
                    self.tell(EventReason::Updated, &format!("{keys} keys written"), uid);
                }
            }
            Cause::Repair => {
                let message = "it was changed or removed by somebody else: written again";
                tracing::warn!(output.name = %output, "output {output}: {message}");
                self.tell(EventReason::Repaired, message, uid);
            }
        }
        if cause != Cause::Repair {
            self.all.last_write = timestamp(at);
        }
    }

    fn event(&self, reason: EventReason, message: &str) {
        self.tell(reason, message, "");
    }

    fn tell(&self, reason: EventReason, message: &str, uid: &str) {
        // Where many wait, the API server is away, and one more says nothing new.
        drop(self.all.events.try_send((reason, message.to_owned(), uid.to_owned())));
    }

    fn report(&self, state: &str, message: Option<String>, keys: Option<usize>) {
        self.all.health.output(OutputStatus {
            name: self.all.output.to_string(),
            kind: "kubernetes_secret".to_owned(),
            path: self.all.secret_path(),
            state: state.to_owned(),
            message,
            keys: keys.unwrap_or_default(),
            last_write: self.all.last_write.clone(),
            ..OutputStatus::default()
        });
    }
}

impl Open {
    fn secret_path(&self) -> String {
        path_of(&self.secret)
    }
}
