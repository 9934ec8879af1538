//! From a configuration to a running daemon: the only place that wires. Everything that can fail at the start has
//! succeeded before anything runs.

mod tasks;

use std::{
    collections::BTreeSet,
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Notify, mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use self::tasks::{all_once, start_doors, start_ways, telling};
use crate::{
    aws::{auth::Auth, client::Connection},
    config::{self, ClusterAccess, Config, Credentials, Environment, Identity, OutputKind, Sources, VirtualKeys},
    domain::reload::Contents,
    health::{ConfigStatus, Health, IdentityStatus, RefreshStatus, SpoolStatus, Status},
    http,
    kubernetes::{client::Cluster, events::Journal, lease::LeaseObject, secret::SecretObject},
    metrics::Metrics,
    output::Output,
    plan::{
        fan_out::{Ledger, Mapping},
        lease::Lease,
        rate::{NewSecrets, Rate},
        schedule::Schedule,
    },
    publish::Publish,
    pull::{Mailbox, Pull, Reader, Wanted},
    push::{Push, Signals, Stores},
    reload::{Reloads, Surroundings},
    source::Source,
    spool::Spool,
    state::{self, Recovered, State},
    store::Store,
    supervisor::{Ending, Supervisor},
    watch::{Drops, Watch},
};

/// So many people may wait for a refresh at once.
const WAITING: usize = 16;

/// What the world provides.
#[derive(Debug, Clone)]
pub struct World {
    /// The wall clock.
    pub now: fn() -> SystemTime,
    /// True in a pod, where the mount is the boundary of a file.
    pub in_pod: bool,
    /// Where Kubernetes is, for the outputs that need it.
    pub cluster: ClusterAccess,
    /// The name of the pod or the machine, for Leases and Events.
    pub instance: String,
    /// The files that the configuration came from, with the environment: looked at again when they change.
    pub origin: Option<(Sources, Environment)>,
    /// With a time limit: one complete refresh and a drained spool, then done. No door is opened.
    pub once: Option<Duration>,
    /// Woken by SIGHUP: a refresh at once.
    pub hangup: Arc<Notify>,
    /// Leaves a message where people look for the reason of an end.
    pub last_words: fn(&str),
    /// The source of delays' randomness.
    pub random: fastrand::Rng,
}

/// A daemon that is built and does not run yet: directories are open, sockets are bound.
#[derive(Debug)]
pub struct Daemon {
    pull: Pull,
    push: Option<Push>,
    publish: Vec<Publish>,
    asking: (mpsc::Sender<Wanted>, mpsc::Receiver<Wanted>),
    reloads: Option<Reloads>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    port: Option<TcpListener>,
    admin: Option<(UnixListener, PathBuf)>,
    directories: Vec<PathBuf>,
    origin: Option<(Sources, Environment)>,
    hangup: Arc<Notify>,
    last_words: fn(&str),
}

// === impl Daemon ===

impl Daemon {
    /// Builds everything.
    ///
    /// # Errors
    /// If a directory, a socket or the identity cannot be used, with what to do.
    pub async fn build(config: Config, world: World) -> anyhow::Result<Self> {
        let Config { aws, keys, wholesale, refresh, outputs, state, http, admin, virtual_keys, reload, notices: _ } =
            config;
        let World { now, in_pod, origin, cluster, instance, once, hangup, last_words, mut random } = world;
        let mapping = Mapping::new(keys, wholesale);
        let reads = !mapping.requests().is_empty();
        let directories = directories_of_outputs(&outputs);
        let metrics = Arc::new(Metrics::new(outputs.iter().map(|output| &output.name)));
        let configured = if reads { outputs } else { Vec::new() };
        let mut outputs = Vec::new();
        for output in &configured {
            outputs.extend(Output::open(output, in_pod)?);
        }
        let cluster = cluster_of(&configured, &cluster, &aws, &metrics).await?;
        let tells = reads && once.is_none() && !reload.is_empty();
        let reloads = tells.then(|| Reloads::open(reload, cluster.as_ref(), in_pod, &mut random)).transpose()?;
        let identity = described(&aws, &aws.reader);
        let writer_status = aws.writer.as_ref().map(|writer| described(&aws, writer));
        // Before anybody is asked: a spool that cannot be used ends the start.
        let spool = virtual_keys.as_ref().map(|keys| open_spool(keys, &random)).transpose()?;
        let (source, stores) = if reads || virtual_keys.is_some() {
            let connection = Connection::new(&aws, refresh.call_timeout, now, Arc::clone(&metrics))?;
            both_ways(aws, &connection, reads, virtual_keys.as_ref())?
        } else {
            (None, None)
        };
        let state = state.filter(|_| reads).map(|state| State::open(&state.directory, state.allow_disk)).transpose()?;
        let recovered = recover(state.as_ref(), &metrics);
        remember(&mut outputs, recovered.kept);
        let ledger = Ledger::recovered(&mapping, recovered.good, recovered.applied);
        let status = Status {
            identity,
            refresh: RefreshStatus { interval_seconds: refresh.interval.as_secs(), ..RefreshStatus::default() },
            config: ConfigStatus { files: files_of(origin.as_ref()), refused: None },
            spool: spool.as_ref().map(|spool| spool_status(spool, writer_status)),
            ..Status::at_start(now())
        };
        let health = Arc::new(Health::new(status, refresh.max_stale, waited_for(&configured, outputs.is_empty())));
        let (port, admin) = doors(http.filter(|_| once.is_none()), admin.filter(|_| once.is_none())).await?;
        let push = virtual_keys.zip(spool).zip(stores).map(|((keys, spool), stores)| Push {
            spool,
            stores,
            max_entries: keys.spool.max_entries,
            rate: Rate::new(keys.rate),
            new_secrets: NewSecrets::new(keys.max_new_secrets_per_hour),
            in_memory: !keys.spool.allow_disk,
            rules: keys.rules,
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
            now,
            random: random.clone(),
            once,
        });
        // What is written to files is always read for.
        let demand = Arc::new(watch::Sender::new(usize::from(configured.is_empty() || !outputs.is_empty())));
        let contents = watch::Sender::new(Contents::at_start());
        let publishing = Publishing {
            cluster,
            contents: contents.clone(),
            identity: identity_of(&instance, &random),
            demand: Arc::clone(&demand),
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
            now,
            random: random.clone(),
        };
        let (wanted, asked) = mpsc::channel::<Wanted>(WAITING);
        let (mailboxes, publish) = publishing.of(&configured, &wanted);
        let schedule = Schedule::new(refresh.interval, refresh.jitter, random);
        let pull = Pull {
            mailboxes,
            demand: demand.subscribe(),
            mapping,
            source,
            ledger,
            outputs,
            state,
            refresh,
            schedule,
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
            contents,
            now,
            once,
        };
        let asking = (wanted, asked);
        Ok(Self {
            pull,
            push,
            publish,
            asking,
            reloads,
            health,
            metrics,
            port,
            admin,
            directories,
            origin,
            hangup,
            last_words,
        })
    }

    /// The address of the port, where there is one.
    #[must_use]
    pub fn port(&self) -> Option<SocketAddr> {
        self.port.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// What the daemon reports.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Runs until `shutdown`, or until there is nothing more to do.
    ///
    /// # Errors
    /// If the first refresh is not complete in time, or something breaks.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<Ending> {
        let Self {
            pull,
            push,
            publish,
            asking,
            reloads,
            health,
            metrics,
            port,
            admin,
            mut directories,
            origin,
            hangup,
            last_words,
        } = self;
        let stop = CancellationToken::new();
        let leaving = CancellationToken::new();
        let mut supervisor = Supervisor::new(stop.clone());
        let (ask, wanted) = asking;
        let hints = Arc::new(Notify::new());
        let changed = Arc::new(Notify::new());
        let once = pull.once.is_some();
        if let Some(address) = port.as_ref().and_then(|listener| listener.local_addr().ok()) {
            tracing::info!("metrics and probes on http://{address}");
        }
        let drops = match &push {
            Some(push) => Drops {
                directories: vec![push.spool.path().to_owned(), push.spool.retry_path().to_owned()],
                hints: Arc::new(Notify::new()),
                hinted: Arc::new(AtomicBool::new(push.spool.gives_events())),
            },
            None => Drops::default(),
        };
        let signals = Signals {
            stop: stop.clone(),
            leaving: leaving.clone(),
            hints: Arc::clone(&drops.hints),
            hinted: Arc::clone(&drops.hinted),
        };
        let (contents, now) = (pull.contents.subscribe(), pull.now);
        if let Some(reloads) = reloads {
            let (metrics, health) = (Arc::clone(&metrics), Arc::clone(&health));
            let around = Surroundings { contents, metrics, health, now };
            let stop = stop.clone();
            supervisor.start("reload", async move {
                reloads.run(around, stop).await;
                Ok(Ending::Stopped)
            });
        }
        let down = pull.run(stop.clone(), wanted, hangup, Arc::clone(&hints));
        let up = push.map(|push| push.run(signals));
        if once {
            supervisor.start("once", all_once(down, up, publish));
        } else {
            let down = telling(down, leaving.clone(), last_words);
            start_ways(&mut supervisor, down, up, publish, &stop);
        }
        start_doors(&mut supervisor, port, admin, ask, (&metrics, &health), &stop);
        if !once {
            if let Some((sources, environment)) = origin {
                directories.extend(directories_of(&sources));
                let reload = Reload {
                    sources,
                    environment,
                    health: Arc::clone(&health),
                    metrics,
                    changed: Arc::clone(&changed),
                };
                supervisor.start("config", reload.run(stop.clone()));
            }
            let stop = stop.clone();
            // Made when the first read is on its way: that is what a pod waits for.
            supervisor.start("watch", async move {
                Watch::new(&directories, vec![hints, changed], drops).run(stop, health).await;
                Ok(Ending::Stopped)
            });
        }
        let shutdown = async {
            shutdown.await;
            leaving.cancel();
        };
        supervisor.run(shutdown).await
    }
}

/// The directories in which files are written.
fn directories_of_outputs(outputs: &[config::Output]) -> Vec<PathBuf> {
    let directories = outputs.iter().filter_map(|output| match &output.kind {
        OutputKind::EnvFile { path, .. } => path.parent().map(PathBuf::from),
        OutputKind::Files { directory, .. } => Some(directory.clone()),
        OutputKind::KubernetesSecret(_) => None,
    });
    directories.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The port and the admin socket, where they are wanted.
async fn doors(
    http: Option<SocketAddr>,
    admin: Option<PathBuf>,
) -> anyhow::Result<(Option<TcpListener>, Option<(UnixListener, PathBuf)>)> {
    let port = match http {
        Some(address) => {
            let bound = TcpListener::bind(address).await;
            Some(bound.map_err(|error| http::ListenError::Port { address: address.to_string(), error })?)
        }
        None => None,
    };
    Ok((port, admin.map(open_admin).transpose()?.flatten()))
}

/// What the workers of all Secrets share.
struct Publishing {
    cluster: Option<Cluster>,
    contents: watch::Sender<Contents>,
    identity: String,
    demand: Arc<watch::Sender<usize>>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    now: fn() -> SystemTime,
    random: fastrand::Rng,
}

// === impl Publishing ===

impl Publishing {
    /// The workers, and where each is told what its Secret shall hold.
    fn of(&self, outputs: &[config::Output], wanted: &mpsc::Sender<Wanted>) -> (Vec<Mailbox>, Vec<Publish>) {
        let (mut mailboxes, mut workers) = (Vec::new(), Vec::new());
        for config::Output { name, selection, kind } in outputs {
            let (OutputKind::KubernetesSecret(secret), Some(cluster)) = (kind, &self.cluster) else { continue };
            let config::KubernetesSecret { name: object, lease, settings } = secret;
            let (sender, publications) = watch::channel(None);
            let (holds, held) = watch::channel(None);
            let (selection, kind) = (selection.clone(), settings.kind.clone());
            mailboxes.push(Mailbox { selection, kind, sender, held, sent: None });
            workers.push(Publish {
                output: name.clone(),
                secret: SecretObject::new(cluster.clone(), object.clone()),
                settings: settings.clone(),
                lease: (LeaseObject::new(cluster.clone(), lease.clone()), Lease::new(self.identity.clone())),
                journal: Journal::new(cluster.clone(), object.clone(), self.identity.clone()),
                publications,
                holds,
                demand: Arc::clone(&self.demand),
                contents: self.contents.clone(),
                wanted: wanted.clone(),
                metrics: Arc::clone(&self.metrics),
                health: Arc::clone(&self.health),
                now: self.now,
                random: self.random.clone(),
            });
        }
        (mailboxes, workers)
    }
}

/// Kubernetes, where an output is there.
async fn cluster_of(
    outputs: &[config::Output],
    access: &ClusterAccess,
    aws: &config::Aws,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Option<Cluster>> {
    if !outputs.iter().any(|output| output.kind.is_in_kubernetes()) {
        return Ok(None);
    }
    let cluster = Cluster::connect(access, &aws.network, Arc::clone(metrics)).await;
    let cluster = cluster.context("Kubernetes cannot be used (keytide.outputs, kubernetes_secret)")?;
    for notice in cluster.overrides() {
        tracing::warn!("{notice}");
    }
    Ok(Some(cluster))
}

/// Who holds a Lease: nobody else has this name, not even this pod's container of before.
fn identity_of(instance: &str, random: &fastrand::Rng) -> String {
    let instance: String = instance.chars().filter(char::is_ascii_graphic).take(63).collect();
    format!("{instance}_{:016x}", random.clone().u64(..))
}

/// Who reads, if anything is read, and who writes, if virtual keys are stored: they share what they begin with.
fn both_ways(
    mut aws: config::Aws,
    connection: &Connection,
    reads: bool,
    keys: Option<&VirtualKeys>,
) -> anyhow::Result<(Option<Reader>, Option<Stores>)> {
    let (endpoint, region, writer) = (aws.endpoints.secrets_manager.clone(), aws.region.clone(), aws.writer.take());
    let reader = reader(aws, connection)?;
    let stores = match keys {
        Some(keys) => {
            let auth = writer.map_or_else(|| Ok(Arc::clone(&reader.auth)), |writer| reader.auth.beside(writer))?;
            Some(stores_of(&auth, connection, endpoint.as_deref(), &region, keys))
        }
        None => None,
    };
    Ok((reads.then_some(reader), stores))
}

/// The outputs that a start waits for: where there are files, those who read them are not held up by Kubernetes.
fn waited_for(configured: &[config::Output], no_files: bool) -> Vec<String> {
    let waited_for = configured.iter().filter(|output| no_files || !output.kind.is_in_kubernetes());
    waited_for.map(|output| output.name.to_string()).collect()
}

fn remember(outputs: &mut [Output], kept: state::Kept) {
    for ((output, key), value) in kept {
        if let Some(output) = outputs.iter_mut().find(|candidate| *candidate.name() == output) {
            output.remember(key, value);
        }
    }
}

fn spool_status(spool: &Spool, writer: Option<IdentityStatus>) -> SpoolStatus {
    SpoolStatus { directory: spool.path().display().to_string(), writer, ..SpoolStatus::default() }
}

fn open_spool(keys: &VirtualKeys, random: &fastrand::Rng) -> anyhow::Result<Spool> {
    let config::Spool { directory, allow_disk, plain_files, max_entries: _ } = &keys.spool;
    let spool = Spool::open(directory, *allow_disk, *plain_files, random.clone());
    spool.context("the spool cannot be used (keytide.spool)")
}

/// Who writes, with the clients that write; nothing is asked yet.
fn stores_of(
    auth: &Arc<Auth>,
    connection: &Connection,
    endpoint: Option<&str>,
    region: &str,
    keys: &VirtualKeys,
) -> Stores {
    let store = |auth: Arc<Auth>, region: &str| {
        let config = auth.sdk_config_in(region);
        let mut builder = aws_sdk_secretsmanager::config::Builder::from(&config).interceptor(connection.interceptor());
        builder.set_endpoint_url(endpoint.map(str::to_owned));
        let client = aws_sdk_secretsmanager::Client::from_conf(builder.build());
        Arc::new(Store::new(client, auth, region.to_owned()))
    };
    let teams = keys.teams.iter().zip(&keys.rules.teams);
    Stores {
        own: store(Arc::clone(auth), region),
        teams: teams.map(|(role, (_, region))| store(auth.then(role.clone()), region)).collect(),
    }
}

/// Looks whether the configuration files changed; validates them as `check` does; lets the process replace itself.
struct Reload {
    sources: Sources,
    environment: Environment,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    changed: Arc<Notify>,
}

// === impl Reload ===

impl Reload {
    async fn run(self, stop: CancellationToken) -> anyhow::Result<Ending> {
        let in_use = config::fingerprint(&self.sources);
        let mut seen = in_use.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(Ending::Stopped),
                () = self.changed.notified() => {}
            }
            let now = config::fingerprint(&self.sources);
            if now == seen {
                continue;
            }
            seen = now;
            if seen == in_use {
                self.metrics.config_restored();
                self.health.update(|status| status.config.refused = None);
                tracing::info!("the configuration files are again the ones in use");
                continue;
            }
            match config::load(&self.sources, &self.environment) {
                Ok(_) => {
                    self.metrics.config_reload(true);
                    tracing::info!("the configuration changed: keytide replaces itself");
                    return Ok(Ending::Replace);
                }
                Err(errors) => {
                    self.metrics.config_reload(false);
                    tracing::error!("the changed configuration is refused, the old one goes on: {errors}");
                    self.health.update(|status| status.config.refused = Some(errors.to_string()));
                }
            }
        }
    }
}

/// Somebody in the words of the configuration; nobody is asked.
#[must_use]
pub fn described(aws: &config::Aws, identity: &Identity) -> IdentityStatus {
    let Identity { base, roles, expected } = identity;
    let (kind, name) = match base {
        Credentials::Static(keys) => ("static", keys.access_key_id.clone()),
        Credentials::Profile(profile) => ("profile", profile.name.clone()),
        Credentials::WebIdentity { role, .. } => ("web_identity", role.arn.to_string()),
        Credentials::Container(container) => ("container", container.address.to_string()),
        Credentials::Instance(address) => ("instance", address.to_string()),
        Credentials::Missing => ("none", String::new()),
    };
    IdentityStatus {
        kind: kind.to_owned(),
        name,
        roles: roles.iter().map(|role| role.arn.to_string()).collect(),
        expected: expected.is_set().then(|| expected.to_string()),
        region: aws.region.clone(),
        overrides: aws.overrides.clone(),
        ..IdentityStatus::default()
    }
}

/// Whoever reads, with the client that asks for it; nothing is asked yet.
///
/// # Errors
/// If nothing says who keytide is.
pub fn reader(aws: config::Aws, connection: &Connection) -> anyhow::Result<Reader> {
    let config::Aws { reader, endpoints, region: _, writer: _, network: _, overrides: _ } = aws;
    let auth = Auth::new(reader, &endpoints, connection.clone())?;
    let interceptor = connection.interceptor();
    let mut builder = aws_sdk_secretsmanager::config::Builder::from(&auth.sdk_config()).interceptor(interceptor);
    builder.set_endpoint_url(endpoints.secrets_manager);
    let client = aws_sdk_secretsmanager::Client::from_conf(builder.build());
    Ok(Reader { source: Source::new(client, Arc::clone(&auth)), auth })
}

fn recover(state: Option<&State>, metrics: &Metrics) -> Recovered {
    let Some(state) = state else { return Recovered::default() };
    state.recover().unwrap_or_else(|error| {
        metrics.state_error();
        tracing::warn!("{error}");
        Recovered::default()
    })
}

/// The admin socket lies in a volume of its own. Where that is not mounted, keytide works without the door.
fn open_admin(path: PathBuf) -> anyhow::Result<Option<(UnixListener, PathBuf)>> {
    match path.parent() {
        Some(parent) if !parent.is_dir() => {
            tracing::warn!(
                "no admin socket: {} is not a directory; `keytide status` and `keytide refresh` need it (admin.socket)",
                parent.display()
            );
            Ok(None)
        }
        _ => Ok(Some((http::bind_socket(&path)?, path))),
    }
}

fn files_of(origin: Option<&(Sources, Environment)>) -> Vec<String> {
    let Some((Sources { config, litellm_config }, _)) = origin else { return Vec::new() };
    [Some(config), litellm_config.as_ref()].into_iter().flatten().map(|path| path.display().to_string()).collect()
}

/// A `ConfigMap` is swapped by a link in the directory of its volume, so directories are watched.
fn directories_of(sources: &Sources) -> Vec<PathBuf> {
    let Sources { config, litellm_config } = sources;
    let parent = |path: &PathBuf| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.clone(),
    };
    [Some(config), litellm_config.as_ref()].into_iter().flatten().map(parent).collect()
}
