//! One env file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    Action, OutputError, Written,
    directory::{Directory, DirectoryError, Stamp},
};
use crate::{
    config::FileAccess,
    domain::{
        mapping::Format,
        names::{EnvName, KeyName},
        value::SecretValue,
    },
    plan::fan_out::Desired,
    render::env_file as dialect,
};

/// An env file, with what is known of its content.
#[derive(Debug)]
pub struct EnvFile {
    directory: Directory,
    path: PathBuf,
    name: String,
    format: Format,
    access: FileAccess,
    in_pod: bool,
    /// What it holds: each key with its name and the last value that the format could carry.
    held: BTreeMap<KeyName, (EnvName, SecretValue)>,
    stamp: Option<Stamp>,
}

// === impl EnvFile ===

impl EnvFile {
    /// Opens its directory. The file itself is not touched.
    ///
    /// # Errors
    /// If the directory cannot be used.
    pub fn open(path: &Path, format: Format, access: FileAccess, in_pod: bool) -> Result<Self, OutputError> {
        let (parent, name) = split(path)?;
        let directory = Directory::open(parent, access.allow_disk, 0o755)?;
        directory.sweep();
        let path = path.to_owned();
        Ok(Self { directory, path, name, format, access, in_pod, held: BTreeMap::new(), stamp: None })
    }

    /// Gives it back what it held before a restart, for keys whose newest value it cannot carry. An output is never an
    /// input, so this comes from the last good snapshot.
    pub fn remember(&mut self, key: KeyName, name: EnvName, value: SecretValue) {
        self.held.insert(key, (name, value));
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file hold exactly this.
    ///
    /// # Errors
    /// If it cannot be written; the old file is then still there.
    pub fn apply(&mut self, desired: Vec<Desired>) -> Result<Written, OutputError> {
        self.directory.refresh()?;
        let (mut unrepresentable, mut kept) = (Vec::new(), Vec::new());
        let mut order = Vec::with_capacity(desired.len());
        let mut wanted = BTreeMap::new();
        for Desired { key, name, value } in desired {
            let checked = match EnvName::parse(name) {
                Ok(name) => match dialect::check(self.format, &name, &value) {
                    Ok(()) => Ok((name, value)),
                    Err(reason) => Err(reason.to_string()),
                },
                Err(rule) => Err(rule.to_string()),
            };
            // A value that the format cannot carry leaves that key's last one in place.
            let entry = match checked {
                Ok(entry) => Some(entry),
                Err(reason) => {
                    unrepresentable.push((key.clone(), reason));
                    let held = self.held.get(&key).map(|(name, value)| (name.clone(), value.share()));
                    kept.extend(held.as_ref().map(|(_, value)| (key.clone(), value.share())));
                    held
                }
            };
            if let Some(entry) = entry {
                order.push(key.clone());
                wanted.insert(key, entry);
            }
        }
        let keys = wanted.len();
        let mode = self.mode()?;
        let changed = self.held != wanted;
        let stamp = self.directory.stamp(&self.name)?;
        let mut action = Action::Nothing;
        if changed || stamp.is_none() || stamp != self.stamp {
            let entries: Vec<(&EnvName, &SecretValue)> =
                order.iter().filter_map(|key| wanted.get(key)).map(|(name, value)| (name, value)).collect();
            let content = dialect::render(self.format, &entries);
            if self.directory.holds(&self.name, &content, self.access, mode)? {
                self.stamp = stamp;
            } else {
                self.stamp = Some(self.directory.replace(&self.name, &content, self.access, mode)?);
                action = if changed { Action::Change } else { Action::Repair };
                self.directory.sweep();
            }
        }
        self.held = wanted;
        Ok(Written { action, keys, unrepresentable, kept })
    }

    fn mode(&self) -> Result<u32, DirectoryError> {
        mode(&self.directory, self.access, self.in_pod)
    }
}

/// The mode of an output's files: as configured, or what the directory asks for.
///
/// # Errors
/// If the directory cannot be looked at.
pub(crate) fn mode(directory: &Directory, access: FileAccess, in_pod: bool) -> Result<u32, DirectoryError> {
    Ok(match access.mode {
        Some(mode) => mode,
        None if directory.is_setgid()? => 0o440,
        // In a pod the mount is the boundary, and the other containers have other user ids.
        None if in_pod => 0o444,
        None => 0o400,
    })
}

/// The directory and the name of a path.
///
/// # Errors
/// If it has none.
pub(crate) fn split(path: &Path) -> Result<(&Path, String), DirectoryError> {
    let name = path.file_name().and_then(|name| name.to_str());
    match (path.parent(), name) {
        (Some(parent), Some(name)) => Ok((parent, name.to_owned())),
        _ => Err(DirectoryError::Open { path: path.to_owned(), what: "it has no file name in UTF-8".to_owned() }),
    }
}
