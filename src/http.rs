//! The two doors. The port, open to the pod's network, has metrics and probes and starts no work. The admin socket has
//! the status and the refresh.

use std::{
    future::{Future, IntoFuture as _},
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    health::{Health, Status, Verdict},
    metrics::Metrics,
    pull::{Report, Wanted},
};

/// What answers that are under way get when the daemon stops.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// What a refresh may take for whoever asked for it; the daemon goes on with it.
const REFRESH_LIMIT: Duration = Duration::from_mins(5);

/// What the port answers from.
#[derive(Debug, Clone)]
pub struct Port {
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The probes.
    pub health: Arc<Health>,
}

/// What the admin socket answers from.
#[derive(Debug, Clone)]
pub struct Admin {
    /// The status.
    pub health: Arc<Health>,
    /// The way to the worker.
    pub wanted: mpsc::Sender<Wanted>,
}

/// The query of `POST /refresh`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefreshQuery {
    /// Removals that would be held are wanted.
    #[serde(default)]
    pub accept_removals: bool,
}

/// A door that could not be opened.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The port.
    #[error("failed to listen on {address} (http.listen): {error}")]
    Port {
        /// The address.
        address: String,
        /// What the system said.
        error: io::Error,
    },
    /// The admin socket.
    #[error("failed to listen on the admin socket {} (admin.socket): {error}", path.display())]
    Socket {
        /// The path.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Serves the port until `stop`.
///
/// # Errors
/// If the listener fails.
pub async fn serve_port(listener: TcpListener, port: Port, stop: CancellationToken) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async |State(port): State<Port>| probe(port.health.live())))
        .route("/readyz", get(async |State(port): State<Port>| probe(port.health.ready())))
        .route("/startupz", get(async |State(port): State<Port>| probe(port.health.startup())))
        .with_state(port);
    let serve = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    until_hung_up(serve.into_future(), stop).await
}

/// Serves the admin socket until `stop`.
///
/// # Errors
/// If the listener fails.
pub async fn serve_admin(listener: UnixListener, admin: Admin, stop: CancellationToken) -> io::Result<()> {
    let router = Router::new().route("/status", get(status)).route("/refresh", post(refresh)).with_state(admin);
    let serve = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    until_hung_up(serve.into_future(), stop).await
}

/// Answers what is asked when it is told to stop, but does not wait for whoever says nothing, or half a request.
async fn until_hung_up(serve: impl Future<Output = io::Result<()>>, stop: CancellationToken) -> io::Result<()> {
    tokio::select! {
        ended = serve => ended,
        () = async { stop.cancelled().await; sleep(LAST_ANSWERS).await } => Ok(()),
    }
}

/// Binds the admin socket under a temporary name, gives it its mode, and renames it over an old one, so that nobody meets
/// it with another mode, and the socket of a process that was killed is not in the way.
///
/// # Errors
/// If it cannot be bound.
pub fn bind_socket(path: &Path) -> Result<UnixListener, ListenError> {
    let bind = || {
        let temporary = path.with_extension(format!("{:016x}.tmp", fastrand::u64(..)));
        let listener = UnixListener::bind(&temporary)?;
        let moved = std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o660))
            .and_then(|()| std::fs::rename(&temporary, path));
        if moved.is_err() {
            drop(std::fs::remove_file(&temporary));
        }
        moved.map(|()| listener)
    };
    bind().map_err(|error| ListenError::Socket { path: path.to_owned(), error })
}

async fn metrics(State(port): State<Port>) -> Response {
    port.health.report(&port.metrics);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], port.metrics.render()).into_response()
}

fn probe(verdict: Verdict) -> Response {
    match verdict {
        Verdict::Yes => (StatusCode::OK, "ok\n".to_owned()).into_response(),
        Verdict::No(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn status(State(admin): State<Admin>) -> Json<Status> {
    Json(admin.health.status())
}

async fn refresh(State(admin): State<Admin>, Query(query): Query<RefreshQuery>) -> Response {
    let (reply, report) = oneshot::channel();
    let wanted = Wanted { accept_removals: query.accept_removals, reply };
    let unavailable = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response();
    // Bounded: whoever asks while others wait is told so, and shares the refresh of those when asking again.
    if admin.wanted.try_send(wanted).is_err() {
        return unavailable("too many refreshes are asked for");
    }
    match timeout(REFRESH_LIMIT, report).await {
        Ok(Ok(report)) => Json::<Report>(report).into_response(),
        Ok(Err(_)) => unavailable("the daemon is stopping"),
        Err(_) => unavailable("the refresh takes longer than 5 minutes; `keytide status` shows how it goes on"),
    }
}
