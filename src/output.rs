//! Where values are written, but for Kubernetes: files.

pub mod directory;
pub mod env_file;
pub mod files;

use std::path::Path;

use thiserror::Error;

use crate::{
    config,
    domain::{
        mapping::Selection,
        names::{EnvName, KeyName, OutputName},
        value::SecretValue,
    },
    plan::fan_out::Desired,
};
use directory::DirectoryError;
use env_file::EnvFile;
use files::Files;

/// One output of the configuration, with what is known of what it holds.
#[derive(Debug)]
pub struct Output {
    name: OutputName,
    selection: Selection,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    EnvFile(EnvFile),
    Files(Files),
}

/// What happened when an output was made to hold what it shall hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// What was written.
    pub action: Action,
    /// How many keys it holds.
    pub keys: usize,
    /// The keys that it cannot carry, each with why.
    pub unrepresentable: Vec<(KeyName, String)>,
    /// The values that it holds for some of those instead: the last ones that it could carry.
    pub kept: Vec<(KeyName, SecretValue)>,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Action {
    /// Nothing: it already was so.
    #[default]
    Nothing,
    /// Other content than before.
    Change,
    /// The same content again, since somebody had changed or removed it.
    Repair,
}

/// An output that could not be written.
#[derive(Debug, Error)]
pub enum OutputError {
    /// Something is wrong with its directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

// === impl Output ===

impl Output {
    /// Opens the directory of an output of files; none for one that is no file, whose worker writes it.
    ///
    /// # Errors
    /// If it is not a directory, not a tmpfs where one is needed, or cannot be opened.
    pub fn open(output: &config::Output, in_pod: bool) -> Result<Option<Self>, OutputError> {
        let config::Output { name, selection, kind } = output;
        let kind = match kind {
            config::OutputKind::EnvFile { path, format, access } => {
                Kind::EnvFile(EnvFile::open(path, *format, *access, in_pod)?)
            }
            config::OutputKind::Files { directory, access } => Kind::Files(Files::open(directory, *access, in_pod)?),
            config::OutputKind::KubernetesSecret(_) => return Ok(None),
        };
        Ok(Some(Self { name: name.clone(), selection: selection.clone(), kind }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &OutputName {
        &self.name
    }

    /// Which keys it takes.
    #[must_use]
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// The kind in the words of the configuration.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.kind {
            Kind::EnvFile(_) => "env_file",
            Kind::Files(_) => "files",
        }
    }

    /// The file or directory that it writes.
    #[must_use]
    pub fn path(&self) -> &Path {
        match &self.kind {
            Kind::EnvFile(env_file) => env_file.path(),
            Kind::Files(files) => files.path(),
        }
    }

    /// Gives it back what it held before a restart, for keys whose newest value it cannot carry.
    pub fn remember(&mut self, key: KeyName, value: SecretValue) {
        let name = self.selection.rename.get(&key).map_or(key.as_str(), String::as_str);
        match (&mut self.kind, EnvName::parse(name)) {
            (Kind::EnvFile(env_file), Ok(name)) => env_file.remember(key, name, value),
            // A file carries every value.
            (Kind::EnvFile(_) | Kind::Files(_), _) => {}
        }
    }

    /// Makes the output hold exactly this, and writes nothing where it already does.
    ///
    /// # Errors
    /// If it cannot be written; what it held before is still there.
    pub fn apply(&mut self, desired: Vec<Desired>) -> Result<Written, OutputError> {
        Ok(match &mut self.kind {
            Kind::EnvFile(env_file) => env_file.apply(desired)?,
            Kind::Files(files) => files.apply(desired)?,
        })
    }
}
