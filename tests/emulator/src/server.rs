//! The port: connections, which service a request is for, and the faults of a network.

use std::future::{pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use crate::access::Principal;
use crate::answer::{Answer, Refusal, Service};
use crate::control;
use crate::eks_auth;
use crate::faults::{FaultKind, Strike};
use crate::form::{self, Form};
use crate::iam;
use crate::metadata;
use crate::record::Request;
use crate::secrets_manager::{self, Call};
use crate::sigv4::{self, Claim};
use crate::sts;
use crate::world::World;

/// What the server and the handle share.
pub(crate) struct Shared {
    world: Mutex<World>,
    clock: Mutex<Clock>,
    phase: watch::Sender<Phase>,
}

/// Whether the port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Up,
    /// Until this instant, or until told otherwise.
    Down(Option<Instant>),
    /// For good.
    Stopped,
}

pub(crate) type Clock = Box<dyn Fn() -> SystemTime + Send>;

/// A request for one of the services, taken apart.
struct Asked<'a> {
    service: Service,
    action: String,
    form: Form,
    claim: Option<Claim>,
    parts: &'a Parts,
    body: &'a [u8],
}

/// A body that may end before its time.
enum AnswerBody {
    Whole(Full<Bytes>),
    Cut(Option<Bytes>, Pin<Box<Sleep>>),
}

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the emulator cut the connection")]
struct Cut;

/// Larger than any request of these services.
const BODY_LIMIT: usize = 1024 * 1024;
/// How long answers that are on their way have, when the port goes down.
const FAREWELL: Duration = Duration::from_millis(50);
/// How long the first bytes of an answer that is cut have to get out.
const BEFORE_CUT: Duration = Duration::from_millis(20);

// === impl Shared ===

impl Shared {
    pub(crate) fn new(world: World, clock: Clock) -> Self {
        Self { world: Mutex::new(world), clock: Mutex::new(clock), phase: watch::Sender::new(Phase::Up) }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        // A test that panicked with the lock in its hands has failed already; the others go on.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now_ms(&self) -> i64 {
        let now = self.clock.lock().unwrap_or_else(PoisonError::into_inner)();
        Timestamp::try_from(now).unwrap_or(Timestamp::UNIX_EPOCH).as_millisecond()
    }

    pub(crate) fn set_clock(&self, clock: Clock) {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = clock;
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let changes = *current != Phase::Stopped && *current != phase;
            if changes {
                *current = phase;
            }
            changes
        });
    }

    fn is_up(&self) -> bool {
        *self.phase.borrow() == Phase::Up
    }
}

/// A port, and a runtime of its own for it: a test's may be paused, or wait for what comes from here.
pub(crate) fn bind(listen: SocketAddr) -> io::Result<(Runtime, TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _inside = runtime.enter();
        TcpListener::from_std(listener)?
    };
    Ok((runtime, listener, address))
}

/// Serves until the phase is [`Phase::Stopped`].
pub(crate) async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut phase = shared.phase.subscribe();
    let mut connections = JoinSet::new();
    loop {
        let now = *phase.borrow_and_update();
        let revival = async {
            match now {
                Phase::Down(Some(until)) => sleep_until(until).await,
                Phase::Up | Phase::Down(None) | Phase::Stopped => pending().await,
            }
        };
        if now == Phase::Stopped {
            return;
        }
        tokio::select! {
            biased;
            _ = phase.changed() => {}
            () = revival => shared.set_phase(Phase::Up),
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            // While the port is down it still accepts, and hangs up at once: so nobody else can take it.
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if shared.is_up() => {
                    connections.spawn(connection(stream, tls.clone(), Arc::clone(&shared)));
                }
                Ok(_) => {}
                // Out of file descriptors: others have to be closed first.
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
        }
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    // Without it an answer only takes longer.
    stream.set_nodelay(true).unwrap_or_default();
    let Some(tls) = tls else { return converse(stream, &shared).await };
    let mut phase = shared.phase.subscribe();
    let stream = tokio::select! {
        stream = tls.accept(stream) => stream,
        _ = phase.wait_for(|phase| *phase != Phase::Up) => return,
    };
    // A client that trusts nobody here sees why on its own side.
    if let Ok(stream) = stream {
        converse(stream, &shared).await;
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) {
    let mut phase = shared.phase.subscribe();
    let service = service_fn(|request| handle(request, shared));
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // However it ended: the caller sees it on its own side.
        _ = &mut connection => {}
        () = async { drop(phase.wait_for(|phase| *phase != Phase::Up).await) } => {
            connection.as_mut().graceful_shutdown();
            drop(timeout(FAREWELL, poll_fn(|context| connection.as_mut().poll(context))).await);
        }
    }
}

