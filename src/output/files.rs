//! One file for each key, all swapped at once, as the kubelet does for a mounted Secret: the files lie in a directory of
//! their own, a link `..data` leads to it, and each name is a link through `..data`. Renaming one link changes all.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{Action, OutputError, Written, directory::Directory, env_file};
use crate::{
    config::FileAccess,
    domain::{
        names::{FileName, KeyName},
        value::SecretValue,
    },
    plan::fan_out::Desired,
};

/// The link that is swapped.
const DATA: &str = "..data";
/// Begins the names of the directories that it leads to, one after another.
const GENERATION: &str = "..keytide-";

/// A directory of files, with what is known of its content.
#[derive(Debug)]
pub struct Files {
    directory: Directory,
    access: FileAccess,
    in_pod: bool,
    held: BTreeMap<KeyName, (FileName, SecretValue)>,
    written: bool,
}

// === impl Files ===

impl Files {
    /// Opens the directory, and makes it where it is missing in a mount that is there.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn open(path: &Path, access: FileAccess, in_pod: bool) -> Result<Self, OutputError> {
        let directory = Directory::open(path, access.allow_disk, 0o755)?;
        directory.sweep();
        Ok(Self { directory, access, in_pod, held: BTreeMap::new(), written: false })
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Makes the directory hold exactly these files.
    ///
    /// # Errors
    /// If they cannot be written; the old ones are then still there.
    pub fn apply(&mut self, desired: Vec<Desired>) -> Result<Written, OutputError> {
        self.directory.refresh()?;
        let mut unrepresentable = Vec::new();
        let mut wanted = BTreeMap::new();
        for Desired { key, name, value } in desired {
            match FileName::parse(name) {
                Ok(name) => drop(wanted.insert(key, (name, value))),
                Err(rule) => unrepresentable.push((key, rule.to_string())),
            }
        }
        let changed = !self.written || self.held != wanted;
        let intact = self.is_intact(&wanted)?;
        let action = match (intact, changed) {
            (true, _) => Action::Nothing,
            (false, true) => Action::Change,
            (false, false) => Action::Repair,
        };
        if !intact {
            self.swap(&wanted)?;
        }
        let keys = wanted.len();
        self.held = wanted;
        self.written = true;
        Ok(Written { action, keys, unrepresentable, kept: Vec::new() })
    }

    /// True if every file is there with its content and mode, and no other.
    fn is_intact(&self, wanted: &BTreeMap<KeyName, (FileName, SecretValue)>) -> Result<bool, OutputError> {
        let Some(current) = self.directory.target(DATA).filter(|target| is_generation(target)) else {
            return Ok(false);
        };
        let Ok(data) = self.directory.subdirectory(&current, 0o755) else { return Ok(false) };
        let mode = env_file::mode(&self.directory, self.access, self.in_pod)?;
        let names: BTreeSet<&str> = wanted.values().map(|(name, _)| name.as_str()).collect();
        if data.names()?.iter().map(String::as_str).collect::<BTreeSet<_>>() != names {
            return Ok(false);
        }
        for (name, value) in wanted.values() {
            let linked = self.directory.target(name.as_str()).is_some_and(|target| target == link_of(name));
            if !linked || !data.holds(name.as_str(), value.expose().as_bytes(), self.access, mode)? {
                return Ok(false);
            }
        }
        let ours = self.ours()?;
        Ok(ours.iter().all(|name| names.contains(name.as_str())))
    }

    fn swap(&self, wanted: &BTreeMap<KeyName, (FileName, SecretValue)>) -> Result<(), OutputError> {
        let mode = env_file::mode(&self.directory, self.access, self.in_pod)?;
        let next = format!("{GENERATION}{:016x}", fastrand::u64(..));
        let data = self.directory.subdirectory(&next, 0o755)?;
        for (name, value) in wanted.values() {
            let _: super::directory::Stamp =
                data.replace(name.as_str(), value.expose().as_bytes(), self.access, mode)?;
        }
        self.directory.link(&next, DATA)?;
        let names: BTreeSet<&str> = wanted.values().map(|(name, _)| name.as_str()).collect();
        for (name, _) in wanted.values() {
            if self.directory.target(name.as_str()).is_none_or(|target| target != link_of(name)) {
                self.directory.link(&link_of(name), name.as_str())?;
            }
        }
        for gone in self.ours()?.iter().filter(|name| !names.contains(name.as_str())) {
            self.directory.remove(gone)?;
        }
        for old in self.directory.names()?.iter().filter(|name| is_generation(name) && **name != next) {
            self.directory.remove_directory(old)?;
        }
        self.directory.sweep();
        Ok(())
    }

    /// The links of ours, whatever key they were for: names that others put here stay.
    fn ours(&self) -> Result<Vec<String>, OutputError> {
        let names = self.directory.names()?;
        let ours = |name: &String| self.directory.target(name).is_some_and(|target| target == format!("{DATA}/{name}"));
        Ok(names.into_iter().filter(ours).collect())
    }
}

fn link_of(name: &FileName) -> String {
    format!("{DATA}/{name}")
}

fn is_generation(name: &str) -> bool {
    name.strip_prefix(GENERATION).is_some_and(|rest| rest.len() == 16 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}
