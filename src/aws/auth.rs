//! Who keytide is: a chain of hops, each with one way to get credentials, kept until they end, renewed early by one caller
//! for all.
//!
//! The SDK's own chain is not used: it ends at the node's role, which would answer for a pod whose own identity is
//! missing, and its cache throws away credentials that are still valid.

mod agent;
mod profile;
mod session;
mod sts;
mod token;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future};
use aws_sdk_sts::config::IdentityCache;
use aws_types::{SdkConfig, region::Region};
use futures_util::future::BoxFuture;
use tokio::{sync::Mutex, time::Instant};

use self::{
    profile::Base,
    session::{Proof, Session},
    sts::{Refusal, Sts},
};
use super::client::{Clock, Connection};
use crate::{
    config::{Container, Credentials, Endpoints, Identity, Profile, Token},
    domain::{
        identity::{Caller, Expected, Role, RoleArn},
        snapshot::{Problem, Reason},
    },
    metrics::{CallOutcome, Metrics},
    plan::policy,
};

/// Credentials are renewed this long before they end, or after four fifths of their life if that is later.
const RENEW_BEFORE: Duration = Duration::from_mins(5);
/// After a renewal that failed while the old credentials are valid, and after credentials that AWS did not accept, the
/// next attempt waits as long.
const PAUSE: Duration = Duration::from_mins(1);
/// Those who ask while somebody fails get the same answer: calls that are under way together do not each ask STS.
const SHARED: Duration = Duration::from_millis(250);

/// One hop: the one cache of its credentials in this process.
#[derive(Debug)]
pub struct Auth {
    way: Way,
    expected: Expected,
    world: Arc<World>,
    /// True for the hop that reads or writes.
    last: bool,
    /// True for the identity that reads, whose credentials are the ones that metrics speak of.
    reads: bool,
    cache: Mutex<Cache>,
}

/// Who keytide is, for status; nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Whom STS calls this, where it was asked or said so.
    pub caller: Option<Caller>,
    /// When the credentials end, in seconds since the Unix epoch.
    pub expires_at: Option<i64>,
    /// When the web-identity token that was last used ends, in seconds since the Unix epoch.
    pub token_expires_at: Option<i64>,
}

/// What all hops share.
#[derive(Debug)]
struct World {
    sts: Sts,
    connection: Connection,
}

#[derive(Debug)]
enum Way {
    /// What the chain begins with.
    Base(Credentials),
    /// A role that is assumed from the hop before.
    Role {
        role: Role,
        /// True if its sessions carry tags, of its own or inherited ones.
        tagged: bool,
        before: Arc<Auth>,
        /// True if the one before is perhaps that role already.
        probe: bool,
    },
}

#[derive(Debug, Default)]
struct Cache {
    session: Option<Session>,
    renew_at: Option<SystemTime>,
    /// When the credentials were last renewed, or the last attempt failed.
    renewed: Option<Instant>,
    failed: Option<(Instant, Problem)>,
    rejected: bool,
    before: Before,
    token_expires_at: Option<i64>,
}

/// What is known of the hop before a role, where that is perhaps the role itself.
#[derive(Debug, Default)]
enum Before {
    #[default]
    Unknown,
    /// Somebody else: the role is assumed.
    Other,
    /// The role itself, with the credentials of this id: they are used as they are.
    Same(String),
}

/// What the SDK is given: the same cache.
#[derive(Debug)]
struct Provider(Arc<Auth>);

// === impl Auth ===

impl Auth {
    /// Prepares the chain that the configuration chose. Nothing is read or asked yet.
    ///
    /// # Errors
    /// If the configuration chose none.
    pub fn new(identity: Identity, endpoints: &Endpoints, connection: Connection) -> Result<Arc<Self>, Problem> {
        let sts = Sts::new(&connection, endpoints);
        Self::chain(identity, &Arc::new(World { sts, connection }), None, true)
    }