async fn handle(request: hyper::Request<Incoming>, shared: &Shared) -> Result<Response<AnswerBody>, Cut> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, BODY_LIMIT).collect().await.map_err(|_| Cut)?.to_bytes();
    if !shared.is_up() {
        return Err(Cut);
    }
    if let Some(path) = parts.uri.path().strip_prefix("/_emulator/") {
        let (status, json) = control::answer(shared, &parts.method, path, parts.uri.query(), &body);
        let text = json.map(|json| format!("{json}\n")).unwrap_or_default();
        return Ok(response(status, "application/json", text.into_bytes().into()));
    }
    let Some(asked) = Asked::read(&parts, &body) else {
        let refusal = Refusal::new("UnknownOperationException", "");
        return Ok(Answer::refused(Service::SecretsManager, refusal).into_response(shared, None));
    };
    asked.answer(shared).await
}

// === impl Asked ===

impl<'a> Asked<'a> {
    fn read(parts: &'a Parts, body: &'a [u8]) -> Option<Self> {
        let (method, path) = (&parts.method, parts.uri.path());
        let of_node = |service, action: &str| {
            let action = action.to_owned();
            Self { service, action, form: Form::new(), claim: None, parts, body }
        };
        if let Some(action) = eks_auth::action(method, path) {
            return Some(of_node(Service::EksAuth, action));
        }
        if let Some(action) = metadata::action(method, path) {
            return Some(of_node(Service::Metadata, action));
        }
        if method != Method::POST || path != "/" {
            return None;
        }
        let claim = Claim::parse(&sigv4::text(&parts.headers, "authorization"));
        let target = sigv4::text(&parts.headers, "x-amz-target");
        if !target.is_empty() {
            let action = target.strip_prefix("secretsmanager.")?.to_owned();
            return Some(Self { service: Service::SecretsManager, action, form: Form::new(), claim, parts, body });
        }
        let mut form = form::parse(body);
        let action = form.remove("Action")?;
        let is_iam = form.get("Version").is_some_and(|version| version == iam::VERSION);
        let service = if is_iam { Service::Iam } else { Service::Sts };
        Some(Self { service, action, form, claim, parts, body })
    }

    async fn answer(self, shared: &Shared) -> Result<Response<AnswerBody>, Cut> {
        let (number, strikes) = self.record(shared);
        let mut cut = None;
        let mut settled = None;
        let mut after = None;
        for strike in &strikes {
            let service = self.service;
            let refused = |refusal| Some(Answer::refused(service, refusal));
            match &strike.kind {
                FaultKind::Latency(latency) => sleep(*latency).await,
                FaultKind::Throttle => settled = refused(Refusal::throttled(service)),
                FaultKind::Error { code, status, message } => settled = refused(Refusal::of(code, *status, message)),
                FaultKind::ErrorAfter { code, status, message } => after = refused(Refusal::of(code, *status, message)),
                FaultKind::InternalError => settled = refused(Refusal::internal(service)),
                FaultKind::CutAfter(bytes) => cut = Some(*bytes),
                FaultKind::Hang => pending().await,
                FaultKind::ExpiredToken => settled = refused(Refusal::expired(service)),
                FaultKind::Body(body) => settled = Some(Answer::verbatim(service, body.clone())),
                FaultKind::Stale
                | FaultKind::Alternate
                | FaultKind::DropEntries
                | FaultKind::EntryError { .. }
                | FaultKind::Pages(_)
                | FaultKind::EchoValue => {}
            }
        }
        let answer = settled.unwrap_or_else(|| self.carry_out(shared, number, &strikes));
        let answer = after.unwrap_or(answer);
        if let Some(request) = shared.world().record.get_mut(number) {
            request.outcome.clone_from(&answer.outcome);
        }
        Ok(answer.into_response(shared, cut))
    }

