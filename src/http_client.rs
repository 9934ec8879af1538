//! HTTP to those nearby: the admin socket of a running daemon, the agents on this machine and its link, and whoever is told
//! of a change. AWS itself is the SDK's matter.

use std::{fmt, io, net::SocketAddr, path::PathBuf, sync::Arc};

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Request, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use crate::config::Url;

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

/// A call that was not answered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CallError {
    /// Nobody listens, or the name is nobody's.
    #[error("no connection: {0}")]
    Connect(io::ErrorKind),
    /// The certificates that are to be trusted cannot be used.
    #[error("{0}")]
    Certificates(&'static str),
    /// The other side is not whom it must be.
    #[error("{0}")]
    Tls(String),
    /// The connection ended, or what came is not HTTP.
    #[error("the connection ended without an answer")]
    Broken,
    /// A header that cannot be one.
    #[error("what is to be sent is not legal in a header")]
    Header,
}

/// The headers of a call: lower-case names, and values that are not shown.
pub type Headers = [(String, Zeroizing<Vec<u8>>)];

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

/// Sends one request without a body, and returns the status of the answer: its body is not read, and no redirect followed.
/// Straight, through no proxy. Trusted are the system's certificates and those of `more`, which is PEM.
///
/// # Errors
/// If nobody listens, is not whom it must be, or does not answer. There is no time limit: that is the caller's.
pub async fn call(url: &Url, method: &str, headers: &Headers, more: Option<&[u8]>) -> Result<u16, CallError> {
    let mut request = Request::builder().method(method).uri(&*url.target).header("host", &*url.authority);
    request = request.header("user-agent", concat!("keytide/", env!("CARGO_PKG_VERSION")));
    if !matches!(method, "GET" | "HEAD") {
        request = request.header("content-length", "0");
    }
    for (name, value) in headers {
        let mut value = HeaderValue::from_bytes(value).map_err(|_| CallError::Header)?;
        value.set_sensitive(true);
        request = request.header(name.as_str(), value);
    }
    let request = request.body(Empty::new()).map_err(|_| CallError::Header)?;
    let connector = if url.tls { Some(trusting(more)?) } else { None };
    let connected = TcpStream::connect((url.host.as_str(), url.port)).await;
    let stream = connected.map_err(|error| CallError::Connect(error.kind()))?;
    let status = match connector {
        None => status_of(stream, request).await,
        Some(connector) => {
            let nobody = |_| CallError::Tls("the host of the URL can have no certificate".to_owned());
            let name = ServerName::try_from(url.host.clone()).map_err(nobody)?;
            let stream = connector.connect(name, stream).await.map_err(|error| {
                let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
                tls.map_or(CallError::Broken, |tls| CallError::Tls(tls_words(tls, "ca_file")))
            })?;
            status_of(stream, request).await
        }
    };
    status.ok_or(CallError::Broken)
}

/// Why there is no TLS. The library's own words hold names and certificates. `adds` is the setting that makes an issuer trusted.
#[must_use]
pub fn tls_words(error: &rustls::Error, adds: &str) -> String {
    let rustls::Error::InvalidCertificate(certificate) = error else {
        return "no TLS: the server and keytide do not agree".to_owned();
    };
    let what = match certificate {
        CertificateError::UnknownIssuer => {
            return format!("no TLS: the server's certificate is of an issuer that is not trusted; {adds} adds one");
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => "not valid at this time",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => "for another name",
        _ => "not valid",
    };
    format!("no TLS: the server's certificate is {what}")
}

/// A client of TLS 1.2 and 1.3 that trusts the system's certificates, and more.
fn trusting(more: Option<&[u8]>) -> Result<TlsConnector, CallError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let system = roots.len();
    for certificate in CertificateDer::pem_slice_iter(more.unwrap_or_default()) {
        let certificate = certificate.map_err(|_| CallError::Certificates("a block of ca_file is not PEM"))?;
        let wrong = |_| CallError::Certificates("a block of ca_file is not an X.509 certificate");
        roots.add(certificate).map_err(wrong)?;
    }
    if more.is_some() && roots.len() == system {
        return Err(CallError::Certificates("there is no certificate in ca_file"));
    }
    if roots.is_empty() {
        return Err(CallError::Certificates("the system has no certificates to trust; ca_file adds some"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| CallError::Tls(tls_words(&error, "ca_file")))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn status_of(stream: impl AsyncRead + AsyncWrite + Unpin, request: Request<Empty<Bytes>>) -> Option<u16> {
    let (mut sender, connection) = http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.ok()?;
    let answer = sender.send_request(request);
    tokio::pin!(connection, answer);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    };
    Some(answer.ok()?.status().as_u16())
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
