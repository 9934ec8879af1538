//! A process gets a signal: found by its name, held by a handle so that no other can take its number, looked at again.

use std::{fs, io::Read as _, os::unix::ffi::OsStrExt as _};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, geteuid, pidfd_open, pidfd_send_signal},
};
use thiserror::Error;

use crate::{config, plan::reload::Again};

/// So much of a file of `/proc` is read.
const MOST: u64 = 4096;

/// The signal and its target.
#[derive(Debug)]
pub(super) struct Signal {
    process: String,
    signal: config::Signal,
}

/// Why no signal was sent.
#[derive(Debug, Error)]
pub(super) enum SignalError {
    #[error("failed to list processes: {0}")]
    List(std::io::ErrorKind),
    #[error(
        "no process {0} is to be seen: it does not run, or the pod lacks shareProcessNamespace: true, without which a \
         container sees its own processes only"
    )]
    NotFound(String),
    #[error("the only process {0} is keytide itself, which gets no signal")]
    Itself(String),
    #[error(
        "process {process} (id {id}) belongs to user {owner}, and keytide is user {own}: a signal needs the same user; \
         give both containers the same securityContext.runAsUser"
    )]
    Foreign { process: String, id: i32, owner: u32, own: u32 },
    #[error("process {0} ended meanwhile")]
    Gone(String),
    #[error("the system does not let keytide signal process {process}: {}", std::io::Error::from(*errno).kind())]
    Refused { process: String, errno: Errno },
}

/// What is known of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    id: Pid,
    parent: i32,
    /// In ticks since the machine's start: with the id, its identity.
    started: u64,
    /// Its real user, which decides who may signal it.
    owner: u32,
    names: Vec<Vec<u8>>,
}

// === impl Signal ===

impl Signal {
    pub(super) fn new(process: String, signal: config::Signal) -> Self {
        Self { process, signal }
    }

    /// Sends it to each process of the name whose parent is not also one: to a master, and not to its workers.
    pub(super) fn send(&self) -> Result<String, SignalError> {
        let Self { process: name, signal } = self;
        let all = processes().map_err(|error| SignalError::List(error.kind()))?;
        let mut named: Vec<Process> = all.into_iter().filter(|process| process.is_named(name)).collect();
        let before = named.len();
        let itself = rustix::process::getpid();
        named.retain(|process| process.id != itself);
        if named.is_empty() {
            let error = if before > 0 { SignalError::Itself } else { SignalError::NotFound };
            return Err(error(name.clone()));
        }
        let ids: Vec<i32> = named.iter().map(|process| process.id.as_raw_pid()).collect();
        named.retain(|process| !ids.contains(&process.parent));
        let own = geteuid().as_raw();
        // Of several that have nothing to do with each other, those of other users are none of ours.
        let (ours, others): (Vec<Process>, Vec<Process>) = named.into_iter().partition(|process| process.owner == own);
        if ours.is_empty() {
            return Err(others.first().map_or_else(
                || SignalError::Gone(name.clone()),
                |Process { id, owner, .. }| SignalError::Foreign {
                    process: name.clone(),
                    id: id.as_raw_pid(),
                    owner: *owner,
                    own,
                },
            ));
        }
        let mut sent = Vec::new();
        for process in ours {
            if process.signal(name, *signal)? {
                sent.push(process.id.as_raw_pid().to_string());
            }
        }
        if sent.is_empty() {
            return Err(SignalError::Gone(name.clone()));
        }
        Ok(format!("SIG{} to process {name} (id {})", signal.label(), sent.join(", ")))
    }
}

// === impl SignalError ===

impl SignalError {
    pub(super) fn again(&self) -> Again {
        match self {
            Self::Gone(_) => Again::Soon,
            Self::List(_) | Self::NotFound(_) | Self::Itself(_) | Self::Foreign { .. } | Self::Refused { .. } => {
                Again::Slowly
            }
        }
    }
}

// === impl Process ===