    /// Notes the request, and which faults strike it.
    fn record(&self, shared: &Shared) -> (Option<u64>, Vec<Strike>) {
        let now_ms = shared.now_ms();
        let mut world = shared.world();
        let region = self.claim.as_ref().map(|claim| claim.region.clone());
        let (secret_ids, parameters) = match self.service {
            Service::SecretsManager => {
                let named = secrets_manager::named(self.body);
                (named.secret_ids, named.parameters)
            }
            Service::Sts | Service::Iam => (Vec::new(), form::parameters(&self.form)),
            Service::EksAuth | Service::Metadata => (Vec::new(), json!({ "Path": self.parts.uri.path() })),
        };
        let vault_region = region.clone().unwrap_or_else(|| world.region.clone());
        let vault = world.vault(&vault_region, now_ms);
        let names: Vec<String> = secret_ids.iter().map(|id| vault.name_of(id).to_owned()).collect();
        let strikes = world.faults.strike(&self.action, &names);
        let number = world.record.open(Request {
            service: self.service,
            action: self.action.clone(),
            host: Some(sigv4::text(&self.parts.headers, "host")).filter(|host| !host.is_empty()),
            secret_ids,
            access_key_id: self.claim.as_ref().map(|claim| claim.access_key_id.clone()),
            region,
            principal: None,
            parameters,
            outcome: "pending".to_owned(),
            at_ms: now_ms,
        });
        (number, strikes)
    }

    fn carry_out(&self, shared: &Shared, number: Option<u64>, strikes: &[Strike]) -> Answer {
        let now_ms = shared.now_ms();
        let world = &mut *shared.world();
        let answer = self.caller(world, now_ms).and_then(|caller| {
            if let (Some(request), Some(caller)) = (world.record.get_mut(number), &caller) {
                request.principal = Some(caller.arn.clone());
            }
            match (self.service, &caller, &self.claim) {
                (Service::SecretsManager, Some(principal), Some(claim)) => {
                    let region = &claim.region;
                    let mut call = Call { world, region, principal, strikes, now_ms };
                    call.answer(&self.action, self.body).map(|json| Answer::json(&json))
                }
                (Service::Iam, Some(principal), _) => iam::answer(&world.access, &self.action, &self.form, principal),
                (Service::EksAuth, ..) => {
                    let token = sigv4::text(&self.parts.headers, "authorization");
                    eks_auth::answer(&mut world.access, world.pod_identity.as_ref(), &token, now_ms)
                }
                (Service::Metadata, ..) => world.metadata.answer(&mut world.access, &self.action, self.parts, now_ms),
                _ => sts::answer(&mut world.access, &self.action, &self.form, caller.as_ref(), now_ms),
            }
        });
        answer.unwrap_or_else(|refusal| Answer::refused(self.service, refusal))
    }

    fn caller(&self, world: &World, now_ms: i64) -> Result<Option<Principal>, Refusal> {
        let unsigned = match self.service {
            Service::SecretsManager | Service::Iam => false,
            Service::Sts => sts::is_unsigned(&self.action),
            Service::EksAuth | Service::Metadata => true,
        };
        if unsigned {
            return Ok(None);
        }
        world.access.identify(self.service, self.claim.as_ref(), self.parts, self.body, now_ms).map(Some)
    }
}

// === impl Answer ===

impl Answer {
    fn into_response(self, shared: &Shared, cut_after: Option<usize>) -> Response<AnswerBody> {
        let Self { status, content_type, body, outcome: _, request_id, header } = self;
        let whole = body.len();
        let mut bytes = Bytes::from(body);
        let body = match cut_after {
            None => bytes.into(),
            Some(length) => {
                bytes.truncate(length);
                AnswerBody::Cut(Some(bytes), Box::pin(sleep(BEFORE_CUT)))
            }
        };
        let mut response = response(status, content_type, body);
        let headers = response.headers_mut();
        if let Some(length) = cut_after {
            headers.insert(header::CONTENT_LENGTH, whole.max(length.min(whole) + 1).into());
        }
        if let Ok(id) = request_id.parse() {
            headers.insert("x-amzn-requestid", id);
        }
        if let Some((name, value)) = header
            && let Ok(value) = value.parse()
        {
            headers.insert(name, value);
        }
        // By the emulator's clock, since SDKs correct their own by it.
        let now = Timestamp::from_millisecond(shared.now_ms()).unwrap_or(Timestamp::UNIX_EPOCH);
        if let Ok(date) = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string().parse() {
            headers.insert(header::DATE, date);
        }
        response
    }
}

// === impl AnswerBody ===

impl From<Bytes> for AnswerBody {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(Full::new(bytes))
    }
}

impl From<Vec<u8>> for AnswerBody {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Self::Cut(bytes, end) => {
                if let Some(bytes) = bytes.take() {
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                ready!(end.as_mut().poll(context));
                Poll::Ready(Some(Err(Cut)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Cut(..) => false,
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Cut(..) => hyper::body::SizeHint::default(),
        }
    }
}

fn response(status: StatusCode, content_type: &'static str, body: AnswerBody) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
