//! The process itself: nobody may read its memory, it replaces itself when its configuration changed, and it leaves its
//! last words where Kubernetes looks for them.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getpid, set_child_subreaper, set_dumpable_behavior, setrlimit,
};

/// Where the kubelet looks for the reason of a container's end.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// What the kubelet keeps of it.
const TERMINATION_LIMIT: usize = 4096;

/// The program and its arguments, taken at the start: what the process replaces itself by.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<std::ffi::OsString>,
}

/// Forbids core dumps, and other processes of the same user to look into this one's memory and environment.
pub fn protect() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if setrlimit(Resource::Core, none).is_err() {
        tracing::warn!("the system does not let keytide forbid core dumps of itself");
    }
    hide();
}

/// The same without the limit, which children would inherit: until this process becomes another program, it leaves no core
/// dump, and nobody looks into it.
pub fn hide() {
    if set_dumpable_behavior(DumpableBehavior::NotDumpable).is_err() {
        tracing::warn!("the system does not let keytide forbid to look into itself");
    }
}

/// Makes orphans of this process's children its own children, as those of the first process of a container are anyway.
pub fn adopt_orphans() {
    // A system without that leaves them to its first process.
    set_child_subreaper(Some(getpid())).unwrap_or_default();
}

/// Leaves a message for `kubectl describe`, where there is a place for one.
pub fn last_words(message: &str) {
    let end =
        message.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= TERMINATION_LIMIT).last();
    let file = OpenOptions::new().write(true).truncate(true).open(TERMINATION_LOG);
    if let (Ok(mut file), Some(text)) = (file, message.get(..end.unwrap_or(0))) {
        drop(file.write_all(text.as_bytes()));
    }
}

/// The name of this machine, or of the pod.
#[must_use]
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// True in a container of Kubernetes.
#[must_use]
pub fn has_termination_log() -> bool {
    Path::new(TERMINATION_LOG).exists()
}

// === impl Program ===

impl Program {
    /// The program of this process.
    ///
    /// # Errors
    /// If the system does not say which file it is.
    pub fn current() -> io::Result<Self> {
        Ok(Self { path: std::env::current_exe()?, arguments: std::env::args_os().collect() })
    }

    /// Becomes the same program again, with the same process id. Returns only if that fails.
    #[must_use]
    pub fn replace(self) -> io::Error {
        let mut arguments = self.arguments.into_iter();
        let mut command = Command::new(self.path);
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        command.args(arguments).exec()
    }
}
