//! Entries that can never succeed: kept for a week, each with its reason, until somebody tries them again or discards them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    FAILED, RESULTS, SpoolError,
    claim::{Claimed, Mark, claim_name, split},
    own_directory, shown,
};
use crate::{
    config::FileAccess,
    domain::virtual_key::{Rejection, Token},
    health::timestamp,
    output::directory::{Directory, Stamp},
};

/// How long a failed entry is kept.
const KEPT_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// Of the file that holds a reason.
const LARGEST: usize = 16 * 1024;
/// Behind the token of a failed entry: its reason.
const REASON: &str = ".error.json";

/// The failed entries.
#[derive(Debug)]
pub struct Failed {
    pub(super) directory: Directory,
    results: Directory,
    /// How many there were when the directory was in this state.
    counted: Option<(Stamp, usize)>,
    /// What was old at the last look: clocks jump, so two looks must agree before anything is removed.
    old: BTreeSet<OsString>,
}

/// Why an entry failed: what its `.error.json` holds. Never a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The identity that its claim gave it.
    pub token: String,
    /// The name that its producer gave it.
    pub file: String,
    /// What it was about; none if it was not understood.
    pub subject: Option<String>,
    /// A word of a closed set: that of metrics.
    pub reason: String,
    /// What is wrong, and what to do.
    pub message: String,
    /// When it failed (RFC 3339, UTC).
    pub failed_at: String,
}

// === impl Failed ===

impl Failed {
    pub(super) fn open(drop: &Directory) -> Result<Self, SpoolError> {
        let (directory, results) = (own_directory(drop, FAILED, 0o700)?, own_directory(drop, RESULTS, 0o711)?);
        Ok(Self { directory, results, counted: None, old: BTreeSet::new() })
    }

    /// How many there are. Counted only where something changed.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn count(&mut self) -> Result<usize, SpoolError> {
        let stamp = self.directory.itself()?.stamp;
        if let Some((_, count)) = self.counted.filter(|(counted, _)| *counted == stamp) {
            return Ok(count);
        }
        let count = self.directory.raw_names()?.iter().filter(|name| split(name).is_some()).count();
        self.counted = Some((stamp, count));
        Ok(count)
    }

    /// Takes an entry in. Its reason is written first, so that whoever finds the entry finds the reason; a full disk costs
    /// the reason, not the entry.
    pub(super) fn take(
        &mut self,
        claimed: &Directory,
        claim: &Claimed,
        rejection: &Rejection,
        subject: Option<&str>,
        now_ms: u64,
    ) -> Result<(), SpoolError> {
        let seconds = i64::try_from(now_ms / 1000).unwrap_or_default();
        let Rejection { reason, message } = rejection;
        let reason = Reason {
            token: claim.token.to_string(),
            file: shown(&claim.name),
            subject: subject.map(str::to_owned),
            reason: reason.label().to_owned(),
            message: message.clone(),
            failed_at: timestamp(seconds).unwrap_or_default(),
        };
        let content = serde_json::to_vec(&reason).unwrap_or_default();
        let ours = FileAccess { mode: Some(0o600), group: None, owner: None, allow_disk: false };
        let written = self.directory.replace(&reason_name(claim.token), &content, ours, 0o600).map(drop);
        if let Err(error) = written {
            tracing::warn!("the reason of a failed entry could not be kept: {error}");
        }
        let file = claim_name(claim.token, &claim.name);
        claimed.move_to(&file, &self.directory, &file)?;
        if let Some(name) = claim.name.to_str() {
            // For whoever waits; whoever does not will not miss it.
            self.results.replace(name, &content, ours, 0o644).map(drop).unwrap_or_default();
        }
        Ok(self.directory.sync()?)
    }

    /// Removes what was kept long enough, as two looks at the clock agree. How many entries that were.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn sweep(&mut self, now_ms: u64) -> Result<usize, SpoolError> {
        self.directory.sweep();
        self.results.sweep();
        let is_old = |changed_ms: i64| u64::try_from(changed_ms).is_ok_and(|at| at.saturating_add(KEPT_MS) < now_ms);
        let (mut removed, mut old) = (0, BTreeSet::new());
        for directory in [&self.directory, &self.results] {
            for file in directory.raw_names()? {
                // Taking an entry in changes its file.
                let found = directory.find(&file)?;
                if !found.is_some_and(|found| is_old(found.changed_ms)) {
                    continue;
                }
                if !self.old.contains(&file) {
                    old.insert(file);
                } else if directory.remove(&file).is_ok() {
                    removed += usize::from(split(&file).is_some());
                }
            }
        }
        self.old = old;
        Ok(removed)
    }

    /// Each entry with its reason, where that could be kept.
    pub(super) fn entries(&self) -> Result<BTreeMap<Token, (OsString, Option<Reason>)>, SpoolError> {
        let mut entries = BTreeMap::new();
        for file in self.directory.raw_names()? {
            let Some((token, name)) = split(&file) else { continue };
            let reason = self.directory.read(&reason_name(token), LARGEST).ok().flatten();
            let reason = reason.and_then(|json| serde_json::from_slice(&json).ok());
            entries.insert(token, (name, reason));
        }
        Ok(entries)
    }

    /// Removes what was said of an entry.
    pub(super) fn forget(&self, token: Token, name: &OsStr) -> Result<(), SpoolError> {
        self.directory.remove(reason_name(token))?;
        self.directory.remove(Mark::Restored.file(token))?;
        Ok(self.results.remove(name)?)
    }
}

fn reason_name(token: Token) -> String {
    format!("{token}{REASON}")
}

/// What became of the entry that a producer made under this name: the reason why it failed, if it did.
#[must_use]
pub fn result_of(spool: &Path, name: &str) -> Option<Reason> {
    let json = std::fs::read(spool.join(RESULTS).join(name)).ok()?;
    serde_json::from_slice(&json).ok()
}
