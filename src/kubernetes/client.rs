//! One client for every call to the API server: where it is, who keytide is there, time limits, and what is counted.

use std::{
    fmt,
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hyper::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use kube::{Api, Client, Config};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};

use super::{
    kubeconfig,
    outcome::{self, Subject, Trouble, TroubleKind, Verb},
};
use crate::{
    config::{ClusterAccess, Network},
    metrics::Metrics,
};

/// Time limit of a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Time limit of a call, unless it says otherwise.
pub const CALL: Duration = Duration::from_secs(10);
/// Time limit of a kubeconfig's program that gives a token.
const PROGRAM: Duration = Duration::from_secs(30);
/// Credentials that were refused are read again at most so often.
const AGAIN: Duration = Duration::from_secs(3);
/// The field manager of all that keytide applies.
pub const MANAGER: &str = "keytide";

/// The API server, as keytide reaches it. Its `Debug` shows nothing: the client knows a token.
#[derive(Clone)]
pub struct Cluster {
    config: Arc<Config>,
    link: Arc<Mutex<Link>>,
    namespace: String,
    metrics: Arc<Metrics>,
    overrides: Vec<String>,
}

/// A client with the credentials that there were when it was made.
struct Link {
    client: Client,
    made: Instant,
}

/// Why there is no cluster.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// Nothing says where the API server is.
    #[error(
        "no Kubernetes: keytide runs in no pod with a service account's token (KUBERNETES_SERVICE_HOST, \
         automountServiceAccountToken), and neither KUBECONFIG nor --kubeconfig names a kubeconfig"
    )]
    Nowhere,
    /// The pod's own files cannot be used.
    #[error(
        "failed to use the service account of the pod: {0}; expected token, ca.crt and namespace in \
         /var/run/secrets/kubernetes.io/serviceaccount (automountServiceAccountToken: true)"
    )]
    Pod(&'static str),
    /// A kubeconfig that cannot be used.
    #[error("failed to use the kubeconfig {}: {what}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// A kubeconfig that wants a program run.
    #[error(
        "the kubeconfig {} gets its credentials from a program, which keytide runs only if --kubeconfig names the file",
        .0.display()
    )]
    Program(PathBuf),
    /// Values would be readable on the way.
    #[error("the API server of the kubeconfig {} is called by plain http, which is refused but for this machine", .0.display())]
    Plain(PathBuf),
    /// Certificates, a token or a proxy that cannot be used.
    #[error("failed to prepare the connection to the Kubernetes API server: {0}")]
    Connection(&'static str),
}

// === impl Cluster ===