impl Process {
    /// What `/proc` says of it; none if it is gone, or only waits to be buried.
    fn read(id: Pid) -> Option<Self> {
        let file = |name: &str| {
            let mut bytes = Vec::new();
            let file = fs::File::open(format!("/proc/{}/{name}", id.as_raw_pid())).ok()?;
            file.take(MOST).read_to_end(&mut bytes).ok()?;
            Some(bytes)
        };
        let (comm, parent, started) = parse_stat(&file("stat")?)?;
        let owner = parse_owner(&file("status")?)?;
        let command = file("cmdline").unwrap_or_default();
        let first = command.split(|byte| *byte == 0).next().unwrap_or_default();
        // Of processes of other users it is not shown.
        let program = fs::read_link(format!("/proc/{}/exe", id.as_raw_pid())).ok();
        let program = program.as_ref().map(|path| base_name(path.as_os_str().as_bytes()).to_vec());
        let mut names = vec![comm, base_name(first).to_vec()];
        names.extend(program);
        Some(Self { id, parent, started, owner, names })
    }

    fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name.as_bytes())
    }

    /// Signals it, if it is still what it was; false if it is gone.
    fn signal(&self, name: &str, signal: config::Signal) -> Result<bool, SignalError> {
        let refused = |errno| SignalError::Refused { process: name.to_owned(), errno };
        let handle = match pidfd_open(self.id, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(Errno::SRCH) => return Ok(false),
            Err(errno) => return Err(refused(errno)),
        };
        // The number may have become another's before it was held; what is seen now belongs to the handle, while that lives.
        let same =
            |process: Self| process.started == self.started && process.owner == self.owner && process.is_named(name);
        if !Self::read(self.id).is_some_and(same) {
            return Ok(false);
        }
        match pidfd_send_signal(&handle, raw(signal)) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(errno) => Err(refused(errno)),
        }
    }
}

fn processes() -> std::io::Result<Vec<Process>> {
    let ids = fs::read_dir("/proc")?.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?));
    Ok(ids.filter_map(Process::read).collect())
}

/// The name, the parent and the time of the start, of `/proc/ID/stat`. The name may hold anything.
fn parse_stat(stat: &[u8]) -> Option<(Vec<u8>, i32, u64)> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let comm = stat.get(open + 1..close)?;
    let mut fields = std::str::from_utf8(stat.get(close + 1..)?).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    // The dead ones wait for their parents.
    (!matches!(state, "Z" | "X")).then(|| (comm.to_vec(), parent, started))
}

/// The real user, of `/proc/ID/status`.
fn parse_owner(status: &[u8]) -> Option<u32> {
    let text = String::from_utf8_lossy(status);
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// As the system knows it.
#[must_use]
pub fn raw(signal: config::Signal) -> rustix::process::Signal {
    use rustix::process::Signal as Raw;
    match signal {
        config::Signal::Hup => Raw::HUP,
        config::Signal::Int => Raw::INT,
        config::Signal::Quit => Raw::QUIT,
        config::Signal::Term => Raw::TERM,
        config::Signal::Usr1 => Raw::USR1,
        config::Signal::Usr2 => Raw::USR2,
        config::Signal::Alrm => Raw::ALARM,
        config::Signal::Cont => Raw::CONT,
        config::Signal::Ttin => Raw::TTIN,
        config::Signal::Ttou => Raw::TTOU,
        config::Signal::Winch => Raw::WINCH,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        let rest = "S 7 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        for name in ["nginx", "a) b (c", ") S 1 (", ""] {
            let stat = format!("12 ({name}) {rest}\n");
            assert_eq!(parse_stat(stat.as_bytes()), Some((name.as_bytes().to_vec(), 7, 4711)), "{name}");
        }
        assert_eq!(parse_stat(format!("12 (dead) {}\n", rest.replace('S', "Z")).as_bytes()), None);
        assert_eq!(parse_stat(b"12 (cut off) S 7"), None);
        assert_eq!(parse_owner(b"Name:\tx\nUid:\t101\t0\t0\t0\n"), Some(101));
        assert_eq!(base_name(b"/usr/sbin/nginx"), b"nginx");
    }

    #[test]
    fn this_process_is_seen_as_it_is() {
        let id = rustix::process::getpid();
        let process = processes().unwrap().into_iter().find(|process| process.id == id).unwrap();
        assert_eq!(
            (process.owner, process.parent),
            (geteuid().as_raw(), std::os::unix::process::parent_id().try_into().unwrap())
        );
        assert!(process.started > 0 && !process.is_named(""));
    }
}
