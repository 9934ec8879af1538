//! A strict AWS Secrets Manager, STS and IAM over HTTP, for tests: in memory, on one port of this machine, with faults.
//!
//! It refuses what AWS refuses: wrong signatures, missing permissions, bad names, secrets that are scheduled for
//! deletion. [`Emulator`] runs it inside a test's process, on a thread of its own; the program of the same name runs it
//! for people and for other languages.
//!
//! On the same port are the two places of a node that give out credentials: the EKS Pod Identity agent (`GET
//! /v1/credentials`) and the metadata service of an instance, version 2 (below `/latest/`). With
//! [TLS](Emulator::start_tls), and a [`Proxy`] in front, it answers under AWS's own names.
//!
//! ```
//! use keytide_emulator::{Emulator, Fault, FaultKind};
//!
//! let emulator = Emulator::start()?;
//! emulator.put("prod/key", "value");
//! emulator.fault(Fault::on("GetSecretValue").secret("prod/key").times(3).kind(FaultKind::Throttle));
//! // Point any AWS SDK at `emulator.url()`, with the credentials of `User::default()` …
//! assert_eq!(emulator.count("GetSecretValue"), 0);
//! # std::io::Result::Ok(())
//! ```
//!
//! What is deliberately not here: KMS, resource policies, rotation, lists and filters, denials and
//! conditions in policies, session policies, tags that a web identity token brings, the packed size of tags. Replicas
//! have a status but cannot be read in their region, and nothing is overwritten there. All accounts share the secrets of a region, which are the home
//! account's: a session of another account's role reads them if its own statements say so. IAM has nothing but
//! `SimulatePrincipalPolicy`, which answers in one page. The Pod Identity agent listens under every host name and takes
//! tokens that are no JWT; the two places of a node give out a new session each time.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

mod access;
mod answer;
mod control;
mod eks_auth;
mod faults;
mod form;
mod iam;
mod identifiers;
mod metadata;
mod oidc;
mod proxy;
mod record;
mod secrets;
mod secrets_manager;
mod seed;
mod server;
mod session_tags;
mod sigv4;
mod sts;
mod tls;
mod view;
mod world;

pub use access::{Role, Statement, User, WebIdentity};
pub use answer::Service;
pub use eks_auth::PodIdentity;
pub use faults::{Fault, FaultId, FaultKind};
pub use oidc::{Jwks, OidcProvider};
pub use proxy::Proxy;
pub use record::Request;
pub use secrets::Value;
pub use seed::{Seed, SeedError};
pub use tls::Tls;
pub use view::{SecretView, VersionView};

use secrets::CURRENT;
use server::{Phase, Shared};
use tokio_rustls::TlsAcceptor;
use world::World;

/// A running emulator. It stops, with its thread and its port, when this is dropped.
///
/// It has a runtime of its own, so it works from plain tests and from async ones, whether or not their clock is paused.
/// Its methods change the state directly: they are neither recorded nor authorised, and they work while the port is
/// [down](Emulator::set_down). Those that name something that does not exist panic, since then the test is wrong.
pub struct Emulator {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// None: plain HTTP.
    ca_pem: Option<String>,
    threads: Vec<JoinHandle<()>>,
}

// === impl Emulator ===

