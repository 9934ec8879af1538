//! Logs: one JSON object a line, or text on a terminal; on standard error; of keytide's own words only.
//!
//! The AWS SDK logs request bodies at TRACE, and other crates log what they were sent. So their targets are off by a list
//! of what is allowed, which no environment variable widens.

use std::{
    io::IsTerminal as _,
    panic::{self, PanicHookInfo},
    time::SystemTime,
};

use tracing::Metadata;
use tracing_subscriber::{
    Layer as _,
    filter::{FilterExt as _, LevelFilter, filter_fn},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// Starts logging at `level`: `error`, `warn`, `info`, `debug` or `trace`. May be called once.
pub fn start(level: Level) {
    let ours = filter_fn(|metadata: &Metadata<'_>| metadata.target().split("::").next() == Some("keytide"));
    let filter = ours.and(LevelFilter::from(level));
    let terminal = std::io::stderr().is_terminal();
    let layer = fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry();
    let started = if terminal {
        registry.with(layer.with_target(false).with_filter(filter)).try_init()
    } else {
        registry.with(layer.json().flatten_event(true).with_filter(filter)).try_init()
    };
    drop(started);
    panic::set_hook(Box::new(on_panic));
}

/// The system's wall clock, to be handed on.
#[must_use]
pub fn wall_clock() -> fn() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "the one place where wall time comes from")]
    SystemTime::now
}

/// How much is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// What keytide could not do.
    Error,
    /// And what it did otherwise than asked.
    Warn,
    /// And what changed.
    #[default]
    Info,
    /// And why.
    Debug,
    /// And every step.
    Trace,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::ERROR,
            Level::Warn => Self::WARN,
            Level::Info => Self::INFO,
            Level::Debug => Self::DEBUG,
            Level::Trace => Self::TRACE,
        }
    }
}

/// Says where, not what: the message of a panic can hold a value.
fn on_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
    tracing::error!("keytide panicked{place}: this is a defect; please report it");
}
