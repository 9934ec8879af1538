//! What stands between keytide and the API server: a proxy that remembers every request, and fails on demand.

use std::{
    collections::BTreeSet,
    future, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use futures_util::stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    header::{CONNECTION, CONTENT_TYPE, HeaderMap, RETRY_AFTER, TRANSFER_ENCODING},
    http::request::Parts,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::Builder,
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    api::{Failure, Upstream},
    control_plane::ControlPlane,
};

/// Plain HTTP on the loopback interface, forwarded to the API server over TLS. Ends with this value.
pub(crate) struct Gate {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Absent once it shall end.
    orders: Option<mpsc::UnboundedSender<(Order, oneshot::Sender<()>)>>,
    thread: Option<JoinHandle<()>>,
}

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    number: u64,
    pub(crate) at: Instant,
    pub(crate) method: String,
    pub(crate) path: String,
    /// Without `?`, as it was sent; empty if there is none.
    pub(crate) query: String,
    pub(crate) content_type: String,
    /// Null where it is not JSON.
    pub(crate) body: Value,
    /// Of the answer, once its head went back; never if none did.
    pub(crate) status: Option<u16>,
}

/// Which requests go wrong, and how: every one at first, narrowed down by what follows.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    kind: Kind,
    method: Option<String>,
    path: Option<String>,
    content_type: Option<String>,
    times: Option<u32>,
    skip: u32,
}

#[derive(Clone, Debug)]
enum Kind {
    Answer { status: u16, retry_after: Option<u32>, message: String },
    WatchError { status: u16 },
    Delay(Duration),
    Hang,
    Cut,
    CutAfter,
    Silence,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FaultId(usize);

struct Shared {
    upstream: Upstream,
    requests: Mutex<Vec<Recorded>>,
    /// The number of the next request.
    next: AtomicU64,
    /// The versions of objects that went on to those who watch.
    told: Mutex<BTreeSet<String>>,
    faults: Mutex<Vec<Armed>>,
}

/// A fault that was set. A cleared one stays, so that it can still be said how often it struck.
struct Armed {
    fault: Fault,
    is_set: bool,
    passed: u32,
    struck: u32,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Down(bool),
    Cut,
}

/// The body of an answer on its way.
struct Flow {
    shared: Arc<Shared>,
    recorded: Recorded,
    body: Incoming,
    is_silent: bool,
}

type Body = UnsyncBoxBody<Bytes, Failure>;
type Orders = mpsc::UnboundedReceiver<(Order, oneshot::Sender<()>)>;

// === impl Gate ===

impl Gate {
    pub(crate) fn new(cluster: &ControlPlane) -> Self {
        let upstream = cluster.upstream().clone();
        let shared = Arc::new(Shared {
            upstream,
            requests: Mutex::default(),
            next: AtomicU64::new(0),
            told: Mutex::default(),
            faults: Mutex::default(),
        });
        let (orders, received) = mpsc::unbounded_channel();
        let (ready, is_ready) = oneshot::channel();
        let serving = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            Builder::new_current_thread().enable_all().build().unwrap().block_on(serve(serving, received, ready));
        });
        let address = is_ready.blocking_recv().unwrap();
        Self { address, shared, orders: Some(orders), thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests so far, in the order in which they came.
    pub(crate) fn requests(&self) -> Vec<Recorded> {
        self.shared.requests().clone()
    }

    pub(crate) fn count(&self, is_counted: impl Fn(&Recorded) -> bool) -> usize {
        self.shared.requests().iter().filter(|request| is_counted(request)).count()
    }

    /// The last such request.
    pub(crate) fn last(&self, is_meant: impl Fn(&Recorded) -> bool) -> Option<Recorded> {
        self.shared.requests().iter().rfind(|request| is_meant(request)).cloned()
    }

    /// True once a watch told this version of an object.
    pub(crate) fn has_told(&self, version: &str) -> bool {
        self.shared.told().contains(version)
    }

    pub(crate) fn clear_requests(&self) {
        self.shared.requests().clear();
    }

    pub(crate) fn fault(&self, fault: Fault) -> FaultId {
        let mut faults = self.shared.faults();
        faults.push(Armed { fault, is_set: true, passed: 0, struck: 0 });
        FaultId(faults.len() - 1)
    }

    /// How many requests the fault has struck.
    pub(crate) fn struck(&self, fault: FaultId) -> u32 {
        self.shared.faults()[fault.0].struck
    }

    pub(crate) fn clear_fault(&self, fault: FaultId) {
        self.shared.faults()[fault.0].is_set = false;
    }

    pub(crate) fn clear_faults(&self) {
        self.shared.faults().iter_mut().for_each(|armed| armed.is_set = false);
    }

    /// Refuses all connections, and cuts those that there are; or listens again.
    pub(crate) fn set_down(&self, is_down: bool) {
        self.order(Order::Down(is_down));
    }

    /// Cuts all connections that there are.
    pub(crate) fn cut_connections(&self) {
        self.order(Order::Cut);
    }

    fn order(&self, order: Order) {
        let (done, is_done) = oneshot::channel();
        self.orders.as_ref().unwrap().send((order, done)).unwrap();
        is_done.blocking_recv().unwrap();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        drop(self.orders.take());
        drop(self.thread.take().unwrap().join());
    }
}

// === impl Recorded ===

impl Recorded {
    pub(crate) fn is_watch(&self) -> bool {
        self.query.split('&').any(|parameter| matches!(parameter, "watch=true" | "watch=1"))
    }
}

// === impl Fault ===

impl Fault {
    /// Answers this status, with a Kubernetes `Status` for its body, and does nothing.
    pub(crate) fn answer(status: u16) -> Self {
        Self::new(Kind::Answer { status, retry_after: None, message: "so says the test".to_owned() })
    }

