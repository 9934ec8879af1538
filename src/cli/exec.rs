//! `keytide exec`: a command with the variables of env files, told or started again when they change.
//!
//! The process that stays beside the command holds no value but while it reads: the command is started by another
//! keytide (`program.rs`), which reads the files, takes the variables over, and becomes the command. Nothing that the
//! standard library copies on the way to `execve` is left in memory, and what must be done to a process before it is
//! the command can be done without `unsafe`.

mod child;
mod files;
mod program;
mod signals;

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use tokio::time::{Instant, sleep_until};

use super::{Exit, block_on, complain};
use crate::{
    config,
    domain::{mapping::Format, reload::Pace},
    plan::reload::Timing,
    process,
    reload::raw_signal,
    render::env_file::reader::Fingerprint,
};
use child::Child;
use files::{Files, Look};
use signals::{Caught, Signals};

/// What somebody wants to be started, and how.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) files: Vec<PathBuf>,
    pub(super) format: Option<Format>,
    pub(super) wait: Duration,
    pub(super) on_change: OnChange,
    pub(super) stop_timeout: Duration,
    pub(super) command: Vec<OsString>,
    /// The process that stays, where this one is to become the command.
    pub(super) keeper: Option<i32>,
}

/// What is done when a variable changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnChange {
    /// Nothing.
    Ignore,
    /// The command is stopped and started again.
    Restart,
    /// The command gets a signal.
    Signal(config::Signal),
}

/// The first file is looked for this often: it is waited for, and for a short time.
const SOON: Duration = Duration::from_millis(100);
/// Changes are looked for this often, by the files' stamps. Not by a watch: a user has 128 of them on a node, for all
/// pods, and there are none over virtiofs or NFS.
const LOOK: Duration = Duration::from_secs(1);
/// As the defaults of `keytide.reload`; the start counts as telling, so that what is told has had the time to listen.
const PACE: Pace = Pace {
    debounce: Duration::from_secs(1),
    splay: Duration::ZERO,
    min_interval: Duration::from_secs(10),
    timeout: Duration::ZERO,
};

/// The command and what it was told.
struct Keeper<'a> {
    asked: &'a Asked,
    signals: Signals,
    files: Files<'a>,
    child: Child,
    begun: Instant,
    next_look: Instant,
    timing: Timing,
    /// The variables that the command has, or was told of.
    told: Fingerprint,
    /// Those that the files hold.
    latest: Fingerprint,
    phase: Phase,
    ending: Ending,
}

/// Whether somebody asked the command to end: then nothing is told, and nothing is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    /// By SIGINT or SIGQUIT, which many a program survives: then all goes on.
    Until(Instant),
    Yes,
}

enum Phase {
    Running,
    /// It was asked to end, so that it can be started again; what is then left of it is killed.
    Stopping {
        kill_at: Option<Instant>,
    },
}

/// Starts the command, stays beside it, and ends as it ends.
pub(super) fn exec(asked: &Asked) -> Exit {
    process::hide();
    if let Some(keeper) = asked.keeper {
        return program::become_command(asked, keeper);
    }
    match block_on(keep(asked)).flatten() {
        Ok(exit) => exit,
        Err(error) => failed(&format!("failed to stay beside {}: {}", name_of(&asked.command), error.kind())),
    }
}

async fn keep(asked: &Asked) -> io::Result<Exit> {
    // Before anything else: the first process of a container ignores a signal that has no handler.
    if let Some(signal) = signals::blocked().first() {
        return Ok(failed(&format!(
            "{} was not started: signal {signal} is blocked, so that keytide does not hear it; expected to be started \
             with no signal blocked that it passes on, nor CHLD (`kill -l {signal}` says which one it is)",
            name_of(&asked.command)
        )));
    }
    let mut signals = Signals::new()?;
    process::adopt_orphans();
    let mut files = Files::new(&asked.files, asked.format);
    let told = match first(asked, &mut files, &mut signals, "was not started").await {
        Ok(told) => told,
        Err(exit) => return Ok(exit),
    };
    let begun = Instant::now();
    let mut timing = Timing::always(PACE, fastrand::Rng::new());
    timing.succeeded(Duration::ZERO);
    let child = match Child::start(asked) {
        Ok(child) => child,
        Err(error) => return Ok(program::not_started(asked, &error)),
    };
    let (phase, ending) = (Phase::Running, Ending::No);
    let next_look = begun + LOOK;
    let keeper = Keeper { asked, signals, files, child, begun, next_look, timing, told, latest: told, phase, ending };
    Ok(keeper.run().await)
}

/// Waits for files that can be read. `otherwise`: what became of the command if there are none.
async fn first(
    asked: &Asked,
    files: &mut Files<'_>,
    signals: &mut Signals,
    otherwise: &str,
) -> Result<Fingerprint, Exit> {
    let begun = Instant::now();
    let end = begun + asked.wait;
    loop {
        match files.look() {
            Look::Fingerprint(fingerprint) => return Ok(fingerprint),
            Look::Problem(problem) if !asked.wait.is_zero() => {
                tracing::info!(
                    "waits up to {} s to start {}: {problem}",
                    asked.wait.as_secs(),
                    name_of(&asked.command)
                );
            }
            Look::Problem(_) | Look::Same => {}
        }
        let now = Instant::now();
        if now >= end {
            let after =
                if asked.wait.is_zero() { String::new() } else { format!(", after {} s", asked.wait.as_secs()) };
            let problem = files.problem().map(|problem| problem.explained(&after)).unwrap_or_default();
            return Err(failed(&format!("{} {otherwise}: {problem}", name_of(&asked.command))));
        }
        tokio::select! {
            caught = signals.next() => match caught {
                Caught::Child => child::bury_orphans(),
                Caught::Signal(signal) if ends(signal) => return Err(Exit::Ended(code_of(signal.as_raw()))),
                Caught::Signal(_) => {}
            },
            () = sleep_until(end.min(now + SOON)) => {}
        }
    }
}

