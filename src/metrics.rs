//! Every metric of keytide. The help text of each is its line in `docs/METRICS.md`; a test compares the two.

use std::time::Duration;

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::domain::{
    names::{ActionName, OutputName},
    snapshot::Reason,
    virtual_key::{Operation, RejectionReason},
};

/// The metrics of one daemon, in a registry of their own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    aws_requests: IntCounterVec,
    aws_request_duration: HistogramVec,
    refreshes: IntCounterVec,
    refresh_duration: Histogram,
    last_refresh_success: IntGauge,
    refresh_interval: IntGauge,
    holds: IntCounterVec,
    keys: IntGaugeVec,
    stale_keys: IntGaugeVec,
    key_changes: IntCounter,
    key_removals: IntCounter,
    output_keys: IntGaugeVec,
    output_writes: IntCounterVec,
    output_repairs: IntCounterVec,
    output_errors: IntCounterVec,
    output_last_write: IntGaugeVec,
    output_up: IntGaugeVec,
    state_errors: IntCounter,
    config_reloads: IntCounterVec,
    config_valid: IntGauge,
    credentials_expiry: IntGauge,
    web_identity_token_expiry: IntGauge,
    identity_refusals: IntCounter,
    ready: IntGauge,
    reloads: IntCounterVec,
    reload_pending: IntGaugeVec,
    reload_last_success: IntGaugeVec,
    spool_entries: IntGaugeVec,
    spool_oldest: IntGauge,
    spool_confirmed: IntCounterVec,
    spool_confirmation_duration: Histogram,
    spool_failed: IntCounterVec,
    spool_retries: IntCounterVec,
    spool_folded: IntCounter,
    spool_throttles: IntCounter,
    spool_rate: Gauge,
    spool_new_secrets: IntCounter,
    spool_busiest: IntGauge,
    spool_errors: IntCounter,
    kubernetes_requests: IntCounterVec,
    kubernetes_request_duration: HistogramVec,
    lease_held: IntGaugeVec,
    lease_transitions: IntCounterVec,
    output_contested: IntGaugeVec,
}

/// What there is in the spool.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpoolCounts {
    /// Entries that are not claimed yet.
    pub waiting: usize,
    /// Claims.
    pub claimed: usize,
    /// Failed entries.
    pub failed: usize,
    /// Files that cannot be read.
    pub unreadable: usize,
    /// Files that are no entries.
    pub ignored: usize,
    /// When the oldest claim was made, in seconds since the Unix epoch.
    pub oldest: Option<i64>,
    /// Writes a second that there may be.
    pub rate: f64,
    /// The most versions of one secret within a day.
    pub busiest: usize,
}

/// How one call to AWS ended, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    /// An answer.
    Ok,
    /// A problem of this kind.
    Failed(Reason),
}

/// How a refresh ended, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshOutcome {
    /// Everything was read and applied.
    Complete,
    /// Something could not be read, or is held.
    Incomplete,
}

/// How many keys are in which state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyCounts {
    /// Read by the last refresh.
    pub fresh: i64,
    /// With a last good value, by the reason why it is not fresh.
    pub stale: Vec<(Reason, i64)>,
    /// Without any value.
    pub missing: i64,
}

// === impl Metrics ===

