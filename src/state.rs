//! The last good snapshot, kept over restarts, so that an outage of AWS does not outlive a pod's container.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    config::FileAccess,
    domain::{
        mapping::Request,
        names::{KeyName, OutputName, SecretId, VersionId, VersionStage},
        snapshot::Version,
        value::SecretValue,
    },
    output::directory::{Directory, DirectoryError},
    plan::fan_out::{Good, Ledger},
};

const FILE: &str = "last-good.json";
/// Grows when a reader of the old shape would misread the new one.
const FORMAT: u32 = 1;
/// 5,000 keys of 64 KiB would be more than a pod's memory; what is larger is not ours.
const LARGEST: usize = 64 * 1024 * 1024;

/// The directory of the snapshot.
#[derive(Debug)]
pub struct State {
    directory: Directory,
    access: FileAccess,
}

/// What was kept by the process before this one.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The values.
    pub good: BTreeMap<KeyName, Good>,
    /// The versions that were applied.
    pub applied: BTreeMap<Request, Version>,
    /// What outputs held instead of values that they could not carry.
    pub kept: Kept,
}

/// By the name of the output and the key: the last value that the output could carry, where the newest is not one.
pub type Kept = BTreeMap<(OutputName, KeyName), SecretValue>;

/// A snapshot that could not be kept or recovered.
#[derive(Debug, Error)]
pub enum StateError {
    /// The file or its directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The content.
    #[error("the last good snapshot {} is not one that this version wrote; it is ignored and will be replaced", .0)]
    Content(String),
}

#[derive(Serialize, Deserialize)]
struct File<'a> {
    format: u32,
    #[serde(borrow)]
    secrets: Vec<Secret<'a>>,
    #[serde(borrow)]
    kept: Vec<KeptValue<'a>>,
}

#[derive(Serialize, Deserialize)]
struct KeptValue<'a> {
    output: String,
    key: String,
    value: std::borrow::Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
struct Secret<'a> {
    id: String,
    stage: Option<String>,
    version: Option<String>,
    created_ms: Option<i64>,
    #[serde(borrow)]
    keys: Vec<Key<'a>>,
}

#[derive(Serialize, Deserialize)]
struct Key<'a> {
    name: String,
    wholesale: bool,
    value: std::borrow::Cow<'a, str>,
}

// === impl State ===

impl State {
    /// Opens the directory; makes it, for nobody else, where it is missing.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn open(path: &Path, allow_disk: bool) -> Result<Self, StateError> {
        let directory = Directory::open(path, allow_disk, 0o700)?;
        directory.sweep();
        let access = FileAccess { mode: Some(0o600), group: None, owner: None, allow_disk };
        Ok(Self { directory, access })
    }

    /// What was kept; nothing if nothing was.
    ///
    /// # Errors
    /// If there is a snapshot that cannot be read.
    pub fn recover(&self) -> Result<Recovered, StateError> {
        let Some(content) = self.directory.read(FILE, LARGEST)? else { return Ok(Recovered::default()) };
        let parsed: Option<File<'_>> = serde_json::from_slice(&content).ok();
        parsed.filter(|file| file.format == FORMAT).and_then(recovered).ok_or_else(|| self.content())
    }

    fn content(&self) -> StateError {
        StateError::Content(self.directory.path().join(FILE).display().to_string())
    }

    /// Keeps the last good values, as atomically as an output.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn keep(&mut self, ledger: &Ledger, kept: &Kept) -> Result<(), StateError> {
        self.directory.refresh()?;
        let mut secrets: BTreeMap<&Request, Secret<'_>> = BTreeMap::new();
        for (name, Good { value, from, wholesale, read: _ }) in ledger.good() {
            let secret = secrets.entry(from).or_insert_with(|| {
                let version = ledger.applied().get(from);
                Secret {
                    id: from.secret.to_string(),
                    stage: from.stage.as_ref().map(ToString::to_string),
                    version: version.map(|version| version.id.to_string()),
                    created_ms: version.and_then(|version| version.created_ms),
                    keys: Vec::new(),
                }
            });
            secret.keys.push(Key { name: name.to_string(), wholesale: *wholesale, value: value.expose().into() });
        }
        let kept = kept.iter().map(|((output, key), value)| KeptValue {
            output: output.to_string(),
            key: key.to_string(),
            value: value.expose().into(),
        });
        let file = File { format: FORMAT, secrets: secrets.into_values().collect(), kept: kept.collect() };
        // Counted first, so that the text is written into one buffer that is overwritten in the end.
        let mut count = Count(0);
        serde_json::to_writer(&mut count, &file).map_err(|_| self.content())?;
        let mut content = Zeroizing::new(Vec::with_capacity(count.0));
        serde_json::to_writer(&mut *content, &file).map_err(|_| self.content())?;
        let _: crate::output::directory::Stamp = self.directory.replace(FILE, &content, self.access, 0o600)?;
        self.directory.sweep();
        Ok(())
    }
}

fn recovered(file: File<'_>) -> Option<Recovered> {
    let mut recovered = Recovered::default();
    for Secret { id, stage, version, created_ms, keys } in file.secrets {
        let stage = stage.map(VersionStage::parse).transpose().ok()?;
        let request = Request { secret: SecretId::parse(id).ok()?, stage };
        if let Some(id) = version {
            recovered.applied.insert(request.clone(), Version { id: VersionId::parse(id).ok()?, created_ms });
        }
        for Key { name, wholesale, value } in keys {
            let good =
                Good { value: SecretValue::new(value.into_owned()), from: request.clone(), wholesale, read: false };
            recovered.good.insert(KeyName::parse(name).ok()?, good);
        }
    }
    for KeptValue { output, key, value } in file.kept {
        let place = (OutputName::parse(output).ok()?, KeyName::parse(key).ok()?);
        recovered.kept.insert(place, SecretValue::new(value.into_owned()));
    }
    Some(recovered)
}

struct Count(usize);

impl std::io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
