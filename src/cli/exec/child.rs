//! The command as a child of this process.

use std::{fs::File, io, os::unix::process::CommandExt as _, path::Path, process::Command};

use rustix::{
    process::{Pid, Signal, WaitOptions, WaitStatus, getpgrp, getpid, kill_process, kill_process_group, wait},
    termios::tcgetpgrp,
};

use super::{Asked, code_of, program};

/// The command, from its start until it was buried.
#[derive(Debug)]
pub(super) struct Child {
    id: Pid,
    /// True: the command leads a process group of its own, and gets signals from us only.
    apart: bool,
}

// === impl Child ===

impl Child {
    /// Starts a keytide that becomes the command.
    ///
    /// Without a terminal in a process group of its own: what is sent to the whole group of this process reaches the
    /// command once. With one in this process's: Ctrl-C, Ctrl-Z, `fg` and reading from the terminal do what they do
    /// without keytide.
    pub(super) fn start(asked: &Asked) -> io::Result<Self> {
        let apart = terminal().is_none();
        let mut command = Command::new(program::of_this_process());
        command.arg0("keytide").args(program::arguments(asked, getpid()));
        if apart {
            command.process_group(0);
        }
        let id = i32::try_from(command.spawn()?.id()).ok().and_then(Pid::from_raw);
        Ok(Self { id: id.ok_or(io::ErrorKind::NotFound)?, apart })
    }

    /// Signals it. Until it was buried its number is no one else's.
    pub(super) fn signal(&self, signal: Signal) {
        if let Err(errno) = kill_process(self.id, signal) {
            tracing::warn!("failed to signal the command: {}", io::Error::from(errno).kind());
        }
    }

    /// Kills it, and where it has a process group of its own, that.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
        self.kill_group();
    }

    /// True if the terminal has sent this to the command as well: to both, as one job.
    pub(super) fn has_from_terminal(&self, signal: Signal) -> bool {
        let of_terminals = [Signal::INT, Signal::QUIT, Signal::WINCH];
        !self.apart
            && of_terminals.contains(&signal)
            && terminal().is_some_and(|terminal| tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp()))
    }

    /// Takes away all children that ended; the code of the command, if it is among them. `alone`: what is left of its
    /// group is then killed, so that two generations do not get into each other's way.
    pub(super) fn bury(&self, alone: bool) -> Option<u8> {
        let mut code = None;
        while let Ok(Some((id, status))) = wait(WaitOptions::NOHANG) {
            if id == self.id {
                code = Some(code_of_status(status));
                if alone {
                    // A number that was just given back is the last to be given again.
                    self.kill_group();
                }
            }
        }
        code
    }

    fn kill_group(&self) {
        if self.apart {
            // Mostly there is nobody left.
            kill_process_group(self.id, Signal::KILL).unwrap_or_default();
        }
    }
}

/// Takes away children that ended, while there is no command.
pub(super) fn bury_orphans() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

/// The terminal that this process belongs to, whatever its standard streams are.
pub(super) fn terminal() -> Option<File> {
    File::open(Path::new("/dev/tty")).ok()
}

fn code_of_status(status: WaitStatus) -> u8 {
    let exited = status.exit_status().and_then(|code| u8::try_from(code).ok());
    exited.unwrap_or_else(|| code_of(status.terminating_signal().unwrap_or_default()))
}
