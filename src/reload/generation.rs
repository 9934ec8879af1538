//! A file that holds a number, for those who watch files: another one after each change, and at no other time.

use std::path::Path;

use crate::{
    config::FileAccess,
    output::{
        directory::{Directory, DirectoryError},
        env_file::{mode, split},
    },
};

/// A number has 20 digits at most, and a line feed.
const LONGEST: usize = 32;
/// As an output's that says nothing of it.
const ACCESS: FileAccess = FileAccess { mode: None, group: None, owner: None, allow_disk: false };

/// The file, with what is known of its content.
#[derive(Debug)]
pub(super) struct Generation {
    directory: Directory,
    name: String,
    in_pod: bool,
    /// The number that it holds, and the changes that this counts; none before the first write.
    held: Option<(u64, u64)>,
}

// === impl Generation ===

impl Generation {
    /// Opens its directory. The file itself is not touched.
    pub(super) fn open(path: &Path, allow_disk: bool, in_pod: bool) -> Result<Self, DirectoryError> {
        let (parent, name) = split(path)?;
        let directory = Directory::open(parent, allow_disk, 0o755)?;
        directory.sweep();
        Ok(Self { directory, name, in_pod, held: None })
    }

    /// Makes the file count so many changes. The first time it goes on from the number that the file holds.
    pub(super) fn write(&mut self, changes: u64) -> Result<String, DirectoryError> {
        self.directory.refresh()?;
        let (held, counted) = match self.held {
            Some((held, counted)) => (Some(held), counted),
            None => (self.read(), 0),
        };
        let number = match held {
            // Several outputs may change at once.
            Some(number) if changes > counted => number.wrapping_add(1),
            Some(number) => number,
            None => 1,
        };
        let content = format!("{number}\n");
        let mode = mode(&self.directory, ACCESS, self.in_pod)?;
        if !self.directory.holds(&self.name, content.as_bytes(), ACCESS, mode)? {
            self.directory.replace(&self.name, content.as_bytes(), ACCESS, mode)?;
        }
        self.held = Some((number, changes));
        Ok(format!("generation {number}"))
    }

    /// The number in the file; none if there is no file, or something else in it.
    fn read(&self) -> Option<u64> {
        let content = self.directory.read(&self.name, LONGEST).ok()??;
        std::str::from_utf8(&content).ok()?.trim_end().parse().ok()
    }
}
