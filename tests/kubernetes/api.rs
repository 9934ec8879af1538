//! The Kubernetes API as a test asks it: blocking, in JSON, with an answer or a panic.

use std::{
    error::Error,
    net::SocketAddr,
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    runtime::{Builder, Runtime},
    task::AbortHandle,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, pem::PemObject as _},
    },
};

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

const JSON: &str = "application/json";
const APPLY_PATCH: &str = "application/apply-patch+yaml";
const MERGE_PATCH: &str = "application/merge-patch+json";

/// A server, and whether it speaks TLS. Each request goes over a connection of its own, so that none is left over from
/// before a fault.
#[derive(Clone)]
pub(crate) struct Upstream {
    address: SocketAddr,
    tls: Option<TlsConnector>,
}

/// The API for somebody.
#[derive(Clone)]
pub(crate) struct Api {
    upstream: Upstream,
    token: String,
    patience: Duration,
    runtime: Arc<Runtime>,
}

/// What the API server answers.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Null where it is not JSON.
    pub(crate) body: Value,
}

/// A watch, which ends with this value.
pub(crate) struct Watch {
    events: Receiver<Value>,
    task: AbortHandle,
}

// === impl Upstream ===

impl Upstream {
    pub(crate) fn tls(address: SocketAddr, ca_pem: &[u8]) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        Self { address, tls: Some(TlsConnector::from(Arc::new(config.with_no_client_auth()))) }
    }

    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends one request; the body of the answer comes as the server sends it.
    pub(crate) async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure> {
        request.headers_mut().insert(HOST, self.address.to_string().parse()?);
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            Some(tls) => exchange(tls.connect(self.address.ip().into(), stream).await?, request).await,
            None => exchange(stream, request).await,
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer's body, or when nobody reads that any more.
    drop(tokio::spawn(connection));
    Ok(sender.send_request(request).await?)
}

// === impl Api ===

impl Api {
    /// The API of this server for whom the token says.
    pub(crate) fn new(upstream: Upstream, token: &str) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { upstream, token: token.to_owned(), patience: Duration::from_mins(1), runtime: Arc::new(runtime) }
    }

    /// For somebody else.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// With this much time for an answer.
    pub(crate) fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Any request, with a body of a content type; an error where no answer came.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<Reply, String> {
        self.ask_text(method, path, body.map(|(kind, body)| (kind, body.to_string())))
    }

    /// The same with a body that is not JSON, perhaps.
    pub(crate) fn ask_text(&self, method: &str, path: &str, body: Option<(&str, String)>) -> Result<Reply, String> {
        let request = self.request(method, path, body);
        self.runtime.block_on(async {
            let answer = async {
                let response = self.upstream.send(request).await?;
                let status = response.status().as_u16();
                let body = response.into_body().collect().await?.to_bytes();
                Ok::<_, Failure>(Reply { status, body: serde_json::from_slice(&body).unwrap_or_default() })
            };
            match tokio::time::timeout(self.patience, answer).await {
                Ok(reply) => reply.map_err(|error| format!("no answer to {method} {path}: {error}")),
                Err(_) => Err(format!("no answer to {method} {path} within {:?}", self.patience)),
            }
        })
    }

    /// An object; none if there is none.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        let reply = self.ask("GET", path, None).unwrap();
        (reply.status != 404).then(|| reply.expect(path))
    }

    /// The items of a list.
    pub(crate) fn list(&self, path: &str) -> Vec<Value> {
        let list = self.ask("GET", path, None).unwrap().expect(path);
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Adds an object to the collection at this path.
    pub(crate) fn create(&self, path: &str, object: &Value) -> Value {
        self.ask("POST", path, Some((JSON, object))).unwrap().expect(path)
    }

    /// Server-side apply.
    pub(crate) fn apply(&self, path: &str, object: &Value, manager: &str, force: bool) -> Value {
        self.try_apply(path, object, manager, force).unwrap().expect(path)
    }

    pub(crate) fn try_apply(&self, path: &str, object: &Value, manager: &str, force: bool) -> Result<Reply, String> {
        let path = with_query(path, &format!("fieldManager={manager}&force={force}"));
        self.ask("PATCH", &path, Some((APPLY_PATCH, object)))
    }

    /// A merge patch of nobody in particular.
    pub(crate) fn merge_patch(&self, path: &str, change: &Value) -> Value {
        self.merge_patch_as(path, change, "somebody")
    }

    pub(crate) fn merge_patch_as(&self, path: &str, change: &Value, manager: &str) -> Value {
        let path = with_query(path, &format!("fieldManager={manager}"));
        self.ask("PATCH", &path, Some((MERGE_PATCH, change))).unwrap().expect(&path)
    }

    /// Deletes an object; it is no error if there is none.
    pub(crate) fn delete(&self, path: &str) {
        let reply = self.ask("DELETE", path, None).unwrap();
        assert!(reply.is_success() || reply.status == 404, "DELETE {path}: {reply:?}");
    }

    /// Watches the collection at this path: first all that is there, then what happens.
    pub(crate) fn watch(&self, path: &str) -> Watch {
        let request = self.request("GET", &with_query(path, "watch=true"), None);
        let response = self.runtime.block_on(self.upstream.send(request)).unwrap();
        assert_eq!(response.status(), 200, "watch of {path}");
        let (sender, events) = mpsc::channel();
        let mut body = response.into_body();
        let task = self.runtime.spawn(async move {
            let mut buffer = Vec::new();
            while let Some(Ok(frame)) = body.frame().await {
                buffer.extend_from_slice(&frame.into_data().unwrap_or_default());
                while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = buffer.drain(..=end).collect();
                    if sender.send(serde_json::from_slice(&line).unwrap_or_default()).is_err() {
                        return;
                    }
                }
            }
        });
        Watch { events, task: task.abort_handle() }
    }

    fn request(&self, method: &str, path: &str, body: Option<(&str, String)>) -> Request<Full<Bytes>> {
        let request = Request::builder().method(method).uri(path);
        let request = request.header(AUTHORIZATION, format!("Bearer {}", self.token));
        match body {
            Some((kind, body)) => request.header(CONTENT_TYPE, kind).body(Full::from(body)),
            None => request.body(Full::default()),
        }
        .unwrap()
    }
}

fn with_query(path: &str, query: &str) -> String {
    format!("{path}{}{query}", if path.contains('?') { '&' } else { '?' })
}

// === impl Reply ===

impl Reply {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Why not, such as `Forbidden`.
    pub(crate) fn reason(&self) -> &str {
        self.body["reason"].as_str().unwrap_or_default()
    }

    #[track_caller]
    fn expect(self, path: &str) -> Value {
        assert!(self.is_success(), "{path}: {self:?}");
        self.body
    }
}

// === impl Watch ===

impl Watch {
    /// The next event; none if there is none for this long, or the watch has ended.
    pub(crate) fn next(&self, patience: Duration) -> Option<Value> {
        self.events.recv_timeout(patience).ok()
    }

    /// Waits for the end of the watch; false if it goes on.
    pub(crate) fn ends(&self, patience: Duration) -> bool {
        loop {
            match self.events.recv_timeout(patience) {
                Ok(_) => {}
                Err(error) => return error == mpsc::RecvTimeoutError::Disconnected,
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
