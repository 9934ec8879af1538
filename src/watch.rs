//! "Look again": a hint from the file system where it gives one, and every 30 seconds all the same.
//!
//! Watches miss what happens on network file systems, overflow, and run out. So nobody acts on what an event says: it only
//! wakes whoever then looks at the files themselves.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use notify::{
    Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{ModifyKind, RenameMode},
};
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

/// The spool, of whose files somebody wants to hear at once.
#[derive(Debug, Clone, Default)]
pub struct Drops {
    /// The directories in which files appear.
    pub directories: Vec<PathBuf>,
    /// Woken when one may have.
    pub hints: Arc<Notify>,
    /// True while the file system gives events for all of them; false from the start where it is of a kind that does not.
    pub hinted: Arc<AtomicBool>,
}

// === impl Watch ===

impl Watch {
    /// Watches these directories, as far as that can be had, and wakes the listeners.
    #[must_use]
    pub fn new(directories: &[PathBuf], listeners: Vec<Arc<Notify>>, drops: Drops) -> Self {
        let hints = Arc::new(Notify::new());
        let wake = Arc::clone(&hints);
        let Drops { directories: drop_directories, hints: drop_hints, hinted } = drops;
        let armed = Arc::clone(&drop_hints);
        let spool = drop_directories.clone();
        let on_event = move |event: notify::Result<Event>| {
            let of_spool =
                |event: &Event| event.paths.iter().any(|path| spool.iter().any(|spool| path.starts_with(spool)));
            match event {
                Ok(event) if of_spool(&event) => {
                    if appears(&event) {
                        drop_hints.notify_one();
                    }
                }
                // Reading a file is an event as well, and it is we who read them.
                Ok(event) if event.kind.is_access() => {}
                // What was missed may have been anything.
                Ok(_) | Err(_) => {
                    wake.notify_one();
                    drop_hints.notify_one();
                }
            }
        };
        let mut watcher = RecommendedWatcher::new(on_event, Config::default()).ok();
        let mut watch = |directory: &PathBuf| {
            watcher.as_mut().is_some_and(|watcher| watcher.watch(directory, RecursiveMode::NonRecursive).is_ok())
        };
        // All of them, whatever became of the one before.
        let unwatched = directories.iter().filter(|directory| !watch(directory)).count();
        let undropped = drop_directories.iter().filter(|directory| !watch(directory)).count();
        hinted.store(undropped == 0 && hinted.load(Ordering::Relaxed), Ordering::Relaxed);
        // What came before the watch was armed is looked for.
        armed.notify_one();
        if unwatched > 0 {
            tracing::warn!(
                "the file system gives no events (network file system, or no watches left): files are looked at every {} s",
                LOOK_AGAIN.as_secs()
            );
        }
        if !drop_directories.is_empty() && !hinted.load(Ordering::Relaxed) {
            tracing::warn!(
                "the file system gives no events of the spool (network file system, or no watches left): it is looked at every second"
            );
        }
        Self { hints, listeners, _watcher: watcher }
    }

    /// Passes hints on until `stop`.
    pub async fn run(self, stop: CancellationToken, health: Arc<Health>) {
        loop {
            health.due("watch", Instant::now() + LOOK_AGAIN);
            let hint = timeout(LOOK_AGAIN, self.hints.notified());
            tokio::select! {
                () = stop.cancelled() => return,
                hinted = hint => if hinted.is_ok() {
                    health.due("watch", Instant::now() + SETTLE);
                    sleep(SETTLE).await;
                }
            }
            for listener in &self.listeners {
                listener.notify_one();
            }
        }
    }
}

/// True if a file may have appeared that is an entry: what is still being written has a name that begins with a dot.
fn appears(event: &Event) -> bool {
    let kind = !matches!(
        event.kind,
        EventKind::Access(_)
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(RenameMode::From) | ModifyKind::Data(_))
    );
    let name = |path: &PathBuf| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."));
    event.need_rescan() || (kind && event.paths.iter().any(name))
}
