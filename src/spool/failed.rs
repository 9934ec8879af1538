//! Entries that can never succeed: kept for a week, each with its reason, until somebody tries them again or discards them.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{
    CLAIMED, FAILED, RESULTS, RETRY, SpoolError, check_owner,
    claim::{Claimed, claim_name, split},
    entry, own_directory, shown,
};
use crate::{
    config::FileAccess,
    domain::virtual_key::{Draft, Rejection, RejectionReason, Token, Tokens},
    health::timestamp,
    output::directory::Directory,
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
    directory: Directory,
    results: Directory,
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

/// An entry as `keytide spool list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// `waiting`, `claimed` or `failed`.
    pub state: &'static str,
    /// The identity, once it is claimed.
    pub token: Option<String>,
    /// The name that its producer gave it.
    pub file: String,
    /// What it is about, as far as it can be read.
    pub subject: Option<String>,
    /// Why it failed.
    pub reason: Option<String>,
    /// What is wrong, and what to do.
    pub message: Option<String>,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: i64,
}

/// The spool as somebody looks at it from outside of the daemon.
#[derive(Debug)]
pub struct Shelf {
    drop: Directory,
    claimed: Directory,
    retry: Directory,
    failed: Failed,
}

// === impl Failed ===

impl Failed {
    pub(super) fn open(drop: &Directory) -> Result<Self, SpoolError> {
        let (directory, results) = (own_directory(drop, FAILED, 0o700)?, own_directory(drop, RESULTS, 0o711)?);
        Ok(Self { directory, results })
    }

    /// How many there are.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn count(&self) -> Result<usize, SpoolError> {
        let mut count = 0;
        self.directory.visit(|name| {
            count += usize::from(split(name).is_some());
            true
        })?;
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

    /// Removes what was kept long enough. How many entries that were.
    ///
    /// # Errors
    /// If something cannot be read or removed.
    pub fn sweep(&self, now_ms: u64) -> Result<usize, SpoolError> {
        self.directory.sweep();
        self.results.sweep();
        let is_old = |changed_ms: i64| u64::try_from(changed_ms).is_ok_and(|at| at.saturating_add(KEPT_MS) < now_ms);
        let mut removed = 0;
        for file in self.directory.raw_names()? {
            // Taking an entry in changes its file.
            if self.directory.find(&file)?.is_some_and(|found| is_old(found.changed_ms)) {
                self.directory.remove(&file)?;
                removed += usize::from(split(&file).is_some());
            }
        }
        for file in self.results.raw_names()? {
            if self.results.find(&file)?.is_some_and(|found| is_old(found.changed_ms)) {
                self.results.remove(&file)?;
            }
        }
        Ok(removed)
    }

    /// Each entry with its reason, where that could be kept.
    fn entries(&self) -> Result<BTreeMap<Token, (OsString, Option<Reason>)>, SpoolError> {
        let mut entries = BTreeMap::new();
        for file in self.directory.raw_names()? {
            let Some((token, name)) = split(&file) else { continue };
            let reason = self.directory.read(&reason_name(token), LARGEST).ok().flatten();
            let reason = reason.and_then(|json| serde_json::from_slice(&json).ok());
            entries.insert(token, (name, reason));
        }
        Ok(entries)
    }

    fn forget(&self, token: Token, name: &OsStr) -> Result<(), SpoolError> {
        self.directory.remove(reason_name(token))?;
        Ok(self.results.remove(name)?)
    }
}

// === impl Shelf ===

impl Shelf {
    /// Opens the spool that a daemon has made.
    ///
    /// # Errors
    /// If there is none, or it is somebody else's.
    pub fn open(path: &Path) -> Result<Self, SpoolError> {
        let drop = Directory::open_existing(path)?;
        check_owner(&drop)?;
        let (claimed, retry) = (own_directory(&drop, CLAIMED, 0o700)?, own_directory(&drop, RETRY, 0o700)?);
        let failed = Failed::open(&drop)?;
        Ok(Self { drop, claimed, retry, failed })
    }

