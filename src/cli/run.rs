//! `keytide run`.

use std::{future::Future, io, path::Path, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

use super::{Exit, block_on, complain};
use crate::{
    config::{self, ClusterAccess, Environment, Sources},
    daemon::{Daemon, World},
    process::{self, Program},
    supervisor::Ending,
    telemetry,
};

/// Loads, builds, runs; becomes itself again when the configuration changed.
pub(super) fn run(sources: &Sources, kubeconfig: Option<&Path>, once: Option<Duration>) -> Exit {
    process::protect();
    let program = Program::current();
    let environment = Environment::of_process();
    let config = match config::load(sources, &environment) {
        Ok(config) => config,
        Err(errors) => {
            complain(&format!("the configuration is not valid:\n{errors}"));
            process::last_words(&errors.to_string());
            return Exit::Usage;
        }
    };
    for notice in &config.notices {
        tracing::warn!("{notice}");
    }
    let ended = block_on(async {
        let hangup = Arc::new(Notify::new());
        // Before anything else: the first process of a container ignores a signal that has no handler.
        let shutdown = signals(Arc::clone(&hangup))?;
        let world = World {
            now: telemetry::wall_clock(),
            cluster: ClusterAccess::choose(kubeconfig, &environment),
            instance: instance(&environment),
            in_pod: environment.get("KUBERNETES_SERVICE_HOST").is_some(),
            origin: Some((sources.clone(), environment)),
            once,
            hangup,
            last_words: process::last_words,
            random: fastrand::Rng::new(),
        };
        Daemon::build(config, world).await?.run(shutdown).await
    });
    match ended.map_err(anyhow::Error::from).flatten() {
        Ok(Ending::Stopped | Ending::Done) => Exit::Done,
        Ok(Ending::Replace) => {
            let error = program.map_or_else(|error| error, Program::replace);
            tracing::error!("keytide failed to replace itself: {error}");
            Exit::Failed
        }
        Err(error) => {
            let message = format!("{error:#}");
            tracing::error!("{message}");
            process::last_words(&message);
            Exit::Failed
        }
    }
}

/// What people call this process by: the pod, which Kubernetes also calls the host.
fn instance(environment: &Environment) -> String {
    environment.get("POD_NAME").filter(|name| !name.is_empty()).map_or_else(process::host, str::to_owned)
}

/// Ends at SIGTERM or SIGINT; wakes `hangup` at each SIGHUP.
fn signals(hangup: Arc<Notify>) -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut reload = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                _ = reload.recv() => hangup.notify_one(),
            }
        }
    })
}