// === impl Keeper ===

impl Keeper<'_> {
    async fn run(mut self) -> Exit {
        loop {
            let wake = self.wakes_at();
            let caught = tokio::select! {
                caught = self.signals.next() => Some(caught),
                () = at(wake) => None,
            };
            match caught {
                Some(Caught::Child) => {
                    if let Some(exit) = self.bury().await {
                        return exit;
                    }
                }
                Some(Caught::Signal(signal)) => self.pass_on(signal),
                None => self.tick(),
            }
        }
    }

    /// When there is something to do unasked; none: never.
    fn wakes_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Stopping { kill_at } => kill_at,
            Phase::Running if self.asked.on_change == OnChange::Ignore || self.ending == Ending::Yes => None,
            Phase::Running => {
                if let Ending::Until(until) = self.ending
                    && self.is_ending()
                {
                    return Some(until);
                }
                let due = self.timing.due().map(|due| self.begun + due);
                // What is due and cannot be done waits for the next look.
                let due = due.filter(|_| self.files.problem().is_none());
                Some(due.map_or(self.next_look, |due| due.min(self.next_look)))
            }
        }
    }

    fn tick(&mut self) {
        match self.phase {
            Phase::Stopping { .. } => {
                let seconds = self.asked.stop_timeout.as_secs();
                tracing::warn!("{} did not end within {seconds} s of SIGTERM, and is killed", self.name());
                self.child.kill();
                self.phase = Phase::Stopping { kill_at: None };
            }
            Phase::Running => {
                let now = self.begun.elapsed();
                self.next_look = Instant::now() + LOOK;
                match self.files.look() {
                    Look::Same => {}
                    Look::Problem(problem) => tracing::warn!("{problem}; {} goes on with what it has", self.name()),
                    Look::Fingerprint(latest) if latest == self.latest => {}
                    Look::Fingerprint(latest) => {
                        self.latest = latest;
                        if latest == self.told { self.timing.spared() } else { self.timing.changed(now) }
                    }
                }
                if self.files.problem().is_none() && self.timing.due().is_some_and(|due| due <= now) {
                    self.tell(now);
                }
            }
        }
    }

    /// The variables are others than the command's.
    fn tell(&mut self, now: Duration) {
        match self.asked.on_change {
            OnChange::Ignore => {}
            OnChange::Signal(signal) => {
                tracing::info!("the variables changed: SIG{} to {}", signal.label(), self.name());
                self.child.signal(raw_signal(signal));
                self.told = self.latest;
                self.timing.succeeded(now);
            }
            OnChange::Restart => {
                tracing::info!("the variables changed: {} is started again", self.name());
                self.child.signal(Signal::TERM);
                // A stopped process ends only once it goes on.
                self.child.signal(Signal::CONT);
                self.phase = Phase::Stopping { kill_at: Some(Instant::now() + self.asked.stop_timeout) };
            }
        }
    }

    /// Takes the dead away. If the command is among them, it is either started again, or all is over.
    async fn bury(&mut self) -> Option<Exit> {
        let restarts = matches!(self.phase, Phase::Stopping { .. }) && !self.is_ending();
        let code = self.child.bury(restarts)?;
        if !restarts {
            return Some(Exit::Ended(code));
        }
        self.files.forget();
        let otherwise = "was stopped, and not started again";
        self.told = match first(self.asked, &mut self.files, &mut self.signals, otherwise).await {
            Ok(told) => told,
            Err(exit) => return Some(exit),
        };
        self.latest = self.told;
        self.child = match Child::start(self.asked) {
            Ok(child) => child,
            Err(error) => return Some(program::not_started(self.asked, &error)),
        };
        self.timing.succeeded(self.begun.elapsed());
        self.phase = Phase::Running;
        None
    }

    fn is_ending(&self) -> bool {
        match self.ending {
            Ending::No => false,
            Ending::Until(until) => Instant::now() < until,
            Ending::Yes => true,
        }
    }

    /// A signal that this process got is meant for the command.
    fn pass_on(&mut self, signal: Signal) {
        if signal == Signal::TERM {
            self.ending = Ending::Yes;
            // The command has it from us already.
            if matches!(self.phase, Phase::Stopping { .. }) {
                return;
            }
        } else if [Signal::INT, Signal::QUIT].contains(&signal) && self.ending != Ending::Yes {
            if self.asked.on_change != OnChange::Ignore && !self.is_ending() {
                let seconds = self.asked.stop_timeout.as_secs();
                tracing::info!("{} was asked to end: changes wait for {seconds} s", self.name());
            }
            self.ending = Ending::Until(Instant::now() + self.asked.stop_timeout);
        }
        if !self.child.has_from_terminal(signal) {
            self.child.signal(signal);
        }
    }

    fn name(&self) -> String {
        name_of(&self.asked.command)
    }
}

/// True for a signal by which people, terminals and container runtimes end a program.
fn ends(signal: Signal) -> bool {
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM].contains(&signal)
}

/// As shells say that a command was ended by a signal.
fn code_of(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// The command in messages: without its arguments, and without the directories before it.
fn name_of(command: &[OsString]) -> String {
    let program = command.first().map_or(Path::new(""), Path::new);
    program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()
}

/// Says why there is no command, also where `kubectl describe` looks.
fn failed(message: &str) -> Exit {
    complain(message);
    process::last_words(message);
    Exit::Failed
}
