//! The owner of every task: one that ends early, well or badly, ends the process; stopping finishes the work in hand.

use std::{future::Future, time::Duration};

use anyhow::anyhow;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long tasks may take to finish the work in hand. Shorter than the 30 seconds that Kubernetes gives a pod.
const GRACE: Duration = Duration::from_secs(10);

/// The tasks of one daemon.
#[derive(Debug)]
pub struct Supervisor {
    tasks: JoinSet<(&'static str, anyhow::Result<Ending>)>,
    stop: CancellationToken,
}

/// How a task, and then the daemon, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It was told to.
    Stopped,
    /// It did all it had to do.
    Done,
    /// The configuration changed: the process shall replace itself.
    Replace,
}

// === impl Supervisor ===

impl Supervisor {
    /// Without tasks. They are told to stop by `stop`.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self { tasks: JoinSet::new(), stop }
    }

    /// Starts a task.
    pub fn start(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<Ending>> + Send + 'static) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Waits until somebody wants to stop, or a task ends; then stops the others and says how it all ended.
    ///
    /// # Errors
    /// If a task failed, panicked, or ended without being told to.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> anyhow::Result<Ending> {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut asked = false;
        let verdict = tokio::select! {
            () = &mut shutdown => {
                asked = true;
                tracing::info!("stopping on request");
                Ok(Ending::Stopped)
            }
            Some(ended) = self.tasks.join_next() => match judge(ended) {
                Ok((name, Ending::Stopped)) => Err(anyhow!("task {name} ended by itself")),
                Ok((_, ending)) => Ok(ending),
                Err(error) => Err(error),
            },
        };
        self.stop.cancel();
        let drain = async {
            let mut failed = None;
            while let Some(ended) = self.tasks.join_next().await {
                failed = judge(ended).err().or(failed);
            }
            failed
        };
        let mut drain = std::pin::pin!(timeout(GRACE, drain));
        let drained = tokio::select! {
            drained = &mut drain => drained,
            // Whoever is about to replace itself hears it too.
            () = &mut shutdown, if !asked => {
                tracing::info!("stopping on request");
                asked = true;
                drain.await
            }
        };
        let verdict = if asked { verdict.map(|_| Ending::Stopped) } else { verdict };
        match drained {
            Ok(None) => verdict,
            Ok(Some(error)) => verdict.and(Err(error)),
            Err(_) => verdict.and_then(|_| Err(anyhow!("a task did not stop within {} s", GRACE.as_secs()))),
        }
    }
}

type Ended = Result<(&'static str, anyhow::Result<Ending>), tokio::task::JoinError>;

fn judge(ended: Ended) -> anyhow::Result<(&'static str, Ending)> {
    match ended {
        Ok((name, ending)) => ending.map(|ending| (name, ending)),
        // The panic hook has said where; what it said may hold a value, and is not repeated.
        Err(_) => Err(anyhow!("a task panicked")),
    }
}
