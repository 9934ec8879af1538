//! Consumers are told when the content of outputs changed. Each action is a future of its own, so that one that hangs
//! holds up no other, nor the reads.

mod generation;
mod http;
mod rollout;
mod signal;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

pub use signal::raw as raw_signal;

use crate::{
    config::{self, HttpCall, ReloadKind},
    domain::{
        names::{ActionName, OutputName},
        reload::Contents,
    },
    health::{Health, ReloadStatus, timestamp},
    kubernetes::{client::Cluster, outcome::Trouble, workload::Workload},
    metrics::Metrics,
    output::directory::DirectoryError,
    plan::reload::{Again, Timing},
    small_file,
};
use generation::Generation;
use http::{Http, HttpError};
use rollout::Rollout;
use signal::{Signal, SignalError};

/// An action that has nothing to do is heard of again after this.
const IDLE: Duration = Duration::from_hours(1);
/// What an attempt that is under way gets when the daemon stops: less than the supervisor's grace.
const LAST_ATTEMPT: Duration = Duration::from_secs(8);
/// The time limit of a write to a file in memory; nothing in it waits.
const WRITE: Duration = Duration::from_secs(5);

/// The worker: every action of the configuration.
#[derive(Debug)]
pub struct Reloads {
    actions: Vec<Action>,
}

/// What the actions share.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// What happened to the outputs.
    pub contents: watch::Receiver<Contents>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What is reported.
    pub health: Arc<Health>,
    /// The wall clock, for timestamps.
    pub now: fn() -> SystemTime,
}

/// One action, with what it knows.
#[derive(Debug)]
struct Action {
    name: ActionName,
    outputs: BTreeSet<OutputName>,
    kind: Kind,
    timing: Timing,
    /// So many changes of its outputs were noticed.
    noticed: Option<u64>,
    /// What was noticed of the Secrets that it restarts a workload for.
    contents: Contents,
    last: Option<String>,
    failure: Option<String>,
}

/// What is done.
#[derive(Debug)]
enum Kind {
    Signal(Signal),
    Http(Http),
    Generation(Generation),
    Rollout(Rollout),
}

