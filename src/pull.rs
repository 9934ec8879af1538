//! The way down: read, fan out, judge, write, keep, report. Only puts the steps in order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    aws::auth::{Auth, Known},
    config::{OnMissing, Refresh},
    domain::{
        kubernetes::SecretType,
        mapping::{Request, Selection},
        names::KeyName,
        reload::Contents,
        snapshot::{Problem, Reason, Retry, Snapshot},
    },
    health::{Health, KeyStatus, OutputStatus, Verdict, timestamp},
    metrics::{KeyCounts, Metrics, RefreshOutcome},
    output::{Action, Output},
    plan::{
        fan_out::{Changes, Ledger, Mapping},
        publish::Wish,
        remarks::Remarks,
        schedule::Schedule,
    },
    source::Source,
    state::{Kept, State},
};

/// So many names and problems are written out in one log line or message; the rest is counted.
const NAMED: usize = 10;
/// A requested refresh begins this long after the one requested before it, at the earliest.
const REQUEST_PAUSE: Duration = Duration::from_secs(10);
/// The pause between two looks at what others write, where the process ends with it.
const SOON: Duration = Duration::from_millis(50);
/// The longest pause between two attempts to write an output that fails, or that somebody else keeps changing.
const LONGEST_MEND: Duration = Duration::from_mins(1);

/// The worker of the way down, and everything that it owns.
#[derive(Debug)]
pub struct Pull {
    /// What the configuration asks for.
    pub mapping: Mapping,
    /// Where values come from, if anything is read.
    pub source: Option<Reader>,
    /// What is known, perhaps from before a restart.
    pub ledger: Ledger,
    /// The files that values go to.
    pub outputs: Vec<Output>,
    /// Where values go that other workers write.
    pub mailboxes: Vec<Mailbox>,
    /// How many outputs this process reads for; with none it only proves who it is.
    pub demand: watch::Receiver<usize>,
    /// Where the last good snapshot is kept.
    pub state: Option<State>,
    /// When and how often.
    pub refresh: Refresh,
    /// The delays.
    pub schedule: Schedule,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is reported.
    pub health: Arc<Health>,
    /// Where those hear of changes who tell consumers.
    pub contents: watch::Sender<Contents>,
    /// The wall clock, for timestamps.
    pub now: fn() -> SystemTime,
    /// With a time limit: one complete refresh, then done.
    pub once: Option<Duration>,
}

/// Where the values of an output go that another worker writes.
#[derive(Debug)]
pub struct Mailbox {
    /// Which keys it takes.
    pub selection: Selection,
    /// Of which type the Secret is.
    pub kind: SecretType,
    /// How they get there: the last ones win.
    pub sender: watch::Sender<Option<Publication>>,
    /// When that was which the output holds.
    pub held: watch::Receiver<Option<Instant>>,
    /// When the last ones were sent.
    pub sent: Option<Instant>,
}

/// What a refresh brought for one such output.
#[derive(Debug)]
pub struct Publication {
    /// What it shall hold.
    pub wish: Wish,
    /// When the oldest of the reads that this is made of began; a read that failed does not count.
    pub began: Instant,
    /// When it was sent.
    pub sent: Instant,
    /// What is not fresh of it, in words; none if all is.
    pub stale: Option<String>,
}

/// The source with its identity.
#[derive(Debug)]
pub struct Reader {
    /// The source.
    pub source: Source,
    /// Who reads.
    pub auth: Arc<Auth>,
}

/// Somebody wants a refresh now.
#[derive(Debug)]
pub struct Wanted {
    /// True: removals that would be held are wanted.
    pub accept_removals: bool,
    /// Where the report goes.
    pub reply: oneshot::Sender<Report>,
}

/// What one refresh did, for whoever asked for it. Names, never values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// True if everything was read and applied.
    pub complete: bool,
    /// Keys that are new or have another value.
    pub changed: Vec<String>,
    /// Keys that are gone.
    pub removed: Vec<String>,
    /// What went wrong.
    pub problems: Vec<String>,
}

/// Why there will be no first refresh.
#[derive(Debug, Error)]
pub enum StartError {
    /// It was not complete in time.
    #[error("the first refresh was not complete within {timeout:?}; missing: {missing}")]
    TooLate {
        /// The time limit.
        timeout: Duration,
        /// What is missing, and why.
        missing: String,
    },
    /// The credentials are somebody's whom the configuration does not expect: waiting would not help.
    #[error("{0}")]
    UnexpectedIdentity(Problem),
}