    /// Another identity of the same process. Where it begins as this one does, both share that hop, and so its credentials.
    ///
    /// # Errors
    /// If the configuration chose none.
    pub fn beside(self: &Arc<Self>, identity: Identity) -> Result<Arc<Self>, Problem> {
        let mut first = self;
        while let Way::Role { before, .. } = &first.way {
            first = before;
        }
        // Whoever assumes no role has a proof of its own.
        let same = matches!(&first.way, Way::Base(base) if *base == identity.base) && !identity.roles.is_empty();
        Self::chain(identity, &self.world, same.then(|| Arc::clone(first)), false)
    }

    /// The role that is assumed from this identity.
    #[must_use]
    pub fn then(self: &Arc<Self>, role: Role) -> Arc<Self> {
        let way = Way::Role { tagged: self.passes_tags(), role, before: Arc::clone(self), probe: false };
        Arc::new(Self::hop(way, Expected::default(), &self.world, true, false))
    }

    /// True if the sessions of a role that is assumed from here inherit tags: transitive ones, or those of Pod Identity.
    fn passes_tags(&self) -> bool {
        match &self.way {
            Way::Base(base) => matches!(base, Credentials::Container(_)),
            Way::Role { role, before, .. } => !role.transitive_tag_keys.is_empty() || before.passes_tags(),
        }
    }

    fn chain(
        identity: Identity,
        world: &Arc<World>,
        shared: Option<Arc<Self>>,
        reads: bool,
    ) -> Result<Arc<Self>, Problem> {
        if let Some(missing) = identity.missing() {
            return Err(Problem::new(Reason::Identity, missing));
        }
        let Identity { base, roles, expected } = identity;
        // Whoever has exchanged a token knows which role that is.
        let mut probe = !matches!(base, Credentials::WebIdentity { .. });
        let tagged = policy::tagged(&roles, matches!(base, Credentials::Container(_)));
        let last = roles.len();
        let expected_of = |i| if i == last { expected.clone() } else { Expected::default() };
        let mut hop =
            shared.unwrap_or_else(|| Arc::new(Self::hop(Way::Base(base), expected_of(0), world, last == 0, reads)));
        for (i, (role, tagged)) in roles.into_iter().zip(tagged).enumerate() {
            // Tags are part of a session that STS makes, so there a session is always made.
            let way = Way::Role { probe: probe && role.session_tags.is_empty(), role, tagged, before: hop };
            hop = Arc::new(Self::hop(way, expected_of(i + 1), world, i + 1 == last, reads));
            probe = false;
        }
        Ok(hop)
    }

    fn hop(way: Way, expected: Expected, world: &Arc<World>, last: bool, reads: bool) -> Self {
        Self { way, expected, world: Arc::clone(world), last, reads, cache: Mutex::default() }
    }

    /// The connection's settings with these credentials, for a service's client.
    #[must_use]
    pub fn sdk_config(self: &Arc<Self>) -> SdkConfig {
        let builder = self.world.connection.config().to_builder();
        let provider = SharedCredentialsProvider::new(Provider(Arc::clone(self)));
        builder.credentials_provider(provider).identity_cache(IdentityCache::no_cache()).build()
    }

    /// The same for a client of another region.
    #[must_use]
    pub fn sdk_config_in(self: &Arc<Self>, region: &str) -> SdkConfig {
        self.sdk_config().into_builder().region(Region::new(region.to_owned())).build()
    }

    /// Makes sure that there are valid credentials, by renewing them if it is time. One caller renews, the others wait.
    ///
    /// # Errors
    /// If there are none: what is missing, or why they could not be had.
    pub async fn ready(&self) -> Result<(), Problem> {
        self.session().await.map(|_| ())
    }

    /// The role that this is, where the configuration says it.
    #[must_use]
    pub fn role(&self) -> Option<&RoleArn> {
        match &self.way {
            Way::Base(Credentials::WebIdentity { role, .. }) | Way::Role { role, .. } => Some(&role.arn),
            Way::Base(_) => self.expected.role.as_ref(),
        }
    }

