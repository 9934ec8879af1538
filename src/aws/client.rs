//! One HTTP client for every service, its time limits, and the interceptor that counts each call.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_smithy_async::{
    rt::sleep::TokioSleep,
    time::{SharedTimeSource, TimeSource},
};
use aws_smithy_http_client::{Connector, proxy::ProxyConfig, tls};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        behavior_version::BehaviorVersion,
        http::{HttpConnectorSettings, SharedHttpConnector, http_client_fn},
        interceptors::{
            Intercept, SharedInterceptor,
            context::{BeforeSerializationInterceptorContextRef, FinalizerInterceptorContextRef},
        },
        orchestrator::Metadata,
        runtime_components::RuntimeComponents,
        stalled_stream_protection::StalledStreamProtectionConfig,
    },
};
use aws_smithy_types::{
    config_bag::{ConfigBag, Storable, StoreReplace},
    date_time::Format,
    retry::RetryConfig,
    timeout::TimeoutConfig,
};
use aws_types::{SdkConfig, region::Region, sdk_config::SharedHttpClient};
use tokio::time::Instant;

use super::outcome;
use crate::{
    domain::snapshot::Reason,
    metrics::{CallOutcome, Metrics},
};

/// How long a connection may take; the SDK's own default since 2026.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(3100);

/// A clock that differs by more is corrected; by less, it is left to those who keep the machine's.
const FAR_MS: u64 = 4 * 60 * 1000;

/// What the clients of all services share.
#[derive(Debug, Clone)]
pub struct Connection {
    config: SdkConfig,
    interceptor: SharedInterceptor,
    clock: Clock,
}

/// The wall clock that requests are signed with: ours, moved by what AWS said its own shows.
#[derive(Debug, Clone)]
pub struct Clock {
    now: fn() -> SystemTime,
    ahead_ms: Arc<AtomicI64>,
}

#[derive(Debug)]
struct Count {
    metrics: Arc<Metrics>,
    clock: Clock,
}

struct Started(Instant);

// === impl Connection ===

impl Connection {
    /// Builds the HTTP client. No connection is made yet.
    #[must_use]
    pub fn new(region: &str, call_timeout: Duration, now: fn() -> SystemTime, metrics: Arc<Metrics>) -> Self {
        let clock = Clock { now, ahead_ms: Arc::new(AtomicI64::new(0)) };
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(region.to_owned()))
            .http_client(http_client())
            .sleep_impl(TokioSleep::new())
            .time_source(clock.clone())
            // One retry loop, ours: it knows the last good value, and reads only what failed.
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder().operation_timeout(call_timeout).connect_timeout(CONNECT_TIMEOUT).build(),
            )
            // Answers are at most some hundred KiB, and the operation has a time limit.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        let interceptor = SharedInterceptor::new(Count { metrics, clock: clock.clone() });
        Self { config, interceptor, clock }
    }

    /// The settings that a service's own configuration begins with; without credentials.
    #[must_use]
    pub fn config(&self) -> &SdkConfig {
        &self.config
    }

    /// The interceptor that each service's configuration adds.
    #[must_use]
    pub fn interceptor(&self) -> SharedInterceptor {
        self.interceptor.clone()
    }

    /// The clock that requests are signed with.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}

fn http_client() -> SharedHttpClient {
    let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT).build();
    let connector = Connector::builder()
        .connector_settings(settings)
        .sleep_impl(TokioSleep::new())
        .proxy_config(ProxyConfig::from_env())
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
        .build();
    let connector = SharedHttpConnector::new(connector);
    http_client_fn(move |_: &HttpConnectorSettings, _: &RuntimeComponents| connector.clone())
}

// === impl Clock ===

impl Clock {
    /// The time by AWS's clock, as far as it is known.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        let ahead = self.ahead_ms.load(Ordering::Relaxed);
        let by = Duration::from_millis(ahead.unsigned_abs());
        let now = (self.now)();
        if ahead < 0 { now.checked_sub(by) } else { now.checked_add(by) }.unwrap_or(now)
    }

    /// Takes AWS's word for the time where ours is far from it: the `Date` header of an answer, whatever else it says (RFC
    /// 9110, 6.6.1). AWS refuses a signature whose time is five minutes off.
    fn follow(&self, date: &str) {
        let Ok(theirs) = aws_smithy_types::DateTime::from_str(date, Format::HttpDate) else { return };
        let Ok(ours) = (self.now)().duration_since(SystemTime::UNIX_EPOCH) else { return };
        let (Ok(theirs), Ok(ours)) = (theirs.to_millis(), i64::try_from(ours.as_millis())) else { return };
        let ahead = theirs.saturating_sub(ours);
        if ahead.saturating_sub(self.ahead_ms.load(Ordering::Relaxed)).unsigned_abs() > FAR_MS {
            self.ahead_ms.store(ahead, Ordering::Relaxed);
        }
    }
}

impl TimeSource for Clock {
    fn now(&self) -> SystemTime {
        Self::now(self)
    }
}

impl From<Clock> for SharedTimeSource {
    fn from(clock: Clock) -> Self {
        Self::new(clock)
    }
}

// === impl Count ===

impl Intercept for Count {
    fn name(&self) -> &'static str {
        "keytide"
    }

    fn read_before_execution(
        &self,
        _: &BeforeSerializationInterceptorContextRef<'_>,
        bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        bag.interceptor_state().store_put(Started(Instant::now()));
        Ok(())
    }

    fn read_after_execution(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let outcome = match context.output_or_error() {
            Some(Ok(_)) => CallOutcome::Ok,
            Some(Err(error)) => CallOutcome::Failed(outcome::reason_in_flight(error)),
            None => CallOutcome::Failed(Reason::Unavailable),
        };
        if let Some(date) = context.response().and_then(|response| response.headers().get("date")) {
            self.clock.follow(date);
        }
        let seconds = bag.load::<Started>().map_or(0.0, |started| started.0.elapsed().as_secs_f64());
        let (service, operation) = bag.load::<Metadata>().map_or(("", ""), |call| (call.service(), call.name()));
        self.metrics.aws_request(service, operation, outcome, seconds);
        Ok(())
    }
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Started")
    }
}

impl Storable for Started {
    type Storer = StoreReplace<Self>;
}