/// How the worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// It was told to stop before the first refresh was complete: what was missing, and why.
    Unfinished(String),
    /// The one refresh is complete.
    Once,
}

/// What wakes the worker.
enum Wake {
    Due,
    Asked,
    Signal,
    Look,
    Late,
    Demand,
}

#[derive(Debug)]
struct Progress {
    complete: bool,
    needed: bool,
    demand: usize,
    proved: bool,
    deadline: Option<Instant>,
    next: Option<Instant>,
    retry: Option<Instant>,
    failing: BTreeSet<Request>,
    attempt: u32,
    refreshes: u64,
    look: Option<Instant>,
    looks: u32,
    asked: Vec<Wanted>,
    asked_for: Option<Instant>,
    last_asked: Option<Instant>,
    told: BTreeMap<String, Reason>,
    remarked: Remarks,
    output_problems: BTreeMap<usize, String>,
    output_writes: BTreeMap<usize, i64>,
    kept: Kept,
    /// When the last read of each secret began that AWS answered.
    answered: BTreeMap<Request, Instant>,
    begun: Instant,
}

// === impl Pull ===

impl Pull {
    /// Works until `stop`.
    ///
    /// # Errors
    /// If the first refresh is not complete in time.
    pub async fn run(
        mut self,
        stop: CancellationToken,
        mut wanted: mpsc::Receiver<Wanted>,
        signal: Arc<Notify>,
        hints: Arc<Notify>,
    ) -> Result<Ended, StartError> {
        let mut progress = self.begin();
        // What was kept over a restart is written before AWS is asked: an outage then costs nobody a file.
        self.settle(&mut progress);
        loop {
            if self.once.is_some() && self.is_done(&progress) {
                return Ok(Ended::Once);
            }
            let due = [progress.next, progress.retry, progress.look, progress.deadline, progress.asked_for];
            let due = due.into_iter().flatten().min();
            self.health.due("pull", due.unwrap_or_else(|| Instant::now() + self.refresh.interval));
            let woken = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(self.stopped(&progress)),
                // The first one who asks sets the time; the others wait in the channel, which is bounded, and share it.
                Some(wanted) = wanted.recv(), if progress.asked.is_empty() => {
                    progress.asked.push(wanted);
                    let earliest = progress.last_asked.map_or_else(Instant::now, |at| at + REQUEST_PAUSE);
                    progress.asked_for = Some(earliest);
                    continue;
                }
                () = signal.notified() => Wake::Signal,
                () = until(progress.deadline) => Wake::Late,
                Ok(()) = self.demand.changed() => Wake::Demand,
                () = until(progress.asked_for) => Wake::Asked,
                () = until(progress.next) => Wake::Due,
                () = until(progress.retry) => Wake::Due,
                () = until(progress.look) => Wake::Look,
                () = hints.notified() => if progress.look.is_some() { continue } else { Wake::Look },
            };
            let mut asked = Vec::new();
            match woken {
                // The start is over, or it is somebody else's.
                Wake::Late if self.has_started(&progress) => {
                    progress.deadline = None;
                    continue;
                }
                Wake::Late => return Err(self.too_late(&progress)),
                Wake::Look => {
                    self.look(&mut progress);
                    continue;
                }
                Wake::Demand => {
                    self.turn(&mut progress);
                    continue;
                }
                Wake::Due => {}
                Wake::Signal => progress.failing.clear(),
                Wake::Asked => {
                    progress.asked_for = None;
                    progress.last_asked = Some(Instant::now());
                    progress.failing.clear();
                    asked = std::mem::take(&mut progress.asked);
                    while let Ok(another) = wanted.try_recv() {
                        asked.push(another);
                    }
                }
            }
            if !progress.needed {
                self.prove(&mut progress, asked, &stop).await?;
                continue;
            }
            let now = Instant::now();
            // Whoever asks gets everything read again; a retry reads what failed.
            let retry = !progress.failing.is_empty() && progress.next.is_none_or(|next| next > now);
            let requests = if retry { progress.failing.clone() } else { self.mapping.requests() };
            let began = Instant::now();
            let limit = self.refresh.call_timeout.saturating_mul(u32::try_from(requests.len()).unwrap_or(u32::MAX));
            let identity = self.source.as_ref().map_or(1, |reader| reader.auth.most_calls());
            self.health.due("pull", began + limit + self.refresh.call_timeout.saturating_mul(identity));
            let late = progress.deadline.filter(|_| !self.has_started(&progress));
            let snapshot = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(self.stopped(&progress)),
                () = until(late) => return Err(self.too_late(&progress)),
                snapshot = read(self.source.as_mut(), &requests) => snapshot,
            };
            let refused = |problem: &&Problem| problem.reason == Reason::UnexpectedIdentity;
            if let Some(problem) = snapshot.values().filter_map(|answer| answer.as_ref().err()).find(refused)
                && !progress.complete
            {
                return Err(StartError::UnexpectedIdentity(problem.clone()));
            }
            let accept_removals = asked.iter().any(|wanted| wanted.accept_removals);
            let report = self.take_in(&mut progress, snapshot, accept_removals, began).await;
            self.plan_next(&mut progress, !retry);
            for wanted in asked {
                // Whoever asked may have gone.
                drop(wanted.reply.send(report.clone()));
            }
        }
    }

    fn begin(&mut self) -> Progress {
        let now = Instant::now();
        let demand = *self.demand.borrow_and_update();
        let needed = demand > 0;
        self.reads(needed);
        Progress {
            complete: false,
            needed,
            demand,
            proved: false,
            deadline: Some(now + self.time_limit()),
            next: self.source.is_some().then_some(now),
            retry: None,
            failing: BTreeSet::new(),
            attempt: 0,
            refreshes: 0,
            look: None,
            looks: 0,
            asked: Vec::new(),
            asked_for: None,
            last_asked: None,
            told: BTreeMap::new(),
            remarked: Remarks::default(),
            output_problems: BTreeMap::new(),
            output_writes: BTreeMap::new(),
            kept: Kept::new(),
            answered: BTreeMap::new(),
            begun: now,
        }
    }

    /// The time limit of the first refresh.
    fn time_limit(&self) -> Duration {
        self.once.unwrap_or(self.refresh.startup_timeout)
    }

    /// This process begins to read, since it got a Lease, or leaves that to another one.
    fn turn(&mut self, progress: &mut Progress) {
        let demand = *self.demand.borrow_and_update();
        let needed = demand > 0;
        let grew = demand > std::mem::replace(&mut progress.demand, demand);
        if needed == progress.needed {
            if grew {
                // Whoever came later wants to know what AWS says now.
                progress.next = Some(Instant::now());
            }
            return;
        }
        progress.needed = needed;
        self.reads(needed);
        if !needed {
            // A standby misses nothing.
            self.metrics.set_keys(&KeyCounts::default());
        }
        progress.next = (needed || !progress.proved).then(Instant::now);
        progress.retry = None;
        progress.failing.clear();
        // Who takes over has started long ago, and stays, whatever AWS says.
        let starts = self.health.startup() != Verdict::Yes;
        if self.once.is_none() && needed && !progress.complete && starts {
            progress.deadline = Some(Instant::now() + self.time_limit());
        }
    }

    /// Says whether this process reads AWS.
    fn reads(&self, needed: bool) {
        self.health.needed(needed);
        self.metrics.refresh_interval((needed && self.source.is_some()).then_some(self.refresh.interval));
    }

    /// Who reads nothing proves that it could.
    async fn prove(
        &mut self,
        progress: &mut Progress,
        asked: Vec<Wanted>,
        stop: &CancellationToken,
    ) -> Result<(), StartError> {
        for wanted in asked {
            let problem = "this keytide is a standby: another one holds the Lease, and reads".to_owned();
            drop(wanted.reply.send(Report { problems: vec![problem], ..Report::default() }));
        }
        (progress.next, progress.retry) = (None, None);
        let Some(reader) = &self.source else { return Ok(()) };
        let limit = self.refresh.call_timeout.saturating_mul(reader.auth.most_calls().saturating_add(1));
        self.health.due("pull", Instant::now() + limit);
        let proof = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            proof = reader.auth.ready() => proof,
        };
        match proof {
            Ok(()) => {
                progress.proved = true;
                progress.attempt = 0;
                self.health.proved();
                self.health.report(&self.metrics);
            }
            Err(problem) if problem.reason == Reason::UnexpectedIdentity => {
                return Err(StartError::UnexpectedIdentity(problem));
            }
            Err(problem) => {
                remark(&mut progress.remarked, [format!("a standby cannot prove who it is: {problem}")]);
                progress.attempt = progress.attempt.saturating_add(1);
                progress.retry = Some(Instant::now() + self.schedule.retry(progress.attempt, true));
            }
        }
        Ok(())
    }

    /// Hands on what Kubernetes shall hold. Nothing before the first refresh is complete, and nothing from before a restart.
    fn publish(&mut self, progress: &Progress) {
        if !progress.complete {
            return;
        }
        for Mailbox { selection, kind, sender, held: _, sent } in &mut self.mailboxes {
            let wish = self.ledger.wish(&self.mapping, selection, kind);
            let requests = self.ledger.requests_of(&self.mapping, selection);
            let answered = |request| progress.answered.get(request).copied().unwrap_or(progress.begun);
            let began = requests.iter().map(answered).min().unwrap_or(progress.begun);
            let stale = self.ledger.stale_of(&self.mapping, selection);
            let lines = stale.iter().map(|(key, problem)| format!("{key} ({})", problem.reason.label()));
            let stale = (!stale.is_empty()).then(|| some_of(lines));
            let now = Instant::now();
            *sent = Some(now);
            sender.send_replace(Some(Publication { wish, began, sent: now, stale }));
        }
    }

    async fn take_in(
        &mut self,
        progress: &mut Progress,
        snapshot: Snapshot,
        accept_removals: bool,
        began: Instant,
    ) -> Report {
        let answers = snapshot.iter().filter(|(_, answer)| match answer {
            Ok(_) => true,
            Err(problem) => problem.reason.is_definite(),
        });
        progress.answered.extend(answers.map(|(request, _)| (request.clone(), began)));
        let failed: BTreeMap<Request, Reason> = snapshot
            .iter()
            .filter_map(|(request, answer)| Some((request.clone(), answer.as_ref().err()?.reason)))
            .collect();
        let changes = self.ledger.apply(&self.mapping, snapshot, accept_removals);
        self.tell(progress, &changes);
        self.metrics.changes(changes.changed.len(), changes.removed.len());
        for (_, reason) in &changes.held {
            self.metrics.held(*reason);
        }
        if !changes.changed.is_empty() || !changes.removed.is_empty() || changes.versions {
            // Before the outputs: a restart never brings back a value older than what was written.
            self.keep(progress);
        }
        self.settle(progress);
        self.publish(progress);
        progress.refreshes = progress.refreshes.saturating_add(1);
        let problems = self.problems();
        let complete = progress.complete && problems.is_empty();
        // A pod waits for the first refresh: until it is complete, everything is looked at again soon.
        let waiting = !progress.complete || (self.once.is_some() && !complete);
        progress.failing = if waiting {
            self.mapping.requests()
        } else {
            failed
                .into_iter()
                .filter(|(_, reason)| reason.retry() == Retry::Backoff)
                .map(|(request, _)| request)
                .collect()
        };
        let at = seconds((self.now)());
        if complete {
            self.health.fresh();
        }
        let outcome = if complete { RefreshOutcome::Complete } else { RefreshOutcome::Incomplete };
        self.metrics.refresh(outcome, began.elapsed().as_secs_f64(), at);
        let known = match &self.source {
            Some(reader) => Some(reader.auth.known().await),
            None => None,
        };
        let count = progress.refreshes;
        self.health.update(|status| {
            status.refresh.last = timestamp(at);
            if complete {
                status.refresh.last_complete = timestamp(at);
            }
            status.refresh.count = count;
            if let Some(Known { caller, expires_at, token_expires_at }) = known {
                status.identity.account = caller.as_ref().map(|caller| caller.account().to_string());
                status.identity.caller = caller.map(|caller| caller.to_string());
                status.identity.expires = expires_at.and_then(timestamp);
                status.identity.token_expires = token_expires_at.and_then(timestamp);
            }
        });
        let names = |names: &BTreeSet<KeyName>| names.iter().map(ToString::to_string).collect();
        Report { complete, changed: names(&changes.changed), removed: names(&changes.removed), problems }
    }

    fn plan_next(&mut self, progress: &mut Progress, was_full: bool) {
        let now = Instant::now();
        if was_full {
            let pause = if progress.refreshes == 1 { self.schedule.second() } else { self.schedule.following() };
            progress.next = self.source.is_some().then(|| now + pause);
        }
        if progress.failing.is_empty() {
            progress.attempt = 0;
            progress.retry = None;
        } else {
            progress.attempt = progress.attempt.saturating_add(1);
            progress.retry = Some(now + self.schedule.retry(progress.attempt, !progress.complete));
        }
        let next = [progress.next, progress.retry].into_iter().flatten().min();
        let at = next.and_then(|next| (self.now)().checked_add(next.saturating_duration_since(now)));
        self.health.update(|status| status.refresh.next = at.and_then(|at| timestamp(seconds(at))));
    }

    /// Brings everything in line with the ledger: the latch, the outputs, the metrics, the status.
    fn settle(&mut self, progress: &mut Progress) {
        let skip = self.refresh.on_missing == OnMissing::Skip;
        if !progress.complete && self.ledger.missing(&self.mapping, skip).is_empty() {
            progress.complete = true;
            self.health.complete();
            self.health.update(|status| status.refresh.complete = true);
        }
        let stale = !self.problems().is_empty();
        self.contents.send_if_modified(|contents| contents.set_stale(stale));
        self.look(progress);
        let states = self.ledger.states(&self.mapping);
        let mut counts = KeyCounts::default();
        let mut stale: BTreeMap<Reason, i64> = BTreeMap::new();
        let mut keys = Vec::with_capacity(states.len());
        for state in &states {
            let label = match (&state.problem, state.found) {
                (None, true) => {
                    counts.fresh += 1;
                    "fresh"
                }
                (Some(problem), true) => {
                    *stale.entry(problem.reason).or_default() += 1;
                    "stale"
                }
                (_, false) => {
                    counts.missing += 1;
                    "missing"
                }
            };
            keys.push(KeyStatus {
                name: state.name.to_string(),
                state: label.to_owned(),
                reason: state.problem.as_ref().map(|problem| problem.reason.label().to_owned()),
                message: state.problem.as_ref().map(|problem| problem.message.clone()),
                secret: state.from.map(|from| from.secret.to_string()),
                version: state.version.map(|version| version.id.to_string()),
                created: state.version.and_then(|version| timestamp(version.created_ms?.div_euclid(1000))),
            });
        }
        counts.stale = stale.into_iter().collect();
        if !progress.needed {
            // A standby misses nothing.
            counts = KeyCounts::default();
        }
        self.metrics.set_keys(&counts);
        // A secret that exports all its members has perhaps no key yet that could show what is wrong with it.
        let secrets = self.mapping.wholesale().filter_map(|wholesale| {
            let problem = self.ledger.troubles().get(&wholesale.request)?;
            Some((wholesale.request.secret.to_string(), problem.message.clone()))
        });
        let secrets = secrets.collect();
        self.health.update(|status| {
            status.keys = keys;
            status.secrets = secrets;
        });
        self.health.report(&self.metrics);
    }

    /// Makes every output hold what it shall hold. One that fails does not hold up another.
    fn look(&mut self, progress: &mut Progress) {
        progress.look = None;
        if !progress.complete {
            for output in &self.outputs {
                self.health.output(output_status(output, "waiting"));
            }
            return;
        }
        let at = seconds((self.now)());
        let mut disturbed = false;
        let mut statuses = Vec::with_capacity(self.outputs.len());
        let mut kept = Kept::new();
        let mut held = Vec::with_capacity(self.outputs.len());
        for (index, output) in self.outputs.iter_mut().enumerate() {
            let name = output.name().clone();
            let result = output.apply(self.ledger.desired(&self.mapping, output.selection()));
            let mut status = output_status(output, "written");
            match result {
                Ok(written) => {
                    self.metrics.output_up(&name, true);
                    self.metrics.output_keys(&name, written.keys, written.unrepresentable.len());
                    if progress.output_problems.remove(&index).is_some() {
                        tracing::info!(output.name = %name, "output {name} can be written again");
                    }
                    match written.action {
                        Action::Nothing => {}
                        Action::Change => {
                            self.metrics.output_written(&name, false, at);
                            progress.output_writes.insert(index, at);
                            tracing::info!(output.name = %name, keys = written.keys, "output {name} written: {} keys", written.keys);
                        }
                        Action::Repair => {
                            disturbed = true;
                            self.metrics.output_written(&name, true, at);
                            tracing::warn!(output.name = %name, "output {name} was changed or removed by somebody else: written again");
                        }
                    }
                    self.health.written(name.as_str());
                    held.push((name.clone(), written.action == Action::Change));
                    kept.extend(written.kept.into_iter().map(|(key, value)| ((name.clone(), key), value)));
                    status.keys = written.keys;
                    status.unrepresentable =
                        written.unrepresentable.into_iter().map(|(key, reason)| (key.to_string(), reason)).collect();
                }
                Err(error) => {
                    disturbed = true;
                    self.metrics.output_up(&name, false);
                    let message = error.to_string();
                    if progress.output_problems.insert(index, message.clone()).as_ref() != Some(&message) {
                        tracing::error!(output.name = %name, "output {name} cannot be written: {message}");
                    }
                    "failing".clone_into(&mut status.state);
                    status.message = Some(message);
                }
            }
            status.last_write = progress.output_writes.get(&index).copied().and_then(timestamp);
            statuses.push(status);
        }
        self.contents.send_if_modified(|contents| {
            held.iter().fold(false, |news, (output, changed)| contents.written(output, *changed) || news)
        });
        if kept != progress.kept {
            progress.kept = kept;
            self.keep(progress);
        }
        let told = statuses.iter().flat_map(|status| {
            let name = &status.name;
            status.unrepresentable.iter().map(move |(key, reason)| {
                format!("output {name} cannot carry key {key}: {reason}; its last good value stays there")
            })
        });
        remark(&mut progress.remarked, told);
        for status in statuses {
            self.health.output(status);
        }
        // Somebody who fights for a file, and a disk that stays full, are met at a growing distance.
        // Where all is written to Kubernetes, that too.
        let written = !self.outputs.is_empty() || self.health.unwritten().is_empty();
        if progress.output_problems.is_empty() && written && self.once.is_none() {
            // Read and written: the start is over.
            progress.deadline = None;
        }
        if !self.mailboxes.is_empty() && self.once.is_some() {
            // Others write what this one end waits for.
            progress.look = Some(Instant::now() + SOON);
        } else if disturbed {
            progress.looks = progress.looks.saturating_add(1);
            let pause =
                Duration::from_secs(1).saturating_mul(2_u32.saturating_pow(progress.looks.saturating_sub(1).min(6)));
            progress.look = Some(Instant::now() + pause.min(LONGEST_MEND));
        } else {
            progress.looks = 0;
        }
    }

    fn keep(&mut self, progress: &Progress) {
        let Some(state) = &mut self.state else { return };
        if let Err(error) = state.keep(&self.ledger, &progress.kept) {
            self.metrics.state_error();
            tracing::error!("the last good values would not survive a restart: {error}");
        }
    }

    /// Says what is new, once: not the same trouble at every retry.
    fn tell(&self, progress: &mut Progress, changes: &Changes) {
        if !changes.changed.is_empty() {
            let names = some_of(changes.changed.iter());
            tracing::info!(keys = changes.changed.len(), "keys with a new value: {names}");
        }
        if !changes.removed.is_empty() {
            tracing::warn!(keys = changes.removed.len(), "keys removed: {}", some_of(changes.removed.iter()));
        }
        let mut now: BTreeMap<String, (Reason, String)> = BTreeMap::new();
        for (request, problem) in self.ledger.troubles() {
            now.insert(format!("secret {}", request.secret), (problem.reason, problem.message.clone()));
        }
        for state in self.ledger.states(&self.mapping) {
            if let Some(problem) = state.problem.filter(|problem| problem.reason == Reason::MissingMember) {
                now.insert(format!("key {}", state.name), (problem.reason, problem.message));
            }
        }
        let mut lines = 0_usize;
        for (subject, (reason, message)) in &now {
            if progress.told.get(subject) != Some(reason) {
                lines += 1;
                if lines <= NAMED {
                    tracing::warn!(reason = reason.label(), "{subject}: {message}");
                }
            }
        }
        if lines > NAMED {
            tracing::warn!("{} more of these; `keytide status` lists all", lines - NAMED);
        }
        let over = progress.told.keys().filter(|subject| !now.contains_key(*subject)).count();
        if over > 0 {
            tracing::info!(
                "read again: {}",
                some_of(progress.told.keys().filter(|subject| !now.contains_key(*subject)))
            );
        }
        progress.told = now.into_iter().map(|(subject, (reason, _))| (subject, reason)).collect();
        remark(&mut progress.remarked, changes.remarks.iter().cloned());
        if !changes.remarks.is_empty() {
            self.health.update(|status| status.remarks = changes.remarks.iter().take(100).cloned().collect());
        }
    }

    /// Everything that keeps a refresh from being complete.
    fn problems(&self) -> Vec<String> {
        let excused = |problem: &Problem, found: bool| {
            self.refresh.on_missing == OnMissing::Skip && !found && problem.reason.is_definite()
        };
        let keys = self.ledger.states(&self.mapping).into_iter().filter_map(|state| {
            let problem = state.problem.filter(|problem| !excused(problem, state.found))?;
            Some(format!("key {}: {problem}", state.name))
        });
        let whole = self.mapping.wholesale().filter_map(|wholesale| {
            let found = self.ledger.applied().contains_key(&wholesale.request);
            let problem = self.ledger.troubles().get(&wholesale.request).filter(|problem| !excused(problem, found))?;
            Some(format!("secret {}: {problem}", wholesale.request.secret))
        });
        let mut problems: Vec<String> = keys.chain(whole).collect();
        problems.dedup();
        problems
    }

    /// True if what the start has to bring is there: what was read is written, or a standby has nothing to read.
    fn has_started(&self, progress: &Progress) -> bool {
        let read = progress.complete || !progress.needed;
        self.once.is_none() && read && self.health.unwritten().is_empty()
    }

    fn is_done(&self, progress: &Progress) -> bool {
        let read = progress.refreshes > 0 || self.source.is_none();
        let held =
            self.mailboxes.iter().all(|mailbox| mailbox.sent.is_some() && *mailbox.held.borrow() == mailbox.sent);
        let written = progress.output_problems.is_empty() && held;
        read && progress.complete && self.problems().is_empty() && written
    }

    fn stopped(&self, progress: &Progress) -> Ended {
        match self.health.startup() {
            Verdict::Yes => Ended::Stopped,
            Verdict::No(why) => {
                Ended::Unfinished(Some(self.missing(progress)).filter(|text| !text.is_empty()).unwrap_or(why))
            }
        }
    }

    fn too_late(&self, progress: &Progress) -> StartError {
        StartError::TooLate { timeout: self.time_limit(), missing: self.missing(progress) }
    }

    /// What keeps the first refresh from being complete.
    fn missing(&self, progress: &Progress) -> String {
        let skip = self.refresh.on_missing == OnMissing::Skip;
        // Who waits for a Lease reads nothing: then that is what is missing.
        let missing = if progress.needed { self.ledger.missing(&self.mapping, skip) } else { Vec::new() };
        let mut lines: Vec<String> = missing.iter().map(|(what, problem)| format!("{what}: {problem}")).collect();
        lines.extend(progress.output_problems.values().cloned());
        if lines.is_empty() {
            let outputs = self.health.status().outputs.into_iter();
            let late = outputs.filter(|output| output.state != "written");
            lines.extend(late.filter_map(|output| Some(format!("output {}: {}", output.name, output.message?))));
        }
        if lines.is_empty() {
            lines = self.problems();
        }
        some_of(lines.iter())
    }
}

fn output_status(output: &Output, state: &str) -> OutputStatus {
    OutputStatus {
        name: output.name().to_string(),
        kind: output.kind().to_owned(),
        path: output.path().display().to_string(),
        state: state.to_owned(),
        ..OutputStatus::default()
    }
}

async fn read(reader: Option<&mut Reader>, requests: &BTreeSet<Request>) -> Snapshot {
    match reader {
        Some(reader) => reader.source.read(requests).await,
        None => Snapshot::new(),
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn remark(said: &mut Remarks, remarks: impl IntoIterator<Item = String>) {
    for remark in remarks {
        if said.is_new(&remark) {
            tracing::warn!("{remark}");
        }
    }
}

/// The first few, and how many more.
fn some_of<T: ToString>(all: impl Iterator<Item = T>) -> String {
    let mut names: Vec<String> = all.map(|one| one.to_string()).collect();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    let mut text = names.join(", ");
    if more > 0 {
        text.push_str(" and ");
        text.push_str(&more.to_string());
        text.push_str(" more");
    }
    text
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
