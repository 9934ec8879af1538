//! What keytide knows of itself: the latch of readiness, the heartbeat of each worker, and the status that people read.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::metrics::Metrics;

/// How much later than it said a worker may be before `/livez` turns: a unit of work has its own time limits below this.
const LATE: Duration = Duration::from_mins(1);

/// Shared by the workers, which report, and the two doors, which answer.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    max_stale: Option<Duration>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    complete: bool,
    part: Part,
    started: bool,
    unwritten: Vec<String>,
    fresh_at: Option<Instant>,
    due: BTreeMap<String, Instant>,
    status: Status,
}

/// Whether this process reads AWS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Reads,
    /// Everything is decided by Leases, and others hold them.
    StandsBy {
        /// True once the identity was proved without a read.
        proved: bool,
    },
}

/// Whether something holds, and if not, why: the counts that anybody on the pod's network may know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Yes,
    /// It does not.
    No(String),
}

/// Everything that `keytide status` shows. Names and times, never a value. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of keytide.
    pub version: String,
    /// Whether `/readyz` answers 200.
    pub ready: bool,
    /// When the daemon started.
    pub started: String,
    /// Who keytide is.
    pub identity: IdentityStatus,
    /// The reads.
    pub refresh: RefreshStatus,
    /// Every key.
    pub keys: Vec<KeyStatus>,
    /// What is wrong with secrets that export all their members, by the name of the secret.
    pub secrets: BTreeMap<String, String>,
    /// Every output.
    pub outputs: Vec<OutputStatus>,
    /// The spool; none if virtual keys are not stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spool: Option<SpoolStatus>,
    /// What is done when the content of outputs changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reload: Vec<ReloadStatus>,
    /// The configuration files.
    pub config: ConfigStatus,
    /// What else somebody should know.
    pub remarks: Vec<String>,
}

/// Who keytide is in AWS.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IdentityStatus {
    /// How credentials come: `static`, `profile`, `web_identity`, `container` or `instance`.
    pub kind: String,
    /// The access key id, the profile, the role of the web identity, or the address of the agent.
    pub name: String,
    /// The roles that are assumed from there, one from the other.
    pub roles: Vec<String>,
    /// Who that is, as STS says: the ARN with the session's name. None where STS was not asked.
    pub caller: Option<String>,
    /// The account of that.
    pub account: Option<String>,
    /// Whom `expect_role` expects; then nobody else is used.
    pub expected: Option<String>,
    /// The region.
    pub region: String,
    /// When the credentials end, where they do.
    pub expires: Option<String>,
    /// When the web identity token that was last exchanged ends, where it says so.
    pub token_expires: Option<String>,
    /// What is not AWS's default and decides who sees the secrets: endpoints, a proxy, certificates.
    pub overrides: Vec<String>,
}

/// The reads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RefreshStatus {
    /// True once the first refresh was complete.
    pub complete: bool,
    /// The interval in seconds.
    pub interval_seconds: u64,
    /// When the last refresh ended, complete or not.
    pub last: Option<String>,
    /// When the last complete refresh ended.
    pub last_complete: Option<String>,
    /// When the next read is due.
    pub next: Option<String>,
    /// How many refreshes there were.
    pub count: u64,
}

/// One key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct KeyStatus {
    /// Its name.
    pub name: String,
    /// `fresh`, `stale` or `missing`.
    pub state: String,
    /// Why it is not fresh: a word of the metrics.
    pub reason: Option<String>,
    /// Why, in a sentence.
    pub message: Option<String>,
    /// The secret that it comes from; none for a template.
    pub secret: Option<String>,
    /// The version in use.
    pub version: Option<String>,
    /// When AWS made that version.
    pub created: Option<String>,
}

/// One output.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OutputStatus {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Its file or directory, or its object in Kubernetes.
    pub path: String,
    /// `written`, `waiting` (for the first refresh), `standby` (somebody else holds its Lease) or `failing`.
    pub state: String,
    /// Why it fails.
    pub message: Option<String>,
    /// How many keys it holds.
    pub keys: usize,
    /// The keys that it cannot carry, with why.
    pub unrepresentable: BTreeMap<String, String>,
    /// When it last changed; none if not by this process.
    pub last_write: Option<String>,
}

/// A reload action.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// True while there is a change that the consumer was not told of.
    pub pending: bool,
    /// When it last succeeded; none if not by this process.
    pub last: Option<String>,
    /// Why the last attempt failed, or what it waits for.
    pub message: Option<String>,
}

/// The spool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SpoolStatus {
    /// The drop directory.
    pub directory: String,
    /// Who writes, where that is somebody else than who reads.
    pub writer: Option<IdentityStatus>,
    /// Entries that are not claimed yet: there is no room, or they do not stand still yet.
    pub waiting: usize,
    /// Entries that are claimed and not yet confirmed.
    pub claimed: usize,
    /// Entries that can never succeed, kept with their reasons.
    pub failed: usize,
    /// Files that keytide may not read.
    pub unreadable: usize,
    /// Files that are no entries by their names.
    pub ignored: usize,
    /// When the oldest claim was made.
    pub oldest: Option<String>,
    /// When AWS last confirmed an entry.
    pub last_confirmed: Option<String>,
    /// How many entries AWS confirmed to this process.
    pub confirmed: u64,
    /// Calls a second that may write just now; none is without limit.
    pub writes_per_second: Option<f64>,
    /// Why the spool itself cannot be used.
    pub trouble: Option<String>,
    /// The first entries that were tried and wait to be tried again.
    pub problems: Vec<SpoolProblem>,
}