    /// The credentials as they are to be used now.
    ///
    /// # Errors
    /// If there are none.
    pub(super) async fn credentials(&self) -> Result<aws_credential_types::Credentials, Problem> {
        self.session().await.map(|session| session.credentials)
    }

    /// AWS did not accept the credentials: they are renewed at the next call, but not more than once a minute.
    pub async fn reject(&self) {
        let mut cache = self.cache.lock().await;
        cache.rejected = true;
        // Whoever passes another's credentials on passes this on too.
        if let (Before::Same(_), Way::Role { before, .. }) = (&cache.before, &self.way) {
            Box::pin(before.reject()).await;
        }
    }

    /// Asks STS who this is.
    ///
    /// # Errors
    /// If there are no credentials, or STS does not say.
    pub async fn caller(&self) -> Result<Caller, Problem> {
        let session = self.session().await?;
        let who = self.who();
        self.world.sts.caller(&session.credentials, &who).await.map_err(|refusal| refusal.problem)
    }

    /// What is known of this identity, without asking anybody.
    pub async fn known(&self) -> Known {
        let cache = self.cache.lock().await;
        let below = match &self.way {
            Way::Role { before, .. } => Some(Box::pin(before.known()).await),
            Way::Base(_) => None,
        };
        let of_below = below.and_then(|below| below.token_expires_at);
        let session = cache.session.as_ref();
        Known {
            caller: session.and_then(|session| session.proof.as_ref()).map(|proof| proof.caller().clone()),
            expires_at: session.and_then(Session::expires_at),
            token_expires_at: cache.token_expires_at.or(of_below),
        }
    }

    /// How many calls it takes at the most until there are credentials: each has its own time limit.
    #[must_use]
    pub fn most_calls(&self) -> u32 {
        match &self.way {
            Way::Base(Credentials::Profile(_)) => 8,
            Way::Base(_) => 2,
            Way::Role { before, .. } => before.most_calls().saturating_add(3),
        }
    }

    /// The identity in the words of an error message.
    #[must_use]
    pub fn who(&self) -> String {
        match &self.way {
            Way::Role { role, .. } => format!("role {}", role.arn),
            Way::Base(base) => match base {
                Credentials::Static(keys) => format!("the identity of access key {}", keys.access_key_id),
                Credentials::Profile(profile) => format!("the identity of profile {}", profile.name),
                Credentials::WebIdentity { role, .. } => format!("role {}", role.arn),
                Credentials::Container(container) => {
                    format!("the identity that the agent at {} gives", container.address)
                }
                Credentials::Instance(address) => format!("the node's role, by {address}"),
                Credentials::Missing => "nobody".to_owned(),
            },
        }
    }

