//! The signals of `exec`: those of children, and those that are meant for the command.

use std::{fs, future::poll_fn, io, task::Poll};

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};

use super::child;

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caught {
    /// Some child ended.
    Child,
    /// Somebody signalled this process.
    Signal(Signal),
}

/// All of them, caught from the beginning on.
#[derive(Debug)]
pub(super) struct Signals(Vec<(Caught, unix::Signal)>);

/// Those that programs are told something by. Not the real-time ones, which have no names that systems agree on.
const PASSED_ON: [Signal; 11] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::TERM,
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::CONT,
    Signal::WINCH,
    Signal::IO,
    Signal::POWER,
];
/// By these a shell stops a job, which is this process and the command; without a terminal they may mean anything else.
const OF_JOBS: [Signal; 3] = [Signal::TSTP, Signal::TTIN, Signal::TTOU];

// === impl Signals ===

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        let mut all = vec![(Caught::Child, signal(SignalKind::child())?)];
        for caught in passed_on() {
            all.push((Caught::Signal(caught), signal(SignalKind::from_raw(caught.as_raw()))?));
        }
        Ok(Self(all))
    }

    /// The next one; none is lost if nobody waits.
    pub(super) async fn next(&mut self) -> Caught {
        poll_fn(|context| {
            for (caught, stream) in &mut self.0 {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(*caught);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Those of them, by their numbers, that whoever started this process blocks: they would never come.
pub(super) fn blocked() -> Vec<i32> {
    let blocked = set("SigBlk:");
    let all = passed_on().chain([Signal::CHILD]).map(Signal::as_raw);
    all.filter(|signal| blocked & mask(*signal) != 0).collect()
}

fn passed_on() -> impl Iterator<Item = Signal> {
    // What this process was told to ignore, as `nohup` does, the command is to ignore as well: a handler would end that.
    let ignored = set("SigIgn:");
    let jobs: &[Signal] = if child::terminal().is_some() { &[] } else { &OF_JOBS };
    PASSED_ON.iter().chain(jobs).copied().filter(move |signal| ignored & mask(signal.as_raw()) == 0)
}

/// The signals that this process ignores (`SigIgn:`) or blocks (`SigBlk:`), as the system writes them: a bit for each.
fn set(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    u64::from_str_radix(mask.trim(), 16).unwrap_or_default()
}

fn mask(signal: i32) -> u64 {
    u32::try_from(signal - 1).ok().and_then(|shift| 1_u64.checked_shl(shift)).unwrap_or_default()
}
