//! "Look again": a hint from the file system where it gives one, and every 30 seconds all the same.
//!
//! Watches miss what happens on network file systems, overflow, and run out. So nobody acts on what an event says: it only
//! wakes whoever then looks at the files themselves.

use std::{path::PathBuf, sync::Arc, time::Duration};

use notify::{Config, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::health::Health;

/// The longest time between two looks.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// A burst of events is one hint.
const SETTLE: Duration = Duration::from_millis(50);

/// One watch for all that keytide looks at.
#[derive(Debug)]
pub struct Watch {
    hints: Arc<Notify>,
    listeners: Vec<Arc<Notify>>,
    // Dropping it ends the watch.
    _watcher: Option<RecommendedWatcher>,
}

// === impl Watch ===

impl Watch {
    /// Watches these directories, as far as that can be had, and wakes the listeners.
    #[must_use]
    pub fn new(directories: &[PathBuf], listeners: Vec<Arc<Notify>>) -> Self {
        let hints = Arc::new(Notify::new());
        let wake = Arc::clone(&hints);
        let on_event = move |event: notify::Result<notify::Event>| {
            // Reading a file is an event as well, and it is we who read them.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                wake.notify_one();
            }
        };
        let watcher = RecommendedWatcher::new(on_event, Config::default());
        let watcher = watcher.and_then(|mut watcher| {
            for directory in directories {
                watcher.watch(directory, RecursiveMode::NonRecursive)?;
            }
            Ok(watcher)
        });
        if watcher.is_err() {
            tracing::warn!(
                "the file system gives no events (network file system, or no watches left): files are looked at every {} s",
                LOOK_AGAIN.as_secs()
            );
        }
        Self { hints, listeners, _watcher: watcher.ok() }
    }

    /// Passes hints on until `stop`.
    pub async fn run(self, stop: CancellationToken, health: Arc<Health>) {
        loop {
            health.due("watch", Instant::now() + LOOK_AGAIN);
            let hint = timeout(LOOK_AGAIN, self.hints.notified());
            tokio::select! {
                () = stop.cancelled() => return,
                hinted = hint => if hinted.is_ok() {
                    sleep(SETTLE).await;
                }
            }
            for listener in &self.listeners {
                listener.notify_one();
            }
        }
    }
}