    /// The credentials as they are to be used now. Boxed, since a hop asks the one before it.
    fn session(&self) -> BoxFuture<'_, Result<Session, Problem>> {
        Box::pin(async move {
            // Held while renewing: that is what makes everybody else wait for the one answer.
            let mut cache = self.cache.lock().await;
            let now = self.clock().now();
            let paused = cache.renewed.is_some_and(|at| at.elapsed() < PAUSE);
            if let Some(session) = cache.session.as_ref().filter(|session| session.is_valid(now)) {
                let due = cache.rejected || cache.renew_at.is_some_and(|at| at <= now);
                match cache.failed.as_ref().filter(|_| cache.rejected && paused) {
                    // AWS does not accept what there is, and there is nothing else yet.
                    Some((_, problem)) => return Err(problem.clone()),
                    None if !due || paused => return Ok(session.clone()),
                    None => {}
                }
            }
            if let Some((_, problem)) = cache.failed.as_ref().filter(|(at, _)| at.elapsed() < SHARED) {
                return Err(problem.clone());
            }
            let renewed = self.obtain(&mut cache).await;
            let renewed = match renewed {
                Ok(session) => self.prove(session).await,
                Err(problem) => Err(problem),
            };
            let now = self.clock().now();
            cache.renewed = Some(Instant::now());
            match renewed {
                Ok(session) => {
                    if self.last && self.reads {
                        self.metrics().credentials_expiry(session.expires_at());
                    }
                    if self.last {
                        self.tell(cache.session.as_ref(), &session);
                    }
                    cache.rejected = false;
                    cache.failed = None;
                    cache.renew_at = session.credentials.expiry().map(|expiry| renew_at(now, expiry));
                    cache.session = Some(session.clone());
                    Ok(session)
                }
                // What is valid is used to its end, also if its renewal fails.
                Err(problem) => match cache.session.as_ref().filter(|session| session.is_valid(now)) {
                    Some(session) if !cache.rejected => {
                        tracing::warn!(
                            reason = problem.reason.label(),
                            "failed to renew the credentials early, the old ones are used until they end: {problem}"
                        );
                        Ok(session.clone())
                    }
                    _ => {
                        cache.failed = Some((Instant::now(), problem.clone()));
                        Err(problem)
                    }
                },
            }
        })
    }

    /// Says who this is, the first time and whenever that is somebody else.
    fn tell(&self, before: Option<&Session>, now: &Session) {
        let caller = |session: &Session| session.proof.as_ref().map(|proof| proof.caller().clone());
        if before.is_some_and(|before| caller(before) == caller(now)) {
            return;
        }
        let who = self.who();
        let caller = caller(now).map_or_else(String::new, |caller| format!(", {caller}"));
        tracing::info!("keytide has the credentials of {who}{caller}");
    }

    async fn obtain(&self, cache: &mut Cache) -> Result<Session, Problem> {
        match &self.way {
            Way::Base(base) => self.begin(base, cache).await,
            Way::Role { role, tagged, before, probe } => {
                let session = before.session().await?;
                if *probe && let Some(session) = self.as_before(role, before, &session, cache).await? {
                    return Ok(session);
                }
                match self.world.sts.assume_role(role, *tagged, &session.credentials, &before.who()).await {
                    Ok(session) => Ok(session),
                    Err(Refusal { problem, credentials_ended }) => {
                        if credentials_ended {
                            before.reject().await;
                        }
                        // Perhaps it is somebody else by now.
                        cache.before = Before::Unknown;
                        Err(problem)
                    }
                }
            }
        }
    }

    /// The session of the hop before, where that is already the role that this one is to be. Asked once for somebody else,
    /// and once for each credentials of the role itself: what is passed on is proved.
    async fn as_before(
        &self,
        role: &Role,
        before: &Self,
        session: &Session,
        cache: &mut Cache,
    ) -> Result<Option<Session>, Problem> {
        let id = session.credentials.access_key_id();
        match &cache.before {
            Before::Other => return Ok(None),
            Before::Same(known) if known == id => return Ok(cache.session.clone()),
            Before::Same(_) | Before::Unknown => {}
        }
        match self.world.sts.caller(&session.credentials, &before.who()).await {
            Ok(caller) if caller.is_role(&role.arn) => {
                cache.before = Before::Same(id.to_owned());
                Ok(Some(Session { proof: Some(Proof::Asked(caller)), ..session.clone() }))
            }
            Ok(_) => {
                cache.before = Before::Other;
                Ok(None)
            }
            Err(refusal) if refusal.credentials_ended => {
                before.reject().await;
                Err(refusal.problem)
            }
            // Then it is not known, and AssumeRole will say what is wrong.
            Err(_) => Ok(None),
        }
    }

    async fn begin(&self, base: &Credentials, cache: &mut Cache) -> Result<Session, Problem> {
        match base {
            Credentials::Static(keys) => Ok(Session::of_keys(keys)),
            Credentials::Profile(profile) => self.of_profile(profile, cache).await,
            Credentials::WebIdentity { role, token } => self.of_token(role, token, cache).await,
            Credentials::Container(container) => self.of_agent(container).await,
            Credentials::Instance(address) => self.of_node(*address).await,
            Credentials::Missing => Err(Problem::new(Reason::Identity, "no AWS credentials")),
        }
    }

    async fn of_profile(&self, profile: &Profile, cache: &mut Cache) -> Result<Session, Problem> {
        let profile::Resolved { base, roles } = profile::resolve(profile).await?;
        let tagged = policy::tagged(&roles, matches!(base, Base::Container(_)));
        let mut session = match base {
            Base::Keys(session) => session,
            Base::WebIdentity(role, token) => self.of_token(&role, &token, cache).await?,
            Base::Container(container) => self.of_agent(container).await?,
            Base::Instance(address) => self.of_node(address).await?,
        };
        let mut who = self.who();
        for (role, tagged) in roles.iter().zip(tagged) {
            let assumed = self.world.sts.assume_role(role, tagged, &session.credentials, &who).await;
            session = assumed.map_err(|refusal| refusal.problem)?;
            who = format!("role {}", role.arn);
        }
        Ok(session)
    }

    async fn of_token(&self, role: &Role, token: &Token, cache: &mut Cache) -> Result<Session, Problem> {
        let exchanged = self.world.sts.assume_role_with_web_identity(role, token).await;
        let (session, end) = exchanged.map_err(|refusal| refusal.problem)?;
        cache.token_expires_at = end;
        if self.reads {
            self.metrics().web_identity_token_expiry(end);
        }
        Ok(session)
    }

    async fn of_agent(&self, container: &Container) -> Result<Session, Problem> {
        let limit = self.world.connection.call_timeout();
        self.counted("Container Agent", agent::container(container, limit)).await
    }

    async fn of_node(&self, address: SocketAddr) -> Result<Session, Problem> {
        self.counted("Instance Metadata", agent::instance(address)).await
    }

    /// Calls that are not the SDK's are counted as its are.
    async fn counted(
        &self,
        service: &str,
        call: impl Future<Output = Result<Session, Problem>>,
    ) -> Result<Session, Problem> {
        let began = Instant::now();
        let answer = call.await;
        let outcome = answer.as_ref().map_or_else(|problem| CallOutcome::Failed(problem.reason), |_| CallOutcome::Ok);
        self.metrics().aws_request(service, "GetCredentials", outcome, began.elapsed().as_secs_f64());
        answer.and_then(|session| {
            let valid = session.is_valid(self.clock().now());
            valid.then_some(session).ok_or_else(|| {
                let message = format!("failed to get credentials of {}: they have already ended", self.who());
                Problem::new(Reason::Unavailable, message)
            })
        })
    }

    /// Nobody gets credentials that STS did not prove to be those of whom the configuration expects.
    async fn prove(&self, session: Session) -> Result<Session, Problem> {
        if !self.expected.is_set() {
            return Ok(session);
        }
        let caller = if let Some(Proof::Asked(caller)) = session.proof {
            caller
        } else {
            let proved = self.world.sts.caller(&session.credentials, &self.who()).await;
            proved.map_err(|refusal| refusal.problem)?
        };
        if self.expected.accepts(&caller) {
            return Ok(Session { proof: Some(Proof::Asked(caller)), ..session });
        }
        self.metrics().identity_refused();
        let message = format!(
            "refused to be {caller}: expect_role says {}; correct it, or where the credentials come from ({})",
            self.expected,
            self.who()
        );
        Err(Problem::new(Reason::UnexpectedIdentity, message))
    }

    fn metrics(&self) -> &Metrics {
        self.world.connection.metrics()
    }

    fn clock(&self) -> &Clock {
        self.world.connection.clock()
    }
}

// === impl Provider ===

impl ProvideCredentials for Provider {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            self.0.credentials().await.map_err(|problem| CredentialsError::provider_error(problem.message))
        })
    }
}

fn renew_at(now: SystemTime, expiry: SystemTime) -> SystemTime {
    let life = expiry.duration_since(now).unwrap_or_default();
    // A tenth of jitter, so that pods that started together do not renew together.
    let early = RENEW_BEFORE.min(life / 5).mul_f64(1.0 + 0.1 * fastrand::f64());
    expiry.checked_sub(early).unwrap_or(now)
}
