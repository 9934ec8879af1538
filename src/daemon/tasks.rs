//! The tasks of a daemon: the ways, for good or once, and the doors.

use std::{future::Future, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use tokio::{
    net::{TcpListener, UnixListener},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::{
    health::Health,
    http::{self, Admin, Port},
    metrics::Metrics,
    publish::Publish,
    pull::{self, Wanted},
    push,
    supervisor::{Ending, Supervisor},
};

pub(super) type Down = Result<pull::Ended, pull::StartError>;
pub(super) type Up = Result<push::Ended, push::PushError>;

/// All ways, once: then the Secrets' workers give their Leases back.
pub(super) async fn all_once(
    down: impl Future<Output = Down>,
    up: Option<impl Future<Output = Up>>,
    publish: Vec<Publish>,
) -> anyhow::Result<Ending> {
    let published = CancellationToken::new();
    let publish = futures_util::future::join_all(publish.into_iter().map(|publish| publish.run(published.clone())));
    let both = async {
        let ended = Box::pin(both_once(down, up)).await;
        published.cancel();
        ended
    };
    let (ended, _) = futures_util::join!(both, publish);
    ended
}

/// The way down, which says what was missing if somebody ends its start, such as a kubelet whose startup probe waits no longer.
pub(super) async fn telling(
    down: impl Future<Output = Down>,
    leaving: CancellationToken,
    last_words: fn(&str),
) -> Down {
    let ended = down.await?;
    if let pull::Ended::Unfinished(missing) = &ended
        && leaving.is_cancelled()
    {
        let message = format!("asked to end before the first refresh was complete; missing: {missing}");
        tracing::warn!("{message}");
        last_words(&message);
    }
    Ok(ended)
}

/// All ways, each a task.
pub(super) fn start_ways(
    supervisor: &mut Supervisor,
    down: impl Future<Output = Down> + Send + 'static,
    up: Option<impl Future<Output = Up> + Send + 'static>,
    publish: Vec<Publish>,
    stop: &CancellationToken,
) {
    supervisor.start("pull", async move {
        down.await?;
        Ok(Ending::Stopped)
    });
    if let Some(up) = up {
        supervisor.start("push", async move {
            up.await?;
            Ok(Ending::Stopped)
        });
    }
    for publish in publish {
        let stop = stop.clone();
        supervisor.start("publish", async move {
            Box::pin(publish.run(stop)).await;
            Ok(Ending::Stopped)
        });
    }
}

/// The port and the admin socket, each a task.
pub(super) fn start_doors(
    supervisor: &mut Supervisor,
    port: Option<TcpListener>,
    admin: Option<(UnixListener, PathBuf)>,
    ask: mpsc::Sender<Wanted>,
    (metrics, health): (&Arc<Metrics>, &Arc<Health>),
    stop: &CancellationToken,
) {
    if let Some(listener) = port {
        let (port, stop) = (Port { metrics: Arc::clone(metrics), health: Arc::clone(health) }, stop.clone());
        supervisor.start("http", async move {
            http::serve_port(listener, port, stop).await.context("the port for metrics and probes failed")?;
            Ok(Ending::Stopped)
        });
    }
    if let Some((listener, path)) = admin {
        let (admin, stop) = (Admin { health: Arc::clone(health), wanted: ask }, stop.clone());
        supervisor.start("admin", async move {
            http::serve_admin(listener, admin, stop).await.context("the admin socket failed")?;
            drop(std::fs::remove_file(path));
            Ok(Ending::Stopped)
        });
    }
}

/// Both ways, once: done when both are.
async fn both_once(down: impl Future<Output = Down>, up: Option<impl Future<Output = Up>>) -> anyhow::Result<Ending> {
    let up = async {
        match up {
            Some(up) => up.await,
            None => Ok(push::Ended::Once),
        }
    };
    // One that fails does not keep the other from its work.
    let (down, up) = futures_util::join!(down, up);
    match (down?, up?) {
        (pull::Ended::Once, push::Ended::Once) => Ok(Ending::Done),
        _ => Ok(Ending::Stopped),
    }
}