    /// A watch that begins well, and then says this status, such as 410, as its only event.
    pub(crate) fn watch_error(status: u16) -> Self {
        Self::new(Kind::WatchError { status })
    }

    /// Waits before anything else happens; other faults still strike.
    pub(crate) fn delay(duration: Duration) -> Self {
        Self::new(Kind::Delay(duration))
    }

    /// Does nothing, and never answers.
    pub(crate) fn hang() -> Self {
        Self::new(Kind::Hang)
    }

    /// Does nothing, and cuts the connection.
    pub(crate) fn cut() -> Self {
        Self::new(Kind::Cut)
    }

    /// Lets it be done, and cuts the connection instead of answering.
    pub(crate) fn cut_after() -> Self {
        Self::new(Kind::CutAfter)
    }

    /// A watch, also one that goes on already, from which nothing comes any more while its connection stays open. It
    /// stays so when the fault is cleared, as it does where a firewall forgot a connection.
    pub(crate) fn silence() -> Self {
        Self::new(Kind::Silence)
    }

    fn new(kind: Kind) -> Self {
        Self { kind, method: None, path: None, content_type: None, times: None, skip: 0 }
    }

    /// Of an answer: the header `Retry-After`, in seconds.
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        if let Kind::Answer { retry_after, .. } = &mut self.kind {
            *retry_after = Some(seconds);
        }
        self
    }

    /// Of an answer: what its `Status` says.
    pub(crate) fn message(mut self, text: &str) -> Self {
        if let Kind::Answer { message, .. } = &mut self.kind {
            text.clone_into(message);
        }
        self
    }

    pub(crate) fn method(self, method: &str) -> Self {
        Self { method: Some(method.to_owned()), ..self }
    }

    /// Only requests whose path contains this.
    pub(crate) fn path(self, part: &str) -> Self {
        Self { path: Some(part.to_owned()), ..self }
    }

    /// Only requests whose content type contains this.
    pub(crate) fn content_type(self, part: &str) -> Self {
        Self { content_type: Some(part.to_owned()), ..self }
    }

    /// Only so many; a silence has no count.
    pub(crate) fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }

    /// Only after so many that it would have struck.
    pub(crate) fn skip(self, skip: u32) -> Self {
        Self { skip, ..self }
    }

    fn matches(&self, request: &Recorded) -> bool {
        let is_in = |text: &str, part: &Option<String>| part.as_ref().is_none_or(|part| text.contains(part));
        self.method.as_ref().is_none_or(|method| *method == request.method)
            && is_in(&request.path, &self.path)
            && is_in(&request.content_type, &self.content_type)
            && (request.is_watch() || !matches!(self.kind, Kind::WatchError { .. } | Kind::Silence))
    }
}

// === impl Shared ===

impl Shared {
    fn requests(&self) -> MutexGuard<'_, Vec<Recorded>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> MutexGuard<'_, Vec<Armed>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All delays that strike, and the first of the other faults, but no silence.
    fn strikes(&self, request: &Recorded) -> (Duration, Option<Kind>) {
        let (mut delay, mut kind) = (Duration::ZERO, None);
        for armed in self.faults().iter_mut() {
            let is_delay = matches!(armed.fault.kind, Kind::Delay(_));
            let is_due = is_delay || (kind.is_none() && !matches!(armed.fault.kind, Kind::Silence));
            if !armed.is_set || !is_due || !armed.fault.matches(request) {
                continue;
            }
            if armed.passed < armed.fault.skip {
                armed.passed += 1;
            } else if armed.fault.times.is_none_or(|times| armed.struck < times) {
                armed.struck += 1;
                match &armed.fault.kind {
                    Kind::Delay(duration) => delay += *duration,
                    other => kind = Some(other.clone()),
                }
            }
        }
        (delay, kind)
    }

    fn is_silenced(&self, request: &Recorded) -> bool {
        let mut faults = self.faults();
        let found = faults
            .iter_mut()
            .find(|armed| armed.is_set && matches!(armed.fault.kind, Kind::Silence) && armed.fault.matches(request));
        found.map(|armed| armed.struck += 1).is_some()
    }

    fn record(&self, head: &Parts, body: &[u8]) -> Recorded {
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let mut requests = self.requests();
        let request = Recorded {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            at: Instant::now(),
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            content_type: content_type.unwrap_or_default().to_owned(),
            body: serde_json::from_slice(body).unwrap_or_default(),
            status: None,
        };
        requests.push(request.clone());
        request
    }

