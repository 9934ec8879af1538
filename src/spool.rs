//! The spool: the directory in which producers leave virtual keys, and what keytide keeps in it. `docs/SPOOL.md` is the
//! protocol.
//!
//! Whoever may write there is not trusted: nothing is followed, nothing is read before it was taken into a directory that
//! is keytide's alone, and nothing is held that is larger than a claim.

pub mod claim;
pub mod entry;
pub mod failed;
pub mod shelf;

use std::{ffi::OsStr, path::Path};

use thiserror::Error;

use crate::output::directory::{Directory, DirectoryError};

pub use claim::{Claimed, Look, Mark, Scan, Spool};
pub use failed::Failed;
pub use shelf::Shelf;

/// Claims; keytide's alone.
const CLAIMED: &str = ".claimed";
/// Failed entries that are to be tried again; keytide's alone.
const RETRY: &str = ".retry";
/// What became of failed entries, for those who wait for theirs: found by the name of the entry, not listed.
const RESULTS: &str = ".results";
/// Entries that can never succeed, each with its reason; keytide's alone.
const FAILED: &str = "failed";
/// Others may make files, and reach those whose names they know; nobody lists, and nobody takes another's file (sticky).
const DROP_MODE: u32 = 0o1733;

/// Why the spool cannot be used.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// A directory or a file.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A directory of somebody else.
    #[error(
        "directory {path} belongs to user {owner}, and keytide, as user {own}, could not take the files of others from it: \
         remove it, so that keytide makes it itself, or give it to user {own}"
    )]
    Owner {
        /// The directory.
        path: String,
        /// Whose it is.
        owner: u32,
        /// Who keytide is.
        own: u32,
    },
    /// Another directory has taken its place.
    #[error(
        "{0} is no longer the directory that keytide has opened, and in which its claims are: put that one back, or restart \
         keytide"
    )]
    Replaced(String),
}

/// Opens a directory of the spool that keytide has made, or makes it.
fn own_directory(parent: &Directory, name: &str, mode: u32) -> Result<Directory, SpoolError> {
    let directory = parent.subdirectory(name, mode)?;
    check_owner(&directory)?;
    if directory.itself()?.mode != mode {
        directory.set_mode(mode)?;
    }
    Ok(directory)
}

fn check_owner(directory: &Directory) -> Result<(), SpoolError> {
    let (owner, own) = (directory.itself()?.owner, rustix::process::geteuid().as_raw());
    if owner == own {
        return Ok(());
    }
    Err(SpoolError::Owner { path: directory.path().display().to_string(), owner, own })
}

/// The drop directory, made where it is missing.
fn drop_directory(path: &Path, allow_disk: bool) -> Result<Directory, SpoolError> {
    if !path.exists() {
        Directory::make(path, allow_disk, DROP_MODE)?;
    }
    let directory = Directory::open(path, allow_disk, DROP_MODE)?;
    check_owner(&directory)?;
    let mode = directory.itself()?.mode;
    // Where others may write, they could otherwise move what is keytide's away.
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        directory.set_mode(mode | 0o1000)?;
    }
    Ok(directory)
}

/// A file's name for people: whatever is in it, one line of text.
#[must_use]
pub fn shown(name: &OsStr) -> String {
    name.to_string_lossy().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
