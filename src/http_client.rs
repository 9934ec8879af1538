//! HTTP to those nearby: the admin socket of a running daemon, the agents on this machine and its link. AWS itself is the
//! SDK's matter.

use std::{fmt, io, net::SocketAddr, path::PathBuf};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

pub use hyper::Method;

/// A status of 5,000 keys has about 2 MiB.
const LARGEST: usize = 32 * 1024 * 1024;

/// A request to the admin socket that was not answered.
#[derive(Debug, Error)]
pub enum RequestError {
    /// Nobody listens.
    #[error(
        "failed to reach a running keytide at {}: {error}; is `keytide run` running, and is this its admin.socket?",
        path.display()
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The connection ended, or what came is not HTTP.
    #[error("failed to get an answer from {}: the connection ended", .0.display())]
    Broken(PathBuf),
    /// The daemon said no.
    #[error("the daemon answered {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The daemon's words.
        message: String,
    },
}

/// A request to an agent that was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AgentError {
    /// Nobody listens.
    #[error("no connection: {0}")]
    Connect(io::ErrorKind),
    /// The connection ended, or what came is not HTTP.
    #[error("the connection ended")]
    Broken,
    /// A header that cannot be one.
    #[error("what is to be sent is not legal in a header")]
    Header,
}

/// An agent's answer. Its `Debug` shows no body: it holds credentials.
pub struct AgentAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

/// Sends one request without a body to the admin socket, and returns the body of the answer.
///
/// # Errors
/// If nobody listens, the connection ends early, or the answer is not a success.
pub async fn request(socket: &std::path::Path, method: Method, target: &str) -> Result<Bytes, RequestError> {
    let path = socket.to_owned();
    let stream =
        UnixStream::connect(socket).await.map_err(|error| RequestError::Connect { path: path.clone(), error })?;
    let broken = || RequestError::Broken(path.clone());
    let request = Request::builder().method(method).uri(target).header("host", "keytide").body(Empty::new());
    let (status, body) = exchange(stream, request.map_err(|_| broken())?).await.ok_or_else(broken)?;
    if status == StatusCode::OK {
        return Ok(body);
    }
    let message = String::from_utf8_lossy(&body).trim().to_owned();
    Err(RequestError::Refused { status: status.as_u16(), message })
}

/// Sends one request without a body to an address, straight: through no proxy, whatever the environment says, since its
/// headers hold a token.
///
/// # Errors
/// If nobody listens, or the connection ends early. There is no time limit: that is the caller's.
pub async fn ask_agent(
    address: SocketAddr,
    method: Method,
    target: &str,
    headers: &[(&'static str, &str)],
) -> Result<AgentAnswer, AgentError> {
    let mut request = Request::builder().method(method).uri(target).header("host", address.to_string());
    for (name, value) in headers {
        let mut value = HeaderValue::from_str(value).map_err(|_| AgentError::Header)?;
        value.set_sensitive(true);
        request = request.header(HeaderName::from_static(name), value);
    }
    let request = request.body(Empty::new()).map_err(|_| AgentError::Header)?;
    let stream = TcpStream::connect(address).await.map_err(|error| AgentError::Connect(error.kind()))?;
    let (status, body) = exchange(stream, request).await.ok_or(AgentError::Broken)?;
    Ok(AgentAnswer { status: status.as_u16(), body })
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
) -> Option<(StatusCode, Bytes)> {
    let (mut sender, connection) = http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.ok()?;
    let exchange = async {
        let answer = sender.send_request(request).await.ok()?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST).collect().await.ok()?.to_bytes();
        Some((status, body))
    };
    tokio::pin!(connection, exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    }
}

// === impl AgentAnswer ===

impl fmt::Debug for AgentAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentAnswer").field("status", &self.status).finish_non_exhaustive()
    }
}