#[expect(clippy::must_use_candidate, reason = "what a change answers is seldom needed")]
impl Emulator {
    /// Starts an empty one on any free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// If the port or the thread cannot be had.
    pub fn start() -> io::Result<Self> {
        Self::start_with(Seed::default(), (Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Starts one with this state, listening there.
    ///
    /// # Errors
    ///
    /// If the port or the thread cannot be had, or the seed gives out a role that it does not have.
    pub fn start_with(seed: Seed, listen: SocketAddr) -> io::Result<Self> {
        Self::run(seed, listen, None)
    }

    /// As [`Emulator::start_with`], with HTTPS and nothing else on its port.
    ///
    /// # Errors
    ///
    /// As there, and if a name is none.
    pub fn start_tls(seed: Seed, listen: SocketAddr, tls: &Tls) -> io::Result<Self> {
        Self::run(seed, listen, Some(tls.identity()?))
    }

    fn run(seed: Seed, listen: SocketAddr, identity: Option<tls::Identity>) -> io::Result<Self> {
        let world = World::new(seed, millis(wall_clock()))?;
        let shared = Arc::new(Shared::new(world, Box::new(wall_clock)));
        let (acceptor, ca_pem) = identity.map(|identity| (identity.acceptor, identity.ca_pem)).unzip();
        let (address, thread) = serve(&shared, listen, acceptor)?;
        Ok(Self { shared, address, ca_pem, threads: vec![thread] })
    }

    /// Answers there as well, with HTTPS and nothing else. Where that is, and the certificate authority that a client has to trust.
    ///
    /// # Errors
    ///
    /// If the port or the thread cannot be had, or a name is none.
    pub fn also_tls(&mut self, listen: SocketAddr, tls: &Tls) -> io::Result<(SocketAddr, String)> {
        let identity = tls.identity()?;
        let (address, thread) = serve(&self.shared, listen, Some(identity.acceptor))?;
        self.threads.push(thread);
        Ok((address, identity.ca_pem))
    }

    /// Where it listens: `http://127.0.0.1:PORT`, or with TLS `https://localhost:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        match self.ca_pem {
            None => format!("http://{}", self.address),
            Some(_) => format!("https://localhost:{}", self.address.port()),
        }
    }

    /// Where it listens, for a [`Proxy`].
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate authority that a client has to trust, if it [speaks TLS](Emulator::start_tls).
    #[must_use]
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// Takes the port down or up again. While it is down every connection is closed at once, old and new ones; nobody
    /// else can take the port meanwhile.
    pub fn set_down(&self, down: bool) {
        self.shared.set_phase(if down { Phase::Down(None) } else { Phase::Up });
    }

    /// Takes another clock: for tests in which hours pass. It judges signatures and sessions, and dates versions.
    pub fn set_clock(&self, clock: impl Fn() -> SystemTime + Send + 'static) {
        self.shared.set_clock(Box::new(clock));
    }

    // --- secrets

    /// Makes the secret or gives it a new current version; answers the version's id.
    pub fn put(&self, name: &str, value: &str) -> String {
        self.set(name, value.into(), CURRENT)
    }

    /// As [`Emulator::put`], with a binary value.
    pub fn put_binary(&self, name: &str, value: &[u8]) -> String {
        self.set(name, value.into(), CURRENT)
    }

    /// As [`Emulator::put`], with another label than `AWSCURRENT`. The first version of a secret gets both.
    pub fn put_stage(&self, name: &str, stage: &str, value: &str) -> String {
        self.set(name, value.into(), stage)
    }

    /// As [`Emulator::put`], with a `CreatedDate` of one's own, in milliseconds since 1970.
    pub fn put_dated(&self, name: &str, value: &str, created_ms: i64) -> String {
        let now_ms = self.shared.now_ms();
        self.shared.world().home(now_ms).set(name, value.into(), &[CURRENT.to_owned()], created_ms)
    }

    /// As [`Emulator::put`], in another region.
    pub fn put_in(&self, region: &str, name: &str, value: &str) -> String {
        let now_ms = self.shared.now_ms();
        self.shared.world().vault(region, now_ms).set(name, value.into(), &[CURRENT.to_owned()], now_ms)
    }

    fn set(&self, name: &str, value: Value, stage: &str) -> String {
        let now_ms = self.shared.now_ms();
        self.shared.world().home(now_ms).set(name, value, &[stage.to_owned()], now_ms)
    }

    /// Makes the previous version the current one, and the current one the previous.
    ///
    /// # Panics
    ///
    /// If there is no previous version.
    pub fn rollback(&self, name: &str) {
        let now_ms = self.shared.now_ms();
        assert!(self.shared.world().home(now_ms).roll_back(name), "{name} has no previous version");
    }

    /// Schedules a secret for deletion in thirty days.
    ///
    /// # Panics
    ///
    /// If there is no such secret.
    pub fn schedule_deletion(&self, name: &str) {
        let now_ms = self.shared.now_ms();
        assert!(self.shared.world().home(now_ms).schedule(name, now_ms), "no secret {name}");
    }

    /// Takes a scheduled deletion back.
    ///
    /// # Panics
    ///
    /// If there is no such secret.
    pub fn restore(&self, name: &str) {
        let now_ms = self.shared.now_ms();
        assert!(self.shared.world().home(now_ms).restore(name).is_ok(), "no secret {name}");
    }

    /// Removes a secret at once, if it is there.
    pub fn remove(&self, name: &str) {
        let now_ms = self.shared.now_ms();
        self.shared.world().home(now_ms).remove(name);
    }

    /// Replaces the description and all tags of a secret, as somebody else might.
    ///
    /// # Panics
    ///
    /// If there is no such secret.
    pub fn set_metadata(&self, name: &str, description: Option<&str>, tags: &[(&str, &str)]) {
        self.change(name, |secret| {
            secret.description = description.map(str::to_owned);
            secret.tags = tags.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        });
    }

    /// Sets one tag of a secret, as somebody else might.
    ///
    /// # Panics
    ///
    /// If there is no such secret.
    pub fn tag(&self, name: &str, key: &str, value: &str) {
        self.change(name, |secret| drop(secret.tags.insert(key.to_owned(), value.to_owned())));
    }

    /// Takes one tag of a secret away, if it has it, as somebody else might.
    ///
    /// # Panics
    ///
    /// If there is no such secret.
    pub fn untag(&self, name: &str, key: &str) {
        self.change(name, |secret| drop(secret.tags.remove(key)));
    }

    /// Sets the KMS key of a secret, as somebody else might; none is AWS's own.
    ///
    /// # Panics
    ///
    /// If there is no such secret.
    pub fn set_kms_key(&self, name: &str, kms_key_id: Option<&str>) {
        self.change(name, |secret| secret.kms_key_id = kms_key_id.map(str::to_owned));
    }

    /// Gives a secret to another service that manages it (such as `rds`), or back to its account. Of such a secret
    /// every change through the API is an `InvalidRequestException`.
    ///
    /// # Panics
    ///
    /// If there is no such secret.
    pub fn set_owner(&self, name: &str, service: Option<&str>) {
        self.change(name, |secret| secret.owner = service.map(str::to_owned));
    }

    /// Makes a secret the replica of one in that region, or no replica. Of a replica every change through the API is,
    /// as on AWS, an `InvalidParameterException`.
    ///
    /// # Panics
    ///
    /// If there is no such secret.
    pub fn set_primary_region(&self, name: &str, region: Option<&str>) {
        self.change(name, |secret| secret.primary_region = region.map(str::to_owned));
    }

    /// From now on a region that was removed from replication is still shown, as `InProgress`, by so many
    /// `DescribeSecret`; until then the secret is not deleted. At first none.
    pub fn set_slow_replication(&self, describes: u32) {
        self.shared.world().slow_replication = describes;
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut secrets::Secret)) {
        let now_ms = self.shared.now_ms();
        assert!(self.shared.world().home(now_ms).change(name, change), "no secret {name}");
    }