/// Why an attempt failed.
#[derive(Debug, Error)]
enum ActionError {
    #[error(transparent)]
    Signal(#[from] SignalError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    Generation(#[from] DirectoryError),
    #[error("{0}")]
    Rollout(Trouble),
    #[error("it was not done within {0:?} (timeout)")]
    TooLate(Duration),
    #[error("keytide stops")]
    Stopping,
}

/// When each action will be heard of: the earliest is the worker's word.
#[derive(Debug)]
struct Heartbeat {
    health: Arc<Health>,
    due: Mutex<Vec<Instant>>,
}

/// What `check` can say without doing anything: files of headers and certificates that cannot be read.
#[must_use]
pub fn remarks(actions: &[config::Reload]) -> Vec<String> {
    let unreadable = |name: &ActionName, what: &str, path: &Path, result: Result<(), String>| {
        let error = result.err()?;
        Some(format!("reload action {name}: {what} {} cannot be read here: {error}", path.display()))
    };
    let mut remarks = Vec::new();
    for action in actions {
        let ReloadKind::Http { call: HttpCall { headers, ca_file, .. }, .. } = &action.kind else { continue };
        for path in headers.values() {
            remarks.extend(unreadable(&action.name, "the header file", path, http::header(path).map(drop)));
        }
        if let Some(path) = ca_file {
            let read = small_file::read(path, http::MOST_CERTIFICATES).map(drop);
            remarks.extend(unreadable(&action.name, "ca_file", path, read));
        }
    }
    remarks
}

// === impl Reloads ===

impl Reloads {
    /// Opens what the actions need.
    ///
    /// # Errors
    /// If the directory of a generation file cannot be used.
    ///
    /// # Panics
    /// If there is a rollout and no cluster, which no configuration has.
    pub fn open(
        actions: Vec<config::Reload>,
        cluster: Option<&Cluster>,
        in_pod: bool,
        random: &mut fastrand::Rng,
    ) -> Result<Self, DirectoryError> {
        let open = |config::Reload { name, outputs, kind }| {
            let random = random.fork();
            let (kind, timing) = match kind {
                ReloadKind::Signal { process, signal, pace } => {
                    (Kind::Signal(Signal::new(process, signal)), Timing::new(pace, random))
                }
                ReloadKind::Http { call, pace } => (Kind::Http(Http::new(call)), Timing::new(pace, random)),
                ReloadKind::Rollout { workload, name, secrets, pace } => {
                    let cluster = cluster.expect("a configuration with a rollout has an output in Kubernetes");
                    let workload = Workload::new(cluster.clone(), workload, name);
                    (Kind::Rollout(Rollout::new(workload, &secrets, pace.timeout)), Timing::new(pace, random))
                }
                ReloadKind::Generation { path, allow_disk } => {
                    let generation = Generation::open(&path, allow_disk, in_pod)?;
                    (Kind::Generation(generation), Timing::at_once(WRITE, random))
                }
            };
            let contents = Contents::at_start();
            Ok(Action { name, outputs, kind, timing, noticed: None, contents, last: None, failure: None })
        };
        Ok(Self { actions: actions.into_iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Works until `stop`: then what is under way is finished, and nothing begun.
    pub async fn run(self, around: Surroundings, stop: CancellationToken) {
        let idle = vec![Instant::now() + IDLE; self.actions.len()];
        let heartbeat = Heartbeat { health: Arc::clone(&around.health), due: Mutex::new(idle) };
        let statuses = self.actions.iter().map(Action::status).collect();
        around.health.update(|status| status.reload = statuses);
        for action in &self.actions {
            around.metrics.reload_begins(&action.name);
        }
        let works = self.actions.into_iter().enumerate();
        join_all(works.map(|(index, action)| action.run(index, around.clone(), &heartbeat, &stop))).await;
    }
}

// === impl Action ===

impl Action {
    async fn run(mut self, index: usize, mut around: Surroundings, heartbeat: &Heartbeat, stop: &CancellationToken) {
        let beginning = Instant::now();
        loop {
            self.notice(&around.contents.borrow_and_update(), beginning.elapsed());
            self.report(index, &around);
            let due = self.timing.due().map(|due| beginning + due);
            let wake = due.unwrap_or_else(|| Instant::now() + IDLE);
            heartbeat.due(index, wake);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = around.contents.changed() => {
                    if changed.is_err() {
                        // Those who write are gone: the daemon ends.
                        stop.cancelled().await;
                        break;
                    }
                    continue;
                }
                () = sleep_until(wake) => if due.is_none() { continue },
            }
            let limit = self.timing.timeout();
            heartbeat.due(index, Instant::now() + limit);
            let done = tokio::select! {
                done = timeout(limit, self.kind.perform(self.noticed.unwrap_or_default(), &self.contents)) => done,
                () = async { stop.cancelled().await; sleep(LAST_ATTEMPT).await } => Ok(Err(ActionError::Stopping)),
            };
            self.settle(done.unwrap_or(Err(ActionError::TooLate(limit))), beginning.elapsed(), &around);
        }
        if self.timing.is_pending() {
            let name = &self.name;
            tracing::warn!(action.name = %name, "keytide stops before reload action {name} told its consumer of a change");
        }
    }

    /// Takes in what the outputs hold now.
    fn notice(&mut self, contents: &Contents, now: Duration) {
        self.timing.set_stale(now, contents.is_stale());
        let changes = contents.changes_of(&self.outputs);
        self.contents.clone_from(contents);
        let news = match (&mut self.kind, self.noticed) {
            // Whoever begins to write looks at once: the writer before may have died before it told anybody.
            (Kind::Rollout(rollout), noticed) => {
                let writes = rollout.notice(contents);
                self.noticed = noticed.filter(|_| writes);
                writes && noticed.is_none_or(|noticed| changes > noticed)
            }
            // It is there once the outputs are, also before anything changes.
            (Kind::Generation(_), None) => contents.has_all(&self.outputs),
            (Kind::Signal(_) | Kind::Http(_) | Kind::Generation(_), noticed) => changes > noticed.unwrap_or_default(),
        };
        if news {
            self.noticed = Some(changes);
            self.timing.changed(now);
        }
    }

    fn settle(&mut self, done: Result<Option<String>, ActionError>, elapsed: Duration, around: &Surroundings) {
        let name = &self.name;
        match done {
            Ok(None) => {
                self.timing.spared();
                self.failure = None;
            }
            Ok(Some(what)) => {
                self.timing.succeeded(elapsed);
                self.failure = None;
                let since = (around.now)().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let at = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
                self.last = timestamp(at);
                around.metrics.reload(name, Some(at));
                tracing::info!(action.name = %name, "reload action {name}: {what}");
            }
            Err(ActionError::Stopping) => {}
            Err(error) => {
                self.timing.failed(elapsed, error.again());
                around.metrics.reload(name, None);
                let message = error.to_string();
                // Not the same trouble at every attempt.
                if self.failure.as_ref() != Some(&message) {
                    tracing::warn!(action.name = %name, "reload action {name} failed, and is tried again: {message}");
                }
                self.failure = Some(message);
            }
        }
    }

    fn report(&self, index: usize, around: &Surroundings) {
        around.metrics.reload_pending(&self.name, self.timing.is_pending());
        let now = self.status();
        around.health.update(|status| {
            if let Some(status) = status.reload.get_mut(index) {
                *status = now;
            }
        });
    }

    fn status(&self) -> ReloadStatus {
        let postponed = || self.timing.is_postponed().then(|| "waits until every key is fresh again".to_owned());
        ReloadStatus {
            name: self.name.to_string(),
            kind: self.kind.label().to_owned(),
            pending: self.timing.is_pending(),
            last: self.last.clone(),
            message: self.failure.clone().or_else(postponed),
        }
    }
}

// === impl Kind ===

impl Kind {
    fn label(&self) -> &'static str {
        match self {
            Self::Signal(_) => "signal",
            Self::Http(_) => "http",
            Self::Generation(_) => "generation",
            Self::Rollout(_) => "rollout",
        }
    }

    /// Tells the consumer of the changes so far, and says in a few words what was done; none: there was nothing to do.
    async fn perform(&mut self, changes: u64, contents: &Contents) -> Result<Option<String>, ActionError> {
        Ok(Some(match self {
            Self::Signal(signal) => signal.send()?,
            Self::Http(http) => http.call().await?,
            Self::Generation(generation) => generation.write(changes)?,
            Self::Rollout(rollout) => return rollout.restart(contents).await.map_err(ActionError::Rollout),
        }))
    }
}

// === impl ActionError ===

impl ActionError {
    fn again(&self) -> Again {
        match self {
            Self::Signal(error) => error.again(),
            Self::Http(error) => error.again(),
            Self::Rollout(trouble) => rollout::again(trouble),
            Self::Generation(_) | Self::TooLate(_) | Self::Stopping => Again::Soon,
        }
    }
}

// === impl Heartbeat ===

impl Heartbeat {
    fn due(&self, index: usize, at: Instant) {
        // Nothing panics while it is held.
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(due) = due.get_mut(index) {
            *due = at;
        }
        if let Some(earliest) = due.iter().min() {
            self.health.due("reload", *earliest);
        }
    }
}
