//! The spool as somebody looks at it from outside of the daemon: `keytide spool`.

use std::{collections::BTreeMap, ffi::OsString, path::Path};

use serde::Serialize;

use super::{
    CLAIMED, FAILED, Failed, Mark, RETRY, SpoolError, check_owner,
    claim::{claim_name, split},
    entry,
    failed::Reason,
    own_directory, shown,
};
use crate::{
    domain::virtual_key::{Draft, RejectionReason, Token},
    output::directory::Directory,
};

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
                let draft = file.to_str().and_then(|file| directory.read(file, entry::LARGEST).ok()?);
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

    /// The failed entries, by their tokens.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn failed(&self) -> Result<BTreeMap<Token, FailedEntry>, SpoolError> {
        let entries = self.failed.entries()?.into_iter();
        Ok(entries.map(|(token, (name, reason))| (token, FailedEntry { token, name, reason })).collect())
    }

    /// Puts a failed entry back, to be tried again: under its own identity, so that AWS recognises what was written; or,
    /// forced, under a new one, also where that overwrites something newer.
    ///
    /// # Errors
    /// If it cannot be moved.
    pub fn retry(&self, entry: &FailedEntry, force: bool) -> Result<Retried, SpoolError> {
        let FailedEntry { token, name, reason } = entry;
        let superseded = reason.as_ref().is_some_and(|reason| reason.reason == RejectionReason::Superseded.label());
        if superseded && !force {
            return Ok(Retried::Superseded);
        }
        if force {
            self.retry.touch(&Mark::Forced.file(*token))?;
        }
        let restored = Mark::Restored.file(*token);
        if self.failed.directory.find(restored.as_ref())?.is_some() {
            self.retry.touch(&restored)?;
        }
        let file = claim_name(*token, name);
        // The mark is there before the entry; its reason is forgotten before it can fail for another one.
        self.failed.forget(*token, name)?;
        let moved = self.failed.directory.move_to(&file, &self.retry, &file)?;
        Ok(if moved { Retried::Yes } else { Retried::Gone })
    }

    /// Discards a failed entry.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn discard(&self, entry: &FailedEntry) -> Result<(), SpoolError> {
        self.failed.directory.remove(claim_name(entry.token, &entry.name))?;
        self.failed.forget(entry.token, &entry.name)
    }
}

/// An entry that failed.
#[derive(Debug)]
pub struct FailedEntry {
    token: Token,
    name: OsString,
    reason: Option<Reason>,
}

/// What became of an entry that somebody wants to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retried {
    /// It is tried again.
    Yes,
    /// It would overwrite something newer, and was not forced.
    Superseded,
    /// Somebody else has taken it.
    Gone,
}

/// What an entry says it is about. Not checked: for people.
fn said(draft: &Draft) -> String {
    let Draft { op, name, alias, .. } = draft;
    let name = name.as_deref().or(alias.as_deref()).map_or("an unnamed key".into(), |name| shown(name.as_ref()));
    let operation = op.as_deref().map_or("?".into(), |op| shown(op.as_ref()));
    format!("{operation} {name}").chars().take(160).collect()
}
