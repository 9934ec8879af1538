//! The env files of `exec`: read when they changed, and only then.

use std::{
    fs::{self, File},
    hint::black_box,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::{
    domain::mapping::Format,
    render::env_file::reader::{Fingerprint, Variables},
};

/// An environment has 6 MiB at most (`execve(2)`, "Limits"), and JSON may spell a character in six.
const MOST: u64 = 36 << 20;

/// The files, with what is known of them.
#[derive(Debug)]
pub(super) struct Files<'a> {
    paths: &'a [PathBuf],
    format: Option<Format>,
    stamps: Option<Vec<Option<Stamp>>>,
    problem: Option<String>,
}

/// What a look at the files came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// As at the last look.
    Same,
    /// What they hold can be read.
    Fingerprint(Fingerprint),
    /// It cannot, for a reason that was not given before.
    Problem(String),
}

/// Device, inode, size, and the time of the last change of any kind.
type Stamp = (u64, u64, u64, i64, i64);

// === impl Files ===

impl<'a> Files<'a> {
    pub(super) fn new(paths: &'a [PathBuf], format: Option<Format>) -> Self {
        Self { paths, format, stamps: None, problem: None }
    }

    /// Why they cannot be read; none if they can, or nobody has looked.
    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
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
        self.stamps = Some(stamps);
        let read = fingerprint(self.paths, self.format);
        overwrite_stack();
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
fn fingerprint(paths: &[PathBuf], format: Option<Format>) -> Result<Fingerprint, String> {
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
/// In words which file cannot be used, and why.
pub(super) fn read(paths: &[PathBuf], format: Option<Format>) -> Result<Variables, String> {
    let mut all = Variables::default();
    for path in paths {
        let content = content(path).map_err(|what| format!("{} {what}", path.display()))?;
        let variables = Variables::read(&content, format)
            .map_err(|malformed| format!("{} is no env file that keytide can read: {malformed}", path.display()))?;
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
fn content(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "is not there".to_owned(),
        io::ErrorKind::PermissionDenied => format!(
            "cannot be read by user {}: permission denied; let keytide write it for that user \
             (outputs.env_file.mode, group)",
            rustix::process::geteuid().as_raw()
        ),
        io::ErrorKind::UnexpectedEof => "became shorter while it was read".to_owned(),
        kind => format!("cannot be read: {kind}"),
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    // Not opened before it is known to be a file: the opening of a pipe waits for a writer.
    if !metadata.is_file() || metadata.len() > MOST {
        return Err(format!("is not a regular file of {} MiB at most", MOST >> 20));
    }
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len().min(MOST);
    let mut content = Zeroizing::new(vec![0; usize::try_from(length).unwrap_or_default()]);
    file.read_exact(&mut content).map_err(failed)?;
    Ok(content)
}
