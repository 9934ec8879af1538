//! An HTTP proxy for tests of what goes through one. It tunnels, whatever host is asked for, to one address.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::server;

/// A running proxy on a free port of 127.0.0.1. It stops, with its thread and all tunnels, when this is dropped.
///
/// `CONNECT` opens a tunnel to its target, and never to anything else: so that
/// `secretsmanager.us-east-1.amazonaws.com:443` is an emulator that [speaks TLS](crate::Emulator::start_tls).
pub struct Proxy {
    gate: Arc<Gate>,
    address: SocketAddr,
    /// Its end is the sign to stop.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Who may pass, and who did.
struct Gate {
    target: SocketAddr,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What `Proxy-Authorization` has to be, without the scheme.
    credentials: Option<String>,
    hosts: Vec<String>,
    refused: Vec<String>,
}

/// A request without its body, which a `CONNECT` has not.
struct Head {
    first_line: String,
    authorization: Option<String>,
    /// What came behind it.
    rest: Vec<u8>,
}

/// Larger than any head of these tests.
const HEAD_LIMIT: usize = 16 * 1024;
/// How long a client that was refused has to read so and to hang up.
const FAREWELL: Duration = Duration::from_secs(1);

// === impl Proxy ===

impl Proxy {
    /// Starts one that tunnels to this address.
    ///
    /// # Errors
    ///
    /// If a port or the thread cannot be had.
    pub fn start(target: SocketAddr) -> io::Result<Self> {
        let (runtime, listener, address) = server::bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let gate = Arc::new(Gate { target, state: Mutex::default() });
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&gate);
        let thread = thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(move || runtime.block_on(serve(listener, served, stopped)))?;
        Ok(Self { gate, address, stop: Some(stop), thread: Some(thread) })
    }

    /// Wants these credentials in `Proxy-Authorization: Basic`, from now on.
    #[must_use]
    pub fn credentials(self, user: &str, password: &str) -> Self {
        self.gate.state().credentials = Some(STANDARD.encode(format!("{user}:{password}")));
        self
    }

    /// Where it listens: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For which `host:port` it opened a tunnel, in order.
    #[must_use]
    pub fn hosts(&self) -> Vec<String> {
        self.gate.state().hosts.clone()
    }

    /// The first lines of the requests that it refused: what is no `CONNECT`, or lacks the credentials.
    #[must_use]
    pub fn refused(&self) -> Vec<String> {
        self.gate.state().refused.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked, the panic was reported there.
            drop(thread.join());
        }
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy")
            .field("address", &self.address)
            .field("target", &self.gate.target)
            .finish_non_exhaustive()
    }
}

// === impl Gate ===

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked with the lock in its hands has failed already; the others go on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the request may pass; else the head of the answer. Either way it is noted.
    fn judge(&self, head: &Head) -> Result<(), &'static str> {
        let mut state = self.state();
        match head.judge(state.credentials.as_deref()) {
            Ok(host) => {
                state.hosts.push(host.to_owned());
                Ok(())
            }
            Err(answer) => {
                state.refused.push(head.first_line.clone());
                Err(answer)
            }
        }
    }
}

// === impl Head ===

impl Head {
    /// Nothing if the client hangs up before its end, or never comes to one.
    async fn read(client: &mut TcpStream) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let rest = bytes.split_off(end + 4);
                return Ok(Some(Self::parse(&String::from_utf8_lossy(&bytes), rest)));
            }
            if bytes.len() > HEAD_LIMIT || client.read_buf(&mut bytes).await? == 0 {
                return Ok(None);
            }
        }
    }

    fn parse(head: &str, rest: Vec<u8>) -> Self {
        let mut lines = head.lines();
        let first_line = lines.next().unwrap_or_default().to_owned();
        let authorization = lines.filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
            name.eq_ignore_ascii_case("proxy-authorization").then(|| value.trim().to_owned())
        });
        Self { first_line, authorization, rest }
    }

    /// The `host:port` that is asked for, or the head of a refusal.
    fn judge(&self, credentials: Option<&str>) -> Result<&str, &'static str> {
        let mut words = self.first_line.split(' ');
        let (Some("CONNECT"), Some(host)) = (words.next(), words.next()) else {
            return Err("405 Method Not Allowed\r\nAllow: CONNECT");
        };
        if host.rsplit_once(':').is_none_or(|(name, port)| name.is_empty() || port.parse::<u16>().is_err()) {
            return Err("400 Bad Request");
        }
        let given = self.authorization.as_deref().and_then(|value| value.split_once(' '));
        let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic")).map(|(_, given)| given.trim());
        if credentials.is_some() && given != credentials {
            return Err("407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"keytide-emulator\"");
        }
        Ok(host)
    }
}

async fn serve(listener: TcpListener, gate: Arc<Gate>, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = &mut stopped => return,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let gate = Arc::clone(&gate);
                    // However it ends: both sides see it for themselves.
                    connections.spawn(async move { drop(connection(client, &gate).await) });
                }
                // Out of file descriptors: others have to be closed first.
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
        }
    }
}

async fn connection(mut client: TcpStream, gate: &Gate) -> io::Result<()> {
    client.set_nodelay(true)?;
    let Some(head) = Head::read(&mut client).await? else { return Ok(()) };
    if let Err(answer) = gate.judge(&head) {
        return refuse(client, answer).await;
    }
    let Ok(mut server) = TcpStream::connect(gate.target).await else {
        return refuse(client, "502 Bad Gateway").await;
    };
    server.set_nodelay(true)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    server.write_all(&head.rest).await?;
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}

async fn refuse(mut client: TcpStream, answer: &str) -> io::Result<()> {
    let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    client.write_all(answer.as_bytes()).await?;
    client.shutdown().await?;
    // To close with something unread would take the answer back.
    let mut sink = tokio::io::sink();
    drop(timeout(FAREWELL, tokio::io::copy(&mut client, &mut sink)).await);
    Ok(())
}
