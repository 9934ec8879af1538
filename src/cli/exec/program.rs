//! The keytide that becomes the command: it reads the files, finds the program, and is replaced by it with all its
//! memory.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::{
    fs::{Access, access},
    process::{Pid, Signal, getppid, set_parent_process_death_signal},
};

use super::{Asked, Exit, complain, failed, files};
use crate::{process, render::env_file::reader::Variables};

/// Where programs are looked for without a `PATH` (`execvp(3)`, with what images have).
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// As a shell: the command was found and could not be started.
const CANNOT_START: u8 = 126;
/// As a shell: the command was not found.
const NOT_FOUND: u8 = 127;
/// One variable, or argument, with its name and its end has 32 pages at most (`execve(2)`, "Limits").
const LONGEST: usize = 128 * 1024;

/// The program of this process: also where it was removed, or another was put in its place.
pub(super) fn of_this_process() -> PathBuf {
    let own = Path::new("/proc/self/exe");
    if own.exists() { own.to_owned() } else { std::env::args_os().next().map_or_else(PathBuf::new, PathBuf::from) }
}

/// The arguments by which it becomes the command.
pub(super) fn arguments(asked: &Asked, keeper: Pid) -> Vec<OsString> {
    let Asked { files, format, wait: _, on_change: _, stop_timeout: _, command, keeper: _ } = asked;
    let mut arguments: Vec<OsString> = vec!["exec".into(), "--keeper".into(), keeper.as_raw_pid().to_string().into()];
    for file in files {
        arguments.extend(["--env-file".into(), file.into()]);
    }
    arguments.extend(format.iter().flat_map(|format| ["--format".into(), format.label().into()]));
    arguments.push("--".into());
    arguments.extend(command.iter().cloned());
    arguments
}

/// Becomes the command. Returns only if that fails.
pub(super) fn become_command(asked: &Asked, keeper: i32) -> Exit {
    // Whoever kills keytide means the command; and two of it are worse than none.
    let bound = set_parent_process_death_signal(Some(Signal::KILL));
    if bound.is_ok() && getppid().map(Pid::as_raw_pid) != Some(keeper) {
        return Exit::Failed;
    }
    let variables = match files::read(&asked.files, asked.format) {
        Ok(variables) => variables,
        // It could be read a moment ago.
        Err(problem) => {
            return failed(&format!("failed to start {}: {}", super::name_of(&asked.command), problem.explained("")));
        }
    };
    let Some((name, arguments)) = asked.command.split_first() else { return Exit::Usage };
    let program = match find(name, &path(&variables)) {
        Ok(program) => program,
        Err((code, message)) => return refused(code, &message),
    };
    let mut command = Command::new(&program);
    command.arg0(name).args(arguments);
    for (name, value) in variables.iter() {
        command.env(name.as_str(), value.expose());
    }
    let error = command.exec();
    let shown = program.display();
    let (code, message) = match error.kind() {
        io::ErrorKind::NotFound => (
            NOT_FOUND,
            format!(
                "failed to start {shown}: the interpreter or loader that it names is not in this image \
                 (a script whose #! leads nowhere, or a program for another C library)"
            ),
        ),
        io::ErrorKind::PermissionDenied => (
            CANNOT_START,
            format!(
                "failed to start {shown}: permission denied; expected an executable file, on a file \
                 system without noexec"
            ),
        ),
        io::ErrorKind::ArgumentListTooLong => (CANNOT_START, too_long(&shown.to_string(), &variables)),
        kind => (
            CANNOT_START,
            format!(
                "failed to start {shown}: {kind}; expected a program of this machine's kind, or a \
                 script that begins with #!"
            ),
        ),
    };
    refused(code, &message)
}

/// The keytide that was to become the command could not be started.
pub(super) fn not_started(asked: &Asked, error: &io::Error) -> Exit {
    let name = super::name_of(&asked.command);
    let message = match error.kind() {
        io::ErrorKind::ArgumentListTooLong => too_long(&name, &Variables::default()),
        io::ErrorKind::WouldBlock => format!(
            "failed to start {name}: this user or container may have no more processes (`ulimit -u`, the limit of pids)"
        ),
        kind => format!("failed to start {name}: the system does not start keytide a second time: {kind}"),
    };
    refused(CANNOT_START, &message)
}

/// Whose variable it is that the system does not take.
fn too_long(program: &str, variables: &Variables) -> String {
    let longest = variables.iter().find(|(name, value)| name.as_str().len() + value.len() + 2 > LONGEST);
    match longest {
        Some((name, _)) => format!(
            "failed to start {program}: {name} is longer than the {} KiB that the system gives a variable; let the \
             application read it from a file (outputs.files)",
            LONGEST / 1024
        ),
        None => format!(
            "failed to start {program}: variables and arguments are longer together than the system allows (a \
             quarter of the stack's limit, `ulimit -s`)"
        ),
    }
}

fn refused(code: u8, message: &str) -> Exit {
    complain(message);
    process::last_words(message);
    Exit::Ended(code)
}

/// The `PATH` that the command will have.
#[expect(clippy::disallowed_methods, reason = "it need not be UTF-8, and no other variable is copied")]
fn path(variables: &Variables) -> OsString {
    let own = variables.iter().find(|(name, _)| name.as_str() == "PATH").map(|(_, value)| value.expose().into());
    own.or_else(|| std::env::var_os("PATH")).unwrap_or_else(|| PATH.into())
}

/// The program that a shell would start.
fn find(name: &OsStr, path: &OsStr) -> Result<PathBuf, (u8, String)> {
    let shown = name.to_string_lossy();
    if name.as_bytes().contains(&b'/') {
        let program = PathBuf::from(name);
        return match fs::metadata(&program) {
            Ok(metadata) if metadata.is_dir() => {
                Err((CANNOT_START, format!("failed to start {shown}: it is a directory; expected a program")))
            }
            Ok(_) => Ok(program),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err((NOT_FOUND, format!("failed to start {shown}: there is no such file")))
            }
            Err(error) => Err((CANNOT_START, format!("failed to start {shown}: {}", error.kind()))),
        };
    }
    let mut closed = None;
    for directory in std::env::split_paths(path) {
        // An empty part is the working directory.
        let directory = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
        let candidate = directory.join(name);
        if !name.is_empty() && fs::metadata(&candidate).is_ok_and(|metadata| metadata.is_file()) {
            if access(&candidate, Access::EXEC_OK).is_ok() {
                return Ok(candidate);
            }
            closed.get_or_insert(candidate);
        }
    }
    Err(match closed {
        Some(program) => (CANNOT_START, format!("failed to start {}: this user may not execute it", program.display())),
        None => (
            NOT_FOUND,
            format!(
                "failed to start {shown}: there is no program of that name in PATH; expected its path, or \
                 one of those there"
            ),
        ),
    })
}