    /// The current value, if there is one and it is a text; also of a secret that is scheduled for deletion.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<String> {
        let now_ms = self.shared.now_ms();
        match &self.shared.world().home(now_ms).current(name)?.value {
            Value::Text(text) => Some(text.clone()),
            Value::Binary(_) => None,
        }
    }

    /// The ARN of a secret, if there is one.
    #[must_use]
    pub fn arn(&self, name: &str) -> Option<String> {
        let now_ms = self.shared.now_ms();
        self.shared.world().home(now_ms).find(name).ok().map(|secret| secret.arn.clone())
    }

    /// The whole of a secret, if there is one.
    #[must_use]
    pub fn secret(&self, name: &str) -> Option<SecretView> {
        let now_ms = self.shared.now_ms();
        self.shared.world().home(now_ms).find(name).ok().map(SecretView::of)
    }

    /// As [`Emulator::secret`], in another region.
    #[must_use]
    pub fn secret_in(&self, region: &str, name: &str) -> Option<SecretView> {
        let now_ms = self.shared.now_ms();
        self.shared.world().vault(region, now_ms).find(name).ok().map(SecretView::of)
    }

    /// The names of all secrets of the home region.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let now_ms = self.shared.now_ms();
        self.shared.world().home(now_ms).names().map(str::to_owned).collect()
    }

    // --- who may do what

    /// Replaces what a user (named by its access key id) or a role (by its name or ARN, or a session's key id)
    /// may do.
    ///
    /// # Panics
    ///
    /// If there is no such user or role.
    pub fn allow(&self, who: &str, statements: &[Statement]) {
        assert!(self.shared.world().access.allow(who, statements), "no user or role {who}");
    }

    /// Adds a user, or replaces the one with the same access key id.
    pub fn add_user(&self, user: User) {
        self.shared.world().access.add_user(user);
    }

    /// Adds a role, or replaces the one with the same path and name. Answers its ARN.
    pub fn add_role(&self, role: Role) -> String {
        self.shared.world().access.add_role(role)
    }

    /// Associates the pod with a role, for the Pod Identity agent (`GET /v1/credentials`), or with none.
    ///
    /// # Panics
    ///
    /// If there is no such role.
    pub fn set_pod_identity(&self, pod_identity: Option<PodIdentity>) {
        self.shared.world().set_pod_identity(pod_identity).expect("the role exists");
    }

    /// Gives the instance a role (an ARN), for the metadata service (below `/latest/`), or none.
    ///
    /// # Panics
    ///
    /// If there is no such role.
    pub fn set_instance_role(&self, arn: Option<&str>) {
        self.shared.world().set_instance_role(arn).expect("the role exists");
    }

    /// Ends all sessions now.
    pub fn expire_sessions(&self) {
        let now_ms = self.shared.now_ms();
        self.shared.world().access.expire_sessions(now_ms);
    }

    // --- record

    /// The requests in the order in which they came: the last 100,000.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.world().record.all()
    }

    /// How often an action was asked for, whatever came of it.
    #[must_use]
    pub fn count(&self, action: &str) -> usize {
        self.shared.world().record.count(action)
    }

    /// Whether requests are recorded; at first they are. If not, they are only [counted](Emulator::count).
    pub fn set_recording(&self, on: bool) {
        self.shared.world().record.set_on(on);
    }

    /// Forgets all requests.
    pub fn clear_requests(&self) {
        self.shared.world().record.clear();
    }

    // --- faults

    /// Sets a fault.
    pub fn fault(&self, fault: Fault) -> FaultId {
        self.shared.world().faults.set(fault)
    }

    /// Takes one fault back.
    pub fn remove_fault(&self, id: FaultId) {
        self.shared.world().faults.remove(id);
    }

    /// Takes all faults back.
    pub fn clear_faults(&self) {
        self.shared.world().faults.clear();
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.shared.set_phase(Phase::Stopped);
        for thread in self.threads.drain(..) {
            // If it panicked, the panic was reported there.
            drop(thread.join());
        }
    }
}

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Emulator").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Serves at this address, in a thread of its own.
fn serve(
    shared: &Arc<Shared>,
    listen: SocketAddr,
    tls: Option<TlsAcceptor>,
) -> io::Result<(SocketAddr, JoinHandle<()>)> {
    let (runtime, listener, address) = server::bind(listen)?;
    let shared = Arc::clone(shared);
    let thread = thread::Builder::new()
        .name("emulator".to_owned())
        .spawn(move || runtime.block_on(server::serve(listener, tls, shared)))?;
    Ok((address, thread))
}

#[expect(clippy::disallowed_methods, reason = "the one place where the emulator takes the time, until a test gives it")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

fn millis(time: SystemTime) -> i64 {
    jiff::Timestamp::try_from(time).map_or(0, jiff::Timestamp::as_millisecond)
}