    /// What waits, and what failed.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, SpoolError> {
        let mut listed = Vec::new();
        let mut waiting = self.drop.raw_names()?;
        waiting.sort_unstable();
        for name in waiting.into_iter().filter(|name| !name.as_encoded_bytes().starts_with(b".") && name != FAILED) {
            let Some(found) = self.drop.find(&name)? else { continue };
            listed.push(Listed {
                state: "waiting",
                token: None,
                file: shown(&name),
                subject: None,
                reason: None,
                message: None,
                since_ms: found.changed_ms,
            });
        }
        for (directory, names) in [(&self.claimed, self.claimed.raw_names()?), (&self.retry, self.retry.raw_names()?)] {
            let mut claims: Vec<(Token, OsString)> = names.iter().filter_map(|name| split(name)).collect();
            claims.sort_unstable();
            for (token, name) in claims {
                let file = claim_name(token, &name);
                let bytes = directory.open_file(&file).ok().filter(|(_, found)| found.is_file);
                let draft = bytes.and_then(|_| directory.read(file.to_str()?, entry::LARGEST).ok()?);
                listed.push(Listed {
                    state: "claimed",
                    token: Some(token.to_string()),
                    file: shown(&name),
                    subject: draft.and_then(|bytes| entry::parse(&bytes).ok()).map(|draft| said(&draft)),
                    reason: None,
                    message: None,
                    since_ms: i64::try_from(token.claimed_ms()).unwrap_or(i64::MAX),
                });
            }
        }
        for (token, (name, reason)) in self.failed.entries()? {
            let since_ms = self.failed.directory.find(&claim_name(token, &name))?.map_or(0, |found| found.changed_ms);
            let (subject, word, message) = match reason {
                Some(Reason { subject, reason, message, .. }) => (subject, Some(reason), Some(message)),
                None => (None, None, None),
            };
            listed.push(Listed {
                state: "failed",
                token: Some(token.to_string()),
                file: shown(&name),
                subject,
                reason: word,
                message,
                since_ms,
            });
        }
        Ok(listed)
    }

    /// The tokens of all failed entries.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn failed(&self) -> Result<Vec<Token>, SpoolError> {
        Ok(self.failed.entries()?.into_keys().collect())
    }

    /// Puts a failed entry back, to be tried again: under its own identity, so that AWS recognises what was written; or,
    /// forced, under a new one, which is newer than whatever is there. What it was is said if it must be forced; none if
    /// there is no such entry.
    ///
    /// # Errors
    /// If it cannot be moved.
    pub fn retry(&self, token: Token, forced: Option<u64>) -> Result<Option<Retried>, SpoolError> {
        let Some((name, reason)) = self.failed.entries()?.remove(&token) else { return Ok(None) };
        let superseded = reason.is_some_and(|reason| reason.reason == RejectionReason::Superseded.label());
        let new = match forced {
            None if superseded => return Ok(Some(Retried::Superseded)),
            None => token,
            Some(now_ms) => Tokens::default().next(now_ms, &mut fastrand::Rng::new()),
        };
        self.failed.forget(token, &name)?;
        self.failed.directory.move_to(&claim_name(token, &name), &self.retry, &claim_name(new, &name))?;
        Ok(Some(Retried::As(new)))
    }

    /// Discards a failed entry; false if there is no such entry.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn discard(&self, token: Token) -> Result<bool, SpoolError> {
        let Some((name, _)) = self.failed.entries()?.remove(&token) else { return Ok(false) };
        self.failed.directory.remove(claim_name(token, &name))?;
        self.failed.forget(token, &name)?;
        Ok(true)
    }
}

/// What became of an entry that somebody wants to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retried {
    /// It is tried again under this identity.
    As(Token),
    /// It would overwrite something newer, and was not forced.
    Superseded,
}

fn reason_name(token: Token) -> String {
    format!("{token}{REASON}")
}

/// What an entry says it is about. Not checked: for people.
fn said(draft: &Draft) -> String {
    let Draft { op, name, alias, .. } = draft;
    let visible = |text: &str| text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(128).collect();
    let name: String = name.as_deref().or(alias.as_deref()).map_or_else(|| "an unnamed key".to_owned(), visible);
    format!("{} {name}", op.as_deref().map_or_else(|| "?".to_owned(), visible))
}

/// What became of the entry that a producer made under this name: the reason why it failed, if it did.
#[must_use]
pub fn result_of(spool: &Path, name: &str) -> Option<Reason> {
    let json = std::fs::read(spool.join(RESULTS).join(name)).ok()?;
    serde_json::from_slice(&json).ok()
}