impl Metrics {
    /// All metrics, at zero for every label that is known beforehand.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "a list: one entry for each metric")]
    pub fn new<'a>(outputs: impl Iterator<Item = &'a OutputName>) -> Self {
        let registry = Registry::new();
        let r = &registry;
        let info = gauges(r, "keytide_build_info", "1, with the version of keytide as a label.", &["version"]);
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            aws_requests: counters(
                r,
                "keytide_aws_requests_total",
                "Calls to AWS by service, operation and outcome.",
                &["service", "operation", "outcome"],
            ),
            aws_request_duration: register(
                r,
                HistogramVec::new(
                    HistogramOpts::new(
                        "keytide_aws_request_duration_seconds",
                        "Duration of calls to AWS, answered or not.",
                    )
                    .buckets(vec![0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]),
                    &["service", "operation"],
                ),
            ),
            refreshes: counters(
                r,
                "keytide_refreshes_total",
                "Refreshes by outcome: complete, or incomplete (something could not be read, or is held).",
                &["outcome"],
            ),
            refresh_duration: register(
                r,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "keytide_refresh_duration_seconds",
                        "Duration of refreshes, reading and writing.",
                    )
                    .buckets(vec![0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]),
                ),
            ),
            last_refresh_success: gauge(
                r,
                "keytide_last_complete_refresh_timestamp_seconds",
                "When the last complete refresh ended; 0 before the first.",
            ),
            refresh_interval: gauge(
                r,
                "keytide_refresh_interval_seconds",
                "The configured time from one refresh to the next; 0 while this process reads nothing.",
            ),
            holds: counters(
                r,
                "keytide_holds_total",
                "Readings of a secret that were not applied at once, by reason: step_back or removal.",
                &["reason"],
            ),
            keys: gauges(
                r,
                "keytide_keys",
                "Keys by state: fresh, stale (the last good value is kept) or missing (there never was one).",
                &["state"],
            ),
            stale_keys: gauges(r, "keytide_stale_keys", "Stale keys by reason.", &["reason"]),
            key_changes: counter(r, "keytide_key_changes_total", "Values that a refresh brought new or changed."),
            key_removals: counter(
                r,
                "keytide_key_removals_total",
                "Keys that were removed because their member is gone from the primary secret.",
            ),
            output_keys: gauges(
                r,
                "keytide_output_keys",
                "Keys by output and state: written, or unrepresentable (the output cannot carry the value or the name).",
                &["output", "state"],
            ),
            output_writes: counters(
                r,
                "keytide_output_writes_total",
                "Writes of changed content, by output.",
                &["output"],
            ),
            output_repairs: counters(
                r,
                "keytide_output_repairs_total",
                "Writes that put back what somebody changed or removed, by output.",
                &["output"],
            ),
            output_errors: counters(r, "keytide_output_errors_total", "Writes that failed, by output.", &["output"]),
            output_last_write: gauges(
                r,
                "keytide_output_last_write_timestamp_seconds",
                "When the output was last written; 0 if not by this process.",
                &["output"],
            ),
            output_up: gauges(
                r,
                "keytide_output_up",
                "1 if the output holds what it shall hold, or another process holds its Lease; 0 if the last write failed or none happened yet.",
                &["output"],
            ),
            state_errors: counter(
                r,
                "keytide_state_errors_total",
                "Failures to keep or to recover the last good snapshot.",
            ),
            config_reloads: counters(
                r,
                "keytide_config_reloads_total",
                "Changes of the configuration files by outcome: accepted or refused.",
                &["outcome"],
            ),
            config_valid: gauge(
                r,
                "keytide_config_valid",
                "1 if the configuration files on disk are valid, 0 if an older configuration is in use because they are not.",
            ),
            credentials_expiry: gauge(
                r,
                "keytide_credentials_expiry_timestamp_seconds",
                "When the credentials in use end; 0 if they do not, or there are none.",
            ),
            web_identity_token_expiry: gauge(
                r,
                "keytide_web_identity_token_expiry_timestamp_seconds",
                "When the web identity token that was last exchanged ends; 0 if it does not say, or none was.",
            ),
            identity_refusals: counter(
                r,
                "keytide_identity_refusals_total",
                "Credentials that were not used, since they are somebody's whom expect_role does not expect.",
            ),
            ready: gauge(r, "keytide_ready", "1 if /readyz answers 200."),
            reloads: counters(
                r,
                "keytide_reloads_total",
                "Attempts to tell a consumer of a change, by reload action and result: ok or failed.",
                &["action", "result"],
            ),
            reload_pending: gauges(
                r,
                "keytide_reload_pending",
                "1 while there is a change that the consumer of the reload action was not told of.",
                &["action"],
            ),
            reload_last_success: gauges(
                r,
                "keytide_reload_last_success_timestamp_seconds",
                "When the reload action last succeeded; 0 if not by this process.",
                &["action"],
            ),
            spool_entries: gauges(
                r,
                "keytide_spool_entries",
                "Entries of the spool by state: waiting (not yet taken), claimed, failed, unreadable (keytide may not read the file), or ignored (no entry by its name).",
                &["state"],
            ),
            spool_oldest: gauge(
                r,
                "keytide_spool_oldest_claim_timestamp_seconds",
                "When the oldest claim that is not confirmed was made; 0 if there is none.",
            ),
            spool_confirmed: counters(
                r,
                "keytide_spool_confirmed_total",
                "Entries that AWS confirmed, by operation.",
                &["operation"],
            ),
            spool_confirmation_duration: register(
                r,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "keytide_spool_confirmation_duration_seconds",
                        "Time from the drop of an entry to AWS's confirmation.",
                    )
                    .buckets(vec![0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0]),
                ),
            ),
            spool_failed: counters(
                r,
                "keytide_spool_failed_total",
                "Entries that can never succeed, by operation (unknown if the entry was not understood) and reason.",
                &["operation", "reason"],
            ),
            spool_retries: counters(
                r,
                "keytide_spool_retries_total",
                "Attempts after which an entry is tried again, by operation and reason.",
                &["operation", "reason"],
            ),
            spool_folded: counter(
                r,
                "keytide_spool_folded_total",
                "Entries that were not sent, since a later one set the value of the same secret.",
            ),
            spool_throttles: counter(r, "keytide_spool_throttles_total", "Writes that AWS throttled."),
            spool_rate: register(
                r,
                Gauge::new(
                    "keytide_spool_write_rate",
                    "Calls a second that may write just now: the configured rate, or what AWS's throttling leaves of it.",
                ),
            ),
            spool_new_secrets: counter(r, "keytide_spool_new_secrets_total", "Secrets that entries made."),
            spool_busiest: gauge(
                r,
                "keytide_spool_busiest_secret_versions",
                "The most versions that one secret got within the last day; AWS refuses more than about 100.",
            ),
            spool_errors: counter(
                r,
                "keytide_spool_errors_total",
                "Looks at the spool, or reads of an entry, that the file system failed.",
            ),
            kubernetes_requests: counters(
                r,
                "keytide_kubernetes_requests_total",
                "Calls to the Kubernetes API server by verb, resource and outcome.",
                &["verb", "resource", "outcome"],
            ),
            kubernetes_request_duration: register(
                r,
                HistogramVec::new(
                    HistogramOpts::new(
                        "keytide_kubernetes_request_duration_seconds",
                        "Duration of calls to the Kubernetes API server, answered or not; of a watch until it is open.",
                    )
                    .buckets(vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]),
                    &["verb", "resource"],
                ),
            ),
            lease_held: gauges(
                r,
                "keytide_lease_held",
                "1 while this process holds the Lease of an output, and so reads and writes for it.",
                &["output"],
            ),
            lease_transitions: counters(
                r,
                "keytide_lease_transitions_total",
                "How often this process got or lost the Lease of an output.",
                &["output"],
            ),
            output_contested: gauges(
                r,
                "keytide_output_contested",
                "1 while somebody changes an output again and again, and repairs come at a growing distance.",
                &["output"],
            ),
            registry,
        };
        metrics.config_valid.set(1);
        for outcome in ["complete", "incomplete"] {
            metrics.refreshes.with_label_values(&[outcome]);
        }
        for reason in [Reason::StepBack, Reason::Removal] {
            metrics.holds.with_label_values(&[reason.label()]);
        }
        for operation in Operation::ALL {
            metrics.spool_confirmed.with_label_values(&[operation.label()]);
        }
        for reason in RejectionReason::ALL {
            metrics.spool_failed.with_label_values(&["unknown", reason.label()]);
        }
        metrics.spool_retries.with_label_values(&[Operation::Create.label(), Reason::Unavailable.label()]);
        metrics.spool(&SpoolCounts::default());
        for outcome in ["accepted", "refused"] {
            metrics.config_reloads.with_label_values(&[outcome]);
        }
        metrics.set_keys(&KeyCounts::default());
        for output in outputs.map(OutputName::as_str) {
            for counter in [&metrics.output_writes, &metrics.output_repairs, &metrics.output_errors] {
                counter.with_label_values(&[output]);
            }
            metrics.output_last_write.with_label_values(&[output]);
            metrics.output_up.with_label_values(&[output]);
            for state in ["written", "unrepresentable"] {
                metrics.output_keys.with_label_values(&[output, state]);
            }
        }
        metrics
    }

    /// Begins a reload action at zero.
    pub fn reload_begins(&self, action: &ActionName) {
        for result in ["ok", "failed"] {
            self.reloads.with_label_values(&[action.as_str(), result]);
        }
        self.reload_pending.with_label_values(&[action.as_str()]);
        self.reload_last_success.with_label_values(&[action.as_str()]);
    }

    /// The exposition in the text format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        // Writing to memory does not fail.
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// One call to AWS ended.
    pub fn aws_request(&self, service: &str, operation: &str, outcome: CallOutcome, seconds: f64) {
        let outcome = match outcome {
            CallOutcome::Ok => "ok",
            CallOutcome::Failed(reason) => reason.label(),
        };
        self.aws_requests.with_label_values(&[service, operation, outcome]).inc();
        self.aws_request_duration.with_label_values(&[service, operation]).observe(seconds);
    }

    /// One refresh ended; `at` is the wall clock in seconds.
    pub fn refresh(&self, outcome: RefreshOutcome, seconds: f64, at: i64) {
        let label = match outcome {
            RefreshOutcome::Complete => {
                self.last_refresh_success.set(at);
                "complete"
            }
            RefreshOutcome::Incomplete => "incomplete",
        };
        self.refreshes.with_label_values(&[label]).inc();
        self.refresh_duration.observe(seconds);
    }

    /// How often AWS is read; none if it is not.
    pub fn refresh_interval(&self, interval: Option<Duration>) {
        let seconds = interval.map_or(0, |interval| i64::try_from(interval.as_secs()).unwrap_or(i64::MAX));
        self.refresh_interval.set(seconds);
    }

    /// A reading was held.
    pub fn held(&self, reason: Reason) {
        self.holds.with_label_values(&[reason.label()]).inc();
    }

    /// So many values changed, so many keys were removed.
    pub fn changes(&self, changed: usize, removed: usize) {
        self.key_changes.inc_by(u64::try_from(changed).unwrap_or(u64::MAX));
        self.key_removals.inc_by(u64::try_from(removed).unwrap_or(u64::MAX));
    }

    /// The states of all keys.
    pub fn set_keys(&self, counts: &KeyCounts) {
        let KeyCounts { fresh, stale, missing } = counts;
        self.keys.with_label_values(&["fresh"]).set(*fresh);
        self.keys.with_label_values(&["stale"]).set(stale.iter().map(|(_, count)| count).sum());
        self.keys.with_label_values(&["missing"]).set(*missing);
        for reason in Reason::ALL {
            let count = stale.iter().filter(|(stale, _)| *stale == reason).map(|(_, count)| count).sum();
            self.stale_keys.with_label_values(&[reason.label()]).set(count);
        }
    }

    /// An output was written: because of a change, or to put back what somebody changed.
    pub fn output_written(&self, output: &OutputName, repair: bool, at: i64) {
        let counter = if repair { &self.output_repairs } else { &self.output_writes };
        counter.with_label_values(&[output.as_str()]).inc();
        self.output_last_write.with_label_values(&[output.as_str()]).set(at);
    }

    /// An output holds what it shall hold, or failed to.
    pub fn output_up(&self, output: &OutputName, up: bool) {
        if !up {
            self.output_errors.with_label_values(&[output.as_str()]).inc();
        }
        self.output_up.with_label_values(&[output.as_str()]).set(i64::from(up));
    }

    /// How many keys an output carries, and how many it cannot.
    pub fn output_keys(&self, output: &OutputName, written: usize, unrepresentable: usize) {
        for (state, count) in [("written", written), ("unrepresentable", unrepresentable)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.output_keys.with_label_values(&[output.as_str(), state]).set(count);
        }
    }

    /// The last good snapshot could not be kept or recovered.
    pub fn state_error(&self) {
        self.state_errors.inc();
    }

    /// A changed configuration was accepted or refused.
    pub fn config_reload(&self, accepted: bool) {
        self.config_reloads.with_label_values(&[if accepted { "accepted" } else { "refused" }]).inc();
        self.config_valid.set(i64::from(accepted));
    }

    /// The files are again those of the configuration in use.
    pub fn config_restored(&self) {
        self.config_valid.set(1);
    }

    /// When the credentials end, in seconds since the Unix epoch.
    pub fn credentials_expiry(&self, at: Option<i64>) {
        self.credentials_expiry.set(at.unwrap_or(0));
    }

    /// When the web-identity token ends, in seconds since the Unix epoch.
    pub fn web_identity_token_expiry(&self, at: Option<i64>) {
        self.web_identity_token_expiry.set(at.unwrap_or(0));
    }

    /// Credentials turned out to be somebody else's.
    pub fn identity_refused(&self) {
        self.identity_refusals.inc();
    }

    /// An attempt of a reload action ended: well, at this time in seconds, or not.
    pub fn reload(&self, action: &ActionName, succeeded_at: Option<i64>) {
        let result = if succeeded_at.is_some() { "ok" } else { "failed" };
        self.reloads.with_label_values(&[action.as_str(), result]).inc();
        if let Some(at) = succeeded_at {
            self.reload_last_success.with_label_values(&[action.as_str()]).set(at);
        }
    }

    /// Whether there is a change that a consumer was not told of.
    pub fn reload_pending(&self, action: &ActionName, pending: bool) {
        self.reload_pending.with_label_values(&[action.as_str()]).set(i64::from(pending));
    }

    /// What there is in the spool.
    pub fn spool(&self, counts: &SpoolCounts) {
        let SpoolCounts { waiting, claimed, failed, unreadable, ignored, oldest, rate, busiest } = counts;
        let states = [
            ("waiting", waiting),
            ("claimed", claimed),
            ("failed", failed),
            ("unreadable", unreadable),
            ("ignored", ignored),
        ];
        for (state, count) in states {
            self.spool_entries.with_label_values(&[state]).set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
        self.spool_oldest.set(oldest.unwrap_or(0));
        self.spool_rate.set(*rate);
        self.spool_busiest.set(i64::try_from(*busiest).unwrap_or(i64::MAX));
    }

    /// AWS confirmed an entry, so many seconds after it was dropped.
    pub fn spool_confirmed(&self, operation: Operation, seconds: f64) {
        self.spool_confirmed.with_label_values(&[operation.label()]).inc();
        self.spool_confirmation_duration.observe(seconds);
    }

    /// An entry can never succeed.
    pub fn spool_failed(&self, operation: Option<Operation>, reason: RejectionReason) {
        let operation = operation.map_or("unknown", Operation::label);
        self.spool_failed.with_label_values(&[operation, reason.label()]).inc();
    }

    /// An entry is tried again. `reason` is of a closed set.
    pub fn spool_retry(&self, operation: Operation, reason: &'static str) {
        self.spool_retries.with_label_values(&[operation.label(), reason]).inc();
    }

    /// An entry was folded into a later one.
    pub fn spool_folded(&self) {
        self.spool_folded.inc();
    }

    /// AWS throttled a write.
    pub fn spool_throttled(&self) {
        self.spool_throttles.inc();
    }

    /// There is a secret more.
    pub fn spool_new_secret(&self) {
        self.spool_new_secrets.inc();
    }

    /// The file system failed.
    pub fn spool_error(&self) {
        self.spool_errors.inc();
    }

    /// There is an output in Kubernetes.
    pub fn kubernetes_output(&self, output: &OutputName) {
        let output = &[output.as_str()];
        self.lease_held.with_label_values(output);
        self.lease_transitions.with_label_values(output);
        self.output_contested.with_label_values(output);
    }

    /// One call to the API server ended. All three words are of closed sets.
    pub fn kubernetes_request(&self, verb: &str, resource: &str, outcome: &str, seconds: f64) {
        self.kubernetes_requests.with_label_values(&[verb, resource, outcome]).inc();
        self.kubernetes_request_duration.with_label_values(&[verb, resource]).observe(seconds);
    }

    /// The Lease of an output was got or lost.
    pub fn lease(&self, output: &OutputName, held: bool) {
        self.lease_held.with_label_values(&[output.as_str()]).set(i64::from(held));
        self.lease_transitions.with_label_values(&[output.as_str()]).inc();
    }

    /// Whether somebody fights for an output.
    pub fn output_contested(&self, output: &OutputName, contested: bool) {
        self.output_contested.with_label_values(&[output.as_str()]).set(i64::from(contested));
    }

    /// Whether `/readyz` would answer 200.
    pub fn ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }
}

fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("the names of metrics are constants that a test has seen");
    registry.register(Box::new(metric.clone())).expect("each metric is registered once");
    metric
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(name, help))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}