    fn told(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn passes_on(&self, request: &Recorded, frame: &Frame<Bytes>) {
        let Some(data) = frame.data_ref().filter(|_| request.is_watch()) else { return };
        let text = String::from_utf8_lossy(data);
        let versions = text.split("\"resourceVersion\":\"").skip(1).filter_map(|rest| rest.split('"').next());
        self.told().extend(versions.map(str::to_owned));
    }

    fn answered(&self, number: u64, status: u16) {
        if let Some(request) = self.requests().iter_mut().find(|request| request.number == number) {
            request.status = Some(status);
        }
    }
}

/// Until nobody can give orders any more.
async fn serve(shared: Arc<Shared>, mut orders: Orders, ready: oneshot::Sender<SocketAddr>) {
    // It only keeps the port while nobody listens there.
    let keeper = socket((Ipv4Addr::LOCALHOST, 0).into());
    let address = keeper.local_addr().unwrap();
    let mut listener = Some(socket(address).listen(128).unwrap());
    ready.send(address).unwrap();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some((order, done)) = order else { return };
                match order {
                    Order::Down(false) if listener.is_none() => listener = Some(socket(address).listen(128).unwrap()),
                    Order::Down(false) => {}
                    Order::Down(true) => {
                        listener = None;
                        connections.shutdown().await;
                    }
                    Order::Cut => connections.shutdown().await,
                }
                done.send(()).expect("who gives an order waits");
            }
            Ok(stream) = accept(listener.as_ref()) => {
                connections.spawn(converse(Arc::clone(&shared), stream));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

fn socket(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => future::pending().await,
    }
}

async fn converse(shared: Arc<Shared>, stream: TcpStream) {
    drop(stream.set_nodelay(true));
    let service = service_fn(|request| handle(Arc::clone(&shared), request));
    // A service's error ends the connection without an answer, which is what a cut is.
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let recorded = shared.record(&head, &body);
    let (delay, kind) = shared.strikes(&recorded);
    tokio::time::sleep(delay).await;
    let response = match kind {
        Some(Kind::Answer { status, retry_after, message }) => answer(status, retry_after, &message),
        Some(Kind::WatchError { status }) => watch_error(status),
        Some(Kind::Hang) => future::pending().await,
        Some(Kind::Cut) => return Err("cut".into()),
        Some(Kind::CutAfter) => {
            shared.upstream.send(forwarded(head, body)).await?;
            return Err("cut".into());
        }
        Some(Kind::Delay(_) | Kind::Silence) | None => {
            let response = shared.upstream.send(forwarded(head, body)).await?;
            returned(&shared, &recorded, response)
        }
    };
    shared.answered(recorded.number, response.status().as_u16());
    Ok(response)
}

fn forwarded(mut head: Parts, body: Bytes) -> Request<Full<Bytes>> {
    remove_hops(&mut head.headers);
    Request::from_parts(head, Full::new(body))
}

fn returned(shared: &Arc<Shared>, recorded: &Recorded, response: Response<Incoming>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    remove_hops(&mut head.headers);
    let flow = Flow { shared: Arc::clone(shared), recorded: recorded.clone(), body, is_silent: false };
    let frames = stream::unfold(flow, |mut flow| async { Some((flow.next().await?, flow)) });
    Response::from_parts(head, StreamBody::new(frames).boxed_unsync())
}

/// What is about the one connection, and not about the request.
fn remove_hops(headers: &mut HeaderMap) {
    headers.remove(CONNECTION);
    headers.remove(TRANSFER_ENCODING);
}

fn answer(code: u16, retry_after: Option<u32>, message: &str) -> Response<Body> {
    let mut status = status(code, message);
    let mut response = Response::builder().status(code).header(CONTENT_TYPE, "application/json");
    if let Some(seconds) = retry_after {
        status["details"] = json!({"retryAfterSeconds": seconds});
        response = response.header(RETRY_AFTER, seconds);
    }
    response.body(whole(status.to_string())).unwrap()
}

fn watch_error(code: u16) -> Response<Body> {
    let event = json!({"type": "ERROR", "object": status(code, "so says the test")});
    Response::builder().header(CONTENT_TYPE, "application/json").body(whole(format!("{event}\n"))).unwrap()
}

fn whole(text: String) -> Body {
    Full::from(text).map_err(|never| match never {}).boxed_unsync()
}

/// An error as the API server words it.
fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "Unknown",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

// === impl Flow ===

impl Flow {
    /// What goes on to the client; a silent watch does not even end.
    async fn next(&mut self) -> Option<Result<Frame<Bytes>, Failure>> {
        loop {
            let frame = self.body.frame().await;
            self.is_silent = self.is_silent || self.shared.is_silenced(&self.recorded);
            match frame {
                _ if !self.is_silent => {
                    if let Some(Ok(frame)) = &frame {
                        self.shared.passes_on(&self.recorded, frame);
                    }
                    return frame.map(|frame| frame.map_err(Failure::from));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => future::pending().await,
            }
        }
    }
}
