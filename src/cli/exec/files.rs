//! The env files of `exec`: read when they changed, and only then.

use std::{
    fmt,
    fs::{self, File},
    hint::black_box,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::fs::{Mode, OFlags};
use zeroize::Zeroizing;

use crate::{
    domain::mapping::Format,
    render::env_file::reader::{Fingerprint, Variables},
    telemetry,
};

/// An environment has 6 MiB at most (`execve(2)`, "Limits"), and JSON may spell a character in six.
const MOST: u64 = 36 << 20;
/// Within so many seconds of a file's last change another one may leave the same stamp: clocks of file systems are coarse.
const FRESH: u64 = 2;

/// The files, with what is known of them.
#[derive(Debug)]
pub(super) struct Files<'a> {
    paths: &'a [PathBuf],
    format: Option<Format>,
    stamps: Option<Vec<Option<Stamp>>>,
    problem: Option<Problem>,
}

/// Why the files cannot be read; shown without what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    what: String,
    advice: &'static str,
    /// True: it may pass without a change of the file.
    passing: bool,
}

/// What a look at the files came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// As at the last look.
    Same,
    /// What they hold can be read.
    Fingerprint(Fingerprint),
    /// It cannot, for a reason that was not given before.
    Problem(Problem),
}

/// Device, inode, size, and the time of the last change of any kind.
type Stamp = (u64, u64, u64, i64, i64);

// === impl Files ===

impl<'a> Files<'a> {
    pub(super) fn new(paths: &'a [PathBuf], format: Option<Format>) -> Self {
        Self { paths, format, stamps: None, problem: None }
    }

    /// Why they cannot be read; none if they can, or nobody has looked.
    pub(super) fn problem(&self) -> Option<&Problem> {
        self.problem.as_ref()
    }

    /// The next look reads them in any case.
    pub(super) fn forget(&mut self) {
        self.stamps = None;
        self.problem = None;
    }

    /// Reads the files, if one of them is another one than at the last look.
    pub(super) fn look(&mut self) -> Look {
        // Before they are read: a change in between is seen at the next look.
        let stamps: Vec<Option<Stamp>> = self.paths.iter().map(|path| stamp(path)).collect();
        if self.stamps.as_ref() == Some(&stamps) {
            return Look::Same;
        }
        let now = (telemetry::wall_clock())().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let fresh = stamps.iter().flatten().any(|(.., changed, _)| now.abs_diff(changed.unsigned_abs()) < FRESH);
        let read = fingerprint(self.paths, self.format);
        overwrite_stack();
        let passing = read.as_ref().is_err_and(|problem| problem.passing);
        self.stamps = (!fresh && !passing).then_some(stamps);
        match read {
            Ok(fingerprint) => {
                self.problem = None;
                Look::Fingerprint(fingerprint)
            }
            Err(problem) if self.problem.as_ref() == Some(&problem) => Look::Same,
            Err(problem) => {
                self.problem = Some(problem.clone());
                Look::Problem(problem)
            }
        }
    }
}

#[inline(never)]
fn fingerprint(paths: &[PathBuf], format: Option<Format>) -> Result<Fingerprint, Problem> {
    read(paths, format).map(|variables| variables.fingerprint())
}

/// Overwrites the stack where `fingerprint` has just been: the digest leaves pieces of what it read there.
#[inline(never)]
#[expect(clippy::large_stack_arrays, reason = "it has to be larger than what was used before")]
fn overwrite_stack() {
    black_box(&mut [0_u8; 64 * 1024]);
}

/// What the files hold, each over those before it.
///
/// # Errors
/// Which file cannot be used, and why.
pub(super) fn read(paths: &[PathBuf], format: Option<Format>) -> Result<Variables, Problem> {
    let mut all = Variables::default();
    for path in paths {
        let content = content(path).map_err(|problem| problem.of(path))?;
        let variables = Variables::read(&content, format)
            .map_err(|error| Problem::of_content(format!("is no env file that keytide can read: {error}")).of(path))?;
        all.merge(variables);
    }
    Ok(all)
}

/// Links are followed: in a mounted Secret each file is one.
fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.size(), metadata.ctime(), metadata.ctime_nsec()))
}

/// The memory is reserved once: no growth leaves a copy behind.
fn content(path: &Path) -> Result<Zeroizing<Vec<u8>>, Problem> {
    // The opening of a pipe does not wait for a writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)?);
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MOST {
        return Err(Problem::of_content(format!("is not a regular file of {} MiB at most", MOST >> 20)));
    }
    let mut content = Zeroizing::new(vec![0; usize::try_from(metadata.len()).unwrap_or_default()]);
    file.read_exact(&mut content)?;
    Ok(content)
}

// === impl Problem ===

impl Problem {
    fn of_content(what: String) -> Self {
        Self { what, advice: "", passing: false }
    }

    fn of(self, path: &Path) -> Self {
        Self { what: format!("{} {}", path.display(), self.what), ..self }
    }

    /// With what to do about it. `after`: how long it was so.
    pub(super) fn explained(&self, after: &str) -> String {
        format!("{}{after}{}", self.what, self.advice)
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        let (what, advice) = match error.kind() {
            io::ErrorKind::NotFound => (
                "is not there".to_owned(),
                "; expected the env file that keytide writes (outputs.env_file.path, in a volume that this container \
                 mounts too)",
            ),
            io::ErrorKind::PermissionDenied => (
                format!("cannot be read by user {}: permission denied", rustix::process::geteuid().as_raw()),
                "; let keytide write it for that user (outputs.env_file.mode, group)",
            ),
            io::ErrorKind::UnexpectedEof => ("became shorter while it was read".to_owned(), ""),
            kind => (format!("cannot be read: {kind}"), ""),
        };
        Self { what, advice, passing: true }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.what)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "there is no runtime, and nobody sets the time of a change")]
    fn a_file_that_was_just_written_is_read_again_until_its_stamp_tells_changes_apart() {
        let directory = tempfile::tempdir().unwrap();
        let paths = [directory.path().join("keys.env")];
        fs::write(&paths[0], "A='1'\n").unwrap();
        let mut files = Files::new(&paths, None);
        let Look::Fingerprint(one) = files.look() else { panic!("it can be read") };
        assert_eq!(files.look(), Look::Fingerprint(one));
        std::thread::sleep(Duration::from_secs(FRESH + 1));
        assert_eq!((files.look(), files.look()), (Look::Fingerprint(one), Look::Same));
    }
}