/// An entry that was tried and waits to be tried again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SpoolProblem {
    /// Its identity.
    pub entry: String,
    /// What it does.
    pub operation: String,
    /// To which secret.
    pub subject: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it waits: a word of the metrics.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
}

/// The configuration files.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Their paths.
    pub files: Vec<String>,
    /// Why the files on disk are not the configuration in use.
    pub refused: Option<String>,
}

// === impl Status ===

impl Status {
    /// That of a process that starts now.
    #[must_use]
    pub fn at_start(now: SystemTime) -> Self {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: i64::try_from(since.as_secs()).ok().and_then(timestamp).unwrap_or_default(),
            ..Self::default()
        }
    }
}

// === impl Health ===

impl Health {
    /// Nothing is ready yet. `unwritten` names the outputs that must be written first.
    #[must_use]
    pub fn new(status: Status, max_stale: Option<Duration>, unwritten: Vec<String>) -> Self {
        let inner = Inner {
            complete: false,
            part: Part::Reads,
            started: false,
            unwritten,
            fresh_at: None,
            due: BTreeMap::new(),
            status,
        };
        Self { started: Instant::now(), max_stale, inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held; if it did, what it guards would still be whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every listed key was found, or need not be.
    pub fn complete(&self) {
        self.inner().complete = true;
    }

    /// Whether this process reads AWS: somebody else may hold every Lease.
    pub fn needed(&self, needed: bool) {
        let mut inner = self.inner();
        match (needed, inner.part) {
            (true, Part::StandsBy { .. }) => {
                inner.part = Part::Reads;
                // What somebody else read until now is not old.
                inner.fresh_at = Some(Instant::now());
            }
            // Who has read has proved it.
            (false, Part::Reads) => inner.part = Part::StandsBy { proved: inner.complete },
            _ => {}
        }
    }

    /// The identity was proved, without a read.
    pub fn proved(&self) {
        self.inner().part = Part::StandsBy { proved: true };
    }

    /// The outputs that are not yet written, nor looked at by a standby.
    #[must_use]
    pub fn unwritten(&self) -> Vec<String> {
        self.inner().unwritten.clone()
    }

    /// Reports an output, in the place of what was reported of it before.
    pub fn output(&self, output: OutputStatus) {
        let mut inner = self.inner();
        match inner.status.outputs.iter_mut().find(|other| other.name == output.name) {
            Some(before) => *before = output,
            None => inner.status.outputs.push(output),
        }
    }

    /// An output was written for the first time, or is somebody else's for now.
    pub fn written(&self, output: &str) {
        self.inner().unwritten.retain(|name| name != output);
    }

    /// A refresh was complete.
    pub fn fresh(&self) {
        self.inner().fresh_at = Some(Instant::now());
    }

    /// A worker says, before it waits or works, when it will be heard of again at the latest.
    pub fn due(&self, worker: &str, at: Instant) {
        let mut inner = self.inner();
        match inner.due.get_mut(worker) {
            Some(due) => *due = at,
            None => drop(inner.due.insert(worker.to_owned(), at)),
        }
    }

    /// A worker has nothing to do until it says otherwise.
    pub fn idle(&self, worker: &str) {
        self.inner().due.remove(worker);
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.inner().status);
    }

    /// The status as it is now.
    #[must_use]
    pub fn status(&self) -> Status {
        let ready = self.ready() == Verdict::Yes;
        Status { ready, ..self.inner().status.clone() }
    }

    /// `/startupz`: the first refresh is complete and written; or everything is somebody else's to write, and this process
    /// could take it over. True for ever once it was.
    #[must_use]
    pub fn startup(&self) -> Verdict {
        let mut inner = self.inner();
        if inner.started {
            return Verdict::Yes;
        }
        if inner.part == (Part::StandsBy { proved: false }) {
            return Verdict::No("the identity is not proved; `keytide status` says why".to_owned());
        }
        if inner.part == Part::Reads && !inner.complete {
            return Verdict::No("the first refresh is not complete; `keytide status` says what is missing".to_owned());
        }
        if !inner.unwritten.is_empty() {
            return Verdict::No(format!("not yet written: {}", inner.unwritten.join(", ")));
        }
        inner.started = true;
        Verdict::Yes
    }

    /// `/readyz`: started, and not older than `refresh.max_stale`.
    #[must_use]
    pub fn ready(&self) -> Verdict {
        let startup = self.startup();
        let (reads, fresh_at) = {
            let inner = self.inner();
            (inner.part == Part::Reads, inner.fresh_at)
        };
        let age = fresh_at.unwrap_or(self.started).elapsed();
        match self.max_stale.filter(|_| reads) {
            Some(max) if startup == Verdict::Yes && age > max => Verdict::No(format!(
                "the last complete refresh is {} s old, refresh.max_stale is {} s",
                age.as_secs(),
                max.as_secs()
            )),
            _ => startup,
        }
    }

    /// `/livez`: no worker is later than it said.
    #[must_use]
    pub fn live(&self) -> Verdict {
        let now = Instant::now();
        match self.inner().due.iter().find(|(_, due)| now.saturating_duration_since(**due) > LATE) {
            Some((worker, _)) => Verdict::No(format!("worker {worker} is late")),
            None => Verdict::Yes,
        }
    }

    /// Brings the metric of readiness up to date.
    pub fn report(&self, metrics: &Metrics) {
        metrics.ready(self.ready() == Verdict::Yes);
    }
}

/// RFC 3339, in UTC, to the second.
#[must_use]
pub fn timestamp(seconds: i64) -> Option<String> {
    jiff::Timestamp::from_second(seconds).ok().map(|at| at.to_string())
}
