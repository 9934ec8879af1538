//! One HTTP request to the admin socket of a running daemon.

use std::{io, path::PathBuf};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;

/// A status of 5,000 keys has about 2 MiB.
const LARGEST: usize = 32 * 1024 * 1024;

/// A request that was not answered.
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

/// Sends one request without a body, and returns the body of the answer.
///
/// # Errors
/// If nobody listens, the connection ends early, or the answer is not a success.
pub async fn request(socket: &std::path::Path, method: Method, target: &str) -> Result<Bytes, RequestError> {
    let path = socket.to_owned();
    let stream =
        UnixStream::connect(socket).await.map_err(|error| RequestError::Connect { path: path.clone(), error })?;
    let broken = || RequestError::Broken(path.clone());
    let (mut sender, connection) =
        http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(|_| broken())?;
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header("host", "keytide")
        .body(Empty::new())
        .map_err(|_| broken())?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|_| broken())?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), LARGEST).collect().await.map_err(|_| broken())?.to_bytes();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let message = String::from_utf8_lossy(&body).trim().to_owned();
        Err(RequestError::Refused { status: status.as_u16(), message })
    };
    tokio::pin!(connection, exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    }
}
