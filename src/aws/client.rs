//! One HTTP client for every service, its time limits, and the interceptor that counts each call.

use std::{
    fmt,
    path::{Path, PathBuf},
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
use aws_smithy_http_client::{
    Connector,
    proxy::ProxyConfig,
    tls::{self, TlsContext, TrustStore},
};
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
use aws_types::{SdkConfig, region::Region};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use thiserror::Error;
use tokio::time::Instant;

use super::outcome;
use crate::{
    config::{Aws, Network},
    domain::snapshot::Reason,
    metrics::{CallOutcome, Metrics},
    small_file,
};

/// A clock that differs by more is corrected; by less, it is left to those who keep the machine's.
const FAR_MS: u64 = 4 * 60 * 1000;

/// More than twenty times what systems bring.
const MOST_CERTIFICATES: u64 = 8 * 1024 * 1024;

/// What the clients of all services share. Its `Debug` shows nothing: the HTTP client knows the proxy's password.
#[derive(Clone)]
pub struct Connection {
    config: SdkConfig,
    connector: SharedHttpConnector,
    call_timeout: Duration,
    metrics: Arc<Metrics>,
    interceptor: SharedInterceptor,
    clock: Clock,
}

/// The wall clock that requests are signed with: ours, moved by what AWS said its own shows.
#[derive(Debug, Clone)]
pub struct Clock {
    now: fn() -> SystemTime,
    ahead_ms: Arc<AtomicI64>,
}

/// A setting of the network that cannot be used.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// Certificates that cannot be read, or are none.
    #[error("failed to use the certificates of {} ({variable}): {what}; expected PEM", path.display())]
    Certificates {
        /// The variable that names them.
        variable: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A proxy whose URL cannot be one.
    #[error(
        "failed to use the proxy of the environment: expected the URL of a proxy, such as http://proxy.example.com:3128"
    )]
    Proxy,
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
    ///
    /// # Errors
    /// If certificates or a proxy of the environment cannot be used.
    pub fn new(
        aws: &Aws,
        call_timeout: Duration,
        now: fn() -> SystemTime,
        metrics: Arc<Metrics>,
    ) -> Result<Self, NetworkError> {
        let Aws { region, endpoints, network, .. } = aws;
        let clock = Clock { now, ahead_ms: Arc::new(AtomicI64::new(0)) };
        let connect_timeout = network.connect_timeout;
        let connector = connector(network)?;
        let shared = connector.clone();
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(region.clone()))
            .use_fips(endpoints.fips)
            .use_dual_stack(endpoints.dual_stack)
            .http_client(http_client_fn(move |_: &HttpConnectorSettings, _: &RuntimeComponents| shared.clone()))
            .sleep_impl(TokioSleep::new())
            .time_source(clock.clone())
            // The clock is moved already, once for all clients and for what expires; moved twice, it would be wrong again.
            .disable_clock_skew_correction(true)
            // One retry loop, ours: it knows the last good value, and reads only what failed.
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder().operation_timeout(call_timeout).connect_timeout(connect_timeout).build(),
            )
            // Answers are at most some hundred KiB, and the operation has a time limit.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        let interceptor = SharedInterceptor::new(Count { metrics: Arc::clone(&metrics), clock: clock.clone() });
        Ok(Self { config, connector, call_timeout, metrics, interceptor, clock })
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

    /// The HTTP client beneath all SDK clients.
    #[must_use]
    pub fn connector(&self) -> &SharedHttpConnector {
        &self.connector
    }

    /// The time limit of one call.
    #[must_use]
    pub fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    /// Where calls are counted.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The clock that requests are signed with.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}

fn connector(network: &Network) -> Result<SharedHttpConnector, NetworkError> {
    let Network { connect_timeout, proxy, no_proxy, .. } = network;
    let settings = HttpConnectorSettings::builder().connect_timeout(*connect_timeout).build();
    let proxy = match proxy {
        // For https alone: plain http is for endpoints of this machine, and stays there.
        Some(url) => {
            let proxy = ProxyConfig::https(url.expose()).map_err(|_| NetworkError::Proxy)?;
            if let Some(hosts) = no_proxy { proxy.no_proxy(hosts) } else { proxy }
        }
        None => ProxyConfig::disabled(),
    };
    let connector = Connector::builder()
        .connector_settings(settings)
        .sleep_impl(TokioSleep::new())
        .proxy_config(proxy)
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
        .tls_context(trust(network)?)
        .build();
    Ok(SharedHttpConnector::new(connector))
}

/// The certificates that are trusted. What is named is read here, since the SDK ends the process over a bad certificate; what
/// the system has, the TLS library reads.
fn trust(network: &Network) -> Result<TlsContext, NetworkError> {
    let Network { trusted, trusted_directory, ca_bundle, connect_timeout: _, proxy: _, no_proxy: _ } = network;
    let mut store = TrustStore::default();
    if trusted.is_some() || trusted_directory.is_some() {
        store = TrustStore::empty();
    }
    if let Some(path) = trusted {
        store = store.with_pem_certificate(certificates("SSL_CERT_FILE", path)?);
    }
    if let Some(path) = trusted_directory {
        store = store.with_pem_certificate(certificates_in("SSL_CERT_DIR", path)?);
    }
    if let Some(path) = ca_bundle {
        store = store.with_pem_certificate(certificates("AWS_CA_BUNDLE", path)?);
    }
    Ok(TlsContext::builder().with_trust_store(store).build().unwrap_or_default())
}

/// A file of certificates, each of which is one.
fn certificates(variable: &'static str, path: &Path) -> Result<Vec<u8>, NetworkError> {
    let wrong = |what| NetworkError::Certificates { variable, path: path.to_owned(), what };
    let pem = small_file::read(path, MOST_CERTIFICATES).map_err(wrong)?;
    check_certificates(&pem).map_err(|what| wrong(what.to_owned()))?;
    Ok(pem)
}

/// The certificates of all files in these directories, as OpenSSL keeps them; other files may be there too.
fn certificates_in(variable: &'static str, directories: &Path) -> Result<Vec<u8>, NetworkError> {
    let wrong = |what: String| NetworkError::Certificates { variable, path: directories.to_owned(), what };
    let mut all = Vec::new();
    for directory in std::env::split_paths(directories) {
        let entries = std::fs::read_dir(&directory).map_err(|error| wrong(error.kind().to_string()))?;
        for entry in entries.flatten() {
            let pem =
                small_file::read(&entry.path(), MOST_CERTIFICATES).ok().filter(|pem| check_certificates(pem).is_ok());
            all.extend(pem.unwrap_or_default());
            all.push(b'\n');
        }
    }
    check_certificates(&all).map_err(|what| wrong(what.to_owned()))?;
    Ok(all)
}

fn check_certificates(pem: &[u8]) -> Result<(), &'static str> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| "a block in it is not PEM")?;
        store.add(certificate).map_err(|_| "a block in it is not an X.509 certificate")?;
    }
    if store.is_empty() { Err("there is no certificate in it") } else { Ok(()) }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
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