impl Cluster {
    /// Finds the API server: `--kubeconfig`, `KUBECONFIG`, or the pod's service account. Nothing is asked yet.
    ///
    /// # Errors
    /// If there is none, or what is there cannot be used.
    pub async fn connect(
        access: &ClusterAccess,
        network: &Network,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ClusterError> {
        let mut overrides = Vec::new();
        let mut config = match access {
            ClusterAccess::Kubeconfig { files, run_programs } => {
                let path = files.first().cloned().unwrap_or_default();
                let config = kubeconfig::load(files, *run_programs, &path, network).await?;
                overrides.push(format!("Kubernetes is reached as the kubeconfig {} says", path.display()));
                if config.accept_invalid_certs {
                    let insecure = "the kubeconfig turns off the check of the API server's certificate";
                    overrides.push(insecure.to_owned());
                }
                config
            }
            ClusterAccess::Pod => from_pod(network)?,
            ClusterAccess::None => return Err(ClusterError::Nowhere),
        };
        config.connect_timeout = Some(CONNECT);
        config.write_timeout = Some(CALL);
        // One retry loop, ours; and a watch is quiet for as long as nothing happens.
        config.read_timeout = None;
        config.default_retry = false;
        if let Some(host) = config.proxy_url.as_ref().and_then(Uri::host) {
            overrides.push(format!("Kubernetes is reached through the proxy {host}"));
        }
        let namespace = config.default_namespace.clone();
        let link = Link::new(&config).await?;
        Ok(Self { config: Arc::new(config), link: Arc::new(Mutex::new(link)), namespace, metrics, overrides })
    }

    /// The namespace that keytide works in: its pod's, or that of the kubeconfig's context.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What is not the pod's own service account, in sentences.
    #[must_use]
    pub fn overrides(&self) -> &[String] {
        &self.overrides
    }

    pub(super) fn client(&self) -> Client {
        self.link().client.clone()
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        // Nothing panics while it is held.
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token was refused: perhaps there is a new one, which kube would read within a minute only.
    async fn read_credentials_again(&self) {
        {
            let mut link = self.link();
            if link.made.elapsed() < AGAIN {
                return;
            }
            // Of several calls that are refused one is enough.
            link.made = Instant::now();
        }
        match Link::new(&self.config).await {
            Ok(link) => *self.link() = link,
            Err(error) => tracing::debug!("{error}"),
        }
    }

    /// The object of a subject; none: there is no such object.
    pub(super) async fn look<K: Clone + DeserializeOwned + fmt::Debug>(
        &self,
        api: &Api<K>,
        subject: &Subject,
        limit: Duration,
    ) -> Result<Option<K>, Trouble> {
        match self.call(Verb::Get, subject, limit, api.get(&subject.name)).await {
            Ok(object) => Ok(Some(object)),
            Err(trouble) if trouble.kind == TroubleKind::Absent => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// One call, with a time limit; counted.
    pub(super) async fn call<T>(
        &self,
        verb: Verb,
        subject: &Subject,
        limit: Duration,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Trouble> {
        let began = Instant::now();
        let result = match timeout(limit, call).await {
            Ok(result) => result.map_err(|error| outcome::trouble(&error, verb, subject, &self.namespace)),
            Err(_) => Err(Trouble::new(
                TroubleKind::Unavailable,
                format!("failed to {verb} {subject}: no answer within {limit:?}"),
            )),
        };
        if result.as_ref().is_err_and(|trouble| trouble.kind == TroubleKind::Identity) {
            self.read_credentials_again().await;
        }
        let outcome = result.as_ref().map_or_else(|trouble| trouble.kind.label(), |_| "ok");
        self.metrics.kubernetes_request(verb.label(), subject.resource, outcome, began.elapsed().as_secs_f64());
        result
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

// === impl Link ===

impl Link {
    /// Reads the token, or runs the program that gives one, which may block.
    async fn new(config: &Config) -> Result<Self, ClusterError> {
        let config = config.clone();
        let made = spawn_blocking(|| Client::try_from(config).map_err(|error| outcome::about(&error)));
        let made = match timeout(PROGRAM, made).await {
            Ok(made) => made.unwrap_or(Err("the token cannot be used")),
            Err(_) => Err("the program that gives the token does not end"),
        };
        let client = made.map_err(ClusterError::Connection)?;
        Ok(Self { client, made: Instant::now() })
    }
}

fn from_pod(network: &Network) -> Result<Config, ClusterError> {
    let mut config = Config::incluster().map_err(|error| ClusterError::Pod(outcome::about_pod(&error)))?;
    config.proxy_url = proxy_of(network, &config.cluster_url)?;
    Ok(config)
}

/// The proxy of the environment, where it does not leave the API server out: as `kubectl` does.
pub(super) fn proxy_of(network: &Network, server: &Uri) -> Result<Option<Uri>, ClusterError> {
    let Some(proxy) = &network.proxy else { return Ok(None) };
    let no_proxy = network.no_proxy.as_deref().unwrap_or_default();
    let matcher = Matcher::builder().https(proxy.expose()).no(no_proxy).build();
    if matcher.intercept(server).is_none() {
        return Ok(None);
    }
    let url = proxy.expose().parse();
    url.map(Some).map_err(|_| ClusterError::Connection("the URL of the proxy is none"))
}
